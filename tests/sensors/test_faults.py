"""Sensors that do other than they should, for as long as they do it."""

import helpers
import pytest
from helpers import until
from sensors.conftest import EMG_MODEL
from sensors.sensor import RATE, Sensor, encoder, source
from sensors.test_stream import Events


@pytest.fixture(scope="module")
def sensor(tmp_path_factory):
    """A sensor that is plugged in."""
    folder = tmp_path_factory.mktemp("sensor")
    sensor = Sensor(folder, encoder(folder)).plug()
    yield sensor
    sensor.unplug()


@pytest.fixture(autouse=True)
def as_it_should_be(sensor):
    """Whatever a test has it do, it does no longer when the test has ended."""
    yield
    sensor.rate, sensor.burst, sensor.loud, sensor.noisy = RATE, 1, 20, False


@pytest.fixture(scope="module")
def worn(sensor, tmp_path_factory):
    """A device with it."""
    config = f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "{sensor.path}"\n'
    device = helpers.Native(tmp_path_factory.mktemp("worn"), models=[EMG_MODEL], config=config)
    try:
        yield device.wait_ready()
    finally:
        device.stop()


def is_well(device):
    """Windows are recognised, and nothing is remarked upon."""
    before = source(device)["predictions"]

    def found():
        now = source(device)
        return now["state"] == "live" and not now["reason"] and now["predictions"] > before

    until(found, device)


def refuse_a_second_of(device):
    before = source(device)["refused"]
    until(lambda: source(device)["refused"] > before + RATE, device)


@pytest.mark.parametrize("rate", [10 * RATE, RATE // 2])
def test_a_sensor_of_another_rate_gives_no_gesture_and_is_told_by_its_own_clock(worn, sensor, rate):
    is_well(worn)
    sensor.rate = rate
    # The first number may be that of the moment it changed in.
    why = f"sends {rate} samples a second, the source is set to {RATE}"
    until(lambda: source(worn)["state"] == "misfit" and why in source(worn)["reason"], worn)
    refuse_a_second_of(worn)
    # What was on its way has come.
    before = source(worn)["predictions"]
    refuse_a_second_of(worn)
    assert source(worn)["predictions"] == before
    sensor.rate = RATE
    is_well(worn)


def test_ten_times_the_data_costs_windows_and_nothing_else(worn, sensor):
    is_well(worn)
    sensor.burst = 10
    until(lambda: "ahead of its own clock" in source(worn)["reason"], worn)
    for _ in range(2):
        before = resident(worn)
        seen = source(worn)["samples"]
        until(lambda seen=seen: source(worn)["samples"] > seen + 20 * RATE, worn)
    assert worn.request("/livez").status == 200
    assert resident(worn) < before + (8 << 20), "what nobody takes is overwritten: these were 2.4 MB"
    sensor.burst = 1
    is_well(worn)


def test_a_saturated_sensor_is_told(worn, sensor):
    is_well(worn)
    before = source(worn)["clipped"]
    sensor.loud = 32767
    until(lambda: "% of the samples are clipped" in source(worn)["reason"], worn)
    assert source(worn)["clipped"] > before
    assert "source_clipped_samples" in worn.request("/metrics").body.decode()
    sensor.loud = 20
    is_well(worn)


def test_a_noisy_line_is_told_and_nothing_of_its_damaged_frames_is_recognised(worn, sensor):
    sensor.gesture = 2
    is_well(worn)
    before = source(worn)
    sensor.noisy = True
    until(lambda: "some of what the sensor sends is damaged" in source(worn)["reason"], worn)
    events = Events(worn, {"fps": 50})
    assert next(event for event in events if event.get("prediction") == 2)
    until(lambda: source(worn)["damaged"] > before["damaged"] + 100, worn)
    told = [next(event for event in events if "prediction" in event) for _ in range(50)]
    events.close()
    assert {event["prediction"] for event in told} == {2}, "the good frames between them are"
    # Each had ten samples.
    until(lambda: source(worn)["state"] == "live" and source(worn)["missing"] >= before["missing"] + 1000, worn)
    sensor.noisy = False
    is_well(worn)


def test_listeners_are_told_that_samples_come_and_no_whole_window_of_them(worn, sensor):
    is_well(worn)
    events = Events(worn, {"fps": 50})
    assert next(event for event in events if "prediction" in event)
    with sensor.lock:
        sensor.lossy = True
    told = next(event for event in events if "no whole window" in event.get("error", ""))
    assert told["gate"] == "released", "nothing is acted on any more"
    with sensor.lock:
        sensor.lossy = False
    assert next(event for event in events if "prediction" in event)
    events.close()
    is_well(worn)


def test_a_sensor_that_restarts_while_eight_listen_is_recognised_again(worn, sensor):
    sensor.gesture = 1
    is_well(worn)
    listeners = [Events(worn, {"fps": 50}) for _ in range(8)]
    for events in listeners:
        assert next(event for event in events if event.get("prediction") == 1)
    with sensor.lock:
        sensor.sequence, sensor.gesture = 0, 3
    for events in listeners:
        assert next(event for event in events if event.get("prediction") == 3)
        events.close()
    is_well(worn)


def resident(device):
    """The daemon's memory in bytes."""
    with open(f"/proc/{device.process.pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096
