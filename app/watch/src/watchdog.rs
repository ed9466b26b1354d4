//! The hardware watchdog: asked for a timeout, and judged by what it says of itself afterwards.
//!
//! Drivers refuse a timeout (EINVAL), round it, or accept it and run with another one (the Raspberry Pi's wraps at 16 s). So
//! [`settle`] asks, reads back, feeds, reads the time left, and asks for less until what it reads is plausible; what was wrong
//! becomes a remark. A watchdog is never disarmed: nothing here writes the magic `V`.

#![allow(unsafe_code)] // the ioctls of linux/watchdog.h

use crate::state::WatchdogState;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The usual device.
pub const DEVICE: &str = "/dev/watchdog0";
/// What the kernel tells of all of them.
pub const CLASS: &str = "/sys/class/watchdog";
/// Seconds that are asked for when nothing else is configured: what the hardware of a Raspberry Pi holds.
pub const TIMEOUT_S: u32 = 15;
/// The longest time between two feedings.
pub const FEED_AT_MOST: Duration = Duration::from_secs(5);
/// `WDIOF_CARDRESET` of `linux/watchdog.h`: the last reset was the watchdog's.
pub const CARDRESET: u32 = 0x20;

/// Smaller timeouts that are tried when one is refused, in seconds.
const SMALLER_S: [u32; 5] = [15, 10, 8, 5, 2];
/// What the time left right after feeding may differ from the timeout: a driver counts whole seconds.
const SLACK_S: u32 = 2;

/// A watchdog.
pub trait Watchdog {
    /// What the driver calls itself.
    ///
    /// # Errors
    /// What the driver says.
    fn identity(&mut self) -> io::Result<String>;
    /// Starts the time anew.
    ///
    /// # Errors
    /// What the driver says.
    fn feed(&mut self) -> io::Result<()>;
    /// Asks for a timeout in seconds.
    ///
    /// # Errors
    /// What the driver says: EINVAL for a timeout that it does not hold.
    fn set_timeout(&mut self, seconds: u32) -> io::Result<()>;
    /// The timeout that is in force, in seconds.
    ///
    /// # Errors
    /// What the driver says.
    fn timeout(&mut self) -> io::Result<u32>;
    /// Seconds until the reset.
    ///
    /// # Errors
    /// What the driver says: most do not tell.
    fn time_left(&mut self) -> io::Result<u32>;
    /// `WDIOC_GETBOOTSTATUS`.
    ///
    /// # Errors
    /// What the driver says.
    fn boot_status(&mut self) -> io::Result<u32>;
    /// Asks for no interrupt ahead of the reset: the reset is what is wanted.
    ///
    /// # Errors
    /// What the driver says: most have none.
    fn no_pretimeout(&mut self) -> io::Result<()>;
}

/// What the system says of a watchdog before it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Whether somebody has armed it already; `None` where the kernel does not tell.
    pub armed: Option<bool>,
    /// Whether it goes on when whoever opened it ends; `None` where the kernel does not tell.
    pub nowayout: Option<bool>,
}

impl Before {
    /// Looks in [`CLASS`].
    #[must_use]
    pub fn look(device: &Path) -> Self {
        let folder = Path::new(CLASS).join(device.file_name().unwrap_or_default());
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
        Self {
            armed: read("state").map(|state| state == "active"),
            nowayout: read("nowayout").map(|nowayout| nowayout == "1"),
        }
    }
}

/// What a watchdog remembers of the last reset, as `class` (`/sys/class/watchdog`) shows it: nobody needs to own the device for that. `None`
/// where the kernel does not tell.
#[must_use]
pub fn boot_status(class: &Path, device: &Path) -> Option<u32> {
    let text = fs::read_to_string(class.join(device.file_name()?).join("bootstatus")).ok()?;
    text.trim().parse().ok()
}

/// The watchdog that somebody has armed, as `class` (`/sys/class/watchdog`) shows it, where the `wanted` one is not there: nobody
/// else would feed it, and it resets the board.
#[must_use]
pub fn armed_instead(class: &Path, wanted: Option<&Path>) -> Option<PathBuf> {
    if wanted.is_some_and(Path::exists) {
        return None;
    }
    let active = |name: &OsString| {
        fs::read_to_string(class.join(name).join("state")).is_ok_and(|state| state.trim() == "active")
    };
    let mut names: Vec<OsString> =
        fs::read_dir(class).ok()?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names.into_iter().find(active).map(|name| Path::new("/dev").join(name))
}

