//! What transfers, trials and the updater share: the store, the trust, the journal, the published status.

use crate::believe::{chain, read_document};
use crate::boot::Evidence;
use crate::config::UpdaterConfig;
use crate::finding::Finding;
use crate::gates::{self, Admission, Facts, Memory, Ring};
use crate::install::{Resumable, Way};
use crate::status::{SlotView, Status};
use crate::updater::StartError;
use crate::verdict::{Gate, Outcome, Verdict};
use inferd_bundle::{Bundle, Digest, Permit, Refusal, Trust};
use inferd_hosts::Hosts;
use inferd_model::EngineKind;
use inferd_slots::{
    Config, Documents, FileMedium, Journal, SlotError, SlotId, SlotStatus, Step, Store, replace,
};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Verdicts in a published status; the journal keeps more.
const SHOWN: usize = 64;
/// The end of a warning that is taken back when the journal takes verdicts again.
const NOT_KEPT: &str = "; verdicts of now are lost at the next start";
/// The end of a warning that is taken back when the document is there again.
const UNTIL_BACK: &str = "; no bundle is accepted until it is back";

pub struct Core {
    pub config: UpdaterConfig,
    pub hosts: Arc<Hosts>,
    pub store: Store<FileMedium>,
    pub evidence: Evidence,
    pub status: watch::Sender<Arc<Status>>,
    journal: Journal<Verdict>,
    documents: Documents,
    next_verdict: AtomicU64,
    capacity: [u64; 2],
    trusted: Mutex<Trusted>,
    pub busy: Mutex<Occupied>,
    /// The interrupted transfer, once somebody looked or interrupted it.
    pub resumable: Mutex<Option<Resumable>>,
    /// Something was done with a system.
    pub systems_changed: Notify,
    /// A system is on trial.
    pub system_on_trial: AtomicBool,
    /// The bundle in the slot that does not serve, by its digest, and what came of proving it on this system.
    pub other: Mutex<Option<(Digest, Proof)>>,
}

/// What came of proving a bundle that does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its golden vectors have passed.
    Proven,
    /// It could not be asked here and now, which says nothing about the system.
    Unasked,
    /// It does not run on this system.
    Failed(String),
}

#[derive(Default)]
struct Trusted {
    trust: Option<Trust>,
    /// Why no bundle is accepted for now.
    stale: Option<String>,
    permit: Option<Permit>,
}

/// What keeps a transfer from beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// The daemon decides what to serve.
    Starting,
    /// Nothing.
    Free,
    /// A transfer.
    Transfer(Way),
    /// A trial, or a step back.
    Trial,
    /// The daemon ends.
    Stopping,
}

/// What a verdict is about.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub bundle: Option<String>,
    pub product: Option<String>,
    pub version: Option<u64>,
    pub slot: Option<char>,
}

impl About {
    pub fn bundle(bundle: &Bundle, slot: Option<SlotId>) -> Self {
        Self {
            bundle: Some(bundle.id().to_string()),
            product: Some(bundle.manifest().product.to_string()),
            version: Some(bundle.manifest().version),
            slot: slot.map(SlotId::letter),
        }
    }

    /// The bundle in a slot, as the record knows it.
    pub fn slot(state: &inferd_slots::State, slot: SlotId) -> Self {
        let s = state.slot(slot);
        Self {
            bundle: s.bundle.map(|b| b.to_string()),
            product: s.bundle.map(|_| s.product.clone()),
            version: s.bundle.map(|_| s.version),
            slot: Some(slot.letter()),
        }
    }
}

pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section is a few assignments; one that panicked has left nothing half-done.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Opens everything. Blocking.
    pub fn open(config: UpdaterConfig, hosts: Arc<Hosts>) -> Result<Self, StartError> {
        let storage = |e: SlotError| StartError::Storage(e.to_string());
        let places =
            Config { slots: config.slots.clone(), data: config.data.clone(), capacity: config.slot_bytes };
        let store = Store::at(&places).map_err(storage)?;
        let journal: Journal<Verdict> = places.journal().map_err(storage)?;
        let documents = places.documents().map_err(storage)?;
        let mut evidence = config.evidence.look();
        evidence.panics = new_panics(&config.data, evidence.panics);
        let verdicts = journal.verdicts();
        let last = verdicts.iter().map(|v| v.number).max().unwrap_or(0);
        let capacity = [0, 1].map(|i| capacity(&config.slots[i], config.slot_bytes));
        let mut status = Status { verdicts, ..Status::default() };
        if journal.damaged() > 0 {
            status.warnings.push(format!("{} verdict(s) of the journal were damaged", journal.damaged()));
        }
        let core = Self {
            hosts,
            store,
            evidence,
            status: watch::Sender::new(Arc::new(status)),
            journal,
            documents,
            next_verdict: AtomicU64::new(last + 1),
            capacity,
            trusted: Mutex::default(),
            busy: Mutex::new(Occupied::Starting),
            resumable: Mutex::default(),
            systems_changed: Notify::new(),
            system_on_trial: AtomicBool::new(false),
            other: Mutex::default(),
            config,
        };
        core.load_trust()?;
        core.publish_slots();
        Ok(core)
    }

    /// The documents of the image, then those that were accepted since.
    fn load_trust(&self) -> Result<(), StartError> {
        let loaded = self.documents.load().map_err(|e| StartError::Storage(e.to_string()))?;
        let mut trusted = Trusted::default();
        let believed =
            chain(&self.config.roots, &loaded, self.config.allow_dev, &mut |sentence| self.warn(sentence))?;
        if let Some(trust) = believed {
            let state = self.store.state();
            if let Err(e) = Documents::not_older(&state, trust.root_version(), trust.revocation_version()) {
                let sentence = format!("{e}{UNTIL_BACK}");
                self.warn(sentence.clone());
                trusted.stale = Some(sentence);
            }
            if let Ok(envelope) = read_document(&self.permit_path()) {
                let permit = trust.permit(&envelope, &self.config.device, state.last_permit_nonce);
                // A used one stays until the next one comes; it is worth nothing.
                trusted.permit = permit.ok();
            }
            trusted.trust = Some(trust);
        } else {
            self.warn("this device has no root of trust: no bundle is accepted".into());
        }
        *lock(&self.trusted) = trusted;
        self.publish_trust();
        Ok(())
    }

    fn permit_path(&self) -> std::path::PathBuf {
        self.config.data.join("permit.cbor")
    }

    /// Whom the device believes now.
    pub fn trust(&self) -> Option<Trust> {
        lock(&self.trusted).trust.clone()
    }

    /// Takes a trust document. Durable when it returns. Blocking.
    pub fn accept(&self, envelope: &[u8]) -> Result<(&'static str, Finding), Finding> {
        let refuse = |e: &Refusal| gates::refused(e, serde_json::json!({}));
        let storage = |e: &SlotError| Finding::new(e.code(), e.to_string(), serde_json::json!({}));
        let mut trust = self.trust().ok_or_else(|| {
            Finding::new("no-root", "this device has no root of trust to judge it by", serde_json::json!({}))
        })?;
        let kind = inferd_bundle::Envelope::from_bytes(envelope).map_err(|e| refuse(&e))?.kind;
        if kind == "permit" {
            let last = self.store.state().last_permit_nonce;
            let permit = trust.permit(envelope, &self.config.device, last).map_err(|e| refuse(&e))?;
            replace(&self.permit_path(), envelope).map_err(|e| {
                Finding::new(
                    "medium-failed",
                    format!("the permit cannot be kept: {e}"),
                    serde_json::json!({}),
                )
            })?;
            let sentence = format!("version {} of {} may be installed once", permit.version, permit.product);
            let evidence = serde_json::json!({
                "product": permit.product.as_str(), "version": permit.version, "nonce": permit.nonce,
            });
            lock(&self.trusted).permit = Some(permit);
            self.publish_trust();
            return Ok(("permit", Finding::new("ok", sentence, evidence)));
        }
        let kind = trust.accept(envelope).map_err(|e| refuse(&e))?;
        let (root, revocations) = (trust.root_version(), trust.revocation_version());
        match kind {
            "root" => self.documents.keep_root(root, envelope),
            _ => self.documents.keep_revocations(revocations, envelope),
        }
        .map_err(|e| storage(&e))?;
        let state = self.store.state();
        // Of several documents that were lost each is believed as it comes back; the last one ends it.
        let stale = Documents::not_older(&state, root, revocations).err().map(|e| format!("{e}{UNTIL_BACK}"));
        if stale.is_none() {
            self.store.step(&Step::Trust { root, revocations }).map_err(|e| storage(&e))?;
        }
        // A permit is worth what its signers are.
        let permit = read_document(&self.permit_path()).ok();
        let permit = permit.and_then(|p| trust.permit(&p, &self.config.device, state.last_permit_nonce).ok());
        self.unwarn(UNTIL_BACK);
        if let Some(stale) = &stale {
            self.warn(stale.clone());
        }
        {
            let mut trusted = lock(&self.trusted);
            (trusted.trust, trusted.stale, trusted.permit) = (Some(trust), stale, permit);
        }
        self.publish_trust();
        let sentence = format!("root {root} and revocation list {revocations} are in force");
        let evidence = serde_json::json!({ "root": root, "revocations": revocations });
        Ok((kind, Finding::new("ok", sentence, evidence)))
    }

    /// Why nothing is let in: trust documents that were in force are lost.
    pub fn stale(&self) -> Option<String> {
        lock(&self.trusted).stale.clone()
    }

    /// The permit for a version that needs one.
    pub fn permit_for(&self, product: &str, version: u64) -> Option<u64> {
        let last = self.store.state().last_permit_nonce;
        let trusted = lock(&self.trusted);
        let permit = trusted.permit.as_ref()?;
        (permit.product.as_str() == product && permit.version == version && permit.nonce > last)
            .then_some(permit.nonce)
    }

    /// Forgets the permit that was used. Its number is in the state, so it is worth nothing already.
    pub fn permit_used(&self) {
        lock(&self.trusted).permit = None;
        self.publish_trust();
    }

    /// Asks the gates before the payload. Reads files under `/proc`, and waits until the engines the bundle names have said whether they
    /// are here: blocking. `systems`: root takes one from this way in.
    pub fn admit(&self, bundle: &Bundle, systems: bool) -> Admission {
        let state = self.store.state();
        let trusted = {
            let t = lock(&self.trusted);
            (t.trust.clone(), t.stale.clone(), t.permit.clone())
        };
        let named = bundle.manifest().models.iter().filter_map(|entry| entry.parse().ok());
        let named: Vec<EngineKind> =
            named.flat_map(|manifest| manifest.engines).map(|rung| rung.engine).collect();
        if !self.hosts.have_answered(&named) {
            tokio::runtime::Handle::current().block_on(self.hosts.all_answered(&named));
        }
        let engines = (self.config.engines)();
        let facts = Facts {
            trust: trusted.0.as_ref(),
            trust_stale: trusted.1.as_deref(),
            board: &self.config.board,
            version: &self.config.version,
            systems,
            engines: &engines,
            floors: &state.floors,
            permit: trusted.2.as_ref(),
            last_nonce: state.last_permit_nonce,
            memory: self.memory(),
            ring: self.ring(),
            now: gates::plausible_now(),
        };
        gates::admit(bundle, &facts)
    }

    /// Whether a bundle that does not serve can be proven beside what does, one model at a time; else why not. Blocking.
    pub fn has_room_to_prove(&self, bundle: &Bundle) -> Result<(), String> {
        gates::one_by_one(bundle, &self.memory(), self.ring())
    }

    fn memory(&self) -> Memory {
        let served = self.hosts.list();
        let running = served.iter().map(|served| {
            let cap = served.snapshot().memory_cap;
            let manifest = served.manifest();
            let declared = u64::from(manifest.budget.memory_mib) << 20;
            (manifest.name.to_string(), cap.max(declared))
        });
        Memory {
            limit: self.config.memory_limit,
            available: if self.config.memory_limit.is_some() { None } else { gates::available() },
            running: running.collect(),
        }
    }

    fn ring(&self) -> Ring {
        let hosts = self.hosts.config();
        Ring { queue: hosts.queue, workers: hosts.workers }
    }

    // ------------------------------------------------------------------------------------------------ verdicts

    /// Leaves verdicts: in the journal with one write, in the log, in the status. Blocking.
    pub fn note(&self, about: &About, verdicts: Vec<(Gate, Outcome, Finding)>) -> Vec<Verdict> {
        let uptime_ms = millis(self.config.clock.uptime());
        let verdicts: Vec<Verdict> = verdicts
            .into_iter()
            .map(|(gate, outcome, f)| Verdict {
                number: self.next_verdict.fetch_add(1, Relaxed),
                gate,
                outcome,
                code: f.code,
                sentence: f.sentence,
                evidence: f.evidence,
                bundle: about.bundle.clone(),
                product: about.product.clone(),
                version: about.version,
                slot: about.slot,
                boot_id: self.evidence.boot_id.clone(),
                uptime_ms,
            })
            .collect();
        for v in &verdicts {
            let (gate, outcome, code) = (v.gate.name(), v.outcome.name(), v.code.as_str());
            // A level is part of where an event is made, so there are two places.
            macro_rules! said {
                ($level:ident) => {
                    tracing::$level!(
                        gate,
                        outcome,
                        code,
                        product = v.product,
                        version = v.version,
                        "{}",
                        v.sentence
                    )
                };
            }
            match v.outcome {
                Outcome::Pass => said!(info),
                _ => said!(warn),
            }
        }
        match self.journal.append(&verdicts) {
            Ok(()) => self.unwarn(NOT_KEPT),
            Err(e) => {
                self.unwarn(NOT_KEPT);
                self.warn(format!("{e}{NOT_KEPT}"));
            }
        }
        self.publish(|s| {
            for v in &verdicts {
                *s.counters
                    .verdicts
                    .entry(format!("{}/{}/{}", v.gate.name(), v.outcome.name(), v.code))
                    .or_default() += 1;
            }
            s.verdicts.extend(verdicts.iter().cloned());
            let excess = s.verdicts.len().saturating_sub(SHOWN);
            s.verdicts.drain(..excess);
        });
        verdicts
    }

    /// The same from the runtime.
    pub async fn verdict(self: &Arc<Self>, about: About, gate: Gate, outcome: Outcome, finding: Finding) {
        let core = self.clone();
        blocking(move || core.note(&about, vec![(gate, outcome, finding)])).await;
    }

    /// The number of the last verdict.
    pub fn last_verdict(&self) -> u64 {
        self.next_verdict.load(Relaxed) - 1
    }

    // ------------------------------------------------------------------------------------------------ status

    pub fn publish(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }

    pub fn warn(&self, sentence: String) {
        tracing::warn!("{sentence}");
        self.publish(|s| {
            if !s.warnings.contains(&sentence) {
                s.warnings.push(sentence);
            }
        });
    }

    /// Whether this slot serves.
    pub fn serves(&self, slot: SlotId) -> bool {
        self.status.borrow().serving.slot == Some(slot.letter())
    }

    /// The committed bundle in the slot that is not active: where a step back leads.
    pub fn way_back(&self) -> Option<(SlotId, Digest)> {
        let state = self.store.state();
        let other = state.active?.other();
        let slot = state.slot(other);
        slot.bundle.filter(|_| slot.status == SlotStatus::Committed).map(|bundle| (other, bundle))
    }

    /// Warnings that end like this are true no longer.
    pub fn unwarn(&self, end: &str) {
        if self.status.borrow().warnings.iter().any(|w| w.ends_with(end)) {
            self.publish(|s| s.warnings.retain(|w| !w.ends_with(end)));
        }
    }

    pub fn publish_slots(&self) {
        let state = self.store.state();
        let view = |id: SlotId| {
            let s = state.slot(id);
            SlotView {
                slot: id.letter(),
                status: status_name(s.status),
                active: state.active == Some(id),
                bundle: s.bundle.map(|b| b.to_string()),
                product: s.bundle.map(|_| s.product.clone()),
                version: s.bundle.map(|_| s.version),
                len: s.len,
                capacity: self.capacity[id.index()],
            }
        };
        let slots = SlotId::BOTH.map(view).to_vec();
        self.publish(|s| {
            s.slots = slots;
            s.floors = state.floors;
        });
    }

    fn publish_trust(&self) {
        let (root, revocations, permit) = {
            let t = lock(&self.trusted);
            let root = t.trust.as_ref().map_or(0, Trust::root_version);
            let revocations = t.trust.as_ref().map_or(0, Trust::revocation_version);
            (root, revocations, t.permit.as_ref().map(|p| (p.product.to_string(), p.version)))
        };
        self.publish(|s| {
            s.trust.root_version = root;
            s.trust.revocation_version = revocations;
            s.trust.dev = self.config.allow_dev;
            s.permit = permit;
        });
    }

    pub fn capacity(&self, slot: SlotId) -> u64 {
        self.capacity[slot.index()]
    }
}

