#!/usr/bin/env python3
"""What updates over the air cost a device, on a daemon of this machine.

    tests/perf/updates.py rollback    POST /api/v1/rollback to the first answer of the model before, idle and at full load
    tests/perf/updates.py bad         how long a bad model serves, by kind and requests per second
    tests/perf/updates.py memory      resident memory of the daemon with updates off, on, and with a bundle

The daemon is `$INFERD_BIN` or the static release build, inferctl `$INFERCTL_BIN` or the debug build. Needs the packages of
tests/requirements.txt. Install speed is `cargo run --release -p inferd-slots --example install`, the pause of a swap
`pytest -c tests/pytest.ini tests/updates/test_swaps.py -s`, fetched bytes tests/perf/delta.py.
"""

import argparse
import atexit
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse

import numpy as np
import onnx
from bench import ROOT, TARGET, Daemon
from onnx import TensorProto, compose, helper, numpy_helper
from safetensors.numpy import load_file, save_file

INFERCTL = pathlib.Path(os.environ.get("INFERCTL_BIN", TARGET / "debug/inferctl"))
DEFAULT = ROOT / "app/inferd/models/imu-motion"
IDENTITY = ROOT / "tests/models/identity-fp32"
PANIC = ROOT / "tests/models/fault-panic"
ROUNDS = 20


# ---------------------------------------------------------------------------------------------------------- models and bundles


class Office:
    """Keys, a root document and bundles."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("root", "release"):
            self.run("keygen", folder / f"{name}.key")
        roles = {"root": "root", "revocation": "root", "model-release": "release"}
        grants = [part for role, key in roles.items() for part in ("--role", f"{role}=1:{folder / key}.pub")]
        self.run("root", "create", "-o", folder / "root.imr", "--key", folder / "root.key", *grants)

    def run(self, *arguments):
        done = subprocess.run([str(a) for a in (INFERCTL, *arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")

    def bundle(self, name, version, model, *options):
        output = self.folder / f"{name}.imb"
        signed = ["--product", "p", "--version", version, "--key", self.folder / "release.key", "--unchecked"]
        self.run("bundle", "build", "--model", model, *signed, *options, "-o", output)
        return output.read_bytes()

    def variant(self, source, name, version, *, network=None, golden=None):
        """A copy of a model directory with another version, network or golden vectors."""
        shutil.copytree(source, folder := self.folder / name)
        manifest = (folder / "manifest.toml").read_text()
        if network:
            (folder / "model.onnx").write_bytes(network.SerializeToString(deterministic=True))
        if golden:
            save_file(golden, folder / "golden.safetensors")
        for file in ("model.onnx", "golden.safetensors"):
            old, new = (hashlib.sha256((of / file).read_bytes()).hexdigest() for of in (source, folder))
            manifest = manifest.replace(old, new)
        (folder / "manifest.toml").write_text(re.sub(r'(?m)^version = "[^"]*"', f'version = "{version}"', manifest, count=1))
        return folder

    def device(self, models):
        """A daemon with empty slots."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copy(self.folder / "root.imr", folder)
        daemon = Daemon(models, ["--updates-dir", folder])
        atexit.register(daemon.process.kill)
        return daemon


class Client:
    """One connection that is kept."""

    def __init__(self, daemon):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(daemon.url).netloc, timeout=60)

    def ask(self, method, path, body=b""):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request(method, path, body)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def install(self, bundle):
        while (answer := self.ask("PUT", "/api/v1/bundle", bundle))[0] == 503:
            time.sleep(0.05)  # it is starting
        status, body = answer
        if status != 200:
            raise SystemExit(f"{status}: {body}")

    def verdicts(self, gate):
        found = json.loads(self.ask("GET", "/api/v1/slots")[1])["verdicts"]
        return [v for v in found if v["gate"] == gate]

    def wait(self, gate, number=1, timeout=300):
        end = time.monotonic() + timeout
        while len(found := self.verdicts(gate)) < number:
            if time.monotonic() > end:
                raise SystemExit(f"no verdict of the gate {gate}: {self.ask('GET', '/api/v1/slots')[1].decode()}")
            time.sleep(0.02)
        return found[-1]


def window():
    return json.loads((ROOT / "tests/data/imu_walk.json").read_text())["x"]


def request(name, dtype, shape, data):
    return json.dumps({"inputs": [{"name": name, "datatype": dtype, "shape": shape, "data": data}]}).encode()


# ------------------------------------------------------------------------------------------------------------------- rollback


