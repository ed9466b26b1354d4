//! One engine-host process as the daemon sees it: started, fed, watched, ended.
//!
//! [`Host::start`] returns when the golden vectors have passed in it. After that one task (`watch`) owns its life: it
//! hands out completions, kills it when a worker is past the model's deadline, and when it has ended fails whatever
//! was in it. A host never comes back; the next one gets a new ring.

use crate::breaker::Breaker;
use crate::cgroup::{Group, GroupView};
use crate::child::{Orders, Phase, REFUSED, Refusal, Report, WITHOUT_DEVICE, parse_report};
use crate::confine;
use crate::edition::Edition;
use crate::events::{Events, HostEvent};
use crate::house::House;
use crate::limits::{
    BUILD_TIMEOUT, LOAD_TIMEOUT, MAX_REPORT, MAX_SLOTS, QUARANTINE, STUCK_GRACE, WORKER_STACK,
};
use crate::ring::{Completion, Layout, Ring, Slot, Status};
use crate::served::{EngineInfo, InferError, Timing};
use crate::stats::{End, Stats};
use crate::suspects::{self, Digest};
use crate::sys::{self, ChildSetup, now_ns};
use crate::words::{self, Words};
use arc_swap::ArcSwap;
use inferd_engine::CpuEngine;
use inferd_model::{Agreement, EngineKind, Manifest, Rung};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};

/// Ids of requests, unique in this daemon.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

/// How a host is made.
pub struct Plan<'a> {
    pub house: &'a House,
    pub edition: Arc<Edition>,
    pub stats: Arc<Stats>,
    pub workers: usize,
    pub slots: usize,
    pub rung: Rung,
    /// It is not the preferred rung of those this image can run.
    pub stands_in: bool,
    /// The program that has the engine.
    pub program: &'a Path,
}

/// Why there is no host.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StartError {
    /// It said no.
    #[error("{0}")]
    Refused(Refusal),
    /// It was over its memory cap.
    #[error("the engine host ended while it loaded the model: {reason}")]
    Memory { cap: u64, reason: String },
    /// It ended otherwise.
    #[error("the engine host ended while it loaded the model: {0}")]
    Ended(String),
    /// It took too long.
    #[error("the engine host did not get ready within {} s", .0.as_secs())]
    Late(Duration),
    /// The model wants engines this program does not have.
    #[error("it wants engine {}, this image has {}", names(.wanted), names(.has))]
    Engine { wanted: Vec<Rung>, has: Vec<EngineKind> },
    /// The system could not make one.
    #[error("{0}")]
    System(String),
}

impl StartError {
    /// Whether the engine's device may be to blame, when it has one: not for a model that is refused.
    pub fn is_the_devices(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Device(_)) | Self::Ended(_) | Self::Late(_))
    }
}

impl StartError {
    /// Whether the engine refused the model itself: its file, or what it computes.
    pub fn is_the_models(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Load(_) | Refusal::Golden { .. }))
    }
}

/// `ort-int8 or cpu`.
pub fn names(names: &[impl ToString]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

impl From<String> for StartError {
    fn from(reason: String) -> Self {
        Self::System(reason)
    }
}

/// A running host that has passed its golden vectors.
pub struct Host {
    pub pid: u32,
    pub version: String,
    pub device: String,
    pub library: Option<PathBuf>,
    /// What was tried before and refused.
    pub remark: Option<String>,
    pub rung: Rung,
    pub agreement: Agreement,
    pub cap: u64,
    pub cap_kind: &'static str,
    pub workers: usize,
    pub manifest: Arc<Manifest>,
    /// What it serves.
    pub edition: Arc<Edition>,
    /// Its rung is not the preferred one of those this image can run.
    pub stands_in: bool,
    /// Guards its rung.
    pub breaker: Arc<Breaker>,
    /// Requests were sent to it: its end is held against the model.
    served: AtomicBool,
    /// It ended because its device is lost.
    lost_device: AtomicBool,
    ring: Ring,
    cells: Mutex<Cells>,
    /// Where it counts: a candidate's own, then those of the name it serves under.
    stats: ArcSwap<Stats>,
    /// Its cgroup, when it has one; there as long as the host is.
    group: Option<GroupView>,
    /// Something was queued: the watch looks at the clock again.
    queued: Notify,
    watching_clock: AtomicBool,
    /// Asks the watch to end the host.
    end: Notify,
    gone: watch::Sender<Option<Ended>>,
}

/// How a host ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// What ended it.
    pub how: End,
    /// For the operator and the callers.
    pub reason: String,
}

