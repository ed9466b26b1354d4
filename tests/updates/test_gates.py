"""Reasons that only a whole daemon gives: what no engine loads, what no memory holds, and a device with nothing to go back to."""

import hashlib
import re
import shutil

from helpers import until
from updates.rig import IDENTITY, X, curl, served, slots


def changed(folder, *, network=None, memory_mib=None):
    """The identity model with another network or another budget."""
    shutil.copytree(IDENTITY, folder)
    page = (folder / "manifest.toml").read_text()
    if network is not None:
        old = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        (folder / "model.onnx").write_bytes(network)
        page = page.replace(old, hashlib.sha256(network).hexdigest())
    if memory_mib is not None:
        page, replaced = re.subn(r"(?m)^memory_mib = \d+", f"memory_mib = {memory_mib}", page)
        assert replaced == 1, "the manifest has the part this changes"
    (folder / "manifest.toml").write_text(page)
    return folder


def test_what_no_engine_loads_is_refused_at_the_load(device, office):
    daemon = device()
    model = changed(office.at("no-network"), network=b"this is no network" * 100)
    status, told = curl(daemon, office.bundle(1, model=model, product="no-network"))
    assert status == 422 and told["verdict"]["gate"] == "load" and told["code"] == "load-failed", told
    assert served(daemon) == "1"
    assert [s["status"] for s in slots(daemon)["slots"]] == ["bad", "empty"]


def test_what_this_machine_has_no_memory_for_is_refused_before_its_payload(device, office):
    daemon = device()
    model = changed(office.at("huge"), memory_mib=1 << 20)
    status, told = curl(daemon, office.bundle(1, model=model, product="huge"))
    assert status == 409 and told["verdict"]["gate"] == "memory" and told["code"] == "memory-free", told
    evidence = told["verdict"]["evidence"]
    assert evidence["needed_bytes"] >= 1 << 40 and 0 < evidence["available_bytes"] < evidence["needed_bytes"]
    assert slots(daemon)["slots"][0]["status"] == "empty" and served(daemon) == "1"


def test_where_nothing_is_left_to_go_back_to_the_device_says_so(device, office):
    daemon = device(models=(), ready=False).wait_listening()
    until(lambda: slots(daemon).get("serving", {}).get("from") == "nothing", "it has started")
    until(lambda: curl(daemon, office.watched[1])[0] == 200, "the bundle is taken")
    assert served(daemon) == "1.0.1"
    assert daemon.request("/api/v1/rollback", {"reason": "none"}, method="POST").status == 200
    last = slots(daemon)["verdicts"][-1]
    assert (last["gate"], last["outcome"], last["code"]) == ("return", "reverse", "nothing-left"), last
    assert daemon.request("/v2/models/identity-fp32/infer", X).status in (404, 503)
    answer = daemon.request("/commit-ready")
    assert answer.status == 503 and "nothing serves" in answer.json()["reasons"]
    # And it takes the next one.
    assert curl(daemon, office.watched[2])[0] == 200
    assert served(daemon) == "1.0.2"


def test_a_device_remembers_sixteen_products_and_refuses_a_seventeenth(device, office):
    daemon = device()
    for n in range(16):
        assert curl(daemon, office.bundle(1, "--probation-seconds", 0, product=f"product-{n}"))[0] == 200
        until(lambda: slots(daemon)["floors"].get(f"product-{n}") == 1 and slots(daemon)["trial"] is None, "committed")  # noqa: B023
    status, told = curl(daemon, office.bundle(1, product="one-too-many"))
    assert status == 409 and told["verdict"]["gate"] == "floor" and told["code"] == "too-many-products", told
    assert len(slots(daemon)["floors"]) == 16
    assert curl(daemon, office.bundle(2, product="product-3"))[0] == 200
