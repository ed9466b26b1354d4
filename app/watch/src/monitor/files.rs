//! Small files of the kernel.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most that is read of one: the mounts of a machine with many containers are the longest.
const LONGEST: u64 = 256 << 10;

/// Its text; `None` when it cannot be read (`EAGAIN` of a sensor that sleeps, a device that is gone) or is no text.
pub(crate) fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The names in a directory, in order; none when it cannot be read.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}
