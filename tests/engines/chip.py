"""A Hailo chip for the daemon: the double of libhailort (tests/hailort-double), its faults, and a model with a container for it."""

import hashlib
import json
import os
import re
import shutil
import subprocess

import places


def build():
    """The double and the program that makes containers, built once: their paths."""
    target = places.target() / "hailort-double"
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


def digest(path):
    """SHA-256 of a file, as manifests have it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pack(program, folder, architecture="hailo8"):
    """Makes the container of the default model's network."""
    subprocess.run([str(part) for part in (program, places.DEFAULT_MODEL, folder / "model.hef", architecture)], check=True)


def model(program, to, *, engines=("hailo", "cpu"), deadline_ms=1000, name=None, device="hailo8"):
    """A copy of the default model with a container for the chip."""
    shutil.copytree(places.DEFAULT_MODEL, to)
    page = (to / "manifest.toml").read_text()
    if name:
        page = _replaced(r'(?m)^name = "imu-motion"$', f'name = "{name}"', page)
    page = _replaced(r"(?m)^engines = .*$", f"engines = {json.dumps(list(engines))}", page)
    page = _replaced(r"(?m)^deadline_ms = .*$", f"deadline_ms = {deadline_ms}", page)
    (to / "manifest.toml").write_text(page)
    pack(program, to)
    with_variant(to, device)
    return to


def _replaced(pattern, by, page):
    page, count = re.subn(pattern, by, page, count=1)
    assert count == 1, f"the manifest has no {pattern}"
    return page


def with_variant(folder, device="hailo8"):
    """Names the container that is there in the manifest, in the place of one that was named before.

    Scores of a motif that is not there are near 0 all together: in steps of 1/255 little is left of their direction, hence that cosine.
    """
    page = (folder / "manifest.toml").read_text().split("\n[[variants]]")[0]
    page += f'''
[[variants]]
name = "h8"
format = "hef"
precision = "int8"
file = "model.hef"
sha256 = "{digest(folder / "model.hef")}"
golden = {{ cosine = 0.3, max_abs = 1.0 }}
made_for = {{ device = "{device}", runtime = ">=4.21, <4.24" }}
'''
    (folder / "manifest.toml").write_text(page)
