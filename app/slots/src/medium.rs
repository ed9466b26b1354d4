//! What a slot or the state lies on: a block device, a file, or what a test makes of it.

use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Direct reads and writes are aligned to this in memory and on the medium.
pub const BLOCK: usize = 4096;

/// A fixed range of bytes that survives a power cut.
///
/// A write is durable once a later [`sync`](Medium::sync) of the same medium has returned; until then a power cut may leave any part of it, in any
/// order with other such writes.
pub trait Medium: Send + Sync {
    /// Bytes it can hold.
    fn capacity(&self) -> u64;

    /// Makes sure that the first `len` bytes can be written without running out of space. Contents stay.
    ///
    /// # Errors
    /// `ENOSPC` when they cannot.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Fills `into` from `at` on; what was never written reads as zeros.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::UnexpectedEof`] past the end.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;

    /// As [`read`](Medium::read), but from the medium and not from a cache in memory.
    ///
    /// # Errors
    /// As for `read`.
    fn read_back(&self, at: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WriteZero`] past the end.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes one aligned block and returns when it is durable, without making anything else so.
    ///
    /// # Errors
    /// As for `write`.
    fn write_through(&self, at: u64, block: &[u8; BLOCK]) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What the system says. What was written before may then be there or not.
    fn sync(&self) -> io::Result<()>;
}

/// Bytes of one direct read, so that its buffer stays small.
const DIRECT_READ: usize = 256 * 1024;

/// A block device or a regular file.
///
/// Reading back uses `O_DIRECT`; where the filesystem has none (older tmpfs) the cached pages are synced and dropped first. The state is
/// written with `O_DIRECT | O_DSYNC`, else with `O_SYNC`. What a device keeps in a cache of its own is its secret: it is
/// told to flush it (`fdatasync`), and no program can do more.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
    direct: Option<File>,
    through: Option<Through>,
    capacity: u64,
    regular: bool,
}

/// A file whose writes are durable when they return.
#[derive(Debug)]
enum Through {
    /// `O_DIRECT | O_DSYNC`
    Direct(File),
    /// `O_SYNC`
    Cached(File),
}

impl FileMedium {
    /// Opens a block device, whose size is its capacity, or a regular file, which may grow to `capacity` bytes and is created when
    /// it is not there. A medium that can only be read is opened for reading.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidInput`] when it is neither a block device nor a regular file.
    pub fn open(path: &Path, capacity: u64) -> io::Result<Self> {
        let writable = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let (mut file, writable) = match writable {
            Ok(file) => (file, true),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
                ) =>
            {
                (File::open(path)?, false)
            }
            Err(error) => return Err(error),
        };
        let kind = file.metadata()?.file_type();
        let regular = kind.is_file();
        let capacity = if kind.is_block_device() {
            file.seek(SeekFrom::End(0))?
        } else if regular {
            capacity
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a block device nor a regular file",
            ));
        };
        if regular
            && writable
            && let Some(directory) = path.parent()
        {
            // Its name is durable too.
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            File::open(directory)?.sync_all()?;
        }
        let with = |flags: OFlag, write: bool| {
            OpenOptions::new().read(true).write(write).custom_flags(flags.bits()).open(path)
        };
        let direct = with(OFlag::O_DIRECT, false).ok();
        let through = if !writable {
            None
        } else if let Ok(file) = with(OFlag::O_DIRECT | OFlag::O_DSYNC, true) {
            Some(Through::Direct(file))
        } else {
            Some(Through::Cached(with(OFlag::O_SYNC, true)?))
        };
        Ok(Self { file, direct, through, capacity, regular })
    }

    /// Whether reading back goes around the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Reads as much as there is; zeros after the end of a regular file.
    fn fill(&self, file: &File, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match file.read_at(&mut into[done..], at + done as u64) {
                Ok(0) if self.regular => {
                    into[done..].fill(0);
                    return Ok(());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn within(&self, at: u64, len: usize, error: io::ErrorKind) -> io::Result<()> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.capacity => Ok(()),
            _ => Err(error.into()),
        }
    }
}

