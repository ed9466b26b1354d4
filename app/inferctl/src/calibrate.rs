//! `inferctl calibrate`: leads a person through a calibration, shows how good it is, installs it when asked to, and undoes it.

use crate::{client::Client, fail::Failure, show, slots::order, watch::text::clean_all};
use serde_json::{Value, json};
use std::io::{self, BufRead as _, IsTerminal as _};
use std::thread::sleep;
use std::time::Duration;

const PATH: &str = "/api/v1/calibrations";
/// Between two looks at what the device does.
const EVERY: Duration = Duration::from_millis(150);
/// How often a gesture is recorded before this gives up.
const ATTEMPTS: usize = 5;

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
pub struct Calibrate {
    /// The source that is worn; the device's first when nothing is said
    #[arg(long)]
    source: Option<String>,
    /// The model; that of the source when nothing is said
    #[arg(long)]
    model: Option<String>,
    /// How long each gesture is held
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=20))]
    seconds: Option<u32>,
    /// The gestures to record, rest among them; all of the model when nothing is said. What is left out is not recognised any more
    #[arg(long, value_delimiter = ',', value_name = "LABEL,LABEL..")]
    gestures: Vec<String>,
    /// Seconds between the announcement of a gesture and its recording
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "enter")]
    pause: u64,
    /// Wait for Enter before each recording instead
    #[arg(long)]
    enter: bool,
    /// Install it without asking
    #[arg(long)]
    yes: bool,
    /// Install it although the check objects
    #[arg(long)]
    force: bool,
    /// Take the calibration back: the model serves as it was shipped
    #[arg(long, conflicts_with_all = ["source", "seconds", "gestures", "yes", "force", "enter"])]
    undo: bool,
}

impl Calibrate {
    /// Leads through it, or undoes it.
    ///
    /// # Errors
    /// [`Failure`]: what the device refuses, and a check that objects.
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        if self.undo {
            let said = post(client, &format!("{PATH}/undo"), &json!({ "model": self.model }))?;
            if json {
                show::json(&said);
            } else {
                show::line(&format!("model {} serves as it was shipped", word(&said["model"])));
            }
            return Ok(());
        }
        let say = |text: &str| if json { eprintln!("{text}") } else { show::line(text) };
        let session = self.session(client, &say)?;
        Self::warn_of_others(&session, &say);
        let at = format!("{PATH}/{}", session["id"]);
        self.record_all(client, &at, &say)?;
        let fit = fitted(client, &at, &say)?;
        if !json {
            show::line(&table(&fit));
        }
        let objections = texts(&fit["objections"]);
        if !objections.is_empty() && !self.force {
            client.delete(&at)?;
            let why = objections.join("\n  ");
            return Err(Failure::Other(format!(
                "not installed:\n  {why}\n(--force installs it all the same)"
            )));
        }
        if !(self.yes || asked("install it? [y/N] ")?) {
            client.delete(&at)?;
            return Err(Failure::Other("not installed; the model serves as before".to_owned()));
        }
        let said = post(client, &format!("{at}/install"), &json!({ "force": self.force }))?;
        if json {
            show::json(&json!({ "fit": fit, "installed": said["installed"] }));
        } else {
            show::line("installed; `inferctl calibrate --undo` takes it back");
        }
        Ok(())
    }

    /// The session that is under way, or a new one.
    fn session(&self, client: &Client, say: &dyn Fn(&str)) -> Result<Value, Failure> {
        let there = ask(client, PATH)?["session"].take();
        if !there.is_null() {
            say(&format!("going on with session {} of source {}", there["id"], word(&there["source"])));
            return Ok(there);
        }
        let mut body = json!({});
        for (key, value) in [("source", &self.source), ("model", &self.model)] {
            if let Some(value) = value {
                body[key] = json!(value);
            }
        }
        if let Some(seconds) = self.seconds {
            body["seconds"] = json!(seconds);
        }
        if !self.gestures.is_empty() {
            body["gestures"] = json!(self.gestures);
        }
        post(client, PATH, &body)
    }

    /// Whom it changes besides the source it is recorded from.
    fn warn_of_others(session: &Value, say: &dyn Fn(&str)) {
        let also = |what: &str| texts(&session["also"][what]).join(", ");
        for (what, names) in [("sources", also("sources")), ("actuators", also("actuators"))] {
            if !names.is_empty() {
                say(&format!(
                    "once installed it holds for these {what}, too, since it is the model's: {names}"
                ));
            }
        }
    }

    fn record_all(&self, client: &Client, at: &str, say: &dyn Fn(&str)) -> Result<(), Failure> {
        let mut attempts = 0;
        loop {
            let session = settled(client, at, &["recording"], say)?;
            let Some(label) = session["next"].as_str() else { return Ok(()) };
            let gestures = session["gestures"].as_array().map_or(&[][..], Vec::as_slice);
            let gesture = gestures.iter().position(|g| g["label"] == label);
            let number = gesture.map_or(0, |g| g + 1);
            let why = gesture.map_or("", |g| gestures[g]["reason"].as_str().unwrap_or(""));
            if !why.is_empty() {
                attempts += 1;
                say(&format!("  again: {why}"));
                if attempts >= ATTEMPTS {
                    return Err(Failure::Other(format!("{label} cannot be recorded: {why}")));
                }
            }
            let (all, seconds) = (gestures.len(), &session["seconds"]);
            say(&format!(
                "{number} of {all}: {label}. Make it, and hold it for {seconds} s from the start on"
            ));
            self.wait(say)?;
            post(client, &format!("{at}/record"), &json!({ "label": label }))?;
            say("  now");
            let done = settled(client, at, &["recording"], say)?;
            let gesture = gesture.map_or(&Value::Null, |g| &done["gestures"][g]);
            if gesture["state"] == "recorded" {
                attempts = 0;
                let times = gesture["versus_rest"].as_f64();
                let times = times.map_or(String::new(), |t| format!(", {t:.0} times as strong as rest"));
                let dead = texts(&gesture["dead_channels"]);
                let dead = if dead.is_empty() {
                    String::new()
                } else {
                    format!("; no signal on {}", dead.join(", "))
                };
                say(&format!("  recorded{times}{dead}"));
            }
        }
    }

    fn wait(&self, say: &dyn Fn(&str)) -> Result<(), Failure> {
        if self.enter {
            say("  Enter begins");
            return answered().map(drop);
        }
        for left in (1..=self.pause).rev() {
            say(&format!("  {left}"));
            sleep(Duration::from_secs(1));
        }
        Ok(())
    }
}

