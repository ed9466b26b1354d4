"""`inferd provision` on a laptop, on a device that has lost what was configured, and in a daemon's directory whose owner has planted
links and pipes. Run as root, the owner is somebody else."""

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


# `absent`: what is written through such a link makes a file of root's. Each was seen red where root did it all and followed links.
@pytest.mark.parametrize(
    ("name", "leads_to"),
    [("tls", "victim"), ("tls/cert.pem", "absent"), *((f"tls/{name}", to) for name in ("key.pem", "cert.pem.new", "key.pem.new") for to in ("victim", "absent"))],
)
def test_no_link_planted_for_the_certificate_is_followed(device, name, leads_to):
    folder, own, victim = device
    if name != "tls":
        (own / "tls").mkdir()
        os.chown(own / "tls", OWNER, -1)
    (own / name).symlink_to(victim.parent if name == "tls" else victim.parent / leads_to)
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


@pytest.mark.parametrize(("name", "leads_to"), [("state", "victim"), ("lock", "absent")])
def test_a_factory_reset_follows_no_link_out_of_the_daemons_directory(device, name, leads_to):
    folder, own, victim = device
    slots = folder / "slots"
    slots.mkdir()
    for letter in "ab":
        (slots / letter).write_bytes(bytes(4096))
        os.chown(slots / letter, OWNER, -1)
    (own / "state").write_bytes(bytes(8192))
    os.chown(own / "state", OWNER, -1)
    (own / name).unlink(missing_ok=True)
    (own / name).symlink_to(victim.parent / leads_to)
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


CARD = """\
[device]
hostname = "door-7"
[network.wifi]
ssid = "Büro"
passphrase = "(kept)"
[security]
admin_keys = ["(kept)"]
[models]
dirs = ["/data/models-of-the-device"]
[tls]
cert = "/data/of-the-device.pem"
key = "/data/of-the-device.key"
"""


