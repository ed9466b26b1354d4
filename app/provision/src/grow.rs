//! The data partition of a running system, grown to the end of its medium by [`gpt::plan`](crate::gpt::plan) and two calls of the kernel.
//!
//! Before the table changes, the medium is asked whether it is what it says: counterfeit cards show their beginning again behind their
//! real end, or lose what is written there. Asking writes: between the table's old second copy and the medium's end, where nothing lies on an
//! honest one. First it is marked there densely, and then read every so many MiB: whatever the distance at which addresses begin anew, one of
//! those reads shows a mark of another place. On a counterfeit one writing may have hit something; the first MiB, with the table, is looked at again afterwards and put back. A mark in the file system says that it is still to grow, from before the table changes until
//! it has grown: a power cut in between is completed by the next start.

#![allow(unsafe_code)] // the ioctls of linux/blkpg.h and ext4

use crate::gpt::{self, HEAD, SECTOR};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The file system takes no more than this of its partition: its tables are written as it grows (1 MiB in 128), and eight GiB are as many groups
/// as one block describes, so that nothing is rearranged.
pub const LARGEST: u64 = 8 << 30;
/// In the root of the file system while it is to grow.
const MARK: &str = ".growing";
/// Places behind the old end that are written and read to see that there is flash.
const PROBES: u64 = 32;
const PROBE: usize = 4096;

/// MiB that are marked: as many as lie between two reads, of which there are this many where that is neither less nor more.
const READS: u64 = 2048;
const MARKED_MIB: std::ops::RangeInclusive<u64> = 8..=64;
const MIB: u64 = 1 << 20;

/// Why the partition stays as it is; one sentence.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The medium or its table.
    #[error(transparent)]
    Refused(#[from] gpt::Refusal),
    /// It is not what it says.
    #[error(
        "the medium says {says} MiB but keeps nothing at {at} MiB: it is counterfeit or worn out; use another one"
    )]
    Counterfeit {
        /// What it says.
        says: u64,
        /// Where it failed.
        at: u64,
    },
    /// The system's reason.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<nix::Error> for GrowError {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

/// Grows the partition `name`, the last one of the block device `disk`, and the ext4 of it that is mounted at `mount`. Returns its new
/// length in bytes, and that of the file system; `None`: there was nothing to do.
///
/// # Errors
/// [`GrowError`]; what was done before a failure is completed by the next call.
pub fn grow(disk: &Path, mount: &Path, name: &str) -> Result<Option<(u64, u64)>, GrowError> {
    let mut medium = OpenOptions::new().read(true).write(true).open(disk)?;
    let length = medium.seek(SeekFrom::End(0))?;
    let look = |medium: &File| -> Result<_, GrowError> {
        let mut head = vec![0; HEAD];
        medium.read_exact_at(&mut head, 0)?;
        Ok((gpt::plan(&head, length / SECTOR as u64, name)?, head))
    };
    let (plan, head) = look(&medium)?;
    let mark = mount.join(MARK);
    if let Some(plan) = &plan {
        honest(&medium, &head, length, plan)?;
        File::create(&mark)?.sync_all()?;
        File::open(mount)?.sync_all()?;
        for (at, bytes) in &plan.writes {
            medium.write_all_at(bytes, *at)?;
            medium.sync_all()?;
        }
        forget(&medium)?;
        if look(&medium)?.0.is_some() {
            return Err(io::Error::other("the partition table reads back otherwise").into());
        }
        resize_partition(&medium, plan)?;
    } else if !mark.exists() {
        return Ok(None);
    }
    // The kernel knows how long the partition is by now: from the table at its start, or from the call above.
    let partition = match &plan {
        Some(plan) => plan.length,
        None => partition_length(mount)?,
    };
    let block = nix::sys::statvfs::statvfs(mount)?.fragment_size();
    let blocks = partition.min(LARGEST) / block;
    resize_file_system(mount, blocks)?;
    fs::remove_file(&mark)?;
    Ok(Some((partition, blocks * block)))
}

/// The medium as it is asked. The tests have one that lies.
trait Flash {
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// What was written is on the medium, and what is read comes from there.
    fn settle(&self) -> io::Result<()>;
    /// Whether more is read than what is asked for.
    fn ahead(&self, more: bool) -> io::Result<()>;
}

