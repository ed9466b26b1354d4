"""One operator at a time beside ONNX Runtime: it agrees, or it is refused at load. Never a third thing."""

import itertools

import numpy as np
import pytest
from engine.networks import network, node, save
from onnx import TensorProto

RNG = np.random.default_rng(1)
CASES = {}


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def u8(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape):
    return RNG.integers(-128, 128, shape).astype(np.int8)


def weights(kind, *shape):
    """8-bit weights of 7 bits: on processors without 8-bit dot products both engines may saturate beyond that."""
    return RNG.integers(-63, 64, shape).astype(np.int8) if kind == "i8" else RNG.integers(65, 191, shape).astype(np.uint8)


def case(name, expected, nodes, inputs, outputs, constants=None, **how):
    """`expected` is `agrees` or `refused`; `how` goes to `network` and, for tolerances, to `save`."""
    assert name not in CASES, name
    CASES[name] = (expected, nodes, inputs, outputs, constants, how)


def quantised_convolutions():
    for pads, zero, kind in itertools.product(([0, 0], [1, 1], [2, 0]), (None, 0, 128, 200), ("u8", "i8")):
        x = u8(1, 4, 9) if kind == "u8" else i8(1, 4, 9)
        constants, names = {"w": weights("i8", 6, 4, 3)}, ["x", "w"]
        if zero is not None:
            constants["z"] = np.array(zero if kind == "u8" else zero - 128, x.dtype)
            names.append("z")
        case(
            f"ConvInteger_pads{pads[0]}{pads[1]}_zero{zero}_{kind}",
            "refused" if any(pads) else "agrees",
            [node("ConvInteger", names, ["y"], kernel_shape=[3], pads=pads)],
            {"x": x},
            {"y": "INT32"},
            constants,
            max_abs=0,
        )
    conv = {
        "2d": (u8(1, 3, 8, 8), weights("u8", 5, 3, 3, 3), {}),
        "2d_signed": (u8(1, 3, 8, 8), weights("i8", 5, 3, 3, 3), {}),
        "groups": (u8(1, 4, 8, 8), weights("i8", 6, 2, 3, 3), {"group": 2}),
        "depthwise": (u8(1, 4, 8, 8), weights("i8", 4, 1, 3, 3), {"group": 4}),
        "strides": (u8(1, 4, 20, 20), weights("i8", 6, 4, 3, 3), {"strides": [2, 2], "dilations": [2, 2]}),
        "batch": (u8(2, 4, 20, 5), weights("i8", 6, 4, 1, 1), {}),
    }
    for (name, (x, w, attributes)), zero in itertools.product(conv.items(), (False, True)):
        constants = {"w": w, "z": np.array(77, np.uint8)}
        if zero:
            constants["wz"] = np.array(9, w.dtype)
        operator = node("ConvInteger", ["x", *constants], ["y"], kernel_shape=w.shape[2:], **attributes)
        case(f"ConvInteger_{name}_{zero}", "agrees", [operator], {"x": x}, {"y": "INT32"}, constants, max_abs=0)
    for pads in ([0, 0], [2, 2]):
        nodes = [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            node("ConvInteger", ["q", "w", "z"], ["i"], kernel_shape=[3], pads=pads),
            node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            node("Mul", ["s", "ws"], ["both"]),
            node("Mul", ["f", "both"], ["y"]),
        ]
        case(
            f"dynamically_quantised_convolution_pads{pads[0]}",
            "refused" if any(pads) else "agrees",
            nodes,
            {"x": f32(1, 4, 30) + np.float32(1)},
            {"y": "FP32"},
            {"w": weights("i8", 6, 4, 3), "ws": np.float32(0.01)},
        )


