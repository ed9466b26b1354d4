//! What the keeper decides, without a clock, a process or a device: events and the time in, actions out.
//!
//! | state | the hardware is fed | event | next state |
//! |---|---|---|---|
//! | waiting (until a moment) | yes | the moment | starting |
//! | | | asked to restart it / to reboot / to end | starting at once / going down / ended |
//! | starting (60 s at most) | yes | `READY=1` | running |
//! | | | the daemon ended | waiting |
//! | running (10 s since the last `WATCHDOG=1` at most) | yes | `WATCHDOG=1` | running |
//! | | | `STOPPING=1` | draining, nobody asked |
//! | | | the daemon ended | waiting |
//! | starting, running | yes | asked to restart it, to reboot, to end | draining, asked (`SIGTERM`) |
//! | draining (20 s at most) | yes | the daemon ended | waiting, starting at once, going down or ended: what was asked for |
//! | | | its time is over, asked | draining (`SIGKILL`), once more as long |
//! | going down (30 s at most) | yes | told to end | ended |
//! | starting, running, draining, going down | yes | its time is over | **letting go**; without a watchdog: draining (`SIGKILL`) |
//! | draining, killed, without a watchdog | yes | its time is over | going down, or ended when that was asked for |
//! | any | | told to let go (a watchdog test) | **letting go** |
//! | letting go | **no** | any | letting go: never back |
//! | ended | no | any | ended |
//!
//! A daemon that lets its time pass is not killed: what hangs it may hang the rest too, and a killed one would destroy the evidence.
//! The hardware resets the board. Where there is no watchdog that could, the daemon is killed and started again, and the board is
//! restarted when not even that ends it: that is what is left. And a watchdog that does not do what it promised ([`Limits::overdue`] after letting go) is helped by a forced restart.
//!
//! A daemon that ended is started again after 0.5 s, twice as long after each further end, 60 s at most; one that was healthy, or ran
//! for [`STEADY`], begins anew. Waiting never starves the hardware: the keeper is well, and says so. One that ends at once in safe
//! mode too is tried every minute for as long as it takes: what ends it may pass (a medium, an address that is in use), and
//! a reset would mend nothing that a start does not. What the history is told of that is [`crate::loops::Telling`]'s.

use std::time::Duration;

/// The first pause before a daemon is started again.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A daemon that ran this long is started again after [`FIRST_PAUSE`].
pub const STEADY: Duration = Duration::from_secs(60);

/// How long each state may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the start to `READY=1`.
    pub start: Duration,
    /// From one `WATCHDOG=1` to the next.
    pub progress: Duration,
    /// From `STOPPING=1` or `SIGTERM` to the end.
    pub drain: Duration,
    /// From the request to init to the end of the keeper.
    pub going_down: Duration,
    /// From letting go to the reset; after that it is forced.
    pub overdue: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(60),
            progress: Duration::from_secs(10),
            drain: Duration::from_secs(20),
            going_down: Duration::from_secs(30),
            overdue: Duration::from_secs(60),
        }
    }
}

/// What follows when the daemon has ended as it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It is started anew.
    Restart,
    /// The board is restarted.
    Reboot,
    /// The keeper ends too.
    End,
}

/// Where things stand. Moments count from any one moment and never go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no daemon; it is started at this moment.
    Waiting {
        /// The moment.
        until: Duration,
    },
    /// It was started and has not said that it is ready.
    Starting {
        /// Since then.
        since: Duration,
    },
    /// It is ready.
    Running {
        /// When it last proved progress.
        last: Duration,
    },
    /// It ends.
    Draining {
        /// Since then.
        since: Duration,
        /// What somebody asked for; `None`: it said by itself that it ends.
        asked: Option<Then>,
        /// It was killed.
        killed: bool,
    },
    /// Init was asked to restart the board.
    GoingDown {
        /// Since then.
        since: Duration,
    },
    /// The hardware is fed no more.
    LetGo {
        /// Since then.
        since: Duration,
    },
    /// The keeper is done.
    Ended,
}

