"""What the endpoint promises beyond what Triton's client looks at."""

import gzip
import json
import math
import shutil
import struct
import zlib

import pytest
from oip.wire import IMU_MOTION, MODELS, adapted, frame, tensor

INFER = "/v2/models/identity-fp32/infer"
LENGTH = "Inference-Header-Content-Length"
GOOD = json.dumps({"inputs": [tensor("x", "FP32", [2, 3], [1, 2, 3, 4, 5, 6])]}).encode()


def imu(endpoint):
    """(name of the input, outputs by name) of the default model."""
    metadata = endpoint.get("/v2/models/imu-motion").json()
    return metadata["inputs"][0], {o["name"]: o for o in metadata["outputs"]}


def window(value=0.0, **at):
    values = [value] * 900
    for index, v in at.items():
        values[int(index[1:])] = v
    return struct.pack("<900f", *values)


def test_health_says_what_and_of_whom(endpoint):
    assert endpoint.get("/v2/health/live").json() == {"live": True}
    assert endpoint.get("/v2/health/ready").json() == {"ready": True}
    assert endpoint.get("/v2/models/identity-fp32/ready").json() == {"name": "identity-fp32", "ready": True}
    assert endpoint.get("/v2/models/nobody/ready").status == 404
    head = endpoint.request("HEAD", "/v2/health/live")
    assert (head.status, head.body) == (200, b"")
    assert "imu-motion" in endpoint.get("/v2/models").json()["models"]


def test_a_raw_request_needs_no_json_at_all(endpoint):
    """3600 bytes are a window: the smallest request there is."""
    spec, outputs = imu(endpoint)
    reply = endpoint.post("/v2/models/imu-motion/infer", window(), [(LENGTH, "0")])
    assert (reply.status, reply.headers["content-type"]) == (200, "application/octet-stream")
    n = int(reply.headers[LENGTH])
    answer = json.loads(reply.body[:n])
    sizes = [o["parameters"]["binary_data_size"] for o in answer["outputs"]]
    assert sum(sizes) == len(reply.body) - n
    assert [o["name"] for o in answer["outputs"]] == list(outputs)
    assert answer["model_name"] == "imu-motion" and "id" not in answer


def test_the_three_ways_to_send_a_tensor_give_the_same_answer(endpoint):
    values = [0.1, -1.5, 3e38, 1e-45, 16777217.0, -0.0]
    packed = struct.pack("<6f", *values)
    wanted = [struct.unpack("<f", struct.pack("<f", v))[0] for v in values]
    as_json = json.dumps({"inputs": [tensor("x", "FP32", [2, 3], values)]}).encode()
    as_rows = json.dumps({"inputs": [tensor("x", "FP32", [2, 3], [values[:3], values[3:]])]}).encode()
    framed, headers = frame({"inputs": [tensor("x", "FP32", [2, 3], size=24)]}, packed)
    for body, extra in [(as_json, []), (as_rows, []), (framed, headers)]:
        data = endpoint.post(INFER, body, extra).json()["outputs"][0]["data"]
        assert struct.pack("<6f", *data) == packed, "bit for bit"
        assert data == pytest.approx(wanted, rel=1e-7)
    raw = endpoint.post(INFER, packed, [(LENGTH, "0")])
    assert raw.body[int(raw.headers[LENGTH]) :] == packed


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream", "text/plain", "nonsense"])
def test_the_content_type_decides_nothing(endpoint, content_type):
    headers = [("Content-Type", content_type)] if content_type else []
    reply = endpoint.post(INFER, GOOD, headers)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")


