"""The program with the engines of vendors, and the real ONNX Runtime of the wheel that the tests have anyway."""

import subprocess
from pathlib import Path

import onnxruntime
import places
import pytest


@pytest.fixture(scope="session")
def engine_host():
    """Where inferd-engine-host is, built once for the run."""
    build = ["cargo", "build", "--locked", "--quiet", "-p", "inferd-engine-host"]
    subprocess.run(build, cwd=places.ROOT, check=True)
    return places.target() / "debug/inferd-engine-host"


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
