"""Makes `cargo build --target {x86_64,aarch64}-unknown-linux-{musl,gnu}` work, also where rustup cannot fetch targets.

musl is for the daemon, gnu for the program with the engines of vendors (`engines`).

1. The targets are there: nothing to do.
2. `rustup target add` works (the normal machine): done.
3. Otherwise the very same std is built once from Debian's rust-src package of exactly this compiler's version, and put
   where rustup would have put it; for musl with its start files and libc (Debian's musl-dev) and an unwinder built from the
   LLVM sources that PyPI's ziglang carries. About two minutes of CPU time and 500 MB of downloads for musl, a minute
   for gnu, whose C library is no part of a target; the compiler itself is not changed.
"""

import argparse
import os
import re
import shutil
from pathlib import Path

import debian
import glibc
import places
import venv
from steps import Failure, main, run, say, step

MUSL = ("aarch64-unknown-linux-musl", "x86_64-unknown-linux-musl")
GNU = ("aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu")
TARGETS = MUSL + GNU
SUITES = ("trixie", "trixie-backports", "forky", "sid")
ZIG = "ziglang==0.17.0"
START_FILES = ("crt1.o", "rcrt1.o", "Scrt1.o", "crti.o", "crtn.o", "libc.a")
# rustc of the one std build that needs unstable features and the flags that rustup's own std is built with.
STD_FLAGS = "-Zforce-unstable-if-unmarked -Cembed-bitcode=yes -Cdebuginfo=0 -Cforce-unwind-tables=yes"
UNWIND_FLAGS = (
    "-O2 -fPIC -g0 -fno-sanitize=all -funwind-tables -D_LIBUNWIND_IS_NATIVE_ONLY -DNDEBUG -D_DEFAULT_SOURCE -Wno-everything"
).split()
# The end marker of .eh_frame: without it the unwinder runs off the end at the first panic.
CRTEND = '.section .eh_frame,"a",%progbits\n.p2align 2\n.long 0\n.section .note.GNU-stack,"",%progbits\n'
CRTBEGIN = '__attribute__((visibility("hidden"))) void *__dso_handle = 0;\n'


def sysroot():
    """Where the compiler in use keeps its targets."""
    return Path(run([os.environ.get("RUSTC", "rustc"), "--print", "sysroot"], cwd=places.ROOT).strip())


def present(target, root):
    """Whether a target's std is installed, for musl with its unwinder."""
    lib = root / "lib/rustlib" / target / "lib"
    return any(lib.glob("libstd-*.rlib")) and (target in GNU or (lib / "self-contained/libunwind.a").is_file())


def ensure(targets=TARGETS, *, use_rustup=True):
    """Installs what is missing of `targets`."""
    root = sysroot()
    missing = [target for target in targets if not present(target, root)]
    if not missing:
        return
    if use_rustup and shutil.which("rustup") and not os.environ.get("INFERD_NO_RUSTUP"):
        with step(f"Installing {', '.join(missing)} with rustup") as remark:
            try:
                run(["timeout", "300", "rustup", "target", "add", *missing], cwd=places.ROOT)
            except Failure as failure:
                remark.append(f"rustup cannot: {str(failure).splitlines()[-1]}")
        missing = [target for target in missing if not present(target, root)]
    if missing:
        with places.locked(places.cache() / "std"):
            build_from_debian(missing, root)


def build_from_debian(targets, root):
    """Builds std for `targets` from Debian's sources and installs it into the sysroot `root`."""
    version = run([os.environ.get("RUSTC", "rustc"), "-V"], cwd=places.ROOT).split()[1]
    if not os.access(root, os.W_OK):
        raise Failure(f"{root} is not writable; as the toolchain's owner run scripts/rust-targets once")
    work = places.cache() / "std" / version
    work.mkdir(parents=True, exist_ok=True)
    with step(f"Getting the sources of Rust {version}'s std from Debian, and C libraries to link with"):
        library = rust_library(version)
        flags = {target: glibc.Glibc(target.split("-")[0]).library_flags() for target in targets if target in GNU}
        musl = {target: musl_files(target) for target in targets if target in MUSL}
    zig = None
    if musl:
        with step(f"Getting {ZIG} from PyPI (a C compiler and the unwinder's sources)"):
            zig = ziglang()
    for target in targets:
        with step(f"Building std {version} for {target}"):
            rlibs = build_std(library, target, work, flags.get(target, []))
            install(target, root, rlibs, musl.get(target), zig, work)
    shutil.rmtree(work / "std", ignore_errors=True)


