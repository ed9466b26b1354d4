//! The life of the daemon: listeners, hosts, models, signals, end.
//!
//! The order matters. Listeners are bound before anything that can take long, so that `/livez` and `/readyz` answer while
//! models load; a model that cannot be loaded never ends the daemon: it stays up and says why.
//!
//! Where there are updates, what a slot holds goes first: the updater loads the slot's models, then the directories' models of
//! other names beside them. A directory never takes the place of a model that came in a bundle: not at the start, not by SIGHUP,
//! not by a load over the network. Only a bundle, a rollback or the end of a trial changes those.

use crate::{
    alive, announce,
    config::{Config, Loaded},
    ladder::Board,
    listen::{self, Bound, NotOne, Retry},
    logging::Levels,
    models, panel, ready,
    records::{self, Records},
    release::Release,
    tls, updates,
    ways::{self, Identity, Puller, Receiver},
};
use inferd_api::{
    Access, Alive, ApiConfig, App, Compat, Cors, Desk, Listening, Pull, RateLimit, Tls, Updates, Who,
};
use inferd_hosts::{
    Announced, Asking, BreakerRules, BreakerState, EngineHere, Hosts, HostsConfig, Ladder, Origin,
};
use inferd_model::{EngineKind, Manifest};
use inferd_rollout::{ServingFrom, Status, Updater};
use inferd_watch::{
    alerts::Event as AlertEvent,
    history::{Event, Kind},
    monitor::{Monitor, Rooms, Roots, Service, Settings as MonitorSettings},
    progress::Watching,
    shed::Level,
};
use std::{
    ffi::OsString,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tracing::{error, info, warn};

/// Why the daemon could not start or go on; one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// There is nothing to listen on.
    #[error(transparent)]
    Bind(#[from] NotOne),
    /// The system refuses something a daemon cannot do without.
    #[error("{what} cannot be had: {why}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The system's reason.
        why: std::io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |why| DaemonError::System { what, why }
}

/// Runs until a signal ends it; in safe mode without models.
///
/// # Errors
/// [`DaemonError`] when it cannot start.
pub fn run(
    loaded: &Loaded,
    started: Instant,
    levels: Levels,
    safe_mode: Option<&str>,
) -> Result<(), DaemonError> {
    let config = &loaded.config;
    let plain = Bound::plain(config, safe_mode.is_some())?;
    // Without TLS the plain listeners go on: a device that nobody reaches cannot be put right.
    let secure =
        if tls::wanted(config) { Bound::of(listen::SECURE, &config.tls.listen) } else { Bound::default() };
    let program = std::env::current_exe().map_err(system("the path of this program"))?;
    let runtime = runtime(config.server.threads).map_err(system("the async runtime"))?;
    let outcome = runtime.block_on(async {
        let signals = Signals::listen().map_err(system("signal handlers"))?;
        let listeners = listening(plain.listeners)?;
        let unbound = [plain.unbound, secure.unbound].concat();
        let secure = listening(secure.listeners)?;
        let addresses = addresses_of(&listeners);
        let notifier = alive::notifier();
        let alive = alive::alive(config, safe_mode);
        let ladder = Board::new(alive.keeper.clone(), &config.updates.data_dir);
        tokio::spawn(Arc::clone(&ladder).keep_time());
        let environment = hosts_environment(config);
        let asking = Asking::of(config.hosts.engine_host.as_deref(), &environment, config.hosts.seccomp);
        let hosts =
            Hosts::new(hosts_config(config, program, asking.asked(), environment, Arc::clone(&ladder) as _));
        // Until the first search is over, /readyz must not take a model that happens to be up first for the default one.
        let first = hosts.announce_loading();
        let app =
            Arc::new(App::with(Arc::clone(&hosts), api_config(loaded, asking.known()), Arc::clone(&alive)));
        tokio::spawn(hear_engines(asking, Arc::clone(&app), config.hosts.engine_host.clone(), ladder));
        app.updates.store(Arc::new(Updates::Starting));
        app.identity.store(Arc::new(updates::who(config)));
        for unbound in &unbound {
            error!("{unbound}; it is tried again");
        }
        let (found, late) = tokio::sync::mpsc::channel(1);
        app.listening.store(Arc::new(Listening {
            plain: addresses.clone(),
            secure: addresses_of(&secure),
            unbound,
        }));
        tokio::spawn(Retry::new(Arc::clone(&app), found).run());
        app.records.control_log(Box::new(levels));
        monitor(&app, config);
        let records = Records::start(&app, config);
        inferd_api::start_benchmarks(
            &app,
            &config.updates.data_dir.join("benchmarks"),
            records::permit(&app),
            Release::of_this_system().firmware(),
            config.hosts.engine_choice,
        );
        inferd_api::start_sources(&app, &config.sources);
        inferd_api::start_calibrations(&app, &config.updates.data_dir.join("calibrations"));
        inferd_api::start_actuators(&app, &config.actuators, &config.updates.data_dir.join("actuators"));
        if let Some(folder) = config.updates.run_dir.clone() {
            let mark = app.alive.keeper.state.with_file_name(ready::TRIAL);
            tokio::spawn(ready::tell(Arc::clone(&app), ready::chosen(loaded), mark, folder));
        }
        let panel = panel::start(&app, config);
        let (farewell, announcing) = announce::start(&app, config);
        let watching = alive::watch(config, &alive, &notifier, &hosts, &addresses)
            .map_err(system("the threads that prove progress"))?;
        let watching = Arc::new(watching);
        tokio::spawn(alive::remember(config.clone(), alive, Arc::clone(&hosts)));
        let life = Life {
            app: Arc::clone(&app),
            hosts: Arc::clone(&hosts),
            config: config.clone(),
            started,
            watching: Arc::clone(&watching),
        };
        let loading = tokio::spawn(life.load_and_reload(signals.reload, first));
        info!(listen = ?addresses, config_sha256 = loaded.sha256, "listening");
        let end = {
            let app = Arc::clone(&app);
            async move {
                ended(signals.end).await;
                notifier.stopping();
                watching.end();
                // Nobody is to find what takes no more connections.
                drop(farewell);
                // At once, also if connections take long to end: who kills this daemon then must not find a crash.
                if let Some(updater) = updater(&app) {
                    updater.stop().await;
                }
            }
        };
        let moving = Arc::clone(&app);
        inferd_api::serve(app, listeners, secure, late, end).await;
        loading.abort();
        // Most of the way to the neutral pose lies behind them: they were told when the endpoint was.
        let _ = tokio::task::spawn_blocking(move || inferd_api::end_actuators(&moving)).await;
        drop(panel);
        let _ = announcing.await;
        records.end().await;
        hosts.shutdown().await;
        info!(uptime_s = started.elapsed().as_secs(), "ended");
        Ok(())
    });
    // A load may still be reading a large file; nobody waits for it any more.
    runtime.shutdown_background();
    outcome
}

/// The runtime of the endpoint. One thread is the default: parsing a window costs less than waking another core, and the
/// engines, which do the work, are processes of their own.
fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.thread_name("endpoint").enable_all().build()
}

