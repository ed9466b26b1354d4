//! A bundle on its way into the inactive slot.

use crate::core::{About, Core, Occupied, blocking, lock, millis};
use crate::finding::Finding;
use crate::gates;
use crate::status::{Progress, Stage};
use crate::systems;
use crate::trial::Event;
use crate::updater::Command;
use crate::verdict::{Gate, Outcome, Verdict};
use inferd_bundle::limits::HEADER_BYTES;
use inferd_bundle::{Bundle, Chunk, IndexPage, Refusal, Sink, Stream};
use inferd_slots::{FileMedium, Install, LocalChunks, SlotError, SlotId, SlotStatus};
use inferd_system::door::Delivery;
use inferd_system::state::Reason;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The way a bundle comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Sent to this device.
    Push,
    /// Fetched by this device.
    Pull,
    /// From a stick.
    Usb,
    /// On behalf of a fleet server.
    Hawkbit,
}

impl Way {
    /// Its name in answers and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
            Self::Usb => "usb",
            Self::Hawkbit => "hawkbit",
        }
    }
}

/// Why no transfer can begin now. Nothing is wrong with the bundle; try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The daemon still decides what to serve.
    #[error("the device is starting; try again when /readyz says so")]
    Starting,
    /// One at a time.
    #[error("another bundle is being transferred ({})", .0.name())]
    Transfer(Way),
    /// The free slot holds the bundle on trial.
    #[error("a bundle is on trial; wait until it is committed or returned")]
    Trial,
    /// The daemon ends.
    #[error("the device is stopping")]
    Stopping,
}

impl Busy {
    /// Why, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Starting => "busy-starting",
            Self::Transfer(_) => "busy-transfer",
            Self::Trial => "busy-trial",
            Self::Stopping => "busy-stopping",
        }
    }
}

/// Why a transfer ended.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InstallError {
    /// A gate refused it; sending it again changes nothing.
    #[error("{}", .0.sentence)]
    Refused(Box<Verdict>),
    /// The transfer ended before the bundle did, or bytes arrived damaged; what is right stays and is not asked for again.
    #[error("{}", .0.sentence)]
    Interrupted(Box<Verdict>),
    /// The medium failed.
    #[error("{}", .0.sentence)]
    Storage(Box<Verdict>),
    /// The caller did not keep to the order.
    #[error("{0}")]
    Misused(&'static str),
}

impl InstallError {
    /// Why, for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(v) | Self::Interrupted(v) | Self::Storage(v) => &v.code,
            Self::Misused(_) => "misused",
        }
    }

    /// The verdict it left.
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Refused(v) | Self::Interrupted(v) | Self::Storage(v) => Some(v),
            Self::Misused(_) => None,
        }
    }

    /// Whether the same bytes can succeed later.
    #[must_use]
    pub fn retry(&self) -> bool {
        !matches!(self, Self::Refused(v) if v.outcome == Outcome::Refuse)
    }
}

/// A bundle that is staged; its trial begins now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accepted {
    /// The bundle's id.
    pub bundle: String,
    /// Its product.
    pub product: String,
    /// Its version.
    pub version: u64,
    /// `A` or `B`.
    pub slot: char,
    /// The number of the verdict that says so: everything later about this bundle has a higher one.
    pub verdict: u64,
    /// Where the bytes came from.
    pub saved: Saved,
    /// Nothing was done: these very bytes are committed and serve.
    pub already: bool,
    /// It is a system: the slot is one of the board's own, and a try comes next.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub system: bool,
}

/// Where the bytes of a bundle came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// Bytes of the bundle.
    pub total: u64,
    /// Came from outside.
    pub received: u64,
    /// Taken from a slot of this device.
    pub local: u64,
    /// Were there from an interrupted transfer.
    pub resumed: u64,
}

/// An interrupted transfer that can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resumable {
    /// The bundle's id.
    pub bundle: String,
    /// Its product.
    pub product: String,
    /// Its version.
    pub version: u64,
    /// Bytes of the bundle.
    pub total: u64,
    /// A sender may go on from here (or from any byte before it).
    pub offset: u64,
}

/// A piece of the bundle that only the source has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// The chunk's number.
    pub chunk: u64,
    /// Where it begins in the bundle, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
}

// ------------------------------------------------------------------------------------------------ the transfer

/// How often progress is published.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// Small pushes are gathered to this many bytes, so that a slow sender costs no thread switch a packet.
const GATHER: usize = 256 << 10;

