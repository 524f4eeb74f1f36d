"""Values that are known before the model runs: stored, computed, or integers behind a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx

from bnfold.errors import ModelError
from bnfold.fold.graph import Array, Constant
from bnfold.onnx_graph.ops.conversion import PLAIN
from bnfold.onnx_graph.ops.operator import Evaluate
from bnfold.onnx_graph.ops.table import OPERATORS, UNKNOWN
from bnfold.onnx_graph.site import (
    DTYPES,
    FLOATS,
    HIGHEST_RANK,
    Model,
    Site,
    Value,
    numpy_dtype,
)

__all__ = ["constant_of", "dequantize", "resolve", "stored_in"]

KEPT = 1 << 20  # bytes of a computed value that is kept; larger ones are computed anew for each look
KEPT_TOGETHER = 1 << 28  # bytes of all that a model keeps
STEPS = 100  # operators that are evaluated for one look at a computed constant, again and again if need be
ALL = 1 << 31  # bytes that one model may have computed just to see whether they are constants
_FAILURES = (
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(ArithmeticError, MemoryError, StopIteration),
)


def constant_of(value: Value) -> Constant | None:
    """What the value is, if it is known."""
    if not value.resolved:
        resolve(value)
    return value.constant


def stored_in(value: Value) -> onnx.TensorProto | None:
    """The tensor in the file that is the value itself: an initializer, or that of a Constant node."""
    if value.init is not None:
        return value.init
    if value.site is not None and value.site.op == "Constant":
        for attribute in value.site.node.attribute:
            if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
                tensor: onnx.TensorProto = attribute.t
                return tensor
    return None


def resolve(value: Value) -> None:
    """Find out whether the value is constant, once."""
    value.resolved = True
    if value.overridable:
        return
    tensor: onnx.TensorProto | None = value.init
    site = value.site
    if tensor is None:
        if site is None:
            return
        record = OPERATORS.get(site.op, UNKNOWN)
        if (
            (value.slot != 0 and not record.several)
            or (site.op != "DequantizeLinear" and record.evaluate is None)
            or site.refers
        ):
            return
        tensor = stored_in(value) if site.op == "Constant" else None
        if tensor is not None and len(tensor.dims) > HIGHEST_RANK:
            return
        if tensor is not None:
            value.shape, value.dtype = tuple(tensor.dims[:]), DTYPES.get(tensor.data_type, "")
    if tensor is None:
        assert site is not None
        value.constant = (
            _dequantized(value, site) if site.op == "DequantizeLinear" else _computed(value, site)
        )
    elif value.dtype not in ("", "string"):
        model, shape = value.scope.model, cast("tuple[int, ...]", value.shape)
        locked = _locked(value) if model.locks else ""
        value.constant = Constant(value.name, _Stored(model, tensor), shape, value.dtype, locked, None, value)
    if value.constant is not None:
        value.shape, value.dtype = value.constant.shape, value.constant.dtype


def _locked(value: Value, parents: Sequence[Constant] = ()) -> str:
    model = value.scope.model
    if value.name in model.bound and value.scope.parent is None:
        return "is used by training_info"
    if model.shared == "skip" and (value.count > 1 or value.is_output):
        return "has several users"
    return next((parent.locked for parent in parents if parent.locked), "")


class _Stored:
    """Loads a tensor of the file; small ones are kept."""

    __slots__ = ("array", "model", "tensor")

    def __init__(self, model: Model, tensor: onnx.TensorProto) -> None:
        self.model, self.tensor = model, tensor
        self.array: Array | None = None

    def __call__(self) -> Array:
        array = self.array
        if array is None:
            array = self.model.loaded.array(self.tensor)
            if array.nbytes <= KEPT:
                self.array = array
        return array


class _Computed:
    """Evaluates the node that makes a constant. slot: which output it is, of several."""

    __slots__ = ("array", "inputs", "rule", "site", "slot", "steps")

    def __init__(
        self, site: Site, rule: Evaluate, inputs: list[Constant | None], slot: int | None = None
    ) -> None:
        self.site, self.rule, self.inputs, self.slot = site, rule, inputs, slot
        self.steps = 1 + sum(getattr(entry.load, "steps", 0) for entry in inputs if entry is not None)
        self.array: Array | None = None

    def __call__(self) -> Array:
        if self.array is not None:
            return self.array
        try:
            array = self.evaluate()
        except _FAILURES as error:
            raise ModelError(
                f"node {self.site.name!r} ({self.site.op}) cannot be computed: {error}"
            ) from None
        self.keep(array)
        return array

    def evaluate(self) -> Array:
        arrays = [None if entry is None else entry.load() for entry in self.inputs]
        with np.errstate(all="ignore"):
            made = self.rule(self.site, arrays)
            return np.asarray(made if self.slot is None else made[self.slot])

    def keep(self, array: Array) -> None:
        if array.nbytes <= KEPT and self.site.scope.model.computed <= KEPT_TOGETHER:
            self.array, self.inputs, self.steps = array, [], 0


def _computed(value: Value, site: Site) -> Constant | None:
    record = OPERATORS[site.op]
    assert record.evaluate is not None
    inputs: list[Constant | None] = []
    for slot, source in enumerate(site.values):
        if source is None or slot in record.unseen:
            inputs.append(None)
            continue
        constant = constant_of(source)
        if constant is None:
            return None
        inputs.append(constant)
    parents = [entry for entry in inputs if entry is not None]
    load = _Computed(site, record.evaluate, inputs, value.slot if record.several else None)
    if load.steps > STEPS:
        return None
    locked = _locked(value, parents)
    quantized = _quantized(site, parents)
    if site.op == "Identity" and parents:
        return replace(parents[0], locked=locked, quantized=quantized)
    if record.result_type is not None and parents:
        dtype = record.result_type(site)
        if site.op != "QuantizeLinear" and dtype not in FLOATS and parents[0].dtype in FLOATS:
            quantized = None  # cast to integers
        if dtype in PLAIN and not site.attr("block_size", 0):
            return Constant(value.name, load, parents[0].shape, dtype, locked, quantized, value)
    array = _look(load, site.scope.model)
    if array is None:
        return None
    return Constant(value.name, load, array.shape, array.dtype.name, locked, quantized, value)


def _look(load: _Computed, model: Model) -> Array | None:
    """The value, unless it cannot be computed or the model asks for too many."""
    if model.computed > ALL:
        return None
    try:
        array = load.evaluate()
    except _FAILURES:
        return None
    model.computed += array.nbytes * (1 + load.steps // 8)
    load.keep(array)
    return array


def _quantized(site: Site, parents: list[Constant]) -> tuple[int, ...] | None:
    """Where the scale of a value computed from quantized ones may vary."""
    if all(parent.quantized is None for parent in parents):
        return None
    source = site.values[0]
    alone = source is not None and source.count == 1 and not source.is_output
    if site.op != "Transpose" or not alone or source is None or source.site is None:
        return ()
    axes, rank = parents[0].quantized or (), len(parents[0].shape)
    if source.site.op != "DequantizeLinear":
        return ()
    perm = site.attr("perm") or list(range(rank))[::-1]
    return tuple(perm.index(axis) for axis in axes)


def _dequantized(value: Value, site: Site) -> Constant | None:
    stored, scale = site.constant(0), site.constant(1)
    if stored is None or scale is None:
        return None
    if site.has(2):
        zero = site.constant(2)
        if zero is None or (zero.shape != scale.shape and {zero.shape, scale.shape} != {(), (1,)}):
            return None
    blocked = bool(site.attr("block_size", 0))
    if len(scale.shape) > (len(stored.shape) if blocked else 1):
        return None
    rank, many = len(stored.shape), scale.shape not in ((), (1,))
    axis = site.attr("axis", 1)
    if rank and -rank <= axis < rank:
        axis %= rank
    if many and not blocked and (not 0 <= axis < rank or scale.shape[0] != stored.shape[axis]):
        raise ModelError(
            f"node {site.name!r} (DequantizeLinear): its scale of shape {list(scale.shape)} does not match "
            f"its input of shape {list(stored.shape)} along axis {axis}; the model is damaged"
        )
    axes: tuple[int, ...] = ()
    if site.opset >= 13 and not blocked:
        axes = (axis,) if many else tuple(range(rank))
    if blocked:  # it has a scale for each entry along the other axes
        sizes = zip(stored.shape, scale.shape, strict=True) if len(scale.shape) == rank else ()
        axes = tuple(a for a, (size, own) in enumerate(sizes) if a != axis and size == own)
    if axes and stored.dtype == "int32" and bool((stored.load() == -(1 << 31)).any()):
        axes = ()  # it cannot be negated, and int32 has no zero point that would help
    out = DTYPES.get(site.attr("output_dtype", 0), "") or scale.dtype
    parents = [entry for entry in (stored, scale) if entry is not None]
    locked = _locked(value, parents)

    def load() -> Array:
        zero = site.value(2) if site.has(2) else None
        return dequantize(stored.load(), scale.load(), zero, axis, site.attr("block_size", 0), out)

    return Constant(value.name, load, stored.shape, out, locked, axes, value)


def dequantize(stored: Array, scale: Array, zero: Array | None, axis: int, block: int, dtype: str) -> Array:
    """`(stored - zero) * scale`: one scale, one for each entry along `axis`, or one for each block."""

    def spread(array: Array) -> Any:
        if block:
            return np.repeat(array, block, axis)[tuple(slice(size) for size in stored.shape)]
        return array.reshape([-1 if a == axis else 1 for a in range(stored.ndim)] if array.size > 1 else ())

    exact = np.float64 if stored.dtype.itemsize > 2 else np.float32  # holds every integer of the type
    value = stored.astype(exact)
    if zero is not None:
        value -= spread(zero.astype(exact))
    value = value.astype(np.float32, copy=False) * spread(scale.astype(np.float32))
    result: Array = value.astype(numpy_dtype(dtype))
    return result