fn listening(bound: Vec<std::net::TcpListener>) -> Result<Vec<TcpListener>, DaemonError> {
    bound
        .into_iter()
        .map(TcpListener::from_std)
        .collect::<Result<_, _>>()
        .map_err(system("an async listener"))
}

/// What was really bound: port 0 asks the system for any free one.
fn addresses_of(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|l| l.local_addr().ok()).collect()
}

/// Where the libraries of vendors' engines are, and where built engines are kept, for the program that has them.
fn hosts_environment(config: &Config) -> Vec<(String, OsString)> {
    let hosts = &config.hosts;
    let named = hosts.libraries().map(|(_, variable, path)| (variable, path.clone()));
    let kept = ("INFERD_ENGINE_CACHE", config.updates.data_dir.join("engines"));
    // libhailort would write a file of its own to the working directory.
    let quiet = [("HAILORT_LOGGER_PATH", "NONE".into()), ("HAILORT_CONSOLE_LOGGER_LEVEL", "warning".into())];
    let by_service = hosts.hailo_service.then(|| ("INFERD_HAILO_SERVICE", "1".into()));
    let sys = config.monitor.root.as_ref().map(|root| ("INFERD_SYS", root.join("sys")));
    named
        .chain([kept])
        .chain(sys)
        .chain(quiet)
        .chain(by_service)
        .map(|(name, path)| (name.to_owned(), path.into_os_string()))
        .collect()
}

