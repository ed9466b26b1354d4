//! `POST /infer/stream`: what a source's windows are recognised as, as server-sent events; `GET /infer/stream`: the same as the messages
//! of a WebSocket; `GET /infer/stream/stats`.
//!
//! The wire is the EMG service's, for its clients run unmodified: every event is exactly `data: {json}` and an empty line, in a
//! write of its own; heartbeats are comments; one event says that it is completed; whatever can be known before the 200 is a
//! status. A client that names the last event it has (`Last-Event-ID`, the `window` of an event) gets what it missed, and every
//! event has an `id:` then.
//!
//! A WebSocket (`socket.rs`) has the fields of the form as its query, and `last_event_id`; a name that is none of them is a mistake there,
//! since it can be nothing else. Each message is one event's JSON; pings are its heartbeats.
//!
//! **Pace.** Frame `n` is due at the start plus `n / fps`, whatever came before; what is sent is the newest prediction by then.
//! A frame for which there was none in time is late and counted, and no two are sent at once to make up for it. Predictions are
//! made once per window and source (`sources.rs`), so that a client costs a few writes, and one that is gone ends its task at once.
//! A frame for which a slow client has no room waits, and gives way to the next one: what it reads then is the newest, and `skipped`
//! says how many gave way (counted; the `frame` numbers show it too).

use crate::http::Stream;
use crate::infer::{Failure, Wording, refuse};
use crate::metrics::live::Writer;
use crate::sources::{self, Live, Prediction, pick, seconds, unfiltered};
use crate::{App, Reply, Req, emg, limits, query, rate, socket};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};
use inferd_model::EngineKind;
use inferd_sources::live::{MAX_SEQUENCE, State};
use inferd_sources::pace::Rate;
use inferd_tasks::emg::gate;
use inferd_tasks::form::{Form, FormError};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

/// Says why TensorRT does not answer although it was asked for.
const FALLBACK: HeaderName = HeaderName::from_static("x-inferd-fallback");
/// The most frames a second: faster than a display, and than a hop of 8 ms.
const MOST_FPS: i64 = 120;
/// The fields of its form.
const FIELDS: &[&str] = &["duration_seconds", "use_tensorrt", "fps", "preprocess", "emg_mode", "model_type"];
/// Those of the query of a WebSocket.
const SOCKET_FIELDS: &[&str] =
    &["duration_seconds", "use_tensorrt", "fps", "preprocess", "emg_mode", "model_type", "last_event_id"];
/// Where there is nothing to stream from.
pub(crate) const NO_SOURCE: &str = "there is no source on this device: name one in its settings";
/// How often a stream looks how its source is.
const LOOK: Duration = Duration::from_millis(200);
/// How long the last event waits for a client that does not read.
const LAST: Duration = Duration::from_secs(5);
/// Samples that come and are not recognised for so long are told to the client.
const UNRECOGNISED: Duration = Duration::from_secs(1);
/// The longest form: its fields are six short ones.
const FORM: usize = 16 * 1024;
/// Latencies that percentiles are of.
const RECENT: usize = 1024;

/// What all streams of a daemon count, and what predictions took.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    clients: AtomicUsize,
    pub(crate) sample_clients: AtomicUsize,
    pub(crate) samples_dropped: AtomicU64,
    frames: AtomicU64,
    late: AtomicU64,
    missed: AtomicU64,
    latencies: Mutex<VecDeque<f64>>,
}

impl Counts {
    /// What one prediction took in the queue and computing; each is counted once, whoever listens.
    pub(crate) fn took(&self, latency: Duration) {
        let mut recent = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(latency.as_secs_f64() * 1e3);
    }
}

/// One client more, for as long as this is kept.
pub(crate) struct Counted {
    counts: Arc<Counts>,
    of: fn(&Counts) -> &AtomicUsize,
}

impl Counted {
    pub(crate) fn new(app: &App, of: fn(&Counts) -> &AtomicUsize) -> Self {
        of(&app.stream_counts).fetch_add(1, Relaxed);
        Self { counts: Arc::clone(&app.stream_counts), of }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.of)(&self.counts).fetch_sub(1, Relaxed);
    }
}

