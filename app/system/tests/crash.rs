//! A power cut at any instant of trying and committing leaves the old choice or the new one; what starts after a try is the system that
//! asked for it.
//!
//! Every write of a story is cut off before it, after it, and after each of its bytes. The board is then started as U-Boot's script and
//! the Raspberry Pi's firmware start it, and must run what the promise says.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::{Disk, Fat, Fault, Sector};
use inferd_system::autoboot::Autoboot;
use inferd_system::record::{PLACES, Record, newest};
use inferd_system::{Backend, BootError, Firmware, Now, Restart, SECTOR, Sectors as _, Slot, Tryboot, Uboot};

// === U-Boot ===

/// What U-Boot's script does at a start: takes the try out of the record, then starts what was chosen or tried.
fn uboot_starts(disk: &Disk) -> String {
    let records = PLACES.map(|at| Record::decode(&disk.get(at)));
    let Some((at, record)) = newest(records) else { return "inferd.slot=a".into() };
    let Some(slot) = record.tried else { return format!("inferd.slot={}", record.chosen) };
    let done = Record { generation: record.generation + 1, tried: None, ..record };
    disk.write(PLACES[1 - at], &done.encode()).unwrap();
    format!("console=ttyAMA0 inferd.slot={slot} inferd.try=1")
}

fn uboot(disk: &Disk, cmdline: &str) -> Uboot<Disk> {
    Uboot::new(disk.clone(), cmdline, None)
}

/// Every state that a cut may leave of these writes, with how many of them are whole.
fn cuts(begin: &Disk, log: &[(u64, Sector, Sector)], torn: bool) -> Vec<(usize, Disk)> {
    let mut states = Vec::new();
    let disk = begin.copy();
    for (n, (at, was, new)) in log.iter().enumerate() {
        states.push((n, disk.copy()));
        for cut in (1..SECTOR).filter(|_| torn) {
            for (head, tail) in [(new, was), (was, new)] {
                let mut sector = *head;
                sector[cut..].copy_from_slice(&tail[cut..]);
                let state = disk.copy();
                state.put(*at, &sector);
                states.push((n, state));
            }
        }
        disk.put(*at, new);
    }
    states.push((log.len(), disk));
    states
}

#[test]
fn a_power_cut_while_a_try_is_armed_starts_the_old_system_or_tries_once() {
    let disk = Disk::new(1 << 20);
    for (runs, other) in [(Slot::A, Slot::B), (Slot::B, Slot::A), (Slot::A, Slot::B)] {
        let begin = disk.copy();
        disk.take_log();
        let cmdline = uboot_starts(&disk);
        assert_eq!(cmdline, format!("inferd.slot={runs}"));
        assert_eq!(uboot(&disk, &cmdline).arm(other).unwrap(), Restart::Plain);
        let log = disk.take_log();
        assert_eq!(log.len(), 1, "one write of one sector");
        let mut tried = 0;
        for (whole, state) in cuts(&begin, &log, true) {
            let first = uboot_starts(&state);
            let second = uboot_starts(&state);
            assert_eq!(second, format!("inferd.slot={runs}"), "what follows a try is what asked for it");
            let tries = first.contains("inferd.try=1");
            assert_eq!(first.contains(&format!("inferd.slot={other}")), tries);
            assert!(whole == 0 || tries, "what was armed is tried");
            tried += usize::from(tries);
        }
        assert!(tried >= 1);
        // On to the other system, committed.
        let cmdline = uboot_starts(&disk);
        assert_eq!(uboot(&disk, &cmdline).now().unwrap(), Now { runs: other, on_trial: true, chosen: runs });
        uboot(&disk, &cmdline).commit().unwrap();
    }
}

#[test]
fn a_power_cut_while_uboot_takes_the_try_out_tries_again_and_never_loses_the_old_system() {
    let disk = Disk::new(1 << 20);
    uboot(&disk, "inferd.slot=a").arm(Slot::B).unwrap();
    let begin = disk.copy();
    disk.take_log();
    uboot_starts(&disk);
    for (_, state) in cuts(&begin, &disk.take_log(), true) {
        let next = [uboot_starts(&state), uboot_starts(&state)];
        assert_eq!(next[1], "inferd.slot=a");
    }
}

