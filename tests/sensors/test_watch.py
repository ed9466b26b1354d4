"""`inferctl watch` on a real terminal, of a daemon with a generator and a sensor that is unplugged."""

import json
import re
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import helpers
import pytest
from sensors.conftest import EMG_MODEL
from sensors.screen import Screen
from sensors.sensor import Sensor, encoder, source

# A colour of letters, as one of eight or of 256.
COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[1-7]|38;5;\d+)(?:;[0-9;]*)?m")


@pytest.fixture(scope="module")
def sensor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("port")
    sensor = Sensor(folder, encoder(folder))
    sensor.gesture = 3
    sensor.plug()
    yield sensor
    sensor.unplug()


@pytest.fixture(scope="module")
def device(tmp_path_factory, sensor):
    config = (
        f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "{sensor.path}"\n'
        '[[sources]]\nname = "demo"\nkind = "synthetic"\n'
    )
    device = helpers.Native(tmp_path_factory.mktemp("watch"), models=[EMG_MODEL], config=config)
    try:
        device.wait_ready()
        helpers.until(lambda: source(device, "arm")["predictions"] > 0, device)
        yield device
    finally:
        device.stop()


@pytest.fixture
def watch(inferctl):
    """Starts `inferctl watch` before a person: `watch(url, columns=80, lines=24)`."""
    screens = []

    def start(url, **options):
        screens.append(Screen([inferctl.program, "--url", url, "watch"], **options))
        return screens[-1]

    yield start
    for screen in screens:
        screen.close()


def label(device, name):
    return source(device, name)["latest"]["label"]


def test_what_a_sensor_is_recognised_as_is_seen_and_so_is_that_it_was_unplugged(watch, device, sensor):
    screen = watch(device.url)
    screen.wait_for("healthy", "live prediction: arm", label(device, "arm"), "frames/s here", "to be acted on: ", "emg-loudest")
    unplugged = time.monotonic()
    sensor.unplug()
    try:
        screen.wait_for("interrupted", f"was {label(device, 'arm')}")
        print(f"\nseen {time.monotonic() - unplugged:.2f} s after it was unplugged")
        screen.wait_for("unplugged")
    finally:
        sensor.plug()
    screen.wait(lambda seen: "frames/s here" in seen and "interrupted" not in seen, "predictions again")
    screen.press("q")
    assert screen.ended() == 0 and screen.put_back()


def test_keys_choose_a_source_pause_and_help_and_every_size_is_drawn(watch, device):
    screen = watch(device.url, columns=80, lines=24)
    screen.wait_for("live prediction: arm", "healthy")
    screen.press("\x1b[B")
    screen.wait_for("live prediction: demo", "frames/s here")
    screen.press("?")
    screen.wait_for("closes this")
    screen.press("?")
    screen.wait(lambda seen: "closes this" not in seen, "the help is closed")
    screen.press("p")
    screen.wait_for("paused, shown is")
    screen.press("p")
    screen.wait(lambda seen: "paused" not in seen and "frames/s here" in seen, "it goes on")
    for columns, lines in ((40, 24), (140, 40)):
        screen.resize(columns, lines)
        # The keys are at the bottom of the terminal as it is now.
        bottom = lambda seen, lines=lines: "q quit" in seen.split("\n")[lines - 1]
        screen.wait(lambda seen: bottom(seen) and "live prediction: demo" in seen, f"{columns}x{lines} is drawn")
    screen.wait(lambda seen: any("live prediction" in line and "alerts" in line for line in seen.splitlines()), "two columns")


def test_a_daemon_that_is_gone_is_said_to_be_and_heard_again_when_it_is_back(watch, native):
    device = native(models=[EMG_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\n')
    screen = watch(device.url)
    screen.wait_for("healthy", "frames/s here")
    device.process.kill()
    killed = time.monotonic()
    seen = screen.wait_for("no connection", "STALE", "trying again in")
    print(f"\nseen {time.monotonic() - killed:.2f} s after it was killed")
    assert "emg-loudest" in seen, "what was known stays"
    device.process.wait()
    port = device.port
    again = native(models=[EMG_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\n', port=port)
    assert again.url == device.url
    screen.wait(lambda seen: "healthy" in seen and "frames/s here" in seen and "STALE" not in seen, "it is heard again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_terminal_is_put_back_however_it_ends(watch, device, number):
    screen = watch(device.url)
    screen.wait_for("healthy")
    assert not screen.put_back(), "it is drawn on"
    screen.process.send_signal(number)
    assert screen.ended() == 0 and screen.put_back()


def test_without_a_terminal_there_is_a_snapshot_or_a_clear_error(inferctl, device, nobody):
    refused = inferctl("watch", url=device.url)
    assert refused.returncode == 1 and "--once" in refused.stderr and not refused.stdout
    shown = inferctl("watch", "--once", url=device.url)
    assert shown.returncode == 0, shown.stderr
    for part in ("healthy", "emg-loudest", "arm", "demo", "slots and updates"):
        assert part in shown.stdout, shown.stdout
    assert "\x1b" not in shown.stdout
    pages = json.loads(inferctl("--json", "watch", "--once", url=device.url).stdout)
    assert pages["status"]["ready"] is True and len(pages["sources"]["sources"]) == 2
    assert inferctl("watch", "--once", url=nobody).returncode == 3


def test_no_colour_is_written_where_none_is_wanted(watch, device):
    plain, coloured = watch(device.url, env={"NO_COLOR": "1"}), watch(device.url)
    for screen in (plain, coloured):
        screen.wait_for("healthy", "frames/s here")
    assert COLOUR.search(coloured.raw) and not COLOUR.search(plain.raw)


def test_a_device_can_write_nothing_but_letters_on_the_terminal(watch):
    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self):
            evil = "a\x1b]0;owned\x07\x9b2Jb\u202ec\r\nd"
            page = {
                "/status": {"ready": True, "version": evil, "uptime_s": 1, "models": [{"name": evil, "state": evil, "reason": evil}]},
                "/api/v1/sources": {"sources": [{"name": evil, "state": evil, "reason": evil, "kind": evil, "latest": {"label": evil}}]},
                "/api/v1/alerts": {"active": [{"severity": "critical", "sentence": evil}]},
            }.get(self.path, {"detail": evil})
            body = json.dumps(page).encode()
            self.send_response(200 if self.path != "/api/v1/slots" else 409)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.send_response(503)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"\x1b]0;owned\x07"[:7])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        screen = watch(f"http://127.0.0.1:{server.server_port}")
        screen.wait_for("a\ufffd]0;owned\ufffd\ufffd2Jb\ufffdc\ufffd\ufffdd", "critical: a")
        screen.press("q")
        assert screen.ended() == 0
        assert screen.screen.title == "" and b"\x1b]" not in screen.raw and "\x9b".encode() not in screen.raw
        assert "\u202e".encode() not in screen.raw
    finally:
        server.shutdown()
        server.server_close()
