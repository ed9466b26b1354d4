//! The CUDA driver: `cuda.h`'s names, types and numbers.

use crate::{code, fault};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const NO_DEVICE: c_int = 100;
const INVALID_DEVICE: c_int = 101;
const INVALID_CONTEXT: c_int = 201;
const INVALID_HANDLE: c_int = 400;

const CONTEXT: *mut c_void = 0xc0_0000 as *mut c_void;

/// The error that destroyed the context; every later call has it.
static DEAD: AtomicI32 = AtomicI32::new(0);
static STREAMS: AtomicUsize = AtomicUsize::new(0);
/// Address and size of every piece of device memory.
static MEMORY: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

thread_local! {
    static CURRENT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What stands in the way of any call that needs a context.
fn obstacle() -> Option<c_int> {
    match DEAD.load(SeqCst) {
        0 if CURRENT.get() => None,
        0 => Some(INVALID_CONTEXT),
        dead => Some(dead),
    }
}

/// Whether all of these bytes are one piece of device memory.
pub fn holds(address: usize, bytes: usize) -> bool {
    let memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let piece = memory.range(..=address).next_back();
    piece.is_some_and(|(&at, &size)| address - at <= size && bytes <= size - (address - at))
}

/// Whether the calling thread may use the GPU.
pub fn works() -> bool {
    obstacle().is_none()
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_: c_uint) -> c_int {
    if fault("devices").as_deref() == Some("0") {
        return NO_DEVICE;
    }
    code("cuda-init").unwrap_or(SUCCESS)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller's variable.
    unsafe { *version = 12060 };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    // SAFETY: the caller's variable.
    unsafe { *count = 1 };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    if ordinal != 0 {
        return INVALID_DEVICE;
    }
    // SAFETY: the caller's variable.
    unsafe { *device = 0 };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _: c_int) -> c_int {
    let text = b"Double\0";
    let room = usize::try_from(length).unwrap_or_default();
    if room < text.len() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller has that much room.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _: c_int) -> c_int {
    let found = match attribute {
        75 => 8,
        76 => 7,
        _ => return INVALID_VALUE,
    };
    // SAFETY: the caller's variable.
    unsafe { *value = found };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _: c_int) -> c_int {
    // SAFETY: the caller's variable.
    unsafe { *context = CONTEXT };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    if context != CONTEXT {
        return INVALID_CONTEXT;
    }
    CURRENT.set(true);
    obstacle().unwrap_or(SUCCESS)
}

/// Bytes of the device's memory; more are given out all the same.
const MEMORY_BYTES: usize = 1 << 30;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    if !CURRENT.get() {
        return INVALID_CONTEXT;
    }
    if let Some(code) = obstacle() {
        return code;
    }
    let used: usize = MEMORY.lock().unwrap_or_else(PoisonError::into_inner).values().sum();
    // SAFETY: the caller's variables.
    unsafe { (*free, *total) = (MEMORY_BYTES.saturating_sub(used), MEMORY_BYTES) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    if let Some(code) = obstacle().or_else(|| code("allocate")) {
        return code;
    }
    let Some(layout) = Layout::from_size_align(bytes, 256).ok().filter(|_| bytes > 0) else {
        return INVALID_VALUE;
    };
    // SAFETY: the layout is not of size 0.
    let at = unsafe { alloc_zeroed(layout) } as usize;
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner).insert(at, bytes);
    // SAFETY: the caller's variable.
    unsafe { *address = at as u64 };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    let at = address as usize;
    let Some(bytes) = MEMORY.lock().unwrap_or_else(PoisonError::into_inner).remove(&at) else {
        return INVALID_VALUE;
    };
    let Ok(layout) = Layout::from_size_align(bytes, 256) else { return INVALID_VALUE };
    // SAFETY: it was allocated with this layout and was still in the list.
    unsafe { dealloc(at as *mut u8, layout) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    copy(from as usize, to as usize, to as usize, bytes, stream)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    copy(from as usize, to as usize, from as usize, bytes, stream)
}

fn copy(from: usize, to: usize, device: usize, bytes: usize, stream: *mut c_void) -> c_int {
    if let Some(code) = obstacle() {
        return code;
    }
    if stream.is_null() {
        return INVALID_HANDLE;
    }
    if !holds(device, bytes) {
        return INVALID_VALUE;
    }
    // SAFETY: the device's side was looked at, the caller answers for its own.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _: c_uint) -> c_int {
    if let Some(code) = obstacle() {
        return code;
    }
    let number = STREAMS.fetch_add(1, SeqCst) + 1;
    // SAFETY: the caller's variable.
    unsafe { *stream = (0x57_0000 + number) as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(_: *mut c_void) -> c_int {
    while fault("hang").is_some() {
        std::thread::sleep(Duration::from_millis(5));
    }
    if let Some(code) = obstacle() {
        return code;
    }
    match code("synchronize") {
        Some(code) => {
            DEAD.store(code, SeqCst);
            code
        }
        None => SUCCESS,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(_: *mut c_void) -> c_int {
    obstacle().unwrap_or(SUCCESS)
}
