//! Writing a bundle into the slot that is not in use.
//!
//! The order, and why (README.md has the long form): the record says `Writing` before the first byte of the slot changes; every
//! piece is written, synced and read back from the medium; only when all are there and the medium was synced once more does the
//! record say `Staged`. What is on the medium is found by hashing it when an install begins again, so no list of finished pieces can
//! be wrong.

use crate::error::{Piece, Place, SlotError};
use crate::medium::{BLOCK, Medium};
use crate::open::{From, piece, read};
use crate::state::{SlotId, SlotStatus, Step};
use crate::store::Inner;
use inferd_bundle::limits::PAGE_BYTES;
use inferd_bundle::{Bundle, Chunk, Digest, IndexCheck, IndexPage, Refusal, Sink};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pieces written between two syncs, however small they are.
const SETTLE_PIECES: usize = 1024;

/// Bytes of the prefix that are compared at once.
const COMPARE: usize = 64 * 1024;

/// An install that is running. Dropping it leaves the slot as it is; beginning again finds what is there.
///
/// Pieces may come in any order, but an index page before its chunks. It is a [`Sink`], so a `Stream` can write into it.
#[derive(Debug)]
pub struct Install<M: Medium> {
    guard: Running<M>,
    slot: SlotId,
    bundle: Bundle,
    pages: Bits,
    chunks: Bits,
    have_bytes: u64,
    found: Progress,
    /// The page that was needed last.
    page: Option<IndexPage>,
    /// Written and not yet read back.
    unproven: Vec<Written>,
    unproven_bytes: u64,
}

/// Says that an install is running, until it is dropped.
#[derive(Debug)]
struct Running<M>(Arc<Inner<M>>);

impl<M> Drop for Running<M> {
    fn drop(&mut self) {
        self.0.installing.store(false, Ordering::Release);
    }
}

/// How much is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Index pages.
    pub pages: u32,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of these chunks.
    pub bytes: u64,
}

/// A slot that was filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged {
    /// The slot.
    pub slot: SlotId,
    /// The bundle in it.
    pub bundle: Digest,
    /// What was there already when the install began.
    pub found: Progress,
}

/// Something that was written.
#[derive(Debug, Clone, Copy)]
struct Written {
    what: What,
    at: u64,
    len: usize,
    digest: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Prefix,
    Page(u32),
    Chunk(u64),
    Padding,
}

impl<M: Medium> Install<M> {
    pub(crate) fn begin(inner: Arc<Inner<M>>, prefix: &[u8]) -> Result<Self, SlotError> {
        if inner.is_lost() {
            return Err(SlotError::Lost);
        }
        if inner.installing.swap(true, Ordering::AcqRel) {
            return Err(SlotError::Busy);
        }
        let guard = Running(inner);
        let inner = &guard.0;
        let bundle = Bundle::parse(prefix)?;
        // What follows the prefix is not written with it.
        let prefix = &prefix[..usize::try_from(bundle.prefix_bytes()).unwrap_or(0)];
        let state = inner.state();
        let slot = state.target(&bundle.id())?;
        let medium = inner.slot(slot);
        let needed = bundle.total_len();
        if needed > medium.capacity() {
            return Err(SlotError::TooSmall { slot, needed, capacity: medium.capacity() });
        }
        medium.reserve(needed).map_err(|e| SlotError::io(Place::Slot(slot), "reserve room in", e))?;
        let known = state.slot(slot);
        let resume = known.bundle == Some(bundle.id());
        if !(resume && known.status == SlotStatus::Writing && known.len == needed) {
            inner.step(&Step::Write {
                slot,
                bundle: bundle.id(),
                product: bundle.manifest().product.to_string(),
                version: bundle.manifest().version,
                len: needed,
            })?;
        }
        let mut install = Self {
            slot,
            pages: Bits::new(u64::from(bundle.pages())),
            chunks: Bits::new(bundle.manifest().index.chunks),
            bundle,
            guard,
            have_bytes: 0,
            found: Progress::default(),
            page: None,
            unproven: Vec::new(),
            unproven_bytes: 0,
        };
        install.frame(prefix)?;
        if resume {
            install.look()?;
        }
        Ok(install)
    }

    /// Writes what is neither page nor chunk: the prefix and the padding at the end.
    fn frame(&mut self, prefix: &[u8]) -> Result<(), SlotError> {
        let mut there = vec![0; COMPARE];
        let mut same = true;
        for (number, part) in prefix.chunks(COMPARE).enumerate() {
            let there = &mut there[..part.len()];
            self.read((number * COMPARE) as u64, there, From::Medium)?;
            same &= there == part;
        }
        if !same {
            self.put(What::Prefix, 0, prefix, Digest::of(prefix))?;
        }
        let (at, end) = self.padding();
        let zeros = [0; BLOCK];
        let zeros = &zeros[..usize::try_from(end - at).unwrap_or(0).min(BLOCK)];
        if !zeros.is_empty() {
            self.put(What::Padding, at, zeros, Digest::of(zeros))?;
        }
        Ok(())
    }

