"""Real faults of a real daemon, seen as a client sees them: typed answers, in time, and the endpoint stays up."""

import json
import os
import signal
import socket
import struct
import threading
import time

import places
import pytest
from helpers import freeze, request

MODELS = places.ROOT / "tests/models"
IMU = places.DEFAULT_MODEL


def host_pid(daemon, model):
    """The engine host's process id as /status shows it, once there is one."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        entry = next(m for m in daemon.request("/status").json()["models"] if m["name"] == model)
        if entry["host"]["pid"]:
            return entry["host"]["pid"]
        time.sleep(0.01)
    pytest.fail(f"{model} has no engine host: {entry}")


def eventually(check, what, timeout=30):
    """Waits until `check` is true."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.01)
    pytest.fail(f"never happened: {what}")


def infer(daemon, model, **inputs):
    """One JSON inference over the Open Inference Protocol; each input is (datatype, shape, data)."""
    tensors = [{"name": n, "datatype": d, "shape": s, "data": v} for n, (d, s, v) in inputs.items()]
    return daemon.request(f"/v2/models/{model}/infer", {"inputs": tensors})


def slow(daemon, units):
    return infer(daemon, "fault-slow", n=("INT32", [1], [units]))


def typed(answer, *statuses):
    """A refusal in JSON that says why."""
    assert answer.status in statuses, answer.body
    body = answer.json()
    assert body.get("error") or body.get("detail"), body
    return body


def test_a_killed_host_is_back_by_itself(native, walk):
    daemon = native()
    before = host_pid(daemon, "imu-motion")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: daemon.request("/infer", walk).status == 200, "an answer from the next host")
    assert host_pid(daemon, "imu-motion") != before
    assert daemon.request("/readyz").status == 200


def test_a_stopped_host_costs_a_typed_503_within_the_deadline(native, walk):
    daemon = native()
    before = host_pid(daemon, "imu-motion")
    freeze(before)
    body = typed(daemon.request("/infer", walk), 503)
    assert "deadline" in str(body), body
    assert daemon.request("/livez").status == 200
    eventually(lambda: daemon.request("/infer", walk).status == 200, "an answer from the next host")
    assert host_pid(daemon, "imu-motion") != before


def test_an_impatient_client_does_not_cost_others_their_host(native, walk, patient):
    daemon = native(models=[patient])
    before = host_pid(daemon, "imu-motion")
    assert daemon.request("/infer", walk).status == 200
    freeze(before)
    typed(daemon.request("/infer", walk, headers={"Inference-Deadline-Ms": "20"}), 503)
    os.kill(before, signal.SIGCONT)
    assert daemon.request("/infer", walk).status == 200
    assert host_pid(daemon, "imu-motion") == before


def test_a_host_over_its_memory_cap_costs_one_request_and_the_daemon_nothing(native, walk):
    daemon = native(models=[IMU, MODELS / "fault-alloc"])
    eventually(lambda: daemon.request("/v2/models/fault-alloc/ready").status == 200, "the other model serves too")
    shape = daemon.request("/v2/models/fault-alloc").json()["inputs"][0]
    n = (shape["datatype"], shape["shape"], [1 << 30])
    daemon_pid = daemon.process.pid
    body = typed(infer(daemon, "fault-alloc", **{shape["name"]: n}), 503)
    assert "memory cap" in str(body), body
    assert daemon.request("/infer", walk).status == 200, "another model does not notice"
    eventually(lambda: daemon.request("/v2/models/fault-alloc/ready").status == 200, "the host is back")
    assert daemon.process.poll() is None and daemon.process.pid == daemon_pid


