//! Keepers that end again and again.
//!
//! Init starts another one at once, and each feeds the watchdog when it opens it: a keeper that never gets further would be started
//! for ever on a board that nothing resets. So each counts itself before it touches the hardware; after [`STARTS`] within [`WITHIN`]
//! without a healthy daemon in between the next one leaves the watchdog alone. systemd counts by itself (`StartLimitBurst`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Starts that are nothing to act on.
pub const STARTS: usize = 4;
/// Within which time.
pub const WITHIN: Duration = Duration::from_secs(600);

fn file(run: &Path) -> PathBuf {
    run.join("starts")
}

/// Counts a start at this time since the kernel's; whether it is one too many.
///
/// # Errors
/// When it cannot be counted.
pub fn too_many(run: &Path, now: Duration) -> io::Result<bool> {
    let before = match fs::read_to_string(file(run)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let recent = |at: &u64| now.saturating_sub(Duration::from_secs(*at)) <= WITHIN;
    let mut at: Vec<u64> = before.lines().filter_map(|line| line.parse().ok()).filter(recent).collect();
    at.push(now.as_secs());
    // Of more than that nothing else follows.
    at.drain(..at.len().saturating_sub(STARTS + 1));
    let lines: String = at.iter().map(|at| format!("{at}\n")).collect();
    fs::write(file(run), lines)?;
    Ok(at.len() > STARTS)
}

/// The daemon is healthy: the starts so far do not count any more.
pub fn forgive(run: &Path) {
    match fs::remove_file(file(run)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the keeper's starts are still counted");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_fifth_start_within_ten_minutes_is_one_too_many_and_a_slower_one_is_not() {
        let run = tempfile::tempdir().unwrap();
        let all: Vec<bool> = (0..7).map(|n| too_many(run.path(), s(100 + n)).unwrap()).collect();
        assert_eq!(all, [false, false, false, false, true, true, true]);
        assert!(!too_many(run.path(), s(1000)).unwrap(), "the others are too long ago");
        let slow = tempfile::tempdir().unwrap();
        for n in 0..20 {
            assert!(!too_many(slow.path(), s(n * 151)).unwrap(), "start {n}");
        }
    }

    #[test]
    fn health_forgives_and_rubbish_counts_nothing() {
        let run = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            (0..4).for_each(|n| assert!(!too_many(run.path(), s(n)).unwrap()));
            forgive(run.path());
        }
        forgive(run.path());
        fs::write(file(run.path()), "x\n-1\n\n1 2\n").unwrap();
        assert!(!too_many(run.path(), s(1)).unwrap());
        assert!(too_many(&run.path().join("nowhere"), s(1)).is_err());
    }
}
