"""Somebody who starts a daemon and listens to it, as the keeper of an image and systemd do; and who takes its orders."""

import json
import os
import socket
import threading
import time
from contextlib import suppress


class Keeper:
    """Everything a daemon says, with the time it was said at. `timeout` is how long it may be silent, in seconds."""

    def __init__(self, folder, timeout=1.5, abstract=False):
        folder.mkdir(exist_ok=True)
        self.folder, self.said, self.orders = folder, [], []
        self.answers = {"answer": "done"}
        self.name = f"@inferd-test-{os.getpid()}-{id(self)}" if abstract else str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + self.name[1:] if abstract else self.name)
        self.ask = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ask.bind(str(folder / "ask"))
        self.ask.listen(4)
        self.env = {
            "NOTIFY_SOCKET": self.name,
            "WATCHDOG_USEC": str(int(timeout * 1e6)),
            "INFERD_KEEPER": str(folder / "ask"),
            "INFERD_WATCH_KEEPER_DIR": str(folder),
        }
        for work in (self._listen, self._obey):
            threading.Thread(target=work, daemon=True).start()

    def _listen(self):
        with suppress(OSError):
            while True:
                text = self.socket.recv(4096).decode()
                self.said.append((time.monotonic(), text))

    def _obey(self):
        with suppress(OSError):
            while True:
                connection, _ = self.ask.accept()
                with connection:
                    self.orders.append(json.loads(connection.recv(4096)))
                    connection.send(json.dumps(self.answers).encode())

    def close(self):
        """Listens no more."""
        self.socket.close()
        self.ask.close()

    def heard(self, beginning, *, after=0.0, timeout=60):
        """Waits until something that begins so is said after that time; when and what."""
        end = time.monotonic() + timeout
        while True:
            for at, text in list(self.said):
                if at > after and text.startswith(beginning):
                    return at, text
            assert time.monotonic() < end, f"{beginning!r} is never said: {self.said[-12:]}"
            time.sleep(0.01)

    def texts(self):
        """Everything that was said, in order."""
        return [text for _, text in list(self.said)]

    def fed(self, after, times=3):
        """Waits until progress was proved so often after that time."""
        for _ in range(times):
            after, _ = self.heard("WATCHDOG=1", after=after)
        return after

    def starves(self, why, after):
        """Waits until the daemon says that it cannot prove this, twice, and nothing was proved between the two."""
        first, text = self.heard("STATUS=no progress", after=after)
        second, _ = self.heard("STATUS=no progress", after=first)
        assert why in text, text
        between = [text for at, text in list(self.said) if first <= at <= second and text == "WATCHDOG=1"]
        assert between == [], self.said
        return second

    def state(self, **changes):
        """Writes what a keeper knows of this boot."""
        known = {
            "boot": 42,
            "reset": {"reason": "watchdog", "sentence": "the hardware watchdog reset the board"},
            "watchdog": {
                "device": "/dev/watchdog0", "identity": "test dog", "asked_s": 15, "accepted_s": 14, "left_s": 13,
                "boot_status": 32, "armed_before": True, "remarks": ["15 s were asked for, 14 s accepted"],
            },
            "starts": 3,
            "unhealthy_boots": 1,
            "safe_mode": None,
            "lasting": True,
            **changes,
        }
        (self.folder / "state.json").write_text(json.dumps(known))
        return known
