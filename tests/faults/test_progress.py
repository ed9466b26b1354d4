"""The watchdog is fed while the daemon gets on with its work, and only then; seen by who feeds it."""

import ctypes
import os
import re
import shutil
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import places
import pytest
from faults.keeper import Keeper
from faults.test_daemon import host_pid
from helpers import freeze, until

MODELS = places.ROOT / "tests/models"
WORK = "/v2/models/fault-slow/infer"


@pytest.fixture
def keeper(tmp_path):
    """Somebody who listens."""
    keeper = Keeper(tmp_path / "keeper")
    yield keeper
    keeper.close()


@pytest.fixture
def calm_keeper(tmp_path):
    """Somebody who waits three times as long: a machine that is busy elsewhere is not to look like a daemon that hangs."""
    keeper = Keeper(tmp_path / "keeper", timeout=4.5)
    yield keeper
    keeper.close()


def units(n):
    return {"inputs": [{"name": "n", "shape": [1], "datatype": "INT32", "data": [n]}]}


def slow_model(folder, deadline_ms):
    """The slow model with one worker, and this long for one inference."""
    shutil.copytree(MODELS / "fault-slow", folder / "slow")
    manifest = folder / "slow/manifest.toml"
    page, replaced = re.subn(r"(?m)^deadline_ms = .*", f"deadline_ms = {deadline_ms}\nworkers = 1", manifest.read_text())
    assert replaced == 1
    manifest.write_text(page)
    return folder / "slow"


def test_ready_is_said_before_models_are_loaded_and_stopping_when_it_ends(native, keeper):
    daemon = native(env=keeper.env)
    keeper.fed(0)
    assert keeper.texts()[0] == "READY=1"
    assert daemon.stop() == 0
    keeper.heard("STOPPING=1")
    after = keeper.texts()
    assert "WATCHDOG=1" not in after[after.index("STOPPING=1"):], "who ends proves nothing any more"


def test_a_keeper_on_an_abstract_socket_is_told(native, tmp_path):
    keeper = Keeper(tmp_path / "keeper", abstract=True)
    native(models=[], ready=False, env=keeper.env)
    keeper.fed(0)
    keeper.close()


def test_a_listener_that_cannot_be_had_is_a_line_in_the_log(native):
    daemon = native(env={"NOTIFY_SOCKET": "nowhere"})
    daemon.logged("nobody is told how this daemon is")


def test_a_stopped_daemon_is_silent_and_goes_on_when_it_goes_on(native, keeper):
    daemon = native(env=keeper.env)
    keeper.fed(0)
    freeze(daemon.process.pid)
    stopped = time.monotonic()
    # Nothing of a process that stands still can speak; what was on its way may be heard a moment later.
    time.sleep(3)
    assert [at for at, _ in keeper.said if at > stopped + 1.5] == []
    daemon.process.send_signal(signal.SIGCONT)
    keeper.fed(stopped)


def test_hosts_that_are_killed_again_and_again_are_supervised_and_the_watchdog_is_fed(native, calm_keeper, walk):
    daemon = native(env=calm_keeper.env, config="[watch]\ninference_budget_s = 6\n")
    begin, ends = time.monotonic(), 0
    # Longer than the budget.
    while time.monotonic() - begin < 9 or ends < 6:
        with suppress(ProcessLookupError):
            os.kill(host_pid(daemon, "imu-motion"), signal.SIGKILL)
            ends += 1
        daemon.request("/infer", walk)
    calm_keeper.fed(begin)
    assert not any("no progress" in text for text in calm_keeper.texts())


def test_engines_that_finish_nothing_starve_the_watchdog_and_say_which(native, calm_keeper, tmp_path):
    config, keeper = "[watch]\ninference_budget_s = 2\n", calm_keeper
    daemon = native(models=[slow_model(tmp_path, 600_000)], env=keeper.env, config=config)
    keeper.fed(0)
    # Minutes of work for the only worker; the client gives up, the engine does not.
    answer = daemon.request(WORK, units(2_000_000_000), headers={"Inference-Deadline-Ms": "100"})
    assert answer.status == 503
    after = keeper.starves("no model has finished an inference or a self-test for", time.monotonic())
    assert "fault-slow" in keeper.heard("STATUS=no progress")[1]
    view = daemon.request("/status").json()["progress"]
    assert view["proved"] is False and view["inference"]["ok"] is False and view["http"]["ok"] is True
    assert 'inferd_progress_ok{proof="inference"} 0' in daemon.request("/metrics").body.decode()
    daemon.logged("the watchdog is not fed: no model has finished")
    os.kill(host_pid(daemon, "fault-slow"), signal.SIGKILL)
    keeper.fed(after)


