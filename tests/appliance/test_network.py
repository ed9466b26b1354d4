"""What the boot partition may ask for besides an address, run for real on one board: a wireless network, an SSH server, a clock that is set.

The board has two simulated radios of the kernel's. One is the device's own; the other one is moved into a network of its own, where Debian's hostapd
makes an access point of it, BusyBox gives addresses away and a program of this room tells the time. It begins in 1970, as a board without a clock does.
"""

import json
import re
import shutil
import time
from pathlib import Path

import debian
import pytest
from appliance import device, given
from appliance.ssh import Ssh
from appliance.test_provision import Card, report, until

PATIENCE_S = 240
NAME = 'Büro "3" #1'
PASSPHRASE = 'a "quoted" #1 \\ $(id) `x` \''
ROUTER, FIXED = "192.168.77.1", "192.168.77.5"
# Seconds since 1970, somewhere in these years.
YEAR_2031, YEAR_2041 = 1_930_000_000, 2_250_000_000
GOOD = f"""\
[network.wifi]
ssid = 'Büro "3" #1'
passphrase = {json.dumps(PASSPHRASE)}
country = "DE"
[time]
servers = ["{ROUTER}"]
[ssh]
authorized_keys = ["{{key}}"]
"""
TWICE = ("WPA-PSK", 1)
ONLY_WPA3 = ("SAE", 2)


class AccessPoint:
    """A second radio of the machine in a network of its own."""

    def __init__(self, machine, url):
        self.machine = machine
        machine.sh("mkdir /run/brought && mount -t tmpfs brought /run/brought")
        machine.sh(f"cd /run/brought && for name in hostapd iw clock; do wget -q {url}/$name && chmod 700 $name; done")
        machine.sh("(unshare -n sleep 100000 & echo $! >/run/brought/net) </dev/null >/dev/null 2>&1")
        self.inside = f"nsenter -t {machine.sh('cat /run/brought/net')} -n"

    def radios(self):
        """Switches both radios on; the device has the first."""
        self.machine.sh("modprobe mac80211_hwsim radios=2")
        # The second is away before anybody looks for a third.
        self.machine.sh("cd /run/brought && ./iw phy phy1 set netns $(cat net)")
        self.sh(f"ip link set lo up; ip link set wlan1 up; ip addr add {ROUTER}/24 dev wlan1")
        lines = f"start 192.168.77.50\nend 192.168.77.60\ninterface wlan1\noption subnet 255.255.255.0\noption router {ROUTER}\nlease_file /run/brought/leases\n"
        self.put("udhcpd.conf", lines)
        self.sh("touch /run/brought/leases; udhcpd /run/brought/udhcpd.conf; (/run/brought/clock /run/brought/base & ) </dev/null >/dev/null 2>&1")

    def sh(self, command):
        """A command in its network."""
        return self.machine.sh(f"{self.inside} sh -c '{command}'")

    def put(self, name, text):
        """A file for its programs."""
        self.machine.sh(f"cat >/run/brought/{name} <<'THE-END'\n{text}THE-END")

    def on(self, passphrase, kind=TWICE):
        """The access point is there, and asks for this passphrase."""
        way, protected = kind
        secret = f"sae_password={passphrase}\nsae_pwe=2\n" if way == "SAE" else f"wpa_passphrase={passphrase}\n"
        self.put("hostapd.conf", f"interface=wlan1\ndriver=nl80211\nssid2={NAME.encode().hex()}\nhw_mode=g\nchannel=1\nwpa=2\nrsn_pairwise=CCMP\n"
                 f"wpa_key_mgmt={way}\nieee80211w={protected}\n{secret}")
        self.sh("/run/brought/hostapd -B -P /run/brought/hostapd.pid /run/brought/hostapd.conf >/run/brought/hostapd.log")

    def off(self):
        """It is gone."""
        self.machine.sh("kill $(cat /run/brought/hostapd.pid); while [ -e /run/brought/hostapd.pid ]; do sleep 0.2; done")

    def time(self, seconds):
        """What its clock says, as if it had started then."""
        self.put("base", f"{seconds}\n")


@pytest.fixture(scope="module")
def story(board, boot, dev_image, tmp_path_factory):
    """The machine, its card, a client of SSH, and the address where the programs of an access point are."""
    given.skip_for_another_builder("simulated radios, which only scripts/image puts into an image")
    if not board.radio.modules or board.architecture_in_rust != "aarch64":
        pytest.skip(f"{board.name} has no radio")
    folder = tmp_path_factory.mktemp("network")
    bring = folder / "bring"
    bring.mkdir()
    tree = debian.Archive(board.debian.architecture, [board.debian.suite]).tree(["hostapd", "iw"]).path
    for name in ("hostapd", "iw"):
        shutil.copy(tree / "usr/sbin" / name, bring / name)
    device.compiled(Path(__file__).parent / "clock.rs", board, bring)
    medium = shutil.copyfile(dev_image, folder / "medium.img")
    card, ssh = Card(medium, folder), Ssh(folder)
    card.write("inferd.toml", GOOD.format(key=ssh.keys["given"]).encode())
    with boot(medium, dev=True, keep_writes=True, restarts=True, clock="1970-01-01T00:00:00") as machine, machine.serving(bring) as url:
        yield machine, card, ssh, url


