//! What comes out of a port, over a pseudo-terminal.

#![allow(clippy::unwrap_used, reason = "tests")]

use inferd_actuators::{Actuator, Ask, Pose, Spec, State};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NEUTRAL: [u16; 3] = [1500, 1200, 1800];
const FIST: [u16; 3] = [2000, 1000, 1000];

/// A receiver on a port that can be plugged and unplugged.
struct Hand {
    _folder: tempfile::TempDir,
    spec: Spec,
    wanted: Arc<Mutex<Ask>>,
    /// How often it was asked what may be done.
    asked: Arc<AtomicU64>,
    /// The port while it is plugged in, and what was read of a line.
    port: Option<(File, OwnedFd)>,
    rest: Vec<u8>,
}

impl Hand {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spec = Spec {
            name: "hand".to_owned(),
            path: folder.path().join("port"),
            baud: 115_200,
            rate_hz: 200,
            neutral: NEUTRAL.to_vec(),
            poses: vec![Pose { gesture: "Fist".to_owned(), widths: FIST.to_vec() }],
            velocity: 4000.0,
            acceleration: 40_000.0,
            autostart: true,
        };
        spec.check().unwrap();
        let wanted = Arc::new(Mutex::new(Ask::Safe("nothing is wanted".to_owned())));
        Self { _folder: folder, spec, wanted, asked: Arc::default(), port: None, rest: Vec::new() }
    }

    fn start(&self) -> Actuator {
        let (wanted, asked) = (Arc::clone(&self.wanted), Arc::clone(&self.asked));
        let ask = move || {
            asked.fetch_add(1, Ordering::SeqCst);
            wanted.lock().unwrap().clone()
        };
        Actuator::start(self.spec.clone(), ask).unwrap()
    }

    fn want(&self, ask: Ask) {
        *self.wanted.lock().unwrap() = ask;
    }

    fn plug(&mut self) {
        let ends = openpty(None, None).unwrap();
        let mut terminal = tcgetattr(&ends.slave).unwrap();
        cfmakeraw(&mut terminal);
        tcsetattr(&ends.slave, SetArg::TCSANOW, &terminal).unwrap();
        let name = nix::unistd::ttyname(&ends.slave).unwrap();
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&ends.master, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        link(&name, &self.spec.path);
        self.port = Some((File::from(ends.master), ends.slave));
        self.rest.clear();
    }

    fn unplug(&mut self) {
        self.port = None;
    }

    /// What has come since the last time, parsed; empty where the lines begin anew, whole or not.
    fn lines(&mut self, before: &mut Vec<Vec<i32>>) {
        let (master, _) = self.port.as_mut().unwrap();
        let mut bytes = [0; 4096];
        loop {
            match master.read(&mut bytes) {
                Ok(n) => self.rest.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
        }
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line = String::from_utf8(self.rest.drain(..=end).collect()).unwrap();
            if line.len() < "PWM:1500,1200,1800\n".len() {
                before.push(Vec::new());
                continue;
            }
            let numbers = line.trim_end().strip_prefix("PWM:").unwrap_or_else(|| panic!("{line:?}"));
            before.push(numbers.split(',').map(|n| n.parse().unwrap()).collect());
        }
    }

    /// Reads lines until the last of them is so.
    fn until(&mut self, lines: &mut Vec<Vec<i32>>, so: impl Fn(&[i32]) -> bool) {
        let begun = Instant::now();
        loop {
            self.lines(lines);
            if lines.last().is_some_and(|line| !line.is_empty() && so(line)) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it never came to that: {:?}", lines.last());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn link(to: &Path, at: &Path) {
    let _ = std::fs::remove_file(at);
    std::os::unix::fs::symlink(to, at).unwrap();
}

fn wait(so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never came to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is(pose: [u16; 3]) -> impl Fn(&[i32]) -> bool {
    move |line| line == pose.map(i32::from)
}

/// The lines from one beginning to the next. A machine that stands still for long enough is one more.
fn parts(lines: &[Vec<i32>]) -> Vec<&[Vec<i32>]> {
    lines.split(|line| line.is_empty()).filter(|part| !part.is_empty()).collect()
}

/// 4000 us/s in 200 lines a second are 20 a line; 40,000 us/s2 one more or less each line, and rounding adds up to two.
fn within_limits(lines: &[Vec<i32>]) {
    for part in parts(lines) {
        assert!(is(NEUTRAL)(&part[0]), "{:?}", part[0]);
        for line in part {
            assert!(line.len() == 3 && line.iter().all(|w| (1000..=2000).contains(w)), "{line:?}");
        }
        for pair in part.windows(2) {
            assert!(pair[0].iter().zip(&pair[1]).all(|(a, b)| (a - b).abs() <= 20), "{pair:?}");
        }
        for three in part.windows(3) {
            let bend = |i: usize| (three[2][i] - 2 * three[1][i] + three[0][i]).abs();
            assert!((0..3).all(|i| bend(i) <= 3), "{three:?}");
        }
    }
}

fn fist() -> Ask {
    Ask::Gesture("fist".to_owned())
}

#[test]
fn it_begins_neutral_follows_within_its_limits_and_goes_back_when_nothing_may_be_done() {
    let mut hand = Hand::new();
    hand.want(fist());
    let actuator = hand.start();
    assert_eq!(actuator.view().state, State::Unplugged);
    hand.plug();
    let mut lines = Vec::new();
    hand.until(&mut lines, is(FIST));
    assert!(is(NEUTRAL)(&lines[0]), "{:?}", lines[0]);
    hand.want(Ask::Safe("the sensor is gone".to_owned()));
    hand.until(&mut lines, is(NEUTRAL));
    // Turned round on its way, and a gesture without a pose.
    hand.want(fist());
    hand.until(&mut lines, |line| line[0] > 1600);
    hand.want(Ask::Gesture("wave".to_owned()));
    hand.until(&mut lines, is(NEUTRAL));
    within_limits(&lines);
    wait(|| actuator.view().neutral);
    let view = actuator.view();
    assert_eq!(
        (view.state, view.reason.as_str(), view.counts.fail_safes),
        (State::Safe, "wave has no pose", 2)
    );
}

#[test]
fn whoever_is_stopped_follows_nothing_until_it_is_started() {
    let mut hand = Hand::new();
    hand.spec.autostart = false;
    hand.want(fist());
    hand.plug();
    let actuator = hand.start();
    let mut lines = Vec::new();
    hand.until(&mut lines, is(NEUTRAL));
    wait(|| actuator.view().state == State::Stopped);
    actuator.begin();
    hand.until(&mut lines, |line| line[0] > 1700);
    actuator.stop();
    actuator.stop();
    hand.until(&mut lines, is(NEUTRAL));
    wait(|| actuator.view().state == State::Stopped);
    assert_eq!((actuator.view().counts.stops, actuator.view().stopped), (1, true));
    actuator.begin();
    hand.until(&mut lines, is(FIST));
    within_limits(&lines);
}

#[test]
fn the_lines_end_in_the_neutral_pose_when_nobody_vouches_for_anything_and_when_it_ends() {
    let mut hand = Hand::new();
    hand.want(fist());
    hand.plug();
    let actuator = hand.start();
    let mut lines = Vec::new();
    hand.until(&mut lines, is(FIST));
    hand.want(Ask::Silent("nobody is there".to_owned()));
    hand.until(&mut lines, is(NEUTRAL));
    wait(|| actuator.view().state == State::Silent && actuator.view().neutral);
    let told = actuator.view().counts;
    let asked = hand.asked.load(Ordering::SeqCst);
    wait(|| hand.asked.load(Ordering::SeqCst) > asked + 10);
    assert_eq!(actuator.view().counts.lines, told.lines, "silence has no lines");
    hand.want(fist());
    hand.until(&mut lines, |line| line[0] > 1700);
    assert_eq!(actuator.view().counts.dropped, told.dropped, "silence is no dropped line");
    actuator.end();
    // What it wrote may still be on its way.
    hand.until(&mut lines, is(NEUTRAL));
    within_limits(&lines);
}

#[test]
fn a_port_that_is_plugged_in_again_begins_neutral_whatever_was_wanted() {
    let mut hand = Hand::new();
    hand.want(fist());
    hand.plug();
    let actuator = hand.start();
    hand.until(&mut Vec::new(), is(FIST));
    hand.unplug();
    wait(|| actuator.view().state == State::Unplugged);
    hand.plug();
    let mut lines = Vec::new();
    hand.until(&mut lines, is(FIST));
    assert!(is(NEUTRAL)(&lines[0]), "{:?}", lines[0]);
    within_limits(&lines);
    assert_eq!(actuator.view().counts.opened, 2);
}

#[test]
fn a_port_that_took_nothing_for_long_costs_lines_and_begins_neutral() {
    let mut hand = Hand::new();
    hand.want(fist());
    hand.plug();
    let actuator = hand.start();
    let mut lines = Vec::new();
    // The buffer of a pseudo-terminal runs full, in the pose unless the machine stood still just before.
    loop {
        hand.until(&mut lines, is(FIST));
        wait(|| actuator.view().state == State::Blocked);
        if actuator.view().widths == FIST {
            break;
        }
    }
    let told = actuator.view().counts;
    wait(|| actuator.view().counts.dropped > told.dropped);
    assert_eq!(actuator.view().counts.lines, told.lines);
    hand.want(Ask::Safe("nothing is wanted".to_owned()));
    hand.until(&mut lines, is(NEUTRAL));
    // What was on its way, and then the beginning: nothing between them, whatever was thrown away.
    let all = parts(&lines).concat();
    let old = all.iter().rfind(|line| !is(NEUTRAL)(line)).unwrap();
    assert!(is(FIST)(old), "{old:?}");
    wait(|| actuator.view().state == State::Safe && actuator.view().neutral);
    hand.want(fist());
    let mut lines = vec![lines.pop().unwrap()];
    hand.until(&mut lines, is(FIST));
    within_limits(&lines);
}

#[test]
fn the_lines_begin_neutral_after_a_machine_stood_still_for_longer_than_a_receiver_waits() {
    let mut hand = Hand::new();
    hand.want(fist());
    hand.plug();
    let _actuator = hand.start();
    let mut lines = Vec::new();
    hand.until(&mut lines, is(FIST));
    let wanted = Arc::clone(&hand.wanted);
    let mut still = wanted.lock().unwrap();
    hand.lines(&mut lines);
    let begun = parts(&lines).len();
    // Not waited for: it is the gap itself.
    std::thread::sleep(Duration::from_millis(400));
    *still = Ask::Safe("nothing is wanted".to_owned());
    drop(still);
    hand.until(&mut lines, is(NEUTRAL));
    assert!(parts(&lines).len() > begun, "they went on where they were");
    within_limits(&lines);
}

#[test]
fn whoever_fails_by_itself_follows_nothing() {
    let mut hand = Hand::new();
    hand.plug();
    let asked = Arc::clone(&hand.asked);
    let ask = move || {
        assert!(asked.fetch_add(1, Ordering::SeqCst) < 10, "as this test wants it");
        fist()
    };
    let actuator = Actuator::start(hand.spec.clone(), ask).unwrap();
    wait(|| actuator.view().state == State::Silent);
    let view = actuator.view();
    assert_eq!((view.gesture, view.reason.as_str()), (None, "its thread has failed"));
}
