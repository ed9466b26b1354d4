//! Which parts of a bundle must be fetched when some of its chunks are here already, and how much that saves.

use crate::{Chunk, Digest};
use std::collections::HashSet;
use std::ops::Range;

/// What to fetch of a bundle's payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Byte ranges of the bundle, ascending, apart from each other.
    pub fetch: Vec<Range<u64>>,
    /// Chunks that are here already.
    pub have_chunks: u64,
    /// Chunks that are not.
    pub fetch_chunks: u64,
    /// Stored bytes of chunks that are here already.
    pub have_bytes: u64,
    /// Stored bytes of chunks that are not.
    pub need_bytes: u64,
    /// Bytes of all ranges: `need_bytes` and the gaps that were bridged.
    pub fetch_bytes: u64,
}

impl Plan {
    /// Bytes that need not be fetched.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        (self.have_bytes + self.need_bytes).saturating_sub(self.fetch_bytes)
    }
}

/// Plans what to fetch of the chunks `wanted`, which ascend, when `have` says which are here.
///
/// A gap of at most `bridge` bytes between two missing chunks is fetched along: one request costs more than a few bytes.
/// It keeps the ranges only, so an index of any length can pass through.
pub fn plan(
    wanted: impl IntoIterator<Item = Chunk>,
    mut have: impl FnMut(&Chunk) -> bool,
    bridge: u64,
) -> Plan {
    let mut plan = Plan::default();
    for chunk in wanted {
        if have(&chunk) {
            plan.have_chunks += 1;
            plan.have_bytes += u64::from(chunk.stored_len);
            continue;
        }
        plan.fetch_chunks += 1;
        plan.need_bytes += u64::from(chunk.stored_len);
        let range = chunk.range();
        match plan.fetch.last_mut() {
            Some(last) if range.start.saturating_sub(last.end) <= bridge => last.end = range.end,
            _ => plan.fetch.push(range),
        }
    }
    plan.fetch_bytes = plan.fetch.iter().map(|r| r.end - r.start).sum();
    plan
}

/// How two bundles' chunks compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Chunks of the new bundle the old one has too.
    pub shared_chunks: u64,
    /// Their stored bytes.
    pub shared_bytes: u64,
    /// Chunks only the new one has; a chunk that is in it twice counts once.
    pub new_chunks: u64,
    /// Their stored bytes: what a device with the old bundle fetches.
    pub new_bytes: u64,
    /// Chunks that are in the new bundle again.
    pub repeated_chunks: u64,
    /// Their stored bytes.
    pub repeated_bytes: u64,
}

/// Compares a new bundle's chunks with an old one's.
pub fn diff(old: impl IntoIterator<Item = Chunk>, new: impl IntoIterator<Item = Chunk>) -> Diff {
    let old: HashSet<Digest> = old.into_iter().map(|c| c.digest).collect();
    let mut seen = HashSet::new();
    let mut diff = Diff::default();
    for chunk in new {
        let bytes = u64::from(chunk.stored_len);
        let (chunks, sum) = if old.contains(&chunk.digest) {
            (&mut diff.shared_chunks, &mut diff.shared_bytes)
        } else if seen.insert(chunk.digest) {
            (&mut diff.new_chunks, &mut diff.new_bytes)
        } else {
            (&mut diff.repeated_chunks, &mut diff.repeated_bytes)
        };
        *chunks += 1;
        *sum += bytes;
    }
    diff
}
