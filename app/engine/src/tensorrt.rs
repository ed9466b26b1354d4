//! Prebuilt plans of TensorRT 10.3 to 10.16.
//!
//! A plan is bound to one version of TensorRT and one architecture of GPU. The library says when it is not ours, and its words are
//! passed on; what the manifest says of inputs and outputs is compared with the plan before it may serve.
//!
//! One plan for all workers, and for each a context, a stream and device memory of its own. A run copies the inputs, queues the
//! plan, copies the outputs, and waits once. After an error that destroys the CUDA context nothing works any more in this process:
//! that is [`EngineError::Device`].
//!
//! Nothing is built here: a plan that has to be built from an ONNX file is what ONNX Runtime's TensorRT provider does.

use crate::busy::Busy;
use crate::runner::check;
use crate::{DeviceState, Engine, EngineError, Model, NetworkFile, Session, shared};
use inferd_model::{DType, EngineKind, Manifest, NetworkFormat, TensorSpec};
use inferd_tensorrt_abi::cuda::{Cuda, CudaError, DeviceMemory, Queue};
use inferd_tensorrt_abi::{Context, DataType, Dims, IoMode, Library, Plan, PlanTensor, Runtime, Stream};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// CUDA with a device, and TensorRT, both found and opened.
#[derive(Debug)]
pub struct TensorrtLibrary {
    library: Library,
    cuda: Cuda,
}

/// Why they are not.
#[derive(Clone, Debug)]
enum Refused {
    Library(String),
    Device(String),
}

impl From<Refused> for EngineError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Library(why) => Self::Library(why),
            Refused::Device(why) => Self::Device(why),
        }
    }
}

impl TensorrtLibrary {
    /// Opens both once for the process: the ones at these paths, or the first that are found at the usual places. TensorRT's
    /// file is only looked at until CUDA is known to work, because TensorRT must not be asked for anything without it.
    ///
    /// # Errors
    /// One sentence for the operator. The first outcome stays.
    pub fn open(tensorrt: Option<&Path>, cuda: Option<&Path>) -> Result<&'static Self, EngineError> {
        static LIBRARY: OnceLock<Result<TensorrtLibrary, Refused>> = OnceLock::new();
        LIBRARY.get_or_init(|| Self::load(tensorrt, cuda)).as_ref().map_err(|why| why.clone().into())
    }

    /// Where TensorRT is, without opening anything.
    #[must_use]
    pub fn find(tensorrt: Option<&Path>) -> Option<PathBuf> {
        Library::find(tensorrt).ok()
    }

    fn load(tensorrt: Option<&Path>, cuda: Option<&Path>) -> Result<Self, Refused> {
        let say = |e: &dyn std::fmt::Display| Refused::Library(e.to_string());
        let path = Library::find(tensorrt).map_err(|e| say(&e))?;
        shared::check(&path).map_err(|e| say(&e))?;
        if let Some(cuda) = cuda {
            shared::check(cuda).map_err(|e| say(&e))?;
        }
        let cuda = Cuda::open(cuda).map_err(|e| match e {
            CudaError::Absent(_) | CudaError::Symbol { .. } => say(&e),
            CudaError::NoDevice | CudaError::Call { .. } => Refused::Device(e.to_string()),
        })?;
        let library = Library::open(&path).map_err(|e| say(&e))?;
        Ok(Self { library, cuda })
    }

    /// Where TensorRT is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.library.path()
    }

    /// Its version: `10.3.0`.
    #[must_use]
    pub fn version(&self) -> String {
        self.library.version().to_string()
    }

    /// The GPU: `Orin (sm_87, CUDA 12.6)`.
    #[must_use]
    pub fn device(&self) -> String {
        format!("{} ({}, CUDA {})", self.cuda.name(), self.cuda.architecture(), self.cuda.driver())
    }
}

/// The engine. Its libraries are opened by [`Engine::set_up`], or with the first model.
#[derive(Debug)]
pub struct TensorrtEngine {
    tensorrt: Option<PathBuf>,
    cuda: Option<PathBuf>,
    busy: Arc<Busy>,
}

impl TensorrtEngine {
    /// An engine with the libraries at these paths, or with those that are found.
    #[must_use]
    pub fn new(tensorrt: Option<PathBuf>, cuda: Option<PathBuf>) -> Self {
        Self { tensorrt, cuda, busy: Arc::default() }
    }

    fn open(&self) -> Result<&'static TensorrtLibrary, EngineError> {
        TensorrtLibrary::open(self.tensorrt.as_deref(), self.cuda.as_deref())
    }
}

