//! Reading what may hang.
//!
//! A file of a sick sensor, of an accelerator whose firmware stopped or of a dying disk may not come back. Such a reading runs on
//! a thread of its own with a deadline; past it the reading is left where it is, the others go on on another thread, and it is
//! not begun again while it hangs. So there are never more threads than things to read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

/// One thing to read, with a name that stays the same from round to round.
pub(super) struct Job<T> {
    pub name: String,
    pub read: Box<dyn FnOnce() -> T + Send>,
}

impl<T> Job<T> {
    pub(super) fn new(name: impl Into<String>, read: impl FnOnce() -> T + Send + 'static) -> Self {
        Self { name: name.into(), read: Box::new(read) }
    }
}

/// Reads things that may hang.
#[derive(Default)]
pub(super) struct Patience {
    /// What hangs, until its thread says otherwise.
    hanging: BTreeMap<String, Arc<AtomicBool>>,
}

impl Patience {
    /// Does the jobs in order, each within the deadline; what came of those that ended.
    pub(super) fn read<T: Send + 'static>(&mut self, jobs: Vec<Job<T>>, deadline: Duration) -> Vec<T> {
        self.hanging.retain(|_, hangs| hangs.load(SeqCst));
        let mut left: Vec<Job<T>> =
            jobs.into_iter().filter(|job| !self.hanging.contains_key(&job.name)).collect();
        let mut done = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let names: Vec<String> = left.iter().map(|job| job.name.clone()).collect();
            let Some((came, rest)) = round(left, deadline, &mut done) else { return done };
            let hangs = rest.hangs;
            if let Some(name) = names.get(came) {
                tracing::warn!(
                    sensor = name.as_str(),
                    "a reading hangs; it is left alone until it comes back"
                );
                self.hanging.insert(name.clone(), hangs);
            }
            left = rest.jobs;
        }
        done
    }

    /// What hangs now.
    pub(super) fn hanging(&self) -> Vec<String> {
        self.hanging.iter().filter(|(_, hangs)| hangs.load(SeqCst)).map(|(name, _)| name.clone()).collect()
    }
}

/// What a round that met a hanging job leaves.
struct Rest<T> {
    jobs: Vec<Job<T>>,
    hangs: Arc<AtomicBool>,
}

/// Does jobs on a thread until one is late; how many came before it and what is left behind it. `None`: all were done.
fn round<T: Send + 'static>(
    jobs: Vec<Job<T>>,
    deadline: Duration,
    done: &mut Vec<T>,
) -> Option<(usize, Rest<T>)> {
    let (give, take) = mpsc::sync_channel::<Job<T>>(0);
    let (tell, told) = mpsc::channel();
    let hangs = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&hangs);
    let thread = std::thread::Builder::new().name("sensors".into()).spawn(move || {
        for job in take {
            // Whoever is not listened to any more took too long: its result is old, and it hangs no longer.
            if tell.send((job.read)()).is_err() {
                break;
            }
        }
        flag.store(false, SeqCst);
    });
    if let Err(e) = thread {
        tracing::error!("no thread to read the sensors with: {e}");
        return None;
    }
    let mut jobs = jobs.into_iter();
    let mut came: usize = 0;
    while let Some(job) = jobs.next() {
        if give.send(job).is_err() {
            // A reading panicked: it counts as one that hangs until the next round, and no longer.
            hangs.store(false, SeqCst);
            return Some((came.saturating_sub(1), Rest { jobs: jobs.collect(), hangs }));
        }
        match told.recv_timeout(deadline) {
            Ok(result) => done.push(result),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Some((came, Rest { jobs: jobs.collect(), hangs }));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                hangs.store(false, SeqCst);
                return Some((came, Rest { jobs: jobs.collect(), hangs }));
            }
        }
        came += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_reading_that_hangs_keeps_no_other_from_being_read_and_is_not_begun_again() {
        let mut patience = Patience::default();
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let begun = Arc::new(AtomicUsize::new(0));
        let hangs = Arc::new(AtomicBool::new(true));
        let jobs = || {
            let (wait, begun, hangs) = (wait.clone(), begun.clone(), hangs.clone());
            let stuck = move || {
                begun.fetch_add(1, SeqCst);
                if hangs.load(SeqCst) {
                    wait.lock().unwrap().recv().unwrap();
                }
                2
            };
            vec![Job::new("a", || 1), Job::new("b", stuck), Job::new("c", || 3), Job::new("d", || 4)]
        };
        let deadline = Duration::from_millis(100);
        for _ in 0..3 {
            assert_eq!(patience.read(jobs(), deadline), [1, 3, 4]);
            assert_eq!(patience.hanging(), ["b"]);
        }
        assert_eq!(begun.load(SeqCst), 1, "while it hangs it is not begun again");
        hangs.store(false, SeqCst);
        release.send(()).unwrap();
        while !patience.hanging().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(patience.read(jobs(), Duration::from_secs(60)), [1, 2, 3, 4]);
    }

    #[test]
    fn a_reading_that_panics_costs_itself_only() {
        let mut patience = Patience::default();
        let jobs = || vec![Job::new("a", || 1), Job::new("b", || panic!("on purpose")), Job::new("c", || 3)];
        for _ in 0..2 {
            assert_eq!(patience.read(jobs(), Duration::from_secs(60)), [1, 3]);
            assert!(patience.hanging().is_empty());
        }
    }
}
