//! What was heard of the device, how old it is, and what is chosen on the screen.

use super::feed::{News, What};
use crate::device::Device;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Readings that are kept: some minutes of `/status`.
const KEPT: usize = 300;
/// What is older than that is not now.
const FRESH: Duration = Duration::from_secs(1);
/// Frames are counted over so long.
const RATE_OVER: Duration = Duration::from_secs(3);

/// What the screen wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// End.
    Quit,
    /// Ask no more, or again.
    Pause(bool),
    /// Try at once.
    Again,
    /// Listen to this source.
    Listen(Option<String>),
}

/// What the arrows move in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Focus {
    /// Which source is listened to.
    #[default]
    Sources,
    /// Whose latency is drawn.
    Models,
}

/// How the device is reached.
#[derive(Clone, Debug)]
pub enum Contact {
    /// Nothing was heard yet.
    Asking,
    /// It answers.
    Answers,
    /// It answers that this is not for us.
    Refuses(String),
    /// It does not answer; tried again then.
    Lost {
        /// Why.
        why: String,
        /// When.
        next: Instant,
    },
}

/// One reading of a model.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Of which.
    pub model: String,
    /// 50, 95 and 99 of 100 inferences took at most so many milliseconds.
    pub compute_ms: Option<[f64; 3]>,
    /// Requests that wait.
    pub waiting: f64,
    /// Answers a second since the reading before.
    pub rate: Option<f64>,
}

/// What the chosen source was recognised as.
#[derive(Debug, Default)]
pub struct Live {
    /// The number of the stream that is listened to.
    stream: u64,
    /// The newest event.
    pub latest: Option<Value>,
    /// When it came.
    pub heard: Option<Instant>,
    /// Why there are none now; empty: there are.
    pub trouble: String,
    /// How sure the newest ones were.
    pub confidence: VecDeque<Option<f64>>,
    frames: VecDeque<Instant>,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct View {
    /// Where the device is.
    pub url: String,
    /// How it is reached.
    pub contact: Contact,
    /// `/status`, once it came.
    pub status: Option<Value>,
    /// Its sources.
    pub sources: Vec<Value>,
    /// Its slots; `None`: it has none, or says nothing of them.
    pub slots: Option<Device>,
    /// What its monitor read.
    pub monitoring: Option<Value>,
    /// What is raised.
    pub alerts: Vec<Value>,
    /// What the chosen source is recognised as.
    pub live: Live,
    /// What was read of every model since the program began; a reading without a model is a hole.
    pub readings: VecDeque<Vec<Reading>>,
    /// What the arrows move in.
    pub focus: Focus,
    /// The model whose latency is drawn.
    pub model: usize,
    /// The source that is listened to.
    pub source: usize,
    /// Nothing is asked.
    pub paused: bool,
    /// The keys are shown.
    pub help: bool,
    /// The first line that is shown.
    pub scroll: usize,
    heard: Option<Instant>,
    asked: Option<Instant>,
    counted: Option<(Instant, Vec<(String, f64)>)>,
}

impl View {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self {
            url,
            contact: Contact::Asking,
            status: None,
            sources: Vec::new(),
            slots: None,
            monitoring: None,
            alerts: Vec::new(),
            live: Live::default(),
            readings: VecDeque::new(),
            focus: Focus::default(),
            model: 0,
            source: 0,
            paused: false,
            help: false,
            scroll: 0,
            heard: None,
            asked: None,
            counted: None,
        }
    }

    /// The models.
    #[must_use]
    pub fn models(&self) -> &[Value] {
        self.status.as_ref().and_then(|s| s["models"].as_array()).map_or(&[], Vec::as_slice)
    }

