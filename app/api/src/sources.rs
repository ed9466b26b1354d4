//! Live sources and what is recognised in them.
//!
//! ```text
//! GET  /api/v1/sources                  each with its state, why, what it counted, what was recognised last; those of motion beside them
//! POST /api/v1/sources/{name}/samples   {"samples": [[..channels..] ..], "sequence"?: n}: a phone or a script is the sensor
//! ```
//!
//! A source (`app/sources`) cuts windows on its own thread; one task per source takes them, hands them to the model by the same
//! way as a request ([`Served::begin`]), and tells what came out to whoever listens. However many listen, a window is inferred
//! once; who listens slowly misses the oldest and nobody else does. Nothing is told of a window that the model did not answer.

use crate::gate::{self, Command, Guard};
use crate::infer::Failure;
use crate::metrics::live::Writer;
use crate::{App, Reply, Req, analysis, emg};
use hyper::StatusCode;
use inferd_hosts::{Served, Ticket};
use inferd_model::{Manifest, Rung, Task};
use inferd_sources::live::{Kind, Label, MAX_PUSH_VALUES, PushError, Source, Spec, State};
use inferd_tasks::NotFinite;
use inferd_tasks::emg::gate::{Reason, Settings as GateSettings, loudest};
use inferd_tasks::emg::{EmgPlan, Gesture, Personal};
use inferd_tasks::form::FormError;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, broadcast};

/// Predictions that wait for one listener; one more, and it misses the oldest.
const BACKLOG: usize = 64;
/// Predictions that are kept for who comes back: five seconds at 50 a second.
const HISTORY: usize = 256;
/// The longest push: `MAX_PUSH_VALUES` numbers of 24 characters. Parsed on the thread of the endpoint, in some milliseconds.
const PUSH_BODY: usize = 24 * MAX_PUSH_VALUES;
/// A source is looked after this often also when nothing comes: a model may have come.
const LOOK: Duration = Duration::from_millis(500);
/// From the last sample of a window to its event.
const LATENCY_BUCKETS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0];

/// A source, and what it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// Where samples come from.
    pub spec: Spec,
    /// The model that gets its windows; `None`: the first of task emg-classifier by name.
    pub model: Option<String>,
    /// Samples from the beginning of one window to the next; `None`: a fifth of the window.
    pub hop: Option<usize>,
    /// When what is recognised in it may be acted on.
    pub gate: GateSettings,
}

/// What was recognised in one window.
#[derive(Clone, Debug)]
pub(crate) struct Prediction {
    /// Its number, from 1, among those of its source.
    pub number: u64,
    /// When it was told.
    pub at: SystemTime,
    /// In the queue and computing.
    pub latency: Duration,
    pub gesture: Gesture,
    pub label: String,
    pub rung: Rung,
    /// Window and scores as they were shaped.
    pub window: [usize; 2],
    pub model: String,
    /// What might be acted on when it was told.
    pub command: Command,
    /// What the source itself says is being done.
    pub said: Option<Label>,
    /// The number of the window's first sample; none of a window that is not of the source's own pace.
    pub sample: Option<u64>,
}

/// A source that runs.
#[derive(Debug)]
pub(crate) struct Live {
    config: SourceConfig,
    pub source: Source,
    pub events: broadcast::Sender<Arc<Prediction>>,
    known: Mutex<Known>,
    guard: Guard,
    /// When its windows were last looked for.
    looked: Mutex<Option<Instant>>,
    /// From the last sample to the event.
    latency: Histogram,
    failed: Counter,
}

#[derive(Debug, Default)]
struct Known {
    /// The model its windows go to, its plan, and the hop.
    fit: Option<(Arc<Manifest>, Arc<EmgPlan>, usize)>,
    /// Why nothing is recognised although samples come.
    problem: String,
    history: VecDeque<Arc<Prediction>>,
    number: u64,
}

/// All sources of a daemon.
pub(crate) type Sources = Arc<OnceLock<Vec<Arc<Live>>>>;

/// Starts the sources. One that cannot be started is told in the log, and is not there.
pub fn start_sources(app: &Arc<App>, configs: &[SourceConfig]) {
    let mut all = Vec::new();
    let (motions, muscles): (Vec<_>, Vec<_>) = configs.iter().partition(|c| c.spec.is_motion());
    analysis::start_sources(app, motions.into_iter().map(|c| c.spec.clone()));
    for config in muscles {
        let samples = Arc::new(Notify::new());
        let wake = Arc::clone(&samples);
        let live = match Live::start(config.clone(), move || wake.notify_one()) {
            Ok(live) => Arc::new(live),
            Err(why) => {
                tracing::error!(source = config.spec.name, error = %why, "no thread for a source");
                continue;
            }
        };
        tokio::spawn(recognise(Arc::downgrade(app), Arc::clone(&live), samples));
        all.push(live);
    }
    // Set once, at the start.
    let _ = app.sources.set(all);
}

