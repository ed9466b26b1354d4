//! The chunks this device has already.

use crate::medium::Medium;
use crate::open::{From, OpenSlot, read};
use crate::state::SlotId;
use crate::store::Inner;
use inferd_bundle::Digest;
use std::sync::Arc;

/// Chunks that are remembered: 48 bytes each, so at most 6 MiB. They cover 8 GiB at 64 KiB each; of larger slots the rest is fetched.
pub const MAX_LOCAL_CHUNKS: usize = 128 * 1024;

/// Where the chunks of both slots are, by digest.
#[derive(Debug)]
pub struct LocalChunks<M: Medium> {
    inner: Arc<Inner<M>>,
    /// Ascending by digest.
    known: Vec<Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    digest: Digest,
    at: u64,
    len: u32,
    slot: SlotId,
}

impl<M: Medium> LocalChunks<M> {
    /// Reads the index of both slots. A slot that cannot be read has nothing to give.
    pub(crate) fn read(inner: &Arc<Inner<M>>) -> Self {
        let mut known = Vec::new();
        for slot in SlotId::BOTH {
            let Ok(open) = OpenSlot::open(Arc::clone(inner), slot) else { continue };
            for page in 0..open.bundle().pages() {
                let Ok(page) = open.content.page(page, From::Anywhere) else { continue };
                let room = MAX_LOCAL_CHUNKS - known.len();
                known.extend(page.chunks().take(room).map(|chunk| Known {
                    digest: chunk.digest,
                    at: chunk.offset,
                    len: chunk.stored_len,
                    slot,
                }));
            }
        }
        known.sort_by_key(|known| (known.digest, known.slot));
        Self { inner: Arc::clone(inner), known }
    }

    /// The digests, ascending; one that both slots hold comes twice.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.known.iter().map(|known| known.digest)
    }

    /// Whether an index names it.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.known.binary_search_by_key(digest, |known| known.digest).is_ok()
    }

    /// The stored bytes of a chunk, verified: `None` when no slot holds it, or no longer does.
    #[must_use]
    pub fn chunk(&self, digest: &Digest) -> Option<Vec<u8>> {
        let first = self.known.partition_point(|known| known.digest < *digest);
        self.known[first..].iter().take_while(|known| known.digest == *digest).find_map(|known| {
            let mut bytes = vec![0; known.len as usize];
            read(self.inner.slot(known.slot), known.slot, known.at, &mut bytes, From::Anywhere).ok()?;
            (Digest::of(&bytes) == *digest).then_some(bytes)
        })
    }
}
