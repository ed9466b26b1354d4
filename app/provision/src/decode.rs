//! What an editor may have written, as text, and where in the bytes each piece of it stands.

use std::ops::Range;

/// How the letters of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8.
    Utf8,
    /// UTF-8 behind a mark, as older editors of Windows write it.
    Utf8Mark,
    /// UTF-16, little endian (what Windows calls Unicode), with or without a mark.
    Utf16Le,
    /// UTF-16, big endian.
    Utf16Be,
    /// Windows-1252, of which Latin-1 is a part.
    Windows1252,
}

impl Encoding {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF-8",
            Self::Utf8Mark => "UTF-8 with a byte order mark",
            Self::Utf16Le => "UTF-16 (little endian)",
            Self::Utf16Be => "UTF-16 (big endian)",
            Self::Windows1252 => "Latin-1 (Windows-1252)",
        }
    }
}

/// A file as text.
#[derive(Clone, Debug)]
pub struct Text {
    /// Its letters.
    pub text: String,
    /// How they were written.
    pub encoding: Encoding,
    /// Bytes of the mark before them.
    mark: usize,
}

/// Windows-1252 from 0x80 to 0x9f; the five that it leaves open are their own code points, as in WHATWG's encoding standard.
const WINDOWS_1252: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}', '\u{2c6}',
    '\u{2030}', '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}', '\u{8f}', '\u{90}', '\u{2018}',
    '\u{2019}', '\u{201c}', '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}', '\u{2dc}', '\u{2122}', '\u{161}',
    '\u{203a}', '\u{153}', '\u{9d}', '\u{17e}', '\u{178}',
];

impl Text {
    /// Reads bytes as what they look like.
    ///
    /// # Errors
    /// One sentence when they are no text.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > super::MAX_BYTES {
            return Err(format!("it has {} bytes; at most {} are read", bytes.len(), super::MAX_BYTES));
        }
        let (text, encoding, mark) = match bytes {
            [0xff, 0xfe, rest @ ..] => (utf16(rest, u16::from_le_bytes)?, Encoding::Utf16Le, 2),
            [0xfe, 0xff, rest @ ..] => (utf16(rest, u16::from_be_bytes)?, Encoding::Utf16Be, 2),
            [0xef, 0xbb, 0xbf, rest @ ..] => {
                let text = std::str::from_utf8(rest).map_err(|e| {
                    format!("it has a mark of UTF-8, but byte {} is none", e.valid_up_to() + 3)
                })?;
                (text.to_owned(), Encoding::Utf8Mark, 3)
            }
            // A letter of ASCII in UTF-16 has a zero for its other half.
            [_, 0, ..] => (utf16(bytes, u16::from_le_bytes)?, Encoding::Utf16Le, 0),
            [0, _, ..] => (utf16(bytes, u16::from_be_bytes)?, Encoding::Utf16Be, 0),
            _ => match std::str::from_utf8(bytes) {
                Ok(text) => (text.to_owned(), Encoding::Utf8, 0),
                Err(_) => (bytes.iter().map(|b| windows_1252(*b)).collect(), Encoding::Windows1252, 0),
            },
        };
        if let Some(at) = text.find('\0') {
            let line = text[..at].split('\n').count();
            return Err(format!("it is no text: line {line} holds a zero byte"));
        }
        Ok(Self { text, encoding, mark })
    }

    /// Where in the file a piece of the text stands.
    #[must_use]
    pub fn bytes_of(&self, piece: Range<usize>) -> Range<usize> {
        let start = self.mark + self.length(&self.text[..piece.start]);
        start..start + self.length(&self.text[piece])
    }

    /// ASCII as this file writes it.
    #[must_use]
    pub fn encode(&self, ascii: &str) -> Vec<u8> {
        match self.encoding {
            Encoding::Utf8 | Encoding::Utf8Mark | Encoding::Windows1252 => ascii.as_bytes().to_vec(),
            Encoding::Utf16Le => ascii.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            Encoding::Utf16Be => ascii.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }

    fn length(&self, piece: &str) -> usize {
        match self.encoding {
            Encoding::Utf8 | Encoding::Utf8Mark => piece.len(),
            Encoding::Windows1252 => piece.chars().count(),
            Encoding::Utf16Le | Encoding::Utf16Be => 2 * piece.encode_utf16().count(),
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("it looks like UTF-16, but has an odd number of bytes".to_owned());
    }
    char::decode_utf16(pairs.iter().map(|pair| unit(*pair)))
        .collect::<Result<_, _>>()
        .map_err(|_| "it looks like UTF-16, but holds half of a letter".to_owned())
}

fn windows_1252(byte: u8) -> char {
    match byte {
        0x80..=0x9f => WINDOWS_1252[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_editors_bytes_become_the_same_text_and_each_piece_is_found_again() {
        let wanted = "[device]\r\n# Gerät\r\nhostname = \"door\"\r\n";
        let at = wanted.find("\"door\"").unwrap();
        let utf16 = |unit: fn(u16) -> [u8; 2]| wanted.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
        let latin: Vec<u8> = wanted.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        for (bytes, encoding) in [
            (wanted.as_bytes().to_vec(), Encoding::Utf8),
            ([b"\xef\xbb\xbf", wanted.as_bytes()].concat(), Encoding::Utf8Mark),
            ([b"\xff\xfe".to_vec(), utf16(u16::to_le_bytes)].concat(), Encoding::Utf16Le),
            (utf16(u16::to_le_bytes), Encoding::Utf16Le),
            ([b"\xfe\xff".to_vec(), utf16(u16::to_be_bytes)].concat(), Encoding::Utf16Be),
            (utf16(u16::to_be_bytes), Encoding::Utf16Be),
            (latin, Encoding::Windows1252),
        ] {
            let text = Text::of(&bytes).unwrap();
            assert_eq!((text.text.as_str(), text.encoding), (wanted, encoding));
            assert_eq!(bytes[text.bytes_of(at..at + 6)], text.encode("\"door\""), "{encoding:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_with_words() {
        let why = |bytes: &[u8]| Text::of(bytes).unwrap_err();
        assert_eq!(why(b"[a]\nb = 1\n\0"), "it is no text: line 3 holds a zero byte");
        assert!(why(b"\xff\xfea").contains("odd number"));
        assert!(why(b"\xff\xfe\x00\xd8").contains("half of a letter"));
        assert!(why(b"\xef\xbb\xbf\xff").contains("byte 3"));
        assert!(why(&vec![b'#'; crate::MAX_BYTES + 1]).contains("at most 262144"));
        assert_eq!(Text::of(b"\x80\x93").unwrap().text, "\u{20ac}\u{201c}");
        assert_eq!(Text::of(b"").unwrap().text, "");
    }
}
