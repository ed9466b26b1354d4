"""The daemon with a Hailo chip that is a double: numbers, faults, and what a model must be before it serves.

What is compared are answers to inputs that are far from each other, each with its own reference: whatever a chip does, an answer is
the one to its own input, or there is none.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import zlib

import numpy as np
import pytest
from helpers import until

from engines import chip as double
from engines.load import Load, ask, entry, serving

# What a chip that the driver shows and that has no node in /dev is told as.
NO_NODE = "opening the chip: HAILO_DRIVER_OPERATION_FAILED (36)"


def here(daemon):
    return next(e for e in daemon.request("/status").json()["engines"] if e["engine"] == "hailo")


# ------------------------------------------------------------------------------------------------------------ it serves


def test_a_model_is_served_by_the_chip_and_all_of_it_is_shown(native, with_chip, hailo_model, windows, right, chip):
    daemon = native(models=[hailo_model()], config=with_chip())
    engine = entry(daemon)["engine"]
    assert (engine["kind"], engine["version"], engine["device"]) == ("hailo", "hailort 4.23.0", "hailo8")
    assert engine["library"] == str(chip.library)
    assert here(daemon) | {"library": None} == {
        "engine": "hailo", "version": "hailort 4.23.0", "library": None, "providers": ["hailo8"], "problem": None, "waits": False,
        "absent": False,
    }
    for index, window in enumerate(windows):
        status, latent, stand_in = ask(daemon, window)
        assert (status, stand_in) == (200, None)
        right.check(index, latent)
    device = entry(daemon)["device"]
    assert (device["celsius"], device["watts"], device["temperature"]) == (45.0, None, "normal")
    text = daemon.request("/metrics").body.decode()
    assert 'hailo_device_temperature_celsius{device_id="hailo8"} 45' in text
    assert 'hailo_hailort_status{device_id="hailo8"} 1' in text
    assert 'inferd_device_notifications{device="hailo8",event="overcurrent"} 0' in text
    assert daemon.request("/status").json()["hailort_available"] is True
    daemon.stop()
    assert chip.misuse() == ""


def test_what_the_chip_tells_is_shown_and_stops_nothing(native, with_chip, hailo_model, chip):
    daemon = native(models=[hailo_model()], config=with_chip())
    chip.has(temperature=101, notify=[{"id": 1, "word": 1}, {"id": 3}, {"id": 4}, {"id": 10}])
    told = until(lambda: (d := entry(daemon)["device"]) and d["celsius"] == 101 and d["told"]["clock_changed"] and d, daemon)
    assert told["temperature"] == "high" and told["told"]["overcurrent"] == told["told"]["ecc_corrected"] == 1
    assert serving(daemon) == "hailo" and entry(daemon)["host"]["starts"] == 1


def test_how_busy_the_chip_is_with_our_calls_is_measured_and_shown_by_all_its_names(
    native, with_chip, hailo_model, windows, right, chip
):
    aliases = "[compat]\nmetric_aliases = true\n"
    daemon = native(models=[hailo_model()], config=with_chip() + aliases)

    def shown(name):
        found = re.findall(rf'(?m)^{name}\{{.*"hailo8"\}} (.*)$', daemon.request("/metrics").body.decode())
        assert len(found) == 1, f"{name}: {found}"
        return float(found[0])

    until(lambda: entry(daemon)["device"]["load"] == 0, daemon)
    # A frame takes a multiple of what comes before and after it.
    chip.has(frames=[{"delay_ms": 60}])
    with Load(daemon, windows, right):
        until(lambda: entry(daemon)["device"]["load"] > 0.5, daemon)
        until(lambda: 0.5 < shown("inferd_device_load_ratio") <= 1, daemon)
        until(lambda: 50 < shown("hailo_device_utilization_percent") <= 100, daemon)
        until(lambda: 50 < shown("hailo_hardware_utilization_percent") <= 100, daemon)
    until(lambda: entry(daemon)["device"]["load"] == 0, daemon)
    assert entry(daemon)["device"]["memory_total_bytes"] is None, "its library tells nothing of its memory"
    assert "inferd_device_memory" not in daemon.request("/metrics").body.decode()


# ------------------------------------------------------------------------------------------------------------ it fails


def goes_and_comes_back(daemon, chip, windows, right, **faults):
    """Under load the chip gets a fault: the built-in engine serves and says so. The fault passes: the chip serves again."""
    with Load(daemon, windows, right) as load:
        load.answered(None)
        chip.has(**faults)
        load.answered("cpu")
        assert entry(daemon)["fallback"]["from"] == "hailo"
        health = daemon.request("/healthz")
        assert health.status == 200 and health.json()["degraded"], "it answers, and not as it should"
        assert 'inferd_engine_fallback{model="imu-motion",from="hailo",to="cpu"} 1' in daemon.request("/metrics").body.decode()
        chip.is_well()
        load.answered(None)
    assert entry(daemon)["fallback"] is None and serving(daemon) == "hailo"


def test_a_chip_that_is_pulled_out_under_load_costs_no_wrong_answer(native, with_chip, hailo_model, windows, right, chip):
    daemon = native(models=[hailo_model()], config=with_chip())
    for _ in range(2):
        goes_and_comes_back(daemon, chip, windows, right, lost=True)
    assert entry(daemon)["host"]["ends"]["device"] >= 2
    assert entry(daemon)["quarantined_inputs"] == 0, "no input is to blame"


@pytest.mark.parametrize(
    "faults",
    [
        {"lost": True, "stuck": True},
        {"hung": True},
        {"notify": [{"id": 5}], "hung": True},
        {"notify": [{"id": 7}], "lost": True},
        {"notify": [{"id": 12}], "frames": [{"dropped": True}]},
        {"driver_mismatch": True, "frames": [{"dropped": True}]},
        {"frames": [{"nan": True}]},
        {"frames": [{"after": 5, "abort": True}]},
        {"frames": [{"after": 5, "segv": True}]},
    ],
    ids=["stuck", "hung", "memory", "processor", "sequencer", "driver", "no numbers", "abort", "segv"],
)
def test_whatever_fails_the_next_engine_serves_until_it_is_well(native, with_chip, hailo_model, windows, right, chip, faults):
    daemon = native(models=[hailo_model(deadline_ms=1000)], config=with_chip())
    goes_and_comes_back(daemon, chip, windows, right, **faults)


@pytest.mark.parametrize("mute", [False, True], ids=["told", "not told"])
def test_a_chip_that_stopped_by_heat_serves_again_when_it_has_cooled_down(
    native, with_chip, hailo_model, windows, right, chip, mute
):
    daemon = native(models=[hailo_model()], config=with_chip())
    with Load(daemon, windows, right) as load:
        load.answered(None)
        chip.has(temperature=123, shut_down=True, mute=mute, notify=[{"id": 1, "word": 2}, {"id": 2}])
        load.answered("cpu")
        # The dataflow would go again, but it is still hot: that is no matter for the ladder of a lost device.
        chip.has(temperature=99)
        opened = entry(daemon)["breakers"][0]["opened_total"]
        hot = until(lambda: (b := entry(daemon)["breakers"][0])["opened_total"] > opened and b, daemon)
        assert "99 degrees" in hot["reason"] and serving(daemon) == "cpu"
        chip.has(temperature=60)
        load.answered(None)
    assert "inferd_device_recovery_steps" not in daemon.request("/metrics").body.decode()


def test_a_frame_that_is_late_is_nobodys_answer(native, with_chip, hailo_model, windows, right, chip):
    # 3/4 of the deadline is what a frame may take.
    daemon = native(models=[hailo_model(deadline_ms=2000)], config=with_chip())
    with Load(daemon, windows, right) as load:
        load.answered(None)
        for _ in range(3):
            # Every host meets it anew, with a golden vector: the next rung serves until the chip is well.
            chip.has(frames=[{"after": 5, "count": 1, "delay_ms": 1700}, {"after": 9, "count": 1, "dropped": True}])
            load.answered("cpu")
            chip.is_well()
            load.answered(None)
    assert load.statuses.get(500, 0) + load.statuses.get(503, 0) > 0, "frames were late"
    assert chip.misuse() == ""


def test_a_chip_that_was_closed_has_no_temperature_until_it_is_open_again(native, with_chip, hailo_model, windows, chip):
    daemon = native(models=[hailo_model()], config=with_chip())
    assert entry(daemon)["device"]["celsius"] == 45.0
    chip.has(frames=[{"count": 1, "dropped": True}])
    assert ask(daemon, windows[0])[0] in (500, 503)
    until(lambda: (entry(daemon)["device"] or {}).get("celsius") is None, daemon)
    assert 'hailo_hailort_status{device_id="hailo8"} 1' not in daemon.request("/metrics").body.decode()
    chip.is_well()
    until(lambda: ask(daemon, windows[0])[0] == 200 and serving(daemon) == "hailo", daemon)
    until(lambda: (entry(daemon)["device"] or {}).get("celsius") == 45.0, daemon)


def test_opening_the_chip_again_is_no_requests_time(native, with_chip, hailo_model, windows, right, chip):
    daemon = native(models=[hailo_model(deadline_ms=4000)], config=with_chip())
    # A frame is lost, and opening the chip takes longer than a request may.
    chip.has(open_ms=6000, frames=[{"dropped": True}])
    assert ask(daemon, windows[0])[0] == 500
    chip.has(open_ms=6000)
    until(lambda: ask(daemon, windows[0])[0] == 200 and serving(daemon) == "hailo", daemon)
    ends = entry(daemon)["host"]["ends"]
    assert ends.get("deadline", 0) == 0 and ends["device"] >= 1, ends
    assert entry(daemon)["quarantined_inputs"] == 0
    right.check(0, ask(daemon, windows[0])[1])


def test_answers_of_another_request_are_seen_by_these_tests(native, with_chip, hailo_model, windows, right, chip):
    """The check itself: a chip that answers with the frame before is caught by it."""
    daemon = native(models=[hailo_model()], config=with_chip())
    ask(daemon, windows[0])
    chip.has(frames=[{"after": 1, "repeats": True}])
    ask(daemon, windows[0])
    _, latent, _ = ask(daemon, windows[1])
    with pytest.raises(AssertionError):
        right.check(1, latent)


def test_a_host_that_is_killed_gives_the_chip_back(native, with_chip, hailo_model, windows, right):
    daemon = native(models=[hailo_model()], config=with_chip())
    with Load(daemon, windows, right) as load:
        for _ in range(3):
            load.answered(None)
            os.kill(entry(daemon)["host"]["pid"], signal.SIGKILL)
        load.answered(None)


def outside(daemon):
    """What is seen from outside: who answers, the fallback in /metrics, the status of /healthz and whether it is degraded."""
    answer = daemon.request("/infer", outside.window)
    assert answer.status == 200, answer.body
    shown = re.findall(r'inferd_engine_fallback\{model="imu-motion",from="(.*?)",to="(.*?)"\} 1', daemon.request("/metrics").body.decode())
    health = daemon.request("/healthz")
    return answer.headers.get("X-Inferd-Engine"), shown, health.status, bool(health.json().get("degraded"))


def test_three_rungs_are_gone_down_and_up_again_and_each_is_seen_from_outside(
    native, with_chip, hailo_model, chip, onnxruntime_library, tmp_path, walk
):
    library = shutil.copy(onnxruntime_library, tmp_path / "libonnxruntime.so")
    config = with_chip(more=f'onnxruntime = "{library}"\n')
    daemon = native(models=[hailo_model(engines=("hailo", "ort", "cpu"))], config=config)
    outside.window = walk
    best = (None, [], 200, False)
    second, last = (("ort", [("hailo", "ort")], 200, True), ("cpu", [("hailo", "cpu")], 200, True))
    assert outside(daemon) == best
    chip.has(lost=True)
    until(lambda: serving(daemon) == "ort", daemon)
    until(lambda: outside(daemon) == second, daemon)
    away = library.rename(tmp_path / "away.so")
    os.kill(entry(daemon)["host"]["pid"], signal.SIGKILL)
    until(lambda: entry(daemon)["state"] == "ready" and serving(daemon) == "cpu", daemon)
    assert outside(daemon) == last
    away.rename(library)
    until(lambda: outside(daemon) == second, daemon)
    chip.is_well()
    until(lambda: outside(daemon) == best, daemon)


# ---------------------------------------------------------------------------------------------------- one chip, one owner


def test_a_second_model_and_a_second_daemon_use_the_next_engine(native, with_chip, hailo_model, windows, right):
    both = [hailo_model(), hailo_model(name="another")]
    daemon = native(models=both, config=with_chip())
    until(lambda: all(m["state"] == "ready" for m in daemon.request("/status").json()["models"]), daemon)
    kinds = sorted(serving(daemon, name) for name in ("imu-motion", "another"))
    assert kinds == ["cpu", "hailo"]
    second = next(name for name in ("imu-motion", "another") if serving(daemon, name) == "cpu")
    assert "another process has the chip" in entry(daemon, second)["fallback"]["reason"]
    other = native(models=both[:1], config=with_chip())
    assert serving(other) == "cpu" and "another process has the chip" in here(other)["problem"]
    right.check(0, ask(other, windows[0])[1])


# ---------------------------------------------------------------------------------------------- one chip, several models

BOTH = ("imu-motion", "another")


@pytest.fixture
def sharing(native, with_chip, hailo_model, chip):
    """A daemon with two models that asks HailoRT's service for the chip."""
    chip.service()
    return native(models=[hailo_model(name=name) for name in BOTH], config=with_chip(more="hailo_service = true\n"))


