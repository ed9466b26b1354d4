//! What the keeper listens to: the daemon's notifications, and what somebody asks for.
//!
//! Both look at who is speaking, as the kernel says it. A notification counts only from the daemon's own process: its engine hosts have the
//! same user id, run foreign code, and must not be able to prove progress for a daemon that hangs.

use crate::ask::{Answer, Ask, MAX_MESSAGE};
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr,
    sockopt,
};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// The longest notification that is read, in bytes.
pub const MAX_NOTIFICATION: usize = 4096;
/// Notifications read in one turn.
const NOTIFICATIONS: usize = 64;
/// Connections that may wait for their question.
const CONNECTIONS: usize = 4;
/// How long one may.
pub const CONNECTION_PATIENCE: Duration = Duration::from_secs(5);

/// Something the daemon says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// `READY=1`.
    Ready,
    /// `WATCHDOG=1`.
    Progress,
    /// `STOPPING=1`.
    Stopping,
    /// `X_INFERD_HEALTHY=1`.
    Healthy,
    /// `STATUS=...`.
    Status(String),
}

/// What a notification says; lines that mean nothing here are skipped.
#[must_use]
pub fn parse(datagram: &[u8]) -> Vec<Said> {
    let text = String::from_utf8_lossy(datagram);
    let line = |line: &str| match line {
        "READY=1" => Some(Said::Ready),
        "WATCHDOG=1" => Some(Said::Progress),
        "STOPPING=1" => Some(Said::Stopping),
        "X_INFERD_HEALTHY=1" => Some(Said::Healthy),
        _ => line.strip_prefix("STATUS=").map(|status| Said::Status(status.chars().take(512).collect())),
    };
    text.lines().filter_map(line).collect()
}

/// A socket in the file system that this group may write to.
fn bind(path: &Path, kind: SockType, gid: Option<u32>) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, kind, flags, None)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    if let Some(gid) = gid {
        std::os::unix::fs::chown(path, None, Some(gid))?;
    }
    Ok(socket)
}

/// Where the daemon notifies.
#[derive(Debug)]
pub struct Notifications {
    socket: OwnedFd,
}

impl Notifications {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(path: &Path, gid: Option<u32>) -> io::Result<Self> {
        let socket = bind(path, SockType::Datagram, gid)?;
        socket::setsockopt(&socket, sockopt::PassCred, &true)?;
        Ok(Self { socket })
    }

    /// What the process `daemon` has said since; what others said is thrown away.
    pub fn read(&self, daemon: Option<Pid>) -> Vec<Said> {
        let mut said = Vec::new();
        for _ in 0..NOTIFICATIONS {
            let mut buffer = [0; MAX_NOTIFICATION];
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
            let message = socket::recvmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_DONTWAIT,
            );
            let Ok(message) = message else { break };
            let sender = message.cmsgs().ok().and_then(|mut all| {
                all.find_map(|one| match one {
                    ControlMessageOwned::ScmCredentials(who) => Some(Pid::from_raw(who.pid())),
                    _ => None,
                })
            });
            let length = message.bytes;
            if daemon.is_some() && sender == daemon {
                said.extend(parse(buffer.get(..length).unwrap_or_default()));
            }
        }
        said
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Somebody who asks.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    since: Duration,
}

impl Connection {
    /// Answers; whoever asked may be gone.
    pub fn answer(self, answer: &Answer) {
        let bytes = serde_json::to_vec(answer).unwrap_or_default();
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if let Err(errno) = socket::send(self.socket.as_raw_fd(), &bytes, flags) {
            tracing::debug!(%errno, "nobody waits for the answer");
        }
    }
}

/// Where somebody asks.
#[derive(Debug)]
pub struct Asks {
    socket: OwnedFd,
    waiting: VecDeque<Connection>,
}

impl Asks {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(path: &Path, gid: Option<u32>) -> io::Result<Self> {
        let socket = bind(path, SockType::SeqPacket, gid)?;
        socket::listen(&socket, Backlog::new(8)?)?;
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    /// The connections that wait for their question.
    pub fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waiting.iter().map(|connection| connection.socket.as_fd())
    }

