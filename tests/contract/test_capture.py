"""Capture: opt-in, exactly the windows below the threshold, no more than were asked for, and only for an admin."""

import json
import shutil
import struct

import pytest
from contract.conftest import linear_model
from contract.test_probes import check
from contract.wire import ask
from helpers import until
from safetensors.numpy import load_file

KEY = "correct-horse-battery"


@pytest.fixture
def unsure(tmp_path):
    """The default model with a head that is never surer than 0.25: sigmoid(-1.0986)."""
    return linear_model(tmp_path / "unsure", {"weight": [[0.0] * 64] * 3, "bias": [-1.0986123, -2.0, -3.0]})


def config(folder, **settings):
    lines = {"enabled": "true", "dir": f'"{folder}"', **settings}
    # A machine that is busy with other tests must not look like a device under load.
    return "[monitor]\nshed_at = \"off\"\n[capture]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def metadata(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])["__metadata__"]


def listed(daemon):
    return daemon.request("/api/v1/captures").json()


def test_a_window_below_the_threshold_is_kept_as_it_came(native, unsure, tmp_path, walk):
    folder = tmp_path / "capture"
    daemon = native(models=[unsure], config=config(folder))
    document = daemon.request("/openapi.json").json()
    answer = daemon.request("/infer", walk, headers={"X-Request-ID": "unsure-1"})
    assert answer.status == 200 and max(answer.json()["motif_scores"]) < 0.3
    until(lambda: listed(daemon)["status"]["kept"] == 1, daemon)
    (item,) = listed(daemon)["files"]
    tensors, said = load_file(folder / item["name"]), metadata(folder / item["name"])
    assert tensors["input"].shape == (100, 9) and abs(tensors["input"] - walk["x"]).max() < 1e-5
    assert tensors["scores"].tolist() == pytest.approx(answer.json()["motif_scores"])
    assert tensors["latent"].shape == (64,)
    assert said["schema"] == "inferd-capture-1" and said["request_id"] == "unsure-1" and said["model"] == "linear"
    assert float(said["confidence"]) == pytest.approx(0.25, abs=1e-4) and said["threshold"] == "0.5" and said["bundle"] == ""
    check(document, "/api/v1/captures", "GET", ask(daemon, "GET", "/api/v1/captures"))
    path = f"/api/v1/captures/{item['name']}"
    got = ask(daemon, "GET", path)
    check(document, "/api/v1/captures/{file}", "GET", got)
    assert got.body == (folder / item["name"]).read_bytes()
    for _ in range(2):
        check(document, "/api/v1/captures/{file}", "DELETE", ask(daemon, "DELETE", path))
    assert listed(daemon)["files"] == []
    check(document, "/api/v1/captures", "DELETE", ask(daemon, "DELETE", "/api/v1/captures"))


def test_what_the_model_is_sure_of_is_not_kept_and_neither_is_anything_unasked(native, unsure, tmp_path, walk):
    sure = native(models=[unsure], config=config(tmp_path / "sure", threshold_percent=20))
    off = native(models=[unsure], config=f'[updates]\ndata_dir = "{tmp_path / "data"}"\n')
    for daemon in (sure, off):
        assert daemon.request("/infer", walk).status == 200
        assert daemon.stop() == 0
    assert not (tmp_path / "sure").exists() and not (tmp_path / "data/capture").exists()


def test_an_hour_has_its_number_and_the_quota_holds(native, unsure, tmp_path, walk):
    folder = tmp_path / "capture"
    daemon = native(models=[unsure], config=config(folder, max_per_hour=5, quota_mib=1))
    for _ in range(12):
        assert daemon.request("/encode", {"imu_window": walk["x"]}).status == 200
    done = until(lambda: (s := listed(daemon)["status"])["kept"] + s["passed_over"] >= 12 and s, daemon)
    assert done["kept"] <= 5 and done["failed"] == 0
    assert len(list(folder.iterdir())) == done["kept"]
    assert b'inferd_captures_total{outcome="passed_over"}' in daemon.request("/metrics").body


def test_only_an_admin_gets_windows(native, unsure, tmp_path, walk):
    daemon = native(models=[unsure], config=config(tmp_path / "capture"), env={"INFERD_SECURITY_API_KEY": KEY})
    daemon.request("/infer", walk)
    for verb, path in (("GET", "/api/v1/captures"), ("GET", "/api/v1/captures/window-00000001.safetensors"), ("DELETE", "/api/v1/captures")):
        assert ask(daemon, verb, path).status == 401
    assert ask(daemon, "GET", "/api/v1/captures", headers=[("X-API-Key", KEY)]).status == 200


def test_inferctl_fetches_windows_and_has_them_forgotten(native, unsure, inferctl, tmp_path, walk):
    daemon = native(models=[unsure], config=config(tmp_path / "capture"))
    for n in range(3):
        daemon.request("/infer", walk)
        until(lambda: listed(daemon)["status"]["kept"] == n + 1, daemon)
    assert inferctl("capture", "pull", tmp_path / "here", url=daemon.url).returncode == 0
    assert len(list((tmp_path / "here").glob("window-*.safetensors"))) == 3 and len(listed(daemon)["files"]) == 3
    shutil.rmtree(tmp_path / "here")
    assert inferctl("capture", "pull", tmp_path / "here", "--delete", url=daemon.url).returncode == 0
    assert len(list((tmp_path / "here").iterdir())) == 3 and listed(daemon)["files"] == []
    assert inferctl("capture", "clear", url=daemon.url).stdout == "0 windows were forgotten\n"