/// Places of those who stream: so many of all, and no more of one client.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    each: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A place that is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    client: IpAddr,
    _one: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, taken: Mutex::default() }
    }

    /// A place for this client. This machine may have all: what is on it is told apart by nobody, as with connections.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> Result<Place, Failure> {
        let client = rate::network(client);
        // Whole after every change.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !client.is_loopback() && taken.get(&client).is_some_and(|n| *n >= self.each) {
            return Err(Failure::Greedy);
        }
        let one = self.all.clone().try_acquire_owned().map_err(|_| Failure::Crowded)?;
        *taken.entry(client).or_default() += 1;
        Ok(Place { places: Arc::clone(self), client, _one: one })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = taken.get_mut(&self.client) {
            *n -= 1;
            if *n == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

/// What a client asks for.
#[derive(Debug)]
struct Wish {
    duration: Option<Duration>,
    fps: i64,
    preprocess: bool,
    resume: Option<Option<u64>>,
}

impl Wish {
    fn of(form: &Form, resume: Option<Option<u64>>) -> Result<Self, FormError> {
        let duration = match form.number_or_null("duration_seconds")?.flatten() {
            None => None,
            Some(s) if s > 0.0 && s <= 1e7 => Some(Duration::from_secs_f64(s)),
            Some(_) => {
                let why = "Input should be greater than 0 and at most 10000000, or null";
                return Err(FormError::field("duration_seconds", "greater_than", why));
            }
        };
        Ok(Self {
            duration,
            fps: form.whole("fps", 1, MOST_FPS)?.unwrap_or(30),
            preprocess: form.truth("preprocess")?.unwrap_or(true),
            resume,
        })
    }
}

/// `POST /infer/stream`.
pub(crate) fn stream(app: &Arc<App>, req: &Req) -> Reply {
    match begin(app, req) {
        Ok(reply) => reply,
        Err(failure) => refuse(app, &failure, Wording::Infer),
    }
}

fn begin(app: &Arc<App>, req: &Req) -> Result<Reply, Failure> {
    if req.body.len() > FORM {
        let detail = "the form of a stream is much shorter";
        return Ok(Reply::refusal(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail, true));
    }
    // Empty: from now on, with ids.
    let resume = req.headers.get("last-event-id").map(|v| v.to_str().ok().and_then(|v| v.parse().ok()));
    let opened = open(app, req, &Form::read(&req.body, FIELDS)?, resume, Wire::Events)?;
    let mut reply =
        Reply::streamed("text/event-stream; charset=utf-8", Stream::new(opened.pieces, opened.place))
            .with(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))
            // Proxies that buffer answers would keep events back.
            .with(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if opened.falls_back {
        reply.headers.insert(FALLBACK, HeaderValue::from_static("TensorRT runtime not available"));
    }
    Ok(reply)
}

/// `GET /infer/stream`: a WebSocket.
pub(crate) fn socket(app: &Arc<App>, req: &Req) -> Reply {
    socket::answer(app, req, || {
        let opened = query::read(req, SOCKET_FIELDS).map_err(Failure::from).and_then(|form| {
            let most = i64::try_from(MAX_SEQUENCE).unwrap_or(i64::MAX);
            let after = form.whole("last_event_id", 0, most)?;
            open(app, req, &form, after.map(|n| u64::try_from(n).ok()), Wire::Socket)
        });
        match opened {
            Ok(opened) => Ok((opened.pieces, opened.place)),
            Err(failure) => Err(refuse(app, &failure, Wording::Infer)),
        }
    })
}

/// A stream that has begun.
struct Opened {
    pieces: mpsc::Receiver<Bytes>,
    place: Place,
    /// TensorRT was asked for, and does not answer.
    falls_back: bool,
}

/// Begins a stream, unless something is wrong with what is asked for.
fn open(
    app: &Arc<App>,
    req: &Req,
    form: &Form,
    resume: Option<Option<u64>>,
    wire: Wire,
) -> Result<Opened, Failure> {
    let wish = Wish::of(form, resume)?;
    let tensorrt = form.truth("use_tensorrt")?.unwrap_or(false);
    let mode = form.text("emg_mode")?;
    if mode.is_none() && app.sources.get().is_none_or(Vec::is_empty) {
        return Err(Failure::Source(NO_SOURCE.to_owned()));
    }
    let wanted = form.text("model_type")?.map(|_| emg::choose(app, form)).transpose()?;
    let wanted = wanted.map(|model| model.manifest());
    let wanted = wanted.as_ref().map(|manifest| manifest.name.as_str());
    let live = Arc::clone(pick(app, mode, wanted)?);
    let model = live.model(app);
    let model = model.ok_or_else(|| Failure::Source(format!("source {} has no model", live.name())))?;
    if wanted.is_some_and(|wanted| wanted != model.manifest().name.as_str()) {
        let why = format!("Value error, the windows of source {} go to another model", live.name());
        return Err(FormError::field("model_type", "value_error", why).into());
    }
    let view = live.source.view();
    if !matches!(view.state, State::Live | State::Starting) {
        return Err(Failure::Source(format!("source {}: {}", live.name(), view.reason)));
    }
    if let (false, Some((_, plan))) = (wish.preprocess, live.plan()) {
        unfiltered(&plan)?;
    }
    let place = app.streams.take(req.peer.ip())?;
    let on_tensorrt = emg::serves_on(&model, EngineKind::Tensorrt);
    // One: what is not taken gives way to what is newer, and no event ever shares a write with another.
    let (tell, pieces) = mpsc::channel(1);
    tokio::spawn(Producer::new(Arc::clone(app), live, wish, wire, tell).run());
    Ok(Opened { pieces, place, falls_back: tensorrt && !on_tensorrt })
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// Server-sent events.
    Events,
    /// The messages of a WebSocket, which has heartbeats of its own.
    Socket,
}

/// Why a stream ends.
enum End {
    /// The client is gone: there is nobody to tell.
    Silent,
    /// Time is over, or the source.
    Completed,
    /// The daemon ends: what can be told at once is told.
    Ending,
}

/// One client's stream.
struct Producer {
    app: Arc<App>,
    live: Arc<Live>,
    wish: Wish,
    wire: Wire,
    pieces: mpsc::Sender<Bytes>,
    rate: Rate,
    start: Instant,
    /// The next place on the grid of frames.
    due: u64,
    /// Frames that were made, and of those the sent ones.
    frame: u64,
    sent: u64,
    /// Frames that gave way to newer ones since the last one that was sent.
    skipped: u64,
    /// When something was last recognised, or the stream began.
    heard: Instant,
    told: Told,
    /// And of what may be acted on.
    gate: gate::State,
    _counted: Counted,
}

/// A frame that is due, and has no room yet.
struct Frame {
    number: u64,
    /// What is told, or why nothing is.
    told: Result<Arc<Prediction>, String>,
}

/// What a client was last told of how the source does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Well,
    /// No samples worth the name come.
    Source(State),
    /// Samples come, and no model recognises them.
    Unrecognised,
}