/// Asks for `wanted` seconds, and for less while what the driver then says is not plausible. Feeds it.
pub fn settle(dog: &mut dyn Watchdog, device: &str, wanted: u32, before: Before) -> WatchdogState {
    let mut remarks = Vec::new();
    if before.armed == Some(false) {
        remarks.push("nobody had armed it before: a start that hangs before this is not noticed".to_owned());
    }
    if before.nowayout == Some(false) {
        remarks.push(
            "its driver is not set to nowayout: it stops when the keeper closes it properly".to_owned(),
        );
    }
    let boot_status = dog.boot_status().unwrap_or(0);
    // Most have none and say so.
    let _ = dog.no_pretimeout();
    let asked_s = wanted.max(1);
    let smaller = SMALLER_S.into_iter().filter(|&s| s < asked_s);
    let mut found = None;
    for seconds in std::iter::once(asked_s).chain(smaller) {
        if let Err(error) = dog.set_timeout(seconds) {
            remarks.push(format!("a timeout of {seconds} s was refused: {error}"));
            continue;
        }
        let (accepted, left) = read_back(dog, seconds);
        let plausible = left.is_none_or(|left| {
            left <= accepted && left.saturating_add(SLACK_S.min(accepted / 2)) >= accepted
        });
        if !plausible {
            let left = left.unwrap_or_default();
            remarks.push(format!(
                "with a timeout of {accepted} s only {left} s were left right after feeding: the hardware does not hold {seconds} s"
            ));
            found = Some((accepted.min(left).max(1), Some(left)));
            continue;
        }
        if accepted != seconds {
            remarks.push(format!("it made {accepted} s of the {seconds} s that were asked for"));
        }
        found = Some((accepted, left));
        break;
    }
    let (accepted_s, left_s) = found.unwrap_or_else(|| {
        let (in_force, left) = read_back(dog, SMALLER_S[SMALLER_S.len() - 1]);
        remarks.push(format!("it took no timeout at all and runs with {in_force} s"));
        (in_force, left)
    });
    WatchdogState {
        device: device.to_owned(),
        identity: dog.identity().unwrap_or_else(|_| "it does not say".to_owned()),
        asked_s,
        accepted_s,
        left_s,
        boot_status,
        armed_before: before.armed.unwrap_or(false),
        remarks,
    }
}

/// The timeout in force, or `assumed` where the driver does not tell, and what is left of it after feeding.
fn read_back(dog: &mut dyn Watchdog, assumed: u32) -> (u32, Option<u32>) {
    let accepted = dog.timeout().unwrap_or(assumed).max(1);
    // One that cannot be fed shows it again at the next feeding, where it is told.
    let _ = dog.feed();
    (accepted, dog.time_left().ok())
}

/// How often a watchdog with this timeout is fed: three times in it, and every [`FEED_AT_MOST`] at least.
#[must_use]
pub fn feed_every(accepted_s: u32) -> Duration {
    (Duration::from_secs(u64::from(accepted_s.max(1))) / 3).min(FEED_AT_MOST)
}

/// The kernel's watchdog device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// Opens it, which arms it.
    ///
    /// # Errors
    /// When it is not there, or somebody else has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().write(true).open(path)?, path: path.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `struct watchdog_info` of `linux/watchdog.h`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Info {
    options: u32,
    firmware_version: u32,
    identity: [u8; 32],
}

mod calls {
    use super::Info;
    nix::ioctl_read!(get_support, b'W', 0, Info);
    nix::ioctl_read!(get_boot_status, b'W', 2, i32);
    nix::ioctl_read!(keep_alive, b'W', 5, i32);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, i32);
    nix::ioctl_read!(get_timeout, b'W', 7, i32);
    nix::ioctl_readwrite!(set_pretimeout, b'W', 8, i32);
    nix::ioctl_read!(get_time_left, b'W', 10, i32);
}

