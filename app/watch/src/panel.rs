//! The panel: one LED that says how the appliance is, and one button.
//!
//! | state | LED, in milliseconds on/off |
//! |---|---|
//! | booting | 500/500 |
//! | healthy | 50/2950: a short flash every three seconds |
//! | degraded | 150/150 150/1550: two flashes every two seconds |
//! | updating | 900/100: on, with short breaks |
//! | safe mode | 150/150 three times, 500/500 three times, 150/150 three times, then 1500 off: SOS |
//! | factory reset armed | 60/60: as fast as an eye can follow |
//!
//! The button: let go within [`SHORT`] it asks for the status, which is logged and told to who listens. Held for [`ARMED`] the LED
//! warns; let go then, nothing happens. Held for [`RESET`], the device is reset to how it was delivered.
//!
//! [`Machine`] decides all of this without a clock and without hardware; [`Panel`] is its one thread, which sleeps from one edge of the
//! LED to the next. A board without LED and button has no panel and lacks nothing.

mod boards;

pub use boards::{OpenError, Wanted, open};

use std::{
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A press that ends before this asks for the status.
pub const SHORT: Duration = Duration::from_secs(2);
/// A press that lasts this long is warned of.
pub const ARMED: Duration = Duration::from_secs(5);
/// A press that lasts this long resets the device.
pub const RESET: Duration = Duration::from_secs(10);

/// How the appliance is, as far as one LED can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Look {
    /// Models are being loaded.
    Booting,
    /// The default model answers.
    Healthy,
    /// It serves less than it should: a model does not answer, or an alert is raised.
    Degraded,
    /// A bundle is coming in or on trial.
    Updating,
    /// Without models, after a crash loop.
    SafeMode,
    /// The button is held: a factory reset is near.
    Armed,
}

impl Look {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Booting, Self::Healthy, Self::Degraded, Self::Updating, Self::SafeMode, Self::Armed];

    /// How long the LED is on and off by turns, beginning with on, over and over; in milliseconds.
    #[must_use]
    pub fn pattern(self) -> &'static [u16] {
        match self {
            Self::Booting => &[500, 500],
            Self::Healthy => &[50, 2950],
            Self::Degraded => &[150, 150, 150, 1550],
            Self::Updating => &[900, 100],
            Self::SafeMode => {
                &[150, 150, 150, 150, 150, 150, 500, 500, 500, 500, 500, 500, 150, 150, 150, 150, 150, 1500]
            }
            Self::Armed => &[60, 60],
        }
    }

    /// As the log and `/status` name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Updating => "updating",
            Self::SafeMode => "safe-mode",
            Self::Armed => "factory-reset-armed",
        }
    }
}

/// What somebody wants of the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To know how it is.
    Status,
    /// To have it as it was delivered.
    FactoryReset,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The LED, when it changes.
    pub led: Option<bool>,
    /// What the button asked for.
    pub wish: Option<Wish>,
}

/// LED and button, without clock and hardware. Times are since any fixed moment.
///
/// | the button is | what happens | then it is |
/// |---|---|---|
/// | up | goes down | held |
/// | held | goes up within [`SHORT`]: the status is asked for; later: nothing | up |
/// | held | [`ARMED`] is over: the LED warns | warned |
/// | warned | goes up: nothing | up |
/// | warned | [`RESET`] is over: a factory reset is asked for | done |
/// | done | goes up | up |
#[derive(Debug)]
pub struct Machine {
    look: Look,
    /// Where in the pattern.
    at: usize,
    next_edge: Duration,
    lit: Option<bool>,
    button: Button,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Button {
    Up,
    Held { since: Duration },
    Warned { since: Duration },
    Done,
}

impl Machine {
    /// From this moment on.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { look: Look::Booting, at: 0, next_edge: now, lit: None, button: Button::Up }
    }

    /// What the LED shows, since a pattern of it began.
    #[must_use]
    pub fn shows(&self) -> Look {
        self.look
    }

    /// When [`Machine::tick`] is to be called next.
    #[must_use]
    pub fn wake(&self) -> Duration {
        let held = match self.button {
            Button::Up | Button::Done => return self.next_edge,
            Button::Held { since } => since + ARMED,
            Button::Warned { since } => since + RESET,
        };
        held.min(self.next_edge)
    }

