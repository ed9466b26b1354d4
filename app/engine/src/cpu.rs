//! The built-in engine: rten, pure Rust, always there.

use crate::{
    Engine, EngineError, GraphInfo, Model, NetworkFile, Session,
    convert::{self, Carrier},
    fit::{match_tensors, parse},
    graph::TensorInfo,
    runner::check,
    vet::{Passed, vet},
};
use inferd_model::{DType, EngineKind, Manifest, NetworkFormat, TensorSpec};
use rten::{ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::{AsView, Layout, TensorView};
use std::{cell::RefCell, panic::catch_unwind, sync::Arc};
use zerocopy::IntoBytes;

/// The built-in CPU engine.
///
/// It computes one inference on one thread: as many sessions as workers use as many cores, and none waits for another.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuEngine;

thread_local! {
    /// The one-thread pool the current thread belongs to, inside of [`Engine::worker`].
    static POOL: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
}

impl CpuEngine {
    /// Environment variables a process that runs this engine should be started with.
    ///
    /// rten starts a pool of threads for the whole process when it first loads a model, and sizes it by this variable;
    /// without it there is one idle thread per core. (It cannot be set from inside: changing the environment of a
    /// running process is not safe.)
    pub const ENVIRONMENT: [(&str, &str); 1] = [("RTEN_NUM_THREADS", "1")];

    /// The engine. It holds nothing; a model is loaded when asked for.
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    /// What a network says about itself. Nothing is loaded or computed, and memory is bounded by the file's size.
    ///
    /// # Errors
    /// [`EngineError::Empty`] and [`EngineError::Load`] for a file that is not a network or is damaged.
    pub fn describe(onnx: &[u8]) -> Result<GraphInfo, EngineError> {
        Ok(GraphInfo::of(&parse(onnx)?))
    }

    /// Runs a network once, to learn the shapes of outputs its file leaves open: all outputs as they came out, in the
    /// graph's order. For making manifests; a served model is loaded with one.
    ///
    /// # Errors
    /// As [`Engine::load`] and [`Session::run`]; [`EngineError::Tensor`] for an output that no element type describes.
    pub fn probe(
        onnx: &'static [u8],
        inputs: &[TensorSpec],
        buffers: &[&[u8]],
    ) -> Result<Vec<TensorSpec>, EngineError> {
        let network = parse(onnx)?;
        let passed = vet(&network)?;
        let mut outputs = Vec::new();
        for value in &network.graph.outputs {
            let Some(dtype) = crate::graph::dtype(value.elem_type) else {
                return Err(EngineError::Tensor {
                    name: value.name.to_owned(),
                    graph: TensorInfo::of(value).to_string(),
                    manifest: "no type for it".to_owned(),
                });
            };
            outputs.push(TensorSpec::plain(value.name, dtype, &[]));
        }
        drop(network);
        let loaded = Loaded::new(prepare(onnx, passed)?, inputs, &outputs)?;
        let mut converted: Vec<Converted> = loaded.input_specs.iter().map(Converted::of).collect();
        let values = loaded.run(buffers, &mut converted, &options())?;
        for (spec, value) in outputs.iter_mut().zip(&values) {
            let shape: Result<Vec<u32>, _> = value.shape().iter().map(|&d| u32::try_from(d)).collect();
            spec.shape = shape.map_err(|e| EngineError::Run(format!("output {}: {e}", spec.name)))?;
        }
        Ok(outputs)
    }
}

/// Loads a network that was read and vetted.
fn prepare(onnx: &'static [u8], passed: Passed) -> Result<rten::Model, EngineError> {
    // rten's loader folds constants, that is, it runs operators; a damaged or hostile network that gets past the reader
    // and the vetting may still trip an assertion there. This is the last resort, not the check.
    let loaded =
        catch_unwind(|| ModelOptions::with_all_ops().prepack_weights(passed.prepack).load_static_slice(onnx));
    match loaded {
        Ok(Ok(network)) => Ok(network),
        Ok(Err(error)) => Err(EngineError::Load(error.to_string())),
        Err(_) => Err(EngineError::Load("rten panicked while it prepared the network".into())),
    }
}

impl Engine for CpuEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Cpu
    }

    fn version(&self) -> String {
        format!("rten {RTEN_VERSION}")
    }

    fn device(&self) -> String {
        "cpu".to_owned()
    }

    /// Starts rten's own pool of threads, which a load would start: it reads the number of cores from `/proc` and `/sys`.
    fn set_up(&self) -> Result<(), EngineError> {
        let _ = rten::thread_pool();
        Ok(())
    }

    /// Weights are copied once out of the file (an ONNX file does not align them) and once more into the layout the
    /// matrix kernels read; `memory_mib` of a manifest has to allow for twice the file.
    fn load(&self, network: NetworkFile, manifest: &Manifest) -> Result<Box<dyn Model>, EngineError> {
        let onnx = network.of(NetworkFormat::Onnx)?;
        let network = parse(onnx)?;
        match_tensors(&network, manifest)?;
        let passed = vet(&network)?;
        drop(network);
        let loaded = Loaded::new(prepare(onnx, passed)?, &manifest.inputs, &manifest.outputs)?;
        Ok(Box::new(CpuModel(Arc::new(loaded))))
    }

    fn worker(&self, life: Box<dyn FnOnce() + Send + '_>) {
        let pool = Arc::new(ThreadPool::with_num_threads(1));
        let own = Arc::clone(&pool);
        pool.run(move || {
            // The pool ends with this call, and its thread with it: nobody else will read the thread's own variable.
            POOL.set(Some(own));
            life();
        });
    }
}

