//! Numbers read at the moment `/metrics` is asked: models and their hosts, this process; temperatures of the monitor's newest reading.

use crate::{ApiConfig, device, health};
use inferd_hosts::{BreakerView, DEVICE_EVENTS, DeviceState, Hosts, Served, Snapshot};
use inferd_model::Manifest;
use inferd_watch::monitor::{Monitor, Temperature};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Everything that is read and not kept.
pub(crate) struct Live {
    hosts: Arc<Hosts>,
    default_model: Option<String>,
    config_hash: String,
    expected_config_hash: Option<String>,
    motifs_without_head: usize,
    triton: bool,
    aliases: bool,
    monitor: Arc<OnceLock<Monitor>>,
    started: f64,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Live {
    pub(crate) fn new(hosts: Arc<Hosts>, config: &ApiConfig, monitor: Arc<OnceLock<Monitor>>) -> Self {
        Self {
            hosts,
            default_model: config.default_model.clone(),
            config_hash: config.config_hash.clone(),
            expected_config_hash: config.expected_config_hash.clone(),
            motifs_without_head: config.motifs_without_head,
            triton: config.compat.triton_metrics,
            aliases: config.compat.metric_aliases,
            monitor,
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
        }
    }
}

/// One model at this moment.
struct Seen {
    model: Arc<Served>,
    manifest: Arc<Manifest>,
    name: String,
    device: String,
    /// Its rung, as text.
    engine: String,
    ready: bool,
    numbers: Snapshot,
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let models: Vec<Seen> = self
            .hosts
            .list()
            .into_iter()
            .map(|model| {
                let (manifest, engine) = (model.manifest(), model.engine());
                Seen {
                    name: manifest.name.to_string(),
                    ready: health::words(&model).state == "ready",
                    numbers: model.snapshot(),
                    device: engine.device,
                    engine: engine.rung.map_or_else(String::new, |rung| rung.to_string()),
                    manifest,
                    model,
                }
            })
            .collect();
        let mut out = Writer { encoder: &mut encoder };
        self.seed(&mut out, &models)?;
        per_model(&mut out, &models)?;
        per_host(&mut out, &models)?;
        if self.triton {
            triton(&mut out, &models)?;
        }
        let steps = self.hosts.recovery_steps();
        out.counter(
            "inferd_device_recovery_steps",
            "Steps taken to get a lost device of an engine back",
            steps.iter().map(|(device, step, n)| (vec![("device", device.as_str()), ("step", *step)], *n)),
        )?;
        if self.aliases {
            let ready = models.iter().map(|m| (vec![("model", m.name.as_str())], yes(m.ready)));
            out.gauge("inference_session_ready", "Whether the model answers", ready)?;
        }
        let errors = self.hosts.load_errors().len();
        out.gauge("inferd_model_load_errors", "Models that could not be loaded", [(vec![], float(errors))])?;
        let view = self.monitor.get().map(|m| m.view().borrow().clone()).unwrap_or_default();
        let temperatures = view.sample.as_ref().map_or(&[][..], |s| &s.temperatures);
        machine(&mut out, &models, temperatures, self.aliases)
    }
}

