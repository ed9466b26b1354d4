//! Block maps: which blocks of an image mean something, and what they hash to. The form of bmaptool 2.0.

use sha2::{Digest as _, Sha256};
use std::ops::Range;

/// The largest map that is read: a line for each of half a million ranges.
pub const MAX_BMAP: u64 = 64 << 20;

/// A range of bytes that is written, and what it hashes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Bytes of the image; the last range ends with it.
    pub bytes: Range<u64>,
    /// Their SHA-256.
    pub sha256: [u8; 32],
}

/// A map that was checked: ranges ascend, do not meet, and lie within the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bmap {
    /// Bytes of the unpacked image.
    pub image_size: u64,
    /// What is written.
    pub ranges: Vec<Mapped>,
}

impl Bmap {
    /// Reads a map and checks it whole, its own checksum included.
    ///
    /// # Errors
    /// Why it is none, in a sentence.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not a text")?;
        let document = roxmltree::Document::parse(text).map_err(|e| format!("it is not XML: {e}"))?;
        let root = document.root_element();
        let version = root.attribute("version").unwrap_or_default();
        if !root.has_tag_name("bmap") || !version.starts_with("2.") {
            return Err(format!("it is no block map of version 2 (it says {version:?})"));
        }
        let field = |name: &str| {
            let found = root.children().find(|node| node.has_tag_name(name));
            let text = found.and_then(|node| node.text()).map(str::trim);
            text.ok_or_else(|| format!("it has no {name}"))
        };
        let number = |name: &str| field(name)?.parse::<u64>().map_err(|_| format!("its {name} is no number"));
        let kind = field("ChecksumType")?;
        if kind != "sha256" {
            return Err(format!("its checksums are {kind}; only sha256 is taken"));
        }
        let own = field("BmapFileChecksum")?;
        let zeroed = text.replacen(own, &"0".repeat(own.len()), 1);
        if hex(own) != Some(Sha256::digest(zeroed.as_bytes()).into()) {
            return Err("its own checksum is wrong: it was damaged or changed".into());
        }
        let (image_size, block) = (number("ImageSize")?, number("BlockSize")?);
        if !block.is_power_of_two() || !(512..=1 << 26).contains(&block) {
            return Err(format!("its BlockSize {block} is none"));
        }
        let map = root.children().find(|node| node.has_tag_name("BlockMap"));
        let rows = map.ok_or("it has no BlockMap")?.children();
        let mut ranges: Vec<Mapped> = Vec::new();
        for row in rows.filter(|node| node.has_tag_name("Range")) {
            let text = row.text().unwrap_or_default().trim();
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let blocks = first.trim().parse::<u64>().ok().zip(last.trim().parse::<u64>().ok());
            let checksum = row.attribute("chksum").and_then(hex);
            let (Some((first, last)), Some(sha256)) = (blocks, checksum) else {
                return Err(format!("its range {text:?} has no numbers or no checksum"));
            };
            let start = first.checked_mul(block);
            let end = last.checked_add(1).and_then(|n| n.checked_mul(block)).map(|end| end.min(image_size));
            match (start, end) {
                (Some(start), Some(end))
                    if start < end
                        && last < image_size.div_ceil(block)
                        && ranges.last().is_none_or(|before| before.bytes.end <= start) =>
                {
                    ranges.push(Mapped { bytes: start..end, sha256 });
                }
                _ => return Err(format!("its range {text:?} is out of order or beyond the image")),
            }
        }
        if ranges.is_empty() {
            return Err("it maps nothing".into());
        }
        Ok(Self { image_size, ranges })
    }
}

/// A SHA-256 in hexadecimal.
pub fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A map with a right checksum of its own; ranges of blocks of 4096 bytes.
    pub fn map(image: &[u8], ranges: &[(u64, u64)]) -> String {
        let mut rows = String::new();
        for (first, last) in ranges {
            let at = |block: u64| usize::try_from(block * 4096).unwrap().min(image.len());
            let sum = text(&Sha256::digest(&image[at(*first)..at(last + 1)]));
            rows += &format!("<Range chksum=\"{sum}\">{first}-{last}</Range>\n");
        }
        sealed(&format!(
            "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\"><ImageSize>{}</ImageSize><BlockSize>4096</BlockSize>\
             <ChecksumType>sha256</ChecksumType><BmapFileChecksum>{}</BmapFileChecksum><BlockMap>{rows}</BlockMap></bmap>",
            image.len(),
            "0".repeat(64)
        ))
    }

    fn text(sum: &[u8]) -> String {
        sum.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn sealed(map: &str) -> String {
        map.replacen(&"0".repeat(64), &text(&Sha256::digest(map.as_bytes())), 1)
    }

    fn read(map: &str) -> Result<Bmap, String> {
        Bmap::parse(map.as_bytes())
    }

    #[test]
    fn the_last_range_ends_with_the_image() {
        let image = vec![7; 4096 * 3 + 10];
        let bmap = read(&map(&image, &[(0, 0), (2, 3)])).unwrap();
        let bytes: Vec<_> = bmap.ranges.iter().map(|range| range.bytes.clone()).collect();
        assert_eq!(bytes, [0..4096, 8192..12298]);
    }

    #[test]
    fn maps_that_are_damaged_or_hostile_are_refused() {
        let image = vec![7; 4096 * 4];
        let whole = map(&image, &[(0, 1)]);
        read(&whole).unwrap();
        assert!(read(&whole.replace("<ImageSize>16384", "<ImageSize>16385")).is_err(), "a changed byte");
        for (from, to) in [
            ("0-1", "1-0"),
            ("0-1", "0-4"),
            ("0-1", "0-18446744073709551615"),
            ("0-1", "x"),
            (">4096<", ">0<"),
            (">4096<", ">4097<"),
            ("sha256<", "md5<"),
            ("version=\"2.0\"", "version=\"1.3\""),
        ] {
            let zeroed = whole.replacen(
                whole.split("BmapFileChecksum>").nth(1).unwrap().split('<').next().unwrap(),
                &"0".repeat(64),
                1,
            );
            assert!(read(&sealed(&zeroed.replace(from, to))).is_err(), "{from} -> {to}");
        }
        let two = |ranges| read(&map(&image, ranges)).is_err();
        assert!(two(&[(0, 1), (1, 2)]) && two(&[(2, 2), (0, 0)]) && two(&[]));
        assert!(read("<!DOCTYPE a [<!ENTITY b \"c\">]><bmap version=\"2.0\">&b;</bmap>").is_err());
        assert!(read("").is_err());
    }
}