def test_a_body_may_come_in_chunks(endpoint):
    whole = endpoint.post(INFER, GOOD).json()
    one_by_one = [GOOD[i : i + 1] for i in range(len(GOOD))]
    assert endpoint.request("POST", INFER, one_by_one, chunked=True).json() == whole
    body, headers = frame({"inputs": [tensor("x", "FP32", [2, 3], size=24)]}, struct.pack("<6f", *range(1, 7)))
    assert endpoint.request("POST", INFER, [body[:50], body[50:]], headers, chunked=True).json() == whole


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_the_header_length_counts_the_bytes_before_compression(endpoint, coding, pack):
    spec, _ = imu(endpoint)
    body, headers = frame({"inputs": [tensor(spec["name"], "FP32", spec["shape"], size=3600)]}, window())
    headers += [("Content-Encoding", coding), ("Accept-Encoding", coding)]
    reply = endpoint.post("/v2/models/imu-motion/infer", pack(body), headers)
    assert (reply.status, reply.headers["content-encoding"]) == (200, coding)
    assert "accept-encoding" in reply.headers["vary"].lower()
    text = (gzip.decompress if coding == "gzip" else zlib.decompress)(reply.body)
    assert LENGTH not in reply.headers and json.loads(text)["model_name"] == "imu-motion"
    raw = endpoint.post("/v2/models/imu-motion/infer", pack(window()), [*headers[1:], (LENGTH, "0")])
    assert raw.status == 200
    if raw.headers["content-encoding"]:
        assert raw.headers["content-encoding"] == coding


@pytest.mark.parametrize("asked", [None, "identity", "br", "gzip;q=0", "*"])
def test_nothing_is_compressed_that_nobody_asked_for(endpoint, asked):
    spec, _ = imu(endpoint)
    body, headers = frame({"inputs": [tensor(spec["name"], "FP32", spec["shape"], size=3600)]}, window())
    headers += [("Accept-Encoding", asked)] if asked else []
    assert "content-encoding" not in endpoint.post("/v2/models/imu-motion/infer", body, headers).headers


def test_descriptions_and_refusals_are_never_compressed(endpoint):
    """tritonclient.http.aio asks for gzip everywhere and undoes it only in infer."""
    asked = [("Accept-Encoding", "gzip, deflate, br")]
    for path in ["/v2", "/v2/models/imu-motion", "/v2/models/imu-motion/config", "/v2/models/stats"]:
        reply = endpoint.get(path, asked)
        assert "content-encoding" not in reply.headers and reply.json()
    long = json.dumps({"inputs": [tensor("x" * 5000, "FP32", [1], [1])]}).encode()
    assert endpoint.post(INFER, long, asked).error()


def test_the_input_contract_is_in_the_metadata(endpoint):
    spec, _ = imu(endpoint)
    contract = spec["parameters"]
    assert contract["channels"]["names"] == ["ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz"]
    assert len(contract["channels"]["units"]) == 9
    assert contract["normalization"]["applied_by"] == "server"
    assert len(contract["normalization"]["mean"]) == len(contract["normalization"]["std"]) == 9
    assert contract["not_finite"] == "refused"
    covered = [c for limit in contract["limits"] for c in limit["channels"]]
    assert sorted(covered) == sorted(contract["channels"]["names"])
    plain = endpoint.get("/v2/models/identity-fp32").json()["inputs"][0]["parameters"]
    assert plain == {"not_finite": "accepted", "json": True}


def test_the_limits_in_the_metadata_are_the_limits(endpoint):
    spec, _ = imu(endpoint)
    names = spec["parameters"]["channels"]["names"]
    path = "/v2/models/imu-motion/infer"
    for limit in spec["parameters"]["limits"]:
        for channel in limit["channels"]:
            column = names.index(channel)
            at = 37 * 9 + column
            for sign in (1, -1):
                allowed = window(**{f"_{at}": sign * limit["max_abs"]})
                assert endpoint.post(path, allowed, [(LENGTH, "0")]).status == 200
                beyond = window(**{f"_{at}": sign * limit["max_abs"] * 1.001})
                reason = endpoint.post(path, beyond, [(LENGTH, "0")]).error()
                assert limit["quantity"] in reason and f"[0, 37, {column}]" in reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_measurement_is_finite_and_a_plain_tensor_may_be_anything(endpoint, bad):
    reply = endpoint.post("/v2/models/imu-motion/infer", window(_100=bad), [(LENGTH, "0")])
    assert reply.status == 400 and "[0, 11, 1]" in reply.error()
    packed = struct.pack("<6f", 1, 2, bad, 4, 5, 6)
    raw = endpoint.post(INFER, packed, [(LENGTH, "0")])
    assert raw.body[int(raw.headers[LENGTH]) :] == packed
    body, headers = frame({"inputs": [tensor("x", "FP32", [2, 3], size=24)]}, packed)
    refused = endpoint.post(INFER, body, headers)
    assert refused.status == 400, "JSON cannot carry it back"
    assert "[0, 2]" in refused.error() and "binary_data" in refused.error()


