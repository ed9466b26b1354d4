//! The numbers of one model. They outlive its hosts.

use crate::limits::{DRAIN_WEIGHT, QUANTILE_WINDOW};
use crate::served::{Histograms, InferError, Timing};
use heapless::HistoryBuf;
use inferd_model::Rung;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of the latency histograms, in seconds: from below the smallest sensor model to a slow detector.
const BUCKETS: [f64; 19] = [
    50e-6, 100e-6, 200e-6, 350e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 10e-3, 20e-3, 33e-3, 50e-3,
    0.1, 0.25, 0.5, 1.0, 2.5,
];

/// Ways a host can end, as metrics name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It was over its memory cap.
    Oom,
    /// A worker was past the model's deadline, so we killed it.
    Deadline,
    /// A signal from elsewhere.
    Signal,
    /// It aborted or ended by itself.
    Crash,
    /// It broke the rules of the ring, so we killed it.
    Protocol,
    /// It tried a system call that hosts may not make.
    Seccomp,
    /// It ended by itself because its device is lost or cannot be used for a while.
    Device,
}

impl End {
    /// Every way, in the order metrics show them.
    pub const ALL: [Self; 7] =
        [Self::Oom, Self::Deadline, Self::Signal, Self::Crash, Self::Protocol, Self::Seccomp, Self::Device];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Oom => "oom",
            Self::Deadline => "deadline",
            Self::Signal => "signal",
            Self::Crash => "crash",
            Self::Protocol => "protocol",
            Self::Seccomp => "seccomp",
            Self::Device => "device",
        }
    }
}

/// Counters and recent latencies.
pub struct Stats {
    pub success: AtomicU64,
    failures: [AtomicU64; InferError::KINDS.len()],
    ends: [AtomicU64; End::ALL.len()],
    /// Breakers do not open often.
    opened: Mutex<BTreeMap<Rung, u64>>,
    pub late: AtomicU64,
    pub cancelled: AtomicU64,
    pub starts: AtomicU64,
    pub panics: AtomicU64,
    pub pool_hits: AtomicU64,
    pub pool_misses: AtomicU64,
    pub queue_ns: AtomicU64,
    pub compute_ns: AtomicU64,
    pub histograms: Histograms,
    recent: Mutex<Recent>,
}

struct Recent {
    /// Microseconds of (queue wait, compute) of the last successes.
    window: HistoryBuf<(u32, u32), QUANTILE_WINDOW>,
    /// Mean service time of a worker in seconds, exponentially weighted.
    service: Option<f64>,
    /// p95 of compute, renewed every 64 successes: admission asks for it on every request.
    p95: Option<Duration>,
    last: Option<Duration>,
}

impl Stats {
    pub fn new() -> Self {
        let zero = AtomicU64::default;
        Self {
            success: zero(),
            failures: std::array::from_fn(|_| zero()),
            ends: std::array::from_fn(|_| zero()),
            opened: Mutex::default(),
            late: zero(),
            cancelled: zero(),
            starts: zero(),
            panics: zero(),
            pool_hits: zero(),
            pool_misses: zero(),
            queue_ns: zero(),
            compute_ns: zero(),
            histograms: Histograms { queue: Histogram::new(BUCKETS), compute: Histogram::new(BUCKETS) },
            recent: Mutex::new(Recent { window: HistoryBuf::new(), service: None, p95: None, last: None }),
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn succeeded(&self, t: Timing) {
        let before = self.success.fetch_add(1, Relaxed);
        self.queue_ns.fetch_add(ns(t.queue), Relaxed);
        self.compute_ns.fetch_add(ns(t.compute), Relaxed);
        self.histograms.queue.observe(t.queue.as_secs_f64());
        self.histograms.compute.observe(t.compute.as_secs_f64());
        let seconds = t.compute.as_secs_f64();
        let mut r = self.recent();
        r.window.write((micros(t.queue), micros(t.compute)));
        r.service = Some(r.service.map_or(seconds, |s| s + DRAIN_WEIGHT * (seconds - s)));
        r.last = Some(t.compute);
        if before.is_multiple_of(64) || r.p95.is_none() {
            let mut compute: heapless::Vec<u32, QUANTILE_WINDOW> = r.window.iter().map(|w| w.1).collect();
            let rank = compute.len() * 95 / 100;
            r.p95 = Some(Duration::from_micros((*compute.select_nth_unstable(rank).1).into()));
        }
    }

    pub fn failed(&self, e: &InferError) {
        if let Some(i) = InferError::KINDS.iter().position(|&k| k == e.kind()) {
            self.failures[i].fetch_add(1, Relaxed);
        }
    }

    pub fn ended(&self, how: End) {
        self.ends[how as usize].fetch_add(1, Relaxed);
    }

    fn opened_by_rung(&self) -> MutexGuard<'_, BTreeMap<Rung, u64>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The breaker of this rung opened.
    pub fn breaker_opened(&self, rung: Rung) {
        *self.opened_by_rung().entry(rung).or_default() += 1;
    }

    /// How often one did.
    pub fn opened(&self, rung: Rung) -> u64 {
        self.opened_by_rung().get(&rung).copied().unwrap_or_default()
    }

    pub fn failures(&self) -> Vec<(&'static str, u64)> {
        InferError::KINDS.iter().zip(&self.failures).map(|(&k, n)| (k, n.load(Relaxed))).collect()
    }

    pub fn ends(&self) -> Vec<(&'static str, u64)> {
        End::ALL.iter().zip(&self.ends).map(|(e, n)| (e.name(), n.load(Relaxed))).collect()
    }

    /// Another model takes over: how long the one before it took says nothing about this one, to admission least of all.
    pub fn forget_latencies(&self) {
        let mut r = self.recent();
        r.window.clear();
        (r.service, r.p95) = (None, None);
    }

    pub fn last_compute(&self) -> Option<Duration> {
        self.recent().last
    }

    /// Mean time a worker needs for one request, as measured.
    pub fn service_time(&self) -> Option<Duration> {
        self.recent().service.map(Duration::from_secs_f64)
    }

    /// p95 of compute over the last successes, at most 64 successes old.
    pub fn p95_compute(&self) -> Option<Duration> {
        self.recent().p95
    }

    /// (p50, p95, p99) of queue wait and of compute over the last successes.
    pub fn quantiles(&self) -> Option<([Duration; 3], [Duration; 3])> {
        let (mut queue, mut compute): (Vec<u32>, Vec<u32>) = self.recent().window.iter().copied().unzip();
        if queue.is_empty() {
            return None;
        }
        queue.sort_unstable();
        compute.sort_unstable();
        let at = |sorted: &[u32]| {
            [50, 95, 99].map(|p| {
                let rank = (sorted.len() * p).div_ceil(100).max(1) - 1;
                Duration::from_micros(sorted[rank].into())
            })
        };
        Some((at(&queue), at(&compute)))
    }
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_over_the_window() {
        let s = Stats::new();
        assert_eq!(s.quantiles(), None);
        for i in 1..=100 {
            s.succeeded(Timing { queue: Duration::from_micros(i), compute: Duration::from_micros(10 * i) });
        }
        let (queue, compute) = s.quantiles().unwrap();
        assert_eq!(queue, [50, 95, 99].map(Duration::from_micros));
        assert_eq!(compute, [500, 950, 990].map(Duration::from_micros));
    }
}
