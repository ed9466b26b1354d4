"""scripts/flash: from a checkout to a card."""

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import tomllib

import places
import roots
from flash.conftest import MIB, beginning, gpt_image
from helpers import until


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


def test_what_json_prints_is_for_a_program(image, card):
    done = script("--list", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), (dict, list)) and "Building inferctl" in done.stderr
    image.with_name("x.img.json").write_text(json.dumps({"board": "rpi4", "dev": True}))
    done = script("--board", "rpi4", "--image", image, card, "--file", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written_bytes"] and "a dev image" in done.stderr and "==> " in done.stderr


def test_ctrl_c_is_answered_with_what_became_of_the_card_and_its_exit_code(image, card):
    image.with_name("x.img.json").write_text(json.dumps({"board": "rpi4"}))
    # Long enough to be still written then.
    for file in (image, card):
        os.truncate(file, 2 << 30)
    before = card.stat().st_mtime_ns
    command = [places.ROOT / "scripts/flash", "--board", "rpi4", "--image", image, card, "--file", "--yes"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipe) as running:
        # inferctl is built before, if need be.
        until(lambda: card.stat().st_mtime_ns != before, "it writes", timeout=600)
        # As a terminal does: everyone in the foreground is told.
        os.killpg(running.pid, signal.SIGINT)
        said = running.communicate()[0]
    assert running.returncode == 4 and "incomplete: flash it again" in said and "Traceback" not in said, said


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


def test_an_image_that_believes_another_root_is_not_taken_for_the_one_asked_for(office, tmp_path, monkeypatch):
    # The folder of these tests has its name.
    spec = importlib.util.spec_from_file_location("scripts_flash", places.ROOT / "scripts/lib/flash.py")
    flash = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flash)
    file, asked = tmp_path / "x.img", []
    monkeypatch.setattr(flash.image, "default_output", lambda *_, **__: file)
    monkeypatch.setattr(flash.release, "bmap", lambda _: "a map")

    def make(command, **_):
        asked.append(command)
        file.with_name("x.img.json").write_text(json.dumps({"root_sha256": hashlib.sha256(office.root.read_bytes()).hexdigest()}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(flash.subprocess, "run", make)
    file.touch()
    file.with_name("x.img.json").write_text(json.dumps({"root_sha256": None}))
    options = argparse.Namespace(board="rpi4", image=None, new=False, dev=False, minimal=False, root=office.root)
    for _ in range(2):
        assert flash.found(options) == file
    assert [command[-4:] for command in asked] == [["--board", "rpi4", "--root", office.root]], "made once: the second time it is there"


def test_a_root_document_that_is_none_is_refused_before_anything_is_made(office, tmp_path):
    refused = script("--board", "rpi4", "--root", office.at("root.pub"), tmp_path / "card", "--file")
    assert refused.returncode == 1 and "is no root document" in refused.stderr


def test_an_image_that_believes_nobody_is_told(image, card):
    image.with_name("x.img.json").write_text(json.dumps({"board": "rpi4", "root_sha256": None}))
    done = script("--board", "rpi4", "--image", image, card, "--file", "--yes")
    assert done.returncode == 0 and roots.NONE in done.stdout


def test_a_board_that_no_image_is_made_for_here_says_where_one_comes_from(tmp_path):
    done = script("--board", "jetson-orin-nano", tmp_path / "card", "--file")
    assert done.returncode != 0 and "yocto/" in done.stdout + done.stderr
    assert not os.path.exists(tmp_path / "card")
    assert script().returncode != 0, "no board"
