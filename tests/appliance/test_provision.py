"""The first boot: a card prepared on a laptop, on a medium larger than its image, through a power cut and a factory reset.

One medium and one story; each start of it takes an emulated board half a minute."""

import re
import shutil
import subprocess
import time

import hosttools
import layout as layouts
import pytest
from appliance import given

PATIENCE_S = 240
# How much larger than its image the medium is, in bytes.
LARGER = 192 << 20
API_KEY = "a-key-of-this-test-0123456789"
PASSPHRASE = "only in this test"
# As Notepad on Windows writes it in ANSI.
GOOD = f"""\
# Werkstatt, Tür 7
[device]
hostname = "door-7"
timezone = "Europe/Berlin"
[network]
address = "10.0.2.15/24"
gateway = "10.0.2.2"
dns = ["10.0.2.3"]
[network.wifi]
ssid = "workshop"
passphrase = "{PASSPHRASE}"
[ssh]
authorized_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEr5tGbDaP8bH7YQmHqzcTgRYqMrxcKGr5jC3M3cQq8x me@desk"]
[security]
api_key = "{API_KEY}"
[server]
docs_enabled = false
[tls]
self_signed = true
"""
BAD = '[device]\nhostnme = "gate"\n[server]\ndocs_enabled = "perhaps"\n'


