"""SPECIFICATION.md names only tests that exist."""

import re

import places


def test_every_promise_names_tests_that_exist():
    page = (places.ROOT / "tests/SPECIFICATION.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "**" not in line][1:]
    assert len(rows) > 30
    there = set()
    for file in (places.ROOT / "tests").rglob("*.py"):
        there |= set(re.findall(r"^\s*(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))
    for file in [*(places.ROOT / "app").rglob("*.rs"), *(places.ROOT / "tests").glob("*/tests/*.rs")]:
        there |= set(re.findall(r"^\s*(?:async )?fn (\w+)", file.read_text(), re.MULTILINE))
    for row in rows:
        named = re.findall(r"`([a-z]\w*)`", row.rsplit("|", 2)[1])
        assert named, f"no test: {row}"
        assert not (missing := set(named) - there), missing
