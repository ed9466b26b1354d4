#!/usr/bin/env python3
"""How long the page for people takes to load in a real browser, and how many bytes it is.

    tests/perf/dashboard.py [--loads N] [--slow FACTOR]

The source is the generator, so the device is recognising before anybody looks. Every load is timed by the browser itself, from the start of
the navigation: the last byte of the page, `DOMContentLoaded`, `load`, the first text painted, the page saying how healthy the device is, and the first
prediction of the stream, shown as live. *Cold* is a new browser context: nothing cached, no connection. *Warm* is the same tab loading
the page again. *Slow* is the browser's own throttling of its processor by that factor, which is how developers' tools play a telephone; the
network stays this machine's loopback. Printed are the median of the loads and, in brackets, the least and the greatest. Bytes are those of the
page as the browser counts them, head included, of everything else that was asked for until the prediction, and of the page as a client gets
it that takes gzip and one that does not.

Browser and device are on the same cores. `INFERD_BIN` names another daemon than the static release build of this machine, `INFERD_BROWSER`
another browser than the tests'. Its Python is the one of `scripts/test` (`python3 -B scripts/lib/venv.py tests tests/requirements.txt` prints it).
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts/lib")]

import chromium  # noqa: E402
import helpers  # noqa: E402
import places  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from sensors.sensor import source  # noqa: E402

CONFIG = '[[sources]]\nname = "arm"\nkind = "synthetic"\n'

# When the page first showed how the device is, and a prediction that is not greyed out.
WATCH = """window.bothShown = new Promise((both) => {
  const first = window.firstShown = {};
  new MutationObserver(() => {
    const health = document.querySelector("#health"), label = document.querySelector("#prediction .label");
    if (!first.health && health && !health.classList.contains("idle")) first.health = performance.now();
    if (!first.prediction && label && !label.classList.contains("soft") && label.textContent !== "–") first.prediction = performance.now();
    if (first.health && first.prediction) both();
  }).observe(document, { childList: true, subtree: true, characterData: true, attributes: true });
});"""

TIMES = """() => {
  const [page] = performance.getEntriesByType("navigation"), paint = performance.getEntriesByName("first-contentful-paint")[0];
  const rest = performance.getEntriesByType("resource").filter((entry) => entry.responseEnd && entry.responseEnd <= firstShown.prediction);
  return {
    times: { "last byte": page.responseEnd, "DOMContentLoaded": page.domContentLoadedEventEnd, "load": page.loadEventEnd,
      "first text": paint ? paint.startTime : NaN, "health": firstShown.health, "live prediction": firstShown.prediction },
    page: page.transferSize, unpacked: page.decodedBodySize,
    asked: rest.length, bytes: rest.reduce((sum, entry) => sum + entry.transferSize, 0),
  };
}"""


def visit(page, go, slow):
    """One load, timed to its first prediction."""
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slow})
    go()
    page.evaluate("bothShown")
    return page.evaluate(TIMES)


def loads(browser, device, slow, count):
    """So many cold loads, each followed by a warm one."""
    cold, warm = [], []
    for _ in range(count):
        context = browser.new_context()
        page = context.new_page()
        page.add_init_script(WATCH)
        cold.append(visit(page, lambda page=page: page.goto(device.url + "/"), slow))
        warm.append(visit(page, page.reload, slow))
        context.close()
    return {"cold": cold, "warm": warm}


def middle(values):
    """Median, least and greatest."""
    return f"{statistics.median(values):6.0f} ({min(values):.0f} to {max(values):.0f})"


def tell(name, found):
    """A table of one kind of load."""
    print(f"{name}, ms, {len(found)} loads; load of the machine {os.getloadavg()[0]:.1f}")
    for what in found[0]["times"]:
        print(f"   {what:17} {middle([one['times'][what] for one in found])}")
    print(f"   page {middle([one['page'] for one in found])} bytes, then {middle([one['bytes'] for one in found])} in {middle([one['asked'] for one in found])} answers")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=11, help="of each kind (11)")
    parser.add_argument("--slow", type=float, default=4, help="how many times slower the telephone's processor is (4)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        device = helpers.Native(pathlib.Path(name), models=places.SHIPPED_MODELS, config=CONFIG)
        try:
            device.wait_ready()
            helpers.until(lambda: source(device)["predictions"] > 0, device)
            html = {"Accept": "text/html"}
            plain, packed = (len(device.request("/", headers=head).body) for head in (html, {**html, "Accept-Encoding": "gzip"}))
            browser = driver.chromium.launch(executable_path=chromium.program(), args=["--no-sandbox"])
            print(f"Chromium {browser.version}; the page is {plain} bytes, {packed} with gzip")
            for slow in (1, options.slow):
                for kind, found in loads(browser, device, slow, options.loads).items():
                    tell(f"{kind}, processor {slow:g} times slower" if slow != 1 else kind, found)
            browser.close()
        finally:
            device.stop()


if __name__ == "__main__":
    main()
