//! One reading of everything.

use super::accelerator::{Accelerator, AcceleratorReading, JetsonGpu};
use super::parse::{self, CpuTimes, Pressure, Throttled};
use super::patience::{Job, Patience};
use super::{Roots, Settings, files};
use crate::alerts::{Kind, Reading, When};
use crate::wear::{self, FlashHealth, Wear, WearView};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the reading of one sensor may take.
pub const SENSOR_DEADLINE: Duration = Duration::from_secs(1);
/// Requests in an interval below which a share of them says nothing.
const FEW_REQUESTS: u64 = 20;
/// Sensors of one kind that are looked at.
const MOST_SENSORS: usize = 64;

/// What was read at one moment. What could not be read is absent, never 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// When.
    #[serde(flatten)]
    pub when: When,
    /// How busy the processors were since the reading before, in percent.
    pub cpu_percent: Option<f64>,
    /// The board's memory.
    pub memory: Option<Memory>,
    /// The memory of this daemon's cgroup.
    pub cgroup: Option<Cgroup>,
    /// Pressure stall information, where the kernel has it.
    pub pressure: Pressures,
    /// The file system of the data directory.
    pub disk: Option<Disk>,
    /// Temperature sensors, in the order of their numbers.
    pub temperatures: Vec<Temperature>,
    /// What the firmware says of supply and clocks, where there is such a firmware.
    pub power: Power,
    /// Accelerators.
    pub accelerators: Vec<AcceleratorReading>,
    /// Requests that found a free slot, of those since the reading before, from 0 to 1; `None`: too few to say.
    pub pool_efficiency: Option<f64>,
    /// What is written to the medium of the data directory.
    pub wear: WearView,
    /// What is not read now because an earlier reading of it hangs.
    pub hanging: Vec<String>,
}

/// The board's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Memory {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub percent: f64,
}

/// The memory of a cgroup, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    /// In use.
    pub used_bytes: u64,
    /// Its limit, if it has one.
    pub limit_bytes: Option<u64>,
}

/// Pressure of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Pressures {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disk {
    /// What was looked at: the data directory, or the nearest directory above it that is there.
    pub path: PathBuf,
    /// Its size.
    pub total_bytes: u64,
    /// What this daemon may still write.
    pub available_bytes: u64,
    /// How full it is for this daemon, in percent.
    pub percent: f64,
    /// How many of its inodes are in use, in percent; `None` where it has no fixed number of them.
    pub inodes_percent: Option<f64>,
    /// It can only be read.
    pub read_only: bool,
    /// Errors that its kernel has found in it since it was last checked, also before this start; `None` where it is no ext4.
    pub errors: Option<u32>,
}

/// One temperature sensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Temperature {
    /// The zone and what the kernel calls it: `thermal_zone0:cpu-thermal`.
    pub sensor: String,
    /// Degrees Celsius.
    pub celsius: f64,
}

/// What the firmware says of supply and clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Power {
    /// Its word about clocks, on a Raspberry Pi.
    pub throttled: Option<Throttled>,
    /// The supply is too low, as that word or a voltage sensor has it.
    pub under_voltage: Option<bool>,
}

/// What the rooms above tell; asked once for every reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Requests that found a free slot, ever.
    pub pool_hits: u64,
    /// Requests that found none, ever.
    pub pool_misses: u64,
    /// The first open circuit breaker, by the name of its engine; `Some(None)`: none is open; `None`: there are no breakers.
    pub breaker_open: Option<Option<String>>,
    /// Whether writing the data directory fails; `None`: nobody tried.
    pub storage_failing: Option<bool>,
    /// The first actuator that is in its safe pose because something failed, and why; `Some(None)`: none is; `None`: there are none.
    pub actuator_failing: Option<Option<String>>,
    /// The first model whose calibration is not applied, and why; `Some(None)`: none is like that; `None`: nobody knows yet.
    pub calibration_failing: Option<Option<String>>,
    /// The first engine whose parts are not of one release: which, and what to do; `Some(None)`: none is; `None`: nobody knows.
    pub engine_mismatch: Option<Option<String>>,
    /// The system that was tried last and did not stay, and why; `Some(None)`: there is none; `None`: nobody knows.
    pub system_returned: Option<Option<String>>,
}

/// One result of something that may hang.
enum Seen {
    Disk(Option<Disk>),
    Zone(u32, Option<Temperature>),
    Throttled(Option<Throttled>),
    LowVoltage(Option<bool>),
    Accelerator(AcceleratorReading),
    Written(Option<u64>),
    Flash(Vec<FlashHealth>),
    Record(Result<(), String>),
}

