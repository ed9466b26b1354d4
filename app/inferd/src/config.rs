//! The configuration: command line over environment over file over defaults.
//!
//! [`Config::read`] declares every setting once, with its default, allowed values and meaning. Values that are not allowed
//! end the start with a sentence that names key, value, range and source; names nobody knows are reported and ignored, so
//! that one file can serve several versions of the firmware.

mod actuators;
mod layers;
mod seed;
mod sources;

pub use layers::Entry;
#[cfg(test)]
use layers::{Source, env_name};

use inferd_api::{ActuatorConfig, Choice, Key, Role, SourceConfig, digest_from_hex, limits};
use inferd_model::ModelName;
use inferd_watch::keeper::judge::Limits;
use inferd_watch::{alerts::Severity, monitor::Thresholds};
use layers::{FileLayer, Reader};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the file is looked for when nobody names one; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/inferd/inferd.toml";
/// Where the endpoint listens when nobody says so, and in safe mode when nothing of what was said can be bound.
pub const DEFAULT_LISTEN: &str = "0.0.0.0:9000";
/// The largest configuration file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Every setting, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[[sources]]`
    pub sources: Vec<SourceConfig>,
    /// `[[actuators]]`
    pub actuators: Vec<ActuatorConfig>,
    /// `[server]`
    pub server: Server,
    /// `[inference]`
    pub inference: Inference,
    /// `[compat]`
    pub compat: Compat,
    /// `[models]`
    pub models: Models,
    /// `[hosts]`
    pub hosts: Hosts,
    /// `[updates]`
    pub updates: Updates,
    /// `[monitor]`
    pub monitor: Monitor,
    /// `[wear]`: bytes a day that may be written to the data directory's medium; 0 is no limit.
    pub daily_write: u64,
    /// `[security]`
    pub security: Security,
    /// `[watchdog]`
    pub watchdog: Watchdog,
    /// `[tls]`
    pub tls: Tls,
    /// `[mdns]`
    pub mdns: Mdns,
    /// `[watch]`
    pub watch: Watch,
    /// `[logging]`
    pub logging: Logging,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[capture]`
    pub capture: Capture,
    /// `[panel]`
    pub panel: Panel,
    /// `[config]`
    pub expected_sha256: Option<String>,
}

/// The endpoint.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Server {
    pub listen: Vec<SocketAddr>,
    pub threads: usize,
    pub max_connections: usize,
    pub max_connections_per_client: usize,
    pub max_streams_per_client: usize,
    pub keep_alive: Duration,
    pub header_timeout: Duration,
    pub request_timeout: Duration,
    pub drain_timeout: Duration,
    pub max_request_bytes: usize,
    pub max_bodies_bytes: usize,
    pub docs_enabled: bool,
    pub allow_origins: Vec<String>,
}

/// How requests are run.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Inference {
    pub max_queue_size: usize,
    pub timeout: Duration,
    pub motifs_without_head: usize,
}

/// Deviations from the documented contract that old clients need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Compat {
    pub lenient_numbers: bool,
    pub strict_400: bool,
    pub triton_metrics: bool,
    pub metric_aliases: bool,
}

/// What is served.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Models {
    pub dirs: Vec<PathBuf>,
    pub default: Option<ModelName>,
}

/// The engine hosts.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Hosts {
    /// 0 means one per core.
    pub workers: usize,
    pub cgroup_root: Option<PathBuf>,
    pub breaker_pause: Duration,
    pub seccomp: bool,
    /// Where there is none, the built-in engine is the only one.
    pub engine_host: Option<PathBuf>,
    /// `None`: the first that is found.
    pub onnxruntime: Option<PathBuf>,
    /// The libnvinfer of the engine `tensorrt`; the one that is found when `None`.
    pub tensorrt: Option<PathBuf>,
    /// The libcuda it needs; the one that is found when `None`.
    pub cuda: Option<PathBuf>,
    /// The libhailort of the engine hailo.
    pub hailort: Option<PathBuf>,
    /// Whether a Hailo chip is asked for at HailoRT's service.
    pub hailo_service: bool,
    /// Who says which rung serves.
    pub engine_choice: Choice,
}

impl Hosts {
    /// The libraries of vendors that are named: by which setting, how the program with the engines is told, and where they are.
    pub fn libraries(&self) -> impl Iterator<Item = (&'static str, &'static str, &PathBuf)> {
        let libraries = [
            ("hosts.onnxruntime", "INFERD_ORT_LIB", &self.onnxruntime),
            ("hosts.hailort", "INFERD_HAILORT_LIB", &self.hailort),
            ("hosts.tensorrt", "INFERD_TENSORRT_LIB", &self.tensorrt),
            ("hosts.cuda", "INFERD_CUDA_LIB", &self.cuda),
        ];
        libraries
            .into_iter()
            .filter_map(|(setting, variable, path)| Some((setting, variable, path.as_ref()?)))
    }

    /// The settings that name a library which is not there now, one sentence each.
    #[must_use]
    pub fn not_there(&self) -> Vec<String> {
        let gone = |path: &PathBuf| std::fs::metadata(path).err().map(|why| why.to_string());
        let told = |(setting, _, path): (&str, &str, &PathBuf)| {
            let why = gone(path)?;
            Some(format!("{setting} names {}, which cannot be used: {why}", path.display()))
        };
        self.libraries().filter_map(told).collect()
    }
}

/// Bundles over the air.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Updates {
    pub enabled: Enabled,
    pub slot_a: PathBuf,
    pub slot_b: PathBuf,
    pub slot_bytes: u64,
    pub data_dir: PathBuf,
    pub run_dir: Option<PathBuf>,
    pub roots: Vec<PathBuf>,
    pub allow_dev: bool,
    /// `None`: what [`BOARD_FILE`] says.
    pub board: Option<String>,
    pub device_file: Option<PathBuf>,
    pub memory_limit: Option<u64>,
    /// 0 means what the bundle says.
    pub probation_s: u32,
    /// 0 means what the bundle says.
    pub probation_requests: u32,
    pub scrub_bytes_per_s: u64,
    pub upload_window: Duration,
    pub upload_rate: u64,
    /// Whether a system is tried as soon as it is staged.
    pub try_systems: bool,
    pub pull: bool,
    pub usb_dir: Option<PathBuf>,
    pub hawkbit: Option<Hawkbit>,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Enabled {
    /// Where there is what it takes, as the setting says.
    Auto,
    On,
    Off,
}

/// A fleet server.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Hawkbit {
    pub url: String,
    pub tenant: String,
    /// `None`: the device's name.
    pub controller: Option<String>,
    pub token: Option<String>,
    pub gateway_token: Option<String>,
    /// Agree to updates that somebody is to agree to.
    pub confirm: bool,
}

/// The resource monitor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Monitor {
    pub interval: Duration,
    pub consecutive: u32,
    pub thresholds: Thresholds,
    /// `None`: optional work is never shed.
    pub shed_at: Option<Severity>,
    /// `None`: the running kernel's own files.
    pub root: Option<PathBuf>,
}

/// Where an image says which board it is for.
pub const BOARD_FILE: &str = "/etc/inferd/board";
/// Where the image has everything else that differs per board.
pub const BOARD_PAGE: &str = "/etc/inferd/board.toml";

/// Who may do what, and how much of it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Security {
    pub viewer_keys: Vec<String>,
    pub operator_keys: Vec<String>,
    pub admin_keys: Vec<String>,
    /// One more admin's key.
    pub api_key: Option<String>,
    pub open_reads: bool,
    pub open_inference: bool,
    /// 0 means no limit.
    pub rate_limit_per_s: u64,
    pub rate_limit_burst: u64,
    /// 0 means no limit.
    pub change_limit_per_min: u64,
}

/// The hardware watchdog, and when it is fed no more: settings of `inferd keeper`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Watchdog {
    /// `None`: none.
    pub device: Option<PathBuf>,
    pub timeout_s: u32,
    pub progress: Duration,
    pub start: Duration,
}

/// Staying alive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Watch {
    /// `None`: the watch's own, which knows the deadlines of the models.
    pub inference_budget: Option<Duration>,
    /// `None`: the data directory is never written to prove anything.
    pub storage_check: Option<Duration>,
    pub keeper_dir: PathBuf,
}

/// What is logged, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Logging {
    pub level: tracing::Level,
    pub format: LogFormat,
}

/// What the device did, kept in files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Telemetry {
    pub enabled: bool,
    /// `None`: `telemetry` in the data directory.
    pub dir: Option<PathBuf>,
    pub interval: Duration,
    pub write_every: Duration,
    pub file_bytes: u64,
    pub quota: u64,
}

/// Windows the model was unsure about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Capture {
    pub enabled: bool,
    /// `None`: `capture` in the data directory.
    pub dir: Option<PathBuf>,
    pub threshold_percent: u64,
    pub quota: u64,
    pub per_hour: usize,
}

/// LED and button.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Panel {
    pub kind: PanelKind,
    pub led_gpio: Option<u8>,
    pub button_gpio: Option<u8>,
    pub led_name: Option<String>,
    pub socket: Option<PathBuf>,
}

/// What LED and button are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelKind {
    /// What the image says of its board ([`BOARD_PAGE`]).
    Board,
    /// There are none.
    Off,
    /// Lines of a Raspberry Pi's header.
    Gpio,
    /// An LED that the kernel drives; no button.
    Led,
    /// A Unix socket, for tests.
    Simulated,
}

/// What a log line looks like on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogFormat {
    /// [`LogFormat::Journald`] when standard error, or the keeper's, is connected to journald ([`LogFormat::Journal`] without its socket), else
    /// [`LogFormat::Text`].
    Auto,
    Text,
    Json,
    /// The priority as journald and syslog read it (`<6>`), and no time, since they have one.
    Journal,
    /// Entries in journald's own protocol, with their fields, to its socket.
    Journald,
}

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--models`, in order.
    pub models: Vec<PathBuf>,
    /// `--listen`, in order.
    pub listen: Vec<SocketAddr>,
    /// `--updates-dir`
    pub updates: Option<PathBuf>,
}

