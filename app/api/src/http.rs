//! What every handler gets and gives: [`Req`], [`Reply`], and the small rules of HTTP they share.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use inferd_hosts::InferError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The header that carries a request's id, in and out.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The exact wait in milliseconds; `Retry-After` only has whole seconds.
pub const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// How long the client will wait for its answer, in milliseconds.
pub const INFERENCE_DEADLINE_MS: HeaderName = HeaderName::from_static("inference-deadline-ms");

/// A request whose body is complete and within the limits.
#[derive(Debug)]
pub struct Req {
    /// The method.
    pub method: Method,
    /// The path as it came, percent-encoding included; each segment is decoded where it is used.
    pub path: String,
    /// What follows `?`.
    pub query: Option<String>,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Who asks.
    pub peer: SocketAddr,
    /// The id of this request, in the reply and in the log.
    pub id: RequestId,
    /// When the head of the request had been read.
    pub received: Instant,
}

impl Req {
    /// The header's value, if it is there once (or first of several) and is visible ASCII.
    #[must_use]
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// The body as a JSON object. A type whose fields are read by name takes an array of their values too, so the first
    /// character is looked at; the type says which fields there are (`deny_unknown_fields`).
    #[must_use]
    pub fn object<T: DeserializeOwned>(&self) -> Option<T> {
        let object = self.body.trim_ascii_start().starts_with(b"{");
        object.then(|| serde_json::from_slice(&self.body).ok()).flatten()
    }

    /// What `Inference-Deadline-Ms` asks for.
    ///
    /// # Errors
    /// A 400 reply when the header is there and is not a whole number of milliseconds from 1 to [`MAX_DEADLINE_MS`].
    pub fn deadline(&self) -> Result<Option<Duration>, BadDeadline> {
        let Some(value) = self.headers.get(INFERENCE_DEADLINE_MS) else { return Ok(None) };
        let ms = value.to_str().ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
        match ms.and_then(|v| v.parse::<u64>().ok()) {
            Some(ms) if (1..=MAX_DEADLINE_MS).contains(&ms) => Ok(Some(Duration::from_millis(ms))),
            _ => Err(BadDeadline),
        }
    }
}

/// What is left of the time a client has for its answer. Its clock has been running since the head of the request came.
///
/// # Errors
/// [`InferError::DeadlineExceeded`] when it is over, for instance because the body took that long: nothing is begun then.
pub(crate) fn time_left(
    deadline: Option<Duration>,
    received: Instant,
) -> Result<Option<Duration>, InferError> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.checked_sub(received.elapsed()) {
        Some(left) => Ok(Some(left)),
        None => Err(InferError::DeadlineExceeded { deadline }),
    }
}

/// The longest deadline a client may ask for.
pub const MAX_DEADLINE_MS: u64 = 600_000;

/// `Inference-Deadline-Ms` is there and makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Inference-Deadline-Ms: a whole number of milliseconds from 1 to {MAX_DEADLINE_MS} is needed")]
pub struct BadDeadline;

/// Names one request: what the client sent in `X-Request-ID` when that is harmless, else one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The longest id taken from a client.
    pub const MAX: usize = 128;

    /// The client's id if there is a good one (printable ASCII without spaces, quotes or backslashes), else a new one.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        match headers.get(X_REQUEST_ID) {
            Some(v) if Self::harmless(v.as_bytes()) => Self(v.clone()),
            _ => Self::new(),
        }
    }

    fn harmless(id: &[u8]) -> bool {
        (1..=Self::MAX).contains(&id.len())
            && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@#~".contains(b))
    }

    /// A new id, unique in this process and hard to confuse with another process's.
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        static START: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        let start = START.get_or_init(|| {
            use std::hash::{BuildHasher, Hasher};
            std::collections::hash_map::RandomState::new().build_hasher().finish()
        });
        const HEX: &[u8; 16] = b"0123456789abcdef";
        // An odd factor makes a bijection of the counter: ids never repeat and do not look like a sequence.
        let n = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let bytes = n.to_be_bytes();
        let nibble = |i: usize| if i.is_multiple_of(2) { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 };
        let text: [u8; 16] = std::array::from_fn(|i| HEX[usize::from(nibble(i))]);
        Self(HeaderValue::from_bytes(&text).expect("hex digits are a header value"))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The id as a header's value.
    #[must_use]
    pub fn header_value(&self) -> &HeaderValue {
        &self.0
    }
}

