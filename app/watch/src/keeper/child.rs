//! The daemon's process: started without privileges, in its control group, with its log in a pipe; and how it ended.

#![allow(unsafe_code)] // what happens between fork and exec

use super::Identity;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// What is started.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment beside what the keeper has.
    pub environment: Vec<(&'static str, OsString)>,
    /// Whom it runs as; `None`: as the keeper does.
    pub user: Option<Identity>,
    /// Its control group's directory, where there is one.
    pub group: Option<PathBuf>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Its standard output and error, until it closes them.
    pub log: Option<OwnedFd>,
    group: Option<PathBuf>,
    oom_kills: u64,
}

/// How a daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed something of its group for lack of memory.
    pub oom: bool,
}

impl End {
    /// In words that follow "the daemon".
    #[must_use]
    pub fn sentence(&self) -> String {
        match (self.code, self.signal) {
            (_, Some(signal)) => {
                let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
                let why = if self.oom { ": out of memory" } else { "" };
                format!("was ended by signal {signal} ({name}){why}")
            }
            (Some(code), None) => format!("ended with status {code}"),
            (None, None) => "ended".to_owned(),
        }
    }
}

/// Variables of the keeper that are not the daemon's.
const NOT_INHERITED: [&str; 5] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", crate::journal::VARIABLE];

impl Daemon {
    /// Starts one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(recipe: &Recipe) -> io::Result<Self> {
        let (log, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&log, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let group = recipe.group.as_ref().filter(|group| group.is_dir()).cloned();
        let procs =
            group.as_ref().map(|group| OpenOptions::new().write(true).open(group.join("cgroup.procs")));
        let procs = procs.transpose()?;
        let mut command = Command::new(&recipe.program);
        command.args(&recipe.arguments).stdin(Stdio::null());
        command.stdout(theirs.try_clone()?).stderr(theirs);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command.envs(recipe.environment.iter().map(|(name, value)| (name, value)));
        let (user, keeper) = (recipe.user.clone(), std::process::id());
        // SAFETY: `confine` only makes system calls on values that were made before the fork: no allocation, no lock.
        unsafe { command.pre_exec(move || confine(procs.as_ref(), user.as_ref(), keeper)) };
        let oom_kills = group.as_deref().map_or(0, oom_kills);
        Ok(Self { child: command.spawn()?, log: Some(log), group, oom_kills })
    }

