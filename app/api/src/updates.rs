//! Updates over HTTP: the way in for pushed bundles, and what the updater does, for people and tools.
//!
//! ```text
//! PUT  /api/v1/bundle      a bundle, streamed into the free slot; Content-Range goes on with one that was cut
//! GET  /api/v1/bundle      how far it is, and from where a sender may go on
//! GET  /api/v1/events      progress and verdicts as server-sent events
//! GET  /api/v1/slots       slots, floors, keys, verdicts
//! POST /api/v1/rollback /api/v1/trust /api/v1/pull
//! POST /api/v1/system/try  restarts the board to try the system that is staged
//! DELETE /api/v1/pull      ends a pull; what came is kept
//! GET  /commit-ready       may another updater confirm this boot?
//! ```
//!
//! Who may push, whether another transfer runs and whether the bundle can fit at all is decided before the first byte of the
//! body is asked for. A refusal is a 4xx whose `code` and `verdict` are the gate's own; nothing is decided here.

use crate::access::Need;
use crate::body::{BodyError, Upload};
use crate::http::Stream;
use crate::records::carried;
use crate::router::told;
use crate::serve::Connection;
use crate::{App, Reply, Req, health, limits};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};
use inferd_hosts::Origin;
use inferd_rollout::{
    Accepted, Busy, Gate, InstallError, Outcome, Resumable, Serves, Status, TrustError, Updater, Verdict, Way,
};
use inferd_system::state::Phase;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What the endpoint knows of updates.
#[derive(Default)]
pub enum Updates {
    /// They are not configured: everything is as without them.
    #[default]
    Off,
    /// The updater is being opened.
    Starting,
    /// It could not be opened; factory models serve.
    Broken(String),
    /// It is there.
    On(Box<Desk>),
}

/// The updater, and what the endpoint needs beside it.
pub struct Desk {
    /// The updater.
    pub updater: Arc<Updater>,
    /// This device's name, as permits say it.
    pub device: String,
    /// Fetches bundles by URL; `None`: it may not.
    pub pull: Option<Arc<dyn Pull>>,
}

/// Fetches a bundle by URL. The endpoint only asks for it: what can be fetched, and how, is another room's.
pub trait Pull: Send + Sync {
    /// Begins; it goes on by itself.
    fn begin(&self, wish: PullWish) -> Pulling<'_>;
    /// The last one, in progress or over, as it is shown.
    fn last(&self) -> Option<Value>;
    /// Ends the one in progress and gives it as it is shown, once another transfer can begin. `None`: none was in progress, or
    /// everything had come and its trial begins.
    fn end(&self) -> Ended<'_>;
}

/// What [`Pull::begin`] gives.
pub type Pulling<'a> = Pin<Box<dyn Future<Output = Result<(), PullError>> + Send + 'a>>;

/// What [`Pull::end`] gives.
pub type Ended<'a> = Pin<Box<dyn Future<Output = Option<Value>> + Send + 'a>>;

/// What is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullWish {
    /// `http://...`
    pub url: String,
    /// A bearer token for that server.
    #[serde(default)]
    pub token: Option<String>,
    /// SHA-256 of the whole bundle file, hex; checked before its trial.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// Why nothing is fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// Not now.
    #[error("{0}")]
    Busy(Busy),
    /// Not this.
    #[error("{sentence}")]
    Refused {
        /// Why, for programs.
        code: String,
        /// Why, for people.
        sentence: String,
    },
}

/// A refusal of these routes.
#[derive(Serialize)]
struct Refusal<'a> {
    /// The class, as metrics count it.
    error: &'a str,
    /// The reason, stable.
    code: &'a str,
    /// The reason in words.
    detail: &'a str,
    /// Whether the same bytes may be taken later.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    retry: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'a Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<&'a Resumable>,
}

pub(crate) fn refusal(status: StatusCode, error: &'static str, code: &str, detail: &str) -> Reply {
    Reply::json(status, &Refusal { error, code, detail, retry: false, verdict: None, resume: None })
        .with_error(error)
}

fn bad_request(detail: &str) -> Reply {
    refusal(StatusCode::BAD_REQUEST, "bad_request", "bad-request", detail)
}

