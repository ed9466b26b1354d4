//! Numbers of the updater, read when `/metrics` is asked. Where updates are off there are none.

use super::live::{Writer, float, yes};
use crate::{Updates, updates};
use arc_swap::ArcSwap;
use inferd_rollout::{Status, TrialPhase};
use inferd_system::Slot;
use inferd_system::door::Told;
use inferd_system::state::Phase;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The updater's numbers.
pub(super) struct Rollout(pub(super) Arc<ArcSwap<Updates>>);

impl fmt::Debug for Rollout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rollout").finish_non_exhaustive()
    }
}

impl Collector for Rollout {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let updates = self.0.load();
        if matches!(&**updates, Updates::Off) {
            return Ok(());
        }
        let mut out = Writer { encoder: &mut encoder };
        let status = updates::status_of(&updates);
        out.gauge(
            "inferd_updates_usable",
            "Whether the slots could be opened, so that bundles can come",
            [(vec![], yes(status.is_some()))],
        )?;
        let Some(status) = status else { return Ok(()) };
        slots(&mut out, &status)?;
        verdicts(&mut out, &status)?;
        if let Some(told) = &status.system {
            systems(&mut out, told)?;
        }
        rest(&mut out, &status)
    }
}

fn slots(out: &mut Writer<'_, '_>, status: &Status) -> fmt::Result {
    let named: Vec<(String, String, &inferd_rollout::SlotView)> = status
        .slots
        .iter()
        .map(|s| (s.slot.to_string(), s.version.map_or_else(String::new, |v| v.to_string()), s))
        .collect();
    out.gauge(
        "inferd_slot_info",
        "What a model slot holds; always 1",
        named.iter().map(|(slot, version, s)| {
            let labels = vec![
                ("slot", slot.as_str()),
                ("status", s.status),
                ("product", s.product.as_deref().unwrap_or("")),
                ("version", version.as_str()),
            ];
            (labels, 1.0)
        }),
    )?;
    out.gauge(
        "inferd_slot_active",
        "Whether the slot is the one that serves after a start",
        named.iter().map(|(slot, _, s)| (vec![("slot", slot.as_str())], yes(s.active))),
    )?;
    out.gauge(
        "inferd_version_floor",
        "The lowest version of a product that is accepted",
        status.floors.iter().map(|(product, v)| (vec![("product", product.as_str())], float(*v))),
    )
}

/// Counted verdicts: (gate, outcome, code), how often. The updater writes the three into one key.
fn counted(status: &Status) -> impl Iterator<Item = (&str, &str, &str, u64)> {
    status.counters.verdicts.iter().filter_map(|(key, n)| {
        let mut parts = key.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|p| !p.is_empty());
        Some((parts.next()?, parts.next()?, parts.next()?, *n))
    })
}

fn verdicts(out: &mut Writer<'_, '_>, status: &Status) -> fmt::Result {
    let mut gates: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut back: BTreeMap<&str, u64> = BTreeMap::new();
    let mut installs: BTreeMap<&str, u64> =
        ["staged", "refused", "interrupted"].map(|outcome| (outcome, 0)).into();
    for (gate, outcome, code, n) in counted(status) {
        *gates.entry((gate, outcome)).or_default() += n;
        if outcome == "reverse" {
            *back.entry(code).or_default() += n;
        }
        let install = match (gate, outcome) {
            ("install", "pass") => "staged",
            (_, "refuse") if BEFORE_TRIAL.contains(&gate) => "refused",
            ("install", "interrupted") => "interrupted",
            _ => continue,
        };
        *installs.entry(install).or_default() += n;
    }
    out.counter(
        "inferd_bundle_installs",
        "Transfers of bundles, by how they ended",
        installs.iter().map(|(outcome, n)| (vec![("outcome", *outcome)], *n)),
    )?;
    out.counter(
        "inferd_gate_verdicts",
        "Decisions of the gates since this start",
        gates.iter().map(|((gate, outcome), n)| (vec![("gate", *gate), ("outcome", *outcome)], *n)),
    )?;
    out.counter(
        "inferd_rollbacks",
        "Bundles taken back since this start, by reason",
        back.iter().map(|(code, n)| (vec![("code", *code)], *n)),
    )
}