def inferd(*arguments):
    """How it ends, with what it says. It waits for nothing."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("INFERD_")}
    command = [str(part) for part in (inferd_program(), *arguments)]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8 with a byte order mark"), ("utf-16", "UTF-16 (little endian)"), ("latin-1", "Latin-1 (Windows-1252)")],
)
def test_on_a_laptop_a_card_s_file_is_judged_as_the_device_will(tmp_path, encoding, name):
    file = tmp_path / "inferd.toml"
    file.write_bytes(CARD.replace("\n", "\r\n").encode(encoding))
    done = inferd("provision", "--check", file)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines() == [
        'note: network.wifi.passphrase is "(kept)": for a device that has it, else write the value',
        'note: security.admin_keys is "(kept)": for a device that has it, else write the value',
        f"{file}: a device takes this, read as {name}",
    ]


def test_without_arguments_it_is_no_start_of_a_board(device):
    # As nobody, who may not get at the program in its place: one that began all the same would set the name of this machine.
    program = shutil.copy(inferd_program(), device[0])
    done = subprocess.run([program, "provision"], user=OWNER, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "Usage: inferd provision" in done.stderr, done


def test_a_file_that_the_device_would_refuse_is_refused_with_its_lines_and_nothing_is_waited_for(tmp_path):
    file = tmp_path / "inferd.toml.txt"
    file.write_bytes('[device]\r\nhostnme = "x"\r\n[server]\r\ndocs_enabled = "perhaps"\r\n[tls]\r\ncert = "/a"\r\n'.encode("utf-16"))
    done = inferd("provision", "--check", file)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"problem: {file}: line 2: there is no setting device.hostnme; did you mean hostname?",
        f'problem: {file}: line 4: server.docs_enabled is "perhaps", allowed is true or false.',
    ]
    file.write_text("[tls]\ncert = '/a'\n")
    assert "tls.cert and tls.key belong together: tls.key is not set" in inferd("provision", "--check", file).stdout
    file.write_text("")
    assert "note: on the boot partition it must be called inferd.toml" in inferd("provision", "--check", file).stdout
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in ((pipe, "it is a pipe or a device, not a file"), (tmp_path, "it is a folder, not a file"), (tmp_path / "no", "there is no such file")):
        done = inferd("provision", "--check", path)
        assert done.returncode == 2 and why in done.stdout, done
    for path, why in ((pipe, "it is a pipe or a device, not a file"), (tmp_path, "it is a folder, not a file")):
        done = inferd("--check", "--config", path)
        assert done.returncode == 2 and why in done.stderr, done


def test_who_asks_the_daemon_about_a_card_s_file_is_told_what_judges_it(tmp_path):
    file = tmp_path / "inferd.toml"
    for content in (CARD.encode(), "# Büro\n".encode("latin-1")):
        file.write_bytes(content)
        done = inferd("--check", "--config", file)
        assert done.returncode == 2
        assert f"`inferd provision --check {file}` judges a file for a card" in done.stdout + done.stderr


def doors(folder):
    """Which doors are open without a key by the configuration that a start has left; none was left: by the defaults."""
    left = folder / "run/boot.toml"
    printed = inferd("--print-config", *(["--config", left] if left.exists() else [])).stdout.splitlines()
    return [line.split(" = ")[1].split()[0] == "true" for key in ("open_reads", "open_inference") for line in printed if line.startswith(key)]


def test_what_was_configured_and_cannot_be_had_shuts_the_doors_until_a_factory_reset(device):
    folder, _, _ = device
    card = folder / "card"
    card.mkdir()
    arguments = ["--card", card, "--run", folder / "run", "--keep-hostname"]
    inferd("provision", *arguments, "--data", folder / "data")
    assert doors(folder) == [True, True]
    (card / "inferd.toml").write_text("[security]\nopen_reads = false\n")
    inferd("provision", *arguments, "--data", folder / "data")
    assert doors(folder) == [False, True]
    # Without the file, and once without the data partition.
    (card / "inferd.toml").unlink()
    for data, open_doors in (["--data", folder / "data"], [False, True]), ([], [False, False]), (["--data", folder / "data"], [False, True]):
        done = inferd("provision", *arguments, *data)
        assert doors(folder) == open_doors
        assert ("CLOSED" in done.stdout) == (data == []), done.stdout
        assert (b"The device runs CLOSED" in (card / "inferd-report.txt").read_bytes()) == (data == [])
    (folder / "data/provision/record").unlink()
    inferd("provision", *arguments, "--data", folder / "data")
    assert doors(folder) == [False, False]
    slots = folder / "slots"
    slots.mkdir()
    inferd("provision", "--data", folder / "data", "--factory-reset", slots)
    shutil.rmtree(folder / "run")
    inferd("provision", *arguments, "--data", folder / "data")
    assert doors(folder) == [True, True]


@pytest.mark.parametrize(
    "file",
    [
        '[security]\nopen_reads = false\nopen_inference = false\nadmin_keys = ["{key}"]\n[device]\nhostnme = "a"\n',
        '[device\nhostname = "a"\n[security]\nopen_reads = false\nadmin_keys = ["{key}"]\n',
        '[secruity]\nopen_reads = false\nadmin_keys = ["{key}"]\n',
    ],
)
def test_a_first_file_that_shuts_doors_and_has_a_mistake_opens_none(device, file):
    folder, _, _ = device
    card = folder / "card"
    card.mkdir()
    key = inferd_key()
    (card / "inferd.toml").write_text(file.format(key=key))
    where = ["--card", card, "--data", folder / "data", "--run", folder / "run", "--keep-hostname"]
    for _ in range(2):
        said = inferd("provision", *where).stdout
        assert "CLOSED: inferd.toml is refused" in said and doors(folder) == [False, False], said
        report = (card / "inferd-report.txt").read_text()
        assert "Mend inferd.toml, or take it off this partition for the defaults." in report and key not in report + said
        assert (folder / "run/closed").exists()
    # Mended it does as it says; taken away instead, there was nothing.
    mended = f'[security]\nopen_reads = false\nadmin_keys = ["{key}"]\n'
    (card / "inferd.toml").unlink()
    (folder / "run/boot.toml").unlink()
    inferd("provision", *where)
    assert doors(folder) == [True, True] and not (folder / "run/closed").exists()
    (card / "inferd.toml").write_text(mended)
    inferd("provision", *where)
    assert doors(folder) == [False, True] and key in (folder / "run/boot.toml").read_text()


def inferd_key():
    """A key as `inferctl key new` draws one."""
    return os.urandom(24).hex()


SECRETS = {
    "provision/record": '{"text": "SECRET"}',
    "inferd.toml": "# SECRET",
    "identity/id": "SECRET",
    "identity/ssh/dropbear": "SECRET" * 40_000,
    "inferd/tls/key.pem": "SECRET",
    "inferd/trust/1": "SECRET",
    "inferd/capture/a.safetensors": "SECRET",
    "keeper/history.jsonl": "SECRET",
    "keeper/system.json": "SECRET",
    "keeper/before.json": "SECRET",
    "lost+found/#12": "SECRET",
}


@pytest.fixture
def lived(device):
    """A data partition with all that a device comes to have, two slots, and second names by which a test sees what becomes of the bytes."""
    folder, _, _ = device
    data, slots, names = folder / "data", folder / "slots", folder / "names"
    slots.mkdir()
    names.mkdir()
    for letter in "ab":
        (slots / letter).write_bytes(b"bundle" * 2000)
    for number, (name, content) in enumerate(SECRETS.items()):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.link(path, names / str(number))
    for path in (data / "inferd").rglob("*"):
        os.chown(path, OWNER, -1)
    (data / ".growing").touch()
    (data / "keeper/intent").write_text("why")
    return folder, data, slots


def forget(folder, slots):
    """One start's part of a factory reset."""
    (folder / "run").mkdir(exist_ok=True)
    return inferd("provision", "--data", folder / "data", "--run", folder / "run", "--factory-reset", slots)


