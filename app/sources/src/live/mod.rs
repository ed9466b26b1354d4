//! Sources that run: a thread of its own opens the port or the file and reads the clock, everything else is the pure modules.
//!
//! The path of a sample: bytes of a port, rows of a file, a generator or [`Source::push`] → numbered and timed → the model's
//! filters ([`crate::prepare`], begun anew at every gap) → the ring ([`crate::window`]) → [`Source::take`] by whoever infers.
//!
//! What it owns: at most one thread and one ring per source, both bounded when they are made. What it promises:
//! * **A port that is not there is looked for**, after 100 ms and then every second at the latest; what comes after it is back is
//!   never taken for a continuation.
//! * **The state is what is so when it is asked for** ([`Source::view`]): live, stale after 250 ms without a sample (a second of a
//!   pushed one), unplugged, at the wrong baud rate, ... each with a sentence for the operator.
//! * **Nobody who reads slowly holds up a sensor**: the oldest windows are overwritten and counted.
//!
//! * **Who looks at the signal itself** ([`Source::reader`]) gets the samples as they came, before the filters, and costs memory only while
//!   it does.
//!
//! It makes no sample up, and classifies nothing.

mod labels;
pub mod port;
mod reader;
mod serial;
mod spec;

pub use labels::Label;
pub use reader::{Block, Reader};
pub use spec::{Kind, SerialForm, Spec, SpecError, SpecLimits};

use self::labels::Labels;
use self::reader::Newest;
use crate::frame::line::Verdict;
use crate::motion::MotionStream;
use crate::pace::{Pace, Player, Settings as PaceSettings};
use crate::prepare::{Preparation, Stream};
use crate::recording::{Limits, Recording};
use crate::synthetic::EmgStream;
use crate::window::{self, Window, Windows};
use crate::{MAX_CHANNELS, Micros};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Samples of a recording or a generator are handed on this often: far below any hop, and 200 wake-ups a second.
const BEAT: Duration = Duration::from_millis(5);
/// A sample handed on later than this after it was due is late.
const TOLERANCE: Micros = Micros::from_millis(20);
/// Between two attempts to open what is not there.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// A push may stop for this long without being stale: it comes in pieces, over a network.
const PUSH_STALE: Micros = Micros::from_millis(1000);
/// The most values of one push: 4096 samples of 16 channels, two seconds.
pub const MAX_PUSH_VALUES: usize = 1 << 16;
/// The most values of a recording: 20 s of 16 channels at 2 kHz are 640,000.
pub const MAX_RECORDED: usize = 1 << 20;
/// The highest number of a pushed sample: what a client in JavaScript counts to exactly.
pub const MAX_SEQUENCE: u64 = 1 << 53;
/// A number that lies farther back than this is that of a sender that has begun anew, as on a serial port.
const BEGUN_ANEW: u64 = 1 << 16;
/// And one that lies farther ahead than this: nobody has lost so many samples.
const BEGUN_AHEAD: u64 = 1 << 32;

/// What is wrong with a source, or that nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It has just begun; nothing has come yet.
    Starting,
    /// Samples come.
    Live,
    /// The port is there, and nothing comes.
    Stale,
    /// The port or file is not there, or the port cannot be opened.
    Unplugged,
    /// The file is there, and is no recording that can be read.
    Unreadable,
    /// What comes is at another baud rate.
    WrongBaud,
    /// What comes is in no frames, or those of another version.
    NotFrames,
    /// It does not fit what it is for: another number of channels, another rate.
    Misfit,
    /// A recording that is not looped has come to its end.
    Over,
}

impl State {
    /// All of them, in the order metrics show them.
    pub const ALL: [Self; 9] = [
        Self::Starting,
        Self::Live,
        Self::Stale,
        Self::Unplugged,
        Self::Unreadable,
        Self::WrongBaud,
        Self::NotFrames,
        Self::Misfit,
        Self::Over,
    ];

    /// The state's name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Stale => "stale",
            Self::Unplugged => "unplugged",
            Self::Unreadable => "unreadable",
            Self::WrongBaud => "wrong_baud",
            Self::NotFrames => "not_frames",
            Self::Misfit => "misfit",
            Self::Over => "over",
        }
    }
}

