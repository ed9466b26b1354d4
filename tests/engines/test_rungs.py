"""Ladders with variants: which rung serves, what it must keep, what happens when one falls out, and where all of that is said."""

import os
import shutil
import signal

import numpy as np
import pytest
from helpers import until

from engines import quantised, variants

LADDER = ["ort-int8", "ort", "cpu"]


def model(daemon):
    """What /status says of the default model."""
    return daemon.request("/status").json()["models"][0]


def rung(daemon):
    return model(daemon)["engine"]["rung"]


def metric(daemon, line):
    return [text for text in daemon.request("/metrics").body.decode().splitlines() if text.startswith(line)]


@pytest.fixture
def library(onnxruntime_library, tmp_path):
    """A copy of the library that a test may take away."""
    return shutil.copy(onnxruntime_library, tmp_path / "libonnxruntime.so")


def test_the_best_rung_serves_and_everything_names_it(native, with_ort, tmp_path, walk):
    folder = quantised.ladder(tmp_path / "model", LADDER)
    daemon = native(models=[folder], config=with_ort())
    seen = model(daemon)
    assert seen["engines"] == LADDER and seen["fallback"] is None
    assert (seen["engine"]["rung"], seen["engine"]["kind"], seen["engine"]["variant"]) == ("ort-int8", "ort", "int8")
    assert seen["engine"]["network"]["sha256"] == variants.digest(folder / quantised.INT8)
    assert [b["engine"] for b in seen["breakers"]] == LADDER
    assert seen["variants"][0]["name"] == "int8"
    assert daemon.request("/healthz").json()["engine"] == "ort-int8"
    parameters = daemon.request("/v2/models/imu-motion").json()["parameters"]
    assert parameters["engine"] == "ort-int8"
    assert parameters["golden"]["cosine_at_least"] == 0.7, "the tolerance is the variant's"
    assert parameters["golden"]["cosine"] < 0.99999, "and it is needed: this is no f32 network"
    assert any('engine="ort-int8"' in line for line in metric(daemon, "inferd_model_info"))
    states = metric(daemon, "inferd_breaker_state")
    assert [name for name in LADDER for line in states if f'engine="{name}"' in line] == LADDER
    answer = daemon.request("/infer", walk)
    assert answer.status == 200 and "X-Inferd-Engine" not in answer.headers
    assert daemon.request("/test", {}).json()["parity"]["least_cosine"] == 0.7


def test_int8_answers_are_near_those_of_the_network_itself(native, with_ort, tmp_path, walk):
    int8 = native(models=[quantised.ladder(tmp_path / "model", LADDER)], config=with_ort())
    f32 = native(config=with_ort())
    a, b = (np.array(d.request("/infer", walk).json()["latent"]) for d in (int8, f32))
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert 0.95 < cosine < 0.99999, "near, and not the same"
    assert (rung(int8), rung(f32)) == ("ort-int8", "ort")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\0"), "SHA-256"),
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.write_bytes(b""), "empty"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "is not a regular file"),
    ],
    ids=["a flipped byte", "not there", "empty", "a named pipe"],
)
def test_a_damaged_file_of_a_rung_that_can_be_run_is_refused_before_it_serves(native, with_ort, tmp_path, spoil, said):
    folder = quantised.ladder(tmp_path / "model", LADDER)
    spoil(folder / quantised.INT8)
    daemon = native(models=[folder], config=with_ort(), ready=False)
    daemon.logged(said)
    until(lambda: daemon.request("/status").json()["load_errors"], "the reason")
    assert said in daemon.request("/status").json()["load_errors"][0]["reason"]
    assert daemon.request("/healthz").status == 503


def test_a_file_that_no_engine_here_can_run_need_not_be_there(native, tmp_path, walk):
    folder = quantised.ladder(tmp_path / "model", ["ort-int8", "cpu"])
    (folder / quantised.INT8).unlink()
    daemon = native(models=[folder])
    assert (rung(daemon), model(daemon)["fallback"]) == ("cpu", None)
    assert daemon.request("/infer", walk).status == 200


def test_a_variant_that_is_no_network_leaves_its_place_to_the_next_rung(native, with_ort, tmp_path, walk):
    folder = quantised.ladder(tmp_path / "model", LADDER)
    right = variants.digest(folder / quantised.INT8)
    (folder / quantised.INT8).write_bytes(b"signed, and still no network")
    page = (folder / "manifest.toml").read_text()
    (folder / "manifest.toml").write_text(page.replace(right, variants.digest(folder / quantised.INT8)))
    daemon = native(models=[folder], config=with_ort())
    seen = model(daemon)["fallback"]
    assert (seen["from"], seen["to"]) == ("ort-int8", "ort")
    assert "cannot be loaded" in seen["reason"]
    assert daemon.request("/infer", walk).headers["X-Inferd-Engine"] == "ort"


def test_a_variant_outside_its_own_tolerance_does_not_serve(native, with_ort, tmp_path, walk):
    folder = quantised.ladder(tmp_path / "model", LADDER, cosine=0.9999, max_abs=1e-4)
    daemon = native(models=[folder], config=with_ort())
    seen = model(daemon)["fallback"]
    assert (seen["from"], seen["to"]) == ("ort-int8", "ort")
    assert "golden" in seen["reason"]
    assert daemon.request("/infer", walk).status == 200
    (opened,) = metric(daemon, 'inferd_breaker_opened_total{model="imu-motion",engine="ort-int8"}')
    assert float(opened.split()[-1]) >= 1


def test_the_built_in_engine_stands_in_when_the_library_goes_and_is_marked(native, with_ort, library, tmp_path, walk):
    folder = quantised.ladder(tmp_path / "model", LADDER)
    daemon = native(models=[folder], config=with_ort(library))
    assert rung(daemon) == "ort-int8"
    away = library.rename(tmp_path / "away.so")
    os.kill(model(daemon)["host"]["pid"], signal.SIGKILL)
    until(lambda: model(daemon)["state"] == "ready" and rung(daemon) == "cpu", "the built-in engine")
    answer = daemon.request("/infer", walk)
    assert answer.status == 200 and answer.headers["X-Inferd-Engine"] == "cpu"
    seen = model(daemon)
    assert (seen["fallback"]["from"], seen["fallback"]["to"]) == ("ort-int8", "cpu")
    assert metric(daemon, 'inferd_engine_fallback{model="imu-motion",from="ort-int8",to="cpu"}')
    away.rename(library)
    until(lambda: rung(daemon) == "ort-int8", "the best rung, found well by probing")
    until(lambda: "X-Inferd-Engine" not in daemon.request("/infer", walk).headers, "its answers")
    assert model(daemon)["fallback"] is None


def test_the_built_in_engine_is_right_on_qdq_or_refuses(native, tmp_path, walk):
    folder = quantised.ladder(tmp_path / "model", ["cpu-int8", "cpu"])
    daemon = native(models=[folder])
    seen = model(daemon)
    if seen["fallback"] is None:
        assert seen["engine"]["rung"] == "cpu-int8" and seen["golden"]["cosine"] >= 0.7
    else:
        assert seen["engine"]["rung"] == "cpu" and seen["fallback"]["reason"]
    assert daemon.request("/infer", walk).status == 200
