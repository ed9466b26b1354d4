"""Images of Raspberry Pis: what their firmware finds there, by a simulator of it, and what that starts on QEMU's `virt` and on
its Raspberry Pi 3, which is as near as QEMU comes. No Raspberry Pi has met them."""

import dataclasses
import functools
import json
import subprocess

import board as boards
import debian
import hosttools
import image
import layout as layouts
import pytest
import release
import rpi
from appliance import images, pi_firmware, systems, test_release
from appliance import medium as media
from steps import Failure

PATIENCE_S = 300
NUMBERS = {"a": 2, "b": 3}
# On `virt`: what QEMU's board of ours loads but its sensors and what it keeps across a reset.
VIRT = ("xhci_pci", "cdc_acm", "ftdi_sio", "cp210x", "ch341", "ramoops")

# QEMU's Raspberry Pi 3 has its card on another controller and Ethernet on USB.
RASPI3B = ("bcm2835", "phy-generic", "dwc2", "usbnet", "cdc_ether")
CARD_BYTES = 1 << 30


@pytest.fixture(scope="module")
def pi(board):
    """A Raspberry Pi 4, with a root shell where QEMU has one."""
    return dataclasses.replace(boards.load("rpi4"), dev_shell=board.dev_shell)


@pytest.fixture(scope="module")
def packages(pi):
    """Its kernel."""
    return image.packages_of(pi).path


@pytest.fixture(scope="module")
def made(pi, office, tmp_path_factory):
    """Its image, the parts of a system update, and the facts."""
    folder = tmp_path_factory.mktemp("pi")
    facts = images.assemble(pi, folder / "pi.img", minimal=True, dev=True, root=office.root, parts=folder / "parts")
    return folder / "pi.img", folder / "parts", facts


@pytest.fixture(scope="module")
def firmware_of(made, pi):
    """The firmware of the board with a medium. Where this machine's archive leaves out what is not free there is no start4.elf, and
    config.txt says which partition is bootable: everything else is as on the board."""
    return functools.partial(pi_firmware.Firmware, board=pi, **({} if made[2]["startable"] else {"bootable": ["config.txt"]}))


@pytest.fixture
def medium(made, tmp_path):
    """A card with a system in both slots, the second one from the parts of an update."""
    return media_of(made, tmp_path / "card.img")


def media_of(made, file):
    """A copy of the image whose slot b is written as an update writes it."""
    media.copy_sparse(made[0], file)
    for name, part in (("boot-b", "boot-b"), ("rootfs-b", "rootfs")):
        put(file, partition(file, name).offset, (made[1] / part).read_bytes())
    return file


def partition(file, name):
    """A partition of an image."""
    return next(part for part in layouts.read_gpt(file)[1] if part.name == name)


def put(file, at, content):
    """Writes to a medium."""
    with open(file, "r+b") as card:
        card.seek(at)
        card.write(content)


def get(file, at, size):
    """Bytes of a medium."""
    with open(file, "rb") as card:
        card.seek(at)
        return card.read(size)


def test_the_parts_of_an_update_are_what_the_image_has_in_its_slots(made, pi, firmware_of):
    file, parts, facts = made
    assert {path.name for path in parts.iterdir()} == {"rootfs", "boot-a", "boot-b"}
    for part, name in (("rootfs", "rootfs-a"), ("boot-a", "boot-a")):
        content = (parts / part).read_bytes()
        where = partition(file, name)
        assert get(file, where.offset, where.size) == content.ljust(where.size, b"\0")
    assert not any(get(file, partition(file, "boot-b").offset, 1 << 20)), "the second slot waits for the first update"
    assert any("ramoops-pi4" in line for line in facts["missing"])
    assert facts["startable"] != any("start4.elf" in line for line in facts["missing"])
    start = firmware_of(file).start()
    assert (start.partition, start.trial) == (2, False) and start.kernel[56:60] == b"ARM\x64"
    layout = layouts.load(pi)
    assert start.cmdline == rpi.cmdline(image.board_on_debian(pi), layout, "a").strip() and "console=ttyS1,115200" in start.cmdline


