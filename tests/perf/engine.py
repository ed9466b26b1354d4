#!/usr/bin/env python3
"""The built-in engine beside ONNX Runtime on one thread: CPU time per inference, and how near the answers are.

    tests/perf/engine.py [--rounds N] [--runs N] [--program ENGINE_BENCH] MODEL_DIRECTORY...

Rounds of both alternate, so that whatever else the machine does hits both alike; the figures are the least and the median
CPU time of their rounds, and `ratio` the quotient of the least ones. Needs numpy, onnxruntime and safetensors (tests/requirements.txt);
`cargo` builds the example `engine_bench` when no program is given.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time
import tomllib

import numpy as np
import onnxruntime as ort
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRIPLE = f"{os.uname().machine}-unknown-linux-musl"


def build():
    command = ["cargo", "build", "--release", "--quiet", "--target", TRIPLE, "-p", "inferd-engine", "--example", "engine_bench"]
    subprocess.run(command, cwd=ROOT, check=True)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / TRIPLE / "release/examples/engine_bench"


def reference(directory, manifest):
    """A function that runs the first golden case on ONNX Runtime, and its answers."""
    golden = load_file(directory / manifest["golden"]["file"])
    given = {}
    for spec in manifest["inputs"]:
        x = golden[f"0/in/{spec['name']}"]
        if constants := spec.get("normalization"):
            x = (x - np.array(constants["mean"], np.float32)) / np.array(constants["std"], np.float32)
        given[spec["name"]] = x
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(directory / manifest["onnx"]["file"], options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, given)


def measure(directory, program, rounds, runs):
    manifest = tomllib.loads((directory / "manifest.toml").read_text())
    env = {**os.environ, "RTEN_NUM_THREADS": "1"}
    once = subprocess.run([program, directory, "--runs", "1", "--rounds", "1"], env=env, capture_output=True, text=True, check=True)
    about = json.loads(once.stdout)
    run = reference(directory, manifest)
    run()
    command = [program, directory, "--runs", str(runs), "--follow"]
    ours, theirs = [], []
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as bench:
        for _ in range(rounds):
            bench.stdin.write("\n")
            ours.append(json.loads(bench.stdout.readline())["cpu_us"])
            begin = time.thread_time_ns()
            for _ in range(runs):
                run()
            theirs.append((time.thread_time_ns() - begin) / 1e3 / runs)
        bench.stdin.close()
    return about, ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--program", type=pathlib.Path)
    args = parser.parse_args()
    program = args.program or build()
    print(f"{'model':24} {'engine us':>16} {'ONNX Runtime us':>18} {'ratio':>6}  agreement with the golden vectors")
    for directory in args.models:
        about, ours, theirs = measure(directory.resolve(), program.resolve(), args.rounds, args.runs)
        least, other = min(ours), min(theirs)
        golden = about["golden"]
        print(
            f"{about['model']:24} {least:8.1f} ({statistics.median(ours):.0f}) {other:10.1f} ({statistics.median(theirs):.0f})"
            f" {least / other:6.2f}  cosine {golden['cosine']:.7f}, largest difference {golden['max_abs']:.1e}"
        )


if __name__ == "__main__":
    main()
