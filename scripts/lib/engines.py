"""The engines of vendors as an image carries them: the program that has them, its libraries, and the C library under both.

The daemon is static and needs none of it; an image made with --minimal has none of it.
"""

import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import elf
import glibc
import places
import rust
import targets
import venv
from steps import Failure, main, run, say, step

PACKAGE = "inferd-engine-host"
# Where they are in an image; the daemon and the engine look there when nobody says otherwise.
FOLDER = "usr/lib/inferd"
LICENSES = "usr/share/licenses/onnxruntime"
# ONNX Runtime comes out of PyPI's wheels. Of a wheel's four libraries one is taken: the others are for Python and accelerators.
# From 1.29 on it reports to its maker over the network, with the first model; 1.28 is the last that cannot.
ONNXRUNTIME = "1.28.0"
WHEELS = {
    "aarch64": ("manylinux_2_28_aarch64", "f649dd6f6452d12a8059888aa489fe519e062e18793dac72b9efa0f9fdb64135"),
    "x86_64": ("manylinux_2_28_x86_64", "54fa221d669282bd8f582708ce4c96010a7e9fb0661f9006b37fe2fedafb73fe"),
}
# What a library calls that talks to other machines; one that an image carries has no reason to.
NETWORK = frozenset({"socket", "connect", "getaddrinfo"})
WHEEL_PYTHON = "3.13"  # of the wheels above; whatever Python runs this


@dataclass(frozen=True)
class OnnxRuntime:
    """The library, and what its license wants beside it."""

    library: Path
    notices: tuple


@dataclass(frozen=True)
class Engines:
    """What is put into an image."""

    host: Path
    onnxruntime: OnnxRuntime
    glibc: glibc.Glibc

    def facts(self):
        """What IMAGE.json says of them."""
        return {
            "engine_host_bytes": self.host.stat().st_size,
            "onnxruntime": ONNXRUNTIME,
            "onnxruntime_bytes": self.onnxruntime.library.stat().st_size,
        }

    def install(self, root):
        """Puts them into a root filesystem. Whatever would not start there is refused before."""
        needed = check(self)
        folder = root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.host, folder / PACKAGE)
        shutil.copy(self.onnxruntime.library, folder)
        (folder / "libonnxruntime.so").symlink_to(self.onnxruntime.library.name)
        # Where Debian has them: its loader looks there.
        libraries = root / self.glibc.folder.relative_to(self.glibc.root)
        libraries.mkdir(parents=True, exist_ok=True)
        for name, file in needed.libraries.items():
            shutil.copy(file, libraries / name)
        glibc.put_loader(root, self.glibc)
        (root / LICENSES).mkdir(parents=True)
        for notice in self.onnxruntime.notices:
            shutil.copy(notice, root / LICENSES)
        return needed


def check(made):
    """What they need. Refused is what would not start on the board, and a vendor's library that could talk to the network."""
    library = made.onnxruntime.library
    if calls := elf.read(library).names & NETWORK:
        raise Failure(f"{library.name} can talk to the network (it calls {', '.join(sorted(calls))}); images take none that can")
    return glibc.together([made.host, library], made.glibc)


def prepare(architecture, refresh=False):
    """Builds and fetches what an image for this architecture carries."""
    libraries = glibc.Glibc(architecture, refresh=refresh)
    return Engines(build_host(architecture, libraries), onnxruntime(architecture), libraries)


def build_host(architecture, libraries=None):
    """The program with the engines of vendors, linked against the glibc that goes with it."""
    target = f"{architecture}-unknown-linux-gnu"
    targets.ensure([target])
    libraries = libraries or glibc.Glibc(architecture)
    with step(f"Building {PACKAGE} for {target} (the first build takes some minutes)"):
        return rust.build(PACKAGE, target, flags=libraries.program_flags())


def onnxruntime(architecture):
    """ONNX Runtime's library for an architecture, from the cache or from PyPI."""
    platform, digest = WHEELS[architecture]
    folder = places.cache() / "onnxruntime" / f"{ONNXRUNTIME}-{architecture}-{digest[:10]}"
    with places.locked(folder):
        if not folder.is_dir():
            with step(f"Getting ONNX Runtime {ONNXRUNTIME} for {architecture} from PyPI"):
                fetch(platform, digest, folder)
    (library,) = folder.glob("libonnxruntime.so.*")
    return OnnxRuntime(library, tuple(folder / name for name in ("LICENSE", "ThirdPartyNotices.txt")))


def fetch(platform, digest, folder):
    """Downloads a wheel, which must have this SHA-256, and takes what we want out of it."""
    pip = venv.ensure("pip", "") / "bin/pip"
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / "requirements.txt").write_text(f"onnxruntime=={ONNXRUNTIME} --hash=sha256:{digest}\n")
    run(
        [pip, "download", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps", "--only-binary=:all:"]
        + ["--platform", platform, "--python-version", WHEEL_PYTHON, "--implementation", "cp"]
        + ["-r", fresh / "requirements.txt", "-d", fresh],
    )
    (wheel,) = fresh.glob("*.whl")
    wanted = (f"onnxruntime/capi/libonnxruntime.so.{ONNXRUNTIME}", "onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt")
    with zipfile.ZipFile(wheel) as archive:
        for name in wanted:
            if name not in archive.namelist():
                raise Failure(f"{wheel.name} has no {name}")
            (fresh / Path(name).name).write_bytes(archive.read(name))
    wheel.unlink()
    fresh.rename(folder)


def cli():
    """Used by scripts/test: `engines.py ARCHITECTURE` builds and fetches what an image carries, and says what it needs."""
    made = prepare(sys.argv[1])
    needed = check(made)
    say(f"{made.host} and {made.onnxruntime.library.name} find what they need: {', '.join(needed.libraries)}")
    return 0


if __name__ == "__main__":
    main(cli)
