"""The rig itself, without hardware: target files that labgrid takes, and a strategy that switches in the right order."""

import json
import os
import pty
import random
import subprocess
import sys
import threading
import tomllib
import tty
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import attr
import board as boards
import devkeys
import image
import places
import pytest
import yaml
from labgrid import Environment
from labgrid.driver import Driver, USBSDMuxDriver, USBStorageDriver
from labgrid.driver.fake import FakeConsoleDriver
from labgrid.exceptions import NoSupplierFoundError
from labgrid.factory import target_factory
from labgrid.protocol import PowerProtocol
from labgrid.remote.exporter import exports
from labgrid.strategy import StrategyError

from hil import conftest, faults, rig, soak, storage, systems, test_accelerator
from hil.unit import Lacking, Load

FOLDER = Path(__file__).parent
# Those of the checkout: a lab's own are called rig-*.yaml, and git passes them over.
TARGETS = sorted(file for file in (FOLDER / "targets").glob("*.yaml") if not file.stem.startswith("rig-"))
SETTLED = {"trial": None, "install": None, "slots": [], "verdicts": []}


@target_factory.reg_driver
@attr.s(eq=False)
class NotingPowerDriver(Driver, PowerProtocol):
    """A switch that notes what was asked of it; the appliance answers only while it is on."""

    def __attrs_post_init__(self):
        super().__attrs_post_init__()
        self.done, self.powered = [], False

    def on(self):
        self.done.append("on")
        self.powered = True

    def off(self):
        self.done.append("off")
        self.powered = False

    def cycle(self):
        self.off()
        self.on()


@target_factory.reg_driver
@attr.s(eq=False)
class NotingMuxDriver(USBSDMuxDriver):
    """A multiplexer that notes where it stands."""

    bindings = {"power": NotingPowerDriver}

    def set_mode(self, mode):
        self.power.done.append(mode)


@target_factory.reg_driver
@attr.s(eq=False)
class NotingStorageDriver(USBStorageDriver):
    """A card that notes what is written."""

    bindings = {"power": NotingPowerDriver}

    def on_activate(self):
        pass

    def on_deactivate(self):
        pass

    def write_image(self, filename, provision=None):
        self.power.done.append(Path(filename).name if provision is None else (Path(filename).name, Path(provision).name))


@pytest.fixture
def simulated(tmp_path):
    """A target of nothing but notes, and a server that plays the appliance while it has power."""
    switch = {}

    class Appliance(BaseHTTPRequestHandler):
        def do_GET(self):
            if not switch["power"].powered:
                self.close_connection = True
                return
            body = json.dumps(SETTLED if self.path == "/api/v1/slots" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Appliance)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = {
        "targets": {
            "main": {
                "resources": {"ApplianceAddress": {"host": "127.0.0.1", "port": server.server_port, "board": "rpi4"}},
                "drivers": {
                    "NotingPowerDriver": {}, FakeConsoleDriver.__name__: {}, "ApplianceDriver": {}, "NotingMuxDriver": {},
                    "NotingStorageDriver": {}, "InferdStrategy": {"image": "card", "boot_timeout": 20.0},
                },
            }
        },
        "images": {"card": str(tmp_path / "card.img")},
    }
    (tmp_path / "card.img").write_bytes(b"an image")
    file = tmp_path / "simulated.yaml"
    file.write_text(yaml.safe_dump(page, sort_keys=False))
    target = Environment(str(file)).get_target()
    switch["power"] = target.get_driver(NotingPowerDriver)
    yield target.get_strategy(), switch["power"]
    target.cleanup()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", TARGETS, ids=lambda path: path.stem)
def test_every_target_file_names_only_what_labgrid_and_this_folder_have(file, env):
    page = yaml.safe_load(file.read_text())
    resources, drivers = target_factory.normalize_config(page["targets"]["main"])
    for there, known in ((resources, target_factory.resources), (drivers, target_factory.drivers)):
        for name, instances in there.items():
            fields = {field.name for field in attr.fields(known[name])}
            for options, *_ in instances.values():
                assert set(options) <= fields, f"{name} takes {sorted(fields)}"
    assert "InferdStrategy" in drivers


