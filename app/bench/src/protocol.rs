//! The nine steps, as code.
//!
//! 1 baseline f32 · 2 graph optimisation (the same network on engines that rewrite it) · 3 FP16 and INT8 · 4 accelerator · 5 batch ·
//! 6 pre- and post-processing · 7 peak memory · 8 concurrency · 9 stability. Each gives numbers or the reason why there are none.
//! A request is one input of the shape that the manifest fixes, so no engine is given several as one tensor: step 5 hands several
//! requests to the ring of each rung at once, and says so.
//! Every rung is measured in a host of its own, one after the other, and its host ends before the next begins: two rungs must not heat
//! each other. Only where a device has one owner and the model is served on it, the host that serves is measured, and how many requests
//! it answered meanwhile is told. Steps 6, 8 and 9 are about the rung that the numbers of 1 to 4 select.
//!
//! The **stop rules** after a step: the best so far is less than 10 % faster than the best before, its runs agree within 5 %, no
//! rung of the step was out of memory, and it keeps to the constraints of latency. When all hold, optimising further is not worth it; a request
//! may ask to end it there (`stop`), otherwise all rungs are measured and the rules are only told.

use crate::constraint::{Metric, Side};
use crate::record::{
    BatchOf, BatchPoint, Conditions, Found, LoadPoint, Measured, MemoryOf, Peak, Record, RungInfo,
    RungResult, SCHEMA, Step, StepResult, Stop, Subject,
};
use crate::regress::{self, Baseline, Key};
use crate::request::Request;
use crate::select::decide;
use crate::stats::{STABLE_PERCENT, Summary, Thinned, agree, mean, spread_percent};
use crate::units::{Number, Time};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// A step that makes the best less than so much faster is the last one worth it.
pub const LITTLE_PERCENT: f64 = 10.0;
/// Failed inferences in a row after which a rung is given up.
const MOST_FAILURES: u32 = 3;
/// How long a benchmark waits for a device that sheds optional work.
const PATIENCE: Duration = Duration::from_secs(600);
/// Samples of a stability run that are kept.
const SOAK_SAMPLES: usize = 1 << 14;

/// Why a rung has no host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotStarted {
    /// One sentence.
    pub reason: String,
    /// It was over its memory cap.
    pub out_of_memory: bool,
    /// Its device is there and could not be had.
    pub busy: bool,
}

/// What a host says of itself once it is up.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct About {
    pub library: String,
    pub device: String,
    pub workers: u32,
    pub cosine: Option<f64>,
    pub max_abs: Option<f64>,
    /// The most inferences it may be given at once: the places it has, and of a host that serves those that are left to us.
    pub most_in_flight: u32,
}

/// How the device of a host's engine is.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfDevice {
    /// Its temperature, in degrees Celsius.
    pub celsius: Option<Number>,
    /// Its power, in watts, where it can measure it.
    pub watts: Option<Number>,
    /// It has said that it is too warm.
    pub is_hot: bool,
}

/// A host that runs one rung.
pub trait Station: Send + Sync + 'static {
    /// What it is.
    fn about(&self) -> About;
    /// Runs one golden input (they are taken in turn); the time in the engine's worker.
    fn infer(&self, turn: usize) -> impl Future<Output = Result<Duration, String>> + Send;
    /// Why its host has ended, if it has.
    fn ended(&self) -> Option<NotStarted>;
    /// Processor time of the host so far.
    fn cpu(&self) -> Option<Duration>;
    /// Its most memory so far.
    fn peak(&self) -> Option<Peak>;
    /// Requests of the model that were answered so far, when it is the host that serves.
    fn requests(&self) -> Option<u64>;
    /// How its engine's device is, when it has one that says so.
    fn device(&self) -> Option<OfDevice>;
}

/// What is spent around the computing of one inference.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Around {
    pub json_bytes: u64,
    pub parse: Duration,
    pub normalise: Duration,
    pub serialise: Duration,
}

