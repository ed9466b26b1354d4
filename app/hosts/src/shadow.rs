//! A candidate beside the model that serves: it gets a copy of live requests, and its answers are compared.
//!
//! The order of things keeps the primary unharmed. When a caller drops an answer it has used, input and output still lie in
//! their slot; they are copied into a buffer that was made beforehand, and the slot is free. When no buffer is free, the copy
//! is dropped and counted: nothing ever waits. Everything else happens on a thread of its own, niced like the candidate's
//! host ([`SHADOW_NICE`]): one request at a time, so that the candidate's latency is its own. Some of the answers are left out
//! while requests queue before the primary ([`ShadowPolicy::busy_every`]).
//!
//! A candidate that is killed, stopped or endlessly slow ends by the rules of every host (deadline, memory cap); then there is
//! nothing to compare any more, [`ShadowReport::ended`] says why, and the primary has noticed nothing.

use crate::candidate::{Candidate, PeakMemory, PrepareError};
use crate::host::Host;
use crate::limits::{MAX_SHADOW_BYTES, MAX_SHADOW_QUEUE, SHADOW_NICE};
use crate::observe::{Latencies, all_finite, highest_of};
use crate::ring::Slot;
use crate::served::{Answer, InferError, Served, Timing, lock};
use crate::sys;
use inferd_model::{Agreement, DType, Manifest, TensorSpec};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// Which answers are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowPolicy {
    /// One answer in so many; 1: every one.
    pub every: u32,
    /// One answer in so many while requests queue before the primary; 0: none then.
    pub busy_every: u32,
    /// Requests that may wait for the candidate, at most 64 and at most 16 MiB of them (but one always); beyond that copies
    /// are dropped.
    pub queue: usize,
}

impl Default for ShadowPolicy {
    fn default() -> Self {
        Self { every: 1, busy_every: 16, queue: 8 }
    }
}

/// Why no shadow runs.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ShadowError {
    #[error("no model is called {name}, so there is nothing to be compared with")]
    NotServed { name: String },
    #[error("{name} has a shadow already")]
    Taken { name: String },
    #[error("the candidate's {what} are not those of the model that serves")]
    Different { what: &'static str },
    #[error("{0}")]
    System(String),
}

/// What a shadow has shown so far.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct ShadowReport {
    /// Answers the primary gave meanwhile: the sum of the next five and of what waits.
    pub seen: u64,
    /// Requests the candidate answered too; all figures below are about these.
    pub mirrored: u64,
    /// Requests the candidate failed on.
    pub failed: u64,
    /// Copies dropped because the candidate was not done with earlier ones, or had ended.
    pub dropped: u64,
    /// Answers left out by the policy.
    pub left_out: u64,
    /// Answers of which no copy was taken because optional work was shed ([`crate::Hosts::shed`]).
    pub shed: u64,
    /// Why the candidate failed last.
    pub last_failure: Option<String>,
    /// Why the candidate's host ended, if it has.
    pub ended: Option<String>,
    /// The least cosine similarity of any output; `None` before the first comparison. An answer that is not finite counts
    /// as -1.
    pub min_cosine: Option<f64>,
    /// The mean of each answer's least cosine.
    pub mean_cosine: Option<f64>,
    /// The largest difference of any element that is a number.
    pub max_abs: f64,
    /// Share of answers whose highest elements were at the same place in every output; `None` before the first comparison.
    pub argmax_agreement: Option<f64>,
    /// Answers of the candidate with a value that is not finite.
    pub non_finite: u64,
    /// Answers of the primary with a value that is not finite. They are compared with nothing but this counter.
    pub primary_non_finite: u64,
    /// Compute times (p50, p99) of the primary for the mirrored requests.
    pub primary_compute: Option<(Duration, Duration)>,
    /// Compute times (p50, p99) of the candidate for them, at lower priority than the primary's.
    pub candidate_compute: Option<(Duration, Duration)>,
    /// The candidate's memory.
    pub peak_memory: Option<PeakMemory>,
}

/// A request and its answer, copied.
struct Copied {
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    compute: Duration,
}

impl Copied {
    fn new(manifest: &Manifest) -> Self {
        // Written once, so that the pages are there before a request needs them.
        let buffers = |specs: &[TensorSpec]| specs.iter().map(|s| vec![0xa5; s.byte_len()]).collect();
        Self {
            inputs: buffers(&manifest.inputs),
            outputs: buffers(&manifest.outputs),
            compute: Duration::ZERO,
        }
    }
}

/// The primary's end of a shadow.
pub(crate) struct Mirror {
    /// The edition whose answers are mirrored.
    edition: u64,
    policy: ShadowPolicy,
    open: AtomicBool,
    seen: AtomicU64,
    dropped: AtomicU64,
    left_out: AtomicU64,
    /// Whether optional work is shed now, of the whole set of hosts.
    shedding: Arc<AtomicBool>,
    shed: AtomicU64,
    free: Mutex<Vec<Copied>>,
    queue: mpsc::Sender<Copied>,
    stop: Notify,
    tally: Mutex<Tally>,
    candidate: Arc<Host>,
}