/// What both kinds of transfer are made of. Its methods block; it travels to the blocking threads and back.
pub(crate) struct Transfer {
    core: Arc<Core>,
    tell: mpsc::UnboundedSender<Command>,
    way: Way,
    began: Instant,
    published: Option<Instant>,
    bundle: Option<Arc<Bundle>>,
    /// The same bundle is committed and serves: nothing is written.
    already: bool,
    install: Option<Install<FileMedium>>,
    /// Of a system, in place of an install.
    delivery: Option<Delivery>,
    local: Option<LocalChunks<FileMedium>>,
    /// Bytes of chunks and pages that came from outside, were found, were taken from slots.
    saved: Saved,
    /// It ended, well or not; nothing is left to be said when it is dropped.
    over: bool,
}

/// Why a piece was not taken.
enum Fault {
    Refusal(Refusal),
    Slot(SlotError),
    /// A verdict was left already.
    Said(InstallError),
}

impl From<Refusal> for Fault {
    fn from(e: Refusal) -> Self {
        Self::Refusal(e)
    }
}

impl From<SlotError> for Fault {
    fn from(e: SlotError) -> Self {
        match e {
            SlotError::Refused(refusal) => Self::Refusal(refusal),
            other => Self::Slot(other),
        }
    }
}

impl Transfer {
    pub(crate) fn begin(
        core: &Arc<Core>,
        tell: mpsc::UnboundedSender<Command>,
        way: Way,
    ) -> Result<Self, Busy> {
        let mut busy = lock(&core.busy);
        match *busy {
            Occupied::Free => *busy = Occupied::Transfer(way),
            Occupied::Starting => return Err(Busy::Starting),
            Occupied::Transfer(other) => return Err(Busy::Transfer(other)),
            Occupied::Trial => return Err(Busy::Trial),
            Occupied::Stopping => return Err(Busy::Stopping),
        }
        drop(busy);
        let transfer = Self {
            core: core.clone(),
            tell,
            way,
            began: Instant::now(),
            published: None,
            bundle: None,
            already: false,
            install: None,
            delivery: None,
            local: None,
            saved: Saved::default(),
            over: false,
        };
        core.publish(|s| s.counters.installs += 1);
        transfer.publish(Stage::Prefix);
        Ok(transfer)
    }

    fn about(&self) -> About {
        let slot = self.install.as_ref().map(Install::slot);
        self.bundle.as_ref().map_or_else(About::default, |b| About::bundle(b, slot))
    }

    fn publish(&self, stage: Stage) {
        let b = self.bundle.as_deref();
        let done = self.saved.received + self.saved.local + self.saved.resumed;
        let progress = Progress {
            way: self.way.name(),
            stage,
            bundle: b.map(|b| b.id().to_string()),
            product: b.map(|b| b.manifest().product.to_string()),
            version: b.map(|b| b.manifest().version),
            total: b.map(Bundle::total_len),
            done: b.map_or(0, |b| (b.prefix_bytes() + done).min(b.total_len())),
            resumed: self.saved.resumed,
            local: self.saved.local,
            elapsed_ms: millis(self.began.elapsed()),
        };
        self.core.publish(|s| s.install = Some(progress));
    }

    fn progress(&mut self) {
        if self.published.is_none_or(|at| at.elapsed() >= PUBLISH_EVERY) {
            self.published = Some(Instant::now());
            self.publish(Stage::Payload);
        }
    }

    /// Leaves a verdict and makes the error of it.
    fn ended(&mut self, gate: Gate, outcome: Outcome, finding: Finding) -> InstallError {
        self.over = true;
        let storage = outcome == Outcome::Interrupted && gate != Gate::Install;
        let about = self.about();
        let verdict = self.core.note(&about, vec![(gate, outcome, finding)]).pop();
        let Some(verdict) = verdict.map(Box::new) else {
            return InstallError::Misused("no verdict was left");
        };
        match outcome {
            Outcome::Refuse => InstallError::Refused(verdict),
            _ if storage => InstallError::Storage(verdict),
            _ => InstallError::Interrupted(verdict),
        }
    }

    fn place(&self) -> serde_json::Value {
        json!({ "received_bytes": self.saved.received, "bundle_bytes": self.bundle.as_ref().map(|b| b.total_len()) })
    }

    /// The verdict of a fault that ends the transfer.
    fn fail(&mut self, fault: Fault) -> InstallError {
        let place = self.place();
        match fault {
            Fault::Said(e) => e,
            Fault::Refusal(Refusal::Truncated { .. }) => self.interrupted(),
            Fault::Refusal(refusal) => {
                // Before the prefix is whole there is no bundle to have a payload.
                let gate = if self.bundle.is_some() { Gate::Install } else { Gate::Keys };
                self.ended(gate, Outcome::Refuse, gates::refused(&refusal, place))
            }
            Fault::Slot(e) => self.storage(&e),
        }
    }

