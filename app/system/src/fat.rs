//! Where a small file of a FAT lies on the medium.
//!
//! The firmware of a Raspberry Pi reads its choice from a file, and a filesystem has no write that is there or not. One sector has: so the
//! file is looked up here, and the sector that holds it is written in its place; neither directory nor FAT changes. Only what is exactly one
//! sector long, in one cluster, at a sector's place, is found.

use crate::sectors::{SECTOR, Sectors};
use std::io;

/// Why a file has no such place.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// The partition cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It holds no FAT.
    #[error("it holds no FAT that can be used: {0}")]
    NoFat(&'static str),
    /// It holds no such file.
    #[error("there is no {0}")]
    Missing(String),
    /// The file is not one whole sector.
    #[error("{name}: {why}")]
    Place {
        /// The file.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Entries of a root directory that are looked at, and so clusters of it.
const MOST_ENTRIES: usize = 4096;
/// Bytes of a directory entry.
const ENTRY: usize = 32;
/// Attribute bits: a volume's name (and with others a long name's part), a directory.
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;

/// What the first sector says, in bytes where it is about places.
struct Geometry {
    kind: Kind,
    cluster: u64,
    fat: u64,
    fat_len: u64,
    root: u64,
    root_entries: usize,
    root_cluster: u32,
    data: u64,
    clusters: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

/// The place in bytes of the sector that is the file of this name (8.3, upper case, such as `AUTOBOOT.TXT`) in the root directory.
///
/// # Errors
/// [`FatError`].
pub fn sector_of(sectors: &(impl Sectors + ?Sized), name: &str) -> Result<u64, FatError> {
    let geometry = geometry(sectors)?;
    let wanted = short_name(name).ok_or(FatError::Missing(name.to_owned()))?;
    let wrong = |why| FatError::Place { name: name.to_owned(), why };
    let mut found = None;
    let mut left = MOST_ENTRIES;
    let mut cluster = geometry.root_cluster;
    'directory: loop {
        let (at, len) = match geometry.kind {
            Kind::Fat32 => (geometry.place(cluster)?, geometry.cluster),
            _ => (geometry.root, geometry.root_entries as u64 * ENTRY as u64),
        };
        for sector in 0..len.div_ceil(SECTOR as u64) {
            let mut bytes = [0; SECTOR];
            sectors.read(at + sector * SECTOR as u64, &mut bytes)?;
            for entry in bytes.as_chunks::<ENTRY>().0 {
                left =
                    left.checked_sub(1).ok_or(FatError::NoFat("its root directory has too many entries"))?;
                match entry[0] {
                    0 => break 'directory,
                    _ if entry[11] & VOLUME != 0 || entry[..11] != wanted => {}
                    _ if found.replace(*entry).is_some() => return Err(wrong("it is there twice")),
                    _ => {}
                }
            }
        }
        match geometry.kind {
            Kind::Fat32 => match geometry.next(sectors, cluster)? {
                Next::Cluster(next) => cluster = next,
                Next::End => break,
                Next::Bad => return Err(FatError::NoFat("its root directory has no end")),
            },
            _ => break,
        }
    }
    let entry = found.ok_or(FatError::Missing(name.to_owned()))?;
    if entry[11] & DIRECTORY != 0 {
        return Err(wrong("it is a directory"));
    }
    if u64::from(long(&entry, 28)) != SECTOR as u64 {
        return Err(wrong("it does not have exactly 512 bytes"));
    }
    let high = if geometry.kind == Kind::Fat32 { u32::from(short(&entry, 20)) } else { 0 };
    let first = high << 16 | u32::from(short(&entry, 26));
    let at = geometry.place(first).map_err(|_| wrong("it begins at a cluster that cannot be"))?;
    match geometry.next(sectors, first)? {
        Next::End => Ok(at),
        _ => Err(wrong("it does not end with its first cluster")),
    }
}

enum Next {
    Cluster(u32),
    End,
    /// Free, reserved, damaged or outside.
    Bad,
}

impl Geometry {
    /// Where a cluster lies.
    fn place(&self, cluster: u32) -> Result<u64, FatError> {
        match cluster.checked_sub(2) {
            Some(n) if n < self.clusters => Ok(self.data + u64::from(n) * self.cluster),
            _ => Err(FatError::NoFat("a cluster that cannot be")),
        }
    }

    /// What follows a cluster in its chain.
    fn next(&self, sectors: &(impl Sectors + ?Sized), cluster: u32) -> Result<Next, FatError> {
        let n = u64::from(cluster);
        let (at, width) = match self.kind {
            Kind::Fat12 => (n + n / 2, 2),
            Kind::Fat16 => (n * 2, 2),
            Kind::Fat32 => (n * 4, 4),
        };
        if at + width > self.fat_len {
            return Err(FatError::NoFat("its table is too short"));
        }
        let sector = at / SECTOR as u64 * SECTOR as u64;
        // An entry of a FAT12 may lie across two sectors.
        let mut bytes = [0; 2 * SECTOR];
        let (first, second) = bytes.split_at_mut(SECTOR);
        sectors.read(self.fat + sector, first)?;
        if at + width > sector + SECTOR as u64 {
            sectors.read(self.fat + sector + SECTOR as u64, second)?;
        }
        let within = usize::try_from(at - sector).unwrap_or(0);
        let (value, bits) = match self.kind {
            Kind::Fat12 if cluster % 2 == 1 => (u32::from(short(&bytes, within) >> 4), 12),
            Kind::Fat12 => (u32::from(short(&bytes, within) & 0xfff), 12),
            Kind::Fat16 => (u32::from(short(&bytes, within)), 16),
            Kind::Fat32 => (long(&bytes, within) & 0x0fff_ffff, 28),
        };
        Ok(if value >= (1 << bits) - 8 {
            Next::End
        } else if self.place(value).is_ok() {
            Next::Cluster(value)
        } else {
            Next::Bad
        })
    }
}

/// Reads and checks the first sector.
fn geometry(sectors: &(impl Sectors + ?Sized)) -> Result<Geometry, FatError> {
    let mut b = [0; SECTOR];
    sectors.read(0, &mut b)?;
    let no = |why| Err(FatError::NoFat(why));
    if b[510..] != [0x55, 0xaa] {
        return no("its first sector does not say so");
    }
    let sector = u64::from(short(&b, 11));
    if ![512, 1024, 2048, 4096].contains(&sector) {
        return no("a size of sectors that cannot be");
    }
    let per_cluster = u64::from(b[13]);
    if !per_cluster.is_power_of_two() {
        return no("a size of clusters that cannot be");
    }
    let reserved = u64::from(short(&b, 14));
    let fats = u64::from(b[16]);
    let root_entries = usize::from(short(&b, 17));
    let total = match short(&b, 19) {
        0 => u64::from(long(&b, 32)),
        n => u64::from(n),
    };
    let fat = match short(&b, 22) {
        0 => u64::from(long(&b, 36)),
        n => u64::from(n),
    };
    if reserved == 0 || !(1..=2).contains(&fats) || fat == 0 {
        return no("places that cannot be");
    }
    // All of it is below 2^45: no overflow.
    let root = reserved + fats * fat;
    let data = root + (root_entries as u64 * ENTRY as u64).div_ceil(sector);
    let Some(left) = total.checked_sub(data).filter(|_| total * sector <= sectors.len()) else {
        return no("it is larger than its partition");
    };
    let clusters = u32::try_from(left / per_cluster).unwrap_or(u32::MAX);
    // The number of clusters alone decides, as Microsoft's specification has it.
    let kind = match clusters {
        0 => return no("it has no clusters"),
        1..4085 => Kind::Fat12,
        4085..65525 => Kind::Fat16,
        65525..=0x0fff_fff5 => Kind::Fat32,
        _ => return no("it has too many clusters"),
    };
    if (kind == Kind::Fat32) == (root_entries != 0) {
        return no("a root directory that does not go with its size");
    }
    Ok(Geometry {
        kind,
        cluster: per_cluster * sector,
        fat: reserved * sector,
        fat_len: fat * sector,
        root: root * sector,
        root_entries,
        root_cluster: long(&b, 44),
        data: data * sector,
        clusters,
    })
}

/// The eleven bytes of a name in a directory.
fn short_name(name: &str) -> Option<[u8; 11]> {
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    let fits = (1..=8).contains(&stem.len()) && extension.len() <= 3 && name.is_ascii();
    let mut bytes = [b' '; 11];
    let (front, back) = bytes.split_at_mut(8);
    front.iter_mut().zip(stem.bytes()).for_each(|(to, from)| *to = from);
    back.iter_mut().zip(extension.bytes()).for_each(|(to, from)| *to = from);
    fits.then_some(bytes)
}

fn short(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}
