//! The table of a medium that is larger than its image, and power that fails while it is changed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use inferd_provision::gpt::{HEAD, Plan, Refusal, SECTOR, SPARE, echoes, plan};

const MIB: u64 = 1 << 20;
const IMAGE: u64 = 16 * MIB;

/// A medium of so many bytes with an image of two partitions on it.
fn medium(length: u64) -> Vec<u8> {
    let sectors = IMAGE / 512;
    let mut disk = vec![0; length as usize];
    disk[450] = 0xee;
    disk[454..458].copy_from_slice(&1u32.to_le_bytes());
    disk[458..462].copy_from_slice(&((sectors - 1) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut table = vec![0; 128 * 128];
    for (i, (name, first, last)) in
        [("boot", 2048u64, 8191u64), ("data", 8192, 24575)].into_iter().enumerate()
    {
        let entry = &mut table[i * 128..][..128];
        entry[..32].fill(i as u8 + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (at, unit) in name.encode_utf16().enumerate() {
            entry[56 + 2 * at..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let header = |own: u64, other: u64, at: u64| {
        let mut header = vec![0; 512];
        header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (place, value) in [(24, own), (32, other), (40, 34), (48, sectors - 34), (72, at)] {
            header[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        let sum = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    };
    disk[512..1024].copy_from_slice(&header(1, sectors - 1, 2));
    disk[1024..][..table.len()].copy_from_slice(&table);
    let end = IMAGE as usize;
    disk[end - 33 * 512..end - 512].copy_from_slice(&table);
    disk[end - 512..end].copy_from_slice(&header(sectors - 1, 1, sectors - 33));
    disk
}

fn planned(disk: &[u8]) -> Result<Option<Plan>, Refusal> {
    plan(&disk[..HEAD], disk.len() as u64 / 512, "data")
}

/// The first table as a kernel reads it: the header's own copy of the entries, both checksums right. The end of `data`, and where the
/// second copy is.
fn read(disk: &[u8]) -> (u64, u64) {
    let field = |at: usize| u64::from_le_bytes(disk[512 + at..][..8].try_into().unwrap());
    let mut header = disk[512..604].to_vec();
    header[16..20].fill(0);
    assert_eq!(crc32fast::hash(&header).to_le_bytes(), disk[528..532], "the first header is good");
    let entries = &disk[(field(72) * 512) as usize..][..128 * 128];
    assert_eq!(crc32fast::hash(entries).to_le_bytes(), disk[600..604], "so are its entries");
    assert!(field(48) < disk.len() as u64 / 512);
    (u64::from_le_bytes(entries[128 + 40..][..8].try_into().unwrap()) + 1, field(32))
}

fn write(disk: &mut [u8], at: u64, bytes: &[u8]) {
    disk[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

#[test]
fn the_last_partition_reaches_the_end_of_the_medium_once() {
    let mut disk = medium(40 * MIB + 512 * 7);
    let grown = planned(&disk).unwrap().unwrap();
    assert_eq!((grown.number, grown.start, grown.length, grown.before), (2, 4 * MIB, 35 * MIB, 8 * MIB));
    for (at, bytes) in &grown.writes {
        write(&mut disk, *at, bytes);
    }
    let last = disk.len() as u64 / 512 - 1;
    assert_eq!(read(&disk), (39 * MIB / 512, last));
    // The second copy is the first one's mirror.
    let second = disk[disk.len() - 512..].to_vec();
    assert_eq!(
        (&second[..8], &second[24..32], &second[32..40]),
        (&b"EFI PART"[..], &last.to_le_bytes()[..], &1u64.to_le_bytes()[..])
    );
    assert_eq!(disk[disk.len() - 33 * 512..disk.len() - 512], disk[1024..1024 + 32 * 512]);
    assert_eq!(u32::from_le_bytes(disk[458..462].try_into().unwrap()), last as u32);
    assert_eq!(planned(&disk), Ok(None), "the second time there is nothing to do");
}

#[test]
fn power_may_fail_behind_any_sector_of_any_write_in_any_order_within_it() {
    let fresh = medium(24 * MIB);
    let whole = planned(&fresh).unwrap().unwrap();
    let mut wanted = fresh.clone();
    for (at, bytes) in &whole.writes {
        write(&mut wanted, *at, bytes);
    }
    let mut cuts = 0;
    for last in 0..whole.writes.len() {
        let mut before = fresh.clone();
        for (at, bytes) in &whole.writes[..last] {
            write(&mut before, *at, bytes);
        }
        let (at, bytes) = &whole.writes[last];
        let sectors = bytes.len() / SECTOR;
        // The first ones, the last ones, every second one.
        for kept in (0..=sectors)
            .flat_map(|n| [(0..n).collect::<Vec<_>>(), (n..sectors).collect()])
            .chain([(0..sectors).step_by(2).collect()])
        {
            let mut disk = before.clone();
            for sector in kept {
                write(&mut disk, at + (sector * SECTOR) as u64, &bytes[sector * SECTOR..][..SECTOR]);
            }
            cuts += 1;
            let (end, _) = read(&disk);
            assert!([24575 + 1, 23 * MIB / 512].contains(&end), "the old table or the new one");
            if let Some(rest) = planned(&disk).unwrap() {
                for (at, bytes) in &rest.writes {
                    write(&mut disk, *at, bytes);
                }
            }
            assert_eq!(read(&disk), read(&wanted), "cut in write {last}");
            assert_eq!(planned(&disk), Ok(None));
        }
    }
    assert!(cuts > 200, "{cuts}");
}

#[test]
fn what_is_smaller_strange_or_full_is_refused_with_words() {
    let mut short = medium(IMAGE);
    short.truncate(10 << 20);
    assert_eq!(planned(&short), Err(Refusal::Small { has: 10, needs: 13 }));
    assert!(planned(&short).unwrap_err().to_string().contains("smaller than it says"));
    let why = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut disk = medium(24 * MIB);
        change(&mut disk);
        planned(&disk).unwrap_err().to_string()
    };
    assert!(why(&|disk| disk[512] = 0).contains("no header"));
    assert!(why(&|disk| disk[560] ^= 1).contains("header is damaged"));
    assert!(why(&|disk| disk[1024 + 40] ^= 1).contains("entries are damaged"));
    assert!(why(&|disk| disk[SPARE as usize * 512] = 1).contains("something lies behind it"));
    let disk = medium(24 * MIB);
    assert!(
        plan(&disk[..HEAD], 24 * MIB / 512, "boot")
            .unwrap_err()
            .to_string()
            .contains("another partition is the last")
    );
    assert_eq!(
        planned(&medium(IMAGE)).unwrap().map(|p| p.length),
        Some(11 * MIB),
        "an image has a MiB of room"
    );
    assert_eq!(echoes(IMAGE, 100 * MIB).collect::<Vec<_>>(), [16 * MIB, 32 * MIB, 64 * MIB]);
}
