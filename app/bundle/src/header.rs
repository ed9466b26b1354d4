//! The first 4096 bytes. Lengths are free, places follow from them; a header that says otherwise is refused, so sections
//! cannot overlap, leave gaps or lie outside.

use crate::limits::{
    ALIGN, CHUNK_MAX_BYTES, HEADER_BYTES, MAX_MANIFEST_BYTES, MAX_PAGES, MAX_SIGNATURES_BYTES,
    MAX_TABLE_BYTES, PAGE_BYTES, PAGE_CHUNKS,
};
use crate::{Digest, FORMAT, MAGIC, Refusal};

/// Bytes the header's own digest covers.
const COVERED: usize = HEADER_BYTES - 32;
/// Where the zeros begin.
const RESERVED_AT: usize = 168;

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) manifest_at: u64,
    pub(crate) manifest_len: u64,
    pub(crate) signatures_at: u64,
    pub(crate) signatures_len: u64,
    pub(crate) table_at: u64,
    pub(crate) table_len: u64,
    pub(crate) index_at: u64,
    pub(crate) pages: u32,
    pub(crate) payload_at: u64,
    pub(crate) payload_len: u64,
    pub(crate) total_len: u64,
    pub(crate) manifest_sha256: Digest,
    pub(crate) signatures_sha256: Digest,
}

impl Header {
    /// The header of sections of these lengths.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] for a length beyond its limit.
    pub(crate) fn new(
        (manifest_len, manifest_sha256): (u64, Digest),
        (signatures_len, signatures_sha256): (u64, Digest),
        pages: u32,
        payload_len: u64,
    ) -> Result<Self, Refusal> {
        let within =
            |what, len, max| if len > max { Err(Refusal::TooLarge { what, len, max }) } else { Ok(()) };
        within("the manifest", manifest_len, MAX_MANIFEST_BYTES)?;
        within("the signatures section", signatures_len, MAX_SIGNATURES_BYTES)?;
        within("the page table", u64::from(pages) * 32, MAX_TABLE_BYTES)?;
        let most = u64::from(MAX_PAGES) * u64::from(PAGE_CHUNKS) * CHUNK_MAX_BYTES as u64;
        within("the payload", payload_len, most)?;
        // With these limits every sum below stays under 2^43.
        let after = |at: u64, len: u64| (at + len).next_multiple_of(ALIGN);
        let manifest_at = HEADER_BYTES as u64;
        let signatures_at = after(manifest_at, manifest_len);
        let table_at = after(signatures_at, signatures_len);
        let table_len = u64::from(pages) * 32;
        let index_at = after(table_at, table_len);
        let payload_at = index_at + u64::from(pages) * PAGE_BYTES as u64;
        let total_len = after(payload_at, payload_len);
        Ok(Self {
            manifest_at,
            manifest_len,
            signatures_at,
            signatures_len,
            table_at,
            table_len,
            index_at,
            pages,
            payload_at,
            payload_len,
            total_len,
            manifest_sha256,
            signatures_sha256,
        })
    }

    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Refusal> {
        let long = |at: usize| bytes[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let digest = |at: usize| Digest(bytes[at..].first_chunk().copied().unwrap_or([0; 32]));
        if bytes[..8] != MAGIC {
            return Err(Refusal::Magic);
        }
        let (format, zero) = (u32::try_from(long(8) & 0xffff_ffff).unwrap_or(0), long(8) >> 32);
        if format != FORMAT {
            return Err(Refusal::Format(format));
        }
        if Digest::of(&bytes[..COVERED]) != digest(COVERED) {
            return Err(Refusal::HeaderDigest);
        }
        if zero != 0 || !crate::bundle::is_zero(&bytes[RESERVED_AT..COVERED]) {
            return Err(Refusal::Header("a reserved field is not zero"));
        }
        let (table_len, index_len) = (long(56), long(72));
        if table_len > MAX_TABLE_BYTES {
            return Err(Refusal::TooLarge { what: "the page table", len: table_len, max: MAX_TABLE_BYTES });
        }
        let pages = u32::try_from(table_len / 32).unwrap_or(u32::MAX);
        if table_len % 32 != 0 || index_len != u64::from(pages) * PAGE_BYTES as u64 {
            return Err(Refusal::Header("page table and index do not fit each other"));
        }
        let header = Self::new((long(24), digest(104)), (long(40), digest(136)), pages, long(88))?;
        if header.encode() != *bytes {
            return Err(Refusal::Header("a section is not where its length puts it"));
        }
        Ok(header)
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let fields = [
            self.manifest_at,
            self.manifest_len,
            self.signatures_at,
            self.signatures_len,
            self.table_at,
            self.table_len,
            self.index_at,
            u64::from(self.pages) * PAGE_BYTES as u64,
            self.payload_at,
            self.payload_len,
            self.total_len,
        ];
        for (place, field) in bytes[16..104].as_chunks_mut::<8>().0.iter_mut().zip(fields) {
            *place = field.to_le_bytes();
        }
        bytes[104..136].copy_from_slice(&self.manifest_sha256.0);
        bytes[136..168].copy_from_slice(&self.signatures_sha256.0);
        let own = Digest::of(&bytes[..COVERED]);
        bytes[COVERED..].copy_from_slice(&own.0);
        bytes
    }
}