def test_names_may_be_percent_encoded(endpoint):
    assert endpoint.get("/v2/models/%69dentity%2Dfp32").json()["name"] == "identity-fp32"
    assert endpoint.get("/v2/models/identity-fp32/versions/%31/ready").status == 200


def test_the_index_can_be_of_ready_models_only(endpoint):
    both = endpoint.post("/v2/repository/index", b"{}").json()
    ready = endpoint.post("/v2/repository/index", b'{"ready":true}').json()
    assert [m for m in both if m["state"] == "READY"] == ready
    assert endpoint.post("/v2/repository/index").json() == both


def test_a_deadline_that_cannot_be_met_is_refused(endpoint):
    timeout = json.dumps({"parameters": {"timeout": 1}, "inputs": [tensor("x", "FP32", [2, 3], [1] * 6)]}).encode()
    reply = endpoint.post(INFER, timeout)
    assert reply.status == 503 and "deadline" in reply.error() or "within" in reply.error()
    fine = endpoint.post(INFER, GOOD, [("Inference-Deadline-Ms", "5000")])
    assert fine.status == 200


def test_a_failed_load_leaves_the_model_serving(start, tmp_path):
    """The directory is damaged after the start: the load says why, the model in memory goes on."""
    shutil.copytree(MODELS / "identity-fp32", tmp_path / "identity-fp32")
    endpoint = start([tmp_path])
    answer = endpoint.post(INFER, GOOD).json()
    onnx = tmp_path / "identity-fp32" / "model.onnx"
    good = onnx.read_bytes()
    onnx.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    reply = endpoint.post("/v2/repository/models/identity-fp32/load")
    assert reply.status == 400 and "sha256" in reply.error().lower().replace("-", "")
    assert endpoint.post(INFER, GOOD).json() == answer
    (entry,) = endpoint.post("/v2/repository/index").json()
    assert entry["state"] == "READY" and "last load failed" in entry["reason"]
    assert endpoint.get("/v2/health/ready").status == 200
    # Unloaded, it cannot be had back; mended, it can.
    assert endpoint.post("/v2/repository/models/identity-fp32/unload").status == 200
    assert endpoint.get("/v2/health/ready").status == 503
    assert endpoint.post("/v2/repository/models/identity-fp32/load").status == 400
    assert endpoint.post(INFER, GOOD).status == 404
    onnx.write_bytes(good)
    assert endpoint.post("/v2/repository/models/identity-fp32/load").json()["state"] == "READY"
    assert endpoint.post(INFER, GOOD).json() == answer
    (entry,) = endpoint.post("/v2/repository/index").json()
    assert entry == {"name": "identity-fp32", "version": "1", "state": "READY", "reason": ""}


def test_a_load_takes_the_new_version_from_the_directory(start, tmp_path):
    shutil.copytree(MODELS / "identity-fp32", tmp_path / "identity-fp32")
    endpoint = start([tmp_path])
    manifest = tmp_path / "identity-fp32" / "manifest.toml"
    manifest.write_text(manifest.read_text().replace('version = "1"', 'version = "2"'))
    assert endpoint.post("/v2/repository/models/identity-fp32/load").json()["version"] == "2"
    assert endpoint.get("/v2/models/identity-fp32").json()["versions"] == ["2"]
    assert endpoint.get("/v2/models/identity-fp32/versions/1").status == 404
    assert endpoint.post(INFER.replace("/infer", "/versions/2/infer"), GOOD).json()["model_version"] == "2"


def test_an_overfull_model_says_when_to_come_back(start, tmp_path):
    """One slot, and a request that computes for a while: the next one is refused at once, with the time to wait."""
    import concurrent.futures

    endpoint = start([adapted(IMU_MOTION, tmp_path, queue=1, workers=1)])
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ask = lambda _: endpoint.post("/v2/models/imu-motion/infer", window(), [(LENGTH, "0")])  # noqa: E731
        replies = list(pool.map(ask, range(400)))
    by_status = {s: [r for r in replies if r.status == s] for s in {r.status for r in replies}}
    assert set(by_status) == {200, 503}, {s: len(r) for s, r in by_status.items()}
    for r in by_status[503]:
        assert "slots are taken" in r.error() and int(r.headers["retry-after"]) >= 1
    assert len({r.body for r in by_status[200]}) == 1, "every answer given is the right one"
    statistics = endpoint.get("/v2/models/imu-motion/stats").json()["model_stats"][0]
    assert statistics["inferd"]["failures"]["queue_full"] == len(by_status[503])
    assert statistics["inference_count"] == len(by_status[200])


