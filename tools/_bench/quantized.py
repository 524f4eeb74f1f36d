"""Models quantized by onnxruntime, and how far that moves their outputs, for the tools that measure it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.version_converter import convert_version
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from tools._common import session

LINEAR = ("Conv", "Gemm", "MatMul")
KINDS = {"per_tensor": False, "per_channel": True}  # whether each output channel of a weight has a scale
INT4_OPSET = 21
ROUNDS = 20  # runs of each model, in turn, for the times

Array = np.ndarray[Any, Any]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches of inputs, one at a time."""

    def __init__(self, name: str, batches: Sequence[Array]) -> None:
        self.feeds = iter([{name: batch} for batch in batches])

    def get_next(self) -> Any:
        return next(self.feeds, None)


def prepared(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """As onnxruntime advises before quantizing: its optimizer, and shapes. It is written to that file."""
    onnx.save(model, path)
    quant_pre_process(path, path, skip_symbolic_shape=True)
    return onnx.load(path)


def quantize(
    path: Path,
    goal: Path,
    batches: Sequence[Array],
    per_channel: bool,
    *,
    bits: int = 8,
    method: str = "MinMax",
    percentile: float | None = None,
) -> None:
    """QDQ: weights of so many bits, uint8 tensors. batches: of the first input, for the ranges.

    percentile: of the values, that the ranges hold, with the method of that name.
    """
    source = path
    if bits < 8:
        source = goal.with_suffix(".21.onnx")
        onnx.save(convert_version(onnx.load(path), INT4_OPSET), source)
    quantize_static(
        source,
        goal,
        Reader(onnx.load(source, load_external_data=False).graph.input[0].name, batches),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8 if bits == 8 else QuantType.QInt4,
        calibrate_method=CalibrationMethod[method],
        extra_options={} if percentile is None else {"CalibPercentile": percentile},
    )


def outputs(model: Path | onnx.ModelProto, batches: Sequence[Array]) -> Array:
    """The first output, float64, for all batches."""
    found = session(model if isinstance(model, Path) else model.SerializeToString())
    name = found.get_inputs()[0].name
    return np.concatenate([np.asarray(found.run(None, {name: x})[0], np.float64) for x in batches])


def decibels(exact: Array, found: Array) -> float:
    """Signal over noise, over all outputs."""
    return float(10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()))


def rounded(
    model: onnx.ModelProto, bits: int, per_channel: bool = True, rng: np.random.Generator | None = None
) -> onnx.ModelProto:
    """The weights of convolutions and of the last layer rounded alone; rng draws scales up to 10 % larger."""
    new: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    stored = {tensor.name: tensor for tensor in new.graph.initializer}
    for name in sorted({node.input[1] for node in new.graph.node if node.op_type in LINEAR} & stored.keys()):
        weight = numpy_helper.to_array(stored[name]).astype(np.float64)
        axes = tuple(range(1, weight.ndim)) if per_channel else None
        step = np.abs(weight).max(axes, keepdims=True) / (2 ** (bits - 1) - 1)
        step = step if rng is None else step * rng.uniform(1, 1.1, step.shape)
        weight = np.round(weight / np.where(step == 0, 1, step)) * step
        stored[name].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), name))
    return new


def milliseconds(paths: dict[str, Path], x: Array, rounds: int = ROUNDS) -> dict[str, float]:
    """Medians of the processor's time on one thread, which other work on the machine disturbs less than the
    clock's. The models run in turn, in an order that is drawn anew for each round.
    """
    sessions = {name: session(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(sessions)):
            found = sessions[name]
            feed = {found.get_inputs()[0].name: x}
            begin = time.thread_time()
            found.run(None, feed)
            times[name].append(time.thread_time() - begin)
    return {name: float(np.median(taken) * 1e3) for name, taken in times.items()}
