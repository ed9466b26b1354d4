//! Element types at the boundary: what the wire may carry, what rten computes in, and the way between.
//!
//! rten knows four element types. Each of ours has one of them as its *carrier* that holds every value of it, or every
//! value that is let in: a value the carrier or the wire cannot hold is [`EngineError::Value`], never wrapped, cut or
//! saturated.
//!
//! | wire | carrier | in | out |
//! |---|---|---|---|
//! | FP32, INT32, INT8, UINT8 | itself | borrowed | copied |
//! | FP16, BF16 | f32 | exact | rounded to nearest even; a finite value beyond the type's range is refused |
//! | FP64 | f32 | rounded to nearest; a finite value beyond FP32's range is refused | exact |
//! | INT16, UINT16 | i32 | exact | refused out of range |
//! | INT64, UINT32, UINT64 | i32 | refused beyond INT32's range | refused out of range |
//! | BOOL | i32 | 0 or 1, all else is refused | 0 or 1, all else is refused |
//!
//! FP64 is the one place where precision is given up: a network of doubles is computed in single precision, as any
//! accelerator would; its golden vectors say whether that is near enough.

use crate::EngineError;
use half::{bf16, f16};
use inferd_model::{DType, TensorSpec};
use zerocopy::{FromBytes, IntoBytes};

#[cfg(not(target_endian = "little"))]
compile_error!("tensors are little-endian in memory");

/// rten's element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    F32,
    I32,
    I8,
    U8,
}

impl Carrier {
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::Fp32 | DType::Fp16 | DType::Bf16 | DType::Fp64 => Self::F32,
            DType::Int8 => Self::I8,
            DType::Uint8 => Self::U8,
            _ => Self::I32,
        }
    }
}

/// Whether the wire's bytes are the carrier's bytes.
pub(crate) fn is_direct(dtype: DType) -> bool {
    matches!(dtype, DType::Fp32 | DType::Int32 | DType::Int8 | DType::Uint8)
}

/// Views checked and aligned bytes as elements.
pub(crate) fn view<'a, T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    spec: &TensorSpec,
    bytes: &'a [u8],
) -> Result<&'a [T], EngineError> {
    <[T]>::ref_from_bytes(bytes)
        .map_err(|_| EngineError::Alignment { name: spec.name.clone(), want: crate::ALIGNMENT })
}

/// Widens or narrows each element of an input into the f32 carrier.
pub(crate) fn to_f32(spec: &TensorSpec, bytes: &[u8], out: &mut [f32]) -> Result<(), EngineError> {
    match spec.dtype {
        DType::Fp16 => each(bytes, out, |b| Some(f16::from_le_bytes(b).to_f32())),
        DType::Bf16 => each(bytes, out, |b| Some(bf16::from_le_bytes(b).to_f32())),
        DType::Fp64 => each(bytes, out, |b| {
            let wide = f64::from_le_bytes(b);
            #[allow(clippy::cast_possible_truncation)] // rounds to nearest; the range is checked
            let narrow = wide as f32;
            (narrow.is_finite() || !wide.is_finite()).then_some(narrow)
        }),
        _ => Err(0),
    }
    .map_err(|index| refused(spec, bytes, index))
}

/// Widens or narrows each element of an input into the i32 carrier.
pub(crate) fn to_i32(spec: &TensorSpec, bytes: &[u8], out: &mut [i32]) -> Result<(), EngineError> {
    match spec.dtype {
        DType::Bool => each(bytes, out, |[b]| (b <= 1).then_some(b.into())),
        DType::Int16 => each(bytes, out, |b| Some(i16::from_le_bytes(b).into())),
        DType::Uint16 => each(bytes, out, |b| Some(u16::from_le_bytes(b).into())),
        DType::Uint32 => each(bytes, out, |b| u32::from_le_bytes(b).try_into().ok()),
        DType::Int64 => each(bytes, out, |b| i64::from_le_bytes(b).try_into().ok()),
        DType::Uint64 => each(bytes, out, |b| u64::from_le_bytes(b).try_into().ok()),
        _ => Err(0),
    }
    .map_err(|index| refused(spec, bytes, index))
}

