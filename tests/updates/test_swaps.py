"""A hundred bundles, one after the other, under as much load as the machine gives: no request fails and no answer is a mixture.

Two models come in every bundle. Version n of `plus` answers its input plus n, `minus` its input less n, so an answer tells by its numbers
which model computed it, and `model_version` must say the same. `inferctl bench` loads the daemon; the requests that are looked at
go round beside it on connections that are never closed. Counts and times are printed (`pytest -s`); no time is asserted.
"""

import bisect
import concurrent.futures
import dataclasses
import hashlib
import json
import selectors
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy
import onnx
import pytest
from contract.wire import ask
from helpers import until
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from updates.rig import IDENTITY, Office

SWAPS = 100
LOAD = 32  # connections of the load
LOOKED_AT = 8  # connections whose answers are looked at
SIGNS = {"plus": 1, "minus": -1}
SHAPE = [2, 3]
# The next bundle waits this long, so that there is something to compare a flip with.
QUIET_S = 0.1


def stamped(folder, name, version):
    """The identity model, but for its name and version, and this: it adds its version, or takes it away."""
    shutil.copytree(IDENTITY, folder)
    step = numpy.float32(SIGNS[name] * version)
    tensor = lambda t: helper.make_tensor_value_info(t, TensorProto.FLOAT, SHAPE)  # noqa: E731
    node = helper.make_node("Add", ["x", "step"], ["y"])
    graph = helper.make_graph([node], name, [tensor("x")], [tensor("y")], [numpy_helper.from_array(step, "step")])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(network.SerializeToString(deterministic=True))
    x = numpy.arange(6, dtype=numpy.float32).reshape(SHAPE)
    save_file({"0/in/x": x, "0/out/y": x + step}, folder / "golden.safetensors")
    page = (folder / "manifest.toml").read_text()
    for file in ("model.onnx", "golden.safetensors"):
        old, new = (hashlib.sha256((of / file).read_bytes()).hexdigest() for of in (IDENTITY, folder))
        assert old in page, "the manifest has the part this changes"
        page = page.replace(old, new)
    for old, new in (('name = "identity-fp32"', f'name = "{name}"'), ('version = "1"', f'version = "{version}"')):
        assert f"\n{old}\n" in page, "the manifest has the part this changes"
        page = page.replace(f"\n{old}\n", f"\n{new}\n", 1)
    onnx.checker.check_model(network)
    (folder / "manifest.toml").write_text(page)
    return folder


@pytest.fixture(scope="module")
def office(inferctl, tmp_path_factory):
    """Bundles 1 to 100, and the directories of version 0."""
    office = Office(inferctl, tmp_path_factory.mktemp("office"))
    policy = ["--probation-seconds", 60, "--probation-requests", 30, "--probation-max-drift", 1000, "--probation-max-p99-ratio", 1000]

    def make(version):
        models = {name: stamped(office.at(f"{name}-{version}"), name, version) for name in SIGNS}
        return office.bundle(version, *policy, "--model", models["minus"], model=models["plus"]) if version else list(models.values())

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        office.factory, *office.made = pool.map(make, range(SWAPS + 1))
    return office


# ------------------------------------------------------------------------------------------------------------------- clients


@dataclasses.dataclass
class Seen:
    """One request: when it was sent and answered, and by which version."""

    sent: float
    answered: float
    version: int


class Clients(threading.Thread):
    """Connections with one request each in flight, all in one thread: asking, and looking at every answer."""

    def __init__(self, daemon):
        super().__init__()
        self.daemon_port, self.ending = daemon.port, threading.Event()
        self.seen, self.wrong = [], []
        self.newest = 0  # the newest version that anybody has met

    def run(self):
        """Goes on until told to end, then waits for what is in flight."""
        selector = selectors.DefaultSelector()
        for number in range(LOOKED_AT):
            connection = Connection(self, number)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        while selector.get_map():
            ready = selector.select(30)
            if not ready:
                self.wrong.append("no answer within 30 s")
                break
            for key, _ in ready:
                if not key.data.read():
                    selector.unregister(key.data.socket)
                    key.data.socket.close()

    def stop(self):
        """Ends them; what they saw, in the order of the answers."""
        self.ending.set()
        self.join(60)
        assert not self.is_alive(), "a request was never answered"
        return self.seen