/// Waits while the session is in one of these states; it, after that.
fn settled(client: &Client, at: &str, busy: &[&str], say: &dyn Fn(&str)) -> Result<Value, Failure> {
    let mut told = 0;
    loop {
        let session = ask(client, at)?;
        if !busy.iter().any(|state| session["state"] == *state) {
            return Ok(session);
        }
        let quarters = session["percent"].as_u64().unwrap_or(0).min(100) / 25;
        if quarters > told {
            told = quarters;
            say(&format!("  {:>3} %", 25 * quarters));
        }
        sleep(EVERY);
    }
}

fn fitted(client: &Client, at: &str, say: &dyn Fn(&str)) -> Result<Value, Failure> {
    say("fitting on the device");
    post(client, &format!("{at}/fit"), &json!({}))?;
    let mut session = settled(client, at, &["fitting"], say)?;
    if session["fit"].is_null() {
        return Err(Failure::Other(format!("it cannot be fitted: {}", word(&session["error"]))));
    }
    Ok(session["fit"].take())
}

/// How good it is, on windows it was not fitted to.
fn table(fit: &Value) -> String {
    let check = &fit["check"];
    let percent = |v: &Value| format!("{:.1} %", 100.0 * v.as_f64().unwrap_or(0.0));
    let labels = texts(&fit["labels"]);
    let row = |g: &Value| {
        let named = g["named"].as_array().map_or(&[][..], Vec::as_slice);
        let others =
            named.iter().zip(&labels).filter(|(n, l)| n.as_u64() > Some(0) && g["label"] != l.as_str());
        let others: Vec<String> = others.map(|(n, l)| format!("{l} {n}")).collect();
        vec![
            word(&g["label"]),
            g["windows"].to_string(),
            g["right"].to_string(),
            g["uncalibrated"].to_string(),
            others.join(", "),
        ]
    };
    let rows: Vec<Vec<String>> =
        check["gestures"].as_array().map_or(Vec::new(), |g| g.iter().map(row).collect());
    let head = ["gesture", "held back", "right", "before", "taken for"];
    let order = match fit["order_checked"].as_bool() {
        Some(false) => "\nthe order of the channels cannot be checked: the manifest has no patterns",
        _ => "",
    };
    format!(
        "\n{}\n\n{} right with this calibration, {} without{order}",
        show::table(&head, &rows),
        percent(&check["accuracy"]),
        percent(&check["uncalibrated"]),
    )
}

/// Asks on the terminal; where nobody can answer, that is said.
fn asked(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Other("--yes is needed to install it where nobody can be asked".to_owned()));
    }
    eprint!("{question}");
    Ok(answered()?.trim().eq_ignore_ascii_case("y"))
}

/// A line of standard input.
fn answered() -> Result<String, Failure> {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    match read {
        Ok(0) => {
            Err(Failure::Other("standard input has ended; the session goes on with the next call".to_owned()))
        }
        Ok(_) => Ok(line),
        Err(e) => Err(Failure::Other(format!("standard input: {e}"))),
    }
}

fn ask(client: &Client, path: &str) -> Result<Value, Failure> {
    let mut said = client.json::<Value>(path)?;
    clean_all(&mut said);
    Ok(said)
}

fn post(client: &Client, path: &str, body: &Value) -> Result<Value, Failure> {
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, v| !v.is_null());
    }
    let mut said = order(client, path, "application/json", body.to_string().as_bytes())?;
    clean_all(&mut said);
    Ok(said)
}

fn word(of: &Value) -> String {
    of.as_str().map_or_else(|| of.to_string(), str::to_owned)
}

fn texts(of: &Value) -> Vec<String> {
    of.as_array().map_or(Vec::new(), |all| all.iter().map(word).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_was_taken_for_what_and_what_it_was_like_before() {
        let text = table(&json!({
            "order_checked": true, "labels": ["Rest", "Pinch", "Point"],
            "check": {"accuracy": 0.75, "uncalibrated": 0.5, "gestures": [
                {"label": "Rest", "windows": 4, "right": 4, "uncalibrated": 4, "named": [4, 0, 0]},
                {"label": "Point", "windows": 4, "right": 2, "uncalibrated": 0, "named": [0, 2, 2]},
            ]},
        }));
        assert!(text.contains("75.0 % right with this calibration, 50.0 % without"), "{text}");
        let point = text.lines().find(|l| l.starts_with("Point")).unwrap();
        assert_eq!(point.split_whitespace().collect::<Vec<_>>(), ["Point", "4", "2", "0", "Pinch", "2"]);
        assert!(!text.contains("cannot be checked"), "{text}");
    }
}
