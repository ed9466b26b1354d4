//! Crash loops: when the daemon is to start without models.
//!
//! | seen | then |
//! |---|---|
//! | [`ENDS`] ends of the daemon within [`WITHIN`], none of them after it had become healthy | safe mode from the next start on |
//! | [`BOOTS`] boots in a row that ended by watchdog, panic or lack of memory before the daemon had become healthy | safe mode from the first start on |
//! | a reset by watchdog, panic or lack of memory in safe mode | safe mode goes on |
//! | power came, or somebody asked for the reboot | one try without safe mode; a boot that ends badly again before it is healthy, and safe mode is back |
//! | somebody asks to leave it | the daemon starts anew without it |
//! | the daemon has become healthy, not in safe mode | everything before is forgotten |
//!
//! Power cuts and reboots that were asked for are no fault of the daemon: they are not counted, and forgive nothing either. They
//! are tried without safe mode because a power cycle is what mends hardware, and whoever asked for a reboot may have mended the
//! rest; at worst such a try costs [`ENDS`] starts. Health in safe mode says nothing about the models, so it forgives nothing.
//!
//! A daemon that goes on ending, in safe mode or between two healthy minutes, would push out of the history what began it. So the
//! history is told each of the first [`TOLD`] ends, then the 16th, the 32nd, the 64th, each with how many were left out ([`Telling`]):
//! 15 entries for a day of one end a minute. The log is told every one.

use crate::history::ResetReason;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Ends of the daemon that make a crash loop.
pub const ENDS: usize = 3;
/// Within which time they do.
pub const WITHIN: Duration = Duration::from_secs(600);
/// Bad boots in a row that make one.
pub const BOOTS: u32 = 3;

/// What is remembered of a boot, in one small file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// Counted up at every boot.
    pub boot: u64,
    /// Names the boot (`/proc/sys/kernel/random/boot_id`): a keeper that is started again counts nothing.
    pub boot_id: String,
    /// The daemon has become healthy in it, not in safe mode.
    pub healthy: bool,
    /// Boots before it that ended badly before the daemon was healthy, in a row.
    pub bad_boots: u32,
    /// Why the daemon runs in safe mode, when it does.
    pub safe_mode: Option<String>,
}

impl BootRecord {
    /// The boot after `before`, that came by a reset for `reason`.
    #[must_use]
    pub fn after(before: Option<&Self>, boot_id: &str, reason: ResetReason) -> Self {
        let nothing = Self::default();
        let last = before.unwrap_or(&nothing);
        let bad = match reason {
            ResetReason::Watchdog | ResetReason::Panic | ResetReason::Oom => before.is_some(),
            ResetReason::Power | ResetReason::Request | ResetReason::Unknown => false,
        };
        let bad_boots = match (last.healthy, bad) {
            (true, _) => 0,
            (false, true) if last.safe_mode.is_none() => last.bad_boots.saturating_add(1),
            (false, _) => last.bad_boots,
        };
        let safe_mode = match &last.safe_mode {
            Some(reason) if bad => Some(reason.clone()),
            None if bad && bad_boots >= BOOTS => {
                Some(format!("{bad_boots} boots in a row ended before the daemon had become healthy"))
            }
            _ => None,
        };
        Self {
            boot: last.boot.saturating_add(1),
            boot_id: boot_id.to_owned(),
            healthy: false,
            bad_boots,
            safe_mode,
        }
    }

    /// Boots in a row, this one included, in which the daemon has not become healthy.
    #[must_use]
    pub fn unhealthy_boots(&self) -> u32 {
        if self.healthy { 0 } else { self.bad_boots.saturating_add(1) }
    }
}

/// The daemon's ends in this boot.
#[derive(Debug, Default)]
pub struct Ends {
    at: VecDeque<Duration>,
}

impl Ends {
    /// The daemon ended and nobody had asked it to; `Some` with the reason when that makes a crash loop. `now` counts from any
    /// moment and never goes back.
    pub fn ended(&mut self, now: Duration) -> Option<String> {
        self.at.push_back(now);
        while self.at.front().is_some_and(|&at| now.saturating_sub(at) > WITHIN) || self.at.len() > ENDS {
            self.at.pop_front();
        }
        (self.at.len() >= ENDS).then(|| {
            let minutes = WITHIN.as_secs() / 60;
            format!("the daemon ended {ENDS} times within {minutes} minutes without becoming healthy")
        })
    }

    /// The daemon is healthy, or somebody asks for a new try: what was before does not count any more.
    pub fn forgive(&mut self) {
        self.at.clear();
    }
}

/// Ends of the daemon that the history is told one by one.
pub const TOLD: u64 = 8;
/// The time without an end after which it is told them one by one again.
pub const QUIET: Duration = Duration::from_secs(24 * 3600);

/// Which ends of the daemon the history is told.
#[derive(Debug, Default)]
pub struct Telling {
    ends: u64,
    last: Duration,
}

