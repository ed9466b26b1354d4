//! ONNX Runtime, loaded at run time: the fast engine of an image that carries it.
//!
//! What runs is what is reported. A provider (TensorRT, CUDA, the CPU) is registered so that it fails when it cannot be had, and
//! the CPU may not take over part of a network behind an accelerator's back; ONNX Runtime's own way is to fall back in silence.

use crate::cache::EngineCache;
use crate::fit::{match_tensors, parse};
use crate::onnx::Graph;
use crate::plain::plain;
use crate::runner::{check, no_bool};
use crate::{Engine, EngineError, Model, NetworkFile, Session, shared};
use half::{bf16, f16};
use inferd_model::{DType, EngineKind, Manifest, NetworkFormat, TensorSpec};
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::logging::LogLevel;
use ort::memory::Allocator;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{
    HasSelectedOutputs, OutputSelector, RunOptions, Session as OrtSession, SessionInputValue,
};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorRef};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

/// Where the library is looked for, in this order, when nobody says where it is.
const PLACES: [&str; 6] = [
    "/usr/lib/inferd/libonnxruntime.so",
    "/usr/lib/libonnxruntime.so",
    "/usr/lib/libonnxruntime.so.1",
    "/usr/lib/aarch64-linux-gnu/libonnxruntime.so.1",
    "/usr/lib/x86_64-linux-gnu/libonnxruntime.so.1",
    "/usr/local/lib/libonnxruntime.so",
];

/// What ONNX Runtime computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// TensorRT, with plans built from the network.
    TensorRt,
    /// CUDA kernels.
    Cuda,
    /// The processor.
    Cpu,
}

impl Provider {
    /// All of them, the fastest first.
    pub const ALL: [Self; 3] = [Self::TensorRt, Self::Cuda, Self::Cpu];

    /// Its name in `/status`, metrics and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TensorRt => "tensorrt",
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        }
    }

    /// Whether the library was built with it; not whether it works here.
    fn is_compiled_in(self) -> bool {
        match self {
            Self::TensorRt => ep::TensorRT::is_available(),
            Self::Cuda => ep::CUDA::is_available(),
            Self::Cpu => Ok(true),
        }
        .unwrap_or(false)
    }

    /// Its registration, which fails when it cannot be had. `kept` is where engines are kept that it builds.
    fn dispatch(self, kept: Option<&Path>) -> ExecutionProviderDispatch {
        match self {
            Self::TensorRt => {
                let provider = ep::TensorRT::default();
                match kept.map(|dir| dir.display().to_string()) {
                    Some(dir) => provider
                        .with_engine_cache(true)
                        .with_engine_cache_path(&dir)
                        .with_timing_cache(true)
                        .with_timing_cache_path(&dir),
                    None => provider,
                }
                .build()
            }
            Self::Cuda => ep::CUDA::default().build(),
            Self::Cpu => ep::CPU::default().with_arena_allocator(true).build(),
        }
        .error_on_failure()
    }
}

/// The library of this process. ONNX Runtime allows one.
#[derive(Debug)]
pub struct OrtLibrary {
    path: PathBuf,
    version: String,
    environment: Environment,
}

impl OrtLibrary {
    /// Opens the library once for the process: the one at `path`, or the first that is found at the usual places.
    ///
    /// # Errors
    /// One sentence for the operator: it is not there, cannot be opened, is too old, or not what it should be. The first outcome
    /// stays.
    pub fn open(path: Option<&Path>) -> Result<&'static Self, EngineError> {
        static LIBRARY: OnceLock<Result<OrtLibrary, String>> = OnceLock::new();
        LIBRARY.get_or_init(|| Self::load(path)).as_ref().map_err(|why| EngineError::Library(why.clone()))
    }

    /// Whether one is at the usual places.
    #[must_use]
    pub fn is_installed() -> bool {
        PLACES.iter().any(|place| Path::new(place).exists())
    }

    fn load(path: Option<&Path>) -> Result<Self, String> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => PLACES.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(|| {
                format!("no libonnxruntime is installed (looked for {})", PLACES.join(", "))
            })?,
        };
        // The library the operator would see: links followed, the version in its name.
        let path = std::fs::canonicalize(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        shared::check(&path)?;
        let version = version_of(&path)?;
        let builder = ort::init_from(&path).map_err(|e| plain(&e.to_string()))?;
        let environment = builder
            .with_name("inferd")
            .with_telemetry(false)
            .build()
            .map_err(|e| format!("{}: {}", path.display(), plain(&e.to_string())))?;
        // What goes wrong comes back as an error, and is said once.
        environment.set_log_level(LogLevel::Fatal);
        Ok(Self { path, version, environment })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version: `1.21.0`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The providers it was built with.
    #[must_use]
    pub fn providers(&self) -> Vec<Provider> {
        Provider::ALL.into_iter().filter(|p| p.is_compiled_in()).collect()
    }
}

