//! Why a card was not flashed: what programs read (a code), what people read, and whether the card was touched.

use std::{io, path::PathBuf};

/// Every way it can end badly.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// The image, or what lies beside it, cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// The packed image is no zstd, or ends early.
    #[error("{path} cannot be unpacked: {why}; download it again")]
    Packed { path: PathBuf, why: String },
    /// It is no image of a disk.
    #[error("{path} is no image of a disk: {why}")]
    NoImage { path: PathBuf, why: String },
    /// The block map is not one, or not this image's.
    #[error("{path} is no block map of this image: {why}; download both again")]
    Bmap { path: PathBuf, why: String },
    /// Bytes of the image are not what the block map says.
    #[error(
        "{path} and its block map {map} differ from byte {at} on: one of them was damaged or is of another image; download both again"
    )]
    Differ { path: PathBuf, map: PathBuf, at: u64 },
    /// The image is not the one that its checksum is of.
    #[error("{path} is not what {by} says it is: it was damaged or changed; download it again")]
    Checksum { path: PathBuf, by: String },
    /// What lies beside the image to say what it is says nothing.
    #[error("{path} cannot be used: {why}; download it again, or take it away")]
    Beside { path: PathBuf, why: String },
    /// The image became another one while it was written.
    #[error("{path} changed while it was written; flash the card again with an image that nobody changes")]
    Changed { path: PathBuf },
    /// The signature is wrong, or there is none where one was asked for.
    #[error("{why}")]
    Signature { why: String },
    /// Another board's image.
    #[error("{path} is an image for {has}, not for {wants}")]
    Board { path: PathBuf, has: String, wants: String },
    /// Which board's image it is, nobody says.
    #[error(
        "whether {path} is an image for {wants} nobody says: there is no JSON beside it that names a board"
    )]
    NoBoard { path: PathBuf, wants: String },
    /// Nothing there to write to.
    #[error(
        "no removable medium was found; put a card into the reader, or name a device (`inferctl flash --list` shows what there is)"
    )]
    NoMedium,
    /// Several, and nobody who chooses.
    #[error("{0} removable media are here; name the one that is meant: {1}")]
    Several(usize, String),
    /// Nobody confirmed.
    #[error("{0}")]
    NotConfirmed(String),
    /// This device is never written to.
    #[error("{device} is not written to: {why}")]
    Refused { device: PathBuf, code: &'static str, why: String },
    /// The card is too small.
    #[error("{device} has {has} bytes, the image needs {needs}: take a larger card")]
    TooSmall { device: PathBuf, has: u64, needs: u64 },
    /// It became something else between the question and the write.
    #[error("{device} is not the device any more that was confirmed: {why}; begin again")]
    Swapped { device: PathBuf, why: String },
    /// It cannot be opened.
    #[error("{device} cannot be opened for writing: {source}{hint}")]
    Open { device: PathBuf, source: io::Error, hint: &'static str },
    /// It does not keep what is written to it.
    #[error("{device} is counterfeit or broken: {why}; it cannot be used, take another card")]
    Counterfeit { device: PathBuf, why: String },
    /// It went away.
    #[error("{device} failed at byte {at} while {doing} ({source}): {}", to_do(source))]
    Medium { device: PathBuf, at: u64, doing: &'static str, source: io::Error },
    /// What was read back differs.
    #[error(
        "{device} holds other bytes than were written, from byte {at} on: it is worn out or the reader is; flash it again with another \
         card or reader"
    )]
    Verify { device: PathBuf, at: u64 },
    /// Somebody ended it.
    #[error("{signal} came while the card was written")]
    Interrupted { signal: &'static str },
    /// The configuration was not put on it.
    #[error("{path} was not put on the card: {why}")]
    Provision { path: PathBuf, why: String },
}

/// What to do about a medium that failed. A file of a card's size fails by itself and with its file system.
fn to_do(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => "the file system it is on is full: make room there and flash it again",
        _ => {
            "it was pulled out, or is broken. Put it back and flash it again; when it fails at another place, try another reader, at the \
             same place, take another card"
        }
    }
}

impl FlashError {
    /// For programs: does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "unreadable",
            Self::Packed { .. } => "not-zstd",
            Self::NoImage { .. } => "not-an-image",
            Self::Bmap { .. } | Self::Differ { .. } => "bmap",
            Self::Checksum { .. } | Self::Beside { .. } => "checksum",
            Self::Changed { .. } => "image-changed",
            Self::Signature { .. } => "signature",
            Self::Board { .. } | Self::NoBoard { .. } => "wrong-board",
            Self::NoMedium => "no-medium",
            Self::Several(..) => "several-media",
            Self::NotConfirmed(_) => "not-confirmed",
            Self::Refused { code, .. } => code,
            Self::TooSmall { .. } => "too-small",
            Self::Swapped { .. } => "swapped",
            Self::Open { .. } => "cannot-open",
            Self::Counterfeit { .. } => "counterfeit",
            Self::Medium { .. } => "medium-failed",
            Self::Verify { .. } => "verify",
            Self::Interrupted { .. } => "interrupted",
            Self::Provision { .. } => "provision",
        }
    }
}
