//! What the resource monitor sees, for people and tools.
//!
//! ```text
//! GET /api/v1/monitoring/status   the newest reading, with the seed's fields
//! GET /api/v1/alerts              what is raised, the last changes, the thresholds
//! GET /api/v1/alerts/events       changes as server-sent events, and the status when the button is pressed
//! GET /health/performance         latency, accelerator, pool and breaker in one line, always 200
//! GET /alert_rules.yml            the same alerts, and those about requests, as Prometheus rules
//! ```
//!
//! Everything is answered from the newest reading: no request waits for a sensor. Events have a stream of their own, beside that of
//! the updates, because there are alerts on devices without updates too.

use crate::health::{default_words, ms};
use crate::http::Stream;
use crate::{App, Pressed, Reply, Req, limits};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};
use inferd_hosts::BreakerState;
use inferd_watch::alerts::{Kind, Severity};
use inferd_watch::monitor::{Monitor, Sample, THREAD, View};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The rules of [`rules`].
pub(crate) const RULES: &[u8] = include_bytes!("../assets/alert_rules.yml");

fn monitor(app: &App) -> Result<&Monitor, Reply> {
    app.monitor.get().ok_or_else(|| {
        let detail = "the resource monitor does not run";
        Reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "no_monitor", detail, true)
            .with_retry_after(Duration::from_secs(10))
    })
}

fn view(monitor: &Monitor) -> Arc<View> {
    monitor.view().borrow().clone()
}

/// Unix time in seconds, as the seed has it.
#[allow(clippy::cast_precision_loss)] // a time is exact below 2^53
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// The seed's `current_resources`; what is not known is null, and what the device does not have is absent.
fn resources(sample: &Sample) -> Value {
    let mut r = Map::new();
    let mut set = |key: &str, value: Value| r.insert(key.to_owned(), value);
    set("cpu_percent", json!(sample.cpu_percent));
    set("memory_percent", json!(sample.memory.map(|m| m.percent)));
    set("memory_used_bytes", json!(sample.memory.map(|m| m.used_bytes)));
    set("disk_percent", json!(sample.disk.as_ref().map(|d| d.percent)));
    set("timestamp", json!(seconds(sample.when.clock_ms)));
    if let Some(gpu) = sample.accelerators.first() {
        let known = [
            ("gpu_memory_used_bytes", gpu.memory_used_bytes.map(|b| json!(b))),
            ("gpu_memory_total_bytes", gpu.memory_total_bytes.map(|b| json!(b))),
            (
                "gpu_memory_percent",
                gpu.memory_used_bytes
                    .zip(gpu.memory_total_bytes)
                    .map(|(used, all)| json!(inferd_watch::monitor::parse::percent(used, all))),
            ),
            ("gpu_temperature", gpu.celsius.map(|c| json!(c))),
            ("gpu_utilization_percent", gpu.load_percent.map(|l| json!(l))),
        ];
        for (key, value) in known {
            if let Some(value) = value {
                set(key, value);
            }
        }
    }
    Value::Object(r)
}

pub(crate) fn status(app: &App) -> Reply {
    let monitor = match monitor(app) {
        Ok(monitor) => monitor,
        Err(reply) => return reply,
    };
    let view = view(monitor);
    let settings = monitor.settings();
    let interval = settings.interval.as_secs_f64();
    let alive = monitor.is_alive();
    let sample = view.sample.as_ref();
    let resource_status = json!({
        "monitoring_active": alive,
        "monitor_interval": interval,
        "thresholds": {
            "cpu_threshold": settings.thresholds.cpu,
            "memory_threshold": settings.thresholds.memory,
        },
        "gpu_available": sample.is_some_and(|s| !s.accelerators.is_empty()),
        "current_resources": sample.map(resources),
    });
    Reply::json(
        StatusCode::OK,
        &json!({
            "monitoring_status": {
                "monitoring_active": alive,
                "interval": interval,
                "thread_name": THREAD,
                "thread_alive": alive,
                "resource_monitor_status": resource_status,
            },
            "resource_status": resource_status,
            "timestamp": std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0.0, |d| d.as_secs_f64()),
            "age_s": monitor.age().as_secs_f64(),
            "readings": view.readings,
            "sample": sample,
            "alerts": view.active,
            "shed": view.shed,
        }),
    )
}

