"""`inferd system` on this machine: files for partitions, a boot loader of a few lines, and a keeper that takes its orders.

What the kernel and U-Boot do on a board is not here; every byte of the partitions and of U-Boot's records is.
"""

import contextlib
import fcntl
import itertools
import json
import os
import struct
import subprocess
import zlib

import places
import pytest
import qemu
from faults.keeper import Keeper
from helpers import inferd_program, until
from office import Office

PART = 256 << 10
PLACES = (0, 4096)
PARTITIONS = ("boot", "boot-a", "boot-b", "bootstate", "rootfs-a", "rootfs-b")


class Board:
    """A board with U-Boot: its root directory, its partitions, its keeper."""

    def __init__(self, folder, office):
        self.folder, self.office = folder, office
        self.root = folder / "board"
        self.data = folder / "data"
        for directory in ("etc/inferd", "proc", "run/inferd/daemon", "sys/class/block", "dev"):
            (self.root / directory).mkdir(parents=True)
        self.data.mkdir()
        (self.root / "etc/inferd/board.toml").write_text('name = "qemu-aarch64"\n[boot]\nbackend = "uboot-env"\n')
        for number, name in enumerate(PARTITIONS, 1):
            (self.root / f"sys/class/block/vda{number}").mkdir()
            uevent = f"DEVNAME=vda{number}\nDEVTYPE=partition\nPARTN={number}\nPARTNAME={name}\n"
            (self.root / f"sys/class/block/vda{number}/uevent").write_text(uevent)
            self.partition(name).write_bytes(bytes(PART))
        config = f'[updates]\nrun_dir = "{self.root}/run/inferd/daemon"\ndata_dir = "{folder}/inferd"\nroot = ["{office.root}"]\n'
        (folder / "system.toml").write_text(config)
        self.keeper = Keeper(folder / "keeper")
        self.boots = 0
        self.start("power")

    def partition(self, name):
        return self.root / f"dev/vda{PARTITIONS.index(name) + 1}"

    def record(self):
        """What U-Boot's two records say, and the place of the next one."""
        found = []
        for place in PLACES:
            sector = self.partition("bootstate").read_bytes()[place : place + 512]
            if struct.unpack("<I", sector[:4])[0] == zlib.crc32(sector[4:]):
                found.append((dict(pair.split("=") for pair in sector[4:].split(b"\0\0")[0].decode().split("\0")), place))
        if not found:
            return {"chosen": "a", "generation": "0"}, PLACES[0]
        newest, place = max(found, key=lambda one: int(one[0]["generation"]))
        return newest, PLACES[1 - PLACES.index(place)]

    def start(self, reason):
        """The board starts, as U-Boot's script starts it; `reason`: why. The slot."""
        record, place = self.record()
        slot, words = record["chosen"], ""
        if "try" in record:
            slot, words = record.pop("try"), " inferd.try=1"
            record["generation"] = str(int(record["generation"]) + 1)
            text = b"".join(f"{key}={value}\0".encode() for key, value in record.items()).ljust(508, b"\0")
            bootstate = bytearray(self.partition("bootstate").read_bytes())
            bootstate[place : place + 512] = struct.pack("<I", zlib.crc32(text)) + text
            self.partition("bootstate").write_bytes(bootstate)
        (self.root / "proc/cmdline").write_text(f"console=ttyAMA0 inferd.slot={slot}{words}\n")
        (self.root / "run/inferd/slot").write_text(f"{slot}\n")
        self.boots += 1
        self.known(reason)
        self.keeper.orders.clear()
        (self.keeper.folder / "system-trial").unlink(missing_ok=True)
        return slot

    def known(self, reason="request", **changes):
        self.keeper.state(boot=self.boots, reset={"reason": reason, "sentence": ""}, **changes)

    def command(self, *verb):
        if verb == ("watch",):
            verb = ("watch", "--hold", "1")
        where = ["--config", self.folder / "system.toml", "--folder", self.data, "--run", self.keeper.folder, "--root", self.root]
        return [str(part) for part in (inferd_program(), "system", *where, *verb)]

    def run(self, *verb):
        return subprocess.run(self.command(*verb), capture_output=True, text=True, timeout=120)

    def ok(self, *verb):
        done = self.run(*verb)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def no(self, code, *verb):
        done = self.run(*verb)
        assert done.returncode == 1 and f"({code})" in done.stderr, done.stderr

    def status(self):
        return json.loads(self.ok("status"))

    def restarts(self):
        return [order["why"] for order in self.keeper.orders if order["ask"] == "reboot"]

    def tries(self, daemon):
        """From a system with this daemon another one is tried, which has started; what the daemon said of what serves."""
        told = self.root / "run/inferd/daemon"
        until((told / "serves").exists, daemon)
        serves = json.loads((told / "serves").read_text())
        self.ok("install", self.bundle(2))
        self.ok("try")
        daemon.stop()
        assert self.start("request") == "b"
        for file in told.iterdir():
            file.unlink()
        return serves

    def gives_up(self, daemon):
        """The system on trial, whose daemon this is, is not ready in its time: the old one comes back and says so."""
        self.ok("watch", "--hold", "1", "--grace", "1")
        assert self.record()[0]["chosen"] == "a" and len(self.restarts()) == 1
        daemon.stop()
        assert self.start("request") == "a"
        self.ok("watch")
        assert self.status()["state"]["verdicts"][-1]["code"] == "not-ready"

    def says(self, *reasons, age_ms=0, pid=1):
        """What a daemon says of itself."""
        with open("/proc/uptime") as uptime:
            now = int(float(uptime.read().split()[0]) * 1000) - age_ms
        file = self.root / "run/inferd/daemon/commit-ready"
        file.with_suffix(".new").write_text(json.dumps({"uptime_ms": now, "pid": pid, "reasons": reasons}))
        file.with_suffix(".new").replace(file)

    def bundle(self, version, *options, key="system", board="qemu-aarch64"):
        rootfs, boot = self.folder / f"rootfs-{version}", self.folder / f"boot-{version}"
        rootfs.write_bytes(f"rootfs {version} ".encode() * 9000)
        boot.write_bytes(f"boot {version} ".encode() * 4000)
        output = self.folder / f"os-{version}-{key}-{board}.imb"
        return self.office.system(output, board, version, {"rootfs": rootfs, "boot": boot}, *options, key=key)

    def holds(self, slot, version):
        pairs = ((f"rootfs-{slot}", f"rootfs-{version}"), (f"boot-{slot}", f"boot-{version}"))
        return all(self.partition(part).read_bytes().startswith((self.folder / file).read_bytes()) for part, file in pairs)


