//! The choice and what is made of it: pure, total, reproducible.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use inferd_bench::report::{Format, View, render};
use inferd_bench::{
    Baseline, Conditions, Constraint, Found, Key, Level, Measured, Number, Outcome, Peak, Record, Request,
    RungInfo, RungResult, SCHEMA, Step, StepResult, Subject, Summary, Time, check, decide,
};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;

fn n(value: f64) -> Number {
    Number::new(value).unwrap()
}

fn measured(p50_us: u64, throughput: f64, memory_mib: Option<u64>, cosine: f64) -> Measured {
    let t = |us: u64| Time::from_nanos(us * 1000);
    let latency = Summary {
        samples: 600,
        min: t(p50_us),
        mean: t(p50_us + 1),
        p50: t(p50_us),
        p90: t(p50_us + 2),
        p95: t(p50_us + 3),
        p99: t(p50_us + 4),
        max: t(p50_us + 5),
    };
    Measured {
        library: "rten 0.27".into(),
        device: "cpu".into(),
        workers: 1,
        compute: latency.clone(),
        latency,
        throughput_per_s: n(throughput),
        run_means_ms: vec![t(p50_us); 3],
        spread_percent: n(1.0),
        stable: true,
        errors: 0,
        last_error: None,
        cpu_per_inference: Some(t(p50_us)),
        memory: memory_mib.map(|m| Peak { peak_bytes: m << 20, cap_bytes: 64 << 20, how: "proc".into() }),
        cosine: Some(n(cosine)),
        max_abs: Some(n(0.000_1)),
        power_w: None,
        requests: None,
        before: Conditions::default(),
        after: Conditions { celsius: Some(n(61.25)), throttled: Some(false), ..Conditions::default() },
    }
}

fn rung(name: &str, measured: Option<Measured>) -> RungResult {
    let engine = name.split('-').next().unwrap().to_owned();
    let reason = measured.is_none().then(|| "its library is not here".to_owned());
    let info = RungInfo { rung: name.into(), engine, precision: "fp32".into(), sha256: "ab".into() };
    RungResult { info, measured, reason, busy: false, restarted: None }
}

fn constraints(texts: &[&str]) -> Vec<Constraint> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn chosen(wanted: &[&str], rungs: &[RungResult]) -> Option<String> {
    decide(&constraints(wanted), rungs).rung
}

#[test]
fn the_fastest_wins_then_throughput_then_memory_then_name() {
    let fast = rung("cpu", Some(measured(100, 10.0, Some(60), 1.0)));
    let slow = rung("ort", Some(measured(200, 99.0, Some(1), 1.0)));
    assert_eq!(chosen(&[], &[slow.clone(), fast]).unwrap(), "cpu", "latency before everything");
    let busy = rung("hailo", Some(measured(200, 110.0, Some(60), 1.0)));
    assert_eq!(chosen(&[], &[slow.clone(), busy]).unwrap(), "hailo", "then throughput");
    let small = rung("zz", Some(measured(200, 99.0, Some(0), 1.0)));
    assert_eq!(chosen(&[], &[slow.clone(), small]).unwrap(), "zz", "then memory");
    let twin = rung("aa", Some(measured(200, 99.0, Some(1), 1.0)));
    assert_eq!(chosen(&[], &[slow.clone(), twin]).unwrap(), "aa", "then the name");
    let unknown = rung("aa", Some(measured(200, 99.0, None, 1.0)));
    assert_eq!(chosen(&[], &[unknown, slow]).unwrap(), "ort", "memory that nobody measured wins nothing");
}

#[test]
fn what_runs_may_differ_by_decides_nothing() {
    let first = rung("cpu", Some(measured(5000, 200.0, Some(60), 1.0)));
    let against = |p50, throughput, memory| {
        let other = rung("ort", Some(measured(p50, throughput, Some(memory), 1.0)));
        chosen(&[], &[first.clone(), other]).unwrap()
    };
    // Within 5 % either way the one with less memory wins, whoever is faster.
    for (p50, throughput) in [(5001, 199.96), (5250, 190.0), (4999, 200.1), (4763, 210.0)] {
        assert_eq!(against(p50, throughput, 20), "ort", "{p50}");
        assert_eq!(against(p50, throughput, 90), "cpu", "{p50}");
    }
    for memory in [20, 90] {
        assert_eq!(against(5251, 190.0, memory), "cpu", "slower");
        assert_eq!(against(5250, 189.9, memory), "cpu", "less throughput");
        assert_eq!(against(4760, 210.0, memory), "ort", "faster");
        assert_eq!(against(4763, 211.0, memory), "ort", "more throughput");
    }
    let other = rung("ort", Some(measured(5100, 199.0, Some(20), 1.0)));
    let d = decide(&[], &[first, other]);
    assert_eq!(
        d.because,
        "ort is the best: it is as fast within 5 % and needs less memory (20.0 MiB against 60.0 MiB), and cpu is next"
    );
}

