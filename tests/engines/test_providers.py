"""The providers of ONNX Runtime through the daemon: what runs is what is said, and what is built is whole or built anew.

Before the real library stands a double (`tests/ort-double`) that plays the providers of TensorRT and CUDA; which TensorRT and which GPU
an engine is built for says another one (`tests/tensorrt-double`). Everything is computed by the real ONNX Runtime.
"""

import hashlib
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import until


@pytest.fixture
def gpu(built_providers, built_tensorrt, engine_host, onnxruntime_library, tmp_path):
    return Providers(built_providers, built_tensorrt, engine_host, onnxruntime_library, tmp_path)


class Providers:
    """Providers of this test's own: the doubles in a folder, beside them what they do."""

    def __init__(self, providers, tensorrt, engine_host, real, folder):
        self.engine_host, self.folder = engine_host, folder
        self.library, self.tensorrt = folder / "libonnxruntime.so", folder / "libnvinfer.so.10"
        shutil.copy(providers / "libinferd_ort_double.so", self.library)
        (folder / "real.so").symlink_to(real)
        shutil.copy(tensorrt / "libinferd_tensorrt_double.so", self.tensorrt)
        (folder / "libcuda.so.1").symlink_to(self.tensorrt.name)

    def do(self, *lines):
        """From now on the providers do this; tests/ort-double/src/lib.rs lists it."""
        self._write("providers", lines)

    def is_version(self, number):
        """From now on TensorRT is of this version."""
        self._write("faults", [f"version={number}"])

    def _write(self, name, lines):
        new = self.folder / "new"
        new.write_text("".join(f"{line}\n" for line in lines))
        os.rename(new, self.folder / name)

    def config(self):
        return (
            f'[hosts]\nengine_host = "{self.engine_host}"\nonnxruntime = "{self.library}"\ntensorrt = "{self.tensorrt}"\n'
            f'cuda = "{self.folder / "libcuda.so.1"}"\nbreaker_pause_s = 1\n[updates]\ndata_dir = "{self.folder / "data"}"\n'
        )

    def builds(self):
        """How many builds were begun."""
        file = self.folder / "builds"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def entry(self):
        """The folder of the one engine that is kept."""
        (entry,) = (path for path in (self.folder / "data/engines").iterdir() if path.is_dir())
        return entry

    def kept(self):
        """What is in the folder of engines beside the locks, by the end of its name."""
        return sorted(path.suffix or "engine" for path in (self.folder / "data/engines").iterdir() if path.suffix != ".lock")


def engine(daemon):
    return daemon.request("/status").json()["models"][0]["engine"]


def starting(daemon):
    """The process of an engine host of this daemon that does not serve; None while there is none."""
    serving = [(model["host"] or {}).get("pid") for model in daemon.request("/status").json()["models"]]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, words = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        ours = int(stat.rsplit(")", 1)[1].split()[1]) == daemon.process.pid and words.startswith(b"inferd-host:")
        if ours and int(folder.name) not in serving:
            return int(folder.name)
    return None


@pytest.mark.parametrize(
    ("lines", "device", "refused"),
    [
        (["tensorrt=works", "cuda=works"], "tensorrt", []),
        (["cuda=works"], "cuda", ["tensorrt"]),
        ([], "cpu", ["tensorrt", "cuda"]),
    ],
    ids=["all of them", "no TensorRT", "neither"],
)
def test_the_first_provider_that_can_be_had_serves_and_the_others_are_told(native, gpu, walk, lines, device, refused):
    gpu.do(*lines)
    daemon = native(config=gpu.config())
    seen = engine(daemon)
    assert (seen["rung"], seen["device"]) == ("ort", device)
    told = seen["remark"] or ""
    assert [name for name in ("tensorrt", "cuda", "cpu") if f"libonnxruntime_providers_{name}.so" in told] == refused
    assert "onnxruntime_src" not in told and "::" not in told, "a sentence, without a place in somebody's source"
    assert daemon.request("/infer", walk).status == 200


def test_a_provider_that_leaves_the_network_to_the_processor_is_not_called_by_its_name(native, gpu, walk):
    gpu.do("tensorrt=silent", "cuda=silent")
    daemon = native(config=gpu.config())
    assert engine(daemon)["device"] == "cpu"
    assert engine(daemon)["remark"].count("assigned to the default CPU EP") == 2, engine(daemon)["remark"]
    assert daemon.request("/infer", walk).status == 200