@pytest.fixture
def board(inferctl, tmp_path):
    board = Board(tmp_path, Office(inferctl.program, tmp_path / "office"))
    yield board
    board.keeper.close()


def watched(board, **kept):
    """Runs `watch` on the system that is tried while a daemon says that it is ready."""
    watch = subprocess.Popen(board.command("watch"), stderr=subprocess.PIPE, text=True)
    try:
        while watch.poll() is None:
            board.says(**kept)
            try:
                watch.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        assert watch.returncode == 0, watch.stderr.read()
    finally:
        watch.kill()
        watch.wait()


def test_a_system_is_installed_tried_and_committed(board):
    assert board.status()["system"] == {"backend": "uboot-env", "runs": "a", "image": None, "on_trial": False, "chosen": "a", "refused": None}
    board.ok("install", board.bundle(2))
    assert board.holds("b", 2) and board.status()["state"]["phase"] == "staged"
    assert board.record()[0]["chosen"] == "a" and "try" not in board.record()[0], "nothing is tried unasked"
    board.ok("try")
    assert board.restarts() == ["a new system is tried"]
    assert board.start("request") == "b"
    watched(board)
    assert board.record()[0]["chosen"] == "b" and board.restarts() == []
    status = board.status()
    assert (status["state"]["phase"], status["state"]["floors"]) == ("idle", {"inferd-os": 2})
    assert status["state"]["verdicts"][-1]["outcome"] == "committed"
    assert board.start("power") == "b"
    board.ok("watch")
    board.no("older-version", "install", board.bundle(1))


def test_what_is_unsigned_or_for_another_board_is_refused_and_nothing_is_written(board):
    before = [board.partition(name).read_bytes() for name in PARTITIONS]
    board.no("wrong-role", "install", board.bundle(2, key="models"))
    board.no("wrong-board", "install", board.bundle(2, board="rpi4"))
    board.no("nothing-staged", "try")
    assert [board.partition(name).read_bytes() for name in PARTITIONS] == before and board.restarts() == []


