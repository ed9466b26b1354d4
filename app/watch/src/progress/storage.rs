//! A small write to the data directory, on a thread that may hang with it.

use super::Storage;
use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

/// What is written, again and again in the same place: one block of the medium.
const FILE: &str = "progress.check";

/// Writes once and waits until it is on the medium.
pub fn write(dir: &Path, number: u64) -> Storage {
    if !dir.is_dir() {
        return Storage::Absent;
    }
    match try_write(dir, number) {
        Ok(()) => Storage::Done,
        Err(e) => Storage::Failed(format!("the data directory {} cannot be written: {e}", dir.display())),
    }
}

fn try_write(dir: &Path, number: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(FILE))?;
    // As long every time: no block is given back or asked for.
    file.write_all(format!("{number:020}\n").as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_directory_a_missing_one_and_one_that_cannot_be_written_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write(dir.path(), 1), Storage::Done);
        assert_eq!(write(dir.path(), 2), Storage::Done);
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), format!("{:020}\n", 2));
        assert_eq!(write(&dir.path().join("nowhere"), 3), Storage::Absent);
        let taken = dir.path().join("taken");
        std::fs::create_dir_all(taken.join(FILE)).unwrap();
        let Storage::Failed(why) = write(&taken, 4) else { panic!("written") };
        assert!(why.contains("taken"), "{why}");
    }
}