    fn storage(&mut self, e: &SlotError) -> InstallError {
        let mut evidence = json!({});
        let (gate, outcome) = match e {
            SlotError::TooSmall { needed, capacity, .. } => {
                evidence = json!({ "needed_bytes": needed, "capacity_bytes": capacity });
                (Gate::Disk, Outcome::Refuse)
            }
            SlotError::Illegal(inferd_slots::Illegal::TooManyProducts) => (Gate::Floor, Outcome::Refuse),
            SlotError::Incomplete { pages, chunks } => {
                evidence = json!({ "missing_pages": pages, "missing_chunks": chunks });
                (Gate::Install, Outcome::Interrupted)
            }
            // The medium's fault, not the bundle's: the same bytes may succeed.
            _ => (Gate::Disk, Outcome::Interrupted),
        };
        self.ended(gate, outcome, Finding::new(e.code(), e.to_string(), evidence))
    }

    fn interrupted(&mut self) -> InstallError {
        if self.delivery.take().is_some() {
            let sentence = "the transfer of a system was interrupted; its slot does not start: send it again from its beginning";
            let finding = Finding::new("transfer-interrupted", sentence, self.place());
            return self.ended(Gate::Install, Outcome::Interrupted, finding);
        }
        if let (Some(bundle), Some(mut install)) = (self.bundle.clone(), self.install.take()) {
            let offset = offset(&bundle, &mut install);
            let about = About::bundle(&bundle, Some(install.slot()));
            drop(install);
            *lock(&self.core.resumable) = offset.map(|offset| resumable(&bundle, offset));
            self.over = true;
            let done = self.saved.received + self.saved.local + self.saved.resumed;
            let total = bundle.total_len();
            let sentence = format!(
                "the transfer was interrupted after {} of {} KiB; what is there is kept: send it again to go on",
                (done + bundle.prefix_bytes()).min(total) >> 10,
                total >> 10
            );
            let evidence =
                json!({ "done_bytes": done + bundle.prefix_bytes(), "total_bytes": total, "offset": offset });
            let finding = Finding::new("transfer-interrupted", sentence, evidence);
            let verdict = self.core.note(&about, vec![(Gate::Install, Outcome::Interrupted, finding)]).pop();
            return verdict.map_or(InstallError::Misused("no verdict was left"), |v| {
                InstallError::Interrupted(Box::new(v))
            });
        }
        let sentence = "the transfer ended before it was known which bundle it is; send it again";
        self.ended(Gate::Install, Outcome::Interrupted, Finding::new("truncated", sentence, json!({})))
    }

    /// The gates before the payload. `bytes`: the prefix.
    fn prefix(&mut self, bundle: &Bundle, bytes: &[u8]) -> Result<(), Fault> {
        let state = self.core.store.state();
        let bundle = Arc::new(bundle.clone());
        self.bundle = Some(bundle.clone());
        // The other ways fetch pieces in any order; root reads a bundle from its beginning to its end.
        let systems = self.way == Way::Push && self.core.config.systems.is_there();
        let admission = self.core.admit(&bundle, systems);
        if let Some(stale) = admission.stale {
            self.core.warn(stale);
        }
        let passed =
            |v: Vec<(Gate, Finding)>| v.into_iter().map(|(g, f)| (g, Outcome::Pass, f)).collect::<Vec<_>>();
        let mut verdicts = passed(admission.passed);
        if let Some((gate, finding)) = admission.refused {
            self.core.note(&self.about(), verdicts);
            return Err(Fault::Said(self.ended(gate, Outcome::Refuse, finding)));
        }
        if bundle.manifest().system().is_some() {
            self.core.note(&self.about(), verdicts);
            let delivery = self.core.config.systems.install(bytes).map_err(|why| self.by_root(why))?;
            let sentence = format!("root takes it, into system slot {}", delivery.slot);
            let evidence = json!({ "needed_bytes": bundle.total_len(), "system_slot": delivery.slot });
            self.core.note(
                &self.about(),
                vec![(Gate::Target, Outcome::Pass, Finding::new("ok", sentence, evidence))],
            );
            self.delivery = Some(delivery);
            self.saved.total = bundle.total_len();
            self.core.systems_changed.notify_one();
            self.publish(Stage::Payload);
            return Ok(());
        }
        // One that is committed and could not be loaded is installed again, into the other slot.
        let serves = self.core.status.borrow().serving.bundle.as_deref() == Some(&bundle.id().to_string());
        if serves && state.active.is_some_and(|a| state.slot(a).bundle == Some(bundle.id())) {
            self.already = true;
            self.core.note(&self.about(), verdicts);
            self.publish(Stage::Payload);
            return Ok(());
        }
        // Both slots' indices, before one of them is given to this bundle.
        self.local = Some(self.core.store.local_chunks());
        let install = match self.core.store.begin_install(bytes) {
            Ok(install) => install,
            Err(e) => {
                self.core.note(&self.about(), verdicts);
                return Err(e.into());
            }
        };
        self.saved.total = bundle.total_len();
        self.saved.resumed = install.found().bytes;
        let (slot, capacity) = (install.slot(), self.core.capacity(install.slot()));
        let evidence = json!({
            "needed_bytes": bundle.total_len(), "capacity_bytes": capacity, "slot": slot.letter(),
            "resumed_bytes": self.saved.resumed,
        });
        let sentence = format!(
            "it fits into slot {slot}: {} of {} MiB",
            gates::mib(bundle.total_len()),
            gates::mib(capacity)
        );
        self.install = Some(install);
        verdicts.push((Gate::Disk, Outcome::Pass, Finding::new("ok", sentence, evidence)));
        self.core.note(&self.about(), verdicts);
        *lock(&self.core.resumable) = None;
        self.core.publish_slots();
        self.publish(Stage::Payload);
        Ok(())
    }