    /// The button went down or up at this moment. Bounces have been taken out before.
    pub fn button(&mut self, down: bool, now: Duration) -> Option<Wish> {
        let before = self.button;
        self.button = match (down, before) {
            (true, Button::Up) => Button::Held { since: now },
            (true, held) => held,
            (false, _) => Button::Up,
        };
        match before {
            Button::Held { since } if !down && now.saturating_sub(since) < SHORT => Some(Wish::Status),
            Button::Warned { .. } if !down => {
                self.begin_anew(now);
                None
            }
            _ => None,
        }
    }

    fn begin_anew(&mut self, now: Duration) {
        self.at = 0;
        self.next_edge = now;
    }

    /// What is to be done now; `look` is asked whenever a pattern begins.
    pub fn tick(&mut self, now: Duration, look: impl FnOnce() -> Look) -> Step {
        let mut step = Step::default();
        match self.button {
            Button::Held { since } if now >= since + ARMED => {
                self.button = Button::Warned { since };
                // The warning does not wait for the end of a slow pattern.
                self.begin_anew(now);
            }
            Button::Warned { since } if now >= since + RESET => {
                self.button = Button::Done;
                step.wish = Some(Wish::FactoryReset);
                self.begin_anew(now);
            }
            _ => {}
        }
        if now < self.next_edge {
            return step;
        }
        if self.at == 0 {
            self.look = if matches!(self.button, Button::Warned { .. }) { Look::Armed } else { look() };
        }
        let pattern = self.look.pattern();
        let lit = self.at.is_multiple_of(2);
        self.next_edge = now + Duration::from_millis(u64::from(pattern[self.at]));
        self.at = (self.at + 1) % pattern.len();
        if self.lit != Some(lit) {
            self.lit = Some(lit);
            step.led = Some(lit);
        }
        step
    }
}

/// An edge of the button, or the end.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    /// It went down (true) or up.
    Button(bool),
    /// Nothing more is wanted.
    End,
}

/// What has the LED; the button's edges come by the channel it was opened with.
pub trait Led: Send {
    /// Switches it.
    ///
    /// # Errors
    /// The hardware's.
    fn set(&mut self, on: bool) -> io::Result<()>;
}

/// What the panel asks and tells, on its thread: none of it may block for long.
pub struct Rooms {
    /// How the appliance is.
    pub look: Box<dyn FnMut() -> Look + Send>,
    /// The LED begins to show this; told once for each change.
    pub shows: Box<dyn FnMut(Look) + Send>,
    /// The button asked for something.
    pub wish: Box<dyn FnMut(Wish) + Send>,
}

/// The running panel.
pub struct Panel {
    tell: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Panel {
    /// Begins, with a thread of its own.
    ///
    /// # Errors
    /// [`OpenError`], or the thread cannot be had.
    pub fn start(wanted: &Wanted, rooms: Rooms) -> Result<Self, OpenError> {
        let (tell, told) = channel();
        let led = open(wanted, &tell)?;
        let thread = std::thread::Builder::new()
            .name("panel".into())
            .spawn(move || run(led, &told, rooms))
            .map_err(OpenError::System)?;
        Ok(Self { tell, thread: Some(thread) })
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        // The thread ends with its LED off; one that hangs in the hardware is not waited for.
        let _ = self.tell.send(Message::End);
        drop(self.thread.take());
    }
}

fn run(mut led: Box<dyn Led>, told: &Receiver<Message>, mut rooms: Rooms) {
    let begin = Instant::now();
    let mut machine = Machine::new(Duration::ZERO);
    let mut failing = false;
    let mut shown = None;
    loop {
        let step = machine.tick(begin.elapsed(), &mut rooms.look);
        if shown != Some(machine.shows()) {
            shown = Some(machine.shows());
            (rooms.shows)(machine.shows());
        }
        if let Some(on) = step.led {
            match led.set(on) {
                Ok(()) => failing = false,
                Err(e) => {
                    if !failing {
                        tracing::warn!(error = %e, "the status LED cannot be switched");
                    }
                    failing = true;
                }
            }
        }
        if let Some(wish) = step.wish {
            (rooms.wish)(wish);
        }
        let wait = machine.wake().saturating_sub(begin.elapsed());
        match told.recv_timeout(wait) {
            Ok(Message::Button(down)) => {
                if let Some(wish) = machine.button(down, begin.elapsed()) {
                    (rooms.wish)(wish);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = led.set(false);
}

#[cfg(test)]
mod tests;
