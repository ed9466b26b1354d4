"""TLS as other people's programs speak it: curl, OpenSSL through Python, tritonclient."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess

import places
import pytest
import qemu
import tritonclient.http
from contract.wire import window
from helpers import freeze, inferd_program, until

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Secure:
    """A daemon with a TLS listener."""

    def __init__(self, native, folder, tls="self_signed = true", server=""):
        self.port = qemu.free_port()
        self.folder = folder
        self.certificate = folder / "data/tls/cert.pem"
        self.config = (
            f'[server]\n{server}\n[updates]\ndata_dir = "{folder}/data"\n[tls]\nlisten = "127.0.0.1:{self.port}"\n{tls}\n'
        )
        self.daemon = native(config=self.config)

    def told(self):
        """What /status says of TLS."""
        return self.daemon.request("/status").json()["tls"]

    def context(self, certificate=None):
        """A client that believes the device's certificate."""
        return ssl.create_default_context(cafile=str(certificate or self.certificate))

    def connect(self, context=None, name="localhost"):
        """A TLS connection."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return (context or self.context()).wrap_socket(plain, server_hostname=name)

    def ask(self, method, path, body=None, context=None, announced=None):
        """One request over TLS: status and body. `announced`: the length of a body that never comes."""
        connection = http.client.HTTPSConnection("localhost", self.port, context=context or self.context(), timeout=30)
        try:
            if announced is None:
                connection.request(method, path, body)
            else:
                connection.putrequest(method, path)
                connection.putheader("Content-Length", str(announced))
                connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def secure(native, tmp_path):
    """Starts daemons with a TLS listener: `secure(tls="...")`."""
    return lambda **options: Secure(native, tmp_path, **options)


def curl(*arguments):
    """curl's exit status, standard output and standard error."""
    done = subprocess.run(["curl", "-sS", "--max-time", "30", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_device_makes_its_own_certificate_and_every_client_can_use_it(secure):
    device = secure()
    url = f"https://localhost:{device.port}"
    assert curl("-k", f"{url}/livez")[0] == 0
    assert curl("--cacert", device.certificate, f"{url}/livez")[0] == 0
    assert curl("--cacert", device.certificate, f"https://127.0.0.1:{device.port}/livez")[0] == 0
    assert curl(f"{url}/livez")[0] == 60, "nobody believes it who was not told to"
    for version in ("1.2", "1.3"):
        ways = ["--tls-max", version, "--tlsv" + version, "--cacert", device.certificate]
        status, answer, why = curl(*ways, "--data-binary", window("0.5"), "-w", "%{http_code}", f"{url}/infer")
        assert status == 0 and answer.endswith("200"), (version, answer, why)
    told = device.told()
    assert told["self_signed"] and told["error"] is None and told["listen"] == [f"127.0.0.1:{device.port}"]
    shown = subprocess.run(
        ["openssl", "x509", "-in", device.certificate, "-noout", "-fingerprint", "-sha256", "-dates"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown.split("=", 1)[1].split("\n")[0].replace(":", "").lower() == told["fingerprint_sha256"]
    assert "notBefore=Jan  1 00:00:00 2020" in shown and "notAfter=Jan  1 00:00:00 2120" in shown
    device.daemon.logged(f"fingerprint_sha256={told['fingerprint_sha256']}")
    key = device.certificate.with_name("key.pem")
    assert key.stat().st_mode & 0o777 == 0o600 and device.certificate.parent.stat().st_mode & 0o777 == 0o700


def test_the_certificate_survives_a_restart(secure, native):
    device = secure()
    first = device.told()["fingerprint_sha256"]
    device.daemon.stop()
    again = native(config=device.config)
    assert again.request("/status").json()["tls"]["fingerprint_sha256"] == first


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("cipher", ["CHACHA20", "AES128"])
def test_every_suite_carries_requests_and_large_bodies(secure, version, cipher):
    device = secure()
    context = device.context()
    context.minimum_version = context.maximum_version = version
    if version == TLS12:
        context.set_ciphers({"CHACHA20": "ECDHE-ECDSA-CHACHA20-POLY1305", "AES128": "ECDHE-ECDSA-AES128-GCM-SHA256"}[cipher])
    context.set_alpn_protocols(["http/1.1"])
    with device.connect(context) as wire:
        assert wire.selected_alpn_protocol() == "http/1.1"
        assert wire.version() == {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}[version]
        if version == TLS12:
            assert cipher in wire.cipher()[0].replace("-", "")
    body = window("0.125") + " " * (3 << 20)
    status, answer = device.ask("POST", "/infer", body, context)
    assert status == 200 and len(json.loads(answer)["latent"]) == 64
    status, answer = device.ask("POST", "/infer", context=context, announced=11 << 20)
    assert status == 413, "refused before a byte of the body"


def test_old_versions_and_other_names_are_refused(secure):
    device = secure()
    for name in ("localhost", "127.0.0.1", socket.gethostname(), f"{socket.gethostname()}.local"):
        device.connect(name=name).close()
    with pytest.raises(ssl.SSLCertVerificationError):
        device.connect(name="elsewhere.lan")
    assert curl("-k", "--tls-max", "1.1", f"https://localhost:{device.port}/livez")[0] != 0


def test_tritonclient_speaks_to_it_over_tls(secure):
    device = secure()
    client = tritonclient.http.InferenceServerClient(
        f"localhost:{device.port}", ssl=True, ssl_context_factory=device.context, insecure=False
    )
    with client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.get_model_repository_index()


def test_the_operators_own_certificate_is_shown_and_replaced_by_sighup(secure, native, tmp_path):
    def make(name, *kind):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-days", "2", "-subj", f"/CN={name}"]
            + ["-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "k.pem", "-out", tmp_path / "c.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        return (tmp_path / "c.pem").read_bytes()

    make("first", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    device = secure(tls=f'cert = "{tmp_path}/c.pem"\nkey = "{tmp_path}/k.pem"')
    first = device.told()
    assert not first["self_signed"]
    assert device.ask("GET", "/livez", context=device.context(tmp_path / "c.pem"))[0] == 200
    with device.connect(device.context(tmp_path / "c.pem")) as kept:
        make("second", "ed25519")
        device.daemon.process.send_signal(signal.SIGHUP)
        until(lambda: device.told()["fingerprint_sha256"] != first["fingerprint_sha256"], "the new certificate is shown")
        assert device.ask("GET", "/livez", context=device.context(tmp_path / "c.pem"))[0] == 200
        kept.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.recv(100).startswith(b"HTTP/1.1 200"), "connections from before go on"
    # One that cannot be used leaves the one before, and is told.
    (tmp_path / "k.pem").write_text("nothing")
    second = device.told()["fingerprint_sha256"]
    device.daemon.process.send_signal(signal.SIGHUP)
    until(lambda: device.told()["error"], "the error is told")
    assert "tls.key" in device.told()["error"] and device.told()["fingerprint_sha256"] == second
    assert device.ask("GET", "/livez", context=device.context(tmp_path / "c.pem"))[0] == 200


def test_a_broken_certificate_is_found_by_check_and_plain_listeners_go_on(secure, tmp_path):
    (tmp_path / "c.pem").write_text("-----BEGIN CERTIFICATE-----\nnothing\n")
    (tmp_path / "k.pem").write_text("")
    device = secure(tls=f'cert = "{tmp_path}/c.pem"\nkey = "{tmp_path}/k.pem"')
    told = device.told()
    assert told["fingerprint_sha256"] is None and "tls." in told["error"]
    device.daemon.logged("no TLS: tls.")
    assert device.daemon.request("/healthz").status == 200
    assert curl("-k", f"https://localhost:{device.port}/livez")[0] != 0
    file = tmp_path / "check.toml"
    file.write_text(device.config)
    done = subprocess.run([inferd_program(), "--check", "--config", file], capture_output=True, text=True)
    assert done.returncode == 2 and "problem: tls." in done.stdout


def test_what_is_no_handshake_costs_nothing(secure):
    device = secure(server="header_timeout_s = 1")
    for garbage in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 300, b"\0" * 70_000, b"\x80\x80"):
        with socket.create_connection(("127.0.0.1", device.port), timeout=30) as wire:
            wire.sendall(garbage)
            try:
                while wire.recv(1000):
                    pass
            except ConnectionResetError:
                pass
    # Half a hello, and then nothing: it ends with the time of a head.
    with socket.create_connection(("127.0.0.1", device.port), timeout=30) as wire:
        wire.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert wire.recv(100) == b""
    failed = device.daemon.request("/metrics").body.decode()
    count = next(line for line in failed.splitlines() if line.startswith("inferd_tls_handshakes_failed_total"))
    assert int(float(count.split()[1])) == 5
    assert device.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize("farewell", [True, False])
def test_a_change_that_was_asked_for_whole_is_made_though_its_client_has_left(secure, farewell):
    device = secure()
    wire, pid = device.connect(), device.daemon.process.pid
    freeze(pid)
    try:
        wire.sendall(b'PUT /api/v1/logging HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\n{"level":"debug"}')
        if farewell:
            wire.settimeout(0.1)
            with pytest.raises(TimeoutError):
                wire.unwrap()
        wire.close()
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: json.loads(device.ask("GET", "/api/v1/logging")[1])["level"] == "debug", device.daemon)


def test_three_hundred_silent_handshakes_keep_nobody_out(secure):
    device = secure()
    silent = [socket.create_connection(("127.0.0.1", device.port), timeout=30) for _ in range(300)]
    try:
        for n, wire in enumerate(silent):
            if n % 3 == 0:
                try:
                    wire.sendall(b"\x16\x03\x01\x02\x00")
                except OSError:
                    pass  # it had to give way already

        def served():
            try:
                return device.ask("GET", "/healthz")[0] == 200 and device.ask("POST", "/infer", window("0.5"))[0] == 200
            except OSError:
                return False

        until(served, "a new client is served over TLS")
        assert device.daemon.request("/healthz").status == 200
    finally:
        for wire in silent:
            wire.close()


def test_inferctl_knows_its_device_by_its_fingerprint_or_its_certificate(secure, inferctl, tmp_path):
    device = secure()
    url, print_ = f"https://localhost:{device.port}", device.told()["fingerprint_sha256"]
    for known in (["--fingerprint", print_], ["--fingerprint", print_.upper()], ["--ca", device.certificate]):
        done = inferctl("status", *known, url=url)
        assert done.returncode == 0, done.stderr
    done = inferctl("infer", places.ROOT / "tests/data/imu_walk.json", "--fingerprint", print_, url=f"https://127.0.0.1:{device.port}")
    assert done.returncode == 0, done.stderr
    nobody = inferctl("status", url=url)
    assert nobody.returncode == 2 and "--fingerprint" in nobody.stderr
    other = inferctl("status", "--fingerprint", "0" * 64, url=url)
    assert other.returncode == 3 and "another certificate" in other.stderr, other.stderr
    plain = inferctl("status", "--fingerprint", print_, url=f"https://127.0.0.1:{device.daemon.port}")
    assert plain.returncode == 3
    bench = inferctl("bench", "--fingerprint", print_, url=url)
    assert bench.returncode == 1 and "plain http" in bench.stderr
    # A large body goes up another way than requests do.
    (tmp_path / "no.imb").write_bytes(b"x" * (1 << 20))
    pushed = inferctl("push", tmp_path / "no.imb", "--fingerprint", print_, url=url)
    assert pushed.returncode == 1, pushed.stderr


def test_a_new_key_and_its_digest_open_the_device(secure, inferctl, native):
    made = json.loads(inferctl("--json", "key", "new").stdout)
    assert inferctl("key", "hash", stdin=made["key"] + "\n").stdout.strip() == made["digest"]
    assert inferctl("key", "hash", stdin="short").returncode == 1
    daemon = native(config=f'[security]\nadmin_keys = ["{made["digest"]}"]\n')
    assert inferctl("rollback", url=daemon.url).stderr.count("401") == 1
    right = inferctl("rollback", "--api-key", made["key"], url=daemon.url)
    assert "401" not in right.stderr and "403" not in right.stderr
