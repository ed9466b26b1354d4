//! Frames out of bytes.

use super::{CHECK_BYTES, Frame, HEADER_BYTES, Header, MAX_FRAME, SYNC, VERSION, crc16, line};

/// What a decoder has seen since it was made. Every byte is in exactly one of `framed`, `skipped` and what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes taken in.
    pub bytes: u64,
    /// Bytes of good frames.
    pub framed: u64,
    /// Bytes passed over in search of a frame.
    pub skipped: u64,
    /// Good frames.
    pub frames: u64,
    /// Frames whose header was good and whose samples were not.
    pub corrupt: u64,
    /// Places that began like a frame, with a header that was damaged or is of no frame.
    pub bad_headers: u64,
    /// Headers that were whole and of another version of the protocol.
    pub other_version: u64,
    /// Times that frames were found again after bytes that were none.
    pub resynchronised: u64,
    /// Skipped bytes in which no bit stands alone: see [`line::smooth`].
    pub smooth: u64,
}

impl Counts {
    /// What was seen after `earlier`, an older copy of the same counts.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            framed: self.framed.saturating_sub(earlier.framed),
            skipped: self.skipped.saturating_sub(earlier.skipped),
            frames: self.frames.saturating_sub(earlier.frames),
            corrupt: self.corrupt.saturating_sub(earlier.corrupt),
            bad_headers: self.bad_headers.saturating_sub(earlier.bad_headers),
            other_version: self.other_version.saturating_sub(earlier.other_version),
            resynchronised: self.resynchronised.saturating_sub(earlier.resynchronised),
            smooth: self.smooth.saturating_sub(earlier.smooth),
        }
    }
}

/// Finds frames in bytes that come in pieces of any size; holds at most one frame.
#[derive(Clone, Debug)]
pub struct Decoder {
    held: heapless::Vec<u8, MAX_FRAME>,
    counts: Counts,
    /// Bytes have been skipped since the last good frame.
    lost: bool,
}

/// What stands at the beginning of what is held.
enum Found {
    Frame(Header),
    /// A header that fits, and not yet its whole frame, or not yet a header.
    Part,
    Nothing,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            held: heapless::Vec::new(),
            counts: Counts {
                bytes: 0,
                framed: 0,
                skipped: 0,
                frames: 0,
                corrupt: 0,
                bad_headers: 0,
                other_version: 0,
                resynchronised: 0,
                smooth: 0,
            },
            lost: false,
        }
    }

    /// What was seen so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Bytes that are held until their frame is whole.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Forgets what is held: the port was opened anew, and what comes is no continuation.
    pub fn reset(&mut self) {
        let held = self.held.len();
        self.skip(held);
    }

    /// Takes bytes in and hands every good frame on, in their order.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame<'_>)) {
        self.counts.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            // There is always room: what fills the buffer is a frame or is not, and is gone either way.
            let (now, later) = bytes.split_at(bytes.len().min(self.held.capacity() - self.held.len()));
            let _ = self.held.extend_from_slice(now);
            bytes = later;
            self.search(&mut each);
        }
    }

    fn search(&mut self, each: &mut impl FnMut(Frame<'_>)) {
        let mut at = 0;
        loop {
            let rest = &self.held[at..];
            // A frame begins with the sync word; the last byte may be its first half.
            let Some(sync) = (0..rest.len())
                .find(|&i| rest[i] == SYNC[0] && rest.get(i + 1).is_none_or(|&b| b == SYNC[1]))
            else {
                self.skip(self.held.len());
                return;
            };
            at += sync;
            match self.look(at) {
                Found::Frame(header) => {
                    // Everything before it was no frame.
                    self.skip(at);
                    let length = header.frame_bytes();
                    if std::mem::take(&mut self.lost) && self.counts.frames > 0 {
                        self.counts.resynchronised += 1;
                    }
                    self.counts.frames += 1;
                    self.counts.framed += length as u64;
                    each(Frame { header, bytes: &self.held[HEADER_BYTES..length - CHECK_BYTES] });
                    self.remove(length);
                    at = 0;
                }
                Found::Part => {
                    self.skip(at);
                    return;
                }
                Found::Nothing => at += 1,
            }
        }
    }

    fn look(&mut self, at: usize) -> Found {
        let bytes = &self.held[at..];
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return Found::Part };
        if crc16(&head[..14]) != u16::from_le_bytes([head[14], head[15]]) {
            self.counts.bad_headers += 1;
            return Found::Nothing;
        }
        if head[2] != VERSION {
            self.counts.other_version += 1;
            return Found::Nothing;
        }
        let header = Header {
            channels: head[3],
            steps: head[4],
            flags: head[5],
            sequence: u32::from_le_bytes([head[6], head[7], head[8], head[9]]),
            timestamp_us: u32::from_le_bytes([head[10], head[11], head[12], head[13]]),
        };
        if header.check().is_err() {
            self.counts.bad_headers += 1;
            return Found::Nothing;
        }
        let Some(whole) = bytes.get(..header.frame_bytes()) else { return Found::Part };
        let Some((body, &check)) = whole.split_last_chunk::<CHECK_BYTES>() else { return Found::Nothing };
        if crc16(body) == u16::from_le_bytes(check) {
            Found::Frame(header)
        } else {
            self.counts.corrupt += 1;
            Found::Nothing
        }
    }

    /// Drops the first `n` bytes held, which are of no frame.
    fn skip(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        self.lost = true;
        self.counts.skipped += n as u64;
        for &byte in &self.held[..n] {
            self.counts.smooth += u64::from(line::smooth(byte));
        }
        self.remove(n);
    }

    fn remove(&mut self, n: usize) {
        self.held.copy_within(n.., 0);
        self.held.truncate(self.held.len() - n);
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "test data")]
mod tests {
    use super::super::{MAX_VALUES, encode};
    use super::*;
    use rand_pcg::Pcg64;
    use rand_pcg::rand_core::Rng as _;