/// What the library calls its version. Asked before anything else is done with it: the crate `ort` only compares it.
fn version_of(path: &Path) -> Result<String, String> {
    let say = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    // SAFETY: loading runs the constructors of a library that the image's maker or the operator has put there to be loaded.
    #[allow(unsafe_code)]
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| say(&e))?;
    // SAFETY: `OrtGetApiBase` has had this type since ONNX Runtime 1.0, and a library of that name exports nothing else by it.
    #[allow(unsafe_code)]
    let base =
        unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0") }
            .map_err(|_| say(&"it is no ONNX Runtime (it has no OrtGetApiBase)"))?;
    // SAFETY: it takes nothing and gives a pointer to a static.
    #[allow(unsafe_code)]
    let base = unsafe { base().as_ref() }.ok_or_else(|| say(&"it gives no API"))?;
    // SAFETY: the same; the text is a static of the library, which is still loaded.
    #[allow(unsafe_code)]
    let version = unsafe { std::ffi::CStr::from_ptr((base.GetVersionString)()) };
    Ok(version.to_string_lossy().into_owned())
}

/// The engine. Its library is opened by [`Engine::set_up`], or with the first model.
#[derive(Debug)]
pub struct OrtEngine {
    library: Option<PathBuf>,
    cache: Option<EngineCache>,
    /// Where TensorRT and CUDA are, when somebody says so.
    #[cfg(feature = "tensorrt")]
    gpu: (Option<PathBuf>, Option<PathBuf>),
    /// What the loaded model runs on, and why on nothing faster.
    provider: Mutex<Option<(Provider, Vec<String>)>>,
}

impl OrtEngine {
    /// An engine with the library at `path`, or with the one that is found. Engines that its TensorRT provider builds are kept in
    /// `cache`; without one they are built at every start.
    #[must_use]
    pub fn new(library: Option<PathBuf>, cache: Option<PathBuf>) -> Self {
        Self {
            library,
            cache: cache.map(EngineCache::new),
            #[cfg(feature = "tensorrt")]
            gpu: (None, None),
            provider: Mutex::new(None),
        }
    }

    /// With the TensorRT and the CUDA of these paths for its provider, instead of those that are found.
    #[cfg(feature = "tensorrt")]
    #[must_use]
    pub fn with_gpu(mut self, tensorrt: Option<PathBuf>, cuda: Option<PathBuf>) -> Self {
        self.gpu = (tensorrt, cuda);
        self
    }

    /// What an engine that is built here is bound to: the libraries and the device; precision is the network's own. `None` when they
    /// are not known, and what is built is not kept.
    ///
    /// They are loaded for that, and stay: the linker gives the provider, which asks for them by name, the ones that are there.
    #[cfg(feature = "tensorrt")]
    fn maker(&self, library: &OrtLibrary) -> Option<String> {
        let (tensorrt, cuda) = &self.gpu;
        let gpu = crate::TensorrtLibrary::open(tensorrt.as_deref(), cuda.as_deref()).ok()?;
        Some(format!("onnxruntime {}; tensorrt {} on {}", library.version(), gpu.version(), gpu.device()))
    }

    #[cfg(not(feature = "tensorrt"))]
    fn maker(&self, _: &OrtLibrary) -> Option<String> {
        None
    }
}