    /// What root says against a system, as a verdict.
    fn by_root(&mut self, why: Reason) -> Fault {
        self.delivery = None;
        let (gate, outcome) = systems::judged_by(&why.code);
        let finding = Finding::new(why.code, why.sentence, self.place());
        Fault::Said(self.ended(gate, outcome, finding))
    }

    /// A piece of a system. Whether this is one.
    fn deliver(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        let Some(delivery) = &mut self.delivery else { return Ok(false) };
        delivery.push(bytes).map_err(|why| self.by_root(why))?;
        self.saved.received += bytes.len() as u64;
        self.progress();
        Ok(true)
    }

    /// All of a system was brought: root closes its slot.
    fn finish_system(&mut self, bundle: &Bundle, mut delivery: Delivery) -> Result<Accepted, InstallError> {
        self.publish(Stage::Closing);
        let slot = delivery.slot;
        let rest = usize::try_from(bundle.total_len() - bundle.payload_range().end).unwrap_or(0);
        let staged = delivery.push(&vec![0; rest]).and_then(|()| delivery.finish());
        self.core.systems_changed.notify_one();
        if let Err(why) = staged {
            let fault = self.by_root(why);
            return Err(self.fail(fault));
        }
        self.over = true;
        let evidence = json!({
            "system_slot": slot, "total_bytes": self.saved.total, "received_bytes": self.saved.received,
            "elapsed_ms": millis(self.began.elapsed()), "way": self.way.name(),
        });
        let sentence = format!("system slot {slot} holds all of it, hashed from the medium");
        let finding = Finding::new("ok", sentence, evidence);
        let noted =
            self.core.note(&About::bundle(bundle, None), vec![(Gate::Install, Outcome::Pass, finding)]);
        Ok(Accepted {
            bundle: bundle.id().to_string(),
            product: bundle.manifest().product.to_string(),
            version: bundle.manifest().version,
            slot: if slot == inferd_system::Slot::A { 'A' } else { 'B' },
            verdict: noted.last().map_or(0, |v| v.number),
            saved: self.saved,
            already: false,
            system: true,
        })
    }

