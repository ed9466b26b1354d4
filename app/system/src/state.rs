//! What was begun with a system, in one small file that is replaced whole, and what follows from it at a start. No clock, no disk.
//!
//! | from | by | to |
//! |---|---|---|
//! | anything but `Trial` | an install begins | `Writing` |
//! | `Writing` | everything is there, hashed from the medium | `Staged` |
//! | `Staged`, or `Trial` come back | the keeper arms a try | `Trial` |
//! | `Trial` | the system that is tried is committed | `Idle`, the floor has risen |
//! | `Trial` | it is not to blame for its end, and may be tried again | `Staged` |
//! | `Trial` | it is to blame, or was interrupted too often | `Idle`, with a verdict |
//! | `Trial` | it is to blame, and runs all the same: the old system cannot be started | `Idle`, with a verdict |
//!
//! Every arrow is one replaced file, made before what it announces: `Writing` before the slot changes, `Trial` before the boot loader
//! is told. Only the boot loader's choice itself comes before its arrow (`Idle` after a commit), and is found at the next start.

use crate::{Now, Slot};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Power cuts, and restarts that somebody asked for, that a trial survives.
pub const MAX_INTERRUPTIONS: u32 = 5;
/// How often a system may have the watchdog or a panic end it.
pub const MAX_FAILURES: u32 = 2;
/// Products that have a floor.
const MAX_FLOORS: usize = 16;
/// Verdicts that are kept.
const MAX_VERDICTS: usize = 16;
/// The longest sentence of a reason that is kept or told, in bytes: some are the daemon's words.
pub(crate) const MAX_SENTENCE: usize = 1024;

/// Which system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The bundle's id.
    pub bundle: String,
    /// Its product.
    pub product: String,
    /// Its version.
    pub version: u64,
    /// Its version for people.
    pub label: String,
    /// How long it has to be ready before it is committed, in seconds.
    pub hold_s: u32,
}

/// What was begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// A slot is being written: nothing in it counts.
    Writing {
        /// The slot.
        slot: Slot,
        /// What it is to hold.
        about: About,
    },
    /// A slot holds a whole system.
    Staged {
        /// The slot.
        slot: Slot,
        /// What it holds.
        about: About,
        /// What it has behind it.
        tries: Tries,
    },
    /// The boot loader is told to try it, or it runs.
    Trial {
        /// The slot.
        slot: Slot,
        /// What it holds.
        about: About,
        /// What it has behind it.
        tries: Tries,
        /// The number of the boot that armed it.
        boot: u64,
        /// What it says of itself: why it does not want to be committed.
        gave_up: Option<Reason>,
    },
}

/// How often a system was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Tries that ended without its fault.
    pub interruptions: u32,
    /// Tries that the watchdog or a panic ended.
    pub failures: u32,
}

/// Why, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// For programs.
    pub code: String,
    /// For people.
    pub sentence: String,
}

impl Reason {
    /// The sentence is cut to what is kept of it, and is one line: it goes into a record, the kernel's log, and what is asked of the keeper.
    #[must_use]
    pub fn new(code: &str, sentence: impl std::fmt::Display) -> Self {
        Self { code: code.to_owned(), sentence: sentence.to_string() }.brief()
    }

    /// The same, cut.
    #[must_use]
    pub(crate) fn brief(self) -> Self {
        let mut sentence: String =
            self.sentence.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        sentence.truncate(sentence.floor_char_boundary(MAX_SENTENCE));
        Self { sentence, ..self }
    }
}

/// What became of a system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Counts up.
    pub number: u64,
    /// `committed`, `returned` or `interrupted`.
    pub outcome: Outcome,
    /// Which system.
    pub about: About,
    /// Its slot.
    pub slot: Slot,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
    /// The number of the boot in which it was found.
    pub boot: u64,
    /// What it has behind it.
    pub tries: Tries,
}

/// The kinds of verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It stays.
    Committed,
    /// It was given up: the old one is back for good, or, where that cannot be started (`old-not-started`), is chosen all the same. That is no
    /// kind of its own, since the old system's program reads this record too, should it start again one day.
    Returned,
    /// The old one is back, and the new one is tried again.
    Interrupted,
}

/// How the boot before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Power, or nobody knows.
    Power,
    /// Somebody asked for it.
    Request,
    /// Somebody asked for it, and the watchdog reset the board then or behind it.
    Overdue,
    /// The kernel panicked, or ran out of memory.
    Panic,
    /// The watchdog.
    Watchdog,
}

