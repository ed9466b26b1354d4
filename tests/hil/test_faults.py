"""What goes wrong on a device, and what of it its users notice.

Each fault comes while a client asks for one inference after the other. Afterwards the device answers again as before, what was
committed is there, and the number of its boot and the reason tell whether it was reset. How long everything took is recorded
(`--junitxml`, and a table at the end), not asserted: an emulated board on a busy machine has no pace to rely on.
"""

import contextlib
import time

import pytest

from hil import faults
from hil.unit import REQUEST_TIMEOUT_S, WINDOW, Load

BYTES_OF_A_MIB = 1 << 20
# So many bad boots in a row, and the next one is in safe mode.
BAD_BOOTS = 3


@pytest.fixture(scope="module", autouse=True)
def committed(appliance, updates):
    """A bundle that was committed before anything went wrong."""
    return updates.install(appliance.to("booted"), 0.75)


class Seen:
    """What a client saw of a fault."""

    def __init__(self, unit, load):
        self.unit, self.load = unit, load
        self.begin = time.monotonic()

    def answers_again(self, timeout=300):
        """Waits until it answers one request after the other."""
        now = time.monotonic()
        self.unit.until(lambda: self.load.answered_since(now), "one answer after the other", timeout)


@pytest.fixture
def suffer(unit, record_property, measured):
    """`with suffer(fault) as seen`: the fault is in; after the block it is taken out, and everything must be as before."""

    @contextlib.contextmanager
    def during(fault):
        unit.strategy.wait_ready()
        before = unit.kept()
        boot = unit.boot()
        if fault.reason in ("watchdog", "panic") and boot["unhealthy_boots"] >= BAD_BOOTS:
            # One more, and it would rightly come up in safe mode.
            unit.until(lambda: unit.boot()["unhealthy_boots"] == 0, "a daemon that was well for a minute", 180)
        with Load(unit.url) as load:
            unit.until(lambda: load.counts()[200] >= 2, "two answers")
            seen = Seen(unit, load)
            held = fault.put_in(unit)
            try:
                yield seen
            finally:
                if not fault.reason:
                    fault.take_out(unit, held)
            if fault.reason:
                now = unit.another_boot(boot)
                assert now["number"] == boot["number"] + 1, "one fault, one reset"
                assert now["reason"] == fault.reason, now
            seen.answers_again()
        if not fault.reason:
            assert unit.boot()["number"] == boot["number"], "this needs no reset"
        assert unit.kept() == before, "something was lost"
        counts = load.counts(seen.begin)
        for name, value in (("back_s", round(load.gap(seen.begin), 1)), ("answered", counts[200]), ("refused_503", counts[503])):
            record_property(name, value)
        measured.append((fault.name, load.gap(seen.begin), counts[200], counts[503], counts["none"]))

    return during


def test_the_watchdog_holds_the_timeout_that_was_asked_for_and_was_armed_before_the_daemon(unit):
    dog = unit.page("/status")["watchdog"]
    assert dog["accepted_s"] == dog["asked_s"] == 15, dog
    assert dog["armed_before"] and not dog["remarks"], dog


@pytest.mark.parametrize(
    "fault",
    [faults.HOST_KILLED, faults.HOST_STOPPED, faults.HOST_OVER_MEMORY, faults.HOST_PROCESSES],
    ids=lambda fault: fault.name,
)
def test_what_happens_to_a_host_costs_callers_of_that_moment_a_503_and_nobody_else_anything(unit, suffer, fault):
    daemon = unit.process("daemon")
    with suffer(fault) as seen:
        if fault is faults.HOST_PROCESSES:
            assert int(unit.shell(f"sed -n 's/^max //p' {faults.HOST_GROUP}/pids.events")) > 0, "the limit was not reached"
        else:
            unit.until(lambda: seen.load.counts(seen.begin)[503], "a refusal")
    assert not seen.load.failures(), "something else than an answer or a 503"
    assert unit.process("daemon") == daemon
    groups = unit.until(lambda: (found := unit.shell("ls -d /sys/fs/cgroup/inferd/host-*").split()) and len(found) == 1 and found, "one group")
    assert int(unit.shell(f"wc -l <{groups[0]}/cgroup.procs")) == 1, "something is left of it"


def test_a_leak_in_a_host_ends_at_its_cap_every_time_and_the_daemon_does_not_grow(unit, suffer):
    def resident():
        return int(unit.shell(f"sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{unit.process('daemon')}/status")) << 10

    ends = "/status"
    before, start = resident(), unit.page(ends)["models"][0]["host"]["ends"]["oom"]
    leaks = 4
    for _ in range(leaks):
        with suffer(faults.HOST_OVER_MEMORY) as seen:
            unit.until(lambda: seen.load.counts(seen.begin)[503], "a refusal")  # noqa: B023
        assert not seen.load.failures()
    assert unit.page(ends)["models"][0]["host"]["ends"]["oom"] == start + leaks
    assert resident() - before < 2 * BYTES_OF_A_MIB


