//! One served model, one request.
//!
//! Which host a request goes to is one pointer ([`Way`]). When several models are promoted together, each first gets a way
//! that turns with a switch they share; one store turns them all, so that nobody ever sees one of them new and then another
//! one old. A request is served by the host whose slot it took, from beginning to end; a host that is being replaced closes
//! itself when nothing is in flight any more, and who was just about to take a slot in it looks again.

use crate::breaker::{Admitted, Breaker, BreakerView, Failure};
use crate::child::{Phase, Refusal};
use crate::edition::Edition;
use crate::events::HostEvent;
use crate::host::{Closed, Host, Plan, StartError, Submitted};
use crate::house::House;
use crate::limits::{
    BACKOFF_FIRST, BACKOFF_MAX, BACKOFF_USEFUL, DEFAULT_RING_BYTES, DRAIN_TIMEOUT, LOAD_TIMEOUT,
    MAX_RING_BYTES, MAX_SLOTS, MAX_WORKERS, SETTLED,
};
use crate::observe::Observation;
use crate::package::Origin;
use crate::ring::{Layout, Slot};
use crate::shadow::Mirror;
use crate::stats::{End, Stats};
use crate::suspects::Digest;
use arc_swap::{ArcSwap, ArcSwapOption};
use inferd_engine::DeviceState;
use inferd_model::{Agreement, DType, EngineKind, Golden, Manifest, NetworkFormat, Rung, Tolerance};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// One served model: its manifest, its host (restarted as often as needed), its queue and its numbers.
pub struct Served {
    house: Arc<House>,
    stats: Arc<Stats>,
    way: ArcSwap<Way>,
    /// Whether `mirror` is set: all a request looks at while it is not.
    mirrored: AtomicBool,
    mirror: ArcSwapOption<Mirror>,
    /// Its inferences are nobody's requests: what is observed of an edition leaves them out.
    only_measured: AtomicBool,
    /// What changes together with `way`: both only under this lock.
    shown: Mutex<Shown>,
    /// The edition, by its number, whose rungs on this engine do not serve for now: a candidate has the device.
    lent: Mutex<Option<(u64, EngineKind)>>,
}

/// What a fallback is told for while a device is lent.
const LENT: &str = "a new edition of the model has its device for now, to be proven on it";

/// Where requests go: an edition of the model and its host.
#[derive(Clone)]
struct Route {
    /// The accepted edition; before the first one is accepted, the candidate.
    edition: Arc<Edition>,
    /// Its host, while one runs.
    host: Option<Arc<Host>>,
}

/// The route, or two of them and the switch that is about to turn.
enum Way {
    Straight(Route),
    Turning { old: Route, new: Route, turned: Arc<AtomicBool> },
}

impl Way {
    fn route(&self) -> &Route {
        match self {
            Self::Straight(route) => route,
            Self::Turning { old, new, turned } => {
                if turned.load(SeqCst) {
                    new
                } else {
                    old
                }
            }
        }
    }
}

struct Shown {
    /// Counted up when the model is replaced or unloaded; a supervisor of an older one ends.
    generation: u64,
    state: State,
    ready_since: Option<Instant>,
    agreement: Option<Agreement>,
    engine: EngineInfo,
    fallback: Option<Fallback>,
}

/// What a model is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The host starts, loads, or runs the golden vectors; `phase` says which in words.
    Starting {
        /// What it is doing.
        phase: &'static str,
        /// Since when.
        since: Instant,
    },
    /// It answers.
    Ready,
    /// The host ended and is started again at `retry_at`.
    Restarting {
        /// Why it ended.
        reason: String,
        /// When the next start is due.
        retry_at: Instant,
        /// Ends and failed starts in a row, since a host last lived for ten seconds.
        failures: u32,
    },
    /// Unloaded or shut down.
    Stopped,
}

/// The numbers of a model since it was first loaded (they survive restarts of the host, reloads and promotions).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Requests answered with a result.
    pub success: u64,
    /// Requests that failed, by [`InferError::kind`], in a stable order.
    pub failures: Vec<(&'static str, u64)>,
    /// Answers that came after their request had been given up; dropped.
    pub late: u64,
    /// Requests dropped before they ran because the client left or the deadline passed.
    pub cancelled: u64,
    /// Times the host was started.
    pub starts: u64,
    /// Host endings by cause: `oom`, `deadline`, `signal`, `crash`, `protocol`, `seccomp`.
    pub ends: Vec<(&'static str, u64)>,
    /// Panics contained in workers.
    pub panics: u64,
    /// Slots in use now.
    pub slots_in_use: usize,
    /// All slots.
    pub slots: usize,
    /// Requests waiting (queued, not yet running).
    pub waiting: usize,
    /// Requests that found a free slot.
    pub pool_hits: u64,
    /// Requests that found none and were refused.
    pub pool_misses: u64,
    /// Sum of queue waits over `success`, in nanoseconds.
    pub queue_ns: u64,
    /// Sum of compute times over `success`, in nanoseconds.
    pub compute_ns: u64,
    /// Last successful compute time.
    pub last_compute: Option<Duration>,
    /// Exact (p50, p95, p99) of compute over the last 1024 successes of the model as it is now: a replacement begins anew, so that
    /// admission never judges by the model before.
    pub compute_quantiles: Option<[Duration; 3]>,
    /// The same of queue wait.
    pub queue_quantiles: Option<[Duration; 3]>,
    /// Requests per second the workers drain, from measured service times, once known.
    pub drain_per_second: Option<f64>,
    /// One entry per worker thread of the running host.
    pub workers: Vec<WorkerSnapshot>,
    /// The host's cap in bytes: the manifest's budget and what comes on top (ring and model in a cgroup, stacks under a
    /// resource limit); 0 while no host runs.
    pub memory_cap: u64,
    /// What enforces the cap: `cgroup` or `rlimit`; empty while no host runs.
    pub memory_cap_kind: &'static str,
    /// Resident bytes of the host process now (from /proc), if it runs.
    pub host_rss: Option<u64>,
    /// The host's process id, if it runs.
    pub host_pid: Option<u32>,
    /// How its engine's device is, when it has one that says so.
    pub device: Option<DeviceState>,
}

/// One worker thread of a host.
#[derive(Clone, Debug, Default)]
pub struct WorkerSnapshot {
    /// Bytes allocated now.
    pub live_bytes: u64,
    /// The most bytes ever allocated at once.
    pub peak_bytes: u64,
    /// Inferences it ran.
    pub requests: u64,
    /// Whether it runs one now.
    pub busy: bool,
}

/// Fixed-bucket histograms in seconds, registered by the api under its names.
#[derive(Clone, Debug)]
pub struct Histograms {
    /// Queue wait of successes.
    pub queue: prometheus_client::metrics::histogram::Histogram,
    /// Compute time of successes.
    pub compute: prometheus_client::metrics::histogram::Histogram,
}

/// Which engine runs a model.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct EngineInfo {
    /// The rung of the model's ladder that serves; `None` before the first start.
    pub rung: Option<Rung>,
    /// `cpu`, `ort`, ...; empty before the first start.
    pub kind: &'static str,
    /// Library and version.
    pub version: String,
    /// Device name.
    pub device: String,
    /// Its library, when it is one loaded at run time.
    pub library: Option<PathBuf>,
    /// Why it does not run on something better, where that was tried.
    pub remark: Option<String>,
}

