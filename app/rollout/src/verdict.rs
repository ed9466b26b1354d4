//! What a gate found.

use inferd_slots::{Entry, SlotId};
use serde::{Deserialize, Serialize};

/// The gates, in the order a bundle passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// The bundle's form, and signatures by keys of the root of trust.
    Keys,
    /// Enough keys of the role the bundle names, and that role is allowed here.
    Role,
    /// Neither the bundle nor its keys are revoked.
    Revocation,
    /// Not older than the newest version ever committed, or a permit for this device.
    Floor,
    /// Made for this board, by a daemon at least this new.
    Target,
    /// An engine every model can run on.
    Engine,
    /// The memory the models declare fits beside what runs.
    Memory,
    /// The slot is large enough.
    Disk,
    /// The payload: verified, written, read back.
    Install,
    /// Each model is read from the slot and its engine loads it.
    Load,
    /// Each model reproduces its golden vectors on this device.
    Golden,
    /// What the models really used, against what they declare.
    MemoryMeasured,
    /// Compared with the serving model on live requests.
    Shadow,
    /// The routes were flipped.
    Flip,
    /// Watched while it serves.
    Probation,
    /// It stays; the floor rises.
    Commit,
    /// Back to what served before.
    Return,
    /// What was found when the daemon started.
    Boot,
    /// The background re-verification of the active slot.
    Scrub,
    /// A trust document.
    Trust,
    /// A system: what root says of it.
    System,
}

impl Gate {
    /// Its name in answers and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Role => "role",
            Self::Revocation => "revocation",
            Self::Floor => "floor",
            Self::Target => "target",
            Self::Engine => "engine",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Install => "install",
            Self::Load => "load",
            Self::Golden => "golden",
            Self::MemoryMeasured => "memory-measured",
            Self::Shadow => "shadow",
            Self::Flip => "flip",
            Self::Probation => "probation",
            Self::Commit => "commit",
            Self::Return => "return",
            Self::Boot => "boot",
            Self::Scrub => "scrub",
            Self::Trust => "trust",
            Self::System => "system",
        }
    }
}

/// How a gate decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// On to the next gate.
    Pass,
    /// It never served.
    Refuse,
    /// It served, or was on trial, and was taken back.
    Reverse,
    /// Nothing was decided: the transfer or the trial was cut off and can go on.
    Interrupted,
}

impl Outcome {
    /// Its name in answers and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Refuse => "refuse",
            Self::Reverse => "reverse",
            Self::Interrupted => "interrupted",
        }
    }
}

/// One decision with its evidence. Kept in the journal across reboots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Counts up, across restarts, until the journal is lost; a watcher sees by it what is new.
    pub number: u64,
    /// The gate.
    pub gate: Gate,
    /// How it decided.
    pub outcome: Outcome,
    /// Why, for programs: kebab-case, stable (README.md lists them).
    pub code: String,
    /// Why, for people.
    pub sentence: String,
    /// The numbers: limits and what was measured.
    #[serde(default)]
    pub evidence: serde_json::Value,
    /// The bundle's id, 64 hex digits, when one is concerned.
    #[serde(default)]
    pub bundle: Option<String>,
    /// Its product.
    #[serde(default)]
    pub product: Option<String>,
    /// Its version (the anti-rollback number).
    #[serde(default)]
    pub version: Option<u64>,
    /// The slot it is in or meant for, `A` or `B`.
    #[serde(default)]
    pub slot: Option<char>,
    /// The boot in which it was given.
    #[serde(default)]
    pub boot_id: String,
    /// Milliseconds since that boot. There is no wall time here: the clock may be wrong.
    #[serde(default)]
    pub uptime_ms: u64,
}

impl Entry for Verdict {
    fn slot(&self) -> Option<SlotId> {
        SlotId::BOTH.into_iter().find(|id| Some(id.letter()) == self.slot)
    }

    fn shorten(&mut self) {
        self.evidence = serde_json::Value::Null;
        let end = self.sentence.floor_char_boundary(self.sentence.len().min(LONGEST_SENTENCE));
        self.sentence.truncate(end);
    }
}

/// Bytes of a sentence that is kept when the whole verdict is too long for the journal. Escapes make six bytes of one at most.
const LONGEST_SENTENCE: usize = 1024;