/// A source at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// What is so.
    pub state: State,
    /// Why, in a sentence; empty when nothing is wrong.
    pub reason: String,
    /// How long no sample has come; `None` before the first.
    pub silent: Option<Duration>,
    /// What has been counted since the start.
    pub counts: Counts,
}

/// What a source has counted since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples that came, of every kind.
    pub received: u64,
    /// Samples whose numbers were left out.
    pub missing: u64,
    /// Gaps, of every kind.
    pub gaps: u64,
    /// Samples that came twice, late, or were no numbers.
    pub refused: u64,
    /// Frames that were damaged, and bytes that were none counted as frames of 1042.
    pub damaged: u64,
    /// Samples of a serial port with a value at the end of its range, or out of a frame whose sender says so.
    pub clipped: u64,
    /// Samples of a recording or generator that were handed on late, or passed over.
    pub late: u64,
    /// Windows taken.
    pub windows: u64,
    /// Windows nobody took in time.
    pub dropped: u64,
    /// Times that a port or file was opened.
    pub opened: u64,
}

/// Why a push is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Another kind of source has its samples from elsewhere.
    #[error("this source is not of kind push: its samples come from elsewhere")]
    Kind,
    /// No sample, or a part of one.
    #[error("samples of {0} values each are needed")]
    Shape(usize),
    /// More at once than may be.
    #[error("at most {MAX_PUSH_VALUES} values at once")]
    TooMany,
    /// A value that is no number.
    #[error("a value is not a finite number")]
    NotFinite,
    /// A number beyond what any sensor counts to.
    #[error("sequence is at most {MAX_SEQUENCE}, that of the sample behind the last one too")]
    Sequence,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Samples taken.
    pub samples: usize,
    /// The number the next one should have.
    pub next: u64,
    /// Samples that are missing before them.
    pub missing: u64,
}

/// Raw samples that were asked for by [`Source::record`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// Sample by sample, as they came: neither filtered nor scaled.
    pub values: Vec<f32>,
    /// The places, in samples, before which something is missing.
    pub breaks: Vec<usize>,
}

/// A recording that is being made.
struct Tap {
    wanted: usize,
    recorded: Recorded,
}

/// What lies below the samples.
#[derive(Clone, Debug, PartialEq)]
enum Link {
    Opening,
    Open,
    Line(Verdict),
    Unplugged(String),
    Unreadable(String),
    Misfit(String),
    Over,
}

/// A source that runs until it is dropped.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    spec: Spec,
    epoch: Instant,
    ending: Mutex<bool>,
    ended: Condvar,
    feed: Mutex<Feed>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// The samples' way, for the shape a model asks for.
struct Pipe {
    filters: Stream,
    windows: Windows,
}

struct Feed {
    /// The samples themselves, while somebody reads them.
    newest: Option<Newest>,
    /// What is being done, where the source knows.
    labels: Labels,
    pipe: Option<Pipe>,
    /// Why the samples do not fit the model.
    misfit: Option<String>,
    tap: Option<Tap>,
    link: Link,
    /// What is to be said of samples that come; empty when nothing is.
    remark: String,
    /// When the link became so.
    since: Instant,
    /// The number that follows, and the time of the last one.
    last: Option<(u64, Micros)>,
    arrived: Option<Instant>,
    counts: Counts,
    /// Of rings there were before this one.
    before: window::Counts,
}

impl Source {
    /// Starts it. `wake` is called, from its thread, whenever samples have come; it must not block.
    ///
    /// # Errors
    /// The system's, when there is no thread to be had.
    pub fn start(spec: Spec, wake: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let now = Instant::now();
        let feed = Feed {
            newest: None,
            labels: Labels::default(),
            pipe: None,
            misfit: None,
            tap: None,
            link: Link::Opening,
            remark: String::new(),
            since: now,
            last: None,
            arrived: None,
            counts: Counts::default(),
            before: window::Counts::default(),
        };
        let shared = Arc::new(Shared {
            spec,
            epoch: now,
            ending: Mutex::new(false),
            ended: Condvar::new(),
            feed: Mutex::new(feed),
            wake: Box::new(wake),
        });
        let thread = match &shared.spec.kind {
            Kind::Push => {
                shared.set(Link::Open);
                None
            }
            _ => {
                let shared = Arc::clone(&shared);
                Some(std::thread::Builder::new().name("source".to_owned()).spawn(move || shared.run())?)
            }
        };
        Ok(Self { shared, thread })
    }

