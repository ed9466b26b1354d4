"""Bundles over HTTP, as curl and other programs speak it: what is refused before a byte is read, what is resumed, what is told."""

import concurrent.futures
import hashlib
import http.server
import json
import re
import signal
import threading
import time

import places
import pytest
from contract.wire import Wire, ask
from helpers import until
from safetensors.numpy import load_file, save_file
from updates.rig import (
    IDENTITY,
    KEY,
    X,
    committed,
    curl,
    edition,
    put,
    served,
    slots,
)

# ------------------------------------------------------------------------------------------------------- the way of a bundle


def test_curl_installs_a_bundle_and_is_told_that_it_serves(device, office):
    daemon = device()
    assert served(daemon) == "1", "the directory's"
    status, told = curl(daemon, office.made[1])
    assert status == 200 and told["state"] in ("probation", "committed"), told
    assert [v["outcome"] for v in told["verdicts"]] == ["pass"] * len(told["verdicts"])
    assert {"load", "golden", "flip"} <= {v["gate"] for v in told["verdicts"]}
    assert served(daemon) == "1.0.1"
    committed(daemon, 1)
    now = slots(daemon)
    assert now["serving"]["from"] == "slot" and now["floors"] == {"demo": 1}
    [active] = [s for s in now["slots"] if s["active"]]
    assert (active["status"], active["version"]) == ("committed", 1)
    model = next(m for m in daemon.request("/status").json()["models"] if m["name"] == "identity-fp32")
    assert model["bundle"]["product"] == "demo" and model["directory"] is None


def test_the_same_bundle_again_is_done_already(device, office):
    daemon = device()
    curl(daemon, office.made[1])
    committed(daemon, 1)
    status, told = curl(daemon, office.made[1])
    assert status == 200 and told["bundle"]["already"] is True and told["state"] == "committed"


def test_a_bundle_may_come_in_chunks_of_unknown_length(device, office):
    daemon = device()
    status, told = curl(daemon, "-", stdin=office.made[1].read_bytes())
    assert status == 200, told
    assert served(daemon) == "1.0.1"


def test_what_serves_survives_a_restart_and_goes_before_the_directories(device, office):
    daemon = device()
    curl(daemon, office.made[1])
    committed(daemon, 1)
    assert daemon.stop() == 0
    daemon = device()
    assert served(daemon) == "1.0.1"
    until(lambda: daemon.request("/commit-ready").status == 200, "this boot may be confirmed")


def test_no_reload_and_no_load_takes_the_place_of_a_bundles_model(device, office):
    daemon = device()
    curl(daemon, office.made[1])
    for action in ("load", "unload"):
        answer = daemon.request(f"/v2/repository/models/identity-fp32/{action}", {}, method="POST")
        assert answer.status == 409 and "slot" in answer.json()["error"], answer.body
    looks = daemon.log_text().count("SIGHUP")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.log_text().count("SIGHUP") > looks, "the directories are looked at again")
    assert served(daemon) == "1.0.1"


def test_what_came_whole_and_is_no_bundle_is_not_asked_for_again(device):
    answer = ask(device(), "PUT", "/api/v1/bundle", b'{"this is": "no bundle"}   ')
    told = answer.json()
    assert (answer.status, told["error"], told["code"]) == (422, "bundle_refused", "truncated"), told
    assert not told.get("retry") and "again" not in told["detail"] and "27 bytes" in told["detail"], told


def test_an_upload_that_came_whole_leaves_its_line_though_its_client_has_left(device, office):
    daemon = device()
    # On trial for as long as nobody asks anything.
    data = office.bundle(3, "--shadow-requests", "100000").read_bytes()
    with Wire(daemon) as wire:
        put(wire, len(data), headers=[("X-Request-ID", "left-upload")]).send(data)
        until(lambda: any(v["gate"] == "golden" and v["outcome"] == "pass" for v in slots(daemon)["verdicts"]), "it is on trial")
    until(lambda: daemon.request("/status").json()["connections"] <= 2, "the client has left")
    assert ask(daemon, "POST", "/api/v1/rollback", '{"reason":"nobody waits"}').status == 200
    line = until(lambda: [line for line in daemon.log_text().splitlines() if " audit: " in line and "left-upload" in line], "it left its line")
    assert "method=PUT" in line[0] and '"/api/v1/bundle"' in line[0], line


