//! The one way a document is written: integer keys ascending, definite lengths, shortest integers, no unknown keys.
//!
//! A reader decodes, writes again and compares: whatever is not the one way, whatever it would drop, is refused.

use crate::Refusal;
use inferd_model::ModelName;
use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};

/// The bytes of a document.
pub(crate) fn to_bytes<T: Encode<()>>(document: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing into a vector cannot fail, and none of our documents refuses to be written.
    let done = minicbor::encode(document, &mut out);
    debug_assert!(done.is_ok());
    out
}

/// The document that `bytes` are, or why they are none.
pub(crate) fn from_bytes<'b, T: Decode<'b, ()> + Encode<()>>(bytes: &'b [u8]) -> Result<T, String> {
    let mut decoder = Decoder::new(bytes);
    let document: T = decoder.decode().map_err(|e| e.to_string())?;
    if decoder.position() != bytes.len() {
        return Err(format!("{} bytes follow the document", bytes.len() - decoder.position()));
    }
    if to_bytes(&document) != bytes {
        return Err(
            "it is not canonical: keys ascend, lengths are definite, integers are shortest".to_owned()
        );
    }
    Ok(document)
}

/// A list of at most `MAX`: refused before anything is allocated for it.
pub(crate) fn list<'b, C, T: Decode<'b, C>, const MAX: usize>(
    d: &mut Decoder<'b>,
    ctx: &mut C,
) -> Result<Vec<T>, decode::Error> {
    let len = d.array()?.ok_or_else(|| decode::Error::message("a list has a definite length"))?;
    let len = usize::try_from(len).ok().filter(|&n| n <= MAX);
    let len = len.ok_or_else(|| decode::Error::message("a list is longer than allowed"))?;
    let mut out = Vec::with_capacity(len);
    for _ in 0..len {
        out.push(T::decode(d, ctx)?);
    }
    Ok(out)
}

/// Names as text.
pub(crate) mod name {
    use super::{Decoder, Encoder, ModelName, Write, decode, encode};

    pub(crate) fn encode<C, W: Write>(
        name: &ModelName,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(name.as_str())?.ok()
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<ModelName, decode::Error> {
        ModelName::new(d.str()?).map_err(decode::Error::message)
    }
}

/// Whether a list is in strictly ascending order, so that it has no duplicates.
pub(crate) fn ascends<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut items = items.into_iter();
    let Some(mut last) = items.next() else { return true };
    for item in items {
        if item <= last {
            return false;
        }
        last = item;
    }
    true
}

/// `text` if it is at most `max` bytes without control characters (line ends and tabs apart, when `lines`).
pub(crate) fn check_text(key: &'static str, text: &str, max: usize, lines: bool) -> Result<(), Refusal> {
    if text.len() > max {
        return Err(Refusal::manifest(key, format!("{} bytes, at most {max} are allowed", text.len())));
    }
    if text.chars().any(|c| c.is_control() && !(lines && matches!(c, '\n' | '\t'))) {
        return Err(Refusal::manifest(key, "it holds a control character"));
    }
    Ok(())
}
