"""Systems over HTTP: a daemon that is not root, `inferd system serve` beside it, and a board of files (`test_system.py` has it)."""

import contextlib
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from contract.wire import Wire, ask
from faults.test_system import PART, PARTITIONS, Board, watched
from helpers import somebody, until
from office import Office
from updates.rig import IDENTITY, put, slots


STATUS, INSTALL, TRY = (b'{"ask":"%s"}\n' % what for what in (b"status", b"install", b"try"))


def heard(answers):
    """The next answer."""
    return json.loads(answers.readline())


class Appliance(Board):
    """The same board with root's door open, and a daemon that passes what it gets through it."""

    def __init__(self, folder, office, native):
        super().__init__(folder, office)
        self.native, self.socket, self.root_process = native, folder / "run" / "door", None
        (folder / "updates").mkdir()
        (folder / "updates/root.imr").write_bytes(office.root.read_bytes())
        self.before = self.contents()

    def serve(self, *options, **process):
        """Root begins to listen; a second one takes the place of the first, which left its socket there."""
        if self.root_process:
            self.root_process.kill()
            self.root_process.wait()
        self.root_process = subprocess.Popen(self.command("serve", "--socket", self.socket, *options), **process)
        until(lambda: self.at_the_door(), "root listens")
        return self

    def at_the_door(self):
        """A connection to root; None when nobody listens."""
        door = socket.socket(socket.AF_UNIX)
        # What is never answered fails its test.
        door.settimeout(120)
        if door.connect_ex(str(self.socket)) == 0:
            return door
        door.close()
        return None

    def answer(self, question):
        """What root answers at its door; None to one who cannot even knock."""
        door = self.at_the_door()
        if door is None:
            return None
        with door:
            # Who is turned away hears so before anything was read of it.
            with contextlib.suppress(BrokenPipeError):
                door.sendall(question)
            return heard(door.makefile("rb"))

    def cut_short(self, bundle):
        """Somebody at the door who brings all of a bundle but its end: the connection, and the answers."""
        door = self.at_the_door()
        door.sendall(INSTALL + bundle.read_bytes()[:-4096])
        answers = door.makefile("rb")
        assert heard(answers)["answer"] == "writing"
        return door, answers

    def daemon(self, config="", **options):
        base = f'[updates]\nslot_size_mib = 16\nrun_dir = "{self.root}/run/inferd/daemon"\nboard = "qemu-aarch64"\n'
        env = {**self.keeper.env, "INFERD_SYSTEM": str(self.socket)}
        return self.native(arguments=["--updates-dir", self.folder / "updates"], config=base + config, models=(IDENTITY,), env=env, **options)

    def contents(self):
        return [self.partition(name).read_bytes() for name in PARTITIONS]

    def phase(self):
        return (self.status()["state"] or {}).get("phase")

    def starts_nothing(self, slot):
        return not any(self.partition(f"{part}-{slot}").read_bytes()[:4096].strip(b"\0") for part in ("rootfs", "boot"))

    def close(self):
        self.keeper.close()
        if self.root_process:
            self.root_process.kill()
            self.root_process.wait()


@pytest.fixture
def board(inferctl, tmp_path, native):
    board = Appliance(tmp_path, Office(inferctl.program, tmp_path / "office"), native)
    yield board
    board.close()


def push(daemon, bundle):
    answer = ask(daemon, "PUT", "/api/v1/bundle", bundle.read_bytes())
    return answer.status, answer.json()


def verdicts(daemon, gate="system"):
    return [(v["outcome"], v["code"]) for v in slots(daemon)["verdicts"] if v["gate"] == gate]


