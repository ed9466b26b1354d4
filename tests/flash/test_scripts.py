"""scripts/flash: from a checkout to a card."""

import hashlib
import json
import os
import subprocess
import tomllib

import places
from flash.conftest import MIB, beginning, gpt_image


def script(*arguments):
    """Runs it."""
    command = [places.ROOT / "scripts/flash", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_the_image_that_is_named_is_written_where_it_is_the_boards(image, card):
    image.with_name("x.img.json").write_text(json.dumps({"board": "rpi4"}))
    before = card.read_bytes()
    wrong = script("--board", "rpi5-hailo8", "--image", image, card, "--file", "--yes")
    assert wrong.returncode == 1 and "rpi4, not for rpi5-hailo8" in wrong.stderr and card.read_bytes() == before
    done = script("--board", "rpi4", "--image", image, card, "--file", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert beginning(card, 3 * MIB) == beginning(image, 3 * MIB)


def test_an_api_key_is_on_no_command_line_but_the_one_it_was_typed_on(card, tmp_path, tools):
    image, at = gpt_image(tmp_path / "x.img", tools)
    image.with_name("x.img.json").write_text(json.dumps({"board": "rpi4"}))
    key = "0123456789abcdef"
    done = script("--board", "rpi4", "--image", image, card, "--file", "--yes", f"--api-key={key}")
    assert done.returncode == 0, done.stdout + done.stderr
    # The command is shown as it was run.
    run = next(line for line in done.stdout.splitlines() if "inferctl flash " in line)
    file = run.partition("--api-key-file ")[2]
    assert file and key not in done.stdout + done.stderr and not os.path.exists(file)
    read = [tools("mtype"), "-i", f"{card}@@{at}", "::inferd.toml"]
    on_card = tomllib.loads(subprocess.run(read, check=True, capture_output=True, text=True).stdout)
    assert on_card["security"] == {"api_key": f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"}


def test_a_board_that_no_image_is_made_for_here_says_where_one_comes_from(tmp_path):
    done = script("--board", "jetson-orin-nano", tmp_path / "card", "--file")
    assert done.returncode != 0 and "yocto/" in done.stdout + done.stderr
    assert not os.path.exists(tmp_path / "card")
    assert script().returncode != 0, "no board"
