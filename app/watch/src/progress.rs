//! The proof that the daemon gets on with its work: without it nobody feeds the watchdog.
//!
//! A process that breathes proves nothing. So a thread of its own ([`start`]) asks again and again, and the keeper (or systemd) hears
//! `WATCHDOG=1` only while all of this holds:
//!
//! | proof | good while | not good, and still no reason to reset the board |
//! |---|---|---|
//! | `http` | a request to the endpoint's own listener is answered, with any status, or turned away by closing; or, for [`BUSY_FOR`] at most, others' requests are | none of its addresses is on this machine any more |
//! | `inference` | of the models that serve one at least has finished an inference, or a self-test, within the budget | no model, safe mode, or every model is being restarted: that is supervised, and told to whoever asks |
//! | `storage` | a small write to the data directory comes back within a minute | it comes back with an error: full or read-only is an alarm |
//!
//! [`Judge`] is the whole decision: events in, a [`Judgement`] out, no clock, no thread, no disk. It never decides to end or to reset
//! anything; it says what it cannot prove, and whoever feeds the watchdog stops.
//!
//! A self-test is one golden vector on the path that requests take. It is asked for when a model has finished nothing for
//! [`Limits::test_every`] and nothing is under way in it, so a device in use runs none.

mod http;
mod storage;
mod thread;

pub use http::{Probe, ProbeMark};
pub use thread::{Setup, Watching, start};

use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The models, as far as progress is about them. What implements it may be asked from any thread and must not wait.
pub trait Engines: Send {
    /// Every model that is (or should be) served.
    fn look(&mut self) -> Vec<Engine>;
    /// Begins a self-test of this model, unless one is under way. It shows as a finished inference.
    fn test(&mut self, model: &str);
}

/// One model at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Its name.
    pub model: String,
    /// Inferences its hosts have finished, well or not, ever.
    pub finished: u64,
    /// Whether a request is in it.
    pub busy: bool,
    /// Whether it should answer.
    pub condition: Condition,
    /// How long one inference of it may take.
    pub deadline: Duration,
}

/// Whether a model should answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It takes requests.
    Serving,
    /// It does not, somebody looks after it, and who asks is told: it is started, restarted, or kept from an input or a device.
    Supervised,
}

/// How the endpoint answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Http {
    /// With this status.
    Answered(u16),
    /// It took the connection and closed it, or said something that is not plain HTTP: it is there.
    TurnedAway,
    /// Not in time, but it has answered others meanwhile.
    Busy,
    /// No address it listens on is on this machine now; nothing can be said.
    NoAddress,
    /// Not at all; why, in words.
    Silent(String),
}

/// How the state storage is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A write has begun.
    Begun,
    /// It is on the medium.
    Done,
    /// There is no data directory: nothing to prove.
    Absent,
    /// It came back with an error, in words.
    Failed(String),
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All models together may go that long without a finished inference. `None`: [`INFERENCE_BUDGET`], and longer where a model's own
    /// deadline is.
    pub inference: Option<Duration>,
    /// A model that has finished nothing for that long and is idle runs a self-test.
    pub test_every: Duration,
    /// A write to the data directory may take that long.
    pub storage: Duration,
    /// All proofs must be good for that long before the daemon calls itself healthy.
    pub healthy: Duration,
}

/// How long all models together may go without a finished inference.
pub const INFERENCE_BUDGET: Duration = Duration::from_secs(120);
/// Beyond a model's own deadline: the hosts end what is past it, and need a moment for that.
pub const PAST_DEADLINE: Duration = Duration::from_secs(30);
/// How long a write to the data directory may take: slower than the slowest card that still works.
pub const STORAGE_BUDGET: Duration = Duration::from_secs(60);
/// How long an endpoint that answers others may leave the question unanswered: load is no hang, but who takes nobody new for a minute
/// is not reached by anybody new.
pub const BUSY_FOR: Duration = Duration::from_secs(60);
/// All proofs are good for that long in a healthy daemon.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// The longest pause between two self-tests of an idle model.
pub const TEST_EVERY: Duration = Duration::from_secs(30);

impl Limits {
    /// The usual ones, with this budget for inference.
    #[must_use]
    pub fn new(inference: Option<Duration>) -> Self {
        let budget = inference.unwrap_or(INFERENCE_BUDGET);
        Self {
            inference,
            test_every: TEST_EVERY.min(budget / 4),
            storage: STORAGE_BUDGET,
            healthy: HEALTHY_AFTER,
        }
    }

    /// What a model with this deadline has.
    fn budget(&self, deadline: Duration) -> Duration {
        self.inference.unwrap_or_else(|| INFERENCE_BUDGET.max(deadline + PAST_DEADLINE))
    }
}

/// Decides whether there is progress. Time is since any fixed moment and never goes back.
#[derive(Debug)]
pub struct Judge {
    limits: Limits,
    /// Without it the daemon never becomes healthy: it runs in safe mode.
    may_be_healthy: bool,
    http: Endpoint,
    models: BTreeMap<String, Model>,
    medium: Medium,
    good_since: Option<Duration>,
    healthy: bool,
}

