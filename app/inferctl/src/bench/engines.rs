//! `inferctl bench --engines`: a device measures its engines and decides; and `--replay`: the decision made again from the numbers.

use crate::{
    client::{Client, ClientError},
    fail::Failure,
    show,
};
use inferd_bench::report::{Format, View, reasons, render, step_words, text_table};
use inferd_bench::{Constraint, Level, Outcome, Record};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// How often it is asked how far the device is.
const LOOK: Duration = Duration::from_millis(500);

/// Options of the load that `bench` sends by itself: a device that measures its engines takes none of them.
const OF_THE_LOAD: [&str; 12] = [
    "file",
    "body",
    "path",
    "requests",
    "concurrency",
    "duration",
    "warm_up",
    "threads",
    "form",
    "method",
    "header",
    "pid",
];

/// Options of a benchmark that a device makes: a decision that is made again is made of what was asked for then.
const OF_THE_DEVICE: [&str; 9] =
    ["engines", "model", "constraint", "iterations", "soak", "workers", "stop", "baseline", "save"];

/// What only the device's own benchmark takes.
#[derive(Debug, clap::Args)]
pub struct Engines {
    /// Have the device measure its engines and choose: all, or names of rungs and engines separated by commas
    #[arg(long, value_name = "all|NAME,..", value_delimiter = ',', group = "measured", conflicts_with_all = OF_THE_LOAD, help_heading = "The device measures its engines")]
    engines: Vec<String>,
    /// What the choice must keep to, strictly: p95_ms<50, cosine>0.99, memory_mib<64; may be given several times
    #[arg(
        long,
        value_name = "NAME<NUMBER",
        requires = "engines",
        help_heading = "The device measures its engines"
    )]
    constraint: Vec<Constraint>,
    /// Inferences of one run [default: 200]
    #[arg(long, requires = "engines", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "The device measures its engines")]
    iterations: Option<u32>,
    /// Seconds without a pause on the chosen engine; 0 leaves it out [default: 5]
    #[arg(long, value_name = "SECONDS", requires = "engines", value_parser = clap::value_parser!(u32).range(0..=3600), help_heading = "The device measures its engines")]
    soak: Option<u32>,
    /// Worker threads of the measured hosts [default: as the model is served]
    #[arg(long, requires = "engines", value_parser = clap::value_parser!(u32).range(1..=16), help_heading = "The device measures its engines")]
    workers: Option<u32>,
    /// End optimising at the step after which the stop rules hold
    #[arg(long, requires = "engines", help_heading = "The device measures its engines")]
    stop: bool,
    /// Compare later benchmarks with these numbers
    #[arg(long, requires = "engines", help_heading = "The device measures its engines")]
    baseline: bool,
    /// Write the record, which can be replayed
    #[arg(long, value_name = "FILE", requires = "engines", help_heading = "The device measures its engines")]
    save: Option<PathBuf>,
    /// Write a report; its ending says which: html, md, csv or json
    #[arg(
        long,
        value_name = "FILE",
        requires = "measured",
        help_heading = "The device measures its engines"
    )]
    report: Option<PathBuf>,
    /// Make the report for those who only want the result
    #[arg(long, requires = "report", help_heading = "The device measures its engines")]
    simple: bool,
    /// Make the decision of a saved record again, from its numbers; needs no daemon
    #[arg(long, value_name = "FILE", group = "measured", conflicts_with_all = OF_THE_LOAD, conflicts_with_all = OF_THE_DEVICE, help_heading = "The device measures its engines")]
    replay: Option<PathBuf>,
}

/// A job as the device shows it.
#[derive(Deserialize)]
struct Job {
    id: String,
    state: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    ahead: Option<u64>,
    #[serde(default)]
    progress: Option<Progress>,
    #[serde(default)]
    record: Option<Record>,
}

#[derive(Deserialize)]
struct Progress {
    step: Option<Step>,
    rung: Option<String>,
    percent: u8,
}

#[derive(Deserialize)]
struct Step {
    number: u8,
    name: String,
}

