"""Boot files of the Raspberry Pis, as their firmware documents them. Needs no board, and proves nothing about one."""

import dataclasses

import board as boards
import layout as layouts
import places
import pytest
import rpi
from steps import Failure

PIS = [name for name in boards.names() if boards.load(name).backend == "rpi-tryboot"]


def sections(text):
    """A config.txt's or autoboot.txt's settings per filter, as the firmware reads them."""
    found, filter_ = {"all": {}}, "all"
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            filter_ = line.strip("[]")
            found.setdefault(filter_, {})
        elif line:
            key, _, value = line.partition("=")
            # dtparam and dtoverlay may be given many times.
            found[filter_][line if key in ("dtparam", "dtoverlay") else key] = value
    return found


def test_there_are_raspberry_pis():
    assert {"rpi4", "rpi5-hailo8"} <= set(PIS)


@pytest.mark.parametrize("name", PIS)
@pytest.mark.parametrize(("chosen", "other"), [("a", "b"), ("b", "a")])
def test_autoboot_starts_the_chosen_system_and_tries_the_other(name, chosen, other):
    layout = layouts.load(boards.load(name))
    found = sections(rpi.autoboot(layout, chosen).decode("ascii"))
    at = {part.name: number for number, part in enumerate(layout.partitions, 1)}
    assert found == {
        "all": {"tryboot_a_b": "1", "boot_partition": str(at[f"boot-{chosen}"])},
        "tryboot": {"boot_partition": str(at[f"boot-{other}"])},
    }


@pytest.mark.parametrize("name", PIS)
def test_choosing_the_other_system_changes_one_sector_and_no_length(name):
    layout = layouts.load(boards.load(name))
    assert len(rpi.autoboot(layout, "a")) == len(rpi.autoboot(layout, "b")) == 512
    assert rpi.autoboot(layout, "a") != rpi.autoboot(layout, "b")


@pytest.mark.parametrize("name", PIS)
@pytest.mark.parametrize("slot", ["a", "b"])
def test_a_boot_partition_starts_the_root_of_its_own_slot(name, slot):
    board = boards.load(name)
    layout = layouts.load(board)
    text = rpi.system_files(board, layout, slot)["cmdline.txt"].decode("ascii")
    assert text.count("\n") == 1 and text.endswith("\n"), "the firmware reads one line"
    words = text.split()
    root = next(part for part in layout.partitions if part.name == f"rootfs-{slot}")
    assert [word for word in words if word.startswith("root=")] == [f"root=PARTUUID={root.uuid}"]
    assert {f"inferd.slot={slot}", "ro", "rootwait", "rootfstype=squashfs"} <= set(words)


@pytest.mark.parametrize("name", PIS)
def test_the_partitions_that_the_firmware_reads_come_first(name):
    firmware = [part.name for part in layouts.load(boards.load(name)).partitions if part.type == layouts.TYPES["boot"]]
    assert [part.name for part in layouts.load(boards.load(name)).partitions][: len(firmware)] == firmware == ["boot", "boot-a", "boot-b"]


@pytest.mark.parametrize("name", PIS)
def test_a_pis_watchdog_is_handed_over_and_asked_for_no_more_than_it_has(name):
    board = boards.load(name)
    config = sections((places.BOARDS / name / "config.txt").read_text())["all"]
    assert int(config["kernel_watchdog_timeout"]) >= 30 and "dtparam=watchdog" not in config
    words = dict(word.partition("=")[::2] for word in board.cmdline.split())
    assert words[f"{board.watchdog.driver}.nowayout"] == "1" and words["watchdog.stop_on_reboot"] == "0"
    assert int(words[f"{board.watchdog.driver}.heartbeat"]) <= board.watchdog.max_s <= 15
    # Of the watchdog's 15 s the last feeding may have used five.
    assert 0 < int(words["panic"]) <= board.watchdog.max_s - 5
    assert words["softlockup_panic"] == words["hung_task_panic"] == "1"


@pytest.mark.parametrize("name", PIS)
def test_config_names_the_kernel_that_the_board_page_names(name):
    board = boards.load(name)
    config = sections((places.BOARDS / name / "config.txt").read_text())["all"]
    assert config["kernel"] == board.kernel.image


def test_a_pi_5_reaches_its_accelerator_and_does_not_queue_commands_to_its_card():
    config = sections((places.BOARDS / "rpi5-hailo8/config.txt").read_text())["all"]
    assert {"dtparam=pciex1", "dtparam=pciex1_gen=3", "dtparam=sd_cqe=0"} <= set(config)
    assert boards.load("rpi5-hailo8").kernel.page_kib == 4


