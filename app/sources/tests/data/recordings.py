"""Writes recordings/: the same small recording by SciPy 1.17 and NumPy 2.4 in every form that is read.

python recordings.py. Row r, channel c is 100 * r + c - 250 (times 1/8 where the type has fractions).
"""

from pathlib import Path

import numpy as np
import scipy.io

HERE = Path(__file__).parent / "recordings"
ROWS, CHANNELS = 12, 5
WHOLE = (100 * np.arange(ROWS)[:, None] + np.arange(CHANNELS) - 250).astype(float)
STIMULUS = np.repeat([0, 1, 3, 0], 3)[:, None]


def ninapro(emg, **more):
    """What a file of NinaPro has, with much that is not wanted."""
    return {
        "emg": emg,
        "acc": np.zeros((ROWS, 3)),
        "stimulus": STIMULUS.astype(np.int8),
        "restimulus": np.roll(STIMULUS, 1).astype(np.int8),
        "repetition": (np.arange(ROWS)[:, None] // 3).astype(float),
        "frequency": np.array([[2000]], np.uint16),
        "subject": np.array([["s1"]]),
        "info": {"date": "today", "emg": 1},
        "cells": np.array([1, "two"], dtype=object),
    } | more


def npy(name, array, version=(1, 0)):
    with (HERE / f"{name}.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)


HERE.mkdir(exist_ok=True)
scipy.io.savemat(HERE / "plain.mat", ninapro(WHOLE / 8))
scipy.io.savemat(HERE / "compressed.mat", ninapro(WHOLE / 8), do_compression=True)
scipy.io.savemat(HERE / "single.mat", ninapro((WHOLE / 8).astype(np.float32)), do_compression=True)
scipy.io.savemat(HERE / "int16.mat", ninapro(WHOLE.astype(np.int16)), do_compression=True)
scipy.io.savemat(HERE / "windows.mat", {"data": (WHOLE / 8).reshape(3, 4, CHANNELS), "labels": [[4], [5], [6]]})
scipy.io.savemat(HERE / "level4.mat", {"emg": WHOLE}, format="4")
for kind in ("<f4", ">f4", "<f8", ">f8"):
    npy(f"{kind[1:]}-{'big' if kind[0] == '>' else 'little'}", (WHOLE / 8).astype(kind))
for kind in ("<i2", ">i2", "<i4", "<i8"):
    npy(f"{kind[1:]}-{'big' if kind[0] == '>' else 'little'}", WHOLE.astype(kind))
npy("fortran", np.asfortranarray(WHOLE / 8))
npy("version2", WHOLE / 8, (2, 0))
npy("version3", WHOLE / 8, (3, 0))
npy("windows", (WHOLE / 8).reshape(3, 4, CHANNELS))
npy("windows-fortran", np.asfortranarray((WHOLE / 8).reshape(3, 4, CHANNELS)))
npy("labels", STIMULUS)
npy("object", np.array([None]), (1, 0))
np.savetxt(HERE / "savetxt.csv", WHOLE / 8, delimiter=",", header="a,b,c,d,e", comments="")
np.savetxt(HERE / "default.txt", WHOLE / 8)