def infer(daemon, name, window):
    """What a model answers to a window, and the engine that stood in."""
    inputs = [{"name": "imu_window", "shape": [1, 100, 9], "datatype": "FP32", "data": [v for row in window for v in row]}]
    answer = daemon.request(f"/v2/models/{name}/infer", {"inputs": inputs})
    outputs = {o["name"]: np.array(o["data"]) for o in answer.json()["outputs"]} if answer.status == 200 else None
    return answer.status, outputs and outputs["latent_embeddings"], answer.headers.get("X-Inferd-Engine")


class LoadOnBoth(Load):
    """The same, in turn to each of two models that answer the same."""

    def _ask(self, window):
        self.turn = not getattr(self, "turn", False)
        return infer(self.daemon, BOTH[self.turn], window)


def on(daemon, rung):
    """Both models serve on this rung."""
    return all(entry(daemon, name)["state"] == "ready" and serving(daemon, name) == rung for name in BOTH)


def test_by_the_service_two_models_are_on_one_chip_and_each_gives_its_own_answers(sharing, windows, right, chip):
    until(lambda: on(sharing, "hailo"), sharing)
    with LoadOnBoth(sharing, windows, right) as load:
        load.answered(None)
    assert set(load.statuses) == {200} and set(load.engines) == {None}
    assert [entry(sharing, name)["fallback"] for name in BOTH] == [None, None]
    shown = sharing.request("/metrics").body.decode().splitlines()
    assert len([line for line in shown if line.startswith("hailo_hardware_temperature_celsius{")]) == 1, "it is one chip"
    assert chip.misuse() == ""


