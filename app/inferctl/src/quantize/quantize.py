"""Quantises a network with onnxruntime's tools and measures what that cost. `inferctl quantize` runs it.

Standard output is JSON, one object a line: {"progress": TEXT} as work goes on, then {"result": ...} or
{"error": {"kind": ..., "message": ...}}. Exit code 0 with a result, 1 with an error, 3 when a package is missing.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path

try:
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from safetensors.numpy import load_file
except ImportError as missing:
    print(missing, file=sys.stderr)
    sys.exit(3)

# Largest protobuf message; a network beyond it keeps its tensors in other files, and no engine here takes such.
MOST_BYTES = (1 << 31) - 1
MOST_SAMPLES = 4096
MOST_CALIBRATION_BYTES = 1 << 30
# Per-channel weights of QuantizeLinear came with this operator set; older networks are converted.
LEAST_OPSET, OPSET = 13, 17
KINDS = {
    "static": {"name": "int8", "precision": "int8"},
    "dynamic": {"name": "int8-dyn", "precision": "int8"},
    "fp16": {"name": "fp16", "precision": "fp16"},
}
TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip


class Refused(Exception):
    """Something about what was given: `kind` for programs, the message for people."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def say(text):
    print(json.dumps({"progress": text}), flush=True)


# ------------------------------------------------------------------------------------------------------- the network