#[test]
fn the_class_is_that_of_the_fastest_and_does_not_creep() {
    // Each within 5 % of the one before, the last one not within 5 % of the first.
    let chain: Vec<_> = [("aa", 1000, 60), ("bb", 1040, 50), ("cc", 1080, 1), ("dd", 1120, 0)]
        .map(|(name, p50, memory)| rung(name, Some(measured(p50, 500.0, Some(memory), 1.0))))
        .into();
    let d = decide(&[], &chain);
    let places: Vec<_> = d.verdicts.iter().map(|v| v.rung.as_str()).collect();
    assert_eq!(places, ["bb", "aa", "dd", "cc"], "bb of aa and bb; then aa alone; then dd of cc and dd");
    assert_eq!(d.verdicts[2].reasons, ["behind bb: it is faster (p50 1040 us against 1120 us)"]);
    // Who breaks a constraint makes no class.
    assert_eq!(chosen(&["memory_mib<55"], &chain).unwrap(), "cc", "without aa, bb is the fastest");
}

#[test]
fn the_winner_is_in_the_class_of_the_fastest_and_the_smallest_there() {
    let mut random = Pcg64Mcg::new(4);
    for _ in 0..5000 {
        let rungs = random_rungs(&mut random);
        let Some(name) = decide(&[], &rungs).rung else { continue };
        let all: Vec<_> =
            rungs.iter().filter_map(|r| Some((r.info.rung.as_str(), r.measured.as_ref()?))).collect();
        let p50 = |m: &Measured| m.latency.p50.nanos();
        let best = all.iter().map(|(_, m)| p50(m)).min().unwrap();
        let fast: Vec<_> = all.iter().filter(|(_, m)| p50(m) * 100 <= best * 105).collect();
        let most = fast.iter().map(|(_, m)| m.throughput_per_s).max().unwrap().value();
        let memory = |m: &Measured| m.memory.as_ref().map_or(u64::MAX, |p| p.peak_bytes);
        let class = fast.iter().filter(|(_, m)| m.throughput_per_s.value() >= most * 0.95 - 1e-6);
        let wins = class.min_by_key(|(name, m)| (memory(m), *name)).unwrap();
        assert_eq!(wins.0, name);
    }
}

#[test]
fn who_breaks_a_constraint_is_out_with_every_reason() {
    let fast = rung("ort-int8", Some(measured(100, 10.0, Some(60), 0.95)));
    let slow = rung("ort", Some(measured(200, 9.0, Some(20), 0.999)));
    let absent = rung("hailo", None);
    let d = decide(&constraints(&["cosine>0.99", "memory_mib<50"]), &[fast, absent, slow]);
    assert_eq!(d.rung.as_deref(), Some("ort"));
    let out = d.verdicts.iter().find(|v| v.rung == "ort-int8").unwrap();
    assert_eq!(out.reasons, ["cosine>0.99: it is 0.95", "memory_mib<50: it is 60"]);
    let gone = d.verdicts.iter().find(|v| v.rung == "hailo").unwrap();
    assert_eq!(gone.reasons, ["its library is not here"]);
    assert!(d.verdicts.iter().filter(|v| v.place.is_none()).all(|v| !v.reasons.is_empty()));
}

#[test]
fn what_was_not_measured_cannot_keep_to_a_constraint() {
    let d = decide(&constraints(&["power_w<5"]), &[rung("cpu", Some(measured(1, 1.0, None, 1.0)))]);
    assert_eq!(d.outcome, Outcome::NoneFits);
    assert_eq!(d.verdicts[0].reasons, ["power_w<5: power_w was not measured here"]);
}

#[test]
fn when_nobody_fits_the_nearest_is_named_and_nothing_is_selected() {
    let near = rung("ort", Some(measured(11_000, 1.0, Some(1), 1.0)));
    let far = rung("cpu", Some(measured(90_000, 1.0, Some(1), 1.0)));
    let d = decide(&constraints(&["p95_ms<10"]), &[far, near]);
    assert_eq!((d.outcome, d.rung, d.nearest.as_deref()), (Outcome::NoneFits, None, Some("ort")));
    let d = decide(&[], &[rung("hailo", None)]);
    assert_eq!((d.outcome, d.rung, d.nearest), (Outcome::NothingRan, None, None));
    assert_eq!(decide(&[], &[]).outcome, Outcome::NothingRan);
}

