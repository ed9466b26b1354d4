//! Media that fail: EIO at every operation, read-only, full, lying, rotting, slow.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::{Disk, Fault, Imb, STATE, Shared, World, bundle, commit, disk_of, install, noise};
use inferd_bundle::Stream;
use inferd_slots::{BLOCK, Found, Phase, Piece, SlotError, SlotId, SlotStatus, State, Step, Store, record};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::io::Read;

const SLOT_LEN: usize = 256 * 1024;
const SETTLING: u64 = 24 * 1024;

fn pair() -> [Imb; 2] {
    [bundle("faults", 1, &[9_000, 14_000, 5_000]), bundle("faults", 2, &[9_500, 3_000, 15_000])]
}

/// A device that serves the first bundle from slot A.
fn serving(one: &Imb) -> Shared {
    let shared = Shared::new(World::new(SLOT_LEN));
    let store = shared.store(SETTLING).unwrap();
    let staged = install(&store, one).unwrap();
    assert_eq!(staged.slot, SlotId::A);
    commit(&store, staged.slot).unwrap();
    shared
}

/// Update to the second bundle, all of it.
fn update(shared: &Shared, two: &Imb) -> Result<(), SlotError> {
    let store = shared.store(SETTLING)?;
    let staged = install(&store, two)?;
    commit(&store, staged.slot)
}

/// What a reboot finds: a state, and its active slot whole.
fn reboot(shared: &Shared, context: &str) -> State {
    shared.lock().fault = None;
    shared.lock().cached.clear();
    let store = shared.store(SETTLING).expect(context);
    assert_eq!(store.found(), Found::Kept, "{context}");
    let state = store.state();
    let active = state.active.expect(context);
    store.open(active).expect(context).verify_all(&mut |_, _| {}).expect(context);
    for slot in SlotId::BOTH {
        if state.slot(slot).is_complete() {
            store.open(slot).expect(context).verify_all(&mut |_, _| {}).expect(context);
        }
    }
    state
}

/// Breaks an update at every operation in turn; afterwards the old or the new bundle serves, and a second try succeeds.
fn break_at_every_operation(
    fault: impl Fn(u64) -> Fault,
    wanted: fn(&SlotError) -> bool,
) -> BTreeMap<&'static str, u64> {
    let [one, two] = pair();
    let begin = serving(&one).lock().clone();
    let mut counts = BTreeMap::new();
    for at in 1.. {
        let shared = Shared::new(World { fault: Some(fault(at)), ops: 0, ..begin.clone() });
        let failed = update(&shared, &two);
        let reached = shared.lock().ops >= at;
        let state = reboot(&shared, &format!("at operation {at}"));
        if let Err(error) = &failed {
            assert!(wanted(error), "at operation {at}: {error}");
            *counts.entry(error.code()).or_default() += 1;
        } else {
            *counts.entry("done").or_default() += 1;
        }
        let version = state.slot(state.active.unwrap()).version;
        assert!(version == 1 || version == 2, "at operation {at}");
        assert!(state.floor("faults") >= version.min(1), "at operation {at}");
        if failed.is_ok() {
            assert_eq!(version, 2);
        }
        // Again, on a medium that works.
        if version == 1 {
            let store = shared.store(SETTLING).unwrap();
            if store.state().trial.is_some() {
                store.step(&Step::Return { bad: false }).unwrap();
            }
            let staged = install(&store, &two).unwrap();
            commit(&store, staged.slot).unwrap();
            assert_eq!(reboot(&shared, "again").active, Some(SlotId::B));
        }
        if !reached {
            println!("{at} operations: {counts:?}");
            return counts;
        }
    }
    unreachable!()
}

#[test]
fn an_error_at_any_single_operation_leaves_the_old_or_the_new_bundle() {
    let counts = break_at_every_operation(
        |at| Fault::Once(at, Errno::EIO),
        |error| matches!(error, SlotError::Io { .. } | SlotError::StateReadBack),
    );
    assert!(counts["medium-failed"] > 30);
}

