"""Fixtures for every test here; the classes behind them are in helpers.py."""

import json
import os
import re
import shutil
import subprocess

import places
import pytest
import qemu
from helpers import Native, inferctl_program
from office import Office

# The tests' own ONNX Runtime sends nothing to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# What scripts/lib/rust.py builds, and scripts that tests start, is what other tests have built.
os.environ["INFERD_BELOW_TESTS"] = "1"


RUN_AGAIN = set()


def note(file, nodeid):
    """For scripts/test, which names these files."""
    if file in os.environ:
        with open(os.environ[file], "a") as notes:
            notes.write(f"{nodeid}\n")


def pytest_runtest_logreport(report):
    """Shows what failed and is about to run again, and notes what passes then and what does not."""
    if report.outcome == "rerun":
        RUN_AGAIN.add(report.nodeid)
        print(f"\n--- once more, for it failed: {report.nodeid}\n{report.longreprtext}")
    elif report.failed:
        note("FAILED_TWICE", report.nodeid)
    elif report.when == "call" and report.passed and report.nodeid in RUN_AGAIN:
        note("UNSTEADY", report.nodeid)


def pytest_collection_modifyitems(config, items):
    """With ONLY_TESTS, a file of their names, no others run."""
    if "ONLY_TESTS" not in os.environ:
        return
    with open(os.environ["ONLY_TESTS"]) as names:
        chosen = set(names.read().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


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


@pytest.fixture(scope="session")
def office(tmp_path_factory):
    """Keys, and the root document that an image is born with."""
    return Office(inferctl_program(), tmp_path_factory.mktemp("keys") / "office")


@pytest.fixture
def patient(tmp_path):
    """The default model with a minute for one inference: a host that is stopped for a while is not taken for a stuck one."""
    shutil.copytree(places.DEFAULT_MODEL, folder := tmp_path / "patient")
    page, replaced = re.subn(r"(?m)^deadline_ms = .*", "deadline_ms = 60000", (folder / "manifest.toml").read_text())
    assert replaced == 1, "the manifest has the part this changes"
    (folder / "manifest.toml").write_text(page)
    return folder


@pytest.fixture
def nobody():
    """A URL where nobody listens."""
    return f"http://127.0.0.1:{qemu.free_port()}"


@pytest.fixture(scope="session")
def inferctl():
    """Runs inferctl: `inferctl("status", url=...)` gives the finished process with its output as text."""
    program = inferctl_program()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("INFERD_")}

    def run(*arguments, url=None, stdin="", env=None):
        where = ["--url", url] if url else []
        command = [str(part) for part in (program, *where, *arguments)]
        return subprocess.run(command, input=stdin, env={**clean, **(env or {})}, capture_output=True, text=True, timeout=120)

    run.program = program
    return run
