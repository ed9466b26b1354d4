//! The resource monitor: readings every interval, alerts from them, and what is shed for their sake.
//!
//! ```text
//! /proc /sys statvfs ── Reader ──► Sample ──► Alerts ──► events: log, metrics, SSE, history
//!                     deadlines      │           └─────► Shed: optional work off
//!                                    └──► the view everyone else answers from; nobody but this thread reads a sensor
//! ```
//!
//! One thread does it all. It never blocks on a sensor (see `patience.rs`); its heartbeat is [`Monitor::age`], and a reading that
//! panics is counted and the next one done. What the kernel does not tell is absent, never 0.

pub mod accelerator;
pub(crate) mod files;
pub mod parse;
mod patience;
mod reader;

pub use accelerator::{Accelerator, AcceleratorReading};
pub use reader::{
    Cgroup, Disk, Memory, Power, Pressures, Reader, SENSOR_DEADLINE, Sample, Service, Temperature,
};

use crate::alerts::{Active, Alerts, Event, Kind, Rule, Severity, When};
use crate::shed::{Level, Shed};
use crate::wear::Wear;
use serde::Serialize;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// The name of the monitor's thread.
pub const THREAD: &str = "monitor";
/// Events an hour that go into the history at most: a sensor at its threshold must not wear out the medium.
pub const HISTORY_AN_HOUR: usize = 30;

/// Where the kernel's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/proc`
    pub proc: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
    /// `/sys/fs/cgroup`
    pub cgroup: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Roots {
    /// A recorded tree: `proc` and `sys` below this directory.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { proc: root.join("proc"), sys: root.join("sys"), cgroup: root.join("sys/fs/cgroup") }
    }
}

/// What alerts are raised at. Percentages unless their name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Thresholds {
    pub cpu: f64,
    pub cpu_critical: f64,
    pub memory: f64,
    pub memory_critical: f64,
    pub memory_pressure: f64,
    pub memory_pressure_critical: f64,
    pub io_pressure: f64,
    pub disk: f64,
    pub disk_critical: f64,
    pub temperature_celsius: f64,
    pub pool_efficiency: f64,
}

impl Thresholds {
    /// Pairs of settings of which the critical one is the lower.
    pub fn upside_down(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        [
            (self.cpu, self.cpu_critical, "cpu_percent", "cpu_critical_percent"),
            (self.memory, self.memory_critical, "memory_percent", "memory_critical_percent"),
            (
                self.memory_pressure,
                self.memory_pressure_critical,
                "memory_pressure_percent",
                "memory_pressure_critical_percent",
            ),
            (self.disk, self.disk_critical, "disk_percent", "disk_critical_percent"),
        ]
        .into_iter()
        .filter(|(warning, critical, ..)| critical < warning)
        .map(|(_, _, warning, critical)| (warning, critical))
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            cpu: 80.0,
            cpu_critical: 95.0,
            memory: 85.0,
            memory_critical: 95.0,
            memory_pressure: 20.0,
            // What systemd-oomd kills at.
            memory_pressure_critical: 60.0,
            io_pressure: 50.0,
            disk: 80.0,
            disk_critical: 90.0,
            temperature_celsius: 80.0,
            pool_efficiency: 60.0,
        }
    }
}

/// Percentage points, or degrees, by which a reading must be better than its threshold to count as well again.
pub const MARGIN: f64 = 5.0;

impl Thresholds {
    /// The rules they come to, with so many readings in a row.
    ///
    /// A flag (throttled, under-voltage, breaker, storage) is raised by its first reading: the kernel or another room has judged
    /// already. It is cleared like the others, so that one that flickers is one episode.
    #[must_use]
    pub fn rules(&self, consecutive: u32) -> Vec<Rule> {
        let level = |kind, warning: f64, critical: Option<f64>| Rule {
            kind,
            warning: Some(warning),
            critical,
            margin: MARGIN,
            below: false,
            raise_after: consecutive,
            clear_after: consecutive,
        };
        let flag = |kind| Rule {
            critical: Some(0.5),
            warning: None,
            margin: 0.0,
            raise_after: 1,
            ..level(kind, 0.0, None)
        };
        vec![
            level(Kind::Cpu, self.cpu, Some(self.cpu_critical)),
            level(Kind::Memory, self.memory, Some(self.memory_critical)),
            level(Kind::MemoryPressure, self.memory_pressure, Some(self.memory_pressure_critical)),
            level(Kind::IoPressure, self.io_pressure, None),
            level(Kind::Disk, self.disk, Some(self.disk_critical)),
            level(Kind::Inodes, self.disk, Some(self.disk_critical)),
            level(Kind::Temperature, self.temperature_celsius, None),
            Rule { warning: Some(0.5), critical: Some(1.5), ..flag(Kind::Throttled) },
            flag(Kind::UnderVoltage),
            level(Kind::Accelerator, self.temperature_celsius, None),
            Rule { below: true, ..level(Kind::PoolEfficiency, self.pool_efficiency, None) },
            flag(Kind::BreakerOpen),
            flag(Kind::StorageFailing),
            flag(Kind::DiskErrors),
            flag(Kind::ActuatorFailing),
            flag(Kind::CalibrationFailing),
            flag(Kind::EngineMismatch),
            Rule { warning: Some(0.5), critical: None, ..flag(Kind::SystemReturned) },
            Rule { raise_after: 1, ..level(Kind::WriteBudget, 100.0, None) },
        ]
    }
}

