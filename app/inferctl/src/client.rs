//! One request, one answer, and errors that say what to try.

use crate::secure::{Known, Tls};
use inferd_tls::rustls::ClientConfig;
use serde::de::DeserializeOwned;
use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::{Duration, Instant},
};
use ureq::http::Uri;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, TcpConnector};

/// The largest answer that is read.
const MAX_ANSWER: u64 = 64 << 20;

/// Where the daemon is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: Base,
    key: Option<String>,
    timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
}

/// `http[s]://HOST[:PORT][/PREFIX]`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Over TLS.
    pub secure: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port, 80 (443 over TLS) when not said.
    pub port: u16,
    /// Path before every path of ours, without a slash at its end.
    pub prefix: String,
}

/// An answer with any status.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: ureq::http::HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
    /// From sending to the last byte, the connection included.
    pub took: Duration,
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be used.
    #[error("--url {url}: {why}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nothing says which certificate is the device's.
    #[error("--url {url}: {why}")]
    Known {
        /// As it was given.
        url: String,
        /// What is missing.
        why: String,
    },
    /// Nobody answered.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// The reason and what to try.
        why: String,
    },
    /// Somebody answered, but not what was asked for.
    #[error("{0}")]
    Refused(String),
}

impl std::str::FromStr for Base {
    type Err = &'static str;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = with_scheme.parse().map_err(|_| "this is not a URL such as http://device.lan:9000")?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("the URL must begin with http:// or https://"),
        };
        let host =
            uri.host().filter(|h| !h.is_empty()).ok_or("a host is missing, as in http://device.lan:9000")?;
        Ok(Self {
            secure,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http{}://{}{}", if self.secure { "s" } else { "" }, self.authority(), self.prefix)
    }
}

impl Base {
    /// `HOST:PORT` as the `Host` header has it.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Client {
    /// A client for one daemon.
    ///
    /// # Errors
    /// [`ClientError::Url`].
    pub fn new(url: &str, key: Option<String>, timeout: Duration) -> Result<Self, ClientError> {
        let base = url.parse().map_err(|why| ClientError::Url { url: url.to_owned(), why })?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .max_redirects(3)
            .user_agent(concat!("inferctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, base, key, timeout, tls: None })
    }

    /// The same, over TLS where the URL says https, to a device that is known this way.
    ///
    /// # Errors
    /// [`ClientError::Url`] when it is not known in any way.
    pub fn knowing(mut self, device: &Known) -> Result<Self, ClientError> {
        if self.base.secure {
            let config = device.config();
            let config = config.map_err(|why| ClientError::Known { url: self.base.to_string(), why })?;
            let connector = TcpConnector::default().chain(Tls(config.clone()));
            let settings = self.agent.config().clone();
            self.agent = ureq::Agent::with_parts(settings, connector, DefaultResolver::default());
            self.tls = Some(config);
        }
        Ok(self)
    }

    /// The same, with another patience for what [`Client::get`] asks.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What it speaks TLS with, if it does.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    /// Where it asks.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// How long it waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The header that carries the API key, if there is one.
    #[must_use]
    pub fn key_header(&self) -> Option<(String, String)> {
        self.key.clone().map(|key| ("X-API-Key".to_owned(), key))
    }

    /// The address behind the host name.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when there is none.
    pub fn resolve(&self) -> Result<SocketAddr, ClientError> {
        let found = (self.base.host.as_str(), self.base.port).to_socket_addrs();
        found
            .ok()
            .and_then(|mut all| all.next())
            .ok_or_else(|| self.unreachable(format!("nobody knows the host name {}", self.base.host)))
    }

    /// GET; any status is an answer.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn get(&self, path: &str) -> Result<Answer, ClientError> {
        let request = self.agent.get(self.url(path));
        let mut request = request.config().timeout_global(Some(self.timeout)).build();
        if let Some((name, value)) = self.key_header() {
            request = request.header(name, value);
        }
        let start = Instant::now();
        self.answer(start, request.call())
    }

    /// POST; any status is an answer.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn post(&self, path: &str, headers: &[(String, String)], body: &[u8]) -> Result<Answer, ClientError> {
        let mut request = self.agent.post(self.url(path));
        for (name, value) in headers.iter().cloned().chain(self.key_header()) {
            request = request.header(name, value);
        }
        let start = Instant::now();
        self.answer(start, request.send(body))
    }

