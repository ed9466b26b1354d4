//! Is it slower than it was? A measurement against the stored baseline of the same network, rung and firmware.
//!
//! A baseline is stored when there is none, or when somebody asks for it; a better measurement never takes its place by itself. It has
//! [`LEAST_SAMPLES`] at least. One that nobody asked for is of runs that agreed, on a device that was not throttled: everything later is held
//! against it.

use crate::record::{Measured, RungInfo, Subject};
use crate::units::{Number, Time};
use serde::{Deserialize, Serialize};

/// A change for the worse beyond which there is a warning, in percent.
pub const WARN_PERCENT: f64 = 10.0;
/// The same for a critical one.
pub const CRITICAL_PERCENT: f64 = 25.0;
/// A 99th percentile beyond so many times the baseline's is critical.
pub const CRITICAL_P99: f64 = 1.2;
/// With fewer samples on either side nothing is said.
pub const LEAST_SAMPLES: u64 = 30;
/// Baselines that are kept; the oldest goes.
pub const MAX_BASELINES: usize = 64;

/// What a baseline is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Key {
    pub model: String,
    pub version: String,
    pub sha256: String,
    pub rung: String,
    pub firmware: String,
}

impl Key {
    /// Of this rung of this subject.
    #[must_use]
    pub fn of(subject: &Subject, rung: &RungInfo) -> Self {
        Self {
            model: subject.model.clone(),
            version: subject.version.clone(),
            sha256: rung.sha256.clone(),
            rung: rung.rung.clone(),
            firmware: subject.firmware.clone(),
        }
    }
}

/// A stored baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Baseline {
    #[serde(flatten)]
    pub key: Key,
    /// The job it was measured by.
    pub job: u64,
    pub samples: u64,
    pub errors: u64,
    pub mean_ms: Time,
    pub p95_ms: Time,
    pub p99_ms: Time,
    pub throughput_per_s: Number,
}

impl Baseline {
    /// Whether these numbers may be one that was asked for, or (not `asked`) one that is stored by itself.
    #[must_use]
    pub fn may_be(m: &Measured, asked: bool) -> bool {
        let throttled = m.before.is_held_back() || m.after.is_held_back();
        m.latency.samples >= LEAST_SAMPLES && (asked || (m.stable && !throttled))
    }

    /// Whether anything can be compared with it; what older programs stored need not have enough samples.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.samples >= LEAST_SAMPLES
    }

    /// Of this measurement.
    #[must_use]
    pub fn of(key: Key, job: u64, m: &Measured) -> Self {
        Self {
            key,
            job,
            samples: m.latency.samples,
            errors: m.errors,
            mean_ms: m.latency.mean,
            p95_ms: m.latency.p95,
            p99_ms: m.latency.p99,
            throughput_per_s: m.throughput_per_s,
        }
    }
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Level {
    /// There was nothing to compare with.
    NoBaseline,
    /// Too few samples to say.
    TooFew,
    Ok,
    Warning,
    Critical,
}

/// One rung against its baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regression {
    /// Which.
    pub rung: String,
    /// How bad.
    pub level: Level,
    /// Every change that was too large, one sentence each.
    pub reasons: Vec<String>,
    /// The job that measured the baseline.
    pub baseline_job: Option<u64>,
}

/// Compares.
#[must_use]
#[allow(clippy::cast_precision_loss)] // counts, for shares of them
pub fn check(rung: &str, baseline: Option<&Baseline>, m: &Measured) -> Regression {
    let verdict = |level, reasons| Regression {
        rung: rung.to_owned(),
        level,
        reasons,
        baseline_job: baseline.map(|b| b.job),
    };
    let Some(b) = baseline else { return verdict(Level::NoBaseline, Vec::new()) };
    if b.samples < LEAST_SAMPLES || m.latency.samples < LEAST_SAMPLES {
        let few = b.samples.min(m.latency.samples);
        return verdict(Level::TooFew, vec![format!("{few} samples, {LEAST_SAMPLES} are needed")]);
    }
    let (mut level, mut reasons) = (Level::Ok, Vec::new());
    let mut worse = |name: &str, before: f64, now: f64, up: bool| {
        if before <= 0.0 {
            return;
        }
        let change = if up { now / before - 1.0 } else { 1.0 - now / before };
        let percent = change * 100.0;
        let p99 = name == "p99" && now > before * CRITICAL_P99;
        let this = if percent > CRITICAL_PERCENT || p99 {
            Level::Critical
        } else if percent > WARN_PERCENT {
            Level::Warning
        } else {
            return;
        };
        level = level.max(this);
        let direction = if up { "more" } else { "less" };
        reasons.push(format!("{name} is {percent:.1} % {direction} than the baseline"));
    };
    worse("mean", b.mean_ms.ms(), m.latency.mean.ms(), true);
    worse("p95", b.p95_ms.ms(), m.latency.p95.ms(), true);
    worse("p99", b.p99_ms.ms(), m.latency.p99.ms(), true);
    worse("throughput", b.throughput_per_s.value(), m.throughput_per_s.value(), false);
    let success = |samples: u64, errors: u64| samples as f64 / (samples + errors) as f64;
    worse("success", success(b.samples, b.errors), success(m.latency.samples, m.errors), false);
    verdict(level, reasons)
}
