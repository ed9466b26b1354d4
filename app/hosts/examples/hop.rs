//! What isolation costs: the bare engine call against the same call through an engine host, in one process image.
//!
//! `cargo run --release -p inferd-hosts --example hop -- MODEL_DIR [SECONDS]` prints one JSON object: CPU microseconds per
//! inference (all processes together), inferences per second and latency quantiles, for the engine called directly by one
//! thread and by one per core, through the ring with 1, 8 and 64 requests in flight, the same through a host whose system calls are
//! not limited, and with 1 and 64 while the same model follows as a shadow (CPU time of the shadow's thread included, of its host not). Rounds are interleaved and each figure is the
//! best of its rounds, so that another program on the machine disturbs all of them alike.
//!
//! `hop MODEL_DIR count N [shadow] [unfiltered]` sends N requests one after the other and ends: for counting instructions
//! (`valgrind --tool=callgrind`; the difference between two N is free of the start), and for timing from outside.
//!
//! `hop follow MODEL_DIR...` serves all of them, each on the first rung of its manifest, and follows commands: a line
//! `NAME FLIGHTS RUNS` on standard input makes so many requests, so many in flight, and is answered by the figures as JSON. `INFERD_ENGINE_HOST`
//! names the program that has the engine `ort`, `INFERD_ORT_LIB` its library. So a script puts rounds of other programs between ours.

#![allow(clippy::unwrap_used)]

use inferd_engine::{AlignedBuffer, CpuEngine, Engine, NetworkFile, Runner};
use inferd_hosts::{CountingAllocator, Hosts, HostsConfig, ModelSource, Served, Shadow, ShadowPolicy};
use inferd_model::{EngineKind, Golden, Manifest};
use nix::sys::resource::{UsageWho, getrusage};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    match args.next() {
        Some(first) if first == "engine-host" => inferd_hosts::engine_host_main(),
        Some(first) if first == "follow" => {
            follow(&args.map(PathBuf::from).collect::<Vec<_>>());
            std::process::ExitCode::SUCCESS
        }
        Some(dir) if args.next_if(|a| a == "count").is_some() => {
            let requests = args.next().unwrap().parse().unwrap();
            let how: Vec<String> = args.collect();
            let asked = |what: &str| how.iter().any(|h| h == what);
            count(Path::new(&dir), requests, asked("shadow"), !asked("unfiltered"));
            std::process::ExitCode::SUCCESS
        }
        Some(dir) => {
            let seconds = args.next().map_or(2.0, |s| s.parse().unwrap());
            compare(Path::new(&dir), Duration::from_secs_f64(seconds / 4.0));
            std::process::ExitCode::SUCCESS
        }
        None => {
            eprintln!("usage: hop MODEL_DIR [SECONDS] | hop MODEL_DIR count N | hop follow MODEL_DIR...");
            std::process::ExitCode::from(2)
        }
    }
}

#[derive(Clone, Default)]
struct Figures {
    runs: u64,
    seconds: f64,
    cpu_seconds: f64,
    latencies: Vec<Duration>,
}

impl Figures {
    fn cpu_us(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.runs as f64
    }

    fn json(&mut self) -> String {
        self.latencies.sort_unstable();
        let at = |p: usize| self.latencies[(self.latencies.len() - 1) * p / 100].as_secs_f64() * 1e6;
        format!(
            "{{\"cpu_us\": {:.1}, \"per_second\": {:.0}, \"p50_us\": {:.0}, \"p99_us\": {:.0}}}",
            self.cpu_us(),
            self.runs as f64 / self.seconds,
            at(50),
            at(99)
        )
    }
}

/// CPU seconds of this process and, where `/proc` still knows it, of the host.
fn cpu(host: Option<u32>) -> f64 {
    let own = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    let mut total = seconds(own.user_time()) + seconds(own.system_time());
    if let Some(pid) = host {
        // The sum over threads, in nanoseconds; /proc/PID/stat has only 10 ms ticks.
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            total += stat.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
        }
    }
    total
}