/// What is to be done at a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing: no system is on trial.
    Nothing,
    /// This is the system on trial: watch it, then commit it or give it up.
    Watch,
    /// It was started to be tried, and no trial is known of: nobody could say whether it stays. The board is to be restarted.
    Unasked,
    /// It was committed, and the record does not say so yet.
    Committed,
    /// The old system is back; the new one is tried again.
    Again(Reason),
    /// The old system is back, and stays.
    Returned(Reason),
    /// The system that gave itself up was started again, not to be tried: the old one cannot be. It runs on, since one more restart would end here
    /// again.
    Alone(Reason),
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What was begun.
    #[serde(flatten)]
    pub phase: Phase,
    /// The highest version that was committed of each product.
    #[serde(default)]
    pub floors: BTreeMap<String, u64>,
    /// The bundle that was committed with it.
    #[serde(default)]
    pub bundles: BTreeMap<String, String>,
    /// The newest verdicts, oldest first.
    #[serde(default)]
    pub verdicts: Vec<Verdict>,
}

impl State {
    /// The floor of a product.
    #[must_use]
    pub fn floor(&self, product: &str) -> u64 {
        self.floors.get(product).copied().unwrap_or(0)
    }

    /// Whether a product's floor can be kept.
    #[must_use]
    pub fn has_room_for(&self, product: &str) -> bool {
        self.floors.contains_key(product) || self.floors.len() < MAX_FLOORS
    }

    /// What a start with this state, this boot loader's choice and this end of the boot before asks for.
    #[must_use]
    pub fn at_start(&self, now: Now, ended: Ended, boot: u64) -> Start {
        let Phase::Trial { slot, tries, boot: armed, gave_up, .. } = &self.phase else {
            return if now.on_trial && now.runs != now.chosen { Start::Unasked } else { Start::Nothing };
        };
        if now.runs == *slot {
            return match gave_up {
                // Chosen for good, whoever chose it: a commit whose record did not come to the medium.
                _ if now.chosen == *slot => Start::Committed,
                Some(why) if !now.on_trial => {
                    let old = now.chosen;
                    let sentence = format!(
                        "system {old} cannot be started any more, so system {slot} runs on though it gave itself up: {} ({})",
                        why.sentence, why.code
                    );
                    Start::Alone(Reason::new("old-not-started", sentence))
                }
                _ => Start::Watch,
            };
        }
        if let Some(reason) = gave_up {
            return Start::Returned(reason.clone());
        }
        let reason = |code: &str, sentence: &str| Reason::new(code, sentence);
        let interrupted = |sentence: &str| {
            if tries.interruptions < MAX_INTERRUPTIONS {
                Start::Again(reason("trial-interrupted", sentence))
            } else {
                let why = format!("{sentence}, {} times: it is not tried any more", tries.interruptions + 1);
                Start::Returned(reason("interrupted-too-often", &why))
            }
        };
        let failed = |code: &str, sentence: &str| {
            if tries.failures + 1 < MAX_FAILURES {
                Start::Again(reason(code, sentence))
            } else {
                Start::Returned(reason(code, sentence))
            }
        };
        match ended {
            // Boots count from their keeper on, so what is found is the end of the boot that armed: the boot loader could not start the new
            // system, or that ended before its keeper came.
            Ended::Request if boot == armed + 1 => {
                let sentence = "the new system did not come as far as its keeper";
                if tries.interruptions < MAX_INTERRUPTIONS {
                    Start::Again(reason("not-started", sentence))
                } else {
                    let why = format!("{sentence}: it is not tried any more");
                    Start::Returned(reason("not-started", &why))
                }
            }
            Ended::Overdue if boot == armed + 1 => {
                failed("watchdog-reset", "the watchdog reset the board before the new system had a keeper")
            }
            Ended::Power => interrupted("the power went while the new system was tried"),
            Ended::Request | Ended::Overdue => {
                interrupted("somebody restarted the board while the new system was tried")
            }
            Ended::Panic => failed("kernel-panic", "the kernel panicked while the new system was tried"),
            Ended::Watchdog => {
                failed("watchdog-reset", "the watchdog reset the board while the new system was tried")
            }
        }
    }

