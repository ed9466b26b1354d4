"""`/infer` and its relatives: the contract of the IMU sidecar, row by row, and what the original got wrong."""

import json
import math
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from contract.wire import Wire, ask, window

JSON = [("Content-Type", "application/json")]


def infer(daemon, body, headers=JSON, path="/infer"):
    return ask(daemon, "POST", path, body, headers)


def refused(answer):
    """(type, message) of a 422 in FastAPI's form."""
    assert answer.status == 422 and answer.headers["content-type"] == "application/json", answer
    [item] = answer.json()["detail"]
    assert set(item) <= {"type", "loc", "msg", "ctx"}, "and no echo of the input"
    assert item["loc"][0] == "body"
    return item["type"], item["msg"]


def test_a_window_becomes_a_latent_and_twelve_scores(daemon, walk):
    answer = infer(daemon, json.dumps(walk))
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["latent", "motif_scores"]
    assert len(body["latent"]) == 64 and all(abs(v) <= 10 for v in body["latent"])
    assert len(body["motif_scores"]) == 12 and all(0 <= v <= 1 for v in body["motif_scores"])
    labels = daemon.request("/contract").json()["motif_labels"]
    assert labels[body["motif_scores"].index(max(body["motif_scores"]))] == "walk", "it really looks at its input"
    assert answer.headers["x-inferd-motif-source"] in ("output", "linear")


def test_the_same_window_gives_the_same_answer_and_another_gives_another(daemon, walk):
    first, again = infer(daemon, json.dumps(walk)), infer(daemon, json.dumps(walk))
    assert first.body == again.body
    assert infer(daemon, window()).body != first.body


def test_it_agrees_with_the_open_inference_protocol(daemon, walk):
    latent = infer(daemon, json.dumps(walk)).json()["latent"]
    model = daemon.request("/contract").json()["model"]
    flat = [v for row in walk["x"] for v in row]
    tensor = {"name": "imu_window", "shape": [1, 100, 9], "datatype": "FP32", "data": flat}
    body = json.dumps({"inputs": [tensor]})
    outputs = ask(daemon, "POST", f"/v2/models/{model}/infer", body).json()["outputs"]
    raw = next(o["data"] for o in outputs if len(o["data"]) == 64)
    assert latent == [max(-10.0, min(10.0, v)) for v in raw], "the same numbers, clipped to the clients' contract"


NUMBER = "Input should be a valid number"
LIST = "Input should be a valid list"
OBJECT = "Input should be a valid dictionary or object to extract fields from"
MISTAKES = [
    ("no body", "", "missing", "Field required"),
    ("an empty object", "{}", "missing", "Field required"),
    ("another key", '{"imu":[]}', "missing", "Field required"),
    ("a list", "[]", "model_attributes_type", OBJECT),
    ("null", "null", "model_attributes_type", OBJECT),
    ("x is null", '{"x":null}', "list_type", LIST),
    ("x is text", '{"x":"abc"}', "list_type", LIST),
    ("a row is a number", window(changed={5: "1"}), "list_type", LIST),
    ("a value is null", window(changed={(3, 4): "null"}), "float_type", NUMBER),
    ("a value is text", window(changed={(3, 4): '"1.5"'}), "float_type", NUMBER),
    ("a value is true", window(changed={(3, 4): "true"}), "float_type", NUMBER),
    ("a value is a list", window(changed={(3, 4): "[0]"}), "float_type", NUMBER),
    ("no rows", '{"x":[]}', "value_error", "Value error, Expected 100 timesteps, got 0"),
    ("50 rows", window(rows=50), "value_error", "Value error, Expected 100 timesteps, got 50"),
    ("105 rows", window(rows=105), "value_error", "Value error, Expected 100 timesteps, got 105"),
    ("5 columns", window(columns=5), "value_error", "Value error, Timestep 0 has 5 channels, expected 9"),
    ("one row too long", window(changed={9: "[0,0,0,0,0,0,0,0,0,0]"}), "value_error", "Value error, Timestep 9 has 10 channels, expected 9"),
    ("NaN", window(changed={(7, 2): "NaN"}), "value_error", "Value error, Non-finite value at timestep 7, channel 2: nan"),
    ("Infinity", window(changed={(7, 2): "Infinity"}), "value_error", "Value error, Non-finite value at timestep 7, channel 2: inf"),
    ("-Infinity", window(changed={(7, 2): "-Infinity"}), "value_error", "Value error, Non-finite value at timestep 7, channel 2: -inf"),
    ("1e400", window(changed={(7, 2): "1e400"}), "value_error", "Value error, Non-finite value at timestep 7, channel 2: inf"),
    ("accelerometer", window(changed={(0, 2): "-500.5"}), "value_error", "Value error, Accelerometer value out of range: -500.5"),
    ("gyroscope", window(changed={(99, 3): "35.1"}), "value_error", "Value error, Gyroscope value out of range: 35.1"),
    ("magnetometer", window(changed={(50, 8): "2e3", (51, 8): "2000.1"}), "value_error", "Value error, Magnetometer value out of range: 2000.1"),
    ("rows before columns", window(rows=99, columns=8), "value_error", "Value error, Expected 100 timesteps, got 99"),
    ("columns before values", window(changed={0: "[NaN]"}), "value_error", "Value error, Timestep 0 has 1 channels, expected 9"),
    ("finite before ranges", window(changed={(0, 0): "501", (9, 0): "NaN"}), "value_error", "Value error, Non-finite value at timestep 9, channel 0: nan"),
    ("types before rows", window(rows=3, changed={(2, 8): "{}"}), "float_type", NUMBER),
]


