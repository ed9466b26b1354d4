//! The chip: a thread that takes a frame of every input, computes, and hands a frame to every output.

use crate::container::{Page, Stream};
use crate::control::{self, FrameFault};
use hailort_abi::types::FORMAT_TYPE_FLOAT32;
use inferd_engine::{AlignedBuffer, CpuEngine, Engine as _, NetworkFile};
use inferd_model::{Budget, DType, EngineKind, FileRef, GoldenRef, Manifest, SCHEMA, Task, TensorSpec};
use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often something that has no event is looked at.
pub const LOOK: Duration = Duration::from_millis(5);

/// The queues of a network on the chip. They belong to the network, not to its streams: a frame that is late is there for whoever reads
/// next, through new streams too. Only closing the device empties them. (The worst the real library might do; see the README.)
pub struct Core {
    pub page: Arc<Page>,
    /// Locked while a frame of anybody who shares the chip is computed: it is one chip.
    turn: Option<File>,
    /// The chip was lost under the service: this network is on it no more.
    gone: AtomicBool,
    queues: Mutex<Queues>,
    moved: Condvar,
}

struct Queues {
    inputs: Vec<VecDeque<Vec<u8>>>,
    outputs: Vec<VecDeque<Answer>>,
    shut_down: bool,
    closed: bool,
}

/// A frame for one output.
#[derive(Clone)]
struct Answer {
    bytes: Vec<u8>,
    nan: bool,
}

/// Why a frame could not be sent or fetched.
pub enum Stop {
    Timeout,
    Aborted,
    Lost,
    Hung,
}

impl Core {
    pub fn start(page: Arc<Page>, onnx: &[u8], shared: bool) -> Result<Arc<Self>, String> {
        let turn = || File::create(control::beside(".turn")).map_err(|e| e.to_string());
        let core = Arc::new(Self {
            turn: shared.then(turn).transpose()?,
            gone: AtomicBool::new(false),
            queues: Mutex::new(Queues {
                inputs: page.inputs.iter().map(|_| VecDeque::new()).collect(),
                outputs: page.outputs.iter().map(|_| VecDeque::new()).collect(),
                shut_down: false,
                closed: false,
            }),
            moved: Condvar::new(),
            page,
        });
        let onnx: &'static [u8] = Box::leak(onnx.to_vec().into_boxed_slice());
        let (tell, told) = std::sync::mpsc::channel();
        let chip = core.clone();
        std::thread::Builder::new()
            .name("chip".into())
            .spawn(move || {
                let engine = CpuEngine::new();
                let life = Box::new(|| chip.run(onnx, &tell));
                // A panic of the engine is a fault of the test's network.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.worker(life))).is_err() {
                    std::process::abort();
                }
            })
            .map_err(|e| e.to_string())?;
        told.recv().map_err(|e| e.to_string())??;
        Ok(core)
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames under way are aborted, and so are those that come.
    pub fn shut_down(&self) {
        self.queues().shut_down = true;
        self.moved.notify_all();
    }

    /// The chip is lost, whatever comes.
    pub fn is_gone(&self) {
        self.gone.store(true, SeqCst);
        self.moved.notify_all();
    }

    /// The chip is closed.
    pub fn close(&self) {
        let mut queues = self.queues();
        queues.closed = true;
        queues.shut_down = true;
        drop(queues);
        self.moved.notify_all();
    }

