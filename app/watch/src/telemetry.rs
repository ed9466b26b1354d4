//! Telemetry: what the device did, one line of JSON at a time, kept on the device until somebody fetches it.
//!
//! ```text
//! samples, events ──► pending (memory, bounded) ──► one append every few minutes ──► telemetry-00000007.ndjson
//!                                                                     full: gzip ──► telemetry-00000006.ndjson.gz ──► the oldest give way
//! ```
//!
//! Handing a line over costs a copy under a lock and waits for nothing. Lines gather in memory and are written in one append, with
//! one sync, when they are [`Settings::write_every`] old or fill [`BUFFER`]. A medium that is full, read-only or broken is asked
//! again after a minute, then after two, up to an hour; meanwhile lines that do not fit in memory are dropped, newest first, counted,
//! and the gap is told in the file. `telemetry.schema.json` beside this room describes a line.

use crate::{
    history::uptime,
    permit::Permit,
    shelf::{Item, Shelf},
};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value, json};
use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The version of the lines' form.
pub const VERSION: u64 = 1;
/// Bytes that are written at once at the latest.
pub const BUFFER: usize = 64 << 10;
/// The most bytes that wait in memory, those of a write in progress included.
const WAITING: usize = 2 * BUFFER;
/// The longest line; a longer one is dropped.
const LINE: usize = 16 << 10;
/// The first wait after a failed write; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The most files: with an hour of lines in each, half a year.
const FILES: usize = 4096;
const OPEN: &str = ".ndjson";
const CLOSED: &str = ".ndjson.gz";

/// What a deployment decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the files lie.
    pub dir: PathBuf,
    /// How old a line gets before it is written.
    pub write_every: Duration,
    /// How large a file gets before it is compressed.
    pub file_bytes: u64,
    /// The most room all files take.
    pub quota: u64,
}

/// What makes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The daemon began.
    Start,
    /// The daemon ended as asked.
    Stop,
    /// The numbers since the last sample.
    Sample,
    /// An alert was raised or cleared.
    Alert,
    /// An engine host ended and was not asked to.
    HostEnd,
    /// A model came, went or was replaced.
    Model,
    /// Lines are missing here.
    Gap,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Sample => "sample",
            Self::Alert => "alert",
            Self::HostEnd => "host-end",
            Self::Model => "model",
            Self::Gap => "gap",
        }
    }
}

/// How the writing goes, for `/metrics` and people.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Lines that were handed over.
    pub lines: u64,
    /// Lines that were dropped.
    pub dropped: u64,
    /// Bytes waiting in memory.
    pub waiting: u64,
    /// Bytes written since the start, the compressed ones included.
    pub written: u64,
    /// Writes that failed since the start.
    pub failures: u64,
    /// Why the last write failed, when the last one did.
    pub problem: Option<String>,
}

/// Where lines are handed over. Clones are the same one.
#[derive(Clone)]
pub struct Telemetry {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Notified when lines are to be written now, and when the thread has ended.
    changed: Condvar,
    shelf: Shelf,
    boot: u64,
}

#[derive(Default)]
struct State {
    pending: Pending,
    status: Status,
    ending: bool,
    ended: bool,
}

/// Lines in memory.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    lines: u64,
    /// How old the oldest is: when it came.
    since: Option<Duration>,
    /// Bytes that are being written.
    in_flight: usize,
    /// Lines dropped since the file was told.
    untold: u64,
    /// Of the write in progress: how long it is without the line that tells of a gap, and how many lines that one tells of.
    telling: (usize, u64),
}

impl Pending {
    /// Takes a line in; false: it was dropped.
    fn push(&mut self, line: &[u8], now: Duration) -> bool {
        if line.len() > LINE || self.bytes.len() + self.in_flight + line.len() > WAITING {
            self.untold += 1;
            return false;
        }
        self.bytes.extend_from_slice(line);
        self.lines += 1;
        self.since.get_or_insert(now);
        true
    }

    /// When they are to be written.
    fn due(&self, every: Duration) -> Option<Duration> {
        let since = self.since?;
        Some(if self.bytes.len() >= BUFFER { Duration::ZERO } else { since + every })
    }
}

/// When the next attempt is made, after failures.
#[derive(Debug, Default)]
struct Patience {
    wait: Duration,
    not_before: Duration,
}