    fn frame(sequence: u32, channels: u8, steps: u8) -> Vec<u8> {
        let header = Header { channels, steps, flags: 0, sequence, timestamp_us: sequence.wrapping_mul(500) };
        let samples: Vec<i16> =
            (0..header.values()).map(|i| i16::try_from(i).unwrap().wrapping_mul(257)).collect();
        let mut out = vec![0; MAX_FRAME];
        let n = encode(&header, &samples, &mut out).unwrap();
        out.truncate(n);
        out
    }

    /// The sequence numbers of the frames found, checked against their content.
    fn read(decoder: &mut Decoder, bytes: &[u8], piece: usize) -> Vec<u32> {
        let mut found = Vec::new();
        for part in bytes.chunks(piece) {
            decoder.push(part, |f| {
                let again: Vec<i16> = f.values().collect();
                let mut out = vec![0; MAX_FRAME];
                let n = encode(&f.header, &again, &mut out).unwrap();
                assert_eq!(out[..n], frame(f.header.sequence, f.header.channels, f.header.steps));
                found.push(f.header.sequence);
            });
            let c = decoder.counts();
            assert_eq!(c.bytes, c.framed + c.skipped + decoder.held() as u64, "every byte is accounted for");
        }
        found
    }

    #[test]
    fn frames_are_found_in_pieces_of_any_size() {
        let stream: Vec<u8> = (0..20).flat_map(|i| frame(i, 16, 10)).collect();
        for piece in [1, 2, 7, 15, 16, 17, 338, 339, 5000] {
            let mut decoder = Decoder::new();
            assert_eq!(
                read(&mut decoder, &stream, piece),
                (0..20).collect::<Vec<_>>(),
                "in pieces of {piece}"
            );
            assert_eq!(
                (decoder.counts().skipped, decoder.counts().resynchronised, decoder.held()),
                (0, 0, 0)
            );
        }
    }

    #[test]
    fn the_longest_frame_is_read() {
        for (channels, steps) in [(2, 255), (32, 16), (16, 32), (1, 255)] {
            let mut decoder = Decoder::new();
            assert_eq!(read(&mut decoder, &frame(9, channels, steps), 64), [9]);
        }
        assert_eq!(frame(0, 32, 16).len(), MAX_FRAME);
        assert_eq!(MAX_VALUES, 512);
    }

