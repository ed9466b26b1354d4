"""Fixtures for every test here; the classes behind them are in helpers.py."""

import json
import re
import shutil

import places
import pytest
from helpers import Native


@pytest.fixture
def native(tmp_path):
    """Starts daemons: `native(models=[...], config="TOML text", env={...})` gives a ready one; with `ready=False` it is
    only started. Every one is stopped when the test ends."""
    started = []

    def start(*, ready=True, **options):
        daemon = Native(tmp_path, **options)
        started.append(daemon)
        return daemon.wait_ready() if ready else daemon

    yield start
    for daemon in started:
        daemon.stop()


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    """One daemon with the default model that the whole run shares: for tests that leave it as they found it."""
    shared = Native(tmp_path_factory.mktemp("daemon"))
    try:
        yield shared.wait_ready()
    finally:
        shared.stop()


@pytest.fixture(scope="session")
def walk():
    """One second of synthetic walking as a client sends it: `{"x": [[9 numbers] x 100]}`."""
    return json.loads((places.ROOT / "tests/data/imu_walk.json").read_text())


@pytest.fixture
def patient(tmp_path):
    """The default model with a minute for one inference: a host that is stopped for a while is not taken for a stuck one."""
    shutil.copytree(places.DEFAULT_MODEL, folder := tmp_path / "patient")
    page, replaced = re.subn(r"(?m)^deadline_ms = .*", "deadline_ms = 60000", (folder / "manifest.toml").read_text())
    assert replaced == 1, "the manifest has the part this changes"
    (folder / "manifest.toml").write_text(page)
    return folder
