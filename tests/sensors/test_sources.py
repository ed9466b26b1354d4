"""Live sources: what is recognised in them, and what is said when something is wrong with them."""

import json
import os
import random
import struct
import time

import helpers
import numpy
import places
import pytest
from contract.test_probes import check
from contract.wire import ask
from sensors.conftest import EMG_MODEL
from sensors.sensor import Sensor, encoder, recording, source


def state(device, wanted, **more):
    """Waits until the source is so; what is said of it."""

    def so():
        now = source(device)
        return now if now["state"] == wanted and all(now[k] == v for k, v in more.items()) else None

    return helpers.until(so, device)


def recognised(device, gesture):
    """Waits until the source's newest window is recognised as this."""
    helpers.until(lambda: (source(device)["latest"] or {}).get("prediction") == gesture, device)


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def sensor(tmp_path, encode):
    sensor = Sensor(tmp_path, encode)
    yield sensor
    sensor.unplug()


@pytest.fixture
def arm(native, sensor):
    """A device that looks for a sensor on a serial port."""
    return native(models=[EMG_MODEL], config=f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "{sensor.path}"\n')


def test_a_sensor_that_is_plugged_in_is_recognised_and_one_that_is_unplugged_is_missed(arm, sensor):
    assert source(arm)["state"] == "unplugged" and "No such file" in source(arm)["reason"]
    sensor.gesture = 3
    sensor.plug()
    state(arm, "live")
    recognised(arm, 3)
    answer = ask(arm, "POST", "/infer")
    assert answer.status == 200 and answer.json()["pred_label"] == "Wrist Flex", answer

    sensor.unplug()
    gone = state(arm, "unplugged")
    assert gone["reason"], gone
    answer = ask(arm, "POST", "/infer")
    assert (answer.status, answer.json()["error"]) == (503, "source_unavailable"), answer
    told = gone["predictions"]

    sensor.gesture = 5
    sensor.plug()
    state(arm, "live", opened=2)
    recognised(arm, 5)
    assert source(arm)["predictions"] > told and source(arm)["gaps"] > 0


def test_a_sensor_that_stops_is_stale_and_no_window_is_recognised_twice(arm, sensor):
    sensor.plug()
    recognised(arm, 0)
    sensor.sending = False
    told = state(arm, "stale")
    assert "nothing comes" in told["reason"]
    assert ask(arm, "POST", "/infer").status == 503

    # The last window may still be with the engine.
    def rests():
        before = source(arm)["predictions"]
        time.sleep(0.5)
        return source(arm)["predictions"] == before

    helpers.until(rests, arm, timeout=10)
    assert source(arm)["silent_s"] > told["silent_s"]
    with sensor.lock:
        sensor.sending = True
    state(arm, "live")


def test_what_a_sensor_lost_is_counted_and_no_window_lies_across_it(arm, sensor):
    sensor.plug()
    recognised(arm, 0)
    with sensor.lock:
        sensor.skip = 7
    helpers.until(lambda: source(arm)["missing"] >= 70, "the missing samples are counted")
    assert source(arm)["gaps"] >= 1
    state(arm, "live")


def test_a_sensor_of_other_channels_does_not_fit(arm, sensor):
    sensor.channels = 8
    sensor.plug()
    misfit = state(arm, "misfit")
    assert misfit["reason"] == "the sensor sends 8 channels, the source is set to 16" and misfit["predictions"] == 0
    with sensor.lock:
        sensor.channels = 16
    state(arm, "live")
    recognised(arm, 0)


def test_a_wrong_baud_rate_is_told_from_another_device(arm, sensor):
    # Every bit twice, as a receiver sees it that is twice as fast.
    sensor.garbage = bytes([0xF0, 0x3C, 0xCF, 0x0C]) * 64
    sensor.plug()
    assert "baud rate" in state(arm, "wrong_baud")["reason"]
    with sensor.lock:
        sensor.garbage = bytes(random.Random(1).randrange(256) for _ in range(256))
    assert "not in frames" in state(arm, "not_frames")["reason"]
    with sensor.lock:
        sensor.garbage = b""
    state(arm, "live")


def test_bare_samples_are_recognised_where_a_setting_says_that_they_are(native, sensor):
    config = f'[[sources]]\nname = "old"\nkind = "serial"\npath = "{sensor.path}"\nbaud = 115200\nformat = "legacy"\nscale = 0.5\n'
    device = native(models=[EMG_MODEL], config=config)
    row = [0] * 16
    row[6] = 40
    sensor.garbage = struct.pack("<16h", *row) * 10
    sensor.plug()
    state(device, "live")
    recognised(device, 6)
    # A mean of 40 counts of 0.5 is a score of 10.
    assert source(device)["latest"]["confidence"] == pytest.approx(0.9997, abs=1e-4)


def test_a_recording_is_recognised_and_one_that_cannot_be_read_is_said(native, tmp_path):
    file = tmp_path / "arm.npy"
    device = native(models=[EMG_MODEL], config=f'[[sources]]\nname = "arm"\nkind = "recording"\npath = "{file}"\n')
    assert "No such file" in state(device, "unplugged")["reason"]
    file.write_bytes(b"\x93NUMPY\x01\x00")
    assert "cut short" in state(device, "unreadable")["reason"]
    recording(tmp_path / "new.npy", 6).rename(file)
    state(device, "live")
    recognised(device, 6)


def test_a_recording_that_is_not_looped_comes_to_its_end(native, tmp_path):
    file = tmp_path / "arm.npy"
    config = f'[[sources]]\nname = "arm"\nkind = "recording"\npath = "{file}"\nloop = false\n'
    device = native(models=[EMG_MODEL], config=config)
    recording(tmp_path / "new.npy", 1, seconds=1).rename(file)
    over = state(device, "over")
    assert over["samples"] == 2000 and over["latest"]["prediction"] == 1


PUSH = '[[sources]]\nname = "phone"\nkind = "push"\n'


def samples(gesture, count):
    rows = numpy.zeros((count, 16))
    rows[:, gesture] = 20
    return rows.tolist()


def push(device, body, name="phone"):
    return ask(device, "POST", f"/api/v1/sources/{name}/samples", body if isinstance(body, str) else json.dumps(body))


def test_what_a_phone_pushes_is_recognised(native):
    device = native(models=[EMG_MODEL], config=PUSH)
    helpers.until(lambda: source(device)["model"] == "emg-loudest", "the source has its model")
    answer = push(device, {"samples": samples(2, 150), "sequence": 0})
    assert (answer.status, answer.json()) == (202, {"taken": 150, "next": 150, "missing": 0}), answer
    assert source(device)["predictions"] == 0, "no window is whole yet"
    assert push(device, {"samples": samples(2, 130), "sequence": 150}).json()["next"] == 280
    recognised(device, 2)
    # 200 samples and two hops of 40.
    helpers.until(lambda: source(device)["predictions"] == 3, "every window is recognised once")
    assert push(device, {"samples": samples(4, 220), "sequence": 1000}).json() == {"taken": 220, "next": 1220, "missing": 720}
    helpers.until(lambda: source(device)["predictions"] == 4, "the window behind the gap is recognised")
    assert source(device)["gaps"] == 1 and source(device)["latest"]["prediction"] == 4
    state(device, "stale")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 422),
        ("{}", 422),
        ('{"samples":[]}', 422),
        ('{"samples":[[1,2]]}', 422),
        ('{"samples":[[1e39%s]]}' % (",0" * 15), 422),
        ('{"samples":[[null%s]]}' % (",0" * 15), 422),
        ('{"samples":[],"sequence":-1}', 422),
        ({"samples": [[0.0] * 16] * 4097}, 413),
    ],
)
def test_what_is_no_sample_is_refused_and_counts_for_nothing(native, body, status):
    device = native(models=[EMG_MODEL], config=PUSH)
    answer = push(device, body)
    assert answer.status == status, answer
    assert source(device)["samples"] == 0
    check(device.request("/openapi.json").json(), "/api/v1/sources/{name}/samples", "POST", answer)