    /// POST whose answer is read as it comes; `whole` bounds how long that may last. Any other status than 200 is a refusal.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or [`ClientError::Refused`] with the server's reason.
    pub fn follow(
        &self,
        path: &str,
        body: &[u8],
        whole: Duration,
    ) -> Result<ureq::BodyReader<'static>, ClientError> {
        let request = self.agent.post(self.url(path)).header("Content-Type", "application/json");
        let mut request = request
            .config()
            .timeout_global(Some(whole))
            .timeout_connect(Some(self.timeout))
            .timeout_recv_response(Some(self.timeout))
            .build();
        if let Some((name, value)) = self.key_header() {
            request = request.header(name, value);
        }
        let start = Instant::now();
        let outcome = request.send(body);
        match outcome {
            Ok(response) if response.status() == 200 => Ok(response.into_body().into_reader()),
            other => Err(ClientError::Refused(self.answer(start, other)?.reason())),
        }
    }

    /// PUT; any status is an answer.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn put(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Answer, ClientError> {
        let mut request = self.agent.put(self.url(path)).header("Content-Type", content_type);
        if let Some((name, value)) = self.key_header() {
            request = request.header(name, value);
        }
        let start = Instant::now();
        self.answer(start, request.send(body))
    }

    /// DELETE; any status is an answer.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn delete(&self, path: &str) -> Result<Answer, ClientError> {
        let mut request = self.agent.delete(self.url(path));
        if let Some((name, value)) = self.key_header() {
            request = request.header(name, value);
        }
        let start = Instant::now();
        self.answer(start, request.call())
    }

    /// GET that must be answered with 200 and JSON of this form.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or [`ClientError::Refused`] with the server's reason.
    pub fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.get(path)?.json(path)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn answer(
        &self,
        start: Instant,
        outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer, ClientError> {
        let response = outcome.map_err(|e| self.explain(&e))?;
        let (head, mut body) = response.into_parts();
        let body = body.with_config().limit(MAX_ANSWER).read_to_vec().map_err(|e| self.explain(&e))?;
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, took: start.elapsed() })
    }

    fn unreachable(&self, why: impl Into<String>) -> ClientError {
        ClientError::Unreachable { url: self.base.to_string(), why: why.into() }
    }

    /// The reason in words, and what to try.
    fn explain(&self, error: &ureq::Error) -> ClientError {
        match error {
            ureq::Error::Io(e) => self.explain_io(e),
            ureq::Error::Timeout(_) => self.explain_io(&std::io::ErrorKind::TimedOut.into()),
            ureq::Error::HostNotFound => {
                self.unreachable(format!("nobody knows the host name {}", self.base.host))
            }
            ureq::Error::ConnectionFailed => self.unreachable("no connection could be made"),
            other => self.unreachable(other.to_string()),
        }
    }

    /// The reason of a failed connection in words, and what to try.
    #[must_use]
    pub fn explain_io(&self, error: &std::io::Error) -> ClientError {
        use std::io::ErrorKind;
        self.unreachable(match error.kind() {
            ErrorKind::ConnectionRefused => {
                "nothing listens there. Is the device on, or the daemon of this machine (scripts/run --native)? \
                 --url or INFERD_URL says where it is"
                    .to_owned()
            }
            ErrorKind::TimedOut => format!("no answer within {} s (--timeout)", self.timeout.as_secs_f64()),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
                "it closed the connection before it answered".to_owned()
            }
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                format!("no way leads to {}; is the device on this network?", self.base.host)
            }
            _ => error.to_string(),
        })
    }
}

