//! libnvinfer: its two C functions, and objects with its tables.

use crate::{code, cuda, fault, plan};
use inferd_engine::{AlignedBuffer, CpuEngine, Engine, Model, NetworkFile};
use inferd_model::{DType, Manifest, TensorSpec};
use inferd_tensorrt_abi::tables::{
    ContextTable, LoggerTable, Object, PlanTable, Public, PublicTable, RuntimeTable, Unused,
};
use inferd_tensorrt_abi::{DataType, Dims, IoMode, Severity};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;

/// An object of one of the three classes: the public part, the working part, what it is.
#[repr(C)]
struct Both<T, S> {
    public: Public<T>,
    work: Object<T>,
    state: S,
}

fn make<T, S>(table: &'static T, public: &'static PublicTable, state: S) -> *mut Public<T> {
    let made = Box::new(Both {
        public: Public { table: public, work: std::ptr::null_mut() },
        work: Object { table },
        state,
    });
    let made = Box::into_raw(made);
    // SAFETY: it was just made.
    unsafe { (*made).public.work = &raw mut (*made).work };
    made.cast()
}

/// The state of the object that a working part belongs to.
///
/// # Safety
/// `work` is the working part of a living `Both<T, S>` that nobody else changes now.
unsafe fn state<'a, T, S>(work: *const Object<T>) -> &'a mut S {
    let offset = std::mem::offset_of!(Both<T, S>, work);
    // SAFETY: the caller's.
    unsafe { &mut (*work.byte_sub(offset).cast_mut().cast::<Both<T, S>>()).state }
}

unsafe extern "C" fn delete<T, S>(this: *mut c_void) {
    // SAFETY: the public part comes first, and the owner gives the object up.
    drop(unsafe { Box::from_raw(this.cast::<Both<T, S>>()) });
}

/// A slot that the double does not fill: calling it ends the process with words that say which test went too far.
extern "C" fn hole() {
    eprintln!("the double has no such function");
    std::process::abort();
}

const HOLE: Unused = hole as *const c_void;

/// Pointers to functions: they are the same for every thread.
struct Shared<T>(T);
// SAFETY: nothing in a table changes.
unsafe impl<T> Sync for Shared<T> {}

/// The caller's `ILogger`.
#[derive(Clone, Copy)]
struct Log(*mut c_void);
// SAFETY: TensorRT asks for a logger that any thread may call.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

/// Says an error to the caller's logger.
fn say(Log(logger): Log, words: &str) {
    let Ok(words) = CString::new(words) else { return };
    // SAFETY: an `ILogger` begins with the pointer to its table, and the caller keeps it as long as the runtime.
    unsafe { ((**logger.cast::<*const LoggerTable>()).log)(logger, Severity::Error as i32, words.as_ptr()) };
}

// ----- the C functions

#[unsafe(no_mangle)]
extern "C" fn getInferLibVersion() -> i32 {
    code("version").unwrap_or(100_300)
}

#[unsafe(no_mangle)]
extern "C" fn createInferRuntime_INTERNAL(logger: *mut c_void, version: i32) -> *mut c_void {
    let logger = Log(logger);
    match fault("runtime").as_deref() {
        Some("moved") => {
            say(logger, "Error Code 6: API Usage Error (CUDA initialization failure with error: 35)");
            return 0x228 as *mut c_void;
        }
        Some(_) => return std::ptr::null_mut(),
        None => {}
    }
    if version / 10_000 != 10 {
        say(logger, "Error Code 3: API Usage Error (the headers are of another major version)");
        return std::ptr::null_mut();
    }
    make(&RUNTIME.0, &RUNTIME_PUBLIC.0, logger).cast()
}

// ----- IRuntime

static RUNTIME_PUBLIC: Shared<PublicTable> =
    Shared(PublicTable { destroy: HOLE, delete: delete::<RuntimeTable, Log> });
static RUNTIME: Shared<RuntimeTable> = Shared(RuntimeTable { before: [HOLE; 3], deserialize });

unsafe extern "C" fn deserialize(
    this: *mut Object<RuntimeTable>,
    blob: *const c_void,
    size: usize,
) -> *mut Public<PlanTable> {
    // SAFETY: the runtime's own working part.
    let logger = *unsafe { state::<RuntimeTable, Log>(this) };
    // SAFETY: the caller's bytes.
    let bytes = unsafe { std::slice::from_raw_parts(blob.cast::<u8>(), size) };
    match open(bytes, logger) {
        Ok(network) => make(&PLAN.0, &PLAN_PUBLIC.0, Arc::new(network)),
        Err(why) => {
            say(logger, &format!("IRuntime::deserializeCudaEngine: {why}"));
            std::ptr::null_mut()
        }
    }
}

