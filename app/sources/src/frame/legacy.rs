//! The older form without frames: interleaved int16, little-endian, sample after sample, nothing else.
//!
//! There is no mark in it, so one lost byte turns every value that follows into nonsense, and two lost bytes move every
//! channel to its neighbour's place. [`Decoder`] starts where the stream starts and, if [`Settings::resynchronise`] is
//! set, looks back at every 64 samples for what only a shifted stream shows:
//! * **Bytes swapped**: muscles change little from one sample to the next, and a low byte in a high byte's place changes
//!   wildly. If the other alignment is less than half as rough, twice in a row, one byte is dropped. Right for signals
//!   that stay within a fraction of the full range; a signal that always spans it looks the same either way.
//! * **Channels rotated**: each channel's mean (its electrode's and converter's offset) is learned. If another rotation
//!   fits the means more than twice as well, three times in a row, so many values are dropped. Only if the channels'
//!   means differ by more than they move: [`Decoder::knows_channels`] says whether they do.
//!
//! These are guesses: up to 192 samples are wrong before one is made. A stream that began in the middle of a sample is put
//! right as to bytes, never as to channels. Use the framed protocol where the sender can be changed.

use crate::MAX_CHANNELS;

/// Samples that are looked at together.
const BLOCK: usize = 64;
const BLOCK_BYTES: usize = BLOCK * 2 * MAX_CHANNELS;
/// Blocks in a row that must say the same before the alignment of bytes, of channels is changed.
const BYTES_AGREE: u8 = 2;
const CHANNELS_AGREE: u8 = 3;
/// Blocks from which the means are learned before they are believed.
const LEARNING: u32 = 8;

/// What the sender sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Values in a sample: 1 to 32.
    pub channels: usize,
    /// Look for shifts, and undo them.
    pub resynchronise: bool,
}

/// The settings cannot be; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sensor has 1 to 32 channels, not {0}")]
pub struct ChannelsError(pub usize);

/// A sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// Its number. One is left out where the alignment was changed, so that nobody takes what follows for a continuation.
    pub sequence: u64,
    /// Its values, channel by channel.
    pub values: &'a [i16],
}

/// What a decoder has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes taken in.
    pub bytes: u64,
    /// Samples handed on.
    pub samples: u64,
    /// Times that the alignment of bytes was changed.
    pub bytes_shifted: u64,
    /// Times that the order of channels was changed.
    pub channels_rotated: u64,
    /// Bytes dropped for it.
    pub dropped: u64,
}

/// Cuts a stream into samples; holds one sample and one block.
#[derive(Clone, Debug)]
pub struct Decoder {
    settings: Settings,
    part: heapless::Vec<u8, { 2 * MAX_CHANNELS }>,
    block: heapless::Vec<u8, BLOCK_BYTES>,
    means: Means,
    /// Blocks in a row that were smoother by one byte further.
    shifted: u8,
    /// Blocks in a row that fitted this rotation better.
    rotated: (usize, u8),
    /// Bytes still to be dropped.
    drop: usize,
    sequence: u64,
    counts: Counts,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    ///
    /// # Errors
    /// [`ChannelsError`] if there are not 1 to 32 channels.
    pub fn new(settings: Settings) -> Result<Self, ChannelsError> {
        if settings.channels == 0 || settings.channels > MAX_CHANNELS {
            return Err(ChannelsError(settings.channels));
        }
        Ok(Self {
            settings,
            part: heapless::Vec::new(),
            block: heapless::Vec::new(),
            means: Means::default(),
            shifted: 0,
            rotated: (0, 0),
            drop: 0,
            sequence: 0,
            counts: Counts::default(),
        })
    }

    /// What was seen so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The channels' means differ enough to notice when they are rotated.
    #[must_use]
    pub fn knows_channels(&self) -> bool {
        self.means.distinct(self.settings.channels)
    }

    /// The port was opened anew: what comes begins with a whole sample.
    pub fn reset(&mut self) {
        self.drop = 0;
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        self.part.clear();
        self.block.clear();
        self.shifted = 0;
        self.rotated = (0, 0);
        self.sequence += 1;
    }

