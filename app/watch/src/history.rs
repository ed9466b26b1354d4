//! What happened to this device, across resets: a bounded store of entries, each in one line.
//!
//! A file of lines, oldest first: `{"crc":"1a2b3c4d","entry":{...}}`, the CRC-32 of the entry's own bytes. It is replaced whole, by a
//! thread of its own ([`Writer`]), so a power cut leaves the old or the new file and a slow medium holds nobody up. A line that was
//! damaged later costs one entry. Where the medium takes nothing, the entries stay in memory and are written with a later one.
//!
//! **Bounds**: [`MAX_ENTRIES`] entries and [`MAX_BYTES`] bytes; the oldest give up their last words first, then go. **Wear**: entries that
//! something can cause over and over are written at most [`BURST`] times at once and then every [`REFILL`]; those in between wait
//! in memory for the next write.
//!
//! The keeper and the daemon have a store each; [`merge`] makes one list of them.

use crate::store::{Writer, Written};
use inferd_slots::frame;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Entries that a store keeps.
pub const MAX_ENTRIES: usize = 256;
/// Bytes that a store keeps.
pub const MAX_BYTES: usize = 256 * 1024;
/// Bytes of one entry with its frame.
pub const MAX_LINE: usize = 8 * 1024;
/// Last words of one entry: lines.
pub const MAX_WORDS: usize = 40;
/// Last words of one entry: bytes, as they stand in JSON.
pub const MAX_WORDS_BYTES: usize = 5 * 1024;
/// Bytes of a sentence.
pub const MAX_SENTENCE: usize = 1024;
/// Writes that repeated entries may cause at once.
pub const BURST: u32 = 16;
/// How soon after that they may cause the next one.
pub const REFILL: Duration = Duration::from_secs(600);

/// The file's name in the keeper's and in the daemon's directory of evidence.
pub const FILE: &str = "history.jsonl";

/// Why the board was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetReason {
    /// Power came back, or the reset button was pressed: nothing tells otherwise.
    Power,
    /// The hardware watchdog.
    Watchdog,
    /// The kernel panicked.
    Panic,
    /// Somebody asked for it.
    Request,
    /// The kernel panicked because it was out of memory.
    Oom,
    /// Nothing lasts here that could tell.
    Unknown,
}

impl ResetReason {
    /// Its name, as it stands in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Watchdog => "watchdog",
            Self::Panic => "panic",
            Self::Request => "request",
            Self::Oom => "oom",
            Self::Unknown => "unknown",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted up; 1 is the first.
    pub number: u64,
    /// The boot it happened in.
    pub boot: u64,
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
    /// Unix time in milliseconds, as the clock had it: no decision depends on it.
    pub clock_ms: u64,
    /// What happened.
    pub kind: Kind,
    /// One sentence for the operator.
    pub sentence: String,
    /// Numbers and names.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
    /// The last lines of what died, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The board started; the sentence says why.
    Boot,
    /// The keeper ended and was started again.
    Keeper,
    /// The daemon ended and was not asked to.
    DaemonEnd,
    /// The daemon stopped proving progress; the watchdog is no longer fed.
    LetGo,
    /// Safe mode began or ended.
    SafeMode,
    /// An engine host ended and was not asked to.
    HostEnd,
    /// A circuit breaker opened or closed.
    Breaker,
    /// A step of a device's recovery.
    Recovery,
    /// An alert was raised or cleared.
    Alert,
    /// Somebody asked for something: reboot, factory reset, watchdog test.
    Request,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Boot,
        Self::Keeper,
        Self::DaemonEnd,
        Self::LetGo,
        Self::SafeMode,
        Self::HostEnd,
        Self::Breaker,
        Self::Recovery,
        Self::Alert,
        Self::Request,
    ];

    /// Whether it cannot happen over and over within one boot: then it is written at once, whatever was written before.
    fn is_rare(self) -> bool {
        matches!(self, Self::Boot | Self::LetGo | Self::SafeMode)
    }
}

