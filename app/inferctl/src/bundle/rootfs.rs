//! Which system a root filesystem says it is: `/etc/os-release` of a squashfs, read from the file.
//!
//! Its format is that of squashfs 4.0 (the kernel's `Documentation/filesystems/squashfs.rst`, and squashfs-tools). Only what leads to one
//! small file is read, and only where it is packed as images of ours are (zstd) or with gzip.

use inferd_system::Image;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

const MAGIC: &[u8] = b"hsqs";
/// The most that a block of metadata unpacks to.
const METADATA: u64 = 8192;
/// The largest directory and file that are read.
const MAX: u64 = 256 << 10;
/// The smallest and the largest block of data that there is.
const MIN_BLOCK: u64 = 4096;
const MAX_BLOCK: u64 = 1 << 20;
/// In place of the number of a fragment.
const NO_FRAGMENT: u32 = u32::MAX;
/// Entries of the table of fragments in a block of metadata.
const FRAGMENTS: u32 = 512;

/// A bundle would be called otherwise than the system in it calls itself.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OtherName {
    /// By another product. The device that runs it would refuse the next one.
    #[error(
        "the root filesystem says that it is a system called {image}, the bundle would be one of {bundle}: build the image with \
         --system-product {bundle}, or the bundle with --product {image}"
    )]
    Product {
        /// What the root filesystem says.
        image: String,
        /// What was asked for.
        bundle: String,
    },
    /// By another version. The device would keep the higher of both as its floor.
    #[error(
        "the root filesystem says that it is version {image}, the bundle would be version {bundle}: build the image with \
         --system-version {bundle}, or the bundle with --version {image}"
    )]
    Version {
        /// What the root filesystem says.
        image: u64,
        /// What was asked for.
        bundle: u64,
    },
}

/// Why it cannot be said which system this is.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// Another file system, or none.
    #[error("it is no squashfs")]
    Other,
    /// A squashfs that is packed in a way that is not known here.
    #[error("its compression (number {0} of squashfs) is not read here")]
    Packing(u16),
    /// It says nothing of this.
    #[error("its /etc/os-release has no IMAGE_ID and IMAGE_VERSION (scripts/image --system-version)")]
    Silent,
    /// It does not hold together, or cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Whether a bundle may be called so.
///
/// # Errors
/// [`OtherName`].
pub fn compare(image: &Image, product: &str, version: u64) -> Result<(), OtherName> {
    if image.product != product {
        return Err(OtherName::Product { image: image.product.clone(), bundle: product.to_owned() });
    }
    if image.version != version {
        return Err(OtherName::Version { image: image.version, bundle: version });
    }
    Ok(())
}

/// Which system the file says it is.
///
/// # Errors
/// [`Unread`].
pub fn image(path: &Path) -> Result<Image, Unread> {
    read(File::open(path)?)
}

/// The same of anything that can be read like a file.
///
/// # Errors
/// [`Unread`].
pub fn read(file: impl Read + Seek) -> Result<Image, Unread> {
    let text = Squashfs::open(file)?.os_release()?;
    Image::parse(&String::from_utf8_lossy(&text)).ok_or(Unread::Silent)
}

fn broken(what: &str) -> Unread {
    io::Error::new(io::ErrorKind::InvalidData, what).into()
}

/// The bytes at a place of a record that was read whole.
fn at<const N: usize>(record: &[u8], place: usize) -> Result<[u8; N], Unread> {
    let bytes = record.get(place..place + N).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| broken("a record is too short"))
}

fn u16_at(record: &[u8], place: usize) -> Result<u16, Unread> {
    Ok(u16::from_le_bytes(at(record, place)?))
}

fn u32_at(record: &[u8], place: usize) -> Result<u32, Unread> {
    Ok(u32::from_le_bytes(at(record, place)?))
}

fn u64_at(record: &[u8], place: usize) -> Result<u64, Unread> {
    Ok(u64::from_le_bytes(at(record, place)?))
}

/// Where something begins among blocks of metadata: that of its block, and the byte in it.
#[derive(Clone, Copy)]
struct Place {
    block: u64,
    offset: usize,
}

/// What a name stands for.
enum Node {
    Directory { listing: Place, len: u64 },
    File { data: u64, len: u64, fragment: Option<(u32, u64)>, blocks: Vec<u32> },
    Link,
}

struct Squashfs<F> {
    file: F,
    packing: u16,
    block_size: u64,
    root: u64,
    inodes: u64,
    directories: u64,
    fragments: u64,
}