/// A configuration and how it came about.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Each setting with its source, in the order of the reference.
    pub entries: Vec<Entry>,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
    /// What was said and is not used, or hardly meant, one sentence each.
    pub notes: Vec<String>,
    /// Those of them that tell of names nobody knows.
    pub unknown: Vec<String>,
    /// SHA-256 of the effective configuration, see [`fingerprint`].
    pub sha256: String,
}

/// Why the daemon does not start.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Loaded {
    /// Puts the layers of this process together.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong, one sentence each.
    pub fn of_process(arguments: &Arguments) -> Result<Self, ConfigError> {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.to_string_lossy().into_owned())))
            .collect();
        let named = arguments
            .file
            .clone()
            .or_else(|| environment.get("INFERD_CONFIG").filter(|s| !s.is_empty()).map(PathBuf::from));
        let file = read_file(named).map_err(|why| ConfigError(vec![why]))?;
        Self::from_layers(arguments, environment, file.as_ref().map(|(p, t)| (p.as_path(), t.as_str())))
    }

    /// Puts given layers together; reads nothing else.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong, one sentence each.
    pub fn from_layers(
        arguments: &Arguments,
        environment: BTreeMap<String, String>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, ConfigError> {
        let layer = file
            .map(|(path, text)| FileLayer::parse(path, text))
            .transpose()
            .map_err(|why| ConfigError(vec![why]))?
            .unwrap_or_default();
        let mut said = BTreeMap::new();
        if !arguments.listen.is_empty() {
            let listen = arguments.listen.iter().map(ToString::to_string).collect();
            said.insert("server.listen", ("--listen", listen));
        }
        if !arguments.models.is_empty() {
            let dirs = arguments.models.iter().map(|p| p.to_string_lossy().into_owned()).collect();
            said.insert("models.dirs", ("--models", dirs));
        }
        if let Some(dir) = &arguments.updates {
            let mut say = |key, what: String| said.insert(key, ("--updates-dir", vec![what]));
            let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
            say("updates.enabled", "on".to_owned());
            say("updates.slot_a", at("slot-a"));
            say("updates.slot_b", at("slot-b"));
            say("updates.data_dir", at("data"));
            say("updates.run_dir", at("run"));
            say("updates.root", at("root.imr"));
        }
        let old = seed::translate(&environment);
        let mut reader = Reader::new(said, environment, old.settings, layer);
        let config = Config::read(&mut reader);
        actuators::check_access(&mut reader, &config);
        let mut problems = old.problems;
        let (entries, unknown) = match reader.finish() {
            Ok(done) => done,
            Err(more) => {
                problems.extend(more);
                (Vec::new(), Vec::new())
            }
        };
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        let mut notes = old.notes;
        notes.extend(unknown.iter().cloned());
        notes.extend(config.monitor.thresholds.upside_down().map(|(warning, critical)| {
            format!("monitor.{critical} is below monitor.{warning}: nothing of it is ever a mere warning")
        }));
        let sha256 = fingerprint(&entries);
        Ok(Self { config, entries, file: file.map(|(p, _)| p.to_owned()), notes, unknown, sha256 })
    }

    /// The names in the file that nobody knows.
    #[must_use]
    pub fn unknown_keys(&self) -> BTreeSet<String> {
        self.unknown.iter().filter_map(|said| layers::unknown_key(said)).map(str::to_owned).collect()
    }

    /// The effective configuration as a TOML file with the source of each value.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = format!("# sha256 {}\n", self.sha256);
        let mut section = "";
        for entry in &self.entries {
            let (head, key) = entry.key.split_once('.').unwrap_or(("", entry.key));
            if head != section {
                let _ = write!(out, "\n[{head}]\n");
                section = head;
            }
            let _ = writeln!(out, "{:<52} # {}", format!("{key} = {}", entry.value), entry.source);
        }
        for note in &self.notes {
            let _ = write!(out, "\n# note: {note}");
        }
        if !self.notes.is_empty() {
            out.push('\n');
        }
        out
    }
}

