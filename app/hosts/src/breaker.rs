//! The circuit breaker: when an engine keeps failing, requests are refused at once instead of failing one by one.
//!
//! One breaker per rung (an engine and what it runs) of a model as it was handed in (see [`Edition`](crate::edition::Edition)); nothing is shared between two
//! of them. What it hears is typed:
//!
//! | heard | counts |
//! |---|---|
//! | an answer | success |
//! | a panic that was contained, an engine that refused a valid request | failure |
//! | the host ended, for whatever cause (a deadline of the model that passed ends its host too) | **one** failure, however many requests were in it |
//! | it ended over its memory cap | that, and towards the rule for memory |
//! | queue full, deadline that cannot be met or has passed, a client that left, a value the element type cannot hold, quarantine | nothing |
//!
//! | state | heard | next |
//! |---|---|---|
//! | closed | success | closed; both rows of failures begin anew |
//! | closed | failure, the 15th in a row | open |
//! | closed | failure, with at least 20 outcomes in the last 10 s and half of them failures | open |
//! | closed | end over the memory cap, the 3rd without a success between | open |
//! | open | a request, the pause not over | refused, told when to come back |
//! | open | a request, the pause over | half-open, the request is the first probe |
//! | half-open | a request, fewer than 10 probes under way or done | it is a probe |
//! | half-open | another request | refused |
//! | half-open | a probe without an outcome | its place is free again |
//! | half-open | the 10th success | closed; the next pause is the first one again |
//! | half-open | failure | open, for twice the pause before, 300 s at most |
//! | any | an outcome of a request that was let in before the state changed | nothing |
//!
//! The numbers are [`BreakerRules`]. Failures are never added up over a lifetime: outside of the last ten seconds only those
//! in a row count.

use crate::events::{Events, HostEvent};
use crate::limits;
use crate::stats::{End, Stats};
use inferd_model::Rung;
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens and closes.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerRules {
    /// Failures in a row that open it.
    pub row: u32,
    /// Outcomes there must be in the last ten seconds before their share of failures counts.
    pub outcomes: u32,
    /// The share of failures among them that opens it, in percent.
    pub percent: u32,
    /// Ends over the memory cap in a row that open it.
    pub memory_row: u32,
    /// Probes that must succeed before it closes; no more are let in.
    pub probes: u32,
    /// How long it is open the first time.
    pub pause: Duration,
    /// How long it is open at most.
    pub pause_max: Duration,
}

impl Default for BreakerRules {
    fn default() -> Self {
        Self {
            row: limits::BREAKER_ROW,
            outcomes: limits::BREAKER_OUTCOMES,
            percent: limits::BREAKER_PERCENT,
            memory_row: limits::BREAKER_MEMORY_ROW,
            probes: limits::BREAKER_PROBES,
            pause: limits::BREAKER_PAUSE,
            pause_max: limits::BREAKER_PAUSE_MAX,
        }
    }
}

impl BreakerRules {
    /// Rules that never open.
    #[must_use]
    pub fn never() -> Self {
        Self { row: u32::MAX, outcomes: u32::MAX, memory_row: u32::MAX, ..Self::default() }
    }
}

/// What a breaker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// All requests go through.
    Closed,
    /// Some requests go through, to see whether the engine is well again.
    HalfOpen,
    /// None does.
    Open,
}

impl BreakerState {
    /// Its name in `/status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// A breaker as it is seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BreakerView {
    /// The rung it guards: an engine and what it runs.
    pub engine: Rung,
    /// What it is doing. Open turns to half-open when the pause is over, whether a request comes or not.
    pub state: BreakerState,
    /// Failures in a row.
    pub failures: u32,
    /// Times it opened since the model was first loaded.
    pub opened_total: u64,
    /// Until it lets probes through, while it is open.
    pub retry_after: Option<Duration>,
    /// Why it opened, while it is not closed.
    pub reason: Option<String>,
}

// ------------------------------------------------------------------------------------------------------ the machine

/// Why a failure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A contained panic.
    Panic,
    /// The engine refused a valid request.
    Engine,
    /// The host ended.
    End(End),
}