    /// Everything is there: closes the slot and hands it to the trial.
    fn finish(mut self) -> Result<Accepted, InstallError> {
        let Some(bundle) = self.bundle.clone() else { return Err(self.interrupted()) };
        self.saved.total = bundle.total_len();
        if let Some(delivery) = self.delivery.take() {
            return self.finish_system(&bundle, delivery);
        }
        let accepted = |slot: SlotId, verdict, already, saved| Accepted {
            bundle: bundle.id().to_string(),
            product: bundle.manifest().product.to_string(),
            version: bundle.manifest().version,
            slot: slot.letter(),
            verdict,
            saved,
            already,
            system: false,
        };
        if self.already {
            self.over = true;
            let state = self.core.store.state();
            let slot = state.active.unwrap_or(SlotId::A);
            let sentence = "these very bytes are committed and serve already: nothing was written";
            let about = About::bundle(&bundle, Some(slot));
            let finding = Finding::new("already-serving", sentence, json!({}));
            let v = self.core.note(&about, vec![(Gate::Install, Outcome::Pass, finding)]);
            return Ok(accepted(slot, v.last().map_or(0, |v| v.number), true, self.saved));
        }
        self.publish(Stage::Closing);
        let Some(install) = self.install.take() else {
            return Err(InstallError::Misused("the prefix comes first"));
        };
        let slot = install.slot();
        if install.missing().chunks > 0 || install.missing().pages > 0 {
            self.install = Some(install);
            return Err(self.interrupted());
        }
        if let Err(e) = install.finish() {
            return Err(self.fail(e.into()));
        }
        self.over = true;
        let elapsed = millis(self.began.elapsed());
        let evidence = json!({
            "slot": slot.letter(), "total_bytes": self.saved.total, "received_bytes": self.saved.received,
            "local_bytes": self.saved.local, "resumed_bytes": self.saved.resumed, "elapsed_ms": elapsed,
            "way": self.way.name(),
        });
        let sentence = format!(
            "all {} KiB are in slot {slot}, verified and read back from the medium",
            self.saved.total >> 10
        );
        let about = About::bundle(&bundle, Some(slot));
        let finding = Finding::new("ok", sentence, evidence);
        let noted = self.core.note(&about, vec![(Gate::Install, Outcome::Pass, finding)]);
        let number = noted.last().map_or(0, |v| v.number);
        // No other transfer may slip in between this one and its trial.
        *lock(&self.core.busy) = Occupied::Trial;
        self.core.publish_slots();
        let _ = self.tell.send(Command::Event { event: Event::Staged, slot });
        Ok(accepted(slot, number, false, self.saved))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.over && (self.install.is_some() || self.delivery.is_some()) {
            let _ = self.interrupted();
        }
        self.install = None;
        let saved = self.saved;
        self.core.publish(|s| {
            s.install = None;
            s.counters.received += saved.received;
            s.counters.local += saved.local;
            s.counters.resumed += saved.resumed;
        });
        {
            let mut busy = lock(&self.core.busy);
            if matches!(*busy, Occupied::Transfer(_)) {
                *busy = Occupied::Free;
            }
        }
        self.core.publish_slots();
    }
}

/// Hands a transfer that nobody wants any more to a thread that may block.
fn let_go(transfer: Option<Box<Transfer>>) {
    if let (Some(transfer), Ok(runtime)) = (transfer, tokio::runtime::Handle::try_current()) {
        runtime.spawn_blocking(move || drop(transfer));
    }
}

/// Where a sender may go on.
fn offset(bundle: &Bundle, install: &mut Install<FileMedium>) -> Option<u64> {
    let place = install.place();
    Stream::resume(bundle.clone(), place, install).ok().map(|s| s.position())
}

fn resumable(bundle: &Bundle, offset: u64) -> Resumable {
    Resumable {
        bundle: bundle.id().to_string(),
        product: bundle.manifest().product.to_string(),
        version: bundle.manifest().version,
        total: bundle.total_len(),
        offset,
    }
}

/// The prefix of the bundle that was being written when the transfer was interrupted. Blocking.
fn begun(core: &Core) -> Option<(Bundle, Vec<u8>)> {
    use std::io::Read as _;
    let state = core.store.state();
    let slot = SlotId::BOTH.into_iter().find(|&s| state.slot(s).status == SlotStatus::Writing)?;
    let mut file = std::fs::File::open(&core.config.slots[slot.index()]).ok()?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).ok()?;
    let need = usize::try_from(Bundle::prefix_len(&header).ok()?).ok()?;
    let mut prefix = vec![0; need];
    prefix[..HEADER_BYTES].copy_from_slice(&header);
    file.read_exact(&mut prefix[HEADER_BYTES..]).ok()?;
    let bundle = Bundle::parse(&prefix).ok()?;
    (state.slot(slot).bundle == Some(bundle.id())).then_some((bundle, prefix))
}

/// The interrupted transfer, as far as it can be gone on with. Blocking: after a restart it reads what is on the medium, once,
/// and nothing else may write there meanwhile.
pub(crate) fn look_for_resumable(core: &Core) -> Option<Resumable> {
    if let Some(known) = lock(&core.resumable).clone() {
        return Some(known);
    }
    {
        let mut busy = lock(&core.busy);
        if *busy != Occupied::Free {
            return None;
        }
        *busy = Occupied::Starting;
    }
    let found = on_medium(core);
    lock(&core.resumable).clone_from(&found);
    let mut busy = lock(&core.busy);
    if *busy == Occupied::Starting {
        *busy = Occupied::Free;
    }
    found
}

fn on_medium(core: &Core) -> Option<Resumable> {
    let (bundle, prefix) = begun(core)?;
    let mut install = core.store.begin_install(&prefix).ok()?;
    let offset = offset(&bundle, &mut install)?;
    Some(resumable(&bundle, offset))
}

/// A stream's pieces on their way into the slot.
struct Pipe<'a>(&'a mut Transfer);

