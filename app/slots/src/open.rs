//! Reading a slot: the complete bundle in it, its files, its verification.

use crate::error::{Piece, Place, SlotError};
use crate::medium::Medium;
use crate::scrub::Scrub;
use crate::state::SlotId;
use crate::store::Inner;
use inferd_bundle::{Bundle, Chunk, FileEntry, IndexPage, Refusal};
use std::io::{self, Read};
use std::sync::Arc;

/// Where bytes are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// Memory will do: they are verified when they are used.
    Anywhere,
    /// The medium: what it holds is the question.
    Medium,
}

/// A slot with a complete bundle in it. Clones are the same one.
#[derive(Debug)]
pub struct OpenSlot<M: Medium> {
    pub(crate) content: Arc<Content<M>>,
}

impl<M: Medium> Clone for OpenSlot<M> {
    fn clone(&self) -> Self {
        Self { content: Arc::clone(&self.content) }
    }
}

/// A slot and the bundle whose head was read from it.
#[derive(Debug)]
pub(crate) struct Content<M> {
    pub(crate) inner: Arc<Inner<M>>,
    pub(crate) slot: SlotId,
    pub(crate) bundle: Bundle,
}

impl<M: Medium> OpenSlot<M> {
    pub(crate) fn open(inner: Arc<Inner<M>>, slot: SlotId) -> Result<Self, SlotError> {
        let state = inner.state();
        let known = state.slot(slot);
        let (true, Some(expected)) = (known.is_complete(), known.bundle) else {
            return Err(SlotError::NotThere { slot, status: known.status });
        };
        let open = Self::find(inner, slot).map_err(|error| match error {
            SlotError::Refused(_) => SlotError::Rot { slot, piece: Piece::Prefix },
            other => other,
        })?;
        let found = open.bundle().id();
        if found != expected {
            return Err(SlotError::OtherBundle { slot, expected, found });
        }
        Ok(open)
    }

    /// Whatever bundle begins in a slot, without asking the record.
    pub(crate) fn find(inner: Arc<Inner<M>>, slot: SlotId) -> Result<Self, SlotError> {
        let prefix = prefix(inner.slot(slot), slot, From::Anywhere)?;
        let bundle = Bundle::parse(&prefix)?;
        if bundle.total_len() > inner.slot(slot).capacity() {
            return Err(
                Refusal::Truncated { have: inner.slot(slot).capacity(), need: bundle.total_len() }.into()
            );
        }
        Ok(Self { content: Arc::new(Content { inner, slot, bundle }) })
    }

    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.content.slot
    }

    /// The bundle, as its head describes it. Whether it is signed by the right keys is for the caller to ask (`Bundle::authorize`).
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.content.bundle
    }

    /// Reads everything from the medium and verifies it. Reports the bytes done and all bytes.
    ///
    /// # Errors
    /// [`SlotError::Rot`] names the first piece that does not verify.
    pub fn verify_all(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), SlotError> {
        let mut scrub = self.scrub();
        loop {
            let step = scrub.step(1 << 20)?;
            progress(step.done, step.total);
            if step.finished {
                return Ok(());
            }
        }
    }

    /// A verification in small steps, in the background.
    #[must_use]
    pub fn scrub(&self) -> Scrub<M> {
        Scrub::new(Arc::clone(&self.content))
    }

    /// A file of a model. Its reader yields verified bytes only; an error of it has a [`SlotError`] inside.
    ///
    /// # Errors
    /// When the bundle has no such file.
    pub fn read_file(&self, model: &str, file: &str) -> Result<FileReader<M>, SlotError> {
        let entry = self.bundle().manifest().model(model).and_then(|entry| entry.file(file));
        let Some(entry) = entry.cloned() else {
            let (model, file) = (model.to_owned(), file.to_owned());
            return Err(SlotError::NoSuchFile { slot: self.slot(), model, file });
        };
        let next = entry.first_chunk;
        let left = entry.len;
        let content = Arc::clone(&self.content);
        Ok(FileReader {
            content,
            entry,
            next,
            left,
            page: None,
            stored: Vec::new(),
            raw: Vec::new(),
            read: 0,
        })
    }
}

impl<M: Medium> Content<M> {
    /// What to say of a piece that does not verify: the slot has rotted, unless it was meanwhile given to another bundle.
    pub(crate) fn rot(&self, piece: Piece) -> SlotError {
        let (slot, state) = (self.slot, self.inner.state());
        let known = state.slot(slot);
        // Before recovery no record says what should be there.
        if self.inner.is_lost() || (known.is_complete() && known.bundle == Some(self.bundle.id())) {
            SlotError::Rot { slot, piece }
        } else {
            SlotError::NotThere { slot, status: known.status }
        }
    }

