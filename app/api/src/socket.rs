//! WebSocket: what a stream of events says, as text messages.
//!
//! The handshake and the frames are tungstenite's; this file decides who may open one, how it ends, and what a client may send.
//!
//! **Who may.** What the route needs, as for every request. A page cannot set headers on a WebSocket, so that a key may also come as an
//! entry `bearer.KEY` of `Sec-WebSocket-Protocol`, beside `inferd`, which is the one that is answered: the key is never repeated. A key
//! in a query would stand in the logs of proxies and is none.
//!
//! **From which page.** Browsers let any page open a WebSocket to any host, and ask nobody: the rule that keeps a page from reading
//! answers of another origin (CORS) is not theirs to enforce here, but ours. A handshake with an `Origin` is therefore taken when the
//! page comes from this very endpoint, or from an origin whose pages may read answers here (`server.allow_origins`), and is 403
//! otherwise. Programs send no `Origin` and are not asked. There are no cookies: nothing a browser adds by itself opens anything,
//! except where the route asks for no key, or counts only this machine; there [`crate::access`] knows pages of other origins.
//!
//! **What is wrong** with the handshake (no key, another page, no WebSocket) is a status. What is wrong with what is asked for is told after it,
//! because a page is not shown the status of a handshake: one message `{"error","detail","status"}` with what the same stream of events
//! would have answered, then a close with 1008 (the client's mistake), 1013 (try again later) or 1011 (ours).
//!
//! **Its end.** 1000 when it is completed, 1001 when the daemon ends. A client sends nothing but pongs and its close: a message is
//! 1008, one of more than [`limits::SOCKET_MESSAGE`] is 1009 and is never in memory as a whole. A client of which nothing was heard for as
//! long as an idle connection may last, pings notwithstanding, is gone.

use crate::{App, Cors, Reply, Req, limits};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_tungstenite::tungstenite::http;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

/// What this endpoint speaks, among what a client offers.
const PROTOCOL: &str = "inferd";
/// Before a key, in what a client offers.
const BEARER: &str = "bearer.";
/// How long the close of a client is waited for, after ours.
const CLOSE: Duration = Duration::from_secs(5);

/// What goes out on a WebSocket.
pub(crate) struct Session {
    app: Arc<App>,
    pieces: mpsc::Receiver<Bytes>,
    /// How it is closed when there are no more.
    end: CloseCode,
    /// Kept for as long as it lasts.
    _place: Box<dyn Send + Sync>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("end", &self.end).finish_non_exhaustive()
    }
}

/// The answer to a handshake. `open` says what goes out, and holds its place among a bounded number; or refuses.
pub(crate) fn answer<P: Send + Sync + 'static>(
    app: &Arc<App>,
    req: &Req,
    open: impl FnOnce() -> Result<(mpsc::Receiver<Bytes>, P), Reply>,
) -> Reply {
    let mut reply = match shake_hands(req) {
        Ok(reply) => reply,
        Err(reply) => return reply,
    };
    if !from_here(&req.headers, &app.config.cors) {
        let detail = "this page is of another origin, and server.allow_origins does not name it";
        return Reply::refusal(StatusCode::FORBIDDEN, "forbidden", detail, true);
    }
    let app = Arc::clone(app);
    let session = match open() {
        Ok((pieces, place)) => Session { app, pieces, end: CloseCode::Normal, _place: Box::new(place) },
        Err(refusal) => {
            reply.error = refusal.error;
            let (message, end) = told(&refusal);
            let (tell, pieces) = mpsc::channel(1);
            // There is room for one.
            let _ = tell.try_send(message);
            Session { app, pieces, end, _place: Box::new(()) }
        }
    };
    reply.socket = Some(Box::new(session));
    reply
}

