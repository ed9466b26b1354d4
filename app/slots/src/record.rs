//! The state as one block of 4096 bytes.
//!
//! Little-endian. `magic [8] "INFERDST" · format u32 = 1 · length u32 of the payload · sequence u64 · payload · zeros · CRC-32 u32`, the
//! last four bytes, over everything before them (IEEE 802.3). The payload, in this order:
//!
//! | field | bytes |
//! |---|---|
//! | active: 0 none, 1 A, 2 B | 1 |
//! | for A, then B: status, 0 empty .. 5 bad; and unless it is empty: bundle id [32], version u64, length u64, product | 1, or 49 and a text |
//! | trial: 0 none, or the slot as above, then: phase 0 gates .. 2 probation, interruptions, began at sequence u64, boot id | 1, or 11 and a text |
//! | number of floors, at most 16; each: version u64, product; products ascending | 1, and 8 and a text each |
//! | root version u64, revocation list version u64, last permit nonce u64 | 24 |
//!
//! A text is its length in one byte, at most 64, and UTF-8. Every state has one encoding, and only it is read.

use crate::medium::BLOCK;
use crate::state::{MAX_PRODUCTS, MAX_TEXT, Phase, SlotId, SlotState, SlotStatus, State, Trial};
use inferd_bundle::Digest;
use std::collections::BTreeMap;

const MAGIC: &[u8; 8] = b"INFERDST";
const FORMAT: u32 = 1;
const HEAD: usize = 24;
const CHECKSUM_AT: usize = BLOCK - 4;
// active, two slots, trial, floors, versions: it always fits.
const LONGEST: usize = 1 + 2 * (50 + MAX_TEXT) + 12 + MAX_TEXT + 1 + MAX_PRODUCTS * (9 + MAX_TEXT) + 24;
const _: () = assert!(HEAD + LONGEST <= CHECKSUM_AT);

/// The record of a state.
///
/// # Panics
/// Never for a [sound](State::is_sound) state: the lengths are checked when it is compiled.
#[must_use]
pub fn encode(state: &State) -> Box<[u8; BLOCK]> {
    let mut out = Vec::with_capacity(LONGEST);
    slot_id(&mut out, state.active);
    for slot in &state.slots {
        out.push(status_number(slot.status));
        if let Some(bundle) = &slot.bundle {
            out.extend(bundle.0);
            out.extend(slot.version.to_le_bytes());
            out.extend(slot.len.to_le_bytes());
            text(&mut out, &slot.product);
        }
    }
    slot_id(&mut out, state.trial.as_ref().map(|trial| trial.slot));
    if let Some(trial) = &state.trial {
        out.push(match trial.phase {
            Phase::Gates => 0,
            Phase::Shadow => 1,
            Phase::Probation => 2,
        });
        out.push(trial.interruptions);
        out.extend(trial.began_sequence.to_le_bytes());
        text(&mut out, &trial.boot_id);
    }
    out.push(u8::try_from(state.floors.len()).unwrap_or(u8::MAX));
    for (product, version) in &state.floors {
        out.extend(version.to_le_bytes());
        text(&mut out, product);
    }
    for number in [state.root_version, state.revocation_version, state.last_permit_nonce] {
        out.extend(number.to_le_bytes());
    }
    let mut block = Box::new([0; BLOCK]);
    block[..8].copy_from_slice(MAGIC);
    block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    block[12..16].copy_from_slice(&u32::try_from(out.len()).unwrap_or(u32::MAX).to_le_bytes());
    block[16..HEAD].copy_from_slice(&state.sequence.to_le_bytes());
    block[HEAD..HEAD + out.len()].copy_from_slice(&out);
    let checksum = crc32fast::hash(&block[..CHECKSUM_AT]);
    block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// The state in a record; `None` when it is damaged or was never written.
#[must_use]
pub fn decode(block: &[u8; BLOCK]) -> Option<State> {
    let mut all = In(block);
    let checksum = u32::from_le_bytes(block[CHECKSUM_AT..].try_into().ok()?);
    if all.take(8)? != MAGIC || all.u32()? != FORMAT || crc32fast::hash(&block[..CHECKSUM_AT]) != checksum {
        return None;
    }
    let len = usize::try_from(all.u32()?).ok()?;
    let sequence = all.u64()?;
    let payload = block[HEAD..CHECKSUM_AT].get(..len)?;
    if block[HEAD + len..CHECKSUM_AT].iter().any(|&byte| byte != 0) {
        return None;
    }
    let mut input = In(payload);
    let active = input.slot_id()?;
    let slots = [input.slot()?, input.slot()?];
    let trial = match input.slot_id()? {
        None => None,
        Some(slot) => Some(Trial {
            slot,
            phase: match input.u8()? {
                0 => Phase::Gates,
                1 => Phase::Shadow,
                2 => Phase::Probation,
                _ => return None,
            },
            interruptions: input.u8()?,
            began_sequence: input.u64()?,
            boot_id: input.text()?,
        }),
    };
    let mut floors = BTreeMap::new();
    for _ in 0..input.u8()? {
        let version = input.u64()?;
        let product = input.text()?;
        if floors.last_key_value().is_some_and(|(last, _)| *last >= product) {
            return None;
        }
        floors.insert(product, version);
    }
    let state = State {
        sequence,
        active,
        slots,
        trial,
        floors,
        root_version: input.u64()?,
        revocation_version: input.u64()?,
        last_permit_nonce: input.u64()?,
    };
    (input.0.is_empty() && state.is_sound()).then_some(state)
}

fn slot_id(out: &mut Vec<u8>, slot: Option<SlotId>) {
    out.push(match slot {
        None => 0,
        Some(SlotId::A) => 1,
        Some(SlotId::B) => 2,
    });
}

fn text(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(MAX_TEXT)];
    out.push(u8::try_from(bytes.len()).unwrap_or(0));
    out.extend(bytes);
}

fn status_number(status: SlotStatus) -> u8 {
    match status {
        SlotStatus::Empty => 0,
        SlotStatus::Writing => 1,
        SlotStatus::Staged => 2,
        SlotStatus::Trial => 3,
        SlotStatus::Committed => 4,
        SlotStatus::Bad => 5,
    }
}

/// Bytes that were not read yet.
struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::from(self.u8()?);
        if len > MAX_TEXT {
            return None;
        }
        Some(std::str::from_utf8(self.take(len)?).ok()?.to_owned())
    }

    fn slot_id(&mut self) -> Option<Option<SlotId>> {
        Some(match self.u8()? {
            0 => None,
            1 => Some(SlotId::A),
            2 => Some(SlotId::B),
            _ => return None,
        })
    }

    fn slot(&mut self) -> Option<SlotState> {
        let status = match self.u8()? {
            0 => return Some(SlotState::EMPTY),
            1 => SlotStatus::Writing,
            2 => SlotStatus::Staged,
            3 => SlotStatus::Trial,
            4 => SlotStatus::Committed,
            5 => SlotStatus::Bad,
            _ => return None,
        };
        let bundle = Some(Digest(self.take(32)?.try_into().ok()?));
        let (version, len) = (self.u64()?, self.u64()?);
        Some(SlotState { status, bundle, version, len, product: self.text()? })
    }
}
