//! Benchmarks one after the other: asked for, queued, run, kept.
//!
//! A benchmark is heavy work: it keeps a core busy and brings a second host of a model. At most [`MOST_HEAVY`] run at once, and one
//! while the device answers requests ([`Heavy`]). The self-tests and shadows of updates do not count: an update must not wait for a
//! benchmark, and both have hosts with caps of their own. While the device sheds optional work none begins, and one that runs pauses
//! between its runs.

use crate::protocol::{self, Device, Ended, Progress, Reins};
use crate::record::{JobState, Kept, Record, RungInfo, RungResult, SCHEMA, Subject};
use crate::regress::{Baseline, Key, MAX_BASELINES};
use crate::request::{BadRequest, Request};
use crate::select::Outcome;
use crate::store::{MOST_JOBS, Store};
use inferd_watch::permit::Permit;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// Heavy jobs at once.
pub const MOST_HEAVY: usize = 2;
/// Heavy jobs at once while the device answers requests.
pub const MOST_HEAVY_BUSY: usize = 1;
/// Jobs that may wait.
pub const MOST_QUEUED: usize = 8;
/// How long somebody waits at most who waits for a benchmark's answer.
pub const QUICK_WHOLE: Duration = Duration::from_secs(60);
/// A device that has answered nobody for so long has no live traffic.
const QUIET: Duration = Duration::from_secs(2);
/// How often a waiting job looks whether it may begin.
const LOOK: Duration = Duration::from_millis(500);

/// Places of heavy work.
#[derive(Debug, Default)]
pub struct Heavy(Mutex<usize>);

/// A place of heavy work; dropping it gives it back.
#[derive(Debug)]
pub struct Place(Arc<Heavy>);

impl Heavy {
    /// A place, if one is free for a device that is, or is not, busy with live traffic.
    pub fn try_take(self: &Arc<Self>, busy: bool) -> Option<Place> {
        let most = if busy { MOST_HEAVY_BUSY } else { MOST_HEAVY };
        let mut taken = lock(&self.0);
        if *taken >= most {
            return None;
        }
        *taken += 1;
        Some(Place(self.clone()))
    }

    /// Places that are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        *lock(&self.0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.0) -= 1;
    }
}

/// Whether requests are being answered, told from how many were.
#[derive(Debug, Default)]
struct Traffic(Option<(u64, Duration)>);

impl Traffic {
    /// True until nothing has been answered for [`QUIET`]. What is not known yet counts as busy.
    fn is_live(&mut self, answered: u64, now: Duration) -> bool {
        match self.0 {
            Some((before, since)) if before == answered => now.saturating_sub(since) < QUIET,
            _ => {
                self.0 = Some((answered, now));
                true
            }
        }
    }
}

/// Why a job is not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refused {
    #[error(transparent)]
    Bad(#[from] BadRequest),
    #[error("no model of this name is served; there are {}", words(.0))]
    Model(Vec<String>),
    #[error("the model has no such rung; there are {}", words(.0))]
    Rung(Vec<String>),
    #[error("{MOST_QUEUED} benchmarks wait already")]
    Full,
    #[error("the device sheds optional work; no benchmark begins")]
    Shedding,
    #[error("another benchmark runs")]
    Busy,
}

fn words(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// A job as it is shown.
#[derive(Clone, Debug)]
pub struct View {
    /// What is kept of it.
    pub kept: Arc<Kept>,
    /// [`Record::id`], once it has a record.
    pub record_id: Option<Arc<str>>,
    /// Where it is, while it runs.
    pub progress: Option<Progress>,
    /// Of those that wait, how many are before it.
    pub ahead: Option<usize>,
}

/// What became of a wish to end or remove a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// There is none of this number.
    Unknown,
    /// It ends as soon as it can.
    Cancelled,
    /// It was over and is forgotten.
    Forgotten,
}

struct Job {
    kept: Arc<Kept>,
    /// Of its record. Everybody who looks is shown it, and to make it takes all of the record's text.
    record_id: Option<Arc<str>>,
    reins: Arc<Reins>,
}

