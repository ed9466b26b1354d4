"""Where things are: the checkout, what is built in it, and the cache that outlives it."""

import contextlib
import fcntl
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOARDS = ROOT / "board"
OVERLAY = ROOT / "rootfs-overlay"
DEFAULT_MODEL = ROOT / "app/inferd/models/imu-motion"
# What an image serves from the first boot. An IMU encoder is the one behind /infer, whatever else there is.
SHIPPED_MODELS = (DEFAULT_MODEL, ROOT / "app/inferd/models/emg-gestures")


def cache():
    """Downloads and tools that every checkout of this user may share: $INFERD_CACHE, else ~/.cache/inferd."""
    chosen = os.environ.get("INFERD_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inferd"
    base.mkdir(parents=True, exist_ok=True)
    return base.resolve()


def target():
    """Cargo's output folder; images and logs are put beside the binaries, so `cargo clean` removes them as well."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()


def images():
    """Where images are written when no file is named."""
    return target() / "image"


@contextlib.contextmanager
def locked(path):
    """Only one process at a time works on `path` (a lock file beside it); others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
