"""The four families of networks that EMG clients choose among, side by side on one device."""

import json

import helpers
import numpy as np
import pytest
from engine.families import EMG, FAMILIES, Builder
from engine.networks import answer, network
from models import make_models
from sensors.test_emg import LABELS, infer
from sensors.test_stream import Events

MEAN, STD = np.linspace(-2, 2, 16, dtype=np.float32), np.linspace(20, 50, 16, dtype=np.float32)
CHOSEN_AS = {"tcn": "TCN", "snn": "SNN", "hybrid": "Hybrid", "spiking_tcn": "SpikingTCN"}


def raw(seed):
    return (MEAN + STD * np.random.default_rng(seed).standard_normal((1, 200, 16))).astype(np.float32)


def classifier(folder, family):
    """A directory of this family, with a golden case; and the network alone, which takes scaled windows."""
    b = Builder(sum(family.encode()))
    b.called("logits", FAMILIES[family](b))
    fires = family != "tcn"
    outputs = {"logits": "FP32"} | ({"spikes": "FP32"} if fires else {})
    proto = network(b.nodes, {"emg": raw(0)}, outputs, b.constants, dynamic={"emg": EMG})
    model = object.__new__(make_models.Model)
    model.name, model.summary, model.proto = f"emg-{family.replace('_', '-')}", "", proto
    model.memory_mib, model.deadline_ms, model.task = 128, 60000, "emg-classifier"
    model.section = f'\n[emg]\nlogits = "logits"\nlabels = {json.dumps(LABELS)}\nfamily = "{family}"\n'
    model.section += 'spikes = "spikes"\n' if fires else ""
    model.dress = (
        f"\n[inputs.channels]\nnames = {json.dumps([f'e{i}' for i in range(16)])}\n"
        f"units = {json.dumps(['uV'] * 16)}\nrate_hz = 2000.0\n"
        f"\n[inputs.normalization]\nmean = {MEAN.tolist()}\nstd = {STD.tolist()}\n"
    )
    told = answer(proto, {"emg": (raw(0) - MEAN) / STD}, outputs)
    model.inputs = [make_models.Tensor("emg", "FP32", (1, 200, 16))]
    model.outputs = [make_models.Tensor(name, "FP32", value.shape) for name, value in told.items()]
    model.cases = [({"emg": raw(0)}, told)]
    model.write(folder, max_abs=0.02)
    return folder / model.name, proto, outputs


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    networks = {family: classifier(folder, family) for family in FAMILIES}
    source = '[[sources]]\nname = "{0}"\nkind = "synthetic"\nmodel = "emg-{0}"\nseed = 3\n'
    sources = "".join(source.format(family.replace("_", "-")) for family in FAMILIES)
    models = [directory for directory, *_ in networks.values()]
    serving = helpers.Native(folder, models=models, config=sources)
    try:
        serving.wait_ready()
        for directory in models:
            helpers.until(lambda: serving.request(f"/v2/models/{directory.name}/ready").status == 200, serving)
        serving.networks = networks
        yield serving
    finally:
        serving.stop()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_chosen_by_its_name_and_answers_as_onnx_runtime_does(device, family):
    _, proto, outputs = device.networks[family]
    spikes = set()
    for seed in range(1, 5):
        window = raw(seed)
        expected = answer(proto, {"emg": (window - MEAN) / STD}, outputs)
        told = infer(device, {"model_type": CHOSEN_AS[family], "window": window[0].tolist()}).json()
        likely = np.exp(expected["logits"][0] - expected["logits"][0].max())
        assert np.allclose(json.loads(told["probs"]), likely / likely.sum(), atol=5e-3), told
        if family == "tcn":
            assert told["spikes"] == "0"
        else:
            count = float(expected["spikes"].sum())
            # A membrane at its threshold may fall to either side.
            assert abs(int(told["spikes"]) - count) <= max(2, 0.005 * count) and count > 0, (told, count)
        spikes.add(told["spikes"])
    assert family == "tcn" or len(spikes) > 1, "the number is that of this window"


@pytest.mark.parametrize("mode", [{}, {"emg_mode": "dummy"}])
def test_a_family_is_streamed_from_a_source_that_feeds_it_and_all_at_once(device, mode):
    streams = {family: Events(device, {"model_type": name, "fps": 5, **mode}) for family, name in CHOSEN_AS.items()}
    for family, stream in streams.items():
        assert stream.status == 200 and next(stream.predictions())["source"] == family.replace("_", "-")
    for stream in streams.values():
        stream.close()
    for family, name in CHOSEN_AS.items():
        told = infer(device, {"model_type": name, **mode})
        assert told.status == 200 and len(json.loads(told.json()["probs"])) == 7, (family, told)


def test_a_source_that_is_named_and_feeds_another_family_is_refused(device):
    stream = Events(device, {"model_type": "SNN", "emg_mode": "hybrid"})
    assert stream.status == 422
    stream.close()


def test_who_names_none_of_them_is_told_their_names(device):
    detail = infer(device, {"model_type": "LSTM", "window": raw(0)[0].tolist()}).json()["detail"][0]["msg"]
    assert all(f"'{family}'" in detail for family in FAMILIES), detail