def test_a_pi_5s_image_has_its_device_trees_and_says_what_it_lacks(tmp_path):
    board = boards.load("rpi5-hailo8")
    facts = images.assemble(board, tmp_path / "pi.img", minimal=True)
    assert any("Hailo-8" in line for line in facts["missing"])
    firmware = pi_firmware.Firmware(tmp_path / "pi.img", board)
    start = firmware.start()
    assert start.partition == 2 and start.kernel[56:60] == b"ARM\x64" and "console=ttyAMA10,115200" in start.cmdline
    parts = layouts.read_gpt(tmp_path / "pi.img")[1]
    for tree in ("bcm2712-rpi-5-b.dtb", "bcm2712d0-rpi-5-b.dtb"):
        assert firmware._file(parts, 2, tree)[:4] == b"\xd0\x0d\xfe\xed"
    firmware._mtools("mdel", parts[1], "::bcm2712-rpi-5-b.dtb")
    assert firmware.choose() is None, "without its device tree it is not bootable"


@pytest.mark.parametrize(
    "said",
    ["E: Unable to locate package raspi-firmware", "E: Failed to fetch http://mirror/debian/dists/forky/non-free-firmware/binary-arm64/Packages  404  Not Found"],
)
def test_an_archive_without_the_firmware_of_a_pi_4_gives_an_image_that_says_so(apt, capsys, said):
    apt(said)
    board = boards.load("rpi4")
    given = image.firmware(board, refresh=True)
    assert given.path is None and "does not have raspi-firmware" in capsys.readouterr().out
    assert "start4.elf and fixup4.dat" in image.missing(board, given)[0] and "github.com/raspberrypi/firmware" in image.missing(board, given)[0]


@pytest.mark.parametrize("said", ["E: Failed to fetch http://mirror/debian/dists/forky/InRelease  Could not resolve", "E: Hash Sum mismatch"])
def test_an_archive_that_cannot_be_asked_gives_no_image_without_firmware(apt, said):
    apt(said)
    with pytest.raises(Failure, match=said):
        image.firmware(boards.load("rpi4"), refresh=True)


@pytest.fixture
def apt(monkeypatch):
    """An apt that fails with these words."""

    def fails(said):
        def run(command, **_):
            raise Failure(f"`{command[0]}` ended with status 100\n{said}")

        monkeypatch.setattr(debian, "run", run)
        monkeypatch.setattr(debian, "mirror", lambda: "http://mirror/debian")

    return fails


def test_a_system_in_a_slot_is_the_same_when_it_is_made_again(made, pi, office, tmp_path):
    facts = images.assemble(pi, tmp_path / "again.img", minimal=True, dev=True, root=office.root, parts=tmp_path / "parts")
    assert facts["sha256"] == made[2]["sha256"]
    for part in made[1].iterdir():
        assert (tmp_path / "parts" / part.name).read_bytes() == part.read_bytes(), part.name


@functools.cache
def autoboot(chosen):
    """autoboot.txt as every writer of ours makes it."""
    return rpi.autoboot(layouts.load(boards.load("rpi4")), chosen)


# autoboot.txt, what else is wrong, how the board restarts: the partition that is started, and whether on trial. What the documents say ...
DOCUMENTED = {
    "as it is flashed": (lambda: autoboot("a"), (), "", (2, False)),
    "the other one chosen": (lambda: autoboot("b"), (), "", (3, False)),
    "a trial": (lambda: autoboot("a"), (), "0 tryboot", (3, True)),
    "a trial of the first": (lambda: autoboot("b"), (), "0 tryboot", (2, True)),
    "a partition that was asked for": (lambda: autoboot("a"), (), "3", (3, False)),
    "another filter": (lambda: b"[none]\nboot_partition=3\n[all]\nboot_partition=2\n".ljust(512, b"\n"), (), "", (2, False)),
    "the chosen one gone": (lambda: autoboot("b"), ("boot-b",), "", (2, False)),
    "both gone": (lambda: autoboot("a"), ("boot-a", "boot-b"), "", None),
}
# ... and guesses, where they say nothing: a board may do otherwise.
GUESSED = {
    "an empty autoboot.txt": (lambda: bytes(512), (), "", (2, False)),
    "one of 0xff": (lambda: b"\xff" * 512, (), "", (2, False)),
    "one of 0xff, a trial": (lambda: b"\xff" * 512, (), "0 tryboot", None),
    "a torn one that has lost its begin": (lambda: bytes(24) + autoboot("b")[24:], (), "", (2, False)),
    "a torn one that has lost its end": (lambda: autoboot("b")[:37] + bytes(475), (), "", (3, False)),
    "one torn within a name": (lambda: autoboot("b")[:24] + bytes(488), (), "", (2, False)),
    "no number": (lambda: b"boot_partition=two\n".ljust(512, b"\n"), (), "", (2, False)),
    "more than the firmware reads": (lambda: b"#".ljust(511, b"#") + b"\nboot_partition=3\n", (), "", (2, False)),
    "the tried one gone": (lambda: autoboot("a"), ("boot-b",), "0 tryboot", (2, True)),
}


