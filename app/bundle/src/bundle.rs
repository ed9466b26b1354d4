//! A bundle's beginning (header, manifest, signatures, page table), its index pages and its chunks.

use crate::header::Header;
use crate::limits::{ALIGN, CHUNK_MAX_BYTES, HEADER_BYTES, MAX_SIGNATURES_BYTES, PAGE_BYTES, PAGE_CHUNKS};
use crate::trust::{Authorized, Signature, Trust};
use crate::{BundleManifest, Digest, Refusal};
use std::ops::Range;

/// A bundle as its beginning describes it: consistent in itself, and not yet trusted ([`Bundle::authorize`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    header: Header,
    id: Digest,
    manifest: BundleManifest,
    signatures: Vec<Signature>,
    table: Vec<Digest>,
}

impl Bundle {
    /// How many bytes from the start [`Bundle::parse`] needs: at most 836 KiB.
    ///
    /// # Errors
    /// [`Refusal`] when this is no header of a bundle.
    pub fn prefix_len(header: &[u8; HEADER_BYTES]) -> Result<u64, Refusal> {
        Header::parse(header).map(|h| h.index_at)
    }

    /// Reads everything before the index from the start of a bundle; what follows is ignored.
    ///
    /// # Errors
    /// [`Refusal`] for the first thing that is wrong.
    pub fn parse(prefix: &[u8]) -> Result<Self, Refusal> {
        let have = prefix.len() as u64;
        let first = prefix.first_chunk::<HEADER_BYTES>();
        let first = first.ok_or(Refusal::Truncated { have, need: HEADER_BYTES as u64 })?;
        let header = Header::parse(first)?;
        if have < header.index_at {
            return Err(Refusal::Truncated { have, need: header.index_at });
        }
        let manifest_bytes = section(prefix, header.manifest_at, header.manifest_len)?;
        let signature_bytes = section(prefix, header.signatures_at, header.signatures_len)?;
        let table_bytes = section(prefix, header.table_at, header.table_len)?;
        let id = Digest::of(manifest_bytes);
        if id != header.manifest_sha256 {
            return Err(Refusal::ManifestDigest);
        }
        if Digest::of(signature_bytes) != header.signatures_sha256 {
            return Err(Refusal::SignaturesDigest);
        }
        let manifest = BundleManifest::from_bytes(manifest_bytes)?;
        if manifest.index.pages != header.pages || manifest.index.payload_len != header.payload_len {
            return Err(Refusal::Header("its lengths are not the manifest's"));
        }
        if Digest::of(table_bytes) != manifest.index.table_sha256 {
            return Err(Refusal::TableDigest);
        }
        let signatures = parse_signatures(signature_bytes)?;
        let table = table_bytes.as_chunks::<32>().0.iter().map(|&d| Digest(d)).collect();
        Ok(Self { header, id, manifest, signatures, table })
    }

