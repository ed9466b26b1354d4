use super::*;
use std::fs;

/// A recorded tree of a board.
struct Board {
    dir: tempfile::TempDir,
}

impl Board {
    fn new() -> Self {
        let board = Self { dir: tempfile::tempdir().unwrap() };
        board.write("proc/uptime", "12.50 40.00\n");
        board.cpu(0, 0);
        board.memory(50);
        fs::create_dir_all(board.data()).unwrap();
        board
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn cpu(&self, busy: u64, idle: u64) {
        self.write("proc/stat", &format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\n"));
    }

    fn memory(&self, used_percent: u64) {
        let available = 100 - used_percent;
        self.write(
            "proc/meminfo",
            &format!("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n"),
        );
    }

    fn settings(&self) -> Settings {
        Settings {
            roots: Roots::below(self.dir.path()),
            data: self.data(),
            thresholds: Thresholds { disk: 101.0, disk_critical: 101.0, ..Thresholds::default() },
            ..Settings::default()
        }
    }

    fn work(&self, settings: &Settings) -> Work {
        let wear = Wear::open(&settings.roots, &settings.data, settings.daily_write);
        Work {
            reader: Reader::new(settings, wear),
            alerts: Alerts::new(&settings.thresholds.rules(settings.consecutive)),
            rooms: Rooms::default(),
            shed: Shed::default(),
            shed_at: settings.shed_at,
            history: VecDeque::new(),
            view: View::default(),
        }
    }

    fn sample(&self) -> Sample {
        let mut work = self.work(&self.settings());
        work.round(When::default(), Instant::now());
        work.view.sample.unwrap()
    }
}

#[test]
fn what_the_kernel_does_not_tell_is_absent_and_never_0() {
    let board = Board::new();
    fs::remove_dir_all(board.dir.path().join("proc")).unwrap();
    let s = board.sample();
    assert_eq!((s.cpu_percent, s.memory, s.cgroup, s.pool_efficiency), (None, None, None, None));
    assert_eq!(s.pressure, Pressures::default());
    assert_eq!((s.power, s.accelerators.len(), s.temperatures.len()), (Power::default(), 0, 0));
    let json = serde_json::to_value(&s).unwrap();
    assert!(json["cpu_percent"].is_null() && json["memory"].is_null());
}

#[test]
fn a_recorded_board_is_read() {
    let board = Board::new();
    for what in ["cpu", "memory", "io"] {
        board.write(&format!("proc/pressure/{what}"), "some avg10=1.25 avg60=0 avg300=0 total=0\n");
    }
    board.write("proc/self/cgroup", "0::/inferd/daemon\n");
    board.write("sys/fs/cgroup/inferd/daemon/memory.current", "4096\n");
    board.write("sys/fs/cgroup/inferd/daemon/memory.max", "max\n");
    board.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n");
    board.write("sys/class/thermal/thermal_zone0/temp", "48250\n");
    board.write("sys/class/thermal/thermal_zone10/type", "GPU-therm\n");
    board.write("sys/class/thermal/thermal_zone10/temp", "51000\n");
    board.write("sys/class/thermal/thermal_zone2/type", "asleep\n");
    board.write("sys/class/thermal/cooling_device0/type", "fan\n");
    board.write("sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "50004\n");
    board.write("sys/class/hwmon/hwmon1/name", "rpi_volt\n");
    board.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n");
    board.write("sys/devices/platform/bus@0/17000000.gpu/load", "425\n");
    board.write("sys/class/devfreq/17000000.gpu/cur_freq", "918000000\n");
    let mut work = board.work(&board.settings());
    work.round(When::default(), Instant::now());
    assert_eq!(work.view.sample.as_ref().unwrap().cpu_percent, None, "one reading has no interval");
    board.cpu(30, 70);
    work.round(When::default(), Instant::now());
    let s = work.view.sample.unwrap();
    assert_eq!(s.cpu_percent, Some(30.0));
    assert_eq!(s.memory.map(|m| (m.percent, m.used_bytes)), Some((50.0, 50 << 10)));
    assert_eq!(s.cgroup, Some(Cgroup { used_bytes: 4096, limit_bytes: None }));
    assert_eq!(s.pressure.io.map(|p| p.some_avg10), Some(1.25));
    let t = |sensor: &str, celsius| Temperature { sensor: sensor.to_owned(), celsius };
    assert_eq!(s.temperatures, [t("thermal_zone0:cpu-thermal", 48.25), t("thermal_zone10:GPU-therm", 51.0)]);
    assert!(s.power.throttled.is_some_and(|t| t.throttled && !t.under_voltage));
    assert_eq!(s.power.under_voltage, Some(true), "the supply's own sensor says so");
    let [gpu] = &s.accelerators[..] else { panic!("one") };
    assert_eq!(
        (gpu.load_percent, gpu.celsius, gpu.frequency_hz),
        (Some(42.5), Some(51.0), Some(918_000_000))
    );
    let disk = s.disk.unwrap();
    assert_eq!(disk.path, board.data());
    assert!(disk.total_bytes > 0 && (0.0..=100.0).contains(&disk.percent));
    let raised: Vec<Kind> = work.alerts.active().iter().map(|a| a.alert).collect();
    assert_eq!(raised, [Kind::Throttled, Kind::UnderVoltage], "flags need no row of readings");
}

#[test]
fn a_sensor_that_hangs_is_named_and_the_others_are_read() {
    let board = Board::new();
    for zone in 0..3 {
        board.write(&format!("sys/class/thermal/thermal_zone{zone}/type"), "z\n");
    }
    board.write("sys/class/thermal/thermal_zone0/temp", "1000\n");
    board.write("sys/class/thermal/thermal_zone2/temp", "2000\n");
    let fifo = board.dir.path().join("sys/class/thermal/thermal_zone1/temp");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let mut work = board.work(&board.settings());
    for _ in 0..2 {
        work.round(When::default(), Instant::now());
        let s = work.view.sample.as_ref().unwrap();
        assert_eq!(s.hanging, ["thermal_zone1"]);
        assert_eq!(s.temperatures.iter().map(|t| t.celsius).collect::<Vec<_>>(), [1.0, 2.0]);
        assert!(s.disk.is_some());
    }
}

#[test]
fn the_seeds_thresholds_raise_after_five_readings_and_what_is_critical_sheds() {
    let board = Board::new();
    let mut work = board.work(&board.settings());
    let round = |work: &mut Work, used, times| {
        board.memory(used);
        for _ in 0..times {
            work.round(When::default(), Instant::now());
        }
    };
    round(&mut work, 85, 20);
    assert!(work.view.active.is_empty(), "85 is not over 85");
    round(&mut work, 86, 4);
    assert!(work.view.active.is_empty());
    round(&mut work, 86, 1);
    assert_eq!(work.view.active(Kind::Memory).map(|a| a.severity), Some(Severity::Warning));
    assert_eq!(work.view.shed, Level::None, "a warning sheds nothing");
    round(&mut work, 96, 5);
    assert_eq!(work.view.active(Kind::Memory).map(|a| a.severity), Some(Severity::Critical));
    assert_eq!((work.view.shed, work.shed.level()), (Level::Optional, Level::Optional));
    round(&mut work, 89, 5);
    assert_eq!(work.view.shed, Level::None);
    round(&mut work, 79, 5);
    assert!(work.view.active.is_empty());
    assert_eq!(work.view.raised(Kind::Memory), 1, "one episode");
    assert_eq!(work.view.recent.len(), 4);
}

#[test]
fn shedding_can_be_earlier_or_off() {
    let board = Board::new();
    board.memory(90);
    for (shed_at, expected) in [(Some(Severity::Warning), Level::Optional), (None, Level::None)] {
        let mut work = board.work(&Settings { shed_at, consecutive: 1, ..board.settings() });
        work.round(When::default(), Instant::now());
        assert_eq!(work.view.shed, expected);
    }
}

#[test]
fn a_disk_that_is_full_sheds_nothing() {
    let board = Board::new();
    let thresholds = Thresholds { disk: -1.0, disk_critical: -1.0, ..Thresholds::default() };
    let mut work = board.work(&Settings { thresholds, consecutive: 1, ..board.settings() });
    work.round(When::default(), Instant::now());
    assert_eq!(work.view.active(Kind::Disk).map(|a| a.severity), Some(Severity::Critical));
    assert_eq!(work.view.shed, Level::None);
}

#[test]
fn few_requests_say_nothing_about_the_pool() {
    let board = Board::new();
    let mut work = board.work(&Settings { consecutive: 1, ..board.settings() });
    let given = Arc::new(Mutex::new(Service::default()));
    let service = given.clone();
    work.rooms.service = Box::new(move || service.lock().unwrap().clone());
    let mut round = |pool_hits, pool_misses| {
        *given.lock().unwrap() = Service { pool_hits, pool_misses, ..Service::default() };
        work.round(When::default(), Instant::now());
        (work.view.sample.as_ref().unwrap().pool_efficiency, work.view.active(Kind::PoolEfficiency).is_some())
    };
    assert_eq!(round(0, 1000), (None, false), "one reading has no interval");
    assert_eq!(round(5, 1010), (None, false));
    assert_eq!(round(15, 1020), (Some(0.5), true));
    assert_eq!(round(15, 1020), (None, true), "nothing asked is nothing over");
    assert_eq!(round(115, 1020), (Some(1.0), false));
    assert_eq!(round(0, 0), (None, false), "a counter that went back says nothing");
}

#[test]
fn breakers_storage_actuators_calibrations_engines_and_systems_are_told_by_others() {
    let board = Board::new();
    let mut work = board.work(&board.settings());
    work.rooms.service = Box::new(|| Service {
        breaker_open: Some(Some("cpu".to_owned())),
        storage_failing: Some(true),
        actuator_failing: Some(Some("hand: the port was unplugged".to_owned())),
        calibration_failing: Some(Some("emg: unfit".to_owned())),
        engine_mismatch: Some(Some("libhailort is 4.23.0, the driver hailo_pci 4.21.0".to_owned())),
        system_returned: Some(Some("inferd-os 2: it was not ready".to_owned())),
        ..Service::default()
    });
    work.round(When::default(), Instant::now());
    let raised: Vec<_> = work.view.active.iter().map(|a| (a.alert, a.about.clone())).collect();
    let data = board.data().display().to_string();
    let hand = Some("hand: the port was unplugged".to_owned());
    let wanted = [
        (Kind::BreakerOpen, Some("cpu".to_owned())),
        (Kind::StorageFailing, Some(data)),
        (Kind::ActuatorFailing, hand),
        (Kind::CalibrationFailing, Some("emg: unfit".to_owned())),
        (Kind::EngineMismatch, Some("libhailort is 4.23.0, the driver hailo_pci 4.21.0".to_owned())),
        (Kind::SystemReturned, Some("inferd-os 2: it was not ready".to_owned())),
    ];
    assert_eq!(raised, wanted);
}

#[test]
fn errors_of_the_data_partitions_file_system_are_an_alarm_from_the_first_on() {
    let board = Board::new();
    let data = board.data().display().to_string();
    board.write("proc/self/mountinfo", &format!("30 22 179:6 / {data} rw - ext4 /dev/mmcblk0p6 rw\n"));
    board.write("sys/dev/block/179:6/uevent", "MAJOR=179\nDEVNAME=mmcblk0p6\nPARTNAME=data\n");
    let errors = |work: &Work| work.view.sample.as_ref().unwrap().disk.as_ref().unwrap().errors;
    let mut work = board.work(&board.settings());
    work.round(When::default(), Instant::now());
    assert_eq!((errors(&work), work.view.active.len()), (None, 0), "it is no ext4");
    board.write("sys/fs/ext4/mmcblk0p6/errors_count", "0\n");
    work.round(When::default(), Instant::now());
    assert_eq!((errors(&work), work.view.active.len()), (Some(0), 0));
    board.write("sys/fs/ext4/mmcblk0p6/errors_count", "3\n");
    work.round(When::default(), Instant::now());
    let [alert] = &work.view.active[..] else { panic!("{:?}", work.view.active) };
    assert_eq!((alert.alert, alert.severity, alert.value), (Kind::DiskErrors, Severity::Critical, 3.0));
    assert!(alert.sentence.contains(&data) && alert.sentence.contains("e2fsck"), "{}", alert.sentence);
}

#[test]
fn a_reading_that_panics_is_counted_and_the_next_one_is_done() {
    let board = Board::new();
    let mut work = board.work(&board.settings());
    work.rooms.service = Box::new(|| panic!("on purpose"));
    work.round(When::default(), Instant::now());
    assert_eq!((work.view.panics, work.view.sample.is_some()), (1, false));
    work.rooms.service = Box::new(Service::default);
    work.round(When::default(), Instant::now());
    assert_eq!((work.view.panics, work.view.readings, work.view.sample.is_some()), (1, 2, true));
}

#[test]
fn the_history_gets_thirty_events_an_hour_and_no_more() {
    let board = Board::new();
    let mut work = board.work(&Settings { consecutive: 1, ..board.settings() });
    let told = Arc::new(AtomicU64::new(0));
    let count = told.clone();
    work.rooms.history = Box::new(move |_| {
        count.fetch_add(1, Relaxed);
    });
    let start = Instant::now();
    for i in 0..100 {
        board.memory(if i % 2 == 0 { 90 } else { 10 });
        work.round(When::default(), start + Duration::from_secs(i));
    }
    assert_eq!((told.load(Relaxed), work.view.history_dropped), (30, 70));
    for i in 0..100 {
        board.memory(if i % 2 == 0 { 90 } else { 10 });
        work.round(When::default(), start + Duration::from_secs(3700 + i));
    }
    assert_eq!(told.load(Relaxed), 60);
}

#[test]
fn writes_over_the_budget_are_an_alarm() {
    let board = Board::new();
    board.write("proc/self/io", "write_bytes: 99\n");
    let mut work = board.work(&Settings { daily_write: 100, ..board.settings() });
    work.round(When::default(), Instant::now());
    assert!(work.view.active.is_empty());
    board.write("proc/self/io", "write_bytes: 101\n");
    for _ in 0..2 {
        work.round(When::default(), Instant::now());
    }
    assert!(work.view.active(Kind::WriteBudget).is_some());
    assert_eq!(work.view.sample.unwrap().wear.written_today_bytes, 101);
}

#[test]
fn the_thread_reads_beats_and_ends() {
    let board = Board::new();
    let settings = Settings { interval: Duration::from_millis(1), ..board.settings() };
    let monitor = Monitor::start(settings, Rooms::default()).unwrap();
    let view = monitor.view();
    while view.borrow().readings < 3 {
        std::thread::yield_now();
    }
    assert!(monitor.is_alive());
    assert_eq!(view.borrow().sample.as_ref().unwrap().when.uptime_ms, 12_500);
    let heart = monitor.0.heart.clone();
    drop(monitor);
    while heart.alive.load(Relaxed) {
        std::thread::yield_now();
    }
}