fn bare(dir: &Path, threads: usize, time: Duration) -> Figures {
    let manifest = Manifest::from_toml(&std::fs::read_to_string(dir.join("manifest.toml")).unwrap()).unwrap();
    let onnx: &'static [u8] = std::fs::read(dir.join(&manifest.onnx.file)).unwrap().leak();
    let golden = std::fs::read(dir.join(&manifest.golden.file)).unwrap();
    let golden = Golden::parse(&golden, &manifest).unwrap();
    let model = CpuEngine::new().load(NetworkFile::onnx(onnx), &manifest).unwrap();
    let manifest = Arc::new(manifest);
    let one = || {
        inferd_hosts::keep_scratch_on_this_thread();
        let mut runner = Runner::new(&*model, manifest.clone()).unwrap();
        runner.check_golden(&golden, manifest.golden.tolerance()).unwrap();
        let inputs: Vec<_> = golden.cases()[0].inputs.iter().map(|v| AlignedBuffer::copy_of(v)).collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
        let mut outputs: Vec<_> =
            manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
        let mut latencies = Vec::with_capacity(1 << 20);
        let begin = Instant::now();
        while begin.elapsed() < time {
            let t = Instant::now();
            let mut out: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
            runner.run(&inputs, &mut out).unwrap();
            latencies.push(t.elapsed());
        }
        latencies
    };
    let (begin, cpu_before) = (Instant::now(), cpu(None));
    let latencies: Vec<Duration> = std::thread::scope(|s| {
        let worker = || {
            let mut latencies = vec![];
            CpuEngine::new().worker(Box::new(|| latencies = one()));
            latencies
        };
        let all: Vec<_> = (0..threads).map(|_| s.spawn(worker)).collect();
        all.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    Figures {
        runs: latencies.len() as u64,
        seconds: begin.elapsed().as_secs_f64(),
        cpu_seconds: cpu(None) - cpu_before,
        latencies,
    }
}

/// So many requests at a time, until that time is over or each flight has made so many.
async fn hosted(served: &Arc<Served>, flights: usize, time: Duration, runs: usize) -> Figures {
    let host = served.snapshot().host_pid;
    let (begin, cpu_before) = (Instant::now(), cpu(host));
    let clients: Vec<_> = (0..flights)
        .map(|_| {
            let served = served.clone();
            tokio::spawn(async move {
                let golden = served.golden();
                let mut latencies = Vec::with_capacity(1 << 16);
                while begin.elapsed() < time && latencies.len() < runs {
                    let t = Instant::now();
                    let mut ticket = served.begin(None).unwrap();
                    for (i, bytes) in golden.cases()[0].inputs.iter().enumerate() {
                        ticket.input_mut(i).copy_from_slice(bytes);
                    }
                    std::hint::black_box(ticket.run().await.unwrap().output(0));
                    latencies.push(t.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = vec![];
    for c in clients {
        latencies.extend(c.await.unwrap());
    }
    Figures {
        runs: latencies.len() as u64,
        seconds: begin.elapsed().as_secs_f64(),
        cpu_seconds: cpu(host) - cpu_before,
        latencies,
    }
}

/// The same model beside itself.
async fn shadow(hosts: &Hosts, dir: &Path) -> Shadow {
    let candidate = hosts.prepare(ModelSource::directory(dir).unwrap()).await.unwrap();
    hosts.start_shadow(candidate, ShadowPolicy::default()).unwrap_or_else(|(e, _)| panic!("{e}"))
}

fn count(dir: &Path, requests: u64, shadowed: bool, seccomp: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Not /proc/self/exe: under valgrind that is valgrind.
        let program = std::env::current_exe().unwrap();
        let hosts = Hosts::new(HostsConfig { program, workers: 1, seccomp, ..HostsConfig::default() });
        let served = hosts.load(dir).await.unwrap();
        let shadow = if shadowed { Some(shadow(&hosts, dir).await) } else { None };
        let golden = served.golden();
        for _ in 0..requests {
            let mut ticket = served.begin(None).unwrap();
            for (i, bytes) in golden.cases()[0].inputs.iter().enumerate() {
                ticket.input_mut(i).copy_from_slice(bytes);
            }
            std::hint::black_box(ticket.run().await.unwrap().output(0));
        }
        println!("{:?}", shadow.map(|s| s.report()));
        hosts.shutdown().await;
    });
}

fn follow(dirs: &[PathBuf]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let program = std::env::var_os("INFERD_ENGINE_HOST").map(|p| (EngineKind::Ort, PathBuf::from(p)));
    let library = std::env::var_os("INFERD_ORT_LIB").map(|l| ("INFERD_ORT_LIB".to_owned(), l));
    runtime.block_on(async {
        let hosts = Hosts::new(HostsConfig {
            engines: program.into_iter().collect(),
            environment: library.into_iter().collect(),
            request_timeout: Duration::from_secs(60),
            ..HostsConfig::default()
        });
        let mut models = BTreeMap::new();
        for dir in dirs {
            let served = hosts.load(dir).await.unwrap();
            let (name, engine) = (served.manifest().name.to_string(), served.engine());
            let rung = engine.rung.map(|r| r.to_string()).unwrap_or_default();
            println!("{{\"name\": \"{name}\", \"rung\": \"{rung}\", \"version\": \"{}\"}}", engine.version);
            models.insert(name, served);
        }
        println!("{{\"ready\": true}}");
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            let [name, flights, runs] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (flights, runs): (usize, usize) = (flights.parse().unwrap(), runs.parse().unwrap());
            println!("{}", hosted(&models[name], flights, Duration::MAX, runs).await.json());
        }
        hosts.shutdown().await;
    });
}

fn compare(dir: &Path, round: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cores = HostsConfig::default().workers;
    runtime.block_on(async {
        let hosts = Hosts::new(HostsConfig::default());
        let served = hosts.load(dir).await.unwrap();
        let unfiltered = Hosts::new(HostsConfig { seccomp: false, ..HostsConfig::default() });
        let free = unfiltered.load(dir).await.unwrap();
        let names = [
            "bare_1",
            "bare_cores",
            "hosted_1",
            "unfiltered_1",
            "hosted_8",
            "unfiltered_8",
            "hosted_64",
            "unfiltered_64",
            "shadowed_1",
            "shadowed_64",
        ];
        let mut best: Vec<Option<Figures>> = vec![None; names.len()];
        for _ in 0..4 {
            let mut figures = vec![
                bare(dir, 1, round),
                bare(dir, cores, round),
                hosted(&served, 1, round, usize::MAX).await,
                hosted(&free, 1, round, usize::MAX).await,
                hosted(&served, 8, round, usize::MAX).await,
                hosted(&free, 8, round, usize::MAX).await,
                hosted(&served, 64, round, usize::MAX).await,
                hosted(&free, 64, round, usize::MAX).await,
            ];
            let shadow = shadow(&hosts, dir).await;
            for flights in [1, 64] {
                figures.push(hosted(&served, flights, round, usize::MAX).await);
            }
            drop(shadow);
            for (b, f) in best.iter_mut().zip(figures) {
                if b.as_ref().is_none_or(|b| f.cpu_us() < b.cpu_us()) {
                    *b = Some(f);
                }
            }
        }
        let parts: Vec<String> =
            names.iter().zip(best).map(|(n, f)| format!("  \"{n}\": {}", f.unwrap().json())).collect();
        println!("{{\n  \"cores\": {cores},\n{}\n}}", parts.join(",\n"));
        unfiltered.shutdown().await;
        hosts.shutdown().await;
    });
}
