"""`inferctl compile` with a stand-in for Hailo's compiler. The real one, closed and for those with an account, was never run here:
what these tests hold is what it is asked, and what becomes of its file."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import places
import pytest
from helpers import inferctl_program

STAND_IN = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
parser) : > parsed.har ;;
optimize) test -f parsed.har && cp calibration.npy {log}.npy && : > optimized.har ;;
compiler) test -f optimized.har && printf 'a compiled network' > imu-motion.hef ;;
esac
"""


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(places.DEFAULT_MODEL, tmp_path / "imu-motion")


@pytest.fixture
def compiler(tmp_path):
    """Puts a program called hailo on the path; where it writes what it was asked."""
    (folder := tmp_path / "bin").mkdir()
    log = tmp_path / "asked"

    def install(text):
        (folder / "hailo").write_text(text.format(log=shlex.quote(str(log))))
        (folder / "hailo").chmod(0o755)
        return log, folder

    return install


def compile_model(model, to, *options, path=None, target="hailo8"):
    command = [inferctl_program(), "compile", model, "-o", to, "--target", target, "--python", sys.executable, *options]
    environment = {**os.environ, "PATH": f"{path}:/usr/bin:/bin" if path else "/nowhere"}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment)


def nothing_is_left(to):
    return not to.exists() and not list(to.parent.glob(f"{to.stem}.part-*"))


def test_hailos_compiler_is_driven_and_its_file_becomes_the_first_rung(native, model, compiler, tmp_path, walk):
    log, path = compiler(STAND_IN)
    rng = np.random.default_rng(3)
    np.save(tmp_path / "windows.npy", rng.normal(size=(16, 100, 9)).astype(np.float32))
    done = compile_model(model, to := tmp_path / "new", "--calibration", tmp_path / "windows.npy", path=path)
    assert done.returncode == 0, done.stderr
    parse, optimize, compile_ = log.read_text().splitlines()
    assert parse == f"parser onnx {model.resolve()}/model.onnx --har-path parsed.har --hw-arch hailo8"
    assert optimize == "optimize parsed.har --calib-set-path calibration.npy --output-har-path optimized.har --hw-arch hailo8"
    assert compile_ == "compiler optimized.har --output-dir . --hw-arch hailo8"
    calibration = np.load(f"{log}.npy")
    page = tomllib.loads((to / "manifest.toml").read_text())
    constants = page["inputs"][0]["normalization"]
    mean, std = np.float32(constants["mean"]), np.float32(constants["std"])
    assert np.array_equal(calibration, (np.load(tmp_path / "windows.npy") - mean) / std), "as the network sees them"

    (variant,) = page["variants"]
    assert page["engines"] == ["hailo", "ort", "cpu"]
    assert (variant["name"], variant["format"], variant["precision"]) == ("hailo8", "hef", "int8")
    assert variant["made_for"] == {"device": "hailo8", "runtime": ">=4.21, <4.24"}
    assert variant["sha256"] == hashlib.sha256(b"a compiled network").hexdigest()
    assert (to / variant["file"]).read_bytes() == b"a compiled network"

    daemon = native(models=[to])
    served = daemon.request("/status").json()["models"][0]
    assert (served["engine"]["rung"], served["engines"]) == ("cpu", ["hailo", "ort", "cpu"])
    assert daemon.request("/infer", walk).status == 200, "a device without the chip serves it as before"


def test_a_second_chip_has_a_network_of_its_own(native, model, compiler, tmp_path, walk):
    log, path = compiler(STAND_IN)
    first, both = tmp_path / "first", tmp_path / "both"
    for source, to, target in ((model, first, "hailo8"), (first, both, "hailo8l")):
        done = compile_model(source, to, path=path, target=target)
        assert done.returncode == 0, done.stderr
    page = tomllib.loads((both / "manifest.toml").read_text())
    assert page["engines"] == ["hailo-hailo8l", "hailo-hailo8", "ort", "cpu"]
    assert [(v["name"], v["made_for"]["device"]) for v in page["variants"]] == [("hailo8", "hailo8"), ("hailo8l", "hailo8l")]
    daemon = native(models=[both])
    assert daemon.request("/infer", walk).status == 200
    log.unlink()
    again = compile_model(both, to := tmp_path / "again", path=path)
    assert again.returncode == 1 and "has a network for hailo8 already" in again.stderr
    assert not log.exists() and nothing_is_left(to), "said before the compiler has worked for hours"


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--cosine", "2"), "cosine"), (("--max-abs", "nan"), "max_abs"), (("--runtime", "new"), "runtime"), (("--runtime", ""), "runtime")],
)
def test_what_a_manifest_may_not_say_is_refused_before_the_compiler_runs(model, compiler, tmp_path, option, said):
    log, path = compiler(STAND_IN)
    done = compile_model(model, to := tmp_path / "new", *option, path=path)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert not log.exists() and nothing_is_left(to)


def test_without_hailos_compiler_it_says_how_to_get_it(model, tmp_path):
    done = compile_model(model, to := tmp_path / "new")
    assert done.returncode == 1
    assert "not installed here" in done.stderr and "hailo.ai/developer-zone" in done.stderr
    assert nothing_is_left(to)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho unsupported layer >&2\nexit 1\n", "hailo parser failed (exit status: 1):\nunsupported layer"),
        ("#!/bin/sh\n[ $1 = compiler ] && kill -9 $$\nexit 0\n", "signal: 9"),
        ("#!/bin/sh\nexit 0\n", "left 0 HEF files"),
        ("#!/bin/sh\n: > a.hef\n", "0 bytes"),
    ],
    ids=["a step fails", "it is killed", "it makes nothing", "it makes an empty file"],
)
def test_a_compiler_that_fails_leaves_nothing(model, compiler, tmp_path, text, said):
    _, path = compiler(text)
    done = compile_model(model, to := tmp_path / "new", path=path)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert nothing_is_left(to)
