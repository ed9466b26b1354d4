//! Synthetic EMG: what sixteen electrodes around a forearm would measure while a hand makes a gesture.
//!
//! **A model of a signal, not a recording of a person.** It is there to train and test with, and so that a device without a
//! sensor has something to show. Same [`Script`], seed and [`Conditions`] give the same bits on every platform.
//!
//! Eight muscles lie around the forearm, each nearer the elbow or the wrist. Sixteen electrodes in two rings of eight (0 to 7
//! near the elbow, 8 to 15 near the wrist, 45 degrees apart from the inner side on) see a muscle the less the farther they
//! are: by a Gaussian of 32 degrees, and half as much from the other ring. A gesture is a table of activations:
//!
//! | | flexor carpi radialis | flexor carpi ulnaris | flexor digitorum | flexor pollicis | extensor carpi radialis | extensor carpi ulnaris | extensor digitorum | extensor indicis |
//! |---|---:|---:|---:|---:|---:|---:|---:|---:|
//! | angle, ring | 20, elbow | 320, elbow | 350, wrist | 45, wrist | 130, elbow | 220, elbow | 170, wrist | 205, wrist |
//! | rest | | | | | | | | |
//! | hand open | | | | | 0.20 | 0.20 | 0.80 | 0.50 |
//! | hand close | 0.25 | 0.25 | 0.85 | 0.45 | 0.35 | | | |
//! | wrist flex | 0.80 | 0.75 | 0.20 | | | | | |
//! | wrist extend | | | | | 0.80 | 0.75 | 0.25 | |
//! | pinch | | | 0.35 | 0.80 | 0.15 | | | 0.05 |
//! | point | | | 0.45 | 0.25 | | | 0.15 | 0.70 |
//!
//! An electrode's signal is white noise through a band-pass of 20 to 450 Hz, its amplitude the root of the summed squares of
//! what it sees, 300 uV RMS right above a muscle at its strongest; with noise of the amplifier on top. A *person*, drawn from
//! the seed, has muscles of their own strength (0.7 to 1.3), electrodes of their own contact (0.8 to 1.25) and a sleeve that
//! sits up to 12 degrees askew. Each repetition is a little stronger or weaker (0.85 to 1.15), and within it the force wavers.

use crate::prepare::{Filter, Preparation, Scaling, Stream};
use crate::random::Random;
use std::f64::consts::TAU;

/// Samples per second.
pub const RATE_HZ: f64 = 2000.0;
/// Electrodes.
pub const CHANNELS: usize = 16;

const MUSCLES: usize = 8;
/// Where each muscle lies: degrees around the forearm, and the ring it is nearer to.
const PLACES: [(f64, usize); MUSCLES] =
    [(20.0, 0), (320.0, 0), (350.0, 1), (45.0, 1), (130.0, 0), (220.0, 0), (170.0, 1), (205.0, 1)];
/// How far a muscle is seen around the forearm, in degrees (the deviation of a Gaussian).
const SPREAD: f64 = 32.0;
/// How much of a muscle the other ring sees.
const OTHER_RING: f64 = 0.5;
/// RMS in uV of a muscle at its strongest, right above it.
const STRONGEST_UV: f64 = 300.0;
/// How much the force wavers, and how fast it may (a first-order low-pass, in Hz).
const WAVER: f64 = 0.08;
const WAVER_HZ: f64 = 2.0;
/// How fast an electrode's offset drifts (a first-order low-pass, in Hz).
const DRIFT_HZ: f64 = 0.1;

/// The seven classes, in the order of the scores. The names are those that clients of the service know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gesture {
    /// Nothing is tense.
    Rest,
    /// Fingers stretched.
    HandOpen,
    /// A fist.
    HandClose,
    /// The hand bent towards the inner side.
    WristFlex,
    /// The hand bent towards its back.
    WristExtend,
    /// Thumb against forefinger.
    Pinch,
    /// The forefinger stretched, the others bent.
    Point,
}

