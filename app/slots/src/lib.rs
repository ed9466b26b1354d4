//! Two slots on raw media, one bundle in each, and the record that says which one serves.
//!
//! The room owns what survives a power cut:
//! * [`Medium`], [`FileMedium`]: a block device or a file, with direct reads and single durable writes;
//! * [`State`], [`Step`]: what is in the slots and what is being done with it, [`record`] how that lies on the medium;
//! * [`Store`]: both slots and the state; [`Install`] writes one, [`OpenSlot`] and [`FileReader`] read one, [`Scrub`] looks for rot;
//! * [`LocalChunks`]: what need not be fetched;
//! * [`Journal`], [`Documents`]: verdicts and trust documents, in files that are replaced whole.
//!
//! It promises that a power cut at any instant leaves the active slot untouched and the state before or after the step that
//! was being taken, that a slot which was not written completely is never taken for complete, that no byte leaves a slot
//! unverified, and that nothing in the state that only rises ever falls. `tests/crash.rs` enumerates crash states to prove
//! it. It decides nothing: which bundle may be installed and which one serves is for its caller. All calls block; there are no
//! threads, no sockets, no clock. README.md has the state machine and the order of writes with its reasons.

#![forbid(unsafe_code)]

mod documents;
mod error;
mod files;
pub mod frame;
mod install;
mod journal;
mod local;
mod medium;
mod open;
pub mod record;
mod scrub;
mod state;
mod store;

pub use documents::{Documents, Loaded, MAX_DOCUMENT, MAX_ROOTS, Versioned};
pub use error::{Piece, Place, SlotError};
pub use files::{read_regular, replace};
pub use install::{Install, Progress, Staged};
pub use journal::{Entry, Journal, MAX_ENTRIES, MAX_ENTRY, line, parse};
pub use local::{LocalChunks, MAX_LOCAL_CHUNKS};
pub use medium::{BLOCK, FileMedium, Medium};
pub use open::{FileReader, OpenSlot};
pub use scrub::{Scrub, Scrubbed};
pub use state::{Illegal, MAX_PRODUCTS, MAX_TEXT, Phase, SlotId, SlotState, SlotStatus, State, Step, Trial};
pub use store::{Config, Found, Media, Recovered, STATE_BYTES, Store};