/// The device that is measured.
pub trait Device: Send + Sync + 'static {
    /// Its hosts.
    type Station: Station;
    /// The model of this name (empty: the default one) and its rungs, the preferred one first.
    fn subject(&self, model: &str) -> Option<(Subject, Vec<RungInfo>)>;
    /// Names of the models it serves.
    fn models(&self) -> Vec<String>;
    /// Starts a host of its own for a rung; its golden vectors have passed in it. Dropping it ends it.
    fn start(
        &self,
        subject: &Subject,
        rung: &str,
        workers: u32,
    ) -> impl Future<Output = Result<Self::Station, NotStarted>> + Send;
    /// Measures what is spent around the computing; the reason when it cannot be said.
    fn around(&self, subject: &Subject) -> impl Future<Output = Result<Around, String>> + Send;
    /// What it is like now.
    fn conditions(&self) -> Conditions;
    /// A clock that only goes on.
    fn now(&self) -> Duration;
    /// Whether it sheds optional work.
    fn is_shedding(&self) -> bool;
    /// Requests that its models have answered so far.
    fn answered(&self) -> u64;
    /// Lets time pass.
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;
}

/// Where a benchmark is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// The step; `None` before the first.
    pub step: Option<Step>,
    /// The rung that is measured.
    pub rung: Option<String>,
    /// How much is done, in percent.
    pub percent: u8,
}

/// Told from outside: where it is, and whether it is still wanted.
#[derive(Debug, Default)]
pub struct Reins {
    stopped: AtomicBool,
    told: Notify,
    progress: Mutex<Progress>,
}

impl Reins {
    /// It is not wanted any more.
    pub fn cancel(&self) {
        self.stopped.store(true, SeqCst);
        self.told.notify_waiters();
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// Where it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn check(&self) -> Result<(), Ended> {
        if self.is_cancelled() { Err(Ended::Cancelled) } else { Ok(()) }
    }

    /// Waits for it, or for the end.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        let cancelled = self.told.notified();
        tokio::pin!(cancelled);
        cancelled.as_mut().enable();
        self.check()?;
        tokio::select! {
            biased;
            () = cancelled => Err(Ended::Cancelled),
            done = work => Ok(done),
        }
    }
}

/// Why a benchmark gave no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Somebody did not want it any more.
    #[error("it was cancelled")]
    Cancelled,
    /// It could not go on; one sentence.
    #[error("{0}")]
    Failed(String),
}

/// Runs a whole benchmark. `request` has been checked and names rungs that the model has.
///
/// # Errors
/// [`Ended`].
pub async fn run<D: Device>(
    device: &Arc<D>,
    request: &Request,
    baselines: &[Baseline],
    reins: &Reins,
) -> Result<Record, Ended> {
    let gone = || Ended::Failed("the model is not served any more".to_owned());
    let (subject, rungs) = device.subject(&request.model).ok_or_else(gone)?;
    let wanted: Vec<RungInfo> = rungs.into_iter().filter(|r| request.rungs.contains(&r.rung)).collect();
    let before = device.conditions();
    let mut run = Run {
        device,
        request,
        subject: &subject,
        reins,
        results: Vec::new(),
        steps: Vec::new(),
        done: 0,
        units: 2 * wanted.len() + 3,
        oom: false,
    };
    run.ladder(&wanted).await?;
    run.batches(&wanted).await?;
    let order = |r: &RungResult| wanted.iter().position(|w| w.rung == r.info.rung);
    run.results.sort_by_key(order);
    let decision = decide(&request.constraints, &run.results);
    let chosen = decision.rung.clone().or_else(|| decision.nearest.clone());
    run.chosen(chosen.as_deref()).await?;
    let Run { results, steps, .. } = run;
    let regressions = results.iter().filter_map(|r| {
        let key = Key::of(&subject, &r.info);
        let baseline = baselines.iter().find(|b| b.key == key);
        Some(regress::check(&r.info.rung, baseline, r.measured.as_ref()?))
    });
    Ok(Record {
        schema: SCHEMA,
        regressions: regressions.collect(),
        request: request.clone(),
        before,
        after: device.conditions(),
        rungs: results,
        steps,
        decision,
        subject,
    })
}

/// Measures one rung and nothing else: warm-up, then one run.
///
/// # Errors
/// [`Ended`].
pub async fn quick<D: Device>(
    device: &Arc<D>,
    subject: &Subject,
    info: &RungInfo,
    request: &Request,
    reins: &Reins,
) -> Result<RungResult, Ended> {
    let mut run = Run {
        device,
        request,
        subject,
        reins,
        results: Vec::new(),
        steps: Vec::new(),
        done: 0,
        units: 1,
        oom: false,
    };
    run.measure(info).await
}

fn is_accelerator(info: &RungInfo) -> bool {
    !matches!(info.engine.as_str(), "cpu" | "ort")
}

