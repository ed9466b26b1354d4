//! Two engines under one name: falling back, going back, and a device that is got back step by step.
//!
//! The test program is the host of both. The second engine is the built-in one under another name, told what to do by a file that
//! the model's summary names.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use inferd_engine::{CpuEngine, Engine, EngineError, Model, NetworkFile, Session};
use inferd_hosts::{
    BreakerRules, BreakerState, CountingAllocator, Device, HostEvent, Hosts, HostsConfig, Ladder, Served,
    State, engine_host_main_with,
};
use inferd_model::{EngineKind, MadeFor, Manifest, NetworkFormat, Precision, Rung, Tolerance, Variant};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("engine-host") {
        return engine_host_main_with(|kind| match kind {
            EngineKind::Cpu => Some(Box::new(CpuEngine::new())),
            EngineKind::Ort => Some(Box::new(Second(CpuEngine::new(), EngineKind::Ort))),
            EngineKind::Hailo => Some(Box::new(Second(CpuEngine::new(), EngineKind::Hailo))),
            EngineKind::Tensorrt => Some(Box::new(Second(CpuEngine::new(), EngineKind::Tensorrt))),
        });
    }
    run_all![
        the_preferred_engine_serves,
        building_an_engine_is_shown,
        an_engine_this_image_lacks_is_no_fallback,
        an_engine_that_cannot_start_is_replaced_and_gone_back_to,
        an_engine_whose_breaker_opens_is_replaced_and_gone_back_to,
        a_preferred_rung_goes_before_the_manifests_order,
        a_preferred_rung_that_does_not_come_up_is_fallen_back_from,
        a_fallback_must_pass_the_golden_vectors_too,
        without_any_engine_the_reason_is_the_preferred_ones,
        a_host_of_the_fallback_that_ends_is_started_again,
        a_lost_device_is_not_held_against_the_model,
        who_falls_while_a_better_rung_is_tried_is_replaced_at_once,
        a_compiled_network_that_is_refused_refuses_what_is_new,
        a_device_that_has_to_be_opened_again_is_opened_by_the_next_host,
        a_host_that_is_dead_inside_is_replaced_where_there_is_no_other_rung,
        a_host_that_is_well_outlives_a_breaker_that_bad_requests_open,
        a_device_is_recovered_while_the_fallback_serves,
        models_that_wait_for_one_device_take_each_step_once,
        a_device_that_stays_lost_costs_two_reboots_a_day_at_most,
        a_model_that_is_refused_touches_no_device,
        a_device_without_a_fallback_is_recovered_too,
        every_rung_has_its_own_network_breaker_and_tolerance,
        a_damaged_file_of_a_rung_that_can_be_run_is_refused,
        a_variant_the_engine_refuses_leaves_its_place_to_the_next_rung,
    ]
}

// ------------------------------------------------------------------------------------------------------ the engine

/// What the file says the engine should do.
fn told(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// One of the engines that are told: `ort` by the file, those that run compiled networks by the one beside it.
struct Second(CpuEngine, EngineKind);

impl Engine for Second {
    fn kind(&self) -> EngineKind {
        self.1
    }

    fn version(&self) -> String {
        "second 1.0.0".into()
    }

    fn device(&self) -> String {
        "second".into()
    }

    fn must_build(&self, _: NetworkFile, manifest: &Manifest) -> bool {
        told(&manifest.summary) == "build"
    }

    fn load(&self, network: NetworkFile, manifest: &Manifest) -> Result<Box<dyn Model>, EngineError> {
        let file = match self.1 {
            EngineKind::Hailo | EngineKind::Tensorrt => format!("{}-chip", manifest.summary),
            _ => manifest.summary.clone(),
        };
        let network = NetworkFile::onnx(network.bytes);
        // As long as it is told so.
        while ["build", "hang"].contains(&told(&file).as_str()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        match told(&file).as_str() {
            "lost" => return Err(EngineError::Device("it does not answer".into())),
            "refuse" => return Err(EngineError::Load("not this one".into())),
            "library" => return Err(EngineError::Library("it is of another version".into())),
            "exit" => std::process::exit(77),
            _ => {}
        }
        Ok(Box::new(SecondModel(self.0.load(network, manifest)?, file)))
    }

    fn worker(&self, life: Box<dyn FnOnce() + Send + '_>) {
        self.0.worker(life);
    }
}

struct SecondModel(Box<dyn Model>, String);

impl Model for SecondModel {
    fn session(&self) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(SecondSession(self.0.session()?, self.1.clone())))
    }
}

