"""The panel, by its simulated backend: what the LED shows, and what a press does."""

import socket

import pytest
from contract.test_monitoring import Events
from contract.test_probes import check
from contract.wire import ask
from helpers import until


class Front:
    """Somebody who sees the LED and has a finger."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.reader = self.socket.makefile("rb")

    def levels(self, count):
        """The next changes of the LED."""
        return [self.reader.readline().decode().strip() for _ in range(count)]

    def do(self, what):
        self.socket.sendall(f"{what}\n".encode())


@pytest.fixture
def panel(native, tmp_path):
    """A daemon with a panel, and somebody in front of it."""
    path = tmp_path / "panel"
    daemon = native(config=f'[panel]\nkind = "simulated"\nsocket = "{path}"\n')
    front = Front(until(lambda: path.exists() and path, daemon))
    return daemon, front


def test_a_healthy_appliance_blinks_and_a_press_puts_its_status_into_the_log(panel):
    daemon, front = panel
    levels = front.levels(5)
    assert set(levels) == {"led 0", "led 1"}
    front.do("press")
    front.do("release")
    until(lambda: 'look="healthy"' in daemon.log_text(), daemon)
    daemon.logged("imu-motion: ready")
    assert daemon.stop() == 0


def test_a_press_tells_everybody_who_listens_how_it_is_and_who_comes_later_nothing(panel):
    daemon, front = panel
    until(lambda: daemon.request("/status").json()["panel"] == {"kind": "simulated", "shows": "healthy"}, daemon)
    listeners = [Events(daemon), Events(daemon)]
    assert [listener.next()[0] for listener in listeners] == ["active", "active"]
    for _ in range(2):
        front.do("press")
        front.do("release")
        for listener in listeners:
            name, status = listener.next()
            assert (name, status["look"], status["models"]) == ("status", "healthy", [{"name": "imu-motion", "ready": True}])
            assert set(status) == {"look", "models", "alerts", "uptime_s"}
    late = Events(daemon)
    assert late.next()[0] == "active"
    front.do("press")
    front.do("release")
    assert late.next()[0] == "status"


def test_what_the_led_shows_is_in_the_status(panel):
    daemon, front = panel
    front.do("press")
    shows = lambda: daemon.request("/status").json()["panel"]["shows"]  # noqa: E731
    until(lambda: shows() == "factory-reset-armed", daemon)
    front.do("release")
    until(lambda: shows() == "healthy", daemon)
    document = daemon.request("/openapi.json").json()
    check(document, "/status", "GET", ask(daemon, "GET", "/status"))


def test_without_a_panel_the_status_says_so(daemon):
    assert daemon.request("/status").json()["panel"] is None


def test_a_held_button_warns_and_then_asks_for_a_factory_reset(panel):
    daemon, front = panel
    front.do("press")
    until(lambda: "a factory reset is asked for" in daemon.log_text(), daemon)
    until(lambda: "no factory reset: there is no keeper here" in daemon.log_text(), daemon)
    front.do("release")
    # Before the reset the LED warned: many changes, while a healthy one changes twice in three seconds.
    assert len(front.levels(40)) == 40
    assert "this is the status" not in daemon.log_text()
    assert daemon.request("/livez").status == 200


def test_a_header_that_is_not_there_costs_a_warning_and_nothing_else(native):
    daemon = native(config='[panel]\nkind = "gpio"\nled_gpio = 17\nbutton_gpio = 27\n')
    until(lambda: "no status LED and no button" in daemon.log_text(), daemon)
    assert daemon.request("/livez").status == 200
