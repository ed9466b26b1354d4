//! Hailo-8 by HailoRT, loaded at run time.
//!
//! One process owns the chip, one network is on it, and one frame is in it at a time. (Or HailoRT's service owns it, and the processes that
//! ask the service have a network each on it: [`HailoEngine::by_service`].) A frame that is not answered in time may come
//! out later as the answer to another one, and new streams do not protect from that: so after anything but an answer the
//! streams, the network and the chip are dropped, and the next request would open the chip again. That takes longer than a request may, so an
//! engine host ends instead ([`Session::is_spent`]) and the next one opens it while it loads. What the chip says of itself weighs more than what
//! a call returns.
//!
//! | what happened | error |
//! |---|---|
//! | no answer in time, streams aborted, an error of the chip's sequencer | [`EngineError::Run`]; the chip is opened again |
//! | the chip has stopped by heat, is still hot, another process has it, its driver is not loaded yet, or its service does not answer | [`EngineError::Busy`] |
//! | the chip does not answer, is gone, or says that its memory is broken | [`EngineError::Device`] |
//! | library, driver and firmware do not belong together | [`EngineError::Library`] |
//! | the HEF is damaged, for another chip, or not what the manifest says | [`EngineError::Load`], [`EngineError::Tensor`] |

use crate::busy::Busy;
use crate::runner::check;
use crate::{DeviceState, Engine, EngineError, Model, NetworkFile, Session, shared};
use hailort_abi::types::{
    FORMAT_ORDER_FCR, FORMAT_ORDER_NC, FORMAT_ORDER_NHW, FORMAT_ORDER_NHWC, FORMAT_TYPE_UINT8, QuantInfo,
};
use hailort_abi::{
    Chip, Class, Elements, Failure, Hef, Library, NOTIFICATIONS, Owner, StreamInfo, Streams, Version,
};
use inferd_model::{DType, EngineKind, Manifest, NetworkFormat, TensorSpec};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Where the library is looked for, in this order, when nobody says where it is. It has no version-free name of its own (no SONAME but
/// `libhailort.so.4.23.0`).
const PLACES: [&str; 8] = [
    "/usr/lib/libhailort.so.4.23.0",
    "/usr/lib/libhailort.so.4.22.0",
    "/usr/lib/libhailort.so.4.21.0",
    "/usr/lib/libhailort.so",
    "/usr/lib/aarch64-linux-gnu/libhailort.so",
    "/usr/lib/x86_64-linux-gnu/libhailort.so",
    "/usr/local/lib/libhailort.so.4.23.0",
    "/usr/local/lib/libhailort.so",
];

/// Where the driver says of which release it is, below the root of sysfs.
const DRIVER: &str = "module/hailo_pci/version";

/// A chip is not started above this: one that has stopped by heat is let cool down, in degrees Celsius. Ours: the chip's own limits
/// cannot be asked for in C.
pub const COOL: f32 = 95.0;

/// A shared chip that does not answer so many questions in a row is lost, whether requests come or not: the service keeps a lost chip open
/// until the last one has left it, and only then can anybody open it again.
const SILENT: u32 = 2;

// What the chip is asked to tell is what is shown of it, in the same order.
const _: () = assert!(NOTIFICATIONS.len() == crate::DEVICE_EVENTS.len());

/// The engine. Its library is opened by [`Engine::set_up`], or with the first model.
pub struct HailoEngine {
    path: Option<PathBuf>,
    owner: Owner,
    library: OnceLock<Result<&'static Library, String>>,
    /// The chip, while it is open. Held while it is asked something.
    chip: Arc<Mutex<Option<Arc<Chip>>>>,
    /// What the chip said that it is, once it was open.
    identity: Arc<OnceLock<String>>,
    /// The networks that were put on it.
    loaded: Mutex<Vec<Weak<Shared>>>,
    busy: Arc<Busy>,
    /// Questions in a row that a shared chip did not answer.
    silent: AtomicU32,
}

/// What there is, before any model.
#[derive(Clone, Debug, PartialEq)]
pub struct HailoHere {
    /// The library's version.
    pub version: String,
    /// Where it is.
    pub library: PathBuf,
    /// `hailo8`, or why there is no chip that can be used.
    pub chip: Result<String, EngineError>,
    /// Which part is of another release than the library, and what to do about it.
    pub mismatch: Option<String>,
}

impl HailoEngine {
    /// An engine with the library at `path`, or with the one that is found.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            owner: Owner::Process,
            library: OnceLock::new(),
            chip: Arc::default(),
            identity: Arc::default(),
            loaded: Mutex::default(),
            busy: Arc::default(),
            silent: AtomicU32::new(0),
        }
    }

    /// The same over HailoRT's service (`hailort_service`), which shares the chip among the processes that ask it.
    #[must_use]
    pub fn by_service(self) -> Self {
        Self { owner: Owner::Service, ..self }
    }

    /// Whether a library is at the usual places.
    #[must_use]
    pub fn is_installed() -> bool {
        PLACES.iter().any(|place| Path::new(place).exists())
    }

    /// Looks what there is: opens the library and the chip, and closes the chip again. `sys` is where sysfs is.
    ///
    /// # Errors
    /// [`EngineError::Library`] when there is no library to be used.
    pub fn look(&self, sys: &Path) -> Result<HailoHere, EngineError> {
        let library = self.open_library()?;
        let (chip, firmware) = match Chip::open(library, self.owner) {
            Ok(chip) => (Ok(chip.identity().architecture.clone()), Some(chip.identity().firmware)),
            Err(e) => (Err(opening(e)), None),
        };
        let driver = std::fs::read_to_string(sys.join(DRIVER)).ok();
        let mismatch = mismatch(library.version(), driver.as_deref(), firmware);
        Ok(HailoHere { version: version(library), library: library.path().to_owned(), chip, mismatch })
    }

    fn open_library(&self) -> Result<&'static Library, EngineError> {
        let opened = self.library.get_or_init(|| {
            let path = find(self.path.as_deref())?;
            shared::check(&path)?;
            let library = Library::open(&path).map_err(|e| e.to_string())?;
            Ok(Box::leak(Box::new(library)))
        });
        opened.clone().map_err(EngineError::Library)
    }
}

