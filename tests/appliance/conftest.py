"""One image per kind and one booted appliance, shared by all tests of this folder.

The board is `$INFERD_TEST_BOARD` (default qemu-aarch64). The image that is booted is made with --dev, so that tests can
look inside; everything else in it is the production image's.
"""

import base64
import binascii
import contextlib
import functools
import gzip
import http.server
import os
import threading
import zlib
from pathlib import Path

import board as boards
import devkeys
import places
import pytest
import qemu
from appliance import device, images, variants
from helpers import request
from office import Office

# Emulation on two busy cores: a boot takes 6 to 30 seconds.
READY_TIMEOUT_S = 240
# This machine, as the appliance sees it.
HOST = "10.0.2.2"


@pytest.fixture(scope="session")
def board():
    """The board's facts."""
    return boards.load(os.environ.get("INFERD_TEST_BOARD", "qemu-aarch64"))


@pytest.fixture(scope="session")
def daemon_for_board(board):
    """The static daemon of the board's architecture."""
    return images.daemon(board)


@pytest.fixture(scope="session")
def make_image(board, tmp_path_factory):
    """Assembles images whose every input is pinned: `make_image(name, dev=True)` gives the file and its facts."""

    def make(name, *, models=(places.DEFAULT_MODEL,), board=board, **options):
        output = tmp_path_factory.mktemp("image") / name
        return output, images.assemble(board, output, models, **options)

    return make


@pytest.fixture(scope="session")
def production_image(make_image):
    """The image as it ships, and the facts about it."""
    return make_image("production.img", squeeze=images.SHIPPED)


@pytest.fixture(scope="session")
def inferctl():
    """The operator's tool, for this machine."""
    return images.inferctl()


@pytest.fixture(scope="session")
def dev_keys(inferctl, tmp_path_factory):
    """A developer's keys, made for this run."""
    keys = devkeys.DevKeys(tmp_path_factory.mktemp("keys") / "dev")
    devkeys.make(keys, inferctl)
    return keys


@pytest.fixture(scope="session")
def office(inferctl, tmp_path_factory):
    """Keys that sign systems, and the root document that grants it."""
    return Office(inferctl, tmp_path_factory.mktemp("keys") / "office")


@pytest.fixture(scope="session")
def dev_image(make_image, dev_keys):
    """The same with a root shell, and with updates by the developer's keys."""
    return make_image("dev.img", dev=True, root=dev_keys.root, api_key=dev_keys.api_key)[0]


@pytest.fixture(scope="session")
def patient_image(make_image, dev_keys, tmp_path_factory):
    """The same again, but that its model's deadline is as long as that of the models it is updated to."""
    model = variants.make(tmp_path_factory.mktemp("factory") / "imu-motion", "1.0.0")
    return make_image("patient.img", models=(model,), dev=True, root=dev_keys.root, api_key=dev_keys.api_key)[0]


@pytest.fixture(scope="session")
def boot(board):
    """Boots images: `with boot(image, dev=True) as machine` is a machine that is ready."""

    def start(file, *, board=board, **options):
        return Booted(board, file, **options)

    return start


class Booted(qemu.Machine):
    """A machine that is ready when the `with` block begins (unless `wait=False`)."""

    def __init__(self, board, file: Path, *, wait=True, **options):
        super().__init__(board, file, **options)
        self.wait = wait

    def __enter__(self):
        super().__enter__()
        if self.wait:
            try:
                self.wait_ready(READY_TIMEOUT_S)
            except BaseException:
                self.power_off()
                raise
        return self

    def sh(self, command, timeout=60):
        """Runs a command as root in the appliance; it must succeed. Returns what it printed."""
        status, output = self.root(command, timeout)
        assert status == 0, f"`{command}` ended with status {status} in the appliance: {output}"
        return output.strip()

    def read(self, path, tries=3):
        """A text file of the appliance that is not empty. Packed, so that it is noticed, and read again, when the console that the shell is on lost
        some of it, as it does with what this machine is too busy to take in time."""
        for left in reversed(range(tries)):
            packed = self.sh(f"test -r {path} && gzip -c {path} | base64")
            try:
                if text := gzip.decompress(base64.b64decode("".join(packed.split()), validate=True)).decode():
                    return text
                raise EOFError("nothing came")
            except (binascii.Error, EOFError, OSError, zlib.error) as error:
                if not left:
                    raise AssertionError(f"{path} did not come whole: {packed!r}") from error

    def bring(self, source, folder):
        """Compiles a program for the appliance and brings it there (images made with --dev); returns where it lies."""
        device.compiled(source, self.board, folder)
        with self.serving(folder) as url:
            # Nothing that can be written to is mounted for programs.
            self.sh("mkdir /run/brought && mount -t tmpfs brought /run/brought")
            self.sh(f"cd /run/brought && wget -q {url}/{source.stem} && chmod 700 {source.stem}")
        return f"/run/brought/{source.stem}"

    @contextlib.contextmanager
    def serving(self, folder):
        """A folder of this machine, at the address that the appliance finds it at."""
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            # Who refuses a file early hangs up in the middle of it.
            server.handle_error = lambda *_: None
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://{HOST}:{server.server_port}"
            server.shutdown()

    def infer(self, window, tries=5):
        """One real inference, asked for as a client should: again when the answer is "not now". An emulated board on a
        busy machine may exceed a deadline that is meant for hardware; that is answered 503, and the host comes back."""
        for _ in range(tries):
            answer = self.request("/infer", window)
            if answer.status != 503:
                break
            self.wait_ready(60)
        assert answer.status == 200, answer.body
        return answer.json()

    def request(self, path, body=None, **options):
        """One HTTP request to the appliance; see helpers.request."""
        return request(f"{self.url}{path}", body, **options)


@pytest.fixture(scope="session")
def appliance(boot, dev_image):
    """The booted appliance."""
    with boot(dev_image, dev=True) as machine:
        yield machine