    /// Finds what is on the medium already.
    fn look(&mut self) -> Result<(), SlotError> {
        let mut bytes = Vec::new();
        for number in 0..self.bundle.pages() {
            bytes.resize(PAGE_BYTES, 0);
            self.read(self.bundle.page_range(number).start, &mut bytes, From::Medium)?;
            let Ok(page) = self.bundle.check_page(number, &bytes) else { continue };
            self.pages.set(u64::from(number));
            for chunk in page.chunks() {
                bytes.resize(chunk.stored_len as usize, 0);
                self.read(chunk.offset, &mut bytes, From::Medium)?;
                if chunk.check(&bytes).is_ok() {
                    self.chunks.set(chunk.number);
                    self.have_bytes += u64::from(chunk.stored_len);
                }
            }
        }
        self.found = self.have_now();
        Ok(())
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The slot it goes to.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// What was there when the install began.
    #[must_use]
    pub fn found(&self) -> Progress {
        self.found
    }

    /// What is there now.
    #[must_use]
    pub fn have_now(&self) -> Progress {
        Progress {
            pages: u32::try_from(self.pages.count).unwrap_or(u32::MAX),
            chunks: self.chunks.count,
            bytes: self.have_bytes,
        }
    }

    /// What is not there yet.
    #[must_use]
    pub fn missing(&self) -> Progress {
        let have = self.have_now();
        Progress {
            pages: self.bundle.pages() - have.pages,
            chunks: self.bundle.manifest().index.chunks - have.chunks,
            bytes: self.bundle.manifest().index.payload_len.saturating_sub(have.bytes),
        }
    }

    /// Whether an index page is there.
    #[must_use]
    pub fn have_page(&self, page: u32) -> bool {
        self.pages.get(u64::from(page))
    }

    /// Whether a chunk is there.
    #[must_use]
    pub fn have(&self, chunk: &Chunk) -> bool {
        self.chunks.get(chunk.number)
    }

    /// The index pages that are not there yet.
    pub fn missing_pages(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.bundle.pages()).filter(|&page| !self.have_page(page))
    }

    /// The chunks of a page that are not there yet.
    ///
    /// # Errors
    /// When the page is not there, or cannot be read.
    pub fn missing_chunks(&mut self, page: u32) -> Result<Vec<Chunk>, SlotError> {
        let chunks: Vec<Chunk> = self.load_page(page)?.chunks().collect();
        Ok(chunks.into_iter().filter(|chunk| !self.have(chunk)).collect())
    }

    /// The first place at which something is missing: where a transfer in order goes on (`Stream::resume`).
    #[must_use]
    pub fn place(&self) -> inferd_bundle::Place {
        match self.missing_pages().next() {
            Some(page) => inferd_bundle::Place::Page(page),
            None => inferd_bundle::Place::Chunk(self.chunks.first_clear()),
        }
    }

    /// Takes the bytes of an index page. One that is there already is not written again.
    ///
    /// # Errors
    /// When they are not this page, or the medium fails.
    pub fn page(&mut self, page: u32, bytes: &[u8]) -> Result<(), SlotError> {
        let checked = self.bundle.check_page(page, bytes)?;
        self.take_page(checked, bytes)
    }

    /// Takes the stored bytes of a chunk, verifies and writes them. One that is there already is not written again.
    ///
    /// # Errors
    /// When it is not a chunk of this bundle, its page is not there, or the medium fails.
    pub fn chunk(&mut self, chunk: &Chunk, stored: &[u8]) -> Result<(), SlotError> {
        chunk.check(stored)?;
        self.take_chunk(chunk, stored)
    }

    /// Ends the install: everything is there, was read back and is durable, and the record says so.
    ///
    /// # Errors
    /// [`SlotError::Incomplete`] when something is missing; the medium's; [`SlotError::Refused`] when the index contradicts itself or the manifest.
    /// The slot is then still being written.
    pub fn finish(mut self) -> Result<Staged, SlotError> {
        let Progress { pages, chunks, .. } = self.missing();
        if pages > 0 || chunks > 0 {
            return Err(SlotError::Incomplete { pages, chunks });
        }
        self.settle()?;
        let mut check = IndexCheck::new(&self.bundle);
        for number in 0..self.bundle.pages() {
            let page = self.load_page(number)?.clone();
            check.page(&self.bundle, &page)?;
        }
        // What was found on the medium may lie in the cache of a device that lost its power never, but this program often.
        self.sync()?;
        self.guard.0.step(&Step::Stage { slot: self.slot })?;
        Ok(Staged { slot: self.slot, bundle: self.bundle.id(), found: self.found })
    }

