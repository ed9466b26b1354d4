//! `inferd system`: what root does with the two systems of a board (see the system room). A person installs and tries; init watches.
//!
//! `watch` runs at every start. Where no system is on trial it ends at once. On the system that is tried it waits until the daemon calls itself
//! ready to be committed for as long as the bundle asks, then commits; otherwise it says why not and has the keeper restart the board, which
//! then starts the old system. There it finds out what became of the trial, and has it tried again where that was nobody's fault.

use crate::config::{self, Config, Loaded};
use crate::ready::{self, Ready};
use clap::{Parser, Subcommand};
use inferd_bundle::Trust;
use inferd_slots::FileMedium;
use inferd_system::state::{Ended, Phase, Reason, Start};
use inferd_system::{Backend, Facts, Folder, Places, Restart, Systems, View};
use inferd_watch::ask::{self, Answer, Ask};
use inferd_watch::history::{self, ResetReason};
use inferd_watch::state::KeeperState;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a new system has to become ready, beside the time that it has to stay so.
const GRACE: Duration = Duration::from_secs(600);
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
    /// Look after a trial; for init
    Watch,
}

/// The program in this role.
pub fn main() -> ExitCode {
    // The second argument is the role.
    let cli = Cli::parse_from(std::env::args_os().enumerate().filter(|(n, _)| *n != 1).map(|(_, arg)| arg));
    let arguments = config::Arguments { file: cli.config.clone(), ..config::Arguments::default() };
    // One that cannot be used keeps nobody from coming back from a try; the daemon says what is wrong with it.
    let loaded = Loaded::of_process(&arguments).or_else(|error| {
        eprintln!("<4>inferd system: the configuration cannot be used: {error}");
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
            eprintln!("<4>inferd system: {} ({})", why.sentence, why.code);
            ExitCode::FAILURE
        }
    }
}

