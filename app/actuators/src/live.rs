//! The thread that owns the port: it asks what may be done, moves by the limits, and writes a line.
//!
//! | state | lines | joints |
//! |---|---|---|
//! | `following` | yes | go to the pose of the gesture that may be acted on |
//! | `safe` | yes | go to, or are in, the neutral pose: nothing may be acted on |
//! | `stopped` | yes | the same, until [`Actuator::begin`]: somebody stopped it |
//! | `silent` | none | were brought to the neutral pose; nobody vouches for anything, so the receiver's own fail-safe is to act. Or the thread itself has failed, and they are anywhere |
//! | `blocked` | none | are where the last line was: the port takes nothing |
//! | `unplugged` | none | unknown: the port is not there. It begins from the neutral pose when it is back |
//!
//! **A line that the port does not take is dropped and counted**, and the joints are thought to be where the last one that it took
//! left them, at rest: what comes out of the port never jumps. A line that was begun is ended before another one. Between two
//! lines lies at least their period, so that late ones are not made up for.
//!
//! **After a gap the lines begin anew**, from the neutral pose: a receiver that got nothing for a quarter of a second has moved by
//! itself, whether the port took nothing, the machine stood still, or silence was meant. A gap that it may or may not have seen is
//! made longer until it has ([`LATE`], [`LOST`]). What still waits in the port is thrown away, and a line feed ends what of a line
//! may be left of that, so that no old pose comes after the gap.

use crate::Spec;
use crate::line;
use crate::motion::Motion;
use inferd_sources::live::port::{self, Direction};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{FlushArg, tcflush};
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two attempts to open what is not there.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// A port that takes nothing for so long is blocked.
const BLOCKED: Duration = Duration::from_millis(250);
/// A receiver may have lost a link whose last line is so old: its limit is 250 ms, less how late a line may reach it ...
const LATE: Duration = Duration::from_millis(200);
/// ... and has lost one whose last line is so old.
const LOST: Duration = Duration::from_millis(350);
/// The longest an end waits for the joints to be in the neutral pose: then the receiver's fail-safe has to do it.
pub const LAST_WAY: Duration = Duration::from_secs(3);

/// What may be done at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The pose of this gesture.
    Gesture(String),
    /// Nothing, for this reason: the neutral pose.
    Safe(String),
    /// Nobody knows, for this reason: the neutral pose, and then no line any more.
    Silent(String),
}

/// What an actuator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Joints are in the pose of a gesture, or on their way.
    Following,
    /// They are in the neutral pose, or on their way.
    Safe,
    /// The same: somebody stopped it.
    Stopped,
    /// No line is written.
    Silent,
    /// The port takes no line.
    Blocked,
    /// The port is not there.
    Unplugged,
}

impl State {
    /// All of them, in the order metrics show them.
    pub const ALL: [Self; 6] =
        [Self::Following, Self::Safe, Self::Stopped, Self::Silent, Self::Blocked, Self::Unplugged];

    /// The state's name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Following => "following",
            Self::Safe => "safe",
            Self::Stopped => "stopped",
            Self::Silent => "silent",
            Self::Blocked => "blocked",
            Self::Unplugged => "unplugged",
        }
    }
}

/// What an actuator has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines that the port took.
    pub lines: u64,
    /// Lines that it did not take in time.
    pub dropped: u64,
    /// Times that the port was opened.
    pub opened: u64,
    /// Times that it was stopped.
    pub stops: u64,
    /// Times that a gesture was let go for the neutral pose, for whatever reason.
    pub fail_safes: u64,
}

/// An actuator at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What it does.
    pub state: State,
    /// Why, in a few words; empty while it follows.
    pub reason: String,
    /// Somebody stopped it, and nobody has started it since.
    pub stopped: bool,
    /// The gesture whose pose is aimed at; `None`: the neutral one.
    pub gesture: Option<String>,
    /// The pulse widths of the last line that the port took, in microseconds.
    pub widths: Vec<u16>,
    /// Every joint rests in the neutral pose.
    pub neutral: bool,
    /// What has been counted since the start.
    pub counts: Counts,
}

/// An actuator that runs until it is dropped.
#[derive(Debug)]
pub struct Actuator {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    spec: Spec,
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug)]
struct Said {
    ending: bool,
    view: View,
}

