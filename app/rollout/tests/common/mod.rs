//! A device on temporary files: keys, bundles, clock and boots in the hands of the test; engine hosts are real.

#![allow(clippy::unwrap_used)]

use inferd_bundle::build::{BundleSpec, Content, FileSource, ModelSource, build};
use inferd_bundle::{Policy, ProbationPolicy, Role, RoleKeys, Root, RootKey, SigningKey, keys};
use inferd_hosts::{Hosts, HostsConfig, InferError, Served};
use inferd_model::{DType, GoldenCase, GoldenWriter, ModelName, TensorSpec};
use inferd_rollout::{
    Accepted, BootEvidence, Busy, Clock, Engine, Evidence, InstallError, Outcome, Status, Updater,
    UpdaterConfig, Upload, Verdict, Way,
};
use libtest_mimic::Failed;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub fn run(test: impl Future<Output = ()>) -> Result<(), Failed> {
    // One thread, as the daemon's endpoint has by default: nothing may block it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Generous: it only keeps a hang from being endless.
        tokio::time::timeout(Duration::from_secs(600), test).await.map_err(|_| Failed::from("the test hangs"))
    })
}

// ------------------------------------------------------------------------------------------------ models

/// One field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(bytes.len(), &mut out);
    out.extend(bytes);
    out
}

fn number(field: u8, value: usize) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(value, &mut out);
    out
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

/// The ONNX file of `times` operators one after the other on FP32 [1, width].
fn network(op: &str, times: usize, width: usize) -> Vec<u8> {
    let dim = |n| field(1, &number(1, n));
    let shape = field(2, &[dim(1), dim(width)].concat());
    let tensor_type = field(1, &[number(1, 1), shape].concat());
    let value = |name: &str| [field(1, name.as_bytes()), field(2, &tensor_type)].concat();
    let name = |i: usize| {
        if i == 0 {
            "x".to_owned()
        } else if i == times {
            "y".to_owned()
        } else {
            format!("t{i}")
        }
    };
    let mut graph = Vec::new();
    for i in 0..times {
        let (from, to) = (name(i), name(i + 1));
        let node = [
            field(1, from.as_bytes()),
            field(2, to.as_bytes()),
            field(3, format!("n{i}").as_bytes()),
            field(4, op.as_bytes()),
        ];
        graph.extend(field(1, &node.concat()));
    }
    graph.extend([field(2, b"g"), field(11, &value("x")), field(12, &value("y"))].concat());
    [number(1, 8), field(7, &graph), field(8, &number(2, 17))].concat()
}

/// A model of this room's tests: operators on a vector.
#[derive(Clone, Copy)]
pub struct Net {
    pub name: &'static str,
    pub version: u32,
    pub op: &'static str,
    pub times: usize,
    pub width: usize,
    pub memory_mib: u32,
    /// Golden vectors of another operator than the one it has.
    pub wrong_golden: bool,
    pub engines: &'static str,
}

/// `m`: gives back what it gets.
pub const GOOD: Net = Net {
    name: "m",
    version: 1,
    op: "Identity",
    times: 1,
    width: 4,
    memory_mib: 48,
    wrong_golden: false,
    engines: "[\"cpu\"]",
};

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

impl Net {
    /// The golden input is 0, 1, 1, 0 ...: all operators used here leave it as it is but for `Neg`.
    pub fn source(self) -> ModelSource {
        let x: Vec<f32> = (0..self.width).map(|i| if matches!(i % 4, 1 | 2) { 1.0 } else { 0.0 }).collect();
        let negated = (self.op == "Neg") != self.wrong_golden;
        let y: Vec<f32> = x.iter().map(|v| if negated { -v } else { *v }).collect();
        let shape = [1, u32::try_from(self.width).unwrap()];
        let spec = |name| [TensorSpec::plain(name, DType::Fp32, &shape)];
        let mut golden = GoldenWriter::default();
        golden.push(GoldenCase { inputs: vec![bytes(&x)], outputs: vec![bytes(&y)] });
        let golden = golden.to_bytes(&spec("x"), &spec("y")).unwrap();
        let onnx = network(self.op, self.times, self.width);
        let Self { name, version, memory_mib, width, engines, .. } = self;
        let manifest = format!(
            "schema = 1\nname = \"{name}\"\nversion = \"{version}\"\ntask = \"tensor\"\nengines = {engines}\n\
             [budget]\nmemory_mib = {memory_mib}\ndeadline_ms = 1000\n\
             [onnx]\nfile = \"model.onnx\"\nsha256 = \"{}\"\n\
             [golden]\nfile = \"golden.safetensors\"\nsha256 = \"{}\"\ncosine = 0.9999\nmax_abs = 0.001\n\
             [[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [1, {width}]\n\
             [[outputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [1, {width}]\n",
            hex(&Sha256::digest(&onnx)),
            hex(&Sha256::digest(&golden)),
        );
        let file = |name: &str, bytes| FileSource { name: name.to_owned(), content: Content::Bytes(bytes) };
        ModelSource { manifest, files: vec![file("model.onnx", onnx), file("golden.safetensors", golden)] }
    }

