//! The choice: a pure function of constraints and numbers.
//!
//! Who breaks a constraint is out, with every reason. Of the others the fastest wins: the smaller median latency, then the larger
//! throughput, then the smaller memory, then the name. That is a total order, so neither the order of the candidates nor anything
//! outside the record matters. Latencies are compared in whole microseconds: below that is noise on every board.

use crate::constraint::Constraint;
use crate::record::{Measured, RungResult};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

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

type Key = (u64, Reverse<crate::units::Number>, u64, String);

fn key(rung: &RungResult, m: &Measured) -> Key {
    // Memory that was not measured is no reason to win.
    let memory = m.memory.as_ref().map_or(u64::MAX, |p| p.peak_bytes);
    (m.latency.p50.nanos() / 1000, Reverse(m.throughput_per_s), memory, rung.info.rung.clone())
}

/// What the winner has that another one has not.
fn ahead(winner: &Key, other: &Key) -> String {
    if other.0 != winner.0 {
        format!("it is faster (p50 {} us against {} us)", winner.0, other.0)
    } else if other.1 != winner.1 {
        format!(
            "it is as fast and has more throughput ({}/s against {}/s)",
            winner.1.0.value(),
            other.1.0.value()
        )
    } else if other.2 != winner.2 {
        "it is as fast and needs less memory".to_owned()
    } else {
        "it is as good and first by name".to_owned()
    }
}

fn behind(winner: &Key, other: &Key) -> String {
    format!("behind {}: {}", winner.3, ahead(winner, other))
}

/// Chooses.
#[must_use]
pub fn decide(constraints: &[Constraint], rungs: &[RungResult]) -> Decision {
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
        let key = key(rung, m);
        if broken.is_empty() {
            fit.push(key);
        } else {
            let unknown = constraints.iter().filter(|c| c.excess(m).is_none()).count();
            let excess = constraints.iter().filter_map(|c| c.excess(m)).max();
            nearest.push((broken.len(), unknown, excess, key));
            out.push(Verdict { rung: name, place: None, reasons: broken });
        }
    }
    fit.sort();
    out.sort();
    nearest.sort();
    let nearest = nearest.into_iter().next().map(|(.., key)| key.3);
    let mut verdicts = Vec::with_capacity(rungs.len());
    for (place, key) in (1_u32..).zip(&fit) {
        let reasons = if place == 1 { Vec::new() } else { vec![behind(&fit[0], key)] };
        verdicts.push(Verdict { rung: key.3.clone(), place: Some(place), reasons });
    }
    let measured = verdicts.len() + usize::from(nearest.is_some());
    let constrained = if constraints.is_empty() { "" } else { " that keeps to every constraint" };
    let (outcome, rung, nearest, because) = match (fit.first(), nearest) {
        (Some(best), _) => {
            let why = match fit.get(1) {
                Some(next) => format!("{}, and {} is next", ahead(best, next), next.3),
                None if rungs.len() == 1 => "there is no other".to_owned(),
                None if constraints.is_empty() => "no other could be measured".to_owned(),
                None => "no other does".to_owned(),
            };
            let because = format!("{} is the best{constrained}: {why}", best.3);
            (Outcome::Selected, Some(best.3.clone()), None, because)
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
