//! `autoboot.txt`: what a Raspberry Pi's firmware starts, and what it starts instead when it is asked to try once.
//!
//! One form only, always of 512 bytes, so that another choice is one write of one sector. A file of any other form is somebody else's
//! and is never changed.

use crate::sectors::SECTOR;

/// A choice between two boot partitions, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Autoboot {
    /// The one that is started.
    pub chosen: u8,
    /// The one that is tried.
    pub other: u8,
}

impl Autoboot {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let text = format!("{HEAD}{}\n{TRY}{}\n", self.chosen, self.other);
        // At most 70 bytes of 512.
        let mut bytes = [b'\n'; SECTOR];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        bytes
    }

    /// Reads one; `None` when it does not have exactly this form.
    #[must_use]
    pub fn decode(bytes: &[u8; SECTOR]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (chosen, rest) = text.strip_prefix(HEAD)?.split_once('\n')?;
        let (other, _) = rest.strip_prefix(TRY)?.split_once('\n')?;
        let read = Self { chosen: chosen.parse().ok()?, other: other.parse().ok()? };
        (read.chosen != read.other && read.encode() == *bytes).then_some(read)
    }

    /// The other choice.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self { chosen: self.other, other: self.chosen }
    }
}

const HEAD: &str = "[all]\ntryboot_a_b=1\nboot_partition=";
const TRY: &str = "[tryboot]\nboot_partition=";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_has_one_form() {
        let choice = Autoboot { chosen: 2, other: 3 };
        let bytes = choice.encode();
        assert!(
            bytes.starts_with(b"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n\n\n")
        );
        assert_eq!(Autoboot::decode(&bytes), Some(choice));
        assert_eq!(Autoboot::decode(&choice.turned().encode()), Some(Autoboot { chosen: 3, other: 2 }));
        for bit in 0..SECTOR * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            let read = Autoboot::decode(&changed);
            assert!(read.is_none_or(|read| read.encode() == changed), "bit {bit}");
        }
    }

    #[test]
    fn a_file_of_another_form_is_somebody_elses() {
        let with = |text: &str| {
            let mut bytes = [b'\n'; SECTOR];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Autoboot::decode(&bytes)
        };
        assert!(with("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n").is_some());
        for text in [
            "",
            "[all]\nboot_partition=2\n[tryboot]\nboot_partition=3\n",
            "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=2\n",
            "[all]\ntryboot_a_b=1\nboot_partition=02\n[tryboot]\nboot_partition=3\n",
            "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=300\n",
            "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n[none]\n",
        ] {
            assert_eq!(with(text), None, "{text:?}");
        }
        assert_eq!(Autoboot::decode(&[0; SECTOR]), None);
        assert_eq!(Autoboot::decode(&[0xff; SECTOR]), None);
    }
}
