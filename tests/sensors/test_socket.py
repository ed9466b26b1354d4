"""The WebSocket mirror of the stream, as the `websockets` library sees it."""

import contextlib
import itertools
import json
import socket

import helpers
import pytest
from contract.test_probes import check
from contract.wire import Wire, ask
from sensors.conftest import EMG_MODEL
from sensors.sensor import source
from sensors.test_stream import CLIENT_KEYS, Events, clients, device  # noqa: F401 - the same device
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

KEY = "correct-horse-battery-staple"


def opened(device, query="", path="/infer/stream", **options):
    """A WebSocket; nothing waits for ever."""
    url = f"ws://127.0.0.1:{device.port}{path}"
    return connect(url + (f"?{query}" if query else ""), open_timeout=60, close_timeout=10, proxy=None, **options)


def messages(connection, timeout=60):
    """Every message as JSON until the server closes it, and then how it did: (code, reason)."""
    told = []
    try:
        while True:
            told.append(json.loads(connection.recv(timeout=timeout)))
    except ConnectionClosed as closed:
        return told, (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else None


def test_a_websocket_is_told_what_the_stream_of_events_tells_and_closed_with_1000(device):
    with opened(device, "duration_seconds=2&fps=10") as connection:
        (*told, last), closed = messages(connection)
    *events, completion = Events(device, {"duration_seconds": 2, "fps": 10})
    # On a busy machine the source may stand still meanwhile, and that is told too.
    frames = [frame for frame in told if "error" not in frame]
    event = next(event for event in events if "error" not in event)
    assert closed == (1000, "") and frames, closed
    assert CLIENT_KEYS <= set(frames[0]) and set(frames[0]) == set(event) and set(last) == set(completion)
    for before, after in itertools.pairwise(frames):
        assert after["frame"] == before["frame"] + 1 + after["skipped"]
    assert all((f["prediction"], f["label"], f["source"]) == (4, "Wrist Extend", "tape") for f in frames)
    assert last["status"] == "completed" and len(frames) <= last["total_frames"] <= 21


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("fps=0", "fps"),
        ("fps=12.5", "fps"),
        ("fps=fast", "fps"),
        ("fps=1&fps=2", "fps"),
        ("duration_seconds=0", "duration_seconds"),
        ("emg_mode=bogus", "emg_mode"),
        ("emg_mode=%ff", "emg_mode"),
        ("preprocess=perhaps", "preprocess"),
        ("last_event_id=-1", "last_event_id"),
        ("frames=30", "query"),
        ("api_key=" + KEY, "query"),
    ],
)
def test_what_cannot_be_is_told_in_a_message_and_closed_with_1008(device, query, field):
    with opened(device, query) as connection:
        [told], closed = messages(connection)
    assert (told["error"], told["status"], closed[0]) == ("validation_error", 422, 1008), told
    assert told["detail"][0]["loc"] == ["body", field] and KEY not in json.dumps(told)


def test_what_may_be_later_is_told_in_a_message_and_closed_with_1013(device):
    helpers.until(lambda: source(device, "phone")["state"] == "stale", "nobody pushes")
    with opened(device, "emg_mode=phone") as connection:
        [told], closed = messages(connection)
    assert (told["error"], told["status"], closed[0]) == ("source_unavailable", 503, 1013) and "push" in told["detail"]
    assert told["retry_after_ms"] > 0


def test_who_comes_back_by_a_websocket_gets_what_it_missed(device):
    with opened(device, "fps=120") as connection:
        first = json.loads(connection.recv(timeout=60))["window"]
        helpers.until(lambda: json.loads(connection.recv(timeout=60))["window"] > first + 3, "some are told")
    with opened(device, f"fps=1&last_event_id={first}") as connection:
        again = [json.loads(connection.recv(timeout=60))["window"] for _ in range(3)]
    assert again == list(range(first + 1, first + 4))


def test_a_client_that_leaves_its_websocket_costs_nothing_any_more_however_it_leaves(device):
    helpers.until(lambda: clients(device) == 0, "all have left")
    for leave in ("close", "vanish"):
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(opened(device))
            connection.recv(timeout=60)
            assert clients(device) == 1
            if leave == "vanish":
                connection.socket.shutdown(2)
            else:
                connection.close()
            helpers.until(lambda: clients(device) == 0, leave)


