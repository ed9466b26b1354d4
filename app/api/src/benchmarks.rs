//! Benchmarks: asked for, followed, read, ended.
//!
//! ```text
//! POST   /api/v1/benchmarks               a job: 202 with its id; it runs when its turn comes
//! GET    /api/v1/benchmarks               every job, the newest first
//! GET    /api/v1/benchmarks/{id}          one, with its record once it is done
//! DELETE /api/v1/benchmarks/{id}          ends one that is not over, forgets one that is
//! GET    /api/v1/benchmarks/{id}/report   ?format=json|html|md|csv & view=technical|simple
//! POST   /benchmark                       the seed's: ?num_iterations=N, every engine once, answered when it is done
//! ```
//!
//! The room `bench` measures and decides; here are only its words on the wire and its numbers for `/metrics`.

use crate::metrics::live::Writer;
use crate::{App, Reply, Req};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use inferd_bench::hosts::{HostsDevice, Surroundings};
use inferd_bench::jobs::{Jobs, MOST_HEAVY, Refused, Removed, View};
use inferd_bench::report::{self, Format};
use inferd_bench::{BadRequest, Conditions, Kept, Measured, Number, Request, RungResult};
use inferd_watch::monitor::Sample;
use inferd_watch::permit::Permit;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use serde_json::{Map, Value, json};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// The benchmarks of a daemon.
pub type Benchmarks = Jobs<HostsDevice>;

/// How long `/benchmark` measures at most; with the start of its hosts it takes `QUICK_WHOLE` at most.
const QUICK: Duration = Duration::from_secs(20);
/// What `/benchmark` does when nobody says how much: the seed's number.
const QUICK_ITERATIONS: u32 = 1000;
/// The most it does.
const MOST_QUICK: u32 = 10_000;
/// When to ask again while there is no place.
const RETRY: Duration = Duration::from_secs(15);

/// Lets benchmarks run on this endpoint's models, once what is kept of them in `dir` has been read: a slow medium holds nothing else
/// up. Within the runtime that serves; only the first call counts.
pub fn start_benchmarks(
    app: &Arc<App>,
    dir: &Path,
    permit: Arc<dyn Permit>,
    firmware: String,
    choice: Choice,
) {
    let (weak, monitor): (Weak<App>, _) = (Arc::downgrade(app), app.monitor.clone());
    let around = Surroundings {
        firmware,
        default_model: Box::new(move || weak.upgrade()?.default_model()),
        conditions: Box::new(move || {
            let view = monitor.get().map(|m| m.view().borrow().clone());
            view.and_then(|v| v.sample.as_ref().map(conditions)).unwrap_or_default()
        }),
    };
    let device = Arc::new(HostsDevice::new(app.hosts.clone(), around));
    let (benchmarks, dir) = (app.benchmarks.clone(), dir.to_owned());
    tokio::spawn(async move {
        let jobs = Jobs::start(device, &dir, permit).await;
        let _ = benchmarks.set(jobs.clone());
        if choice == Choice::Measured {
            inferd_bench::hosts::follow(jobs).await;
        }
    });
}

/// Who says which of a model's rungs serves while several are well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The manifest: its first one.
    Manifest,
    /// The newest benchmark of all its rungs that selected one; the manifest as long as there is none.
    Measured,
}

/// What the newest reading says; what it does not say stays absent.
fn conditions(sample: &Sample) -> Conditions {
    let hottest = sample
        .temperatures
        .iter()
        .map(|t| t.celsius)
        .fold(None, |hottest: Option<f64>, c| Some(hottest.map_or(c, |h| h.max(c))));
    Conditions {
        celsius: hottest.and_then(Number::new),
        throttled: sample.power.throttled.map(|t| t.throttled || t.capped || t.soft_limit),
        under_voltage: sample.power.under_voltage,
        cpu_percent: sample.cpu_percent.and_then(Number::new),
        // The host of each rung says these.
        accelerator_celsius: None,
        accelerator_hot: None,
    }
}

fn refused(status: StatusCode, kind: &'static str, detail: &str) -> Reply {
    Reply::json(status, &json!({ "detail": detail, "error": kind })).with_error(kind)
}

fn jobs(app: &App) -> Result<&Arc<Benchmarks>, Reply> {
    app.benchmarks.get().ok_or_else(|| {
        let detail = "benchmarks cannot be run yet";
        refused(StatusCode::SERVICE_UNAVAILABLE, "no_benchmarks", detail)
            .with_retry_after(Duration::from_secs(1))
    })
}

