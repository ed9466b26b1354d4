//! The host process: what `inferd engine-host` does.
//!
//! It inherits the model's sealed memory, the ring, an eventfd and one end of a Unix socket; maps them; makes the engine; gives
//! up the system calls that loading does not need; only then reads the model; caps its own memory when no cgroup does; loads
//! the network; starts the workers; lets every worker run the golden vectors; gives up what serving does not need; says "ready"
//! and then only computes. Its first thread waits for the socket to close and ends the process.

use crate::alloc;
use crate::confine::{self, Stage};
use crate::limits::{MAX_WORKERS, WORKER_STACK};
use crate::package;
use crate::ring::{Layout, Ring, Status};
use crate::sys::{self, Mapping, OwnMemory};
use inferd_engine::{CpuEngine, DeviceState, Engine, EngineError, GoldenCheckError, Model, Runner};
use inferd_model::{Agreement, EngineKind, Golden, Manifest, Rung, Tolerance};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// What the daemon tells a host on its command line, as JSON: descriptors and sizes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    pub model: i32,
    pub ring: i32,
    pub event: i32,
    pub control: i32,
    pub slots: usize,
    pub workers: usize,
    pub rung: Rung,
    /// Whether it may make only the system calls that loading, and then those that computing needs.
    pub seccomp: bool,
    /// Bytes to cap private memory at, on top of what the process has after its start; `None` in a cgroup.
    pub cap: Option<u64>,
}

/// What a host tells the daemon, one JSON object a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It does this now.
    Phase(Phase),
    /// It serves from now on.
    Ready {
        version: String,
        device: String,
        library: Option<PathBuf>,
        remark: Option<String>,
        cosine: f64,
        max_abs: f64,
    },
    /// It will not serve, because of this.
    Refused(Refusal),
}

/// Why a host will not serve its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The engine cannot run it.
    #[error("{0}")]
    Load(String),
    /// The engine's library is not there, or does not fit driver and device: that says nothing about the model.
    #[error("{0}")]
    Library(String),
    /// The engine's device does not answer or is gone.
    #[error("{0}")]
    Device(String),
    /// The engine's device is there and cannot be used now.
    #[error("{0}")]
    Busy(String),
    /// A golden vector did not come out. The numbers are those of the first output that disagreed; absent when the engine
    /// failed on the vector, or where they are no numbers (an answer that is not finite). `limits`: those of the network that ran.
    #[error("{reason}")]
    Golden { reason: String, cosine: Option<f64>, max_abs: Option<f64>, limits: Tolerance },
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Load(why)
    }
}

/// The steps of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Loading,
    /// An engine is built out of the network: that may take minutes, once for a device.
    Building,
    Golden,
}

/// Exit status of a host that refused its model; everything else that ends a host is a fault.
pub const REFUSED: u8 = 3;

/// Exit status of a host whose device is lost or cannot be used for a while.
pub const WITHOUT_DEVICE: u8 = 5;

/// The longest remark on how a model was loaded, in characters.
const MAX_REMARK: usize = 1000;

/// How often a device is asked how it is.
const DEVICE_LOOK: Duration = Duration::from_secs(1);

/// Makes the engines that a host program has.
pub type Engines = fn(EngineKind) -> Option<Box<dyn Engine>>;

/// The main function of `inferd engine-host ORDERS`, with the built-in engine. Call it before any thread or runtime is made.
#[must_use]
pub fn engine_host_main() -> ExitCode {
    engine_host_main_with(|kind| match kind {
        EngineKind::Cpu => Some(Box::new(CpuEngine::new())),
        _ => None,
    })
}

/// The same for a program with other engines. They are made and set up in the host's first thread, before its system calls are
/// limited and before anything of the model is read.
#[must_use]
pub fn engine_host_main_with(engines: Engines) -> ExitCode {
    let Some(orders) = std::env::args().nth(2).and_then(|o| serde_json::from_str::<Orders>(&o).ok()) else {
        eprintln!("inferd engine-host is started by inferd itself, with descriptors it inherits");
        return ExitCode::from(2);
    };
    match serve(&orders, engines) {
        Ok(never) => match never {},
        Err(Failure { control, why }) => {
            if let Some(mut c) = control {
                report(&mut c, &Report::Refused(why));
            }
            ExitCode::from(REFUSED)
        }
    }
}

