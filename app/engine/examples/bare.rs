//! The bare calls that `tests/perf/engines.py` compares the hosts with.
//!
//!     bare DIR cpu|ort|library [--network FILE] [--intra N]
//!
//! `cpu` and `ort` are our engines called directly, as a host's worker calls them. `library` is ONNX Runtime without our engine: the
//! options of `ort.rs`, inputs and outputs bound once, nothing copied; `--intra` gives its one inference so many threads. The last
//! two open the library that `INFERD_ORT_LIB` names. `--network` runs another file of the directory in place of its own.
//!
//! Each line on standard input, `THREADS RUNS`, is a round: so many threads (1 or 2), each with a session of its own, run the
//! first golden case so often. It is answered by a line of JSON: microseconds of CPU time of the whole process per inference, and the median
//! latency.

#![allow(clippy::unwrap_used)]

use inferd_engine::{AlignedBuffer, CpuEngine, Engine, Model, NetworkFile, OrtEngine, Runner};
use inferd_model::{DType, Golden, MANIFEST_FILE, Manifest, Tolerance};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use ort::environment::Environment;
use ort::session::{Session, builder::GraphOptimizationLevel};
use ort::value::Tensor;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// As in a host.
#[global_allocator]
static ALLOCATOR: inferd_hosts::CountingAllocator = inferd_hosts::CountingAllocator;

/// Most sessions that run at once.
const MOST: usize = 2;

/// A model and one of its networks.
struct Case {
    manifest: Arc<Manifest>,
    golden: Golden,
    onnx: &'static [u8],
    tolerance: Tolerance,
    intra: usize,
}

/// One worker's end of the orders: how often to run, and what is told when it did.
struct Orders {
    runs: Receiver<usize>,
    done: Sender<Vec<Duration>>,
    together: Arc<Barrier>,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (dir, what) = (PathBuf::from(args.next().unwrap()), args.next().unwrap());
    let (mut network, mut intra) = (None, 1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--network" => network = args.next(),
            "--intra" => intra = args.next().unwrap().parse().unwrap(),
            _ => panic!("usage: bare DIR cpu|ort|library [--network FILE] [--intra N]"),
        }
    }
    let manifest = Manifest::from_toml(&std::fs::read_to_string(dir.join(MANIFEST_FILE)).unwrap()).unwrap();
    let golden = std::fs::read(dir.join(&manifest.golden.file)).unwrap();
    let variant = manifest.variants.iter().find(|v| Some(&v.file) == network.as_ref());
    let file = variant.map_or(&manifest.onnx.file, |v| &v.file);
    let case = Case {
        golden: Golden::parse(&golden, &manifest).unwrap(),
        onnx: std::fs::read(dir.join(file)).unwrap().leak(),
        tolerance: variant.map_or(manifest.golden.tolerance(), |v| v.golden),
        manifest: Arc::new(manifest),
        intra,
    };
    match what.as_str() {
        "cpu" => engine(&CpuEngine::new(), &case),
        "ort" => engine(&OrtEngine::new(library(), None), &case),
        "library" => follow(if case.intra > 1 { 1 } else { MOST }, |orders| bound(&case, orders)),
        _ => panic!("cpu, ort or library"),
    }
}

fn library() -> Option<PathBuf> {
    std::env::var_os("INFERD_ORT_LIB").map(PathBuf::from)
}

/// One of our engines, called as a host calls it.
fn engine(engine: &dyn Engine, case: &Case) {
    let model = engine.load(NetworkFile::onnx(case.onnx), &case.manifest).unwrap();
    follow(MOST, |orders| engine.worker(Box::new(|| runner(&*model, case, orders))));
}

fn runner(model: &dyn Model, case: &Case, orders: Orders) {
    inferd_hosts::keep_scratch_on_this_thread();
    let mut runner = Runner::new(model, case.manifest.clone()).unwrap();
    runner.check_golden(&case.golden, case.tolerance).unwrap();
    let inputs: Vec<_> = case.golden.cases()[0].inputs.iter().map(|b| AlignedBuffer::copy_of(b)).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
    let mut outputs: Vec<_> =
        case.manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
    let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
    orders.serve(|| runner.run(&inputs, &mut outputs).unwrap());
}

