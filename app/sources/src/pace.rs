//! A recording at its own speed: the n-th sample is due at `start + n / rate`, and nothing moves that.
//!
//! [`Player`] reads no clock: it is asked with the time what is due. It promises:
//! * **No drift.** When a sample is due is computed from its number, never from when another one was given.
//! * **No burst.** Who comes late gets at most [`Settings::burst`] samples; what is older is passed over and counted, as a
//!   sensor's own buffer would do. Numbers go on, so a reader sees a gap and knows how long it was.
//! * **Late is counted**: a sample that is given more than [`Settings::tolerance`] after it was due.
//! * **The joint of a loop is marked**: the first sample of each round begins anew, for it does not continue the last.

use crate::time::Micros;

/// How a recording is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At its own rate.
    RealTime,
    /// As fast as it is asked for: the times of the samples are those of their rate all the same.
    AsFastAsTaken,
}

/// Samples per second, exact: in millihertz.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// A rate that cannot be paced; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("a sampling rate is 0.001 to 1000000 Hz, not {0}")]
pub struct RateError(pub f64);

impl Rate {
    /// A rate in Hz, rounded to a millihertz.
    ///
    /// # Errors
    /// [`RateError`] if it is not 0.001 to 1,000,000 Hz.
    pub fn from_hz(hz: f64) -> Result<Self, RateError> {
        if !(0.001..=1e6).contains(&hz) {
            return Err(RateError(hz));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        Ok(Self(libm::round(hz * 1000.0) as u64))
    }

    /// In Hz.
    #[must_use]
    pub fn hz(self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "at most 10^9")]
        let millihertz = self.0 as f64;
        millihertz / 1000.0
    }

    /// From the first sample to the n-th, counted from 0, in whole microseconds.
    #[must_use]
    pub fn offset(self, n: u64) -> Micros {
        Micros(u64::try_from(u128::from(n) * 1_000_000_000 / u128::from(self.0)).unwrap_or(u64::MAX))
    }

    /// How many samples are due so long after the first, that one included.
    #[must_use]
    pub fn due(self, elapsed: Micros) -> u64 {
        // The n-th is due when floor(n * 10^9 / rate) <= elapsed, which is n * 10^9 < (elapsed + 1) * rate.
        let n = ((u128::from(elapsed.0) + 1) * u128::from(self.0)).div_ceil(1_000_000_000);
        u64::try_from(n).unwrap_or(u64::MAX)
    }
}

/// How a recording is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// At its rate, or as fast as it is taken.
    pub pace: Pace,
    /// Samples per second.
    pub rate: Rate,
    /// Begin again at the end.
    pub looped: bool,
    /// The most samples given at once, at least 1.
    pub burst: u32,
    /// Later than this after it was due, a sample is late.
    pub tolerance: Micros,
}

/// A sample that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its number; never repeats, also in a loop.
    pub sequence: u64,
    /// Its row in the recording.
    pub row: u64,
    /// When it is due, counted from the first sample: the source's time.
    pub time: Micros,
    /// It is the first of another round, and does not continue the one before.
    pub anew: bool,
}

/// What has been counted since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples given.
    pub given: u64,
    /// Of those, given later than the tolerance.
    pub late: u64,
    /// Samples passed over because too many were due at once.
    pub skipped: u64,
    /// The most that a sample given was late.
    pub latest: Micros,
}

/// Says which samples of a recording are due.
#[derive(Clone, Debug)]
pub struct Player {
    settings: Settings,
    rows: u64,
    start: Micros,
    next: u64,
    counts: Counts,
}

impl Player {
    /// Plays a recording of so many rows, the first of which is due at `start`.
    #[must_use]
    pub fn new(settings: Settings, rows: u64, start: Micros) -> Self {
        let settings = Settings { burst: settings.burst.max(1), ..settings };
        Self { settings, rows, start, next: 0, counts: Counts::default() }
    }

