//! The same store on real files: slots that are files, the journal, the trust documents.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::{bundle, commit, install, noise};
use inferd_slots::{
    BLOCK, Config, Documents, Entry, FileMedium, Found, Journal, MAX_ENTRIES, MAX_ENTRY, Medium, SlotError,
    SlotId, Step, Store, parse,
};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn config(directory: &Path) -> Config {
    Config {
        slots: [directory.join("slot-a"), directory.join("slot-b")],
        data: directory.join("data"),
        capacity: 64 * MIB,
    }
}

/// On a filesystem with direct reads and on one that may have none.
fn places() -> [TempDir; 2] {
    [TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), TempDir::new_in("/dev/shm").unwrap()]
}

#[test]
fn a_bundle_survives_in_files_and_the_slot_is_the_bundle() {
    for place in places() {
        let config = config(place.path());
        let imbs = [bundle("files", 1, &[5 << 20, 70_000]), bundle("files", 2, &[6 << 20])];
        for (number, imb) in imbs.iter().enumerate() {
            let store = Store::at(&config).unwrap();
            let slot = install(&store, imb).unwrap().slot;
            assert_eq!(slot.index(), number);
            commit(&store, slot).unwrap();
            drop(store);
            assert_eq!(fs::read(&config.slots[number]).unwrap(), imb.bytes);
        }
        let store = Store::at(&config).unwrap();
        assert_eq!(store.found(), Found::Kept);
        assert_eq!(store.state().active, Some(SlotId::B));
        for (slot, imb) in SlotId::BOTH.into_iter().zip(&imbs) {
            let open = store.open(slot).unwrap();
            open.verify_all(&mut |_, _| {}).unwrap();
            for (model, network) in &imb.networks {
                let mut reader = open.read_file(model, "model.onnx").unwrap();
                assert_eq!(reader.len(), network.len() as u64);
                let mut read = Vec::new();
                reader.read_to_end(&mut read).unwrap();
                assert_eq!(read, *network);
            }
        }
        // Rot on the medium, which the page cache knows nothing of, is found by reading around the cache.
        let mut file = OpenOptions::new().write(true).open(&config.slots[1]).unwrap();
        file.seek(SeekFrom::End(-5000)).unwrap();
        file.write_all(b"rot").unwrap();
        let rot = store.open(SlotId::B).unwrap().verify_all(&mut |_, _| {}).unwrap_err();
        assert_eq!(rot.code(), "rot");
    }
}

#[test]
fn the_state_lies_in_eight_kibibytes_that_were_reserved() {
    let [place, _] = places();
    let config = config(place.path());
    let store = Store::at(&config).unwrap();
    let file = fs::metadata(config.data.join("state")).unwrap();
    assert_eq!((file.len(), file.blocks() * 512), (8192, 8192));
    for nonce in 1..100 {
        store.step(&Step::Permit { nonce }).unwrap();
    }
    assert_eq!(fs::metadata(config.data.join("state")).unwrap().len(), 8192);
    drop(store);
    assert_eq!(Store::at(&config).unwrap().state().last_permit_nonce, 99);
}

#[test]
fn a_file_that_was_deleted_keeps_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let medium = FileMedium::open(&dir.path().join("a"), 1 << 20).unwrap();
    medium.write(0, &[1; 4096]).unwrap();
    medium.sync().unwrap();
    std::fs::remove_file(dir.path().join("a")).unwrap();
    assert_eq!(medium.sync().unwrap_err().to_string(), "the file was deleted");
    assert_eq!(medium.write_through(0, &[0; 4096]).unwrap_err().to_string(), "the file was deleted");
}

