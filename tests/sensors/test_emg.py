"""The EMG form of `POST /infer`, as three generations of clients send it."""

import json
import math

import numpy
import places
import pytest
from contract.test_probes import check
from contract.wire import ask

LABELS = ["Rest", "Hand Open", "Hand Close", "Wrist Flex", "Wrist Extend", "Pinch", "Point"]


def window(gesture=0, loud=2.0):
    """200 samples of 16 electrodes, the gesture's of this mean and all others of mean 0."""
    samples = numpy.random.default_rng(gesture).normal(0, 50, (200, 16))
    samples -= samples.mean(axis=0)
    samples[:, gesture] += loud
    return samples.tolist()


def infer(device, body, path="/infer"):
    return ask(device, "POST", path, body if isinstance(body, str) else json.dumps(body))


@pytest.mark.parametrize("gesture", range(7))
def test_a_window_is_answered_with_its_gesture_and_every_value_is_a_string(emg, gesture):
    answer = infer(emg, {"window": window(gesture)})
    assert answer.status == 200, answer
    told = answer.json()
    assert set(told) == {
        "latency_ms", "cpu_percent", "pred_idx", "pred_label", "conf", "probs", "prediction", "confidence",
        "spikes", "shape", "backend",
    }  # fmt: skip
    assert all(isinstance(value, str) for value in told.values()), told
    assert (told["pred_idx"], told["prediction"], told["pred_label"]) == (str(gesture), str(gesture), LABELS[gesture])
    assert (told["shape"], told["spikes"], told["backend"]) == ("[1, 7]", "0", "cpu")
    # The scaler halves: a mean of 2 is a score of 1.
    expected = math.e / (math.e + 6)
    assert abs(float(told["conf"]) - expected) < 1e-3 and told["conf"] == told["confidence"]
    probabilities = json.loads(told["probs"])
    assert len(probabilities) == 7 and abs(sum(probabilities) - 1) < 1e-4
    assert float(told["latency_ms"]) > 0 and 0 <= float(told["cpu_percent"]) <= 100


def test_a_window_that_is_not_to_be_scaled_is_not(emg):
    told = infer(emg, {"window": window(4), "preprocess": False}).json()
    assert abs(float(told["conf"]) - math.e**2 / (math.e**2 + 6)) < 1e-3


def test_loud_windows_do_not_overflow(emg):
    told = infer(emg, {"window": window(5, loud=1e30)}).json()
    assert (told["pred_idx"], told["conf"]) == ("5", "1.0000")


@pytest.mark.parametrize(
    "form",
    [
        {"batch": 1, "channels": 16, "length": 200, "steps": 1},
        {"batch": "1", "channels": "16", "length": "200"},
        {"encoding_type": "rate", "model_prefix": "tcn", "device": "cpu"},
        {"model_prefix": "TCN"},
        {"model_type": "emg-loudest", "anything": [1, {"x": 2}]},
    ],
)
def test_what_clients_say_about_the_model_is_taken_when_it_is_true(emg, form):
    answer = infer(emg, {**form, "window": window(3)})
    assert answer.status == 200 and answer.json()["pred_idx"] == "3", answer


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"batch": 2}, "batch"),
        ({"channels": 8}, "channels"),
        ({"length": 400}, "length"),
        ({"length": 200.5}, "length"),
        ({"model_prefix": "snn"}, "model_prefix"),
        ({"model_type": None}, "model_type"),
        ({"encoding_type": "latency"}, "encoding_type"),
        ({"preprocess": "perhaps"}, "preprocess"),
        ({"window": [[0.0] * 16] * 199}, "window"),
        ({"window": [[0.0] * 15] * 200}, "window"),
        ({"window": "loud"}, "window"),
        ({"window": None}, "window"),
    ],
)
def test_what_does_not_fit_the_model_is_422_and_names_the_field(emg, change, field):
    answer = infer(emg, {"window": window(), **change})
    assert answer.status == 422, answer
    assert answer.json()["detail"][0]["loc"][:2] == ["body", field], answer


def test_the_models_there_are_are_named_to_who_asks_for_another(emg):
    detail = infer(emg, {"model_type": "SpikingTCN", "window": window()}).json()["detail"][0]
    assert detail["msg"] == "Input should be 'emg-loudest', 'tcn'"


@pytest.mark.parametrize("token", ["NaN", "Infinity", "1e400"])
def test_a_value_that_is_no_number_is_422(emg, token):
    rows = json.dumps([[0.0] * 16] * 199)
    body = f'{{"window":[[{token}{",0" * 15}],{rows[1:]}}}'
    answer = infer(emg, body)
    assert answer.status == 422 and "Non-finite value at timestep 0, channel 0" in answer.json()["detail"][0]["msg"], answer


@pytest.mark.parametrize("body", ["", "{}", "null", '{"batch":1,"channels":16,"length":200,"steps":1}'])
def test_without_window_and_source_nothing_is_made_up(emg, body):
    answer = infer(emg, body)
    assert answer.status == 422, answer
    [detail] = answer.json()["detail"]
    assert (detail["type"], detail["loc"]) == ("missing", ["body", "window"]) and "source" in detail["msg"]


def test_an_imu_window_is_still_an_imu_window(emg, walk):
    answer = infer(emg, walk)
    assert answer.status == 200 and len(answer.json()["latent"]) == 64
    assert infer(emg, '{"x":[]}').json()["detail"][0]["loc"] == ["body", "x"]


def test_one_engine_can_be_asked_for_and_another_is_not_put_in_its_place(emg):
    body = {"window": window(6)}
    assert infer(emg, body, "/infer/cpu").json()["pred_idx"] == "6"
    for form in (body, {}, {"batch": 1, "channels": 16, "length": 200}):
        answer = infer(emg, form, "/infer/tensorrt")
        assert (answer.status, answer.json()["detail"]) == (503, "TensorRT runtime not available")
    assert infer(emg, body, "/infer/hailo").status == 503
    assert infer(emg, body, "/infer/abacus").status == 404
    assert ask(emg, "GET", "/infer/cpu").status == 405


def test_every_answer_is_as_described(emg):
    document = emg.request("/openapi.json").json()
    for path, key in (("/infer/cpu", "cpu"), ("/infer/tensorrt", ""), ("/infer/abacus", "")):
        for body in ({"window": window()}, {}):
            check(document, "/infer/{engine}", "POST", infer(emg, body, path))


def test_answers_are_counted_as_those_of_the_emg_form(emg):
    def count(outcome):
        page = emg.request("/metrics").body.decode()
        name = f'inferd_requests_total{{surface="emg",model="emg-loudest",outcome="{outcome}"}} '
        return sum(int(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))

    before = count("success"), count("validation_error")
    infer(emg, {"window": window()})
    infer(emg, {"window": window(), "channels": 8})
    assert (count("success"), count("validation_error")) == (before[0] + 1, before[1] + 1)


def test_a_device_without_an_emg_model_says_so(daemon):
    answer = infer(daemon, {"window": window()})
    assert answer.status == 503 and "emg-classifier" in answer.json()["detail"], answer
    # What could be anything is the mistake that it always was.
    assert infer(daemon, "{}").json()["detail"][0]["loc"] == ["body", "x"]
    assert infer(daemon, {}, "/infer/tensorrt").json()["detail"] == "TensorRT runtime not available"


def test_a_device_with_an_emg_model_only_is_well(native):
    device = native(models=[places.ROOT / "tests/models/emg-loudest"])
    assert infer(device, {"window": window(1)}).json()["pred_label"] == "Hand Open"
    assert device.request("/healthz").json()["ok"] is True
    assert infer(device, '{"x":[]}').status == 503
