//! The operator's tool, on a laptop or on the board.
//!
//! One module per command ([`status`], [`watch`], [`infer`], [`bench`], [`model`], [`quantize`], [`compile`], [`bundle`], [`root`],
//! [`push`], [`slots`], [`system`], [`records`], [`flash`], [`minisign`]), and below them
//! how a daemon is asked ([`client`], [`upload`], [`device`]), what is sent ([`input`], [`files`]), and how things are shown ([`show`],
//! [`meter`]) and said ([`words`]). It knows the daemon only by its wire: what it does, `curl` can do. Secret keys are read by
//! [`files`], used by the room `inferd-bundle`, and leave this machine in no request.

#![forbid(unsafe_code)]

mod alive;
mod bench;
mod bundle;
mod calibrate;
mod client;
mod compile;
mod device;
mod fail;
mod files;
mod flash;
mod infer;
mod input;
mod key;
mod meter;
mod minisign;
mod model;
mod push;
mod quantize;
mod records;
mod root;
mod secure;
mod show;
mod slots;
mod status;
mod system;
mod upload;
mod watch;
mod words;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, parser::ValueSource};
use client::{Client, ClientError};
use fail::Failure;
use input::{Metadata, Sample};
use std::{io::Read as _, path::Path, process::ExitCode, time::Duration};

/// Where a daemon on this machine listens when nobody says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:9000";
/// The largest input file that is read.
const MAX_INPUT: u64 = 256 << 20;

