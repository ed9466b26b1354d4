//! Recordings: MAT v5 as NinaPro's, NPY, CSV, read into bounded memory.
//!
//! [`Recording::read`] tells the format by its first bytes. A recording is rows of finite numbers, one column a channel,
//! with labels if the file has them; a file that is damaged, hostile or something else is refused with the reason, never
//! guessed at and never replaced by made-up data. Memory is at most [`Limits::values`] four-byte numbers and as many labels
//! and repetitions as there are rows, whatever a header claims or a compressed part unpacks to.

mod csv;
mod mat;
mod npy;

use crate::MAX_CHANNELS;
use std::io::{self, Cursor, Read};

/// How much of a file is read at a time.
const CHUNK: usize = 8 << 10;
/// The bytes by which formats are told apart: the header of a MAT file.
const HEAD: usize = 128;

/// How large a recording may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Values, of all channels together: 4 bytes of memory each.
    pub values: usize,
    /// Bytes of a file, unpacked, whether they are used or passed over.
    pub bytes: u64,
}

impl Default for Limits {
    /// 16,777,216 values: 64 MiB, 8.7 minutes of 16 channels at 2 kHz; and 1 GiB of file.
    fn default() -> Self {
        Self { values: 1 << 24, bytes: 1 << 30 }
    }
}

/// Why a file is no recording; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Read(io::ErrorKind),
    /// It ends too early.
    #[error("the file ends in the middle: it was cut short")]
    CutShort,
    /// Something in it cannot be.
    #[error("the file is damaged: {0}")]
    Damaged(&'static str),
    /// It is of a kind that is not read.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A type of number that is not read.
    #[error("values of type {0:?} are not read: store integers of 1 to 8 bytes or floats of 4 or 8")]
    Type(String),
    /// There is no signal in it.
    #[error("there is no signal in the file: it needs a numeric array named emg or data")]
    NoSignal,
    /// It has no rows.
    #[error("the recording is empty")]
    Empty,
    /// The number of channels.
    #[error("a recording has one column for each of 1 to 32 channels, not {0} columns")]
    Channels(usize),
    /// The number of dimensions.
    #[error(
        "a signal has the shape [samples], [samples, channels] or [windows, samples, channels], not {0} dimensions"
    )]
    Dimensions(usize),
    /// More values than there may be.
    #[error("the recording has {found} values, and at most {most} are read: cut it into parts")]
    TooLarge {
        /// As the file says.
        found: u64,
        /// As many as may be.
        most: usize,
    },
    /// More bytes than there may be.
    #[error("the file has more than {0} bytes when it is unpacked")]
    TooManyBytes(u64),
    /// A value is not a finite number, or too large for four bytes.
    #[error("row {row}, channel {channel} (both from 0) is not a finite number")]
    NotFinite {
        /// From 0.
        row: usize,
        /// From 0.
        channel: usize,
    },
    /// A label is not a whole number.
    #[error("label {0} (from 0) is not a whole number of 32 bits")]
    Label(usize),
    /// Labels for another number of rows.
    #[error("there are {labels} labels for {rows} rows")]
    Labels {
        /// How many labels.
        labels: usize,
        /// How many rows.
        rows: usize,
    },
    /// A sampling rate that cannot be.
    #[error("the file says that its sampling rate is {0} Hz")]
    Rate(f64),
    /// A line of text that is no row.
    #[error("line {line}: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: LineError,
    },
}

/// What is wrong with a line of a CSV file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is not text.
    #[error("it is not UTF-8 text")]
    Text,
    /// It does not end.
    #[error("it is longer than 16384 bytes")]
    Long,
    /// It has a quote.
    #[error("it has a quotation mark: write numbers without")]
    Quote,
    /// It has more or fewer fields than the lines before.
    #[error("it has {found} fields, and the lines before have {expected}")]
    Fields {
        /// As it is.
        found: usize,
        /// As before.
        expected: usize,
    },
    /// A field is no finite number.
    #[error("field {0} (from 1) is not a finite number")]
    Number(usize),
    /// A label is not a whole number.
    #[error("field {0} (from 1) is a label, and not a whole number of 32 bits")]
    Label(usize),
}

impl From<io::Error> for RecordingError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Self::CutShort,
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                Self::Damaged("a compressed part cannot be unpacked")
            }
            kind => Self::Read(kind),
        }
    }
}