def half(daemon, bundle, board):
    """A push that stands still in the middle, once root has let it in: its wire, and the rest of it."""
    data = bundle.read_bytes()
    wire = put(Wire(daemon), len(data)).send(data[: len(data) // 2])
    until(lambda: board.phase() == "writing" and board.starts_nothing("b"), "root writes the slot")
    return wire, data[len(data) // 2 :]


def test_a_system_that_is_pushed_is_staged_tried_and_committed_and_the_sender_knows_before_the_board_restarts(board):
    daemon = board.serve().daemon()
    status, told = push(daemon, board.bundle(2))
    assert (status, told["state"], told["next"]) == (202, "staged", "try"), told
    assert told["bundle"]["slot"] == "B" and told["bundle"]["system"] is True
    assert board.holds("b", 2) and board.contents()[: len(PARTITIONS)][PARTITIONS.index("rootfs-a")] == board.before[4]
    until(board.restarts, daemon)
    assert board.restarts() == ["a new system is tried"]
    until(lambda: slots(daemon)["system"]["state"]["phase"] == "trial", daemon)
    assert board.start("request") == "b"
    watched(board)
    until(lambda: verdicts(daemon), daemon)
    assert verdicts(daemon) == [("pass", "committed")]
    system = slots(daemon)["system"]
    assert system["state"]["floors"] == {"inferd-os": 2} and system["refused"] is None
    assert (system["board"]["runs"], system["board"]["chosen"]) == ("b", "b")
    status, told = push(daemon, board.bundle(1))
    assert (status, told["code"], told["verdict"]["gate"]) == (409, "older-version", "floor"), told
    # A daemon that starts anew has told this already.
    daemon.stop()
    daemon = board.daemon()
    until(lambda: slots(daemon)["system"], daemon)
    assert verdicts(daemon) == [("pass", "committed")]


def test_what_root_or_the_daemon_refuses_leaves_every_partition_as_it_was(board):
    daemon = board.serve().daemon()
    board.office.run("keygen", board.office.at("stranger.key"))
    large = board.folder / "large"
    large.write_bytes(b"r" * (PART + 1))
    too_large = board.office.system(board.folder / "too-large.imb", "qemu-aarch64", 4, {"rootfs": large, "boot": large})
    boards = board.root / "etc/inferd/board.toml"
    for bundle, code, status in (
        (board.bundle(2, key="models"), "wrong-role", 403),
        (board.bundle(2, key="stranger"), "unknown-keys", 403),
        (board.bundle(2, board="rpi4"), "wrong-board", 409),
        (board.bundle(3, "--min-inferd", "99.0.0"), "inferd-too-old", 409),
        (too_large, "slot-too-small", 507),
    ):
        got, told = push(daemon, bundle)
        assert (got, told["error"], told["code"]) == (status, "bundle_refused", code), told
        assert "retry" not in told
    # The daemon's own board is not asked: root knows which one this is.
    boards.write_text('name = "other"\n[boot]\nbackend = "uboot-env"\n')
    assert push(daemon, board.bundle(2))[1]["code"] == "wrong-board"
    boards.write_text('name = "qemu-aarch64"\n[boot]\nbackend = "uefi-nv"\n')
    got, told = push(daemon, board.bundle(2))
    assert (got, told["code"]) == (409, "boot-backend"), told
    assert board.contents() == board.before and board.restarts() == []


def test_an_upload_that_is_cut_leaves_a_slot_that_does_not_start_and_the_next_one_is_taken(board):
    daemon = board.serve().daemon()
    wire, _ = half(daemon, board.bundle(2), board)
    wire.reset()
    until(lambda: slots(daemon)["install"] is None, daemon)
    assert ("interrupted", "transfer-interrupted") in verdicts(daemon, "install")
    assert board.phase() == "writing" and board.starts_nothing("b")
    assert daemon.request("/api/v1/bundle").json()["resume"] is None, "it begins anew"
    status, told = push(daemon, board.bundle(2))
    assert (status, told["state"]) == (202, "staged"), told


def test_only_one_system_comes_at_a_time_whoever_brings_it(board):
    daemon = board.serve().daemon()
    bundle = board.bundle(2)
    wire, rest = half(daemon, bundle, board)
    status, told = push(daemon, board.bundle(3))
    assert (status, told["code"]) == (409, "busy-transfer"), told
    board.no("busy", "install", bundle)
    answer = wire.send(rest).answer()
    assert answer.status == 202 and board.holds("b", 2), answer


def test_a_person_at_a_shell_who_is_first_is_not_disturbed(board):
    daemon = board.serve().daemon()
    bundle = board.bundle(2)
    person = subprocess.Popen(board.command("install", "-"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        person.stdin.write(bundle.read_bytes()[:-4096])
        person.stdin.flush()
        until(lambda: board.phase() == "writing", daemon)
        status, told = push(daemon, board.bundle(3))
        assert (status, told["error"], told["code"]) == (409, "busy", "busy"), told
        person.stdin.write(bundle.read_bytes()[-4096:])
        person.stdin.close()
        assert person.wait(60) == 0 and board.holds("b", 2)
    finally:
        person.kill()
        person.wait()


def test_a_daemon_or_a_root_process_that_is_killed_in_the_middle_costs_nothing_but_the_upload(board):
    daemon = board.serve().daemon()
    bundle = board.bundle(2)
    half(daemon, bundle, board)
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    daemon = board.daemon()
    # Root has seen the end of it when it takes another one.
    until(lambda: board.run("install", bundle).returncode == 0, daemon)
    assert board.phase() == "staged" and board.holds("b", 2)
    wire, rest = half(daemon, board.bundle(3), board)
    board.root_process.kill()
    board.root_process.wait()
    answer = wire.send(rest).answer()
    page = answer.json()
    assert (answer.status, page["code"], page["retry"]) == (503, "system-gone", True), page
    assert board.phase() == "writing" and board.starts_nothing("b")
    board.serve()
    status, told = push(daemon, board.bundle(3))
    assert (status, told["state"]) == (202, "staged"), told


def test_a_client_that_stands_still_at_the_door_gives_the_slot_back(board):
    board.serve("--patience", "1")
    bundle = board.bundle(2)
    door, answers = board.cut_short(bundle)
    with door:
        said = heard(answers)
        assert (said["answer"], said["reason"]["code"]) == ("refused", "truncated"), said
    assert board.starts_nothing("b")
    board.ok("install", bundle)


def test_root_answers_nonsense_with_a_reason_and_goes_on(board):
    board.serve()
    for said in (b"\n", b"{}\n", b'{"ask":"commit"}\n', b'{"ask":"try","slot":"b"}\n', b"\xff" * 200 + b"\n"):
        answer = board.answer(said)
        assert (answer["answer"], answer["reason"]["code"]) == ("refused", "bad-request"), answer
    # Its end is not waited for.
    answer = board.answer(b"x" * 100_000)
    assert (answer["reason"]["code"], answer["reason"]["sentence"]) == ("bad-request", "the line is too long"), answer
    assert board.answer(STATUS)["told"]["state"]["phase"] == "idle"
    assert board.contents() == board.before


def test_while_root_installs_for_one_nobody_else_installs_or_tries(board):
    board.serve()
    board.ok("install", board.bundle(2))
    door, answers = board.cut_short(board.bundle(3))
    with door:
        for question in (INSTALL + board.bundle(2).read_bytes()[:4096], TRY):
            answer = board.answer(question)
            assert (answer["answer"], answer["reason"]["code"]) == ("refused", "busy"), answer
        assert board.answer(STATUS)["told"]["state"]["phase"] == "writing", "that may be asked at any time"
        door.sendall(board.bundle(3).read_bytes()[-4096:])
        door.shutdown(socket.SHUT_WR)
        assert heard(answers)["answer"] == "staged" and board.holds("b", 3)
    assert board.restarts() == []


def test_root_hears_four_at_once_and_none_that_says_nothing_for_long(board):
    board.serve()

    def heard_are(count):
        return lambda: len(os.listdir(f"/proc/{board.root_process.pid}/task")) == 1 + count

    def the_fifth_is_turned_away():
        # Whoever came before this one has been let in, and leaves.
        board.answer(STATUS)
        until(heard_are(0), "root is alone")
        four = [board.at_the_door() for _ in range(4)]
        until(heard_are(4), "four are heard")
        answer = board.answer(STATUS)
        for door in four:
            door.close()
        return answer["answer"] == "refused" and answer["reason"]["code"] == "busy"

    # On a machine that is slow enough the first is let go of before the fifth is there.
    until(the_fifth_is_turned_away, "the fifth is turned away")
    until(lambda: board.answer(STATUS)["answer"] == "status", "the places of those who left are free")
    board.serve("--patience", "1")
    four = [board.at_the_door() for _ in range(4)]
    until(lambda: board.answer(STATUS)["answer"] == "status", "the places of those who say nothing are free")
    for door in four:
        door.close()


def test_root_has_memory_for_one_bundle_and_no_more(board):
    board.serve()
    with open(f"/proc/{board.root_process.pid}/limits") as limits:
        [line] = [line for line in limits if line.startswith("Max data size")]
    assert line.split()[3:5] == [str(64 << 20)] * 2, line


def test_the_door_says_why_a_board_takes_no_system(board):
    board.serve()
    boards = board.root / "etc/inferd/board.toml"
    whole = boards.read_text()
    for text, why in ((whole, None), (whole.replace("uboot-env", "uefi-nv"), "boot-backend"), ("", "boot-backend")):
        boards.write_text(text)
        refused = board.answer(STATUS)["told"]["refused"]
        assert (refused and refused["code"]) == why, refused
    boards.write_text(whole)
    board.data.rename(board.folder / "elsewhere")
    answer = board.answer(STATUS)["told"]
    assert answer["refused"]["code"] == "medium-failed" and "no data partition" in answer["refused"]["sentence"], answer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_only_root_and_the_daemon_itself_are_heard_at_the_door(board):
    user = pwd.getpwnam("nobody")
    # A folder that everybody can look into.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        board.socket = Path(folder) / "system/door"
        board.serve("--user", user.pw_name)
        door, room = board.socket.stat(), board.socket.parent.stat()
        assert (stat.S_IMODE(door.st_mode), door.st_uid, door.st_gid) == (0o660, 0, user.pw_gid)
        assert (stat.S_IMODE(room.st_mode), room.st_uid) == (0o755, 0), "nobody else can put a socket there"

        def said_to(uid, gid):
            with somebody(uid, gid):
                answer = board.answer(STATUS)
            return answer and answer.get("reason", {}).get("code", answer["answer"])

        assert said_to(user.pw_uid, user.pw_gid) == "not-allowed", "no keeper has said which process is the daemon"
        (board.keeper.folder / "daemon").write_text(f"{os.getpid()}\n")
        assert said_to(user.pw_uid, user.pw_gid) == "status"
        (board.keeper.folder / "daemon").write_text(f"{os.getppid()}\n")
        assert said_to(user.pw_uid, user.pw_gid) == "not-allowed", "an engine host, say: its user is the daemon's"
        (board.keeper.folder / "daemon").write_text(f"{os.getpid()}\n")
        assert said_to(user.pw_uid + 1, user.pw_gid) == "not-allowed", "somebody of its group"
        assert said_to(user.pw_uid + 1, user.pw_gid + 1) is None, "anybody"
        assert said_to(0, 0) == "status"


def test_a_system_can_wait_for_somebody_who_says_when(board):
    daemon = board.serve().daemon('system = "stage"\n')
    answer = daemon.request("/api/v1/system/try", {}, method="POST")
    assert answer.status == 400, "nothing is said with it"
    assert ask(daemon, "POST", "/api/v1/system/try").json()["code"] == "nothing-staged"
    status, told = push(daemon, board.bundle(2))
    assert (status, told["state"], told["next"]) == (202, "staged", "wait"), told
    until(lambda: slots(daemon)["system"]["state"]["phase"] == "staged", daemon)
    assert board.restarts() == [] and "try" not in board.record()[0]
    board.keeper.answers = {"answer": "refused", "why": "not now"}
    answer = ask(daemon, "POST", "/api/v1/system/try")
    assert (answer.status, answer.json()["code"]) == (503, "no-keeper"), answer
    assert "try" not in board.record()[0] and verdicts(daemon)[-1] == ("refuse", "no-keeper")
    board.keeper.answers = {"answer": "done"}
    assert ask(daemon, "POST", "/api/v1/system/try").status == 202
    assert board.record()[0]["try"] == "b" and len(board.restarts()) == 2
    status, told = push(daemon, board.bundle(3))
    assert (status, told["code"]) == (409, "system-on-trial"), told


def test_a_system_that_came_back_is_a_reversal_with_its_reason_and_an_alert_until_the_next_one(board):
    daemon = board.serve().daemon("[monitor]\ninterval_s = 1\nconsecutive = 1\n")
    raised = lambda: [a["about"] for a in daemon.request("/api/v1/alerts").json()["active"] if a["alert"] == "system_returned"]  # noqa: E731
    push(daemon, board.bundle(2))
    until(board.restarts, daemon)
    board.start("request")
    board.known(safe_mode="the daemon ended 3 times")
    board.ok("watch")
    assert board.start("request") == "a"
    board.ok("watch")
    until(lambda: verdicts(daemon), daemon)
    assert verdicts(daemon) == [("reverse", "safe-mode")]
    verdict = next(v for v in slots(daemon)["verdicts"] if v["gate"] == "system")
    assert "ended 3 times" in verdict["sentence"] and verdict["version"] == 2
    [about] = until(raised, daemon)
    assert about.startswith("inferd-os 2: ") and "ended 3 times" in about
    page = daemon.request("/metrics").body.decode()
    for line in (
        'inferd_gate_verdicts_total{gate="system",outcome="reverse"} 1',
        'inferd_rollbacks_total{code="safe-mode"} 1',
        'inferd_system_info{backend="uboot-env",runs="a",chosen="a"} 1',
        'inferd_system_state{phase="idle"} 1',
        "inferd_system_usable{} 1",
        "inferd_system_on_trial{} 0",
    ):
        assert f"{line}\n" in page or f"{line}.0\n" in page, line
    push(daemon, board.bundle(3))
    until(lambda: not raised(), daemon)


def goes_on_to_the_commit(board, daemon, trying):
    """The board restarts with its new system, whose trial ends well, and who ordered that is told."""
    assert daemon.stop() == 0
    assert board.start("request") == "b"
    board.serve().daemon('system = "stage"\n', port=daemon.port)
    watched(board)
    text, _ = trying.communicate(timeout=120)
    assert trying.returncode == 0 and "the system is committed" in text, text


def test_a_push_is_followed_across_the_restart_to_its_end(board, inferctl):
    daemon = board.serve().daemon()

    def restarted():
        """The board restarts, with everything on it."""
        until(board.restarts, daemon)
        assert daemon.stop() == 0
        board.root_process.kill()
        board.root_process.wait()
        return board.start("request")

    def pushed(version):
        command = [inferctl.program, "--url", daemon.url, "push", board.bundle(version), "--wait", "committed"]
        return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end(pushing, status):
        text, _ = pushing.communicate(timeout=120)
        assert pushing.returncode == status, text
        return text

    pushing = pushed(2)
    assert restarted() == "b"
    daemon = board.serve().daemon(port=daemon.port)
    watched(board)
    assert "the system is committed" in end(pushing, 0)
    assert "system b runs (uboot-env)" in inferctl("slots", url=daemon.url).stdout
    pushing = pushed(3)
    assert restarted() == "a"
    board.known(safe_mode="the daemon ended 3 times")
    board.ok("watch")
    assert board.start("request") == "b"
    board.ok("watch")
    board.serve().daemon(port=daemon.port)
    assert "ended 3 times" in end(pushing, 1)


def test_a_system_that_waits_is_tried_and_followed_when_somebody_says_so(board, inferctl):
    daemon = board.serve().daemon('system = "stage"\n')
    nothing = inferctl("system", "try", url=daemon.url)
    assert nothing.returncode == 1 and "no system is staged" in nothing.stderr, nothing
    staged = inferctl("push", board.bundle(2), "--wait", "committed", url=daemon.url)
    assert staged.returncode == 0 and "waits for `inferctl system try`" in staged.stdout, staged
    until(lambda: slots(daemon)["system"]["state"]["phase"] == "staged", daemon)
    command = [inferctl.program, "--url", daemon.url, "system", "try", "--wait", "committed"]
    trying = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(board.restarts, daemon)
    # It is said to whoever asked before the board goes down.
    assert trying.stdout.readline() == "inferd-os 2 (2) is tried\n"
    goes_on_to_the_commit(board, daemon, trying)


class Losing:
    """Passes on what is said between inferctl and a daemon, but of the first order to try a system the answer, or the order itself, is lost."""

    def __init__(self, port, loses):
        self.port, self.loses, self.listener = port, loses, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.pass_on, args=self.listener.accept()[:1], daemon=True).start()

    def pass_on(self, client):
        with client, contextlib.suppress(OSError):
            while said := client.recv(65536):
                lost = self.loses if b"/api/v1/system/try" in said else None
                self.loses = None if lost else self.loses
                if lost == "order":
                    return
                with socket.create_connection(("127.0.0.1", self.port), timeout=120) as daemon:
                    daemon.sendall(said.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                    answer = b"".join(iter(lambda: daemon.recv(65536), b""))
                if lost == "answer":
                    return
                client.sendall(answer)


@pytest.mark.parametrize("loses", ["order", "answer"])
def test_who_gets_no_answer_because_the_board_restarts_follows_the_trial_all_the_same(board, inferctl, loses):
    daemon = board.serve().daemon('system = "stage"\n')
    assert inferctl("push", board.bundle(2), url=daemon.url).returncode == 0
    until(lambda: slots(daemon)["system"]["state"]["phase"] == "staged", daemon)
    line = Losing(daemon.port, loses)
    command = [inferctl.program, "--url", line.url, "system", "try", "--wait", "committed"]
    trying = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert "the device did not answer" in trying.stdout.readline()
    until(board.restarts, daemon)
    assert len(board.restarts()) == 1, "an order that was obeyed is not given again"
    goes_on_to_the_commit(board, daemon, trying)


def test_who_waits_for_nothing_and_gets_no_answer_is_told_where_to_look(board, inferctl):
    daemon = board.serve().daemon('system = "stage"\n')
    assert inferctl("push", board.bundle(2), url=daemon.url).returncode == 0
    until(lambda: slots(daemon)["system"]["state"]["phase"] == "staged", daemon)
    told = inferctl("system", "try", "--wait", "nothing", url=Losing(daemon.port, "answer").url)
    assert told.returncode == 0 and "may be restarting" in told.stdout and "`inferctl slots` says" in told.stdout, told


def test_why_a_board_takes_no_system_is_said_at_the_start_of_roots_process_and_in_the_status(board):
    said = lambda: (board.folder / "log").read_text()  # noqa: E731
    for backend, told in (("uboot-env", ""), ("uefi-nv", "one root filesystem"), ("initramfs", "write a new image to the medium")):
        (board.root / "etc/inferd/board.toml").write_text(f'name = "qemu-aarch64"\n[boot]\nbackend = "{backend}"\n')
        with open(board.folder / "log", "w") as log:
            board.serve(stderr=log)
        daemon = board.daemon()
        system = until(lambda daemon=daemon: daemon.request("/status").json()["updates"]["system"], daemon)
        lines = said().splitlines()
        if not told:
            assert lines == [] and system["refused"] is None
        else:
            [line] = lines
            assert line.startswith("<4>inferd system: this board takes no update of its system: ")
            assert told in line and line.endswith("(boot-backend)")
            assert system["refused"]["code"] == "boot-backend" and told in system["refused"]["sentence"]
        daemon.stop()


def test_where_nobody_installs_systems_they_are_refused_as_before(board):
    daemon = board.daemon()
    status, told = push(daemon, board.bundle(2))
    assert (status, told["error"], told["code"]) == (409, "bundle_refused", "kind-unsupported"), told
    assert slots(daemon)["system"] is None
    assert ask(daemon, "POST", "/api/v1/system/try").json()["code"] == "kind-unsupported"
    assert board.contents() == board.before
