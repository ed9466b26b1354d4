"""A browser, and pages that may do nothing but talk with their device."""

from pathlib import Path

import chromium as debian_chromium
import pytest
from playwright.sync_api import expect, sync_playwright

expect.set_options(timeout=30_000)


def pytest_addoption(parser):
    """Where pictures of the pages go."""
    parser.addoption("--pictures", type=Path, help="a folder for pictures of the page for people")


@pytest.fixture(scope="module")
def browser():
    """The browser. The sandbox would need rights that a container does not have."""
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=debian_chromium.program(), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Opens a device's page: `visit(device)`; what else than the device it asked, and what went wrong in it, fails the test."""
    wrong, contexts = [], []

    def open_page(device, path="/", *, width=1200, height=900, colours="light", expected=(), clock=False):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("console", lambda line: complain(line, expected))
        page.on("request", lambda asked: asked.url.startswith((device.url, "data:")) or wrong.append(f"asked {asked.url}"))
        if clock:
            page.clock.install()
        page.goto(device.url + path)
        return page

    def complain(line, expected):
        if line.type in ("error", "warning") and not any(words in line.text for words in expected):
            wrong.append(f"console: {line.text}")

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
