//! How long the last requests took, for a percentile that is one: of whole requests, not a sum of percentiles of their parts.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// So many requests are looked back at; as many as the hosts look back at.
const WINDOW: usize = 1024;

/// The last [`WINDOW`] answered requests. Written by every request, so without a lock.
#[derive(Debug)]
pub(super) struct Recent {
    /// Microseconds.
    took: Box<[AtomicU32]>,
    seen: AtomicUsize,
}

impl Default for Recent {
    fn default() -> Self {
        Self { took: (0..WINDOW).map(|_| AtomicU32::new(0)).collect(), seen: AtomicUsize::new(0) }
    }
}

impl Recent {
    pub(super) fn add(&self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        // Each has a place of its own. One that is read before it is written counts as it was: one of a thousand, for a moment.
        let at = self.seen.fetch_add(1, Relaxed);
        self.took[at % WINDOW].store(micros, Relaxed);
    }

    /// The nearest-rank percentile; `None` before the first request.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let known = self.seen.load(Relaxed).min(WINDOW);
        let mut sorted: Vec<u32> = self.took[..known].iter().map(|t| t.load(Relaxed)).collect();
        sorted.sort_unstable();
        let rank = (known * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).map(|t| Duration::from_micros((*t).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_that_of_whole_requests_and_of_the_last_ones_only() {
        let recent = Recent::default();
        assert_eq!(recent.percentile(99), None);
        recent.add(Duration::from_secs(5));
        assert_eq!(recent.percentile(99), Some(Duration::from_secs(5)));
        for i in 1..=WINDOW as u64 {
            recent.add(Duration::from_micros(i));
        }
        assert_eq!(
            recent.percentile(99),
            Some(Duration::from_micros(1014)),
            "the slow one of before is forgotten"
        );
        assert_eq!(recent.percentile(50), Some(Duration::from_micros(512)));
        assert_eq!(recent.percentile(100), Some(Duration::from_micros(1024)));
        recent.add(Duration::MAX);
        assert_eq!(recent.percentile(100), Some(Duration::from_micros(u32::MAX.into())));
    }
}
