//! What the keeper knows of this boot, in one file that it replaces whole and the daemon reads.

use crate::history::ResetReason;
use serde::{Deserialize, Serialize};
use std::{fs::File, io::Read as _, path::Path};

/// Where the keeper leaves it.
pub const FILE: &str = "/run/inferd/keeper/state.json";
/// Beside it, the number of the daemon's process.
pub const DAEMON: &str = "daemon";

/// What the keeper knows of this boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeeperState {
    /// Counted up at every boot; 0 where nothing lasts.
    pub boot: u64,
    /// Why the board was started.
    pub reset: Reset,
    /// The hardware watchdog; `None` where there is none, or it is systemd's.
    pub watchdog: Option<WatchdogState>,
    /// What the hardware remembers of the last reset, also where it is systemd's (`WDIOC_GETBOOTSTATUS`).
    #[serde(default)]
    pub boot_status: Option<u32>,
    /// How often the daemon was started in this boot.
    pub starts: u64,
    /// Boots in a row, this one included, in which the daemon has not become healthy.
    pub unhealthy_boots: u32,
    /// Why the daemon runs in safe mode, when it does.
    pub safe_mode: Option<String>,
    /// Whether what the keeper writes outlives a reset.
    pub lasting: bool,
    /// What is wrong, one sentence each: no watchdog, a medium that takes nothing.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// The most of it that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

impl KeeperState {
    /// As it stands in the file; `None` where there is no keeper, or nothing that can be understood.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// Why the board was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// The reason.
    pub reason: ResetReason,
    /// One sentence for the operator.
    pub sentence: String,
}

/// What the hardware watchdog said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    /// `/dev/watchdog0`.
    pub device: String,
    /// What its driver calls itself.
    pub identity: String,
    /// Seconds that were asked for.
    pub asked_s: u32,
    /// Seconds that it accepted, read back.
    pub accepted_s: u32,
    /// Seconds that were left right after feeding, where the driver tells.
    pub left_s: Option<u32>,
    /// `WDIOC_GETBOOTSTATUS`: why the last reset happened, as the hardware remembers it.
    pub boot_status: u32,
    /// Whether it ran already when the keeper opened it: armed by the boot loader, the kernel or the initramfs.
    pub armed_before: bool,
    /// What is wrong with it, one sentence each: a timeout that was refused or rounded, a missing NOWAYOUT.
    pub remarks: Vec<String>,
}