/// The daemon's own record of each slot.
struct Cells {
    free: heapless::Vec<Slot, MAX_SLOTS>,
    busy: Vec<Option<Busy>>,
    in_use: usize,
    ended: Option<String>,
    /// No slot is given out any more: requests go to another host.
    closed: bool,
    /// When the last answer came.
    heard_ns: u64,
    /// The latest deadline of a request that got a slot and a long time to be answered.
    promised: Option<Instant>,
}

/// A slot that was queued.
struct Busy {
    slot: Slot,
    request_id: u64,
    queued_ns: u64,
    state: Waiting,
}

enum Waiting {
    /// Somebody waits for it.
    For(Option<Waker>),
    /// Nobody waits any more; what comes is dropped. `true`: it was cancelled before it ran.
    Nobody { cancelled: bool },
    /// It is done and not yet fetched.
    Done(Completion),
}

impl Host {
    /// Starts a host and waits until it serves. `phase` hears what it is doing.
    ///
    /// # Errors
    /// [`StartError`]: why it refused, how it died, or that it took too long.
    pub async fn start(plan: Plan<'_>, phase: impl Fn(Phase)) -> Result<Arc<Self>, StartError> {
        let (config, package) = (&plan.house.config, &plan.edition.package);
        let manifest = package.manifest.clone();
        let layout = Layout::new(&manifest.inputs, &manifest.outputs, plan.slots);
        let text = |what: &str| {
            let what = what.to_owned();
            move |e: io::Error| format!("{what}: {e}")
        };
        let ring_bytes = layout.len();
        let (ring_file, ring, free) = Ring::create(layout).map_err(text("the ring cannot be made"))?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| text("no eventfd")(e.into()))?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(text("no socket pair"))?;
        ours.set_nonblocking(true).map_err(text("socket"))?;
        let control = UnixStream::from_std(ours).map_err(text("socket"))?;

        let budget = u64::from(manifest.budget.memory_mib) << 20;
        // The ring's and the model's pages are charged to whoever touches them first; count them in. A resource limit counts
        // private memory only, so there the workers' stacks come on top.
        let in_group = budget + (ring_bytes + package.len()) as u64;
        let in_limit = budget + (plan.workers * WORKER_STACK) as u64;
        let group = config.cgroup_root.as_ref().and_then(|root| {
            let name = format!("host-{}-{}", manifest.name, plan.house.serial());
            match Group::create(root, &name, in_group, 2 * plan.workers + 8) {
                Ok(g) => Some(g),
                Err(e) => {
                    tracing::warn!(error = %e, "no cgroup for the host, RLIMIT_DATA caps it instead");
                    None
                }
            }
        });