/// Settings of the monitor.
#[derive(Clone)]
pub struct Settings {
    /// Time between readings.
    pub interval: Duration,
    /// Readings in a row that raise or clear an alert.
    pub consecutive: u32,
    /// What alerts are raised at.
    pub thresholds: Thresholds,
    /// How bad an alert about load must be for optional work to end; `None`: it never does.
    pub shed_at: Option<Severity>,
    /// Where the kernel's files are.
    pub roots: Roots,
    /// The data directory.
    pub data: PathBuf,
    /// Whether the record of what was written is kept there.
    pub keep_record: bool,
    /// Bytes a day that may be written to it.
    pub daily_write: u64,
    /// Accelerators beside those that sysfs tells of.
    pub accelerators: Vec<Arc<dyn Accelerator>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            consecutive: 5,
            thresholds: Thresholds::default(),
            shed_at: Some(Severity::Critical),
            roots: Roots::default(),
            data: PathBuf::from("/data/inferd"),
            keep_record: true,
            daily_write: crate::wear::DAILY_BUDGET,
            accelerators: Vec::new(),
        }
    }
}

/// What is known now; replaced whole after every reading.
#[derive(Clone, Debug, Default, Serialize)]
pub struct View {
    /// The newest reading; `None` before the first.
    pub sample: Option<Sample>,
    /// Alerts that are raised, oldest first.
    pub active: Vec<Active>,
    /// The last events, oldest first.
    pub recent: Vec<Event>,
    /// How often each alert was raised.
    pub raised: Vec<(Kind, u64)>,
    /// What is shed.
    pub shed: Level,
    /// Readings so far.
    pub readings: u64,
    /// Readings that panicked.
    pub panics: u64,
    /// Events that were kept out of the history because it had [`HISTORY_AN_HOUR`] already.
    pub history_dropped: u64,
}

impl View {
    /// The alert of this kind, if it is raised.
    #[must_use]
    pub fn active(&self, kind: Kind) -> Option<&Active> {
        self.active.iter().find(|a| a.alert == kind)
    }

    /// How often it was raised.
    #[must_use]
    pub fn raised(&self, kind: Kind) -> u64 {
        self.raised.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n)
    }
}

/// The rooms the monitor asks and tells, on its own thread: neither may block.
pub struct Rooms {
    /// What the rooms above tell.
    pub service: Box<dyn Fn() -> Service + Send>,
    /// Takes what goes into the history.
    pub history: Box<dyn Fn(&Event) + Send>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { service: Box::new(Service::default), history: Box::new(|_| ()) }
    }
}

/// The running monitor. The last one of its clones ends the thread.
#[derive(Clone)]
pub struct Monitor(Arc<Running>);

struct Running {
    settings: Settings,
    rules: Vec<Rule>,
    view: watch::Receiver<Arc<View>>,
    shed: Shed,
    wear: Wear,
    heart: Arc<Heart>,
    /// Dropped, it ends the thread. Not joined: a reading may hang.
    _end: Mutex<mpsc::Sender<()>>,
}

/// The heartbeat of the thread.
#[derive(Debug)]
struct Heart {
    started: Instant,
    beat_ms: AtomicU64,
    alive: AtomicBool,
}

impl Monitor {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub fn start(settings: Settings, rooms: Rooms) -> std::io::Result<Self> {
        let wear = Wear::open(&settings.roots, &settings.data, settings.daily_write);
        let shed = Shed::default();
        let heart = Arc::new(Heart {
            started: Instant::now(),
            beat_ms: AtomicU64::new(0),
            alive: AtomicBool::new(true),
        });
        let rules = settings.thresholds.rules(settings.consecutive);
        let (tell, view) = watch::channel(Arc::new(View::default()));
        let (end, ended) = mpsc::channel();
        let mut work = Work {
            reader: Reader::new(&settings, wear.clone()),
            alerts: Alerts::new(&rules),
            rooms,
            shed: shed.clone(),
            shed_at: settings.shed_at,
            history: VecDeque::new(),
            view: View::default(),
        };
        let (beat, interval) = (heart.clone(), settings.interval);
        std::thread::Builder::new().name(THREAD.into()).spawn(move || {
            while matches!(ended.recv_timeout(beat.wait(interval)), Err(RecvTimeoutError::Timeout)) {
                beat.beat();
                let now = When::now(&work.reader_roots());
                work.round(now, Instant::now());
                tell.send_replace(Arc::new(work.view.clone()));
            }
            beat.alive.store(false, Relaxed);
        })?;
        Ok(Self(Arc::new(Running { settings, rules, view, shed, wear, heart, _end: Mutex::new(end) })))
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The rules of the alerts.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.0.rules
    }

