//! The last partition grown to the end of its medium: an image is as small as it can be, a card is larger.
//!
//! A kernel looks for the second copy of the table only where a good first one says it is (`block/partitions/efi.c`), so the first one must be
//! good whatever power does. Header and entries are in different sectors: the new entries are first written elsewhere, and one sector, the
//! header, chooses between the two.
//!
//! | write | a cut behind it leaves |
//! |---|---|
//! | 1. second copy at the new end | the old table |
//! | 2. new entries at [`SPARE`], where nothing else is | the old table |
//! | 3. header: entries at [`SPARE`], second copy at the new end | the new table |
//! | 4. new entries at their usual place | the new table |
//! | 5. header: entries at their usual place | the new table |
//! | 6. size in the protective MBR | the new table |
//!
//! [`plan`] of what a cut left is the rest of it. A sector of 512 bytes arrives whole or not at all, as in the slots room.

use std::ops::Range;

/// Bytes of a sector; media with others are left alone.
pub const SECTOR: usize = 512;
/// Where the new entries wait for their header, in sectors: behind the usual ones, far before the first partition at 1 MiB.
pub const SPARE: u64 = 64;
/// Bytes from the medium's beginning that [`plan`] wants to see.
pub const HEAD: usize = 1 << 20;
/// Sectors that partitions are aligned to.
const ALIGN: u64 = 2048;
const ENTRY: usize = 128;
const ENTRIES: usize = 128;
/// Sectors of all entries.
const TABLE: u64 = (ENTRY * ENTRIES / SECTOR) as u64;

/// Bytes of the table's second copy, which follows the last partition of an image.
pub const COPY: u64 = (TABLE + 1) * SECTOR as u64;

/// Why a medium is left as it is; one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The first copy of the table cannot be used.
    #[error("its partition table is not as our images have it: {0}")]
    Strange(&'static str),
    /// Not everything that was written has a place.
    #[error(
        "the medium has {has} MiB, its partitions need {needs}: it is smaller than it says, or than the image"
    )]
    Small {
        /// MiB there are.
        has: u64,
        /// MiB there should be.
        needs: u64,
    },
}

/// What is to be written, in this order, each durable before the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Offset in bytes, and the bytes.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// The partition's number, from 1.
    pub number: u32,
    /// Where it starts, in bytes.
    pub start: u64,
    /// How long it shall be, in bytes.
    pub length: u64,
    /// How long it is now, in bytes.
    pub before: u64,
}

