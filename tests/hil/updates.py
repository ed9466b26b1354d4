"""Bundles for whatever is on the target: newer than what it has, and with another answer."""

import time
import tomllib
from pathlib import Path

from appliance import device, images, variants

# Short enough to notice a host that stands still, long enough for an emulated board on a busy machine.
DEADLINE_MS = 5000
# One engine: what is done to a host must end that host and bring it back. With a second one the next would serve meanwhile.
ENGINES = ["cpu"]
EASY = {"probation_seconds": 5, "probation_max_p99_ratio": 1000}


class Updates:
    """Makes bundles, signed with this machine's developer key."""

    def __init__(self, keys, folder):
        self.keys, self.folder = keys, Path(folder)
        self.workshop = device.Workshop(images.inferctl(), keys, folder)

    def next_version(self, unit):
        """A device takes nothing older than what it has committed, in whichever run that was."""
        return 1 + max([0, *unit.slots()["floors"].values()])

    def make(self, unit, shift, **options):
        """A bundle whose model answers `shift` more than the image's: (file, the bundle's id, the key that lets it in)."""
        version = self.next_version(unit)
        name = f"update-{version}-{time.monotonic_ns()}"
        model = variants.make(self.folder / name, f"1.{version}.0", shift=shift, deadline_ms=DEADLINE_MS, engines=ENGINES)
        return self.of(name, model, version, **options)

    def of(self, name, model, version, **options):
        """A bundle of this model, as `make` gives it."""
        return (*self.workshop.bundle(name, model, version, **{**EASY, **options}), self.keys.api_key)

    def install(self, unit, shift):
        """Has such a bundle committed; its id."""
        return self.committed(unit, self.make(unit, shift))

    def install_given(self, unit, folder):
        """Has a bundle of somebody's model committed; its id, and the model's name."""
        version = self.next_version(unit)
        name = tomllib.loads((Path(folder) / "manifest.toml").read_text())["name"]
        return self.committed(unit, self.of(f"given-{version}", folder, version)), name

    def committed(self, unit, update):
        """Has it committed; the bundle's id."""
        unit.strategy.update, unit.strategy.until = update, "keys"
        unit.to("updating").to("booted")
        bundle = unit.strategy.update[1]
        # In safe mode the daemon starts anew once it is committed.
        unit.until(lambda: unit.slots()["serving"]["bundle"] == bundle, f"{bundle} serves")
        unit.strategy.wait_ready()
        return bundle
