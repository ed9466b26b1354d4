"""Boards that hang before anybody could ask them anything; `tests/hil` has the faults of a board that is up.

Each machine restarts when its watchdog expires, as a board does; that it was the watchdog is QEMU's own word.
"""

import contextlib
import time

import places

INIT = places.BOARDS / "common/initramfs/init"
HANDOVER = "exec switch_root -c /dev/console /root /sbin/init"
ARMING = ": >/dev/watchdog0 && armed=yes"
FIRST_CANDIDATE = "for candidate in $slot $other; do"
HANG = "echo '<4>HANGS HERE' >/dev/kmsg; sleep 100000"
# Emulation on a busy machine; until the keeper has it, the watchdog waits for a minute.
PATIENCE_S = 240


def early(*changes):
    """The initramfs' own /init with some lines replaced."""
    text = INIT.read_text()
    for line, by in changes:
        assert text.count(line) == 1, f"the initramfs has no line {line}"
        text = text.replace(line, by)
    return text


IN_INITRAMFS = (FIRST_CANDIDATE, f"{HANG}\n{FIRST_CANDIDATE}")
AS_INIT = (HANDOVER, "echo '<4>HANGS HERE' >/root/dev/kmsg; exec switch_root -c /dev/console /root /bin/sleep 100000")
HANGS = {"in the initramfs": early(IN_INITRAMFS), "as init": early(AS_INIT)}
# The control: it hangs for ever, so it is the arming that ends the others.
NEVER_ARMED = early(IN_INITRAMFS, (ARMING, "armed=yes"))


def test_a_board_that_hangs_before_any_program_of_ours_runs_is_reset_by_the_watchdog(boot, dev_image, record_property):
    with contextlib.ExitStack() as on:

        def start(text):
            machine = on.enter_context(boot(dev_image, wait=False, restarts=True, cpus=1, early=text))
            machine.qmp.execute("query-status")
            return machine

        control = start(NEVER_ARMED)
        control.wait_for_console("HANGS HERE", PATIENCE_S)
        machines, hung = {where: start(text) for where, text in HANGS.items()}, {}
        for where, machine in machines.items():
            machine.wait_for_console("HANGS HERE", PATIENCE_S)
            hung[where] = time.monotonic()
        for where, machine in machines.items():
            event = machine.qmp.wait_for("WATCHDOG", 1, PATIENCE_S)
            record_property(f"reset_s, hung {where}", round(event["at"] - hung[where], 1))
        assert not control.qmp.told("WATCHDOG"), "it would have been reset without the initramfs, too"