#[derive(Debug)]
struct Endpoint {
    last: Http,
    /// When it last answered, or could not be asked.
    good_at: Duration,
    asked: bool,
}

#[derive(Debug)]
struct Model {
    finished: u64,
    /// When it last finished something, or began to serve.
    since: Duration,
    condition: Condition,
    budget: Duration,
}

#[derive(Debug, Default)]
struct Medium {
    /// A write that has not come back.
    begun: Option<Duration>,
    done_at: Option<Duration>,
    failed: Option<String>,
    absent: bool,
    writes: u64,
}

/// What is proved now.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Whether the watchdog may be fed.
    pub progress: bool,
    /// Whether it has become healthy at this moment; once.
    pub just_healthy: bool,
    /// Whether it was healthy at some time.
    pub healthy: bool,
    /// The endpoint.
    pub http: Proof,
    /// The engines.
    pub inference: Proof,
    /// The data directory.
    pub storage: Proof,
    /// Writes to the data directory that were asked for.
    pub storage_writes: u64,
}

/// One proof.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// Whether it is good.
    pub ok: bool,
    /// Whether it keeps the watchdog from being fed.
    pub withholds: bool,
    /// How long ago it was proved last; `None`: never, or there is nothing to prove.
    pub age: Option<Duration>,
    /// One sentence for the operator.
    pub sentence: String,
}

impl Proof {
    fn good(age: Option<Duration>, sentence: impl Into<String>) -> Self {
        Self { ok: true, withholds: false, age, sentence: sentence.into() }
    }
    fn missing(age: Option<Duration>, sentence: String) -> Self {
        Self { ok: false, withholds: true, age, sentence }
    }
}

impl Judgement {
    /// Why the watchdog is not fed; empty while it is.
    #[must_use]
    pub fn why_not(&self) -> String {
        let missing: Vec<&str> = [&self.http, &self.inference, &self.storage]
            .into_iter()
            .filter(|p| p.withholds)
            .map(|p| p.sentence.as_str())
            .collect();
        missing.join("; ")
    }
}

fn seconds(d: Duration) -> u64 {
    d.as_secs()
}

impl Judge {
    /// From `now` on. A daemon in safe mode never calls itself healthy.
    #[must_use]
    pub fn new(limits: Limits, now: Duration, safe_mode: bool) -> Self {
        Self {
            limits,
            may_be_healthy: !safe_mode,
            http: Endpoint { last: Http::Silent("it was not asked yet".into()), good_at: now, asked: false },
            models: BTreeMap::new(),
            medium: Medium::default(),
            good_since: None,
            healthy: false,
        }
    }

    /// Safe mode is over: the daemon may become healthy.
    pub fn safe_mode_is_over(&mut self) {
        self.may_be_healthy = true;
    }

    /// The endpoint was asked.
    pub fn http(&mut self, now: Duration, outcome: Http) {
        self.http.asked = true;
        if !matches!(outcome, Http::Silent(_) | Http::Busy) {
            self.http.good_at = now;
        }
        self.http.last = outcome;
    }

    /// The models were looked at; those whose self-test is due.
    pub fn engines(&mut self, now: Duration, engines: &[Engine]) -> Vec<String> {
        self.models.retain(|name, _| engines.iter().any(|e| e.model == *name));
        let mut due = Vec::new();
        for e in engines {
            let fresh =
                || Model { finished: e.finished, since: now, condition: e.condition, budget: Duration::ZERO };
            let model = self.models.entry(e.model.clone()).or_insert_with(fresh);
            // Who does not serve has nothing to finish: its time begins when it serves.
            if model.finished != e.finished
                || e.condition == Condition::Supervised
                || model.condition != e.condition
            {
                model.since = now;
            }
            model.finished = e.finished;
            model.condition = e.condition;
            model.budget = self.limits.budget(e.deadline);
            let idle_for = now.saturating_sub(model.since);
            if e.condition == Condition::Serving && !e.busy && idle_for >= self.limits.test_every {
                due.push(e.model.clone());
            }
        }
        due
    }

    /// Something happened to the data directory.
    pub fn storage(&mut self, now: Duration, event: Storage) {
        match event {
            Storage::Begun => {
                self.medium.begun = Some(now);
                self.medium.writes += 1;
            }
            Storage::Done => {
                self.medium = Medium { done_at: Some(now), writes: self.medium.writes, ..Medium::default() };
            }
            Storage::Absent => {
                self.medium = Medium { absent: true, writes: self.medium.writes, ..Medium::default() };
            }
            Storage::Failed(why) => {
                self.medium.begun = None;
                self.medium.absent = false;
                self.medium.failed = Some(why);
            }
        }
    }

