"""What `/openapi.json` says of the update routes, held to what a device with slots answers."""

import http.server
import socket
import threading

import pytest
from contract.test_probes import check
from contract.wire import Wire, ask
from helpers import until
from updates.rig import KEY, committed, put

READ = ["/status", "/commit-ready", "/api/v1/slots", "/api/v1/bundle"]


@pytest.fixture
def described(device):
    """Starts a device; gives it and `said(status, verb, path, answer)`, which holds an answer to the description."""

    def start(config="", **options):
        daemon = device(config, **options)
        document = daemon.request("/openapi.json").json()

        def said(status, verb, path, answer):
            assert answer.status == status, answer
            check(document, path.partition("?")[0], verb, answer)
            return answer

        return daemon, said

    return start


def test_what_a_device_tells_of_its_updates_is_as_described_at_every_stage(described, office):
    daemon, said = described()

    def look(ready):
        for path in READ:
            said(200 if ready or path != "/commit-ready" else 503, "GET", path, ask(daemon, "GET", path))

    look(ready=True)
    data = office.made[1].read_bytes()
    with Wire(daemon) as wire:
        put(wire, len(data)).send(data[: len(data) // 2])
        until(lambda: (daemon.request("/api/v1/bundle").json()["install"] or {}).get("bundle"), "the prefix was read")
        look(ready=True)
        wire.reset()
    until(lambda: daemon.request("/api/v1/bundle").json()["resume"], "it can be gone on with")
    look(ready=True)
    said(200, "PUT", "/api/v1/bundle", ask(daemon, "PUT", "/api/v1/bundle", data))
    committed(daemon, 1)
    said(200, "PUT", "/api/v1/bundle", ask(daemon, "PUT", "/api/v1/bundle", data))
    said(200, "PUT", "/api/v1/bundle", ask(daemon, "PUT", "/api/v1/bundle", office.watched[2].read_bytes()))
    look(ready=False)
    said(409, "PUT", "/api/v1/bundle", ask(daemon, "PUT", "/api/v1/bundle", data))
    said(200, "POST", "/api/v1/rollback", ask(daemon, "POST", "/api/v1/rollback", '{"reason": "it is a test"}'))
    look(ready=True)
    with Wire(daemon) as wire:
        wire.send("GET /api/v1/events?since=0 HTTP/1.1\r\nHost: test\r\n\r\n")
        assert b" 200 " in wire.reader.readline()
        heads = [line for line in iter(wire.reader.readline, b"\r\n") if line.lower().startswith(b"content-type:")]
        assert heads == [b"content-type: text/event-stream\r\n"]
    said(400, "GET", "/api/v1/events?since=x", ask(daemon, "GET", "/api/v1/events?since=x"))


def test_every_refusal_of_the_update_routes_is_as_described(described, office):
    daemon, said = described()
    data = office.made[2].read_bytes()

    def push(status, body=b"", headers=()):
        return said(status, "PUT", "/api/v1/bundle", ask(daemon, "PUT", "/api/v1/bundle", body, headers))

    def post(status, path, body=b""):
        return said(status, "POST", f"/api/v1/{path}", ask(daemon, "POST", f"/api/v1/{path}", body))

    for status, head in (
        (411, ""),
        (413, f"Content-Length: {1 << 40}\r\n"),
        (415, "Content-Length: 4096\r\nContent-Encoding: gzip\r\n"),
        (400, "Content-Length: 4096\r\nContent-Range: bytes 0-1/4096\r\n"),
        (409, "Content-Length: 4096\r\nContent-Range: bytes 4096-8191/8192\r\n"),
    ):
        with Wire(daemon) as wire:
            answer = wire.send(f"PUT /api/v1/bundle HTTP/1.1\r\nHost: test\r\n{head}\r\n").answer()
        said(status, "PUT", "/api/v1/bundle", answer)
    push(400, data[:-4096])
    push(422, b"MZ" * 4096)
    push(403, office.bundle(9, key="stranger").read_bytes())
    post(400, "rollback", '{"why": 1}')
    post(409, "rollback")
    post(422, "trust", b"nonsense")
    post(400, "pull", "{}")
    post(422, "pull", '{"url": "gopher://x"}')
    said(404, "DELETE", "/api/v1/pull", ask(daemon, "DELETE", "/api/v1/pull"))
    push(200, data)
    committed(daemon, 2)
    push(409, office.made[1].read_bytes())
    push(200, office.watched[1].read_bytes())
    post(409, "pull", '{"url": "http://127.0.0.1:1/x.imb"}')


def test_who_may_not_and_what_is_off_is_as_described(described):
    daemon, said = described(f'[updates]\npull = false\n[security]\napi_key = "{KEY}"\n')
    for verb, path in (("PUT", "bundle"), ("POST", "rollback"), ("POST", "trust"), ("POST", "pull"), ("DELETE", "pull")):
        path = f"/api/v1/{path}"
        said(401, verb, path, ask(daemon, verb, path, b"{}"))
        said(403, verb, path, ask(daemon, verb, path, b"{}", [("X-API-Key", "wrong-horse-battery")]))
    said(403, "POST", "/api/v1/pull", ask(daemon, "POST", "/api/v1/pull", '{"url": "http://127.0.0.1:1/x"}', [("X-API-Key", KEY)]))


def test_a_pull_is_as_described_from_its_order_to_its_end(described, office):
    daemon, said = described()

    def handler(*arguments):
        return http.server.SimpleHTTPRequestHandler(*arguments, directory=office.folder)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{office.made[1].name}"
        for wanted, end in ((url + ".gone", "failed"), (url, "fetched")):
            said(202, "POST", "/api/v1/pull", ask(daemon, "POST", "/api/v1/pull", f'{{"url": "{wanted}"}}'))
            until(lambda: daemon.request("/api/v1/bundle").json()["pull"]["state"] == end, end)  # noqa: B023
            said(200, "GET", "/api/v1/bundle", ask(daemon, "GET", "/api/v1/bundle"))
    finally:
        server.shutdown()
        server.server_close()


def test_a_pull_that_is_ended_is_as_described(described):
    daemon, said = described()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.imb"
        said(202, "POST", "/api/v1/pull", ask(daemon, "POST", "/api/v1/pull", f'{{"url": "{url}"}}'))
        said(409, "PUT", "/api/v1/bundle", ask(daemon, "PUT", "/api/v1/bundle", b"MZ" * 4096))
        said(200, "DELETE", "/api/v1/pull", ask(daemon, "DELETE", "/api/v1/pull"))
    said(200, "GET", "/api/v1/bundle", ask(daemon, "GET", "/api/v1/bundle"))


def test_without_updates_and_with_broken_ones_every_route_is_as_described(native, tmp_path):
    (tmp_path / "file").write_text("")
    for options, status in (({}, 501), ({"arguments": ["--updates-dir", tmp_path / "file" / "below"]}, 503)):
        daemon = native(**options)
        document = daemon.request("/openapi.json").json()
        for path in ("/status", "/commit-ready"):
            check(document, path, "GET", ask(daemon, "GET", path))
        for verb, path in (("PUT", "bundle"), ("GET", "bundle"), ("GET", "events"), ("GET", "slots"), ("POST", "rollback"), ("POST", "trust"), ("POST", "pull"), ("DELETE", "pull")):
            answer = ask(daemon, verb, f"/api/v1/{path}", b"{}" if verb != "GET" else b"")
            assert answer.status == status, answer
            check(document, f"/api/v1/{path}", verb, answer)