    /// Takes bytes in and hands every sample on.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Sample<'_>)) {
        self.counts.bytes += bytes.len() as u64;
        let length = 2 * self.settings.channels;
        for &byte in bytes {
            if self.drop > 0 {
                self.drop -= 1;
                self.counts.dropped += 1;
                continue;
            }
            let _ = self.part.push(byte);
            if self.part.len() < length {
                continue;
            }
            let values: heapless::Vec<i16, MAX_CHANNELS> =
                self.part.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect();
            each(Sample { sequence: self.sequence, values: &values });
            self.sequence += 1;
            self.counts.samples += 1;
            if self.settings.resynchronise {
                let _ = self.block.extend_from_slice(&self.part);
            }
            self.part.clear();
            if self.block.len() == BLOCK * length {
                self.look_back();
            }
        }
    }

    fn look_back(&mut self) {
        let channels = self.settings.channels;
        let rough = roughness(&self.block, channels);
        let other = roughness(&self.block[1..], channels);
        if other * 2 < rough {
            self.shifted += 1;
            if self.shifted == BYTES_AGREE {
                self.counts.bytes_shifted += 1;
                self.begin_anew();
                self.drop = 1;
            }
            self.block.clear();
            return;
        }
        self.shifted = 0;
        let now = means(&self.block, channels);
        self.block.clear();
        match self.means.better_rotation(&now) {
            Some(by) => {
                self.rotated = if self.rotated.0 == by { (by, self.rotated.1 + 1) } else { (by, 1) };
                if self.rotated.1 == CHANNELS_AGREE {
                    self.counts.channels_rotated += 1;
                    self.begin_anew();
                    self.drop = 2 * by;
                }
            }
            None => {
                self.rotated = (0, 0);
                self.means.learn(&now);
            }
        }
    }
}

/// How much a channel changes from one sample to the next, summed over a block that may begin anywhere.
fn roughness(block: &[u8], channels: usize) -> u64 {
    let value = |b: &[u8]| i64::from(i16::from_le_bytes([b[0], b[1]]));
    let ahead = block.get(2 * channels..).unwrap_or_default();
    block.chunks_exact(2).zip(ahead.chunks_exact(2)).map(|(a, b)| value(a).abs_diff(value(b))).sum()
}

type PerChannel = heapless::Vec<f64, MAX_CHANNELS>;

fn means(block: &[u8], channels: usize) -> PerChannel {
    let mut sums: PerChannel = (0..channels).map(|_| 0.0).collect();
    for sample in block.chunks_exact(2 * channels) {
        for (sum, b) in sums.iter_mut().zip(sample.chunks_exact(2)) {
            *sum += f64::from(i16::from_le_bytes([b[0], b[1]]));
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "64")]
    sums.iter_mut().for_each(|sum| *sum /= BLOCK as f64);
    sums
}

/// The means of the channels, and how much they move from block to block.
#[derive(Clone, Debug, Default)]
struct Means {
    of: PerChannel,
    /// The usual distance of a block's means from these.
    moves: f64,
    blocks: u32,
}

impl Means {
    fn learn(&mut self, now: &PerChannel) {
        if self.blocks == 0 {
            self.of.clone_from(now);
        }
        self.blocks = self.blocks.saturating_add(1);
        // A plain mean at first, then slowly forgetting.
        let weight = 1.0 / f64::from(self.blocks.min(32));
        let away = distance(&self.of, now, 0);
        self.moves += (away - self.moves) * weight;
        for (mean, now) in self.of.iter_mut().zip(now) {
            *mean += (now - *mean) * weight;
        }
    }

    fn distinct(&self, channels: usize) -> bool {
        self.blocks >= LEARNING
            && channels > 1
            && (1..channels).all(|by| distance(&self.of, &self.of, by) > 4.0 * self.moves)
    }

    /// How many values must be dropped for a rotation that fits more than twice as well as none.
    fn better_rotation(&self, now: &PerChannel) -> Option<usize> {
        if !self.distinct(self.of.len()) {
            return None;
        }
        let unmoved = distance(&self.of, now, 0);
        let (by, best) = (1..self.of.len())
            .map(|by| (by, distance(&self.of, now, by)))
            .min_by(|a, b| a.1.total_cmp(&b.1))?;
        (best * 2.0 < unmoved).then_some(by)
    }
}

