"""What U-Boot reads: its boot script, and the records on `bootstate` that say which system it starts.

A record is 512 bytes in the form of U-Boot's environment: CRC-32 (little endian) of the 508 bytes behind it, then `key=value` strings,
each ended by a zero, one zero more, zeros to the end. Keys: `generation` (decimal, from 1), `chosen` (a or b) and, while the other system
is to be tried once, `try`. There are two, at 0 and at 4096 of the partition; the valid one of the higher generation counts, and whoever
changes something writes the other one. Without a valid one system a is chosen.
"""

import re
import struct
import zlib
from dataclasses import dataclass

import places
from steps import Failure

SCRIPT = places.BOARDS / "common/boot.cmd"
SIZE = 512
PLACES = (0, 4096)
LAST_GENERATION = 999_999_999
# U-Boot's settings in the second flash of QEMU's machine virt (include/configs/qemu-arm.h, configs/qemu_arm64_defconfig): where things
# are loaded to as it has it by default, and not to look for a system anywhere but in our script, which spares two seconds.
FLASH_BYTES, ENVIRONMENT_BYTES = 64 << 20, 0x40000
ENVIRONMENT = {
    "bootdelay": "0",
    "devtype": "virtio",
    "devnum": "0",
    "fdt_addr": "0x40000000",
    "scriptaddr": "0x40200000",
    "pxefile_addr_r": "0x40300000",
    "kernel_addr_r": "0x40400000",
    "ramdisk_addr_r": "0x44000000",
    "bootcmd": "virtio scan; part number virtio 0 boot n && load virtio 0:${n} ${scriptaddr} boot.scr && source ${scriptaddr}",
}
# include/image.h of U-Boot: an image of the old form, a script for arm64 under Linux.
MAGIC, LINUX, ARM64, SCRIPT_TYPE = 0x27051956, 5, 22, 6


@dataclass(frozen=True)
class Record:
    """Which system is started, and which one once before."""

    generation: int = 0
    chosen: str = "a"
    trial: str = ""

    def encoded(self):
        """The 512 bytes."""
        return _environment({"chosen": self.chosen, "generation": self.generation, **({"try": self.trial} if self.trial else {})}, SIZE)


def decoded(sector):
    """The record of 512 bytes; None when they hold no valid one."""
    body = sector[4:SIZE]
    if len(sector) < SIZE or struct.unpack_from("<I", sector)[0] != zlib.crc32(body):
        return None
    values = dict(entry.partition("=")[::2] for entry in body.partition(b"\0\0")[0].decode("ascii", "replace").split("\0"))
    generation, chosen, trial = (values.get(key, "") for key in ("generation", "chosen", "try"))
    if not re.fullmatch(r"[1-9]\d{0,8}", generation) or chosen not in ("a", "b") or trial not in ("", "a", "b"):
        return None
    return Record(int(generation), chosen, trial)


def read(image, offset):
    """The record that counts of the `bootstate` at this offset of a medium, and where the next one goes (from the medium's begin)."""
    found = []
    with open(image, "rb") as medium:
        for place in PLACES:
            medium.seek(offset + place)
            found.append(decoded(medium.read(SIZE)))
    newest = max(range(len(PLACES)), key=lambda index: found[index].generation if found[index] else 0)
    if found[newest] is None:
        return Record(), offset + PLACES[0]
    return found[newest], offset + PLACES[1 - newest]


def boot_files(epoch):
    """What lies on `boot`, by name: the script, as U-Boot's mkimage would pack it."""
    text = SCRIPT.read_bytes()
    payload = struct.pack(">II", len(text), 0) + text
    header = struct.pack(
        ">IIIIIIIBBBB32s", MAGIC, 0, epoch, len(payload), 0, 0, zlib.crc32(payload), LINUX, ARM64, SCRIPT_TYPE, 0, b"inferd"
    )
    return {"boot.scr": header[:4] + struct.pack(">I", zlib.crc32(header)) + header[8:] + payload}


def make_flash(file):
    """The flash that holds U-Boot's settings."""
    with open(file, "wb") as flash:
        flash.write(_environment(ENVIRONMENT, ENVIRONMENT_BYTES))
        flash.truncate(FLASH_BYTES)


def _environment(values, size):
    """Values in the form that U-Boot keeps them in."""
    body = b"".join(f"{key}={value}\0".encode() for key, value in values.items())
    if len(body) + 1 > size - 4:
        raise Failure(f"{len(body)} bytes of settings do not fit into {size}")
    body = body.ljust(size - 4, b"\0")
    return struct.pack("<I", zlib.crc32(body)) + body


def next_record(record, **changes):
    """The record that follows another one, with some values changed."""
    if record.generation >= LAST_GENERATION:
        raise Failure("bootstate has had all its generations")
    values = {"chosen": record.chosen, "trial": record.trial, **changes}
    return Record(record.generation + 1, **values)
