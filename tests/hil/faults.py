"""What can go wrong, each by real means: through the root shell, the machine's plugs and switches, or the network.

A fault is put in (`put_in`), lasts for `hold` seconds, and is taken out again (`take_out`), where it does not end by itself. `reason`
is what the device must say of the reset it leads to; None where it must not lead to one.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from labgrid.protocol import ResetProtocol

from hil.unit import PROCESSES, Lacking, Unit

# In the appliance's shell: the control group of the (first) engine host.
HOST_GROUP = "$(ls -d /sys/fs/cgroup/inferd/host-* | head -n 1)"
# So slow that four KiB take ten seconds.
SLOW_BYTES_PER_SECOND = 410
SILENT_CLIENTS = 200
# Between two of them: in a second there are fewer than one client may hold, so there is always an idle one that gives way.
SILENT_PAUSE_S = 0.04
# Ends of the daemon within which a crash loop must have been noticed.
MOST_ENDS = 6


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    name: str
    put_in: Callable[[Unit], object]
    take_out: Callable[[Unit, object], None] = lambda unit, held: None
    hold: float = 0.0
    reason: str | None = None
    # Ends what serves (a model's host, or everything), or keeps it from its clients: some requests may go without an answer.
    interrupts: bool = True
    # Needs hands on the machine: its network cable, its medium.
    hands: bool = False
    # Ends with another bundle than it began with: `strategy.update`.
    moves: bool = False


def over_memory(unit):
    """A process that grows without end, put where the host is: the kernel ends both."""
    status, _ = unit.try_shell(f"sh -c 'echo $$ >{HOST_GROUP}/cgroup.procs; exec tail /dev/zero'", timeout=120)
    assert status == 128 + 9, "the kernel did not end it"


def endless_processes(unit):
    """As many processes in the host's control group as it may have; each sleeps."""
    unit.try_shell(f"sh -c 'echo $$ >{HOST_GROUP}/cgroup.procs; while sleep 600 & do :; done' 2>/dev/null", timeout=120)


def fill_data(unit):
    """Fills the data partition to the last block that root can have."""
    unit.try_shell("dd if=/dev/zero of=/data/ballast bs=64k 2>/dev/null; dd if=/dev/zero of=/data/ballast2 bs=512 2>/dev/null; sync")


def empty_data(unit, _):
    """Gives the space back."""
    unit.shell("rm -f /data/ballast /data/ballast2; sync")


def read_only_data(unit):
    """What the kernel does to a filesystem with errors: nobody can write to it any more, open files included."""
    unit.shell("echo u >/proc/sysrq-trigger; while grep -q ' /data ext4 rw' /proc/mounts; do sleep 0.2; done")


def writable_data(unit, _):
    """And back."""
    unit.shell("mount -o remount,rw /data")


def set_clock(year):
    """Sets the clock far off; the instant it was set to is not asked for again."""

    def put_in(unit):
        unit.shell(f"date -u -s '{year}-02-07 06:28:00'")

    return put_in


def right_clock(unit, _):
    """This machine's time."""
    unit.shell(time.strftime("date -u -s '%Y-%m-%d %H:%M:%S'", time.gmtime()))


def silent_clients(unit):
    """Connections on which nobody says anything."""
    where = urlsplit(unit.url)
    held = []
    for _ in range(SILENT_CLIENTS):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection((where.hostname, where.port), timeout=10))
        time.sleep(SILENT_PAUSE_S)
    return held


def hang_up(_, held):
    """They leave."""
    for client in held:
        client.close()


def crash_loop(unit, phase="it answers"):
    """Kills the daemon again and again, each time when `phase` is reached ("it is there", "it answers"), until it is started in safe
    mode; the seconds from its last end until safe mode answered."""
    for _ in range(MOST_ENDS):
        begin, daemon = time.monotonic(), unit.signal("KILL", "daemon")
        unit.until(lambda: unit.processes("daemon") not in ([], [daemon]), "another daemon")  # noqa: B023
        if phase == "it answers":
            unit.until(lambda: unit.request("/livez").status == 200, "an answer")
        if "--safe-mode" in unit.shell(f"tr '\\0' ' ' </proc/{unit.process('daemon')}/cmdline"):
            unit.until(lambda: unit.page("/status")["safe_mode"], "safe mode")
            return time.monotonic() - begin
    raise AssertionError(f"no safe mode after {MOST_ENDS} ends of the daemon")


def stop_at_start(unit):
    """Has the daemon started anew, and stops it before it has said that it is ready."""
    there = PROCESSES.format(kind="daemon")
    unit.shell(
        f"old=$({there}); kill -KILL $old; while :; do new=$({there}); "
        "[ -z \"$new\" ] || [ \"$new\" = \"$old\" ] || { kill -STOP $new; break; }; done"
    )


def watchdog_test(what):
    """What a dev image lets an operator try; needs no root shell."""

    def put_in(unit):
        answer = unit.post("/api/v1/watchdog/test", {"what": what})
        if answer.status == 403 and b"images made with --dev" in answer.body:
            raise Lacking("this image lets nobody try its watchdog: it is none of --dev")
        assert answer.status == 202, answer.body

    return put_in


def ask_for_reboot(unit):
    """As an operator does."""
    answer = unit.post("/api/v1/reboot", {"why": "a test"})
    assert answer.status == 202, answer.body


