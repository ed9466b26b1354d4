"""Quantised copies of the default model, made with onnxruntime's own tools: what the rungs of a ladder run."""

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from safetensors.numpy import load_file

from engines import variants

INT8 = "model.int8.onnx"


class _Golden(CalibrationDataReader):
    """The golden inputs, normalised as the hosts do it."""

    def __init__(self, folder):
        constants = _normalization(folder)
        cases = load_file(folder / "golden.safetensors")
        self.windows = [
            {"imu_window": ((cases[name] - constants[0]) / constants[1]).astype(np.float32)}
            for name in sorted(cases)
            if "/in/" in name
        ]

    def get_next(self):
        return self.windows.pop() if self.windows else None


def _normalization(folder):
    import tomllib

    constants = tomllib.loads((folder / "manifest.toml").read_text())["inputs"][0]["normalization"]
    return np.array(constants["mean"]), np.array(constants["std"])


def quantise(folder):
    """Writes the INT8 form of the model in `folder` beside it: QDQ, per channel, calibrated with the golden inputs."""
    quantize_static(
        folder / "model.onnx",
        folder / INT8,
        _Golden(folder),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    onnx.checker.check_model(folder / INT8)


def ladder(to, engines, cosine=0.7, max_abs=0.5):
    """A copy of the default model with the variant int8 and this list of rungs."""
    variants.copy(to, engines)
    quantise(to)
    variants.name(to, "int8", INT8, "int8", {"cosine": cosine, "max_abs": max_abs})
    return to
