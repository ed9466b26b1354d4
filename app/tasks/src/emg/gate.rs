//! What may be acted on of what was recognised: the gate between a classifier and something that moves.
//!
//! A classifier always says something, also of noise, of a loose electrode and of an arm that is put down. [`Gate`] takes every
//! window's answer and says which gesture is the *command*:
//!
//! | state | command | when |
//! |---|---|---|
//! | `following` | the gesture that windows agree on | `agree` of the last `of` windows named it with at least `confidence`; it stays with a window of it at `keep` |
//! | `holding` | the gesture from before | no such window came, but one did less than `hold` ago |
//! | `released` | the safe class, or none where the model has none | before the first agreement; `hold` after the last good window; a signal below `rest_rms` for `rest` |
//!
//! A window is refused when its confidence is no number from 0 to 1, its gesture none of the model's, or its energy no number. From
//! `released`, and after an interruption ([`Gate::interrupt`]), nothing is followed before windows agree anew. [`Gate::view`] is a
//! function of the time it is asked for, so that a command ends also when nothing happens any more.
//!
//! Pure: no clock. Times are durations since any one moment of a monotonic clock; one that goes back is taken for the latest there was.
//! It is no certified safety function: it keeps a robot from following what nobody meant, it does not protect anybody from the robot.

use std::collections::VecDeque;
use std::time::Duration;

/// The most windows that are asked to agree.
pub const MOST_WINDOWS: usize = 64;

/// When a gesture is a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// A window below this votes for nothing, 0 to 1.
    pub confidence: f32,
    /// Enough to stay with the gesture that is the command already, at most `confidence`.
    pub keep: f32,
    /// So many windows ...
    pub agree: usize,
    /// ... of the last so many name the gesture.
    pub of: usize,
    /// After the last good window the command is kept for this long.
    pub hold: Duration,
    /// The loudest channel's RMS below which a muscle rests, in the source's unit; 0 switches this off, for there is no number
    /// that is right for every sensor.
    pub rest_rms: f32,
    /// A signal below it for this long releases.
    pub rest: Duration,
    /// The label of the safe class; `None`: the one called "rest".
    pub safe: Option<String>,
}

impl Default for Settings {
    /// The confidence is that of the service's robot clients. Four of five overlapping windows are 160 ms at a hop of 40 ms, and two
    /// gestures in turn never get there.
    fn default() -> Self {
        Self {
            confidence: 0.7,
            keep: 0.5,
            agree: 4,
            of: 5,
            hold: Duration::from_millis(500),
            rest_rms: 0.0,
            rest: Duration::from_millis(300),
            safe: None,
        }
    }
}

/// Why settings cannot be; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// A threshold.
    #[error("confidence: above 0 and at most 1, and keep above 0 and at most confidence")]
    Confidence,
    /// Agreement of a minority is none.
    #[error("agree: more than half of `of`, which is 1 to {MOST_WINDOWS}")]
    Agree,
    /// Times.
    #[error("hold_ms and rest_ms: 20 to 10000")]
    Time,
    /// The energy.
    #[error("rest_rms: a finite number, 0 or more")]
    Energy,
}

impl Settings {
    /// Checks them.
    ///
    /// # Errors
    /// [`SettingsError`] with the first thing that cannot be.
    pub fn check(&self) -> Result<(), SettingsError> {
        let share = |v: f32| v > 0.0 && v <= 1.0;
        let time = |d: Duration| (20..=10_000).contains(&d.as_millis());
        if !share(self.confidence) || !share(self.keep) || self.keep > self.confidence {
            return Err(SettingsError::Confidence);
        }
        if self.of > MOST_WINDOWS || self.agree > self.of || self.agree * 2 <= self.of {
            return Err(SettingsError::Agree);
        }
        if !time(self.hold) || !time(self.rest) {
            return Err(SettingsError::Time);
        }
        if !(self.rest_rms.is_finite() && self.rest_rms >= 0.0) {
            return Err(SettingsError::Energy);
        }
        Ok(())
    }

    /// The place of the safe class among a model's labels.
    #[must_use]
    pub fn safe_of(&self, labels: &[String]) -> Option<usize> {
        let name = self.safe.as_deref().unwrap_or("rest");
        labels.iter().position(|label| label.eq_ignore_ascii_case(name))
    }
}