/// ONNX Runtime itself, with the options of our engine.
fn bound(case: &Case, orders: Orders) {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    let environment = ENVIRONMENT
        .get_or_init(|| ort::init_from(library().unwrap()).unwrap().with_telemetry(false).build().unwrap());
    let mut session = Session::builder(environment)
        .unwrap()
        .with_optimization_level(GraphOptimizationLevel::All)
        .unwrap()
        .with_intra_threads(case.intra)
        .unwrap()
        .with_inter_threads(1)
        .unwrap()
        .with_intra_op_spinning(false)
        .unwrap()
        .with_execution_providers([ort::ep::CPU::default().with_arena_allocator(true).build()])
        .unwrap()
        .commit_from_memory(case.onnx)
        .unwrap();
    let shape = |dims: &[u32]| dims.iter().map(|&d| d as usize).collect::<Vec<_>>();
    let mut binding = session.create_binding().unwrap();
    for (spec, bytes) in case.manifest.inputs.iter().zip(&case.golden.cases()[0].inputs) {
        assert!(spec.dtype == DType::Fp32 && spec.normalization.is_none(), "{}", spec.name);
        let values = <[f32]>::ref_from_bytes(AlignedBuffer::copy_of(bytes).as_bytes()).unwrap().to_vec();
        let tensor = Tensor::from_array((shape(&spec.shape), values)).unwrap();
        binding.bind_input(&spec.name, &tensor).unwrap();
    }
    for spec in &case.manifest.outputs {
        let tensor = Tensor::<f32>::new(&ort::memory::Allocator::default(), shape(&spec.shape)).unwrap();
        binding.bind_output(&spec.name, tensor).unwrap();
    }
    {
        let answers = session.run_binding(&binding).unwrap();
        let answers: Vec<AlignedBuffer> = case
            .manifest
            .outputs
            .iter()
            .map(|s| {
                AlignedBuffer::copy_of(answers[&*s.name].try_extract_tensor::<f32>().unwrap().1.as_bytes())
            })
            .collect();
        let answers: Vec<&[u8]> = answers.iter().map(AlignedBuffer::as_bytes).collect();
        case.golden.compare(0, &answers, &case.manifest, case.tolerance).unwrap();
    }
    orders.serve(|| {
        session.run_binding(&binding).unwrap();
    });
}

impl Orders {
    fn serve(self, mut call: impl FnMut()) {
        let _ = self.done.send(vec![]);
        for runs in self.runs {
            self.together.wait();
            let mut latencies = Vec::with_capacity(runs);
            for _ in 0..runs {
                let began = Instant::now();
                call();
                latencies.push(began.elapsed());
            }
            let _ = self.done.send(latencies);
        }
    }
}

/// The other end: orders, and what is told of them.
type Hired = (Sender<usize>, Receiver<Vec<Duration>>);

/// Keeps as many workers as there may be, gives them the rounds that standard input asks for, and tells what they took.
fn follow(most: usize, work: impl Fn(Orders) + Sync) {
    let barriers: Vec<_> = (1..=most).map(|n| Arc::new(Barrier::new(n))).collect();
    std::thread::scope(|threads| {
        // For each number of threads workers of its own: whoever waits costs nothing.
        let crews: Vec<Vec<Hired>> = barriers
            .iter()
            .enumerate()
            .map(|(i, together)| {
                let hire = |_| {
                    let ((order, runs), (done, told)) = (channel(), channel());
                    let orders = Orders { runs, done, together: together.clone() };
                    let work = &work;
                    threads.spawn(move || work(orders));
                    told.recv().unwrap();
                    (order, told)
                };
                (0..=i).map(hire).collect()
            })
            .collect();
        println!("{{\"ready\": true}}");
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            let (crew, runs) = line.split_once(' ').unwrap();
            let (crew, runs): (usize, usize) = (crew.parse().unwrap(), runs.parse().unwrap());
            let before = cpu();
            for (order, _) in &crews[crew - 1] {
                order.send(runs).unwrap();
            }
            let mut latencies: Vec<Duration> =
                crews[crew - 1].iter().flat_map(|(_, told)| told.recv().unwrap()).collect();
            let cpu_us = (cpu() - before) / latencies.len() as f64;
            latencies.sort_unstable();
            let p50 = latencies[(latencies.len() - 1) / 2].as_secs_f64() * 1e6;
            println!("{{\"cpu_us\": {cpu_us:.2}, \"p50_us\": {p50:.2}}}");
        }
    });
}

/// Microseconds of CPU time of this process.
fn cpu() -> f64 {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().num_nanoseconds() as f64 / 1e3
}
