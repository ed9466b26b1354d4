//! Ways in that the device starts itself: pull by URL, USB stick, fleet server.
//!
//! ```text
//! pull      GET over plain HTTP: ranges, resume, delta; in order where a server knows no ranges
//! usb       *.imb in the root of a mounted stick, newest first, with a loop guard
//! ddi       Eclipse hawkBit's Direct Device Integration: poll, download, install, feedback
//! ```
//!
//! The room owns connections, patience and the bookkeeping of what was tried; it knows where bytes come from and not what they
//! mean. What judges and stores them is behind [`Device`] and [`Target`]. It promises that a broken line costs at most the piece
//! that was under way, that bytes of two documents are never mixed unnoticed, that no server, proxy or stick can make it fetch,
//! wait or store without a bound, and that every ending has a code and a sentence. It trusts nothing it fetches, reads no wall
//! clock and speaks no TLS: a bundle proves itself by its signatures.

#![forbid(unsafe_code)]

pub mod ddi;
mod error;
mod file;
pub mod header;
mod http;
mod limits;
mod pull;
mod source;
mod target;
mod time;
mod url;
pub mod usb;

pub use error::FetchError;
pub use limits::Limits;
pub use pull::{Fetched, Report, Wish, pull};
pub use target::{About, Device, HEADER, Missing, Offer, Piece, Refused, Standing, Target, Way};
pub use time::{Backoff, Clock, SystemClock};
pub use url::Url;
