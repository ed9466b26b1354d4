//! Staying alive, over HTTP: what the keeper knows of this boot, what is proved now, safe mode, the history, and the few things that
//! only the keeper may do.
//!
//! ```text
//! GET  /api/v1/history            what happened to this device, newest first; ?limit=N, ?kind=KIND
//! POST /api/v1/safe-mode/leave    start the daemon anew, with its models
//! POST /api/v1/reboot             restart the board, guarded by the watchdog
//! POST /api/v1/factory-reset      forget what was configured and installed; with `everything` also identity, keys and models
//! POST /api/v1/watchdog/test      break something, to see the watchdog work (development images)
//! ```
//!
//! Nothing is done here: an order goes to the keeper, which does it or says why not. Nothing here waits for a medium on the threads
//! of the endpoint.

use crate::updates::refusal;
use crate::{App, Reply, Req, limits};
use arc_swap::ArcSwapOption;
use hyper::StatusCode;
use inferd_watch::ask::{self, Answer, Ask, AskError, WatchdogTest};
use inferd_watch::history::{self, Entry, History, Kind};
use inferd_watch::progress::{ProbeMark, Shown};
use inferd_watch::state::KeeperState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What the endpoint knows of the daemon's own life.
#[derive(Default)]
pub struct Alive {
    /// What is proved now.
    pub progress: Arc<Shown>,
    /// By which the endpoint knows the questions of the proof: they take no client's place and are not counted.
    pub mark: Arc<ProbeMark>,
    /// Why no models are loaded, while that is so.
    pub safe_mode: ArcSwapOption<SafeMode>,
    /// Where the keeper is found.
    pub keeper: Keeper,
    /// The daemon's own history, once it is open.
    pub history: OnceLock<Arc<History>>,
    /// Entries of the keeper's history when it was last read.
    keeper_entries: AtomicUsize,
    /// One order at a time: the keeper may take its time, and a thread waits for it, whether the client stays or not.
    asking: Arc<tokio::sync::Mutex<()>>,
    /// One reader of the keeper's file at a time, until it has come back: on a medium that hangs they would pile up.
    reading: Arc<tokio::sync::Mutex<()>>,
}

/// Where the keeper is found.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// What it knows of this boot.
    pub state: PathBuf,
    /// Where it takes orders.
    pub socket: PathBuf,
    /// Its history.
    pub history: PathBuf,
}

impl Default for Keeper {
    /// The usual places of an image.
    fn default() -> Self {
        Self {
            state: inferd_watch::state::FILE.into(),
            socket: ask::SOCKET.into(),
            history: PathBuf::from("/data/keeper").join(history::FILE),
        }
    }
}

/// Safe mode: the daemon ended again and again, so it runs without models.
#[derive(Clone, Debug)]
pub struct SafeMode {
    /// Why, in one sentence.
    pub reason: String,
    /// Since when.
    pub since: Instant,
}

/// When to ask again in safe mode: nothing changes by itself.
const SAFE_MODE_RETRY: Duration = Duration::from_secs(60);
/// Entries of the history in an answer that names no number.
const DEFAULT_ENTRIES: usize = 50;
/// The most entries in an answer: more than two stores keep.
const MAX_ENTRIES: usize = 2 * history::MAX_ENTRIES;
/// The longest reason that is passed on, in characters.
const MAX_WHY: usize = 200;

impl Alive {
    /// Of a daemon whose keeper, if it has one, is found here.
    #[must_use]
    pub fn of(keeper: Keeper) -> Self {
        Self { keeper, ..Self::default() }
    }

    /// What the keeper knows of this boot; `None` where there is none.
    #[must_use]
    pub fn keeper_state(&self) -> Option<KeeperState> {
        KeeperState::read(&self.keeper.state)
    }

    /// Why the device is in safe mode, if it is.
    #[must_use]
    pub fn in_safe_mode(&self) -> Option<Arc<SafeMode>> {
        self.safe_mode.load_full()
    }

