//! Sessions of a phone's or a collar's sensor, as the EdgeInfer service has them for its clients.
//!
//! ```text
//! POST /api/v1/analysis/start       a session of one sensor: sessionId
//! PUT  /api/v1/analysis/stream      {"sessionId", "samples": [{"t", "ax", .. "mz"}]}: its samples, as they come
//! GET  /api/v1/analysis/motifs      ?sessionId=&topK=   what the newest window is recognised as, by the IMU model that serves
//! GET  /api/v1/analysis/synchrony   ?sessionId=&otherSessionId=   how alike two sensors are moved, and which one lags
//! POST /api/v1/analysis/stop        {"sessionId"}: forgets it
//! ```
//!
//! A source of motion (`[[sources]]`, the generator's) is a session from the start, whose name is taken for its `sessionId`.
//!
//! A session keeps its newest 2000 samples (`app/sources`), and is forgotten after [`IDLE`] in which nobody names it. Mistakes are
//! 400 and what is not there is 404, in Vapor's words with a `code` of ours, as its clients know them; a window that is not whole
//! or a sensor of another rate is 409. The service made motifs and synchrony up where it had none: here they are computed or refused.

use crate::infer::{Failure, MOTIF_SOURCE, Wording, refuse};
use crate::metrics::live::Writer;
use crate::rate::network;
use crate::{App, Reply, Req, Stages, Surface, query};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use inferd_sources::live::{Source, Spec};
use inferd_sources::session::{AXES, Sample, Session, SessionError, together};
use inferd_tasks::form::{Form, FormError};
use inferd_tasks::window::{Numbers, WindowKey};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Sessions at once: 90 KB each when they are full.
const SESSIONS: usize = 32;
/// Of these one client on the network has so many at most; the device itself may have all.
const SESSIONS_PER_CLIENT: usize = 8;
/// A session that nobody names for so long is forgotten: its samples are of 20 s.
const IDLE: Duration = Duration::from_secs(600);
/// Samples of one push: as many as are kept.
const PUSH: usize = inferd_sources::session::CAPACITY;
/// Bytes of one push: such samples written with 17 digits, and spaces.
const PUSH_BODY: usize = PUSH * 400;
/// How often what a source gave is taken into its session: ten samples at 100 Hz.
const FED: Duration = Duration::from_millis(100);
/// Motifs that are told where nobody says how many.
const TOP: i64 = 3;

/// All sessions, and what they count.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    all: Mutex<Vec<Held>>,
    started: AtomicU64,
    stopped: AtomicU64,
    idle: AtomicU64,
    samples: AtomicU64,
    late: AtomicU64,
}

#[derive(Debug)]
struct Held {
    id: u128,
    session: Session,
    begun: Instant,
    named: Instant,
    sender: Sender,
}

/// Who fills a session.
#[derive(Debug)]
enum Sender {
    /// Whoever knows its number; the network address it was begun from.
    Client(IpAddr),
    /// A source of this device. It is there for as long as the daemon.
    Source(Arc<Source>),
}

/// Why a session's request is refused.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("a JSON object is needed: {0}")]
    Body(&'static str),
    #[error("{0}")]
    Query(String),
    #[error("sessionId is missing")]
    NoId,
    #[error("there is no such session: it was never started, was stopped, or nobody named it for 10 minutes")]
    Unknown(StatusCode),
    #[error(
        "as many sessions as there can be have begun ({SESSIONS}, {SESSIONS_PER_CLIENT} of one client); stop one"
    )]
    Full(Duration),
    #[error(
        "this session is the source {0} of the device: its samples come from there, for as long as it runs"
    )]
    OfSource(String),
    #[error("a push has at most {PUSH} samples and {PUSH_BODY} bytes")]
    TooLarge,
    #[error(
        "synchrony is of two sessions: otherSessionId is missing, and there is not exactly one other session with samples"
    )]
    Alone,
    #[error("no model of this device scores motifs")]
    NoMotifs,
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl From<FormError> for Problem {
    fn from(e: FormError) -> Self {
        Self::Query(e.to_string())
    }
}

