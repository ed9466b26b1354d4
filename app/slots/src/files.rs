//! Small files that are replaced whole: after a power cut the old one is there or the new one.

use crate::error::{Place, SlotError};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// Replaces a small file: writes another beside it, makes it durable, renames it, makes the name durable. After a power cut the
/// old one is there or the new one.
///
/// # Errors
/// What the system says; then the old one is there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = directory.join(name);
    let written =
        File::create(&beside).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if let Err(source) = written {
        // It would only take space; whoever comes next replaces it otherwise.
        let _ = fs::remove_file(&beside);
        return Err(source);
    }
    fs::rename(&beside, path)?;
    sync_directory(directory)
}

/// The same, for the store's own files.
pub(crate) fn keep(path: &Path, bytes: &[u8]) -> Result<(), SlotError> {
    replace(path, bytes).map_err(|source| SlotError::io(Place::File(path.to_owned()), "replace", source))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A file of at most `limit` bytes; `None` when it is not there. Of a longer one the beginning.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, SlotError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SlotError::io(Place::File(path.to_owned()), "read", error)),
    };
    let mut bytes = Vec::new();
    match file.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) => Err(SlotError::io(Place::File(path.to_owned()), "read", error)),
    }
}
