//! Why a bundle or a trust document is refused.

use crate::{Digest, Role};

/// Why something is refused. [`Refusal::code`] is for programs and never changes its meaning; the text is one sentence
/// for the operator. `app/bundle/README.md` lists every code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    // --- header
    /// Bytes are missing at the end.
    #[error("the bundle is cut off: it ends after {have} of {need} bytes; send it again")]
    Truncated {
        /// Bytes there were.
        have: u64,
        /// Bytes needed for the next step or in all.
        need: u64,
    },
    /// There is more than the header says.
    #[error("bytes follow the end of the bundle at {total}; it was damaged or put together from two")]
    TrailingBytes {
        /// Where the bundle ends.
        total: u64,
    },
    /// The first bytes are not a bundle's.
    #[error("this is not a bundle: it does not begin with INFERDMB")]
    Magic,
    /// A format this program does not read.
    #[error("the bundle has format {0}, this program reads 1; update the device's software first")]
    Format(u32),
    /// The header does not match its own digest.
    #[error("the bundle's header is damaged: its digest is another")]
    HeaderDigest,
    /// The header says something that cannot be.
    #[error("the bundle's header is wrong: {0}")]
    Header(&'static str),
    /// A length beyond what the format allows.
    #[error("{what} is {len} bytes, at most {max} are allowed")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// Bytes between sections are not zero.
    #[error("the padding before byte {0} of the bundle is not zero")]
    Padding(u64),
    // --- manifest
    /// The manifest does not match the digest in the header.
    #[error("the bundle's manifest is damaged: its digest is another")]
    ManifestDigest,
    /// The manifest is not canonical CBOR of the right form.
    #[error("the bundle's manifest is not of this form: {0}")]
    ManifestForm(String),
    /// A field of the manifest is wrong.
    #[error("the bundle's manifest: {key}: {why}")]
    Manifest {
        /// The field.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A kind of bundle this device does not install.
    #[error("the bundle is of kind {0}, and this device installs models only")]
    Kind(&'static str),
    /// The manifest of a model in the bundle is refused, or does not fit the files beside it.
    #[error("model {model}: {why}")]
    ModelManifest {
        /// The model.
        model: String,
        /// What is wrong with it.
        why: String,
    },
    // --- signatures
    /// The signatures do not match the digest in the header.
    #[error("the bundle's signatures are damaged: their digest is another")]
    SignaturesDigest,
    /// The signatures section is not of its form.
    #[error("the bundle's signatures are not of this form: {0}")]
    SignaturesForm(&'static str),
    /// Nobody signed.
    #[error("nobody signed it; sign it with {need} key(s) of role {role}")]
    Unsigned {
        /// The role that must sign.
        role: Role,
        /// Keys needed.
        need: u32,
    },
    /// No signature is from a key this device knows.
    #[error(
        "no signature is from a key this device knows; is it meant for another device, or is the root too old?"
    )]
    UnknownKeys,
    /// A known key's signature is wrong.
    #[error("the signature of key {0} is wrong: the content was changed after signing")]
    SignatureWrong(Digest),
    /// Revoked keys are needed to reach the threshold.
    #[error("key {key} was revoked, and without it only {have} of {need} keys of role {role} signed")]
    KeyRevoked {
        /// A revoked key that signed.
        key: Digest,
        /// The role that must sign.
        role: Role,
        /// Keys that count.
        have: u32,
        /// Keys needed.
        need: u32,
    },
    /// Keys of another role signed.
    #[error("key {key} signed but does not have role {role}; only {have} of {need} keys of that role signed")]
    WrongRole {
        /// A key that signed.
        key: Digest,
        /// The role that must sign.
        role: Role,
        /// Keys that count.
        have: u32,
        /// Keys needed.
        need: u32,
    },
    /// Too few keys signed.
    #[error("{have} of {need} keys of role {role} signed")]
    BelowThreshold {
        /// The role that must sign.
        role: Role,
        /// Keys that count.
        have: u32,
        /// Keys needed.
        need: u32,
    },
    /// The root gives nobody this role.
    #[error("the root of this device gives role {0} to no key")]
    RoleUnassigned(Role),
    /// The development role, on a device that does not accept it.
    #[error("it is signed for development, and this device accepts releases only")]
    DevRole,
    /// This bundle was revoked.
    #[error("bundle {0} was revoked")]
    BundleRevoked(Digest),
    // --- index and payload
    /// The page table does not match the digest in the manifest.
    #[error("the bundle's page table is damaged: its digest is another")]
    TableDigest,
    /// An index page does not match the page table.
    #[error("index page {0} is damaged: its digest is another")]
    PageDigest(u32),
    /// An index page says something that cannot be.
    #[error("index page {page} is wrong: {why}")]
    Page {
        /// Which page, from 0.
        page: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The bundle has no such page.
    #[error("the bundle has {pages} index pages, there is no page {page}")]
    NoSuchPage {
        /// Which page, from 0.
        page: u32,
        /// How many there are.
        pages: u32,
    },
    /// The chunks of a file are not as long as the file.
    #[error("model {model}: the chunks of {file} are not as long as the file")]
    FileLength {
        /// The model.
        model: String,
        /// The file.
        file: String,
    },
    /// The content of a file is another than the manifest says: its signer made a mistake.
    #[error("{0} has another content than the bundle's manifest says; the bundle was built wrong")]
    FileDigest(String),
    /// A chunk does not match its digest.
    #[error("chunk {0} is damaged: its digest is another")]
    ChunkDigest(u64),
    /// A chunk is not as long as the index says.
    #[error("chunk {chunk} is {have} bytes, the index says {need}")]
    ChunkLength {
        /// Which chunk, from 0.
        chunk: u64,
        /// Its length.
        have: u64,
        /// The length in the index.
        need: u64,
    },
    /// A chunk's compression is not what the format allows.
    #[error("chunk {chunk} cannot be unpacked: {why}")]
    Compression {
        /// Which chunk, from 0.
        chunk: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The index is larger than the verifier keeps, and its sink cannot read it back.
    #[error("the index has {pages} pages, {kept} are kept in memory, and they cannot be read back here")]
    IndexMemory {
        /// Pages of the bundle.
        pages: u32,
        /// Pages kept.
        kept: u32,
    },
    /// A stream that has refused something takes no more.
    #[error("this transfer was refused before; start again")]
    Spent,
    // --- trust documents
    /// A trust document is not canonical CBOR of the right form.
    #[error("the trust document is not of this form: {0}")]
    TrustForm(String),
    /// Another document than was asked for.
    #[error("the trust document is a {got:?}, expected was a {want:?}")]
    TrustKind {
        /// What was expected.
        want: &'static str,
        /// What it is.
        got: String,
    },
    /// A field of a trust document is wrong.
    #[error("the {kind}: {why}")]
    TrustDocument {
        /// Which document.
        kind: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A root that this device has had.
    #[error("root {got} is not newer than root {have} of this device")]
    RootReplayed {
        /// The device's version.
        have: u64,
        /// The document's.
        got: u64,
    },
    /// A root between was left out.
    #[error("root {got} cannot follow root {have} of this device: send the ones between, in order")]
    RootSkipped {
        /// The device's version.
        have: u64,
        /// The document's.
        got: u64,
    },
    /// A revocation list that is not newer.
    #[error("revocation list {got} is not newer than list {have} of this device")]
    RevocationsReplayed {
        /// The device's version.
        have: u64,
        /// The document's.
        got: u64,
    },
    /// A revocation list that takes something back.
    #[error("the revocation list leaves out what an older one revoked; a list only grows")]
    RevocationsShrunk,
    /// A permit for another device.
    #[error("the permit is for device {0:?}, not for this one")]
    PermitDevice(String),
    /// A permit that was used.
    #[error("the permit has number {got}, and {last} was used on this device; make a new one")]
    PermitReplayed {
        /// The permit's number.
        got: u64,
        /// The last number used.
        last: u64,
    },
}

impl Refusal {
    /// A short name for programs: it appears in verdicts, metrics and answers, and never changes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::TrailingBytes { .. } => "trailing-bytes",
            Self::Magic => "not-a-bundle",
            Self::Format(_) => "format-version",
            Self::HeaderDigest => "header-digest",
            Self::Header(_) => "header",
            Self::TooLarge { .. } => "too-large",
            Self::Padding(_) => "padding",
            Self::ManifestDigest => "manifest-digest",
            Self::ManifestForm(_) => "manifest-form",
            Self::Manifest { .. } => "manifest",
            Self::Kind(_) => "kind-unsupported",
            Self::ModelManifest { .. } => "model-manifest",
            Self::SignaturesDigest => "signatures-digest",
            Self::SignaturesForm(_) => "signatures-form",
            Self::Unsigned { .. } => "unsigned",
            Self::UnknownKeys => "unknown-keys",
            Self::SignatureWrong(_) => "signature-wrong",
            Self::KeyRevoked { .. } => "key-revoked",
            Self::WrongRole { .. } => "wrong-role",
            Self::BelowThreshold { .. } => "below-threshold",
            Self::RoleUnassigned(_) => "role-unassigned",
            Self::DevRole => "dev-role",
            Self::BundleRevoked(_) => "bundle-revoked",
            Self::TableDigest => "page-table-digest",
            Self::PageDigest(_) => "page-digest",
            Self::Page { .. } => "page",
            Self::NoSuchPage { .. } => "no-such-page",
            Self::FileLength { .. } => "file-length",
            Self::FileDigest(_) => "file-digest",
            Self::ChunkDigest(_) => "chunk-digest",
            Self::ChunkLength { .. } => "chunk-length",
            Self::Compression { .. } => "compression",
            Self::IndexMemory { .. } => "index-memory",
            Self::Spent => "spent",
            Self::TrustForm(_) => "trust-form",
            Self::TrustKind { .. } => "trust-kind",
            Self::TrustDocument { .. } => "trust-document",
            Self::RootReplayed { .. } => "root-replayed",
            Self::RootSkipped { .. } => "root-skipped",
            Self::RevocationsReplayed { .. } => "revocations-replayed",
            Self::RevocationsShrunk => "revocations-shrunk",
            Self::PermitDevice(_) => "permit-device",
            Self::PermitReplayed { .. } => "permit-replayed",
        }
    }

    pub(crate) fn manifest(key: &'static str, why: impl Into<String>) -> Self {
        Self::Manifest { key, why: why.into() }
    }
}
