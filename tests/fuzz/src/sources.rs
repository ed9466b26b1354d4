//! What sensors and recordings send: frames, bare samples, MAT, NPY and CSV files.

use flate2::{Compression, write::ZlibEncoder};
use inferd_sources::frame::{Decoder, Header, MAX_FRAME, MAX_VALUES, SYNC, Tracker, encode, legacy, line};
use inferd_sources::recording::{Limits, Recording, RecordingError, labels};
use std::io::{Read, Write as _};

/// Small enough that every size is reached.
const LIMITS: Limits = Limits { values: 1 << 14, bytes: 1 << 18 };

/// A stream of frames and garbage. The first byte says how it is cut. Then, again and again, a byte: even: so many (half of
/// it) bytes as they are; odd: a frame of the next twelve bytes, whose checks fit, with values of what follows; of 0x80 and
/// more one of its bits is wrong.
pub fn frame(data: &[u8]) {
    let Some((&piece, mut rest)) = data.split_first() else { return };
    let mut stream = Vec::new();
    while let Some((&op, after)) = rest.split_first() {
        rest = after;
        if op & 1 == 0 || rest.len() < 12 {
            let (raw, after) = rest.split_at(rest.len().min(usize::from(op) / 2));
            stream.extend_from_slice(raw);
            rest = after;
            continue;
        }
        let (head, after) = rest.split_at(12);
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let header = Header {
            channels: head[0] % 33,
            steps: head[1],
            flags: head[2],
            sequence: number(4),
            timestamp_us: number(8),
        };
        let values: Vec<i16> = (0..header.values())
            .map(|i| i16::from_le_bytes([*after.get(i).unwrap_or(&SYNC[i % 2]); 2]))
            .collect();
        rest = after.get(header.values().min(MAX_VALUES)..).unwrap_or_default();
        let mut frame = [0; MAX_FRAME];
        let Ok(length) = encode(&header, &values, &mut frame) else { continue };
        if op & 0x80 != 0 {
            frame[usize::from(head[3]) % length] ^= 1 << (op >> 4 & 7);
        }
        stream.extend_from_slice(&frame[..length]);
    }
    let whole = frames(&stream, stream.len().max(1));
    assert_eq!(
        whole,
        frames(&stream, usize::from(piece).max(1)),
        "the same frames however the stream is cut"
    );
    // What is found is there.
    let mut left = &stream[..];
    for (header, values) in whole {
        let mut frame = [0; MAX_FRAME];
        let length = encode(&Header { flags: 0, ..header }, &values, &mut frame).expect("it was read");
        let flags = Header { flags: header.flags, ..header };
        assert_eq!(encode(&flags, &values, &mut frame), Ok(length));
        let at = left.windows(length).position(|w| w == &frame[..length]).expect("it is in the stream");
        left = &left[at + length..];
    }
}

/// The frames of a stream, with what is promised of their numbers.
fn frames(stream: &[u8], piece: usize) -> Vec<(Header, Vec<i16>)> {
    let (mut decoder, mut tracker, mut found) = (Decoder::new(), Tracker::new(), Vec::new());
    let mut next = 0;
    for part in stream.chunks(piece) {
        decoder.push(part, |frame| {
            let tracked = tracker.take(&frame.header);
            if tracked.continuity.is_new() {
                assert!(tracked.sequence >= next, "numbers only grow");
                next = tracked.sequence + u64::from(frame.header.steps);
            }
            found.push((frame.header, frame.values().collect()));
        });
        let c = decoder.counts();
        assert_eq!(c.bytes, c.framed + c.skipped + decoder.held() as u64, "every byte is accounted for");
        assert!(decoder.held() < MAX_FRAME);
        for errors in [None, Some(0), Some(c.bytes)] {
            assert!(!line::judge(c, errors).sentence().is_empty());
        }
    }
    found
}