impl Problem {
    fn reply(&self) -> Reply {
        let (status, code, wait) = match self {
            Self::Body(_) | Self::Query(_) | Self::NoId => {
                (StatusCode::BAD_REQUEST, "validation_error", None)
            }
            Self::Session(SessionError::NotFinite(_)) => (StatusCode::BAD_REQUEST, "validation_error", None),
            Self::Unknown(status) => (*status, "unknown_session", None),
            Self::Full(wait) => (StatusCode::SERVICE_UNAVAILABLE, "sessions", Some(*wait)),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", None),
            Self::Alone => (StatusCode::BAD_REQUEST, "one_session", None),
            Self::OfSource(_) => (StatusCode::CONFLICT, "session_of_source", None),
            Self::NoMotifs => {
                (StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", Some(Duration::from_secs(1)))
            }
            Self::Session(SessionError::TooFew { .. }) => (StatusCode::CONFLICT, "too_few_samples", None),
            Self::Session(SessionError::Rate { .. }) => (StatusCode::CONFLICT, "other_rate", None),
            Self::Session(SessionError::Apart(_)) => (StatusCode::CONFLICT, "nothing_in_common", None),
            Self::Session(SessionError::Synchrony(_)) => (StatusCode::CONFLICT, "not_comparable", None),
        };
        let page = json!({ "error": true, "reason": self.to_string(), "code": code });
        let reply = Reply::json(status, &page).with_error(code);
        match wait {
            Some(wait) => reply.with_retry_after(wait),
            None => reply,
        }
    }
}

impl Sessions {
    /// All that somebody still names.
    fn all(&self) -> MutexGuard<'_, Vec<Held>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.retain(|held| held.source().is_some() || held.named.elapsed() < IDLE);
        self.idle.fetch_add((before - all.len()) as u64, Relaxed);
        all
    }

    fn start(&self, client: IpAddr) -> Result<u128, Problem> {
        let (local, client) = (client.to_canonical().is_loopback(), network(client));
        let mut all = self.all();
        let own = |held: &&Held| matches!(held.sender, Sender::Client(from) if from == client);
        let places = || all.iter().filter(|held| held.source().is_none());
        let too_many = !local && places().filter(own).count() >= SESSIONS_PER_CLIENT;
        if too_many || places().count() >= SESSIONS {
            // The place that is given back next.
            let gives = places().filter(|held| !too_many || own(held)).map(|held| held.named.elapsed());
            let oldest = gives.max().unwrap_or_default();
            return Err(Problem::Full(IDLE.saturating_sub(oldest).max(Duration::from_secs(1))));
        }
        let held = Held::new(Sender::Client(client)).ok_or(Problem::Full(Duration::from_secs(1)))?;
        let id = held.id;
        all.push(held);
        self.started.fetch_add(1, Relaxed);
        Ok(id)
    }

    /// The sources of motion, as the list of sources tells them.
    pub(crate) fn motions(&self) -> Vec<Value> {
        let all = self.all();
        let told = all.iter().filter_map(|held| {
            let source = held.source()?;
            let (spec, view) = (source.spec(), source.view());
            Some(json!({
                "name": spec.name, "kind": spec.kind.name(), "state": view.state.name(), "reason": view.reason,
                "channels": spec.channels, "rate_hz": spec.rate.hz(), "samples": held.session.total(),
                "sessionId": name(held.id),
            }))
        });
        told.collect()
    }

    /// What this does with a session; `unknown` is the status where there is none.
    fn with<T>(
        &self,
        id: &str,
        unknown: StatusCode,
        act: impl FnOnce(&mut Held) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let number = number(id);
        let mut all = self.all();
        let meant = |held: &&mut Held| match number {
            Some(number) => held.id == number,
            None => held.source().is_some_and(|source| source.spec().name == id),
        };
        let held = all.iter_mut().find(meant).ok_or(Problem::Unknown(unknown))?;
        held.named = Instant::now();
        act(held)
    }
}

impl Held {
    /// An empty one with a random number; `None` where the system has none to give.
    fn new(sender: Sender) -> Option<Self> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).ok()?;
        // RFC 9562, version 4.
        let id = u128::from_be_bytes(random) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        let now = Instant::now();
        Some(Self { id, session: Session::default(), begun: now, named: now, sender })
    }

    fn source(&self) -> Option<&Arc<Source>> {
        match &self.sender {
            Sender::Client(_) => None,
            Sender::Source(source) => Some(source),
        }
    }

    /// For what only a client's own session can have done to it.
    fn of_client(&self) -> Result<(), Problem> {
        self.source().map_or(Ok(()), |source| Err(Problem::OfSource(source.spec().name.clone())))
    }
}

