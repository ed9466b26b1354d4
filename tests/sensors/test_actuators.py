"""What moves by what is recognised: within its limits, and to the neutral pose whatever fails."""

import itertools
import os
import select
import signal
import threading
import tty

import helpers
import pytest
from contract.test_probes import check
from contract.wire import ask
from faults.test_daemon import host_pid
from sensors.conftest import EMG_MODEL
from sensors.sensor import Sensor, counted, encoder, source

NEUTRAL = [1500, 1200, 1800]
FLEX = [1900, 1000, 1000]
RATE, VELOCITY, ACCELERATION = 50, 2000, 20_000
CONFIG = """[updates]
data_dir = "{data}"
[[sources]]
name = "arm"
kind = "serial"
path = "{sensor}"
gate = {{ rest_rms = 15 }}
[[actuators]]
name = "hand"
path = "{hand}"
neutral = {neutral}
poses = {{ "Wrist Flex" = {flex} }}
velocity_us_s = {velocity}
acceleration_us_s2 = {acceleration}
autostart = {autostart}
"""


class Hand:
    """A receiver on a serial port: every line that it ever got."""

    def __init__(self, folder):
        self.path = folder / "hand"
        self.lines, self.master, self.thread = [], None, None

    def plug(self):
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(slave))
        self.lines, self.slave = [], slave
        self.unplugged, self.wake = os.pipe()
        self.thread = threading.Thread(target=self._read, args=(self.master,))
        self.thread.start()

    def _read(self, master):
        rest = b""
        while True:
            ready, _, _ = select.select([master, self.unplugged], [], [])
            if self.unplugged in ready:
                return
            *lines, rest = (rest + os.read(master, 4096)).split(b"\n")
            for line in lines:
                assert line.startswith(b"PWM:") or not line, line
                # An empty one: they begin anew, for the machine stood still.
                self.lines.append([int(width) for width in line[4:].split(b",")] if line else [])

    def unplug(self):
        if self.thread:
            os.write(self.wake, b"x")
            self.thread.join()
            self.thread = None
            self.path.unlink(missing_ok=True)
            for end in (self.slave, self.master, self.unplugged, self.wake):
                os.close(end)

    def until(self, pose, device):
        helpers.until(lambda: self.lines and self.lines[-1] == pose, device)

    def check(self):
        """No line, no pair and no three of them break a limit; rounding adds up to two to the last. A beginning is neutral."""
        parts = [list(part) for whole, part in itertools.groupby(self.lines, bool) if whole]
        assert parts
        for part in parts:
            self.check_part(part)

    @staticmethod
    def check_part(lines):
        assert lines[0] == NEUTRAL
        assert all(len(line) == 3 and all(1000 <= width <= 2000 for width in line) for line in lines)
        for a, b in zip(lines, lines[1:]):
            assert all(abs(x - y) <= VELOCITY / RATE for x, y in zip(a, b)), (a, b)
        for a, b, c in zip(lines, lines[1:], lines[2:]):
            assert all(abs(x - 2 * y + z) <= ACCELERATION / RATE**2 + 2 for x, y, z in zip(a, b, c)), (a, b, c)


@pytest.fixture
def sensor(tmp_path):
    sensor = Sensor(tmp_path, encoder(tmp_path))
    sensor.gesture = 3
    yield sensor
    sensor.unplug()


@pytest.fixture
def hand(tmp_path):
    hand = Hand(tmp_path)
    yield hand
    hand.unplug()


def configuration(sensor, hand, folder, autostart="true"):
    return CONFIG.format(data=folder / "data", sensor=sensor.path, hand=hand.path, neutral=NEUTRAL, flex=FLEX, velocity=VELOCITY, acceleration=ACCELERATION, autostart=autostart)


@pytest.fixture
def start(native, sensor, hand, tmp_path):
    def start(autostart="true"):
        return native(models=[EMG_MODEL], config=configuration(sensor, hand, tmp_path, autostart))

    return start


def actuator(device):
    [hand] = device.request("/api/v1/actuators").json()["actuators"]
    return hand