struct Network {
    logger: Log,
    manifest: Manifest,
    names: Vec<CString>,
    model: Box<dyn Model>,
}

fn open(bytes: &[u8], logger: Log) -> Result<Network, String> {
    // The real one copies what it needs too; the engine wants memory that stays.
    let onnx: &'static [u8] = plan::read(bytes)?.to_vec().leak();
    let manifest = plan::manifest(onnx)?;
    let model = CpuEngine::new().load(NetworkFile::onnx(onnx), &manifest).map_err(|e| e.to_string())?;
    let name = |t: &TensorSpec| CString::new(t.name.clone()).map_err(|e| e.to_string());
    let names = manifest.inputs.iter().chain(&manifest.outputs).map(name).collect::<Result<_, _>>()?;
    Ok(Network { logger, manifest, names, model })
}

impl Network {
    fn tensor(&self, name: *const c_char) -> Option<(usize, IoMode, &TensorSpec)> {
        // SAFETY: the caller's text.
        let name = unsafe { CStr::from_ptr(name) };
        let index = self.names.iter().position(|n| **n == *name)?;
        let inputs = &self.manifest.inputs;
        Some(match inputs.get(index) {
            Some(spec) => (index, IoMode::Input, spec),
            None => (index, IoMode::Output, &self.manifest.outputs[index - inputs.len()]),
        })
    }

    fn dims(&self, name: *const c_char) -> Dims {
        let none = Dims { count: -1, sizes: [0; 8] };
        let Some((.., spec)) = self.tensor(name) else { return none };
        let shape: Vec<i64> = spec.shape.iter().map(|&d| i64::from(d)).collect();
        Dims::of(&shape).unwrap_or(none)
    }
}

// ----- ICudaEngine

static PLAN_PUBLIC: Shared<PublicTable> =
    Shared(PublicTable { destroy: HOLE, delete: delete::<PlanTable, Arc<Network>> });
static PLAN: Shared<PlanTable> = Shared(PlanTable {
    before: [HOLE; 5],
    create_context,
    without_memory: HOLE,
    memory: plan_memory,
    between: [HOLE; 11],
    shape: plan_shape,
    data_type: plan_data_type,
    location: plan_location,
    shape_io: HOLE,
    mode: plan_mode,
    components: [HOLE; 2],
    format: plan_format,
    formats: [HOLE; 3],
    tensors: plan_tensors,
    name: plan_name,
});

/// # Safety
/// As [`state`].
unsafe fn network<'a>(this: *const Object<PlanTable>) -> &'a Arc<Network> {
    // SAFETY: the caller's.
    unsafe { state::<PlanTable, Arc<Network>>(this) }
}

unsafe extern "C" fn create_context(this: *mut Object<PlanTable>, _: i32) -> *mut Public<ContextTable> {
    // SAFETY: the plan's own working part.
    let network = unsafe { network(this) };
    if fault("context").is_some() {
        say(network.logger, "Error Code 2: OutOfMemory (requested size exceeds what the device has)");
        return std::ptr::null_mut();
    }
    let addresses = BTreeMap::new();
    make(&CONTEXT.0, &CONTEXT_PUBLIC.0, Execution { network: network.clone(), addresses })
}

unsafe extern "C" fn plan_memory(_: *const Object<PlanTable>) -> usize {
    1 << 20
}

unsafe extern "C" fn plan_shape(this: *const Object<PlanTable>, name: *const c_char) -> Dims {
    // SAFETY: the plan's own working part.
    unsafe { network(this) }.dims(name)
}

unsafe extern "C" fn plan_data_type(this: *const Object<PlanTable>, name: *const c_char) -> i32 {
    // SAFETY: the plan's own working part.
    let Some((.., spec)) = (unsafe { network(this) }).tensor(name) else { return 0 };
    let data_type = match spec.dtype {
        DType::Fp32 => DataType::Float,
        DType::Fp16 => DataType::Half,
        DType::Bf16 => DataType::Bf16,
        DType::Int8 => DataType::Int8,
        DType::Int32 => DataType::Int32,
        DType::Int64 => DataType::Int64,
        DType::Bool => DataType::Bool,
        DType::Uint8 => DataType::Uint8,
        // What TensorRT has no type for no plan of it can have.
        _ => return 99,
    };
    data_type as i32
}

unsafe extern "C" fn plan_location(_: *const Object<PlanTable>, _: *const c_char) -> i32 {
    0
}

unsafe extern "C" fn plan_mode(this: *const Object<PlanTable>, name: *const c_char) -> i32 {
    // SAFETY: the plan's own working part.
    unsafe { network(this) }.tensor(name).map_or(IoMode::None, |(_, mode, _)| mode) as i32
}