def test_a_panic_costs_one_request_and_not_the_host(native):
    daemon = native(models=[MODELS / "fault-panic"])
    before = host_pid(daemon, "fault-panic")
    least = -(2**31)
    for _ in range(5):
        answer = infer(daemon, "fault-panic", a=("INT32", [4], [least] * 4), b=("INT32", [4], [-1] * 4))
        assert "panic" in str(typed(answer, 503)), answer.body
        good = infer(daemon, "fault-panic", a=("INT32", [4], [8] * 4), b=("INT32", [4], [2] * 4))
        assert good.json()["outputs"][0]["data"] == [4] * 4
    assert host_pid(daemon, "fault-panic") == before
    assert 'inferd_worker_panics_total{model="fault-panic"} 5' in daemon.request("/metrics").body.decode()


def test_an_engine_that_keeps_failing_rests_and_is_tried_again(native, walk):
    daemon = native(models=[IMU, MODELS / "fault-panic"], config="[hosts]\nbreaker_pause_s = 15\n")
    eventually(lambda: daemon.request("/v2/models/fault-panic/ready").status == 200, "the other model serves too")
    least = -(2**31)

    def panics():
        return infer(daemon, "fault-panic", a=("INT32", [4], [least] * 4), b=("INT32", [4], [-1] * 4))

    def good():
        return infer(daemon, "fault-panic", a=("INT32", [4], [8] * 4), b=("INT32", [4], [2] * 4))

    def breaker():
        entry = next(m for m in daemon.request("/status").json()["models"] if m["name"] == "fault-panic")
        assert [b["engine"] for b in entry["breakers"]] == ["cpu"]
        return entry["breakers"][0]

    for _ in range(15):
        assert "panic" in str(typed(panics(), 503))
    refused = good()
    assert "15 failures in a row" in str(typed(refused, 503)), refused.body
    assert 1 <= int(refused.headers["Retry-After"]) <= 15 and 0 < int(refused.headers["Retry-After-Ms"]) <= 15000
    assert breaker()["state"] == "open" and breaker()["opened_total"] == 1
    labels = '{model="fault-panic",engine="cpu"}'
    text = daemon.request("/metrics").body.decode()
    assert f"inferd_breaker_state{labels} 2" in text and f"inferd_breaker_opened_total{labels} 1" in text, text
    assert 'inferd_breaker_state{model="imu-motion",engine="cpu"} 0' in text
    assert daemon.request("/infer", walk).status == 200, "another model does not notice"
    eventually(lambda: good().status == 200, "a probe is let in")
    for _ in range(9):
        assert good().status == 200
    assert breaker()["state"] == "closed" and breaker()["opened_total"] == 1


def test_an_input_that_ends_hosts_is_refused_the_third_time(native, walk):
    daemon = native(models=[IMU, MODELS / "fault-alloc"])
    eventually(lambda: daemon.request("/v2/models/fault-alloc/ready").status == 200, "the other model serves too")
    shape = daemon.request("/v2/models/fault-alloc").json()["inputs"][0]

    def allocate(n):
        return infer(daemon, "fault-alloc", **{shape["name"]: (shape["datatype"], shape["shape"], [n])})

    for _ in range(2):
        before = host_pid(daemon, "fault-alloc")
        assert "memory cap" in str(typed(allocate(1 << 30), 503))
        eventually(lambda: host_pid(daemon, "fault-alloc") != before, "another host")  # noqa: B023
    before = host_pid(daemon, "fault-alloc")
    for _ in range(3):
        assert "this very input" in str(typed(allocate(1 << 30), 422))
        assert allocate(2).status == 200 and daemon.request("/infer", walk).status == 200
    assert host_pid(daemon, "fault-alloc") == before
    text = daemon.request("/metrics").body.decode()
    assert 'inferd_quarantined_inputs{model="fault-alloc"} 1' in text, text


