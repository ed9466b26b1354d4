//! What the system knows about how the last run ended.

use std::io;
use std::path::{Path, PathBuf};

/// What was found about the boot and the run before this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Names this boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The daemon that ran before in this boot said that it ends on purpose.
    pub clean_stop: bool,
    /// The watchdog reset the machine before this boot.
    pub watchdog_reset: bool,
    /// Records of kernel panics that lie in the persistent store, each with what tells it from another.
    pub panics: Vec<String>,
}

/// Provides [`Evidence`].
pub trait BootEvidence: Send + Sync {
    /// Looks. Called once per start, before anything else; takes the mark of a clean stop away.
    fn look(&self) -> Evidence;
    /// Leaves the mark of a clean stop.
    ///
    /// # Errors
    /// When it cannot be written.
    fn stopped(&self, boot_id: &str) -> io::Result<()>;
}

/// The running Linux: boot id, watchdog status, pstore, and a mark in a directory that does not survive a reboot.
#[derive(Clone, Debug)]
pub struct SystemEvidence {
    /// Where the mark of a clean stop is left (`/run/inferd`); `None`: every end within a boot counts as a crash.
    pub run: Option<PathBuf>,
    /// The watchdog's status file.
    pub watchdog: PathBuf,
    /// The kernel's persistent store.
    pub pstore: PathBuf,
    /// The boot's id.
    pub boot_id: PathBuf,
}

impl SystemEvidence {
    /// The usual places.
    #[must_use]
    pub fn new(run: Option<PathBuf>) -> Self {
        Self {
            run,
            watchdog: "/sys/class/watchdog/watchdog0/bootstatus".into(),
            pstore: "/sys/fs/pstore".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
        }
    }

    fn mark(&self) -> Option<PathBuf> {
        self.run.as_ref().map(|run| run.join("clean-stop"))
    }
}

/// `WDIOF_CARDRESET` of `linux/watchdog.h`: the last boot was caused by the watchdog.
const WDIOF_CARDRESET: u32 = 0x0020;

impl BootEvidence for SystemEvidence {
    fn look(&self) -> Evidence {
        let read = |path: &Path| std::fs::read_to_string(path).map(|t| t.trim().to_owned());
        let boot_id = read(&self.boot_id).unwrap_or_default();
        let clean_stop = self.mark().is_some_and(|mark| {
            let said = read(&mark).unwrap_or_default();
            if let Err(e) = std::fs::remove_file(&mark)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(mark = %mark.display(), error = %e, "the mark of a clean stop stays: a crash may be missed");
            }
            !said.is_empty() && said == boot_id
        });
        let status = read(&self.watchdog).ok().and_then(|s| s.parse::<u32>().ok()).unwrap_or(0);
        Evidence {
            boot_id,
            clean_stop,
            watchdog_reset: status & WDIOF_CARDRESET != 0,
            panics: panics(&self.pstore),
        }
    }

    fn stopped(&self, boot_id: &str) -> io::Result<()> {
        let Some(mark) = self.mark() else { return Ok(()) };
        if let Some(dir) = mark.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(mark, boot_id)
    }
}

/// The panic records (`dmesg-*`) of the store, named with their time, sorted.
fn panics(store: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(store) else { return Vec::new() };
    let mut found: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|e| {
            let name = e.file_name().to_str()?.to_owned();
            if !name.starts_with("dmesg-") {
                return None;
            }
            let meta = e.metadata().ok()?;
            let modified = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(format!("{name}@{}.{:09}+{}", modified.as_secs(), modified.subsec_nanos(), meta.len()))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(root: &Path) -> SystemEvidence {
        SystemEvidence {
            run: Some(root.join("run")),
            watchdog: root.join("bootstatus"),
            pstore: root.join("pstore"),
            boot_id: root.join("boot_id"),
        }
    }

    #[test]
    fn a_clean_stop_is_believed_once_and_only_in_its_boot() {
        let root = tempfile::tempdir().unwrap();
        let evidence = places(root.path());
        std::fs::write(root.path().join("boot_id"), "one\n").unwrap();
        assert!(!evidence.look().clean_stop);
        evidence.stopped("one").unwrap();
        assert!(evidence.look().clean_stop);
        assert!(!evidence.look().clean_stop, "the mark is taken away");
        evidence.stopped("one").unwrap();
        std::fs::write(root.path().join("boot_id"), "two\n").unwrap();
        assert!(!evidence.look().clean_stop, "it was another boot's");
    }

    #[test]
    fn the_watchdog_and_the_kernels_last_words_are_seen() {
        let root = tempfile::tempdir().unwrap();
        let evidence = places(root.path());
        let nothing = evidence.look();
        assert!(!nothing.watchdog_reset && nothing.panics.is_empty(), "no such files: nothing known");
        std::fs::write(root.path().join("bootstatus"), "32\n").unwrap();
        std::fs::create_dir(root.path().join("pstore")).unwrap();
        std::fs::write(root.path().join("pstore/dmesg-ramoops-0"), "Oops").unwrap();
        std::fs::write(root.path().join("pstore/console-ramoops-0"), "booting").unwrap();
        let found = evidence.look();
        assert!(found.watchdog_reset);
        assert_eq!(found.panics.len(), 1, "{found:?}");
        assert!(found.panics[0].starts_with("dmesg-ramoops-0@"), "{found:?}");
    }
}
