//! A file on a stick as a source.

use crate::error::FetchError;
use crate::source::Source;
use crate::time::Clock;
use bytes::Bytes;
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of one read.
const READ: u64 = 256 << 10;
/// How long after a failed read it is known whether the stick is gone: whoever mounts looks every 2 s.
const GONE_AFTER: Duration = Duration::from_secs(3);

/// A regular file that was opened without following a link.
pub(crate) struct Stick {
    file: Arc<File>,
    path: PathBuf,
    total: u64,
    clock: Arc<dyn Clock>,
    wanted: Range<u64>,
    fetched: u64,
    reads: u32,
}

impl Stick {
    pub(crate) async fn open(path: PathBuf, clock: Arc<dyn Clock>) -> Result<Self, FetchError> {
        let place = path.clone();
        let opened = blocking(move || {
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&place)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(std::io::Error::other("not a regular file"));
            }
            Ok((file, metadata.len()))
        })
        .await;
        match opened {
            Ok((file, total)) => {
                Ok(Self { file: Arc::new(file), path, total, clock, wanted: 0..0, fetched: 0, reads: 0 })
            }
            Err(e) => Err(failure(&path, &e, &clock).await),
        }
    }
}

/// Runs what may block on a slow or dying stick where that harms nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

/// The file's name, without what leads to it.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().chars().take(100).collect())
}

/// A failed read: the stick is gone, or it is bad.
async fn failure(path: &Path, e: &std::io::Error, clock: &Arc<dyn Clock>) -> FetchError {
    if e.kind() != std::io::ErrorKind::NotFound {
        clock.sleep(GONE_AFTER).await;
    }
    let place = path.to_owned();
    let there = blocking(move || std::fs::symlink_metadata(place)).await.is_ok();
    if there {
        FetchError::StickUnreadable { name: name(path), reason: e.to_string() }
    } else {
        FetchError::StickRemoved(name(path))
    }
}

impl Source for Stick {
    fn want(&mut self, range: Range<u64>, _ask: u64) {
        self.wanted = range;
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let at = self.wanted.start;
        let room = self.wanted.end.min(self.total).saturating_sub(at).min(READ);
        let Some(room) = usize::try_from(room).ok().filter(|room| *room > 0) else { return Ok(None) };
        let file = self.file.clone();
        self.reads = self.reads.saturating_add(1);
        let read = blocking(move || {
            let mut bytes = vec![0; room];
            let came = file.read_at(&mut bytes, at)?;
            bytes.truncate(came);
            Ok(bytes)
        });
        match read.await {
            Ok(bytes) if bytes.is_empty() => {
                let e = std::io::Error::other("it became shorter");
                Err(failure(&self.path, &e, &self.clock).await)
            }
            Ok(bytes) => {
                self.wanted.start += bytes.len() as u64;
                self.fetched += bytes.len() as u64;
                Ok(Some(bytes.into()))
            }
            Err(e) => Err(failure(&self.path, &e, &self.clock).await),
        }
    }

    fn reset(&mut self) {}

    fn total(&self) -> Option<u64> {
        Some(self.total)
    }

    fn is_page(&self) -> bool {
        false
    }

    fn name(&self) -> String {
        name(&self.path)
    }

    fn spent(&self) -> (u64, u32) {
        (self.fetched, self.reads)
    }

    fn ranges(&self) -> bool {
        true
    }

    fn budget(&mut self, _bytes: u64) {}
}
