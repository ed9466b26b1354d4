//! From a request to the handler that answers it.

use crate::access::{Denied, Need, Who};
use crate::body::{self, BodyError, Upload};
use crate::http::{Outgoing, X_REQUEST_ID};
use crate::outgoing::{Asked, preflight};
use crate::serve::Connection;
use crate::{
    App, Reply, Req, RequestId, Surface, actuators, alive, analysis, benchmarks, calibrations, dashboard,
    docs, emg, health, infer, monitoring, oip, records, samples, sources, status, stream, updates,
};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What answers a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Route {
    Root,
    Dashboard,
    Healthz,
    Livez,
    Readyz,
    Health,
    Performance,
    Monitoring,
    Alerts,
    AlertEvents,
    AlertRules,
    Infer,
    InferOn,
    InferStream,
    StreamSocket,
    StreamStats,
    SampleSocket,
    Sources,
    PushSamples,
    Calibrations,
    BeginCalibration,
    Calibration,
    EndCalibration,
    RecordGesture,
    FitCalibration,
    InstallCalibration,
    UndoCalibration,
    Actuators,
    StopActuator,
    StartActuator,
    Encode,
    Analysis,
    StartSession,
    StreamSamples,
    Motifs,
    Synchrony,
    StopSession,
    Test,
    Status,
    Contract,
    Metrics,
    OpenApi,
    Docs,
    Redoc,
    CommitReady,
    Slots,
    Bundle,
    /// A streamed body: its own path through [`answer`].
    Push,
    Events,
    Rollback,
    TrySystem,
    Trust,
    Pull,
    EndPull,
    Logging,
    SetLogging,
    History,
    LeaveSafeMode,
    Reboot,
    FactoryReset,
    WatchdogTest,
    Telemetry,
    TelemetryFile,
    QuickBenchmark,
    Benchmarks,
    AddBenchmark,
    Benchmark,
    EndBenchmark,
    BenchmarkReport,
    Captures,
    CaptureFile,
    DropCaptures,
    DropCapture,
    /// Everything under `/v2`.
    Oip,
}

/// How a path may be asked. `GET` includes `HEAD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

impl Verb {
    fn takes(self, method: &Method) -> bool {
        match self {
            Self::Get => *method == Method::GET || *method == Method::HEAD,
            Self::Post => *method == Method::POST,
            Self::Put => *method == Method::PUT,
            Self::Delete => *method == Method::DELETE,
        }
    }

