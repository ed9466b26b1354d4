//! Small files written by a thread of their own: a medium that is slow, full or read-only holds nobody up.
//!
//! [`Writer::put`] returns at once; of several contents for one file the newest is written. Each file is replaced whole, so a
//! power cut leaves the old one or the new one. A file that could not be written is tried again with the next [`Writer::put`]
//! and at [`Writer::flush`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Files that can wait to be written; more than one program's evidence never needs.
const MAX_WAITING: usize = 32;

/// Writes small files.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    waiting: BTreeMap<PathBuf, Vec<u8>>,
    /// Could not be written: waits for the next occasion.
    failed: BTreeMap<PathBuf, Vec<u8>>,
    busy: bool,
    ended: bool,
    written: u64,
    bytes: u64,
    failures: u64,
    trouble: Option<String>,
}

/// What a writer has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Files that were replaced.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Why the last attempt failed; `None` when it did not.
    pub trouble: Option<String>,
}

impl Writer {
    /// Starts the thread.
    #[must_use]
    pub fn start() -> Arc<Self> {
        Self::with(inferd_slots::replace)
    }

    /// One that writes as it is told: for tests of what a medium does.
    pub fn with(replace: impl Fn(&Path, &[u8]) -> io::Result<()> + Send + 'static) -> Arc<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let spawned = std::thread::Builder::new()
            .name("evidence".into())
            .spawn(move || while of_thread.write_one(&replace) {});
        if let Err(error) = spawned {
            let mut kept = shared.lock();
            kept.ended = true;
            kept.trouble = Some(format!("the thread that writes cannot be started: {error}"));
        }
        Arc::new(Self { shared })
    }

    /// Has a file replaced, soon.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut kept = self.shared.lock();
        let failed = std::mem::take(&mut kept.failed);
        for (path, bytes) in failed {
            kept.waiting.entry(path).or_insert(bytes);
        }
        if kept.waiting.len() < MAX_WAITING || kept.waiting.contains_key(path) {
            kept.waiting.insert(path.to_owned(), bytes);
        } else {
            kept.failures += 1;
            kept.trouble = Some("too many files wait to be written".into());
        }
        drop(kept);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written, once more what failed before; `false` when it is not within `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut kept = self.shared.lock();
        let failed = std::mem::take(&mut kept.failed);
        for (path, bytes) in failed {
            kept.waiting.entry(path).or_insert(bytes);
        }
        self.shared.changed.notify_all();
        while kept.busy || !kept.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || kept.ended {
                return false;
            }
            kept = self.shared.changed.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        kept.failed.is_empty()
    }

    /// What has been written so far.
    #[must_use]
    pub fn written(&self) -> Written {
        let kept = self.shared.lock();
        Written {
            files: kept.written,
            bytes: kept.bytes,
            failures: kept.failures,
            trouble: kept.trouble.clone(),
        }
    }
}

impl Drop for Writer {
    /// The thread ends after what it is writing; nobody waits for a medium that may be dead.
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every critical section is a few assignments; one that panicked has left nothing half-done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the next file, waiting for one; `false` when there will be none.
    fn write_one(&self, replace: &impl Fn(&Path, &[u8]) -> io::Result<()>) -> bool {
        let mut kept = self.lock();
        let (path, bytes) = loop {
            if kept.ended {
                return false;
            }
            match kept.waiting.pop_first() {
                Some(next) => break next,
                None => kept = self.changed.wait(kept).unwrap_or_else(PoisonError::into_inner),
            }
        };
        kept.busy = true;
        drop(kept);
        let outcome = replace(&path, &bytes);
        let mut kept = self.lock();
        kept.busy = false;
        match outcome {
            Ok(()) => {
                kept.written += 1;
                kept.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                kept.failed.remove(&path);
                if kept.failed.is_empty() {
                    kept.trouble = None;
                }
            }
            Err(error) => {
                kept.failures += 1;
                kept.trouble = Some(format!("{} cannot be written: {error}", path.display()));
                kept.failed.insert(path, bytes);
            }
        }
        drop(kept);
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_file_is_replaced_and_counted() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        let writer = Writer::start();
        writer.put(&path, b"one".to_vec());
        assert!(writer.flush(LONG));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(writer.written(), Written { files: 1, bytes: 3, failures: 0, trouble: None });
    }

    #[test]
    fn a_medium_that_takes_none_is_told_and_gets_everything_later() {
        let full = Arc::new(AtomicBool::new(true));
        let root = tempfile::tempdir().unwrap();
        let seen = Arc::clone(&full);
        let writer = Writer::with(move |path, bytes| match seen.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32)),
            false => inferd_slots::replace(path, bytes),
        });
        writer.put(&root.path().join("a"), b"one".to_vec());
        assert!(!writer.flush(LONG));
        let trouble = writer.written().trouble.unwrap();
        assert!(trouble.contains("cannot be written: No space left"), "{trouble}");
        full.store(false, Ordering::SeqCst);
        writer.put(&root.path().join("b"), b"two".to_vec());
        assert!(writer.flush(LONG));
        assert_eq!(std::fs::read(root.path().join("a")).unwrap(), b"one");
        assert_eq!(writer.written().trouble, None);
    }

    #[test]
    fn while_the_medium_is_slow_nobody_waits_and_of_one_file_the_newest_is_written() {
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let writer = Writer::with(move |_, bytes| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            tell.send(bytes.to_vec()).unwrap();
            Ok(())
        });
        let path = Path::new("/x");
        writer.put(path, b"1".to_vec());
        has_begun.recv().unwrap();
        writer.put(path, b"2".to_vec());
        writer.put(path, b"3".to_vec());
        assert!(!writer.flush(Duration::ZERO), "it is still at the first");
        for _ in 0..2 {
            go_on.send(()).unwrap();
        }
        assert!(writer.flush(LONG));
        assert_eq!(told.iter().take(2).collect::<Vec<_>>(), [b"1", b"3"]);
        assert_eq!(writer.written().files, 2);
    }
}
