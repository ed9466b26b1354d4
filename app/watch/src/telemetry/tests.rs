use super::*;
use crate::permit::Unlimited;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A directory in memory that fails as it is told to.
#[derive(Default)]
struct Fake {
    files: RefCell<BTreeMap<String, Vec<u8>>>,
    quota: u64,
    broken: Cell<Option<nix::errno::Errno>>,
    /// Only writing of whole files (compressing) fails.
    no_put: Cell<bool>,
    denied: Cell<bool>,
    attempts: Cell<usize>,
    most: Cell<u64>,
}

impl Fake {
    fn check(&self) -> io::Result<()> {
        self.broken.get().map_or(Ok(()), |e| Err(e.into()))
    }

    fn used(&self) -> u64 {
        self.files.borrow().values().map(|f| crate::shelf::room(f.len() as u64)).sum()
    }

    fn note(&self) {
        self.most.set(self.most.get().max(self.used()));
    }

    fn lines(&self) -> Vec<Value> {
        let files = self.files.borrow();
        let mut lines = Vec::new();
        for (name, bytes) in files.iter() {
            let mut text = String::new();
            if name.ends_with(CLOSED) {
                io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&**bytes), &mut text).unwrap();
            } else {
                text = String::from_utf8(bytes.clone()).unwrap();
            }
            lines.extend(text.lines().map(|l| serde_json::from_str(l).unwrap()));
        }
        lines
    }
}

impl Medium for &Fake {
    fn list(&self) -> io::Result<Vec<Item>> {
        self.check()?;
        let digits = |name: &str| name["telemetry-".len()..][..8].parse().unwrap();
        Ok(self
            .files
            .borrow()
            .iter()
            .map(|(name, b)| Item { number: digits(name), name: name.clone(), bytes: b.len() as u64 })
            .collect())
    }
    fn tidy(&self) -> io::Result<()> {
        self.check()
    }
    fn mend(&self, name: &str) -> io::Result<u64> {
        Ok(self.files.borrow()[name].len() as u64)
    }
    fn make_room(&self, bytes: u64, keep: Option<&str>) -> io::Result<bool> {
        self.check()?;
        while self.used() + crate::shelf::room(bytes) > self.quota {
            let oldest = self.files.borrow().keys().find(|n| Some(n.as_str()) != keep).cloned();
            let Some(oldest) = oldest else { return Ok(false) };
            self.files.borrow_mut().remove(&oldest);
        }
        Ok(true)
    }
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.attempts.set(self.attempts.get() + 1);
        self.check()?;
        self.files.borrow_mut().entry(name.to_owned()).or_default().extend_from_slice(bytes);
        self.note();
        Ok(())
    }
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files.borrow().get(name).cloned())
    }
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.check()?;
        if self.no_put.get() {
            return Err(nix::errno::Errno::ENOSPC.into());
        }
        self.files.borrow_mut().insert(name.to_owned(), bytes.to_owned());
        self.note();
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<bool> {
        Ok(self.files.borrow_mut().remove(name).is_some())
    }
    fn name(&self, number: u64, ending: &str) -> String {
        format!("telemetry-{number:08}{ending}")
    }
    fn may_write(&self, _: u64) -> bool {
        !self.denied.get()
    }
}

fn settings(quota: u64) -> Settings {
    Settings { dir: "/nowhere".into(), write_every: 10 * MINUTE, file_bytes: 256 << 10, quota }
}

/// A day of the device as the thread would live it: a line every `every`, turns when they are due.
struct Day<'a> {
    writer: Writer<&'a Fake>,
    state: State,
    now: Duration,
    number: u64,
}

impl<'a> Day<'a> {
    fn new(fake: &'a Fake) -> Self {
        let writer = Writer::new(fake, settings(fake.quota));
        Self { writer, state: State::default(), now: Duration::ZERO, number: 0 }
    }

    fn go(&mut self, length: Duration, every: Duration, bytes: usize) {
        let end = self.now + length;
        while self.now < end {
            let mut what = Map::new();
            what.insert("n".into(), self.number.into());
            what.insert("pad".into(), "x".repeat(bytes).into());
            self.number += 1;
            self.state.status.lines += 1;
            let line = line(Kind::Sample, self.now, self.now, 1, what);
            if !self.state.pending.push(&line, self.now) {
                self.state.status.dropped += 1;
            }
            let due = self.state.pending.due(10 * MINUTE).map(|d| d.max(self.writer.patience.not_before));
            if due.is_some_and(|due| due <= self.now) {
                let (batch, lines) = self.state.take(self.now, 1);
                let outcome = self.writer.turn(&batch, self.now);
                self.state.settle(&outcome, batch, lines, self.now, self.writer.written);
            }
            self.now += every;
        }
    }
}

fn numbers(fake: &Fake) -> Vec<u64> {
    fake.lines().iter().filter_map(|l| l["n"].as_u64()).collect()
}

#[test]
fn a_line_a_minute_is_one_write_in_ten_minutes() {
    let fake = Fake { quota: 16 << 20, ..Fake::default() };
    let mut day = Day::new(&fake);
    day.go(24 * 60 * MINUTE, MINUTE, 300);
    assert!(fake.attempts.get() <= 144, "{}", fake.attempts.get());
    let numbers = numbers(&fake);
    assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]) && numbers[0] == 0, "in order and whole");
    assert!(numbers.len() >= 1440 - 11);
}

