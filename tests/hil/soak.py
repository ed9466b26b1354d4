"""Hours of faults: at random instants, under light load, and after each of them everything must be as before.

    PYTHON tests/hil/soak.py --hours 4            (--help: target, seed, faults, quiet time)

Ends with a table of what was put in and how long answers were missing, and with exit status 1 when a promise was broken. The
report, with every single fault, and the console are kept in target/hil/soak/. Everything random comes from one seed, which is
printed; the device's own timing is not repeated by it.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts/lib")]

import devkeys  # noqa: E402
import places  # noqa: E402
from appliance import images  # noqa: E402
from labgrid import Environment  # noqa: E402
from labgrid.protocol import CommandProtocol  # noqa: E402

from hil import faults  # noqa: E402
from hil.protocols import MachineProtocol  # noqa: E402
from hil.unit import Lacking, Load, Unit  # noqa: E402
from hil.updates import Updates  # noqa: E402

HOUR, MIB = 3600.0, 1 << 20
# A daemon is healthy after a minute: ends of one that was not are counted as a crash loop.
QUIET_S = 70.0
SAMPLE_S = 5.0
# Memory is looked at once a process has settled.
WARM_UP_S = 30.0
# In the appliance's shell: id and resident KiB of the daemon, id and resident KiB of every host; sectors written to /data.
MEMORY = (
    "for p in $(pidof inferd); do case \"$(tr '\\0' ' ' </proc/$p/cmdline)\" in *engine-host*) r=host ;; *'inferd keeper'*) r=keeper ;; "
    "*) r=daemon ;; esac; echo $r $p $(sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$p/status); done; true"
)
WRITTEN = "d=$(sed -n 's|^/dev/\\([^ ]*\\) /data .*|\\1|p' /proc/mounts); read -r _ _ _ _ _ _ w _ </sys/class/block/$d/stat; echo $w"


class Slope:
    """Growth in MiB/h of processes that come and go: one line's slope by least squares, with an offset for each life."""

    def __init__(self):
        self.lives = {}

    def take(self, life, at, mib):
        """A reading of one process."""
        self.lives.setdefault(life, []).append((at, mib))

    def settled(self):
        """The readings of each life once it had settled."""
        for readings in self.lives.values():
            settled = [(at, mib) for at, mib in readings if at - readings[0][0] >= WARM_UP_S]
            if len(settled) > 1:
                yield settled

    def minutes(self):
        """How long it was looked at."""
        return sum(readings[-1][0] - readings[0][0] for readings in self.settled()) / 60

    def mib_per_hour(self):
        """The slope; None when no life was long enough for two readings."""
        above = below = 0.0
        for readings in self.settled():
            middle_at = sum(at for at, _ in readings) / len(readings)
            middle = sum(mib for _, mib in readings) / len(readings)
            above += sum((at - middle_at) * (mib - middle) for at, mib in readings)
            below += sum((at - middle_at) ** 2 for at, _ in readings)
        return above / below * HOUR if below else None