#[test]
fn a_power_cut_while_a_system_is_committed_leaves_the_old_choice_or_the_new_one() {
    let disk = Disk::new(1 << 20);
    for (old, new) in [(Slot::A, Slot::B), (Slot::B, Slot::A), (Slot::A, Slot::B)] {
        let cmdline = uboot_starts(&disk);
        uboot(&disk, &cmdline).arm(new).unwrap();
        let cmdline = uboot_starts(&disk);
        let begin = disk.copy();
        disk.take_log();
        uboot(&disk, &cmdline).commit().unwrap();
        let log = disk.take_log();
        assert_eq!(log.len(), 1, "one write of one sector");
        for (whole, state) in cuts(&begin, &log, true) {
            let starts = uboot_starts(&state);
            let want = if whole == 1 { [new, new] } else { [old, new] };
            assert!(want.iter().any(|slot| starts == format!("inferd.slot={slot}")), "{starts}");
        }
        uboot(&disk, &cmdline).commit().unwrap();
        assert!(disk.take_log().is_empty(), "committed twice is written once");
    }
}

#[test]
fn a_record_that_rots_leaves_the_step_before() {
    let disk = Disk::new(1 << 20);
    uboot(&disk, "inferd.slot=a").arm(Slot::B).unwrap();
    uboot_starts(&disk);
    let records = PLACES.map(|at| Record::decode(&disk.get(at)));
    let (newest_at, _) = newest(records).unwrap();
    disk.put(PLACES[newest_at], &[0xff; SECTOR]);
    // It tries again, and comes back.
    assert_eq!(uboot_starts(&disk), "console=ttyAMA0 inferd.slot=b inferd.try=1");
    assert_eq!(uboot_starts(&disk), "inferd.slot=a");
    PLACES.iter().for_each(|&at| disk.put(at, &[0xff; SECTOR]));
    assert_eq!(uboot_starts(&disk), "inferd.slot=a", "a medium without records");
    assert_eq!(uboot(&disk, "inferd.slot=a").now().unwrap().chosen, Slot::A);
}

#[test]
fn a_write_that_fails_or_is_swallowed_is_told_and_leaves_the_choice() {
    for fault in [Fault::Error, Fault::Swallow] {
        let disk = Disk::new(1 << 20);
        disk.fail(fault);
        let told = uboot(&disk, "inferd.slot=a").arm(Slot::B);
        assert!(matches!(told, Err(BootError::Write(_))), "{fault:?}: {told:?}");
        assert_eq!(uboot_starts(&disk), "inferd.slot=a");
        let (disk, pi) = pi(Slot::B, true, Some(NEW));
        disk.fail(fault);
        assert!(matches!(pi.commit(), Err(BootError::Write(_))), "{fault:?}");
        assert_eq!(pi.now().unwrap().chosen, Slot::A);
    }
}

#[test]
fn only_the_chosen_system_has_the_other_one_tried() {
    let disk = Disk::new(1 << 20);
    let refused = |cmdline: &str, slot| matches!(uboot(&disk, cmdline).arm(slot), Err(BootError::Unfit(_)));
    assert!(refused("inferd.slot=a", Slot::A), "itself");
    assert!(refused("inferd.slot=b inferd.try=1", Slot::A), "on trial: a is chosen");
    assert!(refused("quiet", Slot::B), "nobody knows what runs");
    assert!(uboot(&disk, "quiet").preflight().is_err());
    assert!(uboot(&Disk::new(4096), "inferd.slot=a").preflight().is_err(), "no room for the second record");
    assert!(disk.take_log().is_empty());
    // An initramfs that mounted the other slot in the end: nothing is on trial.
    let other = Uboot::new(disk.clone(), "inferd.slot=b inferd.try=1", Some(Slot::A));
    assert_eq!(other.now().unwrap(), Now { runs: Slot::A, on_trial: false, chosen: Slot::A });
}

#[test]
fn the_system_that_is_chosen_while_a_try_is_armed_takes_the_try_out() {
    let disk = Disk::new(1 << 20);
    let runs = uboot(&disk, "inferd.slot=a");
    runs.arm(Slot::B).unwrap();
    runs.commit().unwrap();
    let records = PLACES.map(|at| Record::decode(&disk.get(at)));
    assert_eq!(newest(records).unwrap().1, Record { generation: 2, chosen: Slot::A, tried: None });
}

// === Raspberry Pi ===

const FLOOR: &str = "2025-10-08";
/// A bootloader of that day, and one of the second before.
const NEW: u32 = 1_759_881_600;
const OLD: u32 = NEW - 1;

/// A Pi that runs this system; `boot-a` and `boot-b` are partitions 2 and 3, and 2 is chosen.
fn pi(runs: Slot, on_trial: bool, built: Option<u32>) -> (Disk, Tryboot<Disk>) {
    let (disk, _) = Fat::of(16).make(&Autoboot { chosen: 2, other: 3 }.encode());
    let pi = firmware_starts(&disk, runs, on_trial, built);
    (disk, pi)
}

