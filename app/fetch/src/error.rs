//! Why nothing came, or no more of it.

use crate::target::{About, Refused};

/// Why a bundle was not fetched. [`FetchError::code`] is stable; the sentence is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The address is none.
    #[error(
        "{0:?} is not an address of a bundle: it must be http://HOST[:PORT]/PATH without a user or password"
    )]
    BadUrl(String),
    /// The address, or a redirect, leads to HTTPS.
    #[error(
        "{0} asks for HTTPS, which this version does not speak; give an http:// address: a bundle proves itself by its signatures"
    )]
    HttpsUnsupported(String),
    /// A redirect led back to where it came from.
    #[error("{0} redirects in a circle")]
    RedirectLoop(String),
    /// More redirects than are followed.
    #[error("{url} redirects more than {limit} times")]
    TooManyRedirects {
        /// Where it began.
        url: String,
        /// The limit.
        limit: usize,
    },
    /// A redirect that names no usable address.
    #[error("{0} redirects to nowhere: its Location header is missing or not an http:// address")]
    BadRedirect(String),
    /// An address that a redirect led to is not valid any more.
    #[error("the address at {host} that a redirect led to is not valid any more")]
    RedirectExpired {
        /// Host and port.
        host: String,
    },
    /// The name is not known (now).
    #[error("the name {0} could not be resolved; check the device's DNS server")]
    NameUnknown(String),
    /// No TCP connection.
    #[error("no connection to {host}: {reason}")]
    NoConnection {
        /// Host and port.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// Nothing came in time.
    #[error("{host} sent nothing for {seconds} s while waiting for {phase}")]
    Timeout {
        /// Host and port.
        host: String,
        /// A connection, an answer, data.
        phase: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// Bytes trickle.
    #[error("{host} sends fewer than {limit} bytes per second")]
    TooSlow {
        /// Host and port.
        host: String,
        /// The least rate.
        limit: u64,
    },
    /// The connection ended amid an answer.
    #[error("the connection to {host} was cut: {reason}")]
    Cut {
        /// Host and port.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// 408, 425, 429 or 5xx.
    #[error("{host} answered {status}: it cannot serve now")]
    ServerBusy {
        /// Host and port.
        host: String,
        /// The status.
        status: u16,
        /// Seconds it asks to wait.
        retry_after: Option<u64>,
    },
    /// 401 or 403.
    #[error("{host} answered {status}: this device has no right to that address; check the token")]
    Unauthorized {
        /// Host and port.
        host: String,
        /// The status.
        status: u16,
    },
    /// 404 or 410.
    #[error("{host} answered {status}: there is nothing at that address")]
    NotFound {
        /// Host and port.
        host: String,
        /// The status.
        status: u16,
    },
    /// Any other status.
    #[error("{host} answered {status}, which is no answer to a download")]
    ServerRefused {
        /// Host and port.
        host: String,
        /// The status.
        status: u16,
    },
    /// The body is encoded although identity was asked for.
    #[error(
        "{host} or a proxy before it sends the bundle with Content-Encoding {encoding:?}; serve it as it is (identity)"
    )]
    ContentEncoded {
        /// Host and port.
        host: String,
        /// What the header says, at most 32 characters.
        encoding: String,
    },
    /// A page for people came instead of a bundle.
    #[error("{0} sent a web page instead of a bundle: is there a login page (captive portal) between?")]
    CaptivePortal(String),
    /// What came does not begin like a bundle.
    #[error("{0} is not a bundle: it does not begin with INFERDMB")]
    NotABundle(String),
    /// The content ends before the bundle does.
    #[error("{name} has {has} bytes, the bundle in it has {wants}: it was cut off when it was copied there")]
    Truncated {
        /// Where it is.
        name: String,
        /// Its length.
        has: u64,
        /// The bundle's length.
        wants: u64,
    },
    /// The content goes on after the bundle's end.
    #[error("{name} has {has} bytes, the bundle in it only {wants}: something was appended")]
    TooLong {
        /// Where it is.
        name: String,
        /// Its length.
        has: u64,
        /// The bundle's length.
        wants: u64,
    },
    /// A Content-Range that does not fit what was asked for.
    #[error("{host} answered a Range request with another range; it or a proxy before it is broken")]
    WrongRange {
        /// Host and port.
        host: String,
    },
    /// The content changed between requests, again and again.
    #[error("the content of {0} changed while it was fetched")]
    ContentChanged(String),
    /// The budget of bytes is spent.
    #[error(
        "{fetched} bytes came for a bundle of {total}: stopped, so that a bad line costs no endless traffic"
    )]
    TooManyBytes {
        /// What came.
        fetched: u64,
        /// The bundle's length.
        total: u64,
    },
    /// The budget of time is spent.
    #[error("not complete after {0} s")]
    TookTooLong(u64),
    /// The digest that came with the address is another's.
    #[error("the SHA-256 of the bundle is {found}, announced was {announced}")]
    WrongDigest {
        /// Of the bundle, hex.
        found: String,
        /// What the server announced, hex.
        announced: String,
    },
    /// A document of the fleet server that cannot be understood.
    #[error("{url} is not what a fleet server answers: {reason}")]
    BadDocument {
        /// Where it is.
        url: String,
        /// What the parser said.
        reason: String,
    },
    /// The stick is gone.
    #[error("the USB stick with {0} was removed; put it back to continue")]
    StickRemoved(String),
    /// The stick cannot be read.
    #[error("{name} on the USB stick cannot be read: {reason}")]
    StickUnreadable {
        /// The file.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// The device said no.
    #[error("{}", .0.sentence)]
    Refused(Refused),
    /// Interrupted too often without progress.
    #[error("given up after {tries} tries without progress; the last: {last}")]
    GaveUp {
        /// How many.
        tries: u32,
        /// The last interruption.
        last: Box<FetchError>,
    },
}

