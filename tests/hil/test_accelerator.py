"""The accelerator of a board that has one. No chip has been met by this; where there is none it is skipped, with the reason.

What becomes of a chip that hangs or is lost is tried by hand (README.md): nothing here can do that to one.
"""

import pytest

from hil.unit import WINDOW

# Those of `engines.kinds` of a board that compute on a device of their own; /status calls them the same.
ACCELERATORS = ("hailo", "tensorrt")


@pytest.fixture
def engine(unit):
    """What /status says of the engine of the board's accelerator."""
    kinds = [kind for kind in unit.board.engines if kind in ACCELERATORS]
    if not kinds:
        pytest.skip(f"{unit.board.name} has no accelerator")
    found = next((engine for engine in unit.page("/status")["engines"] if engine["engine"] == kinds[0]), None)
    if found is None:
        pytest.skip(f"this image has no program with the engine {kinds[0]}")
    if found["absent"]:
        pytest.skip(f"this image has no library for it: {found['problem']}")
    return found


def wrong(engine):
    """What is wrong with an engine, in its own words; None where nothing is."""
    if engine["problem"] or engine.get("mismatch"):
        return engine["problem"] or engine["mismatch"]
    return None if engine["version"] and engine["providers"] else f"it does not say what it is: {engine}"


def served_by(page, model):
    """The engine that /status says a model runs on: `hailo` of `hailo-hef`."""
    (found,) = [entry for entry in page["models"] if entry["name"] == model]
    return (found["engine"]["rung"] or "").split("-")[0]


def test_the_accelerator_is_ready_and_its_library_driver_and_firmware_are_of_one_release(engine):
    assert wrong(engine) is None


def test_a_compiled_model_answers_on_the_accelerator(unit, engine, updates, pytestconfig):
    folder = pytestconfig.getoption("--compiled", default=None)
    if folder is None:
        pytest.skip("no compiled model was given: --compiled DIR, as `inferctl compile` leaves it")
    bundle, model = updates.install_given(unit, folder)
    assert unit.slots()["serving"]["bundle"] == bundle
    assert served_by(unit.page("/status"), model) == engine["engine"]
    for _ in range(100):
        answer = unit.request("/infer", WINDOW)
        assert answer.status == 200, answer.body
        # It is named where it is not the one that the manifest wants.
        assert answer.headers.get("X-Inferd-Engine", engine["engine"]).split("-")[0] == engine["engine"]
    assert served_by(unit.page("/status"), model) == engine["engine"], "it fell back meanwhile"