/// What opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Row {
        failures: u32,
        last: Failure,
    },
    Share {
        failures: u32,
        of: u32,
    },
    Memory {
        ends: u32,
    },
    Probe {
        last: Failure,
    },
    /// Somebody else knows that it does not work.
    Told(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Panic => f.write_str("a panic"),
            Self::Engine => f.write_str("an error of the engine"),
            Self::End(how) => write!(f, "an engine host that ended ({})", how.name()),
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Row { failures, last } => write!(f, "{failures} failures in a row, the last was {last}"),
            Self::Share { failures, of } => write!(f, "{failures} of {of} requests in 10 s failed"),
            Self::Memory { ends } => write!(f, "{ends} engine hosts in a row were over the memory cap"),
            Self::Probe { last } => write!(f, "it failed again when it was tried: {last}"),
            Self::Told(why) => f.write_str(why),
        }
    }
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Opened { why: Why, pause: Duration },
    HalfOpened,
    Closed,
}

/// A request that was let in, by the number of the state it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass(u64);

/// Successes and failures of one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    successes: u32,
    failures: u32,
}

const SECONDS: usize = limits::BREAKER_WINDOW_S;

#[derive(Debug)]
enum State {
    Closed { row: u32, memory_row: u32, window: [Second; SECONDS] },
    Open { until: Instant },
    HalfOpen { under_way: u32, successes: u32 },
}

impl State {
    fn closed() -> Self {
        Self::Closed { row: 0, memory_row: 0, window: [Second::default(); SECONDS] }
    }
}

/// The machine alone: no lock, no clock but what it is given.
#[derive(Debug)]
pub struct Machine {
    rules: BreakerRules,
    state: State,
    /// Counted up with every change of state.
    round: u64,
    /// Times it opened.
    openings: u64,
    /// How long it was open last.
    pause: Duration,
    why: Option<Why>,
    epoch: Instant,
}

impl Machine {
    pub fn new(rules: BreakerRules, now: Instant) -> Self {
        Self {
            rules,
            state: State::closed(),
            round: 0,
            openings: 0,
            pause: Duration::ZERO,
            why: None,
            epoch: now,
        }
    }

    /// A request wants to be let in.
    ///
    /// # Errors
    /// When to come back.
    pub fn admit(&mut self, now: Instant) -> (Result<Pass, Duration>, Option<Change>) {
        let mut change = None;
        if let State::Open { until } = self.state {
            if now < until {
                return (Err(until - now), None);
            }
            self.enter(State::HalfOpen { under_way: 0, successes: 0 });
            change = Some(Change::HalfOpened);
        }
        if let State::HalfOpen { under_way, successes } = &mut self.state {
            if *under_way + *successes >= self.rules.probes {
                // As soon as one of them is over.
                return (Err(Duration::from_secs(1)), change);
            }
            *under_way += 1;
        }
        (Ok(Pass(self.round)), change)
    }

    /// An answer came.
    pub fn succeeded(&mut self, pass: Pass, now: Instant) -> Option<Change> {
        if pass.0 != self.round {
            return None;
        }
        match &mut self.state {
            State::Closed { row, memory_row, window } => {
                (*row, *memory_row) = (0, 0);
                second(window, now, self.epoch).successes += 1;
                None
            }
            State::Open { .. } => None,
            State::HalfOpen { under_way, successes } => {
                *under_way = under_way.saturating_sub(1);
                *successes += 1;
                if *successes < self.rules.probes {
                    return None;
                }
                self.enter(State::closed());
                (self.pause, self.why) = (Duration::ZERO, None);
                Some(Change::Closed)
            }
        }
    }

    /// A request failed.
    pub fn failed(&mut self, pass: Pass, how: Failure, now: Instant) -> Option<Change> {
        if pass.0 == self.round { self.failure(how, now) } else { None }
    }

    /// It was let in and has no outcome that says anything about the engine.
    pub fn came_to_nothing(&mut self, pass: Pass) {
        if let (true, State::HalfOpen { under_way, .. }) = (pass.0 == self.round, &mut self.state) {
            *under_way = under_way.saturating_sub(1);
        }
    }

