"""A sensor on the booted appliance: a microcontroller behind a serial adapter on USB, and who watches it meanwhile."""

import json
import re
import threading
import time
import tomllib
import urllib.request

import chromium
import numpy
import places
import pytest
from appliance.device import put_on_boot_partition
from browser.conftest import browser, visit  # noqa: F401
from helpers import until
from playwright.sync_api import expect
from safetensors.numpy import load_file
from sensors.sensor import Sensor, encoder, source
from steps import Failure

EMG_MODEL = places.SHIPPED_MODELS[1]
LABELS = tomllib.loads((EMG_MODEL / "manifest.toml").read_text())["emg"]["labels"]
# Microvolts that a count of the sensor stands for.
SCALE = 0.05
CONFIG = f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "/dev/ttyUSB0"\nscale = {SCALE}\n'


def muscles(label):
    """A tenth of a second of somebody who makes this gesture, as counts."""
    window = load_file(EMG_MODEL / "golden.safetensors")[f"{LABELS.index(label)}/in/emg"]
    return numpy.round(window[0] / SCALE).astype(numpy.int16)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """Somebody's arm, who closes the hand."""
    folder = tmp_path_factory.mktemp("arm")
    sensor = Sensor(folder, encoder(folder))
    sensor.signal = muscles("Hand Close")
    yield sensor.plug()
    sensor.unplug()


@pytest.fixture(scope="module", autouse=True)
def a_browser():
    """Where no browser can be had nothing of this is tested, and that is said."""
    try:
        chromium.program()
    except Failure as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def wearing(make_image, boot, arm, tmp_path_factory):
    """The image as it ships, configured for a sensor, with that one plugged in."""
    file, _ = make_image("live.img", models=places.SHIPPED_MODELS)
    put_on_boot_partition(file, "inferd.toml", CONFIG, tmp_path_factory.mktemp("fat"))
    with boot(file, sensors={"arm": arm.path.resolve()}) as machine:
        until(lambda: source(machine)["predictions"] > 0, "a prediction", 120)
        yield machine


# When the page no longer says that the source is live.
NOTE_THE_END = """() => {
  const state = document.querySelector("#source-state");
  new MutationObserver(() => { if (!window.ended && state.textContent !== "live") window.ended = Date.now() / 1000; })
    .observe(state, { childList: true, subtree: true, characterData: true });
}"""


class Listener(threading.Thread):
    """A client of the stream of events: the last event, and when it came."""

    def __init__(self, url):
        super().__init__(daemon=True)
        asked = urllib.request.Request(f"{url}/infer/stream", data=b'{"fps": 50}', headers={"Content-Type": "application/json"})
        self.answer = urllib.request.urlopen(asked, timeout=60)
        self.last, self.at = {}, 0.0
        self.start()

    def run(self):
        for line in self.answer:
            if line.startswith(b"data: "):
                self.last, self.at = json.loads(line[6:]), time.time()

    def says(self, label):
        return self.last.get("label") == label


def test_who_watches_a_sensor_on_usb_sees_the_gesture_its_loss_and_its_return(wearing, arm, visit, record_property):  # noqa: F811
    page = visit(wearing, expected=("Failed to load resource",))
    label, state = page.locator("#prediction .label"), page.locator("#source-state")
    program = Listener(wearing.url)
    expect(label).to_have_text("Hand Close")
    expect(state).to_have_text("live")
    until(lambda: program.says("Hand Close"), "the program hears of the hand")

    arm.signal = muscles("Point")
    expect(label).to_have_text("Point")
    until(lambda: program.says("Point"), "the program hears of the finger")

    page.evaluate(NOTE_THE_END)
    pulled = time.time()
    wearing.unplug("arm")
    until(lambda: "error" in program.last, "the program hears that the sensor is gone")
    expect(state).to_have_text("unplugged")
    record_property("unplugged to event, s", round(program.at - pulled, 2))
    record_property("unplugged to page, s", round(page.evaluate("ended") - pulled, 2))
    expect(label).to_have_class(re.compile("soft"))
    assert source(wearing)["state"] == "unplugged"

    arm.signal = muscles("Wrist Flex")
    wearing.plug("arm")
    expect(state).to_have_text("live")
    expect(label).to_have_text("Wrist Flex")
    until(lambda: program.says("Wrist Flex"), "the program hears of the wrist on the same stream")
