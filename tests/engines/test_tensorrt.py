"""Plans of TensorRT through the daemon, on the double: what serves, and what happens when the GPU fails in the middle of it."""

import os
import shutil
import subprocess

import numpy as np
import places
import pytest
from helpers import until

from engines import variants


@pytest.fixture
def gpu(built_tensorrt, engine_host, tmp_path):
    return Gpu(built_tensorrt, engine_host, tmp_path)


class Gpu:
    """A device of its own for each test: the double in a folder, beside it what fails."""

    def __init__(self, built, engine_host, folder):
        self.drive, self.engine_host, self.folder = built / "drive", engine_host, folder
        self.library = folder / "libnvinfer.so.10"
        shutil.copy(built / "libinferd_tensorrt_double.so", self.library)
        # One object for both parts: they share the device's memory.
        (folder / "libcuda.so.1").symlink_to(self.library.name)

    def fails(self, *faults):
        new = self.folder / "faults.new"
        new.write_text("".join(f"{fault}\n" for fault in faults))
        os.rename(new, self.folder / "faults")

    def config(self):
        return (
            f'[hosts]\nengine_host = "{self.engine_host}"\ntensorrt = "{self.library}"\n'
            f'cuda = "{self.folder / "libcuda.so.1"}"\nbreaker_pause_s = 1\n'
        )

    def model(self, engines=("tensorrt", "cpu"), *bound_to):
        """The default model with a plan; `bound_to` is the version, then the architecture, that the plan is for."""
        to = variants.copy(self.folder / "model", engines)
        subprocess.run([self.drive, "plan", places.DEFAULT_MODEL, to / "model.plan", *bound_to], check=True, stdout=subprocess.DEVNULL)
        golden, made_for = {"cosine": 0.999, "max_abs": 0.01}, {"device": "sm_87", "runtime": ">=10.3, <10.4"}
        variants.name(to, "orin", "model.plan", "fp32", golden, made_for)
        return to


def model(daemon):
    return daemon.request("/status").json()["models"][0]


def rung(daemon):
    return model(daemon)["engine"]["rung"]


def test_a_plan_serves_and_status_says_on_what(native, gpu, walk):
    daemon = native(models=[gpu.model()], config=gpu.config())
    engine = model(daemon)["engine"]
    assert (engine["rung"], engine["version"], engine["device"]) == (
        "tensorrt",
        "tensorrt 10.3.0",
        "Double (sm_87, CUDA 12.6)",
    )
    assert engine["library"] == str(gpu.library.resolve())
    built_in = native()
    answers = [np.array(d.request("/infer", walk).json()["latent"]) for d in (daemon, built_in)]
    assert np.abs(answers[0] - answers[1]).max() < 1e-4 and np.abs(answers[0]).max() > 0


def test_what_the_gpu_tells_is_shown_and_what_it_does_not_tell_is_not(native, gpu):
    daemon = native(models=[gpu.model()], config=gpu.config())
    device = model(daemon)["device"]
    assert device["memory_total_bytes"] == 1 << 30 and 0 < device["memory_used_bytes"] < 1 << 30
    assert 0 <= device["load"] <= 1
    assert [device[key] for key in ("celsius", "watts", "temperature", "told")] == [None] * 4
    shown = daemon.request("/metrics").body.decode()
    name = 'device="Double (sm_87, CUDA 12.6)"'
    assert f"inferd_device_memory_total_bytes{{{name}}} {float(1 << 30):.0f}" in shown
    assert f"inferd_device_load_ratio{{{name}}}" in shown and "inferd_device_memory_used_bytes" in shown
    assert "hailo_hailort_status" not in shown and "inferd_device_notifications" not in shown


@pytest.mark.parametrize(
    ("bound_to", "said"),
    [
        (("8.6.1",), "expecting library version 10.3.0 got 8.6.1"),
        (("10.3.0", "sm_72"), "expecting compute sm_87 got compute sm_72"),
    ],
    ids=["another version", "another device"],
)
def test_a_plan_that_is_not_for_this_device_is_refused_and_the_next_rung_serves(native, gpu, walk, bound_to, said):
    daemon = native(models=[gpu.model(("tensorrt", "cpu"), *bound_to)], config=gpu.config())
    assert rung(daemon) == "cpu"
    assert said in model(daemon)["fallback"]["reason"]
    answer = daemon.request("/infer", walk)
    assert answer.status == 200 and answer.headers["X-Inferd-Engine"] == "cpu"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("devices=0", "CUDA finds no device"),
        ("cuda-init=803", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("version=110400", "it is TensorRT 11.4.0, this program knows 10"),
    ],
)
def test_without_a_gpu_or_with_another_library_the_next_rung_serves(native, gpu, walk, fault, said):
    gpu.fails(fault)
    daemon = native(models=[gpu.model()], config=gpu.config())
    assert rung(daemon) == "cpu"
    here = next(e for e in daemon.request("/status").json()["engines"] if e["engine"] == "tensorrt")
    assert said in here["problem"]
    assert daemon.request("/infer", walk).status == 200


