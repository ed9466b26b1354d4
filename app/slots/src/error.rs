//! Everything that can go wrong here, for the program and for the operator.

use crate::state::{Illegal, SlotId, SlotStatus};
use inferd_bundle::{Digest, Refusal};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where something failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The two state records.
    State,
    /// A slot.
    Slot(SlotId),
    /// A file beside the state: the journal, a trust document, the lock.
    File(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State => f.write_str("the state record"),
            Self::Slot(slot) => write!(f, "slot {slot}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A part of a slot's content, as it is named to the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Header, manifest, signatures and page table.
    Prefix,
    /// An index page.
    Page(u32),
    /// A chunk of the payload, and the model and file it belongs to.
    Chunk {
        /// Its number in the bundle.
        number: u64,
        /// `model/file`; empty when no file claims it.
        file: String,
    },
    /// The zeros between two sections.
    Padding,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix => f.write_str("the bundle's head"),
            Self::Page(page) => write!(f, "index page {page}"),
            Self::Chunk { number, file } if file.is_empty() => write!(f, "chunk {number}"),
            Self::Chunk { number, file } => write!(f, "chunk {number} ({file})"),
            Self::Padding => f.write_str("the padding between sections"),
        }
    }
}

/// Why a slot, the state or a file beside it could not be used as asked. The display is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The medium answered with an error.
    #[error("cannot {doing} {place}: {source}; check the medium")]
    Io {
        /// Where.
        place: Place,
        /// A verb: `read`, `write`, `sync`.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// No room. Nothing was changed.
    #[error("there is no room for {place}: free some space or use a larger medium")]
    Full {
        /// For what.
        place: Place,
    },
    /// The medium can only be read.
    #[error("{place} is on a read-only medium: what is installed is served, nothing can be installed")]
    ReadOnly {
        /// What cannot be written.
        place: Place,
    },
    /// The bundle is larger than the slot.
    #[error(
        "the bundle has {needed} bytes and slot {slot} holds {capacity}: make the slot larger or the bundle smaller"
    )]
    TooSmall {
        /// The slot it was meant for.
        slot: SlotId,
        /// The bundle's length.
        needed: u64,
        /// The slot's length.
        capacity: u64,
    },
    /// The state medium cannot hold two records.
    #[error("the state needs 8192 bytes and its medium has {capacity}")]
    StateTooSmall {
        /// Its length.
        capacity: u64,
    },
    /// The bundle's bytes are not what they claim to be.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The state machine has no such step from here.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// These steps belong to an install.
    #[error("only an install marks a slot as being written or staged")]
    OnlyInstall,
    /// An install is running.
    #[error("an install is running: wait for its end or cancel it")]
    Busy,
    /// Both state records are damaged and nothing was recovered yet.
    #[error("both state records are damaged: the slots must be verified before anything else can happen")]
    Lost,
    /// What came back from the medium is not what was written.
    #[error(
        "slot {slot} gave back other bytes than were written at {piece}: the medium is failing or counterfeit"
    )]
    ReadBack {
        /// The slot.
        slot: SlotId,
        /// What was read back.
        piece: Piece,
    },
    /// The state record on the medium is not the one that was written.
    #[error("the state record gave back other bytes than were written: the medium is failing or counterfeit")]
    StateReadBack,
    /// The install is not complete.
    #[error("{pages} index pages and {chunks} chunks are still missing: send the rest of the bundle")]
    Incomplete {
        /// Index pages.
        pages: u32,
        /// Chunks.
        chunks: u64,
    },
    /// A chunk came before its index page.
    #[error("index page {page} must come before its chunks")]
    PageMissing {
        /// The page.
        page: u32,
    },
    /// A piece that is not this bundle's.
    #[error("{piece} is not a part of the bundle that is being installed")]
    Foreign {
        /// What was handed in.
        piece: Piece,
    },
    /// The slot holds no complete bundle.
    #[error("slot {slot} is {status}: it holds no bundle that could be opened")]
    NotThere {
        /// The slot.
        slot: SlotId,
        /// What the record says about it.
        status: SlotStatus,
    },
    /// Bytes that were right once no longer are.
    #[error("slot {slot} has rotted at {piece}: the other slot takes over; install the bundle again")]
    Rot {
        /// The slot.
        slot: SlotId,
        /// What no longer verifies.
        piece: Piece,
    },
    /// The slot holds another bundle than the record says.
    #[error("slot {slot} holds bundle {found}, the state record says {expected}: install the bundle again")]
    OtherBundle {
        /// The slot.
        slot: SlotId,
        /// What the record says.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
    /// The bundle has no such file.
    #[error("the bundle in slot {slot} has no file {file} of a model {model}")]
    NoSuchFile {
        /// The slot.
        slot: SlotId,
        /// The model asked for.
        model: String,
        /// The file asked for.
        file: String,
    },
    /// A trust document older than one that was already used.
    #[error(
        "the {kind} is version {found} and version {kept} was used before: an older one is never accepted"
    )]
    WentBack {
        /// `root` or `revocation list`.
        kind: &'static str,
        /// Its version.
        found: u64,
        /// The newest version seen.
        kept: u64,
    },
    /// A trust document of more bytes than any has.
    #[error("a trust document has {len} bytes, more than {limit}")]
    DocumentTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// Another process uses the same state.
    #[error("{} is used by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl SlotError {
    /// A stable name of the reason, in kebab case.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "medium-failed",
            Self::Full { .. } => "no-room",
            Self::ReadOnly { .. } => "medium-read-only",
            Self::TooSmall { .. } => "slot-too-small",
            Self::StateTooSmall { .. } => "state-too-small",
            Self::Refused(refusal) => refusal.code(),
            Self::Illegal(illegal) => illegal.code(),
            Self::OnlyInstall => "only-install",
            Self::Busy => "install-running",
            Self::Lost => "state-lost",
            Self::ReadBack { .. } => "read-back-differs",
            Self::StateReadBack => "state-read-back-differs",
            Self::Incomplete { .. } => "incomplete",
            Self::PageMissing { .. } => "index-page-missing",
            Self::Foreign { .. } => "foreign-piece",
            Self::NotThere { .. } => "no-bundle",
            Self::Rot { .. } => "rot",
            Self::OtherBundle { .. } => "other-bundle",
            Self::NoSuchFile { .. } => "no-such-file",
            Self::WentBack { .. } => "trust-went-back",
            Self::DocumentTooLong { .. } => "document-too-long",
            Self::InUse { .. } => "in-use",
        }
    }

    /// The medium's own error, sorted by what the operator can do about it.
    pub(crate) fn io(place: Place, doing: &'static str, source: io::Error) -> Self {
        use nix::errno::Errno;
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::Full { place },
            Some(Errno::EROFS) => Self::ReadOnly { place },
            _ => Self::Io { place, doing, source },
        }
    }
}
