"""The target of `--lg-env` (default: QEMU), its state, and the console of every test kept under target/hil."""

import os
import re
from pathlib import Path

import devkeys
import places
import pytest
from appliance import images

from hil.unit import Lacking, Unit
from hil.updates import Updates

DEFAULT_TARGET = Path(__file__).parent / "targets/qemu.yaml"


def pytest_addoption(parser):
    """What is written to the card of a rig before the tests."""
    group = parser.getgroup("inferd rig")
    group.addoption("--flash", action="store_true", help="write the image to the rig's card before the first test")
    group.addoption("--image", type=Path, metavar="FILE", help="with --flash: this one instead of that of the target file")
    group.addoption("--parts", type=Path, metavar="DIR", help="what a system of the board's image consists of: `parts` beside a builder's image")
    group.addoption("--system-cuts", type=int, default=2, metavar="N", help="power cuts of system updates (default: %(default)s)")
    group.addoption("--compiled", type=Path, metavar="DIR", help="a model with a network for the board's accelerator, by `inferctl compile`")
    group.addoption("--provision", type=Path, metavar="FILE", help="with --flash: the inferd.toml that is put on the card (rig.py keys)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Without a target file it is QEMU."""
    if not config.option.lg_env and not os.environ.get("LG_ENV"):
        config.option.lg_env = str(DEFAULT_TARGET)


def target_name(config):
    """The name of the target file."""
    return Path(config.option.lg_env or os.environ["LG_ENV"]).stem


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """A test that needs what the target lacks is skipped."""
    try:
        return (yield)
    except Lacking as lack:
        pytest.skip(str(lack))


@pytest.fixture(scope="session")
def dev_keys():
    """This machine's developer keys, which an image made with `scripts/image --dev` here believes."""
    return devkeys.ensure(images.inferctl())


@pytest.fixture(scope="session")
def appliance(target, strategy, dev_keys, pytestconfig):
    """The appliance, in whatever state; with --flash on a card that was just written."""
    flashed(pytestconfig, strategy)
    return Unit(target, strategy, dev_keys.api_key)


def flashed(config, strategy):
    """Has the card written if that was asked for."""
    # Without this folder on the command line there are no such options.
    flash, image, provision = (config.getoption(name, default=None) for name in ("flash", "image", "provision"))
    if flash:
        strategy.flash(image, provision)
    elif image or provision:
        raise pytest.UsageError("--image and --provision are for --flash")


@pytest.fixture
def unit(appliance):
    """The appliance, booted."""
    return appliance.to("booted")


@pytest.fixture(scope="session")
def updates(dev_keys, tmp_path_factory):
    """Makes bundles that the appliance takes."""
    return Updates(dev_keys, tmp_path_factory.mktemp("updates"))


@pytest.fixture(autouse=True)
def console(request, pytestconfig):
    """Keeps what the console showed during the test: target/hil/TARGET/TEST.log."""
    name = re.sub(r"[^\w.-]+", "-", request.node.name)
    strategy = request.getfixturevalue("strategy") if "strategy" in request.fixturenames else None
    begin = len(strategy.console_text()) if strategy else 0
    yield
    if strategy is not None:
        folder = places.target() / "hil" / target_name(pytestconfig)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.log").write_text(strategy.console_text()[begin:])


MEASURED = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def measured(pytestconfig):
    """What faults have cost: rows for the table at the end."""
    return pytestconfig.stash.setdefault(MEASURED, [])


def pytest_terminal_summary(terminalreporter, config):
    """The table of what faults have cost."""
    if rows := config.stash.get(MEASURED, []):
        terminalreporter.section("faults, and how long until answers came again for good")
        for name, back, answered, refused, none in rows:
            terminalreporter.write_line(f"{name:45} {back:6.1f} s  {answered:4} answered {refused:4} times 503 {none:4} no answer")
