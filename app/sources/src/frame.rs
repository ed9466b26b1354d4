//! The framed serial protocol: what a microcontroller writes and how it is read back.
//!
//! A frame carries one to 255 steps of one to 32 channels, at most 512 values and 1042 bytes. All numbers are little-endian.
//! README.md has the same table and an example; `reference/inferd_frame.c` is the encoder for a microcontroller, held to [`encode`] byte by byte.
//!
//! | offset | size | field | |
//! |---:|---:|---|---|
//! | 0 | 2 | sync | `A5 5A` |
//! | 2 | 1 | version | 1 |
//! | 3 | 1 | channels `C` | 1 to 32 |
//! | 4 | 1 | steps `N` | samples per channel in this frame: 1 to 255, and `C * N` at most 512 |
//! | 5 | 1 | flags | bit 0: the sender lost samples before this frame; bit 1: a value was clipped; others 0 when written, ignored when read |
//! | 6 | 4 | sequence | number of the frame's first step, counted in steps, wrapping |
//! | 10 | 4 | timestamp | microseconds of the sender's clock at the first step, wrapping |
//! | 14 | 2 | header check | CRC of bytes 0 to 13 |
//! | 16 | `2*C*N` | samples | int16, step by step, in a step channel by channel |
//! | `16+2*C*N` | 2 | check | CRC of all bytes before it |
//!
//! The CRC is CRC-16/IBM-3740 (also called CCITT-FALSE): polynomial `0x1021`, begun with `0xFFFF`, not reflected, nothing
//! added at the end; of `123456789` it is `0x29B1`. It finds every one, two and three wrong bits in messages of this size
//! (Hamming distance 4 up to 32,751 bits, Koopman's tables) and every burst of up to 16 bits. The header has a check of its
//! own, so that a damaged length is noticed at once and never waited for.
//!
//! [`Decoder`] finds frames in bytes; [`Tracker`] judges their sequence and unwraps their time, [`Meter`] the rate they make; [`line::judge`] says what is
//! wrong with a line that carries none; [`legacy`] reads the older form without frames.

mod decoder;
pub mod legacy;
pub mod line;
mod meter;
mod tracker;

pub use decoder::{Counts, Decoder};
pub use meter::Meter;
pub use tracker::{Continuity, Tracked, Tracker};

use crate::MAX_CHANNELS;

/// How a frame begins.
pub const SYNC: [u8; 2] = [0xa5, 0x5a];
/// The version of the protocol that is written and read.
pub const VERSION: u8 = 1;
/// Bytes before the samples.
pub const HEADER_BYTES: usize = 16;
/// Bytes after the samples.
pub const CHECK_BYTES: usize = 2;
/// The most values (steps times channels) in a frame: 16 channels of 16 ms at 2 kHz.
pub const MAX_VALUES: usize = 512;
/// The longest frame in bytes; 11.3 ms at 921,600 baud.
pub const MAX_FRAME: usize = HEADER_BYTES + 2 * MAX_VALUES + CHECK_BYTES;

/// The sender lost samples before this frame: its own buffer ran over.
pub const FLAG_LOST: u8 = 1;
/// A value of this frame was clipped by the converter.
pub const FLAG_CLIPPED: u8 = 2;

/// Begins a CRC.
const CRC_BEGIN: u16 = 0xffff;
const CRC_TABLE: [u16; 256] = crc_table();

const fn crc_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        #[allow(clippy::cast_possible_truncation, reason = "below 256")]
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

/// CRC-16/IBM-3740 of `bytes`.
#[must_use]
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(CRC_BEGIN, |crc, &byte| {
        let [high, low] = crc.to_be_bytes();
        u16::from_be_bytes([low, 0]) ^ CRC_TABLE[usize::from(high ^ byte)]
    })
}

/// What is said about a frame's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// Values per step.
    pub channels: u8,
    /// Samples per channel.
    pub steps: u8,
    /// [`FLAG_LOST`], [`FLAG_CLIPPED`].
    pub flags: u8,
    /// Number of the first step, wrapping.
    pub sequence: u32,
    /// The sender's clock at the first step in microseconds, wrapping.
    pub timestamp_us: u32,
}

