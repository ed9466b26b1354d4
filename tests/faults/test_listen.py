"""Addresses that cannot be bound: they take none of the others off the network, are told, and are served once they can be."""

import json
import os
import shutil
import socket
import subprocess

import pytest

import qemu
from helpers import inferd_program, request, until

ABSENT = "192.0.2.1"  # reserved for documentation: no machine has it


def listens(*addresses):
    """Arguments that name these addresses beside the daemon's own."""
    return [part for address in addresses for part in ("--listen", address)]


@pytest.fixture
def taken():
    """A socket that has a port, and the port."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder, holder.getsockname()[1]


def test_an_address_that_cannot_be_bound_is_told_and_served_once_it_is_free(native, taken):
    holder, port = taken
    daemon = native(arguments=listens(f"127.0.0.1:{port}"))
    sentence = f"server.listen 127.0.0.1:{port} cannot be bound: Address "  # "in use" or "already in use": each C library has its words
    daemon.logged(sentence)
    listen = daemon.request("/status").json()["listen"]
    assert listen["addresses"] == [f"127.0.0.1:{daemon.port}"]
    assert [(u["setting"], u["address"]) for u in listen["unbound"]] == [("server.listen", f"127.0.0.1:{port}")]
    for path in ("/readyz", "/healthz"):
        answer = daemon.request(path)
        assert answer.status == 200, path
        assert [d.startswith(sentence) for d in answer.json()["degraded"]] == [True], path
    holder.close()
    until(lambda: f"127.0.0.1:{port} is served from now on" in daemon.log_text(), "the address to be tried again")
    assert request(f"http://127.0.0.1:{port}/livez").status == 200
    until(lambda: daemon.request("/status").json()["listen"]["unbound"] == [], "no problem any more")
    assert "degraded" not in daemon.request("/readyz").json()


def test_tls_that_cannot_be_bound_takes_no_plain_listener_and_comes_later(native, taken, tmp_path):
    holder, port = taken
    config = f'[tls]\nself_signed = true\nlisten = ["127.0.0.1:{port}"]\n[updates]\ndata_dir = "{tmp_path}/data"\n'
    daemon = native(models=[], ready=False, config=config).wait_listening()
    daemon.logged(f"tls.listen 127.0.0.1:{port} cannot be bound")
    status = daemon.request("/status").json()
    assert "cannot be bound" in status["tls"]["error"]
    assert daemon.request("/readyz").json()["degraded"] == [status["tls"]["error"]]
    holder.close()
    until(lambda: daemon.request("/status").json()["tls"]["listen"] == [f"127.0.0.1:{port}"], "TLS")
    insecure = f"https://127.0.0.1:{port}/livez"
    assert subprocess.run(["curl", "-sfk", insecure], capture_output=True, check=True).stdout


@pytest.mark.parametrize("safe_mode", [False, True])
def test_an_address_that_is_not_there_yet_is_no_reason_to_end(native, safe_mode):
    port = qemu.free_port()
    arguments = listens(f"{ABSENT}:{port}") + (["--safe-mode", "a test"] if safe_mode else [])
    daemon = native(models=[], ready=False, arguments=arguments).wait_listening()
    listen = daemon.request("/status").json()["listen"]
    assert f"{ABSENT}:{port}" in listen["addresses"] and listen["unbound"] == []


def in_a_network_of_its_own(script):
    """Runs a shell script where no other program has a port and `lo` is up."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip") or not shutil.which("setpriv"):
        pytest.skip("needs root, unshare, setpriv and ip")
    command = ["unshare", "--net", "sh", "-ec", f"ip link set lo up\n{script}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_address_that_comes_late_is_served(tmp_path):
    file = tmp_path / "inferd.toml"
    file.write_text(f'[server]\nlisten = ["{ABSENT}:9000"]\n[updates]\nenabled = "off"\n')
    done = in_a_network_of_its_own(
        f"""{inferd_program()} --config {file} 2>{tmp_path}/log & daemon=$!
        until grep -q listening {tmp_path}/log; do kill -0 $daemon; done
        ip address add {ABSENT}/32 dev lo
        curl -sf --max-time 20 http://{ABSENT}:9000/livez
        kill $daemon; wait $daemon"""
    )
    assert done.returncode == 0 and json.loads(done.stdout)["ok"], (done, (tmp_path / "log").read_text())


def test_safe_mode_listens_on_the_default_when_nothing_else_can_be_had(tmp_path):
    file = tmp_path / "inferd.toml"
    key = "an-admins-own-key-of-a-test"
    file.write_text(
        f'[server]\nlisten = ["127.0.0.1:80"]\n[security]\nadmin_keys = ["{key}"]\nopen_reads = false\n'
        f'[updates]\nenabled = "off"\n'
    )
    unprivileged = "setpriv --bounding-set -net_bind_service --inh-caps -all"
    start = f"{unprivileged} {inferd_program()} --config {file}"
    log = tmp_path / "log"
    done = in_a_network_of_its_own(
        f"""echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start || true
        {start} 2>{log}.ended && exit 1
        {start} --check >{log}.check && exit 1
        {start} --safe-mode test 2>{log} & daemon=$!
        until grep -q listening {log}; do kill -0 $daemon; done
        curl -s -o {log}.closed -w '%{{http_code}} ' http://127.0.0.1:9000/status
        curl -sf -H 'X-API-Key: {key}' http://127.0.0.1:9000/status
        kill $daemon; wait $daemon"""
    )
    assert done.returncode == 0, (done, log.read_text())
    assert "server.listen 127.0.0.1:80 cannot be bound: Permission denied" in (tmp_path / "log.ended").read_text()
    assert "problem: server.listen 127.0.0.1:80 cannot be bound: Permission" in (tmp_path / "log.check").read_text()
    code, body = done.stdout.split(" ", 1)
    assert code == "401", "keys are asked for as ever"
    assert json.loads(body)["listen"]["addresses"] == ["0.0.0.0:9000"]
    assert json.loads(body)["listen"]["unbound"][0]["address"] == "127.0.0.1:80"


def test_check_names_an_address_that_comes_later_and_not_one_in_use(tmp_path, taken):
    _, port = taken
    file = tmp_path / "inferd.toml"
    file.write_text("")
    command = [inferd_program(), "--config", file, "--check", *listens(f"{ABSENT}:9000", f"127.0.0.1:{port}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"note: server.listen {ABSENT}:9000 is not on this machine now" in done.stdout
    assert str(port) not in done.stdout and "cannot be bound" not in done.stdout
