//! One model as it was handed in: its package, and what has been observed of it. Restarts of its host keep it, a
//! replacement brings another.

use crate::observe::{Observation, Observed};
use crate::package::Package;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Numbers of editions, unique in this daemon.
static NEXT: AtomicU64 = AtomicU64::new(1);

pub struct Edition {
    pub number: u64,
    pub package: Package,
    pub observed: Observed,
}

impl Edition {
    pub fn new(package: Package) -> Self {
        let observed = Observed::new(&package.manifest);
        Self { number: NEXT.fetch_add(1, Relaxed), package, observed }
    }

    pub fn observe(&self) -> Observation {
        self.observed.read(self.number)
    }
}