    /// Whether it serves, as far as is known.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.status.as_ref().is_some_and(|s| s["ready"] == true)
    }

    /// Whether anything was ever heard.
    #[must_use]
    pub fn heard_once(&self) -> bool {
        self.heard.is_some()
    }

    /// How old what is shown is, where it is not of now.
    #[must_use]
    pub fn stale(&self, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.heard?);
        let lost = matches!(self.contact, Contact::Lost { .. });
        (lost || self.paused || age > FRESH).then_some(age)
    }

    /// How long it has not answered what it was asked.
    #[must_use]
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        let since = self.heard.or(self.asked)?;
        let silent = now.saturating_duration_since(since);
        (!self.paused && silent > FRESH).then_some(silent)
    }

    /// Frames a second that came.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // some tens
    pub fn frames(&self, now: Instant) -> f64 {
        let recent = self.live.frames.iter().filter(|at| now.saturating_duration_since(**at) < RATE_OVER);
        recent.count() as f64 / RATE_OVER.as_secs_f64()
    }

    /// What of it is news to the screen; what that wants done.
    pub fn hear(&mut self, news: News, now: Instant) -> Option<Order> {
        match news {
            News::Asked(at) => {
                self.asked.get_or_insert(at);
                None
            }
            News::Answer(what, answer) => self.answered(what, answer, now),
            News::Lost { why, pause } => {
                // A hole in every plot.
                if !matches!(self.contact, Contact::Lost { .. }) {
                    keep(&mut self.readings, Vec::new());
                    keep(&mut self.live.confidence, None);
                    self.counted = None;
                }
                self.contact = Contact::Lost { why, next: now + pause };
                None
            }
            News::Live(stream, event) => {
                if stream == self.live.stream {
                    self.recognised(event, now);
                }
                None
            }
            News::Terminal(Event::Key(key)) if key.kind != KeyEventKind::Release => self.key(key),
            News::Terminal(_) => None,
            News::End => Some(Order::Quit),
        }
    }

    /// Events of this stream are the chosen source's from now on.
    pub fn listens(&mut self, stream: u64) {
        self.live = Live { stream, ..Live::default() };
    }

    /// An answer came; what is to be listened to then.
    pub fn answered(&mut self, what: What, answer: Result<Value, String>, now: Instant) -> Option<Order> {
        self.heard = Some(now);
        match (what, answer) {
            (What::Status, Ok(page)) => {
                self.contact = Contact::Answers;
                self.read(&page, now);
                self.status = Some(page);
                self.model = self.model.min(self.models().len().saturating_sub(1));
            }
            (What::Status, Err(why)) => self.contact = Contact::Refuses(why),
            (What::Sources, Ok(mut page)) => {
                if let Value::Array(sources) = page["sources"].take() {
                    return self.has_sources(sources);
                }
            }
            (What::Slots, answer) => self.slots = answer.ok().and_then(|p| serde_json::from_value(p).ok()),
            (What::Monitoring, answer) => self.monitoring = answer.ok(),
            (What::Alerts, Ok(mut page)) => {
                if let Value::Array(active) = page["active"].take() {
                    self.alerts = active;
                }
            }
            (What::Sources | What::Alerts, Err(_)) => {}
        }
        None
    }

    /// Keeps the name of the source that is chosen, whatever its place is now.
    fn has_sources(&mut self, sources: Vec<Value>) -> Option<Order> {
        let name = |all: &[Value], i: usize| all.get(i).and_then(|s| s["name"].as_str()).map(str::to_owned);
        let before = name(&self.sources, self.source);
        let kept = before.as_ref().and_then(|b| sources.iter().position(|s| s["name"] == b.as_str()));
        self.source = kept.unwrap_or(0);
        self.sources = sources;
        let chosen = name(&self.sources, self.source);
        (chosen != before).then_some(Order::Listen(chosen))
    }

    /// What plots are drawn of.
    fn read(&mut self, status: &Value, now: Instant) {
        let mut counts = Vec::new();
        let mut readings = Vec::new();
        for model in status["models"].as_array().into_iter().flatten() {
            let name = model["name"].as_str().unwrap_or_default().to_owned();
            let answers = model["requests"]["success"].as_f64().unwrap_or(0.0);
            let quantile = |q: &str| model["compute_ms"][q].as_f64();
            let compute = quantile("p50").zip(quantile("p95")).zip(quantile("p99"));
            let rate = self.counted.as_ref().and_then(|(at, all)| {
                let before = all.iter().find(|(known, _)| *known == name)?.1;
                let over = now.saturating_duration_since(*at).as_secs_f64();
                // Fewer than before: it was started anew.
                (over > 0.0 && answers >= before).then(|| (answers - before) / over)
            });
            readings.push(Reading {
                model: name.clone(),
                compute_ms: compute.map(|((p50, p95), p99)| [p50, p95, p99]),
                waiting: model["queue"]["waiting"].as_f64().unwrap_or(0.0),
                rate,
            });
            counts.push((name, answers));
        }
        self.counted = Some((now, counts));
        keep(&mut self.readings, readings);
    }

    fn recognised(&mut self, event: Result<Value, String>, now: Instant) {
        self.heard = Some(now);
        match event {
            Ok(event) => {
                keep(&mut self.live.confidence, event["confidence"].as_f64());
                self.live.heard = Some(now);
                self.live.trouble.clear();
                self.live.frames.push_back(now);
                while self.live.frames.front().is_some_and(|at| now - *at > RATE_OVER) {
                    self.live.frames.pop_front();
                }
                self.live.latest = Some(event);
            }
            Err(why) => {
                keep(&mut self.live.confidence, None);
                self.live.trouble = why;
            }
        }
    }

    fn key(&mut self, key: KeyEvent) -> Option<Order> {
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if ctrl => return Some(Order::Quit),
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Char('q') | KeyCode::Esc => return Some(Order::Quit),
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                return Some(Order::Pause(self.paused));
            }
            KeyCode::Char('r') => return Some(Order::Again),
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right => {
                self.focus = match self.focus {
                    Focus::Sources => Focus::Models,
                    Focus::Models => Focus::Sources,
                };
            }
            KeyCode::Up | KeyCode::Char('k') => return self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') => return self.choose(1),
            KeyCode::PageDown => self.scroll += 5,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(5),
            KeyCode::Home => self.scroll = 0,
            _ => {}
        }
        None
    }

    /// The next one, or the one before, and round.
    fn choose(&mut self, step: isize) -> Option<Order> {
        let models = self.models().len();
        let (place, many) = match self.focus {
            Focus::Sources => (&mut self.source, self.sources.len()),
            Focus::Models => (&mut self.model, models),
        };
        if many < 2 {
            return None;
        }
        *place = place.saturating_add(many).saturating_add_signed(step) % many;
        match self.focus {
            Focus::Models => None,
            Focus::Sources => {
                let chosen = self.sources[self.source]["name"].as_str().map(str::to_owned);
                Some(Order::Listen(chosen))
            }
        }
    }
}

