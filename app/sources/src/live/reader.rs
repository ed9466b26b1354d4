//! The newest samples as they came, for who looks at the signal itself: before any filter, with or without a model.
//!
//! Each reader has a place of its own in one ring per source, which is there while anybody reads. Who reads slower than samples come
//! misses the oldest, and is told how many.

use crate::Micros;
use std::sync::{Arc, Weak};

/// Samples that are kept: a second, and no more values than these (1 MiB).
const MOST_VALUES: usize = 1 << 18;
/// A slow sensor's second is few samples.
const LEAST: usize = 64;

/// A ring of samples.
#[derive(Debug)]
pub(super) struct Newest {
    channels: usize,
    values: Vec<f32>,
    about: Vec<About>,
    /// Samples that ever came in.
    head: u64,
    /// The number that follows.
    next: Option<u64>,
    readers: Weak<()>,
}

#[derive(Clone, Copy, Debug)]
struct About {
    sequence: u64,
    time: Micros,
    /// It does not follow the one before.
    begins: bool,
}

/// One reader's place.
#[derive(Debug)]
pub struct Reader {
    at: u64,
    alive: Arc<()>,
}

/// Samples that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The number of the first.
    pub sequence: u64,
    /// The sender's time of the first.
    pub time: Micros,
    /// Samples the reader was too slow for, before these.
    pub lost: u64,
    /// They do not follow those before, for whatever reason.
    pub begins: bool,
}

impl Newest {
    fn new(channels: usize, rate_hz: f64, readers: &Arc<()>) -> Self {
        let most = MOST_VALUES / channels.max(1);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates, and is bounded
        let rows = (rate_hz as usize).clamp(LEAST, most.max(LEAST));
        let about = About { sequence: 0, time: Micros(0), begins: true };
        Self {
            channels,
            values: vec![0.0; rows * channels],
            about: vec![about; rows],
            head: 0,
            next: None,
            readers: Arc::downgrade(readers),
        }
    }

    /// A place at the end of the ring, which is made if there is none.
    pub(super) fn reader(newest: &mut Option<Self>, channels: usize, rate_hz: f64) -> Reader {
        if let Some(newest) = newest
            && let Some(alive) = newest.readers.upgrade()
        {
            return Reader { at: newest.head, alive };
        }
        let alive = Arc::new(());
        *newest = Some(Self::new(channels, rate_hz, &alive));
        Reader { at: 0, alive }
    }

    /// Whether nobody reads any more.
    pub(super) fn is_idle(&self) -> bool {
        self.readers.strong_count() == 0
    }

    /// Takes a sample; one that came already is left out.
    pub(super) fn push(&mut self, sequence: u64, time: Micros, anew: bool, sample: &[f32]) {
        if sample.len() != self.channels || (!anew && self.next.is_some_and(|next| sequence < next)) {
            return;
        }
        let row = self.row(self.head);
        self.about[row] = About { sequence, time, begins: anew || self.next != Some(sequence) };
        self.values[row * self.channels..(row + 1) * self.channels].copy_from_slice(sample);
        self.head += 1;
        self.next = Some(sequence + 1);
    }

    fn row(&self, at: u64) -> usize {
        let rows = u64::try_from(self.about.len()).unwrap_or(u64::MAX);
        usize::try_from(at % rows).unwrap_or(0)
    }

    /// Appends what came since, as far as it follows each other and is no more than `most` samples.
    pub(super) fn read(&self, reader: &mut Reader, most: usize, into: &mut Vec<f32>) -> Option<Block> {
        // A place in a ring that was before this one.
        if !self.readers.upgrade().is_some_and(|mine| Arc::ptr_eq(&mine, &reader.alive)) {
            return None;
        }
        let kept = u64::try_from(self.about.len()).unwrap_or(u64::MAX);
        let from = reader.at.max(self.head.saturating_sub(kept));
        let lost = from - reader.at;
        reader.at = from;
        if from == self.head {
            return None;
        }
        let first = self.about[self.row(from)];
        let mut taken = 0;
        while reader.at < self.head && taken < most.max(1) {
            let row = self.row(reader.at);
            if taken > 0 && self.about[row].begins {
                break;
            }
            into.extend_from_slice(&self.values[row * self.channels..(row + 1) * self.channels]);
            (reader.at, taken) = (reader.at + 1, taken + 1);
        }
        Some(Block { sequence: first.sequence, time: first.time, lost, begins: first.begins || lost > 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(rate: f64) -> (Newest, Reader) {
        let mut newest = None;
        let reader = Newest::reader(&mut newest, 2, rate);
        (newest.unwrap(), reader)
    }

    fn push(newest: &mut Newest, numbers: impl IntoIterator<Item = u64>) {
        for n in numbers {
            #[allow(clippy::cast_precision_loss)]
            newest.push(n, Micros(n * 500), false, &[n as f32, -(n as f32)]);
        }
    }

    #[test]
    fn a_reader_gets_what_came_since_in_pieces_that_follow_each_other() {
        let (mut newest, mut reader) = made(100.0);
        let mut out = Vec::new();
        assert_eq!(newest.read(&mut reader, 10, &mut out), None);
        push(&mut newest, [5, 6, 7, 9, 8, 9, 10]);
        let block = newest.read(&mut reader, 2, &mut out).unwrap();
        assert_eq!((block.sequence, block.time, block.lost, block.begins), (5, Micros(2500), 0, true));
        assert_eq!(out, [5.0, -5.0, 6.0, -6.0]);
        out.clear();
        let block = newest.read(&mut reader, 10, &mut out).unwrap();
        assert_eq!((block.sequence, block.begins, &out[..]), (7, false, &[7.0, -7.0][..]), "8 is missing");
        out.clear();
        let block = newest.read(&mut reader, 10, &mut out).unwrap();
        assert_eq!((block.sequence, block.begins, out.len()), (9, true, 4), "9 and 10, each once");
        assert_eq!(newest.read(&mut reader, 10, &mut out), None);
    }

    #[test]
    fn a_slow_reader_misses_the_oldest_and_is_told_how_many_and_another_does_not() {
        let (mut newest, mut slow) = made(0.5);
        let mut quick = Reader { at: 0, alive: slow.alive.clone() };
        let mut out = Vec::new();
        push(&mut newest, 0..60);
        assert_eq!(newest.read(&mut quick, 100, &mut out).unwrap().lost, 0);
        push(&mut newest, 60..100);
        let block = newest.read(&mut slow, 100, &mut out).unwrap();
        assert_eq!((block.sequence, block.lost, block.begins), (36, 36, true));
        out.clear();
        assert_eq!(newest.read(&mut quick, 100, &mut out).unwrap().sequence, 60);
        assert_eq!(out.len(), 80);
    }

    #[test]
    fn the_ring_is_bounded_and_gone_with_its_last_reader() {
        let mut made = None;
        let reader = Newest::reader(&mut made, 32, 1e9);
        assert_eq!(made.as_ref().map(|t| t.values.len()), Some(MOST_VALUES));
        assert!(!made.as_ref().unwrap().is_idle());
        drop(reader);
        assert!(made.as_ref().unwrap().is_idle());
    }
}
