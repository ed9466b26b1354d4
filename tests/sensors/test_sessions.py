"""Sessions of a nine-axis sensor, as the EdgeInfer service's clients use them."""

import json
import math
import re

import helpers
import places
import pytest
from contract.test_probes import check
from contract.wire import ask

AXES = ("ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz")
BASE = "/api/v1/analysis"


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A device of its own: sessions are counted."""
    device = helpers.Native(tmp_path_factory.mktemp("sessions"))
    try:
        yield device.wait_ready()
    finally:
        device.stop()


@pytest.fixture(scope="module")
def document(device):
    return device.request("/openapi.json").json()


@pytest.fixture
def call(device, document):
    """Asks, and holds the answer to the document."""

    def call(verb, name, body=None, query=""):
        sent = b"" if body is None else body if isinstance(body, str) else json.dumps(body)
        answer = ask(device, verb, f"{BASE}/{name}{query}", sent)
        check(document, f"{BASE}/{name}", verb, answer)
        return answer

    return call


@pytest.fixture
def start(call):
    """Starts sessions; each is stopped when the test ends."""
    started = []

    def start():
        answer = call("POST", "start")
        assert answer.status == 200 and answer.json()["status"] == "started", answer
        started.append(answer.json()["sessionId"])
        return started[-1]

    yield start
    for session in started:
        call("POST", "stop", {"sessionId": session})


def samples(rows, begin=1000.0, hertz=100):
    """Rows of nine values as a phone sends them."""
    return [{"t": begin + i / hertz, **dict(zip(AXES, row, strict=True))} for i, row in enumerate(rows)]


def moved(n, begin=1000.0, lag=0.0):
    """A sensor that is shaken, by a sum of waves."""

    def row(i):
        t = i / 100 - lag
        return [0, 0, 9.81 + math.sin(7 * t) + 0.7 * math.sin(17.3 * t + 1) + 0.4 * math.sin(3.1 * t), 0, 0, 0, 20, 0, 40]

    return samples([row(i) for i in range(n)], begin)


def push(call, session, some):
    return call("PUT", "stream", {"sessionId": session, "samples": some, "windowStart": some[0]["t"], "windowEnd": some[-1]["t"]})


def test_a_session_is_started_fed_asked_and_stopped(call, start, walk):
    session = start()
    rows = samples(walk["x"])
    first = push(call, session, rows[:60])
    assert first.status == 202 and first.json()["buffered"] == 60, first
    early = call("GET", "motifs", query=f"?sessionId={session}")
    assert early.status == 409 and early.json()["code"] == "too_few_samples" and "60 of 100" in early.json()["reason"]
    # Twenty of them come again: a phone that did not hear its answer.
    second = push(call, session.lower(), rows[40:])
    assert (second.json()["taken"], second.json()["late"], second.json()["totalSamples"]) == (40, 20, 100)
    told = call("GET", "motifs", query=f"?sessionId={session}").json()
    assert told["topK"] == len(told["motifs"]) == 3 and told["analysisWindowMs"] == 1000 and told["sessionId"] == session
    stopped = call("POST", "stop", {"sessionId": session})
    assert stopped.status == 200 and stopped.json()["totalSamples"] == 100 and stopped.json()["duration_s"] >= 0
    assert call("POST", "stop", {"sessionId": session}).status == 404


def test_motifs_are_those_of_the_model_that_serves(call, start, walk, device):
    session = start()
    push(call, session, samples(walk["x"]))
    scores = device.request("/infer", walk).json()["motif_scores"]
    told = call("GET", "motifs", query=f"?sessionId={session}&topK=12").json()["motifs"]
    assert {m["id"]: m["score"] for m in told} == {f"m{i + 1}": pytest.approx(s, abs=1e-5) for i, s in enumerate(scores)}
    assert [m["score"] for m in told] == pytest.approx(sorted(scores, reverse=True), abs=1e-5) and told[0]["description"] == "walk"
    # Asked again it says the same again: nothing of it is by chance.
    assert call("GET", "motifs", query=f"?sessionId={session}&topK=12").json()["motifs"] == told


def test_the_newest_window_counts_and_none_lies_across_a_gap(call, start, walk):
    session = start()
    sit = json.loads((places.ROOT / "tests/data/imu_sit.json").read_text())
    push(call, session, samples(walk["x"]))
    push(call, session, samples(sit["x"][:99], begin=1010))
    answer = call("GET", "motifs", query=f"?sessionId={session}")
    assert answer.status == 409 and "99 of 100" in answer.json()["reason"], answer
    push(call, session, samples(sit["x"][99:], begin=1010.99))
    told = call("GET", "motifs", query=f"?sessionId={session}").json()
    assert told["motifs"][0]["description"] == "sit", told


def test_a_sensor_of_another_rate_or_out_of_its_range_is_told(call, start, walk):
    slow, wild = start(), start()
    push(call, slow, samples(walk["x"], hertz=50))
    answer = call("GET", "motifs", query=f"?sessionId={slow}")
    assert answer.status == 409 and answer.json()["code"] == "other_rate" and "50.0 times a second" in answer.json()["reason"]
    rows = [list(row) for row in walk["x"]]
    rows[7][1] = 501
    push(call, wild, samples(rows))
    answer = call("GET", "motifs", query=f"?sessionId={wild}")
    assert answer.status == 400 and "Accelerometer" in answer.json()["reason"], answer


def test_two_sensors_are_compared_and_the_one_that_lags_is_found(call, start):
    one, other = start(), start()
    push(call, one, moved(1000))
    alone = call("GET", "synchrony", query=f"?sessionId={one}")
    assert alone.status == 400 and alone.json()["code"] == "one_session"
    push(call, other, moved(1000, lag=0.25))
    for query in (f"?sessionId={one}&otherSessionId={other}", f"?sessionId={one}"):
        told = call("GET", "synchrony", query=query).json()
        assert told["r"] > 0.99 and abs(told["lag_ms"] - 250) <= 10 and told["window_ms"] == 10000, told
        assert told["confidence"] > 0.99
    back = call("GET", "synchrony", query=f"?sessionId={other}&otherSessionId={one}").json()
    assert abs(back["lag_ms"] + 250) <= 10
    later = start()
    push(call, later, moved(300, begin=5000.0))
    apart = call("GET", "synchrony", query=f"?sessionId={one}&otherSessionId={later}")
    assert apart.status == 409 and apart.json()["code"] == "nothing_in_common"
    third = call("GET", "synchrony", query=f"?sessionId={one}")
    assert third.status == 400, "of three it is not clear which"


def test_mistakes_are_told_and_nothing_is_echoed(call, start):
    session = start()
    unknown = "00000000-0000-4000-8000-000000000000"
    for verb, name, body, query, status in [
        ("PUT", "stream", {"sessionId": unknown, "samples": []}, "", 400),
        ("PUT", "stream", "{", "", 400),
        ("PUT", "stream", {"sessionId": session, "samples": [{"t": 1}]}, "", 400),
        ("PUT", "stream", {"sessionId": session, "samples": [{**moved(1)[0], "ax": "evil"}]}, "", 400),
        ("PUT", "stream", {"sessionId": session, "samples": [{**moved(1)[0], "ax": 1e39}]}, "", 400),
        ("PUT", "stream", {"sessionId": session, "samples": moved(2001)}, "", 413),
        ("GET", "motifs", None, "", 400),
        ("GET", "motifs", None, f"?sessionId={unknown}", 404),
        ("GET", "motifs", None, f"?sessionId={session}&topK=0", 400),
        ("GET", "synchrony", None, "", 400),
        ("GET", "synchrony", None, "?sessionId=evil", 404),
        ("GET", "synchrony", None, f"?sessionId={session}&otherSessionId={unknown}", 404),
        ("POST", "stop", {}, "", 400),
        ("POST", "stop", {"sessionId": "evil"}, "", 404),
    ]:
        answer = call(verb, name, body, query)
        assert answer.status == status, (verb, name, query, answer)
        told = answer.json()
        assert told["error"] is True and told["reason"] and told["code"] and "evil" not in json.dumps(told), told
    assert call("GET", "motifs", query=f"?sessionId={session}").json()["reason"].startswith("0 of 100"), "none of it was kept"


COLLARS = "".join(
    f'[[sources]]\nname = "{name}"\nkind = "synthetic"\nmotion = "{motion}"\nseed = 3\n' for name, motion in (("collar", "walk"), ("twin", "walk"), ("wet", "shake"))
)


def test_a_source_of_motion_is_a_session_whose_windows_the_default_model_names(native, document):
    device = native(config=COLLARS)

    def call(verb, name, body=None, query=""):
        answer = ask(device, verb, f"{BASE}/{name}{query}", json.dumps(body) if body else b"")
        check(document, f"{BASE}/{name}", verb, answer)
        return answer

    def likeliest(source):
        answer = call("GET", "motifs", query=f"?sessionId={source}&topK=1")
        return answer.json()["motifs"][0]["description"] if answer.status == 200 else None

    helpers.until(lambda: likeliest("collar") == "walk", device)
    helpers.until(lambda: likeliest("wet") == "shake", device)
    listed = ask(device, "GET", "/api/v1/sources")
    check(document, "/api/v1/sources", "GET", listed)
    assert listed.json()["sources"] == [], "they give no windows of a muscle"
    told = {motion["name"]: motion for motion in listed.json()["motions"]}
    assert [(name, told[name]["kind"], told[name]["rate_hz"]) for name in told] == [(name, "synthetic", 100) for name in ("collar", "twin", "wet")]
    assert call("GET", "motifs", query=f"?sessionId={told['wet']['sessionId']}").json()["sessionId"] == told["wet"]["sessionId"]

    def alike():
        told = call("GET", "synchrony", query="?sessionId=collar&otherSessionId=twin").json()
        return told.get("r", 0) > 0.99 and told["lag_ms"] == 0

    # One seed is one animal; what a machine had no time for is missing on one side.
    helpers.until(alike, device)
    for verb, name, body in (("PUT", "stream", {"sessionId": "collar", "samples": moved(2)}), ("POST", "stop", {"sessionId": "collar"})):
        refused = call(verb, name, body)
        assert refused.status == 409 and refused.json()["code"] == "session_of_source", refused
    helpers.until(lambda: likeliest("collar") == "walk", device)


def test_places_are_few_and_sessions_are_counted(call, device):
    def number(name):
        return float(re.search(rf"^{name}(?:{{}})? (\S+)$", device.request("/metrics").body.decode(), re.M)[1])

    before, sessions = number("imu_sessions_started_total"), []
    while (answer := call("POST", "start")).status == 200:
        sessions.append(answer.json()["sessionId"])
    assert answer.status == 503 and answer.json()["code"] == "sessions" and len(sessions) == 32 == number("imu_sessions")
    assert number("imu_sessions_started_total") == before + 32
    push(call, sessions[0], moved(5))
    assert number("imu_session_samples_total") >= 5
    for session in sessions:
        assert call("POST", "stop", {"sessionId": session}).status == 200
    assert number("imu_sessions") == 0
