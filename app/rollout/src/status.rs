//! What the updater is doing, for `/status`, `/metrics`, events and `inferctl`.

use crate::verdict::Verdict;
use inferd_system::door::Told;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything an operator can ask. A new one is published whenever something changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// What serves.
    pub serving: Serving,
    /// Both slots, `A` and `B`.
    pub slots: Vec<SlotView>,
    /// The transfer in progress.
    pub install: Option<Progress>,
    /// The trial in progress.
    pub trial: Option<TrialView>,
    /// Keys and roles.
    pub trust: TrustView,
    /// The lowest version each product may have.
    pub floors: BTreeMap<String, u64>,
    /// Whether a permit to go back waits for its bundle: (product, version).
    pub permit: Option<(String, u64)>,
    /// The background re-verification.
    pub scrub: Scrub,
    /// Since this start.
    pub counters: Counters,
    /// The board's own systems, as root tells of them; `None` where nobody does.
    pub system: Option<Told>,
    /// The last verdicts, oldest first.
    pub verdicts: Vec<Verdict>,
    /// What the operator should know: one sentence each.
    pub warnings: Vec<String>,
}

/// What serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Serving {
    /// Where it comes from.
    pub from: ServingFrom,
    /// The slot, `A` or `B`.
    pub slot: Option<char>,
    /// The bundle's id.
    pub bundle: Option<String>,
    /// Its product.
    pub product: Option<String>,
    /// Its version.
    pub version: Option<u64>,
    /// Its version for people.
    pub label: Option<String>,
    /// Its models, and factory models beside them.
    pub models: Vec<ModelView>,
}

/// Where what serves comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServingFrom {
    /// Nothing was decided yet.
    #[default]
    Starting,
    /// A committed bundle, or the one on probation.
    Slot,
    /// Directories of the image.
    Factory,
    /// Nothing.
    Nothing,
}

/// A model that serves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Whether it is the image's own.
    pub factory: bool,
}

/// A slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotView {
    /// `A` or `B`.
    pub slot: char,
    /// `empty`, `writing`, `staged`, `trial`, `committed` or `bad`.
    pub status: &'static str,
    /// Whether it is the one that is served after a start.
    pub active: bool,
    /// The bundle's id.
    pub bundle: Option<String>,
    /// Its product.
    pub product: Option<String>,
    /// Its version.
    pub version: Option<u64>,
    /// The bundle's length in bytes.
    pub len: u64,
    /// The slot's length in bytes.
    pub capacity: u64,
}

/// What a transfer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The prefix is not complete: nothing is known yet.
    Prefix,
    /// The gates before the payload are passed; chunks are verified, written and read back.
    Payload,
    /// Everything is there; the slot is being closed.
    Closing,
}

/// How far a transfer is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// The way it comes: `push`, `pull`, `usb`, `hawkbit`.
    pub way: &'static str,
    /// What it is doing.
    pub stage: Stage,
    /// The bundle's id, once known.
    pub bundle: Option<String>,
    /// Its product.
    pub product: Option<String>,
    /// Its version.
    pub version: Option<u64>,
    /// Bytes of the bundle, once known.
    pub total: Option<u64>,
    /// Bytes that are on the medium and right.
    pub done: u64,
    /// Of these: were there already from an interrupted transfer.
    pub resumed: u64,
    /// Of these: taken from a slot of this device.
    pub local: u64,
    /// Since its begin.
    pub elapsed_ms: u64,
}

/// The phases of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialPhase {
    /// Loading, golden vectors, measured memory.
    Gates,
    /// Beside the old model, on copies of live requests.
    Shadow,
    /// It serves and is watched.
    Probation,
    /// What served before comes back.
    Returning,
}

/// A trial.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrialView {
    /// `A` or `B`.
    pub slot: char,
    /// The bundle's id.
    pub bundle: String,
    /// Its product.
    pub product: String,
    /// Its version.
    pub version: u64,
    /// What it is doing.
    pub phase: TrialPhase,
    /// Since this phase began.
    pub elapsed_ms: u64,
    /// Requests seen in this phase: mirrored, or served.
    pub requests: u64,
    /// Requests that end the phase.
    pub of_requests: u64,
    /// Time that ends the phase, in milliseconds; 0: none.
    pub of_ms: u64,
    /// Power cuts it has lived through.
    pub interruptions: u8,
}

/// Keys and roles.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TrustView {
    /// Version of the root document; 0: there is none, so no bundle is accepted.
    pub root_version: u64,
    /// Version of the revocation list; 0: none yet.
    pub revocation_version: u64,
    /// Bundles signed with a development key are accepted: never so outside a workshop.
    pub dev: bool,
    /// The bundle that serves was signed by the development role.
    pub dev_serving: bool,
}

/// The background re-verification of the active slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scrub {
    /// Bytes of this round so far.
    pub done: u64,
    /// Bytes of a round.
    pub total: u64,
    /// Complete rounds since this start.
    pub rounds: u64,
    /// Damage found since this start.
    pub damages: u64,
    /// Steps that were put off because optional work was shed.
    pub rested: u64,
}

/// Counted since this start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Verdicts by (gate, outcome, code).
    pub verdicts: BTreeMap<String, u64>,
    /// Transfers begun.
    pub installs: u64,
    /// Bytes that came from outside.
    pub received: u64,
    /// Bytes taken from local slots instead.
    pub local: u64,
    /// Bytes found on the medium from an interrupted transfer.
    pub resumed: u64,
    /// How long the last return to the old models took.
    pub last_return_ms: Option<u64>,
}

/// Whether another updater may confirm this boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommitReady {
    /// It may.
    pub ready: bool,
    /// Why not; one sentence each, empty when ready.
    pub reasons: Vec<String>,
}
