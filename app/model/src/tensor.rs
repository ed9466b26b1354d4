//! Tensor specifications: what one input or output looks like, and what its values may be.

use crate::{DType, Normalization};
use serde::{Deserialize, Serialize};

/// The largest tensor a model may declare. Larger than any frame an edge camera gives as FP32 (4K RGB is 95 MiB),
/// small enough that no size below can overflow.
pub const MAX_TENSOR_BYTES: usize = 256 << 20;

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// The tensor's name in the graph, and on the wire.
    pub name: String,
    /// Element type on the wire and in a slot.
    pub dtype: DType,
    /// Fixed dimensions, outermost first, batch included. Empty for a scalar.
    pub shape: Vec<u32>,
    /// Names and units of the last dimension, when it is one of channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// Applied by the engine host before the engine sees the tensor; never by a client, never twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalization: Option<Normalization>,
    /// Largest magnitudes that are accepted, in the channel's unit, before normalisation. Bounds are inclusive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

/// What the last dimension of a tensor means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channels {
    /// One name per channel, in order.
    pub names: Vec<String>,
    /// One unit per channel, in order: `m/s^2`, `rad/s`, `uT`, ...
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// Samples per second along the dimension before the last, in hertz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_hz: Option<f64>,
}

/// The range of one physical quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// What is measured, as error messages call it: `Accelerometer`.
    pub quantity: String,
    /// The channels it covers, by name.
    pub channels: Vec<String>,
    /// Values with a larger magnitude are refused; this one is accepted.
    pub max_abs: f64,
}

