"""A real filesystem without room, at every amount of room there can be. `app/slots/tests/faults.rs` fails every single operation; here
files, journal and daemon are the real ones, on a tmpfs in a mount namespace of the daemon's own."""

import os
import shlex
import stat
import subprocess
from pathlib import Path

import helpers
import places
import pytest
from updates.rig import committed, curl, served, slots

IDENTITY = places.ROOT / "tests/models/identity-fp32"
DISK_KIB = 1024


@pytest.fixture
def full(native, office, tmp_path, monkeypatch):
    """A daemon whose slots and state lie on a disk of 1 MiB, and `room(kib)`, which leaves so much of it free."""
    (disk := tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size={DISK_KIB}k,mode=0755 tmpfs {shlex.quote(str(disk))}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace")
    program = tmp_path / "inferd"
    real = shlex.quote(str(helpers.inferd_program()))
    lay = f"mkdir {shlex.quote(str(disk / 'u'))} && cp {shlex.quote(str(office.root))} {shlex.quote(str(disk / 'u/root.imr'))}"
    script = shlex.quote(f'{mount} && {lay} && exec {real} "$@"')
    program.write_text(f'#!/bin/sh\nexec unshare -Urm sh -c {script} sh "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("INFERD_BIN", str(program))
    daemon = native(arguments=["--updates-dir", disk / "u"], config="[updates]\nslot_size_mib = 16\n", models=[IDENTITY])
    seen = Path(f"/proc/{daemon.process.pid}/root{disk}")

    def room(kib):
        (seen / "filler").unlink(missing_ok=True)
        free = os.statvfs(seen)
        take = free.f_bavail * free.f_frsize - (kib << 10)
        if take > 0:
            with open(seen / "filler", "wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, take)

    return daemon, room


def test_a_disk_with_too_little_room_is_told_and_what_serves_serves_on(full, office):
    daemon, room = full
    for n in (1, 2):
        assert curl(daemon, office.made[n])[0] == 200
        committed(daemon, n)
    large = office.bundle(1, model=places.DEFAULT_MODEL, product="large")
    codes = []
    for kib in range(0, (large.stat().st_size >> 10) + 64, 32):
        room(kib)
        status, told = curl(daemon, large)
        codes.append(status)
        if status == 200:
            break
        assert status == 507 and told["code"] == "no-room" and told["retry"] is True and told["verdict"]["gate"] == "disk", told
        assert served(daemon) == "1.0.2"
        assert [s["version"] for s in slots(daemon)["slots"]] in ([1, 2], [2, 1]), "no slot was given up for what has no room"
        assert daemon.request("/commit-ready").status == 200
    assert codes.count(507) >= 8 and codes[-1] == 200, codes
    print(f"{codes.count(507)} times without room")
    # And on a full disk what is decided is decided: the step back needs no room.
    committed(daemon, 1)
    room(0)
    assert daemon.request("/api/v1/rollback", {"reason": "full"}, method="POST").status == 200
    assert served(daemon) == "1.0.2"
