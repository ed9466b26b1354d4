//! Windows out of a stream of samples.
//!
//! [`Windows`] keeps the last samples in a ring whose size never changes, and gives windows of [`Settings::length`]
//! samples whose beginnings are [`Settings::hop`] apart. Times are handed in; nothing here reads a clock.
//!
//! What it promises:
//! * **No window across a gap.** A gap is a number that is missing, or a time between two samples that cannot be. What was
//!   whole before it is still given; what follows begins a new run of windows.
//! * **No window twice**: a sensor that stops gives no more windows, and [`Windows::flow`] says that it stopped.
//! * **The oldest go first.** When nobody takes them, windows are overwritten by new samples and counted; a window whose
//!   last sample is older than [`Settings::max_age`] is not given, and counted.

use crate::MAX_CHANNELS;
use crate::time::Micros;
use heapless::Deque;

/// The most values a ring holds: 4 MiB of memory, 32 s of 16 channels at 2 kHz.
pub const MAX_RING_VALUES: usize = 1 << 20;
/// Runs between gaps that may have windows left to take.
const MAX_RUNS: usize = 8;

/// The shape of windows, and what counts as late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Values in a sample: 1 to 32.
    pub channels: usize,
    /// Samples in a window.
    pub length: usize,
    /// Samples from the beginning of one window to the next; may be more than the length.
    pub hop: usize,
    /// Samples that are kept: at least `length`, and at most 1,048,576 values.
    pub capacity: usize,
    /// The longest time between two samples that follow each other.
    pub max_step: Micros,
    /// Without a sample for this long, the stream is stale.
    pub stale_after: Micros,
    /// A window whose last sample came longer ago than this is not given any more.
    pub max_age: Micros,
}

impl Settings {
    /// Settings for samples at this rate: the ring holds the window, ten hops and a second; three samples missing are a
    /// gap in time, 250 ms without one are stale, and a window serves for a second.
    #[must_use]
    pub fn usual(channels: usize, length: usize, hop: usize, rate_hz: f64) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "both saturate, at 0 and at the end"
        )]
        let (second, step) = (rate_hz as usize, (4e6 / rate_hz) as u64);
        let room = MAX_RING_VALUES / channels.max(1);
        Self {
            channels,
            length,
            hop,
            capacity: length
                .saturating_add(hop.saturating_mul(10))
                .saturating_add(second)
                .min(room)
                .max(length),
            max_step: Micros(step),
            stale_after: Micros(250_000.max(step)),
            max_age: Micros(1_000_000),
        }
    }
}

/// Why settings cannot be; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The number of channels.
    #[error("a window has 1 to 32 channels, not {0}")]
    Channels(usize),
    /// A window or a hop of no samples.
    #[error("a window and its hop have at least one sample each")]
    Nothing,
    /// The ring is too small for the window, or too large.
    #[error("a ring for windows of {length} samples holds {length} to {most} samples, not {capacity}")]
    Capacity {
        /// Samples in a window.
        length: usize,
        /// The most samples there can be with so many channels.
        most: usize,
        /// As it was asked for.
        capacity: usize,
    },
}

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It follows the one before, or is the first.
    Follows,
    /// So many samples are missing before it.
    AfterMissing(u64),
    /// It has the next number, and too long a time lies between it and the one before, or it lies before that.
    AfterJump,
    /// It begins anew, as [`Windows::begin_anew`] said.
    Anew,
    /// Its number was here already or is older: not taken.
    Old,
    /// One of its values is not a finite number: not taken, so that the next one follows a gap.
    NotFinite,
    /// It does not have as many values as there are channels: not taken.
    Channels,
}

impl Pushed {
    /// The sample was taken.
    #[must_use]
    pub const fn is_taken(self) -> bool {
        matches!(self, Self::Follows | Self::AfterMissing(_) | Self::AfterJump | Self::Anew)
    }

    /// The sample was taken and does not follow the one before: filters are to be reset.
    #[must_use]
    pub const fn is_gap(self) -> bool {
        matches!(self, Self::AfterMissing(_) | Self::AfterJump | Self::Anew)
    }
}

/// What is known about a window beside its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The number of its first sample.
    pub sequence: u64,
    /// The sender's time of its first sample.
    pub first: Micros,
    /// The sender's time of its last sample.
    pub last: Micros,
    /// When its last sample arrived, by the clock of who pushed it.
    pub arrived: Micros,
}