impl Served {
    pub(crate) fn new(edition: Arc<Edition>, house: Arc<House>) -> Self {
        Self {
            house,
            stats: Arc::new(Stats::new()),
            way: ArcSwap::from_pointee(Way::Straight(Route { edition, host: None })),
            mirrored: AtomicBool::new(false),
            mirror: ArcSwapOption::empty(),
            only_measured: AtomicBool::new(false),
            shown: Mutex::new(Shown {
                generation: 0,
                state: State::Starting { phase: "starting", since: Instant::now() },
                ready_since: None,
                agreement: None,
                engine: EngineInfo::default(),
                fallback: None,
            }),
            lent: Mutex::default(),
        }
    }

    fn of_route<T>(&self, f: impl FnOnce(&Route) -> T) -> T {
        f(self.way.load().route())
    }

    pub(crate) fn edition(&self) -> Arc<Edition> {
        self.of_route(|r| r.edition.clone())
    }

    pub(crate) fn host(&self) -> Option<Arc<Host>> {
        self.of_route(|r| r.host.clone())
    }

    /// What the model is.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.of_route(|r| r.edition.package.manifest.clone())
    }

    /// Where it was loaded from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.of_route(|r| r.edition.package.origin.clone())
    }

    /// The counters of the edition that is served now. They begin anew when the model is replaced, unlike
    /// [`Served::snapshot`].
    #[must_use]
    pub fn observe(&self) -> Observation {
        self.edition().observe()
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> State {
        lock(&self.shown).state.clone()
    }

    /// How near the engine came to the golden vectors at the last start.
    #[must_use]
    pub fn agreement(&self) -> Option<Agreement> {
        lock(&self.shown).agreement
    }

    /// The engine that runs it, its library and device.
    #[must_use]
    pub fn engine(&self) -> EngineInfo {
        lock(&self.shown).engine.clone()
    }

    /// Whether another rung than the preferred one of those this image can run serves it, and why.
    #[must_use]
    pub fn fallback(&self) -> Option<Fallback> {
        lock(&self.shown).fallback.clone()
    }

    /// When it became ready first.
    #[must_use]
    pub fn ready_since(&self) -> Option<Instant> {
        lock(&self.shown).ready_since
    }

    /// Histograms of queue wait and compute; one observation each per success.
    #[must_use]
    pub fn histograms(&self) -> &Histograms {
        &self.stats.histograms
    }

    /// The motif head's file (safetensors), when the manifest names one.
    #[must_use]
    pub fn motif_weights(&self) -> Option<Arc<[u8]>> {
        self.of_route(|r| r.edition.package.motif_weights.clone())
    }

    /// The golden vectors: raw inputs and expected outputs.
    #[must_use]
    pub fn golden(&self) -> Arc<Golden> {
        self.of_route(|r| r.edition.package.golden.clone())
    }

    /// The numbers.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let s = &self.stats;
        let host = self.host();
        let quantiles = s.quantiles();
        let mut snapshot = Snapshot {
            success: s.success.load(Relaxed),
            failures: s.failures(),
            late: s.late.load(Relaxed),
            cancelled: s.cancelled.load(Relaxed),
            starts: s.starts.load(Relaxed),
            ends: s.ends(),
            panics: s.panics.load(Relaxed),
            pool_hits: s.pool_hits.load(Relaxed),
            pool_misses: s.pool_misses.load(Relaxed),
            queue_ns: s.queue_ns.load(Relaxed),
            compute_ns: s.compute_ns.load(Relaxed),
            last_compute: s.last_compute(),
            queue_quantiles: quantiles.map(|q| q.0),
            compute_quantiles: quantiles.map(|q| q.1),
            ..Snapshot::default()
        };
        if let Some(host) = host {
            let ring = host.ring();
            (snapshot.slots_in_use, snapshot.slots) = host.occupancy();
            snapshot.waiting = ring.waiting();
            snapshot.drain_per_second = self.drain_rate(&host);
            snapshot.memory_cap = host.cap;
            snapshot.memory_cap_kind = host.cap_kind;
            snapshot.host_pid = Some(host.pid);
            snapshot.host_rss = resident(host.pid);
            snapshot.device = ring.device().load();
            let worker = |i| {
                let (live_bytes, peak_bytes, requests, _) = ring.worker(i).read();
                WorkerSnapshot { live_bytes, peak_bytes, requests, busy: ring.worker(i).is_busy() }
            };
            snapshot.workers = (0..host.workers).map(worker).collect();
        }
        snapshot
    }

    /// Takes a slot for a request that must be answered within `deadline` from now (or the default time).
    ///
    /// # Errors
    /// [`InferError::QueueFull`], [`InferError::NotReady`] or [`InferError::DeadlineUnmeetable`] at once, before any body
    /// is parsed.
    pub fn begin(self: &Arc<Self>, deadline: Option<Duration>) -> Result<Ticket, InferError> {
        self.try_begin(deadline).inspect_err(|e| {
            self.stats.failed(e);
            self.of_route(|r| r.edition.observed.failed(e));
        })
    }

    fn try_begin(self: &Arc<Self>, deadline: Option<Duration>) -> Result<Ticket, InferError> {
        loop {
            let Some(host) = self.host() else { return Err(self.without_host()) };
            let admitted = host.breaker.admit().map_err(|retry_after| {
                let reason = host.breaker.why().unwrap_or_default();
                InferError::BreakerOpen { reason, retry_after }
            })?;
            if let Some(deadline) = deadline {
                let estimate = self.wait_estimate(&host) + self.stats.p95_compute().unwrap_or_default();
                if estimate > deadline {
                    return Err(InferError::DeadlineUnmeetable { deadline, estimate });
                }
            }
            match host.take() {
                Ok(Some(slot)) => {
                    self.stats.pool_hits.fetch_add(1, Relaxed);
                    let deadline = deadline.unwrap_or(self.house.config.request_timeout);
                    let began = Instant::now();
                    if deadline >= DRAIN_TIMEOUT {
                        host.promise(began + deadline);
                    }
                    let admitted = Some(admitted);
                    return Ok(Ticket {
                        served: self.clone(),
                        host,
                        slot: Some(slot),
                        deadline,
                        began,
                        admitted,
                    });
                }
                Ok(None) => {
                    self.stats.pool_misses.fetch_add(1, Relaxed);
                    let slots = host.occupancy().1;
                    return Err(InferError::QueueFull { slots, retry_after: self.wait_estimate(&host) });
                }
                // Replaced since we looked: the next one has room. The same one still: it has ended by itself.
                Err(Closed) => {
                    if self.of_route(|r| r.host.as_ref().is_some_and(|h| Arc::ptr_eq(h, &host))) {
                        return Err(self.not_ready());
                    }
                }
            }
        }
    }

    /// Gives the answers of this model to a mirror as well, or to none any more. The caller holds a lock that keeps others from
    /// doing so: the set's or ours.
    pub(crate) fn set_mirror(&self, mirror: Option<Arc<Mirror>>) {
        self.mirrored.store(mirror.is_some(), Relaxed);
        self.mirror.store(mirror);
    }

    /// There is no host: because no engine is let work, or for now.
    fn without_host(&self) -> InferError {
        let edition = self.edition();
        let usable = self.usable(&edition);
        let first = usable.iter().map(|b| (b.retry_after(), b)).min_by_key(|(after, _)| *after);
        match first {
            // The least is there, so all of them are: every breaker is open.
            Some((Some(retry_after), breaker)) => {
                InferError::BreakerOpen { reason: breaker.why().unwrap_or_default(), retry_after }
            }
            _ => self.not_ready(),
        }
    }

    /// The breaker of the rung that serves, or would.
    #[must_use]
    pub fn breaker(&self) -> BreakerView {
        let edition = self.edition();
        let breaker =
            self.host().map_or_else(|| preferred(&self.usable(&edition), &edition), |h| h.breaker.clone());
        breaker.view(&self.stats)
    }

    /// The breakers of the rungs this image can run, the preferred one first.
    #[must_use]
    pub fn breakers(&self) -> Vec<BreakerView> {
        self.usable(&self.edition()).iter().map(|b| b.view(&self.stats)).collect()
    }

    /// Inputs that are refused at present because hosts ended with them.
    #[must_use]
    pub fn quarantined(&self) -> usize {
        self.edition().suspects.count()
    }

    /// The rungs this image can run and that have not come up in `host`, and why, where they were tried.
    pub(crate) fn unproven(&self, host: &Host) -> Vec<(Rung, Option<String>)> {
        let usable = self.usable(&host.edition);
        usable.iter().filter(|b| b.rung != host.rung).map(|b| (b.rung, b.why())).collect()
    }

    /// Requests per second all workers together finish, from measured service times.
    fn drain_rate(&self, host: &Host) -> Option<f64> {
        let service = self.stats.service_time()?.as_secs_f64();
        let workers = u32::try_from(host.workers).map_or(1.0, f64::from);
        (service > 0.0).then(|| workers / service)
    }

    /// How long the requests that wait now will take to drain.
    fn wait_estimate(&self, host: &Host) -> Duration {
        let waiting = u32::try_from(host.ring().waiting()).map_or(0.0, f64::from);
        self.drain_rate(host).map_or(Duration::ZERO, |rate| Duration::from_secs_f64(waiting / rate))
    }

    fn not_ready(&self) -> InferError {
        let state = self.state();
        let retry_after = match &state {
            State::Restarting { retry_at, .. } => retry_at.saturating_duration_since(Instant::now()),
            _ => Duration::from_secs(1),
        };
        let reason = match state {
            State::Starting { phase, .. } => phase.to_owned(),
            State::Restarting { reason, .. } => {
                format!("its engine host ended and is started again: {reason}")
            }
            State::Ready => "its engine host ended just now".to_owned(),
            State::Stopped => "it was unloaded".to_owned(),
        };
        InferError::NotReady { reason, retry_after }
    }

    // ------------------------------------------------------------------------------------------------ life of a host

    pub(crate) fn has_mirror(&self) -> bool {
        self.mirror.load().is_some()
    }

    /// Takes this mirror away, unless another one is there by now.
    pub(crate) fn drop_mirror(&self, mirror: &Arc<Mirror>) {
        let _shown = lock(&self.shown);
        if self.mirror.load().as_ref().is_some_and(|m| Arc::ptr_eq(m, mirror)) {
            self.set_mirror(None);
        }
    }

    /// Starts a host of `edition` that counts in `stats`. While it is `new`, an engine that refuses a network that was compiled for it
    /// refuses the model: another engine would serve, but what was made for this one would never be what it is for. What is not new
    /// served before, or nothing else does: then serving on another rung is better than not at all.
    pub(crate) async fn start(
        &self,
        edition: &Arc<Edition>,
        new: bool,
        phase: impl Fn(Phase),
    ) -> Result<Arc<Host>, StartError> {
        let usable = self.usable(edition);
        // Those that are well first, of equals the preferred one.
        let mut order = usable.clone();
        order.sort_by_key(|b| b.state());
        if order.iter().any(|b| !self.has_lent(edition, b.rung)) {
            order.retain(|b| !self.has_lent(edition, b.rung));
        }
        let mut first = None;
        for breaker in &order {
            // With another rung to turn to, a device is not put right before anything serves.
            let alone = usable.len() == 1;
            match self.start_on(edition, breaker.rung, alone, &phase).await {
                Ok(host) => return Ok(host),
                Err(e) if new && is_compiled(edition, breaker.rung) && e.is_the_models() => {
                    return Err(e);
                }
                Err(e) => {
                    if !alone {
                        if !breaker.is_open() {
                            breaker.trip(format!("it cannot be started: {e}"), &self.stats);
                        }
                        self.house.lost(breaker.rung.engine, &e);
                    }
                    first.get_or_insert(e);
                }
            }
        }
        Err(first.unwrap_or_else(|| {
            let has = EngineKind::ALL.into_iter().filter(|&e| self.house.program(e).is_some()).collect();
            StartError::Engine { wanted: edition.package.manifest.engines.clone(), has }
        }))
    }

    /// The breakers of the engines this image has, of those the manifest names; the preferred one first.
    fn usable(&self, edition: &Edition) -> Vec<Arc<Breaker>> {
        let here = |b: &&Arc<Breaker>| self.house.program(b.rung.engine).is_some();
        let mut usable: Vec<_> = edition.breakers.iter().filter(here).cloned().collect();
        if let Some(preferred) = edition.preferred() {
            usable.sort_by_key(|b| b.rung != preferred);
        }
        usable
    }

    /// Lets a candidate have the device of this engine, where the edition that serves has it and another rung to stand on: it has stepped
    /// down when this returns, no request failed by that, and steps up again when the lease is dropped.
    ///
    /// # Errors
    /// Why it keeps the device; `None` where it does not have it.
    pub(crate) async fn lend(self: &Arc<Self>, engine: EngineKind) -> Result<Lease, Option<String>> {
        let (edition, host) = self.of_route(|r| (r.edition.clone(), r.host.clone()));
        let host = host.filter(|h| h.rung.engine == engine).ok_or(None)?;
        let has_other = || self.usable(&edition).iter().any(|b| b.rung.engine != engine && !b.is_open());
        let alone = || Some("the edition that serves has no other rung to leave the device for".to_owned());
        if !has_other() {
            return Err(alone());
        }
        if lock(&self.lent).replace((edition.number, engine)).is_some() {
            return Err(Some("another candidate has the device".to_owned()));
        }
        let lease = Lease(self.clone());
        // A host of the next rung is started, then the one with the device finishes what is in it.
        let until = tokio::time::Instant::now() + LOAD_TIMEOUT + self.house.config.request_timeout;
        let mut look = look();
        loop {
            tokio::select! {
                _ = host.ended() => return Ok(lease),
                () = tokio::time::sleep_until(until) => {
                    return Err(Some("the edition that serves did not leave the device in time".to_owned()));
                }
                _ = look.tick() => {
                    let serves = self.of_route(|r| r.host.as_ref().is_some_and(|h| Arc::ptr_eq(h, &host)));
                    if serves && !has_other() {
                        return Err(alone());
                    }
                }
            }
        }
    }

    /// Whether the device of this rung of an edition is lent.
    fn has_lent(&self, edition: &Edition, rung: Rung) -> bool {
        *lock(&self.lent) == Some((edition.number, rung.engine))
    }

    /// Whether only one host at a time can have the device of this engine.
    pub(crate) fn has_one_owner(&self, engine: EngineKind) -> bool {
        self.house.has_one_owner(engine)
    }

    /// This edition's first rung here.
    pub(crate) fn first_rung(&self, edition: &Edition) -> Option<Rung> {
        self.usable(edition).first().map(|b| b.rung)
    }

    /// Has this rung go before the manifest's order from now on, or none; as long as this edition serves. It serves as soon as a host of
    /// it has come up beside the one that serves now and has answered a golden vector. What the manifest does not name is none.
    pub fn prefer(&self, rung: Option<Rung>) {
        let shown = &mut *lock(&self.shown);
        let (edition, host) = self.of_route(|r| (r.edition.clone(), r.host.clone()));
        let rung = rung.filter(|rung| edition.breakers.iter().any(|b| b.rung == *rung));
        if !edition.prefer(rung) {
            return;
        }
        let model = &edition.package.manifest.name;
        match rung {
            Some(rung) => tracing::info!(%model, %rung, "this rung is preferred"),
            None => tracing::info!(%model, "the manifest's order of rungs holds"),
        }
        // Who fell back from another rung to this one serves as it should.
        if let Some(host) = host.filter(|h| shown.fallback.as_ref().is_some_and(|f| f.to == h.rung)) {
            self.show_fallback(shown, &host);
        }
    }

    /// The rung that goes before the manifest's order, if there is one.
    #[must_use]
    pub fn preferred(&self) -> Option<Rung> {
        self.edition().preferred()
    }

    /// Starts a host of this rung. When its device is to blame that none comes up, and `recover`: puts it right, step by step.
    async fn start_on(
        &self,
        edition: &Arc<Edition>,
        rung: Rung,
        recover: bool,
        phase: &impl Fn(Phase),
    ) -> Result<Arc<Host>, StartError> {
        loop {
            let taken = self.house.steps_taken();
            match self.start_once(edition, rung, None, phase).await {
                Ok(host) => {
                    self.house.came_up(rung.engine);
                    return Ok(host);
                }
                Err(e) if recover && self.house.recover(rung.engine, &e, taken).await => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Starts a host of this rung and no other, with so many workers, for nobody: no breaker and no device hears of a failure.
    pub(crate) async fn start_audition(
        &self,
        edition: &Arc<Edition>,
        rung: Rung,
        workers: Option<usize>,
    ) -> Result<Arc<Host>, StartError> {
        self.start_once(edition, rung, workers, &|_| ()).await
    }

    async fn start_once(
        &self,
        edition: &Arc<Edition>,
        rung: Rung,
        workers: Option<usize>,
        phase: &impl Fn(Phase),
    ) -> Result<Arc<Host>, StartError> {
        let manifest = &edition.package.manifest;
        let Some(program) = self.house.program(rung.engine) else {
            return Err(StartError::System(format!("no program here has engine {}", rung.engine)));
        };
        let made_for = manifest.network(rung).and_then(|n| n.variant?.made_for.as_ref());
        if let (Some(made_for), Some(device)) = (made_for, self.house.device_name(rung.engine))
            && made_for.device != device
        {
            let why = format!(
                "its network for {rung} was compiled for {}, this device is {device}",
                made_for.device
            );
            return Err(StartError::Refused(Refusal::Load(why)));
        }
        let stands_in = self.usable(edition).first().is_some_and(|b| b.rung != rung);
        let workers = match rung.engine {
            // A network on a Hailo chip is one row of frames.
            EngineKind::Hailo => 1,
            _ => workers
                .or(manifest.budget.workers.map(usize::from))
                .unwrap_or(self.house.config.workers)
                .clamp(1, MAX_WORKERS),
        };
        let stride = Layout::new(&manifest.inputs, &manifest.outputs, 1).stride();
        let slots = match manifest.budget.queue {
            Some(q) => usize::from(q).min(MAX_RING_BYTES / stride),
            None => self.house.config.queue.min((DEFAULT_RING_BYTES / stride).max(2 * workers)),
        };
        let (stats, edition) = (self.stats.clone(), edition.clone());
        let slots = slots.clamp(1, MAX_SLOTS);
        Host::start(
            Plan { house: &self.house, edition, stats, workers, slots, rung, stands_in, program: &program },
            phase,
        )
        .await
    }

    /// Starts the model of `edition`, showing what it does while there is no other to show.
    pub(crate) async fn start_shown(&self, edition: &Arc<Edition>) -> Result<Arc<Host>, StartError> {
        let first = self.ready_since().is_none();
        let show = |phase| {
            if first {
                let phase = match phase {
                    Phase::Loading => "loading the model",
                    Phase::Building => "building the engine",
                    Phase::Golden => "running the golden vectors",
                };
                lock(&self.shown).state = State::Starting { phase, since: Instant::now() };
            }
        };
        self.start(edition, !first, show).await
    }

    /// Makes a host the one that requests go to. `shown` is the lock on ours.
    fn install(&self, shown: &mut Shown, edition: Arc<Edition>, host: Arc<Host>) {
        self.show(shown, &host);
        host.serves();
        self.way.store(Arc::new(Way::Straight(Route { edition, host: Some(host) })));
    }

    /// The face of a host that is only tried: whatever its rung, nothing has fallen back.
    pub(crate) fn show_audition(&self, edition: &Arc<Edition>, host: &Arc<Host>) {
        let mut shown = lock(&self.shown);
        self.only_measured.store(true, Relaxed);
        shown.state = State::Ready;
        shown.agreement = Some(host.agreement);
        shown.engine = host.engine_info();
        let route = Route { edition: edition.clone(), host: Some(host.clone()) };
        self.way.store(Arc::new(Way::Straight(route)));
    }

    /// A candidate's own face: its host, with nobody to start it again.
    pub(crate) fn show_alone(&self, edition: &Arc<Edition>, host: &Arc<Host>) {
        self.install(&mut lock(&self.shown), edition.clone(), host.clone());
    }

    fn show(&self, shown: &mut Shown, host: &Host) {
        shown.state = State::Ready;
        shown.ready_since.get_or_insert_with(Instant::now);
        shown.agreement = Some(host.agreement);
        shown.engine = host.engine_info();
        self.show_fallback(shown, host);
    }

    fn show_fallback(&self, shown: &mut Shown, host: &Host) {
        let best = preferred(&self.usable(&host.edition), &host.edition);
        let (from, to, model) = (best.rung, host.rung, host.manifest.name.to_string());
        match &shown.fallback {
            Some(f) if to == from => {
                tracing::info!(model, from = %f.to, %to, "the preferred one serves again");
                self.house.events.tell(HostEvent::WentBack { model, from: f.to, to });
                shown.fallback = None;
            }
            Some(f) if (f.from, f.to) == (from, to) => {}
            None if to == from => {}
            _ => {
                let reason = match self.has_lent(&host.edition, from) {
                    true => LENT.to_owned(),
                    false => best.why().unwrap_or_default(),
                };
                tracing::warn!(model, %from, %to, reason, "another rung serves");
                shown.fallback = Some(Fallback { from, to, reason: reason.clone(), since: Instant::now() });
                self.house.events.tell(HostEvent::FellBack { model, from, to, reason });
            }
        }
    }

    /// Waits until `host` ends; meanwhile goes to another rung when it should, and puts the new host in its place.
    /// `None`: the model is replaced or unloaded.
    async fn until_end(
        &self,
        edition: &Arc<Edition>,
        host: &mut Arc<Host>,
        generation: u64,
    ) -> Option<crate::host::Ended> {
        let several = self.usable(edition).len() > 1;
        let serving = ArcSwap::new(host.clone());
        // Going up takes long when a device hangs or an engine is built: meanwhile what serves may fall, and going down waits for nothing.
        let mut better = pin!(self.better(edition, &serving, generation));
        loop {
            let standby = tokio::select! {
                biased;
                ended = host.ended() => return Some(ended),
                standby = &mut better, if several => {
                    better.set(self.better(edition, &serving, generation));
                    standby
                }
                standby = self.next(edition, host), if several => standby,
                why = self.dead_inside(edition, host) => {
                    let model = &edition.package.manifest.name;
                    tracing::warn!(%model, pid = host.pid, why, "an engine host lives and does not compute; another one is started");
                    finish(host, true).await;
                    return Some(crate::host::Ended { how: End::Crash, reason: why });
                }
            };
            let Some(new) = standby.host() else { continue };
            let old = {
                let mut shown = lock(&self.shown);
                if shown.generation != generation {
                    new.stop();
                    return None;
                }
                self.install(&mut shown, edition.clone(), new.clone());
                serving.store(new.clone());
                std::mem::replace(host, new)
            };
            // What is in it is finished by it; nobody waits for that.
            tokio::spawn(async move { finish(&old, true).await });
        }
    }

    /// Waits until a host of a rung before that of `serving` should serve: one that is well again, or preferred now.
    async fn better(&self, edition: &Arc<Edition>, serving: &ArcSwap<Host>, generation: u64) -> Standby {
        let mut look = look();
        loop {
            look.tick().await;
            let usable = self.usable(edition);
            let host = serving.load_full();
            let here = usable.iter().position(|b| b.rung == host.rung).unwrap_or(usable.len());
            for breaker in usable[..here].iter().filter(|b| !self.has_lent(edition, b.rung)) {
                let recovers = self.house.recovers(breaker.rung.engine);
                if recovers || !breaker.is_open() {
                    if let Some(standby) = self.try_again(edition, breaker, recovers).await {
                        return standby;
                    }
                    // One that is preferred since a moment ago and does not come up has been fallen back from only now.
                    let shown = &mut *lock(&self.shown);
                    if breaker.is_open() && shown.generation == generation {
                        self.show_fallback(shown, &serving.load());
                    }
                }
            }
        }
    }

    /// Waits until a host of a rung after that of `host` should serve, because `host`'s breaker is open or its device is lent.
    async fn next(&self, edition: &Arc<Edition>, host: &Host) -> Standby {
        let mut look = look();
        loop {
            look.tick().await;
            let lent = self.has_lent(edition, host.rung);
            if !lent && !host.breaker.is_open() {
                continue;
            }
            let usable = self.usable(edition);
            let here = usable.iter().position(|b| b.rung == host.rung).unwrap_or(usable.len());
            // Who leaves a device that is well may have come to it from a rung that is better or as good.
            let from = if lent { 0 } else { here + 1 };
            let others = usable.iter().skip(from).filter(|b| !b.is_open() && !self.has_lent(edition, b.rung));
            for breaker in others {
                match self.start_on(edition, breaker.rung, false, &|_| ()).await {
                    Ok(host) => return Standby(Some(host)),
                    Err(e) if !breaker.is_open() => {
                        breaker.trip(format!("it cannot be started: {e}"), &self.stats);
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// Waits until `host`'s breaker has opened where no other rung can be turned to, and the host fails on its golden vectors as well:
    /// its process lives, and what is in it does not come back by itself (a GPU's context is lost for good, say). One that answers them is
    /// well, and what opened the breaker were the requests. The sentence says what it failed on.
    async fn dead_inside(&self, edition: &Arc<Edition>, host: &Host) -> String {
        let mut look = look();
        let mut known = host.breaker.openings();
        loop {
            look.tick().await;
            let openings = host.breaker.openings();
            let others = |b: &&Arc<Breaker>| b.rung != host.rung;
            if openings == known || self.usable(edition).iter().filter(others).any(|b| !b.is_open()) {
                continue;
            }
            let golden = &edition.package.golden;
            // Every worker is likely to get one.
            let times = golden.cases().len().max(2 * host.workers);
            known = openings;
            for case in (0..golden.cases().len()).cycle().take(times) {
                match golden_case(host, golden, case).await {
                    Ok(()) => {}
                    // Requests have all slots yet.
                    Err(InferError::QueueFull { .. }) => {
                        known = openings - 1;
                        break;
                    }
                    // Who waits for its end hears of it.
                    Err(InferError::HostLost { .. }) => break,
                    Err(e) => return format!("it failed on requests and on golden case {case}: {e}"),
                }
            }
        }
    }

    /// Tries a rung that did not work: a host must come up, and golden vectors be answered until its breaker has closed.
    async fn try_again(
        &self,
        edition: &Arc<Edition>,
        breaker: &Arc<Breaker>,
        hurry: bool,
    ) -> Option<Standby> {
        if hurry {
            breaker.hurry();
        }
        let mut admitted = breaker.admit().ok()?;
        let host = match self.start_on(edition, breaker.rung, true, &|_| ()).await {
            Ok(host) => Standby(Some(host)),
            Err(e) => {
                if !breaker.is_open() {
                    breaker.trip(format!("it cannot be started: {e}"), &self.stats);
                }
                return None;
            }
        };
        let golden = &edition.package.golden;
        for case in (0..golden.cases().len()).cycle() {
            let Some(trying) = &host.0 else { break };
            match golden_case(trying, golden, case).await {
                Ok(()) => admitted.succeeded(),
                // It has told the breaker itself.
                Err(InferError::HostLost { .. }) => return None,
                Err(_) => {
                    admitted.failed(Failure::Engine, &self.stats);
                    return None;
                }
            }
            if breaker.is_closed() {
                return Some(host);
            }
            admitted = breaker.admit().ok()?;
        }
        None
    }

    /// Keeps a model running: when its host ends, starts another; at once the first time, then with growing pauses until
    /// one has lived for [`SETTLED`]. Ends when the model is replaced or unloaded.
    async fn supervise(self: Arc<Self>, edition: Arc<Edition>, mut host: Arc<Host>, generation: u64) {
        let mut failures = 0_u32;
        loop {
            let (began, served_before) = (Instant::now(), self.stats.success.load(Relaxed));
            let Some(ended) = self.until_end(&edition, &mut host, generation).await else { return };
            let mut reason = ended.reason;
            let useful = self.stats.success.load(Relaxed) > served_before;
            failures = if began.elapsed() >= SETTLED { 0 } else { failures + 1 };
            loop {
                // One that answers between its ends is a nuisance; one that never does would only burn the processor.
                let longest = if useful { BACKOFF_USEFUL } else { BACKOFF_MAX };
                let pause = backoff(failures).min(longest).min(self.house.config.backoff_max);
                {
                    let mut shown = lock(&self.shown);
                    if shown.generation != generation {
                        return;
                    }
                    let route = Route { edition: edition.clone(), host: None };
                    self.way.store(Arc::new(Way::Straight(route)));
                    let retry_at = Instant::now() + pause;
                    shown.state = State::Restarting { reason: reason.clone(), retry_at, failures };
                }
                tokio::time::sleep(pause).await;
                match self.start(&edition, false, |_| ()).await {
                    Ok(h) => {
                        let unneeded = {
                            let mut shown = lock(&self.shown);
                            let unneeded = shown.generation != generation;
                            if !unneeded {
                                self.install(&mut shown, edition.clone(), h.clone());
                            }
                            unneeded
                        };
                        if unneeded {
                            return finish(&h, false).await;
                        }
                        host = h;
                        break;
                    }
                    Err(e) => {
                        failures += 1;
                        reason = e.to_string();
                        let model = &edition.package.manifest.name;
                        tracing::error!(%model, error = reason, failures, "engine host not started");
                    }
                }
            }
        }
    }
}

/// How often a model that may run on several engines looks whether it should run on another one.
const LOOK: Duration = Duration::from_millis(100);

/// Whether what this rung runs was compiled for a device.
fn is_compiled(edition: &Edition, rung: Rung) -> bool {
    let network = edition.package.manifest.network(rung);
    network.is_some_and(|n| n.variant.is_some_and(|v| v.format != NetworkFormat::Onnx))
}

fn look() -> tokio::time::Interval {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    look
}

/// A host that nobody is sent to yet. Dropping it ends it.
struct Standby(Option<Arc<Host>>);

impl Standby {
    fn host(mut self) -> Option<Arc<Host>> {
        self.0.take()
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some(host) = self.0.take() {
            host.stop();
        }
    }
}

fn preferred(usable: &[Arc<Breaker>], edition: &Edition) -> Arc<Breaker> {
    // A manifest names at least one rung.
    usable.first().unwrap_or(&edition.breakers[0]).clone()
}

/// Runs one golden case through a host that serves nobody.
async fn golden_case(host: &Host, golden: &Golden, case: usize) -> Result<(), InferError> {
    let not = |why: &str| InferError::Engine(why.to_owned());
    let mut slot = match host.take() {
        Ok(Some(slot)) => slot,
        Ok(None) => {
            let slots = host.occupancy().1;
            return Err(InferError::QueueFull { slots, retry_after: Duration::ZERO });
        }
        Err(Closed) => {
            let reason = "it has ended".to_owned();
            return Err(InferError::HostLost { reason, retry_after: Duration::ZERO });
        }
    };
    for (i, bytes) in golden.cases()[case].inputs.iter().enumerate() {
        host.ring().input_mut(&mut slot, i).copy_from_slice(bytes);
    }
    let mut pending = Pending { host, at: host.submit(slot), armed: true };
    let (slot, _) = host.wait(pending.at).await?;
    pending.armed = false;
    let ring = host.ring();
    let outputs: Vec<&[u8]> = (0..host.manifest.outputs.len()).map(|i| ring.output(&slot, i)).collect();
    let agreed = golden.compare(case, &outputs, &host.manifest, host.manifest.tolerance(host.rung));
    drop(outputs);
    host.give(slot);
    agreed.map(|_| ()).map_err(|e| not(&e.to_string()))
}

/// The device that an edition has lent; it has it back when this is dropped.
pub(crate) struct Lease(Arc<Served>);

impl Drop for Lease {
    fn drop(&mut self) {
        *lock(&self.0.lent) = None;
    }
}

/// Another rung than the preferred one serves a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    /// The preferred rung.
    pub from: Rung,
    /// The rung that serves.
    pub to: Rung,
    /// One sentence for the operator.
    pub reason: String,
    /// Since when.
    pub since: Instant,
}

/// One name's part in a turn of the routes.
pub(crate) struct Turn {
    /// The name.
    pub served: Arc<Served>,
    /// What it serves from then on; `None`: nothing any more.
    pub to: Option<(Arc<Edition>, Arc<Host>)>,
}

/// Turns the routes of all these names at one instant; the hosts that serve no more. Requests in flight stay where they are.
/// Every name is in `turns` once, and the caller holds the lock of the set.
pub(crate) fn turn_all(turns: Vec<Turn>) -> Vec<Arc<Host>> {
    // Nobody but us ever holds two of these locks, and there is one of us at a time (the lock of the set): any order will do.
    let mut shown: Vec<MutexGuard<'_, Shown>> = turns.iter().map(|t| lock(&t.served.shown)).collect();
    let turned = Arc::new(AtomicBool::new(false));
    let routes: Vec<(Route, Route)> = turns
        .iter()
        .map(|turn| {
            let old = turn.served.of_route(Route::clone);
            let new = match &turn.to {
                Some((edition, host)) => Route { edition: edition.clone(), host: Some(host.clone()) },
                None => Route { edition: old.edition.clone(), host: None },
            };
            let way = Way::Turning { old: old.clone(), new: new.clone(), turned: turned.clone() };
            turn.served.way.store(Arc::new(way));
            (old, new)
        })
        .collect();
    for turn in &turns {
        turn.served.set_mirror(None);
        if let Some((edition, host)) = &turn.to {
            turn.served.stats.forget_latencies();
            edition.observed.begin();
            host.count_in(&turn.served.stats);
            host.serves();
        }
    }
    turned.store(true, SeqCst);
    let mut ended = Vec::with_capacity(turns.len());
    for ((turn, shown), (old, new)) in turns.iter().zip(&mut shown).zip(routes) {
        turn.served.way.store(Arc::new(Way::Straight(new)));
        shown.generation += 1;
        match &turn.to {
            Some((edition, host)) => {
                turn.served.show(shown, host);
                let supervisor =
                    turn.served.clone().supervise(edition.clone(), host.clone(), shown.generation);
                tokio::spawn(supervisor);
            }
            None => shown.state = State::Stopped,
        }
        ended.extend(old.host);
    }
    ended
}

/// Lets a host that gets no new requests finish what it has, then ends it. A `patient` end waits for as long as any request
/// in it may still be answered in time; another one for [`DRAIN_TIMEOUT`] at most.
pub(crate) async fn finish(host: &Host, patient: bool) {
    let mut until = tokio::time::Instant::now() + DRAIN_TIMEOUT;
    if let (true, Some(promised)) = (patient, host.promised()) {
        until = until.max(promised.into());
    }
    if tokio::time::timeout_at(until, host.drained()).await.is_err() {
        tracing::warn!(pid = host.pid, "a replaced engine host did not finish in time and is killed");
    }
    host.close();
    host.stop();
    host.ended().await;
}

fn backoff(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        1 => Duration::ZERO,
        n => BACKOFF_FIRST.saturating_mul(1 << (n - 2).min(16)),
    }
}

fn resident(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section above is a few assignments; one that panicked has left nothing half-done.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slot that is being filled. Dropping it frees the slot.
pub struct Ticket {
    served: Arc<Served>,
    host: Arc<Host>,
    slot: Option<Slot>,
    deadline: Duration,
    began: Instant,
    /// The breaker's leave; it hears of the outcome.
    admitted: Option<Admitted>,
}

impl Ticket {
    /// The manifest this slot was sized from.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.host.manifest
    }

    /// Input `i`'s bytes: exactly the tensor's length, 64-byte aligned, content of some earlier request (write all of it).
    ///
    /// # Panics
    /// When the manifest has no input `i`.
    pub fn input_mut(&mut self, i: usize) -> &mut [u8] {
        let host = &self.host;
        let slot = self.slot.as_mut().expect("only `run`, which consumes the ticket, takes the slot");
        host.ring().input_mut(slot, i)
    }

    /// Input `i` as f32, when its type is FP32.
    ///
    /// # Panics
    /// When the manifest has no input `i`.
    pub fn input_f32_mut(&mut self, i: usize) -> Option<&mut [f32]> {
        if self.host.manifest.inputs[i].dtype != DType::Fp32 {
            return None;
        }
        <[f32]>::mut_from_bytes(self.input_mut(i)).ok()
    }

    /// Queues the request and waits for its answer. Dropping the future gives the request up: it is cancelled if no worker
    /// has it yet, and its answer is dropped otherwise.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn run(mut self) -> Result<Answer, InferError> {
        let outcome = self.run_inner().await;
        let admitted = self.admitted.take();
        let observed = (!self.served.only_measured.load(Relaxed)).then_some(&self.host.edition.observed);
        match &outcome {
            Ok(answer) => {
                if let Some(admitted) = admitted {
                    admitted.succeeded();
                }
                self.served.stats.succeeded(answer.timing);
                if let Some(observed) = observed {
                    observed.answered(answer.timing.compute, self.host.stands_in, |i| answer.output(i));
                }
            }
            Err(e) => {
                // A host that ended has told the breaker itself, once for all that were in it.
                let failure = match e {
                    InferError::Panicked { .. } => Some(Failure::Panic),
                    InferError::Engine(_) => Some(Failure::Engine),
                    _ => None,
                };
                if let (Some(admitted), Some(failure)) = (admitted, failure) {
                    admitted.failed(failure, &self.served.stats);
                }
                self.served.stats.failed(e);
                if let Some(observed) = observed.filter(|_| !self.host.is_the_devices(e)) {
                    observed.failed(e);
                }
            }
        }
        outcome
    }

    /// The digest of the input, while anybody is suspected.
    fn digest(&self) -> Option<Digest> {
        self.slot.as_ref().filter(|_| self.host.edition.suspects.any()).map(|slot| self.host.digest(slot))
    }

    async fn run_inner(&mut self) -> Result<Answer, InferError> {
        let digest = self.digest();
        let suspects = &self.host.edition.suspects;
        if let Some((ends, remaining)) = digest.and_then(|d| suspects.refused(d)) {
            return Err(InferError::Quarantined { ends, remaining });
        }
        let Some(slot) = self.slot.take() else { return Err(InferError::Engine("no slot".into())) };
        let mut pending = Pending { host: &self.host, at: self.host.submit(slot), armed: true };
        let until = tokio::time::Instant::from_std(self.began + self.deadline);
        match tokio::time::timeout_at(until, self.host.wait(pending.at)).await {
            Err(_) => Err(InferError::DeadlineExceeded { deadline: self.deadline }),
            Ok(Ok((slot, timing))) => {
                pending.armed = false;
                if let Some(digest) = digest {
                    suspects.acquit(digest);
                }
                let mirror = match self.served.mirrored.load(Relaxed) {
                    true => self.served.mirror.load_full(),
                    false => None,
                };
                Ok(Answer { host: self.host.clone(), slot: Some(slot), timing, mirror })
            }
            Ok(Err(e)) => {
                pending.armed = false;
                Err(match e {
                    // The next host is up in some milliseconds unless it keeps dying; the state knows.
                    InferError::HostLost { reason, .. } => {
                        let retry_after = match self.served.state() {
                            State::Restarting { retry_at, .. } => {
                                retry_at.saturating_duration_since(Instant::now())
                            }
                            _ => Duration::ZERO,
                        };
                        InferError::HostLost { reason, retry_after }
                    }
                    other => other,
                })
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.host.give(slot);
        }
    }
}

/// A submitted request; gives it up when dropped before its answer came.
struct Pending<'a> {
    host: &'a Host,
    at: Submitted,
    armed: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.host.abandon(self.at);
        }
    }
}

/// An answer, still in its slot. Dropping it frees the slot.
pub struct Answer {
    host: Arc<Host>,
    slot: Option<Slot>,
    timing: Timing,
    /// Who gets a copy of request and answer once the caller is done with it.
    mirror: Option<Arc<Mirror>>,
}

impl Answer {
    /// Output `i`'s bytes.
    ///
    /// # Panics
    /// When the manifest has no output `i`.
    #[must_use]
    pub fn output(&self, i: usize) -> &[u8] {
        let slot = self.slot.as_ref().expect("only `drop` takes the slot");
        self.host.ring().output(slot, i)
    }

    /// Output `i` as f32, when its type is FP32.
    ///
    /// # Panics
    /// When the manifest has no output `i`.
    #[must_use]
    pub fn output_f32(&self, i: usize) -> Option<&[f32]> {
        if self.host.manifest.outputs[i].dtype != DType::Fp32 {
            return None;
        }
        <[f32]>::ref_from_bytes(self.output(i)).ok()
    }

    /// Input `i` as f32 as it was handed in, when its type is FP32: normalisation does not touch it.
    ///
    /// # Panics
    /// When the manifest has no input `i`.
    #[must_use]
    pub fn input_f32(&self, i: usize) -> Option<&[f32]> {
        if self.host.manifest.inputs[i].dtype != DType::Fp32 {
            return None;
        }
        let slot = self.slot.as_ref().expect("only `drop` takes the slot");
        <[f32]>::ref_from_bytes(self.host.ring().input(slot, i)).ok()
    }

    /// The model that answered.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.host.manifest
    }

    /// The rung that answered.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.host.rung
    }

    /// How near it has to come to the golden vectors.
    #[must_use]
    pub fn tolerance(&self) -> Tolerance {
        self.host.manifest.tolerance(self.host.rung)
    }

    /// The rung that answered, when it is not the preferred one of those this image can run.
    #[must_use]
    pub fn stand_in(&self) -> Option<Rung> {
        self.host.stands_in.then_some(self.host.rung)
    }

    /// Time in the queue, and time computing.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            if let Some(mirror) = &self.mirror {
                mirror.offer(&self.host, &slot, self.timing);
            }
            self.host.give(slot);
        }
    }
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From queued to taken by a worker.
    pub queue: Duration,
    /// In the worker: normalisation and engine.
    pub compute: Duration,
}

