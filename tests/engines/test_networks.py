"""Networks that nobody should ship, on the real ONNX Runtime through the daemon: refused with their reason, and nobody else is disturbed."""

import json

import numpy as np
import pytest
from helpers import until
from onnx import TensorProto, helper

from engines.networks import computed, model, network, node, weight

RIGHT = network([node("Mul", ["x", "x"])])


def broken():
    """Networks that are wrong, each with what is said of it."""
    elsewhere = weight(dims=[4], data_location=1)
    elsewhere.external_data.add(key="location", value="/etc/passwd")
    cycle = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"])]
    claims = weight(dims=[1 << 29], raw_data=b"\0" * 16)
    fills = [node("ConstantOfShape", ["s"], ["c"]), node("ReduceSum", ["c"], ["r"]), node("Add", ["x", "r"])]
    size = helper.make_tensor("s", TensorProto.INT64, [1], [1 << 29])
    return {
        "unknown operator": (network([node("Warp", ["x"])]), "Warp"),
        "data in another file": (network([node("Add", ["x", "w"])], [elsewhere]), "its data is in another file"),
        "a cycle": (network(cycle), "acyclic"),
        "a tensor that claims 2 GiB": (network([node("Add", ["x", "w"])], [claims]), None),
        "a tensor that becomes 2 GiB": (network(fills, [size]), "memory"),
        "cut short": (RIGHT[:-9], None),
        "nothing": (b"", "empty"),
    }


BROKEN = broken()


def refusals(daemon):
    """The refusals by model, or by its folder's name where it was refused before it had one."""
    return {e["model"].rsplit("/", 1)[-1]: e["reason"] for e in daemon.request("/status").json()["load_errors"]}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_network_is_refused_with_its_reason_and_a_right_one_serves_on(native, with_ort, tmp_path, what):
    bad, said = BROKEN[what]
    right = model(tmp_path / "models/right", RIGHT, answers=computed(RIGHT))
    model(tmp_path / "models/wrong", bad)
    daemon = native(models=[tmp_path / "models"], config=with_ort(), ready=False).wait_listening()
    until(lambda: "wrong" in refusals(daemon), daemon)
    reason = refusals(daemon)["wrong"]
    assert (said or "").lower() in reason.lower(), reason
    assert "::" not in reason and "onnxruntime_src" not in reason and "\x1b" not in reason, reason
    until(lambda: ask(daemon, right.name).status == 200, daemon)
    assert ask(daemon, "right").json()["outputs"][0]["data"] == [0.0, 1.0, 4.0, 9.0]
    assert ask(daemon, "wrong").status in (404, 503)


def ask(daemon, name, values=(0.0, 1.0, 2.0, 3.0)):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": list(values)}
    return daemon.request(f"/v2/models/{name}/infer", {"inputs": [tensor]})


def binary(daemon, name, values):
    """The same as bytes both ways, so that anything can be asked and answered: the status, and the values."""
    data = np.array(values, np.float32).tobytes()
    head = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    page = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(page)), "Content-Type": "application/octet-stream"}
    answer = daemon.request(f"/v2/models/{name}/infer", page + data, headers=headers)
    return answer.status, np.frombuffer(answer.body[-len(data) :], np.float32)


def test_a_flipped_bit_is_refused_or_harmless(native, with_ort, tmp_path):
    # Signed as they are: what is damaged after that is refused by its digest before any engine sees it.
    for n, at in enumerate(range(0, len(RIGHT) * 8, 29)):
        damaged = bytearray(RIGHT)
        damaged[at // 8] ^= 1 << at % 8
        model(tmp_path / f"models/bit-{n}", bytes(damaged), answers=lambda x: x * x)
    names = [folder.name for folder in (tmp_path / "models").iterdir()]
    assert len(names) > 20
    daemon = native(models=[tmp_path / "models"], config=with_ort(), ready=False).wait_listening()

    def all_known():
        status = daemon.request("/status").json()
        ready = [m for m in status["models"] if m["state"] == "ready"]
        return len(ready) + len(status["load_errors"]) == len(names)

    until(all_known, daemon)
    refused = refusals(daemon)
    for name in names:
        answer = ask(daemon, name)
        if name in refused:
            assert refused[name] and answer.status in (404, 503)
        else:
            assert answer.json()["outputs"][0]["data"] == [0.0, 1.0, 4.0, 9.0], name
    assert 0 < len(refused) < len(names), "some bits are names and of no matter"


def test_what_is_no_number_is_the_same_on_both_engines_and_never_in_json(native, with_ort, tmp_path):
    roots = network([node("Sqrt", ["x"])])
    for engine in ("ort", "cpu"):
        model(tmp_path / f"models/on-{engine}", roots, [engine], np.sqrt)
    daemon = native(models=[tmp_path / "models"], config=with_ort())
    seen = {m["name"]: m["engine"]["kind"] for m in daemon.request("/status").json()["models"]}
    assert seen == {"on-ort": "ort", "on-cpu": "cpu"}
    values = [4.0, -1.0, float("inf"), float("nan")]
    answers = [binary(daemon, name, values) for name in seen]
    assert [status for status, _ in answers] == [200, 200]
    assert np.isnan(answers[0][1]).tolist() == [False, True, False, True]
    assert np.array_equal(answers[0][1], answers[1][1], equal_nan=True)
    for name in seen:
        refused = ask(daemon, name, [4.0, -1.0, 9.0, 16.0])
        assert refused.status >= 400 and "not a finite number" in refused.body.decode(), refused.body
        assert ask(daemon, name).status == 200, "the next one is answered"