def test_a_shared_chip_that_is_lost_takes_both_models_down_and_both_come_back(sharing, windows, right, chip):
    until(lambda: on(sharing, "hailo"), sharing)
    with LoadOnBoth(sharing, windows, right) as load:
        load.answered(None)
        chip.has(lost=True)
        until(lambda: on(sharing, "cpu"), sharing)
        load.answered("cpu")
        chip.is_well()
        until(lambda: on(sharing, "hailo"), sharing)
        load.answered(None)
    assert chip.misuse() == ""


def test_who_shares_a_lost_chip_leaves_it_though_nobody_asks_anything(sharing, windows, right, chip):
    until(lambda: on(sharing, "hailo"), sharing)
    chip.has(lost=True)
    until(lambda: on(sharing, "cpu"), sharing)
    assert all(entry(sharing, name)["host"]["ends"]["device"] for name in BOTH)
    sharing.logged("the shared chip has not answered 2 questions in a row")
    chip.is_well()
    until(lambda: on(sharing, "hailo"), sharing)
    right.check(0, infer(sharing, "another", windows[0])[1])


def test_a_new_edition_of_a_model_is_proven_on_a_shared_chip_while_the_old_one_serves_on_it(sharing, windows, right):
    until(lambda: on(sharing, "hailo"), sharing)
    with LoadOnBoth(sharing, windows, right) as load:
        load.answered(None)
        assert sharing.request("/v2/repository/models/another/load", {}).status == 200
        load.answered(None)
    assert set(load.statuses) == {200} and set(load.engines) == {None}, "nobody stepped down"
    assert on(sharing, "hailo")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, "HAILO_INVALID_OPERATION (6): this libhailort was built without HailoRT's service"),
        ("", "HAILO_RPC_FAILED (77): no hailort_service answers"),
        ("4.22.0", "HAILO_INVALID_SERVICE_VERSION (78)"),
    ],
    ids=["built without", "not running", "another version"],
)
def test_a_service_that_cannot_be_used_is_said_and_the_next_engine_serves(
    native, with_chip, hailo_model, chip, walk, version, said
):
    if version is not None:
        chip.service(version)
    daemon = native(models=[hailo_model()], config=with_chip(more="hailo_service = true\n"))
    assert serving(daemon) == "cpu" and said in here(daemon)["problem"]
    assert daemon.request("/infer", walk).status == 200