def test_the_exporters_file_exports_what_labgrid_can_and_what_a_target_file_takes():
    wanted = {name for file in TARGETS for entry in _resources(file) for name in entry}
    for group in yaml.safe_load((FOLDER / "exporter.yaml").read_text()).values():
        for resource in group.values():
            assert resource["cls"] in exports and resource["cls"] in target_factory.resources
            assert resource["cls"] not in USBStorageDriver.bindings["storage"], "a card is written by the machine it is plugged into"
            # A serial port is asked for by its name in /dev where the board is beside the tests, and by its adapter where not.
            assert resource["cls"] in wanted | {"USBSerialPort"}


def _resources(file):
    found = yaml.safe_load(file.read_text())["targets"]["main"]["resources"]
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("file", [file for file in TARGETS if file.stem != "qemu"], ids=lambda path: path.stem)
def test_a_board_has_a_switch_for_its_power_a_console_and_an_image_of_its_own_where_it_has_a_card(file):
    page = yaml.safe_load(file.read_text())
    drivers = {name: options for entry in page["targets"]["main"]["drivers"] for name, options in entry.items()}
    (address,) = [entry["ApplianceAddress"] for entry in _resources(file) if "ApplianceAddress" in entry]
    assert address["board"] == file.stem and boards.load(file.stem).summary and "SerialDriver" in drivers
    assert any(issubclass(target_factory.drivers[name], PowerProtocol) for name in drivers)
    card = drivers.get("InferctlStorageDriver")
    assert (card is None) == (boards.load(file.stem).backend == "uefi-nv")
    if card:
        assert card["board"] == file.stem and page["images"]["card"].endswith(f"/{file.stem}-dev.img")


@target_factory.reg_driver
@attr.s(eq=False)
class FlashedDriver(storage.InferctlStorageDriver):
    """A card in no reader."""

    bindings = {}

    def _wait_for_medium(self, partition):
        assert partition is None

    def _get_devpath(self, partition):
        return "/dev/card"


def test_a_card_is_written_by_our_own_flasher_for_its_board_only(env, tmp_path, monkeypatch):
    noted = tmp_path / "noted"
    program = tmp_path / "inferctl"
    program.write_text(f'#!/bin/sh\necho "$@" >"{noted}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(storage.images, "inferctl", lambda: program)
    page = {"targets": {"main": {"drivers": {"FlashedDriver": {"board": "rpi4"}}}}}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(page))
    target = Environment(str(tmp_path / "card.yaml")).get_target()
    driver = target.get_driver(FlashedDriver)
    driver.write_image("card.img")
    assert noted.read_text() == "flash card.img /dev/card --yes --board rpi4\n"
    driver.write_image("card.img", provision="inferd.toml")
    assert noted.read_text() == "flash card.img /dev/card --yes --board rpi4 --provision inferd.toml\n"
    target.cleanup()


@pytest.mark.parametrize(("resource", "taken"), [("USBSDMuxDevice", True), ("NetworkUSBSDMuxDevice", False), ("NetworkUSBMassStorage", False)])
def test_a_card_that_hangs_on_another_machine_is_refused(env, tmp_path, resource, taken):
    remote = {"host": "rig-2.lan", "busnum": 1, "devnum": 2, "path": "/dev/sda", "vendor_id": 1, "model_id": 1}
    options = {"match": {"ID_SERIAL_SHORT": "0"}} if taken else remote
    page = {"targets": {"main": {"resources": {resource: options}, "drivers": {"InferctlStorageDriver": {"board": "rpi4"}}}}}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(page))
    if taken:
        Environment(str(tmp_path / "card.yaml")).get_target().cleanup()
    else:
        with pytest.raises(NoSupplierFoundError):
            Environment(str(tmp_path / "card.yaml")).get_target()


def test_without_a_root_shell_faults_come_from_outside_and_with_one_all_that_hands_can_do():
    assert soak.choose(None, shell=False, hands=False) == faults.FROM_OUTSIDE
    assert soak.choose(None, shell=True, hands=True) == faults.ALL
    assert faults.UNPLUGGED not in soak.choose(None, shell=True, hands=False)
    assert soak.choose(["power: cut"], shell=False, hands=False) == [faults.POWER_CUT]
    assert soak.choose(["kernel: panic"], shell=False, hands=False) == []


def test_what_a_template_asks_to_be_filled_in_is_marked():
    for file in TARGETS:
        assert ("FILL IN" in file.read_text()) == (file.stem != "qemu")


