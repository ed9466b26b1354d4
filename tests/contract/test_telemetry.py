"""Telemetry: opt-in, lines as the schema describes them, bounded on a medium of any mood, and fetched over HTTP."""

import gzip
import json
import os
import re
import shlex
import signal
import stat
import subprocess
from pathlib import Path

import helpers
import jsonschema
import places
import pytest
from contract.test_probes import check
from contract.wire import ask
from helpers import until

SCHEMA = json.loads((places.ROOT / "app/watch/telemetry.schema.json").read_text())


def config(folder, **settings):
    lines = {"enabled": "true", "dir": f'"{folder}"', "interval_s": 1, "write_every_s": 1, **settings}
    # A machine that is busy with other tests must not look like a device under load.
    return "[monitor]\nshed_at = \"off\"\n[telemetry]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def lines(folder):
    """Every line in the files of a directory, oldest first; each is whole and as the schema describes it."""
    found = []
    for file in sorted(Path(folder).glob("telemetry-*")):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert content.endswith(b"\n")
        for line in content.splitlines():
            jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(line))
            found.append(json.loads(line))
    return found


def fetched(daemon):
    """The same by HTTP."""
    found = []
    for file in daemon.request("/api/v1/telemetry").json()["files"]:
        body = daemon.request(f"/api/v1/telemetry/{file['name']}").body
        found += [json.loads(line) for line in (gzip.decompress(body) if file["name"].endswith(".gz") else body).splitlines()]
    return found


def test_without_being_asked_for_nothing_is_kept(native, tmp_path):
    daemon = native(config=f'[updates]\ndata_dir = "{tmp_path / "data"}"\n')
    answer = ask(daemon, "GET", "/api/v1/telemetry")
    check(daemon.request("/openapi.json").json(), "/api/v1/telemetry", "GET", answer)
    assert answer.json() == {"enabled": False, "files": []}
    assert b"inferd_telemetry" not in daemon.request("/metrics").body
    assert ask(daemon, "GET", "/api/v1/telemetry/telemetry-00000001.ndjson").status == 404
    daemon.stop()
    assert not (tmp_path / "data/telemetry").exists() and not (tmp_path / "data/capture").exists()


def test_lines_are_as_described_and_tell_what_happened(native, tmp_path, walk):
    folder = tmp_path / "telemetry"
    daemon = native(config=config(folder))
    document = daemon.request("/openapi.json").json()
    for _ in range(5):
        assert daemon.request("/infer", walk).status == 200
    host = daemon.request("/status").json()["models"][0]["host"]["pid"]
    os.kill(host, signal.SIGKILL)
    until(lambda: any(line["kind"] == "host-end" for line in fetched(daemon)), daemon)
    until(lambda: sum(m["requests"] for line in fetched(daemon) for m in line.get("models", [])) >= 5, daemon)
    listed = ask(daemon, "GET", "/api/v1/telemetry")
    check(document, "/api/v1/telemetry", "GET", listed)
    name = listed.json()["files"][0]["name"]
    check(document, "/api/v1/telemetry/{file}", "GET", ask(daemon, "GET", f"/api/v1/telemetry/{name}"))
    assert daemon.stop() == 0
    told = lines(folder)
    assert [line["kind"] for line in told][0] == "start" and told[-1]["kind"] == "stop", "the last lines are written at the end"
    assert sum(model["requests"] for line in told for model in line.get("models", [])) == 5
    busy = next(model for line in told for model in line.get("models", []) if model["requests"])
    assert 0 < busy["compute_us"]["p50"] <= busy["compute_us"]["p99"]
    ended = next(line for line in told if line["kind"] == "host-end")
    assert ended["model"] == "imu-motion" and ended["cause"] == "signal"
    assert {"loaded"} <= {line["change"] for line in told if line["kind"] == "model"}
    assert [line["uptime_ms"] for line in told] == sorted(line["uptime_ms"] for line in told)


