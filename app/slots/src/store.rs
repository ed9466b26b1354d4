//! Two slots and the state record: opening, stepping, recovering.

use crate::documents::Documents;
use crate::error::{Place, SlotError};
use crate::install::Install;
use crate::journal::{Entry, Journal};
use crate::local::LocalChunks;
use crate::medium::{BLOCK, FileMedium, Medium};
use crate::open::OpenSlot;
use crate::record;
use crate::state::{SlotId, SlotState, SlotStatus, State, Step};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of the state's medium that are used: two records.
pub const STATE_BYTES: u64 = 2 * BLOCK as u64;

/// Bytes an install writes before it syncs them and reads them back.
const SETTLE_EVERY: u64 = 4 << 20;

/// Where everything is on this device.
#[derive(Debug, Clone)]
pub struct Config {
    /// Both slots: block devices or regular files, A first.
    pub slots: [PathBuf; 2],
    /// The directory of the state, the journal and the trust documents. It is made when it is not there.
    pub data: PathBuf,
    /// How large a slot that is a regular file may become, in bytes. A block device is as large as it is.
    pub capacity: u64,
}

impl Config {
    /// The journal of verdicts.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn journal<V: Entry>(&self) -> Result<Journal<V>, SlotError> {
        Journal::open(self.data.join("journal"))
    }

    /// The trust documents.
    ///
    /// # Errors
    /// When their directory cannot be made.
    pub fn documents(&self) -> Result<Documents, SlotError> {
        Documents::open(self.data.join("trust"))
    }
}

/// The media of a store.
#[derive(Debug)]
pub struct Media<M> {
    /// Of the state: at least [`STATE_BYTES`].
    pub state: M,
    /// Of the slots, A first.
    pub slots: [M; 2],
}

/// What was found when a store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing was ever recorded, and no slot begins like a bundle.
    Fresh,
    /// A state.
    Kept,
    /// No record is valid. Only [`Store::recover`] is possible.
    Lost,
}

/// What recovery found in the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The slot to try first: of those that verify in full the one with the highest version. It is staged, not committed: its signatures and
    /// its gates are judged again.
    pub candidate: Option<SlotId>,
    /// The state it was recovered to.
    pub state: State,
}

/// Two slots and their state. Clones are the same store.
#[derive(Debug)]
pub struct Store<M: Medium> {
    pub(crate) inner: Arc<Inner<M>>,
}

impl<M: Medium> Clone for Store<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
pub(crate) struct Inner<M> {
    pub(crate) media: Media<M>,
    kept: Mutex<Kept>,
    pub(crate) installing: AtomicBool,
    pub(crate) settle_every: u64,
    /// Keeps other processes away.
    _lock: Option<Flock<fs::File>>,
}

#[derive(Debug)]
struct Kept {
    state: State,
    found: Found,
    /// Which of the two records holds `state`; the other one is written next.
    place: usize,
    /// The highest sequence that was ever sent to the medium, also by a write that failed.
    tried: u64,
}

impl Store<FileMedium> {
    /// Opens the store of this device and keeps other processes from doing so.
    ///
    /// # Errors
    /// When a medium cannot be opened, another process has the store, or no room can be had for the state.
    pub fn at(config: &Config) -> Result<Self, SlotError> {
        let file = |path: &PathBuf| Place::File(path.clone());
        if !config.data.is_dir() {
            fs::create_dir_all(&config.data).map_err(|e| SlotError::io(file(&config.data), "write", e))?;
        }
        let path = config.data.join("lock");
        let lock = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
            Ok(lock) => {
                let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
                Some(lock.map_err(|_| SlotError::InUse { path: config.data.clone() })?)
            }
            // Nobody can write there, so there is nothing to keep apart.
            Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => None,
            Err(error) => return Err(SlotError::io(file(&path), "write", error)),
        };
        let state = FileMedium::open(&config.data.join("state"), STATE_BYTES)
            .map_err(|e| SlotError::io(Place::State, "open", e))?;
        match state.reserve(STATE_BYTES).map_err(|e| SlotError::io(Place::State, "write", e)) {
            Ok(()) | Err(SlotError::ReadOnly { .. }) => {}
            Err(error) => return Err(error),
        }
        let slot = |slot: SlotId| {
            FileMedium::open(&config.slots[slot.index()], config.capacity)
                .map_err(|e| SlotError::io(Place::Slot(slot), "open", e))
        };
        let media = Media { state, slots: [slot(SlotId::A)?, slot(SlotId::B)?] };
        Self::build(media, SETTLE_EVERY, lock)
    }
}