/// Starts the sources of motion, each with a session of its own. One that cannot be started is told in the log, and is not there.
pub(crate) fn start_sources(app: &Arc<App>, specs: impl Iterator<Item = Spec>) {
    for spec in specs {
        let name = spec.name.clone();
        // Its session looks by itself.
        let source = Source::start(spec, || ()).map(Arc::new);
        let held = source.as_ref().ok().and_then(|source| Held::new(Sender::Source(Arc::clone(source))));
        let (Ok(source), Some(held)) = (source, held) else {
            tracing::error!(source = name, "no thread or no random number for a source");
            continue;
        };
        tokio::spawn(feed(Arc::downgrade(app), source, held.id));
        app.sessions.all().push(held);
    }
}

/// Takes what a source gives into its session, until the daemon ends. Times are those since its first sample.
async fn feed(app: Weak<App>, source: Arc<Source>, id: u128) {
    let Some(mut ending) = app.upgrade().map(|app| app.ending.subscribe()) else { return };
    let mut reader = source.reader();
    let (mut values, mut samples) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            () = tokio::time::sleep(FED) => {}
            _ = ending.wait_for(|ending| *ending) => return,
        }
        let Some(app) = app.upgrade() else { return };
        while let Some(block) = source.read(&mut reader, PUSH, &mut values) {
            #[allow(clippy::cast_precision_loss)] // 2^53 samples are three million years
            let time = |n: u64| n as f64 / source.spec().rate.hz();
            let rows = values.as_chunks().0.iter();
            samples.extend((block.sequence..).zip(rows).map(|(n, row)| Sample { t: time(n), values: *row }));
            if let Some(held) = app.sessions.all().iter_mut().find(|held| held.id == id)
                && let Ok(taken) = held.session.push(&samples)
            {
                app.sessions.samples.fetch_add(taken.taken as u64, Relaxed);
            }
            values.clear();
            samples.clear();
        }
    }
}

/// A session's number of its text, in letters of either size.
fn number(text: &str) -> Option<u128> {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths = parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]);
    let digits = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    (lengths && digits).then(|| u128::from_str_radix(&parts.concat(), 16).ok()).flatten()
}