impl Actuator {
    /// Starts it. `ask` says, from its thread and for every line, what may be done; it must not block.
    ///
    /// # Errors
    /// The system's, when there is no thread to be had.
    pub fn start(spec: Spec, ask: impl FnMut() -> Ask + Send + 'static) -> io::Result<Self> {
        let view = View {
            state: State::Unplugged,
            reason: "it was not opened yet".to_owned(),
            stopped: !spec.autostart,
            gesture: None,
            widths: spec.neutral.clone(),
            neutral: true,
            counts: Counts::default(),
        };
        let said = Mutex::new(Said { ending: false, view });
        let shared = Arc::new(Shared { spec, said, changed: Condvar::new() });
        let runs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("actuator".to_owned()).spawn(move || runs.run(ask))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// As it was started.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.shared.spec
    }

    /// How it is now.
    #[must_use]
    pub fn view(&self) -> View {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let said = self.shared.said();
        let mut view = said.view.clone();
        if !said.ending && thread.as_ref().is_some_and(JoinHandle::is_finished) {
            view.gesture = None;
            (view.state, view.reason) = (State::Silent, "its thread has failed".to_owned());
        }
        view
    }

    /// From now on until [`Actuator::begin`] nothing is followed: the joints go to the neutral pose and stay there.
    pub fn stop(&self) {
        let mut said = self.shared.said();
        if !said.view.stopped {
            said.view.stopped = true;
            said.view.counts.stops += 1;
        }
    }

    /// Follows again what may be followed.
    pub fn begin(&self) {
        self.shared.said().view.stopped = false;
    }

    /// Brings the joints to the neutral pose, ends the lines and the thread. Waits for that, [`LAST_WAY`] at the most.
    pub fn end(&self) {
        self.shared.said().ending = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of it has been told by the panic's own words.
            let _ = thread.join();
        }
    }
}