/// Reads, and keeps what a reading needs of the one before.
pub struct Reader {
    roots: Roots,
    data: PathBuf,
    keep_record: bool,
    patience: Patience,
    accelerators: Vec<Arc<dyn Accelerator>>,
    throttled: Option<PathBuf>,
    low_voltage: Option<PathBuf>,
    disk_errors: Option<PathBuf>,
    wear: Wear,
    started: Instant,
    before: Option<CpuTimes>,
    pool: Option<(u64, u64)>,
    breaker: Option<Option<String>>,
    actuator: Option<Option<String>>,
    calibration: Option<Option<String>>,
    mismatch: Option<Option<String>>,
    returned: Option<Option<String>>,
    failing: Option<bool>,
    flash_read: bool,
}

impl Reader {
    pub(super) fn new(settings: &Settings, wear: Wear) -> Self {
        let roots = settings.roots.clone();
        let mut accelerators: Vec<Arc<dyn Accelerator>> = settings.accelerators.clone();
        if let Some(gpu) = JetsonGpu::find(&roots) {
            accelerators.push(Arc::new(gpu));
        }
        Self {
            throttled: find_throttled(&roots),
            low_voltage: find_low_voltage(&roots),
            disk_errors: find_disk_errors(&roots, &settings.data),
            data: settings.data.clone(),
            keep_record: settings.keep_record,
            patience: Patience::default(),
            accelerators,
            wear,
            started: Instant::now(),
            before: None,
            pool: None,
            breaker: None,
            actuator: None,
            calibration: None,
            mismatch: None,
            returned: None,
            failing: None,
            flash_read: false,
            roots,
        }
    }

    pub(super) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Reads everything once.
    pub fn read(&mut self, when: When, service: Service) -> Sample {
        let proc = |file: &str| files::read(&self.roots.proc.join(file));
        let times = proc("stat").and_then(|t| parse::cpu_times(&t));
        let cpu_percent = times.zip(self.before).and_then(|(now, before)| now.percent_since(before));
        let memory = proc("meminfo").and_then(|t| parse::memory(&t)).map(|(total, available)| Memory {
            total_bytes: total,
            available_bytes: available,
            used_bytes: total - available,
            percent: parse::percent(total - available, total),
        });
        let pressure = |what: &str| proc(&format!("pressure/{what}")).and_then(|t| parse::pressure(&t));
        let pressure = Pressures { cpu: pressure("cpu"), memory: pressure("memory"), io: pressure("io") };
        let cgroup = proc("self/cgroup").and_then(|text| {
            let at = self.roots.cgroup.join(parse::cgroup(&text)?);
            let number = |file: &str| files::read(&at.join(file))?.trim().parse().ok();
            Some(Cgroup { used_bytes: number("memory.current")?, limit_bytes: number("memory.max") })
        });
        self.before = times.or(self.before);
        let pool_efficiency = self.pool_efficiency(&service);
        (self.breaker, self.failing) = (service.breaker_open, service.storage_failing);
        (self.actuator, self.calibration) = (service.actuator_failing, service.calibration_failing);
        (self.mismatch, self.returned) = (service.engine_mismatch, service.system_returned);
        let mut sample = Sample {
            when,
            cpu_percent,
            memory,
            cgroup,
            pressure,
            disk: None,
            temperatures: Vec::new(),
            power: Power::default(),
            accelerators: Vec::new(),
            pool_efficiency,
            wear: self.wear.view(),
            hanging: Vec::new(),
        };
        self.read_what_may_hang(&mut sample);
        sample.wear = self.wear.view();
        sample.hanging = self.patience.hanging();
        sample
    }

    fn pool_efficiency(&mut self, service: &Service) -> Option<f64> {
        let now = (service.pool_hits, service.pool_misses);
        let before = self.pool.replace(now)?;
        let (hits, misses) = (now.0.checked_sub(before.0)?, now.1.checked_sub(before.1)?);
        let all = hits.checked_add(misses).filter(|all| *all >= FEW_REQUESTS)?;
        Some(parse::percent(hits, all) / 100.0)
    }

    fn read_what_may_hang(&mut self, sample: &mut Sample) {
        let seen = self.patience.read(self.jobs(), SENSOR_DEADLINE);
        let mut zones = Vec::new();
        let mut written = None;
        let mut flash = None;
        for seen in seen {
            match seen {
                Seen::Disk(disk) => sample.disk = disk,
                Seen::Zone(number, zone) => zones.extend(zone.map(|zone| (number, zone))),
                Seen::Throttled(word) => {
                    sample.power.throttled = word;
                    if let Some(word) = word {
                        *sample.power.under_voltage.get_or_insert(false) |= word.under_voltage;
                    }
                }
                Seen::LowVoltage(low) => {
                    if let Some(low) = low {
                        *sample.power.under_voltage.get_or_insert(false) |= low;
                    }
                }
                Seen::Accelerator(reading) => sample.accelerators.push(reading),
                Seen::Written(counter) => written = counter,
                Seen::Flash(health) => {
                    self.flash_read = true;
                    flash = Some(health);
                }
                Seen::Record(Ok(())) => {}
                Seen::Record(Err(why)) => tracing::warn!("the record of what was written is not kept: {why}"),
            }
        }
        zones.sort_by_key(|(number, _)| *number);
        sample.temperatures = zones.into_iter().map(|(_, zone)| zone).collect();
        self.wear.take(self.started.elapsed(), written, flash);
    }

