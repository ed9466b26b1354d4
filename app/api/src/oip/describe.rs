//! What the protocol tells about the server and its models: metadata, configuration, statistics, the repository's index.

use inferd_hosts::{EngineInfo, Snapshot, State};
use inferd_model::{
    Agreement, Channels, DType, EngineKind, Limit, Manifest, Motif, Normalization, TensorSpec,
};
use serde::Serialize;
use std::time::Duration;

/// The extensions that are really there, by the names the protocol gave them.
pub const EXTENSIONS: [&str; 6] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
];

/// `GET /v2`.
#[derive(Debug, Serialize)]
pub struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 6],
}

impl ServerMetadata {
    /// This server.
    pub const THIS: Self =
        Self { name: "inferd", version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS };
}

/// `GET /v2/models/{m}`: what the protocol asks for, and under `parameters` our contract beyond it.
#[derive(Debug, Serialize)]
pub struct ModelMetadata<'m> {
    name: &'m str,
    versions: [&'m str; 1],
    platform: &'static str,
    inputs: Vec<TensorMetadata<'m>>,
    outputs: Vec<TensorMetadata<'m>>,
    parameters: ModelParameters<'m>,
}

#[derive(Debug, Serialize)]
struct TensorMetadata<'m> {
    name: &'m str,
    datatype: DType,
    shape: &'m [u32],
    parameters: TensorParameters<'m>,
}

/// What a client must know to fill an input rightly.
#[derive(Debug, Serialize)]
struct TensorParameters<'m> {
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<&'m Channels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    normalization: Option<Normalized<'m>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    limits: &'m [Limit],
    /// `refused` or `accepted`, for floating-point inputs sent as binary data.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_finite: Option<&'static str>,
    /// What the elements of an output stand for, as `classification` names them.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    labels: &'m [String],
    /// Whether the tensor has a JSON form at all.
    json: bool,
}

#[derive(Debug, Serialize)]
struct Normalized<'m> {
    applied_by: &'static str,
    formula: &'static str,
    #[serde(flatten)]
    constants: &'m Normalization,
}

#[derive(Debug, Serialize)]
struct ModelParameters<'m> {
    task: inferd_model::Task,
    summary: &'m str,
    sha256: &'m str,
    deadline_ms: u32,
    memory_mib: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    engine: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    engine_version: &'m str,
    #[serde(skip_serializing_if = "str::is_empty")]
    device: &'m str,
    /// How near the engine came to the golden vectors when it was loaded, and how near it had to come.
    #[serde(skip_serializing_if = "Option::is_none")]
    golden: Option<GoldenResult>,
}

#[derive(Debug, Serialize)]
struct GoldenResult {
    cosine: f64,
    cosine_at_least: f64,
    max_abs: f64,
    max_abs_at_most: f64,
}

impl<'m> ModelMetadata<'m> {
    /// The metadata of a model.
    #[must_use]
    pub fn of(m: &'m Manifest, engine: &'m EngineInfo, agreement: Option<Agreement>) -> Self {
        let tolerance = engine.rung.map_or(m.golden.tolerance(), |rung| m.tolerance(rung));
        Self {
            name: m.name.as_str(),
            versions: [&m.version],
            platform: platform(m, engine),
            inputs: m.inputs.iter().map(|s| tensor(m, s, true)).collect(),
            outputs: m.outputs.iter().map(|s| tensor(m, s, false)).collect(),
            parameters: ModelParameters {
                task: m.task,
                summary: &m.summary,
                sha256: &m.onnx.sha256,
                deadline_ms: m.budget.deadline_ms,
                memory_mib: m.budget.memory_mib,
                engine: engine.rung.map(|rung| rung.to_string()).unwrap_or_default(),
                engine_version: &engine.version,
                device: &engine.device,
                golden: agreement.map(|a| GoldenResult {
                    cosine: a.cosine,
                    cosine_at_least: tolerance.cosine,
                    max_abs: a.max_abs,
                    max_abs_at_most: tolerance.max_abs,
                }),
            },
        }
    }
}