/// What one window was recognised as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// The place of the most likely gesture.
    pub class: usize,
    /// How likely it is.
    pub confidence: f32,
    /// [`loudest`] of the window before it was scaled.
    pub rms: f32,
    /// When its last sample came.
    pub at: Duration,
}

/// What is done with commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The command is what windows agree on.
    Following,
    /// It is what they agreed on a moment ago.
    Holding,
    /// It is the safe class, or none.
    Released,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing has been agreed on yet.
    Starting,
    /// Windows agree.
    Agreed,
    /// The newest window is not sure enough.
    LowConfidence,
    /// Windows name different gestures.
    Undecided,
    /// The muscles are at rest, or the electrodes are off.
    LowEnergy,
    /// No window came.
    Silence,
    /// The source is not live.
    Source,
    /// The model did not answer.
    NoAnswer,
    /// An answer was no answer: not a number, or a gesture the model does not have.
    Refused,
}

impl State {
    /// All of them, in the order metrics show them.
    pub const ALL: [Self; 3] = [Self::Following, Self::Holding, Self::Released];

    /// The state's name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Following => "following",
            Self::Holding => "holding",
            Self::Released => "released",
        }
    }
}

impl Reason {
    /// The reason's name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Agreed => "agreed",
            Self::LowConfidence => "low_confidence",
            Self::Undecided => "undecided",
            Self::LowEnergy => "low_energy",
            Self::Silence => "silence",
            Self::Source => "source",
            Self::NoAnswer => "no_answer",
            Self::Refused => "refused",
        }
    }
}

/// The command at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// What is done.
    pub state: State,
    /// The place of the gesture that may be acted on; `None`: nothing may.
    pub command: Option<usize>,
    /// Why.
    pub reason: Reason,
}

/// What a gate has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Windows that were sure and loud enough to vote.
    pub passed: u64,
    /// Windows below the confidence.
    pub unsure: u64,
    /// Windows below the energy.
    pub low: u64,
    /// Windows whose answer was none.
    pub refused: u64,
    /// Times that another gesture than before was followed.
    pub switches: u64,
    /// Times that a gesture other than the safe class was let go.
    pub releases: u64,
}

/// The gate of one source and model.
#[derive(Clone, Debug)]
pub struct Gate {
    settings: Settings,
    classes: usize,
    safe: Option<usize>,
    /// Without a good window for this long it is not following any more.
    quiet: Duration,
    votes: VecDeque<Option<usize>>,
    /// What is followed or held, and when its last good window came.
    held: Option<(usize, Duration)>,
    following: bool,
    /// What is held was interrupted: a window of it is not enough to follow it again.
    interrupted: bool,
    reason: Reason,
    low_since: Option<Duration>,
    /// When the last sample of the last window came that voted for a gesture.
    voted: Duration,
    latest: Duration,
    counts: Counts,
}

