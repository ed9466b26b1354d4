#!/usr/bin/env python3
"""Every engine on the processor: through inferd beside the bare library call, f32 and INT8, 1 and 2 threads.

    tests/perf/engines.py [--rounds N] [--models NAME,...] [--json FILE] [--quick]

The networks are those of networks.py (real architectures and sizes, seeded weights); `inferctl quantize` makes the INT8 ones (static QDQ,
per channel, calibrated with generated inputs). Each is run in turns by

    bare        ONNX Runtime called by a program that does nothing else: the options of our engine, inputs and outputs bound once
    ort         the same libonnxruntime through inferd: ring, supervision, system calls filtered, in the real inferd-engine-host
    rten        the built-in engine called directly
    cpu         the built-in engine through inferd

and, to check the first, by ONNX Runtime's Python binding with bound inputs and outputs. One network of a single Identity shows what each way
costs by itself. Whoever computes on 1 thread is kept on one core, daemon and host alike; `apart` is the same with the host kept
on another core than the daemon. Between the two lies what a scheduler makes of it, and `a wake-up` says why they differ on this machine: what it takes
to send a byte to a process that sleeps and to get it back, both on one core, and on two.

How to read it. All figures are CPU time per inference in microseconds, kernel and all processes included, of requests that carry their
input in and their output out; medians over the rounds, in brackets the middle half of them. `added` is what inferd costs on top of the
bare call: the median over rounds of the difference within one round, because both then ran on a machine as busy. 1 and 2
threads are 1 and 2 requests computed at once, each on one thread: so inferd uses cores (`budget.workers`), and so the bare call is
made here. `2 in one` is what one bare call split over two threads takes, as CPU and as latency (p50). INT8: `faster` is f32
over INT8 of the same way, the median over rounds; cosine (least output over all samples together, and the worst single sample) and how many
samples have the same highest score, of inputs that calibration has not seen, against f32.

On a busy machine ask for priority in the shell before: `echo -10 > /proc/self/autogroup`, where the kernel groups processes by session
(/proc/sys/kernel/sched_autogroup_enabled); the nice value this program asks for counts within a session only there.

Needs the packages of tests/requirements.txt; `cargo` builds what is missing (INFERD_PERF_NO_BUILD: nothing). --quick is a look whether it works: its
figures mean little.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import networks
import numpy as np
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
RELEASE = TARGET / "release"
(LIBRARY,) = pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
THREADS = (1, 2)
# Inputs to calibrate with and to judge with.
CALIBRATION = {"yolo11n": 16, "mobilenetv2": 32}
HELD_OUT = {"yolo11n": 16, "mobilenetv2": 64}
CORES = sorted(os.sched_getaffinity(0))[:2]
# Seconds a round should take.
ROUND = 0.08


def build():
    if os.environ.get("INFERD_PERF_NO_BUILD"):
        return
    # One after the other: together they would share features, and the programs would not be those of an image.
    for what in (
        ["--release", "-p", "inferd-engine-host"],
        ["--release", "-p", "inferd-hosts", "--example", "hop"],
        ["--release", "-p", "inferd-engine", "--features", "ort", "--example", "bare"],
        ["-p", "inferctl"],
    ):
        subprocess.run(["cargo", "build", "--quiet", "--target-dir", TARGET, *what], cwd=ROOT, check=True)


# ----------------------------------------------------------------------------------------------------------- the models


def quantise(folder, name):
    """The INT8 variant beside the model, made by inferctl; what it cost by its own measure."""
    data, to = folder / f"{name}.npz", folder / f"{name}-quantised"
    np.savez(data, **{networks.KINDS[name].input: networks.samples(name, CALIBRATION.get(name, 128), seed=2)})
    inferctl = os.environ.get("INFERCTL_BIN", TARGET / "debug/inferctl")
    command = [inferctl, "quantize", folder / name, "-o", to, "--calibration", data, "--python", sys.executable]
    # Weights that were not trained lose more: what they lose is printed here, not refused.
    command += ["--engines", "ort-int8,ort,cpu-int8,cpu", "--min-cosine", "0.5", "--min-overall-cosine", "0.5", "--max-loss", "1", "--json"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: {done.stdout}{done.stderr}")
    return to


def served(folder, name, rung, workers):
    """A copy of the model under its own name, for one rung and so many workers."""
    quantised = rung.endswith("-int8")
    source = folder / (f"{name}-quantised" if quantised else name)
    called = f"{name}-{rung}-{workers}"
    shutil.copytree(source, to := folder / called, copy_function=os.link)
    page = (source / "manifest.toml").read_text()
    given = tomllib.loads(page)
    lines = []
    for line in page.splitlines():
        match line.partition(" = ")[0]:
            case "name" if f'"{name}"' in line:
                line = f'name = "{called}"'
            case "engines":
                line = f'engines = ["{rung}"]'
            case "memory_mib":
                line += f"\nworkers = {workers}"
        lines.append(line)
    (to / "manifest.toml").unlink()
    (to / "manifest.toml").write_text("\n".join(lines) + "\n")
    made = tomllib.loads((to / "manifest.toml").read_text())
    assert (made["name"], made["engines"], made["budget"]["workers"]) == (called, [rung], workers), given
    return to


def loss(folder, name):
    """Cosine and agreement of the INT8 network with f32, on inputs that calibration has not seen."""
    both = [session(f) for f in files(folder, name)]
    given = networks.samples(name, HELD_OUT.get(name, 256), seed=3)
    answers = [[s.run(None, {networks.KINDS[name].input: x[None]}) for x in given] for s in both]
    whole, worst, same = 1.0, 1.0, []
    for k in range(len(answers[0][0])):
        a, b = (np.stack([one[k].ravel() for one in side]).astype(np.float64) for side in answers)
        whole = min(whole, (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
        worst = min(worst, ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
        if answers[0][0][k].ndim == 2:
            same = a.argmax(1) == b.argmax(1)
        elif answers[0][0][k].shape[1] > 4:
            # A detector: the classes of what it is surest of.
            a, b = (x.reshape(len(given), *answers[0][0][k].shape[1:]) for x in (a, b))
            sure = np.argsort(-a.max(1), axis=1)[:, :100]
            same = [x.argmax(0)[i] == y.argmax(0)[i] for x, y, i in zip(a, b, sure, strict=True)]
    sizes = [f.stat().st_size for f in files(folder, name)]
    return {"cosine": whole, "worst": worst, "argmax": float(np.mean(same)), "bytes": sizes, "samples": len(given)}


def files(folder, name):
    """The networks of a model: f32, INT8."""
    variants = folder / f"{name}-quantised" / "model.int8.onnx"
    return [folder / name / "model.onnx", *([variants] if variants.exists() else [])]


# ------------------------------------------------------------------------------------------------------ who is measured


def session(file):
    """ONNX Runtime with the options of our engine (app/engine/src/ort.rs)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class Python:
    """ONNX Runtime's Python binding, with inputs and outputs bound once."""

    def __init__(self, file, given):
        self.session = session(file)
        self.binding = self.session.io_binding()
        for i in self.session.get_inputs():
            self.binding.bind_ortvalue_input(i.name, onnxruntime.OrtValue.ortvalue_from_numpy(given))
        for o in self.session.get_outputs():
            self.binding.bind_ortvalue_output(o.name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(o.shape, np.float32))

    def ask(self, runs):
        run, binding = self.session.run_with_iobinding, self.binding
        begin = time.thread_time_ns()
        for _ in range(runs):
            run(binding)
        return {"cpu_us": (time.thread_time_ns() - begin) / 1e3 / runs}