pub(crate) fn alerts(app: &App) -> Reply {
    let monitor = match monitor(app) {
        Ok(monitor) => monitor,
        Err(reply) => return reply,
    };
    let view = view(monitor);
    Reply::json(
        StatusCode::OK,
        &json!({
            "active": view.active,
            "recent": view.recent,
            "shed": view.shed,
            "rules": monitor.rules(),
        }),
    )
}

/// Latency, accelerator, pool and breaker. Always 200: whether requests may come is `/readyz`' to say.
pub(crate) fn performance(app: &App) -> Reply {
    let view = app.monitor.get().map(view).unwrap_or_default();
    let (model, words) = default_words(app);
    let p99 = model.as_ref().and_then(|m| app.metrics.p99(m.manifest().name.as_str())).map(ms);
    let sample = view.sample.as_ref();
    let load = sample.and_then(|s| s.accelerators.first()?.load_percent);
    let (hits, misses) = app
        .hosts
        .list()
        .iter()
        .map(|m| m.snapshot())
        .fold((0, 0), |(h, m), n| (h + n.pool_hits, m + n.pool_misses));
    let asked = hits + misses;
    let efficiency = (asked > 0).then(|| inferd_watch::monitor::parse::percent(hits, asked) / 100.0);
    let critical = view.active.iter().any(|a| a.severity == Severity::Critical);
    let breaker = breaker(app);
    // The alert comes with the next reading; who asks now is told now.
    let opened = breaker == Some(BreakerState::Open.name()) || view.active(Kind::BreakerOpen).is_some();
    let healthy = words.state == "ready" && !critical && !opened;
    Reply::json(
        StatusCode::OK,
        &json!({
            "status": if healthy { "healthy" } else { "degraded" },
            "inference_latency_p99": p99,
            "gpu_utilization": load,
            "memory_pool_efficiency": efficiency,
            "circuit_breaker_state": breaker,
            "alerts": view.active.iter().map(|a| a.alert.name()).collect::<Vec<_>>(),
            "shed": view.shed,
        }),
    )
}

/// The worst state of a breaker whose engine serves or would; null where no model is loaded.
fn breaker(app: &App) -> Option<&'static str> {
    let badness = |state: &BreakerState| match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        BreakerState::Open => 2,
    };
    app.hosts.list().iter().map(|m| m.breaker().state).max_by_key(badness).map(BreakerState::name)
}

pub(crate) fn rules() -> Reply {
    Reply::new(StatusCode::OK, "application/yaml", Bytes::from_static(RULES))
}

pub(crate) fn events(app: &App, req: &Req) -> Reply {
    let monitor = match monitor(app) {
        Ok(monitor) => monitor,
        Err(reply) => return reply,
    };
    let since = req.query.as_deref().and_then(|q| q.split('&').find_map(|p| p.strip_prefix("since=")));
    // A browser that comes back names the last one it has by a header of its own.
    let again = req.headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let since = match since.map(str::parse::<u64>) {
        None => again,
        Some(Ok(n)) => Some(n),
        Some(Err(_)) => {
            let detail = "since: the number of an event";
            return Reply::refusal(StatusCode::BAD_REQUEST, "bad_request", detail, true);
        }
    };
    let Ok(place) = app.listeners.clone().try_acquire_owned() else {
        let detail = "as many clients as may listen to events do so already";
        return Reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "listeners", detail, true)
            .with_retry_after(Duration::from_secs(5));
    };
    let (pieces, stream) = mpsc::channel(limits::LISTENER_BACKLOG);
    tokio::spawn(tell(pieces, monitor.view(), app.panel.presses(), app.ending.subscribe(), since));
    Reply::streamed("text/event-stream", Stream::new(stream, place))
        .with(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"))
        // Proxies that buffer answers would keep events back.
        .with(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))
}