def test_what_the_service_does_not_tell_has_no_number_and_the_model_serves(
    native, with_chip, hailo_model, windows, right, chip
):
    chip.service()
    chip.has(service_tells_nothing=True)
    daemon = native(models=[hailo_model()], config=with_chip(more="hailo_service = true\n"))
    assert serving(daemon) == "hailo" and entry(daemon)["device"]["celsius"] is None
    right.check(0, ask(daemon, windows[0])[1])


# ------------------------------------------------------------------------------------------------------------- libraries


def _changed(library, to, old, new):
    spoiled = library.read_bytes()
    assert old in spoiled
    to.write_bytes(spoiled.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda library, to: None, "No such file"),
        (lambda library, to: to.write_bytes(library.read_bytes()[:300_000]), "it was cut short"),
        (lambda library, to: _changed(library, to, library.read_bytes()[:20], _other_processor(library)), "it is for "),
        (lambda library, to: to.write_bytes(b"not a library" * 100), "it is no shared object of 64 bits"),
        (lambda library, to: _changed(library, to, b"\0hailo_configure_vdevice\0", b"\0hailo_configure_nothing\0"), "no function"),
    ],
    ids=["absent", "cut short", "another processor", "no library", "no symbol"],
)
def test_a_library_that_cannot_be_used_is_said_and_the_next_engine_serves(
    native, with_chip, hailo_model, chip, tmp_path, walk, spoil, said
):
    library = tmp_path / "other.so"
    spoil(chip.library, library)
    daemon = native(models=[hailo_model()], config=with_chip(library))
    assert serving(daemon) == "cpu" and said in here(daemon)["problem"]
    assert daemon.request("/infer", walk).status == 200