    /// The host ended.
    pub fn ended(&mut self, how: End, now: Instant) -> Option<Change> {
        self.failure(Failure::End(how), now)
    }

    /// It is known not to work: open, whatever the state.
    pub fn trip(&mut self, why: String, now: Instant) -> Change {
        self.open(Why::Told(why), now)
    }

    /// Something was done about it: it may be tried before its pause is over.
    pub fn hurry(&mut self, now: Instant) {
        if let State::Open { until } = &mut self.state {
            *until = now;
        }
    }

    fn failure(&mut self, how: Failure, now: Instant) -> Option<Change> {
        let rules = &self.rules;
        let why = match &mut self.state {
            State::Open { .. } => return None,
            State::HalfOpen { .. } => Some(Why::Probe { last: how }),
            State::Closed { row, memory_row, window } => {
                *row = row.saturating_add(1);
                if how == Failure::End(End::Oom) {
                    *memory_row = memory_row.saturating_add(1);
                }
                second(window, now, self.epoch).failures += 1;
                let (successes, failures) = sum(window, now, self.epoch);
                let of = successes.saturating_add(failures);
                if *memory_row >= rules.memory_row {
                    Some(Why::Memory { ends: *memory_row })
                } else if *row >= rules.row {
                    Some(Why::Row { failures: *row, last: how })
                } else if of >= rules.outcomes
                    && u64::from(failures) * 100 >= u64::from(rules.percent) * u64::from(of)
                {
                    Some(Why::Share { failures, of })
                } else {
                    None
                }
            }
        };
        Some(self.open(why?, now))
    }

    fn open(&mut self, why: Why, now: Instant) -> Change {
        self.pause = match self.pause {
            Duration::ZERO => self.rules.pause,
            before => before.saturating_mul(2),
        }
        .min(self.rules.pause_max);
        self.why = Some(why.clone());
        self.openings += 1;
        self.enter(State::Open { until: now + self.pause });
        Change::Opened { why, pause: self.pause }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.round += 1;
    }

    fn view(&self, now: Instant) -> (BreakerState, u32, Option<Duration>) {
        match &self.state {
            State::Closed { row, .. } => (BreakerState::Closed, *row, None),
            State::Open { until } if now < *until => (BreakerState::Open, 0, Some(*until - now)),
            State::Open { .. } | State::HalfOpen { .. } => (BreakerState::HalfOpen, 0, None),
        }
    }
}

/// The place of this second in the window, emptied when it held an older one.
fn second(window: &mut [Second; SECONDS], now: Instant, epoch: Instant) -> &mut Second {
    let number = now.saturating_duration_since(epoch).as_secs();
    let place = &mut window[usize::try_from(number % SECONDS as u64).unwrap_or(0)];
    if place.number != number {
        *place = Second { number, ..Second::default() };
    }
    place
}

fn sum(window: &[Second; SECONDS], now: Instant, epoch: Instant) -> (u32, u32) {
    let number = now.saturating_duration_since(epoch).as_secs();
    let recent = window.iter().filter(|s| number.saturating_sub(s.number) < SECONDS as u64);
    recent.fold((0, 0), |(s, f), w| (s.saturating_add(w.successes), f.saturating_add(w.failures)))
}

// ------------------------------------------------------------------------------------------------------ the breaker

/// The breaker of one rung of one model: the machine behind a lock, and who is told of its changes.
#[derive(Debug)]
pub struct Breaker {
    pub rung: Rung,
    model: String,
    events: Events,
    machine: Mutex<Machine>,
}

