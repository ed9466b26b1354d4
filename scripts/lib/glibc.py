"""glibc of a board's Debian suite: what dynamic programs of ours are linked against, and what goes into its image for them.

One tree of packages serves both, so a program finds on the board what it was linked against; `together` checks it all the same.
"""

from dataclasses import dataclass
from pathlib import Path

import debian
import elf
from steps import Failure

DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}
SUITE = "trixie"
# What programs run with, and what they are linked with. base-files has the links (/lib to usr/lib) that paths go by.
RUNTIME = ("libc6", "libgcc-s1", "libstdc++6")
LINKING = ("libc6-dev", "libgcc-14-dev", "base-files")
LOADERS = {"aarch64": "/lib/ld-linux-aarch64.so.1", "x86_64": "/lib64/ld-linux-x86-64.so.2"}


class Glibc:
    """An architecture's C library and what belongs to it, unpacked."""

    def __init__(self, architecture, suite=SUITE, refresh=False):
        self.architecture = architecture
        tree = debian.Archive(DEBIAN[architecture], [suite]).tree([*RUNTIME, *LINKING], refresh=refresh)
        self.root = tree.path
        self.versions = {name: tree.versions[name] for name in RUNTIME}
        self.folder = self.root / f"usr/lib/{architecture}-linux-gnu"
        (self.gcc,) = self.root.glob("usr/lib/gcc/*/*/")

    def library_flags(self):
        """rustc's flags to link with these libraries by rust-lld; no C compiler is needed."""
        flags = [f"--sysroot={self.root}", f"-L{self.folder}", f"-L{self.gcc}"]
        return ["-Clinker=rust-lld", *(f"-Clink-arg={flag}" for flag in flags)]

    def program_flags(self):
        """The same and what a C compiler would add to a program: its loader and start files."""
        start = [self.folder / "Scrt1.o", self.folder / "crti.o", self.gcc / "crtbeginS.o"]
        end = [self.gcc / "crtendS.o", self.folder / "crtn.o"]
        loader = f"--dynamic-linker={LOADERS[self.architecture]}"
        return [*self.library_flags(), *(f"-Clink-arg={argument}" for argument in [loader, *start, *end])]


@dataclass(frozen=True)
class Together:
    """Programs, and every library they need: the name each is looked for by, and the file of it."""

    loader: str
    libraries: dict


def together(programs, glibc, beside=()):
    """Follows what `programs` (programs, and the libraries they open by themselves) need through glibc's folder, and the folders `beside` it, to the end.

    Refuses what would not start on the board: another processor's file, another loader, a library that is missing, a version of
    a symbol that the library beside it does not have.
    """
    given = [_for_board(elf.read(program), glibc) for program in programs]
    own = {file.soname: file for file in given if file.soname}
    found, queue, read = {}, list(given), list(given)
    loader = Path(LOADERS[glibc.architecture]).name
    while queue:
        file = queue.pop()
        for name in (*file.needed, loader):
            if name in found or name in own:
                continue
            at = next((folder / name for folder in (glibc.folder, *beside) if (folder / name).exists()), None)
            if at is None:
                raise Failure(f"{file.path.name} needs {name}, which is not in {', '.join(glibc.versions)}")
            found[name] = _for_board(elf.read(at.resolve()), glibc)
            queue.append(found[name])
            read.append(found[name])
    has = {**own, **found}
    for file in read:
        _find_versions(file, has, glibc)
    return Together(LOADERS[glibc.architecture], {name: Path(file.path) for name, file in sorted(found.items())})


def put_loader(root, glibc):
    """The loader's name in a root filesystem that has the libraries where Debian has them."""
    loader = root / LOADERS[glibc.architecture].lstrip("/")
    if not loader.parent.exists():
        loader.parent.symlink_to("usr/lib")
    if not loader.is_symlink():
        loader.symlink_to(f"{glibc.folder.name}/{loader.name}")


def _for_board(file, glibc):
    loader = LOADERS[glibc.architecture]
    if not file.is_for(glibc.architecture):
        raise Failure(f"{file.path} is not for {glibc.architecture}")
    if file.interpreter not in (None, loader):
        raise Failure(f"{file.path} names the loader {file.interpreter}, not {loader}")
    return file


def _find_versions(file, has, glibc):
    for library, versions in file.versions_needed.items():
        missing = versions - has[library].versions_defined if library in has else versions
        if missing:
            raise Failure(
                f"{file.path.name} needs {', '.join(sorted(missing))} of {library}, which the one of "
                f"{', '.join(f'{name} {version}' for name, version in glibc.versions.items())} does not have"
            )