impl Config {
    /// The reference: every setting there is.
    fn read(r: &mut Reader) -> Self {
        let path = |s: &str| Some(PathBuf::from(s));
        let sources = sources::read(r);
        Self {
            actuators: actuators::read(r, &sources),
            sources,
            server: Server {
                listen: r.list(
                    "server.listen",
                    1,
                    &[DEFAULT_LISTEN],
                    "one or more ADDRESS:PORT, IPv6 in brackets",
                    "Where the endpoint listens.",
                    |s| s.parse().ok(),
                ),
                threads: size(r.integer(
                    "server.threads",
                    1,
                    1..=64,
                    "Threads of the endpoint. One keeps a request on one core: fewer wake-ups across cores.",
                )),
                max_connections: size(r.integer(
                    "server.max_connections",
                    limits::CONNECTIONS as u64,
                    1..=65_536,
                    "Connections open at once; one more takes the place of an idle one, or is answered 503.",
                )),
                max_connections_per_client: size(r.integer(
                    "server.max_connections_per_client",
                    limits::CONNECTIONS_PER_CLIENT as u64,
                    1..=65_536,
                    "Connections of one client address open at once; one more takes the place of an idle one of that client, or is answered 503. This machine is not counted.",
                )),
                max_streams_per_client: size(r.integer(
                    "server.max_streams_per_client",
                    limits::STREAMS_PER_CLIENT as u64,
                    1..=64,
                    "Streams of live input (/infer/stream, /emg/stream) of one client address at once, of 64 in all; one more is answered 429. This machine is not counted.",
                )),
                keep_alive: Duration::from_secs(r.integer(
                    "server.keep_alive_s",
                    limits::IDLE_TIME.as_secs(),
                    1..=3600,
                    "How long an idle connection is kept; clients that pool connections want 75 or more.",
                )),
                header_timeout: Duration::from_secs(r.integer(
                    "server.header_timeout_s",
                    limits::HEAD_TIME.as_secs(),
                    1..=300,
                    "How long a client may take to send the head of a request.",
                )),
                request_timeout: Duration::from_secs(r.integer(
                    "server.request_timeout_s",
                    limits::BODY_TIME.as_secs(),
                    1..=3600,
                    "How long a client may take to send the body of a request.",
                )),
                drain_timeout: Duration::from_secs(r.integer(
                    "server.drain_timeout_s",
                    limits::DRAIN_TIME.as_secs(),
                    0..=300,
                    "How long requests in flight may take to end after SIGTERM.",
                )),
                max_request_bytes: size(r.integer(
                    "server.max_request_size_mb",
                    (limits::BODY >> 20) as u64,
                    1..=1024,
                    "The largest request body, in MiB, also after decompression; more is answered 413.",
                )) << 20,
                max_bodies_bytes: size(r.integer(
                    "server.max_bodies_mb",
                    (limits::BODIES_TOTAL >> 20) as u64,
                    1..=4096,
                    "MiB of request bodies held at once, all connections together.",
                )) << 20,
                docs_enabled: r.boolean(
                    "server.docs_enabled",
                    true,
                    "Serve /docs, /redoc and /openapi.json.",
                ),
                allow_origins: r.list(
                    "server.allow_origins",
                    0,
                    &["*"],
                    "\"*\" or origins such as http://dashboard.lan:3000",
                    "Origins whose pages may read answers (CORS); an empty list allows none.",
                    |s| (s == "*" || is_origin(s)).then(|| s.to_owned()),
                ),
            },
            inference: Inference {
                max_queue_size: size(r.integer(
                    "inference.max_queue_size",
                    128,
                    1..=4096,
                    "Requests per model that may run or wait at once, where its manifest does not say; more are answered 503.",
                )),
                timeout: Duration::from_millis(r.integer(
                    "inference.timeout_ms",
                    5000,
                    1..=600_000,
                    "How long a request may wait and run when the client names no deadline of its own.",
                )),
                motifs_without_head: size(r.integer(
                    "inference.motifs_without_head",
                    12,
                    1..=1024,
                    "Zeros in motif_scores when a model has no motif head.",
                )),
            },
            compat: Compat {
                lenient_numbers: r.boolean(
                    "compat.lenient_numbers",
                    false,
                    "Accept numeric strings and booleans as numbers in an IMU window, as the seed sidecar did.",
                ),
                strict_400: r.boolean(
                    "compat.strict_400",
                    false,
                    "Answer mistakes in /infer and /encode with 400 instead of FastAPI's 422.",
                ),
                triton_metrics: r.boolean(
                    "compat.triton_metrics",
                    false,
                    "Export Triton's nv_inference_* metrics too.",
                ),
                metric_aliases: r.boolean(
                    "compat.metric_aliases",
                    false,
                    "Export the names of the seed's other services too: edge_* of the resource monitor, inference_* of requests, hailo_*_utilization_percent of accelerators.",
                ),
            },
            models: Models {
                dirs: r.list(
                    "models.dirs",
                    0,
                    &["/usr/share/inferd/models"],
                    "paths of model directories, or of directories of such",
                    "Models served from the start.",
                    path,
                ),
                default: r.text(
                    "models.default",
                    "",
                    "the name of a model",
                    "The model behind /infer and /healthz; empty: the first one by name whose task fits.",
                    |s| ModelName::new(s).ok(),
                ),
            },
            hosts: Hosts {
                workers: size(r.integer(
                    "hosts.workers",
                    0,
                    0..=64,
                    "Worker threads per model, where its manifest does not say; 0 is one per core.",
                )),
                cgroup_root: r.text(
                    "hosts.cgroup_root",
                    "/sys/fs/cgroup/inferd",
                    "an absolute path",
                    "The cgroup v2 directory under which hosts are capped; empty or not writable: RLIMIT_DATA caps them.",
                    |s| s.starts_with('/').then(|| PathBuf::from(s)),
                ),
                seccomp: r.boolean(
                    "hosts.seccomp",
                    true,
                    "Let engine hosts make only the system calls that computing needs; one that tries another is ended.",
                ),
                engine_host: r.text(
                    "hosts.engine_host",
                    "/usr/lib/inferd/inferd-engine-host",
                    "an absolute path",
                    "The program with the engines of vendors; where there is none, models run on the built-in engine.",
                    |s| s.starts_with('/').then(|| PathBuf::from(s)),
                ),
                onnxruntime: r.text(
                    "hosts.onnxruntime",
                    "",
                    "an absolute path",
                    "The libonnxruntime of the engine ort; empty: the first that is found at the usual places.",
                    |s| s.starts_with('/').then(|| PathBuf::from(s)),
                ),
                tensorrt: r.text(
                    "hosts.tensorrt",
                    "",
                    "an absolute path",
                    "The libnvinfer of the engine tensorrt; empty: the first that is found at the usual places.",
                    |s| s.starts_with('/').then(|| PathBuf::from(s)),
                ),
                cuda: r.text(
                    "hosts.cuda",
                    "",
                    "an absolute path",
                    "The libcuda of the engine tensorrt; empty: the first that is found at the usual places.",
                    |s| s.starts_with('/').then(|| PathBuf::from(s)),
                ),
                hailort: r.text(
                    "hosts.hailort",
                    "",
                    "an absolute path",
                    "The libhailort of the engine hailo, of 4.21 to 4.23; empty: the first that is found at the usual places.",
                    |s| s.starts_with('/').then(|| PathBuf::from(s)),
                ),
                hailo_service: r.boolean(
                    "hosts.hailo_service",
                    false,
                    "Ask HailoRT's service (hailort_service, which must run here) for the Hailo chip, which several models share then; else one model at a time has it.",
                ),
                engine_choice: r.choice(
                    "hosts.engine_choice",
                    Choice::Manifest,
                    &[("manifest", Choice::Manifest), ("measured", Choice::Measured)],
                    "Which rung of a model serves: the manifest's first, or the one the newest benchmark of all of them on this device selected.",
                ),
                breaker_pause: Duration::from_secs(r.integer(
                    "hosts.breaker_pause_s",
                    30,
                    1..=300,
                    "How long an engine that keeps failing rests before it is tried again; doubled each time, up to 300.",
                )),
            },
            updates: Updates::read(r),
            monitor: Monitor::read(r),
            daily_write: r.integer(
                "wear.daily_write_mib",
                inferd_watch::wear::DAILY_BUDGET >> 20,
                0..=1_048_576,
                "MiB that may be written to the data partition in 24 h of running; beyond it an alert is raised and optional writes are refused. 0 is no limit.",
            ) << 20,
            security: Security::read(r),
            watchdog: Watchdog::read(r),
            tls: Tls::read(r),
            mdns: Mdns::read(r),
            watch: Watch::read(r),
            logging: Logging {
                level: r.choice(
                    "logging.level",
                    tracing::Level::INFO,
                    &[
                        ("error", tracing::Level::ERROR),
                        ("warn", tracing::Level::WARN),
                        ("info", tracing::Level::INFO),
                        ("debug", tracing::Level::DEBUG),
                        ("trace", tracing::Level::TRACE),
                    ],
                    "The least important lines that are logged.",
                ),
                format: r.choice(
                    "logging.format",
                    LogFormat::Auto,
                    &[
                        ("auto", LogFormat::Auto),
                        ("text", LogFormat::Text),
                        ("json", LogFormat::Json),
                        ("journal", LogFormat::Journal),
                        ("journald", LogFormat::Journald),
                    ],
                    "What a line looks like; auto is journald when standard error, or the keeper's, is connected to it (journal when only its stream is there), else text.",
                ),
            },
            telemetry: Telemetry::read(r),
            capture: Capture::read(r),
            panel: Panel::read(r),
            expected_sha256: r.text(
                "config.expected_sha256",
                "",
                "64 hex digits",
                "What the SHA-256 of the effective configuration should be; the metric config_ok says whether it is.",
                |s| {
                    (s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit())).then(|| s.to_ascii_lowercase())
                },
            ),
        }
    }
}