@pytest.mark.parametrize(("body", "kind", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_told_in_the_contracts_words(daemon, body, kind, message):
    assert refused(infer(daemon, body)) == (kind, message)


@pytest.mark.parametrize(
    "body",
    [
        b"{", b'{"x":', b'{"x":[[1,2', b'{"x":[[1,]]}', b"nope", b"x=1&y=2", b'{"x":[]} []', b'{"x":[[01]]}', b"\xff\xfe\x00",
        b'{"x":[["\xff"]]}', b"{'x':[]}", b"[" * 100_000, b'{"x":' * 10_000, b"\x00" * 100, b'{"\xed\xa0\x80":1}',
    ],
    ids=lambda b: repr(b[:12]),
)
def test_what_is_not_json_is_a_422_that_says_where(daemon, body):
    kind, message = refused(infer(daemon, body))
    assert kind == "json_invalid" and message.startswith("JSON decode error: ")


def test_bounds_belong_to_the_range(daemon):
    body = window(changed={(0, 0): "500", (0, 1): "-500.0", (1, 3): "35", (1, 5): "-35.0", (2, 6): "2e3", (2, 8): "-2000"})
    assert infer(daemon, body).status == 200


def test_a_refusal_does_not_repeat_what_was_sent(daemon):
    for body in ('{"x":"s3cret"}', '{"s3cret":1}', "s3cret", window(changed={(0, 0): '"s3cret"'})):
        assert b"s3cret" not in infer(daemon, body).body


def test_extra_keys_are_ignored_and_the_last_duplicate_wins(daemon):
    good, bad = window()[5:-1], "[[1]]"
    for body in (
        f'{{"device":"a","x":{good},"note":{{"x":[1,2]}}}}',
        f'{{"x":{bad},"x":{good}}}',
        f'{{"x":null,"x":{good}}}',
        f'{{"deep":{"[" * 5000}{"]" * 5000},"x":{good}}}',
        f'{{"nan":NaN,"x":{good}}}',
    ):
        assert infer(daemon, body).status == 200, body[:40]
    assert refused(infer(daemon, f'{{"x":{good},"x":{bad}}}'))[1] == "Value error, Expected 100 timesteps, got 1"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Type", "application/json")],
        [("Content-Type", "application/json; charset=utf-8"), ("Content-Type", "application/json")],
        [("content-type", "text/plain")],
        [("Content-Type", "application/json"), ("Inference-Deadline-Ms", "60000")],
    ],
    ids=["none", "one", "two", "another", "deadline"],
)
def test_headers_clients_send(daemon, walk, headers):
    assert infer(daemon, json.dumps(walk), headers).status == 200


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1.5", "", "99999999999999999999", "1e3", "0x10", "１"])
def test_a_deadline_that_makes_no_sense_is_a_mistake(daemon, value):
    answer = infer(daemon, window(), [("Inference-Deadline-Ms", value.encode().decode("latin-1"))])
    assert answer.status == 400 and answer.json()["error"] == "bad_deadline"


def test_a_compressed_body_is_refused_by_name(daemon):
    answer = infer(daemon, b"\x1f\x8b\x08", [("Content-Encoding", "gzip")])
    assert answer.status == 415 and "gzip" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/infer/infer", "/api/v1/analysis/infer"])
def test_the_aliases_answer_the_same(daemon, walk, path):
    body = json.dumps(walk)
    assert infer(daemon, body, path=path).body == infer(daemon, body).body


def test_the_older_contract_answers_mistakes_with_400(daemon):
    for body, reason in (
        (window(rows=50), "Input must have exactly 100 rows"),
        (window(changed={4: "[0,0,0,0,0]"}), "Row 4 must have exactly 9 columns"),
        (window(changed={(0, 0): "501"}), "Accelerometer value out of range: 501.0"),
        ("{}", "x is missing"),
        ("", "the body is empty"),
    ):
        answer = infer(daemon, body, path="/api/v1/analysis/infer")
        assert (answer.status, answer.json()) == (400, {"error": True, "reason": reason})


