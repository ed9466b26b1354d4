//! What is counted of each model at this door: reading requests and writing replies. The hosts count the rest.

use super::describe::{Door, Stat};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The counters of all models. A model's counters outlive its reloads, as the hosts' numbers do; names are those of models
/// that were served, so there are few.
#[derive(Debug, Default)]
pub struct Doors(Mutex<BTreeMap<String, Arc<Counters>>>);

/// The counters of one model.
#[derive(Debug, Default)]
pub struct Counters {
    last_ms: AtomicU64,
    input: Sum,
    output: Sum,
    fail_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Sum {
    count: AtomicU64,
    ns: AtomicU64,
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Sum {
    fn add(&self, d: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.ns.fetch_add(ns(d), Relaxed);
    }
    fn read(&self) -> Stat {
        Stat { count: self.count.load(Relaxed), ns: self.ns.load(Relaxed) }
    }
}

impl Doors {
    /// The counters of the model of this name.
    pub fn of(&self, model: &str) -> Arc<Counters> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(c) = all.get(model) {
            return c.clone();
        }
        all.entry(model.to_owned()).or_default().clone()
    }
}

impl Counters {
    /// A request was answered after so long in reading it and in writing the reply.
    pub fn answered(&self, read: Duration, written: Duration) {
        self.input.add(read);
        self.output.add(written);
        // The wall clock is only shown, never computed with; before 1970 it shows 0.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// A request of a good form failed after so long.
    pub fn failed(&self, after: Duration) {
        self.fail_ns.fetch_add(ns(after), Relaxed);
    }

    /// The numbers now.
    pub fn read(&self) -> Door {
        Door {
            last_ms: self.last_ms.load(Relaxed),
            input: self.input.read(),
            output: self.output.read(),
            fail_ns: self.fail_ns.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_counts_are_its_own_and_stay() {
        let doors = Doors::default();
        doors.of("a").answered(Duration::from_nanos(3), Duration::from_nanos(4));
        doors.of("a").failed(Duration::from_nanos(9));
        let a = doors.of("a").read();
        assert_eq!((a.input, a.output), (Stat { count: 1, ns: 3 }, Stat { count: 1, ns: 4 }));
        assert!(a.fail_ns == 9 && a.last_ms > 0);
        assert_eq!(doors.of("b").read(), Door::default());
    }
}
