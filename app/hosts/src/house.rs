//! What all models of one [`Hosts`](crate::Hosts) share.

use crate::events::Events;
use crate::set::HostsConfig;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Shared by all models.
pub struct House {
    /// The settings in force.
    pub config: HostsConfig,
    /// Who is told what happens.
    pub events: Events,
    serial: AtomicU64,
}

impl House {
    pub fn new(config: HostsConfig) -> Self {
        Self { config, events: Events::new(), serial: AtomicU64::default() }
    }

    /// A number no other host of this daemon has.
    pub fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed)
    }
}