fn refusal(app: &App, e: &Refused) -> Reply {
    let said = match e {
        Refused::Shedding => format!("{e}: {}", shed_by(app)),
        _ => e.to_string(),
    };
    match e {
        Refused::Bad(BadRequest::Form(_)) => refused(StatusCode::BAD_REQUEST, "bad_request", &said),
        Refused::Bad(_) | Refused::Rung(_) => {
            refused(StatusCode::UNPROCESSABLE_ENTITY, "bad_benchmark", &said)
        }
        Refused::Model(_) => refused(StatusCode::NOT_FOUND, "model_not_found", &said),
        Refused::Full | Refused::Shedding | Refused::Busy => {
            let kind = if *e == Refused::Shedding { "shedding" } else { "benchmarks_full" };
            refused(StatusCode::SERVICE_UNAVAILABLE, kind, &said).with_retry_after(RETRY)
        }
    }
}

/// The alerts that are raised while optional work is shed, in words.
fn shed_by(app: &App) -> String {
    let view = app.monitor.get().map(|m| m.view().borrow().clone()).unwrap_or_default();
    let load = view.active.iter().filter(|a| a.alert.is_load());
    let told: Vec<_> = load.map(|a| format!("alert {}, {}", a.alert.name(), a.sentence)).collect();
    if told.is_empty() { "its alert has just been cleared".to_owned() } else { told.join(", ") }
}

/// A job in the list; its record only where one job is asked for.
fn shown(view: &View, whole: bool) -> Value {
    let kept = &view.kept;
    let mut job = Map::new();
    let mut set = |key: &str, value: Value| job.insert(key.to_owned(), value);
    set("id", json!(kept.job.to_string()));
    set("state", json!(kept.status.name()));
    if let inferd_bench::JobState::Failed { reason } = &kept.status {
        set("reason", json!(reason));
    }
    set("model", json!(kept.request.model));
    set("rungs", json!(kept.request.rungs));
    set("asked_ms", json!(kept.asked_ms));
    set("ended_ms", json!(kept.ended_ms));
    if let Some(ahead) = view.ahead {
        set("ahead", json!(ahead));
    }
    if let Some(p) = &view.progress {
        let step = p.step.map(|s| json!({ "number": s.number(), "name": s.words() }));
        set("progress", json!({ "step": step, "rung": p.rung, "percent": p.percent }));
    }
    if let Some(record) = &kept.record {
        set("record_id", json!(view.record_id.as_deref()));
        set("decision", json!(record.decision));
    }
    if whole {
        set("request", json!(kept.request));
        set("record", json!(kept.record));
    }
    Value::Object(job)
}

pub(crate) async fn submit(app: &App, req: &Req) -> Reply {
    let jobs = match jobs(app) {
        Ok(jobs) => jobs,
        Err(reply) => return reply,
    };
    let request = match Request::parse(&req.body) {
        Ok(request) => request,
        Err(e) => return refusal(app, &Refused::Bad(e)),
    };
    match jobs.submit(request).await {
        Err(e) => refusal(app, &e),
        Ok(number) => {
            let place = format!("/api/v1/benchmarks/{number}");
            let view = jobs.get(number).map(|v| shown(&v, false));
            let reply = Reply::json(StatusCode::ACCEPTED, &view);
            match HeaderValue::from_str(&place) {
                Ok(place) => reply.with(header::LOCATION, place),
                Err(_) => reply,
            }
        }
    }
}

pub(crate) fn list(app: &App) -> Reply {
    let jobs = match jobs(app) {
        Ok(jobs) => jobs,
        Err(reply) => return reply,
    };
    let all: Vec<Value> = jobs.list().iter().map(|v| shown(v, false)).collect();
    let heavy = json!({ "running": jobs.heavy(), "most": MOST_HEAVY });
    Reply::json(StatusCode::OK, &json!({ "benchmarks": all, "heavy": heavy }))
}