impl Engine for TensorrtEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Tensorrt
    }

    fn version(&self) -> String {
        self.open().map_or_else(|_| "tensorrt".to_owned(), |l| format!("tensorrt {}", l.version()))
    }

    fn device(&self) -> String {
        self.open().map_or_else(|_| "none".to_owned(), TensorrtLibrary::device)
    }

    fn library(&self) -> Option<PathBuf> {
        self.open().ok().map(|l| l.path().to_owned())
    }

    fn set_up(&self) -> Result<(), EngineError> {
        self.open().map(|_| ())
    }

    fn load(&self, network: NetworkFile, manifest: &Manifest) -> Result<Box<dyn Model>, EngineError> {
        let plan = network.of(NetworkFormat::Plan)?;
        if plan.is_empty() {
            return Err(EngineError::Empty);
        }
        let library = self.open()?;
        library.cuda.enter().map_err(cuda)?;
        let load = |e: inferd_tensorrt_abi::TrtError| EngineError::Load(e.to_string());
        let plan = Runtime::new(&library.library).and_then(|r| r.plan(plan)).map_err(load)?;
        let tensors = plan.tensors().map_err(load)?;
        let inputs = matched(&tensors, &manifest.inputs, IoMode::Input)?;
        let outputs = matched(&tensors, &manifest.outputs, IoMode::Output)?;
        let (cuda, plan, busy) = (&library.cuda, Arc::new(plan), self.busy.clone());
        Ok(Box::new(TensorrtModel { cuda, plan, inputs, outputs, busy }))
    }

    fn device_state(&self) -> Option<DeviceState> {
        let cuda = &self.open().ok()?.cuda;
        // The thread that asks need not be one that computes.
        let told = cuda.enter().and_then(|()| cuda.memory()).ok();
        let memory =
            told.map(|(free, total)| crate::DeviceMemory { used: total.saturating_sub(free), total });
        // Its temperature and its clock are the board's to tell.
        Some(DeviceState { load: Some(self.busy.share()), memory, ..DeviceState::default() })
    }
}

fn cuda(e: CudaError) -> EngineError {
    match e {
        CudaError::Absent(_) | CudaError::Symbol { .. } => EngineError::Library(e.to_string()),
        CudaError::NoDevice => EngineError::Device(e.to_string()),
        CudaError::Call { .. } if e.is_lost() => EngineError::Device(e.to_string()),
        CudaError::Call { .. } => EngineError::Run(e.to_string()),
    }
}

/// A tensor of the manifest and its name for the plan.
#[derive(Clone)]
struct Bound {
    spec: TensorSpec,
    name: CString,
}

/// Finds the manifest's tensors among the plan's. All of a plan's tensors have to be bound, so none may be left over.
fn matched(tensors: &[PlanTensor], specs: &[TensorSpec], mode: IoMode) -> Result<Vec<Bound>, EngineError> {
    let of_mode: Vec<&PlanTensor> = tensors.iter().filter(|t| t.mode == mode).collect();
    let mut bound = Vec::with_capacity(specs.len());
    for spec in specs {
        let wrong = |graph: String| EngineError::Tensor {
            name: spec.name.clone(),
            graph,
            manifest: format!("{} {:?}", spec.dtype, spec.shape),
        };
        let Some(tensor) = of_mode.iter().find(|t| t.name.to_bytes() == spec.name.as_bytes()) else {
            let names: Vec<_> = of_mode.iter().map(|t| t.name.to_string_lossy()).collect();
            return Err(wrong(format!("only {}", names.join(", "))));
        };
        if !tensor.plain {
            return Err(wrong("a layout that is not row-major, or memory of the host".to_owned()));
        }
        let same = tensor.shape.len() == spec.shape.len()
            && tensor.shape.iter().zip(&spec.shape).all(|(&is, &size)| is == -1 || is == i64::from(size));
        if tensor.data_type.and_then(dtype) != Some(spec.dtype) || !same {
            let kind = tensor.data_type.map_or_else(|| "an unknown type".to_owned(), |t| format!("{t:?}"));
            return Err(wrong(format!("{kind} {:?}", tensor.shape)));
        }
        bound.push(Bound { spec: spec.clone(), name: tensor.name.clone() });
    }
    if let Some(left) = of_mode.iter().find(|t| bound.iter().all(|b| b.name != t.name)) {
        return Err(EngineError::Tensor {
            name: left.name.to_string_lossy().into_owned(),
            graph: format!("{:?} {:?}", left.data_type, left.shape),
            manifest: "nothing".to_owned(),
        });
    }
    Ok(bound)
}

/// The element type on the wire, of those that have one.
fn dtype(data_type: DataType) -> Option<DType> {
    Some(match data_type {
        DataType::Float => DType::Fp32,
        DataType::Half => DType::Fp16,
        DataType::Bf16 => DType::Bf16,
        DataType::Int8 => DType::Int8,
        DataType::Int32 => DType::Int32,
        DataType::Int64 => DType::Int64,
        DataType::Bool => DType::Bool,
        DataType::Uint8 => DType::Uint8,
        DataType::Fp8 | DataType::Int4 => return None,
    })
}

