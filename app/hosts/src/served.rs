//! The face of the room.

use inferd_model::{Agreement, Manifest};
use std::{path::{Path, PathBuf}, sync::Arc, time::{Duration, Instant}};

/// Settings of the hosts.
#[derive(Clone, Debug)]
pub struct HostsConfig {
    /// The program to run as `PROGRAM engine-host`; the daemon's own executable.
    pub program: PathBuf,
    /// Worker threads per CPU host when the manifest does not say.
    pub workers: usize,
    /// Slots (running + waiting requests) per model when the manifest does not say.
    pub queue: usize,
    /// Where cgroups for hosts are made (`/sys/fs/cgroup/inferd`); `None`, or not writable: `RLIMIT_AS` is used.
    pub cgroup_root: Option<PathBuf>,
}

/// All models that are served.
pub struct Hosts;

impl Hosts {
    /// An empty set. Must be called within the tokio runtime that will use it.
    pub fn new(_config: HostsConfig) -> Arc<Self> { todo!() }
    /// The model of this name, if one is (or is being) served.
    pub fn get(&self, _name: &str) -> Option<Arc<Served>> { todo!() }
    /// Every model, sorted by name.
    pub fn list(&self) -> Vec<Arc<Served>> { todo!() }
    /// Loads the model of a directory, or replaces the one of the same name: the new one takes over only after its golden
    /// vectors passed; on any error the old one goes on serving. Requests in flight end on the old one.
    ///
    /// # Errors
    /// [`LoadError`], one sentence for the operator.
    pub async fn load(self: &Arc<Self>, _dir: &Path) -> Result<Arc<Served>, LoadError> { todo!() }
    /// Stops serving a model, after the requests in flight.
    ///
    /// # Errors
    /// When no model has this name.
    pub async fn unload(&self, _name: &str) -> Result<(), LoadError> { todo!() }
    /// Ends all hosts.
    pub async fn shutdown(&self) { todo!() }
    /// Why the last `load` of this model name (or directory) failed, if it did and nothing succeeded since.
    pub fn last_load_error(&self, _name: &str) -> Option<String> { todo!() }
    /// Every load failure that still stands: (directory or name, reason).
    pub fn load_errors(&self) -> Vec<(String, String)> { todo!() }
}

/// One served model: its manifest, its host (restarted as often as needed), its queue and its numbers.
pub struct Served;

