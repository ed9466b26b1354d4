//! One model as it was handed in: its package, and what has been observed of it. Restarts of its host keep it, a
//! replacement brings another.

use crate::breaker::Breaker;
use crate::events::Events;
use crate::house::House;
use crate::observe::{Observation, Observed};
use crate::package::Package;
use crate::suspects::Suspects;
use inferd_model::Rung;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers of editions, unique in this daemon.
static NEXT: AtomicU64 = AtomicU64::new(1);

pub struct Edition {
    pub number: u64,
    pub package: Arc<Package>,
    pub observed: Observed,
    /// One per rung, in the manifest's order.
    pub breakers: Vec<Arc<Breaker>>,
    /// The rung that goes before the manifest's order.
    preferred: Mutex<Option<Rung>>,
    pub suspects: Suspects,
}

impl Edition {
    pub fn new(package: Package, house: &House) -> Self {
        Self::telling(package.into(), house, &house.events)
    }

    /// The same package once more, only to be measured: what its breakers do is told to nobody.
    pub fn to_be_measured(package: Arc<Package>, house: &House) -> Self {
        Self::telling(package, house, &Events::new())
    }

    fn telling(package: Arc<Package>, house: &House, events: &Events) -> Self {
        let observed = Observed::new(&package.manifest);
        let (name, rules) = (&package.manifest.name, &house.config.breaker);
        let breaker = |&rung| Arc::new(Breaker::new(name.to_string(), rung, rules.clone(), events.clone()));
        let breakers = package.manifest.engines.iter().map(breaker).collect();
        let suspects = Suspects::default();
        let preferred = Mutex::new(None);
        Self { number: NEXT.fetch_add(1, Relaxed), package, observed, breakers, preferred, suspects }
    }

    /// The rung that goes before the manifest's order, if there is one.
    pub fn preferred(&self) -> Option<Rung> {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has this rung go before the manifest's order, or none; whether that is news.
    pub fn prefer(&self, rung: Option<Rung>) -> bool {
        let mut preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *preferred, rung) != rung
    }

    /// The breaker of a rung its manifest names.
    pub fn breaker(&self, rung: Rung) -> &Arc<Breaker> {
        let found = self.breakers.iter().find(|b| b.rung == rung);
        found.expect("hosts are started on rungs that the manifest names")
    }

    pub fn observe(&self) -> Observation {
        self.observed.read(self.number)
    }
}