def quantised_matrices():
    for a, b, zeros in itertools.product(("u8", "i8"), ("u8", "i8"), ("none", "scalar", "columns")):
        constants = {"b": weights(b, 37, 11)}
        if zeros != "none":
            constants["az"] = weights(a, 1).reshape(())
            constants["bz"] = weights(b, 11) if zeros == "columns" else weights(b, 1).reshape(())
        case(
            f"MatMulInteger_{a}_{b}_{zeros}",
            "agrees",
            [node("MatMulInteger", ["a", *constants], ["y"])],
            {"a": u8(5, 37) if a == "u8" else i8(5, 37)},
            {"y": "INT32"},
            constants,
            max_abs=0,
        )
    zero = {"az": np.array(9, np.uint8), "bz": np.array(3, np.int8)}
    multiply = [node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])]
    both = {"a": u8(5, 300), "b": weights("i8", 300, 11)}
    case("MatMulInteger_both_dynamic", "agrees", multiply, both, {"y": "INT32"}, zero, max_abs=0)
    constants = {"b": weights("i8", 30, 11), **zero}
    case("MatMulInteger_batch", "agrees", multiply, {"a": u8(3, 5, 30)}, {"y": "INT32"}, constants, max_abs=0)
    case("MatMulInteger_vector", "agrees", multiply, {"a": u8(1, 30)}, {"y": "INT32"}, constants, max_abs=0)
    for columns in (False, True):
        constants = {"w": weights("i8", 64, 32), "ws": np.abs(f32(32)) * np.float32(0.01)}
        if columns:
            constants["wz"] = weights("i8", 32)
        nodes = [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            node("MatMulInteger", ["q", "w", "z", *(["wz"] if columns else [])], ["i"]),
            node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            node("Mul", ["s", "ws"], ["both"]),
            node("Mul", ["f", "both"], ["y"]),
        ]
        x = {"x": f32(7, 64) + np.float32(1)}
        case(f"dynamically_quantised_matrix_{columns}", "agrees", nodes, x, {"y": "FP32"}, constants)


def quantising():
    for i, x in enumerate((f32(4, 50), f32(4, 50) * 3 + 2, f32(4, 50) / 100, f32(4, 50) * 100 - 50)):
        outputs = {"y": "UINT8", "s": "FP32", "z": "UINT8"}
        nodes = [node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])]
        case(f"DynamicQuantizeLinear_{i}", "agrees", nodes, {"x": x.astype(np.float32)}, outputs, max_abs=0)
    nodes = [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    case("DynamicQuantizeLinear_and_back", "agrees", nodes, {"x": f32(4, 50)}, {"y": "FP32"})
    for kind, axis in itertools.product((np.int8, np.uint8), (None, 1)):
        shape = (4,) if axis else ()
        scale = (np.abs(RNG.standard_normal(shape)) * 0.05 + 0.01).astype(np.float32)
        zero = (RNG.integers(-5, 5, shape) + (100 if kind == np.uint8 else 0)).astype(kind)
        named = {} if axis is None else {"axis": axis}
        wire, constants = np.dtype(kind).name.upper(), {"s": scale, "z": zero}
        nodes = [node("QuantizeLinear", ["x", "s", "z"], ["y"], **named)]
        case(f"QuantizeLinear_{wire}_{axis}", "agrees", nodes, {"x": f32(2, 4, 9) * 3}, {"y": wire}, constants, max_abs=0)
        nodes = [node("DequantizeLinear", ["x", "s", "z"], ["y"], **named)]
        x = u8(2, 4, 9) if kind == np.uint8 else i8(2, 4, 9)
        case(f"DequantizeLinear_{wire}_{axis}", "agrees", nodes, {"x": x}, {"y": "FP32"}, constants)
    ties = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1000, -1000], np.float32)
    nodes, constants = [node("QuantizeLinear", ["x", "s", "z"], ["y"])], {"s": np.float32(1), "z": np.int8(0)}
    case("QuantizeLinear_rounds_halves_to_even", "agrees", nodes, {"x": ties}, {"y": "INT8"}, constants, max_abs=0)


