//! Capture: windows the model was unsure about, kept on the device so that somebody can label them and train on.
//!
//! Whoever answered hands a window over; it is copied into a bounded queue, or not taken when the queue is full, the hour's number is
//! reached, or the device sheds load. A thread of its own writes each as one safetensors file: tensors `input`, `latent` and `scores`
//! (F32), metadata as in [`Window::file`]. The oldest give way when the quota is reached.
//!
//! What is captured are measurements of a person's movement: it is off unless it is configured, and only an admin gets it.

use crate::{history::uptime, permit::Permit, shelf::Shelf};
use safetensors::{Dtype, SafeTensorError, tensor::TensorView};
use std::{
    collections::{HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The form of the files, in their metadata.
pub const SCHEMA: &str = "inferd-capture-1";
/// Windows that may wait to be written.
const QUEUE: usize = 8;
/// The most files, however small.
const FILES: usize = 16_384;
/// How long nothing is tried after a failed write.
const PAUSE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const ENDING: &str = ".safetensors";

/// What a deployment decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the files lie.
    pub dir: PathBuf,
    /// Windows whose highest score is below it are kept.
    pub threshold: f32,
    /// The most room all files take.
    pub quota: u64,
    /// The most windows in any hour.
    pub per_hour: usize,
}

/// One window and what the model made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The model's name.
    pub model: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its weights, hex.
    pub sha256: String,
    /// The bundle it came in; empty for a directory.
    pub bundle: String,
    /// The request, as the log names it.
    pub request_id: String,
    /// Time steps and channels of `input`.
    pub shape: [usize; 2],
    /// The window as it came, before normalisation.
    pub input: Vec<f32>,
    /// The latent as the model gave it.
    pub latent: Vec<f32>,
    /// The scores.
    pub scores: Vec<f32>,
}

impl Window {
    /// The file: `schema`, `model`, `version`, `sha256`, `bundle`, `request_id`, `confidence`, `threshold`, `clock_ms`, `boot`,
    /// `uptime_ms`, all as text.
    fn file(
        &self,
        threshold: f32,
        boot: u64,
        clock: Duration,
        up: Duration,
    ) -> Result<Vec<u8>, SafeTensorError> {
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (input, latent, scores) = (bytes(&self.input), bytes(&self.latent), bytes(&self.scores));
        let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        let tensors = [
            ("input", view(&self.shape, &input)?),
            ("latent", view(&[self.latent.len()], &latent)?),
            ("scores", view(&[self.scores.len()], &scores)?),
        ];
        let confidence = highest(&self.scores);
        let text = |name: &str, value: &dyn ToString| (name.to_owned(), value.to_string());
        let metadata = HashMap::from([
            text("schema", &SCHEMA),
            text("model", &self.model),
            text("version", &self.version),
            text("sha256", &self.sha256),
            text("bundle", &self.bundle),
            text("request_id", &self.request_id),
            text("confidence", &confidence),
            text("threshold", &threshold),
            text("clock_ms", &clock.as_millis()),
            text("boot", &boot),
            text("uptime_ms", &up.as_millis()),
        ]);
        safetensors::serialize(tensors, Some(metadata))
    }
}

/// The highest score; 0 without any.
#[must_use]
pub fn highest(scores: &[f32]) -> f32 {
    scores.iter().copied().fold(0.0, f32::max)
}

/// How it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Windows written.
    pub kept: u64,
    /// Windows below the threshold that were not taken: too many in an hour, the queue full, or the device sheds load.
    pub passed_over: u64,
    /// Windows that could not be written.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counted {
    kept: AtomicU64,
    passed_over: AtomicU64,
    failed: AtomicU64,
}

/// Never more than so many in any hour.
#[derive(Debug)]
struct Pace {
    per_hour: usize,
    taken: VecDeque<Duration>,
}

impl Pace {
    fn take(&mut self, now: Duration) -> bool {
        while self.taken.front().is_some_and(|t| now.saturating_sub(*t) >= HOUR) {
            self.taken.pop_front();
        }
        let room = self.taken.len() < self.per_hour;
        if room {
            self.taken.push_back(now);
        }
        room
    }
}

/// Where windows are handed over.
pub struct Capture {
    threshold: f32,
    queue: SyncSender<Window>,
    pace: Mutex<Pace>,
    shelf: Shelf,
    counted: Arc<Counted>,
}

impl Capture {
    /// Begins, with a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be had.
    pub fn start(settings: Settings, boot: u64, permit: Arc<dyn Permit>) -> io::Result<Self> {
        let shelf = Shelf::new(settings.dir, ("window", &[ENDING]), settings.quota, FILES, permit);
        let (queue, windows) = sync_channel(QUEUE);
        let counted = Arc::new(Counted::default());
        let threshold = settings.threshold;
        let (on_shelf, count) = (shelf.clone(), Arc::clone(&counted));
        std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || keep(&windows, &on_shelf, &count, threshold, boot))?;
        let pace = Mutex::new(Pace { per_hour: settings.per_hour, taken: VecDeque::new() });
        Ok(Self { threshold, queue, pace, shelf, counted })
    }

    /// Whether a window with these scores is wanted. What is asked on the path of a request: no lock, no copy.
    #[must_use]
    pub fn wants(&self, scores: impl Iterator<Item = f32>) -> bool {
        scores.fold(0.0, f32::max) < self.threshold
    }

    /// Takes a window, or does not; never waits. `window` is only made when it is taken.
    pub fn offer(&self, window: impl FnOnce() -> Window) {
        let welcome = !self.shelf.permit().shedding()
            && self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(uptime());
        if !welcome || self.queue.try_send(window()).is_err() {
            self.counted.passed_over.fetch_add(1, Relaxed);
        }
    }

    /// How it goes.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            kept: self.counted.kept.load(Relaxed),
            passed_over: self.counted.passed_over.load(Relaxed),
            failed: self.counted.failed.load(Relaxed),
        }
    }

    /// Below which highest score a window is kept.
    #[must_use]
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// The files. Blocking.
    #[must_use]
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }
}