    /// As it was started.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.shared.spec
    }

    /// Cuts windows of this length and hop from now on, out of samples prepared like this; `Err` keeps the source from giving any and is its state's
    /// reason.
    pub fn shape(&self, wanted: Result<(&Preparation, usize, usize), String>) {
        let spec = &self.shared.spec;
        let mut feed = self.shared.lock();
        if let Some(old) = feed.pipe.take() {
            feed.before = sum(&feed.before, old.windows.counts());
        }
        let made = wanted.and_then(|(preparation, length, hop)| {
            let usual = window::Settings::usual(spec.channels, length, hop, spec.rate.hz());
            // A live window that nobody takes is soon of no use; what was pushed at once waits for its turn.
            let settings = match spec.kind {
                Kind::Push => window::Settings { stale_after: PUSH_STALE, ..usual },
                _ => window::Settings { capacity: (length + 4 * hop).min(usual.capacity), ..usual },
            };
            let windows = Windows::new(settings).map_err(|e| e.to_string())?;
            Ok(Pipe { filters: preparation.stream(), windows })
        });
        match made {
            Ok(pipe) => (feed.pipe, feed.misfit) = (Some(pipe), None),
            Err(why) => feed.misfit = Some(why),
        }
        feed.last = None;
    }

    /// Gives the oldest window that is whole: its values go to `into`. With it, when its last sample came, and what the source says is
    /// being done in most of it.
    ///
    /// # Panics
    /// If `into` does not have room for exactly one window.
    pub fn take(&self, into: &mut [f32]) -> Option<(Window, Instant, Option<Label>)> {
        let now = self.shared.now();
        let mut feed = self.shared.lock();
        let Feed { pipe, labels, .. } = &mut *feed;
        let pipe = pipe.as_mut()?;
        let length = pipe.windows.settings().length;
        if length * pipe.windows.settings().channels != into.len() {
            return None;
        }
        let window = pipe.windows.take(now, into)?;
        let arrived = self.shared.epoch + Duration::from_micros(window.arrived.0);
        Some((window, arrived, labels.most(window.sequence, length)))
    }

    /// The newest samples, as many as `into` has room for, while the source is live.
    pub fn latest(&self, into: &mut [f32]) -> Option<Window> {
        let now = self.shared.now();
        let feed = self.shared.lock();
        let windows = &feed.pipe.as_ref()?.windows;
        (windows.flow(now) == window::Flow::Live).then(|| windows.latest(into))?
    }

    /// Keeps the next so many samples as they come, at most [`MAX_RECORDED`] values, beside giving windows. One recording at a time:
    /// another one takes its place.
    pub fn record(&self, samples: usize) {
        let wanted = samples.min(MAX_RECORDED / self.shared.spec.channels);
        let values = Vec::with_capacity(wanted * self.shared.spec.channels);
        self.shared.lock().tap = Some(Tap { wanted, recorded: Recorded { values, breaks: Vec::new() } });
    }

    /// How many samples of the recording there are, and how many are wanted; `None` without one.
    #[must_use]
    pub fn recorded(&self) -> Option<(usize, usize)> {
        let feed = self.shared.lock();
        feed.tap.as_ref().map(|t| (t.recorded.values.len() / self.shared.spec.channels, t.wanted))
    }

    /// Ends the recording, whole or not.
    pub fn take_recording(&self) -> Option<Recorded> {
        self.shared.lock().tap.take().map(|t| t.recorded)
    }

    /// A place from which the samples that come from now on can be read, as they come. While there is one, a second of them is kept.
    #[must_use]
    pub fn reader(&self) -> Reader {
        let spec = &self.shared.spec;
        Newest::reader(&mut self.shared.lock().newest, spec.channels, spec.rate.hz())
    }

    /// Appends what came since this reader last asked: samples that follow each other, `most` at the most. `None`: nothing came.
    pub fn read(&self, reader: &mut Reader, most: usize, into: &mut Vec<f32>) -> Option<Block> {
        self.shared.lock().newest.as_ref()?.read(reader, most, into)
    }

    /// How it is now.
    #[must_use]
    pub fn view(&self) -> View {
        let feed = self.shared.lock();
        let stale = match self.shared.spec.kind {
            Kind::Push => PUSH_STALE,
            _ => Micros::from_millis(250),
        };
        let stale = Duration::from_micros(stale.0);
        let silent = feed.arrived.map(|at| at.elapsed());
        let flows = silent.is_some_and(|s| s <= stale);
        let (state, reason) = match &feed.link {
            Link::Unplugged(why) => (State::Unplugged, why.clone()),
            Link::Unreadable(why) => (State::Unreadable, why.clone()),
            Link::Misfit(why) => (State::Misfit, why.clone()),
            Link::Over => (State::Over, "the recording is over".to_owned()),
            Link::Opening => (State::Starting, String::new()),
            _ if feed.misfit.is_some() => (State::Misfit, feed.misfit.clone().unwrap_or_default()),
            Link::Line(verdict) if !flows => {
                let state = match verdict {
                    Verdict::BaudTooHigh | Verdict::BaudWrong => State::WrongBaud,
                    Verdict::NotFrames | Verdict::OtherVersion => State::NotFrames,
                    _ => State::Stale,
                };
                // What it was like while it came is no reason why it does not.
                let verdict = if *verdict == Verdict::Good { Verdict::Silent } else { *verdict };
                (state, verdict.sentence().to_owned())
            }
            Link::Line(verdict @ Verdict::Noisy) => (State::Live, verdict.sentence().to_owned()),
            _ if flows => (State::Live, feed.remark.clone()),
            _ if silent.is_none() && feed.since.elapsed() <= stale => (State::Starting, String::new()),
            _ => {
                let kind = &self.shared.spec.kind;
                let why = match kind {
                    Kind::Push => "nobody pushes samples",
                    Kind::Synthetic { .. } | Kind::Motion { .. } | Kind::Recording { .. } => {
                        "this device is too busy to play it at its rate"
                    }
                    _ => Verdict::Silent.sentence(),
                };
                (State::Stale, why.to_owned())
            }
        };
        let windows = feed.pipe.as_ref().map_or(feed.before, |p| sum(&feed.before, p.windows.counts()));
        let counts = Counts {
            missing: windows.missing,
            gaps: windows.gaps,
            refused: windows.old + windows.not_finite + feed.counts.refused,
            windows: windows.windows,
            dropped: windows.dropped + windows.expired,
            ..feed.counts
        };
        View { state, reason, silent, counts }
    }

    /// Takes samples of a source of kind push: their values, sample by sample. `first` is the number of the first one; without
    /// it they continue what came before, unless nothing has come for a second. Number 0 begins anew, and one that lies back, by
    /// more than 65,536 or after a second of silence, or ahead by more than four billion.
    ///
    /// # Errors
    /// [`PushError`] when none is taken.
    pub fn push(&self, first: Option<u64>, values: &[f32]) -> Result<Taken, PushError> {
        let spec = &self.shared.spec;
        if spec.kind != Kind::Push {
            return Err(PushError::Kind);
        }
        if values.len() > MAX_PUSH_VALUES {
            return Err(PushError::TooMany);
        }
        if values.is_empty() || !values.len().is_multiple_of(spec.channels) {
            return Err(PushError::Shape(spec.channels));
        }
        if values.iter().any(|v| !v.is_finite()) {
            return Err(PushError::NotFinite);
        }
        // The next one must have a number, too.
        let most = MAX_SEQUENCE - (values.len() / spec.channels) as u64;
        if first.is_some_and(|first| first > most) {
            return Err(PushError::Sequence);
        }
        let (now, at) = (Instant::now(), self.shared.now());
        let mut feed = self.shared.lock();
        let next = feed.last.map_or(0, |(next, _)| next);
        let paused = feed.arrived.is_some_and(|t| t.elapsed() > Duration::from_micros(PUSH_STALE.0));
        let from = first.unwrap_or(next);
        let (back, ahead) = (next.saturating_sub(from), from.saturating_sub(next));
        let another = back > BEGUN_ANEW || ahead > BEGUN_AHEAD || (back > 0 && paused);
        let anew = first == Some(0) || (first.is_none() && paused) || another;
        let missing = if anew { 0 } else { ahead * u64::from(feed.last.is_some()) };
        let mut taken = 0;
        for (sequence, sample) in (from..).zip(values.chunks_exact(spec.channels)) {
            let anew = anew && sequence == from;
            taken += usize::from(feed.sample(sequence, spec.rate.offset(sequence), at, anew, sample));
        }
        // What was there before is no sign of life; where no model wants any, coming is all that samples can do.
        if taken > 0 || feed.pipe.is_none() {
            feed.arrived = Some(now);
        }
        let next = feed.last.map_or(0, |(next, _)| next);
        drop(feed);
        (self.shared.wake)();
        Ok(Taken { samples: taken, next, missing })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        *self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.ended.notify_all();
        if let Some(thread) = self.thread.take() {
            // It looks at the flag ten times a second at the least. A panic of it has been told by the panic's own words.
            let _ = thread.join();
        }
    }
}