/// The number in a path; `None` for what is none.
fn number(req: &Req) -> Option<u64> {
    let digits = req.path.split('/').nth(4)?;
    (digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn unknown(req: &Req) -> Reply {
    let id = req.path.split('/').nth(4).unwrap_or_default();
    let plain = id.len() <= 18 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    let detail =
        if plain { format!("there is no benchmark {id}") } else { "there is no such benchmark".into() };
    refused(StatusCode::NOT_FOUND, "not_found", &detail)
}

fn one(app: &App, req: &Req) -> Result<View, Reply> {
    let jobs = jobs(app)?;
    number(req).and_then(|n| jobs.get(n)).ok_or_else(|| unknown(req))
}

pub(crate) fn get(app: &App, req: &Req) -> Reply {
    one(app, req).map_or_else(|reply| reply, |view| Reply::json(StatusCode::OK, &shown(&view, true)))
}

pub(crate) async fn remove(app: &App, req: &Req) -> Reply {
    let jobs = match jobs(app) {
        Ok(jobs) => jobs,
        Err(reply) => return reply,
    };
    let Some(number) = number(req) else { return unknown(req) };
    match jobs.remove(number).await {
        Removed::Unknown => unknown(req),
        Removed::Cancelled => Reply::json(StatusCode::ACCEPTED, &json!({ "cancelled": number.to_string() })),
        Removed::Forgotten => Reply::json(StatusCode::OK, &json!({ "removed": number.to_string() })),
    }
}

/// What a query asks of a report.
fn wanted(query: &str) -> Result<(Format, report::View), &'static str> {
    let (mut format, mut view) = (Format::Json, report::View::Technical);
    for part in query.split('&').filter(|p| !p.is_empty()) {
        match part.split_once('=') {
            Some(("format", name)) => {
                format = Format::from_name(name).ok_or("format is json, html, md or csv")?;
            }
            Some(("view", name)) => {
                view = report::View::from_name(name).ok_or("view is technical or simple")?;
            }
            _ => return Err("the query may name format and view, nothing else"),
        }
    }
    Ok((format, view))
}

pub(crate) async fn report(app: &App, req: &Req) -> Reply {
    let view = match one(app, req) {
        Ok(view) => view,
        Err(reply) => return reply,
    };
    let (format, for_whom) = match wanted(req.query.as_deref().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(why) => return refused(StatusCode::UNPROCESSABLE_ENTITY, "bad_query", why),
    };
    if view.kept.record.is_none() {
        let detail = format!("the benchmark is {}: it has no report", view.kept.status.name());
        return refused(StatusCode::CONFLICT, "no_report", &detail);
    }
    let render = move || view.kept.record.as_ref().map(|record| report::render(record, format, for_whom));
    match tokio::task::spawn_blocking(render).await {
        Ok(Some(page)) => Reply::new(StatusCode::OK, format.content_type(), page),
        _ => refused(StatusCode::INTERNAL_SERVER_ERROR, "unexpected_error", "the report cannot be made"),
    }
}

// -------------------------------------------------------------------------------------------------------- the seed's door

/// What a query asks of `/benchmark`.
fn quick_wanted(query: &str) -> Result<(String, u32), String> {
    let (mut model, mut iterations) = (String::new(), QUICK_ITERATIONS);
    for part in query.split('&').filter(|p| !p.is_empty()) {
        match part.split_once('=') {
            Some(("num_iterations", n)) => {
                let good = n.parse().ok().filter(|n| (1..=MOST_QUICK).contains(n));
                iterations = good.ok_or(format!("num_iterations is a number from 1 to {MOST_QUICK}"))?;
            }
            Some(("model", name)) => name.clone_into(&mut model),
            _ => return Err("the query may name num_iterations and model, nothing else".into()),
        }
    }
    Ok((model, iterations))
}

/// The numbers of one rung under the seed's names.
fn seed(result: &RungResult) -> Value {
    let Some(m) = &result.measured else {
        return json!({ "rung": result.info.rung, "engine": result.info.engine, "error": result.reason });
    };
    let Measured { latency: l, .. } = m;
    json!({
        "rung": result.info.rung,
        "engine": result.info.engine,
        "version": m.library,
        "iterations": l.samples,
        "mean_latency_ms": l.mean.ms(),
        "median_latency_ms": l.p50.ms(),
        "min_latency_ms": l.min.ms(),
        "max_latency_ms": l.max.ms(),
        "p50_latency_ms": l.p50.ms(),
        "p90_latency_ms": l.p90.ms(),
        "p95_latency_ms": l.p95.ms(),
        "p99_latency_ms": l.p99.ms(),
        "throughput_qps": m.throughput_per_s.value(),
    })
}

pub(crate) async fn quick(app: &App, req: &Req) -> Reply {
    let jobs = match jobs(app) {
        Ok(jobs) => jobs,
        Err(reply) => return reply,
    };
    let (model, iterations) = match quick_wanted(req.query.as_deref().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(why) => return refused(StatusCode::UNPROCESSABLE_ENTITY, "bad_query", &why),
    };
    let (subject, results) = match jobs.quick(&model, iterations, QUICK).await {
        Ok(done) => done,
        Err(e) => return refusal(app, &e),
    };
    let plain = |r: &&RungResult| r.info.engine == "cpu" || r.info.engine == "ort";
    let baseline = results.iter().rfind(|r| plain(r) && r.info.precision == "fp32" && r.measured.is_some());
    let tensorrt = results.iter().find(|r| r.info.engine == "tensorrt" && r.measured.is_some());
    let engines: Map<String, Value> = results.iter().map(|r| (r.info.rung.clone(), seed(r))).collect();
    Reply::json(
        StatusCode::OK,
        &json!({
            "model": subject.model,
            "num_iterations": iterations,
            // The seed's two names: its plain engine, which is another one here (`engine` says which), and its fast one.
            "pytorch": baseline.map(seed),
            "tensorrt": tensorrt.map(seed),
            "engines": engines,
        }),
    )
}

// --------------------------------------------------------------------------------------------------------------- elsewhere

/// What `/status` says of a model's last decision.
pub(crate) fn decision(app: &App, model: &str) -> Option<Value> {
    let View { kept, record_id, .. } = app.benchmarks.get()?.decision(model)?;
    let record = kept.record.as_ref()?;
    Some(json!({
        "benchmark": kept.job.to_string(),
        "record_id": record_id.as_deref(),
        "rung": record.decision.rung,
        "because": record.decision.because,
        "ended_ms": kept.ended_ms,
    }))
}

/// The numbers of benchmarks.
pub(crate) struct Numbers(pub Arc<OnceLock<Arc<Benchmarks>>>);

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Numbers").finish_non_exhaustive()
    }
}

