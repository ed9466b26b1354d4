"""Models for the contract: the default one with another motif head, or with none."""

import hashlib
import random
import re
import shutil

import numpy
import places
import pytest
from safetensors.numpy import save_file


def _variant(folder, name, imu):
    """The default model under another name, with this text in place of its `[imu.motif]` section."""
    shutil.copytree(places.DEFAULT_MODEL, folder)
    page = (folder / "manifest.toml").read_text()
    page, renamed = re.subn(r'(?m)^name = "[^"]*"', f'name = "{name}"', page, count=1)
    page, replaced = re.subn(r"(?ms)^\[imu\.motif\]\n.*?(?=^\[)", imu, page)
    assert renamed == replaced == 1, "the manifest has the parts this changes"
    (folder / "manifest.toml").write_text(page)
    return folder


@pytest.fixture
def headless(tmp_path):
    """The default model without a motif head."""
    return _variant(tmp_path / "headless", "headless", "")


def linear_model(folder, tensors):
    """The default model with these tensors as the file of a linear head of three scores."""
    file = folder.with_suffix(".safetensors")
    save_file({name: numpy.array(values, numpy.float32) for name, values in tensors.items()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    section = (
        '[imu.motif]\nsource = "linear"\nfile = "head.safetensors"\n'
        f'sha256 = "{digest}"\nlabels = ["a", "b", "c"]\n\n'
    )
    _variant(folder, "linear", section)
    shutil.move(file, folder / "head.safetensors")
    return folder


@pytest.fixture
def linear(tmp_path):
    """The default model with a linear head over its latent: (directory, weight, bias)."""
    dice = random.Random(3)
    weight = [[dice.uniform(-0.1, 0.1) for _ in range(64)] for _ in range(3)]
    bias = [dice.uniform(-1, 1) for _ in range(3)]
    folder = linear_model(tmp_path / "linear", {"weight": weight, "bias": bias})
    return folder, weight, bias