impl Feed {
    /// What is being done in a sample that comes next.
    fn label(&mut self, sequence: u64, label: Option<Label>) {
        let kept = self.pipe.as_ref().map_or(0, |pipe| pipe.windows.settings().capacity);
        let oldest = sequence.saturating_sub(u64::try_from(kept).unwrap_or(u64::MAX));
        self.labels.push(sequence, label, oldest);
    }

    /// Takes a sample into the ring, filtered; nothing is filtered across a gap. Whether it was taken.
    fn sample(&mut self, sequence: u64, time: Micros, arrived: Micros, anew: bool, values: &[f32]) -> bool {
        self.counts.received += 1;
        match &mut self.newest {
            Some(newest) if newest.is_idle() => self.newest = None,
            Some(newest) => newest.push(sequence, time, anew, values),
            None => {}
        }
        let Some(pipe) = &mut self.pipe else { return false };
        let mut sample = [0.0; MAX_CHANNELS];
        let Some(sample) = sample.get_mut(..values.len()) else { return false };
        sample.copy_from_slice(values);
        let follows = self.last.is_some_and(|(next, before)| {
            sequence == next && time >= before && time - before <= pipe.windows.settings().max_step
        });
        if anew {
            pipe.windows.begin_anew();
        }
        if self.last.is_some_and(|(next, _)| sequence < next) && !anew {
            // Told by the ring that it is old; the filters must not see it.
            pipe.windows.push(sequence, time, arrived, sample);
            return false;
        }
        if anew || !follows {
            pipe.filters.reset();
        }
        pipe.filters.filter(sample);
        let taken = pipe.windows.push(sequence, time, arrived, sample).is_taken();
        if let Some(tap) = self.tap.as_mut().filter(|_| taken) {
            let have = tap.recorded.values.len() / values.len();
            if have < tap.wanted {
                if have > 0 && (anew || !follows) {
                    tap.recorded.breaks.push(have);
                }
                tap.recorded.values.extend_from_slice(values);
            }
        }
        if taken {
            self.last = Some((sequence + 1, time));
        }
        taken
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Feed> {
        // Counters and a ring: whole after every sample.
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn set(&self, link: Link) {
        let mut feed = self.lock();
        if feed.link != link {
            feed.link = link;
            feed.since = Instant::now();
        }
    }

    /// Waits; true when the source is to end.
    fn ends_within(&self, wait: Duration) -> bool {
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_timeout_while(ending, wait, |ending| !*ending);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn run(&self) {
        match &self.spec.kind {
            Kind::Push => {}
            Kind::Synthetic { script, seed, conditions } => {
                let mut stream = EmgStream::new(*script, *seed, *conditions);
                self.set(Link::Open);
                self.play(u64::MAX, false, None, |_| {
                    stream.next().map(|s| (s.values, Some(s.gesture.into())))
                });
            }
            Kind::Motion { motion, seed, conditions } => {
                let mut stream = MotionStream::new(*motion, *seed, *conditions);
                self.set(Link::Open);
                self.play(u64::MAX, false, None, |_| stream.next().map(|sample| (sample, None)));
            }
            Kind::Recording { path, looped } => {
                let mut retry = FIRST_RETRY;
                let mut refused = None;
                let recording = loop {
                    match read_recording(path, &mut refused) {
                        Some(Ok(recording)) => break recording,
                        Some(Err(why)) => {
                            let why = format!("{}: {why}", path.display());
                            let there = std::fs::symlink_metadata(path).is_ok();
                            self.set(if there { Link::Unreadable(why) } else { Link::Unplugged(why) });
                        }
                        None => {}
                    }
                    if self.ends_within(retry) {
                        return;
                    }
                    retry = (retry * 2).min(LAST_RETRY);
                };
                self.lock().counts.opened += 1;
                let (set, has) = (self.spec.channels, recording.channels());
                let rate = recording.rate_hz().filter(|hz| (hz / self.spec.rate.hz() - 1.0).abs() > 0.001);
                if set != has {
                    let why = format!("the recording has {has} channels, the source is set to {set}");
                    return self.set(Link::Misfit(why));
                }
                if let Some(hz) = rate {
                    let set = self.spec.rate.hz();
                    let why = format!("the recording was made at {hz} Hz, the source is set to {set} Hz");
                    return self.set(Link::Misfit(why));
                }
                self.set(Link::Open);
                let rows = recording.values();
                let block = recording.window_rows();
                self.play(recording.rows() as u64, *looped, block, |row| {
                    let row = usize::try_from(row).ok()?;
                    let label = recording.label(row).map(|number| Label { number, name: None });
                    Some((rows.get(row * has..(row + 1) * has)?, label))
                });
                if !self.ends_within(Duration::ZERO) {
                    self.set(Link::Over);
                }
            }
            Kind::Serial { path, baud, form, scale } => serial::read(self, path, *baud, *form, *scale),
        }
    }

    /// Hands rows on at their rate until they or the source end. Rows of two blocks do not follow each other.
    fn play<V: AsRef<[f32]>>(
        &self,
        rows: u64,
        looped: bool,
        block: Option<usize>,
        mut row: impl FnMut(u64) -> Option<(V, Option<Label>)>,
    ) {
        let rate = self.spec.rate;
        let settings = PaceSettings {
            pace: Pace::RealTime,
            rate,
            looped,
            // A quarter of a second at most, after the device had no time for so long.
            burst: u32::try_from(rate.due(Micros::from_millis(250))).unwrap_or(u32::MAX),
            tolerance: TOLERANCE,
        };
        let mut player = Player::new(settings, rows, self.now());
        loop {
            let now = self.now();
            let mut feed = self.lock();
            player.take(now, |due| {
                let joint = block.is_some_and(|b| due.row.is_multiple_of(b as u64));
                if let Some((values, label)) = row(due.row) {
                    feed.label(due.sequence, label);
                    feed.sample(due.sequence, due.time, now, due.anew || joint, values.as_ref());
                }
            });
            feed.counts.late = player.counts().late + player.counts().skipped;
            feed.arrived = Some(Instant::now());
            drop(feed);
            (self.wake)();
            let Some(next) = player.next_due() else { return };
            let wait = Duration::from_micros(next.since(self.now()).0).max(BEAT);
            if self.ends_within(wait) {
                return;
            }
        }
    }
}

/// A file's length and when it was last written.
type Written = (u64, Option<std::time::SystemTime>);

/// Reads a recording, unless it is the file that was `refused` before: reading may take long. Nothing but a file is opened: a
/// pipe would be waited for.
fn read_recording(path: &Path, refused: &mut Option<Written>) -> Option<Result<Recording, String>> {
    let about = match std::fs::metadata(path) {
        Ok(about) if about.is_file() => about,
        Ok(_) => return Some(Err("this is no file".to_owned())),
        Err(e) => return Some(Err(e.to_string())),
    };
    let written = (about.len(), about.modified().ok());
    if *refused == Some(written) {
        return None;
    }
    let read = File::open(path).map_err(|e| e.to_string()).and_then(|file| {
        Recording::read(io::BufReader::new(file), &Limits::default()).map_err(|e| e.to_string())
    });
    *refused = read.is_err().then_some(written);
    Some(read)
}

fn sum(a: &window::Counts, b: &window::Counts) -> window::Counts {
    window::Counts {
        samples: a.samples + b.samples,
        old: a.old + b.old,
        not_finite: a.not_finite + b.not_finite,
        channels: a.channels + b.channels,
        missing: a.missing + b.missing,
        gaps: a.gaps + b.gaps,
        windows: a.windows + b.windows,
        dropped: a.dropped + b.dropped,
        expired: a.expired + b.expired,
    }
}
