//! A system on its way into the slot that is not chosen, and the proof that it is there.
//!
//! The first block of each partition is made zeros before anything else changes and written last, so that a slot that is not whole does not
//! start, whatever a boot loader falls back to. A slot counts as written once every file was hashed *from the medium* and has the
//! digest that was signed; the same proof is asked for again before the boot loader is told to try it.

use crate::Slot;
use inferd_bundle::{Bundle, Chunk, Digest, FileEntry, IndexPage, Refusal, Sink};
use inferd_slots::{BLOCK, Medium};
use sha2::{Digest as _, Sha256};
use std::io;

/// Bytes that are hashed at once.
const HASHED: usize = 1 << 20;

/// The partitions of a slot.
#[derive(Clone, Copy, Debug)]
pub struct Parts<M> {
    /// `rootfs-X`.
    pub rootfs: M,
    /// `boot-X`, where there is one.
    pub boot: Option<M>,
}

/// Why a system is not in its slot.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The bundle.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It does not go with this board's partitions.
    #[error("{sentence}")]
    Unfit {
        /// For programs.
        code: &'static str,
        /// For people.
        sentence: String,
    },
    /// The medium.
    #[error("the partition of {file} cannot be {what}: {error}")]
    Medium {
        /// The file that belongs there.
        file: String,
        /// `written` or `read`.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The medium holds something else than was written.
    #[error("{0} lies on the medium with another digest than was signed")]
    ReadBack(String),
}

impl TakeError {
    /// Why, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Unfit { code, .. } => code,
            Self::Medium { .. } => "medium-failed",
            Self::ReadBack(_) => "read-back-differs",
        }
    }
}

/// The files that belong into this slot, each with its partition. Nothing is written.
///
/// # Errors
/// [`TakeError::Unfit`] when the bundle and the board's partitions do not go together.
pub fn plan<'a, M: Medium>(
    bundle: &'a Bundle,
    slot: Slot,
    parts: &'a Parts<M>,
) -> Result<Vec<(&'a FileEntry, &'a M)>, TakeError> {
    let unfit = |code, sentence: String| TakeError::Unfit { code, sentence };
    let system =
        bundle.manifest().system().ok_or_else(|| unfit("kind-unsupported", "it is no system".into()))?;
    let mut files = vec![(system.rootfs, &parts.rootfs)];
    match (system.boot, &parts.boot) {
        (Some(boots), Some(medium)) => {
            let [a, b] = boots;
            files.push((if slot == Slot::A { a } else { b }, medium));
        }
        (None, None) => {}
        (Some(_), None) => {
            return Err(unfit(
                "wrong-parts",
                "this board has no partition for what the bundle starts by".into(),
            ));
        }
        (None, Some(_)) => {
            return Err(unfit(
                "wrong-parts",
                "the bundle does not have what this board starts a system by".into(),
            ));
        }
    }
    for (file, medium) in &files {
        if file.len > medium.capacity() {
            let sentence = format!(
                "{} has {} bytes, its partition {} has {}",
                file.name,
                file.len,
                slot,
                medium.capacity()
            );
            return Err(unfit("slot-too-small", sentence));
        }
    }
    Ok(files)
}

/// Hashes what lies in the slot and compares it with what was signed. Reads the medium, not a cache.
///
/// # Errors
/// [`TakeError`].
pub fn prove<M: Medium>(bundle: &Bundle, slot: Slot, parts: &Parts<M>) -> Result<(), TakeError> {
    for (file, medium) in plan(bundle, slot, parts)? {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; HASHED];
        let mut at = 0;
        while at < file.len {
            let part = usize::try_from(file.len - at).unwrap_or(HASHED).min(HASHED);
            let bytes = buffer.get_mut(..part).unwrap_or_default();
            medium.read_back(at, bytes).map_err(|error| failed(file, "read", error))?;
            hash.update(&*bytes);
            at += part as u64;
        }
        if Digest(hash.finalize().into()) != file.sha256 {
            return Err(TakeError::ReadBack(file.name.clone()));
        }
    }
    Ok(())
}