    /// Entries in each store, as far as it is known without touching a medium.
    pub(crate) fn entries(&self) -> [(&'static str, usize); 2] {
        let own = self.history.get().map_or(0, |h| h.health().entries);
        [("daemon", own), ("keeper", self.keeper_entries.load(Relaxed))]
    }

    /// Reads the keeper's history, unless somebody does so already: then what is known stays.
    pub async fn read_keeper(&self) -> Option<Vec<Entry>> {
        let one = self.reading.clone().try_lock_owned().ok()?;
        let path = self.keeper.history.clone();
        let read = tokio::task::spawn_blocking(move || {
            let _one = one;
            history::read(&path).0
        });
        // A medium that hangs keeps its thread, and nobody else's; the answer comes without.
        let entries = tokio::time::timeout(limits::HISTORY_TIME, read).await.ok()?.ok()?;
        self.keeper_entries.store(entries.len(), Relaxed);
        Some(entries)
    }
}

/// What `/status` says of it.
pub(crate) fn status(app: &App) -> [(&'static str, Value); 4] {
    let keeper = app.alive.keeper_state();
    let boot = keeper.as_ref().map(|k| {
        json!({
            "number": k.boot,
            "reason": k.reset.reason,
            "sentence": k.reset.sentence,
            "unhealthy_boots": k.unhealthy_boots,
            "daemon_starts": k.starts,
            "lasting": k.lasting,
            "remarks": k.remarks,
        })
    });
    let safe_mode = app.alive.in_safe_mode();
    let safe_mode = safe_mode.map(|s| json!({ "reason": s.reason, "since_s": s.since.elapsed().as_secs() }));
    [
        ("boot", json!(boot)),
        ("watchdog", json!(keeper.and_then(|k| k.watchdog))),
        ("safe_mode", json!(safe_mode)),
        ("progress", json!(app.alive.progress.view())),
    ]
}

/// The words of probes and of refused work in safe mode, and when to ask again.
pub(crate) fn safe_mode_words(mode: &SafeMode) -> (String, Duration) {
    let words = format!("safe mode, no models are loaded: {}", mode.reason);
    (words, SAFE_MODE_RETRY)
}

// -------------------------------------------------------------------------------------------------------------- history

/// An entry with the store it is in: numbers are counted per store.
#[derive(Serialize)]
struct Told {
    store: &'static str,
    #[serde(flatten)]
    entry: Entry,
}

/// `GET /api/v1/history`.
pub(crate) async fn history(app: &App, req: &Req) -> Reply {
    let (limit, kind) = match wanted(req.query.as_deref().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(detail) => return bad_request(detail),
    };
    let keeper = app.alive.read_keeper().await;
    let complete = keeper.is_some();
    let of = |store, entries: Vec<Entry>| entries.into_iter().map(move |entry| Told { store, entry });
    let own = app.alive.history.get().map(|h| h.entries()).unwrap_or_default();
    let mut all: Vec<Told> = of("keeper", keeper.unwrap_or_default()).chain(of("daemon", own)).collect();
    all.retain(|t| kind.is_none_or(|kind| t.entry.kind == kind));
    all.sort_by_key(|t| std::cmp::Reverse((t.entry.boot, t.entry.uptime_ms, t.entry.number)));
    let total = all.len();
    all.truncate(limit);
    Reply::json(StatusCode::OK, &json!({ "entries": all, "total": total, "complete": complete }))
}

/// What a query asks for: how many entries, and of which kind.
fn wanted(query: &str) -> Result<(usize, Option<Kind>), &'static str> {
    let (mut limit, mut kind) = (DEFAULT_ENTRIES, None);
    for part in query.split('&').filter(|p| !p.is_empty()) {
        match part.split_once('=') {
            Some(("limit", n)) => {
                limit = n
                    .parse()
                    .ok()
                    .filter(|n| (1..=MAX_ENTRIES).contains(n))
                    .ok_or("limit: a whole number from 1 to 512")?;
            }
            Some(("kind", name)) => {
                let known = serde_json::from_value(Value::String(name.to_owned()));
                kind = Some(known.map_err(|_| "kind: one of boot, keeper, daemon-end, let-go, safe-mode, host-end, breaker, recovery, alert, request")?);
            }
            _ => return Err("the query may name limit and kind, nothing else"),
        }
    }
    Ok((limit, kind))
}

fn bad_request(detail: &str) -> Reply {
    refusal(StatusCode::BAD_REQUEST, "bad_request", "bad-request", detail)
}

// --------------------------------------------------------------------------------------------------------------- orders

/// A reason, where one was given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    #[serde(default)]
    why: String,
    #[serde(default)]
    everything: bool,
}