def rollback(office):
    """Two versions of the default model, back and forth."""
    models = {n: office.variant(DEFAULT, f"default-{n}", f"{n}.0.0") for n in (1, 2)}
    bundles = {n: office.bundle(f"b{n}", n, m, "--probation-seconds", 1) for n, m in models.items()}
    fresh = []
    for _ in range(5):
        daemon = Daemon([DEFAULT])
        fresh.append(daemon.ready_ms)
        daemon.stop()
    print(f"exec to ready with the same model: median {statistics.median(fresh):.0f} ms")
    daemon = office.device([DEFAULT])
    asking = Client(daemon)
    for n, bundle in bundles.items():
        asking.install(bundle)
        asking.wait("commit", n)
    body = request("imu_window", "FP32", [1, 100, 9], window())
    for what, connections in (("no other requests", 0), ("32 connections of load", 32)):
        load = None
        if connections:
            command = [INFERCTL, "--url", daemon.url, "bench", "-c", str(connections), "--duration", "600", "--warm-up", "0s"]
            load = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            atexit.register(load.kill)
            time.sleep(1)
        answered, done = [], []
        for _ in range(ROUNDS):
            client, seen, stop = Client(daemon), [], threading.Event()

            def look(client=client, seen=seen, stop=stop):
                while not stop.is_set():
                    status, told = client.ask("POST", "/v2/models/imu-motion/infer", body)
                    seen.append((time.monotonic(), status, json.loads(told)["model_version"] if status == 200 else told))

            thread = threading.Thread(target=look)
            thread.start()
            time.sleep(0.2)
            while not seen:
                time.sleep(0.01)
            before, began = seen[-1][2], time.monotonic()
            status, told = asking.ask("POST", "/api/v1/rollback", {"reason": "measured"})
            done.append((time.monotonic() - began) * 1e3)
            while seen[-1][1:] == (200, before):
                time.sleep(0.01)
            stop.set()
            thread.join()
            if failed := [(s, t) for _, s, t in [*seen, (0, status, told)] if s != 200]:
                raise SystemExit(f"{failed}")
            answered.append((next(t for t, _, version in seen if version != before) - began) * 1e3)
        if load:
            load.terminate()
            load.wait()
        for name, times in (("first answer of the model before", answered), ("the rollback is recorded and answered", done)):
            print(f"{what}: {name}: median {statistics.median(times):.0f} ms, least {min(times):.0f}, most {max(times):.0f} ({len(times)})")
    daemon.stop()


# ----------------------------------------------------------------------------------------------------------------- bad models


