"""The project's own programs, built with cargo."""

import functools
import os
import shutil
import sys
from pathlib import Path

import elf
import places
from steps import Failure, main, run, say, step


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


def build(package, rust_target, *, profile="release", flags=()):
    """Builds one package for a target and returns the program. `flags` are rustc's, instead of those that stand elsewhere."""
    ensure_toolchain()
    command = ["cargo", "build", "--locked", *(["--release"] if profile == "release" else [])]
    command += ["--target", rust_target, "-p", package]
    given = {"CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags)} if flags else {}
    run(command, show=True, cwd=places.ROOT, env=given)
    return places.target() / rust_target / profile / package


# What tests run for this machine. Cargo settles features once for all that one call asks for: with the whole workspace, and with examples,
# whose dependencies are those of tests, it takes what `cargo test --workspace` compiles. A call for each would compile most crates anew.
TOOLS = ("inferctl", "inferd-engine-host")
FOR_TESTS = ("--workspace", *(word for tool in TOOLS for word in ("--bin", tool)), *("--example", "judge"), *("--example", "engine_check"))


@functools.cache
def build_for_tests():
    """Builds the programs that tests run on this machine; returns the folder with them, whose `examples` has the examples."""
    # scripts/test has built them: cargo would wait for whoever compiles beside it, to find that nothing is left to do.
    if not os.environ.get("INFERD_TOOLS_ARE_BUILT"):
        ensure_toolchain()
        run(["cargo", "build", "--locked", *FOR_TESTS], cwd=places.ROOT)
    return places.target() / "debug"


def build_for_host(package, *, release=False):
    """Builds a program for this machine, unoptimised unless asked: a tool is quick to build then, and its speed does not matter.

    Cargo's output is kept back, so that this can run beside another build. Below a test (tests/conftest.py says so) it is that of the tests.
    """
    if not release and package in TOOLS and os.environ.get("INFERD_BELOW_TESTS"):
        return build_for_tests() / package
    ensure_toolchain()
    run(["cargo", "build", "--locked", *(["--release"] if release else []), "-p", package], cwd=places.ROOT)
    return places.target() / ("release" if release else "debug") / package


def check_static(program, rust_target):
    """Refuses a program that needs anything of the system it runs on: an interpreter or a shared library."""
    file = elf.read(program)
    if not file.is_for(rust_target.split("-")[0]):
        raise Failure(f"{program} is no 64-bit program for {rust_target}")
    if file.interpreter is not None:
        raise Failure(f"{program} is not static: it names the loader {file.interpreter}")
    if file.needed:
        raise Failure(f"{program} is not static: it needs shared libraries")


def cli():
    """Used by scripts/test: `rust.py PROGRAM TARGET` refuses a program that is not static, `--for-tests` builds what tests run."""
    if sys.argv[1:] == ["--for-tests"]:
        say(f"what tests run is in {build_for_tests()}")
        return 0
    program, rust_target = sys.argv[1:]
    check_static(Path(program), rust_target)
    say(f"{program} is static")
    return 0


if __name__ == "__main__":
    main(cli)