impl Medium for FileMedium {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.within(len, 0, io::ErrorKind::StorageFull)?;
        if !self.regular || len == 0 {
            return Ok(());
        }
        if self.through.is_none() {
            return Err(nix::errno::Errno::EROFS.into());
        }
        let end = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        match fallocate(&self.file, FallocateFlags::empty(), 0, end) {
            Ok(()) => {}
            Err(nix::errno::Errno::EOPNOTSUPP) => {
                // Then by hand, after what the file has already.
                let zeros = vec![0; 1 << 20];
                let mut at = self.file.metadata()?.len();
                while at < len {
                    let part = usize::try_from(len - at).unwrap_or(usize::MAX).min(zeros.len());
                    self.file.write_all_at(&zeros[..part], at)?;
                    at += part as u64;
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.file.sync_all()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.within(at, into.len(), io::ErrorKind::UnexpectedEof)?;
        self.fill(&self.file, at, into)
    }

    fn read_back(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.within(at, into.len(), io::ErrorKind::UnexpectedEof)?;
        let Some(direct) = &self.direct else {
            self.file.sync_data()?;
            posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            return self.fill(&self.file, at, into);
        };
        let block = BLOCK as u64;
        let mut memory = Aligned::new(DIRECT_READ + 2 * BLOCK);
        let mut at = at;
        for part in into.chunks_mut(DIRECT_READ) {
            let start = at / block * block;
            let skip = usize::try_from(at - start).unwrap_or(0);
            // A device's size is a multiple of its own blocks, not always of ours.
            let aligned = (skip + part.len()).next_multiple_of(BLOCK);
            let whole = memory.slice(aligned);
            match self.fill_direct(direct, start, whole, skip + part.len()) {
                Ok(()) => part.copy_from_slice(&whole[skip..skip + part.len()]),
                Err(error) => return Err(error),
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.within(at, bytes.len(), io::ErrorKind::WriteZero)?;
        if self.through.is_none() {
            return Err(nix::errno::Errno::EROFS.into());
        }
        self.file.write_all_at(bytes, at)
    }

    fn write_through(&self, at: u64, block: &[u8; BLOCK]) -> io::Result<()> {
        self.within(at, BLOCK, io::ErrorKind::WriteZero)?;
        self.exists()?;
        match &self.through {
            None => Err(nix::errno::Errno::EROFS.into()),
            Some(Through::Cached(file)) => file.write_all_at(block, at),
            Some(Through::Direct(file)) => {
                let mut memory = Aligned::new(BLOCK);
                let aligned = memory.slice(BLOCK);
                aligned.copy_from_slice(block);
                // One system call, never a rest: a block that was written in part is reported as an error.
                match file.write_at(aligned, at)? {
                    BLOCK => Ok(()),
                    _ => Err(io::ErrorKind::WriteZero.into()),
                }
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.through.is_none() {
            return Ok(());
        }
        self.file.sync_data()?;
        self.exists()
    }
}

impl FileMedium {
    /// A file without a name is gone at the next start, however durable its blocks are.
    fn exists(&self) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt as _;
        if self.regular && self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the file was deleted"));
        }
        Ok(())
    }

    /// Reads aligned blocks until `needed` bytes are there; the end of the file may come in the middle of the last block.
    fn fill_direct(&self, direct: &File, at: u64, into: &mut [u8], needed: usize) -> io::Result<()> {
        let mut done = 0;
        while done < needed {
            match direct.read_at(&mut into[done..], at + done as u64) {
                Ok(0) if self.regular => {
                    into[done..].fill(0);
                    return Ok(());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // The end of a file whose length is no multiple of a block.
                Ok(read) if read % BLOCK != 0 && self.regular => {
                    into[done + read..].fill(0);
                    return Ok(());
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Memory that begins at a block boundary: a vector with a head to skip.
struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK];
        let skip = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, skip }
    }

    fn slice(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + len]
    }
}
