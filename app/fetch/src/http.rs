//! One HTTP exchange after another: connections, redirects, and what each status means. Plain HTTP/1.1, never cleartext secrets
//! to another host: the token goes to the authority it was given for and to no redirect's.

use crate::error::FetchError;
use crate::header;
use crate::limits::{LARGEST_DOCUMENT, Limits, REDIRECTS};
use crate::url::Url;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::error::Error as _;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How this device calls itself.
const AGENT: &str = concat!("inferd/", env!("CARGO_PKG_VERSION"));

/// A token and the only authority it is for.
#[derive(Clone)]
pub(crate) struct Token {
    authority: String,
    value: HeaderValue,
}

impl Token {
    /// `Authorization: value`, for the host of `url` alone. `None` when the value cannot be sent.
    pub(crate) fn new(url: &Url, value: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some(Self { authority: url.authority(), value })
    }
}

/// A connection; its task ends with it.
struct Link {
    authority: String,
    sender: http1::SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes requests, one at a time, and keeps the last connection for the next.
pub(crate) struct Client {
    limits: Limits,
    token: Option<Token>,
    link: Option<Link>,
}

/// An answer whose body is still to come.
pub(crate) struct Answer {
    /// Where it came from, after redirects.
    pub url: Url,
    pub response: Response<Incoming>,
}

impl Client {
    pub(crate) fn new(limits: Limits, token: Option<Token>) -> Self {
        Self { limits, token, link: None }
    }

    /// GET, following redirects.
    pub(crate) async fn get(&mut self, from: &Url, headers: &HeaderMap) -> Result<Answer, FetchError> {
        let mut url = from.clone();
        let mut seen = vec![url.clone()];
        loop {
            let response = self.exchange(Method::GET, &url, headers, Bytes::new(), true).await?;
            if !is_redirect(response.status()) {
                return Ok(Answer { url, response });
            }
            let next = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .ok_or_else(|| FetchError::BadRedirect(url.shown()))?;
            let next = url.join(next).map_err(|e| match e {
                FetchError::BadUrl(_) => FetchError::BadRedirect(url.shown()),
                other => other,
            })?;
            if seen.contains(&next) {
                return Err(FetchError::RedirectLoop(from.shown()));
            }
            if seen.len() > REDIRECTS {
                return Err(FetchError::TooManyRedirects { url: from.shown(), limit: REDIRECTS });
            }
            seen.push(next.clone());
            url = next;
        }
    }

    /// A JSON document, or what the server said instead.
    pub(crate) async fn document(&mut self, url: &Url) -> Result<Vec<u8>, FetchError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/hal+json, application/json"));
        let answer = self.get(url, &headers).await?;
        let host = answer.url.authority();
        if answer.response.status() != StatusCode::OK {
            return Err(status_error(&host, &answer.response));
        }
        identity(&host, answer.response.headers())?;
        let mut body = answer.response.into_body();
        let mut document = Vec::new();
        while let Some(bytes) = frame(&mut body, &host, self.limits.silence).await? {
            if document.len() + bytes.len() > LARGEST_DOCUMENT {
                return Err(FetchError::ServerRefused { host, status: 200 });
            }
            document.extend_from_slice(&bytes);
        }
        Ok(document)
    }