struct SecondSession(Box<dyn Session>, String);

/// This process computes no more, whatever it is told.
static DEAD: AtomicBool = AtomicBool::new(false);

/// Its device has to be opened again.
static SPENT: AtomicBool = AtomicBool::new(false);

impl Session for SecondSession {
    fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        if told(&self.1) == "die inside" {
            DEAD.store(true, Relaxed);
        }
        if DEAD.load(Relaxed) {
            return Err(EngineError::Run("the context is lost".into()));
        }
        match told(&self.1).as_str() {
            "late" => {
                SPENT.store(true, Relaxed);
                return Err(EngineError::Run("no answer in time".into()));
            }
            "picky" if inputs[0].iter().all(|&b| b == 0) => {
                return Err(EngineError::Run("not these".into()));
            }
            "fail" => return Err(EngineError::Run("as it was told".into())),
            "abort" => std::process::abort(),
            "lost" => return Err(EngineError::Device("it does not answer".into())),
            // A hundredth off: what a variant may be.
            "off" => {
                self.0.run(inputs, outputs)?;
                // Its first output is FP32.
                for value in outputs[0].chunks_exact_mut(4) {
                    let off = f32::from_le_bytes(value.try_into().unwrap()) * 1.01;
                    value.copy_from_slice(&off.to_le_bytes());
                }
                return Ok(());
            }
            "wrong" => {
                outputs.iter_mut().for_each(|o| o.fill(0x41));
                return Ok(());
            }
            _ => {}
        }
        self.0.run(inputs, outputs)
    }

    fn is_spent(&self) -> bool {
        SPENT.load(Relaxed)
    }
}

// --------------------------------------------------------------------------------------------------------- helpers

fn rung(text: &str) -> Rung {
    text.parse().unwrap()
}

/// A variant of the model in that file: for the test, its own network once more.
fn variant(manifest: &Manifest, name: &str, file: &str) -> Variant {
    Variant {
        name: name.parse().unwrap(),
        format: NetworkFormat::Onnx,
        precision: Precision::Int8,
        file: file.into(),
        sha256: manifest.onnx.sha256.clone(),
        golden: Tolerance { cosine: 0.9, max_abs: 1000.0 },
        made_for: None,
        measured: None,
    }
}

/// A variant for a device that no test has.
fn compiled(manifest: &Manifest, format: NetworkFormat, file: &str) -> Variant {
    let made_for = MadeFor { device: "some".into(), runtime: ">=4.21".into() };
    Variant { format, made_for: Some(made_for), ..variant(manifest, format.name(), file) }
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(engines: &str) -> Self {
        Self::with_variants(engines, |_| Vec::new())
    }

    fn with_variants(engines: &str, variants: impl Fn(&Manifest) -> Vec<Variant>) -> Self {
        let bench = Self { dir: copy("two-in-two-out") };
        let path = bench.dir.path().join("manifest.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut manifest = Manifest::from_toml(&text).unwrap();
        manifest.summary = bench.file().display().to_string();
        manifest.engines = engines.split(' ').map(|rung| rung.parse().unwrap()).collect();
        manifest.variants = variants(&manifest);
        manifest.engine_versions.clear();
        // Nothing here is about time, and a machine may be busy.
        manifest.budget.deadline_ms = 60_000;
        std::fs::write(path, manifest.to_toml()).unwrap();
        bench.tell("ok");
        bench
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("told")
    }

    /// From now on the second engine does this.
    fn tell(&self, what: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, what).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    /// From now on the third engine does this.
    fn tell_chip(&self, what: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, what).unwrap();
        std::fs::rename(new, self.dir.path().join("told-chip")).unwrap();
    }

    async fn serve(&self, config: HostsConfig) -> (Arc<Hosts>, Arc<Served>) {
        let hosts = Hosts::new(config);
        let served = hosts.load(self.dir.path()).await.unwrap();
        (hosts, served)
    }
}

fn both() -> HostsConfig {
    HostsConfig {
        engines: [(EngineKind::Ort, PathBuf::from("/proc/self/exe"))].into(),
        breaker: BreakerRules { pause: Duration::from_millis(100), ..BreakerRules::default() },
        request_timeout: Duration::from_secs(60),
        ..config()
    }
}

/// With engines that run compiled networks, too.
fn three() -> HostsConfig {
    let program = PathBuf::from("/proc/self/exe");
    HostsConfig {
        engines: [EngineKind::Ort, EngineKind::Hailo, EngineKind::Tensorrt]
            .map(|e| (e, program.clone()))
            .into(),
        ..both()
    }
}

