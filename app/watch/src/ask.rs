//! What the daemon may ask the keeper for: the few things that only root may do.
//!
//! One JSON object per message on a `SOCK_SEQPACKET` socket ([`SOCKET`], or what `INFERD_KEEPER` says); the keeper answers each with
//! one [`Answer`]. It looks at the peer's user id: the daemon's own user and root are heard, nobody else.

use serde::{Deserialize, Serialize};
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
    },
    /// Break something on purpose, to see the watchdog work; images made with `--dev` only.
    WatchdogTest {
        /// What to break.
        what: WatchdogTest,
    },
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