        let cap = if group.is_some() { in_group } else { in_limit };
        let inherit = [ring_file.as_fd(), event.as_fd(), theirs.as_fd(), package.file.as_fd()];
        let inherit = inherit.into_iter().map(high).collect::<Result<Vec<OwnedFd>, _>>();
        let inherit = inherit.map_err(text("descriptors"))?;
        let rung = plan.rung;
        let orders = Orders {
            ring: inherit[0].as_raw_fd(),
            event: inherit[1].as_raw_fd(),
            control: inherit[2].as_raw_fd(),
            model: inherit[3].as_raw_fd(),
            slots: plan.slots,
            workers: plan.workers,
            rung,
            seccomp: config.seccomp,
            cap: group.is_none().then_some(in_limit),
        };
        let environment =
            (rung.engine != EngineKind::Cpu).then_some(&config.environment).into_iter().flatten();
        let environment = environment.map(|(name, value)| (name, value));
        let mut command = Command::new(plan.program);
        command
            .arg0(format!("inferd-host:{}", manifest.name))
            .arg("engine-host")
            .arg(serde_json::to_string(&orders).expect("orders have a JSON form"))
            .env_clear()
            .envs(CpuEngine::ENVIRONMENT)
            .envs(confine::environment(plan.workers))
            .envs(environment)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let cgroup_procs = group
            .as_ref()
            .map(Group::procs)
            .transpose()
            .map_err(text("the host's cgroup cannot be opened"))?;
        let parent = i32::try_from(std::process::id()).unwrap_or_default();
        sys::prepare(&mut command, ChildSetup { inherit, cgroup_procs, parent });
        plan.stats.starts.fetch_add(1, Relaxed);
        let mut child =
            command.spawn().map_err(|e| format!("{} cannot be started: {e}", plan.program.display()))?;
        // The command holds the inherited ends open; without it an ending host closes them.
        drop(command);
        drop(theirs);
        drop(ring_file);

        let pid = child.id().unwrap_or_default();
        let model = manifest.name.to_string();
        let words = Words::read(child.stderr.take().ok_or("no pipe".to_owned())?, model.clone(), pid);
        let events = plan.house.events.clone();