impl Watchdog {
    fn read(r: &mut Reader) -> Self {
        let seconds = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            device: r.text(
                "watchdog.device",
                inferd_watch::watchdog::DEVICE,
                "an absolute path",
                "The hardware watchdog that `inferd keeper` feeds; empty: none. Where this one is not there and another is armed, it feeds that.",
                |s| s.starts_with('/').then(|| PathBuf::from(s)),
            ),
            timeout_s: seconds(r.integer(
                "watchdog.timeout_s",
                inferd_watch::watchdog::TIMEOUT_S.into(),
                2..=3600,
                "Seconds without food after which it resets the board; less where the hardware does not hold that.",
            )),
            progress: Duration::from_secs(r.integer(
                "watchdog.progress_s",
                Limits::default().progress.as_secs(),
                4..=600,
                "How long the daemon may prove no progress until it is fed no more.",
            )),
            start: Duration::from_secs(r.integer(
                "watchdog.start_s",
                Limits::default().start.as_secs(),
                5..=3600,
                "How long the daemon may take until its endpoint answers.",
            )),
        }
    }
}

/// The endpoint over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Tls {
    pub listen: Vec<SocketAddr>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub self_signed: bool,
    pub names: Vec<String>,
}

impl Tls {
    fn read(r: &mut Reader) -> Self {
        let absolute = |s: &str| s.starts_with('/').then(|| PathBuf::from(s));
        Self {
            listen: r.list(
                "tls.listen",
                1,
                &["0.0.0.0:9443"],
                "one or more ADDRESS:PORT, IPv6 in brackets",
                "Where the endpoint speaks TLS, once there is a certificate; beside server.listen, which may then be a loopback address.",
                |s| s.parse().ok(),
            ),
            cert: r.text(
                "tls.cert",
                "",
                "an absolute path",
                "The certificate in PEM, those of its signers behind it; read again on SIGHUP.",
                absolute,
            ),
            key: r.text(
                "tls.key",
                "",
                "an absolute path",
                "Its private key in PEM, ECDSA P-256 or Ed25519.",
                absolute,
            ),
            self_signed: r.boolean(
                "tls.self_signed",
                false,
                "Make a key and a certificate on the first start and keep them in tls/ of updates.data_dir.",
            ),
            names: r.list(
                "tls.names",
                0,
                &[],
                "host names and addresses",
                "What else that certificate is for, beside the host name, HOSTNAME.local, the device's name and localhost.",
                |s| (s.len() <= 253 && s.bytes().all(|b| b.is_ascii_graphic())).then(|| s.to_owned()),
            ),
        }
    }
}