#[test]
fn a_medium_that_dies_at_any_operation_leaves_the_old_or_the_new_bundle() {
    let counts = break_at_every_operation(
        |at| Fault::From(at, Errno::EIO),
        |error| matches!(error, SlotError::Io { .. }),
    );
    assert!(counts["medium-failed"] > 30);
}

#[test]
fn no_room_at_any_operation_is_told_as_such_and_leaves_the_old_or_the_new_bundle() {
    let counts = break_at_every_operation(
        |at| Fault::From(at, Errno::ENOSPC),
        |error| matches!(error, SlotError::Full { .. }),
    );
    assert!(counts["no-room"] > 30);
}

#[test]
fn a_write_that_a_counterfeit_medium_swallows_is_found_by_reading_back() {
    let [one, two] = pair();
    let begin = serving(&one).lock().clone();
    let mut caught = 0;
    for at in 1.. {
        let shared = Shared::new(World { fault: Some(Fault::Swallow(at)), ops: 0, ..begin.clone() });
        match update(&shared, &two) {
            Ok(()) => {}
            Err(SlotError::ReadBack { slot: SlotId::B, .. } | SlotError::StateReadBack) => caught += 1,
            Err(error) => panic!("at operation {at}: {error}"),
        }
        // Whatever was swallowed, nothing that is not whole counts as complete.
        reboot(&shared, &format!("at operation {at}"));
        if shared.lock().ops < at {
            break;
        }
    }
    println!("{caught} swallowed writes were caught");
    // The prefix, a page, six chunks, five records. The padding is zero before, and so is what was swallowed.
    assert_eq!(caught, 13);
}

/// A medium writes whole blocks: what lies beside a piece in its block is written again with it, proven before or not.
#[test]
fn a_write_that_spoils_its_neighbours_is_found_by_reading_them_back() {
    let [one, two] = pair();
    let begin = serving(&one).lock().clone();
    for (behind, neighbours) in [(false, 5), (true, 1)] {
        let mut caught = 0;
        for at in 1.. {
            let fault = Some(Fault::Spoil { at, behind });
            let shared = Shared::new(World { fault, ops: 0, ..begin.clone() });
            // Every piece is proven at once, before its neighbours are written.
            let store = shared.store(1).unwrap();
            match install(&store, &two) {
                Ok(staged) => {
                    let verified = store.open(staged.slot).unwrap().verify_all(&mut |_, _| {});
                    verified.unwrap_or_else(|error| panic!("at operation {at}: {error}"));
                }
                Err(SlotError::ReadBack { slot: SlotId::B, .. }) => caught += 1,
                Err(error) => panic!("at operation {at}: {error}"),
            }
            if shared.lock().ops < at {
                break;
            }
        }
        // In front of every chunk but the first one lies a chunk, and behind the last one the padding.
        assert_eq!(caught, neighbours);
    }
}

#[test]
fn a_read_only_medium_serves_and_refuses_to_install() {
    let [one, two] = pair();
    let shared = serving(&one);
    shared.lock().fault = Some(Fault::ReadOnly);
    let store = shared.store(SETTLING).unwrap();
    assert!(matches!(store.begin_install(two.prefix()), Err(SlotError::ReadOnly { .. })));
    assert!(matches!(store.step(&Step::Permit { nonce: 1 }), Err(SlotError::ReadOnly { .. })));
    let open = store.open(SlotId::A).unwrap();
    let mut network = Vec::new();
    open.read_file("model-1", "model.onnx").unwrap().read_to_end(&mut network).unwrap();
    assert_eq!(network, one.networks[1].1);
    assert_eq!(store.state().last_permit_nonce, 0);
}

#[test]
fn room_is_reserved_before_the_state_changes() {
    let [one, two] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    let before = store.state();
    let operations = shared.lock().ops;
    shared.lock().fault = Some(Fault::Once(operations + 1, Errno::ENOSPC));
    assert!(matches!(store.begin_install(two.prefix()), Err(SlotError::Full { .. })));
    assert_eq!(store.state(), before);
    assert_eq!(reboot(&shared, "after a full disk"), before);
}

