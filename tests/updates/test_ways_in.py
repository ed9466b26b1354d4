"""The ways in that a device starts itself, and a push that is cut again and again, with the daemon as it is shipped: the rules of
each way are tested in `app/fetch`, here the daemon's part of it."""

import hashlib
import http.server
import json
import re
import shutil
import signal
import threading
import time
import urllib.parse
from pathlib import Path

import numpy
import onnx
import places
import pytest
from contract.wire import Wire
from helpers import until
from updates.rig import IDENTITY, committed, curl, put, served, slots, verdicts

TOKEN = "a-device-token-of-its-own"
# No stick is looked at before.
LEAST_UPTIME = 300


# ------------------------------------------------------------------------------------------------------------------ hawkBit


class Fleet:
    """As much of a hawkBit server as one device sees: one action at a time, and every word of the device kept."""

    def __init__(self):
        self.action, self.told, self.attributes, self.refused, self.files = None, [], None, 0, {}
        fleet = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(fleet.get(self.path))

            def do_PUT(self):
                self.answer(fleet.put(self.path, self.body()))

            def do_POST(self):
                self.answer(fleet.post(self.path, self.body()))

            def body(self):
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def answer(self, body):
                artifact = isinstance(body, bytes)
                if not artifact and self.headers["Authorization"] != f"TargetToken {TOKEN}":
                    fleet.refused += 1
                    self.send_error(401)
                    return
                body = body if artifact else json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.base = "/DEFAULT/controller/v1/unit-1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def offer(self, action, file):
        self.files[f"/{file.name}"] = file.read_bytes()
        artifact = {"filename": file.name, "size": file.stat().st_size, "_links": {"download-http": {"href": f"{self.url}/{file.name}"}}}
        chunk = {"part": "bApp", "version": "1", "name": "models", "artifacts": [artifact]}
        self.action = {"id": action, "deployment": {"download": "forced", "update": "forced", "chunks": [chunk]}}

    def get(self, path):
        path = urllib.parse.urlsplit(path).path
        if path in self.files:
            return self.files[path]
        if path.startswith(f"{self.base}/deploymentBase/"):
            return self.action
        links = {}
        if self.action:
            links["deploymentBase"] = {"href": f"{self.url}{self.base}/deploymentBase/{self.action['id']}?c=1"}
        if self.attributes is None:
            links["configData"] = {"href": f"{self.url}{self.base}/configData"}
        return {"config": {"polling": {"sleep": "00:00:05"}}, "_links": links}

    def put(self, _, body):
        self.attributes = body["data"]
        return {}

    def post(self, path, body):
        action = path.removeprefix(f"{self.base}/deploymentBase/").removesuffix("/feedback")
        status = body["status"]
        self.told.append((action, status["execution"], status["result"]["finished"], " ".join(status.get("details") or [])))
        if status["execution"] == "closed":
            self.action = None
        return {}

    def closed(self, action):
        """Waits for the end of an action: how it ended, and in which words."""
        ends = until(lambda: [t for t in self.told if t[:2] == (action, "closed")], f"action {action} is closed", 120)
        assert len(ends) == 1, ends
        return ends[0][2:]


@pytest.fixture
def fleet():
    fleet = Fleet()
    yield fleet
    fleet.server.shutdown()
    fleet.server.server_close()


def test_a_fleet_server_sends_updates_and_is_told_what_became_of_each(device, office, fleet):
    config = f'[updates]\nhawkbit_url = "{fleet.url}"\nhawkbit_controller = "unit-1"\nhawkbit_token = "{TOKEN}"\n'
    daemon = device(config)
    until(lambda: fleet.attributes, "the device tells what it is")
    assert fleet.attributes["device"] == slots(daemon)["device"] and fleet.attributes["inferd"]
    fleet.offer("11", office.made[2])
    assert fleet.closed("11")[0] == "success"
    assert served(daemon) == "1.0.2" and slots(daemon)["floors"] == {"demo": 2}
    fleet.offer("12", office.made[1])
    result, words = fleet.closed("12")
    assert result == "failure" and "older-version" in words, words
    # The daemon is killed while a bundle serves on probation: that is held against the bundle, and told after the restart.
    fleet.offer("13", office.watched[3])
    until(lambda: (slots(daemon)["trial"] or {}).get("phase") == "probation", "it serves")
    assert [t[1] for t in fleet.told if t[0] == "13"].count("closed") == 0, "not before it is decided"
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    daemon = device(config)
    result, words = fleet.closed("13")
    assert result == "failure" and "daemon-crashed" in words, words
    assert served(daemon) == "1.0.2"
    assert fleet.refused == 0
    for action in ("11", "12", "13"):
        told = [t for t in fleet.told if t[0] == action]
        assert len(told) == len(set(told)), "nothing is told twice"