    /// What has been counted so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Nothing will be due any more.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.next >= self.end()
    }

    /// When the next sample is due; `None` when it is over. In the past when it is overdue.
    #[must_use]
    pub fn next_due(&self) -> Option<Micros> {
        if self.is_over() {
            return None;
        }
        match self.settings.pace {
            Pace::RealTime => Some(self.start + self.settings.rate.offset(self.next)),
            Pace::AsFastAsTaken => Some(self.start),
        }
    }

    /// Gives the samples that are due at the time `now`, at most a burst of them.
    pub fn take(&mut self, now: Micros, mut each: impl FnMut(Due)) {
        let burst = u64::from(self.settings.burst);
        let until = match self.settings.pace {
            Pace::AsFastAsTaken => self.next.saturating_add(burst),
            Pace::RealTime if now < self.start => 0,
            Pace::RealTime => self.settings.rate.due(now - self.start),
        }
        .min(self.end());
        if self.next >= until {
            return;
        }
        let from = self.next.max(until.saturating_sub(burst));
        self.counts.skipped += from - self.next;
        let mut round = self.next / self.rows;
        for n in from..until {
            let time = self.settings.rate.offset(n);
            if self.settings.pace == Pace::RealTime {
                let late = now - (self.start + time);
                self.counts.late += u64::from(late > self.settings.tolerance);
                self.counts.latest = self.counts.latest.max(late);
            }
            // The first sample given in a round, also if the very first one was passed over.
            let anew = n / self.rows != round || (n > 0 && n % self.rows == 0);
            round = n / self.rows;
            each(Due { sequence: n, row: n % self.rows, time, anew });
        }
        self.counts.given += until - from;
        self.next = until;
    }

    const fn end(&self) -> u64 {
        if self.settings.looped && self.rows > 0 { u64::MAX } else { self.rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_pcg::Pcg64;
    use rand_pcg::rand_core::Rng as _;

    fn settings(hz: f64) -> Settings {
        Settings {
            pace: Pace::RealTime,
            rate: Rate::from_hz(hz).unwrap(),
            looped: true,
            burst: 100,
            tolerance: Micros(2000),
        }
    }

    fn take(player: &mut Player, now: u64) -> Vec<Due> {
        let mut due = Vec::new();
        player.take(Micros(now), |d| due.push(d));
        due
    }

    #[test]
    fn the_nth_sample_is_due_at_start_plus_n_over_rate_for_ever() {
        for hz in [2000.0, 1925.926, 3.0, 0.001, 1e6, 44_100.0, 29.97] {
            let rate = Rate::from_hz(hz).unwrap();
            for n in [0, 1, 2, 3, 999, 123_456_789, 10u64.pow(12)] {
                let at = rate.offset(n);
                if at == Micros(u64::MAX) {
                    continue; // in 600,000 years
                }
                assert!(rate.due(at) > n, "{hz} Hz: sample {n} is due at {at}");
                if at.0 > 0 && rate.offset(n) > rate.offset(n.saturating_sub(1)) {
                    assert!(rate.due(Micros(at.0 - 1)) <= n, "{hz} Hz: and not before");
                }
            }
        }
        // A year at 2 kHz: not a microsecond off.
        let year = 365 * 86_400;
        assert_eq!(Rate::from_hz(2000.0).unwrap().offset(2000 * year), Micros(1_000_000 * year));
    }

    #[test]
    fn whenever_it_is_asked_it_gives_what_is_due_and_never_drifts() {
        let mut random = Pcg64::new(8, 8);
        let mut player = Player::new(settings(1925.926), 5000, Micros(777));
        let (mut now, mut next) = (777, 0);
        for _ in 0..10_000 {
            for due in take(&mut player, now) {
                assert_eq!((due.sequence, due.row), (next, next % 5000));
                assert!(777 + due.time.0 <= now);
                assert_eq!(due.anew, next > 0 && next % 5000 == 0);
                next += 1;
            }
            let due = player.next_due().unwrap();
            assert!(due.0 > now && due.0 <= now + 520, "the next one is within a period");
            now += u64::from(random.next_u32() % 2000);
        }
        assert_eq!(player.counts().skipped, 0);
        assert_eq!(player.counts().given, next);
        assert_eq!(player.counts().late, 0, "within two milliseconds");
    }

    #[test]
    fn who_comes_late_gets_no_burst_and_the_rest_is_counted() {
        let mut player = Player::new(settings(1000.0), 10_000, Micros(0));
        assert_eq!(take(&mut player, 0).len(), 1);
        let due = take(&mut player, 1_000_000);
        assert_eq!((due.len(), due[0].sequence, due[99].sequence), (100, 901, 1000));
        let c = *player.counts();
        assert_eq!((c.skipped, c.given, c.late, c.latest), (900, 101, 97, Micros(99_000)));
        assert_eq!(take(&mut player, 1_001_000)[0].sequence, 1001, "and then it is on time again");
    }

    #[test]
    fn a_loop_that_is_passed_over_begins_anew_all_the_same() {
        let mut player = Player::new(Settings { burst: 2, ..settings(1000.0) }, 10, Micros(0));
        assert!(!take(&mut player, 0)[0].anew);
        let due = take(&mut player, 15_000);
        assert_eq!((due[0].row, due[0].anew), (4, true), "rows 1 to 9 and 0 to 3 were passed over");
        assert_eq!((due[1].row, due[1].anew), (5, false));
    }

    #[test]
    fn without_a_loop_it_ends() {
        let mut player = Player::new(Settings { looped: false, ..settings(1000.0) }, 5, Micros(0));
        assert_eq!(take(&mut player, 50_000).len(), 5);
        assert!(player.is_over() && player.next_due().is_none());
        assert!(take(&mut player, 60_000).is_empty());
    }

    #[test]
    fn nothing_of_nothing_is_due() {
        for looped in [true, false] {
            let mut player = Player::new(Settings { looped, ..settings(1000.0) }, 0, Micros(0));
            assert!(player.is_over() && take(&mut player, 1000).is_empty());
        }
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_twice() {
        let mut player = Player::new(settings(1000.0), 5000, Micros(10_000));
        assert!(take(&mut player, 9999).is_empty());
        assert_eq!(take(&mut player, 20_000).len(), 11);
        assert!(take(&mut player, 10_000).is_empty() && take(&mut player, 0).is_empty());
        assert_eq!(take(&mut player, 21_000)[0].sequence, 11);
    }

    #[test]
    fn as_fast_as_it_is_taken_it_has_the_times_of_its_rate() {
        let settings = Settings { pace: Pace::AsFastAsTaken, looped: false, ..settings(2000.0) };
        let mut player = Player::new(settings, 250, Micros(0));
        let sizes: Vec<usize> = (0..4).map(|_| take(&mut player, 0).len()).collect();
        assert_eq!(sizes, [100, 100, 50, 0]);
        assert_eq!(player.counts().late + player.counts().skipped, 0);
        let mut player = Player::new(settings, 250, Micros(0));
        assert_eq!(take(&mut player, 0)[99].time, Micros(49_500));
    }

    #[test]
    fn impossible_rates_are_refused() {
        for hz in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e7, 0.0001] {
            assert!(Rate::from_hz(hz).is_err());
        }
        assert_eq!(Rate::from_hz(1925.926).unwrap().hz(), 1925.926);
    }
}
