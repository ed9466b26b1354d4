//! Judges observations: numbers in, a finding or nothing out. No clock, no process.
//!
//! A bound is broken by a rate above it, not by a single event, unless the event is one that must never happen. Statistics that
//! need many samples wait for them; their allowance for chance is stated where it is used.

use crate::finding::Finding;
use inferd_bundle::{ProbationPolicy, ShadowPolicy};
use inferd_hosts::{Observation, ShadowReport};
use serde_json::{Value, json};
use std::time::Duration;

/// Requests from which on a model was used enough to be judged by them.
pub const ENOUGH: u64 = 30;
/// Bad events before a rate is looked at while more requests come: one or two of the first few say nothing.
const FEW: u64 = 3;
/// Requests from which on a 99th percentile means something: two of them lie above it.
const ENOUGH_FOR_P99: u64 = 200;
/// Differences of latency below this are the scheduler's.
const SLACK: Duration = Duration::from_micros(500);
/// Standard errors that are allowed for chance: the judgement is asked again and again while requests come in.
const SIGMAS: f64 = 3.0;

/// Judges a model on probation. `before`: the same stretch of the model it replaced, if there was one. `over`: no more requests
/// will come, so that every rate counts as it is.
pub fn probation(
    model: &str,
    policy: &ProbationPolicy,
    seen: &Observation,
    before: Option<&Observation>,
    over: bool,
) -> Option<Finding> {
    host(model, seen)
        .or_else(|| errors(model, policy, seen, before, over))
        .or_else(|| non_finite(model, policy, seen, before, over))
        .or_else(|| latency(model, policy, seen, before?, over))
        .or_else(|| drift(model, policy, seen, before?))
}

/// An engine host that ends by itself takes every request in it along.
fn host(model: &str, seen: &Observation) -> Option<Finding> {
    let ends: Vec<(&str, u64)> = seen.ends().filter(|(_, n)| *n > 0).collect();
    let (cause, _) = ends.first()?;
    let sentence =
        format!("the engine host of {model} ended while it was on probation: {}", end_words(cause));
    let ends: serde_json::Map<String, Value> = ends.iter().map(|(k, n)| ((*k).into(), json!(n))).collect();
    Some(Finding::new("host-ended", sentence, json!({ "model": model, "ends": ends })))
}

fn end_words(cause: &str) -> &'static str {
    match cause {
        "oom" => "it was over its memory cap",
        "deadline" => "a request took longer than the model's deadline",
        "signal" => "the system killed it",
        "protocol" => "it broke the rules of the ring",
        "seccomp" => "it tried a system call that engine hosts may not make",
        "device" => "its device was lost",
        _ => "it crashed",
    }
}

fn errors(
    model: &str,
    policy: &ProbationPolicy,
    seen: &Observation,
    before: Option<&Observation>,
    over: bool,
) -> Option<Finding> {
    let faults = seen.faults();
    let rate = seen.fault_rate();
    // Failures of before are the clients' or the board's; a new model is not held to be better.
    let limit = policy.max_error_rate.max(before.map_or(0.0, Observation::fault_rate));
    if rate <= limit || (faults < FEW && !over) {
        return None;
    }
    let kinds: serde_json::Map<String, Value> =
        seen.failures().filter(|(_, n)| *n > 0).map(|(k, n)| (k.into(), json!(n))).collect();
    let sentence = format!(
        "{} of {model}'s requests failed ({faults} of {}), at most {} may",
        percent(rate),
        seen.success + faults,
        percent(limit)
    );
    let evidence = json!({
        "model": model, "requests": seen.success + faults, "faults": faults, "rate": rate, "limit": limit,
        "kinds": kinds, "rate_before": before.map(Observation::fault_rate),
    });
    Some(Finding::new("error-rate", sentence, evidence))
}

fn non_finite(
    model: &str,
    policy: &ProbationPolicy,
    seen: &Observation,
    before: Option<&Observation>,
    over: bool,
) -> Option<Finding> {
    let share = |o: &Observation| ratio(o.outputs.non_finite, o.success);
    let count = seen.outputs.non_finite;
    let limit = policy.max_error_rate.max(before.map_or(0.0, share));
    if share(seen) <= limit || (count < FEW && !over) {
        return None;
    }
    let sentence = format!(
        "{count} of {} answers of {model} hold values that are no numbers, at most {} may",
        seen.success,
        percent(limit)
    );
    let evidence = json!({
        "model": model, "requests": seen.success, "non_finite": count, "rate": share(seen), "limit": limit,
        "rate_before": before.map(share),
    });
    Some(Finding::new("non-finite", sentence, evidence))
}

