//! What asks the device, beside the screen: one thread that asks for its state, one that listens to a source.
//!
//! **Requests.** One every [`TICK`], each after the answer to the one before: `/status` every second time, in between sources, and
//! every third time of those slots, readings or alerts. While nobody answers the pauses grow, up to [`LONGEST_PAUSE`]. A stream
//! is a request of its own, begun anew after [`STREAM_LASTS`], so that no thread of ours waits longer for a connection that was cut
//! without a word.

use super::text::{clean, clean_all};
use crate::client::{Client, ClientError};
use ratatui::crossterm::event::Event;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// From one question to the next.
const TICK: Duration = Duration::from_millis(450);
/// The longest pause between two tries to reach a device that does not answer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// How long one answer may take.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long one stream lasts before it is begun anew.
const STREAM_LASTS: Duration = Duration::from_secs(60);
/// Frames a second that are asked for.
const FPS: u32 = 8;
/// The longest line of a stream that is read: its events are below 1400 bytes.
const LONGEST_LINE: u64 = 64 << 10;

/// What a device can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// `/status`
    Status,
    /// `/api/v1/sources`
    Sources,
    /// `/api/v1/slots`
    Slots,
    /// `/api/v1/monitoring/status`
    Monitoring,
    /// `/api/v1/alerts`
    Alerts,
}

impl What {
    /// All of them, in the order of the page.
    pub const ALL: [Self; 5] = [Self::Status, Self::Sources, Self::Slots, Self::Monitoring, Self::Alerts];

    /// Where it is asked.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Status => "/status",
            Self::Sources => "/api/v1/sources",
            Self::Slots => "/api/v1/slots",
            Self::Monitoring => "/api/v1/monitoring/status",
            Self::Alerts => "/api/v1/alerts",
        }
    }

    /// The question of a round.
    fn of(round: u64) -> Self {
        match round % 12 {
            2 => Self::Slots,
            6 => Self::Monitoring,
            10 => Self::Alerts,
            even if even.is_multiple_of(2) => Self::Sources,
            _ => Self::Status,
        }
    }
}

/// What the screen is told.
#[derive(Debug)]
pub enum News {
    /// A question is on its way.
    Asked(Instant),
    /// An answer: its page, or why the device refuses it.
    Answer(What, Result<Value, String>),
    /// Nobody answers; tried again after this pause.
    Lost { why: String, pause: Duration },
    /// Of the stream of this number: an event, or why there is none.
    Live(u64, Result<Value, String>),
    /// Of the terminal.
    Terminal(Event),
    /// The program is to end.
    End,
}

/// What the screen wants.
#[derive(Debug, Default)]
struct Wish {
    paused: bool,
    /// The number of the stream that is wanted, and its source.
    stream: u64,
    source: Option<String>,
    /// The device answers: a stream may be tried.
    reached: bool,
    /// Counts orders to try at once.
    again: u64,
}

/// What the screen wants of the threads that ask.
#[derive(Debug, Default)]
pub struct Wishes {
    wish: Mutex<Wish>,
    changed: Condvar,
}

