//! Every limit of the format. A writer that keeps them is read; a reader refuses what exceeds them before it allocates.

/// Every section of a bundle starts at a multiple of this.
pub const ALIGN: u64 = 4096;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 4096;
/// The longest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 256 << 10;
/// The longest signatures section, in bytes; the most records follow from it.
pub const MAX_SIGNATURES_BYTES: u64 = 64 << 10;
/// The longest page table, in bytes.
pub const MAX_TABLE_BYTES: u64 = 512 << 10;
/// The most index pages.
pub const MAX_PAGES: u32 = 16_384;
/// Bytes of an index page.
pub const PAGE_BYTES: usize = 64 << 10;
/// Chunks an index page holds at most; every page but the last holds as many.
pub const PAGE_CHUNKS: u32 = 1365;
/// The shortest chunk a writer cuts, but for the last of a file.
pub const CHUNK_MIN_BYTES: usize = 16 << 10;
/// The length of chunks a writer aims at.
pub const CHUNK_AVERAGE_BYTES: usize = 64 << 10;
/// The longest chunk, stored and unpacked.
pub const CHUNK_MAX_BYTES: usize = 256 << 10;
/// The largest window a compressed chunk may ask its reader for.
pub const ZSTD_WINDOW_BYTES: u64 = 256 << 10;
/// The most models in a bundle.
pub const MAX_MODELS: usize = 64;
/// The most files of one model.
pub const MAX_FILES: usize = 16;
/// The most boards a bundle names.
pub const MAX_TARGETS: usize = 32;
/// The longest file name, in bytes.
pub const MAX_FILE_NAME: usize = 128;
/// The longest label, in bytes.
pub const MAX_LABEL: usize = 64;
/// The longest summary, in bytes.
pub const MAX_SUMMARY: usize = 1024;
/// The longest provenance text, in bytes.
pub const MAX_PROVENANCE: usize = 16 << 10;
/// The longest trust envelope, in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 256 << 10;
/// The most signatures of a trust document.
pub const MAX_ENVELOPE_SIGNATURES: usize = 64;
/// The most keys of a root document, and of one role.
pub const MAX_ROOT_KEYS: usize = 32;
/// The longest note beside a key, in bytes.
pub const MAX_NOTE: usize = 128;
/// The most keys a revocation list holds.
pub const MAX_REVOKED_KEYS: usize = 1024;
/// The most bundles a revocation list holds.
pub const MAX_REVOKED_BUNDLES: usize = 4096;
/// The longest device id of a permit, in bytes.
pub const MAX_DEVICE_ID: usize = 128;
/// Index pages a [`crate::Stream`] keeps in memory; of a bundle with more it asks its sink for them again.
pub const KEPT_PAGES: u32 = 96;
