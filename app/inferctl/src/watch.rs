//! `inferctl watch`: the device live in a terminal, as its page shows it in a browser.
//!
//! [`feed`] asks and listens, [`view`] keeps what was heard, [`draw`] shows it, [`text`] lets nothing a device says reach the
//! terminal as more than letters. The terminal is put back however the program ends: a panic, SIGTERM, SIGINT and SIGHUP
//! included.

mod draw;
mod feed;
pub(crate) mod text;
mod view;

use crate::{
    client::{Client, ClientError},
    fail::Failure,
    show,
};
use feed::{News, What, Wishes};
use nix::sys::signal::{SigSet, Signal};
use ratatui::crossterm::event;
use serde_json::{Map, Value};
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, mpsc::Sender};
use std::time::{Duration, Instant};
use view::{Order, View};

/// The longest time without a new picture: ages are told in seconds.
const REDRAW: Duration = Duration::from_millis(250);
/// The shortest time between two pictures.
const FRAME: Duration = Duration::from_millis(60);
/// How wide a snapshot is.
const SNAPSHOT: u16 = 100;

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: q quit, p pause, r reconnect, tab models or sources, arrows choose, ? help.")]
pub struct Watch {
    /// Print what is so now as plain text and end: for scripts, and where there is no terminal
    #[arg(long)]
    once: bool,
}

impl Watch {
    /// Shows the device until somebody has seen enough.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        if self.once || json {
            return once(client, json);
        }
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            let why = "watch needs a terminal to draw on; `inferctl watch --once` prints a snapshot anywhere";
            return Err(Failure::Other(why.to_owned()));
        }
        live(client)
    }
}

/// One picture, as plain text. Fails when the device does not serve.
fn once(client: &Client, json: bool) -> Result<(), Failure> {
    let (mut view, now) = (View::new(client.base().to_string()), Instant::now());
    let mut pages = Map::new();
    for what in What::ALL {
        let answer = feed::ask(client, what)?;
        if let (What::Status, Err(why)) = (what, &answer) {
            return Err(ClientError::Refused(why.clone()).into());
        }
        let name = what.path().trim_start_matches("/api/v1/").trim_start_matches('/').replace('/', "_");
        pages.insert(name, answer.clone().unwrap_or(Value::Null));
        view.answered(what, answer, now);
    }
    if json {
        show::json(&pages);
    } else {
        show::line(&draw::plain(&view, SNAPSHOT, now));
    }
    if view.serves() { Ok(()) } else { Err(Failure::Said) }
}

/// Puts the terminal back when it goes.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn open() -> std::io::Result<Self> {
        // It sets a hook that puts the terminal back before a panic is told, too.
        Ok(Self(ratatui::try_init()?))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn live(client: &Client) -> Result<(), Failure> {
    let failed = |what: &'static str| move |e: std::io::Error| Failure::Other(format!("{what}: {e}"));
    let client = client.clone().within(client.timeout().min(feed::PATIENCE));
    // Before there are other threads: they inherit it.
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ends.add(signal);
    }
    ends.thread_block().map_err(|e| failed("signals cannot be caught")(e.into()))?;
    let mut screen = Screen::open().map_err(failed("the terminal cannot be drawn on"))?;
    // A thread that panics has put the terminal back already: nothing is drawn after that.
    let panicked = Arc::new(AtomicBool::new(false));
    let (flag, told) = (panicked.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        flag.store(true, Ordering::SeqCst);
        told(info);
    }));
    let (news, heard) = channel();
    let wishes = Arc::new(Wishes::default());
    start(&client, &wishes, &news, ends);
    let outcome = show_all(&client, &mut screen, &wishes, &heard, &panicked);
    drop(screen);
    outcome.map_err(failed("the terminal cannot be drawn on"))?;
    if panicked.load(Ordering::SeqCst) { Err(Failure::Said) } else { Ok(()) }
}

/// Starts everything that tells news. None of these threads is waited for: the program ends with its screen.
fn start(client: &Client, wishes: &Arc<Wishes>, news: &Sender<News>, ends: SigSet) {
    let told = news.clone();
    std::thread::spawn(move || {
        let _ = ends.wait();
        let _ = told.send(News::End);
    });
    let told = news.clone();
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if told.send(News::Terminal(event)).is_err() {
                return;
            }
        }
        // The terminal is gone.
        let _ = told.send(News::End);
    });
    let (theirs, wanted, told) = (client.clone(), wishes.clone(), news.clone());
    std::thread::spawn(move || feed::poll(&theirs, &wanted, &told));
    let (theirs, wanted, told) = (client.clone(), wishes.clone(), news.clone());
    std::thread::spawn(move || feed::listen(&theirs, &wanted, &told));
}

fn show_all(
    client: &Client,
    screen: &mut Screen,
    wishes: &Wishes,
    news: &Receiver<News>,
    panicked: &AtomicBool,
) -> std::io::Result<()> {
    let mut view = View::new(client.base().to_string());
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    loop {
        if panicked.load(Ordering::SeqCst) {
            return Ok(());
        }
        screen.0.draw(|frame| draw::screen(frame, &mut view, colours, Instant::now()))?;
        let drawn = Instant::now();
        let mut wait = REDRAW;
        // All that came meanwhile is one picture.
        loop {
            match news.recv_timeout(wait) {
                Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => break,
                Ok(news) => match view.hear(news, Instant::now()) {
                    Some(Order::Quit) => return Ok(()),
                    Some(Order::Pause(paused)) => wishes.pause(paused),
                    Some(Order::Again) => wishes.again(),
                    Some(Order::Listen(source)) => view.listens(wishes.listen(source)),
                    None => {}
                },
            }
            wait = FRAME.saturating_sub(drawn.elapsed());
        }
    }
}
