//! `inferctl log-level`, `telemetry` and `capture`: what a device writes down.

use crate::{
    client::{Answer, Client, ClientError},
    fail::Failure,
    show,
};
use serde_json::{Value, json};

/// Arguments of `log-level`.
#[derive(Debug, clap::Args)]
pub struct LogLevel {
    /// off, error, warn, info, debug or trace; others for single targets behind it: info,inferd_hosts=debug. Without it the level is shown
    level: Option<String>,
    /// How long it holds: 90s, 10m, 2h; until it is changed or the daemon restarts when not said
    #[arg(long = "for", value_name = "TIME", requires = "level", value_parser = span)]
    lasts: Option<u64>,
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
