"""`POST /infer/stream` as its clients read it: to the byte, on its pace, with honest errors."""

import contextlib
import itertools
import json
import math
import socket
from concurrent.futures import ThreadPoolExecutor

import helpers
import pytest
from contract.test_probes import check
from contract.test_access import lan  # noqa: F401 - an address of this machine that is not loopback
from contract.wire import ask
from sensors.conftest import EMG_MODEL
from sensors.sensor import Sensor, encoder, recording, source

# What the streaming client of the service takes from every event that is neither an error nor the last.
CLIENT_KEYS = {"frame", "prediction", "confidence", "latency_ms", "backend", "cpu_percent", "timestamp", "shape"}


GESTURES = {"Rest", "Hand Open", "Hand Close", "Wrist Flex", "Wrist Extend", "Pinch", "Point"}


class Events:
    """A connection to the stream: every chunk as it came."""

    def __init__(self, device, form=None, headers=(), host="127.0.0.1", buffer=None):
        self.socket = socket.socket()
        self.socket.settimeout(60)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect((host, device.port))
        self.reader = self.socket.makefile("rb")
        body = b"" if form is None else json.dumps(form).encode()
        head = "POST /infer/stream HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.status = int(self.reader.readline().split()[1])
        self.headers = {}
        while (line := self.reader.readline().strip()) != b"":
            name, value = line.decode().split(": ", 1)
            self.headers[name.lower()] = value

    def chunks(self):
        while size := int(self.reader.readline(), 16):
            chunk = self.reader.read(size)
            assert self.reader.readline() == b"\r\n"
            yield chunk

    def __iter__(self):
        for chunk in self.chunks():
            if not chunk.startswith(b":"):
                yield json.loads(chunk.split(b"data: ", 1)[1])

    def predictions(self):
        """Those that are no errors: on a busy machine a source stands still for a moment, and that is told."""
        return (event for event in self if "error" not in event)

    def close(self):
        self.reader.close()
        self.socket.close()


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A device with a recording (gesture 4, first), a generator, and a source that nobody pushes to."""
    folder = tmp_path_factory.mktemp("stream")
    file = recording(folder / "arm.npy", 4)
    config = (
        f'[[sources]]\nname = "tape"\nkind = "recording"\npath = "{file}"\n'
        '[[sources]]\nname = "demo"\nkind = "synthetic"\n[[sources]]\nname = "phone"\nkind = "push"\n'
    )
    device = helpers.Native(folder, models=[EMG_MODEL], config=config)
    try:
        device.wait_ready()
        for name in ("tape", "demo"):
            helpers.until(lambda name=name: source(device, name)["predictions"] > 0, device)
        yield device
    finally:
        device.stop()


def test_the_wire_is_the_services_to_the_byte(device):
    events = Events(device, {"duration_seconds": 1, "fps": 10})
    assert events.status == 200
    assert events.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events.headers["cache-control"] == "no-cache" and events.headers["x-accel-buffering"] == "no"
    chunks = list(events.chunks())
    for chunk in chunks:
        # One event a write, and nothing but its data.
        assert chunk.startswith(b"data: {") and chunk.endswith(b"}\n\n") and chunk.count(b"\n") == 2, chunk
        assert len(chunk) < 1400, "it fits one segment"
    *frames, last = (event for event in (json.loads(chunk[6:]) for chunk in chunks) if "error" not in event)
    assert all(CLIENT_KEYS <= set(frame) for frame in frames), frames
    assert [frame["frame"] for frame in frames] == list(range(len(frames)))
    assert all((f["prediction"], f["label"], f["backend"], f["source"]) == (4, "Wrist Extend", "cpu", "tape") for f in frames)
    assert all(f["emg_tensor_shape"] == [1, 200, 16] and f["shape"] == [1, 7] and f["status"] == "running" for f in frames)
    assert set(last) == {"status", "total_frames", "duration_seconds", "avg_fps"}
    assert last["status"] == "completed" and last["total_frames"] == len(frames)
    # The grid has 10 places in a second, and one at its beginning.
    assert 1 <= len(frames) <= 11


def test_a_body_is_optional_and_the_stream_has_no_end_then(device):
    events = Events(device)
    assert [event["frame"] for event, _ in zip(events.predictions(), range(40))] == list(range(40))
    events.close()


def test_a_window_is_told_once_however_fast_is_asked(device):
    events = list(Events(device, {"duration_seconds": 2, "fps": 120}).predictions())
    windows = [event["window"] for event in events[:-1]]
    assert windows == sorted(set(windows)) and len(windows) > 1, "none twice"
    for before, after in itertools.pairwise(events[:-1]):
        assert after["sample"] - before["sample"] >= 40 * (after["window"] - before["window"]), "it begins a hop later at least"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": -5}, "fps"),
        ({"fps": 121}, "fps"),
        ({"fps": 12.5}, "fps"),
        ({"fps": None}, "fps"),
        ({"duration_seconds": 0}, "duration_seconds"),
        ({"duration_seconds": -1}, "duration_seconds"),
        ({"duration_seconds": "long"}, "duration_seconds"),
        ({"emg_mode": None}, "emg_mode"),
        ({"emg_mode": "bogus"}, "emg_mode"),
        ({"model_type": "SNN"}, "model_type"),
        ({"preprocess": "perhaps"}, "preprocess"),
        ({"use_tensorrt": 7}, "use_tensorrt"),
    ],
)
def test_what_cannot_be_is_told_before_the_200(device, change, field):
    answer = ask(device, "POST", "/infer/stream", json.dumps({"duration_seconds": 1, **change}))
    assert answer.status == 422 and answer.json()["detail"][0]["loc"] == ["body", field], answer
    check(device.request("/openapi.json").json(), "/infer/stream", "POST", answer)


def test_a_source_that_is_not_live_is_told_before_the_200(device):
    helpers.until(lambda: source(device, "phone")["state"] == "stale", "nobody pushes")
    answer = ask(device, "POST", "/infer/stream", '{"emg_mode":"phone"}')
    assert (answer.status, answer.json()["error"]) == (503, "source_unavailable") and "push" in answer.json()["detail"]


def test_a_device_without_a_source_says_so(emg):
    answer = ask(emg, "POST", "/infer/stream")
    assert answer.status == 503 and "source" in answer.json()["detail"]
    assert ask(emg, "POST", "/infer/stream", '{"emg_mode":"dummy"}').status == 422


def test_every_client_has_the_source_it_asked_for(device):
    wanted = {"dummy": "demo", "ninapro": "tape", "demo": "demo", "tape": "tape"}
    streams = {mode: Events(device, {"emg_mode": mode, "fps": 20}) for mode in wanted}
    for _ in range(3):
        for mode, name in wanted.items():
            assert next(streams[mode].predictions())["source"] == name
    for stream in streams.values():
        stream.close()


def test_numbers_may_be_strings_and_tensorrt_that_is_not_there_is_said(device):
    events = Events(device, {"duration_seconds": "1", "fps": "10", "use_tensorrt": True, "model_type": "TCN"})
    assert events.status == 200 and events.headers["x-inferd-fallback"] == "TensorRT runtime not available"
    assert all(event["backend"] == "cpu" for event in list(events.predictions())[:-1])


def test_a_client_may_ask_for_windows_as_they_are(device):
    for preprocess, score in ((True, 1), (False, 2)):
        event = next(Events(device, {"preprocess": preprocess, "fps": 5}).predictions())
        assert abs(event["confidence"] - math.exp(score) / (math.exp(score) + 6)) < 1e-3, (preprocess, event)
        told = ask(device, "POST", "/infer", json.dumps({"preprocess": preprocess, "emg_mode": "ninapro"})).json()
        assert abs(float(told["conf"]) - event["confidence"]) < 1e-3


def test_who_comes_back_gets_what_it_missed(device):
    events = Events(device, {"fps": 120}, [("Last-Event-ID", "")])
    chunks = [chunk for chunk, _ in zip(events.chunks(), range(5))]
    events.close()
    assert all(chunk.startswith(b"id: ") for chunk in chunks), chunks
    first = int(chunks[0].split()[1])
    again = Events(device, {"fps": 1}, [("Last-Event-ID", str(first))])
    chunks = [chunk for chunk, _ in zip(again.chunks(), range(4))]
    again.close()
    assert [int(chunk.split()[1]) for chunk in chunks] == list(range(first + 1, first + 5)), "each, and at once"
    assert [json.loads(chunk.split(b"data: ", 1)[1])["frame"] for chunk in chunks] == [0, 1, 2, 3]


def clients(device):
    return device.request("/infer/stream/stats").json()["clients"]


def test_a_client_that_leaves_costs_nothing_any_more(device):
    helpers.until(lambda: clients(device) == 0, "all have left")
    events = Events(device)
    next(iter(events))
    assert clients(device) == 1
    events.close()
    helpers.until(lambda: clients(device) == 0, "its task ends")


def test_64_clients_that_do_not_read_hold_up_nobody_and_a_65th_is_told_to_wait(device):
    helpers.until(lambda: clients(device) == 0, "all have left")
    with contextlib.ExitStack() as stack:
        for _ in range(63):
            stack.callback(Events(device, {"fps": 120}).close)
        place = Events(device, {"fps": 20, "duration_seconds": 60})
        answer = ask(device, "POST", "/infer/stream")
        assert answer.status == 503 and answer.headers["retry-after"], answer
        check(device.request("/openapi.json").json(), "/infer/stream", "POST", answer)
        place.close()
        helpers.until(lambda: clients(device) == 63, "a place is free")
        reader = Events(device, {"fps": 20, "duration_seconds": 1.5})
        *frames, last = reader.predictions()
        assert last["status"] == "completed" and last["total_frames"] == len(frames) > 1
        assert [frame["frame"] for frame in frames] == list(range(len(frames))), "none was missed"
    helpers.until(lambda: clients(device) == 0, "all have left")


def test_a_slow_client_reads_what_is_new_and_is_told_how_many_gave_way(device):
    def missed():
        return device.request("/infer/stream/stats").json()["frames_missed"]

    before = missed()
    events = Events(device, {"fps": 120}, buffer=4096)
    helpers.until(lambda: missed() >= before + 100, "events to give way")
    known = source(device, "tape")["predictions"]
    told = list(itertools.islice(events, 300))
    events.close()
    # What lay in buffers, and then what is new.
    new = [event for event in told if event["skipped"]][-1]
    assert new["window"] >= known, (new, known)
    for before, after in itertools.pairwise(told):
        assert after["frame"] == before["frame"] + 1 + after["skipped"]


def test_one_client_cannot_take_all_places_and_the_device_itself_may(native, lan):
    config = '[server]\nmax_streams_per_client = 2\n[[sources]]\nname = "demo"\nkind = "synthetic"\n'
    device = native(models=[EMG_MODEL], config=config, listen="0.0.0.0")
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    with contextlib.ExitStack() as stack:
        far = [Events(device, host=lan) for _ in range(2)]
        near = [Events(device) for _ in range(3)]
        for events in far + near:
            stack.callback(events.close)
        assert [events.status for events in far + near] == [200] * 5
        refused = Events(device, host=lan)
        assert refused.status == 429 and refused.headers["retry-after"] == "5"
        assert json.loads(refused.reader.read(int(refused.headers["content-length"])))["error"] == "streams_of_client"
        refused.close()
        far[0].close()

        def admitted():
            events = Events(device, host=lan)
            events.close()
            return events.status == 200

        helpers.until(admitted, "the place of who has left")


def test_events_carry_what_the_source_itself_says_is_done_where_it_says_so(native, tmp_path, device):
    rows = [[0.0] * 16 + [number] for number in (10, 11) for _ in range(2000)]
    for row in rows:
        row[{10: 1, 11: 5}[row[-1]]] = 2.0
    lines = [",".join([*(f"e{n}" for n in range(16)), "label"])] + [",".join(map(str, row)) for row in rows]
    (tmp_path / "said.csv").write_text("\n".join(lines) + "\n")
    labelled = native(models=[EMG_MODEL], config=f'[[sources]]\nname = "said"\nkind = "recording"\npath = "{tmp_path}/said.csv"\n')
    helpers.until(lambda: source(labelled)["predictions"] > 0, labelled)
    events = Events(labelled, {"fps": 120})
    seen = {}
    for event in events.predictions():
        # The loudest electrode of most samples, and the label of most.
        seen.setdefault((event["source_label"], event["prediction"]), event)
        if {label for label, _ in seen} == {10, 11}:
            break
    events.close()
    assert set(seen) == {(10, 1), (11, 5)} and all("source_label_name" not in event for event in seen.values())
    demo, tape = (next(Events(device, {"emg_mode": mode}).predictions()) for mode in ("dummy", "ninapro"))
    assert demo["source_label"] in range(7) and demo["source_label_name"] in GESTURES
    assert "source_label" not in tape and "source_label_name" not in tape


def test_a_stream_does_not_give_way_to_new_connections(native):
    config = '[server]\nmax_connections = 2\n[[sources]]\nname = "demo"\nkind = "synthetic"\n'
    device = native(models=[EMG_MODEL], config=config)
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    events = Events(device)
    frames = events.predictions()
    begun = next(frames)["timestamp"]
    with socket.create_connection(("127.0.0.1", device.port), timeout=60) as idle:
        # Both are old enough to be spared, and the stream is the older one.
        while next(frames)["timestamp"] < begun + 2:
            pass
        assert ask(device, "GET", "/livez").status == 200
        assert idle.recv(1) == b"", "the idle one has given way"
    last = next(frames)["frame"]
    assert [next(frames)["frame"] for _ in range(5)] == list(range(last + 1, last + 6))
    events.close()


def test_the_stats_are_measured(device):
    list(Events(device, {"duration_seconds": 0.5}))
    answer = ask(device, "GET", "/infer/stream/stats")
    check(device.request("/openapi.json").json(), "/infer/stream/stats", "GET", answer)
    stats = answer.json()
    shape = (stats["emg_window_size"], stats["emg_channels"], stats["emg_sampling_rate"], stats["emg_mode"])
    assert shape == (200, 16, 2000.0, "ninapro") and stats["tensorrt_available"] is False
    assert stats["frames_sent"] > 0 and stats["latency_ms"]["samples"] > 0
    assert 0 < stats["latency_ms"]["p50"] <= stats["latency_ms"]["p95"] <= stats["latency_ms"]["p99"]
    assert stats["max_throughput_qps"] == pytest.approx(1000 / stats["expected_latency_ms"], rel=0.01)
    assert "emg_stream_frames_total " in device.request("/metrics").body.decode()


def test_nothing_is_known_before_it_is_measured(emg):
    stats = emg.request("/infer/stream/stats").json()
    assert stats["max_throughput_qps"] is None and stats["expected_latency_ms"] is None and stats["emg_window_size"] == 200


def test_an_unplugged_sensor_is_told_in_the_stream_and_it_goes_on_when_it_is_back(native, tmp_path):
    sensor = Sensor(tmp_path, encoder(tmp_path))
    try:
        sensor.gesture = 2
        sensor.plug()
        device = native(models=[EMG_MODEL], config=f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "{sensor.path}"\n')
        helpers.until(lambda: source(device)["predictions"] > 0, device)
        events = iter(Events(device, {"fps": 20, "emg_mode": "realtime", "duration_seconds": 30}))
        assert next(event for event in events if "error" not in event)["prediction"] == 2
        sensor.unplug()
        wrong = next(event for event in events if "/port" in event.get("error", ""))
        assert "arm" in wrong["error"] and {"timestamp", "frame"} <= set(wrong)
        sensor.gesture = 6
        sensor.plug()
        assert next(event for event in events if event.get("prediction") == 6)["frame"] == wrong["frame"]
    finally:
        sensor.unplug()


def test_a_model_that_is_gone_is_told_in_the_stream_and_it_goes_on_when_it_is_back(native):
    device = native(models=[EMG_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\n')
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    # With an end, so that what is never told is seen to be.
    events = iter(Events(device, {"fps": 20, "duration_seconds": 30}))
    assert "prediction" in next(event for event in events if "error" not in event)
    assert ask(device, "POST", "/v2/repository/models/emg-loudest/unload").status == 200
    assert any("no model" in event.get("error", "") for event in events), "the stream says why"
    assert source(device)["state"] == "live" and "no model" in source(device)["problem"]
    assert ask(device, "POST", "/v2/repository/models/emg-loudest/load").status == 200
    assert "prediction" in next(event for event in events if "error" not in event)


def test_the_newest_window_is_there_while_the_model_is_replaced(native):
    device = native(models=[EMG_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\n')
    helpers.until(lambda: ask(device, "POST", "/infer").status == 200, device)
    gaps = source(device)["gaps"]
    with ThreadPoolExecutor(1) as pool:
        replaced = pool.submit(lambda: [ask(device, "POST", "/v2/repository/models/emg-loudest/load").status for _ in range(3)])
        answers = []
        while not replaced.done():
            answers.append(ask(device, "POST", "/infer").status)
    assert replaced.result() == [200] * 3 and len(answers) > 3
    assert set(answers) == {200} and source(device)["gaps"] == gaps


def test_a_daemon_that_ends_completes_its_streams(native):
    device = native(models=[EMG_MODEL], config='[[sources]]\nname = "demo"\nkind = "synthetic"\n')
    helpers.until(lambda: source(device)["predictions"] > 0, device)
    events = iter(Events(device))
    next(events)
    device.process.terminate()
    assert [event["status"] for event in events][-1] == "completed"


def test_a_recording_that_ends_completes_the_stream_once(native, tmp_path):
    file = tmp_path / "arm.npy"
    config = f'[[sources]]\nname = "arm"\nkind = "recording"\npath = "{file}"\nloop = false\n'
    device = native(models=[EMG_MODEL], config=config)
    recording(tmp_path / "new.npy", 3, seconds=3).rename(file)
    helpers.until(lambda: source(device)["state"] == "live", device)
    events = list(Events(device, {"fps": 30}))
    assert [event.get("status") for event in events].count("completed") == 1 and events[-1]["status"] == "completed"