fn latency(
    model: &str,
    policy: &ProbationPolicy,
    seen: &Observation,
    before: &Observation,
    over: bool,
) -> Option<Finding> {
    // What another rung computed in the place of the preferred one says nothing about the model: its device was ill, or had another owner.
    let (new, old) = (&seen.compute_preferred, &before.compute_preferred);
    let enough = |n: u64| new.count() >= n && old.count() >= n;
    // The median tells early; the 99th percentile needs its tail.
    let quantiles =
        [(0.5, "median", enough(ENOUGH)), (0.99, "p99", enough(ENOUGH_FOR_P99) || (over && enough(100)))];
    for (q, name, known) in quantiles {
        let (Some(now), Some(then), true) = (new.quantile(q), old.quantile(q), known) else {
            continue;
        };
        if now.as_secs_f64() <= then.as_secs_f64() * policy.max_p99_ratio + SLACK.as_secs_f64() {
            continue;
        }
        let times = now.as_secs_f64() / then.as_secs_f64().max(1e-9);
        let sentence = format!(
            "{model} computes {times:.1} times as long as before ({name} {:.2} ms, it was {:.2} ms), at most {} times is allowed",
            millis(now),
            millis(then),
            policy.max_p99_ratio
        );
        let evidence = json!({
            "model": model, "quantile": name, "ms": millis(now), "before_ms": millis(then), "ratio": times,
            "limit": policy.max_p99_ratio, "requests": new.count(), "requests_before": old.count(),
        });
        return Some(Finding::new("slower", sentence, evidence));
    }
    None
}

/// Whether both stretches hold enough answers to be compared.
pub fn comparable(seen: &Observation, before: Option<&Observation>) -> bool {
    seen.success >= ENOUGH && before.is_some_and(|b| b.success >= ENOUGH)
}

fn drift(model: &str, policy: &ProbationPolicy, seen: &Observation, before: &Observation) -> Option<Finding> {
    if !comparable(seen, Some(before)) {
        return None;
    }
    let drift = seen.drift(before);
    let size = beyond_chance(seen, before);
    if size <= policy.max_drift {
        return None;
    }
    let sentence = format!(
        "the answers of {model} are not distributed as before: they drifted by {size:.2} beyond chance, at most {} is allowed",
        policy.max_drift
    );
    let evidence = json!({
        "model": model, "drift": size, "limit": policy.max_drift, "psi": drift.psi, "psi_noise": drift.psi_noise,
        "mean_shift": drift.mean_shift, "requests": seen.success, "requests_before": before.success,
        "classes": seen.outputs.classes, "classes_before": before.outputs.classes,
    });
    Some(Finding::new("drift", sentence, evidence))
}

/// The drift that chance does not explain.
///
/// The stability index of unchanged answers is about `(1/n + 1/m)` times a chi-squared variable of `k - 1` degrees of freedom: its
/// mean is `psi_noise`, its standard deviation `psi_noise * sqrt(2 / (k - 1))`. The means of two samples of unchanged answers
/// differ by `sqrt(1/n + 1/m)` standard deviations; answers, not elements, are counted, because elements of one answer hang
/// together.
fn beyond_chance(seen: &Observation, before: &Observation) -> f64 {
    let drift = seen.drift(before);
    let met = before.outputs.classes.iter().zip(&seen.outputs.classes).filter(|(b, a)| **b + **a > 0).count();
    let degrees = real(met.saturating_sub(1) as u64).max(1.0);
    let psi = drift.psi.map_or(0.0, |p| p - drift.psi_noise * (1.0 + SIGMAS * (2.0 / degrees).sqrt()));
    let error = (1.0 / real(seen.success) + 1.0 / real(before.success)).sqrt();
    let shift = match drift.mean_shift {
        Some(s) if s.is_nan() => f64::INFINITY,
        Some(s) => s - SIGMAS * error,
        None => 0.0,
    };
    psi.max(shift).max(0.0)
}