/// Milliseconds, begun ones counted whole: of a deadline of 1 ms a part has passed before it is told, and none is 0 ms.
fn whole_ms(time: &Duration) -> u128 {
    time.as_nanos().div_ceil(1_000_000).max(1)
}

/// Why there is no answer. Every one is honest: nothing is made up.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InferError {
    #[error("all {slots} slots are taken")]
    QueueFull { slots: usize, retry_after: Duration },
    #[error("the model is not ready: {reason}")]
    NotReady { reason: String, retry_after: Duration },
    #[error("a deadline of {} ms cannot be met: an answer takes about {} ms at present", whole_ms(.deadline), whole_ms(.estimate))]
    DeadlineUnmeetable { deadline: Duration, estimate: Duration },
    #[error("no answer within {} ms", whole_ms(.deadline))]
    DeadlineExceeded { deadline: Duration },
    #[error("the engine host ended while this request was in it: {reason}")]
    HostLost { reason: String, retry_after: Duration },
    #[error("the engine panicked on this request; it was contained")]
    Panicked { message: String },
    #[error("{0}")]
    Engine(String),
    /// A value of the request, or one that came out of it, is none of its element type. It says nothing about the engine.
    #[error("{0}")]
    Value(String),
    #[error("the engine keeps failing and is given a rest: {reason}")]
    BreakerOpen { reason: String, retry_after: Duration },
    #[error("{ends} engine hosts ended while they ran this very input; it is refused for another {} s", .remaining.as_secs() + 1)]
    Quarantined { ends: u32, remaining: Duration },
}