/// Takes windows and tells what is in them, until the daemon ends.
async fn recognise(app: Weak<App>, live: Arc<Live>, samples: Arc<Notify>) {
    let Some(mut ending) = app.upgrade().map(|app| app.ending.subscribe()) else { return };
    let mut window = Vec::new();
    let mut state = None;
    loop {
        tokio::select! {
            () = samples.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            _ = ending.wait_for(|ending| *ending) => return,
        }
        let Some(app) = app.upgrade() else { return };
        live.look_after(Instant::now());
        live.log(&mut state);
        let Some((model, plan)) = live.fit(&app) else {
            live.guard.interrupt(Reason::NoAnswer);
            continue;
        };
        window.resize(plan.timesteps() * plan.channels(), 0.0);
        while let Some((cut, arrived, said)) = live.source.take(&mut window) {
            live.look_after(Instant::now());
            let told = async {
                let mut ticket = model.begin(None)?;
                if live.known().fit.as_ref().is_none_or(|(m, ..)| !Arc::ptr_eq(m, ticket.manifest())) {
                    // Replaced this moment: what is next is cut for the new one.
                    return Ok(None);
                }
                ticket.input_f32_mut(0).ok_or(Failure::Lost)?.copy_from_slice(&window);
                infer(&plan, ticket, true).await.map(Some)
            };
            match told.await {
                Ok(Some(answered)) => {
                    app.stream_counts.took(answered.latency);
                    live.tell(answered, loudest(&window, plan.channels()), arrived, cut.sequence, said);
                }
                Ok(None) => break,
                Err(why) => {
                    live.failed.inc();
                    live.guard.interrupt(Reason::NoAnswer);
                    live.known().problem = why.to_string();
                }
            }
        }
    }
}

/// What one inference gave.
pub(crate) struct Answered {
    pub gesture: Gesture,
    pub latency: Duration,
    pub rung: Rung,
    plan: Arc<EmgPlan>,
    manifest: Arc<Manifest>,
}

/// Runs a model on the window in its slot, whose samples are filtered.
pub(crate) async fn infer(
    plan: &Arc<EmgPlan>,
    mut ticket: Ticket,
    preprocess: bool,
) -> Result<Answered, Failure> {
    plan.scale(ticket.input_f32_mut(0).ok_or(Failure::Lost)?, preprocess);
    let begun = Instant::now();
    let outputs = ticket.run().await?;
    let latency = begun.elapsed();
    let gesture = plan.answer(|i| outputs.output_f32(i)).map_err(|e: NotFinite| Failure::Answer(e))?;
    let (plan, manifest, rung) = (Arc::clone(plan), Arc::clone(outputs.manifest()), outputs.rung());
    Ok(Answered { gesture, latency, rung, plan, manifest })
}

impl Answered {
    pub(crate) fn told(self, number: u64, command: Command) -> Prediction {
        Prediction {
            number,
            command,
            at: SystemTime::now(),
            latency: self.latency,
            label: self.plan.labels().get(self.gesture.index).cloned().unwrap_or_default(),
            gesture: self.gesture,
            rung: self.rung,
            window: [self.plan.timesteps(), self.plan.channels()],
            model: self.manifest.name.to_string(),
            said: None,
            sample: None,
        }
    }
}

impl Prediction {
    /// What every event says, of `/infer/stream` and of the list of sources.
    pub(crate) fn fields(&self) -> Value {
        let mut fields = json!({
            "timestamp": seconds(self.at),
            "latency_ms": crate::health::ms(self.latency),
            "prediction": self.gesture.index,
            "label": self.label,
            "confidence": (f64::from(self.gesture.confidence()) * 1e4).round() / 1e4,
            "shape": [1, self.gesture.probabilities.len()],
            "backend": self.rung,
            "window": self.number,
        });
        if let Value::Object(fields) = &mut fields {
            self.command.add_to(fields);
            if let Some(sample) = self.sample {
                fields.insert("sample".to_owned(), json!(sample));
            }
            if let Some(said) = &self.said {
                fields.insert("source_label".to_owned(), json!(said.number));
                if let Some(name) = said.name {
                    fields.insert("source_label_name".to_owned(), json!(name));
                }
            }
        }
        fields
    }
}

