//! The container: what a HEF is to the real library. Not Hailo's format, and not like it: `INFD` where a HEF has its own magic.
//!
//! ```text
//! "INFD" | version u32 | CRC-32 of the rest u32 | length of the page u32 | page (JSON) | network (ONNX)      little-endian
//! ```

use hailort_abi::types::{FORMAT_ORDER_NC, FORMAT_ORDER_NHWC, FORMAT_TYPE_UINT8};
use inferd_model::DType;
use serde::{Deserialize, Serialize};

/// The first four bytes.
pub const MAGIC: &[u8; 4] = b"INFD";
const VERSION: u32 = 1;
const HEAD: usize = 16;
/// The real library calls anything shorter than this a damaged file: the header of a HEF.
const SHORTEST: usize = 56;

/// Why there is no container in some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is cut short, or a byte is not what it was.
    Corrupted,
    /// It is something else.
    NotSupported,
}

/// The page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// The network's name; streams are called `NETWORK/NAME`.
    pub network: String,
    /// `hailo8` or `hailo8l`.
    pub architecture: String,
    /// Its inputs.
    pub inputs: Vec<Stream>,
    /// Its outputs.
    pub outputs: Vec<Stream>,
}

/// A stream, and the tensor of the network behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stream {
    /// Its name in the container.
    pub name: String,
    /// Height, width, features.
    pub shape: [u32; 3],
    /// The zero point.
    pub zp: f32,
    /// The step.
    pub scale: f32,
    /// The name in the network.
    pub tensor: String,
    /// The shape in the network.
    pub dims: Vec<u32>,
    /// The type in the network: FP32 or UINT8.
    pub dtype: DType,
    /// Whether the network has the features first.
    pub features_first: bool,
    /// The channel of the chip, where several streams share one; else it has the stream's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Type and order that are told, where they are not UINT8 and what follows from the shape. Such a stream can be read and not computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<[u32; 2]>,
}

impl Stream {
    /// `FORMAT_TYPE_*` and `FORMAT_ORDER_*`.
    #[must_use]
    pub fn format(&self) -> [u32; 2] {
        let order =
            if self.shape[0] == 1 && self.shape[1] == 1 { FORMAT_ORDER_NC } else { FORMAT_ORDER_NHWC };
        self.format.unwrap_or([FORMAT_TYPE_UINT8, order])
    }

    /// The channel of the chip.
    #[must_use]
    pub fn channel(&self) -> &str {
        self.channel.as_deref().unwrap_or(&self.name)
    }

    /// Elements of a frame.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().map(|&d| d as usize).product()
    }

    /// A number as the chip has it.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturated before
    pub fn quantise(&self, x: f32) -> u8 {
        (x / self.scale + self.zp).round().clamp(0.0, 255.0) as u8
    }

    /// A number of the chip.
    #[must_use]
    pub fn dequantise(&self, q: u8) -> f32 {
        (f32::from(q) - self.zp) * self.scale
    }

    /// For each element of a frame (features last), where it lies in the network's tensor.
    #[must_use]
    pub fn places(&self) -> Vec<usize> {
        let [h, w, f] = self.shape.map(|d| d as usize);
        let at = |y: usize, x: usize, c: usize| match self.features_first {
            true => (c * h + y) * w + x,
            false => (y * w + x) * f + c,
        };
        let mut places = Vec::with_capacity(h * w * f);
        for y in 0..h {
            for x in 0..w {
                places.extend((0..f).map(|c| at(y, x, c)));
            }
        }
        places
    }
}

/// Puts a container together.
#[must_use]
pub fn pack(page: &Page, onnx: &[u8]) -> Vec<u8> {
    let page = serde_json::to_vec(page).expect("a page has a JSON form");
    let mut rest = u32::try_from(page.len()).expect("a page is short").to_le_bytes().to_vec();
    rest.extend(page);
    rest.extend(onnx);
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(crc32fast::hash(&rest).to_le_bytes());
    out.extend(rest);
    out
}

/// Takes one apart.
///
/// # Errors
/// [`Bad`], as the real library tells damaged files from foreign ones.
pub fn unpack(bytes: &[u8]) -> Result<(Page, &[u8]), Bad> {
    if bytes.len() < SHORTEST {
        return Err(Bad::Corrupted);
    }
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if !bytes.starts_with(MAGIC) || number(4) != VERSION {
        return Err(Bad::NotSupported);
    }
    if crc32fast::hash(&bytes[12..]) != number(8) {
        return Err(Bad::Corrupted);
    }
    let end = HEAD + number(12) as usize;
    let page =
        bytes.get(HEAD..end).and_then(|page| serde_json::from_slice(page).ok()).ok_or(Bad::Corrupted)?;
    Ok((page, &bytes[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let stream = Stream {
            name: "net/in".into(),
            shape: [2, 3, 4],
            zp: 128.0,
            scale: 0.5,
            tensor: "x".into(),
            dims: vec![1, 4, 2, 3],
            dtype: DType::Fp32,
            features_first: true,
            channel: None,
            format: None,
        };
        Page {
            network: "net".into(),
            architecture: "hailo8".into(),
            inputs: vec![stream.clone()],
            outputs: vec![stream],
        }
    }

    #[test]
    fn damage_is_told_from_what_is_something_else() {
        let good = pack(&page(), b"onnx");
        assert_eq!(unpack(&good), Ok((page(), &b"onnx"[..])));
        for length in 0..good.len() {
            assert_eq!(unpack(&good[..length]), Err(Bad::Corrupted), "{length}");
        }
        for at in 8..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(unpack(&bad), Err(Bad::Corrupted), "{at}");
        }
        assert_eq!(unpack(&[0; 100]), Err(Bad::NotSupported));
    }

    #[test]
    fn quantisation_is_that_of_the_header() {
        let s = &page().inputs[0];
        assert_eq!((s.quantise(0.0), s.quantise(1.0), s.quantise(1e9), s.quantise(-1e9)), (128, 130, 255, 0));
        assert_eq!((s.dequantise(128), s.dequantise(0)), (0.0, -64.0));
        let places = s.places();
        assert_eq!(places[..5], [0, 6, 12, 18, 1], "features last in the frame, first in the network");
    }
}