struct Failure {
    control: Option<UnixStream>,
    why: Refusal,
}

enum Never {}

fn serve(orders: &Orders, engines: Engines) -> Result<Never, Failure> {
    let early = |why: String| Failure { control: None, why: why.into() };
    let fd = |n| sys::take_fd(n).map_err(|e| early(e.to_string()));
    let mut control = UnixStream::from(fd(orders.control)?);
    let (model, ring, event) = (fd(orders.model)?, fd(orders.ring)?, fd(orders.event)?);
    confine::give_up_rights(orders.rung.engine)
        .map_err(|e| early(format!("rights cannot be given up: {e}")))?;
    match start(orders, engines, File::from(model), File::from(ring), event, &mut control) {
        Ok(()) => {
            // Everything happens on the workers now. When the daemon goes, or has had enough of us, the socket closes.
            while !matches!(control.read(&mut [0; 16]), Ok(0) | Err(_)) {}
            sys::exit_now(0)
        }
        Err(why) => Err(Failure { control: Some(control), why }),
    }
}

fn report(control: &mut UnixStream, report: &Report) {
    let mut line = serde_json::to_vec(report).expect("a report has a JSON form");
    line.push(b'\n');
    // When the daemon is gone there is nobody to tell.
    let _ = control.write_all(&line);
}

fn start(
    orders: &Orders,
    engines: Engines,
    model: File,
    ring: File,
    event: OwnedFd,
    control: &mut UnixStream,
) -> Result<(), Refusal> {
    report(control, &Report::Phase(Phase::Loading));
    let unmapped = |e: io::Error| format!("the ring cannot be mapped: {e}");
    // How the rest of the ring is laid out says the manifest, which is not read before the filter is there.
    let head = Ring::head(Mapping::whole(&ring, true).map_err(unmapped)?).map_err(unmapped)?.leak();
    alloc::report_refusals_to(head.refused_cell());
    leave_words_on_panic(head);
    let whole = Mapping::whole(&ring, true).map_err(unmapped)?;
    let unread = package::map_inherited(&model)?;
    drop((model, ring));
    let own_memory = OwnMemory::open().map_err(|e| format!("/proc/self/status: {e}"))?;
    let none = || format!("this program has no engine {}", orders.rung.engine);
    let engine: Arc<dyn Engine> = engines(orders.rung.engine).ok_or_else(none)?.into();
    contained(|| engine.set_up())?;
    let limit_calls = |stage| match orders.seccomp {
        true => confine::limit_calls(orders.rung.engine, stage, head.trapped_cell()).map_err(|e| {
            format!("its system calls cannot be limited ({e}); hosts.seccomp = false does without")
        }),
        false => Ok(()),
    };
    limit_calls(Stage::Loading)?;

    let opened = package::read_inherited(unread, orders.rung)?;
    let manifest = Arc::new(opened.manifest);
    let layout = Layout::new(&manifest.inputs, &manifest.outputs, orders.slots);
    let workers = orders.workers.clamp(1, MAX_WORKERS);
    let ring = Ring::open(whole, layout).map_err(unmapped)?.leak();
    if let Some(cap) = orders.cap {
        own_memory.cap(cap).map_err(|e| format!("memory cannot be capped: {e}"))?;
    }
    if contained(|| Ok(engine.must_build(opened.network, &manifest)))? {
        report(control, &Report::Phase(Phase::Building));
    }
    let network = contained(|| engine.load(opened.network, &manifest))?;
    let network: Arc<dyn Model> = Arc::from(network);

    report(control, &Report::Phase(Phase::Golden));
    let golden = Arc::new(opened.golden);
    let event = Arc::new(event);
    let (tell, told) = mpsc::channel();
    for index in 0..workers {
        let worker = Worker {
            index,
            ring,
            event: event.clone(),
            network: network.clone(),
            manifest: manifest.clone(),
            tolerance: opened.tolerance,
        };
        let (tell, golden, engine) = (tell.clone(), golden.clone(), engine.clone());
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .stack_size(WORKER_STACK)
            .spawn(move || engine.worker(Box::new(move || worker.main(golden, &tell))))
            .map_err(|e| format!("worker {index} cannot be started: {e}"))?;
    }
    drop((tell, golden));
    let mut worst = Agreement { cosine: 1.0, max_abs: 0.0 };
    for _ in 0..workers {
        let a = told.recv().map_err(|_| "a worker ended while it ran the golden vectors".to_owned())??;
        worst = Agreement { cosine: worst.cosine.min(a.cosine), max_abs: worst.max_abs.max(a.max_abs) };
    }
    watch_device(&engine, ring)?;
    let (version, device, library) = (engine.version(), engine.device(), engine.library());
    let remark = engine.remark().map(|r| r.chars().take(MAX_REMARK).collect());
    limit_calls(Stage::Serving)?;
    let Agreement { cosine, max_abs } = worst;
    report(control, &Report::Ready { version, device, library, remark, cosine, max_abs });
    Ok(())
}

