//! The order of frames: sequence numbers and timestamps that wrap, and what is missing between them.

use super::Header;
use crate::time::Micros;
use heapless::HistoryBuf;

/// How far ahead a sequence number may be before the sender counts as restarted: 33 s at 2 kHz.
const FARTHEST_AHEAD: u32 = 1 << 16;
/// Frames that are remembered, to tell a repeated one from a late one.
const REMEMBERED: usize = 32;
/// So many frames in a row that are behind, each continuing the one before: the sender began anew.
const BEHIND_IS_RESTART: u8 = 3;

/// How a frame goes with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// The first one.
    First,
    /// It continues the one before.
    Next,
    /// So many steps are missing before it.
    Lost(u32),
    /// It was here already: to be dropped.
    Duplicate,
    /// It comes after its turn, when its steps had been counted as lost: to be dropped.
    Late,
    /// The sender began anew: how much is missing cannot be known.
    Restarted,
}

impl Continuity {
    /// The frame's samples are to be used.
    #[must_use]
    pub const fn is_new(self) -> bool {
        !matches!(self, Self::Duplicate | Self::Late)
    }
}

/// A frame's place among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// How it goes with those before it.
    pub continuity: Continuity,
    /// Number of its first step. Never wraps and grows with every frame that is new; after a restart it goes on.
    pub sequence: u64,
    /// The sender's clock at its first step. Never wraps; after a restart it is the sender's new clock.
    pub time: Micros,
}

/// Judges frames one after the other, and counts.
#[derive(Debug, Default)]
pub struct Tracker {
    last: Option<Last>,
    recent: HistoryBuf<(u32, u8), REMEMBERED>,
    /// The next frame continues nothing.
    reopened: bool,
    /// How many frames in a row were behind, and what would continue the last of them.
    behind: Option<(u8, u32)>,
    /// Steps that never came, or came late.
    pub lost: u64,
    /// Frames that came twice.
    pub duplicates: u64,
    /// Frames that came after their turn; their steps are counted in `lost`.
    pub late: u64,
    /// Times that the sender began anew.
    pub restarts: u64,
    /// Frames before which the sender itself lost samples.
    pub sender_lost: u64,
    /// Frames with a clipped value.
    pub clipped: u64,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    /// What the next frame's number should be, as it is in the frame and without wrapping.
    expected: u32,
    sequence: u64,
    timestamp: u32,
    time: Micros,
}

impl Tracker {
    /// One that has seen no frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the order, and keeps the counts: the port was opened anew.
    pub fn reset(&mut self) {
        self.reopened = self.last.is_some();
        self.recent.clear();
        self.behind = None;
    }

    /// Judges the next frame.
    pub fn take(&mut self, header: &Header) -> Tracked {
        let tracked = self.judge(header);
        if tracked.continuity.is_new() {
            self.sender_lost += u64::from(header.flags & super::FLAG_LOST != 0);
            self.clipped += u64::from(header.flags & super::FLAG_CLIPPED != 0);
            self.behind = None;
            self.recent.write((header.sequence, header.steps));
            self.last = Some(Last {
                expected: header.sequence.wrapping_add(header.steps.into()),
                sequence: tracked.sequence + u64::from(header.steps),
                timestamp: header.timestamp_us,
                time: tracked.time,
            });
        }
        tracked
    }

    fn judge(&mut self, header: &Header) -> Tracked {
        let Some(last) = self.last else {
            let time = Micros(header.timestamp_us.into());
            return Tracked { continuity: Continuity::First, sequence: header.sequence.into(), time };
        };
        // A clock that goes back by less than half its range has not wrapped.
        let elapsed = header.timestamp_us.wrapping_sub(last.timestamp).cast_signed();
        let time = Micros(last.time.0.saturating_add_signed(elapsed.into()));
        let ahead = header.sequence.wrapping_sub(last.expected);
        if std::mem::take(&mut self.reopened) {
            return self.begin_anew(last, header);
        }
        if ahead == 0 {
            return Tracked { continuity: Continuity::Next, sequence: last.sequence, time };
        }
        if ahead < FARTHEST_AHEAD {
            self.lost += u64::from(ahead);
            let sequence = last.sequence + u64::from(ahead);
            return Tracked { continuity: Continuity::Lost(ahead), sequence, time };
        }
        if self.is_behind(header) {
            let continuity = if self.recent.contains(&(header.sequence, header.steps)) {
                self.duplicates += 1;
                Continuity::Duplicate
            } else {
                self.late += 1;
                Continuity::Late
            };
            let sequence = last.sequence.saturating_sub(ahead.wrapping_neg().into());
            return Tracked { continuity, sequence, time };
        }
        self.begin_anew(last, header)
    }

    fn begin_anew(&mut self, last: Last, header: &Header) -> Tracked {
        self.restarts += 1;
        self.recent.clear();
        let time = Micros(header.timestamp_us.into());
        // One number is left out, so that no reader takes this for a continuation.
        Tracked { continuity: Continuity::Restarted, sequence: last.sequence + 1, time }
    }

