"""HTTP as clients really speak it: cross-origin pages, compression, slow, vanished and greedy clients."""

import contextlib
import gzip
import http.client
import json
import os
import re
import signal
import time

import pytest
from contract.wire import Wire, ask, window
from helpers import freeze

PREFLIGHT = [("Origin", "http://page.lan"), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "content-type")]


def until(condition, what, timeout=30):
    """Waits for something that happens by itself."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


def good(daemon, *request):
    """Whether this is answered with 200, where all places may be taken: then it is refused, or closed without a word."""
    try:
        return daemon.request(*request).status == 200
    except OSError:
        return False


def evicted(daemon):
    """How many connections were closed to make room for others."""
    found = []

    def read():
        with contextlib.suppress(OSError, AssertionError):
            found[:] = re.findall(r"(?m)^inferd_http_connections_evicted_total (\d+)", ask(daemon, "GET", "/metrics").body.decode())
        return found

    until(read, "there is a place to ask for the metrics")
    return int(found[0])


def test_a_page_may_ask_and_read(daemon, walk):
    answer = ask(daemon, "OPTIONS", "/infer", headers=PREFLIGHT)
    assert (answer.status, answer.body) == (200, b"OK")
    assert answer.headers["access-control-allow-origin"] == "http://page.lan"
    assert answer.headers["access-control-allow-methods"] == "GET, POST, HEAD"
    assert answer.headers["access-control-allow-headers"] == "content-type"
    assert answer.headers["access-control-max-age"] == "600"
    assert answer.headers["vary"] == "Origin"
    answer = ask(daemon, "POST", "/infer", json.dumps(walk), [("Origin", "http://page.lan")])
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-credentials"] == "true"
    answer = ask(daemon, "POST", "/infer", "{}", [("Origin", "null"), ("Cookie", "a=b")])
    assert answer.status == 422 and answer.headers["access-control-allow-origin"] == "null" and answer.headers["vary"] == "Origin"
    refused = ask(daemon, "OPTIONS", "/infer", headers=[PREFLIGHT[0], ("Access-Control-Request-Method", "DELETE")])
    assert (refused.status, refused.body) == (400, b"Disallowed CORS method")


def test_only_listed_pages_may_when_there_is_a_list(native):
    daemon = native(config='[server]\nallow_origins = ["http://good.lan"]\n')
    good = ask(daemon, "GET", "/livez", headers=[("Origin", "http://good.lan")])
    assert good.headers["access-control-allow-origin"] == "http://good.lan"
    assert "access-control-allow-origin" not in ask(daemon, "GET", "/livez", headers=[("Origin", "http://bad.lan")]).headers
    assert ask(daemon, "OPTIONS", "/infer", headers=PREFLIGHT).body == b"Disallowed CORS origin"


def test_answers_are_compressed_only_when_asked(daemon, native, walk):
    plain = ask(daemon, "GET", "/status")
    assert "content-encoding" not in plain.headers
    packed = ask(daemon, "GET", "/status", headers=[("Accept-Encoding", "gzip, deflate")])
    assert packed.headers["content-encoding"] == "gzip" and "Accept-Encoding" in packed.headers["vary"]
    assert json.loads(gzip.decompress(packed.body))["ready"] is True
    assert "content-encoding" not in ask(daemon, "GET", "/livez", headers=[("Accept-Encoding", "gzip")]).headers
    assert "content-encoding" not in ask(daemon, "GET", "/status", headers=[("Accept-Encoding", "gzip;q=0")]).headers


def test_a_request_id_comes_back_and_stands_in_the_log(native, walk):
    daemon = native(env={"INFERD_LOGGING_LEVEL": "debug", "INFERD_LOGGING_FORMAT": "json"})
    answer = ask(daemon, "POST", "/infer", json.dumps(walk), [("X-Request-ID", "test-4711")])
    assert answer.headers["x-request-id"] == "test-4711"
    until(lambda: "test-4711" in daemon.log_text(), "the request is logged")
    line = next(l for l in daemon.log_text().splitlines() if "test-4711" in l)
    entry = json.loads(line)
    fields = entry.get("fields", entry)
    assert fields["request_id"] == "test-4711" and fields["status"] == 200 and fields["latency_us"] > 0
    assert ask(daemon, "GET", "/livez", headers=[("X-Request-ID", "bad id\t")]).headers["x-request-id"] != "bad id\t"


def test_a_connection_serves_many_requests(daemon, walk):
    with Wire(daemon) as wire:
        for _ in range(300):
            assert wire.request("POST", "/infer", json.dumps(walk)).answer().status == 200


def test_the_standard_library_and_chunked_bodies(daemon, walk):
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    body = json.dumps(walk).encode()
    connection.request("POST", "/infer", iter([body[:100], body[100:]]), {"Content-Type": "application/json"}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 200 and len(json.load(answer)["latent"]) == 64
    connection.close()


def test_expect_100_continue(daemon, walk):
    body = json.dumps(walk).encode()
    with Wire(daemon) as wire:
        wire.send(f"POST /infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n")
        assert wire.answer().status == 100
        assert wire.send(body).answer().status == 200


def test_a_body_too_large_is_refused_before_it_is_sent(daemon):
    with Wire(daemon) as wire:
        wire.send("POST /infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n")
        answer = wire.answer()
        assert answer.status == 413 and answer.headers["connection"] == "close", answer
        assert wire.rest() == b"", "and the connection is closed, not reset"


def test_a_body_too_large_is_refused_while_it_is_sent(daemon):
    with Wire(daemon) as wire:
        wire.request("POST", "/infer", b" " * (11 << 20))
        assert wire.answer().status == 413


def test_a_request_that_comes_byte_by_byte_is_answered(daemon):
    body = window().encode()
    head = f"POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Wire(daemon) as wire:
        for at in range(len(head)):
            wire.send(head[at : at + 1])
        for at in range(0, len(body), 100):
            wire.send(body[at : at + 100])
        assert wire.answer().status == 200


def test_a_client_too_slow_for_its_head_or_body_is_let_go(native):
    daemon = native(config="[server]\nheader_timeout_s = 1\nrequest_timeout_s = 1\n")
    with Wire(daemon) as head, Wire(daemon) as body:
        head.send("GET /livez HTTP/1.1\r\nHo")
        body.send('POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"x"')
        assert head.answer().status == 408
        answer = body.answer()
        assert answer.status == 408 and answer.json()["error"] == "slow_body"
        assert ask(daemon, "GET", "/healthz").status == 200


def test_half_open_requests_do_not_keep_others_out(native, walk):
    daemon = native(config="[server]\nmax_connections = 64\nheader_timeout_s = 300\n")
    slow = [Wire(daemon).send("POST /infer HTTP/1.1\r\nHost: a\r\n") for _ in range(200)]
    until(lambda: good(daemon, "/infer", walk), "a good client is served")
    assert evicted(daemon) >= 1, "in the place of a half-open one, whose time is not over"
    for wire in slow:
        wire.close()


def test_bodies_that_drip_do_not_keep_others_out(native, walk):
    daemon = native(config="[server]\nmax_connections = 16\nrequest_timeout_s = 300\n")
    slow = [Wire(daemon).send("POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n") for _ in range(16)]

    def served():
        for wire in slow:
            with contextlib.suppress(OSError):
                wire.send(" ")
        return good(daemon, "/healthz") and good(daemon, "/infer", walk)

    until(served, "a probe and a good client are served")
    assert evicted(daemon) >= 1, "in the place of a slow one, whose time is not over"
    for wire in slow:
        wire.close()


def test_vanished_clients_leave_nothing_behind(native, walk):
    daemon = native()
    body = json.dumps(walk)
    pid = daemon.process.pid

    def descriptors():
        return len(os.listdir(f"/proc/{pid}/fd"))

    assert ask(daemon, "POST", "/infer", body).status == 200
    before = descriptors()
    for i in range(200):
        wire = Wire(daemon).request("POST", "/infer", body[: len(body) if i % 2 else i])
        wire.reset() if i % 3 else wire.close()
    until(lambda: daemon.request("/status").json()["connections"] == 1, "only the asking connection is open")
    until(lambda: daemon.request("/status").json()["models"][0]["queue"]["in_use"] == 0, "every slot is given back")
    until(lambda: descriptors() <= before + 1, "every descriptor is closed")
    assert ask(daemon, "POST", "/infer", body).status == 200


def test_the_work_of_a_client_that_left_is_dropped(native, walk, patient):
    daemon = native(models=[patient])
    body = json.dumps(walk)
    assert ask(daemon, "POST", "/infer", body).status == 200
    model = daemon.request("/status").json()["models"][0]
    host, done = model["host"]["pid"], model["requests"]["success"]
    freeze(host)
    try:
        waiting = [Wire(daemon).request("POST", "/infer", body) for _ in range(3)]
        until(lambda: daemon.request("/status").json()["models"][0]["queue"]["in_use"] == 3, "three are queued")
        for wire in waiting:
            wire.close()
        until(lambda: daemon.request("/status").json()["connections"] == 1, "they are gone")
    finally:
        os.kill(host, signal.SIGCONT)
    until(lambda: daemon.request("/status").json()["models"][0]["queue"]["in_use"] == 0, "the slots are free")
    requests = daemon.request("/status").json()["models"][0]["requests"]
    assert requests["success"] == done, "nothing was computed for nobody"
    assert ask(daemon, "POST", "/infer", body).status == 200


def sent_and_left(daemon, leave, *requests):
    """Each on a connection of its own; they and the ends of their connections are there before the daemon looks."""
    wires = [Wire(daemon) for _ in requests]
    freeze(daemon.process.pid)
    try:
        for wire, request in zip(wires, requests, strict=True):
            wire.request(*request) if isinstance(request, tuple) else wire.send(request)
            getattr(wire, leave)()
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)


def audited(daemon, number):
    """The lines about the change whose request id ends so."""
    return [line for line in daemon.log_text().splitlines() if " audit: " in line and f"request_id=left-{number}" in line]


@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_change_that_was_asked_for_whole_is_made_and_leaves_its_line_though_nobody_waits(native, leave):
    daemon = native()
    name = ask(daemon, "GET", "/contract").json()["model"]
    level = ("PUT", "/api/v1/logging", '{"level":"debug"}', [("X-Request-ID", "left-1")])
    unload = ("POST", f"/v2/repository/models/{name}/unload", "", [("X-Request-ID", "left-2")])
    sent_and_left(daemon, leave, level, unload)
    until(lambda: audited(daemon, 1) and audited(daemon, 2), "both leave their line")
    for number in (1, 2):
        [line] = audited(daemon, number)
        assert "status=200" in line, line
    assert ask(daemon, "GET", "/api/v1/logging").json()["level"] == "debug"
    assert ask(daemon, "GET", f"/v2/models/{name}/ready").status != 200
    # Half of a change is none.
    half = 'PUT /api/v1/logging HTTP/1.1\r\nHost: a\r\nX-Request-ID: left-3\r\nContent-Length: 90\r\n\r\n{"level":"trace"}'
    sent_and_left(daemon, leave, half)
    until(lambda: audited(daemon, 3), "it is refused")
    assert "status=400" in audited(daemon, 3)[0] and ask(daemon, "GET", "/api/v1/logging").json()["level"] == "debug"
    # What is for who waits for it is dropped.
    sent_and_left(daemon, leave, ("POST", f"/v2/repository/models/{name}/load", "", [("X-Request-ID", "left-4")]))
    until(lambda: audited(daemon, 4), "it is loaded again")
    sent_and_left(daemon, leave, ("POST", "/benchmark?num_iterations=10000", "", [("X-Request-ID", "left-5")]))
    until(lambda: daemon.request("/status").json()["connections"] == 1, "they are gone")
    assert not audited(daemon, 5), "a benchmark for nobody went on to its end"


def test_requests_in_flight_end_before_the_daemon_does(native, walk):
    daemon = native()
    body = json.dumps(walk).encode()
    with Wire(daemon) as wire:
        wire.send(f"POST /infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n")
        assert wire.answer().status == 100
        daemon.process.send_signal(signal.SIGTERM)
        until(lambda: "SIGTERM" in daemon.log_text(), "the daemon was told to end")
        assert wire.send(body).answer().status == 200
    assert daemon.process.wait(20) == 0


def test_an_api_key_guards_what_changes_the_device(native):
    daemon = native(env={"INFERD_SECURITY_API_KEY": "0123456789abcdef"})
    model = daemon.request("/contract").json()["model"]
    load = f"/v2/repository/models/{model}/load"
    assert ask(daemon, "POST", load).status == 401
    assert ask(daemon, "POST", load, headers=[("X-API-Key", "0123456789abcdee")]).status == 403
    assert ask(daemon, "POST", load, headers=[("X-API-Key", "0123456789abcdef")]).status == 200
    assert ask(daemon, "POST", load, headers=[("Authorization", "Bearer 0123456789abcdef")]).status == 200
    assert ask(daemon, "POST", "/infer", window()).status == 200, "inference and reading stay open"


def test_without_a_key_no_foreign_page_may_change_the_device(daemon):
    model = daemon.request("/contract").json()["model"]
    answer = ask(daemon, "POST", f"/v2/repository/models/{model}/unload", headers=[("Origin", "http://evil.example")])
    assert answer.status == 403
    assert daemon.request("/healthz").status == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/livez", "/readyz", "/health", "/status", "/contract", "/metrics", "/openapi.json", "/docs"])
def test_head_is_get_without_a_body(daemon, path):
    get, head = ask(daemon, "GET", path), ask(daemon, "HEAD", path)
    assert head.status == get.status == 200 and head.headers["content-type"] == get.headers["content-type"]


def test_wrong_methods_and_paths(daemon):
    assert ask(daemon, "GET", "/nothing").json() == {"detail": "Not Found"}
    for method, path, allow in (("GET", "/infer", "POST"), ("PUT", "/healthz", "GET, HEAD"), ("DELETE", "/test", "POST"), ("OPTIONS", "/infer", "POST")):
        answer = ask(daemon, method, path)
        assert (answer.status, answer.headers["allow"], answer.json()) == (405, allow, {"detail": "Method Not Allowed"})
    slash = ask(daemon, "POST", "/infer/?a=1")
    assert (slash.status, slash.headers["location"]) == (307, "/infer?a=1")


def test_a_deadline_is_refused_at_once_or_kept(native, walk, patient):
    daemon = native(models=[patient], config="[hosts]\nworkers = 1\n")
    body = json.dumps(walk)
    assert ask(daemon, "POST", "/infer", body).status == 200, "from here on the daemon knows how long one takes"
    host = daemon.request("/status").json()["models"][0]["host"]["pid"]
    freeze(host)
    try:
        waiting = [Wire(daemon).request("POST", "/infer", body) for _ in range(40)]
        until(lambda: daemon.request("/status").json()["models"][0]["queue"]["in_use"] == 40, "forty are queued")
        # On a busy machine the 5 ms may be over before anybody has decided; on a fast one they may be enough for forty.
        for deadline in ["5", "2", "1"] * 25:
            refused = ask(daemon, "POST", "/infer", body, [("Inference-Deadline-Ms", deadline)])
            if refused.json()["error"] != "timeout":
                break
        assert (refused.status, refused.json()["error"]) == (503, "deadline_unmeetable"), refused
        assert int(refused.headers["retry-after"]) >= 1 and int(refused.headers["retry-after-ms"]) >= int(deadline)
        enough = 900 + 3 * int(refused.headers["retry-after-ms"])
        given_up = ask(daemon, "POST", "/infer", body, [("Inference-Deadline-Ms", str(enough))])
        assert (given_up.status, given_up.json()["error"]) == (503, "timeout"), given_up
    finally:
        os.kill(host, signal.SIGCONT)
    answers = [wire.answer() for wire in waiting]
    assert {a.status for a in answers} == {200}, "the others had more time"
    for wire in waiting:
        wire.close()