impl Engine for OrtEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Ort
    }

    fn version(&self) -> String {
        match OrtLibrary::open(self.library.as_deref()) {
            Ok(library) => format!("onnxruntime {}", library.version()),
            Err(_) => "onnxruntime".to_owned(),
        }
    }

    fn device(&self) -> String {
        let loaded = self.provider.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.as_ref().map_or("none", |(provider, _)| provider.name()).to_owned()
    }

    fn remark(&self) -> Option<String> {
        let loaded = self.provider.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = loaded.as_ref().map(|(_, refused)| refused.join("; "))?;
        (!refused.is_empty()).then_some(refused)
    }

    fn library(&self) -> Option<PathBuf> {
        OrtLibrary::open(self.library.as_deref()).ok().map(|l| l.path().to_owned())
    }

    /// Opens the library: it reads the processor's abilities, and its own file, from the disk.
    fn set_up(&self) -> Result<(), EngineError> {
        OrtLibrary::open(self.library.as_deref()).map(|_| ())
    }

    /// Only TensorRT builds anything that lasts.
    fn must_build(&self, network: NetworkFile, _: &Manifest) -> bool {
        let Ok(library) = OrtLibrary::open(self.library.as_deref()) else { return false };
        if !library.providers().contains(&Provider::TensorRt) {
            return false;
        }
        let maker = self.maker(library);
        let cache = self.cache.as_ref().zip(maker);
        cache.is_none_or(|(cache, maker)| cache.must_build(network.bytes, &maker))
    }

    fn load(&self, network: NetworkFile, manifest: &Manifest) -> Result<Box<dyn Model>, EngineError> {
        let onnx = network.of(NetworkFormat::Onnx)?;
        let library = OrtLibrary::open(self.library.as_deref())?;
        let network = parse(onnx)?;
        match_tensors(&network, manifest)?;
        refuse_external(&network.graph)?;
        let names: Arc<[String]> = network.graph.true_inputs().map(|v| v.name.to_owned()).collect();
        drop(network);
        let mut refused = Vec::new();
        for provider in library.providers() {
            let cache = self.cache.as_ref().filter(|_| provider == Provider::TensorRt);
            let maker = cache.and_then(|_| self.maker(library));
            // Without a folder to write to it is built and not kept.
            let kept = cache.zip(maker).and_then(|(cache, maker)| cache.entry(onnx, &maker).ok());
            let mut model = OrtModel {
                library,
                kept: None,
                onnx,
                provider,
                names: Arc::clone(&names),
                manifest: manifest.clone(),
                first: Mutex::new(None),
                failures: Arc::default(),
            };
            let opened = match kept {
                Some(mut kept) => kept.open(|folder| {
                    model.kept = Some(folder.to_owned());
                    model.open()
                }),
                None => model.open(),
            };
            match opened {
                Ok(session) => {
                    *self.provider.lock().unwrap_or_else(PoisonError::into_inner) = Some((provider, refused));
                    model.first = Mutex::new(Some(session));
                    return Ok(Box::new(model));
                }
                Err(why) => refused.push(format!("{}: {why}", provider.name())),
            }
        }
        Err(EngineError::Load(refused.join("; ")))
    }
}

/// How many runs of an accelerator have failed in a row, on all workers together.
///
/// ONNX Runtime has one word for a run that fails: what it was given, a lack of memory and a CUDA context that is dead for the rest of
/// the process look alike. Many in a row are taken for the last, whose cure is another process.
#[derive(Debug, Default)]
struct Failures(AtomicU32);

impl Failures {
    /// The device is lost with this one.
    const LOST: u32 = 5;

    fn passed(&self) {
        self.0.store(0, Relaxed);
    }

    fn failed(&self, provider: Provider, why: String) -> EngineError {
        if provider == Provider::Cpu {
            return EngineError::Run(why);
        }
        let row = self.0.fetch_add(1, Relaxed).saturating_add(1);
        match row < Self::LOST {
            true => EngineError::Run(why),
            false => EngineError::Device(format!("{} failed {row} times in a row: {why}", provider.name())),
        }
    }
}

/// A network on the provider that takes it.
struct OrtModel {
    library: &'static OrtLibrary,
    onnx: &'static [u8],
    provider: Provider,
    /// Where the provider keeps what it builds.
    kept: Option<PathBuf>,
    /// The graph's inputs in its order.
    names: Arc<[String]>,
    manifest: Manifest,
    /// The session that proved the provider; the first worker takes it.
    first: Mutex<Option<OrtSession>>,
    failures: Arc<Failures>,
}

impl OrtModel {
    #[allow(clippy::result_large_err)] // the builder comes back in its error
    fn open(&self) -> Result<OrtSession, String> {
        let text = |e: ort::Error<SessionBuilder>| plain(&e.to_string());
        let mut builder =
            OrtSession::builder(&self.library.environment).map_err(|e| plain(&e.to_string()))?;
        builder = builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .and_then(|b| b.with_intra_threads(1))
            .and_then(|b| b.with_inter_threads(1))
            .and_then(|b| b.with_intra_op_spinning(false))
            .and_then(|b| b.with_execution_providers([self.provider.dispatch(self.kept.as_deref())]))
            .map_err(text)?;
        if self.provider != Provider::Cpu {
            builder = builder.with_config_entry("session.disable_cpu_ep_fallback", "1").map_err(text)?;
        }
        builder.commit_from_memory(self.onnx).map_err(|e| plain(&e.to_string()))
    }
}