impl Breaker {
    pub fn new(model: String, rung: Rung, rules: BreakerRules, events: Events) -> Self {
        Self { rung, model, events, machine: Mutex::new(Machine::new(rules, Instant::now())) }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        // Every critical section is one transition, which does not panic.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request in, or says when to come back.
    ///
    /// # Errors
    /// The time until it may be let in.
    pub fn admit(self: &Arc<Self>) -> Result<Admitted, Duration> {
        let (pass, change) = self.machine().admit(Instant::now());
        self.tell(change, None);
        let pass = pass?;
        Ok(Admitted { breaker: self.clone(), pass: Some(pass) })
    }

    /// The host of this rung ended unasked.
    pub fn ended(&self, how: End, stats: &Stats) {
        let change = self.machine().ended(how, Instant::now());
        self.tell(change, Some(stats));
    }

    /// The engine is known not to work now.
    pub fn trip(&self, why: String, stats: &Stats) {
        let change = self.machine().trip(why, Instant::now());
        self.tell(Some(change), Some(stats));
    }

    /// Something was done about it: it may be tried before its pause is over.
    pub fn hurry(&self) {
        self.machine().hurry(Instant::now());
    }

    /// What it is doing.
    pub fn state(&self) -> BreakerState {
        self.machine().view(Instant::now()).0
    }

    /// Whether no request gets through now.
    pub fn is_open(&self) -> bool {
        self.machine().view(Instant::now()).0 == BreakerState::Open
    }

    /// Times it opened.
    pub fn openings(&self) -> u64 {
        self.machine().openings
    }

    /// Whether all do.
    pub fn is_closed(&self) -> bool {
        self.machine().view(Instant::now()).0 == BreakerState::Closed
    }

    /// Until it lets probes through, while it is open.
    pub fn retry_after(&self) -> Option<Duration> {
        self.machine().view(Instant::now()).2
    }

    /// Why it is not closed.
    pub fn why(&self) -> Option<String> {
        self.machine().why.as_ref().map(ToString::to_string)
    }

    pub fn view(&self, stats: &Stats) -> BreakerView {
        let machine = self.machine();
        let (state, failures, retry_after) = machine.view(Instant::now());
        let reason = machine.why.as_ref().map(ToString::to_string);
        let opened_total = stats.opened(self.rung);
        BreakerView { engine: self.rung, state, failures, opened_total, retry_after, reason }
    }

    fn tell(&self, change: Option<Change>, stats: Option<&Stats>) {
        let Some(change) = change else { return };
        let (model, engine) = (self.model.clone(), self.rung);
        self.events.tell(match change {
            Change::Opened { why, pause } => {
                if let Some(stats) = stats {
                    stats.breaker_opened(engine);
                }
                let reason = why.to_string();
                tracing::warn!(model, %engine, reason, pause_s = pause.as_secs_f64(), "circuit breaker opened");
                HostEvent::BreakerOpened { model, engine, reason, retry_after: pause }
            }
            Change::HalfOpened => HostEvent::BreakerHalfOpen { model, engine },
            Change::Closed => {
                tracing::info!(model, %engine, "circuit breaker closed");
                HostEvent::BreakerClosed { model, engine }
            }
        });
    }
}

/// A request that was let in. Dropped without an outcome, it has come to nothing.
pub struct Admitted {
    breaker: Arc<Breaker>,
    pass: Option<Pass>,
}

impl Admitted {
    /// An answer came.
    pub fn succeeded(mut self) {
        if let Some(pass) = self.pass.take() {
            let change = self.breaker.machine().succeeded(pass, Instant::now());
            self.breaker.tell(change, None);
        }
    }

    /// It failed in a way that says something about the engine.
    pub fn failed(mut self, how: Failure, stats: &Stats) {
        if let Some(pass) = self.pass.take() {
            let change = self.breaker.machine().failed(pass, how, Instant::now());
            self.breaker.tell(change, Some(stats));
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.breaker.machine().came_to_nothing(pass);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    struct Bench {
        machine: Machine,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self { machine: Machine::new(BreakerRules::default(), now), now }
        }

        fn pass(&mut self) -> Pass {
            self.machine.admit(self.now).0.expect("let in")
        }

        fn success(&mut self) -> Option<Change> {
            let pass = self.pass();
            self.machine.succeeded(pass, self.now)
        }

        fn failure(&mut self) -> Option<Change> {
            let pass = self.pass();
            self.machine.failed(pass, Failure::Panic, self.now)
        }

        fn state(&self) -> BreakerState {
            self.machine.view(self.now).0
        }

        fn opened(&mut self) -> Duration {
            for _ in 0..100 {
                if let Some(Change::Opened { pause, .. }) = self.failure() {
                    return pause;
                }
            }
            panic!("a hundred failures did not open it");
        }
    }

    /// A small deterministic generator: every run is the same.
    fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        }
    }

