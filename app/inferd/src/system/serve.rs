//! `inferd system serve`: root's side of the door to the daemon (`inferd_system::door` has what is said there).
//!
//! A thread for every connection, four at most; one install or try at a time, which the lock on root's folder sees to, also against a person
//! at a shell. A connection that brings nothing any more, or ends, lets its install end: the slot that it wrote to does not start.

use super::{Desk, because, tell};
use clap::Args;
use inferd_slots::{FileMedium, Medium as _};
use inferd_system::door::{self, Answer, Ask, Told};
use inferd_system::state::{Reason, State};
use inferd_system::{Folder, Parts, View};
use inferd_watch::state::DAEMON;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, User};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Connections at once.
const CONNECTIONS: usize = 4;
/// How long a question may take to come, and an answer to be taken.
const WORD: Duration = Duration::from_secs(10);
/// Data that this process may have, with the stacks of its threads. A verifier of the largest bundle takes 16 MiB.
const MEMORY: u64 = 64 << 20;
/// The stack of a thread.
const STACK: usize = 512 << 10;
/// Bytes of a connection that are read at once.
const READ: usize = 64 << 10;
/// What a bundle has beside the bytes of its partitions, at most roughly.
const BESIDE: u64 = 16 << 20;

#[derive(Args, Debug)]
pub(super) struct Serve {
    /// Where to listen
    #[arg(long, value_name = "FILE", default_value = door::SOCKET)]
    socket: PathBuf,
    /// The user whose daemon, as the keeper has started it, is heard there beside root [default: none]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How long a bundle's next bytes may take to come; a question 10 seconds at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

/// Serves until it is killed.
pub(super) fn serve(desk: &Desk, how: &Serve) -> Result<(), Reason> {
    let failed = |e: io::Error| because("no-door", format!("{}: {e}", how.socket.display()));
    setrlimit(Resource::RLIMIT_DATA, MEMORY, MEMORY).map_err(|e| failed(e.into()))?;
    let user = how.user.as_deref().map(known_user).transpose().map_err(failed)?;
    let listener = listen(&how.socket, user.as_ref()).map_err(failed)?;
    let (busy, known) = (AtomicUsize::new(0), Known::default());
    // Whoever looks after the board learns it at its start, and not from the first update.
    if let Err(why) = possible(desk, &known) {
        log("this board takes no update of its system", &why);
    }
    let patience = Duration::from_secs(how.patience.max(1));
    thread::scope(|scope| {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // Nothing that another connection would not meet too.
                Err(error) => {
                    tell(format_args!("{}: {error}", how.socket.display()));
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            if !is_heard(&stream, user.as_ref(), &desk.cli.run.join(DAEMON)) {
                say(&stream, refused(because("not-allowed", "only root and the daemon are heard here")));
                continue;
            }
            if busy.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
                busy.fetch_sub(1, Ordering::AcqRel);
                say(&stream, refused(because("busy", "too many ask for systems at once")));
                continue;
            }
            let (busy, known) = (&busy, &known);
            let hear = move || {
                hear(desk, &stream, patience, known);
                busy.fetch_sub(1, Ordering::AcqRel);
            };
            if thread::Builder::new().stack_size(STACK).spawn_scoped(scope, hear).is_err() {
                busy.fetch_sub(1, Ordering::AcqRel);
            }
        }
    })
}

fn known_user(name: &str) -> io::Result<User> {
    User::from_name(name)?.ok_or_else(|| io::Error::other(format!("there is no user {name}")))
}

/// Whether root asks, or the daemon: the user that is heard, in the process that the keeper has started. The kernel says who it is. Engine hosts
/// have that user, too, and others may have come into the socket's group.
fn is_heard(stream: &UnixStream, user: Option<&User>, daemon: &Path) -> bool {
    let Ok(who) = getsockopt(stream, PeerCredentials) else { return false };
    let uid = Uid::from_raw(who.uid());
    let is_daemon = || fs::read_to_string(daemon).is_ok_and(|pid| pid.trim().parse() == Ok(who.pid()));
    uid.is_root() || uid == Uid::effective() || (user.is_some_and(|user| user.uid == uid) && is_daemon())
}

/// A socket in a directory that only root changes, which the user's group may connect to.
fn listen(path: &Path, user: Option<&User>) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    if let Some(user) = user {
        std::os::unix::fs::chown(path, None, Some(user.gid.as_raw()))?;
    }
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn refused(reason: Reason) -> Answer {
    Answer::Refused { reason }
}