impl Patience {
    fn failed(&mut self, now: Duration) {
        self.wait = (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        self.not_before = now + self.wait;
    }
}

/// What the writing thread does, without thread and clock.
struct Writer<M> {
    medium: M,
    settings: Settings,
    patience: Patience,
    /// The file that grows: its number and length.
    current: Option<(u64, u64)>,
    /// Written, for [`Status`].
    written: u64,
}

/// The directory, as far as the writer uses it.
trait Medium {
    fn list(&self) -> io::Result<Vec<Item>>;
    fn tidy(&self) -> io::Result<()>;
    fn mend(&self, name: &str) -> io::Result<u64>;
    fn make_room(&self, bytes: u64, keep: Option<&str>) -> io::Result<bool>;
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<bool>;
    fn name(&self, number: u64, ending: &str) -> String;
    fn may_write(&self, bytes: u64) -> bool;
}

impl Medium for Shelf {
    fn list(&self) -> io::Result<Vec<Item>> {
        self.list()
    }
    fn tidy(&self) -> io::Result<()> {
        self.tidy()
    }
    fn mend(&self, name: &str) -> io::Result<u64> {
        self.mend(name)
    }
    fn make_room(&self, bytes: u64, keep: Option<&str>) -> io::Result<bool> {
        self.make_room(bytes, keep)
    }
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.append(name, bytes)
    }
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.read(name)
    }
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.put(name, bytes)
    }
    fn remove(&self, name: &str) -> io::Result<bool> {
        self.remove(name)
    }
    fn name(&self, number: u64, ending: &str) -> String {
        self.name(number, ending)
    }
    fn may_write(&self, bytes: u64) -> bool {
        self.permit().may_write(bytes) && !self.permit().shedding()
    }
}

/// What became of an attempt.
#[derive(Debug)]
enum Outcome {
    Written,
    /// Today's budget is used up, or the device is busy: later.
    Later,
    Failed(io::Error),
}

impl<M: Medium> Writer<M> {
    fn new(medium: M, settings: Settings) -> Self {
        // Room for the file that grows, its compressed twin while that is made, and one older.
        let file_bytes = settings.file_bytes.min(settings.quota / 4).max(BUFFER as u64);
        let settings = Settings { file_bytes, ..settings };
        Self { medium, settings, patience: Patience::default(), current: None, written: 0 }
    }

    /// Whether an attempt makes sense now.
    fn ready(&self, now: Duration) -> bool {
        now >= self.patience.not_before
    }

    fn turn(&mut self, batch: &[u8], now: Duration) -> Outcome {
        if !self.medium.may_write(batch.len() as u64) {
            self.patience.not_before = now + FIRST_WAIT;
            return Outcome::Later;
        }
        match self.write(batch) {
            Ok(()) => {
                self.patience = Patience::default();
                Outcome::Written
            }
            Err(e) => {
                // What is there may be another than was remembered.
                self.current = None;
                self.patience.failed(now);
                Outcome::Failed(e)
            }
        }
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        let len = batch.len() as u64;
        let (mut number, mut have) = match self.current {
            Some(current) => current,
            None => self.open()?,
        };
        if have > 0 && have + len > self.settings.file_bytes {
            self.close(number, have);
            (number, have) = (number + 1, 0);
            self.current = Some((number, have));
        }
        let name = self.medium.name(number, OPEN);
        // The file is counted as it is; what is asked for is what comes on top, a block more than that at most.
        if !self.medium.make_room(len, Some(&name))? {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the quota has no room"));
        }
        self.medium.append(&name, batch)?;
        self.written += len;
        self.current = Some((number, have + len));
        Ok(())
    }

    /// The file to go on with after a start: the newest, cut back to whole lines; or the one after it.
    fn open(&mut self) -> io::Result<(u64, u64)> {
        self.medium.tidy()?;
        let all = self.medium.list()?;
        let Some(newest) = all.last() else { return Ok((1, 0)) };
        // Both twins are there when the power went between the rename and the removal.
        for item in all.iter().filter(|i| i.name.ends_with(OPEN)) {
            let twin = self.medium.name(item.number, CLOSED);
            if all.iter().any(|i| i.name == twin) {
                self.medium.remove(&item.name)?;
            }
        }
        let open = self.medium.name(newest.number, OPEN);
        if newest.name != open {
            return Ok((newest.number + 1, 0));
        }
        Ok((newest.number, self.medium.mend(&open)?))
    }

    /// Compresses a full file. When that does not work it stays as it is: the next one is begun all the same.
    fn close(&mut self, number: u64, have: u64) {
        let (open, closed) = (self.medium.name(number, OPEN), self.medium.name(number, CLOSED));
        let pack = || -> io::Result<u64> {
            if !self.medium.may_write(have / 4)
                || !self.medium.make_room(have + have / 100 + 64, Some(&open))?
            {
                return Ok(0);
            }
            let Some(lines) = self.medium.read(&open)? else { return Ok(0) };
            let mut gz = GzEncoder::new(Vec::with_capacity(lines.len() / 4), Compression::default());
            gz.write_all(&lines)?;
            let packed = gz.finish()?;
            self.medium.put(&closed, &packed)?;
            self.medium.remove(&open)?;
            Ok(packed.len() as u64)
        };
        match pack() {
            Ok(bytes) => self.written += bytes,
            Err(e) => tracing::debug!(file = open, error = %e, "a full telemetry file stays uncompressed"),
        }
    }
}

