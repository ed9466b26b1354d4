//! MAT-files of level 5 (The MathWorks, *MAT-File Format*, 2019), as NinaPro's databases are published: little- or
//! big-endian, elements compressed or not.
//!
//! Arrays are found by their names: the signal is `emg`, else `data`; labels are `restimulus`, else `stimulus`, else
//! `labels`; repetitions `rerepetition`, else `repetition`; the rate `frequency`, else `fs`. Everything else is passed over
//! without being kept. Versions 4 and 7.3 (HDF5) are refused by name.

use super::{Limits, Number, Numbers, Recording, RecordingError, Shape};
use flate2::read::ZlibDecoder;
use std::io::{self, Read};

const SIGNAL: &[&str] = &["emg", "data"];
const LABELS: &[&str] = &["restimulus", "stimulus", "labels"];
const REPETITIONS: &[&str] = &["rerepetition", "repetition"];
const RATE: &[&str] = &["frequency", "fs"];

/// Arrays in a file: NinaPro has about 20.
const MAX_ELEMENTS: usize = 4096;
/// Bytes of a name; MATLAB allows 63.
const MAX_NAME: u32 = 256;
/// Dimensions of an array that is looked at.
const MAX_DIMENSIONS: u32 = 8;

// Types of elements.
const INT8: u32 = 1;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const UTF8: u32 = 16;

/// Complex numbers, in the flags of an array.
const COMPLEX: u32 = 0x800;

/// It begins as a MAT file of level 5 or later does: 116 bytes of text and the mark of its byte order.
pub fn is_header(head: &[u8]) -> bool {
    head.len() == 128 && (&head[126..] == b"IM" || &head[126..] == b"MI")
}

/// What was found so far, with the place of its name among those it could have: a lower one replaces it.
#[derive(Default)]
struct Found {
    signal: Option<(usize, Shape, Vec<f32>)>,
    labels: Option<(usize, Vec<i32>)>,
    repetitions: Option<(usize, Vec<i32>)>,
    rate: Option<(usize, f64)>,
}

pub fn read(mut input: impl Read, limits: &Limits) -> Result<Recording, RecordingError> {
    let mut head = [0; 128];
    input.read_exact(&mut head)?;
    let big_endian = &head[126..] == b"MI";
    match if big_endian { head[124] } else { head[125] } {
        1 => (),
        2 => {
            return Err(RecordingError::Unsupported(
                "the file is of MATLAB 7.3 (HDF5): save it again with -v7, or with scipy.io.savemat",
            ));
        }
        _ => return Err(RecordingError::Unsupported("only level 5 of MAT-files is read")),
    }
    let mut found = Found::default();
    for _ in 0..MAX_ELEMENTS {
        let Some((kind, length)) = first_tag(&mut input, big_endian)? else { return found.recording() };
        let mut element = (&mut input).take(length.into());
        match kind {
            COMPRESSED => {
                // Its unpacked bytes are counted as the file's own are.
                let mut unpacked =
                    super::Bounded { left: limits.bytes, input: ZlibDecoder::new(&mut element) };
                let Some((kind, length)) = first_tag(&mut unpacked, big_endian)? else {
                    return Err(RecordingError::Damaged("a compressed element is empty"));
                };
                if kind == MATRIX {
                    let matrix = &mut (&mut unpacked).take(length.into());
                    found.matrix(&mut Input { bytes: matrix, big_endian }, limits)?;
                    io::copy(matrix, &mut io::sink())?;
                    if matrix.limit() > 0 {
                        return Err(RecordingError::CutShort);
                    }
                }
                // To its end, where its checksum is.
                io::copy(&mut unpacked, &mut io::sink())?;
            }
            MATRIX => found.matrix(&mut Input { bytes: &mut element, big_endian }, limits)?,
            _ => (),
        }
        io::copy(&mut element, &mut io::sink())?;
        if element.limit() > 0 {
            return Err(RecordingError::CutShort);
        }
        if kind != COMPRESSED && !length.is_multiple_of(8) {
            let mut padding = [0; 8];
            let count = 8 - length as usize % 8;
            input.read_exact(&mut padding[..count])?;
        }
    }
    Err(RecordingError::Damaged("it has more than 4096 elements"))
}