def test_a_gpu_that_comes_late_is_waited_for_while_the_next_rung_serves(native, gpu, walk):
    gpu.fails("devices=0")
    daemon = native(models=[gpu.model()], config=gpu.config())
    assert rung(daemon) == "cpu" and "CUDA finds no device" in model(daemon)["fallback"]["reason"]
    assert daemon.request("/infer", walk).headers["X-Inferd-Engine"] == "cpu"
    gpu.fails()
    until(lambda: rung(daemon) == "tensorrt", "the GPU")
    assert daemon.request("/infer", walk).status == 200 and model(daemon)["fallback"] is None


def test_a_library_outside_the_versions_that_were_compared_is_not_waited_for(native, gpu, walk):
    gpu.fails("version=101700")
    daemon = native(models=[gpu.model()], config=gpu.config())
    assert (rung(daemon), model(daemon)["fallback"]) == ("cpu", None)
    here = next(e for e in daemon.request("/status").json()["engines"] if e["engine"] == "tensorrt")
    assert "it is TensorRT 10.17.0, this program knows 10.3 to 10.16" in here["problem"]


def test_a_gpu_that_fails_under_load_gives_no_wrong_answer_and_is_gone_back_to(native, gpu, walk):
    daemon = native(models=[gpu.model()], config=gpu.config())
    right = daemon.request("/infer", walk).json()["latent"]
    assert rung(daemon) == "tensorrt"
    # A kernel crashes: from then on the whole CUDA context is dead, and every new one with it.
    gpu.fails("synchronize=719")
    engines = set()

    def fallen():
        answer = daemon.request("/infer", walk)
        assert answer.status in (200, 503), "computed or refused"
        if answer.status == 200:
            assert np.abs(np.array(answer.json()["latent"]) - right).max() < 1e-4
            engines.add(answer.headers.get("X-Inferd-Engine"))
        return answer.status == 200 and answer.headers.get("X-Inferd-Engine") == "cpu"

    until(fallen, "the next rung")
    assert "CUDA_ERROR_LAUNCH_FAILED" in model(daemon)["fallback"]["reason"]
    gpu.fails()
    until(lambda: rung(daemon) == "tensorrt", "the GPU again")
    assert np.abs(np.array(daemon.request("/infer", walk).json()["latent"]) - right).max() < 1e-4


def test_a_gpu_that_hangs_costs_its_host_and_never_an_answer(native, gpu, walk):
    daemon = native(models=[gpu.model()], config=gpu.config())
    right = daemon.request("/infer", walk).json()["latent"]
    gpu.fails("hang=1")
    assert daemon.request("/infer", walk).status == 503
    gpu.fails()
    until(lambda: daemon.request("/infer", walk).status == 200, "an answer")
    assert np.abs(np.array(daemon.request("/infer", walk).json()["latent"]) - right).max() < 1e-4


def test_answers_that_are_no_numbers_are_refused(native, gpu, walk):
    gpu.fails("output=nan")
    daemon = native(models=[gpu.model()], config=gpu.config())
    assert rung(daemon) == "cpu"
    assert "golden" in model(daemon)["fallback"]["reason"]
    assert daemon.request("/infer", walk).status == 200


def test_no_client_is_given_what_is_no_number(native, gpu, walk):
    daemon = native(models=[gpu.model()], config=gpu.config())
    right = daemon.request("/infer", walk).json()["latent"]
    gpu.fails("output=nan")
    for _ in range(3):
        answer = daemon.request("/infer", walk)
        assert answer.status >= 500 and "not finite" in answer.body.decode(), answer.body
    gpu.fails()
    until(lambda: daemon.request("/infer", walk).status == 200, "an answer")
    assert np.allclose(daemon.request("/infer", walk).json()["latent"], right, atol=1e-4)
