"""The booted appliance with the engines of vendors: which one serves, that they agree, and what serves without them."""

import re
import shutil
import tomllib

import engines
import numpy as np
import places
import pytest
from appliance import given
from appliance.device import DAEMON
from helpers import until
from safetensors.numpy import load_file

LIBRARY = f"/{engines.FOLDER}/libonnxruntime.so.{engines.ONNXRUNTIME}"
MANIFEST = tomllib.loads((places.DEFAULT_MODEL / "manifest.toml").read_text())
NAMES = ("imu-motion", "imu-motion-cpu")
GOLDEN = load_file(places.DEFAULT_MODEL / "golden.safetensors")


@pytest.fixture(scope="module")
def both(make_image, boot, tmp_path_factory):
    """A board that has the default model twice: as it is, which is by ort before cpu, and by cpu alone."""
    by_cpu = shutil.copytree(places.DEFAULT_MODEL, tmp_path_factory.mktemp("models") / NAMES[1])
    page = (by_cpu / "manifest.toml").read_text()
    for old, new in ((f'name = "{NAMES[0]}"', f'name = "{NAMES[1]}"'), ('engines = ["ort", "cpu"]', 'engines = ["cpu"]')):
        assert page.count(old) == 1, f"the manifest has no {old}"
        page = page.replace(old, new)
    (by_cpu / "manifest.toml").write_text(page)
    file, facts = make_image("engines.img", models=(places.DEFAULT_MODEL, by_cpu), dev=True)
    if given.image() and not facts["has_onnxruntime"]:
        given.skip_for_another_builder("it has no ONNX Runtime")
    with boot(file, dev=True) as machine:
        # One that names ort is not in the list before ort has answered.
        both = {name: "ready" for name in NAMES}
        until(lambda: {model["name"]: model["state"] for model in status(machine)["models"]} == both, "both models serve", 120)
        yield machine


def status(machine):
    return machine.request("/status").json()


def model(machine, name=NAMES[0]):
    return next(found for found in status(machine)["models"] if found["name"] == name)


def here(machine, engine):
    """What /status says of an engine of this image; None when it has none of that name."""
    return next((found for found in status(machine)["engines"] if found["engine"] == engine), None)


def answers(machine, name, case):
    """A golden case's answers by the model of this name; asked again while a busy, emulated board says "not now"."""
    window = GOLDEN[f"{case}/in/imu_window"]
    body = {"inputs": [{"name": "imu_window", "shape": list(window.shape), "datatype": "FP32", "data": window.ravel().tolist()}]}
    answer = until(lambda: (got := machine.request(f"/v2/models/{name}/infer", body)).status != 503 and got, "an answer", 60)
    assert answer.status == 200, answer.body
    return {output["name"]: np.array(output["data"]) for output in answer.json()["outputs"]}


def test_one_board_serves_a_model_by_ort_and_the_same_by_the_built_in_engine_and_status_says_so(both):
    by_ort, by_cpu = (model(both, name)["engine"] for name in NAMES)
    assert by_ort["kind"] == "ort" and by_ort["device"] == "cpu"
    assert by_ort["version"] == f"onnxruntime {engines.ONNXRUNTIME}" and by_ort["library"] == LIBRARY
    assert by_cpu["kind"] == "cpu" and not by_cpu["library"]
    ort = here(both, "ort")
    assert ort["problem"] is None and ort["providers"] == ["cpu"] and ort["library"] == LIBRARY
    assert here(both, "cpu")["problem"] is None


def test_both_engines_of_a_board_give_the_same_answers(both):
    cases = sorted({key.split("/")[0] for key in GOLDEN})
    assert len(cases) > 1
    for case in cases:
        by_ort, by_cpu = (answers(both, name, case) for name in NAMES)
        assert set(by_ort) == set(by_cpu) == {"latent_embeddings", "motif_scores"}
        for output, value in by_ort.items():
            assert np.abs(value).max() > 0, "it is an answer"
            assert value == pytest.approx(by_cpu[output], abs=1e-4)
            assert value == pytest.approx(GOLDEN[f"{case}/out/{output}"].ravel(), abs=1e-4)


def test_a_host_with_a_vendors_library_is_confined_capped_and_without_privileges(both):
    host = model(both)["host"]
    fields = dict(line.split(":\t", 1) for line in both.sh(f"cat /proc/{host['pid']}/status").splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {"900"} and set(fields["Gid"].split()) == {"900"}
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1" and fields["Seccomp"].strip() == "2", "it has a filter"
    mapped = both.sh(f"cat /proc/{host['pid']}/maps")
    assert LIBRARY in mapped
    assert not [line for line in mapped.splitlines() if re.search(r"\s.w.x", line)], "memory that may be written and executed"
    (group,) = both.sh(f"cat /proc/{host['pid']}/cgroup").splitlines()
    cap = int(both.sh(f"cat /sys/fs/cgroup{group.removeprefix('0::')}/memory.max"))
    # The ring and the model's files are charged to the host on top of its budget.
    assert cap - (MANIFEST["budget"]["memory_mib"] << 20) in range(2 << 20)
    assert host["memory_cap_kind"] == "cgroup"


def test_the_host_of_ort_needs_less_than_three_quarters_of_its_models_budget(both, record_property):
    for name in NAMES:
        (group,) = both.sh(f"cat /proc/{model(both, name)['host']['pid']}/cgroup").splitlines()
        folder = f"/sys/fs/cgroup{group.removeprefix('0::')}"
        peak = int(both.sh(f"cat {folder}/memory.peak"))
        record_property(f"peak_mib, {name}", round(peak / (1 << 20), 1))
        assert peak < 0.75 * (MANIFEST["budget"]["memory_mib"] << 20), name


def test_a_library_that_is_cut_short_on_the_board_is_named_and_the_built_in_engine_serves(both, walk):
    assert model(both)["engine"]["kind"] == "ort"
    both.sh(f"head -c 3000000 {LIBRARY} >/run/short.so && mount --bind /run/short.so {LIBRARY}")
    restart(both)
    assert model(both)["engine"]["kind"] == "cpu"
    assert "it was cut short" in here(both, "ort")["problem"]
    assert len(both.infer(walk)["latent"]) == 64
    both.sh(f"umount {LIBRARY}")
    restart(both)
    assert model(both)["engine"]["kind"] == "ort" and here(both, "ort")["problem"] is None


def restart(machine):
    """Ends the daemon, which is started again, and waits until it serves."""
    before = machine.sh(DAEMON)
    machine.sh(f"kill {before}")
    until(lambda: machine.root(DAEMON)[1].strip() not in ("", before), "another daemon")
    machine.wait_ready(120)


def test_a_minimal_image_serves_by_the_built_in_engine_and_says_that_it_has_no_other(make_image, boot, walk):
    given.skip_for_another_builder("what --minimal of scripts/image leaves out")
    file, facts = make_image("minimal.img", minimal=True, dev=True)
    assert facts["minimal"] and "onnxruntime" not in facts and "libc6" not in facts["packages"]
    with boot(file, dev=True) as machine:
        assert [found["engine"] for found in status(machine)["engines"]] == ["cpu"]
        assert model(machine)["engine"]["kind"] == "cpu"
        assert len(machine.infer(walk)["latent"]) == 64
        assert machine.sh(f"ls -d /{engines.FOLDER} /lib64 /lib/ld-linux* /usr/lib/*-linux-gnu /{engines.LICENSES} 2>/dev/null || true") == ""