def test_what_is_no_file_of_telemetry_is_not_given_out(native, tmp_path):
    folder = tmp_path / "telemetry"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "notes.txt").write_text("secret")
    (folder / "telemetry-00000009.ndjson").symlink_to(tmp_path / "secret")
    daemon = native(config=config(folder))
    document = daemon.request("/openapi.json").json()
    for name in ("../secret", "..%2fsecret", "%2e%2e%2fsecret", "notes.txt", "telemetry-00000009.ndjson", "telemetry-00000009.ndjson/", "%00", "x" * 300):
        answer = ask(daemon, "GET", f"/api/v1/telemetry/{name}")
        assert answer.status in (404, 307, 503) and b"secret" not in answer.body.replace(b"file secret", b""), (name, answer)
        if answer.status == 404 and "/" not in name:
            check(document, "/api/v1/telemetry/{file}", "GET", answer)


def test_inferctl_fetches_what_is_not_there_yet(native, inferctl, tmp_path):
    daemon = native(config=config(tmp_path / "telemetry", write_every_s=1))
    until(lambda: daemon.request("/api/v1/telemetry").json()["files"], daemon)
    done = inferctl("telemetry", "pull", tmp_path / "here", url=daemon.url)
    assert done.returncode == 0, done
    assert lines(tmp_path / "here")[0]["kind"] == "start"
    assert "telemetry-00000001.ndjson" in inferctl("telemetry", "list", url=daemon.url).stdout
    off = native(models=[], ready=False).wait_listening()
    refused = inferctl("telemetry", "pull", tmp_path / "there", url=off.url)
    assert refused.returncode == 1 and "does not enable it" in refused.stderr


@pytest.fixture
def small(native, tmp_path, monkeypatch):
    """A daemon whose telemetry lies on a disk of 2 MiB, that disk as the test sees it, and `mount(options)`, which remounts it."""
    (disk := tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=2048k,mode=0755 tmpfs {shlex.quote(str(disk))}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace")
    program = tmp_path / "inferd"
    script = shlex.quote(f'{mount} && exec {shlex.quote(str(helpers.inferd_program()))} "$@"')
    program.write_text(f'#!/bin/sh\nexec unshare -Urm sh -c {script} sh "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("INFERD_BIN", str(program))
    daemon = native(config=config(disk / "t", quota_mib=1, file_kib=64))
    inside = ["nsenter", "-t", str(daemon.process.pid), "-U", "-m", "--preserve-credentials"]

    def remount(options):
        subprocess.run([*inside, "mount", "-o", f"remount,{options}", disk], check=True)

    return daemon, Path(f"/proc/{daemon.process.pid}/root{disk}"), remount


def status(daemon):
    return daemon.request("/api/v1/telemetry").json()["status"]


def test_a_full_disk_costs_telemetry_and_nothing_else(small, walk):
    daemon, disk, _ = small
    until(lambda: status(daemon)["written"] > 0, daemon)
    free = os.statvfs(disk)
    with open(disk / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
    for _ in range(20):
        # A line in a block that is there already still fits.
        assert daemon.request("/infer", walk).status == 200
    until(lambda: status(daemon)["problem"], daemon)
    failed = status(daemon)["failures"]
    assert daemon.request("/infer", walk).status == 200
    until(lambda: status(daemon)["waiting"] > 1000, daemon)
    assert status(daemon)["failures"] == failed, "no write loop: the next attempt is a minute away"
    assert daemon.log_text().count("telemetry cannot be written") == 1
    lines(disk / "t")


def test_a_read_only_disk_costs_telemetry_and_nothing_else(small, walk):
    daemon, disk, remount = small
    until(lambda: status(daemon)["written"] > 0, daemon)
    remount("ro")
    until(lambda: re.search("[Rr]ead-only", status(daemon)["problem"] or ""), daemon)
    assert daemon.request("/infer", walk).status == 200
    assert fetched(daemon), "what is there can still be read"
    lines(disk / "t")
    assert daemon.stop() == 0
