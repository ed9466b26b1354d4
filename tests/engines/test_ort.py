"""The daemon with a real ONNX Runtime: what serves is what is said, and the built-in engine is there when it is not."""

import os
import platform
import shutil
import signal

import numpy as np
import onnxruntime
import places
import pytest
from helpers import until


def status(daemon):
    return daemon.request("/status").json()


def serving(daemon):
    """The engine behind the default model."""
    return status(daemon)["models"][0]["engine"]


def here(daemon, engine):
    """What /status says of an engine of this image."""
    return next(e for e in status(daemon)["engines"] if e["engine"] == engine)


def test_a_model_that_prefers_ort_is_served_by_it_and_status_says_by_which(native, with_ort, onnxruntime_library, walk):
    daemon = native(config=with_ort())
    engine = serving(daemon)
    assert engine["kind"] == "ort" and engine["device"] == "cpu" and engine["remark"] is None
    assert engine["version"] == f"onnxruntime {onnxruntime.__version__}"
    assert engine["library"] == str(onnxruntime_library.resolve())
    assert here(daemon, "ort")["problem"] is None and here(daemon, "ort")["providers"] == ["cpu"]
    answer = daemon.request("/infer", walk)
    assert answer.status == 200 and "X-Inferd-Engine" not in answer.headers, "it stands in for no other"


def test_a_host_of_ort_is_told_before_it_loads_the_library_to_report_nothing_to_its_maker(native, with_ort):
    daemon = native(config=with_ort())
    assert serving(daemon)["kind"] == "ort"
    with open(f"/proc/{status(daemon)['models'][0]['host']['pid']}/environ", "rb") as variables:
        assert b"ORT_DISABLE_TELEMETRY=1" in variables.read().split(b"\0")


def test_both_engines_give_the_same_answer(native, with_ort, walk):
    ort, built_in = native(config=with_ort()), native()
    assert serving(built_in)["kind"] == "cpu"
    answers = [np.array(d.request("/infer", walk).json()["latent"], dtype=np.float64) for d in (ort, built_in)]
    assert np.abs(answers[0] - answers[1]).max() < 1e-4
    assert np.abs(answers[0]).max() > 0, "they are answers"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda library, to: None, "No such file"),
        (lambda library, to: to.write_bytes(library.read_bytes()[:3_000_000]), "it was cut short"),
        (lambda library, to: to.write_bytes(_for_another_processor(library)), "it is for "),
        (lambda library, to: to.write_bytes(b"not a library" * 100), "it is no shared object of 64 bits"),
        (lambda library, to: shutil.copy(f"/lib/{platform.machine()}-linux-gnu/libm.so.6", to), "it has no OrtGetApiBase"),
    ],
    ids=["absent", "cut short", "another processor", "no library", "another library"],
)
def test_a_library_that_cannot_be_used_is_said_and_the_built_in_engine_serves(
    native, with_ort, onnxruntime_library, tmp_path, walk, spoil, said
):
    library = tmp_path / "libonnxruntime.so"
    spoil(onnxruntime_library, library)
    daemon = native(config=with_ort(library))
    assert serving(daemon)["kind"] == "cpu"
    assert said in here(daemon, "ort")["problem"]
    assert daemon.request("/infer", walk).status == 200


def _for_another_processor(library):
    spoiled = bytearray(library.read_bytes()[:4096])
    # ELF's numbers of x86_64 and aarch64.
    spoiled[18] = {62: 183, 183: 62}[spoiled[18]]
    return spoiled


def test_a_program_without_engines_is_no_obstacle(native, walk):
    daemon = native(config='[hosts]\nengine_host = "/bin/false"\n')
    assert serving(daemon)["kind"] == "cpu"
    daemon.logged("engine ort is not used: looking for it failed: its process ended with exit status: 1")
    assert daemon.request("/infer", walk).status == 200


def test_a_host_of_ort_that_is_killed_costs_no_wrong_answer_and_comes_back(native, with_ort, walk):
    daemon = native(config=with_ort())
    right = daemon.request("/infer", walk).json()["latent"]
    for _ in range(3):
        os.kill(status(daemon)["models"][0]["host"]["pid"], signal.SIGKILL)
        seen = []

        def answered(seen=seen):
            answer = daemon.request("/infer", walk)
            seen.append(answer.status)
            assert answer.status in (200, 503), answer.body
            if answer.status == 200:
                assert np.allclose(answer.json()["latent"], right, atol=1e-4)
            return answer.status == 200 and serving(daemon)["kind"] == "ort"

        until(answered, "an answer of ort")


def test_the_models_of_the_tests_pass_their_golden_vectors_on_ort(native, with_ort, tmp_path):
    originals = sorted(page.parent for page in (places.ROOT / "tests/models").glob("*/manifest.toml"))
    for original in originals:
        if not original.name.startswith(("fault-", "refused-")):
            copy = shutil.copytree(original, tmp_path / "models" / original.name)
            page = (copy / "manifest.toml").read_text()
            assert 'engines = ["cpu"]' in page
            (copy / "manifest.toml").write_text(page.replace('engines = ["cpu"]', 'engines = ["ort"]'))
    daemon = native(models=[tmp_path / "models"], config=with_ort())
    models = {model["name"]: model for model in status(daemon)["models"]}
    assert len(models) == len(list((tmp_path / "models").iterdir())) > 10
    assert {m["engine"]["kind"] for m in models.values() if m["state"] == "ready"} == {"ort"}
    assert [name for name, m in models.items() if m["state"] != "ready"] == []