def rust_library(version):
    """The `library` folder of exactly this compiler's sources."""
    for suites in (SUITES[:2], SUITES):
        archive = debian.Archive(debian.host_architecture(), suites)
        match = next((row for row in archive.madison("rust-src") if re.match(rf"{re.escape(version)}\+", row)), None)
        if match:
            tree = archive.tree([f"rust-src={match}"], only="./usr/src/rustc-*/library/*")
            return next(tree.path.glob("usr/src/rustc-*/library"))
    raise Failure(f"rustup cannot add targets here, and Debian has no rust-src of version {version}")


def musl_files(target):
    """musl's start files and libc for a target."""
    arch = target.split("-")[0]
    tree = debian.Archive(glibc.DEBIAN[arch], SUITES[:1]).tree(["musl-dev"])
    return tree.path / f"usr/lib/{arch}-linux-musl"


def ziglang():
    """The zig program of a private virtual environment."""
    home = venv.ensure("zig", f"{ZIG}\n")
    return next(home.glob("lib/python3*/site-packages/ziglang/zig"))


def build_std(library, target, work, flags):
    """The rlibs of std for a target; `flags` link its shared library, which cargo makes as well."""
    run(
        [os.environ.get("CARGO", "cargo"), "build", "-q", "--locked", "--profile", "dist"]
        + ["--features", "panic-unwind backtrace", "--target", target],
        cwd=library / "sysroot",
        env={
            "RUSTC_BOOTSTRAP": "1",
            "CARGO_ENCODED_RUSTFLAGS": "\x1f".join([*STD_FLAGS.split(), *flags]),
            "__CARGO_DEFAULT_LIB_METADATA": "inferdstd",
            "CARGO_TARGET_DIR": work / "std",
        },
        drop=["RUSTFLAGS"],
    )
    return sorted((work / "std" / target / "dist/deps").glob("*.rlib"))


def install(target, root, rlibs, musl, zig, work):
    """Puts a target together beside the sysroot and moves it in place whole."""
    stage = work / "stage" / target
    shutil.rmtree(stage, ignore_errors=True)
    own = stage / "lib/self-contained"
    own.mkdir(parents=True)
    for rlib in rlibs:
        shutil.copy(rlib, stage / "lib")
    if musl is not None:
        for name in START_FILES:
            shutil.copy(musl / name, own)
        unwinder(target, zig, work / "unwind", own)
    final = root / "lib/rustlib" / target
    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(stage, final.with_name(final.name + ".new"), dirs_exist_ok=True)
    final.with_name(final.name + ".new").rename(final)


def unwinder(target, zig, work, into):
    """libunwind.a and the crt objects around it."""
    triple = f"{target.split('-')[0]}-linux-musl"
    objects = work / triple
    shutil.rmtree(objects, ignore_errors=True)
    objects.mkdir(parents=True)
    source = zig.parent / "lib/libunwind"
    environment = {"ZIG_GLOBAL_CACHE_DIR": places.cache() / "zig-cache"}

    def compile_one(file, flags=(), language="cc", output=None):
        output = output or objects / f"{Path(file).stem}.o"
        flags = ["-target", triple, *UNWIND_FLAGS, f"-I{source}/include", *flags]
        run([zig, language, *flags, "-c", file, "-o", output], env=environment)

    compile_one(source / "src/libunwind.cpp", ["-fno-exceptions", "-fno-rtti", "-nostdinc++", "-std=c++17"], "c++")
    for name in ("UnwindLevel1.c", "UnwindLevel1-gcc-ext.c"):
        compile_one(source / "src" / name, ["-std=c11", "-fexceptions"])
    for name in ("UnwindRegistersRestore.S", "UnwindRegistersSave.S"):
        compile_one(source / "src" / name)
    run([zig, "ar", "rcs", into / "libunwind.a", *sorted(objects.glob("*.o"))], env=environment)
    for name, text in (("crtbegin.c", CRTBEGIN), ("crtend.S", CRTEND)):
        file = objects / name
        file.write_text(text)
        for variant in ("", "S"):
            compile_one(file, output=into / f"{file.stem}{variant}.o")


def cli():
    """scripts/rust-targets"""
    parser = argparse.ArgumentParser(
        prog="scripts/rust-targets",
        description="Install the Rust targets of the boards' programs, static ones (musl) and dynamic ones (gnu): with rustup, "
        "else by building std from Debian's sources of the same version. Does nothing when they are there.",
    )
    parser.add_argument("--no-rustup", action="store_true", help="build from Debian's sources at once")
    ensure(use_rustup=not parser.parse_args().no_rustup)
    say(f"{', '.join(TARGETS)} are installed in {sysroot()}")
    return 0


if __name__ == "__main__":
    main(cli)
