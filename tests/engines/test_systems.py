"""A system on trial and its engines: one whose HailoRT is broken does not stay, though every model serves on what is left."""

import shutil
import subprocess

import pytest
from faults.test_system import Board
from helpers import until
from office import Office
from updates.rig import Office as Bundles
from updates.rig import committed, curl

from engines import variants
from engines.load import serving

# Two engines, and a machine of tests that is busy: how long answers take is not asked about here.
LENIENT = ["--probation-max-p99-ratio", 1000, "--probation-max-drift", 1000]


def against(daemon):
    """What is against a commit of this system."""
    return daemon.request("/commit-ready").json()["reasons"]


@pytest.fixture
def board(inferctl, tmp_path):
    board = Board(tmp_path, Office(inferctl.program, tmp_path / "office"))
    yield board
    board.keeper.close()


@pytest.fixture
def watching(board):
    """Watches a trial meanwhile: `watching()` gives the process, which ends with the test at the latest."""
    begun = []

    def begin():
        begun.append(subprocess.Popen(board.command("watch")))
        until((board.keeper.folder / "system-trial").exists, "it is on trial")
        return begun[-1]

    yield begin
    for watch in begun:
        watch.kill()
        watch.wait()


def test_a_system_that_loses_the_chip_does_not_stay_and_one_that_never_had_it_does(
    board, watching, native, with_chip, hailo_model, tmp_path
):
    model = hailo_model()
    broken = tmp_path / "libhailort-broken.so"
    broken.write_bytes(b"no library")

    def started(library, kind):
        """A daemon with this library, whose model serves on this kind of engine."""
        config = with_chip(library) + f'[updates]\nrun_dir = "{board.root}/run/inferd/daemon"\n'
        daemon = native(models=[model], config=config, env=board.keeper.env)
        assert serving(daemon) == kind
        return daemon

    def tried(library, kind):
        """From a system with this library another one is tried."""
        assert board.tries(started(library, kind))["models"] == {"imu-motion": {"rung": kind}}
        return watching()

    watch = tried(None, "hailo")
    daemon = started(broken, "cpu")
    lost = "model imu-motion serves on cpu, and under the system before on hailo: "
    until(lambda: any(reason.startswith(lost) for reason in against(daemon)), daemon)
    watch.kill()
    watch.wait()
    board.gives_up(daemon)

    watch = tried(broken, "cpu")
    started(broken, "cpu")
    assert watch.wait(120) == 0
    assert board.record()[0]["chosen"] == "b"


def test_a_system_on_which_the_bundle_in_the_other_slot_does_not_run_is_not_committed(board, native, inferctl, with_ort, tmp_path):
    """Version 1 runs on ONNX Runtime alone, which the new system cannot load; version 2, which serves, can do without."""
    (of_models := tmp_path / "of-models").mkdir()
    office = Bundles(inferctl, of_models)
    (updates := tmp_path / "updates").mkdir()
    shutil.copy(office.root, updates / "root.imr")

    def started(*library):
        arguments = ["--updates-dir", updates]
        config = with_ort(*library) + f'[updates]\nslot_size_mib = 16\nrun_dir = "{board.root}/run/inferd/daemon"\n'
        return native(arguments=arguments, config=config, env=board.keeper.env)

    daemon = started()
    for version, engines in ((1, ["ort"]), (2, ["cpu"])):
        bundle = office.bundle(version, *LENIENT, model=variants.copy(tmp_path / f"model-{version}", engines))
        assert curl(daemon, bundle)[0] == 200
        committed(daemon, version)
    until(lambda: daemon.request("/commit-ready").status == 200, daemon)
    daemon.stop()
    (board.keeper.folder / "system-trial").touch()
    (broken := tmp_path / "libonnxruntime-broken.so").write_bytes(b"no library")
    daemon = started(broken)
    [why] = until(lambda: [r for r in against(daemon) if r.startswith("the bundle in slot A does not run on this system: ")], daemon)
    assert "imu-motion" in why and "ort" in why
    (board.keeper.folder / "system-trial").unlink()
    until(lambda: daemon.request("/commit-ready").status == 200, "it is no trial any more")
    daemon.stop()
    # Where it runs, its golden vectors are asked, and nothing is against the system.
    (board.keeper.folder / "system-trial").touch()
    daemon = started()
    daemon.logged("the bundle in slot A is proven on this system")
    until(lambda: not against(daemon), daemon)