    fn jobs(&self) -> Vec<Job<Seen>> {
        let mut jobs = Vec::new();
        let (data, errors) = (self.data.clone(), self.disk_errors.clone());
        jobs.push(Job::new("disk", move || {
            let errors = || files::read(errors.as_deref()?)?.trim().parse().ok();
            Seen::Disk(disk(&data).map(|disk| Disk { errors: errors(), ..disk }))
        }));
        let source = self.wear.source();
        jobs.push(Job::new("written", move || Seen::Written(source.read())));
        let thermal = self.roots.sys.join("class/thermal");
        for name in files::names(&thermal).into_iter().take(2 * MOST_SENSORS) {
            let Some(number) = name.strip_prefix("thermal_zone").and_then(|n| n.parse().ok()) else {
                continue;
            };
            let zone = thermal.join(&name);
            jobs.push(Job::new(name.clone(), move || Seen::Zone(number, temperature(&name, &zone))));
        }
        if let Some(path) = self.throttled.clone() {
            let read = move || Seen::Throttled(files::read(&path).and_then(|t| parse::throttled(&t)));
            jobs.push(Job::new("get_throttled", read));
        }
        if let Some(path) = self.low_voltage.clone() {
            let read = move || Seen::LowVoltage(files::read(&path).map(|t| t.trim() == "1"));
            jobs.push(Job::new("rpi_volt", read));
        }
        for accelerator in self.accelerators.iter().take(MOST_SENSORS) {
            let accelerator = Arc::clone(accelerator);
            let name = format!("accelerator {}", accelerator.name());
            jobs.push(Job::new(name, move || Seen::Accelerator(accelerator.read())));
        }
        if !self.flash_read {
            let roots = self.roots.clone();
            jobs.push(Job::new("flash", move || Seen::Flash(wear::flash_health(&roots))));
        }
        if self.keep_record
            && self.data.is_dir()
            && let Some(record) = self.wear.due()
        {
            let path = self.data.join(wear::RECORD);
            let write = move || inferd_slots::replace(&path, &record).map_err(|e| e.to_string());
            jobs.push(Job::new("record", move || Seen::Record(write())));
        }
        jobs
    }

    /// What the alerts hold against their thresholds.
    pub(super) fn readings(&self, sample: &Sample) -> Vec<Reading> {
        let of = |kind, value, about| Reading { kind, value, about };
        let flag = |is: bool| if is { 1.0 } else { 0.0 };
        let hottest = |all: &mut dyn Iterator<Item = (&String, f64)>| {
            all.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, t)| (name.clone(), t))
        };
        let board = hottest(&mut sample.temperatures.iter().map(|t| (&t.sensor, t.celsius)));
        let accelerator =
            hottest(&mut sample.accelerators.iter().filter_map(|a| Some((&a.name, a.celsius?))));
        let some = |p: Option<Pressure>| p.map(|p| p.some_avg10);
        let clocks = sample.power.throttled.map(|t| match t {
            Throttled { throttled: true, .. } => 2.0,
            Throttled { capped: true, .. } | Throttled { soft_limit: true, .. } => 1.0,
            _ => 0.0,
        });
        let disk = sample.disk.as_ref();
        let path = disk.map(|d| d.path.display().to_string());
        let read_only = disk.filter(|d| d.path == self.data).map(|d| d.read_only);
        let failing = match (read_only, self.failing) {
            (None, None) => None,
            (a, b) => Some(a == Some(true) || b == Some(true)),
        };
        vec![
            of(Kind::Cpu, sample.cpu_percent, None),
            of(Kind::Memory, sample.memory.map(|m| m.percent), None),
            of(Kind::MemoryPressure, some(sample.pressure.memory), None),
            of(Kind::IoPressure, some(sample.pressure.io), None),
            of(Kind::Disk, disk.map(|d| d.percent), path.clone()),
            of(Kind::Inodes, disk.and_then(|d| d.inodes_percent), path),
            of(Kind::Temperature, board.as_ref().map(|(_, t)| *t), board.map(|(name, _)| name)),
            of(Kind::Throttled, clocks, None),
            of(Kind::UnderVoltage, sample.power.under_voltage.map(flag), None),
            of(Kind::Accelerator, accelerator.as_ref().map(|(_, t)| *t), accelerator.map(|(name, _)| name)),
            of(Kind::PoolEfficiency, sample.pool_efficiency.map(|e| e * 100.0), None),
            of(
                Kind::BreakerOpen,
                self.breaker.as_ref().map(|open| flag(open.is_some())),
                self.breaker.clone().flatten(),
            ),
            of(Kind::StorageFailing, failing.map(flag), Some(self.data.display().to_string())),
            of(
                Kind::DiskErrors,
                disk.and_then(|d| d.errors).map(f64::from),
                Some(self.data.display().to_string()),
            ),
            of(
                Kind::ActuatorFailing,
                self.actuator.as_ref().map(|failing| flag(failing.is_some())),
                self.actuator.clone().flatten(),
            ),
            of(
                Kind::CalibrationFailing,
                self.calibration.as_ref().map(|failing| flag(failing.is_some())),
                self.calibration.clone().flatten(),
            ),
            of(
                Kind::EngineMismatch,
                self.mismatch.as_ref().map(|mismatch| flag(mismatch.is_some())),
                self.mismatch.clone().flatten(),
            ),
            of(
                Kind::SystemReturned,
                self.returned.as_ref().map(|returned| flag(returned.is_some())),
                self.returned.clone().flatten(),
            ),
            of(Kind::WriteBudget, sample.wear.budget_percent(), None),
        ]
    }
}

