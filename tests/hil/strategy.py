"""How a target gets from one state to another.

```text
              on, ready                push                  decided
   off ─────────────────► booted ────────────► updating ────────────► booted
    ▲                       │  ▲                  │
    │ nothing on trial, off │  │ on, ready        │ power goes
    └───────────────────────┘  └───────── cut ◄───┴───── (also from booted)
```

`unknown` (the beginning, and after a transition that failed) leads everywhere by way of a power cycle. `cut` takes power away
in the middle of what the board does; `off` waits until nothing is on trial.
"""

import contextlib
import enum
import http.client
import re
import threading
import time
from pathlib import Path

import attr
import pexpect
import qemu
from appliance import device
from labgrid.binding import BindingState
from labgrid.factory import target_factory
from labgrid.protocol import ConsoleProtocol, PowerProtocol
from labgrid.step import step
from labgrid.strategy import Strategy, StrategyError

from hil.protocols import ApplianceProtocol


class Status(enum.Enum):
    """The states."""

    unknown = 0
    off = 1
    booted = 2
    updating = 3
    cut = 4


class Recorder:
    """Reads a console all the time: a serial port that nobody reads forgets."""

    def __init__(self, console):
        self.console, self.parts = console, []
        threading.Thread(target=self._read, daemon=True).start()

    def text(self):
        """All that was read so far."""
        return b"".join(self.parts).decode("utf-8", "replace")

    def _read(self):
        while self.console.state is BindingState.active:
            # Not `read`: that is a labgrid step, and those are of one thread only.
            with contextlib.suppress(pexpect.TIMEOUT):
                if got := self.console._read(size=1, timeout=0.2, max_size=1 << 16):
                    self.parts.append(got)
                else:
                    time.sleep(0.2)


