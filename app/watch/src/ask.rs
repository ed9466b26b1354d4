//! What the daemon may ask the keeper for: the few things that only root may do.
//!
//! One JSON object per message on a `SOCK_SEQPACKET` socket ([`SOCKET`], or what `INFERD_KEEPER` says); the keeper answers each with
//! one [`Answer`]. It looks at who is on the other end: the daemon's process and root are heard, nobody else; engine hosts, which have
//! the daemon's user id, are not.

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the keeper listens.
pub const SOCKET: &str = "/run/inferd/keeper/ask";
/// The variable that says where it listens instead.
pub const SOCKET_VARIABLE: &str = "INFERD_KEEPER";
/// The longest message either way, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// Restart the board, guarded by the watchdog.
    Reboot {
        /// One sentence for the history.
        why: String,
        /// What the restart says to the board's firmware.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        argument: Option<Argument>,
    },
    /// Start the daemon anew, without safe mode.
    LeaveSafeMode {
        /// One sentence for the history.
        why: String,
    },
    /// Take a PCI device away from its driver and give it back.
    Rebind {
        /// `0001:01:00.0`.
        device: String,
        /// The driver's name in `/sys/bus/pci/drivers`.
        driver: String,
    },
    /// Remove a PCI device and look for it again.
    Rescan {
        /// `0001:01:00.0`.
        device: String,
    },
    /// Forget what was configured and installed, then restart.
    FactoryReset {
        /// One sentence for the history.
        why: String,
        /// Also the identity, the keys of bundles with floors and revocations, and the committed model.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        everything: bool,
    },
    /// Break something on purpose, to see the watchdog work; images made with `--dev` only.
    WatchdogTest {
        /// What to break.
        what: WatchdogTest,
    },
}

/// What a restart may say to a board's firmware: these words and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Argument {
    /// A Raspberry Pi starts the system once that it does not choose.
    #[serde(rename = "0 tryboot")]
    Tryboot,
}

impl Argument {
    /// The one of these words.
    #[must_use]
    pub fn of(words: &str) -> Option<Self> {
        (words == Self::Tryboot.words()).then_some(Self::Tryboot)
    }

    /// As `reboot(2)` takes it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Tryboot => "0 tryboot",
        }
    }
}

/// What a watchdog test breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchdogTest {
    /// The keeper stops feeding the hardware.
    Hardware,
    /// The daemon is stopped (SIGSTOP).
    Daemon,
    /// The kernel panics.
    Panic,
}

/// The keeper's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It was done, or has begun where it ends this process.
    Done,
    /// It was not done.
    Refused {
        /// One sentence for the operator.
        why: String,
    },
}

/// Why nothing was heard from the keeper.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no keeper here: plain Linux, or systemd without it.
    #[error("there is no keeper here: {0}")]
    Absent(std::io::Error),
    /// It did not answer in time, or not with an answer.
    #[error("the keeper gave no answer: {0}")]
    Silent(String),
}

/// How long an answer is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks the keeper of this board and waits for its answer, [`PATIENCE`] at most. Blocking.
///
/// # Errors
/// [`AskError`] when there is no keeper, or it says nothing.
pub fn ask(what: &Ask) -> Result<Answer, AskError> {
    let path = std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    ask_at(&path, what)
}

/// Asks the keeper that listens at `path`. Blocking.
///
/// # Errors
/// [`AskError`] when there is no keeper, or it says nothing.
pub fn ask_at(path: &Path, what: &Ask) -> Result<Answer, AskError> {
    let absent = |errno: nix::Error| AskError::Absent(io::Error::from(errno));
    let silent = |errno: nix::Error| AskError::Silent(errno.to_string());
    let message = serde_json::to_vec(what).map_err(|e| AskError::Silent(e.to_string()))?;
    if message.len() > MAX_MESSAGE {
        return Err(AskError::Silent(format!("what is asked has more than {MAX_MESSAGE} bytes")));
    }
    let address = UnixAddr::new(path).map_err(absent)?;
    let connection = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
    let connection = connection.map_err(absent)?;
    let patience = TimeVal::seconds(i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX));
    setsockopt(&connection, sockopt::ReceiveTimeout, &patience).map_err(silent)?;
    setsockopt(&connection, sockopt::SendTimeout, &patience).map_err(silent)?;
    socket::connect(connection.as_raw_fd(), &address).map_err(absent)?;
    socket::send(connection.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL).map_err(silent)?;
    let mut answer = [0; MAX_MESSAGE];
    match socket::recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(silent)? {
        0 => Err(AskError::Silent("it hung up".into())),
        length => serde_json::from_slice(answer.get(..length).unwrap_or_default())
            .map_err(|e| AskError::Silent(e.to_string())),
    }
}