    /// The bundle's identity: the digest of its manifest, and so of all its content. Signing again does not change it.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &BundleManifest {
        &self.manifest
    }

    /// Bytes from the first to the last; a multiple of 4096.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.header.total_len
    }

    /// Bytes before the index: as many as [`Bundle::parse`] needs.
    #[must_use]
    pub fn prefix_bytes(&self) -> u64 {
        self.header.index_at
    }

    /// The signatures beside it, ascending by key, known or not.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Whether the keys that `trust` asks for have signed it, and nothing was revoked.
    ///
    /// # Errors
    /// [`Refusal`]: who is missing, or what was revoked.
    pub fn authorize(&self, trust: &Trust) -> Result<Authorized, Refusal> {
        trust.authorize(self)
    }

    /// How many index pages there are.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.header.pages
    }

    /// The page that describes a chunk.
    #[must_use]
    pub fn page_of(&self, chunk: u64) -> Option<u32> {
        if chunk >= self.manifest.index.chunks {
            return None;
        }
        u32::try_from(chunk / u64::from(PAGE_CHUNKS)).ok()
    }

    /// Where a page is in the bundle; past the index when there is no such page.
    #[must_use]
    pub fn page_range(&self, page: u32) -> Range<u64> {
        let at = self.header.index_at + u64::from(page.min(self.pages())) * PAGE_BYTES as u64;
        at..at + PAGE_BYTES as u64
    }

    /// Where the chunks are in the bundle.
    #[must_use]
    pub fn payload_range(&self) -> Range<u64> {
        self.header.payload_at..self.header.payload_at + self.header.payload_len
    }

    /// Checks the bytes of an index page.
    ///
    /// # Errors
    /// [`Refusal`] when they are not this page, or say what cannot be.
    pub fn check_page(&self, page: u32, bytes: &[u8]) -> Result<IndexPage, Refusal> {
        let digest = self.table_entry(page)?;
        if bytes.len() != PAGE_BYTES || Digest::of(bytes) != digest {
            return Err(Refusal::PageDigest(page));
        }
        self.read_page(page, bytes)
    }

    fn table_entry(&self, page: u32) -> Result<Digest, Refusal> {
        let entry = usize::try_from(page).ok().and_then(|i| self.table.get(i));
        entry.copied().ok_or(Refusal::NoSuchPage { page, pages: self.pages() })
    }

    /// Reads a page whose digest was checked before.
    pub(crate) fn read_page(&self, page: u32, bytes: &[u8]) -> Result<IndexPage, Refusal> {
        let wrong = |why| Refusal::Page { page, why };
        if bytes.len() != PAGE_BYTES {
            return Err(wrong("it is not 64 KiB"));
        }
        let first = u64::from(page) * u64::from(PAGE_CHUNKS);
        let records = self.manifest.index.chunks.saturating_sub(first).min(u64::from(PAGE_CHUNKS));
        let (head, rest) = bytes.split_at(PAGE_HEAD);
        if u64::from(word(head, 8)) != records {
            return Err(wrong("another number of chunks than the manifest says"));
        }
        if word(head, 12) != 0 {
            return Err(wrong("a reserved field is not zero"));
        }
        let payload = self.payload_range();
        let relative = long(head, 0);
        if (page == 0 && relative != 0) || relative > self.header.payload_len {
            return Err(wrong("its first chunk is at a place that cannot be"));
        }
        let mut offset = payload.start + relative;
        let mut chunks = Vec::with_capacity(usize::try_from(records).unwrap_or(0));
        let mut rest = rest;
        for number in first..first + records {
            let (record, after) = rest.split_at(RECORD);
            rest = after;
            let (stored_len, raw_len, flags) = (word(record, 32), word(record, 36), word(record, 40));
            if flags > 1 || word(record, 44) != 0 {
                return Err(wrong("a reserved field is not zero"));
            }
            let compressed = flags == 1;
            let fits = if compressed { stored_len < raw_len } else { stored_len == raw_len };
            if !fits || stored_len == 0 || raw_len as usize > CHUNK_MAX_BYTES {
                return Err(wrong("the lengths of a chunk cannot be"));
            }
            let digest = Digest(record.first_chunk().copied().unwrap_or([0; 32]));
            chunks.push(Chunk { number, digest, offset, stored_len, raw_len, compressed });
            // At most 1365 chunks of 256 KiB after an offset inside the payload: no overflow.
            offset += u64::from(stored_len);
        }
        if !is_zero(rest) {
            return Err(wrong("its unused end is not zero"));
        }
        let last = page + 1 == self.pages();
        if offset > payload.end || last != (offset == payload.end) {
            return Err(wrong("its chunks do not fill the payload"));
        }
        Ok(IndexPage { page, end: offset, chunks })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }
}

/// Bytes before the records of a page.
const PAGE_HEAD: usize = 16;
/// Bytes of a record.
const RECORD: usize = 48;
/// Bytes of a signature record: key id and signature.
const SIGNATURE: usize = 96;