def test_a_reset_of_everything_leaves_nothing_and_overwrites_what_it_takes_away(lived):
    folder, data, slots = lived
    victim = folder / "root/victim"
    (data / "inferd/capture/link").symlink_to(victim)
    (data / "inferd/folder").symlink_to(victim.parent)
    os.mkfifo(data / "inferd/pipe")
    (data / "keeper/factory-reset").write_text("everything\n")
    done = forget(folder, slots)
    assert done.returncode == 0 and "factory reset: forgetting everything" in done.stdout, done
    left = {str(path.relative_to(data)) for path in data.rglob("*")}
    assert left == {".growing", "keeper", "keeper/intent", "lost+found", "provision", "provision/record"}
    assert (data / "provision/record").read_text() == "null\n", "that nothing is configured is known"
    for number, (name, content) in enumerate(SECRETS.items()):
        assert (folder / "names" / str(number)).read_bytes() == bytes(len(content)), name
    for letter in "ab":
        assert (slots / letter).read_bytes()[:4096] == bytes(4096)
    assert untouched(victim)


def test_a_reset_of_what_was_configured_overwrites_that_and_leaves_the_rest(lived):
    folder, data, slots = lived
    assert forget(folder, slots).returncode == 0
    for number, (name, content) in enumerate(SECRETS.items()):
        bytes_of = (folder / "names" / str(number)).read_bytes()
        assert (bytes_of == bytes(len(content))) == (name in ("provision/record", "inferd.toml")), name
    assert (data / "identity/id").exists() and (data / "keeper/history.jsonl").exists()


def test_a_reset_that_fails_is_told_and_tried_again_at_three_starts_and_then_waits_for_a_new_order(lived):
    folder, data, slots = lived
    mark = data / "keeper/factory-reset"
    card = folder / "card"
    card.mkdir()
    # What nobody can overwrite: a folder has its place.
    (slots / "b").unlink()
    (slots / "b").mkdir()
    mark.write_text("everything\n")

    def report():
        inferd("provision", "--card", card, "--data", data, "--run", folder / "run", "--keep-hostname")
        return (card / "inferd-report.txt").read_text()

    for start, mark_left, told in (
        (1, "everything 1\n", "The next start goes on with it."),
        (2, "everything 2\n", "The next start goes on with it."),
        (3, "everything 3\n", "NOT everything was forgotten: the model slot b"),
        (4, "everything 3\n", "NOT everything was forgotten in 3 starts, and it is not tried again"),
    ):
        done = forget(folder, slots)
        assert (done.returncode, mark.read_text()) == (1, mark_left), (start, done.stdout)
        assert ("forgetting everything" in done.stdout) == (start < 4), done.stdout
        assert told in done.stdout and told in report() and "NOTE: factory reset" in report(), report()
        # What could be forgotten is.
        assert not (data / "keeper/history.jsonl").exists() and (slots / "a").read_bytes()[:4096] == bytes(4096)
    (slots / "b").rmdir()
    (slots / "b").write_bytes(b"bundle")
    mark.write_text("everything\n")
    (folder / "run/unforgotten").unlink()
    assert forget(folder, slots).returncode == 0 and not mark.exists()
    assert "factory reset" not in report().partition("What to do next")[0]


