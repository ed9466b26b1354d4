"""What a 64-bit little-endian ELF file asks of the system it runs on: its loader, shared libraries, versions of symbols."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

from steps import Failure

MACHINES = {"x86_64": 62, "aarch64": 183}
LOAD, DYNAMIC, INTERPRETER = 1, 2, 3
NULL, NEEDED, STRINGS, STRINGS_SIZE, SONAME = 0, 1, 5, 10, 14
VERSIONS_DEFINED, VERSIONS_NEEDED = 0x6FFFFFFC, 0x6FFFFFFE
WEAK = 2


@dataclass(frozen=True)
class Elf:
    """One program or shared library."""

    path: Path
    machine: int
    interpreter: str | None  # the loader it names; None: it is a library, or static
    soname: str | None
    needed: tuple  # the names of the libraries it needs
    versions_needed: dict = field(default_factory=dict)  # library -> versions of symbols that it must have
    versions_defined: frozenset = frozenset()
    names: frozenset = frozenset()  # of the functions and data it calls or gives, and some more

    def is_for(self, architecture):
        """Whether it is for this processor, by Rust's name of it."""
        return self.machine == MACHINES[architecture]


def read(path):
    """Reads a file. One that is no such ELF file, or is damaged where we look, is refused."""
    content = Path(path).read_bytes()
    if content[:6] != b"\x7fELF\x02\x01":
        raise Failure(f"{path} is no 64-bit ELF file")
    try:
        return _read(Path(path), content)
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise Failure(f"{path} is damaged: {error}") from error


def _read(path, content):
    (table,) = struct.unpack_from("<Q", content, 32)
    width, count = struct.unpack_from("<HH", content, 54)
    segments = [_segment(content, table + width * index) for index in range(count)]
    interpreter = next((content[s.offset : s.offset + s.size] for s in segments if s.kind == INTERPRETER), None)
    dynamic = _Dynamic(content, segments)
    return Elf(
        path=path,
        machine=struct.unpack_from("<H", content, 18)[0],
        interpreter=interpreter.rstrip(b"\0").decode() if interpreter is not None else None,
        soname=next((dynamic.text(value) for tag, value in dynamic.entries if tag == SONAME), None),
        needed=tuple(dynamic.text(value) for tag, value in dynamic.entries if tag == NEEDED),
        versions_needed=dynamic.versions_needed(),
        versions_defined=frozenset(dynamic.versions_defined()),
        names=frozenset(dynamic.names()),
    )


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def _segment(content, at):
    kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", content, at)
    return _Segment(kind, offset, address, size)


class _Dynamic:
    """The dynamic section, and what it points to."""

    def __init__(self, content, segments):
        self.content, self.segments, self.entries = content, segments, []
        for segment in (s for s in segments if s.kind == DYNAMIC):
            for at in range(segment.offset, segment.offset + segment.size, 16):
                tag, value = struct.unpack_from("<QQ", content, at)
                if tag == NULL:
                    break
                self.entries.append((tag, value))

    def place(self, wanted):
        """Where in the file a tag's address is; None when there is no such tag."""
        address = next((value for tag, value in self.entries if tag == wanted), None)
        if address is None:
            return None
        for s in self.segments:
            if s.kind == LOAD and s.address <= address < s.address + s.size:
                return address - s.address + s.offset
        raise ValueError(f"no segment holds the address {address:#x}")

    def text(self, offset):
        table = self.place(STRINGS)
        if table is None:
            raise ValueError("no names")
        begin = table + offset
        return self.content[begin : self.content.index(b"\0", begin)].decode()

    def names(self):
        begin, size = self.place(STRINGS), next((value for tag, value in self.entries if tag == STRINGS_SIZE), 0)
        return (name.decode() for name in self.content[begin : begin + size].split(b"\0")) if begin is not None else ()

    def chain(self, at, next_at):
        """The places of a list whose entries say how far the next one is: it goes forward only, so it ends with the file."""
        step = 1
        while step:
            yield at
            (step,) = struct.unpack_from("<I", self.content, at + next_at)
            at += step

    def versions_needed(self):
        found, at = {}, self.place(VERSIONS_NEEDED)
        for entry in self.chain(at, 12) if at is not None else ():
            _, _, library, first, _ = struct.unpack_from("<HHIII", self.content, entry)
            for version in self.chain(entry + first, 12):
                _, flags, _, name, _ = struct.unpack_from("<IHHII", self.content, version)
                if not flags & WEAK:
                    found.setdefault(self.text(library), set()).add(self.text(name))
        return found

    def versions_defined(self):
        at = self.place(VERSIONS_DEFINED)
        for entry in self.chain(at, 16) if at is not None else ():
            (first,) = struct.unpack_from("<I", self.content, entry + 12)
            yield self.text(struct.unpack_from("<I", self.content, entry + first)[0])
