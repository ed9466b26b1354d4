//! The set of models: loaded from directories, promoted from candidates, unloaded.
//!
//! Per name there is one change at a time (its *turn*, from the look-up until the replaced host is gone), so that there are
//! never more than two hosts for one name, candidates aside (and for a moment a third: when what serves falls while a host of a better
//! rung is being started, one of the next rung is started too). Who needs the turns of several names takes them in the order of
//! the names. The routes themselves change under the lock of the set, all names of one change at one instant.

use crate::breaker::BreakerRules;
use crate::candidate::{Candidate, Lending, PrepareError, PromoteError, Promotion};
use crate::cgroup;
use crate::child::Refusal;
use crate::edition::Edition;
use crate::events::HostEvent;
use crate::host::{Host, StartError, names};
use crate::house::House;
use crate::limits::{BACKOFF_MAX, MAX_SLOTS, MAX_WORKERS};
use crate::package::{LoadError, ModelSource, Origin, Package};
use crate::recovery::Ladder;
use crate::served::{Served, Turn, finish, lock, turn_all};
use crate::shadow::{Shadow, ShadowError, ShadowPolicy};
use inferd_model::{EngineKind, Manifest, Rung};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;
use tokio::task::JoinError;

/// Settings of the hosts.
#[derive(Clone, Debug)]
pub struct HostsConfig {
    /// The program to run as `PROGRAM engine-host`; the daemon's own executable.
    pub program: PathBuf,
    /// Worker threads per CPU host when the manifest does not say.
    pub workers: usize,
    /// Slots (running + waiting requests) per model when the manifest does not say. Models with large tensors get fewer,
    /// so that a ring stays below 64 MiB.
    pub queue: usize,
    /// How long a request that names no deadline waits for its answer, queue included.
    pub request_timeout: Duration,
    /// The longest pause before a host that keeps ending is started again.
    pub backoff_max: Duration,
    /// Where cgroups for hosts are made (`/sys/fs/cgroup/inferd`); `None`, or not writable: `RLIMIT_DATA` is used.
    pub cgroup_root: Option<PathBuf>,
    /// Whether hosts may make only the system calls that computing needs.
    pub seccomp: bool,
    /// When a breaker opens and closes.
    pub breaker: BreakerRules,
    /// Programs that have other engines than `cpu`, run as `PROGRAM engine-host` too.
    pub engines: BTreeMap<EngineKind, PathBuf>,
    /// What the devices of engines are, where that is known: `hailo8`. A network that was compiled for another one is refused.
    pub devices: BTreeMap<EngineKind, String>,
    /// Engines of which it is not known yet whether they are here: [`Hosts::answered`] says so. Only models that name one wait for it.
    pub unanswered: BTreeSet<EngineKind>,
    /// Environment variables of those programs: where their libraries are.
    pub environment: Vec<(String, OsString)>,
    /// Engines whose device several hosts may have at once, because a service has it and shares it.
    pub shared: BTreeSet<EngineKind>,
    /// How devices of engines are recovered; `None`: not at all.
    pub ladder: Option<Arc<dyn Ladder>>,
}

impl Default for HostsConfig {
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            queue: 128,
            request_timeout: Duration::from_secs(5),
            backoff_max: BACKOFF_MAX,
            cgroup_root: None,
            seccomp: true,
            breaker: BreakerRules::default(),
            engines: BTreeMap::new(),
            devices: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            environment: Vec::new(),
            shared: BTreeSet::new(),
            ladder: None,
        }
    }
}

/// All models that are served.
pub struct Hosts {
    house: Arc<House>,
    models: Mutex<BTreeMap<String, Arc<Served>>>,
    /// Per name: one load or unload at a time, from the look-up to the end.
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Load failures that still stand, by model name or directory.
    errors: Mutex<BTreeMap<String, String>>,
    /// Where each model that was ever loaded (or tried) came from.
    origins: Mutex<BTreeMap<String, Origin>>,
    /// Models that wait until it is known which engines are here, by name: which engines, and since when.
    waiting: Mutex<BTreeMap<String, (Vec<EngineKind>, Instant)>>,
    /// Loads that are announced and not over.
    announced: Arc<AtomicUsize>,
    /// Whether optional work is shed.
    shedding: Arc<AtomicBool>,
}

/// Most load failures that are remembered.
const MAX_ERRORS: usize = 64;

