//! The protocol and its jobs on a device that is made up: its clock moves only when it computes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use inferd_bench::jobs::{Heavy, Jobs, MOST_QUEUED, QUICK_WHOLE, Refused, Removed, View};
use inferd_bench::protocol::{
    About, Around, Device, Ended, NotStarted, OfDevice, Reins, Station, run, stop_rules,
};
use inferd_bench::{
    Conditions, Found, JobState, Level, Number, Outcome, Peak, Record, Request, RungInfo, Step, Subject,
};
use inferd_watch::permit::Unlimited;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

#[derive(Clone, Default)]
struct Made {
    /// Milliseconds of one inference; drifts by `jitter` from run to run.
    ms: u64,
    precision: &'static str,
    network: &'static str,
    fails_to_start: Option<(&'static str, bool)>,
    /// Seconds until its host is up.
    starts_s: u64,
    /// It fails to start because its device cannot be had.
    busy: bool,
    /// Its device says how it is, and whether it measures its power.
    watts: Option<bool>,
    /// Its host serves: one request for each inference.
    serves: bool,
    fails_after: Option<usize>,
    panics: bool,
    /// Every so many-th inference fails.
    fails_each: Option<usize>,
    /// Its first host ends after so many inferences, its second one after the next number.
    ends_after: &'static [usize],
    /// They end because they are over their cap.
    ends_over_cap: bool,
    /// Milliseconds that each inference takes longer than the one before.
    grows: u64,
    workers: usize,
    /// Added after so many inferences.
    slower_after: Option<(usize, u64)>,
}

struct Fake {
    rungs: Vec<(&'static str, Made)>,
    began: Instant,
    answered: AtomicU64,
    shedding: AtomicBool,
    /// Hosts that are up now, and the most there were.
    up: Arc<AtomicUsize>,
    most_up: AtomicUsize,
    /// How often a host of a rung was started.
    starts: Mutex<BTreeMap<String, usize>>,
}

impl Fake {
    fn new(rungs: Vec<(&'static str, Made)>) -> Arc<Self> {
        Arc::new(Self {
            rungs,
            began: Instant::now(),
            answered: AtomicU64::new(0),
            shedding: AtomicBool::new(false),
            up: Arc::default(),
            most_up: AtomicUsize::new(0),
            starts: Mutex::default(),
        })
    }
}

fn made(ms: u64) -> Made {
    Made { ms, precision: "fp32", workers: 2, ..Made::default() }
}

struct FakeHost {
    made: Made,
    count: AtomicUsize,
    ends_after: Option<usize>,
    workers: Semaphore,
    up: Arc<AtomicUsize>,
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.up.fetch_sub(1, SeqCst);
    }
}

impl Station for FakeHost {
    fn about(&self) -> About {
        About {
            library: "made up 1".into(),
            device: "cpu".into(),
            workers: 2,
            cosine: Some(0.999),
            max_abs: Some(1e-5),
            most_in_flight: if self.made.serves { 2 } else { 32 },
        }
    }
    async fn infer(&self, _: usize) -> Result<Duration, String> {
        let n = self.count.fetch_add(1, SeqCst);
        let _worker = self.workers.acquire().await.unwrap();
        assert!(!self.made.panics, "a defect");
        if self.ends_after.is_some_and(|after| n >= after) {
            return Err("its host is gone".into());
        }
        if self.made.fails_after.is_some_and(|after| n >= after)
            || self.made.fails_each.is_some_and(|each| n.is_multiple_of(each))
        {
            return Err("the device is gone".into());
        }
        let more = self.made.slower_after.filter(|(after, _)| n >= *after).map_or(0, |(_, ms)| ms);
        let time = Duration::from_millis(self.made.ms + more + self.made.grows * n as u64);
        tokio::time::sleep(time).await;
        Ok(time)
    }
    fn ended(&self) -> Option<NotStarted> {
        let over = self.ends_after.is_some_and(|after| self.count.load(SeqCst) > after);
        let (reason, out_of_memory) = if self.made.ends_over_cap {
            ("it was over its cap", true)
        } else {
            ("signal 9 killed it", false)
        };
        over.then(|| NotStarted { reason: reason.into(), out_of_memory, busy: false })
    }
    fn cpu(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.count.load(SeqCst) as u64 * self.made.ms / 2))
    }
    fn peak(&self) -> Option<Peak> {
        Some(Peak { peak_bytes: 1 << 20, cap_bytes: 1 << 21, how: "proc".into() })
    }
    fn device(&self) -> Option<OfDevice> {
        let n = |v| Number::new(v);
        // A tenth of a watt more with each inference, and too warm from 100 on.
        let count = self.count.load(SeqCst) as f64;
        self.made.watts.map(|watts| OfDevice {
            celsius: n(40.0 + count),
            watts: watts.then(|| n(2.0 + count / 10.0).unwrap()),
            is_hot: count >= 100.0,
        })
    }
    fn requests(&self) -> Option<u64> {
        self.made.serves.then(|| self.count.load(SeqCst) as u64)
    }
}

