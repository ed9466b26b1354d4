#!/usr/bin/env python3
"""What the endpoint costs, as ratios against the bare engine measured in the same run.

    tests/perf/bench.py [--model DIR] [--seconds S] [--rounds N] [--other NAME=URL --path P --body FILE]
    tests/perf/bench.py --idle          sizes, start-up, resident memory

Each round measures in turn: the bare engine call (one thread, then one per core) and the call through an engine host (both
by the example `hop`, the same code in one process image), then the daemon over HTTP with every form of request at 1, 8, 64
and 100 clients, then every other server. Rounds are interleaved so that whatever else the machine does hits all alike; each
figure is the best of its rounds (CPU time: the least; throughput: the most). CPU time covers the server's whole process
tree and not the client. The client shares the cores with the server, so `share` can not reach 100 % by that much; `client`
says how much it was. Standard library only; `cargo` builds what is missing.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
TRIPLE = f"{os.uname().machine}-unknown-linux-musl"
RELEASE = TARGET / TRIPLE / "release"
FORMS = ("infer", "oip-json", "oip-binary", "oip-raw")
CLIENTS = (1, 8, 64, 100)


def build():
    if os.environ.get("INFERD_PERF_NO_BUILD"):
        return
    cargo = ["cargo", "build", "--release", "--quiet", "--target", TRIPLE]
    subprocess.run([*cargo, "-p", "inferd", "-p", "inferctl"], cwd=ROOT, check=True)
    subprocess.run([*cargo, "-p", "inferd-hosts", "--example", "hop"], cwd=ROOT, check=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    """The daemon on a loopback port, quiet, ready."""

    def __init__(self, models, arguments=()):
        self.url = f"http://127.0.0.1:{free_port()}"
        # An empty configuration: the machine's own must not change what is measured.
        config = tempfile.NamedTemporaryFile("w", suffix=".toml")
        command = [os.environ.get("INFERD_BIN", RELEASE / "inferd"), "--config", config.name, "--listen", self.url.removeprefix("http://"), *arguments]
        for model in models:
            command += ["--models", model]
        env = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
        begin = time.monotonic()
        self.process = subprocess.Popen([str(c) for c in command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        path = "/readyz" if models else "/livez"
        while True:
            try:
                with urllib.request.urlopen(self.url + path, timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if self.process.poll() is not None:
                sys.exit("the daemon ended; run it by hand to see why")
            time.sleep(0.001)
        self.ready_ms = (time.monotonic() - begin) * 1e3
        config.close()

    def resident_kib(self):
        with open(f"/proc/{self.process.pid}/smaps_rollup") as f:
            found = dict(line.split(":") for line in f.read().splitlines()[1:])
        return {key: int(found[key].split()[0]) for key in ("Rss", "Pss", "Private_Dirty")}

    def stop(self):
        self.process.terminate()
        self.process.wait()


def hop(model, seconds):
    out = subprocess.run([RELEASE / "examples/hop", model, str(seconds)], check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def inferctl(url, arguments, seconds, clients=CLIENTS):
    command = [RELEASE / "inferctl", "--url", url, "--json", "bench", *arguments]
    command += ["--concurrency", ",".join(map(str, clients)), "--duration", str(seconds), "--warm-up", "0.3"]
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    try:
        return json.loads(out.stdout)["runs"]
    except (ValueError, KeyError):
        sys.exit(f"{' '.join(map(str, command))}\n{out.stdout}{out.stderr}")


def keep_best(best, key, run):
    """Of two measurements the one with less CPU time per request; its throughput and latency are those of the faster."""
    old = best.get(key)
    if old is None:
        best[key] = run
        return
    cpu = min((r["server"]["cpu_us_per_request"] for r in (old, run) if r.get("server")), default=None)
    best[key] = max(old, run, key=lambda r: r["rps"])
    if cpu is not None:
        best[key]["server"]["cpu_us_per_request"] = cpu


def measure(args):
    build()
    daemon = Daemon([args.model])
    bare, best = {}, {}
    try:
        for turn in range(args.rounds):
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
            for name, figures in hop(args.model, args.seconds * 4).items():
                if name == "cores":
                    bare[name] = figures
                    continue
                kept = bare.setdefault(name, dict(figures))
                for key, better in (("cpu_us", min), ("p50_us", min), ("per_second", max)):
                    kept[key] = better(kept[key], figures[key])
            for form in FORMS:
                for run in inferctl(daemon.url, ["--form", form, "--pid", daemon.process.pid], args.seconds):
                    keep_best(best, (f"inferd {form}", run["connections"]), run)
            for other in args.other:
                name, url = other.split("=", 1)
                extra = ["--path", args.path, "--body", args.body]
                for run in inferctl(url, extra, args.seconds):
                    keep_best(best, (name, run["connections"]), run)
    finally:
        daemon.stop()
    return bare, best


def table(bare, best):
    engine, limit = bare["bare_1"]["cpu_us"], bare["bare_cores"]["per_second"]
    print(f"bare engine: {engine:.0f} us of CPU a call, {limit:.0f} calls/s on {bare['cores']} cores")
    print(f"through an engine host: + {bare['hosted_1']['cpu_us'] - engine:.0f} us of CPU, "
          f"p50 + {bare['hosted_1']['p50_us'] - bare['bare_1']['p50_us']:.0f} us, "
          f"{bare['hosted_64']['per_second'] / limit:.0%} of the calls/s\n")
    print("| server, form | clients | CPU us/request | added | p50 us | p99/p50 | requests/s | share | client us | failed |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (name, clients), run in best.items():
        cpu = run["server"]["cpu_us_per_request"] if run.get("server") else float("nan")
        quantile = run["latency_us"]
        reach = limit if clients > 1 else bare["bare_1"]["per_second"]
        print(
            f"| {name} | {clients} | {cpu:.0f} | {cpu - engine:+.0f} | {quantile['p50']:.0f} | {quantile['p99_over_p50']:.2f} "
            f"| {run['rps']:.0f} | {run['rps'] / reach:.0%} | {run['client_cpu_us_per_request']:.0f} | {sum(run['errors'].values())} |"
        )


def idle(args):
    build()
    for triple in ("x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"):
        program = TARGET / triple / "release/inferd"
        if program.is_file():
            print(f"inferd for {triple}: {program.stat().st_size / 2**20:.2f} MiB")
    for what, models in (("without a model", []), ("with the default model", [args.model])):
        runs = []
        for _ in range(5):
            daemon = Daemon(models)
            runs.append((daemon.ready_ms, daemon.resident_kib()))
            daemon.stop()
        ready, memory = min(r[0] for r in runs), min((r[1] for r in runs), key=lambda m: m["Rss"])
        word = "answering" if not models else "ready (golden vectors passed)"
        print(f"{what}: exec to {word} {ready:.0f} ms; daemon RSS {memory['Rss'] / 1024:.1f} MiB, "
              f"private dirty {memory['Private_Dirty'] / 1024:.1f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "app/inferd/models/imu-motion", help="model directory")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is measured in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", action="append", default=[], metavar="NAME=URL", help="another server to measure beside ours")
    parser.add_argument("--path", default="/infer", help="path of the other servers")
    parser.add_argument("--body", default=str(ROOT / "tests/data/imu_walk.json"), help="body for the other servers")
    parser.add_argument("--idle", action="store_true", help="sizes, start-up and resident memory instead")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file too")
    args = parser.parse_args()
    if args.idle:
        return idle(args)
    bare, best = measure(args)
    table(bare, best)
    if args.json:
        args.json.write_text(json.dumps({"bare": bare, "runs": [{"what": k[0], **v} for k, v in best.items()]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