def test_a_sender_that_begins_anew_is_taken_for_one_and_what_comes_late_is_not(native):
    device = native(models=[EMG_MODEL], config=PUSH)
    helpers.until(lambda: source(device)["model"] == "emg-loudest", "the source has its model")
    assert push(device, {"samples": samples(2, 220), "sequence": 0}).json()["taken"] == 220
    assert push(device, {"samples": samples(4, 100), "sequence": 5}).json() == {"taken": 0, "next": 220, "missing": 0}
    state(device, "stale")
    # Behind a silence it is no late one, but another count.
    assert push(device, {"samples": samples(4, 250), "sequence": 5}).json()["next"] == 255
    recognised(device, 4)
    assert push(device, {"samples": samples(6, 250), "sequence": 1 << 40}).json()["next"] == (1 << 40) + 250
    recognised(device, 6)
    assert push(device, {"samples": samples(1, 250), "sequence": 7}).json()["taken"] == 250
    recognised(device, 1)
    assert push(device, {"samples": samples(1, 1), "sequence": (1 << 53) + 1}).status == 422
    # The next one must have a number, too; and nobody has lost so many.
    assert push(device, {"samples": samples(1, 1), "sequence": 1 << 53}).status == 422
    far = push(device, {"samples": samples(1, 1), "sequence": (1 << 53) - 2}).json()
    assert far == {"taken": 1, "next": (1 << 53) - 1, "missing": 0} and source(device)["missing"] < 1 << 32
    assert push(device, {"samples": samples(1, 1), "sequence": far["next"]}).json()["taken"] == 1
    refused = push(device, '{"samples": [[1]],\n "sequence": "secret"}').json()["detail"]
    assert "line 2" in refused and "secret" not in refused
    assert push(device, '{"samples":[' + "[]," * 600_000 + "[]]}").status == 413