/// The step a rung belongs to; of those with the plain network one is the baseline.
fn step_of(info: &RungInfo, baseline: Option<&str>) -> Step {
    if is_accelerator(info) {
        Step::Accelerator
    } else if info.precision != "fp32" {
        Step::Precision
    } else if Some(info.rung.as_str()) == baseline {
        Step::Baseline
    } else {
        Step::GraphOptimisation
    }
}

/// The rung that everything is compared with: the plain network on the built-in engine, else on the least preferred one.
fn baseline_of(rungs: &[RungInfo]) -> Option<&str> {
    let plain = || rungs.iter().filter(|r| !is_accelerator(r) && r.precision == "fp32");
    let built_in = plain().find(|r| r.engine == "cpu");
    built_in.or_else(|| plain().next_back()).map(|r| r.rung.as_str())
}

fn why_none(step: Step) -> &'static str {
    match step {
        Step::Baseline => "no rung that was asked for runs the f32 network on the processor",
        Step::GraphOptimisation => {
            "no other engine that was asked for runs the f32 network; what an engine does to a graph is always on"
        }
        Step::Precision => "no FP16 or INT8 rung was asked for, or the model has none",
        _ => "no rung on an accelerator was asked for, or the model has none",
    }
}

/// The stop rules. `before`: the best p50 before this step; `best`: the best so far.
#[must_use]
#[allow(clippy::cast_precision_loss)] // percent
pub fn stop_rules(before: Option<&Measured>, best: Option<&Measured>, oom: bool, request: &Request) -> Stop {
    let improvement = before.zip(best).and_then(|(before, best)| {
        let (old, new) = (before.latency.p50.nanos() as f64, best.latency.p50.nanos() as f64);
        if old > 0.0 { Number::new((1.0 - new / old) * 100.0) } else { None }
    });
    let limits = request
        .constraints
        .iter()
        .filter(|c| c.side == Side::Below && c.metric.name().ends_with("_ms") && c.metric != Metric::CpuMs);
    let mut stop = Stop {
        improvement_percent: improvement,
        little_improvement: improvement.is_some_and(|i| i.value() < LITTLE_PERCENT),
        stable: best.is_some_and(|b| b.stable),
        within_memory: !oom,
        fast_enough: best.is_some_and(|best| limits.clone().all(|c| c.broken_by(best).is_none())),
        holds: false,
    };
    stop.holds = stop.little_improvement && stop.stable && stop.within_memory && stop.fast_enough;
    stop
}

struct Run<'a, D> {
    device: &'a Arc<D>,
    request: &'a Request,
    subject: &'a Subject,
    reins: &'a Reins,
    results: Vec<RungResult>,
    steps: Vec<StepResult>,
    /// Of `units` of work, for the progress.
    done: usize,
    units: usize,
    /// A rung of this step was out of memory.
    oom: bool,
}

/// What became of a rung in one host.
#[allow(clippy::large_enum_variant)] // it lives for one match
enum Attempt {
    /// This.
    Over(RungResult),
    /// Its host ended meanwhile, for this reason.
    HostEnded(String),
}

/// Times of one run, in nanoseconds.
#[derive(Default)]
struct Times {
    total: Vec<u64>,
    compute: Vec<u64>,
    wall: Duration,
    errors: u64,
    last_error: Option<String>,
}

/// What the board says, and what the engine's device says.
fn conditions(board: Conditions, device: Option<OfDevice>) -> Conditions {
    Conditions {
        accelerator_celsius: device.and_then(|d| d.celsius),
        accelerator_hot: device.map(|d| d.is_hot),
        ..board
    }
}