fn because(code: &str, sentence: impl std::fmt::Display) -> Reason {
    Reason { code: code.to_owned(), sentence: sentence.to_string() }
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
            Verb::Install { file } => self.install(file),
            Verb::Try => self.try_it(&mut self.open(self.keeper()?.boot)?),
            Verb::Watch => self.watch().inspect_err(|_| self.away_from_a_trial()),
        }
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
        if !self.cli.folder.is_dir() {
            let folder = self.cli.folder.display();
            return Err(because(
                "medium-failed",
                format!("{folder} is not there: nothing outlives a restart here"),
            ));
        }
        Systems::open(backend, parts, Box::new(Folder(self.cli.folder.clone())), boot)
    }

    /// Whom the device believes: the image's roots, then the documents that the daemon has accepted since. Each was signed by the one before.
    fn trust(&self) -> Result<Option<Trust>, Reason> {
        let c = &self.config.updates;
        let roots: Vec<PathBuf> = c.roots.iter().filter(|root| root.exists()).cloned().collect();
        inferd_rollout::believed(&roots, &c.data_dir.join("trust"), c.allow_dev, &mut |why| {
            eprintln!("<4>inferd system: {why}")
        })
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
        let (board, _) = self.backend()?;
        let trust = self.trust()?;
        let facts = Facts { trust: trust.as_ref(), board: &board, version: env!("CARGO_PKG_VERSION") };
        let about = self.open(0)?.install(&mut from, &facts)?;
        crate::say(&format!(
            "{} {} ({}) is staged: `inferd system try` restarts the board with it\n",
            about.product, about.version, about.label
        ));
        Ok(())
    }

    /// Arms, and has the keeper restart the board.
    fn try_it(&self, systems: &mut Systems<FileMedium>) -> Result<(), Reason> {
        let (_, backend) = self.backend()?;
        if backend.restart() != Restart::Plain {
            let why = "this version does not restart a board as its firmware asks for a try";
            return Err(because("boot-backend", format!("{}: {why}", backend.name())));
        }
        let init = fs::read_to_string(self.cli.root.join("proc/1/comm")).unwrap_or_default();
        if init.trim() == "systemd" {
            return Err(because(
                "boot-backend",
                "an image with systemd has nobody who would watch the trial",
            ));
        }
        systems.arm(self.trust()?.as_ref())?;
        self.restart("a new system is tried")
    }

    fn restart(&self, why: &str) -> Result<(), Reason> {
        let answer = ask::ask_at(&self.cli.run.join("ask"), &Ask::Reboot { why: why.to_owned() });
        match answer.map_err(|e| because("no-keeper", e))? {
            Answer::Done => Ok(()),
            Answer::Refused { why } => Err(because("no-keeper", why)),
        }
    }

    /// A system on trial that cannot even be watched does not stay. What becomes of it then is found out by the old one.
    fn away_from_a_trial(&self) {
        let on_trial = self
            .backend()
            .is_ok_and(|(_, backend)| backend.now().is_ok_and(|now| now.on_trial && now.runs != now.chosen));
        if on_trial && let Err(why) = self.restart("a system on trial cannot be watched") {
            eprintln!("<4>inferd system: the board is not restarted: {}", why.sentence);
        }
    }

    fn watch(&self) -> Result<(), Reason> {
        // Most boards, most of the time: nobody is waited for.
        if !self.cli.folder.join("system.json").exists() {
            return Ok(());
        }
        let end = Instant::now() + KEEPER;
        let keeper = loop {
            match self.keeper() {
                Ok(keeper) => break keeper,
                Err(why) if Instant::now() >= end => return Err(why),
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        let mut systems = self.open(keeper.boot)?;
        let ended = match keeper.reset.reason {
            ResetReason::Power | ResetReason::Unknown => Ended::Power,
            ResetReason::Request => Ended::Request,
            ResetReason::Panic | ResetReason::Oom => Ended::Panic,
            ResetReason::Watchdog => Ended::Watchdog,
        };
        match systems.start(ended)? {
            Start::Watch => return self.look_after(&mut systems),
            Start::Nothing => {}
            Start::Committed => eprintln!("<4>inferd system: the new system was committed before this start"),
            Start::Again(why) | Start::Returned(why) => {
                eprintln!("<4>inferd system: the old system is back: {} ({})", why.sentence, why.code);
            }
        }
        // Also when the power went before the board was restarted for the next try.
        match systems.state().phase {
            Phase::Staged { tries, .. } if tries != inferd_system::state::Tries::default() => {
                self.try_it(&mut systems)
            }
            _ => Ok(()),
        }
    }

    /// On the system that is tried.
    fn look_after(&self, systems: &mut Systems<FileMedium>) -> Result<(), Reason> {
        let Phase::Trial { about, .. } = systems.state().phase.clone() else { return Ok(()) };
        eprintln!("<4>inferd system: {} {} is on trial", about.product, about.version);
        fs::write(self.cli.run.join(ready::TRIAL), b"").map_err(|e| because("no-keeper", e))?;
        let hold = Duration::from_secs(about.hold_s.into());
        let deadline = Instant::now() + hold + GRACE;
        let (mut since, mut last) = (None, "the daemon has said nothing".to_owned());
        let why = loop {
            if let Some(mode) = self.keeper().ok().and_then(|keeper| keeper.safe_mode) {
                break because("safe-mode", format!("the daemon runs in safe mode: {mode}"));
            }
            match self.ready() {
                Ok(()) => {
                    if since.get_or_insert_with(Instant::now).elapsed() >= hold {
                        systems.commit()?;
                        eprintln!("<4>inferd system: {} {} is committed", about.product, about.version);
                        let _ = fs::remove_file(self.cli.run.join(ready::TRIAL));
                        return Ok(());
                    }
                }
                Err(reason) => (since, last) = (None, reason),
            }
            if Instant::now() >= deadline {
                let within = (hold + GRACE).as_secs();
                break because(
                    "not-ready",
                    format!("it was not ready for {} s within {within} s: {last}", hold.as_secs()),
                );
            }
            std::thread::sleep(LOOK);
        };
        eprintln!("<4>inferd system: the new system does not stay: {}", why.sentence);
        let told = why.sentence.clone();
        systems.give_up(why)?;
        self.restart(&format!("the new system does not stay: {told}"))
    }

    /// Whether the daemon calls itself ready, and is there.
    fn ready(&self) -> Result<(), String> {
        let folder = self
            .config
            .updates
            .run_dir
            .as_ref()
            .ok_or("updates.run_dir is not set: the daemon cannot say that it is ready")?;
        ready::judge(Ready::read(&folder.join(ready::FILE)), history::uptime())
    }
}