/// Unix time.
pub(crate) fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

impl Live {
    /// Starts it; nobody looks after it yet.
    pub(crate) fn start(
        config: SourceConfig,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        Ok(Self {
            source: Source::start(config.spec.clone(), wake)?,
            events: broadcast::Sender::new(BACKLOG),
            known: Mutex::default(),
            guard: Guard::new(config.gate.clone()),
            looked: Mutex::default(),
            latency: Histogram::new(LATENCY_BUCKETS),
            failed: Counter::default(),
            config,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole after every assignment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.spec.name
    }

    /// Samples per second.
    pub(crate) fn rate_hz(&self) -> f64 {
        self.config.spec.rate.hz()
    }

    /// What the clients of the EMG service call a source of this kind.
    pub(crate) fn mode(&self) -> &'static str {
        match self.config.spec.kind {
            Kind::Synthetic { .. } | Kind::Motion { .. } => "dummy",
            Kind::Recording { .. } => "ninapro",
            Kind::Serial { .. } | Kind::Push => "realtime",
        }
    }

    /// The plan its windows are cut for.
    pub(crate) fn plan(&self) -> Option<(Arc<Manifest>, Arc<EmgPlan>)> {
        self.known().fit.as_ref().map(|(manifest, plan, _)| (Arc::clone(manifest), Arc::clone(plan)))
    }

    /// Its model, whether it fits or not.
    pub(crate) fn model(&self, app: &App) -> Option<Arc<Served>> {
        match &self.config.model {
            Some(name) => app.hosts.get(name).filter(|m| m.manifest().task == Task::EmgClassifier),
            None => emg::models(app).next(),
        }
    }

    /// Sees to it that windows are cut for the model there is now.
    fn fit(&self, app: &App) -> Option<(Arc<Served>, Arc<EmgPlan>)> {
        let Some(model) = self.model(app) else {
            let mut known = self.known();
            known.problem = match &self.config.model {
                Some(name) if app.hosts.get(name).is_some() => {
                    format!("model {name} is of another task than emg-classifier")
                }
                Some(name) => format!("model {name} is not loaded"),
                None => "no model of task emg-classifier is loaded".to_owned(),
            };
            known.fit = None;
            return None;
        };
        let manifest = model.manifest();
        let personal = app.calibrations.personal(&manifest);
        let mut known = self.known();
        if let Some((m, plan, _)) = &known.fit
            && Arc::ptr_eq(m, &manifest)
            && plan.personal().map(Arc::as_ptr) == personal.as_ref().map(Arc::as_ptr)
        {
            return Some((model, Arc::clone(plan)));
        }
        let made = self.plan_for(&manifest, personal);
        let same = matches!((&made, &known.fit), (Ok((new, hop)), Some((_, old, before)))
            if hop == before && new.timesteps() == old.timesteps() && new.preparation() == old.preparation());
        // Another edition whose windows are the same goes on with those that are there.
        if !same {
            self.source.shape(match &made {
                Ok((plan, hop)) => Ok((plan.preparation(), plan.timesteps(), *hop)),
                Err(why) => Err(why.clone()),
            });
        }
        match made {
            Ok((plan, hop)) => {
                let every = self.config.spec.rate.offset(u64::try_from(hop).unwrap_or(u64::MAX));
                self.guard.fit(&plan, Duration::from_micros(every.0));
                known.problem.clear();
                known.fit = Some((manifest, Arc::clone(&plan), hop));
                Some((model, plan))
            }
            Err(why) => {
                known.problem = why;
                known.fit = None;
                None
            }
        }
    }

    fn plan_for(
        &self,
        manifest: &Manifest,
        personal: Option<Arc<Personal>>,
    ) -> Result<(Arc<EmgPlan>, usize), String> {
        let plan = EmgPlan::new(manifest).map_err(|e| e.to_string())?.with_personal(personal);
        let (name, spec) = (&manifest.name, &self.config.spec);
        if plan.channels() != spec.channels {
            let (wanted, set) = (plan.channels(), spec.channels);
            return Err(format!("model {name} takes {wanted} channels, the source is set to {set}"));
        }
        let set = spec.rate.hz();
        match plan.rate_hz() {
            None => {
                return Err(format!(
                    "the manifest of model {name} does not say at which rate it was trained"
                ));
            }
            Some(hz) if (hz / set - 1.0).abs() > 0.001 => {
                return Err(format!("model {name} takes samples at {hz} Hz, the source is set to {set} Hz"));
            }
            Some(_) => {}
        }
        let hop = self.config.hop.unwrap_or(plan.timesteps() / 5).max(1);
        Ok((Arc::new(plan), hop))
    }

    fn tell(&self, answered: Answered, rms: f32, arrived: Instant, sample: u64, said: Option<Label>) {
        let command = self.guard.take(&answered.gesture, rms, arrived);
        let mut known = self.known();
        known.number += 1;
        known.problem.clear();
        let sample = Some(sample);
        let prediction = Arc::new(Prediction { said, sample, ..answered.told(known.number, command) });
        if known.history.len() == HISTORY {
            known.history.pop_front();
        }
        known.history.push_back(Arc::clone(&prediction));
        // Nobody listens: nobody misses it. Under the lock: who begins to listen has it from the history or from here, not from both.
        let _ = self.events.send(prediction);
        drop(known);
        self.latency.observe(arrived.elapsed().as_secs_f64());
    }

    /// What may be acted on now.
    pub(crate) fn command(&self) -> Command {
        self.look();
        self.guard.command()
    }

    /// The gate with what it counted and how it is set.
    pub(crate) fn gate(&self) -> Value {
        self.look();
        self.guard.describe()
    }

    /// Its windows are looked for at this moment.
    pub(crate) fn look_after(&self, now: Instant) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// How long ago its windows were looked for.
    pub(crate) fn looked_after(&self) -> Option<Duration> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Lets the gate know of a source that is not live.
    fn look(&self) {
        if !matches!(self.source.view().state, State::Live | State::Starting) {
            self.guard.interrupt(Reason::Source);
        }
    }

    /// How long three windows take with the steps between them; nothing where its model is not known.
    pub(crate) fn three_windows(&self) -> Duration {
        let spec = &self.config.spec;
        let samples = self.plan().map_or(0, |(_, plan)| plan.timesteps().max(self.config.hop.unwrap_or(0)));
        #[allow(clippy::cast_precision_loss)] // thousands
        Duration::from_secs_f64(3.0 * samples as f64 / spec.rate.hz())
    }

    /// Why nothing is recognised although samples come; empty while something is.
    pub(crate) fn problem(&self) -> String {
        self.known().problem.clone()
    }

    /// What was told after this number, as far as it is kept, and then everything as it comes.
    pub(crate) fn listen(
        &self,
        after: Option<u64>,
    ) -> (Vec<Arc<Prediction>>, broadcast::Receiver<Arc<Prediction>>) {
        let known = self.known();
        let events = self.events.subscribe();
        // A number that is still to come was given by a daemon that has ended: all that is kept is news.
        let after = after.map(|n| if n > known.number { 0 } else { n });
        let missed = known.history.iter().filter(|p| after.is_some_and(|n| p.number > n));
        (missed.cloned().collect(), events)
    }

    /// A change of state leaves a line.
    fn log(&self, before: &mut Option<State>) {
        let view = self.source.view();
        if before.replace(view.state) != Some(view.state) && view.state != State::Starting {
            let (source, state) = (self.name(), view.state.name());
            if matches!(view.state, State::Live | State::Over) {
                tracing::info!(source, state, "source");
            } else {
                tracing::warn!(source, state, reason = view.reason, "source");
            }
        }
    }

    fn describe(&self) -> Value {
        let view = self.source.view();
        let gate = self.gate();
        let known = self.known();
        let spec = &self.config.spec;
        let c = view.counts;
        let fit = known.fit.as_ref();
        json!({
            "name": spec.name,
            "kind": spec.kind.name(),
            "emg_mode": self.mode(),
            "state": view.state.name(),
            "reason": view.reason,
            "silent_s": view.silent.map(|s| s.as_secs_f64()),
            "channels": spec.channels,
            "rate_hz": spec.rate.hz(),
            "model": fit.map(|(m, ..)| m.name.as_str()),
            "window": fit.map(|(_, plan, _)| plan.timesteps()),
            "hop": fit.map(|(.., hop)| hop),
            "problem": known.problem,
            "samples": c.received,
            "missing": c.missing,
            "gaps": c.gaps,
            "refused": c.refused,
            "damaged": c.damaged,
            "clipped": c.clipped,
            "late": c.late,
            "windows": c.windows,
            "dropped": c.dropped,
            "opened": c.opened,
            "predictions": known.number,
            "failed": self.failed.get(),
            "latest": known.history.back().map(|p| p.fields()),
            "gate": gate,
        })
    }
}

/// The source a client means: by its name, or by what clients call its kind; without a word any. Of several the first that
/// serves the model it wants.
pub(crate) fn pick<'a>(
    app: &'a App,
    mode: Option<&str>,
    model: Option<&str>,
) -> Result<&'a Arc<Live>, FormError> {
    let all = app.sources.get().map_or(&[][..], Vec::as_slice);
    let named = |s: &Arc<Live>| mode.is_some_and(|word| s.name() == word);
    let any_named = all.iter().any(named);
    let meant = |s: &&Arc<Live>| match mode {
        Some(word) => named(s) || !any_named && s.mode() == word,
        None => true,
    };
    let serves = |s: &&Arc<Live>| s.model(app).is_some_and(|m| Some(m.manifest().name.as_str()) == model);
    let found = all.iter().filter(meant).find(serves).or_else(|| all.iter().find(meant));
    found.ok_or_else(|| {
        let mut words: Vec<&str> = all.iter().flat_map(|s| [s.mode(), s.name()]).collect();
        words.sort_unstable();
        words.dedup();
        let words: Vec<String> = words.into_iter().map(|w| format!("'{w}'")).collect();
        let there = if words.is_empty() { "there is no source".to_owned() } else { words.join(", ") };
        FormError::field("emg_mode", "enum", format!("Input should be a source of this device: {there}"))
    })
}