/// Leaves how the engine's device is in the ring, again and again, if it has one that says so.
fn watch_device(engine: &Arc<dyn Engine>, ring: &'static Ring) -> Result<(), Refusal> {
    let Some(mut last) = engine.device_state() else { return Ok(()) };
    ring.device().store(&last);
    let engine = engine.clone();
    let watch = move || {
        loop {
            std::thread::sleep(DEVICE_LOOK);
            last = engine.device_state().unwrap_or_else(|| closed(last));
            ring.device().store(&last);
            if let Some(why) = engine.lost() {
                ring.say(&why.to_string());
                sys::exit_now(WITHOUT_DEVICE.into());
            }
        }
    };
    let thread = std::thread::Builder::new().name("device".into()).stack_size(WORKER_STACK);
    thread.spawn(watch).map_err(|e| format!("the device's thread cannot be started: {e}"))?;
    Ok(())
}

/// How a device is that is not open: after a frame that was late it is opened with the next request. What it told before stays told,
/// but how warm it is nobody knows.
fn closed(before: DeviceState) -> DeviceState {
    DeviceState { temperature: None, power: None, load: None, ..before }
}

thread_local! {
    /// What this thread's last panic said.
    static WORDS: RefCell<heapless::String<{ crate::limits::MAX_WORDS }>> =
        const { RefCell::new(heapless::String::new()) };
}

/// Panics end up as the host's last words instead of on the console; the daemon logs them.
fn leave_words_on_panic(ring: &'static Ring) {
    std::panic::set_hook(Box::new(move |info| {
        // The ring's last words stay if this panic ends the process; a contained one takes them back (`Worker::serve_one`).
        let text = info.payload_as_str().unwrap_or("a panic without words");
        let at = info.location().map_or_else(String::new, |l| {
            let file = l.file().rsplit('/').next().unwrap_or_default();
            format!(" ({file}:{})", l.line())
        });
        let mut words = heapless::String::<{ crate::limits::MAX_WORDS }>::new();
        for c in text.chars().chain(at.chars()) {
            if words.push(c).is_err() {
                break;
            }
        }
        ring.say(&words);
        WORDS.set(words);
    }));
}

fn contained<T>(f: impl FnOnce() -> Result<T, EngineError>) -> Result<T, Refusal> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(r) => r.map_err(|e| match e {
            EngineError::Device(_) => Refusal::Device(e.to_string()),
            EngineError::Busy(_) => Refusal::Busy(e.to_string()),
            EngineError::Library(_) => Refusal::Library(e.to_string()),
            e => Refusal::Load(e.to_string()),
        }),
        Err(_) => Err(Refusal::Load("the engine panicked while it loaded the model".to_owned())),
    }
}