/// How far the means are from what they should be if `now` came so many values too early.
fn distance(of: &PerChannel, now: &PerChannel, by: usize) -> f64 {
    now.iter().cycle().skip(by).zip(of).map(|(now, of)| (now - of).abs()).sum()
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "test data")]
mod tests {
    use super::*;
    use rand_pcg::Pcg64;
    use rand_pcg::rand_core::Rng as _;

    const ON: Settings = Settings { channels: 8, resynchronise: true };

    /// Samples of eight channels with noise around the means.
    fn stream(samples: usize, means: [i16; 8]) -> Vec<u8> {
        let mut random = Pcg64::new(1, 1);
        (0..samples)
            .flat_map(|_| means)
            .flat_map(|mean| (mean + (random.next_u32() % 401) as i16 - 200).to_le_bytes())
            .collect()
    }

    const APART: [i16; 8] = [0, 150, -400, 90, 700, -60, 320, -900];

    /// The samples that follow the last change of alignment are channels in their place.
    fn ends_well(decoder: &mut Decoder, bytes: &[u8]) -> bool {
        let mut last = Vec::new();
        for part in bytes.chunks(33) {
            decoder.push(part, |s| last.push(s.values.to_vec()));
        }
        let tail = &last[last.len() - 100..];
        tail.iter().all(|s| s.iter().zip(APART).all(|(v, m)| (v - m).abs() <= 200))
    }

    #[test]
    fn samples_come_out_as_they_went_in() {
        let bytes = stream(500, APART);
        for resynchronise in [false, true] {
            let mut decoder = Decoder::new(Settings { resynchronise, ..ON }).unwrap();
            let (mut again, mut next) = (Vec::new(), 0);
            for part in bytes.chunks(7) {
                decoder.push(part, |s| {
                    assert_eq!((s.sequence, s.values.len()), (next, 8));
                    next += 1;
                    again.extend(s.values.iter().flat_map(|v| v.to_le_bytes()));
                });
            }
            assert_eq!(again, bytes);
        }
    }

    #[test]
    fn any_number_of_lost_bytes_is_made_up_for() {
        let bytes = stream(4000, APART);
        for lost in 1..16 {
            let mut cut = bytes.clone();
            cut.drain(20_003..20_003 + lost);
            let mut decoder = Decoder::new(ON).unwrap();
            assert!(ends_well(&mut decoder, &cut), "{lost} bytes lost");
            let c = decoder.counts();
            assert_eq!(c.bytes_shifted, lost as u64 % 2, "{lost} bytes lost");
            assert!(c.channels_rotated <= 1);
            assert!(decoder.knows_channels());
            let mut without = Decoder::new(Settings { resynchronise: false, ..ON }).unwrap();
            assert!(!ends_well(&mut without, &cut), "it would not come right by itself");
        }
    }

    #[test]
    fn a_change_of_alignment_leaves_a_number_out() {
        let mut bytes = stream(2000, APART);
        bytes.remove(10_000);
        let mut decoder = Decoder::new(ON).unwrap();
        let (mut next, mut gaps) = (0, 0);
        decoder.push(&bytes, |s| {
            gaps += u64::from(s.sequence != next);
            next = s.sequence + 1;
        });
        let c = decoder.counts();
        assert_eq!(gaps, c.bytes_shifted + c.channels_rotated);
        assert!(gaps > 0);
    }

    #[test]
    fn channels_that_are_alike_are_left_alone() {
        let mut decoder = Decoder::new(ON).unwrap();
        let bytes = stream(4000, [0; 8]);
        decoder.push(&bytes, |_| ());
        decoder.push(&bytes[2..], |_| ());
        assert!(!decoder.knows_channels());
        assert_eq!((decoder.counts().bytes_shifted, decoder.counts().channels_rotated), (0, 0));
    }

    #[test]
    fn a_signal_that_spans_the_full_range_is_left_alone() {
        let mut random = Pcg64::new(9, 9);
        let bytes: Vec<u8> = (0..64_000).map(|_| random.next_u32().to_le_bytes()[0]).collect();
        let mut decoder = Decoder::new(ON).unwrap();
        decoder.push(&bytes, |_| ());
        assert_eq!((decoder.counts().bytes_shifted, decoder.counts().channels_rotated), (0, 0));
    }

    #[test]
    fn impossible_settings_are_refused() {
        for channels in [0, 33] {
            assert_eq!(Decoder::new(Settings { channels, ..ON }).unwrap_err(), ChannelsError(channels));
        }
    }
}
