"""A daemon that kept ending runs without models and says why; a bundle repairs it."""

import shutil

import jsonschema
import pytest
from faults.keeper import Keeper
from helpers import until
from updates.conftest import device, office  # noqa: F401 -- fixtures
from updates.rig import X, curl, served, slots, verdicts

WHY = "the daemon ended 3 times in 10 minutes"
SAFE = ["--safe-mode", WHY]


@pytest.fixture
def keeper(tmp_path):
    """Somebody who listens and takes orders."""
    keeper = Keeper(tmp_path / "keeper")
    yield keeper
    keeper.close()


@pytest.fixture
def safe(native, office, tmp_path):  # noqa: F811
    """Starts a device in safe mode, with the slots that an earlier start left."""
    (folder := tmp_path / "updates").mkdir(exist_ok=True)
    shutil.copy(office.root, folder / "root.imr")

    def start(*, safe_mode=True, models=None, env=None):
        arguments = ["--updates-dir", folder, *(SAFE if safe_mode else [])]
        config = "[updates]\nslot_size_mib = 16\n"
        options = {} if models is None else {"models": models}
        return native(arguments=arguments, config=config, env=env or {}, ready=False, **options).wait_listening()

    return start


def opened(daemon):
    """Waits until the slots are open."""
    until(lambda: daemon.request("/api/v1/slots").status == 200, daemon)
    until(lambda: slots(daemon)["serving"]["from"] != "starting", daemon)


def test_every_page_says_so_and_nothing_is_loaded(safe, walk):
    daemon = safe()
    document = daemon.request("/openapi.json").json()
    opened(daemon)
    assert daemon.request("/livez").status == 200
    for path in ("/healthz", "/readyz", "/health"):
        answer = daemon.request(path)
        assert answer.status == 503 and answer.json()["phase"] == "safe-mode" and WHY in answer.json()["reason"], path
        assert int(answer.headers["Retry-After"]) >= 1
        schema = document["paths"][path]["get"]["responses"]["503"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})
    status = daemon.request("/status").json()
    assert status["safe_mode"]["reason"] == WHY and status["safe_mode"]["since_s"] >= 0 and status["models"] == []
    assert status["progress"]["proved"] is True and status["progress"]["healthy"] is False
    assert "inferd_safe_mode{} 1" in daemon.request("/metrics").body.decode()
    for path, body in (("/infer", walk), ("/encode", walk), ("/test", {}), ("/v2/models/imu-motion/infer", X)):
        answer = daemon.request(path, body)
        assert answer.status == 503 and WHY in answer.body.decode(), path
    answer = daemon.request("/v2/repository/models/imu-motion/load", {})
    assert answer.status == 503 and WHY in answer.json()["error"]
    ready = daemon.request("/commit-ready")
    assert ready.status == 503 and any(WHY in reason for reason in ready.json()["reasons"])


def test_a_push_repairs_it_and_the_keeper_is_asked_for_a_normal_start(safe, office, keeper):  # noqa: F811
    first = safe(safe_mode=False)
    opened(first)
    assert curl(first, office.made[1])[0] == 200
    until(lambda: verdicts(first, "commit"), first)
    first.stop()
    daemon = safe(env=keeper.env)
    opened(daemon)
    assert daemon.request("/status").json()["models"] == []
    assert keeper.orders == []
    assert curl(daemon, office.made[2])[0] == 200
    until(lambda: keeper.orders, daemon)
    assert keeper.orders == [{"ask": "leave-safe-mode", "why": "a bundle serves for good"}]
    assert served(daemon) == "1.0.2"
    held = {slot["slot"]: (slot["status"], slot["active"]) for slot in slots(daemon)["slots"]}
    assert held == {"A": ("committed", False), "B": ("committed", True)}, "what was active is not written over"
    assert not any("HEALTHY" in text for text in keeper.texts())
    daemon.stop()
    again = safe(safe_mode=False)
    opened(again)
    until(lambda: again.request("/v2/models/identity-fp32/ready").status == 200, again)
    assert served(again) == "1.0.2"


def test_without_a_keeper_it_goes_on_with_all_its_models(safe, office, walk):  # noqa: F811
    daemon = safe()
    opened(daemon)
    assert curl(daemon, office.made[1])[0] == 200
    until(lambda: daemon.request("/status").json()["safe_mode"] is None, daemon)
    assert served(daemon) == "1.0.1"
    # The directories' models are back, too.
    until(lambda: daemon.request("/infer", walk).status == 200, daemon)
    until(lambda: daemon.request("/readyz").status == 200, daemon)
    daemon.logged("safe mode is over")