/// The 101 of a handshake, or why it is none.
fn shake_hands(req: &Req) -> Result<Reply, Reply> {
    let mut asked = http::Request::new(());
    asked.headers_mut().clone_from(&req.headers);
    *asked.method_mut() = req.method.clone();
    let shaken = create_response(&asked).map_err(|why| match why {
        Error::Protocol(
            ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader
            | ProtocolError::MissingSecWebSocketVersionHeader
            | ProtocolError::WrongHttpMethod,
        ) => {
            let detail = "this is a WebSocket: Upgrade: websocket and Sec-WebSocket-Version: 13 are needed";
            let reply = Reply::refusal(StatusCode::UPGRADE_REQUIRED, "not_a_websocket", detail, true);
            reply
                .with(header::UPGRADE, HeaderValue::from_static("websocket"))
                .with(header::CONNECTION, HeaderValue::from_static("upgrade"))
                .with(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
        }
        _ => {
            let detail = "Sec-WebSocket-Key: 16 bytes in base64 are needed";
            Reply::refusal(StatusCode::BAD_REQUEST, "bad_request", detail, true)
        }
    })?;
    let mut reply = Reply::new(StatusCode::SWITCHING_PROTOCOLS, "", Bytes::new());
    reply.headers.clone_from(shaken.headers());
    if offered(&req.headers).any(|word| word == PROTOCOL) {
        reply.headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(reply)
}

/// The protocols a client offers.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim)
}

/// The key among what a client offers: only where a WebSocket is asked for, so that nothing else reads it there.
pub(crate) fn key(headers: &HeaderMap) -> Option<&str> {
    let upgrade = headers.get(header::UPGRADE)?;
    upgrade.as_bytes().eq_ignore_ascii_case(b"websocket").then_some(())?;
    offered(headers).find_map(|word| word.strip_prefix(BEARER))
}

/// Whether whoever asks is a program, a page of this endpoint, or one whose origin may read answers.
fn from_here(headers: &HeaderMap, cors: &Cors) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let page = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, host)| host);
    let same = matches!((host, page), (Some(host), Some(page)) if host.eq_ignore_ascii_case(page));
    same || crate::outgoing::allowed(cors, origin)
}

/// A refusal as the one message of a WebSocket, and how that is closed.
fn told(refusal: &Reply) -> (Bytes, CloseCode) {
    let body: Value = serde_json::from_slice(&refusal.body).unwrap_or_default();
    let retry = refusal.headers.get(HeaderName::from_static("retry-after-ms"));
    let retry = retry.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let message = json!({
        "error": refusal.error.unwrap_or("unexpected_error"),
        "detail": body["detail"],
        "status": refusal.status.as_u16(),
        "retry_after_ms": retry,
    });
    let code = match refusal.status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => CloseCode::Again,
        status if status.is_client_error() => CloseCode::Policy,
        _ => CloseCode::Error,
    };
    (message.to_string().into(), code)
}

