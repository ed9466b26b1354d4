"""Systems of the booted reference board, which starts by U-Boot: installed, tried, committed or not, and power cuts all the while.

After every cut of power the board comes up with one of the whole systems and answers; at last the update ends.
"""

import contextlib
import http.client
import json
import os
import random
import re
import subprocess
import time
from collections import Counter

import layout as layouts
import places
import pytest
import uboot
from appliance import conftest, images, systems
from appliance import medium as media
from steps import Failure

# A busy machine emulates a start in minutes; a trial is held for 30 s on top.
PATIENCE_S = 600
# The first four are one of each phase; more are drawn.
CUTS = int(os.environ.get("INFERD_TEST_SYSTEM_CUTS", "0"))
PHASES = ("install", "arm", "trial", "commit")
UP = r"INFERD-UP \S+ slot=(.)"
COMMITTED = r"inferd system: .* is committed"
TRIED = r"inferd: U-Boot starts system (.) inferd\.try=1\r?\n"
API_KEY = "0123456789abcdef"
WINDOW = (places.ROOT / "tests/data/imu_walk.json").read_bytes()
# What is said of a trial that power ended. A machine that is busy enough starves an emulated board: its watchdog is no violation.
FORGIVEN = {"trial-interrupted", "not-started", "interrupted-too-often", "ok"}
STARVED = {"watchdog-reset", "kernel-panic"}


class Works:
    """An image, two root filesystems that differ, and bundles of both."""

    def __init__(self, board, office, folder):
        self.board, self.office, self.folder = board, office, folder
        self.image, self.parts = folder / "system.img", folder / "parts"
        images.assemble(board, self.image, minimal=True, dev=True, root=office.root, parts=self.parts, api_key=API_KEY)
        self.table = {part.name: part for part in layouts.read_gpt(self.image)[1]}
        rootfs = (self.parts / "rootfs").read_bytes()
        # When a squashfs was made is at 8 in its superblock; nobody reads it.
        self.contents = [rootfs, rootfs[:8] + bytes(4) + rootfs[12:]]
        assert self.contents[0] != self.contents[1]
        (folder / "rootfs-1").write_bytes(self.contents[1])
        (folder / "empty").write_bytes(bytes(4096))

    def bundle(self, version, rootfs=None, **options):
        """Odd versions are the image's own system, even ones the other."""
        file = self.folder / f"os-{version}-{options.get('key', 'system')}.imb"
        named = rootfs or (self.folder / "rootfs-1" if version % 2 == 0 else self.parts / "rootfs")
        if not file.exists():
            self.office.system(file, self.board.name, version, {"rootfs": named, "boot": self.parts / "boot"}, **options)
        return file

    def whole(self, medium, slot):
        """Whether a slot of a medium holds one of the two systems, to the last byte."""
        with open(medium, "rb") as file:

            def holds(name, content):
                file.seek(self.table[f"{name}-{slot}"].offset)
                return file.read(len(content)) == content

            return holds("boot", (self.parts / "boot").read_bytes()) and any(holds("rootfs", content) for content in self.contents)

    def choice(self, medium):
        """What U-Boot would read."""
        return uboot.read(medium, self.table["bootstate"].offset)[0]


# Starts are counted here, and a busy machine starves an emulated board until its watchdog adds one.
pytestmark = pytest.mark.skipif(CUTS == 0, reason="INFERD_TEST_SYSTEM_CUTS is not set: some minutes of a machine that is quiet")


@pytest.fixture(scope="module")
def works(board, office, tmp_path_factory):
    if board.backend != "uboot-env":
        pytest.skip(f"{board.name} starts by {board.backend}")
    return Works(board, office, tmp_path_factory.mktemp("works"))


def shown(machine, pattern, count):
    """Waits until the console has shown this so often since the power came; what it was the last time."""
    machine.wait_for_console(pattern, PATIENCE_S)
    end = time.monotonic() + PATIENCE_S
    while len(found := re.findall(pattern, machine.console())) < count:
        assert time.monotonic() < end, f"the console shows {pattern!r} {len(found)} times: {machine.console()[-3000:]}"
        time.sleep(0.2)
    return found[count - 1]


