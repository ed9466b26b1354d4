//! Quarantine: an input that ends hosts is kept from the next one.
//!
//! When a host ends by a fault of its own, the inputs that were running in its workers at that moment become suspects; those that
//! only waited do not, and after an end by the model's deadline only those do that had been there for that long. Two such ends with the same input, without an answer to it between, and it is refused for ten minutes
//! before it reaches a host. An innocent one, in a worker beside the culprit, is acquitted by its next answer. After the ten
//! minutes it is let through again; if it ends another host, it is refused at once.
//!
//! Inputs are known by a hash under a key that this process made for itself: whoever sees it learns nothing about the input, and
//! nobody can make another input with the same one. While nobody is suspected, no request is hashed.
//!
//! One table per model as it was handed in: another version of the model may well bear what this one did not.

use crate::limits::{QUARANTINE, SUSPECT_ENDS, SUSPECTS};
use crate::stats::End;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Names an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// The digest of a request's inputs, in their order.
    pub fn of<'a>(inputs: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut hasher = KEY.build_hasher();
        for input in inputs {
            hasher.write_usize(input.len());
            hasher.write(input);
        }
        Self(hasher.finish())
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Whether a request that was running when the host ended this way, after so long in it, may be why.
pub fn may_have_ended(how: End, been_in: Duration, deadline: Duration) -> bool {
    match how {
        // A signal from elsewhere says nothing about what was computed, and neither does a device that is gone.
        End::Signal | End::Device => false,
        // Who came later was in a worker beside the culprit.
        End::Deadline => been_in >= deadline,
        End::Oom | End::Crash | End::Protocol | End::Seccomp => true,
    }
}

#[derive(Clone, Debug)]
struct Suspect {
    digest: Digest,
    ends: u32,
    seen: Instant,
    refused_until: Option<Instant>,
}

impl Suspect {
    fn is_refused(&self, now: Instant) -> bool {
        self.refused_until.is_some_and(|until| now < until)
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        !self.is_refused(now) && now.saturating_duration_since(self.seen) >= QUARANTINE
    }
}

/// The table alone: no lock, no clock but what it is given.
#[derive(Debug, Default)]
struct Table(Vec<Suspect>);

impl Table {
    /// A host ended while this input was running; how many ends that makes, if it is refused from now on.
    fn blame(&mut self, digest: Digest, now: Instant) -> Option<u32> {
        self.0.retain(|s| !s.is_forgotten(now));
        let place = match self.0.iter().position(|s| s.digest == digest) {
            Some(place) => place,
            None => {
                if self.0.len() == SUSPECTS {
                    // Who is refused stays before who is only suspected, and who was seen last before who was not.
                    let least = |s: &Suspect| (s.is_refused(now), s.seen);
                    let oldest = (0..self.0.len()).min_by_key(|&i| least(&self.0[i]));
                    self.0.swap_remove(oldest?);
                }
                self.0.push(Suspect { digest, ends: 0, seen: now, refused_until: None });
                self.0.len() - 1
            }
        };
        let suspect = &mut self.0[place];
        suspect.ends = suspect.ends.saturating_add(1);
        suspect.seen = now;
        if suspect.ends < SUSPECT_ENDS {
            return None;
        }
        let until = now + QUARANTINE;
        // It stays a suspect for as long again: the next end is the last one.
        suspect.seen = until;
        suspect.refused_until = Some(until);
        Some(suspect.ends)
    }

    /// How many hosts ended with it and for how long it is refused, if it is.
    fn refused(&self, digest: Digest, now: Instant) -> Option<(u32, Duration)> {
        let suspect = self.0.iter().find(|s| s.digest == digest && s.is_refused(now))?;
        Some((suspect.ends, suspect.refused_until? - now))
    }

    fn acquit(&mut self, digest: Digest) {
        self.0.retain(|s| s.digest != digest);
    }
}

/// The suspects of one model.
#[derive(Debug, Default)]
pub struct Suspects {
    any: AtomicBool,
    table: Mutex<Table>,
}