    /// As a directory of the image.
    pub fn directory(self, at: &Path) -> PathBuf {
        let dir = at.join(self.name);
        std::fs::create_dir_all(&dir).unwrap();
        let source = self.source();
        std::fs::write(dir.join("manifest.toml"), &source.manifest).unwrap();
        for file in source.files {
            let Content::Bytes(bytes) = file.content else { unreachable!("made above") };
            std::fs::write(dir.join(file.name), bytes).unwrap();
        }
        dir
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The model of this directory.
pub fn of_directory(path: &str) -> ModelSource {
    ModelSource::directory(&repository().join(path)).unwrap()
}

/// `fault-alloc` with golden vectors of its own that need `n` bytes.
pub fn allocating(n: i32) -> ModelSource {
    let mut source = of_directory("tests/models/fault-alloc");
    let mut golden = GoldenWriter::default();
    #[allow(clippy::cast_precision_loss)]
    let y = (n / 4) as f32;
    golden
        .push(GoldenCase { inputs: vec![n.to_le_bytes().to_vec()], outputs: vec![y.to_le_bytes().to_vec()] });
    let x = [TensorSpec::plain("n", DType::Int32, &[1])];
    let golden = golden.to_bytes(&x, &[TensorSpec::plain("y", DType::Fp32, &[1])]).unwrap();
    let manifest = inferd_model::Manifest::from_toml(&source.manifest).unwrap();
    source.manifest = source.manifest.replace(&manifest.golden.sha256, &hex(&Sha256::digest(&golden)));
    for file in &mut source.files {
        if file.name == manifest.golden.file {
            file.content = Content::Bytes(golden.clone());
        }
    }
    source
}

// ------------------------------------------------------------------------------------------------ bundles and keys

pub fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

pub const RELEASE: [u8; 2] = [11, 12];
pub const DEV: u8 = 21;
pub const REVOKER: u8 = 41;
pub const STRANGER: u8 = 99;

pub fn root() -> Vec<u8> {
    let role = |role, numbers: &[u8]| {
        let mut keys: Vec<_> = numbers.iter().map(|&n| key(n).id()).collect();
        keys.sort_unstable();
        RoleKeys { role, threshold: u32::try_from(numbers.len()).unwrap(), keys }
    };
    let all = [1, RELEASE[0], RELEASE[1], DEV, REVOKER];
    let mut keys: Vec<RootKey> =
        all.iter().map(|&n| RootKey { public: key(n).public(), note: format!("key {n}") }).collect();
    keys.sort_by_key(|k| k.public.id());
    let roles = vec![
        role(Role::Root, &[1]),
        role(Role::ModelRelease, &RELEASE),
        role(Role::ModelDev, &[DEV]),
        role(Role::Revocation, &[REVOKER]),
    ];
    keys::sign_root(Root { version: 1, keys, roles }, &[&key(1)]).unwrap()
}

/// A policy by which only time ends probation.
pub fn policy() -> Policy {
    Policy {
        shadow: None,
        probation: ProbationPolicy {
            seconds: 60,
            requests: 0,
            max_error_rate: 0.01,
            // These networks compute microseconds: only the test of latency has something to measure.
            max_p99_ratio: 1000.0,
            max_drift: 0.25,
        },
    }
}

pub fn spec(version: u64, models: Vec<ModelSource>) -> BundleSpec {
    let mut spec = BundleSpec::new(ModelName::new("acme").unwrap(), version, models);
    spec.policy = policy();
    spec
}

/// The good model in this version.
pub fn good(version: u32) -> BundleSpec {
    spec(version.into(), vec![Net { version, ..GOOD }.source()])
}

pub fn signed(spec: &BundleSpec, signers: &[u8]) -> Vec<u8> {
    let signers: Vec<SigningKey> = signers.iter().map(|&n| key(n)).collect();
    let mut bytes = Vec::new();
    build(spec, &signers.iter().collect::<Vec<_>>(), &mut bytes).unwrap();
    bytes
}

pub fn release(spec: &BundleSpec) -> Vec<u8> {
    signed(spec, &RELEASE)
}

// ------------------------------------------------------------------------------------------------ the device

#[derive(Default)]
pub struct HandClock(AtomicU64);

impl HandClock {
    pub fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds * 1000, Relaxed);
    }
}

