//! A cgroup v2 per host: `memory.max`, no swap, a bounded number of tasks; the evidence when it was too little.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One host's group; removed when dropped (its processes are gone by then, or are killed first).
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes `root/name` with a hard cap, or says why that is not possible here.
    ///
    /// # Errors
    /// When the directory cannot be made or the memory controller is not delegated to it.
    pub fn create(root: &Path, name: &str, memory: u64, tasks: usize) -> io::Result<Self> {
        bury();
        let group = Self { path: root.join(name) };
        match fs::create_dir(&group.path) {
            // Left behind by a daemon that was killed: whatever still runs there has lost its daemon.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => group.kill(),
            other => other?,
        }
        group.set("memory.max", &memory.to_string())?;
        group.set("memory.oom.group", "1")?;
        // Each only where its controller is delegated; the memory cap is the one that matters.
        let _ = group.set("pids.max", &tasks.to_string());
        // Absent on kernels without swap accounting; then there is no swap to forbid.
        let _ = group.set("memory.swap.max", "0");
        Ok(group)
    }

    fn set(&self, key: &str, value: &str) -> io::Result<()> {
        let path = self.path.join(key);
        fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// Writing "0" here moves the writer into the group.
    ///
    /// # Errors
    /// As opening a file.
    pub fn procs(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }

    /// What may be read of it while its host runs.
    pub fn view(&self) -> GroupView {
        GroupView { path: self.path.clone() }
    }

    /// How often the kernel killed something here because of the cap.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let line = events.lines().find_map(|l| l.strip_prefix("oom_kill "));
        line.and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn kill(&self) {
        let _ = self.set("cgroup.kill", "1");
    }
}

/// A group somebody else owns.
#[derive(Clone, Debug)]
pub struct GroupView {
    path: PathBuf,
}

impl GroupView {
    /// The most that was ever charged to it, in bytes; `None` before Linux 5.19.
    pub fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.path.join("memory.peak")).ok()?.trim().parse().ok()
    }

    /// The weight of its processes against those of other groups, as a niceness. Only where the cpu controller is delegated:
    /// without it niceness itself counts.
    pub fn set_nice(&self, nice: i32) {
        let _ = fs::write(self.path.join("cpu.weight.nice"), nice.to_string());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        // EBUSY while a killed process is still being torn down; then the next `create` tries again.
        if fs::remove_dir(&self.path).is_err() && self.path.exists() {
            unburied().push(std::mem::take(&mut self.path));
        }
    }
}

/// Groups that could not be removed yet. Each is one host that ended; they go with the next host that starts.
static UNBURIED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unburied() -> MutexGuard<'static, Vec<PathBuf>> {
    UNBURIED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bury() {
    unburied().retain(|path| fs::remove_dir(path).is_err() && path.exists());
}

/// Whether hosts can get groups with memory limits under `root`.
pub fn usable(root: &Path) -> io::Result<()> {
    let path = root.join("cgroup.subtree_control");
    let controllers = fs::read_to_string(&path)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    if controllers.split_ascii_whitespace().any(|c| c == "memory") {
        return Ok(());
    }
    Err(io::Error::other(format!("{} does not name memory", path.display())))
}

/// Kills what hosts of an earlier daemon left under `root`, and removes their groups.
pub fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("host-") {
            drop(Group { path: entry.path() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_a_number_of_tasks() {
        let root = tempfile::tempdir().expect("a directory");
        let group = Group::create(root.path(), "host-a", 1 << 20, 12).expect("made");
        let of = |key| fs::read_to_string(root.path().join("host-a").join(key)).expect("written");
        assert_eq!((of("pids.max"), of("memory.max")), ("12".to_owned(), "1048576".to_owned()));
        drop(group);
    }

    #[test]
    fn the_peak_is_what_the_kernel_says_or_unknown() {
        let dir = tempfile::tempdir().expect("a directory");
        let view = GroupView { path: dir.path().to_owned() };
        assert_eq!(view.peak(), None, "a kernel before 5.19");
        fs::write(dir.path().join("memory.peak"), "50331648\n").expect("written");
        assert_eq!(view.peak(), Some(48 << 20));
    }
}
