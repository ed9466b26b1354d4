//! Content codings of the protocol: gzip and deflate (the zlib format of RFC 1950, as HTTP means it), both ways.

use flate2::Compression;
use flate2::bufread::{GzEncoder, MultiGzDecoder, ZlibDecoder, ZlibEncoder};
use std::io::Read;

/// How a body is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Identity,
    /// gzip.
    Gzip,
    /// zlib.
    Deflate,
}

/// Why a body could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CodingError {
    #[error("Content-Encoding must be gzip, deflate or identity, and only one of them")]
    Unknown,
    #[error("the body is not valid {0}")]
    Damaged(&'static str),
    #[error("the body is larger than {0} bytes when decompressed")]
    TooLarge(usize),
}

impl Coding {
    /// The coding of a request body, from its `Content-Encoding` headers.
    ///
    /// # Errors
    /// [`CodingError::Unknown`] for any other coding, or more than one: nobody means to compress twice, but a bomb does.
    pub fn of_request<'h>(values: impl IntoIterator<Item = &'h [u8]>) -> Result<Self, CodingError> {
        let mut coding = Self::Identity;
        for value in values.into_iter().flat_map(|v| v.split(|&b| b == b',')) {
            let next = match value.trim_ascii() {
                b"" => continue,
                v if v.eq_ignore_ascii_case(b"identity") => continue,
                v if v.eq_ignore_ascii_case(b"gzip") || v.eq_ignore_ascii_case(b"x-gzip") => Self::Gzip,
                v if v.eq_ignore_ascii_case(b"deflate") => Self::Deflate,
                _ => return Err(CodingError::Unknown),
            };
            if coding != Self::Identity {
                return Err(CodingError::Unknown);
            }
            coding = next;
        }
        Ok(coding)
    }

    /// The coding a client likes best, from `Accept-Encoding`. Only what it names counts: `*` and no header at all mean
    /// that nothing was asked for, and then compression is pure cost.
    #[must_use]
    pub fn of_reply<'h>(values: impl IntoIterator<Item = &'h [u8]>) -> Self {
        let mut best = (Self::Identity, 0.0);
        for item in values.into_iter().flat_map(|v| v.split(|&b| b == b',')) {
            let mut parts = item.split(|&b| b == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let coding = match name {
                n if n.eq_ignore_ascii_case(b"gzip") || n.eq_ignore_ascii_case(b"x-gzip") => Self::Gzip,
                n if n.eq_ignore_ascii_case(b"deflate") => Self::Deflate,
                _ => continue,
            };
            // The weight of a coding that names none is 1.
            let weight = match parts.find_map(|p| p.strip_prefix(b"q=").or_else(|| p.strip_prefix(b"Q="))) {
                None => Some(1.0),
                Some(q) => std::str::from_utf8(q).ok().and_then(|q| q.parse::<f32>().ok()),
            };
            // What makes no sense counts as not wanted.
            let weight = weight.filter(|w| (0.0..=1.0).contains(w)).unwrap_or(0.0);
            if weight > best.1 {
                best = (coding, weight);
            }
        }
        best.0
    }

    /// The coding's name in headers; `None` for no coding.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
        }
    }

    /// Decodes a body of at most `limit` bytes; memory and time stay within the limit whatever the body promises.
    ///
    /// # Errors
    /// [`CodingError::Damaged`], also when something follows the compressed data, and [`CodingError::TooLarge`].
    pub fn decode(self, body: &[u8], limit: usize) -> Result<Vec<u8>, CodingError> {
        let mut out = Vec::new();
        let mut rest = body;
        let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let read = match self {
            Self::Identity => return Ok(body.to_vec()),
            Self::Gzip => MultiGzDecoder::new(&mut rest).take(one_more).read_to_end(&mut out),
            Self::Deflate => ZlibDecoder::new(&mut rest).take(one_more).read_to_end(&mut out),
        };
        if out.len() > limit {
            return Err(CodingError::TooLarge(limit));
        }
        let damaged = CodingError::Damaged(self.name().unwrap_or_default());
        match read {
            Ok(_) if rest.is_empty() => Ok(out),
            _ => Err(damaged),
        }
    }

    /// Encodes a reply, quickly rather than tightly: tensors barely shrink.
    #[must_use]
    pub fn encode(self, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(body.len() / 2 + 64);
        let level = Compression::fast();
        let written = match self {
            Self::Identity => return body.to_vec(),
            Self::Gzip => GzEncoder::new(body, level).read_to_end(&mut out),
            Self::Deflate => ZlibEncoder::new(body, level).read_to_end(&mut out),
        };
        written.expect("compressing from memory to memory has nothing that can fail");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let body: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Identity] {
            assert_eq!(coding.decode(&coding.encode(&body), body.len()).unwrap(), body);
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = vec![0_u8; 64 << 20];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let small = coding.encode(&bomb);
            assert!(small.len() < 1 << 20);
            assert_eq!(coding.decode(&small, 1 << 20), Err(CodingError::TooLarge(1 << 20)));
        }
        // Many members, each harmless.
        let members = Coding::Gzip.encode(&[0; 1000]).repeat(100);
        assert_eq!(Coding::Gzip.decode(&members, 99_999), Err(CodingError::TooLarge(99_999)));
        assert_eq!(Coding::Gzip.decode(&members, 100_000).unwrap().len(), 100_000);
    }

    #[test]
    fn damaged_bodies_are_refused() {
        for coding in [Coding::Gzip, Coding::Deflate] {
            let good = coding.encode(b"{\"inputs\":[]}");
            let damaged = Err(CodingError::Damaged(coding.name().unwrap()));
            assert_eq!(coding.decode(&good[..good.len() - 1], 1000), damaged, "cut");
            assert_eq!(coding.decode(&[&good[..], b"x"].concat(), 1000), damaged, "something follows");
            let mut flipped = good.clone();
            *flipped.last_mut().unwrap() ^= 1;
            assert_eq!(coding.decode(&flipped, 1000), damaged, "checksum");
            assert_eq!(coding.decode(b"{\"inputs\":[]}", 1000), damaged, "not compressed at all");
            assert_eq!(coding.decode(b"", 1000), damaged, "nothing");
        }
    }

    #[test]
    fn one_known_coding_is_accepted_from_a_client() {
        let of = |v: &[&[u8]]| Coding::of_request(v.iter().copied());
        assert_eq!(of(&[]), Ok(Coding::Identity));
        assert_eq!(of(&[b"identity"]), Ok(Coding::Identity));
        assert_eq!(of(&[b" GZip "]), Ok(Coding::Gzip));
        assert_eq!(of(&[b"deflate"]), Ok(Coding::Deflate));
        for bad in [&[&b"br"[..]][..], &[b"gzip, gzip"], &[b"gzip", b"deflate"], &[b"zstd"], &[b"gzip;q=1"]] {
            assert_eq!(of(bad), Err(CodingError::Unknown));
        }
    }

    #[test]
    fn a_reply_is_compressed_only_when_the_client_names_the_coding() {
        let of = |v: &str| Coding::of_reply([v.as_bytes()]);
        assert_eq!(Coding::of_reply([]), Coding::Identity);
        assert_eq!(of("gzip"), Coding::Gzip);
        assert_eq!(of("deflate"), Coding::Deflate);
        assert_eq!(of("gzip, deflate, br"), Coding::Gzip);
        assert_eq!(of("gzip;q=0.5, deflate;q=0.8"), Coding::Deflate);
        assert_eq!(of("gzip;q=0, deflate; q=0.001"), Coding::Deflate);
        for none in ["", "*", "identity", "br", "gzip;q=0", "gzip;q=2", "gzip;q=-1", "xgzip"] {
            assert_eq!(of(none), Coding::Identity, "{none}");
        }
    }
}
