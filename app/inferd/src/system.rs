//! `inferd system`: what root does with the two systems of a board (see the system room). A person installs and tries; init watches.
//!
//! `watch` runs at every start. Where no system is on trial it ends at once. On the system that is tried it waits until the daemon calls itself
//! ready to be committed for as long as the bundle asks, then commits; otherwise it says why not and has the keeper restart the board, which
//! then starts the old system. There it finds out what became of the trial, and has it tried again where that was nobody's fault.
//!
//! `serve` does for the daemon, which has the network and is not root, what `install`, `try` and `status` do for a person.

mod serve;

use crate::config::{self, Config, Loaded};
use crate::ready::{self, Ready};
use clap::{Parser, Subcommand};
use inferd_bundle::Trust;
use inferd_rollout::Serves;
use inferd_slots::FileMedium;
use inferd_system::state::{About, Ended, Phase, Reason, Start, Tries};
use inferd_system::{Backend, Facts, Folder, Places, Restart, Slot, Systems, View};
use inferd_watch::ask::{self, Answer, Argument, Ask};
use inferd_watch::history::{self, ResetReason};
use inferd_watch::state::KeeperState;
use inferd_watch::watchdog::CARDRESET;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What served when a system was last armed, in the folder.
const BEFORE: &str = "before.json";
/// The longest that a model's trial, which passes by itself, puts that off.
const MODELS: Duration = Duration::from_secs(604_800);
/// How long the keeper's word about this boot is waited for.
const KEEPER: Duration = Duration::from_secs(60);
/// How often the daemon is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Installs, tries, commits and shows the systems of this board; for root.
#[derive(Debug, Parser)]
#[command(
    name = "inferd system",
    version,
    after_help = "Exit codes: 0 done, 1 not done, 2 wrong arguments or configuration."
)]
struct Cli {
    /// The daemon's configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it is kept what was begun; only root may write there
    #[arg(long, value_name = "DIR", default_value = "/data/keeper")]
    folder: PathBuf,
    /// The keeper's directory that does not outlive a reset
    #[arg(long, value_name = "DIR", default_value = "/run/inferd/keeper")]
    run: PathBuf,
    /// Look at the board below this directory instead of /
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show which system runs, what is staged or on trial, and the last verdicts, as JSON
    Status,
    /// Write a bundle of a system into the slot that is not chosen
    Install {
        /// The bundle; - for standard input
        file: PathBuf,
    },
    /// Restart the board to try what was installed
    Try,
    /// Install, try and show systems for the daemon, which is not root, until killed; for init
    Serve(serve::Serve),
    /// Look after a trial; for init
    Watch {
        /// How long a new system has to become ready, beside the time that it has to stay so
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        grace: u64,
        /// How long it has to stay ready, instead of what its bundle says
        #[arg(long, value_name = "SECONDS")]
        hold: Option<u64>,
    },
}

/// The program in this role.
pub fn main() -> ExitCode {
    // The second argument is the role.
    let cli = Cli::parse_from(std::env::args_os().enumerate().filter(|(n, _)| *n != 1).map(|(_, arg)| arg));
    let arguments = config::Arguments { file: cli.config.clone(), ..config::Arguments::default() };
    // One that cannot be used keeps nobody from coming back from a try; the daemon says what is wrong with it.
    let loaded = Loaded::of_process(&arguments).or_else(|error| {
        tell(format_args!("the configuration cannot be used: {error}"));
        Loaded::from_layers(&config::Arguments::default(), BTreeMap::new(), None)
    });
    let config = match loaded {
        Ok(loaded) => loaded.config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(crate::EXIT_USAGE);
        }
    };
    let desk = Desk { places: Places::below(&cli.root), cli, config };
    match desk.act() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tell(format_args!("{} ({})", why.sentence, why.code));
            ExitCode::FAILURE
        }
    }
}

/// Says it in the kernel's log, where the script puts this program's standard error: each write is a line of its own there.
fn tell(line: impl std::fmt::Display) {
    // Nobody is left to tell when that fails.
    let _ = io::stderr().write_all(format!("<4>inferd system: {line}\n").as_bytes());
}

fn because(code: &str, sentence: impl std::fmt::Display) -> Reason {
    Reason::new(code, sentence)
}

