//! What the device is and does, for people and tools: `/`, `/status`, `/contract`, `/test`.

use crate::health::{default_words, ms, words};
use crate::{App, Reply};
use hyper::StatusCode;
use inferd_hosts::{DEVICE_EVENTS, DeviceState, InferError, Origin, Served};
use inferd_model::{Agreement, EngineKind, Limit, Normalization, Tolerance};
use inferd_tasks::imu::LATENT_CLIP;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Version of the seed's HTTP contract.
const API_VERSION: &str = "1.0.0";

pub(crate) fn root(app: &App) -> Reply {
    let (model, words) = default_words(app);
    let motifs = model.as_ref().and_then(|m| app.imu_plan(m).ok()).map(|(_, p)| p.motif().len());
    Reply::json(
        StatusCode::OK,
        &json!({
            "service": "inferd",
            "version": env!("CARGO_PKG_VERSION"),
            "model_ready": words.state == "ready",
            "endpoints": {
                "health": "/healthz",
                "inference": "/infer",
                "metrics": "/metrics",
                "status": "/status",
                "docs": "/docs",
                "dashboard": "/dashboard",
                "open_inference_protocol": "/v2",
            },
            "config": {
                "hef_path": model.as_ref().map_or_else(String::new, path_of),
                "num_motifs": motifs.unwrap_or(app.config.motifs_without_head),
                "log_level": app.config.log_level,
            },
        }),
    )
}

fn path_of(model: &Arc<Served>) -> String {
    model.origin().file(&model.manifest().onnx.file)
}

pub(crate) fn status(app: &App) -> Reply {
    let (model, w) = default_words(app);
    let ready = w.state == "ready";
    let mut body = Map::new();
    let mut set = |k: &str, v: Value| body.insert(k.to_owned(), v);
    set("ready", json!(ready));
    let endpoint_status = match (ready, &model) {
        (true, _) => "healthy",
        (false, Some(_)) => "unavailable",
        (false, None) => "model_not_loaded",
    };
    set("endpoint_status", json!(endpoint_status));
    set("api_version", json!(API_VERSION));
    set("version", json!(env!("CARGO_PKG_VERSION")));
    set("identity", json!(**app.identity.load()));
    set("uptime_s", json!(app.started.elapsed().as_secs()));
    let engines = app.engines.load();
    let hailort = engines.iter().any(|e| e.engine == EngineKind::Hailo && e.version.is_some());
    set("hailort_available", json!(hailort));
    let plan = model.as_ref().and_then(|m| app.imu_plan(m).ok()).map(|(_, p)| p);
    set("num_motifs", json!(plan.as_ref().map_or(app.config.motifs_without_head, |p| p.motif().len())));
    set("motif_source", json!(plan.as_ref().map(|p| p.motif().source())));
    if let Some(m) = &model {
        let manifest = m.manifest();
        set("model_name", json!(manifest.name.as_str()));
        set("hef_path", json!(path_of(m)));
        set(
            "hef_exists",
            json!(m.origin().directory().is_none_or(|dir| dir.join(&manifest.onnx.file).is_file())),
        );
        set("last_inference_time", json!(m.snapshot().last_compute.map_or(0.0, ms)));
    }
    if ready {
        set("initialization_error", Value::Null);
    } else {
        set("initialization_error", json!(w.reason));
        set("error", json!(w.reason));
    }
    set(
        "config",
        json!({
            "sha256": app.config.config_hash,
            "expected_sha256": app.config.expected_config_hash,
            "warnings": app.config.config_warnings,
        }),
    );
    set("connections", json!(app.metrics.connections.get()));
    let (tls, listening) = (app.tls.load(), app.listening.load());
    set("listen", json!({ "addresses": listening.plain, "unbound": listening.unbound }));
    let no_tls = listening.unbound.iter().find(|u| u.setting.starts_with("tls.")).map(ToString::to_string);
    set(
        "tls",
        json!({
            "listen": listening.secure,
            "fingerprint_sha256": tls.identity.as_ref().map(|i| i.fingerprint.to_string()),
            "self_signed": tls.self_signed,
            "error": tls.error.clone().or(no_tls),
        }),
    );
    set("mdns", json!(app.announced.load().as_deref()));
    set("body_bytes_held", json!(app.bodies.bytes()));
    let view = app.monitor.get().map(|m| m.view().borrow().clone()).unwrap_or_default();
    set("temperatures", json!(view.sample.as_ref().map_or(&[][..], |s| &s.temperatures)));
    set("alerts", json!(view.active));
    set("shed", json!(view.shed));
    let default = model.as_ref().map(|m| m.manifest().name.to_string());
    let models: Vec<Value> = app.hosts.list().iter().map(|m| describe(app, m, default.as_deref())).collect();
    set("engines", json!(**engines));
    set("models", json!(models));
    set("calibrations", json!(app.calibrations.installed(&app.hosts)));
    set("updates", crate::updates::summary(app));
    crate::alive::status(app).into_iter().for_each(|(key, value)| {
        set(key, value);
    });
    set("panel", app.panel.view());
    let errors = app.hosts.load_errors();
    set(
        "load_errors",
        json!(errors.iter().map(|(what, why)| json!({ "model": what, "reason": why })).collect::<Vec<_>>()),
    );
    Reply::json(StatusCode::OK, &body)
}