/// Whether samples come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// None has come yet.
    Never,
    /// They come.
    Live,
    /// None has come for so long.
    Stale(Micros),
}

/// What has been counted since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples taken.
    pub samples: u64,
    /// Samples not taken because their number was here or is older.
    pub old: u64,
    /// Samples not taken because a value was not finite.
    pub not_finite: u64,
    /// Samples not taken because they have another number of values.
    pub channels: u64,
    /// Samples whose numbers were left out.
    pub missing: u64,
    /// Gaps, of every kind.
    pub gaps: u64,
    /// Windows given.
    pub windows: u64,
    /// Windows overwritten before anybody took them.
    pub dropped: u64,
    /// Windows that were too old when they were to be taken.
    pub expired: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stamp {
    time: Micros,
    arrived: Micros,
}

/// Samples without a gap between them, by their place among all samples ever taken.
#[derive(Clone, Copy, Debug)]
struct Run {
    begin: u64,
    end: u64,
    /// Where the next window begins.
    next: u64,
    /// The number of the sample at `begin`.
    sequence: u64,
}

impl Run {
    /// Windows that begin before `place` and are whole.
    fn whole_before(&self, place: u64, length: u64, hop: u64) -> u64 {
        let Some(last) = self.end.checked_sub(length) else { return 0 };
        // Beginnings are next, next + hop, ...: those at most at `last` and below `place`.
        let bound = (last + 1).min(place);
        bound.saturating_sub(self.next).div_ceil(hop)
    }
}

/// The ring, and the windows in it.
#[derive(Debug)]
pub struct Windows {
    settings: Settings,
    values: Box<[f32]>,
    stamps: Box<[Stamp]>,
    /// Samples ever taken.
    taken: u64,
    runs: Deque<Run, MAX_RUNS>,
    anew: bool,
    counts: Counts,
}

