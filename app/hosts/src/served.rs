//! The face of the room: the set of models, one model, one request.

use crate::cgroup;
use crate::child::Phase;
use crate::host::{Host, Plan, Submitted};
use crate::limits::{
    BACKOFF_FIRST, BACKOFF_MAX, BACKOFF_USEFUL, DEFAULT_RING_BYTES, DRAIN_TIMEOUT, MAX_RING_BYTES, MAX_SLOTS,
    MAX_WORKERS, SETTLED,
};
use crate::package::{LoadError, Package};
use crate::ring::{Layout, Slot};
use crate::stats::Stats;
use arc_swap::{ArcSwap, ArcSwapOption};
use inferd_model::{Agreement, DType, EngineKind, Golden, Manifest};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// Settings of the hosts.
#[derive(Clone, Debug)]
pub struct HostsConfig {
    /// The program to run as `PROGRAM engine-host`; the daemon's own executable.
    pub program: PathBuf,
    /// Worker threads per CPU host when the manifest does not say.
    pub workers: usize,
    /// Slots (running + waiting requests) per model when the manifest does not say. Models with large tensors get fewer,
    /// so that a ring stays below 64 MiB.
    pub queue: usize,
    /// How long a request that names no deadline waits for its answer, queue included.
    pub request_timeout: Duration,
    /// The longest pause before a host that keeps ending is started again.
    pub backoff_max: Duration,
    /// Where cgroups for hosts are made (`/sys/fs/cgroup/inferd`); `None`, or not writable: `RLIMIT_DATA` is used.
    pub cgroup_root: Option<PathBuf>,
}

impl Default for HostsConfig {
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            queue: 128,
            request_timeout: Duration::from_secs(5),
            backoff_max: BACKOFF_MAX,
            cgroup_root: None,
        }
    }
}

/// All models that are served.
pub struct Hosts {
    config: HostsConfig,
    models: Mutex<BTreeMap<String, Arc<Served>>>,
    /// Per name: one load or unload at a time, from the look-up to the end.
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Load failures that still stand, by model name or directory.
    errors: Mutex<BTreeMap<String, String>>,
    /// Where each model that was ever loaded (or tried) came from.
    directories: Mutex<BTreeMap<String, PathBuf>>,
    /// Loads that are announced and not over.
    announced: Arc<AtomicUsize>,
    serial: Arc<AtomicU64>,
}

/// Most load failures that are remembered.
const MAX_ERRORS: usize = 64;

impl Hosts {
    /// An empty set. Loading must happen within the tokio runtime that serves.
    #[must_use]
    pub fn new(config: HostsConfig) -> Arc<Self> {
        let config = HostsConfig {
            workers: config.workers.clamp(1, MAX_WORKERS),
            queue: config.queue.clamp(1, MAX_SLOTS),
            cgroup_root: config.cgroup_root.filter(|root| match cgroup::usable(root) {
                Ok(()) => true,
                Err(e) => {
                    tracing::info!(reason = %e, "no control groups for engine hosts: RLIMIT_DATA caps their memory");
                    false
                }
            }),
            ..config
        };
        if let Some(root) = &config.cgroup_root {
            cgroup::sweep(root);
        }
        Arc::new(Self {
            config,
            models: Mutex::default(),
            turns: Mutex::default(),
            errors: Mutex::default(),
            directories: Mutex::default(),
            announced: Arc::default(),
            serial: Arc::default(),
        })
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &HostsConfig {
        &self.config
    }

    /// The model of this name, if one is (or is being) served.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Served>> {
        lock(&self.models).get(name).cloned()
    }