impl Wishes {
    fn change(&self, change: impl FnOnce(&mut Wish)) {
        change(&mut self.wish.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Asks no more, or again.
    pub fn pause(&self, paused: bool) {
        self.change(|w| (w.paused, w.again) = (paused, w.again + 1));
    }

    /// Tries at once.
    pub fn again(&self) {
        self.change(|w| w.again += 1);
    }

    /// Whether the device answers.
    pub fn reached(&self, reached: bool) {
        self.change(|w| w.reached = reached);
    }

    /// Listens to this source from now on; the number of its stream.
    pub fn listen(&self, source: Option<String>) -> u64 {
        let mut number = 0;
        self.change(|w| {
            w.stream += 1;
            (number, w.source) = (w.stream, source);
        });
        number
    }

    /// Waits so long, or until it is to be tried at once; while paused, until it no longer is.
    fn rest(&self, pause: Duration) {
        let wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        let before = wish.again;
        let rested = self.changed.wait_timeout_while(wish, pause, |w| w.again == before);
        let wish = rested.map_or_else(|e| e.into_inner().0, |(wish, _)| wish);
        drop(self.changed.wait_while(wish, |w| w.paused));
    }

    /// Waits until there is something to listen to; its number and source.
    fn next_stream(&self) -> (u64, String) {
        let wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |w: &mut Wish| w.paused || !w.reached || w.source.is_none();
        let wish = self.changed.wait_while(wish, idle).unwrap_or_else(PoisonError::into_inner);
        (wish.stream, wish.source.clone().unwrap_or_default())
    }

    /// Whether this stream is still the one that is wanted.
    fn wants(&self, stream: u64) -> bool {
        let wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        wish.stream == stream && !wish.paused
    }
}

/// The pause after one that did not help.
fn grown(pause: Duration) -> Duration {
    (pause * 8 / 5).min(LONGEST_PAUSE)
}

/// Asks one thing. The outer error: nobody answers.
///
/// # Errors
/// Why the device cannot be reached.
pub fn ask(client: &Client, what: What) -> Result<Result<Value, String>, ClientError> {
    match client.json::<Value>(what.path()) {
        Ok(mut page) => {
            clean_all(&mut page);
            Ok(Ok(page))
        }
        Err(ClientError::Refused(why)) => Ok(Err(clean(&why))),
        Err(lost) => Err(lost),
    }
}

/// Asks for the device's state for as long as somebody hears it.
pub fn poll(client: &Client, wishes: &Arc<Wishes>, news: &Sender<News>) {
    let (mut round, mut pause) = (1, TICK);
    loop {
        let what = What::of(round);
        let told = news.send(News::Asked(Instant::now())).and_then(|()| match ask(client, what) {
            Ok(answer) => {
                (round, pause) = (round + 1, TICK);
                wishes.reached(true);
                news.send(News::Answer(what, answer))
            }
            Err(lost) => {
                // The state comes first when it is back.
                (round, pause) = (1, grown(pause));
                wishes.reached(false);
                news.send(News::Lost { why: clean(&lost.to_string()), pause })
            }
        });
        if told.is_err() {
            return;
        }
        wishes.rest(pause);
    }
}

/// Listens to whatever source is wanted for as long as somebody hears it.
pub fn listen(client: &Client, wishes: &Arc<Wishes>, news: &Sender<News>) {
    let (mut pause, mut of) = (TICK, 0);
    loop {
        let (stream, source) = wishes.next_stream();
        if stream != of {
            (pause, of) = (TICK, stream);
        }
        let heard = one_stream(client, wishes, news, stream, &source);
        match heard {
            Ok(0) | Err(ClientError::Unreachable { .. }) => pause = grown(pause),
            Ok(_) => pause = TICK,
            Err(refused) => {
                pause = grown(pause);
                let why = clean(&refused.to_string());
                if news.send(News::Live(stream, Err(why))).is_err() {
                    return;
                }
            }
        }
        wishes.rest(pause);
    }
}

/// How many events of one stream were heard until it ended or was no longer wanted.
fn one_stream(
    client: &Client,
    wishes: &Wishes,
    news: &Sender<News>,
    stream: u64,
    source: &str,
) -> Result<u64, ClientError> {
    let form = json!({ "emg_mode": source, "fps": FPS, "duration_seconds": STREAM_LASTS.as_secs() });
    let body = client.follow("/infer/stream", form.to_string().as_bytes(), STREAM_LASTS + PATIENCE * 3)?;
    let mut lines = BufReader::new(body);
    let (mut heard, mut line) = (0, Vec::new());
    while wishes.wants(stream) {
        line.clear();
        match lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(1..) if line.ends_with(b"\n") => {}
            _ => return Ok(heard),
        }
        let Some(data) = line.strip_prefix(b"data:") else { continue };
        let Ok(mut event) = serde_json::from_slice::<Value>(data) else { continue };
        clean_all(&mut event);
        if event["status"] == "completed" {
            return Ok(heard);
        }
        let told = match event["error"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => Ok(event),
        };
        heard += 1;
        if news.send(News::Live(stream, told)).is_err() {
            return Ok(heard);
        }
    }
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_asked_every_second_time_and_everything_else_in_turn() {
        let asked: Vec<What> = (1..=12).map(What::of).collect();
        assert!(asked.iter().step_by(2).all(|what| *what == What::Status), "{asked:?}");
        for what in What::ALL {
            assert!(asked.contains(&what), "{what:?}");
        }
        let in_a_second = Duration::from_secs(1).as_millis() / TICK.as_millis();
        assert!(in_a_second < 4, "never more than a few requests a second");
    }

    #[test]
    fn pauses_grow_and_have_an_end() {
        let mut pause = TICK;
        for _ in 0..20 {
            let next = grown(pause);
            assert!(next > pause || next == LONGEST_PAUSE, "{next:?}");
            pause = next;
        }
        assert_eq!(pause, LONGEST_PAUSE);
    }

    #[test]
    fn a_pause_ends_at_once_when_somebody_wants_to_try_again() {
        let wishes = Arc::new(Wishes::default());
        let theirs = wishes.clone();
        let resting = std::thread::spawn(move || theirs.rest(Duration::from_secs(3600)));
        while !resting.is_finished() {
            wishes.again();
            std::thread::yield_now();
        }
        resting.join().unwrap();
    }

    #[test]
    fn only_the_stream_that_was_chosen_last_is_wanted() {
        let wishes = Wishes::default();
        let first = wishes.listen(Some("arm".into()));
        assert!(wishes.wants(first));
        let second = wishes.listen(Some("leg".into()));
        assert!(!wishes.wants(first) && wishes.wants(second));
        wishes.pause(true);
        assert!(!wishes.wants(second), "a page that stands still hears nothing");
    }
}