/// Who asked and why, as the history shows it.
fn why(req: &Req) -> Result<String, Reply> {
    let order = if req.body.is_empty() {
        Order { why: String::new(), everything: false }
    } else {
        req.object()
            .filter(|order: &Order| !order.everything || req.path.ends_with("/factory-reset"))
            .ok_or_else(|| bad_request(r#"the body must be {"why": "..."}, or empty"#))?
    };
    let said: String = order.why.chars().filter(|c| !c.is_control()).take(MAX_WHY).collect();
    let who = req.peer.ip().to_canonical();
    Ok(match said.trim() {
        "" => format!("asked for by {who}, without a reason"),
        said => format!("asked for by {who}: {said}"),
    })
}

/// `POST /api/v1/reboot`.
pub(crate) async fn reboot(app: &App, req: &Req) -> Reply {
    match why(req) {
        Ok(why) => order(app, Ask::Reboot { why, argument: None }).await,
        Err(reply) => reply,
    }
}

/// Whether a factory reset shall leave nothing. Only that order takes the word.
fn everything(req: &Req) -> bool {
    req.object().is_some_and(|order: Order| order.everything)
}

/// `POST /api/v1/factory-reset`.
pub(crate) async fn factory_reset(app: &App, req: &Req) -> Reply {
    match why(req) {
        Ok(why) => order(app, Ask::FactoryReset { why, everything: everything(req) }).await,
        Err(reply) => reply,
    }
}

/// `POST /api/v1/safe-mode/leave`.
pub(crate) async fn leave_safe_mode(app: &App, req: &Req) -> Reply {
    if app.alive.in_safe_mode().is_none() {
        let detail = "this device is not in safe mode";
        return refusal(StatusCode::CONFLICT, "not_in_safe_mode", "not-in-safe-mode", detail);
    }
    match why(req) {
        Ok(why) => order(app, Ask::LeaveSafeMode { why }).await,
        Err(reply) => reply,
    }
}

/// `POST /api/v1/watchdog/test`.
pub(crate) async fn watchdog_test(app: &App, req: &Req) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wish {
        what: WatchdogTest,
    }
    match req.object() {
        Some(Wish { what }) => order(app, Ask::WatchdogTest { what }).await,
        None => bad_request(r#"the body must be {"what": "hardware"}, or "daemon", or "panic""#),
    }
}

/// Has the keeper do it.
async fn order(app: &App, what: Ask) -> Reply {
    let Ok(one) = app.alive.asking.clone().try_lock_owned() else {
        let detail = "the keeper is still busy with another order";
        return refusal(StatusCode::CONFLICT, "keeper_busy", "keeper-busy", detail)
            .with_retry_after(Duration::from_secs(1));
    };
    tracing::warn!(order = ?what, "the keeper is asked");
    let socket = app.alive.keeper.socket.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let _one = one;
        ask::ask_at(&socket, &what)
    })
    .await;
    match asked {
        Ok(Ok(Answer::Done)) => Reply::json(StatusCode::ACCEPTED, &json!({ "state": "accepted" })),
        Ok(Ok(Answer::Refused { why })) => {
            refusal(StatusCode::FORBIDDEN, "keeper_refused", "keeper-refused", &why)
        }
        Ok(Err(e @ AskError::Absent(_))) => {
            let detail = format!("{e}; only the keeper of an image may do this");
            refusal(StatusCode::SERVICE_UNAVAILABLE, "no_keeper", "no-keeper", &detail)
        }
        Ok(Err(e @ AskError::Silent(_))) => {
            refusal(StatusCode::SERVICE_UNAVAILABLE, "keeper_silent", "keeper-silent", &e.to_string())
        }
        Err(e) => {
            let detail = format!("the order was lost: {e}");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "unexpected_error", "unexpected-error", &detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_medium_that_hangs_costs_one_thread_however_many_ask_and_leave() {
        let folder = std::env::temp_dir().join(format!("inferd-alive-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let history = folder.join("history.jsonl");
        let made = std::process::Command::new("mkfifo").arg(&history).status().unwrap();
        assert!(made.success(), "whoever opens it waits");
        let alive = Alive::of(Keeper { history: history.clone(), ..Keeper::default() });
        let asks = || tokio::time::timeout(Duration::from_millis(20), alive.read_keeper());
        assert!(asks().await.is_err(), "it waits, and its client leaves");
        for _ in 0..3 {
            assert_eq!(asks().await, Ok(None), "the first one is still there");
        }
        // The medium comes back.
        let came_back = tokio::task::spawn_blocking(move || std::fs::write(history, b""));
        came_back.await.unwrap().unwrap();
        while asks().await == Ok(None) {
            tokio::task::yield_now().await;
        }
        // That one waits at the file again.
        std::fs::write(folder.join("history.jsonl"), b"").unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_query_names_a_number_and_a_kind_and_nothing_else() {
        assert_eq!(wanted(""), Ok((50, None)));
        assert_eq!(wanted("limit=3&kind=let-go"), Ok((3, Some(Kind::LetGo))));
        assert_eq!(wanted("kind=host-end"), Ok((50, Some(Kind::HostEnd))));
        let page: Value = serde_json::from_str(include_str!("../assets/openapi.json")).unwrap();
        let listed = page.to_string();
        let names: Vec<String> =
            Kind::ALL.iter().map(|kind| json!(kind).as_str().unwrap().to_owned()).collect();
        for (kind, name) in Kind::ALL.into_iter().zip(&names) {
            assert_eq!(wanted(&format!("kind={name}")), Ok((50, Some(kind))));
        }
        assert_eq!(wanted("kind=x").unwrap_err(), format!("kind: one of {}", names.join(", ")));
        let listing = json!(names).to_string();
        assert_eq!(listed.matches(&listing).count(), 2, "the page lists other kinds than {listing}");
        for bad in ["limit=0", "limit=513", "limit=-1", "limit=", "kind=HostEnd", "kind=", "since=3", "limit"]
        {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }
}
