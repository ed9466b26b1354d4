"""The programs the scripts use (QEMU, genimage, mksquashfs, ...), from one Debian suite whatever this machine runs.

They are unpacked into the cache with every library they need and started by their own dynamic loader, so they are the
same version everywhere (an image is bit-identical wherever it is built), need no root, and cannot clash with anything
that is installed.
"""

import hashlib
import sys

import debian
import places
from steps import Failure, main, say

SUITE = "trixie"
LOADERS = {"amd64": ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"), "arm64": ("aarch64-linux-gnu", "ld-linux-aarch64.so.1")}

IMAGE = ("genimage", "mtools", "dosfstools", "squashfs-tools", "e2fsprogs")


class Tools:
    """Programs of some packages. `path(name)` is a small script that starts the program."""

    def __init__(self, packages, refresh=False):
        architecture = debian.host_architecture()
        if architecture not in LOADERS:
            raise Failure(f"no host tools for {architecture}; build on amd64 or arm64")
        self.triplet, self.loader = LOADERS[architecture]
        tree = debian.Archive(architecture, [SUITE]).tree(list(packages), closure=True, refresh=refresh)
        self.tree, self.versions = tree.path, tree.versions

    def path(self, name):
        """A script that starts `name` with its own loader and libraries."""
        for folder in ("usr/bin", "usr/sbin", "bin", "sbin"):
            program = self.tree / folder / name
            if program.exists():
                return self._wrapper(name, program)
        raise Failure(f"{name} is not in the packages unpacked at {self.tree}")

    def _wrapper(self, name, program):
        lib = self.tree / "usr/lib" / self.triplet
        start = f"'{program}'"
        if (lib / self.loader).exists():  # a static program's packages bring none
            start = f"'{lib / self.loader}' --argv0 '{name}' --library-path '{lib}' {start}"
        modules = f"export QEMU_MODULE_DIR='{lib}/qemu'\n" if name.startswith("qemu-system") else ""
        text = f'#!/bin/sh\n{modules}exec {start} "$@"\n'
        folder = places.cache() / "bin" / hashlib.sha256(str(self.tree).encode()).hexdigest()[:10]
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / name
        if not script.is_file() or script.read_text() != text:
            fresh = script.with_name(f".{name}.new")
            fresh.write_text(text)
            fresh.chmod(0o755)
            fresh.rename(script)
        return script


def cli():
    """Used by scripts/test: `hosttools.py PACKAGE PROGRAM` prints how to start a program of a package."""
    package, program = sys.argv[1:]
    say(Tools([package]).path(program))
    return 0


if __name__ == "__main__":
    main(cli)