def test_a_model_that_could_not_be_loaded_at_the_start_is_listed_with_its_reason(start, tmp_path):
    shutil.copytree(MODELS / "identity-fp32", tmp_path / "identity-fp32")
    shutil.copytree(MODELS / "identity-int8", tmp_path / "identity-int8")
    manifest = tmp_path / "identity-int8" / "manifest.toml"
    good = manifest.read_text()
    manifest.write_text(good.replace("schema = 1", "schema = 99"))
    endpoint = start([tmp_path], broken=1)
    index = {m["name"]: m for m in endpoint.post("/v2/repository/index").json()}
    assert index["identity-int8"]["state"] == "UNAVAILABLE" and "schema" in index["identity-int8"]["reason"]
    assert endpoint.get("/v2/models/identity-int8").status == 404
    again = endpoint.post("/v2/repository/models/identity-int8/load")
    assert again.status == 400 and "schema" in again.error()
    manifest.write_text(good)
    assert endpoint.post("/v2/repository/models/identity-int8/load").json()["state"] == "READY"
    assert all(m["reason"] == "" for m in endpoint.post("/v2/repository/index").json())


def test_loading_over_a_model_in_use_fails_no_request(start, tmp_path):
    import threading

    shutil.copytree(MODELS / "identity-fp32", tmp_path / "identity-fp32")
    endpoint = start([tmp_path])
    wanted, wrong, done = [1, 2, 3, 4, 5, 6], [], threading.Event()

    def ask():
        while not done.is_set():
            reply = endpoint.post(INFER, GOOD)
            if reply.status != 200 or reply.json()["outputs"][0]["data"] != wanted:
                wrong.append(reply)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for a in askers:
        a.start()
    loads = [endpoint.post("/v2/repository/models/identity-fp32/load").status for _ in range(10)]
    done.set()
    for a in askers:
        a.join()
    assert (loads, wrong) == ([200] * 10, [])


def test_a_client_that_leaves_takes_its_request_along(start, tmp_path):
    """One worker is busy with the first; the others wait, and are dropped when their clients hang up."""
    import socket
    import time

    endpoint = start([adapted(MODELS / "fault-slow", tmp_path, workers=1, queue=8, deadline_ms=60_000)])

    def numbers():
        (statistics,) = endpoint.get("/v2/models/fault-slow/stats").json()["model_stats"]
        return statistics["inferd"]

    body = json.dumps({"inputs": [tensor("n", "INT32", [1], [20_000])]}).encode()
    head = f"POST /v2/models/fault-slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    leavers = [socket.create_connection((endpoint.host, endpoint.port)) for _ in range(6)]
    for s in leavers:
        s.sendall(head + body)
    end = time.monotonic() + 30
    while numbers()["waiting"] < 2:
        assert time.monotonic() < end
    for s in leavers:
        s.close()
    while numbers()["slots_in_use"] > 0:
        assert time.monotonic() < end
    after = numbers()
    assert after["cancelled"] > 0 and after["waiting"] == 0


def test_changing_the_device_needs_the_key_where_there_is_one(start):
    key = "a-key-of-this-test"
    endpoint = start([MODELS / "identity-fp32"], config=f'[security]\napi_key = "{key}"\n')
    for action in ("unload", "load"):
        path = f"/v2/repository/models/identity-fp32/{action}"
        without = endpoint.post(path)
        assert without.status == 401 and "key" in without.error() and without.headers["www-authenticate"]
        assert endpoint.post(path, b"", [("X-API-Key", "another-key-of-it")]).status == 403
        assert endpoint.post(INFER, GOOD).status == 200, "asking the model needs no key"
    for header in [("X-API-Key", key), ("Authorization", f"Bearer {key}")]:
        assert endpoint.post("/v2/repository/models/identity-fp32/load", b"", [header]).status == 200


def test_a_body_larger_than_the_limit_is_refused_before_it_is_read(endpoint):
    got = endpoint.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode())
    assert got.startswith(b"HTTP/1.1 413") and b'"error"' in got
