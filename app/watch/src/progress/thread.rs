//! The threads that ask.

use super::{Engines, Http, Judge, Judgement, Limits, Probe, ProbeMark, Shown, Storage, storage};
use crate::notify::Notifier;
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// The longest pause between two questions.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// The longest an answer of the endpoint is waited for.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);

/// What is to be proved, and to whom.
pub struct Setup {
    /// Where the endpoint listens, as it was really bound.
    pub addresses: Vec<SocketAddr>,
    /// By which the endpoint knows these questions.
    pub mark: Arc<ProbeMark>,
    /// The models.
    pub engines: Box<dyn Engines>,
    /// The data directory, and how often it is written; `None`: never.
    pub storage: Option<(PathBuf, Duration)>,
    /// How long things may take.
    pub limits: Limits,
    /// Who is told.
    pub notifier: Arc<Notifier>,
    /// Where it is shown.
    pub shown: Arc<Shown>,
    /// Why the daemon runs in safe mode, when it does.
    pub safe_mode: Option<String>,
}

/// The proof goes on until this is ended or dropped.
pub struct Watching {
    end: Arc<End>,
}

#[derive(Default)]
struct End {
    ended: Mutex<bool>,
    told: Condvar,
    safe_mode_over: AtomicBool,
}

impl End {
    /// Waits; whether it is over.
    fn wait(&self, pause: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(ended, pause, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Watching {
    /// Safe mode ended without a restart.
    pub fn safe_mode_is_over(&self) {
        self.end.safe_mode_over.store(true, Relaxed);
    }
}

impl Watching {
    /// Ends it: from now on nothing is proved, and nobody is told so.
    pub fn end(&self) {
        *self.end.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.told.notify_all();
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.end();
    }
}

/// Begins to prove progress, on threads of their own: they need nothing of what they watch.
///
/// `READY=1` is said when the endpoint has answered for the first time.
///
/// # Errors
/// When a thread cannot be had.
pub fn start(setup: Setup) -> io::Result<Watching> {
    let end = Arc::new(End::default());
    let (tell, told) = mpsc::channel();
    if let Some((dir, every)) = setup.storage.clone() {
        let end = end.clone();
        thread::Builder::new().name("storage-proof".into()).spawn(move || write(&dir, every, &end, &tell))?;
    }
    let of_thread = end.clone();
    thread::Builder::new().name("progress".into()).spawn(move || Prover::new(setup, told).run(&of_thread))?;
    Ok(Watching { end })
}

/// The medium gets its own thread: what hangs there hangs nothing else.
fn write(dir: &std::path::Path, every: Duration, end: &End, tell: &mpsc::Sender<Storage>) {
    for number in 1.. {
        let _ = tell.send(Storage::Begun);
        let outcome = storage::write(dir, number);
        if tell.send(outcome).is_err() || end.wait(every) {
            return;
        }
    }
}

struct Prover {
    probe: Probe,
    engines: Box<dyn Engines>,
    storage: mpsc::Receiver<Storage>,
    judge: Judge,
    notifier: Arc<Notifier>,
    shown: Arc<Shown>,
    safe_mode: Option<String>,
    pause: Duration,
    ready: bool,
    /// What was said last, without its numbers.
    said: Said,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    missing: [bool; 3],
    storage_alarm: bool,
    at_all: bool,
}

impl Prover {
    fn new(setup: Setup, storage: mpsc::Receiver<Storage>) -> Self {
        let third = setup.notifier.timeout().map_or(LONGEST_PATIENCE, |t| t / 3);
        let patience = third.min(LONGEST_PATIENCE).max(Duration::from_millis(100));
        Self {
            probe: Probe::new(&setup.addresses, patience, setup.mark),
            engines: setup.engines,
            storage,
            judge: Judge::new(setup.limits, Duration::ZERO, setup.safe_mode.is_some()),
            notifier: setup.notifier,
            shown: setup.shown,
            safe_mode: setup.safe_mode,
            pause: third.min(LONGEST_PAUSE),
            ready: false,
            said: Said::default(),
        }
    }

    fn run(mut self, end: &End) {
        let began = Instant::now();
        loop {
            if self.safe_mode.is_some() && end.safe_mode_over.load(Relaxed) {
                self.safe_mode = None;
                self.said = Said::default();
                self.judge.safe_mode_is_over();
            }
            let answer = self.probe.ask();
            if !self.ready && !matches!(answer, Http::Silent(_)) {
                self.ready = true;
                self.notifier.ready();
            }
            let now = began.elapsed();
            self.judge.http(now, answer);
            for model in self.judge.engines(now, &self.engines.look()) {
                self.engines.test(&model);
            }
            while let Ok(event) = self.storage.try_recv() {
                self.judge.storage(now, event);
            }
            let found = self.judge.judge(began.elapsed());
            if found.progress {
                self.notifier.watchdog();
            }
            self.say(&found);
            if found.just_healthy {
                tracing::info!("healthy: every proof of progress has been good for a minute");
                self.notifier.healthy();
            }
            self.shown.publish(found);
            // Until it is ready somebody waits for it.
            let pause = if self.ready { self.pause } else { self.pause.min(Duration::from_millis(50)) };
            if end.wait(pause) {
                return;
            }
        }
    }

    /// Says what has changed, to the log and to who listens; while progress is missing, how long it has been.
    fn say(&mut self, found: &Judgement) {
        let proofs = [&found.http, &found.inference, &found.storage];
        let said = Said {
            missing: proofs.map(|p| p.withholds),
            storage_alarm: !found.storage.ok && !found.storage.withholds,
            at_all: self.ready,
        };
        let changed = said != self.said;
        if !self.ready {
            return;
        }
        if !found.progress {
            let why = found.why_not();
            self.notifier.status(&format!("no progress: {why}"));
            if changed {
                tracing::error!("no progress is proved, so the watchdog is not fed: {why}");
            }
        } else if changed {
            if self.said.at_all && self.said.missing.contains(&true) {
                tracing::warn!("progress is proved again");
            }
            match &self.safe_mode {
                Some(reason) => self.notifier.status(&format!("safe mode: {reason}")),
                None => self.notifier.status(&found.inference.sentence),
            }
        }
        if changed && said.storage_alarm && !self.said.storage_alarm {
            tracing::error!("{}", found.storage.sentence);
        }
        self.said = said;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Condition, Engine};
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        os::unix::net::UnixDatagram,
        sync::atomic::AtomicU64,
    };

    /// A model whose self-tests end, or do not.
    struct Model {
        finished: Arc<AtomicU64>,
        ends: Arc<AtomicBool>,
        tests: mpsc::Sender<()>,
    }

    impl Engines for Model {
        fn look(&mut self) -> Vec<Engine> {
            vec![Engine {
                model: "m".into(),
                finished: self.finished.load(Relaxed),
                busy: false,
                condition: Condition::Serving,
                deadline: Duration::from_millis(10),
            }]
        }
        fn test(&mut self, _: &str) {
            let _ = self.tests.send(());
            if self.ends.load(Relaxed) {
                self.finished.fetch_add(1, Relaxed);
            }
        }
    }

    struct Rig {
        keeper: UnixDatagram,
        answers: Arc<AtomicBool>,
        ends: Arc<AtomicBool>,
        tests: mpsc::Receiver<()>,
        shown: Arc<Shown>,
        _watching: Watching,
        _dir: tempfile::TempDir,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("notify");
            let keeper = UnixDatagram::bind(&path).unwrap();
            keeper.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addresses = vec![listener.local_addr().unwrap()];
            let answers = Arc::new(AtomicBool::new(true));
            let of_endpoint = answers.clone();
            thread::spawn(move || {
                let mut kept = Vec::new();
                for mut stream in listener.incoming().flatten() {
                    if of_endpoint.load(Relaxed) {
                        let _ = stream.read(&mut [0; 256]);
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                    } else {
                        kept.push(stream);
                    }
                }
            });
            let (tests, asked) = mpsc::channel();
            let ends = Arc::new(AtomicBool::new(true));
            let timeout = Some(Duration::from_millis(300));
            let shown = Arc::new(Shown::default());
            let watching = start(Setup {
                addresses,
                mark: Arc::default(),
                engines: Box::new(Model { finished: Arc::default(), ends: ends.clone(), tests }),
                storage: Some((dir.path().to_owned(), Duration::from_secs(1))),
                limits: Limits {
                    healthy: Duration::from_secs(1),
                    ..Limits::new(Some(Duration::from_millis(800)))
                },
                notifier: Arc::new(Notifier::new(Some(path.into()), timeout).unwrap()),
                shown: shown.clone(),
                safe_mode: None,
            })
            .unwrap();
            Self { keeper, answers, ends, tests: asked, shown, _watching: watching, _dir: dir }
        }

        fn next(&self) -> String {
            let mut buffer = [0; 1024];
            let n = self.keeper.recv(&mut buffer).expect("nothing is said any more");
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        }

        /// Reads until something begins so.
        fn until(&self, beginning: &str) -> String {
            loop {
                let said = self.next();
                if said.starts_with(beginning) {
                    return said;
                }
            }
        }

        /// What is said between two complaints.
        fn between_complaints(&self) -> Vec<String> {
            self.until("STATUS=no progress");
            let mut all = Vec::new();
            loop {
                let said = self.next();
                if said.starts_with("STATUS=no progress") {
                    return all;
                }
                all.push(said);
            }
        }
    }

    #[test]
    fn ready_then_fed_then_healthy() {
        let rig = Rig::new();
        assert_eq!(rig.next(), "READY=1");
        assert_eq!(rig.next(), "WATCHDOG=1");
        rig.until(crate::notify::HEALTHY);
        let view = rig.shown.view().unwrap();
        assert!(view.proved && view.storage.ok && view.storage_writes >= 1, "{view:?}");
    }

    #[test]
    fn an_endpoint_that_hangs_is_not_fed_for_until_it_answers() {
        let rig = Rig::new();
        rig.until("WATCHDOG=1");
        rig.answers.store(false, Relaxed);
        let said = rig.until("STATUS=no progress");
        assert!(said.contains("the endpoint has not answered GET /livez"), "{said}");
        assert_eq!(rig.between_complaints(), [""; 0]);
        rig.answers.store(true, Relaxed);
        rig.until("WATCHDOG=1");
    }

    #[test]
    fn engines_that_finish_nothing_are_not_fed_for_until_they_do() {
        let rig = Rig::new();
        rig.tests.recv().unwrap();
        rig.ends.store(false, Relaxed);
        let said = rig.until("STATUS=no progress");
        assert!(said.contains("no model has finished an inference or a self-test"), "{said}");
        assert_eq!(rig.between_complaints(), [""; 0]);
        rig.ends.store(true, Relaxed);
        rig.until("WATCHDOG=1");
    }
}