/// What a shadow has shown so far.
#[derive(Clone, Debug, PartialEq)]
pub enum Compared {
    /// Nothing is wrong so far.
    More,
    /// It saw what it should and nothing is wrong.
    Enough,
    /// Something is wrong.
    Bad(Box<Finding>),
}

/// Judges a model beside the one that serves. `over`: no more requests will come.
pub fn shadow(model: &str, policy: &ShadowPolicy, report: &ShadowReport, over: bool) -> Compared {
    let done = report.mirrored + report.failed;
    let last = over || done >= u64::from(policy.requests);
    let found = shadow_bad(model, policy, report, last);
    match found {
        Some((code, sentence, limit)) => {
            let evidence = json!({ "model": model, "limit": limit, "report": report });
            Compared::Bad(Box::new(Finding::new(code, sentence, evidence)))
        }
        None if last => Compared::Enough,
        None => Compared::More,
    }
}

fn shadow_bad(
    model: &str,
    policy: &ShadowPolicy,
    report: &ShadowReport,
    last: bool,
) -> Option<(&'static str, String, f64)> {
    let done = report.mirrored + report.failed;
    if let Some(why) = &report.ended {
        let sentence = format!("the engine host of {model} ended on a copy of a live request: {why}");
        return Some(("shadow-host-ended", sentence, 0.0));
    }
    // Values that are no numbers count as errors; those the serving model gives too do not.
    let strange = report.non_finite.saturating_sub(report.primary_non_finite);
    let bad = report.failed + strange;
    let rate = ratio(bad, done);
    if rate > policy.max_error_rate && (bad >= FEW || last) {
        let (code, what) = if strange > report.failed {
            ("shadow-non-finite", "gave values that are no numbers")
        } else {
            ("shadow-error-rate", "failed")
        };
        let sentence = format!(
            "{model} {what} on {bad} of {done} copies of live requests, at most {} may",
            percent(policy.max_error_rate)
        );
        return Some((code, sentence, policy.max_error_rate));
    }
    // A least value cannot get better, so there is nothing to wait for.
    if let Some(cosine) =
        report.min_cosine.filter(|c| *c < policy.min_cosine && report.primary_non_finite == 0)
    {
        let sentence = format!(
            "{model} answers unlike the serving model: cosine similarity {cosine:.4} on a live request, at least {} is asked for",
            policy.min_cosine
        );
        return Some(("shadow-cosine", sentence, policy.min_cosine));
    }
    if let Some(agreement) = report.argmax_agreement.filter(|a| *a < policy.min_agreement)
        && (last || report.mirrored >= ENOUGH)
    {
        let sentence = format!(
            "{model} and the serving model agree on {} of {} live requests, at least {} is asked for",
            percent(agreement),
            report.mirrored,
            percent(policy.min_agreement)
        );
        return Some(("shadow-agreement", sentence, policy.min_agreement));
    }
    if let Some(((then, _), (now, _))) = report.primary_compute.zip(report.candidate_compute)
        && report.mirrored >= ENOUGH
        && now.as_secs_f64() > then.as_secs_f64() * policy.max_latency_ratio + SLACK.as_secs_f64()
    {
        // The median: the candidate runs at lower priority, so its tail is the board's.
        let sentence = format!(
            "{model} computes {:.2} ms where the serving model needs {:.2} ms, at most {} times as long is allowed",
            millis(now),
            millis(then),
            policy.max_latency_ratio
        );
        return Some(("shadow-slower", sentence, policy.max_latency_ratio));
    }
    None
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn ratio(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { real(part) / real(all) }
}

#[allow(clippy::cast_precision_loss)] // exact below 2^53, which no counter of requests reaches
fn real(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> ProbationPolicy {
        ProbationPolicy {
            seconds: 60,
            requests: 100,
            max_error_rate: 0.01,
            max_p99_ratio: 2.0,
            max_drift: 0.25,
        }
    }

    fn shadow_policy() -> ShadowPolicy {
        ShadowPolicy {
            requests: 100,
            min_cosine: 0.9,
            min_agreement: 0.95,
            max_latency_ratio: 2.0,
            max_error_rate: 0.0,
        }
    }

    fn code(compared: Compared) -> String {
        match compared {
            Compared::Bad(f) => f.code,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn nothing_seen_is_nothing_found() {
        let nothing = Observation::default();
        for over in [false, true] {
            assert_eq!(probation("m", &policy(), &nothing, None, over), None);
            assert_eq!(probation("m", &policy(), &nothing, Some(&nothing), over), None);
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_found_by_their_share() {
        let seen = |success, non_finite| {
            let mut o = Observation::default();
            (o.success, o.outputs.non_finite) = (success, non_finite);
            o
        };
        fn judge(o: &Observation, before: Option<&Observation>, over: bool) -> Option<String> {
            probation("m", &policy(), o, before, over).map(|f| f.code)
        }
        let found = || Some("non-finite".to_owned());
        assert_eq!(judge(&seen(1000, 10), None, true), None, "1 % is allowed");
        assert_eq!(judge(&seen(1000, 11), None, false), found());
        assert_eq!(judge(&seen(1000, 11), Some(&seen(1000, 11)), true), None, "the old model did so too");
        assert_eq!(judge(&seen(2, 2), None, false), None, "two are too few to say");
        assert_eq!(judge(&seen(2, 2), None, true), found(), "but at the end they count");
    }

    #[test]
    fn every_end_of_a_host_is_said_in_its_own_words() {
        let words: std::collections::BTreeSet<_> =
            inferd_hosts::End::ALL.iter().map(|how| end_words(how.name())).collect();
        assert_eq!(words.len(), inferd_hosts::End::ALL.len(), "{words:?}");
    }

    #[test]
    fn other_classes_are_drift_and_a_few_answers_are_not() {
        let with = |classes: &[u64]| {
            let mut o = Observation::default();
            (o.success, o.outputs.classes) = (classes.iter().sum(), classes.to_vec());
            o
        };
        let before = with(&[700, 200, 100]);
        assert_eq!(probation("m", &policy(), &with(&[66, 23, 11]), Some(&before), true), None);
        let permuted = probation("m", &policy(), &with(&[11, 66, 23]), Some(&before), false).unwrap();
        assert_eq!(permuted.code, "drift");
        assert!(permuted.evidence["drift"].as_f64().unwrap() > 0.25, "{permuted:?}");
        assert_eq!(
            probation("m", &policy(), &with(&[2, 15, 4]), Some(&before), true),
            None,
            "21 are too few"
        );
    }

    #[test]
    fn a_shadow_ends_when_it_saw_enough() {
        let report = |mirrored| ShadowReport {
            mirrored,
            min_cosine: Some(0.99),
            argmax_agreement: Some(1.0),
            ..ShadowReport::default()
        };
        assert_eq!(shadow("m", &shadow_policy(), &report(99), false), Compared::More);
        assert_eq!(shadow("m", &shadow_policy(), &report(99), true), Compared::Enough);
        assert_eq!(shadow("m", &shadow_policy(), &report(100), false), Compared::Enough);
    }

    #[test]
    fn a_shadow_finds_what_the_policy_forbids() {
        let good = ShadowReport {
            mirrored: 50,
            min_cosine: Some(0.99),
            argmax_agreement: Some(1.0),
            primary_compute: Some((Duration::from_millis(2), Duration::from_millis(3))),
            candidate_compute: Some((Duration::from_millis(4), Duration::from_millis(90))),
            ..ShadowReport::default()
        };
        let judge = |report: ShadowReport| code(shadow("m", &shadow_policy(), &report, false));
        assert_eq!(judge(good.clone()), "More");
        assert_eq!(judge(ShadowReport { min_cosine: Some(0.89), ..good.clone() }), "shadow-cosine");
        assert_eq!(judge(ShadowReport { argmax_agreement: Some(0.94), ..good.clone() }), "shadow-agreement");
        assert_eq!(judge(ShadowReport { failed: 3, ..good.clone() }), "shadow-error-rate");
        assert_eq!(judge(ShadowReport { failed: 2, ..good.clone() }), "More");
        assert_eq!(judge(ShadowReport { non_finite: 3, ..good.clone() }), "shadow-non-finite");
        assert_eq!(judge(ShadowReport { non_finite: 3, primary_non_finite: 3, ..good.clone() }), "More");
        assert_eq!(
            judge(ShadowReport { ended: Some("SIGKILL".into()), ..good.clone() }),
            "shadow-host-ended"
        );
        let slow = Some((Duration::from_millis(5), Duration::from_millis(6)));
        assert_eq!(judge(ShadowReport { candidate_compute: slow, ..good }), "shadow-slower");
    }
}