/// Of the board's own two systems.
fn systems(out: &mut Writer<'_, '_>, told: &Told) -> fmt::Result {
    out.gauge(
        "inferd_system_usable",
        "Whether systems can be installed and tried here",
        [(vec![], yes(told.refused.is_none()))],
    )?;
    let name = |slot: Option<Slot>| slot.map(|slot| slot.to_string()).unwrap_or_default();
    if let Some(board) = &told.board {
        let (runs, chosen) = (name(board.runs), name(board.chosen));
        let labels = vec![("backend", board.backend.as_str()), ("runs", &*runs), ("chosen", &*chosen)];
        out.gauge(
            "inferd_system_info",
            "Which of the board's systems runs and which is started next; always 1",
            [(labels, 1.0)],
        )?;
        out.gauge(
            "inferd_system_on_trial",
            "Whether the system that runs was started to be tried",
            [(vec![], yes(board.on_trial))],
        )?;
    }
    let Some(state) = &told.state else { return Ok(()) };
    let phases = [
        ("idle", matches!(state.phase, Phase::Idle)),
        ("writing", matches!(state.phase, Phase::Writing { .. })),
        ("staged", matches!(state.phase, Phase::Staged { .. })),
        ("trial", matches!(state.phase, Phase::Trial { .. })),
    ];
    out.gauge(
        "inferd_system_state",
        "1 for what was begun with a system",
        phases.map(|(phase, is)| (vec![("phase", phase)], yes(is))),
    )?;
    out.gauge(
        "inferd_system_version_floor",
        "The lowest version of a system that is accepted",
        state.floors.iter().map(|(product, v)| (vec![("product", product.as_str())], float(*v))),
    )
}

/// The gates a bundle passes before it is staged.
const BEFORE_TRIAL: [&str; 9] =
    ["keys", "role", "revocation", "floor", "target", "engine", "memory", "disk", "install"];

fn rest(out: &mut Writer<'_, '_>, status: &Status) -> fmt::Result {
    let phase = status.trial.as_ref().map(|t| t.phase);
    let phases = [
        ("gates", TrialPhase::Gates),
        ("shadow", TrialPhase::Shadow),
        ("probation", TrialPhase::Probation),
        ("returning", TrialPhase::Returning),
    ];
    out.gauge(
        "inferd_trial_state",
        "1 for the phase the trial of a bundle is in; all 0 without one",
        phases.map(|(name, p)| (vec![("phase", name)], yes(phase == Some(p)))),
    )?;
    let c = &status.counters;
    let bytes = [("fetched", c.received), ("reused", c.local), ("resumed", c.resumed)];
    out.counter(
        "inferd_update_bytes",
        "Bytes of bundles: from outside, from a slot of this device, from an interrupted transfer",
        bytes.map(|(source, n)| (vec![("source", source)], n)),
    )?;
    out.gauge(
        "inferd_last_return_seconds",
        "How long the last return to the models before took",
        c.last_return_ms.map(|ms| (vec![], float(ms) / 1000.0)),
    )?;
    let scrub = &status.scrub;
    out.counter(
        "inferd_scrub_rounds",
        "Complete re-verifications of the active slot",
        [(vec![], scrub.rounds)],
    )?;
    out.counter(
        "inferd_scrub_damages",
        "Damage that re-verifying the active slot found",
        [(vec![], scrub.damages)],
    )?;
    out.gauge(
        "inferd_scrub_position_bytes",
        "How far the re-verification of the active slot is",
        [(vec![], float(scrub.done))],
    )?;
    let versions = [("root", status.trust.root_version), ("revocations", status.trust.revocation_version)];
    out.gauge(
        "inferd_trust_version",
        "Version of a trust document; 0: there is none",
        versions.map(|(document, v)| (vec![("document", document)], float(v))),
    )?;
    out.gauge(
        "inferd_dev_keys_accepted",
        "Whether bundles signed with development keys are accepted",
        [(vec![], yes(status.trust.dev))],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_told_apart_by_gate_outcome_and_code() {
        let mut status = Status::default();
        status.counters.verdicts.insert("memory-measured/refuse/peak-above-cap".to_owned(), 2);
        assert_eq!(
            counted(&status).collect::<Vec<_>>(),
            [("memory-measured", "refuse", "peak-above-cap", 2)]
        );
    }
}