/// An answer: complete, or one whose body goes on for as long as both sides like.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// Headers; `Content-Length`, `Date`, CORS, request id and compression are added on the way out.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// A body that comes piece by piece instead (`body` is empty then). It is never compressed.
    pub stream: Option<Box<Stream>>,
    /// What goes on after a 101.
    pub(crate) socket: Option<Box<crate::socket::Session>>,
    /// What went wrong, for metrics and the log; `None` for a success.
    pub error: Option<&'static str>,
}

/// A body that comes piece by piece. Dropping the sender ends it; what the client does not read in time is not kept.
#[derive(Debug)]
pub struct Stream {
    pieces: tokio::sync::mpsc::Receiver<Bytes>,
    /// A piece has just been given: it is written before the next one is asked for.
    given: bool,
    /// The client has not taken the piece before: the next one stays where a newer one can take its place.
    blocked: std::sync::Arc<std::sync::atomic::AtomicBool>,
    /// Kept for as long as the connection holds the stream: a place among a bounded number.
    _place: Box<dyn std::fmt::Debug + Send + Sync>,
}

impl Stream {
    /// A stream of these pieces that holds this place.
    #[must_use]
    pub fn new(
        pieces: tokio::sync::mpsc::Receiver<Bytes>,
        place: impl std::fmt::Debug + Send + Sync + 'static,
    ) -> Self {
        Self { pieces, given: false, blocked: std::sync::Arc::default(), _place: Box::new(place) }
    }
}

/// What hyper sends: the one type of body of this endpoint.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// All there is, once.
    Whole(Full<Bytes>),
    /// Piece by piece, chunked.
    Stream(Box<Stream>),
}

