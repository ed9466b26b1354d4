"""The device on its LAN, as other people's programs find it: python-zeroconf, on the loopback interface."""

import contextlib
import random
import resource
import signal
import socket
import ssl
import struct
from pathlib import Path

import pytest
import qemu
from helpers import until
from zeroconf import ServiceBrowser, ServiceInfo, Zeroconf

LAN = "_inferd._tcp.local."
GROUP = ("224.0.0.251", 5353)
LOOPBACK = "127.0.0.1"


def group_socket():
    """A socket that sends to the group on the loopback interface, by its address: no route is needed."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    return sender


@pytest.fixture(scope="module", autouse=True)
def multicast():
    """What these tests need of a machine."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as hears, contextlib.closing(group_socket()) as says:
        try:
            hears.bind(("224.0.0.251", 0))
            hears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP[0]) + socket.inet_aton(LOOPBACK))
            says.sendto(b"heard", (GROUP[0], hears.getsockname()[1]))
        except OSError as error:
            pytest.skip(f"the loopback interface of this machine carries no multicast: {error}")
        hears.settimeout(10)
        assert hears.recv(16) == b"heard"


class Browser:
    """Somebody who lists devices."""

    def __init__(self):
        self.zeroconf = Zeroconf(interfaces=[LOOPBACK])
        self.found = set()
        self.browser = ServiceBrowser(self.zeroconf, LAN, handlers=[self.changed])

    def changed(self, zeroconf, service_type, name, state_change):  # noqa: ARG002, the names are zeroconf's
        """A device came or went."""
        if state_change.name == "Removed":
            self.found.discard(name)
        else:
            self.found.add(name)

    def info(self, name):
        """What a device says of itself; None as long as not all of it is known."""
        info = ServiceInfo(LAN, f"{name}.{LAN}")
        return info if f"{name}.{LAN}" in self.found and info.request(self.zeroconf, 200) else None

    def properties(self, name):
        """The TXT record as text."""
        info = self.info(name)
        return {key.decode(): (value or b"").decode() for key, value in info.properties.items()} if info else {}

    def close(self):
        """Lists no more."""
        self.zeroconf.close()


@pytest.fixture
def browser():
    """Lists devices until the test ends."""
    with contextlib.closing(Browser()) as one:
        yield one


@pytest.fixture
def name():
    """A name that no other run has."""
    return f"Bench {random.SystemRandom().randrange(16**8):08x}"


def settings(name, enabled="on", interfaces='["lo"]', more=""):
    """A configuration that announces this name."""
    return f'[mdns]\nenabled = "{enabled}"\ninterfaces = {interfaces}\nname = "{name}"\n{more}'


def told(daemon):
    """What /status says of it."""
    return daemon.request("/status").json()["mdns"]


def test_a_device_is_found_with_its_port_its_address_and_its_health_and_gone_when_it_ends(native, browser, name):
    daemon = native(config=settings(name))
    until(lambda: browser.properties(name).get("health") == "ready", daemon)
    info = browser.info(name)
    assert (info.port, info.addresses) == (daemon.port, [socket.inet_aton(LOOPBACK)])
    assert browser.properties(name)["path"] == "/healthz"
    assert browser.properties(name)["version"] == daemon.request("/status").json()["version"]
    assert len(info.text) <= 400
    status = until(lambda: (now := told(daemon))["interfaces"] == ["lo"] and now, daemon)
    assert (status["name"], status["port"], status["health"], status["error"]) == (name, daemon.port, "ready", None)
    assert f"{status['host']}.".lower() == info.server.lower()
    assert "\nmdns_interfaces{} 1.0\n" in daemon.request("/metrics").body.decode()
    daemon.process.send_signal(signal.SIGTERM)
    until(lambda: f"{name}.{LAN}" not in browser.found, "the goodbye")
    assert daemon.process.wait(60) == 0


def test_health_is_told_when_it_changes(native, browser, name):
    daemon = native(config=settings(name))
    health = lambda: browser.properties(name).get("health")  # noqa: E731
    until(lambda: health() == "ready", daemon)
    model = daemon.request("/status").json()["model_name"]
    assert daemon.request(f"/v2/repository/models/{model}/unload", {}).status == 200
    assert qemu.readiness(daemon.url) != "ready"
    until(lambda: health() == "not-ready", daemon)
    assert daemon.request(f"/v2/repository/models/{model}/load", {}).status == 200
    until(lambda: health() == "ready", daemon)


def test_of_two_with_one_name_the_later_gets_a_number(native, browser, name):
    first = ServiceInfo(LAN, f"{name}.{LAN}", port=1, server="another-device.local.", addresses=[socket.inet_aton("127.0.0.2")])
    browser.zeroconf.register_service(first)
    daemon = native(config=settings(name))

    def both():
        # Said again, in case this machine was too busy to answer within a second whether the name is free.
        browser.zeroconf.update_service(first)
        return {f"{name}.{LAN}", f"{name} (2).{LAN}"} <= browser.found

    until(both, daemon)
    assert browser.info(f"{name} (2)").port == daemon.port
    assert browser.info(name).port == 1
    until(lambda: told(daemon)["name"] == f"{name} (2)", daemon)
    assert told(daemon)["conflicts"] >= 1


def test_by_default_a_device_is_announced_where_other_machines_reach_it(native, browser, name):
    assert told(native(config=settings(name, "auto"))) is None, "it listens on the loopback address alone"
    assert told(native(config=settings(name, "off"), listen="0.0.0.0")) is None
    daemon = native(config=settings(name, "auto"), listen="0.0.0.0")
    assert until(lambda: browser.info(name), daemon).port == daemon.port