/// What the keeper is told when a system is given up. It takes no more than [`ask::MAX_MESSAGE`], and the daemon's words may be in it.
fn farewell(why: &Reason) -> String {
    format!("the new system does not stay: {}", why.sentence)
}

/// Whether nothing but a model's trial is against a commit.
fn waits_for_a_model(said: &Ready) -> bool {
    !said.reasons.is_empty() && said.reasons.iter().all(|reason| reason.ends_with(inferd_rollout::ON_TRIAL))
}

/// What a restart for a try says to the firmware.
fn argument(restart: Restart) -> Result<Option<Argument>, Reason> {
    match restart {
        Restart::Plain => Ok(None),
        Restart::Argument(words) => Argument::of(words)
            .map(Some)
            .ok_or_else(|| because("boot-backend", format!("no restart says {words:?} to a firmware"))),
    }
}

/// Which daemon it is: its process, and how many the keeper has started.
type Who = (Option<u32>, Option<u64>);

/// For how long the same daemon has been ready without a break.
#[derive(Debug, Default)]
struct Held {
    since: Option<Duration>,
    who: Option<Who>,
}

impl Held {
    /// What it said at a moment; `None` when it is not ready.
    fn look(&mut self, now: Duration, who: Who, ready: bool) -> Option<Duration> {
        // Another one: it ended in between, however soon the next one was ready.
        if self.who.replace(who).is_some_and(|before| before != who) || !ready {
            self.since = None;
        }
        ready.then(|| now.saturating_sub(*self.since.get_or_insert(now)))
    }
}

/// How long a new system may take.
#[derive(Debug)]
struct Patience {
    whole: Duration,
    spent: Duration,
    looked: Duration,
}

impl Patience {
    fn new(whole: Duration) -> Self {
        Self { whole, spent: Duration::ZERO, looked: Duration::ZERO }
    }

    /// Whether it is over at this look. What passed since the one before is not counted while a model is waited for.
    fn is_over(&mut self, now: Duration, waits_for_a_model: bool) -> bool {
        let passed = now.saturating_sub(std::mem::replace(&mut self.looked, now));
        if !waits_for_a_model || now >= MODELS {
            self.spent += passed;
        }
        self.spent >= self.whole
    }
}

struct Desk {
    cli: Cli,
    config: Config,
    places: Places,
}

impl Desk {
    fn act(&self) -> Result<(), Reason> {
        match &self.cli.verb {
            Verb::Status => self.status(),
            Verb::Install { file } => {
                let _alone = self.alone()?;
                self.install(file)
            }
            Verb::Try => {
                let _alone = self.alone()?;
                self.try_it(&mut self.open(self.keeper()?.boot)?)
            }
            Verb::Serve(how) => serve::serve(self, how),
            Verb::Watch { grace, hold } => {
                let span = |seconds: u64| Duration::from_secs(seconds);
                self.watch(span(*grace), hold.map(span)).inspect_err(|_| self.away_from_a_trial())
            }
        }
    }

