"""Systems for whatever is on the target, brought, watched and judged over HTTP alone: a board's image need not have a root shell."""

import contextlib
import http.client
import re
import subprocess
import time
from pathlib import Path

from appliance import device, images, systems
from office import system_command

from hil.unit import WINDOW, Lacking

PARTS = ("rootfs", "boot", "boot-a", "boot-b")
# The least that a bundle may ask for.
HOLD_S = 30
CHUNK = 1 << 16
# What is said of a trial that the power ended, and of one that stood still because its machine had no processor for it.
BY_POWER = {"trial-interrupted", "not-started"}
BY_STARVING = {"watchdog-reset", "kernel-panic", "safe-mode"}
# Where a squashfs says when it was made; nobody reads it.
MADE_AT = slice(8, 12)


class Systems:
    """The systems of one unit: its bundles, what it says of them, and what it may say."""

    def __init__(self, unit, keys, parts, folder):
        self.unit, self.keys, self.folder = unit, keys, Path(folder)
        self.parts = {name: Path(parts) / name for name in PARTS if (Path(parts) / name).is_file()}
        assert "rootfs" in self.parts and len(self.parts) > 1, f"{parts} has not the parts of a system"
        rootfs = self.parts["rootfs"].read_bytes()
        # Two systems that differ in bytes and in nothing else, for one that is committed is not taken again.
        self.other = self.folder / "rootfs-other"
        self.other.write_bytes(rootfs[: MADE_AT.start] + bytes(4) + rootfs[MADE_AT.stop :])
        self.empty = self.folder / "rootfs-empty"
        self.empty.write_bytes(bytes(4096))
        self.cuts, self.starved_before = 0, 0
        self.starved_before = self.starved()
        self.seen = systems.newest(self.state())

    def page(self):
        """What it says of its systems, asked until it answers."""
        page = self.unit.until(lambda: self.unit.slots()["system"], "it says what becomes of its systems", systems.PATIENCE_S)
        if page["refused"]:
            raise Lacking(f"this target takes no system: {page['refused']['sentence']}")
        return page

    def state(self):
        """What was begun, and what became of it."""
        return self.page()["state"] or {"phase": "idle", "verdicts": [], "floors": {}, "tries": {}}

    def judge(self, version):
        """The state, of which everything new that is said of this version must be a commit, or an interruption that we made."""
        state = self.state()
        for said in systems.later(state, self.seen, version):
            code, tries = said["code"], said["tries"]
            power = code in BY_POWER and said["outcome"] == "interrupted" and tries["interruptions"] <= self.cuts + self.starved()
            starved = code in BY_STARVING and self.starved()
            assert said["outcome"] == "committed" or power or starved, f"a power cut is held against a system: {said}"
        self.seen = systems.newest(state)
        return state

    def starved(self):
        """How often an emulated board has stood still because its machine was too busy; a board in a rig never does."""
        try:
            expired = self.unit.machine().watchdog_resets()
        except Lacking:
            return 0
        told = re.findall(f"{systems.STOOD_STILL}|{systems.LET_GO}", self.unit.strategy.console_text())
        return expired + len(told) - self.starved_before

    def floor(self):
        """The highest version that was committed here, or that its image says of itself."""
        page = self.page()
        image = page["board"]["image"] or {}
        return max([0, image.get("version") or 0, *(page["state"] or {"floors": {}})["floors"].values()])

    def bundle(self, version, rootfs=None, key=None):
        """A system of this version: odd ones are the image's own, even ones the other."""
        files = self.parts | {"rootfs": rootfs or (self.other if version % 2 == 0 else self.parts["rootfs"])}
        file = self.folder / f"os-{version}-{len(list(self.folder.iterdir()))}.imb"
        command = system_command(file, self.unit.board.name, version, files, key or self.keys.system_key, HOLD_S)
        done = subprocess.run([str(part) for part in (images.inferctl(), *command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return file

    def push(self, file, stop_after=None):
        """Sends a bundle; (status, answer). Ends in the middle after so many bytes (None then). Asked again while root is at another one."""
        size, end = file.stat().st_size, time.monotonic() + systems.PATIENCE_S
        while True:
            connection = device.connect(self.unit.url, systems.PATIENCE_S)
            with contextlib.closing(connection):
                connection.putrequest("PUT", "/api/v1/bundle")
                connection.putheader("Content-Length", str(size))
                connection.putheader("X-API-Key", self.keys.api_key)
                connection.endheaders()
                # Who refuses it early hangs up in the middle of it, and has said why.
                with contextlib.suppress(ConnectionError), open(file, "rb") as bundle:
                    sent = 0
                    while sent < size:
                        if stop_after is not None and sent >= stop_after:
                            return None
                        connection.send(piece := bundle.read(CHUNK))
                        sent += len(piece)
                answer = connection.getresponse()
                status, text = answer.status, answer.read().decode()
            if status not in (409, 503) or '"busy"' not in text or time.monotonic() > end:
                return status, text
            time.sleep(1)

    def staged(self, version):
        """Has a system pushed, which the board then tries by itself."""
        status, text = self.push(self.bundle(version))
        assert status == 202, text

    def bring(self, version):
        """Has it tried: what is staged already, else what is pushed now."""
        if self.settled()["phase"] != "staged":
            return self.staged(version)
        # It may go down before it has answered.
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.unit.post("/api/v1/system/try", {})
        return None

    def runs_on_trial(self, version):
        """Waits until it runs and is watched, or is through already."""

        def so_far():
            page = self.page()
            state = page["state"]
            mine = bool(state) and state["phase"] == "trial" and state["about"]["version"] == version and page["board"]["on_trial"]
            return mine or (bool(state) and state["floors"].get("inferd-os", 0) >= version)

        self.unit.until(so_far, f"system {version} runs on trial", systems.TRIAL_S)

    def settled(self):
        """The state once no trial is under way."""
        return self.unit.until(lambda: (state := self.state()) and not systems.goes_on(state) and state, "the trial ends", systems.TRIAL_S)

    def committed(self, version):
        """Goes on with a system until it is committed: the board does so by itself, unless it holds none that it could try."""
        for _ in range(systems.ATTEMPTS):
            self.settled()
            state = self.judge(version)
            if state["floors"].get("inferd-os", 0) == version:
                return state
            self.bring(version)
            self.runs_on_trial(version)
        raise AssertionError(f"system {version} is never committed: {self.state()}")

    def cut(self):
        """Takes the power away and gives it back: one of the whole systems starts, and answers."""
        self.cuts += 1
        self.unit.to("cut").to("booted")
        self.unit.until(self.serves, "it answers", systems.TRIAL_S)

    def serves(self):
        """Whether it answers an inference now."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.unit.request("/infer", WINDOW).status == 200
        return False