fn describe(app: &App, model: &Served, default: Option<&str>) -> Value {
    let manifest = model.manifest();
    let engine = model.engine();
    let w = words(model);
    let n = model.snapshot();
    let quantiles = |q: Option<[Duration; 3]>| {
        q.map(|[p50, p95, p99]| json!({ "p50": ms(p50), "p95": ms(p95), "p99": ms(p99) }))
    };
    let counts = |c: &[(&'static str, u64)]| {
        Value::Object(c.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect())
    };
    let plan = app.imu_plan(model).ok().map(|(_, p)| p);
    let origin = model.origin();
    let network = engine.rung.and_then(|rung| manifest.network(rung));
    json!({
        "name": manifest.name.as_str(),
        "version": manifest.version,
        "task": manifest.task.name(),
        "summary": manifest.summary,
        "default": default == Some(manifest.name.as_str()),
        "state": w.state,
        "reason": w.reason,
        "retry_after_ms": w.retry_after.map(ms),
        "ready_for_s": model.ready_since().map(|t| t.elapsed().as_secs()),
        "model_sha256": manifest.onnx.sha256,
        "directory": origin.directory().map(|dir| dir.display().to_string()),
        "bundle": bundle_of(&origin),
        "engines": manifest.engines,
        "engine": {
            "rung": engine.rung, "variant": engine.rung.and_then(|r| r.variant),
            "kind": engine.kind, "version": engine.version, "device": engine.device, "library": engine.library,
            "remark": engine.remark,
            "network": network.map(|n| json!({ "file": n.file, "sha256": n.sha256, "format": n.format })),
        },
        "preferred": model.preferred().map_or_else(
            || json!({ "rung": model.breakers().first().map(|b| b.engine), "by": "manifest" }),
            |rung| json!({ "rung": rung, "by": "measured" }),
        ),
        "variants": manifest.variants,
        "device": n.device.as_ref().map(device_of),
        "golden": model.agreement().map(|a| json!({ "cosine": a.cosine, "max_abs": a.max_abs })),
        "motif_source": plan.as_ref().map(|p| p.motif().source()),
        "motif_labels": plan.as_ref().map(|p| p.motif().labels()),
        "accuracy": manifest.accuracy,
        "decision": crate::benchmarks::decision(app, manifest.name.as_str()),
        "requests": { "success": n.success, "failures": counts(&n.failures), "late": n.late, "cancelled": n.cancelled },
        "queue": {
            "slots": n.slots,
            "in_use": n.slots_in_use,
            "waiting": n.waiting,
            "slot_hits": n.pool_hits,
            "slot_misses": n.pool_misses,
            "drain_per_second": n.drain_per_second,
        },
        "compute_ms": quantiles(n.compute_quantiles),
        "queue_ms": quantiles(n.queue_quantiles),
        "last_compute_ms": n.last_compute.map(ms),
        "host": {
            "pid": n.host_pid,
            "rss_bytes": n.host_rss,
            "memory_cap_bytes": n.memory_cap,
            "memory_cap_kind": n.memory_cap_kind,
            "starts": n.starts,
            "ends": counts(&n.ends),
            "panics": n.panics,
            "workers": n.workers.iter().map(|w| json!({
                "live_bytes": w.live_bytes, "peak_bytes": w.peak_bytes, "requests": w.requests,
            })).collect::<Vec<_>>(),
        },
        "fallback": model.fallback().map(|f| json!({
            "from": f.from, "to": f.to, "reason": f.reason, "for_s": f.since.elapsed().as_secs(),
        })),
        "breakers": model.breakers().iter().map(|b| json!({
            "engine": b.engine,
            "state": b.state.name(),
            "failures_in_a_row": b.failures,
            "opened_total": b.opened_total,
            "retry_after_ms": b.retry_after.map(ms),
            "reason": b.reason,
        })).collect::<Vec<_>>(),
        "quarantined_inputs": model.quarantined(),
        "last_load_error": app.hosts.last_load_error(manifest.name.as_str()),
    })
}

/// How the accelerator is that a model runs on. What it does not tell is null.
fn device_of(device: &DeviceState) -> Value {
    let told = || -> Map<String, Value> {
        DEVICE_EVENTS.iter().zip(device.events).map(|(event, n)| ((*event).to_owned(), json!(n))).collect()
    };
    let zone = device.zone.map(|zone| match zone {
        0 => "normal",
        1 => "high",
        _ => "too-high",
    });
    json!({
        "celsius": device.temperature,
        "watts": device.power,
        "load": device.load,
        "memory_used_bytes": device.memory.map(|m| m.used),
        "memory_total_bytes": device.memory.map(|m| m.total),
        "temperature": zone,
        "told": zone.map(|_| told()),
    })
}

/// The bundle a model came in, if it did.
fn bundle_of(origin: &Origin) -> Option<Value> {
    match origin {
        Origin::Bundle { id, slot, product, version } => {
            Some(json!({ "id": id, "slot": slot, "product": product, "version": version }))
        }
        Origin::Directory(_) => None,
    }
}

/// What a client must know to send a window: nothing about the input is left to a comment.
pub(crate) fn contract(app: &App) -> Reply {
    let unavailable = |reason: &str| {
        Reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", reason, false)
            .with_retry_after(Duration::from_secs(1))
    };
    let Some(model) = app.default_model() else { return unavailable(&default_words(app).1.reason) };
    let (manifest, plan) = match app.imu_plan(&model) {
        Ok(found) => found,
        Err(e) => return unavailable(&e.to_string()),
    };
    let input = &manifest.inputs[0];
    let names = input.channels.as_ref();
    Reply::json(
        StatusCode::OK,
        &Contract {
            window_len: plan.timesteps(),
            channels: plan.channels(),
            latent_dims: plan.latent_len(),
            motif_classes: plan.motif().len(),
            motif_labels: plan.motif().labels(),
            motif_source: plan.motif().source(),
            latent_clip: LATENT_CLIP,
            model: manifest.name.as_str(),
            model_version: &manifest.version,
            rate_hz: names.and_then(|c| c.rate_hz),
            channel_names: names.map(|c| &c.names[..]),
            channel_units: names.map(|c| &c.units[..]),
            limits: &input.limits,
            normalization: Normalized { applied_by: "server", constants: input.normalization.as_ref() },
            non_finite: "refused",
        },
    )
}

/// Fields and their order are the answer of `/contract`; the first four are the seed's.
#[derive(Serialize)]
struct Contract<'a> {
    window_len: usize,
    channels: usize,
    latent_dims: usize,
    motif_classes: usize,
    motif_labels: &'a [String],
    motif_source: &'static str,
    latent_clip: f32,
    model: &'a str,
    model_version: &'a str,
    rate_hz: Option<f64>,
    channel_names: Option<&'a [String]>,
    channel_units: Option<&'a [String]>,
    limits: &'a [Limit],
    normalization: Normalized<'a>,
    non_finite: &'static str,
}