    /// The state after a start that ended a trial: what is tried again is staged, what is not is forgotten. `None` when none was ended.
    #[must_use]
    pub fn after(&self, start: &Start, boot: u64) -> Option<Self> {
        let Phase::Trial { slot, about, tries, .. } = &self.phase else { return None };
        let mut tries = *tries;
        let (outcome, reason) = match start {
            Start::Nothing | Start::Watch | Start::Unasked => return None,
            Start::Committed => return Some(self.committed(boot)),
            Start::Again(reason) => (Outcome::Interrupted, reason),
            Start::Returned(reason) | Start::Alone(reason) => (Outcome::Returned, reason),
        };
        match reason.code.as_str() {
            "kernel-panic" | "watchdog-reset" => tries.failures += 1,
            "trial-interrupted" | "interrupted-too-often" | "not-started" => tries.interruptions += 1,
            _ => {}
        }
        let phase = match outcome {
            Outcome::Interrupted => Phase::Staged { slot: *slot, about: about.clone(), tries },
            _ => Phase::Idle,
        };
        let next = Self { phase, ..self.clone() };
        Some(next.noting(outcome, about, *slot, reason.clone(), boot, tries))
    }

    /// The state when the system on trial was committed: its product's floor has risen.
    #[must_use]
    pub fn committed(&self, boot: u64) -> Self {
        let Phase::Trial { slot, about, tries, .. } = &self.phase else { return self.clone() };
        let mut next = Self { phase: Phase::Idle, ..self.clone() };
        if about.version >= self.floor(&about.product) {
            next.floors.insert(about.product.clone(), about.version);
            next.bundles.insert(about.product.clone(), about.bundle.clone());
        }
        let sentence = format!("system {slot} was ready for {} s and stays", about.hold_s);
        next.noting(Outcome::Committed, about, *slot, Reason { code: "ok".into(), sentence }, boot, *tries)
    }