def test_a_websocket_and_a_stream_of_events_share_the_places_and_the_counters(device):
    helpers.until(lambda: clients(device) == 0, "all have left")
    before = device.request("/infer/stream/stats").json()["frames_sent"]
    with contextlib.ExitStack() as stack:
        for _ in range(63):
            stack.callback(Events(device).close)
        with opened(device, "fps=20&duration_seconds=60"):
            assert clients(device) == 64
            assert ask(device, "POST", "/infer/stream").status == 503
            with opened(device) as refused:
                [told], closed = messages(refused)
            assert (told["error"], told["status"], closed[0]) == ("listeners", 503, 1013) and told["retry_after_ms"] == 5000
        helpers.until(lambda: clients(device) == 63, "a place is free")
        with opened(device, "fps=20&duration_seconds=1") as last:
            (*frames, _), closed = messages(last)
            assert frames and closed[0] == 1000
    helpers.until(lambda: clients(device) == 0, "all have left")
    assert device.request("/infer/stream/stats").json()["frames_sent"] >= before + len(frames)


@pytest.mark.parametrize(("message", "code"), [("hello", 1008), (b"hello", 1008), ("x" * 5000, 1009), (b"x" * 1_000_000, 1009)])
def test_a_client_has_nothing_to_say_and_not_at_length(device, message, code):
    with opened(device) as connection:
        with contextlib.suppress(ConnectionClosed):
            connection.send(message)
        _, closed = messages(connection)
    assert closed[0] == code, closed


def test_what_is_no_frame_is_closed_with_1002(device):
    wire = Wire(device)
    wire.request("GET", "/infer/stream?fps=1", headers=HANDSHAKE)
    # A frame of a client that is not masked.
    assert wire.reader.readline().startswith(b"HTTP/1.1 101 ")
    wire.send(b"\x81\x02hi")
    assert b"\x03\xea" in wire.rest()
    wire.close()


HANDSHAKE = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]


@pytest.mark.parametrize(
    ("without", "instead", "status"),
    [
        ("Upgrade", [], 426),
        ("Connection", [], 426),
        ("Sec-WebSocket-Version", [], 426),
        ("Sec-WebSocket-Version", [("Sec-WebSocket-Version", "8")], 426),
        ("Sec-WebSocket-Key", [], 400),
        ("Sec-WebSocket-Key", [("Sec-WebSocket-Key", "short")], 400),
    ],
)
def test_a_handshake_that_is_none_is_refused_with_a_status(device, without, instead, status):
    headers = [header for header in HANDSHAKE if header[0] != without] + instead
    answer = ask(device, "GET", "/infer/stream", headers=headers)
    assert answer.status == status, answer
    check(device.request("/openapi.json").json(), "/infer/stream", "GET", answer)
    if status == 426:
        assert answer.headers["upgrade"] == "websocket" and answer.headers["sec-websocket-version"] == "13"


class Frames:
    """A WebSocket without a library: it reads only when it is told to, out of a buffer as small as it likes."""

    def __init__(self, device, path, buffer):
        self.socket = socket.socket()
        self.socket.settimeout(60)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect(("127.0.0.1", device.port))
        head = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n{head}\r\n".encode())
        self.reader = self.socket.makefile("rb")
        lines = list(itertools.takewhile(lambda line: line != b"\r\n", iter(self.reader.readline, b"")))
        assert lines[0].startswith(b"HTTP/1.1 101 "), lines

    def __iter__(self):
        """Every text message as JSON."""
        while len(head := self.reader.read(2)) == 2:
            length = head[1]
            if length >= 126:
                length = int.from_bytes(self.reader.read(2 if length == 126 else 8), "big")
            data = self.reader.read(length)
            if head[0] == 0x81:
                yield json.loads(data)

    def close(self):
        self.reader.close()
        self.socket.close()