impl Header {
    /// Values in the frame.
    #[must_use]
    pub const fn values(&self) -> usize {
        self.channels as usize * self.steps as usize
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub const fn frame_bytes(&self) -> usize {
        HEADER_BYTES + 2 * self.values() + CHECK_BYTES
    }

    /// Checks the numbers of channels and steps.
    ///
    /// # Errors
    /// [`FrameError`] names the number that cannot be.
    pub fn check(&self) -> Result<(), FrameError> {
        if self.channels == 0 || usize::from(self.channels) > MAX_CHANNELS {
            return Err(FrameError::Channels(self.channels));
        }
        if self.steps == 0 || self.values() > MAX_VALUES {
            return Err(FrameError::Steps { steps: self.steps, channels: self.channels });
        }
        Ok(())
    }
}

/// Why something cannot be a frame; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The number of channels.
    #[error("a frame has 1 to 32 channels, not {0}")]
    Channels(u8),
    /// The number of steps.
    #[error(
        "a frame has at least 1 step and at most 512 values; {steps} steps of {channels} channels are not that"
    )]
    Steps {
        /// Samples per channel.
        steps: u8,
        /// Values per step.
        channels: u8,
    },
    /// The samples do not fit the header.
    #[error("the header announces {expected} values and there are {found}")]
    Values {
        /// As the header says.
        expected: usize,
        /// As they are.
        found: usize,
    },
    /// The room for the frame is too small.
    #[error("the frame has {needed} bytes and there is room for {room}")]
    Room {
        /// Bytes of the frame.
        needed: usize,
        /// Bytes of the buffer.
        room: usize,
    },
}

/// Writes a frame to the beginning of `out` and says how long it is.
///
/// # Errors
/// [`FrameError`] if the numbers do not fit each other or the frame does not fit `out`; nothing was written then.
pub fn encode(header: &Header, samples: &[i16], out: &mut [u8]) -> Result<usize, FrameError> {
    header.check()?;
    if samples.len() != header.values() {
        return Err(FrameError::Values { expected: header.values(), found: samples.len() });
    }
    let needed = header.frame_bytes();
    let room = out.len();
    let Some(out) = out.get_mut(..needed) else { return Err(FrameError::Room { needed, room }) };
    out[..2].copy_from_slice(&SYNC);
    out[2] = VERSION;
    out[3] = header.channels;
    out[4] = header.steps;
    out[5] = header.flags;
    out[6..10].copy_from_slice(&header.sequence.to_le_bytes());
    out[10..14].copy_from_slice(&header.timestamp_us.to_le_bytes());
    let crc = crc16(&out[..14]);
    out[14..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    for (to, value) in out[HEADER_BYTES..].chunks_exact_mut(2).zip(samples) {
        to.copy_from_slice(&value.to_le_bytes());
    }
    let end = needed - CHECK_BYTES;
    let crc = crc16(&out[..end]);
    out[end..].copy_from_slice(&crc.to_le_bytes());
    Ok(needed)
}

/// A frame whose checks fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What is said about the samples.
    pub header: Header,
    /// The samples as they came: `2 * channels * steps` bytes.
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The values step by step, in a step channel by channel. The i-th step was measured `Rate::offset(i)` after the first
    /// ([`crate::pace::Rate`]).
    pub fn values(&self) -> impl Iterator<Item = i16> + use<'a> {
        self.bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_that_of_the_catalogue() {
        assert_eq!(crc16(b"123456789"), 0x29b1);
        assert_eq!(crc16(b""), 0xffff);
        assert_eq!(crc16(b"A"), 0xb915);
        assert_eq!(crc16(&[0; 4]), 0x84c0);
    }

    /// The example of README.md.
    #[test]
    fn a_frame_has_these_bytes() {
        let header = Header {
            channels: 2,
            steps: 2,
            flags: FLAG_LOST,
            sequence: 0x0102_0304,
            timestamp_us: 0x0a0b_0c0d,
        };
        let mut out = [0; 26];
        assert_eq!(encode(&header, &[1, -1, 0x1234, i16::MIN], &mut out), Ok(26));
        let text: Vec<String> = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(text.join(" "), EXAMPLE);
        assert!(include_str!("../README.md").contains(EXAMPLE), "README.md shows this frame");
    }

    const EXAMPLE: &str = "a5 5a 01 02 02 01 04 03 02 01 0d 0c 0b 0a 21 79 01 00 ff ff 34 12 00 80 4f 9a";

    #[test]
    fn what_does_not_fit_is_not_written() {
        let good = Header { channels: 4, steps: 2, flags: 0, sequence: 0, timestamp_us: 0 };
        let mut out = [7; MAX_FRAME];
        let none = Header { channels: 0, ..good };
        let many = Header { channels: 33, ..good };
        let long = Header { channels: 32, steps: 17, ..good };
        let still = Header { steps: 0, ..good };
        assert_eq!(encode(&none, &[], &mut out), Err(FrameError::Channels(0)));
        assert_eq!(encode(&many, &[0; 66], &mut out), Err(FrameError::Channels(33)));
        assert_eq!(encode(&long, &[0; 544], &mut out), Err(FrameError::Steps { steps: 17, channels: 32 }));
        assert_eq!(encode(&still, &[], &mut out), Err(FrameError::Steps { steps: 0, channels: 4 }));
        assert_eq!(encode(&good, &[0; 7], &mut out), Err(FrameError::Values { expected: 8, found: 7 }));
        assert_eq!(encode(&good, &[0; 8], &mut out[..33]), Err(FrameError::Room { needed: 34, room: 33 }));
        assert_eq!(out, [7; MAX_FRAME]);
    }
}
