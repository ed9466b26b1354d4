//! Settings of the updater.

use crate::boot::{BootEvidence, SystemEvidence};
use crate::clock::{Clock, SystemClock};
use inferd_system::door::Door;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// An engine this image has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Engine {
    /// As a model's manifest names it: `cpu`, `ort`, `hailo`, `tensorrt`.
    pub name: String,
    /// Library and version, for people.
    pub version: String,
}

/// When probation ends, whichever comes first. `None`: what the bundle's policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probation {
    /// After this long.
    pub seconds: Option<u32>,
    /// After this many requests; 0 is never by requests.
    pub requests: Option<u32>,
}

/// Settings of the updater.
#[derive(Clone)]
pub struct UpdaterConfig {
    /// The two model slots: raw partitions, or files (made when absent).
    pub slots: [PathBuf; 2],
    /// Length of a slot that is a file, in bytes. A partition has its own.
    pub slot_bytes: u64,
    /// Where state, trust documents and verdicts live.
    pub data: PathBuf,
    /// Root documents this device was made with, oldest first; the first is the anchor, the others rotate it.
    pub roots: Vec<PathBuf>,
    /// Whether bundles of the role `model-dev` are accepted: dev images only.
    pub allow_dev: bool,
    /// This board's name, as bundles target it.
    pub board: String,
    /// This device's name, as permits say it.
    pub device: String,
    /// The running daemon's version, for bundles that need a newer one.
    pub version: String,
    /// The engines of this image. Asked for when a bundle is judged, and only once those it names have answered
    /// ([`Hosts::all_answered`](inferd_hosts::Hosts::all_answered)).
    pub engines: Arc<dyn Fn() -> Vec<Engine> + Send + Sync>,
    /// Bytes all engine hosts together may use. `None`: what the kernel says is available now.
    pub memory_limit: Option<u64>,
    /// Model directories that serve when no slot does: each a directory with a manifest.
    pub factory: Vec<PathBuf>,
    /// Overrides every bundle's probation length.
    pub probation: Probation,
    /// How fast the active slot is verified again in the background, in bytes per second; 0 does not.
    pub scrub_bytes_per_s: u64,
    /// Who installs systems, where a bundle is one.
    pub systems: Door,
    /// Whether a system is tried as soon as it is staged; else somebody asks for it.
    pub try_systems: bool,
    /// What is known about how the last run ended.
    pub evidence: Arc<dyn BootEvidence>,
    /// Time since the boot.
    pub clock: Arc<dyn Clock>,
}

/// 64 GiB in about 18 hours; of a slow SD card about 5 % of its reading time.
const SCRUB_BYTES_PER_S: u64 = 1 << 20;

impl UpdaterConfig {
    /// Settings with the defaults for everything but the places.
    #[must_use]
    pub fn new(slots: [PathBuf; 2], data: PathBuf) -> Self {
        Self {
            slots,
            slot_bytes: 1 << 30,
            data,
            roots: Vec::new(),
            allow_dev: false,
            board: String::new(),
            device: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engines: Arc::new(Vec::new),
            memory_limit: None,
            factory: Vec::new(),
            probation: Probation::default(),
            scrub_bytes_per_s: SCRUB_BYTES_PER_S,
            systems: Door::of_this_device(),
            try_systems: true,
            evidence: Arc::new(SystemEvidence::new(None)),
            clock: Arc::new(SystemClock::default()),
        }
    }
}