    #[test]
    fn a_lost_byte_costs_one_frame() {
        for lost in 0..338 {
            let mut stream: Vec<u8> = (0..6).flat_map(|i| frame(i, 16, 10)).collect();
            stream.remove(2 * 338 + lost);
            let mut decoder = Decoder::new();
            assert_eq!(read(&mut decoder, &stream, 50), [0, 1, 3, 4, 5], "without byte {lost}");
            assert_eq!(decoder.counts().resynchronised, 1);
        }
    }

    #[test]
    fn every_flipped_bit_costs_one_frame_and_nothing_else() {
        let clean: Vec<u8> = (0..4).flat_map(|i| frame(i, 4, 3)).collect();
        let length = clean.len() / 4;
        for bit in 0..length * 8 {
            let mut stream = clean.clone();
            stream[length + bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::new();
            assert_eq!(read(&mut decoder, &stream, 33), [0, 2, 3], "bit {bit}");
            let c = decoder.counts();
            assert_eq!(c.skipped, length as u64);
            if bit >= HEADER_BYTES * 8 {
                assert_eq!((c.corrupt, c.bad_headers), (1, 0));
            }
        }
    }

    #[test]
    fn a_damaged_length_is_not_waited_for() {
        let mut stream = frame(0, 16, 1);
        stream[4] = 32; // now it claims 1042 bytes
        let next = frame(1, 16, 1);
        stream.extend(&next);
        let mut decoder = Decoder::new();
        assert_eq!(read(&mut decoder, &stream, 1), [1], "the next frame is there with its own last byte");
    }

    #[test]
    fn frames_are_found_between_garbage_and_never_made_of_it() {
        let mut random = Pcg64::new(7, 11);
        let (mut stream, mut sent) = (Vec::new(), Vec::new());
        for i in 0..400 {
            for _ in 0..random.next_u32() % 300 {
                // Sync words are frequent, to make it hard.
                let r = random.next_u32().to_le_bytes();
                stream.extend(if r[0] < 40 { &SYNC[..] } else { &r[1..3] });
            }
            let channels = (random.next_u32() % 32 + 1) as u8;
            let steps = (random.next_u32() % (512 / u32::from(channels)).min(255) + 1) as u8;
            stream.extend(frame(i, channels, steps));
            sent.push(i);
        }
        let mut decoder = Decoder::new();
        assert_eq!(read(&mut decoder, &stream, 97), sent);
        assert!(decoder.counts().bad_headers > 1000, "{:?}", decoder.counts());
    }

    #[test]
    fn a_frame_inside_the_samples_of_a_damaged_one_is_found_as_any_other() {
        // Worst case of the search: the samples of a frame that is corrupt are themselves a frame.
        let inner = frame(5, 4, 3);
        let values: Vec<i16> = inner.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect();
        let header =
            Header { channels: 1, steps: values.len() as u8, flags: 0, sequence: 1, timestamp_us: 0 };
        let mut outer = vec![0; MAX_FRAME];
        let n = encode(&header, &values, &mut outer).unwrap();
        outer.truncate(n);
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        decoder.push(&outer, |f| seen.push(f.header.sequence));
        assert_eq!(seen, [1], "a whole frame hides what looks like one inside it");
        outer[n - 1] ^= 1;
        decoder.push(&outer, |f| seen.push(f.header.sequence));
        assert_eq!(seen, [1, 5]);
    }

    #[test]
    fn another_version_is_counted_and_not_read() {
        let mut other = frame(0, 1, 1);
        other[2] = 2;
        let crc = crc16(&other[..14]).to_le_bytes();
        other[14..16].copy_from_slice(&crc);
        let mut decoder = Decoder::new();
        assert_eq!(read(&mut decoder, &other, 100), Vec::<u32>::new());
        assert_eq!(decoder.counts().other_version, 1);
    }

    #[test]
    fn what_was_held_is_forgotten_when_the_port_is_opened_anew() {
        let whole = frame(3, 16, 4);
        let mut decoder = Decoder::new();
        decoder.push(&whole[..100], |_| panic!("it is not whole"));
        decoder.reset();
        assert_eq!(decoder.held(), 0);
        assert_eq!(read(&mut decoder, &whole, 1000), [3]);
        assert_eq!(decoder.counts().skipped, 100);
    }
}