def test_the_state_of_a_card_decides_which_partition_starts(made, firmware_of, tmp_path):
    card = media_of(made, tmp_path / "card.img")
    firmware = firmware_of(card)
    at = firmware.sector_of_autoboot() * layouts.SECTOR
    assert get(card, at, 512) == autoboot("a")
    heads = {name: (partition(card, name).offset, get(card, partition(card, name).offset, 512)) for name in ("boot-a", "boot-b")}
    whole = get(card, partition(card, "boot").offset, partition(card, "boot").size)
    for state, (text, gone, command, expected) in (DOCUMENTED | GUESSED).items():
        replace_autoboot(firmware, text(), tmp_path)
        for name in gone:
            put(card, heads[name][0], bytes(512))
        firmware.power_on()
        firmware.reset(command)
        assert firmware.choose() == expected, state
        # Whatever was tried: the flag is gone.
        if command == "0 tryboot" and expected:
            firmware.reset()
            assert firmware.choose() == ((2, False) if text() == autoboot("a") or gone else (3, False)), state
        for offset, head in heads.values():
            put(card, offset, head)
        put(card, partition(card, "boot").offset, whole)


def replace_autoboot(firmware, content, folder):
    """Another autoboot.txt: in its sector where it fits, else as a file."""
    if len(content) == 512:
        put(firmware.medium, firmware.sector_of_autoboot() * layouts.SECTOR, content)
        return
    (folder / "autoboot.txt").write_bytes(content)
    at = f"{firmware.medium}@@{partition(firmware.medium, 'boot').offset}"
    mcopy = hosttools.Tools(hosttools.IMAGE).path("mcopy")
    subprocess.run([mcopy, "-o", "-i", at, folder / "autoboot.txt", "::autoboot.txt"], check=True)


@pytest.mark.parametrize("settings", [{"walk": False}, {"built": "2025-08-19"}])
def test_without_the_partition_walk_a_chosen_system_that_is_gone_is_the_end(medium, firmware_of, settings):
    firmware = firmware_of(medium, **settings)
    put(medium, firmware.sector_of_autoboot() * layouts.SECTOR, autoboot("b"))
    assert firmware.choose() == (3, False)
    put(medium, partition(medium, "boot-b").offset, bytes(512))
    assert firmware.choose() is None


@pytest.mark.parametrize(("name", "before"), [("rpi4", "2025-08-19"), ("rpi5-hailo8", "2025-08-12")])
def test_a_bootloader_of_the_floor_walks_on_and_an_older_one_does_not(name, before):
    board = boards.load(name)
    assert pi_firmware.Firmware("no medium", board).walk and not pi_firmware.Firmware("no medium", board, built=before).walk