impl Clock for HandClock {
    fn uptime(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}

/// What the next start is told about the last end.
#[derive(Default)]
pub struct Told(Mutex<Evidence>);

impl BootEvidence for Told {
    fn look(&self) -> Evidence {
        let mut e = self.0.lock().unwrap();
        let found = e.clone();
        e.clean_stop = false;
        found
    }

    fn stopped(&self, boot_id: &str) -> std::io::Result<()> {
        let mut e = self.0.lock().unwrap();
        e.clean_stop = e.boot_id == boot_id;
        Ok(())
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Another boot, and nothing says why.
    PowerCut,
    /// The same boot.
    Crash,
    /// The same boot, on purpose.
    Stop,
    /// Another boot, and the kernel left a record.
    Panic,
    /// Another boot, and the watchdog says it was him.
    Watchdog,
}

pub struct Device {
    pub dir: tempfile::TempDir,
    pub clock: Arc<HandClock>,
    pub told: Arc<Told>,
    pub hosts: Arc<Hosts>,
    pub updater: Arc<Updater>,
    config: UpdaterConfig,
    boots: u32,
}

/// A device that has never seen a bundle.
pub async fn device() -> Device {
    device_with(|_, _| ()).await
}

pub async fn device_with(change: impl FnOnce(&Path, &mut UpdaterConfig)) -> Device {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("root.cbor"), root()).unwrap();
    let (clock, told) = (Arc::new(HandClock::default()), Arc::new(Told::default()));
    told.0.lock().unwrap().boot_id = "boot-0".into();
    let mut config = UpdaterConfig::new([at("a"), at("b")], at("data"));
    config.slot_bytes = 64 << 20;
    config.roots = vec![at("root.cbor")];
    config.board = "test-board".into();
    config.device = "device-7".into();
    config.engines = Arc::new(|| vec![Engine { name: "cpu".into(), version: "rten".into() }]);
    config.memory_limit = Some(4 << 30);
    config.scrub_bytes_per_s = 0;
    config.evidence = told.clone();
    config.clock = clock.clone();
    change(dir.path(), &mut config);
    let (hosts, updater) = started(&config, true).await;
    Device { dir, clock, told, hosts, updater, config, boots: 0 }
}

async fn started(config: &UpdaterConfig, serve: bool) -> (Arc<Hosts>, Arc<Updater>) {
    let hosts = Hosts::new(HostsConfig { workers: 2, queue: 8, ..HostsConfig::default() });
    loop {
        match Updater::start(config.clone(), hosts.clone()).await {
            Ok(updater) => {
                if serve {
                    updater.boot().await;
                } else {
                    updater.boot_without_serving().await;
                }
                return (hosts, updater);
            }
            // The task of the run before has not let go of the lock yet.
            Err(e) if e.to_string().contains("used by another process") => tokio::task::yield_now().await,
            Err(e) => panic!("{e}"),
        }
    }
}

impl Device {
    pub async fn push(&self, bundle: &[u8]) -> Result<Accepted, InstallError> {
        let mut upload = self.begin().await;
        for part in bundle.chunks(10_000) {
            upload.push(part).await?;
        }
        upload.finish().await
    }