def _other_processor(library):
    spoiled = bytearray(library.read_bytes()[:20])
    # ELF's numbers of x86_64 and aarch64.
    spoiled[18] = {62: 183, 183: 62}[spoiled[18]]
    return bytes(spoiled)


def test_a_driver_of_another_release_is_named_in_the_status_the_log_and_an_alert(native, with_chip, hailo_model, chip, tmp_path):
    version = tmp_path / "root/sys/module/hailo_pci/version"
    version.parent.mkdir(parents=True)
    version.write_text("4.21.0\n")
    chip.has(driver_mismatch=True)
    settings = f'[monitor]\nroot = "{tmp_path}/root"\ninterval_s = 1\n'
    daemon = native(models=[hailo_model()], config=with_chip() + settings)
    said = "libhailort is 4.23.0, the driver hailo_pci 4.21.0: install library, driver and firmware of one release, then restart the board"
    assert here(daemon)["mismatch"] == said

    def alerts():
        return [alert["about"] for alert in daemon.request("/api/v1/alerts").json()["active"] if alert["alert"] == "engine_mismatch"]

    assert until(alerts, daemon) == [said]
    assert said in daemon.log_text()


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"version": [4, 20, 1]}, "HailoRT 4.20.1; 4.21, 4.22 and 4.23 are supported"),
        ({"version": [5, 2, 0]}, "HailoRT 5.2.0"),
        ({"driver_mismatch": True}, "library, driver and firmware must be of one version"),
        ({"no_driver": True}, "HAILO_DRIVER_NOT_INSTALLED (64): no driver of it is loaded"),
        ({"lost": True}, "there is none"),
        ({"no_node": True}, NO_NODE),
        ({"hung": True}, "HAILO_DRIVER_TIMEOUT (87)"),
    ],
    ids=["older", "newer", "driver", "no driver", "no chip", "no node", "hung"],
)
def test_why_there_is_no_chip_to_be_used_is_said(native, with_chip, hailo_model, chip, walk, faults, said):
    chip.has(**faults)
    daemon = native(models=[hailo_model()], config=with_chip())
    assert serving(daemon) == "cpu" and said in here(daemon)["problem"]
    assert daemon.request("/infer", walk).status == 200


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"silent": True}, "no answer within 20 s"),
        ({"crashes": True}, "its process ended with signal: "),
        ({"prints": "[Hailo] [info] one chip"}, None),
    ],
    ids=["hangs", "crashes", "prints"],
)
def test_a_chip_that_hangs_or_kills_who_looks_for_it_takes_no_other_engine_away(
    native, with_chip, hailo_model, chip, onnxruntime_library, walk, faults, said
):
    chip.has(**faults)
    config = f'{with_chip()}onnxruntime = "{onnxruntime_library}"\n'
    daemon = native(models=[hailo_model(engines=("hailo", "ort"))], config=config)
    assert serving(daemon) == ("ort" if said else "hailo")
    if said:
        assert said in here(daemon)["problem"] and here(daemon)["waits"], "where it is on the bus it is tried again and again"
    ort = next(e for e in daemon.request("/status").json()["engines"] if e["engine"] == "ort")
    assert ort["problem"] is None and ort["providers"] == ["cpu"]
    assert daemon.request("/infer", walk).status == 200


