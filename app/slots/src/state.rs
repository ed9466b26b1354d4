//! What is in the slots and what is being done with it: the state, its steps, and their rules.
//!
//! [`State::step`] is the only place where a state becomes another one. README.md has the table.

use inferd_bundle::Digest;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Products whose floor is kept.
pub const MAX_PRODUCTS: usize = 16;

/// Bytes of a product's name or a boot id.
pub const MAX_TEXT: usize = 64;

/// One of the two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize)]
pub enum SlotId {
    /// The first.
    A,
    /// The second.
    B,
}

impl SlotId {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The one that this is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its place in an array of both.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    /// `A` or `B`.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::A => 'A',
            Self::B => 'B',
        }
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// What is known about a slot's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotStatus {
    /// Nothing of use.
    Empty,
    /// A bundle is being written, or was when the power went.
    Writing,
    /// A complete bundle, read back from the medium, that no gate has judged.
    Staged,
    /// The gates are judging it.
    Trial,
    /// It passed all gates once.
    Committed,
    /// A gate refused or reversed it, or it has rotted.
    Bad,
}

impl fmt::Display for SlotStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Writing => "being written",
            Self::Staged => "staged",
            Self::Trial => "on trial",
            Self::Committed => "committed",
            Self::Bad => "bad",
        })
    }
}

/// One slot in the state record. An empty one names no bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotState {
    /// What is known about it.
    pub status: SlotStatus,
    /// The bundle in it, or on its way into it.
    pub bundle: Option<Digest>,
    /// That bundle's product.
    pub product: String,
    /// That bundle's version.
    pub version: u64,
    /// That bundle's length in bytes.
    pub len: u64,
}

impl SlotState {
    /// Nothing there.
    pub const EMPTY: Self =
        Self { status: SlotStatus::Empty, bundle: None, product: String::new(), version: 0, len: 0 };

    /// Whether the slot holds a complete bundle that may be opened.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.status, SlotStatus::Staged | SlotStatus::Trial | SlotStatus::Committed)
    }
}

/// How far a trial has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Load, golden vectors, measured memory.
    Gates,
    /// Live requests are mirrored to it.
    Shadow,
    /// It serves, and is watched.
    Probation,
}

/// A trial that is running, or was when the power went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// The slot on trial.
    pub slot: SlotId,
    /// How far it has come.
    pub phase: Phase,
    /// The boot in which it was last taken up: the kernel's `boot_id`.
    pub boot_id: String,
    /// How often it was interrupted.
    pub interruptions: u8,
    /// The sequence of the record with which it began.
    pub began_sequence: u64,
}

/// What the state record holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// Of the record: it rises with each step, by two or more.
    pub sequence: u64,
    /// The slot whose bundle serves.
    pub active: Option<SlotId>,
    /// Both slots, A first.
    pub slots: [SlotState; 2],
    /// The trial, if one runs.
    pub trial: Option<Trial>,
    /// Per product the lowest version that may be installed: the highest that was ever committed.
    pub floors: BTreeMap<String, u64>,
    /// The newest root that was used.
    pub root_version: u64,
    /// The newest revocation list that was used.
    pub revocation_version: u64,
    /// The last permit that was used.
    pub last_permit_nonce: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            sequence: 0,
            active: None,
            slots: [SlotState::EMPTY, SlotState::EMPTY],
            trial: None,
            floors: BTreeMap::new(),
            root_version: 0,
            revocation_version: 0,
            last_permit_nonce: 0,
        }
    }
}

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A slot is about to be written. Only an install does this.
    Write {
        /// Where to.
        slot: SlotId,
        /// Which bundle.
        bundle: Digest,
        /// Its product.
        product: String,
        /// Its version.
        version: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// All of it was written and read back. Only an install does this.
    Stage {
        /// Where.
        slot: SlotId,
    },
    /// The gates begin.
    Try {
        /// The slot on trial.
        slot: SlotId,
        /// The kernel's `boot_id`.
        boot_id: String,
    },
    /// The trial reached its next phase.
    Advance {
        /// Which.
        phase: Phase,
    },
    /// The trial is taken up again after it was cut.
    Resume {
        /// The kernel's `boot_id`.
        boot_id: String,
    },
    /// Probation is over: the slot on trial becomes the active one, the floor rises, and the permit it needed is used up.
    Commit {
        /// The permit's nonce, where one was needed.
        permit: Option<u64>,
    },
    /// The trial is over and the active slot stays what it was.
    Return {
        /// Whether the bundle is to blame; otherwise it stays staged.
        bad: bool,
    },
    /// The other committed slot becomes the active one.
    Rollback,
    /// The content of a slot cannot be used any more: it has rotted or was revoked. The other slot takes over when this was the active one and the
    /// other is committed.
    Condemn {
        /// Which slot.
        slot: SlotId,
    },
    /// A slot that is not in use is forgotten.
    Erase {
        /// Which slot.
        slot: SlotId,
    },
    /// Newer trust documents are in use.
    Trust {
        /// The root's version.
        root: u64,
        /// The revocation list's version.
        revocations: u64,
    },
    /// A permit is used up.
    Permit {
        /// Its nonce.
        nonce: u64,
    },
}

/// Why a step is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// The active slot is never written.
    #[error("slot {0} is the active one and is never written or erased")]
    Active(SlotId),
    /// One trial at a time, and nothing is written during one.
    #[error("a trial of slot {0} is running: wait for its end or roll it back")]
    TrialRuns(SlotId),
    /// There is none.
    #[error("no trial is running")]
    NoTrial,
    /// The slot is in another state than this step begins from.
    #[error("slot {slot} is {status}: this step cannot begin there")]
    Status {
        /// The slot.
        slot: SlotId,
        /// What it is.
        status: SlotStatus,
    },
    /// There is no active slot to roll back from.
    #[error("no slot is active: there is nothing to roll back")]
    NothingActive,
    /// A trial only goes forward, and is committed from probation only.
    #[error("a trial in phase {from:?} cannot do this")]
    Phase {
        /// Where it is.
        from: Phase,
    },
    /// A number that only rises would not.
    #[error("the {what} is {kept} and cannot become {asked}: it only rises")]
    GoesBack {
        /// Which number.
        what: &'static str,
        /// What is kept.
        kept: u64,
        /// What was asked for.
        asked: u64,
    },
    /// The record has room for so many.
    #[error("floors of {MAX_PRODUCTS} products are kept already: this device cannot take another product")]
    TooManyProducts,
    /// The record has room for so much.
    #[error("a name has {0} bytes, more than {MAX_TEXT}")]
    TooLong(usize),
}

impl Illegal {
    /// A stable name of the reason, in kebab case.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Active(_) => "slot-active",
            Self::TrialRuns(_) => "trial-running",
            Self::NoTrial => "no-trial",
            Self::Status { .. } => "slot-status",
            Self::NothingActive => "nothing-active",
            Self::Phase { .. } => "trial-phase",
            Self::GoesBack { .. } => "goes-back",
            Self::TooManyProducts => "too-many-products",
            Self::TooLong(_) => "name-too-long",
        }
    }
}

impl State {
    /// A slot of it.
    #[must_use]
    pub fn slot(&self, slot: SlotId) -> &SlotState {
        &self.slots[slot.index()]
    }

    fn slot_mut(&mut self, slot: SlotId) -> &mut SlotState {
        &mut self.slots[slot.index()]
    }

    /// The lowest version of a product that may be installed; 0 when none was ever committed.
    #[must_use]
    pub fn floor(&self, product: &str) -> u64 {
        self.floors.get(product).copied().unwrap_or(0)
    }

    /// The slot the next bundle goes to: never the active one. Without an active one it is the one with less to lose; one that was being written with
    /// the same bundle goes first.
    ///
    /// # Errors
    /// While a trial runs.
    pub fn target(&self, bundle: &Digest) -> Result<SlotId, Illegal> {
        if let Some(trial) = &self.trial {
            return Err(Illegal::TrialRuns(trial.slot));
        }
        if let Some(active) = self.active {
            return Ok(active.other());
        }
        let loss = |slot: SlotId| {
            let slot = self.slot(slot);
            match slot.status {
                SlotStatus::Writing if slot.bundle.as_ref() == Some(bundle) => 0,
                SlotStatus::Empty => 1,
                SlotStatus::Bad => 2,
                SlotStatus::Writing => 3,
                SlotStatus::Staged => 4,
                SlotStatus::Trial | SlotStatus::Committed => 5,
            }
        };
        Ok(if loss(SlotId::B) < loss(SlotId::A) { SlotId::B } else { SlotId::A })
    }

