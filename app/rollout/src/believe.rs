//! Whom a device believes: the roots of its image, then the documents that were accepted since, each signed by the one before.

use crate::updater::StartError;
use inferd_bundle::{Refusal, Root, Trust};
use inferd_slots::{Documents, Loaded, MAX_DOCUMENT};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Whom a device with these root documents, oldest first, and this directory of accepted ones believes; nobody without a root. For who is not
/// the updater: nothing is written, and nothing is compared with what the updater's state has seen.
///
/// # Errors
/// [`StartError`] when a document cannot be read, or one of the image's does not verify.
pub fn believed(
    roots: &[PathBuf],
    accepted: &Path,
    allow_dev: bool,
    warn: &mut dyn FnMut(String),
) -> Result<Option<Trust>, StartError> {
    // Opening makes it, and it is not ours to make.
    let loaded = match accepted.is_dir() {
        true => Documents::open(accepted.to_owned()).and_then(|documents| documents.load()),
        false => Ok(Loaded::default()),
    };
    chain(roots, &loaded.map_err(|e| StartError::Storage(e.to_string()))?, allow_dev, warn)
}

/// The same with documents that were loaded.
pub(crate) fn chain(
    roots: &[PathBuf],
    loaded: &Loaded,
    allow_dev: bool,
    warn: &mut dyn FnMut(String),
) -> Result<Option<Trust>, StartError> {
    let refused =
        |path: &Path, e: &dyn std::fmt::Display| StartError::Trust(format!("{}: {e}", path.display()));
    let mut roots = roots.iter();
    let Some(anchor) = roots.next() else { return Ok(None) };
    let bytes = read_document(anchor).map_err(|e| refused(anchor, &e))?;
    let root = Root::from_envelope(&bytes).map_err(|e| refused(anchor, &e))?;
    let mut trust = Trust::new(root, allow_dev);
    // A list was judged by the root of its time, so it is tried at each.
    let mut open = loaded.revocations.as_ref().map(|(_, bytes)| bytes.as_slice());
    let mut revoke = |trust: &mut Trust| {
        if open.is_some_and(|list| trust.revoke(list).is_ok()) {
            open = None;
        }
    };
    revoke(&mut trust);
    for path in roots {
        let bytes = read_document(path).map_err(|e| refused(path, &e))?;
        match trust.rotate(&bytes) {
            Ok(()) => revoke(&mut trust),
            Err(Refusal::RootReplayed { .. }) => {}
            Err(e) => return Err(refused(path, &e)),
        }
    }
    for (version, bytes) in &loaded.roots {
        match trust.rotate(bytes) {
            Ok(()) => revoke(&mut trust),
            Err(Refusal::RootReplayed { .. }) => {}
            Err(e) => warn(format!("root {version} on this device is not used: {e}")),
        }
    }
    Ok(Some(trust))
}

/// A root document or a permit.
pub(crate) fn read_document(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
