//! What other machines on the LAN are told of this device: how it is announced by Multicast DNS, and the one word for how it is.

use crate::App;
use crate::health::{default_words, problems};
use crate::metrics::live::Writer;
use arc_swap::ArcSwapOption;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use serde::Serialize;
use std::{fmt, sync::Arc};

/// How the device is announced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Announced {
    /// The name people see, as others let it have it.
    pub name: Option<String>,
    /// `HOST.local`
    pub host: Option<String>,
    /// The port that is told.
    pub port: Option<u16>,
    /// What is told of its health.
    pub health: Option<&'static str>,
    /// Interfaces on which it is announced.
    pub interfaces: Vec<String>,
    /// How often another device was called so.
    pub conflicts: u64,
    /// Why it is announced nowhere, or not everywhere.
    pub error: Option<String>,
}

/// Empty where the device is not to be announced.
pub type Shown = Arc<ArcSwapOption<Announced>>;

/// What `/readyz` says, in a word: `ready`, `degraded` when something is wrong and it serves all the same, else `not-ready`.
#[must_use]
pub fn fitness(app: &App) -> &'static str {
    match (default_words(app).1.state, problems(app)) {
        ("ready", None) => "ready",
        ("ready", Some(_)) => "degraded",
        _ => "not-ready",
    }
}

#[derive(Debug)]
pub(crate) struct Numbers(pub Shown);

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(now) = self.0.load_full() else { return Ok(()) };
        let mut out = Writer { encoder: &mut encoder };
        let count = u32::try_from(now.interfaces.len()).unwrap_or(u32::MAX);
        let help = "Interfaces on which the device is announced by Multicast DNS";
        out.gauge("mdns_interfaces", help, [(vec![], f64::from(count))])?;
        let help = "How often another device had a name of this one";
        out.counter("mdns_conflicts", help, [(vec![], now.conflicts)])
    }
}
