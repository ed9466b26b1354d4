//! What the tests of real hosts share: models, runtimes, and ways to disturb a process.

#![allow(clippy::unwrap_used)]
#![allow(dead_code)] // each test program uses its part

use inferd_hosts::{BreakerRules, Hosts, HostsConfig, InferError, Served, State};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Runs async functions as tests, each on one thread and on two; how the program ends.
macro_rules! run_all {
    ($($name:ident),* $(,)?) => {
        $crate::common::one_at_a_time(vec![$(
            libtest_mimic::Trial::test(concat!(stringify!($name), " (one thread)"), || $crate::common::run(1, $name())),
            libtest_mimic::Trial::test(concat!(stringify!($name), " (two threads)"), || $crate::common::run(2, $name())),
        )*])
    };
}
pub(crate) use run_all;

/// One at a time: some tests measure this very process.
pub fn one_at_a_time(trials: Vec<Trial>) -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

pub fn run(threads: usize, test: impl Future<Output = ()>) -> Result<(), Failed> {
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build()?,
    };
    runtime.block_on(async {
        // Generous: it only keeps a hang from being endless.
        tokio::time::timeout(Duration::from_secs(1800), test)
            .await
            .map_err(|_| Failed::from("the test hangs"))
    })
}

pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models")
}

pub fn config() -> HostsConfig {
    HostsConfig {
        workers: 2,
        queue: 8,
        backoff_max: Duration::ZERO,
        // Tests end hosts for reasons of their own.
        breaker: BreakerRules::never(),
        ..HostsConfig::default()
    }
}

pub async fn serve(name: &str) -> (Arc<Hosts>, Arc<Served>) {
    serve_with(config(), name).await
}

pub async fn serve_with(config: HostsConfig, name: &str) -> (Arc<Hosts>, Arc<Served>) {
    let hosts = Hosts::new(config);
    let served = hosts.load(&models().join(name)).await.unwrap();
    assert_eq!(served.state(), State::Ready);
    (hosts, served)
}

/// Asks a fault model for `n` units.
pub async fn ask(served: &Arc<Served>, n: i32) -> Result<Vec<u8>, InferError> {
    let mut ticket = served.begin(None)?;
    let wide = ticket.manifest().inputs[0].byte_len() == 8;
    let input = ticket.input_mut(0);
    if wide {
        input.copy_from_slice(&i64::from(n).to_le_bytes());
    } else {
        input.copy_from_slice(&n.to_le_bytes());
    }
    let answer = ticket.run().await?;
    Ok(answer.output(0).to_vec())
}

/// Golden case 0 as a client would send it.
pub async fn golden(served: &Arc<Served>) -> Result<(), InferError> {
    let golden = served.golden();
    let mut ticket = served.begin(None)?;
    for (i, bytes) in golden.cases()[0].inputs.iter().enumerate() {
        ticket.input_mut(i).copy_from_slice(bytes);
    }
    let answer = ticket.run().await?;
    let outputs: Vec<&[u8]> = (0..answer.manifest().outputs.len()).map(|i| answer.output(i)).collect();
    golden.compare(0, &outputs, answer.manifest(), answer.tolerance()).expect("a right answer");
    Ok(())
}

pub async fn pid(served: &Arc<Served>) -> Pid {
    loop {
        if let Some(pid) = served.snapshot().host_pid {
            return Pid::from_raw(i32::try_from(pid).unwrap());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Stops a process, and waits until every thread of it really stands still: one on another core may go on for a moment.
pub async fn freeze(pid: Pid) {
    kill(pid, Signal::SIGSTOP).unwrap();
    let stopped = |task: &Path| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    let tasks = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|t| t.unwrap().path());
    while !tasks().all(|t| stopped(&t)) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until another host than `old` serves.
pub async fn replaced(served: &Arc<Served>, old: Pid) {
    while served.state() != State::Ready || pid(served).await == old {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub fn ends(served: &Arc<Served>, how: &str) -> u64 {
    served.snapshot().ends.iter().find(|(name, _)| *name == how).unwrap().1
}

/// A copy of a model directory that a test may damage.
pub fn copy(name: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(models().join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

/// Replaces a file of a model directory, and its digest in the manifest.
pub fn forge(dir: &Path, key: &str, content: &[u8]) {
    use sha2::{Digest, Sha256};
    let path = dir.join("manifest.toml");
    let manifest = inferd_model::Manifest::from_toml(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let (file, old) = match key {
        "onnx" => (&manifest.onnx.file, &manifest.onnx.sha256),
        _ => (&manifest.golden.file, &manifest.golden.sha256),
    };
    std::fs::write(dir.join(file), content).unwrap();
    let new: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    let text = std::fs::read_to_string(&path).unwrap().replace(old, &new);
    std::fs::write(&path, text).unwrap();
}

/// (resident bytes, descriptors) of this process.
pub fn usage() -> (u64, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * 4096, std::fs::read_dir("/proc/self/fd").unwrap().count())
}

/// Runs `once` so many times; nine tenths of them may not need more than the first tenth but for noise.
pub async fn stays_flat(times: usize, mut once: impl AsyncFnMut()) {
    for _ in 0..times / 10 {
        once().await;
    }
    let (memory, descriptors) = usage();
    for _ in times / 10..times {
        once().await;
    }
    let (memory_after, descriptors_after) = usage();
    let grown = memory_after.saturating_sub(memory);
    assert!(grown < 1 << 20, "{grown} bytes more after {times} rounds (from {memory})");
    assert!(descriptors_after <= descriptors + 2, "{descriptors} descriptors became {descriptors_after}");
}