impl Engines {
    /// Whether the device is to measure, or a record is to be replayed.
    pub fn wanted(&self) -> bool {
        !self.engines.is_empty() || self.replay.is_some()
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Said`] when no engine keeps to the constraints.
    pub fn run(&self, client: &Client, model: Option<&str>, json: bool) -> Result<(), Failure> {
        // A benchmark takes an hour: what cannot be kept of it is said before.
        if let Some(file) = &self.report {
            format_of(file)?;
        }
        [&self.report, &self.save].into_iter().flatten().try_for_each(|file| must_be_writable(file))?;
        if let Some(file) = &self.replay {
            return self.again(file, json);
        }
        let all = self.engines.iter().any(|e| e == "all");
        if all && self.engines.len() > 1 {
            return Err(Failure::Other("--engines is all, or names: all of them leaves none to name".into()));
        }
        let rungs: &[String] = if all { &[] } else { &self.engines };
        let mut wish = json!({
            "model": model.unwrap_or_default(),
            "rungs": rungs,
            "constraints": self.constraint,
            "stop": self.stop,
            "baseline": self.baseline,
        });
        for (key, value) in
            [("iterations", self.iterations), ("soak_s", self.soak), ("workers", self.workers)]
        {
            if let Some(value) = value {
                wish[key] = json!(value);
            }
        }
        // Before the job is there: who interrupts in between must not leave it behind.
        let interrupts = Interrupts::catch()?;
        let headers = [("Content-Type".to_owned(), "application/json".to_owned())];
        let answer = client.post("/api/v1/benchmarks", &headers, wish.to_string().as_bytes())?;
        if answer.status != 202 {
            return Err(ClientError::Refused(answer.reason()).into());
        }
        let job: Job =
            serde_json::from_slice(&answer.body).map_err(|e| no_answer("/api/v1/benchmarks", &e))?;
        let path = format!("/api/v1/benchmarks/{}", job.id);
        let (job, text) = follow(client, &path, &interrupts)?;
        let record = match (job.state.as_str(), job.record) {
            ("completed", Some(record)) => record,
            ("failed", _) => {
                return Err(Failure::Other(format!(
                    "the benchmark failed: {}",
                    job.reason.unwrap_or_default()
                )));
            }
            (state, _) => return Err(Failure::Other(format!("the benchmark is {state}: it has no numbers"))),
        };
        if let Some(file) = &self.save {
            write(file, &(record.to_json() + "\n"))?;
        }
        self.write_report(&record)?;
        if json {
            show::json(&text)
        } else {
            tell(&record)
        }
        verdict(&record)
    }

    fn write_report(&self, record: &Record) -> Result<(), Failure> {
        let Some(file) = &self.report else { return Ok(()) };
        let view = if self.simple { View::Simple } else { View::Technical };
        write(file, &render(record, format_of(file)?, view))
    }

    /// The decision once more.
    fn again(&self, file: &Path, json: bool) -> Result<(), Failure> {
        let bytes = crate::read_input(file)?;
        let stored = Record::parse(&bytes).map_err(|e| Failure::Other(format!("{}: {e}", file.display())))?;
        let replayed = Record { decision: stored.replay(), ..stored.clone() };
        let same = replayed.to_json() == stored.to_json();
        self.write_report(&replayed)?;
        if json {
            show::line(&replayed.to_json());
        } else {
            tell(&replayed);
            let words = if same {
                "the same decision, byte for byte"
            } else {
                "ANOTHER decision than the stored one"
            };
            show::line(&format!("\nreplayed from {}: {words}", file.display()));
        }
        if same {
            Ok(())
        } else {
            Err(Failure::Other(format!("{}: its decision is not what its numbers give", file.display())))
        }
    }
}

/// SIGINT and SIGTERM, to be asked for instead of ending the program.
struct Interrupts(SignalFd);

impl Interrupts {
    fn catch() -> Result<Self, Failure> {
        let no = |e: nix::Error| Failure::Other(format!("signals cannot be caught: {e}"));
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().map_err(no)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&set, flags).map(Self).map_err(no)
    }

    fn came(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}

/// Waits for the end of a job; cancels it when this program is interrupted.
fn follow(client: &Client, path: &str, interrupts: &Interrupts) -> Result<(Job, Value), Failure> {
    let terminal = std::io::stderr().is_terminal();
    let (mut last, mut missed) = (String::new(), 0);
    loop {
        if interrupts.came() {
            if terminal {
                eprint!("\r\x1b[K");
            }
            client.delete(path)?;
            return Err(Failure::Other("interrupted; the benchmark was cancelled".into()));
        }
        let text: Value = match client.json(path) {
            Ok(text) => text,
            // A device that measures itself may be slow to answer; one that is gone stays gone.
            Err(e) => {
                missed += 1;
                if missed == 5 {
                    return Err(e.into());
                }
                std::thread::sleep(LOOK);
                continue;
            }
        };
        missed = 0;
        let job: Job = serde_json::from_value(text.clone()).map_err(|e| no_answer(path, &e))?;
        let now = match (&job.progress, job.ahead) {
            (Some(p), _) => {
                let step = p
                    .step
                    .as_ref()
                    .map_or_else(String::new, |s| format!("step {} of 9, {}", s.number, s.name));
                let rung = p.rung.as_ref().map_or_else(String::new, |r| format!(": {r}"));
                (format!("{step}{rung}"), format!("{:>3} % ", p.percent))
            }
            (None, Some(ahead)) => (format!("waits, {ahead} before it"), String::new()),
            (None, None) => (job.state.clone(), String::new()),
        };
        if terminal {
            eprint!("\r\x1b[K{}{}", now.1, now.0);
            let _ = std::io::stderr().flush();
        } else if now.0 != last {
            eprintln!("{}{}", now.1, now.0);
        }
        last = now.0;
        if matches!(job.state.as_str(), "completed" | "failed" | "cancelled") {
            if terminal {
                eprint!("\r\x1b[K");
            }
            return Ok((job, text));
        }
        std::thread::sleep(LOOK);
    }
}

fn no_answer(path: &str, why: &serde_json::Error) -> Failure {
    Failure::Other(format!("{path}: the answer is not what it should be: {why}"))
}

fn tell(record: &Record) {
    let s = &record.subject;
    show::line(&format!(
        "{} {} on {} with {} cores, firmware {}\n",
        s.model, s.version, s.arch, s.cores, s.firmware
    ));
    show::line(text_table(record).trim_end());
    show::line("");
    for step in &record.steps {
        show::line(&format!("{}. {}: {}", step.step.number(), step.step.words(), step_words(record, step)));
    }
    show::line("");
    for r in record.regressions.iter().filter(|r| matches!(r.level, Level::Warning | Level::Critical)) {
        let level = if r.level == Level::Critical { "CRITICAL" } else { "warning" };
        show::line(&format!("{level}, {} against its baseline: {}", r.rung, r.reasons.join("; ")));
    }
    reasons(record).iter().for_each(|line| show::line(line));
    show::line(&format!("decision {}: {}", record.id(), record.decision.because));
}

fn verdict(record: &Record) -> Result<(), Failure> {
    if record.decision.outcome == Outcome::Selected { Ok(()) } else { Err(Failure::Said) }
}

fn format_of(file: &Path) -> Result<Format, Failure> {
    let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    Format::from_name(ending)
        .ok_or_else(|| Failure::Other(format!("{}: a report ends in html, md, csv or json", file.display())))
}

/// Whether a file can be written there; it is left as it is, or away.
fn must_be_writable(file: &Path) -> Result<(), Failure> {
    let new = !file.exists();
    let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(file);
    let done = match opened {
        Ok(_) if new => std::fs::remove_file(file),
        other => other.map(drop),
    };
    done.map_err(|e| Failure::Other(format!("{} cannot be written: {e}", file.display())))
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text)
        .map_err(|e| Failure::Other(format!("{} cannot be written: {e}", file.display())))
}
