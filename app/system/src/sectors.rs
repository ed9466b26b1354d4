//! Single sectors of a partition: read from the medium, written durably. A boot loader's choice is one of them.

use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// What a boot loader's choice lies on.
pub trait Sectors: Send {
    /// Bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads whole sectors from the medium, not from a cache in memory.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::UnexpectedEof`] past the end.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes one sector with one write and returns when it is durable.
    ///
    /// # Errors
    /// What the system says.
    fn write(&self, at: u64, sector: &[u8; SECTOR]) -> io::Result<()>;
}

/// Writes one sector and reads it back from the medium.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidData`] when something else is there afterwards.
pub fn write_proven(sectors: &(impl Sectors + ?Sized), at: u64, sector: &[u8; SECTOR]) -> io::Result<()> {
    sectors.write(at, sector)?;
    let mut found = [0; SECTOR];
    sectors.read(at, &mut found)?;
    if found == *sector {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the medium gives something else back than was written"))
}

/// A block device, or a file in its place.
#[derive(Debug)]
pub struct FileSectors {
    file: File,
    len: u64,
    writable: bool,
}

/// What direct reads and writes are aligned to in memory: the largest block of any medium.
const ALIGNED: usize = 4096;

impl FileSectors {
    /// Opens it; with `write` also for writing.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, write: bool) -> io::Result<Self> {
        let with =
            |flags: OFlag| OpenOptions::new().read(true).write(write).custom_flags(flags.bits()).open(path);
        // A filesystem without direct I/O has none of its own cache to get around on a device.
        let mut file = with(OFlag::O_DIRECT | OFlag::O_DSYNC).or_else(|_| with(OFlag::O_SYNC))?;
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len, writable: write })
    }
}

impl Sectors for FileSectors {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut memory = vec![0; into.len() + ALIGNED];
        let skip = memory.as_ptr().align_offset(ALIGNED);
        let whole =
            memory.get_mut(skip..).and_then(|m| m.get_mut(..into.len())).ok_or(io::ErrorKind::OutOfMemory)?;
        self.file.read_exact_at(whole, at)?;
        into.copy_from_slice(whole);
        Ok(())
    }

    fn write(&self, at: u64, sector: &[u8; SECTOR]) -> io::Result<()> {
        if !self.writable {
            return Err(nix::errno::Errno::EROFS.into());
        }
        // Never makes a file longer: it stands for a partition.
        if at.checked_add(SECTOR as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut memory = vec![0; SECTOR + ALIGNED];
        let skip = memory.as_ptr().align_offset(ALIGNED);
        let whole =
            memory.get_mut(skip..).and_then(|m| m.get_mut(..SECTOR)).ok_or(io::ErrorKind::OutOfMemory)?;
        whole.copy_from_slice(sector);
        // One system call: a rest would be a second write.
        match self.file.write_at(whole, at)? {
            SECTOR => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_is_written_where_it_belongs_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("partition");
        std::fs::write(&path, vec![7; 4 * SECTOR]).unwrap();
        let sectors = FileSectors::open(&path, true).unwrap();
        write_proven(&sectors, SECTOR as u64, &[1; SECTOR]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.iter().enumerate().all(|(at, &b)| b == if at / SECTOR == 1 { 1 } else { 7 }));
        let past = sectors.write(4 * SECTOR as u64, &[1; SECTOR]).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::WriteZero);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 * SECTOR as u64);
        let only_read = FileSectors::open(&path, false).unwrap();
        assert!(only_read.write(0, &[1; SECTOR]).is_err());
        assert!(only_read.read(4 * SECTOR as u64, &mut [0; SECTOR]).is_err());
    }
}
