"""A board played by QEMU: power it on, wait until it answers, look inside, pull the plug.

A board whose page names a firmware (U-Boot) starts by it, as hardware does. Elsewhere, and where a test wants another start than the
image's own, the host is the boot loader: kernel, initramfs and command line are read from the image, so what runs is what it holds. Writes of the guest go to a throw-away overlay unless `keep_writes` is asked for.
QEMU dies with the process that started it.
"""

import contextlib
import ctypes
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import cpio
import hosttools
import layout as layouts
import uboot
from steps import Failure, run

GUEST_PORT = 9000
GUEST_TLS_PORT = 9443
# Lines on the console after which waiting makes no sense.
FATAL = ("Kernel panic", "no slot holds a root filesystem", "keeper: safe mode: ", "up without a model")
PR_SET_PDEATHSIG = 1


def free_port():
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port):
    """Whether a server could listen on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def boot_files(image, folder):
    """Copies kernel, initramfs and cmdline.txt out of an image's boot partition, as a boot loader reads them: where slots have one each
    out of the chosen one's (the other one's where that has none), and with its name on the command line. No trial: that is U-Boot's."""
    parts = {part.name: part for part in layouts.read_gpt(image, larger=True)[1]}
    partitions, slot = ["boot"], ""
    if "bootstate" in parts:
        chosen = uboot.read(image, parts["bootstate"].offset)[0].chosen
        partitions = [f"boot-{letter}" for letter in sorted("ab", key=lambda letter: letter != chosen)]
    mcopy = hosttools.Tools(hosttools.IMAGE).path("mcopy")
    names = ("kernel", "initramfs", "cmdline.txt")
    for number, name in enumerate(partitions):
        if name not in parts:
            raise Failure(f"{image} has no partition {name}")
        source = f"{image}@@{parts[name].offset}"
        try:
            run([mcopy, "-n", "-i", source, *[f"::{file}" for file in names], folder], env={"MTOOLS_SKIP_CHECK": "1"})
        except Failure:
            if number == len(partitions) - 1:
                raise
            continue
        slot = f" inferd.slot={name[-1]}" if len(partitions) > 1 else ""
        break
    return folder / "kernel", folder / "initramfs", (folder / "cmdline.txt").read_text().strip() + slot


def replace_init(initramfs, text):
    """Gives an initramfs another /init: later archives overlay earlier ones."""
    archive = cpio.Archive()
    archive.file("init", text.encode(), 0o755)
    with open(initramfs, "ab") as file:
        file.write(bytes(-file.tell() % 512) + archive.bytes())