def test_an_idle_device_proves_its_engines_with_self_tests(native, calm_keeper):
    daemon = native(env=calm_keeper.env, config="[watch]\ninference_budget_s = 6\n")
    begin = time.monotonic()

    def answered():
        return daemon.request("/status").json()["models"][0]["requests"]["success"]

    until(lambda: answered() >= 4, daemon)
    calm_keeper.fed(begin)
    assert not any("no progress" in text for text in calm_keeper.texts())


def test_an_endpoint_that_does_not_answer_starves_the_watchdog(native, keeper):
    daemon = native(env=keeper.env)
    keeper.fed(0)
    # The endpoint has one thread, the first of the process; all others go on.
    with held_still(daemon.process.pid):
        after = keeper.starves("the endpoint has not answered GET /livez for", time.monotonic())
        keeper.starves("no answer within 0.5 s", after)
    keeper.fed(after)


@contextmanager
def held_still(thread):
    """Stops one thread of another process, as a debugger does."""
    seize, interrupt, detach, wait_for_any_thread = 0x4206, 0x4207, 17, 0x4000_0000
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request):
        if libc.ptrace(request, thread, None, None) < 0:
            pytest.skip(f"this user may not stop one thread of a process: {os.strerror(ctypes.get_errno())}")

    ptrace(seize)
    ptrace(interrupt)
    os.waitpid(thread, wait_for_any_thread)
    try:
        yield
    finally:
        ptrace(detach)


def test_silent_clients_do_not_starve_the_watchdog(native, calm_keeper):
    daemon = native(env=calm_keeper.env)
    with ExitStack() as open_sockets:
        for _ in range(300):
            silent = socket.create_connection(("127.0.0.1", daemon.port))
            open_sockets.enter_context(silent)
        begin = time.monotonic()
        calm_keeper.fed(begin)
    assert not any("no progress" in text for text in calm_keeper.texts())


def test_the_proof_takes_no_clients_place_and_is_not_counted(native, keeper):
    """One place, held by a client that pauses: the questions of the proof would drive it out."""
    daemon = native(models=[], ready=False, env=keeper.env, config="[server]\nmax_connections = 1\n")
    daemon.wait_listening()
    with socket.create_connection(("127.0.0.1", daemon.port)) as client:
        def asks():
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            page = b""
            while b"\r\n\r\n" not in page:
                page += client.recv(65536)
            head, _, body = page.partition(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
            while len(body) < length:
                body += client.recv(65536)
            return body.decode()

        def probes(page):
            return re.findall(r'hailo_http_requests_total\{[^}]*/livez[^}]*\} (\d+)', page)

        first = probes(asks())
        keeper.fed(time.monotonic(), times=6)
        second = asks()
        assert probes(second) == first
        assert "inferd_http_connections_evicted_total 0" in second and "inferd_http_connections 1" in second


@pytest.mark.parametrize(("path", "crowd"), [("/infer", 32), ("/metrics", 60)])
def test_full_load_does_not_starve_the_watchdog(native, calm_keeper, walk, path, crowd):
    daemon = native(env=calm_keeper.env)
    body = walk if path == "/infer" else None
    over = threading.Event()

    def load():
        while not over.is_set():
            with suppress(OSError):
                daemon.request(path, body)

    clients = [threading.Thread(target=load) for _ in range(crowd)]
    for client in clients:
        client.start()
    try:
        calm_keeper.fed(time.monotonic())
    finally:
        over.set()
        for client in clients:
            client.join()
    assert not any("no progress" in text for text in calm_keeper.texts())


def test_a_data_directory_that_cannot_be_written_is_an_alarm_and_does_not_starve_the_watchdog(native, calm_keeper, tmp_path):
    keeper = calm_keeper
    (data := tmp_path / "data").mkdir()
    (data / "progress.check").mkdir()
    config = f'[updates]\ndata_dir = "{data}"\n[watch]\nstorage_check_s = 1\n'
    daemon = native(env=keeper.env, config=config)
    keeper.fed(time.monotonic())
    view = daemon.request("/status").json()["progress"]
    assert view["proved"] is True and view["storage"]["ok"] is False
    assert "cannot be written" in view["storage"]["sentence"]

    def said():
        return [line for line in daemon.log_text().splitlines() if "cannot be written" in line and "inferd_watch::progress" in line]

    assert len(until(said, daemon)) == 1, "it is said once, beside the alert"
    (data / "progress.check").rmdir()
    until(lambda: daemon.request("/status").json()["progress"]["storage"]["ok"], daemon)