class Soak:
    """One run."""

    def __init__(self, unit, load, seed, quiet, shell=True):
        self.unit, self.load, self.quiet, self.shell = unit, load, quiet, shell
        self.random = random.Random(seed)
        self.slopes = {"keeper": Slope(), "daemon": Slope(), "host": Slope()}
        self.done, self.violations = [], []
        self.written, self.quiet_s = 0, 0.0

    def run(self, chosen, hours):
        """Puts in one fault after the other until the time is over or a promise is broken."""
        end = time.monotonic() + hours * HOUR
        expected = self.unit.kept()
        # Every fault once in random order, then anew: a short run has seen as many kinds as it could.
        waiting = []
        while time.monotonic() < end and not self.violations:
            self.rest(self.quiet + self.random.expovariate(1 / 15))
            waiting = waiting or self.random.sample(chosen, len(chosen))
            self.suffer(fault := waiting.pop(), expected)
            if fault.moves and not self.violations:
                expected = self.unit.kept()

    def rest(self, seconds):
        """Nothing happens; memory and writes are looked at, where there is a root shell."""
        if not self.shell:
            time.sleep(seconds)
            return
        begin, before = time.monotonic(), int(self.unit.shell(WRITTEN))
        while time.monotonic() - begin < seconds:
            self.sample()
            time.sleep(SAMPLE_S)
        self.written += int(self.unit.shell(WRITTEN)) - before
        self.quiet_s += time.monotonic() - begin

    def sample(self):
        """Reads the memory of every process."""
        boot = self.unit.boot()["number"]
        for line in self.unit.shell(MEMORY).splitlines():
            kind, pid, *kib = line.split()
            if kib:
                self.slopes[kind].take((boot, pid), time.monotonic(), int(kib[0]) / 1024)

    def suffer(self, fault, expected):
        """One fault, and what must hold after it."""
        unit, boot = self.unit, self.unit.boot()
        begin, trouble, held = time.monotonic(), None, None
        try:
            held = fault.put_in(unit)
            time.sleep(fault.hold)
            if fault.reason is None:
                fault.take_out(unit, held)
            else:
                unit.another_boot(boot)
            now = time.monotonic()
            unit.until(lambda: self.load.answered_since(now), "one answer after the other", 300)
            trouble = self.wrong(fault, boot, expected, begin)
        except Lacking as lack:
            print(f"{time.strftime('%H:%M:%S')}  {fault.name:28} not on this target: {lack}", flush=True)
            return
        except Exception as error:  # noqa: BLE001  whatever went wrong is this run's finding
            trouble = f"{type(error).__name__}: {error}"
        gap, counts = self.load.gap(begin), self.load.counts(begin)
        self.done.append({"fault": fault.name, "gap_s": round(gap, 2), "counts": dict(counts), "trouble": trouble})
        print(f"{time.strftime('%H:%M:%S')}  {fault.name:28} {gap:6.1f} s  {dict(counts)}  {trouble or 'well'}", flush=True)
        if trouble:
            self.violations.append(f"{fault.name}: {trouble}")

    def wrong(self, fault, boot, expected, begin):
        """The promise that does not hold any more, in words."""
        now = self.unit.boot()
        if fault.reason is None and now["number"] != boot["number"]:
            return f"it was reset, and should not have been: {now}"
        if fault.reason is not None and (now["number"], now["reason"]) != (boot["number"] + 1, fault.reason):
            return f"one reset for {fault.reason} was due, it says {now}"
        kept = self.unit.kept()
        if fault.moves:
            if kept[1] != (due := self.unit.strategy.update[1]) or any(kept[2].get(name, 0) < floor for name, floor in expected[2].items()):
                return f"{due} was due and no lower floor: {kept}, after {expected}"
        elif kept != expected:
            return f"it answers, serves or remembers something else: {kept}, not {expected}"
        answers = self.load.counts(begin)
        if not fault.interrupts and set(answers) != {200}:
            return f"not everybody was answered: {dict(answers)}"
        if unknown := set(answers) - {200, 503, "none"}:
            return f"requests were answered with {unknown}"
        return None

    def report(self, seed, seconds):
        """Everything, as JSON."""
        slopes = {kind: slope.mib_per_hour() for kind, slope in self.slopes.items()}
        minutes = {kind: round(slope.minutes(), 1) for kind, slope in self.slopes.items()}
        written = self.written * 512 / MIB / (self.quiet_s or 1) * 24 * HOUR
        return {
            "seed": seed, "hours": round(seconds / HOUR, 2), "requests": {str(k): v for k, v in self.load.counts().items()},
            "memory_mib_per_hour": slopes, "memory_minutes": minutes, "written_mib_per_day_at_rest": round(written, 1), "violations": self.violations, "faults": self.done,
        }