/// The mean of what was read; nothing of nothing.
#[allow(clippy::cast_precision_loss)] // a few readings
fn mean_of(readings: &[Number]) -> Option<Number> {
    let sum: f64 = readings.iter().map(|n| n.value()).sum();
    if readings.is_empty() { None } else { Number::new(sum / readings.len() as f64) }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn per_second(count: usize, time: Duration) -> Number {
    let seconds = time.as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    Number::new(rate).unwrap_or_default()
}

impl<D: Device> Run<'_, D> {
    /// Steps 1 to 4: every rung.
    async fn ladder(&mut self, wanted: &[RungInfo]) -> Result<(), Ended> {
        let baseline = baseline_of(wanted).map(str::to_owned);
        let mut held_after = None;
        for step in [Step::Baseline, Step::GraphOptimisation, Step::Precision, Step::Accelerator] {
            let mine: Vec<&RungInfo> =
                wanted.iter().filter(|r| step_of(r, baseline.as_deref()) == step).collect();
            if mine.is_empty() {
                self.skip(step, why_none(step));
                continue;
            }
            if let Some(after) = held_after {
                let after: Step = after;
                let reason = format!("the stop rules held after step {} ({})", after.number(), after.words());
                for info in mine {
                    self.results.push(RungResult::none(info, reason.clone()));
                    self.done += 1;
                }
                self.skip(step, &reason);
                continue;
            }
            let before = self.best().cloned();
            self.oom = false;
            for info in &mine {
                self.reins.tell(|p| p.step = Some(step));
                let result = self.measure(info).await?;
                self.results.push(result);
                self.done += 1;
            }
            // Where nothing was measured nothing is known to be as fast as before.
            let fresh = &self.results[self.results.len() - mine.len()..];
            let before = before.filter(|_| fresh.iter().any(|r| r.measured.is_some()));
            let stop = stop_rules(before.as_ref(), self.best(), self.oom, self.request);
            if stop.holds && self.request.stop {
                held_after = Some(step);
            }
            let rungs = mine.iter().map(|r| r.rung.clone()).collect();
            self.steps.push(StepResult { step, found: Found::Rungs { rungs, stop } });
        }
        Ok(())
    }

    /// Step 5: several requests at once, on every rung that was measured.
    async fn batches(&mut self, wanted: &[RungInfo]) -> Result<(), Ended> {
        let sizes = self.request.batches.clone().unwrap_or_default();
        if sizes.is_empty() {
            self.skip(Step::Batch, "it was not asked for");
            self.done += wanted.len();
            return Ok(());
        }
        let mut rungs = Vec::new();
        for info in wanted {
            let measured = self.results.iter().find(|r| r.info.rung == info.rung);
            let one_by_one = measured.and_then(|r| Some(r.measured.as_ref()?.throughput_per_s));
            if let Some(one_by_one_per_s) = one_by_one {
                self.at(Step::Batch, Some(&info.rung));
                let (points, stopped) = self.batches_of(&info.rung, &sizes).await?;
                rungs.push(BatchOf { rung: info.rung.clone(), one_by_one_per_s, points, stopped });
            }
            self.done += 1;
        }
        if rungs.is_empty() {
            self.skip(Step::Batch, "no rung could be measured");
            return Ok(());
        }
        let inputs = self.subject.inputs.join(", ");
        let because = format!(
            "a request is one input of the shape that the manifest fixes ({inputs}), so no engine is given several as one"
        );
        self.steps.push(StepResult { step: Step::Batch, found: Found::Batch { because, rungs } });
        Ok(())
    }

    /// Of one rung, in a host of its own; and why there are not all of them.
    async fn batches_of(
        &self,
        rung: &str,
        sizes: &[u32],
    ) -> Result<(Vec<BatchPoint>, Option<String>), Ended> {
        self.room().await?;
        let starting = self.device.start(self.subject, rung, self.request.workers);
        let station = match self.reins.unless_cancelled(starting).await? {
            Ok(station) => Arc::new(station),
            Err(e) => return Ok((Vec::new(), Some(e.reason))),
        };
        self.times(&station, self.request.warm_up).await?;
        let mut points = Vec::new();
        for &at_once in sizes {
            if let Some(reason) = too_many(&*station, at_once) {
                return Ok((points, Some(reason)));
            }
            self.room().await?;
            let point = self.at_once(&station, at_once).await?;
            let failed = point.errors > 0;
            points.push(point);
            if let Some(end) = self.end_of(&station, failed).await? {
                return Ok((points, Some(format!("its host ended: {}", end.reason))));
            }
        }
        Ok((points, None))
    }

    /// So many handed over at once, again and again.
    async fn at_once(&self, station: &Arc<D::Station>, at_once: u32) -> Result<BatchPoint, Ended> {
        let limit = Duration::from_secs(self.request.run_s.into());
        let (mut each, mut whole, mut errors) = (Vec::new(), Vec::new(), 0);
        let start = self.device.now();
        for round in 0..(self.request.iterations / at_once).max(8) {
            let began = self.device.now();
            if began.saturating_sub(start) > limit || station.ended().is_some() {
                break;
            }
            let mut tasks = tokio::task::JoinSet::new();
            for i in 0..at_once {
                let (device, station) = (self.device.clone(), station.clone());
                tasks.spawn(async move {
                    let answer = station.infer((round * at_once + i) as usize).await;
                    answer.map(|_| nanos(device.now().saturating_sub(began)))
                });
            }
            let answers = self.reins.unless_cancelled(tasks.join_all()).await?;
            let answered = each.len();
            each.extend(answers.into_iter().filter_map(Result::ok));
            let failed = u64::from(at_once) - (each.len() - answered) as u64;
            errors += failed;
            if failed == 0 {
                whole.push(each[answered..].iter().copied().max().unwrap_or_default());
            }
        }
        let throughput_per_s = per_second(each.len(), self.device.now().saturating_sub(start));
        let (latency, whole) = (Summary::of(&mut each), Summary::of(&mut whole));
        Ok(BatchPoint { at_once, throughput_per_s, latency, whole, errors })
    }

    fn skip(&mut self, step: Step, reason: &str) {
        self.steps.push(StepResult { step, found: Found::Skipped { reason: reason.to_owned() } });
    }

    fn best(&self) -> Option<&Measured> {
        self.results.iter().filter_map(|r| r.measured.as_ref()).min_by_key(|m| m.latency.p50)
    }

    /// Steps 6 to 9: the rung that is selected, and everybody's memory.
    async fn chosen(&mut self, chosen: Option<&str>) -> Result<(), Ended> {
        let measured = chosen.and_then(|name| {
            let result = self.results.iter().find(|r| r.info.rung == name)?;
            Some((name, result.measured.clone()?))
        });
        let Some((rung, measured)) = measured else {
            for step in [Step::PreAndPostProcessing, Step::PeakMemory, Step::Concurrency, Step::Stability] {
                self.skip(step, "no rung could be measured");
            }
            return Ok(());
        };
        self.at(Step::PreAndPostProcessing, Some(rung));
        let found = match self.reins.unless_cancelled(self.device.around(self.subject)).await? {
            Ok(around) => share(rung, &around, &measured),
            Err(reason) => Found::Skipped { reason },
        };
        self.steps.push(StepResult { step: Step::PreAndPostProcessing, found });
        self.done += 1;

        self.at(Step::PeakMemory, None);
        let peak = |r: &RungResult| {
            let peak = r.measured.as_ref()?.memory.clone()?;
            let of_cap = Number::ratio(peak.peak_bytes, peak.cap_bytes).value() * 100.0;
            let percent = Number::new(of_cap).unwrap_or_default();
            Some(MemoryOf { rung: r.info.rung.clone(), peak, percent })
        };
        let peaks: Vec<MemoryOf> = self.results.iter().filter_map(peak).collect();
        if peaks.is_empty() {
            self.skip(Step::PeakMemory, "nothing here tells a host's memory");
        } else {
            self.steps.push(StepResult { step: Step::PeakMemory, found: Found::Memory { peaks } });
        }

        if self.request.in_flight.is_empty() && self.request.soak_s == 0 {
            self.skip(Step::Concurrency, "it was not asked for");
            self.skip(Step::Stability, "it was not asked for");
            return Ok(());
        }
        let station =
            self.reins.unless_cancelled(self.device.start(self.subject, rung, self.request.workers));
        let station = match station.await? {
            Ok(station) => Arc::new(station),
            Err(e) => {
                self.skip(Step::Concurrency, &e.reason);
                self.skip(Step::Stability, &e.reason);
                return Ok(());
            }
        };
        self.concurrency(rung, &station).await?;
        if station.ended().is_none() || self.request.soak_s == 0 {
            return self.stability(rung, &station).await;
        }
        drop(station);
        let again = self.device.start(self.subject, rung, self.request.workers);
        match self.reins.unless_cancelled(again).await? {
            Ok(station) => self.stability(rung, &Arc::new(station)).await?,
            Err(e) => self.skip(Step::Stability, &e.reason),
        }
        Ok(())
    }

    async fn concurrency(&mut self, rung: &str, station: &Arc<D::Station>) -> Result<(), Ended> {
        self.at(Step::Concurrency, Some(rung));
        if self.request.in_flight.is_empty() {
            self.skip(Step::Concurrency, "it was not asked for");
            return Ok(());
        }
        let (mut points, mut stopped): (Vec<LoadPoint>, _) = (Vec::new(), None);
        for &n in &self.request.in_flight {
            stopped = too_many(&**station, n);
            if stopped.is_some() {
                break;
            }
            self.room().await?;
            let point = self.load(station, n).await?;
            let before = points.last().map(|p| p.throughput_per_s.value());
            let little =
                before.is_some_and(|b| point.throughput_per_s.value() < b * (1.0 + LITTLE_PERCENT / 100.0));
            let failed = point.errors > 0;
            points.push(point);
            if let Some(end) = self.end_of(station, failed).await? {
                stopped = Some(format!("its host ended: {}", end.reason));
                break;
            }
            if little {
                stopped = Some(format!("more in flight than that gains less than {LITTLE_PERCENT} %"));
                break;
            }
        }
        self.done += 1;
        let found = Found::Load { rung: rung.to_owned(), points, stopped };
        self.steps.push(StepResult { step: Step::Concurrency, found });
        Ok(())
    }

    async fn load(&self, station: &Arc<D::Station>, in_flight: u32) -> Result<LoadPoint, Ended> {
        let each = (self.request.iterations / in_flight).max(8);
        let limit = Duration::from_secs(self.request.run_s.into());
        let start = self.device.now();
        let mut tasks = tokio::task::JoinSet::new();
        for first in 0..in_flight {
            let (device, station) = (self.device.clone(), station.clone());
            tasks.spawn(async move {
                let (mut times, mut errors) = (Vec::new(), 0_u64);
                for i in 0..each {
                    let began = device.now();
                    if began.saturating_sub(start) > limit {
                        break;
                    }
                    match station.infer((first + i) as usize).await {
                        Ok(_) => times.push(nanos(device.now().saturating_sub(began))),
                        Err(_) => errors += 1,
                    }
                }
                (times, errors)
            });
        }
        let all = async {
            let (mut times, mut errors) = (Vec::new(), 0);
            while let Some(done) = tasks.join_next().await {
                let (t, e) = done.unwrap_or_default();
                times.extend(t);
                errors += e;
            }
            (times, errors)
        };
        let (mut times, errors): (Vec<u64>, u64) = self.reins.unless_cancelled(all).await?;
        let throughput_per_s = per_second(times.len(), self.device.now().saturating_sub(start));
        Ok(LoadPoint { in_flight, throughput_per_s, latency: Summary::of(&mut times), errors })
    }

    async fn stability(&mut self, rung: &str, station: &Arc<D::Station>) -> Result<(), Ended> {
        self.at(Step::Stability, Some(rung));
        if self.request.soak_s == 0 {
            self.skip(Step::Stability, "it was not asked for");
            return Ok(());
        }
        let before = conditions(self.device.conditions(), station.device());
        let (start, limit) = (self.device.now(), Duration::from_secs(self.request.soak_s.into()));
        let (mut samples, mut errors, mut turn) = (Thinned::new(SOAK_SAMPLES), 0, 0);
        let mut ended = None;
        let share = 100 / self.units.max(1);
        let base = self.percent();
        loop {
            self.reins.check()?;
            if turn % 64 == 0 {
                self.room().await?;
            }
            let began = self.device.now();
            let passed = began.saturating_sub(start);
            if passed >= limit {
                break;
            }
            let part = passed.as_millis() * share as u128 / limit.as_millis().max(1);
            self.reins.tell(|p| p.percent = base.saturating_add(u8::try_from(part).unwrap_or(0)).min(99));
            match self.reins.unless_cancelled(station.infer(turn)).await? {
                Ok(_) => samples.push(nanos(self.device.now().saturating_sub(began))),
                Err(_) => {
                    errors += 1;
                    // Another host would be another measurement.
                    ended = station.ended().map(|end| format!("its host ended: {}", end.reason));
                    if ended.is_some() {
                        break;
                    }
                    self.device.pause(Duration::from_millis(10)).await;
                }
            }
            turn += 1;
        }
        let kept = samples.kept();
        let third = kept.len() / 3;
        let drift = (third > 0).then(|| {
            let median = |part: &[u64]| Summary::of(&mut part.to_vec()).map(|s| s.p50.ms());
            let (first, last) = (median(&kept[..third])?, median(&kept[kept.len() - third..])?);
            Number::new((last / first - 1.0) * 100.0)
        });
        let found = Found::Soak {
            rung: rung.to_owned(),
            seconds: Number::new(self.device.now().saturating_sub(start).as_secs_f64()).unwrap_or_default(),
            requests: samples.seen(),
            errors,
            latency: Summary::of(&mut kept.to_vec()),
            drift_percent: drift.flatten(),
            ended,
            before,
            after: conditions(self.device.conditions(), station.device()),
        };
        self.steps.push(StepResult { step: Step::Stability, found });
        self.done += 1;
        Ok(())
    }

    fn percent(&self) -> u8 {
        u8::try_from(self.done * 100 / self.units.max(1)).unwrap_or(99).min(99)
    }

    fn at(&self, step: Step, rung: Option<&str>) {
        let percent = self.percent();
        self.reins.tell(|p| *p = Progress { step: Some(step), rung: rung.map(str::to_owned), percent });
    }

    /// Waits while the device sheds optional work.
    async fn room(&self) -> Result<(), Ended> {
        let since = self.device.now();
        while self.device.is_shedding() {
            if self.device.now().saturating_sub(since) > PATIENCE {
                return Err(Ended::Failed("the device had no room for a benchmark for 10 minutes".into()));
            }
            self.reins.unless_cancelled(self.device.pause(Duration::from_secs(1))).await?;
        }
        self.reins.check()
    }

    /// One rung. A host of its own that ends meanwhile is started again, once: it came up and reproduced the golden vectors, so what
    /// ended it may be chance.
    async fn measure(&mut self, info: &RungInfo) -> Result<RungResult, Ended> {
        let percent = self.percent();
        self.reins.tell(|p| {
            p.rung = Some(info.rung.clone());
            p.percent = percent;
        });
        let first = match self.attempt(info).await? {
            Attempt::Over(result) => return Ok(result),
            Attempt::HostEnded(why) => why,
        };
        Ok(match self.attempt(info).await? {
            Attempt::Over(RungResult { measured: None, reason, .. }) => {
                let reason = reason.unwrap_or_default();
                let said = format!(
                    "its host ended while it was measured ({first}), and was started again: {reason}"
                );
                RungResult { busy: true, ..RungResult::none(info, said) }
            }
            Attempt::Over(result) => RungResult { restarted: Some(first), ..result },
            Attempt::HostEnded(second) => {
                let said = format!("its host ended twice while it was measured: {first}; {second}");
                RungResult { busy: true, ..RungResult::none(info, said) }
            }
        })
    }

    /// A host, warm-up, runs until they agree.
    async fn attempt(&mut self, info: &RungInfo) -> Result<Attempt, Ended> {
        self.room().await?;
        let none = |reason| Attempt::Over(RungResult::none(info, reason));
        let before = self.device.conditions();
        let mut watts = Vec::new();
        let starting = self.device.start(self.subject, &info.rung, self.request.workers);
        let station = match self.reins.unless_cancelled(starting).await? {
            Ok(station) => station,
            Err(e) => {
                self.oom |= e.out_of_memory;
                return Ok(Attempt::Over(RungResult { busy: e.busy, ..RungResult::none(info, e.reason) }));
            }
        };
        let (about, before) = (station.about(), conditions(before, station.device()));
        match self.times(&station, self.request.warm_up).await? {
            Times { last_error: Some(e), total, .. } if total.is_empty() => {
                return self.gave_up(info, &station, e).await;
            }
            _ => {}
        }
        let (cpu, requests) = (station.cpu(), station.requests());
        let (mut runs, mut means, mut inferences) = (Vec::new(), Vec::new(), 0_u64);
        let repeats = self.request.repeats as usize;
        loop {
            self.room().await?;
            let run = self.times(&station, self.request.iterations).await?;
            if run.total.is_empty() {
                let why = run.last_error.unwrap_or_else(|| "no inference ended within run_s".into());
                return self.gave_up(info, &station, why).await;
            }
            watts.extend(station.device().and_then(|d| d.watts));
            means.push(mean(&run.total));
            inferences += run.total.len() as u64 + run.errors;
            runs.push(run);
            if runs.len() > repeats {
                runs.remove(0);
            }
            let enough = means.len() >= repeats && (repeats == 1 || agree(&means, repeats));
            if enough || means.len() >= self.request.most_repeats as usize {
                break;
            }
        }
        let cpu = station.cpu().zip(cpu).map(|(now, then)| nanos(now.saturating_sub(then)));
        let requests = station.requests().zip(requests).map(|(now, then)| now.saturating_sub(then));
        // Requests use the host's processor time, too.
        inferences += requests.unwrap_or_default();
        let kept = &means[means.len() - runs.len()..];
        let count: usize = runs.iter().map(|r| r.total.len()).sum();
        let wall = runs.iter().map(|r| r.wall).sum();
        let mut total: Vec<u64> = runs.iter().flat_map(|r| r.total.iter().copied()).collect();
        let mut compute: Vec<u64> = runs.iter().flat_map(|r| r.compute.iter().copied()).collect();
        let (Some(latency), Some(compute)) = (Summary::of(&mut total), Summary::of(&mut compute)) else {
            return Ok(none("no inference ended".into()));
        };
        let spread = spread_percent(kept);
        let measured = Measured {
            library: about.library,
            device: about.device,
            workers: about.workers,
            latency,
            compute,
            throughput_per_s: per_second(count, wall),
            stable: agree(kept, repeats) && spread.value() < STABLE_PERCENT,
            spread_percent: spread,
            run_means_ms: means,
            errors: runs.iter().map(|r| r.errors).sum(),
            last_error: runs.iter().rev().find_map(|r| r.last_error.clone()),
            cpu_per_inference: cpu.and_then(|c| c.checked_div(inferences)).map(Time::from_nanos),
            memory: station.peak(),
            cosine: about.cosine.and_then(Number::new),
            max_abs: about.max_abs.and_then(Number::new),
            power_w: mean_of(&watts),
            requests,
            before,
            after: conditions(self.device.conditions(), station.device()),
        };
        Ok(Attempt::Over(RungResult::of(info, measured)))
    }

    /// What a rung comes to whose host answers no more. A host that serves is put right by those who started it.
    async fn gave_up(
        &mut self,
        info: &RungInfo,
        station: &D::Station,
        why: String,
    ) -> Result<Attempt, Ended> {
        Ok(match self.end_of(station, true).await? {
            Some(end) if station.requests().is_none() => {
                self.oom |= end.out_of_memory;
                Attempt::HostEnded(end.reason)
            }
            end => {
                let reason = end.map_or(why, |end| end.reason);
                Attempt::Over(RungResult { busy: true, ..RungResult::none(info, reason) })
            }
        })
    }

    /// Why a host has ended, if it has. Of one that has `failed` the reason may come a little later than the failure.
    async fn end_of(&self, station: &D::Station, failed: bool) -> Result<Option<NotStarted>, Ended> {
        for _ in 0..if failed { 20 } else { 1 } {
            if let Some(end) = station.ended() {
                return Ok(Some(end));
            }
            if failed {
                self.reins.unless_cancelled(self.device.pause(Duration::from_millis(50))).await?;
            }
        }
        Ok(None)
    }

    /// So many inferences one after the other, fewer when the time is over or too many fail in a row.
    async fn times(&self, station: &D::Station, count: u32) -> Result<Times, Ended> {
        let mut times = Times::default();
        let start = self.device.now();
        let limit = Duration::from_secs(self.request.run_s.into());
        let mut failed = 0;
        for turn in 0..count {
            self.reins.check()?;
            let began = self.device.now();
            if began.saturating_sub(start) > limit {
                break;
            }
            match self.reins.unless_cancelled(station.infer(turn as usize)).await? {
                Ok(compute) => {
                    failed = 0;
                    times.total.push(nanos(self.device.now().saturating_sub(began)));
                    times.compute.push(nanos(compute));
                }
                Err(e) => {
                    times.errors += 1;
                    times.last_error = Some(e);
                    failed += 1;
                    if failed == MOST_FAILURES {
                        // What came before is no measurement of a rung that works.
                        times.total.clear();
                        break;
                    }
                }
            }
        }
        times.wall = self.device.now().saturating_sub(start);
        Ok(times)
    }
}

/// Why a station is not given so many at once.
fn too_many(station: &impl Station, n: u32) -> Option<String> {
    let most = station.about().most_in_flight;
    let why = match station.requests() {
        Some(_) => "more at once would take the places of requests, which its host serves".to_owned(),
        None => format!("its ring has {most} slots"),
    };
    (n > most).then_some(why)
}

fn share(rung: &str, around: &Around, measured: &Measured) -> Found {
    let compute = measured.compute.p50;
    let outside = nanos(around.parse) + nanos(around.serialise);
    let inside = nanos(around.normalise).min(compute.nanos());
    let whole = outside + compute.nanos();
    Found::Share {
        rung: rung.to_owned(),
        json_bytes: around.json_bytes,
        parse_ms: around.parse.into(),
        normalise_ms: around.normalise.into(),
        serialise_ms: around.serialise.into(),
        // Normalisation is done by the worker, so it is in its time.
        compute_ms: Time::from_nanos(compute.nanos() - inside),
        around_percent: Number::new(Number::ratio(outside + inside, whole).value() * 100.0)
            .unwrap_or_default(),
    }
}
