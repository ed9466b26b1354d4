"""The operator's tool as a program, and free ports nobody listens on."""

import os
import platform
import subprocess
from pathlib import Path

import places
import pytest
import qemu


def inferctl_program():
    """`$INFERCTL_BIN`, else the newer of the static release build of this machine's architecture and the debug build."""
    chosen = os.environ.get("INFERCTL_BIN")
    candidates = [Path(chosen)] if chosen else [
        places.target() / f"{platform.machine()}-unknown-linux-musl/release/inferctl",
        places.target() / "debug/inferctl",
    ]
    found = max((path for path in candidates if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    if found is None:
        pytest.fail(f"no inferctl to test at {' or '.join(map(str, candidates))}; `cargo build -p inferctl`, or set INFERCTL_BIN")
    return found


@pytest.fixture(scope="session")
def inferctl():
    """Runs inferctl: `inferctl("status", url=...)` gives the finished process with its output as text."""
    program = inferctl_program()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("INFERD_")}

    def run(*arguments, url=None, stdin="", env=None):
        where = ["--url", url] if url else []
        command = [str(part) for part in (program, *where, *arguments)]
        return subprocess.run(command, input=stdin, env={**clean, **(env or {})}, capture_output=True, text=True, timeout=120)

    run.program = program
    return run


@pytest.fixture
def nobody():
    """A URL where nobody listens."""
    return f"http://127.0.0.1:{qemu.free_port()}"