def statically_quantised():
    for pad, channels, kind, dims in itertools.product((0, 1), (False, True), (np.int8, np.uint8), (1, 2)):
        scale = (np.abs(f32(8)) * 0.01 + 0.005).astype(np.float32) if channels else np.float32(0.01)
        constants = {
            "xs": np.float32(0.03),
            "xz": np.array(-5 if kind == np.int8 else 120, kind),
            "w": i8(8, 4, *[3] * dims),
            "ws": scale,
            "wz": np.zeros(8 if channels else (), np.int8),
            "b": RNG.integers(-3000, 3000, 8).astype(np.int32),
            "bs": np.float32(0.0003),
            "ys": np.float32(0.05),
            "yz": np.array(-128 if kind == np.int8 else 0, kind),
        }
        nodes = [
            node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            node("DequantizeLinear", ["q", "xs", "xz"], ["xd"]),
            node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], **({"axis": 0} if channels else {})),
            node("DequantizeLinear", ["b", "bs"], ["bd"]),
            node("Conv", ["xd", "wd", "bd"], ["c"], kernel_shape=[3] * dims, pads=[pad] * 2 * dims),
            node("Relu", ["c"], ["r"]),
            node("QuantizeLinear", ["r", "ys", "yz"], ["yq"]),
            node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
        ]
        name = f"statically_quantised_convolution_{dims}d_pad{pad}_{channels}_{np.dtype(kind).name}"
        # One step of the last quantisation, where a sum lies between two.
        case(name, "agrees", nodes, {"x": f32(1, 4, *[12] * dims)}, {"y": "FP32"}, constants, max_abs=0.0501)
    constants = {
        "xs": np.float32(0.03), "xz": np.uint8(3), "w": i8(5, 3, 3, 3), "ws": np.float32(0.01), "wz": np.int8(0),
        "ys": np.float32(0.05), "yz": np.uint8(7),
    }  # fmt: skip
    nodes = [node("QLinearConv", ["x", *constants], ["y"], kernel_shape=[3, 3])]
    case("QLinearConv", "refused", nodes, {"x": u8(1, 3, 8, 8)}, {"y": "UINT8"}, constants)
    nodes, constants = [node("QLinearMatMul", ["x", *constants], ["y"])], {**constants, "w": i8(8, 3)}
    case("QLinearMatMul", "refused", nodes, {"x": u8(5, 8)}, {"y": "UINT8"}, constants)


def matrices():
    shapes = [
        ((3,), (3,)), ((2, 3), (3,)), ((2, 2, 3), (3,)), ((1, 2, 4, 3), (3,)), ((3,), (3, 4)), ((3,), (2, 3, 4)),
        ((3,), (1, 2, 3, 4)), ((2, 1, 4, 3), (5, 3, 2)),
    ]  # fmt: skip
    for (a, b), constant in itertools.product(shapes, (False, True)):
        both = {"a": f32(*a), "b": f32(*b)}
        inputs = {"a": both["a"]} if constant else both
        constants = {"b": both["b"]} if constant else {}
        expected = "refused" if len(b) == 1 and len(a) > 2 else "agrees"
        name = f"MatMul_{len(a)}d_{len(b)}d_{constant}"
        case(name, expected, [node("MatMul", ["a", "b"], ["y"])], inputs, {"y": "FP32"}, constants)
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)]
    case("Gemm_9", "agrees", nodes, {"x": f32(5, 8)}, {"y": "FP32"}, {"w": f32(7, 8), "b": f32(7)}, opset=9)


def resizing():
    modes = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    rounding = ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
    for mode, where, nearest, scale in itertools.product(
        ("nearest", "linear", "cubic"), modes, rounding, ((2, 2), (0.6, 0.6), (1.7, 0.8))
    ):
        if mode != "nearest" and nearest != rounding[0]:
            continue
        how = {"mode": mode, "coordinate_transformation_mode": where, "nearest_mode": nearest}
        case(
            f"Resize_{mode}_{where}_{nearest}_{scale[0]}",
            "refused" if mode == "cubic" else "agrees",
            [node("Resize", ["x", "", "s"], ["y"], **how)],
            {"x": f32(1, 2, 5, 7)},
            {"y": "FP32"},
            {"s": np.array([1, 1, *scale], np.float32)},
        )
    twice = {"s": np.array([1, 1, 2, 2], np.float32)}
    for mode in ("nearest", "linear"):
        x = {"x": f32(1, 2, 5, 7)}
        case(f"Resize_10_{mode}", "refused", [node("Resize", ["x", "s"], ["y"], mode=mode)], x, {"y": "FP32"}, twice, opset=10)
        case(f"Upsample_9_{mode}", "agrees", [node("Upsample", ["x", "s"], ["y"], mode=mode)], x, {"y": "FP32"}, twice, opset=9)


