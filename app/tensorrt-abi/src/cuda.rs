//! The CUDA driver, as far as a plan needs it: one device, its primary context, device memory, streams.
//!
//! Fifteen functions of `cuda.h`, whose names and types have not changed since CUDA 4 (`_v2`) and are in every libcuda, Jetson's
//! too. They are bound here and not by the crate `cudarc`, which ends the thread with a panic when a library or a symbol is
//! missing, looks for the library by names of its own, and gives results as a Rust enumeration, which a driver newer than the crate
//! can make undefined.
//!
//! A context is current per thread: [`Cuda::enter`] before anything else is called on one.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where libcuda is looked for when nobody names one: the linker's own places, then Jetson's.
const PLACES: [&str; 3] = [
    "libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
];

/// Why CUDA does not do what it is asked; each is one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CudaError {
    #[error("no CUDA driver is installed: {0}")]
    Absent(String),
    #[error("{path}: it is no CUDA driver (it has no {symbol})")]
    Symbol { path: String, symbol: &'static str },
    #[error("CUDA finds no device")]
    NoDevice,
    #[error("{call}: {code}")]
    Call { call: &'static str, code: Code },
}

impl CudaError {
    /// Whether nothing works any more in this process: the context is destroyed by such an error, and only another process can
    /// have a new one.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Call { code, .. } if code.is_lost())
    }
}