        let mut reports = BufReader::new(control);
        let ready = hear_ready(&mut reports, phase).await;
        let Ready { version, device, library, remark, agreement } = match ready {
            Ok(ready) => ready,
            other => {
                let _ = child.start_kill();
                let status = child.wait().await;
                sys::kill_group(pid);
                let words = words_of(words, &ring).await;
                let mut ended = None;
                let e = match other {
                    // An engine that is refused memory may say so itself before it falls.
                    Err(Unready::Refused(refusal)) => match ring.refused() {
                        Some(_) => {
                            let reason = format!("{}; {refusal}", over_cap(&ring, cap));
                            StartError::Memory { cap, reason }
                        }
                        None => StartError::Refused(refusal),
                    },
                    Err(Unready::Late(allowed)) => StartError::Late(allowed),
                    _ => {
                        let (end, reason) = autopsy(status.ok(), group.as_ref(), &ring, cap, &words);
                        plan.stats.ended(end);
                        plan.edition.breaker(rung).ended(end, &plan.stats);
                        ended = Some(end);
                        match end {
                            End::Oom => StartError::Memory { cap, reason },
                            _ => StartError::Ended(reason),
                        }
                    }
                };
                let reason = e.to_string();
                events.tell(match ended {
                    Some(cause) => HostEvent::HostEnded { model, engine: rung, pid, cause, reason, words },
                    None => HostEvent::HostNotStarted { model, engine: rung, reason, words },
                });
                return Err(e);
            }
        };
        let remark = remark.map(|r| words::plain(&r));
        if let Some(remark) = &remark {
            tracing::warn!(model, engine = %rung, device, "the engine does not run on the best there is: {remark}");
        }
        let host = Arc::new(Self {
            pid,
            remark,
            version,
            device,
            library,
            rung,
            agreement,
            cap,
            cap_kind: if group.is_some() { "cgroup" } else { "rlimit" },
            workers: plan.workers,
            manifest,
            group: group.as_ref().map(Group::view),
            stands_in: plan.stands_in,
            breaker: plan.edition.breaker(rung).clone(),
            served: AtomicBool::new(false),
            lost_device: AtomicBool::new(false),
            edition: plan.edition,
            cells: Mutex::new(Cells {
                busy: (0..free.len()).map(|_| None).collect(),
                free: free.into_iter().collect(),
                in_use: 0,
                ended: None,
                closed: false,
                heard_ns: 0,
                promised: None,
            }),
            ring,
            stats: ArcSwap::new(plan.stats),
            queued: Notify::new(),
            watching_clock: AtomicBool::new(false),
            end: Notify::new(),
            gone: watch::Sender::new(None),
        });
        let event = sys::async_event(event).map_err(text("eventfd"))?;
        events.tell(HostEvent::HostStarted { model, engine: rung, pid });
        let life = Life { child, event, control: reports, group, words, events };
        tokio::spawn(host.clone().watch(life));
        Ok(host)
    }

    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on requests are sent to it.
    pub fn serves(&self) {
        self.served.store(true, Relaxed);
        self.edition.observed.has_host();
    }

    /// Whether this failure of a request in it is its device's.
    pub fn is_the_devices(&self, e: &InferError) -> bool {
        matches!(e, InferError::HostLost { .. }) && self.lost_device.load(Relaxed)
    }

    /// From now on it counts for the name it serves under.
    pub fn count_in(&self, stats: &Arc<Stats>) {
        if !Arc::ptr_eq(&self.stats.load(), stats) {
            stats.starts.fetch_add(1, Relaxed);
            self.stats.store(stats.clone());
        }
    }

    /// The engine in it.
    pub fn engine_info(&self) -> EngineInfo {
        EngineInfo {
            rung: Some(self.rung),
            kind: self.rung.engine.name(),
            version: self.version.clone(),
            device: self.device.clone(),
            library: self.library.clone(),
            remark: self.remark.clone(),
        }
    }

    /// Its cgroup, when it has one.
    pub fn group(&self) -> Option<&GroupView> {
        self.group.as_ref()
    }

    /// Sets the niceness of the process, and of its group among groups; whether that was allowed.
    pub fn set_nice(&self, nice: i32) -> bool {
        if let Some(group) = &self.group {
            group.set_nice(nice);
        }
        sys::set_nice(self.pid, nice).is_ok()
    }

    /// How it ended, if it has.
    pub fn has_ended(&self) -> Option<Ended> {
        self.gone.borrow().clone()
    }

    /// Takes a free slot; `None` when all are taken.
    ///
    /// # Errors
    /// When the host has ended, or was closed because requests go to another one.
    pub fn take(&self) -> Result<Option<Slot>, Closed> {
        let mut cells = self.cells();
        if cells.closed || cells.ended.is_some() {
            return Err(Closed);
        }
        let slot = cells.free.pop();
        if let Some(mut slot) = slot {
            cells.in_use += 1;
            self.ring.take(&mut slot);
            return Ok(Some(slot));
        }
        Ok(None)
    }

    /// Gives a slot back that is not queued.
    pub fn give(&self, slot: Slot) {
        self.cells().give(slot);
    }

    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// (slots in use, all slots)
    pub fn occupancy(&self) -> (usize, usize) {
        let cells = self.cells();
        (cells.in_use, cells.busy.len())
    }

    /// Queues a filled slot; its index and generation name it from now on.
    pub fn submit(&self, slot: Slot) -> Submitted {
        let (index, generation) = (slot.index(), slot.generation());
        let request_id = NEXT_REQUEST.fetch_add(1, Relaxed);
        let mut cells = self.cells();
        // On a host that has ended nobody comes for the slot; `wait` says so.
        self.ring.submit(&slot, request_id);
        cells.busy[index] = Some(Busy { slot, request_id, queued_ns: now_ns(), state: Waiting::For(None) });
        drop(cells);
        if !self.watching_clock.swap(true, Relaxed) {
            self.queued.notify_one();
        }
        Submitted { index, generation }
    }

    /// Waits for the answer of a submitted slot.
    ///
    /// # Errors
    /// [`InferError::HostLost`], [`InferError::Panicked`] or [`InferError::Engine`].
    pub async fn wait(&self, at: Submitted) -> Result<(Slot, Timing), InferError> {
        poll_fn(|cx| {
            let mut cells = self.cells();
            let ended = cells.ended.clone();
            let Some(busy) = cells.mine(at) else {
                return Poll::Ready(Err(InferError::Engine("the request is not in its slot".into())));
            };
            match &mut busy.state {
                Waiting::Done(_) => {
                    let Some(Busy { slot, state: Waiting::Done(done), .. }) = cells.busy[at.index].take()
                    else {
                        unreachable!("matched above under the same lock")
                    };
                    let failure = match done.status {
                        Status::Ok => {
                            return Poll::Ready(Ok((
                                slot,
                                Timing { queue: done.queue, compute: done.compute },
                            )));
                        }
                        Status::Panicked => InferError::Panicked { message: done.words },
                        Status::Value => InferError::Value(done.words),
                        Status::EngineError | Status::Cancelled => InferError::Engine(done.words),
                    };
                    cells.give(slot);
                    Poll::Ready(Err(failure))
                }
                _ if ended.is_some() => Poll::Ready(Err(InferError::HostLost {
                    reason: ended.unwrap_or_default(),
                    retry_after: Duration::ZERO,
                })),
                Waiting::For(waker) => {
                    if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                        *waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
                Waiting::Nobody { .. } => {
                    Poll::Ready(Err(InferError::Engine("the request was given up".into())))
                }
            }
        })
        .await
    }

    /// Nobody waits for this request any more: it is cancelled, or its answer will be counted as late and dropped.
    pub fn abandon(&self, at: Submitted) {
        let mut cells = self.cells();
        let Some(busy) = cells.mine(at) else { return };
        if matches!(busy.state, Waiting::Done(_)) {
            if let Some(busy) = cells.busy[at.index].take() {
                self.stats.load().late.fetch_add(1, Relaxed);
                cells.give(busy.slot);
            }
        } else if matches!(busy.state, Waiting::For(_)) {
            let cancelled = self.ring.cancel(at.index, at.generation);
            busy.state = Waiting::Nobody { cancelled };
            if cancelled {
                self.stats.load().cancelled.fetch_add(1, Relaxed);
            }
        }
    }

    /// Waits until nothing is in flight, or the host has ended. From then on it gives out no slot: a request that was about to
    /// take one looks again for the host that serves now.
    pub async fn drained(&self) {
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        loop {
            pause.tick().await;
            let mut cells = self.cells();
            if cells.in_use == 0 || cells.ended.is_some() {
                cells.closed = true;
                return;
            }
        }
    }

    /// A request got a slot and may be answered until then.
    pub fn promise(&self, until: Instant) {
        let mut cells = self.cells();
        cells.promised = cells.promised.max(Some(until));
    }

    /// The latest of these promises.
    pub fn promised(&self) -> Option<Instant> {
        self.cells().promised
    }

    /// Gives out no slot any more.
    pub fn close(&self) {
        self.cells().closed = true;
    }

    /// Asks the host to end; [`Host::ended`] tells when it has.
    pub fn stop(&self) {
        self.end.notify_one();
    }

    /// Waits until the host has ended.
    pub async fn ended(&self) -> Ended {
        let mut gone = self.gone.subscribe();
        match gone.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(e)) => e.clone(),
            // Both cannot be: the sender is ours, and what is waited for is there.
            _ => Ended { how: End::Crash, reason: "its watch ended".into() },
        }
    }

    // ------------------------------------------------------------------------------------------------- the watch

    async fn watch(self: Arc<Self>, life: Life) {
        let Life { mut child, event, control, group, words, events } = life;
        let deadline = Duration::from_millis(self.manifest.budget.deadline_ms.into()) + STUCK_GRACE;
        let look = (deadline / 8).clamp(Duration::from_millis(5), Duration::from_millis(100));
        let mut clock = tokio::time::interval(look);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut killed = None;
        let status = loop {
            match self.collect() {
                Ok(()) => {}
                Err(why) => {
                    killed.get_or_insert((End::Protocol, why));
                    let _ = child.start_kill();
                }
            }
            self.ring.daemon_asleep(true);
            // One that is being killed may go on saying so for as long as it likes.
            if killed.is_none() && self.ring.has_done() {
                self.ring.daemon_asleep(false);
                continue;
            }
            let watching = self.watching_clock.load(Relaxed);
            tokio::select! {
                biased;
                ready = event.readable() => {
                    if let Ok(mut guard) = ready {
                        let _ = event.get_ref().read();
                        guard.clear_ready();
                    }
                }
                status = child.wait() => break status,
                () = self.end.notified() => {
                    let _ = child.start_kill();
                    killed.get_or_insert((End::Signal, String::new()));
                }
                _ = clock.tick(), if watching => {
                    if let Some(late) = self.stuck(deadline) {
                        let why = format!("a request was in it for {} ms, the model's deadline is {} ms",
                            late.as_millis(), self.manifest.budget.deadline_ms);
                        killed.get_or_insert((End::Deadline, why));
                        let _ = child.start_kill();
                    }
                }
                () = self.queued.notified(), if !watching => {}
            }
            self.ring.daemon_asleep(false);
        };
        sys::kill_group(self.pid);
        drop(control);
        let asked = matches!(&killed, Some((End::Signal, _)));
        let (how, reason) = match killed {
            Some((End::Signal, _)) => (End::Signal, "it was stopped".to_owned()),
            Some(other) => other,
            None => autopsy(status.ok(), group.as_ref(), &self.ring, self.cap, &[]),
        };
        if !asked {
            self.stats.load().ended(how);
            self.lost_device.store(how == End::Device, Relaxed);
            if self.served.load(Relaxed) {
                self.edition.observed.ended(how);
            }
            self.breaker.ended(how, &self.stats.load());
            tracing::warn!(model = %self.manifest.name, pid = self.pid, reason, "engine host ended");
        }
        // Answers that were complete before the end still count.
        let _ = self.collect();
        if !asked {
            self.blame(how, &events);
        }
        let wakers: Vec<Waker> = {
            let mut cells = self.cells();
            cells.ended = Some(reason.clone());
            cells.busy.iter_mut().flatten().filter_map(Busy::waker).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
        drop(group);
        if !asked {
            let words = words_of(words, &self.ring).await;
            let (model, reason) = (self.manifest.name.to_string(), reason.clone());
            events.tell(HostEvent::HostEnded {
                model,
                engine: self.rung,
                pid: self.pid,
                cause: how,
                reason,
                words,
            });
        }
        self.gone.send_replace(Some(Ended { how, reason }));
    }

    /// Suspects the inputs that were running when the host ended by a fault of its own.
    fn blame(&self, how: End, events: &Events) {
        let deadline = Duration::from_millis(self.manifest.budget.deadline_ms.into());
        let now = now_ns();
        let mut digests: Vec<Digest> = vec![];
        let cells = self.cells();
        for busy in cells.busy.iter().flatten() {
            let been_in = Duration::from_nanos(now.saturating_sub(busy.queued_ns));
            let running = !matches!(busy.state, Waiting::Done(_)) && self.ring.is_running(&busy.slot);
            if !running || !suspects::may_have_ended(how, been_in, deadline) {
                continue;
            }
            let digest = self.digest(&busy.slot);
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        drop(cells);
        for (digest, ends) in self.edition.suspects.blame(&digests) {
            let (model, digest) = (self.manifest.name.to_string(), digest.to_string());
            tracing::warn!(model, digest, ends, "an input is refused: engine hosts ended with it");
            events.tell(HostEvent::Quarantined { model, digest, ends, pause: QUARANTINE });
        }
    }

    /// Names the input in a slot.
    pub fn digest(&self, slot: &Slot) -> Digest {
        Digest::of((0..self.ring.inputs()).map(|i| self.ring.input(slot, i)))
    }

    /// Hands finished slots to those who wait for them.
    fn collect(&self) -> Result<(), String> {
        let (mut broken, mut heard) = (None, false);
        let mut wake = heapless::Vec::<Waker, 64>::new();
        let mut cells = self.cells();
        self.ring.drain_done(|index| {
            let Some(busy) = cells.busy.get_mut(index).and_then(Option::as_mut) else {
                broken = Some(format!("slot {index} was finished and had not been queued"));
                return;
            };
            let done = match self.ring.completion(&busy.slot) {
                Some(done) if done.request_id == busy.request_id => {
                    done.within(Duration::from_nanos(now_ns().saturating_sub(busy.queued_ns)))
                }
                _ => {
                    broken = Some(format!("slot {index} came back with another request's answer"));
                    return;
                }
            };
            heard = true;
            if done.status == Status::Panicked {
                self.stats.load().panics.fetch_add(1, Relaxed);
                tracing::warn!(model = %self.manifest.name, words = done.words, "a worker panicked on a request; contained");
            }
            match &mut busy.state {
                Waiting::For(waker) => {
                    if let Some(w) = waker.take()
                        && let Err(w) = wake.push(w)
                    {
                        w.wake();
                    }
                    busy.state = Waiting::Done(done);
                }
                Waiting::Nobody { cancelled } => {
                    if !*cancelled {
                        self.stats.load().late.fetch_add(1, Relaxed);
                    }
                    if let Some(busy) = cells.busy[index].take() {
                        cells.give(busy.slot);
                    }
                }
                Waiting::Done(_) => broken = Some(format!("slot {index} was finished twice")),
            }
        });
        if heard {
            cells.heard_ns = now_ns();
        }
        drop(cells);
        wake.into_iter().for_each(Waker::wake);
        broken.map_or(Ok(()), Err)
    }

    /// How long the host has been stuck, if it is: a worker runs for longer than the deadline, or requests wait and nothing
    /// has moved for that long. With nothing in flight the clock is not looked at any more.
    fn stuck(&self, deadline: Duration) -> Option<Duration> {
        let cells = self.cells();
        let heard = cells.heard_ns;
        let oldest_waiting = cells.busy.iter().flatten().filter(|b| !matches!(b.state, Waiting::Done(_)));
        let Some(oldest) = oldest_waiting.map(|b| b.queued_ns).min() else {
            self.watching_clock.store(false, Relaxed);
            return None;
        };
        drop(cells);
        let idle_since = self.ring.progress_ns().max(oldest);
        let since = self.ring.oldest_running_ns(self.workers).unwrap_or(idle_since);
        let now = now_ns();
        let age = Duration::from_nanos(now.saturating_sub(since.max(oldest)));
        // What the host says of its own progress may be anything. What it has not said at all for twice as long is enough: while
        // it works by the rules an answer comes at least once a deadline.
        let silent = Duration::from_nanos(now.saturating_sub(heard.max(oldest)));
        if age > deadline { Some(age) } else { (silent > 2 * deadline).then_some(silent) }
    }
}

/// What the watch of a host owns.
struct Life {
    child: Child,
    event: AsyncFd<EventFd>,
    /// Held open: a host ends when it closes.
    control: BufReader<UnixStream>,
    group: Option<Group>,
    words: Words,
    events: Events,
}

/// What a host that has ended said last: its standard error, and what the last panic left in the ring.
async fn words_of(words: Words, ring: &Ring) -> Vec<String> {
    let mut lines = words.last().await;
    lines.extend(ring.last_words().map(|w| words::plain(&w)));
    lines
}

/// The host gives out no slots.
#[derive(Clone, Copy, Debug)]
pub struct Closed;

/// Names a submitted request.
#[derive(Clone, Copy, Debug)]
pub struct Submitted {
    index: usize,
    generation: u32,
}

impl Cells {
    fn mine(&mut self, at: Submitted) -> Option<&mut Busy> {
        self.busy[at.index].as_mut().filter(|b| b.slot.generation() == at.generation)
    }

    fn give(&mut self, slot: Slot) {
        self.in_use -= 1;
        // There is one `Slot` per place, so there is always room.
        let _ = self.free.push(slot);
    }
}

impl Busy {
    fn waker(&mut self) -> Option<Waker> {
        match &mut self.state {
            Waiting::For(w) => w.take(),
            _ => None,
        }
    }
}

/// A copy of a descriptor above the numbers a child uses for itself.
fn high(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let n = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(10))?;
    sys::take_fd(n)
}

