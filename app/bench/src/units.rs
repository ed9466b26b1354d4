//! Times and numbers as they stand in records: on a grid, so that what was written is what is read, on every platform, and two
//! of them compare without rounding.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// The largest count of grid steps: a JSON number of it is read back exactly.
const MOST: u64 = 1_000_000_000_000_000;

/// A time in whole nanoseconds, at most 11 days. In JSON: milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// So many nanoseconds.
    #[must_use]
    pub fn from_nanos(nanos: u64) -> Self {
        Self(nanos.min(MOST))
    }

    /// In nanoseconds.
    #[must_use]
    pub fn nanos(self) -> u64 {
        self.0
    }

    /// In milliseconds, for people.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // below 2^53
    pub fn ms(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl From<Duration> for Time {
    fn from(d: Duration) -> Self {
        Self::from_nanos(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.ms())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let nanos = f64::deserialize(d)? * 1e6;
        #[allow(clippy::cast_precision_loss)]
        if !(0.0..=MOST as f64).contains(&nanos) {
            return Err(D::Error::custom("a time is a number of milliseconds from 0 to 1e9"));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // in range, asked above
        Ok(Self(nanos.round() as u64))
    }
}

/// A number in billionths, at most a million either way. In JSON: the number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(i64);

impl Number {
    /// The nearest on the grid; what is larger becomes the largest. `None` for what is no number.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        if value.is_nan() {
            return None;
        }
        #[allow(clippy::cast_precision_loss)]
        let steps = (value * 1e9).round().clamp(-(MOST as f64), MOST as f64);
        #[allow(clippy::cast_possible_truncation)] // in range
        Some(Self(steps as i64))
    }

    /// `part` of `whole`; 0 of nothing.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn ratio(part: u64, whole: u64) -> Self {
        if whole == 0 { Self(0) } else { Self::new(part as f64 / whole as f64).unwrap_or_default() }
    }

    /// In billionths.
    #[must_use]
    pub(crate) fn steps(self) -> i128 {
        self.0.into()
    }

    /// As a number.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // below 2^53
    pub fn value(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.value())
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(d)?).ok_or_else(|| D::Error::custom("not a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_pcg::Pcg64Mcg;
    use rand_pcg::rand_core::Rng as _;

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut random = Pcg64Mcg::new(7);
        for i in 0..200_000_u64 {
            let n = if i < 1000 { i } else { random.next_u64() >> (random.next_u32() % 60) };
            let time = Time::from_nanos(n);
            let text = serde_json::to_string(&time).unwrap();
            assert_eq!(serde_json::from_str::<Time>(&text).unwrap(), time, "{text}");
            let number = Number(i64::try_from(n.min(MOST)).unwrap() * if i % 2 == 0 { 1 } else { -1 });
            let text = serde_json::to_string(&number).unwrap();
            assert_eq!(serde_json::from_str::<Number>(&text).unwrap(), number, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["-1", "1e10", "\"1\"", "null", "[1]"] {
            assert!(serde_json::from_str::<Time>(text).is_err(), "{text}");
        }
        assert_eq!(Number::new(f64::NAN), None);
        assert_eq!(Number::new(f64::INFINITY).unwrap().value(), 1e6);
    }
}