def older_sets():
    for operator, opset, axis in itertools.product(("Softmax", "LogSoftmax"), (9, 11, 12), (None, 0, 1, 2, -1)):
        if axis == -1 and opset < 11:
            continue
        expected = "agrees" if axis in (2, -1) else "refused"
        nodes = [node(operator, ["x"], ["y"], **({} if axis is None else {"axis": axis}))]
        case(f"{operator}_{opset}_{axis}", expected, nodes, {"x": f32(2, 3, 4)}, {"y": "FP32"}, opset=opset)
    # The same axis after an operator whose result has a known number of dimensions.
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("Softmax", ["t"], ["y"], axis=2)]
    case("Softmax_11_after_Transpose", "agrees", nodes, {"x": f32(2, 3, 4)}, {"y": "FP32"}, opset=11)
    for operator in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2"):
        nodes = [node(operator, ["x"], ["y"], axes=[1], keepdims=0)]
        case(f"{operator}_11", "agrees", nodes, {"x": f32(2, 3, 4)}, {"y": "FP32"}, opset=11)
        case(f"{operator}_11_all", "agrees", [node(operator, ["x"], ["y"])], {"x": f32(2, 3, 4)}, {"y": "FP32"}, opset=11)
    old = {
        "Squeeze_11": ([node("Squeeze", ["x"], ["y"], axes=[1])], f32(2, 1, 4), 11),
        "Squeeze_11_all": ([node("Squeeze", ["x"], ["y"])], f32(2, 1, 4, 1), 11),
        "Unsqueeze_11": ([node("Unsqueeze", ["x"], ["y"], axes=[0, 3])], f32(2, 4), 11),
        "Slice_9": ([node("Slice", ["x"], ["y"], starts=[1, -3], ends=[1000, -1], axes=[0, 2])], f32(2, 3, 4), 9),
        "Pad_10": ([node("Pad", ["x"], ["y"], pads=[0, 1, 2, 0, 1, 2], mode="reflect")], f32(2, 3, 4), 10),
        "Clip_9": ([node("Clip", ["x"], ["y"], min=-0.5, max=0.5)], f32(2, 3, 4), 9),
    }
    for name, (nodes, x, opset) in old.items():
        case(name, "agrees", nodes, {"x": x}, {"y": "FP32"}, opset=opset)
    x, both = {"x": f32(2, 4)}, {"a": "FP32", "b": "FP32"}
    case("Split_11", "agrees", [node("Split", ["x"], ["a", "b"], axis=1, split=[1, 3])], x, both, opset=11)
    case("Split_11_even", "agrees", [node("Split", ["x"], ["a", "b"], axis=1)], x, both, opset=11)
    case("TopK_9", "agrees", [node("TopK", ["x"], ["a", "b"], axis=1, k=2)], x, {"a": "FP32", "b": "INT64"}, opset=9)
    statistics = {"s": f32(3), "b": f32(3), "m": f32(3), "v": np.abs(f32(3)) + np.float32(0.1)}
    for opset in (9, 15):
        nodes = [node("BatchNormalization", ["x", *statistics], ["y"], epsilon=1e-3)]
        case(f"BatchNormalization_{opset}", "agrees", nodes, {"x": f32(2, 3, 4)}, {"y": "FP32"}, statistics, opset=opset)
    bounds = {"s": np.array([-1, 0]), "e": np.array([-(2**63), 2**63 - 1]), "a": np.array([0, 1]), "t": np.array([-2, 3])}
    case("Slice_to_the_end", "agrees", [node("Slice", ["x", *bounds], ["y"])], {"x": f32(5, 6)}, {"y": "FP32"}, bounds)