    /// Every model, sorted by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Served>> {
        lock(&self.models).values().cloned().collect()
    }

    /// The directory a model came from, also after it was unloaded.
    #[must_use]
    pub fn directory(&self, name: &str) -> Option<PathBuf> {
        lock(&self.directories).get(name).cloned()
    }

    /// Every model that was ever loaded or tried, with its directory, sorted by name.
    #[must_use]
    pub fn known(&self) -> Vec<(String, PathBuf)> {
        lock(&self.directories).iter().map(|(n, d)| (n.clone(), d.clone())).collect()
    }

    /// Announces that models are about to be loaded; [`Hosts::loading`] says so until the guard is dropped.
    #[must_use]
    pub fn announce_loading(&self) -> Announced {
        self.announced.fetch_add(1, Relaxed);
        Announced(self.announced.clone())
    }

    /// Whether more models are about to come: the list is not complete yet.
    #[must_use]
    pub fn loading(&self) -> bool {
        self.announced.load(Relaxed) > 0
    }

    /// Why the last load of this model (by name or directory) failed, if nothing succeeded since.
    #[must_use]
    pub fn last_load_error(&self, name: &str) -> Option<String> {
        lock(&self.errors).get(name).cloned()
    }

    /// Every load failure that still stands: (name or directory, reason).
    #[must_use]
    pub fn load_errors(&self) -> Vec<(String, String)> {
        lock(&self.errors).iter().map(|(n, e)| (n.clone(), e.clone())).collect()
    }

    /// Loads the model of a directory, or replaces the one of the same name: the new one takes over only after its golden
    /// vectors passed; on any error the old one goes on serving. Requests in flight end on the old one, and this returns
    /// when its host is gone, so there are never more than two hosts for one name.
    ///
    /// # Errors
    /// [`LoadError`], one sentence for the operator.
    pub async fn load(self: &Arc<Self>, dir: &Path) -> Result<Arc<Served>, LoadError> {
        let directory = dir.display().to_string();
        let read = {
            let dir = dir.to_owned();
            tokio::task::spawn_blocking(move || Package::read(&dir)).await
        };
        let package = match read.map_err(|e| LoadError(format!("{directory}: {e}"))).and_then(|r| r) {
            Ok(p) => Arc::new(p),
            Err(e) => {
                self.remember_error(&directory, &e);
                return Err(e);
            }
        };
        let name = package.manifest.name.to_string();
        let turn = self.turn(&name);
        let _turn = turn.lock().await;
        lock(&self.directories).entry(name.clone()).or_insert_with(|| dir.to_owned());
        let served = {
            let mut models = lock(&self.models);
            let fresh = || Arc::new(Served::new(package.clone(), self.config.clone(), self.serial.clone()));
            models.entry(name.clone()).or_insert_with(fresh).clone()
        };
        match served.replace(package).await {
            Ok(()) => {
                lock(&self.directories).insert(name.clone(), dir.to_owned());
                let mut errors = lock(&self.errors);
                errors.remove(&name);
                errors.remove(&directory);
                Ok(served)
            }
            Err(reason) => {
                let e = LoadError(format!("model {name}: {reason}"));
                self.remember_error(&name, &e);
                if served.ready_since().is_none() {
                    lock(&self.models).remove(&name);
                }
                Err(e)
            }
        }
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.turns).entry(name.to_owned()).or_default().clone()
    }

    fn remember_error(&self, key: &str, e: &LoadError) {
        tracing::error!(error = %e, "model not loaded");
        let mut errors = lock(&self.errors);
        if errors.len() < MAX_ERRORS || errors.contains_key(key) {
            errors.insert(key.to_owned(), e.0.clone());
        }
    }

    /// Stops serving a model, after the requests in flight.
    ///
    /// # Errors
    /// When no model has this name.
    pub async fn unload(&self, name: &str) -> Result<(), LoadError> {
        if self.get(name).is_none() {
            return Err(LoadError(format!("no model is called {name:?}")));
        }
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let served = lock(&self.models).remove(name);
        let Some(served) = served else { return Err(LoadError(format!("no model is called {name:?}"))) };
        served.retire().await;
        Ok(())
    }

    /// Ends all hosts, after the requests in flight.
    pub async fn shutdown(&self) {
        let all = std::mem::take(&mut *lock(&self.models));
        let mut ends = tokio::task::JoinSet::new();
        for served in all.into_values() {
            ends.spawn(async move { served.retire().await });
        }
        while ends.join_next().await.is_some() {}
    }
}

/// An announced load; over when dropped.
pub struct Announced(Arc<AtomicUsize>);

impl Drop for Announced {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One served model: its manifest, its host (restarted as often as needed), its queue and its numbers.
pub struct Served {
    config: HostsConfig,
    serial: Arc<AtomicU64>,
    stats: Arc<Stats>,
    /// The accepted model; before the first one is accepted, the candidate.
    package: ArcSwap<Package>,
    live: ArcSwapOption<Host>,
    /// What changes together with `package` and `live`: all three only under this lock.
    shown: Mutex<Shown>,
}

struct Shown {
    /// Counted up when the model is replaced or unloaded; a supervisor of an older one ends.
    generation: u64,
    state: State,
    ready_since: Option<Instant>,
    agreement: Option<Agreement>,
    engine: EngineInfo,
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

/// The numbers of a model since it was first loaded (they survive restarts of the host and reloads).
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
    /// Host endings by cause: `oom`, `deadline`, `signal`, `crash`, `protocol`.
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
    /// Exact (p50, p95, p99) of compute over the last 1024 successes.
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
    /// `cpu`, `ort`, ...; empty before the first start.
    pub kind: &'static str,
    /// Library and version.
    pub version: String,
    /// Device name.
    pub device: String,
}

impl Served {
    fn new(package: Arc<Package>, config: HostsConfig, serial: Arc<AtomicU64>) -> Self {
        Self {
            config,
            serial,
            stats: Arc::new(Stats::new()),
            package: ArcSwap::new(package),
            live: ArcSwapOption::empty(),
            shown: Mutex::new(Shown {
                generation: 0,
                state: State::Starting { phase: "starting", since: Instant::now() },
                ready_since: None,
                agreement: None,
                engine: EngineInfo::default(),
            }),
        }
    }