    fn noting(
        mut self,
        outcome: Outcome,
        about: &About,
        slot: Slot,
        reason: Reason,
        boot: u64,
        tries: Tries,
    ) -> Self {
        let number = self.verdicts.last().map_or(1, |last| last.number + 1);
        let reason = reason.brief();
        self.verdicts.push(Verdict { number, outcome, about: about.clone(), slot, reason, boot, tries });
        let too_many = self.verdicts.len().saturating_sub(MAX_VERDICTS);
        self.verdicts.drain(..too_many);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(version: u64) -> About {
        About { bundle: "b".into(), product: "os".into(), version, label: "1".into(), hold_s: 30 }
    }

    fn trial(tries: Tries, gave_up: Option<Reason>) -> State {
        let phase = Phase::Trial { slot: Slot::B, about: about(7), tries, boot: 10, gave_up };
        State {
            phase,
            floors: BTreeMap::from([("os".into(), 6)]),
            bundles: BTreeMap::new(),
            verdicts: Vec::new(),
        }
    }

    fn now(runs: Slot, chosen: Slot) -> Now {
        Now { runs, on_trial: runs != chosen, chosen }
    }

    /// The old system is back.
    const BACK: Now = Now { runs: Slot::A, on_trial: false, chosen: Slot::A };

    #[test]
    fn nothing_is_done_when_nothing_is_on_trial() {
        let staged = Phase::Staged { slot: Slot::B, about: about(7), tries: Tries::default() };
        let writing = Phase::Writing { slot: Slot::B, about: about(7) };
        for phase in [Phase::Idle, writing, staged] {
            let state = State { phase, ..State::default() };
            for ended in [Ended::Power, Ended::Request, Ended::Panic, Ended::Watchdog] {
                assert_eq!(state.at_start(BACK, ended, 11), Start::Nothing);
            }
        }
    }

    #[test]
    fn the_system_on_trial_is_watched_and_one_that_was_chosen_is_committed() {
        let state = trial(Tries::default(), None);
        assert_eq!(state.at_start(now(Slot::B, Slot::A), Ended::Request, 11), Start::Watch);
        let start = state.at_start(now(Slot::B, Slot::B), Ended::Power, 12);
        assert_eq!(start, Start::Committed);
        let after = state.after(&start, 12).unwrap();
        assert_eq!((after.phase.clone(), after.floor("os")), (Phase::Idle, 7));
        assert_eq!(after.verdicts.last().unwrap().outcome, Outcome::Committed);
        assert_eq!(after.after(&Start::Committed, 13), None, "once");
    }

    #[test]
    fn a_system_that_gave_itself_up_and_is_started_all_the_same_runs_on_and_is_not_watched_again() {
        let why = Reason::new("not-ready", "the model x does not serve");
        let given_up = trial(Tries::default(), Some(why));
        // As a boot loader starts it that cannot load the old one.
        let fallen = Now { runs: Slot::B, on_trial: false, chosen: Slot::A };
        for ended in [Ended::Power, Ended::Request, Ended::Overdue, Ended::Panic, Ended::Watchdog] {
            let start = given_up.at_start(fallen, ended, 12);
            let Start::Alone(told) = &start else { panic!("{ended:?}: {start:?}") };
            assert_eq!(told.code, "old-not-started");
            assert!(told.sentence.ends_with("the model x does not serve (not-ready)"), "{}", told.sentence);
            let after = given_up.after(&start, 12).unwrap();
            let last = after.verdicts.last().unwrap();
            assert_eq!((&after.phase, last.outcome, &last.reason), (&Phase::Idle, Outcome::Returned, told));
            assert_eq!(after.floor("os"), 6, "it is not committed");
            assert_eq!(after.at_start(fallen, Ended::Request, 13), Start::Nothing, "and said once");
        }
        let untold = trial(Tries::default(), None);
        assert_eq!(untold.at_start(fallen, Ended::Power, 12), Start::Watch, "it may be as good as any");
    }

    /// No way from any state through any starts asks for more restarts than there are tries.
    #[test]
    fn whatever_starts_and_however_it_ended_a_trial_comes_to_an_end() {
        let ends = [Ended::Power, Ended::Request, Ended::Overdue, Ended::Panic, Ended::Watchdog];
        for gave_up in [None, Some(Reason::new("not-ready", "x"))] {
            for (runs, on_trial) in [(Slot::A, false), (Slot::B, false), (Slot::B, true)] {
                for (first, then) in ends.into_iter().flat_map(|a| ends.map(|b| (a, b))) {
                    let mut state = trial(Tries::default(), gave_up.clone());
                    let (mut boot, mut restarts) = (11, 0);
                    loop {
                        let ended = if restarts == 0 { first } else { then };
                        let start = state.at_start(Now { runs, on_trial, chosen: Slot::A }, ended, boot);
                        if start == Start::Watch {
                            if on_trial {
                                // The restart starts the old system: the others of these.
                                break;
                            }
                            // It does not become ready.
                            let Phase::Trial { gave_up, .. } = &mut state.phase else { panic!() };
                            *gave_up = Some(Reason::new("not-ready", "x"));
                        } else if let Some(next) = state.after(&start, boot) {
                            state = next;
                        }
                        let again = match state.phase.clone() {
                            // Armed again.
                            Phase::Staged { slot, about, tries } => {
                                state.phase = Phase::Trial { slot, about, tries, boot, gave_up: None };
                                true
                            }
                            _ => start == Start::Watch,
                        };
                        if !again {
                            break;
                        }
                        (boot, restarts) = (boot + 1, restarts + 1);
                        assert!(
                            restarts <= MAX_INTERRUPTIONS + MAX_FAILURES,
                            "{runs} {on_trial} {first:?} {then:?}: {state:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_reason_is_one_line_of_a_kibibyte_at_most_wherever_it_comes_from() {
        let long = Reason { code: "not-ready".into(), sentence: "ä\n".repeat(30_000) };
        let brief = Reason::new("not-ready", &long.sentence);
        assert!(brief.sentence.len() <= MAX_SENTENCE && brief.sentence.len() > MAX_SENTENCE - 4);
        assert!(!brief.sentence.contains('\n'));
        // A state that an older program kept whole.
        let start = trial(Tries::default(), Some(long.clone())).at_start(BACK, Ended::Request, 12);
        let after = trial(Tries::default(), Some(long)).after(&start, 12).unwrap();
        assert_eq!(after.verdicts.last().unwrap().reason, brief);
    }

    #[test]
    fn a_power_cut_is_forgiven_five_times() {
        let mut state = trial(Tries::default(), None);
        for n in 1..=MAX_INTERRUPTIONS {
            let start = state.at_start(BACK, Ended::Power, 11);
            assert!(matches!(start, Start::Again(_)), "{n}");
            let after = state.after(&start, 11).unwrap();
            let Phase::Staged { tries, .. } = after.phase else { panic!("{after:?}") };
            assert_eq!(tries.interruptions, n);
            state = State { verdicts: after.verdicts, ..trial(tries, None) };
        }
        let start = state.at_start(BACK, Ended::Power, 11);
        assert!(matches!(&start, Start::Returned(r) if r.code == "interrupted-too-often"));
        let after = state.after(&start, 11).unwrap();
        assert_eq!((after.phase.clone(), after.floor("os")), (Phase::Idle, 6), "the floor stays");
        let numbers: Vec<u64> = after.verdicts.iter().map(|v| v.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_panic_and_a_watchdog_are_held_against_a_system_twice() {
        for (ended, code) in [(Ended::Panic, "kernel-panic"), (Ended::Watchdog, "watchdog-reset")] {
            let first = trial(Tries::default(), None);
            let start = first.at_start(BACK, ended, 11);
            assert!(matches!(&start, Start::Again(r) if r.code == code));
            let Phase::Staged { tries, .. } = first.after(&start, 11).unwrap().phase else { panic!() };
            assert_eq!(tries, Tries { interruptions: 0, failures: 1 });
            let start = trial(tries, None).at_start(BACK, ended, 12);
            assert!(matches!(&start, Start::Returned(r) if r.code == code));
        }
    }

    #[test]
    fn what_the_new_system_says_of_itself_goes_before_how_it_ended() {
        let why = Reason { code: "golden-differs".into(), sentence: "x".into() };
        let state = trial(Tries::default(), Some(why.clone()));
        for ended in [Ended::Power, Ended::Request, Ended::Panic, Ended::Watchdog] {
            assert_eq!(state.at_start(BACK, ended, 12), Start::Returned(why.clone()));
        }
    }

    #[test]
    fn a_system_without_a_keeper_is_told_from_one_that_was_restarted_and_tried_again() {
        let state = trial(Tries::default(), None);
        let next = state.at_start(BACK, Ended::Request, 11);
        assert!(matches!(&next, Start::Again(r) if r.code == "not-started"), "the power may have gone early");
        let Phase::Staged { tries, .. } = state.after(&next, 11).unwrap().phase else { panic!() };
        assert_eq!(tries, Tries { interruptions: 1, failures: 0 });
        let often = trial(Tries { interruptions: MAX_INTERRUPTIONS, failures: 0 }, None);
        let last = often.at_start(BACK, Ended::Request, 11);
        assert!(matches!(last, Start::Returned(r) if r.code == "not-started"));
        let later = state.at_start(BACK, Ended::Request, 12);
        assert!(matches!(later, Start::Again(r) if r.code == "trial-interrupted"));
    }

    #[test]
    fn a_watchdog_before_the_new_systems_keeper_is_held_against_it_and_one_behind_a_restart_is_not() {
        let first = trial(Tries::default(), None);
        let start = first.at_start(BACK, Ended::Overdue, 11);
        assert!(matches!(&start, Start::Again(r) if r.code == "watchdog-reset"));
        let second = trial(Tries { interruptions: 0, failures: 1 }, None);
        let start = second.at_start(BACK, Ended::Overdue, 11);
        assert!(matches!(&start, Start::Returned(r) if r.code == "watchdog-reset"));
        let start = second.at_start(BACK, Ended::Overdue, 12);
        assert!(matches!(&start, Start::Again(r) if r.code == "trial-interrupted"));
    }

    #[test]
    fn a_floor_never_falls_and_the_newest_sixteen_verdicts_are_kept() {
        let mut state = trial(Tries::default(), None);
        state.floors.insert("os".into(), 8);
        state.bundles.insert("os".into(), "the eighth".into());
        let after = state.committed(11);
        assert_eq!((after.floor("os"), after.bundles["os"].as_str()), (8, "the eighth"));
        for _ in 0..20 {
            let next =
                state.after(&Start::Again(Reason { code: "c".into(), sentence: "s".into() }), 11).unwrap();
            state = State { phase: state.phase, ..next };
        }
        let numbers: Vec<u64> = state.verdicts.iter().map(|verdict| verdict.number).collect();
        assert_eq!(numbers, (5..=20).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let why = Reason { code: "c".into(), sentence: "s".into() };
        let start = Start::Again(why.clone());
        let again = trial(Tries::default(), None).after(&start, 11).unwrap();
        for state in [State::default(), trial(Tries::default(), Some(why)), again] {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state, "{text}");
        }
    }
}
