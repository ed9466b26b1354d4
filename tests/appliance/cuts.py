"""Power cuts for real: an appliance in QEMU is updated again and again and loses power at random instants.

Every cut is a SIGKILL of QEMU followed by a real boot on what the medium holds then. `medium.py` decides what that is: all
that the guest had written, or (most cuts) with a random part of the unflushed writes taken back, reordered and torn; around
the flip and the commit also moved back by a few writes, to hit the instants between two of them. After each boot:

* it is reachable and its answer to one fixed request is, bit for bit, the answer of the model that served before the update
  or of the one in the update, and of the new one when its commit was seen before the power went;
* the daemon's own account of which bundle serves agrees with that answer;
* no anti-rollback floor has fallen;
* no verdict holds the power cut against the model.

Everything random comes from one seed, which is printed. `--help` says how to run a long campaign.
"""

import argparse
import concurrent.futures
import http.client
import json
import math
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts/lib")]

import board as boards  # noqa: E402
import devkeys  # noqa: E402
import image  # noqa: E402
import places  # noqa: E402
import qemu  # noqa: E402
import rust  # noqa: E402
from appliance import device, images, variants  # noqa: E402
from appliance import medium as media  # noqa: E402

# When power is cut, and how often relative to the others.
PHASES = {"install": 4, "gates": 3, "flip": 3, "probation": 3, "commit": 4, "idle": 1, "boot": 2}
VARIANTS = 4
PRODUCT = "collar"
READY_TIMEOUT_S = 240
PROBATION_S = 4
# A verdict that a power cut alone may lead to, after more cuts of one trial than the device has patience for.
PATIENCE = "interrupted-too-often"


class Violation(Exception):
    """The appliance broke a promise."""


@dataclass
class Tally:
    """What a campaign did."""

    planned: Counter = field(default_factory=Counter)
    hit: Counter = field(default_factory=Counter)
    served: Counter = field(default_factory=Counter)
    cuts: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    requests: int = 0
    refused: int = 0
    violations: list = field(default_factory=list)

    def add(self, other):
        """Another worker's share."""
        for name in ("planned", "hit", "served"):
            getattr(self, name).update(getattr(other, name))
        self.cuts += other.cuts
        self.seconds += other.seconds
        self.requests += other.requests
        self.refused += other.refused
        self.violations += other.violations

    def page(self, seed, elapsed):
        """The counts for people."""
        sums = media.total(self.cuts)
        boots = sorted(self.seconds) or [math.nan]
        lines = [
            f"{sum(self.hit.values())} power cuts in {elapsed:.0f} s, seed {seed}: {len(self.violations)} violations",
            "  cut while it was: " + ", ".join(f"{name} {n}" for name, n in sorted(self.hit.items())),
            "  aimed at:         " + ", ".join(f"{name} {n}" for name, n in sorted(self.planned.items())),
            "  served after it:  " + ", ".join(f"{name} {n}" for name, n in sorted(self.served.items())),
            f"  answers compared while power was on: {self.requests - self.refused}, answered 503: {self.refused}",
            f"  the medium: {sums.get('writes', 0)} writes, {sums.get('flushes', 0)} flushes; of {sums.get('undecided', 0)} unflushed "
            f"writes {sums.get('lost', 0)} lost, {sums.get('torn', 0)} torn; cuts moved back by {sums.get('moved_back', 0)} writes in all",
            f"  power on to ready: median {boots[len(boots) // 2]:.1f} s, longest {boots[-1]:.1f} s",
        ]
        return "\n".join(lines + [f"  VIOLATION {text}" for text in self.violations])


@dataclass(frozen=True)
class Bench:
    """What all workers of a campaign share."""

    board: boards.Board
    image: Path
    api_key: str
    workshop: device.Workshop
    models: list
    folder: Path
    window: bytes
    seed: int