impl Windows {
    /// An empty ring. All of its memory is allocated here.
    ///
    /// # Errors
    /// [`SettingsError`] says which setting cannot be.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let Settings { channels, length, hop, capacity, .. } = settings;
        if channels == 0 || channels > MAX_CHANNELS {
            return Err(SettingsError::Channels(channels));
        }
        if length == 0 || hop == 0 {
            return Err(SettingsError::Nothing);
        }
        let most = MAX_RING_VALUES / channels;
        if capacity < length || capacity > most {
            return Err(SettingsError::Capacity { length, most, capacity });
        }
        Ok(Self {
            settings,
            values: vec![0.0; capacity * channels].into(),
            stamps: vec![Stamp::default(); capacity].into(),
            taken: 0,
            runs: Deque::new(),
            anew: false,
            counts: Counts::default(),
        })
    }

    /// As it was made.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What has been counted so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The next sample begins anew, whatever its number: the sensor restarted, a recording begins again.
    pub const fn begin_anew(&mut self) {
        self.anew = true;
    }

    /// Takes a sample: its number, the sender's time, the time it arrived, a finite value per channel.
    pub fn push(&mut self, sequence: u64, time: Micros, arrived: Micros, values: &[f32]) -> Pushed {
        if values.len() != self.settings.channels {
            self.counts.channels += 1;
            return Pushed::Channels;
        }
        if values.iter().any(|v| !v.is_finite()) {
            self.counts.not_finite += 1;
            return Pushed::NotFinite;
        }
        let pushed = self.place(sequence, time);
        if pushed == Pushed::Old {
            self.counts.old += 1;
            return pushed;
        }
        self.anew = false;
        if pushed.is_gap() {
            self.counts.gaps += 1;
        }
        if pushed.is_gap() || self.runs.is_empty() {
            self.begin_run(sequence);
        }
        let slot = self.slot(self.taken);
        self.values[slot * values.len()..][..values.len()].copy_from_slice(values);
        self.stamps[slot] = Stamp { time, arrived };
        self.taken += 1;
        if let Some(run) = self.runs.back_mut() {
            run.end = self.taken;
        }
        self.counts.samples += 1;
        self.overwritten();
        pushed
    }

    fn place(&mut self, sequence: u64, time: Micros) -> Pushed {
        let Some(run) = self.runs.back() else { return Pushed::Follows };
        if self.anew {
            return Pushed::Anew;
        }
        let expected = run.sequence + (run.end - run.begin);
        if sequence < expected {
            return Pushed::Old;
        }
        if sequence > expected {
            let missing = sequence - expected;
            self.counts.missing += missing;
            return Pushed::AfterMissing(missing);
        }
        let before = self.stamps[self.slot(self.taken - 1)].time;
        if time < before || time - before > self.settings.max_step {
            Pushed::AfterJump
        } else {
            Pushed::Follows
        }
    }

    fn begin_run(&mut self, sequence: u64) {
        // A run that has no window to give is of no use any more.
        if self.runs.back().is_some_and(|run| self.whole(run, u64::MAX) == 0) {
            self.runs.pop_back();
        }
        if self.runs.is_full()
            && let Some(run) = self.runs.pop_front()
        {
            self.counts.dropped += self.whole(&run, u64::MAX);
        }
        let begin = self.taken;
        let _ = self.runs.push_back(Run { begin, end: begin, next: begin, sequence });
    }

    /// Counts and passes over the windows whose first samples are not there any more.
    fn overwritten(&mut self) {
        let oldest = self.oldest();
        while let Some(&run) = self.runs.front() {
            if self.runs.len() > 1 && self.whole(&run, u64::MAX) == 0 {
                self.runs.pop_front();
                continue;
            }
            if run.next >= oldest {
                return;
            }
            self.counts.dropped += self.whole(&run, oldest);
            let hop = self.settings.hop as u64;
            if let Some(run) = self.runs.front_mut() {
                run.next += (oldest - run.next).div_ceil(hop) * hop;
            }
        }
    }

    /// Gives the oldest window that is whole, and no older than it may be at the time `now`: its values go to `into`,
    /// sample by sample, in a sample channel by channel.
    ///
    /// # Panics
    /// If `into` does not have room for exactly one window: `length * channels` values.
    pub fn take(&mut self, now: Micros, into: &mut [f32]) -> Option<Window> {
        loop {
            let &run = self.runs.front()?;
            if self.whole(&run, u64::MAX) == 0 {
                if self.runs.len() == 1 {
                    return None;
                }
                self.runs.pop_front();
                continue;
            }
            if let Some(first) = self.runs.front_mut() {
                first.next += self.settings.hop as u64;
            }
            let window = self.copy(&run, run.next, self.settings.length, into);
            if now.since(window.arrived) > self.settings.max_age {
                self.counts.expired += 1;
                continue;
            }
            self.counts.windows += 1;
            return Some(window);
        }
    }

    /// Copies the newest `into.len() / channels` samples, if there are so many without a gap; takes nothing.
    #[must_use]
    pub fn latest(&self, into: &mut [f32]) -> Option<Window> {
        let &run = self.runs.back()?;
        let length = into.len() / self.settings.channels;
        let from = run.end.checked_sub(length as u64)?;
        let there = length > 0 && into.len().is_multiple_of(self.settings.channels);
        (there && from >= run.begin.max(self.oldest())).then(|| self.copy(&run, from, length, into))
    }

    /// Whether samples come, at the time `now`.
    #[must_use]
    pub fn flow(&self, now: Micros) -> Flow {
        let Some(last) = self.taken.checked_sub(1) else { return Flow::Never };
        let silent = now.since(self.stamps[self.slot(last)].arrived);
        if silent > self.settings.stale_after { Flow::Stale(silent) } else { Flow::Live }
    }

    fn copy(&self, run: &Run, from: u64, length: usize, into: &mut [f32]) -> Window {
        let channels = self.settings.channels;
        assert_eq!(into.len(), length * channels, "room for one window");
        let first = self.slot(from);
        // In two parts where the ring ends.
        let split = length.min(self.settings.capacity - first);
        let (head, tail) = into.split_at_mut(split * channels);
        head.copy_from_slice(&self.values[first * channels..][..head.len()]);
        tail.copy_from_slice(&self.values[..tail.len()]);
        let last = self.stamps[self.slot(from + length as u64 - 1)];
        Window {
            sequence: run.sequence + (from - run.begin),
            first: self.stamps[first].time,
            last: last.time,
            arrived: last.arrived,
        }
    }

    fn whole(&self, run: &Run, place: u64) -> u64 {
        run.whole_before(place, self.settings.length as u64, self.settings.hop as u64)
    }

    const fn oldest(&self) -> u64 {
        self.taken.saturating_sub(self.settings.capacity as u64)
    }

    #[allow(clippy::cast_possible_truncation, reason = "below the capacity, which is a usize")]
    const fn slot(&self, place: u64) -> usize {
        (place % self.settings.capacity as u64) as usize
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "test data")]
mod tests {
    use super::*;
    use rand_pcg::Pcg64;
    use rand_pcg::rand_core::Rng as _;
    use std::collections::VecDeque;