/// Fills a slot with the newest window of a source that serves this model.
pub(crate) fn newest(
    app: &App,
    mode: Option<&str>,
    ticket: &mut Ticket,
    preprocess: bool,
) -> Result<Arc<EmgPlan>, Failure> {
    let missing = || FormError::field("window", "missing", "Field required: no source gives windows here");
    if mode.is_none() && app.sources.get().is_none_or(Vec::is_empty) {
        return Err(missing().into());
    }
    let live = pick(app, mode, Some(ticket.manifest().name.as_str()))?;
    let view = live.source.view();
    let refused = |why: String| Failure::Source(format!("source {}: {why}", live.name()));
    if view.state != State::Live {
        return Err(refused(if view.reason.is_empty() { view.state.name().to_owned() } else { view.reason }));
    }
    let fits = |ticket: &Ticket| live.plan().filter(|(m, _)| Arc::ptr_eq(m, ticket.manifest()));
    // Another edition may have come this moment.
    let found = fits(ticket).or_else(|| {
        live.fit(app);
        fits(ticket)
    });
    let Some((_, plan)) = found else {
        return Err(match live.plan() {
            Some((other, _)) if other.name != ticket.manifest().name => {
                let why = format!("Value error, the windows of source {} go to another model", live.name());
                FormError::field("emg_mode", "value_error", why).into()
            }
            Some(_) => refused("its model is being replaced this moment".to_owned()),
            None => refused(live.problem()),
        });
    };
    if !preprocess {
        unfiltered(&plan)?;
    }
    let slot = ticket.input_f32_mut(0).ok_or(Failure::Lost)?;
    live.source.latest(slot).ok_or_else(|| refused("no whole window has come yet".to_owned()))?;
    Ok(plan)
}