fn version(library: &Library) -> String {
    format!("hailort {}", library.version())
}

/// Which part is of another release than the library, as one sentence with what to do. A part that says nothing of itself is left out.
fn mismatch(library: Version, driver: Option<&str>, firmware: Option<Version>) -> Option<String> {
    let release = library.to_string();
    let parts = [
        ("the driver hailo_pci", driver.map(|text| text.trim().to_owned())),
        ("the chip's firmware", firmware.map(|version| version.to_string())),
    ];
    let others: Vec<String> = parts
        .into_iter()
        .filter_map(|(what, of)| {
            of.filter(|of| !of.is_empty() && *of != release).map(|of| format!("{what} {of}"))
        })
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "libhailort is {release}, {}: install library, driver and firmware of one release, then restart the board",
            others.join(", ")
        )
    })
}

fn find(path: Option<&Path>) -> Result<PathBuf, String> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => PLACES
            .iter()
            .map(PathBuf::from)
            .find(|p| p.exists())
            .ok_or_else(|| format!("no libhailort is installed (looked for {})", PLACES.join(", ")))?,
    };
    std::fs::canonicalize(&path).map_err(|e| format!("{}: {e}", path.display()))
}

impl Engine for HailoEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Hailo
    }

    fn version(&self) -> String {
        self.open_library().map_or_else(|_| "hailort".to_owned(), version)
    }

    fn device(&self) -> String {
        self.identity.get().cloned().unwrap_or_else(|| "none".to_owned())
    }

    fn library(&self) -> Option<PathBuf> {
        self.open_library().ok().map(|l| l.path().to_owned())
    }

    fn set_up(&self) -> Result<(), EngineError> {
        self.open_library().map(|_| ())
    }

    fn load(&self, network: NetworkFile, manifest: &Manifest) -> Result<Box<dyn Model>, EngineError> {
        let library = self.open_library()?;
        let hef = network.of(NetworkFormat::Hef)?;
        // Everything that can be refused without a chip comes before the chip.
        let hef = Arc::new(Hef::read(library, hef).map_err(|e| EngineError::Load(e.to_string()))?);
        let plan = Plan::of(hef.streams(), manifest)?;
        let shared = Arc::new(Shared {
            library,
            hef,
            plan,
            manifest: manifest.clone(),
            owner: self.owner,
            chip: self.chip.clone(),
            busy: self.busy.clone(),
            rig: Mutex::new(None),
        });
        lock(&self.loaded).push(Arc::downgrade(&shared));
        let rig = shared.open()?;
        if let Some(chip) = &*lock(&self.chip) {
            let _ = self.identity.set(chip.identity().architecture.clone());
        }
        *lock(&shared.rig) = Some(rig);
        Ok(Box::new(HailoModel(shared)))
    }

    fn device_state(&self) -> Option<DeviceState> {
        let chip = lock(&self.chip);
        let chip = chip.as_ref()?;
        let events = chip.events();
        let temperature = chip.temperature();
        match &temperature {
            Err(e) if e.class == Class::DeviceLost => self.silent.fetch_add(1, Relaxed),
            _ => self.silent.swap(0, Relaxed),
        };
        Some(DeviceState {
            temperature: temperature.ok().flatten(),
            power: chip.power(),
            load: Some(self.busy.share()),
            // It has memory for its networks, of which the C interface tells nothing.
            memory: None,
            zone: Some(events.temperature_zone()),
            events: NOTIFICATIONS.map(|id| events.count(id)),
        })
    }

    fn lost(&self) -> Option<EngineError> {
        if self.owner == Owner::Process || self.silent.load(Relaxed) < SILENT {
            return None;
        }
        for shared in lock(&self.loaded).iter().filter_map(Weak::upgrade) {
            // With a frame in it the chip is found to be lost by that frame.
            drop(shared.rig.try_lock().ok()?.take());
        }
        // The service is told that we have left before the process ends: of one that only ends it knows seconds later.
        *lock(&self.chip) = None;
        Some(EngineError::Device(format!("the shared chip has not answered {SILENT} questions in a row")))
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left is dropped and made anew: a rig that did not answer is not used again.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What follows from a service that does not answer.
const NO_SERVICE: &str =
    "no hailort_service answers, and hosts.hailo_service wants one of the library's version";

/// Why the chip cannot be opened.
fn opening(e: Failure) -> EngineError {
    let text = e.to_string();
    match e.class {
        Class::Busy => EngineError::Busy(format!("{text}: another process has the chip")),
        Class::NoService => EngineError::Busy(format!("{text}: {NO_SERVICE}")),
        Class::NoDriver => EngineError::Busy(format!("{text}: no driver of it is loaded")),
        Class::TooHot => EngineError::Busy(text),
        Class::Network => EngineError::Load(text),
        Class::Configuration => {
            let must =
                "library, driver and firmware must be of one version, and the system have what they need";
            EngineError::Library(format!("{text}: {must}"))
        }
        _ => EngineError::Device(text),
    }
}

/// Why a frame was not answered.
fn running(e: Failure) -> EngineError {
    let text = e.to_string();
    match e.class {
        Class::Request | Class::Poisoned => EngineError::Run(text),
        Class::TooHot | Class::Busy => EngineError::Busy(text),
        Class::NoService => EngineError::Busy(format!("{text}: {NO_SERVICE}")),
        _ => EngineError::Device(text),
    }
}

// ------------------------------------------------------------------------------------------------------------------ a model

/// The chip with the network and its streams, as long as every frame was answered. Fields are dropped in their order.
struct Rig {
    streams: Streams,
    /// For each input stream, the manifest's input; for each output stream, the manifest's output if it names it.
    inputs: Vec<usize>,
    outputs: Vec<Option<usize>>,
    /// Frames in the order of the streams, where the caller's bytes cannot be used as they are.
    sent: Vec<Vec<u8>>,
    fetched: Vec<Vec<u8>>,
}

struct Shared {
    library: &'static Library,
    hef: Arc<Hef>,
    plan: Plan,
    manifest: Manifest,
    owner: Owner,
    chip: Arc<Mutex<Option<Arc<Chip>>>>,
    busy: Arc<Busy>,
    rig: Mutex<Option<Rig>>,
}

impl Shared {
    /// Opens the chip and puts the network on it.
    fn open(&self) -> Result<Rig, EngineError> {
        let mut place = lock(&self.chip);
        // The one before, if there is one: it is closed before it is opened again.
        *place = None;
        let chip = Arc::new(Chip::open(self.library, self.owner).map_err(opening)?);
        match chip.temperature() {
            Ok(Some(degrees)) if degrees > COOL => {
                let why =
                    format!("the chip has {degrees:.0} degrees Celsius; it is started again at {COOL:.0}");
                return Err(EngineError::Busy(why));
            }
            Ok(_) => {}
            Err(e) => return Err(opening(e)),
        }
        let network = chip.clone().configure(self.hef.clone()).map_err(opening)?;
        // The daemon ends a host that is past the deadline; a frame that is late by less is told by the library.
        let timeout = (self.manifest.budget.deadline_ms / 4 * 3).max(1);
        let streams = Arc::new(network).open(timeout, &|name| self.plan.elements(name)).map_err(opening)?;
        let rig = self.plan.rig(streams, &self.manifest)?;
        *place = Some(chip);
        Ok(rig)
    }

    fn run(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        let mut place = lock(&self.rig);
        let mut rig = match place.take() {
            Some(rig) => rig,
            // It worked before, so nothing is wrong with the file or the versions.
            None => self.open().map_err(|e| match e {
                EngineError::Busy(_) | EngineError::Device(_) => e,
                other => EngineError::Device(other.to_string()),
            })?,
        };
        match self.exchange(&mut rig, inputs, outputs) {
            Ok(()) => {
                *place = Some(rig);
                self.finite(outputs)
            }
            Err(e) => {
                drop(rig);
                // Closed now, not when the next request comes: it may be another process that comes.
                *lock(&self.chip) = None;
                Err(running(e))
            }
        }
    }

    fn exchange(&self, rig: &mut Rig, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), Failure> {
        let Rig { streams, inputs: sources, outputs: targets, sent, fetched } = rig;
        for (frame, &at) in sent.iter_mut().zip(&*sources) {
            let end = &self.plan.inputs[at];
            end.turn_in(inputs[at], frame);
        }
        let given: Vec<&[u8]> = sources
            .iter()
            .zip(&*sent)
            .map(
                |(&at, frame)| if self.plan.inputs[at].is_straight() { inputs[at] } else { frame.as_slice() },
            )
            .collect();
        let mut room: Vec<&mut [u8]> = fetched.iter_mut().map(Vec::as_mut_slice).collect();
        {
            let _call = self.busy.call();
            streams.infer(&given, &mut room)?;
        }
        for (frame, target) in fetched.iter().zip(targets) {
            if let Some(at) = *target {
                self.plan.outputs[at].turn_out(frame, outputs[at]);
            }
        }
        Ok(())
    }

    /// An answer is made of numbers.
    fn finite(&self, outputs: &[&mut [u8]]) -> Result<(), EngineError> {
        for (spec, bytes) in self.manifest.outputs.iter().zip(outputs) {
            if spec.dtype == DType::Fp32
                && let Some(at) =
                    bytes.as_chunks::<4>().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite())
            {
                return Err(EngineError::Run(format!(
                    "output {}: element {at} is no finite number",
                    spec.name
                )));
            }
        }
        Ok(())
    }
}

