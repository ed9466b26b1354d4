//! Which backend a board has follows from what its image and its kernel say.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

use inferd_system::record::{PLACES, Record};
use inferd_system::{BoardError, Places, Restart, SECTOR, Slot, View};
use std::fs;
use std::path::Path;

/// A board of this backend whose disk has these partitions.
fn machine(backend: &str, partitions: &[(&str, u32)]) -> (tempfile::TempDir, Places) {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for directory in ["dev", "bootloader", "efivars"] {
        fs::create_dir(at(directory)).unwrap();
    }
    fs::write(
        at("board.toml"),
        format!("name = \"x\"\nother = 1\n[boot]\nbackend = \"{backend}\"\ncmdline = \"\"\n"),
    )
    .unwrap();
    fs::write(at("cmdline"), "console=ttyAMA0 inferd.slot=b inferd.try=1\n").unwrap();
    fs::write(at("slot"), "b\n").unwrap();
    for (n, (name, number)) in partitions.iter().enumerate() {
        let node = format!("vd{n}{number}");
        fs::create_dir_all(at(&format!("blocks/{node}"))).unwrap();
        let uevent =
            format!("MAJOR=254\nDEVNAME={node}\nDEVTYPE=partition\nPARTN={number}\nPARTNAME={name}\n");
        fs::write(at(&format!("blocks/{node}/uevent")), uevent).unwrap();
        fs::write(at(&format!("dev/{node}")), vec![0; 16 << 10]).unwrap();
    }
    fs::create_dir_all(at("blocks/vda")).unwrap();
    let places = Places {
        board: at("board.toml"),
        release: at("os-release"),
        cmdline: at("cmdline"),
        slot: at("slot"),
        bootloader: at("bootloader"),
        kallsyms: at("kallsyms"),
        efivars: at("efivars"),
        blocks: at("blocks"),
        devices: at("dev"),
    };
    (root, places)
}

fn refusal(places: &Places) -> String {
    let backend = places.backend(&places.board().unwrap(), false).unwrap();
    assert!(backend.now().is_err() && backend.arm(Slot::A).is_err() && backend.commit().is_err());
    backend.preflight().unwrap_err().sentence
}

#[test]
fn a_board_with_uboot_finds_its_choice_by_the_name_of_its_partition_and_commits_on_the_medium() {
    let (root, places) = machine("uboot-env", &[("rootfs-a", 3), ("bootstate", 5)]);
    let backend = places.backend(&places.board().unwrap(), true).unwrap();
    assert_eq!(backend.name(), "uboot-env");
    backend.preflight().unwrap();
    let now = backend.now().unwrap();
    assert!(now.runs == Slot::B && now.on_trial && now.chosen == Slot::A);
    backend.commit().unwrap();
    assert_eq!(backend.arm(Slot::A).unwrap(), Restart::Plain);
    let bytes = fs::read(root.path().join("dev/vd15")).unwrap();
    let record = |place: u64| {
        let at = usize::try_from(place).unwrap();
        Record::decode(bytes[at..at + SECTOR].try_into().unwrap()).unwrap()
    };
    assert_eq!(record(PLACES[0]), Record { generation: 1, chosen: Slot::B, tried: None });
    assert_eq!(record(PLACES[1]), Record { generation: 2, chosen: Slot::B, tried: Some(Slot::A) });
    let only_read = places.backend(&places.board().unwrap(), false).unwrap();
    fs::write(root.path().join("slot"), "b").unwrap();
    assert_eq!(only_read.now().unwrap().chosen, Slot::B);
}

#[test]
fn what_a_board_says_of_its_systems_can_be_shown_to_anybody() {
    let (root, places) = machine("uboot-env", &[("bootstate", 5)]);
    let view = View::of(&places).unwrap();
    assert!((view.runs, view.chosen, view.on_trial) == (Some(Slot::B), Some(Slot::A), true));
    assert!(view.refused.is_none() && view.backend == "uboot-env" && view.image.is_none());
    fs::write(root.path().join("os-release"), "ID=inferd\nIMAGE_ID=os\nIMAGE_VERSION=7\n").unwrap();
    let image = View::of(&places).unwrap().image.unwrap();
    assert_eq!((image.product.as_str(), image.version), ("os", 7));
    let (_root, places) = machine("initramfs", &[]);
    let view = View::of(&places).unwrap();
    assert!(view.runs.is_none() && view.refused.unwrap().1.contains("one kernel"));
    let (_root, places) = machine("uboot-env", &[]);
    assert!(View::of(&places).unwrap().refused.unwrap().1.contains("no partition bootstate"));
    let nowhere = Places { board: "/nowhere".into(), ..places };
    assert!(View::of(&nowhere).is_none());
}

