"""Files of the data directory that were damaged, lost or put back while the power was off: a bundle that is whole serves all the same."""

import os
import signal

import pytest
from contract.wire import ask
from helpers import until
from updates.rig import committed, curl, served, slots, verdicts


def kill(daemon):
    """Ends it as a power cut does, for its files."""
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()


@pytest.fixture(params=[bytes(8192), os.urandom(8192)], ids=["zeros", "noise"])
def lost(request, device, office):
    """A device with versions 1 and 2 in its slots, started again without its state: what it found, and the next commit."""
    daemon = device()
    for n in (1, 2):
        assert curl(daemon, office.made[n])[0] == 200
        committed(daemon, n)
    kill(daemon)
    (device.folder / "data/state").write_bytes(request.param)
    daemon = device()
    [found] = [v for v in verdicts(daemon, "boot") if v["code"] == "state-recovered"]
    later = until(lambda: [v for v in verdicts(daemon, "commit") if v["number"] > found["number"]], "a bundle is committed anew")
    return daemon, found, later[0]


def test_a_device_that_lost_its_state_says_so_and_judges_what_is_whole_anew(lost):
    daemon, found, commit = lost
    assert found["outcome"] == "interrupted" and "damaged" in found["sentence"]
    gates = [v["gate"] for v in slots(daemon)["verdicts"] if v["number"] > found["number"]]
    assert gates == ["load", "golden", "memory-measured", "flip", "commit"]
    assert served(daemon) == f"1.0.{commit['version']}"


def test_a_device_that_lost_its_state_goes_on_with_the_newest_bundle(lost):
    daemon, _, commit = lost
    assert commit["version"] == 2 and slots(daemon)["floors"] == {"demo": 2}


def test_what_was_found_beside_it_is_no_way_below_the_floor(lost, device):
    daemon, found, _ = lost
    kill(daemon)
    daemon = device()
    assert served(daemon) == "1.0.2"
    [refused] = [v for v in verdicts(daemon, "floor") if v["number"] > found["number"] and v["outcome"] == "refuse"]
    assert refused["version"] == 1 and refused["code"] == "older-version"
    assert sorted(s["status"] for s in slots(daemon)["slots"]) == ["bad", "committed"]


@pytest.mark.parametrize("name", ["journal", "permit.cbor", "panics.seen"])
def test_a_damaged_file_beside_the_state_keeps_nothing_from_serving(device, office, name):
    daemon = device()
    assert curl(daemon, office.made[1])[0] == 200
    committed(daemon, 1)
    kill(daemon)
    (device.folder / "data" / name).write_bytes(os.urandom(5000))
    daemon = device()
    assert served(daemon) == "1.0.1"
    assert curl(daemon, office.made[2])[0] == 200
    committed(daemon, 2)


def test_trust_documents_that_went_back_let_nothing_in_until_they_are_back(device, office):
    daemon = device()
    assert curl(daemon, office.made[1])[0] == 200
    committed(daemon, 1)
    second = office.at("root-2.imr")
    role = f"model-release=1:{office.at('release.pub')}"
    office.run("root", "rotate", office.root, "--role", role, "--key", office.at("root.key"), "-o", second, "--force")
    assert ask(daemon, "POST", "/api/v1/trust", second.read_bytes()).status == 200
    kill(daemon)
    (device.folder / "data/trust/root-2.cbor").unlink()
    daemon = device()
    assert served(daemon) == "1.0.1"
    status, told = curl(daemon, office.made[2])
    assert status == 403 and told["code"] == "trust-went-back", told
    assert slots(daemon)["warnings"], "it says so"
    assert ask(daemon, "POST", "/api/v1/trust", second.read_bytes()).status == 200
    assert slots(daemon)["warnings"] == [], "it is so no longer"
    assert curl(daemon, office.made[2])[0] == 200


def test_several_lost_trust_documents_come_back_one_after_the_other(device, office):
    daemon = device()
    roots = [office.root, office.at("root-second.imr"), office.at("root-third.imr")]
    for old, new in zip(roots, roots[1:], strict=False):
        role = f"model-release=1:{office.at('release.pub')}"
        office.run("root", "rotate", old, "--role", role, "--key", office.at("root.key"), "-o", new, "--force")
        assert ask(daemon, "POST", "/api/v1/trust", new.read_bytes()).status == 200
    kill(daemon)
    for number in (2, 3):
        (device.folder / f"data/trust/root-{number}.cbor").unlink()
    daemon = device()
    assert ask(daemon, "POST", "/api/v1/trust", roots[1].read_bytes()).status == 200
    status, told = curl(daemon, office.made[1])
    assert status == 403 and told["code"] == "trust-went-back", "one is still missing"
    assert ask(daemon, "POST", "/api/v1/trust", roots[2].read_bytes()).status == 200
    assert slots(daemon)["warnings"] == []
    assert curl(daemon, office.made[1])[0] == 200