fn busy(busy: Busy) -> Reply {
    let status = match busy {
        Busy::Transfer(_) | Busy::Trial => StatusCode::CONFLICT,
        Busy::Starting | Busy::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut detail = busy.to_string();
    if busy == Busy::Transfer(Way::Pull) {
        detail.push_str(HOW_TO_END_A_PULL);
    }
    refusal(status, "busy", busy.code(), &detail).with_retry_after(Duration::from_secs(2))
}

/// Follows a sentence that names a pull as what is in the way.
const HOW_TO_END_A_PULL: &str = "; DELETE /api/v1/pull ends it";

/// The updater, or why there is none.
fn desk(app: &App) -> Result<Arc<Updates>, Reply> {
    let updates = app.updates.load_full();
    match &*updates {
        Updates::On(_) => Ok(updates),
        Updates::Off => Err(refusal(
            StatusCode::NOT_IMPLEMENTED,
            "updates_off",
            "updates-off",
            "updates are not configured on this device: [updates] in its configuration names the slots",
        )),
        Updates::Starting => Err(busy(Busy::Starting)),
        Updates::Broken(reason) => {
            Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "updates_broken", "updates-broken", reason)
                .with_retry_after(Duration::from_secs(60)))
        }
    }
}

/// The desk of [`desk`]'s answer.
fn at(updates: &Updates) -> Option<&Desk> {
    if let Updates::On(desk) = updates { Some(desk) } else { None }
}

macro_rules! desk {
    ($updates:ident, $app:expr) => {{
        $updates = match desk($app) {
            Ok(updates) => updates,
            Err(reply) => return reply,
        };
        let Some(desk) = at(&$updates) else { return Reply::not_found() };
        desk
    }};
}

// ------------------------------------------------------------------------------------------------------------- pushed

/// Takes a bundle in. The second value says that the body was not read to its end.
pub(crate) async fn push(app: &App, req: &Req, mut upload: Upload, connection: &Connection) -> (Reply, bool) {
    let (mut transfer, desk) = match admit(app, req, &upload).await {
        Ok(admitted) => admitted,
        Err(reply) => return (reply, upload.announced() != Some(0)),
    };
    let Some(desk) = at(&desk) else { return (Reply::not_found(), true) };
    loop {
        match upload.next().await {
            Ok(Some(piece)) => {
                if let Err(e) = transfer.push(&piece).await {
                    drop(transfer);
                    return (ended(desk, &e).await, true);
                }
            }
            Ok(None) => break,
            Err(e) => {
                drop(transfer);
                return (cut(desk, e).await, true);
            }
        }
    }
    connection.looked_at(true);
    let reply = match transfer.finish().await {
        Ok(accepted) => settled(app, desk, &accepted).await,
        Err(e) => ended(desk, &e).await,
    };
    (reply, false)
}

/// Everything that can be decided from the head.
async fn admit(
    app: &App,
    req: &Req,
    upload: &Upload,
) -> Result<(inferd_rollout::Upload, Arc<Updates>), Reply> {
    let updates = desk(app)?;
    let Some(desk) = at(&updates) else { return Err(Reply::not_found()) };
    let chunked = req.headers.contains_key(header::TRANSFER_ENCODING);
    if !chunked && !req.headers.contains_key(header::CONTENT_LENGTH) {
        let detail = "a bundle needs a Content-Length, or chunked transfer";
        return Err(refusal(StatusCode::LENGTH_REQUIRED, "length_required", "length-required", detail));
    }
    if req.headers.get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity") {
        let detail = "a bundle is sent as it is, without a Content-Encoding";
        return Err(refusal(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "unsupported-encoding",
            detail,
        ));
    }
    let part = match req.headers.get(header::CONTENT_RANGE) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(part).ok_or_else(|| {
            bad_request("Content-Range must be bytes FIRST-LAST/TOTAL, up to the bundle's last byte")
        })?),
    };
    if let (Some(part), Some(len)) = (part, upload.announced())
        && part.total - part.first != len
    {
        return Err(bad_request("Content-Range and Content-Length tell different lengths"));
    }
    let total = part.map(|p| p.total).or_else(|| upload.announced());
    // Which it is, a bundle of models or a system, its manifest says.
    let capacity = {
        let status = desk.updater.status().borrow().clone();
        let of_systems = status.system.iter().map(|told| told.capacity);
        status.slots.iter().map(|s| s.capacity).chain(of_systems).max()
    };
    if let (Some(total), Some(capacity)) = (total, capacity)
        && total > capacity
    {
        let detail = format!("the bundle has {total} bytes, a slot of this device holds {capacity}");
        return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", "slot-too-small", &detail));
    }
    let transfer = match part {
        Some(part) if part.first > 0 => {
            resumable(desk, part).await?;
            desk.updater.begin_at(Way::Push, part.first).await
        }
        _ => desk.updater.begin(Way::Push).await,
    };
    transfer.map(|t| (t, updates.clone())).map_err(busy)
}

