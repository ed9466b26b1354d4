//! What the device writes down, over HTTP: how much is logged, telemetry, captured windows.
//!
//! ```text
//! GET  /api/v1/logging      the level, until when it holds, and how many lines were dropped
//! PUT  /api/v1/logging      {"level": "info,inferd_hosts=debug", "for_s": 600}
//! GET  /api/v1/telemetry    the files there are, and how the writing goes
//! GET  /api/v1/telemetry/{file}
//! GET  /api/v1/captures     windows the model was unsure about; DELETE forgets all of them
//! GET  /api/v1/captures/{file}   one as safetensors; DELETE forgets it
//! ```
//!
//! A file is named as a list names it; whatever else a path says is no file.

use crate::metrics::live::Writer;
use crate::{App, Reply, Req, RequestId};
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use inferd_watch::capture::Capture;
use inferd_watch::shelf::Shelf;
use inferd_watch::telemetry::Telemetry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use serde::Deserialize;
use serde_json::json;
use std::fmt;
use std::future::Future;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// The longest time a level may be asked for: a day.
const MAX_FOR_S: u64 = 86_400;

tokio::task_local! {
    /// The request this task answers.
    pub(crate) static IN_HAND: RequestId;
}

/// The id of the request that is being handled here, if one is: every log line carries it.
#[must_use]
pub fn request_in_hand() -> Option<RequestId> {
    IN_HAND.try_with(RequestId::clone).ok()
}

/// Work of this request that goes on in a task of its own: its lines carry the id too.
pub(crate) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let id = request_in_hand();
    async move {
        match id {
            Some(id) => IN_HAND.scope(id, work).await,
            None => work.await,
        }
    }
}

/// Which lines are logged: a level, and levels of their own for targets.
///
/// `info,inferd_hosts=debug`: a directive counts for every target that begins with its name, the longest name that fits first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    level: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

/// What is no [`Directives`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectiveError {
    /// No level, or two.
    #[error(
        "one level is needed: off, error, warn, info, debug or trace; others as target=level, separated by commas"
    )]
    Level,
    /// A word that is none of the levels.
    #[error("directive {0} has no such level: off, error, warn, info, debug or trace are there")]
    Word(usize),
    /// A name that no target can have.
    #[error("directive {0} names no target: letters, digits, _ and : are allowed, at most {MAX} of them", MAX = Directives::MAX_NAME)]
    Target(usize),
    /// More than anybody needs.
    #[error("at most {MAX} directives are taken", MAX = Directives::MAX)]
    Many,
}

impl Directives {
    /// The most directives.
    pub const MAX: usize = 32;
    /// The longest name of a target.
    pub const MAX_NAME: usize = 64;

    /// What counts where no directive names the target.
    #[must_use]
    pub fn level(&self) -> LevelFilter {
        self.level
    }

    /// The targets with a level of their own.
    pub fn targets(&self) -> impl Iterator<Item = (&str, LevelFilter)> {
        self.targets.iter().map(|(t, l)| (t.as_str(), *l))
    }
}

impl From<tracing::Level> for Directives {
    fn from(level: tracing::Level) -> Self {
        Self { level: LevelFilter::from_level(level), targets: Vec::new() }
    }
}

impl FromStr for Directives {
    type Err = DirectiveError;

    fn from_str(text: &str) -> Result<Self, DirectiveError> {
        let level = |word: &str| {
            Some(match word.trim().to_ascii_lowercase().as_str() {
                "off" => LevelFilter::OFF,
                "error" => LevelFilter::ERROR,
                "warn" => LevelFilter::WARN,
                "info" => LevelFilter::INFO,
                "debug" => LevelFilter::DEBUG,
                "trace" => LevelFilter::TRACE,
                _ => return None,
            })
        };
        let (mut all, mut targets) = (None, Vec::new());
        for (i, directive) in text.split(',').enumerate() {
            let number = i + 1;
            if number > Self::MAX {
                return Err(DirectiveError::Many);
            }
            let Some((target, word)) = directive.split_once('=') else {
                if all.replace(level(directive).ok_or(DirectiveError::Word(number))?).is_some() {
                    return Err(DirectiveError::Level);
                }
                continue;
            };
            let target = target.trim_matches(' ');
            let good = (1..=Self::MAX_NAME).contains(&target.len())
                && target.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
            if !good {
                return Err(DirectiveError::Target(number));
            }
            targets.push((target.to_owned(), level(word).ok_or(DirectiveError::Word(number))?));
        }
        Ok(Self { level: all.ok_or(DirectiveError::Level)?, targets })
    }
}

