"""The daemon as a real process, with any models and configuration, and HTTP requests to it.

The daemon is `$INFERD_BIN`, else the static release build of this machine's architecture or the debug build, whichever
is newer. `scripts/test` builds the static one before it starts these tests.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import places
import pytest
import qemu

DEFAULT_MODEL = places.DEFAULT_MODEL


def until(condition, what, timeout=60):
    """Waits for something that happens by itself; what it gave. `what` says it in words, or is the daemon whose log tells why not."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, what.log_text() if hasattr(what, "log_text") else f"never: {what}"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def somebody(uid, gid):
    """Opens files and sockets as this user."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


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


def inferd_program():
    """The daemon's program."""
    chosen = os.environ.get("INFERD_BIN")
    candidates = [Path(chosen)] if chosen else [
        places.target() / f"{platform.machine()}-unknown-linux-musl/release/inferd",
        places.target() / "debug/inferd",
    ]
    found = max((path for path in candidates if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    if found is None:
        pytest.fail(f"no daemon to test at {' or '.join(map(str, candidates))}; `scripts/test` builds it, or set INFERD_BIN")
    return found


class Answer:
    """An HTTP answer, whatever its status."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        """The body as JSON."""
        return json.loads(self.body)


def request(url, body=None, *, method=None, headers=None, timeout=30):
    """One HTTP request; a body that is no bytes is sent as JSON. Statuses of 4xx and 5xx are answers, not exceptions."""
    headers = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
    call = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(call, timeout=timeout) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def freeze(pid):
    """Stops a process, and waits until every thread of it really stands still: one on another core may go on a moment."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        if all(stat.rsplit(")", 1)[1].split()[0] == "T" for stat in stats):
            return
        time.sleep(0.001)
    pytest.fail(f"process {pid} does not stop")


class Native:
    """A daemon on this machine: its base URL, process and log."""

    def __init__(self, folder, *, models=(DEFAULT_MODEL,), config="", env=None, arguments=(), listen="127.0.0.1", port=None):
        self.port = port or qemu.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"inferd-{self.port}.log"
        file = folder / f"inferd-{self.port}.toml"
        file.write_text(config)
        command = [inferd_program(), "--config", file, "--listen", f"{listen}:{self.port}", *arguments]
        for model in models:
            command += ["--models", model]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("INFERD_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env={**clean, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self, timeout=60):
        """Waits until /readyz says 200; fails the test with the log when the daemon ends or stays unready."""
        end, state = time.monotonic() + timeout, ""
        while (state := qemu.readiness(self.url)) != "ready":
            if self.process.poll() is not None:
                pytest.fail(f"the daemon ended with status {self.process.returncode}:\n{self.log_text()}")
            if time.monotonic() > end:
                pytest.fail(f"the daemon was not ready within {timeout} s; last state: {state}\n{self.log_text()}")
            time.sleep(0.02)
        return self

    def wait_listening(self, timeout=30):
        """Waits until /livez answers, ready or not."""
        end = time.monotonic() + timeout
        while True:
            try:
                if request(f"{self.url}/livez", timeout=2).status == 200:
                    return self
            except OSError:
                pass
            if self.process.poll() is not None:
                pytest.fail(f"the daemon ended with status {self.process.returncode}:\n{self.log_text()}")
            if time.monotonic() > end:
                pytest.fail(f"the daemon did not listen within {timeout} s\n{self.log_text()}")
            time.sleep(0.02)

    def request(self, path, body=None, **options):
        """One HTTP request to this daemon; see `request`."""
        return request(f"{self.url}{path}", body, **options)

    def log_text(self):
        """What the daemon has logged."""
        return self.log.read_text(errors="replace")

    def logged(self, text):
        """Waits until the log has this text: it is written by a thread of its own, after what it tells has happened."""
        until(lambda: text in self.log_text(), f"{text!r} in the log")

    def stop(self, timeout=20):
        """SIGTERM, then SIGKILL; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode
