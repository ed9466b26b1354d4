//! What U-Boot and this room tell each other: which system is chosen, and which one is to be tried once.
//!
//! Two records of 512 bytes at the beginning of the partition `bootstate`, [`PLACES`], each as U-Boot's `env import -c` reads
//! it: the CRC-32 (little-endian) of the 508 bytes behind it, then `key=value` and a zero byte each, and one more zero byte. The valid record with the
//! higher generation counts. Whoever changes the choice writes the other record, so a write that is torn leaves what was.

use crate::Slot;
use crate::sectors::SECTOR;

/// Where the two records lie.
pub const PLACES: [u64; 2] = [0, 4096];
/// The highest generation: what fits into nine digits.
pub const MAX_GENERATION: u32 = 999_999_999;

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Counts up with every change.
    pub generation: u32,
    /// The system that is started.
    pub chosen: Slot,
    /// The system that is started once instead; U-Boot takes this out before it does.
    pub tried: Option<Slot>,
}

impl Record {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut text = format!("chosen={}\0generation={}\0", self.chosen, self.generation);
        if let Some(slot) = self.tried {
            text += &format!("try={slot}\0");
        }
        // The longest text has 42 bytes of 508.
        let mut bytes = [0; SECTOR];
        bytes.iter_mut().skip(CRC).zip(text.bytes()).for_each(|(to, from)| *to = from);
        let (crc, rest) = bytes.split_at_mut(CRC);
        crc.copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
        bytes
    }

    /// Reads one; `None` when it is none. Other keys than ours are passed over, as U-Boot does.
    #[must_use]
    pub fn decode(bytes: &[u8; SECTOR]) -> Option<Self> {
        let (crc, rest) = bytes.split_first_chunk::<CRC>()?;
        if u32::from_le_bytes(*crc) != crc32fast::hash(rest) {
            return None;
        }
        let (mut generation, mut chosen, mut tried) = (None, None, None);
        for pair in rest.split(|&byte| byte == 0).take_while(|pair| !pair.is_empty()) {
            let (key, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
            match key {
                "generation" if generation.is_none() => generation = Some(number(value)?),
                "chosen" if chosen.is_none() => chosen = Some(value.parse().ok()?),
                "try" if tried.is_none() => tried = Some(value.parse().ok()?),
                "generation" | "chosen" | "try" => return None,
                _ => {}
            }
        }
        Some(Self { generation: generation?, chosen: chosen?, tried })
    }
}

/// Which of the two records counts, and what it says.
#[must_use]
pub fn newest(records: [Option<Record>; 2]) -> Option<(usize, Record)> {
    match records {
        [Some(a), Some(b)] if b.generation > a.generation => Some((1, b)),
        [Some(a), _] => Some((0, a)),
        [None, b] => b.map(|b| (1, b)),
    }
}

/// Bytes of the checksum.
const CRC: usize = 4;

/// A generation, written without signs and leading zeros.
fn number(text: &str) -> Option<u32> {
    let digits =
        (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(generation: u32, chosen: Slot, tried: Option<Slot>) -> Record {
        Record { generation, chosen, tried }
    }

    /// A record with this text whose checksum fits.
    fn of(text: &str) -> Option<Record> {
        let mut bytes = [0; SECTOR];
        bytes[CRC..CRC + text.len()].copy_from_slice(text.as_bytes());
        let crc = crc32fast::hash(&bytes[CRC..]);
        bytes[..CRC].copy_from_slice(&crc.to_le_bytes());
        Record::decode(&bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        for generation in [1, 7, MAX_GENERATION] {
            for (chosen, tried) in
                [(Slot::A, None), (Slot::B, None), (Slot::A, Some(Slot::B)), (Slot::B, Some(Slot::A))]
            {
                let record = record(generation, chosen, tried);
                assert_eq!(Record::decode(&record.encode()), Some(record));
            }
        }
    }

    #[test]
    fn a_record_of_uboot_is_read_whatever_its_order_and_its_other_keys() {
        let want = Some(record(12, Slot::B, Some(Slot::A)));
        assert_eq!(of("try=a\0generation=12\0chosen=b\0"), want);
        assert_eq!(of("bootcount=3\0chosen=b\0generation=12\0try=a\0filesize=200\0"), want);
    }

    #[test]
    fn what_does_not_say_clearly_what_to_start_is_no_record() {
        for text in [
            "",
            "chosen=a\0",
            "generation=1\0",
            "generation=1\0chosen=c\0",
            "generation=1\0chosen=\0",
            "generation=0\0chosen=a\0",
            "generation=01\0chosen=a\0",
            "generation=+1\0chosen=a\0",
            "generation=1000000000\0chosen=a\0",
            "generation=1\0chosen=a\0try=\0",
            "generation=1\0chosen=a\0try=ab\0",
            "generation=1\0chosen=a\0chosen=b\0",
            "generation=1\0chosen=a\0nonsense\0",
            "chosen=a\0\0generation=1\0",
        ] {
            assert_eq!(of(text), None, "{text:?}");
        }
        assert_eq!(Record::decode(&[0; SECTOR]), None);
        assert_eq!(Record::decode(&[0xff; SECTOR]), None);
    }

    #[test]
    fn every_flipped_bit_and_every_torn_write_is_seen() {
        let (old, new) = (record(1, Slot::A, None).encode(), record(3, Slot::B, Some(Slot::A)).encode());
        for bit in 0..SECTOR * 8 {
            let mut bytes = new;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&bytes), None, "bit {bit}");
        }
        for torn in 0..=SECTOR {
            let mut bytes = new;
            bytes[torn..].copy_from_slice(&old[torn..]);
            let read = Record::decode(&bytes).map(|r| r.generation);
            assert!(read.is_none() || bytes == old || bytes == new, "torn at {torn}: {read:?}");
        }
    }

    #[test]
    fn the_newer_record_counts_wherever_it_lies() {
        let (old, new) = (record(4, Slot::A, None), record(5, Slot::B, None));
        assert_eq!(newest([Some(old), Some(new)]), Some((1, new)));
        assert_eq!(newest([Some(new), Some(old)]), Some((0, new)));
        assert_eq!(newest([None, Some(old)]), Some((1, old)));
        assert_eq!(newest([Some(old), None]), Some((0, old)));
        assert_eq!(newest([None, None]), None);
    }
}