class Connection:
    """One of them. It asks both models in turn."""

    def __init__(self, clients, number):
        # Whole numbers that FP32 holds.
        self.clients, self.serial = clients, number * 1_000_000
        self.socket = socket.create_connection(("127.0.0.1", clients.daemon_port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self):
        """Asks with numbers that no other request has."""
        self.serial += 1
        self.name = ("plus", "minus")[self.serial % 2]
        self.x = [self.serial + i for i in range(6)]
        tensor = {"name": "x", "shape": SHAPE, "datatype": "FP32", "data": self.x}
        body = json.dumps({"id": str(self.serial), "inputs": [tensor]}).encode()
        head = f"POST /v2/models/{self.name}/infer HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
        self.floor = self.clients.newest
        self.sent = time.monotonic()
        self.socket.sendall(head.encode() + body)

    def read(self):
        """Takes what has come, and asks again once that is an answer; whether it goes on."""
        part = self.socket.recv(65536)
        now = time.monotonic()
        self.buffer += part
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if part and (not end or len(body) < length):
            return True
        self.buffer = b""
        try:
            self.clients.seen.append(Seen(self.sent, now, self.version(head, body)))
        except (AssertionError, ValueError, LookupError) as wrong:
            self.clients.wrong.append(f"{wrong!r}: {head[:200]} {body[:500]}")
        if not part or self.clients.ending.is_set():
            return False
        self.send()
        return True

    def version(self, head, body):
        """The version that answered, when nothing is wrong with the answer."""
        assert head.startswith(b"HTTP/1.1 200 "), "it failed"
        answer = json.loads(body)
        assert (answer["id"], answer["model_name"]) == (str(self.serial), self.name), "another request's answer"
        version = int(answer["model_version"])
        assert answer["outputs"][0]["data"] == [x + SIGNS[self.name] * version for x in self.x], "not this version's numbers"
        assert version >= self.floor, f"version {self.floor} was met before this was sent"
        # Answers that were under way at the same time may be read in any order.
        self.clients.newest = max(self.clients.newest, version)
        return version


class Load(threading.Thread):
    """`inferctl bench`, again and again."""

    def __init__(self, inferctl, daemon):
        super().__init__()
        self.command = [inferctl.program, "--url", daemon.url, "--json", "bench", "--form", "oip-json", "--model", "plus"]
        self.command += ["-c", str(LOAD), "--warm-up", "0s", "--duration", "2s", "--pid", str(daemon.process.pid)]
        self.ending, self.runs, self.wrong = threading.Event(), [], []

    def run(self):
        """Goes on until told to end."""
        while not self.ending.is_set():
            done = subprocess.run(self.command, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                self.wrong.append(done.stdout + done.stderr)
            if done.stdout:
                self.runs += json.loads(done.stdout)["runs"]

    def stop(self):
        """Ends it; requests, processor time of the daemon and its hosts over the cores, and what failed."""
        self.ending.set()
        self.join(120)
        return sum(run["requests"] for run in self.runs), sum(run["server"]["cores"] for run in self.runs) / len(self.runs)


# ---------------------------------------------------------------------------------------------------------------- what is told


def flips(seen):
    """For each swap the middle between the last request that the old version answered and the new one's first answer."""
    answered, sent = {}, {}
    for s in seen:
        answered[s.version] = min(answered.get(s.version, s.answered), s.answered)
        sent[s.version] = max(sent.get(s.version, s.sent), s.sent)
    versions = sorted(answered)
    return [(sent[old] + answered[new]) / 2 for old, new in zip(versions, versions[1:], strict=False)]


def in_flight(seen, stretches):
    """Milliseconds that requests took which were in flight in one of the stretches (or at one of the moments)."""
    stretches = [s if isinstance(s, tuple) else (s, s) for s in stretches]
    ends = [end for _, end in stretches]
    # The first stretch that had not ended when it was sent.
    next_one = ((s, bisect.bisect_left(ends, s.sent)) for s in seen)
    return sorted((s.answered - s.sent) * 1e3 for s, i in next_one if i < len(ends) and stretches[i][0] <= s.answered)


def silence(seen, moments, around=0.05):
    """For each moment, the longest time without any answer near it, in milliseconds."""
    times = numpy.array(sorted(s.answered for s in seen))
    gaps = []
    for moment in moments:
        near = times[(times > moment - around) & (times < moment + around)]
        gaps.append(float(numpy.diff(near).max()) * 1e3 if len(near) > 1 else 2e3 * around)
    return sorted(gaps)


def quantile(values, q):
    return values[min(int(len(values) * q), len(values) - 1)] if values else float("nan")


def resident(daemon):
    """KiB of the daemon, without its hosts."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def hosts(daemon):
    """Its engine hosts."""
    return Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()


# -------------------------------------------------------------------------------------------------------------------- the test


def test_a_hundred_swaps_at_full_load_fail_no_request_and_mix_no_answer(native, office, inferctl, tmp_path):
    (folder := tmp_path / "updates").mkdir()
    shutil.copy(office.root, folder / "root.imr")
    daemon = native(models=office.factory, arguments=["--updates-dir", folder], config="[updates]\nslot_size_mib = 16\n")
    began = time.monotonic()
    clients, load = Clients(daemon), Load(inferctl, daemon)
    clients.start()
    load.start()
    pushes = []
    try:
        for version, bundle in enumerate(office.made, start=1):
            pushed = time.monotonic()
            answer = ask(daemon, "PUT", "/api/v1/bundle", bundle.read_bytes())
            assert answer.status == 200, answer
            until(lambda: daemon.request("/commit-ready").status == 200, f"the trial of {version} is over")  # noqa: B023
            committed = time.monotonic()
            time.sleep(QUIET_S)
            pushes.append((pushed, committed, time.monotonic()))
            if version == SWAPS // 10:
                print(f"\nafter {version} swaps: {resident(daemon)} KiB resident, ", end="")
    finally:
        seen = clients.stop()
        loaded, cores = load.stop()
    seconds = time.monotonic() - began
    print(f"after all {resident(daemon)} KiB")

    swaps, calm = flips(seen), [(committed + end) / 2 for _, committed, end in pushes]
    print(f"{len(swaps)} swaps in {seconds:.1f} s; {len(seen) + loaded} requests, {len(seen)} of them looked at; ", end="")
    print(f"{len(clients.wrong)} wrong, {sum(sum(run['errors'].values()) for run in load.runs)} failed; the daemon used {cores:.2f} cores")
    print("requests in flight     number   p50 ms   p99 ms   longest ms")
    # A long request is likelier to be met by any moment, whether or not a flip made it long: moments are compared with moments.
    taken = {"at a flip": in_flight(seen, swaps), "at a quiet moment": in_flight(seen, calm)}
    taken["from push to commit"] = in_flight(seen, [(pushed, committed) for pushed, committed, _ in pushes])
    for what, times in taken.items():
        print(f"{what:20} {len(times):8} {quantile(times, 0.5):8.2f} {quantile(times, 0.99):8.2f} {quantile(times, 1):8.2f}")
    print(f"added p99 of a flip: {quantile(taken['at a flip'], 0.99) - quantile(taken['at a quiet moment'], 0.99):+.2f} ms")
    for what, moments in (("flips", swaps), ("quiet moments", calm)):
        gaps = silence(seen, moments)
        print(f"longest time without an answer around {what}: median {quantile(gaps, 0.5):.2f} ms, most {quantile(gaps, 1):.2f} ms")

    assert clients.wrong == [] and load.wrong == []
    assert len(seen) >= 10_000, "enough of them were looked at"
    assert {s.version for s in seen} == set(range(SWAPS + 1)), "every version answered"
    assert daemon.request("/api/v1/slots").json()["floors"] == {"demo": SWAPS}
    text = daemon.request("/metrics").body.decode()
    for gate in ("flip", "commit"):
        assert f'inferd_gate_verdicts_total{{gate="{gate}",outcome="pass"}} {SWAPS}\n' in text, text
    assert 'outcome="reverse"' not in text and 'outcome="refuse"' not in text
    until(lambda: len(hosts(daemon)) == len(SIGNS), "the hosts of the old models have ended")
