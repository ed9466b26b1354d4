"""`inferctl quantize` with the real tools of onnxruntime: what it makes is served and compared, what loses too much is refused."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib

import numpy as np
import onnx
import places
import pytest
from helpers import inferctl_program
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from engines.variants import digest


def quantize(model, to, *options, python=sys.executable, env=None):
    command = [inferctl_program(), "quantize", str(model), "-o", str(to), *options]
    command += ["--python", str(python)] if python else []
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})


def nothing_is_left(to):
    return not to.exists() and not list(to.parent.glob(f"{to.stem}.part-*"))


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(places.DEFAULT_MODEL, tmp_path / "imu-motion")


@pytest.fixture
def windows(model):
    """Windows in raw units, around those of the golden vectors."""
    cases = load_file(model / "golden.safetensors")
    rng = np.random.default_rng(1)
    found = [cases[name] for name in sorted(cases) if "/in/" in name]
    noise = np.array([0.2] * 3 + [0.05] * 3 + [0.5] * 3)
    return np.concatenate([x + rng.normal(size=x.shape) * noise for x in found for _ in range(8)]).astype(np.float32)


@pytest.fixture
def npz(tmp_path, windows):
    np.savez(path := tmp_path / "windows.npz", imu_window=windows)
    return path


def replace_network(model, content):
    page = (model / "manifest.toml").read_text()
    before = digest(model / "model.onnx")
    if content is not None:
        (model / "model.onnx").write_bytes(content)
    (model / "manifest.toml").write_text(page.replace(before, digest(model / "model.onnx")))


def test_a_quantised_model_is_served_on_ort_and_answers_nearly_the_same(native, with_ort, model, npz, tmp_path, walk):
    before = {f.name: digest(f) for f in model.iterdir()}
    done = quantize(model, to := tmp_path / "small", "--calibration", str(npz), "--engines", "ort-int8,ort,cpu", "--json")
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["variants"]
    assert set(said) >= {"valid", "original_size", "quantized_size", "size_reduction", "compression_ratio", "errors"}
    assert said["valid"] is True and said["errors"] == [] and said["compression_ratio"] > 2.5
    assert {f.name: digest(f) for f in model.iterdir()} == before, "the original is only read"
    assert nothing_is_left(to.with_suffix(".x")) and not list(tmp_path.glob("*.part-*"))
    page = tomllib.loads((to / "manifest.toml").read_text())
    (variant,) = page["variants"]
    assert (variant["name"], variant["format"], variant["precision"]) == ("int8", "onnx", "int8")
    assert variant["sha256"] == digest(to / variant["file"])
    measured = variant["measured"]
    assert measured["samples"] == 48 and measured["bytes"] == said["quantized_size"] and measured["data"] == "windows.npz"
    assert measured["cosine"] == said["cosine"] >= 0.95 and said["overall_cosine"] >= 0.99
    assert 0 < measured["max_abs"] < 1 and "onnxruntime" in measured["tools"]
    # Twice the angle of the worst golden vector, and the model's own beside it: no number is made up.
    assert measured["cosine"] <= 1 and 0.8 < variant["golden"]["cosine"] < 2 * measured["cosine"] ** 2 - 1 + 0.05
    operators = {n.op_type for n in onnx.load(to / variant["file"]).graph.node}
    assert "QuantizeLinear" in operators and "DequantizeLinear" in operators

    small, whole = native(models=[to], config=with_ort()), native(models=[model], config=with_ort())
    engine = small.request("/status").json()["models"][0]["engine"]
    assert (engine["rung"], engine["network"]["sha256"]) == ("ort-int8", variant["sha256"])
    golden = small.request("/v2/models/imu-motion").json()["parameters"]["golden"]
    assert golden["cosine"] >= golden["cosine_at_least"] > 0.8, "the silent scores of a resting window hide no other error"
    a, b = (np.array(d.request("/infer", walk).json()["latent"]) for d in (small, whole))
    assert not np.array_equal(a, b)
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) > 0.98
    assert np.abs(a - b).max() <= variant["golden"]["max_abs"]


def test_dynamic_and_fp16_stand_on_the_ladder_by_what_was_measured(model, npz, tmp_path):
    options = ["--static", "--dynamic", "--fp16", "--calibration", str(npz), "--method", "entropy", "--json"]
    done = quantize(model, to := tmp_path / "small", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    speed = {f"ort-{v['name']}": v["speed"] for v in report["variants"]} | {"ort": 1.0}
    assert set(speed) == {"ort", "ort-int8", "ort-int8-dyn", "ort-fp16"}
    assert report["engines"] == [*sorted(speed, key=speed.get, reverse=True), "cpu"]
    assert tomllib.loads((to / "manifest.toml").read_text())["engines"] == report["engines"]
    checked = subprocess.run([inferctl_program(), "model", "check", str(to)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def convolutions(opset):
    """A small image network: two convolutions, a pooling, a classifier."""
    rng = np.random.default_rng(7)

    def weights(name, *shape):
        fan = np.prod(shape[1:])
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1", "b1"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
    ]
    stored = [weights("w0", 16, 3, 3, 3), weights("b0", 16), weights("w1", 32, 16, 3, 3), weights("b1", 32)]
    stored += [weights("w2", 10, 32), weights("b2", 10)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "convolutions", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def images(tmp_path):
    onnx.save(convolutions(11), tmp_path / "images.onnx")
    command = [inferctl_program(), "model", "import", str(tmp_path / "images.onnx"), "-o", str(tmp_path / "images")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "images"


def test_an_older_operator_set_is_converted_and_quantised(images, tmp_path):
    rng = np.random.default_rng(2)
    np.save(tmp_path / "images.npy", rng.normal(size=(32, 3, 32, 32)).astype(np.float32))
    done = quantize(images, to := tmp_path / "small", "--calibration", str(tmp_path / "images.npy"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "converting operator set 11 to 17" in done.stderr
    small = onnx.load(to / "model.int8.onnx")
    assert small.opset_import[0].version == 17
    scales = [n.input[1] for n in small.graph.node if n.op_type == "DequantizeLinear" and "w1" in n.input[0]]
    stored = {t.name: t for t in small.graph.initializer}
    assert [numpy_helper.to_array(stored[s]).shape for s in scales] == [(32,)], "a scale for each channel"
    kinds = {stored[n.input[2]].data_type for n in small.graph.node if n.op_type == "QuantizeLinear"}
    assert kinds == {TensorProto.UINT8}, "activations without a sign: the fast kernels of x86"


def refused(model, to, *options):
    before = {f.name: digest(f) for f in model.iterdir()}
    done = quantize(model, to, *options)
    assert done.returncode == 1, done.stdout
    assert nothing_is_left(to) and {f.name: digest(f) for f in model.iterdir()} == before, "the original is kept"
    assert "nothing was written; the original stays as it is" in done.stderr
    return done.stderr


def test_what_loses_too_much_is_refused_with_numbers_and_nothing_is_written(model, npz, tmp_path):
    said = refused(model, tmp_path / "small", "--calibration", str(npz), "--min-overall-cosine", "0.999999")
    assert "int8 is refused" in said and "together its cosine similarity is 0.99" in said and "at least 0.999999 is asked for" in said
    said = refused(model, tmp_path / "small", "--calibration", str(npz), "--min-cosine", "0.999")
    assert re.search(r"of the golden vectors sample \d has cosine similarity 0\.9\d+ in latent_embeddings, at least 0.999 is asked for of each", said)


def test_one_window_that_comes_out_wrong_refuses_a_variant_that_is_right_on_all_others(model, windows, tmp_path):
    """A range that calibration has never seen: the window is cut off at what it has, and the mean over all of them hides it."""
    for place, refuses in ((38, False), (39, True)):
        data = np.repeat(windows, 4, axis=0)[:160]
        data[place] *= 6
        np.savez(tmp_path / f"{place}.npz", imu_window=data)
        options = ["--calibration", str(tmp_path / f"{place}.npz"), "--max-loss", "1"]
        to = tmp_path / f"small-{place}"
        if not refuses:
            # One of those that calibrate: its range is known.
            done = quantize(model, to, *options, "--min-cosine", "0", "--min-overall-cosine", "0")
            assert done.returncode == 0, done.stderr
        else:
            said = refused(model, to, *options)
            assert "of the held-out samples sample 39 has cosine similarity" in said and "of each" in said, said


def test_a_part_of_the_data_is_held_out_and_the_same_every_time(model, npz, tmp_path):
    reports = []
    for name in ("one", "two"):
        done = quantize(model, to := tmp_path / name, "--calibration", str(npz), "--engines", "ort-int8,ort,cpu", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["calibrated"], report["held_out"], report["golden"]) == (36, 12, 6)
        reports.append([{k: v for k, v in line.items() if k != "speed"} for line in report["variants"]])
        manifest = tomllib.loads((to / "manifest.toml").read_text())
        reports[-1].append((manifest["variants"], digest(to / "model.int8.onnx")))
    assert reports[0] == reports[1]
    # A number in a sample that calibrates changes the network; one in a sample that is held out does not.
    data = np.load(npz)["imu_window"]
    for place, same in ((3, True), (4, False)):
        changed = data.copy()
        changed[place] *= 1.5
        np.savez(tmp_path / "changed.npz", imu_window=changed)
        loose = ["--min-cosine", "0", "--min-overall-cosine", "0", "--max-loss", "1"]
        done = quantize(model, to := tmp_path / f"changed-{place}", "--calibration", str(tmp_path / "changed.npz"), *loose)
        assert done.returncode == 0, done.stderr
        assert (digest(to / "model.int8.onnx") == digest(tmp_path / "one/model.int8.onnx")) is same


def test_without_calibration_data_it_says_that_nothing_else_is_known(model, tmp_path):
    done = quantize(model, tmp_path / "small")
    assert done.returncode == 0, done.stderr
    assert "ranges from 6 samples; judged on 6 golden vectors and no other samples: what it loses on those nobody knows" in done.stdout


def test_labels_give_the_tasks_own_measure(model, windows, tmp_path):
    np.savez(tmp_path / "labelled.npz", imu_window=windows, labels=np.zeros(len(windows), dtype=np.int64))
    done = quantize(model, to := tmp_path / "small", "--calibration", str(tmp_path / "labelled.npz"))
    assert done.returncode == 0, done.stderr
    task = tomllib.loads((to / "manifest.toml").read_text())["variants"][0]["measured"]["task"]
    assert (task["metric"], task["samples"]) == ("top-1", 12) and 0 <= task["value"] <= 1, "of those that are held out"


def test_every_kind_of_capture_is_read(model, windows, tmp_path, walk):
    folder = tmp_path / "captures"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(walk))
    lines = [json.dumps({"input": w.ravel().tolist(), "shape": [100, 9]}) for w in windows[:5]]
    (folder / "b.ndjson").write_text("\n".join(lines) + "\n\n")
    np.save(folder / "c.npy", windows[5:9])
    shutil.copy(model / "golden.safetensors", folder / "d.safetensors")
    done = quantize(model, to := tmp_path / "small", "--calibration", str(folder))
    assert done.returncode == 0, done.stderr
    cases = len(load_file(model / "golden.safetensors")) // 3
    assert tomllib.loads((to / "manifest.toml").read_text())["variants"][0]["measured"]["samples"] == 1 + 5 + 4 + cases


BAD_DATA = {
    "an empty folder": (lambda d: None, "no calibration data"),
    "no windows": (lambda d: np.save(d / "a.npy", np.zeros((0, 100, 9), np.float32)), "no calibration data"),
    "another shape": (lambda d: np.save(d / "a.npy", np.zeros((4, 50, 9), np.float32)), "has shape [4, 50, 9]"),
    "another type": (lambda d: np.save(d / "a.npy", np.zeros((4, 100, 9))), "is float64"),
    "not a number": (lambda d: np.save(d / "a.npy", np.full((1, 100, 9), np.nan, np.float32)), "not finite"),
    "another input": (lambda d: np.savez(d / "a.npz", pixels=np.zeros(3)), "has no input 'imu_window'"),
    "labels too few": (
        lambda d: np.savez(d / "a.npz", imu_window=np.zeros((2, 100, 9), np.float32), labels=np.zeros(1, np.int64)),
        "1 labels for 2 samples",
    ),
    "one flipped bit": (lambda d: _flip(d / "a.npz"), "the archive is damaged"),
    "cut short": (lambda d: _cut(d / "a.npy"), "bytes of numbers"),
    "rows of another length": (lambda d: (d / "a.ndjson").write_text('{"x": [[1, 2], [3, 4]]}'), "has shape [2, 2]"),
    "words": (lambda d: (d / "a.json").write_text('{"x": ["left"]}'), "no array of numbers"),
    "beyond any number": (lambda d: (d / "a.json").write_text(json.dumps({"x": [[1e300] * 9] * 100})), "not finite"),
    "a named pipe": (lambda d: os.mkfifo(d / "a.npy"), "is not a regular file"),
    "a link to nothing": (lambda d: (d / "a.npz").symlink_to("/nowhere"), "No such file"),
    "a damaged archive": (lambda d: (d / "a.npz").write_bytes(b"PK\x03\x04 and no more"), "cannot be read"),
    "a pickle": (lambda d: np.save(d / "a.npy", np.array([{}]), allow_pickle=True), "cannot be read"),
    "no JSON": (lambda d: (d / "a.json").write_text("{"), "cannot be read"),
    "ragged rows": (lambda d: (d / "a.json").write_text('{"x": [[1, 2], [3]]}'), "cannot be read"),
}


def _flip(path):
    np.savez(path, imu_window=np.ones((2, 100, 9), np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path):
    np.save(path, np.ones((2, 100, 9), np.float32))
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(("write", "said"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_calibration_data_are_refused_before_an_environment_is_made(model, tmp_path, write, said):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    (tmp_path / "bin").mkdir()
    nothing = {"PATH": str(tmp_path / "bin"), "INFERD_CACHE": str(tmp_path / "cache")}
    done = quantize(model, to := tmp_path / "small", "--calibration", str(folder), python=None, env=nothing)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert nothing_is_left(to) and not (tmp_path / "cache").exists()


def test_arrays_are_read_however_numpy_wrote_them(model, windows, tmp_path):
    np.savez_compressed(tmp_path / "packed.npz", imu_window=windows)
    np.save(tmp_path / "columns.npy", np.asfortranarray(windows))
    np.save(tmp_path / "rows.npy", windows)
    (tmp_path / "lines.ndjson").write_text("\n".join(json.dumps({"x": w.tolist()}) for w in windows))
    digests = set()
    for i, name in enumerate(("packed.npz", "columns.npy", "rows.npy", "lines.ndjson")):
        done = quantize(model, to := tmp_path / f"small-{i}", "--calibration", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        digests.add(tomllib.loads((to / "manifest.toml").read_text())["variants"][0]["measured"]["data_sha256"])
    assert len(digests) == 1


def _external():
    network = convolutions(17)
    tensor = network.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    return network


def _circle():
    network = convolutions(17)
    network.graph.node[0].input[0] = "d"
    return network


def _unknown():
    network = convolutions(17)
    network.graph.node[1].op_type = "Frobnicate"
    return network


def _enormous():
    network = convolutions(17)
    tensor = network.graph.initializer[0]
    tensor.dims[:] = [1 << 16, 1 << 16, 3, 3]
    return network


BAD_NETWORKS = {
    "no ONNX": (lambda: b"GIF89a and no more", "ONNX"),
    "empty": (lambda: b"", "ONNX"),
    "external data": (lambda: _external().SerializeToString(), "lies in another file"),
    "a circle": (lambda: _circle().SerializeToString(), "go in a circle"),
    "an unknown operator": (lambda: _unknown().SerializeToString(), "does not know"),
    "a tensor of more than 2 GiB": (lambda: _enormous().SerializeToString(), "elements"),
    "cut short": (lambda: convolutions(17).SerializeToString()[:-400], "ONNX"),
}


@pytest.mark.parametrize(("make", "said"), BAD_NETWORKS.values(), ids=BAD_NETWORKS)
def test_networks_that_cannot_be_quantised_are_refused(model, tmp_path, make, said):
    replace_network(model, make())
    done = quantize(model, to := tmp_path / "small")
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and nothing_is_left(to)


def test_a_network_of_2_gib_is_not_read(model, tmp_path):
    with (model / "model.onnx").open("r+b") as file:
        file.truncate(1 << 31)  # a hole: it takes no space
    done = quantize(model, to := tmp_path / "small")
    assert done.returncode == 1 and "2147483648 bytes" in done.stderr, done.stderr
    assert nothing_is_left(to)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kill -9 $$", "signal: 9"),
        ("echo 'No module named onnx' >&2; exit 3", "No module named onnx"),
        ("echo no json", "answered something else"),
        ("exit 0", "did not finish"),
    ],
    ids=["killed", "without packages", "no JSON", "without a word"],
)
def test_a_python_that_does_not_do_it_leaves_nothing(model, tmp_path, text, said):
    python = script(tmp_path / "python", text)
    done = quantize(model, to := tmp_path / "small", python=python)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert nothing_is_left(to)


def test_without_python_it_says_what_to_install(model, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {"PATH": str(empty), "INFERD_CACHE": str(tmp_path / "cache")}
    done = quantize(model, to := tmp_path / "small", python=None, env=environment)
    assert done.returncode == 1 and "install python3 with its venv module" in done.stderr, done.stderr
    assert nothing_is_left(to)
    script(empty / "python3", 'exec /bin/sh -c "echo ensurepip is not available >&2; exit 1"')
    done = quantize(model, to, python=None, env=environment)
    assert done.returncode == 1 and "ensurepip is not available" in done.stderr, done.stderr


def test_an_output_that_exists_or_cannot_be_written_is_refused(model, tmp_path):
    (to := tmp_path / "small").mkdir()
    (to / "precious").write_text("keep")
    done = quantize(model, to)
    assert done.returncode == 1 and "exists" in done.stderr
    assert (to / "precious").read_text() == "keep"
    done = quantize(model, "/proc/small")
    assert done.returncode == 1 and "/proc/small" in done.stderr, done.stderr


def test_a_model_whose_files_are_not_its_own_is_not_quantised(model, tmp_path):
    (model / "model.onnx").write_bytes(b"something else")
    done = quantize(model, tmp_path / "small")
    assert done.returncode == 1 and "is not the file its manifest names" in done.stderr