fn failed(file: &FileEntry, what: &'static str, error: io::Error) -> TakeError {
    TakeError::Medium { file: file.name.clone(), what, error }
}

/// An install that is running; a [`Sink`] for the stream behind a prefix that was judged.
pub struct Take<'a, M> {
    bundle: &'a Bundle,
    slot: Slot,
    parts: &'a Parts<M>,
    /// The first blocks, which are written last, by the first chunk of their file.
    first: Vec<(u64, Vec<u8>)>,
    /// First chunk of the file that is being written, and its bytes so far.
    current: (u64, u64),
    plain: Vec<u8>,
}

impl<'a, M: Medium> Take<'a, M> {
    /// Begins: from here on the slot does not start.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn begin(bundle: &'a Bundle, slot: Slot, parts: &'a Parts<M>) -> Result<Self, TakeError> {
        let mut first = Vec::new();
        for (file, medium) in plan(bundle, slot, parts)? {
            let stop = medium.reserve(file.len).and_then(|()| medium.write_through(0, &[0; BLOCK]));
            stop.map_err(|error| failed(file, "written", error))?;
            first.push((file.first_chunk, Vec::with_capacity(BLOCK)));
        }
        Ok(Self { bundle, slot, parts, first, current: (u64::MAX, 0), plain: Vec::new() })
    }

    /// Everything came: syncs, writes the first blocks, and hashes all of it from the medium.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn finish(self) -> Result<(), TakeError> {
        let files = plan(self.bundle, self.slot, self.parts)?;
        for (file, medium) in &files {
            medium.sync().map_err(|error| failed(file, "written", error))?;
        }
        // What starts the rest comes last.
        for (file, medium) in &files {
            let head = self.first.iter().find(|(chunk, _)| *chunk == file.first_chunk);
            let mut block = [0; BLOCK];
            block
                .iter_mut()
                .zip(head.map(|(_, bytes)| bytes.as_slice()).unwrap_or_default())
                .for_each(|(to, from)| *to = *from);
            let done = medium.write_through(0, &block).and_then(|()| medium.sync());
            done.map_err(|error| failed(file, "written", error))?;
        }
        prove(self.bundle, self.slot, self.parts)
    }

    fn write(&mut self, chunk: &Chunk, stored: &[u8]) -> Result<(), TakeError> {
        let files = plan(self.bundle, self.slot, self.parts)?;
        let Some((file, medium)) = files.into_iter().find(|(f, _)| f.chunk_range().contains(&chunk.number))
        else {
            // The other slot's.
            return Ok(());
        };
        chunk.unpack(stored, &mut self.plain)?;
        if self.current.0 != file.first_chunk {
            self.current = (file.first_chunk, 0);
        }
        let at = self.current.1;
        let mut bytes = self.plain.as_slice();
        let mut place = at;
        if let Some((_, head)) = self.first.iter_mut().find(|(first, _)| *first == file.first_chunk)
            && head.len() < BLOCK
        {
            let (front, rest) = bytes.split_at((BLOCK - head.len()).min(bytes.len()));
            head.extend_from_slice(front);
            place += front.len() as u64;
            bytes = rest;
        }
        if !bytes.is_empty() {
            medium.write(place, bytes).map_err(|error| failed(file, "written", error))?;
        }
        self.current.1 = at + self.plain.len() as u64;
        Ok(())
    }
}

impl<M: Medium> Sink for Take<'_, M> {
    type Error = TakeError;

    fn prefix(&mut self, bundle: &Bundle, _: &[u8]) -> Result<(), TakeError> {
        // Judged before this began; another one must not follow it.
        if bundle.id() == self.bundle.id() { Ok(()) } else { Err(Refusal::Spent.into()) }
    }

    fn page(&mut self, _: &Bundle, _: &IndexPage, _: &[u8]) -> Result<(), TakeError> {
        Ok(())
    }

    fn chunk(&mut self, _: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), TakeError> {
        self.write(chunk, stored)
    }
}