/// A `CUresult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    pub const OUT_OF_MEMORY: Self = Self(2);
    /// `CUDA_ERROR_NO_DEVICE`.
    pub const NO_DEVICE: Self = Self(100);

    /// Its name in `cuda.h`, of those that are told apart.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            1 => "CUDA_ERROR_INVALID_VALUE",
            2 => "CUDA_ERROR_OUT_OF_MEMORY",
            3 => "CUDA_ERROR_NOT_INITIALIZED",
            4 => "CUDA_ERROR_DEINITIALIZED",
            34 => "CUDA_ERROR_STUB_LIBRARY",
            46 => "CUDA_ERROR_DEVICE_UNAVAILABLE",
            100 => "CUDA_ERROR_NO_DEVICE",
            101 => "CUDA_ERROR_INVALID_DEVICE",
            201 => "CUDA_ERROR_INVALID_CONTEXT",
            214 => "CUDA_ERROR_ECC_UNCORRECTABLE",
            304 => "CUDA_ERROR_OPERATING_SYSTEM",
            700 => "CUDA_ERROR_ILLEGAL_ADDRESS",
            702 => "CUDA_ERROR_LAUNCH_TIMEOUT",
            709 => "CUDA_ERROR_CONTEXT_IS_DESTROYED",
            714 => "CUDA_ERROR_HARDWARE_STACK_ERROR",
            715 => "CUDA_ERROR_ILLEGAL_INSTRUCTION",
            716 => "CUDA_ERROR_MISALIGNED_ADDRESS",
            717 => "CUDA_ERROR_INVALID_ADDRESS_SPACE",
            718 => "CUDA_ERROR_INVALID_PC",
            719 => "CUDA_ERROR_LAUNCH_FAILED",
            803 => "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            999 => "CUDA_ERROR_UNKNOWN",
            _ => "an error",
        }
    }

    /// Errors after which the CUDA documentation says that the process must end, and a device that is gone.
    fn is_lost(self) -> bool {
        matches!(self.0, 4 | 46 | 214 | 304 | 700 | 702 | 709 | 714..=719 | 999)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

type Pointer = u64;
type Handle = *mut c_void;

macro_rules! functions {
    ($($field:ident = $symbol:literal ($($type:ty),*);)+) => {
        struct Functions { $($field: unsafe extern "C" fn($($type),*) -> c_int),+ }

        impl Functions {
            fn of(library: &libloading::Library, path: &str) -> Result<Self, CudaError> {
                Ok(Self { $($field: {
                    // SAFETY: cuda.h declares it so since CUDA 4.
                    let found = unsafe {
                        library.get::<unsafe extern "C" fn($($type),*) -> c_int>(concat!($symbol, "\0").as_bytes())
                    };
                    *found.map_err(|_| CudaError::Symbol { path: path.to_owned(), symbol: $symbol })?
                }),+ })
            }
        }
    };
}

functions! {
    init = "cuInit" (c_uint);
    driver_version = "cuDriverGetVersion" (*mut c_int);
    count = "cuDeviceGetCount" (*mut c_int);
    device = "cuDeviceGet" (*mut c_int, c_int);
    name = "cuDeviceGetName" (*mut c_char, c_int, c_int);
    attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    retain = "cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
    set_current = "cuCtxSetCurrent" (Handle);
    memory = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    allocate = "cuMemAlloc_v2" (*mut Pointer, usize);
    free = "cuMemFree_v2" (Pointer);
    to_device = "cuMemcpyHtoDAsync_v2" (Pointer, *const c_void, usize, Handle);
    to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, Pointer, usize, Handle);
    stream = "cuStreamCreate" (*mut Handle, c_uint);
    synchronize = "cuStreamSynchronize" (Handle);
    destroy_stream = "cuStreamDestroy_v2" (Handle);
}

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`, and `_MINOR` after it.
const CAPABILITY: c_int = 75;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;

/// The driver with its first device.
pub struct Cuda {
    path: PathBuf,
    call: Functions,
    context: Handle,
    name: String,
    capability: (i32, i32),
    driver: i32,
}

// SAFETY: the functions may be called from any thread, and the context is a handle that all of them may make current.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Opens the driver and its first device, and keeps the device's primary context for the rest of the process.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no device, or what the driver says.
    pub fn open(path: Option<&Path>) -> Result<Self, CudaError> {
        let mut why = String::new();
        let named = path.map(Path::to_owned);
        let places = named.map_or_else(|| PLACES.iter().map(PathBuf::from).collect(), |path| vec![path]);
        for path in places {
            // SAFETY: loading runs the constructors of a library that the image's maker or the operator has put there to be
            // loaded.
            match unsafe { libloading::Library::new(&path) } {
                Ok(library) => {
                    let call = Functions::of(&library, &path.display().to_string())?;
                    // Never unloaded: threads of it live on.
                    std::mem::forget(library);
                    return Self::begin(path, call);
                }
                Err(e) if why.is_empty() => why = crate::words(&e),
                Err(_) => {}
            }
        }
        Err(CudaError::Absent(why))
    }

    fn begin(path: PathBuf, call: Functions) -> Result<Self, CudaError> {
        let (mut driver, mut count, mut device, mut major, mut minor) = (0, 0, 0, 0, 0);
        let mut context = std::ptr::null_mut();
        let mut name = [0 as c_char; 128];
        // SAFETY: it takes a number that must be 0.
        let begun = unsafe { (call.init)(0) };
        if begun == Code::NO_DEVICE.0 {
            return Err(CudaError::NoDevice);
        }
        check("cuInit", begun)?;
        // SAFETY: the pointer is to a variable of the type that cuda.h asks for, and is written during the call only.
        check("cuDriverGetVersion", unsafe { (call.driver_version)(&raw mut driver) })?;
        // SAFETY: as above.
        check("cuDeviceGetCount", unsafe { (call.count)(&raw mut count) })?;
        if count < 1 {
            return Err(CudaError::NoDevice);
        }
        // SAFETY: as above.
        check("cuDeviceGet", unsafe { (call.device)(&raw mut device, 0) })?;
        // SAFETY: as above; the name is cut to the length given, its zero included.
        check("cuDeviceGetName", unsafe { (call.name)(name.as_mut_ptr(), 127, device) })?;
        for (value, number) in [(&mut major, CAPABILITY), (&mut minor, CAPABILITY + 1)] {
            // SAFETY: as above.
            check("cuDeviceGetAttribute", unsafe { (call.attribute)(value, number, device) })?;
        }
        // SAFETY: as above.
        check("cuDevicePrimaryCtxRetain", unsafe { (call.retain)(&raw mut context, device) })?;
        // SAFETY: the array ends in a zero: it was made of zeros and its last byte was not given away.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Self { path, call, context, name, capability: (major, minor), driver })
    }

    /// Where the driver's library is, as it was named.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device's name: `Orin`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its architecture as plans are built for: `sm_87`.
    #[must_use]
    pub fn architecture(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }

    /// The newest CUDA the driver can do: `12.6`.
    #[must_use]
    pub fn driver(&self) -> String {
        format!("{}.{}", self.driver / 1000, self.driver % 1000 / 10)
    }

    /// Makes the context current on this thread.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained for the rest of the process.
        check("cuCtxSetCurrent", unsafe { (self.call.set_current)(self.context) })
    }

    /// Bytes of the device's memory that are free, and all of them, on a thread that has entered. Where the device shares the board's
    /// memory, that is the board's.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0_usize, 0_usize);
        // SAFETY: the pointers are to variables of the type that cuda.h asks for, and are written during the call only.
        check("cuMemGetInfo", unsafe { (self.call.memory)(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// A stream of its own, on a thread that has entered.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn queue(&'static self) -> Result<Queue, CudaError> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is to a handle.
        check("cuStreamCreate", unsafe { (self.call.stream)(&raw mut stream, NON_BLOCKING) })?;
        Ok(Queue { cuda: self, stream })
    }

    /// Device memory, on a thread that has entered.
    ///
    /// # Errors
    /// [`CudaError::Call`] with [`Code::OUT_OF_MEMORY`] when there is not that much.
    pub fn allocate(&'static self, bytes: usize) -> Result<DeviceMemory, CudaError> {
        let mut address = 0;
        // SAFETY: the pointer is to an address. No memory of no bytes is asked for: the driver refuses that.
        check("cuMemAlloc", unsafe { (self.call.allocate)(&raw mut address, bytes.max(1)) })?;
        Ok(DeviceMemory { cuda: self, address, bytes })
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("path", &self.path).field("name", &self.name).finish_non_exhaustive()
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), CudaError> {
    if code == 0 { Ok(()) } else { Err(CudaError::Call { call, code: Code(code) }) }
}

/// Device memory, given back when it is dropped.
pub struct DeviceMemory {
    cuda: &'static Cuda,
    address: Pointer,
    bytes: usize,
}

impl DeviceMemory {
    /// Its address, for a library.
    #[must_use]
    pub fn address(&self) -> *mut c_void {
        // An address of the device is one of this process too, as large as a pointer (`unified addressing`).
        usize::try_from(self.address).unwrap_or_default() as *mut c_void
    }

    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the memory is ours, and who queued work on it has waited for it (see `Queue`).
        let _ = unsafe { (self.cuda.call.free)(self.address) };
    }
}

/// A stream. Dropping it waits for what is queued.
pub struct Queue {
    cuda: &'static Cuda,
    stream: Handle,
}

impl Queue {
    /// The stream, for a library.
    #[must_use]
    pub fn handle(&self) -> *mut c_void {
        self.stream
    }

    /// Queues a copy to the device; no more than the memory holds is copied.
    ///
    /// # Safety
    /// `from` and `to` stay until the queue was waited for.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub unsafe fn send(&mut self, to: &DeviceMemory, from: &[u8]) -> Result<(), CudaError> {
        let bytes = from.len().min(to.bytes);
        // SAFETY: both are at least as long; the caller answers for their lives.
        let code =
            unsafe { (self.cuda.call.to_device)(to.address, from.as_ptr().cast(), bytes, self.stream) };
        check("cuMemcpyHtoDAsync", code)
    }

    /// Queues a copy from the device; no more than either holds is copied.
    ///
    /// # Safety
    /// `from` and `to` stay until the queue was waited for, and nobody looks at `to` before.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub unsafe fn fetch(&mut self, to: &mut [u8], from: &DeviceMemory) -> Result<(), CudaError> {
        let bytes = to.len().min(from.bytes);
        // SAFETY: both are at least as long; the caller answers for their lives.
        let code =
            unsafe { (self.cuda.call.to_host)(to.as_mut_ptr().cast(), from.address, bytes, self.stream) };
        check("cuMemcpyDtoHAsync", code)
    }

    /// Waits until all that was queued is done.
    ///
    /// # Errors
    /// [`CudaError::Call`] with what went wrong in any of it.
    pub fn wait(&mut self) -> Result<(), CudaError> {
        // SAFETY: the stream is ours.
        check("cuStreamSynchronize", unsafe { (self.cuda.call.synchronize)(self.stream) })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.wait();
        // SAFETY: the stream is ours, and nothing is queued in it.
        let _ = unsafe { (self.cuda.call.destroy_stream)(self.stream) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_not_there_is_said() {
        let why = Cuda::open(Some(Path::new("/nowhere/libcuda.so.1"))).unwrap_err();
        assert!(why.to_string().starts_with("no CUDA driver is installed: /nowhere/libcuda.so.1"), "{why}");
    }

    #[test]
    fn another_library_is_no_driver() {
        let math = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
        let Some(path) = math.iter().map(Path::new).find(|p| p.exists()) else { return };
        let why = Cuda::open(Some(path)).unwrap_err();
        assert!(matches!(why, CudaError::Symbol { symbol: "cuInit", .. }), "{why}");
    }

    #[test]
    fn only_what_destroys_the_context_is_a_loss() {
        let of = |code| CudaError::Call { call: "cuStreamSynchronize", code: Code(code) }.is_lost();
        assert!([700, 719, 999, 46, 709].into_iter().all(of));
        assert!(![1, 2, 3, 100, 201, 600].into_iter().any(of));
        assert!(!CudaError::NoDevice.is_lost());
    }
}