/// The part of a bundle that a request carries: from `first` to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    first: u64,
    total: u64,
}

/// `bytes FIRST-LAST/TOTAL` where LAST is the last byte there is: a bundle is sent on to its end.
fn part(text: &str) -> Option<Part> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |s: &str| {
        (!s.is_empty() && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u64>().ok()).flatten()
    };
    let (first, last, total) = (number(first)?, number(last)?, number(total)?);
    (unit.eq_ignore_ascii_case("bytes") && first <= last && last.checked_add(1) == Some(total))
        .then_some(Part { first, total })
}

/// Whether there is something to go on with at this byte.
async fn resumable(desk: &Desk, part: Part) -> Result<(), Reply> {
    let known = desk.updater.resumable().await;
    let (status, code, detail) = match &known {
        None => {
            let detail =
                "there is no interrupted transfer to go on with; send the bundle from its first byte";
            (StatusCode::CONFLICT, "nothing-to-resume", detail.to_owned())
        }
        Some(r) if r.total != part.total => {
            let detail = format!("the interrupted transfer is of a bundle of {} bytes", r.total);
            (StatusCode::CONFLICT, "other-bundle", detail)
        }
        Some(r) if part.first > r.offset => {
            let detail = format!("bytes before {} are missing; go on from {}", part.first, r.offset);
            (StatusCode::RANGE_NOT_SATISFIABLE, "gap", detail)
        }
        Some(_) => return Ok(()),
    };
    let resume = known.as_ref();
    let body = Refusal { error: "not_resumable", code, detail: &detail, retry: false, verdict: None, resume };
    Err(Reply::json(status, &body).with_error("not_resumable"))
}

/// The reply to a body that stopped coming.
async fn cut(desk: &Desk, e: BodyError) -> Reply {
    let (status, error) = told(e);
    let resume = desk.updater.resumable().await;
    let detail = e.to_string();
    let resume = resume.as_ref();
    let body = Refusal { error, code: "interrupted", detail: &detail, retry: true, verdict: None, resume };
    let reply = Reply::json(status, &body).with_error(error);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return reply.with_retry_after(Duration::from_secs(5));
    }
    reply
}

/// The reply to a transfer that the updater ended.
async fn ended(desk: &Desk, e: &InstallError) -> Reply {
    let (status, error) = match e {
        InstallError::Refused(v) => (refused_status(v), "bundle_refused"),
        InstallError::Interrupted(_) => (StatusCode::BAD_REQUEST, "bundle_interrupted"),
        InstallError::Storage(v) if v.gate == Gate::Disk => (StatusCode::INSUFFICIENT_STORAGE, "storage"),
        InstallError::Storage(v) if v.gate == Gate::System => by_root(&v.code),
        InstallError::Storage(_) => (StatusCode::INTERNAL_SERVER_ERROR, "storage"),
        InstallError::Misused(_) => (StatusCode::INTERNAL_SERVER_ERROR, "unexpected_error"),
    };
    let resume = if e.retry() { desk.updater.resumable().await } else { None };
    let detail = e.to_string();
    let body = Refusal {
        error,
        code: e.code(),
        detail: &detail,
        retry: e.retry(),
        verdict: e.verdict(),
        resume: resume.as_ref(),
    };
    Reply::json(status, &body).with_error(error)
}

/// What it is called in HTTP that root does nothing with a system now.
fn by_root(code: &str) -> (StatusCode, &'static str) {
    match code {
        "busy" | "system-on-trial" => (StatusCode::CONFLICT, "busy"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "system_unavailable"),
    }
}

