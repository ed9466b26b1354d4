//! What a device says about its updates: `GET /api/v1/slots`, and the verdicts in it.

use crate::{
    client::{Client, ClientError},
    words,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The device's account of its slots. Fields that a device of another version leaves out are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its id, as permits say it.
    pub device: Option<String>,
    /// What serves.
    pub serving: Serving,
    /// Both slots.
    pub slots: Vec<Slot>,
    /// The transfer in progress.
    pub install: Option<Install>,
    /// The trial in progress.
    pub trial: Option<Trial>,
    /// Keys and roles.
    pub trust: Trust,
    /// The lowest version each product may have.
    pub floors: BTreeMap<String, u64>,
    /// The board's own systems, where somebody installs them.
    pub system: Option<System>,
    /// The last verdicts, oldest first.
    pub verdicts: Vec<Verdict>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What serves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Serving {
    pub from: String,
    pub slot: Option<char>,
    pub bundle: Option<String>,
    pub product: Option<String>,
    pub version: Option<u64>,
    pub label: Option<String>,
    pub models: Vec<Model>,
}

/// A model that serves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Model {
    pub name: String,
    pub version: String,
    pub factory: bool,
}

/// A slot.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Slot {
    pub slot: char,
    pub status: String,
    pub active: bool,
    pub bundle: Option<String>,
    pub product: Option<String>,
    pub version: Option<u64>,
    pub len: u64,
    pub capacity: u64,
}

/// A transfer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Install {
    pub way: String,
    pub stage: String,
    pub product: Option<String>,
    pub version: Option<u64>,
    pub total: Option<u64>,
    pub done: u64,
    pub local: u64,
    pub resumed: u64,
}

/// The board's own two systems.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct System {
    pub board: Option<Board>,
    pub state: Option<SystemState>,
    /// Why none is installed or tried here.
    pub refused: Option<Reason>,
}

/// What the boot loader says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Board {
    pub backend: String,
    pub runs: Option<char>,
    pub image: Option<SystemImage>,
    pub on_trial: bool,
    pub chosen: Option<char>,
}

/// What the root filesystem that runs says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SystemImage {
    pub product: String,
    pub version: u64,
}

/// What was begun.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SystemState {
    pub phase: String,
    pub slot: Option<char>,
    pub about: Option<SystemAbout>,
    pub floors: BTreeMap<String, u64>,
    pub verdicts: Vec<SystemVerdict>,
}

/// Which system.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SystemAbout {
    pub bundle: String,
    pub product: String,
    pub version: u64,
    pub label: String,
}

/// What became of one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SystemVerdict {
    pub outcome: String,
    pub about: SystemAbout,
    pub code: String,
    pub sentence: String,
}

/// Why.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Reason {
    pub code: String,
    pub sentence: String,
}

/// A trial.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Trial {
    pub slot: char,
    pub bundle: String,
    pub product: String,
    pub version: u64,
    pub phase: String,
    pub elapsed_ms: u64,
    pub requests: u64,
    pub of_requests: u64,
    pub of_ms: u64,
    pub interruptions: u8,
}

/// `GET /api/v1/bundle`, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Transfers {
    /// Where an upload that was cut off can go on.
    pub resume: Option<Resume>,
    /// The last bundle the device fetched by itself, or is fetching.
    pub pull: Option<Pull>,
}

/// A transfer that was cut off.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Resume {
    pub bundle: String,
    pub total: u64,
    pub offset: u64,
}

/// A bundle that the device fetches by itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pull {
    /// `fetching`, `fetched` or `failed`.
    pub state: String,
    /// Why it failed.
    pub error: Option<PullError>,
    /// What it counted.
    pub report: PullReport,
}

/// Why nothing was fetched.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct PullError {
    pub code: String,
    pub detail: String,
}

/// What was fetched.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct PullReport {
    pub bundle: Option<String>,
    pub total: u64,
    pub fetched: u64,
    pub reused: u64,
}

/// Keys and roles.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Trust {
    pub root_version: u64,
    pub revocation_version: u64,
    pub dev: bool,
    pub dev_serving: bool,
}

/// What a gate found.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Verdict {
    pub number: u64,
    pub gate: String,
    pub outcome: String,
    pub code: String,
    pub sentence: String,
    pub evidence: Value,
    pub bundle: Option<String>,
    pub product: Option<String>,
    pub version: Option<u64>,
    pub uptime_ms: u64,
}

impl Device {
    /// Asks for it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(client: &Client) -> Result<Self, ClientError> {
        client.json("/api/v1/slots")
    }

    /// Whether this bundle serves for good: nothing is on trial.
    #[must_use]
    pub fn keeps(&self, bundle: &str) -> bool {
        self.trial.is_none() && self.serving.bundle.as_deref() == Some(bundle)
    }

    /// The number of the newest verdict.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.verdicts.iter().map(|v| v.number).max().unwrap_or(0)
    }
}

impl Transfers {
    /// Asks for it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(client: &Client) -> Result<Self, ClientError> {
        client.json("/api/v1/bundle")
    }
}

impl Verdict {
    /// One line: the gate, how it decided, and what it said.
    #[must_use]
    pub fn line(&self) -> String {
        let mark = match self.outcome.as_str() {
            "pass" => "ok  ",
            "refuse" => "NO  ",
            "reverse" => "BACK",
            _ => "..  ",
        };
        let said = if self.sentence.is_empty() { &self.code } else { &self.sentence };
        format!("  {mark} {:<16} {said}", self.gate)
    }

    /// Why it did not go on and what to do, in at most two sentences.
    #[must_use]
    pub fn reason(&self) -> String {
        words::explain(&self.code, &self.sentence)
    }
}
