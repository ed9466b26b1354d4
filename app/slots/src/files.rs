//! Small files that are replaced whole: after a power cut the old one is there or the new one.

use crate::error::{Place, SlotError};
use nix::fcntl::OFlag;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a small file: writes another beside it, makes it durable, renames it, makes the name durable. After a power cut the
/// old one is there or the new one. A link in the place of either is replaced, not followed.
///
/// # Errors
/// What the system says; then the old one is there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = directory.join(name);
    let create = || OpenOptions::new().write(true).create_new(true).open(&beside);
    let created = match create() {
        // What a power cut left, or what somebody else put there.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&beside).and_then(|()| create())
        }
        created => created,
    };
    let written = created.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
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

/// A regular file of at most `limit` bytes; `None` when it is not there. Of a longer one the beginning. Whoever may write in its directory can put
/// no link there that is followed, and no pipe that is waited for.
///
/// # Errors
/// What the system says; also when it is something else than a regular file.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The same, of the store's own files.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, SlotError> {
    read_regular(path, limit).map_err(|error| SlotError::io(Place::File(path.to_owned()), "read", error))
}
