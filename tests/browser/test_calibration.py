"""The page leads a person through a calibration."""

import pytest
from browser.test_dashboard import pictured, worst_contrast
from helpers import until
from playwright.sync_api import expect
from sensors.person import LABELS, RATE, Person, Sleeve
from sensors.test_calibration import SESSIONS, installed, session_of, start


@pytest.fixture
def arm(tmp_path):
    device = start(tmp_path)
    yield device
    device.stop()


def test_the_page_leads_through_a_calibration_by_keyboard_also_one_that_was_begun_elsewhere(arm, visit, pytestconfig):
    with Sleeve(arm, "arm", Person(21)) as sleeve:
        page = visit(arm)
        panel = page.get_by_role("region", name="Calibration for a person")
        expect(panel).to_contain_text("The model serves as it was shipped")
        at = session_of(arm, [LABELS[1]])
        for label, index in ((LABELS[0], 0), (LABELS[1], 1)):
            sleeve.label = label
            sent = sleeve.sequence
            until(lambda sent=sent: sleeve.sequence > sent + RATE // 5, arm)
            record = page.locator(f"#calibration-record-{index}")
            expect(record).to_be_enabled()
            record.press("Enter")
            expect(panel.get_by_role("row", name=label)).to_contain_text("recorded")
        expect(panel.get_by_role("status")).to_contain_text("All gestures are recorded")
        page.reload()
        panel.get_by_role("button", name="Fit and check").press("Enter")
        expect(panel.get_by_role("table").last).to_contain_text("right")
    pictured(page, pytestconfig, "calibration")
    assert worst_contrast(page) >= 4.5
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing lies beside the window"
    install = panel.get_by_role("button", name="Install", exact=True)
    expect(install).to_be_enabled()
    install.press("Enter")
    expect(panel).to_contain_text("serving")
    assert [kept["state"] for kept in installed(arm)] == ["serving"] and arm.request(at).status == 404
    panel.get_by_role("button", name="Undo").press("Enter")
    expect(panel).to_contain_text("The model serves as it was shipped")
    assert installed(arm) == [] and arm.request(SESSIONS).json()["session"] is None
