//! TensorRT 10.3 to 10.16, as far as running a prebuilt plan needs it: loaded at run time, checked before it is trusted.
//!
//! libnvinfer exports two C functions; everything else goes through the tables of C++ objects. The public classes of its headers
//! are thin: `IRuntime`, `ICudaEngine` and `IExecutionContext` hold one pointer to an object of the classes `apiv::VRuntime`,
//! `apiv::VCudaEngine` and `apiv::VExecutionContext`, whose virtual functions NVIDIA only ever appends to within a major version
//! (compared from 10.3 to 10.16). [`tables`] names the slots we use, in the layout of the Itanium C++ ABI that both x86_64 and
//! aarch64 Linux have. So there is neither a compiler of C++ nor a header of NVIDIA's in the build of an image, and the double of
//! the tests (`tests/tensorrt-double`) shares these very layouts. What holds them to the truth is
//! `tests/tensorrt-double/tests/header.rs`: with `INFERD_TENSORRT_INCLUDE` it asks a C++ compiler for every slot, size and number, and lets
//! a program compiled from NVIDIA's own headers drive the double.
//!
//! The room owns libraries and their objects ([`cuda`] has device memory and streams), and nothing of models. TensorRT must not be
//! asked for anything before CUDA was found to work: on a machine without a GPU `createInferRuntime_INTERNAL` returns 0x228, a
//! null pointer moved by a cast; such pointers are taken for what they are.

pub mod cuda;
mod library;
mod objects;
pub mod tables;
mod types;

pub use library::{Library, LibraryError, Version};
pub use objects::{Context, Plan, PlanTensor, Runtime, Stream, TrtError};
pub use types::{DataType, Dims, IoMode, Location, MAX_DIMS, Severity, TensorFormat};

/// What the dynamic linker says, the file's name included: the crate's own words are only that it failed.
fn words(e: &libloading::Error) -> String {
    use std::error::Error as _;
    e.source().map_or_else(|| e.to_string(), ToString::to_string)
}
