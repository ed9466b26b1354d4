//! The device of engine hosts: every rung in a host of its own, on the way requests take.

use crate::jobs::Jobs;
use crate::protocol::{About, Around, Device, NotStarted, OfDevice, Station};
use crate::record::{Conditions, Peak, RungInfo, Subject};
use crate::units::Number;
use inferd_hosts::{Candidate, Hosts, PrepareError, Served};
use inferd_model::{DType, GoldenCase, Manifest, Precision, Rung};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the work around the computing is done to be measured.
const AROUND_RUNS: usize = 30;
/// Elements beyond which that is not measured: it would hold a thread for too long.
const MOST_ELEMENTS: usize = 1 << 20;

/// How often it is looked whether there is another choice.
const FOLLOW: Duration = Duration::from_secs(1);

/// What the rooms above tell.
pub struct Surroundings {
    /// The firmware: numbers of another one are not compared with its own.
    pub firmware: String,
    /// The model that is meant when none is named.
    pub default_model: Box<dyn Fn() -> Option<Arc<Served>> + Send + Sync>,
    /// What the device is like now.
    pub conditions: Box<dyn Fn() -> Conditions + Send + Sync>,
}

/// The models of a daemon, to be measured.
pub struct HostsDevice {
    hosts: Arc<Hosts>,
    around: Surroundings,
    started: Instant,
}

impl HostsDevice {
    /// Of these hosts.
    #[must_use]
    pub fn new(hosts: Arc<Hosts>, around: Surroundings) -> Self {
        Self { hosts, around, started: Instant::now() }
    }

    fn model(&self, name: &str) -> Option<Arc<Served>> {
        if name.is_empty() { (self.around.default_model)() } else { self.hosts.get(name) }
    }

    fn subject_of(&self, manifest: &Manifest) -> Subject {
        Subject { firmware: self.around.firmware.clone(), ..subject(manifest) }
    }
}

/// Has every model served by the rung that its newest benchmark of all rungs selected, as long as there is one. Never ends.
pub async fn follow(jobs: Arc<Jobs<HostsDevice>>) {
    loop {
        for served in jobs.device().hosts.list() {
            let rung = jobs.choice(served.manifest().name.as_str());
            served.prefer(rung.and_then(|rung| rung.parse().ok()));
        }
        tokio::time::sleep(FOLLOW).await;
    }
}

fn rungs(manifest: &Manifest) -> Vec<RungInfo> {
    let one = |&rung: &Rung| {
        let network = manifest.network(rung);
        let precision = network.and_then(|n| n.variant).map_or(Precision::Fp32, |v| v.precision);
        RungInfo {
            rung: rung.to_string(),
            engine: rung.engine.name().to_owned(),
            precision: precision.to_string(),
            sha256: network.map_or_else(String::new, |n| n.sha256.to_owned()),
        }
    };
    manifest.engines.iter().map(one).collect()
}

fn subject(manifest: &Manifest) -> Subject {
    let input = |spec: &inferd_model::TensorSpec| format!("{} {} {:?}", spec.name, spec.dtype, spec.shape);
    Subject {
        model: manifest.name.to_string(),
        version: manifest.version.clone(),
        sha256: manifest.onnx.sha256.clone(),
        task: manifest.task.name().to_owned(),
        inputs: manifest.inputs.iter().map(input).collect(),
        firmware: String::new(),
        arch: std::env::consts::ARCH.to_owned(),
        cores: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
    }
}

/// A host that is measured.
pub struct Auditioned {
    candidate: Candidate,
    /// The model, when its host is the one that serves.
    lent: Option<Arc<Served>>,
}

impl Station for Auditioned {
    fn about(&self) -> About {
        let (engine, agreement) = (self.candidate.engine(), self.candidate.agreement());
        // Half of its slots are left to requests.
        let half = || u32::try_from(self.candidate.slots() / 2).unwrap_or(u32::MAX).max(1);
        About {
            library: engine.version,
            device: engine.device,
            workers: u32::try_from(self.candidate.workers()).unwrap_or(u32::MAX),
            cosine: Some(agreement.cosine),
            max_abs: Some(agreement.max_abs),
            most_in_flight: match self.lent {
                Some(_) => half(),
                None => u32::try_from(self.candidate.slots()).unwrap_or(u32::MAX),
            },
        }
    }

    async fn infer(&self, turn: usize) -> Result<Duration, String> {
        let cases = self.candidate.golden().cases();
        let inputs: Vec<&[u8]> = cases[turn % cases.len()].inputs.iter().map(Vec::as_slice).collect();
        let answer = self.candidate.run(&inputs).await.map_err(|e| e.to_string())?;
        Ok(answer.timing().compute)
    }

    fn ended(&self) -> Option<NotStarted> {
        let reason = self.candidate.ended()?;
        Some(NotStarted { reason, out_of_memory: self.candidate.is_out_of_memory(), busy: false })
    }

    fn cpu(&self) -> Option<Duration> {
        self.candidate.cpu_time()
    }