struct HailoModel(Arc<Shared>);

impl Model for HailoModel {
    fn session(&self) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(HailoSession(self.0.clone())))
    }
}

struct HailoSession(Arc<Shared>);

impl Session for HailoSession {
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        check("input", self.0.manifest.inputs.iter(), inputs.iter().copied())?;
        check("output", self.0.manifest.outputs.iter(), outputs.iter().map(|o| &**o))?;
        self.0.run(inputs, outputs)
    }

    fn is_spent(&self) -> bool {
        lock(&self.0.rig).is_none()
    }
}

// ---------------------------------------------------------------------------------------------- streams and the manifest

/// Which stream is which tensor, and how its elements lie.
#[derive(Debug)]
struct Plan {
    inputs: Vec<End>,
    outputs: Vec<End>,
}

/// One tensor of the manifest and its stream.
#[derive(Clone, Debug, PartialEq)]
struct End {
    stream: String,
    elements: Elements,
    order: Order,
    size: usize,
}

/// How a tensor lies in memory beside a stream, whose features are always last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As in the stream.
    Same,
    /// The tensor has its features first: so many, and so many places.
    FeaturesFirst { features: usize, places: usize },
}

impl Plan {
    fn of(streams: &[StreamInfo], manifest: &Manifest) -> Result<Self, EngineError> {
        let direction = |is_input: bool, specs: &[TensorSpec]| -> Result<Vec<End>, EngineError> {
            let there: Vec<&StreamInfo> = streams.iter().filter(|s| s.is_input == is_input).collect();
            specs.iter().map(|spec| End::of(spec, &there, specs.len())).collect()
        };
        let plan = Self {
            inputs: direction(true, &manifest.inputs)?,
            outputs: direction(false, &manifest.outputs)?,
        };
        // An input that nobody gives cannot be made up; an output that nobody wants is fetched and dropped.
        let unfed = streams.iter().find(|s| s.is_input && plan.inputs.iter().all(|end| end.stream != s.name));
        if let Some(stream) = unfed {
            return Err(EngineError::Tensor {
                name: stream.name.clone(),
                graph: describe(stream),
                manifest: "nothing".to_owned(),
            });
        }
        Ok(plan)
    }

