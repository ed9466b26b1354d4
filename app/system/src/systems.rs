//! Installing a system, trying it, and keeping it or not: what root does on the device.
//!
//! Whoever brings a bundle is not believed. The signatures are judged here before a byte is written, every file is hashed from the medium
//! before the slot counts as staged, and both again before the boot loader is told to try it.

use crate::Slot;
use crate::boot::{Backend, Now, Restart};
use crate::install::{Parts, Take, TakeError, plan, prove};
use crate::release::Image;
use crate::state::{About, Ended, Phase, Reason, Start, State, Tries};
use inferd_bundle::limits::HEADER_BYTES;
use inferd_bundle::{Bundle, Refusal, Stream, Trust};
use inferd_slots::Medium;
use std::fmt::Display;
use std::io::{self, Read};
use std::path::PathBuf;

/// The state, in its folder.
const STATE: &str = "system.json";
/// The beginning of the bundle that lies in a slot: what its digests are signed by.
const PREFIX: &str = "system.prefix";
/// The longest file that is read here, in bytes; no longer state is written. One with all that it may hold has an eighth of that.
const MAX_STATE: u64 = 1 << 20;
/// The seconds that a bundle may ask a new system to be ready for: fewer prove nothing, and while it is on trial nothing else is installed.
const LEAST_HOLD: u32 = 30;
const MOST_HOLD: u32 = 3600;
/// Bytes that are read at once from whoever brings a bundle.
const PIECE: usize = 256 << 10;

/// Two small files that are replaced whole.
pub trait Keep: Send {
    /// A file's bytes; `None` when it is not there.
    ///
    /// # Errors
    /// What the system says.
    fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a file. After a power cut the old one is there or the new one.
    ///
    /// # Errors
    /// What the system says; then the old one is there.
    fn save(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// A directory that only root writes.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Keep for Folder {
    fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match std::fs::File::open(self.0.join(name)) {
            Ok(file) => file.take(MAX_STATE + 1).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Half of it would be nothing that anybody could read.
        if bytes.len() as u64 > MAX_STATE {
            let why = format!("{name} has more than {MAX_STATE} bytes: it is no file of inferd's");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Some(bytes))
    }

    fn save(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        inferd_slots::replace(&self.0.join(name), bytes)
    }
}

/// What a bundle is held against.
pub struct Facts<'a> {
    /// Whom the device believes.
    pub trust: Option<&'a Trust>,
    /// This board.
    pub board: &'a str,
    /// The version of inferd that installs.
    pub version: &'a str,
    /// The system that runs, where its image says which it is.
    pub image: Option<&'a Image>,
}

/// The two systems of a device.
pub struct Systems<M> {
    backend: Box<dyn Backend>,
    parts: [Parts<M>; 2],
    keep: Box<dyn Keep>,
    /// The number of this boot.
    boot: u64,
    state: State,
}

fn reason(code: &str, sentence: impl Display) -> Reason {
    Reason::new(code, sentence)
}

impl From<TakeError> for Reason {
    fn from(error: TakeError) -> Self {
        reason(error.code(), &error)
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        reason(refusal.code(), &refusal)
    }
}

impl State {
    /// What was kept; nothing was begun where there is nothing.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn kept(keep: &dyn Keep) -> Result<Self, Reason> {
        let lost =
            |why: String| reason("state-lost", format!("what is known of the systems cannot be read: {why}"));
        match keep.load(STATE).map_err(|e| lost(e.to_string()))? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| lost(e.to_string())),
            None => Ok(Self::default()),
        }
    }
}

impl<M: Medium> Systems<M> {
    /// Of a backend, the partitions of `a` and `b`, where the state is kept, and the number of this boot.
    ///
    /// # Errors
    /// When the state cannot be read: without it nobody knows the floors.
    pub fn open(
        backend: Box<dyn Backend>,
        parts: [Parts<M>; 2],
        keep: Box<dyn Keep>,
        boot: u64,
    ) -> Result<Self, Reason> {
        let state = State::kept(&*keep)?;
        Ok(Self { backend, parts, keep, boot, state })
    }

