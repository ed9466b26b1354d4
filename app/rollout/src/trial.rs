//! The state machine of a trial: one function, no clock, no disk, no process.
//!
//! What happened goes in as an [`Event`], what is to be done comes out as [`Action`]s, in this order. The shell
//! (`shell.rs`) does them and reports back. Rows that are not in the table change nothing.
//!
//! | state | event | next | actions |
//! |---|---|---|---|
//! | `Idle` | `Staged` | `Gates` | `Try`, `Load` |
//! | `Idle` | `Interrupted`, cause forgiven and at most 5 before | `Gates` | `Resume`, `Load` |
//! | `Idle` | `Interrupted`, else | `Idle` | `Return(why)` |
//! | `Gates` | `Loaded`, policy with a shadow and something to compare with | `Shadow` | `Advance(Shadow)`, `Mirror` |
//! | `Gates` | `Loaded`, else | `Flip` | `Advance(Probation)`, `Flip` |
//! | `Gates` | `Found(why)`, `Asked(why)` | `Idle` | `Drop`, `Return(why)` |
//! | `Shadow` | `Compared` | `Flip` | `Advance(Probation)`, `Flip` |
//! | `Shadow` | `Found(why)`, `Asked(why)` | `Idle` | `Drop`, `Return(why)` |
//! | `Flip` | `Flipped` | `Probation` | `Watch` |
//! | `Flip` | `Found(why)` | `Idle` | `Drop`, `Return(why)` |
//! | `Probation` | `Over`, with requests to go by | `Idle` | `Commit` |
//! | `Probation` | `Over`, without | `Recheck` | `Recheck` |
//! | `Probation` | `Found(why)`, `Asked(why)` | `Return` | `Return(why)`, `Restore(why)` |
//! | `Recheck` | `Rechecked` | `Idle` | `Commit` |
//! | `Recheck` | `Found(why)`, `Asked(why)` | `Return` | `Return(why)`, `Restore(why)` |
//! | `Return` | `Restored` | `Idle` | |
//!
//! The order within a row is the point: `Try`, `Advance`, `Resume`, `Return` and `Commit` are durable records, and stand
//! before what they announce. A power cut behind `Advance(Probation)` finds a trial, one behind `Return` finds none, and in
//! both cases the slot that was active before is the active one until `Commit`.

use crate::finding::Finding;

/// Power cuts a trial survives; the one after that ends it. A board on a bad supply must not try for ever.
pub const MAX_INTERRUPTIONS: u8 = 5;

/// What a trial is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is none.
    Idle,
    /// Loading, golden vectors, measured memory.
    Gates,
    /// Compared with the serving models on live requests.
    Shadow,
    /// The routes are being flipped.
    Flip,
    /// It serves and is watched.
    Probation,
    /// It served without enough requests to judge it: its golden vectors run once more.
    Recheck,
    /// What served before is coming back.
    Return,
}

/// What ended the run in which a trial was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The daemon was stopped on purpose, or the machine restarted on purpose.
    Stopped,
    /// Another boot, and nothing that says why: the power went.
    PowerCut,
    /// The same boot, and no mark of a clean stop: the daemon crashed.
    Crashed,
    /// The kernel left its last words.
    Panicked,
    /// The watchdog reset the machine.
    Watchdog,
}

