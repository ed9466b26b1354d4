//! The face of the room.

use crate::config::UpdaterConfig;
use crate::core::{Core, Occupied, Proof, blocking, lock};
use crate::install::{Busy, Fetch, Resumable, Transfer, Upload, Way, look_for_resumable};
use crate::readiness::{Serves, against};
use crate::shell::Shell;
use crate::status::{CommitReady, ServingFrom, Status};
use crate::systems;
use crate::trial::Event;
use crate::verdict::{Gate, Outcome, Verdict};
use inferd_hosts::Hosts;
use inferd_slots::SlotId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::{mpsc, oneshot, watch};

/// How the reason ends that a bundle on trial is against a commit of the system: it passes by itself.
pub const ON_TRIAL: &str = "is on trial";

/// Why there is no updater. The daemon goes on without: factory models serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A slot, the state or the journal cannot be had.
    #[error("{0}")]
    Storage(String),
    /// A root document does not verify.
    #[error("{0}")]
    Trust(String),
}

/// Why a trust document was not taken, or why nothing was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct TrustError {
    /// Why, for programs.
    pub code: String,
    /// Why, for people.
    pub sentence: String,
}

/// What the task is asked to do.
pub(crate) enum Command {
    /// A bundle was staged.
    Event {
        event: Event,
        slot: SlotId,
    },
    Boot {
        serve: bool,
        told: oneshot::Sender<()>,
    },
    Rollback(String, oneshot::Sender<Result<(), TrustError>>),
    Trust(Vec<u8>, oneshot::Sender<Result<String, TrustError>>),
}

/// Everything that brings, shows or stops an update talks to this. When it is dropped its task ends; a trial that is open then
/// is an interrupted one.
pub struct Updater {
    core: Arc<Core>,
    tell: mpsc::UnboundedSender<Command>,
    task: tokio::task::JoinHandle<()>,
    systems: tokio::task::JoinHandle<()>,
}

impl Drop for Updater {
    fn drop(&mut self) {
        self.task.abort();
        self.systems.abort();
    }
}

impl Updater {
    /// Opens the slots, the state, the trust documents and the journal. Serves nothing yet: see [`Updater::boot`].
    ///
    /// # Errors
    /// [`StartError`] when the storage cannot be had or the image's root documents contradict each other.
    pub async fn start(config: UpdaterConfig, hosts: Arc<Hosts>) -> Result<Arc<Self>, StartError> {
        let core = Arc::new(blocking(move || Core::open(config, hosts)).await?);
        let (tell, told) = mpsc::unbounded_channel();
        let task = tokio::spawn(Shell::new(core.clone(), told).run());
        let systems = tokio::spawn(systems::follow(core.clone()));
        Ok(Arc::new(Self { core, tell, task, systems }))
    }

    /// Decides what serves after a start and loads it: the active slot, else the other one if it was ever committed, else the
    /// factory directories (those of other names serve beside a slot too). Judges an interrupted trial first and goes on with it
    /// afterwards. Returns when something serves, or nothing can; call it once.
    pub async fn boot(&self) {
        self.ask(|told| Command::Boot { serve: true, told }).await;
    }

    /// The same without loading anything that served before: for a daemon that kept ending while it did. An interrupted trial is
    /// judged as ever, bundles are taken and tried as ever, each in hosts of its own; the first that commits serves. Until then
    /// neither a slot nor a directory does. Call it once, instead of [`Updater::boot`].
    pub async fn boot_without_serving(&self) {
        self.ask(|told| Command::Boot { serve: false, told }).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // The task ends only with the runtime.
        self.tell.send(command(answer)).ok()?;
        answered.await.ok()
    }

    /// Begins a transfer in order, from byte 0. One at a time, and none during a trial. A transfer of the bundle that was
    /// interrupted last finds what is on the medium.
    ///
    /// # Errors
    /// [`Busy`]; nothing is wrong with the bundle.
    #[allow(clippy::unused_async)] // as its siblings that look at the medium
    pub async fn begin(&self, way: Way) -> Result<Upload, Busy> {
        Ok(Upload::new(Transfer::begin(&self.core, self.tell.clone(), way)?, None))
    }

    /// Goes on with the interrupted transfer of [`Updater::resumable`]: the first byte pushed is the bundle's byte `offset`.
    ///
    /// # Errors
    /// [`Busy`]. That there is nothing to go on with is said by the first [`Upload::push`].
    #[allow(clippy::unused_async)]
    pub async fn begin_at(&self, way: Way, offset: u64) -> Result<Upload, Busy> {
        Ok(Upload::new(Transfer::begin(&self.core, self.tell.clone(), way)?, Some(offset)))
    }

    /// Begins a transfer whose source can be read anywhere (HTTP ranges, a file): only what no slot of this device has is
    /// asked for.
    ///
    /// # Errors
    /// [`Busy`].
    #[allow(clippy::unused_async)]
    pub async fn begin_fetch(&self, way: Way) -> Result<Fetch, Busy> {
        Ok(Fetch::new(Transfer::begin(&self.core, self.tell.clone(), way)?))
    }

    /// The interrupted transfer that [`Updater::begin_at`] goes on with, if there is one. After a start it is found by reading
    /// what is on the medium, once; until somebody who may go on with it asks, [`Updater::resumable_known`] does not know.
    pub async fn resumable(&self) -> Option<Resumable> {
        let core = self.core.clone();
        blocking(move || look_for_resumable(&core)).await
    }

    /// The same, as far as it is known without touching the medium.
    #[must_use]
    pub fn resumable_known(&self) -> Option<Resumable> {
        lock(&self.core.resumable).clone()
    }

