"""inferd as a program: arguments, configuration, signals, log."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import places
import pytest
import qemu
from helpers import inferd_program, until

MODELS = places.ROOT / "tests/models"


@pytest.fixture
def inferd(tmp_path):
    """Runs inferd to its end: `inferd("--check", config="TOML text", env={...})`."""

    def run(*arguments, config="", env=None):
        file = tmp_path / "inferd.toml"
        file.write_text(config)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("INFERD_")}
        command = [str(part) for part in (inferd_program(), "--config", file, *arguments)]
        return subprocess.run(command, env={**clean, **(env or {})}, capture_output=True, text=True, timeout=60)

    return run


def test_the_printed_configuration_names_the_source_of_each_value(inferd):
    done = inferd("--print-config", "--listen", "127.0.0.1:1", config="[server]\nthreads = 2\n", env={"LOG_LEVEL": "DEBUG"})
    assert done.returncode == 0, done.stderr
    sources, section = {}, None
    for line in done.stdout.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif " = " in line:
            sources[f"{section}.{line.split(' = ')[0]}"] = line.partition(" # ")[2]
    assert sources["server.listen"] == "argument --listen"
    assert sources["server.threads"].endswith("inferd.toml:2")
    assert sources["logging.level"] == "environment LOG_LEVEL"
    assert sources["server.keep_alive_s"] == sources["tls.listen"] == "default"


def test_check_names_the_models_and_what_is_wrong(inferd, tmp_path):
    good = inferd("--check", "--models", places.DEFAULT_MODEL)
    assert good.returncode == 0, good.stdout
    assert "model imu-motion" in good.stdout
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.toml").write_text("schema = 1\n")
    bad = inferd("--check", "--models", broken)
    assert bad.returncode == 2
    assert "problem: " in bad.stdout and "manifest.toml" in bad.stdout


@pytest.mark.parametrize(
    ("config", "env", "sentence"),
    [
        ("[server]\nthreads = 0\n", {}, "server.threads is 0 (from "),
        ("", {"INFERD_SERVER_LISTEN": "nowhere"}, 'server.listen is "nowhere" (from environment INFERD_SERVER_LISTEN)'),
        ("", {"INFER_MODE": "stub"}, "this program never makes answers up"),
        ("[server\n", {}, "this is not TOML"),
    ],
)
def test_a_configuration_that_is_not_allowed_ends_the_start_with_a_sentence(inferd, config, env, sentence):
    done = inferd(config=config, env=env)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_configuration_file_that_is_named_must_be_there(inferd, tmp_path):
    done = inferd("--config", tmp_path / "absent.toml")
    assert done.returncode == 2


def test_a_port_that_is_taken_ends_the_start_with_a_sentence(inferd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = inferd("--listen", f"127.0.0.1:{port}", "--models", places.DEFAULT_MODEL)
    assert done.returncode == 1
    assert f"server.listen 127.0.0.1:{port} cannot be bound" in done.stderr


def test_names_nobody_knows_are_reported_and_change_nothing(native):
    daemon = native(config="[server]\nthreds = 2\n", env={"INFERD_SERVER_KEEPALIVE_S": "5"})
    warnings = daemon.request("/status").json()["config"]["warnings"]
    assert any("server.threds" in w and "server.threads" in w for w in warnings), warnings
    assert any("INFERD_SERVER_KEEPALIVE_S" in w for w in warnings), warnings
    daemon.logged("server.threds")


def test_a_model_that_cannot_be_loaded_leaves_the_daemon_up_with_the_reason(native):
    daemon = native(models=[MODELS / "refused-int8-conv"], ready=False).wait_listening()
    until(lambda: daemon.request("/status").json()["load_errors"], daemon)
    ready = daemon.request("/readyz")
    assert ready.status == 503
    assert daemon.request("/livez").status == 200
    assert "ConvInteger" in json.dumps(daemon.request("/status").json())


def test_it_listens_on_every_address_it_is_given(native):
    second = qemu.free_port()
    daemon = native(arguments=["--listen", f"127.0.0.1:{second}"])
    with socket.create_connection(("127.0.0.1", second), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 200 ")
    assert daemon.request("/livez").status == 200


def test_sigterm_lets_a_request_in_flight_end_and_exits_with_0(native):
    daemon = native(models=[places.DEFAULT_MODEL, MODELS / "fault-slow"])
    until(lambda: daemon.request("/v2/models/fault-slow/ready").status == 200, daemon)
    slow = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT32", "data": [4000]}]}
    answers = []
    asking = threading.Thread(target=lambda: answers.append(daemon.request("/v2/models/fault-slow/infer", slow)))
    asking.start()

    def in_flight():
        models = daemon.request("/status").json()["models"]
        return answers or any(m["name"] == "fault-slow" and m["queue"]["in_use"] for m in models)

    until(in_flight, daemon)
    status = daemon.stop()
    asking.join()
    assert status == 0, daemon.log_text()
    assert answers[0].status == 200, answers[0].body


def test_a_second_signal_ends_it_at_once(native):
    daemon = native()
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as unfinished:
        # A request whose body never comes keeps the drain waiting.
        unfinished.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        until(lambda: daemon.request("/status").json()["connections"] >= 2, daemon)
        daemon.process.send_signal(signal.SIGTERM)
        until(lambda: "SIGTERM" in daemon.log_text(), daemon)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=30) == 128 + signal.SIGTERM


def test_its_hosts_end_with_it_even_when_it_is_killed(native):
    daemon = native()
    host = daemon.request("/status").json()["models"][0]["host"]["pid"]
    daemon.process.kill()
    daemon.process.wait()

    def gone():
        try:
            with open(f"/proc/{host}/stat", encoding="ascii", errors="replace") as stat:
                return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    until(gone, daemon)


def test_sighup_loads_new_models_and_leaves_the_others_alone(native, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(places.DEFAULT_MODEL, folder / "imu-motion")
    daemon = native(models=[folder])
    host = daemon.request("/status").json()["models"][0]["host"]["pid"]
    shutil.copytree(MODELS / "identity-fp32", folder / "identity-fp32")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.request("/v2/models/identity-fp32/ready").status == 200, daemon)
    models = {model["name"]: model for model in daemon.request("/status").json()["models"]}
    assert models["imu-motion"]["host"]["pid"] == host


def test_a_json_log_is_one_object_per_line(native):
    daemon = native(env={"INFERD_LOGGING_FORMAT": "json"})
    until(lambda: '"ready"' in daemon.log_text(), daemon)
    daemon.stop()
    lines = [json.loads(line) for line in daemon.log_text().splitlines()]
    messages = [line["message"] for line in lines]
    assert messages[0] == "inferd starts" and messages[-1] == "ended"
    ready = next(line for line in lines if line["message"] == "ready")
    assert ready["models"] == 1 and ready["ms"] >= 0


def test_a_log_that_nobody_reads_stops_nobody(tmp_path):
    """Standard error is a pipe that is full: requests are answered all the same."""
    port = qemu.free_port()
    read, write = os.pipe()
    config = tmp_path / "inferd.toml"
    config.write_text("[logging]\nlevel = \"trace\"\n")
    command = [inferd_program(), "--config", config, "--listen", f"127.0.0.1:{port}", "--models", places.DEFAULT_MODEL]
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    daemon = subprocess.Popen([str(part) for part in command], stderr=write)
    os.close(write)
    try:
        end = time.monotonic() + 60
        while qemu.readiness(f"http://127.0.0.1:{port}") != "ready":
            assert time.monotonic() < end and daemon.poll() is None
            time.sleep(0.02)
        daemon.terminate()
        assert daemon.wait(timeout=30) == 0
    finally:
        daemon.kill()
        os.close(read)


def test_under_journald_lines_carry_their_priority_and_no_time(tmp_path):
    log = tmp_path / "journal"
    config = tmp_path / "inferd.toml"
    config.write_text("")
    command = [inferd_program(), "--config", config, "--listen", f"127.0.0.1:{qemu.free_port()}", "--models", tmp_path]
    with open(log, "wb") as stream:
        status = os.fstat(stream.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        daemon = subprocess.Popen([str(part) for part in command], stderr=stream, env=env)
    try:
        end = time.monotonic() + 60
        while "up without a model" not in log.read_text():
            assert time.monotonic() < end and daemon.poll() is None, log.read_text()
            time.sleep(0.02)
        daemon.terminate()
        assert daemon.wait(timeout=30) == 0
    finally:
        daemon.kill()
    lines = log.read_text().splitlines()
    assert lines[0].startswith("<6>inferd: inferd starts"), lines
    assert any(line.startswith("<4>") and "up without a model" in line for line in lines), lines
