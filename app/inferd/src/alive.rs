//! Puts together what keeps the daemon's own life in view: the proof of progress, safe mode, the history.

use crate::config::Config;
use inferd_api::{Alive, Keeper, SafeMode};
use inferd_hosts::{BreakerState, HostEvent, Hosts, InferError, Served, State};
use inferd_rollout::{BootEvidence, Evidence, SystemEvidence};
use inferd_watch::{
    ask,
    history::{self, Event, History, Kind, ResetReason},
    notify::Notifier,
    progress::{self, Condition, Engine, Engines, Limits, Setup, Watching},
    state::{self, KeeperState},
    store::Writer,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::broadcast, time::timeout};
use tracing::{error, warn};

/// Where the daemon's own history is, below its data directory.
const HISTORY: &str = "history";
/// What a self-test may take beyond the model's own deadline: it may have to wait for a worker.
const IN_QUEUE: Duration = Duration::from_secs(2);
/// How often the keeper's history is counted for `/metrics`.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Entries about hosts that are kept within [`PER`]; the rest is counted.
const ENTRIES: u32 = 30;
/// See [`ENTRIES`].
const PER: Duration = Duration::from_secs(3600);

/// What the endpoint knows of this daemon's life, from the start on.
pub fn alive(config: &Config, safe_mode: Option<&str>) -> Arc<Alive> {
    let socket = std::env::var_os(ask::SOCKET_VARIABLE).filter(|s| !s.is_empty());
    let socket = socket.map_or_else(|| PathBuf::from(ask::SOCKET), PathBuf::from);
    // The keeper keeps both in one directory.
    let state =
        Path::new(state::FILE).file_name().map_or_else(|| socket.clone(), |name| socket.with_file_name(name));
    let keeper = Keeper { state, socket, history: config.watch.keeper_dir.join(history::FILE) };
    let alive = Alive::of(keeper);
    alive.safe_mode.store(
        safe_mode.map(|reason| Arc::new(SafeMode { reason: reason.to_owned(), since: Instant::now() })),
    );
    Arc::new(alive)
}

/// Who started this daemon and wants to hear how it is.
pub fn notifier() -> Arc<Notifier> {
    Arc::new(Notifier::of_process().unwrap_or_else(|e| {
        error!("{e}");
        Notifier::nobody()
    }))
}

/// Begins to prove progress.
///
/// # Errors
/// When no thread can be had.
pub fn watch(
    config: &Config,
    alive: &Arc<Alive>,
    notifier: &Arc<Notifier>,
    hosts: &Arc<Hosts>,
    addresses: &[SocketAddr],
) -> io::Result<Watching> {
    progress::start(Setup {
        addresses: addresses.to_vec(),
        mark: alive.mark.clone(),
        engines: Box::new(Models { hosts: hosts.clone(), runtime: Handle::current(), tests: Arc::default() }),
        storage: config.watch.storage_check.map(|every| (config.updates.data_dir.clone(), every)),
        limits: Limits::new(config.watch.inference_budget),
        notifier: notifier.clone(),
        shown: alive.progress.clone(),
        safe_mode: alive.in_safe_mode().map(|mode| mode.reason.clone()),
    })
}

/// The models, as far as progress is about them.
struct Models {
    hosts: Arc<Hosts>,
    runtime: Handle,
    /// Self-tests that have not ended, and those that were refused since the last look.
    tests: Arc<Mutex<BTreeMap<String, Test>>>,
}

/// A self-test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    UnderWay,
    /// By those who look after the model: its breaker opened, its host ended, its input is kept from it. That is no standstill.
    Refused,
}

/// Failures of requests that an engine came back from: it ran.
const RAN: [&str; 2] = ["panic", "engine_error"];

