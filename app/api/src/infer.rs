//! `/infer` with an IMU window (with anything else it is `emg.rs`), `/encode` and the older `/api/v1/analysis/infer`: one IMU window in, one answer out.
//!
//! The path of a request: default model → its plan → a slot (refused here when there is none, before anything is parsed) →
//! the body is parsed into the slot → queued and run → the answer is written from the slot.

use crate::http::{BadDeadline, time_left, told};
use crate::{App, Reply, Req, Stages, Surface, emg, limits};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use inferd_hosts::{InferError, Origin, Served, State, Ticket};
use inferd_model::{Manifest, Rung};
use inferd_tasks::form::FormError;
use inferd_tasks::imu::ImuPlan;
use inferd_tasks::window::{Numbers, WindowError, WindowKey};
use inferd_tasks::{NotFinite, PlanError};
use inferd_watch::capture::Window;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where `motif_scores` come from: `output`, `linear`, or `none` (then they are zeros and mean nothing).
pub const MOTIF_SOURCE: HeaderName = HeaderName::from_static("x-inferd-motif-source");
/// Says which engine answered and with what, when it was not the preferred one: `cpu`, `ort-int8`.
pub const ENGINE: HeaderName = HeaderName::from_static("x-inferd-engine");

/// The value of [`ENGINE`]: `cpu`, `ort-int8`.
pub(crate) fn rung_header(rung: Rung) -> HeaderValue {
    // Names of engines and variants are letters, digits and hyphens.
    HeaderValue::try_from(rung.to_string()).unwrap_or_else(|_| HeaderValue::from_static(rung.engine.name()))
}
/// How many latent values were outside of the clients' contract and were clipped; absent when none was.
pub const LATENT_CLIPPED: HeaderName = HeaderName::from_static("x-inferd-latent-clipped");

/// Whose words a request and its answer are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wording {
    /// `{"x"}` to `{"latent","motif_scores"}`; mistakes are FastAPI's 422.
    Infer,
    /// `{"imu_window"}` to `{"latent_embedding","model_version","accuracy"}`.
    Encode,
    /// As `Infer`, but mistakes are 400 with `{"error":true,"reason"}`, as Vapor writes them.
    Analysis,
}

impl Wording {
    fn surface(self) -> Surface {
        match self {
            Self::Encode => Surface::Encode,
            Self::Infer | Self::Analysis => Surface::Infer,
        }
    }