def graph_of(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "bad", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def permuted(office):
    """The default model with its twelve scores turned by one, and golden vectors that say so too."""
    network, golden = onnx.load(DEFAULT / "model.onnx"), load_file(DEFAULT / "golden.safetensors")
    order = np.roll(np.arange(12), 1)
    for node in network.graph.node:
        node.output[:] = ["straight" if o == "motif_scores" else o for o in node.output]
        node.input[:] = ["straight" if i == "motif_scores" else i for i in node.input]
    network.graph.initializer.append(numpy_helper.from_array(order.astype(np.int64), "order"))
    network.graph.node.append(helper.make_node("Gather", ["straight", "order"], ["motif_scores"], axis=1))
    golden = {k: v[:, order].copy() if k.endswith("out/motif_scores") else v for k, v in golden.items()}
    return DEFAULT, office.variant(DEFAULT, "permuted", "9.0.0", network=network, golden=golden)


def slow(office):
    """The default model computed seven times, one after the other; the answer is right."""
    network = onnx.load(DEFAULT / "model.onnx")
    (entry,), times = network.graph.input, 7
    parts = [compose.add_prefix(network, f"t{i}/") for i in range(times)]
    nodes, initializers, before = [], [], entry.name
    for i, part in enumerate(parts):
        # Each takes the window plus nothing times an answer of the one before.
        if i:
            zero = numpy_helper.from_array(np.float32(0), f"zero{i}")
            initializers.append(zero)
            nodes += [
                helper.make_node("ReduceMax", [f"t{i - 1}/motif_scores"], [f"most{i}"], keepdims=0),
                helper.make_node("Mul", [f"most{i}", zero.name], [f"nothing{i}"]),
                helper.make_node("Add", [entry.name, f"nothing{i}"], [f"window{i}"]),
            ]
            before = f"window{i}"
        for node in part.graph.node:
            node.input[:] = [before if name == f"t{i}/{entry.name}" else name for name in node.input]
            nodes.append(node)
        initializers += part.graph.initializer
    nodes += [helper.make_node("Identity", [f"t{times - 1}/{o.name}"], [o.name]) for o in network.graph.output]
    made = graph_of(nodes, [entry], list(network.graph.output), initializers)
    del made.opset_import[:]
    made.opset_import.extend(network.opset_import)
    return DEFAULT, office.variant(DEFAULT, "slow", "9.0.0", network=made)


def not_a_number(office):
    """The identity, but NaN for inputs above 1000, which no golden vector has."""
    tensor = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3])  # noqa: E731
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in (("limit", 1000), ("zero", 0))]
    nodes = [
        helper.make_node("Sub", ["limit", "x"], ["rest"]),
        helper.make_node("Log", ["rest"], ["log"]),
        helper.make_node("Mul", ["log", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    network = graph_of(nodes, [tensor("x")], [tensor("y")], constants)
    return IDENTITY, office.variant(IDENTITY, "nan", "9", network=network, golden={"0/in/x": x, "0/out/y": x})


def failing(office):
    """Fails on what the model before can do: it divides, where that one gives its first input back."""
    tensor = lambda n: helper.make_tensor_value_info(n, TensorProto.INT32, [4])  # noqa: E731
    nodes = [helper.make_node("Sub", ["b", "b"], ["zero"]), helper.make_node("Add", ["a", "zero"], ["y"])]
    network = graph_of(nodes, [tensor("a"), tensor("b")], [tensor("y")])
    a, b = np.array([8, 6, 4, 2], np.int32), np.array([1, 1, 1, 1], np.int32)
    golden = {"0/in/a": a, "0/in/b": b, "0/out/y": a}
    good = office.variant(PANIC, "good", "1", network=network, golden=golden)
    return good, office.variant(PANIC, "failing", "9")


def bad(office, rates, chosen):
    """For each kind and rate: from the flip to what served before."""
    least = -(2**31)
    walk = request("imu_window", "FP32", [1, 100, 9], window())
    two = [{"name": "a", "datatype": "INT32", "shape": [4], "data": [least] * 4}, {"name": "b", "datatype": "INT32", "shape": [4], "data": [-1] * 4}]
    kinds = {
        "fails on live requests": (failing, PANIC.name, json.dumps({"inputs": two}).encode()),
        "NaN on live requests": (not_a_number, IDENTITY.name, request("x", "FP32", [2, 3], [2000.0] * 6)),
        "classes permuted": (permuted, "imu-motion", walk),
        "seven times as slow": (slow, "imu-motion", walk),
    }
    print("| the new model | requests/s | found | flip to the old model again | requests to the new one | found to the old model again |")
    print("|---|---:|---|---:|---:|---:|")
    for kind, (make, model, body) in kinds.items():
        if make.__name__ not in chosen:
            continue
        good, wrong = make(office)
        bundle = office.bundle(f"bad-{make.__name__}", 1, wrong, "--probation-seconds", 600)
        path = f"/v2/models/{model}/infer"
        for rate in rates:
            daemon = office.device([good])
            asking, client = Client(daemon), Client(daemon)
            for _ in range(250):
                status, told = client.ask("POST", path, body)
                assert status == 200, told
            seen, stop = [], threading.Event()

            def steady(client=client, seen=seen, stop=stop, rate=rate):
                due = time.monotonic()
                while not stop.is_set():
                    time.sleep(max(0, due - time.monotonic()))
                    due = max(due + 1 / rate, time.monotonic() - 1)
                    status, told = client.ask("POST", path, body)
                    seen.append(json.loads(told)["model_version"] if status == 200 else "failed")

            thread = threading.Thread(target=steady)
            thread.start()
            asking.install(bundle)
            back = asking.wait("return")
            flip, why = asking.verdicts("flip")[0], asking.verdicts("probation")[-1]
            time.sleep(max(0.3, 2 / rate))
            stop.set()
            thread.join()
            by_new = sum(version in ("9", "9.0.0", "failed") for version in seen)
            assert seen[-1] not in ("9", "9.0.0", "failed"), seen
            took = (back["uptime_ms"] - flip["uptime_ms"]) / 1e3
            print(f"| {kind} | {rate} | `{why['code']}` | {took:.2f} s | {by_new} | {back['evidence']['safe_after_ms']} ms |", flush=True)
            daemon.stop()


# ---------------------------------------------------------------------------------------------------------------------- memory


def memory(office):
    """Interleaved; the least of five."""
    bundle = office.bundle("memory", 1, office.variant(DEFAULT, "again", "2.0.0"), "--probation-seconds", 1)

    def off(models):
        return lambda: Daemon(models)

    def on(models, install):
        def start():
            daemon = office.device(models)
            if install:
                client = Client(daemon)
                client.install(bundle)
                client.wait("commit")
            return daemon

        return start

    cases = {
        "no model, updates off": off([]),
        "no model, updates on": on([], False),
        "default model from a directory, updates off": off([DEFAULT]),
        "default model from a directory, updates on": on([DEFAULT], False),
        "default model from a bundle, just committed": on([], True),
    }
    found = {name: [] for name in cases}
    for _ in range(5):
        for name, start in cases.items():
            daemon = start()
            time.sleep(3)
            found[name].append(daemon.resident_kib())
            daemon.stop()
    for name, runs in found.items():
        least = min(runs, key=lambda m: m["Rss"])
        print(f"{name}: RSS {least['Rss'] / 1024:.1f} MiB, private dirty {least['Private_Dirty'] / 1024:.1f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("rollback", "bad", "memory"))
    parser.add_argument("--kinds", default="failing,not_a_number,permuted,slow", help="kinds of models for `bad`")
    parser.add_argument("--rates", default="1,10,100", help="requests per second for `bad`")
    options = parser.parse_args()
    for what in options.what:
        with tempfile.TemporaryDirectory() as folder:
            office = Office(pathlib.Path(folder))
            match what:
                case "rollback":
                    rollback(office)
                case "bad":
                    bad(office, [int(rate) for rate in options.rates.split(",")], options.kinds.split(","))
                case "memory":
                    memory(office)


if __name__ == "__main__":
    main()