fn hosts_config(
    config: &Config,
    program: PathBuf,
    asked: &[EngineKind],
    environment: Vec<(String, OsString)>,
    ladder: Arc<dyn Ladder>,
) -> HostsConfig {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    HostsConfig {
        program,
        workers: if config.hosts.workers == 0 { cores } else { config.hosts.workers },
        queue: config.inference.max_queue_size,
        request_timeout: config.inference.timeout,
        cgroup_root: config.hosts.cgroup_root.clone(),
        seccomp: config.hosts.seccomp,
        breaker: BreakerRules { pause: config.hosts.breaker_pause, ..BreakerRules::default() },
        unanswered: asked.iter().copied().collect(),
        environment,
        shared: config.hosts.hailo_service.then_some(EngineKind::Hailo).into_iter().collect(),
        ladder: Some(ladder),
        ..HostsConfig::default()
    }
}

/// Tells the hosts and the endpoint what each engine answers, as it comes.
async fn hear_engines(mut asking: Asking, app: Arc<App>, program: Option<PathBuf>, ladder: Arc<dyn Ladder>) {
    while let Some((engine, here)) = asking.next().await {
        app.engine_answered(engine, here.as_ref());
        if let Some(why) = here.as_ref().and_then(|here| here.mismatch.as_ref()) {
            error!("the engine {engine} is put together wrongly: {why}");
        }
        let used = here.as_ref().filter(|here| may_work(here, &*ladder));
        // Its architecture is all that a Hailo says it computes on.
        let chip =
            here.iter().find(|e| e.engine == EngineKind::Hailo).and_then(|e| e.providers.first().cloned());
        app.hosts.answered(engine, used.and(program.clone()), chip);
    }
}

/// Whether an engine is to be tried: it works, or its device may come back or come late. A Hailo is known to belong to the board when it
/// was seen on its bus; a GPU when TensorRT is installed.
fn may_work(engine: &EngineHere, ladder: &dyn Ladder) -> bool {
    let has_device = || match engine.engine {
        EngineKind::Tensorrt => engine.library.is_some(),
        other => ladder.device(other).is_some(),
    };
    engine.problem.is_none() || (engine.waits && has_device())
}

fn api_config(loaded: &Loaded, engines: Vec<EngineHere>) -> ApiConfig {
    let Config { server, inference, compat, models, updates, security, logging, expected_sha256, .. } =
        &loaded.config;
    let rate = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    ApiConfig {
        engines,
        not_there: loaded.config.hosts.not_there(),
        default_model: models.default.as_ref().map(ToString::to_string),
        motifs_without_head: inference.motifs_without_head,
        body_limit: server.max_request_bytes,
        bodies_total: server.max_bodies_bytes,
        max_connections: server.max_connections,
        max_connections_per_client: server.max_connections_per_client,
        max_streams_per_client: server.max_streams_per_client,
        head_time: server.header_timeout,
        body_time: server.request_timeout,
        upload_window: updates.upload_window,
        upload_rate: updates.upload_rate,
        idle_time: server.keep_alive,
        drain_time: server.drain_timeout,
        cors: Cors { origins: server.allow_origins.clone() },
        access: Access {
            keys: security.keys(),
            open_reads: security.open_reads,
            open_inference: security.open_inference,
        },
        rate_limit: (security.rate_limit_per_s > 0).then(|| RateLimit {
            per_second: rate(security.rate_limit_per_s),
            burst: rate(security.rate_limit_burst),
        }),
        change_limit: (security.change_limit_per_min > 0).then(|| RateLimit {
            per_second: rate(security.change_limit_per_min) / 60.0,
            burst: rate(security.change_limit_per_min),
        }),
        compat: Compat {
            lenient_numbers: compat.lenient_numbers,
            strict_400: compat.strict_400,
            triton_metrics: compat.triton_metrics,
            metric_aliases: compat.metric_aliases,
        },
        docs: server.docs_enabled,
        log_level: logging.level.to_string().to_ascii_lowercase(),
        config_hash: loaded.sha256.clone(),
        expected_config_hash: expected_sha256.clone(),
        config_warnings: loaded.notes.clone(),
    }
}