def test_an_upload_that_was_cut_goes_on_where_it_ended(device, office):
    daemon = device()
    data = office.made[1].read_bytes()
    half = len(data) // 2
    with Wire(daemon) as wire:
        put(wire, len(data)).send(data[:half])
        until(lambda: (daemon.request("/api/v1/bundle").json()["install"] or {}).get("bundle"), "the prefix was read")
        wire.reset()
    left = until(lambda: daemon.request("/api/v1/bundle").json()["resume"], "it can be gone on with")
    assert left["total"] == len(data) and 0 < left["offset"] <= half
    with Wire(daemon) as wire:
        put(wire, len(data), first=left["offset"]).send(data[left["offset"] :])
        answer = wire.answer()
    assert answer.status == 200, answer
    assert answer.json()["bundle"]["saved"]["received"] < len(data)
    assert served(daemon) == "1.0.1"


def test_curl_goes_on_too(device, office):
    daemon = device()
    data = office.made[1].read_bytes()
    with Wire(daemon) as wire:
        put(wire, len(data)).send(data[: len(data) // 2])
        until(lambda: (daemon.request("/api/v1/bundle").json()["install"] or {}).get("bundle"), "the prefix was read")
        wire.reset()
    left = until(lambda: daemon.request("/api/v1/bundle").json()["resume"], "it can be gone on with")
    status, told = curl(daemon, office.made[1], "-C", str(left["offset"]))
    assert status == 200, told


def test_going_on_where_nothing_is_or_too_far_is_refused_with_the_place(device, office):
    daemon = device()
    data = office.made[1].read_bytes()
    with Wire(daemon) as wire:
        answer = put(wire, len(data), first=4096).answer()
    assert answer.status == 409 and answer.json()["code"] == "nothing-to-resume", answer
    with Wire(daemon) as wire:
        put(wire, len(data)).send(data[: len(data) // 2])
        until(lambda: (daemon.request("/api/v1/bundle").json()["install"] or {}).get("bundle"), "the prefix was read")
        wire.reset()
    left = until(lambda: daemon.request("/api/v1/bundle").json()["resume"], "it can be gone on with")
    with Wire(daemon) as wire:
        answer = put(wire, len(data), first=left["offset"] + 1).answer()
    assert answer.status == 416 and answer.json()["resume"]["offset"] == left["offset"], answer
    with Wire(daemon) as wire:
        answer = put(wire, len(data) + 1, first=4096).answer()
    assert answer.status == 409 and answer.json()["code"] == "other-bundle", answer


# ------------------------------------------------------------------------------------------------ before a byte of it is read


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong-horse-battery", 403)])
def test_who_may_not_is_told_before_the_body_is_asked_for(device, office, key, status):
    daemon = device(f'[security]\napi_key = "{KEY}"\n')
    headers = [("Expect", "100-continue")] + ([("X-API-Key", key)] if key else [])
    with Wire(daemon) as wire:
        answer = put(wire, 1 << 20, headers=headers).answer()
    assert answer.status == status and answer.headers["connection"] == "close", answer
    for path in ("rollback", "trust", "pull"):
        assert ask(daemon, "POST", f"/api/v1/{path}", b"", [("X-API-Key", key)] if key else []).status == status
    assert slots(daemon)["counters"]["installs"] == 0
    assert curl(daemon, office.made[1], "-H", f"X-API-Key: {KEY}")[0] == 200


def test_one_push_at_a_time(device, office):
    daemon = device()
    data = office.made[1].read_bytes()
    with Wire(daemon) as first, Wire(daemon) as second:
        put(first, len(data)).send(data[:4096])
        until(lambda: daemon.request("/api/v1/bundle").json()["install"], "the first one began")
        answer = put(second, len(data), headers=[("Expect", "100-continue")]).answer()
        assert answer.status == 409 and answer.json()["code"] == "busy-transfer" and "retry-after" in answer.headers, answer
        assert first.send(data[4096:]).answer().status == 200


def test_none_during_a_trial(device, office):
    daemon = device()
    assert curl(daemon, office.watched[1])[0] == 200
    status, told = curl(daemon, office.watched[2])
    assert status == 409 and told["code"] == "busy-trial", told


def test_a_bundle_larger_than_a_slot_is_refused_by_its_head(device):
    daemon = device()
    with Wire(daemon) as wire:
        answer = put(wire, 1 << 40, headers=[("Expect", "100-continue")]).answer()
    assert answer.status == 413 and answer.json()["code"] == "slot-too-small", answer


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("", 411),
        ("Content-Length: 4096\r\nContent-Encoding: gzip\r\n", 415),
        ("Content-Length: 4096\r\nContent-Range: bytes 0-1/4096\r\n", 400),
        ("Content-Length: 4096\r\nContent-Range: bytes 0-8191/8192\r\n", 400),
        ("Content-Length: 4096\r\nContent-Range: pages 0-4095/4096\r\n", 400),
    ],
)
def test_a_head_that_makes_no_sense(device, head, status):
    daemon = device()
    with Wire(daemon) as wire:
        answer = wire.send(f"PUT /api/v1/bundle HTTP/1.1\r\nHost: test\r\n{head}\r\n").answer()
    assert answer.status == status and answer.json()["detail"], answer


# ----------------------------------------------------------------------------------------------------------- what goes wrong


def test_garbage_is_no_bundle(device):
    daemon = device()
    answer = ask(daemon, "PUT", "/api/v1/bundle", b"MZ" * 100_000)
    assert answer.status == 422 and answer.json()["code"] == "not-a-bundle", answer
    assert answer.json()["verdict"]["gate"] == "keys"


def test_a_bundle_that_ends_early_may_be_sent_again(device, office):
    daemon = device()
    data = office.made[1].read_bytes()
    answer = ask(daemon, "PUT", "/api/v1/bundle", data[: len(data) - 4096])
    assert answer.status == 400 and answer.json()["retry"] is True, answer
    assert answer.json()["resume"]["total"] == len(data)
    assert curl(daemon, office.made[1])[0] == 200


def test_a_damaged_byte_is_found_and_what_served_serves_on(device, office):
    daemon = device()
    data = bytearray(office.made[1].read_bytes())
    data[-5000] ^= 1
    answer = ask(daemon, "PUT", "/api/v1/bundle", bytes(data))
    assert answer.status in (400, 422) and answer.json()["verdict"]["gate"] == "install", answer
    assert served(daemon) == "1"


def test_who_drips_is_given_up_and_who_only_takes_long_is_not(device, office):
    daemon = device("[server]\nrequest_timeout_s = 1\n[updates]\nupload_window_s = 2\nupload_min_bytes_per_s = 1000\n")
    data = office.made[1].read_bytes()
    with Wire(daemon) as wire:
        put(wire, len(data))
        for byte in data[:100]:
            wire.send(bytes([byte]))
            if daemon.request("/api/v1/bundle").json()["install"] is None and wire_has_answer(wire):
                break
            time.sleep(0.05)
        answer = wire.answer()
    assert answer.status == 408 and answer.json()["error"] == "slow_body", answer
    with Wire(daemon) as wire:
        put(wire, len(data))
        step = len(data) // 30 + 1
        for at in range(0, len(data), step):
            wire.send(data[at : at + step])
            time.sleep(0.1)
        assert wire.answer().status == 200, "it took three times request_timeout_s"


def wire_has_answer(wire):
    """Whether something came back."""
    wire.socket.setblocking(False)
    try:
        return bool(wire.socket.recv(1, 2))  # MSG_PEEK
    except BlockingIOError:
        return False
    finally:
        wire.socket.settimeout(30)


def test_an_older_version_and_a_strangers_bundle_are_refused_with_their_reasons(device, office):
    daemon = device()
    curl(daemon, office.made[2])
    committed(daemon, 2)
    status, told = curl(daemon, office.made[1])
    assert status == 409 and told["code"] == "older-version" and told["verdict"]["gate"] == "floor", told
    status, told = curl(daemon, office.bundle(3, key="stranger"))
    assert status == 403 and told["code"] == "unknown-keys", told
    assert served(daemon) == "1.0.2"


def test_a_model_that_does_not_reproduce_its_golden_vectors_never_serves(device, office):
    daemon = device()
    folder = edition(office.at("wrong"), "6.6.6")
    golden = load_file(folder / "golden.safetensors")
    save_file({name: values + 1 if "/out/" in name else values for name, values in golden.items()}, folder / "golden.safetensors")
    digest = hashlib.sha256((folder / "golden.safetensors").read_bytes()).hexdigest()
    page = (folder / "manifest.toml").read_text()
    old = hashlib.sha256((IDENTITY / "golden.safetensors").read_bytes()).hexdigest()
    assert old in page
    (folder / "manifest.toml").write_text(page.replace(old, digest))
    status, told = curl(daemon, office.bundle(9, model=folder, product="wrong"))
    assert status == 422 and told["state"] == "refused" and told["verdict"]["gate"] == "golden", told
    assert told["detail"] and served(daemon) == "1"
    again = daemon.request("/status").json()["updates"]["last_verdict"]
    assert again["outcome"] == "refuse" or again["gate"] == "return"


# ------------------------------------------------------------------------------------------------------------------ watching


class Events:
    """A listener to the events."""

    def __init__(self, daemon, query="", headers=""):
        self.wire = Wire(daemon)
        self.wire.send(f"GET /api/v1/events{query} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")
        self.status = int(self.wire.reader.readline().split()[1])
        while self.wire.reader.readline() != b"\r\n":
            pass
        self.buffer = b""

    def next(self):
        """The next event: its name and its data. Comments and fields without an event are passed over."""
        while True:
            while b"\n\n" not in self.buffer:
                size = int(self.wire.reader.readline(), 16)
                assert size, "the stream ended"
                self.buffer += self.wire.reader.read(size)
                assert self.wire.reader.readline() == b"\r\n"
            event, _, self.buffer = self.buffer.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in event.decode().splitlines() if not line.startswith(":"))
            if "event" in fields:
                return fields["event"], json.loads(fields["data"])

    def verdict(self, gate):
        """Waits for a verdict of this gate; all events until then."""
        seen = []
        while True:
            seen.append(self.next())
            if seen[-1][0] == "verdict" and seen[-1][1]["gate"] == gate:
                return seen


def test_events_tell_progress_and_every_verdict(device, office):
    daemon = device()
    events = Events(daemon)
    assert events.next()[0] == "progress", "what is so now comes first"
    assert curl(daemon, office.made[1])[0] == 200
    seen = events.verdict("commit")
    gates = [data["gate"] for name, data in seen if name == "verdict"]
    assert gates.index("keys") < gates.index("install") < gates.index("golden") < gates.index("flip") < gates.index("commit")
    assert any(name == "progress" and data["install"] for name, data in seen), "a transfer was seen"
    numbers = [data["number"] for name, data in seen if name == "verdict"]
    assert numbers == sorted(set(numbers))
    late = Events(daemon, "?since=0").verdict("commit")
    assert [data["number"] for name, data in late if name == "verdict"] == numbers
    again = Events(daemon, headers=f"Last-Event-ID: {numbers[-3]}\r\n").verdict("commit")
    assert [data["number"] for name, data in again if name == "verdict"] == numbers[-2:], "as a browser comes back"


def test_listeners_are_bounded_and_their_places_come_back(device):
    daemon = device()
    listening = [Events(daemon) for _ in range(16)]
    assert all(e.status == 200 for e in listening)
    refused = ask(daemon, "GET", "/api/v1/events")
    assert refused.status == 503 and refused.json()["error"] == "listeners" and "retry-after" in refused.headers
    listening[0].wire.reset()

    def again():
        with Wire(daemon) as wire:
            wire.send("GET /api/v1/events HTTP/1.1\r\nHost: test\r\n\r\n")
            return b" 200 " in wire.reader.readline()

    until(again, "the place of one that left is given to another")


def test_a_stop_waits_for_no_listener_and_no_upload(device, office):
    daemon = device("[server]\ndrain_timeout_s = 300\n")
    events = Events(daemon)
    with Wire(daemon) as wire:
        put(wire, office.made[1].stat().st_size).send(office.made[1].read_bytes()[:8192])
        until(lambda: daemon.request("/api/v1/bundle").json()["install"], "the transfer began")
        daemon.process.terminate()
        answer = wire.answer()
        assert answer.status == 503 and answer.json()["error"] == "ending", answer
    assert daemon.process.wait(60) == 0, "long before the drain time is over"
    assert events.wire.rest().endswith(b"0\r\n\r\n"), "the stream ends as a stream should"


def test_the_metrics_tell_slots_installs_and_verdicts(device, office):
    daemon = device()
    curl(daemon, office.made[1])
    committed(daemon, 1)
    curl(daemon, office.bundle(3, key="stranger"))
    text = daemon.request("/metrics").body.decode()
    for line in (
        'inferd_slot_info{slot="A",status="committed",product="demo",version="1"} 1',
        'inferd_slot_active{slot="A"} 1',
        'inferd_version_floor{product="demo"} 1',
        'inferd_bundle_installs_total{outcome="staged"} 1',
        'inferd_bundle_installs_total{outcome="refused"} 1',
        'inferd_gate_verdicts_total{gate="commit",outcome="pass"} 1',
        'inferd_trial_state{phase="probation"} 0',
        "inferd_dev_keys_accepted{} 0",
        "inferd_updates_usable{} 1",
    ):
        assert re.search(rf"(?m)^{re.escape(line)}(\.0)?$", text), line


def test_status_says_in_plain_sight_whether_development_keys_are_accepted(device):
    assert device().request("/status").json()["updates"]["dev_keys_accepted"] is False


def test_a_device_that_accepts_development_keys_says_so(device):
    daemon = device("[updates]\nallow_dev = true\n")
    updates = daemon.request("/status").json()["updates"]
    assert updates["dev_keys_accepted"] is True and re.fullmatch("[0-9a-f]{32}", updates["device"])


# ------------------------------------------------------------------------------------------------------------- back and forth


def test_rollback_brings_back_what_served_before(device, office):
    daemon = device()
    assert daemon.request("/api/v1/rollback", {}, method="POST").status == 409, "there is nothing yet"
    curl(daemon, office.made[1])
    committed(daemon, 1)
    curl(daemon, office.made[2])
    committed(daemon, 2)
    assert served(daemon) == "1.0.2"
    answer = daemon.request("/api/v1/rollback", {"reason": "it sees ghosts"}, method="POST")
    assert answer.status == 200, answer.body
    assert served(daemon) == "1.0.1"
    assert "it sees ghosts" in json.dumps(slots(daemon)["verdicts"])
    for bad in ({"why": "?"}, [], ["it sees ghosts"]):
        assert daemon.request("/api/v1/rollback", bad, method="POST").status == 400, bad
    assert served(daemon) == "1.0.1"


def test_this_boot_may_not_be_confirmed_during_a_trial(device, office):
    daemon = device()
    assert daemon.request("/commit-ready").status == 200
    curl(daemon, office.watched[1])
    answer = daemon.request("/commit-ready")
    assert answer.status == 503 and "trial" in " ".join(answer.json()["reasons"])
    assert answer.json()["default_model_ran"] is True
    assert daemon.request("/api/v1/rollback", {}, method="POST").status == 200
    until(lambda: daemon.request("/commit-ready").status == 200, "the old model serves again")
    assert served(daemon) == "1"


def test_a_trust_document_that_is_none(device):
    answer = ask(device(), "POST", "/api/v1/trust", b"nonsense")
    assert answer.status == 422 and answer.json()["error"] == "trust_refused", answer


def test_a_swap_under_load_fails_no_request(device, office):
    daemon = device()
    stop, seen = threading.Event(), set()

    def client():
        versions, failures = [], []
        while not stop.is_set():
            answer = daemon.request("/v2/models/identity-fp32/infer", X)
            if answer.status != 200 or answer.json()["outputs"][0]["data"] != [1, 2, 3, 4, 5, 6]:
                failures.append(answer.body)
            else:
                versions.append(answer.json()["model_version"])
                seen.add(versions[-1])
        return versions, failures

    with concurrent.futures.ThreadPoolExecutor() as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            until(lambda: "1" in seen, "an answer of the factory's model")
            for n in (1, 2, 3):
                status, told = curl(daemon, office.made[n])
                assert status == 200, told
                committed(daemon, n)
                until(lambda version=f"1.0.{n}": version in seen, f"an answer of version {n}")
        finally:
            stop.set()
        results = [c.result() for c in clients]
    assert [f for _, failures in results for f in failures] == []
    assert seen == {"1", "1.0.1", "1.0.2", "1.0.3"}
    for versions, _ in results:
        assert versions == sorted(versions), "nobody sees an older model after a newer one"


def test_a_device_fetches_a_bundle_by_url(device, office):
    daemon = device()
    handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=office.folder)  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{office.made[1].name}"
        answer = daemon.request("/api/v1/pull", {"url": url})
        assert answer.status == 202 and answer.json()["state"] == "fetching", answer.body
        committed(daemon, 1)
        assert served(daemon) == "1.0.1"
        pull = until(lambda: (p := daemon.request("/api/v1/bundle").json()["pull"])["state"] != "fetching" and p, "it ended")
        assert pull["state"] == "fetched" and pull["report"]["total"] == office.made[1].stat().st_size
        gone = daemon.request("/api/v1/pull", {"url": url + ".gone"})
        assert gone.status == 202
        pull = until(lambda: (p := daemon.request("/api/v1/bundle").json()["pull"])["state"] == "failed" and p, "it ended")
        assert pull["error"]["code"] and pull["error"]["detail"]
    finally:
        server.shutdown()
    assert daemon.request("/api/v1/pull", {"url": "gopher://x"}).status == 422
    assert daemon.request("/api/v1/pull", {"uri": url}).status == 400
    assert daemon.request("/api/v1/pull", [url]).status == 400, "an array of its values is no order"