    fn elements(&self, stream: &str) -> Elements {
        let ends = self.inputs.iter().chain(&self.outputs);
        ends.clone().find(|end| end.stream == stream).map_or(Elements::Raw, |end| end.elements)
    }

    fn rig(&self, streams: Streams, manifest: &Manifest) -> Result<Rig, EngineError> {
        let wrong = |name: &str, size: usize, want: usize| {
            EngineError::Load(format!("stream {name} has frames of {size} bytes, its tensor has {want}"))
        };
        let (mut inputs, mut outputs, mut sent, mut fetched) = (vec![], vec![], vec![], vec![]);
        for (name, size) in streams.inputs() {
            let at = self.inputs.iter().position(|end| end.stream == name);
            let at = at.ok_or_else(|| EngineError::Load(format!("stream {name} is in no manifest")))?;
            let want = manifest.inputs[at].byte_len();
            if size != want {
                return Err(wrong(name, size, want));
            }
            inputs.push(at);
            sent.push(if self.inputs[at].is_straight() { vec![] } else { vec![0; size] });
        }
        for (name, size) in streams.outputs() {
            let at = self.outputs.iter().position(|end| end.stream == name);
            if let Some(want) = at.map(|at| manifest.outputs[at].byte_len()).filter(|&want| want != size) {
                return Err(wrong(name, size, want));
            }
            outputs.push(at);
            fetched.push(vec![0; size]);
        }
        if outputs.iter().flatten().count() != self.outputs.len() {
            return Err(EngineError::Load("the network has other streams than its file".to_owned()));
        }
        Ok(Rig { streams, inputs, outputs, sent, fetched })
    }
}

