//! A bundle on its way into the inactive slot.

use crate::verdict::{Outcome, Verdict};
use serde::Serialize;

/// The way a bundle comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Sent to this device.
    Push,
    /// Fetched by this device.
    Pull,
    /// From a stick.
    Usb,
    /// On behalf of a fleet server.
    Hawkbit,
}

impl Way {
    /// Its name in answers and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
            Self::Usb => "usb",
            Self::Hawkbit => "hawkbit",
        }
    }
}

/// Why no transfer can begin now. Nothing is wrong with the bundle; try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The daemon still decides what to serve.
    #[error("the device is starting; try again when /readyz says so")]
    Starting,
    /// One at a time.
    #[error("another bundle is being transferred ({})", .0.name())]
    Transfer(Way),
    /// The free slot holds the bundle on trial.
    #[error("a bundle is on trial; wait until it is committed or returned")]
    Trial,
    /// The daemon ends.
    #[error("the device is stopping")]
    Stopping,
}

impl Busy {
    /// Why, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Starting => "busy-starting",
            Self::Transfer(_) => "busy-transfer",
            Self::Trial => "busy-trial",
            Self::Stopping => "busy-stopping",
        }
    }
}

/// Why a transfer ended.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InstallError {
    /// A gate refused it; sending it again changes nothing.
    #[error("{}", .0.sentence)]
    Refused(Box<Verdict>),
    /// The transfer ended before the bundle did, or bytes arrived damaged; what is right stays and is not asked for again.
    #[error("{}", .0.sentence)]
    Interrupted(Box<Verdict>),
    /// The medium failed.
    #[error("{}", .0.sentence)]
    Storage(Box<Verdict>),
    /// The caller did not keep to the order.
    #[error("{0}")]
    Misused(&'static str),
}

impl InstallError {
    /// Why, for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(v) | Self::Interrupted(v) | Self::Storage(v) => &v.code,
            Self::Misused(_) => "misused",
        }
    }

    /// The verdict it left.
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Refused(v) | Self::Interrupted(v) | Self::Storage(v) => Some(v),
            Self::Misused(_) => None,
        }
    }

    /// Whether the same bytes can succeed later.
    #[must_use]
    pub fn retry(&self) -> bool {
        !matches!(self, Self::Refused(v) if v.outcome == Outcome::Refuse)
    }
}

/// A bundle that is staged; its trial begins now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accepted {
    /// The bundle's id.
    pub bundle: String,
    /// Its product.
    pub product: String,
    /// Its version.
    pub version: u64,
    /// `A` or `B`.
    pub slot: char,
    /// The number of the verdict that says so: everything later about this bundle has a higher one.
    pub verdict: u64,
    /// Where the bytes came from.
    pub saved: Saved,
    /// Nothing was done: these very bytes are committed and serve.
    pub already: bool,
}

/// Where the bytes of a bundle came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// Bytes of the bundle.
    pub total: u64,
    /// Came from outside.
    pub received: u64,
    /// Taken from a slot of this device.
    pub local: u64,
    /// Were there from an interrupted transfer.
    pub resumed: u64,
}

/// An interrupted transfer that can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resumable {
    /// The bundle's id.
    pub bundle: String,
    /// Its product.
    pub product: String,
    /// Its version.
    pub version: u64,
    /// Bytes of the bundle.
    pub total: u64,
    /// A sender may go on from here (or from any byte before it).
    pub offset: u64,
}

/// A piece of the bundle that only the source has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// The chunk's number.
    pub chunk: u64,
    /// Where it begins in the bundle, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
}

/// A transfer in order. Dropping it interrupts: what is on the medium stays.
pub struct Upload {
    _way: Way,
}

impl Upload {
    /// The next bytes, of any length. Returns when they are verified, on the medium and read back, as far as complete
    /// chunks go; that is the flow control.
    ///
    /// # Errors
    /// [`InstallError`]; the transfer is over then. The gates before the payload refuse as soon as the prefix is complete.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), InstallError> {
        let _ = bytes;
        Err(InstallError::Misused("not built yet"))
    }

    /// The sender says that was all.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] when something is missing.
    pub async fn finish(self) -> Result<Accepted, InstallError> {
        Err(InstallError::Misused("not built yet"))
    }
}

/// A transfer by pieces in any order. Dropping it interrupts: what is on the medium stays.
///
/// Read 4096 bytes, ask [`Fetch::prefix_len`], read that many from the bundle's begin and give them to [`Fetch::prefix`]; then
/// for each page read [`Fetch::page_range`], give it to [`Fetch::page`], and fetch and give what it asks for to
/// [`Fetch::chunk`].
pub struct Fetch {
    _way: Way,
}

impl Fetch {
    /// How many bytes [`Fetch::prefix`] needs, from the bundle's first 4096. Bounded by the format (about 1 MiB).
    ///
    /// # Errors
    /// [`InstallError::Refused`] when that is no bundle.
    pub async fn prefix_len(&mut self, header: &[u8]) -> Result<u64, InstallError> {
        let _ = header;
        Err(InstallError::Misused("not built yet"))
    }

    /// The prefix; the gates before the payload decide.
    ///
    /// # Errors
    /// [`InstallError::Refused`].
    pub async fn prefix(&mut self, bytes: Vec<u8>) -> Result<(), InstallError> {
        drop(bytes);
        Err(InstallError::Misused("not built yet"))
    }

    /// Bytes of the whole bundle; 0 before the prefix.
    #[must_use]
    pub fn total(&self) -> u64 {
        0
    }

    /// Index pages of the bundle; 0 before the prefix.
    #[must_use]
    pub fn pages(&self) -> u32 {
        0
    }

    /// Where index page `page` lies in the bundle.
    #[must_use]
    pub fn page_range(&self, page: u32) -> std::ops::Range<u64> {
        let _ = page;
        0..0
    }

    /// An index page: takes over what an interrupted transfer left and what either slot has, and says what is still wanted,
    /// in order.
    ///
    /// # Errors
    /// [`InstallError`].
    pub async fn page(&mut self, page: u32, bytes: Vec<u8>) -> Result<Vec<Wanted>, InstallError> {
        drop((page, bytes));
        Err(InstallError::Misused("not built yet"))
    }

    /// A wanted chunk's bytes as they lie in the bundle. One that does not verify is an [`InstallError::Interrupted`]
    /// but the transfer goes on: fetch it again.
    ///
    /// # Errors
    /// [`InstallError`].
    pub async fn chunk(&mut self, chunk: u64, bytes: Vec<u8>) -> Result<(), InstallError> {
        drop((chunk, bytes));
        Err(InstallError::Misused("not built yet"))
    }

    /// Where the bytes came from so far.
    #[must_use]
    pub fn saved(&self) -> Saved {
        Saved::default()
    }

    /// Everything was given.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] when something is missing.
    pub async fn finish(self) -> Result<Accepted, InstallError> {
        Err(InstallError::Misused("not built yet"))
    }
}
