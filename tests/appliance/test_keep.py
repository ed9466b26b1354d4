"""What `scripts/run --keep` tells while the appliance stays up, and the root shell of `scripts/shell`; no QEMU."""

import socket
import subprocess
import threading
from types import SimpleNamespace

import places
import pytest
import qemu
import run
from steps import Failure


class Guest:
    """An appliance that lives through a story: at each look it comes to its next moment, then it ends with this status."""

    def __init__(self, story, status=0):
        self.story, self.events, self.state = iter(story), [], "ready"
        self.url, self.folder = "http://guest", places.ROOT
        self.process = SimpleNamespace(poll=self.poll, returncode=status)
        self.qmp = SimpleNamespace(told=lambda name: [event for event in self.events if event == name])

    def poll(self):
        moment = next(self.story, None)
        if moment is None:
            return self.process.returncode
        events, self.state = moment
        self.events += events
        return None

    def seconds(self):
        return 1.0


@pytest.fixture
def watched(monkeypatch, capsys):
    """Watches a guest through its story; what was said."""
    monkeypatch.setattr(run.time, "sleep", lambda _: None)

    def watch(guest):
        monkeypatch.setattr(qemu, "readiness", lambda _: guest.state)
        run.watch(guest)
        return [line.strip().removeprefix("1.0 s").strip() for line in capsys.readouterr().out.splitlines()]

    return watch


def test_resets_are_told_with_their_cause_and_each_state_until_it_is_ready_again(watched):
    quiet = ([], "ready")
    expired = (["WATCHDOG", "RESET"], "no answer yet")
    restarted = (["RESET"], "no answer yet")
    loading = ([], "loading")
    assert watched(Guest([quiet, expired, loading, loading, quiet, quiet, restarted, quiet])) == [
        "its watchdog has reset it; it starts again",
        "loading",
        "ready again",
        "it was restarted; it starts again",
        "ready again",
        "It has switched itself off.",
    ]


def test_an_emulator_that_fails_is_an_error(watched):
    with pytest.raises(Failure, match="status 3"):
        watched(Guest([([], "ready")], status=3))


def shell(path, *command):
    return subprocess.run(
        [places.ROOT / "scripts/shell", path, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def offered(tmp_path):
    """A socket with a shell of this machine behind it, as QEMU offers one of the appliance."""
    path = tmp_path / "shell.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    subprocess.run(["sh"], stdin=connection, stdout=connection, stderr=subprocess.DEVNULL, check=False)

        threading.Thread(target=serve, daemon=True).start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)


def test_a_command_in_the_appliance_says_what_it_says_and_ends_as_it_ends(offered):
    done = shell(offered, "echo one; echo two; (exit 7)")
    assert (done.returncode, done.stdout) == (7, "one\ntwo\n"), done.stderr


def test_a_shell_that_cannot_be_had_is_a_sentence(offered, tmp_path):
    nowhere = shell(tmp_path / "nothing", "true")
    assert nowhere.returncode == 1 and "no appliance offers a shell at" in nowhere.stderr, nowhere.stderr
    blind = shell(offered)
    assert blind.returncode == 1 and "needs a terminal" in blind.stderr, blind.stderr


def test_one_that_was_never_ready_is_not_ready_again(monkeypatch, capsys):
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    guest = Guest([([], "loading"), ([], "ready"), (["RESET"], "loading"), ([], "ready")])
    monkeypatch.setattr(qemu, "readiness", lambda _: guest.state)
    run.watch(guest, "no answer yet")
    said = [line.split(" s ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert said[:2] == ["loading", "ready"] and "ready again" in said


def test_a_card_is_started_as_it_is_and_keeps_what_it_writes(monkeypatch, tmp_path, capsys):
    started = {}

    class Started:
        url = "http://card"

        def __init__(self, board, image, **options):
            started.update(options, board=board, image=image)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(qemu, "Machine", Started)
    monkeypatch.setattr(run, "watch", lambda machine, told: started.update(told=told))
    board = SimpleNamespace(name="qemu-aarch64")
    file = tmp_path / "card"
    with pytest.raises(Failure, match="there is no such file; `truncate"):
        run.card(board, file, 9000)
    file.write_bytes(b"")
    run.card(board, file, 9000)
    assert (started["image"], started["port"], started["told"]) == (file, 9000, "no answer yet")
    assert started["keep_writes"] and started["restarts"]
    assert "inferd-report.txt" in capsys.readouterr().out


def test_a_card_is_no_image_that_could_be_made_otherwise(monkeypatch, capsys):
    for other in (["--native"], ["--minimal"], ["--model", "x"]):
        monkeypatch.setattr(run.sys, "argv", ["run", "--card", "x", *other])
        with pytest.raises(SystemExit):
            run.arguments()
        assert "--card boots what is on the card" in capsys.readouterr().err
