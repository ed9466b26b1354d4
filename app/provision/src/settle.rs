//! Taking a file over. A power cut may end it anywhere; the next start goes on.
//!
//! 1. The file is judged as a whole, with what the device keeps in place of [`KEPT`](crate::secrets::KEPT).
//! 2. One [`Store::replace`]: what the file says, secrets included, and what shall become of each secret on the card.
//! 3. Each secret is overwritten where it stands ([`Card::patch`]).
//!
//! Before 2 nothing has changed. After it the record knows every byte that 3 may have left: a file that differs from the
//! finished one only where a secret was, and there holds the old byte or the new one, is what a cut left, and 3 is done again. Any
//! other file is somebody's new one. A file that was taken over, or is absent, changes nothing: what was taken stays.

use crate::decode::Text;
use crate::file::{self, Provision};
use crate::secrets::{self, Patch};
use crate::{MAX_BYTES, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io;

/// The file on the boot partition.
pub const FILE: &str = "inferd.toml";

/// The boot partition. What returns is on the medium.
pub trait Card {
    /// A file, at most one byte more than [`MAX_BYTES`] of it; `None` where there is none.
    ///
    /// # Errors
    /// The system's.
    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Writes over bytes of a file, which keeps its length.
    ///
    /// # Errors
    /// The system's; a part may have been written.
    fn patch(&mut self, name: &str, at: usize, bytes: &[u8]) -> io::Result<()>;
}

/// Where the device keeps what it has taken over, for root's eyes only.
pub trait Store {
    /// What was kept last.
    ///
    /// # Errors
    /// The system's.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>>;
    /// Keeps this in place of what was kept: old or new after a power cut, and new when this returns.
    ///
    /// # Errors
    /// The system's.
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// What became of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none.
    Absent,
    /// It is in use. Once it was taken over or long ago: the two look alike, so that nothing is written at every start.
    InUse {
        /// Its encoding.
        encoding: String,
    },
    /// It is used as it is and stays as it is: there is no place to keep it.
    NotKept {
        /// Its encoding.
        encoding: String,
    },
    /// What was taken before stays in use.
    Refused(Vec<Problem>),
}

/// What the device goes by.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What became of the file.
    pub state: State,
    /// Whether this start took it over.
    pub taken_now: bool,
    /// The configuration in use, with its secrets; `None`: none was ever given.
    pub text: Option<String>,
    /// What it says of this room's sections.
    pub provision: Provision,
    /// Settings that a file says are kept, and that this device does not have.
    pub lost: Vec<String>,
    /// What else the operator should know, one sentence each.
    pub notes: Vec<String>,
}

/// What is kept.
#[derive(Default, Serialize, Deserialize)]
struct Record {
    text: String,
    encoding: String,
    lost: Vec<String>,
    /// Of the file as it shall be on the card.
    length: usize,
    sha256: String,
    patches: Vec<Patch>,
}

/// Takes over what there is. `keys` are the daemon's settings that are secret, `judge` says what it finds wrong with a whole file.
pub fn settle(
    card: Option<&mut dyn Card>,
    mut store: Option<&mut dyn Store>,
    keys: &[&str],
    judge: &dyn Fn(&str) -> Vec<Problem>,
) -> Settled {
    let mut notes = Vec::new();
    let before = store.as_mut().and_then(|store| kept(*store, &mut notes));
    let found = card.map(|card| (card.read(FILE), card));
    let (bytes, card) = match found {
        Some((Ok(Some(bytes)), card)) => (bytes, card),
        Some((Ok(None), _)) => return going_on(State::Absent, before, notes),
        Some((Err(why), _)) => {
            notes.push(format!("{FILE} cannot be read: {why}."));
            return going_on(State::Absent, before, notes);
        }
        None => return going_on(State::Absent, before, notes),
    };
    if let Some(record) = before.as_ref().filter(|record| record.knows(&bytes)) {
        scrub(card, record, &bytes, &mut notes);
        return going_on(State::InUse { encoding: record.encoding.clone() }, before, notes);
    }
    let taken = match take(&bytes, before.as_ref(), keys, judge) {
        Ok(record) => record,
        Err(problems) => return going_on(State::Refused(problems), before, notes),
    };
    let encoding = taken.encoding.clone();
    let kept = match store {
        Some(store) => {
            serde_json::to_vec(&taken).map_err(io::Error::other).and_then(|record| store.replace(&record))
        }
        None => Err(io::Error::other("there is no data partition")),
    };
    if let Err(why) = kept {
        notes.push(format!(
            "{FILE} is used from the card, and its secrets stay there: it cannot be kept ({why})."
        ));
        return going_on(State::NotKept { encoding }, Some(taken), notes);
    }
    scrub(card, &taken, &bytes, &mut notes);
    Settled { taken_now: true, ..going_on(State::InUse { encoding }, Some(taken), notes) }
}

