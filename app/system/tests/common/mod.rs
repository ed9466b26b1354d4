//! A partition in memory that logs writes, and FATs on it.

#![allow(dead_code, clippy::cast_possible_truncation, clippy::unwrap_used)] // no test program needs all of it; 64-bit machines test

use inferd_system::{SECTOR, Sectors};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

pub type Sector = [u8; SECTOR];

/// What a disk does with the next write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Error,
    /// It says that it wrote, and did not.
    Swallow,
}

#[derive(Clone, Default)]
pub struct Inner {
    pub sectors: BTreeMap<u64, Sector>,
    pub len: u64,
    /// Place, what was there, what was written.
    pub log: Vec<(u64, Sector, Sector)>,
    pub fault: Option<Fault>,
}

/// A partition; clones share it.
#[derive(Clone, Default)]
pub struct Disk(pub Arc<Mutex<Inner>>);

impl Disk {
    pub fn new(len: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { len, ..Inner::default() })))
    }

    /// Another disk with the same content.
    pub fn copy(&self) -> Self {
        let inner = self.0.lock().unwrap().clone();
        Self(Arc::new(Mutex::new(Inner { log: Vec::new(), fault: None, ..inner })))
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        for (n, part) in bytes.chunks(SECTOR).enumerate() {
            let mut sector = [0; SECTOR];
            sector[..part.len()].copy_from_slice(part);
            self.0.lock().unwrap().sectors.insert(at + (n * SECTOR) as u64, sector);
        }
    }

    pub fn get(&self, at: u64) -> Sector {
        self.0.lock().unwrap().sectors.get(&at).copied().unwrap_or([0; SECTOR])
    }

    pub fn take_log(&self) -> Vec<(u64, Sector, Sector)> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    pub fn fail(&self, fault: Fault) {
        self.0.lock().unwrap().fault = Some(fault);
    }
}

impl Sectors for Disk {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().len
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(at.is_multiple_of(SECTOR as u64) && into.len().is_multiple_of(SECTOR), "whole sectors");
        if at + into.len() as u64 > self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (n, part) in into.chunks_mut(SECTOR).enumerate() {
            part.copy_from_slice(&self.get(at + (n * SECTOR) as u64));
        }
        Ok(())
    }

    fn write(&self, at: u64, sector: &Sector) -> io::Result<()> {
        assert!(at.is_multiple_of(SECTOR as u64), "whole sectors");
        let was = self.get(at);
        let mut inner = self.0.lock().unwrap();
        match inner.fault.take() {
            Some(Fault::Error) => return Err(io::Error::other("no")),
            Some(Fault::Swallow) => return Ok(()),
            None => {}
        }
        inner.log.push((at, was, *sector));
        inner.sectors.insert(at, *sector);
        Ok(())
    }
}

/// A FAT to be made.
#[derive(Clone, Copy)]
pub struct Fat {
    /// 12, 16 or 32.
    pub bits: u32,
    pub sector: u64,
    pub per_cluster: u64,
    /// Entries of the root directory before the file's.
    pub before: usize,
    /// The file's length.
    pub len: u32,
    /// Its first cluster.
    pub first: u32,
    /// What the table says of that.
    pub next: u32,
}

impl Fat {
    pub const fn of(bits: u32) -> Self {
        Self { bits, sector: 512, per_cluster: 1, before: 3, len: 512, first: 9, next: u32::MAX }
    }

    /// The partition, and where its `AUTOBOOT.TXT` begins.
    pub fn make(&self, content: &[u8]) -> (Disk, u64) {
        let clusters: u64 = match self.bits {
            12 => 400,
            16 => 5_000,
            _ => 66_000,
        };
        let fat_sectors = ((clusters + 2) * u64::from(self.bits)).div_ceil(8 * self.sector);
        let (reserved, root_entries) = if self.bits == 32 { (32, 0) } else { (1, 512_u64) };
        let root = reserved + 2 * fat_sectors;
        let data = root + (root_entries * 32).div_ceil(self.sector);
        let total = data + clusters * self.per_cluster;
        let disk = Disk::new(total * self.sector);
        let mut boot = [0; SECTOR];
        boot[11..13].copy_from_slice(&(self.sector as u16).to_le_bytes());
        boot[13] = self.per_cluster as u8;
        boot[14..16].copy_from_slice(&(reserved as u16).to_le_bytes());
        boot[16] = 2;
        boot[17..19].copy_from_slice(&(root_entries as u16).to_le_bytes());
        boot[32..36].copy_from_slice(&(total as u32).to_le_bytes());
        if self.bits == 32 {
            boot[36..40].copy_from_slice(&(fat_sectors as u32).to_le_bytes());
            boot[44..48].copy_from_slice(&2_u32.to_le_bytes());
        } else {
            boot[22..24].copy_from_slice(&(fat_sectors as u16).to_le_bytes());
        }
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        disk.put(0, &boot);

        // The root directory of a FAT32 is clusters 2, then 5, ...; the file's chain is its own.
        let entries = self.before + 1;
        let mut directory = Vec::new();
        for n in 0..self.before {
            // Parts of long names, deleted ones and volume labels lie between the files.
            let kinds: [(&[u8; 11], u8); 3] =
                [(b"AUTOBOOTTXT", 0x0f), (b"\xe5UTOBOOTTXT", 0x20), (b"AUTOBOOTTXT", 0x08)];
            let (name, attributes) = kinds[n % 3];
            let mut entry = [0_u8; 32];
            entry[..11].copy_from_slice(name);
            entry[11] = attributes;
            directory.extend_from_slice(&entry);
        }
        let mut entry = [0_u8; 32];
        entry[..11].copy_from_slice(b"AUTOBOOTTXT");
        entry[11] = 0x20;
        entry[20..22].copy_from_slice(&((self.first >> 16) as u16).to_le_bytes());
        entry[26..28].copy_from_slice(&(self.first as u16).to_le_bytes());
        entry[28..32].copy_from_slice(&self.len.to_le_bytes());
        directory.extend_from_slice(&entry);
        assert_eq!(directory.len(), entries * 32);

        let cluster = self.per_cluster * self.sector;
        let place = |n: u64| data * self.sector + n.saturating_sub(2) * cluster;
        let mut table = BTreeMap::from([(u64::from(self.first), self.next)]);
        if self.bits == 32 {
            let mut at = 2;
            let parts: Vec<&[u8]> = directory.chunks(cluster as usize).collect();
            for (n, part) in parts.iter().enumerate() {
                disk.put(place(at), part);
                let next = at + 20;
                table.insert(at, if n + 1 == parts.len() { u32::MAX } else { next as u32 });
                at = next;
            }
        } else {
            disk.put(root * self.sector, &directory);
        }
        for (n, value) in table {
            let bit = n * u64::from(self.bits);
            for i in 0..u64::from(self.bits) {
                let at = reserved * self.sector + (bit + i) / 8;
                let mut sector = disk.get(at / 512 * 512);
                sector[(at % 512) as usize] |= ((value >> i & 1) as u8) << ((bit + i) % 8);
                disk.put(at / 512 * 512, &sector);
            }
        }
        let at = place(u64::from(self.first));
        if self.first >= 2 {
            disk.put(at, content);
        }
        (disk, at)
    }
}
