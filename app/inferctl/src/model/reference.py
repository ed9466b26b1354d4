"""Runs a network on ONNX Runtime and compares with recorded outputs. Argument: a folder with case.json beside raw
little-endian tensors. Prints one line of JSON; exit code 3 when a package is missing."""
import json
import pathlib
import sys

try:
    import numpy as np
    import onnxruntime as ort
except ImportError as e:
    print(e, file=sys.stderr)
    sys.exit(3)

TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}
here = pathlib.Path(sys.argv[1])
case = json.loads((here / "case.json").read_text())


def read(way, spec, i):
    array = np.fromfile(here / f"{i}-{way}-{spec['index']}", dtype=TYPES[spec["dtype"]])
    return array.reshape(spec["shape"])


options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
session = ort.InferenceSession(case["network"], options, providers=["CPUExecutionProvider"])
cosine, max_abs = 1.0, 0.0
for i in range(case["cases"]):
    given = {s["name"]: read("in", s, i) for s in case["inputs"]}
    answers = session.run([s["name"] for s in case["outputs"]], given)
    for spec, answer in zip(case["outputs"], answers):
        want = answer.astype(np.float64).ravel()
        got = read("out", spec, i).astype(np.float64).ravel()
        norms = np.linalg.norm(want) * np.linalg.norm(got)
        same = 1.0 if not want.any() and not got.any() else float(want @ got / norms) if norms else 0.0
        cosine = min(cosine, same)
        max_abs = max(max_abs, float(np.max(np.abs(want - got))))
print(json.dumps({"version": ort.__version__, "cosine": min(cosine, 1.0), "max_abs": max_abs}))