@pytest.fixture(scope="session")
def real():
    """A real libhailort, where a developer has one."""
    library = os.environ.get("INFERD_HAILORT_LIB")
    if not library:
        pytest.skip("INFERD_HAILORT_LIB names no libhailort")
    return library


def of_the_program(engine_host, library, *before):
    """What the program tells of the engine, with the environment that the daemon gives it; `before` is what starts it."""
    environment = {"INFERD_HAILORT_LIB": library, "HAILORT_LOGGER_PATH": "NONE", "PATH": os.environ["PATH"]}
    run = subprocess.run([*before, engine_host, "engines"], env=environment, capture_output=True, text=True, check=True)
    return next(e for e in json.loads(run.stdout) if e["engine"] == "hailo")


def test_the_program_tells_the_same_of_the_real_library(engine_host, real):
    told = of_the_program(engine_host, real)
    assert told["version"].startswith("hailort 4.2") and "there is none" in told["problem"] and told["waits"]


def test_a_chip_without_a_node_is_told_by_the_real_library_as_by_the_double(engine_host, real):
    shown = "/sys/class/hailo_chardev/hailo0"
    script = f"""mount --make-rprivate / && mount -t tmpfs none /sys/class && mkdir -p {shown} || exit 77
        printf 0001:01:00.0 > {shown}/board_location; printf 0 > {shown}/accelerator_type; exec "$@" """
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    assert NO_NODE in of_the_program(engine_host, real, *before)["problem"]