def test_a_slow_websocket_is_told_what_is_new_and_how_many_gave_way(device):
    def missed():
        return device.request("/infer/stream/stats").json()["frames_missed"]

    before = missed()
    frames = Frames(device, "/infer/stream?fps=120", 4096)
    helpers.until(lambda: missed() >= before + 100, "events to give way")
    known = source(device, "tape")["predictions"]
    told = list(itertools.islice(frames, 300))
    frames.close()
    new = [event for event in told if event["skipped"]][-1]
    assert new["window"] >= known, (new, known)


def test_pings_are_answered_and_what_comes_with_the_handshake_is_not_lost(device):
    wire = Wire(device)
    head = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE)
    # A masked ping, in the same write as the handshake.
    ping = bytes([0x89, 0x83, 0, 0, 0, 0]) + b"yes"
    wire.send(f"GET /infer/stream?fps=1 HTTP/1.1\r\nHost: test\r\n{head}\r\n".encode() + ping)
    lines = list(itertools.takewhile(lambda line: line != b"\r\n", iter(wire.reader.readline, b"")))
    assert lines[0].startswith(b"HTTP/1.1 101 ") and b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in lines
    while (frame := wire.reader.read(2)) != b"\x8a\x03":
        assert len(frame) == 2, "the connection ended without a pong"
        length = frame[1] if frame[1] < 126 else int.from_bytes(wire.reader.read(2), "big")
        wire.reader.read(length)
    assert wire.reader.read(3) == b"yes"
    wire.close()


def test_a_key_comes_as_a_protocol_where_headers_cannot_be_set_and_is_not_repeated(native):
    config = f'[security]\noperator_keys = ["{KEY}"]\nopen_inference = false\n[[sources]]\nname = "demo"\nkind = "synthetic"\n'
    device = native(models=[EMG_MODEL], config=config)
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    with opened(device, "fps=10", subprotocols=["inferd", f"bearer.{KEY}"]) as connection:
        assert connection.subprotocol == "inferd" and "prediction" in json.loads(connection.recv(timeout=60))
        assert KEY not in str(connection.response.headers)
    with opened(device, "fps=10", additional_headers={"X-API-Key": KEY}) as connection:
        assert connection.subprotocol is None and "prediction" in json.loads(connection.recv(timeout=60))
    for options, status in [
        ({}, 401),
        ({"subprotocols": ["inferd"]}, 401),
        ({"subprotocols": ["inferd", "bearer.something-else-entirely"]}, 403),
    ]:
        with pytest.raises(InvalidStatus) as refused, opened(device, **options):
            pass
        assert refused.value.response.status_code == status
    # Anything else than a WebSocket is not opened by it.
    header = [("Sec-WebSocket-Protocol", f"bearer.{KEY}")]
    assert ask(device, "POST", "/infer/stream", headers=header).status == 401


def test_a_page_of_another_origin_is_refused_unless_it_may_read_answers(native):
    config = '[server]\nallow_origins = ["http://good.example"]\n[[sources]]\nname = "demo"\nkind = "synthetic"\n'
    device = native(models=[EMG_MODEL], config=config)
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    for origin in ("http://good.example", f"http://127.0.0.1:{device.port}", None):
        with opened(device, "fps=10", origin=origin) as connection:
            assert "prediction" in json.loads(connection.recv(timeout=60)), origin
    for origin in ("http://evil.example", "null", "http://127.0.0.1"):
        with pytest.raises(InvalidStatus) as refused, opened(device, origin=origin):
            pass
        assert refused.value.response.status_code == 403, origin


def test_a_websocket_does_not_give_way_to_new_connections_and_a_daemon_that_ends_completes_it(native):
    config = '[server]\nmax_connections = 2\n[[sources]]\nname = "demo"\nkind = "synthetic"\n'
    device = native(models=[EMG_MODEL], config=config)
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    with opened(device) as connection:
        begun = json.loads(connection.recv(timeout=60))["timestamp"]
        # Old enough to be spared, if it were an idle one.
        while json.loads(connection.recv(timeout=60))["timestamp"] < begun + 2:
            pass
        waiting = [Wire(device) for _ in range(3)]
        connection.recv(timeout=60)
        assert ask(device, "GET", "/livez").status in (200, 503)
        connection.recv(timeout=60)
        for wire in waiting:
            wire.close()
        device.process.terminate()
        told, closed = messages(connection)
    assert told[-1]["status"] == "completed" and closed[0] == 1001, closed
