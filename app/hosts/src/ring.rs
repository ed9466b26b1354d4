//! The ring: one sealed memory file that a daemon and one engine host share.
//!
//! ```text
//! Header   submission FIFO, wake-up words, done bits, worker blocks, last words
//! Slot 0   SlotHeader | input 0 | input 1 | ... | output 0 | ...      every part on a 64-byte border
//! Slot 1   ...
//! ```
//!
//! A slot goes round these phases; the number beside it in one `AtomicU64` is its generation, counted up each time the
//! daemon takes it, so that nobody can mistake an old answer for a new one:
//!
//! | phase | whose memory | next |
//! |---|---|---|
//! | `FREE` | daemon (also while it is filled) | `QUEUED` by the daemon |
//! | `QUEUED` | nobody | `RUNNING` by a worker, `CANCELLED` by the daemon |
//! | `RUNNING` | that worker | `DONE` by the worker |
//! | `CANCELLED` | nobody | `DONE` by the worker that meets it in the FIFO |
//! | `DONE` | daemon | `FREE` by the daemon |
//!
//! A ring lives as long as its host. When a host ends, its ring goes with it, so no state that a dying process left
//! half-written is ever read again (but for the last words, which are only text).
//!
//! Nothing the host writes is trusted: indices, lengths and phases are checked where the daemon reads them.
#![allow(unsafe_code)]

use crate::limits::{MAX_SLOTS, MAX_WORDS, MAX_WORKERS};
use crate::sys::{self, Mapping, futex_wait, futex_wake, now_ns};
use inferd_engine::{DEVICE_EVENTS, DeviceMemory, DeviceState};
use inferd_model::{MAX_TENSORS, TensorSpec};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};
use std::time::Duration;

const FREE: u64 = 0;
const QUEUED: u64 = 1;
const RUNNING: u64 = 2;
const DONE: u64 = 3;
const CANCELLED: u64 = 4;

/// How a worker left a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The outputs are the answer.
    Ok,
    /// The engine refused; the words say why.
    EngineError,
    /// The engine panicked; the words say how.
    Panicked,
    /// The request was cancelled before it ran.
    Cancelled,
    /// A value of the request, or one that came out of it, is none of its element type; the words say which.
    Value,
}

impl Status {
    fn code(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::EngineError => 1,
            Self::Panicked => 2,
            Self::Cancelled => 3,
            Self::Value => 4,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        let all = [Self::Ok, Self::EngineError, Self::Panicked, Self::Cancelled, Self::Value];
        all.into_iter().find(|s| s.code() == code)
    }
}

/// A short text in shared memory, written by one side and read as bytes that may be anything.
#[repr(C)]
struct Words {
    len: AtomicU32,
    text: [AtomicU8; MAX_WORDS],
}

impl Words {
    fn set(&self, text: &str) {
        let n = text.floor_char_boundary(MAX_WORDS);
        for (to, b) in self.text.iter().zip(text.as_bytes()[..n].iter()) {
            to.store(*b, Relaxed);
        }
        self.len.store(u32::try_from(n).unwrap_or(0), Release);
    }