impl fmt::Display for Directives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        self.targets.iter().try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

/// How much is logged now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogState {
    /// The directives in force.
    pub level: String,
    /// Those of the configuration.
    pub configured: String,
    /// How long the ones in force still hold; `None`: until they are changed.
    pub left: Option<Duration>,
    /// Lines that came faster than they could be written, since the start.
    pub lines_dropped: u64,
}

/// Changes how much is logged. The endpoint only asks for it.
pub trait LogControl: Send + Sync {
    /// What is so now.
    fn state(&self) -> LogState;
    /// These from now on, for so long.
    ///
    /// # Errors
    /// One sentence for the operator.
    fn set(&self, wanted: &Directives, lasts: Option<Duration>) -> Result<(), String>;
}

/// What the device writes down.
#[derive(Default)]
pub struct Records {
    log: OnceLock<Box<dyn LogControl>>,
    telemetry: OnceLock<Telemetry>,
    capture: OnceLock<Arc<Capture>>,
}

impl Records {
    /// Lets the log be changed. Only the first one counts.
    pub fn control_log(&self, control: Box<dyn LogControl>) {
        let _ = self.log.set(control);
    }

    /// Shows this telemetry. Only the first one counts.
    pub fn show_telemetry(&self, telemetry: Telemetry) {
        let _ = self.telemetry.set(telemetry);
    }

    /// The telemetry, where it is on.
    #[must_use]
    pub fn telemetry(&self) -> Option<&Telemetry> {
        self.telemetry.get()
    }

    /// Hands unsure windows to this capture. Only the first one counts.
    pub fn capture_to(&self, capture: Arc<Capture>) {
        let _ = self.capture.set(capture);
    }

    /// The capture of unsure windows, where it is on.
    #[must_use]
    pub fn capture(&self) -> Option<&Arc<Capture>> {
        self.capture.get()
    }

    /// Log lines that were dropped since the start.
    #[must_use]
    pub fn lines_dropped(&self) -> u64 {
        self.log.get().map_or(0, |log| log.state().lines_dropped)
    }
}

fn refused(status: StatusCode, kind: &'static str, detail: &str) -> Reply {
    Reply::json(status, &json!({ "detail": detail, "error": kind })).with_error(kind)
}

// ------------------------------------------------------------------------------------------------------------- the log

fn shown(state: &LogState) -> Reply {
    Reply::json(
        StatusCode::OK,
        &json!({
            "level": state.level,
            "configured": state.configured,
            "for_s": state.left.map(|d| d.as_secs()),
            "lines_dropped": state.lines_dropped,
        }),
    )
}

fn log(app: &App) -> Result<&dyn LogControl, Reply> {
    app.records.log.get().map(AsRef::as_ref).ok_or_else(|| {
        refused(StatusCode::NOT_IMPLEMENTED, "logging_fixed", "the log of this process cannot be changed")
    })
}

pub(crate) fn logging(app: &App) -> Reply {
    log(app).map_or_else(|refusal| refusal, |log| shown(&log.state()))
}

/// What is asked of the log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    level: String,
    #[serde(default)]
    for_s: Option<u64>,
}

