"""What the README prints for curl, run as it is printed: only the port is another one."""

import re
import shlex
import subprocess

import pytest
from helpers import until
from places import ROOT, SHIPPED_MODELS
from sensors.sensor import source
from sensors.test_actuators import Hand

README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:9000"


def printed():
    """Every curl of this machine's address, in a block of commands or in a sentence."""
    found = re.findall(rf"^(curl .*{ADDRESS}.*)$|`(curl [^`]*{ADDRESS}[^`]*)`", README, re.MULTILINE)
    return [line or span for line, span in found]


@pytest.fixture
def hand(tmp_path):
    hand = Hand(tmp_path)
    hand.plug()
    yield hand
    hand.unplug()


@pytest.fixture
def device(native, hand):
    """What the README has started by then: its sources, as it prints them, and an actuator of the name it has there."""
    [sources] = re.findall(r"INFERD_SOURCES='([^']+)' scripts/run --native", README)
    [name] = re.findall(r"/api/v1/actuators/(\w+)/stop", README)
    config = f'[[actuators]]\nname = "{name}"\nsource = "arm"\npath = "{hand.path}"\nneutral = [1500]\n'
    return native(models=SHIPPED_MODELS, config=config, env={"INFERD_SOURCES": sources})


def head_and_first_line(command):
    """The status curl shows, and the first line of the body that says something; a stream is left then."""
    with subprocess.Popen([*command, "--silent", "--show-error", "--include", "--max-time", "60"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as curl:
        head = curl.stdout.readline()
        while curl.stdout.readline().strip():
            pass
        first = next(filter(str.strip, curl.stdout), "")
        curl.terminate()
    return head.split(" ")[1:2], first


def test_every_curl_of_the_readme_works_as_it_is_printed(device):
    commands = printed()
    assert len(commands) == sum(line.count(f"{ADDRESS}/") for line in README.splitlines() if "curl " in line) >= 9
    until(lambda: source(device, "arm")["predictions"] > 0, device)
    until(lambda: device.request("/commit-ready").status == 200, device)
    for command in commands:
        [program, *arguments] = shlex.split(command.replace(ADDRESS, f"127.0.0.1:{device.port}"), comments=True)

        def works(command=(program, *arguments)):
            status, first = head_and_first_line(command)
            return status == ["200"] and first and ("-N" in command) == first.startswith("data: ")

        # A source is not live for a moment when the machine had no time for it.
        until(works, command)
