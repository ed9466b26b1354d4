//! What an actuator is, checked.

use crate::line;
use crate::motion::Limits;
use inferd_sources::live::port;
use std::path::PathBuf;

/// Limits of a specification, for messages and documentation.
#[derive(Clone, Copy, Debug)]
pub struct SpecLimits;

impl SpecLimits {
    /// Actuators of a device.
    pub const ACTUATORS: usize = 4;
    /// Characters of a name.
    pub const NAME: usize = 32;
    /// Joints of an actuator: two boards of 16 outputs.
    pub const JOINTS: usize = 32;
    /// Poses of an actuator.
    pub const POSES: usize = 64;
    /// The least pulse width, in microseconds.
    pub const LEAST_US: u16 = 1000;
    /// The greatest.
    pub const MOST_US: u16 = 2000;
}

/// Where the joints are to be for a gesture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pose {
    /// The gesture's label, in the model's words; letters count the same in either case.
    pub gesture: String,
    /// A pulse width per joint, in microseconds.
    pub widths: Vec<u16>,
}

/// What an actuator is. [`Spec::check`] says whether it can be.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What it is called, in paths and metrics.
    pub name: String,
    /// The serial port.
    pub path: PathBuf,
    /// Its baud rate.
    pub baud: u32,
    /// Lines a second.
    pub rate_hz: u32,
    /// The pose that is safe, in microseconds; its length is the number of joints.
    pub neutral: Vec<u16>,
    /// The poses of gestures; a gesture without one is the neutral pose.
    pub poses: Vec<Pose>,
    /// The greatest velocity of a joint, in microseconds of pulse width a second.
    pub velocity: f64,
    /// The greatest acceleration, in microseconds a second squared.
    pub acceleration: f64,
    /// Moves as soon as the daemon runs; otherwise it is stopped until somebody starts it.
    pub autostart: bool,
}

/// Why an actuator cannot be; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// The name.
    #[error("name: 1 to 32 of a-z, 0-9, - and _")]
    Name,
    /// The path.
    #[error("path: an absolute path is needed")]
    Path,
    /// The baud rate.
    #[error("baud: {0} cannot be set")]
    Baud(u32),
    /// The rate.
    #[error("rate_hz: 10 to 200")]
    Rate,
    /// No joint, or too many.
    #[error("neutral: 1 to {max} joints", max = SpecLimits::JOINTS)]
    Joints,
    /// A pulse width.
    #[error("{pose}: pulse widths are 1000 to 2000 microseconds, not {width}")]
    Width {
        /// Whose.
        pose: String,
        /// As it was asked for.
        width: u16,
    },
    /// Another number of joints.
    #[error("{pose}: {has} joints, and the neutral pose has {joints}")]
    Pose {
        /// Whose.
        pose: String,
        /// As many it has.
        has: usize,
        /// As many it should have.
        joints: usize,
    },
    /// Too many, or two of one gesture.
    #[error("poses: at most {max}, each of another gesture", max = SpecLimits::POSES)]
    Poses,
    /// The velocity.
    #[error("velocity_us_s: 1 to 10000")]
    Velocity,
    /// The acceleration.
    #[error("acceleration_us_s2: 10 to 100000")]
    Acceleration,
    /// Lines that do not fit.
    #[error(
        "baud: {rate_hz} lines a second of {joints} joints need {needed} baud, a fifth of the line being left free"
    )]
    Line {
        /// Lines a second.
        rate_hz: u32,
        /// Joints.
        joints: usize,
        /// Baud.
        needed: u64,
    },
}

