"""QEMU as a labgrid target: power, reset, console, shell, network and the watchdog of a machine that scripts/lib/qemu.py runs."""

import os
import tempfile
import time
from pathlib import Path

import attr
import board as boards
import devkeys
import pexpect
import qemu
from appliance import images, variants
from labgrid.driver import Driver
from labgrid.driver.commandmixin import CommandMixin
from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin
from labgrid.factory import target_factory
from labgrid.protocol import CommandProtocol, ConsoleProtocol, PowerProtocol, ResetProtocol
from labgrid.resource import Resource
from labgrid.step import step

from hil import updates
from hil.protocols import ApplianceProtocol, MachineProtocol


@target_factory.reg_resource
@attr.s(eq=False)
class QemuBoard(Resource):
    """Which board QEMU plays, and on which image.

    Args:
        board (str): a folder of board/; `$INFERD_TEST_BOARD` when empty
        image (str): an image made with `scripts/image --dev`; one is assembled when empty. It is copied, never written to.
    """

    board = attr.ib(default="", validator=attr.validators.instance_of(str))
    image = attr.ib(default="", validator=attr.validators.instance_of(str))


@target_factory.reg_driver
@attr.s(eq=False)
class QemuBoardDriver(
    ConsoleExpectMixin, CommandMixin, Driver, PowerProtocol, ResetProtocol, ConsoleProtocol, CommandProtocol, ApplianceProtocol, MachineProtocol
):
    """Drives one qemu.Machine. Power off is a pulled plug: SIGKILL, and the medium keeps what the guest had written by then."""

    bindings = {"board": QemuBoard}

    txdelay = attr.ib(default=0.0, validator=attr.validators.instance_of(float))
    txchunk = attr.ib(default=1, validator=attr.validators.instance_of(int))

    def __attrs_post_init__(self):
        super().__attrs_post_init__()
        self.machine = self.folder = self.parts = None
        self.read_up_to = 0
        self.expired = 0

    def on_activate(self):
        self.folder = tempfile.TemporaryDirectory(prefix="inferd-hil-")
        board = boards.load(self.get_board())
        medium = Path(self.folder.name) / "medium.img"
        if self.board.image:
            medium.write_bytes(Path(self.target.env.config.resolve_path(self.board.image)).read_bytes())
        else:
            keys = devkeys.ensure(images.inferctl())
            model = variants.make(Path(self.folder.name) / "imu-motion", "1.0.0", deadline_ms=updates.DEADLINE_MS, engines=updates.ENGINES)
            self.parts = Path(self.folder.name) / "parts"
            images.assemble(board, medium, (model,), dev=True, root=keys.root, api_key=keys.api_key, parts=self.parts)
        self.machine = qemu.Machine(board, medium, dev=True, keep_writes=True, restarts=True)

    def on_deactivate(self):
        self.machine.power_off()
        self.machine = None
        self.folder.cleanup()

    # PowerProtocol

    @Driver.check_active
    @step()
    def on(self):
        """Switches it on, unless it is."""
        if not self.powered():
            self.machine.power_on()
            self.read_up_to = 0
            # Connected from the first instant: an event that nobody listens to is lost.
            self.machine.qmp.execute("query-status")

    @Driver.check_active
    @step()
    def off(self):
        """Pulls the plug."""
        if self.powered():
            self.expired += self.machine.watchdog_resets()
            self.machine.cut_power()

    @Driver.check_active
    @step()
    def cycle(self):
        """Pulls the plug and plugs it in again."""
        self.off()
        self.on()

    def powered(self):
        """Whether it has power."""
        return self.machine.process is not None and self.machine.process.poll() is None

    # ResetProtocol

    @Driver.check_active
    @step()
    def reset(self):
        """Presses the reset button."""
        self.machine.reset()
        self.machine.forget_shell()

    # ConsoleProtocol: the log of the serial port. Nobody logs in there.

    def _read(self, size=1, timeout=0.0, max_size=None):
        deadline = time.monotonic() + timeout
        while True:
            machine = self.machine
            if machine and machine.serial.is_file():
                with open(machine.serial, "rb") as log:
                    log.seek(self.read_up_to)
                    got = log.read(max_size or -1)
                if len(got) >= size:
                    self.read_up_to += len(got)
                    return got
            if time.monotonic() >= deadline:
                raise pexpect.TIMEOUT(f"nothing on the console for {timeout:.2f} s")
            time.sleep(0.05)

    def _write(self, data):
        raise NotImplementedError("nobody logs in on the console of this board: the root shell is a port of its own")

    # CommandProtocol: the root shell of a dev image.

    def _run(self, cmd, *, timeout=30.0, codec="utf-8", decodeerrors="strict"):
        status, output = self.machine.root(cmd, timeout)
        return output.splitlines(), [], status

    @Driver.check_active
    @step(args=["cmd"], result=True)
    def run(self, cmd, timeout=30.0):
        """Runs a command as root: (lines, [], status)."""
        return self._run(cmd, timeout=timeout)

    def get_status(self):
        """1 while it has power."""
        return int(self.powered())

    # ApplianceProtocol

    def get_url(self):
        """Where its HTTP endpoint is."""
        return self.machine.url

    def get_board(self):
        """Which board QEMU plays."""
        return self.board.board or os.environ.get("INFERD_TEST_BOARD", "qemu-aarch64")

    def get_parts(self):
        """Of the image that was assembled here."""
        return self.parts

    def restarted(self):
        """The root shell of before is gone."""
        self.machine.forget_shell()

    # MachineProtocol

    def watchdog_resets(self):
        """How often its watchdog has reset it."""
        return self.expired + (self.machine.watchdog_resets() if self.powered() else 0)

    @Driver.check_active
    @step(args=["plugged"])
    def network(self, plugged):
        """Plugs its network cable in, or pulls it."""
        self.machine.network(plugged)

    @Driver.check_active
    @step(args=["bytes_per_second"])
    def throttle_writes(self, bytes_per_second):
        """Makes its medium slow; 0 ends that."""
        self.machine.throttle_writes(bytes_per_second)