    /// What the model is.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.package.load().manifest.clone()
    }

    /// The directory it was loaded from.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.package.load().dir.clone()
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
        self.package.load().motif_weights.clone()
    }

    /// The golden vectors: raw inputs and expected outputs.
    #[must_use]
    pub fn golden(&self) -> Arc<Golden> {
        self.package.load().golden.clone()
    }

    /// The numbers.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let s = &self.stats;
        let host = self.live.load_full();
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
            let worker = |i| {
                let (live_bytes, peak_bytes, requests, _) = ring.worker(i).read();
                WorkerSnapshot { live_bytes, peak_bytes, requests }
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
        self.try_begin(deadline).inspect_err(|e| self.stats.failed(e))
    }

    fn try_begin(self: &Arc<Self>, deadline: Option<Duration>) -> Result<Ticket, InferError> {
        let Some(host) = self.live.load_full() else { return Err(self.not_ready()) };
        if let Some(deadline) = deadline {
            let estimate = self.wait_estimate(&host) + self.stats.p95_compute().unwrap_or_default();
            if estimate > deadline {
                return Err(InferError::DeadlineUnmeetable { deadline, estimate });
            }
        }
        match host.take() {
            Ok(Some(slot)) => {
                self.stats.pool_hits.fetch_add(1, Relaxed);
                let deadline = deadline.unwrap_or(self.config.request_timeout);
                Ok(Ticket { served: self.clone(), host, slot: Some(slot), deadline, began: Instant::now() })
            }
            Ok(None) => {
                self.stats.pool_misses.fetch_add(1, Relaxed);
                let slots = host.occupancy().1;
                Err(InferError::QueueFull { slots, retry_after: self.wait_estimate(&host) })
            }
            Err(_) => Err(self.not_ready()),
        }
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

    async fn start(&self, package: &Package, phase: impl Fn(Phase)) -> Result<Arc<Host>, String> {
        let manifest = &package.manifest;
        if !manifest.engines.contains(&EngineKind::Cpu) {
            let wanted: Vec<_> = manifest.engines.iter().map(|e| e.name()).collect();
            return Err(format!("it wants engine {}, this image has only cpu", wanted.join(" or ")));
        }
        let workers = manifest.budget.workers.map_or(self.config.workers, usize::from).clamp(1, MAX_WORKERS);
        let stride = Layout::new(&manifest.inputs, &manifest.outputs, 1).stride();
        let slots = match manifest.budget.queue {
            Some(q) => usize::from(q).min(MAX_RING_BYTES / stride),
            None => self.config.queue.min((DEFAULT_RING_BYTES / stride).max(2 * workers)),
        };
        let serial = self.serial.fetch_add(1, Relaxed);
        let stats = self.stats.clone();
        let slots = slots.clamp(1, MAX_SLOTS);
        Host::start(Plan { config: &self.config, package, stats, workers, slots, serial }, phase).await
    }

    /// Starts the model of `package` and lets it take over. The caller holds the name's turn.
    async fn replace(self: &Arc<Self>, package: Arc<Package>) -> Result<(), String> {
        let first = self.ready_since().is_none();
        let show = |phase| {
            if first {
                let phase = match phase {
                    Phase::Loading => "loading the model",
                    Phase::Golden => "running the golden vectors",
                };
                lock(&self.shown).state = State::Starting { phase, since: Instant::now() };
            }
        };
        let host = self.start(&package, show).await?;
        let (generation, old) = {
            let mut shown = lock(&self.shown);
            shown.generation += 1;
            self.package.store(package.clone());
            (shown.generation, self.install(&mut shown, host.clone()))
        };
        tokio::spawn(self.clone().supervise(package, host, generation));
        if let Some(old) = old {
            finish(&old).await;
        }
        Ok(())
    }

    /// Makes a host the one that requests go to; the one before it.
    fn install(&self, shown: &mut Shown, host: Arc<Host>) -> Option<Arc<Host>> {
        shown.state = State::Ready;
        shown.ready_since.get_or_insert_with(Instant::now);
        shown.agreement = Some(host.agreement);
        shown.engine = EngineInfo {
            kind: host.engine.name(),
            version: host.version.clone(),
            device: host.device.clone(),
        };
        self.live.swap(Some(host))
    }

    /// Keeps a model running: when its host ends, starts another; at once the first time, then with growing pauses until
    /// one has lived for [`SETTLED`]. Ends when the model is replaced or unloaded.
    async fn supervise(self: Arc<Self>, package: Arc<Package>, mut host: Arc<Host>, generation: u64) {
        let mut failures = 0_u32;
        loop {
            let (began, served_before) = (Instant::now(), self.stats.success.load(Relaxed));
            let mut reason = host.ended().await.reason;
            let useful = self.stats.success.load(Relaxed) > served_before;
            failures = if began.elapsed() >= SETTLED { 0 } else { failures + 1 };
            loop {
                // One that answers between its ends is a nuisance; one that never does would only burn the processor.
                let longest = if useful { BACKOFF_USEFUL } else { BACKOFF_MAX };
                let pause = backoff(failures).min(longest).min(self.config.backoff_max);
                {
                    let mut shown = lock(&self.shown);
                    if shown.generation != generation {
                        return;
                    }
                    self.live.store(None);
                    let retry_at = Instant::now() + pause;
                    shown.state = State::Restarting { reason: reason.clone(), retry_at, failures };
                }
                tokio::time::sleep(pause).await;
                match self.start(&package, |_| ()).await {
                    Ok(h) => {
                        let unneeded = {
                            let mut shown = lock(&self.shown);
                            let unneeded = shown.generation != generation;
                            if !unneeded {
                                self.install(&mut shown, h.clone());
                            }
                            unneeded
                        };
                        if unneeded {
                            return finish(&h).await;
                        }
                        host = h;
                        break;
                    }
                    Err(e) => {
                        failures += 1;
                        tracing::error!(model = %package.manifest.name, error = e, failures, "engine host not started");
                        reason = e;
                    }
                }
            }
        }
    }

    /// Stops serving.
    async fn retire(&self) {
        let host = {
            let mut shown = lock(&self.shown);
            shown.generation += 1;
            shown.state = State::Stopped;
            self.live.swap(None)
        };
        if let Some(host) = host {
            finish(&host).await;
        }
    }
}

