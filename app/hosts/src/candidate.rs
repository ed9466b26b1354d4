//! Models that are not served yet: prepared, tried, then promoted or dropped.

use crate::child::Refusal;
use crate::edition::Edition;
use crate::host::{Host, StartError, names};
use crate::package::{LoadError, Origin, Unfit};
use crate::served::{Answer, EngineInfo, InferError, Lease, Served, finish};
use crate::stats::End;
use crate::sys;
use inferd_engine::DeviceState;
use inferd_model::{Agreement, EngineKind, Golden, Manifest, Rung, Tolerance};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;

/// A model in a host of its own, whose golden vectors have passed. It is in no list and gets no requests. Dropping it ends its
/// host; when the host ends by itself, it stays ended.
pub struct Candidate {
    /// A face for itself alone: one inference goes the same way as a served model's.
    served: Arc<Served>,
    edition: Arc<Edition>,
    host: Arc<Host>,
    /// The host lives on without us.
    promoted: bool,
    /// It is the host that serves.
    serves: bool,
    /// The device it was lent by the edition that serves.
    lending: Lending,
}

/// Whether an edition that serves leaves its device to a candidate.
#[derive(Clone, Default)]
pub(crate) struct Lending {
    /// It has.
    lease: Option<Arc<Lease>>,
    /// It has not, for this reason.
    kept: Option<(EngineKind, String)>,
}

impl Lending {
    /// Asks the edition that serves, for the device of this engine.
    pub(crate) async fn of(served: &Arc<Served>, engine: EngineKind) -> Self {
        match served.lend(engine).await {
            Ok(lease) => Self { lease: Some(Arc::new(lease)), kept: None },
            Err(why) => Self { lease: None, kept: why.map(|why| (engine, why)) },
        }
    }
}

impl Candidate {
    /// `new`: it never served here, see [`Served::start`].
    pub(crate) async fn start(
        served: Arc<Served>,
        edition: &Arc<Edition>,
        new: bool,
        mut lending: Lending,
    ) -> Result<Self, StartError> {
        let host = served.start(edition, new, |_| ()).await?;
        served.show_alone(edition, &host);
        if served.first_rung(edition) != Some(host.rung) {
            // It did not come up on it.
            lending.lease = None;
        }
        Ok(Self { served, edition: edition.clone(), host, promoted: false, serves: false, lending })
    }

    /// On this rung and no other.
    pub(crate) async fn audition(
        served: Arc<Served>,
        edition: &Arc<Edition>,
        rung: Rung,
        workers: Option<usize>,
    ) -> Result<Self, StartError> {
        let host = served.start_audition(edition, rung, workers).await?;
        served.show_audition(edition, &host);
        let lending = Lending::default();
        Ok(Self { served, edition: edition.clone(), host, promoted: false, serves: false, lending })
    }

    /// The host that serves, where its device has one owner: it goes on serving, and lives on when this is dropped.
    pub(crate) fn that_serves(served: Arc<Served>, edition: &Arc<Edition>, host: Arc<Host>) -> Self {
        served.show_audition(edition, &host);
        let lending = Lending::default();
        Self { served, edition: edition.clone(), host, promoted: true, serves: true, lending }
    }

    /// The same model in another host. Where the device has one owner, this one's host has ended by then.
    pub(crate) async fn again(&self) -> Result<Self, StartError> {
        if self.served.has_one_owner(self.host.rung.engine) {
            // What it has the other one needs.
            self.host.stop();
            self.host.ended().await;
        }
        Self::start(self.served.clone(), &self.edition, true, self.lending.clone()).await
    }

    /// What is to serve, and what it was lent: to be dropped when it serves.
    pub(crate) fn promoted(mut self) -> ((Arc<Edition>, Arc<Host>), Lending) {
        self.promoted = true;
        ((self.edition.clone(), self.host.clone()), std::mem::take(&mut self.lending))
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The name it will serve under.
    #[must_use]
    pub fn name(&self) -> String {
        self.host.manifest.name.to_string()
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.host.manifest
    }

    /// Where it comes from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.edition.package.origin
    }

    /// Its golden vectors.
    #[must_use]
    pub fn golden(&self) -> &Arc<Golden> {
        &self.edition.package.golden
    }

    /// How near its engine came to them: the worst of all workers.
    #[must_use]
    pub fn agreement(&self) -> Agreement {
        self.host.agreement
    }