def test_a_wrong_token_is_told_and_nothing_is_installed(device, office, fleet):
    daemon = device(
        f'[updates]\nhawkbit_url = "{fleet.url}"\nhawkbit_controller = "unit-1"\nhawkbit_token = "another-devices-token"\n'
    )
    fleet.offer("1", office.made[1])
    until(lambda: fleet.refused, "it asks")
    until(lambda: "401" in daemon.log_text(), "the log says why")
    assert fleet.told == [] and slots(daemon)["counters"]["installs"] == 0


# -------------------------------------------------------------------------------------------------------------------- stick


def test_a_stick_with_a_bundle_is_installed_and_a_strangers_is_tried_once(device, office, tmp_path):
    (stick := tmp_path / "usb/sda1").mkdir(parents=True)
    for file in (office.made[1], office.bundle(9, key="stranger")):
        shutil.copy(file, stick)
    daemon = device(f'[updates]\nusb_dir = "{stick.parent}"\n')
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    end = time.monotonic() + max(0, LEAST_UPTIME - uptime) + 120
    while not any(v["version"] == 1 for v in verdicts(daemon, "commit")):
        assert time.monotonic() < end, slots(daemon)
        time.sleep(0.2)
    assert served(daemon) == "1.0.1"
    told = slots(daemon)["verdicts"]
    assert next(v for v in told if v["gate"] == "install" and v["outcome"] == "pass")["evidence"]["way"] == "usb"
    # Both stay on the stick and are known; what is new on it is taken.
    shutil.copy(office.made[2], tmp_path / "later.imb")
    (tmp_path / "later.imb").rename(stick / "later.imb")
    committed(daemon, 2)
    counters = slots(daemon)["counters"]
    assert counters["verdicts"]["keys/refuse/unknown-keys"] == 1 and counters["installs"] == 3, counters


# --------------------------------------------------------------------------------------------------------------------- push


def test_a_push_that_is_cut_in_every_chunk_goes_on_each_time(device, office):
    daemon = device(models=[places.DEFAULT_MODEL])
    data = office.bundle(1, model=places.DEFAULT_MODEL, product="cuts").read_bytes()
    at, cuts, sent = 0, 0, 0
    # Beyond the prefix: before it nobody can know which bundle it is.
    step = 24 << 10
    while True:
        to = at + step
        with Wire(daemon) as wire:
            put(wire, len(data), first=at).send(data[at:to])
            sent += len(data[at:to])
            if to >= len(data):
                answer = wire.answer()
                assert answer.status == 200, answer
                break
            until(lambda: (daemon.request("/api/v1/bundle").json()["install"] or {}).get("bundle"), "the prefix was read")
            wire.reset()
        until(lambda: daemon.request("/api/v1/bundle").json()["install"] is None, "the cut is noticed")
        left = until(lambda: daemon.request("/api/v1/bundle").json()["resume"], "it can be gone on with")
        assert at <= left["offset"] <= to, left
        # Until a chunk is complete; the next one begins there, so each is cut at least once.
        step = step + (24 << 10) if left["offset"] == at else 24 << 10
        at, cuts = left["offset"], cuts + 1
    committed(daemon, 1)
    print(f"{cuts} cuts, {sent} bytes sent for {len(data)}")
    assert cuts >= 8, "every chunk was cut"


def heavy(folder, mib):
    """The identity model with so many MiB of weights that it does not use."""
    shutil.copytree(IDENTITY, folder)
    page, old = (folder / "manifest.toml").read_text(), (folder / "model.onnx").read_bytes()
    network = onnx.load_from_string(old)
    weights = numpy.random.default_rng(1).standard_normal(mib << 18).astype(numpy.float32)
    network.graph.initializer.append(onnx.numpy_helper.from_array(weights, "unused"))
    new = network.SerializeToString()
    (folder / "model.onnx").write_bytes(new)
    page = page.replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(new).hexdigest())
    page, replaced = re.subn(r"(?m)^memory_mib = \d+", f"memory_mib = {4 * mib + 64}", page)
    assert replaced == 1, "the manifest has the part this changes"
    (folder / "manifest.toml").write_text(page)
    return folder


def test_a_large_bundle_costs_the_daemon_little_memory(device, office):
    file = office.bundle(1, model=heavy(office.at("heavy"), 96), product="heavy")
    daemon = device(env={"INFERD_UPDATES_SLOT_SIZE_MIB": "128"})

    def peak():
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    before = peak()
    status, told = curl(daemon, file)
    assert status == 200, told
    grown = peak() - before
    print(f"{file.stat().st_size} bytes, {grown} bytes more memory")
    assert file.stat().st_size > 96 << 20 and grown < 16 << 20