/// Answers; whoever asked may be gone.
fn say(mut to: &UnixStream, answer: Answer) {
    let _ = to.set_write_timeout(Some(WORD)).and_then(|()| to.write_all(&answer.line()));
}

/// One connection.
fn hear(desk: &Desk, stream: &UnixStream, patience: Duration, known: &Known) {
    let mut from = BufReader::with_capacity(READ, stream);
    let asked =
        stream.set_read_timeout(Some(WORD.min(patience))).and_then(|()| door::line(&mut from, door::MAX_ASK));
    let line = match asked {
        Ok(Some(line)) => line,
        Ok(None) => return,
        Err(error) => return say(stream, refused(because("bad-request", error))),
    };
    let answer = match door::question(&line) {
        Ok(Ask::Status {}) => Ok(Answer::Status { told: Box::new(told(desk, known)) }),
        Ok(Ask::Install {}) => {
            install(desk, &mut from, stream, patience).inspect_err(|why| log("nothing is staged", why))
        }
        Ok(Ask::Try {}) => try_it(desk).inspect_err(|why| log("nothing is tried", why)),
        Err(reason) => Err(reason),
    };
    say(stream, answer.unwrap_or_else(refused));
}

fn log(what: &str, why: &Reason) {
    tell(format_args!("{what}: {} ({})", why.sentence, why.code));
}

fn install(
    desk: &Desk,
    from: &mut BufReader<&UnixStream>,
    stream: &UnixStream,
    patience: Duration,
) -> Result<Answer, Reason> {
    let _alone = desk.alone()?;
    stream.set_read_timeout(Some(patience)).map_err(|e| because("truncated", e))?;
    let mut into = None;
    let about = desk.install_from(from, &mut |slot| {
        into = Some(slot);
        say(stream, Answer::Writing { slot });
    })?;
    tell(format_args!("{} {} is staged", about.product, about.version));
    let slot = into.ok_or_else(|| because("unexpected-error", "it was written to no slot"))?;
    Ok(Answer::Staged { slot, about })
}

fn try_it(desk: &Desk) -> Result<Answer, Reason> {
    let _alone = desk.alone()?;
    desk.try_it(&mut desk.open(desk.keeper()?.boot)?)?;
    Ok(Answer::Trying)
}

/// What is known. Opens nothing to write: it is asked every few seconds.
fn told(desk: &Desk, known: &Known) -> Told {
    let capacity = known.capacity(desk);
    let state = State::kept(&Folder(desk.cli.folder.clone()));
    let refused = possible(desk, known).err().or_else(|| state.as_ref().err().cloned());
    Told { board: View::of(&desk.places), state: state.ok(), refused, capacity }
}

/// Why this board takes no system, whichever.
fn possible(desk: &Desk, known: &Known) -> Result<(), Reason> {
    let unknown = |e| because("boot-backend", e);
    let board = desk.places.board().map_err(unknown)?;
    let backend = desk.places.backend(&board, false).map_err(unknown)?;
    backend.preflight().map_err(|refused| because(refused.code, &refused))?;
    known.can_try.get_or_init(|| desk.can_try(&*backend)).clone()?;
    match desk.cli.folder.is_dir() {
        true => Ok(()),
        false => Err(because("medium-failed", "there is no data partition: nothing outlives a restart here")),
    }
}

/// What stays as it is until the board restarts, and costs something to find out: a Pi's kernel has a hundred thousand names.
#[derive(Default)]
struct Known {
    can_try: OnceLock<Result<(), Reason>>,
    capacity: OnceLock<u64>,
}

impl Known {
    fn capacity(&self, desk: &Desk) -> u64 {
        let of = |parts: Parts<FileMedium>| {
            // A bundle may have what starts either slot.
            parts.rootfs.capacity() + 2 * parts.boot.map_or(0, |boot| boot.capacity())
        };
        if let Some(known) = self.capacity.get() {
            return *known;
        }
        // A second medium with partitions of the same names hides them for as long as it is there.
        let Ok(parts) = desk.places.parts() else { return 0 };
        let largest = parts.map(of).into_iter().max().unwrap_or(0);
        *self.capacity.get_or_init(|| largest + BESIDE)
    }
}
