//! The keeper: the small process that keeps the daemon running and the hardware watchdog fed, and lets the board be reset when
//! neither makes sense any more.
//!
//! One thread, one loop over `poll`; the decisions are [`judge::Judge`]'s, which has the table of states. A second thread writes evidence
//! ([`crate::store`]), a third reads it once at the start, and one at a time rebinds a device: the medium or a driver may
//! take long, and the loop feeds the hardware.
//!
//! What it does, in order: opens the watchdog ([`crate::watchdog`]), finds out why the board was started ([`crate::reason`]), ends
//! a daemon that a keeper before it left behind, starts the daemon as its own user in its control group without any capability
//! ([`child`]), and listens: to the daemon's notifications and to questions ([`sockets`]), to its log, which it passes on and of which
//! it keeps the end ([`words`]), to its end.
//!
//! The watchdog is fed by a keeper that turns, not by a thread of its own: one that hangs starves it, and so do keepers that end again and
//! again ([`starts`]). It is never disarmed.

pub mod board;
pub mod child;
mod feeder;
pub mod judge;
mod run;
pub mod sockets;
pub mod starts;
pub mod words;

pub use run::{KeeperError, run};

use judge::Limits;
use std::ffi::OsString;
use std::path::PathBuf;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The other groups it is in: who may open an accelerator is often said by one.
    pub groups: Vec<u32>,
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// The kernel's log: the console, `dmesg` and pstore have it then.
    Kernel,
    /// Standard error.
    StandardError,
}

/// What a keeper is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The watchdog; `None`: there is to be none.
    pub device: Option<PathBuf>,
    /// Seconds it is asked for.
    pub timeout_s: u32,
    /// How long each state may last.
    pub limits: Limits,
    /// Its directory that does not outlive a reset: sockets, state.
    pub run: PathBuf,
    /// Its directory that does, made by it; `None` where nothing lasts.
    pub data: Option<PathBuf>,
    /// The kernel's persistent store.
    pub pstore: PathBuf,
    /// The daemon's program.
    pub program: PathBuf,
    /// The daemon's arguments.
    pub arguments: Vec<OsString>,
    /// The daemon's user; `None`: the keeper's own.
    pub user: Option<Identity>,
    /// The daemon's control group, where there is one.
    pub group: Option<PathBuf>,
    /// Where its lines and the daemon's go.
    pub log: Log,
    /// Whether somebody may break things on purpose.
    pub tests_allowed: bool,
    /// How the board is restarted.
    pub restart: board::Restart,
    /// What is wrong with these settings, one sentence each.
    pub remarks: Vec<String>,
}
