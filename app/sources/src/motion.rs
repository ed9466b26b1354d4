//! Synthetic motion: what a nine-axis sensor on an animal's collar would measure.
//!
//! A [`Motion`] is a trajectory of a rigid body (a pose over time, written in `kinds`); everything measured follows
//! from it by physics, so that the nine channels always agree with each other:
//! * acceleration: the second derivative of the sensor's position, plus gravity, seen in the sensor's axes;
//! * rotation rate: the derivative of the orientation;
//! * magnetic field: the earth's field turned by the orientation and a random heading.
//!
//! [`MotionStream`] adds what makes a sensor a sensor: a collar that sits askew, scale, bias, noise, saturation. It is
//! an endless iterator at [`RATE_HZ`]; a window is its first [`STEPS`] samples. Axes are x forward, y left, z up;
//! at rest an accelerometer shows +9.81 on the axis that points up. Units are m/s^2, rad/s and uT.
//!
//! Same motion, seed and [`Conditions`] give the same bits on every platform. This is a model of motion, made to
//! train and test with; it is not a recording of any animal or person.

mod kinds;
mod math;

use crate::random::Random;
use math::{Mat3, Vec3, add, cross_difference, from_euler, scale, sub, transpose_times};

/// Samples per second.
pub const RATE_HZ: f64 = 100.0;
/// Samples in a window.
pub const STEPS: usize = 100;
/// Values in a sample.
pub const CHANNELS: usize = 9;
/// The channels' names, in order.
pub const CHANNEL_NAMES: [&str; CHANNELS] = ["ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz"];
/// The channels' units, in order.
pub const CHANNEL_UNITS: [&str; CHANNELS] =
    ["m/s^2", "m/s^2", "m/s^2", "rad/s", "rad/s", "rad/s", "uT", "uT", "uT"];

/// One sample: acceleration, rotation rate, magnetic field.
pub type Sample = [f32; CHANNELS];

/// Standard gravity in m/s^2 (CGPM 1901).
const GRAVITY: f64 = 9.806_65;
/// Ranges of a consumer nine-axis sensor: +-16 g, +-2000 degrees/s, +-1300 uT (Bosch BMX055 data sheet). Values beyond
/// are clipped, as the part does.
const SATURATION: [f64; 3] = [16.0 * GRAVITY, 34.906_585, 1300.0];
/// Step of the numerical derivatives in seconds: well below the fastest motion (22 Hz), well above rounding.
const STEP: f64 = 1.0 / 1024.0;

/// The twelve motions, in the order of the scores. The names are those that clients of the service know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Motion {
    /// Sitting: chest up, breathing.
    Sit,
    /// Standing still.
    Stay,
    /// Brisk, collected walking beside someone, head up and turned.
    Heel,
    /// Galloping back when called.
    Come,
    /// Lying, leaning on a hip.
    Down,
    /// Shaking off water: fast roll to and fro.
    Shake,
    /// Turning on the spot.
    Spin,
    /// Leaping up again and again: flight and landing.
    Jump,
    /// Barking: short jerks of the head, standing.
    Bark,
    /// Nose to the ground, sniffing.
    Sniff,
    /// Walking at ease.
    Walk,
    /// Playing: bows, lunges and hops without a rhythm.
    Play,
}

impl Motion {
    /// All motions, in the order of the scores.
    pub const ALL: [Self; 12] = [
        Self::Sit,
        Self::Stay,
        Self::Heel,
        Self::Come,
        Self::Down,
        Self::Shake,
        Self::Spin,
        Self::Jump,
        Self::Bark,
        Self::Sniff,
        Self::Walk,
        Self::Play,
    ];

    /// The label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sit => "sit",
            Self::Stay => "stay",
            Self::Heel => "heel",
            Self::Come => "come",
            Self::Down => "down",
            Self::Shake => "shake",
            Self::Spin => "spin",
            Self::Jump => "jump",
            Self::Bark => "bark",
            Self::Sniff => "sniff",
            Self::Walk => "walk",
            Self::Play => "play",
        }
    }

    /// The place of its score.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl std::fmt::Display for Motion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of the twelve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a motion; the motions are sit, stay, heel, come, down, shake, spin, jump, bark, sniff, walk and play"
)]
pub struct UnknownMotion(pub String);