def place(process, cores):
    """Keeps all threads of a process on these cores."""
    for task in os.listdir(f"/proc/{process}/task"):
        os.sched_setaffinity(int(task), cores)


def wake_up(cores):
    """Microseconds of CPU time for a byte to a sleeping process and back."""
    (there, to), (back, home) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {cores[-1]})
        os.close(to)
        while byte := os.read(there, 1):
            os.write(home, byte)
        os._exit(0)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores[0]})
    begin, times = time.process_time_ns(), 5000
    for _ in range(times):
        os.write(to, b"x")
        os.read(back, 1)
    own = time.process_time_ns() - begin
    os.sched_setaffinity(0, before)
    os.close(to)
    _, _, usage = os.wait4(child, 0)
    for end in (there, back, home):
        os.close(end)
    return own / 1e3 / times + (usage.ru_utime + usage.ru_stime) * 1e6 / times


class Follower:
    """A program that makes a round when it is told to, and tells what it took."""

    def __init__(self, program, *arguments):
        env = os.environ | {
            "INFERD_ORT_LIB": str(LIBRARY), "INFERD_ENGINE_HOST": str(RELEASE / "inferd-engine-host"), "RTEN_NUM_THREADS": "1",
        }  # fmt: skip
        command = [str(a) for a in (RELEASE / "examples" / program, *arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self.said = []
        while "ready" not in (line := self.line()):
            self.said.append(line)

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args)} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        return self.line()

    def ask_on(self, cores, others, *words):
        """The same, with the program on these cores and the hosts it started on others."""
        place(self.process.pid, cores)
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as children:
            for host in children.read().split():
                place(host, others)
        return self.ask(*words)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def contenders(folder, name):
    """(precision, who, threads) to a function that makes so many runs, and the programs behind them."""
    rungs = {"f32": ("ort", "cpu"), "int8": ("ort-int8", "cpu-int8")}
    precisions = [p for p in rungs if p == "f32" or (folder / f"{name}-quantised").exists()]
    given = networks.samples(name, networks.SAMPLES, seed=1)[:1]
    directories = [served(folder, name, rung, n) for p in precisions for rung in rungs[p] for n in THREADS]
    ring = Follower("hop", "follow", *directories)
    ran = {s["name"]: s["rung"] for s in ring.said}
    assert all(ran[d.name] == tomllib.loads((d / "manifest.toml").read_text())["engines"][0] for d in directories), ran
    programs, calls = [ring], {}
    both = set(CORES)
    on = {1: {CORES[0]}, 2: both}
    for p in precisions:
        ort, cpu = rungs[p]
        file = files(folder, name)[precisions.index(p)]
        network = ["--network", file.name] if p == "int8" else []
        for who, what in (("bare", ["library"]), ("rten", ["cpu"]), ("direct", ["ort"])):
            programs.append(bare := Follower("bare", file.parent, *what, *network))
            for n in THREADS:
                calls[p, who, n] = lambda runs, bare=bare, n=n: bare.ask_on(on[n], on[n], n, runs)
        programs.append(split := Follower("bare", file.parent, "library", *network, "--intra", 2))
        calls[p, "2 in one", 1] = lambda runs, split=split: split.ask_on(both, both, 1, runs)
        calls[p, "python", 1] = Python(file, given).ask
        for n in THREADS:
            for who, rung in (("ort", ort), ("cpu", cpu)):
                calls[p, who, n] = lambda runs, rung=rung, n=n: ring.ask_on(on[n], on[n], f"{name}-{rung}-{n}", n, runs)
        apart = {CORES[-1]}
        calls[p, "apart", 1] = lambda runs, ort=ort: ring.ask_on(on[1], apart, f"{name}-{ort}-1", 1, runs)
    return calls, programs