/// Starts the resource monitor; without a thread for it everything else goes on.
fn monitor(app: &Arc<App>, config: &Config) {
    let settings = MonitorSettings {
        interval: config.monitor.interval,
        consecutive: config.monitor.consecutive,
        thresholds: config.monitor.thresholds,
        shed_at: config.monitor.shed_at,
        roots: config.monitor.root.as_deref().map(Roots::below).unwrap_or_default(),
        data: config.updates.data_dir.clone(),
        daily_write: config.daily_write,
        ..MonitorSettings::default()
    };
    let (hosts, alive) = (Arc::clone(&app.hosts), Arc::clone(&app.alive));
    // The monitor is the endpoint's: it does not keep it.
    let moving = Arc::downgrade(app);
    let service = move || {
        let models = hosts.list();
        let numbers = models.iter().map(|model| model.snapshot());
        let (pool_hits, pool_misses) =
            numbers.fold((0, 0), |(hits, misses), n| (hits + n.pool_hits, misses + n.pool_misses));
        let open = models.iter().find_map(|model| {
            let breakers = model.breakers();
            let open = breakers.iter().find(|b| b.state == BreakerState::Open)?;
            Some(format!("{} of {}", open.engine, model.manifest().name))
        });
        Service {
            pool_hits,
            pool_misses,
            breaker_open: (!models.is_empty()).then_some(open),
            actuator_failing: moving.upgrade().and_then(|app| inferd_api::failing_actuator(&app)),
            calibration_failing: moving.upgrade().and_then(|app| inferd_api::failing_calibration(&app)),
            engine_mismatch: moving.upgrade().map(|app| app.engine_mismatch()),
            system_returned: moving.upgrade().and_then(|app| inferd_api::returned_system(&app)),
            storage_failing: alive.progress.view().map(|proved| !proved.storage.ok),
        }
    };
    let alive = Arc::clone(&app.alive);
    let history = move |event: &AlertEvent| {
        if let Some(history) = alive.history.get() {
            history.add(Event::new(Kind::Alert, event.sentence.clone()).with(serde_json::json!(event)));
        }
    };
    let rooms = Rooms { service: Box::new(service), history: Box::new(history) };
    let monitor = match Monitor::start(settings, rooms) {
        Ok(monitor) => monitor,
        Err(why) => return error!("the resources are not watched: there is no thread for it: {why}"),
    };
    let (mut level, hosts) = (monitor.shed().subscribe(), Arc::clone(&app.hosts));
    tokio::spawn(async move {
        loop {
            hosts.shed(*level.borrow_and_update() != Level::None);
            if level.changed().await.is_err() {
                break;
            }
        }
    });
    // It is set once, here.
    let _ = app.monitor.set(monitor);
}

/// The updater, once it is there.
fn updater(app: &App) -> Option<Arc<Updater>> {
    match &**app.updates.load() {
        Updates::On(desk) => Some(Arc::clone(&desk.updater)),
        Updates::Off | Updates::Starting | Updates::Broken(_) => None,
    }
}

/// What the loading of models needs.
struct Life {
    app: Arc<App>,
    hosts: Arc<Hosts>,
    config: Config,
    started: Instant,
    watching: Arc<Watching>,
}

impl Life {
    /// Lets the slots' and the directories' models serve, then looks for changed directories whenever SIGHUP asks for it.
    async fn load_and_reload(self, mut reload: Signal, first: Announced) {
        let Self { app, hosts, config, started, watching } = self;
        let dirs = config.models.dirs.clone();
        certificate(&app, &config).await;
        if let Some(mode) = app.alive.in_safe_mode() {
            warn!("safe mode, no models are loaded: {}", mode.reason);
            // Nothing is about to come.
            drop(first);
            let receiver = open(&app, &hosts, &config).await;
            let _ways = receiver.as_ref().map(|receiver| ways::start(&config, receiver));
            tokio::select! {
                () = repaired(&app.alive, updater(&app)) => {}
                () = async { while reload.recv().await.is_some() {
                    warn!("SIGHUP: no models are loaded in safe mode, and other certificates are");
                    certificate(&app, &config).await;
                } } => return,
            }
            app.alive.safe_mode.store(None);
            watching.safe_mode_is_over();
            info!("safe mode is over");
            load(&hosts, &dirs).await;
            return reload_when_asked(&app, &config, &hosts, reload).await;
        }
        let receiver = open(&app, &hosts, &config).await;
        // With updates it finds what they left out: a directory that came after their list was made.
        load(&hosts, &dirs).await;
        drop(first);
        let ms = millis(started.elapsed());
        match hosts.list().len() {
            0 => warn!(ms, "up without a model: nothing can be inferred until one is loaded"),
            models => info!(ms, models, failed = hosts.load_errors().len(), "ready"),
        }
        let _ways = receiver.map(|receiver| ways::start(&config, &receiver));
        reload_when_asked(&app, &config, &hosts, reload).await;
    }
}