impl Job {
    fn of(kept: Arc<Kept>) -> Self {
        let record_id = kept.record.as_ref().map(|r| r.id().into());
        Self { kept, record_id, reins: Arc::default() }
    }
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<u64, Job>,
    queue: VecDeque<u64>,
    /// Jobs that are being written before they wait.
    coming: usize,
    next: u64,
    baselines: Vec<Baseline>,
    traffic: Traffic,
}

/// All benchmarks of a device.
pub struct Jobs<D: Device> {
    device: Arc<D>,
    store: Arc<Store>,
    state: Mutex<State>,
    heavy: Arc<Heavy>,
    wake: Notify,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here is a few assignments; one that panicked has left nothing half-done.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl<D: Device> Jobs<D> {
    /// Reads what is kept in `dir`, away from the runtime, and lets jobs run.
    pub async fn start(device: Arc<D>, dir: &Path, permit: Arc<dyn Permit>) -> Arc<Self> {
        let store = Store::new(dir, permit);
        let reading = {
            let store = store.clone();
            tokio::task::spawn_blocking(move || {
                let mut found = store.open()?;
                let kept = std::mem::take(&mut found.jobs).into_iter();
                let jobs: BTreeMap<u64, Job> = kept.map(|(n, kept)| (n, Job::of(Arc::new(kept)))).collect();
                Ok((found, jobs))
            })
        };
        let read = reading.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let (found, jobs) = read.unwrap_or_else(|e| {
            tracing::error!(error = %e, dir = %dir.display(), "benchmarks that were kept cannot be read");
            (crate::store::Found { next: 1, ..Default::default() }, BTreeMap::new())
        });
        for bad in &found.bad {
            tracing::warn!("benchmarks: {bad}");
        }
        let state = State { jobs, next: found.next.max(1), baselines: found.baselines, ..State::default() };
        let jobs = Arc::new(Self {
            device,
            store: Arc::new(store),
            state: Mutex::new(state),
            heavy: Arc::default(),
            wake: Notify::new(),
        });
        tokio::spawn(jobs.clone().dispatch());
        jobs
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Places of heavy work that are taken.
    #[must_use]
    pub fn heavy(&self) -> usize {
        self.heavy.taken()
    }

    /// Checks a request against the model it names, and names every rung.
    fn resolve(&self, mut request: Request) -> Result<Request, Refused> {
        let Some((subject, rungs)) = self.device.subject(&request.model) else {
            return Err(Refused::Model(self.device.models()));
        };
        request.model = subject.model;
        let fits = |r: &RungInfo, wanted: &String| r.rung == *wanted || r.engine == *wanted;
        let all = || rungs.iter().map(|r| r.rung.clone()).collect::<Vec<_>>();
        if let Some(_unknown) = request.rungs.iter().find(|w| !rungs.iter().any(|r| fits(r, w))) {
            return Err(Refused::Rung(all()));
        }
        if request.rungs.is_empty() {
            request.rungs = all();
        } else {
            // An engine's name that is a rung's too means that rung alone.
            let exact = |w: &String| rungs.iter().any(|r| r.rung == *w);
            let wanted = |r: &&RungInfo| {
                request.rungs.iter().any(|w| if exact(w) { r.rung == *w } else { r.engine == *w })
            };
            request.rungs = rungs.iter().filter(wanted).map(|r| r.rung.clone()).collect();
        }
        Ok(request)
    }

    /// Takes a job; its number.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn submit(self: &Arc<Self>, request: Request) -> Result<u64, Refused> {
        let request = self.resolve(request.checked()?)?;
        if self.device.is_shedding() {
            return Err(Refused::Shedding);
        }
        let kept = {
            let mut state = lock(&self.state);
            if state.queue.len() + state.coming >= MOST_QUEUED {
                return Err(Refused::Full);
            }
            state.coming += 1;
            let job = state.next;
            state.next += 1;
            let kept = Arc::new(Kept {
                schema: SCHEMA,
                job,
                asked_ms: clock_ms(),
                ended_ms: None,
                status: JobState::Queued,
                request,
                record: None,
            });
            state.jobs.insert(job, Job::of(kept.clone()));
            kept
        };
        // Whoever asked may leave meanwhile: what has been numbered is queued all the same.
        let (this, job) = (self.clone(), kept.job);
        let queued = tokio::spawn(async move {
            this.write(kept.clone()).await;
            {
                let mut state = lock(&this.state);
                state.coming -= 1;
                state.queue.push_back(job);
            }
            this.wake.notify_one();
        });
        let _ = queued.await;
        Ok(job)
    }

    /// Keeps a job on the medium; a medium that does not take it costs the kept record, not the job.
    async fn write(&self, kept: Arc<Kept>) {
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || {
            store.keep(&kept)?;
            store.kept()
        });
        match written.await {
            Ok(Ok(kept)) => {
                // What gave way on the medium is forgotten here too.
                let mut state = lock(&self.state);
                let oldest = kept.first().copied().unwrap_or_default();
                state.jobs.retain(|n, job| !job.kept.status.is_over() || *n >= oldest);
            }
            Ok(Err(e)) => tracing::warn!(error = %e, "a benchmark is kept in memory only"),
            Err(e) => tracing::error!(error = %e, "a benchmark was not written"),
        }
        let mut state = lock(&self.state);
        while state.jobs.len() > MOST_JOBS + MOST_QUEUED + MOST_HEAVY {
            let Some(n) = state.jobs.iter().find(|(_, j)| j.kept.status.is_over()).map(|(n, _)| *n) else {
                break;
            };
            state.jobs.remove(&n);
        }
    }

