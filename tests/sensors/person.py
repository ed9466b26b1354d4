"""A person with sensors on the arm, who is none of those the model learned from."""

import threading
import time
import tomllib

import numpy
import places

RATE = 2000
MODEL = places.ROOT / "app/inferd/models/emg-gestures"
EMG = tomllib.loads((MODEL / "manifest.toml").read_text())["emg"]
LABELS, PATTERNS = EMG["labels"], numpy.array(EMG["patterns"])
CHANNELS = PATTERNS.shape[1]
# What a sleeve pushes at once, and after how many pieces a held gesture repeats itself: after 2 s.
PIECE, HELD = RATE // 10, 20


def swapped(a, b):
    """An order of the channels in which two are exchanged."""
    order = list(range(CHANNELS))
    order[a], order[b] = b, a
    return order


class Person:
    """Muscles as the model knows them, seen by a sleeve that is turned by a third of the way to the next electrode; skin and contact
    make each channel weaker or stronger than the model has ever seen one."""

    def __init__(self, seed, turn=1 / 3):
        self.seed = seed
        rings = PATTERNS.reshape(len(LABELS), 2, 8)
        turned = (1 - turn) * rings + turn * numpy.roll(rings, 1, axis=2)
        # A quarter and four times: an electrode that is half off, and one right on the muscle.
        self.contact = numpy.exp2(numpy.random.default_rng(seed).uniform(-2, 2, CHANNELS))
        self.patterns = turned.reshape(len(LABELS), CHANNELS) * self.contact

    def signal(self, label, samples, number):
        """So many samples of a held gesture, in uV: noise of 20 to 450 Hz, as strong on each channel as the gesture makes it. The
        same for the same number, whenever it is asked for; a sleeve has those from 0 to HELD."""
        random = numpy.random.default_rng([self.seed, LABELS.index(label), number])
        noise = numpy.fft.rfft(random.standard_normal((samples, CHANNELS)), axis=0)
        hz = numpy.fft.rfftfreq(samples, 1 / RATE)
        noise[(hz < 20) | (hz > 450)] = 0
        signal = numpy.fft.irfft(noise, samples, axis=0)
        return signal / signal.std(axis=0) * self.patterns[LABELS.index(label)]


class Sleeve:
    """Pushes what a person does to a source of kind push, at the rate of a sensor, until it is taken off. A recording of 2 s has the
    same pieces whenever it begins; only which of them is the first depends on the machine."""

    def __init__(self, device, source, person):
        self.device, self.source, self.person = device, source, person
        self.label, self.order = LABELS[0], list(range(CHANNELS))
        self.worn, self.sequence = False, 0
        self.thread = None

    def __enter__(self):
        self.put_on()
        return self

    def __exit__(self, *_):
        self.take_off()

    def put_on(self):
        self.worn = True
        self.thread = threading.Thread(target=self._push)
        self.thread.start()

    def take_off(self):
        self.worn = False
        if self.thread:
            self.thread.join()
            self.thread = None

    def _push(self):
        # A tenth of a second at a time; where the machine is busy the samples come late and none is left out.
        due = time.monotonic()
        while self.worn:
            samples = self.person.signal(self.label, PIECE, self.sequence // PIECE % HELD)[:, self.order]
            body = {"samples": numpy.round(samples, 2).tolist(), "sequence": self.sequence}
            try:
                self.device.request(f"/api/v1/sources/{self.source}/samples", body)
            except OSError:
                # The device is not there this moment.
                continue
            self.sequence += PIECE
            due = max(due + 0.1, time.monotonic() - 0.3)
            time.sleep(max(0, due - time.monotonic()))
