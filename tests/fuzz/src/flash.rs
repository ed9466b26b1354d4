//! What lies beside an image that is flashed: its block map, its signature.

use crate::inferctl::bmap::Bmap;
use crate::inferctl::form;
use inferd_bundle::SigningKey;
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// A block map, its own checksum made to fit where it names one as a map does.
pub fn bmap(data: &[u8]) {
    const MARK: &str = "<BmapFileChecksum>";
    let mut text = String::from_utf8_lossy(data).into_owned();
    if let Some(at) = text.find(MARK).map(|at| at + MARK.len())
        && text.get(at..at + 64).is_some_and(|sum| sum.bytes().all(|b| b == b'0'))
    {
        let sum: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        text.replace_range(at..at + 64, &sum);
    }
    let Ok(map) = Bmap::parse(text.as_bytes()) else { return };
    assert!(!map.ranges.is_empty());
    for range in &map.ranges {
        assert!(range.bytes.start < range.bytes.end && range.bytes.end <= map.image_size);
    }
    assert!(map.ranges.windows(2).all(|pair| pair[0].bytes.end <= pair[1].bytes.start), "each block once");
}

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_seed(&[7; 32]));

/// A signature or a public key: nothing but what the key signed is taken, however it is written.
pub fn minisign(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(Ok(key)) = form::public(&text) {
        let again = form::public(&form::public_text(&key));
        assert_eq!(again.and_then(Result::ok).map(|key| key.to_bytes()), Some(key.to_bytes()));
    }
    // The seeds are signatures of this hash with this comment.
    if let Ok(comment) = form::verify(&KEY.public(), &[9; 64], &text) {
        assert_eq!(comment, "file:image.img", "nothing else was signed");
    }
    assert!(form::verify(&KEY.public(), &[8; 64], &text).is_err(), "a signature of something else");
}
