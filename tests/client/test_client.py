"""The Python client: its examples as they are printed, and streams that are cut, silent, refused."""

import os
import re
import socket
import subprocess
import sys
import threading

import places
import pytest
from inferd_client import Client, Interrupted, Prediction, Refused, Unavailable

HERE = places.ROOT / "tests/client"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (HERE / "README.md").read_text(), re.S | re.M)
# What each example prints, in the order of README.md.
SAYS = [r"Pinch: \d+% after [\d.]+ ms\n(.*\n)*[1-9]\d* frames", r"arm live \nPinch\nphone \w+ .+\n", r"400 samples, missing: 0", r"motif 10 is", r"\(1, 64\)"]


@pytest.mark.parametrize(("example", "says"), list(zip(EXAMPLES, SAYS, strict=True)), ids=range(len(SAYS)))
def test_every_example_works_as_it_is_printed(device, example, says):
    env = {**os.environ, "INFERD_URL": device.url, "PYTHONPATH": str(HERE)}
    run = [sys.executable, "-B", "-c", example]
    done = subprocess.run(run, cwd=places.ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(says, done.stdout), done.stdout


def test_a_stream_gives_every_frame_that_the_device_counts_and_ends_with_it(device):
    stream = Client(device.url).stream("arm", fps=20, duration=1)
    events = list(stream)
    assert all(isinstance(event, Prediction) and event.label == "Pinch" for event in events), events
    assert stream.completed.total_frames == len(events) > 0
    windows = [event.window for event in events]
    assert windows == sorted(set(windows)) and stream.last_event_id == str(windows[-1])


def test_a_stream_that_is_left_ends_on_the_device(device):
    client = Client(device.url)
    with client.stream("arm", fps=5) as stream:
        assert isinstance(next(iter(stream)), Prediction)
        assert client.stream_stats()["clients"] == 1
    while client.stream_stats()["clients"]:
        pass


def test_what_cannot_be_raises_with_the_devices_own_words(device):
    client = Client(device.url)
    with pytest.raises(Refused, match="fps") as refused:
        next(iter(client.stream("arm", fps=0)))
    assert refused.value.status == 422 and not isinstance(refused.value, Unavailable)
    with pytest.raises(Unavailable, match="source phone"):
        client.infer(source="phone")
    with pytest.raises(Refused) as refused:
        client.push("nobody", [[0.0] * 16])
    assert refused.value.status == 404
    with pytest.raises(Refused, match="100"):
        client.infer_imu([[0.0] * 9] * 5)


def test_nobody_at_the_url_is_an_error_of_the_system(nobody):
    with pytest.raises(ConnectionRefusedError):
        Client(nobody).health()
    with pytest.raises(ConnectionRefusedError):
        list(Client(nobody).stream())


def event(window, **more):
    fields = {"frame": window, "prediction": 1, "label": "Pinch", "confidence": 0.5, "latency_ms": 1.0, "backend": "cpu"}
    fields |= {"window": window, "source": "arm", "model": "m", "timestamp": 1.0, **more}
    return f"id: {window}\ndata: {str(fields).replace(chr(39), chr(34))}\n\n".encode()


DONE = b'data: {"status": "completed", "total_frames": 3, "duration_seconds": 1.0, "avg_fps": 3.0}\n\n'


class Script:
    """A device that plays one part for every connection: bytes to send, `None` to say nothing until the client goes."""

    def __init__(self, *parts):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.asked = []
        self.thread = threading.Thread(target=self._play, args=(parts,), daemon=True)
        self.thread.start()

    def _play(self, parts):
        for part in parts:
            connection, _ = self.listener.accept()
            with connection, connection.makefile("rwb") as wire:
                head = {}
                while (line := wire.readline().strip()) != b"":
                    name, _, value = line.decode().partition(":")
                    head[name.lower()] = value.strip()
                wire.read(int(head.get("content-length", 0)))
                self.asked.append(head.get("last-event-id"))
                if isinstance(part, int):
                    wire.write(b"HTTP/1.1 %d x\r\nContent-Length: 16\r\n\r\n" % part + b'{"detail":"no!"}')
                else:
                    wire.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    for piece in part:
                        wire.flush()
                        if piece is None:
                            connection.recv(1)
                            break
                        wire.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def ended(self):
        self.thread.join(30)
        assert not self.thread.is_alive(), "it was asked as often as it has parts"
        self.listener.close()


def test_a_stream_that_was_cut_goes_on_behind_the_last_event():
    script = Script([event(1), event(2)], 503, [b": here\n\n", event(3), DONE])
    stream = Client(script.url).stream(fps=10)
    events = list(stream)
    assert [e.window for e in events if isinstance(e, Prediction)] == [1, 2, 3]
    lost = [e for e in events if isinstance(e, Interrupted)]
    assert len(lost) == 2 and all(e.lost for e in lost) and "no!" in lost[1].reason
    assert script.asked == ["", "2", "2"] and stream.completed.total_frames == 3
    script.ended()


def test_a_source_that_is_not_well_is_told_and_waited_for():
    script = Script([event(1), b'data: {"error": "the port is gone", "timestamp": 1.0, "frame": 1}\n\n', b": here\n\n", event(2), DONE])
    events = list(Client(script.url).stream())
    assert [type(e) for e in events] == [Prediction, Interrupted, Prediction]
    assert (events[1].reason, events[1].lost) == ("the port is gone", False)
    script.ended()


def test_a_device_that_says_nothing_at_all_is_asked_again():
    script = Script([event(1), None], [event(2), DONE])
    events = list(Client(script.url).stream(silence=0.5))
    assert [type(e) for e in events] == [Prediction, Interrupted, Prediction] and events[1].lost
    script.ended()


def test_a_stream_that_shall_not_reconnect_raises():
    script = Script([event(1)])
    with pytest.raises(OSError):
        list(Client(script.url).stream(reconnect=False))
    script.ended()


def test_a_refusal_that_asking_again_cannot_help_ends_a_stream():
    script = Script([event(1)], 404)
    with pytest.raises(Refused) as refused:
        list(Client(script.url).stream())
    assert refused.value.status == 404
    script.ended()