impl Model for OrtModel {
    /// A session of its own for each worker: ONNX Runtime's is not to be run from two threads.
    fn session(&self) -> Result<Box<dyn Session>, EngineError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let session = match first {
            Some(session) => session,
            None => self.open().map_err(EngineError::Load)?,
        };
        let outputs = &self.manifest.outputs;
        let mut selector = OutputSelector::no_default();
        for spec in outputs {
            selector = selector.with(&spec.name);
            selector = preallocate(selector, &Shaped::of(spec))
                .map_err(|e| EngineError::Load(plain(&e.to_string())))?;
        }
        let options =
            RunOptions::new().map_err(|e| EngineError::Load(plain(&e.to_string())))?.with_outputs(selector);
        let order = self.names.iter().map(|name| {
            // Both lists hold the same names: `match_tensors` has seen to it.
            self.manifest.inputs.iter().position(|s| s.name == *name).unwrap_or_default()
        });
        Ok(Box::new(OrtWorker {
            session,
            options,
            provider: self.provider,
            failures: Arc::clone(&self.failures),
            order: order.collect(),
            inputs: self.manifest.inputs.iter().map(Shaped::of).collect(),
            outputs: self.manifest.outputs.iter().map(Shaped::of).collect(),
        }))
    }
}

/// A specification with its shape as ONNX Runtime wants it.
struct Shaped {
    spec: TensorSpec,
    shape: Vec<usize>,
}

impl Shaped {
    fn of(spec: &TensorSpec) -> Self {
        Self { spec: spec.clone(), shape: spec.shape.iter().map(|&d| d as usize).collect() }
    }
}

struct OrtWorker {
    session: OrtSession,
    /// With an output tensor for each output, made once.
    options: RunOptions<HasSelectedOutputs>,
    provider: Provider,
    failures: Arc<Failures>,
    /// For each input of the graph, which of the manifest's it is.
    order: Vec<usize>,
    inputs: Vec<Shaped>,
    outputs: Vec<Shaped>,
}

impl Session for OrtWorker {
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        check("input", self.inputs.iter().map(|t| &t.spec), inputs.iter().copied())?;
        check("output", self.outputs.iter().map(|t| &t.spec), outputs.iter().map(|o| &**o))?;
        let mut values = Vec::with_capacity(self.order.len());
        for &at in &self.order {
            values.push(input(&self.inputs[at], inputs[at])?);
        }
        let answers = self
            .session
            .run_with_options(&values[..], &self.options)
            .map_err(|e| self.failures.failed(self.provider, plain(&e.to_string())))?;
        self.failures.passed();
        for (at, (tensor, out)) in self.outputs.iter().zip(outputs).enumerate() {
            output(tensor, &answers[at], out)?;
        }
        Ok(())
    }
}

/// For every element type: ONNX Runtime's Rust type of it.
macro_rules! typed {
    ($dtype:expr, $f:ident, $($args:expr),*) => {
        match $dtype {
            DType::Bool => $f::<bool>($($args),*),
            DType::Uint8 => $f::<u8>($($args),*),
            DType::Uint16 => $f::<u16>($($args),*),
            DType::Uint32 => $f::<u32>($($args),*),
            DType::Uint64 => $f::<u64>($($args),*),
            DType::Int8 => $f::<i8>($($args),*),
            DType::Int16 => $f::<i16>($($args),*),
            DType::Int32 => $f::<i32>($($args),*),
            DType::Int64 => $f::<i64>($($args),*),
            DType::Fp16 => $f::<f16>($($args),*),
            DType::Bf16 => $f::<bf16>($($args),*),
            DType::Fp32 => $f::<f32>($($args),*),
            DType::Fp64 => $f::<f64>($($args),*),
        }
    };
}

/// An element: its bytes on the wire are its bytes here.
trait Element:
    PrimitiveTensorElementType + TryFromBytes + IntoBytes + KnownLayout + Immutable + Clone + Debug + 'static
{
}

macro_rules! elements {
    ($($ty:ty)*) => { $( impl Element for $ty {} )* };
}
elements!(bool u8 u16 u32 u64 i8 i16 i32 i64 f16 bf16 f32 f64);

