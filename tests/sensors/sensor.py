"""A microcontroller on a serial port, and recordings whose gesture is known."""

import ctypes
import itertools
import os
import subprocess
import threading
import time
import tomllib
import tty

import numpy
import places
from safetensors.numpy import load_file

REFERENCE = places.ROOT / "app/sources/reference"
RATE = 2000
STEPS = 10
# Microvolts that a count stands for in `muscles`.
SCALE = 0.05


def encoder(folder):
    """The reference encoder as a library."""
    library = folder / "frame.so"
    command = [os.environ.get("CC", "cc"), "-std=c99", "-O1", "-shared", "-fPIC", "-o", library, REFERENCE / "inferd_frame.c"]
    subprocess.run([str(part) for part in command], check=True)
    encode = ctypes.CDLL(str(library)).inferd_frame_encode
    encode.restype = ctypes.c_size_t
    return encode


def muscles(label):
    """A tenth of a second of somebody who makes this gesture, as counts: what the default model's golden vectors are."""
    model = places.SHIPPED_MODELS[1]
    labels = tomllib.loads((model / "manifest.toml").read_text())["emg"]["labels"]
    window = load_file(model / "golden.safetensors")[f"{labels.index(label)}/in/emg"]
    return numpy.round(window[0] / SCALE).astype(numpy.int16)


class Sensor:
    """Sends frames of 16 channels at 2 kHz for as long as it is plugged in; `path` is where the port appears. They hold one
    loud channel, or `signal` over and over: integers, 16 a row, rows by the ten. Its clock counts `rate` samples a second; `burst`
    frames come where one should."""

    def __init__(self, folder, encode):
        self.path = folder / "port"
        self.encode = encode
        self.gesture, self.channels, self.sending, self.skip, self.loud = 0, 16, True, 0, 20
        self.garbage, self.signal = b"", None
        self.rate, self.burst = RATE, 1
        # Every second frame is lost on its way.
        self.lossy = False
        # Of 100 frames, half a second, 20 are damaged on their way.
        self.noisy = False
        self.master = self.thread = None
        self.sequence = 0
        self.lock = threading.Lock()

    def plug(self):
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(slave))
        # Held open until the reader has it: a port without a reader hangs up.
        self.slave = slave
        os.set_blocking(self.master, False)
        self.thread = threading.Thread(target=self._send, args=(self.master,))
        self.thread.start()
        return self

    def unplug(self):
        master, self.master = self.master, None
        if self.thread:
            self.thread.join()
            self.path.unlink(missing_ok=True)
            os.close(self.slave)
            os.close(master)
            self.thread = None

    def _frame(self):
        out = (ctypes.c_uint8 * 1042)()
        if self.signal is None:
            row = [0] * self.channels
            row[self.gesture] = self.loud
            rows = [row] * STEPS
        else:
            at = self.sequence // STEPS * STEPS % len(self.signal)
            rows = self.signal[at : at + STEPS].tolist()
        values = (ctypes.c_int16 * (self.channels * STEPS))(*itertools.chain(*rows))
        at = self.sequence * 1_000_000 // self.rate & 0xFFFFFFFF
        length = self.encode(out, 1042, self.sequence & 0xFFFFFFFF, at, self.channels, STEPS, 0, values)
        return bytes(out[:length])

    def _send(self, master):
        due = time.monotonic()
        while self.master == master:
            due += STEPS / RATE
            time.sleep(max(0, due - time.monotonic()))
            with self.lock:
                data = self.garbage
                for _ in range(self.burst):
                    self.sequence += STEPS * (1 + self.skip)
                    self.skip = 0
                    lost = self.lossy and self.sequence // STEPS % 2
                    frame = self._frame() if self.sending and not self.garbage and not lost else b""
                    data += damaged(frame) if self.noisy and self.sequence // STEPS % 100 < 20 else frame
            try:
                os.write(master, data)
            except BlockingIOError:
                # Nobody reads: the sensor's own buffer runs over.
                pass


def damaged(frame):
    """A bit of its first sample's last value is another one: a loud channel that is not, for who does not look at the check."""
    at = 16 + 2 * 16 - 1
    return frame[:at] + bytes([frame[at] ^ 0x40]) + frame[at + 1 :] if frame else frame


def recording(path, gesture, loud=2.0, seconds=5):
    """An NPY file in which one electrode has this mean and all others none."""
    samples = numpy.zeros((RATE * seconds, 16), numpy.float32)
    samples[:, gesture] = loud
    numpy.save(path, samples)
    return path


def source(device, name=None):
    """What the device says of a source; the only one when none is named."""
    [found] = [s for s in device.request("/api/v1/sources").json()["sources"] if name in (None, s["name"])]
    return found


def counted(page, series):
    """The number of a series on the page of metrics."""
    [found] = [line for line in page.splitlines() if line.startswith(series + " ")]
    return float(found.split(" ")[1])