    /// What it is doing; progress is published at most some times a second, verdicts at once.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.core.status.subscribe()
    }

    /// The number of the last verdict: what is decided later has a higher one, across restarts, unless the journal is lost.
    #[must_use]
    pub fn last_verdict(&self) -> u64 {
        self.core.last_verdict()
    }

    /// Goes back: during a trial to what served before; else to the other slot's bundle if it was ever committed and is still
    /// believed. Returns when that serves. `reason` is the operator's and is kept in the verdict. The floor stays: this is a
    /// step to what this device has proved before, not a way to bring something older in.
    ///
    /// # Errors
    /// A typed reason when there is nothing to go back to.
    pub async fn rollback(&self, reason: &str) -> Result<(), TrustError> {
        let asked = self.ask(|told| Command::Rollback(reason.to_owned(), told)).await;
        asked.unwrap_or_else(|| Err(ending()))
    }

    /// Takes a trust document: the next root, a newer revocation list, or a permit for this device. The envelope says which.
    /// What serves and is no longer believed then is taken back at once.
    ///
    /// # Errors
    /// [`TrustError`] when it is not signed as it must be, is older than what is known, or is for another device.
    pub async fn trust(&self, envelope: Vec<u8>) -> Result<String, TrustError> {
        self.ask(|told| Command::Trust(envelope, told)).await.unwrap_or_else(|| Err(ending()))
    }

    /// Whether a system is tried as soon as it is staged.
    #[must_use]
    pub fn tries_systems(&self) -> bool {
        self.core.config.try_systems
    }

    /// Has root restart the board to try the staged system. Returns when that was ordered; what comes of it is told after the restart.
    ///
    /// # Errors
    /// Why it is not tried; there is a verdict then.
    pub async fn try_system(&self) -> Result<(), TrustError> {
        systems::try_it(&self.core).await
    }

    /// Whether another updater (RAUC, Mender, SWUpdate) may confirm this boot: something serves, it is what should serve, no model
    /// failed its load or its golden vectors, and no trial is open. `before`: what served under the system before, where this one is on
    /// trial; then no model serves on less.
    #[must_use]
    pub fn commit_ready(&self, before: Option<&Serves>) -> CommitReady {
        let status = self.core.status.borrow().clone();
        let mut reasons = Vec::new();
        match status.serving.from {
            ServingFrom::Starting => reasons.push("the device is starting".to_owned()),
            ServingFrom::Nothing => reasons.push("nothing serves".to_owned()),
            ServingFrom::Factory if status.slots.iter().any(|s| s.active) => {
                reasons.push("the active bundle cannot serve; the image's own models do".to_owned());
            }
            ServingFrom::Slot
                if status.trial.is_none()
                    && !status.slots.iter().any(|s| s.active && Some(s.slot) == status.serving.slot) =>
            {
                reasons.push("another bundle serves than the active one".to_owned());
            }
            ServingFrom::Factory | ServingFrom::Slot => {}
        }
        if let Some(trial) = &status.trial {
            reasons.push(format!("version {} of {} {ON_TRIAL}", trial.version, trial.product));
        }
        // A bundle on trial may have been lent the device; nothing is committed meanwhile, and all of it is asked again afterwards.
        let of_a_system = before.map(|before| match &status.trial {
            Some(_) => Serves { models: BTreeMap::new(), ..before.clone() },
            None => before.clone(),
        });
        reasons.extend(against(&self.core.hosts, of_a_system.as_ref()));
        if before.is_some()
            && let Some((slot, bundle)) = self.core.way_back()
        {
            match lock(&self.core.other).as_ref().filter(|(of, _)| *of == bundle) {
                None => {
                    reasons.push(format!("the bundle in slot {slot} is still to be proven on this system"))
                }
                Some((_, Proof::Failed(why))) => reasons.push(why.clone()),
                Some((_, Proof::Proven | Proof::Unasked)) => {}
            }
        }
        CommitReady { ready: reasons.is_empty(), reasons }
    }

    /// Says whether a system is on trial: then the bundle in the other slot is proven on it too, where there is room for that.
    pub fn system_is_on_trial(&self, on_trial: bool) {
        self.core.system_on_trial.store(on_trial, Relaxed);
    }

    /// Waits until the trial of an accepted bundle has an outcome for its sender: it serves (probation goes on), or it was
    /// refused or reversed. The status at that moment; the verdicts after `accepted_verdict` tell which.
    pub async fn settled(&self, accepted_verdict: u64) -> Arc<Status> {
        let mut watch = self.status();
        let accepted = |v: &&Verdict| v.number == accepted_verdict;
        let bundle = watch.borrow().verdicts.iter().find(accepted).and_then(|v| v.bundle.clone());
        let settles = |v: &Verdict| {
            let decided = matches!(v.outcome, Outcome::Refuse | Outcome::Reverse);
            v.number > accepted_verdict && v.bundle == bundle && (decided || v.gate == Gate::Flip)
        };
        match watch.wait_for(|status| status.verdicts.iter().any(settles)).await {
            Ok(status) => status.clone(),
            Err(_) => self.core.status.borrow().clone(),
        }
    }

    /// Ends: no transfer begins any more, and the mark of a clean stop is left, so that an open trial goes on at the next start.
    /// Serving goes on until the hosts are shut down.
    pub async fn stop(&self) {
        *lock(&self.core.busy) = Occupied::Stopping;
        let core = self.core.clone();
        let left = blocking(move || core.config.evidence.stopped(&core.evidence.boot_id)).await;
        if let Err(e) = left {
            tracing::warn!(error = %e, "no mark of a clean stop: an open trial will count as crashed");
        }
    }
}

fn ending() -> TrustError {
    TrustError { code: "busy-stopping".into(), sentence: "the device is stopping".into() }
}
