//! Probes: may this device get requests?
//!
//! `/livez` answers while the process can; `/readyz` and `/healthz` are 200 only while the default model answers, which it
//! does only after its golden vectors passed in the very process that serves it.

use crate::{App, Reply};
use hyper::StatusCode;
use inferd_hosts::{Served, State};
use inferd_model::EngineKind;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Hex digits of the model's SHA-256 in `hef_sha256`, as the seed cut it.
const SHORT_SHA: usize = 16;

/// What a model is doing, in words.
pub(crate) struct Words {
    /// `starting`, `ready`, `restarting`, `stopped`, `not_loaded`, `safe-mode`.
    pub state: &'static str,
    /// Why it does not answer; empty when it does.
    pub reason: String,
    /// When it is tried again.
    pub retry_after: Option<Duration>,
}

/// What a model is doing.
pub(crate) fn words(model: &Served) -> Words {
    match model.state() {
        State::Ready => Words { state: "ready", reason: String::new(), retry_after: None },
        State::Starting { phase, since } => Words {
            state: "starting",
            reason: format!("{phase}, for {:.1} s", since.elapsed().as_secs_f64()),
            retry_after: None,
        },
        State::Restarting { reason, retry_at, failures } => Words {
            state: "restarting",
            reason: ended(&reason, failures),
            retry_after: Some(retry_at.saturating_duration_since(Instant::now())),
        },
        State::Stopped => Words { state: "stopped", reason: "it was unloaded".to_owned(), retry_after: None },
    }
}

/// Why there is no host now. `ends` counts ends and failed starts since a host last lasted; a host that did counts as none.
fn ended(reason: &str, ends: u32) -> String {
    match ends {
        0 | 1 => format!("its engine host ended: {reason}"),
        n => format!("its engine host ended: {reason}; {n} ends in a row without a host that lasted"),
    }
}

/// The default model and its words; without one, why.
pub(crate) fn default_words(app: &App) -> (Option<Arc<Served>>, Words) {
    if let Some(mode) = app.alive.in_safe_mode() {
        let (reason, retry) = crate::alive::safe_mode_words(&mode);
        return (app.default_model(), Words { state: "safe-mode", reason, retry_after: Some(retry) });
    }
    if let Some(model) = app.default_model() {
        let words = words(&model);
        return (Some(model), words);
    }
    let wanted = app.config.default_model.as_deref();
    let waiting = app.hosts.waiting();
    if let Some((name, why)) = waiting.into_iter().find(|(name, _)| wanted.is_none_or(|w| w == name)) {
        return (
            None,
            Words { state: "starting", reason: format!("model {name}: {why}"), retry_after: None },
        );
    }
    let error = wanted
        .and_then(|n| app.hosts.last_load_error(n))
        .or_else(|| app.hosts.load_errors().into_iter().next().map(|(_, reason)| reason));
    let reason = match (error, wanted) {
        (Some(e), _) => e,
        (None, wanted) => match (crate::updates::deciding(app), wanted) {
            (Some(phase), _) => phase.to_owned(),
            (None, Some(name)) => format!("model {name} is not loaded"),
            (None, None) if app.hosts.loading() => "the models are being loaded".to_owned(),
            (None, None) => "no model is loaded".to_owned(),
        },
    };
    (None, Words { state: "not_loaded", reason, retry_after: None })
}

fn unavailable(words: &Words, extra: Map<String, Value>) -> Reply {
    let mut body = Map::new();
    body.insert("ok".to_owned(), json!(false));
    body.insert("detail".to_owned(), json!(format!("Health check error: {}", words.reason)));
    body.insert("error".to_owned(), json!("model_unavailable"));
    body.insert("model_available".to_owned(), json!(false));
    body.insert("phase".to_owned(), json!(words.state));
    body.insert("reason".to_owned(), json!(words.reason));
    body.extend(extra);
    Reply::json(StatusCode::SERVICE_UNAVAILABLE, &body)
        .with_error("model_unavailable")
        .with_retry_after(words.retry_after.unwrap_or(Duration::from_secs(1)))
}

/// What is wrong with this device, where something is: it serves all the same.
pub(crate) fn problems(app: &App) -> Option<(String, Value)> {
    let mut problems = app.listening.load().problems();
    problems.extend_from_slice(&app.config.not_there);
    for model in app.hosts.list() {
        if let Some(f) = model.fallback() {
            let name = &model.manifest().name;
            problems.push(format!("model {name} is served by {} instead of {}: {}", f.to, f.from, f.reason));
        }
    }
    (!problems.is_empty()).then(|| ("degraded".to_owned(), json!(problems)))
}