impl Gate {
    /// The gate for a model of these labels, whose windows are `hop` apart.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn try_new(settings: Settings, labels: &[String], hop: Duration) -> Result<Self, SettingsError> {
        settings.check()?;
        Ok(Self {
            classes: labels.len(),
            safe: settings.safe_of(labels),
            // Three windows late, and never sooner than a busy device is late by itself.
            quiet: (hop * 3).max(Duration::from_millis(100)).min(settings.hold),
            votes: VecDeque::with_capacity(settings.of),
            settings,
            held: None,
            following: false,
            interrupted: false,
            reason: Reason::Starting,
            low_since: None,
            voted: Duration::ZERO,
            latest: Duration::ZERO,
            counts: Counts::default(),
        })
    }

    /// As it was made.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The place of the safe class, where the model has one.
    #[must_use]
    pub fn safe(&self) -> Option<usize> {
        self.safe
    }

    /// What it has counted since it was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes a window's answer at the time it is known.
    pub fn take(&mut self, seen: Seen, now: Duration) {
        let now = self.advance(now);
        let at = seen.at.min(now);
        if !(0.0..=1.0).contains(&seen.confidence) || seen.class >= self.classes || !seen.rms.is_finite() {
            self.counts.refused += 1;
            return self.doubt(Reason::Refused);
        }
        if seen.rms < self.settings.rest_rms {
            self.counts.low += 1;
            let since = *self.low_since.get_or_insert(at);
            self.doubt(Reason::LowEnergy);
            if at.saturating_sub(since) >= self.settings.rest {
                self.release(Reason::LowEnergy);
            }
            return;
        }
        self.low_since = None;
        let same = self.held.is_some_and(|(class, _)| class == seen.class);
        let current = same && !self.interrupted;
        let enough = if current { self.settings.keep } else { self.settings.confidence };
        if seen.confidence < enough {
            self.counts.unsure += 1;
            return self.doubt(Reason::LowConfidence);
        }
        if now - at >= self.settings.hold {
            // It says what was so before a command would have ended.
            return self.doubt(Reason::Silence);
        }
        if at.saturating_sub(self.voted) >= self.settings.hold {
            // Agreement is about one moment.
            self.votes.clear();
        }
        self.counts.passed += 1;
        self.voted = at;
        self.vote(Some(seen.class));
        let agreed = self.votes.iter().filter(|v| **v == Some(seen.class)).count() >= self.settings.agree;
        match &mut self.held {
            Some((_, last)) if current => *last = at.max(*last),
            _ if agreed => {
                self.counts.switches += u64::from(!same);
                self.interrupted = false;
                self.held = Some((seen.class, at));
            }
            _ => {
                self.following = false;
                self.reason = Reason::Undecided;
                return;
            }
        }
        (self.following, self.reason) = (true, Reason::Agreed);
    }

    /// There was a window and no answer, or the source is not live: nothing is followed before windows agree
    /// anew, also on what is held until then.
    pub fn interrupt(&mut self, reason: Reason, now: Duration) {
        self.advance(now);
        self.votes.clear();
        self.low_since = None;
        self.following = false;
        self.interrupted = true;
        self.reason = reason;
    }

    /// The command at this time.
    pub fn view(&mut self, now: Duration) -> View {
        let now = self.advance(now);
        match self.held {
            None => View { state: State::Released, command: self.safe, reason: self.reason },
            Some((class, last)) => {
                let fresh = now.saturating_sub(last) <= self.quiet;
                let (state, reason) = match (self.following, fresh) {
                    (true, true) => (State::Following, Reason::Agreed),
                    (true, false) => (State::Holding, Reason::Silence),
                    (false, _) => (State::Holding, self.reason),
                };
                View { state, command: Some(class), reason }
            }
        }
    }

    /// The time as it counts here, with what its passing has ended.
    fn advance(&mut self, now: Duration) -> Duration {
        self.latest = self.latest.max(now);
        if self.held.is_some_and(|(_, last)| self.latest.saturating_sub(last) >= self.settings.hold) {
            let reason = if self.following { Reason::Silence } else { self.reason };
            self.release(reason);
        }
        self.latest
    }

    fn vote(&mut self, class: Option<usize>) {
        if self.votes.len() == self.settings.of {
            self.votes.pop_front();
        }
        self.votes.push_back(class);
    }

    /// A window that says nothing.
    fn doubt(&mut self, reason: Reason) {
        self.vote(None);
        self.following = false;
        self.reason = reason;
    }

    fn release(&mut self, reason: Reason) {
        if self.held.take().is_some_and(|(class, _)| Some(class) != self.safe) {
            self.counts.releases += 1;
        }
        self.votes.clear();
        self.following = false;
        self.interrupted = false;
        self.reason = reason;
    }
}