/// A section, whose padding must be zero.
fn section(prefix: &[u8], at: u64, len: u64) -> Result<&[u8], Refusal> {
    let end = (at + len).next_multiple_of(ALIGN);
    let place = |at| usize::try_from(at).unwrap_or(usize::MAX);
    // The header was checked, and `prefix` is as long as it says.
    let whole = prefix.get(place(at)..place(end)).ok_or(Refusal::Header("a section is outside"))?;
    let (bytes, padding) = whole.split_at(place(len));
    if !is_zero(padding) {
        return Err(Refusal::Padding(end));
    }
    Ok(bytes)
}

fn parse_signatures(bytes: &[u8]) -> Result<Vec<Signature>, Refusal> {
    let wrong = Refusal::SignaturesForm;
    debug_assert!(bytes.len() as u64 <= MAX_SIGNATURES_BYTES);
    let (count, records) = bytes.split_first_chunk::<4>().ok_or(wrong("too short"))?;
    let (records, rest) = records.as_chunks::<SIGNATURE>();
    if !rest.is_empty() || records.len() != u32::from_le_bytes(*count) as usize {
        return Err(wrong("another length than the count says"));
    }
    let signatures: Vec<Signature> = records.iter().map(Signature::from_record).collect();
    if !crate::cbor::ascends(signatures.iter().map(|s| s.key)) {
        return Err(wrong("records ascend by key, each key once"));
    }
    Ok(signatures)
}

/// The signatures section of these signatures, which ascend by key.
pub(crate) fn signature_section(signatures: &[Signature]) -> Vec<u8> {
    let count = u32::try_from(signatures.len()).unwrap_or(u32::MAX);
    let mut bytes = count.to_le_bytes().to_vec();
    for signature in signatures {
        bytes.extend_from_slice(&signature.key.0);
        bytes.extend_from_slice(&signature.signature);
    }
    bytes
}

/// The bytes of an index page.
pub(crate) fn page_bytes(first_offset: u64, chunks: &[Chunk]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PAGE_BYTES);
    bytes.extend_from_slice(&first_offset.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(chunks.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for chunk in chunks {
        bytes.extend_from_slice(&chunk.digest.0);
        bytes.extend_from_slice(&chunk.stored_len.to_le_bytes());
        bytes.extend_from_slice(&chunk.raw_len.to_le_bytes());
        bytes.extend_from_slice(&u32::from(chunk.compressed).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
    }
    bytes.resize(PAGE_BYTES, 0);
    bytes
}

/// Without a way out at the first other byte, so that the compiler takes many at once: it was a quarter of the time that
/// verifying a small bundle takes.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, byte| any | byte) == 0
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

/// A checked index page: up to 1365 chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexPage {
    page: u32,
    end: u64,
    chunks: Vec<Chunk>,
}

impl IndexPage {
    /// Which page it is, from 0.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.page
    }

    /// The number of its first chunk.
    #[must_use]
    pub fn first_chunk(&self) -> u64 {
        u64::from(self.page) * u64::from(PAGE_CHUNKS)
    }

    /// Its chunks in order.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> + '_ {
        self.chunks.iter().copied()
    }

    /// The chunk of this number (in the bundle), if it is on this page.
    #[must_use]
    pub fn chunk(&self, number: u64) -> Option<Chunk> {
        let at = number.checked_sub(self.first_chunk())?;
        self.chunks.get(usize::try_from(at).ok()?).copied()
    }

    /// Where its chunks are in the bundle.
    #[must_use]
    pub fn payload_range(&self) -> Range<u64> {
        self.chunks.first().map_or(self.end, |c| c.offset)..self.end
    }
}

/// A chunk as the index describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its number in the bundle, from 0.
    pub number: u64,
    /// Digest of the stored bytes.
    pub digest: Digest,
    /// Where it is in the bundle.
    pub offset: u64,
    /// Stored bytes: 1 to 256 KiB.
    pub stored_len: u32,
    /// Bytes after unpacking: 1 to 256 KiB.
    pub raw_len: u32,
    /// Whether it is stored as a zstd frame.
    pub compressed: bool,
}