/// What a host says of itself when it is ready.
struct Ready {
    version: String,
    device: String,
    library: Option<PathBuf>,
    remark: Option<String>,
    agreement: Agreement,
}

/// Why a host is not ready.
enum Unready {
    Refused(Refusal),
    Ended,
    /// It took longer than this.
    Late(Duration),
}

/// Reads reports until the host is ready, or its time is up: [`LOAD_TIMEOUT`] in all, and [`BUILD_TIMEOUT`] on top for building an
/// engine.
async fn hear_ready(reports: &mut BufReader<UnixStream>, phase: impl Fn(Phase)) -> Result<Ready, Unready> {
    let mut line = String::new();
    let (mut deadline, mut allowed) = (tokio::time::Instant::now() + LOAD_TIMEOUT, LOAD_TIMEOUT);
    let mut built = false;
    loop {
        line.clear();
        let mut short = (&mut *reports).take(MAX_REPORT);
        match tokio::time::timeout_at(deadline, short.read_line(&mut line)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(_) => return Err(Unready::Ended),
            Err(_) => return Err(Unready::Late(allowed)),
        }
        match parse_report(&line) {
            Ok(Report::Phase(Phase::Building)) if !built => {
                built = true;
                (deadline, allowed) = (deadline + BUILD_TIMEOUT, LOAD_TIMEOUT + BUILD_TIMEOUT);
                phase(Phase::Building);
            }
            Ok(Report::Phase(p)) => {
                // What building took is not taken from the rest.
                if built {
                    deadline = tokio::time::Instant::now() + LOAD_TIMEOUT;
                }
                phase(p);
            }
            Ok(Report::Refused(why)) => return Err(Unready::Refused(why)),
            Ok(Report::Ready { version, device, library, remark, cosine, max_abs }) => {
                let agreement = Agreement { cosine, max_abs };
                return Ok(Ready { version, device, library, remark, agreement });
            }
            Err(e) => {
                let why = format!("the engine host spoke out of turn: {e}");
                return Err(Unready::Refused(Refusal::Load(why)));
            }
        }
    }
}

