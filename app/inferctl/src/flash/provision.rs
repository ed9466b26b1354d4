//! The configuration put on the card's boot FAT, read back from the medium; and beforehand on the image's, in memory.

use super::{error::FlashError, image::Image, medium::Medium};
use fatfs::{FileSystem, FsOptions};
use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// What it is called there.
pub const NAME: &str = "inferd.toml";
/// The largest configuration: a page of text, not a mistake in the file's name.
pub const MAX: u64 = 256 << 10;
/// The partition it is put on.
const PARTITION: &str = "boot";
/// Sectors of the partition table of an image.
const SECTOR: u64 = 512;
/// The FAT is read and written in pieces of this size.
const BLOCK: u64 = 64 << 10;

/// Puts `text` on the FAT, and reads it from the medium again.
///
/// # Errors
/// [`FlashError::Provision`].
pub fn put(path: &Path, medium: &mut dyn Medium, text: &[u8]) -> Result<(), FlashError> {
    let failed = |why: String| FlashError::Provision { path: path.to_owned(), why };
    let (start, size) = boot(medium).map_err(|e| failed(e.to_string()))?;
    let mut region = Region::new(medium, start, size);
    write(&mut region, text)
        .and_then(|()| region.store())
        .map_err(|e| failed(format!("the card's boot partition: {e}")))?;
    region.blocks.clear();
    region.at = 0;
    let mut found = Vec::new();
    FileSystem::new(&mut region, FsOptions::new())
        .and_then(|fat| fat.root_dir().open_file(NAME)?.read_to_end(&mut found))
        .map_err(|e| failed(format!("it cannot be read back: {e}")))?;
    if found == text { Ok(()) } else { Err(failed("it reads back different".into())) }
}

/// Puts `text` on the FAT of an image as [`put`] will on the card, and keeps nothing of it: an image that cannot take it is known before
/// a card is written to.
///
/// # Errors
/// [`FlashError::Provision`].
pub fn rehearse(path: &Path, image: &Image, text: &[u8]) -> Result<(), FlashError> {
    let failed = |why: String| FlashError::Provision { path: path.to_owned(), why };
    let mut medium = Rehearsal(image);
    let (start, size) = boot(&mut medium).map_err(|e| failed(e.to_string()))?;
    write(&mut Region::new(&mut medium, start, size), text)
        .map_err(|e| failed(format!("the image's boot partition cannot take it: {e}")))
}

/// An image as a medium that nothing is written to.
struct Rehearsal<'a>(&'a Image);

impl Medium for Rehearsal<'_> {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn write(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.0.stream().fill(at, into).map_err(|e| io::Error::other(e.to_string()))
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Into what the region holds.
fn write(region: &mut Region<'_>, text: &[u8]) -> io::Result<()> {
    let fat = FileSystem::new(region, FsOptions::new())?;
    {
        let mut file = fat.root_dir().create_file(NAME)?;
        file.truncate()?;
        file.write_all(text)?;
        file.flush()?;
    }
    fat.unmount()
}

/// Where the boot partition of the medium begins, and its bytes.
fn boot(medium: &mut dyn Medium) -> io::Result<(u64, u64)> {
    let bad = |why: &str| io::Error::other(format!("the image's partition table {why}"));
    let mut header = [0; 512];
    medium.read(&mut header, SECTOR)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    if &header[..8] != b"EFI PART" {
        return Err(bad("is no GPT"));
    }
    let (table, count, width) = (number(&header[72..80]), number(&header[80..84]), number(&header[84..88]));
    if !(1..=1024).contains(&count) || !(128..=4096).contains(&width) || table > 1 << 20 {
        return Err(bad("is damaged"));
    }
    let mut entry = vec![0; usize::try_from(width).unwrap_or(128)];
    for n in 0..count {
        medium.read(&mut entry, table * SECTOR + n * width)?;
        let name: Vec<u16> = entry[56..128].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        if String::from_utf16_lossy(&name).trim_end_matches('\0') == PARTITION {
            let (first, last) = (number(&entry[32..40]), number(&entry[40..48]));
            let end = last.checked_add(1).and_then(|n| n.checked_mul(SECTOR));
            return match (first.checked_mul(SECTOR), end) {
                (Some(start), Some(end)) if start < end && end <= medium.size() => Ok((start, end - start)),
                _ => Err(bad("is damaged")),
            };
        }
    }
    Err(bad("has no partition called boot"))
}

/// A partition as a file: what is touched is held, and written back once.
struct Region<'a> {
    medium: &'a mut dyn Medium,
    start: u64,
    size: u64,
    at: u64,
    /// Blocks by their number, and whether they were changed.
    blocks: BTreeMap<u64, (Vec<u8>, bool)>,
}

impl<'a> Region<'a> {
    fn new(medium: &'a mut dyn Medium, start: u64, size: u64) -> Self {
        Self { medium, start, size, at: 0, blocks: BTreeMap::new() }
    }

    /// The rest of the block at the cursor.
    fn here(&mut self, change: bool) -> io::Result<&mut [u8]> {
        let (block, inside) = (self.at / BLOCK, usize::try_from(self.at % BLOCK).unwrap_or(0));
        if self.at >= self.size {
            return Ok(&mut []);
        }
        if !self.blocks.contains_key(&block) {
            let length = BLOCK.min(self.size - block * BLOCK);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            self.medium.read(&mut bytes, self.start + block * BLOCK)?;
            self.blocks.insert(block, (bytes, false));
        }
        let (bytes, changed) = self.blocks.get_mut(&block).ok_or(io::ErrorKind::NotFound)?;
        *changed |= change;
        Ok(&mut bytes[inside..])
    }

    fn store(&mut self) -> io::Result<()> {
        for (block, (bytes, changed)) in &self.blocks {
            if *changed {
                self.medium.write(bytes, self.start + block * BLOCK)?;
            }
        }
        self.medium.sync()
    }
}

impl Read for Region<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let here = self.here(false)?;
        let n = here.len().min(into.len());
        into[..n].copy_from_slice(&here[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Region<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let here = self.here(true)?;
        let n = here.len().min(from.len());
        here[..n].copy_from_slice(&from[..n]);
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Region<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