def test_without_a_data_partition_nobody_is_told_that_a_factory_reset_helps(device):
    folder, _, _ = device
    card = folder / "card"
    card.mkdir()
    (card / "factory-reset").touch()
    done = inferd("provision", "--card", card, "--run", folder / "run", "--keep-hostname")
    report = (card / "inferd-report.txt").read_text()
    assert "NOTE: no factory reset: there is no data partition at this start" in report and "no factory reset" in done.stdout
    assert "called factory-reset" not in report and "e2fsck" in report.partition("What to do next")[2]


def test_an_interface_that_is_not_there_is_told(device):
    folder, _, _ = device
    card = folder / "card"
    card.mkdir()
    (card / "inferd.toml").write_text("[network.lan]\naddress = '10.1.2.3/24'\n")
    said = provision(folder, "--card", card)
    here = ", ".join(sorted(set(os.listdir("/sys/class/net")) - {"lo"})) or "none"
    for told in (said, (card / "inferd-report.txt").read_text()):
        assert f"[network.lan] waits for an interface of that name; at this start there were: {here}." in told, told


def test_a_file_of_the_device_that_goes_before_the_card_s_is_told_in_the_report(device):
    folder, _, _ = device
    card = folder / "card"
    card.mkdir()
    (card / "inferd.toml").write_text("[tls]\nself_signed = true\n")
    provision(folder, "--card", card)
    (folder / "run/overruled").write_text("/data/inferd.toml\n")
    provision(folder, "--card", card, "--report")
    report = (card / "inferd-report.txt").read_text()
    assert "inferd.toml was taken over, read as UTF-8. The daemon does NOT go by it." in report
    assert "The daemon goes by /data/inferd.toml on the device" in report and "is in use" not in report


def test_a_folder_and_a_file_of_nearly_the_right_name_are_told_in_the_report(device):
    folder, _, _ = device
    card = folder / "card"
    (card / "inferd.toml").mkdir(parents=True)
    (card / "inferd.toml.txt").write_text("")
    done = inferd("provision", "--card", card, "--data", folder / "data", "--run", folder / "run", "--keep-hostname")
    report = (card / "inferd-report.txt").read_text()
    assert "inferd.toml was NOT taken, it cannot be read: it is a folder, not a file." in report
    assert 'NOTE: "inferd.toml.txt" is passed over' in report
    assert "/boot/inferd.toml is not used: it is a folder" in done.stdout and '"inferd.toml.txt" is passed over' in done.stdout


def test_what_the_daemon_does_not_start_with_is_not_in_use_in_the_report(device):
    folder, _, _ = device
    card = folder / "card"
    card.mkdir(exist_ok=True)
    (card / "inferd.toml").write_text("[tls]\nself_signed = true\n")
    where = ["--card", card, "--data", folder / "data", "--run", folder / "run", "--keep-hostname"]
    report = lambda: (card / "inferd-report.txt").read_text()  # noqa: E731
    inferd("provision", *where)
    assert "inferd.toml is in use." in report() and "NOT" not in report()
    (folder / "run/refused").write_text("problem: the port is taken\n")
    (folder / "run/boot.toml").unlink()
    for more in (["--report"], ["--address", "192.168.1.7"]):
        inferd("provision", *where, *more)
        said = report()
        assert "inferd.toml was taken over, read as UTF-8, and is NOT in use." in said and "inferd.toml is in use" not in said
        assert "The daemon does not start with it: problem: the port is taken" in said and "Mend inferd.toml" in said
    assert not (folder / "run/boot.toml").exists(), "nothing else is done again"