fn describe(stream: &StreamInfo) -> String {
    match stream.shape {
        Some(shape) => {
            format!("frames of {shape:?} (height, width, features), format {}", stream.format_type)
        }
        None => "the result of a non-maximum suppression".to_owned(),
    }
}

impl End {
    /// Finds a tensor's stream: by its whole name, by what follows the last `/`, or because it is the only one.
    fn of(spec: &TensorSpec, streams: &[&StreamInfo], tensors: usize) -> Result<Self, EngineError> {
        let manifest = || format!("{} {:?}", spec.dtype, spec.shape);
        let short = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let whole = streams.iter().find(|s| s.name == spec.name);
        let stream = whole.or_else(|| streams.iter().find(|s| short(&s.name) == spec.name));
        let stream = match (stream, streams) {
            (Some(stream), _) => stream,
            (None, [only]) if tensors == 1 => only,
            _ => {
                let names: Vec<&str> = streams.iter().map(|s| s.name.as_str()).collect();
                return Err(EngineError::Tensor {
                    name: spec.name.clone(),
                    graph: format!("only {}", names.join(", ")),
                    manifest: manifest(),
                });
            }
        };
        let unfit = |why: &str| EngineError::Tensor {
            name: spec.name.clone(),
            graph: format!("{}: {why}", describe(stream)),
            manifest: manifest(),
        };
        if !matches!(stream.order, FORMAT_ORDER_NHWC | FORMAT_ORDER_FCR | FORMAT_ORDER_NHW | FORMAT_ORDER_NC)
        {
            return Err(unfit(&format!("in an order that is not matched ({})", stream.order)));
        }
        let Some(shape) = stream.shape else { return Err(unfit("which is no tensor")) };
        if let Some(QuantInfo { qp_scale: scale, qp_zp: zero, .. }) = stream.quant
            && !(scale.is_finite() && scale > 0.0 && zero.is_finite())
        {
            return Err(unfit(&format!("its quantisation is none (scale {scale}, zero point {zero})")));
        }
        let elements = match (spec.dtype, stream.quant) {
            // The library quantises, each feature by its own numbers where it has them.
            (DType::Fp32, _) => Elements::Float,
            (DType::Uint8, _) if stream.format_type != FORMAT_TYPE_UINT8 => {
                return Err(unfit("its elements are no bytes"));
            }
            (DType::Uint8, Some(QuantInfo { qp_scale: 1.0, qp_zp: 0.0, .. })) => Elements::Raw,
            (DType::Uint8, Some(QuantInfo { qp_scale: scale, qp_zp: zero, .. })) => {
                return Err(unfit(&format!(
                    "a byte stands for {scale} times its distance from {zero}, not for itself"
                )));
            }
            (DType::Uint8, None) => return Err(unfit("each feature has a quantisation of its own")),
            (_, _) => return Err(unfit("only FP32 and UINT8 tensors go to this chip")),
        };
        let order = Order::of(&spec.shape, shape).map_err(unfit)?;
        Ok(Self { stream: stream.name.clone(), elements, order, size: spec.dtype.size() })
    }

