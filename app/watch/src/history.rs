//! What happened to this device, across resets: a bounded store of entries, each in one line.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why the board was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetReason {
    /// Power came back, or the reset button was pressed: nothing tells otherwise.
    Power,
    /// The hardware watchdog.
    Watchdog,
    /// The kernel panicked.
    Panic,
    /// Somebody asked for it.
    Request,
    /// The kernel panicked because it was out of memory.
    Oom,
    /// Nothing lasts here that could tell.
    Unknown,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted up; 1 is the first.
    pub number: u64,
    /// The boot it happened in.
    pub boot: u64,
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
    /// Unix time in milliseconds, as the clock had it: no decision depends on it.
    pub clock_ms: u64,
    /// What happened.
    pub kind: Kind,
    /// One sentence for the operator.
    pub sentence: String,
    /// Numbers and names.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
    /// The last lines of what died, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The board started; the sentence says why.
    Boot,
    /// The daemon ended and was not asked to.
    DaemonEnd,
    /// The daemon stopped proving progress; the watchdog is no longer fed.
    LetGo,
    /// Safe mode began or ended.
    SafeMode,
    /// An engine host ended and was not asked to.
    HostEnd,
    /// A circuit breaker opened or closed.
    Breaker,
    /// A step of a device's recovery.
    Recovery,
    /// An alert was raised or cleared.
    Alert,
    /// Somebody asked for something: reboot, factory reset, watchdog test.
    Request,
}