def types():
    x = np.array([0, 0.4, 0.5, -0.5, 1, 2.5, -2.7, 100.9], np.float32)
    for to, wire, expected in (
        (TensorProto.BOOL, "BOOL", "refused"), (TensorProto.INT32, "INT32", "agrees"), (TensorProto.INT64, "INT64", "agrees"),
        (TensorProto.FLOAT16, "FP16", "agrees"), (TensorProto.DOUBLE, "FP64", "agrees"),
    ):  # fmt: skip
        case(f"Cast_FP32_{wire}", expected, [node("Cast", ["x"], ["y"], to=to)], {"x": x}, {"y": wire}, max_abs=1e-3)
    whole = np.array([0, 1, 255, 256, -1, 1000], np.int32)
    to_bool = [node("Cast", ["x"], ["y"], to=TensorProto.BOOL)]
    case("Cast_INT32_BOOL", "refused", to_bool, {"x": whole}, {"y": "BOOL"})
    case("Cast_BOOL_BOOL", "agrees", to_bool, {"x": whole != 0}, {"y": "BOOL"}, max_abs=0)
    case("Cast_INT32_UINT8", "agrees", [node("Cast", ["x"], ["y"], to=TensorProto.UINT8)], {"x": whole}, {"y": "UINT8"}, max_abs=0)
    logic = [[node(op, ["a", "b"], ["y"])] for op in ("And", "Or", "Xor", "Equal")]
    for nodes in logic:
        inputs = {"a": np.array([0, 0, 1, 1], bool), "b": np.array([0, 1, 0, 1], bool)}
        case(f"{nodes[0].op_type}_BOOL", "agrees", nodes, inputs, {"y": "BOOL"}, max_abs=0)
    a, b = np.array([7, -7, 7, -7, 0], np.int32), np.array([2, 2, -2, -2, 3], np.int32)
    for op in ("Div", "Mod", "Mul", "Sub", "Add", "Min", "Max"):
        case(f"{op}_INT32", "agrees", [node(op, ["a", "b"], ["y"])], {"a": a, "b": b}, {"y": "INT32"}, max_abs=0)
    for op in ("Mul", "Sub", "Add"):
        wide = {"a": a.astype(np.int64), "b": b.astype(np.int64)}
        case(f"{op}_INT64_of_a_client", "refused", [node(op, ["a", "b"], ["y"])], wide, {"y": "INT64"})
    # Positions inside of the network may be computed with, whatever their type.
    nodes = [node("Shape", ["x"], ["n"]), node("Mul", ["n", "two"], ["m"]), node("Tile", ["x", "m"], ["y"])]
    case("Mul_INT64_of_a_shape", "agrees", nodes, {"x": f32(2, 2)}, {"y": "FP32"}, {"two": np.array([2])})
    nodes = [node("Gather", ["t", "i"], ["y"])]
    case("Gather_INT64_of_a_client", "agrees", nodes, {"i": np.array([2, 0, -1])}, {"y": "FP32"}, {"t": f32(3, 4)})
    nodes = [node("ReduceSum", ["x", "one"], ["y"])]
    case("ReduceSum_INT64_of_a_client", "refused", nodes, {"x": np.array([[1, 2]])}, {"y": "INT64"}, {"one": np.array([1])})
    nodes, big = [node("Add", ["n", "big"], ["y"])], {"big": np.array([1 << 40])}
    nodes.insert(0, node("Shape", ["x"], ["n"]))
    case("constant_beyond_INT32", "refused", nodes, {"x": f32(3)}, {"y": "INT64"}, big)
    nodes = [node("Min", ["x", "big"], ["y"])]
    case("constant_beyond_FP32", "refused", nodes, {"x": np.array([1.0, 2.0])}, {"y": "FP64"}, {"big": np.array([1e300])})
    for wire, kind in (("FP64", np.float64), ("FP16", np.float16)):
        inputs, constants = {"a": f32(4, 8).astype(kind)}, {"b": f32(8, 5).astype(kind)}
        case(f"MatMul_{wire}", "agrees", [node("MatMul", ["a", "b"], ["y"])], inputs, {"y": wire}, constants, max_abs=2e-2)