class Rig:
    """One appliance that is updated and cut, with what must be true of it."""

    def __init__(self, bench, number, known):
        self.bench, self.number, self.known = bench, number, known
        self.tally = Tally()
        self.folder = bench.folder / f"rig-{number}"
        self.fresh()

    def fresh(self):
        """A new medium as it is flashed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.medium = media.Medium(self.bench.image, self.folder)
        self.version = 0
        self.allowed = self.before = {"factory"}
        self.must = None
        self.floors = {}
        self.bundles = {}
        self.verdict = 0
        self.unfinished = None

    def power_on(self):
        """The machine, with every write recorded."""
        return qemu.Machine(
            self.bench.board, self.medium.path, keep_writes=True, write_log=self.medium.log, cpus=1,
            serial=self.folder / "console.log",
        )

    def next_bundle(self):
        """A newer bundle, of the next variant: the variant's name, the file, the bundle's id."""
        self.version += 1
        number = self.version % VARIANTS
        file, bundle = self.bench.workshop.bundle(
            f"rig-{self.number}", self.bench.models[number], self.version, product=PRODUCT, probation_seconds=PROBATION_S,
            probation_max_p99_ratio=1000, probation_max_drift=1000,
        )
        return f"variant-{number}", file, bundle

    # ---------------------------------------------------------------------------------------------------------- one cycle

    def cycle(self, number):
        """Power on, judge what the last cut left, go on to a random instant of an update, cut."""
        rng = random.Random(f"{self.bench.seed}/{self.number}/{number}")
        # Each is aimed at once before chance decides; what is hit is another matter.
        phase = list(PHASES)[number] if number < len(PHASES) else rng.choices(list(PHASES), PHASES.values())[0]
        with self.power_on() as machine:
            if phase == "boot" and number:
                # Also of the boot that goes on with a trial.
                time.sleep(rng.uniform(0, (sorted(self.tally.seconds) or [8])[-1] * 1.2))
                machine.cut_power()
                hit = "boot"
            else:
                self.judge(machine)
                hit = self.update(machine, rng, "install" if phase == "boot" else phase)
        back = rng.choice((0, 0, 1, 2, 3, 5, 8, 13)) if phase in ("flip", "commit") else 0
        if back:
            # Power failed before what was last seen; a commit among these writes has not happened, be it that of a trial
            # which this run had found interrupted.
            self.must = None
            self.allowed = self.allowed | self.before
        self.tally.cuts.append(self.medium.cut(rng, keep=rng.choice((0, 0.5, 0.9, 1)), back=back))
        self.tally.planned[phase] += 1
        self.tally.hit[hit] += 1

    def judge(self, machine):
        """After a boot: what serves, and does the daemon know it?"""
        try:
            self.tally.seconds.append(machine.wait_ready(READY_TIMEOUT_S))
        except Exception as error:
            raise Violation(f"it does not come up: {error}") from error
        page = device.status(machine.url)
        served = self.answer(machine)
        if served not in self.allowed:
            raise Violation(f"it serves {served}; allowed: {sorted(self.allowed)}")
        if self.must and served != self.must:
            raise Violation(f"it serves {served} though the commit of {self.must} was seen")
        serving = page["serving"]
        said = self.bundles.get(serving["bundle"]) if serving["from"] == "slot" else serving["from"]
        if said != served:
            raise Violation(f"it serves {served}, and says {json.dumps(serving)}")
        for product, floor in self.floors.items():
            if page["floors"].get(product, 0) < floor:
                raise Violation(f"the floor of {product} fell from {floor} to {page['floors'].get(product, 0)}")
        for verdict in page["verdicts"]:
            if verdict["number"] <= self.verdict or verdict["outcome"] not in ("refuse", "reverse"):
                continue
            self.unfinished = None
            if verdict["code"] != PATIENCE:
                raise Violation(f"a power cut is held against the model: {verdict}")
        self.verdict = max([self.verdict, *(v["number"] for v in page["verdicts"])])
        self.floors = page["floors"]
        self.tally.served[served.split("-")[0]] += 1
        self.now = served
        if all(slot["status"] not in ("staged", "trial") for slot in page["slots"]):
            self.allowed, self.must = {served}, served
            if self.unfinished and serving["bundle"] == self.unfinished[2]:
                # Its commit was on the medium, and power went before anybody heard of it: sent again it would be no update.
                self.unfinished = None
        self.before = set(self.allowed)
        return page

    def answer(self, machine):
        """Which model answered the one request: the name, or what is wrong."""
        status, body = self.ask(machine.url)
        for _ in range(5):
            if status != 503:
                break
            machine.wait_ready(60)
            status, body = self.ask(machine.url)
        if status != 200:
            raise Violation(f"the request was answered {status}: {body[:300]}")
        return self.known.get(fingerprint(body), f"an answer of no known model: {body[:200]}")

    def ask(self, url, timeout=30):
        """The one request."""
        call = urllib.request.Request(f"{url}/infer", data=self.bench.window, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(call, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def update(self, machine, rng, phase):
        """Goes on with an update until the chosen instant and cuts the power there. Returns what it was doing then."""
        page = device.status(machine.url)
        watch = device.Watch(machine.url, since=self.verdict)
        stop = threading.Event()
        try:
            bundle = next((slot["bundle"] for slot in page["slots"] if slot["status"] in ("staged", "trial")), None)
            if bundle and phase not in ("probation", "commit"):
                # A trial that was cut before comes to its end first.
                if not watch.wait(lambda: any(watch.has(gate, bundle) for gate in device.TRIAL_OVER), 180):
                    raise Violation(f"the trial that was interrupted does not end: {device.status(machine.url)}")
                self.now = self.answer(machine)
                if self.now not in self.allowed:
                    raise Violation(f"after the interrupted trial it serves {self.now}; allowed: {sorted(self.allowed)}")
                self.allowed, bundle, self.unfinished = {self.now}, None, None
            if not bundle:
                if self.unfinished is None or rng.random() < 0.5:
                    self.unfinished = self.next_bundle()
                variant, file, bundle = self.unfinished
                self.size = file.stat().st_size
                self.bundles[bundle] = variant
                self.allowed, self.must = {self.now, variant}, None
                threading.Thread(target=self.push, args=(machine.url, file), daemon=True).start()
            threading.Thread(target=self.load, args=(machine, stop), daemon=True).start()
            self.wait_for(watch, bundle, phase, rng)
            # First: its process takes a while to end, and refuses connections meanwhile.
            stop.set()
            machine.cut_power()
            return self.what(watch, bundle)
        finally:
            stop.set()
            watch.close()

    def push(self, url, file):
        """Sends a bundle until it is taken; how that ends is seen in the events, or not at all."""
        try:
            while True:
                connection = device.connect(url, 300)
                connection.request("PUT", "/api/v1/bundle", file.read_bytes(), {"X-API-Key": self.bench.api_key})
                answer = connection.getresponse()
                said = answer.read()
                if answer.status not in (409, 503):
                    break
                # A bundle that the power cut interrupted is on trial; this one's turn comes after it.
                time.sleep(0.5)
            if answer.status >= 400:
                self.refused = (answer.status, said[:500])
        except (OSError, http.client.HTTPException):
            pass

    def load(self, machine, stop):
        """Asks again and again while power is on; what is answered must be old or new."""
        while not stop.is_set():
            try:
                status, body = self.ask(machine.url, 60)
            except (OSError, http.client.HTTPException) as error:
                time.sleep(0.5)
                if machine.process.poll() is None and not stop.is_set():
                    self.wrong = f"while power was on a connection failed: {error}"
                return
            self.tally.requests += 1
            if status == 200:
                served = self.known.get(fingerprint(body))
                if served not in self.allowed:
                    self.wrong = f"while power was on it answered as {served}; allowed: {sorted(self.allowed)}"
            elif status == 503:
                self.tally.refused += 1
            else:
                self.wrong = f"while power was on it answered {status}: {body[:300]}"
            time.sleep(0.2)

    wrong = None
    refused = None

    def wait_for(self, watch, bundle, phase, rng):
        """Until the instant of the cut."""
        trial = lambda: (watch.progress.get("trial") or {}).get("phase")  # noqa: E731

        def seen(what, condition, timeout=180):
            over = lambda: condition() or self.refused or self.wrong or watch.has("return", bundle)  # noqa: E731
            watch.wait(over, timeout)
            if not condition() and not any(v["code"] == PATIENCE for v in watch.verdicts):
                raise Violation(f"{what} does not come: {self.refused or self.wrong} {json.dumps(watch.verdicts)[-3000:]}")

        if phase == "install":
            # By what reaches the medium, not by time: any byte of the bundle may be the last.
            begin, end = self.medium.log.stat().st_size, time.monotonic() + 30
            goal = begin + rng.uniform(0, 1.1) * self.size
            while self.medium.log.stat().st_size < goal and not watch.has("install", bundle) and time.monotonic() < end:
                time.sleep(0.001)
        elif phase == "gates":
            seen("the end of the transfer", lambda: watch.has("install", bundle, "pass"))
            time.sleep(rng.uniform(0, 2))
        elif phase == "flip":
            seen("the gate golden", lambda: watch.has("golden", bundle, "pass") or trial() == "probation")
            time.sleep(rng.uniform(0, 0.4))
        elif phase == "probation":
            seen("probation", lambda: trial() == "probation" or watch.has("commit", bundle))
            time.sleep(rng.uniform(0, PROBATION_S * 0.9))
        elif phase == "commit":
            seen("the commit", lambda: watch.has("commit", bundle, "pass"))
            time.sleep(rng.choice((0, 0, rng.uniform(0, 0.1))))
        else:
            seen("the commit", lambda: watch.has("commit", bundle, "pass"))
            time.sleep(rng.uniform(0.2, 2))

    def what(self, watch, bundle):
        """What it was doing when power went, by the last verdict that was heard; what must be true from then on."""
        if self.wrong:
            raise Violation(self.wrong)
        if watch.has("commit", bundle, "pass"):
            self.must = self.bundles[bundle]
            self.unfinished = None
            return "committed"
        for gate, name in (("flip", "probation"), ("golden", "flip"), ("install", "gates")):
            if watch.has(gate, bundle, "pass"):
                return name
        trial = watch.progress.get("trial")
        return trial["phase"] if trial else "install"

    def run(self, cycles, deadline=None, told=lambda: None):
        """A number of cuts. After a violation, what is needed to look at it is kept, and a fresh medium goes on."""
        number = done = 0
        while done < cycles and not (deadline and time.monotonic() > deadline):
            try:
                self.wrong = self.refused = None
                self.cycle(number)
                done += 1
            except Exception as error:
                self.keep(number, error)
                self.fresh()
            number += 1
            told()
        # The last cut is judged as well.
        try:
            with self.power_on() as machine:
                self.judge(machine)
        except Exception as error:
            self.keep(number, error)
        return self.tally

    def keep(self, number, error):
        """Puts medium and console of a violation aside."""
        kept = self.bench.folder / f"violation-{self.number}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        self.folder.rename(kept)
        (kept / "safe.img").unlink(missing_ok=True)
        why = "".join(traceback.format_exception(error)) if not isinstance(error, Violation) else str(error)
        (kept / "why.txt").write_text(why)
        self.tally.violations.append(f"rig {self.number} cycle {number}: {why} (kept in {kept})")


def fingerprint(body):
    """The numbers of an answer, to the last bit."""
    page = json.loads(body)
    return json.dumps([page["latent"], page["motif_scores"]])


def calibrate(bench):
    """What each variant answers on this board: every one is installed and committed once, without any cut."""
    known = {}
    rig = Rig(bench, "calibration", known)
    with rig.power_on() as machine:
        machine.wait_ready(READY_TIMEOUT_S)
        known[fingerprint(rig.ask(machine.url)[1])] = "factory"
        for _ in range(VARIANTS):
            variant, file, bundle = rig.next_bundle()
            watch = device.Watch(machine.url, since=0)
            rig.push(machine.url, file)
            if rig.refused or not watch.wait(lambda watch=watch, bundle=bundle: watch.has("commit", bundle, "pass"), 180):
                raise Violation(f"{variant} is not committed: {rig.refused} {json.dumps(device.status(machine.url))[:3000]}")
            watch.close()
            known[fingerprint(rig.ask(machine.url)[1])] = variant
    if len(known) != VARIANTS + 1:
        raise Violation(f"{VARIANTS + 1} models give {len(known)} different answers")
    shutil.rmtree(rig.folder)
    return known


def campaign(bench, cuts, workers, minutes=None, told=lambda: None):
    """So many cuts on so many appliances side by side; returns the tally."""
    known = calibrate(bench)
    deadline = time.monotonic() + minutes * 60 if minutes else None
    tally = Tally()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        shares = [cuts // workers + (1 if n < cuts % workers else 0) for n in range(workers)]
        rigs = [Rig(bench, n, known) for n in range(workers)]
        for done in [pool.submit(rig.run, share, deadline, told) for rig, share in zip(rigs, shares, strict=True)]:
            tally.add(done.result())
    for rig in rigs:
        shutil.rmtree(rig.folder, ignore_errors=True)
    return tally


def prepare(board, medium, api_key, workshop, folder, seed):
    """Everything the rigs share; makes the variants."""
    models = [
        variants.make(folder / f"variant-{number}", f"2.0.{number}", shift=(number + 1) / 16) for number in range(VARIANTS)
    ]
    window = (places.ROOT / "tests/data/imu_walk.json").read_bytes()
    return Bench(board, medium, api_key, workshop, models, folder, window, seed)


def cli():
    """A campaign by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=max(os.cpu_count() or 1, 1), help="appliances side by side (default: one per core)")
    parser.add_argument("--minutes", type=float, help="end after this time, with however many there were")
    parser.add_argument("--seed", type=int, help="repeat a campaign's random choices (QEMU's timing stays its own)")
    parser.add_argument("--board", default="qemu-aarch64", choices=boards.emulated())
    parser.add_argument("--folder", type=Path, help="where media, consoles and violations are kept (default: a temporary one)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="inferd-cuts-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    board = boards.load(options.board)
    inferctl = rust.build_for_host("inferctl")
    keys = devkeys.ensure(inferctl)
    medium = folder / "image.img"
    model = variants.make(folder / "factory", "1.0.0")
    images.assemble(board, medium, [model], image.built_daemon(board), dev=True, root=keys.root, api_key=keys.api_key)
    shared = prepare(board, medium, keys.api_key, device.Workshop(inferctl, keys, folder), folder, seed)
    print(f"seed {seed}, {options.cuts} cuts, {options.workers} appliances, in {folder}", flush=True)
    begin, lock, done = time.monotonic(), threading.Lock(), Counter()

    def told():
        with lock:
            done["cuts"] += 1
            if done["cuts"] % 50 == 0:
                print(f"{done['cuts']} cuts, {time.monotonic() - begin:.0f} s", flush=True)

    tally = campaign(shared, options.cuts, options.workers, options.minutes, told)
    print(tally.page(seed, time.monotonic() - begin))
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(cli())