/// Asks an inferd what it does, gives it work, and measures it.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done; 1 asked and refused, not ready, or failed; 2 wrong arguments; 3 nobody answered; 4 a card was written to and cannot be used."
)]
struct Cli {
    /// Where the daemon is
    #[arg(long, global = true, env = "INFERD_URL", default_value = DEFAULT_URL)]
    url: String,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
    /// Seconds to wait for an answer
    #[arg(long, global = true, default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// API key, where the daemon asks for one
    #[arg(long, global = true, env = "INFERD_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    #[command(flatten)]
    known: secure::Known,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Whether it serves, and how it is doing
    Status,
    /// Look at it live: models, sources and what they see, latency, updates, alerts
    Watch(watch::Watch),
    /// Fit a model of muscle signals to the person who wears the sensor, or undo that
    Calibrate(calibrate::Calibrate),
    /// The models it serves, and those it could not load
    Models,
    /// Run one input through a model
    Infer(infer::Infer),
    /// Measure throughput, latency and CPU cost, of this or any other server; have a device choose the best of its engines
    Bench(Box<bench::Bench>),
    /// Make and check model directories; needs no daemon
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Make quantised variants of a model, measured and proven; needs no daemon
    Quantize(Box<quantize::Quantize>),
    /// Compile a model for a Hailo chip with Hailo's own compiler; needs no daemon
    Compile(compile::Compile),
    /// Make API keys and their digests; needs no daemon
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Make a key pair to sign with; needs no daemon
    Keygen(files::Keygen),
    /// Say which keys devices believe; needs no daemon
    #[command(subcommand)]
    Root(root::RootCommand),
    /// Build, show, judge, compare and sign bundles of models; needs no daemon
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    /// Write an image to a card, and read it back; needs no daemon
    Flash(Box<flash::Flash>),
    /// Sign a file, for minisign or `inferctl verify`; needs no daemon
    Sign(minisign::Sign),
    /// Check such a signature; needs no daemon
    Verify(minisign::Verify),
    /// Allow one device one older version, once
    Permit(root::PermitCommand),
    /// Send a bundle and follow its way through the gates
    Push(push::Push),
    /// Have the device fetch a bundle by itself
    Pull(slots::Pull),
    /// Say when a system that waits is tried
    #[command(subcommand)]
    System(system::SystemCommand),
    /// What lies in the two model slots, what is on trial, and the last verdicts
    Slots(slots::Slots),
    /// Go back to the models that served before
    Rollback(slots::Rollback),
    /// Send root documents, revocation lists and permits
    Trust(slots::Trust),
    /// What happened to the device, across resets, newest first
    History(alive::History),
    /// Restart the board
    Reboot(alive::Reboot),
    /// What to do about a device that runs without models because its daemon kept ending
    #[command(subcommand)]
    SafeMode(alive::SafeMode),
    /// See the watchdog work
    #[command(subcommand)]
    Watchdog(alive::Watchdog),
    /// Forget what was configured and installed, then restart
    FactoryReset(alive::FactoryReset),
    /// Show how much the device logs, or change it while it runs
    LogLevel(records::LogLevel),
    /// What the device did, as it keeps it
    #[command(subcommand)]
    Telemetry(records::TelemetryCommand),
    /// Windows the model was unsure about
    #[command(subcommand)]
    Capture(records::CaptureCommand),
}

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    // A key of the environment is for asking devices; only one that was typed is put on a card.
    let typed = matches.value_source("api_key") == Some(ValueSource::CommandLine);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    let json = cli.json;
    let command = match cli.command {
        Command::Model(command) => return model::run(command, json),
        Command::Quantize(command) => return end(command.run(json)),
        Command::Compile(command) => return end(command.run(json)),
        Command::Keygen(command) => return end(command.run(json)),
        Command::Key(command) => return end(command.run(json)),
        Command::Root(command) => return end(command.run(json)),
        Command::Bundle(command) => return end(command.run(json)),
        Command::Flash(command) => {
            let key = cli.api_key.filter(|_| typed);
            return end(command.run(key.as_deref(), json));
        }
        Command::Sign(command) => return end(command.run(json)),
        Command::Verify(command) => return end(command.run(json)),
        command => command,
    };
    // A variable that is set to nothing is one that is not set.
    let url = if cli.url.is_empty() { DEFAULT_URL } else { &cli.url };
    let host = if let Command::Push(push) = &command { push.host.as_deref().map(device) } else { None };
    let url = host.as_deref().unwrap_or(url);
    let key = cli.api_key.filter(|key| !key.is_empty());
    let outcome = Client::new(url, key, Duration::from_secs_f64(cli.timeout))
        .and_then(|client| client.knowing(&cli.known))
        .map_err(Failure::from)
        .and_then(|client| match &command {
            Command::Status => status::status(&client, json),
            Command::Watch(watch) => watch.run(&client, json),
            Command::Calibrate(calibrate) => calibrate.run(&client, json),
            Command::Models => status::models(&client, json),
            Command::Infer(infer) => infer.run(&client, json),
            Command::Bench(bench) => bench.run(&client, json),
            Command::Permit(permit) => permit.run(&client, json),
            Command::Push(push) => push.run(&client, json),
            Command::Pull(pull) => pull.run(&client, json),
            Command::System(command) => command.run(&client, json),
            Command::Slots(slots) => slots.run(&client, json),
            Command::Rollback(rollback) => rollback.run(&client, json),
            Command::Trust(trust) => trust.run(&client, json),
            Command::History(history) => history.run(&client, json),
            Command::Reboot(reboot) => reboot.run(&client, json),
            Command::SafeMode(mode) => mode.run(&client, json),
            Command::Watchdog(watchdog) => watchdog.run(&client, json),
            Command::FactoryReset(reset) => reset.run(&client, json),
            Command::LogLevel(level) => level.run(&client, json),
            Command::Telemetry(command) => command.run(&client, json),
            Command::Capture(command) => command.run(&client, json),
            Command::Model(_)
            | Command::Quantize(_)
            | Command::Compile(_)
            | Command::Keygen(_)
            | Command::Key(_)
            | Command::Root(_)
            | Command::Bundle(_)
            | Command::Flash(_)
            | Command::Sign(_)
            | Command::Verify(_) => {
                unreachable!("handled above")
            }
        });
    end(outcome)
}

/// The URL of a device that is named by its host: port 9000 unless it says another.
fn device(host: &str) -> String {
    let named = host.rsplit_once(']').map_or(host, |(_, rest)| rest).contains(':');
    if host.contains("://") || named { host.to_owned() } else { format!("{host}:9000") }
}

/// Says what went wrong, and ends with its exit code.
fn end(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                eprintln!("inferctl: {}", show::harmless(&text));
            }
            failure.exit_code()
        }
    }
}

/// Reads a file, or standard input for `-`.
fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_INPUT + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_INPUT + 1).read_to_end(&mut bytes))
    };
    match read {
        Err(e) => Err(Failure::Other(format!("{} cannot be read: {e}", path.display()))),
        Ok(n) if n as u64 > MAX_INPUT => {
            Err(Failure::Other(format!("{} is larger than {} MiB", path.display(), MAX_INPUT >> 20)))
        }
        Ok(_) => Ok(bytes),
    }
}