    #[test]
    fn the_fifteenth_failure_in_a_row_opens_it_and_no_earlier_one() {
        let mut b = Bench::new();
        for _ in 0..14 {
            assert_eq!(b.failure(), None);
        }
        let Some(Change::Opened { why, pause }) = b.failure() else { panic!("still closed") };
        assert_eq!((why, pause), (Why::Row { failures: 15, last: Failure::Panic }, 30 * S));
        assert_eq!(b.machine.admit(b.now + 29 * S).0, Err(S));
    }

    #[test]
    fn a_success_begins_the_row_anew_so_that_no_lifetime_total_opens_it() {
        let mut b = Bench::new();
        for _ in 0..10_000 {
            for _ in 0..14 {
                assert_eq!(b.failure(), None);
                b.now += 11 * S; // no share of the last ten seconds either
            }
            b.success();
        }
        assert_eq!(b.state(), BreakerState::Closed);
    }

    #[test]
    fn half_of_twenty_in_ten_seconds_opens_it_and_less_does_not() {
        let mut b = Bench::new();
        for _ in 0..9 {
            assert_eq!((b.failure(), b.success()), (None, None));
        }
        assert_eq!(b.success(), None);
        let Some(Change::Opened { why, .. }) = b.failure() else { panic!("10 of 20") };
        assert_eq!(why, Why::Share { failures: 10, of: 20 });

        let mut b = Bench::new();
        for i in 0..1000 {
            assert_eq!(b.success(), None);
            assert_eq!(b.success(), None);
            assert_eq!(b.failure(), None, "round {i}: a third");
        }

        let mut b = Bench::new();
        for i in 0..1000 {
            assert_eq!((b.failure(), b.success()), (None, None), "round {i}: half, but few in ten seconds");
            b.now += 2 * S;
        }
    }

    #[test]
    fn three_ends_over_the_memory_cap_in_a_row_open_it() {
        let mut b = Bench::new();
        for _ in 0..100 {
            assert_eq!(b.machine.ended(End::Oom, b.now), None);
            assert_eq!(b.machine.ended(End::Oom, b.now), None);
            b.now += 11 * S;
            b.success();
        }
        assert_eq!(b.machine.ended(End::Oom, b.now), None);
        assert_eq!(b.machine.ended(End::Crash, b.now), None, "another end between is no success");
        assert_eq!(b.machine.ended(End::Oom, b.now), None);
        let change = b.machine.ended(End::Oom, b.now);
        assert!(matches!(change, Some(Change::Opened { why: Why::Memory { ends: 3 }, .. })), "{change:?}");
    }

    #[test]
    fn half_open_lets_ten_probes_in_and_closes_when_all_have_succeeded() {
        let mut b = Bench::new();
        let pause = b.opened();
        b.now += pause;
        assert_eq!(b.state(), BreakerState::HalfOpen);
        let (first, change) = b.machine.admit(b.now);
        assert_eq!(change, Some(Change::HalfOpened));
        let mut passes = vec![first.unwrap()];
        passes.extend((1..10).map(|_| b.pass()));
        assert!(b.machine.admit(b.now).0.is_err(), "an eleventh");
        b.machine.came_to_nothing(passes.pop().unwrap());
        passes.push(b.pass());
        for pass in passes.drain(..9) {
            assert_eq!(b.machine.succeeded(pass, b.now), None);
            assert!(b.machine.admit(b.now).0.is_err(), "done ones count as well");
        }
        assert_eq!(b.machine.succeeded(passes[0], b.now), Some(Change::Closed));
        assert_eq!(b.opened(), 30 * S, "the first pause again");
    }