@pytest.mark.parametrize("fault", [faults.DAEMON_KILLED, faults.KEEPER_KILLED], ids=lambda fault: fault.name)
def test_a_daemon_or_a_keeper_that_is_killed_is_started_again(unit, suffer, fault):
    daemon = unit.process("daemon")
    with suffer(fault):
        unit.until(lambda: unit.processes("daemon") not in ([], [daemon]), "another daemon")


@pytest.mark.parametrize(
    "fault", [faults.TEST_DAEMON, faults.TEST_PANIC, faults.RESET, faults.REBOOT], ids=lambda fault: fault.name
)
def test_a_board_that_is_reset_serves_what_it_served_and_says_why(unit, suffer, fault):
    with suffer(fault):
        pass


def test_a_daemon_that_hangs_as_it_starts_is_reset_by_the_hardware(unit, suffer):
    resets = unit.machine().watchdog_resets()
    with suffer(faults.DAEMON_STUCK):
        pass
    assert unit.machine().watchdog_resets() == resets + 1, "the hardware did not do it"


@pytest.mark.parametrize("phase", ["it is there", "it answers"])
def test_a_daemon_that_ends_whenever_it_has_come_so_far_is_in_safe_mode_until_a_bundle_mends_it(
    unit, updates, record_property, measured, phase
):
    unit.strategy.wait_ready()
    took = faults.crash_loop(unit, phase)
    try:
        record_property("safe_mode_s", round(took, 1))
        measured.append((f"daemon: ends when {phase}; until safe mode", took, 0, 0, 0))
        health = unit.request("/healthz")
        assert health.status == 503 and "safe mode" in health.body.decode(), health.body
        assert unit.request("/livez").status == 200
        assert unit.request("/infer", WINDOW).status == 503
        # The keeper writes it down while the daemon already answers.
        unit.until(lambda: unit.history("safe-mode"), "safe mode in the history")
    finally:
        bundle = updates.install(unit, 0.1)
    assert not unit.page("/status")["safe_mode"]
    assert unit.kept()[1] == bundle


def test_a_full_disk_costs_no_answer_and_is_told_until_there_is_room(unit, suffer):
    with suffer(faults.DISK_FULL) as seen:
        unit.until(lambda: "disk" in alerts(unit), "an alert about the disk")
        assert not seen.load.failures() and not seen.load.counts()[503]
    unit.until(lambda: "disk" not in alerts(unit), "the end of the alert", 240)


def test_a_read_only_disk_costs_no_answer_and_is_told(unit, suffer):
    with suffer(faults.DISK_READ_ONLY) as seen:
        unit.until(lambda: "storage_failing" in alerts(unit), "an alert about the data directory", 240)
        assert not seen.load.failures() and not seen.load.counts()[503]
    unit.until(lambda: "storage_failing" not in alerts(unit), "the end of the alert", 240)


def test_a_disk_that_takes_ten_seconds_for_a_block_costs_no_answer_and_no_reset(unit, suffer):
    with suffer(faults.DISK_SLOW) as seen:
        # Longer than the keeper and the watchdog wait, with something to write.
        unit.shell("(echo slow >/data/slow; sync; rm /data/slow) </dev/null >/dev/null 2>&1 &")
        time.sleep(30)
        assert not seen.load.failures() and not seen.load.counts()[503]


@pytest.mark.parametrize("fault", [faults.CLOCK_BACK, faults.CLOCK_FORTH], ids=lambda fault: fault.name)
def test_a_clock_that_jumps_costs_nothing(unit, suffer, fault):
    with suffer(fault) as seen:
        unit.until(lambda: seen.load.answered_since(seen.begin, 10), "ten answers")
        assert unit.request("/healthz").status == 200
        assert not seen.load.failures() and not seen.load.counts()[503]


def test_a_network_that_comes_back_is_used_again(unit, suffer):
    with suffer(faults.UNPLUGGED) as seen:
        unit.until(lambda: seen.load.counts(seen.begin)["none"], "a request that nobody answers", 3 * REQUEST_TIMEOUT_S)


def test_200_clients_that_say_nothing_keep_nobody_out(unit, suffer):
    with suffer(faults.SILENT) as seen:
        assert unit.page("/status")["connections"] > 32, "there is no crowd"
        unit.until(lambda: seen.load.answered_since(seen.begin, 10), "ten answers")
        assert unit.request("/healthz").status == 200
        assert not seen.load.failures() and not seen.load.counts()[503]


def alerts(unit):
    """The kinds of alerts that are raised."""
    return {alert["alert"] for alert in unit.page("/api/v1/monitoring/status")["alerts"]}
