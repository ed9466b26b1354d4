"""Boot files of a Raspberry Pi with two systems: autoboot.txt, which chooses between two boot partitions, and their command lines.

`boot-a` starts `rootfs-a`, `boot-b` starts `rootfs-b`. `reboot "0 tryboot"` starts the other one once; any reset after that returns
to the chosen one. Numbers of partitions and their GUIDs come from board/common/layout.toml. None of it has met a board.
"""

import re

import places
from steps import Failure

SLOTS = ("a", "b")
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


def _slot(name):
    if name not in SLOTS:
        raise Failure(f"{name!r} is no slot; there are a and b")
    return name


def _is_a_pi(board):
    if board.backend != "rpi-tryboot":
        raise Failure(f"{board.name} starts by {board.backend}, not by autoboot.txt of a Raspberry Pi")