/// The type and length of the next element; `None` at the end.
fn first_tag(input: &mut impl Read, big_endian: bool) -> Result<Option<(u32, u32)>, RecordingError> {
    let mut tag = Vec::with_capacity(8);
    input.by_ref().take(8).read_to_end(&mut tag)?;
    let Some(&tag) = tag.first_chunk::<8>() else {
        return if tag.is_empty() { Ok(None) } else { Err(RecordingError::CutShort) };
    };
    let (kind, length) = words(tag, big_endian);
    if kind >> 16 == 0 {
        Ok(Some((kind, length)))
    } else {
        Err(RecordingError::Damaged("an element is of no known type"))
    }
}

fn words(tag: [u8; 8], big_endian: bool) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = tag;
    let word = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
    (word([a, b, c, d]), word([e, f, g, h]))
}

/// What is left of a matrix.
struct Input<'a, R> {
    bytes: &'a mut io::Take<R>,
    big_endian: bool,
}

/// The beginning of an element within a matrix.
struct Element {
    kind: u32,
    length: u32,
    /// A small element has its up to four bytes here, where the length of others is.
    small: Option<[u8; 4]>,
}

impl<R: Read> Input<'_, R> {
    fn element(&mut self) -> Result<Element, RecordingError> {
        let mut tag = [0; 8];
        self.bytes.read_exact(&mut tag)?;
        let (first, length) = words(tag, self.big_endian);
        if first >> 16 == 0 {
            return Ok(Element { kind: first, length, small: None });
        }
        let length = first >> 16;
        if length > 4 {
            return Err(RecordingError::Damaged("a small element is longer than 4 bytes"));
        }
        Ok(Element { kind: first & 0xffff, length, small: Some([tag[4], tag[5], tag[6], tag[7]]) })
    }

    /// The bytes of a short element and their type.
    fn short(&mut self, most: u32) -> Result<(u32, Vec<u8>), RecordingError> {
        let element = self.element()?;
        if element.length > most {
            return Err(RecordingError::Damaged("the description of an array is longer than it can be"));
        }
        let mut bytes = vec![0; element.length as usize];
        if let Some(small) = element.small {
            bytes.copy_from_slice(&small[..element.length as usize]);
        } else {
            self.bytes.read_exact(&mut bytes)?;
            let mut padding = [0; 8];
            self.bytes.read_exact(&mut padding[..(8 - bytes.len() % 8) % 8])?;
        }
        Ok((element.kind, bytes))
    }

    fn words(&mut self, kind: u32, most: u32) -> Result<Vec<u32>, RecordingError> {
        let (found, bytes) = self.short(4 * most)?;
        if found != kind || bytes.len() % 4 != 0 {
            return Err(RecordingError::Damaged(
                "the description of an array is of another type than it must be",
            ));
        }
        let word = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        Ok(bytes.chunks_exact(4).map(|b| word([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Hands the numbers of the next element on, which must be `count`.
    fn numbers<T>(
        &mut self,
        count: usize,
        read: impl FnOnce(&mut dyn Read, Number) -> Result<T, RecordingError>,
    ) -> Result<T, RecordingError> {
        let element = self.element()?;
        let kind = match element.kind {
            INT8 => Number::I8,
            2 => Number::U8,
            3 => Number::I16,
            4 => Number::U16,
            INT32 => Number::I32,
            UINT32 => Number::U32,
            7 => Number::F32,
            9 => Number::F64,
            12 => Number::I64,
            13 => Number::U64,
            other => return Err(RecordingError::Type(format!("mi{other}"))),
        };
        if (count as u64).saturating_mul(kind.bytes() as u64) != u64::from(element.length) {
            return Err(RecordingError::Damaged("an array has more or fewer numbers than its shape says"));
        }
        match element.small {
            Some(small) => read(&mut &small[..element.length as usize], kind),
            None => read(&mut *self.bytes, kind),
        }
    }
}

fn rank(names: &[&str], name: &[u8]) -> Option<usize> {
    names.iter().position(|n| n.as_bytes() == name)
}

/// It has this place, and nothing better was found before.
fn better<T>(rank: Option<usize>, found: Option<&T>, of: impl Fn(&T) -> usize) -> Option<usize> {
    rank.filter(|&rank| found.is_none_or(|found| rank < of(found)))
}

impl Found {
    /// Reads a matrix if it is wanted; what is left of it is for the caller to pass over.
    fn matrix<R: Read>(&mut self, input: &mut Input<'_, R>, limits: &Limits) -> Result<(), RecordingError> {
        let flags = input.words(UINT32, 2)?;
        let dimensions = input.words(INT32, MAX_DIMENSIONS);
        let (Some(&flags), Ok(dimensions)) = (flags.first(), dimensions) else {
            return Err(RecordingError::Damaged("an array has no shape"));
        };
        let (kind, name) = input.short(MAX_NAME)?;
        if kind != INT8 && kind != UTF8 {
            return Err(RecordingError::Damaged("an array has no name"));
        }
        // Cells, structures, objects, text and sparse arrays are 1 to 5; the numeric classes are 6 (double) to 15.
        if !(6..=15).contains(&(flags & 0xff)) || flags & COMPLEX != 0 {
            return Ok(());
        }
        let mut dimensions: Vec<u64> = dimensions.into_iter().map(u64::from).collect();
        let total = dimensions.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).unwrap_or(u64::MAX);
        let vector = || match usize::try_from(total) {
            Ok(n) if n <= limits.values => Ok(n),
            _ => Err(RecordingError::TooLarge { found: total, most: limits.values }),
        };
        let big_endian = input.big_endian;
        if let Some(rank) = better(rank(SIGNAL, &name), self.signal.as_ref(), |f| f.0) {
            // What was found first goes before memory for another is taken.
            self.signal = None;
            // MATLAB leaves out dimensions of 1 at the end; [n, 1] is one channel.
            while dimensions.len() > 3 && dimensions.last() == Some(&1) {
                dimensions.pop();
            }
            let shape = Shape::new(&dimensions, limits)?;
            let values = input
                .numbers(shape.count(), |mut bytes, kind| shape.read(&mut bytes, kind, big_endian, true))?;
            self.signal = Some((rank, shape, values));
        } else if let Some(rank) = better(rank(LABELS, &name), self.labels.as_ref(), |f| f.0) {
            self.labels = Some((rank, whole(input, vector()?)?));
        } else if let Some(rank) = better(rank(REPETITIONS, &name), self.repetitions.as_ref(), |f| f.0) {
            self.repetitions = Some((rank, whole(input, vector()?)?));
        } else if let Some(rank) = better(rank(RATE, &name), self.rate.as_ref(), |f| f.0)
            && total == 1
        {
            let mut rate = 0.0;
            input.numbers(1, |mut bytes, kind| {
                Numbers { kind, big_endian, count: 1 }.read(&mut bytes, |_, value| {
                    rate = value;
                    Ok(())
                })
            })?;
            self.rate = Some((rank, rate));
        }
        Ok(())
    }

    fn recording(self) -> Result<Recording, RecordingError> {
        let (_, shape, values) = self.signal.ok_or(RecordingError::NoSignal)?;
        Recording {
            channels: shape.channels,
            values,
            block: shape.block(),
            labels: self.labels.map(|l| l.1),
            repetitions: self.repetitions.map(|r| r.1),
            rate_hz: self.rate.map(|r| r.1),
        }
        .validated()
    }
}

fn whole<R: Read>(input: &mut Input<'_, R>, count: usize) -> Result<Vec<i32>, RecordingError> {
    let big_endian = input.big_endian;
    input.numbers(count, |mut bytes, kind| Numbers { kind, big_endian, count }.whole(&mut bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use std::io::Write as _;

    const LIMITS: Limits = Limits { values: 1 << 16, bytes: 1 << 20 };

    /// Writes MAT-files of either byte order.
    #[derive(Clone, Copy)]
    struct Writer {
        big: bool,
    }

    impl Writer {
        fn word(self, value: u32) -> [u8; 4] {
            if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
        }

        fn header(self) -> Vec<u8> {
            let mut out = vec![b' '; 116];
            out.extend([0; 8]);
            out.extend(if self.big { *b"\x01\x00MI" } else { *b"\x00\x01IM" });
            out
        }

        fn element(self, kind: u32, data: &[u8]) -> Vec<u8> {
            let mut out = [self.word(kind), self.word(u32::try_from(data.len()).unwrap())].concat();
            out.extend(data);
            out.resize(out.len().next_multiple_of(8), 0);
            out
        }

        fn small(self, kind: u32, data: &[u8]) -> Vec<u8> {
            let mut out = self.word(kind | u32::try_from(data.len()).unwrap() << 16).to_vec();
            out.extend(data);
            out.resize(8, 0);
            out
        }

        fn array(self, class: u32, name: &str, dimensions: &[u32], data: &[u8]) -> Vec<u8> {
            let words = |list: &[u32]| list.iter().flat_map(|&w| self.word(w)).collect::<Vec<u8>>();
            let name = if name.len() <= 4 {
                self.small(INT8, name.as_bytes())
            } else {
                self.element(INT8, name.as_bytes())
            };
            let body = [
                self.element(UINT32, &words(&[class, 0])),
                self.element(INT32, &words(dimensions)),
                name,
                data.to_vec(),
            ]
            .concat();
            self.element(MATRIX, &body)
        }

        fn doubles(self, name: &str, dimensions: &[u32], values: &[f64]) -> Vec<u8> {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|v| if self.big { v.to_be_bytes() } else { v.to_le_bytes() })
                .collect();
            self.array(6, name, dimensions, &self.element(9, &bytes))
        }

        fn compressed(self, element: &[u8]) -> Vec<u8> {
            let mut packer = ZlibEncoder::new(Vec::new(), Compression::best());
            packer.write_all(element).unwrap();
            let packed = packer.finish().unwrap();
            let mut out = [self.word(COMPRESSED), self.word(u32::try_from(packed.len()).unwrap())].concat();
            out.extend(packed);
            out
        }

        fn file(self, elements: &[Vec<u8>]) -> Vec<u8> {
            [self.header(), elements.concat()].concat()
        }
    }

    const BOTH: [Writer; 2] = [Writer { big: false }, Writer { big: true }];
    const LITTLE: Writer = Writer { big: false };

    fn open(bytes: &[u8]) -> Result<Recording, RecordingError> {
        Recording::read(bytes, &LIMITS)
    }

    /// Three rows of two channels, with everything that can stand beside them.
    fn everything(w: Writer) -> Vec<Vec<u8>> {
        vec![
            w.doubles("exercise", &[1, 1], &[1.0]),
            w.doubles("emg", &[3, 2], &[1.0, 3.0, 5.0, 2.0, 4.0, 6.0]),
            // A double array whose whole numbers were stored in one byte each, in a small element.
            w.array(6, "stimulus", &[3, 1], &w.small(2, &[0, 7, 7])),
            w.array(8, "restimulus", &[3, 1], &w.small(INT8, &[0, 0, 7])),
            w.array(9, "repetition", &[3, 1], &w.small(2, &[0, 1, 1])),
            w.array(
                12,
                "frequency",
                &[1, 1],
                &w.small(4, &if w.big { 2000u16.to_be_bytes() } else { 2000u16.to_le_bytes() }),
            ),
        ]
    }

    fn check(recording: &Recording) {
        assert_eq!((recording.channels(), recording.rows()), (2, 3));
        assert_eq!(recording.values(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!([0, 1, 2].map(|row| recording.label(row)), [Some(0), Some(0), Some(7)], "restimulus");
        assert_eq!([0, 1, 2].map(|row| recording.repetition(row)), [Some(0), Some(1), Some(1)]);
        assert_eq!(recording.rate_hz(), Some(2000.0));
    }

    #[test]
    fn arrays_are_found_in_either_byte_order_compressed_or_not_in_any_order() {
        for w in BOTH {
            let plain = everything(w);
            let packed: Vec<Vec<u8>> = plain.iter().map(|e| w.compressed(e)).collect();
            let backwards: Vec<Vec<u8>> = plain.iter().rev().cloned().collect();
            for elements in [&plain, &packed, &backwards] {
                check(&open(&w.file(elements)).unwrap());
            }
        }
    }

    #[test]
    fn windows_are_rows_one_after_the_other() {
        // Element [n, w, c] is 100 n + 10 w + c, the first dimension fastest.
        let values: Vec<f64> = (0..2)
            .flat_map(|c| (0..3).flat_map(move |w| (0..2).map(move |n| f64::from(100 * n + 10 * w + c))))
            .collect();
        let elements =
            [LITTLE.doubles("data", &[2, 3, 2], &values), LITTLE.doubles("labels", &[2, 1], &[4.0, 9.0])];
        let recording = open(&LITTLE.file(&elements)).unwrap();
        assert_eq!((recording.window_rows(), recording.rows(), recording.channels()), (Some(3), 6, 2));
        assert_eq!(recording.row(4), Some(&[110.0, 111.0][..]));
        assert_eq!([2, 3].map(|row| recording.label(row)), [Some(4), Some(9)]);
    }

    #[test]
    fn what_is_not_a_numeric_array_is_passed_over() {
        let mut elements = vec![
            LITTLE.array(4, "emg", &[1, 2], &LITTLE.small(4, &[b'a', 0, b'b', 0])),
            LITTLE.array(2, "data", &[1, 1], &[]),
            LITTLE.array(
                0x806,
                "data",
                &[1, 1],
                &[LITTLE.element(9, &[0; 8]), LITTLE.element(9, &[0; 8])].concat(),
            ),
            LITTLE.element(1, b"odd"),
        ];
        assert_eq!(open(&LITTLE.file(&elements)), Err(RecordingError::NoSignal));
        elements.extend(everything(LITTLE));
        check(&open(&LITTLE.file(&elements)).unwrap());
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_refused_or_lacks_what_comes_later() {
        for w in BOTH {
            for packed in [false, true] {
                let elements: Vec<Vec<u8>> =
                    everything(w).into_iter().map(|e| if packed { w.compressed(&e) } else { e }).collect();
                let whole = w.file(&elements);
                let mut borders = vec![128];
                elements.iter().for_each(|e| borders.push(borders[borders.len() - 1] + e.len()));
                for cut in 128..whole.len() {
                    let read = open(&whole[..cut]);
                    if borders.contains(&cut) {
                        let there = borders.iter().position(|&b| b == cut).unwrap();
                        assert_eq!(read.is_ok(), there >= 2, "{there} elements: {read:?}");
                    } else {
                        assert!(read.is_err(), "after {cut} bytes of {}", whole.len());
                    }
                }
            }
        }
    }

    #[test]
    fn any_changed_byte_is_read_or_refused() {
        for packed in [false, true] {
            let elements: Vec<Vec<u8>> = everything(LITTLE)
                .into_iter()
                .map(|e| if packed { LITTLE.compressed(&e) } else { e })
                .collect();
            let whole = LITTLE.file(&elements);
            for at in 0..whole.len() {
                for bit in 0..8 {
                    let mut changed = whole.clone();
                    changed[at] ^= 1 << bit;
                    let _ = open(&changed);
                }
            }
        }
    }

    #[test]
    fn a_compressed_element_whose_checksum_is_wrong_is_refused() {
        // Long enough that its last number is unpacked before its checksum is looked at.
        let values: Vec<f64> = (0..20_000).map(|i| f64::from(i).sqrt()).collect();
        for element in [everything(LITTLE)[1].clone(), LITTLE.doubles("emg", &[10_000, 2], &values)] {
            let mut packed = LITTLE.compressed(&element);
            assert!(open(&LITTLE.file(&[packed.clone()])).is_ok());
            let last = packed.len() - 1;
            packed[last] ^= 1;
            assert!(matches!(open(&LITTLE.file(&[packed])), Err(RecordingError::Damaged(_))));
        }
    }

    #[test]
    fn a_bomb_is_refused_in_little_memory() {
        // An array that nobody wants, of 16 MiB of zeros in 16 KiB.
        let zeros = LITTLE.array(9, "bomb", &[1 << 24, 1], &LITTLE.element(2, &vec![0; 1 << 24]));
        let packed = LITTLE.compressed(&zeros);
        assert!(packed.len() < 1 << 15);
        assert_eq!(open(&LITTLE.file(&[packed])), Err(RecordingError::TooManyBytes(LIMITS.bytes)));
        let wanted = LITTLE.array(9, "emg", &[1 << 24, 1], &LITTLE.element(2, &vec![0; 1 << 24]));
        let packed = LITTLE.compressed(&wanted);
        assert_eq!(
            open(&LITTLE.file(&[packed])),
            Err(RecordingError::TooLarge { found: 1 << 24, most: LIMITS.values })
        );
    }

    #[test]
    fn shapes_that_do_not_fit_their_numbers_are_refused() {
        for dimensions in [&[3, 3][..], &[2, 2], &[6], &[3, 1, 2, 1, 1]] {
            let read = open(&LITTLE.file(&[LITTLE.doubles("emg", dimensions, &[0.0; 6])]));
            let fits = dimensions.iter().product::<u32>() == 6;
            assert_eq!(read.is_ok(), fits, "{dimensions:?}: {read:?}");
        }
        let wide = LITTLE.doubles("emg", &[2, 40], &[0.0; 80]);
        assert_eq!(open(&LITTLE.file(&[wide])), Err(RecordingError::Channels(40)));
        let negative = LITTLE.doubles("emg", &[u32::MAX, 1], &[0.0]);
        assert!(matches!(open(&LITTLE.file(&[negative])), Err(RecordingError::TooLarge { .. })));
        let empty = LITTLE.doubles("emg", &[0, 16], &[]);
        assert_eq!(open(&LITTLE.file(&[empty])), Err(RecordingError::Empty));
    }

    #[test]
    fn labels_and_rate_must_fit() {
        let with = |extra: Vec<u8>| open(&LITTLE.file(&[everything(LITTLE)[1].clone(), extra]));
        assert_eq!(
            with(LITTLE.doubles("labels", &[2, 1], &[1.0, 2.0])),
            Err(RecordingError::Labels { labels: 2, rows: 3 })
        );
        assert_eq!(with(LITTLE.doubles("labels", &[3, 1], &[1.0, 2.5, 3.0])), Err(RecordingError::Label(1)));
        assert_eq!(with(LITTLE.doubles("frequency", &[1, 1], &[-2.0])), Err(RecordingError::Rate(-2.0)));
        let nan = open(&LITTLE.file(&[LITTLE.doubles("emg", &[3, 2], &[1.0, 1.0, 1.0, 1.0, f64::NAN, 1.0])]));
        assert_eq!(nan, Err(RecordingError::NotFinite { row: 1, channel: 1 }));
    }

    #[test]
    fn other_versions_are_refused_by_name() {
        for w in BOTH {
            let mut file = w.file(&everything(w));
            let version = if w.big { 124 } else { 125 };
            file[version] = 2;
            let said = open(&file).unwrap_err().to_string();
            assert!(said.contains("7.3") && said.contains("-v7"), "{said}");
            file[version] = 0;
            assert!(matches!(open(&file), Err(RecordingError::Unsupported(_))));
        }
    }
}
