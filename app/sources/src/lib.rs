//! Live input: from a sensor's bytes, a recording or a generator to prepared windows of samples.
//!
//! All but `live` is pure: nothing opens a port or a file, starts a thread or reads a clock. Bytes, samples and the time are
//! handed in, so every behaviour can be tested to the microsecond, and whoever owns the port decides where time comes from.
//!
//! * [`frame`]: our framed serial protocol: encoder, decoder that finds its way after garbage, sequence numbers and time
//!   unwrapped, a verdict on the line (wrong baud rate told from noise), and the legacy form without frames.
//! * [`window`]: samples with sequence numbers into a fixed ring, windows of a length and a hop out of it; never across a
//!   gap, never a stale one, the oldest dropped and counted when nobody takes them.
//! * [`prepare`]: what a model was trained on: band-pass and notch filters, a fixed scaler or a z-score per window.
//! * [`recording`]: MAT v5, NPY and CSV, read into bounded memory.
//! * [`synthetic`]: seeded EMG with gestures, for a device without a sensor, for tests and for training.
//! * [`motion`]: a seeded nine-axis sensor on an animal's collar during twelve motions, for the same.
//! * [`pace`]: a recording at its own speed, as fast as it can be taken, once or for ever.
//! * [`session`]: the newest samples of a nine-axis sensor that somebody sends, windows of them, two of them compared.
//! * [`synchrony`]: how alike two streams are, and which one lags.
//! * `live` (feature): sources that run, with what the others leave out: ports, files, threads and the clock.
//!
//! Every buffer of a live source has a size that is known when it is made; a recording takes at most its limit. No input
//! can cause a panic.

#![forbid(unsafe_code)]

pub mod frame;
#[cfg(feature = "live")]
pub mod live;
pub mod motion;
pub mod pace;
pub mod prepare;
pub mod random;
pub mod recording;
pub mod session;
pub mod synchrony;
pub mod synthetic;
mod time;
pub mod window;

pub use time::Micros;

/// The most channels of any source: two 16-channel amplifiers.
pub const MAX_CHANNELS: usize = 32;