async fn reload_when_asked(app: &Arc<App>, config: &Config, hosts: &Arc<Hosts>, mut reload: Signal) {
    while reload.recv().await.is_some() {
        info!("SIGHUP: looking for new and changed models, and for another certificate");
        certificate(app, config).await;
        load(hosts, &config.models.dirs).await;
    }
}

/// Waits until a bundle serves for good: it was committed, or the operator went back to it. Then a keeper starts this daemon anew,
/// with all its models, and this never returns; without one it returns, and the daemon goes on as it is.
async fn repaired(alive: &Alive, updater: Option<Arc<Updater>>) {
    let Some(updater) = updater else { return std::future::pending().await };
    let stays = |status: &Arc<Status>| {
        let active = |s: &inferd_rollout::SlotView| s.active && Some(s.slot) == status.serving.slot;
        let serves = status.serving.from == ServingFrom::Slot && status.slots.iter().any(active);
        status.trial.is_none() && serves
    };
    if updater.status().wait_for(stays).await.is_err() {
        return std::future::pending().await;
    }
    info!("a bundle serves for good, so safe mode has served its purpose");
    if alive::leave_safe_mode(alive, "a bundle serves for good").await {
        std::future::pending().await
    }
}

/// Shows the certificate that is there now, to whoever connects from now on.
async fn certificate(app: &Arc<App>, config: &Config) {
    let before = app.tls.load_full();
    if !tls::wanted(config) || config.tls.listen.is_empty() {
        return;
    }
    let loading = {
        let (config, before) = (config.clone(), Arc::clone(&before));
        tokio::task::spawn_blocking(move || tls::load(&config, &before))
    };
    let Ok(now) = loading.await else {
        error!("the search for a certificate panicked; TLS is as it was");
        return;
    };
    let print = |tls: &Tls| tls.identity.as_ref().map(|i| i.fingerprint);
    match (&now.error, print(&now)) {
        (Some(why), None) => error!("no TLS: {why}"),
        (Some(why), Some(_)) => error!("TLS goes on with the certificate from before: {why}"),
        (None, Some(fingerprint)) if print(&before) != Some(fingerprint) => {
            info!(listen = ?app.listening.load().secure, fingerprint_sha256 = %fingerprint, self_signed = now.self_signed, "TLS");
        }
        (None, _) => {}
    }
    app.tls.store(Arc::new(now));
}

/// Opens the updater where there is one to be, and lets it decide what serves. A failure is shown and ends nothing: the
/// directories' models serve then.
async fn open(app: &Arc<App>, hosts: &Arc<Hosts>, config: &Config) -> Option<Arc<Receiver>> {
    let planned = {
        let (config, keeper) = (config.clone(), app.alive.keeper_state());
        let engines = Arc::clone(&app.engines);
        tokio::task::spawn_blocking(move || {
            let factory = models::find(&config.models.dirs).models;
            updates::plan(&config, factory, keeper, move || engines.load_full())
        })
    };
    let broken = |why: String| {
        error!("no updates: {why}");
        app.updates.store(Arc::new(Updates::Broken(why)));
        None
    };
    let plan = match planned.await {
        Ok(updates::Wanted::On(plan)) => plan,
        Ok(updates::Wanted::Off) => {
            app.updates.store(Arc::new(Updates::Off));
            return None;
        }
        Ok(updates::Wanted::Broken(why)) => return broken(why),
        Err(e) => return broken(e.to_string()),
    };
    if app.identity.load().id.is_none() {
        app.identity.rcu(|who| Who { id: Some(plan.device.clone()), ..Who::clone(who) });
    }
    let identity = Identity { device: plan.device.clone(), board: plan.config.board.clone() };
    let updater = match Updater::start(plan.config, Arc::clone(hosts)).await {
        Ok(updater) => updater,
        Err(e) => return broken(e.to_string()),
    };
    let receiver = Arc::new(Receiver::new(Arc::clone(&updater), identity));
    let pull = config.updates.pull.then(|| Arc::new(Puller::new(Arc::clone(&receiver))) as Arc<dyn Pull>);
    let desk = Desk { updater: Arc::clone(&updater), device: plan.device, pull };
    app.updates.store(Arc::new(Updates::On(Box::new(desk))));
    match app.alive.in_safe_mode() {
        None => updater.boot().await,
        Some(_) => updater.boot_without_serving().await,
    }
    Some(receiver)
}

