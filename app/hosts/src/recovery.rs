//! Getting an accelerator back that is lost: the ladder of its recovery.
//!
//! It lives here and not in the room `watch`, because only hosts know whether a step helped: a device is well when a host has come
//! up on it and passed its golden vectors. What only root may do is done by somebody else ([`Ladder`]).
//!
//! A step is taken when a host could not be started because of its device ([`EngineError::Device`](inferd_engine::EngineError), or
//! it ended or hung while it loaded): never because of a model that is refused. Killing the host, and with it closing the device,
//! comes before every step by itself: no host runs then.
//!
//! | tried | a host comes up | none does |
//! |---|---|---|
//! | nothing | well | another host: `restart` |
//! | `restart` | well | the driver gives the device up and takes it again: `rebind` |
//! | `rebind` | well | the device is taken off its bus and looked for again: `rescan` |
//! | `rescan` | well | the board restarts: `reboot`, at most 2 times in 24 h; else `give-up` |
//! | `reboot` | (another daemon begins at the top) | it was refused: `give-up` |
//! | `give-up` | well | the model stays on its fallback; a host is tried whenever the breaker lets one through |
//!
//! Models that share a device share its ladder: one step at a time, and after each all of them try a host first. Where a service shares the
//! device, each step waits until all have left it.
//!
//! A step that cannot be done is followed by the next one at once. Each is taken once until the device is well again, and is told to
//! the log, to who listens to the hosts' events (the history), and to `/metrics`.

use inferd_model::EngineKind;
use std::fmt::Debug;

/// Most reboots in 24 h.
pub const MAX_REBOOTS: u32 = 2;

/// A device on its bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `0001:01:00.0`.
    pub address: String,
    /// The driver's name in `/sys/bus/pci/drivers`.
    pub driver: String,
}

/// The steps that only root may take, and the memory that outlives a reboot. All of it may block.
pub trait Ladder: Debug + Send + Sync {
    /// The device of an engine, if it has one that can be recovered.
    fn device(&self, engine: EngineKind) -> Option<Device>;

    /// Takes the device away from its driver and gives it back.
    ///
    /// # Errors
    /// One sentence for the operator.
    fn rebind(&self, device: &Device) -> Result<(), String>;

    /// Takes the device off its bus and looks for it again.
    ///
    /// # Errors
    /// One sentence for the operator.
    fn rescan(&self, device: &Device) -> Result<(), String>;

    /// How many reboots [`Ladder::reboot`] has begun in the last 24 h, reboots between included. Where nothing lasts that could
    /// count them, [`Ladder::reboot`] refuses.
    fn reboots(&self) -> u32;

    /// Notes a reboot so that it outlives it, then begins it.
    ///
    /// # Errors
    /// One sentence for the operator: then the board does not restart.
    fn reboot(&self, why: &str) -> Result<(), String>;
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Restart,
    Rebind,
    Rescan,
    Reboot,
    GiveUp,
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Rebind => "rebind",
            Self::Rescan => "rescan",
            Self::Reboot => "reboot",
            Self::GiveUp => "give-up",
        }
    }
}

/// The machine alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    tried: Option<Step>,
}

impl Recovery {
    /// No host came up: what to do now. `reboots`: those of the last 24 h.
    pub fn failed(&mut self, reboots: u32) -> Step {
        let next = match self.tried {
            None => Step::Restart,
            Some(Step::Restart) => Step::Rebind,
            Some(Step::Rebind) => Step::Rescan,
            Some(Step::Rescan) if reboots < MAX_REBOOTS => Step::Reboot,
            Some(Step::Rescan | Step::Reboot | Step::GiveUp) => Step::GiveUp,
        };
        self.tried = Some(next);
        next
    }

    /// A host came up and passed its golden vectors; whether that ends a recovery.
    pub fn came_up(&mut self) -> bool {
        self.tried.take().is_some()
    }

    /// Whether steps are left to be taken at once.
    pub fn is_pending(&self) -> bool {
        self.tried.is_some_and(|step| step < Step::Reboot)
    }

    /// Whether nothing is left but to wait.
    pub fn has_given_up(&self) -> bool {
        self.tried >= Some(Step::Reboot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Step::{GiveUp, Rebind, Reboot, Rescan, Restart};

    #[test]
    fn every_step_is_taken_once_and_in_order() {
        let mut r = Recovery::default();
        assert!(!r.came_up(), "a start without trouble ends nothing");
        let steps: Vec<Step> = (0..7).map(|_| r.failed(0)).collect();
        assert_eq!(steps, [Restart, Rebind, Rescan, Reboot, GiveUp, GiveUp, GiveUp]);
        assert!(r.has_given_up() && r.came_up());
        assert_eq!(r.failed(0), Restart, "well again: from the top");
    }

    #[test]
    fn whichever_step_helps_ends_the_recovery() {
        for helps in [Restart, Rebind, Rescan, Reboot, GiveUp] {
            let mut r = Recovery::default();
            while r.failed(0) != helps {}
            assert_eq!(r.is_pending(), helps < Reboot);
            assert!(r.came_up());
            assert_eq!(r, Recovery::default());
        }
    }

    #[test]
    fn the_board_is_not_restarted_a_third_time_in_a_day() {
        for reboots in 0..5 {
            let mut r = Recovery::default();
            let steps: Vec<Step> = (0..10).map(|_| r.failed(reboots)).collect();
            assert_eq!(steps.contains(&Reboot), reboots < MAX_REBOOTS, "{reboots}");
            assert_eq!(steps.last(), Some(&GiveUp));
        }
    }
}