impl Sink for Pipe<'_> {
    type Error = Fault;

    fn prefix(&mut self, bundle: &Bundle, bytes: &[u8]) -> Result<(), Fault> {
        self.0.prefix(bundle, bytes)
    }

    fn page(&mut self, bundle: &Bundle, page: &IndexPage, bytes: &[u8]) -> Result<(), Fault> {
        if self.0.deliver(bytes)? {
            return Ok(());
        }
        let Some(install) = &mut self.0.install else { return Ok(()) };
        Sink::page(install, bundle, page, bytes)?;
        self.0.saved.received += bytes.len() as u64;
        self.0.progress();
        Ok(())
    }

    fn chunk(&mut self, bundle: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), Fault> {
        if self.0.deliver(stored)? {
            return Ok(());
        }
        let Some(install) = &mut self.0.install else { return Ok(()) };
        let known = install.have(chunk);
        Sink::chunk(install, bundle, chunk, stored)?;
        if !known {
            self.0.saved.received += stored.len() as u64;
        }
        self.0.progress();
        Ok(())
    }

    fn recall(&mut self, bundle: &Bundle, page: u32, into: &mut Vec<u8>) -> Result<bool, Fault> {
        match &mut self.0.install {
            Some(install) => Ok(install.recall(bundle, page, into)?),
            None => Ok(false),
        }
    }
}

/// A transfer in order. Dropping it interrupts: what is on the medium stays.
pub struct Upload {
    /// `None` while it is with a blocking thread, and after its end.
    at_hand: Option<Box<Ordered>>,
    gathered: Vec<u8>,
    /// Whether bytes may be gathered: the gates before the payload have passed.
    gather: bool,
}

struct Ordered {
    transfer: Box<Transfer>,
    stream: Stream,
    /// Goes on at this byte of the interrupted bundle; looked up with the first bytes.
    resume: Option<u64>,
    /// Bytes before the stream's position that a sender repeats.
    skip: u64,
}

impl Upload {
    pub(crate) fn new(transfer: Transfer, resume: Option<u64>) -> Self {
        let ordered = Ordered { transfer: Box::new(transfer), stream: Stream::new(), resume, skip: 0 };
        Self { at_hand: Some(Box::new(ordered)), gathered: Vec::new(), gather: false }
    }

    /// The next bytes, of any length. Returns when they are verified, on the medium and read back, as far as complete
    /// chunks go (small ones are gathered first); that is the flow control.
    ///
    /// # Errors
    /// [`InstallError`]; the transfer is over then. The gates before the payload refuse as soon as the prefix is complete.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), InstallError> {
        self.gathered.extend_from_slice(bytes);
        if self.gather && self.gathered.len() < GATHER {
            return Ok(());
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), InstallError> {
        let bytes = std::mem::take(&mut self.gathered);
        let mut ordered = self.at_hand.take().ok_or(InstallError::Misused("the transfer is over"))?;
        let (ordered, done) = blocking(move || {
            let done = ordered.push(&bytes);
            (ordered, done)
        })
        .await;
        self.gather = ordered.transfer.bundle.is_some();
        match done {
            Ok(()) => {
                self.at_hand = Some(ordered);
                Ok(())
            }
            Err(e) => {
                blocking(move || drop(ordered)).await;
                Err(e)
            }
        }
    }

    /// The sender says that was all.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] when something is missing; [`InstallError::Refused`] when not even a bundle's beginning came.
    pub async fn finish(mut self) -> Result<Accepted, InstallError> {
        self.flush().await?;
        let ordered = self.at_hand.take().ok_or(InstallError::Misused("the transfer is over"))?;
        blocking(move || ordered.finish()).await
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let_go(self.at_hand.take().map(|ordered| ordered.transfer));
    }
}

