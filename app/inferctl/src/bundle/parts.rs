//! What the parts of a system say of themselves: a boot partition's command line names the slot that it starts, where each slot has its
//! own. What cannot be read says nothing, and is left to the device that is to start it.

use fatfs::{FileSystem, FsOptions};
use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// The longest command line that is read.
const MAX: u64 = 64 << 10;

/// A file in the place of another one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// `boot-a` and `boot-b` were taken for each other, or one of them for both.
    #[error(
        "{file}: its cmdline.txt starts slot {says}, and it was given for slot {given}: are --boot-a and --boot-b swapped?"
    )]
    Slot { file: PathBuf, says: char, given: char },
    /// A board whose slots have a boot partition each has two of them.
    #[error(
        "{file}: its cmdline.txt starts slot {says} alone: boards like this have two, --boot-a and --boot-b"
    )]
    OneOfTwo { file: PathBuf, says: char },
    /// A FAT in place of the root.
    #[error("{file} is a FAT, as boot partitions are: the root filesystem belongs there")]
    Root { file: PathBuf },
}

/// Refuses what contradicts its place. `given`: the slot that it was named for, none where one fits both.
///
/// # Errors
/// [`Misplaced`].
pub fn boot(file: &Path, given: Option<char>) -> Result<(), Misplaced> {
    let Some(says) = slot(file) else { return Ok(()) };
    let file = file.to_owned();
    match given {
        Some(given) if given == says => Ok(()),
        Some(given) => Err(Misplaced::Slot { file, says, given }),
        None => Err(Misplaced::OneOfTwo { file, says }),
    }
}

/// Refuses a FAT as a root filesystem.
///
/// # Errors
/// [`Misplaced::Root`].
pub fn root(file: &Path) -> Result<(), Misplaced> {
    let mut head = Vec::new();
    let read = File::open(file).and_then(|open| open.take(512).read_to_end(&mut head));
    let fat = |at: usize, name: &[u8]| head.get(at..at + name.len()) == Some(name);
    if read.is_ok() && (fat(82, b"FAT32") || fat(54, b"FAT1")) && head.get(510..512) == Some(&[0x55, 0xaa]) {
        return Err(Misplaced::Root { file: file.to_owned() });
    }
    Ok(())
}

/// The slot that a boot partition's command line names.
fn slot(file: &Path) -> Option<char> {
    let text = command_line(file).ok()?;
    let word = text.split_whitespace().find_map(|word| word.strip_prefix("inferd.slot="))?;
    word.chars().next()
}

fn command_line(file: &Path) -> io::Result<String> {
    let fat = FileSystem::new(File::open(file)?, FsOptions::new())?;
    let mut bytes = Vec::new();
    fat.root_dir().open_file("cmdline.txt")?.take(MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fatfs::{FormatVolumeOptions, format_volume};
    use std::{fs::OpenOptions, io::Write as _};

    fn fat(path: &Path, cmdline: Option<&str>) -> PathBuf {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(1 << 20).unwrap();
        format_volume(&file, FormatVolumeOptions::new()).unwrap();
        let made = FileSystem::new(&file, FsOptions::new()).unwrap();
        if let Some(text) = cmdline {
            made.root_dir().create_file("cmdline.txt").unwrap().write_all(text.as_bytes()).unwrap();
        }
        path.to_owned()
    }

    #[test]
    fn a_boot_partition_is_refused_in_the_place_of_another_slots_and_where_one_is_for_both() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let a = fat(&at("a"), Some("console=ttyS0 root=PARTUUID=1 ro inferd.slot=a\n"));
        let b = fat(&at("b"), Some("console=ttyS0 root=PARTUUID=2 ro inferd.slot=b\n"));
        let both = fat(&at("both"), Some("console=ttyAMA0 panic=10\n"));
        assert_eq!((boot(&a, Some('a')), boot(&b, Some('b')), boot(&both, None)), (Ok(()), Ok(()), Ok(())));
        let said = boot(&b, Some('a')).unwrap_err().to_string();
        assert!(said.contains("starts slot b, and it was given for slot a"), "{said}");
        assert!(boot(&a, None).unwrap_err().to_string().contains("--boot-a and --boot-b"));
        let silent = fat(&at("silent"), None);
        std::fs::write(at("no fat"), "nothing").unwrap();
        for unknown in [silent, at("no fat"), at("is not there")] {
            assert_eq!((boot(&unknown, Some('a')), boot(&unknown, None)), (Ok(()), Ok(())), "{unknown:?}");
        }
        assert_eq!(root(&a), Err(Misplaced::Root { file: a }));
        std::fs::write(at("root"), b"hsqs".repeat(256)).unwrap();
        assert_eq!((root(&at("root")), root(&at("is not there"))), (Ok(()), Ok(())));
    }
}