def test_a_board_that_was_flashed_takes_neither_an_older_system_nor_another_product_nor_other_content(board):
    board.bundle(5)
    for part in ("rootfs", "boot"):
        content = (board.folder / f"{part}-5").read_bytes()
        board.partition(f"{part}-a").write_bytes(content.ljust(PART, b"\0"))
    (board.root / "etc/os-release").write_text("ID=inferd\nIMAGE_ID=inferd-os\nIMAGE_VERSION=5\n")
    assert board.status()["system"]["image"] == {"product": "inferd-os", "version": 5} and board.status()["state"]["floors"] == {}
    before = [board.partition(name).read_bytes() for name in PARTITIONS]
    board.no("older-version", "install", board.bundle(4))
    board.no("other-product", "install", board.bundle(6, "--product", "other"))
    (board.folder / "rootfs-5").write_bytes(b"another system of this version" * 3000)
    other = board.office.system(board.folder / "x.imb", "qemu-aarch64", 5, {part: board.folder / f"{part}-5" for part in ("rootfs", "boot")})
    board.no("same-version", "install", other)
    assert [board.partition(name).read_bytes() for name in PARTITIONS] == before
    board.ok("install", board.bundle(5))
    board.ok("install", board.bundle(7))


def test_a_system_that_was_changed_after_its_install_is_not_tried(board):
    board.ok("install", board.bundle(2))
    rootfs = bytearray(board.partition("rootfs-b").read_bytes())
    rootfs[50_000] ^= 1
    board.partition("rootfs-b").write_bytes(rootfs)
    board.no("read-back-differs", "try")
    assert "try" not in board.record()[0] and board.restarts() == []


def test_a_power_cut_during_a_trial_is_no_failure_and_a_watchdog_is_one_the_second_time(board):
    board.ok("install", board.bundle(2))
    board.ok("try")
    for reason in ("power", "watchdog", "power", "watchdog"):
        assert board.restarts(), f"before the {reason}"
        assert board.start("request") == "b", "it is tried"
        assert board.start(reason) == "a", "and the old system is back"
        board.ok("watch")
    assert board.restarts() == [], "it is not tried any more"
    verdicts = [(verdict["outcome"], verdict["code"]) for verdict in board.status()["state"]["verdicts"]]
    assert verdicts[-1] == ("returned", "watchdog-reset") and ("interrupted", "trial-interrupted") in verdicts
    assert len(verdicts) == 4 and board.status()["state"]["floors"] == {}


def test_a_system_in_safe_mode_does_not_stay_and_says_why(board):
    board.ok("install", board.bundle(2))
    board.ok("try")
    board.start("request")
    board.known(safe_mode="the daemon ended 3 times")
    board.says()
    board.ok("watch")
    assert len(board.restarts()) == 1 and board.record()[0]["chosen"] == "a"
    assert board.start("request") == "a"
    board.ok("watch")
    verdict = board.status()["state"]["verdicts"][-1]
    assert verdict["outcome"] == "returned" and verdict["code"] == "safe-mode" and "ended 3 times" in verdict["sentence"]
    assert board.restarts() == []


def test_a_daemon_that_is_not_ready_or_says_nothing_new_keeps_its_system_from_being_committed(board):
    board.ok("install", board.bundle(2))
    board.ok("try")
    for reasons, age_ms, why in ((["model x does not serve"], 0, "model x does not serve"), ([], 60_000, "has said nothing for")):
        assert board.start("request") == "b"
        board.says(*reasons, age_ms=age_ms)
        board.ok("watch", "--hold", "1", "--grace", "1")
        assert board.record()[0]["chosen"] == "a" and len(board.restarts()) == 1
        assert board.start("request") == "a"
        board.ok("watch")
        verdict = board.status()["state"]["verdicts"][-1]
        assert verdict["code"] == "not-ready" and why in verdict["sentence"]
        board.ok("install", board.bundle(2))
        board.ok("try")


def test_a_daemon_that_falls_silent_before_its_time_is_over_keeps_its_system_from_being_committed(board):
    board.ok("install", board.bundle(2))
    board.ok("try")
    board.start("request")
    # Its last word: that counts for 10 s, and the time that it is to hold is shorter.
    board.says()
    board.ok("watch", "--hold", "4", "--grace", "2")
    assert board.record()[0]["chosen"] == "a" and len(board.restarts()) == 1
    assert board.status()["state"]["gave_up"]["code"] == "not-ready"