def test_a_pull_from_a_server_that_stalls_is_ended_for_a_rollback_and_a_push(device, office, inferctl):
    data = office.made[3].read_bytes()

    class Stalling(http.server.BaseHTTPRequestHandler):
        """Gives the beginning of a bundle and then nothing, until the device leaves."""

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                self.wfile.write(data[: int(self.path.removeprefix("/"))])
                self.rfile.read(1)
            except OSError:
                pass  # it left while there was more to give
            left.append(self.path)

        def log_message(self, *_):
            pass

    daemon, left = device(), []
    for n in (1, 2):
        status, told = curl(daemon, office.made[n])
        assert status == 200, told
        committed(daemon, n)
    assert ask(daemon, "DELETE", "/api/v1/pull").status == 404
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def stalled(length, known):
            """A pull hangs after so many bytes: what else would need the free slot is refused and told how to end it."""
            assert daemon.request("/api/v1/pull", {"url": f"http://127.0.0.1:{server.server_port}/{length}"}).status == 202
            until(lambda: (p := daemon.request("/api/v1/bundle").json()["install"]) and bool(p["bundle"]) == known, "it hangs")
            for status, verb, path in ((409, "POST", "rollback"), (409, "PUT", "bundle")):
                answer = ask(daemon, verb, f"/api/v1/{path}", data if verb == "PUT" else b"")
                assert answer.status == status and "DELETE /api/v1/pull" in answer.json()["detail"], answer

        # Not a byte of it is in the slot with the bundle before.
        stalled(100, known=False)
        answer = ask(daemon, "DELETE", "/api/v1/pull")
        assert answer.status == 200 and answer.json()["state"] == "ended", answer
        last = daemon.request("/api/v1/bundle").json()["pull"]
        assert (last["state"], last["error"]["code"]) == ("failed", "pull-cancelled"), last
        assert ask(daemon, "POST", "/api/v1/rollback").status == 200
        assert served(daemon) == "1.0.1"
        stalled(len(data) // 2, known=True)
        done = inferctl("pull", "--cancel", url=daemon.url)
        assert done.returncode == 0 and "no longer fetches" in done.stdout, done.stdout + done.stderr
        until(lambda: len(left) == 2, "the device left the server both times")
        server.shutdown()
    done = inferctl("pull", "--cancel", url=daemon.url)
    assert done.returncode == 1 and "not fetching" in done.stderr, done.stdout + done.stderr
    status, told = curl(daemon, office.made[3])
    assert status == 200, told
    committed(daemon, 3)


def test_a_device_that_may_not_fetch_says_so(device):
    daemon = device("[updates]\npull = false\n")
    answer = daemon.request("/api/v1/pull", {"url": "http://127.0.0.1:1/x"})
    assert answer.status == 403 and answer.json()["code"] == "pull-off"


# ----------------------------------------------------------------------------------------------------------- without updates


def test_where_updates_are_not_configured_every_route_says_so(daemon):
    for method, path in (
        ("PUT", "bundle"),
        ("GET", "bundle"),
        ("GET", "events"),
        ("GET", "slots"),
        ("POST", "rollback"),
        ("POST", "trust"),
        ("POST", "pull"),
        ("DELETE", "pull"),
    ):
        answer = ask(daemon, method, f"/api/v1/{path}", b"{}" if method != "GET" else b"")
        assert answer.status == 501 and answer.json()["error"] == "updates_off", (path, answer)
    assert daemon.request("/status").json()["updates"] == {"enabled": False}
    assert daemon.request("/commit-ready").json()["ready"] is True
    assert "inferd_updates_usable" not in daemon.request("/metrics").body.decode()


def test_slots_that_cannot_be_had_do_not_keep_the_daemon_from_serving(native, tmp_path):
    (tmp_path / "file").write_text("")
    daemon = native(arguments=["--updates-dir", tmp_path / "file" / "below"], models=[places.DEFAULT_MODEL])
    updates = daemon.request("/status").json()["updates"]
    assert updates["state"] == "broken" and updates["reason"]
    assert daemon.request("/api/v1/slots").status == 503
    assert daemon.request("/commit-ready").status == 503
