//! How busy the processors are, for answers that say so: `cpu_percent` of the EMG clients.

use inferd_watch::monitor::parse::{CpuTimes, cpu_times};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two readings: shorter ones say more about the kernel's ticks than about load.
const LEAST: Duration = Duration::from_millis(200);

/// The share of time in which the processors worked, between the last two looks at `/proc/stat`. It is read when somebody asks,
/// at most five times a second; the first share is that since the meter was made.
#[derive(Debug)]
pub(crate) struct Meter(Mutex<Reading>);

#[derive(Debug)]
struct Reading {
    at: Instant,
    times: Option<CpuTimes>,
    percent: f64,
}

fn times() -> Option<CpuTimes> {
    cpu_times(&std::fs::read_to_string("/proc/stat").ok()?)
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Reading { at: Instant::now(), times: times(), percent: 0.0 }))
    }

    /// In percent of all processors together; 0 where the kernel does not say.
    pub(crate) fn percent(&self) -> f64 {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.elapsed() >= LEAST {
            let now = times();
            if let Some(percent) = now.zip(last.times).and_then(|(now, before)| now.percent_since(before)) {
                last.percent = percent;
            }
            *last = Reading { at: Instant::now(), times: now, percent: last.percent };
        }
        last.percent
    }
}