    fn key(self) -> WindowKey {
        match self {
            Self::Encode => WindowKey::ImuWindow,
            Self::Infer | Self::Analysis => WindowKey::X,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("Model not available for inference: {0}")]
    NoModel(String),
    #[error("Model not available for inference: {0}")]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Deadline(#[from] BadDeadline),
    #[error("Content-Encoding is {0}; this endpoint takes bodies as they are")]
    Encoding(String),
    #[error(transparent)]
    Window(#[from] WindowError),
    #[error(transparent)]
    Form(#[from] FormError),
    #[error("{0}")]
    Engine(String),
    #[error("{0}")]
    Source(String),
    #[error("as many clients as may stream do so already")]
    Crowded,
    #[error("this client has as many streams as one may")]
    Greedy,
    #[error(transparent)]
    Infer(#[from] InferError),
    #[error("Inference failed: {0}")]
    Answer(#[from] NotFinite),
    #[error("Internal inference error")]
    Lost,
}

pub(crate) async fn infer(app: &App, req: &Req, wording: Wording) -> Reply {
    if wording == Wording::Infer && emg::is_asked_for(app, &req.body) {
        return emg::infer(app, req, None).await;
    }
    let mut model = String::new();
    match attempt(app, req, wording, &mut model).await {
        Ok(reply) => reply,
        Err(failure) => {
            let reply = refuse(app, &failure, wording);
            app.metrics.failed(wording.surface(), &model, reply.error.unwrap_or("unexpected_error"));
            reply
        }
    }
}

async fn attempt(app: &App, req: &Req, wording: Wording, name: &mut String) -> Result<Reply, Failure> {
    let received = req.received.elapsed();
    let Some(model) = app.default_model() else { return Err(no_model(app)) };
    // Also for a ticket of this very model that is replaced before the plan is looked up again.
    let (manifest, _) = app.imu_plan(&model)?;
    manifest.name.as_str().clone_into(name);
    let deadline = time_left(req.deadline()?, req.received)?;
    plain(&req.headers)?;
    let (mut ticket, plan) = loop {
        // The slot is of the model that will compute, which may be older or newer than the one above.
        let ticket = model.begin(deadline)?;
        if let Some(plan) = app.imu_plan_of(&model, ticket.manifest())? {
            break (ticket, plan);
        }
    };
    let manifest = ticket.manifest().clone();
    let begun = Instant::now();
    let numbers = if app.config.compat.lenient_numbers { Numbers::Lenient } else { Numbers::Strict };
    if req.body.len() <= limits::HEAVY {
        parse(&plan, &req.body, &mut ticket, wording, numbers)?;
    } else {
        let (plan, body) = (plan.clone(), req.body.clone());
        let away = tokio::task::spawn_blocking(move || {
            parse(&plan, &body, &mut ticket, wording, numbers).map(|()| ticket)
        });
        ticket = away.await.map_err(|_| Failure::Lost)??;
    }
    let parsed = begun.elapsed();
    let outputs = ticket.run().await?;
    let begun = Instant::now();
    let answer = plan.answer(|i| outputs.output_f32(i))?;
    let body = match wording {
        Wording::Infer | Wording::Analysis => answer.to_json(),
        Wording::Encode => {
            answer.to_encode_json(&manifest.version, manifest.accuracy.first().map(|a| a.value))
        }
    };
    let clipped = answer.clipped();
    let mut reply = Reply::json_bytes(StatusCode::OK, body);
    let source = plan.motif().source();
    if let Some(capture) = app.records.capture().filter(|c| source != "none" && c.wants(answer.scores())) {
        capture.offer(|| Window {
            model: manifest.name.as_str().to_owned(),
            version: manifest.version.clone(),
            sha256: manifest.onnx.sha256.clone(),
            bundle: bundle(&model, &manifest),
            request_id: req.id.as_str().to_owned(),
            shape: [plan.timesteps(), plan.channels()],
            input: outputs.input_f32(0).unwrap_or_default().to_owned(),
            latent: answer.latent_as_is().to_owned(),
            scores: answer.scores().collect(),
        });
    }
    reply.headers.insert(MOTIF_SOURCE, HeaderValue::from_static(source));
    if let Some(rung) = outputs.stand_in() {
        reply.headers.insert(ENGINE, rung_header(rung));
    }
    if clipped > 0 {
        reply.headers.insert(LATENT_CLIPPED, HeaderValue::from(clipped));
        app.metrics.latent_clipped(name);
    }
    if source == "none" && wording != Wording::Encode {
        app.metrics.motif_zeros(name);
    }
    let stages = Stages {
        receive: received,
        parse: parsed,
        serialize: begun.elapsed(),
        total: req.received.elapsed(),
    };
    app.metrics.succeeded(wording.surface(), name, stages);
    Ok(reply)
}

/// The bundle these answers came from; empty for a directory, or when the model was replaced meanwhile.
fn bundle(model: &Served, answered: &Arc<Manifest>) -> String {
    match model.origin() {
        Origin::Bundle { id, .. } if Arc::ptr_eq(&model.manifest(), answered) => id,
        _ => String::new(),
    }
}

fn parse(
    plan: &ImuPlan,
    body: &[u8],
    ticket: &mut Ticket,
    wording: Wording,
    numbers: Numbers,
) -> Result<(), Failure> {
    let slot = ticket.input_f32_mut(0).ok_or(Failure::Lost)?;
    Ok(plan.parse(body, slot, wording.key(), numbers)?)
}

pub(crate) fn no_model(app: &App) -> Failure {
    let reason = match &app.config.default_model {
        Some(name) => app.hosts.last_load_error(name).unwrap_or_else(|| format!("{name} is not loaded")),
        None => match app.hosts.load_errors().into_iter().next() {
            Some((_, reason)) => reason,
            None => "no model of task imu-encoder is loaded".to_owned(),
        },
    };
    Failure::NoModel(reason)
}

/// Refuses a compressed body by name; the seed's clients never send one.
pub(crate) fn plain(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(v) if !v.as_bytes().eq_ignore_ascii_case(b"identity") && !v.is_empty() => {
            let named = v.to_str().ok().filter(|v| v.len() <= 32).unwrap_or("not a name");
            Err(Failure::Encoding(named.to_owned()))
        }
        _ => Ok(()),
    }
}

pub(crate) fn refuse(app: &App, failure: &Failure, wording: Wording) -> Reply {
    let ready = || app.default_model().is_some_and(|m| m.state() == State::Ready);
    let unavailable = (StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", false);
    let ((status, kind, available), retry_after) = match failure {
        Failure::NoModel(_) | Failure::Plan(_) => (unavailable, Some(Duration::from_secs(1))),
        Failure::Deadline(_) => ((StatusCode::BAD_REQUEST, "bad_deadline", ready()), None),
        Failure::Encoding(_) => ((StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding", ready()), None),
        Failure::Window(e) if wording == Wording::Analysis => {
            return vapor(StatusCode::BAD_REQUEST, &e.to_sentence()).with_error(VALIDATION);
        }
        Failure::Window(e) => return invalid(app, e.to_json()),
        Failure::Form(e) => return invalid(app, e.to_json()),
        Failure::Engine(_) => ((StatusCode::SERVICE_UNAVAILABLE, "engine_unavailable", ready()), None),
        Failure::Infer(e) => {
            let t = told(e);
            ((t.status, e.kind(), t.model_available), t.retry_after)
        }
        Failure::Source(_) => {
            let kind = (StatusCode::SERVICE_UNAVAILABLE, "source_unavailable", ready());
            (kind, Some(Duration::from_secs(1)))
        }
        Failure::Crowded => {
            ((StatusCode::SERVICE_UNAVAILABLE, "listeners", ready()), Some(Duration::from_secs(5)))
        }
        Failure::Greedy => {
            ((StatusCode::TOO_MANY_REQUESTS, "streams_of_client", ready()), Some(Duration::from_secs(5)))
        }
        Failure::Answer(_) | Failure::Lost => {
            ((StatusCode::INTERNAL_SERVER_ERROR, "inference_error", true), None)
        }
    };
    let detail = match failure {
        Failure::Infer(e @ InferError::NotReady { .. }) => format!("Model not available for inference: {e}"),
        Failure::Infer(e @ InferError::Engine(_)) => format!("Inference failed: {e}"),
        other => other.to_string(),
    };
    let reply = match wording {
        Wording::Analysis => vapor(status, &detail).with_error(kind),
        Wording::Infer | Wording::Encode => Reply::refusal(status, kind, &detail, available),
    };
    match retry_after {
        Some(wait) => reply.with_retry_after(wait),
        None => reply,
    }
}

/// The kind of every mistake in a body.
const VALIDATION: &str = "validation_error";

/// A mistake in a body, in FastAPI's words.
fn invalid(app: &App, detail: Vec<u8>) -> Reply {
    let strict = app.config.compat.strict_400;
    let status = if strict { StatusCode::BAD_REQUEST } else { StatusCode::UNPROCESSABLE_ENTITY };
    Reply::json_bytes(status, detail).with_error(VALIDATION)
}

/// An error as Vapor's middleware writes it.
fn vapor(status: StatusCode, reason: &str) -> Reply {
    Reply::json(status, &serde_json::json!({ "error": true, "reason": reason }))
}
