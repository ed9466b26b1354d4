//! Verification of a bundle that arrives byte by byte: in order, in bounded memory, without doing any I/O itself.

use crate::bundle::{Bundle, Chunk, IndexCheck, IndexPage};
use crate::limits::{HEADER_BYTES, KEPT_PAGES, PAGE_BYTES};
use crate::{Refusal, limits};

/// Where verified pieces go, in the order of the bundle. Nothing that was not verified is handed on.
pub trait Sink {
    /// What the sink may fail with; it ends the stream.
    type Error: From<Refusal>;

    /// Header, manifest, signatures and page table: consistent, not yet authorised. Call [`Bundle::authorize`] here, so that
    /// a bundle nobody may install is refused before its payload comes.
    ///
    /// # Errors
    /// The sink's; the stream ends.
    fn prefix(&mut self, bundle: &Bundle, bytes: &[u8]) -> Result<(), Self::Error>;

    /// An index page.
    ///
    /// # Errors
    /// The sink's; the stream ends.
    fn page(&mut self, bundle: &Bundle, page: &IndexPage, bytes: &[u8]) -> Result<(), Self::Error>;

    /// A chunk as it is stored.
    ///
    /// # Errors
    /// The sink's; the stream ends.
    fn chunk(&mut self, bundle: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), Self::Error>;

    /// Gives the bytes of an index page back that it took before, into `into`: it is empty, and verified again afterwards.
    /// Needed for bundles of more than [`limits::KEPT_PAGES`] pages (about 8 GiB) and by [`Stream::resume`]; a sink that
    /// cannot do it answers `false`, as this default does.
    ///
    /// # Errors
    /// The sink's; the stream ends.
    fn recall(&mut self, bundle: &Bundle, page: u32, into: &mut Vec<u8>) -> Result<bool, Self::Error> {
        let _ = (bundle, page, into);
        Ok(false)
    }
}

/// A place in a bundle at which a transfer can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The start of an index page.
    Page(u32),
    /// The start of a chunk; the number of chunks means the end of the payload.
    Chunk(u64),
}

/// The verifier. It keeps the prefix (at most 836 KiB), [`KEPT_PAGES`] index pages and one chunk, at any size of bundle.
#[derive(Debug)]
pub struct Stream {
    buffer: Vec<u8>,
    position: u64,
    /// `None` until the prefix is there, and after a refusal.
    bundle: Option<Bundle>,
    state: State,
    check: Option<IndexCheck>,
    /// The first index pages, as they came.
    kept: Vec<Vec<u8>>,
    /// The page that describes the chunks that come.
    page: Option<IndexPage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Prefix(usize),
    Page(u32),
    Chunk(u64),
    Padding(usize),
    Complete,
    Spent,
}

impl Default for Stream {
    fn default() -> Self {
        Self::new()
    }
}

