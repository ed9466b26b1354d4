"""`inferd keeper` on this machine, with a daemon that does as it is told: no watchdog, and nobody's board is restarted."""

import contextlib
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from helpers import inferd_program, somebody, until

# Says READY and WATCHDOG as the daemon does, and takes orders: one line of Python each.
DAEMON = textwrap.dedent(
    """\
    import json, os, select, signal, socket, sys, time
    FOLDER = "@FOLDER@"
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    def notify(text):
        told.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
    def ask(question):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
            keeper.connect(os.environ["INFERD_KEEPER"])
            keeper.send(json.dumps(question).encode())
            return json.loads(keeper.recv(4096))
    def end(*_):
        open(f"{FOLDER}/bye", "a").close()
        notify("STOPPING=1")
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = f"{FOLDER}/orders"
    if os.path.exists(path):
        os.unlink(path)
    orders.bind(path)
    with open(f"{FOLDER}/starts", "a") as starts:
        print(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:], "usec": os.environ["WATCHDOG_USEC"]}), file=starts)
    print("hello", flush=True)
    notify("READY=1")
    proves = True
    while True:
        if proves:
            notify("WATCHDOG=1")
        if select.select([orders], [], [], 0.2)[0]:
            exec(orders.recv(65536).decode())
    """
)