def test_a_used_card_is_a_raspberry_pi_when_what_the_block_map_names_was_written(made, inferctl, tmp_path):
    file, card = tmp_path / "pi.img", tmp_path / "card"
    media.copy_sparse(made[0], file)
    (tmp_path / "pi.img.bmap").write_text(release.bmap(file))
    (tmp_path / "pi.img.json").write_text(json.dumps(made[2]))
    test_release.used_card(card, file)
    command = [inferctl, "--json", "flash", file, card, "--file", "--yes", "--board", "rpi4"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert said["bmap"] and said["written_bytes"] < file.stat().st_size * 2 / 3
    test_release.whole(card, file)


def bootloader(machine):
    """What the firmware tells the kernel of this start: the partition, and whether on trial."""
    read = "cd /proc/device-tree/chosen/bootloader && for name in partition tryboot; do od -A n -t x1 $name; done"
    return tuple(int(line.replace(" ", ""), 16) for line in machine.sh(read).splitlines())


# The one function by which `inferd system` knows a kernel that passes the argument of a restart on: Debian's has none.
PASSES_ON = "echo '0000000000000000 t rpi_firmware_notify_reboot' >/run/kallsyms && mount -o bind /run/kallsyms /proc/kallsyms"


def test_a_pis_system_is_installed_tried_once_and_committed_and_a_bad_one_falls_back(board, made, pi, office, firmware_of, packages, tmp_path):
    if board.architecture_in_rust != "aarch64":
        pytest.skip("a Raspberry Pi's programs are those of aarch64")
    card = tmp_path / "card.img"
    media.copy_sparse(made[0], card)
    firmware = firmware_of(card)
    parts = {name: made[1] / name for name in ("rootfs", "boot-a", "boot-b")}
    good = office.system(tmp_path / "good.imb", pi.name, 2, parts)
    (tmp_path / "empty").write_bytes(bytes(4096))
    bad = office.system(tmp_path / "bad.imb", pi.name, 3, {**parts, "rootfs": tmp_path / "empty"})
    wanted = [f"{name} {board.module_parameters.get(name, '')}".strip() for name in board.modules if name not in VIRT]
    drivers = pi_firmware.other_drivers(packages, wanted)
    with pi_firmware.Started(board, firmware, drivers, dev=True) as machine:
        assert bootloader(machine) == (NUMBERS["a"], 0) and machine.sh("cat /run/inferd/slot") == "a"
        status, said = systems.install(machine, good)
        assert status != 0 and "does not pass what a restart says on to the firmware" in said
        assert not any(get(card, partition(card, "boot-b").offset, 1 << 20)), "nothing was written"
        machine.sh(PASSES_ON)
        status, said = systems.install(machine, good)
        assert status == 0, said
        for name, part in (("boot-b", "boot-b"), ("rootfs-b", "rootfs")):
            content = parts[part].read_bytes()
            assert get(card, partition(card, name).offset, len(content)) == content, name
        systems.ask_for_a_try(machine)
        machine.restart(PATIENCE_S)
        machine.wait_ready(PATIENCE_S)
        assert bootloader(machine) == (NUMBERS["b"], 1) and machine.sh("cat /run/inferd/slot") == "b"
        # Whatever ends the trial now: the next start is the old system's.
        after = firmware_of(card)
        after.reset()
        assert after.choose() == (NUMBERS["a"], False)
        machine.wait_for_console(r"inferd system: inferd-os 2 is committed", PATIENCE_S)
        assert get(card, firmware.sector_of_autoboot() * layouts.SECTOR, 512) == autoboot("b")
        machine.cut_power()
        firmware.power_on()
        machine.power_on()
        machine.wait_ready(PATIENCE_S)
        assert bootloader(machine) == (NUMBERS["b"], 0) and machine.sh("cat /run/inferd/slot") == "b"
        machine.sh(PASSES_ON)
        status, said = systems.install(machine, bad)
        assert status == 0, said
        systems.ask_for_a_try(machine)
        machine.restart(PATIENCE_S)
        machine.wait_for_console(r"inferd system: the root filesystem of a cannot be mounted; its kernel runs that of b", PATIENCE_S)
        machine.restart(PATIENCE_S)
        machine.wait_for_console(r"inferd system: the old system is back: .* \(no-rootfs\)", PATIENCE_S)
        machine.wait_ready(PATIENCE_S)
        assert bootloader(machine) == (NUMBERS["b"], 0) and machine.sh("cat /run/inferd/slot") == "b"
        assert get(card, firmware.sector_of_autoboot() * layouts.SECTOR, 512) == autoboot("b")


def test_the_image_of_a_raspberry_pi_serves_on_the_one_that_qemu_knows_best(board, made, pi, firmware_of, packages, tmp_path):
    if board.architecture_in_rust != "aarch64":
        pytest.skip("a Raspberry Pi's programs are those of aarch64")
    card = tmp_path / "card.img"
    media.copy_sparse(made[0], card)
    with open(card, "r+b") as file:
        file.truncate(CARD_BYTES)  # cards are powers of two
    # Its watchdog is left out: QEMU resets the machine the moment it is opened.
    mine = [name for name in pi.modules if name != pi.watchdog.driver]
    drivers = pi_firmware.other_drivers(packages, [*RASPI3B, *mine])
    tree = image.the_one(packages, "usr/lib/linux-image-*/broadcom/bcm2837-rpi-3-b.dtb")
    firmware = firmware_of(made[0])
    with pi_firmware.OnRaspi3b(board, card, firmware, drivers, tree, wait=False) as machine:
        machine.wait_for_console(r"INFERD-UP \S+ slot=a data=ext4", PATIENCE_S)
        machine.wait_for_console(r"initramfs: this image lacks the overlay ramoops-pi4", PATIENCE_S)
        machine.wait_ready(PATIENCE_S)
        assert machine.request("/healthz").status == 200