@target_factory.reg_driver
@attr.s(eq=False)
class InferdStrategy(Strategy):
    """Brings an appliance into a state.

    Args:
        boot_timeout (float): seconds from power-on until it is ready, at most
        settle_timeout (float): seconds until a trial has been decided, at most
        image (str): a file of `images` in the target file that `flash` writes through the rig's SD multiplexer
    """

    bindings = {
        "power": PowerProtocol,
        "console": ConsoleProtocol,
        "appliance": ApplianceProtocol,
        "mux": {"USBSDMuxDriver", "USBSDWireDriver", None},
        "storage": {"USBStorageDriver", None},
    }

    boot_timeout = attr.ib(default=240.0, validator=attr.validators.instance_of(float))
    settle_timeout = attr.ib(default=240.0, validator=attr.validators.instance_of(float))
    image = attr.ib(default="", validator=attr.validators.instance_of(str))
    status = attr.ib(default=Status.unknown)

    def __attrs_post_init__(self):
        super().__attrs_post_init__()
        self.recorder = None
        # What `updating` pushes: a bundle's file, the id it will have, and the key that lets it in.
        self.update = None
        # The gate that has passed when `updating` is reached.
        self.until = "keys"
        # How long it last took from power to an answer.
        self.boot_s = None

    @property
    def url(self):
        """Where its HTTP endpoint is."""
        return self.appliance.get_url()

    @step(args=["status"])
    def transition(self, status):
        """Brings the target into a state; in one that failed it is `unknown`."""
        status = status if isinstance(status, Status) else Status[status]
        if status == self.status and status != Status.updating:
            return
        before, self.status = self.status, Status.unknown
        ways = {Status.off: self._off, Status.booted: self._boot, Status.updating: self._begin_update, Status.cut: self._cut}
        if status not in ways:
            raise StrategyError(f"nobody can be sent into the state {status.name}")
        self._connect()
        ways[status](before)
        self.status = status

    def force(self, status):
        """Believes that the target is in this state."""
        self._connect()
        self.status = status if isinstance(status, Status) else Status[status]

    @step(args=["image", "provision"])
    def flash(self, image=None, provision=None):
        """Writes an image (default: that of the target file) to the card, through the SD multiplexer, and the configuration `provision`
        onto it. Leaves the board off."""
        if not (self.mux and self.storage):
            raise StrategyError("flashing needs an SD multiplexer and its storage driver in the target file")
        if not (image or self.image):
            raise StrategyError("there is nothing to write: neither an image was named, nor has the target file one")
        image = image or self.target.env.config.get_image_path(self.image)
        # Before anything is switched.
        if missing := [str(file) for file in (image, provision) if file and not Path(file).is_file()]:
            raise StrategyError(f"there is no {' and no '.join(missing)}")
        # Nobody listens to the board here, and nobody asks it: its console and its address may still be unknown.
        self.target.activate(self.power)
        self.status = Status.unknown
        self.power.off()
        self.target.activate(self.mux)
        self.mux.set_mode("host")
        self.target.activate(self.storage)
        self.storage.write_image(str(image), provision=str(provision) if provision else None)
        self.target.deactivate(self.storage)
        self.mux.set_mode("dut")
        self.status = Status.off

    def console_text(self):
        """What its console has shown since these tests listen."""
        return self.recorder.text() if self.recorder else ""

    def wait_for_console(self, pattern, since=0, timeout=60):
        """Waits until the console has shown this regular expression after so many characters."""
        end = time.monotonic() + timeout
        while not (found := re.compile(pattern, re.MULTILINE).search(self.console_text(), since)):
            if time.monotonic() > end:
                raise StrategyError(f"the console did not show {pattern!r} within {timeout} s")
            time.sleep(0.05)
        return found

    def wait_ready(self, timeout=None):
        """Waits until /readyz says 200."""
        end, state = time.monotonic() + (timeout or self.boot_timeout), ""
        while (state := qemu.readiness(self.url)) != "ready":
            if time.monotonic() > end:
                raise StrategyError(f"it was not ready in time; last state: {state}")
            time.sleep(0.1)

    def wait_gone(self, timeout=120):
        """Waits until it does not answer."""
        end = time.monotonic() + timeout
        while qemu.readiness(self.url) != "no answer yet":
            if time.monotonic() > end:
                raise StrategyError("it still answers")
            time.sleep(0.05)

    def came_back(self):
        """It has started again by itself: waits until it is ready."""
        self.appliance.restarted()
        self.wait_ready()

    def settled(self):
        """Waits until nothing is on trial and what is staged was decided; what it says of its slots then."""
        end = time.monotonic() + self.settle_timeout
        while True:
            page = None
            with contextlib.suppress(OSError, http.client.HTTPException):
                page = device.status(self.url)
            if page and page["trial"] is None and page["install"] is None:
                if all(slot["status"] not in ("staged", "trial") for slot in page["slots"]):
                    return page
            if time.monotonic() > end:
                raise StrategyError(f"the trial does not end: {page}")
            time.sleep(0.2)

    def _connect(self):
        self.target.activate(self.power)
        self.target.activate(self.appliance)
        self.target.activate(self.console)
        if self.recorder is None:
            self.recorder = Recorder(self.console)

    def _off(self, before):
        if before in (Status.booted, Status.updating):
            self.settled()
        self.power.off()

    def _boot(self, before):
        if before == Status.updating:
            self.settled()
        elif before in (Status.off, Status.cut):
            self.power.on()
            self._came_up()
        else:
            self.power.cycle()
            self._came_up()

    def _came_up(self):
        begin = time.monotonic()
        self.came_back()
        self.boot_s = time.monotonic() - begin

    def _begin_update(self, before):
        if self.update is None:
            raise StrategyError("there is nothing to update to: set `update`")
        if before != Status.booted:
            self._boot(before)
        file, bundle, api_key = self.update
        watch = device.Watch(self.url)
        connection = device.connect(self.url, 300)

        def push():
            # The answer comes when it serves, or is refused, or never when power goes.
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("PUT", "/api/v1/bundle", file.read_bytes(), {"X-API-Key": api_key})
                connection.getresponse().read()

        threading.Thread(target=push, daemon=True).start()
        try:
            if not watch.wait(lambda: watch.has(self.until, bundle, "pass") or watch.has(None, bundle, "refuse"), self.settle_timeout):
                raise StrategyError(f"the gate {self.until} has not judged the bundle: {watch.verdicts}")
            if refused := [v for v in watch.verdicts if v["bundle"] == bundle and v["outcome"] == "refuse"]:
                raise StrategyError(f"the bundle was refused: {refused[0]['sentence']}")
        finally:
            watch.close()

    def _cut(self, before):
        if before not in (Status.booted, Status.updating):
            raise StrategyError(f"there is nothing to cut in the state {before.name}")
        self.power.off()