/// The root of the mean square of a window's loudest channel; NaN when a sample is. Samples are sample by sample, and filtered:
/// without a high-pass in the model's filters an offset counts as energy.
#[must_use]
pub fn loudest(window: &[f32], channels: usize) -> f32 {
    let square = |channel: usize| {
        let values = window.iter().skip(channel).step_by(channels.max(1));
        let (sum, count) =
            values.fold((0.0, 0_u32), |(sum, n), v| (sum + f64::from(*v) * f64::from(*v), n + 1));
        sum / f64::from(count.max(1))
    };
    // Not `f64::max`, which passes over NaN.
    let greatest = (0..channels).map(square).fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
    #[allow(clippy::cast_possible_truncation)] // the precision of the samples
    let rms = greatest.sqrt() as f32;
    rms
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_sources::random::Random;

    const MS: Duration = Duration::from_millis(1);
    const REST: usize = 0;
    const OPEN: usize = 1;
    const CLOSE: usize = 2;

    /// A gate, its clock, and windows that come every 20 ms.
    struct Arm {
        gate: Gate,
        now: Duration,
    }

    impl Arm {
        fn new(settings: Settings) -> Self {
            let labels = ["Rest", "Hand Open", "Hand Close"].map(str::to_owned);
            Self { gate: Gate::try_new(settings, &labels, 20 * MS).unwrap(), now: Duration::from_secs(100) }
        }

        fn with_rest_below(rms: f32) -> Self {
            Self::new(Settings { rest_rms: rms, ..Settings::default() })
        }

        fn window(&mut self, class: usize, confidence: f32, rms: f32) -> View {
            self.now += 20 * MS;
            self.gate.take(Seen { class, confidence, rms, at: self.now }, self.now);
            self.gate.view(self.now)
        }

        fn follow(&mut self, class: usize) {
            let told = (0..5).map(|_| self.window(class, 0.9, 1.0)).last();
            assert_eq!(
                told,
                Some(View { state: State::Following, command: Some(class), reason: Reason::Agreed })
            );
        }

        fn after(&mut self, time: Duration) -> View {
            self.now += time;
            self.gate.view(self.now)
        }
    }

    #[test]
    fn a_gesture_is_followed_once_windows_agree_on_it() {
        let mut arm = Arm::new(Settings::default());
        assert_eq!(
            arm.gate.view(arm.now),
            View { state: State::Released, command: Some(REST), reason: Reason::Starting }
        );
        for _ in 0..3 {
            assert_eq!(arm.window(OPEN, 0.9, 1.0).command, Some(REST));
        }
        assert_eq!(arm.window(OPEN, 0.9, 1.0).state, State::Following);
        // It stays with a less sure one, and another gesture needs to be agreed on too.
        assert_eq!(arm.window(OPEN, 0.5, 1.0).state, State::Following);
        assert_eq!(
            arm.window(OPEN, 0.49, 1.0),
            View { state: State::Holding, command: Some(OPEN), reason: Reason::LowConfidence }
        );
        assert_eq!(
            arm.window(CLOSE, 0.9, 1.0),
            View { state: State::Holding, command: Some(OPEN), reason: Reason::Undecided }
        );
        arm.follow(CLOSE);
        assert_eq!(arm.gate.counts().switches, 2);
    }

    #[test]
    fn two_gestures_in_turn_change_nothing() {
        let mut arm = Arm::new(Settings::default());
        for i in 0..200 {
            assert_eq!(arm.window([OPEN, CLOSE][i % 2], 1.0, 1.0).command, Some(REST));
        }
        arm.follow(OPEN);
        for i in 0..200 {
            assert_eq!(arm.window([OPEN, CLOSE][i % 2], 1.0, 1.0).command, Some(OPEN));
        }
        assert_eq!(arm.gate.counts().switches, 1);
    }

    #[test]
    fn silence_holds_and_then_releases_although_nobody_says_anything() {
        let mut arm = Arm::new(Settings::default());
        arm.follow(OPEN);
        assert_eq!(arm.after(100 * MS).state, State::Following);
        assert_eq!(
            arm.after(1 * MS),
            View { state: State::Holding, command: Some(OPEN), reason: Reason::Silence }
        );
        assert_eq!(arm.after(398 * MS).command, Some(OPEN));
        assert_eq!(
            arm.after(1 * MS),
            View { state: State::Released, command: Some(REST), reason: Reason::Silence }
        );
        assert_eq!(arm.gate.counts().releases, 1);
        // From there windows agree anew.
        assert_eq!(arm.window(OPEN, 1.0, 1.0).command, Some(REST));
        arm.follow(OPEN);
    }

    #[test]
    fn a_signal_below_the_threshold_holds_and_then_releases() {
        let mut arm = Arm::with_rest_below(0.5);
        arm.follow(OPEN);
        for _ in 0..15 {
            assert_eq!(
                arm.window(OPEN, 1.0, 0.49),
                View { state: State::Holding, command: Some(OPEN), reason: Reason::LowEnergy }
            );
        }
        // 300 ms after the first quiet one, which is sooner than the hold ends.
        assert_eq!(
            arm.window(OPEN, 1.0, 0.49),
            View { state: State::Released, command: Some(REST), reason: Reason::LowEnergy }
        );
        arm.follow(OPEN);
        for _ in 0..10 {
            arm.window(OPEN, 1.0, 0.0);
        }
        // One loud window, and the time begins anew.
        assert_eq!(arm.window(OPEN, 1.0, 0.5).state, State::Following);
        for _ in 0..15 {
            assert_eq!(arm.window(OPEN, 1.0, 0.0).command, Some(OPEN));
        }
    }

    #[test]
    fn an_interrupted_source_holds_and_then_releases() {
        let mut arm = Arm::new(Settings::default());
        arm.follow(OPEN);
        arm.gate.interrupt(Reason::Source, arm.now);
        assert_eq!(
            arm.after(499 * MS),
            View { state: State::Holding, command: Some(OPEN), reason: Reason::Source }
        );
        assert_eq!(
            arm.after(1 * MS),
            View { state: State::Released, command: Some(REST), reason: Reason::Source }
        );
    }

    #[test]
    fn what_was_interrupted_is_followed_again_once_windows_agree_on_it_anew() {
        let mut arm = Arm::new(Settings::default());
        arm.follow(OPEN);
        arm.gate.interrupt(Reason::NoAnswer, arm.now);
        // Enough to stay with a gesture, and not to begin with it.
        assert_eq!(
            arm.window(OPEN, 0.6, 1.0),
            View { state: State::Holding, command: Some(OPEN), reason: Reason::LowConfidence }
        );
        for _ in 0..3 {
            assert_eq!(
                arm.window(OPEN, 0.9, 1.0),
                View { state: State::Holding, command: Some(OPEN), reason: Reason::Undecided }
            );
        }
        assert_eq!(arm.window(OPEN, 0.9, 1.0).state, State::Following);
        assert_eq!(arm.window(OPEN, 0.6, 1.0).state, State::Following);
        assert_eq!(arm.gate.counts().switches, 1, "it is the same gesture");
        // Windows that do not agree lengthen nothing.
        arm.gate.interrupt(Reason::NoAnswer, arm.now);
        arm.now += 420 * MS;
        for _ in 0..3 {
            assert_eq!(arm.window(OPEN, 0.9, 1.0).state, State::Holding);
        }
        assert_eq!(
            arm.after(20 * MS),
            View { state: State::Released, command: Some(REST), reason: Reason::Undecided }
        );
    }

    #[test]
    fn without_a_safe_class_there_is_no_command() {
        let labels = ["one", "two"].map(str::to_owned);
        let mut gate = Gate::try_new(Settings::default(), &labels, 20 * MS).unwrap();
        assert_eq!(gate.view(MS).command, None);
        let named = Settings { safe: Some("Two".to_owned()), ..Settings::default() };
        assert_eq!(Gate::try_new(named, &labels, 20 * MS).unwrap().view(MS).command, Some(1));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let mut arm = Arm::new(Settings::default());
        for _ in 0..20 {
            for (class, confidence, rms) in [
                (OPEN, f32::NAN, 1.0),
                (OPEN, f32::INFINITY, 1.0),
                (OPEN, 1.01, 1.0),
                (OPEN, -0.1, 1.0),
                (3, 1.0, 1.0),
                (OPEN, 1.0, f32::NAN),
            ] {
                let told = arm.window(class, confidence, rms);
                assert_eq!((told.command, told.reason), (Some(REST), Reason::Refused));
            }
        }
        assert_eq!(arm.gate.counts(), Counts { refused: 120, ..Counts::default() });
    }

    #[test]
    fn a_window_that_was_long_on_its_way_is_not_followed() {
        let mut arm = Arm::new(Settings::default());
        for _ in 0..20 {
            arm.now += 20 * MS;
            arm.gate.take(Seen { class: OPEN, confidence: 1.0, rms: 1.0, at: arm.now - 500 * MS }, arm.now);
            assert_eq!(arm.gate.view(arm.now).command, Some(REST));
        }
        assert_eq!(arm.gate.counts(), Counts::default(), "it did not even vote");
    }

    #[test]
    fn windows_that_are_far_apart_do_not_agree() {
        let mut arm = Arm::new(Settings::default());
        for _ in 0..20 {
            arm.now += 480 * MS;
            assert_eq!(arm.window(OPEN, 1.0, 1.0).command, Some(REST));
        }
    }

    #[test]
    fn a_clock_that_goes_back_ends_nothing_late() {
        let mut arm = Arm::new(Settings::default());
        arm.follow(OPEN);
        let last = arm.now;
        arm.gate.view(last + 499 * MS);
        for back in 0..100 {
            assert_eq!(arm.gate.view(last.saturating_sub(back * Duration::from_secs(3))).command, Some(OPEN));
        }
        assert_eq!(arm.gate.view(last + 500 * MS).command, Some(REST));
        assert_eq!(arm.gate.view(last).command, Some(REST), "what is over stays over");
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        let usual = Settings::default;
        for (settings, why) in [
            (Settings { confidence: 0.0, ..usual() }, SettingsError::Confidence),
            (Settings { confidence: f32::NAN, ..usual() }, SettingsError::Confidence),
            (Settings { keep: 0.8, ..usual() }, SettingsError::Confidence),
            (Settings { agree: 2, of: 4, ..usual() }, SettingsError::Agree),
            (Settings { agree: 6, ..usual() }, SettingsError::Agree),
            (Settings { agree: 60, of: 65, ..usual() }, SettingsError::Agree),
            (Settings { agree: 0, of: 0, ..usual() }, SettingsError::Agree),
            (Settings { hold: 19 * MS, ..usual() }, SettingsError::Time),
            (Settings { rest: 10_001 * MS, ..usual() }, SettingsError::Time),
            (Settings { rest_rms: -1.0, ..usual() }, SettingsError::Energy),
        ] {
            assert_eq!(settings.check(), Err(why), "{settings:?}");
        }
        assert_eq!(usual().check(), Ok(()));
    }

    #[test]
    fn the_loudest_channel_counts_and_a_sample_that_is_no_number_does_not_pass() {
        assert_eq!(loudest(&[3.0, 0.0, -3.0, 0.1], 2), 3.0);
        assert_eq!(loudest(&[], 2), 0.0);
        assert_eq!(loudest(&[], 0), 0.0);
        assert!(loudest(&[f32::NAN, 9.0, 1.0, 9.0], 2).is_nan());
        assert!(loudest(&[9.0, f32::NAN, 1.0, 9.0], 2).is_nan());
    }

    /// Whatever happens in whatever order: who is commanded to move has been told so by enough sure, loud windows, the last
    /// of them less than the hold ago.
    #[test]
    fn no_command_outlives_its_windows_whatever_the_order_of_events() {
        let mut moved = 0;
        for seed in 0..300 {
            let mut random = Random::new(seed, 7);
            let of = 1 + random.below(8);
            let settings = Settings {
                agree: of / 2 + 1,
                of,
                hold: Duration::from_millis(20 + random.below(600) as u64),
                rest: Duration::from_millis(20 + random.below(300) as u64),
                rest_rms: 0.2,
                ..Settings::default()
            };
            let mut arm = Arm::new(settings.clone());
            // Class, confidence and time of every window that may ever be followed.
            let mut good: Vec<(usize, f32, Duration)> = Vec::new();
            let mut latest = arm.now;
            let mut favourite = OPEN;
            for _ in 0..400 {
                match random.below(12) {
                    0 => arm.now += Duration::from_millis(random.below(900) as u64),
                    1 => arm.now = arm.now.saturating_sub(Duration::from_millis(random.below(900) as u64)),
                    2 => arm.gate.interrupt(Reason::Source, arm.now),
                    3 => favourite = random.below(3),
                    _ => {
                        arm.now += Duration::from_millis(random.below(40) as u64);
                        let class = if random.chance(0.8) { favourite } else { random.below(5) };
                        let confidence = [1.0, 0.9, 0.7, 0.6, 0.5, 0.3, f32::NAN][random.below(7)];
                        let rms = [1.0, 1.0, 1.0, 0.2, 0.1, f32::NAN][random.below(6)];
                        let at =
                            (arm.now + 5 * MS).saturating_sub(Duration::from_millis(random.below(60) as u64));
                        arm.gate.take(Seen { class, confidence, rms, at }, arm.now);
                        latest = latest.max(arm.now);
                        if class < 3 && confidence >= 0.5 && rms >= 0.2 {
                            good.push((class, confidence, at.min(latest)));
                        }
                    }
                }
                latest = latest.max(arm.now);
                let told = arm.gate.view(arm.now);
                let Some(command) = told.command.filter(|c| *c != REST) else { continue };
                moved += 1;
                let of_it = || good.iter().filter(|(class, ..)| *class == command);
                assert!(of_it().any(|(.., at)| latest - *at < settings.hold), "seed {seed}: {told:?}");
                let sure = of_it().filter(|(_, confidence, _)| *confidence >= settings.confidence).count();
                assert!(sure >= settings.agree, "seed {seed}: {told:?} after {sure} sure windows");
            }
            assert_eq!(arm.gate.view(latest + settings.hold).command, Some(REST), "seed {seed}");
        }
        assert!(moved > 1000, "{moved} moments with a command were looked at");
    }
}
