//! `inferctl history`, `reboot`, `safe-mode`, `factory-reset` and `watchdog`: what happened to a device, and what only its keeper does.

use crate::{client::Client, fail::Failure, show, slots};
use serde::Deserialize;
use serde_json::{Value, json};

/// Arguments of `history`.
#[derive(Debug, clap::Args)]
pub struct History {
    /// How many entries are shown
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=512))]
    limit: u16,
    /// Only this kind: boot, keeper, daemon-end, let-go, safe-mode, host-end, breaker, recovery, alert, request
    #[arg(long)]
    kind: Option<String>,
    /// Show the last words of what died, too
    #[arg(long)]
    words: bool,
}

/// Arguments of `reboot`.
#[derive(Debug, clap::Args)]
pub struct Reboot {
    /// Why, for the device's history
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

/// Arguments of `factory-reset`.
#[derive(Debug, clap::Args)]
pub struct FactoryReset {
    /// Really forget what was configured and installed, but the device's identity, whose bundles it believes and the committed model.
    /// inferd.toml on the boot partition is taken again at the next start; a key that stands there as "(kept)" is forgotten
    #[arg(long, required = true)]
    yes: bool,
    /// Forget those, too: floors and revocations, of systems as well, every model, the key of its certificate, the history
    #[arg(long)]
    everything: bool,
    /// Why, for the device's history
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

/// What `safe-mode` does.
#[derive(Debug, clap::Subcommand)]
pub enum SafeMode {
    /// Start the daemon anew, with its models
    Leave(Reboot),
}

/// What `watchdog` does.
#[derive(Debug, clap::Subcommand)]
pub enum Watchdog {
    /// Break something on purpose, to see the watchdog work; images made for development only
    Test {
        /// What to break
        what: Broken,
    },
}

/// What a test breaks.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Broken {
    /// The keeper stops feeding the hardware watchdog
    Hardware,
    /// The daemon is stopped
    Daemon,
    /// The kernel panics
    Panic,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    store: String,
    boot: u64,
    uptime_ms: u64,
    kind: String,
    sentence: String,
    detail: Value,
    words: Vec<String>,
}

impl Entry {
    /// Whose the words are, where that is not what the entry is about.
    fn whose(&self) -> Option<&'static str> {
        match self.detail["words_of"].as_str()? {
            "panic" => Some("around the panic"),
            "console" => Some("the kernel's console before the reset, which need not name its cause"),
            _ => None,
        }
    }
}

impl History {
    /// Shows what happened, newest first.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let kind =
            self.kind.as_ref().map_or(String::new(), |k| format!("&kind={}", crate::input::percent(k)));
        let answer = slots::taken(&client.get(&format!("/api/v1/history?limit={}{kind}", self.limit))?)?;
        if json {
            show::json(&answer);
            return Ok(());
        }
        let entries: Vec<Entry> = serde_json::from_value(answer["entries"].clone()).unwrap_or_default();
        show::line(&self.page(&entries));
        if answer["complete"] == false {
            show::line("the keeper's own entries are not among them: its history could not be read");
        }
        Ok(())
    }

    fn page(&self, entries: &[Entry]) -> String {
        if entries.is_empty() {
            return "nothing has happened that is kept".to_owned();
        }
        let mut rows = Vec::new();
        for e in entries {
            let boot = if e.boot == 0 { "-".to_owned() } else { e.boot.to_string() };
            rows.push(vec![
                boot,
                show::age(e.uptime_ms / 1000),
                e.store.clone(),
                e.kind.clone(),
                e.sentence.clone(),
            ]);
            if self.words {
                let row = |text: String| {
                    let empty = String::new;
                    vec![empty(), empty(), empty(), empty(), text]
                };
                rows.extend(
                    e.whose().filter(|_| !e.words.is_empty()).map(|whose| row(format!("  {whose}:"))),
                );
                rows.extend(e.words.iter().map(|w| row(format!("  | {w}"))));
            }
        }
        show::table(&["boot", "after", "kept by", "what", "sentence"], &rows)
    }
}

/// Sends an order and says what came of it.
fn order(client: &Client, path: &str, body: &Value, done: &str, json: bool) -> Result<(), Failure> {
    let said = slots::order(client, path, "application/json", body.to_string().as_bytes())?;
    if json {
        show::json(&said);
    } else {
        show::line(done);
    }
    Ok(())
}

fn why(text: &str) -> Value {
    if text.is_empty() { json!({}) } else { json!({ "why": text }) }
}

impl Reboot {
    /// Restarts the board.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        order(client, "/api/v1/reboot", &why(&self.why), "it restarts now", json)
    }
}

impl FactoryReset {
    /// Forgets what was configured and installed.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        if !self.yes {
            return Err(Failure::Other("--yes is needed: nothing of this comes back. A key that stands as \"(kept)\" in inferd.toml on the boot partition is forgotten, \
                 too: who has no other way in must write it there again"
                    .to_owned()));
        }
        let (mut body, done) = (
            why(&self.why),
            match self.everything {
                true => "it restarts and forgets everything, floors, revocations and its history with it",
                false => {
                    "it restarts and forgets what was configured and installed; its committed model stays"
                }
            },
        );
        if self.everything {
            body["everything"] = json!(true);
        }
        order(client, "/api/v1/factory-reset", &body, done, json)
    }
}

impl SafeMode {
    /// Ends safe mode.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let Self::Leave(leave) = self;
        order(
            client,
            "/api/v1/safe-mode/leave",
            &why(&leave.why),
            "its daemon starts anew, with its models",
            json,
        )
    }
}

impl Watchdog {
    /// Breaks something.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let Self::Test { what } = self;
        let (what, done) = match what {
            Broken::Hardware => {
                ("hardware", "its watchdog is no longer fed: it resets the board within its timeout")
            }
            Broken::Daemon => ("daemon", "its daemon stands still: the watchdog resets the board"),
            Broken::Panic => ("panic", "its kernel panics"),
        };
        order(client, "/api/v1/watchdog/test", &json!({ "what": what }), done, json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_line_an_entry_and_last_words_where_they_are_asked_for() {
        let entries: Vec<Entry> = serde_json::from_value(json!([
            {"store": "keeper", "boot": 3, "uptime_ms": 61_000, "kind": "let-go", "sentence": "it hung", "words": ["bye"]},
            {"store": "daemon", "boot": 0, "uptime_ms": 0, "kind": "host-end", "sentence": "killed"}
        ]))
        .unwrap();
        let page = |words| History { limit: 20, kind: None, words }.page(&entries);
        assert!(page(false).contains("let-go    it hung"), "{}", page(false));
        assert!(!page(false).contains("bye") && page(true).contains("| bye"));
        assert!(!page(true).contains("console"), "{}", page(true));
        let boot = |of| json!([{"kind": "boot", "sentence": "it hung", "detail": {"words_of": of}, "words": ["bye"]}]);
        let of = |of| {
            History { limit: 1, kind: None, words: true }
                .page(&serde_json::from_value::<Vec<_>>(boot(of)).unwrap())
        };
        assert!(
            of("console").contains("the kernel's console before the reset")
                && of("panic").contains("around the panic:")
        );
        assert_eq!(
            History { limit: 1, kind: None, words: false }.page(&[]),
            "nothing has happened that is kept"
        );
    }
}
