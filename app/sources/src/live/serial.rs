//! A serial port: opened raw, read when something comes, looked for again when it is gone.

use super::port::{self, Direction};
use super::{FIRST_RETRY, LAST_RETRY, Link, SerialForm, Shared};
use crate::MAX_CHANNELS;
use crate::frame::{self, Continuity, Decoder, FLAG_CLIPPED, Meter, Tracker, legacy, line};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a read waits until it looks whether the source is to end.
const WAIT_MS: u8 = 100;
/// Bytes read at once: 40 ms of 921,600 baud.
const READ: usize = 4096;
/// How often what came is judged.
const JUDGED: Duration = Duration::from_millis(500);

/// How often samples that come are remarked upon, and from which share of clipped ones and how many times the rate on: what had
/// to wait on the way may come in one go.
const REMARKED: Duration = Duration::from_secs(2);
const CLIPPED_SHARE: f64 = 0.01;
const TOO_FAST: f64 = 1.5;

/// Reads the port for as long as the source runs.
pub(super) fn read(shared: &Shared, path: &Path, baud: u32, form: SerialForm, scale: f32) {
    let mut reader = Reader::new(shared, form, scale);
    let mut retry = FIRST_RETRY;
    loop {
        let why = match port::open(path, baud, Direction::In) {
            Ok(mut port) => {
                shared.lock().counts.opened += 1;
                shared.set(Link::Open);
                retry = FIRST_RETRY;
                reader.reopened();
                match reader.read(shared, &mut port) {
                    Some(why) => why,
                    None => return,
                }
            }
            Err(why) => why,
        };
        shared.set(Link::Unplugged(format!("{}: {why}", path.display())));
        if shared.ends_within(retry) {
            return;
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
}

enum Form {
    Framed { decoder: Box<Decoder>, tracker: Box<Tracker>, meter: Meter, judged: (Instant, frame::Counts) },
    Legacy(Box<legacy::Decoder>),
}

struct Reader {
    form: Form,
    scale: f32,
    reopened: bool,
    /// When samples were last remarked upon, and how many had come and been clipped then.
    remarked: (Instant, u64, u64),
}

impl Reader {
    fn new(shared: &Shared, form: SerialForm, scale: f32) -> Self {
        let settings = |resynchronise| legacy::Settings { channels: shared.spec.channels, resynchronise };
        let framed = || Form::Framed {
            decoder: Box::new(Decoder::new()),
            tracker: Box::new(Tracker::new()),
            meter: Meter::default(),
            judged: (Instant::now(), frame::Counts::default()),
        };
        let form = match form {
            SerialForm::Framed => framed(),
            SerialForm::Legacy { resynchronise } => legacy::Decoder::new(settings(resynchronise))
                // The specification has checked the number of channels.
                .map_or_else(|_| framed(), |decoder| Form::Legacy(Box::new(decoder))),
        };
        Self { form, scale, reopened: false, remarked: (Instant::now(), 0, 0) }
    }

    fn reopened(&mut self) {
        self.reopened = true;
        match &mut self.form {
            Form::Framed { decoder, tracker, meter, judged } => {
                decoder.reset();
                tracker.reset();
                meter.reset();
                *judged = (Instant::now(), *decoder.counts());
            }
            Form::Legacy(decoder) => decoder.reset(),
        }
    }

    /// Reads until the port is gone, and says why; `None` when the source is to end.
    fn read(&mut self, shared: &Shared, port: &mut File) -> Option<String> {
        let mut bytes = [0; READ];
        loop {
            let mut fds = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
            let ready = match poll(&mut fds, PollTimeout::from(WAIT_MS)) {
                Ok(n) => n > 0,
                Err(nix::Error::EINTR) => false,
                Err(e) => return Some(e.desc().to_owned()),
            };
            let seen = fds[0].revents().unwrap_or(PollFlags::empty());
            if shared.ends_within(Duration::ZERO) {
                return None;
            }
            if ready {
                match port.read(&mut bytes) {
                    Ok(0) => return Some("the port was unplugged".to_owned()),
                    Ok(n) => self.take(shared, &bytes[..n]),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                        if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                            return Some("the port was unplugged".to_owned());
                        }
                    }
                    Err(e) => return Some(e.to_string()),
                }
            }
            self.judge(shared);
            self.remark(shared);
        }
    }

    fn take(&mut self, shared: &Shared, bytes: &[u8]) {
        let (now, at) = (Instant::now(), shared.now());
        let (channels, rate, scale) = (shared.spec.channels, shared.spec.rate, self.scale);
        let mut feed = shared.lock();
        let mut row = [0.0; MAX_CHANNELS];
        let reopened = &mut self.reopened;
        match &mut self.form {
            Form::Framed { decoder, tracker, meter, .. } => {
                let before = *decoder.counts();
                let mut misfit = None;
                decoder.push(bytes, |frame| {
                    let tracked = tracker.take(&frame.header);
                    if !tracked.continuity.is_new() {
                        feed.counts.refused += u64::from(frame.header.steps);
                        return;
                    }
                    if usize::from(frame.header.channels) != channels {
                        misfit = Some(format!(
                            "the sensor sends {} channels, the source is set to {channels}",
                            frame.header.channels
                        ));
                        feed.counts.refused += u64::from(frame.header.steps);
                        return;
                    }
                    let restarted = tracked.continuity == Continuity::Restarted;
                    if restarted {
                        meter.reset();
                    }
                    if let Some(hz) = meter.take(&tracked, rate.hz()) {
                        misfit = Some(if hz.is_finite() {
                            format!(
                                "by its own clock the sensor sends {hz:.0} samples a second, the source is set to {}",
                                rate.hz()
                            )
                        } else {
                            "the sensor's clock stands still: when its samples were taken cannot be known".to_owned()
                        });
                        feed.counts.refused += u64::from(frame.header.steps);
                        return;
                    }
                    let mut anew = std::mem::take(reopened) || restarted;
                    let (mut place, mut step) = (0, 0);
                    let told = frame.header.flags & FLAG_CLIPPED != 0;
                    let mut clipped = told;
                    for value in frame.values() {
                        row[place] = f32::from(value) * scale;
                        clipped |= is_clipped(value);
                        place += 1;
                        if place == channels {
                            feed.counts.clipped += u64::from(std::mem::replace(&mut clipped, told));
                            let time = tracked.time + rate.offset(step);
                            feed.sample(tracked.sequence + step, time, at, anew, &row[..channels]);
                            (place, step, anew) = (0, step + 1, false);
                        }
                    }
                    feed.arrived = Some(now);
                });
                feed.counts.damaged += decoder.counts().since(&before).corrupt;
                match misfit {
                    Some(why) => feed.link = Link::Misfit(why),
                    None if matches!(feed.link, Link::Misfit(_)) && feed.arrived == Some(now) => {
                        feed.link = Link::Open;
                    }
                    None => {}
                }
            }
            Form::Legacy(decoder) => decoder.push(bytes, |sample| {
                for (to, value) in row.iter_mut().zip(sample.values) {
                    *to = f32::from(*value) * scale;
                }
                feed.counts.clipped += u64::from(sample.values.iter().any(|v| is_clipped(*v)));
                let anew = std::mem::take(reopened);
                feed.sample(sample.sequence, rate.offset(sample.sequence), at, anew, &row[..channels]);
                feed.arrived = Some(now);
            }),
        }
        drop(feed);
        (shared.wake)();
    }

    /// Says what is to be known of samples that do come.
    fn remark(&mut self, shared: &Shared) {
        let (since, received, clipped) = self.remarked;
        let passed = since.elapsed();
        if passed < REMARKED {
            return;
        }
        let mut feed = shared.lock();
        self.remarked = (Instant::now(), feed.counts.received, feed.counts.clipped);
        let float = |n: u64| u32::try_from(n).map_or(f64::INFINITY, f64::from);
        let samples = float(feed.counts.received - received);
        let (share, hz) = (float(feed.counts.clipped - clipped) / samples, samples / passed.as_secs_f64());
        let set = shared.spec.rate.hz();
        feed.remark = if share >= CLIPPED_SHARE {
            format!(
                "{:.0} % of the samples are clipped: the gain is too high, or an electrode is loose",
                100.0 * share
            )
        } else if hz > TOO_FAST * set {
            format!(
                "samples come at {hz:.0} a second, the source is set to {set}: the sensor is ahead of its own clock"
            )
        } else {
            String::new()
        };
    }

    /// Says what the line looks like, now and then.
    fn judge(&mut self, shared: &Shared) {
        let Form::Framed { decoder, judged, .. } = &mut self.form else { return };
        if judged.0.elapsed() < JUDGED {
            return;
        }
        let seen = decoder.counts().since(&judged.1);
        let verdict = line::judge(&seen, None);
        // Too little to say: what was so is so, and more is waited for.
        if verdict == line::Verdict::Unsure {
            return;
        }
        *judged = (Instant::now(), *decoder.counts());
        let mut feed = shared.lock();
        if !matches!(feed.link, Link::Misfit(_)) {
            feed.link = Link::Line(verdict);
        }
    }
}

/// A converter can say no more than this.
fn is_clipped(value: i16) -> bool {
    value == i16::MAX || value == i16::MIN
}