def measure(folder, name, rounds, seconds):
    """For each contender a figure per round."""
    calls, programs = contenders(folder, name)
    order, found = random.Random(1), {key: [] for key in calls}
    groups = {}
    for precision, who, n in calls:
        groups.setdefault((precision, n, who in ("rten", "cpu")), []).append((precision, who, n))
    groups = list(groups.values())
    runs = {}
    for key, call in calls.items():
        call(1)
        begin = time.monotonic()
        call(2)
        runs[key] = max(2, min(5000, int(2 * seconds / (time.monotonic() - begin))))
    for turn in range(rounds):
        print(f"{name}: round {turn + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
        # Whoever is compared with another runs next to it, now before and now after.
        for group in order.sample(groups, len(groups)):
            for key in order.sample(group, len(group)):
                found[key].append(calls[key](runs[key]))
    print(file=sys.stderr)
    for program in programs:
        program.stop()
    return found


# ---------------------------------------------------------------------------------------------------------- the tables


def middle(values):
    """The median, and the middle half."""
    low, high = np.percentile(values, [25, 75])
    return statistics.median(values), low, high


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def spread(values):
    found = [number(v) for v in middle(values)]
    return f"{found[0]} ({found[1]} to {found[2]})"


def cpu(found, key):
    return [r["cpu_us"] for r in found[key]]


def added(found, p, through, direct, n):
    """What inferd costs: the median of differences within a round, in microseconds and of the bare call."""
    a, b = cpu(found, (p, through, n)), cpu(found, (p, direct, n))
    us = middle([x - y for x, y in zip(a, b, strict=True)])[0]
    part = middle([100 * (x / y - 1) for x, y in zip(a, b, strict=True)])
    return f"{us:+,.1f} us, {part[0]:+.1f} % ({part[1]:+.1f} to {part[2]:+.1f})"


def faster(found, who, n=1):
    ratios = [x / y for x, y in zip(cpu(found, ("f32", who, n)), cpu(found, ("int8", who, n)), strict=True)]
    low, mid, high = (middle(ratios)[i] for i in (1, 0, 2))
    return f"{mid:.2f} ({low:.2f} to {high:.2f})"


def tables(results):
    print("\n| model | threads | bare | ort | added | rten | cpu | added | python |\n|---|---|---|---|---|---|---|---|---|")
    for name, (found, _) in results.items():
        for p in dict.fromkeys(key[0] for key in found):
            for n in THREADS:
                row = [f"{name} {p}", n, spread(cpu(found, (p, "bare", n))), spread(cpu(found, (p, "ort", n))), added(found, p, "ort", "bare", n)]
                row += [spread(cpu(found, (p, "rten", n))), spread(cpu(found, (p, "cpu", n))), added(found, p, "cpu", "rten", n)]
                row += [spread(cpu(found, (p, "python", 1))) if n == 1 else ""]
                print("| " + " | ".join(map(str, row)) + " |")
    print("\n| model | ort, apart: added | our engine without the ring, added | one request: bare p50 | ort p50 | 2 in one: CPU | 2 in one: p50 |\n|---|---|---|---|---|---|---|")
    for name, (found, _) in results.items():
        for p in dict.fromkeys(key[0] for key in found):
            latency = {who: number(middle([r["p50_us"] for r in found[p, who, 1]])[0]) for who in ("bare", "ort", "2 in one")}
            row = [f"{name} {p}", added(found, p, "apart", "bare", 1), added(found, p, "direct", "bare", 1), latency["bare"], latency["ort"]]
            row += [spread(cpu(found, (p, "2 in one", 1))), latency["2 in one"]]
            print("| " + " | ".join(row) + " |")
    print("\n| INT8 | faster: bare | ort | cpu | cosine | worst sample | same highest | size |\n|---|---|---|---|---|---|---|---|")
    for name, (found, lost) in results.items():
        if lost:
            row = [name, *(faster(found, who) for who in ("bare", "ort", "cpu"))]
            row += [f"{lost['cosine']:.4f}", f"{lost['worst']:.4f}", f"{lost['argmax']:.1%}", f"{lost['bytes'][0] / lost['bytes'][1]:.1f} times smaller"]
            print("| " + " | ".join(row) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--models", default=",".join(networks.KINDS), help="of %(default)s")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file too")
    parser.add_argument("--quick", action="store_true", help="two short rounds of the small models")
    args = parser.parse_args()
    names, rounds, seconds = args.models.split(","), args.rounds, ROUND
    if args.quick:
        names, rounds, seconds = [n for n in names if n not in ("mobilenetv2", "yolo11n")], 2, ROUND / 4
    if unknown := set(names) - set(networks.KINDS):
        sys.exit(f"no such model: {', '.join(sorted(unknown))}")
    build()
    try:
        os.nice(-5)
    except OSError:
        print("not allowed to ask for a higher priority: figures will be spread wider", file=sys.stderr)
    processor = next(line.partition(": ")[2] for line in open("/proc/cpuinfo") if line.startswith("model name"))
    print(f"{os.uname().machine}, {os.cpu_count()} cores, {processor.strip()}; ONNX Runtime {onnxruntime.__version__}; {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"a wake-up: {wake_up(CORES[:1]):.1f} us on one core, {wake_up(CORES):.1f} us on two")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in names:
            parameters = networks.write(name, folder)
            lost = None
            if name != "identity":
                quantise(folder, name)
                lost = loss(folder, name)
            print(f"{name}: {parameters:,} parameters", file=sys.stderr)
            results[name] = measure(folder, name, rounds, seconds), lost
            if args.json:
                flat = {n: {"int8": q, "rounds": {" ".join(map(str, k)): v for k, v in f.items()}} for n, (f, q) in results.items()}
                args.json.write_text(json.dumps(flat, indent=1))
    tables(results)


if __name__ == "__main__":
    main()