    #[test]
    fn a_failed_probe_opens_it_for_twice_as_long_up_to_five_minutes() {
        let mut b = Bench::new();
        let mut pause = b.opened();
        for want in [60, 120, 240, 300, 300] {
            b.now += pause;
            let pass = b.pass();
            // Nine that went well do not excuse the tenth.
            let others: Vec<Pass> = (0..9).map(|_| b.pass()).collect();
            for other in others {
                assert_eq!(b.machine.succeeded(other, b.now), None);
            }
            let change = b.machine.failed(pass, Failure::Engine, b.now);
            let Some(Change::Opened { pause: p, .. }) = change else { panic!("{change:?}") };
            assert_eq!(p, want * S);
            pause = p;
        }
        b.now += pause;
        b.pass();
        assert!(matches!(b.machine.ended(End::Oom, b.now), Some(Change::Opened { .. })), "an end is as bad");
    }

    #[test]
    fn outcomes_of_an_earlier_state_count_for_nothing() {
        let mut b = Bench::new();
        let early: Vec<Pass> = (0..100).map(|_| b.pass()).collect();
        let pause = b.opened();
        assert_eq!(b.machine.failed(early[0], Failure::Panic, b.now), None);
        b.now += pause;
        let probe = b.pass();
        for &pass in &early {
            assert_eq!(b.machine.succeeded(pass, b.now), None);
            assert_eq!(b.machine.failed(pass, Failure::Panic, b.now), None);
            b.machine.came_to_nothing(pass);
        }
        assert_eq!(b.state(), BreakerState::HalfOpen);
        assert_eq!((0..20).filter(|_| b.machine.admit(b.now).0.is_ok()).count(), 9, "beside {probe:?}");
    }

    #[test]
    fn whatever_happens_the_promises_hold() {
        for seed in 0..200 {
            let mut random = numbers(seed);
            let mut b = Bench::new();
            let mut held: Vec<Pass> = vec![];
            let (mut row, mut probes) = (0_u32, 0_i64);
            let mut last_pause = Duration::ZERO;
            for _ in 0..2000 {
                let before = b.state();
                let closed = before == BreakerState::Closed;
                match random(8) {
                    0..3 => {
                        let (pass, change) = b.machine.admit(b.now);
                        if change == Some(Change::HalfOpened) {
                            (probes, held) = (0, vec![]);
                        }
                        match pass {
                            Ok(pass) => {
                                held.push(pass);
                                probes += 1;
                            }
                            Err(after) => {
                                assert!(!closed && after <= last_pause.max(S), "{after:?}");
                            }
                        }
                        if b.state() == BreakerState::HalfOpen {
                            assert!(probes <= 10);
                        }
                    }
                    what @ (3..6) if !held.is_empty() => {
                        let n = u64::try_from(held.len()).unwrap();
                        let pass = held.swap_remove(usize::try_from(random(n)).unwrap());
                        let change = match what {
                            3 => b.machine.succeeded(pass, b.now),
                            4 => b.machine.failed(pass, Failure::Engine, b.now),
                            _ => {
                                b.machine.came_to_nothing(pass);
                                probes -= 1;
                                None
                            }
                        };
                        row = match what {
                            3 => 0,
                            4 => row + 1,
                            _ => row,
                        };
                        match change {
                            Some(Change::Opened { pause, why }) => {
                                assert!(pause <= 300 * S && pause >= 30 * S);
                                if let Why::Row { failures, .. } = why {
                                    assert_eq!(failures, 15);
                                }
                                if before == BreakerState::HalfOpen {
                                    assert_eq!(pause, (2 * last_pause).min(300 * S));
                                }
                                (last_pause, row, held) = (pause, 0, vec![]);
                            }
                            Some(Change::Closed) => {
                                assert_eq!(what, 3);
                                assert_eq!(before, BreakerState::HalfOpen);
                                (last_pause, row, held) = (Duration::ZERO, 0, vec![]);
                            }
                            _ => assert!(!closed || row < 15, "15 in a row must open it"),
                        }
                    }
                    _ => b.now += Duration::from_millis(random(4000)),
                }
            }
        }
    }
}
