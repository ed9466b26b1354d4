//! The ladder of a lost device ([`inferd_hosts::Ladder`]) on this board: devices are found in sysfs, the keeper does what only root may,
//! and restarts of the board are counted in a small file.
//!
//! | engine | its device |
//! |---|---|
//! | `hailo` | the first PCI device of Hailo (vendor 0x1e60); its driver, or the one it had, or `hailo` |
//! | others | none: a processor is no device that could be lost, and a Jetson's GPU is part of it |
//!
//! A device that was seen stays known: one that fell off its bus is the one that needs a restart of the board.
//!
//! **24 hours** are hours in which the board runs, so no clock matters. For each restart [`FILE`] in the data directory has the time
//! that is known to have run since: of this boot all of it, of earlier ones what was noted, once an hour. What was not noted makes a
//! restart younger than it is and the cap stricter. A damaged file counts as if all restarts had just been made. A restart is noted
//! before it is asked for, and the note is taken back only where it is certain that there is none.
//!
//! Without a keeper (plain Linux) every step is refused with that reason.

use inferd_api::Keeper;
use inferd_hosts::{Device, Ladder, MAX_REBOOTS};
use inferd_model::EngineKind;
use inferd_slots::frame;
use inferd_watch::{
    ask::{self, Answer, Ask, AskError},
    history,
    state::KeeperState,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tracing::warn;

/// The file of the restarts.
const FILE: &str = "restarts.json";
/// The name of its only line's value.
const NAME: &str = "restarts";
/// The longest one that is read; ours has less than 200 bytes.
const MAX_BYTES: u64 = 4096;
/// How long a restart counts, in seconds of running.
const DAY_S: u64 = 24 * 3600;
/// How often the running time is noted while a restart counts.
const NOTE_EVERY: Duration = Duration::from_secs(3600);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How the devices of an engine are known on the PCI bus.
struct Known {
    vendor: &'static str,
    /// What its makers call the driver.
    driver: &'static str,
}

fn known(engine: EngineKind) -> Option<Known> {
    match engine {
        EngineKind::Hailo => Some(Known { vendor: "0x1e60", driver: "hailo" }),
        EngineKind::Cpu | EngineKind::Ort | EngineKind::Tensorrt => None,
    }
}

/// The ladder over the keeper.
#[derive(Debug)]
pub struct Board {
    keeper: Keeper,
    sysfs: PathBuf,
    file: PathBuf,
    /// The devices as they were last seen.
    seen: Mutex<BTreeMap<EngineKind, Device>>,
    /// One reader and writer of the file at a time.
    noting: Mutex<()>,
}

impl Board {
    /// With what the data directory says of earlier restarts.
    pub fn new(keeper: Keeper, data: &Path) -> Arc<Self> {
        Arc::new(Self::at(keeper, "/sys".into(), data))
    }

    fn at(keeper: Keeper, sysfs: PathBuf, data: &Path) -> Self {
        Self { keeper, sysfs, file: data.join(FILE), seen: Mutex::default(), noting: Mutex::default() }
    }

    /// Notes once an hour that the board has run, as long as a restart counts.
    pub async fn keep_time(self: Arc<Self>) {
        let mut hours = tokio::time::interval(NOTE_EVERY);
        hours.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            hours.tick().await;
            let board = Arc::clone(&self);
            // It only fails when it panicked, and the next hour tries again.
            let _ = tokio::task::spawn_blocking(move || board.note_time(&Moment::now())).await;
        }
    }

    fn note_time(&self, now: &Moment) {
        let _noting = lock(&self.noting);
        let restarts = self.restarts(now);
        let noted = match restarts.ages_s.is_empty() {
            true if self.file.exists() => fs::remove_file(&self.file),
            true => Ok(()),
            false => self.write(&restarts),
        };
        if let Err(error) = noted {
            warn!(%error, "a restart of the board for a lost device counts for longer than a day");
        }
    }

    /// The restarts that still count.
    fn restarts(&self, now: &Moment) -> Restarts {
        match read(&self.file) {
            Ok(Some(mut restarts)) => {
                restarts.age(now);
                restarts
            }
            Ok(None) => Restarts::at(now, Vec::new()),
            Err(error) => {
                let file = self.file.display();
                warn!(%file, %error, "how often the board was restarted is not known: it is not restarted for a device within 24 h");
                Restarts::at(now, vec![0; usize::try_from(MAX_REBOOTS).unwrap_or(usize::MAX)])
            }
        }
    }

    fn write(&self, restarts: &Restarts) -> io::Result<()> {
        inferd_slots::replace(&self.file, &frame::line(NAME, restarts))
    }

    fn reboots_at(&self, now: &Moment) -> u32 {
        let _noting = lock(&self.noting);
        u32::try_from(self.restarts(now).ages_s.len()).unwrap_or(u32::MAX)
    }

    fn reboot_at(&self, why: &str, now: &Moment) -> Result<(), String> {
        let Some(state) = KeeperState::read(&self.keeper.state) else {
            return Err("there is no keeper here that could restart the board".into());
        };
        if !state.lasting {
            return Err("nothing outlives a restart here, so it could not be counted".into());
        }
        let _noting = lock(&self.noting);
        let mut restarts = self.restarts(now);
        if restarts.ages_s.len() >= usize::try_from(MAX_REBOOTS).unwrap_or(usize::MAX) {
            return Err(format!("the board is restarted {MAX_REBOOTS} times in 24 h at most"));
        }
        restarts.ages_s.push(0);
        self.write(&restarts).map_err(|e| format!("a restart could not be counted: {e}"))?;
        let (why, begun) = match self.ask(&Ask::Reboot { why: why.to_owned(), argument: None }) {
            Ok(()) => return Ok(()),
            Err(failed) => failed,
        };
        if !begun {
            restarts.ages_s.pop();
            if let Err(error) = self.write(&restarts) {
                warn!(%error, "a restart of the board that was not made is counted");
            }
        }
        Err(why)
    }

    /// Asks the keeper; why it is not done, and whether it may have been begun all the same.
    fn ask(&self, what: &Ask) -> Result<(), (String, bool)> {
        match ask::ask_at(&self.keeper.socket, what) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Refused { why }) => Err((why, false)),
            Err(e @ AskError::Absent(_)) => Err((e.to_string(), false)),
            Err(e @ AskError::Silent(_)) => Err((e.to_string(), true)),
        }
    }
}