def test_a_hand_follows_a_sensor_and_is_neutral_when_the_sensor_is_gone_or_at_rest(start, sensor, hand):
    sensor.plug()
    hand.plug()
    device = start()
    hand.until(FLEX, device)
    helpers.until(lambda: (now := actuator(device))["state"] == "following" and now["gesture"] == "Wrist Flex", device)
    check(device.request("/openapi.json").json(), "/api/v1/actuators", "GET", ask(device, "GET", "/api/v1/actuators"))
    # The muscles rest, whatever the model says of it.
    with sensor.lock:
        sensor.loud = 10
    hand.until(NEUTRAL, device)
    # Rest is no failure.
    helpers.until(lambda: (now := actuator(device))["reason"] == "source arm: low_energy" and now["failing"] is None, device)
    with sensor.lock:
        sensor.loud = 20
    hand.until(FLEX, device)
    sensor.unplug()
    hand.until(NEUTRAL, device)
    helpers.until(lambda: (actuator(device)["failing"] or "").startswith("source arm: "), device)
    alerts = lambda: [a["alert"] for a in device.request("/api/v1/alerts").json()["active"]]
    helpers.until(lambda: "actuator_failing" in alerts(), device)
    sensor.plug()
    hand.until(FLEX, device)
    # A machine that stands still for half a second is one more.
    assert actuator(device)["fail_safes"] >= 2
    page = lambda: device.request("/metrics").body.decode()
    helpers.until(lambda: counted(page(), 'actuator_state{actuator="hand",state="following"}') == 1, device)
    assert counted(page(), 'actuator_fail_safes_total{actuator="hand"}') >= 2
    assert counted(page(), 'actuator_lines_total{actuator="hand"}') > 0
    assert 'actuator_dropped_lines_total{actuator="hand"} ' in page()
    # The way back and the last line are those of an orderly end.
    assert device.stop() == 0
    helpers.until(lambda: hand.lines[-1] == NEUTRAL, "the last lines are read")
    hand.check()


def test_a_model_that_does_not_answer_costs_the_pose_and_no_jump(start, sensor, hand):
    sensor.plug()
    hand.plug()
    device = start()
    hand.until(FLEX, device)
    # Its host hangs until it is replaced, a second later; the command ends after half of one.
    told = actuator(device)["fail_safes"]
    os.kill(host_pid(device, "emg-loudest"), signal.SIGSTOP)
    helpers.until(lambda: actuator(device)["fail_safes"] > told, device)
    hand.until(FLEX, device)
    os.kill(host_pid(device, "emg-loudest"), signal.SIGKILL)
    assert ask(device, "POST", "/v2/repository/models/emg-loudest/unload").status == 200
    hand.until(NEUTRAL, device)
    helpers.until(lambda: "no model" in (actuator(device)["failing"] or ""), device)
    assert ask(device, "POST", "/v2/repository/models/emg-loudest/load").status == 200
    hand.until(FLEX, device)
    hand.check()


def test_a_stopped_hand_follows_nothing_until_it_is_started(start, sensor, hand):
    sensor.plug()
    hand.plug()
    device = start(autostart="false")
    helpers.until(lambda: source(device)["gate"]["state"] == "following", device)
    helpers.until(lambda: hand.lines, device)
    helpers.until(lambda: (now := actuator(device))["state"] == "stopped" and now["neutral"], device)
    schema = device.request("/openapi.json").json()
    answer = ask(device, "POST", "/api/v1/actuators/hand/start")
    assert (answer.status, answer.json()["stopped"]) == (200, False), answer
    hand.until(FLEX, device)
    answer = ask(device, "POST", "/api/v1/actuators/hand/stop")
    check(schema, "/api/v1/actuators/{name}/stop", "POST", answer)
    hand.until(NEUTRAL, device)
    helpers.until(lambda: source(device)["gate"]["command_label"] == "Wrist Flex", device)
    assert actuator(device)["state"] == "stopped"
    assert ask(device, "POST", "/api/v1/actuators/foot/stop").status == 404
    hand.check()