impl Producer {
    fn new(app: Arc<App>, live: Arc<Live>, wish: Wish, wire: Wire, pieces: mpsc::Sender<Bytes>) -> Self {
        #[allow(clippy::cast_precision_loss)] // at most 120
        let rate = Rate::from_hz(wish.fps as f64).expect("1 to 120 a second can be paced");
        Self {
            _counted: Counted::new(&app, |counts| &counts.clients),
            app,
            live,
            wish,
            wire,
            pieces,
            rate,
            start: Instant::now(),
            due: 0,
            frame: 0,
            sent: 0,
            skipped: 0,
            heard: Instant::now(),
            told: Told::Well,
            gate: gate::State::Released,
        }
    }

    async fn run(mut self) {
        match self.frames().await {
            End::Silent => {}
            End::Completed => {
                let _ = tokio::time::timeout(LAST, self.pieces.send(self.completed())).await;
            }
            End::Ending => {
                let _ = self.pieces.try_send(self.completed());
            }
        }
    }

    fn completed(&self) -> Bytes {
        let took = self.start.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // frames of one client
        let fps = if took > 0.0 { self.sent as f64 / took } else { 0.0 };
        let event = json!({
            "status": "completed",
            "total_frames": self.sent,
            "duration_seconds": (took * 1e3).round() / 1e3,
            "avg_fps": (fps * 1e2).round() / 1e2,
        });
        self.written(&event, None)
    }

    /// When the frame at a place of the grid is due.
    fn at(&self, place: u64) -> Instant {
        self.start + Duration::from_micros(self.rate.offset(place).0)
    }

