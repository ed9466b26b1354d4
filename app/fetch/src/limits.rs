//! Every limit of this room in one place.

use crate::time::Backoff;
use std::time::Duration;

/// Redirects that are followed.
pub const REDIRECTS: usize = 5;
/// The first request asks for this much: header, manifest, signatures and table of nearly every bundle.
pub const FIRST_ASK: u64 = 64 << 10;
/// Longest prefix and piece that is read, whatever a header or a device says; the format keeps both shorter.
pub const LONGEST_PIECE: u64 = 1 << 20;
/// Largest JSON document of a fleet server, in bytes.
pub const LARGEST_DOCUMENT: usize = 1 << 20;

/// How patient a pull is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Resolving a name and connecting, each.
    pub connect: Duration,
    /// Silence while waiting for an answer or for data.
    pub silence: Duration,
    /// The least rate, in bytes per second, over `rate_window` of waiting for data.
    pub least_rate: u64,
    /// Over how long the rate is judged. Only time spent waiting for the server counts.
    pub rate_window: Duration,
    /// Interruptions in a row, without a piece completed between them.
    pub tries: u32,
    /// Starts from the beginning because the content changed.
    pub restarts: u32,
    /// The whole, pauses included.
    pub total_time: Duration,
    /// Received bytes at most: this many times the bundle's length, and 1 MiB.
    pub total_factor: u64,
    /// Missing chunks with at most this many unneeded bytes between them are fetched in one request.
    pub gap: u64,
    /// Requests at most for one index of missing chunks; the gap is doubled until they suffice. hawkBit writes an action status
    /// per Range request and stops at 1000.
    pub requests: usize,
    /// Pauses after interruptions.
    pub backoff: Backoff,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(30),
            least_rate: 512,
            rate_window: Duration::from_secs(60),
            tries: 8,
            restarts: 2,
            total_time: Duration::from_secs(24 * 3600),
            total_factor: 4,
            gap: 64 << 10,
            requests: 500,
            backoff: Backoff::default(),
        }
    }
}