impl Collector for Numbers {
    #[allow(clippy::cast_precision_loss)] // counts
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer { encoder: &mut encoder };
        let Some(jobs) = self.0.get() else { return Ok(()) };
        let states = jobs.by_state().map(|(state, n)| (vec![("state", state)], n as f64));
        out.gauge("inferd_benchmark_jobs", "Benchmarks that are known, by state", states)?;
        out.gauge("inferd_benchmark_heavy", "Heavy jobs that run now", [(vec![], jobs.heavy() as f64)])?;
        // The newest record of each model, by name.
        let mut newest: Vec<(String, Arc<Kept>)> = Vec::new();
        for view in jobs.list() {
            if let Some(record) = &view.kept.record
                && !newest.iter().any(|(model, _)| *model == record.subject.model)
            {
                newest.push((record.subject.model.clone(), view.kept.clone()));
            }
        }
        newest.sort_by(|a, b| a.0.cmp(&b.0));
        let records = || newest.iter().filter_map(|(model, kept)| Some((model, kept.record.as_ref()?)));
        let mut latency = Vec::new();
        let mut selected = Vec::new();
        for (model, record) in records() {
            for rung in &record.rungs {
                let name = rung.info.rung.as_str();
                if let Some(m) = &rung.measured {
                    for (percentile, time) in
                        [("50", m.latency.p50), ("95", m.latency.p95), ("99", m.latency.p99)]
                    {
                        // Not "quantile", which belongs to summaries.
                        let labels =
                            vec![("model", model.as_str()), ("engine", name), ("percentile", percentile)];
                        latency.push((labels, time.ms() / 1e3));
                    }
                }
                let is = record.decision.rung.as_deref() == Some(name);
                selected.push((vec![("model", model.as_str()), ("engine", name)], f64::from(u8::from(is))));
            }
        }
        out.gauge(
            "inferd_benchmark_latency_seconds",
            "Latency in the newest benchmark of a model, one request in flight, by percentile",
            latency,
        )?;
        out.gauge(
            "inferd_engine_selected",
            "1 for the engine that the newest benchmark of a model selected, 0 for the others it had",
            selected,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_of_a_report_names_format_and_view_and_nothing_else() {
        assert!(matches!(wanted(""), Ok((Format::Json, report::View::Technical))));
        assert!(matches!(wanted("view=simple&format=html"), Ok((Format::Html, report::View::Simple))));
        for bad in ["format=pdf", "view=", "x=1", "format"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_of_the_quick_one_is_bounded() {
        assert_eq!(quick_wanted(""), Ok((String::new(), 1000)));
        assert_eq!(quick_wanted("num_iterations=5&model=m"), Ok(("m".into(), 5)));
        for bad in ["num_iterations=0", "num_iterations=10001", "num_iterations=x", "n=1"] {
            assert!(quick_wanted(bad).is_err(), "{bad}");
        }
    }
}