/// Runs blocking work off the runtime's threads. A panic in it is a defect and goes on here.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        // The runtime ends: nobody waits for the answer any more.
        Err(_) => std::future::pending().await,
    }
}

pub fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

pub fn status_name(status: inferd_slots::SlotStatus) -> &'static str {
    use inferd_slots::SlotStatus::{Bad, Committed, Empty, Staged, Trial, Writing};
    match status {
        Empty => "empty",
        Writing => "writing",
        Staged => "staged",
        Trial => "trial",
        Committed => "committed",
        Bad => "bad",
    }
}

/// A partition's length; what a file may become.
fn capacity(path: &Path, of_a_file: u64) -> u64 {
    let partition = || -> io::Result<Option<u64>> {
        if fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        File::open(path)?.seek(SeekFrom::End(0)).map(Some)
    };
    partition().ok().flatten().unwrap_or(of_a_file)
}

/// The panic records that were not there at an earlier start: the store keeps them until somebody takes them out.
fn new_panics(data: &Path, found: Vec<String>) -> Vec<String> {
    let path = data.join("panics.seen");
    let seen = fs::read_to_string(&path).unwrap_or_default();
    let new: Vec<String> = found.iter().filter(|p| !seen.lines().any(|s| s == p.as_str())).cloned().collect();
    if !new.is_empty()
        && let Err(e) = replace(&path, found.join("\n").as_bytes())
    {
        tracing::warn!(error = %e, "seen panic records are not remembered: they may be held against a later trial too");
    }
    new
}