#[test]
fn what_is_written_never_takes_more_than_its_quota() {
    for quota in [1 << 20, 4 << 20] {
        let fake = Fake { quota, ..Fake::default() };
        let mut day = Day::new(&fake);
        day.go(200 * MINUTE, Duration::from_millis(250), 400);
        assert!(fake.most.get() <= quota, "{} of {quota}", fake.most.get());
        let numbers = numbers(&fake);
        assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]), "only the oldest gave way");
        assert!(numbers.last().unwrap() + 1000 > day.number);
    }
}

#[test]
fn a_medium_that_fails_is_asked_ever_more_seldom_and_the_gap_is_told() {
    for errno in [nix::errno::Errno::ENOSPC, nix::errno::Errno::EROFS, nix::errno::Errno::EIO] {
        let fake = Fake { quota: 16 << 20, ..Fake::default() };
        let mut day = Day::new(&fake);
        day.go(30 * MINUTE, MINUTE, 300);
        fake.broken.set(Some(errno));
        let failures = day.state.status.failures;
        day.go(24 * 60 * MINUTE, Duration::from_secs(1), 300);
        let tries = day.state.status.failures - failures;
        assert!((24..=32).contains(&tries), "{tries} attempts in a day without a medium");
        assert!(day.state.pending.bytes.len() <= WAITING, "memory is bounded");
        assert!(day.state.status.dropped > 80_000 && day.state.status.problem.is_some());
        fake.broken.set(None);
        day.go(61 * MINUTE, MINUTE, 300);
        assert_eq!(day.state.status.problem, None);
        let gaps: u64 =
            fake.lines().iter().filter(|l| l["kind"] == "gap").map(|l| l["lines"].as_u64().unwrap()).sum();
        let waiting = day.state.pending.lines;
        assert_eq!(gaps, day.state.status.dropped, "every dropped line is told");
        assert_eq!(
            numbers(&fake).len() as u64 + gaps + waiting,
            day.number,
            "each line is there, dropped or waiting"
        );
    }
}

#[test]
fn a_full_file_that_cannot_be_compressed_stays_and_is_not_tried_again_and_again() {
    let fake = Fake { quota: 16 << 20, ..Fake::default() };
    fake.no_put.set(true);
    let mut day = Day::new(&fake);
    day.go(100 * MINUTE, Duration::from_secs(1), 400);
    assert_eq!(day.state.status.failures, 0);
    let numbers = numbers(&fake);
    assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]));
    assert!(fake.files.borrow().len() > 5);
}

#[test]
fn when_writing_is_not_welcome_lines_wait_and_nothing_counts_as_failed() {
    let fake = Fake { quota: 16 << 20, ..Fake::default() };
    fake.denied.set(true);
    let mut day = Day::new(&fake);
    day.go(60 * MINUTE, MINUTE, 300);
    assert_eq!((fake.attempts.get(), day.state.status.failures, day.state.status.dropped), (0, 0, 0));
    fake.denied.set(false);
    day.go(12 * MINUTE, MINUTE, 300);
    assert!(numbers(&fake).len() >= 60);
}

#[test]
fn lines_outlive_a_crash_in_every_step_of_closing_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let settings = Settings { dir: dir.path().to_owned(), ..settings(16 << 20) };
        Writer::new(
            Shelf::new(
                settings.dir.clone(),
                ("telemetry", &[OPEN, CLOSED]),
                settings.quota,
                FILES,
                Arc::new(Unlimited),
            ),
            settings,
        )
    };
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let line = b"{\"n\":1}\n";
    start().write(line).unwrap();
    // In the middle of a line; a file half compressed; both twins; only the compressed one.
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("telemetry-00000001.ndjson"), b"{\"n\":1}\n{\"n\":").unwrap();
    std::fs::write(at("telemetry-00000001.ndjson.gz.part"), b"half").unwrap();
    start().write(line).unwrap();
    assert_eq!(names(), ["telemetry-00000001.ndjson"]);
    assert_eq!(std::fs::read(at("telemetry-00000001.ndjson")).unwrap(), b"{\"n\":1}\n{\"n\":1}\n");
    std::fs::write(at("telemetry-00000001.ndjson.gz"), b"whole").unwrap();
    start().write(line).unwrap();
    assert_eq!(names(), ["telemetry-00000001.ndjson.gz", "telemetry-00000002.ndjson"]);
}

#[test]
fn the_thread_writes_a_line_that_comes_while_it_sleeps() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        Settings { dir: dir.path().join("t"), write_every: Duration::from_millis(1), ..settings(16 << 20) };
    let telemetry = Telemetry::start(settings, 0, Arc::new(Unlimited));
    for n in 1..=3 {
        // Whatever waited is written: the thread has nothing to wake up for by itself.
        let begun = Instant::now();
        telemetry.line(Kind::Stop, Map::new());
        while telemetry.status().waiting > 0 || telemetry.status().written == 0 {
            assert!(begun.elapsed() < FIRST_WAIT, "line {n} waits for the thread's next look");
            std::thread::yield_now();
        }
    }
}

#[test]
fn the_thread_writes_what_waits_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().join("t"), ..settings(16 << 20) };
    let telemetry = Telemetry::start(settings, 7, Arc::new(Unlimited));
    telemetry.line(Kind::Start, Map::new());
    let mut what = Map::new();
    what.insert("kind".into(), "forged".into());
    telemetry.line(Kind::Stop, what);
    telemetry.end(Duration::from_secs(60));
    let files = telemetry.shelf().list().unwrap();
    let text = telemetry.shelf().read(&files[0].name).unwrap().unwrap();
    let lines: Vec<Value> = text
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["kind"], &lines[0]["boot"], &lines[0]["v"]),
        (&json!("start"), &json!(7), &json!(1))
    );
    assert_eq!(lines[1]["kind"], "stop", "what every line has cannot be overwritten");
}