/// What the partition called `name` needs to reach the end of a medium of so many sectors; `None`: nothing, it is there.
///
/// # Errors
/// [`Refusal`]; nothing may be written then.
pub fn plan(head: &[u8], sectors: u64, name: &str) -> Result<Option<Plan>, Refusal> {
    let strange = Refusal::Strange;
    let header: &[u8; SECTOR] =
        head.get(SECTOR..2 * SECTOR).and_then(|b| b.try_into().ok()).ok_or(strange("it is too short"))?;
    if &header[..8] != b"EFI PART" || number(header, 12..16) != 92 {
        return Err(strange("it has no header"));
    }
    if u64::from(sum(&without_sum(header)[..92])) != number(header, 16..20) {
        return Err(strange("its header is damaged"));
    }
    if number(header, 24..32) != 1
        || number(header, 80..84) != ENTRIES as u64
        || number(header, 84..88) != ENTRY as u64
    {
        return Err(strange("it has another form"));
    }
    let at = number(header, 72..80);
    let place =
        |at: u64| usize::try_from(at * SECTOR as u64).ok().and_then(|at| head.get(at..at + ENTRY * ENTRIES));
    let entries = place(at).filter(|_| at == 2 || at == SPARE).ok_or(strange("its entries are elsewhere"))?;
    if u64::from(sum(entries)) != number(header, 88..92) {
        return Err(strange("its entries are damaged"));
    }
    let used: Vec<(usize, Range<u64>)> = entries
        .chunks_exact(ENTRY)
        .enumerate()
        .filter(|(_, entry)| entry[..16] != [0; 16])
        .map(|(i, entry)| (i, number(entry, 32..40)..number(entry, 40..48).saturating_add(1)))
        .collect();
    let (index, last) =
        used.iter().max_by_key(|(_, range)| range.end).ok_or(strange("it has no partition"))?;
    if used.iter().any(|(_, range)| range.start < ALIGN || range.start >= range.end) {
        return Err(strange("a partition is where none should be"));
    }
    if label(&entries[index * ENTRY..][..ENTRY]) != name {
        return Err(strange("another partition is the last one"));
    }
    let needs = last.end + TABLE + 1;
    if needs > sectors {
        return Err(Refusal::Small { has: sectors / ALIGN, needs: needs.div_ceil(ALIGN) });
    }
    // The second copy takes the end; the partition ends on a whole MiB before it.
    let end = ((sectors - TABLE - 1) / ALIGN * ALIGN).max(last.end);
    let alternate = sectors - 1;
    if end == last.end && at == 2 {
        return Ok(None);
    }
    let mut table = entries.to_vec();
    table[index * ENTRY + 40..][..8].copy_from_slice(&(end - 1).to_le_bytes());
    let head_of = |own: u64, other: u64, at: u64| {
        let mut new = *header;
        new[24..32].copy_from_slice(&own.to_le_bytes());
        new[32..40].copy_from_slice(&other.to_le_bytes());
        new[48..56].copy_from_slice(&(sectors - TABLE - 2).to_le_bytes());
        new[72..80].copy_from_slice(&at.to_le_bytes());
        new[88..92].copy_from_slice(&sum(&table).to_le_bytes());
        let mut new = without_sum(&new);
        let own_sum = sum(&new[..92]);
        new[16..20].copy_from_slice(&own_sum.to_le_bytes());
        new.to_vec()
    };
    let bytes = |sector: u64| sector * SECTOR as u64;
    let mut second = table.clone();
    second.extend(head_of(alternate, 1, alternate - TABLE));
    let mut writes = vec![(bytes(alternate - TABLE), second)];
    if at == 2 {
        if place(SPARE).is_none_or(|spare| spare.iter().any(|b| *b != 0) && spare != table) {
            return Err(strange("something lies behind it"));
        }
        writes.push((bytes(SPARE), table.clone()));
    }
    writes.push((bytes(1), head_of(1, alternate, SPARE)));
    writes.push((bytes(2), table.clone()));
    writes.push((bytes(1), head_of(1, alternate, 2)));
    if let Some(mbr) = protective(&head[..SECTOR], sectors) {
        writes.push((0, mbr));
    }
    let number = u32::try_from(index + 1).map_err(|_| strange("it has another form"))?;
    let length = bytes(end - last.start);
    Ok(Some(Plan { writes, number, start: bytes(last.start), length, before: bytes(last.end - last.start) }))
}

/// Where a medium that has less flash than it says would show its beginning again: powers of two behind what was written. The sector behind each
/// must not be the table's header.
pub fn echoes(written: u64, length: u64) -> impl Iterator<Item = u64> {
    (20..63).map(|bits| 1u64 << bits).filter(move |at| *at >= written && at + 2 * SECTOR as u64 <= length)
}

/// The protective MBR with the size of this medium, where it is nothing but that.
fn protective(mbr: &[u8], sectors: u64) -> Option<Vec<u8>> {
    let plain = mbr[450] == 0xee
        && number(mbr, 454..458) == 1
        && mbr[462..510].iter().all(|b| *b == 0)
        && mbr[510..] == [0x55, 0xaa];
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    let mut new = mbr.to_vec();
    new[458..462].copy_from_slice(&size.to_le_bytes());
    (plain && new != mbr).then_some(new)
}

fn without_sum(header: &[u8; SECTOR]) -> [u8; SECTOR] {
    let mut header = *header;
    header[16..20].fill(0);
    header
}

/// The name of an entry: UTF-16, filled up with zeros.
fn label(entry: &[u8]) -> String {
    let units = entry[56..]
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u16::from_le_bytes(*pair))
        .take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or('?')).collect()
}

/// A number in little endian.
fn number(bytes: &[u8], place: Range<usize>) -> u64 {
    bytes[place].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn sum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