impl Hosts {
    /// An empty set. Loading must happen within the tokio runtime that serves.
    #[must_use]
    pub fn new(config: HostsConfig) -> Arc<Self> {
        let config = HostsConfig {
            workers: config.workers.clamp(1, MAX_WORKERS),
            queue: config.queue.clamp(1, MAX_SLOTS),
            cgroup_root: config.cgroup_root.filter(|root| match cgroup::usable(root) {
                Ok(()) => true,
                Err(e) => {
                    tracing::info!(reason = %e, "no control groups for engine hosts: RLIMIT_DATA caps their memory");
                    false
                }
            }),
            ..config
        };
        if let Some(root) = &config.cgroup_root {
            cgroup::sweep(root);
        }
        Arc::new(Self {
            house: Arc::new(House::new(config)),
            models: Mutex::default(),
            turns: Mutex::default(),
            errors: Mutex::default(),
            origins: Mutex::default(),
            waiting: Mutex::default(),
            announced: Arc::default(),
            shedding: Arc::default(),
        })
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &HostsConfig {
        &self.house.config
    }

    /// An engine has answered what works here: it is in this program, on this device where that is known, or (`None`) not to be used.
    pub fn answered(&self, engine: EngineKind, program: Option<PathBuf>, device: Option<String>) {
        self.house.answered(engine, program, device);
    }

    /// Waits until it is known which of these engines are here.
    pub async fn all_answered(&self, engines: &[EngineKind]) {
        self.house.all_answered(engines).await;
    }

    /// Whether it is known which of these engines are here.
    #[must_use]
    pub fn have_answered(&self, engines: &[EngineKind]) -> bool {
        self.house.unanswered(engines).is_empty()
    }

    /// Models that wait until it is known which engines are here: name, and why it waits.
    #[must_use]
    pub fn waiting(&self) -> Vec<(String, String)> {
        let waiting = lock(&self.waiting);
        let told = |(name, (engines, since)): (&String, &(Vec<EngineKind>, Instant))| {
            let open = self.house.unanswered(engines);
            let seconds = since.elapsed().as_secs_f64();
            let why = format!(
                "engine {} was asked what works here and has not answered for {seconds:.1} s",
                names(&open)
            );
            (!open.is_empty()).then(|| (name.clone(), why))
        };
        waiting.iter().filter_map(told).collect()
    }

    /// Waits until it is known which of the engines are here that a model names.
    async fn wait_for_engines(&self, manifest: &str) {
        // What is no manifest is said by who reads it next.
        let Ok(manifest) = Manifest::from_toml(manifest) else { return };
        let mut engines: Vec<_> = manifest.engines.iter().map(|rung| rung.engine).collect();
        engines.sort_unstable();
        engines.dedup();
        if self.have_answered(&engines) {
            return;
        }
        let name = manifest.name.to_string();
        tracing::info!(model = name, "waits for engine {}", names(&self.house.unanswered(&engines)));
        lock(&self.waiting).insert(name.clone(), (engines.clone(), Instant::now()));
        let _over = Over(&self.waiting, name);
        self.house.all_answered(&engines).await;
    }

    /// What happens to the hosts from now on. A reader that lags loses the oldest events and is told how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.house.events.subscribe()
    }

    /// Sheds optional work, or lets it go on: while it is shed no shadow gets a copy of a request. Inference is never shed.
    pub fn shed(&self, optional: bool) {
        self.shedding.store(optional, Relaxed);
    }

    /// Whether optional work is shed now: other rooms that work beside inference look here before each piece.
    #[must_use]
    pub fn is_shedding(&self) -> bool {
        self.shedding.load(Relaxed)
    }