    /// What is known now, and whenever it changes. Looking costs nothing and never waits for a sensor.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.0.view.clone()
    }

    /// How much optional work is shed.
    #[must_use]
    pub fn shed(&self) -> Shed {
        self.0.shed.clone()
    }

    /// What may still be written.
    #[must_use]
    pub fn wear(&self) -> Wear {
        self.0.wear.clone()
    }

    /// How long ago the thread was last seen at work: more than two intervals say that it is stuck.
    #[must_use]
    pub fn age(&self) -> Duration {
        let beat = Duration::from_millis(self.0.heart.beat_ms.load(Relaxed));
        self.0.heart.started.elapsed().saturating_sub(beat)
    }

    /// Whether the thread is there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.heart.alive.load(Relaxed)
    }
}

impl Heart {
    fn beat(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_ms.store(ms, Relaxed);
    }

    /// Until the next reading: none before the first.
    fn wait(&self, interval: Duration) -> Duration {
        if self.beat_ms.load(Relaxed) == 0 {
            // The next beat is not 0 any more, also within the first millisecond.
            self.beat_ms.store(1, Relaxed);
            return Duration::ZERO;
        }
        interval
    }
}

impl When {
    /// Now, by the kernel's uptime and the clock.
    #[must_use]
    pub fn now(roots: &Roots) -> Self {
        let uptime = files::read(&roots.proc.join("uptime"));
        let seconds: Option<f64> = uptime.and_then(|t| t.split_ascii_whitespace().next()?.parse().ok());
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            uptime_ms: seconds
                .and_then(|s| u64::try_from(Duration::try_from_secs_f64(s).ok()?.as_millis()).ok())
                .unwrap_or_default(),
            clock_ms: u64::try_from(clock.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What the thread owns.
struct Work {
    reader: Reader,
    alerts: Alerts,
    rooms: Rooms,
    shed: Shed,
    shed_at: Option<Severity>,
    /// When the last events went into the history.
    history: VecDeque<Instant>,
    view: View,
}

impl Work {
    fn reader_roots(&self) -> Roots {
        self.reader.roots().clone()
    }

    /// One reading and all that follows from it.
    fn round(&mut self, when: When, now: Instant) {
        self.view.readings += 1;
        let done = catch_unwind(AssertUnwindSafe(|| {
            let service = (self.rooms.service)();
            let sample = self.reader.read(when, service);
            let readings = self.reader.readings(&sample);
            (sample, self.alerts.take(when, &readings))
        }));
        let Ok((sample, events)) = done else {
            self.view.panics += 1;
            return;
        };
        for event in &events {
            self.tell(event, now);
        }
        let shed = self.level();
        if self.shed.set(shed) {
            match shed {
                Level::Optional => tracing::warn!("optional work is shed until there is room for it again"),
                Level::None => tracing::info!("optional work goes on"),
            }
        }
        self.view.sample = Some(sample);
        self.view.active = self.alerts.active().to_vec();
        self.view.recent = self.alerts.recent().cloned().collect();
        self.view.raised = Kind::ALL.iter().map(|k| (*k, self.alerts.raised(*k))).collect();
        self.view.shed = shed;
    }

    fn level(&self) -> Level {
        let enough = |a: &Active| a.alert.is_load() && self.shed_at.is_some_and(|at| a.severity >= at);
        if self.alerts.active().iter().any(enough) { Level::Optional } else { Level::None }
    }

    fn tell(&mut self, event: &Event, now: Instant) {
        let (alert, severity) = (event.alert.name(), event.severity.name());
        let (value, threshold, sentence) = (event.value, event.threshold, event.sentence.as_str());
        use crate::alerts::Change;
        if event.change == Change::Cleared {
            tracing::info!(alert, severity, value, threshold, "alert {sentence}");
        } else if event.change == Change::Better {
            tracing::info!(alert, severity, value, threshold, "alert, better: {sentence}");
        } else {
            tracing::warn!(alert, severity, value, threshold, "alert: {sentence}");
        }
        const HOUR: Duration = Duration::from_secs(3600);
        self.history.retain(|at| now.saturating_duration_since(*at) < HOUR);
        if self.history.len() < HISTORY_AN_HOUR {
            self.history.push_back(now);
            (self.rooms.history)(event);
        } else {
            self.view.history_dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests;