/// What a model is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The host starts, loads, or runs the golden vectors; `phase` says which in words.
    Starting { phase: &'static str, since: Instant },
    /// It answers.
    Ready,
    /// The host ended and is started again at `retry_at`.
    Restarting { reason: String, retry_at: Instant, restarts: u64 },
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
    /// Requests dropped because the client left before they ran.
    pub cancelled: u64,
    /// Times the host was started.
    pub starts: u64,
    /// Host endings by cause: `crash`, `oom`, `deadline`, `signal`, `exit`.
    pub ends: Vec<(&'static str, u64)>,
    /// Panics contained in workers.
    pub panics: u64,
    /// Slots in use now, and how many there are.
    pub slots_in_use: usize, /// All slots.
    pub slots: usize,
    /// Requests waiting (queued, not yet running).
    pub waiting: usize,
    /// A slot was free at once (pool hit), and none was (pool miss = refused).
    pub pool_hits: u64, /// Pool misses.
    pub pool_misses: u64,
    /// Sum of nanoseconds, over `success`: queue wait, compute.
    pub queue_ns: u64, /// Compute nanoseconds.
    pub compute_ns: u64,
    /// Last successful compute time.
    pub last_compute: Option<Duration>,
    /// Quantiles over the last 1024 successes: (p50, p95, p99) of compute.
    pub compute_quantiles: Option<[Duration; 3]>,
    /// The same of queue wait.
    pub queue_quantiles: Option<[Duration; 3]>,
    /// Requests per second the workers drain at present (EWMA), once known.
    pub drain_per_second: Option<f64>,
    /// Per worker: live bytes, peak bytes, requests.
    pub workers: Vec<WorkerSnapshot>,
    /// The host's cap in bytes, and which kind (`cgroup`, `rlimit`).
    pub memory_cap: u64, /// Kind of cap.
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

impl Served {
    /// What the model is.
    pub fn manifest(&self) -> Arc<Manifest> { todo!() }
    /// What it is doing.
    pub fn state(&self) -> State { todo!() }
    /// How near the engine came to the golden vectors at the last start.
    pub fn agreement(&self) -> Option<Agreement> { todo!() }
    /// The engine that runs it, its library and device: (`cpu`, `rten 0.27.0`, `cpu`).
    pub fn engine(&self) -> EngineInfo { todo!() }
    /// When it became ready first.
    pub fn ready_since(&self) -> Option<Instant> { todo!() }
    /// The numbers.
    pub fn snapshot(&self) -> Snapshot { todo!() }
    /// Observers for histograms: called once per success with (queue wait, compute).
    pub fn histograms(&self) -> &Histograms { todo!() }
    /// The motif head's weights (safetensors bytes), when the manifest names a file for it.
    pub fn motif_weights(&self) -> Option<&[u8]> { todo!() }
    /// Golden case 0 as raw inputs, for `/test`.
    pub fn golden(&self) -> Arc<inferd_model::Golden> { todo!() }
    /// Takes a slot.
    ///
    /// # Errors
    /// [`InferError::QueueFull`], [`InferError::NotReady`] or [`InferError::DeadlineUnmeetable`] at once, before any body is parsed.
    pub fn begin(self: &Arc<Self>, _deadline: Option<Duration>) -> Result<Ticket, InferError> { todo!() }
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
    /// `cpu`, `ort`, ...
    pub kind: &'static str,
    /// Library and version.
    pub version: String,
    /// Device name.
    pub device: String,
}

/// A slot that is being filled. Dropping it frees the slot.
pub struct Ticket;

impl Ticket {
    /// The manifest this slot was sized from.
    pub fn manifest(&self) -> &Arc<Manifest> { todo!() }
    /// Input `i`'s bytes: exactly the tensor's length, 64-byte aligned, content of the last request (write all of it).
    pub fn input_mut(&mut self, _i: usize) -> &mut [u8] { todo!() }
    /// Input `i` as f32, when its type is FP32.
    pub fn input_f32_mut(&mut self, _i: usize) -> Option<&mut [f32]> { todo!() }
    /// Queues the request and waits for its answer. Dropping the future cancels it (the client left).
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn run(self) -> Result<Answer, InferError> { todo!() }
}

/// An answer, still in its slot. Dropping it frees the slot.
pub struct Answer;

impl Answer {
    /// Output `i`'s bytes.
    pub fn output(&self, _i: usize) -> &[u8] { todo!() }
    /// Output `i` as f32, when its type is FP32.
    pub fn output_f32(&self, _i: usize) -> Option<&[f32]> { todo!() }
    /// The model that answered.
    pub fn manifest(&self) -> &Arc<Manifest> { todo!() }
    /// Time in the queue, and time computing.
    pub fn timing(&self) -> Timing { todo!() }
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default)]
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
    #[error("a deadline of {} ms cannot be met: the wait is {} ms at present", .deadline.as_millis(), .estimate.as_millis())]
    DeadlineUnmeetable { deadline: Duration, estimate: Duration },
    #[error("no answer within {} ms", .deadline.as_millis())]
    DeadlineExceeded { deadline: Duration },
    #[error("the engine host ended ({reason}) while this request was in it")]
    HostLost { reason: String, retry_after: Duration },
    #[error("the engine panicked on this request; it was contained")]
    Panicked { message: String },
    #[error("{0}")]
    Engine(String),
}

impl InferError {
    /// The kind in metrics: `queue_full`, `model_unavailable`, `deadline_unmeetable`, `timeout`, `host_lost`, `panic`, `engine_error`.
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

/// Why a model is not loaded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);