fn tensor<'m>(m: &'m Manifest, spec: &'m TensorSpec, is_input: bool) -> TensorMetadata<'m> {
    let measured = spec.normalization.is_some() || !spec.limits.is_empty();
    let not_finite = if measured { "refused" } else { "accepted" };
    TensorMetadata {
        name: &spec.name,
        datatype: spec.dtype,
        shape: &spec.shape,
        parameters: TensorParameters {
            channels: spec.channels.as_ref(),
            normalization: spec.normalization.as_ref().map(|constants| Normalized {
                applied_by: "server",
                formula: "(x - mean) / std",
                constants,
            }),
            limits: &spec.limits,
            not_finite: (is_input && spec.dtype.is_float()).then_some(not_finite),
            labels: if is_input { &[] } else { labels(m, &spec.name) },
            json: !matches!(spec.dtype, DType::Fp16 | DType::Bf16),
        },
    }
}

/// The labels of an output's elements, where the manifest has them.
#[must_use]
pub fn labels<'m>(model: &'m Manifest, output: &str) -> &'m [String] {
    match model.imu.as_ref().and_then(|i| i.motif.as_ref()) {
        Some(Motif::Output { output: scores, labels }) if scores == output => labels,
        _ => &[],
    }
}

/// The platform's name, as Triton builds them: engine and format of the model. Before the first start it is the engine the
/// manifest prefers.
fn platform(m: &Manifest, engine: &EngineInfo) -> &'static str {
    let named = |kind: &str| match kind {
        "cpu" => Some("cpu_onnx"),
        "ort" => Some("onnxruntime_onnx"),
        "hailo" => Some("hailo_hef"),
        "tensorrt" => Some("tensorrt_plan"),
        _ => None,
    };
    named(engine.kind).unwrap_or(match m.engines.first().map(|rung| rung.engine) {
        Some(EngineKind::Ort) => "onnxruntime_onnx",
        Some(EngineKind::Hailo) => "hailo_hef",
        Some(EngineKind::Tensorrt) => "tensorrt_plan",
        Some(EngineKind::Cpu) | None => "cpu_onnx",
    })
}

/// `GET /v2/models/{m}/config`: Triton's `ModelConfig`, as far as it says something about our models.
#[derive(Debug, Serialize)]
pub struct ModelConfig<'m> {
    name: &'m str,
    platform: &'static str,
    backend: &'m str,
    /// The batch dimension, if there is one, is part of the fixed shape.
    max_batch_size: u32,
    version_policy: VersionPolicy,
    input: Vec<ConfigInput<'m>>,
    output: Vec<ConfigOutput<'m>>,
    instance_group: [InstanceGroup<'m>; 1],
    default_model_filename: &'m str,
}

#[derive(Debug, Serialize)]
struct VersionPolicy {
    latest: Latest,
}

#[derive(Debug, Serialize)]
struct Latest {
    num_versions: u32,
}

#[derive(Debug, Serialize)]
struct ConfigInput<'m> {
    name: &'m str,
    data_type: String,
    format: &'static str,
    dims: &'m [u32],
    is_shape_tensor: bool,
    allow_ragged_batch: bool,
    optional: bool,
}

#[derive(Debug, Serialize)]
struct ConfigOutput<'m> {
    name: &'m str,
    data_type: String,
    dims: &'m [u32],
    label_filename: &'static str,
    is_shape_tensor: bool,
}

#[derive(Debug, Serialize)]
struct InstanceGroup<'m> {
    name: &'m str,
    kind: &'static str,
    count: usize,
    gpus: [u32; 0],
}

impl<'m> ModelConfig<'m> {
    /// The configuration of a model that runs in so many workers.
    #[must_use]
    pub fn of(m: &'m Manifest, engine: &'m EngineInfo, workers: usize) -> Self {
        Self {
            name: m.name.as_str(),
            platform: platform(m, engine),
            backend: engine.kind,
            max_batch_size: 0,
            version_policy: VersionPolicy { latest: Latest { num_versions: 1 } },
            input: m
                .inputs
                .iter()
                .map(|s| ConfigInput {
                    name: &s.name,
                    data_type: format!("TYPE_{}", s.dtype),
                    format: "FORMAT_NONE",
                    dims: &s.shape,
                    is_shape_tensor: false,
                    allow_ragged_batch: false,
                    optional: false,
                })
                .collect(),
            output: m
                .outputs
                .iter()
                .map(|s| ConfigOutput {
                    name: &s.name,
                    data_type: format!("TYPE_{}", s.dtype),
                    dims: &s.shape,
                    label_filename: "",
                    is_shape_tensor: false,
                })
                .collect(),
            instance_group: [InstanceGroup {
                name: m.name.as_str(),
                kind: if engine.kind == "cpu" { "KIND_CPU" } else { "KIND_AUTO" },
                count: workers,
                gpus: [],
            }],
            default_model_filename: &m.onnx.file,
        }
    }
}

