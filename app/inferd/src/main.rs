//! The daemon: reads the configuration, opens the listeners, loads the models, and ends in order.
//!
//! This room puts the others together and has no logic of its own. `inferd engine-host` is the same program in another
//! role: the process that owns one engine (see the hosts room). So is `inferd keeper`: the process that starts the daemon and feeds
//! the watchdog (see the watch room); and `inferd system`: what root does with the two systems of a board (see the system room). As
//! `inferd restart` it is the last process of a board whose restart says something to the firmware.

#![forbid(unsafe_code)]

mod alive;
mod announce;
mod config;
mod daemon;
mod keeper;
mod ladder;
mod listen;
mod logging;
mod models;
mod owner;
mod panel;
mod provision;
mod ready;
mod records;
mod release;
mod system;
mod tls;
mod updates;
mod ways;

use clap::Parser;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Instant};

/// Counts what each worker of an engine host holds.
#[global_allocator]
static ALLOCATOR: inferd_hosts::CountingAllocator = inferd_hosts::CountingAllocator;

/// Wrong arguments or configuration.
pub const EXIT_USAGE: u8 = 2;

/// Serves models to the network from one process, each in an engine host of its own.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ended as asked, 1 could not go on, 2 wrong arguments or configuration."
)]
struct Cli {
    /// Configuration file; must exist when named [default: /etc/inferd/inferd.toml where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A model directory, or a directory of such; may be given several times
    #[arg(long, value_name = "DIR")]
    models: Vec<PathBuf>,
    /// Where to listen; may be given several times
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Take signed bundles into two slots that are files in this directory; its root.imr says whose
    #[arg(long, value_name = "DIR")]
    updates_dir: Option<PathBuf>,
    /// Print the effective configuration as TOML, with the source of each value, and end
    #[arg(long, conflicts_with = "check")]
    print_config: bool,
    /// Print every setting with its variable, default and meaning, as a table, and end
    #[arg(long, conflicts_with_all = ["check", "print_config"])]
    reference: bool,
    /// Load no models, neither the slots' nor the directories', and say why: for whoever restarts a daemon that keeps ending
    #[arg(long, value_name = "REASON")]
    safe_mode: Option<String>,
    /// Check the configuration and the manifests of all models, and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    // Before anything else: an engine host must not inherit threads, handlers or a runtime.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "engine-host") {
        return inferd_hosts::engine_host_main();
    }
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "keeper") {
        return keeper::main();
    }
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "provision") {
        return provision::main();
    }
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "system") {
        return system::main();
    }
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "restart") {
        return keeper::restart();
    }
    let started = Instant::now();
    let cli = Cli::parse();
    if cli.reference {
        say(&config::reference());
        return ExitCode::SUCCESS;
    }
    let arguments = config::Arguments {
        file: cli.config,
        models: cli.models,
        listen: cli.listen,
        updates: cli.updates_dir,
    };
    let loaded = match config::Loaded::of_process(&arguments) {
        Ok(loaded) => loaded,
        Err(e) => {
            eprintln!("{e}");
            if let Some(file) =
                arguments.file.as_deref().filter(|file| cli.check && provision::for_a_card(file))
            {
                eprintln!("{}", on_a_card(file));
            }
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if cli.print_config {
        say(&loaded.to_toml());
        return ExitCode::SUCCESS;
    }
    if cli.check {
        return check(&loaded);
    }
    let (log, levels) = logging::start(&loaded.config.logging);
    let version = env!("CARGO_PKG_VERSION");
    let file = loaded.file.as_ref().map_or_else(|| "none".to_owned(), |p| p.display().to_string());
    tracing::info!(version, file, "inferd starts");
    for note in &loaded.notes {
        tracing::warn!("configuration: {note}");
    }
    let outcome = daemon::run(&loaded, started, levels, cli.safe_mode.as_deref());
    if let Err(e) = &outcome {
        tracing::error!("{e}");
    }
    log.flush();
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints to standard output; a reader that left (`| head`) is no reason to complain.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Where somebody asks of a file what a start on this machine would find, and it is meant for a card.
fn on_a_card(file: &std::path::Path) -> String {
    let name = file.display();
    format!(
        "this is what a start on this machine would find; `inferd provision --check {name}` judges a file for a card"
    )
}

/// Says what a start with this configuration would find.
fn check(loaded: &config::Loaded) -> ExitCode {
    let found = models::find(&loaded.config.models.dirs);
    let mut problems = found.problems;
    problems.extend(loaded.file.iter().flat_map(|file| provision::own_sections(file)));
    problems.extend(tls::check(&loaded.config).err().map(|e| e.to_string()));
    let mut notes = loaded.notes.clone();
    // No problem: the models that could run there run on their next engine.
    notes.extend(loaded.config.hosts.not_there());
    for said in listen::check(&loaded.config) {
        match said {
            listen::Said::Nothing => {}
            listen::Said::Note(note) => notes.push(note),
            listen::Said::Problem(problem) => problems.push(problem),
        }
    }
    for dir in &found.models {
        match models::manifest(dir) {
            Ok(manifest) => {
                say(&format!("model {} {} in {}\n", manifest.name, manifest.version, dir.display()))
            }
            Err(problem) => problems.push(problem),
        }
    }
    // The boot script asks of one that was judged so already.
    if let Some(file) =
        loaded.file.as_deref().filter(|file| !problems.is_empty() && provision::for_a_card(file))
    {
        notes.push(on_a_card(file));
    }
    for note in &notes {
        say(&format!("note: {note}\n"));
    }
    for problem in &problems {
        say(&format!("problem: {problem}\n"));
    }
    say(&format!("configuration {}\n", loaded.sha256));
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) }
}
