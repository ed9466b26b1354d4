"""Quantises a network with onnxruntime's tools and measures what that cost. `inferctl quantize` runs it.

Standard output is JSON, one object a line: {"progress": TEXT} as work goes on, then {"result": ...} or
{"error": {"kind": ..., "message": ...}}. Exit code 0 with a result, 1 with an error, 3 when a package is missing.
"""

import argparse
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
# An output shorter than this part of the longest of its kind says nothing: its direction is chance. As app/model/src/golden.rs has it.
SILENT = 0.01
# Per-channel weights of QuantizeLinear came with this operator set; older networks are converted.
LEAST_OPSET, OPSET = 13, 17
KINDS = {
    "static": {"name": "int8", "precision": "int8"},
    "dynamic": {"name": "int8-dyn", "precision": "int8"},
    "fp16": {"name": "fp16", "precision": "fp16"},
}


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


def samples_of(path, specs):
    """The samples that inferctl has read and checked: an array [samples, ..] for each input. One dictionary a sample."""
    arrays = load_file(path)
    count = len(arrays[specs[0]["name"]])
    return [{s["name"]: np.ascontiguousarray(arrays[s["name"]][i]) for s in specs} for i in range(count)]


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


def longest(answers, k):
    return max(float(np.linalg.norm(outputs[k].astype(np.float64))) for outputs in answers)


def is_silent(wanted, got, most):
    """Whether an output says nothing in both: of it the differences are told, and no direction."""
    lengths = [float(np.linalg.norm(x.astype(np.float64))) for x in (wanted, got)]
    return lengths[0] < SILENT * most and lengths[1] < 2 * SILENT * most


def compare(wanted, got, lengths, names, scored):
    """What differs between two runs over the same samples. `lengths`: the longest answer of each output."""
    whole, max_abs = 1.0, 0.0
    worst = {"cosine": 1.0, "sample": None, "output": None}
    for k, name in enumerate(names):
        a, b = ([outputs[k] for outputs in side] for side in (wanted, got))
        if not all(np.isfinite(x).all() for x in b if x.dtype.kind == "f"):
            return {"finite": False, "overall_cosine": -1.0, "worst": {**worst, "cosine": -1.0}, "max_abs": None, "argmax": None}
        whole = min(whole, cosine(np.stack(a), np.stack(b)))
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if not is_silent(x, y, lengths[k]) and (near := cosine(x, y)) < worst["cosine"]:
                worst = {"cosine": near, "sample": i, "output": name}
            max_abs = max(max_abs, float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0.0)))
    argmax = None
    if scored in names:
        k = names.index(scored)
        same = [x[k].argmax() == y[k].argmax() for x, y in zip(wanted, got, strict=True) if decided(x[k], wanted, k)]
        argmax = float(np.mean(same)) if same else None
    return {"finite": True, "overall_cosine": whole, "worst": worst, "max_abs": max_abs, "argmax": argmax}


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
    parser.add_argument("--golden", type=Path, required=True, help="inputs of the model's golden vectors, as inferctl writes samples")
    parser.add_argument("--samples", type=Path, required=True, help="the calibration data likewise")
    parser.add_argument("--page", type=Path, required=True, help="JSON: inputs and scored, of the manifest; labels and held_out, of the data")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--kind", choices=list(KINDS), action="append", required=True)
    parser.add_argument("--method", choices=["minmax", "entropy"], default="minmax")
    parser.add_argument("--per-tensor", action="store_true")
    parser.add_argument("--export-calibration", type=Path, help="only write the samples, normalised, to this .npy file")
    args = parser.parse_args()
    page = json.loads(args.page.read_text())
    specs, scored = page["inputs"], page["scored"]

    model = read_network(args.model)
    data = [normalised(s, specs) for s in samples_of(args.samples, specs)]
    if args.export_calibration:
        windows = np.concatenate([s[specs[0]["name"]] for s in data])
        # Images are [N, C, H, W] in ONNX, and channels last for Hailo's compiler.
        np.save(args.export_calibration, windows.transpose(0, 2, 3, 1) if windows.ndim == 4 else windows)
        return {"samples": len(data)}
    golden = [normalised(s, specs) for s in samples_of(args.golden, specs)]
    unseen = set(page["held_out"])
    seen = [s for i, s in enumerate(data) if i not in unseen]
    held_out = [data[i] for i in page["held_out"]]
    labels = [page["labels"][i] for i in page["held_out"]]
    say(f"{len(seen)} samples to calibrate with, {len(held_out)} held out and {len(golden)} golden vectors to judge by")
    source, converted = modern(model, args.model, args.work, golden + data[:64])
    original = open_session(args.model)
    names = [o.name for o in original.get_outputs()]
    wanted = {"golden": [run(original, s) for s in golden], "held_out": [run(original, s) for s in held_out]}
    # A device has the golden vectors alone to go by.
    lengths = {"golden": [longest(wanted["golden"], k) for k in range(len(names))]}
    lengths["held_out"] = [longest(wanted["golden"] + wanted["held_out"], k) for k in range(len(names))]
    before = top1(wanted["held_out"], labels, names, scored)

    variants = []
    for kind in args.kind:
        say(f"making {KINDS[kind]['name']}")
        path, method = make(kind, source, args.work, seen, args)
        session = open_session(path)
        say(f"measuring {KINDS[kind]['name']}")
        if same := interface(session) == interface(original):
            got = {"golden": [run(session, s) for s in golden], "held_out": [run(session, s) for s in held_out]}
            told = {part: compare(wanted[part], got[part], lengths[part], names, scored) for part in got if got[part]}
            if "held_out" in told and (worst := told["held_out"]["worst"])["sample"] is not None:
                worst["sample"] = page["held_out"][worst["sample"]]
            after = top1(got["held_out"], labels, names, scored)
            seconds = quickest([original, session], golden[0])
        else:
            told, after, seconds = {}, None, (1.0, 1.0)
        variants.append(
            {
                **KINDS[kind],
                "file": path.name,
                "method": method,
                "bytes": path.stat().st_size,
                "same_interface": same,
                "held_out": told.get("held_out"),
                "golden": told.get("golden"),
                "task": before and after and {"original": before[0], "value": after[0], "samples": after[1]},
                "speed": seconds[0] / seconds[1],
            }
        )
    return {
        "variants": variants,
        "original_bytes": args.model.stat().st_size,
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