#[test]
fn a_second_medium_with_a_partition_of_that_name_decides_nothing() {
    let (_root, places) = machine("uboot-env", &[("bootstate", 5), ("bootstate", 1)]);
    assert!(matches!(places.backend(&places.board().unwrap(), false), Err(BoardError::Twice("bootstate"))));
    let (_root, places) = machine("uboot-env", &[]);
    assert!(matches!(
        places.backend(&places.board().unwrap(), false),
        Err(BoardError::Partition("bootstate"))
    ));
}

#[test]
fn a_board_whose_system_is_not_updated_says_why() {
    let (_root, places) = machine("initramfs", &[]);
    assert!(refusal(&places).contains("one kernel outside of its slots"));
    let (_root, places) = machine("grub", &[]);
    assert!(matches!(places.backend(&places.board().unwrap(), false), Err(BoardError::Unknown(_))));
}

#[test]
fn a_jetson_says_how_redundant_it_is_and_is_left_alone() {
    let (root, places) = machine("uefi-nv", &[]);
    let set = |name: &str, value: u8| {
        let file = root.path().join(format!("efivars/{name}-781e084c-a330-417c-b678-38e696380cb9"));
        fs::write(file, [7, 0, 0, 0, value, 0, 0, 0]).unwrap();
    };
    assert!(refusal(&places).contains("not flashed with a redundant layout"));
    set("RootfsRedundancyLevel", 0);
    assert!(refusal(&places).contains("RootfsRedundancyLevel is 0"));
    set("RootfsRedundancyLevel", 1);
    set("RootfsStatusSlotA", 0);
    set("RootfsStatusSlotB", 0xff);
    assert!(refusal(&places).contains("a is normal, b is unbootable"));
}

#[test]
fn every_board_of_this_repository_has_a_backend_that_is_known() {
    let boards = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../board");
    let mut seen = 0;
    for entry in fs::read_dir(boards).unwrap() {
        let file = entry.unwrap().path().join("board.toml");
        if !file.is_file() {
            continue;
        }
        let (_root, mut places) = machine("", &[("boot", 1), ("boot-a", 2), ("boot-b", 3), ("bootstate", 4)]);
        places.board = file;
        let board = places.board().unwrap();
        assert!(places.backend(&board, false).is_ok(), "{}", board.name);
        seen += 1;
    }
    assert!(seen >= 5);
}

#[test]
fn a_pis_kernel_is_asked_whether_it_passes_on_what_a_restart_says() {
    let (root, places) = machine("rpi-tryboot", &[]);
    assert!(!places.passes_arguments_on(), "nothing is known of its functions");
    let function = "0000000000000000 t rpi_firmware_notify_reboot\n";
    for (symbols, passes) in [
        ("", false),
        ("0000000000000000 T rpi_firmware_get\t[raspberrypi]\n", false),
        ("0000000000000000 t rpi_firmware_notify_reboots\n", false),
        (function, true),
        (&format!("0000000000000000 T rpi_firmware_get\n{function}"), true),
    ] {
        fs::write(root.path().join("kallsyms"), symbols).unwrap();
        assert_eq!(places.passes_arguments_on(), passes, "{symbols:?}");
    }
}

#[test]
fn a_try_is_known_by_the_command_line_or_by_what_a_pis_firmware_says() {
    let (root, places) = machine("rpi-tryboot", &[]);
    let write = |file: &str, content: &[u8]| fs::write(root.path().join(file), content).unwrap();
    assert!(places.tried());
    write("cmdline", b"console=ttyS1 inferd.slot=b\n");
    for (cell, tried) in [(&[0, 0, 0, 0][..], false), (&[0, 0, 0, 1], true), (&[1], false)] {
        write("bootloader/tryboot", cell);
        assert_eq!(places.tried(), tried, "{cell:?}");
        assert_eq!(places.strayed(), None, "its own root filesystem is mounted");
        write("slot", b"a\n");
        assert_eq!(places.strayed(), tried.then_some((Slot::B, Slot::A)), "{cell:?}");
        write("slot", b"b\n");
    }
}
