"""Boards that hang before anybody could ask them anything; `tests/hil` has the faults of a board that is up.

Each machine restarts when its watchdog expires, as a board does; that it was the watchdog is QEMU's own word.
"""

import contextlib
import time

import places

INIT = places.BOARDS / "common/initramfs/init"
HANDOVER = "exec switch_root -c /dev/console /root /sbin/init"
FIRST_CANDIDATE = "for candidate in $slot $other; do"
HANG = "echo '<4>HANGS HERE' >/dev/kmsg; sleep 100000"
# Emulation on a busy machine; until the keeper has it, the watchdog waits for a minute.
PATIENCE_S = 240


def early(at, instead):
    """The initramfs' own /init with one line replaced."""
    text = INIT.read_text()
    assert text.count(at) == 1, f"the initramfs has no line {at}"
    return text.replace(at, instead)


HANGS = {
    "in the initramfs, before it has found the root": early(FIRST_CANDIDATE, f"{HANG}\n{FIRST_CANDIDATE}"),
    "as init, instead of starting anything": early(HANDOVER, "echo '<4>HANGS HERE' >/root/dev/kmsg; exec switch_root -c /dev/console /root /bin/sleep 100000"),
}


def test_a_board_that_hangs_before_any_program_of_ours_runs_is_reset_by_the_watchdog(boot, dev_image, record_property):
    with contextlib.ExitStack() as on:
        machines = {
            where: on.enter_context(boot(dev_image, wait=False, restarts=True, cpus=1, early=text)) for where, text in HANGS.items()
        }
        for machine in machines.values():
            machine.qmp.execute("query-status")
        hung = {}
        for where, machine in machines.items():
            machine.wait_for_console("HANGS HERE", PATIENCE_S)
            hung[where] = time.monotonic()
        for where, machine in machines.items():
            event = machine.qmp.wait_for("WATCHDOG", 1, PATIENCE_S)
            record_property(f"reset_s, hung {where}", round(event["at"] - hung[where], 1))
