//! Bundles on USB sticks: `*.imb` in the root of whatever is mounted below one directory, newest version first.
//!
//! A stick stays plugged in over restarts and holds the same bundles every time, so this way in has a loop guard:
//!
//! * nothing before the device has been up for [`UsbConfig::least_uptime`] (a bundle that makes it restart cannot do so for ever);
//! * no bundle that the device knows as refused or taken back: by its last verdicts, or by the slot that holds it marked as bad;
//! * no bundle twice in one boot after it failed, whatever the journal says;
//! * a stick that is pulled out, or cannot be read, has [`INTERRUPTIONS`] more chances per bundle and boot. What is stored stays.

use crate::error::FetchError;
use crate::file::{Stick, blocking, name};
use crate::limits::Limits;
use crate::pull::{Report, Wish, fetch, peek};
use crate::target::{About, Device, Offer, Standing, Way};
use crate::time::Clock;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Files of one look at most; more are passed over.
const MOST_FILES: usize = 64;
/// Interruptions of one bundle in one boot.
pub const INTERRUPTIONS: u32 = 5;

/// Where sticks are and how careful to be with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbConfig {
    /// Sticks are directories in this one: `/run/inferd/usb/sda1`.
    pub root: PathBuf,
    /// No bundle is taken before.
    pub least_uptime: Duration,
    /// Pause between two looks.
    pub every: Duration,
}

impl Default for UsbConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/run/inferd/usb"),
            least_uptime: Duration::from_secs(300),
            every: Duration::from_secs(5),
        }
    }
}

/// What came of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is stored and its trial has begun.
    Installed {
        /// The file's name.
        name: String,
        /// What it is.
        offer: Offer,
        /// What it cost.
        report: Report,
    },
    /// It was not installed.
    Failed {
        /// The file's name.
        name: String,
        /// The bundle's id, when it could be read.
        bundle: Option<String>,
        /// Why.
        error: FetchError,
    },
}

/// What a file was when it was listed; another size or time is another file.
type Listing = BTreeMap<PathBuf, (u64, i64, i64)>;

/// The watch over the sticks.
pub struct Sticks<D> {
    config: UsbConfig,
    limits: Limits,
    device: Arc<D>,
    clock: Arc<dyn Clock>,
    progress: watch::Sender<Report>,
    /// Bundles that failed in this boot.
    failed: BTreeSet<String>,
    interrupted: BTreeMap<String, u32>,
    /// What was there at the last look, if nothing is left to do about it.
    settled: Option<Listing>,
    /// Files that were found to be no bundle, so that it is said once.
    known_bad: Listing,
}

impl<D: Device> Sticks<D> {
    /// A watch that has seen nothing yet.
    pub fn new(config: UsbConfig, device: Arc<D>, clock: Arc<dyn Clock>) -> Self {
        Self {
            config,
            limits: Limits::default(),
            device,
            clock,
            progress: watch::channel(Report::default()).0,
            failed: BTreeSet::new(),
            interrupted: BTreeMap::new(),
            settled: None,
            known_bad: Listing::new(),
        }
    }