def test_a_bundle_that_is_no_good_leaves_it_in_safe_mode(safe, office):  # noqa: F811
    daemon = safe()
    opened(daemon)
    stranger = office.bundle(9, key="stranger")
    assert curl(daemon, stranger)[0] == 403
    assert daemon.request("/status").json()["safe_mode"] is not None and daemon.request("/livez").status == 200


def test_the_operator_leaves_it(safe, keeper, inferctl):
    daemon = safe(env=keeper.env)
    done = inferctl("safe-mode", "leave", "--why", "the cable was loose", url=daemon.url)
    assert done.returncode == 0, done.stderr
    assert keeper.orders == [{"ask": "leave-safe-mode", "why": "asked for by 127.0.0.1: the cable was loose"}]


def test_orders_reach_the_keeper_and_its_answers_the_operator(native, keeper, inferctl):
    daemon = native(models=[], ready=False, env=keeper.env).wait_listening()
    for command, order in (
        (["reboot", "--why", "new kernel"], {"ask": "reboot", "why": "asked for by 127.0.0.1: new kernel"}),
        (["factory-reset", "--yes"], {"ask": "factory-reset", "why": "asked for by 127.0.0.1, without a reason"}),
        (
            ["factory-reset", "--yes", "--everything", "--why", "sold"],
            {"ask": "factory-reset", "why": "asked for by 127.0.0.1: sold", "everything": True},
        ),
        (["watchdog", "test", "hardware"], {"ask": "watchdog-test", "what": "hardware"}),
    ):
        done = inferctl(*command, url=daemon.url)
        assert done.returncode == 0, done.stderr
        assert keeper.orders.pop() == order
    keeper.answers = {"answer": "refused", "why": "this image was not made for tests"}
    refused = inferctl("watchdog", "test", "panic", url=daemon.url)
    assert refused.returncode == 1 and "not made for tests" in refused.stderr
    assert daemon.request("/api/v1/watchdog/test", {"what": "disk"}).status == 400
    assert daemon.request("/api/v1/reboot", {"everything": True}).status == 400
    assert daemon.request("/api/v1/safe-mode/leave", {}).json()["code"] == "not-in-safe-mode"


def test_without_a_keeper_orders_are_refused_with_the_reason(native, tmp_path):
    daemon = native(models=[], ready=False, env={"INFERD_KEEPER": str(tmp_path / "nobody")}).wait_listening()
    for path in ("/api/v1/reboot", "/api/v1/factory-reset"):
        answer = daemon.request(path, {})
        assert answer.status == 503 and answer.json()["error"] == "no_keeper", answer.body


def test_what_the_keeper_knows_is_shown(native, keeper):
    keeper.state()
    daemon = native(models=[], ready=False, env=keeper.env).wait_listening()
    status = daemon.request("/status").json()
    document = daemon.request("/openapi.json").json()
    schema = document["paths"]["/status"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(status)
    assert status["boot"]["number"] == 42 and status["boot"]["reason"] == "watchdog" and status["boot"]["unhealthy_boots"] == 1
    assert status["watchdog"]["accepted_s"] == 14
    page = daemon.request("/metrics").body.decode()
    for sample in (
        "inferd_boots_total{} 42", 'inferd_reset_reason{reason="watchdog"} 1', "inferd_daemon_starts{} 3",
        "inferd_watchdog_armed{} 1", "inferd_watchdog_timeout_seconds{} 14", "inferd_unhealthy_boots{} 1",
    ):
        assert sample in page, sample
    (keeper.folder / "state.json").write_text("{")
    assert daemon.request("/status").json()["boot"] is None, "half a file is no file"


def test_what_happened_to_a_host_is_in_the_history(native, keeper, inferctl, tmp_path):
    import os
    import signal

    from faults.test_daemon import host_pid

    keeper.state()
    (data := tmp_path / "data").mkdir()
    daemon = native(env=keeper.env, config=f'[updates]\ndata_dir = "{data}"\n')
    os.kill(host_pid(daemon, "imu-motion"), signal.SIGKILL)
    [entry] = until(lambda: daemon.request("/api/v1/history?kind=host-end").json()["entries"], daemon)
    assert entry["store"] == "daemon" and entry["boot"] == 42 and "imu-motion" in entry["sentence"]
    assert daemon.request("/api/v1/history?kind=let-go").json()["total"] == 0
    assert daemon.request("/api/v1/history?limit=0").status == 400
    shown = inferctl("history", url=daemon.url)
    assert "host-end" in shown.stdout and "imu-motion" in shown.stdout
    until(lambda: (data / "history/history.jsonl").is_file(), daemon)
    daemon.stop()
    again = native(env=keeper.env, config=f'[updates]\ndata_dir = "{data}"\n')
    until(lambda: again.request("/api/v1/history").json()["entries"], again)
