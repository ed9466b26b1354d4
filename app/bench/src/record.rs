//! What a benchmark leaves: the numbers, where they were measured, and the decision made of them.
//!
//! A record has no clock in it: the same numbers make the same bytes, and reports are made of nothing else. When it was measured
//! stands beside it, in its [`Kept`] envelope.

use crate::constraint::Constraint;
use crate::regress::Regression;
use crate::request::Request;
use crate::select::{self, Decision, Rule};
use crate::stats::Summary;
use crate::units::{Number, Time};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The form of records. In form 1 any difference decided; its records are read, and decided as they were. Before form 3 no batch was
/// measured, and a host that ended was not started again.
pub const SCHEMA: u32 = 3;
/// The largest record that is read.
pub const MAX_BYTES: usize = 256 << 10;
/// The most rungs of one record.
pub const MAX_RUNGS: usize = 16;

/// What was measured, and on what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// The model's name.
    pub model: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its network.
    pub sha256: String,
    /// What it is for.
    pub task: String,
    /// Its inputs: `imu_window FP32 [1, 100, 9]`.
    pub inputs: Vec<String>,
    /// The version of the firmware.
    pub firmware: String,
    /// The processor's architecture.
    pub arch: String,
    /// Cores of the board.
    pub cores: u32,
}

/// One rung of a model's ladder, as the manifest has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RungInfo {
    /// Its name: `ort-int8`.
    pub rung: String,
    /// Its engine: `ort`.
    pub engine: String,
    /// `fp32`, `fp16` or `int8`, as the manifest says.
    pub precision: String,
    /// SHA-256 of what it runs.
    #[serde(default)]
    pub sha256: String,
}

/// What the device was like. What it cannot say is absent, never 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// The hottest sensor, in degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub celsius: Option<Number>,
    /// Whether the clock is throttled or capped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<bool>,
    /// Whether the supply is too low.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_voltage: Option<bool>,
    /// How busy the processors were when they were last looked at, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<Number>,
    /// The accelerator's temperature, in degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator_celsius: Option<Number>,
    /// Whether the accelerator has said that it is too warm: it may throttle itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator_hot: Option<bool>,
}

impl Conditions {
    /// Whether anything here may be slower than it can be, as far as is known.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.throttled == Some(true) || self.accelerator_hot == Some(true)
    }
}

/// The most memory a host used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    /// Bytes.
    pub peak_bytes: u64,
    /// The cap that held.
    pub cap_bytes: u64,
    /// How it was measured: `cgroup` or `proc`.
    pub how: String,
}

/// What one rung came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Library and version.
    pub library: String,
    /// The device it computed on.
    pub device: String,
    /// Worker threads of its host.
    pub workers: u32,
    /// From the request's start to its answer, one at a time, as a caller inside the daemon has it: all kept runs together.
    pub latency: Summary,
    /// Of that in the engine's worker, normalisation included.
    pub compute: Summary,
    /// Inferences per second with one in flight.
    pub throughput_per_s: Number,
    /// The mean of each run, in their order.
    pub run_means_ms: Vec<Time>,
    /// How far apart the means of the kept runs are.
    pub spread_percent: Number,
    /// Whether that is below 5 %.
    pub stable: bool,
    /// Inferences of the kept runs that failed; `latency` has the others.
    pub errors: u64,
    /// Why the last of them did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Processor time of the host per inference.
    #[serde(default, rename = "cpu_ms_per_inference", skip_serializing_if = "Option::is_none")]
    pub cpu_per_inference: Option<Time>,
    /// Memory of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Peak>,
    /// The least cosine similarity of any output of any golden vector that says anything, on this device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<Number>,
    /// The largest difference to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_abs: Option<Number>,
    /// Mean of the accelerator's power, read after each run, where it can measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Number>,
    /// Requests of clients that its host answered meanwhile: it is the host that serves, because its device has one owner. Absent for a
    /// host of the rung's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// The device before.
    pub before: Conditions,
    /// The device after.
    pub after: Conditions,
}

/// A rung and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungResult {
    /// Which.
    #[serde(flatten)]
    pub info: RungInfo,
    /// Its numbers; `None`: it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// There are none for a reason that may pass, and that says nothing about the rung: its device is there and could not be had, or its
    /// host came up and ended while it was measured, twice where it was its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub busy: bool,
    /// Why the first host it was measured in ended; everything here is of the second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<String>,
}

