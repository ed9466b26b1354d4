//! Time since the boot; the only time anything here is decided by.

use std::time::{Duration, Instant};

/// Tells the time since the boot.
pub trait Clock: Send + Sync {
    /// Time since the boot, monotonic.
    fn uptime(&self) -> Duration;
}

/// The kernel's.
#[derive(Debug)]
pub struct SystemClock {
    began: Instant,
    offset: Duration,
}

impl Default for SystemClock {
    fn default() -> Self {
        let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = text.split(' ').next().and_then(|s| s.parse::<f64>().ok()).unwrap_or(0.0);
        let offset = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Self { began: Instant::now(), offset }
    }
}

impl Clock for SystemClock {
    fn uptime(&self) -> Duration {
        self.offset + self.began.elapsed()
    }
}
