//! The choice: a pure function of constraints and numbers.
//!
//! Who breaks a constraint is out, with every reason. Of the others those stay whose median latency is within [`TIE_PERCENT`] of the
//! least; of these, those whose throughput is within as much of the most; of these, the one that needs the least memory wins, then the
//! first by name. The others are put in order in the same way without it. A run is taken to agree with another within as many percent, so a
//! smaller difference is no reason: the next benchmark may find the opposite. Neither the order of the candidates nor anything outside
//! the record matters.

use crate::constraint::Constraint;
use crate::record::{Measured, RungResult};
use crate::report::mib;
use crate::units::{Number, Time};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// What differs by at most so much is as good.
pub const TIE_PERCENT: u8 = 5;

/// How a benchmark ended for the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// One rung is the best that keeps to everything.
    Selected,
    /// No rung keeps to all constraints.
    NoneFits,
    /// No rung could be measured.
    NothingRan,
}

/// One candidate's verdict.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Which.
    pub rung: String,
    /// 1 for the one that was selected; `None`: it is out.
    pub place: Option<u32>,
    /// Why it is out, every reason; or why another one is before it.
    pub reasons: Vec<String>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// How it ended.
    pub outcome: Outcome,
    /// The rung that was selected.
    pub rung: Option<String>,
    /// Of those that fit not, the one that comes nearest: the fewest broken constraints, then the least excess.
    pub nearest: Option<String>,
    /// One sentence.
    pub because: String,
    /// Every candidate: those that fit in their order, then the others by name.
    pub verdicts: Vec<Verdict>,
}

/// A candidate that was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fit {
    name: String,
    p50: Time,
    throughput: Number,
    /// Memory that was not measured is no reason to win.
    memory: Option<u64>,
}

impl Fit {
    fn of(rung: &RungResult, m: &Measured) -> Self {
        Self {
            name: rung.info.rung.clone(),
            p50: m.latency.p50,
            throughput: m.throughput_per_s,
            memory: m.memory.as_ref().map(|p| p.peak_bytes),
        }
    }

    /// The exact order: that of candidates which are equally near to the constraints, and of records of form 1.
    fn exactly(&self) -> impl Ord + use<> {
        let memory = self.memory.unwrap_or(u64::MAX);
        (self.p50.nanos() / 1000, Reverse(self.throughput), memory, self.name.clone())
    }

    fn memory_words(&self) -> String {
        self.memory.map_or_else(|| "nobody knows how much".into(), mib)
    }
}

/// How the candidates of a record are put in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Records of form 1: whole microseconds, then any difference of the throughput.
    Exact,
    /// What differs by at most [`TIE_PERCENT`] is equal.
    Classes,
}

/// Of candidates, those that are as fast as the fastest of them, and of these those with as much throughput as the one that has most.
fn fastest(all: &[Fit]) -> (Vec<&Fit>, Vec<&Fit>) {
    let best = all.iter().map(|f| u128::from(f.p50.nanos())).min().unwrap_or_default();
    let as_fast = |f: &&Fit| u128::from(f.p50.nanos()) * 100 <= best * u128::from(100 + TIE_PERCENT);
    let fast: Vec<&Fit> = all.iter().filter(as_fast).collect();
    let most = fast.iter().map(|f| f.throughput.steps()).max().unwrap_or_default();
    let as_much = |f: &&&Fit| f.throughput.steps() * 100 >= most * i128::from(100 - TIE_PERCENT);
    let able = fast.iter().filter(as_much).copied().collect();
    (fast, able)
}

/// Puts them in order: the best of all, then the best of the others, and so on.
fn put_in_order(mut left: Vec<Fit>, rule: Rule) -> Vec<Fit> {
    left.sort_by_cached_key(Fit::exactly);
    if rule == Rule::Exact {
        return left;
    }
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let (_, able) = fastest(&left);
        let best = able.into_iter().min_by_key(|f| (f.memory.unwrap_or(u64::MAX), &f.name));
        let Some(at) = best.and_then(|best| left.iter().position(|f| f == best)) else { break };
        order.push(left.remove(at));
    }
    order
}