class Card:
    """The boot partition of a medium, as a laptop sees it."""

    def __init__(self, medium, folder):
        part = next(part for part in layouts.read_gpt(medium, larger=True)[1] if part.name == "boot")
        self.medium, self.folder, self.offset, self.size = medium, folder, part.offset, part.size
        self.tools = hosttools.Tools(hosttools.IMAGE)

    def write(self, name, content):
        """Puts a file there."""
        (self.folder / name).write_bytes(content)
        self._run("mcopy", "-o", "-i", f"{self.medium}@@{self.offset}", self.folder / name, f"::{name}")

    def read(self, name):
        """What a file there holds."""
        return self._run("mtype", "-i", f"{self.medium}@@{self.offset}", f"::{name}").stdout

    def names(self):
        """The names of its files."""
        listed = self._run("mdir", "-b", "-i", f"{self.medium}@@{self.offset}", "::").stdout.decode()
        return {line.removeprefix("::/") for line in listed.split()}

    def raw(self):
        """Every byte of the partition."""
        with open(self.medium, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def _run(self, program, *arguments):
        command = [str(part) for part in (self.tools.path(program), *arguments)]
        return subprocess.run(command, check=True, capture_output=True, env={"MTOOLS_SKIP_CHECK": "1", "PATH": "/usr/bin:/bin"})


@pytest.fixture(scope="module")
def story(boot, dev_image, tmp_path_factory):
    """A flashed medium with a good file on it, and the machine that is started with it."""
    folder = tmp_path_factory.mktemp("card")
    medium = shutil.copyfile(dev_image, folder / "medium.img")
    with open(medium, "r+b") as file:
        file.truncate(file.seek(0, 2) + LARGER)
    card = Card(medium, folder)
    card.write("inferd.toml", GOOD.replace("\n", "\r\n").encode("latin-1"))
    with boot(medium, dev=True, keep_writes=True, restarts=True) as machine:
        yield machine, card


def until(condition, what):
    """Waits for something that happens by itself."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"it did not come to this: {what}"
        time.sleep(0.1)
    return found


def report(card):
    """The report on the card, as lines."""
    text = card.read("inferd-report.txt").decode("ascii")
    assert text.count("\n") == text.count("\r\n"), "Notepad shows it"
    return [line.rstrip("\r") for line in text.split("\n")]


def said(lines, name):
    """What the report says behind `NAME:`."""
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


def test_a_card_from_a_laptop_is_taken_over_and_reported_and_a_bad_one_and_a_reset_leave_what_they_must(story):
    machine, card = story

    # The first start.
    machine.wait_for_console(r"INFERD-UP door-7 slot=a data=ext4 config=/run/inferd/boot\.toml", PATIENCE_S)
    machine.wait_for_console(r"INFERD-NET eth0 10\.0\.2\.15 \(fixed\)", PATIENCE_S)
    assert machine.request("/docs").status == 404, "the daemon's part of the file is in use"
    assert machine.sh("ip -4 addr show dev eth0 | grep -c 'inet 10.0.2.15/24'") == "1"
    assert "default via 10.0.2.2 dev eth0" in machine.sh("ip route")
    assert machine.sh("cat /etc/resolv.conf") == "nameserver 10.0.2.3"
    assert machine.root("pidof udhcpc chronyd ntpd wpa_supplicant")[0] != 0, "none of them was asked for, or there is no radio"
    assert machine.sh("tr '\\0' '\\n' </proc/$(cat /run/inferd/keeper/pid)/environ | grep ^TZ=").startswith("TZ=CET-1CEST")
    # Whoever has the key may change the device; it is root's and the daemon's here, and only root's on the data partition.
    assert machine.request("/api/v1/captures", headers={"X-API-Key": API_KEY}).status == 200
    assert machine.request("/api/v1/captures", headers={"X-API-Key": API_KEY[::-1]}).status in (401, 403)
    assert machine.sh("stat -c '%a %u' /data/provision /data/provision/record /run/inferd/boot.toml") == "700 0\n600 0\n640 0"
    assert machine.sh(f"grep -c '{PASSPHRASE}' /run/inferd/boot.toml || true") == "0"
    # The data partition takes the rest of the medium while the appliance works.
    machine.wait_for_console("services: the data partition has grown to", PATIENCE_S)
    node = machine.sh("grep ' /data ' /proc/mounts").split()[0].removeprefix("/dev/")
    data = {name: int(machine.sh(f"cat /sys/class/block/{node}/{name}")) for name in ("start", "size")}
    assert (data["start"] + data["size"]) * 512 > card.medium.stat().st_size - (2 << 20)
    assert int(machine.sh("stat -f -c %b /data")) * 4096 > data["size"] * 512 * 0.9
    assert machine.root("test -e /data/.growing")[0] != 0
    fingerprint = machine.request("/status").json()["tls"]["fingerprint_sha256"]
    identity = machine.sh("cat /data/identity/id")
    assert machine.request("/status").json()["identity"] == {"id": identity, "hostname": "door-7"}
    assert re.fullmatch(r"[0-9a-f]{32}", identity)
    console = machine.console()

    # The power fails; the card goes into a laptop.
    machine.cut_power()
    lines = report(card)
    assert "inferd.toml is in use. It was read as Latin-1 (Windows-1252)." in lines
    assert (said(lines, "Name"), said(lines, "Identity"), said(lines, "Last address")) == ("door-7", identity, "10.0.2.15")
    assert said(lines, "Certificate").replace(":", "").lower() == fingerprint.replace(":", "").lower()
    notes = [line for line in lines if line.startswith("NOTE:")]
    if given.image():
        # Another builder's may lack something, which is said then.
        assert all(note.removeprefix("NOTE: ") in console for note in notes)
    else:
        assert not notes, "what it asks for is in the image"
    scrubbed = card.read("inferd.toml")
    assert scrubbed.decode("latin-1").splitlines()[0] == "# Werkstatt, Tür 7" and scrubbed.count(b'"(kept)"') == 2
    raw = card.raw()
    assert API_KEY.encode() not in raw and PASSPHRASE.encode() not in raw, "nowhere on the partition"
    fsck = [card.tools.path("fsck.fat"), "-n", _cut_out(raw, card.folder)]
    check = subprocess.run(fsck, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    # The table on the medium says the same, and its second copy is at the medium's end.
    parts = layouts.read_gpt(card.medium)[1]
    assert parts[-1].name == "data" and parts[-1].size == data["size"] * 512

    # A bad file changes nothing but the report.
    card.write("inferd.toml", BAD.encode())
    machine.power_on()
    machine.wait_ready(PATIENCE_S)
    machine.wait_for_console(r"/boot/inferd\.toml is not used: line 2: there is no setting device\.hostnme", 60)
    assert machine.request("/docs").status == 404 and machine.sh("hostname; cat /data/identity/id").split() == ["door-7", identity]
    machine.cut_power()
    lines = report(card)
    assert "inferd.toml was NOT taken, nothing of it. What is wrong with it:" in lines
    assert "  line 2: there is no setting device.hostnme; did you mean hostname?" in lines
    assert '  line 4: server.docs_enabled is "perhaps", allowed is true or false.' in lines
    assert card.read("inferd.toml") == BAD.encode()

    # A factory reset by a file: what was kept is forgotten, what names the device is not. The start after it writes nothing to the card.
    card.write("inferd.toml", scrubbed)
    card.write("factory-reset", b"")
    machine.power_on()
    machine.wait_ready(PATIENCE_S)
    machine.wait_for_console("boot: factory reset: forgetting", 60)
    machine.wait_for_console(r"security\.api_key is not on this device", 60)
    assert machine.request("/api/v1/captures", headers={"X-API-Key": API_KEY}).status in (401, 403)
    assert machine.request("/status").json()["tls"]["fingerprint_sha256"] == fingerprint
    assert machine.sh("hostname; cat /data/identity/id").split() == ["door-7", identity]
    machine.cut_power()
    assert "factory-reset" not in card.names()
    assert 'MISSING: security.api_key is "(kept)", and this device has none. Write it again.' in report(card)
    before = card.raw()
    machine.power_on()
    machine.wait_ready(PATIENCE_S)
    assert "factory reset" not in machine.console()
    machine.cut_power()
    assert card.raw() == before


def _cut_out(raw, folder):
    """The partition as a file."""
    file = folder / "boot.vfat"
    file.write_bytes(raw)
    return file