impl Ordered {
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), InstallError> {
        if let Some(offset) = self.resume.take() {
            self.go_on(offset)?;
        }
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        bytes = &bytes[skipped..];
        self.skip -= skipped as u64;
        if self.transfer.already {
            return Ok(());
        }
        self.stream.push(bytes, &mut Pipe(&mut self.transfer)).map_err(|fault| {
            if matches!(fault, Fault::Refusal(Refusal::TrailingBytes { .. })) && self.transfer.already {
                return InstallError::Misused("the transfer is over");
            }
            self.transfer.fail(fault)
        })
    }

    /// Takes up the interrupted bundle: its prefix is in the slot, and is judged again.
    fn go_on(&mut self, offset: u64) -> Result<(), InstallError> {
        let Some((bundle, prefix)) = begun(&self.transfer.core) else {
            let sentence =
                "there is no interrupted transfer to go on with; send the bundle from its beginning";
            return Err(self.transfer.ended(
                Gate::Install,
                Outcome::Interrupted,
                Finding::new("nothing-to-resume", sentence, json!({ "offset": offset })),
            ));
        };
        if let Err(fault) = self.transfer.prefix(&bundle, &prefix) {
            return Err(self.transfer.fail(fault));
        }
        if self.transfer.already {
            return Ok(());
        }
        let Some(place) = self.transfer.install.as_ref().map(Install::place) else { return Ok(()) };
        let stream = Stream::resume(bundle, place, &mut Pipe(&mut self.transfer));
        self.stream = stream.map_err(|fault| self.transfer.fail(fault))?;
        let position = self.stream.position();
        if offset > position {
            let sentence = format!("bytes {position} to {offset} are missing; go on from byte {position}");
            let evidence = json!({ "offset": offset, "position": position });
            return Err(self.transfer.ended(
                Gate::Install,
                Outcome::Interrupted,
                Finding::new("gap", sentence, evidence),
            ));
        }
        self.skip = position - offset;
        Ok(())
    }

    fn finish(mut self) -> Result<Accepted, InstallError> {
        if self.transfer.already || self.stream.is_complete() {
            return self.transfer.finish();
        }
        let refusal = self.stream.finish().err().unwrap_or(Refusal::Spent);
        if let (None, Refusal::Truncated { have, .. }) = (&self.transfer.bundle, &refusal) {
            // The sender says that was all, and it is not even a bundle's beginning: the same bytes never are.
            let sentence =
                format!("this is not a bundle: there are {have} bytes, and its beginning is not complete");
            let finding = Finding::new(refusal.code(), sentence, json!({ "received_bytes": have }));
            return Err(self.transfer.ended(Gate::Keys, Outcome::Refuse, finding));
        }
        Err(self.transfer.fail(refusal.into()))
    }
}

/// A transfer by pieces in any order. Dropping it interrupts: what is on the medium stays.
///
/// Read 4096 bytes, ask [`Fetch::prefix_len`], read that many from the bundle's begin and give them to [`Fetch::prefix`]; then
/// for each page read [`Fetch::page_range`], give it to [`Fetch::page`], and fetch and give what it asks for to
/// [`Fetch::chunk`].
pub struct Fetch {
    at_hand: Option<Box<Transfer>>,
    bundle: Option<Arc<Bundle>>,
    wanted: BTreeMap<u64, Chunk>,
    saved: Saved,
}

const OVER: InstallError = InstallError::Misused("the transfer is over");

impl Fetch {
    pub(crate) fn new(transfer: Transfer) -> Self {
        Self {
            at_hand: Some(Box::new(transfer)),
            bundle: None,
            wanted: BTreeMap::new(),
            saved: Saved::default(),
        }
    }