def choices():
    ties = np.array([[1, 1, 0], [1, 2, 2]], np.float32)
    for op, axis in itertools.product(("ArgMax", "ArgMin"), (0, 1)):
        case(f"{op}_{axis}", "refused", [node(op, ["x"], ["y"], axis=axis)], {"x": ties}, {"y": "INT64"})
    x = np.array([0, -0.0, 3, -2], np.float32)
    case("Sign_FP32", "refused", [node("Sign", ["x"], ["y"])], {"x": x}, {"y": "FP32"})
    case("Sign_INT32", "agrees", [node("Sign", ["x"], ["y"])], {"x": x.astype(np.int32)}, {"y": "INT32"}, max_abs=0)
    x = {"x": np.array([[1, 1, 0, 1], [3, 2, 2, 2]], np.float32)}
    outputs, k = {"v": "FP32", "i": "INT64"}, {"k": np.array([2])}
    case("TopK_ties", "agrees", [node("TopK", ["x", "k"], ["v", "i"])], x, outputs, k, max_abs=0)
    boxes = {"boxes": np.abs(f32(1, 6, 4)).cumsum(2).astype(np.float32), "scores": np.abs(f32(1, 2, 6))}
    limits = {"n": np.array([2]), "iou": np.array([0.5], np.float32), "score": np.array([0], np.float32)}
    nodes = [node("NonMaxSuppression", ["boxes", "scores", *limits], ["y"])]
    case("NonMaxSuppression", "refused", nodes, boxes, {"y": "INT64"}, limits)


