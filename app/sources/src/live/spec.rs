//! What a source is, checked.

use super::port::{self, BAUDS};
use crate::MAX_CHANNELS;
use crate::motion::{self, Motion};
use crate::pace::Rate;
use crate::synthetic::{self, Conditions, Script};
use std::path::PathBuf;

/// Limits of a specification, for messages and documentation.
#[derive(Clone, Copy, Debug)]
pub struct SpecLimits;

impl SpecLimits {
    /// Characters of a name.
    pub const NAME: usize = 32;
    /// Sources of a device.
    pub const SOURCES: usize = 8;
}

/// What a source is. [`Spec::try_new`] makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What it is called, in paths and metrics.
    pub name: String,
    /// Where samples come from.
    pub kind: Kind,
    /// Values in a sample.
    pub channels: usize,
    /// Samples per second.
    pub rate: Rate,
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// The generator: 16 channels at 2000 Hz.
    Synthetic {
        /// What is done.
        script: Script,
        /// Who does it.
        seed: u64,
        /// How hard it is.
        conditions: Conditions,
    },
    /// The generator of motion: a collar's nine axes at 100 Hz.
    Motion {
        /// What the animal does.
        motion: Motion,
        /// Which animal, collar and sensor.
        seed: u64,
        /// How hard it is.
        conditions: motion::Conditions,
    },
    /// A file, at its own speed.
    Recording {
        /// Its path.
        path: PathBuf,
        /// Begin again at the end.
        looped: bool,
    },
    /// A serial port.
    Serial {
        /// The device file.
        path: PathBuf,
        /// Its baud rate.
        baud: u32,
        /// What the sensor sends.
        form: SerialForm,
        /// The unit of the samples per count of the sensor's converter.
        scale: f32,
    },
    /// Whoever hands samples in.
    Push,
}

/// What a serial sensor sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialForm {
    /// Frames ([`crate::frame`]).
    Framed,
    /// Bare samples ([`crate::frame::legacy`]).
    Legacy {
        /// Look for lost bytes, and undo what they did.
        resynchronise: bool,
    },
}

impl Kind {
    /// The kind's name in settings and on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Synthetic { .. } | Self::Motion { .. } => "synthetic",
            Self::Recording { .. } => "recording",
            Self::Serial { .. } => "serial",
            Self::Push => "push",
        }
    }
}

impl Spec {
    /// Whether it is a nine-axis sensor, whose samples are a session ([`crate::session`]) and no windows of a muscle.
    #[must_use]
    pub const fn is_motion(&self) -> bool {
        matches!(self.kind, Kind::Motion { .. })
    }
}

/// Why a source cannot be; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// The name.
    #[error("name {0:?}: 1 to 32 of a-z, 0-9, - and _")]
    Name(String),
    /// The number of channels.
    #[error("channels: 1 to 32, not {0}")]
    Channels(usize),
    /// The rate.
    #[error("rate_hz: {0}")]
    Rate(String),
    /// The generator has its own.
    #[error("a synthetic source has 16 channels at 2000 Hz")]
    Synthetic,
    /// That of motion too.
    #[error("a synthetic source of motion has 9 channels at 100 Hz")]
    Motion,
    /// The baud rate.
    #[error("baud: one of {}; not {baud}", BAUDS.map(|(n, _)| n.to_string()).join(", "))]
    Baud {
        /// As it was asked for.
        baud: u32,
    },
    /// The path.
    #[error("path: an absolute path is needed")]
    Path,
    /// The scale.
    #[error("scale: a finite number above 0, not {0}")]
    Scale(f32),
}

impl Spec {
    /// Checks it.
    ///
    /// # Errors
    /// [`SpecError`] with the first thing that cannot be.
    pub fn try_new(name: &str, kind: Kind, channels: usize, rate_hz: f64) -> Result<Self, SpecError> {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if !(1..=SpecLimits::NAME).contains(&name.len()) || !name.bytes().all(letter) {
            return Err(SpecError::Name(name.chars().take(SpecLimits::NAME + 1).collect()));
        }
        if channels == 0 || channels > MAX_CHANNELS {
            return Err(SpecError::Channels(channels));
        }
        let rate = Rate::from_hz(rate_hz).map_err(|e| SpecError::Rate(e.to_string()))?;
        match &kind {
            Kind::Synthetic { .. } => {
                if channels != synthetic::CHANNELS || Rate::from_hz(synthetic::RATE_HZ) != Ok(rate) {
                    return Err(SpecError::Synthetic);
                }
            }
            Kind::Motion { .. } => {
                if channels != motion::CHANNELS || Rate::from_hz(motion::RATE_HZ) != Ok(rate) {
                    return Err(SpecError::Motion);
                }
            }
            Kind::Recording { path, .. } if !path.is_absolute() => return Err(SpecError::Path),
            Kind::Serial { path, baud, scale, .. } => {
                if !path.is_absolute() {
                    return Err(SpecError::Path);
                }
                if !port::can_be(*baud) {
                    return Err(SpecError::Baud { baud: *baud });
                }
                if !(scale.is_finite() && *scale > 0.0) {
                    return Err(SpecError::Scale(*scale));
                }
            }
            Kind::Recording { .. } | Kind::Push => {}
        }
        Ok(Self { name: name.to_owned(), kind, channels, rate })
    }
}
