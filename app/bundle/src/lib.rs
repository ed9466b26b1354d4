//! The signed bundle (`.imb`) that models are shipped in.
//!
//! The room owns the format and everything that decides about it without touching a device:
//! * [`Bundle`], [`IndexPage`], [`Chunk`]: reading a bundle at random, each piece checked against the piece before;
//! * [`Stream`]: reading it in order, from any transport, in bounded memory;
//! * [`Trust`], [`Root`], [`Permit`]: whom a device believes, and [`keys`]: signing;
//! * [`build`]: writing a bundle, the same bytes for the same input;
//! * [`delta`]: which parts to fetch when some chunks are here already.
//!
//! It promises that nothing unverified is handed on, that memory does not grow with the bundle (16 MiB at most), that no
//! decision needs a clock, and that no input makes it panic. A [`Refusal`] says why not. It never opens a socket or a slot;
//! only [`build`] reads files. `app/bundle/README.md` is the specification: precise enough to write another reader.

#![forbid(unsafe_code)]

mod bundle;
mod cbor;
mod digest;
mod header;
mod manifest;
mod refusal;
mod stream;
mod trust;
mod zstd;

pub mod build;
pub mod delta;
pub mod keys;
pub mod limits;

pub use bundle::{Bundle, Chunk, IndexCheck, IndexPage};
pub use digest::{Digest, DigestError};
pub use keys::{KeyError, PublicKey, SigningKey};
pub use manifest::{
    BOOT, BOOTS, BundleManifest, FileEntry, IndexEntry, Kind, ModelEntry, Policy, ProbationPolicy, ROOTFS,
    SYSTEM, ShadowPolicy, System,
};
pub use refusal::Refusal;
pub use stream::{Place, Sink, Stream};
pub use trust::{
    Authorized, Envelope, Permit, Revocations, Role, RoleError, RoleKeys, Root, RootKey, Signature, Trust,
};

/// The first bytes of a bundle.
pub const MAGIC: [u8; 8] = *b"INFERDMB";
/// The format this program reads and writes.
pub const FORMAT: u32 = 1;
/// How a bundle's file name ends.
pub const EXTENSION: &str = "imb";
