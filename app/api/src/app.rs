//! What all handlers share.

use crate::actuators::{self, Actuators};
use crate::announced;
use crate::body::Held;
use crate::calibrations::{self, Calibrations};
use crate::cpu::Meter;
use crate::rate::Limits;
use crate::sources::{self, Sources};
use crate::{
    Alive, ApiConfig, Benchmarks, Front, Metrics, Records, Updates, analysis, benchmarks, limits, records,
    stream,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use inferd_hosts::{EngineHere, Hosts, Served};
use inferd_model::{EngineKind, Manifest, Motif, Task};
use inferd_rollout::Serves;
use inferd_tasks::{PlanError, imu::ImuPlan};
use inferd_tls::Identity;
use inferd_watch::monitor::Monitor;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;
use tokio::sync::{Semaphore, watch};

/// The endpoint's shared state.
pub struct App {
    /// The models.
    pub hosts: Arc<Hosts>,
    /// The settings.
    pub config: ApiConfig,
    /// The counters.
    pub metrics: Metrics,
    /// When the endpoint was made.
    pub started: Instant,
    /// Updates over the air, where they are configured.
    pub updates: Arc<ArcSwap<Updates>>,
    /// What the device writes down: log, telemetry, captured windows.
    pub records: Arc<Records>,
    /// What served under the system before, while this one is on trial.
    pub system_trial: ArcSwapOption<Serves>,
    /// What the configuration has against keeping this one.
    pub(crate) system_refused: ArcSwapOption<String>,
    /// The resource monitor, once it runs.
    pub monitor: Arc<OnceLock<Monitor>>,
    /// Benchmarks, once they can be run.
    pub benchmarks: Arc<OnceLock<Arc<Benchmarks>>>,
    /// Live sources, once they are started.
    pub(crate) sources: Sources,
    /// Calibrations for a person.
    pub(crate) calibrations: Arc<Calibrations>,
    /// What moves by them, once it is started.
    pub(crate) actuators: Actuators,
    /// Sessions of sensors.
    pub(crate) sessions: Arc<analysis::Sessions>,
    /// Places of those who stream.
    pub(crate) streams: Arc<stream::Places>,
    pub(crate) stream_counts: Arc<stream::Counts>,
    /// TLS: what it is spoken with, now.
    pub tls: ArcSwap<Tls>,
    /// Where it listens, and where it cannot.
    pub listening: ArcSwap<Listening>,
    /// How it is announced on its LAN.
    pub announced: announced::Shown,
    /// Which device this is.
    pub identity: ArcSwap<Who>,
    /// The daemon's own life: progress, safe mode, keeper, history.
    pub alive: Arc<Alive>,
    /// The engines of this image, as far as they have answered.
    pub engines: Arc<ArcSwap<Vec<EngineHere>>>,
    /// LED and button.
    pub panel: Front,
    /// How busy the processors are.
    pub(crate) cpu: Meter,
    /// What the Open Inference Protocol counts for its statistics.
    pub(crate) oip: crate::oip::Doors,
    pub(crate) bodies: Held,
    pub(crate) limits: Limits,
    /// True from the moment the endpoint is told to end: what would go on for long ends then.
    pub(crate) ending: watch::Sender<bool>,
    /// Places of those who listen to events.
    pub(crate) listeners: Arc<Semaphore>,
    /// One `/test` at a time.
    pub(crate) testing: tokio::sync::Mutex<()>,
    /// How windows of each loaded model are read; few, and dropped with the last request of a
    /// model that was replaced.
    plans: ArcSwap<Vec<(Weak<Manifest>, Arc<ImuPlan>)>>,
}

/// TLS as it stands.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificate and key; `None`: no TLS.
    pub identity: Option<Identity>,
    /// The device made the certificate itself.
    pub self_signed: bool,
    /// Why there is none, or why the one before is still in use.
    pub error: Option<String>,
}

/// Which device this is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Who {
    /// The identity drawn at its first boot, else its name in permits, where it has one of the two.
    pub id: Option<String>,
    /// Its host name; `None`: the kernel does not tell.
    pub hostname: Option<String>,
}

/// Where the endpoint listens, and where it cannot.
#[derive(Clone, Debug, Default)]
pub struct Listening {
    /// As they were really bound.
    pub plain: Vec<SocketAddr>,
    /// The same of TLS.
    pub secure: Vec<SocketAddr>,
    /// What the configuration names and the system refuses; tried again.
    pub unbound: Vec<Unbound>,
}

/// An address that cannot be bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{setting} {address} cannot be bound: {why}")]
pub struct Unbound {
    /// The setting that names it.
    pub setting: &'static str,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// The system's reason.
    pub why: String,
}

impl Listening {
    /// What is wrong, one sentence each.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.unbound.iter().map(ToString::to_string).collect()
    }
}

impl App {
    /// The endpoint over these models.
    #[must_use]
    pub fn new(hosts: Arc<Hosts>, config: ApiConfig) -> Self {
        Self::with(hosts, config, Arc::default())
    }

