"""Settings of the configuration file that reach the wire: each is set to something else than its default and must be felt."""

import json
import re
import shutil
import threading

import places
import pytest
from helpers import until

MODELS = places.ROOT / "tests/models"
SLOW = "/v2/models/fault-slow/infer"


def slow(products):
    """A request of `products` matrix products."""
    return {"inputs": [{"name": "n", "shape": [1], "datatype": "INT32", "data": [products]}]}


def copy_of_default_model(folder, name, change=lambda manifest: manifest):
    """The default model under another name, with a changed manifest."""
    shutil.copytree(places.DEFAULT_MODEL, folder / name)
    manifest = folder / name / "manifest.toml"
    text = manifest.read_text().replace('name = "imu-motion"', f'name = "{name}"', 1)
    manifest.write_text(change(text))
    return folder / name


def without_motif_head(manifest):
    return re.sub(r"\[imu\.motif\]\n.*?\n\n", "", manifest, flags=re.DOTALL)


def test_a_body_above_the_limit_is_413(native):
    daemon = native(config="[server]\nmax_request_size_mb = 1\n")
    assert daemon.request("/infer", b" " * (1 << 20) + b"{}").status == 413
    assert daemon.request("/infer", b" " * (1 << 19) + b"{}").status == 422


def test_documentation_can_be_switched_off(native):
    daemon = native(config="[server]\ndocs_enabled = false\n")
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert daemon.request(path).status == 404, path


def test_only_origins_that_are_named_may_read(native):
    daemon = native(config='[server]\nallow_origins = ["http://dashboard.lan"]\n')
    allowed = daemon.request("/healthz", headers={"Origin": "http://dashboard.lan"})
    refused = daemon.request("/healthz", headers={"Origin": "http://other.lan"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "http://dashboard.lan"
    assert refused.headers["Access-Control-Allow-Origin"] is None


def test_mistakes_are_400_where_old_clients_want_that(native, walk):
    daemon = native(config="[compat]\nstrict_400 = true\n")
    assert daemon.request("/infer", {"x": walk["x"][:99]}).status == 400


@pytest.mark.parametrize(("lenient", "status"), [("true", 200), ("false", 422)])
def test_numeric_strings_are_taken_only_where_old_clients_send_them(native, walk, lenient, status):
    daemon = native(config=f"[compat]\nlenient_numbers = {lenient}\n")
    window = {"x": [["1.5", *walk["x"][0][1:]], *walk["x"][1:]]}
    assert daemon.request("/infer", window).status == status


def test_tritons_metric_names_can_be_switched_on(native):
    daemon = native(config="[compat]\ntriton_metrics = true\n")
    assert b"nv_inference_" in daemon.request("/metrics").body


def test_a_model_without_motif_head_answers_so_many_zeros(native, tmp_path, walk):
    model = copy_of_default_model(tmp_path, "headless", without_motif_head)
    daemon = native(models=[model], config="[inference]\nmotifs_without_head = 8\n")
    answer = daemon.request("/infer", walk)
    assert answer.json()["motif_scores"] == [0] * 8
    assert answer.headers["X-Inferd-Motif-Source"] == "none"


def test_the_default_model_is_the_one_that_is_named(native, tmp_path):
    models = [places.DEFAULT_MODEL, copy_of_default_model(tmp_path, "zz-other")]
    daemon = native(models=models, config='[models]\ndefault = "zz-other"\n')
    assert daemon.request("/status").json()["model_name"] == "zz-other"


def test_a_client_above_its_rate_is_429(native):
    daemon = native(config="[security]\nrate_limit_per_s = 1\nrate_limit_burst = 5\n", ready=False).wait_listening()
    statuses = [daemon.request("/status").status for _ in range(20)]
    assert 429 in statuses


def test_changes_need_the_key_when_there_is_one(native):
    key = "correct-horse-battery-staple"
    daemon = native(config=f'[security]\napi_key = "{key}"\n')
    path = "/v2/repository/models/imu-motion/load"
    assert daemon.request(path, {}).status in (401, 403)
    assert daemon.request(path, {}, headers={"X-API-Key": key[:-1] + "x"}).status in (401, 403)
    assert daemon.request(path, {}, headers={"X-API-Key": key}).status == 200
    assert daemon.request(path, {}, headers={"Authorization": f"Bearer {key}"}).status == 200
    assert key not in daemon.log_text()


def test_more_requests_than_the_queue_holds_are_503_with_a_time_to_come_back(native):
    config = "[inference]\nmax_queue_size = 1\n"
    daemon = native(models=[places.DEFAULT_MODEL, MODELS / "fault-slow"], config=config)
    until(lambda: daemon.request("/v2/models/fault-slow/ready").status == 200, daemon)
    answers = []

    def ask():
        for _ in range(10):
            answers.append(daemon.request(SLOW, slow(1000)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    refused = [answer for answer in answers if answer.status == 503]
    assert refused and any(answer.status == 200 for answer in answers)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)


def test_a_request_that_takes_longer_than_the_time_limit_is_503(native):
    daemon = native(models=[places.DEFAULT_MODEL, MODELS / "fault-slow"], config="[inference]\ntimeout_ms = 20\n")
    until(lambda: daemon.request("/v2/models/fault-slow/ready").status == 200, daemon)
    answer = daemon.request(SLOW, slow(15_000))
    assert answer.status == 503
    assert "20 ms" in answer.json()["error"]


def test_workers_per_model_are_as_many_as_configured(native):
    daemon = native(config="[hosts]\nworkers = 3\n")
    assert len(daemon.request("/status").json()["models"][0]["host"]["workers"]) == 3


def test_an_expected_hash_that_is_not_the_one_in_effect_is_seen(native):
    daemon = native(config=f'[config]\nexpected_sha256 = "{"0" * 64}"\n')
    line = next(line for line in daemon.request("/metrics").body.decode().splitlines() if line.startswith("hailo_config_ok{"))
    assert float(line.split()[-1]) == 0
    config = daemon.request("/status").json()["config"]
    assert config["expected_sha256"] == "0" * 64 and len(config["sha256"]) == 64


def test_two_threads_serve_as_one_does(native, walk):
    daemon = native(config="[server]\nthreads = 2\n")
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(daemon.request("/infer", walk).body)) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(answers)) == 1 and "motif_scores" in json.loads(answers[0])


def test_the_log_level_is_told_as_the_sidecar_told_it(native):
    daemon = native(env={"LOG_LEVEL": "WARNING"})
    assert daemon.request("/").json()["config"]["log_level"] == "warn"
    assert "INFO" not in daemon.log_text()