    /// What has been asked by `daemon` or root since, each with the connection to answer on. Others are refused here.
    pub fn read(&mut self, now: Duration, daemon: Option<Pid>) -> Vec<(Ask, Connection)> {
        for _ in 0..CONNECTIONS {
            let Ok(fd) =
                socket::accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
            else {
                break;
            };
            let connection = Connection { socket: owned(fd), since: now };
            let heard = socket::getsockopt(&connection.socket, sockopt::PeerCredentials)
                .is_ok_and(|who| who.uid() == 0 || Some(Pid::from_raw(who.pid())) == daemon);
            if heard {
                self.waiting.push_back(connection);
            } else {
                // A question that nobody reads would end the connection before it has the answer.
                let fd = connection.socket.as_raw_fd();
                let _ = socket::shutdown(fd, Shutdown::Read);
                let _ = socket::recv(fd, &mut [0; MAX_MESSAGE], MsgFlags::MSG_DONTWAIT);
                connection.answer(&refuse("only the daemon and root are heard"));
            }
        }
        while self.waiting.len() > CONNECTIONS
            || self.waiting.front().is_some_and(|c| now.saturating_sub(c.since) > CONNECTION_PATIENCE)
        {
            self.waiting.pop_front();
        }
        let mut asked = Vec::new();
        for connection in std::mem::take(&mut self.waiting) {
            let mut buffer = [0; MAX_MESSAGE];
            match socket::recv(connection.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(nix::Error::EAGAIN) => self.waiting.push_back(connection),
                Err(_) | Ok(0) => {}
                Ok(length) => match serde_json::from_slice(buffer.get(..length).unwrap_or_default()) {
                    Ok(ask) => asked.push((ask, connection)),
                    Err(error) => {
                        connection
                            .answer(&refuse(&format!("this keeper does not know what that asks: {error}")));
                    }
                },
            }
        }
        asked
    }
}

impl AsFd for Asks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An answer that refuses.
#[must_use]
pub fn refuse(why: &str) -> Answer {
    Answer::Refused { why: why.to_owned() }
}

#[allow(unsafe_code)]
fn owned(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the caller has it from accept4 just now, and gives it to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::{self, AskError};
    use std::os::unix::net::UnixDatagram;

    fn me() -> Option<Pid> {
        Some(nix::unistd::getpid())
    }

    #[test]
    fn a_notification_is_read_line_by_line_and_what_is_unknown_is_skipped() {
        assert_eq!(
            parse(b"READY=1\nSTATUS=up\nMAINPID=7\nWATCHDOG=1\nX_INFERD_HEALTHY=1\nSTOPPING=1\nWATCHDOG=trigger\n\xff"),
            [Said::Ready, Said::Status("up".into()), Said::Progress, Said::Healthy, Said::Stopping]
        );
    }

    #[test]
    fn only_the_daemons_own_process_proves_anything() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("notify");
        let listener = Notifications::bind(&path, None).unwrap();
        let send = || UnixDatagram::unbound().unwrap().send_to(b"WATCHDOG=1", &path).unwrap();
        send();
        assert_eq!(listener.read(me()), [Said::Progress]);
        assert!(listener.read(me()).is_empty(), "it was read");
        send();
        assert!(listener.read(Some(Pid::from_raw(1))).is_empty(), "another process was believed");
        send();
        assert!(listener.read(None).is_empty(), "there is no daemon");
        // A second keeper takes the place of the first.
        Notifications::bind(&path, None).unwrap();
    }

    #[test]
    fn asked_and_answered_over_the_socket() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ask");
        let mut asks = Asks::bind(&path, None).unwrap();
        let question = Ask::Reboot { why: "a test".into(), argument: None };
        let asker = {
            let (path, question) = (path.clone(), question.clone());
            std::thread::spawn(move || ask::ask_at(&path, &question))
        };
        let (asked, connection) = loop {
            if let Some(one) = asks.read(Duration::ZERO, me()).pop() {
                break one;
            }
            std::thread::yield_now();
        };
        assert_eq!(asked, question);
        connection.answer(&Answer::Done);
        assert_eq!(asker.join().unwrap().unwrap(), Answer::Done);
        assert!(matches!(ask::ask_at(&root.path().join("nobody"), &question), Err(AskError::Absent(_))));
    }

    fn client(path: &Path) -> OwnedFd {
        let socket =
            socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        socket
    }

    #[test]
    fn rubbish_is_refused_and_silence_is_hung_up_on() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ask");
        let mut asks = Asks::bind(&path, None).unwrap();
        let silent: Vec<_> = (0..3).map(|_| client(&path)).collect();
        let rubbish = client(&path);
        socket::send(rubbish.as_raw_fd(), b"{\"ask\":\"sing\"}", MsgFlags::empty()).unwrap();
        assert!(asks.read(Duration::ZERO, me()).is_empty());
        let mut buffer = [0; 512];
        let length = socket::recv(rubbish.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        assert!(matches!(serde_json::from_slice(&buffer[..length]), Ok(Answer::Refused { .. })));
        assert_eq!(asks.waiting().count(), 3);
        asks.read(CONNECTION_PATIENCE + Duration::from_millis(1), me());
        assert_eq!(asks.waiting().count(), 0);
        for socket in silent {
            assert_eq!(socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()), Ok(0));
        }
    }
}