def test_unknown_ends_with_a_power_cycle_and_cut_only_takes_power_away(env, simulated):
    strategy, power = simulated
    strategy.transition("booted")
    assert power.done == ["off", "on"]
    strategy.transition("booted")
    strategy.transition("cut")
    strategy.transition("booted")
    strategy.transition("off")
    assert power.done == ["off", "on", "off", "on", "off"]


def test_a_card_is_only_switched_while_the_board_has_no_power(env, simulated):
    strategy, power = simulated
    strategy.transition("booted")
    power.done.clear()
    strategy.flash()
    assert power.done == ["off", "host", "card.img", "dut"]
    strategy.transition("booted")
    assert power.done[4:] == ["on"]


def test_a_card_is_written_by_hand_and_before_the_suite_with_another_image_and_a_configuration(simulated, tmp_path, capsys):
    strategy, power = simulated
    other, configuration = tmp_path / "other.img", tmp_path / "inferd.toml"
    with pytest.raises(StrategyError, match="there is no .*other.img and no .*inferd.toml"):
        strategy.flash(other, configuration)
    assert power.done == [], "nothing is switched for an image that is not there"
    other.write_bytes(b"another")
    configuration.write_text("")
    rig.flash(tmp_path / "simulated.yaml")
    assert "the card is written" in capsys.readouterr().out
    asked = {"flash": True, "image": other, "provision": configuration}
    options = SimpleNamespace(getoption=lambda name, default: asked.get(name, default))
    conftest.flashed(options, strategy)
    assert power.done == ["off", "host", ("other.img", "inferd.toml"), "dut"]
    asked["flash"] = False
    with pytest.raises(pytest.UsageError):
        conftest.flashed(options, strategy)
    asked.clear()
    conftest.flashed(options, strategy)
    assert len(power.done) == 4


@pytest.mark.parametrize("file", TARGETS, ids=lambda path: path.stem)
def test_the_drivers_of_every_target_file_can_be_had_with_the_packages_of_the_tests(file, env):
    with rig.opened(file) as target:
        assert target.get_strategy()


@pytest.mark.parametrize(
    ("resource", "driver", "extra"),
    [
        ({"NetworkPowerPort": {"model": "poe_mib", "host": "switch", "index": 1}}, "NetworkPowerDriver", "snmp"),
        ({"NetworkPowerPort": {"model": "tplink", "host": "socket", "index": 0}}, "NetworkPowerDriver", "kasa"),
    ],
)
def test_a_driver_that_wants_another_package_says_which(resource, driver, extra, env, tmp_path, capsys):
    page = yaml.safe_load((FOLDER / "targets/rpi4.yaml").read_text())
    main = page["targets"]["main"]
    main["resources"].append(resource)
    main["drivers"] = [{driver: {}} if "ExternalPowerDriver" in entry else entry for entry in main["drivers"]]
    page["imports"] = [str(FOLDER / "plugin.py")]
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(page))
    assert rig.check(tmp_path / "rig.yaml")
    assert f"-m pip install 'labgrid[{extra}]==" in capsys.readouterr().out


# What a rig's engineer writes over what is marked: (marked, filled in).
SOCKET = "127.0.0.1:{port}"
FILLED = {
    "rpi4": [("-c private", "-c workshop"), ("switch-1.lan", "switch.test"), ("3.1.1 i", "3.1.7 i")],
    "rpi5-hailo8": [("socket-1.lan", SOCKET)],
    "jetson-orin-nano": [("socket-2.lan", SOCKET)],
}
SNMP = "-v2c -c workshop switch.test 1.3.6.1.2.1.105.1.1.1.3.1.7 i"
SWITCHED = {
    "rpi4": [f"{SNMP} 2", f"{SNMP} 1"],
    "rpi5-hailo8": ["/rpc/Switch.Set?id=0&on=false", "/rpc/Switch.Set?id=0&on=true"],
    "jetson-orin-nano": ["/cm?cmnd=Power%200", "/cm?cmnd=Power%201"],
}


