"""A Hailo chip for the daemon: the double of libhailort (tests/hailort-double), its faults, and a model with a container for it."""

import json
import os
import shutil
import subprocess

import places

from engines import variants


def build():
    """The double and the program that makes containers, built once: their paths."""
    target = places.target() / "doubles"
    manifest = places.ROOT / "tests/hailort-double/Cargo.toml"
    # Beside the other builds' caches; a build that has nothing to do takes no second.
    print("building tests/hailort-double", flush=True)
    command = ["cargo", "build", "--locked", "--manifest-path", manifest, "--target-dir", target]
    subprocess.run([str(part) for part in command], cwd=places.ROOT, check=True)
    return target / "debug/libhailort_double.so", target / "debug/hailort-double-pack"


class Chip:
    """A library of its own, and so a chip of its own: who names the same file shares it."""

    def __init__(self, folder, built):
        folder.mkdir(exist_ok=True)
        self.library = folder / "libhailort.so.4.23.0"
        # A copy and no link: the double finds its files beside the file that was loaded.
        shutil.copy(built, self.library)

    def _beside(self, extension):
        return self.library.with_name(self.library.name + extension)

    def has(self, **faults):
        """From now on it has these faults; tests/hailort-double/src/control.rs lists them."""
        new = self._beside(".new")
        new.write_text(json.dumps(faults))
        os.rename(new, self._beside(".faults"))

    def is_well(self):
        """It has none."""
        self.has()

    def misuse(self):
        """The rules of the interface that were broken."""
        file = self._beside(".misuse")
        return file.read_text() if file.exists() else ""


def pack(program, folder, architecture="hailo8"):
    """Makes the container of the default model's network."""
    subprocess.run([str(part) for part in (program, places.DEFAULT_MODEL, folder / "model.hef", architecture)], check=True)


def model(program, to, *, engines=("hailo", "cpu"), deadline_ms=1000, name="imu-motion", device="hailo8"):
    """A copy of the default model with a container for the chip."""
    variants.copy(to, engines, deadline_ms=deadline_ms, name=name)
    pack(program, to)
    with_variant(to, device)
    return to


def with_variant(folder, device="hailo8"):
    """Names the container that is there in the manifest, in the place of one that was named before.

    Scores of a motif that is not there are near 0 all together: in steps of 1/255 little is left of their direction, hence that cosine.
    """
    made_for = {"device": device, "runtime": ">=4.21, <4.24"}
    variants.name(folder, "h8", "model.hef", "int8", {"cosine": 0.3, "max_abs": 1.0}, made_for)