    /// How near it has to come to them.
    #[must_use]
    pub fn tolerance(&self) -> Tolerance {
        self.host.manifest.tolerance(self.host.rung)
    }

    /// The engine that runs it, its library and device.
    #[must_use]
    pub fn engine(&self) -> EngineInfo {
        self.host.engine_info()
    }

    /// The rungs this image can run that its golden vectors have not passed on, and why, where they were tried: the first one of the
    /// ladder that comes up is the one that is proven.
    #[must_use]
    pub fn unproven(&self) -> Vec<(Rung, Option<String>)> {
        let mut unproven = self.served.unproven(&self.host);
        if let Some((engine, kept)) = &self.lending.kept {
            for (_, why) in unproven.iter_mut().filter(|(rung, _)| rung.engine == *engine) {
                *why = Some(why.take().map_or_else(|| kept.clone(), |why| format!("{why}; {kept}")));
            }
        }
        unproven
    }

    /// The process id of its host.
    #[must_use]
    pub fn host_pid(&self) -> u32 {
        self.host.pid
    }

    /// Ends it; its host is gone then, and the memory that it had is there again.
    pub async fn end(self) {
        let host = (!self.promoted).then(|| self.host.clone());
        drop(self);
        if let Some(host) = host {
            host.ended().await;
        }
    }

    /// Why its host has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.host.has_ended().map(|e| e.reason)
    }

    /// Whether its host has ended because it was over its memory cap.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(PrepareError::of_end(&self.host), Some(PrepareError::Memory { .. }))
    }

    /// The most memory its host has used so far; after [`Hosts::prepare`](crate::Hosts::prepare) that is with every worker
    /// having run the golden vectors. `None` when the host has just ended.
    #[must_use]
    pub fn peak_memory(&self) -> Option<PeakMemory> {
        PeakMemory::of(&self.host)
    }

    /// Whether its host is the one that serves, because no other can have the device: then requests run in it too, and its peak of
    /// memory and its processor time are theirs as well.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.serves
    }

    /// How its engine's device is, when it has one that says so.
    #[must_use]
    pub fn device(&self) -> Option<DeviceState> {
        self.host.ring().device().load()
    }

    /// How many requests its host takes at once.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.host.occupancy().1
    }

    /// Worker threads of its host.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.host.workers
    }

    /// Processor time its host has used so far, all threads together; `None` when it has just ended.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        sys::cpu_time(self.host.pid).filter(|_| self.host.has_ended().is_none())
    }

    /// Runs one inference, on the way a served model's requests take. `inputs` are the raw bytes of each input tensor.
    ///
    /// # Errors
    /// As [`Ticket::run`](crate::Ticket::run); [`InferError::Engine`] too for inputs that are not those of the manifest.
    pub async fn run(&self, inputs: &[&[u8]]) -> Result<Answer, InferError> {
        let mut ticket = self.served.begin(None)?;
        let specs = &self.manifest().inputs;
        if !specs.iter().map(inferd_model::TensorSpec::byte_len).eq(inputs.iter().map(|i| i.len())) {
            return Err(InferError::Engine("the inputs are not those of the manifest".into()));
        }
        for (i, bytes) in inputs.iter().enumerate() {
            ticket.input_mut(i).copy_from_slice(bytes);
        }
        ticket.run().await
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if self.promoted {
            return;
        }
        self.host.stop();
        if let (Some(lease), Ok(runtime)) = (self.lending.lease.take(), tokio::runtime::Handle::try_current())
        {
            // A device is given back when it can be had.
            let host = self.host.clone();
            runtime.spawn(async move {
                host.ended().await;
                drop(lease);
            });
        }
    }
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate")
            .field("name", &self.name())
            .field("origin", self.origin())
            .field("pid", &self.host.pid)
            .finish_non_exhaustive()
    }
}

/// The most memory a host has used, measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PeakMemory {
    /// Bytes.
    pub bytes: u64,
    /// The cap that holds for them.
    pub cap: u64,
    /// How it was measured.
    ///
    /// `cgroup`: the group's `memory.peak`: all that was ever charged to the host at once, page tables, kernel objects and the
    /// ring's pages it touched first included; the cap is the group's `memory.max`, which allows for ring and model file on top
    /// of the manifest's budget.
    ///
    /// `proc`: private resident memory from `/proc/PID/status`, where no group caps the host or its kernel has no
    /// `memory.peak` (before 5.19): the larger of `RssAnon` and `VmHWM - RssFile - RssShmem`. The kernel keeps the peak of
    /// resident memory as a whole only. Shared pages (the ring, the model file, the program) come and stay, so taking away what
    /// they are now gives the private part at the peak or a little less, never more; it is exact when no shared page was
    /// touched after the peak. Memory that is mapped and not touched is not in it, though `RLIMIT_DATA` caps that too.
    pub how: &'static str,
}