    /// Does something blocking with the transfer; a `fatal` error ends it.
    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Transfer) -> Result<T, InstallError> + Send + 'static,
    ) -> Result<T, InstallError> {
        let mut transfer = self.at_hand.take().ok_or(OVER)?;
        let (transfer, done) = blocking(move || {
            let done = work(&mut transfer);
            (transfer, done)
        })
        .await;
        self.saved = transfer.saved;
        self.bundle.clone_from(&transfer.bundle);
        if transfer.over {
            blocking(move || drop(transfer)).await;
        } else {
            self.at_hand = Some(transfer);
        }
        done
    }

    /// How many bytes [`Fetch::prefix`] needs, from the bundle's first 4096. Bounded by the format (at most 836 KiB).
    ///
    /// # Errors
    /// [`InstallError::Refused`] when that is no bundle.
    pub async fn prefix_len(&mut self, header: &[u8]) -> Result<u64, InstallError> {
        let header = header.to_vec();
        self.with(move |t| {
            let (have, need) = (header.len() as u64, HEADER_BYTES as u64);
            let first = header.first_chunk().ok_or(Refusal::Truncated { have, need });
            first.and_then(Bundle::prefix_len).map_err(|e| t.fail(e.into()))
        })
        .await
    }

    /// The prefix; the gates before the payload decide.
    ///
    /// # Errors
    /// [`InstallError::Refused`].
    pub async fn prefix(&mut self, bytes: Vec<u8>) -> Result<(), InstallError> {
        self.with(move |t| {
            if t.bundle.is_some() {
                return Err(InstallError::Misused("the prefix was given already"));
            }
            let bundle = Bundle::parse(&bytes).map_err(|e| t.fail(e.into()))?;
            t.prefix(&bundle, &bytes).map_err(|fault| t.fail(fault))
        })
        .await
    }

    /// Bytes of the whole bundle; 0 before the prefix.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.bundle.as_ref().map_or(0, |b| b.total_len())
    }

    /// Index pages of the bundle; 0 before the prefix, and when it serves already.
    #[must_use]
    pub fn pages(&self) -> u32 {
        match (&self.bundle, &self.at_hand) {
            (Some(bundle), Some(transfer)) if !transfer.already => bundle.pages(),
            _ => 0,
        }
    }

    /// Where index page `page` lies in the bundle.
    #[must_use]
    pub fn page_range(&self, page: u32) -> Range<u64> {
        self.bundle.as_ref().map_or(0..0, |b| b.page_range(page))
    }

    /// An index page: takes over what an interrupted transfer left and what either slot has, and says what is still wanted,
    /// in order. A page that does not verify is an [`InstallError::Interrupted`] without a verdict in the journal; the transfer
    /// goes on: fetch it again.
    ///
    /// # Errors
    /// [`InstallError`].
    pub async fn page(&mut self, page: u32, bytes: Vec<u8>) -> Result<Vec<Wanted>, InstallError> {
        let missing = self.with(move |t| t.take_page(page, &bytes)).await?;
        self.wanted.extend(missing.iter().map(|c| (c.number, *c)));
        Ok(missing.iter().map(|c| Wanted { chunk: c.number, offset: c.offset, len: c.stored_len }).collect())
    }

    /// A wanted chunk's bytes as they lie in the bundle. One that does not verify is an [`InstallError::Interrupted`] without a
    /// verdict in the journal; the transfer goes on: fetch it again.
    ///
    /// # Errors
    /// [`InstallError`].
    pub async fn chunk(&mut self, chunk: u64, bytes: Vec<u8>) -> Result<(), InstallError> {
        let wanted = *self.wanted.get(&chunk).ok_or(InstallError::Misused("that chunk was not asked for"))?;
        self.with(move |t| t.take_chunk(&wanted, &bytes)).await?;
        self.wanted.remove(&chunk);
        Ok(())
    }

    /// Where the bytes came from so far.
    #[must_use]
    pub fn saved(&self) -> Saved {
        self.saved
    }

    /// Everything was given.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] when something is missing.
    pub async fn finish(mut self) -> Result<Accepted, InstallError> {
        let transfer = self.at_hand.take().ok_or(OVER)?;
        blocking(move || transfer.finish()).await
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let_go(self.at_hand.take());
    }
}

impl Transfer {
    fn take_page(&mut self, page: u32, bytes: &[u8]) -> Result<Vec<Chunk>, InstallError> {
        let Some(install) = &mut self.install else {
            return if self.already {
                Ok(Vec::new())
            } else {
                Err(InstallError::Misused("the prefix comes first"))
            };
        };
        let known = install.have_page(page);
        match install.page(page, bytes) {
            Err(SlotError::Refused(e)) => return Err(self.again(&e)),
            Err(e) => return Err(self.fail(e.into())),
            Ok(()) => {}
        }
        if !known {
            self.saved.received += bytes.len() as u64;
        }
        let missing = match install.missing_chunks(page) {
            Ok(missing) => missing,
            Err(e) => return Err(self.fail(e.into())),
        };
        let mut wanted = Vec::new();
        for chunk in missing {
            match self.local.as_ref().and_then(|local| local.chunk(&chunk.digest)) {
                Some(stored) => {
                    if let Err(e) = install.chunk(&chunk, &stored) {
                        return Err(self.fail(e.into()));
                    }
                    self.saved.local += stored.len() as u64;
                }
                None => wanted.push(chunk),
            }
        }
        self.progress();
        Ok(wanted)
    }

    fn take_chunk(&mut self, chunk: &Chunk, bytes: &[u8]) -> Result<(), InstallError> {
        let Some(install) = &mut self.install else {
            return Err(InstallError::Misused("the prefix comes first"));
        };
        match install.chunk(chunk, bytes) {
            Err(SlotError::Refused(e)) => Err(self.again(&e)),
            Err(e) => Err(self.fail(e.into())),
            Ok(()) => {
                self.saved.received += bytes.len() as u64;
                self.progress();
                Ok(())
            }
        }
    }

    /// A piece was damaged on its way. Nothing is decided by that, so no verdict is kept.
    fn again(&self, refusal: &Refusal) -> InstallError {
        let about = self.about();
        InstallError::Interrupted(Box::new(Verdict {
            number: 0,
            gate: Gate::Install,
            outcome: Outcome::Interrupted,
            code: refusal.code().to_owned(),
            sentence: refusal.to_string(),
            evidence: serde_json::Value::Null,
            bundle: about.bundle,
            product: about.product,
            version: about.version,
            slot: about.slot,
            boot_id: self.core.evidence.boot_id.clone(),
            uptime_ms: millis(self.core.config.clock.uptime()),
        }))
    }
}
