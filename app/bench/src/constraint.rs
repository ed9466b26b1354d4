//! What a rung must keep to: `p95_ms<50`, `cosine>0.99`.
//!
//! Operators are strict: at the limit is beyond it.

use crate::record::Measured;
use crate::units::Number;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The most constraints of one benchmark.
pub const MAX_CONSTRAINTS: usize = 16;

/// A measured quantity that can be constrained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Metric {
    MeanMs,
    P50Ms,
    P90Ms,
    P95Ms,
    P99Ms,
    MaxMs,
    CpuMs,
    ThroughputPerS,
    Cosine,
    MaxAbs,
    MemoryMib,
    PowerW,
    SpreadPercent,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::MeanMs,
        Self::P50Ms,
        Self::P90Ms,
        Self::P95Ms,
        Self::P99Ms,
        Self::MaxMs,
        Self::CpuMs,
        Self::ThroughputPerS,
        Self::Cosine,
        Self::MaxAbs,
        Self::MemoryMib,
        Self::PowerW,
        Self::SpreadPercent,
    ];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MeanMs => "mean_ms",
            Self::P50Ms => "p50_ms",
            Self::P90Ms => "p90_ms",
            Self::P95Ms => "p95_ms",
            Self::P99Ms => "p99_ms",
            Self::MaxMs => "max_ms",
            Self::CpuMs => "cpu_ms",
            Self::ThroughputPerS => "throughput_per_s",
            Self::Cosine => "cosine",
            Self::MaxAbs => "max_abs",
            Self::MemoryMib => "memory_mib",
            Self::PowerW => "power_w",
            Self::SpreadPercent => "spread_percent",
        }
    }

    /// What was measured of it.
    #[must_use]
    pub fn of(self, m: &Measured) -> Option<Number> {
        let latency = &m.latency;
        Some(match self {
            Self::MeanMs => Number::new(latency.mean.ms())?,
            Self::P50Ms => Number::new(latency.p50.ms())?,
            Self::P90Ms => Number::new(latency.p90.ms())?,
            Self::P95Ms => Number::new(latency.p95.ms())?,
            Self::P99Ms => Number::new(latency.p99.ms())?,
            Self::MaxMs => Number::new(latency.max.ms())?,
            Self::CpuMs => Number::new(m.cpu_per_inference?.ms())?,
            Self::ThroughputPerS => m.throughput_per_s,
            Self::Cosine => m.cosine?,
            Self::MaxAbs => m.max_abs?,
            Self::MemoryMib => Number::ratio(m.memory.as_ref()?.peak_bytes, 1 << 20),
            Self::PowerW => m.power_w?,
            Self::SpreadPercent => m.spread_percent,
        })
    }
}

/// Which side is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Only less than the limit.
    Below,
    /// Only more than the limit.
    Above,
}

/// One constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// Of what.
    pub metric: Metric,
    /// Which side is allowed.
    pub side: Side,
    /// The limit, which is beyond itself.
    pub limit: Number,
}

/// Why a text is no constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// No operator, or another one.
    #[error("a constraint is a name, < or >, and a number: p95_ms<50")]
    Form,
    /// An unknown quantity.
    #[error("there is nothing of this name to constrain; there are {}", Metric::ALL.map(Metric::name).join(", "))]
    Metric,
    /// The limit cannot be one.
    #[error("the limit of {0} is a number from 0 to 1000000")]
    Limit(&'static str),
}

impl Constraint {
    /// Whether a measured value keeps to it.
    #[must_use]
    pub fn holds(&self, value: Number) -> bool {
        match self.side {
            Side::Below => value < self.limit,
            Side::Above => value > self.limit,
        }
    }

    /// Why these numbers do not keep to it; `None`: they do.
    #[must_use]
    pub fn broken_by(&self, m: &Measured) -> Option<String> {
        match self.metric.of(m) {
            None => Some(format!("{self}: {} was not measured here", self.metric.name())),
            Some(value) if self.holds(value) => None,
            Some(value) => Some(format!("{self}: it is {}", value.value())),
        }
    }

    /// How far beyond the limit, as a share of it; 0 for what keeps to it, `None` for what was not measured.
    #[must_use]
    pub fn excess(&self, m: &Measured) -> Option<Number> {
        let value = self.metric.of(m)?;
        if self.holds(value) {
            return Some(Number::default());
        }
        let (value, limit) = (value.value(), self.limit.value());
        Number::new((value - limit).abs() / limit.abs().max(1e-9))
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Below => '<',
            Side::Above => '>',
        };
        write!(f, "{}{side}{}", self.metric.name(), self.limit.value())
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        if text.len() > 64 {
            return Err(ConstraintError::Form);
        }
        let at = text.find(['<', '>']).ok_or(ConstraintError::Form)?;
        let (name, rest) = text.split_at(at);
        let (side, limit) = rest.split_at(1);
        let metric = Metric::ALL.into_iter().find(|m| m.name() == name.trim());
        let metric = metric.ok_or(ConstraintError::Metric)?;
        let side = if side == "<" { Side::Below } else { Side::Above };
        let limit = limit.trim();
        if limit.starts_with(['=', '<', '>']) {
            return Err(ConstraintError::Form);
        }
        let limit = limit.parse::<f64>().ok().filter(|l| (0.0..=1e6).contains(l)).and_then(Number::new);
        Ok(Self { metric, side, limit: limit.ok_or(ConstraintError::Limit(metric.name()))? })
    }
}

impl Serialize for Constraint {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Constraint {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_read_and_written_back() {
        for (text, back) in [
            ("p95_ms<50", "p95_ms<50"),
            (" cosine > 0.990 ", "cosine>0.99"),
            ("memory_mib<64.5", "memory_mib<64.5"),
        ] {
            let read: Constraint = text.parse().unwrap();
            assert_eq!(read.to_string(), back);
            assert_eq!(back.parse::<Constraint>().unwrap(), read);
        }
        for metric in Metric::ALL {
            assert!(format!("{}>1", metric.name()).parse::<Constraint>().is_ok());
        }
    }

    #[test]
    fn what_is_no_constraint_has_its_reason() {
        for text in ["", "p95_ms", "p95_ms=5", "p95_ms<=5", "p95_ms>>5", "p95_ms<<5"] {
            assert_eq!(text.parse::<Constraint>(), Err(ConstraintError::Form), "{text}");
        }
        assert_eq!("speed<5".parse::<Constraint>(), Err(ConstraintError::Metric));
        for text in ["p95_ms<", "p95_ms<x", "p95_ms<nan", "p95_ms<-1", "p95_ms<inf", "p95_ms<1e7"] {
            assert_eq!(text.parse::<Constraint>(), Err(ConstraintError::Limit("p95_ms")), "{text}");
        }
    }

    #[test]
    fn operators_are_strict() {
        let at = |v| Number::new(v).unwrap();
        let below: Constraint = "p95_ms<50".parse().unwrap();
        assert!(below.holds(at(49.999_999)) && !below.holds(at(50.0)));
        let above: Constraint = "cosine>0.99".parse().unwrap();
        assert!(above.holds(at(0.990_000_001)) && !above.holds(at(0.99)));
    }
}