fn random_rungs(random: &mut Pcg64Mcg) -> Vec<RungResult> {
    let names = ["hailo", "ort-int8", "ort", "cpu-int8", "cpu", "tensorrt"];
    let count = random.next_u32() as usize % (names.len() + 1);
    names[..count]
        .iter()
        .map(|name| {
            let mut pick = |of: u64| random.next_u64() % of;
            // Few different values, so that ties of every depth happen.
            let m = (pick(5) > 0).then(|| {
                let memory = (pick(4) > 0).then(|| pick(2) + 1);
                // Steps of 4 %: two of them are more than a class.
                let p50 = 100 + pick(4) * 4;
                measured(p50, (100 + pick(3) * 4) as f64, memory, 0.9 + pick(2) as f64 * 0.1)
            });
            rung(name, m)
        })
        .collect()
}

fn shuffle<T>(random: &mut Pcg64Mcg, list: &mut [T]) {
    for i in (1..list.len()).rev() {
        list.swap(i, random.next_u64() as usize % (i + 1));
    }
}

#[test]
fn the_order_of_candidates_does_not_matter() {
    let mut random = Pcg64Mcg::new(1);
    for _ in 0..5000 {
        let mut rungs = random_rungs(&mut random);
        let wanted = constraints(if random.next_u32().is_multiple_of(2) { &["cosine>0.95"] } else { &[] });
        let first = decide(&wanted, &rungs);
        shuffle(&mut random, &mut rungs);
        assert_eq!(decide(&wanted, &rungs), first);
    }
}

#[test]
fn the_order_is_total_and_a_loser_changes_nothing() {
    let mut random = Pcg64Mcg::new(2);
    for _ in 0..5000 {
        let rungs = random_rungs(&mut random);
        let all = decide(&[], &rungs);
        let places: Vec<u32> = all.verdicts.iter().filter_map(|v| v.place).collect();
        assert_eq!(places, (1..).take(places.len()).collect::<Vec<u32>>(), "each place once");
        // Without the last one everybody before keeps the place; so deciding among winners again gives the same.
        let Some(last) = all.verdicts.iter().rfind(|v| v.place.is_some()) else { continue };
        let fewer: Vec<_> = rungs.iter().filter(|r| r.info.rung != last.rung).cloned().collect();
        let again = decide(&[], &fewer);
        for v in again.verdicts.iter().filter(|v| v.place.is_some()) {
            let before = all.verdicts.iter().find(|b| b.rung == v.rung).unwrap();
            assert_eq!(before.place, v.place);
        }
        let only: Vec<_> =
            rungs.iter().filter(|r| Some(&r.info.rung) == all.rung.as_ref()).cloned().collect();
        assert_eq!(decide(&[], &only).rung, all.rung, "the winner of the winners is the winner");
    }
}

fn record(rungs: Vec<RungResult>, wanted: &[&str]) -> Record {
    let request = Request { constraints: constraints(wanted), ..Request::default() };
    let decision = decide(&request.constraints, &rungs);
    let steps = Step::ALL
        .into_iter()
        .map(|step| StepResult { step, found: Found::Skipped { reason: "there is <nothing> to do".into() } });
    Record {
        schema: SCHEMA,
        subject: Subject { model: "m<&\"'>".into(), version: "1|2".into(), ..Subject::default() },
        request,
        before: Conditions::default(),
        after: Conditions::default(),
        regressions: vec![],
        steps: steps.collect(),
        rungs,
        decision,
    }
}

#[test]
fn a_record_read_back_is_the_same_and_decides_the_same() {
    let mut random = Pcg64Mcg::new(3);
    for _ in 0..300 {
        let record = record(random_rungs(&mut random), &["p95_ms<0.109", "cosine>0.95"]);
        let text = record.to_json();
        let read = Record::parse(text.as_bytes()).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.to_json(), text, "byte for byte");
        assert_eq!(read.replay(), record.decision);
        assert_eq!(read.id(), record.id());
    }
}

/// Measured by a device once, and committed: an order that changes would change what devices have decided.
#[test]
fn a_record_of_old_still_gives_its_decision() {
    let text = include_str!("../../../tests/data/benchmark_record.json");
    let record = Record::parse(text.as_bytes()).unwrap();
    assert_eq!(record.to_json(), text.trim_end());
    assert_eq!(record.replay(), record.decision);
    assert!(record.rungs.len() >= 2 && record.steps.len() == 9);
    assert_eq!(record.schema, 1);
    // Of that time: a microsecond decided, and memory never did.
    let near = Record { rungs: near(), ..record };
    assert_eq!(
        near.replay().because,
        "cpu is the best that keeps to every constraint: it is faster (p50 5000 us against 5001 us), and ort is next"
    );
    let now = Record { schema: SCHEMA, ..near };
    assert_eq!(now.replay().rung.as_deref(), Some("ort"));
}

fn near() -> Vec<RungResult> {
    let one = |name, us, memory| rung(name, Some(measured(us, 200.0, Some(memory), 1.0)));
    vec![one("cpu", 5000, 60), one("ort", 5001, 20)]
}