impl<M: Medium> Store<M> {
    /// Opens a store on these media.
    ///
    /// # Errors
    /// When the state cannot be read or its medium is too small.
    pub fn new(media: Media<M>) -> Result<Self, SlotError> {
        Self::build(media, SETTLE_EVERY, None)
    }

    /// As [`new`](Store::new), with another number of bytes that an install writes between two syncs; by default it is 4 MiB.
    ///
    /// # Errors
    /// As for `new`.
    pub fn with_settling(media: Media<M>, bytes: u64) -> Result<Self, SlotError> {
        Self::build(media, bytes, None)
    }

    fn build(media: Media<M>, settle_every: u64, lock: Option<Flock<fs::File>>) -> Result<Self, SlotError> {
        let kept = read_state(&media)?;
        let kept = Mutex::new(kept);
        let inner = Inner { media, kept, installing: AtomicBool::new(false), settle_every, _lock: lock };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What was found when it was opened; [`Found::Kept`] after a recovery.
    #[must_use]
    pub fn found(&self) -> Found {
        self.inner.kept().found
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.inner.kept().state.clone()
    }

    /// Takes a step: durable when this returns the new state.
    ///
    /// # Errors
    /// When the step is not possible, or the record could not be written; then the state is what it was, and a power cut at that
    /// moment may still leave either.
    pub fn step(&self, step: &Step) -> Result<State, SlotError> {
        if let Step::Erase { .. } = step
            && self.inner.installing.load(Ordering::Acquire)
        {
            // It could only be the slot that is being written.
            return Err(SlotError::Busy);
        }
        if let Step::Write { .. } | Step::Stage { .. } = step {
            return Err(SlotError::OnlyInstall);
        }
        self.inner.step(step)
    }

    /// Begins to install the bundle that starts with these bytes (`Bundle::prefix_len` says how many), or goes on with it
    /// when the target slot holds a part of it. Whether the bundle may be installed at all is for the caller to decide before.
    ///
    /// # Errors
    /// When an install or a trial is running, the prefix is damaged, or there is no room. Up to here nothing has changed but, last, the state.
    pub fn begin_install(&self, prefix: &[u8]) -> Result<Install<M>, SlotError> {
        Install::begin(Arc::clone(&self.inner), prefix)
    }

    /// Opens the complete bundle in a slot. Every byte that is read of it later is verified then.
    ///
    /// # Errors
    /// When the slot holds none, or its head has rotted.
    pub fn open(&self, slot: SlotId) -> Result<OpenSlot<M>, SlotError> {
        OpenSlot::open(Arc::clone(&self.inner), slot)
    }

    /// The chunks that both slots hold, so that they need not be fetched. To be taken before
    /// [`begin_install`](Store::begin_install), which replaces one of the slots.
    #[must_use]
    pub fn local_chunks(&self) -> LocalChunks<M> {
        LocalChunks::read(&self.inner)
    }

    /// After [`Found::Lost`]: verifies both slots in full and records what was found. Reports the bytes done and all bytes of the slot at hand.
    /// `None` when nothing was lost.
    ///
    /// The floors, the versions of the trust documents and the last permit are gone with the record; commits and documents on disk
    /// raise them again. No power cut does this (README.md): it takes two damaged blocks.
    ///
    /// # Errors
    /// When the new record cannot be written, or a slot cannot be read.
    pub fn recover(
        &self,
        progress: &mut dyn FnMut(SlotId, u64, u64),
    ) -> Result<Option<Recovered>, SlotError> {
        if self.found() != Found::Lost {
            return Ok(None);
        }
        let mut state = State::default();
        let mut unreadable = None;
        for slot in SlotId::BOTH {
            let found = OpenSlot::find(Arc::clone(&self.inner), slot)
                .and_then(|open| open.verify_all(&mut |done, all| progress(slot, done, all)).map(|()| open));
            match found {
                Ok(open) => {
                    let manifest = open.bundle().manifest();
                    state.slots[slot.index()] = SlotState {
                        status: SlotStatus::Staged,
                        bundle: Some(open.bundle().id()),
                        product: manifest.product.to_string(),
                        version: manifest.version,
                        len: open.bundle().total_len(),
                    };
                }
                Err(error @ SlotError::Io { .. }) => unreadable = Some(error),
                Err(_) => {}
            }
        }
        // Its medium may answer again later: nothing is recorded over a bundle that may be the only one.
        if let Some(error) = unreadable
            && state.slots.iter().all(|slot| !slot.is_complete())
        {
            return Err(error);
        }
        let candidate = SlotId::BOTH
            .into_iter()
            .rev()
            .filter(|&slot| state.slot(slot).is_complete())
            .max_by_key(|&slot| state.slot(slot).version);
        let mut kept = self.inner.kept();
        // Both records: nothing of what was there can be taken for newer.
        state.sequence = kept.tried + 1;
        self.inner.write(&mut kept, state.clone())?;
        state.sequence += 1;
        self.inner.write(&mut kept, state)?;
        kept.found = Found::Kept;
        Ok(Some(Recovered { candidate, state: kept.state.clone() }))
    }
}

impl<M: Medium> Inner<M> {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> State {
        self.kept().state.clone()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.kept().found == Found::Lost
    }