    fn get(&self) -> String {
        let n = (self.len.load(Acquire) as usize).min(MAX_WORDS);
        let bytes: heapless::Vec<u8, MAX_WORDS> = self.text[..n].iter().map(|b| b.load(Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// One worker's numbers, on its own cache lines.
#[derive(Default)]
#[repr(C, align(128))]
pub struct WorkerBlock {
    live: AtomicI64,
    peak: AtomicI64,
    requests: AtomicU64,
    panics: AtomicU64,
    /// When the running inference was started; 0 while idle.
    started_ns: AtomicU64,
}

impl WorkerBlock {
    /// Counts bytes allocated (or freed, below 0). Only its own thread calls this.
    pub fn count(&self, bytes: isize) {
        let live = self.live.load(Relaxed) + bytes as i64;
        self.live.store(live, Relaxed);
        if live > self.peak.load(Relaxed) {
            self.peak.store(live, Relaxed);
        }
    }

    /// Bytes in use now (0 when this thread freed more than it allocated).
    pub fn in_use(&self) -> usize {
        usize::try_from(self.live.load(Relaxed)).unwrap_or(0)
    }

    /// The most bytes that were in use at once.
    pub fn peak(&self) -> usize {
        usize::try_from(self.peak.load(Relaxed)).unwrap_or(0)
    }

    /// (live bytes, peak bytes, inferences, panics). Memory that another thread allocated and this one freed can bring the
    /// live count below zero; that is shown as zero.
    pub fn read(&self) -> (u64, u64, u64, u64) {
        let bytes = |v: &AtomicI64| u64::try_from(v.load(Relaxed)).unwrap_or(0);
        (bytes(&self.live), bytes(&self.peak), self.requests.load(Relaxed), self.panics.load(Relaxed))
    }

    /// Whether it has taken a request and not finished it.
    pub fn is_busy(&self) -> bool {
        self.started_ns.load(Relaxed) != 0
    }
}

/// How a host's device is. Numbers only, so whatever is written there is a number.
#[repr(C, align(128))]
pub struct DeviceBlock {
    /// Thousandths of a degree Celsius; the least number when it is not known.
    temperature: AtomicI64,
    /// Milliwatts; the least number when it is not known.
    power: AtomicI64,
    /// Thousandths of a share; the least number when it is not known.
    load: AtomicI64,
    /// Bytes of its memory in use, and all of them; 0 of 0 when they are not known.
    memory: [AtomicU64; 2],
    /// The greatest number for a device that tells of nothing.
    zone: AtomicU32,
    /// 1 when a device was ever there.
    is_there: AtomicU32,
    events: [AtomicU64; DEVICE_EVENTS.len()],
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // thousandths of what is below a million
impl DeviceBlock {
    /// The host's side.
    pub fn store(&self, state: &DeviceState) {
        let thousandths =
            |v: Option<f32>| v.filter(|v| v.abs() < 1e6).map_or(i64::MIN, |v| (v * 1e3).round() as i64);
        self.temperature.store(thousandths(state.temperature), Relaxed);
        self.power.store(thousandths(state.power), Relaxed);
        self.load.store(thousandths(state.load), Relaxed);
        let memory = state.memory.unwrap_or_default();
        self.memory[0].store(memory.used, Relaxed);
        self.memory[1].store(memory.total, Relaxed);
        self.zone.store(state.zone.unwrap_or(u32::MAX), Relaxed);
        for (to, &n) in self.events.iter().zip(&state.events) {
            to.store(n, Relaxed);
        }
        self.is_there.store(1, Release);
    }

    /// The daemon's side.
    pub fn load(&self) -> Option<DeviceState> {
        let number = |v: &AtomicI64| Some(v.load(Relaxed)).filter(|&v| v != i64::MIN).map(|v| v as f32 / 1e3);
        (self.is_there.load(Acquire) == 1).then(|| DeviceState {
            temperature: number(&self.temperature),
            power: number(&self.power),
            load: number(&self.load).map(|share| share.clamp(0.0, 1.0)),
            memory: Some(self.memory.each_ref().map(|v| v.load(Relaxed)))
                .filter(|[_, total]| *total > 0)
                .map(|[used, total]| DeviceMemory { used, total }),
            zone: Some(self.zone.load(Relaxed)).filter(|&zone| zone != u32::MAX),
            events: std::array::from_fn(|i| self.events[i].load(Relaxed)),
        })
    }
}

#[repr(C)]
struct Header {
    /// Next FIFO position the daemon writes.
    tail: Line<AtomicU32>,
    /// Next FIFO position a worker takes.
    head: Line<AtomicU32>,
    /// Counted up to wake workers; the futex word.
    work: Line<AtomicU32>,
    /// Workers that sleep or are about to.
    sleepers: Line<AtomicU32>,
    /// 1 while the daemon waits for the eventfd.
    daemon_asleep: Line<AtomicU32>,
    /// When a worker last took or finished a request.
    progress_ns: Line<AtomicU64>,
    /// Size of the allocation that was refused, if one was.
    refused: AtomicU64,
    /// The system call that was tried and is not allowed, and 1; 0 if none was.
    trapped: AtomicU64,
    last_words: Words,
    done: [AtomicU64; MAX_SLOTS / 64],
    workers: [WorkerBlock; MAX_WORKERS],
    device: DeviceBlock,
    fifo: [AtomicU32; MAX_SLOTS],
}

/// A value on its own cache lines (128 bytes: adjacent-line prefetch).
#[repr(C, align(128))]
struct Line<T>(T);

#[repr(C, align(64))]
struct SlotHeader {
    /// generation << 8 | phase
    state: AtomicU64,
    request_id: AtomicU64,
    queued_ns: AtomicU64,
    started_ns: AtomicU64,
    finished_ns: AtomicU64,
    status: AtomicU32,
    words: Words,
}

const ALIGN: usize = 64;
const HEADER: usize = size_of::<Header>().next_multiple_of(4096);

/// Where everything lies in a ring; the same arithmetic on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    slots: usize,
    stride: usize,
    inputs: Vec<Range<usize>>,
    outputs: Vec<Range<usize>>,
}

impl Layout {
    /// The layout for these tensors. `slots` is at least 1 and at most [`MAX_SLOTS`].
    pub fn new(inputs: &[TensorSpec], outputs: &[TensorSpec], slots: usize) -> Self {
        let mut at = size_of::<SlotHeader>().next_multiple_of(ALIGN);
        let mut place = |specs: &[TensorSpec]| {
            let part = |s: &TensorSpec| {
                let range = at..at + s.byte_len();
                at = range.end.next_multiple_of(ALIGN);
                range
            };
            specs.iter().map(part).collect::<Vec<_>>()
        };
        let (inputs, outputs) = (place(inputs), place(outputs));
        Self { slots: slots.clamp(1, MAX_SLOTS), stride: at, inputs, outputs }
    }

    /// Bytes of one slot.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of the whole ring.
    pub fn len(&self) -> usize {
        HEADER + self.slots * self.stride
    }
}

/// The right to a slot's memory on the daemon's side. There is one per slot; it cannot be copied.
#[derive(Debug)]
pub struct Slot {
    index: u16,
    generation: u32,
}

impl Slot {
    /// The slot's number.
    pub fn index(&self) -> usize {
        self.index.into()
    }

    /// Which use of the slot this is.
    pub fn generation(&self) -> u32 {
        self.generation
    }
}

/// The right to a slot's memory on a worker's side: a request that is being run.
pub struct Job {
    index: u16,
    generation: u32,
}

/// What a worker left in a slot.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Whose answer it is.
    pub request_id: u64,
    /// How it went.
    pub status: Status,
    /// The reason, when it did not go well.
    pub words: String,
    /// From queued to taken.
    pub queue: Duration,
    /// From taken to finished.
    pub compute: Duration,
}

impl Completion {
    /// With times that add up to no more than `all`, which the daemon has measured itself.
    pub fn within(mut self, all: Duration) -> Self {
        self.compute = self.compute.min(all);
        self.queue = self.queue.min(all - self.compute);
        self
    }
}

/// The inputs of a running request.
pub type Inputs<'a> = heapless::Vec<&'a [u8], MAX_TENSORS>;
/// The outputs of a running request.
pub type Outputs<'a> = heapless::Vec<&'a mut [u8], MAX_TENSORS>;

/// One side's view of a ring.
pub struct Ring {
    map: Mapping,
    layout: Layout,
}

impl Ring {
    /// Makes a ring (the daemon): the sealed file to hand to the host, the view, and the slots.
    pub fn create(layout: Layout) -> io::Result<(File, Self, Vec<Slot>)> {
        let file = sys::memory_file("inferd-ring")?;
        file.set_len(layout.len() as u64)?;
        sys::seal(&file, false)?;
        let map = Mapping::new(&file, layout.len(), true)?;
        let slots = (0..layout.slots).rev();
        let slots = slots
            .map(|i| Slot { index: u16::try_from(i).expect("at most MAX_SLOTS"), generation: 0 })
            .collect();
        Ok((file, Self { map, layout }, slots))
    }

    /// Opens an inherited ring (the host), mapped by [`Mapping::whole`].
    pub fn open(map: Mapping, layout: Layout) -> io::Result<Self> {
        if map.len() != layout.len() {
            return Err(io::Error::other(format!("it has {} bytes and not {}", map.len(), layout.len())));
        }
        Ok(Self { map, layout })
    }

    /// What every inherited ring has, however its slots are laid out: the cells and words a host leaves. Its slots cannot be
    /// reached.
    pub fn head(map: Mapping) -> io::Result<Self> {
        if map.len() < HEADER {
            return Err(io::Error::other(format!("it has {} bytes", map.len())));
        }
        Ok(Self { map, layout: Layout { slots: 0, stride: 0, inputs: vec![], outputs: vec![] } })
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, at least HEADER >= size_of::<Header>() long and lives as long as self;
        // Header is all atomics, for which every bit pattern is valid and concurrent access is defined.
        unsafe { &*self.map.as_ptr().cast::<Header>() }
    }

    fn slot(&self, index: usize) -> &SlotHeader {
        assert!(index < self.layout.slots, "slot {index} of {}", self.layout.slots);
        // SAFETY: the index is checked, so the header lies inside the mapping; offsets are multiples of 64, the alignment of
        // SlotHeader; all its fields are atomics, as above.
        unsafe { &*self.map.as_ptr().add(HEADER + index * self.layout.stride).cast::<SlotHeader>() }
    }

    fn data(&self, index: usize, part: &Range<usize>) -> *mut u8 {
        assert!(index < self.layout.slots && part.end <= self.layout.stride, "a part of a slot");
        let at = HEADER + index * self.layout.stride + part.start;
        debug_assert!(at + part.len() <= self.map.len(), "inside the mapping");
        // SAFETY: the offset is inside the mapping (checked above against the layout the mapping was sized from).
        unsafe { self.map.as_ptr().add(at) }
    }

    // ------------------------------------------------------------------------------------------ the daemon's side

    /// Starts a new use of a slot.
    pub fn take(&self, slot: &mut Slot) {
        slot.generation = slot.generation.wrapping_add(1);
        self.slot(slot.index()).state.store(u64::from(slot.generation) << 8 | FREE, Relaxed);
    }

    /// The bytes of an input, to be filled.
    pub fn input_mut<'a>(&'a self, slot: &'a mut Slot, i: usize) -> &'a mut [u8] {
        let part = &self.layout.inputs[i];
        // SAFETY: the range lies inside the mapping. The one `Slot` of this index is borrowed exclusively, so this process has
        // no other reference; the host does not touch a slot that is not QUEUED or RUNNING. A host that broke that rule could
        // change the bytes under our feet: they are plain numbers, read and written, never interpreted as anything else.
        unsafe { std::slice::from_raw_parts_mut(self.data(slot.index(), part), part.len()) }
    }

    /// Whether a worker has this slot, as far as the host says.
    pub fn is_running(&self, slot: &Slot) -> bool {
        self.slot(slot.index()).state.load(Acquire) == (u64::from(slot.generation) << 8 | RUNNING)
    }

    /// How many inputs a slot has.
    pub fn inputs(&self) -> usize {
        self.layout.inputs.len()
    }

    /// The bytes of an input of a slot that is `DONE`, or whose host has ended: what the client sent.
    pub fn input<'a>(&'a self, slot: &'a Slot, i: usize) -> &'a [u8] {
        let part = &self.layout.inputs[i];
        // SAFETY: as in `output`; a host that has ended writes nothing any more.
        unsafe { std::slice::from_raw_parts(self.data(slot.index(), part), part.len()) }
    }

    /// The bytes of an output of a slot that is `DONE`.
    pub fn output<'a>(&'a self, slot: &'a Slot, i: usize) -> &'a [u8] {
        let part = &self.layout.outputs[i];
        // SAFETY: as in `input_mut`, shared; the worker gave the slot up when it stored DONE (Release, read with Acquire).
        unsafe { std::slice::from_raw_parts(self.data(slot.index(), part), part.len()) }
    }

    /// Queues a filled slot. Calls are serialised by the caller's lock.
    pub fn submit(&self, slot: &Slot, request_id: u64) {
        let h = self.header();
        let s = self.slot(slot.index());
        s.request_id.store(request_id, Relaxed);
        s.queued_ns.store(now_ns(), Relaxed);
        s.state.store(u64::from(slot.generation) << 8 | QUEUED, Release);
        let tail = h.tail.0.load(Relaxed);
        h.fifo[tail as usize % MAX_SLOTS].store(slot.index.into(), Relaxed);
        // SeqCst together with `sleepers`: either the worker sees the entry or we see the sleeper.
        h.tail.0.store(tail.wrapping_add(1), SeqCst);
        if h.sleepers.0.load(SeqCst) > 0 {
            h.work.0.fetch_add(1, SeqCst);
            futex_wake(&h.work.0, 1);
        }
    }

    /// Cancels a request that no worker has taken yet. Its slot comes back through `done` all the same.
    pub fn cancel(&self, index: usize, generation: u32) -> bool {
        let (from, to) = (u64::from(generation) << 8 | QUEUED, u64::from(generation) << 8 | CANCELLED);
        self.slot(index).state.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }

    /// Calls `each` with the index of every slot that was finished since the last call; how many there were.
    pub fn drain_done(&self, mut each: impl FnMut(usize)) -> usize {
        let mut n = 0;
        for (word, bits) in self.header().done[..self.layout.slots.div_ceil(64)].iter().enumerate() {
            if bits.load(Relaxed) == 0 {
                continue;
            }
            let mut set = bits.swap(0, SeqCst);
            while set != 0 {
                let index = word * 64 + set.trailing_zeros() as usize;
                set &= set - 1;
                if index < self.layout.slots {
                    each(index);
                    n += 1;
                }
            }
        }
        n
    }

    /// Whether `drain_done` would find something.
    pub fn has_done(&self) -> bool {
        self.header().done[..self.layout.slots.div_ceil(64)].iter().any(|bits| bits.load(SeqCst) != 0)
    }

    /// What the worker left in a slot, when it is `DONE` with this generation.
    pub fn completion(&self, slot: &Slot) -> Option<Completion> {
        let s = self.slot(slot.index());
        if s.state.load(Acquire) != (u64::from(slot.generation) << 8 | DONE) {
            return None;
        }
        let status = Status::from_code(s.status.load(Relaxed))?;
        let [queued, started, finished] =
            [&s.queued_ns, &s.started_ns, &s.finished_ns].map(|t| t.load(Relaxed));
        Some(Completion {
            request_id: s.request_id.load(Relaxed),
            status,
            words: if status == Status::Ok { String::new() } else { s.words.get() },
            queue: Duration::from_nanos(started.saturating_sub(queued)),
            compute: Duration::from_nanos(finished.saturating_sub(started)),
        })
    }

    /// Announces that the daemon is about to wait for the eventfd (or no longer does). After `true`, look at `drain_done`
    /// once more before waiting.
    pub fn daemon_asleep(&self, asleep: bool) {
        self.header().daemon_asleep.0.store(asleep.into(), SeqCst);
    }

    /// Requests queued and not yet taken.
    pub fn waiting(&self) -> usize {
        let h = self.header();
        (h.tail.0.load(Relaxed).wrapping_sub(h.head.0.load(Relaxed)) as usize).min(self.layout.slots)
    }

    /// When a worker last took or finished a request (monotonic nanoseconds; 0: never).
    pub fn progress_ns(&self) -> u64 {
        self.header().progress_ns.0.load(Relaxed)
    }

    /// When the longest running inference of `workers` was started, if any runs.
    pub fn oldest_running_ns(&self, workers: usize) -> Option<u64> {
        let blocks = self.header().workers.iter().take(workers);
        blocks.map(|w| w.started_ns.load(Relaxed)).filter(|&t| t != 0).min()
    }

    /// A worker's numbers.
    pub fn worker(&self, i: usize) -> &WorkerBlock {
        &self.header().workers[i]
    }

    /// How its engine's device is.
    pub fn device(&self) -> &DeviceBlock {
        &self.header().device
    }

    /// Bytes of the allocation that was refused before the host ended, if one was.
    pub fn refused(&self) -> Option<u64> {
        Some(self.header().refused.load(Relaxed)).filter(|&n| n != 0)
    }

    /// The system call that ended the host, if one did.
    pub fn trapped(&self) -> Option<u64> {
        self.header().trapped.load(Relaxed).checked_sub(1)
    }

    /// What the host said last.
    pub fn last_words(&self) -> Option<String> {
        Some(self.header().last_words.get()).filter(|w| !w.is_empty())
    }

    // ------------------------------------------------------------------------------------------ the host's side

    /// The ring for the rest of the process' life.
    pub fn leak(self) -> &'static Self {
        Box::leak(Box::new(self))
    }

    /// Where a refused allocation leaves its size.
    pub fn refused_cell(&self) -> &AtomicU64 {
        &self.header().refused
    }

    /// Where a system call that is not allowed leaves its number, and 1.
    pub fn trapped_cell(&self) -> &AtomicU64 {
        &self.header().trapped
    }

    /// Leaves last words.
    pub fn say(&self, words: &str) {
        self.header().last_words.set(words);
    }

    /// Waits for the next request and takes it. Cancelled ones are given back on the way.
    pub fn next(&self, worker: usize, wake_daemon: &impl Fn()) -> Job {
        loop {
            let Some(index) = self.pop() else {
                self.sleep();
                continue;
            };
            let s = self.slot(index.into());
            let state = s.state.load(Acquire);
            let generation = state >> 8;
            let running = generation << 8 | RUNNING;
            if s.state.compare_exchange(generation << 8 | QUEUED, running, AcqRel, Relaxed).is_ok() {
                let now = now_ns();
                s.started_ns.store(now, Relaxed);
                self.header().workers[worker].started_ns.store(now, Relaxed);
                self.header().progress_ns.0.store(now, Relaxed);
                return Job { index, generation: u32::try_from(generation).unwrap_or(u32::MAX) };
            }
            s.status.store(Status::Cancelled.code(), Relaxed);
            s.words.set("");
            s.state.store(generation << 8 | DONE, Release);
            self.mark_done(index.into(), wake_daemon);
        }
    }

    fn pop(&self) -> Option<u16> {
        let h = self.header();
        loop {
            let head = h.head.0.load(Acquire);
            if head == h.tail.0.load(SeqCst) {
                return None;
            }
            let index = h.fifo[head as usize % MAX_SLOTS].load(Relaxed);
            if h.head.0.compare_exchange_weak(head, head.wrapping_add(1), AcqRel, Relaxed).is_ok() {
                return u16::try_from(index).ok().filter(|&i| usize::from(i) < self.layout.slots);
            }
        }
    }

    fn sleep(&self) {
        let h = self.header();
        let seen = h.work.0.load(SeqCst);
        h.sleepers.0.fetch_add(1, SeqCst);
        if h.head.0.load(Acquire) == h.tail.0.load(SeqCst) {
            futex_wait(&h.work.0, seen, Duration::from_secs(60));
        }
        h.sleepers.0.fetch_sub(1, SeqCst);
    }

    /// The bytes of a running request: its inputs, and its outputs to be written.
    pub fn job_parts<'a>(&'a self, job: &'a mut Job) -> (Inputs<'a>, Outputs<'a>) {
        let index = job.index.into();
        let at = |part| self.data(index, part);
        let (inputs, outputs) = (self.layout.inputs.iter(), self.layout.outputs.iter());
        // SAFETY: inside the mapping; the slot is RUNNING and its one `Job` is borrowed exclusively, so neither the daemon nor
        // another worker touches it; the parts of a slot do not overlap.
        unsafe {
            (
                inputs.map(|p| std::slice::from_raw_parts(at(p), p.len())).collect(),
                outputs.map(|p| std::slice::from_raw_parts_mut(at(p), p.len())).collect(),
            )
        }
    }

    /// Hands a request back. `wake_daemon` is called when the daemon sleeps.
    pub fn finish(&self, job: Job, worker: usize, status: Status, words: &str, wake_daemon: &impl Fn()) {
        let s = self.slot(job.index.into());
        let block = &self.header().workers[worker];
        let now = now_ns();
        s.finished_ns.store(now, Relaxed);
        s.status.store(status.code(), Relaxed);
        if status != Status::Ok {
            s.words.set(words);
        }
        block.requests.fetch_add(1, Relaxed);
        if status == Status::Panicked {
            block.panics.fetch_add(1, Relaxed);
        }
        block.started_ns.store(0, Relaxed);
        self.header().progress_ns.0.store(now, Relaxed);
        s.state.store(u64::from(job.generation) << 8 | DONE, Release);
        self.mark_done(job.index.into(), wake_daemon);
    }

    fn mark_done(&self, index: usize, wake_daemon: &impl Fn()) {
        let h = self.header();
        h.done[index / 64].fetch_or(1 << (index % 64), SeqCst);
        if h.daemon_asleep.0.load(SeqCst) == 1 && h.daemon_asleep.0.swap(0, SeqCst) == 1 {
            wake_daemon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_model::DType;

    fn layout(slots: usize) -> Layout {
        let x = TensorSpec::plain("x", DType::Fp32, &[3]);
        let y = TensorSpec::plain("y", DType::Uint8, &[5]);
        Layout::new(&[x.clone(), y.clone()], &[y, x], slots)
    }

    fn ring(slots: usize) -> (Ring, Ring, Vec<Slot>) {
        let (file, ours, free) = Ring::create(layout(slots)).unwrap();
        let theirs = Ring::open(Mapping::whole(&file, true).unwrap(), layout(slots)).unwrap();
        (ours, theirs, free)
    }

    #[test]
    fn the_head_is_there_before_the_layout_is_known() {
        let (file, ours, _) = Ring::create(layout(2)).unwrap();
        let map = || Mapping::whole(&file, true).unwrap();
        let head = Ring::head(map()).unwrap();
        head.trapped_cell().store(42, Relaxed);
        assert_eq!(ours.trapped(), Some(41));
        let e = Ring::open(map(), layout(3)).err().unwrap();
        assert!(e.to_string().contains("bytes"), "{e}");
        let small = sys::memory_file("small").unwrap();
        small.set_len(64).unwrap();
        sys::seal(&small, false).unwrap();
        assert!(Ring::head(Mapping::whole(&small, true).unwrap()).is_err(), "no header fits");
    }

    #[test]
    fn every_part_of_a_slot_lies_on_a_64_byte_border() {
        let (ours, _, mut free) = ring(3);
        for slot in &mut free {
            for i in 0..2 {
                assert_eq!(ours.input_mut(slot, i).as_ptr() as usize % ALIGN, 0);
                assert_eq!(ours.output(slot, i).as_ptr() as usize % ALIGN, 0);
            }
        }
    }

    #[test]
    fn a_request_crosses_and_its_answer_comes_back() {
        let (ours, theirs, mut free) = ring(2);
        let mut slot = free.pop().unwrap();
        ours.take(&mut slot);
        ours.input_mut(&mut slot, 1).copy_from_slice(b"hello");
        ours.submit(&slot, 42);
        assert_eq!(ours.waiting(), 1);
        let mut job = theirs.next(0, &|| ());
        let (inputs, mut outputs) = theirs.job_parts(&mut job);
        assert_eq!(inputs[1], b"hello");
        outputs[0].copy_from_slice(b"world");
        drop((inputs, outputs));
        assert!(ours.completion(&slot).is_none(), "it still runs");
        theirs.finish(job, 0, Status::Ok, "", &|| ());
        let mut seen = vec![];
        ours.drain_done(|i| seen.push(i));
        assert_eq!(seen, [slot.index()]);
        let c = ours.completion(&slot).unwrap();
        assert_eq!((c.request_id, c.status), (42, Status::Ok));
        assert_eq!(ours.output(&slot, 0), b"world");
    }

    #[test]
    fn an_answer_of_another_generation_is_no_answer() {
        let (ours, theirs, mut free) = ring(1);
        let mut slot = free.pop().unwrap();
        ours.take(&mut slot);
        ours.submit(&slot, 1);
        let job = theirs.next(0, &|| ());
        ours.take(&mut slot); // a broken daemon reuses the slot while it runs
        theirs.finish(job, 0, Status::Ok, "", &|| ());
        assert!(ours.completion(&slot).is_none());
    }

    #[test]
    fn a_cancelled_request_is_never_run_and_comes_back() {
        let (ours, theirs, mut free) = ring(2);
        let (mut a, mut b) = (free.pop().unwrap(), free.pop().unwrap());
        ours.take(&mut a);
        ours.take(&mut b);
        ours.submit(&a, 1);
        ours.submit(&b, 2);
        assert!(ours.cancel(a.index(), a.generation()));
        let job = theirs.next(0, &|| ());
        assert_eq!(job.index, b.index, "the worker went past the cancelled one");
        assert_eq!(ours.completion(&a).unwrap().status, Status::Cancelled);
        assert!(!ours.cancel(b.index(), b.generation()), "what runs cannot be cancelled");
    }

    #[test]
    fn the_daemon_is_woken_once_and_only_when_it_sleeps() {
        let (ours, theirs, mut free) = ring(4);
        let woken = std::cell::Cell::new(0);
        let wake = || woken.set(woken.get() + 1);
        let mut run = |asleep: bool| {
            let mut slot = free.pop().unwrap();
            ours.take(&mut slot);
            ours.submit(&slot, 0);
            if asleep {
                ours.daemon_asleep(true);
            }
            let job = theirs.next(0, &wake);
            theirs.finish(job, 0, Status::Ok, "", &wake);
            woken.get()
        };
        assert_eq!(run(false), 0);
        assert_eq!(run(true), 1);
        assert_eq!(run(false), 1);
    }

    #[test]
    fn words_longer_than_their_place_are_cut_at_a_character() {
        let (ours, theirs, _) = ring(1);
        theirs.say(&"ä".repeat(200));
        let words = ours.last_words().unwrap();
        assert!(words.len() <= MAX_WORDS && words.chars().all(|c| c == 'ä'));
    }

    #[test]
    fn workers_share_the_queue_without_losing_or_doubling_a_request() {
        let (ours, theirs, free) = ring(64);
        let theirs = &theirs;
        let total = 20_000_u64;
        let done = std::thread::scope(|scope| {
            for worker in 0..3 {
                scope.spawn(move || {
                    loop {
                        let mut job = theirs.next(worker, &|| ());
                        let id = theirs.slot(job.index.into()).request_id.load(Relaxed);
                        let (inputs, mut outputs) = theirs.job_parts(&mut job);
                        let stop = inputs[1][0] == 1;
                        outputs[1][..8].copy_from_slice(&id.to_le_bytes());
                        drop((inputs, outputs));
                        theirs.finish(job, worker, Status::Ok, "", &|| ());
                        if stop {
                            break;
                        }
                    }
                });
            }
            let mut cells: Vec<Option<Slot>> = (0..64).map(|_| None).collect();
            let mut free = free;
            let (mut sent, mut got) = (0_u64, std::collections::HashSet::new());
            while got.len() < usize::try_from(total).unwrap() + 3 {
                while sent < total + 3
                    && let Some(mut slot) = free.pop()
                {
                    ours.take(&mut slot);
                    ours.input_mut(&mut slot, 1)[0] = u8::from(sent >= total);
                    ours.submit(&slot, sent);
                    sent += 1;
                    let index = slot.index();
                    cells[index] = Some(slot);
                }
                ours.drain_done(|i| {
                    let slot = cells[i].take().expect("only what was queued is done");
                    let c = ours.completion(&slot).expect("done with our generation");
                    let id = u64::from_le_bytes(ours.output(&slot, 1)[..8].try_into().unwrap());
                    assert_eq!(id, c.request_id);
                    assert!(got.insert(id), "request {id} was answered twice");
                    free.push(slot);
                });
                std::thread::yield_now();
            }
            got.len()
        });
        assert_eq!(done as u64, total + 3);
    }
}