/// Bare samples. The first byte says how many channels, the second how the stream is cut.
pub fn legacy(data: &[u8]) {
    let [channels, piece, stream @ ..] = data else { return };
    let settings =
        legacy::Settings { channels: usize::from(channels % 32) + 1, resynchronise: channels & 0x80 == 0 };
    let read = |piece: usize| {
        let mut decoder = legacy::Decoder::new(settings).expect("1 to 32 channels");
        let mut samples = Vec::new();
        for part in stream.chunks(piece.max(1)) {
            decoder.push(part, |sample| samples.push((sample.sequence, sample.values.to_vec())));
        }
        let c = *decoder.counts();
        let used = c.samples * 2 * settings.channels as u64 + c.dropped;
        assert!(used <= c.bytes && c.bytes < used + 2 * settings.channels as u64, "{c:?}");
        assert!(samples.windows(2).all(|w| w[0].0 < w[1].0), "numbers only grow");
        (samples, c)
    };
    assert_eq!(read(stream.len()), read(usize::from(*piece)), "the same samples however the stream is cut");
}

/// A MAT file. The first byte: 0 its bytes, 1 and 2 the elements of a little- and a big-endian one, 3 and 4 one compressed
/// element of either.
pub fn mat(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let big = matches!(how, 2 | 4);
    let mut file = Vec::new();
    if how > 0 {
        file.resize(124, b' ');
        file.extend(if big { b"\x01\x00MI" } else { b"\x00\x01IM" });
    }
    if how > 2 {
        let mut packer = ZlibEncoder::new(Vec::new(), Compression::none());
        packer.write_all(rest).expect("memory is not full");
        let packed = packer.finish().expect("memory is not full");
        for word in [15, u32::try_from(packed.len()).expect("inputs are small")] {
            file.extend(if big { word.to_be_bytes() } else { word.to_le_bytes() });
        }
        file.extend(packed);
    } else {
        file.extend_from_slice(rest);
    }
    recording(&file);
}

/// An NPY file. The first byte: 0 its bytes, else a dictionary up to the first byte 0, and its data.
pub fn npy(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let mut file = b"\x93NUMPY".to_vec();
    if how == 0 {
        file.extend_from_slice(rest);
    } else {
        let at = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
        file.extend([how % 4, 0]);
        let length = u32::try_from(at).expect("inputs are small").to_le_bytes();
        file.extend(if how % 4 == 1 { &length[..2] } else { &length[..] });
        file.extend_from_slice(&rest[..at]);
        file.extend_from_slice(rest.get(at + 1..).unwrap_or_default());
    }
    recording(&file);
    if let Ok(labels) = labels(&file[..], &LIMITS) {
        assert!(labels.len() <= LIMITS.values);
    }
}

/// A text.
pub fn csv(data: &[u8]) {
    recording(data);
}

/// Gives a few bytes at a time.
struct Slowly<'a>(&'a [u8]);

impl Read for Slowly<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = into.len().min(7);
        self.0.read(&mut into[..n])
    }
}

/// A file is read, or refused with a sentence, whatever it is read by; what was read is finite and fits its limits.
fn recording(file: &[u8]) {
    let read = Recording::read(file, &LIMITS);
    // What is wrong first depends on how far a packed part was unpacked at once; that something is does not.
    assert_eq!(read.as_ref().ok(), Recording::read(Slowly(file), &LIMITS).as_ref().ok());
    match read {
        Ok(recording) => {
            let (rows, channels) = (recording.rows(), recording.channels());
            assert!((1..=32).contains(&channels) && rows > 0);
            assert_eq!(recording.values().len(), rows * channels);
            assert!(rows * channels <= LIMITS.values);
            assert!(recording.values().iter().all(|v| v.is_finite()));
            assert!(recording.row(rows - 1).is_some() && recording.row(rows).is_none());
            assert_eq!(recording.label(0).is_some(), recording.label(rows - 1).is_some());
            assert!(recording.label(rows).is_none() && recording.repetition(rows).is_none());
            if let Some(block) = recording.window_rows() {
                assert_eq!(rows % block, 0);
            }
        }
        Err(why) => {
            let said = why.to_string();
            assert!(!said.is_empty() && said.len() < 300);
            assert!(!matches!(why, RecordingError::Read(_)), "memory can always be read");
        }
    }
}