    pub(crate) fn slot(&self, slot: SlotId) -> &M {
        &self.media.slots[slot.index()]
    }

    pub(crate) fn step(&self, step: &Step) -> Result<State, SlotError> {
        let mut kept = self.kept();
        if kept.found == Found::Lost {
            return Err(SlotError::Lost);
        }
        let mut before = kept.state.clone();
        before.sequence = kept.tried;
        let next = before.step(step)?;
        self.write_both(&mut kept, next)?;
        kept.found = Found::Kept;
        Ok(kept.state.clone())
    }

    /// Writes one record and then the other, so that one that rots later takes no step back.
    fn write_both(&self, kept: &mut Kept, state: State) -> Result<(), SlotError> {
        let copy = State { sequence: state.sequence + 1, ..state.clone() };
        self.write(kept, state)?;
        // The step is taken. Where this fails the next step is written first, and tells.
        let _ = self.write(kept, copy);
        Ok(())
    }

    /// Writes the record that is not in use. A write that failed may be there or not: the next one goes to the same
    /// place with a higher sequence, so the last good record is never at risk.
    fn write(&self, kept: &mut Kept, state: State) -> Result<(), SlotError> {
        kept.tried = state.sequence;
        let place = 1 - kept.place;
        let at = (place * BLOCK) as u64;
        let block = record::encode(&state);
        let medium = &self.media.state;
        medium.write_through(at, &block).map_err(|e| SlotError::io(Place::State, "write", e))?;
        let mut there = Box::new([0; BLOCK]);
        medium.read_back(at, &mut *there).map_err(|e| SlotError::io(Place::State, "read back", e))?;
        if there != block {
            return Err(SlotError::StateReadBack);
        }
        kept.state = state;
        kept.place = place;
        Ok(())
    }
}

/// The valid record with the highest sequence.
fn read_state<M: Medium>(media: &Media<M>) -> Result<Kept, SlotError> {
    let capacity = media.state.capacity();
    if capacity < STATE_BYTES {
        return Err(SlotError::StateTooSmall { capacity });
    }
    let mut best: Option<(usize, State)> = None;
    let mut unreadable = None;
    let mut zeros = true;
    for place in 0..2 {
        let mut block = Box::new([0; BLOCK]);
        // The other one may be a step older, so a passing error is waited out.
        let mut read = || media.state.read_back((place * BLOCK) as u64, &mut *block);
        if let Err(error) = read().or_else(|_| read()).or_else(|_| read()) {
            unreadable = Some(error);
            continue;
        }
        zeros &= block.iter().all(|&byte| byte == 0);
        if let Some(state) = record::decode(&block)
            && best.as_ref().is_none_or(|(_, kept)| state.sequence > kept.sequence)
        {
            best = Some((place, state));
        }
    }
    if let Some((place, state)) = best {
        let tried = state.sequence;
        return Ok(Kept { state, found: Found::Kept, place, tried });
    }
    if let Some(error) = unreadable {
        return Err(SlotError::io(Place::State, "read", error));
    }
    // A slot that cannot be read holds nothing that could be lost more than it is.
    let bundle = |medium: &M| {
        let mut head = [0; 8];
        medium.read_back(0, &mut head).is_ok() && head == inferd_bundle::MAGIC
    };
    let found = if zeros && !media.slots.iter().any(bundle) { Found::Fresh } else { Found::Lost };
    Ok(Kept { state: State::default(), found, place: 1, tried: 0 })
}
