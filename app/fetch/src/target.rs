//! What the ways in need of the device: who judges a bundle, stores it, and says what became of it.
//!
//! A way in knows where bytes come from and nothing of what they mean. [`Device`] and [`Target`] are the whole of what it asks;
//! the update engine implements them, tests use a double.

use inferd_bundle::{Bundle, Refusal};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;

/// Length of the header of a bundle, in bytes.
pub const HEADER: usize = inferd_bundle::limits::HEADER_BYTES;

/// What a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The bundle: a gate judged it, the same bundle again changes nothing.
    Bundle,
    /// Bytes that are not what the index says: damaged on the way, or of another document.
    Bytes,
    /// The device: another transfer, a trial, the medium. Later it may be taken.
    Device,
}

/// The device says no, with the verdict's code and its sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refused {
    /// Kebab-case, stable.
    pub code: Cow<'static, str>,
    /// For the operator.
    pub sentence: String,
    /// What it is about.
    pub about: About,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { code: Cow::Borrowed(refusal.code()), sentence: refusal.to_string(), about: About::Bundle }
    }
}

/// What a bundle's prefix says, once the device took it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The bundle id, 64 hex digits.
    pub id: String,
    /// What is updated.
    pub product: String,
    /// The anti-rollback number.
    pub version: u64,
    /// Length of the bundle in bytes.
    pub total: u64,
    /// Where each index page is, in bytes from the bundle's start; in order.
    pub pages: Vec<Range<u64>>,
}

/// A chunk as it is stored in the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its number in the index.
    pub number: u64,
    /// Where it begins, in bytes from the bundle's start.
    pub offset: u64,
    /// How many bytes it has there.
    pub len: u32,
}

impl Offer {
    /// What a bundle offers.
    #[must_use]
    pub fn of(bundle: &Bundle) -> Self {
        let manifest = bundle.manifest();
        Self {
            id: bundle.id().to_string(),
            product: manifest.product.to_string(),
            version: manifest.version,
            total: bundle.total_len(),
            pages: (0..bundle.pages()).map(|page| bundle.page_range(page)).collect(),
        }
    }
}

impl Piece {
    /// Its place in the bundle.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }
}

/// What an index page asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Chunks the device needs, in order of their place.
    pub pieces: Vec<Piece>,
    /// Bytes of the page's chunks that it already holds, in either slot.
    pub reused: u64,
}

/// One install, from the first byte to the end. Dropping it leaves what is stored, for the next attempt to find.
///
/// Calls come in this order: [`Target::measure`], [`Target::begin`], every page once, missing chunks in order of their place,
/// [`Target::finish`].
pub trait Target: Send {
    /// How many bytes the prefix has, by the header.
    fn measure(&mut self, header: &[u8; HEADER]) -> impl Future<Output = Result<u64, Refused>> + Send;
    /// The whole prefix: every gate that needs no payload judges here.
    fn begin(&mut self, prefix: Vec<u8>) -> impl Future<Output = Result<Offer, Refused>> + Send;
    /// An index page; answers which of its chunks are needed from outside.
    fn page(&mut self, number: u32, bytes: Vec<u8>) -> impl Future<Output = Result<Missing, Refused>> + Send;
    /// The stored bytes of a missing chunk.
    fn chunk(&mut self, piece: Piece, stored: Vec<u8>) -> impl Future<Output = Result<(), Refused>> + Send;
    /// Everything was given: the bundle is staged and its trial begins. Returns when it has begun, not when it is over.
    fn finish(self) -> impl Future<Output = Result<(), Refused>> + Send;
}

/// Where a bundle stands on this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was decided about it.
    Unknown,
    /// Being judged: gates, shadow or probation. The text says where it is.
    Trial(String),
    /// It serves, committed.
    Committed,
    /// It was refused before it served.
    Refused(Refused),
    /// It served, or was on trial, and was taken back.
    Returned(Refused),
}

/// How a bundle came; the device writes it into its verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Pulled from an address somebody gave.
    Pull,
    /// From a USB stick.
    Usb,
    /// From a fleet server.
    Hawkbit,
}

/// The device as the ways in see it.
pub trait Device: Send + Sync + 'static {
    /// Its installs.
    type Target: Target;
    /// Begins an install. Refused ([`About::Device`]) while another runs.
    fn open(&self, way: Way) -> impl Future<Output = Result<Self::Target, Refused>> + Send;
    /// The number of the last verdict: what is decided later has a higher one, across restarts.
    fn mark(&self) -> u64;
    /// Where a bundle stands. Refusals and returns with a number up to `after` do not count: they were of an earlier time.
    fn standing(&self, id: &str, after: u64) -> Standing;
    /// What a fleet server may select devices by: board, versions, device id.
    fn attributes(&self) -> BTreeMap<String, String>;
}
