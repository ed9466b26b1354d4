"""inferctl and over-the-air updates: what an operator types and sees, from the first key to the way back."""

import contextlib
import hashlib
import http.server
import json
import shutil
import socket
import threading

import places
import pytest
from helpers import until
from updates.rig import IDENTITY, Office


@pytest.fixture(scope="session")
def office(inferctl, tmp_path_factory):
    """The operator's keys and bundles."""
    return Office(inferctl, tmp_path_factory.mktemp("office"))


@pytest.fixture
def device(native, office, tmp_path):
    """Starts a daemon with two empty slots: `device(config="...")`."""

    def start(*, root=True, **options):
        (slots := tmp_path / "slots").mkdir()
        if root:
            shutil.copy(office.root, slots / "root.imr")
        return native(arguments=["--updates-dir", slots], **options)

    return start


def push(inferctl, daemon, file, *options, **more):
    """Runs `inferctl push`."""
    return inferctl("push", file, *options, url=daemon.url, **more)


def slots(inferctl, daemon):
    """`inferctl slots` as JSON."""
    return json.loads(inferctl("--json", "slots", url=daemon.url).stdout)


def test_a_pushed_bundle_passes_every_gate_and_is_committed(inferctl, device, office):
    daemon = device()
    done = push(inferctl, daemon, office.bundle(1, "--label", "1.0.0"), "--wait", "committed")
    assert done.returncode == 0, done.stdout + done.stderr
    gates = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  ok")]
    for gate in ("keys", "role", "floor", "target", "install", "load", "golden", "flip", "commit"):
        assert gate in gates, done.stdout
    assert done.stdout.splitlines()[-1] == "it is committed"
    assert "100 %" in done.stderr
    page = inferctl("slots", url=daemon.url).stdout
    assert "serves demo 1 (1.0.0)" in page and "committed" in page and "oldest versions it still takes: demo 1" in page
    assert daemon.request("/v2/models/identity-fp32/ready").status == 200


def test_the_same_bundle_again_changes_nothing(inferctl, device, office):
    daemon, file = device(), office.bundle(1)
    assert push(inferctl, daemon, file, "--wait", "committed").returncode == 0
    again = push(inferctl, daemon, file)
    assert again.returncode == 0, again.stderr
    assert "nothing was changed" in again.stdout


def test_json_tells_the_outcome_with_its_verdicts(inferctl, device, office):
    daemon = device()
    said = json.loads(push(inferctl, daemon, office.bundle(1), "--json", "--wait", "committed").stdout)
    assert said["outcome"] == "done" and said["verdicts"][-1]["gate"] == "commit"
    refused = push(inferctl, daemon, office.bundle(1, key="stranger"), "--json")
    said = json.loads(refused.stdout)
    assert refused.returncode == 1 and said["outcome"] == "refused"
    assert said["verdicts"][-1]["outcome"] == "refuse"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": "stranger"}, ["no signature is from a key", "inferctl trust"]),
        ({"key": "dev"}, ["does not have role model-release"]),
        ({"key": "dev", "more": ["--role", "model-dev"]}, ["signed for development", "model-release"]),
        ({"more": ["--target", "rpi4"]}, ["rpi4"]),
        ({"more": ["--min-inferd", "99.0.0"]}, ["99.0.0"]),
    ],
    ids=["stranger", "role", "development", "board", "inferd"],
)
def test_what_a_gate_refuses_is_told_in_a_sentence(inferctl, device, office, options, words):
    daemon = device()
    file = office.bundle(1, *options.get("more", []), key=options.get("key", "release"))
    done = push(inferctl, daemon, file)
    assert done.returncode == 1, done.stdout
    for word in words:
        assert word in done.stderr, done.stderr
    assert daemon.request("/v2/models/identity-fp32/ready").status != 200


def test_a_development_bundle_is_taken_where_development_is_accepted_and_slots_says_so(inferctl, device, office):
    daemon = device(env={"INFERD_UPDATES_ALLOW_DEV": "true"})
    assert push(inferctl, daemon, office.bundle(1, "--role", "model-dev", key="dev")).returncode == 0
    assert "never so outside a workshop" in inferctl("slots", url=daemon.url).stdout


def test_a_device_without_a_root_accepts_nothing_and_says_so(inferctl, device, office):
    daemon = device(root=False)
    assert "no root of trust" in inferctl("slots", url=daemon.url).stdout
    done = push(inferctl, daemon, office.bundle(1))
    assert done.returncode == 1 and "root" in done.stderr


def test_a_device_without_updates_says_so(inferctl, daemon, office):
    for command in (["slots"], ["push", office.bundle(1)], ["rollback"], ["trust", office.root]):
        done = inferctl(*command, url=daemon.url)
        assert done.returncode == 1, command
        assert "updates are not configured" in done.stderr, done.stderr