/// The file system that holds this directory, or would.
fn disk(data: &Path) -> Option<Disk> {
    let path = data.ancestors().find(|a| a.is_dir())?;
    let s = nix::sys::statvfs::statvfs(path).ok()?;
    #[allow(clippy::unnecessary_cast)] // narrower on some targets
    let bytes = |blocks: u64| blocks.saturating_mul(s.fragment_size() as u64);
    #[allow(clippy::unnecessary_cast)]
    let (all, free, available) = (s.blocks() as u64, s.blocks_free() as u64, s.blocks_available() as u64);
    #[allow(clippy::unnecessary_cast)]
    let (inodes, free_inodes) = (s.files() as u64, s.files_free() as u64);
    // As df has it: of what is used and what may still be used; the reserve of root counts as neither.
    let used = all.saturating_sub(free);
    let usable = used.saturating_add(available);
    Some(Disk {
        path: path.to_owned(),
        total_bytes: bytes(all),
        available_bytes: bytes(available),
        percent: parse::percent(used, usable),
        inodes_percent: (inodes > 0).then(|| parse::percent(inodes.saturating_sub(free_inodes), inodes)),
        read_only: s.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
        errors: None,
    })
}

/// Where ext4 counts the errors of the file system that holds this directory: `fs/ext4/mmcblk0p6/errors_count`. Others have no such file.
fn find_disk_errors(roots: &Roots, data: &Path) -> Option<PathBuf> {
    let mounts = files::read(&roots.proc.join("self/mountinfo"))?;
    let (major, minor) = parse::mount_of(&mounts, data.to_str()?)?.device;
    let told = files::read(&roots.sys.join(format!("dev/block/{major}:{minor}/uevent")))?;
    let node = told.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(roots.sys.join("fs/ext4").join(node).join("errors_count"))
}

fn temperature(name: &str, zone: &Path) -> Option<Temperature> {
    // A sensor that sleeps answers EAGAIN: then there is no temperature.
    let celsius = parse::celsius(&files::read(&zone.join("temp"))?)?;
    let kind = files::read(&zone.join("type")).unwrap_or_default();
    Some(Temperature { sensor: format!("{name}:{}", kind.trim()), celsius })
}

/// `devices/platform/soc*/soc*:firmware/get_throttled`: the Raspberry Pi's own kernel has it, others do not.
fn find_throttled(roots: &Roots) -> Option<PathBuf> {
    let platform = roots.sys.join("devices/platform");
    let socs = files::names(&platform).into_iter().filter(|name| name.starts_with("soc"));
    socs.flat_map(|soc| {
        let at = platform.join(soc);
        files::names(&at).into_iter().map(move |name| at.join(name))
    })
    .filter(|at| at.file_name().is_some_and(|n| n.to_string_lossy().ends_with(":firmware")))
    .map(|at| at.join("get_throttled"))
    .find(|path| path.is_file())
}

/// The alarm of the Raspberry Pi's supply: `in0_lcrit_alarm` of the sensor `rpi_volt`.
fn find_low_voltage(roots: &Roots) -> Option<PathBuf> {
    let hwmon = roots.sys.join("class/hwmon");
    files::names(&hwmon)
        .into_iter()
        .map(|name| hwmon.join(name))
        .find(|at| files::read(&at.join("name")).is_some_and(|name| name.trim() == "rpi_volt"))
        .map(|at| at.join("in0_lcrit_alarm"))
        .filter(|path| path.is_file())
}
