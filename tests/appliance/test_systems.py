"""Systems of the booted reference board, which starts by U-Boot: installed, tried, committed or not, and power cuts all the while.

After every cut of power the board comes up with one of the whole systems and answers; at last the update ends. What a busy machine does to an
emulated board (its watchdog expires, and it is started once more) is told from what a system does, and the step is done again.
"""

import contextlib
import http.client
import os
import random
import re
import time
from collections import Counter

import layout as layouts
import places
import pytest
import uboot
from appliance import images, systems
from appliance import medium as media
from appliance.systems import API_KEY, PATIENCE_S, PROGRAM, Starved
from steps import Failure

# The first four are one of each phase; more are drawn.
CUTS = int(os.environ.get("INFERD_TEST_SYSTEM_CUTS", "4"))
PHASES = ("install", "arm", "trial", "commit")
COMMITTED = r"inferd system: \S+ \d+ is committed\r?\n"
ARMED = r"restarting the board: a new system is tried"
TRIED = r"inferd: U-Boot starts system . inferd\.try=1\r?\n"
WINDOW = (places.ROOT / "tests/data/imu_walk.json").read_bytes()
# The bundles' own.
HOLD_S = 30
# The clock of the lines on the console and that of the program need not begin in the same instant.
CLOCKS_S = 0.5
# How often the power may go in trials of one system (app/system/src/state.rs).
MAX_INTERRUPTIONS = 5
# What is said of a trial that the power ended ...
BY_POWER = {"trial-interrupted", "not-started"}
# ... and of one that was starved.
BY_STARVING = {"watchdog-reset", "kernel-panic", "safe-mode"}


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
        file = self.folder / f"os-{version}-{'-'.join(map(str, options.values())) or 'system'}.imb"
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


@pytest.fixture(scope="module")
def works(board, office, tmp_path_factory):
    if board.backend != "uboot-env":
        pytest.skip(f"{board.name} starts by {board.backend}")
    return Works(board, office, tmp_path_factory.mktemp("works"))


def test_a_system_that_is_not_signed_so_has_no_root_panics_or_does_not_serve_leaves_the_old_one(works, tmp_path):
    medium = tmp_path / "medium.img"
    media.copy_sparse(works.image, medium)
    stranger = type(works.office)(works.office.program, tmp_path / "stranger")
    foreign = stranger.system(tmp_path / "foreign.imb", works.board.name, 9, {"rootfs": works.parts / "rootfs", "boot": works.parts / "boot"})
    nowhere = [media_bytes(medium, works.table[name]) for name in ("boot-b", "rootfs-b", "bootstate")]
    rootless = works.bundle(7, rootfs=works.folder / "empty")
    # What is done to it is done long before it could be committed.
    bundle = works.bundle(2, probation_s=1800)

    with systems.Board(works.board, medium) as machine, systems.Operator(machine, works.office.program, bundle) as operator:

        def the_unsigned_one_is_refused():
            machine.until(lambda: machine.serves(WINDOW), "it serves")
            for file, code in ((foreign, "unknown-keys"), (works.bundle(9, key="models"), "wrong-role")):
                status, said = systems.install(machine, file)
                assert status == 1 and f"({code})" in said, said
                with systems.Operator(machine, works.office.program, file) as pushing:
                    pushing({})
                    status, said = pushing.end()
                assert status == 1 and machine.request("/api/v1/slots").json()["verdicts"][-1]["code"] == code, said
            machine.sh("sync", PATIENCE_S)
            assert [media_bytes(medium, works.table[name]) for name in ("boot-b", "rootfs-b", "bootstate")] == nowhere, "something was written"

        def the_one_without_a_root_gives_the_board_back():
            before = machine.brought(machine.at_the_shell(rootless, 7), 7)
            last = machine.verdict(before, 7)
            assert (last["outcome"], last["code"]) == ("returned", "no-rootfs"), last
            console = machine.console()
            assert "initramfs: slot b holds no root filesystem; using slot a" in console
            # The kernel of b with the root of a, then the old system.
            assert [(start.slot, start.up) for start in systems.starts(console)][-2:] == [("b", "a"), ("a", "a")]

        def the_one_that_panics_gives_the_board_back():
            assert machine.on_trial(operator, 2) == "b" and works.whole(medium, "b")
            before = systems.newest(machine.told()["state"])
            on_it(machine, PANIC, lambda: machine.console().count("sysrq triggered crash"), "its kernel panics")
            # It restarts after 10 s, or its watchdog was a little earlier.
            last = machine.verdict(before, 2, through=True)
            # Once is no proof.
            once = last["tries"]["failures"] == 1
            assert (last["outcome"], last["code"]) == ("interrupted" if once else "returned", "kernel-panic"), last

        def the_one_whose_daemon_cannot_run_gives_the_board_back():
            # It is tried again, by itself, unless it was returned.
            machine.on_trial(operator, 2)
            before = systems.newest(machine.told()["state"])
            on_it(machine, NO_DAEMON, lambda: len(systems.later(machine.told()["state"], before, 2)), "it comes back")
            last = machine.verdict(before, 2)
            assert (last["outcome"], last["code"]) == ("returned", "safe-mode"), last
            status, said = operator.end()
            assert status == 1 and "safe" in said, said

        machine.patiently(the_unsigned_one_is_refused)
        machine.patiently(the_one_without_a_root_gives_the_board_back)
        machine.patiently(the_one_that_panics_gives_the_board_back)
        pushed = operator.process
        machine.patiently(the_one_whose_daemon_cannot_run_gives_the_board_back)
        assert operator.process is pushed or machine.starved(), "it was tried again, by itself"

        def the_old_one_runs_and_says_why():
            page = machine.request("/api/v1/slots").json()["system"]
            return page and page["board"] and page["board"]["runs"] == "a" and page["state"]["verdicts"][-1]["code"] == "safe-mode"

        machine.until(quietly(the_old_one_runs_and_says_why), "the old system runs and says why", through=True)
        machine.until(lambda: machine.serves(WINDOW), "the old system serves", through=True)
        assert machine.told(through=True)["state"]["floors"] == {}
        assert (works.choice(medium).chosen, works.choice(medium).trial) == ("a", "")
        for start in systems.starts(machine.console()):
            assert start.up == start.slot or (start.slot, start.tried) == ("b", True) or not start.up, start


