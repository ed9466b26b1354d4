"""Engines that are asked what works here: one that hangs, breaks or is not installed delays and disturbs nobody else."""

import os
import shutil
import subprocess

import places
import pytest
from helpers import inferd_program, until


@pytest.fixture
def program(engine_host, tmp_path):
    """The program with the engines, behind a script that does something else first: `program("exit 3")`."""

    def make(script):
        path = tmp_path / "host"
        path.write_text(f'#!/bin/sh\n{script}\nexec {engine_host} "$@"\n')
        path.chmod(0o755)
        return path

    return make


def config(program, library=None):
    named = f'onnxruntime = "{library}"\n' if library else ""
    return f'[hosts]\nengine_host = "{program}"\n{named}'


def here(daemon, engine):
    return next(e for e in daemon.request("/status").json()["engines"] if e["engine"] == engine)


def test_only_models_that_name_an_engine_wait_for_its_answer(native, program, onnxruntime_library, tmp_path, walk):
    hangs = tmp_path / "hangs"
    hangs.touch()
    slow = program(f'if [ "$1 $2" = "engines ort" ]; then while [ -e {hangs} ]; do sleep 0.02; done; fi')
    plain = places.ROOT / "tests/models/two-in-two-out"
    models = [places.DEFAULT_MODEL, plain]
    daemon = native(models=models, config=config(slow, onnxruntime_library), ready=False).wait_listening()
    until(lambda: daemon.request("/v2/models/two-in-two-out/ready").status == 200, daemon)
    waits = daemon.request("/readyz")
    assert waits.status == 503
    assert waits.json()["reason"].startswith("model imu-motion: engine ort was asked what works here and has not answered for")
    assert {m["name"]: m["state"] for m in waits.json()["models"]} == {"two-in-two-out": "ready", "imu-motion": "starting"}
    assert daemon.request("/infer", walk).status == 503
    assert here(daemon, "ort")["problem"] == "it was asked what works here and has not answered yet"
    assert here(daemon, "cpu")["problem"] is None
    hangs.unlink()
    daemon.wait_ready()
    assert daemon.request("/healthz").json()["engine"] == "ort"
    assert here(daemon, "ort")["problem"] is None


def test_what_is_not_installed_is_no_warning(native, engine_host):
    daemon = native(config=config(engine_host))
    for engine in ("hailo", "tensorrt", "ort"):
        daemon.logged(f"engine {engine} is not installed")
        assert here(daemon, engine)["absent"] is True
    assert " is not used" not in daemon.log_text()
    assert "degraded" not in daemon.request("/healthz").json()


def test_a_setting_that_names_a_library_which_is_not_there_is_named(native, engine_host):
    daemon = native(config=config(engine_host, "/nowhere/libonnxruntime.so"))
    said = "hosts.onnxruntime names /nowhere/libonnxruntime.so, which cannot be used: No such file or directory (os error 2)"
    assert said in daemon.request("/healthz").json()["degraded"]
    daemon.logged("engine ort is not used: the engine's library cannot be used: /nowhere/libonnxruntime.so")
    assert here(daemon, "ort")["absent"] is False
    environment = {"PATH": os.environ["PATH"], "INFERD_HOSTS_CUDA": "/nowhere/libcuda.so.1"}
    checked = subprocess.run([inferd_program(), "--check"], env=environment, capture_output=True, text=True)
    assert "note: hosts.cuda names /nowhere/libcuda.so.1, which cannot be used" in checked.stdout


def test_a_program_that_cannot_be_loaded_is_said_to_lack_what_it_lacks(native, program, walk):
    line = "host: error while loading shared libraries: libgomp.so.1: cannot open shared object file: No such file or directory"
    daemon = native(config=config(program(f'echo "{line}" >&2; exit 127')))
    said = "it lacks libgomp.so.1: cannot open shared object file: No such file or directory"
    assert said in until(lambda: here(daemon, "ort")["problem"], "the answer")
    assert daemon.request("/infer", walk).status == 200, "the built-in engine serves"


def test_a_host_that_cannot_be_loaded_is_said_to_lack_what_it_lacks(native, program, onnxruntime_library, walk):
    line = "host: error while loading shared libraries: libgomp.so.1: cannot open shared object file"
    broken = program(f'if [ "$1" = engine-host ]; then echo "{line}" >&2; exit 127; fi')
    daemon = native(config=config(broken, onnxruntime_library))
    reason = daemon.request("/status").json()["models"][0]["fallback"]["reason"]
    assert "its program cannot be loaded: it lacks libgomp.so.1: cannot open shared object file" in reason
    assert daemon.request("/infer", walk).headers["X-Inferd-Engine"] == "cpu"


def test_a_library_is_confined_while_it_is_asked_as_it_is_in_a_host(native, engine_host, built_providers, onnxruntime_library, tmp_path, walk):
    library = tmp_path / "libonnxruntime.so"
    shutil.copy(built_providers / "libinferd_ort_double.so", library)
    (tmp_path / "real.so").symlink_to(onnxruntime_library)
    (tmp_path / "providers").write_text("start=socket\n")
    daemon = native(config=config(engine_host, library))
    assert "it tried a system call that engines may not make" in here(daemon, "ort")["problem"]
    assert daemon.request("/infer", walk).status == 200
    free = native(config=config(engine_host, library) + "seccomp = false\n")
    assert here(free, "ort")["problem"] is None and free.request("/healthz").json()["engine"] == "ort"
