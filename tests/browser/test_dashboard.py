"""The page for people."""

import json
import re
import shutil
import signal

import places
import pytest
from helpers import freeze, until
from playwright.sync_api import expect
from sensors.sensor import Sensor, encoder, source
from sensors.test_actuators import FLEX, NEUTRAL, Hand, configuration
from updates.rig import Office, edition

HEALTH = "#health"
# What a browser says by itself when a device does not answer, or refuses.
NO_ANSWER = ("Failed to load resource",)


# Whether somebody looks at the tab, as its scripts are told.
HIDE = """(hidden) => {
  Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def pictured(page, pytestconfig, name):
    """Leaves a picture where one was asked for."""
    folder = pytestconfig.getoption("--pictures")
    if folder:
        page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.mark.parametrize(("width", "colours"), [(1200, "light"), (1200, "dark"), (360, "dark")])
def test_the_page_says_what_is_served_and_fits_its_window(daemon, visit, pytestconfig, width, colours):
    page = visit(daemon, width=width, colours=colours)
    expect(page.locator(HEALTH)).to_have_text("healthy")
    card = page.get_by_role("article", name="imu-motion")
    expect(card).to_contain_text("ready")
    expect(card).to_contain_text(daemon.request("/status").json()["models"][0]["engine"]["version"])
    expect(page.locator("#device")).to_contain_text("memory")
    expect(page.locator("#updates")).to_contain_text("Updates are not configured")
    pictured(page, pytestconfig, f"{colours}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing lies beside the window"
    assert worst_contrast(page) >= 4.5, "WCAG 2.2 AA for text of this size"


def worst_contrast(page):
    """The lowest contrast of any text with what it stands on."""
    return page.evaluate("""() => {
      const parse = (c) => { const [r, g, b, a] = c.match(/[\\d.]+/g).map(Number); return { rgb: [r, g, b], a: a ?? 1 }; };
      const light = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = (node) => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor); if (c.a === 1) return c.rgb; } return [255, 255, 255]; };
      let worst = 21;
      const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      for (let text; (text = walk.nextNode());) {
        const at = text.parentElement;
        if (!text.data.trim() || !at.getClientRects().length || ["SCRIPT", "STYLE", "OPTION"].includes(at.tagName)) continue;
        const [a, b] = [light(parse(getComputedStyle(at).color).rgb), light(ground(at))];
        worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
      }
      return worst;
    }""")


def test_programs_get_the_json_of_the_root_and_browsers_the_page(daemon):
    assert daemon.request("/").json()["endpoints"]["dashboard"] == "/dashboard"
    page = daemon.request("/", headers={"Accept": "text/html"})
    assert page.headers["Content-Type"].startswith("text/html") and page.body == daemon.request("/dashboard").body
    assert len(page.body) <= 100 * 1024


def test_a_window_can_be_tried(daemon, visit):
    page = visit(daemon, expected=NO_ANSWER)
    page.get_by_role("button", name="walking").click()
    page.get_by_role("button", name="Send").click()
    first = page.locator("#try .row").first
    expect(first).to_contain_text("walk")
    page.get_by_label("request body").fill('{"x": [[1]]}')
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#try .bad").first).to_have_text("422")


def test_a_device_that_stops_answering_is_shown_so_and_found_again(native, visit):
    device = native()
    page = visit(device, expected=NO_ANSWER)
    expect(page.locator(HEALTH)).to_have_text("healthy")
    freeze(device.process.pid)
    expect(page.locator(HEALTH)).to_have_text("no connection")
    expect(page.locator("#fresh")).to_contain_text("old")
    device.process.send_signal(signal.SIGCONT)
    expect(page.locator(HEALTH)).to_have_text("healthy")
    expect(page.locator("#fresh")).to_have_text("live")


def test_a_paused_page_asks_nothing_until_it_goes_on(daemon, visit):
    page = visit(daemon, clock=True)
    expect(page.locator(HEALTH)).to_have_text("healthy")
    with page.expect_request("**/status"):
        page.clock.run_for(2500)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#fresh")).to_have_text("paused")
    page.wait_for_load_state("networkidle")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(20_000)
    # What was asked would be known by the time of an answer of the page's own.
    assert page.evaluate("fetch('/livez').then((a) => a.status)") == 200
    assert [url for url in asked if not url.endswith("/livez")] == []
    with page.expect_request("**/status"):
        page.get_by_role("button", name="Go on").click()


def test_a_device_that_lets_nobody_read_asks_for_a_key(native, visit):
    device = native(config='[security]\nopen_reads = false\nviewer_keys = ["look-but-touch-nothing"]\n')
    page = visit(device, expected=NO_ANSWER)
    expect(page.locator(HEALTH)).to_have_text("locked")
    for key, state in [("not-the-key-of-this", "locked"), ("look-but-touch-nothing", "healthy")]:
        page.get_by_role("button", name="Key…").click()
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use", exact=True).click()
        expect(page.locator(HEALTH)).to_have_text(state)
    page.reload()
    expect(page.locator(HEALTH)).to_have_text("healthy")
    assert "look-but-touch-nothing" not in page.content()


def test_everything_can_be_reached_and_used_by_keyboard_and_has_a_name(daemon, visit):
    page = visit(daemon)
    # A machine with other work has alerts.
    expect(page.locator(HEALTH)).to_have_text(re.compile("healthy|degraded"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText || document.activeElement.getAttribute('aria-label') || ''"))
    assert {"Skip to content", "Pause", "Key…", "walking", "sitting", "Send", "request body"} <= reached, reached
    nameless = page.evaluate("""[...document.querySelectorAll("button, a, input, select, textarea, svg[role=img], [role=meter]")]
      .filter((n) => !(n.innerText || n.getAttribute("aria-label") || n.labels?.length)).map((n) => n.outerHTML)""")
    assert nameless == []
    page.get_by_role("button", name="Key…").press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_an_update_is_followed_to_its_verdicts(native, inferctl, visit, tmp_path, pytestconfig):
    office = Office(inferctl, tmp_path)
    bundle = office.bundle(1, "--probation-seconds", 600, model=edition(office.at("model"), "1.0.1"))
    (folder := tmp_path / "updates").mkdir()
    shutil.copy(office.root, folder / "root.imr")
    device = native(arguments=["--updates-dir", folder], config="[updates]\nslot_size_mib = 16\n")
    page = visit(device)
    expect(page.locator("#updates")).to_contain_text("No bundle has come yet")
    assert device.request("/api/v1/bundle", bundle.read_bytes(), method="PUT").status == 200
    updates = page.locator("#updates")
    expect(updates).to_contain_text("Slot A serves: demo")
    expect(updates).to_contain_text("probation")
    newest = device.request("/api/v1/slots").json()["verdicts"][-1]["sentence"]
    expect(page.get_by_label("verdicts, newest first")).to_contain_text(newest)
    pictured(page, pytestconfig, "update")


def test_live_predictions_follow_a_sensor_that_is_unplugged_and_plugged_in_again(native, visit, tmp_path, pytestconfig):
    sensor = Sensor(tmp_path, encoder(tmp_path))
    try:
        sensor.gesture = 2
        sensor.plug()
        config = f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "{sensor.path}"\n'
        device = native(models=[places.ROOT / "tests/models/emg-loudest"], config=config)
        page = visit(device, expected=NO_ANSWER)
        label, state = page.locator("#prediction .label"), page.locator("#source-state")
        expect(label).to_have_text("Hand Close")
        expect(state).to_have_text("live")
        sensor.gesture = 6
        expect(label).to_have_text("Point")
        expect(page.locator("#signal")).to_have_attribute("data-state", "live")
        pictured(page, pytestconfig, "live")
        sensor.unplug()
        expect(state).to_have_text("unplugged")
        expect(page.locator("#signal-state")).to_contain_text("unplugged")
        expect(page.locator("#signal")).to_have_attribute("data-state", "old")
        expect(label).to_have_class(re.compile("soft"))
        sensor.gesture = 1
        sensor.plug()
        expect(state).to_have_text("live")
        expect(label).to_have_text("Hand Open")
        expect(page.locator("#signal")).to_have_attribute("data-state", "live")
    finally:
        sensor.unplug()


def test_what_moves_is_shown_and_stopped_and_started_by_keyboard(native, visit, tmp_path, pytestconfig):
    sensor, hand = Sensor(tmp_path, encoder(tmp_path)), Hand(tmp_path)
    try:
        sensor.gesture = 3
        sensor.plug()
        hand.plug()
        device = native(models=[places.ROOT / "tests/models/emg-loudest"], config=configuration(sensor, hand, tmp_path))
        page = visit(device, expected=NO_ANSWER)
        arm, stop, start = page.get_by_role("article", name="hand"), page.get_by_role("button", name="stop hand"), page.get_by_role("button", name="start hand")
        expect(arm).to_contain_text("goes to Wrist Flex")
        expect(page.locator("#command")).to_contain_text("Wrist Flex · following")
        expect(start).to_be_disabled()
        pictured(page, pytestconfig, "actuators")
        assert worst_contrast(page) >= 4.5
        stop.press("Enter")
        expect(page.locator("#actuators-say")).to_contain_text("stopped, until somebody starts it")
        expect(arm).to_contain_text("stopped")
        hand.until(NEUTRAL, device)
        start.press("Enter")
        hand.until(FLEX, device)
        expect(arm).to_contain_text("goes to Wrist Flex")
        sensor.unplug()
        expect(page.locator("#command")).to_contain_text("Rest · released, source")
        expect(arm).to_contain_text("source arm: ")
    finally:
        sensor.unplug()
        hand.unplug()


def test_the_signal_is_drawn_while_somebody_looks_and_said_in_words(native, visit, pytestconfig):
    device = native(
        models=[places.ROOT / "app/inferd/models/emg-gestures"], config='[[sources]]\nname = "arm"\nkind = "synthetic"\ngesture = "Point"\n'
    )
    page = visit(device, width=360, colours="dark", expected=("willReadFrequently",))

    def readers():
        return device.request("/infer/stream/stats").json()["sample_clients"]

    def hide(hidden):
        page.evaluate(HIDE, hidden)

    canvas, said = page.locator("#signal"), page.locator("#signal-state")
    expect(canvas).to_have_attribute("data-state", "live")
    expect(canvas).to_have_attribute("aria-label", re.compile("Signal of arm: 16 channels, the strongest is [0-9]+"))
    assert page.evaluate("document.querySelector('main section').id") == "s-live", "above the models"
    # Something moves on every channel.
    page.wait_for_function("""() => {
      const c = document.getElementById("signal"), lane = c.height / 16;
      return [...Array(16).keys()].every((n) => {
        const { data } = c.getContext("2d").getImageData(c.width * 0.9, lane * n, 8, lane);
        return data.filter((v, i) => i % 4 === 3 && v > 0).length > 8;
      });
    }""")
    pictured(page, pytestconfig, "signal-dark-360")
    page.set_viewport_size({"width": 1200, "height": 900})
    page.emulate_media(color_scheme="light")
    page.get_by_text("As numbers").click()
    expect(page.locator("#signal-table tbody tr")).to_have_count(16)
    pictured(page, pytestconfig, "signal-light-1200")
    page.set_viewport_size({"width": 360, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing lies beside the window"

    assert readers() == 1
    hide(True)
    until(lambda: readers() == 0, "nobody who looks at a hidden tab")
    hide(False)
    until(lambda: readers() == 1, "somebody who looks again")
    expect(canvas).to_have_attribute("data-state", "live")
    page.get_by_role("button", name="Stop").click()
    until(lambda: readers() == 0, "nobody who looks at what is stopped")
    expect(said).to_contain_text("is old")
    expect(canvas).to_have_attribute("data-state", "old")


def test_a_tab_that_slept_for_an_hour_shows_what_is_so_now_and_held_nothing_meanwhile(native, visit, tmp_path):
    sensor = Sensor(tmp_path, encoder(tmp_path))
    try:
        sensor.gesture = 2
        sensor.plug()
        config = f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "{sensor.path}"\n'
        device = native(models=[places.ROOT / "tests/models/emg-loudest"], config=config)
        page = visit(device, clock=True, expected=(*NO_ANSWER, "willReadFrequently"))
        label, state = page.locator("#prediction .label"), page.locator("#source-state")
        expect(label).to_have_text("Hand Close")

        def clients():
            return device.request("/infer/stream/stats").json()["clients"]

        def hide(hidden):
            page.evaluate(HIDE, hidden)

        assert clients() == 1
        hide(True)
        # As browsers do with a tab that nobody looks at: no script runs in it, and nothing is read.
        browser = page.context.new_cdp_session(page)
        browser.send("Page.setWebLifecycleState", {"state": "frozen"})
        sensor.gesture = 6
        until(lambda: source(device)["latest"]["label"] == "Point", device)
        browser.send("Page.setWebLifecycleState", {"state": "active"})
        page.clock.fast_forward("01:00:00")
        until(lambda: clients() == 0, "a stream that nobody looks at is given back")
        hide(False)
        expect(state).to_have_text("live")
        expect(label).to_have_text("Point")
        assert clients() == 1
        sensor.gesture = 1
        expect(label).to_have_text("Hand Open")
    finally:
        sensor.unplug()


def test_a_stream_is_stopped_for_good_and_started_again(native, visit):
    device = native(
        models=[places.ROOT / "app/inferd/models/emg-gestures"], config='[[sources]]\nname = "arm"\nkind = "synthetic"\ngesture = "Point"\n'
    )
    page = visit(device, expected=("Failed to load resource", "net::"))

    def clients():
        return device.request("/infer/stream/stats").json()["clients"]

    expect(page.locator("#prediction .label")).to_have_text("Point")
    assert clients() == 1
    page.get_by_role("button", name="Stop").click()
    until(lambda: clients() == 0, "the device to know that nobody listens")
    expect(page.locator("#source-reason")).to_contain_text("stopped")
    page.get_by_role("button", name="Start").click()
    until(lambda: clients() == 1, "the device to have a listener again")
    device.process.send_signal(signal.SIGTERM)
    # The end of the device is the end of the page's stream too, which is said.
    expect(page.locator(HEALTH)).to_have_text("no connection")


def test_engines_are_compared_by_the_newest_benchmark(native, visit, pytestconfig, tmp_path):
    device = native(config=f'[updates]\ndata_dir = "{tmp_path}/data"\n')
    page = visit(device)
    expect(page.locator("#engines")).to_contain_text("Nothing was measured yet")
    wish = {"rungs": ["cpu"], "iterations": 20, "warm_up": 5, "most_repeats": 3, "in_flight": [], "soak_s": 1}
    assert device.request("/api/v1/benchmarks", wish).status == 202
    row = page.locator("#engines tbody tr").filter(has_text="chosen")
    expect(row).to_have_count(1, timeout=120_000)
    record = device.request("/api/v1/benchmarks/" + device.request("/api/v1/benchmarks").json()["benchmarks"][0]["id"]).json()["record"]
    expect(row).to_contain_text("cpu")
    expect(row).to_contain_text(f"{record['rungs'][0]['measured']['cosine']:.5f}")
    expect(page.locator("#engines")).to_contain_text(record["decision"]["because"])
    pictured(page, pytestconfig, "engines")


def test_what_a_device_says_of_itself_is_never_taken_for_markup(native, visit, tmp_path):
    shutil.copytree(places.DEFAULT_MODEL, folder := tmp_path / "model")
    manifest = (folder / "manifest.toml").read_text()
    attack = '<img src=x onerror="document.title=1"><b>bold</b>'
    (folder / "manifest.toml").write_text(re.sub(r"^summary = .*$", "summary = " + json.dumps(attack), manifest, flags=re.M))
    page = visit(native(models=[folder]))
    expect(page.get_by_role("article", name="imu-motion")).to_contain_text(attack)
    assert page.locator("#models b").count() == 0