@pytest.fixture
def by_hand(tmp_path, monkeypatch, capfd):
    """`rig.py` as an engineer runs it, and what the switches of all templates were told: sockets on the network, and `snmpset`."""
    told = []

    class Socket(BaseHTTPRequestHandler):
        def do_GET(self):
            told.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Socket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (programs := tmp_path / "programs").mkdir()
    noted = tmp_path / "snmpset.said"
    (programs / "snmpset").write_text(f'#!/bin/sh\necho "$*" >>"{noted}"\n')
    (programs / "snmpset").chmod(0o755)

    def run(board, command, *words, also=()):
        text = (FOLDER / f"targets/{board}.yaml").read_text().replace("../plugin.py", str(FOLDER / "plugin.py"))
        for marked, filled in [*FILLED[board], *also]:
            assert marked in text, f"{board}.yaml has no {marked} any more"
            text = text.replace(marked, filled.format(port=server.server_port))
        (file := tmp_path / f"{board}.yaml").write_text(text.replace("FILL IN", ""))
        capfd.readouterr()
        return rig.main([command, str(file), *words]), capfd.readouterr().out

    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield run, lambda: told or noted.read_text().splitlines()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("board", FILLED)
def test_the_switch_of_every_template_is_told_what_its_maker_documents(board, by_hand):
    run, told = by_hand
    for what in ("off", "on"):
        status, said = run(board, "power", what)
        assert (status, said) == (0, f"power: {what}\n")
    assert told() == SWITCHED[board]


def test_the_console_of_a_template_shows_what_the_board_says(by_hand):
    run, _ = by_hand
    board, adapter = pty.openpty()
    tty.setraw(adapter)
    said = b"RPi: BOOTSYS release VERSION\r\nINFERD-UP inferd-a1b2c3 slot=a data=ext4\r\n"
    # What was said before it is opened nobody hears.
    for at in range(1, 5):
        threading.Timer(at, lambda: os.write(board, said)).start()
    status, shown = run("rpi4", "console", "--for", "5", also=[("/dev/serial/by-id/usb-ADAPTER", os.ttyname(adapter))])
    assert status == 0 and "INFERD-UP inferd-a1b2c3 slot=a" in shown and "BOOTSYS" in shown, shown


def test_a_rig_says_what_it_still_lacks(by_hand):
    run, _ = by_hand
    status, said = run("rpi4", "check")
    lines = said.splitlines()
    assert status == 1, said
    for missing in ("the serial port /dev/serial/by-id/usb-ADAPTER is not there", "no USBSDWireDevice with", "calls sd-mux-ctrl, which is not"):
        assert any(missing in line for line in lines), said
    assert "snmpset" not in said and "to be filled in" not in said


def test_what_is_still_to_be_filled_in_is_told_line_by_line():
    file = FOLDER / "targets/rpi4.yaml"
    marked = [number for number, line in enumerate(file.read_text().splitlines(), 1) if "FILL IN" in line]
    line = [sys.executable, "-B", FOLDER / "rig.py", "check", file]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and len(marked) > 4, done.stderr
    assert [int(said.split(":")[1]) for said in done.stdout.splitlines() if "to be filled in" in said] == marked


def test_what_is_put_on_a_rigs_card_is_what_the_daemon_has_settings_for(monkeypatch, tmp_path, capsys):
    folder = devkeys.DevKeys(tmp_path)
    folder.api_key_file.write_text("0123456789abcdef\n")
    monkeypatch.setattr(rig.devkeys, "ensure", lambda _: folder)
    monkeypatch.setattr(rig.images, "inferctl", lambda: None)
    rig.keys()
    file = tmp_path / "inferd.toml"
    assert str(file) in capsys.readouterr().out and file.stat().st_mode & 0o077 == 0
    page = tomllib.loads(file.read_text())
    assert page == {"security": {"api_key": "0123456789abcdef"}, "updates": {"allow_dev": True}}
    text = (places.ROOT / "rootfs-overlay/etc/inferd/inferd.toml").read_text()
    for section, settings in page.items():
        for name in settings:
            image.with_setting(text, section, name, "true")


class Told:
    """A unit that says this of its systems."""

    def __init__(self, *verdicts, refused=None, watchdog_resets=None):
        self.verdicts, self.refused, self.expired = list(verdicts), refused, watchdog_resets
        self.strategy = SimpleNamespace(console_text=lambda: "")

    def until(self, condition, *_):
        return condition()

    def slots(self):
        state = {"phase": "idle", "floors": {}, "tries": {}, "verdicts": [said | {"number": n} for n, said in enumerate(self.verdicts, 1)]}
        return {"system": {"refused": self.refused, "state": state, "board": {"image": None}}}

    def machine(self):
        if self.expired is None:
            raise Lacking("no hands on it")
        return self

    def watchdog_resets(self):
        return self.expired