def comes_up(machine, count):
    """Waits for the start of this number since the power came; the slot."""
    return shown(machine, UP, count)


def verdict(machine):
    """The newest verdict."""
    machine.forget_shell()
    return systems.status(machine)["state"]["verdicts"][-1]


def test_a_system_that_is_not_signed_so_has_no_root_panics_or_does_not_serve_leaves_the_old_one(works, boot, tmp_path):
    medium = tmp_path / "medium.img"
    media.copy_sparse(works.image, medium)
    stranger = type(works.office)(works.office.program, tmp_path / "stranger")
    foreign = stranger.system(tmp_path / "foreign.imb", works.board.name, 9, {"rootfs": works.parts / "rootfs", "boot": works.parts / "boot"})
    with boot(medium, dev=True, keep_writes=True, restarts=True) as machine:
        before = [media_bytes(medium, works.table[name]) for name in ("boot-b", "rootfs-b", "bootstate")]
        for file, code in ((foreign, "unknown-keys"), (works.bundle(9, key="models"), "wrong-role")):
            status, said = systems.install(machine, file)
            assert status == 1 and f"({code})" in said, said
            operator = pushed(machine, works, file)
            assert operator.wait(PATIENCE_S) == 1, operator.stderr.read()
            assert machine.request("/api/v1/slots").json()["verdicts"][-1]["code"] == code
        machine.sh("sync")
        assert [media_bytes(medium, works.table[name]) for name in ("boot-b", "rootfs-b", "bootstate")] == before, "something was written"

        status, said = systems.install(machine, works.bundle(7, rootfs=works.folder / "empty"))
        assert status == 0, said
        systems.ask_for_a_try(machine)
        machine.wait_for_console(r"initramfs: slot b holds no root filesystem; using slot a", PATIENCE_S)
        # The kernel of b with the root of a, then the old system.
        assert (comes_up(machine, 2), comes_up(machine, 3)) == ("a", "a")
        machine.wait_for_console(r"inferd system: the old system is back: .* \(no-rootfs\)", PATIENCE_S)
        last = verdict(machine)
        assert (last["outcome"], last["code"], last["about"]["version"]) == ("returned", "no-rootfs", 7)

        # By the network: the daemon, which is not root, passes it on.
        operator = pushed(machine, works, works.bundle(2))
        assert comes_up(machine, 4) == "b" and works.whole(medium, "b")
        machine.wait_for_console(r"inferd system: inferd-os 2 is on trial", PATIENCE_S)
        machine.forget_shell()
        panic(machine)
        assert comes_up(machine, 5) == "a"
        machine.wait_for_console(r"inferd system: the old system is back: .* \(kernel-panic\)", PATIENCE_S)
        # Once is no proof: it is tried again, by itself.
        assert comes_up(machine, 6) == "b"
        shown(machine, "inferd system: inferd-os 2 is on trial", 2)
        machine.forget_shell()
        with contextlib.suppress(Failure, OSError):
            machine.root(NO_DAEMON, PATIENCE_S)
        assert comes_up(machine, 7) == "a"
        machine.wait_for_console(r"inferd system: the old system is back: .* \(safe-mode\)", PATIENCE_S)
        machine.wait_ready(PATIENCE_S)
        last = verdict(machine)
        assert (last["outcome"], last["code"], last["about"]["version"]) == ("returned", "safe-mode", 2)
        told = operator.communicate(timeout=PATIENCE_S)
        assert operator.returncode == 1 and "safe" in told[1], told
        page = machine.request("/api/v1/slots").json()["system"]
        assert page["board"]["runs"] == "a" and page["state"]["verdicts"][-1]["code"] == "safe-mode", page
        assert works.choice(medium).chosen == "a" and systems.status(machine)["state"]["floors"] == {}
        machine.infer(WINDOW)


def pushed(machine, works, bundle):
    """An operator who pushes a system, and waits until it is committed or not."""
    command = [works.office.program, "--url", machine.url, "--timeout", "120", "push", bundle, "--wait", "committed"]
    environment = {**os.environ, "INFERD_API_KEY": API_KEY}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Until the keeper has seen enough of it.
