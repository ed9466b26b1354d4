"""A device with both default models, a generator and a source that is pushed to."""

import helpers
import places
import pytest

CONFIG = '[[sources]]\nname = "arm"\nkind = "synthetic"\ngesture = "Pinch"\n[[sources]]\nname = "phone"\nkind = "push"\n'
MODELS = [places.DEFAULT_MODEL, places.ROOT / "app/inferd/models/emg-gestures"]


@pytest.fixture(scope="package")
def device(tmp_path_factory):
    device = helpers.Native(tmp_path_factory.mktemp("client"), models=MODELS, config=CONFIG)
    try:
        device.wait_ready()

        def recognised():
            sources = device.request("/api/v1/sources").json()["sources"]
            return sources[0]["predictions"] > 0 and sources[1]["model"]

        helpers.until(recognised, device)
        yield device
    finally:
        device.stop()
