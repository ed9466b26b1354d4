//! What boot loaders and firmware leave: the records of U-Boot, a Raspberry Pi's autoboot.txt, the FAT that it lies on.

use inferd_system::autoboot::Autoboot;
use inferd_system::fat::sector_of;
use inferd_system::record::Record;
use inferd_system::{SECTOR, Sectors};
use std::io;

/// The beginning of a sector from this; zeros behind it.
fn sector(data: &[u8]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    sector
}

/// A record of U-Boot's choice, checksum made to fit.
pub fn bootstate(data: &[u8]) {
    let mut bytes = sector(&[&[0; 4], data].concat());
    let checksum = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    let Some(record) = Record::decode(&bytes) else { return };
    assert_eq!(Record::decode(&record.encode()), Some(record), "what it wrote, it reads");
    assert!(record.generation > 0);
}

/// autoboot.txt: filled up with line feeds, as it is on a card.
pub fn autoboot(data: &[u8]) {
    let mut bytes = [b'\n'; SECTOR];
    bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    let Some(choice) = Autoboot::decode(&bytes) else { return };
    assert_eq!(choice.encode(), bytes, "it has one form");
    assert!(choice.chosen != choice.other);
    assert_eq!(Autoboot::decode(&choice.turned().encode()), Some(choice.turned()));
}

/// A partition that begins with an input, and holds zeros up to this length.
struct Partition<'a>(&'a [u8]);

const PARTITION: u64 = 64 << 20;

impl Sectors for Partition<'_> {
    fn len(&self) -> u64 {
        PARTITION
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        if at.checked_add(into.len() as u64).is_none_or(|end| end > PARTITION) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.fill(0);
        let rest = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        into.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8; SECTOR]) -> io::Result<()> {
        panic!("a file is looked up without writing");
    }
}

/// A FAT with the file, somewhere. The first byte: 0 the partition as it is, else its first sector ends as it must.
pub fn fat(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if how != 0 && bytes.len() >= SECTOR {
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
    if let Ok(at) = sector_of(&Partition(&bytes), "AUTOBOOT.TXT") {
        assert!(
            at % SECTOR as u64 == 0 && at > 0 && at + SECTOR as u64 <= PARTITION,
            "a sector of the partition, not its first"
        );
    }
}

/// A root filesystem before it is packed: what it says of itself is a product and a version, or nothing.
pub fn squashfs(data: &[u8]) {
    if let Ok(image) = crate::inferctl::rootfs::read(std::io::Cursor::new(data)) {
        assert!(!image.product.is_empty() && !image.product.contains('\n'), "{image:?}");
    }
}
