//! The loop.

use super::board::{Accelerator, Restart};
use super::child::{self, Daemon, End, Recipe};
use super::feeder::{self, Feeder};
use super::judge::{Action, Event, Hang, Judge, State, Then};
use super::sockets::{Asks, Connection, Notifications, Said, refuse};
use super::starts;
use super::words::Words;
use super::{Log, Settings};
use crate::ask::{self, Answer, Argument, Ask, WatchdogTest};
use crate::history::{self, History, Kind, ResetReason};
use crate::journal;
use crate::loops::{BootRecord, Ends, Telling};
use crate::reason::{self, Found, Intent, Places};
use crate::state::{self, KeeperState, Reset};
use crate::store::Writer;
use crate::watchdog;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the evidence of the boot before is waited for: a medium that is slower is done without.
const LOOK: Duration = Duration::from_secs(30);
/// How long a note is waited for before the hardware is fed no more.
const LAST_WORD: Duration = Duration::from_secs(3);
/// How long the daemon has to pass on the answer to an order that ends it.
const PASS_ON: Duration = Duration::from_secs(1);
/// How long evidence is waited for before the board goes down.
const GOING_DOWN: Duration = Duration::from_secs(10);
/// Lines passed on in one turn: a serial console takes 80 ms for one.
const LINES_A_TURN: usize = 16;
/// Lines that may wait to be passed on before no more are read from the daemon.
const LINES_WAITING: usize = 256;
/// Bytes that a pipe holds.
const PIPE: usize = 64 * 1024;
/// The mark in the keeper's directory that has the next start forget what was configured and installed.
const FACTORY_RESET: &str = "factory-reset";

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Something that it cannot do without.
    #[error("the keeper cannot go on without {what}: {why}")]
    Without {
        /// What.
        what: String,
        /// The system's reason.
        why: io::Error,
    },
    /// The ones before it ended too often.
    #[error("{}; the watchdog is fed no more and resets the board", too_often())]
    TooOften,
}

fn too_often() -> String {
    let minutes = starts::WITHIN.as_secs() / 60;
    format!("the keeper was started more than {} times within {minutes} minutes", starts::STARTS)
}

fn without(what: impl Into<String>) -> impl FnOnce(io::Error) -> KeeperError {
    move |why| KeeperError::Without { what: what.into(), why }
}

/// Keeps the daemon until it is told to end (`SIGTERM`, `SIGINT`).
///
/// # Errors
/// [`KeeperError`]; the watchdog, where it was opened, runs on and resets the board unless another keeper comes.
pub fn run(mut settings: Settings) -> Result<(), KeeperError> {
    let gid = settings.user.as_ref().map(|user| user.gid);
    folder(&settings.run, gid).map_err(without(settings.run.display().to_string()))?;
    let systemd = feeder::systemd();
    if systemd.is_none() && settings.restart == Restart::Board {
        feed_what_is_armed(&mut settings);
    }
    count_start(&settings, systemd.is_some())?;
    // The hardware next: from here on a hang is noticed.
    let mut feeder = Feeder::new(&settings, systemd);
    let signals = signals().map_err(without("signals"))?;
    let notify = settings.run.join("notify");
    let asking = settings.run.join("ask");
    let notifications = Notifications::bind(&notify, gid).map_err(without(notify.display().to_string()))?;
    let asks = Asks::bind(&asking, gid).map_err(without(asking.display().to_string()))?;
    // An earlier keeper's successor finds its process id here, and so does whoever shuts the system down.
    fs::write(settings.run.join("pid"), format!("{}\n", std::process::id()))
        .map_err(without(settings.run.display().to_string()))?;
    let writer = Writer::start();
    let found = found(&settings, &mut feeder, &writer);
    let mut keeper = Keeper::new(settings, feeder, (notifications, asks), writer, found);
    keeper.adopt();
    keeper.turn(&signals)
}

/// A watchdog that somebody has armed and that nobody feeds resets the board, at every start anew: then the device that is configured
/// cannot be what was meant.
fn feed_what_is_armed(settings: &mut Settings) {
    let class = Path::new(watchdog::CLASS);
    if let Some(device) = watchdog::armed_instead(class, settings.device.as_deref()) {
        let path = device.display();
        settings
            .remarks
            .push(format!("watchdog.device names none that is there; {path} is armed, so it is fed"));
        settings.device = Some(device);
    }
}

