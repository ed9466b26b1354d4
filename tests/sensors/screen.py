"""A person before a terminal: inferctl behind a pseudo-terminal, and an emulator of what is seen on it."""

import codecs
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte


class Screen:
    """A program on a terminal of this size; `text()` is what can be read there now."""

    def __init__(self, command, columns=100, lines=40, env=None):
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.Stream(self.screen)
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.raw = b""
        self.master, slave = pty.openpty()
        # Held open: what the program leaves set is looked at after its end.
        self.slave = slave
        self._resized(columns, lines)
        self.before = termios.tcgetattr(slave)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("INFERD_") and key != "NO_COLOR"}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**clean, "TERM": "xterm-256color", **(env or {})},
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )

    def _resized(self, columns, lines):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns, lines):
        """Another size, as a person drags a window to it; the kernel tells the program."""
        self.screen.resize(lines, columns)
        self._resized(columns, lines)

    def press(self, keys):
        os.write(self.master, keys.encode())

    def read(self, wait=0.0):
        """Takes what has come."""
        while select.select([self.master], [], [], wait)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            self.raw += data
            self.stream.feed(self.decode(data))
            wait = 0.0

    def text(self):
        self.read()
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait(self, condition, what, timeout=60):
        """Waits until what is seen is as `condition` wants it; what was seen then."""
        end = time.monotonic() + timeout
        while not condition(seen := self.text()):
            assert time.monotonic() < end, f"never: {what}\n{seen}"
            assert self.process.poll() is None, f"it ended with {self.process.returncode}\n{seen}"
            self.read(0.05)
        return seen

    def wait_for(self, *texts, timeout=60):
        return self.wait(lambda seen: all(text in seen for text in texts), texts, timeout)

    def ended(self, timeout=30):
        """Waits for the program's end; its status."""
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end\n{self.text()}"
            self.read(0.05)
        self.read()
        return self.process.returncode

    def put_back(self):
        """Whether the terminal is as it was: its modes, the page that was there before, and the cursor."""
        last = lambda code: max(self.raw.rfind(code + b"h"), self.raw.rfind(code + b"l"))
        left = self.raw[last(b"\x1b[?1049") :].startswith(b"\x1b[?1049l")
        seen = self.raw[last(b"\x1b[?25") :].startswith(b"\x1b[?25h")
        return termios.tcgetattr(self.slave) == self.before and left and seen

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        os.close(self.master)