/// What is to be remembered; number, boot and times are added to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// One sentence for the operator.
    pub sentence: String,
    /// Numbers and names.
    pub detail: Value,
    /// The last lines of what died, oldest first.
    pub words: Vec<String>,
}

impl Event {
    /// One with a sentence and nothing else.
    pub fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        Self { kind, sentence: sentence.into(), detail: Value::Null, words: Vec::new() }
    }

    /// The same with numbers and names.
    #[must_use]
    pub fn with(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// The same with last words.
    #[must_use]
    pub fn saying(mut self, words: Vec<String>) -> Self {
        self.words = words;
        self
    }
}

/// A store of entries.
#[derive(Debug)]
pub struct History {
    path: Option<PathBuf>,
    boot: u64,
    writer: Arc<Writer>,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    lines: VecDeque<Line>,
    bytes: usize,
    damaged: u64,
    next: u64,
    wear: Wear,
    unwritten: u64,
}

#[derive(Debug)]
struct Line {
    entry: Entry,
    text: Vec<u8>,
}

impl Line {
    fn new(entry: Entry) -> Self {
        let text = line(&entry);
        Self { entry, text }
    }
}

/// What a store is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Entries in it.
    pub entries: usize,
    /// Lines that were damaged when it was opened.
    pub damaged: u64,
    /// Entries that are only in memory.
    pub unwritten: u64,
    /// What was written.
    pub written: Written,
}

impl History {
    /// Opens the store in a file of a directory that is there; `None`: in memory only. What cannot be read is an empty store.
    #[must_use]
    pub fn open(path: Option<PathBuf>, boot: u64, writer: Arc<Writer>) -> Self {
        let (entries, damaged) = path.as_deref().map(read).unwrap_or_default();
        let next = entries.iter().map(|e| e.number).max().unwrap_or(0).saturating_add(1);
        let lines: VecDeque<Line> = entries.into_iter().map(Line::new).collect();
        let bytes = lines.iter().map(|l| l.text.len()).sum();
        let mut kept = Kept { lines, bytes, damaged, next, wear: Wear::default(), unwritten: 0 };
        kept.bound();
        Self { path, boot, writer, kept: Mutex::new(kept) }
    }

    /// Adds an entry that happened now, and has it written. Never waits for the medium.
    pub fn add(&self, event: Event) -> Entry {
        self.add_at(event, uptime(), clock_ms())
    }

    fn add_at(&self, event: Event, uptime: Duration, clock_ms: u64) -> Entry {
        let mut kept = self.lock();
        let rare = event.kind.is_rare();
        let entry = fitting(Entry {
            number: kept.next,
            boot: self.boot,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            clock_ms,
            kind: event.kind,
            sentence: event.sentence,
            detail: event.detail,
            words: event.words,
        });
        kept.next = kept.next.saturating_add(1);
        let line = Line::new(entry.clone());
        kept.bytes += line.text.len();
        kept.lines.push_back(line);
        kept.unwritten += 1;
        kept.bound();
        if rare || kept.wear.takes(uptime) {
            self.put(&mut kept);
        }
        entry
    }

    /// Writes what is only in memory and waits for it; `false` when it is not written within `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        {
            let mut kept = self.lock();
            if kept.unwritten > 0 {
                self.put(&mut kept);
            }
        }
        self.path.is_some() && self.writer.flush(patience)
    }

    /// All entries, oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().lines.iter().map(|l| l.entry.clone()).collect()
    }

    /// What the store is like.
    #[must_use]
    pub fn health(&self) -> Health {
        let kept = self.lock();
        Health {
            entries: kept.lines.len(),
            damaged: kept.damaged,
            unwritten: kept.unwritten,
            written: self.writer.written(),
        }
    }

    fn put(&self, kept: &mut Kept) {
        let Some(path) = &self.path else { return };
        let mut bytes = Vec::with_capacity(kept.bytes);
        for line in &kept.lines {
            bytes.extend_from_slice(&line.text);
        }
        self.writer.put(path, bytes);
        kept.unwritten = 0;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Drops the oldest until the bounds hold; before that, the words of the oldest.
    fn bound(&mut self) {
        while self.lines.len() > MAX_ENTRIES {
            self.drop_oldest();
        }
        let newest = self.lines.len().saturating_sub(1);
        for index in 0..newest {
            if self.bytes <= MAX_BYTES {
                return;
            }
            let Some(line) = self.lines.get_mut(index) else { return };
            if !line.entry.words.is_empty() {
                self.bytes -= line.text.len();
                line.entry.words.clear();
                line.text = self::line(&line.entry);
                self.bytes += line.text.len();
            }
        }
        while self.bytes > MAX_BYTES {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.text.len();
        }
    }
}

