"""Boot files of a Raspberry Pi with two systems: autoboot.txt, which chooses between two boot partitions, and their command lines.

`boot-a` starts `rootfs-a`, `boot-b` starts `rootfs-b`. `reboot "0 tryboot"` starts the other one once; any reset after that returns
to the chosen one. Numbers of partitions and their GUIDs come from board/common/layout.toml. None of it has met a board.
"""

import datetime
import re

import places
from steps import Failure

SLOTS = ("a", "b")
# A Pi 4's firmware is cut down where config.txt leaves the GPU less than this (MiB): other files, that have to lie there.
CUT_DOWN_BELOW = 32
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
# What the firmware reads of autoboot.txt, and the sector of a card: choosing the other system is one write of one sector.
AUTOBOOT_BYTES = 512


def autoboot(layout, chosen):
    """autoboot.txt that starts the system of slot `chosen`, and the other one on trial."""
    (other,) = set(SLOTS) - {_slot(chosen)}
    lines = ["[all]", "tryboot_a_b=1", f"boot_partition={layout.number(f'boot-{chosen}')}"]
    lines += ["[tryboot]", f"boot_partition={layout.number(f'boot-{other}')}"]
    text = "\n".join(lines) + "\n"
    # Always as long: the other choice takes no other cluster and no other length in the directory.
    return text.ljust(AUTOBOOT_BYTES, "\n").encode("ascii")


def cmdline(board, layout, slot):
    """cmdline.txt of a boot partition: the board's, and its own root. One line."""
    root = next(part for part in layout.partitions if part.name == f"rootfs-{_slot(slot)}")
    return f"{board.cmdline} root=PARTUUID={root.uuid} rootfstype=squashfs ro rootwait inferd.slot={slot}\n"


def boot_files(board, layout):
    """What lies on `boot`, by name: the choice, and nothing to start."""
    _is_a_pi(board)
    return {"autoboot.txt": autoboot(layout, "a")}


def system_files(board, layout, slot, *, initramfs=False, overlays=None):
    """What lies on a boot partition beside the kernel, the device trees and the firmware, by name. `initramfs`: one lies there, too.
    `overlays`: the device tree overlays at hand, where that is not every one; config.txt then names no other."""
    _is_a_pi(board)
    config = (places.BOARDS / board.name / "config.txt").read_text()
    if overlays is not None:
        config = "".join(line for line in config.splitlines(True) if not set(overlays_of(line)) - set(overlays))
    if initramfs:
        config += "# The drivers that the start needs are in it.\ninitramfs initramfs followkernel\n"
    return {"config.txt": config.encode(), "cmdline.txt": cmdline(board, layout, slot).encode("ascii")}


def overlays_of(config):
    """The device tree overlays that a config.txt names."""
    return re.findall(r"(?m)^dtoverlay=([\w-]+)", config)


def firmware_of(config):
    """What the boot loader of a Raspberry Pi 4 loads by a config.txt, before the kernel. (One that names `start_file` is not ours.)"""
    memory = [int(amount) for amount in re.findall(r"(?m)^gpu_mem(?:_\d+)?=(\d+)", config)]
    kind = "cd" if min(memory, default=CUT_DOWN_BELOW) < CUT_DOWN_BELOW else ""
    return [f"start4{kind}.elf", f"fixup4{kind}.dat"]


def built(start):
    """The day a start4.elf was made, as it says itself."""
    found = re.search(rb"VC_BUILD_ID_TIME: (%s) ([ \d]\d) (\d{4})" % "|".join(MONTHS).encode(), start)
    if not found:
        return None
    return datetime.date(int(found[3]), MONTHS.index(found[1].decode()) + 1, int(found[2]))


def check_firmware(board, folder):
    """Refuses firmware in `folder` that the board's boot loader does not start: other files than config.txt asks for, or older ones than its page
    allows. Where the board has all of it in its EEPROM there is nothing to see."""
    if not board.firmware.files:
        return
    asked = firmware_of((places.BOARDS / board.name / "config.txt").read_text())
    if set(asked) - set(board.firmware.files):
        raise Failure(f"config.txt of {board.name} asks for {' and '.join(asked)}, and board.toml brings {' and '.join(board.firmware.files)}")
    day = built((folder / asked[0]).read_bytes())
    if day is None or str(day) < board.firmware.files_floor:
        said = f"is of {day}" if day else "does not say when it was made"
        raise Failure(
            f"{folder / asked[0]} {said}: with the boot loader that {board.name} needs ({board.firmware.floor}) it has to be of {board.firmware.files_floor} or later; "
            "a newer one is in boot/ of github.com/raspberrypi/firmware (stable)"
        )


def _slot(name):
    if name not in SLOTS:
        raise Failure(f"{name!r} is no slot; there are a and b")
    return name


def _is_a_pi(board):
    if board.backend != "rpi-tryboot":
        raise Failure(f"{board.name} starts by {board.backend}, not by autoboot.txt of a Raspberry Pi")