/// Sends events until the client leaves, does not read, or the endpoint ends.
async fn tell(
    pieces: mpsc::Sender<Bytes>,
    mut view: watch::Receiver<Arc<View>>,
    mut presses: watch::Receiver<Option<Arc<Pressed>>>,
    mut ending: watch::Receiver<bool>,
    since: Option<u64>,
) {
    let mut told = Told { since, began: false };
    let mut heartbeat = tokio::time::interval(limits::HEARTBEAT);
    heartbeat.tick().await;
    loop {
        let now = view.borrow_and_update().clone();
        let text = told.events(&now);
        // Not waited for: who lets this many pieces lie does not read.
        if !text.is_empty() && pieces.try_send(text.into()).is_err() {
            return;
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            changed = presses.changed() => {
                let press = presses.borrow_and_update().clone();
                let text = press.map_or_else(String::new, |p| p.event());
                if changed.is_err() || pieces.try_send(text.into()).is_err() {
                    return;
                }
            }
            _ = heartbeat.tick() => {
                if pieces.try_send(Bytes::from_static(b": here\n\n")).is_err() {
                    return;
                }
            }
            () = pieces.closed() => return,
            _ = ending.wait_for(|ending| *ending) => return,
        }
    }
}

/// What a listener knows.
struct Told {
    since: Option<u64>,
    began: bool,
}

impl Told {
    /// The events that bring it up to this view; empty when it is.
    fn events(&mut self, view: &View) -> String {
        let mut text = String::new();
        let newest = view.recent.last().map_or(0, |e| e.number);
        if !self.began {
            self.began = true;
            // Browsers come back after this many milliseconds.
            let _ = write!(text, "retry: 2000\n\nevent: active\ndata: {}\n\n", json!(view.active));
        }
        // A number that is still to come was counted by a daemon that has ended: all that is kept is news.
        let known = self.since.map_or(newest, |n| if n > newest { 0 } else { n });
        for event in view.recent.iter().filter(|e| e.number > known) {
            let _ = write!(text, "event: alert\nid: {}\ndata: {}\n\n", event.number, json!(event));
        }
        self.since = Some(newest);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_watch::alerts::{Alerts, Reading, When};
    use inferd_watch::monitor::Thresholds;

    /// A view with so many events about the disk.
    fn seen(events: u64) -> View {
        let mut alerts = Alerts::new(&Thresholds::default().rules(1));
        for i in 0..events {
            let value = Some(if i % 2 == 0 { 99.0 } else { 1.0 });
            alerts.take(When::default(), &[Reading { kind: Kind::Disk, value, about: None }]);
        }
        View {
            active: alerts.active().to_vec(),
            recent: alerts.recent().cloned().collect(),
            ..View::default()
        }
    }

    #[test]
    fn a_listener_gets_what_is_raised_and_then_every_event_once() {
        let mut told = Told { since: None, began: false };
        let first = told.events(&seen(1));
        assert!(first.starts_with("retry: ") && first.contains("event: active\ndata: [{"), "{first}");
        assert!(!first.contains("event: alert"), "what was before is not news: {first}");
        assert_eq!(told.events(&seen(1)), "");
        let next = told.events(&seen(3));
        assert_eq!(next.matches("event: alert\n").count(), 2, "{next}");
        assert!(next.contains("id: 2\n") && next.contains("id: 3\n"));
    }

    #[test]
    fn a_listener_that_comes_back_gets_what_it_missed_also_after_a_restart() {
        let numbers = |since, events| {
            let text = Told { since: Some(since), began: false }.events(&seen(events));
            text.lines().filter_map(|l| l.strip_prefix("id: ")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1, 3), ["2", "3"]);
        assert_eq!(numbers(3, 3), [""; 0]);
        assert_eq!(numbers(90, 2), ["1", "2"], "the count began anew");
    }
}
