"""`inferd provision` in a daemon's directory whose owner has planted links and pipes. Run as root, the owner is somebody else."""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from helpers import inferd_program

# Nobody's, where these tests run as root.
OWNER = 65534 if os.geteuid() == 0 else os.geteuid()


@pytest.fixture
def device():
    """A data partition with the daemon's directory, and a file that is not the daemon's. Not in tmp_path: only its maker gets there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        own = folder / "data/inferd"
        own.mkdir(parents=True, mode=0o700)
        os.chown(own, OWNER, -1)
        victims = folder / "root"
        victims.mkdir()
        (victims / "victim").write_bytes(b"precious")
        (victims / "victim").chmod(0o644)
        yield folder, own, victims / "victim"


def provision(folder, *arguments):
    """What it says. It ends: a pipe is not waited for."""
    command = [inferd_program(), "provision", "--data", folder / "data", "--run", folder / "run", "--keep-hostname", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def untouched(victim):
    """Whether it is as it was, and alone."""
    found = victim.stat()
    return (victim.read_bytes(), stat.S_IMODE(found.st_mode), found.st_uid, os.listdir(victim.parent)) == (
        b"precious",
        0o644,
        os.geteuid(),
        [victim.name],
    ) and stat.S_IMODE(victim.parent.stat().st_mode) == 0o755


def test_the_certificate_belongs_to_the_owner_of_the_directory_and_is_made_once(device):
    folder, own, _ = device
    assert "certificate" not in provision(folder)
    made = [own / "tls", own / "tls/key.pem", own / "tls/cert.pem"]
    assert [path.stat().st_uid for path in made] == [OWNER] * 3
    assert [stat.S_IMODE(path.stat().st_mode) for path in made[:2]] == [0o700, 0o600]
    before = made[2].read_bytes()
    provision(folder)
    assert made[2].read_bytes() == before


@pytest.mark.parametrize("name", ["tls", "tls/cert.pem", "tls/key.pem", "tls/cert.pem.new", "tls/key.pem.new"])
def test_no_link_planted_for_the_certificate_is_followed(device, name):
    folder, own, victim = device
    if name != "tls":
        (own / "tls").mkdir()
        os.chown(own / "tls", OWNER, -1)
    (own / name).symlink_to(victim.parent if name == "tls" else victim)
    provision(folder)
    assert untouched(victim)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "key.pem.new"])
def test_no_pipe_planted_for_the_certificate_is_waited_for(device, name):
    folder, own, _ = device
    (own / "tls").mkdir()
    os.mkfifo(own / "tls" / name)
    for path in (own / "tls", own / "tls" / name):
        os.chown(path, OWNER, -1)
    said = provision(folder)
    assert "took longer" not in said
    assert ("it is no regular file" in said) == (name == "cert.pem"), said


@pytest.mark.parametrize("name", ["state", "lock"])
def test_a_factory_reset_follows_no_link_out_of_the_daemons_directory(device, name):
    folder, own, victim = device
    slots = folder / "slots"
    slots.mkdir()
    for letter in "ab":
        (slots / letter).write_bytes(bytes(4096))
        os.chown(slots / letter, OWNER, -1)
    (own / "state").write_bytes(bytes(8192))
    os.chown(own / "state", OWNER, -1)
    (own / name).unlink(missing_ok=True)
    (own / name).symlink_to(victim)
    (own / "captures").symlink_to(victim.parent)
    (own / "journal").write_text("x")
    provision(folder, "--factory-reset", slots)
    assert untouched(victim)
    assert sorted(set(os.listdir(own)) - {"lock", "state"}) == []
    # What was made belongs to who has to use it.
    assert {path.lstat().st_uid for path in own.iterdir() if not path.is_symlink()} <= {OWNER}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_factory_reset_leaves_nothing_of_roots_in_the_daemons_directory(device):
    folder, own, _ = device
    (own / "state").write_bytes(bytes(8192))
    os.chown(own / "state", OWNER, -1)
    slots = folder / "slots"
    slots.mkdir()
    os.chown(slots, OWNER, -1)
    provision(folder, "--factory-reset", slots)
    assert (own / "lock").stat().st_uid == OWNER
    shutil.rmtree(own)


@pytest.mark.parametrize("kept", [True, False])
def test_the_daemons_part_of_the_configuration_is_read_by_its_group_and_nobody_else(device, kept):
    folder, own, _ = device
    card = folder / "card"
    card.mkdir()
    (card / "inferd.toml").write_text('[security]\napi_key = "a-key-of-this-test-0123456789"\n')
    (folder / "run/daemon").mkdir(parents=True)
    os.chown(folder / "run/daemon", OWNER, OWNER if os.geteuid() == 0 else -1)
    data = ["--data", folder / "data"] if kept else []
    command = [inferd_program(), "provision", *data, "--card", card, "--run", folder / "run", "--keep-hostname"]
    subprocess.run([str(part) for part in command], capture_output=True, timeout=120, check=True)
    found = (folder / "run/boot.toml").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o640, (folder / "run/daemon").stat().st_gid)
