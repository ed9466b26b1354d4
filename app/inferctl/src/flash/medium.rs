//! What is written to: a device opened past the page cache, or a file.

use super::{disks::Identity, error::FlashError};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise},
    libc,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// How much is moved at once.
pub const PIECE: usize = 1 << 20;
/// The alignment of memory and offsets that every device takes for direct access.
const ALIGN: usize = 4096;
/// Without direct access, how much may wait in the page cache.
const DIRTY: u64 = 16 << 20;

/// A place for bytes. The tests have one that lies.
pub trait Medium {
    /// Bytes.
    fn size(&self) -> u64;
    /// Writes all of `data`.
    fn write(&mut self, data: &[u8], at: u64) -> io::Result<()>;
    /// Reads from the medium itself, not from a cache of the system.
    fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// Everything that was written is on the medium when this returns.
    fn sync(&mut self) -> io::Result<()>;
    /// Whether its size is only what it says; a file's is known.
    fn may_lie(&self) -> bool {
        true
    }
}

/// Memory that direct access takes.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let memory = vec![0; PIECE + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start }
    }

    fn part(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + length]
    }
}

/// A block device or a regular file.
pub struct Target {
    file: File,
    size: u64,
    direct: bool,
    dirty: u64,
    buffer: Aligned,
}

impl Target {
    /// Opens what was confirmed, and only that: exclusively (nothing mounts it or holds it), and when it is open, number, size,
    /// serial and the kernel's count of media are compared with what the person saw.
    ///
    /// # Errors
    /// [`FlashError::Open`], [`FlashError::Swapped`].
    pub fn device(
        path: &Path,
        confirmed: &Identity,
        now: impl FnOnce() -> Option<Identity>,
    ) -> Result<Self, FlashError> {
        let swapped = |why: &str| FlashError::Swapped { device: path.to_owned(), why: why.into() };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let flags = OFlag::O_EXCL | OFlag::O_DIRECT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut file = options.custom_flags(flags.bits()).open(path).map_err(|source| {
            let hint = match source.raw_os_error() {
                Some(libc_ebusy) if libc_ebusy == nix::errno::Errno::EBUSY as i32 => {
                    ", something uses it: unmount it everywhere"
                }
                Some(code)
                    if code == nix::errno::Errno::EACCES as i32
                        || code == nix::errno::Errno::EPERM as i32 =>
                {
                    ", run it as root (sudo), and look at the card's write protection"
                }
                Some(code) if code == nix::errno::Errno::EROFS as i32 => {
                    ", move the switch at the card's edge or take another adapter"
                }
                _ => "",
            };
            FlashError::Open { device: path.to_owned(), source, hint }
        })?;
        let open_failed = |source| FlashError::Open { device: path.to_owned(), source, hint: "" };
        let status = file.metadata().map_err(open_failed)?;
        if !status.file_type().is_block_device() || status.rdev() != confirmed.number {
            return Err(swapped("its name leads to another device"));
        }
        let size = file.seek(SeekFrom::End(0)).map_err(open_failed)?;
        if size != confirmed.size {
            return Err(swapped("its size is another one"));
        }
        if now().as_ref() != Some(confirmed) {
            return Err(swapped("another medium is in it"));
        }
        Ok(Self { file, size, direct: true, dirty: 0, buffer: Aligned::new() })
    }

    /// A regular file of a fixed size.
    ///
    /// # Errors
    /// [`FlashError::Open`].
    pub fn file(path: &Path) -> Result<Self, FlashError> {
        let failed = |source| FlashError::Open { device: path.to_owned(), source, hint: "" };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        // QEMU locks bytes of a medium in this way, and so does another flash. A file system that knows no locks has none.
        #[allow(clippy::cast_possible_truncation)]
        // small numbers, which the structure has shorter than the call
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        if let Err(Errno::EAGAIN | Errno::EACCES) = fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
            let why = "somebody is at work with it: an emulated board (scripts/run --card), or another flash"
                .to_owned();
            return Err(FlashError::Refused { device: path.to_owned(), code: "in-use", why });
        }
        let size = file.metadata().map_err(failed)?.len();
        Ok(Self { file, size, direct: false, dirty: 0, buffer: Aligned::new() })
    }

    /// Makes sure that what is read next comes from the medium.
    fn forget(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.dirty = 0;
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
    }

    /// Calls `act` for every piece of `at..at + length` with the offset in it and the aligned span around it.
    fn spans(at: u64, length: usize, size: u64) -> impl Iterator<Item = Span> {
        let (end, mut from, block) = (at + length as u64, at, ALIGN as u64);
        std::iter::from_fn(move || {
            if from >= end {
                return None;
            }
            let start = from / block * block;
            let until = (start + PIECE as u64).min(end);
            let stop = until.next_multiple_of(block).min(size.max(until));
            let span = Span { start, stop, from, until };
            from = until;
            Some(span)
        })
    }
}

/// Of `start..stop`, which direct access takes, `from..until` is meant.
struct Span {
    start: u64,
    stop: u64,
    from: u64,
    until: u64,
}

/// Offsets within one piece.
#[allow(clippy::cast_possible_truncation)] // a piece is 1 MiB
fn within(n: u64) -> usize {
    n as usize
}

impl Medium for Target {
    fn size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        if !self.direct {
            self.file.write_all_at(data, at)?;
            self.dirty += data.len() as u64;
            if self.dirty >= DIRTY {
                self.file.sync_data()?;
                self.dirty = 0;
            }
            return Ok(());
        }
        for span in Self::spans(at, data.len(), self.size) {
            let part = self.buffer.part(within(span.stop - span.start));
            if span.from != span.start || span.until != span.stop {
                self.file.read_exact_at(part, span.start)?;
            }
            part[within(span.from - span.start)..within(span.until - span.start)]
                .copy_from_slice(&data[within(span.from - at)..within(span.until - at)]);
            self.file.write_all_at(part, span.start)?;
        }
        Ok(())
    }

    fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<()> {
        if !self.direct {
            if self.dirty > 0 {
                self.forget()?;
            }
            return self.file.read_exact_at(into, at);
        }
        for span in Self::spans(at, into.len(), self.size) {
            let part = self.buffer.part(within(span.stop - span.start));
            self.file.read_exact_at(part, span.start)?;
            into[within(span.from - at)..within(span.until - at)]
                .copy_from_slice(&part[within(span.from - span.start)..within(span.until - span.start)]);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.direct { self.file.sync_all() } else { self.forget() }
    }

    fn may_lie(&self) -> bool {
        !self.file.metadata().is_ok_and(|found| found.is_file())
    }
}