    /// What is known of them.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    fn set(&mut self, state: State) -> Result<(), Reason> {
        let bytes = serde_json::to_vec(&state).map_err(|e| reason("medium-failed", e))?;
        if bytes.len() as u64 > MAX_STATE {
            let why = format!(
                "what is known of the systems has {} bytes, {MAX_STATE} at most are kept",
                bytes.len()
            );
            return Err(reason("medium-failed", why));
        }
        let kept = self.keep.save(STATE, &bytes);
        kept.map_err(|e| {
            reason("medium-failed", format!("what is known of the systems cannot be kept: {e}"))
        })?;
        self.state = state;
        Ok(())
    }

    fn now(&self) -> Result<Now, Reason> {
        self.backend.now().map_err(|e| reason("boot-backend", e))
    }

    fn part(&self, slot: Slot) -> &Parts<M> {
        let [a, b] = &self.parts;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    /// The slot that this bundle may be written to; otherwise why not. Nothing is written.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn admit(&self, bundle: &Bundle, facts: &Facts<'_>) -> Result<Slot, Reason> {
        let m = bundle.manifest();
        if m.system().is_none() {
            return Err(reason("kind-unsupported", "this is a bundle of models"));
        }
        judged(bundle, facts.trust)?;
        let product = m.product.as_str();
        if let Some(image) = facts.image.filter(|image| image.product != product) {
            let why = format!("it is a system called {product}, and the one that runs is {}", image.product);
            return Err(reason("other-product", why));
        }
        let committed = self.state.floor(product);
        // A card that was flashed has committed nothing.
        let floor = committed.max(facts.image.map_or(0, |image| image.version));
        if m.version < floor {
            let why = format!(
                "version {} of {product} is older than {floor}, which this device {}",
                m.version,
                if floor == committed { "has committed" } else { "runs" }
            );
            return Err(reason("older-version", why));
        }
        let same = || {
            let why = format!("version {} of {product} is here with another content", m.version);
            reason("same-version", why)
        };
        let known = self.state.bundles.get(product).filter(|_| m.version == committed);
        if known.is_some_and(|id| *id != bundle.id().to_string()) {
            return Err(same());
        }
        let hold = m.policy.probation.seconds;
        if !(LEAST_HOLD..=MOST_HOLD).contains(&hold) {
            let why = format!(
                "it is to be ready for {hold} s; a system has to be for {LEAST_HOLD} to {MOST_HOLD} s"
            );
            return Err(reason("probation", why));
        }
        if !self.state.has_room_for(m.product.as_str()) {
            return Err(reason("too-many-products", "this device keeps floors of too many products"));
        }
        if !m.runs_on(facts.board) {
            let why = format!("it is for {}, this board is {:?}", m.targets.join(" or "), facts.board);
            return Err(reason("wrong-board", why));
        }
        if !m.runs_with(facts.version) {
            let least = m.min_inferd.as_deref().unwrap_or_default();
            return Err(reason(
                "inferd-too-old",
                format!("it needs inferd {least}, this is {}", facts.version),
            ));
        }
        self.backend.preflight().map_err(|refused| reason(refused.code, &refused))?;
        let now = self.now()?;
        if (now.on_trial && now.runs != now.chosen) || matches!(self.state.phase, Phase::Trial { .. }) {
            return Err(reason(
                "system-on-trial",
                "a system is on trial; wait until it is committed or back",
            ));
        }
        // Where the chosen one could not be started, the one that runs is the one to keep.
        let slot = now.runs.other();
        plan(bundle, slot, self.part(slot))?;
        // Nobody has noted the id of a bundle that was flashed; its files are there.
        if known.is_none() && facts.image.is_some_and(|image| image.version == m.version) {
            prove(bundle, now.runs, self.part(now.runs)).map_err(|error| match error {
                TakeError::ReadBack(_) => same(),
                error => error.into(),
            })?;
        }
        Ok(slot)
    }

    /// Reads a bundle in order and writes it into the slot that is not chosen. When it returns the slot is staged: every file was
    /// hashed from the medium.
    ///
    /// # Errors
    /// Why not. The slot then does not start, and the system that runs is what it was.
    pub fn install(&mut self, from: &mut dyn Read, facts: &Facts<'_>) -> Result<About, Reason> {
        self.install_telling(from, facts, &mut |_| {})
    }

    /// The same; whoever brings it is told when it was judged, before anything is written.
    ///
    /// # Errors
    /// Why not.
    pub fn install_telling(
        &mut self,
        from: &mut dyn Read,
        facts: &Facts<'_>,
        admitted: &mut dyn FnMut(Slot),
    ) -> Result<About, Reason> {
        let broken = |e: io::Error| reason("truncated", format!("the bundle ended before it was whole: {e}"));
        let mut first = [0; HEADER_BYTES];
        from.read_exact(&mut first).map_err(broken)?;
        let need = usize::try_from(Bundle::prefix_len(&first)?).unwrap_or(usize::MAX);
        let mut prefix = first.to_vec();
        // Bounded by the format: at most 836 KiB.
        prefix.resize(need, 0);
        from.read_exact(prefix.get_mut(HEADER_BYTES..).unwrap_or_default()).map_err(broken)?;
        let bundle = Bundle::parse(&prefix)?;
        let slot = self.admit(&bundle, facts)?;
        let m = bundle.manifest();
        let about = About {
            bundle: bundle.id().to_string(),
            product: m.product.to_string(),
            version: m.version,
            label: m.label.clone(),
            hold_s: m.policy.probation.seconds,
        };
        admitted(slot);
        // Before its slot is written, a chosen system that could not be started is not chosen any more.
        self.backend.commit().map_err(|e| reason("boot-backend", e))?;
        // From here on nobody takes the slot for what it held.
        let writing = Phase::Writing { slot, about: about.clone() };
        self.set(State { phase: writing, ..self.state.clone() })?;
        self.keep.save(PREFIX, &prefix).map_err(|e| reason("medium-failed", e))?;
        let mut take = Take::begin(&bundle, slot, self.part(slot))?;
        let mut stream = Stream::new();
        stream.push(&prefix, &mut take)?;
        let mut piece = vec![0; PIECE];
        loop {
            match from.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => stream.push(piece.get(..n).unwrap_or_default(), &mut take)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        stream.finish()?;
        take.finish()?;
        let staged = Phase::Staged { slot, about: about.clone(), tries: Tries::default() };
        self.set(State { phase: staged, ..self.state.clone() })?;
        Ok(about)
    }

    /// Judges the staged system once more, from the medium, and has the next start try it. The board is to be restarted so.
    ///
    /// # Errors
    /// Why not. Then nothing is tried.
    pub fn arm(&mut self, trust: Option<&Trust>) -> Result<Restart, Reason> {
        let Phase::Staged { slot, about, tries } = self.state.phase.clone() else {
            return Err(reason("nothing-staged", "no system is staged"));
        };
        self.backend.preflight().map_err(|refused| reason(refused.code, &refused))?;
        let prefix = self.keep.load(PREFIX).map_err(|e| reason("medium-failed", e))?.unwrap_or_default();
        let bundle = Bundle::parse(&prefix)?;
        if bundle.id().to_string() != about.bundle {
            return Err(reason("other-bundle", "what is kept of the staged bundle is another bundle's"));
        }
        judged(&bundle, trust)?;
        prove(&bundle, slot, self.part(slot))?;
        let staged = self.state.clone();
        let trial = Phase::Trial { slot, about, tries, boot: self.boot, gave_up: None };
        self.set(State { phase: trial, ..staged.clone() })?;
        match self.backend.arm(slot) {
            Ok(restart) => Ok(restart),
            Err(error) => {
                let why = reason("boot-backend", error);
                self.take_back(staged)?;
                Err(why)
            }
        }
    }

    /// Takes an armed try back: nobody restarts the board for it, and no later start is to try it unasked.
    ///
    /// # Errors
    /// Why not. Then it stays armed, and on trial.
    pub fn disarm(&mut self) -> Result<(), Reason> {
        let Phase::Trial { slot, about, tries, .. } = self.state.phase.clone() else { return Ok(()) };
        self.take_back(State { phase: Phase::Staged { slot, about, tries }, ..self.state.clone() })
    }

    /// What is not on trial any more is not armed either: the boot loader is told first, so that whatever it starts is watched.
    fn take_back(&mut self, next: State) -> Result<(), Reason> {
        self.backend.disarm().map_err(|e| reason("boot-backend", e))?;
        self.set(next)
    }

    /// Finds out at a start what became of a trial, and writes that down. Asked once a boot, with the end of the boot before.
    ///
    /// # Errors
    /// When it cannot be found out, or not be kept.
    pub fn start(&mut self, ended: Ended) -> Result<Start, Reason> {
        let start = self.state.at_start(self.now()?, ended, self.boot);
        if let Some(next) = self.state.after(&start, self.boot) {
            self.take_back(next)?;
        }
        Ok(start)
    }

    /// The system on trial, which runs, stays.
    ///
    /// # Errors
    /// Why not. Then the next start is the old system.
    pub fn commit(&mut self) -> Result<(), Reason> {
        self.on_trial()?;
        self.backend.commit().map_err(|e| reason("boot-backend", e))?;
        // A power cut here is found at the next start.
        self.set(self.state.committed(self.boot))
    }

    /// The system on trial says why it does not stay. The board is to be restarted.
    ///
    /// # Errors
    /// When that cannot be kept: the next start then judges by how this one ended.
    pub fn give_up(&mut self, why: Reason) -> Result<(), Reason> {
        self.on_trial()?;
        self.blame(why)
    }

    /// The same for a system on trial that does not run, as far as it came. Nothing is on trial: nothing is done.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub fn blame(&mut self, why: Reason) -> Result<(), Reason> {
        let mut state = self.state.clone();
        let Phase::Trial { gave_up, .. } = &mut state.phase else { return Ok(()) };
        *gave_up = Some(why.brief());
        self.set(state)
    }

    fn on_trial(&self) -> Result<(), Reason> {
        let runs = self.now()?.runs;
        match &self.state.phase {
            Phase::Trial { slot, .. } if *slot == runs => Ok(()),
            _ => Err(reason("no-trial", "the system that runs is not on trial")),
        }
    }
}

/// Whether the keys that this device believes have signed it.
fn judged(bundle: &Bundle, trust: Option<&Trust>) -> Result<(), Reason> {
    let trust = trust.ok_or_else(|| reason("no-root", "this device has no root of trust"))?;
    bundle.authorize(trust)?;
    Ok(())
}
