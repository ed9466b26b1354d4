"""Which gesture may be acted on: only one that windows agree on, and none for long after they stop."""

import helpers
import pytest
from contract.test_probes import check
from contract.wire import ask
from sensors.conftest import EMG_MODEL
from sensors.sensor import Sensor, counted, encoder, source
from sensors.test_sources import push, samples
from sensors.test_stream import Events

ARM = '[[sources]]\nname = "arm"\nkind = "serial"\npath = "{}"\ngate = {}\n'


@pytest.fixture
def sensor(tmp_path):
    sensor = Sensor(tmp_path, encoder(tmp_path))
    yield sensor
    sensor.unplug()


def gate(device, **wanted):
    """Waits until the gate of the only source is so."""

    def so():
        now = source(device)["gate"]
        return now if all(now[k] == v for k, v in wanted.items()) else None

    return helpers.until(so, device)


def test_a_gesture_may_be_acted_on_while_its_sensor_is_there_and_a_stream_tells_when_it_may_not_any_more(native, sensor):
    device = native(models=[EMG_MODEL], config=ARM.format(sensor.path, "{ hold_ms = 1000 }"))
    now = source(device)["gate"]
    assert (now["state"], now["reason"]) == ("released", "source") or now["reason"] == "starting", now
    sensor.gesture = 3
    sensor.plug()
    assert gate(device, state="following")["command_label"] == "Wrist Flex"
    # It has an end, so that what is never told is seen to be.
    events = iter(Events(device, {"fps": 20, "duration_seconds": 60}))
    event = next(e for e in events if e.get("gate") == "following")
    assert (event["command"], event["command_label"], event["gate_reason"]) == (3, "Wrist Flex", "agreed")
    schema = device.request("/openapi.json").json()
    for path in ("/api/v1/sources", "/infer/stream/stats"):
        check(schema, path, "GET", ask(device, "GET", path))
    assert device.request("/infer/stream/stats").json()["gate"]["safe_label"] == "Rest"
    sensor.unplug()
    # A machine that stands still for a second has let go before, without an error.
    told = next(e for e in events if e.get("gate") == "released" and "arm" in e.get("error", ""))
    assert (told["command"], told["command_label"]) == (0, "Rest"), told
    assert gate(device, state="released", reason="source", command=0)["releases"] >= 1
    sensor.gesture = 5
    sensor.plug()
    gate(device, state="following", command=5)
    page = lambda: device.request("/metrics").body.decode()
    states = lambda: [counted(page(), f'emg_gate_state{{source="arm",state="{state}"}}') for state in ("following", "holding", "released")]
    helpers.until(lambda: states() == [1, 0, 0], device)
    for series in ('emg_gate_windows_total{source="arm",outcome="passed"}', 'emg_gate_switches_total{source="arm"}', 'emg_gate_releases_total{source="arm"}', 'emg_gate_rms{source="arm"}'):
        assert counted(page(), series) >= 1, series


def test_muscles_at_rest_let_go_whatever_the_model_says(native, sensor):
    device = native(models=[EMG_MODEL], config=ARM.format(sensor.path, "{ rest_rms = 15 }"))
    sensor.gesture = 2
    sensor.plug()
    gate(device, state="following", command=2, rms=20)
    with sensor.lock:
        sensor.loud = 10
    now = gate(device, state="released", reason="low_energy", rms=10)
    assert now["command_label"] == "Rest" and now["low_energy"] > 0
    # The model is as sure as the gate asks for.
    so = lambda e: e and (e.get("prediction"), e["command"]) == (2, 0) and e["confidence"] > 0.7
    helpers.until(lambda: so(source(device)["latest"]), device)
    with sensor.lock:
        sensor.loud = 20
    gate(device, state="following", command=2)


def test_gestures_in_turn_are_never_a_command(native):
    config = '[[sources]]\nname = "phone"\nkind = "push"\nhop = 200\ngate = { hold_ms = 10000 }\n'
    device = native(models=[EMG_MODEL], config=config)
    helpers.until(lambda: source(device)["model"] == "emg-loudest", "the source has its model")
    turns = [row for i in range(20) for row in samples(1 + i % 2, 200)]
    assert push(device, {"samples": turns, "sequence": 0}).status == 202
    helpers.until(lambda: source(device)["predictions"] == 20, device)
    now = source(device)["gate"]
    assert (now["passed"], now["switches"], now["command"]) == (20, 0, 0), now
    assert push(device, {"samples": samples(1, 1000), "sequence": 4000}).status == 202
    gate(device, switches=1, command=1)


def test_a_model_without_a_safe_class_commands_nothing_when_it_lets_go(native):
    config = '[[sources]]\nname = "phone"\nkind = "push"\ngate = { safe = "Relax" }\n'
    device = native(models=[EMG_MODEL], config=config)
    helpers.until(lambda: source(device)["model"] == "emg-loudest", "the source has its model")
    assert push(device, {"samples": samples(2, 240), "sequence": 0}).status == 202
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    now = gate(device, state="released")
    assert (now["command"], now["command_label"], now["safe_label"]) == (None, None, None)