impl Gesture {
    /// All gestures, in the order of the scores.
    pub const ALL: [Self; 7] = [
        Self::Rest,
        Self::HandOpen,
        Self::HandClose,
        Self::WristFlex,
        Self::WristExtend,
        Self::Pinch,
        Self::Point,
    ];

    /// The label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rest => "Rest",
            Self::HandOpen => "Hand Open",
            Self::HandClose => "Hand Close",
            Self::WristFlex => "Wrist Flex",
            Self::WristExtend => "Wrist Extend",
            Self::Pinch => "Pinch",
            Self::Point => "Point",
        }
    }

    /// The place of its score.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// How much each muscle is tense, 0 to 1.
    const fn activation(self) -> [f64; MUSCLES] {
        match self {
            Self::Rest => [0.0; MUSCLES],
            Self::HandOpen => [0.0, 0.0, 0.0, 0.0, 0.2, 0.2, 0.8, 0.5],
            Self::HandClose => [0.25, 0.25, 0.85, 0.45, 0.35, 0.0, 0.0, 0.0],
            Self::WristFlex => [0.8, 0.75, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0],
            Self::WristExtend => [0.0, 0.0, 0.0, 0.0, 0.8, 0.75, 0.25, 0.0],
            Self::Pinch => [0.0, 0.0, 0.35, 0.8, 0.15, 0.0, 0.0, 0.05],
            Self::Point => [0.0, 0.0, 0.45, 0.25, 0.0, 0.0, 0.15, 0.7],
        }
    }
}

impl std::fmt::Display for Gesture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of the seven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a gesture; the gestures are Rest, Hand Open, Hand Close, Wrist Flex, Wrist Extend, Pinch and Point"
)]
pub struct UnknownGesture(pub String);

impl std::str::FromStr for Gesture {
    type Err = UnknownGesture;
    /// Upper and lower case, spaces, `-` and `_` do not matter.
    fn from_str(s: &str) -> Result<Self, UnknownGesture> {
        let plain = |s: &str| -> String {
            s.chars()
                .filter(|c| !matches!(c, ' ' | '-' | '_'))
                .map(|c| c.to_ascii_lowercase())
                .take(32)
                .collect()
        };
        let name = plain(s);
        let unknown = || UnknownGesture(s.chars().take(32).collect());
        Self::ALL.into_iter().find(|g| plain(g.name()) == name).ok_or_else(unknown)
    }
}

/// What is done, and when. Times are in samples, at [`RATE_HZ`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// One gesture for ever, from the first sample on.
    Hold(Gesture),
    /// Rest, then a gesture, again and again: the six in their order, then from the beginning.
    Cycle {
        /// How long is rested before each gesture.
        rest: u32,
        /// How long a gesture is held.
        hold: u32,
        /// How long it takes to tense and to relax; half of it lies before the change of label and half after. At most as
        /// long as either of the others.
        ramp: u32,
    },
}

impl Script {
    /// A second of rest, two of a gesture, 200 ms to change.
    pub const USUAL: Self = Self::Cycle { rest: 2000, hold: 4000, ramp: 400 };
}

/// What makes it hard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// RMS of the amplifier's noise in uV.
    pub noise_uv: f64,
    /// The mains: frequency in Hz, and amplitude in uV; a third of it three times as high. Each electrode has 0.5 to 1.5 of it.
    pub hum: Option<(f64, f64)>,
    /// Deviation of an electrode's slow drift in uV.
    pub drift_uv: f64,
}

impl Conditions {
    /// 4 uV of noise and nothing else.
    pub const USUAL: Self = Self { noise_uv: 4.0, hum: None, drift_uv: 0.0 };
    /// Twice the noise, 50 uV of hum at 50 Hz, 200 uV of drift.
    pub const HARD: Self = Self { noise_uv: 8.0, hum: Some((50.0, 50.0)), drift_uv: 200.0 };
}

/// A sample with what is true about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// In uV, electrode by electrode.
    pub values: [f32; CHANNELS],
    /// What is being done.
    pub gesture: Gesture,
    /// How often something was done before.
    pub repetition: u64,
}