#[derive(Serialize)]
struct Normalized<'a> {
    applied_by: &'static str,
    constants: Option<&'a Normalization>,
}

/// Runs every golden vector through the running host.
pub(crate) async fn test(app: &App) -> Reply {
    let Ok(_only_one) = app.testing.try_lock() else {
        return Reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", "another test is running", true)
            .with_retry_after(Duration::from_secs(1));
    };
    let Some(model) = app.default_model() else {
        return Reply::refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "model_unavailable",
            "Model not available",
            false,
        )
        .with_retry_after(Duration::from_secs(1));
    };
    match run_golden(&model).await {
        Ok(passed) => tested(app, &model, &passed),
        Err(Untested::Infer(e)) => {
            let told = crate::http::told(&e);
            let detail = match &e {
                InferError::NotReady { .. } => format!("Model not available: {e}"),
                _ => format!("Test failed: {e}"),
            };
            let reply = Reply::refusal(told.status, e.kind(), &detail, told.model_available);
            match told.retry_after {
                Some(wait) => reply.with_retry_after(wait),
                None => reply,
            }
        }
        Err(Untested::Replaced) => {
            let detail = "Test failed: the model was replaced meanwhile; ask again";
            Reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "replaced", detail, true)
                .with_retry_after(Duration::from_secs(1))
        }
        Err(Untested::Parity(why)) => {
            let detail = format!("Test failed: {why}");
            Reply::refusal(StatusCode::INTERNAL_SERVER_ERROR, "parity", &detail, true)
        }
    }
}