    async fn dispatch(self: Arc<Self>) {
        loop {
            match self.next() {
                Some((number, place)) => {
                    let this = self.clone();
                    tokio::spawn(async move { this.run(number, place).await });
                }
                None if lock(&self.state).queue.is_empty() => self.wake.notified().await,
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// The job whose turn it is, if it may begin.
    fn next(&self) -> Option<(u64, Place)> {
        let mut state = lock(&self.state);
        state.queue.front()?;
        let live = state.traffic.is_live(self.device.answered(), self.device.now());
        if self.device.is_shedding() {
            return None;
        }
        let place = self.heavy.try_take(live)?;
        let number = state.queue.pop_front()?;
        Some((number, place))
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Kept)) -> Option<Arc<Kept>> {
        let mut state = lock(&self.state);
        let job = state.jobs.get_mut(&number)?;
        change(Arc::make_mut(&mut job.kept));
        Some(job.kept.clone())
    }

    async fn run(&self, number: u64, place: Place) {
        let begun = {
            let state = lock(&self.state);
            state
                .jobs
                .get(&number)
                .map(|job| (job.kept.request.clone(), job.reins.clone(), state.baselines.clone()))
        };
        let Some((request, reins, baselines)) = begun else { return };
        let _ = self.change(number, |kept| kept.status = JobState::Running);
        tracing::info!(
            job = number,
            model = request.model,
            rungs = request.rungs.join(" "),
            "a benchmark begins"
        );
        // In a task of its own: what panics there is a failed job, and not one that runs for ever.
        let running = {
            let device = self.device.clone();
            tokio::spawn(async move { protocol::run(&device, &request, &baselines, &reins).await })
        };
        let outcome = running.await.unwrap_or_else(|e| Err(Ended::Failed(format!("a defect ended it: {e}"))));
        drop(place);
        let Some(mut kept) = self.get(number).map(|view| Kept::clone(&view.kept)) else { return };
        kept.ended_ms = Some(clock_ms());
        let text = outcome.as_ref().map(Record::to_json).unwrap_or_default();
        let mut record_id = None;
        kept.status = match outcome {
            Ok(_) if text.len() > crate::record::MAX_BYTES / 2 => {
                JobState::Failed { reason: "its record is too large to be kept".into() }
            }
            Ok(record) => {
                record_id = Some(Record::id_of(&text).into());
                tracing::info!(job = number, decision = record.decision.because, "a benchmark is done");
                self.remember_baselines(number, &record).await;
                kept.record = Some(record);
                JobState::Completed
            }
            Err(Ended::Cancelled) => JobState::Cancelled,
            Err(Ended::Failed(reason)) => {
                tracing::warn!(job = number, reason, "a benchmark failed");
                JobState::Failed { reason }
            }
        };
        // Kept first, then shown: who sees it done may cut the power.
        self.write(Arc::new(kept.clone())).await;
        if let Some(job) = lock(&self.state).jobs.get_mut(&number) {
            (job.kept, job.record_id) = (Arc::new(kept), record_id);
        }
        self.wake.notify_one();
    }

    /// Stores the first good numbers of each rung, or these when they were asked to be the baseline.
    async fn remember_baselines(&self, job: u64, record: &Record) {
        let list = {
            let mut state = lock(&self.state);
            let mut changed = false;
            for rung in &record.rungs {
                let asked = record.request.baseline;
                let Some(m) = rung.measured.as_ref().filter(|m| Baseline::may_be(m, asked)) else { continue };
                let key = Key::of(&record.subject, &rung.info);
                let known = state.baselines.iter().position(|b| b.key == key);
                match known {
                    Some(at) if !asked && state.baselines[at].is_enough() => continue,
                    Some(at) => drop(state.baselines.remove(at)),
                    None => {}
                }
                if state.baselines.len() >= MAX_BASELINES {
                    state.baselines.remove(0);
                }
                state.baselines.push(Baseline::of(key, job, m));
                changed = true;
            }
            changed.then(|| state.baselines.clone())
        };
        let (Some(list), store) = (list, self.store.clone()) else { return };
        match tokio::task::spawn_blocking(move || store.keep_baselines(&list)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!(error = %e, "baselines are kept in memory only"),
            Err(e) => tracing::error!(error = %e, "baselines were not written"),
        }
    }

    /// Every job, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<View> {
        let state = lock(&self.state);
        state.jobs.keys().rev().filter_map(|n| view(&state, *n)).collect()
    }

    /// One job.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<View> {
        view(&lock(&self.state), number)
    }