/// Samples without end.
#[derive(Debug)]
pub struct EmgStream {
    script: Script,
    conditions: Conditions,
    seed: u64,
    /// How much each electrode sees of each muscle, with the person's strength and contact.
    sees: [[f64; MUSCLES]; CHANNELS],
    hum: [f64; CHANNELS],
    noise: Random,
    band: Stream,
    /// What makes the noise's deviation 1 after the band-pass.
    unit: f64,
    waver: f64,
    drift: [f64; CHANNELS],
    /// The last repetition whose strength was drawn, and that of it and the one before.
    strengths: (u64, f64, f64),
    n: u64,
}

impl EmgStream {
    /// A person, a sleeve and the noise, drawn from `seed`.
    #[must_use]
    pub fn new(script: Script, seed: u64, conditions: Conditions) -> Self {
        let script = match script {
            Script::Cycle { rest, hold, ramp } => {
                let (rest, hold) = (rest.max(1), hold.max(1));
                Script::Cycle { rest, hold, ramp: ramp.min(rest).min(hold) }
            }
            hold @ Script::Hold(_) => hold,
        };
        let mut person = Random::new(seed, 1);
        let strength: [f64; MUSCLES] = std::array::from_fn(|_| person.range(0.7, 1.3));
        let contact: [f64; CHANNELS] = std::array::from_fn(|_| person.range(0.8, 1.25));
        let askew = person.range(-12.0, 12.0);
        let hum = std::array::from_fn(|_| person.range(0.5, 1.5));
        let sees = std::array::from_fn(|electrode| {
            #[allow(clippy::cast_precision_loss, reason = "below 8")]
            let angle = (electrode % 8) as f64 * 45.0 + askew;
            std::array::from_fn(|muscle| {
                let (place, ring) = PLACES[muscle];
                let apart = libm::fabs(libm::remainder(angle - place, 360.0)) / SPREAD;
                let ring = if ring == electrode / 8 { 1.0 } else { OTHER_RING };
                contact[electrode] * strength[muscle] * ring * libm::exp(-apart * apart / 2.0)
            })
        });
        let band = band();
        let unit = 1.0 / deviation(band.clone());
        Self {
            script,
            conditions,
            seed,
            sees,
            hum,
            noise: Random::new(seed, 2),
            band,
            unit,
            waver: 0.0,
            drift: [0.0; CHANNELS],
            strengths: (0, 1.0, strength_of(seed, 0)),
            n: 0,
        }
    }

    /// What is done at this sample: label, repetition, and up to two gestures with how far each is made and how strongly.
    fn at(&mut self) -> (Gesture, u64, [(Gesture, f64); 2]) {
        let (rest, hold, ramp) = match self.script {
            Script::Hold(gesture) => {
                return (gesture, 0, [(gesture, self.strengths.2), (Gesture::Rest, 0.0)]);
            }
            Script::Cycle { rest, hold, ramp } => (rest, hold, ramp),
        };
        let period = u64::from(rest) + u64::from(hold);
        let (repetition, t) = (self.n / period, self.n % period);
        if repetition != self.strengths.0 {
            self.strengths = (repetition, self.strengths.2, strength_of(self.seed, repetition));
        }
        // How far a change around `middle` has come, 0 to 1.
        let change = |middle: u64| {
            #[allow(clippy::cast_precision_loss, reason = "below 2^33")]
            let (t, middle, ramp) = (t as f64, middle as f64, f64::from(ramp));
            if ramp == 0.0 {
                return f64::from(t >= middle);
            }
            let x = ((t - middle) / ramp + 0.5).clamp(0.0, 1.0);
            0.5 - 0.5 * libm::cos(TAU / 2.0 * x)
        };
        let (now, before) = (of_repetition(repetition), of_repetition(repetition.wrapping_sub(1)));
        let made = change(rest.into()) * (1.0 - change(period)) * self.strengths.2;
        let left = if repetition == 0 { 0.0 } else { (1.0 - change(0)) * self.strengths.1 };
        let label = if t < u64::from(rest) { Gesture::Rest } else { now };
        (label, repetition, [(now, made), (before, left)])
    }