/// Writes an output's carrier elements in the wire's type.
pub(crate) fn from_f32<'a>(
    spec: &TensorSpec,
    values: impl Iterator<Item = &'a f32>,
    out: &mut [u8],
) -> Result<(), EngineError> {
    match spec.dtype {
        DType::Fp32 => store(values, out, |v| Some(v.to_le_bytes())),
        DType::Fp64 => store(values, out, |v| Some(f64::from(v).to_le_bytes())),
        DType::Fp16 => store(values, out, |v| {
            let narrow = f16::from_f32(v);
            (narrow.is_finite() || !v.is_finite()).then_some(narrow.to_le_bytes())
        }),
        DType::Bf16 => store(values, out, |v| {
            let narrow = bf16::from_f32(v);
            (narrow.is_finite() || !v.is_finite()).then_some(narrow.to_le_bytes())
        }),
        _ => Err((0, 0.0)),
    }
    .map_err(|(index, value)| EngineError::Value {
        name: spec.name.clone(),
        index,
        value: value.to_string(),
        what: spec.dtype.name(),
    })
}

/// Writes an output's carrier elements in the wire's type.
pub(crate) fn from_i32<'a>(
    spec: &TensorSpec,
    values: impl Iterator<Item = &'a i32>,
    out: &mut [u8],
) -> Result<(), EngineError> {
    match spec.dtype {
        DType::Int32 => store(values, out, |v| Some(v.to_le_bytes())),
        DType::Int64 => store(values, out, |v| Some(i64::from(v).to_le_bytes())),
        DType::Uint64 => store(values, out, |v| u64::try_from(v).ok().map(u64::to_le_bytes)),
        DType::Uint32 => store(values, out, |v| u32::try_from(v).ok().map(u32::to_le_bytes)),
        DType::Int16 => store(values, out, |v| i16::try_from(v).ok().map(i16::to_le_bytes)),
        DType::Uint16 => store(values, out, |v| u16::try_from(v).ok().map(u16::to_le_bytes)),
        DType::Bool => store(values, out, |v| u8::try_from(v).ok().filter(|&b| b <= 1).map(|b| [b])),
        _ => Err((0, 0)),
    }
    .map_err(|(index, value)| EngineError::Value {
        name: spec.name.clone(),
        index,
        value: value.to_string(),
        what: spec.dtype.name(),
    })
}

/// Writes an output of bytes; `out` has been checked to be as long.
pub(crate) fn from_bytes<'a, T: IntoBytes + zerocopy::Immutable + Copy + 'a, const N: usize>(
    values: impl Iterator<Item = &'a T>,
    out: &mut [u8],
    to: impl Fn(T) -> [u8; N],
) {
    for (slot, &value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *slot = to(value);
    }
}

/// Applies `f` to each element; the index of the first that it refuses.
fn each<const N: usize, T>(
    bytes: &[u8],
    out: &mut [T],
    f: impl Fn([u8; N]) -> Option<T>,
) -> Result<(), usize> {
    for (index, (element, slot)) in bytes.as_chunks::<N>().0.iter().zip(out).enumerate() {
        *slot = f(*element).ok_or(index)?;
    }
    Ok(())
}

/// Stores `f` of each element; index and value of the first that it refuses.
fn store<'a, const N: usize, T: Copy + 'a>(
    values: impl Iterator<Item = &'a T>,
    out: &mut [u8],
    f: impl Fn(T) -> Option<[u8; N]>,
) -> Result<(), (usize, T)> {
    for (index, (slot, &value)) in out.as_chunks_mut::<N>().0.iter_mut().zip(values).enumerate() {
        *slot = f(value).ok_or((index, value))?;
    }
    Ok(())
}

fn refused(spec: &TensorSpec, bytes: &[u8], index: usize) -> EngineError {
    let size = spec.dtype.size();
    let element = bytes.get(index * size..(index + 1) * size).unwrap_or_default();
    let mut wide = [0; 8];
    wide[..element.len()].copy_from_slice(element);
    let value = match spec.dtype {
        DType::Fp64 => f64::from_le_bytes(wide).to_string(),
        DType::Int64 => i64::from_le_bytes(wide).to_string(),
        _ => u64::from_le_bytes(wide).to_string(),
    };
    let what = match spec.dtype {
        DType::Fp64 => "FP32, in which this engine computes FP64",
        DType::Bool => "BOOL (0 or 1)",
        _ => "INT32, in which this engine computes whole numbers",
    };
    EngineError::Value { name: spec.name.clone(), index, value, what }
}