    /// Ends a job that is not over, forgets one that is.
    pub async fn remove(&self, number: u64) -> Removed {
        let (over, waiting) = {
            let mut state = lock(&self.state);
            let Some(job) = state.jobs.get(&number) else { return Removed::Unknown };
            let over = job.kept.status.is_over();
            job.reins.cancel();
            let waits = state.queue.iter().position(|n| *n == number);
            let waiting = waits.and_then(|at| state.queue.remove(at)).is_some();
            if over {
                state.jobs.remove(&number);
            }
            (over, waiting)
        };
        if over {
            let store = self.store.clone();
            match tokio::task::spawn_blocking(move || store.forget(number)).await {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => {
                    tracing::warn!(error = %e, "a benchmark that was removed is still on the medium")
                }
                Err(e) => tracing::error!(error = %e, "a benchmark was not removed"),
            }
            return Removed::Forgotten;
        }
        if waiting {
            let kept = self.change(number, |kept| {
                kept.ended_ms = Some(clock_ms());
                kept.status = JobState::Cancelled;
            });
            if let Some(kept) = kept {
                self.write(kept).await;
            }
        }
        Removed::Cancelled
    }

    /// The job with the newest record of a model that selected a rung. Only of the model as it is served now, file for file, and of this
    /// firmware.
    #[must_use]
    pub fn decision(&self, model: &str) -> Option<View> {
        let (subject, rungs) = self.device.subject(model)?;
        let state = lock(&self.state);
        let fits = |kept: &Kept| {
            kept.record.as_ref().is_some_and(|r| {
                r.decision.outcome == Outcome::Selected
                    && r.subject == subject
                    && r.rungs.iter().all(|r| rungs.contains(&r.info))
            })
        };
        let (number, _) = state.jobs.iter().rev().find(|(_, job)| fits(&job.kept))?;
        view(&state, *number)
    }