    const SECOND: Micros = Micros(1_000_000);
    const PLAIN: Settings = Settings {
        channels: 2,
        length: 4,
        hop: 2,
        capacity: 16,
        max_step: Micros(2000),
        stale_after: Micros(5000),
        max_age: SECOND,
    };

    /// A sample whose values say its number.
    fn push(windows: &mut Windows, n: u64) -> Pushed {
        let values: Vec<f32> = (0..windows.settings.channels).map(|c| (n * 100) as f32 + c as f32).collect();
        windows.push(n, Micros(1000 * n), Micros(1000 * n), &values)
    }

    fn take(windows: &mut Windows, now: Micros) -> Option<(u64, Vec<f32>)> {
        let mut into = vec![f32::NAN; windows.settings.length * windows.settings.channels];
        windows.take(now, &mut into).map(|w| (w.sequence, into))
    }

    fn sequences(windows: &mut Windows) -> Vec<u64> {
        std::iter::from_fn(|| take(windows, Micros(0)).map(|w| w.0)).collect()
    }

    #[test]
    fn windows_have_their_length_and_hop() {
        let mut windows = Windows::new(PLAIN).unwrap();
        for n in 0..9 {
            assert_eq!(push(&mut windows, n), Pushed::Follows);
        }
        let (sequence, values) = take(&mut windows, Micros(0)).unwrap();
        assert_eq!((sequence, values), (0, vec![0.0, 1.0, 100.0, 101.0, 200.0, 201.0, 300.0, 301.0]));
        let mut into = [0.0; 8];
        let second = windows.take(Micros(9000), &mut into).unwrap();
        assert_eq!(
            second,
            Window { sequence: 2, first: Micros(2000), last: Micros(5000), arrived: Micros(5000) }
        );
        assert_eq!(sequences(&mut windows), [4]);
    }

    #[test]
    fn a_hop_may_be_longer_than_the_window() {
        let mut windows = Windows::new(Settings { hop: 6, ..PLAIN }).unwrap();
        (0..15).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert_eq!(sequences(&mut windows), [0, 6]);
    }

    #[test]
    fn no_window_lies_across_a_gap_and_what_was_whole_before_is_given() {
        let mut windows = Windows::new(PLAIN).unwrap();
        (0..7).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert_eq!(push(&mut windows, 9), Pushed::AfterMissing(2));
        (10..14).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert_eq!(sequences(&mut windows), [0, 2, 9]);
        assert_eq!((windows.counts().missing, windows.counts().gaps), (2, 1));
    }

    #[test]
    fn a_time_that_jumps_is_a_gap_although_no_number_is_missing() {
        for jump in [Micros(5001), Micros(2999)] {
            let mut windows = Windows::new(PLAIN).unwrap();
            (0..4).for_each(|n| assert!(push(&mut windows, n).is_taken()));
            assert_eq!(
                windows.push(4, if jump.0 > 5000 { Micros(5001) } else { Micros(2999) }, SECOND, &[0.0; 2]),
                Pushed::AfterJump
            );
            assert_eq!(windows.counts().gaps, 1);
        }
        let mut windows = Windows::new(PLAIN).unwrap();
        (0..4).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert_eq!(windows.push(4, Micros(5000), SECOND, &[0.0; 2]), Pushed::Follows, "two steps are no gap");
    }

    #[test]
    fn old_and_impossible_samples_are_not_taken() {
        let mut windows = Windows::new(PLAIN).unwrap();
        (5..8).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert_eq!(push(&mut windows, 7), Pushed::Old);
        assert_eq!(push(&mut windows, 2), Pushed::Old);
        assert_eq!(windows.push(8, Micros(8000), SECOND, &[1.0]), Pushed::Channels);
        assert_eq!(windows.push(8, Micros(8000), SECOND, &[1.0, f32::NAN]), Pushed::NotFinite);
        assert_eq!(push(&mut windows, 9), Pushed::AfterMissing(1), "what was refused is missing");
        let c = windows.counts();
        assert_eq!((c.samples, c.old, c.channels, c.not_finite), (4, 2, 1, 1));
    }