def test_a_daemon_that_is_another_one_at_every_look_keeps_its_system_from_being_committed(board):
    board.ok("install", board.bundle(2))
    board.ok("try")
    board.start("request")
    watch = subprocess.Popen(board.command("watch", "--hold", "1", "--grace", "2"), stderr=subprocess.PIPE, text=True)
    for pid in itertools.count(1):
        # What is said counts for 10 s: this is old news before the next look, so none is seen twice.
        board.says(pid=pid, age_ms=9_300)
        with contextlib.suppress(subprocess.TimeoutExpired):
            watch.wait(0.05)
            break
    assert watch.returncode == 0, watch.stderr.read()
    assert board.record()[0]["chosen"] == "a" and len(board.restarts()) == 1
    assert board.status()["state"]["gave_up"]["code"] == "not-ready"


def test_a_system_is_not_given_up_while_a_models_trial_is_all_that_is_against_it(board):
    board.ok("install", board.bundle(2))
    board.ok("try")
    board.start("request")
    board.says("slot B is on trial")
    watch = subprocess.Popen(board.command("watch", "--hold", "1", "--grace", "1"), stderr=subprocess.PIPE, text=True)
    # What is said counts for 10 s.
    for _ in range(6):
        board.says("slot B is on trial")
        with pytest.raises(subprocess.TimeoutExpired):
            watch.wait(1)
    board.says("model x does not serve")
    assert watch.wait(120) == 0 and "model x does not serve" in watch.stderr.read()
    assert board.status()["state"]["gave_up"]["code"] == "not-ready"


def test_every_try_is_held_against_what_served_before_the_first_and_none_against_what_is_older(board):
    """The daemon's directory does not outlive a reset, and the board is restarted for another try before the daemon has said anything."""
    told, mark = board.root / "run/inferd/daemon/serves", board.keeper.folder / "system-trial"
    serves = {"models": {"imu-motion": {"rung": "hailo"}}, "failed": ["/models/other"]}
    told.write_text(json.dumps(serves))
    board.ok("install", board.bundle(2))
    board.ok("try")
    told.unlink()

    def held_against():
        assert board.start("request") == "b"
        watch = subprocess.Popen(board.command("watch"))
        try:
            until(mark.exists, "it is on trial")
            return json.loads(mark.read_text())
        finally:
            watch.kill()
            watch.wait()

    for _ in range(2):
        assert held_against() == serves
        assert board.start("power") == "a"
        board.ok("watch")
        assert len(board.restarts()) == 1, "it is tried again"
    assert board.start("request") == "b"
    board.says("model x does not serve")
    board.ok("watch", "--hold", "1", "--grace", "1")
    assert board.start("request") == "a"
    board.ok("watch")
    # Nobody said what serves before this one.
    board.ok("install", board.bundle(3))
    board.ok("try")
    assert held_against() == {"models": {}, "failed": []}


def test_a_try_that_nobody_restarts_the_board_for_is_taken_back(board):
    board.ok("install", board.bundle(2))
    board.keeper.answers = {"answer": "refused", "why": "no"}
    board.no("no-keeper", "try")
    assert "try" not in board.record()[0] and board.status()["state"]["phase"] == "staged"


def test_a_system_that_is_tried_unasked_or_without_its_own_root_filesystem_does_not_stay(board):
    board.ok("install", board.bundle(2))
    (board.root / "proc/cmdline").write_text("inferd.slot=b inferd.try=1\n")
    (board.root / "run/inferd/slot").write_text("b\n")
    board.no("no-trial", "watch")
    assert len(board.restarts()) == 1
    board.start("request")
    board.ok("try")
    board.start("request")
    (board.root / "run/inferd/slot").write_text("a\n")
    board.ok("watch")
    assert len(board.restarts()) == 1
    assert board.start("request") == "a"
    board.ok("watch")
    assert board.status()["state"]["verdicts"][-1]["code"] == "no-rootfs" and board.restarts() == []


