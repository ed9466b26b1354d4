"""Systems on whatever target takes them: installed, tried, committed or given back, and power that goes meanwhile.

On a board `--parts DIR` says what a system of its image consists of: the folder `parts` that a builder leaves beside it. What becomes of each
kind of bad system, and of writes that a medium loses, `tests/appliance/test_systems.py` has on the emulated board.
"""

import contextlib
import http.client
import os
import random
import time

import pytest
from appliance.systems import TRIAL_S, later, newest

from hil.systems import HOLD_S, Systems
from hil.unit import Lacking


@pytest.fixture(scope="module")
def systems(appliance, dev_keys, pytestconfig, tmp_path_factory):
    """What this target says of its systems, and bundles for it."""
    unit = appliance.to("booted")
    parts = pytestconfig.getoption("--parts", default=None) or unit.strategy.appliance.get_parts()
    if parts is None:
        pytest.skip("what a system of this target's image consists of is not known: --parts DIR")
    try:
        return Systems(unit, dev_keys, parts, tmp_path_factory.mktemp("systems"))
    except Lacking as lack:
        pytest.skip(str(lack))


@pytest.fixture(scope="module")
def chance():
    """Random instants, by one seed that is told."""
    seed = int(os.environ.get("INFERD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed}: INFERD_TEST_SEED repeats its choices")
    return random.Random(seed)


def test_a_system_that_the_key_for_models_signs_is_refused_and_one_that_cannot_start_gives_the_board_back(unit, systems, dev_keys):
    # The next good one is of a version before it: what was said of the one is not held against the other.
    kept, before, floor = unit.kept(), systems.page(), systems.floor()
    version = floor + 2
    status, text = systems.push(systems.bundle(version, key=dev_keys.model_key))
    assert (status, '"wrong-role"' in text) == (403, True), text
    assert systems.page()["board"] == before["board"], "a system that nobody may sign is tried"

    number = newest(systems.state())
    status, text = systems.push(systems.bundle(version, rootfs=systems.empty))
    assert status == 202, text
    # A board without an initramfs does not come as far as saying why; that is tried again before it is given up.
    said = unit.until(
        lambda: [v for v in later(systems.state(), number, version) if v["outcome"] == "returned"], "it is given back", 2 * TRIAL_S
    )
    assert said[0]["code"] in ("no-rootfs", "not-started", "kernel-panic", "watchdog-reset"), said
    after = systems.page()
    assert (after["board"]["runs"], after["board"]["chosen"]) == (before["board"]["runs"],) * 2, after
    assert systems.floor() == floor, "what was given back is remembered as committed"
    unit.strategy.came_back()
    unit.until(systems.serves, "the old system serves", TRIAL_S)
    assert unit.kept() == kept


def test_power_lost_in_an_install_and_in_a_trial_leaves_a_whole_system_and_the_update_is_committed(
    unit, systems, chance, pytestconfig, record_property
):
    kept, cuts = unit.kept(), pytestconfig.getoption("--system-cuts", default=2)
    while systems.cuts < cuts:
        old, version = systems.page()["board"]["runs"], systems.floor() + 1
        # A part of the bundle, or all of it and what root then does with it.
        part = chance.uniform(0, 1.2)
        file = systems.bundle(version)
        systems.push(file, stop_after=part * file.stat().st_size) if part < 1 else begin(systems, file, chance)
        systems.cut()
        record_property("cut_install", round(part, 2))
        if part < 1:
            assert systems.page()["board"]["runs"] == old, "what was cut in its install is started"
        if systems.cuts < cuts:
            cut_trial(unit, systems, version, chance, record_property)
        state = systems.committed(version)
        assert state["phase"] == "idle" and systems.page()["board"]["runs"] != old, systems.page()
        unit.strategy.came_back()
        unit.until(systems.serves, "the new system serves", TRIAL_S)
        assert unit.kept() == kept, "an update of the system has changed what its model answers"


def begin(systems, file, chance):
    """All of it is sent, and the power goes while root hashes, arms or restarts the board."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        systems.push(file)
    time.sleep(chance.uniform(0, 5))


def cut_trial(unit, systems, version, chance, record_property):
    """The power goes at an instant between the restart for a trial and its commit."""
    if systems.settled()["floors"].get("inferd-os", 0) == version:
        return
    systems.bring(version)
    unit.strategy.wait_gone(TRIAL_S)
    instant = chance.uniform(0, unit.strategy.boot_s + HOLD_S)
    record_property("cut_trial_s", round(instant, 1))
    time.sleep(instant)
    systems.cut()
    systems.judge(version)
