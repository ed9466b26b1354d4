//! Telemetry and capture of this daemon: where the numbers of a line come from, and when one is made.

use crate::config::Config;
use inferd_api::App;
use inferd_hosts::{Observation, Served, State};
use inferd_watch::{
    capture::{self, Capture},
    permit::{Permit, Unlimited},
    shed::{Level, Shed},
    telemetry::{Kind, Settings, Telemetry},
    wear::Wear,
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tracing::{error, info};

/// How often it is looked whether something happened that gets a line of its own, at least.
const LOOK: Duration = Duration::from_secs(10);
/// How long the end of the daemon waits for the last lines.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// What is written down, for as long as the daemon runs.
pub struct Records {
    telemetry: Option<(Telemetry, JoinHandle<()>)>,
}

impl Records {
    /// Begins with what is configured.
    pub fn start(app: &Arc<App>, config: &Config) -> Self {
        let at = |dir: &Option<PathBuf>, name: &str| {
            dir.clone().unwrap_or_else(|| config.updates.data_dir.join(name))
        };
        // Counted by the keeper; 0 where nobody counts.
        let boot = app.alive.keeper_state().map_or(0, |state| state.boot);
        let permit = permit(app);
        let c = &config.capture;
        if c.enabled {
            // Whole percents are exact enough in FP32.
            let threshold = f32::from(u8::try_from(c.threshold_percent).unwrap_or(100)) / 100.0;
            let (quota, per_hour) = (c.quota, c.per_hour);
            let settings = capture::Settings { dir: at(&c.dir, "capture"), threshold, quota, per_hour };
            info!(dir = %settings.dir.display(), threshold, "windows below the threshold are kept");
            match Capture::start(settings, boot, Arc::clone(&permit)) {
                Ok(capture) => app.records.capture_to(Arc::new(capture)),
                Err(e) => error!(error = %e, "no capture: its thread cannot be had"),
            }
        }
        let c = &config.telemetry;
        let telemetry = c.enabled.then(|| {
            let settings = Settings {
                dir: at(&c.dir, "telemetry"),
                write_every: c.write_every,
                file_bytes: c.file_bytes,
                quota: c.quota,
            };
            info!(dir = %settings.dir.display(), "telemetry is kept");
            let telemetry = Telemetry::start(settings, boot, permit);
            app.records.show_telemetry(telemetry.clone());
            telemetry.line(Kind::Start, fields(json!({ "version": env!("CARGO_PKG_VERSION") })));
            let watching = tokio::spawn(watch(Arc::clone(app), telemetry.clone(), c.interval));
            (telemetry, watching)
        });
        Self { telemetry }
    }

    /// Writes what still waits, for a bounded time.
    pub async fn end(self) {
        let Some((telemetry, watching)) = self.telemetry else { return };
        watching.abort();
        telemetry.line(Kind::Stop, Map::new());
        // The thread ends by itself when this takes too long.
        let _ = tokio::task::spawn_blocking(move || telemetry.end(LAST_WRITE)).await;
    }
}

/// What the monitor says of wear and load; without one everything is welcome.
struct Watched {
    wear: Wear,
    shed: Shed,
}

impl Permit for Watched {
    fn may_write(&self, bytes: u64) -> bool {
        self.wear.may_write(bytes)
    }
    fn wrote(&self, _: u64) {
        // Wear counts what reaches the medium, whoever wrote it.
    }
    fn shedding(&self) -> bool {
        self.shed.level() != Level::None
    }
}

/// What the monitor says of optional writes.
pub fn permit(app: &Arc<App>) -> Arc<dyn Permit> {
    match app.monitor.get() {
        Some(monitor) => Arc::new(Watched { wear: monitor.wear(), shed: monitor.shed() }),
        None => Arc::new(Unlimited),
    }
}

/// Makes a line every interval, and one for each thing that happened.
async fn watch(app: Arc<App>, telemetry: Telemetry, interval: Duration) {
    let mut seen = Seen::default();
    let mut sampled = Instant::now();
    let mut timer = tokio::time::interval(LOOK.min(interval));
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let models = app.hosts.list();
        for (kind, what) in seen.events(&app, &models) {
            telemetry.line(kind, fields(what));
        }
        let since = sampled.elapsed();
        // A timer that is a moment early must not make it wait for the next one.
        if since + LOOK / 20 >= interval {
            sampled = Instant::now();
            telemetry.line(Kind::Sample, fields(seen.sample(&app, &models, since)));
        }
    }
}

fn fields(what: Value) -> Map<String, Value> {
    if let Value::Object(map) = what { map } else { Map::new() }
}

