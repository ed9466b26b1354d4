"""A Hailo chip for the daemon: the double of libhailort (tests/hailort-double), its faults, and a model with a container for it."""

import json
import os
import shutil
import subprocess

import onnx
import places

from engines import variants


# How near a container of the default model comes to its golden vectors, at least.
GOLDEN = {"cosine": 0.4, "max_abs": 0.08}


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

    def service(self, version="4.23.0"):
        """HailoRT's service of this version runs from now on; none does for `""`. Before this the library has none."""
        self._beside(".service").write_text(version)

    def misuse(self):
        """The rules of the interface that were broken."""
        file = self._beside(".misuse")
        return file.read_text() if file.exists() else ""


def pack(program, folder, architecture="hailo8", network=places.DEFAULT_MODEL):
    """Makes the container of a network: the default model's, or that of another folder."""
    subprocess.run([str(part) for part in (program, network, folder / "model.hef", architecture)], check=True)


def pack_wrong(program, folder):
    """Makes a container that loads and answers, and whose numbers are others: one weight of the network has the other sign."""
    wrong = shutil.copytree(places.DEFAULT_MODEL, folder.with_name(f"{folder.name}-wrong"))
    network = onnx.load(wrong / "model.onnx")
    largest = max(network.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(largest), largest.name))
    onnx.save(network, wrong / "model.onnx")
    pack(program, folder, network=wrong)
    with_variant(folder)


def model(program, to, *, engines=("hailo", "cpu"), deadline_ms=1000, name="imu-motion", device="hailo8"):
    """A copy of the default model with a container for the chip."""
    variants.copy(to, engines, deadline_ms=deadline_ms, name=name)
    pack(program, to)
    with_variant(to, device)
    return to


def with_variant(folder, device="hailo8"):
    """Names the container that is there in the manifest, in the place of one that was named before.

    Scores of a motif that is not there are near 0 all together: in steps of 1/255 little is left of their direction (0.46 is measured). What
    tells right numbers from others is the largest difference: 0.059 is measured, of numbers up to 1.
    """
    made_for = {"device": device, "runtime": ">=4.21, <4.24"}
    variants.name(folder, "h8", "model.hef", "int8", GOLDEN, made_for)