impl Engines for Models {
    fn look(&mut self) -> Vec<Engine> {
        let mut tests = lock(&self.tests);
        let mut look = |served: &Arc<Served>| {
            let numbers = served.snapshot();
            let ran = numbers.failures.iter().filter(|(kind, _)| RAN.contains(kind)).map(|(_, n)| n);
            let manifest = served.manifest();
            let model = manifest.name.to_string();
            let refused = tests.get(&model) == Some(&Test::Refused);
            if refused {
                tests.remove(&model);
            }
            let open = served.breaker().state == BreakerState::Open;
            let serves = served.state() == State::Ready && !open && !refused;
            Engine {
                model,
                finished: numbers.success + numbers.late + ran.sum::<u64>(),
                busy: numbers.slots_in_use > 0,
                condition: if serves { Condition::Serving } else { Condition::Supervised },
                deadline: Duration::from_millis(manifest.budget.deadline_ms.into()),
            }
        };
        self.hosts.list().iter().map(&mut look).collect()
    }

    fn test(&mut self, model: &str) {
        let Some(served) = self.hosts.get(model) else { return };
        let name = model.to_owned();
        if lock(&self.tests).insert(name.clone(), Test::UnderWay) == Some(Test::UnderWay) {
            return;
        }
        let tests = self.tests.clone();
        self.runtime.spawn(async move {
            let outcome = self_test(&served).await;
            let mut tests = lock(&tests);
            match &outcome {
                Err(Untested::Refused(_)) => tests.insert(name.clone(), Test::Refused),
                _ => tests.remove(&name),
            };
            drop(tests);
            if let Err(e) = outcome {
                warn!(model = name, "{e}");
            }
        });
    }
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // An insert or a removal is all that happens under it.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a self-test went wrong.
#[derive(Debug, thiserror::Error)]
enum Untested {
    /// It was not run, for a reason that somebody takes care of.
    #[error("self-test: {0}")]
    Refused(InferError),
    /// It did not come back in time, or there was no place for it.
    #[error("self-test: {0}")]
    Late(InferError),
    /// It ran, and its answer is not the recorded one.
    #[error("self-test: the answer is not the recorded one: {0}")]
    Differs(String),
}

impl From<InferError> for Untested {
    fn from(e: InferError) -> Self {
        match e {
            InferError::QueueFull { .. }
            | InferError::DeadlineUnmeetable { .. }
            | InferError::DeadlineExceeded { .. } => Self::Late(e),
            _ => Self::Refused(e),
        }
    }
}

/// Runs one golden vector on the path of every request, within the model's own deadline and a little for the queue.
async fn self_test(served: &Arc<Served>) -> Result<(), Untested> {
    let (golden, manifest) = (served.golden(), served.manifest());
    let Some(case) = golden.cases().first() else { return Ok(()) };
    let deadline = Duration::from_millis(manifest.budget.deadline_ms.into());
    let mut ticket = served.begin(Some(deadline + IN_QUEUE))?;
    if !Arc::ptr_eq(ticket.manifest(), &manifest) {
        // Replaced between the two lines; the next look sees the new one.
        return Ok(());
    }
    for (n, bytes) in case.inputs.iter().enumerate() {
        ticket.input_mut(n).copy_from_slice(bytes);
    }
    let answer = ticket.run().await?;
    let outputs: Vec<&[u8]> = (0..manifest.outputs.len()).map(|n| answer.output(n)).collect();
    golden
        .compare(0, &outputs, &manifest, answer.tolerance())
        .map(drop)
        .map_err(|e| Untested::Differs(e.to_string()))
}

/// Opens the daemon's own history and keeps it, on the medium that may be slow: nobody waits for this.
pub async fn remember(config: Config, alive: Arc<Alive>, hosts: Arc<Hosts>) {
    let events = hosts.events();
    drop(hosts);
    let boot = alive.keeper_state().map_or(0, |k| k.boot);
    let opened = tokio::task::spawn_blocking(move || {
        let data = &config.updates.data_dir;
        let dir = data.join(HISTORY);
        let file = match data.is_dir().then(|| std::fs::create_dir_all(&dir)) {
            Some(Ok(())) => Some(dir.join(history::FILE)),
            Some(Err(e)) => {
                warn!("the history is kept in memory only: {}: {e}", dir.display());
                None
            }
            None => None,
        };
        Arc::new(History::open(file, boot, Writer::start()))
    });
    let Ok(history) = opened.await else { return };
    let _ = alive.history.set(history.clone());
    let mut count = tokio::time::interval(COUNT_EVERY);
    count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut events = events;
    let mut budget = Budget::default();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    if let Some(event) = told(event) {
                        budget.add(&history, event, history::uptime());
                    }
                }
                Err(broadcast::error::RecvError::Lagged(n)) => budget.left_out += n,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            _ = count.tick() => {
                let _ = alive.read_keeper().await;
            }
        }
    }
}

