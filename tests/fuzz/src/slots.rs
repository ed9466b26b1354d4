//! The state record and the verdict journal. A checksum would keep mutation out, so these targets make it fit.

use inferd_slots::{BLOCK, SlotId, line, parse, record};
use serde::{Deserialize, Serialize};

/// A state record. The first byte: 0 a whole record whose checksum is made to fit, else a payload in a record that fits.
pub fn state(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let mut block = [0; BLOCK];
    let room = if how == 0 { 0..BLOCK - 4 } else { 24..BLOCK - 4 };
    let rest = &rest[..rest.len().min(room.len())];
    if how != 0 {
        block[..8].copy_from_slice(b"INFERDST");
        block[8] = 1;
        block[12..16].copy_from_slice(&u32::try_from(rest.len()).expect("a record is small").to_le_bytes());
        block[16] = how;
    }
    block[room.start..][..rest.len()].copy_from_slice(rest);
    let checksum = crc32fast::hash(&block[..BLOCK - 4]);
    block[BLOCK - 4..].copy_from_slice(&checksum.to_le_bytes());
    let Some(state) = record::decode(&block) else { return };
    assert!(state.is_sound());
    assert!(*record::encode(&state) == block, "a state has one encoding");
}

/// What a journal may keep.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    slot: Option<SlotId>,
    number: u64,
    text: String,
}

/// A journal. The first byte: 0 its bytes, else lines that are put into frames whose checksums fit.
pub fn journal(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let mut bytes = Vec::new();
    if how == 0 {
        bytes.extend_from_slice(rest);
    } else {
        for part in rest.split(|&byte| byte == b'\n') {
            bytes.extend(format!("{{\"crc\":\"{:08x}\",\"verdict\":", crc32fast::hash(part)).bytes());
            bytes.extend_from_slice(part);
            bytes.extend(b"}\n");
        }
    }
    let (notes, damaged) = parse::<Note>(&bytes);
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(notes.len() as u64 + damaged, lines as u64);
    let written: Vec<u8> = notes.iter().flat_map(line).collect();
    assert_eq!(parse::<Note>(&written), (notes, 0), "what it wrote, it reads");
}