impl Device {
    fn number(&self, call: unsafe fn(i32, *mut i32) -> nix::Result<i32>, given: u32) -> io::Result<u32> {
        let mut number = i32::try_from(given).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: each of these calls reads and writes one int at the address it is given (linux/watchdog.h), and `number` is
        // one that outlives the call; the descriptor is open as long as `self`.
        unsafe { call(self.file.as_raw_fd(), &raw mut number) }?;
        u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }
}

impl Watchdog for Device {
    fn identity(&mut self) -> io::Result<String> {
        let mut info = Info::default();
        // SAFETY: the call fills one `struct watchdog_info`, which `Info` is laid out as; it outlives the call.
        unsafe { calls::get_support(self.file.as_raw_fd(), &raw mut info) }?;
        let text = info.identity.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn feed(&mut self) -> io::Result<()> {
        self.number(calls::keep_alive, 0).map(drop)
    }

    fn set_timeout(&mut self, seconds: u32) -> io::Result<()> {
        self.number(calls::set_timeout, seconds).map(drop)
    }

    fn timeout(&mut self) -> io::Result<u32> {
        self.number(calls::get_timeout, 0)
    }

    fn time_left(&mut self) -> io::Result<u32> {
        self.number(calls::get_time_left, 0)
    }

    fn boot_status(&mut self) -> io::Result<u32> {
        self.number(calls::get_boot_status, 0)
    }

    fn no_pretimeout(&mut self) -> io::Result<()> {
        self.number(calls::set_pretimeout, 0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    const GOOD: Before = Before { armed: Some(true), nowayout: Some(true) };

    /// A watchdog that does what drivers do.
    #[derive(Default)]
    struct Odd {
        /// Refuses more than this.
        most: Option<u32>,
        /// Makes multiples of this.
        step: Option<u32>,
        /// Runs with the timeout modulo this, and does not say so.
        wraps: Option<u32>,
        /// Refuses everything.
        deaf: bool,
        /// Does not tell the time left.
        shy: bool,
        timeout: u32,
        fed: u32,
    }

    impl Watchdog for Odd {
        fn identity(&mut self) -> io::Result<String> {
            Ok("odd".into())
        }
        fn feed(&mut self) -> io::Result<()> {
            self.fed += 1;
            Ok(())
        }
        fn set_timeout(&mut self, seconds: u32) -> io::Result<()> {
            if self.deaf || self.most.is_some_and(|most| seconds > most) {
                return Err(Errno::EINVAL.into());
            }
            let step = self.step.unwrap_or(1);
            self.timeout = seconds.div_ceil(step) * step;
            Ok(())
        }
        fn timeout(&mut self) -> io::Result<u32> {
            Ok(self.timeout)
        }
        fn time_left(&mut self) -> io::Result<u32> {
            match (self.shy, self.wraps) {
                (true, _) => Err(Errno::EOPNOTSUPP.into()),
                (false, Some(wraps)) => Ok(self.timeout % wraps),
                (false, None) => Ok(self.timeout - 1),
            }
        }
        fn boot_status(&mut self) -> io::Result<u32> {
            Ok(CARDRESET)
        }
        fn no_pretimeout(&mut self) -> io::Result<()> {
            Err(Errno::EOPNOTSUPP.into())
        }
    }

    fn settled(mut dog: Odd, wanted: u32, before: Before) -> WatchdogState {
        let state = settle(&mut dog, DEVICE, wanted, before);
        assert!(dog.fed > 0, "it was never fed");
        state
    }

    #[test]
    fn what_the_hardware_remembers_is_read_without_the_device() {
        let class = tempfile::tempdir().unwrap();
        fs::create_dir(class.path().join("watchdog0")).unwrap();
        assert_eq!(boot_status(class.path(), Path::new(DEVICE)), None, "the kernel does not tell");
        fs::write(class.path().join("watchdog0/bootstatus"), "32\n").unwrap();
        assert_eq!(boot_status(class.path(), Path::new(DEVICE)), Some(CARDRESET));
        assert_eq!(boot_status(class.path(), Path::new("/dev/watchdog1")), None);
    }

    #[test]
    fn a_good_one_has_no_remarks() {
        let state = settled(Odd::default(), 15, GOOD);
        assert_eq!((state.asked_s, state.accepted_s, state.left_s), (15, 15, Some(14)));
        assert!(state.remarks.is_empty() && state.armed_before, "{state:?}");
        assert_eq!((state.boot_status, state.identity.as_str()), (CARDRESET, "odd"));
        assert_eq!(settled(Odd { shy: true, ..Odd::default() }, 15, GOOD).left_s, None);
    }

    #[test]
    fn a_timeout_that_is_refused_is_asked_for_smaller() {
        let state = settled(Odd { most: Some(9), ..Odd::default() }, 60, GOOD);
        assert_eq!(state.accepted_s, 8);
        let refused: Vec<_> = state.remarks.iter().filter(|r| r.contains("was refused")).collect();
        assert_eq!(refused.len(), 3, "60, 15 and 10: {:?}", state.remarks);
    }

    #[test]
    fn a_timeout_that_is_rounded_is_judged_by_what_was_read_back() {
        let state = settled(Odd { step: Some(8), ..Odd::default() }, 15, GOOD);
        assert_eq!(state.accepted_s, 16);
        assert!(state.remarks[0].contains("made 16 s of the 15 s"), "{:?}", state.remarks);
    }

    #[test]
    fn one_that_wraps_at_16_seconds_ends_with_a_timeout_that_it_holds() {
        let state = settled(Odd { wraps: Some(16), ..Odd::default() }, 20, GOOD);
        assert_eq!((state.accepted_s, state.left_s), (15, Some(15)));
        assert!(state.remarks[0].contains("only 4 s were left"), "{:?}", state.remarks);
    }

    #[test]
    fn one_that_never_tells_the_truth_is_fed_as_often_as_the_time_left_demands() {
        let state = settled(Odd { wraps: Some(1), ..Odd::default() }, 15, GOOD);
        assert_eq!(state.accepted_s, 1);
        assert_eq!(feed_every(state.accepted_s), Duration::from_millis(1000) / 3);
    }

    #[test]
    fn one_that_takes_nothing_is_fed_by_what_is_in_force() {
        let state = settled(Odd { deaf: true, timeout: 6, ..Odd::default() }, 15, GOOD);
        assert_eq!(state.accepted_s, 6);
        assert!(state.remarks.last().unwrap().contains("took no timeout at all and runs with 6 s"));
    }

    #[test]
    fn a_gap_before_and_a_way_out_are_remarked() {
        let before = Before { armed: Some(false), nowayout: Some(false) };
        let state = settled(Odd::default(), 15, before);
        assert!(!state.armed_before);
        assert_eq!(state.remarks.len(), 2, "{:?}", state.remarks);
        assert!(
            settled(Odd::default(), 15, Before::default()).remarks.is_empty(),
            "nothing is known: nothing is said"
        );
    }

    #[test]
    fn it_is_fed_three_times_in_its_timeout_and_every_five_seconds_at_least() {
        assert_eq!(feed_every(15), Duration::from_secs(5));
        assert_eq!(feed_every(120), Duration::from_secs(5));
        assert_eq!(feed_every(6), Duration::from_secs(2));
        assert!(!feed_every(0).is_zero());
    }

    #[test]
    fn one_that_is_armed_is_fed_whatever_is_configured_and_one_that_is_there_is_taken() {
        let class = tempfile::tempdir().unwrap();
        for (name, state) in [("watchdog0", "inactive"), ("watchdog1", "active"), ("watchdog2", "active")] {
            fs::create_dir(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("state"), format!("{state}\n")).unwrap();
        }
        let instead = |wanted: Option<&str>| armed_instead(class.path(), wanted.map(Path::new));
        let armed = Some(PathBuf::from("/dev/watchdog1"));
        assert_eq!(instead(None), armed);
        assert_eq!(instead(Some("/dev/no-such-watchdog")), armed);
        assert_eq!(instead(Some("/dev/null")), None);
        for name in ["watchdog1", "watchdog2"] {
            fs::write(class.path().join(name).join("state"), "inactive\n").unwrap();
        }
        assert_eq!(instead(None), None);
        assert_eq!(armed_instead(Path::new("/nowhere"), None), None);
    }

    #[test]
    fn no_watchdog_is_an_error_and_no_panic() {
        assert!(Device::open(Path::new("/dev/no-such-watchdog")).is_err());
    }
}