    /// How far the bundle is that is being read.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Report> {
        self.progress.subscribe()
    }

    /// Looks for ever.
    pub async fn watch(mut self) {
        loop {
            for seen in self.look().await {
                match seen {
                    Seen::Installed { name, offer, report } => {
                        let (version, product) = (offer.version, offer.product);
                        tracing::info!(
                            bundle = offer.id,
                            reused = report.reused,
                            "{name} on the USB stick ({product} {version}) is on trial"
                        );
                    }
                    Seen::Failed { name, error, .. } => {
                        tracing::warn!(
                            code = error.code(),
                            "{name} on the USB stick was not installed: {error}"
                        );
                    }
                }
            }
            self.clock.sleep(self.config.every).await;
        }
    }

    /// One look at all sticks: installs at most one bundle, and says what came of every file that was tried.
    pub async fn look(&mut self) -> Vec<Seen> {
        if self.clock.now() < self.config.least_uptime {
            return Vec::new();
        }
        let root = self.config.root.clone();
        // Without the directory there is no stick.
        let listing = blocking(move || list(&root)).await.unwrap_or_default();
        if listing.is_empty() || self.settled.as_ref() == Some(&listing) {
            self.settled = Some(listing);
            return Vec::new();
        }
        self.known_bad.retain(|path, what| listing.get(path) == Some(what));
        let mut seen = Vec::new();
        let mut offers = Vec::new();
        for (path, what) in &listing {
            if self.known_bad.contains_key(path) {
                continue;
            }
            match self.offer(path).await {
                Ok(offer) => offers.push((path.clone(), offer)),
                Err(error) => {
                    if !matches!(error, FetchError::StickRemoved(_)) {
                        self.known_bad.insert(path.clone(), *what);
                    }
                    seen.push(Seen::Failed { name: name(path), bundle: None, error });
                }
            }
        }
        // Newest first; the id only makes the order the same every time.
        offers.sort_by(|(_, a), (_, b)| (b.version, &a.id).cmp(&(a.version, &b.id)));
        self.settled = Some(listing);
        for (path, offer) in offers {
            match self.may(&offer) {
                Turn::Never => continue,
                // What is older than one that serves or is on trial waits for nothing.
                Turn::Serves => break,
                Turn::Wait => {
                    self.settled = None;
                    break;
                }
                Turn::Now => {}
            }
            match self.install(&path).await {
                Ok((offer, report)) => {
                    self.settled = None;
                    seen.push(Seen::Installed { name: name(&path), offer, report });
                    break;
                }
                Err(error) => {
                    self.remember(&offer.id, &error);
                    seen.push(Seen::Failed { name: name(&path), bundle: Some(offer.id), error });
                }
            }
        }
        seen
    }

    async fn offer(&self, path: &Path) -> Result<Offer, FetchError> {
        let stick = Stick::open(path.to_owned(), self.clock.clone()).await?;
        peek(stick, &self.limits, &self.clock).await
    }

    fn may(&self, offer: &Offer) -> Turn {
        if self.failed.contains(&offer.id) {
            return Turn::Never;
        }
        match self.device.standing(&offer.id, 0) {
            Standing::Refused(_) | Standing::Returned(_) => Turn::Never,
            Standing::Committed => Turn::Serves,
            Standing::Trial(_) => Turn::Wait,
            Standing::Unknown => Turn::Now,
        }
    }

    async fn install(&self, path: &Path) -> Result<(Offer, Report), FetchError> {
        let stick = Stick::open(path.to_owned(), self.clock.clone()).await?;
        let wish = Wish::default();
        let fetched =
            fetch(stick, &*self.device, Way::Usb, &wish, &self.limits, &self.clock, &self.progress).await?;
        Ok((fetched.offer, fetched.report))
    }

    /// Whether the bundle gets another chance in this boot.
    fn remember(&mut self, id: &str, error: &FetchError) {
        let busy = matches!(error, FetchError::Refused(refused) if refused.about == About::Device)
            && self.progress.borrow().fetched == 0;
        if busy {
            // It was not even begun.
            self.settled = None;
        } else if error.is_passing() || matches!(error, FetchError::StickUnreadable { .. }) {
            let times = self.interrupted.entry(id.to_owned()).or_default();
            *times += 1;
            if *times > INTERRUPTIONS {
                self.failed.insert(id.to_owned());
            } else {
                self.settled = None;
            }
        } else {
            self.failed.insert(id.to_owned());
        }
    }
}

/// What may be done with a bundle.
enum Turn {
    Now,
    Wait,
    Serves,
    Never,
}

/// The bundles on all sticks: regular files, not hidden, named `*.imb` in capitals or not.
fn list(root: &Path) -> io::Result<Listing> {
    use std::os::unix::fs::MetadataExt;
    let mut listing = Listing::new();
    for stick in std::fs::read_dir(root)? {
        let stick = stick?.path();
        if !std::fs::symlink_metadata(&stick).is_ok_and(|m| m.is_dir()) {
            continue;
        }
        // A stick that is just going away has nothing.
        let Ok(files) = std::fs::read_dir(&stick) else { continue };
        for file in files.flatten() {
            let shown = file.file_name().to_string_lossy().to_ascii_lowercase();
            let path = file.path();
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if shown.ends_with(".imb")
                && !shown.starts_with('.')
                && metadata.is_file()
                && listing.len() < MOST_FILES
            {
                listing.insert(path, (metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
            }
        }
    }
    Ok(listing)
}