/// What a client's mistake is called in HTTP, by the gate that found it.
fn refused_status(verdict: &Verdict) -> StatusCode {
    match verdict.gate {
        Gate::Role | Gate::Revocation | Gate::Trust => StatusCode::FORBIDDEN,
        // The gate looks at the form first, then at the keys.
        Gate::Keys if KEY_CODES.contains(&verdict.code.as_str()) => StatusCode::FORBIDDEN,
        Gate::Floor | Gate::Target | Gate::Engine | Gate::Memory => StatusCode::CONFLICT,
        Gate::Disk => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// Refusals of the keys' gate that are about keys and not about the bundle's form.
const KEY_CODES: &[&str] = &["no-root", "trust-went-back", "unsigned", "unknown-keys", "signature-wrong"];

/// How a bundle stands for its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It was tried: gates or shadow.
    Trial,
    /// It serves and is watched.
    Probation,
    /// It serves for good.
    Committed,
    /// It never served.
    Refused,
    /// It was taken back.
    Reversed,
    /// A system that is there, and is not tried yet.
    Staged,
}

/// Every verdict about this bundle from `number` on, and what they come to.
fn standing<'a>(status: &'a Status, accepted: &Accepted) -> (State, Vec<&'a Verdict>) {
    let about = |v: &&Verdict| v.number >= accepted.verdict && v.bundle.as_ref() == Some(&accepted.bundle);
    let verdicts: Vec<&Verdict> = status.verdicts.iter().filter(about).collect();
    let mut state = if accepted.already { State::Committed } else { State::Trial };
    for v in verdicts.iter().filter(|v| v.number > accepted.verdict) {
        state = match (v.outcome, v.gate) {
            (Outcome::Refuse, _) => State::Refused,
            (Outcome::Reverse, _) => State::Reversed,
            (Outcome::Pass, Gate::Flip) => State::Probation,
            (Outcome::Pass, Gate::Commit) => State::Committed,
            _ => state,
        };
    }
    (state, verdicts)
}

/// Waits for the trial to come to something a sender can use, and says what.
async fn settled(app: &App, desk: &Desk, accepted: &Accepted) -> Reply {
    if accepted.system {
        return staged(desk, accepted);
    }
    let mut ending = app.ending.subscribe();
    let status = if accepted.already {
        desk.updater.status().borrow().clone()
    } else {
        tokio::select! {
            biased;
            status = desk.updater.settled(accepted.verdict) => status,
            _ = ending.wait_for(|ending| *ending) => desk.updater.status().borrow().clone(),
            () = tokio::time::sleep(limits::SETTLE) => desk.updater.status().borrow().clone(),
        }
    };
    let (state, verdicts) = standing(&status, accepted);
    let against = verdicts.iter().rev().find(|v| matches!(v.outcome, Outcome::Refuse | Outcome::Reverse));
    match (state, against) {
        (State::Refused | State::Reversed, Some(&verdict)) => {
            let body = json!({
                "error": "bundle_refused",
                "code": verdict.code,
                "detail": verdict.sentence,
                "verdict": verdict,
                "state": state,
                "bundle": accepted,
                "verdicts": verdicts,
            });
            Reply::json(refused_status(verdict), &body).with_error("bundle_refused")
        }
        _ => {
            let status = if state == State::Trial { StatusCode::ACCEPTED } else { StatusCode::OK };
            Reply::json(status, &json!({ "state": state, "bundle": accepted, "verdicts": verdicts }))
        }
    }
}

/// A system is in its slot. Its trial is a restart of the board: the answer goes first, and the keeper lets requests in flight end.
fn staged(desk: &Desk, accepted: &Accepted) -> Reply {
    let status = desk.updater.status().borrow().clone();
    let (_, verdicts) = standing(&status, accepted);
    let next = if desk.updater.tries_systems() { "try" } else { "wait" };
    if desk.updater.tries_systems() {
        let updater = desk.updater.clone();
        // What stands against it is in its verdict.
        tokio::spawn(carried(async move { updater.try_system().await }));
    }
    let body = json!({ "state": State::Staged, "next": next, "bundle": accepted, "verdicts": verdicts });
    Reply::json(StatusCode::ACCEPTED, &body)
}

// -------------------------------------------------------------------------------------------------------------- shown

/// `GET /api/v1/bundle`.
pub(crate) async fn progress(app: &App, req: &Req) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    let status = desk.updater.status().borrow().clone();
    // What lies on the medium is only looked at while nobody writes there, and for those who may go on with it.
    let resume = match status.install {
        Some(_) => None,
        None if app.config.access.check(Need::Administer, req).is_ok() => desk.updater.resumable().await,
        None => desk.updater.resumable_known(),
    };
    Reply::json(
        StatusCode::OK,
        &json!({
            "install": status.install,
            "trial": status.trial,
            "resume": resume,
            "pull": desk.pull.as_ref().and_then(|p| p.last()),
            "last_verdict": status.verdicts.last(),
        }),
    )
}

