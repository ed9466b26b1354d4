//! How much of the time a device has calls of ours under way. No vendor's library tells a load in C, so it is measured from our side.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time in which at least one call was under way: of calls at the same time it counts once.
#[derive(Debug)]
pub struct Busy(Mutex<Times>);

#[derive(Debug)]
struct Times {
    under_way: u32,
    /// Up to when `busy` has been added up, while a call is under way.
    since: Instant,
    busy: Duration,
    asked: Instant,
}

impl Default for Busy {
    fn default() -> Self {
        Self::at(Instant::now())
    }
}

impl Busy {
    fn at(now: Instant) -> Self {
        Self(Mutex::new(Times { under_way: 0, since: now, busy: Duration::ZERO, asked: now }))
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call is under way until this is dropped.
    pub fn call(&self) -> Call<'_> {
        self.times().begin(Instant::now());
        Call(self)
    }

    /// The share of the time since this was asked last, from 0 to 1.
    pub fn share(&self) -> f32 {
        self.times().share(Instant::now())
    }
}

impl Times {
    fn add_up(&mut self, now: Instant) {
        if self.under_way > 0 {
            self.busy += now.saturating_duration_since(self.since);
        }
        self.since = now;
    }

    fn begin(&mut self, now: Instant) {
        self.add_up(now);
        self.under_way += 1;
    }

    fn end(&mut self, now: Instant) {
        self.add_up(now);
        self.under_way -= 1;
    }

    fn share(&mut self, now: Instant) -> f32 {
        self.add_up(now);
        let (busy, all) = (std::mem::take(&mut self.busy), now.saturating_duration_since(self.asked));
        self.asked = now;
        if all.is_zero() { 0.0 } else { busy.div_duration_f32(all).min(1.0) }
    }
}

/// A call that is under way.
#[derive(Debug)]
pub struct Call<'a>(&'a Busy);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.times().end(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_the_same_time_count_once_and_one_that_lasts_counts_in_each_interval() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let busy = Busy::at(start);
        let mut times = busy.times();
        times.begin(at(100));
        times.begin(at(200));
        times.end(at(300));
        times.end(at(350));
        assert!((times.share(at(1000)) - 0.25).abs() < 1e-6);
        times.begin(at(1500));
        assert!((times.share(at(2000)) - 0.5).abs() < 1e-6);
        assert!((times.share(at(3000)) - 1.0).abs() < 1e-6, "it is under way all the time");
        times.end(at(3000));
        assert_eq!(times.share(at(4000)), 0.0);
        assert_eq!(times.share(at(4000)), 0.0, "no time has passed");
    }

    #[test]
    fn a_call_is_over_when_it_is_dropped() {
        let busy = Busy::default();
        drop(busy.call());
        assert_eq!(busy.times().under_way, 0);
    }
}
