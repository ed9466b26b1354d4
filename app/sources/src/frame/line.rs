//! What is wrong with a line that carries no frames.
//!
//! A receiver at the wrong baud rate gets bytes all the same. Two things give it away:
//! * **Framing errors**: where the stop bit should be is something else. The kernel counts them (`TIOCGICOUNT`, `frame`);
//!   a USB CDC device has no baud rate and never counts one.
//! * **Smooth bytes**, when the receiver is the faster one: every bit that was sent is received as two or more, so that no
//!   bit within a byte differs from both its neighbours. 68 of 256 bytes are like that, 27 % of random ones.

use super::Counts;

/// With fewer bytes than this nothing is said but what frames say: the longest frame four times over.
const ENOUGH_BYTES: u64 = 4 * super::MAX_FRAME as u64;
/// Of a good line so many of 100 bytes are in frames.
const GOOD_PERCENT: u64 = 95;
/// So many of 100 skipped bytes are smooth when each bit is received twice or more.
const SMOOTH_PERCENT: u64 = 80;
/// So many framing errors in 1000 bytes are no accident.
const FRAMING_PERMILLE: u64 = 20;

/// No bit within the byte differs from both its neighbours.
#[must_use]
pub const fn smooth(byte: u8) -> bool {
    let changes = (byte ^ (byte >> 1)) & 0x7f;
    changes & (changes >> 1) == 0
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing came.
    Silent,
    /// Too little came to say.
    Unsure,
    /// Frames, and hardly anything else.
    Good,
    /// Frames, and much that is none: a bad cable, a buffer that ran over, a baud rate that is a little off.
    Noisy,
    /// Frames of another version of the protocol.
    OtherVersion,
    /// The receiver's baud rate is too high.
    BaudTooHigh,
    /// The baud rate is wrong; most likely the receiver's is too low.
    BaudWrong,
    /// Bytes at the right rate, or at a rate that cannot be judged, in which there are no frames.
    NotFrames,
}

impl Verdict {
    /// One sentence for the operator.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Silent => "nothing comes from the sensor: is it plugged in, powered and started?",
            Self::Unsure => "too little has come from the sensor to say what it is",
            Self::Good => "the sensor sends frames",
            Self::Noisy => {
                "some of what the sensor sends is damaged: check the cable and the baud rate on both sides"
            }
            Self::OtherVersion => {
                "the sensor speaks another version of the protocol than 1: update its firmware or this device"
            }
            Self::BaudTooHigh => "the baud rate set here is higher than the sensor's: set the sensor's",
            Self::BaudWrong => {
                "the baud rate set here is not the sensor's, most likely lower: set the sensor's"
            }
            Self::NotFrames => {
                "what comes is not in frames: is the baud rate set here lower than the sensor's, is it another device, or one that sends bare samples (then choose the legacy form)?"
            }
        }
    }
}

/// Judges what came in some time, such as the last second.
///
/// `framing_errors` is how many the kernel counted in the same time, if it does. Without it a baud rate that is too low is
/// told as [`Verdict::NotFrames`].
#[must_use]
pub const fn judge(seen: &Counts, framing_errors: Option<u64>) -> Verdict {
    if seen.bytes == 0 {
        return Verdict::Silent;
    }
    // Of bytes that were judged, not of those still held.
    let judged = seen.framed + seen.skipped;
    if seen.frames > 0 && seen.framed * 100 >= judged * GOOD_PERCENT {
        return Verdict::Good;
    }
    if judged < ENOUGH_BYTES {
        return Verdict::Unsure;
    }
    if seen.frames > 0 {
        return Verdict::Noisy;
    }
    if seen.other_version > 1 {
        return Verdict::OtherVersion;
    }
    let smooth = seen.smooth * 100 >= seen.skipped * SMOOTH_PERCENT;
    match framing_errors {
        Some(errors) if errors * 1000 < judged * FRAMING_PERMILLE => Verdict::NotFrames,
        _ if smooth => Verdict::BaudTooHigh,
        Some(_) => Verdict::BaudWrong,
        None => Verdict::NotFrames,
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "test data")]
mod tests {
    use super::super::{Decoder, Header, MAX_FRAME, encode};
    use super::*;
    use rand_pcg::Pcg64;
    use rand_pcg::rand_core::Rng as _;

    /// The levels of a line on which bytes are sent without a pause, bit by bit.
    fn levels(bytes: &[u8]) -> Vec<bool> {
        let mut levels = vec![true; 20];
        for &byte in bytes {
            levels.push(false);
            levels.extend((0..8).map(|i| byte >> i & 1 == 1));
            levels.push(true);
        }
        levels.extend([true; 40]);
        levels
    }

    /// The first 5000 bytes that a UART of `to` baud receives of what is sent at `from` baud, and its framing errors.
    fn received(levels: &[bool], from: u64, to: u64) -> (Vec<u8>, u64) {
        // Time in 1/16 of a receiver's bit, as UARTs sample.
        let level = |t: u64| levels.get(usize::try_from(t * from / (16 * to)).unwrap()).copied();
        let (mut out, mut errors, mut t) = (Vec::new(), 0, 0);
        loop {
            match level(t) {
                _ if out.len() == 5000 => return (out, errors),
                None => return (out, errors),
                Some(true) => t += 1,
                Some(false) if level(t + 8) != Some(false) => t += 1,
                Some(false) => {
                    let bit = |i: u64| level(t + 8 + 16 * i).unwrap_or(true);
                    out.push((0..8).map(|i| u8::from(bit(i + 1)) << i).sum());
                    errors += u64::from(!bit(9));
                    t += 8 + 16 * 9;
                }
            }
        }
    }