def _said(outcome, code, interruptions=0):
    return {"outcome": outcome, "code": code, "about": {"version": 3}, "tries": {"interruptions": interruptions, "failures": 0}}


@pytest.mark.parametrize(
    ("verdict", "cuts", "starved", "fine"),
    [
        (_said("committed", "committed"), 0, None, True),
        (_said("interrupted", "trial-interrupted", 1), 1, None, True),
        (_said("interrupted", "trial-interrupted", 2), 1, None, False),
        (_said("interrupted", "watchdog-reset"), 1, None, False),
        (_said("returned", "safe-mode"), 1, None, False),
        (_said("interrupted", "watchdog-reset"), 1, 1, True),
        (_said("interrupted", "watchdog-reset"), 1, 0, False),
    ],
)
def test_only_what_the_rig_did_to_it_may_be_said_of_a_good_system(tmp_path, verdict, cuts, starved, fine):
    (parts := tmp_path / "parts").mkdir()
    for name in ("rootfs", "boot"):
        (parts / name).write_bytes(bytes(8192))
    unit = Told(watchdog_resets=None if starved is None else 5)
    tried = systems.Systems(unit, None, parts, tmp_path)
    tried.cuts, unit.expired = cuts, None if starved is None else 5 + starved
    unit.verdicts.append(verdict)
    if fine:
        tried.judge(3)
    else:
        with pytest.raises(AssertionError, match="held against a system"):
            tried.judge(3)
    # Another version's are not this one's.
    tried.seen = 0
    tried.judge(4)


def test_a_target_that_takes_no_system_says_why(tmp_path):
    (parts := tmp_path / "parts").mkdir()
    for name in ("rootfs", "boot"):
        (parts / name).write_bytes(bytes(8192))
    with pytest.raises(Lacking, match="takes no system: this kernel cannot"):
        systems.Systems(Told(refused={"code": "boot-backend", "sentence": "this kernel cannot"}), None, parts, tmp_path)


class Updated:
    """A unit on which an update is pushed and cut: it says the answers, and notes the states. `serving`: the bundle after the cut."""

    def __init__(self, serving, answer=0.5):
        self.serving, self.answer, self.states = "old", 0.5, []
        self.after_cut, self.update_s, self.chance = (serving, answer), 0.0, random.Random(1)
        self.updates, self.strategy = self, SimpleNamespace(settled=self.slots, wait_ready=lambda: None)

    def make(self, _, shift):
        assert 0.1 <= abs(shift) <= 1.0
        return "file", "new", "key"

    def to(self, state):
        if self.states and self.states[-1] == "updating" and state == "booted":
            self.serving = "new"
        self.states.append(state)
        if state == "cut":
            self.serving, self.answer = self.after_cut
        return self

    def kept(self):
        return self.answer, self.serving, {"collar": 1}

    def slots(self):
        return {"serving": {"bundle": self.serving}}

    def until(self, condition, what):
        assert condition(), what


def test_an_update_that_is_cut_goes_on_and_what_the_cut_changed_is_found():
    cut = ["updating", "cut", "booted"]
    for serving, states in (("new", cut), ("old", [*cut, "updating", "booted"])):
        unit = Updated(serving)
        faults.cut_update(unit)
        assert unit.states == states and unit.kept()[1] == "new"
    for unit in (Updated("old", answer=0.4), Updated("factory")):
        with pytest.raises(AssertionError, match="the cut has changed what serves"):
            faults.cut_update(unit)


@pytest.mark.parametrize(
    ("now", "fine"),
    [((0.9, "new", {"collar": 2}), True), ((0.9, "old", {"collar": 2}), False), ((0.9, "new", {"collar": 0}), False), ((0.9, "new", {}), False)],
)
def test_after_a_cut_update_the_new_bundle_serves_and_no_floor_has_fallen(now, fine):
    answered = SimpleNamespace(counts=lambda _: {200: 3, "none": 1})
    boot, strategy = {"number": 8, "reason": "power"}, SimpleNamespace(update=("file", "new", "key"))
    unit = SimpleNamespace(boot=lambda: boot, kept=lambda: now, strategy=strategy)
    said = soak.Soak(unit, answered, 1, 0).wrong(faults.POWER_CUT_IN_UPDATE, {"number": 7}, (0.5, "old", {"collar": 1}), 0)
    assert (said is None) == fine, said


