//! Trains the default models, and makes windows of synthetic motion as clients send them.

use clap::{Parser, Subcommand};
use inferd_model::Manifest;
use inferd_sources::motion::{self, Conditions, Motion};
use inferd_sources::synthetic::Gesture;
use inferd_train::emg_gestures::{self, Measured};
use inferd_train::imu_motion;
use inferd_train::net::Tcn;
use inferd_train::training::{Round, Schedule};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Trains small sensor models on synthetic motion.
#[derive(Parser)]
#[command(name = "inferd-train", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the default model and write its directory: manifest.toml, model.onnx, golden.safetensors.
    ImuMotion {
        /// Everything random follows from this number.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Rounds of training; fewer for a quick look.
        #[arg(long, default_value_t = imu_motion::SCHEDULE.epochs)]
        epochs: usize,
        /// The model directory.
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        /// Print the confusion matrices too (Markdown).
        #[arg(long)]
        confusion: bool,
    },
    /// Train the EMG model and write its directory.
    EmgGestures {
        /// Everything random follows from this number.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Rounds of training; fewer for a quick look.
        #[arg(long, default_value_t = emg_gestures::SCHEDULE.epochs)]
        epochs: usize,
        /// The model directory.
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        /// Print the confusion matrices too (Markdown).
        #[arg(long)]
        confusion: bool,
    },
    /// Print windows, one request body {"x": [[9 numbers] x 100]} a line.
    Windows {
        /// sit, stay, heel, come, down, shake, spin, jump, bark, sniff, walk or play.
        #[arg(long)]
        motion: Motion,
        /// The first window's seed; the next has the next.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many windows.
        #[arg(long, default_value_t = 1)]
        count: u64,
        /// Wider ranges and more noise than the model was trained with.
        #[arg(long)]
        hard: bool,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::ImuMotion { seed, epochs, output, confusion } => {
            train_imu_motion(seed, epochs, &output, confusion)
        }
        Command::EmgGestures { seed, epochs, output, confusion } => {
            train_emg_gestures(seed, epochs, &output, confusion)
        }
        Command::Windows { motion, seed, count, hard } => {
            let conditions = if hard { Conditions::Hard } else { Conditions::Usual };
            (0..count).try_for_each(|i| print_window(motion, seed.wrapping_add(i), conditions))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("inferd-train: {e}");
            ExitCode::FAILURE
        }
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn train_imu_motion(seed: u64, epochs: usize, output: &Path, confusion: bool) -> Done {
    begin(output)?;
    let schedule = Schedule { epochs, ..imu_motion::SCHEDULE };
    let net = imu_motion::train(&imu_motion::WIDTHS, imu_motion::LATENT, &schedule, seed, watcher(epochs));
    eprintln!("measuring on unseen windows");
    let usual = imu_motion::quality(&net, Conditions::Usual);
    let hard = imu_motion::quality(&net, Conditions::Hard);
    let manifest = imu_motion::write(&net, seed, &usual, &hard, output)?;
    tell(&manifest, &net, motion::STEPS, output);
    if confusion {
        println!("\nusual conditions\n\n{}\nhard conditions\n\n{}", usual.table(), hard.table());
    }
    Ok(())
}

fn train_emg_gestures(seed: u64, epochs: usize, output: &Path, confusion: bool) -> Done {
    begin(output)?;
    let schedule = Schedule { epochs, ..emg_gestures::SCHEDULE };
    let (widths, features) = (&emg_gestures::WIDTHS, emg_gestures::FEATURES);
    let net = emg_gestures::train(widths, features, &schedule, seed, watcher(epochs));
    eprintln!("measuring on unseen people");
    let quality = Measured::all(&net, &emg_gestures::normalization(seed));
    let manifest = emg_gestures::write(&net, seed, &quality, output)?;
    tell(&manifest, &net, emg_gestures::STEPS, output);
    if confusion {
        for q in &quality {
            println!(
                "\n{} conditions, {:?}\n\n{}",
                q.conditions,
                q.came,
                q.confusion.table(Gesture::ALL.map(Gesture::name))
            );
        }
    }
    Ok(())
}

/// A directory that cannot be written is known before minutes of training, not after.
fn begin(output: &Path) -> Result<(), String> {
    std::fs::create_dir_all(output).map_err(|e| format!("{}: {e}", output.display()))
}

/// Tells of each round how far training is.
fn watcher(epochs: usize) -> impl FnMut(&Round, &Tcn) {
    let start = Instant::now();
    move |r, _| {
        let elapsed = start.elapsed().as_secs_f32();
        eprintln!("epoch {:2} of {epochs}: loss {:.4} ({elapsed:.0} s)", r.epoch, r.loss);
    }
}

fn tell(manifest: &Manifest, net: &Tcn, steps: usize, output: &Path) {
    println!(
        "{} {} in {}: {} parameters, {:.2} M multiply-adds per window",
        manifest.name,
        manifest.version,
        output.display(),
        net.parameter_count(),
        mega(net.multiply_adds(steps)),
    );
    for a in &manifest.accuracy {
        println!("{:.2} % {} ({} {})", 100.0 * a.value, a.metric, a.samples, a.dataset);
    }
}

#[allow(clippy::cast_precision_loss, reason = "printed with three digits")]
fn mega(n: usize) -> f64 {
    n as f64 / 1e6
}

fn print_window(motion: Motion, seed: u64, conditions: Conditions) -> Done {
    use std::io::Write;
    // Not through serde_json::Value: its f64 would print digits an f32 does not have.
    let rows = serde_json::to_string(&motion::window(motion, seed, conditions))?;
    writeln!(std::io::stdout(), "{{\"x\":{rows}}}")?;
    Ok(())
}