/// Counts this start. Where there are too many the watchdog is not even opened, which would feed it; where there is none that could
/// reset the board there is nothing else to do than to go on.
fn count_start(settings: &Settings, by_systemd: bool) -> Result<(), KeeperError> {
    let resets = !by_systemd && settings.device.as_ref().is_some_and(|device| device.exists());
    if !resets {
        return Ok(());
    }
    let what = settings.run.display().to_string();
    if !starts::too_many(&settings.run, history::uptime()).map_err(without(what))? {
        return Ok(());
    }
    // Whatever hangs here is reset.
    let places = places(settings);
    let Found { record, lasting, .. } = reason::look(&places, None);
    let history = History::open(places.history().filter(|_| lasting), record.boot, Writer::start());
    history.add(history::Event::new(Kind::LetGo, too_often()));
    history.flush(LAST_WORD);
    Err(KeeperError::TooOften)
}

/// Blocks the signals that the loop reads. Threads that start later inherit that; the daemon does not.
fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// A directory that root writes and this group reads.
fn folder(path: &Path, gid: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o750).recursive(true).create(path)?;
    match gid {
        Some(gid) => chown(path, None, Some(gid)),
        None => Ok(()),
    }
}

/// Finds out about the boot before and opens the history, feeding meanwhile: the medium may be slow.
fn found(settings: &Settings, feeder: &mut Feeder, writer: &Arc<Writer>) -> (Found, History) {
    let gid = settings.user.as_ref().map(|user| user.gid);
    let places = places(settings);
    let boot_status = feeder.boot_status;
    let (tell, told) = mpsc::channel();
    let of_looker = Arc::clone(writer);
    let looker = std::thread::Builder::new().name("evidence".into()).spawn(move || {
        if let Some(data) = &places.data
            && let Err(error) = folder(data, gid)
        {
            tracing::warn!(%error, "nothing outlives a reset");
        }
        let found = reason::look(&places, boot_status);
        let path = places.history().filter(|_| found.lasting);
        let history = History::open(path, found.record.boot, of_looker);
        // Whoever waited may have given up.
        let _ = tell.send((found, history));
    });
    let end = Instant::now() + LOOK;
    while looker.is_ok() && Instant::now() < end {
        match told.recv_timeout(Duration::from_millis(100)) {
            Ok(found) => return found,
            Err(mpsc::RecvTimeoutError::Timeout) => feeder.feed_if_due(true),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let sentence = format!("what happened before could not be read within {} s", LOOK.as_secs());
    let record = BootRecord::default();
    let history = History::open(None, record.boot, Arc::clone(writer));
    let reset = Reset { reason: ResetReason::Unknown, sentence };
    (Found { record, reset, words: None, again: false, lasting: false }, history)
}

fn places(settings: &Settings) -> Places {
    Places {
        data: settings.data.clone(),
        pstore: settings.pstore.clone(),
        boot_id: "/proc/sys/kernel/random/boot_id".into(),
    }
}

struct Keeper {
    settings: Settings,
    feeder: Feeder,
    notifications: Notifications,
    asks: Asks,
    writer: Arc<Writer>,
    history: History,
    record: BootRecord,
    reset: Reset,
    lasting: bool,
    starts: u64,
    ends: Ends,
    telling: Telling,
    began: Instant,
    judge: Judge,
    daemon: Option<Daemon>,
    started: Duration,
    words: Words,
    waiting: VecDeque<String>,
    log: Option<File>,
    /// Lines end in the journal, where the daemon puts its own.
    journal: bool,
    busy: Arc<AtomicBool>,
    shown: Option<KeeperState>,
    /// What the restart that was asked for last says to the firmware.
    argument: Option<Argument>,
    told_to_end: bool,
    done: bool,
}

impl Keeper {
    fn new(
        settings: Settings,
        feeder: Feeder,
        (notifications, asks): (Notifications, Asks),
        writer: Arc<Writer>,
        (found, history): (Found, History),
    ) -> Self {
        let log = match settings.log {
            Log::Kernel => OpenOptions::new().write(true).open("/dev/kmsg").ok(),
            Log::StandardError => None,
        };
        let journal = settings.log == Log::StandardError && journal::is_standard_error();
        let judge = Judge::new(settings.limits, Duration::ZERO);
        let mut keeper = Self {
            settings,
            feeder,
            notifications,
            asks,
            writer,
            history,
            record: found.record,
            reset: found.reset,
            lasting: found.lasting,
            starts: 0,
            ends: Ends::default(),
            telling: Telling::default(),
            began: Instant::now(),
            judge,
            daemon: None,
            started: Duration::ZERO,
            words: Words::new(journal),
            waiting: VecDeque::new(),
            log,
            journal,
            busy: Arc::default(),
            shown: None,
            argument: None,
            told_to_end: false,
            done: false,
        };
        keeper.begin(found.again, found.words);
        keeper
    }

    /// Tells why the board, or this keeper, was started.
    fn begin(&mut self, again: bool, words: Option<reason::Words>) {
        if again {
            // What the keeper before knew of this boot is in the file that it left.
            let file = self.settings.run.join("state.json");
            let left = fs::read_to_string(&file)
                .ok()
                .and_then(|text| serde_json::from_str::<KeeperState>(&text).ok());
            if let Some(left) = left {
                self.reset = left.reset;
                self.starts = left.starts;
            }
            self.say("the keeper was started again; the one before it ended without being asked to, or was");
            self.remember(history::Event::new(Kind::Keeper, "the keeper ended and was started again"));
        } else {
            let Reset { reason, sentence } = self.reset.clone();
            let name = reason.name();
            self.say(&format!("boot {}: {name}: {sentence}", self.record.boot));
            let mut detail = json!({"reason": reason, "boot_status": self.feeder.boot_status});
            if let Some(words) = &words {
                detail["words_of"] = json!(words.of);
            }
            let lines = words.map(|words| words.lines).unwrap_or_default();
            self.remember(history::Event::new(Kind::Boot, sentence).with(detail).saying(lines));
            self.write_record();
        }
        let settings = self.settings.remarks.clone();
        let remarks = self.feeder.state.iter().flat_map(|state| state.remarks.clone());
        for remark in settings.into_iter().chain(remarks).chain(self.feeder.trouble.clone()) {
            self.say(&remark);
        }
        if let Some(state) = &self.feeder.state {
            let line = format!(
                "{} ({}) resets the board after {} s without food",
                state.device, state.identity, state.accepted_s
            );
            self.say(&line);
        }
        if let (Some(reason), false) = (self.record.safe_mode.clone(), again) {
            self.tell_safe_mode(&reason);
        }
        self.judge.set_hardware(self.feeder.there());
        self.show();
    }

    /// Ends a daemon that a keeper before this one left behind: one that is there twice would answer twice.
    fn adopt(&mut self) {
        let Some(group) = self.settings.group.clone() else { return };
        let end = Instant::now() + 2 * self.settings.limits.drain;
        let killing = Instant::now() + self.settings.limits.drain;
        let left = child::in_group(&group);
        if left.is_empty() {
            return;
        }
        self.say("ending the daemon that the keeper before this one has left");
        for pid in left {
            // One that is gone needs none.
            let _ = kill(pid, Signal::SIGTERM);
        }
        while Instant::now() < end {
            let left = child::in_group(&group);
            if left.is_empty() {
                return;
            }
            if Instant::now() >= killing {
                for pid in left {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            self.feeder.feed_if_due(true);
            std::thread::sleep(Duration::from_millis(50));
        }
        self.say("a daemon of before cannot be ended");
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn turn(&mut self, signals: &SignalFd) -> Result<(), KeeperError> {
        while !self.done {
            self.wait(signals).map_err(without("poll"))?;
            self.hear_signals(signals);
            self.hear_daemon();
            self.pass_on();
            self.hear_end();
            self.hear_questions();
            while let Some(action) = self.judge.tick(self.now()) {
                self.act(action);
            }
            if self.feeder.open_if_due() {
                self.tell_watchdog();
            }
            self.feeder.feed_if_due(self.judge.feeds());
            self.show();
        }
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&self, signals: &SignalFd) -> io::Result<()> {
        let mut left = self.feeder.next();
        if let Some(at) = self.judge.deadline() {
            left = left.min(at.saturating_sub(self.now()));
        }
        if !self.waiting.is_empty() {
            left = Duration::ZERO;
        }
        if !self.judge.feeds() {
            left = left.max(Duration::from_millis(200));
        }
        let mut fds: Vec<PollFd<'_>> = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.notifications.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.asks.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.asks.waiting().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let log = self.daemon.as_ref().and_then(|daemon| daemon.log.as_ref());
        if let Some(log) = log.filter(|_| self.waiting.len() < LINES_WAITING) {
            fds.push(PollFd::new(log.as_fd(), PollFlags::POLLIN));
        }
        // Rounded up: a moment that is not over yet would be asked for again and again.
        let millis = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(if left.is_zero() { 0 } else { millis })) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn hear_signals(&mut self, signals: &SignalFd) {
        while let Ok(Some(info)) = signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGTERM | Signal::SIGINT) => {
                    if !self.told_to_end {
                        self.say("told to end: the daemon ends first");
                    }
                    self.told_to_end = true;
                    if !matches!(self.judge.state(), State::GoingDown { .. }) {
                        self.mark_intent("the system was asked to go down");
                    }
                    self.event(Event::Stop(Then::End));
                }
                Some(Signal::SIGHUP) => {
                    if let Some(daemon) = &self.daemon {
                        daemon.signal(Signal::SIGHUP);
                    }
                }
                _ => {}
            }
        }
    }

    fn hear_daemon(&mut self) {
        let pid = self.daemon.as_ref().map(Daemon::pid);
        for said in self.notifications.read(pid) {
            match said {
                Said::Ready => {
                    self.event(Event::Ready);
                    if let Some(systemd) = &self.feeder.systemd {
                        systemd.ready();
                    }
                }
                Said::Progress => self.event(Event::Progress),
                Said::Stopping => self.event(Event::Stopping),
                Said::Healthy => self.healthy(),
                Said::Status(status) => {
                    if let Some(systemd) = &self.feeder.systemd {
                        systemd.status(&status);
                    }
                }
            }
        }
    }

    fn healthy(&mut self) {
        self.event(Event::Healthy);
        self.ends.forgive();
        starts::forgive(&self.settings.run);
        // Health without models says nothing about them.
        if self.record.safe_mode.is_none() && !self.record.healthy {
            self.record.healthy = true;
            self.record.bad_boots = 0;
            self.write_record();
        }
    }

    /// Reads the daemon's log and passes some of it on.
    fn pass_on(&mut self) {
        if self.waiting.len() < LINES_WAITING
            && let Some(daemon) = &mut self.daemon
        {
            let mut buffer = [0; 4096];
            if let Some(bytes) = daemon.read(&mut buffer) {
                self.waiting.extend(self.words.take(bytes));
            }
        }
        for _ in 0..LINES_A_TURN {
            let Some(line) = self.waiting.pop_front() else { break };
            self.write_line(&line);
        }
    }

    fn hear_end(&mut self) {
        let Some(end) = self.daemon.as_mut().and_then(Daemon::ended) else { return };
        // What it said last is still in the pipe.
        if let Some(mut daemon) = self.daemon.take() {
            let mut buffer = [0; 4096];
            for _ in 0..PIPE / buffer.len() {
                let Some(bytes) = daemon.read(&mut buffer) else { break };
                self.waiting.extend(self.words.take(bytes));
            }
            self.waiting.extend(self.words.finish());
        }
        let words = self.words.last();
        let on_purpose = match self.judge.state() {
            State::Draining { asked: Some(_), .. } => true,
            State::Draining { asked: None, killed: false, .. } => end.code == Some(0),
            _ => false,
        };
        if !on_purpose {
            self.ended(end, words);
        }
        self.event(Event::Ended);
        if let State::Waiting { until } = self.judge.state() {
            let pause = until.saturating_sub(self.now()).as_secs_f64();
            self.say(&format!("the daemon {}; it is started again in {pause:.1} s", end.sentence()));
        }
    }

    /// The daemon ended and nobody had asked it to.
    fn ended(&mut self, end: End, words: Vec<String>) {
        let ran = self.now().saturating_sub(self.started);
        let sentence = format!("the daemon {} after {:.1} s", end.sentence(), ran.as_secs_f64());
        let detail = json!({"code": end.code, "signal": end.signal, "oom": end.oom, "start": self.starts});
        self.count_end(history::Event::new(Kind::DaemonEnd, sentence).with(detail).saying(words));
    }

    fn count_end(&mut self, mut event: history::Event) {
        if let Some(left_out) = self.telling.ended(self.now()) {
            if left_out > 0 {
                event.sentence += &format!("; {left_out} ends before this one are not listed");
            }
            self.remember(event);
        }
        if let Some(reason) = self.ends.ended(self.now())
            && self.record.safe_mode.is_none()
        {
            self.record.safe_mode = Some(reason.clone());
            self.tell_safe_mode(&reason);
            self.write_record();
        }
    }

    fn tell_safe_mode(&mut self, reason: &str) {
        self.say(&format!("safe mode: {reason}"));
        let sentence = format!("safe mode begins: {reason}");
        self.remember(history::Event::new(Kind::SafeMode, sentence).with(json!({"begins": true})));
    }

    fn tell_watchdog(&mut self) {
        self.judge.set_hardware(self.feeder.there());
        let line = match (&self.feeder.state, &self.feeder.trouble) {
            (_, Some(trouble)) => trouble.clone(),
            (Some(state), None) => {
                let remarks: String = state.remarks.iter().map(|remark| format!("; {remark}")).collect();
                format!("{} has come: {} s{remarks}", state.device, state.accepted_s)
            }
            (None, None) => return,
        };
        self.say(&line);
    }

    fn hear_questions(&mut self) {
        let pid = self.daemon.as_ref().map(Daemon::pid);
        for (question, connection) in self.asks.read(self.now(), pid) {
            self.answer(question, connection);
        }
    }

    fn answer(&mut self, question: Ask, connection: Connection) {
        match question {
            Ask::Reboot { why, argument: None } => {
                connection.answer(&Answer::Done);
                self.reboot(&why, None);
            }
            Ask::Reboot { why, argument } => {
                // Who asks for it counts on it.
                if !self.settings.restart.takes_arguments() {
                    connection
                        .answer(&refuse("init cannot be asked here to restart the board with an argument"));
                } else if self.told_to_end
                    || matches!(self.judge.state(), State::GoingDown { .. } | State::LetGo { .. })
                {
                    connection.answer(&refuse("the board goes down already"));
                } else {
                    connection.answer(&Answer::Done);
                    self.reboot(&why, argument);
                }
            }
            Ask::LeaveSafeMode { why } => {
                if self.record.safe_mode.take().is_none() {
                    connection.answer(&refuse("the daemon does not run in safe mode"));
                    return;
                }
                connection.answer(&Answer::Done);
                self.record.bad_boots = 0;
                self.write_record();
                self.ends.forgive();
                self.say(&format!("safe mode ends: {why}"));
                let sentence = format!("safe mode ends: {why}");
                self.remember(history::Event::new(Kind::SafeMode, sentence).with(json!({"begins": false})));
                self.event(Event::Stop(Then::Restart));
            }
            Ask::FactoryReset { why, everything } => match self.mark_factory_reset(everything) {
                Ok(()) => {
                    connection.answer(&Answer::Done);
                    self.reboot(&format!("factory reset: {why}"), None);
                }
                Err(error) => connection.answer(&refuse(&format!("nothing is forgotten: {error}"))),
            },
            Ask::Rebind { device, driver } => {
                self.aside(connection, device, move |device| device.rebind(&driver));
            }
            Ask::Rescan { device } => self.aside(connection, device, |device| device.rescan()),
            Ask::WatchdogTest { what } => self.test(what, connection),
        }
    }

    /// Restarts the board, guarded by the watchdog.
    fn reboot(&mut self, why: &str, argument: Option<Argument>) {
        self.argument = argument;
        self.say(&format!("restarting the board: {why}"));
        self.remember(history::Event::new(Kind::Request, format!("restart of the board: {why}")));
        self.mark_intent(why);
        self.event(Event::Stop(Then::Reboot));
    }

    /// Waits for the medium, unlike everything else here: nothing may be answered before the mark is there, and none may come later. One that
    /// takes too long costs a reset by the watchdog, and a restart is what was asked for.
    fn mark_factory_reset(&self, everything: bool) -> io::Result<()> {
        match self.settings.data.as_ref().filter(|_| self.lasting) {
            // The boot script reads it.
            Some(data) => {
                let what: &[u8] = if everything { b"everything\n" } else { b"1\n" };
                inferd_slots::replace(&data.join(FACTORY_RESET), what)
            }
            None => Err(io::Error::other("nothing outlives a restart here")),
        }
    }

    /// Does something to a device in a thread of its own: drivers may hang. One at a time.
    fn aside(
        &mut self,
        connection: Connection,
        device: String,
        act: impl FnOnce(&Accelerator) -> Result<(), String> + Send + 'static,
    ) {
        if self.busy.swap(true, Ordering::SeqCst) {
            connection.answer(&refuse("another device is being worked on"));
            return;
        }
        let busy = Arc::clone(&self.busy);
        let work = move || {
            let outcome = Accelerator::named(Path::new("/sys"), &device).and_then(|device| act(&device));
            busy.store(false, Ordering::SeqCst);
            connection.answer(&outcome.map_or_else(|why| refuse(&why), |()| Answer::Done));
        };
        if let Err(error) = std::thread::Builder::new().name("device".into()).spawn(work) {
            self.busy.store(false, Ordering::SeqCst);
            self.say(&format!("a device cannot be worked on: {error}"));
        }
    }

    fn test(&mut self, what: WatchdogTest, connection: Connection) {
        if !self.settings.tests_allowed {
            connection.answer(&refuse("watchdog tests are for images made with --dev"));
            return;
        }
        if !self.feeder.there() && what != WatchdogTest::Panic {
            connection.answer(&refuse("there is no watchdog"));
            return;
        }
        let name = match what {
            WatchdogTest::Hardware => "the hardware is fed no more",
            WatchdogTest::Daemon => "the daemon is stopped",
            WatchdogTest::Panic => "the kernel panics",
        };
        connection.answer(&Answer::Done);
        self.say(&format!("watchdog test: {name}"));
        self.remember(history::Event::new(Kind::Request, format!("watchdog test: {name}")));
        self.history.flush(LAST_WORD);
        // The daemon still has to pass the answer on; after this it may never again.
        std::thread::sleep(PASS_ON);
        match what {
            WatchdogTest::Hardware => self.event(Event::LetGo),
            WatchdogTest::Daemon => {
                if let Some(daemon) = &self.daemon {
                    daemon.signal(Signal::SIGSTOP);
                }
            }
            WatchdogTest::Panic => {
                if let Err(error) = self.settings.restart.panic() {
                    self.say(&format!("the kernel does not panic: {error}"));
                }
            }
        }
    }

    fn event(&mut self, event: Event) {
        if let Some(action) = self.judge.event(self.now(), event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start => self.start(),
            Action::Terminate => self.send(Signal::SIGTERM),
            Action::Kill => {
                self.say("the daemon does not end; it is killed");
                self.send(Signal::SIGKILL);
            }
            Action::KillHung(why) => {
                self.say(&format!("{}; there is no watchdog, so it is killed", self.hang(why)));
                self.send(Signal::SIGKILL);
            }
            Action::LetGo(why) => self.let_go(why),
            Action::Reboot => {
                self.flush(GOING_DOWN);
                if let Err(error) = self.settings.restart.ask_init(&self.settings.run, self.argument) {
                    self.say(&format!("init cannot be asked to restart the board: {error}"));
                }
            }
            Action::Force => {
                self.say("the watchdog has not reset the board; it is restarted without it");
                if let Err(error) = self.settings.restart.force() {
                    self.say(&format!("the board cannot be restarted: {error}"));
                }
            }
            Action::Exit => {
                self.flush(GOING_DOWN);
                // The last time: what comes after this keeper has the whole timeout.
                self.feeder.feed();
                self.say("ended");
                self.done = true;
            }
        }
    }

    fn send(&self, signal: Signal) {
        if let Some(daemon) = &self.daemon {
            daemon.signal(signal);
        }
    }

    fn start(&mut self) {
        self.starts += 1;
        self.started = self.now();
        let mut arguments = self.settings.arguments.clone();
        if let Some(reason) = &self.record.safe_mode {
            arguments.extend(["--safe-mode".into(), reason.into()]);
        }
        let micros = self.settings.limits.progress.as_micros().to_string();
        let mut environment = vec![
            ("NOTIFY_SOCKET", self.settings.run.join("notify").into()),
            ("WATCHDOG_USEC", micros.into()),
            (ask::SOCKET_VARIABLE, self.settings.run.join("ask").into()),
        ];
        if self.journal {
            environment.push((journal::VARIABLE, journal::JOURNAL.into()));
        }
        let recipe = Recipe {
            program: self.settings.program.clone(),
            arguments,
            environment,
            user: self.settings.user.clone(),
            group: self.settings.group.clone(),
        };
        // Before it starts: it reads why.
        self.show();
        match Daemon::start(&recipe) {
            Ok(daemon) => {
                // For root's other doors: engine hosts have the daemon's user, too.
                let file = self.settings.run.join(state::DAEMON);
                if let Err(error) = inferd_slots::replace(&file, format!("{}\n", daemon.pid()).as_bytes()) {
                    self.say(&format!("{}: {error}; nobody installs systems for the daemon", file.display()));
                }
                self.daemon = Some(daemon);
            }
            Err(error) => {
                let sentence = format!("the daemon cannot be started: {error}");
                self.say(&sentence);
                self.count_end(history::Event::new(Kind::DaemonEnd, sentence));
                self.event(Event::Ended);
            }
        }
    }

    /// In words what hangs.
    fn hang(&self, why: Hang) -> String {
        let limits = self.settings.limits;
        match why {
            Hang::Start => format!("the daemon was not ready within {} s", limits.start.as_secs()),
            Hang::Progress => format!("the daemon proved no progress for {} s", limits.progress.as_secs()),
            Hang::Drain => format!("the daemon did not end within {} s", limits.drain.as_secs()),
            Hang::GoingDown => format!("the system did not go down within {} s", limits.going_down.as_secs()),
            Hang::Test => "a watchdog test".to_owned(),
        }
    }

    /// Leaves word, then lets the hardware reset the board.
    fn let_go(&mut self, why: Hang) {
        let sentence = self.hang(why);
        self.say(&format!("{sentence}; the watchdog is fed no more and resets the board"));
        let detail = json!({"ran_ms": millis(self.now().saturating_sub(self.started)), "start": self.starts});
        let words = self.words.so_far();
        self.remember(history::Event::new(Kind::LetGo, sentence).with(detail).saying(words));
        // A medium that hangs must not keep the board: the hardware has not been fed since.
        if !self.history.flush(LAST_WORD) {
            self.say("the last words could not be written");
        }
    }

    fn remember(&self, event: history::Event) {
        self.history.add(event);
    }

    fn mark_intent(&self, why: &str) {
        let intent = Intent { boot_id: self.record.boot_id.clone(), why: why.to_owned() };
        if let (Some(path), Ok(bytes)) =
            (places(&self.settings).intent().filter(|_| self.lasting), serde_json::to_vec(&intent))
        {
            self.writer.put(&path, bytes);
        }
    }

    fn write_record(&self) {
        let path = places(&self.settings).boot_record().filter(|_| self.lasting);
        if let (Some(path), Ok(bytes)) = (path, serde_json::to_vec(&self.record)) {
            self.writer.put(&path, bytes);
        }
    }

    /// Waits for evidence to be written, feeding meanwhile.
    fn flush(&mut self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut written = self.history.flush(Duration::from_millis(500));
        while !written && self.lasting && Instant::now() < end {
            // Whatever the state: the patience is what bounds it.
            self.feeder.feed_if_due(true);
            written = self.writer.flush(Duration::from_millis(500));
        }
        if !written && self.lasting {
            self.say("not all evidence could be written");
        }
    }

    /// Leaves in a file what the daemon reads, when it has changed.
    fn show(&mut self) {
        let mut remarks = self.settings.remarks.clone();
        remarks.extend(self.feeder.trouble.iter().chain(&self.feeder.unfed).cloned());
        remarks.extend(self.writer.written().trouble);
        let state = KeeperState {
            boot: self.record.boot,
            reset: self.reset.clone(),
            watchdog: self.feeder.state.clone(),
            boot_status: self.feeder.boot_status,
            starts: self.starts,
            unhealthy_boots: self.record.unhealthy_boots(),
            safe_mode: self.record.safe_mode.clone(),
            lasting: self.lasting,
            remarks,
        };
        if self.shown.as_ref() == Some(&state) {
            return;
        }
        let file = self.settings.run.join(Path::new(state::FILE).file_name().unwrap_or_default());
        let bytes = serde_json::to_vec(&state).unwrap_or_default();
        match inferd_slots::replace(&file, &bytes) {
            Ok(()) => self.shown = Some(state),
            Err(error) => tracing::warn!(%error, "the daemon is not told what the keeper knows"),
        }
    }

    fn say(&self, line: &str) {
        self.write_line(&format!("<4>keeper: {line}"));
    }

    fn write_line(&self, line: &str) {
        // One that nobody can read is lost; there is nowhere else to say so.
        let _ = match &self.log {
            Some(kernel) => (&mut &*kernel).write_all(line.as_bytes()),
            None => writeln!(io::stderr().lock(), "{line}"),
        };
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