/// Lets a host that gets no new requests finish what it has, then ends it.
async fn finish(host: &Host) {
    if tokio::time::timeout(DRAIN_TIMEOUT, host.drained()).await.is_err() {
        tracing::warn!(pid = host.pid, "a replaced engine host did not finish in time and is killed");
    }
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

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
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
}

impl Ticket {
    /// The manifest this slot was sized from.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.host.manifest
    }

    fn slot(&mut self) -> &mut Slot {
        self.slot.as_mut().expect("only `run`, which consumes the ticket, takes the slot")
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
        match &outcome {
            Ok(answer) => self.served.stats.succeeded(answer.timing),
            Err(e) => self.served.stats.failed(e),
        }
        outcome
    }

    async fn run_inner(&mut self) -> Result<Answer, InferError> {
        self.slot();
        let Some(slot) = self.slot.take() else { return Err(InferError::Engine("no slot".into())) };
        let mut pending = Pending { host: &self.host, at: self.host.submit(slot), armed: true };
        let until = tokio::time::Instant::from_std(self.began + self.deadline);
        match tokio::time::timeout_at(until, self.host.wait(pending.at)).await {
            Err(_) => Err(InferError::DeadlineExceeded { deadline: self.deadline }),
            Ok(Ok((slot, timing))) => {
                pending.armed = false;
                Ok(Answer { host: self.host.clone(), slot: Some(slot), timing })
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

    /// The model that answered.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.host.manifest
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

/// Why there is no answer. Every one is honest: nothing is made up.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InferError {
    #[error("all {slots} slots are taken")]
    QueueFull { slots: usize, retry_after: Duration },
    #[error("the model is not ready: {reason}")]
    NotReady { reason: String, retry_after: Duration },
    #[error("a deadline of {} ms cannot be met: an answer takes about {} ms at present", .deadline.as_millis(), .estimate.as_millis())]
    DeadlineUnmeetable { deadline: Duration, estimate: Duration },
    #[error("no answer within {} ms", .deadline.as_millis())]
    DeadlineExceeded { deadline: Duration },
    #[error("the engine host ended while this request was in it: {reason}")]
    HostLost { reason: String, retry_after: Duration },
    #[error("the engine panicked on this request; it was contained")]
    Panicked { message: String },
    #[error("{0}")]
    Engine(String),
}

impl InferError {
    /// Every kind, in the order metrics show them.
    pub const KINDS: [&'static str; 7] = [
        "queue_full",
        "model_unavailable",
        "deadline_unmeetable",
        "timeout",
        "host_lost",
        "panic",
        "engine_error",
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
            Self::Engine(_) => "engine_error",
        }
    }
}