def table(page):
    """The report for people, in Markdown."""
    rows = ["| fault | put in | recovered | worst time without answers | 503 | no answer |", "|---|---|---|---|---|---|"]
    kinds = Counter(one["fault"] for one in page["faults"])
    for kind in sorted(kinds):
        ones = [one for one in page["faults"] if one["fault"] == kind]
        well = sum(one["trouble"] is None for one in ones)
        lost = [sum(one["counts"].get(what, 0) for one in ones) for what in (503, "none")]
        rows.append(f"| {kind} | {len(ones)} | {well} | {max(one['gap_s'] for one in ones):.1f} s | {lost[0]} | {lost[1]} |")
    total, well = len(page["faults"]), sum(one["trouble"] is None for one in page["faults"])
    worst = max((one["gap_s"] for one in page["faults"]), default=0)
    rows.append(f"| all | {total} | {well} | {worst:.1f} s | | |")
    requests = page["requests"]
    other = sum(requests.values()) - sum(requests.get(what, 0) for what in ("200", "503", "none"))
    slopes = ", ".join(
        f"{kind} {'?' if slope is None else format(slope, '+.2f')} (over {page['memory_minutes'][kind]} min)"
        for kind, slope in page["memory_mib_per_hour"].items()
    )
    return "\n".join([
        *rows,
        "",
        f"{page['hours']} h, seed {page['seed']}. Requests: {requests.get('200', 0)} answered, {requests.get('503', 0)} refused with 503, "
        f"{requests.get('none', 0)} without an answer, {other} anything else. Memory, MiB/h: {slopes}. "
        f"Written to the data partition at rest: {page['written_mib_per_day_at_rest']} MiB a day.",
    ])


def arguments():
    """The command line."""
    names = dict.fromkeys(fault.name for fault in [*faults.ALL, *faults.FROM_OUTSIDE])
    parser = argparse.ArgumentParser(description="Faults at random instants for hours; see the head of this file.")
    parser.add_argument("--hours", type=float, default=4.0, help="how long (default: %(default)s)")
    parser.add_argument("--lg-env", type=Path, default=Path(__file__).parent / "targets/qemu.yaml", help="the target (default: QEMU)")
    parser.add_argument("--seed", type=int, help="repeat a run's choices")
    parser.add_argument("--quiet", type=float, default=QUIET_S, help="least seconds between two faults (default: %(default)s)")
    parser.add_argument("--fault", action="append", choices=names, help="only this one; repeatable (default: all that the target can)")
    return parser.parse_args()


def has(target, protocol):
    """Whether a target has a driver for this."""
    return any(isinstance(driver, protocol) for driver in target.drivers)


def choose(names, shell, hands):
    """The faults that were asked for (default: all) and that can be put in: by a root shell, by hands on the machine, or from outside."""
    able = faults.ALL if shell else faults.FROM_OUTSIDE
    if names:
        able = [fault for fault in dict.fromkeys([*able, *faults.FROM_OUTSIDE]) if fault.name in names]
    return [fault for fault in able if hands or not fault.hands]


def main():
    """Runs it; the exit status."""
    options = arguments()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    folder = places.target() / "hil/soak"
    folder.mkdir(parents=True, exist_ok=True)
    keys = devkeys.ensure(images.inferctl())
    env = Environment(str(options.lg_env))
    target = env.get_target()
    strategy = target.get_strategy()
    unit = Unit(target, strategy, keys.api_key)
    shell = has(target, CommandProtocol)
    chosen = choose(options.fault, shell, has(target, MachineProtocol))
    if not chosen:
        sys.exit(f"this target can do none of: {', '.join(options.fault)}")
    begin = time.monotonic()
    print(f"seed {seed}, {options.hours} h, {len(chosen)} kinds of faults", flush=True)
    try:
        unit.to("booted")
        with tempfile.TemporaryDirectory(prefix="inferd-soak-") as bundles:
            unit.updates, began = Updates(keys, bundles), time.monotonic()
            unit.updates.install(unit, 0.25)
            unit.update_s = time.monotonic() - began
            with Load(unit.url, pause=0.5) as load:
                soak = Soak(unit, load, seed, options.quiet, shell)
                unit.chance = soak.random
                soak.run(chosen, options.hours)
        page = soak.report(seed, time.monotonic() - begin)
    finally:
        (folder / "console.log").write_text(strategy.console_text())
        env.cleanup()
    (folder / f"{seed}.json").write_text(json.dumps(page, indent=1))
    print(f"\n{table(page)}\n", *page["violations"], sep="\n", flush=True)
    return 1 if page["violations"] else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        threading.excepthook = lambda how: print(f"a thread ended: {how.exc_value!r}", file=sys.stderr, flush=True)
        sys.exit(main())