def windows():
    for pad, stride in itertools.product(("SAME_UPPER", "SAME_LOWER"), (1, 2)):
        expected = "refused" if pad == "SAME_LOWER" else "agrees"
        for op in ("Conv", "MaxPool", "AveragePool"):
            constants = {"w": f32(3, 2, 4, 4)} if op == "Conv" else {}
            how = {"auto_pad": pad, "strides": [stride, stride], "kernel_shape": [4, 4]}
            nodes = [node(op, ["x", *constants], ["y"], **how)]
            case(f"{op}_{pad}_{stride}", expected, nodes, {"x": f32(1, 2, 8, 7)}, {"y": "FP32"}, constants)
    for include, ceil in itertools.product((0, 1), (0, 1)):
        how = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": ceil}
        nodes = [node("AveragePool", ["x"], ["y"], count_include_pad=include, **how)]
        case(f"AveragePool_{include}_{ceil}", "agrees", nodes, {"x": f32(1, 2, 8, 8)}, {"y": "FP32"}, opset=19)
        nodes = [node("MaxPool", ["x"], ["y"], **{**how, "pads": [include] * 4})]
        case(f"MaxPool_{include}_{ceil}", "agrees", nodes, {"x": f32(1, 2, 8, 8)}, {"y": "FP32"})
    for groups, dilation in itertools.product((1, 2, 4), (1, 2, 4)):
        how = {"kernel_shape": [3], "group": groups, "dilations": [dilation], "pads": [2 * dilation, 0]}
        constants = {"w": f32(8, 4 // groups, 3), "b": f32(8)}
        nodes = [node("Conv", ["x", "w", "b"], ["y"], **how)]
        case(f"Conv_causal_{groups}_{dilation}", "agrees", nodes, {"x": f32(1, 4, 30)}, {"y": "FP32"}, constants)
    for groups, extra in itertools.product((1, 2), (0, 1)):
        how = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "group": groups}
        nodes = [node("ConvTranspose", ["x", "w"], ["y"], output_padding=[extra, extra], **how)]
        case(f"ConvTranspose_{groups}_{extra}", "agrees", nodes, {"x": f32(1, 4, 5, 5)}, {"y": "FP32"}, {"w": f32(4, 2, 3, 3)})


def recurrent():
    for direction, n in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        x, how = {"x": f32(7, 2, 3)}, {"hidden_size": 5, "direction": direction}
        constants = {"w": f32(n, 20, 3), "r": f32(n, 20, 5), "b": f32(n, 40)}
        outputs = {"y": "FP32", "h": "FP32", "c": "FP32"}
        case(f"LSTM_{direction}", "agrees", [node("LSTM", ["x", *constants], [*outputs], **how)], x, outputs, constants)
        lengths = {**constants, "n": np.array([3, 7], np.int32)}
        nodes = [node("LSTM", ["x", *lengths], [*outputs], **how)]
        case(f"LSTM_{direction}_lengths", "refused", nodes, x, outputs, lengths)
        for before in (0, 1):
            constants = {"w": f32(n, 15, 3), "r": f32(n, 15, 5), "b": f32(n, 30)}
            nodes = [node("GRU", ["x", *constants], ["y", "h"], linear_before_reset=before, **how)]
            expected = "agrees" if before else "refused"
            case(f"GRU_{direction}_{before}", expected, nodes, x, {"y": "FP32", "h": "FP32"}, constants)


def elsewhere():
    """Operators of com.microsoft, as ONNX Runtime's own optimiser leaves them."""
    ms = {"domain": "com.microsoft"}
    x, bias = {"x": f32(2, 5, 16)}, {"b": f32(16)}
    for op in ("FastGelu", "Gelu", "QuickGelu"):
        case(f"com.microsoft.{op}", "agrees", [node(op, ["x"], ["y"], **ms)], x, {"y": "FP32"}, domains=["com.microsoft"])
    case("com.microsoft.BiasGelu", "agrees", [node("BiasGelu", ["x", "b"], ["y"], **ms)], x, {"y": "FP32"}, bias,
         domains=["com.microsoft"])  # fmt: skip
    inputs, constants = {"x": f32(2, 5, 16), "skip": f32(2, 5, 16)}, {"g": f32(16), "b": f32(16)}
    nodes = [node("SkipLayerNormalization", ["x", "skip", "g", "b"], ["y"], epsilon=1e-5, **ms)]
    case("com.microsoft.SkipLayerNormalization", "agrees", nodes, inputs, {"y": "FP32"}, constants, domains=["com.microsoft"])
    constants = {"b": RNG.integers(0, 256, (8, 2, 16)).astype(np.uint8), "s": np.abs(f32(8 * 2)) * np.float32(0.1)}
    nodes = [node("MatMulNBits", ["x", "b", "s"], ["y"], K=64, N=8, bits=4, block_size=32, **ms)]
    case("com.microsoft.MatMulNBits", "agrees", nodes, {"x": f32(3, 64)}, {"y": "FP32"}, constants, max_abs=2e-2,
         domains=["com.microsoft"])  # fmt: skip
    nodes = [node("FusedMatMul", ["x", "w"], ["y"], alpha=0.5, **ms)]
    case("com.microsoft.FusedMatMul", "refused", nodes, {"x": f32(3, 64)}, {"y": "FP32"}, {"w": f32(64, 8)},
         domains=["com.microsoft"])  # fmt: skip


for fill in (
    quantised_convolutions, quantised_matrices, quantising, statically_quantised, matrices, resizing, older_sets, types,
    choices, windows, recurrent, elsewhere,
):  # fmt: skip
    fill()


@pytest.fixture(scope="module")
def verdicts(check, tmp_path_factory):
    folder = tmp_path_factory.mktemp("operators")
    directories = []
    for name, (_, nodes, inputs, outputs, constants, how) in CASES.items():
        tolerance = {key: how[key] for key in ("max_abs", "cosine") if key in how}
        proto = network(nodes, inputs, outputs, constants, **{k: v for k, v in how.items() if k not in tolerance})
        directories.append(save(folder, name, proto, inputs, outputs, **tolerance))
    return check(directories)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_agrees_or_is_refused(verdicts, name):
    verdict, why = verdicts[name]
    assert verdict == CASES[name][0], why
