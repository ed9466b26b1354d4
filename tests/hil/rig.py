"""A rig by hand: its switch, its console, its card, and what it still lacks.

    PYTHON tests/hil/rig.py check FILE              what keeps the tests from it
    PYTHON tests/hil/rig.py power FILE off          or on, or cycle
    PYTHON tests/hil/rig.py console FILE            what the board says, until Ctrl-C
    PYTHON tests/hil/rig.py flash FILE [IMAGE]      writes the card and leaves the board off
    PYTHON tests/hil/rig.py keys                    the developer's keys, and an inferd.toml with which an image takes what they sign

FILE is a target file. By the same drivers as the tests: what works here works there. (`labgrid-client` asks a coordinator for such
things, and there is none.)
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts/lib")]

import devkeys  # noqa: E402
import pexpect  # noqa: E402
from appliance import images  # noqa: E402
from labgrid import Environment  # noqa: E402
from labgrid.exceptions import NoResourceFoundError  # noqa: E402
from labgrid.resource import RawSerialPort  # noqa: E402
from labgrid.resource.common import ManagedResource  # noqa: E402
from labgrid.strategy import StrategyError  # noqa: E402

# How long what hangs on USB is waited for.
PLUGGED_IN_S = 3.0
CONFIGURATION = """\
# For a rig: the tests sign with this machine's developer keys, and change the device with their API key. Never for a LAN.
[security]
api_key = "{api_key}"
[updates]
allow_dev = true
"""


@contextlib.contextmanager
def opened(file):
    """The target of a target file."""
    env = Environment(str(file))
    try:
        yield env.get_target()
    finally:
        env.cleanup()


def power(file, what):
    """Switches the board's power."""
    with opened(file) as target:
        switch = target.get_strategy().power
        target.activate(switch)
        getattr(switch, what)()
        print(f"power: {what}")


def console(file, seconds=None):
    """Shows what the board says."""
    with opened(file) as target:
        port = target.get_strategy().console
        target.activate(port)
        print("listening; Ctrl-C ends it", file=sys.stderr, flush=True)
        end = time.monotonic() + seconds if seconds is not None else None
        while end is None or time.monotonic() < end:
            with contextlib.suppress(pexpect.TIMEOUT):
                sys.stdout.buffer.write(port.read(size=1, timeout=0.2, max_size=1 << 16))
                sys.stdout.buffer.flush()


def flash(file, image=None, provision=None):
    """Writes the card."""
    with opened(file) as target:
        target.get_strategy().flash(image, provision)
        print("the card is written and back at the board, which is off")


def keys():
    """Makes the developer's keys where there are none, and a configuration; says where they are."""
    there = devkeys.ensure(images.inferctl())
    file = there.folder / "inferd.toml"
    file.touch(mode=0o600)
    file.write_text(CONFIGURATION.format(api_key=there.api_key))
    print(f"root document: {there.root}\nconfiguration: {file}")


def check(file):
    """What keeps the tests from this rig, one line for each; the number of them."""
    missing = list(lacking(file))
    print("\n".join(missing) or "nothing is missing that can be seen from here")
    return len(missing)


def lacking(file):
    """See `check`."""
    for number, line in enumerate(Path(file).read_text().splitlines(), 1):
        if "FILL IN" in line:
            yield f"{file}:{number}: to be filled in (take the words FILL IN away then): {line.strip()}"
    try:
        with opened(file) as target:
            yield from unplugged(target)
            yield from without_programs(target)
            image = target.get_strategy().image
            if image and not Path(target.env.config.get_image_path(image)).is_file():
                yield f"there is no image {target.env.config.get_image_path(image)}"
    except ModuleNotFoundError as error:
        yield f"a driver needs the Python package {error.name}: {shlex.quote(sys.executable)} -m pip install {package(error.name)}"


def package(module):
    """What pip calls the package of a module that a driver of labgrid's imports: in the version that labgrid names."""
    top = module.partition(".")[0]
    for requirement in metadata.requires("labgrid"):
        if re.match(rf"(python-)?{top}\b", requirement, re.IGNORECASE) and (extra := re.search(r'extra == "(\w+)"', requirement)):
            return f"'labgrid[{extra[1]}]=={metadata.version('labgrid')}'"
    return top


def unplugged(target):
    """What should hang on this machine and does not, or cannot be opened."""
    for resource in target.resources:
        if isinstance(resource, RawSerialPort) and not os.access(resource.port, os.R_OK | os.W_OK):
            there = "cannot be opened (group `rig`?)" if os.path.exists(resource.port) else "is not there"
            yield f"the serial port {resource.port} {there}; there are: {', '.join(serial_ports()) or 'none'}"
        elif isinstance(resource, ManagedResource):
            try:
                target.await_resources([resource], timeout=PLUGGED_IN_S)
            except NoResourceFoundError:
                yield f"no {type(resource).__name__} with {getattr(resource, 'match', '')} is plugged in"


def serial_ports():
    """Serial ports of USB adapters, by the names that stay."""
    return sorted(str(path) for path in Path("/dev/serial/by-id").glob("*"))


def without_programs(target):
    """Programs that drivers call and that this machine lacks."""
    for driver in target.drivers:
        commands = [getattr(driver, name, None) for name in ("cmd_on", "cmd_off", "cmd_cycle")]
        programs = {shlex.split(command)[0] for command in commands if command} | {getattr(driver, "tool", None)}
        for program in sorted(programs - {None}):
            if not shutil.which(program):
                yield f"{type(driver).__name__} calls {program}, which is not on the PATH (README.md says where it is had)"


def arguments(words):
    """The command line."""
    parser = argparse.ArgumentParser(description="A rig by hand; see the head of this file.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "power", "console", "flash"):
        commands.add_parser(name).add_argument("file", type=Path, help="a target file")
    commands.choices["power"].add_argument("what", choices=("off", "on", "cycle"))
    commands.choices["console"].add_argument("--for", dest="seconds", type=float, help="so many seconds")
    commands.choices["flash"].add_argument("image", type=Path, nargs="?", help="instead of that of the target file")
    commands.choices["flash"].add_argument("--provision", type=Path, help="the inferd.toml that is put on the card")
    commands.add_parser("keys")
    return parser.parse_args(words)


def main(words=None):
    """Does what was asked; the exit status."""
    options = vars(arguments(words))
    what = {"check": check, "power": power, "console": console, "flash": flash, "keys": keys}[options.pop("command")]
    try:
        return int(bool(what(**options)))
    except (StrategyError, NoResourceFoundError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"error: {error}; `rig.py check` says what to install", file=sys.stderr)
    return 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
