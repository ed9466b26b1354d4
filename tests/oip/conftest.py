"""Daemons for the tests of the Open Inference Protocol."""

import time

import pytest
from helpers import Native
from oip.wire import IMU_MOTION, MODELS, TYPES, Endpoint


def serve(folder, models):
    """A daemon that serves these models, all of them ready."""
    daemon = Native(folder, models=models)
    try:
        daemon.wait_listening()
        endpoint = Endpoint("127.0.0.1", daemon.port)
        end = time.monotonic() + 60
        while (ready := endpoint.get("/v2/health/ready")).status != 200 or unlike(endpoint, models):
            assert daemon.process.poll() is None, daemon.log_text()
            assert time.monotonic() < end, f"not ready: {ready.body}\n{daemon.log_text()}"
            time.sleep(0.02)
    except BaseException:
        daemon.stop()
        raise
    return daemon, endpoint


def unlike(endpoint, models):
    """Whether some directory has not become a model yet: they are loaded one after the other."""
    wanted = sum(1 if (m / "manifest.toml").is_file() else len(list(m.glob("*/manifest.toml"))) for m in models)
    return len(endpoint.post("/v2/repository/index", b'{"ready":true}').json()) != wanted


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory):
    """One daemon with a model per element type, one with two inputs and outputs, and the default model."""
    models = [MODELS / f"identity-{t}" for t in TYPES] + [MODELS / "two-in-two-out", IMU_MOTION]
    daemon, endpoint = serve(tmp_path_factory.mktemp("oip"), models)
    yield endpoint
    daemon.stop()


@pytest.fixture
def start(tmp_path_factory):
    """Starts daemons of a test's own: `start([directory, ...])` is a ready endpoint."""
    daemons = []

    def begin(models):
        daemon, endpoint = serve(tmp_path_factory.mktemp("own"), models)
        daemons.append(daemon)
        return endpoint

    yield begin
    for daemon in daemons:
        daemon.stop()
