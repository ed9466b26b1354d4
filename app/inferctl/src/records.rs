//! `inferctl log-level`, `telemetry` and `capture`: what a device writes down.

use crate::{
    client::{Answer, Client, ClientError},
    fail::Failure,
    show,
};
use serde_json::{Value, json};
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

/// Arguments of `log-level`.
#[derive(Debug, clap::Args)]
pub struct LogLevel {
    /// off, error, warn, info, debug or trace; others for single targets behind it: info,inferd_hosts=debug. Without it the level is shown
    level: Option<String>,
    /// How long it holds: 90s, 10m, 2h; until it is changed or the daemon restarts when not said
    #[arg(long = "for", value_name = "TIME", requires = "level", value_parser = span)]
    lasts: Option<u64>,
}

/// What to do with telemetry.
#[derive(Debug, clap::Subcommand)]
pub enum TelemetryCommand {
    /// The files there are, and how the writing goes
    List,
    /// Fetch every file that is not in the directory yet
    Pull(PullFiles),
}

/// What to do with captured windows.
#[derive(Debug, clap::Subcommand)]
pub enum CaptureCommand {
    /// The windows there are
    List,
    /// Fetch every window that is not in the directory yet
    Pull(PullWindows),
    /// Have the device forget all windows
    Clear,
}

/// Arguments of `telemetry pull`.
#[derive(Debug, clap::Args)]
pub struct PullFiles {
    /// Where to; made if need be
    dir: PathBuf,
}

/// Arguments of `capture pull`.
#[derive(Debug, clap::Args)]
pub struct PullWindows {
    /// Where to; made if need be
    dir: PathBuf,
    /// Have the device forget each window once it is here
    #[arg(long)]
    delete: bool,
}

/// What the device has.
#[derive(serde::Deserialize)]
struct Shelf {
    enabled: bool,
    files: Vec<Item>,
}

/// One file of it.
#[derive(serde::Deserialize)]
struct Item {
    name: String,
    bytes: u64,
}

impl TelemetryCommand {
    /// Shows or fetches.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        match self {
            Self::List => list(client, "/api/v1/telemetry", json),
            Self::Pull(to) => fetch(client, "/api/v1/telemetry", &to.dir, false, json),
        }
    }
}

impl CaptureCommand {
    /// Shows, fetches or forgets.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        match self {
            Self::List => list(client, "/api/v1/captures", json),
            Self::Pull(to) => fetch(client, "/api/v1/captures", &to.dir, to.delete, json),
            Self::Clear => {
                let path = "/api/v1/captures";
                let said: Value = taken(&client.delete(path)?)?.json(path)?;
                if json {
                    show::json(&said);
                } else {
                    show::line(&format!("{} windows were forgotten", said["removed"]));
                }
                Ok(())
            }
        }
    }
}

fn list(client: &Client, path: &str, json: bool) -> Result<(), Failure> {
    if json {
        show::json(&client.json::<Value>(path)?);
        return Ok(());
    }
    let shelf: Shelf = client.json(path)?;
    let rows: Vec<Vec<String>> =
        shelf.files.iter().map(|f| vec![f.name.clone(), show::bytes(f.bytes)]).collect();
    let empty = if shelf.enabled { "nothing is there yet" } else { OFF };
    show::line(
        if rows.is_empty() { empty.to_owned() } else { show::table(&["file", "size"], &rows) }.trim_end(),
    );
    Ok(())
}

/// What is said where the device keeps none.
const OFF: &str = "the device keeps none: its configuration does not enable it";

/// Fetches what is not here yet, or is here with another length: a file that still grew.
fn fetch(client: &Client, path: &str, dir: &Path, delete: bool, json: bool) -> Result<(), Failure> {
    let shelf: Shelf = client.json(path)?;
    if !shelf.enabled && shelf.files.is_empty() {
        return Err(Failure::Other(OFF.to_owned()));
    }
    let cannot =
        |at: &Path, e: &std::io::Error| Failure::Other(format!("{} cannot be written: {e}", at.display()));
    std::fs::create_dir_all(dir).map_err(|e| cannot(dir, &e))?;
    let (mut fetched, mut bytes) = (0_u64, 0_u64);
    for file in &shelf.files {
        // A name is all that a device may say about where a file goes.
        let plain = file.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain || file.name.starts_with('.') {
            return Err(Failure::Other(
                "the device names a file as no inferd does; nothing more is fetched".to_owned(),
            ));
        }
        let at = dir.join(&file.name);
        let from = format!("{path}/{}", file.name);
        if std::fs::metadata(&at).is_ok_and(|m| m.len() == file.bytes) {
            if delete {
                taken(&client.delete(&from)?)?;
            }
            continue;
        }
        let answer = client.get(&from)?;
        if answer.status == 404 {
            // It gave way to a newer one meanwhile.
            continue;
        }
        let content = &taken(&answer)?.body;
        let part = dir.join(format!(".{}.part", file.name));
        keep(&part, &at, content).map_err(|e| cannot(&at, &e))?;
        (fetched, bytes) = (fetched + 1, bytes + content.len() as u64);
        if delete {
            taken(&client.delete(&from)?)?;
        }
    }
    if json {
        show::json(&json!({ "fetched": fetched, "bytes": bytes, "there": shelf.files.len() }));
    } else {
        show::line(&format!(
            "{fetched} of {} files were fetched ({}) to {}",
            shelf.files.len(),
            show::bytes(bytes),
            dir.display()
        ));
    }
    Ok(())
}

/// Writes a file whole and makes it durable: the device may be told to forget its own next.
fn keep(part: &Path, at: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(part)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(part, at)?;
    std::fs::File::open(at.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Seconds of `90s`, `10m`, `2h` or `90`.
fn span(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds = digits.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
    seconds.filter(|s| (1..=86_400).contains(s)).ok_or_else(|| "a time from 1s to 24h is needed".to_owned())
}

impl LogLevel {
    /// Shows or changes how much is logged.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let path = "/api/v1/logging";
        let said: Value = match &self.level {
            None => client.json(path)?,
            Some(level) => {
                let wish = json!({ "level": level, "for_s": self.lasts }).to_string();
                taken(&client.put(path, "application/json", wish.as_bytes())?)?.json(path)?
            }
        };
        if json {
            show::json(&said);
            return Ok(());
        }
        let word = |key: &str| said[key].as_str().unwrap_or("?").to_owned();
        let mut text = word("level");
        if let Some(seconds) = said["for_s"].as_u64() {
            text += &format!(" for {}, then {}", show::age(seconds), word("configured"));
        }
        if let Some(lost) = said["lines_dropped"].as_u64().filter(|n| *n > 0) {
            text += &format!("; {lost} lines were dropped since the daemon started");
        }
        show::line(&text);
        Ok(())
    }
}

/// An answer that is no refusal.
fn taken(answer: &Answer) -> Result<&Answer, ClientError> {
    if (200..300).contains(&answer.status) { Ok(answer) } else { Err(ClientError::Refused(answer.reason())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("24h", 86_400)] {
            assert_eq!(span(text), Ok(seconds));
        }
        for text in ["", "0", "m", "1d", "-1", "25h", "1 h", "99999999999999999999h"] {
            assert!(span(text).is_err(), "{text}");
        }
    }
}
