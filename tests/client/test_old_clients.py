"""Clients of the EMG service that were there before inferd, as they read what they get: its Python client, a ROS node, MATLAB.

Written from their description: the same fields taken in the same way, which is what breaks when an answer changes its form.
"""

import json
import math
import time
import urllib.error
import urllib.request

import pytest


class StreamingClient:
    """The service's streaming_client.py."""

    def __init__(self, url):
        self.url = url

    def _call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        call = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=60) as answer:
            return json.load(answer)

    def health_check(self):
        return self._call("/health")

    def get_stream_stats(self):
        return self._call("/infer/stream/stats")

    def single_inference_pytorch(self):
        return self._call("/infer", {"batch": 1, "channels": 16, "length": 200, "steps": 1})

    def single_inference_tensorrt(self):
        return self._call("/infer/tensorrt", {"batch": 1, "channels": 16, "length": 200})

    def benchmark(self, num_iterations):
        return self._call(f"/benchmark?num_iterations={num_iterations}", {})

    def stream_inference(self, duration, use_tensorrt, fps, callback):
        form = {"duration_seconds": duration, "use_tensorrt": use_tensorrt, "fps": fps}
        call = urllib.request.Request(self.url + "/infer/stream", json.dumps(form).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=60) as answer:
            for line in answer:
                line = line.decode().rstrip("\n")
                # With the space; anything else is not an event to it.
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return event
                if event.get("status") == "completed":
                    return event
                callback(
                    event["frame"], event["prediction"], event["confidence"], event["latency_ms"], event["backend"], event["cpu_percent"]
                )
        return None


def str2double(value):
    """MATLAB's: a number for a text that is one, NaN for everything else, numbers of JSON included."""
    if not isinstance(value, str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


@pytest.fixture
def old(device):
    return StreamingClient(device.url)


def test_the_streaming_client_reads_health_statistics_and_an_inference(old):
    assert old.health_check()["status"] == "ok" and "tensorrt_available" in old.health_check()
    stats = old.get_stream_stats()
    assert stats["emg_window_size"] == 200 and stats["emg_channels"] == 16 and stats["emg_sampling_rate"] == 2000
    told = old.single_inference_pytorch()
    # Its third example prints these; the last two were gone from the service's newest version.
    for field in ("latency_ms", "cpu_percent", "spikes", "shape"):
        assert isinstance(told[field], str), field
    assert told["shape"] == "[1, 7]"


def test_the_streaming_client_is_told_that_there_is_no_tensorrt(old):
    with pytest.raises(urllib.error.HTTPError) as refused:
        old.single_inference_tensorrt()
    assert refused.value.code == 503
    assert json.load(refused.value)["detail"] == "TensorRT runtime not available"


@pytest.mark.parametrize("use_tensorrt", [True, False])
def test_the_streaming_client_finds_every_field_in_every_frame_and_one_completion(old, use_tensorrt):
    frames = []
    last = old.stream_inference(1, use_tensorrt, 20, lambda *frame: frames.append(frame))
    assert last is not None and last["total_frames"] == len(frames) > 0
    for number, prediction, confidence, latency, backend, cpu in frames:
        assert isinstance(number, int) and 0 <= prediction < 7 and 0 <= confidence <= 1 and latency > 0 and cpu >= 0
        assert backend == "cpu"


def test_the_streaming_clients_benchmark_prints_what_it_prints(old):
    told = old.benchmark(10)
    for figure in ("mean_latency_ms", "median_latency_ms", "p99_latency_ms", "throughput_qps"):
        assert told["pytorch"][figure] > 0, told
    assert told["tensorrt"] is None


def test_matlab_reads_numbers_from_texts(old):
    assert old.health_check()["status"] == "ok"
    told = old.single_inference_pytorch()
    assert 0 <= str2double(told["pred_idx"]) < 7 and 0 < str2double(told["conf"]) <= 1 and str2double(told["latency_ms"]) > 0
    assert math.isnan(str2double(3)), "what a number of JSON would be to it"


@pytest.mark.parametrize("hertz", [30, 60])
def test_a_ros_node_that_polls_is_always_answered(old, hertz):
    published, due = 0, time.monotonic()
    for _ in range(3 * hertz):
        due += 1 / hertz
        time.sleep(max(0, due - time.monotonic()))
        # A new connection for each, and every value from a text.
        told = old._call("/infer", {})
        gesture, sure, latency = int(told["pred_idx"]), float(told["conf"]), float(told["latency_ms"])
        assert 0 <= gesture < 7 and latency > 0
        published += sure >= 0.7
    assert published == 3 * hertz, "a held gesture is never dropped for want of confidence"
