//! What the daemon says of itself to whoever started it: systemd's `sd_notify`.
//!
//! One datagram per message to the socket that `NOTIFY_SOCKET` names (a path, or `@` and an abstract name); the keeper and systemd
//! understand the same. Without the variable nobody listens and nothing is sent. Nothing here waits: a listener that does not read
//! loses messages, which is what its watchdog is about.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// Names the socket.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// Microseconds after which the listener takes a silent daemon for a hung one.
pub const TIMEOUT_VARIABLE: &str = "WATCHDOG_USEC";
/// The process that the timeout is about; absent: whoever reads it.
pub const PID_VARIABLE: &str = "WATCHDOG_PID";
/// Sent once by a daemon that has been healthy for a while; systemd skips names that it does not know.
pub const HEALTHY: &str = "X_INFERD_HEALTHY=1";
/// The longest status that is sent, in bytes.
pub const MAX_STATUS: usize = 512;

/// Speaks to whoever started this process.
#[derive(Debug, Default)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    timeout: Option<Duration>,
}

/// Why there is nobody to speak to although there should be.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The variable names nothing that could be a socket.
    #[error(
        "{SOCKET_VARIABLE} is {0:?}: an absolute path, or @ and a name is needed; nobody is told how this daemon is"
    )]
    Name(OsString),
    /// No socket can be had.
    #[error("nobody is told how this daemon is: {0}")]
    Socket(#[from] io::Error),
}

impl Notifier {
    /// Speaks to nobody.
    #[must_use]
    pub fn nobody() -> Self {
        Self::default()
    }

    /// As the environment of this process says.
    ///
    /// # Errors
    /// [`NotifyError`] when somebody is named who cannot be spoken to.
    pub fn of_process() -> Result<Self, NotifyError> {
        Self::new(
            std::env::var_os(SOCKET_VARIABLE),
            timeout(|name| std::env::var(name).ok(), std::process::id()),
        )
    }

    /// Speaks to this socket, which wants to hear within this time.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn new(socket: Option<OsString>, timeout: Option<Duration>) -> Result<Self, NotifyError> {
        let Some(name) = socket.filter(|name| !name.is_empty()) else { return Ok(Self::nobody()) };
        let address = address(&name).ok_or(NotifyError::Name(name))?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { to: Some((socket, address)), timeout })
    }

    /// Whether somebody listens.
    #[must_use]
    pub fn heard(&self) -> bool {
        self.to.is_some()
    }

    /// How long the listener waits for [`Notifier::watchdog`]; `None`: it does not.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The listeners of the endpoint answer.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// How it is, in one line.
    pub fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", one_line(line)));
    }

    /// Progress was proved just now.
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// It has been healthy for a while.
    pub fn healthy(&self) {
        self.send(HEALTHY);
    }

    /// It ends as it was asked to.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        let Some((socket, to)) = &self.to else { return };
        if let Err(e) = socket.send_to_addr(message.as_bytes(), to) {
            // The listener may be restarting, or be the one that hangs; the next message is sent all the same.
            tracing::debug!(error = %e, message, "not told to who started this daemon");
        }
    }
}

/// The address that a value of [`SOCKET_VARIABLE`] stands for.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

/// The timeout that is meant for the process `pid`; a number that cannot be read counts as none.
fn timeout(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
    let number = |name| variable(name).and_then(|text| text.trim().parse::<u64>().ok());
    if variable(PID_VARIABLE).is_some() && number(PID_VARIABLE) != Some(u64::from(pid)) {
        return None;
    }
    number(TIMEOUT_VARIABLE).filter(|micros| *micros > 0).map(Duration::from_micros)
}

/// Without line ends, which would begin another variable, and not longer than is sent.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = line.len().min(MAX_STATUS);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 2048];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn every_message_is_one_datagram_as_systemd_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let told = Notifier::new(Some(path.into()), None).unwrap();
        told.ready();
        told.status("loading\nWATCHDOG=1");
        told.watchdog();
        told.healthy();
        told.stopping();
        let all: Vec<String> = (0..5).map(|_| heard(&listener)).collect();
        assert_eq!(
            all,
            ["READY=1", "STATUS=loading WATCHDOG=1", "WATCHDOG=1", "X_INFERD_HEALTHY=1", "STOPPING=1"]
        );
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let name = format!("inferd-notify-{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::new(Some(format!("@{name}").into()), None).unwrap().ready();
        assert_eq!(heard(&listener), "READY=1");
    }

    #[test]
    fn without_a_listener_nothing_is_said_and_nothing_waits() {
        for silent in [None, Some(OsString::new())] {
            let nobody = Notifier::new(silent, None).unwrap();
            nobody.ready();
            assert!(!nobody.heard());
        }
        let dir = tempfile::tempdir().unwrap();
        let gone = Notifier::new(Some(dir.path().join("nobody").into()), None).unwrap();
        gone.watchdog();
        let path = dir.path().join("deaf");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let full = Notifier::new(Some(path.into()), None).unwrap();
        // Far more than a socket holds.
        (0..10_000).for_each(|_| full.watchdog());
    }

    #[test]
    fn a_name_that_is_no_socket_is_said() {
        for bad in ["relative/path", "@", "/nul\0in/it"] {
            assert!(matches!(Notifier::new(Some(bad.into()), None), Err(NotifyError::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn the_timeout_is_that_of_this_process() {
        let of = |usec: &str, pid: Option<&str>| {
            let value = |name: &str| match name {
                TIMEOUT_VARIABLE => Some(usec.to_owned()),
                PID_VARIABLE => pid.map(str::to_owned),
                _ => None,
            };
            timeout(value, 7)
        };
        let quarter = Some(Duration::from_millis(250));
        assert_eq!(of("250000", None), quarter);
        assert_eq!(of("250000", Some("7")), quarter);
        assert_eq!(of("250000", Some("8")), None, "another process's");
        assert_eq!(of("0", None), None);
        assert_eq!(of("soon", None), None);
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        let line = one_line(&"é".repeat(MAX_STATUS));
        assert_eq!(line.len(), MAX_STATUS);
        assert!(line.chars().all(|c| c == 'é'));
    }
}
