//! One inference request, from its body to its reply.
//!
//! ```text
//! body ─(decompress)─► request::parse ─► Served::begin (a slot, or 503 at once) ─► reply::plan ─► tensors::fill
//!      ─► Ticket::run ─► Plan::write ─(compress)─► reply
//! ```

use super::compress::{Coding, CodingError};
use super::error::BadRequest;
use super::tensors::Slots;
use super::{reply, request, tensors};
use crate::http::{Reply, Req, time_left, told};
use crate::{App, Stages, Surface, limits};
use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use inferd_hosts::{Answer, InferError, Served, Ticket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// The length of the JSON before binary tensors, in requests and replies, of the decompressed body.
pub const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Decompressed bodies held at once. Each may be as large as the body limit while on the wire it was small, so the limit on
/// bytes received does not bound them.
const DECOMPRESSED: usize = 4;
static DECOMPRESSING: Semaphore = Semaphore::const_new(DECOMPRESSED);

/// Why a request is not answered with a result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Bad(#[from] BadRequest),
    #[error(transparent)]
    Coding(#[from] CodingError),
    #[error(transparent)]
    Deadline(#[from] crate::http::BadDeadline),
    #[error(transparent)]
    Infer(#[from] InferError),
    #[error("a worker thread of the endpoint ended before its work was done: {0}")]
    Lost(#[from] tokio::task::JoinError),
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Self::Bad(_) | Self::Coding(CodingError::Damaged(_)) => "validation_error",
            Self::Deadline(_) => "bad_deadline",
            Self::Coding(CodingError::Unknown) => "content_encoding",
            Self::Coding(CodingError::TooLarge(_)) => "payload_too_large",
            Self::Infer(e) => e.kind(),
            Self::Lost(_) => "unexpected_error",
        }
    }

    fn reply(&self, model: &str) -> Reply {
        let status = match self {
            Self::Bad(_) | Self::Deadline(_) | Self::Coding(CodingError::Damaged(_)) => {
                StatusCode::BAD_REQUEST
            }
            Self::Coding(CodingError::Unknown) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Coding(CodingError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Infer(e) => told(e).status,
            Self::Lost(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = match self {
            Self::Infer(e) => format!("model {model}: {e}"),
            other => other.to_string(),
        };
        let reply = super::refuse(status, self.kind(), &message);
        match self {
            // RFC 7694: a 415 for its coding says which codings are accepted.
            Self::Coding(CodingError::Unknown) => {
                reply.with(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"))
            }
            Self::Infer(e) => match told(e).retry_after {
                Some(wait) => reply.with_retry_after(wait),
                None => reply,
            },
            _ => reply,
        }
    }
}

/// Answers `POST /v2/models/{m}/infer`.
pub async fn infer(app: &App, req: &Req, served: &Arc<Served>) -> Reply {
    let manifest = served.manifest();
    let model = manifest.name.as_str();
    let begun = Instant::now();
    let counters = app.oip.of(model);
    match answer(app, req, served).await {
        Ok(Done { reply, parse, serialize }) => {
            let receive = begun.saturating_duration_since(req.received);
            let stages = Stages { receive, parse, serialize, total: req.received.elapsed() };
            app.metrics.succeeded(Surface::Oip, model, stages);
            counters.answered(parse, serialize);
            reply
        }
        Err(failure) => {
            app.metrics.failed(Surface::Oip, model, failure.kind());
            if matches!(failure, Failure::Infer(_)) {
                counters.failed(begun.elapsed());
            }
            failure.reply(model)
        }
    }
}

struct Done {
    reply: Reply,
    parse: Duration,
    serialize: Duration,
}

/// A request that is in its slot.
struct Ready {
    ticket: Ticket,
    plan: reply::Plan,
}

impl Slots for Ticket {
    fn input_mut(&mut self, i: usize) -> &mut [u8] {
        Self::input_mut(self, i)
    }
}

async fn answer(app: &App, req: &Req, served: &Arc<Served>) -> Result<Done, Failure> {
    let begun = Instant::now();
    let header = request::header_length(values(&req.headers, &HEADER_LENGTH))?;
    let coding = Coding::of_request(values(&req.headers, &header::CONTENT_ENCODING))?;
    let deadline = req.deadline()?;
    let received = req.received;
    let ready = if coding == Coding::Identity && req.body.len() <= limits::HEAVY {
        prepare(&req.body, header, served, deadline, received)?
    } else {
        // Held by the work itself until the tensors are in their slot, also when the client does not wait for it: no more than
        // so many decompressed bodies exist.
        let permit = if coding == Coding::Identity { None } else { DECOMPRESSING.acquire().await.ok() };
        let (body, served, limit): (Bytes, _, _) = (req.body.clone(), served.clone(), app.config.body_limit);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let decoded = if coding == Coding::Identity { body } else { coding.decode(&body, limit)?.into() };
            prepare(&decoded, header, &served, deadline, received)
        })
        .await??
    };
    let parse = begun.elapsed();
    let Ready { ticket, plan } = ready;
    let answer = ticket.run().await?;
    let begun = Instant::now();
    let coding = Coding::of_reply(values(&req.headers, &header::ACCEPT_ENCODING));
    let reply = if plan.size_hint(answer.manifest()) <= limits::HEAVY {
        write(&plan, &answer, coding)?
    } else {
        tokio::task::spawn_blocking(move || write(&plan, &answer, coding)).await??
    };
    Ok(Done { reply, parse, serialize: begun.elapsed() })
}

fn values<'h>(headers: &'h HeaderMap, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

/// From a body to a filled slot. The slot is taken as soon as the request's own deadline is known, before any tensor is read:
/// in overload a request costs one look over its JSON.
fn prepare(
    body: &[u8],
    header: Option<u64>,
    served: &Arc<Served>,
    deadline: Option<Duration>,
    received: Instant,
) -> Result<Ready, Failure> {
    let request = request::parse(body, header)?;
    let deadline = deadline.into_iter().chain(request.timeout).min();
    let mut ticket = served.begin(time_left(deadline, received)?)?;
    let manifest = ticket.manifest().clone();
    let plan = reply::plan(&request, &manifest)?;
    tensors::fill(&request, &manifest, &mut ticket)?;
    Ok(Ready { ticket, plan })
}

/// From an answer in its slot to a reply; the slot is free again as soon as this returns.
fn write(plan: &reply::Plan, answer: &Answer, coding: Coding) -> Result<Reply, Failure> {
    let body = plan.write(answer.manifest(), |i| answer.output(i))?;
    let content_type =
        if body.header_length.is_some() { "application/octet-stream" } else { "application/json" };
    let coded = (body.bytes.len() >= limits::GZIP_FROM).then(|| coding.name()).flatten();
    let bytes = if coded.is_some() { coding.encode(&body.bytes) } else { body.bytes };
    let mut reply = Reply::new(StatusCode::OK, content_type, bytes);
    if let Some(n) = body.header_length {
        reply = reply.with(HEADER_LENGTH, HeaderValue::from(n));
    }
    if let Some(name) = coded {
        reply = reply
            .with(header::CONTENT_ENCODING, HeaderValue::from_static(name))
            .with(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    if let Some(rung) = answer.stand_in() {
        reply = reply.with(crate::ENGINE, crate::infer::rung_header(rung));
    }
    Ok(reply)
}