/// A model with a container, on three rungs.
fn three_rungs() -> Bench {
    let bench = Bench::with_variants("hailo ort cpu", |m| vec![compiled(m, NetworkFormat::Hef, "h8.hef")]);
    std::fs::copy(bench.dir.path().join("model.onnx"), bench.dir.path().join("h8.hef")).unwrap();
    bench
}

/// Waits until this engine serves.
async fn on(served: &Arc<Served>, engine: &str) {
    while served.engine().kind != engine || served.state() != State::Ready {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[derive(Debug, Default)]
struct Bus {
    done: Mutex<Vec<String>>,
    reboots: Mutex<u32>,
    /// The step after which the device answers again, the file that says so, and steps that cannot be done.
    helps: Option<&'static str>,
    file: PathBuf,
    broken: &'static [&'static str],
}

impl Bus {
    fn step(&self, name: &'static str) -> Result<(), String> {
        self.done.lock().unwrap().push(name.into());
        if self.broken.contains(&name) {
            return Err("no such file".into());
        }
        if self.helps == Some(name) {
            std::fs::write(&self.file, "ok").unwrap();
        }
        Ok(())
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }
}

impl Ladder for Bus {
    fn device(&self, engine: EngineKind) -> Option<Device> {
        (engine == EngineKind::Ort)
            .then(|| Device { address: "0001:01:00.0".into(), driver: "second".into() })
    }

    fn rebind(&self, device: &Device) -> Result<(), String> {
        assert_eq!(device.driver, "second");
        self.step("rebind")
    }

    fn rescan(&self, _: &Device) -> Result<(), String> {
        self.step("rescan")
    }

    fn reboots(&self) -> u32 {
        *self.reboots.lock().unwrap()
    }

    fn reboot(&self, why: &str) -> Result<(), String> {
        assert!(why.contains("0001:01:00.0"), "{why}");
        *self.reboots.lock().unwrap() += 1;
        self.step("reboot")
    }
}

// ----------------------------------------------------------------------------------------------------------- tests

async fn the_preferred_engine_serves() {
    let bench = Bench::new("ort cpu");
    let (hosts, served) = bench.serve(both()).await;
    golden(&served).await.unwrap();
    assert_eq!((served.engine().kind, served.engine().device.as_str()), ("ort", "second"));
    assert_eq!(served.fallback(), None);
    assert_eq!(served.breakers().iter().map(|b| b.engine).collect::<Vec<_>>(), [rung("ort"), rung("cpu")]);
    hosts.shutdown().await;
}

async fn building_an_engine_is_shown() {
    let bench = Bench::new("ort cpu");
    bench.tell("build");
    let hosts = Hosts::new(both());
    let load = tokio::spawn({
        let (hosts, dir) = (hosts.clone(), bench.dir.path().to_owned());
        async move { hosts.load(&dir).await }
    });
    let builds = || {
        let states: Vec<State> = hosts.list().iter().map(|s| s.state()).collect();
        states.iter().any(|s| matches!(s, State::Starting { phase: "building the engine", .. }))
    };
    while !builds() {
        assert!(!load.is_finished(), "it is not ready before its engine is built");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bench.tell("");
    let served = load.await.unwrap().unwrap();
    assert_eq!(served.engine().kind, "ort");
    golden(&served).await.unwrap();
    hosts.shutdown().await;
}

async fn an_engine_this_image_lacks_is_no_fallback() {
    let bench = Bench::with_variants("hailo cpu", |m| vec![compiled(m, NetworkFormat::Hef, "h8.hef")]);
    assert!(!bench.dir.path().join("h8.hef").exists(), "a file that nothing here can run need not be there");
    let (hosts, served) = bench.serve(both()).await;
    golden(&served).await.unwrap();
    assert_eq!((served.engine().kind, served.fallback()), ("cpu", None));
    assert_eq!(served.breakers().len(), 1);
    hosts.shutdown().await;
}

async fn an_engine_that_cannot_start_is_replaced_and_gone_back_to() {
    let bench = Bench::new("ort cpu");
    bench.tell("refuse");
    let hosts = Hosts::new(both());
    let mut events = hosts.events();
    let served = hosts.load(bench.dir.path()).await.unwrap();
    golden(&served).await.unwrap();
    let f = served.fallback().unwrap();
    assert_eq!((f.from, f.to), (rung("ort"), rung("cpu")));
    assert!(f.reason.contains("not this one"), "{}", f.reason);
    // Tried again and again, with growing pauses, while the other one serves.
    while served.breakers()[0].opened_total < 3 {
        golden(&served).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.tell("ok");
    while served.fallback().is_some() {
        golden(&served).await.expect("nothing fails on the way back");
    }
    on(&served, "ort").await;
    golden(&served).await.unwrap();
    assert_eq!(served.breakers()[0].state, BreakerState::Closed);
    let mut seen = vec![];
    while let Ok(event) = events.try_recv() {
        match event {
            HostEvent::FellBack { from, to, .. } => seen.push(("fell back", from, to)),
            HostEvent::WentBack { from, to, .. } => seen.push(("went back", from, to)),
            _ => {}
        }
    }
    let (ort, cpu) = (rung("ort"), rung("cpu"));
    assert_eq!(seen, [("fell back", ort, cpu), ("went back", cpu, ort)]);
    hosts.shutdown().await;
}

async fn an_engine_whose_breaker_opens_is_replaced_and_gone_back_to() {
    let bench = Bench::new("ort cpu");
    let (hosts, served) = bench.serve(both()).await;
    bench.tell("fail");
    let mut failures = 0;
    while served.fallback().is_none() {
        match golden(&served).await {
            Err(e) if e.kind() == "engine_error" => failures += 1,
            Err(e) => {
                assert!(["breaker_open", "model_unavailable"].contains(&e.kind()), "{e}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(()) => {}
        }
    }
    // Until the other engine is up a probe fails whenever the pause is over, and opens it again.
    let opened = served.breakers()[0].opened_total;
    assert!((15..15 + opened).contains(&failures), "{failures} failures, opened {opened} times");
    on(&served, "cpu").await;
    for _ in 0..50 {
        golden(&served).await.unwrap();
    }
    // Clients are no probes while another engine serves them.
    let before = served.snapshot().failures;
    while served.breakers()[0].opened_total < 3 {
        golden(&served).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(served.snapshot().failures, before);
    bench.tell("ok");
    while served.fallback().is_some() {
        golden(&served).await.unwrap();
    }
    golden(&served).await.unwrap();
    hosts.shutdown().await;
}

async fn a_preferred_rung_goes_before_the_manifests_order() {
    let bench = Bench::new("ort cpu");
    let (hosts, served) = bench.serve(both()).await;
    let mut events = hosts.events();
    let first = served.snapshot().host_pid;
    served.prefer(Some(rung("hailo")));
    assert_eq!(served.preferred(), None, "the manifest does not name it");
    served.prefer(Some(rung("cpu")));
    while served.engine().kind != "cpu" {
        golden(&served).await.expect("nothing fails on the way");
    }
    assert_eq!((served.fallback(), served.preferred()), (None, Some(rung("cpu"))));
    assert_eq!(served.breakers().iter().map(|b| b.engine).collect::<Vec<_>>(), [rung("cpu"), rung("ort")]);
    // Its host ends: the same rung again.
    let second = served.snapshot().host_pid;
    assert_ne!(first, second);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(second.unwrap().cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    while served.snapshot().host_pid.is_none_or(|pid| Some(pid) == second) || served.state() != State::Ready {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((served.engine().kind, served.fallback()), ("cpu", None));
    // Preferred no more.
    served.prefer(None);
    while served.engine().kind != "ort" {
        golden(&served).await.expect("nothing fails on the way back");
    }
    assert_eq!(served.fallback(), None);
    let told = std::iter::from_fn(|| events.try_recv().ok());
    let changes =
        told.filter(|e| matches!(e, HostEvent::FellBack { .. } | HostEvent::WentBack { .. })).count();
    assert_eq!(changes, 0, "nobody fell back");
    hosts.shutdown().await;
}

async fn a_preferred_rung_that_does_not_come_up_is_fallen_back_from() {
    let bench = Bench::new("cpu ort");
    let (hosts, served) = bench.serve(both()).await;
    bench.tell("refuse");
    served.prefer(Some(rung("ort")));
    while served.fallback().is_none() {
        golden(&served).await.expect("what served goes on");
    }
    let f = served.fallback().unwrap();
    assert_eq!((f.from, f.to), (rung("ort"), rung("cpu")));
    assert!(f.reason.contains("not this one"), "{}", f.reason);
    // As soon as nobody prefers it any more, what serves is right.
    served.prefer(None);
    assert_eq!(served.fallback(), None);
    served.prefer(Some(rung("ort")));
    bench.tell("ok");
    while served.engine().kind != "ort" {
        golden(&served).await.unwrap();
    }
    assert_eq!(served.fallback(), None);
    hosts.shutdown().await;
}

async fn a_fallback_must_pass_the_golden_vectors_too() {
    let bench = Bench::new("cpu ort");
    bench.tell("wrong");
    let (hosts, served) = bench.serve(both()).await;
    // The built-in engine's breaker is opened by what it is told of: hosts that keep ending.
    while served.breakers()[0].state == BreakerState::Closed {
        let old = pid(&served).await;
        nix::sys::signal::kill(old, nix::sys::signal::Signal::SIGKILL).unwrap();
        while served.snapshot().host_pid == Some(u32::try_from(old.as_raw()).unwrap()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    while served.breakers()[1].opened_total == 0 {
        assert_eq!(served.engine().kind, "cpu", "the other one gives wrong answers");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let why = served.breakers()[1].reason.clone().unwrap();
    assert!(why.contains("golden case 0"), "{why}");
    hosts.shutdown().await;
}

async fn without_any_engine_the_reason_is_the_preferred_ones() {
    let hef = |m: &Manifest| vec![compiled(m, NetworkFormat::Hef, "m.hef")];
    let bench = Bench::with_variants("ort hailo", hef);
    bench.tell("refuse");
    let hosts = Hosts::new(both());
    let e = hosts.load(bench.dir.path()).await.err().unwrap().to_string();
    assert!(e.contains("not this one"), "{e}");
    let bench = Bench::with_variants("hailo tensorrt-plan", |m| {
        vec![compiled(m, NetworkFormat::Hef, "m.hef"), compiled(m, NetworkFormat::Plan, "m.plan")]
    });
    let e = hosts.load(bench.dir.path()).await.err().unwrap().to_string();
    assert!(e.contains("it wants engine hailo or tensorrt-plan, this image has cpu or ort"), "{e}");
    hosts.shutdown().await;
}

async fn a_host_of_the_fallback_that_ends_is_started_again() {
    let bench = Bench::new("ort cpu");
    bench.tell("exit");
    let (hosts, served) = bench.serve(both()).await;
    for _ in 0..5 {
        let old = pid(&served).await;
        nix::sys::signal::kill(old, nix::sys::signal::Signal::SIGKILL).unwrap();
        replaced(&served, old).await;
        golden(&served).await.unwrap();
        assert_eq!(served.fallback().unwrap().to, rung("cpu"));
    }
    hosts.shutdown().await;
}

async fn a_lost_device_is_not_held_against_the_model() {
    let bench = Bench::new("ort cpu");
    let (hosts, served) = bench.serve(both()).await;
    for _ in 0..5 {
        golden(&served).await.unwrap();
    }
    bench.tell("lost");
    // What is in the host, and what comes until the other engine is up.
    assert_eq!(golden(&served).await.unwrap_err().kind(), "host_lost");
    while served.fallback().is_none() || served.state() != State::Ready {
        let _ = golden(&served).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..5 {
        golden(&served).await.unwrap();
    }
    let none_ended = |what: &str| {
        let seen = served.observe();
        assert!(seen.ends().all(|(_, n)| n == 0), "{what}: {seen:?}");
        assert_eq!(seen.faults(), 0, "{what}: {seen:?}");
        assert!(seen.success >= 10 && seen.compute.count() == seen.success);
        assert_eq!(
            seen.compute_preferred.count(),
            5,
            "what the other engine computes says nothing of this one"
        );
    };
    none_ended("lost");
    assert_eq!(served.snapshot().ends.iter().find(|(how, _)| *how == "device"), Some(&("device", 1)));
    // Hosts that are only tried end as they like.
    bench.tell("exit");
    let opened = served.breakers()[0].opened_total;
    while served.breakers()[0].opened_total < opened + 2 {
        golden(&served).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    none_ended("tried");
    assert!(served.snapshot().ends.iter().any(|(how, n)| *how == "crash" && *n > 0));
    // One that serves does not.
    let old = pid(&served).await;
    nix::sys::signal::kill(old, nix::sys::signal::Signal::SIGABRT).unwrap();
    replaced(&served, old).await;
    assert_eq!(served.observe().ends().map(|(_, n)| n).sum::<u64>(), 1);
    hosts.shutdown().await;
}

async fn who_falls_while_a_better_rung_is_tried_is_replaced_at_once() {
    let bench = three_rungs();
    let (hosts, served) = bench.serve(three()).await;
    golden(&served).await.unwrap();
    on(&served, "hailo").await;
    bench.tell_chip("lost");
    assert_eq!(golden(&served).await.unwrap_err().kind(), "host_lost");
    on(&served, "ort").await;
    // From now on a host of the first rung hangs while it loads. One that is being started may still have read what was said before.
    bench.tell_chip("hang");
    let starts = served.snapshot().starts;
    while served.snapshot().starts == starts {
        golden(&served).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let opened = served.breakers()[0].opened_total;
    bench.tell("fail");
    while served.engine().kind != "cpu" || golden(&served).await.is_err() {
        let _ = golden(&served).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(
        served.breakers()[0].opened_total <= opened + 1,
        "nobody waited until the time for loading was over"
    );
    let f = served.fallback().unwrap();
    assert_eq!((f.from, f.to), (rung("hailo"), rung("cpu")));
    // What was being started is not started anew.
    bench.tell_chip("ok");
    while served.engine().kind != "hailo" {
        golden(&served).await.unwrap();
    }
    assert_eq!(served.fallback(), None);
    hosts.shutdown().await;
}

async fn a_device_that_has_to_be_opened_again_is_opened_by_the_next_host() {
    let bench = Bench::new("ort");
    let (hosts, served) = bench.serve(both()).await;
    for _ in 0..3 {
        let old = pid(&served).await;
        bench.tell("late");
        // The request that it happened to is told what happened, and no input is suspected.
        let e = golden(&served).await.unwrap_err();
        assert!(e.kind() == "engine_error" && e.to_string().contains("no answer in time"), "{e}");
        bench.tell("ok");
        replaced(&served, old).await;
        golden(&served).await.unwrap();
    }
    let ends: Vec<_> = served.snapshot().ends.into_iter().filter(|(_, n)| *n > 0).collect();
    assert_eq!((ends, served.quarantined()), (vec![("device", 3)], 0));
    hosts.shutdown().await;
}

async fn a_compiled_network_that_is_refused_refuses_what_is_new() {
    for (engine, format) in [("hailo", NetworkFormat::Hef), ("tensorrt-plan", NetworkFormat::Plan)] {
        let limits = Tolerance { cosine: 0.99, max_abs: 0.5 };
        let bench = Bench::with_variants(&format!("{engine} cpu"), |m| {
            vec![Variant { golden: limits, ..compiled(m, format, "compiled") }]
        });
        std::fs::copy(bench.dir.path().join("model.onnx"), bench.dir.path().join("compiled")).unwrap();
        let hosts = Hosts::new(three());
        let source = || inferd_hosts::ModelSource::directory(bench.dir.path()).unwrap();
        for (told, why) in [("refuse", "not this one"), ("wrong", "golden case 0")] {
            bench.tell_chip(told);
            let e = hosts.prepare(source()).await.unwrap_err();
            assert!(e.to_string().contains(why), "{engine}: {e}");
            if let inferd_hosts::PrepareError::Golden { limits: held_against, .. } = e {
                assert_eq!(held_against, limits, "the variant's own");
            }
            // What was accepted before has to serve, and so has what is the only one.
            assert_eq!(hosts.prepare_again(source()).await.unwrap().engine().kind, "cpu");
        }
        // What the model is not to blame for.
        for (told, why) in [("library", "of another version"), ("lost", "does not answer"), ("exit", "77")] {
            bench.tell_chip(told);
            let candidate = hosts.prepare(source()).await.unwrap();
            assert_eq!(candidate.engine().kind, "cpu");
            let [(unproven, Some(said))] = &candidate.unproven()[..] else { panic!("{engine}") };
            assert!(*unproven == rung(engine) && said.contains(why), "{engine}: {said}");
        }
        bench.tell_chip("refuse");
        let served = hosts.load(bench.dir.path()).await.unwrap();
        assert_eq!(served.fallback().unwrap().to, rung("cpu"));
        let e = hosts.load(bench.dir.path()).await.err().unwrap().to_string();
        assert!(e.contains("not this one"), "{e}");
        golden(&served).await.unwrap();
        hosts.shutdown().await;
    }
}

async fn a_host_that_is_dead_inside_is_replaced_where_there_is_no_other_rung() {
    let bench = Bench::new("ort");
    let (hosts, served) = bench.serve(both()).await;
    golden(&served).await.unwrap();
    let first = pid(&served).await;
    bench.tell("die inside");
    while served.breakers()[0].opened_total == 0 {
        let _ = golden(&served).await;
    }
    bench.tell("ok");
    replaced(&served, first).await;
    while golden(&served).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    hosts.shutdown().await;
}

async fn a_host_that_is_well_outlives_a_breaker_that_bad_requests_open() {
    let bench = Bench::new("ort");
    let (hosts, served) = bench.serve(both()).await;
    let first = pid(&served).await;
    bench.tell("picky");
    while served.breakers()[0].opened_total < 3 {
        if let Ok(mut ticket) = served.begin(None) {
            ticket.input_mut(0).fill(0);
            let _ = ticket.run().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while golden(&served).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((pid(&served).await, served.snapshot().starts), (first, 1));
    hosts.shutdown().await;
}

async fn a_device_is_recovered_while_the_fallback_serves() {
    for (helps, want) in [("rebind", &["rebind"][..]), ("rescan", &["rebind", "rescan"])] {
        let bench = Bench::new("ort cpu");
        let bus = Arc::new(Bus { helps: Some(helps), file: bench.file(), ..Bus::default() });
        let config = HostsConfig {
            ladder: Some(bus.clone()),
            // The ladder does not wait for the breaker.
            breaker: BreakerRules { pause: Duration::from_secs(300), ..BreakerRules::default() },
            ..both()
        };
        let (hosts, served) = bench.serve(config).await;
        let mut events = hosts.events();
        on(&served, "ort").await;
        bench.tell("lost");
        nix::sys::signal::kill(pid(&served).await, nix::sys::signal::Signal::SIGKILL).unwrap();
        while bus.done() != want {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while served.fallback().is_some() || served.state() != State::Ready {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        on(&served, "ort").await;
        golden(&served).await.unwrap();
        assert_eq!(bus.done(), want);
        let mut steps = vec![];
        while let Ok(event) = events.try_recv() {
            if let HostEvent::Recovery { device, step, .. } = event {
                assert_eq!(device, "0001:01:00.0");
                steps.push(step);
            }
        }
        assert_eq!(steps, [&["restart"], want, &["recovered"]].concat());
        let mut counted: Vec<_> = hosts.recovery_steps().into_iter().map(|(_, step, n)| (step, n)).collect();
        counted.sort_by_key(|(step, _)| steps.iter().position(|s| s == step));
        assert_eq!(counted, steps.iter().map(|&step| (step, 1)).collect::<Vec<_>>());
        hosts.shutdown().await;
    }
}

async fn models_that_wait_for_one_device_take_each_step_once() {
    let bench = Bench::new("ort cpu");
    let bus = Arc::new(Bus { helps: Some("rebind"), file: bench.file(), ..Bus::default() });
    let (hosts, first) = bench.serve(HostsConfig { ladder: Some(bus.clone()), ..both() }).await;
    let mut all = vec![first];
    let path = bench.dir.path().join("manifest.toml");
    let page = std::fs::read_to_string(&path).unwrap();
    let named = |name: &str| format!("name = \"{name}\"");
    for name in ["second", "third", "fourth"] {
        let other = page.replacen(&named(all[0].manifest().name.as_str()), &named(name), 1);
        std::fs::write(&path, other).unwrap();
        all.push(hosts.load(bench.dir.path()).await.unwrap());
    }
    bench.tell("lost");
    for served in &all {
        nix::sys::signal::kill(pid(served).await, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    while bus.done().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for served in &all {
        on(served, "ort").await;
    }
    assert_eq!(bus.done(), ["rebind"]);
    hosts.shutdown().await;
}

async fn a_device_that_stays_lost_costs_two_reboots_a_day_at_most() {
    // A rescan that cannot be done is passed over.
    let broken: &[&str] = &["rescan"];
    let bench = Bench::new("ort cpu");
    let bus = Arc::new(Bus { broken, file: bench.file(), ..Bus::default() });
    // Each pass is a boot: what the set of hosts knows is gone, what the bus has noted stays.
    for boot in 1..=4 {
        bus.done.lock().unwrap().clear();
        bench.tell("lost");
        let config = HostsConfig { ladder: Some(bus.clone()), ..both() };
        let (hosts, served) = bench.serve(config).await;
        let want: &[&str] = if boot <= 2 { &["rebind", "rescan", "reboot"] } else { &["rebind", "rescan"] };
        // Some tries later, too.
        while bus.done().len() < want.len() || served.breakers()[0].opened_total < 4 {
            golden(&served).await.expect("the other engine serves");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(bus.done(), want, "boot {boot}");
        assert_eq!(served.fallback().unwrap().to, rung("cpu"));
        hosts.shutdown().await;
    }
    assert_eq!(bus.reboots(), 2);
}

async fn a_model_that_is_refused_touches_no_device() {
    for how in ["refuse", "wrong"] {
        let bench = Bench::new("ort cpu");
        bench.tell(how);
        let bus = Arc::new(Bus { file: bench.file(), ..Bus::default() });
        let (hosts, served) = bench.serve(HostsConfig { ladder: Some(bus.clone()), ..both() }).await;
        while served.breakers()[0].opened_total < 3 {
            golden(&served).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(bus.done().is_empty());
        hosts.shutdown().await;
    }
}

async fn a_device_without_a_fallback_is_recovered_too() {
    let bench = Bench::new("ort");
    let bus = Arc::new(Bus { helps: Some("rescan"), file: bench.file(), ..Bus::default() });
    bench.tell("lost");
    let (hosts, served) = bench.serve(HostsConfig { ladder: Some(bus.clone()), ..both() }).await;
    golden(&served).await.unwrap();
    assert_eq!(bus.done(), ["rebind", "rescan"]);
    hosts.shutdown().await;
}

async fn every_rung_has_its_own_network_breaker_and_tolerance() {
    let bench = Bench::with_variants("ort ort-loose cpu", |m| vec![variant(m, "loose", "loose.onnx")]);
    std::fs::copy(bench.dir.path().join("model.onnx"), bench.dir.path().join("loose.onnx")).unwrap();
    bench.tell("off");
    let (hosts, served) = bench.serve(both()).await;
    golden(&served).await.unwrap();
    assert_eq!(
        served.engine().rung,
        Some(rung("ort-loose")),
        "it is off by more than the model's own network may be"
    );
    let f = served.fallback().unwrap();
    assert_eq!((f.from, f.to), (rung("ort"), rung("ort-loose")));
    assert!(f.reason.contains("golden"), "{}", f.reason);
    let breakers = served.breakers();
    let states: Vec<_> = breakers.iter().map(|b| (b.engine, b.state)).collect();
    // Open, or half open where its pause is over.
    assert_eq!((states[0].0, states[0].1 == BreakerState::Closed), (rung("ort"), false));
    assert_eq!(states[1..], [(rung("ort-loose"), BreakerState::Closed), (rung("cpu"), BreakerState::Closed)]);
    assert_eq!((breakers[0].opened_total > 0, breakers[1].opened_total), (true, 0));
    bench.tell("ok");
    while served.fallback().is_some() {
        golden(&served).await.unwrap();
    }
    assert_eq!(served.engine().rung, Some(rung("ort")));
    hosts.shutdown().await;
}

async fn a_damaged_file_of_a_rung_that_can_be_run_is_refused() {
    let bench = Bench::with_variants("ort-int8 cpu", |m| vec![variant(m, "int8", "int8.onnx")]);
    let file = bench.dir.path().join("int8.onnx");
    let load = async || {
        let hosts = Hosts::new(both());
        hosts.load(bench.dir.path()).await.map(|s| s.engine().rung).map_err(|e| e.to_string())
    };
    assert!(load().await.unwrap_err().contains("int8.onnx: No such file"));
    let mut bytes = std::fs::read(bench.dir.path().join("model.onnx")).unwrap();
    std::fs::write(&file, b"").unwrap();
    assert!(load().await.unwrap_err().contains("int8.onnx: the model file is empty"));
    bytes[100] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    assert!(load().await.unwrap_err().contains("int8.onnx: its SHA-256 is"));
    bytes[100] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(load().await.unwrap(), Some(rung("ort-int8")));
}

async fn a_variant_the_engine_refuses_leaves_its_place_to_the_next_rung() {
    use sha2::{Digest as _, Sha256};
    let bench = Bench::with_variants("cpu-bad cpu", |m| {
        let sha256 = Sha256::digest(b"no network").iter().map(|b| format!("{b:02x}")).collect();
        vec![Variant { sha256, ..variant(m, "bad", "bad.onnx") }]
    });
    std::fs::write(bench.dir.path().join("bad.onnx"), b"no network").unwrap();
    let (hosts, served) = bench.serve(both()).await;
    golden(&served).await.unwrap();
    let f = served.fallback().unwrap();
    assert_eq!((f.from, f.to), (rung("cpu-bad"), rung("cpu")));
    assert!(f.reason.contains("the model file cannot be loaded"), "{}", f.reason);
    hosts.shutdown().await;
}