/// What comes out of a source's ring is filtered already.
pub(crate) fn unfiltered(plan: &EmgPlan) -> Result<(), FormError> {
    if plan.preparation().sections().is_empty() {
        return Ok(());
    }
    let why = "Value error, this model has filters, and windows of a source come out of them";
    Err(FormError::field("preprocess", "value_error", why))
}

pub(crate) fn list(app: &App) -> Reply {
    let all = app.sources.get().map_or(&[][..], Vec::as_slice);
    let all: Vec<Value> = all.iter().map(|s| s.describe()).collect();
    Reply::json(StatusCode::OK, &json!({ "sources": all, "motions": app.sessions.motions() }))
}

/// What a push looks like.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Push {
    samples: Vec<Vec<f32>>,
    #[serde(default)]
    sequence: Option<u64>,
}

/// A name as an answer may repeat it.
pub(crate) fn called(name: &str) -> &str {
    let harmless = name.len() <= 32 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if harmless { name } else { "of that name" }
}

pub(crate) fn push(app: &App, req: &Req) -> Reply {
    let refused = |status, kind, why: &str| Reply::refusal(status, kind, why, true);
    let name = req.path.rsplit('/').nth(1).unwrap_or_default();
    let all = app.sources.get().map_or(&[][..], Vec::as_slice);
    let Some(live) = all.iter().find(|s| s.name() == name) else {
        let why = format!("there is no source {}", called(name));
        return refused(StatusCode::NOT_FOUND, "not_found", &why);
    };
    if req.body.len() > PUSH_BODY {
        let why = format!("a push has at most {PUSH_BODY} bytes");
        return refused(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", &why);
    }
    let object = req.body.trim_ascii_start().starts_with(b"{");
    let push = match object.then(|| serde_json::from_slice::<Push>(&req.body)) {
        Some(Ok(push)) => push,
        // What stands there is not repeated.
        wrong => {
            let at = wrong.and_then(Result::err).map_or_else(
                || "it does not begin with {".to_owned(),
                |e| format!("the first mistake ends in line {}, column {}", e.line(), e.column()),
            );
            let why = format!(
                "a JSON object is needed: samples, a list of lists of numbers, and sequence, the whole number of the first one, nothing else; {at}"
            );
            return refused(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", &why);
        }
    };
    let channels = live.config.spec.channels;
    let taken = if live.config.spec.kind != Kind::Push {
        Err(PushError::Kind)
    } else if push.samples.iter().all(|s| s.len() == channels) {
        live.source.push(push.sequence, &push.samples.concat())
    } else {
        Err(PushError::Shape(channels))
    };
    match taken {
        Ok(taken) => {
            let body = json!({ "taken": taken.samples, "next": taken.next, "missing": taken.missing });
            Reply::json(StatusCode::ACCEPTED, &body)
        }
        Err(e @ PushError::Kind) => refused(StatusCode::CONFLICT, "not_pushed", &e.to_string()),
        Err(e @ PushError::TooMany) => {
            refused(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", &e.to_string())
        }
        Err(e @ (PushError::Shape(_) | PushError::NotFinite | PushError::Sequence)) => {
            refused(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", &e.to_string())
        }
    }
}

/// The numbers of sources.
#[derive(Debug)]
pub(crate) struct Numbers(pub Sources);

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(all) = self.0.get().filter(|all| !all.is_empty()) else { return Ok(()) };
        let views: Vec<_> = all.iter().map(|s| (s.name(), s.source.view())).collect();
        let mut out = Writer { encoder: &mut encoder };
        let states = views.iter().flat_map(|(name, view)| {
            State::ALL
                .map(|s| (vec![("source", *name), ("state", s.name())], f64::from(u8::from(s == view.state))))
        });
        out.gauge("source_state", "1 for the state a source is in", states)?;
        let silent =
            views.iter().filter_map(|(name, v)| Some((vec![("source", *name)], v.silent?.as_secs_f64())));
        out.gauge("source_silent_seconds", "How long no sample has come", silent)?;
        type Count = fn(&inferd_sources::live::Counts) -> u64;
        let counts: [(&str, &str, Count); 8] = [
            ("source_samples", "Samples that came", |c| c.received),
            ("source_missing_samples", "Samples whose numbers were left out", |c| c.missing),
            ("source_gaps", "Gaps between samples, of every kind", |c| c.gaps),
            ("source_refused_samples", "Samples that came twice, late, or were no numbers", |c| c.refused),
            ("source_damaged_frames", "Frames of a serial source that were damaged", |c| c.damaged),
            (
                "source_clipped_samples",
                "Samples of a serial source with a value at the end of its range",
                |c| c.clipped,
            ),
            ("source_windows", "Windows handed to a model", |c| c.windows),
            (
                "source_dropped_windows",
                "Windows that were overwritten or too old before a model was free",
                |c| c.dropped,
            ),
        ];
        for (name, help, count) in counts {
            let samples = views.iter().map(|(source, v)| (vec![("source", *source)], count(&v.counts)));
            out.counter(name, help, samples)?;
        }
        let failed = all.iter().map(|s| (vec![("source", s.name())], s.failed.get()));
        out.counter("emg_failed_windows", "Windows a model did not answer", failed)?;
        let told = all.iter().map(|s| (vec![("source", s.name())], s.known().number));
        out.counter("emg_predictions", "Windows of sources that were recognised", told)?;
        let guards: Vec<_> = all.iter().map(|s| (s.name(), &s.guard)).collect();
        all.iter().for_each(|s| s.look());
        gate::encode(&mut out, &guards)?;
        let mut latency = encoder.encode_descriptor(
            "emg_event_latency",
            "From the last sample of a window to its event",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for live in all {
            live.latency.encode(latency.encode_family(&vec![("source", live.name())])?)?;
        }
        Ok(())
    }
}