impl Cause {
    /// Whether it says nothing about the models.
    #[must_use]
    pub fn is_forgiven(self) -> bool {
        matches!(self, Self::Stopped | Self::PowerCut)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A bundle is complete on the medium.
    Staged,
    /// The daemon started and found an open trial.
    Interrupted {
        /// What had ended the run.
        cause: Cause,
        /// How often this trial was interrupted before.
        before: u8,
    },
    /// Every model is loaded, reproduced its golden vectors, and kept to its memory.
    Loaded {
        /// The policy asks for a comparison, and there is a serving model to compare with.
        shadow: bool,
    },
    /// The comparison is over and good.
    Compared,
    /// The routes go to the new models.
    Flipped,
    /// The time or the number of requests is reached, and nothing bad was found.
    Over {
        /// There were enough requests to go by.
        judged: bool,
    },
    /// The golden vectors passed once more.
    Rechecked,
    /// Something bad: the reason.
    Found(Box<Finding>),
    /// The operator wants it back: the reason.
    Asked(Box<Finding>),
    /// What served before serves again, or nothing could be brought back.
    Restored,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Record that the slot is on trial.
    Try,
    /// Record that the trial goes on after an interruption.
    Resume,
    /// Record that the phase begins.
    Advance(Recorded),
    /// Load the models beside the serving ones.
    Load,
    /// Send them copies of live requests.
    Mirror,
    /// Flip the routes to them.
    Flip,
    /// Watch them.
    Watch,
    /// Run the golden vectors through the serving path.
    Recheck,
    /// Record that it stays; the floor rises.
    Commit,
    /// End the candidates' hosts.
    Drop,
    /// Record that it is over and the slot is bad. Leaves the verdict.
    Return(Box<Finding>),
    /// Bring back what served before.
    Restore(Box<Finding>),
}

/// The phases that are recorded on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recorded {
    /// The comparison.
    Shadow,
    /// The flip and what follows.
    Probation,
}

/// The transition. An event that means nothing in a state leaves it as it is.
#[must_use]
pub fn step(state: State, event: Event) -> (State, Vec<Action>) {
    use State::{Flip, Gates, Idle, Probation, Recheck, Return, Shadow};
    match (state, event) {
        (Idle, Event::Staged) => (Gates, vec![Action::Try, Action::Load]),
        (Idle, Event::Interrupted { cause, before }) => match held_against(cause, before) {
            None => (Gates, vec![Action::Resume, Action::Load]),
            Some(why) => (Idle, vec![Action::Return(Box::new(why))]),
        },
        (Gates, Event::Loaded { shadow: true }) => {
            (Shadow, vec![Action::Advance(Recorded::Shadow), Action::Mirror])
        }
        (Gates, Event::Loaded { shadow: false }) | (Shadow, Event::Compared) => {
            (Flip, vec![Action::Advance(Recorded::Probation), Action::Flip])
        }
        (Gates | Shadow, Event::Found(why) | Event::Asked(why)) | (Flip, Event::Found(why)) => {
            (Idle, vec![Action::Drop, Action::Return(why)])
        }
        (Flip, Event::Flipped) => (Probation, vec![Action::Watch]),
        (Probation, Event::Over { judged: true }) | (Recheck, Event::Rechecked) => {
            (Idle, vec![Action::Commit])
        }
        (Probation, Event::Over { judged: false }) => (Recheck, vec![Action::Recheck]),
        (Probation | Recheck, Event::Found(why) | Event::Asked(why)) => {
            (Return, vec![Action::Return(why.clone()), Action::Restore(why)])
        }
        (Return, Event::Restored) => (Idle, vec![]),
        (state, _) => (state, vec![]),
    }
}