impl Flash for File {
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(into, at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn settle(&self) -> io::Result<()> {
        self.sync_all()?;
        forget(self)
    }

    fn ahead(&self, more: bool) -> io::Result<()> {
        let how = match more {
            true => PosixFadviseAdvice::POSIX_FADV_NORMAL,
            false => PosixFadviseAdvice::POSIX_FADV_RANDOM,
        };
        Ok(posix_fadvise(self, 0, 0, how)?)
    }
}

/// Whether there is flash behind the old end. What is written for it lies in no partition yet.
fn honest(medium: &dyn Flash, head: &[u8], length: u64, plan: &gpt::Plan) -> Result<(), GrowError> {
    let mib = |bytes: u64| bytes >> 20;
    let counterfeit = |at: u64| GrowError::Counterfeit { says: mib(length), at: mib(at) };
    let written = plan.start + plan.before;
    let mut sector = vec![0; SECTOR];
    for at in gpt::echoes(written, length) {
        medium.read(&mut sector, at + SECTOR as u64)?;
        if sector == head[SECTOR..2 * SECTOR] {
            return Err(counterfeit(at));
        }
    }
    // The old second copy is the only one there is until the new one is written.
    let from = (written + gpt::COPY).next_multiple_of(PROBE as u64);
    let room = (plan.start + plan.length).saturating_sub(from);
    if room < (PROBES + 1) * PROBE as u64 {
        return Ok(());
    }
    if let Some(at) = wraps(medium, &head[SECTOR..2 * SECTOR], length, from, room)? {
        return Err(counterfeit(at));
    }
    let places =
        (0..PROBES).map(|i| (from + (room - PROBE as u64) / (PROBES - 1) * i) / PROBE as u64 * PROBE as u64);
    let pattern =
        |at: u64| -> Vec<u8> { at.to_le_bytes().iter().map(|b| b ^ 0x5a).cycle().take(PROBE).collect() };
    for at in places.clone() {
        medium.write(&pattern(at), at)?;
    }
    medium.settle()?;
    let mut there = vec![0; PROBE];
    for at in places {
        medium.read(&mut there, at)?;
        if there != pattern(at) {
            return Err(counterfeit(at));
        }
    }
    let mut again = vec![0; head.len()];
    medium.read(&mut again, 0)?;
    if again != head {
        medium.write(head, 0)?;
        medium.settle()?;
        return Err(counterfeit(from));
    }
    Ok(())
}

/// Where addresses begin anew, if they do so before the last `from` bytes and what is marked there. What is marked lies in `room` bytes
/// behind `from`; all else is only read.
fn wraps(medium: &dyn Flash, header: &[u8], length: u64, from: u64, room: u64) -> io::Result<Option<u64>> {
    let mib = (length / READS / MIB).clamp(*MARKED_MIB.start(), *MARKED_MIB.end()).min(room / MIB / 4);
    if mib == 0 {
        return Ok(None);
    }
    let (marked, step) = (from..from + mib * MIB, mib * MIB);
    let mut piece = vec![0; usize::try_from(MIB).map_err(io::Error::other)?];
    // An end of the flash in the place that is to be marked shows the beginning behind it: seen before anything is written.
    for at in marked.clone().step_by(piece.len()) {
        medium.read(&mut piece, at)?;
        if let Some(i) = piece.chunks_exact(SECTOR).position(|sector| sector == header) {
            return Ok(Some(at + (i * SECTOR) as u64 - SECTOR as u64));
        }
    }
    let mut seed = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    for at in marked.clone().step_by(piece.len()) {
        for (sector, place) in piece.chunks_exact_mut(SECTOR).zip((at..).step_by(SECTOR)) {
            sector[..16].copy_from_slice(&seed);
            sector[16..24].copy_from_slice(&place.to_le_bytes());
        }
        medium.write(&piece, at)?;
    }
    medium.settle()?;
    // Of a thousand reads each is one of a block, not of what follows it.
    medium.ahead(false)?;
    let mut block = [0; PROBE];
    let last = (length - PROBE as u64) / PROBE as u64 * PROBE as u64;
    let grid = (1..).map(|i| from + i * step).take_while(|at| *at < last);
    let mut found = None;
    for at in grid.chain([last]) {
        medium.read(&mut block, at)?;
        let mut sectors = block.chunks_exact(SECTOR).zip((at..).step_by(SECTOR));
        found = sectors.find_map(|(sector, here)| {
            let place = u64::from_le_bytes(sector[16..24].try_into().ok()?);
            (sector[..16] == seed && place < here).then(|| here - place)
        });
        if found.is_some() {
            break;
        }
    }
    medium.ahead(true)?;
    Ok(found)
}

/// Has the next reads come from the medium.
fn forget(medium: &File) -> io::Result<()> {
    Ok(posix_fadvise(medium, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// How long the partition is that is mounted there.
fn partition_length(mount: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(mount)?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let sectors = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
    sectors.trim().parse::<u64>().map(|sectors| sectors * SECTOR as u64).map_err(io::Error::other)
}

/// `struct blkpg_partition` of linux/blkpg.h.
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg` of linux/blkpg.h.
#[repr(C)]
struct Argument {
    operation: i32,
    flags: i32,
    length: i32,
    data: *mut Partition,
}

/// `BLKPG_RESIZE_PARTITION`
const RESIZE: i32 = 3;

mod calls {
    nix::ioctl_write_ptr_bad!(block_partition, nix::request_code_none!(0x12, 105), super::Argument);
    nix::ioctl_write_ptr!(resize_ext4, b'f', 16, u64);
}

/// Tells the kernel the new length of a partition that is in use.
fn resize_partition(medium: &File, plan: &gpt::Plan) -> io::Result<()> {
    let number = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let mut partition = Partition {
        start: number(plan.start)?,
        length: number(plan.length)?,
        number: i32::try_from(plan.number).map_err(io::Error::other)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let length = i32::try_from(size_of::<Partition>()).map_err(io::Error::other)?;
    let argument = Argument { operation: RESIZE, flags: 0, length, data: &raw mut partition };
    // SAFETY: the call reads one `blkpg_ioctl_arg` and, where that points, one `blkpg_partition`; both are laid out as in linux/blkpg.h and
    // outlive the call, and the descriptor is open.
    unsafe { calls::block_partition(medium.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Has the kernel grow a mounted ext4 to so many blocks.
fn resize_file_system(mount: &Path, blocks: u64) -> io::Result<()> {
    let root = File::open(mount)?;
    // SAFETY: the call reads one 64-bit number at the address it is given, which outlives the call; the descriptor is open.
    unsafe { calls::resize_ext4(root.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_whether_there_is_flash_leaves_what_is_written_and_the_tables_old_second_copy_alone() {
        let medium = tempfile::tempfile().unwrap();
        // No sector looks like the beginning's.
        let bytes = usize::try_from(4 * MIB + gpt::COPY).unwrap();
        let old: Vec<u8> = (0..bytes).map(|i| u8::try_from(i / SECTOR % 251).unwrap()).collect();
        medium.write_all_at(&old, 0).unwrap();
        medium.set_len(64 * MIB).unwrap();
        let plan = gpt::Plan { writes: Vec::new(), number: 1, start: MIB, length: 62 * MIB, before: 3 * MIB };
        honest(&medium, &old[..HEAD], 64 * MIB, &plan).unwrap();
        let mut there = vec![0; old.len()];
        medium.read_exact_at(&mut there, 0).unwrap();
        assert!(there == old);
        let mut rest = vec![0; usize::try_from(60 * MIB - gpt::COPY).unwrap()];
        medium.read_exact_at(&mut rest, old.len() as u64).unwrap();
        assert!(rest.iter().any(|byte| *byte != 0), "it was asked");
    }

    #[test]
    fn a_beginning_that_changed_while_the_medium_was_asked_is_put_back_and_told() {
        let medium = tempfile::tempfile().unwrap();
        medium.set_len(64 * MIB).unwrap();
        // As if a probe had hit it.
        let head = vec![0x77; HEAD];
        let plan = gpt::Plan { writes: Vec::new(), number: 1, start: MIB, length: 62 * MIB, before: 3 * MIB };
        let why = honest(&medium, &head, 64 * MIB, &plan).unwrap_err();
        assert!(matches!(why, GrowError::Counterfeit { .. }), "{why}");
        let mut there = vec![0; HEAD];
        medium.read_exact_at(&mut there, 0).unwrap();
        assert!(there == head);
    }

    /// A card whose addresses begin anew at `real`, and where it was written to.
    struct Counterfeit {
        real: u64,
        sectors: std::cell::RefCell<std::collections::HashMap<u64, Vec<u8>>>,
    }

    impl Flash for Counterfeit {
        fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
            for (sector, at) in into.chunks_mut(SECTOR).zip((at..).step_by(SECTOR)) {
                match self.sectors.borrow().get(&(at % self.real)) {
                    Some(kept) => sector.copy_from_slice(kept),
                    None => sector.fill(0),
                }
            }
            Ok(())
        }

        fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
            for (sector, at) in bytes.chunks(SECTOR).zip((at..).step_by(SECTOR)) {
                self.sectors.borrow_mut().insert(at % self.real, sector.to_vec());
            }
            Ok(())
        }

        fn settle(&self) -> io::Result<()> {
            Ok(())
        }

        fn ahead(&self, _: bool) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_card_that_begins_anew_at_any_distance_is_found_before_anything_outside_the_free_place_is_written() {
        const GIB: u64 = 1 << 30;
        let says = 32 * GIB - 512;
        let before = GIB + 5 * MIB;
        let plan = gpt::Plan { writes: Vec::new(), number: 1, start: MIB, length: says - 2 * MIB, before };
        let from = MIB + before + gpt::COPY;
        let asked = |real: u64| {
            let card = Counterfeit { real, sectors: std::cell::RefCell::default() };
            let head: Vec<u8> = (0..HEAD).map(|i| u8::try_from(i / SECTOR % 251 + 1).unwrap()).collect();
            card.write(&head, 0).unwrap();
            let judged = honest(&card, &head, says, &plan);
            let hit = card.sectors.borrow().keys().filter(|at| (HEAD as u64..from).contains(*at)).count();
            (judged, hit)
        };
        assert!(asked(says).0.is_ok());
        // The third is a number that decimal makers like; the next but one lies in the place that is marked; the last are as large as may be.
        let reals = [
            7 * GIB,
            8 * GIB,
            7_000_000_000 / 512 * 512,
            2 * GIB + 513 * 512,
            from + 3 * MIB + 512,
            29 * GIB,
            says - 2 * GIB,
        ];
        for real in reals {
            let (judged, hit) = asked(real);
            let Err(GrowError::Counterfeit { at, .. }) = judged else { panic!("{real}: {judged:?}") };
            assert_eq!((at, hit), (real / MIB, 0), "{real}");
        }
    }
}