def quietly(condition):
    """False when nobody answers."""

    def asked():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return condition()
        return False

    return asked


# Both do nothing to the old system, should it be back.
PANIC = "grep -q inferd.try=1 /proc/cmdline && echo c >/proc/sysrq-trigger"
# Until the keeper has seen enough of it.
NO_DAEMON = (
    'while grep -q inferd.try=1 /proc/cmdline && ! grep -q \'"safe_mode":"\' /run/inferd/keeper/state.json; do '
    "for p in $(cat /sys/fs/cgroup/inferd/daemon/cgroup.procs); do kill -9 $p; done; usleep 100000; done"
)


def on_it(machine, command, count, what):
    """Does something to the system that is tried, until it has come of it. It may answer no more."""
    before = count()

    def done():
        with contextlib.suppress(Failure, OSError):
            machine.root(command, PATIENCE_S)
        return count() > before

    machine.until(done, what, patience=systems.TRIAL_S)


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
        self.cuts, self.hit, self.started, self.verdicts = [], Counter(), Counter(), Counter()
        self.seen, self.starts, self.starved = 0, 0, 0

    @contextlib.contextmanager
    def power(self):
        """The board, with every write recorded; it has come up with a whole system and answers."""
        self.starts += 1
        choice = self.works.choice(self.medium.path)
        first = choice.trial or choice.chosen
        assert self.works.whole(self.medium.path, first), f"system {first} is not whole, and is about to be started"
        assert self.must in (None, choice.chosen), f"system {choice.chosen} is chosen, and the commit of {self.must} was seen"
        serial = self.folder / f"console-{self.starts}.log"
        machine = systems.Board(self.works.board, self.medium.path, write_log=self.medium.log, serial=serial)
        with machine:
            # It may restart for a trial in the middle of this.
            machine.until(lambda: machine.serves(WINDOW), "it answers", through=True, patience=systems.TRIAL_S)
            begin = systems.starts(machine.console())[0]
            assert (begin.slot, begin.tried) == (first, bool(choice.trial)), f"{begin} was started, and the record says {choice}"
            self.started[first] += 1
            machine.before = machine.starved()
            yield machine
            self.starved += machine.starved()
            for start in systems.starts(machine.console()):
                assert start.up in ("", start.slot), f"{start}: a system without its root filesystem was started"
                assert start.held_s is None or start.held_s > HOLD_S - CLOCKS_S, f"{start}: it was committed too early"
                assert start.tried or not start.committed, f"{start}: it was committed, and was not tried"

    def state(self, machine):
        """What it says of its systems."""
        return self.judged(machine, machine.told(through=True)["state"])

    def judged(self, machine, state):
        """What it says of its systems, and whether it may."""
        for said in systems.later(state, self.seen):
            self.seen = said["number"]
            self.verdicts[said["code"]] += 1
            tries = said["tries"]
            power = said["code"] in BY_POWER and said["outcome"] == "interrupted" and tries["interruptions"] <= len(self.cuts)
            often = said["outcome"] == "returned" and MAX_INTERRUPTIONS < tries["interruptions"] <= len(self.cuts)
            starved = said["code"] in BY_STARVING and self.starved + machine.starved() > 0
            assert said["outcome"] == "committed" or power or often or starved, f"a power cut is held against a system: {said}"
        floor = state["floors"].get("inferd-os", 0)
        assert floor >= self.floor, "the floor fell"
        self.floor = floor
        self.version = max(self.version, floor + 1)
        return state

    def settled(self, machine):
        """The state when no trial is under way any more."""
        return self.judged(machine, machine.settled())

    def staged(self, machine):
        """Has something installed that can be tried."""
        if self.settled(machine)["phase"] != "staged":
            status, said = systems.install(machine, self.works.bundle(self.version))
            assert status == 0, said

    def on_trial(self, machine):
        """Has a trial begin, or waits for the one that the board goes on with."""
        self.state(machine)
        machine.brought(machine.at_the_shell(self.works.bundle(self.version)))
        machine.shows(TRIED)

    def over(self, machine):
        """Waits for the moment of a commit, or for another end of the update."""
        asked = time.monotonic()

        def ended():
            nonlocal asked
            if re.search(COMMITTED, machine.console()):
                return True
            if time.monotonic() < asked + 5:
                return False
            asked = time.monotonic()
            return self.state(machine)["phase"] == "idle"

        machine.until(ended, "the trial ends", patience=systems.TRIAL_S, pause=0.02)

    def cut(self, phase):
        """One cut."""
        rng, back, known = self.rng, 0, (self.floor, self.seen)
        with self.power() as machine:
            # A board that is starved meanwhile loses power as well, wherever it is then.
            with contextlib.suppress(Starved):
                if phase == "install":
                    self.settled(machine)
                    self.cut_install(machine)
                elif phase == "arm":
                    self.cut_arming(machine)
                elif phase == "trial":
                    self.on_trial(machine)
                    time.sleep(rng.uniform(0, 40))
                else:
                    self.on_trial(machine)
                    self.over(machine)
                    time.sleep(rng.choice((0, 0, rng.uniform(0, 0.2))))
                    back = rng.choice((0, 0, 1, 2, 3, 5, 8, 13))
            machine.cut_power()
        starts = systems.starts(machine.console())
        for start in starts:
            if start.tried:
                # Of a commit that was not seen nobody knows.
                self.must = start.slot if start.committed and not back else None
        if back:
            # What was seen since the power came may not have happened.
            self.floor, self.seen = known
        committed, tried = any(start.committed for start in starts), any(start.tried for start in starts)
        self.cuts.append(self.medium.cut(rng, keep=rng.choice((0, 0.5, 0.9, 1)), back=back))
        self.hit["commit" if committed else "trial" if tried else phase] += 1

    def cut_arming(self, machine):
        """Everything is hashed first; then it is armed, and the board goes down."""
        self.staged(machine)
        before = machine.console().count(ARMED)
        machine.root(f"({PROGRAM} try &) >/dev/null 2>&1", PATIENCE_S)
        if self.rng.random() < 0.5:
            end = time.monotonic() + 60
            while machine.console().count(ARMED) == before and time.monotonic() < end:
                time.sleep(0.02)
        time.sleep(self.rng.uniform(0, 2))

    def cut_install(self, machine):
        """By what reaches the medium, not by time: any byte of the bundle may be the last."""
        file = self.works.bundle(self.version)
        size = sum((self.works.parts / name).stat().st_size for name in ("boot", "rootfs"))
        with machine.serving(file.parent) as url:
            begin = self.medium.log.stat().st_size
            machine.root(f"(wget -q -O - {url}/{file.name} | {PROGRAM} install - &) >/dev/null 2>&1", PATIENCE_S)
            goal, end = begin + self.rng.uniform(0, 1.05) * size, time.monotonic() + 120
            while self.medium.log.stat().st_size < goal and time.monotonic() < end:
                time.sleep(0.005)
            machine.cut_power()

    def end(self):
        """The update that is under way, or one more, is committed; and stays."""
        with self.power() as machine:
            machine.patiently(lambda: self.committed(machine))
            choice = self.works.choice(self.medium.path)
            assert not choice.trial and self.works.whole(self.medium.path, choice.chosen)
            machine.cut_power()
        self.cuts.append(self.medium.cut(self.rng, keep=0))
        self.must = choice.chosen
        with self.power():
            pass

    def committed(self, machine):
        """A system is tried, and committed: the one that was interrupted too often already is installed once more."""
        for _ in range(2):
            before = self.state(machine)["floors"].get("inferd-os", 0)
            self.on_trial(machine)
            state = self.settled(machine)
            if self.floor > before:
                assert state["phase"] == "idle"
                return
            assert state["verdicts"][-1]["code"] == "interrupted-too-often", state
        pytest.fail(f"no update ends: {self.verdicts}")


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
            f"verdicts {dict(campaign.verdicts)}; starved {campaign.starved} times; "
            f"of {sums.get('undecided', 0)} unflushed writes {sums.get('lost', 0)} lost, "
            f"{sums.get('torn', 0)} torn; moved back {sums.get('moved_back', 0)}",
            flush=True,
        )
