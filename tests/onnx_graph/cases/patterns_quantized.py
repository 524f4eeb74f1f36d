"""Patterns with weights behind DequantizeLinear: new steps, and the same integers or their negatives."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.onnx_graph.build import Array, Build
from tests.onnx_graph.cases.case import Patterns, image, rows

QUANT = Patterns()


def _quantized(
    g: Build, values: Array, scale: Array, zero: Array | None, *, axis: int | None = None, dtype: str = "int8"
) -> str:
    parts = [g.const(values, "integers", dtype=dtype), g.const(scale, "step")]
    parts += [g.const(zero, "zero_point", dtype=dtype)] if zero is not None else []
    attrs: dict[str, Any] = {} if axis is None else {"axis": axis}
    return g.op("DequantizeLinear", *parts, **attrs)


def _dequantize(
    g: Build,
    signs: Any = "positive",
    low: int = -127,
    zero: bool = False,
    dtype: str = "int8",
    per_channel: bool = True,
) -> str:
    top = 255 if dtype == "uint8" else 127
    values = g.rng.integers(low, top + 1, (7, 6, 3, 3))
    values[:, 0, 0, 0] = low
    scale = g.rng.uniform(0.001, 0.003, 7 if per_channel else ())
    point = g.rng.integers(low + 10, top - 10, 7 if per_channel else ()) if zero or dtype == "uint8" else None
    w = _quantized(g, values, scale, point, axis=0 if per_channel else None, dtype=dtype)
    return g.bn(g.op("Conv", image(g), w, g.const(g.normal((7,), 0.5), "bias")), signs)


QUANTIZED: dict[str, dict[str, Any]] = {
    "int8, positive scales": {},
    "int8, negative scales, integers negated": {"signs": "mixed"},
    "int8 with -128, negative scales, a zero point made": {"signs": "mixed", "low": -128},
    "int8 with zero points and -128, negative scales": {"signs": "mixed", "low": -128, "zero": True},
    "uint8 with zero points, negative scales": {"signs": "mixed", "low": 0, "dtype": "uint8"},
    "int8 with one step for all, which becomes one per channel": {"signs": "mixed", "per_channel": False},
}
for _name, _options in QUANTIZED.items():
    QUANT.add(f"DequantizeLinear {_name}", partial(_dequantize, **_options))


@QUANT("DequantizeLinear int8 weight and int32 bias", note="the bias becomes floats")
def _integer_bias(g: Build) -> str:
    w = _quantized(g, g.rng.integers(-127, 128, (7, 6, 3, 3)), g.rng.uniform(0.001, 0.003, 7), None, axis=0)
    b = _quantized(g, g.rng.integers(-900, 900, (7,)), np.full(7, 1e-3), None, axis=0, dtype="int32")
    return g.bn(g.op("Conv", image(g), w, b))


@QUANT("DequantizeLinear int8 weight of a Gemm", note="the outputs run along axis 1")
def _quantized_gemm(g: Build) -> str:
    w = _quantized(g, g.rng.integers(-127, 128, (6, 7)), g.rng.uniform(0.003, 0.008, 7), None, axis=1)
    return g.bn(g.op("Gemm", rows(g), w, g.const(g.normal((7,)), "bias")))


@QUANT("bn -> conv with a DequantizeLinear int8 weight, steps along the inputs")
def _quantized_forward(g: Build) -> str:
    w = _quantized(g, g.rng.integers(-127, 128, (7, 6, 3, 3)), g.rng.uniform(0.001, 0.003, 6), None, axis=1)
    return g.op("Conv", g.bn(image(g)), w, g.const(g.normal((7,)), "bias"))


@QUANT("float weight behind QuantizeLinear and DequantizeLinear", note="as quantization tools write it")
def _fake_quantized(g: Build) -> str:
    step, zero = g.const(np.full(7, 0.01), "step"), g.const(np.zeros(7), "zero_point", dtype="int8")
    integers = g.op("QuantizeLinear", g.weight((7, 6, 3, 3), 54), step, zero, axis=0)
    w = g.op("DequantizeLinear", integers, step, zero, axis=0)
    return g.bn(g.op("Conv", image(g), w, g.const(g.normal((7,)), "bias")))


BLOCKED = Patterns()  # a step for each block of the inputs and each output


def _blocked(
    g: Build,
    signs: Any = "mixed",
    low: int = -7,
    zero: bool = False,
    dtype: str = "int8",
    turned: bool = False,
) -> str:
    lowest, top = (0, 255) if dtype == "uint8" else (low, 7)
    values = g.rng.integers(lowest, top + 1, (8, 7))
    values[0] = lowest
    steps = g.rng.uniform(0.02, 0.06, (2, 7)) / (20 if dtype == "uint8" else 1)
    points = g.rng.integers(lowest + 2, top - 2, (2, 7)) if zero else None
    if turned:  # stored as (outputs, inputs), as a Gemm takes it
        values, steps, points = values.T, steps.T, None if points is None else points.T
    parts = [g.const(values, "integers", dtype=dtype), g.const(steps, "steps")]
    parts += [g.const(points, "points", dtype=dtype)] if points is not None else []
    w = g.op("DequantizeLinear", *parts, axis=int(turned), block_size=4)
    y = g.op("Gemm", rows(g, 8), w, g.const(g.normal((7,)), "bias"), transB=int(turned))
    return g.bn(y, signs)


BLOCKS: dict[str, dict[str, Any]] = {
    "positive scales": {"signs": "positive"},
    "negative scales, integers negated": {},
    "negative scales and the lowest integer, zero points made": {"low": -128},
    "negative scales, zero points": {"zero": True, "low": -128},
    "uint8, negative scales, zero points": {"zero": True, "dtype": "uint8"},
    "uint8 without zero points, negative scales": {"dtype": "uint8"},
    "a weight that is turned": {"zero": True, "turned": True},
}
for _name, _options in BLOCKS.items():
    BLOCKED.add(f"DequantizeLinear in blocks, {_name}", partial(_blocked, **_options), builder={"opset": 21})
