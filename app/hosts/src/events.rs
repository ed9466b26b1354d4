//! What happens to the hosts, as it happens: for the history, the alerts and the log of the daemon.
//!
//! A bounded channel: nobody waits for a slow reader. One that lags loses the oldest events and is told how many
//! ([`RecvError::Lagged`](tokio::sync::broadcast::error::RecvError::Lagged)).

use crate::limits::EVENTS;
use crate::stats::End;
use inferd_model::Rung;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::broadcast;

/// Something happened to a host.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum HostEvent {
    /// A host has passed its golden vectors and serves (or is a candidate that waits).
    HostStarted {
        /// The model's name.
        model: String,
        /// Its engine and what it runs.
        engine: Rung,
        /// Its process.
        pid: u32,
    },
    /// A host did not get as far as serving, and it was not by ending: it refused, or took too long.
    HostNotStarted {
        /// The model's name.
        model: String,
        /// Its engine and what it runs.
        engine: Rung,
        /// One sentence for the operator.
        reason: String,
        /// The last lines of its standard error, oldest first.
        words: Vec<String>,
    },
    /// A host ended and was not asked to.
    HostEnded {
        /// The model's name.
        model: String,
        /// Its engine and what it runs.
        engine: Rung,
        /// Its process.
        pid: u32,
        /// What ended it.
        cause: End,
        /// One sentence for the operator.
        reason: String,
        /// The last lines of its standard error and the last panic's words, oldest first.
        words: Vec<String>,
    },
    /// A breaker opened: requests are refused at once, or go to another engine.
    BreakerOpened {
        /// The model's name.
        model: String,
        /// The rung it guards.
        engine: Rung,
        /// One sentence for the operator.
        reason: String,
        /// Until probes are let through.
        retry_after: Duration,
    },
    /// A breaker lets probes through.
    BreakerHalfOpen {
        /// The model's name.
        model: String,
        /// The rung it guards.
        engine: Rung,
    },
    /// A breaker closed again.
    BreakerClosed {
        /// The model's name.
        model: String,
        /// The rung it guards.
        engine: Rung,
    },
    /// An input is refused from now on: it was running whenever its host ended.
    Quarantined {
        /// The model's name.
        model: String,
        /// A digest of the input under this daemon's own key: it names the input, and tells nothing about it.
        digest: String,
        /// Hosts that ended with it.
        ends: u32,
        /// How long it is refused.
        pause: Duration,
    },
    /// Another rung of the model's ladder serves from now on.
    FellBack {
        /// The model's name.
        model: String,
        /// The rung that does not serve.
        from: Rung,
        /// The rung that does.
        to: Rung,
        /// One sentence for the operator.
        reason: String,
    },
    /// The preferred rung serves again.
    WentBack {
        /// The model's name.
        model: String,
        /// The rung that served meanwhile.
        from: Rung,
        /// The preferred one.
        to: Rung,
    },
    /// A step of a device's recovery was taken.
    Recovery {
        /// The device: `0001:01:00.0`.
        device: String,
        /// `restart`, `rebind`, `rescan`, `reboot`, `give-up`, and `recovered` when a host came up after one of them.
        step: &'static str,
        /// One sentence for the operator.
        outcome: String,
    },
}

/// The sending end.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<HostEvent>);

impl Events {
    pub fn new() -> Self {
        Self(broadcast::Sender::new(EVENTS))
    }

    /// Tells whoever listens; never waits.
    pub fn tell(&self, event: HostEvent) {
        // An error only says that nobody listens.
        let _ = self.0.send(event);
    }

    pub fn subscribe(&self) -> broadcast::Receiver<HostEvent> {
        self.0.subscribe()
    }
}