    /// It belongs to what has been; unless frames behind follow each other, which only a sender that began anew writes.
    fn is_behind(&mut self, header: &Header) -> bool {
        let next = header.sequence.wrapping_add(header.steps.into());
        let run = match self.behind {
            Some((n, expected)) if expected == header.sequence => n + 1,
            _ => 1,
        };
        self.behind = Some((run, next));
        // Not older than everything that is remembered.
        let oldest = self.recent.oldest_ordered().next();
        let remembered =
            oldest.is_some_and(|&(first, _)| header.sequence.wrapping_sub(first) < FARTHEST_AHEAD);
        remembered && run < BEHIND_IS_RESTART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u32, timestamp_us: u32) -> Header {
        Header { channels: 16, steps: 10, flags: 0, sequence, timestamp_us }
    }

    /// The judgements on frames of ten steps with these numbers, 5 ms apart.
    fn judge(tracker: &mut Tracker, numbers: &[u32]) -> Vec<Continuity> {
        numbers.iter().map(|&n| tracker.take(&header(n, n.wrapping_mul(500))).continuity).collect()
    }

    #[test]
    fn frames_in_order_continue_each_other_over_the_wrap_of_number_and_clock() {
        let mut tracker = Tracker::new();
        let first = u32::MAX - 24;
        let mut before = tracker.take(&header(first, u32::MAX - 7000));
        assert_eq!((before.continuity, before.sequence), (Continuity::First, first.into()));
        for i in 1..10u32 {
            let t =
                tracker.take(&header(first.wrapping_add(10 * i), (u32::MAX - 7000).wrapping_add(5000 * i)));
            assert_eq!(t.continuity, Continuity::Next);
            assert_eq!(t.sequence, before.sequence + 10);
            assert_eq!(t.time - before.time, Micros(5000));
            before = t;
        }
        assert_eq!((tracker.lost, tracker.restarts), (0, 0));
    }

    #[test]
    fn what_is_missing_is_counted_in_steps_also_over_the_wrap() {
        let mut tracker = Tracker::new();
        let seen = judge(&mut tracker, &[u32::MAX - 9, 20, 30, 1030]);
        assert_eq!(seen, [Continuity::First, Continuity::Lost(20), Continuity::Next, Continuity::Lost(990)]);
        assert_eq!(tracker.lost, 1010);
    }

    #[test]
    fn repeated_and_late_frames_are_told_apart_also_over_the_wrap() {
        for base in [1000u32, u32::MAX - 25, u32::MAX - 45] {
            let mut tracker = Tracker::new();
            let at = |n: u32| base.wrapping_add(n);
            let seen =
                judge(&mut tracker, &[at(0), at(10), at(10), at(30), at(20), at(20), at(40), at(0), at(50)]);
            use Continuity::{Duplicate, First, Late, Lost, Next};
            assert_eq!(
                seen,
                [First, Next, Duplicate, Lost(10), Late, Late, Next, Duplicate, Next],
                "from {base}"
            );
            assert_eq!((tracker.lost, tracker.duplicates, tracker.late, tracker.restarts), (10, 2, 2, 0));
        }
    }

    #[test]
    fn a_sender_that_began_anew_is_noticed_wherever_it_begins() {
        let cases = [
            (1_000_000, 50, 0),
            (500, 50, 0),
            (0, 20, 0),
            (7, 20, 0),
            (0, 20, 55),
            (5, 50, 3_000_000_000),
            (0, 50, 70_000),
        ];
        for (from, frames, to) in cases {
            let mut tracker = Tracker::new();
            let mut last = 0;
            for i in 0..frames {
                last = tracker.take(&header(from + 10 * i, 0)).sequence;
            }
            let mut new = 0;
            for i in 0..10 {
                let t = tracker.take(&header(to + 10 * i, 0));
                if t.continuity.is_new() {
                    assert!(t.sequence > last, "numbers only grow");
                    last = t.sequence;
                    new += 1;
                }
            }
            assert_eq!(tracker.restarts, 1, "from {from} to {to}");
            assert!(new >= 8, "after two frames at the latest, from {from} to {to}");
            assert_eq!(tracker.lost, 0);
        }
    }

    #[test]
    fn after_the_port_was_opened_anew_nothing_is_called_lost() {
        for (before, after) in [(0, 500), (0, 10), (5000, 0), (5000, 5000), (0, 131_082)] {
            let mut tracker = Tracker::new();
            let first = tracker.take(&header(before, 0));
            tracker.reset();
            let t = tracker.take(&header(after, 0));
            assert_eq!((t.continuity, tracker.lost), (Continuity::Restarted, 0), "{before} {after}");
            assert!(t.sequence > first.sequence + 10);
        }
    }

    #[test]
    fn what_the_sender_says_is_counted_once() {
        let mut tracker = Tracker::new();
        for sequence in [0, 10, 10] {
            tracker.take(&Header {
                flags: super::super::FLAG_LOST | super::super::FLAG_CLIPPED,
                ..header(sequence, 0)
            });
        }
        assert_eq!((tracker.sender_lost, tracker.clipped), (2, 2));
    }
}