    pub(crate) fn piece(&self, chunk: u64) -> Piece {
        piece(&self.bundle, chunk)
    }

    pub(crate) fn read(&self, at: u64, into: &mut [u8], from: From) -> Result<(), SlotError> {
        read(self.inner.slot(self.slot), self.slot, at, into, from)
    }

    pub(crate) fn page(&self, page: u32, from: From) -> Result<IndexPage, SlotError> {
        let mut bytes = vec![0; inferd_bundle::limits::PAGE_BYTES];
        self.read(self.bundle.page_range(page).start, &mut bytes, from)?;
        self.bundle.check_page(page, &bytes).map_err(|_| self.rot(Piece::Page(page)))
    }

    /// Reads the stored bytes of a chunk, unverified.
    pub(crate) fn stored(&self, chunk: &Chunk, into: &mut Vec<u8>, from: From) -> Result<(), SlotError> {
        into.resize(chunk.stored_len as usize, 0);
        self.read(chunk.offset, into, from)
    }
}

/// A chunk and the file it belongs to.
pub(crate) fn piece(bundle: &Bundle, number: u64) -> Piece {
    let owner = bundle.manifest().owner(number);
    let file = owner.map(|(model, file)| format!("{}/{}", model.name, file.name)).unwrap_or_default();
    Piece::Chunk { number, file }
}

pub(crate) fn read<M: Medium>(
    medium: &M,
    slot: SlotId,
    at: u64,
    into: &mut [u8],
    from: From,
) -> Result<(), SlotError> {
    match from {
        From::Anywhere => medium.read(at, into),
        From::Medium => medium.read_back(at, into),
    }
    .map_err(|error| SlotError::io(Place::Slot(slot), "read", error))
}

/// The head of whatever bundle begins in a slot.
pub(crate) fn prefix<M: Medium>(medium: &M, slot: SlotId, from: From) -> Result<Vec<u8>, SlotError> {
    let capacity = medium.capacity();
    let header_len = inferd_bundle::limits::HEADER_BYTES;
    if capacity < header_len as u64 {
        return Err(Refusal::Truncated { have: capacity, need: header_len as u64 }.into());
    }
    let mut header = [0; inferd_bundle::limits::HEADER_BYTES];
    read(medium, slot, 0, &mut header, from)?;
    let need = Bundle::prefix_len(&header)?;
    if need > capacity {
        return Err(Refusal::Truncated { have: capacity, need }.into());
    }
    let mut prefix = vec![0; usize::try_from(need).unwrap_or(0)];
    read(medium, slot, 0, &mut prefix, from)?;
    Ok(prefix)
}

/// Reads a file of a slot, chunk by chunk; every chunk is verified before a byte of it is handed out.
#[derive(Debug)]
pub struct FileReader<M: Medium> {
    content: Arc<Content<M>>,
    entry: FileEntry,
    /// The chunk to read next.
    next: u64,
    /// Bytes of the file that were not unpacked yet.
    left: u64,
    page: Option<IndexPage>,
    stored: Vec<u8>,
    raw: Vec<u8>,
    /// Bytes of `raw` that were handed out.
    read: usize,
}

impl<M: Medium> FileReader<M> {
    /// Bytes of the file.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.entry.len
    }

    /// Whether the file has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entry.len == 0
    }

    /// Verifies and unpacks the next chunk.
    fn fill(&mut self) -> Result<(), SlotError> {
        let content = &self.content;
        if self.page.as_ref().is_none_or(|page| page.chunk(self.next).is_none()) {
            let page =
                content.bundle.page_of(self.next).ok_or_else(|| content.rot(content.piece(self.next)))?;
            self.page = Some(content.page(page, From::Anywhere)?);
        }
        let chunk = self.page.as_ref().and_then(|page| page.chunk(self.next));
        let chunk = chunk.ok_or_else(|| content.rot(content.piece(self.next)))?;
        content.stored(&chunk, &mut self.stored, From::Anywhere)?;
        self.read = 0;
        chunk.unpack(&self.stored, &mut self.raw).map_err(|_| content.rot(content.piece(self.next)))?;
        // Staging checked that the chunks of a file are together as long as the file.
        self.left = self.left.saturating_sub(self.raw.len() as u64);
        self.next += 1;
        Ok(())
    }
}

impl<M: Medium> Read for FileReader<M> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.raw.len() && self.next < self.entry.chunk_range().end {
            self.fill().map_err(io::Error::other)?;
        }
        let ready = &self.raw[self.read..];
        let len = ready.len().min(into.len());
        into[..len].copy_from_slice(&ready[..len]);
        self.read += len;
        if len == 0 && !into.is_empty() && self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(len)
    }
}