impl Chunk {
    /// Where it is in the bundle.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.stored_len)
    }

    /// Whether `stored` are its stored bytes.
    ///
    /// # Errors
    /// [`Refusal::ChunkLength`] or [`Refusal::ChunkDigest`].
    pub fn check(&self, stored: &[u8]) -> Result<(), Refusal> {
        let (have, need) = (stored.len() as u64, u64::from(self.stored_len));
        if have != need {
            return Err(Refusal::ChunkLength { chunk: self.number, have, need });
        }
        if Digest::of(stored) != self.digest {
            return Err(Refusal::ChunkDigest(self.number));
        }
        Ok(())
    }

    /// Checks the stored bytes, then replaces `out` by what is inside: authenticated before it is unpacked.
    ///
    /// # Errors
    /// As [`Chunk::check`], and [`Refusal::Compression`]. `out` is then empty.
    pub fn unpack(&self, stored: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        out.clear();
        self.check(stored)?;
        if !self.compressed {
            out.extend_from_slice(stored);
            return Ok(());
        }
        crate::zstd::unpack(stored, self.raw_len as usize, out).map_err(|why| {
            out.clear();
            Refusal::Compression { chunk: self.number, why }
        })
    }
}

/// The checks that need all index pages, which must come in order: that chunks follow each other without a gap, and that
/// those of a file are together as long as the file.
///
/// [`crate::Stream`] does them; who reads pages at random does them with this.
#[derive(Debug)]
pub struct IndexCheck {
    next_page: u32,
    next_offset: u64,
    /// Files by their first chunk: chunks that are still to come, bytes that are still to come, and which file it is.
    files: Vec<(u64, u64, usize)>,
    current: usize,
}

impl IndexCheck {
    /// A check that has seen no page.
    #[must_use]
    pub fn new(bundle: &Bundle) -> Self {
        let mut files: Vec<_> =
            bundle.manifest.files().enumerate().filter(|(_, (_, f))| f.chunks > 0).collect();
        files.sort_by_key(|(_, (_, f))| f.first_chunk);
        let files = files.into_iter().map(|(i, (_, f))| (f.chunks, f.len, i)).collect();
        Self { next_page: 0, next_offset: bundle.payload_range().start, files, current: 0 }
    }

    /// Takes the next page.
    ///
    /// # Errors
    /// [`Refusal::Page`] when it does not follow the one before, [`Refusal::FileLength`].
    pub fn page(&mut self, bundle: &Bundle, page: &IndexPage) -> Result<(), Refusal> {
        let wrong = |why| Refusal::Page { page: page.number(), why };
        if page.number() != self.next_page {
            return Err(wrong("it is not the next page"));
        }
        if page.payload_range().start != self.next_offset {
            return Err(wrong("its chunks do not follow the page before"));
        }
        for chunk in page.chunks() {
            let (chunks, bytes, which) =
                self.files.get_mut(self.current).ok_or(wrong("it has chunks of no file"))?;
            let length = || {
                let (model, file) =
                    bundle.manifest.files().nth(*which).map_or(("", ""), |(m, f)| (m.name.as_str(), &f.name));
                Refusal::FileLength { model: model.to_owned(), file: file.to_owned() }
            };
            let Some(left) = bytes.checked_sub(u64::from(chunk.raw_len)) else { return Err(length()) };
            *bytes = left;
            *chunks -= 1;
            if *chunks == 0 {
                if left != 0 {
                    return Err(length());
                }
                self.current += 1;
            }
        }
        self.next_page += 1;
        self.next_offset = page.payload_range().end;
        Ok(())
    }

    /// Whether every page was seen.
    #[must_use]
    pub fn is_complete(&self, bundle: &Bundle) -> bool {
        self.next_page == bundle.pages()
    }
}