    async fn frames(&mut self) -> End {
        let after = self.wish.resume.flatten();
        let (missed, mut events) = self.live.listen(after);
        let mut ending = self.app.ending.subscribe();
        for prediction in missed {
            // Not paced, and waited for: the client asked for exactly these.
            let event = self.event(&prediction, self.frame);
            if self.pieces.send(event).await.is_err() {
                return End::Silent;
            }
            self.count_sent();
            self.frame += 1;
        }
        let end = self.wish.duration.map(|d| self.start + d);
        let mut newest: Option<Arc<Prediction>> = None;
        let mut waiting: Option<Frame> = None;
        let room = self.pieces.clone();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut quiet_since = Instant::now();
        loop {
            let mut due = None;
            tokio::select! {
                biased;
                () = self.pieces.closed() => return End::Silent,
                _ = ending.wait_for(|ending| *ending) => return End::Ending,
                () = sleep_until(end.unwrap_or(self.start)), if end.is_some() => return End::Completed,
                permit = room.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                    (Ok(permit), Some(frame)) => {
                        permit.send(self.sent(&frame));
                        quiet_since = Instant::now();
                    }
                    _ => return End::Silent,
                },
                () = sleep_until(self.at(self.due)), if newest.is_some() => due = newest.take(),
                event = events.recv() => match event {
                    Ok(prediction) => (newest, self.heard) = (Some(prediction), Instant::now()),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return End::Completed,
                },
                _ = look.tick() => {
                    if let Some(end) = self.look(&mut quiet_since) {
                        return end;
                    }
                }
            }
            if let Some(prediction) = due {
                let frame = self.made(prediction).await;
                if waiting.replace(frame).is_some() {
                    // The one before has found no room: this client does not keep up, and is told what is new.
                    self.skipped += 1;
                    self.app.stream_counts.missed.fetch_add(1, Relaxed);
                }
            }
        }
    }

    /// The event of a frame that has room now.
    fn sent(&mut self, frame: &Frame) -> Bytes {
        match &frame.told {
            Ok(prediction) => {
                let event = self.event(prediction, frame.number);
                self.count_sent();
                // One that was on its way when the source went would be taken for a source that is well again.
                self.told = Told::Well;
                event
            }
            Err(why) => self.error(why),
        }
    }

    /// Makes a frame, and finds the next place on the grid that lies ahead.
    async fn made(&mut self, prediction: Arc<Prediction>) -> Frame {
        let told = if self.wish.preprocess {
            Ok(prediction)
        } else {
            self.raw(prediction.number).await.map(Arc::new).map_err(|why| why.to_string())
        };
        let number = self.frame;
        self.frame += 1;
        let elapsed = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let passed = self.rate.due(inferd_sources::Micros(elapsed));
        let next = passed.max(self.due + 1);
        self.app.stream_counts.late.fetch_add(next - self.due - 1, Relaxed);
        self.due = next;
        Frame { number, told }
    }

    /// The newest window of the source, by the model as it is.
    async fn raw(&self, number: u64) -> Result<Prediction, Failure> {
        let model = self.live.model(&self.app).ok_or(Failure::Lost)?;
        let mut ticket = model.begin(None)?;
        let plan = sources::newest(&self.app, Some(self.live.name()), &mut ticket, false)?;
        Ok(sources::infer(&plan, ticket, false).await?.told(number, self.live.command()))
    }

    fn count_sent(&mut self) {
        (self.sent, self.skipped) = (self.sent + 1, 0);
        self.app.stream_counts.frames.fetch_add(1, Relaxed);
    }

    fn event(&self, prediction: &Prediction, frame: u64) -> Bytes {
        let mut event = prediction.fields();
        if let Value::Object(event) = &mut event {
            event.insert("frame".to_owned(), json!(frame));
            event.insert("skipped".to_owned(), json!(self.skipped));
            event.insert("status".to_owned(), json!("running"));
            event.insert("cpu_percent".to_owned(), json!((self.app.cpu.percent() * 10.0).round() / 10.0));
            let [samples, channels] = prediction.window;
            event.insert("emg_tensor_shape".to_owned(), json!([1, samples, channels]));
            event.insert("source".to_owned(), json!(self.live.name()));
            event.insert("model".to_owned(), json!(prediction.model));
        }
        self.written(&event, self.wish.resume.map(|_| prediction.number))
    }

    fn error(&self, why: &str) -> Bytes {
        let mut event = json!({ "error": why, "timestamp": seconds(SystemTime::now()), "frame": self.frame });
        if let Value::Object(event) = &mut event {
            self.live.command().add_to(event);
        }
        self.written(&event, None)
    }

    /// An event: nothing but its data, unless the client counts events.
    fn written(&self, event: &Value, id: Option<u64>) -> Bytes {
        match (self.wire, id) {
            (Wire::Socket, _) => event.to_string().into(),
            (Wire::Events, None) => format!("data: {event}\n\n").into(),
            (Wire::Events, Some(id)) => format!("id: {id}\ndata: {event}\n\n").into(),
        }
    }

    /// Tells that the source is not well any more, or that nothing recognises it, once; a comment when nothing else was told
    /// for long.
    fn look(&mut self, quiet_since: &mut Instant) -> Option<End> {
        let view = self.live.source.view();
        if view.state == State::Over {
            return Some(End::Completed);
        }
        let problem = self.live.problem();
        let (now, why) = if !matches!(view.state, State::Live | State::Starting) {
            (Told::Source(view.state), view.reason)
        } else if !problem.is_empty() && self.heard.elapsed() > UNRECOGNISED {
            (Told::Unrecognised, problem)
        } else if view.state == State::Live && self.heard.elapsed() > UNRECOGNISED + self.live.three_windows()
        {
            let why = "samples come, and no whole window of them";
            let because = if view.reason.is_empty() { String::new() } else { format!(": {}", view.reason) };
            (Told::Unrecognised, format!("{why}{because}"))
        } else {
            (Told::Well, String::new())
        };
        // Who moves something is told when the command ends, too.
        let gate = self.live.command().view.state;
        let let_go = gate == gate::State::Released && gate != self.gate;
        let event = if now != Told::Well && (now != self.told || let_go) {
            self.error(&format!("source {}: {why}", self.live.name()))
        } else if self.wire == Wire::Events && quiet_since.elapsed() >= limits::HEARTBEAT {
            Bytes::from_static(b": here\n\n")
        } else {
            (self.told, self.gate) = (now, gate);
            return None;
        };
        // What could not be told now is told at the next look.
        if self.pieces.try_send(event).is_ok() {
            (*quiet_since, self.told, self.gate) = (Instant::now(), now, gate);
        }
        None
    }
}

