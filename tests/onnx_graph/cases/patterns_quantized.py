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