    fn peak(&self) -> Option<Peak> {
        let peak = self.candidate.peak_memory()?;
        Some(Peak { peak_bytes: peak.bytes, cap_bytes: peak.cap, how: peak.how.to_owned() })
    }

    fn device(&self) -> Option<OfDevice> {
        let state = self.candidate.device()?;
        let number = |v: Option<f32>| v.and_then(|v| Number::new(v.into()));
        Some(OfDevice {
            celsius: number(state.temperature),
            watts: number(state.power),
            is_hot: state.zone.is_some_and(|zone| zone > 0),
        })
    }

    fn requests(&self) -> Option<u64> {
        self.lent.as_ref().map(|served| served.snapshot().success)
    }
}

impl Device for HostsDevice {
    type Station = Auditioned;

    fn subject(&self, model: &str) -> Option<(Subject, Vec<RungInfo>)> {
        let manifest = self.model(model)?.manifest();
        Some((self.subject_of(&manifest), rungs(&manifest)))
    }

    fn models(&self) -> Vec<String> {
        self.hosts.list().iter().map(|m| m.manifest().name.to_string()).collect()
    }

    async fn start(&self, wanted: &Subject, rung: &str, workers: u32) -> Result<Auditioned, NotStarted> {
        let no = |reason: &str| NotStarted { reason: reason.to_owned(), ..NotStarted::default() };
        let served = self.hosts.get(&wanted.model).ok_or_else(|| no("the model is not served any more"))?;
        let manifest = served.manifest();
        if self.subject_of(&manifest) != *wanted {
            return Err(no("the model was replaced while it was measured"));
        }
        let found = manifest.engines.iter().find(|r| r.to_string() == rung);
        let rung = *found.ok_or_else(|| no("the manifest has no such rung"))?;
        let workers = (workers > 0).then_some(workers as usize);
        match self.hosts.audition(&wanted.model, rung, workers).await {
            Ok(candidate) => Ok(Auditioned { lent: candidate.serves().then_some(served), candidate }),
            Err(e) => Err(NotStarted {
                reason: e.to_string(),
                out_of_memory: matches!(e, PrepareError::Memory { .. }),
                busy: matches!(e, PrepareError::Busy(_)),
            }),
        }
    }

    async fn around(&self, wanted: &Subject) -> Result<Around, String> {
        let served = self.hosts.get(&wanted.model).ok_or("the model is not served any more")?;
        let (manifest, golden) = (served.manifest(), served.golden());
        let tensors = || manifest.inputs.iter().chain(&manifest.outputs);
        if tensors().any(|t| t.dtype != DType::Fp32) {
            return Err("it is measured of FP32 tensors only".into());
        }
        if tensors().map(inferd_model::TensorSpec::elements).sum::<usize>() > MOST_ELEMENTS {
            return Err(format!("it is measured of at most {MOST_ELEMENTS} elements"));
        }
        let measure = move || golden.cases().first().and_then(|case| around(&manifest, case));
        let done = tokio::task::spawn_blocking(measure).await.map_err(|e| e.to_string())?;
        done.ok_or_else(|| "its golden vectors cannot be written as JSON".to_owned())
    }

    fn conditions(&self) -> Conditions {
        (self.around.conditions)()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_shedding(&self) -> bool {
        self.hosts.is_shedding()
    }

    fn answered(&self) -> u64 {
        self.hosts.list().iter().map(|m| m.snapshot().success).sum()
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// Parses, normalises and writes one golden case several times; the medians.
fn around(manifest: &Manifest, case: &GoldenCase) -> Option<Around> {
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let inputs: Vec<Vec<f32>> = case.inputs.iter().map(|b| floats(b)).collect();
    let outputs: Vec<Vec<f32>> = case.outputs.iter().map(|b| floats(b)).collect();
    let text = serde_json::to_vec(&inputs).ok()?;
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut timed = |i: usize, work: &mut dyn FnMut() -> Option<usize>| {
        let start = Instant::now();
        std::hint::black_box(work())?;
        times[i].push(start.elapsed());
        Some(())
    };
    for _ in 0..AROUND_RUNS {
        timed(0, &mut || Some(serde_json::from_slice::<Vec<Vec<f32>>>(&text).ok()?.len()))?;
        timed(1, &mut || {
            for (spec, raw) in manifest.inputs.iter().zip(&inputs) {
                let mut out = vec![0.0; raw.len()];
                if let Some(normalization) = &spec.normalization {
                    normalization.apply(raw, &mut out);
                }
                std::hint::black_box(&out);
            }
            Some(0)
        })?;
        timed(2, &mut || Some(serde_json::to_vec(&outputs).ok()?.len()))?;
    }
    let [parse, normalise, serialise] = times.map(|mut t| {
        t.sort_unstable();
        t[t.len() / 2]
    });
    let json_bytes = text.len() as u64 + serde_json::to_vec(&outputs).ok()?.len() as u64;
    Some(Around { json_bytes, parse, normalise, serialise })
}