impl Answer {
    /// The body as JSON of this form, when the status is 200.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the server's reason.
    pub fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        if self.status != 200 {
            return Err(ClientError::Refused(format!("{path}: {}", self.reason())));
        }
        serde_json::from_slice(&self.body)
            .map_err(|e| ClientError::Refused(format!("{path}: the answer is not what was expected: {e}")))
    }

    /// What the server says about a request it did not honour, in one line.
    #[must_use]
    pub fn reason(&self) -> String {
        let mut line = format!("{} {}", self.status, reason_of(&self.body));
        if let Some(wait) = self.headers.get("retry-after").and_then(|v| v.to_str().ok()) {
            line += &format!(" (retry after {wait} s)");
        }
        line
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// The sentence in a refusal: FastAPI's `detail` (a text or a list of `{loc, msg}`), the protocol's `error`, or the text.
#[must_use]
pub fn reason_of(body: &[u8]) -> String {
    use serde_json::Value;
    let text = || {
        let text = String::from_utf8_lossy(body);
        let line = text.trim().lines().next().unwrap_or("").trim();
        if line.is_empty() { "without a reason".to_owned() } else { line.chars().take(300).collect() }
    };
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return text() };
    match (&value["detail"], &value["error"]) {
        (Value::String(s), _) | (_, Value::String(s)) => s.clone(),
        (Value::Array(items), _) => items
            .iter()
            .map(|item| {
                let message = item["msg"].as_str().unwrap_or("invalid");
                let message = message.strip_prefix("Value error, ").unwrap_or(message);
                let path: Vec<String> = item["loc"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
                    .collect();
                if path.is_empty() { message.to_owned() } else { format!("{}: {message}", path.join(".")) }
            })
            .collect::<Vec<_>>()
            .join("; "),
        _ => text(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let table = [
            ("http://127.0.0.1:9000", "127.0.0.1", 9000, ""),
            ("http://device.lan", "device.lan", 80, ""),
            ("device.lan:9000", "device.lan", 9000, ""),
            ("http://[::1]:9000/", "::1", 9000, ""),
            ("http://gateway:80/devices/7/", "gateway", 80, "/devices/7"),
        ];
        for (url, host, port, prefix) in table {
            let base: Base = url.parse().unwrap();
            assert_eq!((base.host.as_str(), base.port, base.prefix.as_str()), (host, port, prefix), "{url}");
        }
        assert_eq!("http://[::1]:9000/a".parse::<Base>().unwrap().to_string(), "http://[::1]:9000/a");
        let secure: Base = "https://device.lan/a".parse().unwrap();
        assert_eq!((secure.port, secure.to_string().as_str()), (443, "https://device.lan:443/a"));
        for url in ["ftp://x", "http://", "http://a b"] {
            assert!(url.parse::<Base>().is_err(), "{url}");
        }
    }

    #[test]
    fn refusals_of_every_form_give_their_sentence() {
        let table: &[(&str, &str)] = &[
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            (r#"{"error":"model x is not known"}"#, "model x is not known"),
            (r#"{"detail":"all 8 slots are taken","error":"queue_full"}"#, "all 8 slots are taken"),
            (
                r#"{"detail":[{"type":"value_error","loc":["body","x"],"msg":"Value error, Expected 100 timesteps, got 105"}]}"#,
                "body.x: Expected 100 timesteps, got 105",
            ),
            (
                r#"{"detail":[{"loc":["body","x",3,0],"msg":"Input should be a valid number"},{"msg":"also"}]}"#,
                "body.x.3.0: Input should be a valid number; also",
            ),
            ("Internal Server Error\n", "Internal Server Error"),
            ("<html>\n<body>", "<html>"),
            ("", "without a reason"),
        ];
        for (body, sentence) in table {
            assert_eq!(reason_of(body.as_bytes()), *sentence, "{body}");
        }
    }

    #[test]
    fn a_port_where_nobody_listens_is_explained() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(&format!("http://{free}"), None, Duration::from_secs(5)).unwrap();
        let error = client.get("/").unwrap_err().to_string();
        assert!(error.contains("nothing listens there") && error.contains("--url"), "{error}");
    }
}