/// Why a tensor specification is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SpecError {
    #[error("tensor {name:?}: a name is 1 to 128 printable ASCII characters")]
    Name { name: String },
    #[error("tensor {name}: has {rank} dimensions, at most 8 are supported")]
    Rank { name: String, rank: usize },
    #[error("tensor {name}: dimension {axis} is {size}; sizes are fixed and at least 1")]
    Dimension { name: String, axis: usize, size: u32 },
    #[error("tensor {name}: is larger than {MAX_TENSOR_BYTES} bytes")]
    TooLarge { name: String },
    #[error("tensor {name}: {what} has {got} entries for {want} channels")]
    ChannelCount { name: String, what: &'static str, got: usize, want: usize },
    #[error("tensor {name}: {what} needs an FP32 tensor with at least one dimension, this is {dtype}")]
    NotFloat { name: String, what: &'static str, dtype: DType },
    #[error("tensor {name}: std of channel {channel} is {value}; it must be finite and above 0")]
    Std { name: String, channel: usize, value: f64 },
    #[error("tensor {name}: mean of channel {channel} is not a finite number")]
    Mean { name: String, channel: usize },
    #[error("tensor {name}: limit {quantity:?} names no known channel {channel:?}")]
    LimitChannel { name: String, quantity: String, channel: String },
    #[error("tensor {name}: limit {quantity:?} must be a finite number above 0")]
    LimitValue { name: String, quantity: String },
}

impl TensorSpec {
    /// A plain tensor without channels, normalisation or limits.
    #[must_use]
    pub fn plain(name: &str, dtype: DType, shape: &[u32]) -> Self {
        Self {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            channels: None,
            normalization: None,
            limits: Vec::new(),
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().map(|&d| d as usize).product()
    }

    /// Bytes of the whole tensor, row-major and dense.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Size of the last dimension (1 for a scalar).
    #[must_use]
    pub fn channel_count(&self) -> usize {
        self.shape.last().map_or(1, |&c| c as usize)
    }

    /// The accepted magnitude per channel of the last dimension with the quantity's name, where one is declared.
    #[must_use]
    pub fn limit_per_channel(&self) -> Vec<Option<(&str, f64)>> {
        let names = self.channels.as_ref().map_or(&[][..], |c| &c.names);
        (0..self.channel_count())
            .map(|i| {
                let name = names.get(i)?;
                let limit = self.limits.iter().find(|l| l.channels.contains(name))?;
                Some((limit.quantity.as_str(), limit.max_abs))
            })
            .collect()
    }

    /// Checks everything about the specification that needs no model file.
    ///
    /// # Errors
    /// The first thing that is wrong, as a sentence that names the tensor.
    pub fn check(&self) -> Result<(), SpecError> {
        let name = || self.name.clone();
        if !(1..=128).contains(&self.name.len()) || !self.name.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(SpecError::Name { name: name() });
        }
        if self.shape.len() > 8 {
            return Err(SpecError::Rank { name: name(), rank: self.shape.len() });
        }
        let mut bytes = self.dtype.size();
        for (axis, &size) in self.shape.iter().enumerate() {
            if size == 0 {
                return Err(SpecError::Dimension { name: name(), axis, size });
            }
            bytes = bytes.saturating_mul(size as usize);
        }
        if bytes > MAX_TENSOR_BYTES {
            return Err(SpecError::TooLarge { name: name() });
        }
        let want = self.channel_count();
        let count = |what, got| {
            if got == want { Ok(()) } else { Err(SpecError::ChannelCount { name: name(), what, got, want }) }
        };
        if let Some(c) = &self.channels {
            count("channels.names", c.names.len())?;
            if !c.units.is_empty() {
                count("channels.units", c.units.len())?;
            }
        }
        let float = |what| {
            if self.dtype == DType::Fp32 && !self.shape.is_empty() {
                Ok(())
            } else {
                Err(SpecError::NotFloat { name: name(), what, dtype: self.dtype })
            }
        };
        if let Some(n) = &self.normalization {
            float("normalization")?;
            count("normalization.mean", n.mean.len())?;
            count("normalization.std", n.std.len())?;
            for (channel, (&m, &s)) in n.mean.iter().zip(&n.std).enumerate() {
                if !m.is_finite() {
                    return Err(SpecError::Mean { name: name(), channel });
                }
                if !s.is_finite() || s <= 0.0 {
                    return Err(SpecError::Std { name: name(), channel, value: f64::from(s) });
                }
            }
        }
        for l in &self.limits {
            float("limits")?;
            if !l.max_abs.is_finite() || l.max_abs <= 0.0 {
                return Err(SpecError::LimitValue { name: name(), quantity: l.quantity.clone() });
            }
            let known = self.channels.as_ref().map_or(&[][..], |c| &c.names);
            if let Some(unknown) = l.channels.iter().find(|c| !known.contains(c)) {
                return Err(SpecError::LimitChannel {
                    name: name(),
                    quantity: l.quantity.clone(),
                    channel: unknown.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_shape_and_type() {
        let t = TensorSpec::plain("x", DType::Fp32, &[1, 100, 9]);
        assert_eq!((t.elements(), t.byte_len(), t.channel_count()), (900, 3600, 9));
        let scalar = TensorSpec::plain("s", DType::Int64, &[]);
        assert_eq!((scalar.elements(), scalar.byte_len()), (1, 8));
    }

    #[test]
    fn impossible_tensors_are_refused() {
        let check = |t: TensorSpec| t.check().unwrap_err();
        assert!(matches!(check(TensorSpec::plain("", DType::Fp32, &[1])), SpecError::Name { .. }));
        assert!(matches!(check(TensorSpec::plain("x", DType::Fp32, &[0])), SpecError::Dimension { .. }));
        assert!(matches!(
            check(TensorSpec::plain("x", DType::Fp32, &[u32::MAX, u32::MAX, u32::MAX])),
            SpecError::TooLarge { .. }
        ));
        assert!(matches!(check(TensorSpec::plain("x", DType::Fp32, &[1; 9])), SpecError::Rank { .. }));
    }

    #[test]
    fn normalisation_must_fit_the_channels() {
        let mut t = TensorSpec::plain("x", DType::Fp32, &[1, 4, 2]);
        t.normalization = Some(Normalization { mean: vec![0.0; 3], std: vec![1.0; 3] });
        assert!(matches!(t.check(), Err(SpecError::ChannelCount { got: 3, want: 2, .. })));
        t.normalization = Some(Normalization { mean: vec![0.0; 2], std: vec![1.0, 0.0] });
        assert!(matches!(t.check(), Err(SpecError::Std { channel: 1, .. })));
        t.dtype = DType::Int8;
        assert!(matches!(t.check(), Err(SpecError::NotFloat { .. })));
    }
}
