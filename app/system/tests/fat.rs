//! Files on FATs of every kind are found where they lie, and those that are not one whole sector are refused.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::{Disk, Fat};
use inferd_system::fat::{FatError, sector_of};

const NAME: &str = "AUTOBOOT.TXT";

#[test]
fn the_sector_of_a_file_is_found_on_every_kind_of_fat() {
    for bits in [12, 16, 32] {
        for (sector, per_cluster) in [(512, 1), (512, 8), (4096, 1)] {
            // Odd and even clusters, and one whose entry of a FAT12 lies across two sectors; more entries than a cluster has.
            for (first, before) in [(9, 0), (10, 3), (341, 40)] {
                let fat = Fat { sector, per_cluster, first, before, ..Fat::of(bits) };
                let (disk, at) = fat.make(&[7; 512]);
                let found =
                    sector_of(&disk, NAME).unwrap_or_else(|e| panic!("FAT{bits} {sector} {first}: {e}"));
                assert_eq!(
                    found, at,
                    "FAT{bits}, sectors of {sector}, {per_cluster} a cluster, cluster {first}"
                );
                assert!(matches!(sector_of(&disk, "CONFIG.TXT"), Err(FatError::Missing(_))));
            }
        }
    }
}

#[test]
fn a_file_that_is_not_one_whole_sector_has_no_place() {
    for bits in [12, 16, 32] {
        let good = Fat::of(bits);
        let refused = |fat: Fat, want: &str| {
            let why = sector_of(&fat.make(&[7; 512]).0, NAME).unwrap_err().to_string();
            assert!(why.contains(want), "FAT{bits}: {why}");
        };
        refused(Fat { len: 511, ..good }, "exactly 512 bytes");
        refused(Fat { len: 513, ..good }, "exactly 512 bytes");
        refused(Fat { len: 0, ..good }, "exactly 512 bytes");
        refused(Fat { next: 20, ..good }, "first cluster");
        refused(Fat { next: 0, ..good }, "first cluster");
        refused(Fat { first: 0, ..good }, "a cluster that cannot be");
        refused(Fat { first: 1, ..good }, "a cluster that cannot be");
    }
}

#[test]
fn what_is_no_fat_is_said_to_be_none() {
    assert!(matches!(sector_of(&Disk::new(1 << 20), NAME), Err(FatError::NoFat(_))));
    assert!(matches!(sector_of(&Disk::new(0), NAME), Err(FatError::Io(_))));
    let (disk, _) = Fat::of(16).make(&[7; 512]);
    for (at, bytes) in [
        (510, &[0, 0][..]),
        (11, &[1, 2]),
        (13, &[3]),
        (14, &[0, 0]),
        (16, &[9]),
        (22, &[0, 0]),
        (32, &[0xff; 4]),
    ] {
        let damaged = disk.copy();
        let mut sector = damaged.get(0);
        sector[at..at + bytes.len()].copy_from_slice(bytes);
        damaged.put(0, &sector);
        assert!(matches!(sector_of(&damaged, NAME), Err(FatError::NoFat(_))), "changed at {at}");
    }
}

#[test]
fn a_directory_without_an_end_is_given_up() {
    let (disk, _) = Fat { before: 40, ..Fat::of(32) }.make(&[7; 512]);
    // Cluster 22, the second one of the directory, follows itself, and every entry of it is in use.
    let table = 32 * 512;
    let mut sector = disk.get(table);
    sector[22 * 4..23 * 4].copy_from_slice(&22_u32.to_le_bytes());
    disk.put(table, &sector);
    let why = sector_of(&disk, "CONFIG.TXT").unwrap_err().to_string();
    assert!(why.contains("too many entries"), "{why}");
}