def leave_safe_mode(unit, _):
    """The operator has seen enough."""
    answer = unit.post("/api/v1/safe-mode/leave", {"why": "a test is over"})
    assert answer.status == 202, answer.body
    unit.until(lambda: not unit.page("/status")["safe_mode"], "the end of safe mode")


def press_reset(unit):
    """The reset button."""
    unit.driver(ResetProtocol, "reset button").reset()


def cut_power(unit):
    """Mains off and on."""
    unit.to("cut").to("booted")


def cut_update(unit):
    """Mains off at a random instant of an update, and on; then the update goes on to its commit. Before that the old model serves as it
    did, or the new one does."""
    old, chance = unit.kept(), unit.chance
    # Far enough from what it answers now.
    unit.strategy.update = unit.updates.make(unit, chance.choice((-1, 1)) * chance.uniform(0.1, 1.0))
    unit.strategy.until = "keys"
    bundle = unit.strategy.update[1]
    unit.to("updating")
    time.sleep(chance.uniform(0, 1.2 * unit.update_s))
    unit.to("cut").to("booted")
    if unit.strategy.settled()["serving"]["bundle"] != bundle:
        now = unit.kept()
        assert now == old, f"the cut has changed what serves: {now}, not {old}"
        unit.to("updating").to("booted")
    unit.until(lambda: unit.slots()["serving"]["bundle"] == bundle, f"{bundle} serves")
    unit.strategy.wait_ready()


HOST_KILLED = Fault("host: SIGKILL", lambda unit: unit.signal("KILL", "host"))
HOST_STOPPED = Fault("host: SIGSTOP", lambda unit: unit.signal("STOP", "host"))
HOST_OVER_MEMORY = Fault("host: past its memory.max", over_memory)
HOST_PROCESSES = Fault(
    "host: processes without end", endless_processes, lambda unit, _: unit.try_shell(f"kill -KILL $(cat {HOST_GROUP}/cgroup.procs)")
)
DAEMON_KILLED = Fault("daemon: SIGKILL", lambda unit: unit.signal("KILL", "daemon"))
DAEMON_STOPPED = Fault("daemon: SIGSTOP", lambda unit: unit.signal("STOP", "daemon"), reason="watchdog")
DAEMON_STUCK = Fault("daemon: SIGSTOP as it starts", stop_at_start, reason="watchdog")
CRASH_LOOP = Fault("daemon: crash loop", crash_loop, leave_safe_mode)
KEEPER_KILLED = Fault("keeper: SIGKILL", lambda unit: unit.signal("KILL", "keeper"))
KEEPER_STOPPED = Fault("keeper: SIGSTOP", lambda unit: unit.signal("STOP", "keeper"), reason="watchdog")
PANIC = Fault("kernel: panic", lambda unit: unit.try_shell("(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"), reason="panic")
RESET = Fault("reset button", press_reset, reason="power")
POWER_CUT = Fault("power: cut", cut_power, reason="power")
POWER_CUT_IN_UPDATE = Fault("power: cut in an update", cut_update, reason="power", moves=True)
REBOOT = Fault("reboot: asked for", ask_for_reboot, reason="request")
TEST_DAEMON = Fault("watchdog test: daemon", watchdog_test("daemon"), reason="watchdog")
TEST_PANIC = Fault("watchdog test: panic", watchdog_test("panic"), reason="panic")
UNPLUGGED = Fault(
    "network: unplugged 15 s", lambda unit: unit.machine().network(False), lambda unit, _: unit.machine().network(True), hold=15, hands=True
)
DISK_FULL = Fault("disk: full", fill_data, empty_data, hold=15, interrupts=False)
DISK_READ_ONLY = Fault("disk: read-only", read_only_data, writable_data, hold=15, interrupts=False)
DISK_SLOW = Fault(
    "disk: 10 s for a block",
    lambda unit: unit.machine().throttle_writes(SLOW_BYTES_PER_SECOND),
    lambda unit, _: unit.machine().throttle_writes(0),
    hold=60,
    interrupts=False,
    hands=True,
)
CLOCK_BACK = Fault("clock: 1970", set_clock(1970), right_clock, hold=10, interrupts=False)
CLOCK_FORTH = Fault("clock: 2106", set_clock(2106), right_clock, hold=10, interrupts=False)
SILENT = Fault(f"network: {SILENT_CLIENTS} silent clients", silent_clients, hang_up, hold=15, interrupts=False)

ALL = [
    *(HOST_KILLED, HOST_STOPPED, HOST_OVER_MEMORY, HOST_PROCESSES, DAEMON_KILLED, DAEMON_STOPPED, DAEMON_STUCK, CRASH_LOOP),
    *(KEEPER_KILLED, KEEPER_STOPPED, PANIC, RESET, POWER_CUT, POWER_CUT_IN_UPDATE, REBOOT, UNPLUGGED, DISK_FULL, DISK_READ_ONLY, DISK_SLOW, CLOCK_BACK, CLOCK_FORTH, SILENT),
]
# What needs no root shell, and so can be done to a board whose image has none on a port of its own.
FROM_OUTSIDE = [POWER_CUT, POWER_CUT_IN_UPDATE, REBOOT, TEST_DAEMON, TEST_PANIC, SILENT]