impl std::str::FromStr for Motion {
    type Err = UnknownMotion;
    fn from_str(s: &str) -> Result<Self, UnknownMotion> {
        Self::ALL.into_iter().find(|m| m.name() == s).ok_or_else(|| UnknownMotion(s.to_owned()))
    }
}

/// How hard the sensor and the animal make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conditions {
    /// What the model is trained for.
    Usual,
    /// Ranges of every motion 15 % wider, twice the noise and bias, a looser collar. Never trained on.
    Hard,
}

impl Conditions {
    /// How much wider the ranges of a motion's parameters are.
    const fn spread(self) -> f64 {
        match self {
            Self::Usual => 1.0,
            Self::Hard => 1.15,
        }
    }

    const fn noise(self) -> f64 {
        match self {
            Self::Usual => 1.0,
            Self::Hard => 2.0,
        }
    }

    const fn askew(self) -> f64 {
        match self {
            Self::Usual => 1.0,
            Self::Hard => 1.4,
        }
    }
}

/// Where the body is at one instant. Position and push are in a frame that stands still on the ground, x where the
/// animal faced at the start, y to its left, z up.
#[derive(Clone, Copy, Debug, Default)]
struct Pose {
    /// Metres, of the point the head turns about.
    position: Vec3,
    /// Radians; positive leans to the right.
    roll: f64,
    /// Radians; positive is nose up.
    pitch: f64,
    /// Radians; positive turns left.
    yaw: f64,
    /// Acceleration in m/s^2 that is easier said than its position: impacts, vibration, flight.
    push: Vec3,
}

type Trajectory = Box<dyn Fn(f64) -> Pose + Send + Sync>;

/// A collar sensor's samples of one motion, without end.
pub struct MotionStream {
    body: Body,
    sensor: Sensor,
    /// Samples given so far.
    n: u64,
}

impl MotionStream {
    /// A new recording: the animal, the collar, the place and the sensor are drawn from `seed`.
    #[must_use]
    pub fn new(motion: Motion, seed: u64, conditions: Conditions) -> Self {
        let mut draw = Draw { random: Random::new(seed, 2 * motion as u64), spread: conditions.spread() };
        let trajectory = kinds::trajectory(motion, &mut draw);
        Self {
            body: Body::draw(trajectory, &mut draw.random, conditions.askew()),
            sensor: Sensor::draw(Random::new(seed, 2 * motion as u64 + 1), conditions.noise()),
            n: 0,
        }
    }

    /// A recording of something that is none of the twelve motions, so that a model can learn to say so: a sensor
    /// lying in an odd position, tumbling, shaken by an engine, or not working at all.
    #[must_use]
    pub fn background(seed: u64, conditions: Conditions) -> Self {
        let mut draw = Draw { random: Random::new(seed, 1000), spread: conditions.spread() };
        let trajectory = kinds::background(&mut draw);
        let mut sensor = Sensor::draw(Random::new(seed, 1001), conditions.noise());
        sensor.dead = draw.random.chance(0.2);
        Self { body: Body::draw(trajectory, &mut draw.random, 1.0), sensor, n: 0 }
    }
}

impl Iterator for MotionStream {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        #[allow(clippy::cast_precision_loss, reason = "2^53 samples are three million years")]
        let t = self.n as f64 / RATE_HZ;
        self.n += 1;
        Some(self.sensor.read(self.body.at(t)))
    }
}

/// The first second of a recording.
#[must_use]
pub fn window(motion: Motion, seed: u64, conditions: Conditions) -> Vec<Sample> {
    MotionStream::new(motion, seed, conditions).take(STEPS).collect()
}

/// What is true at the sensor before it measures: acceleration less gravity's pull, rotation rate, magnetic field.
struct Truth {
    acceleration: Vec3,
    rate: Vec3,
    field: Vec3,
}

/// An animal on a spot of the earth, with a collar on.
struct Body {
    trajectory: Trajectory,
    /// From the turning point (the base of the neck) to the sensor, in metres.
    lever: Vec3,
    /// The sensor's axes in the body's.
    mount: Mat3,
    /// The earth's field in the frame of [`Pose`], in uT.
    earth: Vec3,
}

