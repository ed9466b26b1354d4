//! One chunk as one zstd frame, within bounds that are checked before anything is allocated.

use crate::limits::ZSTD_WINDOW_BYTES;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Read;

/// A frame of `raw`, if it is shorter than `raw`.
pub(crate) fn pack(raw: &[u8]) -> Option<Vec<u8>> {
    let packed = compress_to_vec(raw, CompressionLevel::Fastest);
    (packed.len() < raw.len()).then_some(packed)
}

/// Appends the `raw_len` bytes in the frame `stored` to `out`.
///
/// It holds one window and one block (128 KiB) beside `out`, whatever the frame says, and gives up at the first byte too many.
pub(crate) fn unpack(stored: &[u8], raw_len: usize, out: &mut Vec<u8>) -> Result<(), &'static str> {
    const BROKEN: &str = "it is not a zstd frame";
    let mut left = stored;
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW_BYTES);
    decoder.reset(&mut left).map_err(|e| match e {
        ruzstd::decoding::errors::FrameDecoderError::WindowSizeTooBig { .. } => {
            "its window is larger than 256 KiB"
        }
        ruzstd::decoding::errors::FrameDecoderError::DictNotProvided { .. } => "it asks for a dictionary",
        _ => BROKEN,
    })?;
    let start = out.len();
    out.reserve(raw_len);
    loop {
        let done =
            decoder.decode_blocks(&mut left, BlockDecodingStrategy::UptoBlocks(1)).map_err(|_| BROKEN)?;
        let ready = decoder.can_collect();
        if out.len() - start + ready > raw_len {
            return Err("it holds more than the index says");
        }
        (&mut decoder).take(ready as u64).read_to_end(out).map_err(|_| BROKEN)?;
        if done {
            break;
        }
    }
    if out.len() - start != raw_len {
        return Err("it holds less than the index says");
    }
    if !left.is_empty() {
        return Err("bytes follow its frame");
    }
    Ok(())
}