def test_a_stop_holds_through_the_end_of_the_daemon_until_somebody_starts_it(start, sensor, hand):
    sensor.plug()
    hand.plug()
    device = start()
    hand.until(FLEX, device)
    assert ask(device, "POST", "/api/v1/actuators/hand/stop").status == 200
    hand.until(NEUTRAL, device)
    # As at a power cut: what was acknowledged holds.
    device.process.kill()
    device.stop()
    device = start()
    helpers.until(lambda: source(device)["gate"]["command_label"] == "Wrist Flex", device)
    helpers.until(lambda: actuator(device)["state"] == "stopped" and actuator(device)["lines"] > RATE, device)
    assert hand.lines[-1] == NEUTRAL
    assert ask(device, "POST", "/api/v1/actuators/hand/start").status == 200
    hand.until(FLEX, device)
    device.process.kill()
    device.stop()
    device = start()
    hand.until(FLEX, device)


def test_a_hand_is_not_moved_by_a_model_whose_calibration_is_ignored(start, sensor, hand, tmp_path):
    spoiled = tmp_path / "data/calibrations/emg-loudest.calibration"
    spoiled.parent.mkdir(parents=True)
    spoiled.write_bytes(b"not a calibration")
    sensor.plug()
    hand.plug()
    device = start()
    helpers.until(lambda: source(device)["gate"]["command_label"] == "Wrist Flex", device)
    helpers.until(lambda: "its calibration is ignored" in (actuator(device)["failing"] or "") and actuator(device)["lines"] > RATE, device)
    assert all(line in (NEUTRAL, []) for line in hand.lines)
    assert ask(device, "POST", "/api/v1/calibrations/undo").status == 200
    hand.until(FLEX, device)
    hand.check()


def test_a_start_that_cannot_be_remembered_is_none(start, sensor, hand, tmp_path):
    sensor.plug()
    hand.plug()
    device = start()
    hand.until(FLEX, device)
    assert ask(device, "POST", "/api/v1/actuators/hand/stop").status == 200
    [marker] = tmp_path.glob("data/actuators/*")
    marker.unlink()
    marker.mkdir()
    answer = ask(device, "POST", "/api/v1/actuators/hand/start")
    assert (answer.status, answer.json()["error"]) == (503, "storage"), answer
    assert actuator(device)["stopped"]
    # And a stop that cannot be remembered is one all the same.
    marker.rmdir()
    assert ask(device, "POST", "/api/v1/actuators/hand/start").status == 200
    hand.until(FLEX, device)
    marker.mkdir()
    answer = ask(device, "POST", "/api/v1/actuators/hand/stop")
    assert (answer.status, answer.json()["error"]) == (503, "storage"), answer
    hand.until(NEUTRAL, device)
    hand.check()


def test_a_hand_that_is_plugged_in_again_begins_neutral(start, sensor, hand):
    sensor.plug()
    device = start()
    helpers.until(lambda: actuator(device)["state"] == "unplugged", device)
    helpers.until(lambda: source(device)["gate"]["state"] == "following", device)
    hand.plug()
    hand.until(FLEX, device)
    hand.check()
    hand.unplug()
    helpers.until(lambda: actuator(device)["state"] == "unplugged", device)
    told = source(device)["predictions"]
    helpers.until(lambda: source(device)["predictions"] > told, "nothing else is held up")
    hand.plug()
    hand.until(FLEX, device)
    hand.check()


def test_only_who_operates_the_device_stops_and_starts_a_hand(native, hand, sensor, tmp_path):
    config = configuration(sensor, hand, tmp_path, "false")
    keys = '[security]\nviewer_keys = ["viewer-key-of-this-test"]\noperator_keys = ["operator-key-of-this-test"]\nchange_limit_per_min = 1\n'
    device = native(models=[EMG_MODEL], config=config + keys)
    for key, status in (("viewer-key-of-this-test", 403), ("operator-key-of-this-test", 200)):
        for order in ("start", "stop"):
            answer = ask(device, "POST", f"/api/v1/actuators/hand/{order}", headers=[("X-API-Key", key)])
            assert answer.status == status, (key, order, answer)