    fn take_page(&mut self, page: IndexPage, bytes: &[u8]) -> Result<(), SlotError> {
        let number = page.number();
        if !self.have_page(number) {
            let at = self.bundle.page_range(number).start;
            self.put(What::Page(number), at, bytes, Digest::of(bytes))?;
            self.pages.set(u64::from(number));
            self.settle_when_due()?;
        }
        self.page = Some(page);
        Ok(())
    }

    fn take_chunk(&mut self, chunk: &Chunk, stored: &[u8]) -> Result<(), SlotError> {
        if self.have(chunk) {
            return Ok(());
        }
        let foreign = || SlotError::Foreign { piece: piece(&self.bundle, chunk.number) };
        let page = self.bundle.page_of(chunk.number).ok_or_else(foreign)?;
        if self.load_page(page)?.chunk(chunk.number) != Some(*chunk) {
            return Err(SlotError::Foreign { piece: piece(&self.bundle, chunk.number) });
        }
        self.put(What::Chunk(chunk.number), chunk.offset, stored, chunk.digest)?;
        self.chunks.set(chunk.number);
        self.have_bytes += u64::from(chunk.stored_len);
        self.settle_when_due()
    }

    fn put(&mut self, what: What, at: u64, bytes: &[u8], digest: Digest) -> Result<(), SlotError> {
        let medium = self.guard.0.slot(self.slot);
        medium.write(at, bytes).map_err(|e| SlotError::io(Place::Slot(self.slot), "write", e))?;
        self.unproven.push(Written { what, at, len: bytes.len(), digest });
        self.unproven_bytes += bytes.len() as u64;
        Ok(())
    }

    fn settle_when_due(&mut self) -> Result<(), SlotError> {
        if self.unproven_bytes >= self.guard.0.settle_every || self.unproven.len() >= SETTLE_PIECES {
            self.settle()
        } else {
            Ok(())
        }
    }

    /// Syncs what was written and reads it back. What cannot be proven counts as missing again.
    fn settle(&mut self) -> Result<(), SlotError> {
        let mut written = std::mem::take(&mut self.unproven);
        self.unproven_bytes = 0;
        written.sort_unstable_by_key(|written| written.what);
        let proven = self.prove(&written);
        if proven.is_err() {
            for Written { what, len, .. } in written {
                match what {
                    What::Page(page) => self.pages.clear(u64::from(page)),
                    What::Chunk(chunk) if self.chunks.get(chunk) => {
                        self.chunks.clear(chunk);
                        self.have_bytes -= len as u64;
                    }
                    What::Prefix | What::Padding | What::Chunk(_) => {
                        // They are written again by the next install of this bundle, which this one cannot become any more.
                    }
                }
            }
        }
        proven
    }

    fn prove(&mut self, written: &[Written]) -> Result<(), SlotError> {
        self.sync()?;
        let mut bytes = Vec::new();
        for written in written {
            self.prove_one(written, &mut bytes)?;
        }
        // A write also touched the rest of its first and last block: neighbours that were proven before are proven again.
        for at in written {
            if let What::Chunk(number) = at.what {
                self.prove_neighbours(number, at, written, &mut bytes)?;
            }
        }
        Ok(())
    }

    fn prove_neighbours(
        &mut self,
        number: u64,
        of: &Written,
        written: &[Written],
        bytes: &mut Vec<u8>,
    ) -> Result<(), SlotError> {
        let block = BLOCK as u64;
        let first = of.at / block * block;
        let last = (of.at + of.len as u64).next_multiple_of(block);
        let end = self.bundle.manifest().index.chunks;
        let again = |number: u64| {
            let what = What::Chunk(number);
            written.binary_search_by_key(&what, |written| written.what).is_err()
        };
        for neighbour in (0..number).rev() {
            let Some(chunk) = self.neighbour(neighbour)? else { break };
            if chunk.range().end <= first {
                break;
            }
            if self.have(&chunk) && again(neighbour) {
                self.prove_one(&written_chunk(&chunk), bytes)?;
            }
        }
        for neighbour in number + 1..end {
            let Some(chunk) = self.neighbour(neighbour)? else { break };
            if chunk.offset >= last {
                break;
            }
            if self.have(&chunk) && again(neighbour) {
                self.prove_one(&written_chunk(&chunk), bytes)?;
            }
        }
        let (at, padding_end) = self.padding();
        if last > at && last <= padding_end && again_padding(written) {
            let zeros = [0; BLOCK];
            let len = usize::try_from(padding_end - at).unwrap_or(0).min(BLOCK);
            let digest = Digest::of(&zeros[..len]);
            self.prove_one(&Written { what: What::Padding, at, len, digest }, bytes)?;
        }
        Ok(())
    }