def read_network(path):
    """The network, if it can be quantised at all."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise Refused("too-large", f"{path.name} has {size} bytes; a network of 2 GiB or more cannot be quantised")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as e:  # noqa: BLE001 -- protobuf has several, none of them public
        raise Refused("not-onnx", f"{path.name} is not ONNX: {_first_line(e)}") from e
    if not model.graph.node:
        raise Refused("not-onnx", f"{path.name} has no operators: it is not an ONNX network")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Refused("external-data", f"tensor {tensor.name!r} lies in another file; the network must be one file")
        elements = 1
        for dim in tensor.dims:
            elements *= max(dim, 0)
        if elements > MOST_BYTES:
            raise Refused("too-large", f"tensor {tensor.name!r} says it has {elements} elements")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        text = str(e)
        kind = "cycle" if "topologically sorted" in text else "unsupported" if "No Op registered" in text else "not-onnx"
        words = {
            "cycle": "its operators go in a circle, or are out of order",
            "unsupported": "it has an operator that ONNX does not know",
            "not-onnx": "it breaks ONNX's rules",
        }[kind]
        raise Refused(kind, f"{path.name}: {words}: {_first_line(e)}") from e
    return model


def _tensors(graph):
    """Every tensor stored in a graph, subgraphs included."""
    todo = [graph]
    while todo:
        graph = todo.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    todo.append(attribute.g)
                todo.extend(attribute.graphs)


def open_session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # noqa: BLE001 -- its exceptions have no common class
        raise Refused("unsupported", f"ONNX Runtime cannot run {Path(path).name}: {_first_line(e)}") from e


def interface(session):
    """Names, shapes and types of inputs and outputs."""
    return [[(t.name, list(t.shape), t.type) for t in side] for side in (session.get_inputs(), session.get_outputs())]


def run(session, sample):
    try:
        return session.run(None, sample)
    except Exception as e:  # noqa: BLE001
        raise Refused("unsupported", f"ONNX Runtime failed on a sample: {_first_line(e)}") from e


def _first_line(e):
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:300]


def opset_of(model):
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def modern(model, path, work, samples):
    """The network at an operator set that can be quantised per channel; proven to answer as before."""
    version = opset_of(model)
    if version >= LEAST_OPSET:
        return path, None
    say(f"converting operator set {version} to {OPSET}")
    try:
        converted = onnx.version_converter.convert_version(model, OPSET)
    except Exception as e:  # noqa: BLE001
        raise Refused("opset", f"operator set {version} cannot be converted to {OPSET}: {_first_line(e)}") from e
    to = work / "modern.onnx"
    onnx.save(converted, to)
    old, new = open_session(path), open_session(to)
    for i, sample in enumerate(samples):
        for a, b in zip(run(old, sample), run(new, sample), strict=True):
            if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                raise Refused("opset", f"converted to operator set {OPSET} it answers differently on sample {i}")
    return to, {"from": version, "to": OPSET, "samples": len(samples), "unchanged": True}


# ---------------------------------------------------------------------------------------------------------- the data


class Samples:
    """Inputs as clients send them, one dictionary a sample, with labels where the data has them."""

    def __init__(self, specs):
        self.specs = specs
        self.samples = []
        self.labels = []
        self.bytes = 0
        self.digest = hashlib.sha256()

    def add(self, source, arrays, labels=None):
        """Adds the samples of one file: an array for each input, all with as many samples."""
        counts = {}
        for spec in self.specs:
            if spec["name"] not in arrays:
                raise Refused("shape", f"{source}: has no input {spec['name']!r}, but {', '.join(sorted(arrays)) or 'nothing'}")
            arrays[spec["name"]] = self._batched(source, spec, arrays[spec["name"]])
            counts[spec["name"]] = len(arrays[spec["name"]])
        if len(set(counts.values())) > 1:
            raise Refused("shape", f"{source}: its inputs have different numbers of samples: {counts}")
        count = next(iter(counts.values()))
        if labels is not None and np.shape(labels) != (count,):
            raise Refused("shape", f"{source}: {np.size(labels)} labels for {count} samples")
        for i in range(count):
            sample = {s["name"]: np.ascontiguousarray(arrays[s["name"]][i]) for s in self.specs}
            self.bytes += sum(a.nbytes for a in sample.values())
            if len(self.samples) >= MOST_SAMPLES or self.bytes > MOST_CALIBRATION_BYTES:
                most = f"{MOST_SAMPLES} samples and {MOST_CALIBRATION_BYTES >> 20} MiB"
                raise Refused("too-large", f"{source}: more than {most} of calibration data are not read")
            for array in sample.values():
                self.digest.update(array.tobytes())
            self.samples.append(sample)
            self.labels.append(None if labels is None else int(labels[i]))

    def _batched(self, source, spec, array):
        want, dtype = spec["shape"], TYPES[spec["dtype"]]
        if array.dtype != dtype:
            raise Refused("dtype", f"{source}: input {spec['name']!r} is {array.dtype}, the model takes {np.dtype(dtype)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Refused("not-finite", f"{source}: input {spec['name']!r} has values that are not finite")
        got = list(array.shape)
        short = want[1:] if want and want[0] == 1 else None
        if got == want or got == short:
            return array.reshape([1, *want])
        if got[1:] == want or (short is not None and got[1:] == short):
            return array.reshape([-1, *want])
        raise Refused("shape", f"{source}: input {spec['name']!r} has shape {got}; the model takes {want}, or that many times")


def read_samples(path, specs):
    """Everything in a file, or in the files of a folder, by name."""
    found = Samples(specs)
    files = sorted(f for f in path.rglob("*") if f.suffix in READERS) if path.is_dir() else [path]
    for file in files:
        reader = READERS.get(file.suffix)
        if reader is None:
            known = ", ".join(sorted(READERS))
            raise Refused("format", f"{file.name}: calibration data are files of {known}, or a folder of them")
        try:
            reader(file, found)
        except Refused:
            raise
        except MemoryError as e:
            raise Refused("too-large", f"{file.name}: it does not fit into memory") from e
        except Exception as e:  # noqa: BLE001 -- whatever a damaged file makes its reader say
            raise Refused("format", f"{file.name} cannot be read: {_first_line(e)}") from e
    if not found.samples:
        raise Refused("empty", f"{path}: there is no calibration data in it")
    return found


def _read_npz(file, found):
    with np.load(file, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    found.add(file.name, arrays, arrays.pop("labels", None))


def _read_npy(file, found):
    if len(found.specs) != 1:
        raise Refused("format", f"{file.name}: the model has {len(found.specs)} inputs; name them in an .npz file")
    found.add(file.name, {found.specs[0]["name"]: np.load(file, allow_pickle=False)})


def _read_safetensors(file, found):
    arrays = load_file(file)
    cases = sorted({name.split("/")[0] for name in arrays if "/in/" in name}, key=lambda n: (len(n), n))
    if cases:  # golden vectors
        for case in cases:
            head = f"{case}/in/"
            found.add(file.name, {name[len(head) :]: a for name, a in arrays.items() if name.startswith(head)})
        return
    if len(found.specs) == 1 and "input" in arrays and found.specs[0]["name"] not in arrays:  # a captured window
        arrays = {found.specs[0]["name"]: arrays["input"]}
    found.add(file.name, arrays)


def _read_window(source, window, found):
    """One window: {"x": rows}, as /infer takes it, or a capture with {"input", "shape"}, or {NAME: numbers}."""
    if not isinstance(window, dict):
        raise Refused("format", f"{source}: a window is a JSON object")
    arrays = {}
    for spec in found.specs:
        alone = len(found.specs) == 1
        for name in [spec["name"], *(["x", "input"] if alone else [])]:
            if name in window:
                values = np.asarray(window[name])
                if values.dtype.kind not in "iufb":
                    raise Refused("shape", f"{source}: {name!r} is no array of numbers")
                if name == "input" and "shape" in window:
                    values = values.reshape(window["shape"])
                arrays[spec["name"]] = values.astype(TYPES[spec["dtype"]])
                break
    label = window.get("label")
    found.add(source, arrays, None if label is None else [label])


def _read_json(file, found):
    content = json.loads(file.read_text())
    for i, window in enumerate(content if isinstance(content, list) else [content]):
        _read_window(f"{file.name}, window {i}", window, found)


def _read_ndjson(file, found):
    with file.open() as lines:
        for i, line in enumerate(lines):
            if line.strip():
                _read_window(f"{file.name}, line {i + 1}", json.loads(line), found)


READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".json": _read_json,
    ".ndjson": _read_ndjson,
    ".jsonl": _read_ndjson,
}


def normalised(sample, specs):
    """A sample as the network sees it: `(x - mean) / std` per channel of the last dimension, in f32."""
    out = {}
    for spec in specs:
        array = sample[spec["name"]]
        if constants := spec.get("normalization"):
            mean, std = (np.asarray(constants[k], dtype=np.float32) for k in ("mean", "std"))
            array = ((array - mean) / std).astype(np.float32)
        out[spec["name"]] = array
    return out


class Reader(CalibrationDataReader):
    """Samples, one after the other, as often as they are asked for."""

    def __init__(self, samples):
        self.samples = samples
        self.rewind()

    def get_next(self):
        return next(self.left, None)

    def rewind(self):
        self.left = iter(self.samples)


# -------------------------------------------------------------------------------------------------------- the making


def make(kind, source, work, samples, args):
    """Writes a variant; its path and how it was made."""
    to = work / f"model.{KINDS[kind]['name']}.onnx"
    try:
        if kind == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            half = convert_float_to_float16(onnx.load(source), keep_io_types=True)
            onnx.save(half, to)
            return to, "FP16 weights and arithmetic, FP32 inputs and outputs"
        prepared = work / "prepared.onnx"
        if not prepared.exists():
            say("inferring shapes and folding what is constant")
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        per_channel = not args.per_tensor
        each = "per channel" if per_channel else "per tensor"
        if kind == "dynamic":
            quantize_dynamic(prepared, to, per_channel=per_channel, weight_type=QuantType.QInt8)
            return to, f"dynamic INT8, {each}"
        method = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy}[args.method]
        # Activations without a sign: both kinds divide a range into 255 steps, but ONNX Runtime's kernels for signed ones take two to
        # four times as long on x86. No Softmax: its INT8 kernel takes fourteen times as long as the one for f32.
        quantize_static(
            prepared,
            to,
            Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            op_types_to_quantize=sorted({*QLinearOpsRegistry, *QDQRegistry} - {"Softmax"}),
        )
        return to, f"static QDQ INT8, {each}, {args.method}"
    except Refused:
        raise
    except Exception as e:  # noqa: BLE001
        raise Refused("tool", f"onnxruntime's tools cannot make {KINDS[kind]['name']}: {_first_line(e)}") from e


def cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    if norms == 0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(np.clip(a @ b / norms, -1.0, 1.0))


def compare(wanted, got, names, scored):
    """What differs between two runs over the same samples."""
    whole, worst, max_abs = 1.0, 1.0, 0.0
    for k in range(len(names)):
        a, b = ([outputs[k] for outputs in side] for side in (wanted, got))
        if not all(np.isfinite(x).all() for x in b if x.dtype.kind == "f"):
            return {"finite": False, "cosine": -1.0, "worst_cosine": -1.0, "max_abs": None, "argmax": None}
        whole = min(whole, cosine(np.stack(a), np.stack(b)))
        worst = min(worst, *(cosine(x, y) for x, y in zip(a, b, strict=True)))
        differences = (np.abs(x.astype(np.float64) - y.astype(np.float64)).max() for x, y in zip(a, b, strict=True))
        max_abs = max(max_abs, float(max(differences)))
    argmax = None
    if scored in names:
        k = names.index(scored)
        same = [x[k].argmax() == y[k].argmax() for x, y in zip(wanted, got, strict=True) if decided(x[k], wanted, k)]
        argmax = float(np.mean(same)) if same else None
    return {"finite": True, "cosine": whole, "worst_cosine": worst, "max_abs": max_abs, "argmax": argmax}


def decided(scores, all_outputs, k):
    """Whether one score is clearly the largest: ahead of the next by a hundredth of the largest score in all the data. Of a window
    of nothing all scores are near 0, and which is the largest says nothing."""
    if scores.size < 2:
        return False
    second, first = np.sort(scores.ravel())[-2:]
    return bool(first - second > 0.01 * max(np.abs(o[k]).max() for o in all_outputs))


def top1(outputs, labels, names, scored):
    if scored not in names:
        return None
    k = names.index(scored)
    known = [(o[k].argmax(), label) for o, label in zip(outputs, labels, strict=True) if label is not None]
    return (float(np.mean([a == b for a, b in known])), len(known)) if known else None


def quickest(sessions, sample):
    """Seconds of the quickest run of each, taken in turns: the machine may be busy with other things."""
    best = [float("inf")] * len(sessions)
    for _ in range(30):
        for i, session in enumerate(sessions):
            begun = time.perf_counter()
            session.run(None, sample)
            best[i] = min(best[i], time.perf_counter() - begun)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the network")
    parser.add_argument("--golden", type=Path, required=True, help="the model's golden vectors")
    parser.add_argument("--tensors", type=Path, required=True, help="JSON: inputs, scored, from the model's manifest")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--kind", choices=list(KINDS), action="append", required=True)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--method", choices=["minmax", "entropy"], default="minmax")
    parser.add_argument("--per-tensor", action="store_true")
    parser.add_argument("--export-calibration", type=Path, help="only write the samples, normalised, to this .npy file")
    args = parser.parse_args()
    page = json.loads(args.tensors.read_text())
    specs, scored = page["inputs"], page["scored"]
    unknown = [s["dtype"] for s in specs if s["dtype"] not in TYPES]
    if unknown:
        raise Refused("dtype", f"inputs of {unknown[0]} cannot be quantised: Python has no such type")

    model = read_network(args.model)
    golden = read_samples(args.golden, specs)
    data = read_samples(args.calibration, specs) if args.calibration else golden
    say(f"{len(data.samples)} samples to calibrate with and {len(golden.samples)} golden vectors")
    calibration = [normalised(s, specs) for s in data.samples]
    if args.export_calibration:
        windows = np.concatenate([s[specs[0]["name"]] for s in calibration])
        # Images are [N, C, H, W] in ONNX, and channels last for Hailo's compiler.
        np.save(args.export_calibration, windows.transpose(0, 2, 3, 1) if windows.ndim == 4 else windows)
        return {"samples": len(calibration), "data_sha256": data.digest.hexdigest()}
    golden_inputs = [normalised(s, specs) for s in golden.samples]
    source, converted = modern(model, args.model, args.work, golden_inputs + calibration[:64])
    original = open_session(args.model)
    names = [o.name for o in original.get_outputs()]
    wanted = [[run(original, s) for s in samples] for samples in (calibration, golden_inputs)]
    before = top1(wanted[0], data.labels, names, scored)

    variants = []
    for kind in args.kind:
        say(f"making {KINDS[kind]['name']}")
        path, method = make(kind, source, args.work, calibration, args)
        session = open_session(path)
        say(f"measuring {KINDS[kind]['name']}")
        got = [[run(session, s) for s in samples] for samples in (calibration, golden_inputs)]
        after = top1(got[0], data.labels, names, scored)
        seconds = quickest([original, session], calibration[0])
        variants.append(
            {
                **KINDS[kind],
                "file": path.name,
                "method": method,
                "bytes": path.stat().st_size,
                "same_interface": interface(session) == interface(original),
                "calibration": compare(wanted[0], got[0], names, scored),
                "golden": compare(wanted[1], got[1], names, scored),
                "task": before and after and {"original": before[0], "value": after[0], "samples": after[1]},
                "speed": seconds[0] / seconds[1],
            }
        )
    return {
        "variants": variants,
        "original_bytes": args.model.stat().st_size,
        "samples": len(calibration),
        "data_sha256": data.digest.hexdigest(),
        "opset": converted,
        "tools": {
            "onnxruntime": ort.__version__,
            "onnx": onnx.__version__,
            "numpy": np.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    }


if __name__ == "__main__":
    # What the tools print is for nobody; the channel is for JSON.
    logging.disable(logging.WARNING)
    channel = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(channel, "w")
    try:
        answer = {"result": main()}
    except Refused as refused:
        answer = {"error": {"kind": refused.kind, "message": str(refused)}}
    except MemoryError:
        answer = {"error": {"kind": "too-large", "message": "this machine has not enough memory for it"}}
    except OSError as e:
        answer = {"error": {"kind": "file", "message": str(e)}}
    print(json.dumps(answer), flush=True)
    sys.exit("error" in answer)