/// What happens to the daemon, or is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `READY=1`.
    Ready,
    /// `WATCHDOG=1`.
    Progress,
    /// `STOPPING=1`.
    Stopping,
    /// `X_INFERD_HEALTHY=1`.
    Healthy,
    /// It ended, or could not be started.
    Ended,
    /// Somebody asks for its end.
    Stop(Then),
    /// A test: the hardware shall act.
    LetGo,
}

/// Why the hardware is fed no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// It never said that it is ready.
    Start,
    /// It proves no progress.
    Progress,
    /// It said that it ends, and does not.
    Drain,
    /// The board was to restart, and does not.
    GoingDown,
    /// It was asked for.
    Test,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the daemon.
    Start,
    /// Ask it to end (`SIGTERM`).
    Terminate,
    /// End it (`SIGKILL`).
    Kill,
    /// It hangs and there is no watchdog: end it (`SIGKILL`) and say so.
    KillHung(Hang),
    /// Leave evidence; the hardware is fed no more.
    LetGo(Hang),
    /// Ask init to restart the board.
    Reboot,
    /// Restart the board without asking anybody.
    Force,
    /// End the keeper.
    Exit,
}

/// The decision.
#[derive(Clone, Debug)]
pub struct Judge {
    limits: Limits,
    /// Whether something resets the board when it is fed no more.
    hardware: bool,
    state: State,
    pause: Duration,
    started: Duration,
    forced: bool,
}

impl Judge {
    /// One that starts the daemon at the first [`Judge::tick`].
    #[must_use]
    pub fn new(limits: Limits, now: Duration) -> Self {
        let state = State::Waiting { until: now };
        Self { limits, hardware: false, state, pause: FIRST_PAUSE, started: now, forced: false }
    }

    /// Whether there is a watchdog: one may come later.
    pub fn set_hardware(&mut self, there: bool) {
        self.hardware = there;
    }

    /// Where things stand.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the hardware is to be fed.
    #[must_use]
    pub fn feeds(&self) -> bool {
        !matches!(self.state, State::LetGo { .. } | State::Ended)
    }

