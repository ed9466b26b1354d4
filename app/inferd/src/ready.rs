//! What the daemon tells root in files, for root's systems: while one is on trial whether this daemon is ready to be committed, once a
//! second; otherwise what serves and on what, whenever that changes, so that the next one can be held against it.

use crate::config::{Arguments, DEFAULT_FILE, Loaded};
use inferd_api::App;
use inferd_rollout::{Configuration, Serves};
use inferd_watch::history;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The file, in the daemon's directory that does not outlive a reset.
pub const FILE: &str = "commit-ready";
/// What serves, in the same directory.
pub const SERVES: &str = "serves";
/// The mark of a trial, in the keeper's directory: what served under the system before, where that is known.
pub const TRIAL: &str = "system-trial";
/// How often it is told.
const EVERY: Duration = Duration::from_secs(1);
/// What the daemon said is too old after this time: it hangs, or is gone.
const STALE: Duration = Duration::from_secs(10);
/// The most of a file that is read.
const MAX_BYTES: u64 = 64 << 10;

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    /// When it was written, since the kernel started.
    pub uptime_ms: u64,
    /// Whose word it is: a daemon that was started again begins anew.
    pub pid: u32,
    /// What keeps this system from being committed.
    pub reasons: Vec<String>,
}

impl Ready {
    /// What a file says, if it can be understood.
    pub fn read(path: &Path) -> Option<Self> {
        read(path)
    }
}

/// What a file says, if it can be understood. Root reads what the daemon may have put there.
pub fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = inferd_slots::read_regular(path, MAX_BYTES).ok()??;
    serde_json::from_slice(&bytes).ok()
}

/// Puts it there in one piece.
///
/// # Errors
/// What the system says.
pub fn put(path: &Path, what: &impl Serialize) -> io::Result<()> {
    inferd_slots::replace(path, &serde_json::to_vec(what)?)
}

/// Whether a daemon that said this is ready to be committed, and is there; else why not.
pub fn judge(said: Option<Ready>, uptime: Duration) -> Result<(), String> {
    let said = said.ok_or("the daemon has said nothing")?;
    let age = uptime.saturating_sub(Duration::from_millis(said.uptime_ms));
    if age > STALE {
        return Err(format!("the daemon has said nothing for {} s", age.as_secs()));
    }
    if said.reasons.is_empty() { Ok(()) } else { Err(said.reasons.join("; ")) }
}

/// The configuration that is in force, where the boot script has chosen one that somebody gave the device: it is named by a link. The image's own,
/// and that of a closed device, are each system's.
pub fn chosen(loaded: &Loaded) -> Option<Configuration> {
    let link = loaded.file.as_deref().filter(|file| file.is_symlink())?;
    let file = fs::canonicalize(link).ok()?;
    let closed = link.with_file_name("closed.toml");
    let text = fs::read(&file).ok()?;
    if file == Path::new(DEFAULT_FILE) || fs::read(closed).is_ok_and(|closed| closed == text) {
        return None;
    }
    Some(Configuration { file: file.display().to_string(), unknown: loaded.unknown_keys() })
}

/// Why this daemon was not started with a configuration.
fn refusal(file: &str) -> String {
    let path = Path::new(file);
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return "it was not taken over; the report on the boot partition says why".to_owned();
        }
        Err(e) => return e.to_string(),
    };
    match Loaded::from_layers(&Arguments::default(), BTreeMap::new(), Some((path, &text))) {
        Err(refused) => refused.0.join(" "),
        Ok(_) => format!("`inferd --config {file} --check` on this system says why"),
    }
}

/// Tells it for as long as the mark is there, and what serves while it is not.
pub async fn tell(app: Arc<App>, configuration: Option<Configuration>, mark: PathBuf, folder: PathBuf) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut told, mut last) = (true, None);
    loop {
        every.tick().await;
        if !mark.exists() {
            inferd_api::system_on_trial(&app, None, None);
            tell_what_serves(&app, configuration.as_ref(), &folder.join(SERVES), &mut last);
            continue;
        }
        let before: Serves = read(&mark).unwrap_or_default();
        let refused = before.configuration.as_ref();
        let refused = refused.and_then(|it| Configuration::against(it, configuration.as_ref(), refusal));
        inferd_api::system_on_trial(&app, Some(Arc::new(before)), refused);
        let uptime_ms = u64::try_from(history::uptime().as_millis()).unwrap_or(u64::MAX);
        let ready = Ready { uptime_ms, pid: std::process::id(), reasons: inferd_api::commit_reasons(&app) };
        let written = put(&folder.join(FILE), &ready);
        if let (Err(error), true) = (&written, told) {
            tracing::warn!(%error, "a system is on trial, and it cannot be told whether this daemon is ready");
        }
        told = written.is_ok();
    }
}

/// Once that is decided, and whenever it has changed since.
fn tell_what_serves(
    app: &App,
    configuration: Option<&Configuration>,
    file: &Path,
    last: &mut Option<Serves>,
) {
    let Some(now) = inferd_api::serves(app, last.as_ref().unwrap_or(&Serves::default())) else { return };
    let now = Serves { configuration: configuration.cloned(), ..now };
    if last.as_ref() == Some(&now) {
        return;
    }
    match put(file, &now) {
        Ok(()) => *last = Some(now),
        Err(error) => tracing::debug!(%error, "what serves cannot be told to root"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_ready_when_it_says_so_and_has_said_so_just_now() {
        let said = |uptime_ms, reasons: &[&str]| {
            Some(Ready { uptime_ms, pid: 1, reasons: reasons.iter().map(|r| (*r).to_owned()).collect() })
        };
        let now = Duration::from_secs(100);
        assert_eq!(judge(said(99_000, &[]), now), Ok(()));
        assert_eq!(judge(said(90_000, &[]), now), Ok(()));
        assert!(judge(said(89_999, &[]), now).unwrap_err().contains("nothing for 10 s"));
        assert_eq!(judge(said(99_000, &["a", "b"]), now), Err("a; b".into()));
        assert!(judge(None, now).is_err());
    }

    #[test]
    fn what_is_told_is_read_and_half_a_file_says_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ready = Ready { uptime_ms: 7, pid: 1, reasons: vec!["x".into()] };
        std::fs::write(file.path(), serde_json::to_vec(&ready).unwrap()).unwrap();
        assert_eq!(Ready::read(file.path()).map(|r| r.reasons), Some(vec!["x".to_owned()]));
        std::fs::write(file.path(), "{\"uptime_ms\": 7").unwrap();
        assert!(Ready::read(file.path()).is_none());
        assert!(Ready::read(Path::new("/nowhere")).is_none());
        // Nor does a link to one, or a pipe that nobody writes to.
        std::fs::write(file.path(), serde_json::to_vec(&ready).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(file.path(), dir.path().join("link")).unwrap();
        assert!(Ready::read(&dir.path().join("link")).is_none());
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Ready::read(&dir.path().join("pipe")).is_none());
    }
}