impl<F: Read + Seek> Squashfs<F> {
    fn open(mut file: F) -> Result<Self, Unread> {
        let mut head = [0; 96];
        match file.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Unread::Other),
            other => other?,
        }
        if !head.starts_with(MAGIC) || u16_at(&head, 28)? != 4 {
            return Err(Unread::Other);
        }
        let packing = u16_at(&head, 20)?;
        if !matches!(packing, 1 | 6) {
            return Err(Unread::Packing(packing));
        }
        let block_size = u64::from(u32_at(&head, 12)?);
        if !(MIN_BLOCK..=MAX_BLOCK).contains(&block_size) {
            return Err(broken("its blocks have a size that there is not"));
        }
        Ok(Self {
            packing,
            block_size,
            root: u64_at(&head, 32)?,
            inodes: u64_at(&head, 64)?,
            directories: u64_at(&head, 72)?,
            fragments: u64_at(&head, 80)?,
            file,
        })
    }

    /// The file, or the one that distributions have in its place: then it is a link to that.
    fn os_release(&mut self) -> Result<Vec<u8>, Unread> {
        for path in [["etc", "os-release"].as_slice(), &["usr", "lib", "os-release"]] {
            let mut node = self.node(self.root)?;
            for name in path {
                let Node::Directory { listing, len } = node else { return Err(Unread::Silent) };
                let Some(inode) = self.entry(listing, len, name)? else { return Err(Unread::Silent) };
                node = self.node(inode)?;
            }
            match node {
                Node::File { data, len, fragment, blocks } => {
                    return self.content(data, len, fragment, &blocks);
                }
                Node::Link => {}
                Node::Directory { .. } => return Err(Unread::Silent),
            }
        }
        Err(Unread::Silent)
    }

    /// `len` bytes from a place of the file, unpacked to `most` at most.
    fn block(&mut self, start: u64, len: u64, packed: bool, most: u64) -> Result<Vec<u8>, Unread> {
        if len > MAX_BLOCK {
            return Err(broken("a block is too long"));
        }
        self.file.seek(SeekFrom::Start(start))?;
        let mut stored = Vec::new();
        if (&mut self.file).take(len).read_to_end(&mut stored)? as u64 != len {
            return Err(broken("it ends too early"));
        }
        if !packed {
            return Ok(stored);
        }
        let mut out = Vec::new();
        match self.packing {
            1 => flate2::read::ZlibDecoder::new(&stored[..]).take(most).read_to_end(&mut out)?,
            _ => ruzstd::decoding::StreamingDecoder::new(&stored[..])
                .map_err(|_| broken("a block is no zstd frame"))?
                .take(most)
                .read_to_end(&mut out)?,
        };
        Ok(out)
    }

    /// So many bytes of the metadata at a place of a table, over as many blocks as they are in.
    fn metadata(&mut self, table: u64, place: Place, len: u64) -> Result<Vec<u8>, Unread> {
        if len > MAX {
            return Err(broken("a directory or a file is too large"));
        }
        let mut start = table.checked_add(place.block).ok_or_else(|| broken("a place is nowhere"))?;
        let wanted = place.offset as u64 + len;
        let mut found = Vec::new();
        while (found.len() as u64) < wanted {
            let head = self.block(start, 2, false, 2)?;
            let head = u16_at(&head, 0)?;
            let stored = u64::from(head & 0x7fff);
            let block = self.block(start + 2, stored, head & 0x8000 == 0, METADATA)?;
            if block.is_empty() {
                return Err(broken("a block of metadata is empty"));
            }
            found.extend(block);
            start += 2 + stored;
        }
        Ok(found.split_off(place.offset).into_iter().take(usize::try_from(len).unwrap_or(0)).collect())
    }

    fn node(&mut self, reference: u64) -> Result<Node, Unread> {
        let place =
            Place { block: reference >> 16, offset: usize::try_from(reference & 0xffff).unwrap_or(0) };
        let inodes = self.inodes;
        let kind = u16_at(&self.metadata(inodes, place, 2)?, 0)?;
        let len = match kind {
            1 | 2 => 32,
            8 => 40,
            9 => 56,
            3 | 10 => return Ok(Node::Link),
            _ => return Err(broken("what should be a file or a directory is none")),
        };
        let inode = self.metadata(inodes, place, len)?;
        let directory = |block: usize, offset: usize, len: u64| {
            let listing = Place {
                block: u64::from(u32_at(&inode, block)?),
                offset: usize::from(u16_at(&inode, offset)?),
            };
            // It counts the two names that every directory has.
            Ok(Node::Directory { listing, len: len.saturating_sub(3) })
        };
        let (data, size, fragment, offset) = match kind {
            1 => return directory(16, 26, u64::from(u16_at(&inode, 24)?)),
            8 => return directory(24, 34, u64::from(u32_at(&inode, 20)?)),
            2 => (
                u64::from(u32_at(&inode, 16)?),
                u64::from(u32_at(&inode, 28)?),
                u32_at(&inode, 20)?,
                u32_at(&inode, 24)?,
            ),
            _ => (u64_at(&inode, 16)?, u64_at(&inode, 24)?, u32_at(&inode, 44)?, u32_at(&inode, 48)?),
        };
        if size > MAX {
            return Err(broken("a directory or a file is too large"));
        }
        let fragment = (fragment != NO_FRAGMENT).then_some((fragment, u64::from(offset)));
        let count = if fragment.is_some() { size / self.block_size } else { size.div_ceil(self.block_size) };
        let sizes = self.metadata(inodes, place, len + 4 * count)?;
        let blocks = sizes.get(inode.len()..).unwrap_or_default().chunks_exact(4).map(|four| u32_at(four, 0));
        Ok(Node::File { data, len: size, fragment, blocks: blocks.collect::<Result<_, _>>()? })
    }

    /// The inode of a name in a directory.
    fn entry(&mut self, listing: Place, len: u64, name: &str) -> Result<Option<u64>, Unread> {
        let directories = self.directories;
        let listing = self.metadata(directories, listing, len)?;
        let mut place = 0;
        while place < listing.len() {
            let (count, start) = (u32_at(&listing, place)?, u64::from(u32_at(&listing, place + 4)?));
            place += 12;
            for _ in 0..=count {
                let (offset, size) =
                    (u16_at(&listing, place)?, usize::from(u16_at(&listing, place + 6)?) + 1);
                let said =
                    listing.get(place + 8..place + 8 + size).ok_or_else(|| broken("a name is cut off"))?;
                if said == name.as_bytes() {
                    return Ok(Some(start << 16 | u64::from(offset)));
                }
                place += 8 + size;
            }
        }
        Ok(None)
    }

    fn content(
        &mut self,
        data: u64,
        len: u64,
        fragment: Option<(u32, u64)>,
        blocks: &[u32],
    ) -> Result<Vec<u8>, Unread> {
        /// A block that is stored as it is.
        const AS_IT_IS: u32 = 1 << 24;
        let (mut out, mut start, most) = (Vec::new(), data, self.block_size);
        for size in blocks {
            let stored = u64::from(size & !AS_IT_IS);
            out.extend(self.block(start, stored, size & AS_IT_IS == 0, most)?);
            start += stored;
        }
        if let Some((number, offset)) = fragment {
            let table = self
                .fragments
                .checked_add(u64::from(number / FRAGMENTS) * 8)
                .ok_or_else(|| broken("a place is nowhere"))?;
            let table = self.block(table, 8, false, 8)?;
            let place = Place {
                block: u64_at(&table, 0)?,
                offset: usize::try_from(number % FRAGMENTS * 16).unwrap_or(0),
            };
            let entry = self.metadata(0, place, 16)?;
            let size = u32_at(&entry, 8)?;
            let block =
                self.block(u64_at(&entry, 0)?, u64::from(size & !AS_IT_IS), size & AS_IT_IS == 0, most)?;
            out.extend(block.into_iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)));
        }
        out.truncate(usize::try_from(len).unwrap_or(0));
        if out.len() as u64 != len {
            return Err(broken("a file is cut off"));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_size_that_there_is_not_are_refused_before_anything_is_read() {
        let head = |block_size: u32| {
            let mut head = [0; 96];
            head[..4].copy_from_slice(MAGIC);
            head[12..16].copy_from_slice(&block_size.to_le_bytes());
            (head[20], head[28]) = (6, 4);
            Squashfs::open(io::Cursor::new(head)).map(drop)
        };
        for size in [0, 1, 4095, (1 << 20) + 1, u32::MAX] {
            assert!(matches!(head(size), Err(Unread::Io(_))), "{size}");
        }
        assert!(head(1 << 17).is_ok());
    }

    #[test]
    fn a_bundle_is_called_as_its_system_calls_itself() {
        let image = Image { product: "inferd-os".into(), version: 5 };
        assert_eq!(compare(&image, "inferd-os", 5), Ok(()));
        let other = compare(&image, "door-os", 5).unwrap_err();
        assert_eq!(other, OtherName::Product { image: "inferd-os".into(), bundle: "door-os".into() });
        for version in [4, 6] {
            let other = compare(&image, "inferd-os", version).unwrap_err();
            assert_eq!(other, OtherName::Version { image: 5, bundle: version });
        }
    }
}
