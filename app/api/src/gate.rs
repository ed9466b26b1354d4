//! Which gesture of a source may be acted on now: its gate (`inferd_tasks::emg::gate`) with the clock, for events, the list of
//! sources, the numbers of streams and metrics.
//!
//! A gate lives as long as its source and forgets what it follows only when its model's labels change. What it counts stays.

use crate::metrics::live::Writer;
use inferd_tasks::emg::gate::{Counts, Gate, Reason, Seen, Settings, State, View};
use inferd_tasks::emg::{EmgPlan, Gesture};
use serde_json::{Map, Value, json};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The gate of a source.
#[derive(Debug)]
pub(crate) struct Guard {
    settings: Settings,
    /// The clock's zero.
    epoch: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The gate, and the labels it is for; `None` until there is a model.
    gate: Option<(Gate, Vec<String>)>,
    /// The loudest channel's RMS of the newest window.
    rms: Option<f32>,
    /// Of gates for other labels before.
    before: Counts,
}

/// The command as it is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Command {
    pub view: View,
    pub label: Option<String>,
    rms: Option<f32>,
}

impl Guard {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, epoch: Instant::now(), kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A gate is whole after every call.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.epoch)
    }

    /// Judges by the labels of this plan from now on, whose windows are `hop` apart.
    pub(crate) fn fit(&self, plan: &EmgPlan, hop: Duration) {
        let mut kept = self.kept();
        if kept.gate.as_ref().is_some_and(|(_, labels)| labels == plan.labels()) {
            return;
        }
        // The settings were checked when they were read.
        let Ok(gate) = Gate::try_new(self.settings.clone(), plan.labels(), hop) else { return };
        kept.before = kept.counts();
        kept.gate = Some((gate, plan.labels().to_vec()));
    }

    /// Takes what a window was recognised as; `rms` is of the window before it was scaled, `at` when its last sample came.
    pub(crate) fn take(&self, gesture: &Gesture, rms: f32, at: Instant) -> Command {
        let now = self.time(Instant::now());
        let mut kept = self.kept();
        kept.rms = Some(rms);
        if let Some((gate, _)) = &mut kept.gate {
            let seen =
                Seen { class: gesture.index, confidence: gesture.confidence(), rms, at: self.time(at) };
            gate.take(seen, now);
        }
        kept.command(now)
    }

    pub(crate) fn interrupt(&self, reason: Reason) {
        let now = self.time(Instant::now());
        if let Some((gate, _)) = &mut self.kept().gate {
            gate.interrupt(reason, now);
        }
    }

    /// The command at this moment.
    pub(crate) fn command(&self) -> Command {
        let now = self.time(Instant::now());
        self.kept().command(now)
    }

    /// With what it counted and how it is set.
    pub(crate) fn describe(&self) -> Value {
        let command = self.command();
        let kept = self.kept();
        let counts = kept.counts();
        let s = &self.settings;
        let safe = kept.gate.as_ref().and_then(|(gate, labels)| labels.get(gate.safe()?));
        json!({
            "state": command.view.state.name(),
            "reason": command.view.reason.name(),
            "command": command.view.command,
            "command_label": command.label,
            "safe_label": safe,
            "rms": command.rms(),
            "passed": counts.passed,
            "unsure": counts.unsure,
            "low_energy": counts.low,
            "refused": counts.refused,
            "switches": counts.switches,
            "releases": counts.releases,
            "settings": {
                "confidence": decimal(s.confidence),
                "keep": decimal(s.keep),
                "agree": s.agree,
                "of": s.of,
                "hold_ms": millis(s.hold),
                "rest_rms": decimal(s.rest_rms),
                "rest_ms": millis(s.rest),
            },
        })
    }
}

impl Kept {
    fn counts(&self) -> Counts {
        let (a, b) = (&self.before, self.gate.as_ref().map(|(gate, _)| gate.counts()).unwrap_or_default());
        Counts {
            passed: a.passed + b.passed,
            unsure: a.unsure + b.unsure,
            low: a.low + b.low,
            refused: a.refused + b.refused,
            switches: a.switches + b.switches,
            releases: a.releases + b.releases,
        }
    }

    fn command(&mut self, now: Duration) -> Command {
        let rms = self.rms;
        let Some((gate, labels)) = &mut self.gate else {
            let view = View { state: State::Released, command: None, reason: Reason::Starting };
            return Command { view, label: None, rms };
        };
        let view = gate.view(now);
        Command { view, label: view.command.and_then(|c| labels.get(c).cloned()), rms }
    }
}

impl Command {
    /// Its fields in an event, beside those of the contract.
    pub(crate) fn add_to(&self, event: &mut Map<String, Value>) {
        event.insert("command".to_owned(), json!(self.view.command));
        event.insert("command_label".to_owned(), json!(self.label));
        event.insert("gate".to_owned(), json!(self.view.state.name()));
        event.insert("gate_reason".to_owned(), json!(self.view.reason.name()));
    }

    /// Four digits are more than any sensor has; null before the first window, and of one that held no number.
    fn rms(&self) -> Option<f64> {
        self.rms.filter(|rms| rms.is_finite()).map(decimal)
    }
}

/// A setting or a reading as somebody would write it, not with the digits that f32 adds.
fn decimal(v: f32) -> f64 {
    (f64::from(v) * 1e4).round() / 1e4
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// The numbers of gates, for metrics; each with the name of its source.
pub(crate) fn encode(out: &mut Writer<'_, '_>, all: &[(&str, &Guard)]) -> fmt::Result {
    let commands: Vec<_> = all.iter().map(|(name, guard)| (*name, guard.command())).collect();
    let states = commands.iter().flat_map(|(name, c)| {
        State::ALL
            .map(|s| (vec![("source", *name), ("state", s.name())], f64::from(u8::from(s == c.view.state))))
    });
    out.gauge("emg_gate_state", "1 for what is done with a source's commands", states)?;
    let rms = commands.iter().filter_map(|(name, c)| Some((vec![("source", *name)], c.rms()?)));
    out.gauge("emg_gate_rms", "The loudest channel's RMS of the newest window, in the source's unit", rms)?;
    let counts: Vec<_> = all.iter().map(|(name, guard)| (*name, guard.kept().counts())).collect();
    let windows = counts.iter().flat_map(|(name, c)| {
        [("passed", c.passed), ("unsure", c.unsure), ("low_energy", c.low), ("refused", c.refused)]
            .map(|(outcome, n)| (vec![("source", *name), ("outcome", outcome)], n))
    });
    out.counter("emg_gate_windows", "Windows by what the gate made of them", windows)?;
    let switches = counts.iter().map(|(name, c)| (vec![("source", *name)], c.switches));
    out.counter("emg_gate_switches", "Times that another gesture than before was followed", switches)?;
    let releases = counts.iter().map(|(name, c)| (vec![("source", *name)], c.releases));
    out.counter("emg_gate_releases", "Times that a gesture other than the safe class was let go", releases)
}