/// Rows of samples, with labels if there are any.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    channels: usize,
    values: Vec<f32>,
    /// Rows per window, if it was cut into windows already.
    block: Option<usize>,
    labels: Option<Vec<i32>>,
    repetitions: Option<Vec<i32>>,
    rate_hz: Option<f64>,
}

impl Recording {
    /// Reads a recording of any format that is known: MAT v5, NPY, or else CSV.
    ///
    /// # Errors
    /// [`RecordingError`] says why it is none.
    pub fn read(mut input: impl Read, limits: &Limits) -> Result<Self, RecordingError> {
        let mut head = Vec::with_capacity(HEAD);
        input.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
        let npy = head.starts_with(npy::MAGIC);
        let mat = mat::is_header(&head);
        if !npy && !mat && head.contains(&0) {
            return Err(RecordingError::Unsupported(
                "the file is neither NPY, nor text, nor a MAT-file of level 5: save MAT-files with -v7",
            ));
        }
        let whole = Bounded { left: limits.bytes, input: Cursor::new(head).chain(input) };
        let read = if npy {
            npy::read(whole, limits)
        } else if mat {
            mat::read(whole, limits)
        } else {
            csv::read(whole, limits)
        };
        read.map_err(|e| {
            if e == RecordingError::Read(TOO_MUCH) { RecordingError::TooManyBytes(limits.bytes) } else { e }
        })
    }

    /// The same recording with labels of another file: one per row, or one per window if it is cut into windows.
    ///
    /// # Errors
    /// [`RecordingError::Labels`] if there are more or fewer.
    pub fn with_labels(self, labels: Vec<i32>) -> Result<Self, RecordingError> {
        self.fits(&labels)?;
        Ok(Self { labels: Some(labels), ..self })
    }

    /// Values per row.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// Samples per channel.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.values.len() / self.channels
    }

    /// All values, row by row.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values of a row.
    #[must_use]
    pub fn row(&self, row: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.channels).nth(row)
    }

    /// Rows per window, if the file has the shape `[windows, samples, channels]`: rows of two windows do not follow each
    /// other.
    #[must_use]
    pub const fn window_rows(&self) -> Option<usize> {
        self.block
    }

    /// The label of a row: NinaPro's `restimulus`, else `stimulus`.
    #[must_use]
    pub fn label(&self, row: usize) -> Option<i32> {
        self.of_row(self.labels.as_deref()?, row)
    }

    /// Which repetition of its movement a row belongs to.
    #[must_use]
    pub fn repetition(&self, row: usize) -> Option<i32> {
        self.of_row(self.repetitions.as_deref()?, row)
    }

    /// Samples per second, if the file says so.
    #[must_use]
    pub const fn rate_hz(&self) -> Option<f64> {
        self.rate_hz
    }

    fn of_row(&self, of: &[i32], row: usize) -> Option<i32> {
        if row >= self.rows() {
            return None;
        }
        of.get(if of.len() == self.rows() { row } else { row / self.block? }).copied()
    }

    fn fits(&self, of: &[i32]) -> Result<(), RecordingError> {
        let rows = self.rows();
        if of.len() == rows || self.block.is_some_and(|block| of.len() * block == rows) {
            Ok(())
        } else {
            Err(RecordingError::Labels { labels: of.len(), rows })
        }
    }

    /// Checks that everything fits.
    fn validated(self) -> Result<Self, RecordingError> {
        if self.values.is_empty() {
            return Err(RecordingError::Empty);
        }
        for of in [&self.labels, &self.repetitions].into_iter().flatten() {
            self.fits(of)?;
        }
        match self.rate_hz {
            Some(hz) if !(hz > 0.0 && hz <= 1e6) => Err(RecordingError::Rate(hz)),
            _ => Ok(self),
        }
    }
}

/// Reads labels from an NPY file of whole numbers, for a recording whose file has none.
///
/// # Errors
/// [`RecordingError`] says why they cannot be read.
pub fn labels(input: impl Read, limits: &Limits) -> Result<Vec<i32>, RecordingError> {
    npy::labels(Bounded { left: limits.bytes, input }, limits)
}

/// Given by [`Bounded`]; no reader of files has this kind of error.
const TOO_MUCH: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// A reader of so many bytes, and an error for more.
struct Bounded<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(into)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::from(TOO_MUCH))?;
        Ok(n)
    }
}