def test_only_one_changes_systems_at_a_time(board):
    holder = os.open(board.data, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    board.no("busy", "install", board.bundle(2))
    os.close(holder)
    board.ok("install", board.bundle(2))


SECOND = [places.ROOT / "tests/models/refused-int8-conv"]
NUMBERS = {"a": PARTITIONS.index("boot-a") + 1, "b": PARTITIONS.index("boot-b") + 1}


def autoboot(chosen):
    """autoboot.txt as an image has it."""
    other = "b" if chosen == "a" else "a"
    text = f"[all]\ntryboot_a_b=1\nboot_partition={NUMBERS[chosen]}\n[tryboot]\nboot_partition={NUMBERS[other]}\n"
    return text.encode().ljust(512, b"\n")


class Pi(Board):
    """A Raspberry Pi: autoboot.txt on a FAT12 of four sectors, and firmware of a few lines."""

    AT = 3 * 512

    def __init__(self, folder, office):
        super().__init__(folder, office)
        (self.root / "etc/inferd/board.toml").write_text(
            'name = "rpi4"\n[boot]\nbackend = "rpi-tryboot"\n[firmware]\nfloor = "2025-08-20"\n'
        )
        head = b"\xeb\x3c\x90inferd  " + struct.pack("<HBHBHHBHHHII", 512, 1, 1, 1, 16, 64, 0xF8, 1, 1, 1, 0, 0)
        entry = b"AUTOBOOTTXT\x20" + bytes(14) + struct.pack("<HI", 2, 512)
        fat = head.ljust(510, b"\0") + b"\x55\xaa" + b"\xf8\xff\xff\xff\x0f".ljust(512, b"\0") + entry.ljust(512, b"\0") + autoboot("a")
        self.partition("boot").write_bytes(fat.ljust(PART, b"\0"))
        self.passes_on("rpi_firmware_notify_reboot")
        self.restarted()

    def passes_on(self, function):
        """A kernel with this function."""
        (self.root / "proc/kallsyms").write_text(f"0000000000000000 t {function}\n")

    def chosen(self):
        """What autoboot.txt chooses."""
        sector = self.partition("boot").read_bytes()[self.AT : self.AT + 512]
        return next(slot for slot in "ab" if sector == autoboot(slot))

    def restarted(self, reason="request", built=1_800_000_000):
        """The board restarts as it was last asked to; the slot."""
        orders = [order for order in self.keeper.orders if order["ask"] == "reboot"]
        tried = bool(orders) and orders[-1].get("argument") == "0 tryboot"
        slot = "ab"[(self.chosen() == "a") == tried]
        says = self.root / "proc/device-tree/chosen/bootloader"
        says.mkdir(parents=True, exist_ok=True)
        for name, value in {"partition": NUMBERS[slot], "tryboot": int(tried), "build-timestamp": built}.items():
            (says / name).write_bytes(struct.pack(">I", value))
        self.start(reason)
        (self.root / "proc/cmdline").write_text(f"console=ttyS1 inferd.slot={slot}\n")
        (self.root / "run/inferd/slot").write_text(f"{slot}\n")
        return slot


@pytest.fixture
def pi(inferctl, tmp_path):
    pi = Pi(tmp_path, Office(inferctl.program, tmp_path / "office"))
    yield pi
    pi.keeper.close()


def test_a_pis_system_is_tried_by_what_the_restart_says_and_committed_in_autoboot_txt(pi):
    pi.ok("install", pi.bundle(2, board="rpi4"))
    assert pi.holds("b", 2) and pi.restarted() == "a", "nothing is tried unasked"
    pi.ok("try")
    orders = [order for order in pi.keeper.orders if order["ask"] == "reboot"]
    assert orders == [{"ask": "reboot", "why": "a new system is tried", "argument": "0 tryboot"}]
    assert pi.restarted() == "b" and pi.chosen() == "a"
    watched(pi)
    assert pi.chosen() == "b" and pi.restarts() == []
    assert pi.status()["state"]["verdicts"][-1]["outcome"] == "committed" and pi.restarted("power") == "b"


def test_a_pis_system_that_does_not_stay_leaves_autoboot_txt_alone(pi):
    whole = pi.partition("boot").read_bytes()
    pi.ok("install", pi.bundle(2, board="rpi4"))
    pi.ok("try")
    assert pi.restarted() == "b"
    (pi.root / "run/inferd/slot").write_text("a\n")
    pi.ok("watch")
    assert len(pi.restarts()) == 1 and "argument" not in pi.keeper.orders[-1]
    assert pi.restarted() == "a"
    pi.ok("watch")
    assert pi.status()["state"]["verdicts"][-1]["code"] == "no-rootfs" and pi.restarts() == []
    assert pi.partition("boot").read_bytes() == whole


def test_a_pi_takes_no_system_that_its_kernel_or_its_bootloader_could_not_try(pi):
    before = [pi.partition(name).read_bytes() for name in PARTITIONS]
    pi.passes_on("rpi_firmware_get")
    pi.no("boot-backend", "install", pi.bundle(2, board="rpi4"))
    pi.passes_on("rpi_firmware_notify_reboot")
    pi.restarted(built=1_700_000_000)
    pi.no("firmware-too-old", "install", pi.bundle(2, board="rpi4"))
    assert [pi.partition(name).read_bytes() for name in PARTITIONS] == before


def test_a_daemon_is_ready_to_be_committed_only_while_it_says_so(board, native):
    """The daemon's own word, while a trial is on: while it starts there are reasons, afterwards none."""
    board.ok("install", board.bundle(2))
    board.ok("try")
    board.start("request")
    file = board.root / "run/inferd/daemon/commit-ready"
    config = (board.folder / "system.toml").read_text()
    daemon = native(config=config, env=board.keeper.env)
    (board.keeper.folder / "system-trial").touch()
    until(lambda: file.exists() and json.loads(file.read_text())["reasons"] == [], daemon)
    board.ok("watch")
    assert board.record()[0]["chosen"] == "b"


def test_a_second_model_that_fails_on_the_new_system_keeps_it_from_being_committed_unless_it_failed_before(board, native):
    """The default model serves all the while; the other one does not reproduce its golden vectors."""
    options = {"config": (board.folder / "system.toml").read_text(), "env": board.keeper.env}
    refused = "model refused-int8-conv: "

    def on_trial():
        (board.keeper.folder / "system-trial").touch()
        new = native(models=[*SECOND, places.DEFAULT_MODEL], **options)
        until((board.root / "run/inferd/daemon/commit-ready").exists, new)
        return new

    assert board.tries(native(**options))["models"] == {"imu-motion": {"rung": "cpu"}}
    new = on_trial()
    until(lambda: any(refused in reason for reason in new.request("/commit-ready").json()["reasons"]), new)
    board.gives_up(new)
    # It failed on the old system too: that says nothing about the new one, and for other updaters it is a reason all the same.
    daemon = native(models=[*SECOND, places.DEFAULT_MODEL], **options)
    answer = until(lambda: (a := daemon.request("/commit-ready")).status == 503 and refused in a.json()["reasons"][0] and a, daemon)
    assert len(answer.json()["reasons"]) == 1
    assert board.tries(daemon)["failed"] == ["refused-int8-conv"]
    on_trial()
    board.ok("watch")
    assert board.record()[0]["chosen"] == "b"


def test_a_system_that_does_not_take_the_configuration_in_force_before_is_not_kept(board, native):
    """On the device the boot script names the configuration by a link: the new system's checked it and named the image's own."""
    text, port = (board.folder / "system.toml").read_text(), qemu.free_port()
    link = board.folder / f"inferd-{port}.toml"

    def starts(chosen, text):
        link.unlink(missing_ok=True)
        link.symlink_to(board.folder / chosen)
        return native(config=text, port=port, env=board.keeper.env)

    def tried(chosen, text, *grace):
        new = starts(chosen, text)
        board.watching = subprocess.Popen(board.command("watch", "--hold", "1", *grace))
        until((board.keeper.folder / "system-trial").exists, new)
        return new

    def comes_back(new):
        assert board.watching.wait(120) == 0
        assert board.record()[0]["chosen"] == "a" and len(board.restarts()) == 1
        new.stop()
        assert board.start("request") == "a"
        board.ok("watch")
        verdict = board.status()["state"]["verdicts"][-1]
        assert verdict["code"] == "not-ready"
        return verdict["sentence"]

    chosen = board.folder / "chosen.toml"
    assert board.tries(starts("chosen.toml", text))["configuration"] == {"file": str(chosen.resolve()), "unknown": []}
    chosen.write_text(text + "[server]\nthreads = 0\n")
    # Long enough for a daemon on a busy machine to say what it has to say: the verdict is its last word.
    grace = ("--grace", "15")
    said = comes_back(tried("own.toml", text, *grace))
    assert f"the configuration {chosen.resolve()}, in force under the system before" in said and "server.threads" in said

    board.tries(starts("chosen.toml", text))
    said = comes_back(tried("chosen.toml", text + "[server]\ngone = 1\n", *grace))
    assert "this system does not know" in said and "server.gone" in said

    # What the old system did not know either is no loss.
    strange = text + "[server]\ngone = 1\n"
    assert board.tries(starts("chosen.toml", strange))["configuration"]["unknown"] == ["server.gone"]
    tried("chosen.toml", strange)
    assert board.watching.wait(120) == 0 and board.record()[0]["chosen"] == "b"