fn firmware_starts(disk: &Disk, runs: Slot, on_trial: bool, built: Option<u32>) -> Tryboot<Disk> {
    let partition = if runs == Slot::A { 2 } else { 3 };
    let firmware = Firmware { partition: Some(partition), tryboot: Some(on_trial.into()), built };
    Tryboot::new(disk.clone(), [2, 3], firmware, &format!("root=x inferd.slot={runs}"), None, Some(FLOOR))
}

#[test]
fn a_pi_is_committed_with_one_write_of_the_sector_that_holds_the_choice() {
    for bits in [12, 16, 32] {
        let (disk, at) = Fat::of(bits).make(&Autoboot { chosen: 2, other: 3 }.encode());
        let old = firmware_starts(&disk, Slot::A, false, Some(NEW));
        assert_eq!(old.arm(Slot::B).unwrap(), Restart::Argument("0 tryboot"));
        assert!(disk.take_log().is_empty(), "a try writes nothing");
        let begin = disk.copy();
        let new = firmware_starts(&disk, Slot::B, true, Some(NEW));
        assert_eq!(new.now().unwrap(), Now { runs: Slot::B, on_trial: true, chosen: Slot::A });
        new.commit().unwrap();
        let log = disk.take_log();
        assert!(log.len() == 1 && log[0].0 == at, "one write, in its place");
        // A sector that is there or not is the card's promise.
        for (whole, state) in cuts(&begin, &log, false) {
            let read = Autoboot::decode(&state.get(at)).unwrap();
            assert_eq!(read.chosen, if whole == 1 { 3 } else { 2 });
        }
        assert_eq!(new.now().unwrap().chosen, Slot::B);
        new.commit().unwrap();
        assert!(disk.take_log().is_empty(), "committed twice is written once");
    }
}

#[test]
fn a_pi_whose_bootloader_is_too_old_or_says_nothing_is_not_updated() {
    let refusal =
        |built| pi(Slot::A, false, built).1.preflight().map_err(|refused| (refused.code, refused.sentence));
    assert_eq!(refusal(Some(NEW)), Ok(()));
    let (code, sentence) = refusal(Some(OLD)).unwrap_err();
    assert!(
        code == "firmware-too-old" && sentence.contains("2025-10-07") && sentence.contains(FLOOR),
        "{sentence}"
    );
    assert!(sentence.contains("rpi-eeprom-update"), "what to do about it: {sentence}");
    assert_eq!(refusal(None).unwrap_err().0, "firmware-too-old");
}

#[test]
fn a_pi_whose_kernel_runs_the_other_systems_root_filesystem_is_on_no_trial() {
    let (disk, _) = pi(Slot::A, false, Some(NEW));
    let firmware = Firmware { partition: Some(3), tryboot: Some(1), built: Some(NEW) };
    let start = |mounted| Tryboot::new(disk.clone(), [2, 3], firmware, "inferd.slot=b", mounted, Some(FLOOR));
    let tried = Now { runs: Slot::B, on_trial: true, chosen: Slot::A };
    assert_eq!(start(Some(Slot::B)).now().unwrap(), tried);
    assert_eq!(start(None).now().unwrap(), tried);
    let strayed = start(Some(Slot::A));
    assert_eq!(strayed.now().unwrap(), Now { runs: Slot::A, on_trial: false, chosen: Slot::A });
    strayed.preflight().unwrap();
    strayed.commit().unwrap();
    assert!(disk.take_log().is_empty(), "what runs is chosen already");
}

#[test]
fn a_pi_whose_choice_contradicts_itself_is_left_alone() {
    let (disk, _) = pi(Slot::A, false, Some(NEW));
    let says = |partition, cmdline: &str, numbers| {
        let firmware = Firmware { partition, tryboot: Some(0), built: Some(NEW) };
        let pi = Tryboot::new(disk.clone(), numbers, firmware, cmdline, None, Some(FLOOR));
        assert!(pi.preflight().is_err() && pi.arm(Slot::B).is_err() && pi.commit().is_err());
        pi.preflight().unwrap_err().sentence
    };
    assert!(says(Some(3), "inferd.slot=a", [2, 3]).contains("started partition 3"));
    assert!(says(None, "inferd.slot=a", [2, 3]).contains("started partition none"));
    assert!(says(Some(2), "quiet", [2, 3]).contains("which system"));
    assert!(says(Some(2), "inferd.slot=a", [2, 4]).contains("other partitions"));
    let (disk, at) = Fat::of(16).make(b"[all]\nboot_partition=2\n");
    let pi = firmware_starts(&disk, Slot::A, false, Some(NEW));
    assert!(pi.preflight().unwrap_err().sentence.contains("left alone"));
    disk.put(at, &[0xff; SECTOR]);
    assert!(pi.commit().is_err());
    assert!(disk.take_log().is_empty());
}