    fn is_straight(&self) -> bool {
        self.order == Order::Same
    }

    /// The tensor as a frame.
    fn turn_in(&self, tensor: &[u8], frame: &mut [u8]) {
        if let Order::FeaturesFirst { features, places } = self.order {
            transpose(tensor, frame, features, places, self.size);
        }
    }

    /// The frame as the tensor.
    fn turn_out(&self, frame: &[u8], tensor: &mut [u8]) {
        match self.order {
            Order::Same => tensor.copy_from_slice(frame),
            Order::FeaturesFirst { features, places } => {
                transpose(frame, tensor, places, features, self.size)
            }
        }
    }
}

/// Turns rows into columns; elements have so many bytes.
fn transpose(from: &[u8], to: &mut [u8], rows: usize, columns: usize, size: usize) {
    for (at, to) in to.chunks_exact_mut(size).enumerate() {
        // Element `at` of the result is in row `at / rows`, column `at % rows` of it.
        let from = &from[(at % rows * columns + at / rows) * size..][..size];
        to.copy_from_slice(from);
    }
}

impl Order {
    /// How a tensor of this shape lies beside a stream of that one. Dimensions of 1 say nothing; where both orders would fit and differ,
    /// nothing says which is meant.
    fn of(tensor: &[u32], stream: [u32; 3]) -> Result<Self, &'static str> {
        let long = |dims: &[u32]| dims.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
        let [h, w, f] = stream;
        let (tensor, last, first) = (long(tensor), long(&[h, w, f]), long(&[f, h, w]));
        let (features, places) = (f as usize, h as usize * w as usize);
        let same_memory = features == 1 || places == 1;
        match (tensor == last, tensor == first) {
            (true, _) if same_memory => Ok(Self::Same),
            (true, false) => Ok(Self::Same),
            (false, true) => Ok(Self::FeaturesFirst { features, places }),
            (true, true) => Err("features first or last: both fit, nothing says which is meant"),
            (false, false) => Err("another shape"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hailort_abi::types::FORMAT_TYPE_UINT16;

    fn stream(name: &str, is_input: bool, shape: [u32; 3], scale: f32, zero: f32) -> StreamInfo {
        let quant = QuantInfo { qp_zp: zero, qp_scale: scale, limvals_min: 0.0, limvals_max: 0.0 };
        StreamInfo {
            name: name.to_owned(),
            is_input,
            format_type: FORMAT_TYPE_UINT8,
            order: FORMAT_ORDER_NHWC,
            shape: Some(shape),
            quant: Some(quant),
        }
    }

    fn refused(spec: &TensorSpec, streams: &[&StreamInfo]) -> String {
        End::of(spec, streams, 1).unwrap_err().to_string()
    }

    #[test]
    fn a_part_of_another_release_than_the_library_is_named_with_what_to_do() {
        let of = |minor, revision| Version { major: 4, minor, revision };
        for (driver, firmware, said) in [
            (Some("4.23.0\n"), Some(of(23, 0)), None),
            (None, None, None),
            (Some("\n"), None, None),
            (Some("4.21.0\n"), None, Some("libhailort is 4.23.0, the driver hailo_pci 4.21.0: install")),
            (
                Some("4.23.0\n"),
                Some(of(20, 1)),
                Some("libhailort is 4.23.0, the chip's firmware 4.20.1: install"),
            ),
            (
                Some("4.21.0"),
                Some(of(20, 1)),
                Some("the driver hailo_pci 4.21.0, the chip's firmware 4.20.1: install"),
            ),
        ] {
            let found = mismatch(of(23, 0), driver, firmware);
            assert_eq!(found.is_some(), said.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(said.unwrap_or_default()));
        }
    }

    #[test]
    fn an_order_is_found_by_the_shape_or_not_guessed() {
        let first = |features, places| Ok(Order::FeaturesFirst { features, places });
        for (tensor, stream, order) in [
            (&[1, 4, 6, 3][..], [4, 6, 3], Ok(Order::Same)),
            (&[1, 3, 4, 6], [4, 6, 3], first(3, 24)),
            (&[1, 100, 9], [1, 100, 9], Ok(Order::Same)),
            (&[1, 9, 100], [1, 100, 9], first(9, 100)),
            (&[1, 64], [1, 1, 64], Ok(Order::Same)),
            (&[64], [1, 1, 64], Ok(Order::Same)),
            (&[1, 1, 28, 28], [28, 28, 1], Ok(Order::Same)),
            (&[1, 8, 1, 8], [1, 8, 8], Err("features first or last: both fit, nothing says which is meant")),
            (&[1, 8, 8, 8], [8, 8, 8], Err("features first or last: both fit, nothing says which is meant")),
            (&[1, 4, 6, 4], [6, 4, 4], first(4, 24)),
            (&[1, 6, 4, 3], [4, 6, 3], Err("another shape")),
            (&[2, 4, 6, 3], [4, 6, 3], Err("another shape")),
        ] {
            assert_eq!(Order::of(tensor, stream), order, "{tensor:?} {stream:?}");
        }
    }

    #[test]
    fn turning_there_and_back_is_nothing() {
        let tensor: Vec<u8> = (0..24).collect();
        let end = End {
            stream: "x".into(),
            elements: Elements::Raw,
            order: Order::FeaturesFirst { features: 2, places: 3 },
            size: 4,
        };
        let (mut frame, mut back) = ([0; 24], [0; 24]);
        end.turn_in(&tensor, &mut frame);
        // Feature 0 of the first place, then feature 1 of it, which lies three elements further in the tensor.
        assert_eq!(frame[..12], [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7]);
        end.turn_out(&frame, &mut back);
        assert_eq!(back[..], tensor[..]);
    }

    #[test]
    fn a_stream_is_found_by_its_name_or_because_it_is_alone() {
        let (a, b) = (stream("net/a", true, [1, 1, 4], 0.5, 3.0), stream("net/b", true, [1, 1, 4], 0.5, 3.0));
        let spec = |name: &str| TensorSpec::plain(name, DType::Fp32, &[1, 4]);
        assert_eq!(End::of(&spec("b"), &[&a, &b], 2).unwrap().stream, "net/b");
        assert_eq!(End::of(&spec("net/a"), &[&a, &b], 2).unwrap().stream, "net/a");
        assert_eq!(End::of(&spec("x"), &[&a], 1).unwrap().stream, "net/a");
        assert!(refused(&spec("x"), &[&a, &b]).contains("only net/a, net/b"));
    }

    #[test]
    fn bytes_go_through_only_where_a_byte_stands_for_itself() {
        let spec = TensorSpec::plain("x", DType::Uint8, &[1, 4, 4, 3]);
        let plain = stream("x", true, [4, 4, 3], 1.0, 0.0);
        assert_eq!(End::of(&spec, &[&plain], 1).unwrap().elements, Elements::Raw);
        for (scale, zero) in [(0.5, 0.0), (1.0, 1.0)] {
            assert!(refused(&spec, &[&stream("x", true, [4, 4, 3], scale, zero)]).contains("not for itself"));
        }
        let wide = StreamInfo { format_type: FORMAT_TYPE_UINT16, ..plain.clone() };
        assert!(refused(&spec, &[&wide]).contains("no bytes"));
        let other = TensorSpec::plain("x", DType::Int32, &[1, 4, 4, 3]);
        assert!(refused(&other, &[&plain]).contains("only FP32 and UINT8"));
    }

    #[test]
    fn features_with_a_quantisation_of_their_own_are_turned_into_numbers_by_the_library() {
        let own =
            StreamInfo { quant: None, order: FORMAT_ORDER_FCR, ..stream("x", false, [15, 20, 4], 1.0, 0.0) };
        let spec = |dtype| TensorSpec::plain("x", dtype, &[1, 15, 20, 4]);
        assert_eq!(End::of(&spec(DType::Fp32), &[&own], 1).unwrap().elements, Elements::Float);
        assert!(refused(&spec(DType::Uint8), &[&own]).contains("of its own"));
    }

    #[test]
    fn a_quantisation_that_makes_no_numbers_is_refused() {
        let spec = TensorSpec::plain("x", DType::Fp32, &[1, 4]);
        for (scale, zero) in [(0.0, 0.0), (-1.0, 0.0), (f32::NAN, 0.0), (f32::INFINITY, 0.0), (1.0, f32::NAN)]
        {
            assert!(refused(&spec, &[&stream("x", true, [1, 1, 4], scale, zero)]).contains("quantisation"));
        }
        let mut nms = stream("x", false, [1, 1, 4], 1.0, 0.0);
        nms.shape = None;
        assert!(refused(&spec, &[&nms]).contains("non-maximum suppression"));
        nms.order = 22;
        assert!(refused(&spec, &[&nms]).contains("not matched (22)"));
    }
}