    /// The same of a daemon that watches over its own life.
    #[must_use]
    pub fn with(hosts: Arc<Hosts>, config: ApiConfig, alive: Arc<Alive>) -> Self {
        let updates = Arc::new(ArcSwap::from_pointee(Updates::Off));
        let records = Arc::new(Records::default());
        let monitor = Arc::new(OnceLock::new());
        let mut metrics = Metrics::new(&hosts, &config, updates.clone(), monitor.clone(), alive.clone());
        metrics.add(Box::new(records::Numbers(records.clone())));
        let benchmarks = Arc::new(OnceLock::new());
        metrics.add(Box::new(benchmarks::Numbers(benchmarks.clone())));
        let sources = Sources::default();
        metrics.add(Box::new(sources::Numbers(sources.clone())));
        let actuators = Actuators::default();
        metrics.add(Box::new(actuators::Numbers(actuators.clone())));
        let calibrations = Arc::new(Calibrations::default());
        metrics.add(Box::new(calibrations::Numbers(Arc::clone(&calibrations), Arc::clone(&hosts))));
        let sessions = Arc::new(analysis::Sessions::default());
        metrics.add(Box::new(analysis::Tally(sessions.clone())));
        let announced = announced::Shown::default();
        metrics.add(Box::new(announced::Numbers(announced.clone())));
        let stream_counts = Arc::new(stream::Counts::default());
        metrics.add(Box::new(stream::Numbers(stream_counts.clone())));
        Self {
            announced,
            calibrations,
            sources,
            actuators,
            sessions,
            // They never make room for others, so that half of the places stay those of others.
            streams: Arc::new(stream::Places::new(
                limits::STREAMS.min(config.max_connections / 2),
                config.max_streams_per_client,
            )),
            stream_counts,
            metrics,
            records,
            alive,
            engines: Arc::new(ArcSwap::from_pointee(config.engines.clone())),
            panel: Front::default(),
            limits: Limits::new(&config),
            hosts,
            config,
            started: Instant::now(),
            updates,
            monitor,
            benchmarks,
            system_trial: ArcSwapOption::empty(),
            system_refused: ArcSwapOption::empty(),
            tls: ArcSwap::default(),
            listening: ArcSwap::default(),
            identity: ArcSwap::default(),
            cpu: Meter::new(),
            oip: crate::oip::Doors::default(),
            bodies: Held::default(),
            ending: watch::Sender::new(false),
            listeners: Arc::new(Semaphore::new(limits::LISTENERS)),
            testing: tokio::sync::Mutex::default(),
            plans: ArcSwap::default(),
        }
    }

    /// An engine has answered what works here; `None`: this image does not have it.
    pub fn engine_answered(&self, engine: EngineKind, here: Option<&EngineHere>) {
        self.engines.rcu(|engines| {
            let other = |e: &&EngineHere| e.engine != engine;
            let mut engines: Vec<_> = engines.iter().filter(other).chain(here).cloned().collect();
            engines.sort_by_key(|e| EngineKind::ALL.iter().position(|kind| *kind == e.engine));
            engines
        });
    }

    /// Of the first engine whose parts are not of one release: which, and what to do.
    #[must_use]
    pub fn engine_mismatch(&self) -> Option<String> {
        self.engines.load().iter().find_map(|engine| engine.mismatch.clone())
    }

    /// The model that health is about and that answers `/infer`: the configured one, else the first IMU encoder by name,
    /// else, on a device that has none, the first model by name (once the search for models is over).
    #[must_use]
    pub fn default_model(&self) -> Option<Arc<Served>> {
        if let Some(name) = &self.config.default_model {
            return self.hosts.get(name);
        }
        let models = self.hosts.list();
        let encoder = models.iter().find(|m| m.manifest().task == Task::ImuEncoder);
        encoder.or_else(|| models.first().filter(|_| !self.hosts.loading())).cloned()
    }

    /// What this model is and how its windows are read.
    pub(crate) fn imu_plan(&self, model: &Served) -> Result<(Arc<Manifest>, Arc<ImuPlan>), PlanError> {
        loop {
            let manifest = model.manifest();
            // Without a plan it was replaced between the two lines, which is over sooner than it can happen again.
            if let Some(plan) = self.imu_plan_of(model, &manifest)? {
                return Ok((manifest, plan));
            }
        }
    }

    /// How windows are read that this manifest describes, now or until a moment ago that of the model. Made on its first
    /// request and kept for as long as the manifest is. `None`: the model was replaced, and the weights with it.
    pub(crate) fn imu_plan_of(
        &self,
        model: &Served,
        manifest: &Arc<Manifest>,
    ) -> Result<Option<Arc<ImuPlan>>, PlanError> {
        let known = self.plans.load();
        if let Some((_, plan)) = known.iter().find(|(m, _)| std::ptr::eq(m.as_ptr(), Arc::as_ptr(manifest))) {
            return Ok(Some(plan.clone()));
        }
        let weights = model.motif_weights();
        let linear =
            matches!(manifest.imu.as_ref().and_then(|i| i.motif.as_ref()), Some(Motif::Linear { .. }));
        if linear && !Arc::ptr_eq(&model.manifest(), manifest) {
            return Ok(None);
        }
        let plan = Arc::new(ImuPlan::new(manifest, weights.as_deref(), self.config.motifs_without_head)?);
        self.plans.rcu(|plans| {
            let mut kept: Vec<_> = plans.iter().filter(|(m, _)| m.strong_count() > 0).cloned().collect();
            kept.push((Arc::downgrade(manifest), plan.clone()));
            kept
        });
        Ok(Some(plan))
    }
}