    fn sample(&mut self) -> Sample {
        let (gesture, repetition, made) = self.at();
        self.waver = wander(self.waver, WAVER_HZ, &mut self.noise);
        let force = (1.0 + WAVER * self.waver).max(0.0);
        let mut tense = [0.0; MUSCLES];
        for (gesture, how) in made {
            for (muscle, activation) in tense.iter_mut().zip(gesture.activation()) {
                *muscle += activation * how * force;
            }
        }
        #[allow(clippy::cast_possible_truncation, reason = "noise")]
        let mut values: [f32; CHANNELS] = std::array::from_fn(|_| self.noise.normal() as f32);
        self.band.filter(&mut values);
        #[allow(clippy::cast_precision_loss, reason = "exact for 142,000 years")]
        let turns = |hz: f64| TAU * ((self.n as f64 / RATE_HZ * hz) % 1.0);
        let hum = self
            .conditions
            .hum
            .map_or(0.0, |(hz, uv)| uv * (libm::sin(turns(hz)) + libm::sin(turns(3.0 * hz)) / 3.0));
        for (electrode, value) in values.iter_mut().enumerate() {
            let seen: f64 = self.sees[electrode].iter().zip(tense).map(|(s, t)| s * t * (s * t)).sum();
            let amplitude = STRONGEST_UV * libm::sqrt(seen);
            let mut uv = f64::from(*value) * self.unit * amplitude;
            uv += self.conditions.noise_uv * self.noise.normal();
            if self.conditions.drift_uv > 0.0 {
                self.drift[electrode] = wander(self.drift[electrode], DRIFT_HZ, &mut self.noise);
            }
            uv += self.conditions.drift_uv * self.drift[electrode] + self.hum[electrode] * hum;
            #[allow(clippy::cast_possible_truncation, reason = "the precision of samples")]
            let uv = uv as f32;
            *value = uv;
        }
        self.n += 1;
        Sample { values, gesture, repetition }
    }
}

impl Iterator for EmgStream {
    type Item = Sample;
    fn next(&mut self) -> Option<Sample> {
        Some(self.sample())
    }
}

/// The gesture of a repetition: never rest, which is between them.
fn of_repetition(repetition: u64) -> Gesture {
    #[allow(clippy::cast_possible_truncation, reason = "below 6")]
    Gesture::ALL[(repetition % 6) as usize + 1]
}

fn strength_of(seed: u64, repetition: u64) -> f64 {
    Random::new(seed, 3 ^ repetition.wrapping_mul(4)).range(0.85, 1.15)
}

/// A value that wanders around 0 with deviation 1, no faster than `hz`.
fn wander(value: f64, hz: f64, random: &mut Random) -> f64 {
    let keep = libm::exp(-TAU * hz / RATE_HZ);
    value * keep + libm::sqrt(1.0 - keep * keep) * random.normal()
}

/// 20 to 450 Hz: what of a muscle reaches the skin.
fn band() -> Stream {
    let band = [Filter::BandPass { low_hz: 20.0, high_hz: 450.0, order: 2 }];
    let preparation = Preparation::new(&band, Scaling::None, CHANNELS, RATE_HZ);
    preparation.expect("every test makes it").stream()
}