/// What of a host's events is worth remembering across resets.
fn told(event: HostEvent) -> Option<Event> {
    let detail = serde_json::to_value(&event).map(|mut detail| {
        // They stand beside it.
        if let Some(detail) = detail.as_object_mut() {
            detail.remove("words");
            detail.remove("reason");
        }
        detail
    });
    let (kind, sentence, words) = match event {
        HostEvent::HostEnded { model, reason, words, .. } => {
            (Kind::HostEnd, format!("the engine host of {model} ended: {reason}"), words)
        }
        HostEvent::HostNotStarted { model, reason, words, .. } => {
            (Kind::HostEnd, format!("the engine host of {model} did not start: {reason}"), words)
        }
        HostEvent::BreakerOpened { model, engine, reason, .. } => {
            (Kind::Breaker, format!("the breaker of {model} on {engine} opened: {reason}"), Vec::new())
        }
        HostEvent::BreakerClosed { model, engine } => {
            (Kind::Breaker, format!("the breaker of {model} on {engine} closed again"), Vec::new())
        }
        HostEvent::Quarantined { model, digest, ends, pause } => {
            let sentence = format!(
                "an input of {model} is refused for {} s: {ends} hosts ended with it ({digest})",
                pause.as_secs()
            );
            (Kind::Breaker, sentence, Vec::new())
        }
        HostEvent::FellBack { model, from, to, reason } => {
            let sentence = format!("{model} is served by {to} instead of {from}: {reason}");
            (Kind::Recovery, sentence, Vec::new())
        }
        HostEvent::WentBack { model, to, .. } => {
            (Kind::Recovery, format!("{model} is served by {to} again"), Vec::new())
        }
        HostEvent::Recovery { device, step, outcome } => {
            (Kind::Recovery, format!("recovery of {device}, {step}: {outcome}"), Vec::new())
        }
        _ => return None,
    };
    Some(Event { kind, sentence, detail: detail.unwrap_or_default(), words })
}

/// A host that ends again and again must not push everything else out of the history, nor wear the medium out.
#[derive(Debug, Default)]
struct Budget {
    began: Option<Duration>,
    used: u32,
    left_out: u64,
}

impl Budget {
    fn add(&mut self, history: &History, event: Event, now: Duration) {
        if self.began.is_none_or(|began| now.saturating_sub(began) >= PER) {
            self.began = Some(now);
            self.used = 0;
        }
        if self.used >= ENTRIES {
            self.left_out += 1;
            return;
        }
        self.used += 1;
        if self.left_out > 0 {
            let n = std::mem::take(&mut self.left_out);
            let sentence =
                format!("{n} more things happened to engine hosts than are kept ({ENTRIES} an hour)");
            history.add(Event::new(event.kind, sentence).with(json!({ "left_out": n })));
        }
        history.add(event);
    }
}

/// What the system and the keeper know about how the last run ended. Not every watchdog says that it was it; the keeper's own notes
/// do.
pub struct KeeperEvidence {
    system: SystemEvidence,
    keeper: Option<KeeperState>,
}

impl KeeperEvidence {
    /// With what the keeper knows, where there is one.
    pub fn new(system: SystemEvidence, keeper: Option<KeeperState>) -> Self {
        Self { system, keeper }
    }
}