pub(crate) fn set_logging(app: &App, req: &Req) -> Reply {
    let log = match log(app) {
        Ok(log) => log,
        Err(refusal) => return refusal,
    };
    let unfit = |why: &str| refused(StatusCode::UNPROCESSABLE_ENTITY, "bad_log_level", why);
    let Some(wish) = req.object::<Wish>() else {
        let detail =
            "{\"level\": \"info,inferd_hosts=debug\", \"for_s\": 600} is needed; for_s may be left out";
        return refused(StatusCode::BAD_REQUEST, "bad_request", detail);
    };
    if wish.for_s.is_some_and(|s| !(1..=MAX_FOR_S).contains(&s)) {
        return unfit(&format!("for_s is a number of seconds from 1 to {MAX_FOR_S}"));
    }
    let directives = match wish.level.parse::<Directives>() {
        Ok(directives) => directives,
        Err(e) => return unfit(&e.to_string()),
    };
    match log.set(&directives, wish.for_s.map(Duration::from_secs)) {
        Ok(()) => shown(&log.state()),
        Err(why) => refused(StatusCode::INTERNAL_SERVER_ERROR, "unexpected_error", &why),
    }
}

// ------------------------------------------------------------------------------------------------------------ the files

/// Looks at files away from the thread that answers requests.
async fn away<T: Send + 'static>(look: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Reply> {
    let looked = tokio::task::spawn_blocking(look).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    looked.map_err(|e| {
        let detail = format!("the files cannot be read or changed: {e}");
        refused(StatusCode::SERVICE_UNAVAILABLE, "storage", &detail).with_retry_after(Duration::from_secs(60))
    })
}

/// The name at the end of a path, as it may be repeated.
fn file_of(req: &Req) -> &str {
    req.path.rsplit('/').next().unwrap_or_default()
}

fn no_file(name: &str) -> Reply {
    let plain = name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let detail = if plain { format!("there is no file {name}") } else { "there is no such file".to_owned() };
    refused(StatusCode::NOT_FOUND, "not_found", &detail)
}

async fn file(shelf: Option<Shelf>, req: &Req) -> Reply {
    let name = file_of(req).to_owned();
    let Some(shelf) = shelf else { return no_file(&name) };
    let wanted = name.clone();
    let bytes = match away(move || shelf.read(&wanted)).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return no_file(&name),
        Err(refusal) => return refusal,
    };
    let kind = match name.rsplit('.').next() {
        Some("gz") => "application/gzip",
        Some("ndjson") => "application/x-ndjson",
        _ => "application/octet-stream",
    };
    let reply = Reply::new(StatusCode::OK, kind, bytes);
    // Names on a shelf are letters, digits, dots and dashes.
    match HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        Ok(value) => reply.with(header::CONTENT_DISPOSITION, value),
        Err(_) => reply,
    }
}

pub(crate) async fn telemetry(app: &App) -> Reply {
    let Some(telemetry) = app.records.telemetry().cloned() else {
        return Reply::json(StatusCode::OK, &json!({ "enabled": false, "files": [] }));
    };
    let shelf = telemetry.shelf().clone();
    match away(move || shelf.list()).await {
        Ok(files) => Reply::json(
            StatusCode::OK,
            &json!({
                "enabled": true,
                "quota_bytes": telemetry.shelf().quota(),
                "status": telemetry.status(),
                "files": files,
            }),
        ),
        Err(refusal) => refusal,
    }
}

pub(crate) async fn telemetry_file(app: &App, req: &Req) -> Reply {
    file(app.records.telemetry().map(|t| t.shelf().clone()), req).await
}

pub(crate) async fn captures(app: &App) -> Reply {
    let Some(capture) = app.records.capture().cloned() else {
        return Reply::json(StatusCode::OK, &json!({ "enabled": false, "files": [] }));
    };
    let shelf = capture.shelf().clone();
    match away(move || shelf.list()).await {
        Ok(files) => Reply::json(
            StatusCode::OK,
            &json!({
                "enabled": true,
                "quota_bytes": capture.shelf().quota(),
                "threshold": capture.threshold(),
                "status": capture.counts(),
                "files": files,
            }),
        ),
        Err(refusal) => refusal,
    }
}

pub(crate) async fn capture_file(app: &App, req: &Req) -> Reply {
    file(app.records.capture().map(|c| c.shelf().clone()), req).await
}