    /// The rung that the newest such record of every rung of a model selected. What was compared with some of them only is no choice among all,
    /// and neither is one that was made while a rung could not be measured for what may pass, or from numbers that are not good enough
    /// for a baseline ([`Baseline::may_be`]).
    #[must_use]
    pub fn choice(&self, model: &str) -> Option<String> {
        let (subject, rungs) = self.device.subject(model)?;
        let state = lock(&self.state);
        let whole = |r: &&Record| {
            r.decision.outcome == Outcome::Selected
                && r.subject == subject
                && r.rungs.len() == rungs.len()
                && r.rungs.iter().all(|r| {
                    let good = r.measured.as_ref().is_none_or(|m| Baseline::may_be(m, false));
                    rungs.contains(&r.info) && !r.busy && good
                })
        };
        let newest = state.jobs.values().rev().filter_map(|job| job.kept.record.as_ref()).find(whole)?;
        newest.decision.rung.clone()
    }

    /// Measures every rung of a model once, at once: for those who wait for the answer. The measuring takes `limit` at most, and all of
    /// it [`QUICK_WHOLE`]: a host that has not come up in its rung's share of that, as one that builds an engine, is that rung's reason.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn quick(
        &self,
        model: &str,
        iterations: u32,
        limit: Duration,
    ) -> Result<(Subject, Vec<RungResult>), Refused> {
        let request = Request { model: model.to_owned(), iterations, ..Request::default() };
        let request = self.resolve(request.checked()?)?;
        if self.device.is_shedding() {
            return Err(Refused::Shedding);
        }
        // Somebody waits for it, and they may be the only traffic there is.
        let place = self.heavy.try_take(true).ok_or(Refused::Busy)?;
        let Some((subject, rungs)) = self.device.subject(&request.model) else {
            return Err(Refused::Model(self.device.models()));
        };
        let rungs: Vec<_> = rungs.into_iter().filter(|r| request.rungs.contains(&r.rung)).collect();
        let share = limit.as_secs() / (2 * rungs.len().max(1) as u64);
        let request = Request {
            warm_up: iterations.min(20),
            repeats: 1,
            most_repeats: 1,
            run_s: u32::try_from(share).unwrap_or(1).max(1),
            ..request
        };
        let reins = Reins::default();
        let mut results = Vec::with_capacity(rungs.len());
        let until = tokio::time::Instant::now() + QUICK_WHOLE;
        for (left, rung) in (1..=rungs.len()).rev().zip(&rungs) {
            let share = until.saturating_duration_since(tokio::time::Instant::now())
                / u32::try_from(left).unwrap_or(u32::MAX);
            let measured = protocol::quick(&self.device, &subject, rung, &request, &reins);
            let Ok(result) = tokio::time::timeout(share, measured).await else {
                results.push(RungResult::none(rung, format!(
                    "it was not measured within {} s: its host did not come up (it may be building an engine, which is done once and \
                     takes minutes), or the device had no room; a job of /api/v1/benchmarks waits for both",
                    share.as_secs()
                )));
                continue;
            };
            results.push(result.unwrap_or_else(|e| RungResult::none(rung, e.to_string())));
        }
        drop(place);
        Ok((subject, results))
    }

    /// Jobs by their states, in the order of [`JobState::NAMES`].
    #[must_use]
    pub fn by_state(&self) -> [(&'static str, u64); 5] {
        let state = lock(&self.state);
        JobState::NAMES
            .map(|name| (name, state.jobs.values().filter(|j| j.kept.status.name() == name).count() as u64))
    }
}

fn view(state: &State, number: u64) -> Option<View> {
    let job = state.jobs.get(&number)?;
    let running = matches!(job.kept.status, JobState::Running);
    Some(View {
        kept: job.kept.clone(),
        record_id: job.record_id.clone(),
        progress: running.then(|| job.reins.progress()),
        ahead: state.queue.iter().position(|n| *n == number),
    })
}
