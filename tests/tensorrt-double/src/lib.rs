//! A double of TensorRT 10 and of the CUDA driver, in one shared object that plays either part.
//!
//! It has the real entry points, tables and numbers (those of `inferd-tensorrt-abi`, which `tests/header.rs` holds to NVIDIA's
//! headers), and runs a [`plan`] of its own kind: a network that the built-in engine computes. Device memory is memory of the process;
//! a stream does its work when it is given. Nothing in it is measured on a GPU: numbers, timing and real faults are not its to show.
//!
//! Faults are read from the file `faults` beside the shared object at every call, a `name=value` on each line:
//!
//! | fault | what happens |
//! |---|---|
//! | `cuda-init=CODE` | `cuInit` fails |
//! | `devices=0` | there is no GPU |
//! | `allocate=CODE` | `cuMemAlloc` fails |
//! | `synchronize=CODE` | `cuStreamSynchronize` fails: 719 is a kernel that crashed, after which every call fails so |
//! | `hang=1` | `cuStreamSynchronize` does not come back while that is written |
//! | `version=NUMBER` | `getInferLibVersion` |
//! | `runtime=null`, `runtime=moved` | `createInferRuntime_INTERNAL` gives null, or 0x228 as the real one without a GPU |
//! | `context=null` | `createExecutionContext` gives null |
//! | `enqueue=no` | `enqueueV3` says false |
//! | `output=nan` | outputs in floating point are not numbers |

mod cuda;
mod nvinfer;
pub mod plan;

use std::ffi::CStr;
use std::path::PathBuf;

/// The value of a fault, if it is written now.
fn fault(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(home().join("faults")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.trim().to_owned()))
}

fn code(name: &str) -> Option<i32> {
    fault(name)?.parse().ok()
}

/// The folder that this shared object was loaded from.
fn home() -> PathBuf {
    // SAFETY: all zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is one of this object's; `info` is written during the call.
    let found = unsafe { libc::dladdr(home as fn() -> PathBuf as *const libc::c_void, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return PathBuf::new();
    }
    // SAFETY: the linker's name of a loaded object, which stays.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    PathBuf::from(name.to_string_lossy().into_owned()).parent().map(PathBuf::from).unwrap_or_default()
}