    /// Sends a JSON document; answers the status. On a connection of its own, so that a request is never lost with one that the
    /// server was just closing.
    pub(crate) async fn send(&mut self, method: Method, url: &Url, json: Vec<u8>) -> Result<(), FetchError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = self.exchange(method, url, &headers, Bytes::from(json), false).await?;
        if response.status().is_success() { Ok(()) } else { Err(status_error(&url.authority(), &response)) }
    }

    async fn exchange(
        &mut self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
        reuse: bool,
    ) -> Result<Response<Incoming>, FetchError> {
        let authority = url.authority();
        let mut kept = self.link.take().filter(|link| reuse && link.authority == authority);
        if let Some(link) = &mut kept {
            // Ready at once, or the last body was not read to its end.
            if !matches!(timeout(Duration::from_millis(100), link.sender.ready()).await, Ok(Ok(()))) {
                kept = None;
            }
        }
        if let Some(mut link) = kept {
            let request = self.request(&method, url, headers, body.clone());
            match self.answer(&mut link, request, &authority).await {
                // The server may have closed it meanwhile: that is no failure of this request.
                Err(FetchError::Cut { .. }) => {}
                answer => {
                    self.link = Some(link);
                    return answer;
                }
            }
        }
        let mut link = self.connect(url).await?;
        let request = self.request(&method, url, headers, body);
        let answer = self.answer(&mut link, request, &authority).await?;
        self.link = Some(link);
        Ok(answer)
    }

    fn request(&self, method: &Method, url: &Url, more: &HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        // `Url` holds what was parsed as a URI; the fallback asks for the root.
        *request.uri_mut() = url.path().parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::from_str(&url.authority()) {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(
            more.iter().map(|(name, value): (&HeaderName, &HeaderValue)| (name.clone(), value.clone())),
        );
        if let Some(token) = self.token.as_ref().filter(|token| token.authority == url.authority()) {
            headers.insert(AUTHORIZATION, token.value.clone());
        }
        request
    }

    async fn answer(
        &self,
        link: &mut Link,
        request: Request<Full<Bytes>>,
        host: &str,
    ) -> Result<Response<Incoming>, FetchError> {
        match timeout(self.limits.silence, link.sender.send_request(request)).await {
            Err(_) => Err(silent(host, "an answer", self.limits.silence)),
            Ok(Err(e)) => Err(cut(host, &e)),
            Ok(Ok(response)) => Ok(response),
        }
    }

    async fn connect(&self, url: &Url) -> Result<Link, FetchError> {
        let host = url.authority();
        let unknown = || FetchError::NameUnknown(url.host().to_owned());
        let addresses = match timeout(self.limits.connect, lookup_host((url.host(), url.port()))).await {
            Err(_) => return Err(silent(&host, "its address", self.limits.connect)),
            Ok(found) => found.map_err(|_| unknown())?,
        };
        let mut failure = unknown();
        for address in addresses.take(4) {
            match timeout(self.limits.connect, TcpStream::connect(address)).await {
                Err(_) => failure = silent(&host, "a connection", self.limits.connect),
                Ok(Err(e)) => {
                    failure = FetchError::NoConnection { host: host.clone(), reason: e.to_string() }
                }
                Ok(Ok(stream)) => {
                    let handshake =
                        http1::Builder::new().max_buf_size(64 << 10).handshake(TokioIo::new(stream));
                    let (sender, connection) = handshake.await.map_err(|e| cut(&host, &e))?;
                    let task = tokio::spawn(async move {
                        // Its end is seen where an answer or a body ends.
                        let _ended = connection.await;
                    });
                    return Ok(Link { authority: host, sender, task });
                }
            }
        }
        Err(failure)
    }
}

/// The next bytes of a body; `None` at its end.
pub(crate) async fn frame(
    body: &mut Incoming,
    host: &str,
    silence: Duration,
) -> Result<Option<Bytes>, FetchError> {
    loop {
        match timeout(silence, body.frame()).await {
            Err(_) => return Err(silent(host, "data", silence)),
            Ok(None) => return Ok(None),
            Ok(Some(Err(e))) => return Err(cut(host, &e)),
            Ok(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data()
                    && !bytes.is_empty()
                {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn silent(host: &str, phase: &'static str, waited: Duration) -> FetchError {
    FetchError::Timeout { host: host.to_owned(), phase, seconds: waited.as_secs() }
}

fn cut(host: &str, e: &hyper::Error) -> FetchError {
    let reason = e.source().map_or_else(|| e.to_string(), |source| format!("{e}: {source}"));
    FetchError::Cut { host: host.to_owned(), reason }
}

/// Refuses a body that is encoded: a chunk's digest is over the bytes as they are, and a range of an encoded body is not a range
/// of the bundle.
pub(crate) fn identity(host: &str, headers: &HeaderMap) -> Result<(), FetchError> {
    for value in headers.get_all(hyper::header::CONTENT_ENCODING) {
        let encoding = value.to_str().unwrap_or("?").trim();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            return Err(FetchError::ContentEncoded {
                host: host.to_owned(),
                encoding: encoding.chars().take(32).collect(),
            });
        }
    }
    Ok(())
}

/// What a status that is no success means.
pub(crate) fn status_error(host: &str, response: &Response<Incoming>) -> FetchError {
    let (host, status) = (host.to_owned(), response.status().as_u16());
    match status {
        401 | 403 => FetchError::Unauthorized { host, status },
        404 | 410 => FetchError::NotFound { host, status },
        408 | 425 | 429 | 500..=599 => {
            let asked = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
            FetchError::ServerBusy { host, status, retry_after: asked.and_then(header::retry_after) }
        }
        _ => FetchError::ServerRefused { host, status },
    }
}