/// Why an interrupted trial ends; `None`: it goes on.
fn held_against(cause: Cause, before: u8) -> Option<Finding> {
    let (code, sentence) = match cause {
        Cause::Crashed => ("daemon-crashed", "the daemon ended unexpectedly while the bundle was on trial"),
        Cause::Panicked => ("kernel-panic", "the kernel panicked while the bundle was on trial"),
        Cause::Watchdog => ("watchdog-reset", "the watchdog reset the machine while the bundle was on trial"),
        Cause::Stopped | Cause::PowerCut if before >= MAX_INTERRUPTIONS => {
            let sentence =
                "the trial was interrupted too often; look at the power supply, then install it again";
            let evidence =
                serde_json::json!({ "interruptions": u32::from(before) + 1, "limit": MAX_INTERRUPTIONS });
            return Some(Finding::new("interrupted-too-often", sentence, evidence));
        }
        Cause::Stopped | Cause::PowerCut => return None,
    };
    Some(Finding::new(code, sentence, serde_json::json!({ "interruptions": u32::from(before) + 1 })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Flip, Gates, Idle, Probation, Recheck, Return, Shadow};
    use std::collections::HashSet;

    const STATES: [State; 7] = [Idle, Gates, Shadow, Flip, Probation, Recheck, Return];
    const CAUSES: [Cause; 5] =
        [Cause::Stopped, Cause::PowerCut, Cause::Crashed, Cause::Panicked, Cause::Watchdog];

    fn why() -> Box<Finding> {
        Box::new(Finding::new("some-reason", "for some reason", serde_json::Value::Null))
    }

    fn events() -> Vec<Event> {
        let mut all = vec![
            Event::Staged,
            Event::Loaded { shadow: false },
            Event::Loaded { shadow: true },
            Event::Compared,
            Event::Flipped,
            Event::Over { judged: false },
            Event::Over { judged: true },
            Event::Rechecked,
            Event::Found(why()),
            Event::Asked(why()),
            Event::Restored,
        ];
        for cause in CAUSES {
            for before in [0, 1, MAX_INTERRUPTIONS - 1, MAX_INTERRUPTIONS, u8::MAX] {
                all.push(Event::Interrupted { cause, before });
            }
        }
        all
    }

    /// The table of the module's head, written down a second time.
    fn expected(state: State, event: &Event) -> Option<(State, Vec<Action>)> {
        let probation = || vec![Action::Advance(Recorded::Probation), Action::Flip];
        Some(match (state, event) {
            (Idle, Event::Staged) => (Gates, vec![Action::Try, Action::Load]),
            (Gates, Event::Loaded { shadow: true }) => {
                (Shadow, vec![Action::Advance(Recorded::Shadow), Action::Mirror])
            }
            (Gates, Event::Loaded { shadow: false }) => (Flip, probation()),
            (Gates | Shadow, Event::Found(w) | Event::Asked(w)) => {
                (Idle, vec![Action::Drop, Action::Return(w.clone())])
            }
            (Shadow, Event::Compared) => (Flip, probation()),
            (Flip, Event::Flipped) => (Probation, vec![Action::Watch]),
            (Flip, Event::Found(w)) => (Idle, vec![Action::Drop, Action::Return(w.clone())]),
            (Probation, Event::Over { judged: true }) => (Idle, vec![Action::Commit]),
            (Probation, Event::Over { judged: false }) => (Recheck, vec![Action::Recheck]),
            (Probation | Recheck, Event::Found(w) | Event::Asked(w)) => {
                (Return, vec![Action::Return(w.clone()), Action::Restore(w.clone())])
            }
            (Recheck, Event::Rechecked) => (Idle, vec![Action::Commit]),
            (Return, Event::Restored) => (Idle, vec![]),
            _ => return None,
        })
    }

    #[test]
    fn every_state_takes_every_event_as_the_table_says() {
        let (mut rows, mut nothing) = (0, 0);
        for state in STATES {
            for event in events() {
                if state == Idle && matches!(event, Event::Interrupted { .. }) {
                    continue;
                }
                match expected(state, &event) {
                    Some(row) => {
                        rows += 1;
                        assert_eq!(step(state, event.clone()), row, "{state:?} {event:?}");
                    }
                    None => {
                        nothing += 1;
                        assert_eq!(step(state, event.clone()), (state, vec![]), "{state:?} {event:?}");
                    }
                }
            }
        }
        assert_eq!((rows, nothing), (18, 7 * 11 - 18 + 6 * 25));
    }

    #[test]
    fn a_power_cut_is_forgiven_five_times_and_a_crash_never() {
        for before in 0..=u8::MAX {
            for cause in CAUSES {
                let (state, actions) = step(Idle, Event::Interrupted { cause, before });
                let code = match cause {
                    Cause::Crashed => Some("daemon-crashed"),
                    Cause::Panicked => Some("kernel-panic"),
                    Cause::Watchdog => Some("watchdog-reset"),
                    Cause::Stopped | Cause::PowerCut => (before >= 5).then_some("interrupted-too-often"),
                };
                match (code, &actions[..]) {
                    (None, [Action::Resume, Action::Load]) => assert_eq!(state, Gates),
                    (Some(code), [Action::Return(why)]) => {
                        assert_eq!((state, why.code.as_str()), (Idle, code));
                        assert!(!why.sentence.is_empty());
                    }
                    other => panic!("{cause:?} after {before}: {other:?}"),
                }
            }
        }
    }

    /// What was done so far in one walk through the machine.
    #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
    struct Past {
        open: bool,
        loaded: bool,
        recorded: bool,
        flipped: bool,
        returned: bool,
    }

    /// Does the actions as a shell would, and breaks where one comes that must not come now.
    fn carry_out(past: &mut Past, event: &Event, actions: &[Action]) {
        match event {
            Event::Loaded { .. } => past.loaded = true,
            Event::Flipped => past.flipped = true,
            _ => {}
        }
        for action in actions {
            match action {
                Action::Try => {
                    assert!(!past.open, "two trials at once");
                    *past = Past { open: true, ..Past::default() };
                }
                Action::Resume => *past = Past { open: true, ..Past::default() },
                Action::Load => assert!(past.open && !past.flipped),
                Action::Advance(Recorded::Probation) => past.recorded = true,
                Action::Flip => assert!(past.loaded && past.recorded, "flipped what no record names"),
                Action::Commit => {
                    assert!(past.open && past.flipped && !past.returned, "committed what never served");
                    past.open = false;
                }
                Action::Return(_) => {
                    past.open = false;
                    past.returned = true;
                }
                Action::Restore(_) => {
                    assert!(past.flipped && past.returned, "restored before it was recorded")
                }
                Action::Advance(Recorded::Shadow)
                | Action::Mirror
                | Action::Watch
                | Action::Recheck
                | Action::Drop => {}
            }
        }
    }

    #[test]
    fn nothing_is_committed_that_did_not_serve_and_nothing_restored_that_is_not_recorded() {
        // Every reachable (state, past) and every event that the shell can report there, to a fixed point.
        let mut seen = HashSet::new();
        let mut open = vec![(Idle, Past::default())];
        while let Some((state, past)) = open.pop() {
            if !seen.insert((state, past)) {
                continue;
            }
            for event in events() {
                let mut past = past;
                // What a shell cannot report: a start in the middle of a run, results of what was not asked for.
                let possible = match &event {
                    Event::Interrupted { .. } => state == Idle && !past.open,
                    Event::Loaded { .. } => state == Gates,
                    Event::Flipped => state == Flip,
                    _ => true,
                };
                if !possible {
                    continue;
                }
                if matches!(event, Event::Interrupted { .. }) {
                    past = Past { open: true, ..Past::default() };
                }
                let (next, actions) = step(state, event.clone());
                carry_out(&mut past, &event, &actions);
                let running = matches!(next, Gates | Shadow | Flip | Probation | Recheck);
                assert_eq!(past.open, running, "{state:?} {event:?}: the record and the machine disagree");
                open.push((next, past));
            }
        }
        assert!(STATES.iter().all(|s| seen.iter().any(|(reached, _)| reached == s)));
    }

    #[test]
    fn every_open_trial_can_be_taken_back_by_what_is_found() {
        for state in [Gates, Shadow, Flip, Probation, Recheck] {
            let (next, actions) = step(state, Event::Found(why()));
            assert!(matches!(next, Idle | Return), "{state:?}");
            assert!(actions.contains(&Action::Return(why())), "{state:?}");
        }
    }
}
