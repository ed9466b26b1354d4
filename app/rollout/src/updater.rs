//! The face of the room.

use crate::config::UpdaterConfig;
use crate::install::{Busy, Fetch, Resumable, Upload, Way};
use crate::status::{CommitReady, Status};
use inferd_hosts::Hosts;
use std::sync::Arc;
use tokio::sync::watch;

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

/// Why a trust document was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct TrustError {
    /// Why, for programs.
    pub code: String,
    /// Why, for people.
    pub sentence: String,
}

/// Everything that brings, shows or stops an update talks to this.
pub struct Updater {
    status: watch::Sender<Arc<Status>>,
}

impl Updater {
    /// Opens the slots, the state, the trust documents and the journal. Serves nothing yet: see [`Updater::boot`].
    ///
    /// # Errors
    /// [`StartError`] when the storage cannot be had or the trust documents contradict each other.
    pub async fn start(config: UpdaterConfig, hosts: Arc<Hosts>) -> Result<Arc<Self>, StartError> {
        drop((config, hosts));
        Ok(Arc::new(Self { status: watch::Sender::new(Arc::default()) }))
    }

    /// Decides what serves after a start and loads it: the active slot, else the other one if it was ever committed, else the
    /// factory directories. Judges an interrupted trial first and goes on with it afterwards. Returns when something serves,
    /// or nothing can; call it once.
    pub async fn boot(&self) {}

    /// Begins a transfer in order, from byte 0. One at a time, and none during a trial. A transfer of the bundle that was
    /// interrupted last finds what is on the medium.
    ///
    /// # Errors
    /// [`Busy`]; nothing is wrong with the bundle.
    pub async fn begin(&self, way: Way) -> Result<Upload, Busy> {
        let _ = way;
        Err(Busy::Starting)
    }

    /// Goes on with the interrupted transfer of [`Updater::resumable`]: the first byte pushed is the bundle's byte `offset`.
    ///
    /// # Errors
    /// [`Busy`]. That there is nothing to go on with is said by the first [`Upload::push`].
    pub async fn begin_at(&self, way: Way, offset: u64) -> Result<Upload, Busy> {
        let _ = (way, offset);
        Err(Busy::Starting)
    }

    /// Begins a transfer whose source can be read anywhere (HTTP ranges, a file): only what no slot of this device has is
    /// asked for.
    ///
    /// # Errors
    /// [`Busy`].
    pub async fn begin_fetch(&self, way: Way) -> Result<Fetch, Busy> {
        let _ = way;
        Err(Busy::Starting)
    }

    /// The interrupted transfer that [`Updater::begin_at`] goes on with, if there is one.
    pub async fn resumable(&self) -> Option<Resumable> {
        None
    }

    /// What it is doing; changes are published at most some times a second, verdicts at once.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Goes back: during a trial to what served before; else to the other slot's bundle if it was ever committed and is not
    /// revoked. Returns when that serves. `reason` is the operator's and is kept in the verdict.
    ///
    /// # Errors
    /// A typed reason when there is nothing to go back to.
    pub async fn rollback(&self, reason: &str) -> Result<(), TrustError> {
        let _ = reason;
        Err(unfinished())
    }

    /// Takes a trust document: the next root, a newer revocation list, or a permit for this device. The envelope says which.
    ///
    /// # Errors
    /// [`TrustError`] when it is not signed as it must be, is older than what is known, or is for another device.
    pub async fn trust(&self, envelope: Vec<u8>) -> Result<String, TrustError> {
        drop(envelope);
        Err(unfinished())
    }

    /// Whether another updater (RAUC, Mender, SWUpdate) may confirm this boot: something serves, it is what should serve, and no
    /// trial is open.
    #[must_use]
    pub fn commit_ready(&self) -> CommitReady {
        CommitReady { ready: false, reasons: vec!["the device is starting".into()] }
    }

    /// Waits until the trial of an accepted bundle has an outcome for its sender: it serves (probation goes on), or it was
    /// refused or reversed. The status at that moment; the verdicts tell which.
    pub async fn settled(&self, accepted_verdict: u64) -> Arc<Status> {
        let _ = accepted_verdict;
        self.status.borrow().clone()
    }

    /// Ends: interrupts a transfer, leaves the mark of a clean stop. Serving goes on until the hosts are shut down.
    pub async fn stop(&self) {}
}

fn unfinished() -> TrustError {
    TrustError { code: "unfinished".into(), sentence: "not built yet".into() }
}