impl Ladder for Board {
    fn device(&self, engine: EngineKind) -> Option<Device> {
        let known = known(engine)?;
        let mut seen = lock(&self.seen);
        let before = seen.get(&engine);
        if let Some((address, driver)) = find(&self.sysfs, known.vendor) {
            let had = || before.filter(|b| b.address == address).map(|b| b.driver.clone());
            let driver = driver.or_else(had).unwrap_or_else(|| known.driver.to_owned());
            seen.insert(engine, Device { address, driver });
        }
        seen.get(&engine).cloned()
    }

    fn rebind(&self, device: &Device) -> Result<(), String> {
        let Device { address, driver } = device.clone();
        self.ask(&Ask::Rebind { device: address, driver }).map_err(|(why, _)| why)
    }

    fn rescan(&self, device: &Device) -> Result<(), String> {
        self.ask(&Ask::Rescan { device: device.address.clone() }).map_err(|(why, _)| why)
    }

    fn reboots(&self) -> u32 {
        self.reboots_at(&Moment::now())
    }

    fn reboot(&self, why: &str) -> Result<(), String> {
        self.reboot_at(why, &Moment::now())
    }
}

/// The first PCI device of this vendor, by its address, and its driver.
fn find(sysfs: &Path, vendor: &str) -> Option<(String, Option<String>)> {
    let is_theirs =
        |device: &PathBuf| fs::read_to_string(device.join("vendor")).is_ok_and(|v| v.trim() == vendor);
    let devices = fs::read_dir(sysfs.join("bus/pci/devices")).ok()?;
    let first = devices.flatten().map(|entry| entry.path()).filter(is_theirs).min()?;
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let driver = fs::read_link(first.join("driver")).ok().and_then(|link| name(&link));
    Some((name(&first)?, driver))
}

/// A moment in the life of the board, without a clock.
#[derive(Clone, Debug)]
struct Moment {
    boot_id: String,
    uptime_s: u64,
}

impl Moment {
    fn now() -> Self {
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self { boot_id, uptime_s: history::uptime().as_secs() }
    }
}

/// The restarts that count, as they stand in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Restarts {
    /// The boot in which this was written.
    boot_id: String,
    /// How long it had run then.
    uptime_s: u64,
    /// How long the board has run since each of them, at least.
    ages_s: Vec<u64>,
}

impl Restarts {
    fn at(now: &Moment, ages_s: Vec<u64>) -> Self {
        Self { boot_id: now.boot_id.clone(), uptime_s: now.uptime_s, ages_s }
    }

    /// Lets the time pass; those of more than a day ago are forgotten.
    fn age(&mut self, now: &Moment) {
        let same = self.boot_id == now.boot_id;
        let ran = if same { now.uptime_s.saturating_sub(self.uptime_s) } else { now.uptime_s };
        let aged = self.ages_s.iter().map(|age| age.saturating_add(ran)).filter(|&age| age < DAY_S);
        *self = Self::at(now, aged.collect());
    }
}

