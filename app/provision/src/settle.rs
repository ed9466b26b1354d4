//! Taking a file over. A power cut may end it anywhere; the next start goes on.
//!
//! 1. The file is judged as a whole, with what the device keeps in place of [`KEPT`](crate::secrets::KEPT).
//! 2. One [`Store::replace`]: what the file says, secrets included, and what shall become of each secret on the card.
//! 3. Each secret is overwritten where it stands ([`Card::patch`]).
//!
//! Before 2 nothing has changed. After it the record knows every byte that 3 may have left: a file that differs from the
//! finished one only where a secret was, and there holds the old byte or the new one, is what a cut left, and 3 is done again. Any
//! other file is somebody's new one. A file that was taken over, or is absent, changes nothing: what was taken stays.
//!
//! A device that was configured and cannot get at that (no data partition, a record that is gone or cannot be read) is
//! [closed](Settled::closed) unless the card brings a file: it would come up with open doors that somebody had shut. That it was is
//! told by its own report on the card, and by a refused file in which a secret is kept. So is a device that has nothing but a file which it
//! cannot take, where that is [about its doors](about_doors) or cannot be read: whoever wrote it meant to shut them. A record of [`NOTHING`]
//! says that nothing is configured, as a factory reset leaves it.

use crate::decode::Text;
use crate::file::{self, Provision};
use crate::report::{self, REPORT};
use crate::secrets::{self, Patch};
use crate::{MAX_BYTES, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io;

/// The file on the boot partition.
pub const FILE: &str = "inferd.toml";

/// What is kept where nothing is configured any more.
pub const NOTHING: &[u8] = b"null\n";
/// Names beside the file's that are told.
const MOST_BESIDE: usize = 4;
/// What a file says of who may do what. Settings that are secret belong to it, too.
const DOORS: [&str; 5] = ["security", "tls", "listen", "open_reads", "open_inference"];

/// The boot partition. What returns is on the medium.
pub trait Card {
    /// The names of what is there.
    ///
    /// # Errors
    /// The system's.
    fn names(&mut self) -> io::Result<Vec<String>>;
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
    /// There is something of its name that cannot be read, and why. What was taken before stays in use.
    Unread(String),
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

/// Why a device lets nobody else in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// What there is to say, without a full stop.
    pub why: String,
    /// Whether it is the file on the card and nothing else: without that the device has its defaults.
    pub by_file: bool,
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
    /// Whether this device was ever given a configuration, as far as it knows.
    pub configured: Option<bool>,
    /// Why what was configured, or may have been, cannot be had: the device lets nobody else in.
    pub closed: Option<Closed>,
}

/// What is kept.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Record {
    text: String,
    encoding: String,
    lost: Vec<String>,
    /// Of the file as it shall be on the card.
    length: usize,
    sha256: String,
    patches: Vec<Patch>,
}

/// What is known of earlier starts.
enum Before {
    Taken(Box<Record>),
    /// It is certain that nothing is configured.
    Nothing,
    /// Nothing is kept: a new device, or one that has lost it.
    Unknown,
    /// It cannot be told.
    Lost(String),
}

/// Takes over what there is. `keys` are the daemon's settings that are secret, `judge` says what it finds wrong with a whole file.
pub fn settle(
    mut card: Option<&mut dyn Card>,
    mut store: Option<&mut dyn Store>,
    keys: &[&str],
    judge: &dyn Fn(&str) -> Vec<Problem>,
) -> Settled {
    let mut notes = Vec::new();
    let before = kept(&mut store);
    if let Before::Lost(why) = &before
        && store.is_some()
    {
        notes.push(format!("{why}."));
    }
    let remembered = card.as_mut().and_then(|card| report::remembers(&card.read(REPORT).ok()??));
    if let Some(card) = &mut card {
        notes.extend(beside(*card));
    }
    let (record, doubt) = match before {
        Before::Taken(record) => (Some(*record), None),
        Before::Nothing => (None, None),
        Before::Unknown if remembered == Some(true) => {
            (None, Some("the data partition has lost what was taken over earlier".to_owned()))
        }
        Before::Unknown => (None, None),
        Before::Lost(_) if remembered == Some(false) => (None, None),
        Before::Lost(why) => (None, Some(why)),
    };
    let unknown = doubt.is_some() && remembered.is_none();
    let go_on = |state, record: Option<Record>, notes| {
        let closed = doubt.clone().filter(|_| record.is_none()).map(|why| Closed { why, by_file: false });
        let configured =
            if unknown && record.is_none() { None } else { Some(record.is_some() || closed.is_some()) };
        Settled { configured, closed, ..going_on(state, record, notes) }
    };
    // Of a device that has nothing else to go by.
    let closed_by_file = |mut settled: Settled, why: Option<String>| {
        if let Some(why) = why.filter(|_| settled.text.is_none() && settled.closed.is_none()) {
            settled.closed = Some(Closed { why, by_file: true });
            settled.configured = None;
        }
        settled
    };
    let found = card.map(|card| (card.read(FILE), card));
    let (bytes, card) = match found {
        Some((Ok(Some(bytes)), card)) => (bytes, card),
        Some((Err(why), _)) => {
            let closed = format!("{FILE} cannot be read");
            return closed_by_file(go_on(State::Unread(why.to_string()), record, notes), Some(closed));
        }
        Some((Ok(None), _)) | None => return go_on(State::Absent, record, notes),
    };
    if let Some(record) = record.as_ref().filter(|record| record.knows(&bytes)) {
        scrub(card, record, &bytes, &mut notes);
        let encoding = record.encoding.clone();
        return go_on(State::InUse { encoding }, Some(record.clone()), notes);
    }
    let taken = match take(&bytes, record.as_ref().map(|record| record.text.as_str()), keys, judge) {
        Ok(taken) => taken,
        Err(problems) => {
            let settled = go_on(State::Refused(problems), record, notes);
            let none = || "the data partition has none of what the file says is kept".to_owned();
            let why = keeps(&bytes, keys).then(none).or_else(|| about_doors(&bytes, keys));
            return closed_by_file(settled, why);
        }
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
        return go_on(State::NotKept { encoding }, Some(taken), notes);
    }
    scrub(card, &taken, &bytes, &mut notes);
    Settled { taken_now: true, ..go_on(State::InUse { encoding }, Some(taken), notes) }
}

