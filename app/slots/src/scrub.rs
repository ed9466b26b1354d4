//! Verifying a slot in the background, a little at a time.

use crate::error::{Piece, SlotError};
use crate::medium::{BLOCK, Medium};
use crate::open::{Content, From, prefix};
use inferd_bundle::{Bundle, IndexCheck, IndexPage};
use std::sync::Arc;

/// A verification that goes on where it stopped. It reads from the medium, holds no lock, and remembers its place in memory only: after a restart
/// it begins anew. After the end it begins anew as well.
#[derive(Debug)]
pub struct Scrub<M: Medium> {
    content: Arc<Content<M>>,
    next: Next,
    check: IndexCheck,
    page: Option<IndexPage>,
    stored: Vec<u8>,
    done: u64,
}

/// How far a scrub has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes verified in this round.
    pub done: u64,
    /// Bytes of the bundle.
    pub total: u64,
    /// Whether this step ended the round.
    pub finished: bool,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    Prefix,
    Page(u32),
    Chunk(u64),
    Padding,
}

impl<M: Medium> Scrub<M> {
    pub(crate) fn new(content: Arc<Content<M>>) -> Self {
        let check = IndexCheck::new(&content.bundle);
        Self { content, next: Next::Prefix, check, page: None, stored: Vec::new(), done: 0 }
    }

    /// Verifies about `bytes` more: whole pieces until as many are done.
    ///
    /// # Errors
    /// [`SlotError::Rot`] names the piece that does not verify, [`SlotError::NotThere`] says that the slot holds another bundle now. The next step
    /// goes on at the same piece.
    pub fn step(&mut self, bytes: u64) -> Result<Scrubbed, SlotError> {
        let total = self.content.bundle.total_len();
        if let Next::Prefix = self.next {
            self.done = 0;
        }
        let until = self.done.saturating_add(bytes);
        loop {
            let finished = self.piece()?;
            if finished || self.done >= until {
                return Ok(Scrubbed { done: self.done, total, finished });
            }
        }
    }

    /// Verifies the next piece and says whether it was the last one.
    fn piece(&mut self) -> Result<bool, SlotError> {
        let content = &self.content;
        let bundle = &content.bundle;
        match self.next {
            Next::Prefix => {
                let read = prefix(content.inner.slot(content.slot), content.slot, From::Medium);
                let read = match read {
                    Err(SlotError::Refused(_)) => return Err(content.rot(Piece::Prefix)),
                    other => other?,
                };
                if !Bundle::parse(&read).is_ok_and(|there| there == *bundle) {
                    return Err(content.rot(Piece::Prefix));
                }
                self.done += bundle.prefix_bytes();
                self.check = IndexCheck::new(bundle);
                self.next = Next::Page(0);
            }
            Next::Page(number) => {
                let page = content.page(number, From::Medium)?;
                // It was right when the slot was staged, and its digest is; so this is a bundle that nobody should have staged.
                self.check.page(bundle, &page)?;
                // Of a bundle with one page it is the one the chunks need.
                self.page = Some(page);
                self.done += inferd_bundle::limits::PAGE_BYTES as u64;
                self.next = if number + 1 < bundle.pages() { Next::Page(number + 1) } else { Next::Chunk(0) };
            }
            Next::Chunk(number) => {
                if self.page.as_ref().is_none_or(|page| page.chunk(number).is_none()) {
                    let page = bundle.page_of(number).ok_or_else(|| content.rot(content.piece(number)))?;
                    self.page = Some(content.page(page, From::Medium)?);
                }
                let chunk = self.page.as_ref().and_then(|page| page.chunk(number));
                let chunk = chunk.ok_or_else(|| content.rot(content.piece(number)))?;
                content.stored(&chunk, &mut self.stored, From::Medium)?;
                chunk.check(&self.stored).map_err(|_| content.rot(content.piece(number)))?;
                self.done += u64::from(chunk.stored_len);
                let next = number + 1;
                self.next =
                    if next < bundle.manifest().index.chunks { Next::Chunk(next) } else { Next::Padding };
            }
            Next::Padding => {
                let at = bundle.payload_range().end;
                let mut padding = [0; BLOCK];
                let padding =
                    &mut padding[..usize::try_from(bundle.total_len() - at).unwrap_or(0).min(BLOCK)];
                content.read(at, padding, From::Medium)?;
                if padding.iter().any(|&byte| byte != 0) {
                    return Err(content.rot(Piece::Padding));
                }
                self.done = bundle.total_len();
                self.page = None;
                self.next = Next::Prefix;
                return Ok(true);
            }
        }
        Ok(false)
    }
}