impl PeakMemory {
    pub(crate) fn of(host: &Host) -> Option<Self> {
        if host.has_ended().is_some() {
            return None;
        }
        if let Some(bytes) = host.group().and_then(crate::cgroup::GroupView::peak) {
            return Some(Self { bytes, cap: host.cap, how: "cgroup" });
        }
        Some(Self { bytes: sys::private_peak(host.pid)?, cap: host.cap, how: "proc" })
    }
}

/// Why a model may not become a candidate; each is one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PrepareError {
    /// Its manifest cannot be read as one.
    #[error(transparent)]
    Manifest(LoadError),
    /// It is for engines this image does not have.
    #[error("it wants engine {}, this image has {}", names(.wanted), names(.has))]
    Engine {
        /// The ladder of its manifest.
        wanted: Vec<Rung>,
        /// Engines there are.
        has: Vec<EngineKind>,
    },
    /// It does not fit into the memory its own manifest allows it.
    #[error("{reason}")]
    Memory {
        /// The cap in bytes.
        cap: u64,
        /// What was too much.
        reason: String,
    },
    /// The engine's device is there and cannot be had now: another host or process has it, or it is too hot.
    #[error("{0}")]
    Busy(String),
    /// It cannot be loaded: a file is missing or damaged, the engine refuses the network, its host ended or took too long.
    #[error("{0}")]
    Load(String),
    /// It does not compute what its golden vectors say.
    #[error("{reason}")]
    Golden {
        /// Which case and output, and the limits.
        reason: String,
        /// The cosine similarity there was; `None` when the engine failed or answered with no numbers.
        cosine: Option<f64>,
        /// The largest difference there was; `None` likewise.
        max_abs: Option<f64>,
        /// The limits of the network that ran, which may be a variant's own.
        limits: Tolerance,
    },
}

impl PrepareError {
    /// What a candidate's host that ended afterwards means.
    pub(crate) fn of_end(host: &Host) -> Option<Self> {
        let ended = host.has_ended()?;
        Some(match ended.how {
            End::Oom => Self::Memory { cap: host.cap, reason: ended.reason },
            _ => Self::Load(format!("its engine host ended: {}", ended.reason)),
        })
    }
}

impl From<Unfit> for PrepareError {
    fn from(e: Unfit) -> Self {
        match e {
            Unfit::Manifest(e) => Self::Manifest(e),
            Unfit::File(e) => Self::Load(e.0),
        }
    }
}

impl From<StartError> for PrepareError {
    fn from(e: StartError) -> Self {
        match e {
            StartError::Refused(Refusal::Golden { reason, cosine, max_abs, limits }) => {
                Self::Golden { reason, cosine, max_abs, limits }
            }
            StartError::Refused(Refusal::Busy(reason)) => Self::Busy(reason),
            StartError::Memory { cap, reason } => Self::Memory { cap, reason },
            StartError::Engine { wanted, has } => Self::Engine { wanted, has },
            other => Self::Load(other.to_string()),
        }
    }
}

/// Why nothing was promoted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PromoteError {
    #[error("two candidates are called {name}")]
    Doubled { name: String },
    #[error("the engine host of the candidate {name} has ended: {reason}")]
    Ended { name: String, reason: String },
}

/// A promotion that has happened. What was served before it ends by itself, whether this is waited for or dropped.
pub struct Promotion {
    draining: JoinHandle<()>,
}

impl Promotion {
    pub(crate) fn drain(replaced: Vec<Arc<Host>>, turns: Vec<OwnedMutexGuard<()>>) -> Self {
        let draining = tokio::spawn(async move {
            let mut ends = tokio::task::JoinSet::new();
            for host in replaced {
                ends.spawn(async move { finish(&host, true).await });
            }
            while ends.join_next().await.is_some() {}
            drop(turns);
        });
        Self { draining }
    }

    /// Waits until the hosts that served before are gone.
    pub async fn finished(self) {
        // It neither panics nor is cancelled, except with the runtime.
        let _ = self.draining.await;
    }

    /// Whether they are.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.draining.is_finished()
    }
}
