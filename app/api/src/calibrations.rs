//! Calibration for a person: recordings of rest and of each gesture, a fit on the device, a check, an installation, and back.
//!
//! ```text
//! GET    /api/v1/calibrations               what is installed, what is wrong with it, the session there is
//! POST   /api/v1/calibrations               {source?, model?, gestures?, seconds?}: begins a session, one at a time
//! GET    /api/v1/calibrations/{id}          it, with the quality of each recording and how far it is
//! POST   /api/v1/calibrations/{id}/record   {label}: the next seconds of the source are this gesture
//! POST   /api/v1/calibrations/{id}/fit      fits scaler and head, and checks them on windows that were held back
//! POST   /api/v1/calibrations/{id}/install  {force?}: through the gates, and served from then on
//! DELETE /api/v1/calibrations/{id}          ends it; what is installed stays
//! POST   /api/v1/calibrations/undo          {model?}: as it was shipped again
//! ```
//!
//! A session lives in this process and ends with it, or after [`IDLE`] without a word. What is fitted lies in `app/calibrate`; here are
//! the source, the model host (asked as everybody asks it, so that its memory, queue and deadlines hold), and the files.

use crate::actuators;
use crate::metrics::live::Writer;
use crate::records::carried;
use crate::sources::Live;
use crate::{App, Reply, Req};
use arc_swap::ArcSwap;
use hyper::StatusCode;
use inferd_bundle::SigningKey;
use inferd_calibrate::fit::{self, Check, Part};
use inferd_calibrate::order::{self, Order};
use inferd_calibrate::record::{Calibration, Golden, LONGEST, SCHEMA, Unfit, alike, interface};
use inferd_calibrate::recording::{Recording, Shape};
use inferd_hosts::{Hosts, InferError, Served, State as Ready};
use inferd_model::{EmgScaling, Manifest, ModelName};
use inferd_sources::live::{MAX_RECORDED, State};
use inferd_tasks::emg::{EmgPlan, Personal};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// A session that nobody has spoken to for so long is ended.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How long a recording takes, in seconds.
const SECONDS: std::ops::RangeInclusive<u32> = 2..=20;
const USUAL_SECONDS: u32 = 5;
/// The most memory of all recordings of a session: 64 MiB.
const MOST_VALUES: usize = 1 << 24;
/// A recording is looked after this often.
const LOOK: Duration = Duration::from_millis(50);
/// How long a recording may take beyond its seconds.
const LATE: Duration = Duration::from_secs(5);
/// How long a window waits for a place in the model's queue.
const PATIENCE: Duration = Duration::from_secs(20);
/// What was kept is proven when its model is there; looked after this often until then.
const PROVE: Duration = Duration::from_millis(100);
/// Where a model was there and could not answer, it is asked again after this.
const AGAIN: Duration = Duration::from_secs(5);
const NOT_READY: &str = "its model is not ready yet";
/// Calibrations of a device.
const MOST_KEPT: usize = 16;
const KEY: &str = "device.key";
/// What a calibration that is kept may be.
const STATES: [&str; 4] = ["waiting", "serving", "unfit", "ignored"];
const ENDING: &str = ".calibration";

/// The calibrations of a daemon.
#[derive(Debug, Default)]
pub(crate) struct Calibrations {
    dir: OnceLock<PathBuf>,
    kept: ArcSwap<Vec<Arc<Kept>>>,
    /// Set once the files have been read.
    read: OnceLock<()>,
    /// Files that are not believed or not understood, by model, and why.
    spoiled: Mutex<BTreeMap<String, String>>,
    session: Mutex<Option<Session>>,
    /// Sessions there have been.
    number: Mutex<u64>,
    /// One change of files at a time.
    changing: tokio::sync::Mutex<()>,
    news: Notify,
}

/// A calibration that lies on the medium.
#[derive(Debug)]
struct Kept {
    calibration: Calibration,
    standing: Mutex<Standing>,
}

/// How far it is with what is kept.
#[derive(Clone, Debug)]
enum Standing {
    /// Not proven on this run of the daemon yet, and why.
    Waiting(String),
    /// Behind this manifest, which its golden windows were answered with.
    Serving(Arc<Manifest>, Arc<Personal>),
    Unfit(String),
}

#[derive(Debug)]
struct Session {
    id: u64,
    live: Arc<Live>,
    manifest: Arc<Manifest>,
    /// As the model was shipped.
    plan: Arc<EmgPlan>,
    seconds: u32,
    samples: usize,
    /// Places of the labels that are to be recorded.
    gestures: Vec<usize>,
    recordings: BTreeMap<usize, Arc<Recording>>,
    refused: BTreeMap<usize, String>,
    phase: Phase,
    fitted: Option<Arc<Fitted>>,
    error: Option<String>,
    touched: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Recording(usize),
    Fitting { done: usize, all: usize },
    Installing,
}