/// What a dead host tells: how it ended, in words. `lines`: what it wrote last.
fn autopsy(
    status: Option<ExitStatus>,
    group: Option<&Group>,
    ring: &Ring,
    cap: u64,
    lines: &[String],
) -> (End, String) {
    let mib = cap >> 20;
    if ring.refused().is_some() {
        return (End::Oom, over_cap(ring, cap));
    }
    if group.is_some_and(|g| g.oom_kills() > 0) {
        return (End::Oom, format!("it was over its memory cap of {mib} MiB and was killed by the kernel"));
    }
    if let Some(call) = ring.trapped() {
        let call = confine::name_of(call);
        return (End::Seccomp, format!("it tried system call {call}, which engine hosts may not make"));
    }
    let words = ring.last_words().map(|w| format!("; last words: {w}")).unwrap_or_default();
    if let Some(why) = status.and_then(|s| words::not_loaded(s.code()?, lines)) {
        return (End::Crash, why);
    }
    match status {
        Some(s) => match (s.signal(), s.code()) {
            (Some(libc::SIGKILL), _) => (End::Signal, format!("it was killed (SIGKILL){words}")),
            (Some(n @ (libc::SIGTERM | libc::SIGINT)), _) => {
                (End::Signal, format!("it was ended by signal {n}{words}"))
            }
            (Some(libc::SIGSYS), _) => {
                (End::Seccomp, format!("it tried a system call that engine hosts may not make{words}"))
            }
            (Some(n), _) => (End::Crash, format!("it crashed with signal {n}{words}")),
            (None, Some(c)) if c == i32::from(WITHOUT_DEVICE) => {
                (End::Device, ring.last_words().unwrap_or_else(|| "its device cannot be used".to_owned()))
            }
            (None, Some(c)) if c == i32::from(REFUSED) => (End::Crash, format!("it refused to serve{words}")),
            (None, code) => (End::Crash, format!("it ended with status {}{words}", code.unwrap_or(-1))),
        },
        None => (End::Crash, format!("its exit status is unknown{words}")),
    }
}

fn over_cap(ring: &Ring, cap: u64) -> String {
    let bytes = ring.refused().unwrap_or_default();
    format!("it was over its memory cap of {} MiB (an allocation of {bytes} bytes was refused)", cap >> 20)
}