impl Telling {
    /// The daemon ended: `Some` when the history is told, with the number of ends that it was not told since the one before. `now`
    /// counts from any moment and never goes back.
    pub fn ended(&mut self, now: Duration) -> Option<u64> {
        if now.saturating_sub(self.last) >= QUIET {
            self.ends = 0;
        }
        self.last = now;
        self.ends = self.ends.saturating_add(1);
        match self.ends {
            ..=TOLD => Some(0),
            n if n.is_power_of_two() => Some(n / 2 - 1),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ResetReason::{Oom, Panic, Power, Request, Unknown, Watchdog};

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The record after boots that came for these reasons, none of which became healthy.
    fn boots(reasons: &[ResetReason]) -> BootRecord {
        let mut last = None;
        for (number, &reason) in reasons.iter().enumerate() {
            last = Some(BootRecord::after(last.as_ref(), &number.to_string(), reason));
        }
        last.unwrap()
    }

    #[test]
    fn the_third_end_within_ten_minutes_is_a_loop_and_a_slower_one_is_none() {
        let mut ends = Ends::default();
        assert_eq!(ends.ended(s(0)), None);
        assert_eq!(ends.ended(s(300)), None);
        assert!(ends.ended(s(600)).unwrap().contains("3 times within 10 minutes"));
        let mut slow = Ends::default();
        for n in 0..100 {
            assert_eq!(slow.ended(s(n * 301)), None, "end {n}");
        }
    }

    #[test]
    fn a_healthy_run_in_between_forgives_the_ends_before_it() {
        let mut ends = Ends::default();
        ends.ended(s(0));
        ends.ended(s(1));
        ends.forgive();
        assert_eq!(ends.ended(s(2)), None);
        assert_eq!(ends.ended(s(3)), None);
        assert!(ends.ended(s(4)).is_some());
    }

    #[test]
    fn a_day_of_ends_costs_the_history_15_entries_that_account_for_all_of_them() {
        let mut telling = Telling::default();
        let told: Vec<(u64, u64)> = (1..=1440).filter_map(|n| Some((n, telling.ended(s(n * 60))?))).collect();
        assert_eq!(told[7..11], [(8, 0), (16, 7), (32, 15), (64, 31)]);
        assert_eq!(told.len(), 15);
        assert_eq!(told.last(), Some(&(1024, 511)));
        let accounted: u64 = told.iter().map(|(_, left_out)| left_out + 1).sum();
        assert_eq!(accounted, 1024);
        // A day without an end: the next ones are told one by one again.
        let later = 1440 * 60 + 86_400;
        assert!((0..TOLD).all(|n| telling.ended(s(later + n)) == Some(0)));
        assert_eq!(telling.ended(s(later + TOLD)), None);
    }

    #[test]
    fn three_bad_boots_in_a_row_begin_safe_mode_with_the_fourth() {
        assert_eq!(boots(&[Power, Watchdog, Panic]).safe_mode, None);
        let fourth = boots(&[Power, Watchdog, Panic, Oom]);
        assert!(fourth.safe_mode.unwrap().starts_with("3 boots in a row"));
        assert_eq!(fourth.boot, 4);
    }

    #[test]
    fn power_cuts_and_requests_neither_count_nor_forgive() {
        assert_eq!(boots(&[Power; 10]).bad_boots, 0);
        assert_eq!(boots(&[Request; 10]).safe_mode, None);
        let mixed = boots(&[Power, Watchdog, Power, Watchdog, Request, Unknown, Watchdog]);
        assert_eq!(mixed.bad_boots, 3);
        assert!(mixed.safe_mode.is_some());
    }

    #[test]
    fn the_first_boot_of_a_device_is_never_bad() {
        assert_eq!(BootRecord::after(None, "", Watchdog).bad_boots, 0);
    }

    #[test]
    fn a_healthy_boot_forgives_everything() {
        let mut record = boots(&[Power, Watchdog, Watchdog]);
        assert_eq!(record.unhealthy_boots(), 3);
        record.healthy = true;
        assert_eq!(record.unhealthy_boots(), 0);
        let next = BootRecord::after(Some(&record), "x", Watchdog);
        assert_eq!((next.bad_boots, next.safe_mode), (0, None));
    }

    #[test]
    fn safe_mode_outlives_a_bad_reset_and_power_gives_one_try() {
        let safe = boots(&[Power, Watchdog, Watchdog, Watchdog]);
        let again = BootRecord::after(Some(&safe), "x", Panic);
        assert_eq!(
            (&again.safe_mode, again.bad_boots),
            (&safe.safe_mode, 3),
            "a bad end in safe mode is not the models'"
        );
        for reason in [Power, Request] {
            let tried = BootRecord::after(Some(&again), "y", reason);
            assert_eq!(tried.safe_mode, None);
            let back = BootRecord::after(Some(&tried), "z", Watchdog);
            assert!(back.safe_mode.is_some(), "the try failed");
        }
    }
}