/// How many writes repeated entries may still cause.
#[derive(Debug)]
struct Wear {
    left: u32,
    since: Duration,
}

impl Default for Wear {
    fn default() -> Self {
        Self { left: BURST, since: Duration::ZERO }
    }
}

impl Wear {
    fn takes(&mut self, now: Duration) -> bool {
        while self.left < BURST && now.saturating_sub(self.since) >= REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == BURST {
            self.since = now;
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

/// The name of an entry in its line.
const NAME: &str = "entry";

/// An entry as its line, with the line's end.
#[must_use]
pub fn line(entry: &Entry) -> Vec<u8> {
    frame::line(NAME, entry)
}

/// The entries in a store's bytes, and how many lines were damaged. Never fails: a store is read as far as it can be.
#[must_use]
pub fn parse(bytes: &[u8]) -> (Vec<Entry>, u64) {
    frame::parse(NAME, bytes)
}

/// The entries of a file that somebody else writes, and how many lines were damaged; none where it cannot be read.
#[must_use]
pub fn read(path: &Path) -> (Vec<Entry>, u64) {
    let mut bytes = Vec::new();
    let limit = u64::try_from(2 * MAX_BYTES).unwrap_or(u64::MAX);
    match File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => parse(&bytes),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(file = %path.display(), %error, "the history cannot be read");
            }
            (Vec::new(), 0)
        }
    }
}

/// One list of several stores' entries, oldest first: by boot, then by uptime.
#[must_use]
pub fn merge(stores: Vec<Vec<Entry>>) -> Vec<Entry> {
    let mut all: Vec<Entry> = stores.into_iter().flatten().collect();
    all.sort_by_key(|e| (e.boot, e.uptime_ms, e.number));
    all
}

/// The entry with its texts cut so that it fits into a line.
fn fitting(mut entry: Entry) -> Entry {
    clip(&mut entry.sentence, MAX_SENTENCE);
    let mut left = MAX_WORDS_BYTES;
    let mut words: Vec<String> = Vec::new();
    for word in entry.words.iter().rev().take(MAX_WORDS) {
        let mut word = word.clone();
        clip(&mut word, 512);
        let length = serde_json::to_string(&word).map_or(usize::MAX, |text| text.len() + 1);
        let Some(rest) = left.checked_sub(length) else { break };
        left = rest;
        words.push(word);
    }
    words.reverse();
    entry.words = words;
    if line(&entry).len() > MAX_LINE {
        entry.detail = Value::Null;
    }
    if line(&entry).len() > MAX_LINE {
        entry.words.clear();
    }
    entry
}

fn clip(text: &mut String, most: usize) {
    if text.len() > most {
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('\u{2026}');
    }
}

/// Time since the kernel started, as `/proc/uptime` counts it.
#[must_use]
pub fn uptime() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(Duration::ZERO, Duration::from)
}

