"""Models quantized by onnxruntime's own quantizer, on images that are made up."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from tests.onnx_graph.build import Array, Build

__all__ = ["codes", "images", "net", "quantize", "quantized", "signal"]

TYPES = {"int4": QuantType.QInt4, "int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


def images(count: int, seed: int = 0) -> Array:
    """From 0 to 1, so that what rounding does to a weight shifts the mean of what it makes."""
    return np.random.default_rng(seed).uniform(0, 1, (count, 3, 8, 8)).astype(np.float32)


def net(bias: bool = True, batch: int | str = "N", seed: int = 0) -> onnx.ModelProto:
    """Conv, Relu, depthwise Conv, Relu6, ConvTranspose, Gemm, MatMul.

    bias: whether they have one, but for the last. (Of a ConvTranspose in groups onnxruntime's quantizer takes
    none.)
    """
    g = Build(seed=seed, opset=21)
    y = g.op("Relu", g.conv(g.input("x", (batch, 3, 8, 8)), 8, 3, bias=bias, pads=1, name="conv"))
    y = g.conv(y, 8, 3, group=8, bias=bias, name="depthwise")
    low, high = g.const(np.float32(0)), g.const(np.float32(6))
    y = g.op("Clip", y, low, high)
    y = g.deconv(y, 6, 2, group=1 if bias else 2, bias=bias, name="deconv", strides=[2, 2])
    y = g.op("Flatten", g.op("GlobalAveragePool", y))
    y = g.gemm(y, 8, c=(8,) if bias else None, name="gemm")
    g.output(g.matmul(y, 5, name="matmul"))
    return g.model()


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Array) -> None:
        self.feeds: Iterator[Any] = iter({"x": sample[None]} for sample in samples)

    def get_next(self) -> Any:
        return next(self.feeds, None)


def quantize(model: onnx.ModelProto, weights: str, activations: str, per_channel: bool) -> onnx.ModelProto:
    """By onnxruntime's static quantizer, QDQ."""
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, Path(folder) / "float.onnx")
            quantize_static(
                Path(folder) / "float.onnx",
                Path(folder) / "int8.onnx",
                Reader(images(16)),
                quant_format=QuantFormat.QDQ,
                weight_type=TYPES[weights],
                activation_type=TYPES[activations],
                per_channel=per_channel,
            )
            return onnx.load(Path(folder) / "int8.onnx")
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def quantized(
    bias: bool = True, weights: str = "int8", activations: str = "uint8", per_channel: bool = False
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """`net` and its quantized form. Nobody changes them: all tests share them."""
    model = net(bias)
    return model, quantize(model, weights, activations, per_channel)


def signal(exact: onnx.ModelProto, found: onnx.ModelProto, x: Array) -> float:
    """Signal over noise of the first output, in dB."""
    wanted, got = (
        next(iter(evaluate(load(m), {"x": x})[0].values())).astype(np.float64) for m in (exact, found)
    )
    return float(10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()))


def codes(model: onnx.ModelProto) -> dict[str, bytes]:
    """The integers of the weights: those with several axes."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1}
    return {name: array.tobytes() for name, array in stored.items() if "int" in array.dtype.name}