def test_an_engine_is_built_once(native, gpu, walk):
    gpu.do("tensorrt=works")
    answers = []
    for _ in range(2):
        daemon = native(config=gpu.config())
        assert engine(daemon)["device"] == "tensorrt"
        answers.append(daemon.request("/infer", walk).json()["latent"])
        daemon.stop()
    assert gpu.builds() == 1 and answers[0] == answers[1]


def test_a_host_that_is_killed_while_it_builds_leaves_nothing_and_the_build_is_taken_up_again(native, gpu, walk):
    gpu.do("tensorrt=works", "build=hang")
    daemon = native(config=gpu.config(), ready=False).wait_listening()
    until(lambda: "building the engine, for" in daemon.request("/readyz").json()["reason"], daemon)
    until(lambda: gpu.builds() == 1, daemon)
    assert daemon.request("/readyz").status == 503
    os.kill(until(lambda: starting(daemon), daemon), signal.SIGKILL)
    daemon.wait_ready()
    seen = daemon.request("/status").json()["models"][0]
    assert seen["engine"]["rung"] == "cpu" and "killed (SIGKILL)" in seen["fallback"]["reason"]
    # Beside what serves it is built again; the half of before is gone by then.
    until(lambda: gpu.builds() == 2, daemon)
    right = daemon.request("/infer", walk).json()["latent"]
    gpu.do("tensorrt=works")
    until(lambda: engine(daemon)["rung"] == "ort", daemon)
    assert engine(daemon)["device"] == "tensorrt" and gpu.builds() == 2
    assert np.abs(np.array(daemon.request("/infer", walk).json()["latent"]) - right).max() < 1e-4
    assert gpu.kept() == ["engine"], "one engine, and no trace of the other try"
    assert {path.name for path in gpu.entry().iterdir()} == {"complete", "double.engine"}


def test_what_is_never_built_to_its_end_is_left_alone_and_the_next_provider_serves(native, gpu, walk):
    gpu.do("tensorrt=works", "cuda=works", "build=hang")
    daemon = native(config=gpu.config(), ready=False).wait_listening()
    for n in (1, 2, 3):
        until(lambda n=n: gpu.builds() == n, daemon)
        os.kill(until(lambda: starting(daemon), daemon), signal.SIGKILL)
    until(lambda: engine(daemon)["rung"] == "ort", daemon)
    assert engine(daemon)["device"] == "cuda"
    assert "building an engine was begun 3 times and never finished (the host ended)" in engine(daemon)["remark"]
    assert daemon.request("/infer", walk).status == 200 and gpu.builds() == 3


def _whole_and_unreadable(gpu):
    plan, listed = gpu.entry() / "double.engine", gpu.entry() / "complete"
    plan.write_bytes(b"a plan of another library")
    listed.write_text(f"{hashlib.sha256(plan.read_bytes()).hexdigest()} {plan.stat().st_size} {plan.name}\n")


def _with_one_bit_flipped(gpu):
    plan = gpu.entry() / "double.engine"
    plan.write_bytes(bytes([plan.read_bytes()[0] ^ 1]) + plan.read_bytes()[1:])


SPOILED = {
    "cut short": lambda gpu: os.truncate(gpu.entry() / "double.engine", 5),
    "one bit": _with_one_bit_flipped,
    "never finished": lambda gpu: (gpu.entry() / "complete").unlink(),
    "whole and unreadable": _whole_and_unreadable,
    "of another version": lambda gpu: gpu.is_version(100301),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_engine_is_never_used_and_built_anew(native, gpu, walk, how):
    gpu.do("tensorrt=works")
    before = native(config=gpu.config())
    right = before.request("/infer", walk).json()["latent"]
    before.stop()
    whole, name = (gpu.entry() / "double.engine").read_bytes(), gpu.entry().name
    SPOILED[how](gpu)
    daemon = native(config=gpu.config())
    assert engine(daemon)["device"] == "tensorrt" and engine(daemon)["remark"] is None
    assert gpu.builds() == 2, "another one was built"
    assert (gpu.entry() / "double.engine").read_bytes() == whole and gpu.kept() == ["engine"]
    assert (gpu.entry().name == name) == (how != "of another version")
    assert daemon.request("/infer", walk).json()["latent"] == right