def test_the_real_library_without_a_chip_costs_a_model_its_first_rung_and_nothing_more(native, with_chip, hailo_model, real, walk):
    daemon = native(models=[hailo_model()], config=with_chip(real))
    assert serving(daemon) == "cpu" and "there is none" in here(daemon)["problem"]
    assert daemon.request("/infer", walk).status == 200


# ------------------------------------------------------------------------------------------------------------- admission


def _flipped(folder, program):
    spoiled = bytearray((folder / "model.hef").read_bytes())
    spoiled[len(spoiled) // 2] ^= 4
    (folder / "model.hef").write_bytes(spoiled)


def _cut(folder, program):
    (folder / "model.hef").write_bytes((folder / "model.hef").read_bytes()[:5000])


def _no_hef(folder, program):
    (folder / "model.hef").write_bytes(b"\0" * 5000)


def _page(folder, old, new):
    """Changes the container's page to one of the same length, with the checksum that belongs to it."""
    whole = (folder / "model.hef").read_bytes()
    assert old in whole and len(old) == len(new)
    whole = whole.replace(old, new)
    crc = zlib.crc32(whole[12:]).to_bytes(4, "little")
    (folder / "model.hef").write_bytes(whole[:8] + crc + whole[12:])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_flipped, "HAILO_HEF_FILE_CORRUPTED (91)"),
        (_cut, "HAILO_HEF_FILE_CORRUPTED (91)"),
        (_no_hef, "HAILO_HEF_NOT_SUPPORTED (92)"),
        (lambda folder, program: _page(folder, b'"shape":[1,100,9]', b'"shape":[5,180,1]'), "another shape"),
        (lambda folder, program: _page(folder, b"imu-motion/latent_embeddings", b"imu-motion/latent_embeddingz"), "tensor latent"),
    ],
    ids=["flipped", "cut", "no hef", "shape", "names"],
)
def test_a_container_that_does_not_fit_is_refused_and_the_old_one_serves_on(
    native, with_chip, hailo_model, pack_program, windows, right, spoil, said
):
    folder = hailo_model()
    daemon = native(models=[folder], config=with_chip())
    pid = entry(daemon)["host"]["pid"]
    spoil(folder, pack_program)
    double.with_variant(folder)
    refused = daemon.request("/v2/repository/models/imu-motion/load", {})
    assert refused.status >= 400 and said in refused.body.decode(), refused.body
    assert entry(daemon)["host"]["pid"] == pid and serving(daemon) == "hailo"
    right.check(1, ask(daemon, windows[1])[1])


def test_a_container_for_another_chip_is_refused(native, with_chip, hailo_model, pack_program, windows, right):
    folder = hailo_model()
    daemon = native(models=[folder], config=with_chip())
    double.pack(pack_program, folder, "hailo8l")
    double.with_variant(folder, device="hailo8l")
    refused = daemon.request("/v2/repository/models/imu-motion/load", {})
    assert refused.status >= 400 and "hailo8l" in refused.body.decode(), refused.body
    assert serving(daemon) == "hailo"
    right.check(1, ask(daemon, windows[1])[1])


def test_a_container_that_gives_wrong_numbers_serves_nobody(native, with_chip, hailo_model, pack_program, windows, right):
    folder = hailo_model()
    double.pack_wrong(pack_program, folder)
    daemon = native(models=[folder], config=with_chip())
    seen = entry(daemon)["fallback"]
    assert (seen["from"], seen["to"]) == ("hailo", "cpu") and "golden case" in seen["reason"], seen
    right.check(0, ask(daemon, windows[0])[1])
