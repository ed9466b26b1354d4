//! The trust documents of this device on disk: every root it was given after the built-in one, and the newest revocation list.
//!
//! This room keeps bytes; `inferd-bundle` says whether they are worth anything. The version is in the file's name (`root-7.cbor`,
//! `revocations-3.cbor`), so a newer document never overwrites an older one before it is durable. The state record holds the
//! newest versions that were used: an older set of files, put back by whoever, is refused by [`Documents::not_older`].

use crate::error::{Place, SlotError};
use crate::files;
use crate::state::State;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of one document.
pub const MAX_DOCUMENT: u64 = 1 << 20;
/// Roots that are kept at most.
pub const MAX_ROOTS: usize = 128;
/// Names that the directory may have: the documents and what a power cut left.
const MAX_NAMES: usize = 1024;

/// The directory of the documents.
#[derive(Debug)]
pub struct Documents {
    directory: PathBuf,
}

/// A document and its version.
pub type Versioned = (u64, Vec<u8>);

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// Envelopes of roots, by version, ascending.
    pub roots: Vec<Versioned>,
    /// The newest revocation list.
    pub revocations: Option<Versioned>,
}

impl Documents {
    /// Opens the directory, and makes it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: PathBuf) -> Result<Self, SlotError> {
        let error = |source| SlotError::io(Place::File(directory.clone()), "write", source);
        if !directory.is_dir() {
            fs::create_dir_all(&directory).map_err(error)?;
            files::sync_directory(directory.parent().unwrap_or(Path::new("."))).map_err(error)?;
        }
        Ok(Self { directory })
    }

    /// Everything that is on disk, to be verified by the caller: first the roots in order, then the revocation list.
    ///
    /// # Errors
    /// When a file cannot be read, or there are more than [`MAX_ROOTS`]: whoever may write there must not fill the memory of who reads.
    pub fn load(&self) -> Result<Loaded, SlotError> {
        let mut loaded = Loaded::default();
        let roots = self.versions("root")?;
        if roots.len() > MAX_ROOTS {
            return Err(self.full("read"));
        }
        for version in roots {
            if let Some(bytes) = files::read(&self.path("root", version), MAX_DOCUMENT)? {
                loaded.roots.push((version, bytes));
            }
        }
        if let Some(&version) = self.versions("revocations")?.last() {
            let bytes = files::read(&self.path("revocations", version), MAX_DOCUMENT)?;
            loaded.revocations = bytes.map(|bytes| (version, bytes));
        }
        Ok(loaded)
    }

    /// Keeps a root that was verified. The ones before it stay: a device that starts with the built-in root follows the chain.
    ///
    /// # Errors
    /// When a newer one is here already, there are [`MAX_ROOTS`], or the file cannot be written.
    pub fn keep_root(&self, version: u64, envelope: &[u8]) -> Result<(), SlotError> {
        let kept = self.versions("root")?;
        if kept.len() >= MAX_ROOTS && !kept.contains(&version) {
            return Err(self.full("write"));
        }
        self.keep("root", "root", version, envelope)
    }

    /// Keeps a revocation list that was verified, and removes the ones before it.
    ///
    /// # Errors
    /// When a newer one is here already, or the file cannot be written.
    pub fn keep_revocations(&self, version: u64, envelope: &[u8]) -> Result<(), SlotError> {
        self.keep("revocations", "revocation list", version, envelope)?;
        for older in self.versions("revocations")?.into_iter().filter(|&older| older < version) {
            // It is never read again while the newer one is here.
            let _ = fs::remove_file(self.path("revocations", older));
        }
        Ok(())
    }

    /// Whether what was loaded is as new as what the state has seen.
    ///
    /// # Errors
    /// When it is older.
    pub fn not_older(state: &State, root: u64, revocations: u64) -> Result<(), SlotError> {
        for (kind, found, kept) in
            [("root", root, state.root_version), ("revocation list", revocations, state.revocation_version)]
        {
            if found < kept {
                return Err(SlotError::WentBack { kind, found, kept });
            }
        }
        Ok(())
    }

    fn keep(&self, stem: &str, kind: &'static str, version: u64, envelope: &[u8]) -> Result<(), SlotError> {
        let len = envelope.len() as u64;
        if len > MAX_DOCUMENT {
            return Err(SlotError::DocumentTooLong { len, limit: MAX_DOCUMENT });
        }
        match self.versions(stem)?.last() {
            Some(&kept) if version < kept => Err(SlotError::WentBack { kind, found: version, kept }),
            _ => files::keep(&self.path(stem, version), envelope),
        }
    }

    fn full(&self, doing: &'static str) -> SlotError {
        let source = io::Error::other("more documents are there than there ever should be");
        SlotError::io(Place::File(self.directory.clone()), doing, source)
    }

    fn path(&self, stem: &str, version: u64) -> PathBuf {
        self.directory.join(format!("{stem}-{version}.cbor"))
    }

    /// The versions there are, ascending.
    fn versions(&self, stem: &str) -> Result<Vec<u64>, SlotError> {
        let error = |source| SlotError::io(Place::File(self.directory.clone()), "read", source);
        let mut versions = Vec::new();
        for (number, entry) in fs::read_dir(&self.directory).map_err(error)?.enumerate() {
            if number >= MAX_NAMES {
                return Err(self.full("read"));
            }
            let name = entry.map_err(error)?.file_name();
            let version = name
                .to_str()
                .and_then(|name| name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".cbor"));
            versions.extend(version.and_then(|version| version.parse::<u64>().ok()));
        }
        versions.sort_unstable();
        Ok(versions)
    }
}