#[test]
fn a_bundle_larger_than_the_slot_changes_nothing() {
    let [one, _] = pair();
    let shared = serving(&one);
    let large = bundle("faults", 3, &[300_000]);
    let store = shared.store(SETTLING).unwrap();
    let before = store.state();
    match store.begin_install(large.prefix()) {
        Err(SlotError::TooSmall { slot: SlotId::B, needed, capacity }) => {
            assert_eq!((needed, capacity), (large.bytes.len() as u64, SLOT_LEN as u64));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reboot(&shared, "after a large bundle"), before);
}

#[test]
fn an_interrupted_install_goes_on_without_writing_anything_twice() {
    let [one, two] = pair();
    let begin = serving(&one).lock().clone();
    let chunks = two.parsed.manifest().index.chunks;
    for cut in 0..=chunks {
        let shared = Shared::new(begin.clone());
        let store = shared.store(SETTLING).unwrap();
        let mut begun = store.begin_install(two.prefix()).unwrap();
        let at = |range: std::ops::Range<u64>| {
            &two.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
        };
        begun.page(0, at(two.parsed.page_range(0))).unwrap();
        for chunk in begun.missing_chunks(0).unwrap().iter().take(usize::try_from(cut).unwrap()) {
            begun.chunk(chunk, at(chunk.range())).unwrap();
        }
        drop(begun);
        let before = shared.lock().written;
        let staged = install(&store, &two).unwrap();
        assert_eq!((staged.found.pages, staged.found.chunks), (1, cut));
        // The rest of the payload, and the padding after it.
        let padding = two.parsed.total_len() - two.parsed.payload_range().end;
        let rest = two.parsed.manifest().index.payload_len - staged.found.bytes;
        assert_eq!(shared.lock().written - before, rest + padding);
    }
}

#[test]
fn pieces_that_are_not_the_bundles_are_refused() {
    let [one, two] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    let mut begun = store.begin_install(two.prefix()).unwrap();
    assert!(matches!(store.begin_install(two.prefix()), Err(SlotError::Busy)));
    let page = |imb: &Imb| {
        let range = imb.parsed.page_range(0);
        imb.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    };
    assert!(matches!(begun.missing_chunks(0), Err(SlotError::PageMissing { page: 0 })));
    assert!(matches!(begun.page(0, &page(&one)), Err(SlotError::Refused(_))));
    begun.page(0, &page(&two)).unwrap();
    let mut chunk = begun.missing_chunks(0).unwrap()[0];
    let stored = &two.bytes[usize::try_from(chunk.offset).unwrap()..][..chunk.stored_len as usize];
    assert!(matches!(begun.chunk(&chunk, &noise(1, stored.len())), Err(SlotError::Refused(_))));
    chunk.offset += 1;
    assert!(matches!(begun.chunk(&chunk, stored), Err(SlotError::Foreign { .. })));
    chunk.offset -= 1;
    begun.chunk(&chunk, stored).unwrap();
    assert_eq!(begun.have_now().chunks, 1);
    // A stream of another bundle, from its beginning and from where one was resumed.
    let from_page = usize::try_from(one.parsed.page_range(0).start).unwrap();
    let resumed = Stream::resume(one.parsed.clone(), inferd_bundle::Place::Page(0), &mut begun).unwrap();
    for (mut stream, bytes) in [(Stream::new(), &one.bytes[..]), (resumed, &one.bytes[from_page..])] {
        assert!(matches!(stream.push(bytes, &mut begun), Err(SlotError::Foreign { .. })));
    }
    assert!(matches!(begun.finish(), Err(SlotError::Incomplete { pages: 0, chunks: 5 })));
    assert_eq!(store.state().slot(SlotId::B).status, SlotStatus::Writing);
    assert!(matches!(store.open(SlotId::B), Err(SlotError::NotThere { .. })));
}

#[test]
fn every_rotten_byte_is_found_by_the_scrub_and_by_reading() {
    let [one, _] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    let disk = disk_of(SlotId::A);
    let len = one.bytes.len();
    let mut named = BTreeMap::new();
    // Every part of it, and the ends of each section.
    let sections = [0, 4095, 4096, len - 1, usize::try_from(one.parsed.payload_range().end).unwrap()];
    for at in (0..len).step_by(97).chain(sections) {
        shared.lock().disks[disk][at] ^= 1;
        let found = store.open(SlotId::A).and_then(|open| open.verify_all(&mut |_, _| {}));
        match found {
            Err(SlotError::Rot { slot: SlotId::A, piece }) => {
                let name = match piece {
                    Piece::Chunk { file, .. } => file,
                    other => other.to_string(),
                };
                *named.entry(name).or_insert(0) += 1;
            }
            other => panic!("byte {at}: {other:?}"),
        }
        shared.lock().disks[disk][at] ^= 1;
    }
    println!("{named:?}");
    assert_eq!(named.len(), 3 + 6, "the head, a page, the padding, and each file");
}

#[test]
fn rot_that_the_page_cache_hides_is_found_by_the_scrub() {
    let [one, _] = pair();
    let shared = serving(&one);
    let disk = disk_of(SlotId::A);
    shared.lock().cached.push((disk, 0, one.bytes.clone()));
    let store = shared.store(SETTLING).unwrap();
    let page = usize::try_from(one.parsed.page_range(0).start).unwrap();
    let chunk = usize::try_from(one.parsed.payload_range().start).unwrap();
    for at in [0, page, chunk, one.bytes.len() - 1] {
        shared.lock().disks[disk][at] ^= 1;
        let found = store.open(SlotId::A).and_then(|open| open.verify_all(&mut |_, _| {}));
        assert!(matches!(found, Err(SlotError::Rot { slot: SlotId::A, .. })), "byte {at}: {found:?}");
        shared.lock().disks[disk][at] ^= 1;
    }
}

#[test]
fn a_slot_with_another_bundle_than_the_record_says_is_not_opened() {
    let [one, two] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    shared.lock().disks[disk_of(SlotId::A)][..two.bytes.len()].copy_from_slice(&two.bytes);
    match store.open(SlotId::A) {
        Err(SlotError::OtherBundle { slot: SlotId::A, expected, found }) => {
            assert_eq!((expected, found), (one.id(), two.id()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_scrub_goes_on_where_it_stopped_and_begins_again_at_the_end() {
    let [one, _] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    let mut scrub = store.open(SlotId::A).unwrap().scrub();
    for _ in 0..2 {
        let mut done = 0;
        loop {
            let step = scrub.step(10_000).unwrap();
            assert!(step.done > done && step.total == one.bytes.len() as u64);
            done = step.done;
            if step.finished {
                break;
            }
        }
        assert_eq!(done, one.bytes.len() as u64);
    }
    // Rot that comes while it runs.
    let chunk = usize::try_from(one.parsed.payload_range().end).unwrap() - 1;
    scrub.step(1).unwrap();
    shared.lock().disks[disk_of(SlotId::A)][chunk] ^= 0x80;
    let rot = std::iter::repeat_with(|| scrub.step(10_000)).find_map(Result::err).unwrap();
    assert_eq!(rot.code(), "rot");
    assert!(rot.to_string().contains("chunk 5 (model-"), "{rot}");
    // The caller's answer to it.
    store.step(&Step::Condemn { slot: SlotId::A }).unwrap();
    assert_eq!(store.state().active, None);
    assert!(matches!(scrub.step(10_000), Err(SlotError::NotThere { status: SlotStatus::Bad, .. })));
}

#[test]
fn a_reader_hands_out_nothing_of_a_rotten_chunk() {
    let imb = bundle("faults", 1, &[200_000]);
    let shared = Shared::new(World::new(512 * 1024));
    let store = shared.store(SETTLING).unwrap();
    install(&store, &imb).unwrap();
    let open = store.open(SlotId::A).unwrap();
    let entry = open.bundle().manifest().model("model-0").unwrap().file("model.onnx").unwrap().clone();
    assert!(entry.chunks > 1);
    let last = usize::try_from(open.bundle().payload_range().end).unwrap() - 1;
    shared.lock().disks[disk_of(SlotId::A)][last] ^= 1;
    let mut read = Vec::new();
    let error = open.read_file("model-0", "model.onnx").unwrap().read_to_end(&mut read).unwrap_err();
    let error = error.get_ref().unwrap().downcast_ref::<SlotError>().unwrap();
    assert!(matches!(error, SlotError::Rot { piece: Piece::Chunk { .. }, .. }), "{error}");
    assert_eq!(read, imb.networks[0].1[..read.len()]);
    assert!(!read.is_empty() && read.len() < imb.networks[0].1.len());
    assert!(matches!(open.read_file("model-0", "other"), Err(SlotError::NoSuchFile { .. })));
}

#[test]
fn two_damaged_records_are_recovered_from_the_slots() {
    let [one, two] = pair();
    let shared = serving(&one);
    update(&shared, &two).unwrap();
    // One costs nothing.
    let kept = reboot(&shared, "before");
    for place in 0..2 {
        let at = place * BLOCK + 20;
        shared.lock().disks[STATE][at] ^= 1;
        let state = shared.store(SETTLING).unwrap().state();
        assert!(state.sequence == kept.sequence || state.sequence == kept.sequence - 1);
        assert_eq!(State { sequence: kept.sequence, ..state }, kept);
        shared.lock().disks[STATE][at] ^= 1;
    }
    for wipe in [false, true] {
        let shared = Shared::new(shared.lock().clone());
        for byte in &mut shared.lock().disks[STATE] {
            *byte = if wipe { 0 } else { *byte ^ 0x55 };
        }
        let store = shared.store(SETTLING).unwrap();
        assert_eq!(store.found(), Found::Lost);
        assert!(matches!(store.begin_install(one.prefix()), Err(SlotError::Lost)));
        let recovered = store.recover(&mut |_, done, all| assert!(done <= all)).unwrap().unwrap();
        assert_eq!(recovered.candidate, Some(SlotId::B));
        assert_eq!(store.found(), Found::Kept);
        let state = store.state();
        assert_eq!(
            state.slots.each_ref().map(|slot| (slot.status, slot.version)),
            [(SlotStatus::Staged, 1), (SlotStatus::Staged, 2)]
        );
        assert_eq!(state.active, None);
        commit(&store, SlotId::B).unwrap();
        assert_eq!(reboot(&shared, "recovered").active, Some(SlotId::B));
    }
}

/// A factory reset (`boot` in the image's overlay) fills the first block of both slots with zeros and then takes the record away. It begins
/// anew after a power cut, so what a daemon finds is the end of it; a slot whose turn has not come is one that would come back.
#[test]
fn a_slot_without_its_beginning_does_not_come_back_when_the_record_is_gone() {
    let [one, two] = pair();
    let shared = serving(&one);
    update(&shared, &two).unwrap();
    let condemn = Step::Condemn { slot: SlotId::B };
    shared.store(SETTLING).unwrap().step(&condemn).unwrap();
    let whole = shared.lock().clone();
    for emptied in 0..=2 {
        let shared = Shared::new(whole.clone());
        for slot in &SlotId::BOTH[..emptied] {
            shared.lock().disks[disk_of(*slot)][..BLOCK].fill(0);
        }
        shared.lock().disks[STATE].fill(0);
        let store = shared.store(SETTLING).unwrap();
        let recovered = store.recover(&mut |_, _, _| {}).unwrap();
        let back = recovered.and_then(|recovered| recovered.candidate);
        // Nothing but the record says of B that it was condemned.
        assert_eq!(back, (emptied < 2).then_some(SlotId::B), "{emptied} slots emptied");
        if emptied == 2 {
            assert_eq!((store.found(), store.state()), (Found::Fresh, State::default()));
            drop(store);
            // The device installs as a new one does.
            update(&shared, &one).unwrap();
            assert_eq!(reboot(&shared, "after the reset").active, Some(SlotId::A));
        }
    }
}

#[test]
fn recovery_takes_no_bundle_that_is_not_whole() {
    let [one, two] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    let mut begun = store.begin_install(two.prefix()).unwrap();
    let range = two.parsed.page_range(0);
    begun
        .page(0, &two.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()])
        .unwrap();
    drop(begun);
    shared.lock().disks[STATE].fill(0xff);
    let store = shared.store(SETTLING).unwrap();
    let recovered = store.recover(&mut |_, _, _| {}).unwrap().unwrap();
    assert_eq!(recovered.candidate, Some(SlotId::A));
    assert_eq!(recovered.state.slot(SlotId::B).status, SlotStatus::Empty);
}

#[test]
fn a_slot_that_cannot_be_read_does_not_keep_the_other_from_being_recovered() {
    let [one, _] = pair();
    let shared = serving(&one);
    shared.lock().disks[STATE].fill(0xff);
    let store = shared.store(SETTLING).unwrap();
    // With both slots gone nothing is recorded: they may answer again.
    shared.lock().fault = Some(Fault::From(0, Errno::EIO));
    assert!(matches!(store.recover(&mut |_, _, _| {}), Err(SlotError::Io { .. })));
    // Nor with the one that has the bundle.
    shared.lock().fault = Some(Fault::Dead(disk_of(SlotId::A)));
    assert!(matches!(store.recover(&mut |_, _, _| {}), Err(SlotError::Io { .. })));
    assert_eq!(store.found(), Found::Lost);
    shared.lock().fault = Some(Fault::Dead(disk_of(SlotId::B)));
    let recovered = store.recover(&mut |_, _, _| {}).unwrap().unwrap();
    assert_eq!(recovered.candidate, Some(SlotId::A));
}

#[test]
fn a_passing_error_at_the_start_costs_no_step() {
    let [one, _] = pair();
    let shared = serving(&one);
    let kept = shared.store(SETTLING).unwrap().state();
    for at in 1..=2 {
        shared.lock().ops = 0;
        shared.lock().fault = Some(Fault::Once(at, Errno::EIO));
        assert_eq!(shared.store(SETTLING).unwrap().state(), kept, "at operation {at}");
    }
}

#[test]
fn a_failed_step_changes_nothing_and_the_next_one_succeeds() {
    let [one, _] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    let before = store.state();
    for nonce in 1..4 {
        let operations = shared.lock().ops;
        // The write fails, then the read back.
        for at in 1..=2 {
            shared.lock().fault = Some(Fault::Once(operations + at, Errno::EIO));
            shared.lock().ops = operations;
            assert!(store.step(&Step::Permit { nonce }).is_err());
            assert_eq!(store.state().last_permit_nonce, nonce - 1);
            // A reboot at this moment may find either, and its sequence is one that was sent.
            let found = shared.store(SETTLING).unwrap().state();
            assert!(found.last_permit_nonce == nonce - 1 || found.last_permit_nonce == nonce);
        }
        shared.lock().fault = None;
        store.step(&Step::Permit { nonce }).unwrap();
        assert_eq!(shared.store(SETTLING).unwrap().state(), store.state());
    }
    assert!(store.state().sequence > before.sequence + 3);
}

#[test]
fn chunks_of_both_slots_are_found_by_digest_until_they_are_overwritten() {
    let [one, two] = pair();
    let shared = serving(&one);
    update(&shared, &two).unwrap();
    let store = shared.store(SETTLING).unwrap();
    let local = store.local_chunks();
    assert_eq!(local.digests().count(), 12);
    let every = |imb: &Imb| {
        let range = imb.parsed.page_range(0);
        let page = &imb.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        imb.parsed.check_page(0, page).unwrap().chunks().collect::<Vec<_>>()
    };
    for imb in [&one, &two] {
        for chunk in every(imb) {
            assert!(local.contains(&chunk.digest));
            let bytes = local.chunk(&chunk.digest).unwrap();
            chunk.check(&bytes).unwrap();
        }
    }
    // A third bundle goes over the first.
    install(&store, &bundle("faults", 3, &[30_000])).unwrap();
    for chunk in every(&one) {
        if let Some(bytes) = local.chunk(&chunk.digest) {
            chunk.check(&bytes).unwrap();
        }
    }
    assert!(every(&one).iter().any(|chunk| local.chunk(&chunk.digest).is_none()));
    assert!(every(&two).iter().all(|chunk| local.chunk(&chunk.digest).is_some()));
}

#[test]
fn the_state_machine_refuses_what_would_hurt() {
    let [one, two] = pair();
    let shared = serving(&one);
    let store = shared.store(SETTLING).unwrap();
    let refused = |store: &Store<Disk>, step: &Step, code: &str| {
        let before = store.state();
        assert_eq!(store.step(step).unwrap_err().code(), code, "{step:?}");
        assert_eq!(store.state(), before);
    };
    let boot_id = || "boot".to_owned();
    refused(&store, &Step::Erase { slot: SlotId::A }, "slot-active");
    refused(&store, &Step::Try { slot: SlotId::B, boot_id: boot_id() }, "slot-status");
    refused(&store, &Step::Try { slot: SlotId::A, boot_id: boot_id() }, "slot-status");
    refused(&store, &Step::Commit { permit: None }, "no-trial");
    refused(&store, &Step::Rollback, "slot-status");
    refused(&store, &Step::Stage { slot: SlotId::B }, "only-install");
    install(&store, &two).unwrap();
    store.step(&Step::Try { slot: SlotId::B, boot_id: boot_id() }).unwrap();
    refused(&store, &Step::Commit { permit: None }, "trial-phase");
    refused(&store, &Step::Erase { slot: SlotId::B }, "trial-running");
    assert_eq!(store.begin_install(two.prefix()).unwrap_err().code(), "trial-running");
    store.step(&Step::Advance { phase: Phase::Probation }).unwrap();
    refused(&store, &Step::Advance { phase: Phase::Shadow }, "trial-phase");
    refused(&store, &Step::Rollback, "trial-running");
    assert_eq!(store.state().floor("faults"), 1);
    store.step(&Step::Commit { permit: None }).unwrap();
    assert_eq!(store.state().floor("faults"), 2);
    // Going back lowers no floor.
    store.step(&Step::Rollback).unwrap();
    assert_eq!((store.state().active, store.state().floor("faults")), (Some(SlotId::A), 2));
    store.step(&Step::Trust { root: 3, revocations: 5 }).unwrap();
    refused(&store, &Step::Trust { root: 2, revocations: 5 }, "goes-back");
    store.step(&Step::Permit { nonce: 7 }).unwrap();
    refused(&store, &Step::Permit { nonce: 7 }, "goes-back");
    let boot_id = "x".repeat(65);
    let begun = store.begin_install(two.prefix()).unwrap();
    refused(&store, &Step::Erase { slot: SlotId::B }, "install-running");
    drop(begun);
    store.step(&Step::Erase { slot: SlotId::B }).unwrap();
    install(&store, &two).unwrap();
    refused(&store, &Step::Try { slot: SlotId::B, boot_id }, "name-too-long");
}

#[test]
fn no_step_begins_from_a_state_that_it_does_not_belong_to() {
    let code = |state: &State, step: &Step| state.step(step).unwrap_err().code();
    let fresh = State::default();
    for slot in SlotId::BOTH {
        assert_eq!(code(&fresh, &Step::Stage { slot }), "slot-status", "nothing was written");
    }
    // Nothing is active, and both slots hold a bundle.
    let staged = SlotId::BOTH.into_iter().fold(fresh, |state, slot| {
        let bundle = inferd_bundle::Digest([7; 32]);
        let write = Step::Write { slot, bundle, product: "p".into(), version: 1, len: 1 };
        state.step(&write).unwrap().step(&Step::Stage { slot }).unwrap()
    });
    let tried = |slot| Step::Try { slot, boot_id: "boot".into() };
    let trial = staged.step(&tried(SlotId::A)).unwrap();
    assert_eq!(code(&trial, &tried(SlotId::B)), "trial-running", "one trial at a time");
    assert_eq!(code(&trial, &Step::Stage { slot: SlotId::B }), "slot-status", "it is staged already");
}

#[test]
fn a_downgrade_that_was_permitted_leaves_the_floor_where_it_is() {
    let [one, two] = pair();
    let shared = serving(&two);
    let store = shared.store(SETTLING).unwrap();
    install(&store, &one).unwrap();
    commit(&store, SlotId::B).unwrap();
    let state = store.state();
    assert_eq!((state.slot(SlotId::B).version, state.floor("faults")), (1, 2));
}

#[test]
fn the_largest_state_fits_its_record_and_every_flipped_bit_is_noticed() {
    let mut state = State { sequence: u64::MAX - 1, ..State::default() };
    let name = |letter: usize| format!("{letter:02}").repeat(32);
    for product in 0..inferd_slots::MAX_PRODUCTS {
        state.floors.insert(name(product), u64::MAX);
    }
    for (number, slot) in state.slots.iter_mut().enumerate() {
        slot.status = [SlotStatus::Committed, SlotStatus::Trial][number];
        slot.bundle = Some(inferd_bundle::Digest([0xee; 32]));
        slot.product = name(number);
        slot.version = u64::MAX;
        slot.len = u64::MAX;
    }
    state.active = Some(SlotId::A);
    state.trial = Some(inferd_slots::Trial {
        slot: SlotId::B,
        phase: Phase::Shadow,
        boot_id: name(3),
        interruptions: 255,
        began_sequence: u64::MAX,
    });
    let block = record::encode(&state);
    assert_eq!(record::decode(&block), Some(state));
    let mut block = block;
    for bit in 0..BLOCK * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(record::decode(&block), None, "bit {bit}");
        block[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_record_that_no_step_leads_to_is_none_whatever_its_checksum_says() {
    let floors = [("a".to_owned(), 1), ("b".to_owned(), 2)].into();
    let block = record::encode(&State { sequence: 7, floors, ..State::default() });
    assert!(record::decode(&block).is_some());
    // Behind the head of 24 bytes: nothing active, two empty slots, no trial, and the number of floors.
    let (format, len, active, floor, end) = (8, 12, 24, 24 + 5, 24 + usize::from(block[12]));
    assert_eq!(block[floor - 1], 2);
    let changed = |change: &dyn Fn(&mut [u8; BLOCK])| {
        let mut block = block.clone();
        change(&mut block);
        let checksum = crc32fast::hash(&block[..BLOCK - 4]);
        block[BLOCK - 4..].copy_from_slice(&checksum.to_le_bytes());
        record::decode(&block)
    };
    assert!(changed(&|_| ()).is_some());
    assert_eq!(changed(&|block| block[format] = 2), None, "another format");
    assert_eq!(changed(&|block| block[end] = 1), None, "something behind the payload");
    assert_eq!(changed(&|block| block[len] += 1), None, "a payload with a rest");
    assert_eq!(changed(&|block| block[len] -= 1), None, "a payload that is cut off");
    assert_eq!(changed(&|block| block[active] = 1), None, "an empty slot is active");
    // A floor is a version of eight bytes, the length of a name, and the name.
    assert_eq!(changed(&|block| block.swap(floor + 9, floor + 19)), None, "products not in order");
    assert_eq!(changed(&|block| block[floor + 19] = b'a'), None, "a product twice");
}