    /// The model of this name, if one is (or is being) served.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Served>> {
        lock(&self.models).get(name).cloned()
    }

    /// Every model, sorted by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Served>> {
        lock(&self.models).values().cloned().collect()
    }

    /// Where a model came from, also after it was unloaded.
    #[must_use]
    pub fn origin(&self, name: &str) -> Option<Origin> {
        lock(&self.origins).get(name).cloned()
    }

    /// The directory a model came from, when it came from one, also after it was unloaded.
    #[must_use]
    pub fn directory(&self, name: &str) -> Option<PathBuf> {
        self.origin(name)?.directory().map(Path::to_owned)
    }

    /// Every model that was ever loaded, tried or promoted, with where it came from, sorted by name.
    #[must_use]
    pub fn known(&self) -> Vec<(String, Origin)> {
        lock(&self.origins).iter().map(|(n, o)| (n.clone(), o.clone())).collect()
    }

    /// Announces that models are about to be loaded; [`Hosts::loading`] says so until the guard is dropped.
    #[must_use]
    pub fn announce_loading(&self) -> Announced {
        self.announced.fetch_add(1, Relaxed);
        Announced(self.announced.clone())
    }

    /// Whether more models are about to come: the list is not complete yet.
    #[must_use]
    pub fn loading(&self) -> bool {
        self.announced.load(Relaxed) > 0
    }

    /// Why the last load of this model (by name or directory) failed, if nothing succeeded since.
    #[must_use]
    pub fn last_load_error(&self, name: &str) -> Option<String> {
        lock(&self.errors).get(name).cloned()
    }

    /// Steps that were taken to get lost devices back: device, step (as in [`HostEvent::Recovery`]), how often.
    #[must_use]
    pub fn recovery_steps(&self) -> Vec<(String, &'static str, u64)> {
        self.house.recovery_steps()
    }

    /// Every load failure that still stands: (name or directory, reason).
    #[must_use]
    pub fn load_errors(&self) -> Vec<(String, String)> {
        lock(&self.errors).iter().map(|(n, e)| (n.clone(), e.clone())).collect()
    }

    /// Loads the model of a directory, or replaces the one of the same name: the new one takes over only after its golden
    /// vectors passed; on any error the old one goes on serving. Requests in flight end on the old one, and this returns
    /// when its host is gone.
    ///
    /// # Errors
    /// [`LoadError`], one sentence for the operator.
    pub async fn load(self: &Arc<Self>, dir: &Path) -> Result<Arc<Served>, LoadError> {
        let directory = dir.display().to_string();
        let edition =
            match self.read(dir).await.map_err(|e| LoadError(format!("{directory}: {e}"))).and_then(|r| r) {
                Ok(package) => Arc::new(Edition::new(package, &self.house)),
                Err(e) => {
                    self.remember_error(&directory, &e);
                    return Err(e);
                }
            };
        let origin = edition.package.origin.clone();
        let name = edition.package.manifest.name.to_string();
        let turn = self.turn(&name);
        let _turn = turn.lock().await;
        let holder = lock(&self.models).get(&name).map(|m| m.origin());
        if let Some(Origin::Bundle { .. }) = holder {
            // Asked in its turn: a promotion may just have brought it.
            return Err(LoadError(format!(
                "model {name} came in a bundle, and only a bundle takes its place"
            )));
        }
        lock(&self.origins).entry(name.clone()).or_insert_with(|| origin.clone());
        let served = {
            let mut models = lock(&self.models);
            models.entry(name.clone()).or_insert_with(|| self.fresh(&edition)).clone()
        };
        let lending = self.lent_to(&served, &edition).await;
        match served.start_shown(&edition).await {
            Ok(host) => {
                let replaced = {
                    let models = lock(&self.models);
                    if !models.get(&name).is_some_and(|m| Arc::ptr_eq(m, &served)) {
                        host.stop();
                        return Err(LoadError(format!("model {name}: it was shut down while it was loaded")));
                    }
                    turn_all(vec![Turn { served: served.clone(), to: Some((edition, host)) }])
                };
                drop(lending);
                for host in &replaced {
                    finish(host, true).await;
                }
                lock(&self.origins).insert(name.clone(), origin);
                let mut errors = lock(&self.errors);
                errors.remove(&name);
                errors.remove(&directory);
                drop(errors);
                Ok(served)
            }
            Err(reason) => {
                let e = LoadError(format!("model {name}: {reason}"));
                self.remember_error(&name, &e);
                if served.ready_since().is_none() {
                    lock(&self.models).remove(&name);
                }
                Err(e)
            }
        }
    }

    /// What the edition that serves lends to one that may take its place: a device that only one of them can have at a time. Only for
    /// that: what is refused without the device is refused with the old edition on it.
    async fn lent_to(&self, served: &Arc<Served>, edition: &Arc<Edition>) -> Lending {
        let first = served.first_rung(edition).filter(|rung| self.house.has_one_owner(rung.engine));
        let Some(rung) = first.filter(|rung| served.host().is_some_and(|h| h.rung.engine == rung.engine))
        else {
            return Lending::default();
        };
        let looked_at = Arc::new(Edition::to_be_measured(edition.package.clone(), &self.house));
        match self.fresh(&looked_at).start_audition(&looked_at, rung, None).await {
            Err(StartError::Refused(Refusal::Busy(_))) => Lending::of(served, rung.engine).await,
            // It is refused for that in a moment.
            Err(_) => Lending::default(),
            // The device had been left meanwhile.
            Ok(host) => {
                finish(&host, false).await;
                Lending::default()
            }
        }
    }

    async fn read(&self, dir: &Path) -> Result<Result<Package, LoadError>, JoinError> {
        let dir = dir.to_owned();
        let source = match tokio::task::spawn_blocking(move || ModelSource::directory(&dir)).await? {
            Ok(source) => source,
            Err(e) => return Ok(Err(e)),
        };
        self.wait_for_engines(&source.manifest).await;
        let house = self.house.clone();
        let here = move |engine| house.program(engine).is_some();
        Ok(tokio::task::spawn_blocking(move || Package::read(source, here)).await?.map_err(LoadError::from))
    }

    fn fresh(&self, edition: &Arc<Edition>) -> Arc<Served> {
        Arc::new(Served::new(edition.clone(), self.house.clone()))
    }

    /// Starts a model beside what is served: its golden vectors pass in its own host, under its own cap, and nobody is sent
    /// to it. A network that was compiled for an engine here and is refused by it refuses the model.
    ///
    /// What is served is not touched, with one exception: where it has the only device that the candidate's first rung wants, and another
    /// rung to serve on, it steps down to that as long as the candidate is there, and the candidate is proven on the device. No request
    /// fails by it; answers are marked as those of a stand-in.
    ///
    /// # Errors
    /// [`PrepareError`]: why it may not serve.
    pub async fn prepare(&self, source: ModelSource) -> Result<Candidate, PrepareError> {
        self.prepared(source, true).await
    }

    /// The same for a model that was accepted before and has to serve: on whichever rung comes up.
    ///
    /// # Errors
    /// [`PrepareError`]: why it cannot serve.
    pub async fn prepare_again(&self, source: ModelSource) -> Result<Candidate, PrepareError> {
        self.prepared(source, false).await
    }

    async fn prepared(&self, source: ModelSource, new: bool) -> Result<Candidate, PrepareError> {
        self.wait_for_engines(&source.manifest).await;
        let house = self.house.clone();
        let here = move |engine| house.program(engine).is_some();
        let read = tokio::task::spawn_blocking(move || Package::read(source, here)).await;
        let package = read.map_err(|e| PrepareError::Load(format!("the model was not read: {e}")))??;
        let edition = Arc::new(Edition::new(package, &self.house));
        // What served before comes back at once, on whichever rung.
        let serves = self.get(edition.package.manifest.name.as_str()).filter(|_| new);
        let lending = match serves {
            Some(served) => self.lent_to(&served, &edition).await,
            None => Lending::default(),
        };
        Ok(Candidate::start(self.fresh(&edition), &edition, new, lending).await?)
    }

    /// Starts the model that is served under this name once more, in a host of its own on this rung and no other, under its own
    /// cap, with so many workers (or as it is served): to be measured. Its golden vectors have passed in it; nobody is sent to it, no
    /// breaker hears of it, and a device that does not work is not put right for it.
    ///
    /// A Hailo chip that no service shares has one owner. Where the model is served on this very rung of one, the host that serves is lent instead
    /// ([`Candidate::serves`]): requests go on, and what is run for the measurement is in no number of the model's. Its breaker hears of
    /// a failure then: that the device does not work is no matter of who asked.
    ///
    /// # Errors
    /// [`PrepareError`]: why it cannot run there.
    pub async fn audition(
        &self,
        name: &str,
        rung: Rung,
        workers: Option<usize>,
    ) -> Result<Candidate, PrepareError> {
        let gone = || PrepareError::Load(format!("no model is called {name:?}"));
        let served = self.get(name).ok_or_else(gone)?;
        let package = served.edition().package.clone();
        if !package.manifest.engines.contains(&rung) {
            return Err(PrepareError::Load(format!("the manifest of {name} does not name {rung}")));
        }
        let edition = Arc::new(Edition::to_be_measured(package.clone(), &self.house));
        if self.house.has_one_owner(rung.engine)
            && let Some(host) = served.host()
            && host.rung == rung
            && Arc::ptr_eq(&host.edition.package, &package)
        {
            return Ok(Candidate::that_serves(self.fresh(&edition), &edition, host));
        }
        Ok(Candidate::audition(self.fresh(&edition), &edition, rung, workers).await?)
    }

    /// Lets candidates take over from the models of their names, adds those that are new, and ends the models in `remove`
    /// that no candidate has the name of: all at one instant. No request fails or waits because of it; each is answered by
    /// the host whose slot it took, so wholly by one model. The hosts before end when nothing is in flight in them any more.
    ///
    /// Waits for changes of the same names that are under way, an earlier promotion's last requests included.
    ///
    /// # Errors
    /// [`PromoteError`]; then nothing has changed, and the candidates end.
    pub async fn promote(
        self: &Arc<Self>,
        candidates: Vec<Candidate>,
        remove: &[String],
    ) -> Result<Promotion, PromoteError> {
        let mut names = BTreeSet::new();
        for candidate in &candidates {
            let name = candidate.name();
            if !names.insert(name.clone()) {
                return Err(PromoteError::Doubled { name });
            }
        }
        names.extend(remove.iter().cloned());
        let mut held = Vec::with_capacity(names.len());
        for name in &names {
            held.push(self.turn(name).lock_owned().await);
        }

        let mut models = lock(&self.models);
        if let Some((name, reason)) = candidates.iter().find_map(|c| Some((c.name(), c.ended()?))) {
            return Err(PromoteError::Ended { name, reason });
        }
        let mut turns = Vec::with_capacity(names.len());
        let (mut fresh, mut lendings) = (Vec::new(), Vec::new());
        for name in remove {
            if !candidates.iter().any(|c| c.name() == *name)
                && let Some(served) = models.remove(name)
            {
                turns.push(Turn { served, to: None });
            }
        }
        for candidate in candidates {
            let name = candidate.name();
            let (to, lending) = candidate.promoted();
            lendings.push(lending);
            lock(&self.origins).insert(name.clone(), to.0.package.origin.clone());
            lock(&self.errors).remove(&name);
            let served = match models.get(&name) {
                Some(served) => served.clone(),
                None => {
                    let served = self.fresh(&to.0);
                    fresh.push((name, served.clone()));
                    served
                }
            };
            turns.push(Turn { served, to: Some(to) });
        }
        let replaced = turn_all(turns);
        // Not before: who lent a device would take it back.
        drop(lendings);
        models.extend(fresh);
        drop(models);
        Ok(Promotion::drain(replaced, held))
    }

    /// Lets a candidate follow the model of its name: it gets copies of live requests after they were answered, and its answers
    /// are compared. The model that serves is not delayed. Call it within the runtime that serves.
    ///
    /// # Errors
    /// [`ShadowError`], with the candidate as it was.
    #[allow(clippy::result_large_err)] // the candidate comes back
    pub fn start_shadow(
        &self,
        candidate: Candidate,
        policy: ShadowPolicy,
    ) -> Result<Shadow, (ShadowError, Candidate)> {
        let models = lock(&self.models);
        let name = candidate.name();
        let Some(primary) = models.get(&name) else {
            return Err((ShadowError::NotServed { name }, candidate));
        };
        Shadow::start(primary, candidate, policy, self.shedding.clone())
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.turns).entry(name.to_owned()).or_default().clone()
    }

    fn remember_error(&self, key: &str, e: &LoadError) {
        tracing::error!(error = %e, "model not loaded");
        let mut errors = lock(&self.errors);
        if errors.len() < MAX_ERRORS || errors.contains_key(key) {
            errors.insert(key.to_owned(), e.0.clone());
        }
    }

    /// Stops serving a model, after the requests in flight.
    ///
    /// # Errors
    /// When no model has this name.
    pub async fn unload(&self, name: &str) -> Result<(), LoadError> {
        if self.get(name).is_none() {
            return Err(LoadError(format!("no model is called {name:?}")));
        }
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let ended = {
            let mut models = lock(&self.models);
            let Some(served) = models.remove(name) else {
                return Err(LoadError(format!("no model is called {name:?}")));
            };
            turn_all(vec![Turn { served, to: None }])
        };
        for host in &ended {
            finish(host, true).await;
        }
        Ok(())
    }

    /// Ends all hosts, after the requests in flight.
    pub async fn shutdown(&self) {
        let hosts: Vec<Arc<Host>> = {
            let mut models = lock(&self.models);
            let all = std::mem::take(&mut *models);
            turn_all(all.into_values().map(|served| Turn { served, to: None }).collect())
        };
        let mut ends = tokio::task::JoinSet::new();
        for host in hosts {
            ends.spawn(async move { finish(&host, false).await });
        }
        while ends.join_next().await.is_some() {}
    }
}

/// A model's wait for engines; over when dropped.
struct Over<'a>(&'a Mutex<BTreeMap<String, (Vec<EngineKind>, Instant)>>, String);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

/// An announced load; over when dropped.
pub struct Announced(Arc<AtomicUsize>);

impl Drop for Announced {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
