//! Every limit of the room, in one place.

use std::time::Duration;

/// Most slots (running + waiting requests) of one host.
pub const MAX_SLOTS: usize = 4096;
/// Most worker threads of one host.
pub const MAX_WORKERS: usize = 64;
/// Most bytes of one ring; the number of slots is lowered to keep below it.
pub const MAX_RING_BYTES: usize = 512 << 20;
/// Slots of large tensors share this many bytes by default; small tensors get as many slots as are configured.
pub const DEFAULT_RING_BYTES: usize = 64 << 20;
/// Longest text a worker or a dying host can leave, in bytes.
pub const MAX_WORDS: usize = 184;
/// Largest network file that is read.
pub const MAX_ONNX_BYTES: u64 = 1 << 30;
/// Largest golden-vector or head file that is read.
pub const MAX_SIDE_FILE_BYTES: u64 = 256 << 20;
/// How long a host may take from its start to passing its golden vectors, the building of an engine aside.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to build an engine: minutes for a large network on a small device.
pub const BUILD_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// How long a host that is replaced may take to finish what it has; then it is killed.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Added to a model's deadline before a worker counts as stuck: scheduling on a busy machine is not the model's fault.
pub const STUCK_GRACE: Duration = Duration::from_millis(50);
/// Pause before the second start in a row (the first is at once); doubled each time.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two starts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Longest pause when the host answered something before it ended.
pub const BACKOFF_USEFUL: Duration = Duration::from_secs(1);
/// A host that lived this long has settled: its end is the first of a new row.
pub const SETTLED: Duration = Duration::from_secs(10);
/// Stack of a worker thread, in bytes.
pub const WORKER_STACK: usize = 2 << 20;
/// Successes over which exact quantiles are kept.
pub const QUANTILE_WINDOW: usize = 1024;
/// Weight of the newest service time in the drain rate.
pub const DRAIN_WEIGHT: f64 = 0.05;
/// Most elements of one output that are looked at per answer (see `observe`).
pub const LOOK_AT: usize = 1024;
/// Bytes of requests and answers that wait for a shadow at most.
pub const MAX_SHADOW_BYTES: usize = 16 << 20;
/// Most requests that wait for a shadow.
pub const MAX_SHADOW_QUEUE: usize = 64;
/// Niceness of a shadow's host, above the daemon's own.
pub const SHADOW_NICE: i32 = 10;
/// Longest line a host may say to the daemon while it loads, in bytes.
pub const MAX_REPORT: u64 = 64 << 10;
/// Events that wait for a slow reader; beyond that it loses the oldest.
pub const EVENTS: usize = 256;
/// Lines of a host's standard error that are kept as its last words.
pub const LAST_LINES: usize = 16;
/// Longest line of a host's standard error, in bytes; the rest of it is cut.
pub const MAX_LINE: usize = 512;
/// Lines of a host's standard error that are logged in a second.
pub const LOG_LINES_PER_SECOND: u32 = 50;
/// Bytes of a host's standard error that are read in a second.
pub const STDERR_BYTES_PER_SECOND: usize = 256 << 10;

// The breaker's numbers, those of the vision seed: 15 in a row (or 50 % of 20 in 10 s), open 30 s doubling
// to 300 s, 10 probes half-open, 3 ends out of memory in a row.
/// Failures in a row that open a breaker.
pub const BREAKER_ROW: u32 = 15;
/// Outcomes there must be in the last [`BREAKER_WINDOW_S`] before their share of failures counts.
pub const BREAKER_OUTCOMES: u32 = 20;
/// The share of failures among them that opens a breaker, in percent.
pub const BREAKER_PERCENT: u32 = 50;
/// How far back the share of failures looks, in whole seconds.
pub const BREAKER_WINDOW_S: usize = 10;
/// Ends over the memory cap in a row that open a breaker.
pub const BREAKER_MEMORY_ROW: u32 = 3;
/// Probes a half-open breaker lets in.
pub const BREAKER_PROBES: u32 = 10;
/// How long a breaker is open the first time; doubled each time it opens again without having closed.
pub const BREAKER_PAUSE: Duration = Duration::from_secs(30);
/// How long a breaker is open at most.
pub const BREAKER_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Inputs that are remembered because a host ended with them.
pub const SUSPECTS: usize = 64;
/// Hosts that must have ended with an input before it is refused.
pub const SUSPECT_ENDS: u32 = 2;
/// How long such an input is refused, and a suspect remembered.
pub const QUARANTINE: Duration = Duration::from_secs(600);