    /// As `Allow` names it.
    fn words(self) -> &'static str {
        match self {
            Self::Get => "GET, HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// Every path outside `/v2`, and what it needs of who asks. Under `/v2` that is said by `oip::needs`.
pub(crate) const ROUTES: &[(&str, Verb, Need, Route)] = &[
    ("/", Verb::Get, Need::Read, Route::Root),
    ("/dashboard", Verb::Get, Need::Nothing, Route::Dashboard),
    ("/healthz", Verb::Get, Need::Nothing, Route::Healthz),
    ("/livez", Verb::Get, Need::Nothing, Route::Livez),
    ("/readyz", Verb::Get, Need::Nothing, Route::Readyz),
    ("/health", Verb::Get, Need::Read, Route::Health),
    ("/infer", Verb::Post, Need::Infer, Route::Infer),
    ("/infer/infer", Verb::Post, Need::Infer, Route::Infer),
    ("/infer/stream", Verb::Post, Need::Infer, Route::InferStream),
    ("/infer/stream", Verb::Get, Need::Infer, Route::StreamSocket),
    ("/emg/stream", Verb::Get, Need::Read, Route::SampleSocket),
    ("/infer/stream/stats", Verb::Get, Need::Read, Route::StreamStats),
    ("/infer/{engine}", Verb::Post, Need::Infer, Route::InferOn),
    ("/encode", Verb::Post, Need::Infer, Route::Encode),
    ("/api/v1/analysis/infer", Verb::Post, Need::Infer, Route::Analysis),
    ("/api/v1/analysis/start", Verb::Post, Need::Infer, Route::StartSession),
    ("/api/v1/analysis/stream", Verb::Put, Need::Infer, Route::StreamSamples),
    ("/api/v1/analysis/motifs", Verb::Get, Need::Infer, Route::Motifs),
    ("/api/v1/analysis/synchrony", Verb::Get, Need::Infer, Route::Synchrony),
    ("/api/v1/analysis/stop", Verb::Post, Need::Infer, Route::StopSession),
    ("/test", Verb::Post, Need::Infer, Route::Test),
    ("/status", Verb::Get, Need::Read, Route::Status),
    ("/contract", Verb::Get, Need::Read, Route::Contract),
    ("/metrics", Verb::Get, Need::Read, Route::Metrics),
    ("/openapi.json", Verb::Get, Need::Read, Route::OpenApi),
    ("/docs", Verb::Get, Need::Read, Route::Docs),
    ("/redoc", Verb::Get, Need::Read, Route::Redoc),
    ("/commit-ready", Verb::Get, Need::Read, Route::CommitReady),
    ("/health/performance", Verb::Get, Need::Read, Route::Performance),
    ("/api/v1/monitoring/status", Verb::Get, Need::Read, Route::Monitoring),
    ("/api/v1/alerts", Verb::Get, Need::Read, Route::Alerts),
    ("/api/v1/alerts/events", Verb::Get, Need::Read, Route::AlertEvents),
    ("/alert_rules.yml", Verb::Get, Need::Read, Route::AlertRules),
    ("/api/v1/slots", Verb::Get, Need::Read, Route::Slots),
    ("/api/v1/bundle", Verb::Get, Need::Read, Route::Bundle),
    ("/api/v1/bundle", Verb::Put, Need::Administer, Route::Push),
    ("/api/v1/events", Verb::Get, Need::Read, Route::Events),
    ("/api/v1/rollback", Verb::Post, Need::Administer, Route::Rollback),
    ("/api/v1/system/try", Verb::Post, Need::Operate, Route::TrySystem),
    ("/api/v1/trust", Verb::Post, Need::Administer, Route::Trust),
    ("/api/v1/pull", Verb::Post, Need::Administer, Route::Pull),
    ("/api/v1/pull", Verb::Delete, Need::Administer, Route::EndPull),
    ("/api/v1/sources", Verb::Get, Need::Read, Route::Sources),
    ("/api/v1/sources/{name}/samples", Verb::Post, Need::Infer, Route::PushSamples),
    ("/api/v1/calibrations", Verb::Get, Need::Read, Route::Calibrations),
    ("/api/v1/calibrations", Verb::Post, Need::Operate, Route::BeginCalibration),
    ("/api/v1/calibrations/undo", Verb::Post, Need::Operate, Route::UndoCalibration),
    ("/api/v1/calibrations/{id}", Verb::Get, Need::Read, Route::Calibration),
    ("/api/v1/calibrations/{id}", Verb::Delete, Need::Operate, Route::EndCalibration),
    ("/api/v1/calibrations/{id}/record", Verb::Post, Need::Operate, Route::RecordGesture),
    ("/api/v1/calibrations/{id}/fit", Verb::Post, Need::Operate, Route::FitCalibration),
    ("/api/v1/calibrations/{id}/install", Verb::Post, Need::Operate, Route::InstallCalibration),
    ("/api/v1/actuators", Verb::Get, Need::Read, Route::Actuators),
    ("/api/v1/actuators/{name}/stop", Verb::Post, Need::Operate, Route::StopActuator),
    ("/api/v1/actuators/{name}/start", Verb::Post, Need::Operate, Route::StartActuator),
    ("/api/v1/logging", Verb::Get, Need::Read, Route::Logging),
    ("/api/v1/logging", Verb::Put, Need::Operate, Route::SetLogging),
    ("/api/v1/history", Verb::Get, Need::Read, Route::History),
    ("/benchmark", Verb::Post, Need::Operate, Route::QuickBenchmark),
    ("/api/v1/benchmarks", Verb::Get, Need::Read, Route::Benchmarks),
    ("/api/v1/benchmarks", Verb::Post, Need::Operate, Route::AddBenchmark),
    ("/api/v1/benchmarks/{id}", Verb::Get, Need::Read, Route::Benchmark),
    ("/api/v1/benchmarks/{id}", Verb::Delete, Need::Operate, Route::EndBenchmark),
    ("/api/v1/benchmarks/{id}/report", Verb::Get, Need::Read, Route::BenchmarkReport),
    ("/api/v1/safe-mode/leave", Verb::Post, Need::Administer, Route::LeaveSafeMode),
    ("/api/v1/reboot", Verb::Post, Need::Administer, Route::Reboot),
    ("/api/v1/factory-reset", Verb::Post, Need::Administer, Route::FactoryReset),
    ("/api/v1/watchdog/test", Verb::Post, Need::Administer, Route::WatchdogTest),
    ("/api/v1/telemetry", Verb::Get, Need::Read, Route::Telemetry),
    ("/api/v1/telemetry/{file}", Verb::Get, Need::Read, Route::TelemetryFile),
    // What somebody did is in them: a viewer does not get them.
    ("/api/v1/captures", Verb::Get, Need::Administer, Route::Captures),
    ("/api/v1/captures", Verb::Delete, Need::Administer, Route::DropCaptures),
    ("/api/v1/captures/{file}", Verb::Get, Need::Administer, Route::CaptureFile),
    ("/api/v1/captures/{file}", Verb::Delete, Need::Administer, Route::DropCapture),
];

/// The paths of the Open Inference Protocol, for metrics: a label must not repeat what a client invents.
pub(crate) const OIP_PATHS: &[&str] = &[
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/stats",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/config",
    "/v2/models/{model}/stats",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/ready",
    "/v2/models/{model}/versions/{version}/config",
    "/v2/models/{model}/versions/{version}/stats",
    "/v2/models/{model}/versions/{version}/infer",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
];

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    route: Route,
    /// The path's pattern, for metrics.
    endpoint: &'static str,
    need: Need,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// No such path.
    Path,
    /// The path exists without its trailing slash.
    Slash(&'static str),
    /// The path exists for other methods.
    Method(&'static str),
}

fn find(method: &Method, path: &str) -> Result<Target, Lost> {
    if path == "/v2" || path.starts_with("/v2/") {
        return Ok(Target { route: Route::Oip, endpoint: oip_endpoint(path), need: oip::needs(path) });
    }
    let mut known = None;
    for &(endpoint, verb, need, route) in ROUTES {
        if fits(endpoint, path) {
            if verb.takes(method) {
                return Ok(Target { route, endpoint, need });
            }
            known = Some(endpoint);
        }
    }
    Err(match known {
        Some(endpoint) => Lost::Method(endpoint),
        None => {
            let short = path.strip_suffix('/');
            let found = short.and_then(|short| ROUTES.iter().find(|(p, ..)| *p == short));
            found.map_or(Lost::Path, |(p, ..)| Lost::Slash(p))
        }
    })
}

/// Whether a path follows a pattern: `{name}` stands for one segment that is not empty.
fn fits(pattern: &str, path: &str) -> bool {
    if !pattern.contains('{') {
        return pattern == path;
    }
    let mut have = path.split('/');
    pattern.split('/').all(|p| have.next().is_some_and(|h| p == h || (p.starts_with('{') && !h.is_empty())))
        && have.next().is_none()
}

/// The pattern a path under `/v2` follows.
fn oip_endpoint(path: &str) -> &'static str {
    let path = path.trim_end_matches('/');
    OIP_PATHS.iter().find(|pattern| fits(pattern, path)).copied().unwrap_or("/v2/*")
}

/// The inference wording a target speaks, if it is one: its refusals count as failed inferences.
fn surface(target: Target) -> Option<Surface> {
    match target.route {
        Route::Infer | Route::Analysis | Route::Motifs => Some(Surface::Infer),
        Route::InferOn | Route::InferStream | Route::StreamSocket => Some(Surface::Emg),
        Route::Encode => Some(Surface::Encode),
        Route::Oip if target.endpoint.ends_with("/infer") => Some(Surface::Oip),
        _ => None,
    }
}

/// Answers one request. Every log line that is written meanwhile in this task carries its id.
pub(crate) async fn answer(
    app: &Arc<App>,
    request: Request<Incoming>,
    peer: SocketAddr,
    connection: &Connection,
) -> Response<Outgoing> {
    let id = RequestId::from_headers(request.headers());
    records::IN_HAND.scope(id.clone(), answer_as(app, request, peer, connection, id)).await
}

async fn answer_as(
    app: &Arc<App>,
    request: Request<Incoming>,
    peer: SocketAddr,
    connection: &Connection,
    id: RequestId,
) -> Response<Outgoing> {
    let received = Instant::now();
    let (head, body) = request.into_parts();
    let asked = Asked::of(&head.headers);
    let found = match dashboard::is_asked(&head.method, head.uri.path(), &head.headers) {
        true => find(&head.method, "/dashboard"),
        false => find(&head.method, head.uri.path()),
    };
    let endpoint = match found {
        Ok(t) => t.endpoint,
        Err(Lost::Method(endpoint) | Lost::Slash(endpoint)) => endpoint,
        Err(Lost::Path) => "other",
    };
    let unread = !body.is_end_stream();
    let mut req = Req {
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        method: head.method,
        headers: head.headers,
        body: Bytes::new(),
        peer,
        id,
        received,
    };
    let preflight = preflight(app, &req.method, &req.headers);
    let is_preflight = preflight.is_some();
    let early = match (preflight, found) {
        (Some(reply), _) => Err((reply, Who::Anybody)),
        (None, Err(lost)) => Err((lost_reply(lost, &req), Who::Anybody)),
        (None, Ok(target)) => admitted(app, target, &req).and_then(|who| match in_safe_mode(app, target) {
            Some(reply) => Err((reply, who)),
            None => Ok((target, who)),
        }),
    };
    // Refused attempts leave a line too, but no more of them than the limits let through.
    let change = match (&early, found) {
        (Ok((target, who)), _) if changes(*target, &req) => Some(who.clone()),
        (Err((reply, who)), Ok(target))
            if changes(target, &req) && !is_preflight && reply.status != StatusCode::TOO_MANY_REQUESTS =>
        {
            Some(who.clone())
        }
        _ => None,
    };
    connection
        .looked_at(matches!(&early, Ok((target, _)) if change.is_some() && outlives_its_client(*target)));
    let mut reply = match early {
        Err((mut reply, _)) => {
            if unread {
                // The body is not worth waiting for, and what follows it cannot be told from it.
                reply.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            reply
        }
        Ok((Target { route: Route::Push, .. }, _)) => {
            // It has a pace of its own to keep; no crowd of other connections takes its place.
            connection.body_done();
            let upload = Upload::new(body, &app.config, app.ending.subscribe());
            // Boxed: every other request would carry its size.
            let (mut reply, unread) = Box::pin(updates::push(app, &req, upload, connection)).await;
            if unread {
                reply.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            reply
        }
        Ok((target, _)) => {
            let read = body::read(body, &app.config, &app.bodies).await;
            connection.body_done();
            match read {
                Ok((bytes, _share)) => {
                    req.body = bytes;
                    dispatch(app, target, &req).await
                }
                Err(e) => {
                    let mut reply = refused_body(app, target, e);
                    reply.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                    reply
                }
            }
        }
    };
    asked.compress(&mut reply).await;
    if !is_preflight {
        asked.cross_origin(&app.config.cors, &mut reply.headers);
    }
    reply.headers.insert(X_REQUEST_ID, req.id.header_value().clone());
    let took = received.elapsed();
    app.alive.mark.answered_one();
    if endpoint != "/livez" || !app.alive.mark.is(peer) {
        app.metrics.http(&req.method, endpoint, reply.status, reply.error, took);
    }
    if let Some(who) = change {
        tracing::info!(
            target: "audit",
            %peer,
            role = who.role(),
            key = who.key(),
            method = %req.method,
            route = endpoint,
            status = reply.status.as_u16(),
            error = reply.error,
            "change"
        );
    }
    tracing::debug!(
        target: "inferd::access",
        request_id = req.id.as_str(),
        %peer,
        method = %req.method,
        path = %req.path,
        status = reply.status.as_u16(),
        error = reply.error,
        bytes_in = req.body.len(),
        bytes_out = reply.body.len(),
        latency_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "request"
    );
    if let Some(session) = reply.socket {
        connection.go_on_as(session);
    }
    let mut response = Response::new(Outgoing::new(reply.body, reply.stream, connection.blocked()));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

async fn dispatch(app: &Arc<App>, target: Target, req: &Req) -> Reply {
    match target.route {
        Route::Infer => infer::infer(app, req, infer::Wording::Infer).await,
        Route::InferOn => emg::infer_on(app, req).await,
        Route::InferStream => stream::stream(app, req),
        Route::StreamSocket => stream::socket(app, req),
        Route::StreamStats => stream::stats(app),
        Route::SampleSocket => samples::socket(app, req),
        Route::Sources => sources::list(app),
        Route::PushSamples => sources::push(app, req),
        Route::Calibrations => calibrations::list(app),
        Route::BeginCalibration => calibrations::begin(app, req),
        Route::Calibration => calibrations::get(app, req),
        Route::EndCalibration => calibrations::end(app, req),
        Route::RecordGesture => calibrations::record(app, req),
        Route::FitCalibration => calibrations::fit(app, req),
        Route::InstallCalibration => calibrations::install(app, req).await,
        Route::UndoCalibration => calibrations::undo(app, req).await,
        Route::Actuators => actuators::list(app),
        Route::StopActuator => actuators::order(app, req, true).await,
        Route::StartActuator => actuators::order(app, req, false).await,
        Route::Encode => infer::infer(app, req, infer::Wording::Encode).await,
        Route::Analysis => infer::infer(app, req, infer::Wording::Analysis).await,
        Route::StartSession => analysis::start(app, req),
        Route::StreamSamples => analysis::push(app, req),
        Route::Motifs => analysis::motifs(app, req).await,
        Route::Synchrony => analysis::synchrony(app, req).await,
        Route::StopSession => analysis::stop(app, req),
        Route::Oip => oip::handle(app, req).await,
        Route::Root => status::root(app).with(header::VARY, HeaderValue::from_static("Accept")),
        Route::Dashboard => dashboard::page(),
        Route::Healthz => health::healthz(app),
        Route::Livez => health::livez(app),
        Route::Readyz => health::readyz(app),
        Route::Health => health::health(app),
        Route::Performance => monitoring::performance(app),
        Route::Monitoring => monitoring::status(app),
        Route::Alerts => monitoring::alerts(app),
        Route::AlertEvents => monitoring::events(app, req),
        Route::AlertRules => monitoring::rules(),
        Route::Status => status::status(app),
        Route::Contract => status::contract(app),
        Route::Test => status::test(app).await,
        Route::Metrics => app.metrics.exposition(req).await,
        Route::OpenApi => docs::openapi(app),
        Route::Docs => docs::page(app),
        Route::Redoc => docs::redoc(app),
        Route::CommitReady => updates::commit_ready(app),
        Route::Slots => updates::slots(app),
        Route::Bundle => updates::progress(app, req).await,
        Route::Events => updates::events(app, req),
        Route::Rollback => updates::rollback(app, req).await,
        Route::TrySystem => updates::try_system(app, req).await,
        Route::Trust => updates::trust(app, req).await,
        Route::Pull => updates::pull(app, req).await,
        Route::EndPull => updates::end_pull(app).await,
        Route::Logging => records::logging(app),
        Route::SetLogging => records::set_logging(app, req),
        Route::History => alive::history(app, req).await,
        Route::LeaveSafeMode => alive::leave_safe_mode(app, req).await,
        Route::Reboot => alive::reboot(app, req).await,
        Route::FactoryReset => alive::factory_reset(app, req).await,
        Route::WatchdogTest => alive::watchdog_test(app, req).await,
        Route::QuickBenchmark => benchmarks::quick(app, req).await,
        Route::Benchmarks => benchmarks::list(app),
        Route::AddBenchmark => benchmarks::submit(app, req).await,
        Route::Benchmark => benchmarks::get(app, req),
        Route::EndBenchmark => benchmarks::remove(app, req).await,
        Route::BenchmarkReport => benchmarks::report(app, req).await,
        Route::Telemetry => records::telemetry(app).await,
        Route::TelemetryFile => records::telemetry_file(app, req).await,
        Route::Captures => records::captures(app).await,
        Route::CaptureFile => records::capture_file(app, req).await,
        Route::DropCaptures => records::drop_captures(app).await,
        Route::DropCapture => records::drop_capture(app, req).await,
        Route::Push => Reply::not_found(),
    }
}

/// The 503 of work that needs models while the device has none on purpose. What a bundle brings on trial is asked as ever.
fn in_safe_mode(app: &App, target: Target) -> Option<Reply> {
    let mode = app.alive.in_safe_mode()?;
    let loads = target.route == Route::Oip && target.endpoint.ends_with("/load");
    let infers = surface(target).is_some() || matches!(target.route, Route::Test | Route::Contract);
    if !(loads || infers && app.hosts.list().is_empty()) {
        return None;
    }
    let (words, retry) = alive::safe_mode_words(&mode);
    Some(refusal(app, target, StatusCode::SERVICE_UNAVAILABLE, "safe_mode", &words).with_retry_after(retry))
}

fn lost_reply(lost: Lost, req: &Req) -> Reply {
    match lost {
        Lost::Path => Reply::not_found(),
        Lost::Slash(path) => {
            let to = match &req.query {
                Some(q) => format!("{path}?{q}"),
                None => path.to_owned(),
            };
            let to = HeaderValue::from_str(&to).unwrap_or(HeaderValue::from_static("/"));
            Reply::new(StatusCode::TEMPORARY_REDIRECT, "text/plain; charset=utf-8", Bytes::new())
                .with(header::LOCATION, to)
        }
        Lost::Method(path) => {
            let verbs = ROUTES.iter().filter(|(p, ..)| *p == path).map(|(_, v, ..)| v.words());
            let allow = verbs.collect::<Vec<_>>().join(", ");
            let allow = HeaderValue::from_str(&allow).unwrap_or(HeaderValue::from_static("GET, HEAD"));
            Reply::json_bytes(StatusCode::METHOD_NOT_ALLOWED, &b"{\"detail\":\"Method Not Allowed\"}"[..])
                .with(header::ALLOW, allow)
                .with_error("method_not_allowed")
        }
    }
}

/// A refusal in the words of the surface it is for: `/v2` has the reason in `error`, all others in `detail`.
fn refusal(app: &App, target: Target, status: StatusCode, kind: &'static str, detail: &str) -> Reply {
    if let Some(surface) = surface(target) {
        app.metrics.failed(surface, "", kind);
    }
    if target.route == Route::Oip {
        return Reply::json(status, &serde_json::json!({ "error": detail })).with_error(kind);
    }
    let available = app.default_model().is_some_and(|m| m.state() == inferd_hosts::State::Ready);
    Reply::refusal(status, kind, detail, available)
}

fn refused_body(app: &App, target: Target, e: BodyError) -> Reply {
    let (status, kind) = told(e);
    let reply = refusal(app, target, status, kind, &e.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return reply.with_retry_after(std::time::Duration::from_secs(1));
    }
    reply
}

/// How a body that is not read is told.
pub(crate) fn told(e: BodyError) -> (StatusCode, &'static str) {
    match e {
        BodyError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
        BodyError::Slow { .. } => (StatusCode::REQUEST_TIMEOUT, "slow_body"),
        BodyError::NoRoom { .. } => (StatusCode::SERVICE_UNAVAILABLE, "bodies_full"),
        BodyError::Broken => (StatusCode::BAD_REQUEST, "broken_body"),
        BodyError::Dripping { .. } => (StatusCode::REQUEST_TIMEOUT, "slow_body"),
        BodyError::Ending => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
    }
}

/// Whether this request may go on: it is not one too many, and who sends it may. A refusal says whose it is.
fn admitted(app: &App, target: Target, req: &Req) -> Result<Who, (Reply, Who)> {
    let client = req.peer.ip();
    let limits = &app.limits;
    let too_many = |wait: Duration| {
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        let detail = format!("Rate limit exceeded. Try again in {seconds}s.");
        let reply = refusal(app, target, StatusCode::TOO_MANY_REQUESTS, "rate_limited", &detail);
        (reply.with_retry_after(wait), Who::Anybody)
    };
    if let Some(requests) = &limits.requests
        && !always_answered(target)
    {
        requests.take(client).map_err(too_many)?;
    }
    // A program of the device itself that changes it again and again is no client that lost its head.
    if let Some(limit) = &limits.changes
        && changes(target, req)
        && target.route != Route::StopActuator
        && !client.to_canonical().is_loopback()
    {
        limit.take(client).map_err(too_many)?;
    }
    if app.config.access.role(target.need).is_none() {
        return Ok(Who::Anybody);
    }
    // A token is taken before the key is looked at: many connections at once get no more guesses than one.
    limits.wrong_keys.take(client).map_err(too_many)?;
    let checked = app.config.access.check(target.need, req);
    if checked != Err(Denied::WrongKey) {
        limits.wrong_keys.give_back(client);
    }
    checked.map_err(|denied| {
        if let Some(surface) = surface(target) {
            app.metrics.failed(surface, "", "forbidden");
        }
        let reply = denied.reply(target.need, reads(req));
        (if target.route == Route::Oip { oip::in_our_form(reply) } else { reply }, denied.who())
    })
}

/// Whether this request only looks.
fn reads(req: &Req) -> bool {
    Verb::Get.takes(&req.method)
}

/// Whether this request changes the device: what shows what people did needs an admin and changes nothing.
fn changes(target: Target, req: &Req) -> bool {
    target.need.changes() && !reads(req)
}

/// Whether this change is made though its client hangs up. An upload that is cut is gone on with by its client, and is such a change from
/// its end on only; a quick benchmark is for who waits for it.
fn outlives_its_client(target: Target) -> bool {
    !matches!(target.route, Route::Push | Route::QuickBenchmark)
}

/// Whether a client gets this however often it asks: probes, metrics and the page that explains the rest. A fleet that cannot
/// see a device restarts it. Who stops something that moves is never told to wait.
fn always_answered(target: Target) -> bool {
    let route = matches!(
        target.route,
        Route::Health | Route::Metrics | Route::Docs | Route::Redoc | Route::OpenApi | Route::StopActuator
    );
    route || target.need == Need::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_patterns() {
        for (path, pattern) in [
            ("/v2", "/v2"),
            ("/v2/", "/v2"),
            ("/v2/health/live", "/v2/health/live"),
            ("/v2/models/stats", "/v2/models/stats"),
            ("/v2/models/m", "/v2/models/{model}"),
            ("/v2/models/m/infer", "/v2/models/{model}/infer"),
            ("/v2/models/m/versions/1/infer", "/v2/models/{model}/versions/{version}/infer"),
            ("/v2/models/m/infer/more", "/v2/*"),
            ("/v2/models//infer", "/v2/*"),
            ("/v2/nothing", "/v2/*"),
        ] {
            assert_eq!(oip_endpoint(path), pattern, "{path}");
        }
    }

    /// (path, verb) of everything the router and the protocol's own router answer.
    fn served() -> Vec<(String, String)> {
        let verb = |v: &Verb| match v {
            Verb::Get => "get",
            Verb::Post => "post",
            Verb::Put => "put",
            Verb::Delete => "delete",
        };
        let mut all: Vec<_> = ROUTES.iter().map(|(p, v, ..)| ((*p).to_owned(), verb(v).to_owned())).collect();
        for path in OIP_PATHS {
            let post = ["/infer", "/index", "/load", "/unload"].iter().any(|end| path.ends_with(end));
            all.push(((*path).to_owned(), if post { "post" } else { "get" }.to_owned()));
        }
        all.sort();
        all
    }

    #[test]
    fn the_openapi_document_names_every_route_and_no_other() {
        let document: serde_json::Value = serde_json::from_slice(docs::OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let mut written: Vec<(String, String)> = paths
            .iter()
            .flat_map(|(p, item)| item.as_object().unwrap().keys().map(|verb| (p.clone(), verb.clone())))
            .collect();
        written.sort();
        assert_eq!(written, served());
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_openapi_document_says_what_each_route_needs_of_who_asks() {
        let document: serde_json::Value = serde_json::from_slice(docs::OPENAPI).unwrap();
        for (path, verb) in served() {
            let method = Method::from_bytes(verb.to_ascii_uppercase().as_bytes()).unwrap();
            let concrete = path.replace("{model}", "m").replace("{version}", "1");
            let need = find(&method, &concrete).unwrap().need;
            let operation = &document["paths"][&path][&verb];
            let words = match need {
                Need::Nothing => "nothing",
                Need::Read => "read",
                Need::Infer => "infer",
                Need::Operate => "operate",
                Need::Administer => "administer",
            };
            assert_eq!(operation["x-inferd-needs"], words, "{verb} {path}");
            let ways = if need == Need::Nothing {
                serde_json::json!([])
            } else {
                serde_json::json!([{}, { "key": [] }, { "bearer": [] }])
            };
            assert_eq!(operation["security"], ways, "{verb} {path}");
            for refused in ["401", "403"] {
                let told = !operation["responses"][refused].is_null();
                assert_eq!(told, need != Need::Nothing, "{verb} {path} {refused}");
            }
        }
    }

    /// The one place where a route's need is decided is read with these eyes once more: what changes the device must never
    /// become something that anybody may do.
    #[test]
    fn only_an_admin_replaces_what_the_device_runs_and_only_an_operator_what_it_serves() {
        let need = |method: &Method, path| find(method, path).unwrap().need;
        for &(path, verb, need, route) in ROUTES {
            let reads = verb == Verb::Get;
            let computes = matches!(
                route,
                Route::Infer
                    | Route::InferOn
                    | Route::InferStream
                    | Route::StreamSocket
                    | Route::PushSamples
                    | Route::Encode
                    | Route::Analysis
                    | Route::StartSession
                    | Route::StreamSamples
                    | Route::Motifs
                    | Route::Synchrony
                    | Route::StopSession
                    | Route::Test
            );
            // The page has nothing in it that is the device's.
            let probe = matches!(route, Route::Livez | Route::Readyz | Route::Healthz | Route::Dashboard);
            match need {
                Need::Nothing => assert!(probe, "{path}"),
                Need::Read => assert!(reads, "{path}"),
                Need::Infer => assert!(computes, "{path}"),
                // Also reading, where it shows what people did.
                Need::Operate | Need::Administer => assert!(!computes && !probe, "{path}"),
            }
        }
        for path in [
            "/v2/repository/models/m/load",
            "/v2/repository/models/m/%6coad",
            "/v2/%72epository/models/%2e/unload/",
        ] {
            assert_eq!(need(&Method::POST, path), Need::Operate, "{path}");
        }
        for path in ["/v2/models/m/infer", "/v2/models/m/%69nfer", "/v2/models/m/versions/1/infer/"] {
            assert_eq!(need(&Method::POST, path), Need::Infer, "{path}");
        }
        assert_eq!(need(&Method::GET, "/v2/health/live"), Need::Nothing);
        assert_eq!(need(&Method::GET, "/v2/models/health/ready"), Need::Read);
    }

    #[test]
    fn every_reference_of_the_openapi_document_leads_somewhere() {
        fn check(at: &serde_json::Value, document: &serde_json::Value) {
            match at {
                serde_json::Value::Object(o) => {
                    if let Some(to) = o.get("$ref") {
                        let to = to.as_str().unwrap().trim_start_matches('#');
                        assert!(document.pointer(to).is_some(), "{to}");
                    }
                    o.values().for_each(|v| check(v, document));
                }
                serde_json::Value::Array(a) => a.iter().for_each(|v| check(v, document)),
                _ => {}
            }
        }
        let document = serde_json::from_slice(docs::OPENAPI).unwrap();
        check(&document, &document);
    }

    #[test]
    fn the_page_of_the_documentation_needs_nothing_from_elsewhere() {
        let page = std::str::from_utf8(docs::PAGE).unwrap();
        for from_elsewhere in ["http:", "https:", "src=", "@import", "url(", "//cdn", "<link"] {
            assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
        }
    }

    #[test]
    fn a_trailing_slash_and_a_wrong_method_are_told_apart_from_a_wrong_path() {
        let get = |path| find(&Method::GET, path);
        assert_eq!(get("/infer"), Err(Lost::Method("/infer")));
        assert_eq!(get("/infer/"), Err(Lost::Slash("/infer")));
        assert_eq!(get("/infer//"), Err(Lost::Path));
        assert_eq!(get("/Infer"), Err(Lost::Path));
        assert_eq!(get("/v2x"), Err(Lost::Path));
        assert_eq!(get("/"), Ok(Target { route: Route::Root, endpoint: "/", need: Need::Read }));
        assert_eq!(get("//"), Err(Lost::Slash("/")));
        assert!(find(&Method::HEAD, "/healthz").is_ok());
        assert_eq!(find(&Method::POST, "/healthz"), Err(Lost::Method("/healthz")));
    }
}