/// What this room counts of a model's requests; queue and compute are counted by the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Door {
    /// Milliseconds since the epoch of the last answered request; 0: none yet.
    pub last_ms: u64,
    /// Requests whose tensors were read, and how long that took in all.
    pub input: Stat,
    /// Replies that were written.
    pub output: Stat,
    /// Time spent on requests that failed.
    pub fail_ns: u64,
}

/// A count and the sum of its durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// How often.
    pub count: u64,
    /// How long in all, in nanoseconds.
    pub ns: u64,
}

/// `GET /v2/models[/{m}]/stats`.
#[derive(Debug, Serialize)]
pub struct Statistics {
    /// One entry per model.
    pub model_stats: Vec<ModelStat>,
}

/// One entry of `model_stats`, as Triton's statistics extension has it; `inferd` holds what that has no place for.
#[derive(Debug, Serialize)]
pub struct ModelStat {
    name: String,
    version: String,
    last_inference: u64,
    inference_count: u64,
    execution_count: u64,
    inference_stats: InferenceStats,
    response_stats: Empty,
    batch_stats: Vec<BatchStat>,
    memory_usage: Vec<MemoryUsage>,
    inferd: Extra,
}

#[derive(Debug, Serialize)]
struct Empty {}

#[derive(Debug, Serialize)]
struct InferenceStats {
    success: Stat,
    fail: Stat,
    queue: Stat,
    compute_input: Stat,
    compute_infer: Stat,
    compute_output: Stat,
    cache_hit: Stat,
    cache_miss: Stat,
}

#[derive(Debug, Serialize)]
struct BatchStat {
    batch_size: u32,
    compute_input: Stat,
    compute_infer: Stat,
    compute_output: Stat,
}

#[derive(Debug, Serialize)]
struct MemoryUsage {
    r#type: &'static str,
    id: u32,
    byte_size: u64,
}

/// Numbers only we have.
#[derive(Debug, Serialize)]
struct Extra {
    state: &'static str,
    /// Exact quantiles over the last 1024 successes; absent before the first.
    quantiles: Option<Quantiles>,
    drain_per_second: Option<f64>,
    waiting: usize,
    slots: usize,
    slots_in_use: usize,
    failures: std::collections::BTreeMap<&'static str, u64>,
    late: u64,
    cancelled: u64,
    panics: u64,
    host_starts: u64,
    host_ends: std::collections::BTreeMap<&'static str, u64>,
    host_rss_bytes: Option<u64>,
    memory_cap_bytes: u64,
    memory_cap_kind: &'static str,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    window: u32,
    queue: Quantile,
    compute_infer: Quantile,
}

