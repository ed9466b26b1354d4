"""Every case the ONNX standard publishes for its operators: right, or an error, but never a wrong answer."""

import collections
import warnings

import numpy as np
import pytest
from engine.networks import WIRE, largest, write
from onnx.backend.test.case.node import collect_testcases

# Cases whose answer may differ, and why that is no error.
ACCEPTED = {
    # x / scale instead of x * (1 / scale): one step where x lies between two. ONNX Runtime agrees with rten.
    "test_dynamicquantizelinear",
    "test_dynamicquantizelinear_expanded",
    # The standard's sample disagrees with ONNX Runtime, rten agrees with it (test_operators.py).
    "test_resize_downsample_scales_linear_align_corners",
}


def cases():
    """Inputs and outputs as the wire can carry them; the rest (strings, sequences, empty tensors) is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        published = collect_testcases(None)
    for case in published:
        if case.model is None or case.name in ACCEPTED:
            continue
        graph = case.model.graph
        given, wanted = case.data_sets[0]
        inputs = dict(zip((v.name for v in graph.input), given))
        outputs = dict(zip((v.name for v in graph.output), wanted))
        complete = inputs and len(inputs) == len(graph.input) == len(given)
        if complete and all(carried(a) for a in [*given, *wanted]):
            inputs, outputs = ({k: np.asarray(a) for k, a in d.items()} for d in (inputs, outputs))
            yield case.name, case.model, inputs, outputs


def carried(array):
    """Whether the wire can carry it: a tensor with elements, finite, of a type that has a name there."""
    tensor = isinstance(array, (np.ndarray, np.generic)) and array.dtype in WIRE and array.size > 0
    return tensor and bool(np.isfinite(array.astype(np.float64)).all())


@pytest.fixture(scope="module")
def verdicts(check, tmp_path_factory):
    folder = tmp_path_factory.mktemp("standard")
    directories = []
    for name, proto, inputs, outputs in cases():
        # BF16 and FP16 are rounded at the end here and after each step there.
        half = any(a.dtype.itemsize == 2 and a.dtype.kind not in "iu" for a in outputs.values())
        tolerance = (8e-3 if half else 2e-3) * max(1.0, largest(outputs))
        directories.append(write(folder, name, proto, inputs, outputs, max_abs=tolerance, cosine=0.999))
    return check(directories)


def test_no_operator_gives_a_wrong_answer(verdicts):
    wrong = {name: why for name, (verdict, why) in verdicts.items() if verdict == "differs"}
    assert not wrong


def test_no_operator_panics(verdicts):
    panicked = {name: why for name, (verdict, why) in verdicts.items() if verdict == "panicked"}
    assert not panicked


def test_most_operators_are_there(verdicts):
    counts = collections.Counter(verdict for verdict, _ in verdicts.values())
    assert not {n: w for n, (v, w) in verdicts.items() if v == "unreadable"}
    assert counts["agrees"] > 850, counts
