"""Systems for the two slots of a board, installed and tried as root does with a root shell; a board that restarts meanwhile."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass

import pytest
from appliance import conftest
from steps import Failure

PROGRAM = "inferd system --config /run/inferd/inferd.toml"
# Emulated, everything is hashed and written at a tenth of a board's pace.
PATIENCE_S = 600
# A trial ends by itself 10 minutes and its probation after its start at the latest.
TRIAL_S = 1200
# How often a step is done that a busy machine has spoiled.
ATTEMPTS = 4
API_KEY = "0123456789abcdef"
# A processor of an emulated board stands still while this machine has none for it.
STOOD_STILL = r"Kernel panic - not syncing: (?:softlockup|hung_task)"
# The keeper feeds the watchdog no more: the power may go before that expires.
LET_GO = r"keeper: .*the watchdog is fed no more"


def install(machine, file):
    """Streams a bundle into the slot that is not chosen; (status, what was said)."""
    end = time.monotonic() + PATIENCE_S
    with machine.serving(file.parent) as url:
        while True:
            status, said = machine.root(f"wget -q -O - {url}/{file.name} | {PROGRAM} install - 2>&1", PATIENCE_S)
            # What looks after trials at a start may still be at it.
            if "(busy)" not in said or time.monotonic() > end:
                return status, said
            time.sleep(1)


def ask_for_a_try(machine):
    """Has the installed system tried. The board restarts: perhaps before the shell has answered."""
    with contextlib.suppress(Failure, OSError):
        status, said = machine.root(f"{PROGRAM} try 2>&1", PATIENCE_S)
        assert status == 0, said


def status(machine, timeout=60):
    """What the board says of its systems."""
    return json.loads(machine.sh(f"{PROGRAM} status", timeout))


def newest(state):
    """The number of the newest verdict."""
    return max((verdict["number"] for verdict in state["verdicts"]), default=0)


def later(state, number, version=None):
    """The verdicts behind that of this number (about a version)."""
    return [said for said in state["verdicts"] if said["number"] > number and version in (None, said["about"]["version"])]


def goes_on(state):
    """Whether the board itself goes on with a trial."""
    return state["phase"] == "trial" or (state["phase"] == "staged" and any(state["tries"].values()))


@dataclass
class Start:
    """One start of the board, as its console shows it. `slot`: whose kernel U-Boot has started; `up`: whose root filesystem came up."""

    slot: str
    tried: bool
    up: str
    ended_by_watchdog: bool
    committed: bool
    # For how long it was watched before it was committed, by its own clock; None where the one or the other was not shown.
    held_s: float | None


def starts(console):
    """The starts that a console shows, oldest first."""

    def found(pattern, text):
        match = re.search(pattern, text)
        return match[1] if match else ""

    parts = re.split(r"inferd: U-Boot starts system (.)( inferd\.try=1)?\r?\n", console)
    texts = [*parts[3::3], ""]
    shown = []
    for slot, trial, text, after in zip(parts[1::3], parts[2::3], texts, texts[1:], strict=False):
        begin, end = (found(rf"\[ *([\d.]+)\] inferd system: \S+ \d+ is {what}\r?\n", text) for what in ("on trial", "committed"))
        held_s = float(end) - float(begin) if begin and end else None
        by_watchdog = bool(re.search(r"keeper: boot \d+: watchdog: ", after))
        shown.append(Start(slot, bool(trial), found(r"INFERD-UP \S+ slot=(.)", text), by_watchdog, bool(end), held_s))
    return shown


class Starved(Exception):
    """The machine is so busy that an emulated board has stood still, and its watchdog or its kernel has restarted it."""


class Board(conftest.Booted):
    """A board whose systems change. It restarts by itself: for a trial, behind one, and when the machine that emulates it is too busy. That
    last is no fault of any system, and is told from one by what QEMU says of the watchdog: it ends what is waited for."""

    def __init__(self, board, file, **options):
        super().__init__(board, file, wait=False, dev=True, keep_writes=True, restarts=True, **options)
        # How often it had been starved when this step began.
        self.before = 0
        self.watchdog = None

    def __enter__(self):
        super().__enter__()
        # From now on resets are heard of; what was heard outlives a power cut.
        self.watchdog = self.qmp
        return self

    def starved(self):
        """How often it was starved since the power came."""
        return len(self.watchdog.told("WATCHDOG")) + len(re.findall(f"{STOOD_STILL}|{LET_GO}", self.console()))

    def until(self, condition, what, *, through=False, patience=PATIENCE_S, pause=0.2):
        """Waits for something that happens by itself; what it gave. `through`: also when the board is starved meanwhile."""
        end = time.monotonic() + patience
        while not (found := condition()):
            self._check_alive()
            if not through and self.starved() > self.before:
                raise Starved
            assert time.monotonic() < end, f"never: {what}. {self.console()[-3000:]}"
            time.sleep(pause)
        return found

    def patiently(self, step):
        """Does a step, and does it again where the board was starved in it. It begins with whatever state the board is in then."""
        for _ in range(ATTEMPTS):
            self.before = self.starved()
            try:
                return step()
            except (Starved, AssertionError, Failure, OSError, http.client.HTTPException):
                if self.starved() == self.before:
                    raise
                print(f"the board was starved {self.starved()} times: {step.__qualname__} is done again")
        # One that is starved is so at any time.
        assert any(start.ended_by_watchdog and not start.tried for start in starts(self.console())), (
            f"its watchdog ends trials, and nothing else: {self.console()[-3000:]}"
        )
        return pytest.skip(f"this machine is too busy: the watchdog of an emulated board has expired {self.starved()} times")

    def told(self, *, through=False):
        """What it says of its systems, asked until it answers."""

        def asked():
            with contextlib.suppress(Failure, OSError, AssertionError, json.JSONDecodeError):
                page = status(self)
                return page if page["state"] else None
            self.forget_shell()
            return None

        return self.until(asked, "it says what becomes of its systems", through=through)

    def serves(self, window):
        """Whether it answers an inference now."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            answer = self.request("/infer", window)
            if answer.status == 503 and answer.json().get("error") == "safe_mode" and self.starved():
                # Three such ends in a row, and it has given up.
                self.request("/api/v1/safe-mode/leave", {}, headers={"X-API-Key": API_KEY})
            return answer.status == 200
        return False

    def shows(self, pattern, count=1):
        """Waits until the console has shown this so often."""
        return self.until(lambda: len(re.findall(pattern, self.console())) >= count, f"the console shows {pattern!r}")

    def settled(self):
        """The state when no trial is under way."""

        def still():
            state = self.told(through=True)["state"]
            return None if goes_on(state) else state

        return self.until(still, "the trial ends", through=True, patience=TRIAL_S)

    def brought(self, bring, version=None):
        """Has a system (of this version) tried: that which the board goes on with by itself, else what `bring(state)` brings there, which is
        asked until it is so far. Returns the number of the newest verdict before it."""
        before = newest(self.told()["state"])

        def begun():
            state = self.told()["state"]
            mine = version in (None, state.get("about", {}).get("version"))
            if later(state, before, version) or (state["phase"] == "trial" and mine):
                return True
            if not goes_on(state):
                bring(state)
            return False

        self.until(begun, "a system is tried", patience=TRIAL_S)
        return before

    def on_trial(self, bring, version):
        """The same, until that system runs; its slot."""

        def runs():
            told = self.told()
            state, view = told["state"], told["system"]
            if not goes_on(state):
                bring(state)
            mine = state["phase"] == "trial" and state["about"]["version"] == version
            return mine and view["on_trial"] and view["runs"] == state["slot"] and state["slot"]

        return self.until(runs, f"version {version} runs, on trial", patience=TRIAL_S)

    def verdict(self, after, version, *, through=False):
        """The first verdict about a version behind that of this number."""

        def given():
            return later(self.told(through=through)["state"], after, version)

        return self.until(given, f"version {version} is judged", through=through, patience=TRIAL_S)[0]

    def at_the_shell(self, bundle, version=None):
        """Brings a system by a root shell: see `brought`."""

        def bring(state):
            if state["phase"] != "staged" or version not in (None, state["about"]["version"]):
                code, said = install(self, bundle)
                assert code == 0, said
            with contextlib.suppress(Failure, OSError):
                self.root(f"{PROGRAM} try 2>&1", PATIENCE_S)

        return bring


class Operator:
    """Who pushes a system over the network, and waits until it is committed or not. The daemon, which is not root, passes it on."""

    # The daemon has a system that it has staged tried by itself, unless the board was reset in that moment.
    ABOUT_TO_BE_TRIED_S = 90

    def __init__(self, machine, program, bundle):
        self.command = [program, "--url", machine.url, "--timeout", "120", "push", bundle, "--wait", "committed"]
        self.machine, self.process, self.staged_since = machine, None, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()

    def __call__(self, state):
        """Brings it: see `Board.brought`."""
        if self.process and self.process.poll() is None:
            if state["phase"] != "staged":
                self.staged_since = None
                return
            self.staged_since = self.staged_since or time.monotonic()
            if time.monotonic() - self.staged_since > self.ABOUT_TO_BE_TRIED_S:
                self.machine.request("/api/v1/system/try", method="POST", headers={"X-API-Key": API_KEY})
            return
        environment = {**os.environ, "INFERD_API_KEY": API_KEY}
        self.process = subprocess.Popen(self.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.staged_since = None

    def end(self):
        """Its exit status and what it said at last."""
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said