/// A type of number in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl Number {
    const fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The number in the first bytes of `little`, which are little-endian.
    #[allow(clippy::cast_precision_loss, reason = "samples have four bytes in the end, and labels 32 bits")]
    const fn decode(self, little: [u8; 8]) -> f64 {
        let [a, b, c, d, ..] = little;
        match self {
            Self::I8 => i8::from_le_bytes([a]) as f64,
            Self::U8 => a as f64,
            Self::I16 => i16::from_le_bytes([a, b]) as f64,
            Self::U16 => u16::from_le_bytes([a, b]) as f64,
            Self::I32 => i32::from_le_bytes([a, b, c, d]) as f64,
            Self::U32 => u32::from_le_bytes([a, b, c, d]) as f64,
            Self::F32 => f32::from_le_bytes([a, b, c, d]) as f64,
            Self::I64 => i64::from_le_bytes(little) as f64,
            Self::U64 => u64::from_le_bytes(little) as f64,
            Self::F64 => f64::from_le_bytes(little),
        }
    }
}

/// Numbers one after the other, as a file has them.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    kind: Number,
    big_endian: bool,
    count: usize,
}

impl Numbers {
    /// Reads them, each with its place.
    fn read(
        self,
        input: &mut impl Read,
        mut each: impl FnMut(usize, f64) -> Result<(), RecordingError>,
    ) -> Result<(), RecordingError> {
        let size = self.kind.bytes();
        let mut buffer = [0; CHUNK];
        let mut at = 0;
        while at < self.count {
            let n = (self.count - at).min(CHUNK / size);
            let bytes = &mut buffer[..n * size];
            input.read_exact(bytes)?;
            for number in bytes.chunks_exact(size) {
                let mut little = [0; 8];
                little[..size].copy_from_slice(number);
                if self.big_endian {
                    little[..size].reverse();
                }
                each(at, self.kind.decode(little))?;
                at += 1;
            }
        }
        Ok(())
    }

    fn whole(self, input: &mut impl Read) -> Result<Vec<i32>, RecordingError> {
        // It grows as the file is read, not as its header claims.
        let mut values = Vec::with_capacity(self.count.min(CHUNK));
        self.read(input, |at, value| {
            values.push(whole(value).ok_or(RecordingError::Label(at))?);
            Ok(())
        })?;
        Ok(values)
    }
}

/// A whole number of 32 bits.
fn whole(value: f64) -> Option<i32> {
    #[allow(clippy::cast_possible_truncation, reason = "checked on the same line")]
    (value >= f64::from(i32::MIN) && value <= f64::from(i32::MAX) && value == libm::trunc(value))
        .then_some(value as i32)
}

/// The shape of a signal: windows of rows of channels; a signal that is not cut is one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    windows: usize,
    rows: usize,
    channels: usize,
    /// It was written with three dimensions.
    cut: bool,
}

impl Shape {
    fn new(dimensions: &[u64], limits: &Limits) -> Result<Self, RecordingError> {
        let found = dimensions.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).unwrap_or(u64::MAX);
        let at = |i: usize| usize::try_from(dimensions[i]).unwrap_or(usize::MAX);
        let shape = match dimensions.len() {
            1 => Self { windows: 1, rows: at(0), channels: 1, cut: false },
            2 => Self { windows: 1, rows: at(0), channels: at(1), cut: false },
            3 => Self { windows: at(0), rows: at(1), channels: at(2), cut: true },
            n => return Err(RecordingError::Dimensions(n)),
        };
        if found == 0 {
            return Err(RecordingError::Empty);
        }
        if shape.channels > MAX_CHANNELS {
            return Err(RecordingError::Channels(shape.channels));
        }
        if found > limits.values as u64 {
            return Err(RecordingError::TooLarge { found, most: limits.values });
        }
        Ok(shape)
    }

    const fn count(&self) -> usize {
        self.windows * self.rows * self.channels
    }

    /// Where the k-th number of a file whose first dimension changes fastest belongs, row by row.
    const fn place(&self, k: usize) -> usize {
        if self.cut {
            let (window, rest) = (k % self.windows, k / self.windows);
            (window * self.rows + rest % self.rows) * self.channels + rest / self.rows
        } else {
            k % self.rows * self.channels + k / self.rows
        }
    }

    /// Reads a signal of this shape.
    fn read(
        &self,
        input: &mut impl Read,
        kind: Number,
        big_endian: bool,
        first_fastest: bool,
    ) -> Result<Vec<f32>, RecordingError> {
        let count = self.count();
        // Zeroed memory costs nothing until it is written: a header alone takes none.
        let mut values = vec![0.0; count];
        Numbers { kind, big_endian, count }.read(input, |k, value| {
            let at = if first_fastest { self.place(k) } else { k };
            values[at] = finite(value)
                .ok_or(RecordingError::NotFinite { row: at / self.channels, channel: at % self.channels })?;
            Ok(())
        })?;
        Ok(values)
    }

    const fn block(&self) -> Option<usize> {
        if self.cut { Some(self.rows) } else { None }
    }
}

