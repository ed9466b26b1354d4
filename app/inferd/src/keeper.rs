//! `inferd keeper`: the watch room's keeper, put together from the command line and the configuration.
//!
//! A configuration that cannot be used does not keep the keeper from its work: the settings of the watchdog have defaults, and the
//! daemon that it starts says what is wrong.

use crate::config::{self, Loaded};
use crate::release::Release;
use clap::Parser;
use inferd_watch::keeper::{self, Identity, Log, Settings, board::Restart, judge::Limits};
use nix::unistd::{Gid, User, getgrouplist};
use std::{
    ffi::{CString, OsString},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tracing_subscriber::fmt::time::Uptime;

/// The keeper's directory that need not outlive a reset, on an image of ours.
const RUN: &str = "/run/inferd/keeper";
/// What the daemon takes to end beside the requests in flight.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);

/// Starts the daemon, feeds the hardware watchdog while the daemon proves progress, and keeps evidence.
#[derive(Debug, Parser)]
#[command(
    name = "inferd keeper",
    version,
    after_help = "Exit codes: 0 ended as asked, 1 could not go on, 2 wrong arguments."
)]
struct Cli {
    /// The daemon's configuration file, from which the keeper has its [watchdog]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its directory that need not outlive a reset
    #[arg(long, value_name = "DIR", default_value = RUN)]
    run: PathBuf,
    /// Its directory that outlives a reset; without it nothing is remembered
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Whom the daemon runs as; only root may say so
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The daemon's control group, a directory below /sys/fs/cgroup
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Write to standard error instead of the kernel's log
    #[arg(long)]
    stderr: bool,
    /// Run this program with `reboot`, `force` or `panic` instead of doing that to the board
    #[arg(long, value_name = "FILE")]
    restart_with: Option<PathBuf>,
    /// Start this program instead of the daemon
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where the kernel leaves what it says at its end
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/pstore")]
    pstore: PathBuf,
    /// Let watchdog tests be asked for [default: in an image made with --dev]
    #[arg(long)]
    allow_tests: bool,
}

/// `inferd restart`: init becomes this when it has ended everything (`::restart:` of inittab).
pub fn restart() -> ExitCode {
    eprintln!("inferd restart: {}", keeper::board::restart_last(Path::new(RUN)));
    ExitCode::FAILURE
}

/// The program in this role.
pub fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_timer(Uptime::default())
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // The second argument is the role.
    let cli = Cli::parse_from(std::env::args_os().enumerate().filter(|(n, _)| *n != 1).map(|(_, arg)| arg));
    let settings = match settings(cli) {
        Ok(settings) => settings,
        Err(why) => {
            tracing::error!("{why}");
            return ExitCode::from(crate::EXIT_USAGE);
        }
    };
    match keeper::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn settings(cli: Cli) -> Result<Settings, String> {
    let mut remarks = Vec::new();
    let defaults = config::Arguments { file: cli.config.clone(), ..config::Arguments::default() };
    let loaded = Loaded::of_process(&defaults).or_else(|error| {
        remarks.push(format!("the configuration cannot be used, the watchdog has its defaults: {error}"));
        Loaded::from_layers(&config::Arguments::default(), std::collections::BTreeMap::new(), None)
    });
    let config = loaded.map_err(|error| error.to_string())?.config;
    let limits = Limits {
        start: config.watchdog.start,
        progress: config.watchdog.progress,
        drain: config.server.drain_timeout + DRAIN_MARGIN,
        ..Limits::default()
    };
    let program = match cli.program {
        Some(program) => program,
        None => std::env::current_exe().map_err(|error| format!("the path of this program: {error}"))?,
    };
    let arguments: Vec<OsString> =
        cli.config.iter().flat_map(|file| ["--config".into(), file.clone().into_os_string()]).collect();
    let user = cli.user.as_deref().map(identity).transpose()?;
    Ok(Settings {
        device: config.watchdog.device,
        timeout_s: config.watchdog.timeout_s,
        limits,
        run: cli.run,
        data: cli.data,
        pstore: cli.pstore,
        program,
        arguments,
        user,
        group: cli.cgroup,
        log: if cli.stderr { Log::StandardError } else { Log::Kernel },
        tests_allowed: cli.allow_tests || Release::of_this_system().is_dev,
        restart: cli.restart_with.map_or(Restart::Board, Restart::Program),
        remarks,
    })
}

/// The user of this name, with its groups.
fn identity(name: &str) -> Result<Identity, String> {
    let wrong = |errno| format!("the user {name}: {errno}");
    let user = User::from_name(name).map_err(wrong)?.ok_or_else(|| format!("there is no user {name}"))?;
    let of = CString::new(name).map_err(|e| format!("the user {name:?}: {e}"))?;
    let groups = getgrouplist(&of, user.gid).map_err(wrong)?;
    let others = groups.into_iter().filter(|&group| group != user.gid).map(Gid::as_raw).collect();
    Ok(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups: others })
}