impl Device for Fake {
    type Station = FakeHost;
    fn subject(&self, model: &str) -> Option<(Subject, Vec<RungInfo>)> {
        let subject = Subject {
            model: "m".into(),
            version: "1".into(),
            sha256: "ab".into(),
            firmware: env!("CARGO_PKG_VERSION").into(),
            inputs: vec!["x FP32 [1, 4]".into()],
            ..Subject::default()
        };
        let info = |(name, made): &(&str, Made)| RungInfo {
            rung: (*name).into(),
            engine: name.split('-').next().unwrap().into(),
            precision: made.precision.into(),
            sha256: made.network.into(),
        };
        matches!(model, "" | "m").then(|| (subject, self.rungs.iter().map(info).collect()))
    }
    fn models(&self) -> Vec<String> {
        vec!["m".into()]
    }
    async fn start(&self, _: &Subject, rung: &str, _: u32) -> Result<FakeHost, NotStarted> {
        let made = self.rungs.iter().find(|(n, _)| *n == rung).unwrap().1.clone();
        tokio::time::sleep(Duration::from_millis(5) + Duration::from_secs(made.starts_s)).await;
        if let Some((reason, out_of_memory)) = made.fails_to_start {
            return Err(NotStarted { reason: reason.into(), out_of_memory, busy: made.busy });
        }
        let up = self.up.fetch_add(1, SeqCst) + 1;
        self.most_up.fetch_max(up, SeqCst);
        let workers = Semaphore::new(made.workers);
        let ends_after = {
            let mut starts = self.starts.lock().unwrap();
            let nth = starts.entry(rung.into()).or_default();
            *nth += 1;
            made.ends_after.get(*nth - 1).copied()
        };
        Ok(FakeHost { made, count: AtomicUsize::new(0), ends_after, workers, up: self.up.clone() })
    }
    async fn around(&self, _: &Subject) -> Result<Around, String> {
        let ms = Duration::from_millis;
        Ok(Around { json_bytes: 100, parse: ms(1), normalise: ms(1), serialise: ms(1) })
    }
    fn conditions(&self) -> Conditions {
        Conditions::default()
    }
    fn now(&self) -> Duration {
        self.began.elapsed()
    }
    fn is_shedding(&self) -> bool {
        self.shedding.load(SeqCst)
    }
    fn answered(&self) -> u64 {
        self.answered.load(SeqCst)
    }
    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

fn request(rungs: &[&str], constraints: &[&str]) -> Request {
    Request {
        model: "m".into(),
        rungs: rungs.iter().map(|r| (*r).into()).collect(),
        constraints: constraints.iter().map(|c| c.parse().unwrap()).collect(),
        warm_up: 2,
        iterations: 40,
        soak_s: 1,
        ..Request::default()
    }
}

async fn benchmark(device: &Arc<Fake>, request: &Request) -> Record {
    run(device, request, &[], &Reins::default()).await.unwrap()
}

fn found(record: &Record, step: Step) -> &Found {
    &record.steps.iter().find(|s| s.step == step).unwrap().found
}

fn ladder() -> Vec<(&'static str, Made)> {
    vec![
        ("hailo", made(2)),
        ("ort-int8", Made { precision: "int8", ..made(4) }),
        ("ort", made(8)),
        (
            "cpu-int8",
            Made { fails_to_start: Some(("no such operator", false)), precision: "int8", ..made(1) },
        ),
        ("cpu", made(10)),
    ]
}

const ALL: [&str; 5] = ["hailo", "ort-int8", "ort", "cpu-int8", "cpu"];

#[tokio::test(start_paused = true)]
async fn nine_steps_each_with_numbers_or_a_reason() {
    let device = Fake::new(ladder());
    let record = benchmark(&device, &request(&ALL, &[])).await;
    assert_eq!(record.steps.iter().map(|s| s.step).collect::<Vec<_>>(), Step::ALL);
    let rungs = |step| match found(&record, step) {
        Found::Rungs { rungs, .. } => rungs.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(rungs(Step::Baseline), ["cpu"]);
    assert_eq!(rungs(Step::GraphOptimisation), ["ort"]);
    assert_eq!(rungs(Step::Precision), ["ort-int8", "cpu-int8"]);
    assert_eq!(rungs(Step::Accelerator), ["hailo"]);
    let Found::Batch { because, rungs } = found(&record, Step::Batch) else { panic!() };
    assert!(because.contains("x FP32 [1, 4]"), "why it is none inside of an engine: {because}");
    let names: Vec<_> = rungs.iter().map(|r| r.rung.as_str()).collect();
    assert_eq!(names, ["hailo", "ort-int8", "ort", "cpu"], "every one that was measured");
    let Found::Share { around_percent, compute_ms, .. } = found(&record, Step::PreAndPostProcessing) else {
        panic!()
    };
    assert_eq!(around_percent.value(), 75.0, "3 of 4 ms: 1 before, 1 of 2 in the worker, 1 after");
    assert_eq!(compute_ms.ms(), 1.0);
    let Found::Memory { peaks } = found(&record, Step::PeakMemory) else { panic!() };
    assert_eq!(peaks.len(), 4);
    assert_eq!(peaks[0].percent.value(), 50.0);
    let Found::Load { points, stopped, .. } = found(&record, Step::Concurrency) else { panic!() };
    assert_eq!(points.len(), 3, "1, 2, 4");
    assert!(points[1].throughput_per_s.value() > 1.9 * points[0].throughput_per_s.value(), "two workers");
    assert!(stopped.is_some(), "four in flight gain nothing over two workers");
    let Found::Soak { requests, errors, drift_percent, .. } = found(&record, Step::Stability) else {
        panic!()
    };
    assert_eq!((*errors, drift_percent.unwrap().value()), (0, 0.0));
    assert!((400..=500).contains(requests), "a second of 2 ms each: {requests}");

    assert_eq!(record.decision.rung.as_deref(), Some("hailo"));
    assert_eq!(
        record.rungs.iter().map(|r| r.info.rung.as_str()).collect::<Vec<_>>(),
        ALL,
        "the manifest's order"
    );
    let hailo = record.rung("hailo").unwrap().measured.as_ref().unwrap();
    assert_eq!(hailo.latency.p50.ms(), 2.0);
    assert_eq!((hailo.latency.samples, hailo.run_means_ms.len(), hailo.stable), (120, 3, true));
    assert_eq!(hailo.cpu_per_inference.unwrap().ms(), 1.0);
    assert_eq!(hailo.throughput_per_s.value(), 500.0);
    assert_eq!(record.rung("cpu-int8").unwrap().reason.as_deref(), Some("no such operator"));
    assert_eq!(device.most_up.load(SeqCst), 1, "one host at a time");
    assert_eq!(device.up.load(SeqCst), 0, "and none is left");
    assert_eq!(record.replay(), record.decision);
}

#[tokio::test(start_paused = true)]
async fn several_at_once_are_measured_on_every_rung_with_the_latency_of_each() {
    let alone = Made { workers: 1, ..made(10) };
    let serves = Made { serves: true, ..made(4) };
    let breaks = Made { ends_after: &[usize::MAX, 10], ..made(20) };
    let device = Fake::new(vec![("hailo", serves), ("ort", breaks), ("cpu", alone), ("cpu-int8", made(10))]);
    let mut wanted = Request {
        batches: Some(vec![2, 4]),
        in_flight: vec![],
        soak_s: 0,
        ..request(&["hailo", "ort", "cpu", "cpu-int8"], &[])
    };
    let record = benchmark(&device, &wanted).await;
    let Found::Batch { rungs, .. } = found(&record, Step::Batch) else { panic!() };
    let [hailo, ort, cpu, int8] = &rungs[..] else { panic!("{rungs:?}") };
    let ms = |p: &inferd_bench::BatchPoint| {
        let (each, whole) = (p.latency.as_ref().unwrap(), p.whole.as_ref().unwrap());
        (p.at_once, each.min.ms(), each.p50.ms(), whole.p50.ms(), p.throughput_per_s.value())
    };
    // One worker computes one after the other: nobody gains, and who comes last waits for all.
    assert_eq!(cpu.one_by_one_per_s.value(), 100.0);
    assert_eq!(ms(&cpu.points[0]), (2, 10.0, 10.0, 20.0, 100.0));
    assert_eq!(ms(&cpu.points[1]), (4, 10.0, 20.0, 40.0, 100.0));
    // Two workers.
    assert_eq!(ms(&int8.points[0]), (2, 10.0, 10.0, 10.0, 200.0));
    assert_eq!(ms(&int8.points[1]), (4, 10.0, 10.0, 20.0, 200.0));
    assert_eq!((int8.points[1].latency.as_ref().unwrap().samples, int8.points[1].errors), (40, 0));
    assert!(hailo.points.len() == 1 && hailo.stopped.as_ref().unwrap().contains("requests"), "{hailo:?}");
    assert!(ort.points[0].errors > 0 && ort.points.len() == 1);
    assert_eq!(ort.stopped.as_deref(), Some("its host ended: signal 9 killed it"));
    assert_eq!(device.up.load(SeqCst), 0);
    wanted.batches = Some(vec![]);
    let Found::Skipped { reason } = found(&benchmark(&device, &wanted).await, Step::Batch).clone() else {
        panic!()
    };
    assert_eq!(reason, "it was not asked for");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_ends_while_it_is_measured_is_started_again_once() {
    let once = Made { ends_after: &[60], ..made(5) };
    let twice = Made { ends_after: &[1, 50], ends_over_cap: true, ..made(4) };
    let device =
        Fake::new(vec![("ort", once), ("ort-int8", Made { precision: "int8", ..twice }), ("cpu", made(10))]);
    let mut wanted = request(&["ort", "ort-int8", "cpu"], &[]);
    (wanted.batches, wanted.in_flight, wanted.soak_s) = (Some(vec![]), vec![], 0);
    let record = benchmark(&device, &wanted).await;
    let ort = record.rung("ort").unwrap();
    assert_eq!(ort.restarted.as_deref(), Some("signal 9 killed it"));
    let m = ort.measured.as_ref().unwrap();
    assert_eq!((m.latency.samples, m.errors), (120, 0), "all of them from the second host");
    let int8 = record.rung("ort-int8").unwrap();
    assert_eq!(
        int8.reason.as_deref(),
        Some("its host ended twice while it was measured: it was over its cap; it was over its cap")
    );
    assert!(int8.busy && int8.measured.is_none());
    let Found::Rungs { stop, .. } = found(&record, Step::Precision) else { panic!() };
    assert!(!stop.within_memory);
    assert_eq!(
        *device.starts.lock().unwrap(),
        BTreeMap::from([("cpu".into(), 1), ("ort".into(), 2), ("ort-int8".into(), 2)])
    );
    assert_eq!((record.decision.rung.as_deref(), device.up.load(SeqCst)), (Some("ort"), 0));
    let words = inferd_bench::report::reasons(&record).join("\n");
    assert!(
        words.contains("ort: measured in a second host, because the first one ended: signal 9 killed it")
    );
}

#[tokio::test(start_paused = true)]
async fn a_host_that_ends_without_a_pause_is_told_and_its_step_is_over() {
    // The first host measures, the second has several in flight, the third is without a pause.
    let device = Fake::new(vec![("cpu", Made { ends_after: &[usize::MAX, 20, 30], ..made(10) })]);
    let wanted = Request { batches: Some(vec![]), soak_s: 60, ..request(&["cpu"], &[]) };
    let record = benchmark(&device, &wanted).await;
    let Found::Load { stopped, .. } = found(&record, Step::Concurrency) else { panic!() };
    assert_eq!(stopped.as_deref(), Some("its host ended: signal 9 killed it"));
    let Found::Soak { requests, errors, ended, .. } = found(&record, Step::Stability) else { panic!() };
    assert_eq!((*requests, *errors), (30, 1), "not one each 10 ms for a minute");
    assert_eq!(ended.as_deref(), Some("its host ended: signal 9 killed it"));
}

#[tokio::test(start_paused = true)]
async fn a_step_says_only_what_was_measured() {
    let absent = || Made { fails_to_start: Some(("its library is not here", false)), ..made(1) };
    let device = Fake::new(vec![
        ("ort", absent()),
        ("ort-int8", Made { precision: "int8", ..made(20) }),
        ("hailo", made(5)),
        ("cpu", made(10)),
    ]);
    let mut wanted = request(&["ort", "ort-int8", "hailo", "cpu"], &["p95_ms<100"]);
    wanted.stop = true;
    let record = benchmark(&device, &wanted).await;
    let words = |step| {
        let step = record.steps.iter().find(|s| s.step == step).unwrap();
        inferd_bench::report::step_words(&record, step)
    };
    assert_eq!(words(Step::Baseline), "cpu");
    assert_eq!(words(Step::GraphOptimisation), "ort (not measured)");
    let Found::Rungs { stop, .. } = found(&record, Step::GraphOptimisation) else { panic!() };
    assert!(
        !stop.holds && stop.improvement_percent.is_none(),
        "what was not measured is not as fast as before"
    );
    assert_eq!(words(Step::Precision), "ort-int8; not faster than the best before; the stop rules hold");
    assert!(words(Step::Accelerator).contains("the stop rules held after step 3"));
    wanted.stop = false;
    let record = benchmark(&device, &wanted).await;
    let step = &record.steps[3];
    assert_eq!(inferd_bench::report::step_words(&record, step), "hailo; 50.0 % faster than the best before");
    // As records of older programs say it.
    let mut old = record.clone();
    let Found::Rungs { stop, .. } = &mut old.steps[1].found else { panic!() };
    stop.improvement_percent = Number::new(0.0);
    assert_eq!(inferd_bench::report::step_words(&old, &old.steps[1]), "ort (not measured)");
    let nothing = benchmark(&Fake::new(vec![("ort", absent())]), &request(&["ort"], &[])).await;
    for view in [inferd_bench::report::View::Simple, inferd_bench::report::View::Technical] {
        let page = inferd_bench::report::render(&nothing, inferd_bench::report::Format::Markdown, view);
        assert!(page.contains("its library is not here") && !page.contains("faster"), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn runs_that_do_not_agree_are_repeated_and_then_marked() {
    let slow_start = Made { slower_after: None, ..made(10) };
    let late = Made { slower_after: Some((60, 5)), ..made(10) };
    let device = Fake::new(vec![("cpu", slow_start), ("ort", late)]);
    let mut wanted = request(&["cpu", "ort"], &[]);
    wanted.in_flight = vec![];
    wanted.soak_s = 0;
    let record = benchmark(&device, &wanted).await;
    let ort = record.rung("ort").unwrap().measured.as_ref().unwrap();
    // Runs of 40 after 2: the second has both speeds, the three after it agree.
    assert_eq!(ort.run_means_ms.len(), 5, "{:?}", ort.run_means_ms);
    assert!(ort.stable && ort.latency.p50.ms() == 15.0, "only the runs that agree are kept");
    wanted.most_repeats = 4;
    let record = benchmark(&device, &wanted).await;
    let ort = record.rung("ort").unwrap().measured.as_ref().unwrap();
    assert_eq!(ort.run_means_ms.len(), 4);
    assert!(!ort.stable && ort.spread_percent.value() > 5.0);
}

#[tokio::test(start_paused = true)]
async fn what_a_device_says_of_itself_is_recorded_and_can_be_constrained() {
    let says = |watts| Made { watts: Some(watts), ..made(2) };
    let device = Fake::new(vec![("hailo", says(true)), ("tensorrt", says(false)), ("cpu", made(10))]);
    let wanted = Request { in_flight: vec![], ..request(&["hailo", "tensorrt", "cpu"], &["power_w<12"]) };
    let record = benchmark(&device, &wanted).await;
    let of = |rung| record.rung(rung).unwrap().measured.as_ref().unwrap();
    // 2 to warm up and 3 runs of 40: read at 42, 82 and 122 inferences.
    assert_eq!(of("hailo").power_w.unwrap().value(), 10.2);
    let (before, after) = (&of("hailo").before, &of("hailo").after);
    assert_eq!((before.accelerator_celsius.unwrap().value(), before.accelerator_hot), (40.0, Some(false)));
    assert_eq!((after.accelerator_celsius.unwrap().value(), after.accelerator_hot), (162.0, Some(true)));
    assert!(after.is_held_back() && !before.is_held_back());
    assert_eq!((of("tensorrt").power_w, of("cpu").power_w), (None, None));
    assert_eq!(of("cpu").after, Conditions::default(), "no device, no word of one");
    assert_eq!(
        record.decision.rung.as_deref(),
        Some("hailo"),
        "the others are out: nobody knows what they take"
    );
    let Found::Soak { after, .. } = found(&record, Step::Stability) else { panic!() };
    assert_eq!(after.accelerator_hot, Some(true));
}

#[tokio::test(start_paused = true)]
async fn errors_are_counted_in_the_runs_that_are_kept() {
    let often = Made { fails_each: Some(20), ..made(100) };
    let device = Fake::new(vec![("cpu", often.clone()), ("ort", Made { grows: 1, ..often })]);
    let wanted = Request { most_repeats: 20, in_flight: vec![], soak_s: 0, ..request(&["cpu", "ort"], &[]) };
    let record = benchmark(&device, &wanted).await;
    for (rung, runs) in [("cpu", 3), ("ort", 20)] {
        let m = record.rung(rung).unwrap().measured.as_ref().unwrap();
        assert_eq!(m.run_means_ms.len(), runs);
        assert_eq!((m.latency.samples, m.errors), (114, 6), "1 of 20 in 3 runs of 40, {rung}");
        assert_eq!(m.last_error.as_deref(), Some("the device is gone"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rung_that_fails_is_a_result_and_not_a_failed_benchmark() {
    let device = Fake::new(vec![
        ("hailo", Made { fails_after: Some(20), ..made(1) }),
        ("ort", Made { fails_to_start: Some(("it was over its cap", true)), ..made(1) }),
        ("cpu", made(9)),
    ]);
    let record = benchmark(&device, &request(&["hailo", "ort", "cpu"], &[])).await;
    assert_eq!(record.rung("hailo").unwrap().reason.as_deref(), Some("the device is gone"));
    assert_eq!(record.decision.rung.as_deref(), Some("cpu"));
    let Found::Rungs { stop, .. } = found(&record, Step::GraphOptimisation) else { panic!() };
    assert!(!stop.within_memory && !stop.holds);
    let nothing = benchmark(
        &Fake::new(vec![("ort", Made { fails_to_start: Some(("no", false)), ..made(1) })]),
        &request(&["ort"], &[]),
    )
    .await;
    assert_eq!(nothing.decision.outcome, Outcome::NothingRan);
    assert!(nothing.steps[5..].iter().all(|s| matches!(s.found, Found::Skipped { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_stop_rules_end_optimising_when_asked_to() {
    let rungs = || vec![("hailo", made(1)), ("ort", made(92)), ("cpu", made(100))];
    let mut wanted = request(&["hailo", "ort", "cpu"], &["p95_ms<200"]);
    wanted.stop = true;
    wanted.in_flight = vec![];
    let record = benchmark(&Fake::new(rungs()), &wanted).await;
    let Found::Rungs { stop, .. } = found(&record, Step::GraphOptimisation) else { panic!() };
    assert!(stop.holds && stop.improvement_percent.unwrap().value() == 8.0);
    let Found::Skipped { reason } = found(&record, Step::Accelerator) else { panic!() };
    assert!(reason.contains("the stop rules held after step 2"));
    assert_eq!(record.decision.rung.as_deref(), Some("ort"));
    // A constraint that is not kept, and there is a reason to go on.
    wanted.constraints = vec!["p95_ms<50".parse().unwrap()];
    let record = benchmark(&Fake::new(rungs()), &wanted).await;
    assert_eq!(record.decision.rung.as_deref(), Some("hailo"));
    // Not asked to.
    wanted.constraints = vec![];
    wanted.stop = false;
    assert_eq!(benchmark(&Fake::new(rungs()), &wanted).await.decision.rung.as_deref(), Some("hailo"));
}

#[tokio::test(start_paused = true)]
async fn each_stop_rule_alone_keeps_it_going() {
    let record =
        benchmark(&Fake::new(vec![("ort", made(98)), ("cpu", made(100))]), &request(&["ort", "cpu"], &[]))
            .await;
    let m = |rung| record.rung(rung).unwrap().measured.clone().unwrap();
    let (before, best) = (m("cpu"), m("ort"));
    let wanted = request(&[], &["p95_ms<200"]);
    assert!(stop_rules(Some(&before), Some(&best), false, &wanted).holds);
    assert!(!stop_rules(None, Some(&best), false, &wanted).holds, "there is nothing to compare with");
    assert!(!stop_rules(Some(&before), Some(&best), true, &wanted).holds, "out of memory");
    let unstable = inferd_bench::Measured { stable: false, ..best.clone() };
    assert!(!stop_rules(Some(&before), Some(&unstable), false, &wanted).holds, "unstable");
    assert!(!stop_rules(Some(&before), Some(&best), false, &request(&[], &["p95_ms<98"])).holds, "too slow");
    let mut faster = best.clone();
    faster.latency.p50 = inferd_bench::Time::from_nanos(90_000_000);
    assert!(!stop_rules(Some(&before), Some(&faster), false, &wanted).holds, "10 % is worth it");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_benchmark_ends_within_one_inference() {
    let device = Fake::new(vec![("cpu", made(1000))]);
    let reins = Arc::new(Reins::default());
    let running = {
        let (device, reins) = (device.clone(), reins.clone());
        tokio::spawn(async move { run(&device, &request(&["cpu"], &[]), &[], &reins).await })
    };
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(reins.progress().rung.as_deref(), Some("cpu"));
    let before = Instant::now();
    reins.cancel();
    assert_eq!(running.await.unwrap(), Err(Ended::Cancelled));
    assert!(before.elapsed() <= Duration::from_secs(1));
    assert_eq!(device.up.load(SeqCst), 0, "its host is gone");
}

#[test]
fn heavy_work_has_two_places_and_one_while_requests_are_answered() {
    let heavy = Arc::new(Heavy::default());
    let first = heavy.try_take(true).unwrap();
    assert!(heavy.try_take(true).is_none(), "one while busy");
    let second = heavy.try_take(false).unwrap();
    assert!(heavy.try_take(false).is_none(), "two at most");
    assert_eq!(heavy.taken(), 2);
    drop(first);
    assert!(heavy.try_take(true).is_none());
    drop(second);
    assert!(heavy.try_take(true).is_some());
    assert_eq!(heavy.taken(), 0);
}

// ------------------------------------------------------------------------------------------------------------- jobs

async fn start(device: &Arc<Fake>, dir: &tempfile::TempDir) -> Arc<Jobs<Fake>> {
    Jobs::start(device.clone(), &dir.path().join("benchmarks"), Arc::new(Unlimited)).await
}

async fn over(jobs: &Jobs<Fake>, number: u64) -> JobState {
    loop {
        let state = jobs.get(number).unwrap().kept.status.clone();
        if state.is_over() {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn states(jobs: &Jobs<Fake>) -> BTreeMap<&'static str, u64> {
    jobs.by_state().into_iter().filter(|(_, n)| *n > 0).collect()
}

#[tokio::test(start_paused = true)]
async fn a_job_is_kept_across_a_restart_and_later_ones_are_compared_with_the_first() {
    let (device, dir) = (Fake::new(ladder()), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let first = jobs.submit(request(&[], &[])).await.unwrap();
    assert_eq!(over(&jobs, first).await, JobState::Completed);
    let record = jobs.get(first).unwrap().kept.record.clone().unwrap();
    assert_eq!(record.request.rungs, ALL, "none named means all");
    assert!(record.regressions.iter().all(|r| r.level == Level::NoBaseline) && record.regressions.len() == 4);
    let all = record.decision.rung.clone().unwrap();
    assert_ne!(all, "cpu");
    assert_eq!(jobs.choice("m").as_ref(), Some(&all));
    assert_eq!(jobs.choice("nobody"), None);

    let slower = Fake::new(ladder().into_iter().map(|(n, m)| (n, Made { ms: m.ms * 2, ..m })).collect());
    let jobs = start(&slower, &dir).await;
    let read = jobs.get(first).unwrap();
    assert_eq!(read.kept.record.as_ref(), Some(&record), "read back");
    assert_eq!(read.record_id.as_deref(), Some(record.id().as_str()));
    for _ in 0..2 {
        let second = jobs.submit(request(&["cpu"], &[])).await.unwrap();
        assert!(second > first);
        over(&jobs, second).await;
        let view = jobs.get(second).unwrap();
        let r = &view.kept.record.as_ref().unwrap().regressions[0];
        assert_eq!((r.level, r.baseline_job), (Level::Critical, Some(first)), "the baseline stays");
    }
    // Asked for, it moves.
    let third = jobs.submit(Request { baseline: true, ..request(&["cpu"], &[]) }).await.unwrap();
    over(&jobs, third).await;
    let fourth = jobs.submit(request(&["cpu"], &[])).await.unwrap();
    over(&jobs, fourth).await;
    let view = jobs.get(fourth).unwrap();
    let r = &view.kept.record.as_ref().unwrap().regressions[0];
    assert_eq!((r.level, r.baseline_job), (Level::Ok, Some(third)));
    let View { kept, record_id, .. } = jobs.decision("m").unwrap();
    assert_eq!(record_id.as_deref(), Some(kept.record.as_ref().unwrap().id().as_str()));
    assert_eq!((kept.job, kept.record.as_ref().unwrap().decision.rung.as_deref()), (fourth, Some("cpu")));
    assert_eq!(jobs.choice("m"), Some(all), "cpu was compared with nobody");
    // Another file under the same rung: neither the decision nor the baseline is about it.
    let other = Fake::new(vec![("cpu", Made { network: "cd", ..made(10) })]);
    let jobs = start(&other, &dir).await;
    assert!(jobs.decision("m").is_none() && jobs.choice("m").is_none());
    let fifth = jobs.submit(request(&["cpu"], &[])).await.unwrap();
    over(&jobs, fifth).await;
    assert_eq!(
        jobs.get(fifth).unwrap().kept.record.as_ref().unwrap().regressions[0].level,
        Level::NoBaseline
    );
    assert!(jobs.decision("m").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_poor_first_benchmark_is_no_baseline_and_one_that_was_kept_gives_way() {
    let (device, dir) = (Fake::new(vec![("cpu", made(10))]), tempfile::tempdir().unwrap());
    let measure = async |iterations, jobs: &Arc<Jobs<Fake>>| {
        let number = jobs.submit(Request { iterations, ..request(&[], &[]) }).await.unwrap();
        over(jobs, number).await;
        let kept = jobs.get(number).unwrap().kept.clone();
        let r = kept.record.as_ref().unwrap().regressions[0].clone();
        (number, r.level, r.baseline_job)
    };
    let jobs = start(&device, &dir).await;
    // 3 runs of 5 are 15 samples.
    assert_eq!(measure(5, &jobs).await, (1, Level::NoBaseline, None));
    assert_eq!(measure(10, &jobs).await, (2, Level::NoBaseline, None), "the first was too small to be one");
    assert_eq!(measure(10, &jobs).await, (3, Level::Ok, Some(2)));
    // An older program kept any.
    let file = dir.path().join("benchmarks/baselines-00000001.json");
    let small = std::fs::read_to_string(&file).unwrap().replace("\"samples\":30", "\"samples\":15");
    std::fs::write(&file, small).unwrap();
    let jobs = start(&device, &dir).await;
    assert_eq!(measure(10, &jobs).await, (4, Level::TooFew, Some(2)));
    assert_eq!(measure(10, &jobs).await, (5, Level::Ok, Some(4)), "it gave way");
}

#[tokio::test(start_paused = true)]
async fn a_record_without_a_rung_whose_device_was_taken_is_no_choice() {
    let dir = tempfile::tempdir().unwrap();
    let taken = Made { fails_to_start: Some(("another process has the chip", false)), busy: true, ..made(1) };
    let jobs = start(&Fake::new(vec![("hailo", taken), ("ort", made(8)), ("cpu", made(10))]), &dir).await;
    let first = jobs.submit(request(&[], &[])).await.unwrap();
    assert_eq!(over(&jobs, first).await, JobState::Completed);
    let kept = jobs.get(first).unwrap().kept.clone();
    let record = kept.record.as_ref().unwrap();
    assert_eq!((record.decision.rung.as_deref(), record.rungs[0].busy), (Some("ort"), true));
    assert_eq!(jobs.choice("m"), None, "the chip may be the better one");
    // One that cannot run at all has lost.
    let broken = Made { fails_to_start: Some(("its file is damaged", false)), ..made(1) };
    let device = Fake::new(vec![("hailo", broken), ("ort", made(8)), ("cpu", made(10))]);
    let jobs = start(&device, &dir).await;
    assert_eq!(jobs.choice("m"), None, "read back it is none either");
    let second = jobs.submit(request(&[], &[])).await.unwrap();
    assert_eq!(over(&jobs, second).await, JobState::Completed);
    assert_eq!(jobs.choice("m").as_deref(), Some("ort"));
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_it_was_measured_or_does_not_agree_is_no_choice() {
    let chosen = async |ort: Made| {
        let dir = tempfile::tempdir().unwrap();
        let jobs = start(&Fake::new(vec![("ort", ort), ("cpu", made(10))]), &dir).await;
        let number = jobs.submit(request(&[], &[])).await.unwrap();
        assert_eq!(over(&jobs, number).await, JobState::Completed);
        let record = jobs.get(number).unwrap().kept.record.clone().unwrap();
        (record.decision.rung.unwrap(), jobs.choice("m"))
    };
    let text = |rung: &str| rung.to_owned();
    assert_eq!(chosen(made(5)).await, (text("ort"), Some(text("ort"))));
    // Its host comes up and ends by chance: the other one is selected, and nothing follows from it.
    assert_eq!(chosen(Made { fails_after: Some(0), ..made(5) }).await, (text("cpu"), None));
    // Ever slower: its runs never agree.
    assert_eq!(chosen(Made { grows: 1, ..made(5) }).await.1, None);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_serves_keeps_places_for_requests_and_they_are_told() {
    let device = Fake::new(vec![("hailo", Made { serves: true, ..made(2) }), ("cpu", made(10))]);
    let record = benchmark(&device, &request(&["hailo", "cpu"], &[])).await;
    let hailo = record.rung("hailo").unwrap().measured.as_ref().unwrap();
    assert_eq!(hailo.requests, Some(120), "as many as there were inferences in three runs");
    assert_eq!(hailo.cpu_per_inference.unwrap().ms(), 0.5, "half of the processor time is theirs");
    assert_eq!(record.rung("cpu").unwrap().measured.as_ref().unwrap().requests, None);
    let Found::Load { points, stopped, .. } = found(&record, Step::Concurrency) else { panic!() };
    assert_eq!(points.iter().map(|p| p.in_flight).collect::<Vec<_>>(), [1, 2], "not 4");
    assert!(stopped.as_ref().unwrap().contains("requests"));
}

#[tokio::test(start_paused = true)]
async fn two_run_at_once_and_one_while_requests_are_answered() {
    let (device, dir) = (Fake::new(vec![("cpu", made(50))]), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    // The device answers all the time.
    let traffic = {
        let device = device.clone();
        tokio::spawn(async move {
            loop {
                device.answered.fetch_add(1, SeqCst);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    };
    for _ in 0..3 {
        jobs.submit(request(&[], &[])).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(states(&jobs), BTreeMap::from([("running", 1), ("queued", 2)]));
    traffic.abort();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(states(&jobs), BTreeMap::from([("running", 2), ("queued", 1)]), "and no third");
    for job in 1..=3 {
        assert_eq!(over(&jobs, job).await, JobState::Completed);
    }
    assert_eq!(jobs.heavy(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_what_waits_can_be_cancelled() {
    let (device, dir) = (Fake::new(vec![("cpu", made(1000))]), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let mut taken = Vec::new();
    let refused = loop {
        match jobs.submit(request(&[], &[])).await {
            Ok(n) => taken.push(n),
            Err(e) => break e,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(refused, Refused::Full);
    assert!((MOST_QUEUED..=MOST_QUEUED + 2).contains(&taken.len()));
    let last = *taken.last().unwrap();
    assert!(jobs.get(last).unwrap().ahead.is_some());
    assert_eq!(jobs.remove(last).await, Removed::Cancelled);
    assert_eq!(over(&jobs, last).await, JobState::Cancelled);
    assert_eq!(jobs.remove(last).await, Removed::Forgotten);
    assert_eq!(jobs.remove(last).await, Removed::Unknown);
    assert_eq!(jobs.remove(taken[0]).await, Removed::Cancelled);
    assert_eq!(over(&jobs, taken[0]).await, JobState::Cancelled, "the one that ran");
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_fill_the_queue_and_no_more() {
    let (device, dir) = (Fake::new(vec![("cpu", made(1000))]), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let jobs = jobs.clone();
        asking.spawn(async move { jobs.submit(request(&[], &[])).await });
    }
    let answers = asking.join_all().await;
    let taken = answers.iter().filter(|a| a.is_ok()).count();
    assert!((MOST_QUEUED..=MOST_QUEUED + 2).contains(&taken), "{taken} taken: two may run by now");
    assert!(answers.iter().all(|a| a.is_ok() || *a == Err(Refused::Full)));
    assert!(states(&jobs)["queued"] <= MOST_QUEUED as u64);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_a_job_is_written_has_queued_it() {
    let (device, dir) = (Fake::new(vec![("cpu", made(1))]), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    {
        let mut asking = Box::pin(jobs.submit(request(&[], &[])));
        assert!(std::future::poll_fn(|c| std::task::Poll::Ready(asking.as_mut().poll(c))).await.is_pending());
    }
    assert_eq!(over(&jobs, 1).await, JobState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_a_restart_ends_has_failed_with_the_reason() {
    let (device, dir) = (Fake::new(vec![("cpu", made(1000))]), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let running = jobs.submit(request(&[], &[])).await.unwrap();
    let waiting = jobs.submit(request(&[], &[])).await.unwrap();
    // The daemon is gone; another one begins.
    let jobs = start(&device, &dir).await;
    for job in [running, waiting] {
        let JobState::Failed { reason } = jobs.get(job).unwrap().kept.status.clone() else { panic!() };
        assert_eq!(reason, "the daemon ended before the benchmark did");
    }
    assert!(jobs.submit(request(&[], &[])).await.unwrap() > waiting);
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_is_set_aside() {
    let (device, dir) = (Fake::new(vec![("cpu", made(1))]), tempfile::tempdir().unwrap());
    let place = dir.path().join("benchmarks");
    std::fs::create_dir_all(&place).unwrap();
    for (name, content) in [("job-00000007.json", "{"), ("baselines-00000001.json", "[{}]"), ("other", "x")] {
        std::fs::write(place.join(name), content).unwrap();
    }
    let jobs = start(&device, &dir).await;
    assert!(jobs.list().is_empty());
    assert!(place.join("job-00000007.bad").exists() && place.join("baselines-00000001.bad").exists());
    assert!(place.join("other").exists(), "what is not ours is left alone");
    assert_eq!(jobs.submit(request(&[], &[])).await.unwrap(), 8, "its number is not used again");
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_while_optional_work_is_shed_and_what_runs_pauses() {
    let (device, dir) = (Fake::new(vec![("cpu", made(10))]), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let job = jobs.submit(request(&[], &[])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    device.shedding.store(true, SeqCst);
    assert_eq!(jobs.submit(request(&[], &[])).await, Err(Refused::Shedding));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!jobs.get(job).unwrap().kept.status.is_over(), "it waits");
    device.shedding.store(false, SeqCst);
    assert_eq!(over(&jobs, job).await, JobState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_defect_in_a_benchmark_is_a_failed_job_and_the_next_one_runs() {
    let device = Fake::new(vec![("cpu", Made { panics: true, ..made(10) }), ("ort", made(10))]);
    let dir = tempfile::tempdir().unwrap();
    let jobs = start(&device, &dir).await;
    let job = jobs.submit(request(&["cpu"], &[])).await.unwrap();
    let JobState::Failed { reason } = over(&jobs, job).await else { panic!() };
    assert!(reason.starts_with("a defect ended it"), "{reason}");
    assert_eq!((jobs.heavy(), device.up.load(SeqCst)), (0, 0));
    let next = jobs.submit(request(&["ort"], &[])).await.unwrap();
    assert_eq!(over(&jobs, next).await, JobState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_never_has_room_ends_the_job() {
    let (device, dir) = (Fake::new(vec![("cpu", made(10))]), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let job = jobs.submit(request(&[], &[])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    device.shedding.store(true, SeqCst);
    let JobState::Failed { reason } = over(&jobs, job).await else { panic!() };
    assert!(reason.contains("10 minutes"));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_model_or_rung_is_refused_with_those_there_are() {
    let (device, dir) = (Fake::new(ladder()), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let model = Request { model: "x".into(), ..Request::default() };
    assert_eq!(jobs.submit(model).await, Err(Refused::Model(vec!["m".into()])));
    let rung = jobs.submit(request(&["warp"], &[])).await.unwrap_err();
    assert!(rung.to_string().contains("hailo, ort-int8, ort"));
    // An engine that is a rung too means that rung.
    let job = jobs.submit(request(&["ort", "cpu-int8"], &[])).await.unwrap();
    assert_eq!(jobs.get(job).unwrap().kept.request.rungs, ["ort", "cpu-int8"]);
}

#[tokio::test(start_paused = true)]
async fn a_quick_one_measures_every_rung_within_its_time() {
    let (device, dir) = (Fake::new(ladder()), tempfile::tempdir().unwrap());
    let jobs = start(&device, &dir).await;
    let before = Instant::now();
    let (subject, rungs) = jobs.quick("", 10_000, Duration::from_secs(20)).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(20));
    assert_eq!((subject.model.as_str(), rungs.len()), ("m", 5));
    assert!(rungs.iter().all(|r| r.measured.is_some() != r.reason.is_some()));
    let held = Arc::new(tokio::sync::Notify::new());
    let running = {
        let (jobs, held) = (jobs.clone(), held.clone());
        tokio::spawn(async move {
            held.notify_one();
            jobs.quick("", 100, Duration::from_secs(20)).await
        })
    };
    held.notified().await;
    assert_eq!(jobs.quick("", 100, Duration::from_secs(20)).await.unwrap_err(), Refused::Busy);
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_quick_one_waits_for_no_engine_that_is_built_and_for_no_room() {
    let slow = Made { starts_s: 1200, ..made(1) };
    let device = Fake::new(vec![("ort", made(8)), ("tensorrt", slow), ("cpu", made(10))]);
    let dir = tempfile::tempdir().unwrap();
    let jobs = start(&device, &dir).await;
    let before = Instant::now();
    let (_, rungs) = jobs.quick("", 50, Duration::from_secs(20)).await.unwrap();
    assert!(before.elapsed() < QUICK_WHOLE);
    assert!(rungs[0].measured.is_some() && rungs[2].measured.is_some(), "it takes nobody else's time");
    assert!(rungs[1].reason.as_ref().unwrap().contains("building an engine"), "{:?}", rungs[1].reason);
    assert_eq!((jobs.heavy(), device.up.load(SeqCst)), (0, 0), "its place and its hosts are given back");
    // Room is gone just after it began.
    let quick = {
        let jobs = jobs.clone();
        tokio::spawn(async move { jobs.quick("", 50, Duration::from_secs(20)).await })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    device.shedding.store(true, SeqCst);
    let (before, (_, rungs)) = (Instant::now(), quick.await.unwrap().unwrap());
    assert!(before.elapsed() <= QUICK_WHOLE);
    assert!(rungs.iter().all(|r| r.reason.is_some()));
}
