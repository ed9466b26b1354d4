//! How fast a sender samples, by its own clock: what is recognised at another rate than the model's is something else.

use super::Tracked;
use crate::time::Micros;

/// What is measured at once: so long at the rate that is expected, or so long by the sender's clock.
const SPAN_S: f64 = 0.5;
/// How far a rate may be off. Crystals are 1000 times as exact; clocks of a few microcontrollers, by RC, are not.
const TOLERANCE: f64 = 0.05;

/// Compares sequence numbers with timestamps, half a second after the other.
#[derive(Debug, Default)]
pub struct Meter {
    from: Option<(u64, Micros)>,
    /// Whether it was right ever, and how often in a row it was wrong since.
    right: bool,
    wrong: u32,
    measured: f64,
}

impl Meter {
    /// Takes a frame's place, and says the rate in Hz while it is not the one that is expected: as soon as it is known, and after it
    /// was right once, when two measurements agree that it is not. A clock that stands still makes it infinite.
    pub fn take(&mut self, frame: &Tracked, expected_hz: f64) -> Option<f64> {
        let Some((sequence, time)) = self.from else {
            self.from = Some((frame.sequence, frame.time));
            return self.verdict();
        };
        let steps = u32::try_from(frame.sequence.saturating_sub(sequence)).map_or(f64::INFINITY, f64::from);
        let seconds = u32::try_from(frame.time.since(time).0).map_or(f64::INFINITY, f64::from) / 1e6;
        if steps >= SPAN_S * expected_hz || seconds >= SPAN_S {
            self.from = Some((frame.sequence, frame.time));
            self.measured = steps / seconds;
            if (self.measured / expected_hz - 1.0).abs() <= TOLERANCE {
                (self.right, self.wrong) = (true, 0);
            } else {
                self.wrong = self.wrong.saturating_add(1);
            }
        }
        self.verdict()
    }

    /// The sender began anew, or its frames have no order any more.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn verdict(&self) -> Option<f64> {
        (self.wrong > u32::from(self.right)).then_some(self.measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Continuity;

    /// Frames of ten steps: the verdict after the last of so many.
    fn after(meter: &mut Meter, from: u64, frames: u64, micros_a_step: u64) -> Option<f64> {
        let mut verdict = None;
        for n in 0..frames {
            let sequence = from + 10 * n;
            let time = Micros(sequence * micros_a_step);
            verdict = meter.take(&Tracked { continuity: Continuity::Next, sequence, time }, 2000.0);
        }
        verdict
    }

    #[test]
    fn a_sensor_of_the_expected_rate_is_right_and_one_a_twentieth_off_still() {
        for micros in [500, 480, 520] {
            assert_eq!(after(&mut Meter::default(), 0, 1000, micros), None, "{micros} us");
        }
    }

    #[test]
    fn ten_times_as_fast_and_half_as_fast_are_told_within_half_a_second_of_samples() {
        assert_eq!(after(&mut Meter::default(), 0, 101, 50), Some(20_000.0));
        assert_eq!(after(&mut Meter::default(), 0, 51, 1000), Some(1000.0));
        assert_eq!(after(&mut Meter::default(), 0, 101, 0), Some(f64::INFINITY), "a clock that stands still");
    }

    #[test]
    fn one_jump_of_a_clock_is_not_another_rate() {
        let mut meter = Meter::default();
        assert_eq!(after(&mut meter, 0, 300, 500), None);
        let ahead = Micros(3000 * 500 + 9_000_000);
        assert_eq!(
            meter.take(&Tracked { continuity: Continuity::Next, sequence: 3000, time: ahead }, 2000.0),
            None
        );
        let mut verdict = None;
        for n in 1..400 {
            let time = ahead + Micros(5000 * n);
            let frame = Tracked { continuity: Continuity::Next, sequence: 3000 + 10 * n, time };
            verdict = verdict.or(meter.take(&frame, 2000.0));
        }
        assert_eq!(verdict, None);
    }

    #[test]
    fn a_rate_that_changes_for_good_is_told_and_so_is_its_return() {
        let mut meter = Meter::default();
        assert_eq!(after(&mut meter, 0, 300, 500), None);
        meter.reset();
        assert_eq!(after(&mut meter, 3000, 101, 250), Some(4000.0));
        let mut meter = Meter { right: true, ..Meter::default() };
        assert_eq!(after(&mut meter, 0, 101, 250), None, "once may be a jump");
        assert_eq!(after(&mut meter, 1010, 200, 250), Some(4000.0));
        assert_eq!(after(&mut meter, 3010, 400, 500), None);
    }
}