#[derive(Debug, Serialize)]
struct Quantile {
    p50_ns: u64,
    p95_ns: u64,
    p99_ns: u64,
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl From<[Duration; 3]> for Quantile {
    fn from([p50, p95, p99]: [Duration; 3]) -> Self {
        Self { p50_ns: ns(p50), p95_ns: ns(p95), p99_ns: ns(p99) }
    }
}

impl ModelStat {
    /// The statistics of a model, from what its host counted and what was counted at the door.
    #[must_use]
    pub fn of(m: &Manifest, state: &State, s: &Snapshot, door: Door) -> Self {
        let queue = Stat { count: s.success, ns: s.queue_ns };
        let compute_infer = Stat { count: s.success, ns: s.compute_ns };
        let (compute_input, compute_output) = (door.input, door.output);
        let all = queue.ns + compute_infer.ns + compute_input.ns + compute_output.ns;
        let failed = s.failures.iter().map(|(_, n)| n).sum();
        let window = s.success.min(1024);
        Self {
            name: m.name.to_string(),
            version: m.version.clone(),
            last_inference: door.last_ms,
            inference_count: s.success,
            execution_count: s.success,
            inference_stats: InferenceStats {
                success: Stat { count: s.success, ns: all },
                fail: Stat { count: failed, ns: door.fail_ns },
                queue,
                compute_input,
                compute_infer,
                compute_output,
                cache_hit: Stat::default(),
                cache_miss: Stat::default(),
            },
            response_stats: Empty {},
            // As in Triton: a list that is empty until something ran.
            batch_stats: (s.success > 0)
                .then_some(BatchStat { batch_size: 1, compute_input, compute_infer, compute_output })
                .into_iter()
                .collect(),
            memory_usage: s
                .host_rss
                .map(|byte_size| MemoryUsage { r#type: "CPU", id: 0, byte_size })
                .into_iter()
                .collect(),
            inferd: Extra {
                state: state_name(state),
                quantiles: s.queue_quantiles.zip(s.compute_quantiles).map(|(q, c)| Quantiles {
                    window: u32::try_from(window).unwrap_or(1024),
                    queue: q.into(),
                    compute_infer: c.into(),
                }),
                drain_per_second: s.drain_per_second.filter(|d| d.is_finite()),
                waiting: s.waiting,
                slots: s.slots,
                slots_in_use: s.slots_in_use,
                failures: s.failures.iter().copied().collect(),
                late: s.late,
                cancelled: s.cancelled,
                panics: s.panics,
                host_starts: s.starts,
                host_ends: s.ends.iter().copied().collect(),
                host_rss_bytes: s.host_rss,
                memory_cap_bytes: s.memory_cap,
                memory_cap_kind: s.memory_cap_kind,
            },
        }
    }
}

/// The state in Triton's words.
#[must_use]
pub fn state_name(state: &State) -> &'static str {
    match state {
        State::Ready => "READY",
        State::Starting { .. } => "LOADING",
        State::Restarting { .. } => "UNAVAILABLE",
        State::Stopped => "UNLOADING",
    }
}

/// Why a model is in its state, in a sentence; empty when it is ready.
#[must_use]
pub fn state_reason(state: &State) -> String {
    match state {
        State::Ready => String::new(),
        State::Starting { phase, .. } => (*phase).to_owned(),
        State::Restarting { reason, failures, .. } if *failures > 0 => {
            format!("its engine host ended ({reason}); {failures} starts in a row failed, the next is due")
        }
        State::Restarting { reason, .. } => format!("its engine host ended ({reason}) and is started again"),
        State::Stopped => "unloaded".to_owned(),
    }
}

/// One entry of the repository's index.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct IndexEntry {
    /// The model's name.
    pub name: String,
    /// Its version, when it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `READY`, `LOADING`, `UNAVAILABLE` or `UNLOADING`.
    pub state: &'static str,
    /// Why, or why the last load failed while the model before it serves on.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::super::testing::manifest;
    use super::*;
    use serde_json::{Value, json};
    use std::time::Instant;

    fn to_json(x: &impl Serialize) -> Value {
        // By way of text: what is on the wire, with f32 in their shortest form.
        serde_json::from_slice(&serde_json::to_vec(x).unwrap()).unwrap()
    }

    fn sensor() -> Manifest {
        let mut imu = TensorSpec::plain("imu", DType::Fp32, &[1, 4, 2]);
        imu.channels = Some(Channels {
            names: vec!["ax".into(), "gx".into()],
            units: vec!["m/s^2".into(), "rad/s".into()],
            rate_hz: Some(100.0),
        });
        imu.normalization = Some(Normalization { mean: vec![0.12, 9.78], std: vec![3.92, 2.45] });
        imu.limits =
            vec![Limit { quantity: "Accelerometer".into(), channels: vec!["ax".into()], max_abs: 500.0 }];
        manifest(vec![imu], vec![TensorSpec::plain("y", DType::Fp16, &[3])])
    }

    fn cpu() -> EngineInfo {
        EngineInfo {
            rung: Some(EngineKind::Cpu.into()),
            kind: "cpu",
            version: "rten 0.27.0".into(),
            device: "cpu".into(),
            library: None,
            remark: None,
        }
    }