/// At the end of what is kept, which forgets its oldest.
fn keep<T>(kept: &mut VecDeque<T>, new: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(new);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn press(view: &mut View, code: KeyCode) -> Option<Order> {
        view.hear(News::Terminal(Event::Key(KeyEvent::new(code, KeyModifiers::NONE))), Instant::now())
    }

    fn named(names: &[&str]) -> Value {
        json!({"sources": names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>(), "models": names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()})
    }

    fn view(names: &[&str]) -> View {
        let mut view = View::new("u".into());
        view.answered(What::Status, Ok(named(names)), Instant::now());
        let first = view.answered(What::Sources, Ok(named(names)), Instant::now());
        assert_eq!(first, Some(Order::Listen(names.first().map(|n| (*n).to_owned()))));
        view
    }

    #[test]
    fn the_arrows_choose_a_source_or_a_model_and_tab_says_which() {
        let mut view = view(&["a", "b", "c"]);
        assert_eq!(press(&mut view, KeyCode::Down), Some(Order::Listen(Some("b".into()))));
        assert_eq!(press(&mut view, KeyCode::Up), Some(Order::Listen(Some("a".into()))));
        assert_eq!(press(&mut view, KeyCode::Up), Some(Order::Listen(Some("c".into()))));
        assert_eq!((press(&mut view, KeyCode::Tab), view.focus), (None, Focus::Models));
        assert_eq!((press(&mut view, KeyCode::Down), view.model, view.source), (None, 1, 2));
    }

    #[test]
    fn a_chosen_source_stays_chosen_wherever_it_stands() {
        let mut view = view(&["a", "b"]);
        press(&mut view, KeyCode::Down);
        assert_eq!(view.answered(What::Sources, Ok(named(&["x", "a", "b"])), Instant::now()), None);
        assert_eq!(view.source, 2);
        let gone = view.answered(What::Sources, Ok(named(&["x"])), Instant::now());
        assert_eq!(gone, Some(Order::Listen(Some("x".into()))));
        assert_eq!(view.answered(What::Sources, Ok(named(&[])), Instant::now()), Some(Order::Listen(None)));
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut view = view(&["a"]);
        assert_eq!(press(&mut view, KeyCode::Char('p')), Some(Order::Pause(true)));
        assert_eq!(press(&mut view, KeyCode::Char('p')), Some(Order::Pause(false)));
        assert_eq!(press(&mut view, KeyCode::Char('r')), Some(Order::Again));
        assert_eq!((press(&mut view, KeyCode::Char('?')), view.help), (None, true));
        assert_eq!((press(&mut view, KeyCode::Esc), view.help), (None, false), "closes the help first");
        assert_eq!(press(&mut view, KeyCode::Char('q')), Some(Order::Quit));
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.hear(News::Terminal(Event::Key(ctrl_c)), Instant::now()), Some(Order::Quit));
        assert_eq!(press(&mut view, KeyCode::Down), None, "one source is no choice");
    }

    #[test]
    fn rates_are_of_one_life_of_a_daemon_and_a_lost_one_leaves_a_hole() {
        let (mut view, now) = (View::new("u".into()), Instant::now());
        let count = |view: &mut View, answers: u64, at: Instant| {
            let page = json!({"models": [{"name": "m", "requests": {"success": answers}}]});
            view.answered(What::Status, Ok(page), at);
            view.readings.back().unwrap().first().and_then(|r| r.rate)
        };
        assert_eq!(count(&mut view, 10, now), None);
        assert_eq!(count(&mut view, 14, now + Duration::from_secs(2)), Some(2.0));
        assert_eq!(count(&mut view, 3, now + Duration::from_secs(3)), None, "it was started anew");
        let lost = |view: &mut View| view.hear(News::Lost { why: String::new(), pause: Duration::ZERO }, now);
        lost(&mut view);
        lost(&mut view);
        assert_eq!(
            (view.readings.len(), view.readings[3].len()),
            (4, 0),
            "one hole, however often it was tried"
        );
    }

    #[test]
    fn no_more_is_kept_than_can_be_shown() {
        let mut view = view(&["a"]);
        for _ in 0..2 * KEPT {
            view.hear(News::Live(0, Ok(json!({"confidence": 0.5}))), Instant::now());
            view.answered(What::Status, Ok(named(&["a"])), Instant::now());
        }
        assert_eq!((view.live.confidence.len(), view.readings.len()), (KEPT, KEPT));
    }
}