impl Body {
    fn draw(trajectory: Trajectory, r: &mut Random, askew: f64) -> Self {
        let lever = [r.range(0.04, 0.14), 0.0, r.range(-0.05, 0.05)];
        // A collar turns about the neck more easily than it tips.
        let mount =
            from_euler(askew * 0.09 * r.normal(), askew * 0.07 * r.normal(), askew * 0.07 * r.normal());
        // Field strength 45-60 uT, dip 50-70 degrees, either hemisphere, any heading (World Magnetic Model's range
        // over temperate latitudes).
        let (strength, dip) = (r.range(45.0, 60.0), r.sign() * r.range(50.0_f64, 70.0).to_radians());
        let heading = r.phase();
        let level = strength * libm::cos(dip);
        let earth = [level * libm::cos(heading), -level * libm::sin(heading), strength * libm::sin(dip)];
        Self { trajectory, lever, mount, earth }
    }

    fn at(&self, t: f64) -> Truth {
        let of = |t: f64| {
            let p = (self.trajectory)(t);
            let r = from_euler(p.roll, p.pitch, p.yaw);
            (add(p.position, math::times(&r, self.lever)), r, p.push)
        };
        let ((before, r0, _), (now, r, push), (after, r2, _)) = (of(t - STEP), of(t), of(t + STEP));
        let second = scale(add(sub(after, now), sub(before, now)), 1.0 / (STEP * STEP));
        let world = add(add(second, push), [0.0, 0.0, GRAVITY]);
        let rate = cross_difference(&r, &r2, &r0, 1.0 / (2.0 * STEP));
        let seen = |v: Vec3| transpose_times(&self.mount, v);
        Truth {
            acceleration: seen(transpose_times(&r, world)),
            rate: seen(rate),
            field: seen(transpose_times(&r, self.earth)),
        }
    }
}

/// The part that measures.
struct Sensor {
    random: Random,
    /// Factor per quantity, near 1.
    gain: [f64; 3],
    bias: [Vec3; 3],
    /// Standard deviation of white noise per quantity.
    noise: [f64; 3],
    /// Share of the moving acceleration that a loose collar adds as noise.
    slack: f64,
    /// Gives zeros, as a part does whose bus has failed.
    dead: bool,
}

impl Sensor {
    fn draw(mut r: Random, noise: f64) -> Self {
        // Of the order of consumer MEMS parts without factory trim, plus fur and cloth.
        let mut three = |sigma: f64| [0; 3].map(|_| noise * sigma * r.normal());
        let bias = [three(0.12), three(0.02), three(5.0)];
        let gain = [0.01, 0.01, 0.02].map(|sigma| 1.0 + sigma * r.normal());
        let noise = [noise * r.range(0.02, 0.1), noise * r.range(0.005, 0.02), noise * r.range(0.4, 1.2)];
        let slack = r.range(0.02, 0.12);
        Self { random: r, gain, bias, noise, slack, dead: false }
    }

    fn read(&mut self, truth: Truth) -> Sample {
        let a = truth.acceleration;
        let moving = libm::fabs(libm::sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]) - GRAVITY);
        let mut out = [0.0; CHANNELS];
        for (q, value) in [a, truth.rate, truth.field].into_iter().enumerate() {
            let sigma = self.noise[q] + if q == 0 { self.slack * moving } else { 0.0 };
            for axis in 0..3 {
                let v = value[axis] * self.gain[q] + self.bias[q][axis] + sigma * self.random.normal();
                #[allow(clippy::cast_possible_truncation, reason = "a rounded f32 is what the sensor gives")]
                let v = v.clamp(-SATURATION[q], SATURATION[q]) as f32;
                out[3 * q + axis] = v;
            }
        }
        if self.dead { [0.0; CHANNELS] } else { out }
    }
}

/// Draws a motion's parameters.
struct Draw {
    random: Random,
    spread: f64,
}

impl Draw {
    /// Uniform in the range, which is wider under hard conditions but keeps its sign.
    fn range(&mut self, low: f64, high: f64) -> f64 {
        let (mid, half) = ((low + high) / 2.0, (high - low) / 2.0 * self.spread);
        let v = self.random.range(mid - half, mid + half);
        if low >= 0.0 { v.max(0.2 * low) } else { v }
    }

    /// Uniform in a range given in degrees, as radians.
    fn degrees(&mut self, low: f64, high: f64) -> f64 {
        self.range(low.to_radians(), high.to_radians())
    }
}

#[cfg(test)]
mod tests;