/// The deviation of white noise of deviation 1 after a filter: the length of its impulse response.
fn deviation(mut filter: Stream) -> f64 {
    let mut sum = 0.0;
    for n in 0..2000 {
        let mut sample = [if n == 1 { 1.0 } else { 0.0 }; CHANNELS];
        filter.filter(&mut sample);
        sum += f64::from(sample[0]) * f64::from(sample[0]);
    }
    libm::sqrt(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rms(samples: &[Sample], electrode: usize) -> f64 {
        let sum: f64 = samples.iter().map(|s| f64::from(s.values[electrode]).powi(2)).sum();
        (sum / samples.len() as f64).sqrt()
    }

    fn take(script: Script, seed: u64, conditions: Conditions, n: usize) -> Vec<Sample> {
        EmgStream::new(script, seed, conditions).take(n).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_everywhere() {
        let bits = |seed, conditions| {
            let bytes: Vec<u8> = take(Script::USUAL, seed, conditions, 8000)
                .iter()
                .flat_map(|s| s.values)
                .flat_map(|v| v.to_le_bytes())
                .collect();
            crate::frame::crc16(&bytes)
        };
        assert_eq!([bits(1, Conditions::USUAL), bits(1, Conditions::HARD), bits(2, Conditions::USUAL)], BITS);
    }

    const BITS: [u16; 3] = [2439, 7722, 6808];

    #[test]
    fn the_script_is_followed_and_labels_change_in_the_middle_of_a_ramp() {
        let script = Script::Cycle { rest: 1000, hold: 3000, ramp: 400 };
        let samples = take(script, 3, Conditions::USUAL, 4000 * 7);
        for (i, part) in samples.chunks(4000).enumerate() {
            let gesture = Gesture::ALL[i % 6 + 1];
            assert!(part.iter().all(|s| s.repetition == i as u64));
            assert!(part[..1000].iter().all(|s| s.gesture == Gesture::Rest));
            assert!(part[1000..].iter().all(|s| s.gesture == gesture), "{gesture}");
        }
        let mut stream = EmgStream::new(script, 3, Conditions::USUAL);
        let mut far = Vec::new();
        for _ in 0..8000 {
            let (_, _, made) = stream.at();
            far.push(made[0].1 + made[1].1);
            stream.n += 1;
        }
        let full = far[2500];
        assert_eq!(far[700], 0.0);
        assert!((far[1000] / full - 0.5).abs() < 1e-9 && (far[4000] / full - 0.5).abs() < 1e-9);
        assert!((far[1200] - full).abs() < 1e-9 && far[4201] == 0.0);
        assert!(far.windows(2).all(|w| (w[0] - w[1]).abs() < 0.01), "nothing jumps");
    }

    #[test]
    fn rest_is_silent_and_every_gesture_has_its_own_pattern() {
        for seed in 0..3 {
            let of = |gesture| {
                let samples = take(Script::Hold(gesture), seed, Conditions::USUAL, 2000);
                let pattern: Vec<f64> = (0..CHANNELS).map(|e| rms(&samples, e)).collect();
                pattern
            };
            let patterns: Vec<Vec<f64>> = Gesture::ALL.into_iter().map(of).collect();
            assert!(patterns[0].iter().all(|&uv| (uv - 4.0).abs() < 0.3), "{:?}", patterns[0]);
            let most = patterns.iter().flatten().fold(0.0, |a: f64, &b| a.max(b));
            assert!((100.0..500.0).contains(&most), "{most} uV");
            for (i, a) in patterns.iter().enumerate().skip(1) {
                assert!(a.iter().any(|&uv| uv > 80.0), "{}", Gesture::ALL[i]);
                for b in &patterns[i + 1..] {
                    let dot: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
                    assert!(dot / (length(a) * length(b)) < 0.95, "seed {seed}: patterns are too alike");
                }
            }
        }
    }

    /// How much of a sine of this frequency is in a channel, in uV of amplitude (Goertzel).
    fn line(samples: &[Sample], electrode: usize, hz: f64) -> f64 {
        let (mut re, mut im) = (0.0, 0.0);
        for (n, s) in samples.iter().enumerate() {
            let angle = TAU * hz * n as f64 / RATE_HZ;
            re += f64::from(s.values[electrode]) * angle.cos();
            im += f64::from(s.values[electrode]) * angle.sin();
        }
        2.0 * (re * re + im * im).sqrt() / samples.len() as f64
    }

    #[test]
    fn the_noise_is_within_its_band() {
        let clean = Conditions { noise_uv: 0.0, ..Conditions::USUAL };
        let samples = take(Script::Hold(Gesture::HandClose), 1, clean, 20_000);
        let strongest = (0..CHANNELS).max_by(|&a, &b| rms(&samples, a).total_cmp(&rms(&samples, b))).unwrap();
        let band = |from: i32, to: i32| {
            (from..to).map(|hz| line(&samples, strongest, f64::from(hz) + 0.3).powi(2)).sum::<f64>()
                / f64::from(to - from)
        };
        let inside = band(60, 300);
        assert!(band(1, 6) < inside / 50.0, "{} below, {inside} inside", band(1, 6));
        assert!(band(900, 950) < inside / 50.0, "{} above, {inside} inside", band(900, 950));
    }

    #[test]
    fn hum_and_drift_are_as_strong_as_they_should_be() {
        let humming = Conditions { hum: Some((50.0, 100.0)), ..Conditions::USUAL };
        let samples = take(Script::Hold(Gesture::Rest), 1, humming, 8000);
        for electrode in [0, 5, 10, 15] {
            let (first, third) = (line(&samples, electrode, 50.0), line(&samples, electrode, 150.0));
            assert!((50.0..150.0).contains(&first), "{first} uV");
            assert!((third / first - 1.0 / 3.0).abs() < 0.02);
        }
        let drifting = Conditions { drift_uv: 100.0, noise_uv: 0.0, hum: None };
        let samples = take(Script::Hold(Gesture::Rest), 1, drifting, 40_000);
        let together = (0..CHANNELS).map(|e| rms(&samples, e).powi(2)).sum::<f64>() / 16.0;
        assert!((60.0..140.0).contains(&together.sqrt()), "{} uV", together.sqrt());
    }

    /// How many windows of 200 samples are nearest to the pattern of their own gesture, in the logarithm of each
    /// electrode's RMS, when patterns are learned from one set of people and tried on another.
    fn recognised(learned: std::ops::Range<u64>, tried: std::ops::Range<u64>, conditions: Conditions) -> f64 {
        let features = |gesture: Gesture, seed: u64| -> Vec<Vec<f64>> {
            let samples = take(Script::Hold(gesture), seed, conditions, 1000);
            samples.chunks(200).map(|w| (0..CHANNELS).map(|e| rms(w, e).ln()).collect()).collect()
        };
        let mean = |all: &[Vec<f64>]| -> Vec<f64> {
            (0..CHANNELS).map(|e| all.iter().map(|f| f[e]).sum::<f64>() / all.len() as f64).collect()
        };
        let patterns: Vec<Vec<f64>> = Gesture::ALL
            .into_iter()
            .map(|g| mean(&learned.clone().flat_map(|seed| features(g, seed)).collect::<Vec<_>>()))
            .collect();
        let (mut right, mut all) = (0, 0);
        for (i, gesture) in Gesture::ALL.into_iter().enumerate() {
            for f in tried.clone().flat_map(|seed| features(gesture, seed)) {
                let away = |p: &Vec<f64>| p.iter().zip(&f).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                let best = (0..7).min_by(|&a, &b| away(&patterns[a]).total_cmp(&away(&patterns[b]))).unwrap();
                right += u32::from(best == i);
                all += 1;
            }
        }
        f64::from(right) / f64::from(all)
    }

    #[test]
    fn gestures_can_be_told_apart_also_of_other_people() {
        let own = recognised(1..2, 1..2, Conditions::USUAL);
        let others = recognised(0..4, 100..104, Conditions::USUAL);
        assert!(own > 0.98 && others > 0.9, "own {own}, others {others}");
    }

    #[test]
    fn names_are_read_however_they_are_spelled() {
        for gesture in Gesture::ALL {
            assert_eq!(gesture.to_string().parse(), Ok(gesture));
            assert_eq!(gesture.name().to_uppercase().replace(' ', "_").parse(), Ok(gesture));
            assert_eq!(Gesture::ALL[gesture.index()], gesture);
        }
        assert_eq!("fist".parse::<Gesture>(), Err(UnknownGesture("fist".to_owned())));
        assert_eq!("x".repeat(1000).parse::<Gesture>().unwrap_err().0.len(), 32);
    }

    #[test]
    fn scripts_of_any_length_are_played() {
        for (rest, hold, ramp) in [(0, 0, 0), (1, 1, 100), (u32::MAX, u32::MAX, u32::MAX), (5, 1000, 1000)] {
            let samples = take(Script::Cycle { rest, hold, ramp }, 0, Conditions::HARD, 100);
            assert!(samples.iter().all(|s| s.values.iter().all(|v| v.is_finite())));
        }
    }
}
