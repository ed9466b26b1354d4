//! Measures the built-in engine on a model directory and prints JSON.
//!
//!     engine_bench DIR [--runs N] [--rounds N] [--follow]
//!
//! A round is N runs of the first golden case, normalisation included; the numbers are microseconds of CPU time per run
//! of the worker's thread, the median and the least over the rounds (the least is what other load on the machine moves
//! least). `process_us` is the CPU time of the whole process over the same rounds: if it is larger, other threads helped
//! or burnt time. With `--follow` each line on standard input starts one round and is answered by one line of JSON, so
//! that a script can put another engine's rounds between ours.

use inferd_engine::{AlignedBuffer, CpuEngine, Engine, NetworkFile, Runner};
use inferd_model::{Golden, MANIFEST_FILE, Manifest};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
    time::{ClockId, clock_gettime},
};
use std::{error::Error, io::BufRead, path::PathBuf, sync::Arc, time::Instant};

/// As in a host: without it a musl build measures musl's allocator.
#[global_allocator]
static ALLOCATOR: inferd_hosts::CountingAllocator = inferd_hosts::CountingAllocator;

struct Args {
    dir: PathBuf,
    runs: u32,
    rounds: u32,
    follow: bool,
}

fn args() -> Result<Args, Box<dyn Error>> {
    let mut args = Args { dir: PathBuf::new(), runs: 100, rounds: 10, follow: false };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut number =
            || given.next().ok_or("a number is missing")?.parse().map_err(Box::<dyn Error>::from);
        match arg.as_str() {
            "--runs" => args.runs = number()?,
            "--rounds" => args.rounds = number()?,
            "--follow" => args.follow = true,
            _ => args.dir = arg.into(),
        }
    }
    if args.dir.as_os_str().is_empty() || args.runs == 0 || args.rounds == 0 {
        return Err("usage: engine_bench DIR [--runs N] [--rounds N] [--follow]".into());
    }
    Ok(args)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = args()?;
    let mut result = Ok(());
    CpuEngine::new().worker(Box::new(|| result = bench(&args).map_err(|e| e.to_string())));
    result.map_err(Into::into)
}

/// One round: microseconds of CPU time of this thread and of the process, and of wall time, per run.
struct Round {
    thread: f64,
    process: f64,
    wall: f64,
}

fn bench(args: &Args) -> Result<(), Box<dyn Error>> {
    inferd_hosts::keep_scratch_on_this_thread();
    let manifest = Arc::new(Manifest::from_toml(&std::fs::read_to_string(args.dir.join(MANIFEST_FILE))?)?);
    let golden = Golden::parse(&std::fs::read(args.dir.join(&manifest.golden.file))?, &manifest)?;
    let onnx: &'static [u8] = std::fs::read(args.dir.join(&manifest.onnx.file))?.leak();

    let engine = CpuEngine::new();
    let started = Instant::now();
    let model = engine.load(NetworkFile::onnx(onnx), &manifest)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let mut runner = Runner::new(&*model, Arc::clone(&manifest))?;
    let agreement = runner.check_golden(&golden, manifest.golden.tolerance())?;

    let inputs: Vec<_> = golden.cases()[0].inputs.iter().map(|b| AlignedBuffer::copy_of(b)).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
    let mut outputs: Vec<_> = manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
    let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();

    let mut round = |runs: u32| -> Result<Round, Box<dyn Error>> {
        let (thread, process, wall) = (cpu(ClockId::CLOCK_THREAD_CPUTIME_ID)?, cpu(PROCESS)?, Instant::now());
        for _ in 0..runs {
            runner.run(&inputs, &mut outputs)?;
        }
        let per_run = 1e6 / f64::from(runs);
        Ok(Round {
            thread: (cpu(ClockId::CLOCK_THREAD_CPUTIME_ID)? - thread) * per_run,
            process: (cpu(PROCESS)? - process) * per_run,
            wall: wall.elapsed().as_secs_f64() * per_run,
        })
    };
    round(args.runs.div_ceil(10))?; // warms caches and the allocator
    if args.follow {
        for line in std::io::stdin().lock().lines() {
            line?;
            let r = round(args.runs)?;
            println!(
                "{{\"cpu_us\": {:.2}, \"process_us\": {:.2}, \"wall_us\": {:.2}}}",
                r.thread, r.process, r.wall
            );
        }
        return Ok(());
    }
    let before = getrusage(UsageWho::RUSAGE_THREAD)?;
    let rounds: Vec<Round> = (0..args.rounds).map(|_| round(args.runs)).collect::<Result<_, _>>()?;
    let waits = getrusage(UsageWho::RUSAGE_THREAD)?.voluntary_context_switches()
        - before.voluntary_context_switches();
    let [thread, process, wall] =
        [|r: &Round| r.thread, |r: &Round| r.process, |r: &Round| r.wall].map(|of| summary(&rounds, of));
    println!(
        "{{\"model\": \"{}\", \"engine\": \"{}\", \"load_ms\": {load_ms:.2}, \"golden\": {{\"cosine\": {}, \"max_abs\": {:e}}}, \
         \"runs\": {}, \"cpu_us\": {thread}, \"process_us\": {process}, \"wall_us\": {wall}, \
         \"voluntary_context_switches\": {waits}}}",
        manifest.name,
        engine.version(),
        agreement.cosine,
        agreement.max_abs,
        args.runs * args.rounds,
    );
    Ok(())
}

const PROCESS: ClockId = ClockId::CLOCK_PROCESS_CPUTIME_ID;

fn cpu(clock: ClockId) -> Result<f64, nix::Error> {
    #[allow(clippy::cast_precision_loss)] // exact for the first 104 days
    Ok(clock_gettime(clock)?.num_nanoseconds() as f64 / 1e9)
}

fn summary(rounds: &[Round], of: fn(&Round) -> f64) -> String {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    format!("{{\"median\": {:.2}, \"min\": {:.2}}}", values[values.len() / 2], values[0])
}
