"""The program with the engines of vendors, and the real ONNX Runtime of the wheel that the tests have anyway."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import rust

from engines import chip as double
from engines import doubles
from engines.load import Right, ask


@pytest.fixture(scope="session")
def engine_host():
    """Where inferd-engine-host is, built once for the run."""
    return rust.build_for_tests() / "inferd-engine-host"


@pytest.fixture(scope="session")
def onnxruntime_library():
    """The libonnxruntime of the wheel."""
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    return library


@pytest.fixture
def with_ort(engine_host, onnxruntime_library):
    """Configuration of a daemon with the engine ort: `with_ort()`, or with another library."""

    def config(library=onnxruntime_library, more=""):
        return f'[hosts]\nengine_host = "{engine_host}"\nonnxruntime = "{library}"\n{more}'

    return config


@pytest.fixture(scope="session")
def built_double():
    """The double of libhailort and the program that makes containers for it."""
    return double.build()


@pytest.fixture(scope="session")
def pack_program(built_double):
    """The program that makes containers."""
    return built_double[1]


@pytest.fixture(scope="session")
def built_tensorrt():
    """The folder with the double of TensorRT and CUDA and the program that makes its plans."""
    return doubles.build("tensorrt-double")


@pytest.fixture(scope="session")
def built_providers():
    """The folder with the double that stands before a libonnxruntime."""
    return doubles.build("ort-double")


@pytest.fixture
def chip(built_double, tmp_path):
    """A chip of this test's own."""
    return double.Chip(tmp_path / "chip", built_double[0])


@pytest.fixture
def hailo_model(pack_program, tmp_path):
    """Folders of models with a container: `hailo_model()`, `hailo_model(deadline_ms=200)`."""

    def make(name="imu-motion", **options):
        return double.model(pack_program, tmp_path / "models" / name, name=name, **options)

    (tmp_path / "models").mkdir()
    return make


@pytest.fixture
def with_chip(engine_host, chip):
    """Configuration of a daemon with that chip: `with_chip()`, or with another library."""

    def config(library=None, more=""):
        return f'[hosts]\nengine_host = "{engine_host}"\nhailort = "{library or chip.library}"\nbreaker_pause_s = 1\n{more}'

    return config


@pytest.fixture(scope="session")
def windows(walk):
    """Windows whose answers differ by more than quantisation can blur."""
    x = np.array(walk["x"])
    still = np.zeros_like(x)
    still[:, 2] = 9.81
    return [window.round(6).tolist() for window in (x, still, 2.5 * x, -x, x[::-1] * 0.3 + still)]


@pytest.fixture
def right(native, windows):
    """The answers of the built-in engine, and how far a chip's may be from them."""
    daemon = native()
    answers = [ask(daemon, w)[1] for w in windows]
    daemon.stop()
    return Right(answers)
