"""The partition layout: board/common/layout.toml as data, as genimage's configuration, and read back from an image."""

import struct
import tomllib
import uuid
import zlib
from dataclasses import dataclass

import places
from steps import Failure

SECTOR = 512
TYPES = {
    "boot": "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
    "root": "0fc63daf-8483-4772-8e79-3d69d8477de4",
    "linux": "0fc63daf-8483-4772-8e79-3d69d8477de4",
    "raw": "8da63339-0007-60c0-c436-083ac8230908",
}
CONTENTS = ("boot", "system", "rootfs", "data")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Partition:
    """One partition as it is meant to be (sizes in bytes); `content` is "" for one that is left empty."""

    name: str
    uuid: str
    type: str
    size: int
    content: str


@dataclass(frozen=True)
class Layout:
    """The whole medium."""

    disk_uuid: str
    align: int
    partitions: tuple

    def named(self, content):
        """The partition that holds `content`."""
        return next(part for part in self.partitions if part.content == content)

    def number(self, name):
        """The number of the partition called `name`, as firmware and kernels count: from 1."""
        return 1 + [part.name for part in self.partitions].index(name)


def parse_size(text):
    """`64M` in bytes."""
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in UNITS or int(number) == 0:
        raise Failure(f"{text!r} is no size; write a whole number and K, M or G, like 64M")
    return int(number) * UNITS[unit]


def load(board=None):
    """The layout of a board, with its own sizes and the partitions that its firmware wants; without a board what all have."""
    path = places.BOARDS / "common" / "layout.toml"
    return parse(path.read_text(), board.sizes if board else {}, path, board.backend if board else None)


def parse(text, overrides, origin, backend=None):
    """A layout.toml's text, checked."""
    raw = tomllib.loads(text)
    rows = [row for row in raw["partition"] if backend in row.get("backend", [backend])]
    unknown = set(overrides) - {row["name"] for row in rows}
    if unknown:
        raise Failure(f"[sizes] names partitions that {origin} does not have: {', '.join(sorted(unknown))}")
    partitions = []
    for row in rows:
        if row["type"] not in TYPES or row.get("content", "") not in ("", *CONTENTS):
            raise Failure(f"{origin}: partition {row['name']!r} has an unknown type or content")
        partitions.append(
            Partition(
                name=row["name"],
                uuid=str(uuid.UUID(row["uuid"])),
                type=TYPES[row["type"]],
                size=parse_size(overrides.get(row["name"], row["size"])),
                content=row.get("content", ""),
            )
        )
    for what in ("name", "uuid"):
        values = [getattr(part, what) for part in partitions]
        if len(set(values)) != len(values):
            raise Failure(f"{origin}: two partitions have the same {what}")
    return Layout(str(uuid.UUID(raw["disk"]["uuid"])), parse_size(raw["disk"]["align"]), tuple(partitions))


def genimage(layout, output, files):
    """genimage's configuration. `files` maps a content to the file that holds it, already of the partition's type."""
    lines = [f"image {output} {{", "    hdimage {", '        partition-table-type = "gpt"']
    lines += [f'        disk-uuid = "{layout.disk_uuid}"', f"        align = {layout.align}", "    }"]
    for part in layout.partitions:
        lines += [f"    partition {part.name} {{", f'        partition-type-uuid = "{part.type}"']
        lines += [f'        partition-uuid = "{part.uuid}"', f"        size = {part.size}"]
        if part.content:
            lines.append(f'        image = "{files[part.content]}"')
        lines.append("    }")
    return "\n".join([*lines, "}", ""])


@dataclass(frozen=True)
class Found:
    """A partition as an image's table has it (offset and size in bytes)."""

    name: str
    uuid: str
    type: str
    offset: int
    size: int


def read_gpt(path, *, larger=False):
    """The disk's GUID and its partitions, from the primary table; header and entries must match their checksums, and
    the backup header must stand in the last sector. `larger`: or, on a medium that has more room than its image, where that ended."""
    with open(path, "rb") as image:
        image.seek(SECTOR)
        header = image.read(92)
        if header[:8] != b"EFI PART":
            raise Failure(f"{path} has no GPT")
        size, crc, _, here, backup = struct.unpack_from("<IIIQQ", header, 12)
        disk = uuid.UUID(bytes_le=header[56:72])
        table, count, width, table_crc = struct.unpack_from("<QIII", header, 72)
        if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != crc or here != 1:
            raise Failure(f"{path}: the GPT header's checksum is wrong")
        image.seek(table * SECTOR)
        entries = image.read(count * width)
        if zlib.crc32(entries) != table_crc:
            raise Failure(f"{path}: the GPT entries' checksum is wrong")
        image.seek(0, 2)
        last = backup if larger else image.tell() // SECTOR - 1
        image.seek(last * SECTOR)
        if backup != last or image.read(8) != b"EFI PART":
            raise Failure(f"{path}: the backup GPT is not in the last sector")
    found = []
    for at in range(0, count * width, width):
        kind, own = entries[at : at + 16], entries[at + 16 : at + 32]
        if kind == bytes(16):
            continue
        first, final = struct.unpack_from("<QQ", entries, at + 32)
        name = entries[at + 56 : at + 128].decode("utf-16-le").rstrip("\0")
        found.append(
            Found(
                name,
                str(uuid.UUID(bytes_le=own)),
                str(uuid.UUID(bytes_le=kind)),
                first * SECTOR,
                (final - first + 1) * SECTOR,
            )
        )
    return str(disk), found
