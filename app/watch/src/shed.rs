//! Shedding: optional work ends before inference suffers.
//!
//! Inference itself is never shed. What may be (the shadow of live requests, the background verification of slots, telemetry,
//! streams) asks [`Shed::level`] before each piece of work, or follows [`Shed::subscribe`].

use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use tokio::sync::watch;

/// How much is shed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// All that is not inference, updates or the answers about them.
    Optional,
}

/// The level, shared by everyone who may have to shed.
#[derive(Clone, Debug)]
pub struct Shed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    level: AtomicU8,
    told: watch::Sender<Level>,
}

impl Default for Shed {
    fn default() -> Self {
        Self(Arc::new(Inner { level: AtomicU8::new(0), told: watch::Sender::new(Level::None) }))
    }
}

impl Shed {
    /// The level now. Costs one load.
    #[must_use]
    pub fn level(&self) -> Level {
        if self.0.level.load(Relaxed) == 0 { Level::None } else { Level::Optional }
    }

    /// Sets it; whether it is another one than before.
    pub fn set(&self, level: Level) -> bool {
        let before = self.0.level.swap(level as u8, Relaxed);
        self.0.told.send_if_modified(|told| std::mem::replace(told, level) != level);
        before != level as u8
    }

    /// The level now and whenever it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Level> {
        self.0.told.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_sees_a_change_and_only_changes_are_told() {
        let shed = Shed::default();
        let mut told = shed.clone().subscribe();
        assert_eq!((shed.level(), *told.borrow_and_update()), (Level::None, Level::None));
        assert!(!shed.set(Level::None) && !told.has_changed().unwrap());
        assert!(shed.set(Level::Optional));
        assert_eq!((shed.level(), *told.borrow_and_update()), (Level::Optional, Level::Optional));
        assert!(!shed.set(Level::Optional) && !told.has_changed().unwrap());
    }
}