    /// The state after a step, one sequence later.
    ///
    /// # Errors
    /// When the step is not possible from here; then nothing has changed.
    pub fn step(&self, step: &Step) -> Result<Self, Illegal> {
        let mut next = self.clone();
        next.sequence += 1;
        match step {
            Step::Write { slot, bundle, product, version, len } => {
                self.unused(*slot)?;
                text(product)?;
                if self.floors.len() >= MAX_PRODUCTS && !self.floors.contains_key(product) {
                    return Err(Illegal::TooManyProducts);
                }
                *next.slot_mut(*slot) = SlotState {
                    status: SlotStatus::Writing,
                    bundle: Some(*bundle),
                    product: product.clone(),
                    version: *version,
                    len: *len,
                };
            }
            Step::Stage { slot } => {
                self.is(*slot, SlotStatus::Writing)?;
                next.slot_mut(*slot).status = SlotStatus::Staged;
            }
            Step::Try { slot, boot_id } => {
                text(boot_id)?;
                if let Some(trial) = &self.trial {
                    return Err(Illegal::TrialRuns(trial.slot));
                }
                self.is(*slot, SlotStatus::Staged)?;
                next.slot_mut(*slot).status = SlotStatus::Trial;
                next.trial = Some(Trial {
                    slot: *slot,
                    phase: Phase::Gates,
                    boot_id: boot_id.clone(),
                    interruptions: 0,
                    began_sequence: next.sequence,
                });
            }
            Step::Advance { phase } => {
                let trial = next.trial.as_mut().ok_or(Illegal::NoTrial)?;
                if *phase <= trial.phase {
                    return Err(Illegal::Phase { from: trial.phase });
                }
                trial.phase = *phase;
            }
            Step::Resume { boot_id } => {
                text(boot_id)?;
                let trial = next.trial.as_mut().ok_or(Illegal::NoTrial)?;
                trial.boot_id = boot_id.clone();
                trial.interruptions = trial.interruptions.saturating_add(1);
                // Its host is gone: every gate begins anew.
                trial.phase = Phase::Gates;
            }
            Step::Commit { permit } => {
                let trial = next.trial.take().ok_or(Illegal::NoTrial)?;
                if trial.phase != Phase::Probation {
                    return Err(Illegal::Phase { from: trial.phase });
                }
                let slot = next.slot_mut(trial.slot);
                slot.status = SlotStatus::Committed;
                let (product, version) = (slot.product.clone(), slot.version);
                let floor = next.floors.entry(product).or_insert(0);
                *floor = version.max(*floor);
                next.active = Some(trial.slot);
                next.last_permit_nonce = permit.unwrap_or(0).max(self.last_permit_nonce);
            }
            Step::Return { bad } => {
                let trial = next.trial.take().ok_or(Illegal::NoTrial)?;
                next.slot_mut(trial.slot).status = if *bad { SlotStatus::Bad } else { SlotStatus::Staged };
            }
            Step::Rollback => {
                if let Some(trial) = &self.trial {
                    return Err(Illegal::TrialRuns(trial.slot));
                }
                let other = self.active.ok_or(Illegal::NothingActive)?.other();
                self.is(other, SlotStatus::Committed)?;
                next.active = Some(other);
            }
            Step::Condemn { slot } => {
                if !self.slot(*slot).is_complete() {
                    return Err(Illegal::Status { slot: *slot, status: self.slot(*slot).status });
                }
                next.slot_mut(*slot).status = SlotStatus::Bad;
                if next.trial.as_ref().is_some_and(|trial| trial.slot == *slot) {
                    next.trial = None;
                }
                if self.active == Some(*slot) {
                    let other = slot.other();
                    next.active = (self.slot(other).status == SlotStatus::Committed).then_some(other);
                }
            }
            Step::Erase { slot } => {
                self.unused(*slot)?;
                *next.slot_mut(*slot) = SlotState::EMPTY;
            }
            Step::Trust { root, revocations } => {
                for (what, kept, asked) in [
                    ("root's version", self.root_version, *root),
                    ("revocation list's version", self.revocation_version, *revocations),
                ] {
                    if asked < kept {
                        return Err(Illegal::GoesBack { what, kept, asked });
                    }
                }
                next.root_version = *root;
                next.revocation_version = *revocations;
            }
            Step::Permit { nonce } => {
                if *nonce <= self.last_permit_nonce {
                    let (kept, asked) = (self.last_permit_nonce, *nonce);
                    return Err(Illegal::GoesBack { what: "permit's nonce", kept, asked });
                }
                next.last_permit_nonce = *nonce;
            }
        }
        Ok(next)
    }

    /// A slot that may be written: neither active nor on trial.
    fn unused(&self, slot: SlotId) -> Result<(), Illegal> {
        if self.active == Some(slot) {
            return Err(Illegal::Active(slot));
        }
        match &self.trial {
            Some(trial) => Err(Illegal::TrialRuns(trial.slot)),
            None => Ok(()),
        }
    }

    fn is(&self, slot: SlotId, status: SlotStatus) -> Result<(), Illegal> {
        let found = self.slot(slot).status;
        if found == status { Ok(()) } else { Err(Illegal::Status { slot, status: found }) }
    }

    /// What holds for every state that steps lead to. A record that breaks it is damaged, whatever its checksum says.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let on_trial = |slot: SlotId| self.trial.as_ref().is_some_and(|trial| trial.slot == slot);
        let slots = SlotId::BOTH.into_iter().all(|id| {
            let slot = self.slot(id);
            let empty = *slot == SlotState::EMPTY;
            (slot.status == SlotStatus::Empty) == empty
                && slot.bundle.is_some() != empty
                && (slot.status == SlotStatus::Trial) == on_trial(id)
                && slot.product.len() <= MAX_TEXT
        });
        let active = self.active.is_none_or(|slot| self.slot(slot).status == SlotStatus::Committed);
        let texts = self.floors.keys().all(|product| product.len() <= MAX_TEXT)
            && self.trial.as_ref().is_none_or(|trial| trial.boot_id.len() <= MAX_TEXT);
        slots && active && texts && self.floors.len() <= MAX_PRODUCTS
    }
}

fn text(text: &str) -> Result<(), Illegal> {
    if text.len() <= MAX_TEXT { Ok(()) } else { Err(Illegal::TooLong(text.len())) }
}