impl Telemetry {
    /// Begins, with a thread of its own. `boot` counts boots; 0 where nobody does.
    #[must_use]
    pub fn start(settings: Settings, boot: u64, permit: Arc<dyn Permit>) -> Self {
        let shelf =
            Shelf::new(settings.dir.clone(), ("telemetry", &[OPEN, CLOSED]), settings.quota, FILES, permit);
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), shelf: shelf.clone(), boot });
        let of_thread = Arc::clone(&shared);
        let every = settings.write_every;
        let writer = Writer::new(shelf, settings);
        let thread = std::thread::Builder::new()
            .name("telemetry".into())
            .spawn(move || of_thread.write_until_the_end(writer, every));
        if let Err(e) = thread {
            tracing::error!(error = %e, "no telemetry: its thread cannot be had");
            shared.lock().ended = true;
        }
        Self { shared }
    }

    /// Hands a line over: the fields of `what` behind those that every line has.
    pub fn line(&self, kind: Kind, what: Map<String, Value>) {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = line(kind, clock, uptime(), self.shared.boot, what);
        let mut state = self.shared.lock();
        state.status.lines += 1;
        if !state.pending.push(&line, uptime()) {
            state.status.dropped += 1;
        }
        // The thread sleeps until the first line of a write is old enough, or there is enough for one.
        if state.pending.lines == 1 || state.pending.bytes.len() >= BUFFER {
            self.shared.changed.notify_all();
        }
    }

    /// How the writing goes.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.shared.lock();
        Status { waiting: state.pending.bytes.len() as u64, ..state.status.clone() }
    }

    /// The files. Blocking.
    #[must_use]
    pub fn shelf(&self) -> &Shelf {
        &self.shared.shelf
    }

    /// Writes what waits, once, and ends; after so long at the latest. Blocking.
    pub fn end(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        state.ending = true;
        self.shared.changed.notify_all();
        while !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Sums and appends: a panic leaves nothing half done that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_until_the_end(&self, mut writer: Writer<Shelf>, every: Duration) {
        let mut state = self.lock();
        loop {
            let now = uptime();
            let due = state.pending.due(every).map(|due| due.max(writer.patience.not_before));
            let last = state.ending;
            match due {
                Some(due) if due <= now || last => {}
                None if last => break,
                // The clock of waiting does not run in suspend; looking once a minute is often enough.
                due => {
                    let wait = due.map_or(FIRST_WAIT, |due| (due - now).min(FIRST_WAIT));
                    state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            }
            if last && !writer.ready(now) {
                break;
            }
            let (batch, lines) = state.take(now, self.boot);
            drop(state);
            let outcome = writer.turn(&batch, now);
            state = self.lock();
            state.settle(&outcome, batch, lines, now, writer.written);
            if last {
                break;
            }
        }
        state.ended = true;
        self.changed.notify_all();
    }
}

impl State {
    /// Everything that waits, and how many lines that is; what was dropped is told behind it.
    fn take(&mut self, now: Duration, boot: u64) -> (Vec<u8>, u64) {
        let pending = &mut self.pending;
        pending.telling = (pending.bytes.len(), pending.untold);
        if pending.untold > 0 {
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let mut what = Map::new();
            what.insert("lines".into(), pending.untold.into());
            pending.bytes.extend_from_slice(&line(Kind::Gap, clock, now, boot, what));
            pending.untold = 0;
        }
        let batch = std::mem::take(&mut pending.bytes);
        pending.in_flight = batch.len();
        pending.since = None;
        (batch, std::mem::take(&mut pending.lines))
    }

    fn settle(&mut self, outcome: &Outcome, mut batch: Vec<u8>, lines: u64, now: Duration, written: u64) {
        self.status.written = written;
        self.pending.in_flight = 0;
        let problem = match outcome {
            Outcome::Written => None,
            Outcome::Later => self.status.problem.take(),
            Outcome::Failed(e) => {
                self.status.failures += 1;
                Some(e.to_string())
            }
        };
        match (&self.status.problem, &problem) {
            (None, Some(why)) => tracing::warn!(why, "telemetry cannot be written; it is tried again"),
            (Some(_), None) if matches!(outcome, Outcome::Written) => {
                tracing::info!("telemetry is written again")
            }
            _ => {}
        }
        self.status.problem = problem;
        if !matches!(outcome, Outcome::Written) {
            // Before what came meanwhile, and the gap is told anew: it may have grown.
            let (len, untold) = std::mem::take(&mut self.pending.telling);
            batch.truncate(len);
            self.pending.untold += untold;
            let newer = std::mem::replace(&mut self.pending.bytes, batch);
            self.pending.bytes.extend_from_slice(&newer);
            self.pending.lines += lines;
            self.pending.since = Some(now);
        }
    }
}

/// One line, its end included.
fn line(kind: Kind, clock: Duration, uptime: Duration, boot: u64, what: Map<String, Value>) -> Vec<u8> {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let mut all = json!({
        "v": VERSION,
        "kind": kind.word(),
        "clock_ms": millis(clock),
        "boot": boot,
        "uptime_ms": millis(uptime),
    });
    if let Value::Object(all) = &mut all {
        for (key, value) in what {
            all.entry(key).or_insert(value);
        }
    }
    let mut line = all.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests;
