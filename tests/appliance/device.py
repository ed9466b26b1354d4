"""An appliance's updates as its operator sees them: bundles made with inferctl, HTTP requests, events as they come."""

import http.client
import json
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import hosttools
import layout as layouts

# The daemon is the keeper's child. Its group may hold another process for a moment: the program it asks which engines there are.
DAEMON = (
    'for p in $(cat /sys/fs/cgroup/inferd/daemon/cgroup.procs); do '
    'grep -q "^PPid:.$(cat /run/inferd/keeper/pid)$" /proc/$p/status 2>/dev/null && echo $p; done; true'
)

TRIAL_OVER = ("commit", "return")


class Workshop:
    """Makes bundles with `inferctl`, signed with the developer's key of this machine."""

    def __init__(self, inferctl, keys, folder):
        self.inferctl, self.keys, self.folder = Path(inferctl), keys, Path(folder)

    def bundle(self, name, model, version, *, product="collar", key=None, role="model-dev", **options):
        """Builds FOLDER/name.imb of one model directory; `options` become flags (`target="rpi4"` is `--target rpi4`).
        Returns the file and the bundle's id. The models are not run here: some are meant to fail on the device."""
        output = self.folder / f"{name}.imb"
        command = [self.inferctl, "--json", "bundle", "build", "--unchecked", "-o", output, "--product", product]
        command += ["--version", version, "--model", model, "--key", key or self.keys.model_key, "--role", role]
        for flag, value in options.items():
            command += [f"--{flag.replace('_', '-')}", value]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return output, json.loads(done.stdout)["id"]


def put_on_boot_partition(image, name, text, folder):
    """Writes a file to the FAT of an image, as a laptop would."""
    part = next(part for part in layouts.read_gpt(image)[1] if part.name == "boot")
    source = folder / name
    source.write_text(text)
    mcopy = hosttools.Tools(hosttools.IMAGE).path("mcopy")
    subprocess.run([mcopy, "-o", "-i", f"{image}@@{part.offset}", source, f"::{name}"], check=True)


def compiled(source, board, folder):
    """Compiles one file of Rust for an appliance; returns the program."""
    flags = ["-C", "linker=rust-lld", "-C", "panic=abort", "-C", "strip=symbols"]
    program = folder / source.stem
    subprocess.run(["rustc", "--edition", "2024", "--target", board.rust_target, *flags, "-o", program, source], check=True)
    return program


def connect(url, timeout=30):
    """A connection to a daemon."""
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)


def status(url, timeout=30):
    """What the daemon says of its slots."""
    with urllib.request.urlopen(f"{url}/api/v1/slots", timeout=timeout) as answer:
        return json.load(answer)


class Watch:
    """Listens to a daemon's events in a thread. Ends when the daemon does."""

    def __init__(self, url, since=None):
        self.verdicts, self.progress, self.ended = [], {}, False
        self.changed = threading.Condition()
        self.connection = connect(url, timeout=600)
        self.connection.request("GET", "/api/v1/events" + (f"?since={since}" if since is not None else ""))
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self):
        """Listens no longer."""
        self.connection.close()

    def wait(self, condition, timeout, what=""):
        """Waits until `condition()` is true; returns False when the daemon ended or it took too long."""
        end = time.monotonic() + timeout
        with self.changed:
            while not condition():
                left = end - time.monotonic()
                if self.ended or left <= 0:
                    return False
                self.changed.wait(left)
        return True

    def has(self, gate, bundle=None, outcome=None):
        """Whether a gate (None: any) has decided (about a bundle)."""
        return any(
            gate in (None, v["gate"]) and bundle in (None, v["bundle"]) and outcome in (None, v["outcome"]) for v in self.verdicts
        )

    def _listen(self):
        kind = ""
        try:
            for raw in self.answer:
                text = raw.decode().rstrip("\n")
                if text.startswith("event: "):
                    kind = text[7:]
                elif text.startswith("data: "):
                    page = json.loads(text[6:])
                    with self.changed:
                        if kind == "verdict":
                            self.verdicts.append(page)
                        else:
                            self.progress = page
                        self.changed.notify_all()
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass
        with self.changed:
            self.ended = True
            self.changed.notify_all()
