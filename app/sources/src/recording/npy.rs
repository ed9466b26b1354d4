//! NPY (numpy.lib.format), versions 1.0, 2.0 and 3.0.
//!
//! The header is a Python dictionary; it is read as the three entries that there are, in any order, and nothing is ever
//! evaluated. Objects, strings, complex numbers and structures are refused.

use super::{Limits, Number, Numbers, Recording, RecordingError, Shape};
use std::io::Read;

/// How a file begins.
pub const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header; NumPy itself reads 10,000 bytes.
const MAX_HEADER: usize = 64 << 10;
/// The most dimensions of an array in NumPy 1.
const MAX_DIMENSIONS: usize = 32;

struct Header {
    kind: Number,
    big_endian: bool,
    fortran: bool,
    shape: Vec<u64>,
}

pub fn read(mut input: impl Read, limits: &Limits) -> Result<Recording, RecordingError> {
    let header = header(&mut input)?;
    let shape = Shape::new(&header.shape, limits)?;
    let values = shape.read(&mut input, header.kind, header.big_endian, header.fortran)?;
    Recording {
        channels: shape.channels,
        values,
        block: shape.block(),
        labels: None,
        repetitions: None,
        rate_hz: None,
    }
    .validated()
}

pub fn labels(mut input: impl Read, limits: &Limits) -> Result<Vec<i32>, RecordingError> {
    let header = header(&mut input)?;
    // A vector, or a matrix of one column.
    if header.shape.iter().skip(1).any(|&d| d != 1) {
        return Err(RecordingError::Dimensions(header.shape.len()));
    }
    let count = Shape::new(&header.shape[..header.shape.len().min(1)], limits)?.count();
    Numbers { kind: header.kind, big_endian: header.big_endian, count }.whole(&mut input)
}

fn header(input: &mut impl Read) -> Result<Header, RecordingError> {
    let mut head = [0; 8];
    input.read_exact(&mut head)?;
    if !head.starts_with(MAGIC) {
        return Err(RecordingError::Damaged("it does not begin as an NPY file"));
    }
    let length = match (head[6], head[7]) {
        (1, 0) => {
            let mut bytes = [0; 2];
            input.read_exact(&mut bytes)?;
            usize::from(u16::from_le_bytes(bytes))
        }
        (2 | 3, 0) => {
            let mut bytes = [0; 4];
            input.read_exact(&mut bytes)?;
            usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
        }
        _ => return Err(RecordingError::Unsupported("only versions 1.0, 2.0 and 3.0 of NPY are read")),
    };
    if length > MAX_HEADER {
        return Err(RecordingError::Damaged("the header of the NPY file is longer than 65536 bytes"));
    }
    let mut text = vec![0; length];
    input.read_exact(&mut text)?;
    let text =
        std::str::from_utf8(&text).map_err(|_| RecordingError::Damaged("the NPY header is not text"))?;
    Words(text).dictionary()
}

/// What is left of the header.
struct Words<'a>(&'a str);

const BAD: RecordingError = RecordingError::Damaged("the NPY header is not the dictionary it should be");

impl<'a> Words<'a> {
    fn dictionary(mut self) -> Result<Header, RecordingError> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.take('}') {
            let key = self.quoted()?;
            self.expect(':')?;
            match key {
                "descr" if descr.is_none() => descr = Some(self.number()?),
                "fortran_order" if fortran.is_none() => fortran = Some(self.boolean()?),
                "shape" if shape.is_none() => shape = Some(self.tuple()?),
                _ => return Err(BAD),
            }
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.0.trim_start().is_empty() {
            return Err(BAD);
        }
        let (kind, big_endian) = descr.ok_or(BAD)?;
        Ok(Header { kind, big_endian, fortran: fortran.ok_or(BAD)?, shape: shape.ok_or(BAD)? })
    }

    fn take(&mut self, what: char) -> bool {
        let rest = self.0.trim_start().strip_prefix(what);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, what: char) -> Result<(), RecordingError> {
        if self.take(what) { Ok(()) } else { Err(BAD) }
    }

    /// A string without escapes, in quotes of either kind.
    fn quoted(&mut self) -> Result<&'a str, RecordingError> {
        let quote = if self.take('\'') {
            '\''
        } else if self.take('"') {
            '"'
        } else {
            return Err(BAD);
        };
        let (word, rest) = self.0.split_once(quote).ok_or(BAD)?;
        self.0 = rest;
        if word.contains('\\') { Err(BAD) } else { Ok(word) }
    }

    fn number(&mut self) -> Result<(Number, bool), RecordingError> {
        if self.0.trim_start().starts_with('[') {
            return Err(RecordingError::Type("a structure".to_owned()));
        }
        let word = self.quoted()?;
        let unknown = || RecordingError::Type(word.chars().take(16).collect());
        let kind = match word.get(1..).ok_or_else(unknown)? {
            "i1" => Number::I8,
            "u1" | "b1" => Number::U8,
            "i2" => Number::I16,
            "u2" => Number::U16,
            "i4" => Number::I32,
            "u4" => Number::U32,
            "i8" => Number::I64,
            "u8" => Number::U64,
            "f4" => Number::F32,
            "f8" => Number::F64,
            _ => return Err(unknown()),
        };
        match (&word[..1], kind.bytes()) {
            ("<", _) | ("|", 1) => Ok((kind, false)),
            (">", _) => Ok((kind, true)),
            _ => Err(unknown()),
        }
    }

    fn boolean(&mut self) -> Result<bool, RecordingError> {
        let text = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = text.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err(BAD)
    }

    fn tuple(&mut self) -> Result<Vec<u64>, RecordingError> {
        self.expect('(')?;
        let mut items = Vec::new();
        while !self.take(')') {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (digits, rest) = text.split_at(end);
            items.push(digits.parse().map_err(|_| BAD)?);
            if items.len() > MAX_DIMENSIONS {
                return Err(RecordingError::Dimensions(items.len()));
            }
            // Python 2 wrote 3L.
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, dictionary: &str, data: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend([version, 0]);
        let text = format!("{dictionary}\n");
        if version == 1 {
            out.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        } else {
            out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        }
        out.extend(text.bytes());
        out.extend(data);
        out
    }

    fn open(bytes: &[u8]) -> Result<Recording, RecordingError> {
        Recording::read(bytes, &Limits { values: 1000, bytes: 1 << 20 })
    }

    const PLAIN: &str = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }";

    #[test]
    fn the_dictionary_is_read_in_any_order_and_spelling() {
        for text in [
            PLAIN,
            "{'shape':(2,3),'descr':'<u1','fortran_order':False}",
            "  { \"shape\" : ( 2L , 3L , ) , \"fortran_order\" : False , \"descr\" : \"|u1\" }   ",
        ] {
            for version in [1, 2, 3] {
                let recording = open(&file(version, text, &[1, 2, 3, 4, 5, 6])).unwrap();
                assert_eq!(
                    (recording.channels(), recording.values()),
                    (3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..])
                );
                assert_eq!(recording.row(1), Some(&[4.0, 5.0, 6.0][..]));
                assert_eq!(recording.row(2), None);
            }
        }
    }

    #[test]
    fn both_orders_and_both_ends_are_read() {
        let fortran = PLAIN.replace("False", "True");
        assert_eq!(
            open(&file(1, &fortran, &[1, 4, 2, 5, 3, 6])).unwrap(),
            open(&file(1, PLAIN, &[1, 2, 3, 4, 5, 6])).unwrap()
        );
        let vector = |descr: &str, data: &[u8]| {
            let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,)}}");
            open(&file(1, &text, data)).unwrap().values()[0]
        };
        assert_eq!(vector("<i2", &(-1234i16).to_le_bytes()), -1234.0);
        assert_eq!(vector(">i2", &(-1234i16).to_be_bytes()), -1234.0);
        assert_eq!(vector(">f8", &0.25f64.to_be_bytes()), 0.25);
        assert_eq!(vector("<f4", &(-0.5f32).to_le_bytes()), -0.5);
        assert_eq!(vector("<u8", &7u64.to_le_bytes()), 7.0);
        assert_eq!(vector(">u4", &u32::MAX.to_be_bytes()), 4_294_967_296.0);
    }

    #[test]
    fn what_is_no_dictionary_of_three_entries_is_refused() {
        for text in [
            "",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2 3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} print()",
            "{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os')}",
            "{'descr: '<f4'",
        ] {
            assert_eq!(open(&file(1, text, &[0; 24])), Err(BAD), "{text}");
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        for descr in ["|O", "<c8", "<U3", "|S4", "<M8[us]", "<f2", "=f4", "f4", "", "|i2", "<f16", "é"] {
            let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,)}}");
            assert!(matches!(open(&file(1, &text, &[0; 64])), Err(RecordingError::Type(_))), "{descr}");
        }
        let text = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}";
        assert_eq!(open(&file(1, text, &[0; 64])), Err(RecordingError::Type("a structure".to_owned())));
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_refused() {
        let whole = file(1, PLAIN, &[1, 2, 3, 4, 5, 6]);
        assert!(open(&whole).is_ok());
        for cut in MAGIC.len()..whole.len() {
            assert_eq!(open(&whole[..cut]), Err(RecordingError::CutShort), "after {cut} bytes");
        }
    }

    #[test]
    fn a_header_that_claims_much_allocates_nothing() {
        let huge = file(2, PLAIN, &[]);
        let mut long = huge.clone();
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(open(&long), Err(RecordingError::Damaged(_))));
        let many = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({})}}", "1,".repeat(40));
        assert_eq!(open(&file(1, &many, &[])), Err(RecordingError::Dimensions(33)));
        let mut other = file(1, PLAIN, &[]);
        other[6] = 4;
        assert!(matches!(open(&other), Err(RecordingError::Unsupported(_))));
    }

    #[test]
    fn a_value_that_is_not_finite_is_named() {
        for bad in [f64::NAN, f64::INFINITY, 1e300] {
            let data: Vec<u8> = [0.0, 1.0, 2.0, bad].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
            let text = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}";
            assert_eq!(open(&file(1, text, &data)), Err(RecordingError::NotFinite { row: 1, channel: 1 }));
        }
    }

    #[test]
    fn labels_are_whole_numbers_in_one_column() {
        let limits = Limits { values: 1000, bytes: 1 << 20 };
        let read = |shape: &str, data: &[f64]| {
            let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
            let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}");
            super::super::labels(&file(1, &text, &bytes)[..], &limits)
        };
        assert_eq!(read("(3,)", &[0.0, -1.0, 11.0]), Ok(vec![0, -1, 11]));
        assert_eq!(read("(3, 1)", &[0.0, -1.0, 11.0]), Ok(vec![0, -1, 11]));
        assert_eq!(read("(3,)", &[0.0, 0.5, 11.0]), Err(RecordingError::Label(1)));
        assert_eq!(read("(1, 3)", &[0.0; 3]), Err(RecordingError::Dimensions(2)));
        assert_eq!(read("()", &[0.0; 3]), Err(RecordingError::Dimensions(0)));
        assert_eq!(read("(1001,)", &[]), Err(RecordingError::TooLarge { found: 1001, most: 1000 }));
    }
}
