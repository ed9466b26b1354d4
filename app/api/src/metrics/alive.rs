//! Numbers of the daemon's own life, read when `/metrics` is asked. What only a keeper knows is absent without one.

use super::live::{Writer, float, yes};
use crate::Alive;
use inferd_watch::progress::ProofView;
use inferd_watch::state::KeeperState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::Arc;

/// The daemon's own life.
pub(super) struct Life(pub(super) Arc<Alive>);

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life").finish_non_exhaustive()
    }
}

impl Collector for Life {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer { encoder: &mut encoder };
        out.gauge(
            "inferd_safe_mode",
            "Whether the daemon runs without models because it kept ending",
            [(vec![], yes(self.0.in_safe_mode().is_some()))],
        )?;
        out.gauge(
            "inferd_history_entries",
            "Entries of the history, by the program that keeps them",
            self.0.entries().map(|(store, n)| (vec![("store", store)], float(n))),
        )?;
        self.progress(&mut out)?;
        match self.0.keeper_state() {
            Some(keeper) => of_keeper(&mut out, &keeper),
            None => Ok(()),
        }
    }
}

impl Life {
    fn progress(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        let Some(view) = self.0.progress.view() else { return Ok(()) };
        let proofs: [(&'static str, &ProofView); 3] =
            [("http", &view.http), ("inference", &view.inference), ("storage", &view.storage)];
        out.gauge(
            "inferd_progress_proved",
            "Whether progress is proved, so that the watchdog is fed",
            [(vec![], yes(view.proved))],
        )?;
        out.gauge(
            "inferd_progress_ok",
            "Whether a proof of progress is good",
            proofs.map(|(proof, p)| (vec![("proof", proof)], yes(p.ok))),
        )?;
        out.gauge(
            "inferd_progress_age_seconds",
            "How long ago a proof was good last; no sample where there is nothing to prove",
            proofs.iter().filter_map(|(proof, p)| Some((vec![("proof", *proof)], p.age_s?))),
        )?;
        out.counter(
            "inferd_progress_storage_writes",
            "Writes to the data directory that were made to see that they come back",
            [(vec![], view.storage_writes)],
        )
    }
}

fn of_keeper(out: &mut Writer<'_, '_>, keeper: &KeeperState) -> fmt::Result {
    out.counter("inferd_boots", "Starts of this board that were counted", [(vec![], keeper.boot)])?;
    let reason = serde_json::to_value(keeper.reset.reason).unwrap_or_default();
    out.gauge(
        "inferd_reset_reason",
        "Why the board was started; always 1",
        [(vec![("reason", reason.as_str().unwrap_or("unknown"))], 1.0)],
    )?;
    out.gauge(
        "inferd_unhealthy_boots",
        "Boots in a row, this one included, in which the daemon has not become healthy",
        [(vec![], f64::from(keeper.unhealthy_boots))],
    )?;
    out.gauge(
        "inferd_daemon_starts",
        "How often the daemon was started in this boot",
        [(vec![], float(keeper.starts))],
    )?;
    let watchdog = keeper.watchdog.as_ref();
    out.gauge(
        "inferd_watchdog_armed",
        "Whether a hardware watchdog resets this board when nobody feeds it",
        [(vec![], yes(watchdog.is_some_and(|w| w.accepted_s > 0)))],
    )?;
    out.gauge(
        "inferd_watchdog_timeout_seconds",
        "How long the hardware watchdog waits, as it was read back",
        watchdog.map(|w| (vec![], f64::from(w.accepted_s))),
    )
}