class Keeper:
    """A keeper and the folder of everything it touches."""

    def __init__(self, folder, *, progress_s=4, device="", environment=None, arguments=(), python=sys.executable):
        self.folder = folder
        program = folder / "daemon"
        program.write_text(f"#!{python}\n" + DAEMON.replace("@FOLDER@", str(folder)))
        program.chmod(0o755)
        restart = folder / "restart"
        restart.write_text(f'#!/bin/sh\necho "$*" >>{folder}/restarts\n')
        restart.chmod(0o755)
        (folder / "inferd.toml").write_text(f'[watchdog]\ndevice = "{device}"\nprogress_s = {progress_s}\n')
        self.command = [inferd_program(), "keeper", "--config", folder / "inferd.toml", "--run", folder / "run"]
        self.command += ["--data", folder / "data", "--stderr", "--restart-with", restart, "--program", program]
        self.command += ["--pstore", folder / "pstore", *arguments]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("INFERD_", "NOTIFY", "WATCHDOG"))}
        self.environment.update(environment or {})
        self.process = None
        self.start()

    def start(self):
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([str(part) for part in self.command], env=self.environment, stderr=log)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def log_text(self):
        return (self.folder / "log").read_text()

    def starts(self):
        file = self.folder / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def started(self, count):
        return until(lambda: len(self.starts()) >= count and self.starts()[count - 1], self)

    def order(self, line):
        """Has the daemon do something."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as orders:
            until(lambda: orders.connect_ex(str(self.folder / "orders")) == 0, self)
            orders.send(line.encode())

    def ask(self, question):
        """Has the daemon ask for something; the answer."""
        answer = self.folder / "answer"
        answer.unlink(missing_ok=True)
        self.order(f"a = json.dumps(ask({question!r})); open({str(answer)!r} + '~', 'w').write(a); os.rename({str(answer)!r} + '~', {str(answer)!r})")
        return json.loads(until(lambda: answer.exists() and answer.read_text(), self))

    def state(self):
        return json.loads((self.folder / "run/state.json").read_text())

    def history(self):
        return [json.loads(line)["entry"] for line in (self.folder / "data/history.jsonl").read_text().splitlines()]

    def kinds(self):
        return [entry["kind"] for entry in self.history()]


@pytest.fixture
def keeper(tmp_path):
    """Starts keepers; each is stopped when the test ends."""
    begun = []

    def begin(**options):
        begun.append(Keeper(tmp_path, **options))
        begun[-1].started(1)
        return begun[-1]

    yield begin
    for one in begun:
        one.stop()


def test_the_daemon_is_started_with_what_it_needs_and_ended_with_the_keeper(keeper):
    one = keeper()
    start = one.started(1)
    assert start["arguments"] == ["--config", str(one.folder / "inferd.toml")] and start["usec"] == "4000000"
    state = one.state()
    # Who is heard at root's other doors.
    daemon = one.folder / "run/daemon"
    until(lambda: daemon.exists() and daemon.read_text() == f"{start['pid']}\n", "the keeper says which process is the daemon")
    assert (one.folder / "run/pid").read_text() == f"{one.process.pid}\n", "the shell's `read` wants a whole line"
    assert (state["boot"], state["starts"], state["safe_mode"], state["lasting"]) == (1, 1, None, True)
    one.stop()
    assert one.process.returncode == 0 and (one.folder / "bye").exists()
    assert one.kinds() == ["boot"], "an end that was asked for is none to be told"
    assert json.loads((one.folder / "data/intent").read_text())["boot_id"]


def test_three_ends_are_safe_mode_and_leaving_it_is_a_start_without(keeper):
    one = keeper()
    for count in (1, 2, 3):
        one.started(count)
        one.order(f"print('dying of {count}', flush=True); sys.exit(3)")
    safe = one.started(4)["arguments"]
    assert safe[-2] == "--safe-mode" and safe[-1] == one.state()["safe_mode"]
    until(lambda: one.kinds()[1:] == ["daemon-end"] * 3 + ["safe-mode"], one)
    assert one.history()[3]["words"] == ["hello", "dying of 3"]
    one.order("ask({'ask': 'leave-safe-mode', 'why': 'a bundle serves'})")
    assert "--safe-mode" not in one.started(5)["arguments"]
    assert one.state()["safe_mode"] is None
    assert one.ask({"ask": "leave-safe-mode", "why": "again"})["answer"] == "refused"


def test_a_daemon_that_ends_again_and_again_does_not_fill_the_history(keeper):
    one = keeper()
    for count in range(1, 18):
        one.started(count)
        # Healthy: it is started again after half a second, and is in no safe mode.
        one.order("notify('X_INFERD_HEALTHY=1'); sys.exit(3)")
    one.started(18)
    ends = [entry for entry in one.history() if entry["kind"] == "daemon-end"]
    assert [entry["detail"]["start"] for entry in ends] == [1, 2, 3, 4, 5, 6, 7, 8, 16]
    assert ends[-1]["sentence"].endswith("; 7 ends before this one are not listed"), ends[-1]
    assert one.log_text().count("it is started again in") == 17


def test_without_a_watchdog_a_daemon_that_hangs_is_killed_and_started_again(keeper):
    one = keeper()
    one.order("proves = False")
    one.started(2)
    assert "proved no progress for 4 s; there is no watchdog, so it is killed" in one.log_text()
    assert one.history()[-1]["detail"]["signal"] == signal.SIGKILL


def test_another_process_of_the_same_user_proves_nothing(keeper):
    one = keeper()
    one.order("proves = False")
    # A child of the daemon goes on proving, as an engine host could.
    one.order("os.fork() or [(notify('WATCHDOG=1'), time.sleep(0.2)) for _ in range(100)] and os._exit(0)")
    one.started(2)
    assert "proved no progress" in one.log_text()


# This Python may lie where nobody else gets to.
@pytest.mark.skipif(os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="only root can be somebody else")
def test_only_the_daemon_and_root_are_heard_and_nobody_outside_its_group_gets_that_far():
    user = pwd.getpwnam("nobody")
    # A folder that the daemon can write to.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        one = Keeper(Path(folder), arguments=["--user", user.pw_name], python="/usr/bin/python3")
        try:
            daemon = one.started(1)["pid"]
            assert Path(f"/proc/{daemon}").stat().st_uid == user.pw_uid
            for name in ("ask", "notify"):
                found = (one.folder / "run" / name).stat()
                assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, user.pw_gid), name

            def said_to(uid, gid):
                with somebody(uid, gid), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
                    asker.connect(str(one.folder / "run/ask"))
                    # Who is not heard may be told so before it has asked.
                    with contextlib.suppress(BrokenPipeError):
                        asker.send(json.dumps({"ask": "leave-safe-mode", "why": "a test"}).encode())
                    return json.loads(asker.recv(4096))["why"]

            not_heard = "only the daemon and root are heard"
            assert one.ask({"ask": "leave-safe-mode", "why": "a test"})["why"] != not_heard
            assert said_to(0, 0) != not_heard
            assert said_to(user.pw_uid, user.pw_gid) == not_heard, "another process of its user: an engine host"
            assert said_to(user.pw_uid + 1, user.pw_gid) == not_heard, "somebody of its group"
            for uid, gid in ((user.pw_uid + 1, user.pw_gid + 1), (user.pw_uid - 1, 1)):
                with pytest.raises(PermissionError):
                    said_to(uid, gid)
        finally:
            one.stop()


def test_a_keeper_that_is_killed_takes_the_daemon_along(keeper):
    one = keeper()
    daemon = one.started(1)["pid"]
    one.process.kill()
    one.process.wait()
    until(lambda: not Path(f"/proc/{daemon}").exists(), one)
    assert (one.folder / "bye").exists(), "it was not asked to end"
    one.start()
    one.started(2)
    until(lambda: one.kinds() == ["boot", "keeper"], one)
    assert one.state()["boot"] == 1, "the same boot was counted twice"


def test_a_restart_of_the_board_ends_the_daemon_first_and_leaves_its_mark(keeper):
    one = keeper()
    one.order("ask({'ask': 'reboot', 'why': 'a test'})")
    until(lambda: (one.folder / "restarts").exists(), one)
    assert (one.folder / "restarts").read_text() == "reboot\n"
    assert (one.folder / "bye").exists() and one.history()[-1]["kind"] == "request"
    assert json.loads((one.folder / "data/intent").read_text())["why"] == "a test"
    assert len(one.starts()) == 1


def test_a_restart_says_to_the_firmware_what_it_knows_and_nothing_else(keeper):
    one = keeper()
    for argument in ("0 tryboot; 1", "tryboot", "3", "", "0 tryboot" * 300, 3, ["0 tryboot"]):
        answer = one.ask({"ask": "reboot", "why": "a test", "argument": argument})
        assert answer["answer"] == "refused", argument
    assert not (one.folder / "restarts").exists() and len(one.starts()) == 1
    one.order("ask({'ask': 'reboot', 'why': 'a test', 'argument': '0 tryboot'})")
    until(lambda: (one.folder / "restarts").exists() and (one.folder / "restarts").read_text() == "reboot 0 tryboot\n", one)
    assert (one.folder / "bye").exists(), "the daemon ends first"


def test_only_init_restarts_the_board_when_everything_has_ended():
    done = subprocess.run([inferd_program(), "restart"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "only init restarts the board so" in done.stderr


def test_a_factory_reset_is_marked_for_the_next_start(keeper):
    one = keeper()
    one.order("ask({'ask': 'factory-reset', 'why': 'sold'})")
    until(lambda: (one.folder / "restarts").exists(), one)
    assert (one.folder / "data/factory-reset").read_text() == "1\n"


def test_a_factory_reset_of_everything_is_marked_as_such(keeper):
    one = keeper()
    one.order("ask({'ask': 'factory-reset', 'why': 'sold', 'everything': True})")
    until(lambda: (one.folder / "restarts").exists(), one)
    assert (one.folder / "data/factory-reset").read_text() == "everything\n"


def test_what_only_dev_images_allow_and_what_is_no_accelerator_is_refused(keeper):
    one = keeper()
    for question in (
        {"ask": "watchdog-test", "what": "panic"},
        {"ask": "rebind", "device": "../../../etc", "driver": "x"},
        {"ask": "rescan", "device": "0000:00:00.0"},
        {"ask": "sing"},
    ):
        assert one.ask(question)["answer"] == "refused", question


def test_a_medium_that_takes_nothing_is_told_and_the_daemon_runs(keeper, tmp_path):
    (tmp_path / "data").write_text("a file where the directory should be")
    one = keeper()
    assert (one.state()["lasting"], one.state()["boot"]) == (False, 0)
    assert one.state()["reset"]["reason"] == "unknown"


def test_a_configuration_that_cannot_be_used_does_not_end_the_keeper(keeper, tmp_path):
    one = keeper()
    one.stop()
    (tmp_path / "inferd.toml").write_text("[watchdog]\ntimeout_s = 'soon'\n")
    one.start()
    one.started(2)
    assert any("the watchdog has its defaults" in remark for remark in one.state()["remarks"])


def test_what_the_daemon_puts_into_the_journal_itself_the_keeper_only_keeps(keeper, tmp_path):
    (tmp_path / "log").touch()
    status = (tmp_path / "log").stat()
    one = keeper(environment={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    one.order("print(os.environ['INFERD_KEEPER_LOG'], '\\x06<6>own line\\n\\x06<4>the last\\nlibc aborts', sep='\\n'); os._exit(1)")
    one.started(2)
    words = ["hello", "journal", "libc aborts", "hello"]
    until(lambda: [line for line in one.log_text().splitlines() if "keeper:" not in line] == words, one)
    end = next(entry for entry in one.history() if entry["kind"] == "daemon-end")
    assert end["words"] == ["hello", "journal", "own line", "the last", "libc aborts"]


def test_under_systemd_it_feeds_systemd_and_stops_when_the_daemon_hangs(keeper, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "systemd"))
        systemd.settimeout(30)
        one = keeper(environment={"NOTIFY_SOCKET": str(tmp_path / "systemd"), "WATCHDOG_USEC": "3000000"})
        heard = set()
        while heard != {b"READY=1", b"WATCHDOG=1"}:
            heard.add(systemd.recv(4096))
        one.order("proves = False")
        until(lambda: "is fed no more" in one.log_text(), one)
        systemd.settimeout(3)
        with pytest.raises(TimeoutError):
            for _ in range(100):
                systemd.recv(4096)
        assert one.history()[-1]["kind"] == "let-go" and one.history()[-1]["words"] == ["hello"]
        assert len(one.starts()) == 1, "a daemon that hangs is left as it is"
        one.process.kill()


def test_while_it_waits_for_the_medium_at_its_end_it_feeds_and_its_last_word_is_food(keeper, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "systemd"))
        systemd.settimeout(30)

        def waiting():
            """What was said and not yet heard."""
            said = []
            systemd.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    said.append(systemd.recv(4096))
            systemd.settimeout(30)
            return said

        one = keeper(environment={"NOTIFY_SOCKET": str(tmp_path / "systemd"), "WATCHDOG_USEC": "3000000"})
        # A medium that takes nothing: what stands in the way of the new file cannot be put out of it.
        (tmp_path / "data/intent.new/in/the/way").mkdir(parents=True)
        waiting()
        one.process.send_signal(signal.SIGTERM)
        said, end = [], time.monotonic() + 60
        while one.process.poll() is None:
            assert time.monotonic() < end, "it waits for the medium for ever"
            said += waiting()
            time.sleep(0.02)
        said += waiting()
        # The daemon ends at once: nearly all of it is fed by the keeper that waits for the medium.
        assert (one.folder / "bye").exists() and "not all evidence could be written" in one.log_text()
        fed = [word for word in said if not word.startswith(b"STOPPING=1")]
        assert len(fed) >= 4 and set(fed) == {b"WATCHDOG=1"} and said[-1] == b"WATCHDOG=1", said


def test_keepers_that_end_again_and_again_leave_the_watchdog_alone(keeper, tmp_path):
    # No watchdog, but something that can be opened.
    (tmp_path / "watchdog").touch()
    one = keeper(device=tmp_path / "watchdog")
    for count in (1, 2, 3, 4):
        daemon = one.started(count)["pid"]
        one.process.kill()
        one.process.wait()
        until(lambda daemon=daemon: not Path(f"/proc/{daemon}").exists(), one)
        one.start()
    assert one.process.wait(60) == 1
    assert len(one.starts()) == 4, "the fifth started a daemon"
    assert one.history()[-1]["kind"] == "let-go"
    assert one.history()[-1]["sentence"] == "the keeper was started more than 4 times within 10 minutes"
    assert "is fed no more and resets the board" in one.log_text()


def test_a_watchdog_that_cannot_be_fed_is_told_once_and_shown_as_long_as_it_lasts(keeper, tmp_path):
    (tmp_path / "watchdog").touch()
    one = keeper(device=tmp_path / "watchdog")
    until(lambda: any("the watchdog cannot be fed: " in remark for remark in one.state()["remarks"]), one)
    one.stop()
    assert one.log_text().count("the watchdog cannot be fed") == 1