impl BootEvidence for KeeperEvidence {
    fn look(&self) -> Evidence {
        let mut found = self.system.look();
        match self.keeper.as_ref().map(|k| (k.reset.reason, k.boot)) {
            Some((ResetReason::Watchdog, _)) => found.watchdog_reset = true,
            // The watchdog finished a restart that somebody had asked for: no fault of a bundle.
            Some((ResetReason::Request, _)) => found.watchdog_reset = false,
            Some((ResetReason::Panic | ResetReason::Oom, boot)) if found.panics.is_empty() => {
                found.panics.push(format!("boot-{boot}"));
            }
            _ => {}
        }
        found
    }

    fn stopped(&self, boot_id: &str) -> io::Result<()> {
        self.system.stopped(boot_id)
    }
}

/// Asks the keeper for a start without safe mode; `false` where there is none, or it refuses.
pub async fn leave_safe_mode(alive: &Alive, why: &str) -> bool {
    let socket = alive.keeper.socket.clone();
    let what = ask::Ask::LeaveSafeMode { why: why.to_owned() };
    let asked = tokio::task::spawn_blocking(move || ask::ask_at(&socket, &what));
    // Longer than it waits itself.
    match timeout(ask::PATIENCE * 2, asked).await {
        Ok(Ok(Ok(ask::Answer::Done))) => true,
        Ok(Ok(Ok(ask::Answer::Refused { why }))) => {
            warn!("the keeper does not end safe mode: {why}");
            false
        }
        Ok(Ok(Err(e))) => {
            warn!("{e}");
            false
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_model::EngineKind;

    fn ended(n: u64) -> HostEvent {
        HostEvent::HostNotStarted {
            model: "m".into(),
            engine: EngineKind::Cpu.into(),
            reason: format!("reason {n}"),
            words: vec!["last".into()],
        }
    }

    #[test]
    fn a_host_that_ends_all_the_time_leaves_thirty_entries_an_hour_and_a_count() {
        let history = History::open(None, 1, Writer::start());
        let mut budget = Budget::default();
        let mut minute = |n: u64| {
            budget.add(&history, told(ended(n)).unwrap(), Duration::from_secs(60 * n / 10));
        };
        (0..600).for_each(&mut minute);
        assert_eq!(history.entries().len(), 30);
        minute(600);
        let entries = history.entries();
        assert_eq!(entries.len(), 32);
        assert_eq!(entries[30].detail, json!({ "left_out": 570 }));
        assert!(entries[31].sentence.ends_with("reason 600"));
        assert_eq!(entries[31].words, ["last"]);
    }

    #[test]
    fn what_the_keeper_knows_of_the_reset_counts() {
        let keeper = |reason| KeeperState {
            boot: 7,
            reset: state::Reset { reason, sentence: String::new() },
            watchdog: None,
            boot_status: None,
            starts: 1,
            unhealthy_boots: 0,
            safe_mode: None,
            lasting: true,
            remarks: Vec::new(),
        };
        let system = SystemEvidence {
            run: None,
            watchdog: "/nowhere".into(),
            pstore: "/nowhere".into(),
            boot_id: "/nowhere".into(),
        };
        let look = |keeper| KeeperEvidence::new(system.clone(), keeper).look();
        assert!(!look(None).watchdog_reset);
        assert!(look(Some(keeper(ResetReason::Watchdog))).watchdog_reset);
        assert_eq!(look(Some(keeper(ResetReason::Panic))).panics, ["boot-7"]);
        assert_eq!(look(Some(keeper(ResetReason::Power))), Evidence::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "32").unwrap();
        let reset = SystemEvidence { watchdog: file.path().into(), ..system.clone() };
        let look = |reason| KeeperEvidence::new(reset.clone(), reason).look().watchdog_reset;
        assert!(look(None) && look(Some(keeper(ResetReason::Power))));
        assert!(
            !look(Some(keeper(ResetReason::Request))),
            "the watchdog finished what somebody had asked for"
        );
    }
}