impl InferError {
    /// Every kind, in the order metrics show them.
    pub const KINDS: [&'static str; 9] = [
        "queue_full",
        "model_unavailable",
        "deadline_unmeetable",
        "timeout",
        "host_lost",
        "panic",
        "engine_error",
        "breaker_open",
        "quarantined",
    ];

    /// The kind in metrics and answers; one of [`InferError::KINDS`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::NotReady { .. } => "model_unavailable",
            Self::DeadlineUnmeetable { .. } => "deadline_unmeetable",
            Self::DeadlineExceeded { .. } => "timeout",
            Self::HostLost { .. } => "host_lost",
            Self::Panicked { .. } => "panic",
            Self::Engine(_) | Self::Value(_) => "engine_error",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Quarantined { .. } => "quarantined",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_deadline_is_told_in_whole_milliseconds_and_never_as_none() {
        let told = |micros| {
            let deadline = Duration::from_micros(micros);
            let estimate = Duration::from_micros(300);
            InferError::DeadlineUnmeetable { deadline, estimate }.to_string()
        };
        for (micros, ms) in [(0, 1), (960, 1), (1000, 1), (1001, 2), (59_990, 60)] {
            let sentence =
                format!("a deadline of {ms} ms cannot be met: an answer takes about 1 ms at present");
            assert_eq!(told(micros), sentence, "{micros}");
        }
        let exceeded = InferError::DeadlineExceeded { deadline: Duration::from_micros(4) };
        assert_eq!(exceeded.to_string(), "no answer within 1 ms");
    }
}