impl Spec {
    /// Checks it.
    ///
    /// # Errors
    /// [`SpecError`] with the first thing that cannot be.
    pub fn check(&self) -> Result<(), SpecError> {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if !(1..=SpecLimits::NAME).contains(&self.name.len()) || !self.name.bytes().all(letter) {
            return Err(SpecError::Name);
        }
        if !self.path.is_absolute() {
            return Err(SpecError::Path);
        }
        if !port::can_be(self.baud) {
            return Err(SpecError::Baud(self.baud));
        }
        if !(10..=200).contains(&self.rate_hz) {
            return Err(SpecError::Rate);
        }
        let joints = self.neutral.len();
        if !(1..=SpecLimits::JOINTS).contains(&joints) {
            return Err(SpecError::Joints);
        }
        let same = |a: &Pose, b: &Pose| a.gesture.eq_ignore_ascii_case(&b.gesture);
        let twice = |i: usize| self.poses[..i].iter().any(|p| same(p, &self.poses[i]));
        if self.poses.len() > SpecLimits::POSES || (1..self.poses.len()).any(twice) {
            return Err(SpecError::Poses);
        }
        let gestures = self.poses.iter().map(|p| (p.gesture.as_str(), &p.widths));
        for (pose, widths) in std::iter::once(("neutral", &self.neutral)).chain(gestures) {
            let pose = || pose.to_owned();
            if widths.len() != joints {
                return Err(SpecError::Pose { pose: pose(), has: widths.len(), joints });
            }
            let beyond = |w: &&u16| !(SpecLimits::LEAST_US..=SpecLimits::MOST_US).contains(w);
            if let Some(width) = widths.iter().find(beyond) {
                return Err(SpecError::Width { pose: pose(), width: *width });
            }
        }
        if !(1.0..=10_000.0).contains(&self.velocity) {
            return Err(SpecError::Velocity);
        }
        if !(10.0..=100_000.0).contains(&self.acceleration) {
            return Err(SpecError::Acceleration);
        }
        // Ten bits a byte, and a fifth of the line left free.
        let needed = u64::from(self.rate_hz) * line::longest(joints) as u64 * 10 * 5 / 4;
        if u64::from(self.baud) < needed {
            return Err(SpecError::Line { rate_hz: self.rate_hz, joints, needed });
        }
        Ok(())
    }

    /// How far a joint moves in a line.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::per_step(self.velocity, self.acceleration, f64::from(self.rate_hz))
    }

    /// The pose of a gesture; `None`: the neutral one.
    #[must_use]
    pub fn pose_of(&self, gesture: &str) -> Option<&Pose> {
        self.poses.iter().find(|p| p.gesture.eq_ignore_ascii_case(gesture))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let arm = || Spec {
            name: "hand".to_owned(),
            path: "/dev/ttyUSB0".into(),
            baud: 115_200,
            rate_hz: 50,
            neutral: vec![1500; 17],
            poses: vec![Pose { gesture: "Pinch".to_owned(), widths: vec![1600; 17] }],
            velocity: 500.0,
            acceleration: 2000.0,
            autostart: false,
        };
        assert_eq!(arm().check(), Ok(()));
        assert!(arm().pose_of("pinch").is_some() && arm().pose_of("Point").is_none());
        type Change = fn(&mut Spec);
        let cases: [(Change, &str); 14] = [
            (|s| s.name = "Hand".to_owned(), "name"),
            (|s| s.path = "ttyUSB0".into(), "absolute"),
            (|s| s.baud = 115_201, "baud: 115201"),
            (|s| s.baud = 9600, "need 55625 baud"),
            (|s| s.rate_hz = 9, "rate_hz"),
            (|s| s.neutral.clear(), "1 to 32"),
            (|s| s.neutral = vec![1500; 33], "1 to 32"),
            (|s| s.neutral[3] = 999, "neutral: pulse widths are 1000 to 2000 microseconds, not 999"),
            (|s| s.poses[0].widths[0] = 2001, "Pinch"),
            (|s| s.poses[0].widths.truncate(16), "Pinch: 16 joints, and the neutral pose has 17"),
            (
                |s| s.poses.push(Pose { gesture: "pinch".to_owned(), widths: vec![1500; 17] }),
                "another gesture",
            ),
            (|s| s.velocity = f64::NAN, "velocity"),
            (|s| s.velocity = 0.0, "velocity"),
            (|s| s.acceleration = 1e9, "acceleration"),
        ];
        for (change, why) in cases {
            let mut spec = arm();
            change(&mut spec);
            let told = spec.check().unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
    }
}
