"""The project's own programs, built with cargo."""

import os
import shutil
import sys
from pathlib import Path

import places
from steps import Failure, main, run, say, step

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


def ensure_toolchain():
    """cargo, and a C linker for the programs that run while we build: as root it is installed, else asked for."""
    if not shutil.which("cargo"):
        raise Failure("cargo is not on the PATH; install Rust with rustup (https://rustup.rs), then start again")
    if shutil.which("cc"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure("Rust needs a C linker for this machine's own programs; as root: apt-get install gcc libc6-dev")
    with step("Installing gcc and libc6-dev with apt-get (Rust links this machine's own programs with them)"):
        run(["apt-get", "update", "-qq"])
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "gcc", "libc6-dev"])


def build(package, rust_target, *, profile="release"):
    """Builds one package for a target and returns the program."""
    ensure_toolchain()
    flags = ["--release"] if profile == "release" else []
    run(["cargo", "build", "--locked", *flags, "--target", rust_target, "-p", package], show=True, cwd=places.ROOT)
    return places.target() / rust_target / profile / package


def build_for_host(package):
    """Builds a tool for this machine, unoptimised: quick to build, and its own speed does not matter here.

    Cargo's output is kept back, so that this can run beside another build.
    """
    ensure_toolchain()
    run(["cargo", "build", "--locked", "-p", package], cwd=places.ROOT)
    return places.target() / "debug" / package


def check_static(program, rust_target):
    """Refuses a program that needs anything of the system it runs on: an interpreter or a shared library."""
    elf = program.read_bytes()
    machine = ELF_MACHINES[rust_target.split("-")[0]]
    if elf[:6] != b"\x7fELF\x02\x01" or int.from_bytes(elf[18:20], "little") != machine:
        raise Failure(f"{program} is no 64-bit program for {rust_target}")
    table = int.from_bytes(elf[32:40], "little")
    width, count = int.from_bytes(elf[54:56], "little"), int.from_bytes(elf[56:58], "little")
    for at in range(table, table + width * count, width):
        kind = int.from_bytes(elf[at : at + 4], "little")
        offset, size = int.from_bytes(elf[at + 8 : at + 16], "little"), int.from_bytes(elf[at + 32 : at + 40], "little")
        if kind == 3:
            raise Failure(f"{program} is not static: it names the loader {elf[offset : offset + size - 1].decode()}")
        tags = range(offset, offset + size, 16) if kind == 2 else ()
        if any(int.from_bytes(elf[tag : tag + 8], "little") == 1 for tag in tags):
            raise Failure(f"{program} is not static: it needs shared libraries")


def cli():
    """Used by scripts/test: `rust.py PROGRAM TARGET` refuses a program that is not static."""
    program, rust_target = sys.argv[1:]
    check_static(Path(program), rust_target)
    say(f"{program} is static")
    return 0


if __name__ == "__main__":
    main(cli)
