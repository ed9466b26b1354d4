//! Zeroed bytes at an address every element type and every SIMD load likes.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The alignment every tensor buffer has: one cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// One aligned line.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; ALIGNMENT]);

/// A buffer of fixed length, aligned to [`ALIGNMENT`], allocated once. For callers without a ring slot: golden checks,
/// the operator's tool, benchmarks and tests.
#[derive(Clone)]
pub struct AlignedBuffer {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line::new_zeroed(); len.div_ceil(ALIGNMENT)], len }
    }

    /// A buffer holding a copy of these bytes.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut new = Self::zeroed(bytes.len());
        new.as_mut_bytes().copy_from_slice(bytes);
        new
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.lines.as_bytes()[..self.len]
    }

    /// The bytes, to be written.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.lines.as_mut_bytes()[..self.len]
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_is_aligned_and_keeps_its_bytes() {
        for len in [0, 1, 63, 64, 65, 3600] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let buffer = AlignedBuffer::copy_of(&bytes);
            assert_eq!(buffer.as_bytes(), bytes);
            assert_eq!(buffer.as_bytes().as_ptr().align_offset(ALIGNMENT), 0);
        }
    }
}