#[test]
fn what_is_no_record_is_refused() {
    let good = record(vec![rung("cpu", None)], &[]).to_json();
    let change = |from: &str, to: &str| {
        assert!(good.contains(from));
        Record::parse(good.replace(from, to).as_bytes())
    };
    for form in [0, SCHEMA + 1] {
        assert!(change(&format!("\"schema\": {SCHEMA}"), &format!("\"schema\": {form}")).is_err());
    }
    assert!(
        change("\"reason\": \"its library is not here\"", "\"x\": 1").is_err(),
        "neither numbers nor reason"
    );
    assert!(Record::parse(b"").is_err());
    assert!(Record::parse(b"{}").is_err());
    assert!(Record::parse(&vec![b' '; 300 << 10]).is_err());
}

#[test]
fn reports_of_equal_records_are_equal_bytes_and_every_word_is_escaped() {
    let rungs = vec![
        rung("cpu", Some(measured(100, 10.0, Some(60), 1.0))),
        rung("ort", Some(measured(90, 10.0, Some(60), 1.0))),
        rung("hailo", None),
    ];
    let record = record(rungs, &["p95_ms<1"]);
    for format in [Format::Json, Format::Html, Format::Markdown, Format::Csv] {
        for view in [View::Technical, View::Simple] {
            let first = render(&record, format, view);
            let again = Record::parse(record.to_json().as_bytes()).unwrap();
            assert_eq!(render(&again, format, view), first, "{format:?}");
            assert!(first.contains("ort"));
        }
    }
    let html = render(&record, Format::Html, View::Technical);
    assert!(html.contains("m&lt;&amp;&quot;&#39;&gt;") && !html.contains("m<&"));
    assert!(html.contains("<svg") && html.contains("@media print"));
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!html.contains(outside), "{outside}");
    }
    let simple = render(&record, Format::Html, View::Simple);
    assert!(simple.len() < html.len() && !simple.contains("<table"));
    let csv = render(&record, Format::Csv, View::Technical);
    let commas: Vec<usize> = csv.lines().map(|l| l.matches(',').count()).collect();
    assert!(commas.iter().all(|c| *c == commas[0]), "{csv}");
}

fn baseline(m: &Measured) -> Baseline {
    Baseline::of(Key::of(&Subject::default(), &RungInfo::default()), 7, m)
}

#[test]
fn a_regression_has_its_limits() {
    let before = baseline(&measured(1000, 100.0, None, 1.0));
    let level = |m: &Measured| check("cpu", Some(&before), m).level;
    assert_eq!(level(&measured(1000, 100.0, None, 1.0)), Level::Ok);
    assert_eq!(level(&measured(1090, 100.0, None, 1.0)), Level::Ok);
    assert_eq!(level(&measured(1150, 100.0, None, 1.0)), Level::Warning);
    assert_eq!(level(&measured(1300, 100.0, None, 1.0)), Level::Critical);
    assert_eq!(level(&measured(500, 100.0, None, 1.0)), Level::Ok, "better is well");
    assert_eq!(level(&measured(1000, 85.0, None, 1.0)), Level::Warning);
    assert_eq!(level(&measured(1000, 70.0, None, 1.0)), Level::Critical);
    let mut tail = measured(1000, 100.0, None, 1.0);
    tail.latency.p99 = Time::from_nanos(1_220_000);
    let r = check("cpu", Some(&before), &tail);
    assert_eq!(r.level, Level::Critical, "p99 beyond 1.2 times: {:?}", r.reasons);
    assert_eq!(r.reasons.len(), 1);
    let mut failing = measured(1000, 100.0, None, 1.0);
    failing.errors = 100;
    assert_eq!(level(&failing), Level::Warning);
    let mut few = measured(9000, 1.0, None, 1.0);
    few.latency.samples = 29;
    assert_eq!(level(&few), Level::TooFew);
    assert_eq!(check("cpu", None, &few).level, Level::NoBaseline);
}

#[test]
fn what_may_be_a_baseline() {
    let good = measured(1000, 100.0, None, 1.0);
    let mut few = good.clone();
    few.latency.samples = 29;
    let unstable = Measured { stable: false, ..good.clone() };
    let hot = Conditions { throttled: Some(true), ..Conditions::default() };
    let throttled = Measured { before: hot, ..good.clone() };
    for (m, asked, by_itself) in
        [(&good, true, true), (&few, false, false), (&unstable, true, false), (&throttled, true, false)]
    {
        assert_eq!((Baseline::may_be(m, true), Baseline::may_be(m, false)), (asked, by_itself), "{m:?}");
    }
    assert!(baseline(&good).is_enough() && !baseline(&few).is_enough());
}