    #[test]
    fn what_begins_anew_may_have_any_number() {
        let mut windows = Windows::new(PLAIN).unwrap();
        (100..106).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        windows.begin_anew();
        assert_eq!(push(&mut windows, 0), Pushed::Anew);
        (1..5).for_each(|n| assert_eq!(push(&mut windows, n), Pushed::Follows));
        assert_eq!(sequences(&mut windows), [100, 102, 0]);
        assert_eq!(windows.counts().missing, 0);
    }

    #[test]
    fn a_sensor_that_stops_gives_no_window_twice_and_is_stale() {
        let mut windows = Windows::new(PLAIN).unwrap();
        assert_eq!(windows.flow(SECOND), Flow::Never);
        (0..4).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert!(take(&mut windows, Micros(3000)).is_some());
        assert_eq!(windows.flow(Micros(8000)), Flow::Live);
        assert_eq!(windows.flow(Micros(8001)), Flow::Stale(Micros(5001)));
        for now in [3000, 8001, 1_000_000] {
            assert_eq!(take(&mut windows, Micros(now)), None);
        }
        assert_eq!(windows.flow(Micros(0)), Flow::Live, "a clock that goes back makes nothing stale");
    }

    #[test]
    fn a_window_that_is_too_old_is_not_given() {
        let mut windows = Windows::new(PLAIN).unwrap();
        (0..8).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert_eq!(take(&mut windows, Micros(1_003_001)).map(|w| w.0), Some(2), "the first ended at 3000");
        assert_eq!(windows.counts().expired, 1);
        assert_eq!(take(&mut windows, Micros(1_007_001)), None);
        assert_eq!(windows.counts().expired, 2);
    }

    #[test]
    fn when_nobody_takes_them_the_oldest_windows_go_and_are_counted() {
        let mut windows = Windows::new(PLAIN).unwrap();
        (0..1000).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        assert_eq!(windows.counts().dropped, 492, "windows began at 0 to 982");
        assert_eq!(sequences(&mut windows), [984, 986, 988, 990, 992, 994, 996]);
    }

    #[test]
    fn many_short_runs_take_no_more_room_than_few() {
        let mut windows = Windows::new(Settings { capacity: 400, ..PLAIN }).unwrap();
        // Runs of 5 samples: each has one window.
        for run in 0..40 {
            (0..5).for_each(|n| assert!(push(&mut windows, run * 10 + n).is_taken()));
        }
        let taken = sequences(&mut windows);
        assert_eq!(taken, (32..40).map(|run| run * 10).collect::<Vec<_>>());
        assert_eq!(windows.counts().dropped, 32);
    }

    #[test]
    fn the_newest_samples_can_be_looked_at() {
        let mut windows = Windows::new(PLAIN).unwrap();
        (0..30).for_each(|n| assert!(push(&mut windows, n).is_taken()));
        let mut into = [0.0; 32];
        assert_eq!(windows.latest(&mut into).map(|w| w.sequence), Some(14));
        assert_eq!((into[0], into[31]), (1400.0, 2901.0));
        assert_eq!(windows.latest(&mut [0.0; 34]), None, "more than the ring holds");
        assert_eq!(windows.latest(&mut [0.0; 3]), None, "no whole sample");
        assert_eq!(windows.latest(&mut []), None);
        assert!(push(&mut windows, 40).is_taken());
        assert_eq!(windows.latest(&mut [0.0; 4]), None, "across a gap");
        assert_eq!(windows.latest(&mut [0.0; 2]).map(|w| w.sequence), Some(40));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |settings| Windows::new(settings).unwrap_err();
        assert_eq!(refused(Settings { channels: 0, ..PLAIN }), SettingsError::Channels(0));
        assert_eq!(refused(Settings { channels: 33, ..PLAIN }), SettingsError::Channels(33));
        assert_eq!(refused(Settings { length: 0, ..PLAIN }), SettingsError::Nothing);
        assert_eq!(refused(Settings { hop: 0, ..PLAIN }), SettingsError::Nothing);
        for capacity in [3, 524_289, usize::MAX] {
            let most = 524_288;
            assert_eq!(
                refused(Settings { capacity, ..PLAIN }),
                SettingsError::Capacity { length: 4, most, capacity }
            );
        }
        for (length, hop, rate) in
            [(200, 40, 2000.0), (1, usize::MAX, f64::NAN), (100, 1, 0.0), (9, 9, 1e300)]
        {
            assert!(Windows::new(Settings::usual(16, length, hop, rate)).is_ok());
        }
    }