def test_a_fault_that_moves_nothing_must_leave_what_serves_as_it_was():
    answered = SimpleNamespace(counts=lambda _: {200: 3})
    unit = SimpleNamespace(boot=lambda: {"number": 8, "reason": "power"}, kept=lambda: (0.9, "new", {}))
    assert "something else" in soak.Soak(unit, answered, 1, 0).wrong(faults.POWER_CUT, {"number": 7}, (0.5, "old", {}), 0)


def test_an_image_that_lets_nobody_try_its_watchdog_is_told_from_a_broken_one():
    def refusing(sentence):
        return SimpleNamespace(post=lambda *_: SimpleNamespace(status=403, body=json.dumps({"reason": sentence}).encode()))

    with pytest.raises(Lacking, match="none of --dev"):
        faults.TEST_DAEMON.put_in(refusing("watchdog tests are for images made with --dev"))
    with pytest.raises(AssertionError):
        faults.TEST_DAEMON.put_in(refusing("there is no watchdog"))


def test_an_accelerator_is_ready_only_when_all_of_it_is_and_a_fallback_is_not_taken_for_it():
    ready = {"engine": "hailo", "version": "hailort 4.23.0", "providers": ["hailo8"], "problem": None, "absent": False}
    assert test_accelerator.wrong(ready) is None
    mixed = "libhailort is 4.23.0, the driver hailo_pci 4.21.0: install library, driver and firmware of one release, then restart the board"
    assert test_accelerator.wrong(ready | {"mismatch": mixed}) == mixed
    assert test_accelerator.wrong(ready | {"problem": "no driver of it is loaded", "providers": []}) == "no driver of it is loaded"
    assert "does not say" in test_accelerator.wrong(ready | {"version": None})
    page = {"models": [{"name": "a", "engine": {"rung": "hailo-hef"}}, {"name": "b", "engine": {"rung": "cpu"}}, {"name": "c", "engine": {"rung": None}}]}
    assert [test_accelerator.served_by(page, name) for name in "abc"] == ["hailo", "cpu", ""]


def test_a_board_that_does_not_come_up_is_unknown_and_gets_a_power_cycle(env, simulated):
    strategy, power = simulated
    strategy.boot_timeout = 0.3
    switch_on, power.on = power.on, lambda: power.done.append("on")
    with pytest.raises(Exception, match="not ready"):
        strategy.transition("booted")
    power.on = switch_on
    power.done.clear()
    strategy.transition("booted")
    assert power.done == ["off", "on"]


def test_nothing_can_be_cut_that_is_off(env, simulated):
    strategy, _ = simulated
    strategy.transition("off")
    with pytest.raises(Exception, match="nothing to cut"):
        strategy.transition("cut")


def test_a_slope_is_that_of_each_life_and_not_of_what_changes_between_them():
    slope = soak.Slope()
    assert slope.mib_per_hour() is None
    for life, level in (("first", 10.0), ("second", 50.0), ("too short", 900.0)):
        for at in range(0, 300 if life != "too short" else 20, 10):
            # Before it has settled a process may grow as it likes.
            grown = 40.0 - at if at < soak.WARM_UP_S else 3.0 * at / soak.HOUR
            slope.take(life, at, level + grown)
    assert slope.mib_per_hour() == pytest.approx(3.0)
    assert slope.minutes() == pytest.approx(2 * 260 / 60)


def test_the_time_without_answers_ends_with_the_first_answer_after_the_last_failure():
    load = Load("http://127.0.0.1:1")
    answers = [(1.0, 200), (2.0, 503), (3.0, 200), (4.0, "none"), (6.5, 200), (7.0, 200)]
    load.answers = [(at, what, b"", 0.1) for at, what in answers]
    assert load.gap(1.5) == 5.0 and load.gap(5.0) == 0.0
    assert load.counts(2.0) == {503: 1, 200: 3, "none": 1}
    assert load.failures() == [("none", b"")]
    assert load.answered_since(4.5, 2) and not load.answered_since(4.5, 3)
    # As good as none.
    load.answers += [(8.0, 200, b"", 12.0), (20.5, 200, b"", 0.1)]
    assert load.gap(7.5) == 13.0