impl Session {
    /// Tells everything there is to tell, until that is over or the client is gone. `begun` has come with the handshake.
    pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, stream: S, begun: Bytes) {
        let config = WebSocketConfig::default()
            .read_buffer_size(limits::SOCKET_MESSAGE)
            .write_buffer_size(0)
            .max_message_size(Some(limits::SOCKET_MESSAGE))
            .max_frame_size(Some(limits::SOCKET_MESSAGE));
        let mut socket =
            WebSocketStream::from_partially_read(stream, begun.into(), Role::Server, Some(config)).await;
        let idle = self.app.config.idle_time;
        let mut beat = tokio::time::interval(limits::HEARTBEAT.min(idle / 3).max(Duration::from_millis(1)));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let (code, reason) = loop {
            let message = tokio::select! {
                biased;
                came = socket.next() => match came {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                        heard = Instant::now();
                        continue;
                    }
                    // Its close is answered by the library; whatever else ended it, nobody is there.
                    Some(Ok(Message::Close(_))) => {
                        let _ = tokio::time::timeout(CLOSE, socket.flush()).await;
                        return;
                    }
                    Some(Ok(_)) => break (CloseCode::Policy, "this stream takes no messages"),
                    Some(Err(Error::Capacity(_))) => break (CloseCode::Size, "a message is too long"),
                    Some(Err(Error::Utf8(_))) => break (CloseCode::Invalid, "a text is no UTF-8"),
                    Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => return,
                    Some(Err(Error::Protocol(_))) => break (CloseCode::Protocol, "this is no frame of a client"),
                    Some(Err(_)) | None => return,
                },
                piece = self.pieces.recv() => match piece.map(TryInto::try_into) {
                    Some(Ok(text)) => Message::Text(text),
                    // All that is told is JSON.
                    Some(Err(_)) => continue,
                    None if *self.app.ending.borrow() => break (CloseCode::Away, "the daemon ends"),
                    None => break (self.end, ""),
                },
                _ = beat.tick() => {
                    if heard.elapsed() > idle {
                        return;
                    }
                    Message::Ping(Bytes::new())
                }
            };
            // One that takes nothing for so long is gone too.
            if !matches!(tokio::time::timeout(idle, socket.send(message)).await, Ok(Ok(()))) {
                return;
            }
        };
        // Nobody waits for what would have come.
        self.pieces.close();
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        let _ = tokio::time::timeout(CLOSE, async {
            if socket.send(close).await.is_ok() {
                while let Some(Ok(_)) = socket.next().await {}
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn a_page_of_another_origin_needs_to_be_named() {
        let asked = |allowed: &[&str], origin: Option<&str>| {
            let cors = Cors { origins: allowed.iter().map(|&o| o.to_owned()).collect() };
            let mut h = headers(&[(header::HOST, "device.lan:9000")]);
            origin.map(|o| h.insert(header::ORIGIN, HeaderValue::from_str(o).unwrap()));
            from_here(&h, &cors)
        };
        assert!(asked(&[], None), "a program");
        assert!(asked(&[], Some("http://device.lan:9000")) && asked(&[], Some("https://Device.lan:9000")));
        for other in
            ["http://evil.example", "http://device.lan", "http://device.lan:9000.evil.example", "null"]
        {
            assert!(!asked(&[], Some(other)) && !asked(&["http://good.example"], Some(other)), "{other}");
            assert!(asked(&["*"], Some(other)), "{other}: whoever may read answers");
        }
        assert!(asked(&["http://good.example"], Some("http://good.example")));
    }

    #[test]
    fn a_key_is_read_from_the_protocols_of_a_websocket_only() {
        let protocols = (header::SEC_WEBSOCKET_PROTOCOL, "inferd, bearer.correct-horse-battery");
        let upgrade = (header::UPGRADE, "WebSocket");
        let both = headers(&[protocols.clone(), upgrade.clone()]);
        assert_eq!(key(&both), Some("correct-horse-battery"));
        assert_eq!(key(&headers(&[protocols])), None);
        assert_eq!(key(&headers(&[upgrade, (header::SEC_WEBSOCKET_PROTOCOL, "inferd")])), None);
    }

    #[test]
    fn a_refusal_is_told_with_its_words_and_the_code_that_says_whose_fault_it_is() {
        let refused = |status| Reply::refusal(status, "why", "because", true);
        let (message, code) =
            told(&refused(StatusCode::SERVICE_UNAVAILABLE).with_retry_after(Duration::from_secs(5)));
        let message: Value = serde_json::from_slice(&message).unwrap();
        let expected = json!({"error": "why", "detail": "because", "status": 503, "retry_after_ms": 5000});
        assert_eq!((message, code), (expected, CloseCode::Again));
        assert_eq!(told(&refused(StatusCode::UNPROCESSABLE_ENTITY)).1, CloseCode::Policy);
        assert_eq!(told(&refused(StatusCode::INTERNAL_SERVER_ERROR)).1, CloseCode::Error);
    }
}