    /// Two seconds of frames with samples like those of muscles: small numbers with noise.
    fn sent() -> Vec<u8> {
        let mut random = Pcg64::new(1, 2);
        let mut out = Vec::new();
        for i in 0..400u32 {
            let header =
                Header { channels: 8, steps: 10, flags: 0, sequence: 10 * i, timestamp_us: 5000 * i };
            let samples: Vec<i16> = (0..80).map(|_| (random.next_u32() % 600) as i16 - 300).collect();
            let mut frame = [0; MAX_FRAME];
            let n = encode(&header, &samples, &mut frame).unwrap();
            out.extend(&frame[..n]);
        }
        out
    }

    fn counts(bytes: &[u8]) -> Counts {
        let mut decoder = Decoder::new();
        bytes.chunks(64).for_each(|part| decoder.push(part, |_| ()));
        *decoder.counts()
    }

    #[test]
    fn a_quarter_of_all_bytes_is_smooth() {
        assert_eq!((0..=255).filter(|&b| smooth(b)).count(), 68);
        assert!(smooth(0xf0) && smooth(0x33) && !smooth(0x55) && !smooth(0x10) && smooth(0x80));
    }

    #[test]
    fn a_wrong_baud_rate_is_told_from_the_right_one() {
        let sent = levels(&sent());
        let rates = [9600, 57_600, 115_200, 230_400, 460_800, 921_600, 1_000_000, 1_500_000];
        for from in rates {
            for to in rates {
                let (bytes, errors) = received(&sent, from, to);
                let verdict = judge(&counts(&bytes), Some(errors));
                let expected = match to {
                    _ if to == from => Verdict::Good,
                    // Twice as fast, or faster: every bit is seen twice.
                    _ if to >= 2 * from => Verdict::BaudTooHigh,
                    // A slow receiver makes few bytes of it, in the same time.
                    _ if (bytes.len() as u64) < ENOUGH_BYTES => Verdict::Unsure,
                    // Also when it is only 8.5 % off: one of the last bits is read twice or not at all.
                    _ => Verdict::BaudWrong,
                };
                let smooth = counts(&bytes).smooth * 100 / bytes.len() as u64;
                assert!(
                    verdict == expected,
                    "{from} read at {to}: {verdict:?}, {errors} errors in {} bytes, {smooth} % smooth",
                    bytes.len()
                );
            }
        }
    }

    #[test]
    fn without_the_kernels_count_a_rate_too_high_is_told_and_one_too_low_is_named_as_a_possibility() {
        let sent = levels(&sent());
        let rates = [9600, 57_600, 115_200, 230_400, 460_800, 921_600, 1_000_000, 1_500_000];
        for from in rates {
            for to in rates {
                let (bytes, _) = received(&sent, from, to);
                let verdict = judge(&counts(&bytes), None);
                let right = match verdict {
                    Verdict::Good => to == from,
                    Verdict::BaudTooHigh => to >= 2 * from,
                    // Lower, or not twice as high.
                    Verdict::NotFrames => to < 2 * from && to != from,
                    Verdict::Unsure => (bytes.len() as u64) < ENOUGH_BYTES && to < from,
                    _ => false,
                };
                assert!(right, "{from} read at {to}: {verdict:?}");
            }
        }
        assert!(Verdict::NotFrames.sentence().contains("baud rate set here lower"));
    }

    #[test]
    fn bytes_of_another_device_are_not_called_a_wrong_baud_rate() {
        let mut random = Pcg64::new(3, 4);
        let noise: Vec<u8> = (0..20_000).map(|_| random.next_u32().to_le_bytes()[0]).collect();
        let text = b"$GPGGA,092750.000,5321.6802,N,00630.3372,W,1,8,1.03,61.7,M,55.2,M,,*76\r\n".repeat(300);
        let bare: Vec<u8> =
            (0..20_000).flat_map(|_| ((random.next_u32() % 600) as i16 - 300).to_le_bytes()).collect();
        for bytes in [noise, text, bare, vec![0; 20_000]] {
            assert_eq!(judge(&counts(&bytes), Some(0)), Verdict::NotFrames);
        }
    }

    #[test]
    fn a_damaged_line_is_noisy_and_a_short_look_is_unsure() {
        let mut bytes = sent();
        let mut random = Pcg64::new(5, 6);
        assert_eq!(judge(&counts(&bytes), Some(0)), Verdict::Good);
        for _ in 0..100 {
            let at = random.next_u32() as usize % bytes.len();
            bytes[at] ^= 0x10;
        }
        assert_eq!(judge(&counts(&bytes), Some(0)), Verdict::Noisy);
        assert_eq!(judge(&counts(&[]), None), Verdict::Silent);
        assert_eq!(judge(&counts(&[1; 100]), None), Verdict::Unsure);
        let earlier = counts(&bytes[..178 * 20]);
        assert_eq!(counts(&bytes).since(&earlier).bytes, bytes.len() as u64 - 178 * 20);
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = sent();
        for frame in bytes.chunks_mut(178) {
            frame[2] = 9;
            let crc = super::super::crc16(&frame[..14]).to_le_bytes();
            frame[14..16].copy_from_slice(&crc);
        }
        assert_eq!(judge(&counts(&bytes), Some(0)), Verdict::OtherVersion);
    }
}