fn disagreed(e: GoldenCheckError, limits: Tolerance) -> Refusal {
    let reason = e.to_string();
    match e {
        GoldenCheckError::Engine { error: EngineError::Device(_), .. } => Refusal::Device(reason),
        GoldenCheckError::Engine { error: EngineError::Busy(_), .. } => Refusal::Busy(reason),
        GoldenCheckError::Engine { error: EngineError::Library(_), .. } => Refusal::Library(reason),
        GoldenCheckError::Engine { .. } => Refusal::Golden { reason, cosine: None, max_abs: None, limits },
        GoldenCheckError::Mismatch(m) => {
            let number = |v: f64| v.is_finite().then_some(v);
            Refusal::Golden { reason, cosine: number(m.cosine), max_abs: number(m.max_abs), limits }
        }
    }
}

struct Worker {
    index: usize,
    ring: &'static Ring,
    event: Arc<OwnedFd>,
    network: Arc<dyn Model>,
    manifest: Arc<Manifest>,
    tolerance: Tolerance,
}

impl Worker {
    fn main(self, golden: Arc<Golden>, tell: &mpsc::Sender<Result<Agreement, Refusal>>) {
        alloc::this_thread_is_a_worker(self.ring.worker(self.index));
        let first = contained(|| self.runner()).and_then(|mut runner| {
            let agreement =
                match catch_unwind(AssertUnwindSafe(|| runner.check_golden(&golden, self.tolerance))) {
                    Ok(r) => r.map_err(|e| disagreed(e, self.tolerance))?,
                    Err(_) => {
                        let reason = "the engine panicked on the golden vectors".to_owned();
                        let limits = self.tolerance;
                        return Err(Refusal::Golden { reason, cosine: None, max_abs: None, limits });
                    }
                };
            Ok((runner, agreement))
        });
        drop(golden);
        let mut runner = match first {
            Ok((runner, agreement)) => {
                let _ = tell.send(Ok(agreement));
                Some(runner)
            }
            Err(why) => {
                let _ = tell.send(Err(why));
                return;
            }
        };
        loop {
            self.serve_one(&mut runner);
        }
    }

    fn runner(&self) -> Result<Runner, EngineError> {
        Runner::new(&*self.network, self.manifest.clone())
    }

    /// Takes one request, runs it, hands it back. A panic costs this request and this worker's session, nothing else.
    fn serve_one(&self, runner: &mut Option<Runner>) {
        let wake = || {
            let _ = nix::unistd::write(&self.event, &1_u64.to_ne_bytes());
        };
        let mut job = self.ring.next(self.index, &wake);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let session = match runner {
                Some(r) => r,
                None => runner.insert(self.runner()?),
            };
            // Inputs are copied nowhere: they are read where the daemon parsed them to. And only read: the slot must still hold
            // what the client sent when a shadow is given the same request (`Runner` normalises into buffers of its own).
            let ring = self.ring;
            let (inputs, mut outputs) = ring.job_parts(&mut job);
            session.run(&inputs, &mut outputs)
        }));
        match outcome {
            Ok(Ok(())) => self.ring.finish(job, self.index, Status::Ok, "", &wake),
            Ok(Err(e @ EngineError::Value { .. })) => {
                self.ring.finish(job, self.index, Status::Value, &e.to_string(), &wake);
            }
            // Nothing more comes of it. What is in the host is told that it ended, and nobody is told an answer.
            Ok(Err(e @ (EngineError::Device(_) | EngineError::Busy(_)))) => {
                self.ring.say(&e.to_string());
                sys::exit_now(WITHOUT_DEVICE.into())
            }
            Ok(Err(e)) => {
                self.ring.finish(job, self.index, Status::EngineError, &e.to_string(), &wake);
                // Opening the device again is no request's time, and the deadline of none.
                if runner.as_ref().is_some_and(Runner::is_spent) {
                    self.ring.say(&format!("its device has to be opened again: {e}"));
                    sys::exit_now(WITHOUT_DEVICE.into())
                }
            }
            Err(_) => {
                *runner = None;
                self.ring.say("");
                let words = WORDS.take();
                self.ring.finish(job, self.index, Status::Panicked, &words, &wake);
            }
        }
    }
}

/// Lines of reports from a host.
pub fn parse_report(line: &str) -> io::Result<Report> {
    serde_json::from_str(line).map_err(io::Error::other)
}