def test_encode_gives_the_latent_of_either_key(daemon, walk):
    latent = infer(daemon, json.dumps(walk)).json()["latent"]
    for key in ("imu_window", "x"):
        answer = infer(daemon, json.dumps({key: walk["x"]}), path="/encode")
        body = answer.json()
        assert answer.status == 200 and list(body) == ["latent_embedding", "model_version", "accuracy"]
        assert body["latent_embedding"] == latent
        assert isinstance(body["model_version"], str) and 0 < body["accuracy"] <= 1
    assert refused(infer(daemon, '{"imu_data":[[1],[2]]}', path="/encode")) == ("missing", "Field required")


def test_lenient_numbers_and_strict_400_are_switches(native):
    daemon = native(config="[compat]\nlenient_numbers = true\nstrict_400 = true\n")
    assert infer(daemon, window(changed={(0, 0): '"1.5"', (0, 1): "true"})).status == 200
    answer = infer(daemon, window(changed={(0, 0): '"abc"'}))
    assert answer.status == 400 and answer.json()["detail"][0]["type"] == "float_parsing"


def test_no_damage_to_a_body_is_ever_our_mistake(daemon, walk):
    pristine = json.dumps(walk).encode()
    dice = random.Random(7)
    with Wire(daemon) as wire:
        for _ in range(400):
            body = bytearray(pristine)
            for _ in range(dice.randint(1, 3)):
                at = dice.randrange(len(body))
                choice = dice.randrange(3)
                if choice == 0:
                    body[at] = dice.randrange(256)
                elif choice == 1:
                    del body[at : at + dice.randrange(1, 50)]
                else:
                    body[at:at] = dice.choice([b"[", b"]", b"{", b'"', b"1e999", b"NaN", b",", b"\\", b"\xc3"])
            answer = wire.request("POST", "/infer", bytes(body)).answer()
            assert answer.status in (200, 422), (answer, bytes(body))
            if answer.status == 200:
                assert all(math.isfinite(v) for v in answer.json()["latent"])


def test_a_large_body_is_parsed_beside_the_network_not_on_it(daemon):
    rows = ",".join(["[0,0,0,0,0,0,0,0,0]"] * 400_000)
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(infer, daemon, f'{{"x":[{rows}]}}')
        with Wire(daemon) as probe:
            while not large.done():
                assert probe.request("GET", "/livez").answer().status == 200
        assert refused(large.result())[1] == "Value error, Expected 100 timesteps, got 400000"


def test_overload_is_told_with_the_time_to_come_back(native, walk, patient):
    daemon = native(models=[patient], config="[inference]\nmax_queue_size = 1\n[hosts]\nworkers = 1\n")
    body = json.dumps(walk)

    def client(_):
        with Wire(daemon) as wire:
            return [wire.request("POST", "/infer", body).answer() for _ in range(50)]

    for _ in range(20):
        with ThreadPoolExecutor(16) as pool:
            answers = [a for all in pool.map(client, range(16)) for a in all]
        busy = [a for a in answers if a.status != 200]
        if busy:
            break
    assert busy, "one slot is not enough for 16 clients at once"
    for answer in busy:
        assert answer.status == 503 and answer.json()["error"] == "queue_full" and answer.json()["model_available"] is True
        assert int(answer.headers["retry-after"]) >= 1 and int(answer.headers["retry-after-ms"]) >= 1
    good = {a.body for a in answers if a.status == 200}
    assert len(good) == 1, "whoever was answered got the one right answer"


def test_a_model_without_a_motif_head_says_that_its_scores_mean_nothing(native, walk, headless):
    daemon = native(models=[headless])
    answer = infer(daemon, json.dumps(walk))
    assert answer.status == 200 and answer.json()["motif_scores"] == [0.0] * 12
    assert answer.headers["x-inferd-motif-source"] == "none"
    assert daemon.request("/status").json()["motif_source"] == "none"
    assert daemon.request("/healthz").json()["motif_source"] == "none"
    metrics = daemon.request("/metrics").body.decode()
    assert 'inferd_motif_head{model="headless",source="none"} 1' in metrics
    assert 'inferd_motif_zeros_total{model="headless"} 1' in metrics


def test_a_linear_head_is_the_sigmoid_of_the_latent(native, walk, linear):
    folder, weight, bias = linear
    daemon = native(models=[folder])
    body = json.dumps(walk)
    answer = infer(daemon, body)
    assert answer.status == 200 and answer.headers["x-inferd-motif-source"] == "linear"
    flat = [v for row in walk["x"] for v in row]
    tensor = {"name": "imu_window", "shape": [1, 100, 9], "datatype": "FP32", "data": flat}
    outputs = ask(daemon, "POST", "/v2/models/linear/infer", json.dumps({"inputs": [tensor]})).json()["outputs"]
    latent = next(o["data"] for o in outputs if len(o["data"]) == 64)
    want = [1 / (1 + math.exp(-(sum(w * z for w, z in zip(row, latent)) + b))) for row, b in zip(weight, bias)]
    assert answer.json()["motif_scores"] == pytest.approx(want, abs=1e-5)