impl FetchError {
    /// The stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::BadUrl(_) => "bad-url",
            Self::HttpsUnsupported(_) => "https-unsupported",
            Self::RedirectLoop(_) => "redirect-loop",
            Self::TooManyRedirects { .. } => "too-many-redirects",
            Self::BadRedirect(_) => "bad-redirect",
            Self::RedirectExpired { .. } => "redirect-expired",
            Self::NameUnknown(_) => "name-unknown",
            Self::NoConnection { .. } => "no-connection",
            Self::Timeout { .. } => "timeout",
            Self::TooSlow { .. } => "too-slow",
            Self::Cut { .. } => "cut",
            Self::ServerBusy { .. } => "server-busy",
            Self::Unauthorized { .. } => "unauthorized",
            Self::NotFound { .. } => "not-found",
            Self::ServerRefused { .. } => "server-refused",
            Self::ContentEncoded { .. } => "content-encoded",
            Self::CaptivePortal(_) => "captive-portal",
            Self::NotABundle(_) => "not-a-bundle",
            Self::Truncated { .. } => "truncated",
            Self::TooLong { .. } => "too-long",
            Self::WrongRange { .. } => "wrong-range",
            Self::ContentChanged(_) => "content-changed",
            Self::TooManyBytes { .. } => "too-many-bytes",
            Self::TookTooLong(_) => "took-too-long",
            Self::WrongDigest { .. } => "wrong-digest",
            Self::BadDocument { .. } => "bad-document",
            Self::StickRemoved(_) => "stick-removed",
            Self::StickUnreadable { .. } => "stick-unreadable",
            Self::Refused(refused) => &refused.code,
            Self::GaveUp { last, .. } => last.code(),
        }
    }

    /// Whether the same again may go well: the line, not the content, is to blame.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::RedirectExpired { .. }
                | Self::NameUnknown(_)
                | Self::NoConnection { .. }
                | Self::Timeout { .. }
                | Self::TooSlow { .. }
                | Self::Cut { .. }
                | Self::ServerBusy { .. }
        )
    }

    /// Whether trying again later, unchanged, makes sense: the bundle itself was not judged.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::GaveUp { .. }
            | Self::CaptivePortal(_)
            | Self::ContentChanged(_)
            | Self::TooManyBytes { .. }
            | Self::TookTooLong(_)
            | Self::StickRemoved(_)
            | Self::BadDocument { .. }
            | Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::ServerRefused { .. } => true,
            Self::Refused(refused) => refused.about != About::Bundle,
            other => other.is_interruption(),
        }
    }
}

impl From<Refused> for FetchError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}