/// `GET /infer/stream/stats`: the EMG service's fields, measured; null is not known.
pub(crate) fn stats(app: &App) -> Reply {
    let live = app.sources.get().and_then(|all| all.first());
    let plan = live.and_then(|l| l.plan()).map(|(_, plan)| plan);
    let model = emg::models(app).next();
    let plan =
        plan.or_else(|| inferd_tasks::emg::EmgPlan::new(&model.as_ref()?.manifest()).ok().map(Arc::new));
    let counts = &app.stream_counts;
    let mut recent: Vec<f64> =
        counts.latencies.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    recent.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss)] // at most 1024
    let mean = (!recent.is_empty()).then(|| recent.iter().sum::<f64>() / recent.len() as f64);
    let rounded = |v: f64| (v * 1e3).round() / 1e3;
    // The least value that so many percent do not exceed.
    let percentile = |p: usize| recent.get((recent.len() * p).div_ceil(100).max(1) - 1).copied().map(rounded);
    Reply::json(
        StatusCode::OK,
        &json!({
            "tensorrt_available": emg::models(app).any(|m| emg::serves_on(&m, EngineKind::Tensorrt)),
            "emg_mode": live.map(|l| l.mode()),
            "gate": live.map(|l| l.gate()),
            "emg_window_size": plan.as_ref().map(|p| p.timesteps()),
            "emg_channels": plan.as_ref().map(|p| p.channels()),
            "emg_sampling_rate": plan.as_ref().and_then(|p| p.rate_hz()),
            // One at a time, at the mean of what was measured.
            "max_throughput_qps": mean.filter(|ms| *ms > 0.0).map(|ms| rounded(1e3 / ms)),
            "expected_latency_ms": mean.map(rounded),
            "latency_ms": { "samples": recent.len(), "p50": percentile(50), "p95": percentile(95), "p99": percentile(99) },
            "clients": counts.clients.load(Relaxed),
            "frames_sent": counts.frames.load(Relaxed),
            "frames_late": counts.late.load(Relaxed),
            "frames_missed": counts.missed.load(Relaxed),
            "sample_clients": counts.sample_clients.load(Relaxed),
            "samples_dropped": counts.samples_dropped.load(Relaxed),
        }),
    )
}

/// The numbers of streams.
#[derive(Debug)]
pub(crate) struct Numbers(pub Arc<Counts>);

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer { encoder: &mut encoder };
        #[allow(clippy::cast_precision_loss)] // at most 64
        let clients = self.0.clients.load(Relaxed) as f64;
        out.gauge("emg_stream_clients", "Clients of /infer/stream", [(vec![], clients)])?;
        #[allow(clippy::cast_precision_loss)] // at most 64
        let readers = self.0.sample_clients.load(Relaxed) as f64;
        out.gauge("emg_sample_clients", "Clients of /emg/stream", [(vec![], readers)])?;
        let counts = [
            (
                "emg_dropped_samples",
                "Samples a client of /emg/stream was too slow for",
                &self.0.samples_dropped,
            ),
            ("emg_stream_frames", "Frames handed to clients of /infer/stream", &self.0.frames),
            ("emg_stream_late_frames", "Frames for which there was no new prediction in time", &self.0.late),
            ("emg_stream_missed_frames", "Frames a client was too slow for", &self.0.missed),
        ];
        for (name, help, count) in counts {
            out.counter(name, help, [(vec![], count.load(Relaxed))])?;
        }
        Ok(())
    }
}