pub(crate) async fn drop_capture(app: &App, req: &Req) -> Reply {
    let name = file_of(req).to_owned();
    let Some(shelf) = app.records.capture().map(|c| c.shelf().clone()) else { return no_file(&name) };
    let wanted = name.clone();
    match away(move || shelf.remove(&wanted)).await {
        Ok(true) => Reply::json(StatusCode::OK, &json!({ "removed": 1 })),
        Ok(false) => no_file(&name),
        Err(refusal) => refusal,
    }
}

pub(crate) async fn drop_captures(app: &App) -> Reply {
    let Some(shelf) = app.records.capture().map(|c| c.shelf().clone()) else {
        return Reply::json(StatusCode::OK, &json!({ "removed": 0 }));
    };
    let all = move || {
        let mut removed = 0;
        for item in shelf.list()? {
            removed += u64::from(shelf.remove(&item.name)?);
        }
        Ok(removed)
    };
    match away(all).await {
        Ok(removed) => Reply::json(StatusCode::OK, &json!({ "removed": removed })),
        Err(refusal) => refusal,
    }
}

// ---------------------------------------------------------------------------------------------------------- the numbers

/// The numbers of what is written down.
pub(crate) struct Numbers(pub Arc<Records>);

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Numbers").finish_non_exhaustive()
    }
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer { encoder: &mut encoder };
        let log = self.0.log.get().map(|log| log.state());
        out.counter(
            "inferd_log_lines_dropped",
            "Log lines that came faster than they could be written",
            log.map(|log| (vec![], log.lines_dropped)),
        )?;
        if let Some(telemetry) = self.0.telemetry().map(Telemetry::status) {
            for (name, help, value) in [
                ("inferd_telemetry_lines", "Lines of telemetry that were made", telemetry.lines),
                (
                    "inferd_telemetry_lines_dropped",
                    "Lines of telemetry that could not be kept until they could be written",
                    telemetry.dropped,
                ),
                (
                    "inferd_telemetry_written_bytes",
                    "Bytes of telemetry that were written, the compressed ones included",
                    telemetry.written,
                ),
                ("inferd_telemetry_write_failures", "Writes of telemetry that failed", telemetry.failures),
            ] {
                out.counter(name, help, [(vec![], value)])?;
            }
        }
        if let Some(capture) = self.0.capture().map(|c| c.counts()) {
            out.counter(
                "inferd_captures",
                "Windows below the threshold of confidence, by what became of them",
                [("kept", capture.kept), ("passed_over", capture.passed_over), ("failed", capture.failed)]
                    .map(|(outcome, n)| (vec![("outcome", outcome)], n)),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_and_written_back() {
        for (text, back) in [
            ("info", "info"),
            ("DEBUG", "debug"),
            ("off", "off"),
            ("warn,inferd_hosts=trace", "warn,inferd_hosts=trace"),
            (" inferd_api::router = Debug , error ", "error,inferd_api::router=debug"),
        ] {
            let read: Directives = text.parse().unwrap();
            assert_eq!(read.to_string(), back);
            assert_eq!(back.parse::<Directives>().unwrap(), read);
        }
    }

    #[test]
    fn what_is_no_directive_has_its_reason() {
        use DirectiveError::{Level, Many, Target, Word};
        let many = format!("info{}", ",a=info".repeat(Directives::MAX));
        let long = format!("info,{}=info", "a".repeat(Directives::MAX_NAME + 1));
        for (text, why) in [
            ("", Word(1)),
            ("loud", Word(1)),
            ("info,debug", Level),
            ("inferd=debug", Level),
            ("info,inferd=", Word(2)),
            ("info,=debug", Target(2)),
            ("info,a b=debug", Target(2)),
            ("info,a\n=debug", Target(2)),
            ("info,,warn", Word(2)),
            (many.as_str(), Many),
            (long.as_str(), Target(2)),
        ] {
            assert_eq!(text.parse::<Directives>(), Err(why), "{text:?}");
        }
    }
}