unsafe extern "C" fn plan_format(_: *const Object<PlanTable>, _: *const c_char) -> i32 {
    0
}

unsafe extern "C" fn plan_tensors(this: *const Object<PlanTable>) -> i32 {
    // SAFETY: the plan's own working part.
    i32::try_from(unsafe { network(this) }.names.len()).unwrap_or(0)
}

unsafe extern "C" fn plan_name(this: *const Object<PlanTable>, index: i32) -> *const c_char {
    // SAFETY: the plan's own working part.
    let names = &unsafe { network(this) }.names;
    usize::try_from(index).ok().and_then(|i| names.get(i)).map_or(std::ptr::null(), |n| n.as_ptr())
}

// ----- IExecutionContext

struct Execution {
    network: Arc<Network>,
    /// Where each tensor lies, by its number.
    addresses: BTreeMap<usize, usize>,
}

static CONTEXT_PUBLIC: Shared<PublicTable> =
    Shared(PublicTable { destroy: HOLE, delete: delete::<ContextTable, Execution> });
static CONTEXT: Shared<ContextTable> = Shared(ContextTable {
    before: [HOLE; 21],
    set_shape,
    shape: context_shape,
    strides: HOLE,
    set_address,
    between: [HOLE; 12],
    enqueue,
});

unsafe extern "C" fn set_shape(
    this: *mut Object<ContextTable>,
    name: *const c_char,
    dims: *const Dims,
) -> bool {
    // SAFETY: the context's own working part.
    let run = unsafe { state::<ContextTable, Execution>(this) };
    // SAFETY: the caller's shape.
    let same = run.network.dims(name) == unsafe { *dims };
    if !same {
        say(
            run.network.logger,
            "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Static dimension mismatch)",
        );
    }
    same
}

unsafe extern "C" fn context_shape(this: *const Object<ContextTable>, name: *const c_char) -> Dims {
    // SAFETY: the context's own working part.
    unsafe { state::<ContextTable, Execution>(this) }.network.dims(name)
}

unsafe extern "C" fn set_address(
    this: *mut Object<ContextTable>,
    name: *const c_char,
    data: *mut c_void,
) -> bool {
    // SAFETY: the context's own working part.
    let run = unsafe { state::<ContextTable, Execution>(this) };
    let Some((index, ..)) = run.network.tensor(name) else { return false };
    // The real one wants 256 bytes of alignment too.
    let usable = (data as usize).is_multiple_of(256);
    if usable {
        run.addresses.insert(index, data as usize);
    }
    usable
}

unsafe extern "C" fn enqueue(this: *mut Object<ContextTable>, stream: *mut c_void) -> bool {
    // SAFETY: the context's own working part.
    let run = unsafe { state::<ContextTable, Execution>(this) };
    match execute(run, stream) {
        Ok(()) => true,
        Err(why) => {
            say(run.network.logger, &format!("IExecutionContext::enqueueV3: {why}"));
            false
        }
    }
}

fn execute(run: &Execution, stream: *mut c_void) -> Result<(), String> {
    if fault("enqueue").is_some() {
        return Err("Error Code 1: Cuda Runtime (the double was told to refuse)".to_owned());
    }
    if stream.is_null() || !cuda::works() {
        return Err("Error Code 1: Cuda Runtime (invalid resource handle)".to_owned());
    }
    let manifest = &run.network.manifest;
    let place = |index: usize, spec: &TensorSpec| {
        let at = run.addresses.get(&index).copied().unwrap_or_default();
        let fits = cuda::holds(at, spec.byte_len());
        fits.then_some(at).ok_or_else(|| {
            format!(
                "Error Code 3: API Usage Error (Address is not set for tensor {}, or it is too short)",
                spec.name
            )
        })
    };
    let mut inputs = Vec::new();
    for (i, spec) in manifest.inputs.iter().enumerate() {
        // SAFETY: that much device memory is there.
        let bytes = unsafe { std::slice::from_raw_parts(place(i, spec)? as *const u8, spec.byte_len()) };
        inputs.push(AlignedBuffer::copy_of(bytes));
    }
    let mut outputs: Vec<_> = manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
    let mut session = run.network.model.session().map_err(|e| e.to_string())?;
    let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
    let mut views: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
    session.run(&inputs, &mut views).map_err(|e| e.to_string())?;
    for (i, (spec, bytes)) in manifest.outputs.iter().zip(views).enumerate() {
        if fault("output").as_deref() == Some("nan") && spec.dtype == DType::Fp32 {
            bytes.as_chunks_mut::<4>().0.fill(f32::NAN.to_le_bytes());
        }
        let at = place(manifest.inputs.len() + i, spec)?;
        // SAFETY: that much device memory is there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }
    Ok(())
}