/// The version of the library; a test compares it with the lock file.
const RTEN_VERSION: &str = "0.27.0";

struct CpuModel(Arc<Loaded>);

/// What all sessions of a model share.
struct Loaded {
    network: rten::Model,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    input_specs: Vec<Tensor>,
    output_specs: Vec<Tensor>,
}

impl Loaded {
    fn new(network: rten::Model, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> Result<Self, EngineError> {
        let ids = |specs: &[TensorSpec]| {
            let id = |spec: &TensorSpec| {
                network.find_node(&spec.name).ok_or_else(|| {
                    EngineError::Load(format!("tensor {} was lost while rten optimised the graph", spec.name))
                })
            };
            specs.iter().map(id).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            inputs: ids(inputs)?,
            outputs: ids(outputs)?,
            input_specs: inputs.iter().map(Tensor::of).collect(),
            output_specs: outputs.iter().map(Tensor::of).collect(),
            network,
        })
    }

    /// Checks the inputs, converts those that need it and runs the network.
    fn run(
        &self,
        inputs: &[&[u8]],
        converted: &mut [Converted],
        options: &RunOptions,
    ) -> Result<Vec<Value>, EngineError> {
        check("input", self.input_specs.iter().map(|t| &t.spec), inputs.iter().copied())?;
        for ((tensor, bytes), converted) in self.input_specs.iter().zip(inputs).zip(converted.iter_mut()) {
            match converted {
                Converted::Direct => {}
                Converted::F32(to) => convert::to_f32(&tensor.spec, bytes, to)?,
                Converted::I32(to) => convert::to_i32(&tensor.spec, bytes, to)?,
            }
        }
        let mut views = Vec::with_capacity(inputs.len());
        for (i, tensor) in self.input_specs.iter().enumerate() {
            views.push((self.inputs[i], input_view(tensor, inputs[i], &converted[i])?));
        }
        self.network
            .run(views, &self.outputs, Some(options.clone()))
            .map_err(|error| EngineError::Run(error.to_string()))
    }
}

/// The options of a session on this thread.
fn options() -> RunOptions {
    let own = POOL.with_borrow(Clone::clone);
    RunOptions::default()
        .with_thread_pool(Some(own.unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(1)))))
}

/// A specification with its shape as rten wants it.
struct Tensor {
    spec: TensorSpec,
    shape: Vec<usize>,
}

impl Tensor {
    fn of(spec: &TensorSpec) -> Self {
        // Dimensions are at most MAX_TENSOR_BYTES.
        Self { spec: spec.clone(), shape: spec.shape.iter().map(|&d| d as usize).collect() }
    }
}

impl Model for CpuModel {
    fn session(&self) -> Result<Box<dyn Session>, EngineError> {
        let converted = self.0.input_specs.iter().map(Converted::of).collect();
        Ok(Box::new(CpuSession { model: Arc::clone(&self.0), options: options(), converted }))
    }
}