    #[test]
    fn metadata_holds_the_input_contract() {
        let m = sensor();
        let got = to_json(&ModelMetadata::of(&m, &cpu(), Some(Agreement { cosine: 1.0, max_abs: 1e-6 })));
        assert_eq!(got["name"], "m");
        assert_eq!(got["versions"], json!(["1.0"]));
        assert_eq!(got["platform"], "cpu_onnx");
        assert_eq!(
            got["inputs"],
            json!([{"name":"imu","datatype":"FP32","shape":[1,4,2],"parameters":{
                "channels":{"names":["ax","gx"],"units":["m/s^2","rad/s"],"rate_hz":100.0},
                "normalization":{"applied_by":"server","formula":"(x - mean) / std","mean":[0.12,9.78],"std":[3.92,2.45]},
                "limits":[{"quantity":"Accelerometer","channels":["ax"],"max_abs":500.0}],
                "not_finite":"refused","json":true}}])
        );
        assert_eq!(
            got["outputs"],
            json!([{"name":"y","datatype":"FP16","shape":[3],"parameters":{"json":false}}])
        );
        assert_eq!(got["parameters"]["golden"]["max_abs"], json!(1e-6));
    }

    #[test]
    fn configuration_reads_as_tritons() {
        let m = sensor();
        let got = to_json(&ModelConfig::of(&m, &cpu(), 2));
        assert_eq!(got["max_batch_size"], 0);
        assert_eq!(
            (&got["input"][0]["data_type"], &got["input"][0]["dims"]),
            (&json!("TYPE_FP32"), &json!([1, 4, 2]))
        );
        assert_eq!(got["output"][0]["data_type"], "TYPE_FP16");
        assert_eq!(got["instance_group"][0], json!({"name":"m","kind":"KIND_CPU","count":2,"gpus":[]}));
    }

    #[test]
    fn statistics_add_up() {
        let s = Snapshot {
            success: 10,
            failures: vec![("queue_full", 2), ("timeout", 1)],
            queue_ns: 100,
            compute_ns: 1000,
            queue_quantiles: Some([1, 2, 3].map(Duration::from_nanos)),
            compute_quantiles: Some([4, 5, 6].map(Duration::from_nanos)),
            drain_per_second: Some(f64::INFINITY),
            ..Snapshot::default()
        };
        let door = Door {
            last_ms: 7,
            input: Stat { count: 9, ns: 30 },
            output: Stat { count: 8, ns: 4 },
            fail_ns: 5,
        };
        let got = to_json(&ModelStat::of(&sensor(), &State::Ready, &s, door));
        assert_eq!(got["inference_stats"]["success"], json!({"count":10,"ns":1134}));
        assert_eq!(got["inference_stats"]["fail"], json!({"count":3,"ns":5}));
        assert_eq!(got["inference_stats"]["compute_input"], json!({"count":9,"ns":30}));
        assert_eq!(got["batch_stats"][0]["compute_infer"], json!({"count":10,"ns":1000}));
        assert_eq!(
            got["inferd"]["quantiles"],
            json!({"window":10,"queue":{"p50_ns":1,"p95_ns":2,"p99_ns":3},"compute_infer":{"p50_ns":4,"p95_ns":5,"p99_ns":6}})
        );
        assert_eq!(got["inferd"]["drain_per_second"], Value::Null, "JSON has no infinity");
        assert_eq!(got["last_inference"], 7);
        let idle = to_json(&ModelStat::of(&sensor(), &State::Ready, &Snapshot::default(), Door::default()));
        assert_eq!((&idle["batch_stats"], &idle["inferd"]["quantiles"]), (&json!([]), &Value::Null));
    }

    #[test]
    fn every_state_has_a_name_and_all_but_ready_a_reason() {
        let now = Instant::now();
        let states = [
            State::Starting { phase: "loading the model", since: now },
            State::Restarting { reason: "killed".into(), retry_at: now, failures: 3 },
            State::Stopped,
        ];
        for s in states {
            assert!(!state_reason(&s).is_empty() && state_name(&s) != "READY");
        }
        assert_eq!((state_name(&State::Ready), state_reason(&State::Ready)), ("READY", String::new()));
    }
}
