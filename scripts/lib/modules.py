"""Kernel modules: what must be loaded, in which order, read from the modules' own `.modinfo` (no depmod needed)."""

import lzma
import struct
from pathlib import Path

from steps import Failure


class Modules:
    """The modules of one kernel, found below usr/lib/modules/RELEASE (or lib/modules) of an unpacked kernel package."""

    def __init__(self, tree):
        found = sorted([*Path(tree).glob("usr/lib/modules/*/kernel"), *Path(tree).glob("lib/modules/*/kernel")])
        if len(found) != 1:
            raise Failure(f"{tree} holds {len(found)} kernels' modules, not one")
        base = found[0].parent
        self.release = base.name
        self.files = {_plain(path): path for path in base.rglob("*.ko*")}
        self.builtin = {_plain(Path(line)) for line in (base / "modules.builtin").read_text().split()}

    def load_order(self, names):
        """The modules `names` with everything they need, each after its dependencies: (name, content) pairs."""
        order, seen = [], set()

        def visit(name, wanted_by):
            name = name.replace("-", "_")
            if name in seen or name in self.builtin:
                return
            seen.add(name)
            if name not in self.files:
                raise Failure(f"the kernel {self.release} has no module {name} (wanted by {wanted_by})")
            content = _content(self.files[name])
            for needed in _depends(content):
                visit(needed, name)
            order.append((name, content))

        for name in names:
            visit(name, "board.toml")
        return order


def _plain(path):
    return path.name.split(".ko")[0].replace("-", "_")


def _content(path):
    raw = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix == ".ko":
        return raw
    raise Failure(f"{path.name}: cannot unpack {path.suffix} modules")


def _depends(content):
    """The `depends=` line of a module's .modinfo section."""
    info = _section(content, b".modinfo")
    for entry in info.split(b"\0"):
        if entry.startswith(b"depends="):
            return [name.decode() for name in entry[8:].split(b",") if name]
    return []


def _section(elf, wanted):
    """A section of a 64-bit little-endian ELF file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise Failure("a kernel module is no 64-bit little-endian ELF file")
    table = struct.unpack_from("<Q", elf, 40)[0]
    width, count, names = struct.unpack_from("<HHH", elf, 58)

    def header(index):
        name, _, _, _, offset, size = struct.unpack_from("<IIQQQQ", elf, table + index * width)
        return name, elf[offset : offset + size]

    strings = header(names)[1]
    for index in range(count):
        name, content = header(index)
        if strings[name : strings.index(b"\0", name)] == wanted:
            return content
    return b""