    /// When [`Judge::tick`] decides something by itself.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Starting { since } => Some(since + self.limits.start),
            State::Running { last } => Some(last + self.limits.progress),
            State::Draining { since, .. } => Some(since + self.limits.drain),
            State::GoingDown { since } => Some(since + self.limits.going_down),
            State::LetGo { since } => (!self.forced).then_some(since + self.limits.overdue),
            State::Ended => None,
        }
    }

    /// Takes an event.
    pub fn event(&mut self, now: Duration, event: Event) -> Option<Action> {
        use State::{Draining, Ended, GoingDown, LetGo, Running, Starting, Waiting};
        let (state, action) = match (self.state, event) {
            (Ended | LetGo { .. }, _) => return None,
            (_, Event::LetGo) => return Some(self.hang(now, Hang::Test)),
            (Starting { .. }, Event::Ready) => (Running { last: now }, None),
            (Running { .. }, Event::Progress) => (Running { last: now }, None),
            (Starting { .. } | Running { .. }, Event::Stopping) => {
                (Draining { since: now, asked: None, killed: false }, None)
            }
            (state, Event::Healthy) => {
                self.pause = FIRST_PAUSE;
                (state, None)
            }
            (Starting { .. } | Running { .. } | Draining { asked: None, .. }, Event::Ended) => {
                (self.again(now), None)
            }
            (Draining { asked: Some(then), .. }, Event::Ended) => return self.follow(now, then),
            (Waiting { .. }, Event::Stop(then)) => return self.follow(now, then),
            (Starting { .. } | Running { .. } | Draining { asked: None, .. }, Event::Stop(then)) => {
                (Draining { since: now, asked: Some(then), killed: false }, Some(Action::Terminate))
            }
            // The end of the keeper and a reboot outweigh what was asked for before.
            (Draining { since, asked: Some(before), killed }, Event::Stop(then)) => {
                let then = if before == Then::End || then == Then::Restart { before } else { then };
                (Draining { since, asked: Some(then), killed }, None)
            }
            (GoingDown { .. }, Event::Stop(Then::End)) => (Ended, Some(Action::Exit)),
            (state, _) => (state, None),
        };
        self.state = state;
        action
    }

    /// Lets the time pass; to be called at [`Judge::deadline`], and at any other moment.
    pub fn tick(&mut self, now: Duration) -> Option<Action> {
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        match self.state {
            State::Waiting { .. } => {
                self.state = State::Starting { since: now };
                self.started = now;
                Some(Action::Start)
            }
            State::Starting { .. } => Some(self.hang(now, Hang::Start)),
            State::Running { .. } => Some(self.hang(now, Hang::Progress)),
            State::Draining { asked: Some(then), killed: false, .. } => {
                self.state = State::Draining { since: now, asked: Some(then), killed: true };
                Some(Action::Kill)
            }
            State::Draining { .. } => Some(self.hang(now, Hang::Drain)),
            State::GoingDown { .. } => Some(self.hang(now, Hang::GoingDown)),
            State::LetGo { .. } => {
                self.forced = true;
                Some(Action::Force)
            }
            State::Ended => None,
        }
    }

    /// Nothing moves any more.
    fn hang(&mut self, now: Duration, why: Hang) -> Action {
        let daemon = matches!(why, Hang::Start | Hang::Progress | Hang::Drain);
        if let (false, State::Draining { asked, killed: true, .. }) = (self.hardware, self.state) {
            let (state, action) = match asked {
                Some(Then::End) => (State::Ended, Action::Exit),
                _ => (State::GoingDown { since: now }, Action::Reboot),
            };
            self.state = state;
            return action;
        }
        if !self.hardware && daemon {
            self.state = State::Draining { since: now, asked: None, killed: true };
            return Action::KillHung(why);
        }
        self.state = State::LetGo { since: now };
        Action::LetGo(why)
    }

    /// The pause after an end that nobody asked for.
    fn again(&mut self, now: Duration) -> State {
        if now.saturating_sub(self.started) >= STEADY {
            self.pause = FIRST_PAUSE;
        }
        let until = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        State::Waiting { until }
    }

    fn follow(&mut self, now: Duration, then: Then) -> Option<Action> {
        let (state, action) = match then {
            Then::Restart => {
                self.pause = FIRST_PAUSE;
                (State::Waiting { until: now }, None)
            }
            Then::Reboot => (State::GoingDown { since: now }, Some(Action::Reboot)),
            Then::End => (State::Ended, Some(Action::Exit)),
        };
        self.state = state;
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const LIMITS: Limits = Limits {
        start: Duration::from_secs(60),
        progress: Duration::from_secs(10),
        drain: Duration::from_secs(20),
        going_down: Duration::from_secs(30),
        overdue: Duration::from_secs(60),
    };

    fn judge() -> Judge {
        let mut judge = Judge::new(LIMITS, s(0));
        judge.set_hardware(true);
        judge
    }

    fn starting() -> Judge {
        let mut judge = judge();
        assert_eq!(judge.tick(s(0)), Some(Action::Start));
        judge
    }

    fn running() -> Judge {
        let mut judge = starting();
        assert_eq!(judge.event(s(1), Event::Ready), None);
        judge
    }

    #[test]
    fn a_daemon_that_never_gets_ready_is_let_go_after_its_time_and_not_before() {
        let mut judge = starting();
        assert_eq!(judge.event(s(30), Event::Progress), None, "progress without READY is none");
        assert_eq!(judge.tick(Duration::from_millis(59_999)), None);
        assert!(judge.feeds());
        assert_eq!(judge.tick(s(60)), Some(Action::LetGo(Hang::Start)));
        assert!(!judge.feeds());
    }

    #[test]
    fn progress_feeds_and_its_end_lets_go() {
        let mut judge = running();
        for second in (2..1000).step_by(9) {
            assert_eq!(judge.tick(s(second)), None, "at {second}");
            judge.event(s(second), Event::Progress);
        }
        let State::Running { last } = judge.state() else { panic!("{:?}", judge.state()) };
        assert_eq!(judge.deadline(), Some(last + s(10)));
        assert_eq!(judge.tick(last + s(10)), Some(Action::LetGo(Hang::Progress)));
    }

    #[test]
    fn letting_go_is_for_good_and_ends_in_force() {
        let every = [
            Event::Ready,
            Event::Progress,
            Event::Stopping,
            Event::Healthy,
            Event::Ended,
            Event::LetGo,
            Event::Stop(Then::Restart),
            Event::Stop(Then::Reboot),
            Event::Stop(Then::End),
        ];
        for event in every {
            let mut judge = running();
            judge.tick(s(11));
            assert_eq!(judge.event(s(12), event), None);
            assert!(!judge.feeds(), "{event:?} brought it back");
            assert_eq!(judge.tick(s(70)), None);
            assert_eq!(judge.tick(s(71)), Some(Action::Force));
            assert_eq!(judge.tick(s(1000)), None, "forced once");
            assert!(!judge.feeds());
        }
    }

    #[test]
    fn without_a_watchdog_a_hung_daemon_is_killed_and_started_again() {
        let mut judge = running();
        judge.set_hardware(false);
        assert_eq!(judge.tick(s(11)), Some(Action::KillHung(Hang::Progress)));
        assert!(judge.feeds(), "systemd may be listening");
        assert_eq!(judge.event(s(11), Event::Ended), None);
        assert_eq!(judge.tick(s(12)), Some(Action::Start));
        // One that not even SIGKILL ends hangs in the kernel.
        judge.event(s(12), Event::Ready);
        judge.tick(s(22));
        assert_eq!(judge.tick(s(42)), Some(Action::Reboot));
        assert_eq!(judge.tick(s(72)), Some(Action::LetGo(Hang::GoingDown)));
        assert_eq!(judge.tick(s(132)), Some(Action::Force));
        let mut told = running();
        told.set_hardware(false);
        told.event(s(2), Event::Stop(Then::End));
        assert_eq!(told.tick(s(22)), Some(Action::Kill));
        assert_eq!(
            told.tick(s(42)),
            Some(Action::Exit),
            "who asks for the end of the keeper asks for no restart"
        );
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_a_steady_or_healthy_run_begins_anew() {
        let mut judge = judge();
        let mut now = s(0);
        let mut pauses = Vec::new();
        // A day of ends at once: the hardware is fed all the time, and the board is never reset for it.
        while now < s(86_400) {
            assert_eq!(judge.tick(now), Some(Action::Start));
            judge.event(now, Event::Ended);
            let State::Waiting { until } = judge.state() else { panic!() };
            pauses.push((until - now).as_millis());
            assert!(judge.feeds(), "the hardware starves while a daemon is waited for");
            assert_eq!(judge.tick(until - Duration::from_millis(1)), None, "started too early");
            now = until;
        }
        assert_eq!(pauses[..8], [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000]);
        assert!(pauses[8..].iter().all(|&pause| pause == 60_000) && pauses.len() > 1440);
        for healthy in [true, false] {
            judge.tick(now);
            judge.event(now, Event::Ready);
            now += if healthy { s(5) } else { STEADY };
            if healthy {
                judge.event(now, Event::Healthy);
            }
            judge.event(now, Event::Ended);
            assert_eq!(judge.state(), State::Waiting { until: now + FIRST_PAUSE });
            now += FIRST_PAUSE;
        }
    }

    #[test]
    fn a_stop_on_purpose_is_waited_for_and_what_was_asked_for_follows() {
        let after = |then| {
            let mut judge = running();
            assert_eq!(judge.event(s(2), Event::Stop(then)), Some(Action::Terminate));
            assert_eq!(judge.event(s(2), Event::Stopping), None);
            assert_eq!(judge.tick(s(21)), None);
            assert!(judge.feeds());
            let action = judge.event(s(21), Event::Ended);
            (action, judge)
        };
        let (action, mut judge) = after(Then::Restart);
        assert_eq!((action, judge.tick(s(21))), (None, Some(Action::Start)));
        let (action, judge) = after(Then::Reboot);
        assert_eq!((action, judge.state()), (Some(Action::Reboot), State::GoingDown { since: s(21) }));
        let (action, judge) = after(Then::End);
        assert_eq!((action, judge.state()), (Some(Action::Exit), State::Ended));
        assert!(!judge.feeds());
    }

    #[test]
    fn one_that_does_not_end_when_asked_is_killed_and_then_let_go() {
        let mut judge = running();
        judge.event(s(2), Event::Stop(Then::Reboot));
        assert_eq!(judge.tick(s(22)), Some(Action::Kill));
        assert_eq!(judge.tick(s(41)), None);
        assert_eq!(judge.tick(s(42)), Some(Action::LetGo(Hang::Drain)));
    }

    #[test]
    fn one_that_says_by_itself_that_it_ends_has_twenty_seconds_and_is_started_again() {
        let mut judge = running();
        judge.event(s(2), Event::Stopping);
        assert_eq!(judge.event(s(3), Event::Progress), None);
        assert_eq!(judge.tick(s(22)), Some(Action::LetGo(Hang::Drain)), "progress does not prolong an end");
        let mut judge = running();
        judge.event(s(2), Event::Stopping);
        judge.event(s(3), Event::Ended);
        assert_eq!(judge.state(), State::Waiting { until: s(3) + FIRST_PAUSE });
    }

    #[test]
    fn a_board_that_does_not_go_down_is_let_go() {
        let mut judge = judge();
        assert_eq!(
            judge.event(s(0), Event::Stop(Then::Reboot)),
            Some(Action::Reboot),
            "there is no daemon yet"
        );
        assert!(judge.feeds());
        assert_eq!(judge.tick(s(29)), None);
        let mut ended = judge.clone();
        assert_eq!(ended.event(s(29), Event::Stop(Then::End)), Some(Action::Exit));
        assert_eq!(judge.tick(s(30)), Some(Action::LetGo(Hang::GoingDown)));
        judge.set_hardware(false);
        assert_eq!(judge.tick(s(90)), Some(Action::Force));
    }

    #[test]
    fn a_reboot_outweighs_a_restart_and_the_end_both() {
        for (first, second, wins) in [
            (Then::Restart, Then::Reboot, Then::Reboot),
            (Then::Reboot, Then::Restart, Then::Reboot),
            (Then::Reboot, Then::End, Then::End),
            (Then::End, Then::Reboot, Then::End),
            (Then::Restart, Then::End, Then::End),
        ] {
            let mut judge = running();
            judge.event(s(2), Event::Stop(first));
            assert_eq!(judge.event(s(3), Event::Stop(second)), None, "asked once is enough");
            let State::Draining { asked, since, .. } = judge.state() else { panic!() };
            assert_eq!((asked, since), (Some(wins), s(2)));
        }
    }

    /// Every sequence of four events, with every step of time between them: the hardware is never fed for longer than the
    /// state allows without the event that the state asks for.
    #[test]
    fn no_sequence_of_events_feeds_a_board_that_has_no_reason_to_be_fed() {
        let events = [
            None,
            Some(Event::Ready),
            Some(Event::Progress),
            Some(Event::Stopping),
            Some(Event::Healthy),
            Some(Event::Ended),
            Some(Event::Stop(Then::Restart)),
            Some(Event::Stop(Then::Reboot)),
            Some(Event::Stop(Then::End)),
            Some(Event::LetGo),
        ];
        let steps = [s(0), s(11), s(61)];
        let choices = events.len() * steps.len();
        let mut seen = 0_u64;
        for sequence in 0..choices.pow(4) {
            let mut judge = judge();
            let mut now = s(0);
            let mut rest = sequence;
            let mut gone = false;
            for _ in 0..4 {
                let (event, step) = (events[rest % events.len()], steps[rest / events.len() % steps.len()]);
                rest /= choices;
                judge.tick(now);
                now += step;
                judge.tick(now);
                if let Some(event) = event {
                    judge.event(now, event);
                }
                assert!(!(gone && judge.feeds()), "{sequence}: fed again after letting go");
                gone = matches!(judge.state(), State::LetGo { .. });
                // Whatever happens next, silence ends in a reset: within the longest time a state may last, twice where it kills.
                if let (true, Some(at)) = (judge.feeds(), judge.deadline()) {
                    assert!(at <= now + s(60), "{sequence}: {:?} may last until {at:?}", judge.state());
                }
                seen += 1;
            }
            // Silence from here on: a start or two, and then the hardware has it.
            for _ in 0..6 {
                let Some(at) = judge.deadline() else { break };
                now = now.max(at);
                judge.tick(now);
            }
            assert!(!judge.feeds(), "{sequence}: silence is fed: {:?}", judge.state());
        }
        assert_eq!(seen, 4 * 30_u64.pow(4));
    }
}