/// Reads a file as the numbers in it.
fn read_sample(path: &Path) -> Result<Sample, Failure> {
    let value = serde_json::from_slice(&read_input(path)?)
        .map_err(|e| input::InputError::NotJson(path.display().to_string(), e.to_string()))?;
    Ok(Sample::from_json(&value)?)
}

/// A model's tensors; an unknown name is answered with the names there are.
fn metadata(client: &Client, name: &str) -> Result<Metadata, ClientError> {
    let path = format!("/v2/models/{}", input::percent(name));
    let answer = client.get(&path)?;
    if answer.status == 404 {
        let names = model_names(client)?;
        let known = if names.is_empty() {
            "no model is served there".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        };
        return Err(ClientError::Refused(format!("no model is called {name}; {known}")));
    }
    answer.json(&path)
}

/// The models that can be asked, by name.
fn model_names(client: &Client) -> Result<Vec<String>, ClientError> {
    Ok(status::index(client)?
        .into_iter()
        .filter(|entry| entry.state == "READY")
        .map(|entry| entry.name)
        .collect())
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|s| (0.001..=3600.0).contains(s))
        .ok_or_else(|| "seconds from 0.001 to 3600 are needed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_stand_anywhere() {
        let cli =
            Cli::try_parse_from(["inferctl", "infer", "a.json", "--url", "http://x:1", "--json"]).unwrap();
        assert_eq!(cli.url, "http://x:1");
        assert!(cli.json);
        assert!(matches!(cli.command, Command::Infer(_)));
    }

    #[test]
    fn a_device_named_by_its_host_listens_on_its_usual_port() {
        let table = [
            ("collar.lan", "collar.lan:9000"),
            ("collar.lan:80", "collar.lan:80"),
            ("[::1]", "[::1]:9000"),
            ("[::1]:80", "[::1]:80"),
            ("http://collar.lan", "http://collar.lan"),
        ];
        for (host, url) in table {
            assert_eq!(device(host), url);
        }
    }

    #[test]
    fn arguments_that_contradict_each_other_are_refused() {
        let table: &[&[&str]] = &[
            &["bench", "-n", "5", "-d", "5"],
            &["bench", "-c", "0"],
            &["bench", "--engines", "all", "--constraint", "p95_ms<=5"],
            &["bench", "--constraint", "p95_ms<5"],
            &["bench", "--engines", "all", "--replay", "x"],
            &["bench", "--engines", "all", "a.json"],
            &["bench", "a.json", "--body", "b.bin"],
            &["bench", "--header", "nothing"],
            &["status", "--timeout", "0"],
            &["infer"],
            &["keygen"],
            &["root", "create", "-o", "r"],
            &["root", "create", "-o", "r", "--role", "root=2:a.pub"],
            &["root", "revoke", "-o", "r"],
            &["bundle", "build", "--model", "m", "--product", "p", "-o", "x.imb"],
            &["bundle", "build", "--model", "m", "--product", "-p", "--version", "1", "-o", "x.imb"],
            &[
                "bundle",
                "build",
                "--model",
                "m",
                "--product",
                "p",
                "--version",
                "1",
                "--role",
                "root",
                "-o",
                "x.imb",
            ],
            &["bundle", "verify", "x.imb"],
            &["bundle", "sign", "x.imb"],
            &["push", "x.imb", "--wait", "forever"],
            &["trust"],
            &["system"],
            &["system", "try", "--wait", "forever"],
            &["flash"],
            &["flash", "x.img", "--file"],
            &["flash", "x.img", "--bmap", "x", "--no-bmap"],
            &["sign", "x"],
            &["verify", "x"],
            &["factory-reset"],
            &["watchdog", "test", "everything"],
            &["history", "-n", "0"],
            &["pull"],
            &["pull", "http://x/m.imb", "--cancel"],
        ];
        for arguments in table {
            let all = std::iter::once("inferctl").chain(arguments.iter().copied());
            assert!(Cli::try_parse_from(all).is_err(), "{arguments:?}");
        }
    }
}