struct TensorrtModel {
    cuda: &'static Cuda,
    plan: Arc<Plan>,
    inputs: Vec<Bound>,
    outputs: Vec<Bound>,
    busy: Arc<Busy>,
}

impl Model for TensorrtModel {
    fn session(&self) -> Result<Box<dyn Session>, EngineError> {
        let load = |e: inferd_tensorrt_abi::TrtError| EngineError::Load(e.to_string());
        // A session stays on the thread that makes it, so the context is current there from now on.
        self.cuda.enter().map_err(cuda)?;
        let mut context = self.plan.context().map_err(load)?;
        for input in &self.inputs {
            let shape: Vec<i64> = input.spec.shape.iter().map(|&d| i64::from(d)).collect();
            let dims = Dims::of(&shape).ok_or_else(|| EngineError::Tensor {
                name: input.spec.name.clone(),
                graph: format!("at most {} dimensions", inferd_tensorrt_abi::MAX_DIMS),
                manifest: format!("{shape:?}"),
            })?;
            context.set_shape(&input.name, &dims).map_err(load)?;
        }
        for output in &self.outputs {
            // With the inputs' shapes set, a dimension that was open is known.
            let comes_out = context.shape(&output.name);
            let wanted = output.spec.shape.iter().map(|&d| i64::from(d));
            if !comes_out.shape().is_some_and(|is| is.iter().copied().eq(wanted)) {
                return Err(EngineError::Tensor {
                    name: output.spec.name.clone(),
                    graph: format!("{:?}", comes_out.shape().unwrap_or_default()),
                    manifest: format!("{:?}", output.spec.shape),
                });
            }
        }
        let mut memory = Vec::with_capacity(self.inputs.len() + self.outputs.len());
        for tensor in self.inputs.iter().chain(&self.outputs) {
            let part = self.cuda.allocate(tensor.spec.byte_len()).map_err(cuda)?;
            bind(&mut context, &tensor.name, &part)?;
            memory.push(part);
        }
        let queue = self.cuda.queue().map_err(cuda)?;
        Ok(Box::new(TensorrtSession {
            queue,
            context,
            memory,
            inputs: self.inputs.iter().map(|b| b.spec.clone()).collect(),
            outputs: self.outputs.iter().map(|b| b.spec.clone()).collect(),
            busy: self.busy.clone(),
        }))
    }
}

fn bind(context: &mut Context, name: &CStr, memory: &DeviceMemory) -> Result<(), EngineError> {
    // SAFETY: the memory is as long as the manifest's tensor, whose type and shape are the plan's (`matched`, `session`), and the
    // session that owns both drops the context first.
    #[allow(unsafe_code)]
    let bound = unsafe { context.set_address(name, memory.address()) };
    bound.map_err(|e| EngineError::Load(e.to_string()))
}

struct TensorrtSession {
    // Dropped in this order: what is queued first, then what it uses.
    queue: Queue,
    context: Context,
    /// One for each input, then one for each output.
    memory: Vec<DeviceMemory>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    busy: Arc<Busy>,
}

impl Session for TensorrtSession {
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        check("input", self.inputs.iter(), inputs.iter().copied())?;
        check("output", self.outputs.iter(), outputs.iter().map(|o| &**o))?;
        for (spec, bytes) in self.inputs.iter().zip(inputs) {
            if spec.dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
                return Err(crate::runner::no_bool(spec, bytes));
            }
        }
        // Whatever happens, what was queued must be over before the callers' buffers are theirs again.
        let busy = self.busy.clone();
        let call = busy.call();
        let queued = self.enqueue(inputs, outputs);
        let done = self.queue.wait().map_err(cuda);
        drop(call);
        done.and(queued)?;
        for (spec, bytes) in self.outputs.iter().zip(outputs) {
            if spec.dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
                return Err(EngineError::Run(format!("output {} has bytes that are no BOOL", spec.name)));
            }
        }
        Ok(())
    }
}

impl TensorrtSession {
    fn enqueue(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        let (to, from) = self.memory.split_at(self.inputs.len());
        for (memory, bytes) in to.iter().zip(inputs) {
            // SAFETY: `run` waits before it returns, so the buffers outlive the copy.
            #[allow(unsafe_code)]
            unsafe { self.queue.send(memory, bytes) }.map_err(cuda)?;
        }
        // SAFETY: the stream lives as long as the session.
        #[allow(unsafe_code)]
        let stream = unsafe { Stream::new(self.queue.handle()) };
        self.context.enqueue(stream).map_err(|e| EngineError::Run(e.to_string()))?;
        for (memory, bytes) in from.iter().zip(outputs) {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe { self.queue.fetch(bytes, memory) }.map_err(cuda)?;
        }
        Ok(())
    }
}
