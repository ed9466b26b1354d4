//! Values that cross the border, with the layouts and numbers of `NvInferRuntimeBase.h` and `NvInferRuntime.h` (10.3 to 10.16).

/// `Dims64::MAX_DIMS`.
pub const MAX_DIMS: usize = 8;

/// `nvinfer1::Dims`: a shape. `count` is -1 for a tensor there is not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// How many of `sizes` count.
    pub count: i32,
    /// Each -1 when it is only known at run time.
    pub sizes: [i64; MAX_DIMS],
}

const _: () = {
    assert!(size_of::<Dims>() == 72);
    assert!(std::mem::offset_of!(Dims, sizes) == 8);
};

impl Dims {
    /// A shape; `None` for more than [`MAX_DIMS`] dimensions.
    #[must_use]
    pub fn of(shape: &[i64]) -> Option<Self> {
        let mut sizes = [0; MAX_DIMS];
        sizes.get_mut(..shape.len())?.copy_from_slice(shape);
        Some(Self { count: i32::try_from(shape.len()).ok()?, sizes })
    }

    /// The dimensions; `None` when the library says that there is no such tensor, or what cannot be.
    #[must_use]
    pub fn shape(&self) -> Option<&[i64]> {
        self.sizes.get(..usize::try_from(self.count).ok()?)
    }
}

macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        pub enum $name { $($(#[$each])* $variant = $value),+ }

        impl $name {
            /// Every one that is known here.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The one with this number; newer libraries may have more.
            #[must_use]
            pub fn of(number: i32) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| *v as i32 == number)
            }
        }
    };
}

numbers! {
    /// `nvinfer1::DataType`.
    DataType {
        /// FP32.
        Float = 0,
        /// FP16.
        Half = 1,
        /// INT8 with a scale.
        Int8 = 2,
        /// INT32.
        Int32 = 3,
        /// One byte, 0 or 1.
        Bool = 4,
        /// UINT8.
        Uint8 = 5,
        /// FP8.
        Fp8 = 6,
        /// BF16.
        Bf16 = 7,
        /// INT64.
        Int64 = 8,
        /// Packed INT4.
        Int4 = 9,
    }
}

numbers! {
    /// `nvinfer1::TensorIOMode`.
    IoMode {
        /// Neither: there is no tensor of that name.
        None = 0,
        /// An input.
        Input = 1,
        /// An output.
        Output = 2,
    }
}

numbers! {
    /// `nvinfer1::TensorLocation`.
    Location {
        /// Device memory.
        Device = 0,
        /// Host memory: a shape tensor.
        Host = 1,
    }
}

numbers! {
    /// `nvinfer1::TensorFormat`, the only one that is row-major.
    TensorFormat {
        /// Row-major.
        Linear = 0,
    }
}

numbers! {
    /// `nvinfer1::ILogger::Severity`.
    Severity {
        /// The library is broken.
        InternalError = 0,
        /// A call failed.
        Error = 1,
        /// Something to look at.
        Warning = 2,
        /// Progress.
        Info = 3,
        /// Everything else.
        Verbose = 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_goes_there_and_back() {
        for shape in [&[][..], &[1], &[1, 100, 9], &[1; 8]] {
            assert_eq!(Dims::of(shape).unwrap().shape().unwrap(), shape);
        }
        assert_eq!(Dims::of(&[1; 9]), None);
        for count in [-1, 9, i32::MAX, i32::MIN] {
            assert_eq!(Dims { count, sizes: [0; 8] }.shape(), None, "{count}");
        }
    }

    #[test]
    fn an_unknown_number_is_no_type() {
        assert_eq!(DataType::of(8), Some(DataType::Int64));
        assert_eq!(DataType::of(77), None);
        assert_eq!(IoMode::of(-1), None);
    }
}
