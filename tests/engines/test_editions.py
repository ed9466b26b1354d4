"""New editions of a model that a Hailo chip serves: one chip, two editions, and requests all the while."""

import re
import shutil

import pytest
from helpers import until
from updates.rig import Office, committed, curl, slots, verdicts

from engines import chip as double
from engines.load import Load, entry, serving

MODEL = "imu-motion"
# Scores near 0 have other directions and another largest one in steps of 1/255, and machines of tests are busy: neither is asked about here.
LENIENT = [
    *("--shadow-min-cosine=-1", "--shadow-min-agreement", 0, "--shadow-max-latency-ratio", 1000),
    *("--probation-max-drift", 1000, "--probation-max-p99-ratio", 1000),
]


@pytest.fixture(scope="module")
def office(inferctl, tmp_path_factory):
    """Keys and bundles."""
    return Office(inferctl, tmp_path_factory.mktemp("office"))


@pytest.fixture
def device(native, office, with_chip, hailo_model, tmp_path):
    """A daemon with two empty slots whose own model is on the chip: `device()`, or with other engines or settings."""
    (folder := tmp_path / "updates").mkdir()
    shutil.copy(office.root, folder / "root.imr")

    def start(more="", **options):
        config = f"{with_chip(more=more)}[updates]\nslot_size_mib = 16\n"
        daemon = native(models=[hailo_model(**options)], config=config, arguments=["--updates-dir", folder])
        assert serving(daemon) == "hailo"
        return daemon

    return start


@pytest.fixture
def edition(pack_program, tmp_path):
    """Folders of new editions: `edition(2)`, `edition(2, engines=["hailo"])`."""

    def make(version, **options):
        folder = double.model(pack_program, tmp_path / f"edition-{version}" / MODEL, **options)
        page = (folder / "manifest.toml").read_text()
        (folder / "manifest.toml").write_text(re.sub(r'(?m)^version = ".*"', f'version = "0.0.{version}"', page, count=1))
        return folder

    return make


def told_of(daemon, gate="golden"):
    """What the last verdict of a gate tells of the model."""
    return verdicts(daemon, gate)[-1]["evidence"][MODEL]


def on_the_chip(daemon, version):
    seen = entry(daemon)
    return seen["version"] == version and seen["engine"]["kind"] == "hailo" and seen["fallback"] is None


def test_a_bundle_under_load_is_proven_on_the_chip_that_the_old_edition_leaves_for_it(device, office, edition, windows, right, chip):
    daemon = device()
    bundle = office.bundle(2, *LENIENT, model=edition(2), product="chip")
    with Load(daemon, windows, right) as load:
        load.answered(None)
        status, told = curl(daemon, bundle)
        assert status == 200, told
        until(lambda: on_the_chip(daemon, "0.0.2"), daemon)
        load.answered(None)
        committed(daemon, 2)
    assert set(load.statuses) == {200}, "nobody was refused"
    assert load.engines["cpu"] > 0, "the old edition had stepped down, and said so"
    golden = told_of(daemon)
    assert golden["proven"] == "hailo" and set(golden["not_proven"]) == {"cpu"}, golden
    assert golden["min_cosine"] == double.GOLDEN["cosine"] < golden["cosine"]
    assert golden["max_abs"] < golden["limit_max_abs"] == double.GOLDEN["max_abs"]
    assert told_of(daemon, "load")["device"] == "hailo8"
    passed = {v["gate"] for v in slots(daemon)["verdicts"] if v["outcome"] == "pass"}
    every = {"keys", "role", "revocation", "floor", "target", "engine", "memory", "disk", "install"}
    assert every | {"load", "golden", "memory-measured", "flip", "commit"} <= passed, passed
    assert chip.misuse() == ""


def test_a_shadow_runs_on_the_chip_and_the_old_edition_beside_it(device, office, edition, windows, right):
    daemon = device()
    bundle = office.bundle(2, *LENIENT, "--shadow-requests", 50, model=edition(2), product="shadowed")
    with Load(daemon, windows, right) as load:
        status, told = curl(daemon, bundle)
        assert status == 200, told
        until(lambda: on_the_chip(daemon, "0.0.2"), daemon)
        load.answered(None)
    assert set(load.statuses) == {200} and load.engines["cpu"] >= 50
    assert told_of(daemon)["proven"] == "hailo"


def test_an_edition_that_is_wrong_on_the_chip_is_refused_and_the_old_one_takes_the_chip_back(
    device, office, edition, pack_program, windows, right
):
    daemon = device()
    double.pack_wrong(pack_program, wrong := edition(2))
    bundle = office.bundle(2, *LENIENT, model=wrong, product="wrong")
    with Load(daemon, windows, right) as load:
        load.answered(None)
        status, told = curl(daemon, bundle)
        assert status == 422 and told["verdict"]["gate"] == "golden" and told["code"] == "golden-differs", told
        until(lambda: serving(daemon) == "hailo" and entry(daemon)["fallback"] is None, daemon)
        load.answered(None)
    assert set(load.statuses) == {200} and load.engines["cpu"] > 0
    evidence = told["verdict"]["evidence"]
    assert evidence["max_abs"] > evidence["limit_max_abs"] == double.GOLDEN["max_abs"]
    assert entry(daemon)["breakers"][0]["opened_total"] == 0, "the old edition was never thought to be ill"


def test_an_old_edition_without_another_rung_keeps_the_chip_and_the_verdict_says_so(device, office, edition, windows, right):
    daemon = device(engines=["hailo"])
    with Load(daemon, windows, right) as load:
        load.answered(None)
        status, told = curl(daemon, office.bundle(2, *LENIENT, model=edition(2), product="alone"))
        assert status == 200, told
        until(lambda: on_the_chip(daemon, "0.0.2"), daemon)
    assert set(load.statuses) == {200}
    golden = told_of(daemon)
    assert golden["proven"] == "cpu" and set(golden["not_proven"]) == {"hailo"}
    assert "the edition that serves has no other rung to leave the device for" in golden["not_proven"]["hailo"]


def test_over_the_service_nobody_steps_down_and_the_edition_is_proven_on_the_chip(device, office, edition, windows, right, chip):
    chip.service()
    daemon = device(more="hailo_service = true\n")
    with Load(daemon, windows, right) as load:
        load.answered(None)
        status, told = curl(daemon, office.bundle(2, *LENIENT, model=edition(2), product="beside"))
        assert status == 200, told
        until(lambda: on_the_chip(daemon, "0.0.2"), daemon)
        load.answered(None)
    assert set(load.statuses) == {200} and set(load.engines) == {None}
    assert told_of(daemon)["proven"] == "hailo"


def test_an_edition_in_a_directory_takes_its_turn_on_the_chip_too(device, windows, right, pack_program, tmp_path):
    daemon = device()
    with Load(daemon, windows, right) as load:
        load.answered(None)
        assert daemon.request(f"/v2/repository/models/{MODEL}/load", {}).status == 200
        until(lambda: serving(daemon) == "hailo" and entry(daemon)["fallback"] is None, daemon)
        pid = entry(daemon)["host"]["pid"]
        double.pack_wrong(pack_program, tmp_path / "models" / MODEL)
        refused = daemon.request(f"/v2/repository/models/{MODEL}/load", {})
        assert refused.status >= 400 and "golden case" in refused.body.decode(), refused.body
        until(lambda: serving(daemon) == "hailo" and entry(daemon)["host"]["pid"] != pid, daemon)
        load.answered(None)
    assert set(load.statuses) == {200} and load.engines["cpu"] > 0
