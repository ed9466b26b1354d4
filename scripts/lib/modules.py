"""Kernel modules: what must be loaded, in which order, and by which names, read from the modules' own `.modinfo` (no depmod needed)."""

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

    def install(self, root, names, loaded=()):
        """Puts modules, but for what was loaded before with `loaded`, into a root filesystem, with the lists by which BusyBox's modprobe finds them
        and what they depend on: by their names, and by those that the kernel and devices have for them."""
        before = {name for name, _ in self.load_order(loaded)}
        order = [(name, content) for name, content in self.load_order(names) if name not in before]
        folder = root / "usr/lib/modules" / self.release
        folder.mkdir(parents=True)
        dependencies, aliases = [], []
        for name, content in order:
            (folder / f"{name}.ko").write_bytes(content)
            needs = [need for need, _ in reversed(self.load_order([name])) if need != name and need not in before]
            dependencies.append(" ".join([f"{name}.ko:", *(f"{need}.ko" for need in needs)]))
            aliases += [f"alias {alias} {name}" for alias in _info(content, "alias")]
        (folder / "modules.dep").write_text("".join(f"{line}\n" for line in dependencies))
        (folder / "modules.alias").write_text("".join(f"{line}\n" for line in aliases))


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
    return [name for line in _info(content, "depends") for name in line.split(",") if name]


def _info(content, key):
    """The values of a key in a module's .modinfo section."""
    entries = _section(content, b".modinfo").decode("utf-8", "replace").split("\0")
    return [entry.removeprefix(f"{key}=") for entry in entries if entry.startswith(f"{key}=")]


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