impl Suspects {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody is suspected: all a request looks at otherwise.
    pub fn any(&self) -> bool {
        self.any.load(Relaxed)
    }

    /// A host ended while these inputs were running; those that are refused from now on, with the ends they had.
    pub fn blame(&self, digests: &[Digest]) -> Vec<(Digest, u32)> {
        let now = Instant::now();
        let mut table = self.table();
        let refused = digests.iter().filter_map(|&d| Some((d, table.blame(d, now)?))).collect();
        self.any.store(!table.0.is_empty(), Relaxed);
        refused
    }

    /// How many hosts ended with it and for how long it is refused, if it is.
    pub fn refused(&self, digest: Digest) -> Option<(u32, Duration)> {
        self.table().refused(digest, Instant::now())
    }

    /// It was answered.
    pub fn acquit(&self, digest: Digest) {
        let mut table = self.table();
        table.acquit(digest);
        self.any.store(!table.0.is_empty(), Relaxed);
    }

    /// Inputs that are refused now.
    pub fn count(&self) -> usize {
        let now = Instant::now();
        self.table().0.iter().filter(|s| s.is_refused(now)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        Digest::of([&n.to_le_bytes()[..]].into_iter())
    }

    #[test]
    fn the_second_end_refuses_an_input_for_ten_minutes() {
        let (mut t, now) = (Table::default(), Instant::now());
        assert_eq!(t.blame(digest(1), now), None);
        assert_eq!(t.refused(digest(1), now), None);
        assert_eq!(t.blame(digest(1), now), Some(2));
        assert_eq!(t.refused(digest(1), now), Some((2, QUARANTINE)));
        assert_eq!(t.refused(digest(2), now), None);
        let later = now + QUARANTINE;
        assert_eq!(t.refused(digest(1), later), None, "another chance");
        assert_eq!(t.blame(digest(1), later), Some(3), "one");
    }

    #[test]
    fn a_deadline_is_the_fault_of_those_that_are_past_it_and_a_signal_of_nobody() {
        let (short, deadline) = (Duration::from_millis(499), Duration::from_millis(500));
        for how in End::ALL {
            let blameless = matches!(how, End::Signal | End::Device);
            assert_eq!(may_have_ended(how, deadline, deadline), !blameless, "{how:?}");
            assert_eq!(
                may_have_ended(how, short, deadline),
                !matches!(how, End::Signal | End::Device | End::Deadline),
                "{how:?}"
            );
        }
    }

    #[test]
    fn an_answer_acquits_and_time_forgets() {
        let (mut t, now) = (Table::default(), Instant::now());
        t.blame(digest(1), now);
        t.acquit(digest(1));
        assert_eq!(t.blame(digest(1), now), None);
        assert_eq!(t.blame(digest(1), now + QUARANTINE), None, "the first end was long ago");
    }

    #[test]
    fn the_table_is_bounded_and_keeps_whom_it_refuses() {
        let (mut t, now) = (Table::default(), Instant::now());
        t.blame(digest(0), now);
        t.blame(digest(0), now);
        for n in 1..10_000 {
            t.blame(digest(n), now + Duration::from_millis(n));
        }
        assert_eq!(t.0.len(), SUSPECTS);
        assert!(t.refused(digest(0), now).is_some());
        assert_eq!(t.blame(digest(9_999), now + Duration::from_secs(10)), Some(2), "the newest are there");
        // More refused ones than places: the oldest of them goes.
        for n in 20_000..21_000 {
            t.blame(digest(n), now);
            t.blame(digest(n), now);
        }
        assert_eq!(t.0.len(), SUSPECTS);
    }

    #[test]
    fn inputs_of_other_borders_are_other_inputs() {
        let of = |parts: &[&[u8]]| Digest::of(parts.iter().copied());
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_eq!(of(&[b"ab", b"c"]), of(&[b"ab", b"c"]));
    }
}
