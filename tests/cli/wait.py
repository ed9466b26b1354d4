"""Waiting for what a daemon will do."""

import time


def until(condition, daemon, timeout=60):
    """Returns the first true result of `condition`; fails with the daemon's log when none comes in time."""
    end = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < end, daemon.log_text()
        time.sleep(0.02)
    return result
