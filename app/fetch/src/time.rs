//! Waiting: the clock, chance, and how long to stay away from a server that failed.

use nix::time::{ClockId, clock_gettime};
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::time::Duration;

/// The time since the boot, pauses, and chance. No wall clock: nothing here may depend on one.
pub trait Clock: Send + Sync + 'static {
    /// Time since the boot, suspended time included.
    fn now(&self) -> Duration;
    /// Passes the time.
    fn sleep(&self, how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// A number from 0 (included) to 1 (excluded), another one each time.
    fn random(&self) -> f64;
}

/// The device's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
    }

    fn sleep(&self, how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(how_long))
    }

    fn random(&self) -> f64 {
        // The standard library keys its hash maps by the system's entropy; 32 bits of that are plenty for a pause.
        let drawn = RandomState::new().hash_one(0u8) >> 32;
        f64::from(u32::try_from(drawn).unwrap_or(u32::MAX)) / (f64::from(u32::MAX) + 1.0)
    }
}

/// Pauses after failures: they double, and each is drawn between its half and its whole, so that devices that lost a server
/// together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause at most.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(2), most: Duration::from_secs(300) }
    }
}

impl Backoff {
    /// The pause after the `failures`-th failure in a row (the first is 1), with `random` from 0 to 1. A server that asked for a
    /// pause (`asked`, seconds) gets at least that, up to `4 * most`.
    #[must_use]
    pub fn pause(&self, failures: u32, random: f64, asked: Option<u64>) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.most);
        let random = if random > 0.0 { random.min(1.0) } else { 0.0 };
        let drawn = whole.mul_f64(0.5 + 0.5 * random);
        let asked = asked.map_or(Duration::ZERO, Duration::from_secs).min(self.most.saturating_mul(4));
        drawn.max(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff { first: S, most: 10 * S };
        let all: Vec<_> = (1..8).map(|n| backoff.pause(n, 1.0, None)).collect();
        assert_eq!(all, [S, 2 * S, 4 * S, 8 * S, 10 * S, 10 * S, 10 * S]);
        assert_eq!(backoff.pause(u32::MAX, 1.0, None), 10 * S);
    }

    #[test]
    fn chance_takes_at_most_half_of_a_pause() {
        let backoff = Backoff { first: 2 * S, most: 10 * S };
        assert_eq!(backoff.pause(1, 0.0, None), S);
        assert_eq!(backoff.pause(1, 0.5, None), S * 3 / 2);
        for random in [f64::NAN, -1.0, 7.0] {
            let pause = backoff.pause(1, random, None);
            assert!(pause >= S && pause <= 2 * S, "{random}: {pause:?}");
        }
    }

    #[test]
    fn a_server_may_ask_for_more_but_not_for_ever() {
        let backoff = Backoff { first: S, most: 10 * S };
        assert_eq!(backoff.pause(1, 1.0, Some(0)), S);
        assert_eq!(backoff.pause(1, 1.0, Some(25)), 25 * S);
        assert_eq!(backoff.pause(1, 1.0, Some(u64::MAX)), 40 * S);
    }

    #[test]
    fn the_system_draws_different_numbers_below_one() {
        let drawn: std::collections::BTreeSet<u64> = (0..32)
            .map(|_| SystemClock.random())
            .inspect(|r| assert!((0.0..1.0).contains(r)))
            .map(f64::to_bits)
            .collect();
        assert!(drawn.len() > 16);
        assert!(SystemClock.now() > Duration::ZERO);
    }
}