impl Live {
    /// The seed's names, with the truth in them.
    fn seed(&self, out: &mut Writer<'_, '_>, models: &[Seen]) -> fmt::Result {
        out.gauge(
            "hailo_model_loaded",
            "Whether the model answers",
            models.iter().map(|m| {
                (vec![("model", m.name.as_str()), ("version", m.manifest.version.as_str())], yes(m.ready))
            }),
        )?;
        let imu: Vec<(&Seen, String)> = models
            .iter()
            .filter_map(|m| {
                let imu = m.manifest.imu.as_ref()?;
                let motifs = imu.motif.as_ref().map_or(self.motifs_without_head, |h| h.labels().len());
                Some((m, motifs.to_string()))
            })
            .collect();
        out.gauge(
            "hailo_model_info",
            "What the model is; always 1",
            imu.iter().map(|(m, motifs)| {
                let labels = vec![
                    ("model", m.name.as_str()),
                    ("hef_path", m.manifest.onnx.file.as_str()),
                    ("motifs", motifs.as_str()),
                    ("device", m.device.as_str()),
                ];
                (labels, 1.0)
            }),
        )?;
        out.gauge(
            "inferd_motif_head",
            "Where the motif scores of the model come from: output, linear, or none (zeros); always 1",
            imu.iter().map(|(m, _)| {
                let head = m.manifest.imu.as_ref().and_then(|i| i.motif.as_ref());
                (vec![("model", m.name.as_str()), ("source", head.map_or("none", |h| h.source()))], 1.0)
            }),
        )?;
        out.gauge(
            "hailo_sidecar_start_time_seconds",
            "When the endpoint was started, Unix time",
            [(vec![], self.started)],
        )?;
        let default = match &self.default_model {
            Some(name) => models.iter().find(|m| m.name == *name),
            None => imu.first().map(|(m, _)| *m),
        };
        // Summed over the models of a task: one label set is one sample.
        let mut answered: Vec<(&'static str, u64)> = Vec::new();
        for m in models {
            let task = m.manifest.task.name();
            match answered.iter_mut().find(|(t, _)| *t == task) {
                Some((_, n)) => *n += m.numbers.success,
                None => answered.push((task, m.numbers.success)),
            }
        }
        out.counter(
            "hailo_samples_processed",
            "Inputs that were answered (windows, images), by the task of their model",
            answered.iter().map(|&(task, n)| (vec![("input_type", task)], n)),
        )?;
        out.gauge(
            "hailo_model_output_dimensions",
            "Elements of each output of the default model",
            default.iter().flat_map(|m| &m.manifest.outputs).map(|o| {
                let elements = u32::try_from(o.elements()).unwrap_or(u32::MAX);
                (vec![("output_type", o.name.as_str())], f64::from(elements))
            }),
        )?;
        let sha = default.map_or("", |m| m.manifest.onnx.sha256.as_str());
        let build = vec![
            ("version", env!("CARGO_PKG_VERSION")),
            ("hef_sha", sha),
            ("config", self.config_hash.as_str()),
        ];
        out.gauge("hailo_build_info", "Version, model and configuration; always 1", [(build, 1.0)])?;
        // Without an expectation there is nothing to compare, and no sample.
        let expected = self.expected_config_hash.as_deref();
        out.gauge(
            "hailo_config_ok",
            "Whether the effective configuration is the expected one",
            expected.map(|e| {
                let labels = vec![("expected", e), ("actual", self.config_hash.as_str())];
                (labels, yes(e == self.config_hash))
            }),
        )
    }
}

fn per_model(out: &mut Writer<'_, '_>, models: &[Seen]) -> fmt::Result {
    let one = |m| move |value| (vec![("model", Seen::name(m))], value);
    out.gauge(
        "inferd_model_ready",
        "Whether the model answers",
        models.iter().map(|m| one(m)(yes(m.ready))),
    )?;
    out.gauge(
        "inferd_model_info",
        "What runs the model; always 1",
        models.iter().map(|m| {
            let labels = vec![
                ("model", m.name.as_str()),
                ("version", m.manifest.version.as_str()),
                ("task", m.manifest.task.name()),
                ("engine", m.engine.as_str()),
                ("device", m.device.as_str()),
                ("sha256", m.manifest.onnx.sha256.as_str()),
            ];
            (labels, 1.0)
        }),
    )?;
    out.gauge(
        "inferd_golden_cosine",
        "Least cosine similarity with the golden vectors at the last start",
        models.iter().filter_map(|m| Some(one(m)(m.model.agreement()?.cosine))),
    )?;
    out.gauge(
        "inferd_golden_max_abs",
        "Largest difference from the golden vectors at the last start",
        models.iter().filter_map(|m| Some(one(m)(m.model.agreement()?.max_abs))),
    )?;
    out.counter(
        "inferd_inferences",
        "Inferences that gave a result",
        models.iter().map(|m| (vec![("model", m.name.as_str())], m.numbers.success)),
    )?;
    out.counter(
        "inferd_inference_failures",
        "Inferences that gave none, by cause",
        models.iter().flat_map(|m| {
            let labelled = |(reason, n): &(&'static str, u64)| {
                (vec![("model", m.name.as_str()), ("reason", *reason)], *n)
            };
            m.numbers.failures.iter().map(labelled)
        }),
    )?;
    for (name, help, value) in COUNTERS {
        let samples = models.iter().map(|m| (vec![("model", m.name.as_str())], value(&m.numbers)));
        out.counter(name, help, samples)?;
    }
    for (name, help, value) in GAUGES {
        out.gauge(name, help, models.iter().filter_map(|m| Some(one(m)(value(&m.numbers)?))))?;
    }
    out.histogram("inferd_queue_duration_seconds", "Waiting for a worker", models, |m| {
        &m.model.histograms().queue
    })?;
    out.histogram("inferd_compute_duration_seconds", "In the worker: normalisation and engine", models, |m| {
        &m.model.histograms().compute
    })
}

type Read<T> = (&'static str, &'static str, fn(&Snapshot) -> T);

const COUNTERS: [Read<u64>; 5] = [
    ("inferd_late_answers", "Answers that came after their request was given up, and were dropped", |n| {
        n.late
    }),
    ("inferd_cancelled", "Requests dropped before they ran: the client left or the deadline passed", |n| {
        n.cancelled
    }),
    ("inferd_worker_panics", "Panics contained in workers", |n| n.panics),
    ("inferd_slot_hits", "Requests that found a free slot", |n| n.pool_hits),
    ("inferd_slot_misses", "Requests that found none and were refused", |n| n.pool_misses),
];

const GAUGES: [Read<Option<f64>>; 4] = [
    ("inferd_slots", "Slots: requests that may run or wait at once", |n| Some(float(n.slots))),
    ("inferd_slots_in_use", "Slots in use now", |n| Some(float(n.slots_in_use))),
    ("inferd_queue_length", "Requests waiting now", |n| Some(float(n.waiting))),
    ("inferd_drain_rate", "Requests per second the workers can finish", |n| n.drain_per_second),
];

fn per_host(out: &mut Writer<'_, '_>, models: &[Seen]) -> fmt::Result {
    out.counter(
        "inferd_host_starts",
        "Times the engine host of the model was started",
        models.iter().map(|m| (vec![("model", m.name.as_str())], m.numbers.starts)),
    )?;
    out.counter(
        "inferd_host_ends",
        "Engine hosts that ended unasked, by cause",
        models.iter().flat_map(|m| {
            let labelled =
                |(cause, n): &(&'static str, u64)| (vec![("model", m.name.as_str()), ("cause", *cause)], *n);
            m.numbers.ends.iter().map(labelled)
        }),
    )?;
    let breakers: Vec<(&str, String, BreakerView)> = models
        .iter()
        .flat_map(|m| m.model.breakers().into_iter().map(|b| (m.name.as_str(), b.engine.to_string(), b)))
        .collect();
    out.gauge(
        "inferd_breaker_state",
        "Circuit breaker of the model's engine: 0 closed, 1 half-open, 2 open",
        breakers.iter().map(|(model, rung, b)| {
            (vec![("model", *model), ("engine", rung.as_str())], float(b.state as u8))
        }),
    )?;
    out.counter(
        "inferd_breaker_opened",
        "Times the circuit breaker of the model's engine opened",
        breakers
            .iter()
            .map(|(model, rung, b)| (vec![("model", *model), ("engine", rung.as_str())], b.opened_total)),
    )?;
    let fallbacks: Vec<(&str, String, String)> = models
        .iter()
        .filter_map(|m| {
            let f = m.model.fallback()?;
            Some((m.name.as_str(), f.from.to_string(), f.to.to_string()))
        })
        .collect();
    out.gauge(
        "inferd_engine_fallback",
        "1 while another engine than the preferred one serves the model",
        fallbacks.iter().map(|(model, from, to)| {
            (vec![("model", *model), ("from", from.as_str()), ("to", to.as_str())], 1.0)
        }),
    )?;
    out.gauge(
        "inferd_quarantined_inputs",
        "Inputs that are refused because engine hosts ended with them",
        models.iter().map(|m| (vec![("model", m.name.as_str())], float(m.model.quarantined()))),
    )?;
    out.gauge(
        "inferd_host_memory_limit_bytes",
        "Hard memory cap of the engine host, and what enforces it",
        models.iter().filter(|m| m.numbers.host_pid.is_some()).map(|m| {
            let labels = vec![("model", m.name.as_str()), ("enforced_by", m.numbers.memory_cap_kind)];
            (labels, float(m.numbers.memory_cap))
        }),
    )?;
    out.gauge(
        "inferd_host_resident_memory_bytes",
        "Resident memory of the engine host",
        models.iter().filter_map(|m| Some((vec![("model", m.name.as_str())], float(m.numbers.host_rss?)))),
    )?;
    let indices: Vec<String> = (0..models.iter().map(|m| m.numbers.workers.len()).max().unwrap_or(0))
        .map(|i| i.to_string())
        .collect();
    let workers = || {
        models.iter().flat_map(|m| {
            let labelled = |(i, w)| (vec![("model", m.name.as_str()), ("worker", i)], w);
            indices.iter().map(String::as_str).zip(&m.numbers.workers).map(labelled)
        })
    };
    out.gauge(
        "inferd_worker_allocated_bytes",
        "Bytes a worker has allocated now",
        workers().map(|(l, w)| (l, float(w.live_bytes))),
    )?;
    out.gauge(
        "inferd_worker_allocated_peak_bytes",
        "The most bytes a worker had allocated at once",
        workers().map(|(l, w)| (l, float(w.peak_bytes))),
    )?;
    out.counter(
        "inferd_worker_inferences",
        "Inferences a worker ran",
        workers().map(|(l, w)| (l, w.requests)),
    )
}

/// Triton's names, for dashboards that know them. They break the naming rules (`_count`, `_us`, no `_total`), hence the switch.
fn triton(out: &mut Writer<'_, '_>, models: &[Seen]) -> fmt::Result {
    let labels = |m| vec![("model", Seen::name(m)), ("version", Seen::version(m))];
    let us = |ns: u64| ns / 1000;
    let tables: [Read<u64>; 6] = [
        ("nv_inference_request_success", "Inferences that gave a result", |n| n.success),
        ("nv_inference_count", "Inferences that gave a result", |n| n.success),
        ("nv_inference_exec_count", "Executions; no batches are made", |n| n.success),
        ("nv_inference_queue_duration_us", "Sum of waiting", |n| n.queue_ns),
        ("nv_inference_compute_infer_duration_us", "Sum of computing", |n| n.compute_ns),
        ("nv_inference_request_duration_us", "Sum of waiting and computing", |n| n.queue_ns + n.compute_ns),
    ];
    for (name, help, value) in tables {
        let scale = |n: u64| if name.ends_with("_us") { us(n) } else { n };
        out.unknown(name, help, models.iter().map(|m| (labels(m), float(scale(value(&m.numbers))))))?;
    }
    out.unknown(
        "nv_inference_request_failure",
        "Inferences that gave none, by cause",
        models.iter().flat_map(|m| {
            m.numbers.failures.iter().map(move |(reason, n)| {
                let mut with = labels(m);
                with.push(("reason", *reason));
                (with, float(*n))
            })
        }),
    )?;
    out.unknown(
        "nv_inference_pending_request_count",
        "Requests waiting now",
        models.iter().map(|m| (labels(m), float(m.numbers.waiting))),
    )
}

impl Seen {
    fn name(&self) -> &str {
        &self.name
    }
    fn version(&self) -> &str {
        &self.manifest.version
    }
}

/// The device and this process. What the kernel does not tell has no sample.
fn machine(
    out: &mut Writer<'_, '_>,
    models: &[Seen],
    temperatures: &[Temperature],
    aliases: bool,
) -> fmt::Result {
    out.gauge(
        "inferd_temperature_celsius",
        "Temperature of a thermal zone",
        temperatures.iter().map(|t| (vec![("sensor", t.sensor.as_str())], t.celsius)),
    )?;
    // The seed's name is that of the device models run on. While that is the CPU, the zones above are it.
    let on_cpu = models.iter().any(|m| m.engine == "cpu");
    let zones =
        temperatures.iter().filter(|_| on_cpu).map(|t| (vec![("device_id", t.sensor.as_str())], t.celsius));
    let mut devices: Vec<(&Seen, DeviceState)> =
        models.iter().filter_map(|m| Some((m, m.numbers.device.clone()?))).collect();
    devices.sort_by(|(a, _), (b, _)| a.device.cmp(&b.device));
    // Models that share a device tell the same of it, but each only of its own calls: it is busy at least as much as with any one's.
    devices.dedup_by(|(a, next), (b, kept)| {
        let same = a.device == b.device;
        if same {
            kept.temperature = kept.temperature.or(next.temperature);
            kept.power = kept.power.or(next.power);
            kept.load = kept.load.into_iter().chain(next.load).reduce(f32::max);
        }
        same
    });
    let degrees = || devices.iter().filter_map(|(m, d)| Some((m.device.as_str(), f64::from(d.temperature?))));
    out.gauge(
        "hailo_device_temperature_celsius",
        "Temperature of the device that runs models",
        zones.chain(degrees().map(|(device, t)| (vec![("device_id", device)], t))),
    )?;
    out.gauge(
        "hailo_hardware_temperature_celsius",
        "Temperature of the accelerator: the hotter of its sensors",
        degrees().map(|(device, t)| (vec![("chip_id", device)], t)),
    )?;
    out.gauge(
        "hailo_hailort_status",
        "Whether the accelerator told its temperature when it was asked last",
        devices
            .iter()
            .filter(|(_, d)| d.zone.is_some())
            .map(|(m, d)| (vec![("device_id", m.device.as_str())], yes(d.temperature.is_some()))),
    )?;
    out.gauge(
        "inferd_device_power_watts",
        "What the accelerator draws, where it can measure it",
        devices.iter().filter_map(|(m, d)| Some((vec![("device", m.device.as_str())], f64::from(d.power?)))),
    )?;
    let load = || devices.iter().filter_map(|(m, d)| Some((m.device.as_str(), f64::from(d.load?))));
    out.gauge(
        "inferd_device_load_ratio",
        "Share of the last second in which the accelerator had calls of a model under way (of several models on it: of the busiest)",
        load().map(|(device, share)| (vec![("device", device)], share)),
    )?;
    for (name, label) in
        [("hailo_device_utilization_percent", "device_id"), ("hailo_hardware_utilization_percent", "chip_id")]
    {
        let samples =
            load().filter(|_| aliases).map(|(device, share)| (vec![(label, device)], 100.0 * share));
        out.gauge(name, "inferd_device_load_ratio in percent", samples)?;
    }
    let memory = || devices.iter().filter_map(|(m, d)| Some((m.device.as_str(), d.memory?)));
    out.gauge(
        "inferd_device_memory_used_bytes",
        "Memory of the accelerator in use, whoever uses it; the board's where they share it",
        memory().map(|(device, memory)| (vec![("device", device)], float(memory.used))),
    )?;
    out.gauge(
        "inferd_device_memory_total_bytes",
        "Memory of the accelerator; the board's where they share it",
        memory().map(|(device, memory)| (vec![("device", device)], float(memory.total))),
    )?;
    out.gauge(
        "inferd_device_temperature_zone",
        "What the accelerator said of its temperature last: 0 normal, 1 high, 2 too high",
        devices.iter().filter_map(|(m, d)| Some((vec![("device", m.device.as_str())], f64::from(d.zone?)))),
    )?;
    // A gauge: it begins anew with every host.
    out.gauge(
        "inferd_device_notifications",
        "What the accelerator has told since its engine host opened it: heat, throttling, errors",
        devices.iter().filter(|(_, d)| d.zone.is_some()).flat_map(|(m, d)| {
            let told = DEVICE_EVENTS.iter().zip(d.events);
            told.map(|(event, n)| (vec![("device", m.device.as_str()), ("event", *event)], float(n)))
        }),
    )?;
    let p = device::process();
    if let Some(seconds) = p.cpu_seconds {
        out.float_counter("process_cpu_seconds", "User and system time of the daemon", seconds)?;
    }
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Resident memory of the daemon", p.resident_bytes.map(float)),
        ("process_virtual_memory_bytes", "Virtual memory of the daemon", p.virtual_bytes.map(float)),
        ("process_open_fds", "Open file descriptors of the daemon", p.open_fds.map(float)),
        ("process_max_fds", "Most file descriptors the daemon may open", p.max_fds.map(float)),
        ("process_start_time_seconds", "When the daemon was started, Unix time", p.start_seconds),
        ("process_threads", "Threads of the daemon", p.threads.map(float)),
    ] {
        out.gauge(name, help, value.map(|v| (vec![], v)))?;
    }
    Ok(())
}

pub(crate) fn yes(b: bool) -> f64 {
    if b { 1.0 } else { 0.0 }
}

/// A count as a sample's value; above 2^53 its last digits may be off, which no reader of a metric notices.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(n: impl TryInto<u64>) -> f64 {
    n.try_into().map_or(f64::NAN, |n| n as f64)
}

/// Families with their samples. A family without samples is left out.
pub(crate) struct Writer<'e, 'a> {
    pub(crate) encoder: &'e mut DescriptorEncoder<'a>,
}

impl Writer<'_, '_> {
    pub(crate) fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        self.floats(name, help, MetricType::Gauge, samples)
    }

    fn unknown<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        self.floats(name, help, MetricType::Unknown, samples)
    }

    fn floats<'l>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    pub(crate) fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    fn float_counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, f64, f64>(&value, None)
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        models: &[Seen],
        of: impl Fn(&Seen) -> &prometheus_client::metrics::histogram::Histogram,
    ) -> fmt::Result {
        if models.is_empty() {
            return Ok(());
        }
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for m in models {
            of(m).encode(family.encode_family(&vec![("model", m.name.as_str())])?)?;
        }
        Ok(())
    }
}