def test_a_device_that_others_reach_by_tls_alone_says_so_and_its_certificate_is_for_the_name_it_tells(
    native, browser, name, tmp_path
):
    port = qemu.free_port()
    tls = f'[updates]\ndata_dir = "{tmp_path}/data"\n[tls]\nself_signed = true\nlisten = "0.0.0.0:{port}"\n'
    daemon = native(config=settings(name, "auto", more=tls))
    info = until(lambda: browser.info(name), daemon)
    assert (info.port, browser.properties(name)["tls"]) == (port, "1")
    context = ssl.create_default_context(cafile=f"{tmp_path}/data/tls/cert.pem")
    plain = socket.create_connection((info.parsed_addresses()[0], info.port), timeout=30)
    with context.wrap_socket(plain, server_hostname=info.server.rstrip(".")) as secure:
        assert secure.version() == "TLSv1.3"


def test_where_it_cannot_be_announced_it_serves_and_says_why(native, name):
    daemon = native(config=settings(name, interfaces='["nowhere0"]'))
    error = until(lambda: told(daemon)["error"], daemon)
    assert "none of the interfaces nowhere0 (mdns.interfaces) is up" in error
    assert daemon.request("/readyz").status == 200
    daemon.logged("not announced on the LAN: ")


def test_beside_a_program_that_holds_the_port_alone_it_serves_and_says_why(native, name):
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as selfish:
        try:
            selfish.bind(GROUP)
        except OSError as error:
            pytest.skip(f"another program of this machine takes part in Multicast DNS: {error}")
        daemon = native(config=settings(name))
        error = until(lambda: told(daemon)["error"], daemon)
        assert "another program holds UDP port 5353" in error
        assert daemon.request("/readyz").status == 200
    until(lambda: told(daemon)["interfaces"] == ["lo"] and told(daemon)["error"] is None, daemon)


def labels(text):
    """A name on the wire."""
    return b"".join(bytes([len(part)]) + part.encode() for part in text.rstrip(".").split(".")) + b"\0"


def forged(number):
    """A response about a device that is not there, good for 68 years: a browser would keep it."""
    owner, host = labels(f"forged{number}.{LAN}"), labels(f"forged{number}.local")
    record = lambda name, kind, data: name + struct.pack(">HHIH", kind, 0x8001, 0x7FFFFFFF, len(data)) + data  # noqa: E731
    records = [
        record(owner, 33, struct.pack(">HHH", 0, 0, 9) + host),
        record(owner, 16, b"\xc8" + b"x" * 200),
        record(host, 1, number.to_bytes(4, "big")),
    ]
    return struct.pack(">6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def hostile():
    """Datagrams that are no messages, or messages that make no sense."""
    head = lambda flags, *counts: struct.pack(">6H", 0, flags, *counts)  # noqa: E731
    ask = labels(LAN) + struct.pack(">HH", 12, 1)
    yield from (b"", b"\0", b"\xff" * 12, head(0, 65535, 65535, 65535, 65535))
    yield head(0, 1, 0, 0, 0) + b"\xc0\x0c" + b"\0\x0c\0\x01"
    yield head(0, 1, 0, 0, 0) + b"\x01a\xc0\x0c" + b"\0\x0c\0\x01"
    yield head(0, 2, 0, 0, 0) + b"\xc0\x0e\xc0\x0c" + b"\0\x0c\0\x01"
    yield head(0, 1, 0, 0, 0) + b"\x3f" * 60
    yield head(0, 1500, 0, 0, 0) + ask * 300
    yield head(0x8400, 0, 1, 0, 0) + labels(LAN) + struct.pack(">HHIH", 12, 1, 9, 65535)
    yield head(0x8400, 0, 1, 0, 0) + labels(LAN) + struct.pack(">HHIH", 33, 1, 9, 2) + b"\xc0\x0c"
    yield b"\0" * 9000
    yield head(0x8400, 0, 60000, 0, 0) + b"\0" * 30000
    letters = random.Random(5353)
    for _ in range(2000):
        yield head(letters.choice([0, 0x8400]), *(letters.randrange(4) for _ in range(4))) + letters.randbytes(letters.randrange(200))


def resident(daemon):
    """Bytes of the daemon that are in memory."""
    return int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_nothing_that_strangers_send_harms_a_device_or_stays_in_its_memory(native, browser, name):
    daemon = native(config=settings(name))
    until(lambda: browser.info(name), daemon)
    browser.close()  # it would keep what is forged, which is what the device must not do
    with contextlib.closing(group_socket()) as sender:
        def flood(numbers):
            for number in numbers:
                sender.sendto(forged(number), GROUP)
            for datagram in hostile():
                sender.sendto(datagram, GROUP)

        flood(range(2000))
        before = resident(daemon)
        flood(range(2000, 22_000))
    assert resident(daemon) - before < 4 << 20
    with contextlib.closing(Browser()) as later:
        until(lambda: later.info(name), daemon)
    assert told(daemon)["conflicts"] == 0


def test_a_device_whose_name_is_claimed_by_a_stranger_keeps_answering_requests(native, name):
    daemon = native(config=settings(name))
    until(lambda: told(daemon)["interfaces"], daemon)
    data = struct.pack(">HHH", 0, 0, 9) + labels("evil.local")
    record = labels(f"{name}.{LAN}") + struct.pack(">HHIH", 33, 0x8001, 120, len(data)) + data
    response = struct.pack(">6H", 0, 0x8400, 0, 1, 0, 0) + record
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        stranger.bind((LOOPBACK, GROUP[1]))

        def conflicts():
            stranger.sendto(response, GROUP)
            return told(daemon)["conflicts"] >= 2

        until(conflicts, daemon)
    assert daemon.request("/readyz").status == 200
    until(lambda: told(daemon)["interfaces"] == ["lo"], daemon)
    assert told(daemon)["name"].startswith(name)
