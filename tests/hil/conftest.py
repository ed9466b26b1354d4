"""The target of `--lg-env` (default: QEMU), its state, and the console of every test kept under target/hil."""

import os
import re
import time
from pathlib import Path

import devkeys
import places
import pytest
import qemu
from appliance import device, images, variants
from helpers import request
from labgrid.exceptions import NoDriverFoundError

DEFAULT_TARGET = Path(__file__).parent / "targets/qemu.yaml"
EASY = {"probation_seconds": 5, "probation_max_p99_ratio": 1000}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Without a target file it is QEMU."""
    if not config.option.lg_env and not os.environ.get("LG_ENV"):
        config.option.lg_env = str(DEFAULT_TARGET)


def target_name(config):
    """The name of the target file."""
    return Path(config.option.lg_env or os.environ["LG_ENV"]).stem


class Unit:
    """The appliance on the target, as its user sees it."""

    def __init__(self, target, strategy):
        self.target, self.strategy = target, strategy

    @property
    def url(self):
        """Where its HTTP endpoint is."""
        return self.strategy.url

    def to(self, state):
        """Brings it into a state of the strategy."""
        self.strategy.transition(state)
        return self

    def driver(self, protocol, what):
        """A driver of the target; the test is skipped where it has none."""
        try:
            return self.target.get_driver(protocol)
        except NoDriverFoundError:
            pytest.skip(f"this target has no {what}")

    def shell(self, command, timeout=60):
        """Runs a command as root; it must succeed. Skips the test on a target without a root shell."""
        lines, _, status = self.driver("CommandProtocol", "root shell").run(command, timeout=timeout)
        assert status == 0, f"`{command}` ended with status {status}: {lines}"
        return "\n".join(lines).strip()

    def request(self, path, body=None, **options):
        """One HTTP request; see helpers.request."""
        return request(f"{self.url}{path}", body, **options)

    def page(self, path):
        """A page that is JSON."""
        answer = self.request(path)
        assert answer.status == 200, answer.body
        return answer.json()

    def first_number(self, window, tries=5):
        """The first number that one inference answers. Asked again when the answer is "not now"."""
        for _ in range(tries):
            answer = self.request("/infer", window)
            if answer.status != 503:
                break
            self.strategy.wait_ready(60)
        assert answer.status == 200, answer.body
        return answer.json()["latent"][0]

    def slots(self):
        """What it says of its slots."""
        return device.status(self.url)

    def post(self, path, body, key):
        """Changes the device, with the key for that."""
        return self.request(path, body, method="POST", headers={"X-API-Key": key}, timeout=120)


@pytest.fixture
def unit(target, strategy):
    """The appliance, booted."""
    return Unit(target, strategy).to("booted")


@pytest.fixture(scope="session")
def dev_keys():
    """This machine's developer keys, which an image made with `scripts/image --dev` here believes."""
    return devkeys.ensure(images.inferctl())


@pytest.fixture(scope="session")
def make_update(dev_keys, tmp_path_factory):
    """Makes bundles that answer something else: `make_update(unit, shift)` gives the file and the bundle's id."""
    folder = tmp_path_factory.mktemp("updates")
    workshop = device.Workshop(images.inferctl(), dev_keys, folder)

    def make(unit, shift, **options):
        # A device takes nothing older than what it has committed, in whichever run that was.
        version = 1 + max([0, *unit.slots()["floors"].values()])
        name = f"update-{version}-{time.monotonic_ns()}"
        model = variants.make(folder / name, f"1.{version}.0", shift=shift)
        return workshop.bundle(name, model, version, **{**EASY, **options})

    return make


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