/// Loads every model that is not served as it stands in its directory. They load side by side: most of a load is one
/// host's start and golden vectors, which leave the other cores idle.
async fn load(hosts: &Arc<Hosts>, dirs: &[PathBuf]) {
    let search = {
        let (hosts, dirs) = (Arc::clone(hosts), dirs.to_owned());
        move || {
            let found = models::find(&dirs);
            // The manifest holds the digest of every file: when it is the same, the model is. What came in a bundle stays.
            let is_served = |m: &Manifest| {
                hosts.get(m.name.as_str()).is_some_and(|served| {
                    *served.manifest() == *m || matches!(served.origin(), Origin::Bundle { .. })
                })
            };
            let (wanted, doubles) = models::wanted(found.models, is_served);
            (wanted, [found.problems, doubles].concat())
        }
    };
    let Ok((wanted, problems)) = tokio::task::spawn_blocking(search).await else {
        error!("the search for models panicked; nothing was loaded");
        return;
    };
    for problem in &problems {
        warn!("{problem}");
    }
    let mut loads = JoinSet::new();
    for dir in wanted {
        let hosts = Arc::clone(hosts);
        loads.spawn(async move {
            let start = Instant::now();
            // The hosts log a failure and remember it for /status.
            if let Ok(served) = hosts.load(&dir).await {
                let manifest = served.manifest();
                let engine = served.engine();
                let (name, version) = (manifest.name.as_str(), manifest.version.as_str());
                info!(name, version, engine = engine.version, ms = millis(start.elapsed()), "model loaded");
            }
        });
    }
    while loads.join_next().await.is_some() {}
}

/// The signals this process listens to.
struct Signals {
    end: [(Signal, &'static str, i32); 2],
    reload: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            end: [
                (signal(SignalKind::terminate())?, "SIGTERM", 15),
                (signal(SignalKind::interrupt())?, "SIGINT", 2),
            ],
            reload: signal(SignalKind::hangup())?,
        })
    }
}

/// Completes with the first signal that asks for the end; the next one ends the process at once.
fn ended(signals: [(Signal, &'static str, i32); 2]) -> impl Future<Output = ()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let [(mut term, term_name, term_number), (mut int, int_name, int_number)] = signals;
    tokio::spawn(async move {
        let mut tell = Some(tell);
        loop {
            let (name, number) = tokio::select! {
                _ = term.recv() => (term_name, term_number),
                _ = int.recv() => (int_name, int_number),
            };
            match tell.take() {
                Some(first) => {
                    info!("{name}: no new connections; requests in flight end first");
                    // The receiver is gone only when the endpoint has ended already.
                    let _ = first.send(());
                }
                None => {
                    warn!("{name} again: ending at once");
                    std::process::exit(128 + number);
                }
            }
        }
    });
    async {
        let _ = told.await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Arguments;
    use std::collections::BTreeMap;

    #[test]
    fn a_device_that_may_come_is_waited_for_where_there_is_reason_to_expect_it() {
        let nothing = Board::new(inferd_api::Keeper::default(), &PathBuf::new());
        let gpu = |problem: Option<&str>, waits, library: Option<&str>| EngineHere {
            problem: problem.map(str::to_owned),
            waits,
            library: library.map(PathBuf::from),
            ..EngineHere::unknown(EngineKind::Tensorrt)
        };
        let lib = Some("/usr/lib/libnvinfer.so.10");
        assert!(may_work(&gpu(None, false, lib), &*nothing));
        assert!(may_work(&gpu(Some("CUDA finds no device"), true, lib), &*nothing), "it may come late");
        assert!(!may_work(&gpu(Some("it is of another version"), false, lib), &*nothing));
        assert!(!may_work(&gpu(Some("no answer within 20 s"), true, None), &*nothing));
    }

    #[test]
    fn hosts_recover_devices_by_the_ladder_that_they_are_given() {
        let loaded = Loaded::from_layers(&Arguments::default(), BTreeMap::new(), None).unwrap();
        let ladder: Arc<dyn Ladder> = Board::new(inferd_api::Keeper::default(), &PathBuf::new());
        let config = hosts_config(&loaded.config, PathBuf::new(), &[], Vec::new(), Arc::clone(&ladder));
        assert!(config.ladder.is_some_and(|given| Arc::ptr_eq(&given, &ladder)));
    }
}