#[test]
fn a_slot_file_grows_to_what_a_bundle_needs_before_it_is_written() {
    let [place, _] = places();
    let mut config = config(place.path());
    let imb = bundle("files", 1, &[3 << 20]);
    config.capacity = imb.bytes.len() as u64 - 1;
    assert!(matches!(
        Store::at(&config).unwrap().begin_install(imb.prefix()),
        Err(SlotError::TooSmall { .. })
    ));
    assert_eq!(fs::metadata(&config.slots[0]).unwrap().len(), 0);
    config.capacity += 1;
    let store = Store::at(&config).unwrap();
    let begun = store.begin_install(imb.prefix()).unwrap();
    let file = fs::metadata(&config.slots[0]).unwrap();
    assert_eq!(file.len(), imb.bytes.len() as u64);
    assert!(file.blocks() * 512 >= file.len());
    drop(begun);
}

#[test]
fn one_process_at_a_time_has_the_store() {
    let [place, _] = places();
    let config = config(place.path());
    let store = Store::at(&config).unwrap();
    assert!(matches!(Store::at(&config), Err(SlotError::InUse { .. })));
    drop(store);
    Store::at(&config).unwrap();
}

#[test]
fn a_medium_reads_back_any_range_and_nothing_past_its_end() {
    for place in places() {
        let medium = FileMedium::open(&place.path().join("medium"), 3 * MIB).unwrap();
        println!("{}: direct reads: {}", place.path().display(), medium.is_direct());
        let content = noise(1, 1_234_567);
        medium.reserve(2 * MIB).unwrap();
        medium.write(0, &content).unwrap();
        medium.sync().unwrap();
        for (at, len) in [(0, 1), (1, 4096), (4095, 2), (4096, 4096), (511, 600_000), (1_234_560, 7)] {
            let mut there = vec![0; len];
            medium.read_back(at, &mut there).unwrap();
            let from = usize::try_from(at).unwrap();
            assert_eq!(there, content[from..from + len], "{len} bytes at {at}");
            medium.read(at, &mut there).unwrap();
            assert_eq!(there, content[from..from + len], "{len} bytes at {at}");
        }
        // What was never written is zero, also behind the end of the file.
        let mut there = vec![1; 10_000];
        medium.read_back(2 * MIB - 5000, &mut there).unwrap();
        assert!(there.iter().all(|&byte| byte == 0));
        let block = [9; BLOCK];
        medium.write_through(8192, &block).unwrap();
        let mut there = [0; BLOCK];
        medium.read(8192, &mut there).unwrap();
        assert_eq!(there, block);
        assert_eq!(medium.read_back(3 * MIB - 1, &mut [0; 2]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(medium.write(3 * MIB - 1, &[0; 2]).unwrap_err().kind(), ErrorKind::WriteZero);
        assert!(medium.reserve(3 * MIB + 1).is_err());
        assert!(medium.read(u64::MAX, &mut [0; 2]).is_err());
    }
}

#[test]
fn what_is_neither_a_file_nor_a_block_device_is_no_medium() {
    assert_eq!(FileMedium::open(Path::new("/dev/null"), MIB).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(FileMedium::open(Path::new("/nowhere/slot"), MIB).is_err());
}

/// A verdict as another room may define it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    slot: Option<SlotId>,
    number: u64,
    text: String,
}

impl Entry for Note {
    fn slot(&self) -> Option<SlotId> {
        self.slot
    }

    fn shorten(&mut self) {
        self.text.truncate(10);
    }
}

fn note(slot: Option<SlotId>, number: u64) -> Note {
    Note { slot, number, text: format!("the {number}th, in \"quotes\"\nand lines") }
}

#[test]
fn a_journal_keeps_the_newest_of_each_slot() {
    let [place, _] = places();
    let path = place.path().join("journal");
    let journal = Journal::open(path.clone()).unwrap();
    let groups = [None, Some(SlotId::A), Some(SlotId::B)];
    for number in 0..200 {
        let entries: Vec<Note> = groups.iter().map(|&slot| note(slot, number)).collect();
        journal.append(&entries[..if number < 100 { 3 } else { 2 }]).unwrap();
    }
    let read = Journal::<Note>::open(path).unwrap();
    assert_eq!(read.verdicts(), journal.verdicts());
    assert_eq!(read.damaged(), 0);
    let of = |slot| {
        let mut numbers = Vec::new();
        numbers.extend(read.verdicts().iter().filter(|note| note.slot == slot).map(|note| note.number));
        numbers
    };
    let newest = |end: u64| (end - MAX_ENTRIES as u64..end).collect::<Vec<_>>();
    assert_eq!(groups.map(of), [newest(200), newest(200), newest(100)]);
}

#[test]
fn a_damaged_line_costs_one_verdict_whatever_is_wrong_with_it() {
    let [place, _] = places();
    let path = place.path().join("journal");
    let journal = Journal::open(path.clone()).unwrap();
    let notes: Vec<Note> = (0..10).map(|number| note(None, number)).collect();
    journal.append(&notes).unwrap();
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (read, damaged) = parse::<Note>(&bytes);
        // A flipped line end makes one line of two, or two of one; an escaped letter of the frame may be the same letter.
        assert!(read.len() >= 8 && read.len() as u64 + damaged >= 9, "bit {bit}: {}", read.len());
        assert!(read.iter().all(|note| notes.contains(note)), "bit {bit}");
    }
    for cut in 0..whole.len() {
        let (read, damaged) = parse::<Note>(&whole[..cut]);
        assert!(damaged <= 1 && read[..] == notes[..read.len()], "{cut} bytes");
    }
    // The next entry is added to what could be read.
    fs::write(&path, [&whole[..whole.len() / 2], b"\xff\n\n\0garbage"].concat()).unwrap();
    let journal = Journal::open(path.clone()).unwrap();
    assert!(journal.damaged() >= 1);
    journal.append(&[note(None, 99)]).unwrap();
    let read = Journal::<Note>::open(path).unwrap();
    assert_eq!(read.damaged(), 0);
    assert_eq!(read.verdicts().last().unwrap().number, 99);
}

#[test]
fn an_entry_that_is_too_long_is_shortened_by_its_maker() {
    let [place, _] = places();
    let journal = Journal::open(place.path().join("journal")).unwrap();
    journal.append(&[Note { slot: None, number: 1, text: "x".repeat(2 * MAX_ENTRY) }]).unwrap();
    assert_eq!(journal.verdicts()[0].text, "x".repeat(10));
}

#[test]
fn trust_documents_are_kept_and_never_go_back() {
    let [place, _] = places();
    let directory = place.path().join("trust");
    let documents = Documents::open(directory.clone()).unwrap();
    assert_eq!(documents.load().unwrap(), inferd_slots::Loaded::default());
    for version in [2, 3, 10] {
        documents.keep_root(version, format!("root {version}").as_bytes()).unwrap();
        documents.keep_revocations(version + 1, format!("list {version}").as_bytes()).unwrap();
    }
    assert!(matches!(documents.keep_root(9, b"old"), Err(SlotError::WentBack { found: 9, kept: 10, .. })));
    assert!(matches!(documents.keep_revocations(10, b"old"), Err(SlotError::WentBack { .. })));
    let long = vec![0; usize::try_from(inferd_slots::MAX_DOCUMENT).unwrap() + 1];
    assert!(matches!(documents.keep_root(11, &long), Err(SlotError::DocumentTooLong { .. })));
    // What others left there is not looked at.
    fs::write(directory.join("root-11.cbor.new"), "half").unwrap();
    fs::write(directory.join("root-x.cbor"), "?").unwrap();
    let loaded = Documents::open(directory.clone()).unwrap().load().unwrap();
    let roots: Vec<u64> = loaded.roots.iter().map(|(version, _)| *version).collect();
    assert_eq!(roots, [2, 3, 10]);
    assert_eq!(loaded.roots[2].1, b"root 10");
    assert_eq!(loaded.revocations, Some((11, b"list 10".to_vec())));
    assert_eq!(fs::read_dir(directory).unwrap().count(), 3 + 1 + 2);
    let state = inferd_slots::State { root_version: 10, revocation_version: 12, ..Default::default() };
    assert!(Documents::not_older(&state, 10, 12).is_ok());
    assert!(matches!(Documents::not_older(&state, 10, 11), Err(SlotError::WentBack { kept: 12, .. })));
    assert!(matches!(Documents::not_older(&state, 9, 12), Err(SlotError::WentBack { kept: 10, .. })));
}

#[test]
fn a_directory_that_cannot_be_written_is_told_and_the_old_file_stays() {
    let [place, _] = places();
    let path = place.path().join("journal");
    let journal = Journal::open(path.clone()).unwrap();
    journal.append(&[note(None, 1)]).unwrap();
    let before = fs::read(&path).unwrap();
    // Another directory in the way of the new file fails for everybody, also for root.
    fs::create_dir(place.path().join("journal.new")).unwrap();
    let error = journal.append(&[note(None, 2)]).unwrap_err();
    assert_eq!(error.code(), "medium-failed");
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::remove_dir(place.path().join("journal.new")).unwrap();
    journal.append(&[note(None, 3)]).unwrap();
    let numbers: Vec<u64> =
        Journal::<Note>::open(path.clone()).unwrap().verdicts().iter().map(|n| n.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o111, 0);
}

#[test]
fn what_somebody_planted_in_place_of_a_file_is_neither_followed_nor_waited_for() {
    let [place, elsewhere] = places();
    let victim = elsewhere.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let file = place.path().join("file");
    let beside = place.path().join("file.new");
    let pipe = |path: &std::path::Path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    // In the way of what is written.
    for planted in ["link", "dangling", "pipe"] {
        let _ = fs::remove_file(&file);
        match planted {
            "link" => std::os::unix::fs::symlink(&victim, &beside).unwrap(),
            "dangling" => std::os::unix::fs::symlink(elsewhere.path().join("new"), &beside).unwrap(),
            _ => pipe(&beside),
        }
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        inferd_slots::replace(&file, b"mine").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        assert!(fs::symlink_metadata(&file).unwrap().is_file() && !beside.exists());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
    // In place of what is read.
    assert_eq!(inferd_slots::read_regular(&file, 2).unwrap().unwrap(), b"mi");
    fs::remove_file(&file).unwrap();
    assert_eq!(inferd_slots::read_regular(&file, 9).unwrap(), None);
    std::os::unix::fs::symlink(&victim, &file).unwrap();
    assert!(inferd_slots::read_regular(&file, 9).is_err());
    fs::remove_file(&file).unwrap();
    pipe(&file);
    assert!(inferd_slots::read_regular(&file, 9).is_err());
    assert!(inferd_slots::read_regular(place.path(), 9).is_err());
}

#[test]
fn more_roots_than_there_can_be_are_refused_and_not_read() {
    let [place, _] = places();
    let documents = Documents::open(place.path().join("trust")).unwrap();
    for version in 1..=inferd_slots::MAX_ROOTS as u64 {
        documents.keep_root(version, b"root").unwrap();
    }
    assert!(documents.keep_root(1000, b"root").is_err());
    assert_eq!(documents.load().unwrap().roots.len(), inferd_slots::MAX_ROOTS);
    fs::write(place.path().join("trust/root-1000.cbor"), "one more").unwrap();
    assert!(documents.load().is_err());
    fs::remove_file(place.path().join("trust/root-1000.cbor")).unwrap();
    nix::unistd::mkfifo(&place.path().join("trust/revocations-1.cbor"), nix::sys::stat::Mode::S_IRWXU)
        .unwrap();
    assert!(documents.load().is_err(), "a pipe is not waited for");
    fs::remove_file(place.path().join("trust/revocations-1.cbor")).unwrap();
    assert_eq!(documents.load().unwrap().roots.len(), inferd_slots::MAX_ROOTS);
    for other in inferd_slots::MAX_ROOTS..1024 {
        fs::write(place.path().join(format!("trust/other-{other}")), "").unwrap();
    }
    documents.load().unwrap();
    fs::write(place.path().join("trust/one-more"), "").unwrap();
    assert!(documents.load().is_err(), "names are not counted without end");
}
