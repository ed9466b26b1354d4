"""One suite for every target: what an appliance promises, asked over HTTP, its power switch and its serial console."""

import pytest


def test_it_boots_is_healthy_and_says_so_on_its_console(unit):
    # Of a Jetson's system the start script does not learn in which slot it is: NVIDIA's boot chain picks it.
    slot = r"\?" if unit.board.backend == "uefi-nv" else "[ab]"
    unit.strategy.wait_for_console(rf"INFERD-UP \S+ slot={slot} data=ext4")
    assert [unit.request(path).status for path in ("/livez", "/readyz", "/healthz")] == [200, 200, 200]


def test_a_second_of_walking_is_answered(unit, walk):
    answer = unit.request("/infer", walk)
    assert answer.status == 200, answer.body
    assert len(answer.json()["latent"]) == 64 and len(answer.json()["motif_scores"]) == 12


def test_an_update_serves_and_a_rollback_takes_it_back(unit, updates):
    answers = []
    # Two of them: a push takes the slot of the bundle before the one that serves, so only then is there one to go back to.
    for shift in (0.25, -0.25):
        bundle = updates.install(unit, shift)
        answers.append(unit.first_number())
    assert answers[0] - answers[1] == pytest.approx(0.5, abs=1e-3)
    answer = unit.post("/api/v1/rollback", {"reason": "seen enough"})
    assert answer.status == 200, answer.body
    assert unit.strategy.settled()["serving"]["bundle"] != bundle
    assert unit.first_number() == pytest.approx(answers[0], abs=1e-6)


@pytest.mark.parametrize("gate", ["keys", "flip"])
def test_power_lost_in_an_update_leaves_the_old_model_or_the_new_one_and_the_update_goes_on(unit, updates, gate):
    old, boot = unit.first_number(), unit.boot()
    unit.strategy.update = updates.make(unit, {"keys": 0.5, "flip": -0.5}[gate])
    unit.strategy.until = gate
    bundle = unit.strategy.update[1]
    unit.to("updating").to("cut").to("booted")
    now = unit.boot()
    assert now["number"] == boot["number"] + 1 and now["reason"] == "power", now
    if unit.strategy.settled()["serving"]["bundle"] != bundle:
        assert unit.first_number() == pytest.approx(old, abs=1e-6)
        unit.to("updating").to("booted")
    page = unit.slots()
    assert page["serving"]["bundle"] == bundle
    assert unit.first_number() != pytest.approx(old, abs=1e-2)
    assert not [v for v in page["verdicts"] if v["bundle"] == bundle and v["outcome"] in ("refuse", "reverse")]