/// The device on its LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Mdns {
    pub enabled: Enabled,
    /// Empty: all that lead to others.
    pub interfaces: Vec<String>,
    /// `None`: the host name.
    pub name: Option<String>,
}

impl Mdns {
    fn read(r: &mut Reader) -> Self {
        let interface = |s: &str| {
            let short = (1..=15).contains(&s.len());
            (short && s.bytes().all(|b| b.is_ascii_graphic() && b != b'/')).then(|| s.to_owned())
        };
        let name = |s: &str| (s.len() <= 63 && !s.contains(char::is_control)).then(|| s.to_owned());
        Self {
            enabled: r.choice(
                "mdns.enabled",
                Enabled::Auto,
                &[("auto", Enabled::Auto), ("on", Enabled::On), ("off", Enabled::Off)],
                "Announce this device on its LAN as _inferd._tcp by Multicast DNS; auto: where it listens on an address that other machines reach.",
            ),
            interfaces: r.list(
                "mdns.interfaces",
                0,
                &[],
                "names of interfaces",
                "On these alone; none: on all but loopback and point-to-point ones.",
                interface,
            ),
            name: r.text(
                "mdns.name",
                "",
                "up to 63 bytes",
                "The name that people see in the list of devices; empty: the host name.",
                name,
            ),
        }
    }
}

impl Watch {
    fn read(r: &mut Reader) -> Self {
        let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        Self {
            inference_budget: seconds(r.integer(
                "watch.inference_budget_s",
                0,
                0..=86_400,
                "How long all models together may go without a finished inference or self-test before the watchdog is no longer fed; 0 is 120, and longer where a model's own deadline is.",
            )),
            storage_check: seconds(r.integer(
                "watch.storage_check_s",
                300,
                0..=86_400,
                "How often a block is written to the data directory to see that it comes back; 0 is never.",
            )),
            keeper_dir: r
                .text(
                    "watch.keeper_dir",
                    "/data/keeper",
                    "an absolute path",
                    "Where the keeper leaves its history, for /api/v1/history.",
                    |s| s.starts_with('/').then(|| PathBuf::from(s)),
                )
                .unwrap_or_else(|| "/data/keeper".into()),
        }
    }
}

impl Security {
    fn read(r: &mut Reader) -> Self {
        const ALLOWED: &str = "16 to 256 printable characters without a comma, or sha256: and the 64 hex digits of a key's SHA-256";
        let mut keys = |key, meaning| {
            r.secrets(key, ALLOWED, meaning, |s| {
                s.strip_prefix("sha256:").is_none_or(|hex| digest_from_hex(hex).is_some())
            })
        };
        Self {
            viewer_keys: keys("security.viewer_keys", "API keys that may read (X-API-Key or Bearer)."),
            operator_keys: keys(
                "security.operator_keys",
                "API keys that may also infer, load and unload models, and run tests.",
            ),
            admin_keys: keys(
                "security.admin_keys",
                "API keys that may also change what the device runs: bundles, rollback, keys of bundles. With none, only this machine may.",
            ),
            api_key: r.secret(
                "security.api_key",
                "16 to 256 printable characters",
                "One more admin's key.",
            ),
            open_reads: r.boolean(
                "security.open_reads",
                true,
                "Reading needs no key. false: all but /livez, /healthz, /readyz and /v2/health/* needs a viewer's key.",
            ),
            open_inference: r.boolean(
                "security.open_inference",
                true,
                "Inference and POST /test need no key. false: they need an operator's key.",
            ),
            rate_limit_per_s: r.integer(
                "security.rate_limit_per_s",
                0,
                0..=1_000_000,
                "Requests per second that one client address may send; 0 is no limit.",
            ),
            rate_limit_burst: r.integer(
                "security.rate_limit_burst",
                100,
                1..=1_000_000,
                "Requests that one client may send at once before the limit applies.",
            ),
            change_limit_per_min: r.integer(
                "security.change_limit_per_min",
                60,
                0..=1_000_000,
                "Requests per minute, and at once, with which one client of another machine may change the device; 0 is no limit.",
            ),
        }
    }

