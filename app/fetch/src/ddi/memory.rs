//! What must be known after a restart: which action is open, how far it is, and what the server was already told.

use super::wire::Finished;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How far an action is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// To be downloaded, or being downloaded.
    Download,
    /// Stored completely; the trial may not begin yet.
    Held,
    /// On trial.
    Trial,
    /// Decided; the server has not acknowledged it yet.
    Closing(Outcome),
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Well or not.
    pub finished: Finished,
    /// For the operator at the server.
    pub details: Vec<String>,
}

/// An open action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Its id.
    pub id: String,
    /// The bundle's id, once known.
    pub bundle: Option<String>,
    /// Verdicts up to this number are of an earlier time.
    pub mark: u64,
    /// How far it is.
    pub phase: Phase,
    /// What the server has acknowledged.
    #[serde(default)]
    pub told: BTreeSet<String>,
}

/// An action that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Its id.
    pub id: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// The whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The open action.
    pub action: Option<Action>,
    /// The last that was closed: should the server still offer it, it is told again, not done again.
    pub closed: Option<Closed>,
}

/// Where the memory is kept.
#[derive(Clone, Debug)]
pub struct Keeper {
    path: PathBuf,
}

/// Largest file that is read.
const LARGEST: u64 = 64 << 10;
/// Different things an action tells at most; what would be more is not told.
pub const MOST_TOLD: usize = 32;

impl Keeper {
    /// At `path`; the directory must exist.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What is remembered. A file that cannot be read or understood is forgotten with a warning: the server still offers what is
    /// open, and a bundle that serves is found to serve.
    #[must_use]
    pub fn load(&self) -> Memory {
        let read = std::fs::metadata(&self.path).and_then(|metadata| {
            if metadata.len() > LARGEST {
                Err(io::Error::other("too large"))
            } else {
                std::fs::read(&self.path)
            }
        });
        match read {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Memory::default(),
            Err(e) => {
                tracing::warn!("what was told to the fleet server cannot be read: {e}");
                Memory::default()
            }
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| {
                tracing::warn!("what was told to the fleet server is damaged: {e}");
                Memory::default()
            }),
        }
    }

    /// Replaces what is remembered: after a power cut it is the old or the new. Waits for the medium, so not on a thread that
    /// others need.
    pub fn save(&self, memory: &Memory) -> io::Result<()> {
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut other = self.path.clone().into_os_string();
        other.push(".new");
        let mut file = std::fs::File::create(&other)?;
        file.write_all(&serde_json::to_vec(memory)?)?;
        file.sync_all()?;
        std::fs::rename(&other, &self.path)?;
        std::fs::File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_rubbish_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(folder.path().join("hawkbit.json"));
        assert_eq!(keeper.load(), Memory::default());
        let outcome = Outcome { finished: Finished::Failure, details: vec!["no".into()] };
        let action = Action {
            id: "7".into(),
            bundle: Some("ab".into()),
            mark: 3,
            phase: Phase::Closing(outcome.clone()),
            told: BTreeSet::from(["download".to_owned()]),
        };
        let memory = Memory { action: Some(action), closed: Some(Closed { id: "6".into(), outcome }) };
        keeper.save(&memory).unwrap();
        assert_eq!(keeper.load(), memory);
        for rubbish in [&b"{\"action\":"[..], b"", b"[]", &vec![b' '; 100 << 10]] {
            std::fs::write(folder.path().join("hawkbit.json"), rubbish).unwrap();
            assert_eq!(keeper.load(), Memory::default());
        }
    }
}