impl Outgoing {
    /// The body of a reply.
    pub(crate) fn new(
        whole: Bytes,
        stream: Option<Box<Stream>>,
        blocked: &std::sync::Arc<std::sync::atomic::AtomicBool>,
    ) -> Self {
        match stream {
            None => Self::Whole(Full::new(whole)),
            Some(mut stream) => {
                stream.blocked = std::sync::Arc::clone(blocked);
                Self::Stream(stream)
            }
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx),
            Self::Stream(stream) => {
                // Pieces that lie ready would go out in one write, and clients that take a write for an event lose some.
                if std::mem::take(&mut stream.given) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // Woken by the connection, which is one task with this.
                if stream.blocked.load(Ordering::Relaxed) {
                    return Poll::Pending;
                }
                let piece = stream.pieces.poll_recv(cx);
                stream.given = matches!(piece, Poll::Ready(Some(_)));
                piece.map(|p| p.map(|p| Ok(Frame::data(p))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// The body of every refusal outside `/v2`: FastAPI's `detail`, a stable `error` kind, and whether a model is there.
#[derive(Serialize)]
struct Refusal<'a> {
    detail: &'a str,
    error: &'a str,
    model_available: bool,
}

impl Reply {
    /// An answer with this content type.
    #[must_use]
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { status, headers, body: body.into(), stream: None, socket: None, error: None }
    }

    /// `application/json` from bytes that already are JSON.
    #[must_use]
    pub fn json_bytes(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// `application/json`.
    #[must_use]
    pub fn json(status: StatusCode, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(bytes) => Self::json_bytes(status, bytes),
            // Only a map with keys that are not strings gets here, and we have none; a reply is owed all the same.
            Err(e) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the answer: {e}"))
                .with_error("unexpected_error"),
        }
    }

    /// `text/plain`.
    #[must_use]
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// `{"detail": ..}` as FastAPI writes it, with no kind: for routing answers.
    #[must_use]
    pub fn detail(status: StatusCode, detail: &str) -> Self {
        Self::json(status, &serde_json::json!({ "detail": detail }))
    }

    /// 404 `{"detail":"Not Found"}`.
    #[must_use]
    pub fn not_found() -> Self {
        Self::json_bytes(StatusCode::NOT_FOUND, &b"{\"detail\":\"Not Found\"}"[..]).with_error("not_found")
    }

    /// A refusal with reason and kind.
    #[must_use]
    pub fn refusal(status: StatusCode, error: &'static str, detail: &str, model_available: bool) -> Self {
        Self::json(status, &Refusal { detail, error, model_available }).with_error(error)
    }

    /// An answer whose body comes piece by piece.
    #[must_use]
    pub fn streamed(content_type: &'static str, stream: Stream) -> Self {
        Self { stream: Some(Box::new(stream)), ..Self::new(StatusCode::OK, content_type, Bytes::new()) }
    }

    /// Marks the reply as a failure of this kind.
    #[must_use]
    pub fn with_error(mut self, kind: &'static str) -> Self {
        self.error = Some(kind);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds `Retry-After` (whole seconds, rounded up, at least 1) and `Retry-After-Ms` (exact).
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        self.headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        self.headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
        self
    }
}

/// How an [`InferError`] is told to a client: the same status and headers on every surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// 503, 500 when the engine itself refused a valid request, 422 for an input that ends hosts.
    pub status: StatusCode,
    /// When to come back, if that is known.
    pub retry_after: Option<Duration>,
    /// Whether a model was there to answer.
    pub model_available: bool,
}

/// The one mapping from an [`InferError`] to HTTP. Overload, restarts and time limits are all 503: the client did nothing
/// wrong, and what it may do (come back, when) stands in the headers and in the `error` kind. No 504: that is for proxies.
#[must_use]
pub fn told(error: &InferError) -> Told {
    let (status, retry_after, model_available) = match error {
        InferError::QueueFull { retry_after, .. } => (503, Some(*retry_after), true),
        InferError::NotReady { retry_after, .. } | InferError::HostLost { retry_after, .. } => {
            (503, Some(*retry_after), false)
        }
        InferError::DeadlineUnmeetable { estimate, .. } => (503, Some(*estimate), true),
        InferError::DeadlineExceeded { .. } | InferError::Panicked { .. } => (503, None, true),
        InferError::BreakerOpen { retry_after, .. } => (503, Some(*retry_after), false),
        // Well-formed, and yet no server of this model will answer it soon: with a 503 it would come back for ever.
        InferError::Quarantined { .. } => (422, None, true),
        InferError::Engine(_) | InferError::Value(_) => (500, None, true),
    };
    let status = match status {
        503 => StatusCode::SERVICE_UNAVAILABLE,
        422 => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Told { status, retry_after, model_available }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_with_known_fields_or_nothing() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wish {
            level: String,
            #[serde(default)]
            for_s: Option<u64>,
        }
        let read = |body: &'static str| {
            let headers = HeaderMap::new();
            let req = Req {
                method: Method::PUT,
                path: String::new(),
                query: None,
                id: RequestId::from_headers(&headers),
                headers,
                body: Bytes::from_static(body.as_bytes()),
                peer: SocketAddr::from(([127, 0, 0, 1], 1)),
                received: Instant::now(),
            };
            req.object::<Wish>()
        };
        let wish = |for_s| Some(Wish { level: "info".to_owned(), for_s });
        assert_eq!(read("{\"level\":\"info\"}"), wish(None));
        assert_eq!(read(" \r\n\t{\"level\":\"info\",\"for_s\":60}\n"), wish(Some(60)));
        for bad in [
            "",
            "[\"info\",60]",
            "[\"info\"]",
            "[]",
            "\"info\"",
            "null",
            "{}",
            "{",
            "{\"level\":\"info\",\"forever\":true}",
            "{\"level\":\"info\",\"level\":\"info\"}",
            "{\"level\":\"info\"}]",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_time_a_body_took_is_taken_off_the_deadline() {
        let received = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        assert_eq!(time_left(None, received).unwrap(), None);
        assert!(
            time_left(Some(Duration::from_secs(60)), received).unwrap().unwrap() <= Duration::from_secs(50)
        );
        let over = time_left(Some(Duration::from_secs(9)), received).unwrap_err();
        assert_eq!(over.kind(), "timeout");
    }
}