    /// A chunk whose page is there.
    fn neighbour(&mut self, number: u64) -> Result<Option<Chunk>, SlotError> {
        match self.bundle.page_of(number) {
            Some(page) if self.have_page(page) => Ok(self.load_page(page)?.chunk(number)),
            _ => Ok(None),
        }
    }

    fn prove_one(&self, written: &Written, bytes: &mut Vec<u8>) -> Result<(), SlotError> {
        bytes.resize(written.len, 0);
        self.read(written.at, bytes, From::Medium)?;
        if Digest::of(bytes) == written.digest {
            return Ok(());
        }
        Err(SlotError::ReadBack {
            slot: self.slot,
            piece: match written.what {
                What::Prefix => Piece::Prefix,
                What::Page(page) => Piece::Page(page),
                What::Chunk(chunk) => piece(&self.bundle, chunk),
                What::Padding => Piece::Padding,
            },
        })
    }

    /// From the end of the payload to the end of the bundle.
    fn padding(&self) -> (u64, u64) {
        (self.bundle.payload_range().end, self.bundle.total_len())
    }

    fn load_page(&mut self, number: u32) -> Result<&IndexPage, SlotError> {
        let at = match self.page.take() {
            Some(page) if page.number() == number => return Ok(self.page.insert(page)),
            _ if !self.have_page(number) => return Err(SlotError::PageMissing { page: number }),
            _ => self.bundle.page_range(number).start,
        };
        let mut bytes = vec![0; PAGE_BYTES];
        self.read(at, &mut bytes, From::Anywhere)?;
        Ok(self.page.insert(self.bundle.check_page(number, &bytes)?))
    }

    fn read(&self, at: u64, into: &mut [u8], from: From) -> Result<(), SlotError> {
        read(self.guard.0.slot(self.slot), self.slot, at, into, from)
    }

    fn sync(&self) -> Result<(), SlotError> {
        let medium = self.guard.0.slot(self.slot);
        medium.sync().map_err(|e| SlotError::io(Place::Slot(self.slot), "sync", e))
    }
}

fn written_chunk(chunk: &Chunk) -> Written {
    let (at, len, digest) = (chunk.offset, chunk.stored_len as usize, chunk.digest);
    Written { what: What::Chunk(chunk.number), at, len, digest }
}

fn again_padding(written: &[Written]) -> bool {
    written.iter().all(|written| written.what != What::Padding)
}

/// A stream that has verified its pieces writes them here.
impl<M: Medium> Sink for Install<M> {
    type Error = SlotError;

    fn prefix(&mut self, bundle: &Bundle, _bytes: &[u8]) -> Result<(), SlotError> {
        // The same bundle signed by others has its pieces at other places.
        if *bundle == self.bundle { Ok(()) } else { Err(SlotError::Foreign { piece: Piece::Prefix }) }
    }

    fn page(&mut self, bundle: &Bundle, page: &IndexPage, bytes: &[u8]) -> Result<(), SlotError> {
        if bundle.id() != self.bundle.id() {
            return Err(SlotError::Foreign { piece: Piece::Page(page.number()) });
        }
        self.take_page(page.clone(), bytes)
    }

    fn chunk(&mut self, _bundle: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), SlotError> {
        self.take_chunk(chunk, stored)
    }

    fn recall(&mut self, _bundle: &Bundle, page: u32, into: &mut Vec<u8>) -> Result<bool, SlotError> {
        if !self.have_page(page) {
            return Err(Refusal::NoSuchPage { page, pages: self.bundle.pages() }.into());
        }
        into.resize(PAGE_BYTES, 0);
        self.read(self.bundle.page_range(page).start, into, From::Anywhere)?;
        Ok(true)
    }
}

/// A set of numbers below a limit.
#[derive(Debug)]
struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    fn new(len: u64) -> Self {
        Self { words: vec![0; usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX)], count: 0 }
    }

    fn place(number: u64) -> (usize, u64) {
        (usize::try_from(number / 64).unwrap_or(usize::MAX), 1 << (number % 64))
    }

    fn get(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.count += u64::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    fn clear(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.count -= u64::from(self.words[word] & bit != 0);
        self.words[word] &= !bit;
    }

    fn first_clear(&self) -> u64 {
        let full = self.words.iter().take_while(|&&word| word == u64::MAX).count();
        full as u64 * 64 + self.words.get(full).map_or(0, |word| u64::from(word.trailing_ones()))
    }
}