    /// The same promises, without a ring: every sample of the run is kept, and windows are cut out of it.
    struct Naive {
        settings: Settings,
        runs: Vec<Vec<(u64, Micros, Micros)>>,
        waiting: VecDeque<(u64, u64)>,
    }

    #[test]
    fn whatever_comes_the_windows_are_those_of_a_plain_model() {
        let mut random = Pcg64::new(2, 3);
        let mut below = |n: u32| random.next_u32() % n;
        for case in 0..300 {
            let length = below(12) as usize + 1;
            let settings = Settings {
                channels: below(3) as usize + 1,
                length,
                hop: below(15) as usize + 1,
                capacity: length + below(40) as usize,
                max_age: Micros(10_000 + u64::from(below(40_000))),
                ..PLAIN
            };
            let mut windows = Windows::new(settings).unwrap();
            let mut plain = Naive { settings, runs: vec![Vec::new()], waiting: VecDeque::new() };
            let (mut sequence, mut now, mut total) = (u64::from(below(1000)), Micros(0), 0u64);
            let (mut given, mut gaps) = (Vec::new(), 0);
            for _ in 0..600 {
                let skipped = if below(20) == 0 { u64::from(below(30)) } else { 0 };
                sequence += skipped;
                now = now + Micros(1000);
                let pushed = push(&mut windows, sequence);
                if skipped > 0 {
                    plain.runs.push(Vec::new());
                    gaps += u64::from(total > 0);
                }
                let arrived = Micros(1000 * sequence);
                let run = plain.runs.last_mut().unwrap();
                run.push((sequence, arrived, arrived));
                if total > 0 {
                    assert_eq!(
                        pushed,
                        if skipped > 0 { Pushed::AfterMissing(skipped) } else { Pushed::Follows }
                    );
                }
                total += 1;
                let n = run.len();
                if n >= length && (n - length).is_multiple_of(plain.settings.hop) {
                    plain.waiting.push_back((run[n - length].0, total - length as u64));
                }
                sequence += 1;
                // Seldom taken, so that some are overwritten.
                if below(8) == 0 {
                    let now = Micros(1000 * sequence);
                    while let Some((first, values)) = take(&mut windows, now) {
                        let expected: Vec<f32> = (first..first + length as u64)
                            .flat_map(|n| (0..settings.channels).map(move |c| (n * 100) as f32 + c as f32))
                            .collect();
                        assert_eq!(values, expected, "case {case}: no gap, nothing of another window");
                        given.push(first);
                        // The model: what was overwritten or is too old is passed over, the rest is in order.
                        loop {
                            let (begin, place) = plain.waiting.pop_front().expect("the model has it too");
                            if begin == first {
                                break;
                            }
                            let end = Micros(1000 * (begin + length as u64 - 1));
                            let gone = place + (settings.capacity as u64) < total;
                            let old = now - end > settings.max_age;
                            let many = plain.runs.len() > MAX_RUNS;
                            assert!(
                                gone || old || many,
                                "case {case}: window {begin} was left out for nothing"
                            );
                        }
                    }
                }
            }
            let c = *windows.counts();
            assert!(given.is_sorted() && given.windows(2).all(|w| w[0] < w[1]), "case {case}: none twice");
            assert_eq!((c.samples, c.gaps, c.windows), (600, gaps, given.len() as u64), "case {case}");
            let all: u64 = plain
                .runs
                .iter()
                .map(|run| (run.len() + 1).saturating_sub(length).div_ceil(settings.hop) as u64)
                .sum();
            let left = windows.runs.iter().map(|run| windows.whole(run, u64::MAX)).sum::<u64>();
            assert_eq!(
                c.windows + c.dropped + c.expired + left,
                all,
                "case {case}: every window is accounted for"
            );
        }
    }
}
