//! The verdicts of the gates, with their evidence, kept across reboots. What a verdict is, its maker knows ([`Entry`]).
//!
//! A file of lines, oldest first: `{"crc":"1a2b3c4d","verdict":{...}}`, the CRC-32 of the verdict's own bytes. It is replaced whole for each
//! entry, so a power cut leaves the old or the new file. A line that was damaged later is skipped and counted: one flipped
//! bit costs one verdict. Nothing is decided from the journal; it tells what was decided.

use crate::error::SlotError;
use crate::files;
use crate::frame;
use crate::state::SlotId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Entries kept for each slot, and as many for bundles that were refused before one was chosen.
pub const MAX_ENTRIES: usize = 64;

/// Bytes of one entry with its frame.
pub const MAX_ENTRY: usize = 8 * 1024;

// Three groups of entries, each line with its frame.
const MAX_FILE: u64 = (3 * MAX_ENTRIES * MAX_ENTRY) as u64;

/// What a journal keeps.
pub trait Entry: Clone + Serialize + DeserializeOwned {
    /// The slot it is about: the oldest entries of the same slot make room for new ones.
    fn slot(&self) -> Option<SlotId>;

    /// Makes an entry that is longer than [`MAX_ENTRY`] as short as it can be. One that is still too long is left out.
    fn shorten(&mut self);
}

/// The journal, in one file.
#[derive(Debug)]
pub struct Journal<V> {
    path: PathBuf,
    kept: Mutex<Kept<V>>,
}

#[derive(Debug)]
struct Kept<V> {
    verdicts: Vec<V>,
    damaged: u64,
}

/// The name of a verdict in its line.
const NAME: &str = "verdict";

impl<V: Entry> Journal<V> {
    /// Reads the journal; a file that is not there is an empty one. Damaged lines are skipped.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(path: PathBuf) -> Result<Self, SlotError> {
        let bytes = files::read(&path, MAX_FILE)?.unwrap_or_default();
        let (mut verdicts, damaged) = parse(&bytes);
        bound(&mut verdicts);
        Ok(Self { path, kept: Mutex::new(Kept { verdicts, damaged }) })
    }

    /// Adds verdicts with one write and drops the oldest of a slot that has more than [`MAX_ENTRIES`].
    ///
    /// # Errors
    /// When the file cannot be replaced. The entries are kept in memory all the same and written with the next ones.
    pub fn append(&self, verdicts: &[V]) -> Result<(), SlotError> {
        let mut kept = self.lock();
        kept.verdicts.extend(verdicts.iter().filter_map(fitting));
        bound(&mut kept.verdicts);
        let mut bytes = Vec::new();
        for verdict in &kept.verdicts {
            bytes.extend(line(verdict));
        }
        files::keep(&self.path, &bytes)
    }

    /// All verdicts, oldest first.
    #[must_use]
    pub fn verdicts(&self) -> Vec<V> {
        self.lock().verdicts.clone()
    }

    /// Lines that were damaged when the journal was opened.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.lock().damaged
    }

    fn lock(&self) -> MutexGuard<'_, Kept<V>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The verdicts in a journal's bytes, and how many lines were damaged. Never fails: a journal is read as far as it can be.
#[must_use]
pub fn parse<V: DeserializeOwned>(bytes: &[u8]) -> (Vec<V>, u64) {
    frame::parse(NAME, bytes)
}

/// A verdict as its line, with the line's end.
#[must_use]
pub fn line<V: Serialize>(verdict: &V) -> Vec<u8> {
    frame::line(NAME, verdict)
}

/// A verdict that fits into its line.
fn fitting<V: Entry>(verdict: &V) -> Option<V> {
    let mut verdict = verdict.clone();
    if line(&verdict).len() > MAX_ENTRY {
        verdict.shorten();
    }
    (line(&verdict).len() <= MAX_ENTRY).then_some(verdict)
}

/// Leaves the newest of each group.
fn bound<V: Entry>(verdicts: &mut Vec<V>) {
    for group in [None, Some(SlotId::A), Some(SlotId::B)] {
        let count = verdicts.iter().filter(|verdict| verdict.slot() == group).count();
        let mut excess = count.saturating_sub(MAX_ENTRIES);
        verdicts.retain(|verdict| {
            let drop = excess > 0 && verdict.slot() == group;
            excess -= usize::from(drop);
            !drop
        });
    }
}
