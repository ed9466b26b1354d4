"""What is asked of a daemon whose engine changes under load: answers to inputs that are far from each other, each with its own reference.
Whatever a device does, an answer is the one to its own input, or there is none.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from helpers import until


def entry(daemon, name="imu-motion"):
    return next(m for m in daemon.request("/status").json()["models"] if m["name"] == name)


def serving(daemon, name="imu-motion"):
    return entry(daemon, name)["engine"]["kind"]


def ask(daemon, window):
    """An answer: its status, its latent, and the engine that stood in."""
    answer = daemon.request("/infer", {"x": window})
    latent = np.array(answer.json()["latent"]) if answer.status == 200 else None
    return answer.status, latent, answer.headers.get("X-Inferd-Engine")


class Right:
    """Which answer belongs to which input."""

    def __init__(self, answers):
        self.answers = answers
        apart = [np.linalg.norm(a - b) for i, a in enumerate(answers) for b in answers[:i]]
        self.far = min(apart)

    def check(self, index, latent):
        """It is the answer to this input and to no other."""
        off = [float(np.linalg.norm(latent - a)) for a in self.answers]
        assert off[index] < 0.4 * self.far, f"an answer to input {index} is {off} away from the right ones"


class Load:
    """Requests without a pause from several clients, until the end of the block; every answer is checked."""

    def __init__(self, daemon, windows, right, clients=3):
        self.daemon, self.windows, self.right, self.clients = daemon, windows, right, clients
        self.over, self.statuses, self.engines, self.wrong = threading.Event(), {}, {}, []

    def __enter__(self):
        self.pool = ThreadPoolExecutor(self.clients)
        self.running = [self.pool.submit(self._client, i) for i in range(self.clients)]
        return self

    def _client(self, index):
        while not self.over.is_set():
            index = (index + 1) % len(self.windows)
            status, latent, engine = self._ask(self.windows[index])
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.engines[engine] = self.engines.get(engine, 0) + 1
                try:
                    self.right.check(index, latent)
                except AssertionError as e:
                    self.wrong.append(str(e))

    def _ask(self, window):
        return ask(self.daemon, window)

    def answered(self, engine):
        """Waits until 20 more answers have come from this engine (`None`: from the preferred one)."""
        before = self.engines.get(engine, 0)
        until(lambda: self.engines.get(engine, 0) >= before + 20, self.daemon)

    def __exit__(self, *failed):
        self.over.set()
        self.pool.shutdown()
        if not any(failed):
            [r.result() for r in self.running]
            assert self.wrong == []
            assert set(self.statuses) <= {200, 500, 503}, self.statuses