fn kept(store: &mut dyn Store, notes: &mut Vec<String>) -> Option<Record> {
    let read = store.read().and_then(|bytes| {
        bytes.map(|bytes| serde_json::from_slice::<Record>(&bytes).map_err(io::Error::other)).transpose()
    });
    read.unwrap_or_else(|why| {
        notes.push(format!("what was taken over earlier cannot be read: {why}."));
        None
    })
}

fn take(
    bytes: &[u8],
    before: Option<&Record>,
    keys: &[&str],
    judge: &dyn Fn(&str) -> Vec<Problem>,
) -> Result<Record, Vec<Problem>> {
    if bytes.len() > MAX_BYTES {
        return Err(vec![Problem::at(0, format!("it is larger than {MAX_BYTES} bytes."))]);
    }
    let written = Text::of(bytes).map_err(|why| vec![Problem::at(0, format!("{why}."))])?;
    let one = |problem| vec![problem];
    let (text, lost) = secrets::filled(&written.text, before.map(|b| b.text.as_str()), keys).map_err(one)?;
    let mut problems = file::parse(&text).err().unwrap_or_default();
    problems.extend(judge(&text));
    let patches = secrets::patches(&written, bytes, keys).unwrap_or_else(|problem| {
        // The daemon's own judgement says what a secret must be.
        if problems.is_empty() {
            problems.push(problem);
        }
        Vec::new()
    });
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.line);
        return Err(problems);
    }
    let mut after = bytes.to_vec();
    apply(&mut after, &patches);
    let encoding = written.encoding.name().to_owned();
    Ok(Record { text, encoding, lost, length: after.len(), sha256: digest(&after), patches })
}

fn apply(bytes: &mut [u8], patches: &[Patch]) {
    for patch in patches {
        if let Some(place) = bytes.get_mut(patch.at..patch.at + patch.is.len()) {
            place.copy_from_slice(&patch.is);
        }
    }
}

impl Record {
    /// Whether this is the file of the record, wherever its secrets are on their way out.
    fn knows(&self, bytes: &[u8]) -> bool {
        let between = |patch: &Patch| {
            bytes.get(patch.at..patch.at + patch.is.len()).is_some_and(|there| {
                there.iter().zip(&patch.was).zip(&patch.is).all(|((b, was), is)| b == was || b == is)
            })
        };
        if bytes.len() != self.length || !self.patches.iter().all(between) {
            return false;
        }
        let mut after = bytes.to_vec();
        apply(&mut after, &self.patches);
        digest(&after) == self.sha256
    }
}

/// Takes the secrets off the card, and sees that they are gone.
fn scrub(card: &mut dyn Card, record: &Record, bytes: &[u8], notes: &mut Vec<String>) {
    let mut write = || -> io::Result<()> {
        let due = |patch: &&Patch| bytes.get(patch.at..patch.at + patch.is.len()) != Some(&patch.is);
        let mut any = false;
        for patch in record.patches.iter().filter(due) {
            card.patch(FILE, patch.at, &patch.is)?;
            any = true;
        }
        if any && card.read(FILE)?.is_none_or(|bytes| digest(&bytes) != record.sha256) {
            return Err(io::Error::other("it reads back otherwise"));
        }
        Ok(())
    };
    if let Err(why) = write() {
        notes.push(format!(
            "the secrets in {FILE} cannot be taken off the card: {why}. Take them out on another machine."
        ));
    }
}

/// The state with what is kept.
fn going_on(state: State, record: Option<Record>, mut notes: Vec<String>) -> Settled {
    let Some(record) = record else {
        return Settled {
            state,
            taken_now: false,
            text: None,
            provision: Provision::default(),
            lost: Vec::new(),
            notes,
        };
    };
    let provision = file::parse(&record.text).unwrap_or_else(|problems| {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        notes.push(format!("this firmware cannot use what was taken over earlier: {first}"));
        Provision::default()
    });
    Settled { state, taken_now: false, text: Some(record.text), provision, lost: record.lost, notes }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