    /// Begins a push, once nothing else is under way.
    pub async fn begin(&self) -> Upload {
        loop {
            match self.updater.begin(Way::Push).await {
                Ok(upload) => return upload,
                Err(Busy::Trial | Busy::Transfer(_)) => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Pushes, and waits until it serves or was refused.
    pub async fn try_out(&self, bundle: &[u8]) -> Arc<Status> {
        let accepted = self.push(bundle).await.unwrap();
        self.updater.settled(accepted.verdict).await
    }

    /// Pushes, waits until it serves, lets its time pass, and waits until it is committed.
    pub async fn commit(&self, bundle: &[u8]) {
        let status = self.try_out(bundle).await;
        assert_eq!(status.verdicts.last().unwrap().code, "ok", "{:?}", status.verdicts.last());
        self.pass().await;
        assert!(code(&self.last()).starts_with("commit pass ok"), "{:?}", self.last());
    }

    /// Waits until probation has begun, lets its time pass, and waits until the trial is over.
    pub async fn pass(&self) {
        let on_probation = |t: &inferd_rollout::TrialView| t.phase == inferd_rollout::TrialPhase::Probation;
        self.until(|s| s.trial.as_ref().is_some_and(on_probation)).await;
        self.clock.forward(61);
        self.over().await;
    }

    /// Waits until no trial is open.
    pub async fn over(&self) {
        self.until(|s| s.trial.is_none()).await;
    }

    pub async fn until(&self, what: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        self.updater.status().wait_for(what).await.unwrap().clone()
    }

    pub fn status(&self) -> Arc<Status> {
        self.updater.status().borrow().clone()
    }

    pub fn last(&self) -> Verdict {
        self.status().verdicts.last().unwrap().clone()
    }

    /// `gate outcome code` of every verdict with one of these outcomes.
    pub fn codes(&self, outcomes: &[Outcome]) -> Vec<String> {
        self.status().verdicts.iter().filter(|v| outcomes.contains(&v.outcome)).map(code).collect()
    }

    pub fn served(&self) -> Arc<Served> {
        self.hosts.get("m").expect("model m serves")
    }

    /// One request to `m`: the version that answered, and its answer.
    pub async fn ask(&self, x: [f32; 4]) -> (u32, Vec<f32>) {
        ask(&self.served(), &x).await.expect("no request fails")
    }

    pub fn slot(&self, slot: char) -> inferd_rollout::SlotView {
        self.status().slots.iter().find(|s| s.slot == slot).unwrap().clone()
    }

    /// The file of a slot.
    pub fn slot_file(&self, slot: char) -> PathBuf {
        self.dir.path().join(slot.to_ascii_lowercase().to_string())
    }

    /// Ends the run and starts the next one; `between` looks at the media meanwhile.
    pub async fn end(
        self,
        how: End,
        between: impl FnOnce(inferd_slots::Store<inferd_slots::FileMedium>),
    ) -> Self {
        self.end_and_start(how, between, true).await
    }

    async fn end_and_start(
        self,
        how: End,
        between: impl FnOnce(inferd_slots::Store<inferd_slots::FileMedium>),
        serve: bool,
    ) -> Self {
        let Self { dir, clock, told, hosts, updater, config, mut boots } = self;
        if how == End::Stop {
            updater.stop().await;
        }
        drop(updater);
        hosts.shutdown().await;
        let places = inferd_slots::Config {
            slots: config.slots.clone(),
            data: config.data.clone(),
            capacity: config.slot_bytes,
        };
        loop {
            match inferd_slots::Store::at(&places) {
                Ok(store) => break between(store),
                Err(inferd_slots::SlotError::InUse { .. }) => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        }
        if !matches!(how, End::Crash | End::Stop) {
            boots += 1;
            let panics = if how == End::Panic { vec![format!("dmesg-{boots}")] } else { vec![] };
            *told.0.lock().unwrap() = Evidence {
                boot_id: format!("boot-{boots}"),
                clean_stop: false,
                watchdog_reset: how == End::Watchdog,
                panics,
            };
        }
        let (hosts, updater) = started(&config, serve).await;
        Self { dir, clock, told, hosts, updater, config, boots }
    }

    pub async fn restart(self, how: End) -> Self {
        self.end(how, |_| ()).await
    }

    /// Ends the run; the next one serves nothing.
    /// The same, where all hosts together may use so much from then on.
    pub async fn restart_with_memory(mut self, how: End, limit: u64) -> Self {
        self.config.memory_limit = Some(limit);
        self.restart(how).await
    }

    pub async fn restart_without_serving(self, how: End) -> Self {
        self.end_and_start(how, |_| (), false).await
    }

    pub async fn shut_down(self) {
        self.hosts.shutdown().await;
    }
}

pub fn code(v: &Verdict) -> String {
    format!("{} {} {}", v.gate.name(), v.outcome.name(), v.code)
}

pub async fn ask(served: &Arc<Served>, x: &[f32]) -> Result<(u32, Vec<f32>), InferError> {
    let mut ticket = served.begin(None)?;
    ticket.input_mut(0).copy_from_slice(&bytes(x));
    let answer = ticket.run().await?;
    Ok((answer.manifest().version.parse().unwrap(), floats(answer.output(0))))
}