/// What the file says; `None` where there is none.
fn read(file: &Path) -> io::Result<Option<Restarts>> {
    let mut bytes = Vec::new();
    match File::open(file) {
        Ok(file) => file.take(MAX_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (mut found, damaged) = frame::parse(NAME, &bytes);
    match (found.pop(), damaged) {
        (Some(restarts), 0) => Ok(Some(restarts)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_watch::{
        history::ResetReason,
        state::{self, Reset},
    };
    use nix::sys::socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr};
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::os::unix::fs::symlink;
    use std::thread::JoinHandle;

    const HAILO: &str = "0001:01:00.0";

    /// A machine: its sysfs, its data directory, and what its keeper leaves.
    struct Machine {
        root: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let machine = Self { root: tempfile::tempdir().unwrap() };
            fs::create_dir_all(machine.path("data")).unwrap();
            machine.device("0000:00:01.0", "0x1af4", Some("virtio-pci"));
            machine
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn device(&self, address: &str, vendor: &str, driver: Option<&str>) {
            let folder = self.path("sys/bus/pci/devices").join(address);
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("vendor"), format!("{vendor}\n")).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../../bus/pci/drivers/{driver}"), folder.join("driver")).unwrap();
            }
        }

        /// The ladder, as the next daemon has it.
        fn board(&self) -> Board {
            let keeper = Keeper {
                state: self.path("state.json"),
                socket: self.path("ask"),
                history: self.path("history.jsonl"),
            };
            Board::at(keeper, self.path("sys"), &self.path("data"))
        }

        fn keeper_is_there(&self, lasting: bool) {
            let reset = Reset { reason: ResetReason::Power, sentence: "power came".into() };
            let state = state::KeeperState {
                boot: 1,
                reset,
                watchdog: None,
                boot_status: None,
                starts: 1,
                unhealthy_boots: 1,
                safe_mode: None,
                lasting,
                remarks: Vec::new(),
            };
            fs::write(self.path("state.json"), serde_json::to_vec(&state).unwrap()).unwrap();
        }

        /// A keeper that answers one question so (`None`: it hangs up); gives the question and what was in the file then.
        fn answering(&self, answer: Option<Answer>) -> JoinHandle<(Ask, Option<Restarts>)> {
            let _ = fs::remove_file(self.path("ask"));
            let flags = SockFlag::SOCK_CLOEXEC;
            let listener = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
            socket::bind(listener.as_raw_fd(), &UnixAddr::new(&self.path("ask")).unwrap()).unwrap();
            socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
            let file = self.path("data").join(FILE);
            std::thread::spawn(move || answer_one(&listener, &file, answer.as_ref()))
        }
    }

    fn answer_one(listener: &OwnedFd, file: &Path, answer: Option<&Answer>) -> (Ask, Option<Restarts>) {
        let connection = socket::accept(listener.as_raw_fd()).unwrap();
        let mut question = [0; ask::MAX_MESSAGE];
        let length = socket::recv(connection, &mut question, MsgFlags::empty()).unwrap();
        let noted = read(file).unwrap();
        if let Some(answer) = answer {
            let answer = serde_json::to_vec(answer).unwrap();
            socket::send(connection, &answer, MsgFlags::MSG_NOSIGNAL).unwrap();
        }
        nix::unistd::close(connection).unwrap();
        (serde_json::from_slice(&question[..length]).unwrap(), noted)
    }

    fn refused() -> Option<Answer> {
        Some(Answer::Refused { why: "not now".into() })
    }

    fn moment(boot: u32, hours: u64) -> Moment {
        Moment { boot_id: format!("boot {boot}"), uptime_s: hours * 3600 }
    }

    /// The board is restarted for a device at this moment, and the keeper agrees.
    fn restart(machine: &Machine, now: &Moment) {
        let keeper = machine.answering(Some(Answer::Done));
        machine.board().reboot_at("lost", now).unwrap();
        keeper.join().unwrap();
    }

    #[test]
    fn a_hailo_is_found_with_its_driver_and_no_other_engine_has_a_device() {
        let machine = Machine::new();
        let board = machine.board();
        let driver = || board.device(EngineKind::Hailo).map(|d| (d.address, d.driver));
        assert_eq!(driver(), None);
        machine.device(HAILO, "0x1e60", None);
        machine.device("0001:03:00.0", "0x1e60", Some("second"));
        assert_eq!(driver(), Some((HAILO.into(), "hailo".into())), "nobody has bound it yet");
        machine.device(HAILO, "0x1e60", Some("hailo1x"));
        let found = Some((HAILO.to_owned(), "hailo1x".to_owned()));
        assert_eq!(driver(), found);
        machine.device(HAILO, "0x1e60", None);
        assert_eq!(driver(), found, "it lost its driver");
        fs::remove_dir_all(machine.path("sys")).unwrap();
        assert_eq!(driver(), found, "it fell off its bus");
        for engine in [EngineKind::Cpu, EngineKind::Ort, EngineKind::Tensorrt] {
            assert_eq!(board.device(engine), None);
        }
    }

    #[test]
    fn the_keeper_is_asked_and_its_refusal_is_the_reason() {
        let machine = Machine::new();
        let (board, device) = (machine.board(), Device { address: HAILO.into(), driver: "hailo".into() });
        let rebind = Ask::Rebind { device: HAILO.into(), driver: "hailo".into() };
        let rescan = Ask::Rescan { device: HAILO.into() };
        for (answer, outcome) in [(Some(Answer::Done), Ok(())), (refused(), Err("not now".to_owned()))] {
            let keeper = machine.answering(answer.clone());
            assert_eq!(board.rebind(&device), outcome);
            assert_eq!(keeper.join().unwrap().0, rebind);
            let keeper = machine.answering(answer);
            assert_eq!(board.rescan(&device), outcome);
            assert_eq!(keeper.join().unwrap().0, rescan);
        }
    }

    #[test]
    fn without_a_keeper_every_step_is_refused_and_none_is_counted() {
        let machine = Machine::new();
        let (board, device) = (machine.board(), Device { address: HAILO.into(), driver: "hailo".into() });
        for outcome in [board.rebind(&device), board.rescan(&device), board.reboot("lost")] {
            assert!(outcome.unwrap_err().starts_with("there is no keeper here"));
        }
        machine.keeper_is_there(false);
        assert!(board.reboot("lost").unwrap_err().contains("nothing outlives a restart"));
        assert!(!machine.path("data").join(FILE).exists() && board.reboots() == 0);
    }

    #[test]
    fn a_restart_is_noted_before_it_is_asked_for_and_taken_back_when_there_is_none() {
        let machine = Machine::new();
        machine.keeper_is_there(true);
        let now = moment(1, 5);
        for (answer, done, counted) in
            [(refused(), false, 0), (None, false, 1), (Some(Answer::Done), true, 2)]
        {
            let keeper = machine.answering(answer);
            assert_eq!(machine.board().reboot_at("lost", &now).is_ok(), done);
            let (asked, noted) = keeper.join().unwrap();
            assert_eq!(asked, Ask::Reboot { why: "lost".into(), argument: None });
            assert_eq!(noted.unwrap().ages_s.last(), Some(&0), "asked for before it was noted");
            assert_eq!(machine.board().reboots_at(&now), counted, "silence may be a restart");
        }
        // Nobody listens any more: it would not even be asked.
        assert!(machine.board().reboot_at("lost", &now).unwrap_err().contains("2 times in 24 h at most"));
        fs::remove_dir_all(machine.path("data")).unwrap();
        assert!(machine.board().reboot_at("lost", &now).unwrap_err().contains("could not be counted"));
    }

    #[test]
    fn a_restart_counts_for_24_hours_in_which_the_board_runs_whatever_the_clock_says() {
        let machine = Machine::new();
        machine.keeper_is_there(true);
        restart(&machine, &moment(1, 5));
        restart(&machine, &moment(2, 1));
        let counted = |boot, hours| machine.board().reboots_at(&moment(boot, hours));
        // Many boots, months apart, each shorter than an hour: nothing was noted.
        for boot in 3..100 {
            assert_eq!(counted(boot, 0), 2, "boot {boot}");
        }
        assert_eq!((counted(100, 22), counted(100, 23), counted(100, 24)), (2, 1, 0), "in one boot");
        // The same in three boots of nine hours each, noted once an hour.
        for (boot, hours) in [(100, 9), (101, 9)] {
            (0..=hours).for_each(|hour| machine.board().note_time(&moment(boot, hour)));
        }
        assert_eq!((counted(102, 4), counted(102, 5), counted(102, 6)), (2, 1, 0));
        machine.board().note_time(&moment(102, 6));
        assert!(!machine.path("data").join(FILE).exists(), "nothing counts, nothing is written any more");
    }

    #[test]
    fn a_damaged_file_counts_as_if_all_restarts_had_just_been_made_and_mends_itself() {
        let machine = Machine::new();
        machine.keeper_is_there(true);
        restart(&machine, &moment(1, 0));
        let file = machine.path("data").join(FILE);
        let whole = fs::read(&file).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, damaged).unwrap();
            // A flipped line end is no damage.
            assert!(matches!(machine.board().reboots_at(&moment(1, 1)), 1 | 2), "bit {bit}");
        }
        for damaged in [&b""[..], b"{}\n", b"[1]"] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(machine.board().reboots_at(&moment(1, 1)), MAX_REBOOTS);
        }
        machine.board().note_time(&moment(1, 1));
        assert_eq!(machine.board().reboots_at(&moment(1, 24)), MAX_REBOOTS);
        assert_eq!(machine.board().reboots_at(&moment(1, 25)), 0);
    }
}