/// An input as ONNX Runtime reads it: borrowed where it lies.
fn input<'a>(tensor: &'a Shaped, bytes: &'a [u8]) -> Result<SessionInputValue<'a>, EngineError> {
    fn typed_input<'a, T: Element>(
        Shaped { spec, shape }: &'a Shaped,
        bytes: &'a [u8],
    ) -> Result<SessionInputValue<'a>, EngineError> {
        // Only a BOOL has bytes that are no value: alignment and length were checked.
        let data = <[T]>::try_ref_from_bytes(bytes).map_err(|_| no_bool(spec, bytes))?;
        let value = TensorRef::from_array_view((&shape[..], data))
            .map_err(|e| EngineError::Run(plain(&e.to_string())))?;
        Ok(value.into())
    }
    typed!(tensor.spec.dtype, typed_input, tensor, bytes)
}

/// Copies an output to where the caller wants it, after checking that it is what the manifest says.
fn output(tensor: &Shaped, value: &DynValue, out: &mut [u8]) -> Result<(), EngineError> {
    fn typed_output<T: Element>(
        Shaped { spec, shape }: &Shaped,
        value: &DynValue,
        out: &mut [u8],
    ) -> Result<(), EngineError> {
        let wrong = |got: String| {
            EngineError::Run(format!(
                "output {} came out as {got}, the manifest says {} {shape:?}",
                spec.name, spec.dtype
            ))
        };
        let (got, data) = value.try_extract_tensor::<T>().map_err(|e| wrong(plain(&e.to_string())))?;
        let same =
            got.len() == shape.len() && got.iter().zip(shape).all(|(&g, &s)| usize::try_from(g) == Ok(s));
        if !same || data.as_bytes().len() != out.len() {
            return Err(wrong(format!("{got:?}")));
        }
        out.copy_from_slice(data.as_bytes());
        Ok(())
    }
    typed!(tensor.spec.dtype, typed_output, tensor, value, out)
}

/// A tensor for an output, made once and written by every run.
fn preallocate(selector: OutputSelector, tensor: &Shaped) -> ort::Result<OutputSelector> {
    fn typed_output<T: Element>(
        selector: OutputSelector,
        Shaped { spec, shape }: &Shaped,
    ) -> ort::Result<OutputSelector> {
        Ok(selector.preallocate(&spec.name, Tensor::<T>::new(&Allocator::default(), &shape[..])?))
    }
    typed!(tensor.spec.dtype, typed_output, selector, tensor)
}

/// Refuses a network whose constants lie in other files: a host has no files.
fn refuse_external(graph: &Graph<'_>) -> Result<(), EngineError> {
    let constants = graph.nodes.iter().flat_map(|n| n.attributes.iter().filter_map(|a| a.tensor.as_ref()));
    if let Some(constant) = graph.initializers.iter().chain(constants).find(|c| c.external) {
        return Err(EngineError::Unsupported {
            node: constant.name.to_owned(),
            op: "Constant".to_owned(),
            why: "its data is in another file; save the network as one file".to_owned(),
        });
    }
    graph.nodes.iter().flat_map(|n| n.subgraphs()).try_for_each(refuse_external)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_before_something_lesser_ran_is_said() {
        let engine = OrtEngine::new(None, None);
        assert_eq!((engine.remark(), engine.device().as_str()), (None, "none"));
        let loaded = |refused| *engine.provider.lock().unwrap() = Some((Provider::Cpu, refused));
        loaded(vec![]);
        assert_eq!((engine.remark(), engine.device().as_str()), (None, "cpu"));
        loaded(vec!["tensorrt: no memory".to_owned(), "cuda: no memory".to_owned()]);
        assert_eq!(engine.remark().unwrap(), "tensorrt: no memory; cuda: no memory");
    }

    #[test]
    fn an_accelerator_that_only_fails_is_lost_and_one_that_fails_now_and_then_is_not() {
        let failures = Failures::default();
        let fail = |provider| failures.failed(provider, "CUDA failure 700".to_owned());
        for _ in 0..20 {
            assert!(matches!(fail(Provider::Cpu), EngineError::Run(_)), "the processor is never lost");
        }
        for _ in 0..3 {
            for _ in 1..Failures::LOST {
                assert!(matches!(fail(Provider::Cuda), EngineError::Run(_)));
            }
            failures.passed();
        }
        for _ in 1..Failures::LOST {
            fail(Provider::TensorRt);
        }
        let EngineError::Device(why) = fail(Provider::TensorRt) else { panic!("it is lost") };
        assert_eq!(why, "tensorrt failed 5 times in a row: CUDA failure 700");
    }
}