def test_wrong_golden_vectors_never_serve(inferctl, device, office, tmp_path):
    model = shutil.copytree(IDENTITY, tmp_path / "wrong")
    golden = bytearray((model / "golden.safetensors").read_bytes())
    golden[-1] ^= 0x01
    (model / "golden.safetensors").write_bytes(golden)
    manifest = (model / "manifest.toml").read_text()
    before = hashlib.sha256((IDENTITY / "golden.safetensors").read_bytes()).hexdigest()
    (model / "manifest.toml").write_text(manifest.replace(before, hashlib.sha256(golden).hexdigest()))
    daemon = device()
    done = push(inferctl, daemon, office.bundle(1, model=model, product="wrong"))
    assert done.returncode == 1
    assert "golden" in done.stderr and "  NO   golden" in done.stdout, done.stdout + done.stderr


def test_an_older_version_needs_a_permit_for_this_device(inferctl, device, office, tmp_path):
    daemon, old = device(), office.bundle(1)
    assert push(inferctl, daemon, office.bundle(2), "--wait", "committed").returncode == 0
    refused = push(inferctl, daemon, old)
    assert refused.returncode == 1 and "permit" in refused.stderr, refused.stderr
    permit = tmp_path / "permit.imr"
    key = office.at("release.key")
    made = inferctl("permit", "--product", "demo", "--version", 1, "--key", key, "-o", permit, url=daemon.url)
    assert made.returncode == 0 and slots(inferctl, daemon)["device"] in made.stdout
    taken = inferctl("trust", permit, url=daemon.url)
    assert taken.returncode == 0, taken.stderr
    done = push(inferctl, daemon, old, "--wait", "committed")
    assert done.returncode == 0, done.stderr
    assert inferctl("trust", permit, url=daemon.url).returncode == 1


def test_a_rollback_brings_the_older_bundle_back(inferctl, device, office):
    daemon = device()
    nothing = inferctl("rollback", url=daemon.url)
    assert nothing.returncode == 1 and nothing.stderr.startswith("inferctl: "), nothing.stderr
    for version in (1, 2):
        assert push(inferctl, daemon, office.bundle(version), "--wait", "committed").returncode == 0
    done = inferctl("rollback", "--reason", "version 2 misses cats", url=daemon.url)
    assert done.returncode == 0, done.stderr
    assert "serves demo 1" in done.stdout
    assert "misses cats" in json.dumps(slots(inferctl, daemon)["verdicts"])


def test_a_revoked_key_signs_nothing_more(inferctl, device, office, tmp_path):
    daemon, revoked = device(), tmp_path / "revoked.imr"
    command = ["--revoke-key", office.at("release.pub"), "--key", office.at("root.key"), "-o", revoked]
    office.run("root", "revoke", *command)
    assert "revocation list 1" in inferctl("trust", revoked, url=daemon.url).stdout
    done = push(inferctl, daemon, office.bundle(1))
    assert done.returncode == 1 and "was revoked" in done.stderr
    again = inferctl("trust", revoked, url=daemon.url)
    assert again.returncode == 1 and "not newer" in again.stderr, again.stderr


class Cutter:
    """Passes connections on to a daemon. The first upload is cut off after so many bytes of its way up."""

    def __init__(self, port, after):
        self.port, self.after = port, after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self.up, args=(client, server), daemon=True).start()
            threading.Thread(target=self.down, args=(server, client), daemon=True).start()

    def up(self, client, server):
        passed, left = 0, None
        while piece := self.read(client):
            if passed == 0 and piece.startswith(b"PUT ") and self.after is not None:
                left, self.after = self.after, None
            server.sendall(piece if left is None else piece[: max(0, left - passed)])
            passed += len(piece)
            if left is not None and passed >= left:
                for end in (server, client):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                return
        self.half(server)

    def down(self, server, client):
        while piece := self.read(server):
            try:
                client.sendall(piece)
            except OSError:
                return
        self.half(client)

    @staticmethod
    def read(end):
        try:
            return end.recv(1 << 16)
        except OSError:
            return b""

    @staticmethod
    def half(end):
        try:
            end.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_a_cut_upload_goes_on_where_the_device_is(inferctl, device, office):
    daemon = device()
    file = office.bundle(1, model=places.DEFAULT_MODEL, product="cut")
    cutter = Cutter(daemon.port, after=300_000)
    done = inferctl("push", file, "--wait", "committed", url=cutter.url)
    cutter.listener.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on at" in done.stdout and "trying again" in done.stderr, done.stdout + done.stderr
    offset = float(done.stdout.split("going on at ")[1].split(" kB")[0]) * 1000
    assert 64_000 <= offset <= 300_000
    assert slots(inferctl, daemon)["serving"]["product"] == "cut"


def test_a_device_that_is_away_is_given_up_after_the_tries(inferctl, nobody, office):
    done = inferctl("push", office.bundle(1), url=nobody)
    assert done.returncode == 3 and "nothing listens there" in done.stderr


def test_a_device_fetches_a_bundle_by_itself(inferctl, device, office):
    daemon, file = device(), office.bundle(1)
    handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=file.parent)  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"
        done = inferctl("pull", f"{where}/{file.name}", "--wait", "committed", url=daemon.url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "it is committed" in done.stdout
        absent = inferctl("pull", f"{where}/absent.imb", url=daemon.url)
        assert absent.returncode == 1 and "nothing at that address" in absent.stderr, absent.stdout + absent.stderr
        server.shutdown()
    until(lambda: slots(inferctl, daemon)["trial"] is None, daemon)
