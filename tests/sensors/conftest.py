"""A device with an EMG model whose answers are known."""

import helpers
import places
import pytest

EMG_MODEL = places.ROOT / "tests/models/emg-loudest"


@pytest.fixture(scope="module")
def emg(tmp_path_factory):
    """One daemon with an IMU and an EMG model, and no source."""
    device = helpers.Native(tmp_path_factory.mktemp("emg"), models=[places.DEFAULT_MODEL, EMG_MODEL])
    try:
        device.wait_ready()
        helpers.until(lambda: device.request("/v2/models/emg-loudest/ready").status == 200, device)
        yield device
    finally:
        device.stop()