@pytest.mark.parametrize("name", PIS)
def test_a_pi_has_a_floor_for_its_firmware_that_is_a_date(name):
    floor = boards.load(name).firmware.floor
    year, month, day = map(int, floor.split("-"))
    assert year >= 2022 and 1 <= month <= 12 and 1 <= day <= 31


@pytest.mark.parametrize("name", PIS)
def test_the_firmware_that_config_txt_asks_for_is_what_the_board_brings(name):
    board = boards.load(name)
    config = (places.BOARDS / name / "config.txt").read_text()
    if board.firmware.files:
        assert set(rpi.firmware_of(config)) <= set(board.firmware.files) and board.firmware.files_floor >= "2025-01-16"
    # Less than 32 MiB for the GPU starts cut-down firmware (raspberrypi/linux#503, pftf/RPi4#58).
    assert rpi.firmware_of(config + "gpu_mem=32\n") == rpi.firmware_of(config) == ["start4.elf", "fixup4.dat"]
    for few in ("gpu_mem=16", "gpu_mem=31", "gpu_mem_1024=16"):
        assert rpi.firmware_of(f"{config}{few}\n") == ["start4cd.elf", "fixup4cd.dat"]


def test_firmware_says_when_it_was_made_and_older_or_other_files_than_the_board_needs_are_refused(tmp_path):
    assert str(rpi.built(b"..VC_BUILD_ID_TIME: 12:24:53\0VC_BUILD_ID_TIME: Feb  9 2026\0")) == "2026-02-09"
    assert rpi.built(b"VC_BUILD_ID_TIME: 12:24:53") is None
    board = boards.load("rpi4")
    (tmp_path / "start4.elf").write_bytes(b"VC_BUILD_ID_TIME: Jan 16 2025")
    rpi.check_firmware(board, tmp_path)
    for says, word in ((b"VC_BUILD_ID_TIME: Jan 15 2025", "is of 2025-01-15"), (b"VC_BUILD_ID_TIME: 12:24:53", "does not say when it was made")):
        (tmp_path / "start4.elf").write_bytes(says)
        with pytest.raises(Failure, match=f"start4.elf {word}: .* it has to be of 2025-01-16 or later"):
            rpi.check_firmware(board, tmp_path)
    others = dataclasses.replace(board, firmware=dataclasses.replace(board.firmware, files=("start4x.elf", "fixup4x.dat")))
    with pytest.raises(Failure, match="asks for start4.elf and fixup4.dat, and board.toml brings start4x.elf"):
        rpi.check_firmware(others, tmp_path)
    rpi.check_firmware(boards.load("rpi5-hailo8"), tmp_path / "nothing is there")


def test_other_boards_get_no_files_of_a_pi():
    board = boards.load("qemu-x86_64")
    layout = layouts.load(board)
    assert not {"boot-a", "boot-b", "bootstate"} & {part.name for part in layout.partitions}
    with pytest.raises(Failure, match="qemu-x86_64 starts by initramfs"):
        rpi.boot_files(board, layout)
    with pytest.raises(Failure, match="qemu-x86_64 starts by initramfs"):
        rpi.system_files(board, layout, "a")


def test_config_txt_names_an_initramfs_where_one_lies_and_no_overlay_that_does_not():
    board = boards.load("rpi4")
    layout = layouts.load(board)
    plain = (places.BOARDS / "rpi4/config.txt").read_text()
    overlays = rpi.overlays_of(plain)
    assert "ramoops-pi4" in overlays

    def config(**options):
        return rpi.system_files(board, layout, "a", **options)["config.txt"].decode()

    assert config() == config(overlays=overlays) == plain and "initramfs" not in plain
    assert config(initramfs=True).startswith(plain) and config(initramfs=True).endswith("\ninitramfs initramfs followkernel\n")
    assert rpi.overlays_of(config(overlays=overlays[1:])) == overlays[1:]
    assert len(plain.splitlines()) - len(config(overlays=[]).splitlines()) == len(overlays)


def test_of_the_memory_for_a_kernels_last_words_its_console_has_a_part_and_a_dump_has_room_beside_it():
    line = next(line for line in (places.BOARDS / "rpi4/config.txt").read_text().splitlines() if line.startswith("dtoverlay=ramoops-pi4"))
    options = dict(option.split("=") for option in line.split(",")[1:])
    # The overlay's own: 64 KiB, dumps of 16 KiB, no console.
    assert options.keys() == {"console-size"} and 0 < int(options["console-size"], 0) <= (64 - 16) << 10


def test_a_slot_that_there_is_not_is_refused():
    board = boards.load("rpi4")
    with pytest.raises(Failure, match="'c' is no slot"):
        rpi.cmdline(board, layouts.load(board), "c")