/// The thread: one file per window, and a pause after a failure, so that a broken medium is left alone.
fn keep(windows: &Receiver<Window>, shelf: &Shelf, counted: &Counted, threshold: f32, boot: u64) {
    let mut not_before = Duration::ZERO;
    let mut next = None;
    let mut failing = false;
    while let Ok(window) = windows.recv() {
        let now = uptime();
        if now < not_before {
            counted.failed.fetch_add(1, Relaxed);
            continue;
        }
        match put(&window, shelf, &mut next, threshold, boot, now) {
            Ok(true) => {
                counted.kept.fetch_add(1, Relaxed);
                failing = false;
            }
            Ok(false) => {
                counted.passed_over.fetch_add(1, Relaxed);
            }
            Err(e) => {
                counted.failed.fetch_add(1, Relaxed);
                if !failing {
                    tracing::warn!(error = %e, "a captured window cannot be kept");
                }
                failing = true;
                next = None;
                not_before = now + PAUSE;
            }
        }
    }
}

/// Writes one; false: it is not welcome now.
fn put(
    window: &Window,
    shelf: &Shelf,
    next: &mut Option<u64>,
    threshold: f32,
    boot: u64,
    now: Duration,
) -> io::Result<bool> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let bytes = window.file(threshold, boot, clock, now).map_err(io::Error::other)?;
    if !shelf.permit().may_write(bytes.len() as u64) {
        return Ok(false);
    }
    let number = match *next {
        Some(number) => number,
        None => {
            shelf.tidy()?;
            shelf.list()?.last().map_or(1, |newest| newest.number + 1)
        }
    };
    if !shelf.make_room(bytes.len() as u64, None)? {
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the quota is smaller than one window"));
    }
    shelf.put(&shelf.name(number, ENDING), &bytes)?;
    *next = Some(number + 1);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::permit::Unlimited;
    use std::sync::atomic::AtomicBool;

    fn window(n: usize) -> Window {
        Window {
            model: "imu".into(),
            version: "1".into(),
            sha256: "00".into(),
            bundle: String::new(),
            request_id: format!("r{n}"),
            shape: [10, 9],
            input: (0..90u8).map(f32::from).collect(),
            latent: vec![0.5; 64],
            scores: vec![0.1, 0.4],
        }
    }

    fn settings(dir: &tempfile::TempDir) -> Settings {
        Settings { dir: dir.path().join("c"), threshold: 0.5, quota: 32 << 10, per_hour: 60 }
    }

    fn settled(capture: &Capture, windows: u64) -> Counts {
        loop {
            let c = capture.counts();
            if c.kept + c.passed_over + c.failed >= windows {
                return c;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_window_is_kept_whole_and_the_oldest_give_way() {
        let dir = tempfile::tempdir().unwrap();
        let capture = Capture::start(settings(&dir), 3, Arc::new(Unlimited)).unwrap();
        assert!(capture.wants([0.1, 0.49].into_iter()) && !capture.wants([0.5].into_iter()));
        for n in 1..=20 {
            capture.offer(|| window(n));
            assert_eq!(settled(&capture, n as u64).kept, n as u64);
        }
        let files = capture.shelf().list().unwrap();
        assert_eq!(files.len(), 8, "as many as fit into the quota");
        assert_eq!(files[0].name, "window-00000013.safetensors");
        let bytes = capture.shelf().read(&files[7].name).unwrap().unwrap();
        let (_, head) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let said = head.metadata().clone().unwrap();
        assert_eq!(
            (said["request_id"].as_str(), said["boot"].as_str(), said["confidence"].as_str()),
            ("r20", "3", "0.4")
        );
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("input").unwrap().shape(), [10, 9]);
        assert_eq!(tensors.tensor("input").unwrap().data()[4..8], 1f32.to_le_bytes());
    }

    #[test]
    fn no_hour_has_more_than_its_number() {
        let mut pace = Pace { per_hour: 3, taken: VecDeque::new() };
        let minutes = |m: u64| Duration::from_secs(60 * m);
        let taken: Vec<bool> = [0, 1, 2, 3, 59, 60, 60, 61, 61].map(|m| pace.take(minutes(m))).into();
        assert_eq!(taken, [true, true, true, false, false, true, false, true, false]);
    }

    #[test]
    fn while_load_is_shed_nothing_is_taken_or_made() {
        #[derive(Default)]
        struct Busy(AtomicBool);
        impl Permit for Busy {
            fn may_write(&self, _: u64) -> bool {
                true
            }
            fn wrote(&self, _: u64) {}
            fn shedding(&self) -> bool {
                self.0.load(Relaxed)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let busy = Arc::new(Busy::default());
        let capture = Capture::start(settings(&dir), 0, busy.clone()).unwrap();
        busy.0.store(true, Relaxed);
        capture.offer(|| panic!("copied for nothing"));
        busy.0.store(false, Relaxed);
        capture.offer(|| window(1));
        assert_eq!(settled(&capture, 2), Counts { kept: 1, passed_over: 1, failed: 0 });
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_counts_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c"), "in the way").unwrap();
        let capture = Capture::start(settings(&dir), 0, Arc::new(Unlimited)).unwrap();
        for n in 1..=5 {
            capture.offer(|| window(n));
            settled(&capture, n as u64);
        }
        assert_eq!(capture.counts(), Counts { kept: 0, passed_over: 0, failed: 5 });
    }
}