fn clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LONG: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn open(path: &Path, boot: u64) -> History {
        History::open(Some(path.to_owned()), boot, Writer::start())
    }

    #[test]
    fn what_was_added_is_there_after_a_restart_and_counted_on() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let first = open(&path, 1);
        first.add(Event::new(Kind::Boot, "power came").with(json!({"a": 1})).saying(vec!["bye".into()]));
        assert!(first.flush(LONG));
        let second = open(&path, 2);
        second.add(Event::new(Kind::DaemonEnd, "it ended"));
        assert!(second.flush(LONG));
        let (entries, damaged) = read(&path);
        assert_eq!(entries, second.entries());
        assert_eq!(damaged, 0);
        assert_eq!(entries.iter().map(|e| (e.number, e.boot)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
        assert_eq!(entries[0].detail, json!({"a": 1}));
    }

    #[test]
    fn every_flipped_bit_costs_one_entry_at_most() {
        let entry = |number| Entry {
            number,
            boot: 1,
            uptime_ms: 5,
            clock_ms: 6,
            kind: Kind::Alert,
            sentence: "hot".into(),
            detail: Value::Null,
            words: vec![],
        };
        let bytes: Vec<u8> = (1..=3).flat_map(|n| line(&entry(n))).collect();
        assert_eq!(parse(&bytes).0.len(), 3);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (entries, _) = parse(&damaged);
            assert!(entries.iter().all(|e| *e == entry(e.number)), "bit {bit}: a damaged entry was believed");
            // A flipped line end joins two lines.
            assert!(entries.len() >= if bytes[bit / 8] == b'\n' { 1 } else { 2 }, "bit {bit}: {entries:?}");
        }
    }

    #[test]
    fn the_bounds_hold_and_the_newest_stay() {
        let history = History::open(None, 1, Writer::start());
        for number in 0..1000 {
            let words = (0..100).map(|n| format!("line {n} \u{0} \" {}", "x".repeat(300))).collect();
            history.add(Event::new(Kind::HostEnd, "y".repeat(5000) + &number.to_string()).saying(words));
        }
        let entries = history.entries();
        let bytes: usize = entries.iter().map(|e| line(e).len()).sum();
        assert!(bytes <= MAX_BYTES && entries.len() <= MAX_ENTRIES, "{bytes} bytes, {}", entries.len());
        assert!(entries.len() > 100, "old entries give up their words first: {}", entries.len());
        assert!(entries.iter().all(|e| line(e).len() <= MAX_LINE));
        let last = entries.last().unwrap();
        assert_eq!(last.number, 1000);
        assert!(last.words.last().unwrap().starts_with("line 99"), "the last words are the newest");
    }

    #[test]
    fn details_that_do_not_fit_are_left_out() {
        let history = History::open(None, 1, Writer::start());
        let entry = history.add(Event::new(Kind::Alert, "s").with(json!("x".repeat(MAX_LINE))));
        assert_eq!(entry.detail, Value::Null);
    }

    #[test]
    fn what_repeats_is_written_sixteen_times_and_then_every_ten_minutes_and_what_is_rare_at_once() {
        let root = tempfile::tempdir().unwrap();
        let history = open(&root.path().join(FILE), 1);
        let count = |from: u64, kind| {
            let mut written = 0;
            for second in from..from + 600 {
                history.add_at(Event::new(kind, "again"), at(second), 0);
                written += u64::from(history.health().unwritten == 0);
            }
            written
        };
        assert_eq!(count(0, Kind::DaemonEnd), 16);
        assert_eq!(count(600, Kind::DaemonEnd), 1);
        assert_eq!(count(1200, Kind::LetGo), 600);
        // A quiet day fills the budget, and not more than that.
        assert_eq!(count(100_000, Kind::DaemonEnd), 16);
    }

    #[test]
    fn two_stores_make_one_list_by_boot_and_uptime() {
        let entry = |boot, uptime_ms, number| Entry {
            number,
            boot,
            uptime_ms,
            clock_ms: 0,
            kind: Kind::Alert,
            sentence: String::new(),
            detail: Value::Null,
            words: vec![],
        };
        let merged = merge(vec![vec![entry(1, 5, 1), entry(2, 9, 2)], vec![entry(1, 7, 1), entry(2, 1, 2)]]);
        let order: Vec<_> = merged.iter().map(|e| (e.boot, e.uptime_ms)).collect();
        assert_eq!(order, [(1, 5), (1, 7), (2, 1), (2, 9)]);
    }
}
