//! Wear: how much is written to the medium of the data directory, and how much may be.
//!
//! Where the data directory has a partition of its own, the kernel's counter of that partition is read: it counts what everyone
//! writes there. Elsewhere (a shared file system on a developer's machine, an overlay) only what this process writes is known,
//! and [`WearView::source`] says so. Model slots on partitions of their own are not part of it.
//!
//! A day is 24 h of running time, in hours; a clock that is wrong or steps moves nothing. The count survives restarts of the daemon
//! and the board in a small record that is written at most every [`RECORD_EVERY`]; a reset loses what was written after it, a
//! restart of the daemon alone loses nothing of a partition, because the kernel's counter goes on.

use crate::monitor::{Roots, files, parse};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The least running time between two writings of the record.
pub const RECORD_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Bytes a day that may be written unless told otherwise: a card of 16 GB whose cells stand 500 erasures, written with an
/// amplification of ten, lasts eight years.
pub const DAILY_BUDGET: u64 = 256 << 20;
/// The name of the record in the data directory.
pub const RECORD: &str = "wear.json";
/// The longest record that is read.
const LONGEST: usize = 4096;
const HOURS: usize = 24;
const HOUR_MS: u64 = 3_600_000;

/// Where the count comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "counts")]
pub enum Source {
    /// What everyone writes to this block device.
    Partition {
        /// `/dev/mmcblk0p6`.
        device: String,
        /// `/sys/dev/block/179:6/stat`.
        #[serde(skip)]
        stat: PathBuf,
    },
    /// What this process writes, to whatever medium.
    Process {
        /// `/proc/self/io`.
        #[serde(skip)]
        io: PathBuf,
    },
}

impl Source {
    /// What counts for this directory.
    #[must_use]
    pub fn find(roots: &Roots, directory: &Path) -> Self {
        let process = || Self::Process { io: roots.proc.join("self/io") };
        let Some(mounts) = files::read(&roots.proc.join("self/mountinfo")) else { return process() };
        let Some(mount) = directory.to_str().and_then(|path| parse::mount_of(&mounts, path)) else {
            return process();
        };
        let (major, minor) = mount.device;
        let stat = roots.sys.join(format!("dev/block/{major}:{minor}/stat"));
        // What is mounted at the root is everyone's: its writes are not this appliance's.
        if major == 0 || mount.point == "/" || !stat.is_file() {
            return process();
        }
        Self::Partition { device: mount.source, stat }
    }

    /// Bytes written so far, of the device since the boot, of the process since its start.
    #[must_use]
    pub fn read(&self) -> Option<u64> {
        match self {
            Self::Partition { stat, .. } => parse::written(&files::read(stat)?),
            Self::Process { io } => parse::written_by_process(&files::read(io)?),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Partition { device, .. } => device,
            Self::Process { .. } => "process",
        }
    }
}

/// What is remembered across restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Running time it was written at.
    ran_ms: u64,
    /// Bytes of each of the last 24 running hours; hour `n` is at `n % 24`.
    hours: [u64; HOURS],
    /// All bytes ever counted.
    total: u64,
    /// The boot it was written in.
    boot: String,
    /// What counted.
    source: String,
    /// Its counter then.
    counter: u64,
}

/// The health an eMMC tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlashHealth {
    /// `mmc0:0001`.
    pub device: String,
    /// How much of the life of area A is used, at most, in percent; `None`: not told. Beyond 100 it is exceeded.
    pub life_used_a_percent: Option<u8>,
    /// The same of area B.
    pub life_used_b_percent: Option<u8>,
    /// Reserved blocks: `normal`, `warning` (80 % used), `urgent` (90 % used); `None`: not told.
    pub reserve: Option<&'static str>,
}

