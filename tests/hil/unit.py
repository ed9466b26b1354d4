"""The appliance on a target, as its user and its root shell see it; and a client that keeps asking it."""

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path

import board as boards
from appliance import device
from helpers import request
from labgrid.exceptions import NoDriverFoundError
from labgrid.protocol import CommandProtocol

from hil.protocols import MachineProtocol

WINDOW = json.loads((Path(__file__).resolve().parents[1] / "data/imu_walk.json").read_text())
# In the appliance's shell: the process ids of one kind of inferd process. One that has ended has no command line any more, and one
# that is about to become something else has the daemon's: the daemon is the keeper's child.
PROCESSES = (
    "for p in $(pidof inferd); do case \"$(tr '\\0' ' ' 2>/dev/null </proc/$p/cmdline)\" in "
    "'') r=ended ;; *engine-host*) r=host ;; *'inferd keeper'*) r=keeper ;; "
    "*) grep -q \"^PPid:.$(cat /run/inferd/keeper/pid)$\" /proc/$p/status 2>/dev/null && r=daemon || r=other ;; esac; "
    "[ $r != {kind} ] || echo $p; done; true"
)
# Longer than any answer that is worth waiting for on an emulated board.
REQUEST_TIMEOUT_S = 20
# An answer that took longer was missing: QEMU's network takes a connection while the board is still starting.
LATE_S = 5


class Lacking(Exception):
    """The target has no such thing."""


class Unit:
    """The appliance on the target."""

    def __init__(self, target, strategy, api_key):
        self.target, self.strategy, self.api_key = target, strategy, api_key
        # For faults that update it: what makes bundles, how long an update takes, and what draws instants.
        self.updates = self.update_s = self.chance = None

    @property
    def url(self):
        """Where its HTTP endpoint is."""
        return self.strategy.url

    @property
    def board(self):
        """The facts about its board."""
        return boards.load(self.strategy.appliance.get_board())

    def to(self, state):
        """Brings it into a state of the strategy."""
        self.strategy.transition(state)
        return self

    def driver(self, protocol, what):
        """A driver of the target."""
        try:
            return self.target.get_driver(protocol)
        except NoDriverFoundError:
            raise Lacking(f"this target has no {what}") from None

    def machine(self):
        """What can be done to the machine from outside."""
        return self.driver(MachineProtocol, "way to pull its cable, slow its medium or see its watchdog from outside")

    # The root shell

    def try_shell(self, command, timeout=60):
        """Runs a command as root: (status, output)."""
        lines, _, status = self.driver(CommandProtocol, "root shell").run(command, timeout=timeout)
        return status, "\n".join(lines).strip()

    def shell(self, command, timeout=60):
        """Runs a command as root; it must succeed."""
        status, output = self.try_shell(command, timeout)
        assert status == 0, f"`{command}` ended with status {status}: {output}"
        return output

    def processes(self, kind):
        """The process ids of `keeper`, `daemon` or `host`."""
        return [int(word) for word in self.shell(PROCESSES.format(kind=kind)).split()]

    def process(self, kind):
        """The one process of this kind."""
        (pid,) = self.until(lambda: self.processes(kind), f"a {kind}")[:1]
        return pid

    def signal(self, name, kind):
        """Sends a signal to the process of this kind; its id."""
        pid = self.process(kind)
        self.shell(f"kill -{name} {pid}")
        return pid

    def until(self, condition, what, timeout=120):
        """Waits for something that happens by itself; what it gave. While nobody answers, it has not happened."""
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                if found := condition():
                    return found
            assert time.monotonic() < end, f"it did not come to this within {timeout} s: {what}"
            time.sleep(0.1)

    # HTTP

    def request(self, path, body=None, **options):
        """One HTTP request; see helpers.request."""
        return request(f"{self.url}{path}", body, **{"timeout": REQUEST_TIMEOUT_S, **options})

    def page(self, path):
        """A page that is JSON."""
        answer = self.request(path)
        assert answer.status == 200, answer.body
        return answer.json()

    def post(self, path, body):
        """Changes the device, with the key for that."""
        return self.request(path, body, method="POST", headers={"X-API-Key": self.api_key}, timeout=120)

    def first_number(self, window=None, tries=5):
        """The first number that one inference answers. Asked again when the answer is "not now"."""
        for _ in range(tries):
            answer = self.request("/infer", window or WINDOW)
            if answer.status != 503:
                break
            self.strategy.wait_ready(60)
        assert answer.status == 200, answer.body
        return answer.json()["latent"][0]

    def slots(self):
        """What it says of its slots."""
        return device.status(self.url)

    def boot(self):
        """What it says of this boot: its number, and why it began."""
        return self.page("/status")["boot"]

    def history(self, kind=None):
        """What happened to it, newest first."""
        return self.page("/api/v1/history?limit=512" + (f"&kind={kind}" if kind else ""))["entries"]

    def kept(self):
        """What no fault may change: the answer, the bundle that serves, the floors."""
        page = self.slots()
        return round(self.first_number(), 4), page["serving"]["bundle"], page["floors"]

    def another_boot(self, than, timeout=None):
        """Waits until it has started again after the boot `than`, and is ready; what it says of the new boot."""
        timeout = timeout or self.strategy.boot_timeout
        now = self.until(lambda: (boot := self.boot())["number"] != than["number"] and boot, "another boot", timeout)
        self.strategy.came_back()
        return now


class Load:
    """A client that asks for one inference after the other and keeps what it was answered, and when."""

    def __init__(self, url, pause=0.1):
        self.url, self.pause = url, pause
        self.answers, self.stop = [], threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(2 * REQUEST_TIMEOUT_S)

    def counts(self, since=0.0):
        """How often there was each status ("none": no answer) since this instant."""
        return Counter(what for at, what, *_ in list(self.answers) if at >= since)

    def failures(self, since=0.0):
        """What was neither answered nor refused with 503."""
        return [(what, words) for at, what, words, _ in list(self.answers) if at >= since and what not in (200, 503)]

    def answered_since(self, instant, count=3):
        """Whether the last requests, all sent after this instant, were answered."""
        last = list(self.answers)[-count:]
        return len(last) == count and all(at > instant and what == 200 for at, what, *_ in last)

    def gap(self, since):
        """The seconds from this instant until answers came again for good; 0 when none was missing."""
        answers = [(at, what == 200 and took <= LATE_S) for at, what, _, took in list(self.answers) if at >= since]
        bad = [number for number, (_, good) in enumerate(answers) if not good]
        if not bad:
            return 0.0
        after = answers[bad[-1] + 1 :]
        return (after[0][0] if after else time.monotonic()) - since

    def _run(self):
        while not self.stop.is_set():
            begun = time.monotonic()
            words = b""
            try:
                answer = request(f"{self.url}/infer", WINDOW, timeout=REQUEST_TIMEOUT_S)
                what, words = answer.status, answer.body[:300]
            except (OSError, http.client.HTTPException) as error:
                what, words = "none", str(error).encode()
            self.answers.append((begun, what, b"" if what == 200 else words, time.monotonic() - begun))
            self.stop.wait(self.pause)