NO_DAEMON = (
    'while ! grep -q \'"safe_mode":"\' /run/inferd/keeper/state.json; do '
    "for p in $(cat /sys/fs/cgroup/inferd/daemon/cgroup.procs); do kill -9 $p; done; usleep 100000; done"
)


def panic(machine):
    """The kernel panics; nobody answers any more."""
    with contextlib.suppress(Failure, OSError):
        machine.root("echo c >/proc/sysrq-trigger", 5)
    machine.forget_shell()


def media_bytes(medium, part):
    """A partition of a medium."""
    with open(medium, "rb") as file:
        file.seek(part.offset)
        return file.read(part.size)


class Campaign:
    """One board that is updated and loses power."""

    def __init__(self, works, folder, rng):
        self.works, self.folder, self.rng = works, folder, rng
        self.medium = media.Medium(works.image, folder)
        self.version, self.floor, self.must = 2, 0, None
        self.cuts, self.hit, self.started, self.verdicts, self.ended = [], Counter(), Counter(), Counter(), 0
        self.seen, self.starts = 0, 0

    @contextlib.contextmanager
    def power(self):
        """The board, with every write recorded; it has come up with a whole system and answers."""
        self.starts += 1
        machine = conftest.Booted(
            self.works.board, self.medium.path, wait=False, dev=True, keep_writes=True, write_log=self.medium.log, restarts=True,
            serial=self.folder / f"console-{self.starts}.log",
        )
        with machine:
            slot = comes_up(machine, 1)
            assert self.works.whole(self.medium.path, slot), f"system {slot} is not whole, and was started"
            assert self.must in (None, slot), f"system {slot} was started, and the commit of {self.must} was seen"
            self.started[slot] += 1
            # It may restart for a trial in the middle of this.
            end = time.monotonic() + PATIENCE_S
            while not self.answers(machine):
                assert time.monotonic() < end, "it does not answer"
                time.sleep(0.2)
            yield machine

    def answers(self, machine):
        """Whether it answers an inference now."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return machine.request("/infer", WINDOW).status == 200
        return False

    def state(self, machine):
        """What it says of its systems, asked until it answers."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                state = systems.status(machine, 10)["state"]
                break
            except (Failure, OSError, AssertionError, json.JSONDecodeError):
                machine.forget_shell()
                assert time.monotonic() < end, "nobody says what it does"
        for said in state["verdicts"]:
            if said["number"] > self.seen:
                self.seen = said["number"]
                self.verdicts[said["code"]] += 1
                self.ended += said["outcome"] != "interrupted"
                assert said["code"] in FORGIVEN | STARVED, f"a power cut is held against a system: {said}"
        floor = state["floors"].get("inferd-os", 0)
        assert floor >= self.floor, "the floor fell"
        self.floor = floor
        self.version = max(self.version, floor + 1)
        return state

    def under_way(self, state):
        """Whether the board itself goes on with a trial."""
        return state["phase"] == "trial" or (state["phase"] == "staged" and any(state["tries"].values()))

    def settled(self, machine):
        """The state when no trial is under way any more."""
        end = time.monotonic() + PATIENCE_S
        while self.under_way(state := self.state(machine)):
            assert time.monotonic() < end, f"the trial does not end: {state}"
            time.sleep(1)
        return state

    def staged(self, machine):
        """Has something installed that can be tried."""
        if self.settled(machine)["phase"] != "staged":
            status, said = systems.install(machine, self.works.bundle(self.version))
            assert status == 0, said

    def on_trial(self, machine):
        """Has a trial begin, or waits for the one that the board goes on with."""
        if not self.under_way(self.state(machine)):
            self.staged(machine)
            systems.ask_for_a_try(machine)
        machine.wait_for_console(TRIED, PATIENCE_S)

    def over(self, machine):
        """Waits for the moment of a commit, or for another end of the update."""
        end, asked = time.monotonic() + PATIENCE_S, time.monotonic()
        while not re.search(COMMITTED, machine.console()):
            assert time.monotonic() < end, "the trial does not end"
            if time.monotonic() > asked + 5:
                if self.state(machine)["phase"] == "idle":
                    return
                asked = time.monotonic()
            time.sleep(0.02)

    def cut(self, phase):
        """One cut."""
        rng, back = self.rng, 0
        with self.power() as machine:
            if phase == "install":
                self.settled(machine)
                self.cut_install(machine)
            elif phase == "arm":
                self.staged(machine)
                machine.root(f"({systems.PROGRAM} try &) >/dev/null 2>&1")
                # Everything is hashed first; then it is armed, and the board goes down.
                if rng.random() < 0.5:
                    machine.wait_for_console(r"restarting the board: a new system is tried", PATIENCE_S)
                time.sleep(rng.uniform(0, 2))
            elif phase == "trial":
                self.on_trial(machine)
                time.sleep(rng.uniform(0, 40))
            else:
                self.on_trial(machine)
                self.over(machine)
                time.sleep(rng.choice((0, 0, rng.uniform(0, 0.2))))
                back = rng.choice((0, 0, 1, 2, 3, 5, 8, 13))
            machine.cut_power()
            said = machine.console()
        committed = re.search(COMMITTED, said)
        self.must = re.findall(UP, said)[-1] if committed and not back else None
        if back:
            self.floor, self.seen = 0, 0
        self.cuts.append(self.medium.cut(rng, keep=rng.choice((0, 0.5, 0.9, 1)), back=back))
        self.hit["commit" if committed else "trial" if re.search(TRIED, said) else phase] += 1

    def cut_install(self, machine):
        """By what reaches the medium, not by time: any byte of the bundle may be the last."""
        file = self.works.bundle(self.version)
        size = sum((self.works.parts / name).stat().st_size for name in ("boot", "rootfs"))
        with machine.serving(file.parent) as url:
            begin = self.medium.log.stat().st_size
            machine.root(f"(wget -q -O - {url}/{file.name} | {systems.PROGRAM} install - &) >/dev/null 2>&1")
            goal, end = begin + self.rng.uniform(0, 1.05) * size, time.monotonic() + 120
            while self.medium.log.stat().st_size < goal and time.monotonic() < end:
                time.sleep(0.005)
            machine.cut_power()

    def end(self):
        """The update that is under way, or one more, is committed; and stays."""
        with self.power() as machine:
            for _ in range(3):
                self.on_trial(machine)
                before = self.floor
                if self.settled(machine)["phase"] == "idle" and self.floor > before:
                    break
            else:
                pytest.fail(f"no update ends: {self.verdicts}")
            choice = self.works.choice(self.medium.path)
            assert not choice.trial and comes_up(machine, len(re.findall(UP, machine.console()))) == choice.chosen
            machine.cut_power()
        self.cuts.append(self.medium.cut(self.rng, keep=0))
        self.must = choice.chosen
        with self.power():
            pass


def test_wherever_power_is_cut_a_whole_system_starts_and_at_last_the_update_ends(works, tmp_path, capsys):
    seed = int(os.environ.get("INFERD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    rng = random.Random(seed)
    campaign = Campaign(works, tmp_path, rng)
    begin = time.monotonic()
    with capsys.disabled():
        print(f"\n{CUTS} power cuts of system updates, seed {seed}", flush=True)
    for number in range(CUTS):
        campaign.cut(PHASES[number] if number < len(PHASES) else rng.choice(PHASES))
    campaign.end()
    sums = media.total(campaign.cuts)
    with capsys.disabled():
        print(
            f"{len(campaign.cuts)} cuts in {time.monotonic() - begin:.0f} s: {dict(campaign.hit)}; started {dict(campaign.started)}; "
            f"verdicts {dict(campaign.verdicts)}; of {sums.get('undecided', 0)} unflushed writes {sums.get('lost', 0)} lost, "
            f"{sums.get('torn', 0)} torn; moved back {sums.get('moved_back', 0)}",
            flush=True,
        )
