"""onnx's ReferenceEvaluator, mended and made fast enough for real networks.

It runs what onnxruntime cannot (convolutions in float64 and bfloat16, opset 1 to 6). Its windowed operators
are Python loops (minutes for one image), its batch norm is wrong below opset 14 (it takes batch statistics
from opset 9 on, and fails in 7 and 8), its GlobalMaxPool takes the maximum over two axes whatever the rank
(seen in onnx 1.23), and its GatherElements brings an index that is out of range into it by subtracting the
size again and again (for ever, of a large one). Our own replace these here; each follows the operator's
specification, accumulates in at least float32, and loops over the taps of the kernel only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]

_EPSILON = float(np.float32(1e-5))  # where a batch norm does not state it: attributes are float32

# Seconds for an output element: of operators that stay Python loops, then of others; and for a multiply-add.
_SLOW = {
    "Resize": 1e-6,
    "Upsample": 1e-6,
    "GridSample": 5e-5,
    "RoiAlign": 5e-5,
    "DeformConv": 1e-4,
    "LpPool": 2e-5,
    "NonMaxSuppression": 1e-4,
    "LSTM": 1e-4,
    "GRU": 1e-4,
    "Erf": 1e-7,
}
_MULTIPLY_ADD = 1e-9
_ELEMENT = 5e-9


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """A ReferenceEvaluator of `model` (weights inside). It raises what it likes, of unknown operators."""
    opset = _opset(model)
    ops: list[type[OpRun]] = [Conv, ConvTranspose, MaxPool, AveragePool, GlobalMaxPool, GatherElements]
    ops.append(BatchNormalization)
    if opset < 7:
        ops += [Add, Sub, Mul, Div]
        model = _without_consumed_inputs(model)
    return ReferenceEvaluator(model, new_ops=ops)


def seconds(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> float:
    """A rough estimate of the evaluation's time, from shape inference. `shapes`: of the inputs.

    `model` may lack its large tensors' data. What the shapes do not give counts as nothing.
    """
    model = _with_shapes(model, shapes)
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # it is an estimate; the evaluation itself will say what is wrong
        return 0.0
    graph = model.graph
    sizes: dict[str, list[int]] = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            sizes[value.name] = [d.dim_value for d in dims]
    total = 0.0
    for node in graph.node:
        out = math.prod(sizes.get(node.output[0], (0,))) if node.output else 0
        total += out * _SLOW.get(node.op_type, _ELEMENT)
        if len(node.input) < 2:
            continue
        if node.op_type in ("Conv", "ConvTranspose") and len(weight := sizes.get(node.input[1], [])) > 2:
            source = sizes.get(node.input[0], [0]) if node.op_type == "ConvTranspose" else None
            size = out if source is None else math.prod(source)
            total += size * math.prod(weight[1:]) * _MULTIPLY_ADD
        elif node.op_type in ("MatMul", "Gemm"):
            inner = sizes.get(node.input[0], [0])
            total += out * (inner[-1] if inner else 1) * _MULTIPLY_ADD
    return total


def _with_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name in shapes:
            value.type.tensor_type.shape.Clear()
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    for value in copy.graph.output:  # may carry shapes of another batch size, which inference would object to
        value.type.tensor_type.ClearField("shape")
    return copy


def _opset(model: onnx.ModelProto) -> int:
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return versions[-1] if versions else 1


def _without_consumed_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy as of opset 6: what changed until then is mostly that `consumed_inputs`, a hint, went away."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for opset in copy.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = 6
    for node in copy.graph.node:
        kept = [a for a in node.attribute if a.name != "consumed_inputs"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return copy


class _Axis:
    """One spatial axis of a windowed operator: where the windows lie."""

    def __init__(
        self, size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], mode: str, ceil: bool
    ):
        reach = (kernel - 1) * dilation + 1
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            self.out = -(-size // stride)
            total = max((self.out - 1) * stride + reach - size, 0)
            self.begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
            self.end = total - self.begin
        else:
            self.begin, self.end = (0, 0) if mode == "VALID" else pads
            room = size + self.begin + self.end - reach
            self.out = (-(-room // stride) if ceil and mode != "VALID" else room // stride) + 1
            if ceil and (self.out - 1) * stride >= size + self.begin:
                self.out -= 1  # a window may not start in the padding at the end
        # ceil_mode's last window may reach beyond the padding.
        self.extra = max(0, (self.out - 1) * stride + reach - (size + self.begin + self.end))
        self.stride, self.dilation, self.kernel = stride, dilation, kernel

    def tap(self, k: int) -> slice:
        start = k * self.dilation
        return slice(start, start + (self.out - 1) * self.stride + 1, self.stride)


def _axes(shape: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]) -> list[_Axis]:
    n = len(kernel)
    pads = attrs.get("pads") or [0] * (2 * n)
    strides, dilations = attrs.get("strides") or [1] * n, attrs.get("dilations") or [1] * n
    mode, ceil = attrs.get("auto_pad") or "NOTSET", bool(attrs.get("ceil_mode"))
    return [
        _Axis(shape[2 + i], kernel[i], strides[i], dilations[i], (pads[i], pads[n + i]), mode, ceil)
        for i in range(n)
    ]


def _pad(x: Array, axes: Sequence[_Axis], fill: Any) -> Array:
    widths = [(0, 0), (0, 0)] + [(a.begin, a.end + a.extra) for a in axes]
    return np.pad(x, widths, constant_values=fill) if any(map(any, widths)) else x


def _taps(axes: Sequence[_Axis]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """For each element of the kernel: its index, and the part of the padded input that it meets."""
    for tap in np.ndindex(*(a.kernel for a in axes)):
        yield tap, (slice(None), slice(None), *(a.tap(k) for a, k in zip(axes, tap, strict=True)))


def _accumulated(*arrays: Array) -> list[Array]:
    """float16 and bfloat16 in float32, as the kernels accumulate; others as they are."""
    return [a.astype(np.float32) if a.dtype.itemsize < 4 else a for a in arrays]


def _add_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.astype(y.dtype).reshape(1, -1, *[1] * (y.ndim - 2))


class Conv(OpRun):
    def _run(self, X: Array, W: Array, B: Array | None = None, **attrs: Any) -> tuple[Array]:
        x, w = _accumulated(X, W)
        axes = _axes(x.shape, w.shape[2:], attrs)
        groups = attrs.get("group") or 1
        n, m, out = x.shape[0], w.shape[0], [a.out for a in axes]
        if x.shape[1] != w.shape[1] * groups:
            raise ValueError(f"{x.shape[1]} channels meet weights {w.shape} in {groups} groups")
        padded = _pad(x, axes, 0)
        w = w.reshape(groups, m // groups, *w.shape[1:])
        y = np.zeros((n, groups, m // groups, math.prod(out)), np.result_type(x, w))
        for tap, part in _taps(axes):
            seen = padded[part].reshape(n, groups, -1, math.prod(out))
            weight = w[(slice(None),) * 3 + tap]
            y += weight * seen if seen.shape[2] == 1 else weight @ seen
        return (_add_bias(y.reshape(n, m, *out), B).astype(X.dtype),)


class ConvTranspose(OpRun):
    def _run(self, X: Array, W: Array, B: Array | None = None, **attrs: Any) -> tuple[Array]:
        x, w = _accumulated(X, W)
        kernel, n, rank = w.shape[2:], x.shape[0], x.ndim - 2
        strides, dilations = attrs.get("strides") or [1] * rank, attrs.get("dilations") or [1] * rank
        pads, more = attrs.get("pads") or [0] * (2 * rank), attrs.get("output_padding") or [0] * rank
        mode, wanted = attrs.get("auto_pad") or "NOTSET", attrs.get("output_shape")
        groups = attrs.get("group") or 1
        full = [(x.shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(rank)]
        if wanted is None and mode.startswith("SAME"):
            wanted = [x.shape[2 + i] * strides[i] for i in range(rank)]
        if wanted is not None:
            totals = [full[i] + more[i] - list(wanted)[-rank + i] for i in range(rank)]
            first = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]
            pads = [*first, *(t - f for t, f in zip(totals, first, strict=True))]
        w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        m = w.shape[2]
        y = np.zeros((n, groups, m, *(f + o for f, o in zip(full, more, strict=True))), np.result_type(x, w))
        seen = x.reshape(n, groups, w.shape[1], -1)
        for tap in np.ndindex(*kernel):
            weight = np.swapaxes(w[(slice(None),) * 3 + tap], 1, 2)
            part = tuple(
                slice(k * d, k * d + (size - 1) * s + 1, s)
                for k, d, s, size in zip(tap, dilations, strides, x.shape[2:], strict=True)
            )
            y[(slice(None),) * 3 + part] += (weight @ seen).reshape(n, groups, m, *x.shape[2:])
        y = y.reshape(n, groups * m, *y.shape[3:])
        for i in range(rank):  # a negative pad, from a large output_shape, asks for more zeros
            y = _crop(y, 2 + i, pads[i], pads[rank + i])
        return (_add_bias(y, B).astype(X.dtype),)


def _crop(y: Array, axis: int, begin: int, end: int) -> Array:
    widths = [(0, 0)] * y.ndim
    widths[axis] = (max(-begin, 0), max(-end, 0))
    y = np.pad(y, widths) if any(widths[axis]) else y
    where = [slice(None)] * y.ndim
    where[axis] = slice(max(begin, 0), y.shape[axis] - max(end, 0))
    return y[tuple(where)]


class MaxPool(OpRun):
    def _run(self, x: Array, **attrs: Any) -> tuple[Array]:
        if len([name for name in self.onnx_node.output if name]) > 1:
            raise NotImplementedError("MaxPool with Indices")
        axes = _axes(x.shape, attrs["kernel_shape"], attrs)
        lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
        padded = _pad(x, axes, lowest)
        y = np.full((*x.shape[:2], *(a.out for a in axes)), lowest, x.dtype)
        for _, part in _taps(axes):
            np.maximum(y, padded[part], out=y)
        return (y,)


class AveragePool(OpRun):
    def _run(self, x: Array, **attrs: Any) -> tuple[Array]:
        (values,) = _accumulated(x)
        axes = _axes(x.shape, attrs["kernel_shape"], attrs)
        counted = np.ones((1, 1, *x.shape[2:]), values.dtype)
        if attrs.get("count_include_pad"):  # the padding counts, what ceil_mode adds beyond it does not
            counted = np.pad(counted, [(0, 0), (0, 0)] + [(a.begin, a.end) for a in axes], constant_values=1)
            counted = np.pad(counted, [(0, 0), (0, 0)] + [(0, a.extra) for a in axes])
        else:
            counted = _pad(counted, axes, 0)
        padded = _pad(values, axes, 0)
        total: Any = sum(padded[part] for _, part in _taps(axes))
        return ((total / sum(counted[part] for _, part in _taps(axes))).astype(x.dtype),)


class GlobalMaxPool(OpRun):
    def _run(self, x: Array, **_: Any) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GatherElements(OpRun):
    def _run(self, x: Array, indices: Array, axis: int = 0, **_: Any) -> tuple[Array]:
        along = axis % x.ndim
        cut = tuple(slice(None if a == along else size) for a, size in enumerate(indices.shape))
        return (np.take_along_axis(x[cut], indices, along),)


class BatchNormalization(OpRun):
    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attrs: Any
    ) -> tuple[Array, ...]:
        opset = self.run_params["opsets"].get("", 14)
        if opset >= 14:
            training = bool(attrs.get("training_mode"))
        else:
            training = len(self.onnx_node.output) > 1 or (opset < 7 and not attrs.get("is_test"))
        values, s, b, m, v = _accumulated(x, scale, bias, mean, var)
        if s.ndim != 1 or attrs.get("spatial") == 0:
            raise NotImplementedError("BatchNormalization with spatial = 0")
        updated: tuple[Array, ...] = ()
        if training:
            keep = attrs.get("momentum", 0.9)
            over = tuple(i for i in range(x.ndim) if i != 1)
            m, v = values.mean(over), values.var(over)
            running = zip((mean, var), (m, v), strict=True)
            updated = tuple((old * keep + new * (1 - keep)).astype(old.dtype) for old, new in running)
        column = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
        s, b, m, v = (a.reshape(column) for a in (s, b, m, v))
        y = ((values - m) / np.sqrt(v + attrs.get("epsilon", _EPSILON)) * s + b).astype(x.dtype)
        return (y, *updated)[: max(1, len(self.onnx_node.output))]


class _Broadcast(OpRun):
    """Binary arithmetic of opset 1 to 6: the second operand is laid along the first from `axis` on."""

    function: Any = None

    def _run(
        self, a: Array, b: Array, axis: int | None = None, broadcast: int | None = None, **_: Any
    ) -> tuple[Array]:
        if broadcast and axis is not None and b.ndim < a.ndim:
            axis += a.ndim if axis < 0 else 0
            b = b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))
        return (type(self).function(a, b),)


class Add(_Broadcast):
    function = np.add


class Sub(_Broadcast):
    function = np.subtract


class Mul(_Broadcast):
    function = np.multiply


class Div(_Broadcast):
    function = np.divide