/// An input in rten's type, where the wire's is another. Allocated once.
enum Converted {
    Direct,
    F32(Vec<f32>),
    I32(Vec<i32>),
}

impl Converted {
    fn of(tensor: &Tensor) -> Self {
        let elements = tensor.spec.elements();
        match Carrier::of(tensor.spec.dtype) {
            _ if convert::is_direct(tensor.spec.dtype) => Self::Direct,
            Carrier::F32 => Self::F32(vec![0.0; elements]),
            _ => Self::I32(vec![0; elements]),
        }
    }
}

struct CpuSession {
    model: Arc<Loaded>,
    options: RunOptions,
    converted: Vec<Converted>,
}

impl Session for CpuSession {
    /// rten allocates its intermediate tensors anew for each run and frees them at its end, so memory does not grow from
    /// run to run. A panic inside rten passes through to the caller.
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        let Self { model, options, converted } = self;
        check("output", model.output_specs.iter().map(|t| &t.spec), outputs.iter().map(|o| &**o))?;
        let values = model.run(inputs, converted, options)?;
        for ((tensor, value), out) in model.output_specs.iter().zip(&values).zip(outputs) {
            write_output(tensor, value, out)?;
        }
        Ok(())
    }
}

/// An input as rten reads it, borrowed from the caller's or the session's buffer.
fn input_view<'a>(
    tensor: &Tensor,
    bytes: &'a [u8],
    converted: &'a Converted,
) -> Result<ValueOrView<'a>, EngineError> {
    let Tensor { spec, shape } = tensor;
    let view: ValueView<'a> = match converted {
        Converted::F32(data) => TensorView::from_data(shape, &data[..]).into(),
        Converted::I32(data) => TensorView::from_data(shape, &data[..]).into(),
        Converted::Direct => match spec.dtype {
            DType::Fp32 => TensorView::from_data(shape, convert::view::<f32>(spec, bytes)?).into(),
            DType::Int8 => TensorView::from_data(shape, convert::view::<i8>(spec, bytes)?).into(),
            DType::Uint8 => TensorView::from_data(shape, bytes).into(),
            _ => TensorView::from_data(shape, convert::view::<i32>(spec, bytes)?).into(),
        },
    };
    Ok(view.into())
}

/// Copies an output to where the caller wants it, after checking that it is what the manifest says.
fn write_output(tensor: &Tensor, value: &Value, out: &mut [u8]) -> Result<(), EngineError> {
    let Tensor { spec, shape } = tensor;
    let wrong = |got: String| {
        EngineError::Run(format!(
            "output {} came out as {got}, the manifest says {} {:?}",
            spec.name, spec.dtype, spec.shape
        ))
    };
    let same = |got: &[usize]| if got == shape { Ok(()) } else { Err(wrong(format!("{got:?}"))) };
    match (value, Carrier::of(spec.dtype)) {
        (Value::FloatTensor(t), Carrier::F32) => {
            same(t.shape())?;
            match t.data() {
                Some(data) if spec.dtype == DType::Fp32 => out.copy_from_slice(data.as_bytes()),
                _ => convert::from_f32(spec, t.iter(), out)?,
            }
        }
        (Value::Int32Tensor(t), Carrier::I32) => {
            same(t.shape())?;
            match t.data() {
                Some(data) if spec.dtype == DType::Int32 => out.copy_from_slice(data.as_bytes()),
                _ => convert::from_i32(spec, t.iter(), out)?,
            }
        }
        (Value::Int8Tensor(t), Carrier::I8) => {
            same(t.shape())?;
            convert::from_bytes(t.iter(), out, i8::to_le_bytes);
        }
        (Value::UInt8Tensor(t), Carrier::U8) => {
            same(t.shape())?;
            convert::from_bytes(t.iter(), out, u8::to_le_bytes);
        }
        (other, _) => return Err(wrong(other.dtype().to_string())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_it_tells_is_the_version_it_is_built_with() {
        let lock = include_str!("../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"rten\"\nversion = \"{RTEN_VERSION}\"\n")), "{RTEN_VERSION}");
    }
}