class Machine:
    """One QEMU process that runs one image."""

    def __init__(
        self, board, image, *, port=None, tls_port=None, dev=False, slot=None, keep_writes=False, write_log=None, sticks=(), kvm=False, cpus=None,
        serial=None, dhcp=True, clock=None, restarts=False, write_speed=None, early=None,
        initramfs=None, cmdline=None, devices=(), sensors=None, direct=False,
    ):
        """`port`: where on this machine's loopback interface the appliance is reached; `tls_port`: and where over TLS.
        `slot`: boot `b` instead of what is chosen, with the same kernel. `direct`: without the board's firmware, as `slot`, `early`,
        `initramfs` and `cmdline` are; a reset then starts the same again, whatever is chosen by then.
        `dhcp=False`: a network without any other machine. `write_log`: a file that gets every write and flush of the
        guest (with `keep_writes`). `sticks`: images of media that are plugged in besides its own. `clock`: what its
        real-time clock says at power-on, such as 1970-01-01T00:00:00. `restarts`: a reset starts it again, as on a board,
        instead of ending QEMU. `write_speed`: bytes per second that its medium takes. `early`: the text of another /init for
        its initramfs. `initramfs`, `cmdline`: used in place of the image's own. `devices`: what else is plugged in, as QEMU names it.
        `sensors`: serial ports of this machine by name; each is at the far side of a serial adapter on USB."""
        self.board, self.image, self.dev, self.slot = board, Path(image), dev, slot
        self.keep_writes, self.write_log, self.sticks = keep_writes, write_log, sticks
        self.kvm, self.cpus, self.dhcp = kvm, cpus or board.qemu.cpus, dhcp
        self.clock, self.restarts, self.write_speed, self.early = clock, restarts, write_speed, early
        self.initramfs, self.cmdline, self.devices, self.sensors = initramfs, cmdline, devices, sensors or {}
        self.direct = direct or any((slot, early, initramfs, cmdline)) or not board.qemu.firmware
        self.port, self.tls_port = port or free_port(), tls_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="inferd-qemu-"))
        self.serial = Path(serial) if serial else self.folder / "serial.log"
        self.process = None
        self.powered_on = None
        self.shell = None
        self.monitor = None

    def __enter__(self):
        try:
            return self.power_on()
        except BaseException:
            self.power_off()
            raise

    def __exit__(self, *_):
        self.power_off()

    def power_on(self):
        """Starts QEMU; returns at once."""
        tools = hosttools.Tools([self.board.qemu.package])
        start = self._direct_start() if self.direct else self._firmware()
        self.serial.parent.mkdir(parents=True, exist_ok=True)
        self.serial.write_bytes(b"")
        command = self._command(tools, start)
        self.powered_on = time.monotonic()
        with open(self.folder / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        return self

    def power_off(self):
        """Pulls the plug (after QEMU has written what it holds) and removes the temporary files."""
        self.forget_shell()
        self._forget_monitor()
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def cut_power(self):
        """Kills QEMU between two instructions: what the guest has not written by now is never written. `power_on` starts it
        again on what the medium holds."""
        self.process.kill()
        self.process.wait()
        self.forget_shell()
        self._forget_monitor()

    @property
    def qmp(self):
        """QEMU's monitor; connected at first use, and tells what happens from then on."""
        if self.monitor is None:
            self.monitor = Monitor(self.folder / "qmp.sock", self._check_alive)
        return self.monitor

    def reset(self):
        """Presses the reset button."""
        self.qmp.execute("system_reset")

    def watchdog_resets(self):
        """How often the hardware watchdog has expired since the monitor was first used."""
        return len(self.qmp.told("WATCHDOG"))

    def resets(self):
        """How often it was reset, by whatever, since the monitor was first used."""
        return len(self.qmp.told("RESET"))

    def network(self, plugged):
        """Plugs the network cable in, or pulls it."""
        self.qmp.execute("set_link", name="net", up=plugged)

    def throttle_writes(self, bytes_per_second):
        """From now on its medium takes so many bytes in a second; 0 is as many as come. Not with `write_log`."""
        limits = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
        self.qmp.execute("block_set_io_throttle", device="disk", bps_wr=bytes_per_second, **limits)

    def seconds(self):
        """Time since power-on."""
        return time.monotonic() - self.powered_on

    def console(self):
        """What the serial console has shown."""
        return self.serial.read_bytes().decode("utf-8", "replace")

    def wait_for_console(self, pattern, timeout):
        """Waits until the console shows a match of `pattern` (a regular expression); returns the match."""
        end = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.console(), re.MULTILINE)
            if match:
                return match
            self._check_alive()
            if time.monotonic() > end:
                raise Failure(f"the console did not show {pattern!r} within {timeout} s", self.serial)
            time.sleep(0.05)

    def wait_ready(self, timeout=180, progress=None):
        """Waits until /readyz says 200. `progress` is told each new reason it is not ready yet."""
        end, told = time.monotonic() + timeout, None
        while True:
            state = readiness(self.url)
            if state == "ready":
                return self.seconds()
            if progress and state != told:
                progress(state)
                told = state
            self._check_alive()
            fatal = self._fatal()
            if fatal:
                raise Failure(f"the appliance does not come up: {fatal}", self.serial)
            if time.monotonic() > end:
                raise Failure(f"the appliance was not ready within {timeout} s; last state: {state}", self.serial)
            time.sleep(0.1)

    def wait_exit(self, timeout):
        """Waits until the machine has switched itself off."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failure(f"the machine did not switch itself off within {timeout} s", self.serial) from None

    def root(self, command, timeout=60):
        """Runs a shell command in the appliance as root (images made with --dev); returns (status, output). Where the monitor is
        used, a reset is noticed: it ends the command in which it comes, and the next one asks for a new shell."""
        resets = self.resets() if self.monitor else 0
        if self.shell and self.shell.resets != resets:
            self.forget_shell()
        if self.shell is None:
            if not self.dev:
                raise Failure("only an image made with --dev has a root shell")
            self.shell = Shell(self.folder / "shell.sock", timeout, resets)
        return self.shell.command(command, timeout, lambda: self.monitor and self.resets() != resets)

    def forget_shell(self):
        """The machine restarts: the root shell of before is gone, the next command asks for a new one."""
        if self.shell:
            self.shell.close()
            self.shell = None

    def _forget_monitor(self):
        if self.monitor:
            self.monitor.close()
            self.monitor = None

    def _fatal(self):
        """The line on the console after which waiting makes no sense. What has passed does not count: safe mode that has ended,
        and where a reset starts the machine again, everything before its last start."""
        console = self.console()
        passed = max(console.rfind("keeper: safe mode ends"), console.rfind("keeper: boot ") if self.restarts else -1)
        lines = [line for line in FATAL if not (self.restarts and line == "Kernel panic")]
        return next((line for line in lines if console.rfind(line) > passed), None)

    def _check_alive(self):
        if self.process.poll() is not None:
            said = (self.folder / "qemu.log").read_text(errors="replace").strip()
            raise Failure(f"QEMU ended with status {self.process.returncode}: {said or 'it said nothing'}", self.serial)

    def _direct_start(self):
        """What starts without firmware, as QEMU is told of it."""
        kernel, initramfs, cmdline = boot_files(self.image, self.folder)
        initramfs, cmdline = self.initramfs or initramfs, self.cmdline or cmdline
        if self.slot:
            cmdline += f" inferd.slot={self.slot}"
        if self.early:
            replace_init(initramfs, self.early)
        return "-kernel", kernel, "-initrd", initramfs, "-append", cmdline

    def _firmware(self):
        """The board's firmware and the flash with its settings, as QEMU is told of them."""
        qemu = self.board.qemu
        flash = self.folder / "flash.img"
        uboot.make_flash(flash)
        program = hosttools.Tools([qemu.firmware_package]).tree / qemu.firmware
        return "-bios", program, "-drive", f"if=pflash,unit=1,format=raw,file={flash},readonly=on"

    def _command(self, tools, start):
        qemu = self.board.qemu
        command = [
            *(tools.path(qemu.program), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-L", tools.tree / "usr/share/qemu", "-L", tools.tree / "usr/share/seabios"),
            *("-machine", qemu.machine, "-smp", self.cpus, "-m", f"{qemu.memory_mib}M"),
            *(("-accel", "kvm", "-cpu", "host") if self.kvm else ("-accel", "tcg,thread=multi", "-cpu", qemu.cpu)),
            *start,
            *("-chardev", f"file,id=serial,path={self.serial}", "-serial", "chardev:serial"),
            *(*self._disk(), "-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", self._network()),
            *("-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"),
            *("-device", "i6300esb", "-action", "watchdog=reset"),
            *("-qmp", f"unix:{self.folder}/qmp.sock,server=on,wait=off"),
        ]
        if not self.restarts:
            command.append("-no-reboot")
        if self.clock:
            command += ["-rtc", f"base={self.clock}"]
        if self.dev:
            shell = f"socket,id=shell,path={self.folder}/shell.sock,server=on,wait=off"
            command += ["-device", "virtio-serial-pci", "-chardev", shell, "-device", "virtconsole,chardev=shell"]
        for device in self.devices:
            command += ["-device", device]
        if self.sensors:
            command += ["-device", "qemu-xhci,id=usb"]
        for name, port in self.sensors.items():
            command += ["-chardev", f"serial,id={name},path={port}", "-device", json.dumps(_adapter(name))]
        for number, stick in enumerate(self.sticks):
            command += ["-drive", f"if=none,id=stick{number},format=raw,file={stick},readonly=on"]
            command += ["-device", f"virtio-blk-pci,drive=stick{number}"]
        return [str(part) for part in command]

    def _network(self):
        """The network: what of it this machine reaches, or a cable without anybody at its other end."""
        if not self.dhcp:
            return "hubport,id=net,hubid=0"
        ways = [(self.port, GUEST_PORT)] + ([(self.tls_port, GUEST_TLS_PORT)] if self.tls_port else [])
        return "user,id=net" + "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in ways)

    def _disk(self):
        """The medium. What the guest has written is in the image file when QEMU is killed, as the host's page cache
        outlives QEMU; so nothing is gained by passing the guest's flushes on to the host's disk."""
        if not self.write_log:
            drive = f"if=none,id=disk,format=raw,file={self.image},cache=unsafe"
            if self.write_speed:
                drive += f",throttling.bps-write={self.write_speed}"
            return ["-drive", drive if self.keep_writes else drive + ",snapshot=on"]
        Path(self.write_log).write_bytes(b"")
        return [
            *("-blockdev", f"driver=file,node-name=file,filename={self.image},cache.no-flush=on"),
            *("-blockdev", "driver=raw,node-name=raw,file=file"),
            *("-blockdev", f"driver=file,node-name=log,filename={self.write_log},cache.no-flush=on"),
            *("-blockdev", "driver=blklogwrites,node-name=disk,file=raw,log=log"),
        ]


class Shell:
    """A root shell on a virtual console, driven over a Unix socket."""

    def __init__(self, path, timeout, resets=0):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.resets = resets
        self.text = ""
        self.count = 0
        end = time.monotonic() + timeout
        # The shell may not have opened its console yet; what is sent before that is lost.
        while not self._sent_and_seen("stty -echo; PS1=; PS2=", 2):
            if time.monotonic() > end:
                raise Failure("the root shell of the appliance does not answer")

    def command(self, command, timeout, gone=lambda: False):
        """Runs one command line; returns (status, output). `gone()`: whether nobody will answer any more."""
        found = self._sent_and_seen(command, timeout, gone)
        if not found and gone():
            raise Failure(f"the appliance was reset before `{command}` ended")
        if not found:
            raise Failure(f"`{command}` did not end within {timeout} s in the appliance; so far: {self.text!r}")
        return found

    def close(self):
        """Leaves the shell alone."""
        self.socket.close()

    def _sent_and_seen(self, command, timeout, gone=lambda: False):
        self.count += 1
        mark = f"done-{self.count}"
        # The quotes keep the echo of this line from looking like its result.
        self.socket.sendall(f'{command}\necho "<""{mark}:$?>"\n'.encode())
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            over = gone()
            found = re.search(rf"(.*?)<{mark}:(\d+)>\n", self.text, re.DOTALL)
            if found:
                self.text = self.text[found.end() :]
                # What a command before this one still said after its time is no answer to this one.
                return int(found[2]), re.sub(r"(?s).*<done-\d+:\d+>\n", "", found[1])
            if select.select([self.socket], [], [], 0 if over else 0.2)[0]:
                got = self.socket.recv(65536)
                if not got:
                    raise Failure("the appliance closed its root shell")
                self.text += got.decode("utf-8", "replace").replace("\r", "")
            elif over:
                break
        return None


class Monitor:
    """QEMU's monitor (QMP): commands to the machine, and the events it tells."""

    def __init__(self, path, check_alive=lambda: None):
        self.socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 30
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError as error:
                check_alive()
                if time.monotonic() > end:
                    raise Failure(f"QEMU's monitor does not listen: {error}") from None
                time.sleep(0.02)
        self.changed = threading.Condition()
        self.events, self.answers, self.count, self.ended = [], {}, 0, False
        threading.Thread(target=self._listen, daemon=True).start()
        self.execute("qmp_capabilities")

    def execute(self, command, timeout=30, **arguments):
        """Runs a command; returns what QEMU answers."""
        with self.changed:
            self.count += 1
            number = self.count
            page = {"execute": command, "arguments": arguments, "id": number}
            self.socket.sendall(json.dumps(page).encode() + b"\n")
            if not self.changed.wait_for(lambda: number in self.answers or self.ended, timeout) or number not in self.answers:
                raise Failure(f"QEMU did not answer {command}")
            answer = self.answers.pop(number)
        if "error" in answer:
            raise Failure(f"QEMU refuses {command}: {answer['error'].get('desc')}")
        return answer["return"]

    def told(self, event):
        """The events of this name so far: each with `at`, this machine's monotonic clock when it came."""
        with self.changed:
            return [page for page in self.events if page["event"] == event]

    def wait_for(self, event, count, timeout):
        """Waits until there were so many events of this name; the last of them."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.told(event)) >= count or self.ended, timeout) or len(self.told(event)) < count:
                raise Failure(f"no {event} number {count} within {timeout} s; there were: {[page['event'] for page in self.events]}")
            return self.told(event)[count - 1]

    def close(self):
        """Listens no longer."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _listen(self):
        with contextlib.suppress(OSError, ValueError), self.socket.makefile("rb") as lines:
            for line in lines:
                page = json.loads(line)
                with self.changed:
                    if "event" in page:
                        self.events.append({**page, "at": time.monotonic()})
                    elif "id" in page:
                        self.answers[page["id"]] = page
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()


def _adapter(sensor):
    """A serial adapter on USB, as QEMU is told of one."""
    return {"driver": "usb-serial", "bus": "usb.0", "id": f"adapter-{sensor}", "chardev": sensor}


def readiness(url):
    """"ready", or why not: the reason a server gives, or that none answers."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return "ready" if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        try:
            page = json.loads(error.read(65536))
            # How long it has been so ("loading the model, for 0.4 s") would make every look a new state.
            return re.sub(r",? for [\d.]+ m?s$", "", str(page.get("reason") or page.get("phase") or page))
        except (ValueError, OSError, AttributeError, http.client.HTTPException):
            return f"status {error.code}"
    except (OSError, http.client.HTTPException):
        return "no answer yet"


def kvm_works(board, image):
    """Whether KVM really runs this image's kernel here: /dev/kvm may exist and still kill every guest. Boots the kernel
    with a one-line init and waits at most ten seconds for that line."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    tools = hosttools.Tools([board.qemu.package])
    with tempfile.TemporaryDirectory(prefix="inferd-kvm-") as name:
        folder = Path(name)
        kernel, initramfs, cmdline = boot_files(image, folder)
        replace_init(initramfs, "#!/bin/sh\necho INFERD-KVM-WORKS\nsleep 60\n")
        command = [tools.path(board.qemu.program), "-nodefaults", "-display", "none", "-machine", board.qemu.machine]
        command += ["-accel", "kvm", "-cpu", "host", "-m", "256M", "-kernel", kernel, "-initrd", initramfs]
        command += ["-append", cmdline, "-L", tools.tree / "usr/share/qemu", "-L", tools.tree / "usr/share/seabios"]
        command += ["-serial", f"file:{folder}/serial"]
        with subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        ) as process:
            end = time.monotonic() + 10
            seen = False
            while not seen and time.monotonic() < end and process.poll() is None:
                time.sleep(0.1)
                serial = folder / "serial"
                seen = serial.is_file() and b"INFERD-KVM-WORKS" in serial.read_bytes()
            process.kill()
        return seen


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
