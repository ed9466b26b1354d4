"""Daemons for the tests of the Open Inference Protocol."""

import time

import pytest
from helpers import Native
from oip.wire import IMU_MOTION, MODELS, TYPES, Endpoint


def serve(folder, models, broken=0, **options):
    """A daemon that serves these models, all of them ready but the broken ones."""
    daemon = Native(folder, models=models, **options)
    try:
        daemon.wait_listening()
        endpoint = Endpoint("127.0.0.1", daemon.port)
        end = time.monotonic() + 60
        while count(endpoint, "READY") != directories(models) - broken or count(endpoint, "UNAVAILABLE") != broken:
            assert daemon.process.poll() is None, daemon.log_text()
            assert time.monotonic() < end and count(endpoint, "UNAVAILABLE") <= broken, daemon.log_text()
            time.sleep(0.02)
    except BaseException:
        daemon.stop()
        raise
    return daemon, endpoint


def directories(models):
    """How many models are in these directories; they are loaded one after the other."""
    return sum(1 if (m / "manifest.toml").is_file() else len(list(m.glob("*/manifest.toml"))) for m in models)


def count(endpoint, state):
    """How many models are in this state."""
    return sum(m["state"] == state for m in endpoint.post("/v2/repository/index").json())


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory):
    """One daemon with a model per element type, one with two inputs and outputs, and the default model."""
    models = [MODELS / f"identity-{t}" for t in TYPES] + [MODELS / "two-in-two-out", IMU_MOTION]
    daemon, endpoint = serve(tmp_path_factory.mktemp("oip"), models)
    yield endpoint
    daemon.stop()


@pytest.fixture
def start(tmp_path_factory):
    """Starts daemons of a test's own: `start([directory, ...], broken=0, config="TOML")` is a ready endpoint."""
    daemons = []

    def begin(models, **options):
        daemon, endpoint = serve(tmp_path_factory.mktemp("own"), models, **options)
        daemons.append(daemon)
        return endpoint

    yield begin
    for daemon in daemons:
        daemon.stop()
