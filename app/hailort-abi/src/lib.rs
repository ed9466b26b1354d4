//! The C interface of HailoRT 4.21 to 4.23, the last releases for Hailo-8: layouts, status codes, functions.
//!
//! Only what an engine host calls. The three releases have byte-identical headers; other releases lay structures out differently
//! (4.19 to 4.20 and 4.23 to 5.0 change sizes), so [`Library::open`] asks the version first and refuses every other one. Each
//! structure is declared with the sizes and offsets measured from the header, checked when this crate compiles; a test compares the
//! same numbers with a header where one is at hand (`INFERD_HAILORT_HEADER`).
//!
//! It promises nothing about what the functions do: they are unsafe to call, and `hailort.h` of 4.23.0 is their documentation.
//! The crate hailort-sys 0.1.1 is not used: 31 of its 96 functions exist in no release, two take their handles in the wrong order,
//! and its configuration structure is 20 KiB smaller than the library's.

mod library;
mod session;
mod status;

pub use library::{Functions, Library, LibraryError, Version};
pub use session::{
    Chip, Elements, Events, Failure, Hef, Identity, NOTIFICATIONS, Network, Owner, StreamInfo, Streams,
};
pub use status::{Class, Status};
pub mod types;