fn finite(value: f64) -> Option<f32> {
    #[allow(clippy::cast_possible_truncation, reason = "what becomes infinite is refused")]
    let value = value as f32;
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits { values: 100, bytes: 1000 };

    #[test]
    fn a_file_that_never_ends_is_refused() {
        let endless = io::repeat(b'\n');
        assert_eq!(Recording::read(endless, &SMALL), Err(RecordingError::TooManyBytes(1000)));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::PermissionDenied.into())
            }
        }
        let denied = RecordingError::Read(io::ErrorKind::PermissionDenied);
        assert_eq!(Recording::read(Broken, &SMALL), Err(denied));
        assert_eq!(Recording::read(&b""[..], &SMALL), Err(RecordingError::Empty));
    }

    #[test]
    fn labels_fit_the_rows_or_the_windows() {
        let recording = Recording {
            channels: 2,
            values: vec![0.0; 24],
            block: Some(4),
            labels: None,
            repetitions: None,
            rate_hz: None,
        };
        assert_eq!((recording.rows(), recording.label(0)), (12, None));
        let by_window = recording.clone().with_labels(vec![7, 8, 9]).unwrap();
        assert_eq!([0, 3, 4, 11].map(|row| by_window.label(row)), [Some(7), Some(7), Some(8), Some(9)]);
        assert_eq!(by_window.label(12), None);
        let by_row = recording.clone().with_labels((0..12).collect()).unwrap();
        assert_eq!(by_row.label(5), Some(5));
        assert_eq!(recording.with_labels(vec![1; 5]), Err(RecordingError::Labels { labels: 5, rows: 12 }));
    }

    #[test]
    fn places_are_those_of_arrays_whose_first_dimension_changes_fastest() {
        let flat = Shape::new(&[3, 2], &SMALL).unwrap();
        assert_eq!((0..6).map(|k| flat.place(k)).collect::<Vec<_>>(), [0, 2, 4, 1, 3, 5]);
        // Two windows of three rows of two channels: element [n, w, c] is the k = n + 2 * (w + 3 * c)th.
        let cut = Shape::new(&[2, 3, 2], &SMALL).unwrap();
        for (n, w, c) in (0..2).flat_map(|n| (0..3).flat_map(move |w| (0..2).map(move |c| (n, w, c)))) {
            assert_eq!(cut.place(n + 2 * (w + 3 * c)), (n * 3 + w) * 2 + c);
        }
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let shape = |d: &[u64]| Shape::new(d, &SMALL).unwrap_err();
        assert_eq!(shape(&[]), RecordingError::Dimensions(0));
        assert_eq!(shape(&[1; 4]), RecordingError::Dimensions(4));
        assert_eq!(shape(&[0, 4]), RecordingError::Empty);
        assert_eq!(shape(&[2, 33]), RecordingError::Channels(33));
        assert_eq!(shape(&[51, 2]), RecordingError::TooLarge { found: 102, most: 100 });
        assert_eq!(shape(&[u64::MAX, 2]), RecordingError::TooLarge { found: u64::MAX, most: 100 });
        assert_eq!(shape(&[1 << 62, 1 << 62, 2]), RecordingError::TooLarge { found: u64::MAX, most: 100 });
    }

    #[test]
    fn whole_numbers_are_whole() {
        assert_eq!([0.0, -3.0, 2_147_483_647.0].map(whole), [Some(0), Some(-3), Some(i32::MAX)]);
        assert_eq!([0.5, 2_147_483_648.0, f64::NAN, f64::INFINITY].map(whole), [None; 4]);
    }
}