/// What the first of an order has that another one of it has not.
fn ahead(order: &[Fit], other: &Fit, rule: Rule) -> String {
    let first = &order[0];
    let us = |f: &Fit| f.p50.nanos() / 1000;
    let faster = || format!("it is faster (p50 {} us against {} us)", us(first), us(other));
    let more = |how: &str| {
        let (most, less) = (first.throughput.value(), other.throughput.value());
        format!("it is {how} and has more throughput ({most}/s against {less}/s)")
    };
    if rule == Rule::Exact {
        return if us(other) != us(first) {
            faster()
        } else if other.throughput != first.throughput {
            more("as fast")
        } else if other.memory != first.memory {
            "it is as fast and needs less memory".to_owned()
        } else {
            "it is as good and first by name".to_owned()
        };
    }
    let (fast, able) = fastest(order);
    if !fast.contains(&other) {
        faster()
    } else if !able.contains(&other) {
        more(&format!("as fast within {TIE_PERCENT} %"))
    } else if other.memory != first.memory {
        let (little, much) = (first.memory_words(), other.memory_words());
        format!("it is as fast within {TIE_PERCENT} % and needs less memory ({little} against {much})")
    } else {
        format!("it is as fast within {TIE_PERCENT} %, needs as much memory, and is first by name")
    }
}

/// Chooses.
#[must_use]
pub fn decide(constraints: &[Constraint], rungs: &[RungResult]) -> Decision {
    decide_by(Rule::Classes, constraints, rungs)
}

/// Chooses as records of some form do.
pub(crate) fn decide_by(rule: Rule, constraints: &[Constraint], rungs: &[RungResult]) -> Decision {
    let (mut fit, mut out) = (Vec::new(), Vec::new());
    let mut nearest = Vec::new();
    for rung in rungs {
        let name = rung.info.rung.clone();
        let Some(m) = &rung.measured else {
            let reason = rung.reason.clone().unwrap_or_else(|| "it was not measured".into());
            out.push(Verdict { rung: name, place: None, reasons: vec![reason] });
            continue;
        };
        let broken: Vec<String> = constraints.iter().filter_map(|c| c.broken_by(m)).collect();
        let found = Fit::of(rung, m);
        if broken.is_empty() {
            fit.push(found);
        } else {
            let unknown = constraints.iter().filter(|c| c.excess(m).is_none()).count();
            let excess = constraints.iter().filter_map(|c| c.excess(m)).max();
            nearest.push((broken.len(), unknown, excess, found.exactly(), name.clone()));
            out.push(Verdict { rung: name, place: None, reasons: broken });
        }
    }
    let fit = put_in_order(fit, rule);
    out.sort();
    nearest.sort();
    let nearest = nearest.into_iter().next().map(|(.., name)| name);
    let mut verdicts = Vec::with_capacity(rungs.len());
    for (place, found) in (1_u32..).zip(&fit) {
        let behind = || format!("behind {}: {}", fit[0].name, ahead(&fit, found, rule));
        let reasons = if place == 1 { Vec::new() } else { vec![behind()] };
        verdicts.push(Verdict { rung: found.name.clone(), place: Some(place), reasons });
    }
    let measured = verdicts.len() + usize::from(nearest.is_some());
    let constrained = if constraints.is_empty() { "" } else { " that keeps to every constraint" };
    let (outcome, rung, nearest, because) = match (fit.first(), nearest) {
        (Some(best), _) => {
            let why = match fit.get(1) {
                Some(next) => format!("{}, and {} is next", ahead(&fit, next, rule), next.name),
                None if rungs.len() == 1 => "there is no other".to_owned(),
                None if constraints.is_empty() => "no other could be measured".to_owned(),
                None => "no other does".to_owned(),
            };
            let because = format!("{} is the best{constrained}: {why}", best.name);
            (Outcome::Selected, Some(best.name.clone()), None, because)
        }
        (None, Some(near)) => {
            let because = format!("no rung keeps to every constraint; {near} comes nearest");
            (Outcome::NoneFits, None, Some(near), because)
        }
        (None, None) => {
            debug_assert_eq!(measured, 0);
            (Outcome::NothingRan, None, None, "no rung could be measured".to_owned())
        }
    };
    verdicts.extend(out);
    Decision { outcome, rung, nearest, because, verdicts }
}
