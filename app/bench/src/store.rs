//! What is kept of benchmarks: one file a job, one file of baselines; both bounded, the oldest jobs give way.
//!
//! A job is written when it is asked for, so that one that a restart ends is known, and once when it is over. A file that cannot be read is
//! set aside under another ending, counted by the same quota, and read no more.

use crate::record::{JobState, Kept};
use crate::regress::{Baseline, MAX_BASELINES};
use inferd_watch::permit::Permit;
use inferd_watch::shelf::Shelf;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Room of all jobs.
pub const QUOTA: u64 = 2 << 20;
/// Jobs that are kept.
pub const MOST_JOBS: usize = 64;
const JSON: &str = ".json";
const BAD: &str = ".bad";

/// The directories.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: Shelf,
    baselines: Shelf,
}

/// What was there when the daemon started.
#[derive(Debug, Default)]
pub struct Found {
    /// Jobs by their numbers.
    pub jobs: BTreeMap<u64, Kept>,
    /// Baselines, the oldest first.
    pub baselines: Vec<Baseline>,
    /// Greater than any number that was ever used here.
    pub next: u64,
    /// Files that were set aside, with what was wrong.
    pub bad: Vec<String>,
}

impl Store {
    /// In this directory, which need not be there yet.
    pub fn new(dir: &Path, permit: Arc<dyn Permit>) -> Self {
        Self {
            jobs: Shelf::new(dir.to_owned(), ("job", &[JSON, BAD]), QUOTA, MOST_JOBS + 1, permit.clone()),
            baselines: Shelf::new(dir.to_owned(), ("baselines", &[JSON, BAD]), 1 << 18, 4, permit),
        }
    }

    /// Reads all of it. What a restart has ended is a failed job.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(&self) -> io::Result<Found> {
        self.jobs.tidy()?;
        self.baselines.tidy()?;
        let mut found = Found { next: 1, ..Found::default() };
        for item in self.jobs.list()? {
            found.next = found.next.max(item.number + 1);
            if item.name.ends_with(BAD) {
                continue;
            }
            let read = self
                .jobs
                .read(&item.name)
                .map_err(|e| e.to_string())
                .and_then(|bytes| Kept::parse(&bytes.unwrap_or_default()).map_err(|e| e.to_string()));
            match read {
                Ok(mut kept) if kept.job == item.number => {
                    if !kept.status.is_over() {
                        let reason = "the daemon ended before the benchmark did".to_owned();
                        kept.status = JobState::Failed { reason };
                    }
                    found.jobs.insert(kept.job, kept);
                }
                Ok(_) => self.bad(&self.jobs, &item.name, "it has another job's number", &mut found.bad),
                Err(e) => self.bad(&self.jobs, &item.name, &e, &mut found.bad),
            }
        }
        for item in self.baselines.list()? {
            if item.name.ends_with(BAD) {
                continue;
            }
            let bytes = self.baselines.read(&item.name).ok().flatten().unwrap_or_default();
            match serde_json::from_slice::<Vec<Baseline>>(&bytes) {
                Ok(list) if list.len() <= MAX_BASELINES => found.baselines = list,
                Ok(_) => self.bad(&self.baselines, &item.name, "it has too many entries", &mut found.bad),
                Err(e) => self.bad(&self.baselines, &item.name, &e.to_string(), &mut found.bad),
            }
        }
        Ok(found)
    }

    fn bad(&self, shelf: &Shelf, name: &str, why: &str, bad: &mut Vec<String>) {
        let done = shelf.set_aside(name, BAD);
        bad.push(match done {
            Ok(_) => format!("{name} was set aside: {why}"),
            Err(e) => format!("{name} cannot be set aside ({e}), though: {why}"),
        });
    }

    /// Whether bytes may be written now.
    #[must_use]
    pub fn may_write(&self, bytes: usize) -> bool {
        self.jobs.permit().may_write(bytes as u64)
    }

    /// Writes a job whole, in place of what was kept of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, kept: &Kept) -> io::Result<()> {
        let bytes = serde_json::to_vec(kept)?;
        let name = self.jobs.name(kept.job, JSON);
        if !self.may_write(bytes.len()) {
            return Err(io::Error::other("today's budget of writes is spent"));
        }
        if !self.jobs.make_room(bytes.len() as u64, Some(&name))? {
            return Err(io::Error::other("there is no room for it"));
        }
        self.jobs.put(&name, &bytes)
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, job: u64) -> io::Result<bool> {
        self.jobs.remove(&self.jobs.name(job, JSON))
    }

    /// Numbers of the jobs that are kept.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn kept(&self) -> io::Result<Vec<u64>> {
        Ok(self.jobs.list()?.into_iter().map(|i| i.number).collect())
    }

    /// Writes all baselines.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_baselines(&self, list: &[Baseline]) -> io::Result<()> {
        let bytes = serde_json::to_vec(list)?;
        if !self.may_write(bytes.len()) {
            return Err(io::Error::other("today's budget of writes is spent"));
        }
        self.baselines.put(&self.baselines.name(1, JSON), &bytes)
    }
}