/// Milliseconds with three decimals.
pub(crate) fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

pub(crate) fn healthz(app: &App) -> Reply {
    let (model, words) = default_words(app);
    let ready = model.as_ref().filter(|_| words.state == "ready");
    app.metrics.health_check(ready.is_some());
    let uptime = app.started.elapsed().as_secs();
    let Some(model) = ready else {
        let mut extra = Map::new();
        extra.insert("uptime_s".to_owned(), json!(uptime));
        extra.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        extra.extend(problems(app));
        if let Some(m) = &model {
            extra.insert("model".to_owned(), json!(m.manifest().name.as_str()));
        }
        return unavailable(&words, extra);
    };
    let manifest = model.manifest();
    let engine = model.engine();
    let numbers = model.snapshot();
    let plan = app.imu_plan(model).ok();
    let golden = model.agreement().map(|a| json!({ "cosine": a.cosine, "max_abs": a.max_abs }));
    let mut body = json!({
            "ok": true,
            "model": manifest.name.as_str(),
            "model_version": manifest.version,
            "uptime_s": uptime,
            "config_version": app.config.config_hash,
            "hef_sha256": manifest.onnx.sha256.get(..SHORT_SHA),
            "model_sha256": manifest.onnx.sha256,
            "version": env!("CARGO_PKG_VERSION"),
            "device": engine.device,
            "engine": engine.rung,
            "engine_version": engine.version,
            "latency_ms": numbers.last_compute.map_or(0.0, ms),
            "golden": golden,
            "motif_source": plan.map(|(_, p)| p.motif().source()),
    });
    body.as_object_mut().into_iter().for_each(|body| body.extend(problems(app)));
    Reply::json(StatusCode::OK, &body)
}

pub(crate) fn livez(app: &App) -> Reply {
    Reply::json(StatusCode::OK, &json!({ "ok": true, "uptime_s": app.started.elapsed().as_secs() }))
}

pub(crate) fn readyz(app: &App) -> Reply {
    let (model, words) = default_words(app);
    let mut models: Vec<Value> = app
        .hosts
        .list()
        .iter()
        .map(|m| {
            let w = self::words(m);
            json!({ "name": m.manifest().name.as_str(), "state": w.state, "reason": w.reason })
        })
        .collect();
    let waits = |(name, why)| json!({ "name": name, "state": "starting", "reason": why });
    models.extend(app.hosts.waiting().into_iter().map(waits));
    let name = model.as_ref().map(|m| m.manifest().name.to_string());
    if words.state == "ready" {
        let mut body =
            json!({ "ready": true, "phase": "ready", "reason": "", "model": name, "models": models });
        body.as_object_mut().into_iter().for_each(|body| body.extend(problems(app)));
        return Reply::json(StatusCode::OK, &body);
    }
    let mut extra = Map::new();
    extra.insert("ready".to_owned(), json!(false));
    extra.extend(problems(app));
    extra.insert("model".to_owned(), json!(name));
    extra.insert("models".to_owned(), json!(models));
    unavailable(&words, extra)
}

/// The EMG server's probe: `status` is `ok` while this device serves.
pub(crate) fn health(app: &App) -> Reply {
    let (_, words) = default_words(app);
    let tensorrt = crate::emg::models(app).any(|m| crate::emg::serves_on(&m, EngineKind::Tensorrt));
    let mode = app.sources.get().and_then(|all| all.first()).map(|source| source.mode());
    if words.state == "ready" {
        let body = json!({ "status": "ok", "tensorrt_available": tensorrt, "emg_mode": mode });
        return Reply::json(StatusCode::OK, &body);
    }
    let mut extra = Map::new();
    extra.insert("status".to_owned(), json!("unavailable"));
    extra.insert("tensorrt_available".to_owned(), json!(tensorrt));
    extra.insert("emg_mode".to_owned(), json!(mode));
    unavailable(&words, extra)
}

#[cfg(test)]
mod tests {
    use super::ended;

    #[test]
    fn one_end_is_not_called_a_row_of_failed_starts() {
        assert_eq!(ended("killed by signal 9", 0), "its engine host ended: killed by signal 9");
        assert_eq!(ended("killed by signal 9", 1), "its engine host ended: killed by signal 9");
        assert!(ended("out of memory", 4).ends_with("4 ends in a row without a host that lasted"));
    }
}