/// `GET /api/v1/slots`.
pub(crate) fn slots(app: &App) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    let status = desk.updater.status().borrow().clone();
    let mut body = Map::new();
    body.insert("device".to_owned(), json!(desk.device));
    match serde_json::to_value(&*status) {
        Ok(Value::Object(all)) => body.extend(all),
        other => tracing::error!(?other, "the updater's status is no object"),
    }
    Reply::json(StatusCode::OK, &body)
}

/// What `/status` says about updates.
pub(crate) fn summary(app: &App) -> Value {
    let updates = app.updates.load();
    match &**updates {
        Updates::Off => json!({ "enabled": false }),
        Updates::Starting => json!({ "enabled": true, "state": "starting" }),
        Updates::Broken(reason) => json!({ "enabled": true, "state": "broken", "reason": reason }),
        Updates::On(desk) => {
            let status = desk.updater.status().borrow().clone();
            let ready = desk.updater.commit_ready(app.system_trial.load().as_deref());
            json!({
                "enabled": true,
                "state": "on",
                "device": desk.device,
                "dev_keys_accepted": status.trust.dev,
                "dev_bundle_serves": status.trust.dev_serving,
                "serving": status.serving,
                "slots": status.slots,
                "trial": status.trial,
                "install": status.install,
                "system": status.system,
                "last_verdict": status.verdicts.last(),
                "commit_ready": ready,
                "warnings": status.warnings,
            })
        }
    }
}

/// The system that was tried last and did not stay, where none has come since; `None`: nobody tells of systems here.
pub fn returned_system(app: &App) -> Option<Option<String>> {
    let state = status_of(&app.updates.load())?.system.as_ref()?.state.clone()?;
    let last = state.verdicts.last().filter(|_| state.phase == Phase::Idle);
    let returned = last.filter(|last| last.outcome == inferd_system::state::Outcome::Returned);
    Some(returned.map(|v| format!("{} {}: {}", v.about.product, v.about.version, v.reason.sentence)))
}

/// The updater's status, for metrics.
pub(crate) fn status_of(updates: &Updates) -> Option<Arc<Status>> {
    at(updates).map(|desk| desk.updater.status().borrow().clone())
}

/// Why a directory must not take this model's place, in one sentence, when it came in a bundle: what serves after a start is
/// the updater's to say, and a load or unload behind its back would not last.
pub(crate) fn held_by_bundle(app: &App, model: &str) -> Option<String> {
    let served = app.hosts.get(model)?;
    match served.origin() {
        Origin::Bundle { slot, product, version, .. } => Some(format!(
            "the model is served from slot {slot}, bundle {product} {version}: push a bundle or roll back instead"
        )),
        Origin::Directory(_) => None,
    }
}

/// Why no model is there yet, while the updater still decides what serves.
pub(crate) fn deciding(app: &App) -> Option<&'static str> {
    let updates = app.updates.load();
    let starting = match &**updates {
        Updates::Starting => true,
        Updates::On(desk) => {
            desk.updater.status().borrow().serving.from == inferd_rollout::ServingFrom::Starting
        }
        Updates::Off | Updates::Broken(_) => false,
    };
    starting.then_some("the slots are being verified and their models loaded")
}

/// What keeps this boot from being confirmed: nothing when it may be.
pub fn commit_reasons(app: &App) -> Vec<String> {
    let (_, words) = health::default_words(app);
    let mut reasons = Vec::new();
    if words.state != "ready" {
        reasons.push(format!("the default model does not answer: {}", words.reason));
    }
    let (updates, before) = (app.updates.load(), app.system_trial.load());
    match &**updates {
        Updates::Off => reasons.extend(inferd_rollout::against(&app.hosts, before.as_deref())),
        Updates::Starting => reasons.push("the slots are being opened".to_owned()),
        Updates::Broken(reason) => reasons.push(reason.clone()),
        Updates::On(desk) => reasons.extend(desk.updater.commit_ready(before.as_deref()).reasons),
    }
    reasons.extend(app.system_refused.load().as_deref().cloned());
    reasons
}

/// Says whether this system is on trial, what served under the one before, and what its configuration has against it.
pub fn system_on_trial(app: &App, before: Option<Arc<Serves>>, refused: Option<String>) {
    if let Some(desk) = at(&app.updates.load()) {
        desk.updater.system_is_on_trial(before.is_some());
    }
    app.system_trial.store(before);
    app.system_refused.store(refused.map(Arc::new));
}

