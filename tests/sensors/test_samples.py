"""`/emg/stream`: the samples of a source, as the `websockets` library sees them."""

import itertools
import json

import helpers
import places
import pytest
from contract.test_probes import check
from contract.wire import ask
from sensors.sensor import RATE, source
from sensors.test_socket import Frames, messages, opened
from sensors.test_stream import device  # noqa: F401 - the same device


def told(connection):
    return json.loads(connection.recv(timeout=60))


def with_samples(connection):
    """Messages that are not about the state."""
    return (message for message in iter(lambda: told(connection), None) if "state" not in message)


def test_samples_come_as_they_are_in_order_and_each_once(device):
    with opened(device, "emg_mode=tape&block_ms=20", path="/emg/stream") as connection:
        # A busy machine may have let it stand still for a moment.
        first = next(message for message in iter(lambda: told(connection), None) if message.get("state") == "live")
        assert first == {"source": "tape", "state": "live", "reason": "", "channels": 16, "rate_hz": RATE}
        blocks = list(itertools.islice(with_samples(connection), 20))
    row = [0.0] * 16
    row[4] = 2.0
    assert all(sample == row for block in blocks for sample in block["samples"]), "neither filtered nor scaled"
    for block in blocks:
        assert (block["source"], block["channels"], block["every"], block["rate_hz"]) == ("tape", 16, 1, RATE)
        assert block["t"] == pytest.approx(block["sequence"] / RATE, abs=1e-5) and "min" not in block
    for before, after in itertools.pairwise(blocks):
        assert after["sequence"] == before["sequence"] + len(before["samples"]) + after["dropped"]


def test_an_outline_has_the_least_and_the_greatest_in_a_fraction_of_the_bytes(device):
    with opened(device, "emg_mode=demo&every=40&block_ms=100", path="/emg/stream") as connection:
        blocks = list(itertools.islice(with_samples(connection), 10))
    points = sum(len(block["min"]) for block in blocks)
    assert all("samples" not in block and len(block["min"]) == len(block["max"]) for block in blocks)
    assert all(block["sequence"] % 40 == 0 for block in blocks)
    assert all(low <= high for b in blocks for lows, highs in zip(b["min"], b["max"]) for low, high in zip(lows, highs))
    assert any(low < high for low, high in zip(blocks[0]["min"][0], blocks[0]["max"][0])), "a signal that moves"
    # 50 points a second of 16 channels: less than 24 KiB.
    assert sum(len(json.dumps(block)) for block in blocks) / points * 50 < 24 * 1024


def push(device, name, sequence, samples):
    answer = ask(device, "POST", f"/api/v1/sources/{name}/samples", json.dumps({"sequence": sequence, "samples": samples}))
    assert answer.status == 202, answer


def test_a_source_that_stops_is_said_to_and_what_is_missing_lies_between_messages(native):
    """Of a device without a model for muscle signals: samples need none."""
    config = '[[sources]]\nname = "phone"\nkind = "push"\nchannels = 2\nrate_hz = 100\n'
    device = native(models=[places.DEFAULT_MODEL], config=config)
    helpers.until(lambda: source(device)["state"] == "stale", "nobody pushes")
    with opened(device, path="/emg/stream") as connection:
        first = told(connection)
        assert (first["state"], first["channels"]) == ("stale", 2) and "push" in first["reason"]
        push(device, "phone", 0, [[1, -1], [2, -2]])
        push(device, "phone", 7, [[3.5, 0]])
        seen = []
        while sum(len(m.get("samples", [])) for m in seen) < 3 or seen[-1].get("state") != "stale":
            seen.append(told(connection))
    states = [m["state"] for m in seen if "state" in m]
    assert (states[0], states[-1]) == ("live", "stale")
    blocks = [(m["sequence"], row) for m in seen if "samples" in m for row in [m["samples"]]]
    assert sum((rows for _, rows in blocks), []) == [[1, -1], [2, -2], [3.5, 0]]
    assert blocks[-1] == (7, [[3.5, 0]]), "no message has a gap in it"


def test_who_reads_too_slowly_misses_the_oldest_and_is_told_how_many(device):
    def stats():
        return device.request("/infer/stream/stats").json()

    before = stats()["samples_dropped"]
    frames = Frames(device, "/emg/stream?emg_mode=demo", 4096)
    # The first second is on its way or kept; what comes after it gives way.
    begun = source(device, "demo")["samples"]
    helpers.until(lambda: source(device, "demo")["samples"] > begun + 4 * RATE, "four seconds of samples", timeout=120)
    assert stats()["sample_clients"] == 1
    next_one = None
    for message in frames:
        if "samples" not in message:
            continue
        if next_one is not None:
            assert message["sequence"] == next_one + message["dropped"], "nothing is lost without a word"
        if message["dropped"] > RATE / 2:
            break
        next_one = message["sequence"] + len(message["samples"])
    assert stats()["samples_dropped"] >= before + message["dropped"]
    frames.close()
    helpers.until(lambda: stats()["sample_clients"] == 0, "it is known to have left")


@pytest.mark.parametrize(
    ("query", "field"),
    [("every=0", "every"), ("every=0.5", "every"), ("block_ms=5", "block_ms"), ("emg_mode=bogus", "emg_mode"), ("fps=3", "query")],
)
def test_what_cannot_be_is_told_in_a_message(device, query, field):
    with opened(device, query, path="/emg/stream") as connection:
        [message], closed = messages(connection)
    assert (message["status"], message["detail"][0]["loc"], closed[0]) == (422, ["body", field], 1008)


def test_a_device_without_a_source_says_so_and_what_is_no_websocket_is_told_to_be_one(emg):
    with opened(emg, path="/emg/stream") as connection:
        [message], closed = messages(connection)
    assert (message["error"], closed[0]) == ("source_unavailable", 1013) and "no source" in message["detail"]
    answer = ask(emg, "GET", "/emg/stream")
    assert answer.status == 426
    check(emg.request("/openapi.json").json(), "/emg/stream", "GET", answer)


def test_a_recording_that_ends_ends_its_samples(native, tmp_path):
    rows = "\n".join(["a,b"] + ["1,2"] * 300)
    (tmp_path / "short.csv").write_text(rows + "\n")
    config = f'[[sources]]\nname = "short"\nkind = "recording"\npath = "{tmp_path}/short.csv"\nloop = false\nchannels = 2\nrate_hz = 100\n'
    device = native(models=[places.DEFAULT_MODEL], config=config)
    with opened(device, path="/emg/stream") as connection:
        told, closed = messages(connection)
    assert told[-1] == {"source": "short", "state": "over", "reason": "the recording is over", "channels": 2, "rate_hz": 100}
    assert closed[0] == 1000 and all(row == [1, 2] for m in told for row in m.get("samples", []))