impl Drop for Actuator {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why a port is left.
enum Left {
    /// It is gone.
    Gone(String),
    /// The daemon ends.
    Ended,
}

impl Shared {
    fn said(&self) -> MutexGuard<'_, Said> {
        // Whole after every assignment.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; true when it is to end. With `whole` it waits also then.
    fn waits(&self, wait: Duration, whole: bool) -> bool {
        let said = self.said();
        let goes_on = |said: &mut Said| whole || !said.ending;
        let waited = self.changed.wait_timeout_while(said, wait, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.ending
    }

    fn run(&self, mut ask: impl FnMut() -> Ask) {
        let mut retry = FIRST_RETRY;
        loop {
            let why = match port::open(&self.spec.path, self.spec.baud, Direction::Out) {
                Ok(port) => {
                    self.said().view.counts.opened += 1;
                    retry = FIRST_RETRY;
                    match self.write(port, &mut ask) {
                        Left::Gone(why) => why,
                        Left::Ended => return,
                    }
                }
                Err(why) => why,
            };
            let mut said = self.said();
            let Said { view, .. } = &mut *said;
            if view.gesture.take().is_some() {
                view.counts.fail_safes += 1;
            }
            (view.state, view.reason) = (State::Unplugged, format!("{}: {why}", self.spec.path.display()));
            drop(said);
            if self.waits(retry, false) {
                return;
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// Writes lines for as long as the port is there.
    fn write(&self, port: File, ask: &mut impl FnMut() -> Ask) -> Left {
        let spec = &self.spec;
        let period = Duration::from_secs(1) / spec.rate_hz;
        let mut out = Out { port, rest: Vec::new(), since: Instant::now() };
        let mut motion = Motion::at_rest(spec.limits(), &spec.neutral);
        let mut text = String::with_capacity(line::longest(spec.neutral.len()) + 1);
        let mut ending: Option<Instant> = None;
        let mut told_neutral = false;
        // When the last line was taken; `None`: none was, so that nobody knows where the joints are.
        let mut last: Option<Instant> = None;
        loop {
            if self.said().ending {
                let since = *ending.get_or_insert_with(Instant::now);
                if (told_neutral && motion.rests_in(&spec.neutral) && out.rest.is_empty())
                    || since.elapsed() >= LAST_WAY
                {
                    out.close();
                    return Left::Ended;
                }
            }
            let asked = if ending.is_some() {
                Ask::Safe("the daemon ends".to_owned())
            } else if self.said().view.stopped {
                Ask::Safe("it is stopped".to_owned())
            } else {
                ask()
            };
            let (pose, gesture, mut state, mut reason) = match asked {
                Ask::Gesture(gesture) => match spec.pose_of(&gesture) {
                    Some(pose) => (&pose.widths, Some(gesture), State::Following, String::new()),
                    None => (&spec.neutral, None, State::Safe, format!("{gesture} has no pose")),
                },
                Ask::Safe(why) => (&spec.neutral, None, State::Safe, why),
                Ask::Silent(why) => (&spec.neutral, None, State::Silent, why),
            };
            let quiet = state == State::Silent && told_neutral && motion.rests_in(&spec.neutral);
            let mut taken = false;
            if !quiet {
                // After `ask`, so that nothing is between this and the line.
                let gap = last.map(|last| last.elapsed());
                if let Some(gap) = gap.filter(|gap| (LATE..LOST).contains(gap)) {
                    self.waits(LOST - gap, true);
                    continue;
                }
                let anew = gap.is_some_and(|gap| gap >= LOST);
                let mut next = Motion::at_rest(spec.limits(), &spec.neutral);
                // The first line is the neutral pose itself.
                if gap.is_some() && !anew {
                    next = motion.clone();
                    next.step(pose);
                }
                line::write(&mut text, next.widths());
                match out.line(text.as_bytes(), anew) {
                    Ok(true) => {
                        (motion, taken, last) = (next, true, Some(Instant::now()));
                        told_neutral = motion.rests_in(&spec.neutral);
                    }
                    Ok(false) => motion.halt(),
                    Err(why) => return Left::Gone(why),
                }
            } else if let Err(why) = out.finish() {
                return Left::Gone(why);
            }
            if out.since.elapsed() >= BLOCKED && !quiet && !taken {
                (state, reason) = (State::Blocked, "the port takes no line".to_owned());
            }
            let mut said = self.said();
            let view = &mut said.view;
            view.counts.lines += u64::from(taken);
            view.counts.dropped += u64::from(!taken && !quiet);
            if gesture.is_none() && view.gesture.is_some() {
                view.counts.fail_safes += 1;
            }
            if view.stopped && state == State::Safe && ending.is_none() {
                state = State::Stopped;
            }
            (view.state, view.reason, view.gesture) = (state, reason, gesture);
            view.widths.clear();
            view.widths.extend(motion.widths());
            view.neutral = motion.rests_in(&spec.neutral);
            drop(said);
            self.waits(period, true);
        }
    }
}

/// A port, and what is left of a line that it took a part of.
struct Out {
    port: File,
    rest: Vec<u8>,
    /// When it last took something.
    since: Instant,
}

impl Out {
    /// Writes a line, or none of it; whether the port took it. What it has begun to take counts as taken. `anew`: as the first one,
    /// once the port takes something.
    fn line(&mut self, line: &[u8], anew: bool) -> Result<bool, String> {
        if anew && !self.clear()? {
            return Ok(false);
        }
        self.finish()?;
        if !self.rest.is_empty() {
            return Ok(false);
        }
        let written = self.write(line)?;
        if written > 0 {
            self.rest.extend_from_slice(&line[written..]);
        }
        Ok(written > 0)
    }

    /// Throws away what waits in the port, and ends what was sent of it; false: nobody takes anything yet.
    fn clear(&mut self) -> Result<bool, String> {
        if !self.is_there()?.intersects(PollFlags::POLLOUT) {
            return Ok(false);
        }
        // One that cannot has sent it.
        let _ = tcflush(&self.port, FlushArg::TCOFLUSH);
        self.rest.clear();
        self.rest.push(b'\n');
        Ok(true)
    }

    /// Writes what is left of the line before; looks whether the port is still there.
    fn finish(&mut self) -> Result<(), String> {
        self.is_there()?;
        while !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            let written = self.write(&rest)?;
            self.rest.extend_from_slice(&rest[written..]);
            if written == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Looks whether the port is there, and whether it takes something.
    fn is_there(&self) -> Result<PollFlags, String> {
        let mut fds = [PollFd::new(self.port.as_fd(), PollFlags::POLLOUT)];
        let seen = poll(&mut fds, PollTimeout::ZERO).ok().and_then(|_| fds[0].revents());
        let seen = seen.unwrap_or(PollFlags::empty());
        if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Err("the port was unplugged".to_owned());
        }
        Ok(seen)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self.port.write(bytes) {
            Ok(0) => Err("the port was unplugged".to_owned()),
            Ok(n) => {
                self.since = Instant::now();
                Ok(n)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Lets go of the port. The kernel waits for what nobody takes, up to half a minute: that is thrown away.
    fn close(self) {
        if !self.rest.is_empty() || self.since.elapsed() >= BLOCKED {
            // One that is gone has nothing to throw away.
            let _ = tcflush(&self.port, FlushArg::TCOFLUSH);
        }
    }
}