/// Every eMMC of the device that tells its health. A card in a slot does not.
#[must_use]
pub fn flash_health(roots: &Roots) -> Vec<FlashHealth> {
    let hosts = roots.sys.join("class/mmc_host");
    let mut found = Vec::new();
    for host in files::names(&hosts) {
        for device in files::names(&hosts.join(&host)).into_iter().filter(|name| name.starts_with(&host)) {
            let at = hosts.join(&host).join(&device);
            let bytes = |file: &str| parse::health_bytes(&files::read(&at.join(file))?);
            // 1 is up to 10 %, 10 up to 100 %, 11 beyond (JEDEC JESD84-B51, DEVICE_LIFE_TIME_EST); 0 is not told.
            let used = |n: Option<&u8>| n.filter(|n| (1..=11).contains(*n)).map(|n| n * 10);
            let life = bytes("life_time").unwrap_or_default();
            let reserve = match bytes("pre_eol_info").as_deref() {
                Some([1]) => Some("normal"),
                Some([2]) => Some("warning"),
                Some([3]) => Some("urgent"),
                _ => None,
            };
            let (a, b) = (used(life.first()), used(life.get(1)));
            if a.is_some() || b.is_some() || reserve.is_some() {
                found.push(FlashHealth { device, life_used_a_percent: a, life_used_b_percent: b, reserve });
            }
        }
    }
    found
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WearView {
    /// What is counted.
    pub source: Source,
    /// All bytes ever counted.
    pub written_bytes: u64,
    /// Bytes of the last 24 running hours.
    pub written_today_bytes: u64,
    /// Bytes that may be written in 24 running hours; 0 is no limit.
    pub budget_bytes: u64,
    /// Optional writes that were refused.
    pub refused: u64,
    /// What eMMCs tell of themselves.
    pub flash: Vec<FlashHealth>,
}

impl WearView {
    /// How much of the budget is spent, in percent; `None` without one.
    #[must_use]
    pub fn budget_percent(&self) -> Option<f64> {
        (self.budget_bytes > 0).then(|| parse::percent(self.written_today_bytes, self.budget_bytes))
    }
}

struct State {
    source: Source,
    budget: u64,
    boot: String,
    ran_before_ms: u64,
    ran_ms: u64,
    hours: [u64; HOURS],
    total: u64,
    counter: u64,
    /// Granted since the counter was read last: not in it yet.
    granted: u64,
    refused: u64,
    recorded_ms: u64,
    flash: Vec<FlashHealth>,
}

/// The count and the budget, shared by everyone who writes what need not be written.
#[derive(Clone)]
pub struct Wear(Arc<Mutex<State>>);

impl Wear {
    /// Goes on from the record that lies in `directory`, if one does.
    #[must_use]
    pub fn open(roots: &Roots, directory: &Path, budget: u64) -> Self {
        let source = Source::find(roots, directory);
        let boot = files::read(&roots.proc.join("sys/kernel/random/boot_id")).unwrap_or_default();
        let boot = boot.trim().to_owned();
        let text = files::read(&directory.join(RECORD)).filter(|text| text.len() <= LONGEST);
        let record: Option<Record> = text.and_then(|text| serde_json::from_str(&text).ok());
        let mut state = State {
            source,
            budget,
            boot,
            ran_before_ms: 0,
            ran_ms: 0,
            hours: [0; HOURS],
            total: 0,
            counter: 0,
            granted: 0,
            refused: 0,
            recorded_ms: 0,
            flash: Vec::new(),
        };
        if let Some(record) = record {
            let goes_on = matches!(state.source, Source::Partition { .. })
                && record.boot == state.boot
                && record.source == state.source.name();
            state.counter = if goes_on { record.counter } else { 0 };
            (state.hours, state.total) = (record.hours, record.total);
            (state.ran_before_ms, state.ran_ms, state.recorded_ms) =
                (record.ran_ms, record.ran_ms, record.ran_ms);
        }
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What counts.
    #[must_use]
    pub fn source(&self) -> Source {
        self.state().source.clone()
    }

    /// Takes a reading of the counter in, after running for this long; `None`: it could not be read.
    pub fn take(&self, running: Duration, counter: Option<u64>, flash: Option<Vec<FlashHealth>>) {
        let mut s = self.state();
        if let Some(flash) = flash {
            s.flash = flash;
        }
        let now = s.ran_before_ms.saturating_add(u64::try_from(running.as_millis()).unwrap_or(u64::MAX));
        let (before, hour) = (s.ran_ms / HOUR_MS, now / HOUR_MS);
        for gone in (before + 1..=hour).take(HOURS) {
            s.hours[at(gone)] = 0;
        }
        s.ran_ms = now.max(s.ran_ms);
        let Some(counter) = counter else { return };
        // A counter that went back began anew: its device was taken away and came again.
        let wrote = if counter >= s.counter { counter - s.counter } else { counter };
        s.counter = counter;
        s.granted = 0;
        s.total = s.total.saturating_add(wrote);
        let this = &mut s.hours[at(hour)];
        *this = this.saturating_add(wrote);
    }

    /// Whether so many bytes may be written that need not be. What is granted counts at once.
    #[must_use]
    pub fn may_write(&self, bytes: u64) -> bool {
        let mut s = self.state();
        let spent = s.today().saturating_add(s.granted).saturating_add(bytes);
        let may = s.budget == 0 || spent <= s.budget;
        if may {
            s.granted = s.granted.saturating_add(bytes);
        } else {
            s.refused += 1;
        }
        may
    }

    /// How it stands.
    #[must_use]
    pub fn view(&self) -> WearView {
        let s = self.state();
        WearView {
            source: s.source.clone(),
            written_bytes: s.total,
            written_today_bytes: s.today(),
            budget_bytes: s.budget,
            refused: s.refused,
            flash: s.flash.clone(),
        }
    }

    /// The record to be written, when it is time for one.
    #[must_use]
    pub fn due(&self) -> Option<Vec<u8>> {
        let mut s = self.state();
        let every = u64::try_from(RECORD_EVERY.as_millis()).unwrap_or(u64::MAX);
        if s.ran_ms.saturating_sub(s.recorded_ms) < every {
            return None;
        }
        s.recorded_ms = s.ran_ms;
        let record = Record {
            ran_ms: s.ran_ms,
            hours: s.hours,
            total: s.total,
            boot: s.boot.clone(),
            source: s.source.name().to_owned(),
            counter: s.counter,
        };
        serde_json::to_vec(&record).ok()
    }
}

fn at(hour: u64) -> usize {
    usize::try_from(hour % HOURS as u64).unwrap_or_default()
}

impl State {
    fn today(&self) -> u64 {
        self.hours.iter().fold(0, |sum, h| sum.saturating_add(*h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const HOUR: Duration = Duration::from_secs(3600);

    fn tree() -> (tempfile::TempDir, Roots, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path());
        let data = dir.path().join("data");
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(roots.proc.join("self")).unwrap();
        fs::create_dir_all(roots.proc.join("sys/kernel/random")).unwrap();
        fs::create_dir_all(roots.sys.join("dev/block/179:6")).unwrap();
        fs::write(roots.proc.join("sys/kernel/random/boot_id"), "one\n").unwrap();
        fs::write(roots.sys.join("dev/block/179:6/stat"), "0 0 0 0 0 0 0").unwrap();
        fs::write(roots.proc.join("self/io"), "write_bytes: 77\n").unwrap();
        let mounts = format!(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 179:6 / {} rw - ext4 /dev/mmcblk0p6 rw\n",
            data.display()
        );
        fs::write(roots.proc.join("self/mountinfo"), mounts).unwrap();
        (dir, roots, data)
    }

    #[test]
    fn a_partition_of_its_own_is_counted_and_a_shared_one_is_not() {
        let (_dir, roots, data) = tree();
        fs::write(roots.sys.join("dev/block/179:6/stat"), "0 0 0 0 0 0 4").unwrap();
        let of = |path: &Path| Source::find(&roots, path);
        assert_eq!(of(&data.join("inferd")).name(), "/dev/mmcblk0p6");
        assert_eq!(of(&data).read(), Some(2048));
        assert_eq!(of(Path::new("/home")).name(), "process");
        assert_eq!(of(Path::new("/home")).read(), Some(77));
        assert_eq!(Source::find(&Roots::below(Path::new("/nowhere")), &data).read(), None);
    }

    #[test]
    fn a_day_is_24_running_hours() {
        let (_dir, roots, data) = tree();
        let wear = Wear::open(&roots, &data, 100);
        wear.take(Duration::ZERO, Some(10), None);
        wear.take(HOUR * 23, Some(30), None);
        assert_eq!((wear.view().written_bytes, wear.view().written_today_bytes), (30, 30));
        wear.take(HOUR * 24, Some(31), None);
        assert_eq!(wear.view().written_today_bytes, 21, "the first hour is a day ago");
        wear.take(HOUR * 200, None, None);
        assert_eq!((wear.view().written_bytes, wear.view().written_today_bytes), (31, 0));
    }

    #[test]
    fn optional_writes_are_refused_over_the_budget_and_allowed_again_a_day_later() {
        let (_dir, roots, data) = tree();
        let wear = Wear::open(&roots, &data, 100);
        wear.take(Duration::ZERO, Some(40), None);
        assert!(wear.may_write(60));
        assert!(!wear.may_write(1), "what was granted counts before it is written");
        wear.take(HOUR, Some(100), None);
        assert!(!wear.may_write(1) && wear.may_write(0));
        assert_eq!((wear.view().refused, wear.view().budget_percent()), (2, Some(100.0)));
        wear.take(HOUR * 30, Some(100), None);
        assert!(wear.may_write(100));
        let free = Wear::open(&roots, &data, 0);
        assert!(free.may_write(u64::MAX) && free.view().budget_percent().is_none());
    }

    #[test]
    fn the_record_is_written_at_most_every_six_hours_and_goes_on_after_a_restart() {
        let (_dir, roots, data) = tree();
        let wear = Wear::open(&roots, &data, 0);
        for minute in 0..359 {
            wear.take(Duration::from_secs(60 * minute), Some(minute), None);
            assert_eq!(wear.due(), None, "minute {minute}");
        }
        wear.take(HOUR * 6, Some(1000), None);
        let record = wear.due().unwrap();
        assert!(record.len() < LONGEST);
        assert_eq!(wear.due(), None);
        fs::write(data.join(RECORD), &record).unwrap();

        let again = Wear::open(&roots, &data, 0);
        again.take(HOUR, Some(1500), None);
        assert_eq!(again.view().written_bytes, 1500, "the kernel's counter goes on within a boot");
        assert_eq!(again.due(), None);
        again.take(HOUR * 6, Some(1500), None);
        assert!(again.due().is_some());

        fs::write(roots.proc.join("sys/kernel/random/boot_id"), "two\n").unwrap();
        let next = Wear::open(&roots, &data, 0);
        next.take(Duration::ZERO, Some(5), None);
        assert_eq!(next.view().written_bytes, 1005, "it begins at 0 in each");
        assert_eq!(next.view().written_today_bytes, 1005);
    }

    #[test]
    fn a_record_that_is_none_costs_the_count_and_nothing_else() {
        let (_dir, roots, data) = tree();
        for bad in ["", "{", "{\"ran_ms\":1}", &"x".repeat(1 << 20)] {
            fs::write(data.join(RECORD), bad).unwrap();
            assert_eq!(Wear::open(&roots, &data, 1).view().written_bytes, 0);
        }
        let largest = Record {
            ran_ms: u64::MAX,
            hours: [u64::MAX; HOURS],
            total: u64::MAX,
            boot: "one".to_owned(),
            source: "/dev/mmcblk0p6".to_owned(),
            counter: u64::MAX,
        };
        fs::write(data.join(RECORD), serde_json::to_vec(&largest).unwrap()).unwrap();
        let wear = Wear::open(&roots, &data, 1);
        wear.take(HOUR * 50, Some(7), None);
        assert_eq!(wear.view().written_bytes, u64::MAX);
        assert!(!wear.may_write(1));
    }

    #[test]
    fn an_emmc_tells_its_life_and_a_card_tells_none() {
        let (_dir, roots, _) = tree();
        let at = roots.sys.join("class/mmc_host/mmc0/mmc0:0001");
        fs::create_dir_all(&at).unwrap();
        fs::create_dir_all(roots.sys.join("class/mmc_host/mmc1/mmc1:aaaa")).unwrap();
        fs::write(at.join("life_time"), "0x02 0x0b\n").unwrap();
        fs::write(at.join("pre_eol_info"), "0x02\n").unwrap();
        let [emmc] = &flash_health(&roots)[..] else { panic!("one") };
        assert_eq!((emmc.life_used_a_percent, emmc.life_used_b_percent), (Some(20), Some(110)));
        assert_eq!((emmc.device.as_str(), emmc.reserve), ("mmc0:0001", Some("warning")));
    }
}