    /// What is proved now.
    pub fn judge(&mut self, now: Duration) -> Judgement {
        let (http, inference, storage) = (self.endpoint(now), self.inference(now), self.medium(now));
        let progress = ![&http, &inference, &storage].iter().any(|p| p.withholds);
        let mut just_healthy = false;
        if progress {
            let since = *self.good_since.get_or_insert(now);
            let long_enough = now.saturating_sub(since) >= self.limits.healthy;
            just_healthy = long_enough && self.may_be_healthy && !self.healthy;
            self.healthy |= just_healthy;
        } else {
            self.good_since = None;
        }
        let (healthy, storage_writes) = (self.healthy, self.medium.writes);
        Judgement { progress, just_healthy, healthy, http, inference, storage, storage_writes }
    }

    fn endpoint(&self, now: Duration) -> Proof {
        let age = now.saturating_sub(self.http.good_at);
        let known = self.http.asked.then_some(age);
        match &self.http.last {
            Http::Answered(status) => Proof::good(known, format!("the endpoint answers (status {status})")),
            Http::TurnedAway => Proof::good(known, "the endpoint turns connections away, so it is there"),
            Http::Busy if age < BUSY_FOR => {
                Proof::good(known, "the endpoint is busy: it answers others, and the question later")
            }
            Http::Busy => {
                let age = seconds(age);
                Proof::missing(
                    known,
                    format!("the endpoint answers others, but GET /livez has waited for {age} s"),
                )
            }
            Http::NoAddress => {
                Proof::good(None, "no address of the endpoint is on this machine now, so it cannot be asked")
            }
            Http::Silent(why) => Proof::missing(
                known,
                format!("the endpoint has not answered GET /livez for {} s: {why}", seconds(age)),
            ),
        }
    }

    fn inference(&self, now: Duration) -> Proof {
        let serving: Vec<(&String, &Model)> =
            self.models.iter().filter(|(_, m)| m.condition == Condition::Serving).collect();
        let Some((_, freshest)) = serving.iter().max_by_key(|(_, m)| m.since) else {
            let sentence = match self.models.len() {
                0 => "no model is served, so there is nothing to prove".to_owned(),
                n => {
                    format!("none of {n} model(s) takes requests now; each is looked after by its supervisor")
                }
            };
            return Proof::good(None, sentence);
        };
        let age = now.saturating_sub(freshest.since);
        if serving.iter().all(|(_, m)| now.saturating_sub(m.since) >= m.budget) {
            let names: Vec<&str> = serving.iter().map(|(name, _)| name.as_str()).collect();
            let sentence = format!(
                "no model has finished an inference or a self-test for {} s: {}",
                seconds(age),
                names.join(", ")
            );
            return Proof::missing(Some(age), sentence);
        }
        Proof::good(
            Some(age),
            format!("{} model(s) serve; the last inference ended {} s ago", serving.len(), seconds(age)),
        )
    }

    fn medium(&self, now: Duration) -> Proof {
        let m = &self.medium;
        let age = m.done_at.map(|at| now.saturating_sub(at));
        if let Some(begun) = m.begun {
            let lasts = now.saturating_sub(begun);
            if lasts > self.limits.storage {
                let sentence =
                    format!("a write to the data directory has not come back for {} s", seconds(lasts));
                return Proof::missing(age, sentence);
            }
        }
        match (&m.failed, m.absent, age) {
            (Some(why), ..) => Proof { ok: false, withholds: false, age, sentence: why.clone() },
            (None, true, _) => Proof::good(None, "there is no data directory, so there is nothing to prove"),
            (None, false, Some(age)) => {
                Proof::good(Some(age), format!("the data directory was written {} s ago", seconds(age)))
            }
            (None, false, None) => Proof::good(None, "the data directory was not written yet"),
        }
    }
}

/// What is proved, for whoever is asked: `/status` and `/metrics`.
#[derive(Debug, Default)]
pub struct Shown(Mutex<Option<(Instant, Judgement)>>);

/// A proof as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct ProofView {
    pub ok: bool,
    /// Seconds since it was proved last.
    pub age_s: Option<f64>,
    pub sentence: String,
}

/// Progress as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Whether it is proved, so that the watchdog is fed.
    pub proved: bool,
    /// Whether the daemon has been healthy for a while since it started.
    pub healthy: bool,
    /// The endpoint.
    pub http: ProofView,
    /// The engines.
    pub inference: ProofView,
    /// The data directory.
    pub storage: ProofView,
    /// Writes to the data directory that proofs have asked for.
    pub storage_writes: u64,
}

impl Shown {
    /// Shows this from now on.
    pub fn publish(&self, judgement: Judgement) {
        *self.lock() = Some((Instant::now(), judgement));
    }

    /// What is proved; `None` before the first look. A thread that hangs shows: its proofs grow old.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let shown = self.lock();
        let (at, j) = shown.as_ref()?;
        let since = at.elapsed();
        let of = |p: &Proof| ProofView {
            ok: p.ok,
            age_s: p.age.map(|age| ((age + since).as_secs_f64() * 10.0).round() / 10.0),
            sentence: p.sentence.clone(),
        };
        Some(View {
            proved: j.progress,
            healthy: j.healthy,
            http: of(&j.http),
            inference: of(&j.inference),
            storage: of(&j.storage),
            storage_writes: j.storage_writes,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Judgement)>> {
        // It is only ever replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
