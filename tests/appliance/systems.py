"""Systems for the two slots of a board, installed and tried as root does with a root shell."""

import contextlib
import json

from steps import Failure

PROGRAM = "inferd system --config /run/inferd/inferd.toml"
# Emulated, everything is hashed and written at a tenth of a board's pace.
PATIENCE_S = 600


def install(machine, file):
    """Streams a bundle into the slot that is not chosen; (status, what was said)."""
    with machine.serving(file.parent) as url:
        return machine.root(f"wget -q -O - {url}/{file.name} | {PROGRAM} install - 2>&1", PATIENCE_S)


def ask_for_a_try(machine):
    """Has the installed system tried. The board restarts: perhaps before the shell has answered."""
    with contextlib.suppress(Failure, OSError):
        status, said = machine.root(f"{PROGRAM} try 2>&1", PATIENCE_S)
        assert status == 0, said


def status(machine, timeout=60):
    """What the board says of its systems."""
    return json.loads(machine.sh(f"{PROGRAM} status", timeout))