/// What serves here and on what, for the system that is tried next to be held against; `None` while that is not decided. `before`: the
/// answer before.
pub fn serves(app: &App, before: &Serves) -> Option<Serves> {
    let decided = !app.hosts.loading() && deciding(app).is_none();
    decided.then(|| Serves::now(&app.hosts, before))
}

/// `GET /commit-ready`.
pub(crate) fn commit_ready(app: &App) -> Reply {
    let (model, words) = health::default_words(app);
    let ran = words.state == "ready";
    let reasons = commit_reasons(app);
    let ready = reasons.is_empty();
    let body = json!({
        "ready": ready,
        "reasons": reasons,
        "default_model": model.map(|m| m.manifest().name.to_string()),
        "default_model_ran": ran,
    });
    if ready {
        return Reply::json(StatusCode::OK, &body);
    }
    Reply::json(StatusCode::SERVICE_UNAVAILABLE, &body)
        .with_error("not_commit_ready")
        .with_retry_after(Duration::from_secs(2))
}

// ------------------------------------------------------------------------------------------------------------ changed

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    reason: Option<String>,
}

/// `POST /api/v1/rollback`; the body may be empty.
pub(crate) async fn rollback(app: &App, req: &Req) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    let wanted = match req.body.is_empty() {
        true => Some(Wanted::default()),
        false => req.object::<Wanted>(),
    };
    let reason = match wanted {
        Some(w) => w.reason.unwrap_or_else(|| "asked for over HTTP".to_owned()),
        None => return bad_request(r#"the body must be empty, or {"reason": "why"}"#),
    };
    if reason.chars().count() > limits::REASON || reason.chars().any(char::is_control) {
        return bad_request("reason: at most 200 printable characters");
    }
    // In a task of its own: a return that began ends, whether the client waits for it or not.
    let updater = desk.updater.clone();
    let done = tokio::spawn(carried(async move { updater.rollback(&reason).await })).await;
    let status = desk.updater.status().borrow().clone();
    match done {
        Ok(Ok(())) => {
            let body = json!({ "serving": status.serving, "verdict": status.verdicts.last() });
            Reply::json(StatusCode::OK, &body)
        }
        Ok(Err(e)) => {
            let status = if stopping(&e) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT };
            let pulls = |p: &Arc<dyn Pull>| p.last().is_some_and(|last| last["state"] == "fetching");
            let mut detail = e.sentence;
            if e.code == "busy-transfer" && desk.pull.as_ref().is_some_and(pulls) {
                detail.push_str(HOW_TO_END_A_PULL);
            }
            refusal(status, "not_rolled_back", &e.code, &detail)
        }
        Err(e) => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "unexpected_error",
            "unexpected-error",
            &format!("the return was lost: {e}"),
        ),
    }
}

/// `POST /api/v1/system/try`; the body is empty.
pub(crate) async fn try_system(app: &App, req: &Req) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    if !req.body.is_empty() {
        return bad_request("the body must be empty");
    }
    let updater = desk.updater.clone();
    // In a task of its own: what was armed is not left halfway.
    match tokio::spawn(carried(async move { updater.try_system().await })).await {
        Ok(Ok(())) => Reply::json(StatusCode::ACCEPTED, &json!({ "state": "accepted" })),
        Ok(Err(e)) => {
            let (status, error) = match e.code.as_str() {
                "no-keeper" | "system-gone" => by_root(&e.code),
                "medium-failed" | "read-back-differs" | "state-lost" => {
                    (StatusCode::INTERNAL_SERVER_ERROR, "storage")
                }
                _ => (StatusCode::CONFLICT, "not_tried"),
            };
            refusal(status, error, &e.code, &e.sentence)
        }
        Err(e) => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "unexpected_error",
            "unexpected-error",
            &format!("the try was lost: {e}"),
        ),
    }
}

/// `POST /api/v1/trust`; the body is the envelope.
pub(crate) async fn trust(app: &App, req: &Req) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    match desk.updater.trust(req.body.to_vec()).await {
        Ok(taken) => {
            let status = desk.updater.status().borrow().clone();
            Reply::json(
                StatusCode::OK,
                &json!({ "taken": taken, "trust": status.trust, "permit": status.permit }),
            )
        }
        Err(e) => {
            let status = match e.code.as_str() {
                _ if stopping(&e) => StatusCode::SERVICE_UNAVAILABLE,
                "trust-form" | "trust-kind" | "trust-document" | "too-large" => {
                    StatusCode::UNPROCESSABLE_ENTITY
                }
                _ => StatusCode::FORBIDDEN,
            };
            refusal(status, "trust_refused", &e.code, &e.sentence)
        }
    }
}