def test_a_pipe_in_a_recordings_place_is_refused_and_holds_nothing_up(native, tmp_path):
    os.mkfifo(tmp_path / "arm.npy")
    device = native(models=[EMG_MODEL], config=f'[[sources]]\nname = "arm"\nkind = "recording"\npath = "{tmp_path}/arm.npy"\n')
    assert "no file" in state(device, "unreadable")["reason"]
    assert device.stop() == 0


def test_only_a_source_of_this_kind_is_pushed_to(native):
    device = native(models=[EMG_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\n')
    assert push(device, {"samples": samples(0, 1)}, "demo").status == 409
    answer = push(device, {"samples": samples(0, 1)}, "nobody")
    assert answer.status == 404 and "nobody" in answer.json()["detail"]


def test_a_synthetic_source_is_live_measured_and_described(native):
    device = native(models=[EMG_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\ngesture = "pinch"\n')
    helpers.until(lambda: source(device)["predictions"] > 5, device)
    assert source(device)["emg_mode"] == "dummy" == device.request("/health").json()["emg_mode"]
    check(device.request("/openapi.json").json(), "/api/v1/sources", "GET", ask(device, "GET", "/api/v1/sources"))
    page = device.request("/metrics").body.decode()
    for line in ('source_state{source="demo",state="live"} 1', 'source_samples_total{source="demo"} ', 'emg_predictions_total{source="demo"} ', 'emg_event_latency_seconds_count{source="demo"} '):
        assert line in page, line


GESTURES = ["Rest", "Hand Open", "Hand Close", "Wrist Flex", "Wrist Extend", "Pinch", "Point"]


def test_the_shipped_model_recognises_what_the_generator_does(native):
    sources = "".join(
        f'[[sources]]\nname = "{name.lower().replace(" ", "-")}"\nkind = "synthetic"\ngesture = "{name}"\nhop = 1000\nseed = 9\n'
        for name in GESTURES
    )
    device = native(models=[places.ROOT / "app/inferd/models/emg-gestures"], config=sources)
    for name in GESTURES:
        where = name.lower().replace(" ", "-")
        helpers.until(lambda where=where: source(device, where)["predictions"] > 0, device)
        latest = source(device, where)["latest"]
        assert (latest["label"], latest["prediction"]) == (name, GESTURES.index(name)), latest
    # It filters, and a window of a source is filtered already.
    for path in ("/infer", "/infer/stream"):
        answer = ask(device, "POST", path, '{"preprocess":false,"emg_mode":"dummy"}')
        assert answer.status == 422 and answer.json()["detail"][0]["loc"] == ["body", "preprocess"], answer


def test_a_source_says_what_it_has_no_model_for(native):
    device = native(models=[places.DEFAULT_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\n')
    helpers.until(lambda: "no model of task emg-classifier" in source(device)["problem"], device)
    config = '[[sources]]\nname = "slow"\nkind = "push"\nrate_hz = 1000\n'
    device = native(models=[EMG_MODEL], config=config)
    helpers.until(lambda: "2000 Hz" in source(device)["problem"], device)
    assert source(device)["state"] == "misfit" and source(device)["model"] is None