/// What a device that has every secret which is said to be kept would find wrong with a file; else its encoding and the settings
/// that are kept.
///
/// # Errors
/// Everything that is wrong.
pub fn judged(
    bytes: &[u8],
    keys: &[&str],
    judge: &dyn Fn(&str) -> Vec<Problem>,
) -> Result<(String, Vec<String>), Vec<Problem>> {
    let text = Text::of(bytes).map(|written| written.text).unwrap_or_default();
    let (whole, kept) = secrets::as_if_kept(&text, keys).unwrap_or_default();
    take(bytes, Some(&whole), keys, judge).map(|record| (record.encoding, kept))
}

/// Whether a file says of a secret that the device keeps it.
fn keeps(bytes: &[u8], keys: &[&str]) -> bool {
    let text = Text::of(bytes).map(|written| written.text).unwrap_or_default();
    secrets::find(&text, keys).is_ok_and(|found| found.iter().any(|secret| secret.kept))
}

/// Where a file that is refused may be about who may do what: why. A word that is nearly one of [`DOORS`] counts, for the mistake may be there;
/// what is commented out does not.
fn about_doors(bytes: &[u8], keys: &[&str]) -> Option<String> {
    let Some(written) = Text::of(bytes).ok().filter(|_| bytes.len() <= MAX_BYTES) else {
        return Some(format!("nobody can say what {FILE} means to shut"));
    };
    let text = written.text.to_lowercase();
    let secrets = keys.iter().filter_map(|key| key.rsplit('.').next());
    let doors: Vec<&str> = DOORS.into_iter().chain(secrets).collect();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_')));
    let near = |word: &str, door: &str| {
        word.contains(door) || strsim::damerau_levenshtein(word, door) <= door.len() / 4
    };
    let mut words = words.filter(|word| doors.iter().any(|door| near(word, door)));
    words.next().map(|word| format!("{FILE} is refused, and says who may do what ({})", file::shown(word)))
}

fn kept(store: &mut Option<&mut dyn Store>) -> Before {
    let Some(store) = store else {
        return Before::Lost("there is no data partition at this start".to_owned());
    };
    let read = store.read().and_then(|bytes| {
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other)).transpose()
    });
    match read {
        Ok(Some(Some(record))) => Before::Taken(record),
        Ok(Some(None)) => Before::Nothing,
        Ok(None) => Before::Unknown,
        Err(why) => Before::Lost(format!("what was taken over earlier cannot be read: {why}")),
    }
}

/// Files that were hardly meant to be passed over: Windows hides the end of a name, editors keep copies.
fn beside(card: &mut dyn Card) -> Vec<String> {
    let Ok(mut names) = card.names() else { return Vec::new() };
    // A FAT does not tell small letters from capitals; where it is a folder on another file system, FILE itself is what counts.
    let absent = matches!(card.read(FILE), Ok(None));
    names.retain(|name| name != FILE && meant(name) && (absent || !name.eq_ignore_ascii_case(FILE)));
    names.sort();
    let more = names.len().saturating_sub(MOST_BESIDE);
    let shown = names.iter().take(MOST_BESIDE).map(|name| {
        format!(
            "\"{}\" is passed over, and what is secret in it stays on the card: the name must be {FILE} and nothing else. \
             Windows hides the end of a name (Explorer: View, File name extensions).",
            file::shown(name)
        )
    });
    shown.chain((more > 0).then(|| format!("{more} more such files are passed over."))).collect()
}

/// Whether whoever gave this name may have meant [`FILE`].
fn meant(name: &str) -> bool {
    let name = name.to_lowercase();
    let example = ["inferd.toml.example", &REPORT.to_lowercase()].contains(&name.as_str());
    // macOS leaves a file of such a name beside each that it copies.
    let shadow = name.starts_with("._");
    let parts = name.starts_with("inferd") && name.contains("toml");
    !example && !shadow && (parts || strsim::damerau_levenshtein(&name, FILE) <= 2)
}

fn take(
    bytes: &[u8],
    before: Option<&str>,
    keys: &[&str],
    judge: &dyn Fn(&str) -> Vec<Problem>,
) -> Result<Record, Vec<Problem>> {
    if bytes.len() > MAX_BYTES {
        return Err(vec![Problem::at(0, format!("it is larger than {MAX_BYTES} bytes."))]);
    }
    let written = Text::of(bytes).map_err(|why| vec![Problem::at(0, format!("{why}."))])?;
    let one = |problem| vec![problem];
    let (text, lost) = secrets::filled(&written.text, before, keys).map_err(one)?;
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
    let (taken_now, configured, closed) = (false, None, None);
    let Some(record) = record else {
        let (text, provision, lost) = (None, Provision::default(), Vec::new());
        return Settled { state, taken_now, text, provision, lost, notes, configured, closed };
    };
    let provision = file::parse(&record.text).unwrap_or_else(|problems| {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        notes.push(format!("this firmware cannot use what was taken over earlier: {first}"));
        Provision::default()
    });
    let (text, lost) = (Some(record.text), record.lost);
    Settled { state, taken_now, text, provision, lost, notes, configured, closed }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