/// What was so when it was last looked at.
#[derive(Default)]
struct Seen {
    /// Version and whether it answers, by name.
    models: BTreeMap<String, (String, bool)>,
    /// Ends of hosts, by model and cause.
    ends: BTreeMap<(String, &'static str), u64>,
    /// The last event of an alert.
    event: u64,
    /// Counters at the last sample.
    before: BTreeMap<String, Observation>,
}

impl Seen {
    /// What happened since it was last looked.
    fn events(&mut self, app: &App, models: &[Arc<Served>]) -> Vec<(Kind, Value)> {
        let mut happened = self.alerts(app);
        let mut there = BTreeMap::new();
        for model in models {
            let manifest = model.manifest();
            let (name, version) = (manifest.name.to_string(), manifest.version.clone());
            for (cause, n) in model.snapshot().ends {
                let before = self.ends.insert((name.clone(), cause), n).unwrap_or(0);
                if n > before {
                    let ended = json!({ "model": name, "cause": cause, "times": n - before });
                    happened.push((Kind::HostEnd, ended));
                }
            }
            let ready = model.state() == State::Ready;
            let change = match self.models.get(&name) {
                None => Some("loaded"),
                Some((before, _)) if *before != version => Some("replaced"),
                Some((_, before)) if *before != ready => Some(if ready { "ready" } else { "not-ready" }),
                Some(_) => None,
            };
            if let Some(change) = change {
                let what = json!({ "model": name, "version": version, "change": change, "ready": ready });
                happened.push((Kind::Model, what));
            }
            there.insert(name, (version, ready));
        }
        for (name, (version, _)) in self.models.iter().filter(|(name, _)| !there.contains_key(*name)) {
            let what = json!({ "model": name, "version": version, "change": "unloaded", "ready": false });
            happened.push((Kind::Model, what));
        }
        self.models = there;
        happened
    }

    /// Alerts that were raised or cleared.
    fn alerts(&mut self, app: &App) -> Vec<(Kind, Value)> {
        let Some(view) = app.monitor.get().map(|monitor| monitor.view().borrow().clone()) else {
            return Vec::new();
        };
        let newer: Vec<_> = view.recent.iter().filter(|e| e.number > self.event).collect();
        self.event = newer.last().map_or(self.event, |e| e.number);
        let told = newer.into_iter().map(|e| {
            let mut what = json!({
                "alert": e.alert.name(),
                "change": e.change,
                "severity": e.severity.name(),
                "value": e.value,
                "threshold": e.threshold,
            });
            if let (Some(about), Value::Object(what)) = (&e.about, &mut what) {
                what.insert("about".to_owned(), about.as_str().into());
            }
            (Kind::Alert, what)
        });
        told.collect()
    }

    /// The numbers since the sample before.
    fn sample(&mut self, app: &App, models: &[Arc<Served>], since: Duration) -> Value {
        let mut before = std::mem::take(&mut self.before);
        let models: Vec<Value> = models
            .iter()
            .map(|model| {
                let manifest = model.manifest();
                let name = manifest.name.to_string();
                let now = model.observe();
                let stretch = now.since(&before.remove(&name).unwrap_or_default());
                self.before.insert(name.clone(), now);
                let numbers = model.snapshot();
                let errors: Map<String, Value> = stretch
                    .failures()
                    .filter(|(_, n)| *n > 0)
                    .map(|(kind, n)| (kind.to_owned(), n.into()))
                    .collect();
                let micros =
                    |q| stretch.compute.quantile(q).map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
                json!({
                    "name": name,
                    "version": manifest.version,
                    "ready": model.state() == State::Ready,
                    "requests": stretch.success,
                    "errors": errors,
                    "compute_us": { "p50": micros(0.5), "p95": micros(0.95), "p99": micros(0.99) },
                    "waiting": numbers.waiting,
                    "slots_in_use": numbers.slots_in_use,
                    "host_rss_bytes": numbers.host_rss,
                })
            })
            .collect();
        let mut all = json!({
            "interval_ms": u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            "models": models,
            "log_lines_dropped": app.records.lines_dropped(),
        });
        if let Value::Object(all) = &mut all {
            all.extend(fields(device(app)));
        }
        all
    }
}

/// The device, as far as it is watched.
fn device(app: &App) -> Value {
    let Some(view) = app.monitor.get().map(|monitor| monitor.view().borrow().clone()) else {
        return json!({});
    };
    let Some(sample) = &view.sample else { return json!({}) };
    let temperatures: Map<String, Value> =
        sample.temperatures.iter().map(|t| (t.sensor.clone(), t.celsius.into())).collect();
    json!({
        "cpu_percent": sample.cpu_percent,
        "memory_percent": sample.memory.map(|m| m.percent),
        "memory_available_bytes": sample.memory.map(|m| m.available_bytes),
        "temperatures": temperatures,
        "disk_percent": sample.disk.as_ref().map(|d| d.percent),
        "under_voltage": sample.power.under_voltage,
        "written_today_bytes": sample.wear.written_today_bytes,
        "alerts": view.active.iter().map(|a| a.alert.name()).collect::<Vec<_>>(),
        "shedding": view.shed != Level::None,
    })
}
