//! What the keeper feeds: the hardware, or systemd where that started it.

use super::Settings;
use crate::notify::Notifier;
use crate::state::WatchdogState;
use crate::watchdog::{self, Before, Device, Watchdog as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a watchdog that cannot be opened is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Who started this keeper and wants to hear of it, where that is systemd.
pub(super) fn systemd() -> Option<Notifier> {
    match Notifier::of_process() {
        Ok(notifier) => Some(notifier).filter(Notifier::heard),
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}

/// Feeds the hardware, or systemd where that is what started the keeper.
pub(super) struct Feeder {
    device: Option<Device>,
    wanted: Option<(PathBuf, u32)>,
    pub(super) state: Option<WatchdogState>,
    /// What the hardware remembers of the last reset, whoever has it.
    pub(super) boot_status: Option<u32>,
    /// Why there is no watchdog, as long as there is none.
    pub(super) trouble: Option<String>,
    /// Why it could not be fed the last time.
    pub(super) unfed: Option<String>,
    pub(super) systemd: Option<Notifier>,
    every: Duration,
    last: Option<Instant>,
    tried: Instant,
}

impl Feeder {
    pub(super) fn new(settings: &Settings, systemd: Option<Notifier>) -> Self {
        let every = systemd.as_ref().and_then(Notifier::timeout).map(|timeout| timeout / 3);
        let mut feeder = Self {
            device: None,
            // One device has one owner: where systemd is, it has it.
            wanted: settings.device.clone().filter(|_| systemd.is_none()).map(|d| (d, settings.timeout_s)),
            state: None,
            boot_status: settings
                .device
                .as_ref()
                .filter(|_| systemd.is_some())
                .and_then(|device| watchdog::boot_status(Path::new(watchdog::CLASS), device)),
            trouble: None,
            unfed: None,
            systemd,
            every: every.unwrap_or(watchdog::FEED_AT_MOST).min(watchdog::FEED_AT_MOST),
            last: None,
            tried: Instant::now(),
        };
        feeder.open();
        feeder
    }

    /// Whether something resets the board, or ends the keeper, when it is fed no more.
    pub(super) fn there(&self) -> bool {
        self.device.is_some() || self.systemd.as_ref().is_some_and(|systemd| systemd.timeout().is_some())
    }

    /// Tries to have the watchdog; `true` when that changed something.
    fn open(&mut self) -> bool {
        let Some((path, seconds)) = self.wanted.clone() else { return false };
        self.tried = Instant::now();
        let before = Before::look(&path);
        match Device::open(&path) {
            Ok(mut device) => {
                let state = watchdog::settle(&mut device, &path.to_string_lossy(), seconds, before);
                self.every = watchdog::feed_every(state.accepted_s);
                self.last = Some(Instant::now());
                self.device = Some(device);
                self.boot_status = Some(state.boot_status);
                self.state = Some(state);
                self.trouble = None;
                true
            }
            Err(error) => {
                let trouble = format!(
                    "there is no watchdog: {} cannot be opened: {error}; a daemon that hangs is killed instead, and nothing \
                     helps when the kernel does",
                    path.display()
                );
                let changed = self.trouble.as_ref() != Some(&trouble);
                self.trouble = Some(trouble);
                changed
            }
        }
    }

    pub(super) fn open_if_due(&mut self) -> bool {
        self.wanted.is_some() && self.device.is_none() && self.tried.elapsed() >= RETRY && self.open()
    }

    pub(super) fn feed_if_due(&mut self, feeds: bool) {
        if !feeds || self.last.is_some_and(|last| last.elapsed() < self.every) {
            return;
        }
        self.feed();
    }

    pub(super) fn feed(&mut self) {
        self.last = Some(Instant::now());
        if let Some(device) = &mut self.device {
            let unfed = device.feed().err().map(|error| format!("the watchdog cannot be fed: {error}"));
            if let Some(why) = unfed.as_ref().filter(|_| self.unfed.is_none()) {
                tracing::error!("{why}");
            }
            self.unfed = unfed;
        }
        if let Some(systemd) = &self.systemd {
            systemd.watchdog();
        }
    }

    /// Until the next feeding, or the next try to have a watchdog.
    pub(super) fn next(&self) -> Duration {
        let feeding = self.last.map_or(Duration::ZERO, |last| self.every.saturating_sub(last.elapsed()));
        if self.wanted.is_some() && self.device.is_none() {
            return feeding.min(RETRY.saturating_sub(self.tried.elapsed()));
        }
        feeding
    }
}