    /// The keys with what they may.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        let of = |role, keys: &[String]| keys.iter().map(move |k| Key::new(role, k)).collect::<Vec<_>>();
        let admins: Vec<String> = self.admin_keys.iter().chain(&self.api_key).cloned().collect();
        [
            of(Role::Viewer, &self.viewer_keys),
            of(Role::Operator, &self.operator_keys),
            of(Role::Admin, &admins),
        ]
        .concat()
    }
}

impl Telemetry {
    fn read(r: &mut Reader) -> Self {
        Self {
            enabled: r.boolean("telemetry.enabled", false, "Keep what the device does, one line of JSON a minute, in files on the data partition."),
            dir: r.text(
                "telemetry.dir",
                "",
                "an absolute path",
                "Where the files lie; empty: telemetry in updates.data_dir.",
                |s| s.starts_with('/').then(|| PathBuf::from(s)),
            ),
            interval: Duration::from_secs(r.integer(
                "telemetry.interval_s",
                60,
                1..=86_400,
                "Seconds between two samples.",
            )),
            write_every: Duration::from_secs(r.integer(
                "telemetry.write_every_s",
                600,
                1..=86_400,
                "How old a line gets before it is written; lines in between go in one write, 64 KiB at the latest.",
            )),
            file_bytes: r.integer(
                "telemetry.file_kib",
                1024,
                64..=65_536,
                "KiB of a file before it is compressed and the next one begins.",
            ) << 10,
            quota: r.integer(
                "telemetry.quota_mib",
                16,
                1..=4096,
                "MiB that all files take at most; the oldest give way.",
            ) << 20,
        }
    }
}

impl Capture {
    fn read(r: &mut Reader) -> Self {
        Self {
            enabled: r.boolean(
                "capture.enabled",
                false,
                "Keep the IMU windows whose best motif score is low; they are measurements of a person's movement.",
            ),
            dir: r.text(
                "capture.dir",
                "",
                "an absolute path",
                "Where the files lie; empty: capture in updates.data_dir.",
                |s| s.starts_with('/').then(|| PathBuf::from(s)),
            ),
            threshold_percent: r.integer(
                "capture.threshold_percent",
                50,
                1..=100,
                "Windows whose best motif score, in percent, is below it are kept.",
            ),
            quota: r.integer("capture.quota_mib", 32, 1..=65_536, "MiB that all files take at most; the oldest give way.")
                << 20,
            per_hour: size(r.integer("capture.max_per_hour", 60, 1..=3600, "The most windows kept in any hour.")),
        }
    }
}

impl Panel {
    fn read(r: &mut Reader) -> Self {
        // 0 is no line here: GPIO 0 and 1 are the header's own bus.
        let line = |n: u64| u8::try_from(n).ok().filter(|n| *n > 0);
        Self {
            kind: r.choice(
                "panel.kind",
                PanelKind::Board,
                &[
                    ("board", PanelKind::Board),
                    ("off", PanelKind::Off),
                    ("gpio", PanelKind::Gpio),
                    ("led", PanelKind::Led),
                    ("simulated", PanelKind::Simulated),
                ],
                "A status LED and a button: those that /etc/inferd/board.toml names (none without it), lines of a Raspberry Pi's header, an LED of the kernel's (no button), or a Unix socket for tests.",
            ),
            led_gpio: line(r.integer("panel.led_gpio", 0, 0..=27, "BCM number of the LED's line (lit by a high level); 0 is none.")),
            button_gpio: line(r.integer(
                "panel.button_gpio",
                0,
                0..=27,
                "BCM number of the button's line (pressed, it is connected to ground); 0 is none.",
            )),
            led_name: r.text(
                "panel.led_name",
                "ACT",
                "a name in /sys/class/leds",
                "The LED of the kind led.",
                |s| (s.len() <= 64 && !s.contains('/') && s != ".." && s != ".").then(|| s.to_owned()),
            ),
            socket: r.text(
                "panel.socket",
                "/run/inferd/daemon/panel",
                "an absolute path",
                "The socket of the kind simulated: it tells led 1 and led 0, and takes press and release.",
                |s| s.starts_with('/').then(|| PathBuf::from(s)),
            ),
        }
    }
}