#[derive(Default)]
struct Tally {
    mirrored: u64,
    failed: u64,
    last_failure: Option<String>,
    compared: u64,
    min_cosine: Option<f64>,
    cosines: f64,
    max_abs: f64,
    same_place: u64,
    non_finite: u64,
    primary_non_finite: u64,
    primary: Latencies,
    candidate: Latencies,
}

impl Mirror {
    /// Takes a copy of a request and its answer, if there is room for one. Never waits.
    pub(crate) fn offer(&self, host: &Host, slot: &Slot, timing: Timing) {
        if host.edition.number != self.edition || !self.open.load(Relaxed) {
            return;
        }
        let number = self.seen.fetch_add(1, Relaxed);
        if self.shedding.load(Relaxed) {
            self.shed.fetch_add(1, Relaxed);
            return;
        }
        let one_in = |n: u32| n != 0 && number.is_multiple_of(n.into());
        let busy = host.ring().waiting() > 0;
        if !one_in(self.policy.every.max(1)) || (busy && !one_in(self.policy.busy_every)) {
            self.left_out.fetch_add(1, Relaxed);
            return;
        }
        let free = if self.candidate.has_ended().is_some() { None } else { self.take() };
        let Some(mut copied) = free else {
            self.dropped.fetch_add(1, Relaxed);
            return;
        };
        let ring = host.ring();
        for (i, to) in copied.inputs.iter_mut().enumerate() {
            to.copy_from_slice(ring.input(slot, i));
        }
        for (i, to) in copied.outputs.iter_mut().enumerate() {
            to.copy_from_slice(ring.output(slot, i));
        }
        copied.compute = timing.compute;
        // There are no more buffers than places, so it fails only when nobody listens any more.
        if self.queue.try_send(copied).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// A free buffer. When the shadow's thread happens to hold the lock, there is none: it has a low priority and may not get
    /// to give the lock back for a while.
    fn take(&self) -> Option<Copied> {
        self.free.try_lock().ok()?.pop()
    }

    fn report(&self) -> ShadowReport {
        let t = lock(&self.tally);
        #[allow(clippy::cast_precision_loss)] // exact below 2^53
        let share = |n: f64| (t.compared > 0).then(|| n / t.compared as f64);
        let quantiles = |l: &Latencies| l.quantile(0.5).zip(l.quantile(0.99));
        #[allow(clippy::cast_precision_loss)] // as above
        let same_place = t.same_place as f64;
        ShadowReport {
            seen: self.seen.load(Relaxed),
            mirrored: t.mirrored,
            failed: t.failed,
            dropped: self.dropped.load(Relaxed),
            left_out: self.left_out.load(Relaxed),
            shed: self.shed.load(Relaxed),
            last_failure: t.last_failure.clone(),
            ended: self.candidate.has_ended().map(|e| e.reason),
            min_cosine: t.min_cosine,
            mean_cosine: share(t.cosines),
            max_abs: t.max_abs,
            argmax_agreement: share(same_place),
            non_finite: t.non_finite,
            primary_non_finite: t.primary_non_finite,
            primary_compute: quantiles(&t.primary),
            candidate_compute: quantiles(&t.candidate),
            peak_memory: PeakMemory::of(&self.candidate),
        }
    }

    /// The life of the shadow's thread: gives the candidate one copied request after the other.
    async fn follow(&self, candidate: &Candidate, mut queue: mpsc::Receiver<Copied>) {
        loop {
            let copied = tokio::select! {
                biased;
                () = self.stop.notified() => return,
                copied = queue.recv() => copied,
            };
            let Some(copied) = copied else { return };
            let inputs: Vec<&[u8]> = copied.inputs.iter().map(Vec::as_slice).collect();
            let outcome = candidate.run(&inputs).await;
            self.record(candidate.manifest(), &copied, outcome);
            lock(&self.free).push(copied);
        }
    }

    fn record(&self, manifest: &Manifest, copied: &Copied, outcome: Result<Answer, InferError>) {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(e) => {
                let mut t = lock(&self.tally);
                t.failed += 1;
                t.last_failure = Some(e.to_string());
                return;
            }
        };
        let (mut cosine, mut max_abs) = (1.0_f64, 0.0_f64);
        let (mut same_place, mut finite, mut primary_finite) = (true, true, true);
        for (i, (spec, want)) in manifest.outputs.iter().zip(&copied.outputs).enumerate() {
            let got = answer.output(i);
            primary_finite &= is_finite(spec.dtype, want);
            if is_finite(spec.dtype, got) {
                let a = Agreement::of(spec.dtype, want, got);
                cosine = cosine.min(a.cosine);
                max_abs = max_abs.max(a.max_abs);
            } else {
                finite = false;
                cosine = -1.0;
            }
            same_place &= highest_of(spec.dtype, want) == highest_of(spec.dtype, got);
        }
        let compute = answer.timing().compute;
        drop(answer);
        let mut t = lock(&self.tally);
        t.mirrored += 1;
        t.primary.record(copied.compute);
        t.candidate.record(compute);
        t.non_finite += u64::from(!finite);
        if !primary_finite {
            t.primary_non_finite += 1;
            return;
        }
        t.compared += 1;
        t.cosines += cosine;
        t.min_cosine = Some(t.min_cosine.map_or(cosine, |m| m.min(cosine)));
        t.max_abs = t.max_abs.max(max_abs);
        t.same_place += u64::from(same_place);
    }
}

fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    !matches!(dtype, DType::Fp32 | DType::Fp64 | DType::Fp16 | DType::Bf16) || all_finite(dtype, bytes)
}

/// A running shadow. Dropping it ends it, and the candidate with it.
pub struct Shadow {
    mirror: Arc<Mirror>,
    primary: Arc<Served>,
    back: Option<oneshot::Receiver<Candidate>>,
    /// The candidate's niceness before.
    nice: i32,
}

impl Shadow {
    /// Begins to mirror. The caller holds the lock of the set, so that the primary is not replaced meanwhile.
    pub(crate) fn start(
        primary: &Arc<Served>,
        candidate: Candidate,
        policy: ShadowPolicy,
        shedding: Arc<AtomicBool>,
    ) -> Result<Self, (ShadowError, Candidate)> {
        let (ours, theirs) = (primary.manifest(), candidate.manifest().clone());
        let same = |a: &[TensorSpec], b: &[TensorSpec]| {
            a.iter().map(|s| (s.dtype, &s.shape)).eq(b.iter().map(|s| (s.dtype, &s.shape)))
        };
        if primary.has_mirror() {
            return Err((ShadowError::Taken { name: candidate.name() }, candidate));
        }
        let checks = [("inputs", &ours.inputs, &theirs.inputs), ("outputs", &ours.outputs, &theirs.outputs)];
        if let Some((what, ..)) = checks.into_iter().find(|(_, a, b)| !same(a, b)) {
            return Err((ShadowError::Different { what }, candidate));
        }

        let bytes: usize = ours.inputs.iter().chain(&ours.outputs).map(TensorSpec::byte_len).sum();
        let places = policy.queue.min(MAX_SHADOW_QUEUE).min(MAX_SHADOW_BYTES / bytes.max(1)).max(1);
        let (queue, queued) = mpsc::channel(places);
        let mirror = Arc::new(Mirror {
            edition: primary.edition().number,
            policy,
            open: AtomicBool::new(true),
            seen: AtomicU64::default(),
            dropped: AtomicU64::default(),
            left_out: AtomicU64::default(),
            shedding,
            shed: AtomicU64::default(),
            free: Mutex::new((0..places).map(|_| Copied::new(&ours)).collect()),
            queue,
            stop: Notify::new(),
            tally: Mutex::default(),
            candidate: candidate.host().clone(),
        });
        let nice = sys::own_nice();
        candidate.host().set_nice(nice + SHADOW_NICE);
        let (give_back, back) = oneshot::channel();
        let (work, runtime) = (mirror.clone(), tokio::runtime::Handle::current());
        // The candidate goes by a channel of its own, so that it is still ours when no thread can be had.
        let (hand_over, handed) = oneshot::channel();
        let thread = std::thread::Builder::new().name("shadow".into()).spawn(move || {
            // Raising one's own niceness is always allowed.
            let _ = sys::set_own_nice(nice + SHADOW_NICE);
            runtime.block_on(async move {
                let Ok(candidate) = handed.await else { return };
                work.follow(&candidate, queued).await;
                let _ = give_back.send(candidate);
            });
        });
        if let Err(e) = thread {
            let why = ShadowError::System(format!("the shadow gets no thread: {e}"));
            return Err((why, candidate));
        }
        if let Err(candidate) = hand_over.send(candidate) {
            let why = ShadowError::System("the shadow's thread ended".into());
            return Err((why, candidate));
        }
        primary.set_mirror(Some(mirror.clone()));
        Ok(Self { mirror, primary: primary.clone(), back: Some(back), nice })
    }

    /// What it has shown so far.
    #[must_use]
    pub fn report(&self) -> ShadowReport {
        self.mirror.report()
    }

    /// Ends the comparison and gives the candidate back at the daemon's own priority. When this process may not raise
    /// priorities, that is another host of the same model, whose golden vectors have passed again.
    ///
    /// Takes at most as long as one inference of the candidate, or the start of its host.
    ///
    /// # Errors
    /// [`PrepareError`] when the candidate has ended, or could not be started again.
    pub async fn finish(mut self) -> Result<Candidate, PrepareError> {
        self.detach();
        let back = self.back.take();
        let lost = || PrepareError::Load("the shadow lost its candidate".into());
        let candidate = back.ok_or_else(lost)?.await.map_err(|_| lost())?;
        if let Some(e) = PrepareError::of_end(candidate.host()) {
            return Err(e);
        }
        if candidate.host().set_nice(self.nice) {
            return Ok(candidate);
        }
        Ok(candidate.again().await?)
    }

    fn detach(&self) {
        self.mirror.open.store(false, Relaxed);
        self.primary.drop_mirror(&self.mirror);
        self.mirror.stop.notify_one();
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.detach();
    }
}