/// Whether it was refused only because of the time it came at.
fn stopping(e: &TrustError) -> bool {
    matches!(e.code.as_str(), "busy-starting" | "busy-stopping")
}

/// `POST /api/v1/pull`.
pub(crate) async fn pull(app: &App, req: &Req) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    let Some(wish) = req.object::<PullWish>() else {
        return bad_request(
            r#"the body must be {"url": "http://..."}, with "token" and "sha256" where needed"#,
        );
    };
    let Some(pull) = &desk.pull else {
        let detail = "this device fetches nothing by itself: updates.pull is off in its configuration";
        return refusal(StatusCode::FORBIDDEN, "pull_off", "pull-off", detail);
    };
    match pull.begin(wish).await {
        Ok(()) => Reply::json(StatusCode::ACCEPTED, &json!({ "state": "fetching", "pull": pull.last() })),
        Err(PullError::Busy(b)) => busy(b),
        Err(PullError::Refused { code, sentence }) => {
            refusal(StatusCode::UNPROCESSABLE_ENTITY, "pull_refused", &code, &sentence)
        }
    }
}

/// `DELETE /api/v1/pull`.
pub(crate) async fn end_pull(app: &App) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    let ended = match &desk.pull {
        Some(pull) => pull.end().await,
        None => None,
    };
    match ended {
        Some(pull) => Reply::json(StatusCode::OK, &json!({ "state": "ended", "pull": pull })),
        None => refusal(
            StatusCode::NOT_FOUND,
            "no_pull",
            "no-pull",
            "this device is not fetching a bundle by URL",
        ),
    }
}

// ------------------------------------------------------------------------------------------------------------- events

/// `GET /api/v1/events`: what changes from now on; `?since=NUMBER` repeats the verdicts after that one first.
pub(crate) fn events(app: &App, req: &Req) -> Reply {
    let updates;
    let desk = desk!(updates, app);
    let since = req.query.as_deref().and_then(|q| q.split('&').find_map(|p| p.strip_prefix("since=")));
    // A browser that comes back names the last one it has by a header of its own.
    let again = req.headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let since = match since.map(str::parse::<u64>) {
        None => again,
        Some(Ok(n)) => Some(n),
        Some(Err(_)) => return bad_request("since: the number of a verdict"),
    };
    let Ok(place) = app.listeners.clone().try_acquire_owned() else {
        let detail = "as many clients as may listen to the events do so already";
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "listeners", "listeners", detail)
            .with_retry_after(Duration::from_secs(5));
    };
    let (pieces, stream) = mpsc::channel(limits::LISTENER_BACKLOG);
    tokio::spawn(tell(pieces, desk.updater.status(), app.ending.subscribe(), since));
    Reply::streamed("text/event-stream", Stream::new(stream, place))
        .with(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"))
        // Proxies that buffer answers would keep events back.
        .with(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))
}

/// Sends events until the client leaves, does not read, or the endpoint ends. Between two looks at the status only the newest
/// counts: a listener never gets progress that is over.
async fn tell(
    pieces: mpsc::Sender<Bytes>,
    mut status: watch::Receiver<Arc<Status>>,
    mut ending: watch::Receiver<bool>,
    since: Option<u64>,
) {
    let mut told = Told::new(since);
    loop {
        let now = status.borrow_and_update().clone();
        let text = told.events(&now);
        // Not waited for: who lets this many pieces lie does not read.
        if !text.is_empty() && pieces.try_send(text.into()).is_err() {
            return;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(limits::HEARTBEAT) => {
                if pieces.try_send(Bytes::from_static(b": here\n\n")).is_err() {
                    return;
                }
            }
            () = pieces.closed() => return,
            _ = ending.wait_for(|ending| *ending) => return,
        }
    }
}

/// What a listener knows.
struct Told {
    began: bool,
    verdict: Option<u64>,
    progress: String,
}

impl Told {
    fn new(since: Option<u64>) -> Self {
        Self { began: false, verdict: since, progress: String::new() }
    }

