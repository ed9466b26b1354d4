//! The tables of virtual functions, slot by slot.
//!
//! Itanium C++ ABI: an object begins with the pointer to its table; a virtual destructor takes two slots (destroy; destroy and
//! free), then come the functions in the order of their declaration, overloads included. `this` is the first argument; a [`Dims`]
//! comes back as C returns a structure of its size.
//!
//! Slots that are not used are only counted.

use crate::types::Dims;
use std::ffi::{c_char, c_void};

/// A slot that is not called.
pub type Unused = *const c_void;

/// An object of a public class: its own table, then the object that does the work.
#[repr(C)]
#[derive(Debug)]
pub struct Public<T> {
    /// Destructors of the public class.
    pub table: *const PublicTable,
    /// The object that does the work.
    pub work: *mut Object<T>,
}

/// The table of `IRuntime`, `ICudaEngine`, `IExecutionContext`.
#[repr(C)]
#[derive(Debug)]
pub struct PublicTable {
    /// Destroys the object and leaves its memory.
    pub destroy: Unused,
    /// `delete`.
    pub delete: unsafe extern "C" fn(this: *mut c_void),
}

/// An object with a table.
#[repr(C)]
#[derive(Debug)]
pub struct Object<T> {
    /// Its virtual functions.
    pub table: *const T,
}

/// `apiv::VRuntime`.
#[repr(C)]
#[derive(Debug)]
pub struct RuntimeTable {
    /// The destructor's two, `getPImpl`.
    pub before: [Unused; 3],
    /// `ICudaEngine* deserializeCudaEngine(void const* blob, size_t size)`.
    pub deserialize: unsafe extern "C" fn(
        this: *mut Object<Self>,
        blob: *const c_void,
        size: usize,
    ) -> *mut Public<PlanTable>,
}

/// `apiv::VCudaEngine`.
#[repr(C)]
#[derive(Debug)]
pub struct PlanTable {
    /// The destructor's two, `getPImpl`, `getNbLayers`, `serialize`.
    pub before: [Unused; 5],
    /// `IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy)`; 0 is static allocation.
    pub create_context:
        unsafe extern "C" fn(this: *mut Object<Self>, strategy: i32) -> *mut Public<ContextTable>,
    /// `createExecutionContextWithoutDeviceMemory`.
    pub without_memory: Unused,
    /// `size_t getDeviceMemorySize() const`: what one context needs for its activations, in bytes.
    pub memory: unsafe extern "C" fn(this: *const Object<Self>) -> usize,
    /// `isRefittable` to `createEngineInspector`.
    pub between: [Unused; 11],
    /// `Dims getTensorShape(char const*) const`.
    pub shape: unsafe extern "C" fn(this: *const Object<Self>, name: *const c_char) -> Dims,
    /// `DataType getTensorDataType(char const*) const`.
    pub data_type: unsafe extern "C" fn(this: *const Object<Self>, name: *const c_char) -> i32,
    /// `TensorLocation getTensorLocation(char const*) const`.
    pub location: unsafe extern "C" fn(this: *const Object<Self>, name: *const c_char) -> i32,
    /// `isShapeInferenceIO`.
    pub shape_io: Unused,
    /// `TensorIOMode getTensorIOMode(char const*) const`.
    pub mode: unsafe extern "C" fn(this: *const Object<Self>, name: *const c_char) -> i32,
    /// `getTensorBytesPerComponent`, `getTensorComponentsPerElement`.
    pub components: [Unused; 2],
    /// `TensorFormat getTensorFormat(char const*) const`.
    pub format: unsafe extern "C" fn(this: *const Object<Self>, name: *const c_char) -> i32,
    /// `getTensorFormatDesc`, `getTensorVectorizedDim`, `getProfileShape`.
    pub formats: [Unused; 3],
    /// `int32_t getNbIOTensors() const`.
    pub tensors: unsafe extern "C" fn(this: *const Object<Self>) -> i32,
    /// `char const* getIOTensorName(int32_t) const`.
    pub name: unsafe extern "C" fn(this: *const Object<Self>, index: i32) -> *const c_char,
}

/// `apiv::VExecutionContext`.
#[repr(C)]
#[derive(Debug)]
pub struct ContextTable {
    /// The destructor's two, `getPImpl` to `reportToProfiler`.
    pub before: [Unused; 21],
    /// `bool setInputShape(char const*, Dims const&)`.
    pub set_shape:
        unsafe extern "C" fn(this: *mut Object<Self>, name: *const c_char, dims: *const Dims) -> bool,
    /// `Dims getTensorShape(char const*) const`: with the input shapes that were set.
    pub shape: unsafe extern "C" fn(this: *const Object<Self>, name: *const c_char) -> Dims,
    /// `getTensorStrides`.
    pub strides: Unused,
    /// `bool setTensorAddress(char const*, void*)`.
    pub set_address:
        unsafe extern "C" fn(this: *mut Object<Self>, name: *const c_char, data: *mut c_void) -> bool,
    /// `getTensorAddress` to `getTemporaryStorageAllocator`.
    pub between: [Unused; 12],
    /// `bool enqueueV3(cudaStream_t)`.
    pub enqueue: unsafe extern "C" fn(this: *mut Object<Self>, stream: *mut c_void) -> bool,
}

/// `ILogger`: ours, called by the library, from any of its threads.
#[repr(C)]
#[derive(Debug)]
pub struct LoggerTable {
    /// `void log(Severity, char const*)`.
    pub log: unsafe extern "C" fn(this: *mut c_void, severity: i32, words: *const c_char),
    /// The destructor's two. The library never destroys a logger.
    pub destroy: [unsafe extern "C" fn(this: *mut c_void); 2],
}

const SLOT: usize = size_of::<Unused>();

/// Class, function and slot of everything that is called: what the test against NVIDIA's headers asks for.
pub const SLOTS: &[(&str, &str, usize)] = &[
    ("VRuntime", "deserializeCudaEngine", std::mem::offset_of!(RuntimeTable, deserialize) / SLOT),
    ("VCudaEngine", "createExecutionContext", std::mem::offset_of!(PlanTable, create_context) / SLOT),
    ("VCudaEngine", "getDeviceMemorySize", std::mem::offset_of!(PlanTable, memory) / SLOT),
    ("VCudaEngine", "getTensorShape", std::mem::offset_of!(PlanTable, shape) / SLOT),
    ("VCudaEngine", "getTensorDataType", std::mem::offset_of!(PlanTable, data_type) / SLOT),
    ("VCudaEngine", "getTensorLocation", std::mem::offset_of!(PlanTable, location) / SLOT),
    ("VCudaEngine", "getTensorIOMode", std::mem::offset_of!(PlanTable, mode) / SLOT),
    ("VCudaEngine", "getTensorFormat", std::mem::offset_of!(PlanTable, format) / SLOT),
    ("VCudaEngine", "getNbIOTensors", std::mem::offset_of!(PlanTable, tensors) / SLOT),
    ("VCudaEngine", "getIOTensorName", std::mem::offset_of!(PlanTable, name) / SLOT),
    ("VExecutionContext", "setInputShape", std::mem::offset_of!(ContextTable, set_shape) / SLOT),
    ("VExecutionContext", "getTensorShape", std::mem::offset_of!(ContextTable, shape) / SLOT),
    ("VExecutionContext", "setTensorAddress", std::mem::offset_of!(ContextTable, set_address) / SLOT),
    ("VExecutionContext", "enqueueV3", std::mem::offset_of!(ContextTable, enqueue) / SLOT),
];