    /// Keeps everybody else from changing anything for as long as it lives: one slot is written by one, and one record.
    fn alone(&self) -> Result<Flock<File>, Reason> {
        let folder = &self.cli.folder;
        let nowhere = || format!("{} is not there: nothing outlives a restart here", folder.display());
        let open = File::open(folder).map_err(|_| because("medium-failed", nowhere()))?;
        Flock::lock(open, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _)| because("busy", "another `inferd system` is at work, or a trial is watched"))
    }

    /// Whether the boot loader says that this system was started to be tried. It may be chosen by now.
    fn tried(&self) -> bool {
        self.places.tried()
    }

    fn keeper(&self) -> Result<KeeperState, Reason> {
        let file = self.cli.run.join("state.json");
        let state = KeeperState::read(&file);
        state.ok_or_else(|| because("no-keeper", format!("{}: there is no word of a keeper", file.display())))
    }

    fn backend(&self) -> Result<(String, Box<dyn Backend>), Reason> {
        let unknown = |e| because("boot-backend", e);
        let board = self.places.board().map_err(unknown)?;
        let backend = self.places.backend(&board, true).map_err(unknown)?;
        Ok((board.name, backend))
    }

    fn open(&self, boot: u64) -> Result<Systems<FileMedium>, Reason> {
        let (_, backend) = self.backend()?;
        backend.preflight().map_err(|refused| because(refused.code, &refused))?;
        let parts = self.places.parts().map_err(|e| because("boot-backend", e))?;
        Systems::open(backend, parts, Box::new(Folder(self.cli.folder.clone())), boot)
    }

    /// Whom the device believes: the image's roots, then the documents that the daemon has accepted since. Each was signed by the one before.
    fn trust(&self) -> Result<Option<Trust>, Reason> {
        let c = &self.config.updates;
        let roots: Vec<PathBuf> = c.roots.iter().filter(|root| root.exists()).cloned().collect();
        inferd_rollout::believed(&roots, &c.data_dir.join("trust"), c.allow_dev, &mut |why| tell(why))
            .map_err(|e| because("no-root", e))
    }

    fn status(&self) -> Result<(), Reason> {
        let view = View::of(&self.places);
        let state = match self.open(0) {
            Ok(systems) => json!(systems.state()),
            Err(_) => json!(null),
        };
        crate::say(&format!("{}\n", json!({ "system": view, "state": state })));
        Ok(())
    }

    fn install(&self, file: &Path) -> Result<(), Reason> {
        let unreadable = |e: io::Error| because("truncated", format!("{}: {e}", file.display()));
        let mut from: Box<dyn Read> = if file == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(file).map_err(unreadable)?)
        };
        let about = self.install_from(&mut *from, &mut |_| {})?;
        crate::say(&format!(
            "{} {} ({}) is staged: `inferd system try` restarts the board with it\n",
            about.product, about.version, about.label
        ));
        Ok(())
    }

    /// Writes a bundle into the slot that is not chosen; `admitted` is told when it was judged.
    fn install_from(&self, from: &mut dyn Read, admitted: &mut dyn FnMut(Slot)) -> Result<About, Reason> {
        let (board, backend) = self.backend()?;
        backend.preflight().map_err(|refused| because(refused.code, &refused))?;
        // What cannot be tried is not worth the system that lies there.
        self.can_try(&*backend)?;
        let trust = self.trust()?;
        let image = self.places.image();
        let facts = Facts {
            trust: trust.as_ref(),
            board: &board,
            version: env!("CARGO_PKG_VERSION"),
            image: image.as_ref(),
        };
        self.open(0)?.install_telling(from, &facts, admitted)
    }

    /// Whether this version can have a board with such a backend try a system.
    fn can_try(&self, backend: &dyn Backend) -> Result<(), Reason> {
        if argument(backend.restart())?.is_some() && !self.places.passes_arguments_on() {
            let why = "its kernel does not pass what a restart says on to the firmware, as Raspberry Pi's own kernel does: write an image with that one to the medium";
            return Err(because("boot-backend", format!("{}: {why}", backend.name())));
        }
        Ok(())
    }

    /// Arms, and has the keeper restart the board.
    fn try_it(&self, systems: &mut Systems<FileMedium>) -> Result<(), Reason> {
        let (_, backend) = self.backend()?;
        self.can_try(&*backend)?;
        self.keep_what_serves(systems)?;
        let restart = argument(systems.arm(self.trust()?.as_ref())?);
        // Armed, it would be tried at any later start.
        restart.and_then(|argument| self.restart("a new system is tried", argument)).inspect_err(|_| {
            if let Err(why) = systems.disarm() {
                tell(format_args!("the try cannot be taken back: {}", why.sentence));
            }
        })
    }

    /// Keeps what serves and on what, as the daemon says: the system that is tried is held against it.
    fn keep_what_serves(&self, systems: &Systems<FileMedium>) -> Result<(), Reason> {
        let file = self.cli.folder.join(BEFORE);
        let told = self.config.updates.run_dir.as_ref().and_then(|run| ready::read(&run.join(ready::SERVES)));
        let failed = |e: io::Error| because("medium-failed", format!("{}: {e}", file.display()));
        let told: Serves = match (told, &systems.state().phase) {
            (Some(told), _) => told,
            // Tried again right after the start: what was said before the first try holds.
            (None, Phase::Staged { tries, .. }) if *tries != Tries::default() => return Ok(()),
            (None, _) => Serves::default(),
        };
        ready::put(&file, &told).map_err(failed)
    }

    fn restart(&self, why: &str, argument: Option<Argument>) -> Result<(), Reason> {
        let order = Ask::Reboot { why: why.to_owned(), argument };
        let answer = ask::ask_at(&self.cli.run.join("ask"), &order);
        match answer.map_err(|e| because("no-keeper", e))? {
            Answer::Done => Ok(()),
            Answer::Refused { why } => Err(because("no-keeper", why)),
        }
    }

    /// A system on trial that cannot even be watched does not stay. What becomes of it then is found out by the old one.
    fn away_from_a_trial(&self) {
        // Where the choice cannot be read, what the boot loader said of this start counts.
        let now = self.backend().ok().and_then(|(_, backend)| backend.now().ok());
        if self.tried()
            && now.is_none_or(|now| now.runs != now.chosen)
            && let Err(why) = self.restart("a system on trial cannot be watched", None)
        {
            tell(format_args!("the board is not restarted: {}", why.sentence));
        }
    }

    fn watch(&self, grace: Duration, hold: Option<Duration>) -> Result<(), Reason> {
        // Most boards, most of the time: nobody is waited for.
        if !self.tried() && !self.cli.folder.join("system.json").exists() {
            return Ok(());
        }
        let end = Instant::now() + KEEPER;
        let _alone = loop {
            match self.alone() {
                Ok(alone) => break alone,
                Err(why) if Instant::now() >= end => return Err(why),
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        let keeper = loop {
            match self.keeper() {
                Ok(keeper) => break keeper,
                Err(why) if Instant::now() >= end => return Err(why),
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        let mut systems = self.open(keeper.boot)?;
        if let Some((said, mounted)) = self.places.strayed() {
            let why =
                format!("the root filesystem of {said} cannot be mounted; its kernel runs that of {mounted}");
            tell(&why);
            systems.blame(because("no-rootfs", &why))?;
            return self.restart(&why, None);
        }
        let by_watchdog = keeper.boot_status.is_some_and(|status| status & CARDRESET != 0);
        let ended = match keeper.reset.reason {
            ResetReason::Power | ResetReason::Unknown => Ended::Power,
            ResetReason::Request if by_watchdog => Ended::Overdue,
            ResetReason::Request => Ended::Request,
            ResetReason::Panic | ResetReason::Oom => Ended::Panic,
            ResetReason::Watchdog => Ended::Watchdog,
        };
        match systems.start(ended)? {
            Start::Watch => return self.look_after(&mut systems, grace, hold),
            Start::Unasked => {
                return Err(because("no-trial", "this system is tried, and nobody knows of a trial"));
            }
            Start::Nothing => {}
            Start::Committed => tell("the new system was committed before this start"),
            Start::Again(why) | Start::Returned(why) => {
                tell(format_args!("the old system is back: {} ({})", why.sentence, why.code));
            }
            // It is left running: it can be reached, and another one can be installed.
            Start::Alone(why) => {
                tell(format_args!("{}; install a system again ({})", why.sentence, why.code))
            }
        }
        // Also when the power went before the board was restarted for the next try.
        match systems.state().phase {
            Phase::Staged { tries, .. } if tries != Tries::default() => self.try_it(&mut systems),
            _ => Ok(()),
        }
    }

    /// On the system that is tried.
    fn look_after(
        &self,
        systems: &mut Systems<FileMedium>,
        grace: Duration,
        hold: Option<Duration>,
    ) -> Result<(), Reason> {
        let Phase::Trial { about, .. } = systems.state().phase.clone() else { return Ok(()) };
        tell(format_args!("{} {} is on trial", about.product, about.version));
        let before: Serves = ready::read(&self.cli.folder.join(BEFORE)).unwrap_or_default();
        ready::put(&self.cli.run.join(ready::TRIAL), &before).map_err(|e| because("no-keeper", e))?;
        let hold = hold.unwrap_or(Duration::from_secs(about.hold_s.into()));
        let mut patience = Patience::new(hold + grace);
        let (mut held, mut last) = (Held::default(), "the daemon has said nothing".to_owned());
        let begin = Instant::now();
        let why = loop {
            let keeper = self.keeper().ok();
            if let Some(mode) = keeper.as_ref().and_then(|keeper| keeper.safe_mode.as_ref()) {
                break because("safe-mode", format!("the daemon runs in safe mode: {mode}"));
            }
            let said = match self.said() {
                Ok(said) => said,
                Err(why) => break why,
            };
            let who = (said.as_ref().map(|said| said.pid), keeper.map(|keeper| keeper.starts));
            let now = begin.elapsed();
            let over = patience.is_over(now, said.as_ref().is_some_and(waits_for_a_model));
            // By when it said so, not by when that was read: its word counts for a while, and one that hangs has no time.
            let uptime = history::uptime();
            let at = said.as_ref().map_or(uptime, |said| uptime.min(Duration::from_millis(said.uptime_ms)));
            let judged = ready::judge(said, uptime);
            if held.look(at, who, judged.is_ok()).is_some_and(|held| held >= hold) {
                systems.commit()?;
                tell(format_args!("{} {} is committed", about.product, about.version));
                let _ = fs::remove_file(self.cli.run.join(ready::TRIAL));
                return Ok(());
            }
            if let Err(reason) = judged {
                last = reason;
            }
            if over {
                let within = (hold + grace).as_secs();
                break because(
                    "not-ready",
                    format!("it was not ready for {} s within {within} s: {last}", hold.as_secs()),
                );
            }
            std::thread::sleep(LOOK);
        };
        let farewell = farewell(&why);
        tell(&farewell);
        systems.give_up(why)?;
        self.restart(&farewell, None)
    }

    /// What the daemon says of itself.
    fn said(&self) -> Result<Option<Ready>, Reason> {
        let unset = "updates.run_dir is not set: the daemon cannot say that it is ready";
        let folder = self.config.updates.run_dir.as_ref().ok_or_else(|| because("not-ready", unset))?;
        Ok(Ready::read(&folder.join(ready::FILE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Who = (Some(7), Some(1));

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_keeper_takes_what_a_system_says_of_its_end_whatever_its_daemon_said() {
        for words in ["model x does not serve; ", "\"", "\u{1}", "\n", "ä", "\u{2028}"] {
            let why = because("not-ready", format!("it was not ready: {}", words.repeat(64 << 10)));
            let order = Ask::Reboot { why: farewell(&why), argument: Some(Argument::Tryboot) };
            let message = serde_json::to_vec(&order).unwrap();
            assert!(message.len() <= ask::MAX_MESSAGE, "{words:?}: {} bytes", message.len());
        }
    }

    #[test]
    fn what_is_ready_again_after_a_break_begins_anew() {
        let mut held = Held::default();
        assert_eq!(held.look(s(5), ONE, false), None);
        assert_eq!(held.look(s(6), ONE, true), Some(s(0)));
        assert_eq!(held.look(s(30), ONE, true), Some(s(24)));
        assert_eq!(held.look(s(31), ONE, false), None, "a reason in the middle");
        assert_eq!(held.look(s(32), ONE, true), Some(s(0)));
        assert_eq!(held.look(s(62), ONE, true), Some(s(30)));
    }

    #[test]
    fn the_time_that_a_models_trial_takes_is_not_counted_however_long_the_looks_take_and_a_week_is_the_end() {
        let mut patience = Patience::new(s(610));
        let mut now = Duration::ZERO;
        while now < s(604_000) {
            now += Duration::from_millis(1_002);
            assert!(!patience.is_over(now, true), "{now:?}");
        }
        assert!(!patience.is_over(now + s(609), false));
        assert!(patience.is_over(now + s(610), false), "its own time counts");
        let mut patience = Patience::new(s(610));
        assert!(!patience.is_over(MODELS - s(1), true));
        assert!(!patience.is_over(MODELS + s(608), true));
        assert!(patience.is_over(MODELS + s(609), true), "a model that never comes to its end");
    }

    #[test]
    fn another_daemon_begins_anew_though_it_was_ready_at_every_look() {
        for other in [(Some(8), Some(1)), (Some(7), Some(2)), (Some(8), Some(2)), (Some(7), None)] {
            let mut held = Held::default();
            assert_eq!(held.look(s(0), ONE, true), Some(s(0)));
            assert_eq!(held.look(s(29), ONE, true), Some(s(29)));
            assert_eq!(held.look(s(30), other, true), Some(s(0)), "{other:?}");
            assert_eq!(held.look(s(31), other, true), Some(s(1)), "{other:?}");
        }
    }
}