def newest(machine, pattern, since):
    """Waits for a line on the console behind a place in it; where it ends."""
    found = until(lambda: re.compile(pattern).search(machine.console(), since), pattern)
    return found.end()


def test_a_wireless_network_an_ssh_server_and_the_time_are_as_the_boot_partition_says(story):
    machine, card, ssh, url = story
    machine.wait_for_console(r"INFERD-NET eth0 10\.0\.2\.15", PATIENCE_S)
    began = time.monotonic()

    def seen(what):
        print(f"{time.monotonic() - began:6.1f} s {what}")

    # Root logs in with the key of the file and with no other; nothing else listens, but the daemon.
    until(lambda: machine.root("netstat -ltn | grep -q ':22 '")[0] == 0, "an SSH server")
    told = {name: ssh.login(machine, name, "cat /run/inferd/slot; id -u") for name in ssh.keys}
    assert (told["given"].returncode, told["given"].stdout.split()) == (0, ["a", "0"]), told["given"].stderr
    assert told["other"].returncode != 0 and told["other"].stdout == ""
    assert set(machine.sh("netstat -ltn | sed -n 's/.*:\\([0-9]*\\) .*LISTEN.*/\\1/p'").split()) == {"22", "9000"}
    # Who sets the clock is not root, and hears nobody who was not asked.
    assert machine.sh("ps -o user,args | grep '[c]hronyd -d'").split()[0] == "_chrony"
    assert "1970" in machine.sh("date") and machine.root("netstat -lun | grep -E ':(123|323) '")[0] != 0
    assert machine.root("pidof wpa_supplicant")[0] != 0 and machine.root("lsmod | grep 80211")[0] != 0, "without a radio nothing of it is there"
    seen("logged in")

    # The radio is there, and nobody answers it; then one that has another passphrase.
    point = AccessPoint(machine, url)
    point.radios()
    at = newest(machine, "network: wlan0: no wireless network of this name answers", 0)
    assert machine.root("ip addr show wlan0 | grep 'inet '")[0] != 0
    seen("no network")
    point.on("another passphrase")
    at = newest(machine, "network: wlan0: the wireless network does not take the passphrase", at)
    seen("wrong passphrase")
    point.off()
    point.time(YEAR_2031)
    point.on(PASSPHRASE)
    at = newest(machine, "network: wlan0: is in the wireless network", at)
    at = newest(machine, r"INFERD-NET wlan0 192\.168\.77\.5\d", at)
    address = machine.sh("ip -4 addr show wlan0 | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'")
    assert '"' in point.sh(f"wget -q -O - http://{address}:9000/healthz"), "the daemon answers there"
    ways = dict(re.findall(r"default via (\S+) dev \S+ .*metric (\d+)", machine.sh("ip route")))
    assert int(ways["10.0.2.2"]) < int(ways[ROUTER]), "both ways lead out, the wired one first"
    assert "country DE" in machine.sh("/run/brought/iw reg get")
    seen("joined")

    # The clock follows what is told there.
    until(lambda: int(machine.sh("date +%Y")) == 2031, "the year 2031")
    at = newest(machine, "services: .*System clock was stepped by", at)
    point.time(YEAR_2041)
    seen("the time")

    # The access point goes away, and comes back with WPA3 alone.
    point.off()
    at = newest(machine, "network: wlan0: the wireless network is lost", at)
    point.on(PASSPHRASE, ONLY_WPA3)
    at = newest(machine, "network: wlan0: is in the wireless network", at)
    until(lambda: machine.root(f"ping -c 1 -W 2 {ROUTER}")[0] == 0, "an answer")
    seen("WPA3")
    # A server that has lost its mind by ten years is not followed meanwhile.
    assert int(machine.sh("date +%Y")) == 2031

    # The card goes into a laptop, and gets a fixed address. The passphrase is the device's now.
    until(lambda: not notes(machine), "a report without troubles")
    machine.cut_power()
    assert not [line for line in report(card) if line.startswith("NOTE:")]
    text = card.read("inferd.toml").decode()
    assert text.count('"(kept)"') == 1 and PASSPHRASE.encode() not in card.raw()
    card.write("inferd.toml", text.replace("[time]", f'address = "{FIXED}/24"\n[time]').encode())
    machine.power_on()
    machine.wait_ready(PATIENCE_S)
    point = AccessPoint(machine, url)
    point.radios()
    point.on("another passphrase")
    at = newest(machine, "network: wlan0: the wireless network does not take the passphrase", 0)
    until(lambda: [line for line in notes(machine) if "does not take the passphrase" in line], "a report of it")
    point.off()
    point.on(PASSPHRASE, ONLY_WPA3)
    newest(machine, rf"INFERD-NET wlan0 {re.escape(FIXED)} \(fixed\)", at)
    until(lambda: machine.root(f"ping -c 1 -W 2 {ROUTER}")[0] == 0, "an answer")
    seen("a fixed address")


def notes(machine):
    """What the report on the boot partition of the running board remarks; nobody else has that mounted meanwhile."""
    alone = "until ln -sn 1 /run/inferd/provisioning 2>/dev/null; do sleep 0.2; done"
    show = f". /usr/libexec/inferd/common; {alone}; mount -t vfat -o ro $(partition boot) /boot; grep ^NOTE /boot/inferd-report.txt; umount /boot"
    return machine.sh(f"({show}); rm /run/inferd/provisioning").splitlines()