impl RungResult {
    /// One that was measured.
    #[must_use]
    pub fn of(info: &RungInfo, measured: Measured) -> Self {
        Self { info: info.clone(), measured: Some(measured), reason: None, busy: false, restarted: None }
    }

    /// One that could not be measured, and why.
    #[must_use]
    pub fn none(info: &RungInfo, reason: String) -> Self {
        Self { info: info.clone(), measured: None, reason: Some(reason), busy: false, restarted: None }
    }
}

/// The steps of the protocol, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Step {
    Baseline,
    GraphOptimisation,
    Precision,
    Accelerator,
    Batch,
    PreAndPostProcessing,
    PeakMemory,
    Concurrency,
    Stability,
}

impl Step {
    /// All nine.
    pub const ALL: [Self; 9] = [
        Self::Baseline,
        Self::GraphOptimisation,
        Self::Precision,
        Self::Accelerator,
        Self::Batch,
        Self::PreAndPostProcessing,
        Self::PeakMemory,
        Self::Concurrency,
        Self::Stability,
    ];

    /// Its name in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Baseline => "baseline f32",
            Self::GraphOptimisation => "graph optimisation",
            Self::Precision => "FP16 and INT8",
            Self::Accelerator => "accelerator",
            Self::Batch => "batch",
            Self::PreAndPostProcessing => "pre- and post-processing",
            Self::PeakMemory => "peak memory",
            Self::Concurrency => "concurrency",
            Self::Stability => "stability",
        }
    }

    /// 1 to 9.
    #[must_use]
    pub fn number(self) -> usize {
        Self::ALL.iter().position(|s| *s == self).map_or(0, |i| i + 1)
    }
}

/// Whether more optimising is worth it after a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// How much faster than the best before (p50), in percent; absent for the first, and where no rung of the step was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub improvement_percent: Option<Number>,
    /// It is less than 10 %.
    pub little_improvement: bool,
    /// Runs agree within 5 %.
    pub stable: bool,
    /// No rung of the step was out of memory.
    pub within_memory: bool,
    /// The best so far keeps to the constraints of latency.
    pub fast_enough: bool,
    /// All four: stop here.
    pub holds: bool,
}

/// Numbers with so many requests in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LoadPoint {
    pub in_flight: u32,
    pub throughput_per_s: Number,
    /// `None` when none was answered.
    pub latency: Option<Summary>,
    pub errors: u64,
}

/// Several requests handed to a rung's ring at once, again and again, each time when all of those before were answered: what a batch
/// comes to where a request is one input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchPoint {
    /// How many at once.
    pub at_once: u32,
    /// Answers per second, all together.
    pub throughput_per_s: Number,
    /// Of each request, from when all were handed over to its own answer; `None` when none was answered.
    pub latency: Option<Summary>,
    /// From when all were handed over to the last answer, where all were answered.
    pub whole: Option<Summary>,
    /// Requests that failed.
    pub errors: u64,
}

/// What several at once come to on one rung.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchOf {
    /// Which.
    pub rung: String,
    /// The same with one at a time, from the rung's own numbers.
    pub one_by_one_per_s: Number,
    /// In the order in which they were asked for.
    pub points: Vec<BatchPoint>,
    /// Why there are no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// What a step found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Found {
    /// It was not done.
    Skipped { reason: String },
    /// These rungs were measured.
    Rungs { rungs: Vec<String>, stop: Stop },
    /// Several requests at once, on every rung that was measured.
    Batch {
        /// Why no engine is given them as one batch.
        because: String,
        rungs: Vec<BatchOf>,
    },
    /// What is spent around the computing of `rung`, with input and output as JSON arrays.
    Share {
        rung: String,
        json_bytes: u64,
        parse_ms: Time,
        normalise_ms: Time,
        serialise_ms: Time,
        compute_ms: Time,
        /// Parse, normalise and serialise of all of it, in percent.
        around_percent: Number,
    },
    /// The most memory of each rung.
    Memory { peaks: Vec<MemoryOf> },
    /// Several in flight, on `rung`.
    Load { rung: String, points: Vec<LoadPoint>, stopped: Option<String> },
    /// Without a pause, on `rung`.
    Soak {
        rung: String,
        seconds: Number,
        requests: u64,
        errors: u64,
        latency: Option<Summary>,
        /// The last third's median against the first third's, in percent.
        drift_percent: Option<Number>,
        /// Why it was over before its time: its host ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ended: Option<String>,
        before: Conditions,
        after: Conditions,
    },
}

/// One rung's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct MemoryOf {
    pub rung: String,
    pub peak: Peak,
    /// Of the cap.
    pub percent: Number,
}