struct Passed {
    cases: usize,
    worst: Agreement,
    /// What the rung that answered last has to keep.
    tolerance: Tolerance,
    /// Last case's outputs, as FP32 where they are.
    outputs: Vec<Option<Vec<f32>>>,
    slowest: Duration,
}

enum Untested {
    Infer(InferError),
    /// By another version of it, whose answers the vectors at hand are not about.
    Replaced,
    /// The answers are not the recorded ones.
    Parity(String),
}

async fn run_golden(model: &Arc<Served>) -> Result<Passed, Untested> {
    let (golden, manifest) = (model.golden(), model.manifest());
    let mut passed = Passed {
        cases: 0,
        worst: Agreement { cosine: 1.0, max_abs: 0.0 },
        tolerance: manifest.golden.tolerance(),
        outputs: Vec::new(),
        slowest: Duration::ZERO,
    };
    for (i, case) in golden.cases().iter().enumerate() {
        let mut ticket = model.begin(None).map_err(Untested::Infer)?;
        if !Arc::ptr_eq(ticket.manifest(), &manifest) {
            return Err(Untested::Replaced);
        }
        for (k, bytes) in case.inputs.iter().enumerate() {
            ticket.input_mut(k).copy_from_slice(bytes);
        }
        let begun = Instant::now();
        let answer = ticket.run().await.map_err(Untested::Infer)?;
        passed.slowest = passed.slowest.max(begun.elapsed());
        let outputs: Vec<&[u8]> = (0..manifest.outputs.len()).map(|k| answer.output(k)).collect();
        let near = golden
            .compare(i, &outputs, &manifest, answer.tolerance())
            .map_err(|e| Untested::Parity(e.to_string()))?;
        passed.tolerance = answer.tolerance();
        passed.worst.cosine = passed.worst.cosine.min(near.cosine);
        passed.worst.max_abs = passed.worst.max_abs.max(near.max_abs);
        passed.cases += 1;
        passed.outputs =
            (0..manifest.outputs.len()).map(|k| answer.output_f32(k).map(<[f32]>::to_vec)).collect();
    }
    Ok(passed)
}

fn tested(app: &App, model: &Served, passed: &Passed) -> Reply {
    let manifest = model.manifest();
    let range = |values: &mut dyn Iterator<Item = f32>| {
        let (lo, hi) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
        (lo <= hi).then_some([lo, hi])
    };
    let plan = app.imu_plan(model).ok().map(|(_, p)| p);
    let answer = plan.as_ref().and_then(|p| p.answer(|i| passed.outputs.get(i)?.as_deref()).ok());
    Reply::json(
        StatusCode::OK,
        &Tested {
            test_status: "success",
            latent_shape: plan.as_ref().map(|p| p.latent_len()),
            motif_shape: plan.as_ref().map(|p| p.motif().len()),
            latent_range: answer.as_ref().and_then(|a| range(&mut a.latent())),
            motif_range: answer.as_ref().and_then(|a| range(&mut a.scores())),
            inference_time_ms: ms(passed.slowest),
            model: manifest.name.as_str(),
            parity: Parity {
                agrees: true,
                cases: passed.cases,
                cosine: passed.worst.cosine,
                max_abs: passed.worst.max_abs,
                least_cosine: passed.tolerance.cosine,
                largest_max_abs: passed.tolerance.max_abs,
            },
        },
    )
}

/// Fields and their order are the answer of `/test`; those before `model` are the seed's.
#[derive(Serialize)]
struct Tested<'a> {
    test_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    latent_shape: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    motif_shape: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latent_range: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    motif_range: Option<[f32; 2]>,
    inference_time_ms: f64,
    model: &'a str,
    parity: Parity,
}

#[derive(Serialize)]
struct Parity {
    agrees: bool,
    cases: usize,
    cosine: f64,
    max_abs: f64,
    least_cosine: f64,
    largest_max_abs: f64,
}