/// What a fit came to.
#[derive(Debug)]
struct Fitted {
    calibration: Calibration,
    order: Option<String>,
    order_checked: bool,
    objections: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    source: Option<String>,
    model: Option<String>,
    gestures: Option<Vec<String>>,
    seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Label {
    label: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Install {
    #[serde(default)]
    force: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Undo {
    model: Option<String>,
}

type Refused = (StatusCode, &'static str, String);

fn refusal((status, kind, why): Refused) -> Reply {
    Reply::refusal(status, kind, &why, true)
}

fn invalid(why: impl Into<String>) -> Refused {
    (StatusCode::UNPROCESSABLE_ENTITY, "validation_error", why.into())
}

fn conflict(why: impl Into<String>) -> Refused {
    (StatusCode::CONFLICT, "calibration_state", why.into())
}

fn missing(why: impl Into<String>) -> Refused {
    (StatusCode::NOT_FOUND, "not_found", why.into())
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every assignment.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads what is kept in `dir`, and proves each as soon as its model is there. Within the runtime that serves.
pub fn start_calibrations(app: &Arc<App>, dir: &Path) {
    if app.calibrations.dir.set(dir.to_owned()).is_err() {
        return;
    }
    let (app, dir) = (Arc::downgrade(app), dir.to_owned());
    tokio::spawn(async move {
        let read = tokio::task::spawn_blocking(move || read_all(&dir)).await;
        if let (Some(app), Ok((kept, spoiled))) = (app.upgrade(), read) {
            for (model, why) in &spoiled {
                tracing::warn!(
                    model,
                    reason = why,
                    "a calibration is ignored: the model serves as it was shipped"
                );
            }
            *lock(&app.calibrations.spoiled) = spoiled;
            app.calibrations.kept.store(Arc::new(kept));
            // Set once: this task is started once.
            let _ = app.calibrations.read.set(());
        }
        prove(app).await;
    });
}

/// The numbers of calibrations.
pub(crate) struct Numbers(pub Arc<Calibrations>, pub Arc<Hosts>);

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Numbers").finish_non_exhaustive()
    }
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.installed(&self.1);
        let one = |one: &Value| -> Option<(String, String)> {
            Some((one["model"].as_str()?.to_owned(), one["state"].as_str()?.to_owned()))
        };
        let all: Vec<_> = all.iter().filter_map(one).collect();
        let states = all.iter().flat_map(|(model, is)| {
            STATES.map(|s| (vec![("model", model.as_str()), ("state", s)], f64::from(u8::from(s == is))))
        });
        Writer { encoder: &mut encoder }.gauge(
            "calibration_state",
            "1 for what a person's calibration is",
            states,
        )
    }
}

/// Whether a calibration is not applied: its model and why.
pub fn failing_calibration(app: &App) -> Option<Option<String>> {
    app.calibrations.failing(&app.hosts)
}

/// Lets what is kept serve once it has answered its golden windows.
async fn prove(app: Weak<App>) {
    let Some(mut ending) = app.upgrade().map(|app| app.ending.subscribe()) else { return };
    loop {
        let Some(strong) = app.upgrade() else { return };
        let kept = strong.calibrations.kept.load_full();
        let mut pause = PROVE;
        for kept in kept.iter() {
            if !matches!(*lock(&kept.standing), Standing::Waiting(_)) {
                continue;
            }
            let Some(model) = strong.hosts.get(&kept.calibration.model) else { continue };
            if model.state() != Ready::Ready || kept.calibration.is_for(&model.manifest()).is_err() {
                continue;
            }
            let stands = match gates(&strong, &kept.calibration).await {
                Ok((manifest, personal)) => {
                    tracing::info!(model = kept.calibration.model, "calibrated for a person");
                    Standing::Serving(manifest, personal)
                }
                // Says nothing about the calibration.
                Err(Stopped::Passing(why)) => {
                    let model = &kept.calibration.model;
                    tracing::info!(model, reason = %why, "a calibration could not be proven and is tried again");
                    pause = AGAIN;
                    Standing::Waiting(why)
                }
                Err(Stopped::Unfit(why)) => {
                    let model = &kept.calibration.model;
                    tracing::warn!(model, reason = %why, "a calibration is ignored: the model serves as it was shipped");
                    Standing::Unfit(why)
                }
            };
            *lock(&kept.standing) = stands;
        }
        let waits = kept.iter().any(|k| matches!(*lock(&k.standing), Standing::Waiting(_)));
        let next = async {
            if waits {
                tokio::time::sleep(pause).await;
            } else {
                strong.calibrations.news.notified().await;
            }
        };
        tokio::select! {
            () = next => {}
            _ = ending.wait_for(|ending| *ending) => return,
        }
    }
}

/// The gates of a calibration, in the order and with the names of those of a bundle: what it is for (`target`), its form (`load`),
/// its golden windows through the host that serves (`golden`).
async fn gates(app: &App, calibration: &Calibration) -> Result<(Arc<Manifest>, Arc<Personal>), Stopped> {
    let absent = || Stopped::Passing("its model is not loaded".to_owned());
    let model = app.hosts.get(&calibration.model).ok_or_else(absent)?;
    let manifest = model.manifest();
    let personal = Arc::new(calibration.fits(&manifest).map_err(Stopped::unfit)?);
    let plan = EmgPlan::new(&manifest).map_err(Stopped::unfit)?.with_personal(Some(Arc::clone(&personal)));
    let cases = calibration.golden.len();
    for (case, golden) in (1..).zip(&calibration.golden) {
        let (features, _) = ask(&model, &manifest, &plan, &golden.window).await?;
        if !golden.agrees(&personal.logits(&features)) {
            return Err(Stopped::unfit(Unfit::Golden { case, cases }));
        }
    }
    Ok((manifest, personal))
}

/// Runs a filtered window; features, and what the plan names.
async fn ask(
    model: &Arc<Served>,
    manifest: &Arc<Manifest>,
    plan: &EmgPlan,
    window: &[f32],
) -> Result<(Vec<f32>, usize), Stopped> {
    let since = Instant::now();
    loop {
        let asked = async {
            let mut ticket = model.begin(None)?;
            if !alike(ticket.manifest(), manifest) {
                return Ok(Err(Stopped::Passing("the model was replaced meanwhile: begin again".to_owned())));
            }
            let Some(slot) = ticket.input_f32_mut(0).filter(|slot| slot.len() == window.len()) else {
                return Ok(Err(Stopped::unfit("the window does not fit the model")));
            };
            slot.copy_from_slice(window);
            plan.scale(slot, true);
            let outputs = ticket.run().await?;
            let features = plan.features().and_then(|i| outputs.output_f32(i)).map(<[f32]>::to_vec);
            let named = plan.answer(|i| outputs.output_f32(i)).map(|g| g.index);
            Ok::<_, InferError>(match (features, named) {
                (Some(features), Ok(named)) => Ok((features, named)),
                _ => Err(Stopped::unfit("the model answers with values that are no numbers")),
            })
        };
        match asked.await {
            Ok(done) => return done,
            // Live requests go first: what is busy is asked again.
            Err(e) if since.elapsed() < PATIENCE => {
                tracing::debug!(error = %e, "a window of a calibration waits");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Why a window was not answered, or a calibration not let through.
#[derive(Debug)]
enum Stopped {
    /// It does not fit the model that serves.
    Unfit(String),
    /// The model could not answer at that time.
    Passing(String),
}

impl Stopped {
    fn unfit(why: impl ToString) -> Self {
        Self::Unfit(why.to_string())
    }
}

impl From<InferError> for Stopped {
    fn from(e: InferError) -> Self {
        let why = e.to_string();
        match e {
            // About this very window, and after [`PATIENCE`] no chance: it would harm the engine at each try.
            InferError::Panicked { .. } | InferError::Value(_) | InferError::Quarantined { .. } => {
                Self::Unfit(why)
            }
            InferError::QueueFull { .. }
            | InferError::NotReady { .. }
            | InferError::DeadlineUnmeetable { .. }
            | InferError::DeadlineExceeded { .. }
            | InferError::HostLost { .. }
            | InferError::Engine(_)
            | InferError::BreakerOpen { .. } => Self::Passing(why),
        }
    }
}

impl From<Stopped> for String {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Unfit(why) | Stopped::Passing(why) => why,
        }
    }
}

impl Calibrations {
    /// What is to be applied to this model's features, where somebody has calibrated it.
    pub(crate) fn personal(&self, manifest: &Manifest) -> Option<Arc<Personal>> {
        let kept = self.kept.load();
        let own = |k: &&Arc<Kept>| k.calibration.model == manifest.name.as_str();
        match &*lock(&kept.iter().find(own)?.standing) {
            Standing::Serving(proven, personal) if alike(proven, manifest) => Some(Arc::clone(personal)),
            _ => None,
        }
    }

    /// Why this model answers as it was shipped although somebody calibrated it, or may have; `None`: it does not, or nobody did.
    pub(crate) fn unsettled(&self, manifest: &Manifest) -> Option<String> {
        self.dir.get()?;
        if self.read.get().is_none() {
            return Some("its calibration was not read yet".to_owned());
        }
        let model = manifest.name.as_str();
        if let Some(why) = lock(&self.spoiled).get(model) {
            return Some(format!("its calibration is ignored: {why}"));
        }
        let kept = self.kept.load();
        match &*lock(&kept.iter().find(|k| k.calibration.model == model)?.standing) {
            Standing::Serving(proven, _) if alike(proven, manifest) => None,
            Standing::Serving(..) => Some("its calibration is for another edition of it".to_owned()),
            Standing::Waiting(why) => Some(format!("its calibration is not proven yet: {why}")),
            Standing::Unfit(why) => Some(format!("its calibration is unfit: {why}")),
        }
    }

    /// The first model that answers as it was shipped although somebody calibrated it, and why; one that is still being proven is none.
    /// `None`: the files were not read yet.
    fn failing(&self, hosts: &Hosts) -> Option<Option<String>> {
        self.read.get()?;
        let all = self.installed(hosts);
        let failing = all.iter().find(|one| matches!(one["state"].as_str(), Some("unfit" | "ignored")));
        let said = |key: &str, of: &Value| of[key].as_str().unwrap_or_default().to_owned();
        Some(failing.map(|one| format!("{}: {}", said("model", one), said("reason", one))))
    }

    /// What is kept of each model, and whether it serves.
    pub(crate) fn installed(&self, hosts: &Hosts) -> Vec<Value> {
        let kept = self.kept.load();
        let one = |k: &Arc<Kept>| {
            let c = &k.calibration;
            let other = hosts.get(&c.model).and_then(|m| c.is_for(&m.manifest()).err());
            let (state, reason) = match (&*lock(&k.standing), other) {
                (_, Some(other)) => ("unfit", other.to_string()),
                (Standing::Waiting(why), _) => ("waiting", why.clone()),
                (Standing::Serving(..), _) => ("serving", String::new()),
                (Standing::Unfit(why), _) => ("unfit", why.clone()),
            };
            json!({
                "model": c.model, "state": state, "reason": reason, "made_ms": c.made_ms, "source": c.source,
                "network": c.network, "check": c.check, "objections": c.objections,
            })
        };
        let spoiled = lock(&self.spoiled);
        let spoiled =
            spoiled.iter().map(|(model, why)| json!({ "model": model, "state": "ignored", "reason": why }));
        kept.iter().map(one).chain(spoiled).collect()
    }

    /// Does something with the session of this id.
    fn with<T>(&self, id: u64, what: impl FnOnce(&mut Session) -> T) -> Option<T> {
        lock(&self.session).as_mut().filter(|s| s.id == id).map(what)
    }
}

impl Session {
    fn label(&self, place: usize) -> &str {
        self.plan.labels().get(place).map_or("", String::as_str)
    }

    /// Rest, which everything else is measured against.
    fn rest(&self) -> Option<usize> {
        self.plan.labels().iter().position(|l| l.eq_ignore_ascii_case("rest"))
    }

    /// Who else is told other gestures by the calibration: it is the model's, whichever source its windows come from.
    fn also(&self, app: &App) -> Value {
        let model = self.manifest.name.as_str();
        let goes = |live: &&Arc<Live>| live.plan().is_some_and(|(m, _)| m.name.as_str() == model);
        let all = app.sources.get().map_or(&[][..], Vec::as_slice).iter().filter(goes);
        let all: Vec<&str> = all.map(|live| live.name()).collect();
        let others: Vec<&str> = all.iter().copied().filter(|name| *name != self.live.name()).collect();
        json!({ "sources": others, "actuators": actuators::following(app, &all) })
    }

    fn describe(&self, app: &App) -> Value {
        let channel = |c: &usize| name_of(&self.manifest, *c);
        let gesture = |g: &usize| {
            let recording = self.recordings.get(g);
            let state = match (recording, self.refused.get(g)) {
                _ if self.phase == Phase::Recording(*g) => "recording",
                (_, Some(_)) => "refused",
                (Some(_), None) => "recorded",
                (None, None) => "missing",
            };
            json!({
                "label": self.label(*g),
                "state": state,
                "reason": self.refused.get(g).map_or("", String::as_str),
                "versus_rest": recording.and_then(|r| r.versus_rest()),
                "dead_channels": recording.map(|r| r.dead().iter().map(channel).collect::<Vec<_>>()),
            })
        };
        let (state, percent) = match self.phase {
            Phase::Recording(_) => {
                let (have, want) = self.live.source.recorded().unwrap_or((0, 1));
                ("recording", 100 * have / want.max(1))
            }
            Phase::Fitting { done, all } => ("fitting", 100 * done / all.max(1)),
            Phase::Installing => ("installing", 0),
            Phase::Idle if self.fitted.is_some() => ("fitted", 100),
            Phase::Idle => ("ready", 0),
        };
        let next = self.gestures.iter().find(|g| !self.recordings.contains_key(g));
        json!({
            "id": self.id,
            "model": self.manifest.name,
            "source": self.live.name(),
            "also": self.also(app),
            "seconds": self.seconds,
            "state": state,
            "percent": percent,
            "gestures": self.gestures.iter().map(gesture).collect::<Vec<_>>(),
            "next": next.map(|g| self.label(*g)),
            "error": self.error,
            "fit": self.fitted.as_ref().map(|f| json!({
                "check": f.calibration.check,
                "labels": f.calibration.labels,
                "order": f.order,
                "order_checked": f.order_checked,
                "objections": f.objections,
            })),
        })
    }
}

fn name_of(manifest: &Manifest, channel: usize) -> String {
    let names = manifest.inputs.first().and_then(|i| i.channels.as_ref()).map(|c| &c.names);
    names.and_then(|n| n.get(channel)).cloned().unwrap_or_else(|| format!("channel {channel}"))
}

pub(crate) fn list(app: &App) -> Reply {
    let session = lock(&app.calibrations.session).as_ref().map(|s| s.describe(app));
    let body = json!({ "installed": app.calibrations.installed(&app.hosts), "session": session });
    Reply::json(StatusCode::OK, &body)
}

pub(crate) fn begin(app: &Arc<App>, req: &Req) -> Reply {
    match try_begin(app, req) {
        Ok(session) => Reply::json(StatusCode::CREATED, &session),
        Err(why) => refusal(why),
    }
}

fn try_begin(app: &Arc<App>, req: &Req) -> Result<Value, Refused> {
    let asked: Begin = req.object().ok_or_else(|| {
        invalid("a JSON object is needed: source, model, gestures (a list of labels), seconds (2 to 20), all optional")
    })?;
    let seconds = asked.seconds.unwrap_or(USUAL_SECONDS);
    if !SECONDS.contains(&seconds) {
        return Err(invalid("seconds is 2 to 20"));
    }
    let all = app.sources.get().map_or(&[][..], Vec::as_slice);
    let live = match &asked.source {
        Some(name) => {
            all.iter().find(|s| s.name() == name).ok_or_else(|| missing("there is no source of that name"))?
        }
        None => all.first().ok_or_else(|| missing("there is no source on this device"))?,
    };
    let model =
        live.model(app).ok_or_else(|| conflict(format!("source {}: {}", live.name(), live.problem())))?;
    let manifest = model.manifest();
    if asked.model.as_deref().is_some_and(|m| m != manifest.name.as_str()) {
        return Err(invalid(format!("the windows of source {} go to model {}", live.name(), manifest.name)));
    }
    let plan = EmgPlan::new(&manifest).map_err(|e| conflict(e.to_string()))?;
    if plan.features().is_none() {
        return Err(conflict(format!(
            "model {} has no features to calibrate on: its manifest names none in emg.features",
            manifest.name
        )));
    }
    let rate = plan.rate_hz().unwrap_or_else(|| live.rate_hz());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let samples = (f64::from(seconds) * rate) as usize;
    let settling = usize::try_from(plan.preparation().settling()).unwrap_or(usize::MAX);
    let needed = fit::least_samples(plan.timesteps()).saturating_add(settling);
    if samples < needed || samples * plan.channels() > MAX_RECORDED {
        #[allow(clippy::cast_precision_loss, reason = "told in tenths")]
        let least = needed as f64 / rate;
        return Err(invalid(format!(
            "at {rate} Hz a recording takes at least {least:.1} s and at most {MAX_RECORDED} values"
        )));
    }
    let mut gestures = Vec::new();
    for label in asked.gestures.as_deref().unwrap_or(plan.labels()) {
        gestures.push(place(plan.labels(), label)?);
    }
    gestures.sort_unstable();
    gestures.dedup();
    let mut session = Session {
        id: 0,
        live: Arc::clone(live),
        manifest,
        plan: Arc::new(plan),
        seconds,
        samples,
        gestures,
        recordings: BTreeMap::new(),
        refused: BTreeMap::new(),
        phase: Phase::Idle,
        fitted: None,
        error: None,
        touched: Instant::now(),
    };
    // Rest is what everything is measured against, and comes first.
    if let Some(rest) = session.rest() {
        session.gestures.retain(|g| *g != rest);
        session.gestures.insert(0, rest);
    }
    if session.gestures.len() < 2 || session.gestures.len() * samples * session.plan.channels() > MOST_VALUES
    {
        return Err(invalid("two gestures at least, and not more values than fit 64 MiB"));
    }
    let mut there = lock(&app.calibrations.session);
    if let Some(other) = there.as_ref() {
        return Err(conflict(format!("session {} is under way: go on with it, or end it", other.id)));
    }
    let mut number = lock(&app.calibrations.number);
    *number += 1;
    session.id = *number;
    let told = session.describe(app);
    tokio::spawn(end_idle(Arc::downgrade(app), session.id));
    *there = Some(session);
    Ok(told)
}

/// Ends a session that is left alone, and with it gives back the memory of its recordings.
async fn end_idle(app: Weak<App>, id: u64) {
    let mut left = IDLE;
    loop {
        tokio::time::sleep(left).await;
        let Some(app) = app.upgrade() else { return };
        let mut there = lock(&app.calibrations.session);
        let Some(session) = there.as_ref().filter(|s| s.id == id) else { return };
        left = match session.phase {
            Phase::Idle => IDLE.saturating_sub(session.touched.elapsed()),
            _ => IDLE,
        };
        if left.is_zero() {
            *there = None;
            tracing::info!(
                session = id,
                "a calibration was left alone and is ended; what is installed stays"
            );
            return;
        }
    }
}

fn place(labels: &[String], label: &str) -> Result<usize, Refused> {
    let found = labels.iter().position(|l| l.eq_ignore_ascii_case(label));
    found.ok_or_else(|| invalid(format!("a gesture is one of: {}", labels.join(", "))))
}

/// The id in the path.
fn id_of(req: &Req) -> u64 {
    req.path.split('/').nth(4).and_then(|id| id.parse().ok()).unwrap_or(0)
}

fn no_session() -> Refused {
    missing("there is no such session: it was ended, or the daemon was started anew")
}

pub(crate) fn get(app: &App, req: &Req) -> Reply {
    let told = app.calibrations.with(id_of(req), |s| {
        s.touched = Instant::now();
        s.describe(app)
    });
    told.map_or_else(|| refusal(no_session()), |session| Reply::json(StatusCode::OK, &session))
}

pub(crate) fn end(app: &App, req: &Req) -> Reply {
    let id = id_of(req);
    let mut there = lock(&app.calibrations.session);
    match there.take_if(|s| s.id == id) {
        None => refusal(no_session()),
        Some(session) => {
            session.live.source.take_recording();
            Reply::json(StatusCode::OK, &json!({ "ended": id }))
        }
    }
}

pub(crate) fn record(app: &Arc<App>, req: &Req) -> Reply {
    match try_record(app, req) {
        Ok(session) => Reply::json(StatusCode::ACCEPTED, &session),
        Err(why) => refusal(why),
    }
}

fn try_record(app: &Arc<App>, req: &Req) -> Result<Value, Refused> {
    let label: Label = req.object().ok_or_else(|| invalid("a JSON object is needed: label"))?;
    let begun = |s: &mut Session| {
        s.touched = Instant::now();
        let label = place(s.plan.labels(), &label.label)?;
        if !s.gestures.contains(&label) {
            return Err(invalid("this gesture is not part of the session"));
        }
        if s.phase != Phase::Idle {
            return Err(conflict("the session is busy: wait for what it does"));
        }
        if s.rest().is_some_and(|rest| rest != label && !s.recordings.contains_key(&rest)) {
            return Err(conflict(format!(
                "record {} first: the gestures are compared with it",
                s.label(s.gestures[0])
            )));
        }
        let view = s.live.source.view();
        if view.state != State::Live {
            let why = if view.reason.is_empty() { view.state.name().to_owned() } else { view.reason };
            let why = format!("source {}: {why}", s.live.name());
            return Err((StatusCode::SERVICE_UNAVAILABLE, "source_unavailable", why));
        }
        s.live.source.record(s.samples);
        s.phase = Phase::Recording(label);
        s.error = None;
        s.refused.remove(&label);
        tokio::spawn(hold(Arc::clone(app), s.id, label));
        Ok(s.describe(app))
    };
    app.calibrations.with(id_of(req), begun).unwrap_or_else(|| Err(no_session()))
}

/// Waits for a recording, and judges it.
async fn hold(app: Arc<App>, id: u64, label: usize) {
    let Some((live, plan, seconds)) =
        app.calibrations.with(id, |s| (Arc::clone(&s.live), Arc::clone(&s.plan), s.seconds))
    else {
        return;
    };
    let late = Instant::now() + Duration::from_secs(seconds.into()) * 2 + LATE;
    let stopped = loop {
        let Some((have, want)) = live.source.recorded() else { return };
        if have >= want {
            break None;
        }
        let view = live.source.view();
        if view.state != State::Live {
            break Some(if view.reason.is_empty() { view.state.name().to_owned() } else { view.reason });
        }
        if Instant::now() > late {
            break Some("samples come too slowly".to_owned());
        }
        tokio::time::sleep(LOOK).await;
        if app.calibrations.with(id, |_| ()).is_none() {
            return;
        }
    };
    let recorded = live.source.take_recording();
    let rest = app
        .calibrations
        .with(id, |s| s.rest().filter(|r| *r != label).and_then(|r| s.recordings.get(&r).cloned()));
    let judged = match (stopped, recorded, rest) {
        (Some(why), ..) => Err(format!("source {}: {why}; record again", live.name())),
        (None, Some(recorded), Some(rest)) => {
            let judge = move || {
                let shape = Shape {
                    preparation: plan.preparation(),
                    timesteps: plan.timesteps(),
                    channels: plan.channels(),
                };
                Recording::assess(&recorded.values, &recorded.breaks, shape, rest.as_deref())
            };
            let judged = tokio::task::spawn_blocking(judge).await;
            judged.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.to_string()))
        }
        // Ended meanwhile.
        _ => return,
    };
    app.calibrations.with(id, |s| {
        s.phase = Phase::Idle;
        s.touched = Instant::now();
        match judged {
            Ok(recording) => {
                s.fitted = None;
                // Gestures were compared with the rest before.
                if s.rest() == Some(label) {
                    s.recordings.clear();
                }
                s.recordings.insert(label, Arc::new(recording));
            }
            Err(why) => {
                s.refused.insert(label, why);
            }
        }
    });
}

pub(crate) fn fit(app: &Arc<App>, req: &Req) -> Reply {
    let begun = |s: &mut Session| {
        s.touched = Instant::now();
        if s.phase != Phase::Idle {
            return Err(conflict("the session is busy: wait for what it does"));
        }
        if let Some(left) = s.gestures.iter().find(|g| !s.recordings.contains_key(g)) {
            return Err(conflict(format!("{} is not recorded yet", s.label(*left))));
        }
        (s.phase, s.error, s.fitted) = (Phase::Fitting { done: 0, all: 1 }, None, None);
        tokio::spawn(fit_and_check(Arc::clone(app), s.id));
        Ok(s.describe(app))
    };
    match app.calibrations.with(id_of(req), begun).unwrap_or_else(|| Err(no_session())) {
        Ok(session) => Reply::json(StatusCode::ACCEPTED, &session),
        Err(why) => refusal(why),
    }
}

async fn fit_and_check(app: Arc<App>, id: u64) {
    let of = |s: &mut Session| {
        (Arc::clone(&s.manifest), Arc::clone(&s.plan), s.recordings.clone(), s.live.name().to_owned())
    };
    let Some((manifest, plan, recordings, source)) = app.calibrations.with(id, of) else { return };
    let fitted = fitted(&app, id, &manifest, &plan, &recordings, source).await;
    app.calibrations.with(id, |s| {
        (s.phase, s.touched) = (Phase::Idle, Instant::now());
        match fitted {
            Ok(fitted) => s.fitted = Some(Arc::new(fitted)),
            Err(why) => s.error = Some(why),
        }
    });
}

async fn fitted(
    app: &App,
    id: u64,
    manifest: &Arc<Manifest>,
    plan: &EmgPlan,
    recordings: &BTreeMap<usize, Arc<Recording>>,
    source: String,
) -> Result<Fitted, String> {
    let model = app.hosts.get(manifest.name.as_str()).ok_or("the model is not loaded any more")?;
    let all: Vec<&Recording> = recordings.values().map(|r| &**r).collect();
    let by_window = manifest.emg.as_ref().is_some_and(|e| e.scaling == EmgScaling::PerWindow);
    let scaler = (!by_window).then(|| fit::scaler(&all, plan.fixed()));
    // Only its scaler counts yet.
    let labels = plan.labels().len();
    let width = plan.features().map_or(0, |i| manifest.outputs[i].elements());
    let unheaded =
        Personal { scaler: scaler.clone(), weight: vec![0.0; labels * width], bias: vec![0.0; labels] };
    let scaled = plan.clone().with_personal(Some(Arc::new(unheaded)));
    let steps = plan.timesteps();
    let of = |part| {
        let windows = |(label, r): (&usize, &Arc<Recording>)| {
            let (label, r) = (*label, Arc::clone(r));
            fit::windows(&r, steps, part).map(|w| (label, w.to_vec())).collect::<Vec<_>>()
        };
        recordings.iter().flat_map(windows).collect::<Vec<_>>()
    };
    let (to_fit, held) = (of(Part::Fit), of(Part::Held));
    let count = to_fit.len() + 2 * held.len();
    let mut done = 0;
    // False: the session was ended.
    let mut step = || {
        done += 1;
        app.calibrations.with(id, |s| s.phase = Phase::Fitting { done, all: count }).is_some()
    };
    let ended = || "the session was ended".to_owned();
    let mut features = Vec::new();
    for (label, window) in &to_fit {
        features.push((*label, ask(&model, manifest, &scaled, window).await?.0));
        step().then_some(()).ok_or_else(ended)?;
    }
    let personal = tokio::task::spawn_blocking(move || fit::head(&features, labels, scaler))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    let (mut named, mut golden) = (Vec::new(), BTreeMap::new());
    for (label, window) in held {
        let (features, _) = ask(&model, manifest, &scaled, &window).await?;
        step().then_some(()).ok_or_else(ended)?;
        let (_, shipped) = ask(&model, manifest, plan, &window).await?;
        step().then_some(()).ok_or_else(ended)?;
        let logits = personal.logits(&features);
        let best = (1..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
        named.push((label, best, shipped));
        golden.entry(label).or_insert(Golden { window, logits });
    }
    let check = Check::of(plan.labels(), &named);
    let strengths: Vec<(String, Vec<f64>)> =
        recordings.iter().map(|(l, r)| (plan.labels()[*l].clone(), r.strength().to_vec())).collect();
    let order = expected(app, manifest, &strengths).map(|expected| {
        let strengths: Vec<Vec<f64>> = strengths.iter().map(|(_, s)| s.clone()).collect();
        order::compare(&strengths, &expected)
    });
    let names: Vec<String> = (0..plan.channels()).map(|c| name_of(manifest, c)).collect();
    let words = order.as_ref().and_then(|o: &Order| o.words(&names));
    let objections = words.iter().cloned().chain(check.objections()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let calibration = Calibration {
        schema: SCHEMA,
        model: manifest.name.to_string(),
        network: manifest.onnx.sha256.clone(),
        interface: interface(manifest).map_err(|e| e.to_string())?,
        labels: plan.labels().to_vec(),
        made_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        source,
        check,
        objections: Vec::new(),
        scaler: personal.scaler,
        weight: personal.weight,
        bias: personal.bias,
        strengths,
        golden: golden.into_values().collect(),
    };
    Ok(Fitted { calibration, order: words, order_checked: order.is_some(), objections })
}

/// How strong the channels of these gestures should be: as the manifest says, else as in the calibration before.
fn expected(app: &App, manifest: &Manifest, strengths: &[(String, Vec<f64>)]) -> Option<Vec<Vec<f64>>> {
    let emg = manifest.emg.as_ref()?;
    let shipped = |label: &String| {
        let row = emg.patterns.get(emg.labels.iter().position(|l| l == label)?)?;
        Some(row.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
    };
    let kept = app.calibrations.kept.load();
    let before = kept.iter().find(|k| k.calibration.model == manifest.name.as_str());
    let before = |label: &String| {
        let all = &before?.calibration.strengths;
        all.iter().find(|(l, s)| l == label && s.len() == strengths[0].1.len()).map(|(_, s)| s.clone())
    };
    let labels = || strengths.iter().map(|(label, _)| label);
    labels().map(shipped).collect::<Option<_>>().or_else(|| labels().map(before).collect())
}

pub(crate) async fn install(app: &Arc<App>, req: &Req) -> Reply {
    match try_install(app, req).await {
        Ok(()) => list(app),
        Err(why) => refusal(why),
    }
}

async fn try_install(app: &Arc<App>, req: &Req) -> Result<(), Refused> {
    let wish: Install = match req.body.is_empty() {
        true => Install::default(),
        false => req.object().ok_or_else(|| invalid("a JSON object is needed: force, true or false"))?,
    };
    let id = id_of(req);
    let begun = app.calibrations.with(id, |s| {
        s.touched = Instant::now();
        if s.phase != Phase::Idle {
            return Err(conflict("the session is busy: wait for what it does"));
        }
        let fitted = s.fitted.clone().ok_or_else(|| conflict("nothing is fitted yet"))?;
        if !(fitted.objections.is_empty() || wish.force) {
            let why = fitted.objections.join("; ");
            return Err((StatusCode::CONFLICT, "calibration_refused", format!("not installed: {why}")));
        }
        s.phase = Phase::Installing;
        Ok(fitted)
    });
    let fitted = begun.unwrap_or_else(|| Err(no_session()))?;
    let mut calibration = fitted.calibration.clone();
    calibration.objections.clone_from(&fitted.objections);
    // In a task of its own: an installation that began ends, whether the client waits for it or not.
    let app = Arc::clone(app);
    let installed = async move {
        let done = keep(&app, calibration).await;
        let mut session = lock(&app.calibrations.session);
        if done.is_ok() {
            session.take_if(|s| s.id == id);
        } else if let Some(s) = session.as_mut().filter(|s| s.id == id) {
            (s.phase, s.touched) = (Phase::Idle, Instant::now());
        }
        done
    };
    tokio::spawn(carried(installed)).await.unwrap_or_else(|e| Err(lost(&e)))
}

fn lost(e: &tokio::task::JoinError) -> Refused {
    (StatusCode::INTERNAL_SERVER_ERROR, "unexpected_error", format!("the change was lost: {e}"))
}

/// The gates, the file, the flip: in this order, so that what serves after a power cut has passed them.
async fn keep(app: &App, calibration: Calibration) -> Result<(), Refused> {
    let calibrations = &app.calibrations;
    let dir = calibrations.dir.get().ok_or_else(|| conflict("this daemon keeps no data"))?.clone();
    let _one = calibrations.changing.lock().await;
    let others = calibrations.kept.load_full();
    let others: Vec<_> =
        others.iter().filter(|k| k.calibration.model != calibration.model).cloned().collect();
    if others.len() >= MOST_KEPT {
        return Err(conflict(format!("{MOST_KEPT} models are calibrated already: undo one")));
    }
    let refused =
        |why: String| (StatusCode::CONFLICT, "calibration_refused", format!("not installed: {why}"));
    let unwritten =
        |why: String| (StatusCode::INTERNAL_SERVER_ERROR, "medium_failed", format!("not installed: {why}"));
    // What will be read at the next start is what goes through the gates.
    let at = dir.clone();
    let signed = tokio::task::spawn_blocking(move || {
        let key = own_key(&at).map_err(|e| format!("the device's key: {e}"))?;
        let file = calibration.sign(&key).map_err(|e| e.to_string())?;
        let read = Calibration::read(&file, &key.public()).map_err(|e| e.to_string())?;
        Ok::<_, String>((file, read))
    });
    let (file, calibration) = signed.await.map_err(|e| unwritten(e.to_string()))?.map_err(unwritten)?;
    let (manifest, personal) = gates(app, &calibration).await.map_err(|stopped| refused(stopped.into()))?;
    let path = dir.join(format!("{}{ENDING}", calibration.model));
    let written = tokio::task::spawn_blocking(move || inferd_slots::replace(&path, &file)).await;
    written.map_err(|e| unwritten(e.to_string()))?.map_err(|e| unwritten(e.to_string()))?;
    lock(&calibrations.spoiled).remove(&calibration.model);
    let accuracy = calibration.check.accuracy;
    tracing::info!(model = calibration.model, accuracy, "calibrated for a person");
    let kept = Kept { calibration, standing: Mutex::new(Standing::Serving(manifest, personal)) };
    calibrations.kept.store(Arc::new(others.into_iter().chain([Arc::new(kept)]).collect()));
    Ok(())
}

pub(crate) async fn undo(app: &Arc<App>, req: &Req) -> Reply {
    match try_undo(app, req).await {
        Ok(model) => Reply::json(StatusCode::OK, &json!({ "model": model, "calibrated": false })),
        Err(why) => refusal(why),
    }
}

async fn try_undo(app: &Arc<App>, req: &Req) -> Result<String, Refused> {
    let asked: Undo = match req.body.is_empty() {
        true => Undo::default(),
        false => req.object().ok_or_else(|| invalid("a JSON object is needed: model"))?,
    };
    // As with an installation.
    let app = Arc::clone(app);
    let taken = tokio::spawn(carried(async move { take_back(&app, asked).await })).await;
    taken.unwrap_or_else(|e| Err(lost(&e)))
}

async fn take_back(app: &App, asked: Undo) -> Result<String, Refused> {
    let calibrations = &app.calibrations;
    let _one = calibrations.changing.lock().await;
    let kept = calibrations.kept.load_full();
    let mut all: Vec<String> = kept.iter().map(|k| k.calibration.model.clone()).collect();
    all.extend(lock(&calibrations.spoiled).keys().cloned());
    let model = match (asked.model, &all[..]) {
        (Some(model), all) if all.contains(&model) => model,
        (None, [only]) => only.clone(),
        (None, [_, _, ..]) => {
            return Err(invalid(format!("several models are calibrated, name one: {}", all.join(", "))));
        }
        _ => return Err(missing("no such model is calibrated: there is nothing to undo")),
    };
    let dir = calibrations.dir.get().ok_or_else(|| conflict("this daemon keeps no data"))?;
    let path = dir.join(format!("{model}{ENDING}"));
    let dir = dir.clone();
    let removed = tokio::task::spawn_blocking(move || {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::File::open(&dir)?.sync_all()
    });
    let failed =
        |why: String| (StatusCode::INTERNAL_SERVER_ERROR, "medium_failed", format!("not undone: {why}"));
    removed.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    calibrations
        .kept
        .store(Arc::new(kept.iter().filter(|k| k.calibration.model != model).cloned().collect()));
    lock(&calibrations.spoiled).remove(&model);
    tracing::info!(model, "the calibration is undone: the model serves as it was shipped");
    Ok(model)
}

/// What lies in the directory; what is not believed, by model, with the reason.
fn read_all(dir: &Path) -> (Vec<Arc<Kept>>, BTreeMap<String, String>) {
    let (mut kept, mut spoiled) = (Vec::new(), BTreeMap::new());
    let Ok(entries) = fs::read_dir(dir) else { return (kept, spoiled) };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let model = |n: String| n.strip_suffix(ENDING).filter(|m| ModelName::new(m).is_ok()).map(str::to_owned);
    let mut models: Vec<String> = names.filter_map(model).collect();
    models.sort();
    models.truncate(MOST_KEPT);
    for model in models {
        let read = || {
            // Without the key that signed it nothing is believed; a new one is made when there is something to sign.
            let key = read_key(&dir.join(KEY)).map_err(|e| format!("the device's key: {e}"))?;
            let file =
                read_file(&dir.join(format!("{model}{ENDING}")), LONGEST).map_err(|e| e.to_string())?;
            let calibration = Calibration::read(&file, &key.public()).map_err(|e| e.to_string())?;
            match calibration.model == model {
                true => Ok(calibration),
                false => Err(format!("it is for model {}", calibration.model)),
            }
        };
        match read() {
            Ok(calibration) => {
                kept.push(Arc::new(Kept {
                    calibration,
                    standing: Mutex::new(Standing::Waiting(NOT_READY.to_owned())),
                }));
            }
            Err(why) => {
                spoiled.insert(model, why);
            }
        }
    }
    (kept, spoiled)
}

/// A file, and at most one byte more than it may have.
fn read_file(path: &Path, longest: usize) -> io::Result<Vec<u8>> {
    let flags = fs::OpenOptions::new().read(true).open(path)?;
    if !flags.metadata()?.is_file() {
        return Err(io::Error::other("this is no file"));
    }
    let mut bytes = Vec::new();
    flags.take(longest as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_key(path: &Path) -> io::Result<SigningKey> {
    let text = String::from_utf8(read_file(path, 4096)?).map_err(io::Error::other)?;
    Ok(SigningKey::from_line(&text).map_err(io::Error::other)?.0)
}

/// The device's own key: made when it is needed first, for its owner only. One that cannot be read is replaced, and with it nothing is
/// believed any more that it signed.
fn own_key(dir: &Path) -> io::Result<SigningKey> {
    let path = dir.join(KEY);
    if let Ok(key) = read_key(&path) {
        return Ok(key);
    }
    fs::create_dir_all(dir)?;
    let key = SigningKey::generate().map_err(io::Error::other)?;
    let beside = dir.join(format!("{KEY}.new"));
    // One that is there already may be open to others.
    let _ = fs::remove_file(&beside);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(key.to_line("calibrations of this device").as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    fs::File::open(dir)?.sync_all()?;
    Ok(key)
}
