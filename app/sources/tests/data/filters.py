"""Writes filters.txt: impulse and noise through SciPy's filters. Run with SciPy 1.17: python filters.py > filters.txt

A line names a case, and is followed by one line of the output for the input x[n] of `signal()` below.
"""

import numpy as np
from scipy import signal as s

RATE = 2000.0
CASES = [("bandpass", low, high, order) for low, high in ((20, 450), (1, 980), (5, 500), (80, 120)) for order in (1, 2, 3, 4)]
CASES += [(kind, hz, 0, order) for kind in ("highpass", "lowpass") for hz in (1, 20, 450, 980) for order in (1, 2, 3, 4)]
CASES += [("notch", hz, q, 0) for hz, q in ((50, 30), (60, 30), (50, 1), (60, 100), (900, 5))]


def signal(n=60):
    """An impulse after a zero, then numbers of a generator that is written down in two lines anywhere."""
    x, state = [0.0, 1.0], 1
    while len(x) < n:
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        x.append(state / 0x40000000 - 1.0)
    return np.float32(x).astype(float)


def sections(kind, one, two, order):
    if kind == "notch":
        return s.tf2sos(*s.iirnotch(one, two, fs=RATE))
    return s.butter(order, [one, two] if kind == "bandpass" else one, kind, fs=RATE, output="sos")


for kind, one, two, order in CASES:
    out = s.sosfilt(sections(kind, one, two, order), signal())
    print("=", kind, one, two, order)
    print(" ".join(f"{v:.9g}" for v in out))