    /// What it has said since, of its log; `None`: nothing now.
    pub fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let length = nix::unistd::read(self.log.as_ref()?, buffer).ok()?;
        if length == 0 {
            // Closed: asking again would be answered the same, at once.
            self.log = None;
            return None;
        }
        buffer.get(..length)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It cannot be another process: as long as it is not waited for, its id is not given to one.
        if let Err(errno) = kill(self.pid(), signal) {
            tracing::warn!(%signal, %errno, "the daemon could not be sent a signal");
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<End> {
        let status: ExitStatus = self.child.try_wait().ok().flatten()?;
        let oom = self.group.as_deref().is_some_and(|group| oom_kills(group) > self.oom_kills);
        Some(End { code: status.code(), signal: status.signal(), oom })
    }
}

/// Runs between fork and exec: only system calls.
fn confine(procs: Option<&File>, user: Option<&Identity>, keeper: u32) -> io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    if let Some(procs) = procs {
        let me = b"0";
        // SAFETY: one byte of a constant is written to a descriptor that is open.
        let written = unsafe { libc::write(procs.as_raw_fd(), me.as_ptr().cast(), me.len()) };
        check(if written < 0 { -1 } else { 0 })?;
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: plain system calls on numbers; a pointer is null where there are no elements, to a constant, or to a set that the call
    // before it has filled and that outlives the call.
    unsafe {
        // The keeper reads its signals from a descriptor and has them blocked; the daemon is to be told by them.
        check(libc::sigemptyset(none.as_mut_ptr()))?;
        check(libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()))?;
        if let Some(&Identity { uid, gid, ref groups }) = user {
            // The keeper is spared when memory is short; the daemon is not. Where that cannot be said it was not said to the keeper either.
            let spared = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(spared, c"0".as_ptr().cast(), 1);
            // What no process below this one may ever have again. The kernel refuses numbers that it does not know.
            for capability in 0..64 {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                    break;
                }
            }
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
            check(libc::setgid(gid))?;
            check(libc::setuid(uid))?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // After the change of user, which would forget it. A daemon whose keeper is gone ends in order.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM))?;
        if u32::try_from(libc::getppid()) != Ok(keeper) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

/// How many processes of a group the kernel has killed for lack of memory.
fn oom_kills(group: &Path) -> u64 {
    let events = fs::read_to_string(group.join("memory.events")).unwrap_or_default();
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The processes in a control group: a daemon that outlived its keeper.
#[must_use]
pub fn in_group(group: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| line.trim().parse().ok()).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::SigSet;

    fn shell(script: &str) -> Recipe {
        Recipe {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("INFERD_TEST", "yes".into())],
            user: None,
            group: None,
        }
    }

    fn run(recipe: &Recipe) -> (End, String) {
        let mut daemon = Daemon::start(recipe).unwrap();
        fcntl(daemon.log.as_ref().unwrap(), FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let mut said = String::new();
        let mut buffer = [0; 64];
        while let Some(part) = daemon.read(&mut buffer) {
            said.push_str(std::str::from_utf8(part).unwrap());
        }
        assert!(daemon.log.is_none(), "a closed log is listened to");
        let status = daemon.child.wait().unwrap();
        (End { code: status.code(), signal: status.signal(), oom: false }, said)
    }

    #[test]
    fn it_may_gain_no_privileges_and_no_signal_is_kept_from_it() {
        let script = "echo out; echo $INFERD_TEST >&2; grep -E 'NoNewPrivs|SigBlk' /proc/self/status; exit 3";
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        let (end, said) = run(&shell(script));
        assert_eq!(said, "out\nyes\nSigBlk:\t0000000000000000\nNoNewPrivs:\t1\n");
        assert_eq!(end.sentence(), "ended with status 3");
    }

    #[test]
    fn it_is_its_user_with_all_its_groups_and_no_privilege_can_come_back() {
        // Only root can start somebody else.
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let user = Some(Identity { uid: 65_534, gid: 65_533, groups: vec![44, 12_345] });
        let script = "grep -E '^(Uid|Gid|Groups|CapEff|CapBnd):' /proc/self/status";
        let (_, said) = run(&Recipe { user, ..shell(script) });
        let said: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
        let none = "0000000000000000";
        assert_eq!(
            said,
            [
                &["Uid:", "65534", "65534", "65534", "65534"][..],
                &["Gid:", "65533", "65533", "65533", "65533"],
                &["Groups:", "44", "12345"],
                &["CapEff:", none],
                &["CapBnd:", none],
            ]
        );
    }

    #[test]
    fn a_signal_and_lack_of_memory_are_named() {
        let (end, _) = run(&shell("kill -SEGV $$"));
        assert_eq!(end.sentence(), "was ended by signal 11 (SIGSEGV)");
        let oom = End { code: None, signal: Some(9), oom: true };
        assert_eq!(oom.sentence(), "was ended by signal 9 (SIGKILL): out of memory");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let recipe = Recipe { program: "/no/such/program".into(), ..shell("") };
        assert!(Daemon::start(&recipe).is_err());
    }

    #[test]
    fn kills_for_lack_of_memory_are_read_from_the_group() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(oom_kills(root.path()), 0);
        fs::write(root.path().join("memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(oom_kills(root.path()), 2);
        fs::write(root.path().join("cgroup.procs"), "12\n13\n").unwrap();
        assert_eq!(in_group(root.path()), [Pid::from_raw(12), Pid::from_raw(13)]);
    }
}