impl Stream {
    /// A verifier that waits for the first byte of a bundle.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            position: 0,
            bundle: None,
            state: State::Header,
            check: None,
            kept: Vec::new(),
            page: None,
        }
    }

    /// A verifier that goes on at `place` of a bundle whose pieces before it were verified and kept by the sink, which must
    /// be able to recall pages. The next byte it takes is at [`Stream::position`].
    ///
    /// # Errors
    /// [`Refusal`] or the sink's error when a page cannot be recalled or is damaged, or there is no such place.
    pub fn resume<S: Sink>(bundle: Bundle, place: Place, sink: &mut S) -> Result<Self, S::Error> {
        let mut stream = Self::new();
        match place {
            Place::Page(page) => {
                if page >= bundle.pages() {
                    return Err(Refusal::NoSuchPage { page, pages: bundle.pages() }.into());
                }
                let mut check = IndexCheck::new(&bundle);
                for before in 0..page {
                    check.page(&bundle, &recalled(&bundle, before, sink)?)?;
                }
                stream.position = bundle.page_range(page).start;
                stream.check = Some(check);
                stream.state = State::Page(page);
            }
            Place::Chunk(number) => {
                let chunks = bundle.manifest().index.chunks;
                if let Some(page) = bundle.page_of(number) {
                    let page = recalled(&bundle, page, sink)?;
                    stream.position = page.chunk(number).map_or(0, |c| c.offset);
                    stream.page = Some(page);
                    stream.state = State::Chunk(number);
                } else if number == chunks {
                    stream.position = bundle.payload_range().end;
                    stream.state = after_payload(&bundle);
                } else {
                    let page = bundle.pages();
                    return Err(Refusal::NoSuchPage { page, pages: page }.into());
                }
            }
        }
        stream.bundle = Some(bundle);
        Ok(stream)
    }

    /// Bytes taken so far, counted from the start of the bundle.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The bundle, once its beginning was there.
    #[must_use]
    pub fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_ref()
    }

    /// Whether all bytes were there and right.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Takes the next bytes, as many as there are.
    ///
    /// # Errors
    /// A [`Refusal`], or what the sink failed with. The stream then takes nothing more.
    pub fn push<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        let done = self.take(bytes, sink);
        if done.is_err() {
            self.state = State::Spent;
            self.buffer = Vec::new();
        }
        done
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`Refusal::Truncated`] when bytes are missing, [`Refusal::Spent`] after a refusal.
    pub fn finish(self) -> Result<Bundle, Refusal> {
        let have = self.position;
        match (self.state, self.bundle) {
            (State::Complete, Some(bundle)) => Ok(bundle),
            (State::Spent, _) => Err(Refusal::Spent),
            (_, Some(bundle)) => Err(Refusal::Truncated { have, need: bundle.total_len() }),
            (State::Prefix(need), None) => Err(Refusal::Truncated { have, need: need as u64 }),
            (_, None) => Err(Refusal::Truncated { have, need: HEADER_BYTES as u64 }),
        }
    }

    fn take<S: Sink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        loop {
            let need = match self.state {
                State::Spent => return Err(Refusal::Spent.into()),
                State::Complete if bytes.is_empty() => return Ok(()),
                State::Complete => return Err(Refusal::TrailingBytes { total: self.position }.into()),
                State::Header => HEADER_BYTES,
                State::Prefix(need) => need,
                State::Page(_) => PAGE_BYTES,
                State::Chunk(number) => self.chunk(number)?.stored_len as usize,
                State::Padding(len) => len,
            };
            let taken = need.saturating_sub(self.buffer.len()).min(bytes.len());
            let (now, rest) = bytes.split_at(taken);
            bytes = rest;
            self.position += taken as u64;
            if self.buffer.is_empty() && taken == need {
                // All of it is at hand: nothing is copied.
                self.piece(now, sink)?;
                if matches!(self.state, State::Prefix(_)) {
                    self.buffer.extend_from_slice(now);
                }
                continue;
            }
            self.buffer.reserve_exact(need - self.buffer.len());
            self.buffer.extend_from_slice(now);
            if self.buffer.len() < need {
                return Ok(());
            }
            let whole = std::mem::take(&mut self.buffer);
            self.piece(&whole, sink)?;
            // The header is the start of the prefix. Otherwise the memory is used again, but for a long prefix's.
            self.buffer = whole;
            if !matches!(self.state, State::Prefix(_)) {
                self.buffer.clear();
                self.buffer.shrink_to(limits::CHUNK_MAX_BYTES);
            }
        }
    }

    /// Takes a whole piece and goes on to the next state.
    fn piece<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        if self.state == State::Header {
            let header = bytes.first_chunk().ok_or(Refusal::Spent)?;
            let need = Bundle::prefix_len(header)?;
            self.state = State::Prefix(usize::try_from(need).map_err(|_| Refusal::Spent)?);
            return Ok(());
        }
        if let State::Prefix(_) = self.state {
            let bundle = Bundle::parse(bytes)?;
            sink.prefix(&bundle, bytes)?;
            self.check = Some(IndexCheck::new(&bundle));
            self.bundle = Some(bundle);
            self.state = State::Page(0);
            return Ok(());
        }
        let bundle = self.bundle.as_ref().ok_or(Refusal::Spent)?;
        match self.state {
            State::Page(number) => {
                let page = bundle.check_page(number, bytes)?;
                self.check.as_mut().ok_or(Refusal::Spent)?.page(bundle, &page)?;
                sink.page(bundle, &page, bytes)?;
                if self.kept.len() == number as usize && number < KEPT_PAGES {
                    self.kept.push(bytes.to_vec());
                }
                if number + 1 < bundle.pages() {
                    self.state = State::Page(number + 1);
                } else {
                    self.check = None;
                    self.page = Some(self.page_for(0, sink)?);
                    self.state = State::Chunk(0);
                }
            }
            State::Chunk(number) => {
                let chunk = self.chunk(number)?;
                chunk.check(bytes)?;
                sink.chunk(bundle, &chunk, bytes)?;
                let next = number + 1;
                if next == bundle.manifest().index.chunks {
                    self.state = after_payload(bundle);
                } else {
                    if self.page.as_ref().is_none_or(|p| p.chunk(next).is_none()) {
                        let page = bundle.page_of(next).ok_or(Refusal::Spent)?;
                        self.page = None;
                        self.page = Some(self.page_for(page, sink)?);
                    }
                    self.state = State::Chunk(next);
                }
            }
            State::Padding(_) => {
                if bytes.iter().any(|&b| b != 0) {
                    return Err(Refusal::Padding(self.position).into());
                }
                self.state = State::Complete;
            }
            State::Header | State::Prefix(_) | State::Complete | State::Spent => {}
        }
        Ok(())
    }

    fn chunk(&self, number: u64) -> Result<Chunk, Refusal> {
        self.page.as_ref().and_then(|p| p.chunk(number)).ok_or(Refusal::Spent)
    }

    /// A page that was taken before: from memory, else from the sink.
    fn page_for<S: Sink>(&self, page: u32, sink: &mut S) -> Result<IndexPage, S::Error> {
        let bundle = self.bundle.as_ref().ok_or(Refusal::Spent)?;
        match self.kept.get(page as usize) {
            Some(bytes) => Ok(bundle.read_page(page, bytes)?),
            None => recalled(bundle, page, sink),
        }
    }
}

fn recalled<S: Sink>(bundle: &Bundle, page: u32, sink: &mut S) -> Result<IndexPage, S::Error> {
    let mut bytes = Vec::with_capacity(PAGE_BYTES);
    if !sink.recall(bundle, page, &mut bytes)? {
        return Err(Refusal::IndexMemory { pages: bundle.pages(), kept: KEPT_PAGES }.into());
    }
    Ok(bundle.check_page(page, &bytes)?)
}

fn after_payload(bundle: &Bundle) -> State {
    // Less than 4096.
    match usize::try_from(bundle.total_len() - bundle.payload_range().end) {
        Ok(0) | Err(_) => State::Complete,
        Ok(padding) => State::Padding(padding),
    }
}