    /// The events that bring it up to this status; empty when it is.
    fn events(&mut self, status: &Status) -> String {
        let mut text = String::new();
        if !self.began {
            self.began = true;
            // Browsers come back after this many milliseconds.
            text.push_str("retry: 2000\n\n");
            let newest = status.verdicts.last().map_or(0, |v| v.number);
            self.verdict.get_or_insert(newest);
        }
        let known = self.verdict.unwrap_or(0);
        for verdict in status.verdicts.iter().filter(|v| v.number > known) {
            let _ = write!(text, "event: verdict\nid: {}\ndata: {}\n\n", verdict.number, line(verdict));
            self.verdict = Some(verdict.number);
        }
        let progress =
            line(&json!({ "install": status.install, "trial": status.trial, "serving": status.serving }));
        if progress != self.progress {
            let _ = write!(text, "event: progress\ndata: {progress}\n\n");
            self.progress = progress;
        }
        text
    }
}

/// JSON without a line break.
fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| json!({ "error": e.to_string() }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_goes_to_the_bundles_last_byte() {
        assert_eq!(part("bytes 0-9/10"), Some(Part { first: 0, total: 10 }));
        assert_eq!(part("Bytes 4096-8191/8192"), Some(Part { first: 4096, total: 8192 }));
        for bad in [
            "",
            "bytes",
            "bytes 0-9",
            "bytes 0-9/*",
            "bytes */10",
            "bytes 0-8/10",
            "bytes 10-9/10",
            "bytes +1-9/10",
            "bytes -9/10",
            "items 0-9/10",
            "bytes 0-18446744073709551615/18446744073709551616",
            "bytes 0-18446744073709551615/0",
        ] {
            assert_eq!(part(bad), None, "{bad}");
        }
    }

    fn verdict(number: u64, gate: Gate, outcome: Outcome) -> Verdict {
        Verdict {
            number,
            gate,
            outcome,
            code: "code".to_owned(),
            sentence: "a sentence".to_owned(),
            evidence: Value::Null,
            bundle: Some("b".to_owned()),
            product: None,
            slot: None,
            version: None,
            boot_id: String::new(),
            uptime_ms: 0,
        }
    }

    fn status(verdicts: &[(u64, Gate, Outcome)]) -> Status {
        let verdicts = verdicts.iter().map(|&(n, g, o)| verdict(n, g, o)).collect();
        Status { verdicts, ..Status::default() }
    }

    #[test]
    fn a_listener_gets_every_verdict_once_and_progress_when_it_changed() {
        use Outcome::Pass;
        let mut told = Told::new(None);
        let first = told.events(&status(&[(7, Gate::Keys, Pass)]));
        assert!(first.starts_with("retry: ") && first.contains("event: progress"), "{first}");
        assert!(!first.contains("event: verdict"), "what was before is not news: {first}");
        let second = told.events(&status(&[(7, Gate::Keys, Pass), (8, Gate::Role, Pass)]));
        assert_eq!(second.matches("event: verdict\nid: 8\n").count(), 1, "{second}");
        assert!(!second.contains("event: progress"), "{second}");
        assert_eq!(told.events(&status(&[(8, Gate::Role, Pass)])), "");
        let mut late = Told::new(Some(6));
        assert!(late.events(&status(&[(6, Gate::Keys, Pass), (7, Gate::Role, Pass)])).contains("id: 7"));
    }

    #[test]
    fn the_last_word_about_a_bundle_counts() {
        let accepted = Accepted {
            bundle: "b".to_owned(),
            product: "p".to_owned(),
            version: 1,
            slot: 'A',
            verdict: 5,
            saved: inferd_rollout::Saved::default(),
            already: false,
            system: false,
        };
        let state = |v: &[(u64, Gate, Outcome)]| standing(&status(v), &accepted).0;
        assert_eq!(
            state(&[(4, Gate::Return, Outcome::Reverse), (5, Gate::Install, Outcome::Pass)]),
            State::Trial
        );
        assert_eq!(state(&[(6, Gate::Golden, Outcome::Refuse)]), State::Refused);
        assert_eq!(state(&[(6, Gate::Flip, Outcome::Pass)]), State::Probation);
        assert_eq!(
            state(&[(6, Gate::Flip, Outcome::Pass), (7, Gate::Commit, Outcome::Pass)]),
            State::Committed
        );
        assert_eq!(
            state(&[(6, Gate::Flip, Outcome::Pass), (7, Gate::Probation, Outcome::Reverse)]),
            State::Reversed
        );
    }
}