fn name(id: u128) -> String {
    let hex = format!("{id:032X}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A moment as Vapor writes dates: whole seconds of UTC.
fn timestamp(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days, of years that begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
    let year = year + 400 * era;
    format!("{year:04}-{month:02}-{of_month:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

fn now() -> String {
    timestamp(SystemTime::now())
}

fn answered(outcome: Result<Reply, Problem>) -> Reply {
    outcome.unwrap_or_else(|problem| problem.reply())
}

/// `POST /api/v1/analysis/start`. A body says nothing that matters.
pub(crate) fn start(app: &App, req: &Req) -> Reply {
    answered(app.sessions.start(req.peer.ip()).map(|id| {
        let page = json!({ "sessionId": name(id), "status": "started", "timestamp": now() });
        Reply::json(StatusCode::OK, &page)
    }))
}

/// What names a session in a body.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "sessionId")]
    id: String,
}

/// One push, as clients send it; `windowStart` and `windowEnd` say nothing that the samples' times do not.
#[derive(Debug, Deserialize)]
struct Push {
    #[serde(rename = "sessionId")]
    id: String,
    samples: Vec<Reading>,
}

#[derive(Debug, Deserialize)]
struct Reading {
    t: f64,
    ax: f32,
    ay: f32,
    az: f32,
    gx: f32,
    gy: f32,
    gz: f32,
    mx: f32,
    my: f32,
    mz: f32,
}

impl From<Reading> for Sample {
    fn from(r: Reading) -> Self {
        Self { t: r.t, values: [r.ax, r.ay, r.az, r.gx, r.gy, r.gz, r.mx, r.my, r.mz] }
    }
}

/// A push's session and samples.
fn read(body: &[u8]) -> Result<(String, Vec<Sample>), Problem> {
    if body.len() > PUSH_BODY {
        return Err(Problem::TooLarge);
    }
    let object = body.trim_ascii_start().starts_with(b"{");
    let push = object.then(|| serde_json::from_slice::<Push>(body).ok()).flatten();
    let push = push.ok_or(Problem::Body(
        "sessionId, and samples, a list of objects with the numbers t, ax, ay, az, gx, gy, gz, mx, my, mz",
    ))?;
    if push.samples.len() > PUSH {
        return Err(Problem::TooLarge);
    }
    Ok((push.id, push.samples.into_iter().map(Sample::from).collect()))
}

/// A push is refused, or kept as numbers that can be asked about; for tests/fuzz.
#[cfg(fuzzing)]
pub fn fuzz(body: &[u8]) {
    let Ok((_, samples)) = read(body) else { return };
    let mut session = Session::default();
    if session.push(&samples).is_ok() {
        assert!(session.len() <= samples.len() && session.total() == session.len() as u64);
        for need in [1, 10, 100] {
            if let Ok(window) = session.window(need, Some(100.0)) {
                assert_eq!(window.flatten().filter(|v| v.is_finite()).count(), need * AXES);
            }
        }
        if let Ok(told) = together(&session, &session) {
            assert!((-1.0..=1.0).contains(&told.r) && (0.0..=1.0).contains(&told.confidence));
        }
    }
}

/// `PUT /api/v1/analysis/stream`.
pub(crate) fn push(app: &App, req: &Req) -> Reply {
    let taken = read(&req.body).and_then(|(id, samples)| {
        app.sessions.with(&id, StatusCode::BAD_REQUEST, |held| {
            held.of_client()?;
            let taken = held.session.push(&samples)?;
            app.sessions.samples.fetch_add(taken.taken as u64, Relaxed);
            app.sessions.late.fetch_add(taken.late as u64, Relaxed);
            let page = json!({
                "sessionId": name(held.id), "status": "accepted", "taken": taken.taken, "late": taken.late,
                "buffered": held.session.len(), "totalSamples": held.session.total(),
            });
            Ok(Reply::json(StatusCode::ACCEPTED, &page))
        })
    });
    answered(taken)
}

/// `POST /api/v1/analysis/stop`.
pub(crate) fn stop(app: &App, req: &Req) -> Reply {
    let stopped = || {
        let named = req.object::<Named>().ok_or(Problem::Body("sessionId"))?;
        let page = app.sessions.with(&named.id, StatusCode::NOT_FOUND, |held| {
            held.of_client()?;
            let took = (held.begun.elapsed().as_secs_f64() * 1e3).round() / 1e3;
            Ok((
                held.id,
                json!({
                    "sessionId": name(held.id), "status": "stopped", "duration_s": took,
                    "totalSamples": held.session.total(), "timestamp": now(),
                }),
            ))
        })?;
        let mut all = app.sessions.all();
        let before = all.len();
        all.retain(|held| held.id != page.0);
        app.sessions.stopped.fetch_add((before - all.len()) as u64, Relaxed);
        Ok(Reply::json(StatusCode::OK, &page.1))
    };
    answered(stopped())
}

fn session_of(form: &Form) -> Result<String, Problem> {
    let id = form.text("sessionId")?.filter(|id| !id.is_empty());
    id.map(str::to_owned).ok_or(Problem::NoId)
}

/// `GET /api/v1/analysis/synchrony`.
pub(crate) async fn synchrony(app: &App, req: &Req) -> Reply {
    let named = || {
        let form = query::read(req, &["sessionId", "otherSessionId"])?;
        let id = session_of(&form)?;
        let other = form.text("otherSessionId")?.filter(|id| !id.is_empty());
        let (id, first) =
            app.sessions.with(&id, StatusCode::NOT_FOUND, |held| Ok((held.id, held.session.clone())))?;
        let second = match other {
            Some(other) => {
                app.sessions.with(other, StatusCode::NOT_FOUND, |held| Ok(held.session.clone()))?
            }
            None => {
                let all = app.sessions.all();
                let mut others = all.iter().filter(|held| held.id != id && !held.session.is_empty());
                match (others.next(), others.next()) {
                    (Some(only), None) => only.session.clone(),
                    _ => return Err(Problem::Alone),
                }
            }
        };
        Ok((id, first, second))
    };
    let (id, first, second) = match named() {
        Ok(named) => named,
        Err(problem) => return Problem::reply(&problem),
    };
    // Milliseconds of work: health checks shall not wait for it.
    let found = tokio::task::spawn_blocking(move || together(&first, &second)).await;
    let Ok(found) = found else { return refuse(app, &Failure::Lost, Wording::Analysis) };
    answered(found.map_err(Problem::from).map(|told| {
        let rounded = |v: f64| (v * 1e4).round() / 1e4;
        let page = json!({
            "sessionId": name(id), "r": rounded(told.r), "lag_ms": told.lag_ms, "window_ms": told.window_ms,
            "confidence": rounded(told.confidence), "timestamp": now(),
        });
        Reply::json(StatusCode::OK, &page)
    }))
}

/// Why there are no motifs.
enum Unscored {
    Session(Problem),
    Inference(Failure),
}

impl<E: Into<Problem>> From<E> for Unscored {
    fn from(e: E) -> Self {
        Self::Session(e.into())
    }
}

/// `GET /api/v1/analysis/motifs`.
pub(crate) async fn motifs(app: &App, req: &Req) -> Reply {
    let mut model = String::new();
    let (reply, kind) = match score(app, req, &mut model).await {
        Ok(reply) => return reply,
        Err(Unscored::Session(problem)) => {
            let reply = problem.reply();
            let kind = reply.error;
            (reply, kind)
        }
        Err(Unscored::Inference(failure)) => {
            let reply = refuse(app, &failure, Wording::Analysis);
            let kind = reply.error;
            (reply, kind)
        }
    };
    app.metrics.failed(Surface::Infer, &model, kind.unwrap_or("unexpected_error"));
    reply
}

async fn score(app: &App, req: &Req, model_name: &mut String) -> Result<Reply, Unscored> {
    let received = req.received.elapsed();
    let form = query::read(req, &["sessionId", "topK"])?;
    let id = session_of(&form)?;
    let top = form.whole("topK", 1, 64)?.unwrap_or(TOP);
    let failed = Unscored::Inference;
    let (id, session) =
        app.sessions.with(&id, StatusCode::NOT_FOUND, |held| Ok((held.id, held.session.clone())))?;
    let deadline = req.deadline().map_err(|e| failed(e.into()))?;
    let deadline = crate::http::time_left(deadline, req.received).map_err(|e| failed(e.into()))?;
    let Some(model) = app.default_model() else { return Err(failed(crate::infer::no_model(app))) };
    let (manifest, _) = app.imu_plan(&model).map_err(|e| failed(e.into()))?;
    manifest.name.as_str().clone_into(model_name);
    let (mut ticket, plan) = loop {
        // The slot is of the model that will compute, which may be older or newer than the one above.
        let ticket = model.begin(deadline).map_err(|e| failed(e.into()))?;
        if let Some(plan) = app.imu_plan_of(&model, ticket.manifest()).map_err(|e| failed(e.into()))? {
            break (ticket, plan);
        }
    };
    if plan.motif().source() == "none" || plan.channels() != AXES {
        return Err(Problem::NoMotifs.into());
    }
    let begun = Instant::now();
    let rate = ticket.manifest().inputs.first().and_then(|i| i.channels.as_ref()).and_then(|c| c.rate_hz);
    let window: Vec<&[f32; AXES]> = session.window(plan.timesteps(), rate).map_err(Problem::from)?.collect();
    // By the way of every window: one place says which values a sensor can have.
    let body = json!({ "x": window }).to_string();
    let slot = ticket.input_f32_mut(0).ok_or(failed(Failure::Lost))?;
    plan.parse(body.as_bytes(), slot, WindowKey::X, Numbers::Strict).map_err(|e| failed(e.into()))?;
    let parsed = begun.elapsed();
    let outputs = ticket.run().await.map_err(|e| failed(e.into()))?;
    let begun = Instant::now();
    let answer = plan.answer(|i| outputs.output_f32(i)).map_err(|e| failed(e.into()))?;
    let mut scores: Vec<(usize, f32)> = answer.scores().enumerate().collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores.truncate(usize::try_from(top).unwrap_or(1));
    let motifs: Vec<Value> = scores
        .iter()
        .map(|(i, score)| {
            let label = plan.motif().labels().get(*i);
            json!({ "id": format!("m{}", i + 1), "score": score, "description": label })
        })
        .collect();
    #[allow(clippy::cast_precision_loss)] // samples of a window
    let window_ms = rate.map(|hz| (plan.timesteps() as f64 * 1e3 / hz).round());
    let page = json!({
        "sessionId": name(id), "topK": motifs.len(), "motifs": motifs, "timestamp": now(),
        "analysisWindowMs": window_ms,
    });
    let mut reply = Reply::json(StatusCode::OK, &page);
    reply.headers.insert(MOTIF_SOURCE, HeaderValue::from_static(plan.motif().source()));
    let stages = Stages {
        receive: received,
        parse: parsed,
        serialize: begun.elapsed(),
        total: req.received.elapsed(),
    };
    app.metrics.succeeded(Surface::Infer, model_name, stages);
    Ok(reply)
}

/// The numbers of sessions.
#[derive(Debug)]
pub(crate) struct Tally(pub Arc<Sessions>);

impl Collector for Tally {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sessions = &self.0;
        #[allow(clippy::cast_precision_loss)] // at most 32
        let open = sessions.all().len() as f64;
        let mut out = Writer { encoder: &mut encoder };
        out.gauge("imu_sessions", "Sessions of sensors that are open", [(vec![], open)])?;
        for (name, help, count) in [
            ("imu_sessions_started", "Sessions that were started", &sessions.started),
            ("imu_sessions_stopped", "Sessions that were stopped", &sessions.stopped),
            ("imu_sessions_forgotten", "Sessions that nobody named for 10 minutes", &sessions.idle),
            ("imu_session_samples", "Samples that sessions took", &sessions.samples),
            ("imu_session_late_samples", "Samples no later than one that was there", &sessions.late),
        ] {
            out.counter(name, help, [(vec![], count.load(Relaxed))])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_795_369_616, "2026-11-22T17:46:56Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_sessions_name_is_a_uuid_in_letters_of_either_size() {
        let sessions = Sessions::default();
        let id = sessions.start(HERE).unwrap();
        let text = name(id);
        assert_eq!(number(&text), Some(id));
        assert_eq!(number(&text.to_lowercase()), Some(id));
        assert!(text.as_bytes()[14] == b'4' && b"89AB".contains(&text.as_bytes()[19]), "{text}");
        for no in
            ["", "x", "+0000000-0000-4000-8000-000000000000", &text[1..], "00000000000000000000000000000000"]
        {
            assert_eq!(number(no), None, "{no}");
        }
    }

    #[test]
    fn places_are_few_and_what_nobody_names_gives_its_own_back() {
        let sessions = Sessions::default();
        let all: Vec<u128> = (0..SESSIONS).map(|_| sessions.start(HERE).unwrap()).collect();
        assert!(matches!(sessions.start(HERE), Err(Problem::Full(wait)) if wait <= IDLE));
        let Some(long_ago) = Instant::now().checked_sub(IDLE) else { return };
        sessions.all.lock().unwrap()[3].named = long_ago;
        sessions.start(HERE).unwrap();
        assert_eq!(sessions.idle.load(Relaxed), 1);
        let gone = sessions.with(&name(all[3]), StatusCode::NOT_FOUND, |_| Ok(()));
        assert!(matches!(gone, Err(Problem::Unknown(StatusCode::NOT_FOUND))));
        assert!(sessions.with(&name(all[4]), StatusCode::NOT_FOUND, |_| Ok(())).is_ok());
    }

    #[test]
    fn a_client_of_the_network_has_its_share_of_the_places() {
        let sessions = Sessions::default();
        let (one, same, other) = ("2001:db8::1", "2001:db8::2", "192.0.2.7");
        let start = |from: &str| sessions.start(from.parse().unwrap());
        let first: Vec<u128> = (0..SESSIONS_PER_CLIENT).map(|_| start(one).unwrap()).collect();
        assert!(matches!(start(same), Err(Problem::Full(wait)) if wait <= IDLE));
        start(other).unwrap();
        let begun = sessions.all().len();
        for _ in begun..SESSIONS {
            start("::1").unwrap();
        }
        sessions.all().retain(|held| held.id != first[0]);
        start(same).unwrap();
    }

    #[test]
    fn a_push_is_read_as_clients_send_it_and_no_larger_than_is_kept() {
        let sample =
            r#"{"t":1,"ax":0.1,"ay":0,"az":9.8,"gx":0,"gy":0,"gz":0,"mx":20,"my":0,"mz":4e1,"more":true}"#;
        let push = |samples: &str| {
            format!(r#"{{"sessionId":"a","samples":[{samples}],"windowStart":1,"windowEnd":"x"}}"#)
        };
        let (id, samples) = read(push(sample).as_bytes()).unwrap();
        assert_eq!((id.as_str(), samples.len(), samples[0].values[8]), ("a", 1, 40.0));
        for body in [
            "",
            "[]",
            "{}",
            "{\"sessionId\":1,\"samples\":[]}",
            &push("{\"t\":1}"),
            &push("[1,1,1,1,1,1,1,1,1,1,1]"),
        ] {
            assert!(matches!(read(body.as_bytes()), Err(Problem::Body(_))) || body.contains("[[1"), "{body}");
        }
        let many = vec![sample; PUSH + 1].join(",");
        assert!(matches!(read(push(&many).as_bytes()), Err(Problem::TooLarge)));
    }
}
