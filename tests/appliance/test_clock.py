"""A clock that begins in 1970 and is set by the network, by whatever program the image has for it: Debian's chronyd, or BusyBox's ntpd in images by Buildroot.

The time server is a program of this room, on the board itself and at the board's own address: nobody here need be allowed a port below 1024.
"""

import re
import shutil
from pathlib import Path

import pytest
from appliance.test_provision import Card, report, until

PATIENCE_S = 240
ADDRESS = "10.0.2.15"
# Seconds since 1970, somewhere in these years. NTP's count of seconds began anew in 2036.
YEAR_2031, YEAR_2041 = 1_930_000_000, 2_250_000_000
# What each program says when it sets a clock.
STEPPED = r"services: .*(System clock was stepped by|setting time to)"


@pytest.fixture
def machine(boot, board, dev_image, tmp_path):
    """A board without a clock whose boot partition names the time server, and the server's program at hand there."""
    medium = shutil.copyfile(dev_image, tmp_path / "medium.img")
    Card(medium, tmp_path).write("inferd.toml", f'[time]\nservers = ["{ADDRESS}"]\n'.encode())
    with boot(medium, dev=True, keep_writes=True, restarts=True, clock="1970-01-01T00:00:00") as machine:
        yield machine


def year(machine):
    return int(machine.sh("date +%Y"))


def setter(machine):
    """The process that sets the clock, and its name."""
    return until(lambda: machine.root("pidof chronyd || pidof ntpd")[1].split()[:1], "a program that sets the clock")[0]


def serve(machine, program, seconds):
    """Tells the board this time from now on."""
    machine.root("kill $(cat /run/brought/pid)")
    machine.sh(f"echo {seconds} >/run/brought/base; ({program} /run/brought/base & echo $! >/run/brought/pid) </dev/null >/dev/null 2>&1")


def test_a_clock_without_a_battery_is_set_by_the_server_that_the_boot_partition_names_and_set_again(machine, tmp_path):
    machine.wait_for_console(rf"INFERD-NET eth0 {re.escape(ADDRESS)}", PATIENCE_S)
    program = machine.bring(Path(__file__).parent / "clock.rs", tmp_path)
    setter(machine)
    assert year(machine) == 1970, "nobody has told it yet"
    boot = machine.sh("cat /proc/sys/kernel/random/boot_id")
    serve(machine, program, YEAR_2031)
    until(lambda: year(machine) == 2031, "the year 2031")
    said = machine.wait_for_console(STEPPED, PATIENCE_S)
    assert machine.request("/readyz").status == 200

    # With a new address it is asked anew: what has set the clock is another process then, and knows nothing of before.
    before = setter(machine)
    serve(machine, program, YEAR_2041)
    machine.sh("(. /usr/libexec/inferd/common; TIME_SERVERS=x ask_for_the_time)")
    until(lambda: setter(machine) != before, "another process")
    until(lambda: year(machine) == 2041, "the year 2041")
    until(lambda: re.search(STEPPED, machine.console()[said.end():]), "who set it says so")
    machine.wait_ready(PATIENCE_S)
    assert machine.sh("cat /proc/sys/kernel/random/boot_id") == boot, "no keeper or watchdog took the jumps for a hang"
    machine.cut_power()
    assert not [line for line in report(Card(machine.image, tmp_path)) if "time" in line.lower() and line.startswith("NOTE:")]