/// One step of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// Which.
    pub step: Step,
    /// What it found.
    #[serde(flatten)]
    pub found: Found,
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was measured.
    pub subject: Subject,
    /// What was asked for, defaults filled in.
    pub request: Request,
    /// The device before.
    pub before: Conditions,
    /// The device after.
    pub after: Conditions,
    /// Every rung that was asked for, in the manifest's order.
    pub rungs: Vec<RungResult>,
    /// The nine steps.
    pub steps: Vec<StepResult>,
    /// Against the stored baselines, by rung.
    pub regressions: Vec<Regression>,
    /// The decision.
    pub decision: Decision,
}

/// Why something is no record; one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no record of a benchmark: {0}")]
pub struct NoRecord(String);

impl Record {
    /// Reads a record, or the record in its envelope.
    ///
    /// # Errors
    /// [`NoRecord`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoRecord> {
        let no = |e: serde_json::Error| NoRecord(e.to_string());
        check_size(bytes)?;
        let envelope = serde_json::from_slice::<Kept>(bytes).ok().and_then(|kept| kept.record);
        let record = match envelope {
            Some(record) => record,
            None => serde_json::from_slice::<Self>(bytes).map_err(no)?,
        };
        record.checked()
    }

    fn checked(self) -> Result<Self, NoRecord> {
        check_form(self.schema)?;
        if self.rungs.len() > MAX_RUNGS || self.steps.len() > Step::ALL.len() {
            return Err(NoRecord("it has more rungs or steps than there can be".into()));
        }
        let faults = self.rungs.iter().find(|r| r.measured.is_some() == r.reason.is_some());
        if let Some(rung) = faults {
            return Err(NoRecord(format!(
                "rung {:?} has neither numbers nor a reason, or both",
                rung.info.rung
            )));
        }
        Ok(self)
    }

    /// Makes the decision again from the numbers.
    #[must_use]
    pub fn replay(&self) -> Decision {
        let rule = if self.schema == 1 { Rule::Exact } else { Rule::Classes };
        select::decide_by(rule, &self.request.constraints, &self.rungs)
    }

    /// The constraints that held.
    #[must_use]
    pub fn constraints(&self) -> &[Constraint] {
        &self.request.constraints
    }

    /// This rung's result.
    #[must_use]
    pub fn rung(&self, name: &str) -> Option<&RungResult> {
        self.rungs.iter().find(|r| r.info.rung == name)
    }

    /// The canonical text: the same record, the same bytes.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("every field of a record has a JSON form")
    }

    /// The first 16 hex digits of the SHA-256 of the canonical text.
    #[must_use]
    pub fn id(&self) -> String {
        Self::id_of(&self.to_json())
    }

    /// The same of a text that is there already.
    pub(crate) fn id_of(canonical: &str) -> String {
        use std::fmt::Write as _;
        let digest = Sha256::digest(canonical.as_bytes());
        digest.iter().take(8).fold(String::new(), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }
}

fn check_form(form: u32) -> Result<(), NoRecord> {
    if !(1..=SCHEMA).contains(&form) {
        return Err(NoRecord(format!("its form is {form}, this program reads 1 to {SCHEMA}")));
    }
    Ok(())
}

fn check_size(bytes: &[u8]) -> Result<(), NoRecord> {
    if bytes.len() > MAX_BYTES {
        return Err(NoRecord(format!("it has {} bytes, at most {MAX_BYTES} are read", bytes.len())));
    }
    Ok(())
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It runs.
    Running,
    /// It has a record.
    Completed,
    /// It has none.
    Failed { reason: String },
    /// Somebody did not want it any more.
    Cancelled,
}

impl JobState {
    /// Every name.
    pub const NAMES: [&'static str; 5] = ["queued", "running", "completed", "failed", "cancelled"];

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// A job as it is kept: what has a clock in it stands here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The job's number.
    pub job: u64,
    /// Unix time in milliseconds when it was asked for, as the clock had it.
    pub asked_ms: u64,
    /// The same when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// What became of it.
    pub status: JobState,
    /// What was asked for.
    pub request: Request,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
}

impl Kept {
    /// Reads what was kept.
    ///
    /// # Errors
    /// [`NoRecord`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoRecord> {
        check_size(bytes)?;
        let mut kept: Self = serde_json::from_slice(bytes).map_err(|e| NoRecord(e.to_string()))?;
        check_form(kept.schema)?;
        kept.record = kept.record.map(Record::checked).transpose()?;
        Ok(kept)
    }
}