impl Updates {
    fn read(r: &mut Reader) -> Self {
        fn absolute(s: &str) -> Option<PathBuf> {
            (!s.is_empty()).then(|| PathBuf::from(s))
        }
        let printable =
            |s: &str| (s.len() <= 256 && s.bytes().all(|b| b.is_ascii_graphic())).then(|| s.to_owned());
        let count = |n: u64| u32::try_from(n).expect("the ranges end below 2^32");
        let enabled = r.choice(
            "updates.enabled",
            Enabled::Auto,
            &[("auto", Enabled::Auto), ("on", Enabled::On), ("off", Enabled::Off)],
            "Take signed bundles into two model slots; auto: where both slots are there, as an image hands them over.",
        );
        let mut place = |key, default: &str, meaning| {
            r.text(key, default, "a path", meaning, absolute).unwrap_or_else(|| PathBuf::from(default))
        };
        let slot_a = place(
            "updates.slot_a",
            "/run/inferd/slots/a",
            "Model slot A: a raw partition, or a file that is made when updates are on.",
        );
        let slot_b = place("updates.slot_b", "/run/inferd/slots/b", "Model slot B.");
        let slot_bytes = r.integer(
            "updates.slot_size_mib",
            1024,
            1..=1_048_576,
            "MiB of a slot that is a file (room is taken as bundles need it); a partition has its own size.",
        ) << 20;
        let data_dir = r
            .text(
                "updates.data_dir",
                "/data/inferd",
                "a path",
                "State, trust documents and verdicts; must survive restarts of the board.",
                absolute,
            )
            .unwrap_or_else(|| "/data/inferd".into());
        Self {
            enabled,
            slot_a,
            slot_b,
            slot_bytes,
            data_dir,
            run_dir: r.text(
                "updates.run_dir",
                "/run/inferd/daemon",
                "a path",
                "Where the mark of a clean stop is left; must not survive a restart of the board. Empty: every stop counts as a crash of a bundle on trial.",
                absolute,
            ),
            roots: r.list(
                "updates.root",
                0,
                &["/etc/inferd/root.imr"],
                "paths of root documents, oldest first",
                "The keys bundles are signed with: the first is the anchor, others rotate it. Without one no bundle is accepted.",
                absolute,
            ),
            allow_dev: r.boolean(
                "updates.allow_dev",
                false,
                "Accept bundles of the role model-dev; for workshops only, and /status says so.",
            ),
            board: r.text(
                "updates.board",
                "",
                "a board's name",
                "The board that bundles are targeted at; empty: what /etc/inferd/board says.",
                printable,
            ),
            device_file: r.text(
                "updates.device_file",
                "/run/inferd/device",
                "a path",
                "Holds this device's name in permits; empty or absent: a name is made up once and kept in the data directory.",
                absolute,
            ),
            memory_limit: Some(r.integer(
                "updates.memory_limit_mib",
                0,
                0..=1_048_576,
                "MiB that all engine hosts together may declare; 0 is what the kernel says is available.",
            ))
            .filter(|n| *n > 0)
            .map(|n| n << 20),
            probation_s: count(r.integer(
                "updates.probation_s",
                0,
                0..=604_800,
                "How long a new bundle is watched while it serves; 0 is what the bundle says.",
            )),
            probation_requests: count(r.integer(
                "updates.probation_requests",
                0,
                0..=1_000_000_000,
                "After how many requests the watch ends earlier; 0 is what the bundle says.",
            )),
            scrub_bytes_per_s: r.integer(
                "updates.scrub_kib_per_s",
                1024,
                0..=1_048_576,
                "How fast the active slot is verified again in the background; 0 is not at all.",
            ) << 10,
            upload_window: Duration::from_secs(r.integer(
                "updates.upload_window_s",
                limits::UPLOAD_WINDOW.as_secs(),
                1..=3600,
                "A push is given up when it comes slower than upload_min_bytes_per_s for this long; however long it lasts otherwise.",
            )),
            upload_rate: r.integer(
                "updates.upload_min_bytes_per_s",
                limits::UPLOAD_RATE,
                0..=1_000_000_000,
                "The slowest a push may come, on average over upload_window_s; 0 asks for one byte in that time.",
            ),
            try_systems: r.choice(
                "updates.system",
                true,
                &[("try", true), ("stage", false)],
                "What becomes of a bundle of a system that is pushed: try restarts the board with it at once, stage waits for POST /api/v1/system/try.",
            ),
            pull: r.boolean(
                "updates.pull",
                true,
                "Let POST /api/v1/pull fetch bundles by URL.",
            ),
            usb_dir: r.text(
                "updates.usb_dir",
                "/run/inferd/usb",
                "a path",
                "Directory in which each mounted stick is a directory; bundles in its root are installed. Empty: none.",
                absolute,
            ),
            hawkbit: Hawkbit::read(r),
        }
    }
}

impl Monitor {
    fn read(r: &mut Reader) -> Self {
        let count = |n: u64| u32::try_from(n).expect("the ranges end below 2^32");
        let interval = Duration::from_secs(r.integer(
            "monitor.interval_s",
            10,
            1..=3600,
            "Seconds between readings of processors, memory, disk and sensors.",
        ));
        let consecutive = count(r.integer(
            "monitor.consecutive",
            5,
            1..=1000,
            "Readings in a row that raise an alert, and that clear it.",
        ));
        let mut limit = |key, default: f64, meaning| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // whole and small
            let default = default as u64;
            f64::from(count(r.integer(key, default, 0..=100, meaning)))
        };
        let d = Thresholds::default();
        let thresholds = Thresholds {
            cpu: limit("monitor.cpu_percent", d.cpu, "Busier processors are a warning."),
            cpu_critical: limit("monitor.cpu_critical_percent", d.cpu_critical, "Busier ones are critical."),
            memory: limit("monitor.memory_percent", d.memory, "More memory in use is a warning."),
            memory_critical: limit(
                "monitor.memory_critical_percent",
                d.memory_critical,
                "More memory in use is critical.",
            ),
            memory_pressure: limit(
                "monitor.memory_pressure_percent",
                d.memory_pressure,
                "Work that stands still for want of memory for a larger part of 10 s is a warning.",
            ),
            memory_pressure_critical: limit(
                "monitor.memory_pressure_critical_percent",
                d.memory_pressure_critical,
                "For a larger part it is critical.",
            ),
            io_pressure: limit(
                "monitor.io_pressure_percent",
                d.io_pressure,
                "Work that stands still for want of a disk for a larger part of 10 s is a warning.",
            ),
            disk: limit("monitor.disk_percent", d.disk, "A fuller data partition is a warning; inodes too."),
            disk_critical: limit(
                "monitor.disk_critical_percent",
                d.disk_critical,
                "A fuller data partition is critical; inodes too.",
            ),
            temperature_celsius: limit(
                "monitor.temperature_c",
                d.temperature_celsius,
                "A hotter sensor or accelerator, in degrees Celsius, is a warning.",
            ),
            pool_efficiency: limit(
                "monitor.pool_efficiency_percent",
                d.pool_efficiency,
                "Fewer requests that find a free slot are a warning.",
            ),
        };
        let shed_at = r.choice(
            "monitor.shed_at",
            Some(Severity::Critical),
            &[("critical", Some(Severity::Critical)), ("warning", Some(Severity::Warning)), ("off", None)],
            "How bad an alert about processors, memory, pressure or heat must be for optional work to pause: the shadow of live requests, the verification of slots.",
        );
        let root = r.text(
            "monitor.root",
            "",
            "an absolute path",
            "Directory whose proc and sys are read in place of the running kernel's: for tests, and for containers that see the host's there.",
            |s| s.starts_with('/').then(|| PathBuf::from(s)),
        );
        Self { interval, consecutive, thresholds, shed_at, root }
    }
}