def test_an_endless_inference_ends_with_its_host_and_others_go_on(native, walk, patient):
    daemon = native(models=[patient, MODELS / "fault-slow"])
    eventually(lambda: daemon.request("/v2/models/fault-slow/ready").status == 200, "the other model serves too")
    before = host_pid(daemon, "fault-slow")
    answers = []
    client = threading.Thread(target=lambda: answers.append(slow(daemon, 2**30)))
    client.start()
    while client.is_alive():
        assert daemon.request("/infer", walk).status == 200
    assert "deadline" in str(typed(answers[0], 503))
    eventually(lambda: slow(daemon, 1).status == 200, "the next host answers")
    assert host_pid(daemon, "fault-slow") != before


def test_the_work_of_clients_that_left_is_dropped(native, walk, patient):
    daemon = native(models=[patient], config="[hosts]\nworkers = 1\n")
    host = host_pid(daemon, "imu-motion")
    assert daemon.request("/infer", walk).status == 200
    freeze(host)
    body = json.dumps(walk).encode()
    head = f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    clients = []
    for _ in range(5):
        client = socket.create_connection(("127.0.0.1", daemon.port))
        client.sendall(head + body)
        clients.append(client)

    def waiting():
        return next(m for m in daemon.request("/status").json()["models"])["queue"]["in_use"]

    eventually(lambda: waiting() == 5, "five requests wait")

    def cancelled():
        text = daemon.request("/metrics").body.decode()
        lines = [line for line in text.splitlines() if line.startswith("inferd_cancelled_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    for client in clients:  # away without a word
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    eventually(lambda: cancelled() == 5, "five requests were dropped before they ran")
    os.kill(host, signal.SIGCONT)
    assert daemon.request("/infer", walk).status == 200


def test_hosts_die_with_a_killed_daemon(native):
    daemon = native()
    host = host_pid(daemon, "imu-motion")
    daemon.process.kill()
    daemon.process.wait()

    def gone():
        try:
            with open(f"/proc/{host}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    eventually(gone, "the host ended with its daemon")


def test_a_corrupt_replacement_leaves_the_old_model_serving(native, walk, tmp_path):
    import shutil

    copy = tmp_path / "imu-motion"
    shutil.copytree(IMU, copy)
    daemon = native(models=[copy])
    before = host_pid(daemon, "imu-motion")
    (copy / "model.onnx").write_bytes(b"DUMMY_HEF_CONTENT")
    refused = daemon.request("/v2/repository/models/imu-motion/load", {})
    assert "SHA-256" in str(typed(refused, 400))
    assert daemon.request("/infer", walk).status == 200
    assert host_pid(daemon, "imu-motion") == before
    shutil.copy(IMU / "model.onnx", copy / "model.onnx")
    assert daemon.request("/v2/repository/models/imu-motion/load", {}).status == 200
    assert host_pid(daemon, "imu-motion") != before


def test_a_model_is_replaced_under_load_without_a_failed_request(native, walk, patient):
    daemon = native(models=[patient])
    stop, failures, answered = threading.Event(), [], []

    def client():
        n = 0
        while not stop.is_set():
            answer = request(f"{daemon.url}/infer", walk)
            n += 1
            if answer.status != 200:
                failures.append((answer.status, answer.body))
        answered.append(n)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for c in clients:
        c.start()
    for _ in range(5):
        assert daemon.request("/v2/repository/models/imu-motion/load", {}).status == 200
    stop.set()
    for c in clients:
        c.join()
    assert not failures and all(answered), (failures, answered)


def test_memory_of_the_daemon_is_flat_over_hundreds_of_reloads_and_kills(native, walk):
    """The library's own test does a thousand of each; here through the door, with requests between."""
    daemon = native()

    def resident():
        with open(f"/proc/{daemon.process.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def rounds(n):
        for i in range(n):
            if i % 2:
                assert daemon.request("/v2/repository/models/imu-motion/load", {}).status == 200
            else:
                os.kill(host_pid(daemon, "imu-motion"), signal.SIGKILL)
            eventually(lambda: daemon.request("/infer", walk).status == 200, "an answer")

    rounds(40)
    before = resident()
    rounds(200)
    assert resident() - before < 1 << 20, (before, resident())