    /// Waits for `ready`, at most so long, as long as the chip is well.
    fn wait<T>(&self, timeout: Duration, ready: impl Fn(&mut Queues) -> Option<T>) -> Result<T, Stop> {
        let until = Instant::now() + timeout;
        let mut queues = self.queues();
        loop {
            let faults = control::read().1;
            if queues.shut_down || (faults.shut_down && !faults.stuck) {
                return Err(Stop::Aborted);
            }
            if faults.hung {
                return Err(Stop::Hung);
            }
            if self.gone.load(SeqCst) || (faults.lost && !faults.stuck) {
                return Err(Stop::Lost);
            }
            if !faults.stuck {
                if let Some(done) = ready(&mut queues) {
                    self.moved.notify_all();
                    return Ok(done);
                }
                if Instant::now() >= until {
                    return Err(Stop::Timeout);
                }
            }
            queues = self.moved.wait_timeout(queues, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a frame; waits while `queue` of them wait.
    pub fn write(
        &self,
        at: usize,
        frame: &[u8],
        format: u32,
        queue: usize,
        timeout: Duration,
    ) -> Result<(), Stop> {
        let stream = &self.page.inputs[at];
        let bytes: Vec<u8> = match format {
            FORMAT_TYPE_FLOAT32 => floats(frame).map(|x| stream.quantise(x)).collect(),
            _ => frame.to_vec(),
        };
        self.wait(timeout, |queues| {
            let inputs = &mut queues.inputs[at];
            (inputs.len() < queue).then(|| inputs.push_back(bytes.clone()))
        })
    }

    /// Fetches a frame. When none came in time, what is there by then is thrown away, as the library does.
    pub fn read(&self, at: usize, frame: &mut [u8], format: u32, timeout: Duration) -> Result<(), Stop> {
        let stream = &self.page.outputs[at];
        match self.wait(timeout, |queues| queues.outputs[at].pop_front()) {
            Ok(answer) => {
                if format == FORMAT_TYPE_FLOAT32 {
                    for (to, &q) in frame.chunks_exact_mut(4).zip(&answer.bytes) {
                        let x = if answer.nan { f32::NAN } else { stream.dequantise(q) };
                        to.copy_from_slice(&x.to_le_bytes());
                    }
                } else {
                    frame.copy_from_slice(&answer.bytes);
                }
                Ok(())
            }
            Err(Stop::Timeout) => {
                self.queues().outputs[at].clear();
                Err(Stop::Timeout)
            }
            Err(other) => Err(other),
        }
    }

    fn run(&self, onnx: &'static [u8], tell: &std::sync::mpsc::Sender<Result<(), String>>) {
        let manifest = manifest(&self.page);
        let made =
            CpuEngine::new().load(NetworkFile::onnx(onnx), &manifest).and_then(|model| model.session());
        let mut session = match made {
            Ok(session) => {
                let _ = tell.send(Ok(()));
                session
            }
            Err(e) => {
                let _ = tell.send(Err(e.to_string()));
                return;
            }
        };
        let buffers = |specs: &[TensorSpec]| -> Vec<AlignedBuffer> {
            specs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect()
        };
        let (mut inputs, mut outputs) = (buffers(&manifest.inputs), buffers(&manifest.outputs));
        let mut counted = Counted::default();
        let mut before: Option<Vec<Answer>> = None;
        while let Some(frames) = self.next() {
            let fault = counted.next();
            if fault.abort {
                std::process::abort();
            }
            if fault.segv {
                // SAFETY: none: it is what was asked for.
                unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
            }
            for ((stream, frame), to) in self.page.inputs.iter().zip(&frames).zip(&mut inputs) {
                fill(stream, frame, to.as_mut_bytes());
            }
            let given: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
            let mut room: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
            let turn = self.turn.as_ref().map(|file| {
                // Waits for those before.
                let _ = file.lock();
                file
            });
            let done = session.run(&given, &mut room);
            if let Some(file) = turn {
                let _ = file.unlock();
            }
            if let Err(e) = done {
                eprintln!("hailort double: the network does not run: {e}");
                std::process::abort();
            }
            let answer = |stream: &Stream| {
                let at = manifest.outputs.iter().position(|spec| spec.name == stream.tensor);
                let tensor = &outputs[at.expect("the manifest was made of the streams")];
                Answer { bytes: fetch(stream, tensor.as_bytes()), nan: fault.nan }
            };
            let mut answers: Vec<Answer> = self.page.outputs.iter().map(answer).collect();
            if let (true, Some(before)) = (fault.repeats, &before) {
                answers.clone_from(before);
            }
            before = Some(answers.clone());
            std::thread::sleep(Duration::from_millis(fault.delay_ms));
            if fault.dropped {
                continue;
            }
            let mut queues = self.queues();
            for (queue, answer) in queues.outputs.iter_mut().zip(answers) {
                queue.push_back(answer);
            }
            drop(queues);
            self.moved.notify_all();
        }
    }

    /// The next frame of every input; `None` when the chip is closed.
    fn next(&self) -> Option<Vec<Vec<u8>>> {
        let mut queues = self.queues();
        loop {
            if queues.closed {
                return None;
            }
            if queues.inputs.iter().all(|q| !q.is_empty()) {
                let frames = queues.inputs.iter_mut().filter_map(VecDeque::pop_front).collect();
                drop(queues);
                self.moved.notify_all();
                return Some(frames);
            }
            queues = self.moved.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Frames since the file of faults was written.
#[derive(Default)]
struct Counted {
    text: String,
    frames: u64,
}

impl Counted {
    fn next(&mut self) -> FrameFault {
        let (text, faults) = control::read();
        if text != self.text {
            *self = Self { text, frames: 0 };
        }
        let frame = self.frames;
        self.frames += 1;
        let hit = |f: &&FrameFault| frame >= f.after && f.count.is_none_or(|n| frame - f.after < n);
        faults.frames.iter().find(hit).cloned().unwrap_or_default()
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

/// A frame of the chip as the network's tensor.
fn fill(stream: &Stream, frame: &[u8], to: &mut [u8]) {
    for (&q, place) in frame.iter().zip(stream.places()) {
        match stream.dtype {
            DType::Fp32 => to[4 * place..][..4].copy_from_slice(&stream.dequantise(q).to_le_bytes()),
            _ => to[place] = q,
        }
    }
}

/// The network's tensor as a frame of the chip.
fn fetch(stream: &Stream, bytes: &[u8]) -> Vec<u8> {
    let at = |place: usize| match stream.dtype {
        DType::Fp32 => {
            let b = &bytes[4 * place..][..4];
            stream.quantise(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        }
        _ => bytes[place],
    };
    stream.places().into_iter().map(at).collect()
}

/// What the built-in engine wants to know of the network.
fn manifest(page: &Page) -> Manifest {
    let file = || FileRef { file: "network".into(), sha256: "0".repeat(64) };
    // Several streams may show one tensor.
    let specs = |streams: &[Stream]| -> Vec<TensorSpec> {
        let mut all: Vec<TensorSpec> =
            streams.iter().map(|s| TensorSpec::plain(&s.tensor, s.dtype, &s.dims)).collect();
        all.dedup_by(|a, b| a.name == b.name);
        all
    };
    let text = serde_json::json!({
        "schema": SCHEMA, "name": "double", "version": "1", "task": Task::Tensor, "engines": [EngineKind::Cpu],
        "budget": Budget { memory_mib: 1024, deadline_ms: 10_000, queue: None, workers: None },
        "onnx": file(),
        "golden": GoldenRef { file: "golden".into(), sha256: "0".repeat(64), cosine: 0.5, max_abs: 1.0 },
        "inputs": specs(&page.inputs), "outputs": specs(&page.outputs),
    });
    serde_json::from_value(text).expect("a manifest of our own making")
}