impl Hawkbit {
    fn read(r: &mut Reader) -> Option<Self> {
        let word = |s: &str| {
            (s.len() <= 256 && s.bytes().all(|b| b.is_ascii_graphic() && b != b'/')).then(|| s.to_owned())
        };
        let url = r.text(
            "updates.hawkbit_url",
            "",
            "http://HOST[:PORT]",
            "Eclipse hawkBit server that this device asks for updates (Direct Device Integration); empty: none.",
            |s| is_origin(s).then(|| s.to_owned()).filter(|s| s.starts_with("http://")),
        );
        let tenant =
            r.text("updates.hawkbit_tenant", "DEFAULT", "a name", "The tenant on that server.", word);
        let controller = r.text(
            "updates.hawkbit_controller",
            "",
            "a name",
            "This device's name on that server; empty: its name in permits.",
            word,
        );
        let token = r.secret(
            "updates.hawkbit_token",
            "16 to 256 printable characters",
            "The device's own security token on that server.",
        );
        let gateway_token = r.secret(
            "updates.hawkbit_gateway_token",
            "16 to 256 printable characters",
            "The gateway's security token on that server, where devices have none of their own.",
        );
        let confirm = r.boolean(
            "updates.hawkbit_confirm",
            false,
            "Agree to updates that the server wants an agreement for; otherwise somebody agrees there.",
        );
        Some(Self {
            url: url?,
            tenant: tenant.unwrap_or_else(|| "DEFAULT".to_owned()),
            controller,
            token,
            gateway_token,
            confirm,
        })
    }
}

/// The keys of all settings whose value is never shown.
///
/// # Panics
/// Never: without layers there is nothing that could be wrong.
#[must_use]
pub fn secrets() -> Vec<&'static str> {
    let loaded =
        Loaded::from_layers(&Arguments::default(), BTreeMap::new(), None).expect("the defaults are allowed");
    loaded.entries.iter().filter(|e| e.secret).map(|e| e.key).collect()
}

/// Every setting there is, as a table in Markdown: what README.md holds and `--reference` prints.
///
/// # Panics
/// Never: without layers there is nothing that could be wrong.
#[must_use]
pub fn reference() -> String {
    let loaded =
        Loaded::from_layers(&Arguments::default(), BTreeMap::new(), None).expect("the defaults are allowed");
    let mut table =
        String::from("| key | environment | default | allowed | meaning |\n|---|---|---|---|---|\n");
    for e in &loaded.entries {
        let _ = writeln!(
            table,
            "| `{}` | `{}` | `{}` | {} | {} |",
            e.key,
            e.env(),
            e.default,
            e.allowed,
            e.meaning
        );
    }
    table
}

/// The identity of an effective configuration: SHA-256 over `key = value` lines, one per setting, in the order of the
/// reference. Sources do not count, a secret counts as set or not, and the expected hash itself does not count.
#[must_use]
pub fn fingerprint(entries: &[Entry]) -> String {
    let mut hash = Sha256::new();
    for entry in entries.iter().filter(|e| e.key != "config.expected_sha256") {
        hash.update(format!("{} = {}\n", entry.key, entry.value));
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The configuration file: the named one, which must exist, or the default one, which may.
fn read_file(named: Option<PathBuf>) -> Result<Option<(PathBuf, String)>, String> {
    let must_exist = named.is_some();
    let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let why = |e: &dyn std::fmt::Display| {
        format!("{}: the configuration file cannot be read: {e}.", path.display())
    };
    match regular(&path, MAX_FILE_BYTES + 1) {
        Ok(None) if must_exist => Err(why(&std::io::Error::from(std::io::ErrorKind::NotFound))),
        Ok(None) => Ok(None),
        Ok(Some(bytes)) if bytes.len() as u64 > MAX_FILE_BYTES => {
            Err(why(&format!("it is larger than {MAX_FILE_BYTES} bytes")))
        }
        Ok(Some(bytes)) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some((path, text))),
            Err(e) => Err(why(&format!("byte {} is not UTF-8", e.utf8_error().valid_up_to()))),
        },
        Err(e) => Err(why(&e)),
    }
}

/// What a file holds, its beginning where it is longer than `most`; `None` where there is none. A link is followed; what is no file is
/// neither read nor waited for.
///
/// # Errors
/// The system's, and that it is no file.
pub fn regular(path: &Path, most: u64) -> std::io::Result<Option<Vec<u8>>> {
    use std::io::{Error, ErrorKind, Read as _};
    let what = match std::fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if what.is_dir() {
        return Err(Error::other("it is a folder, not a file"));
    }
    if !what.is_file() {
        return Err(Error::other("it is a pipe or a device, not a file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A setting whose range fits any machine's `usize`.
fn size(value: u64) -> usize {
    usize::try_from(value).expect("the ranges of sizes end far below 2^32")
}

/// `http://host[:port]`, nothing behind it.
fn is_origin(text: &str) -> bool {
    text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).is_some_and(|rest| {
        !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'@'))
    })
}

#[cfg(test)]
mod tests;
