"""How large the values of a model's tensors become: run once on given inputs, with every tensor as output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto

from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run.evaluators import evaluate
from bnfold.onnx_graph.site import Value

__all__ = ["Range", "carried", "measure"]

Array = np.ndarray[Any, Any]

AT_ONCE = 1 << 28  # bytes of tensors that are held at a time
UNKNOWN = 1 << 24  # bytes that a tensor counts whose shape is not known


@dataclass
class Range:
    """What was seen of one tensor. Infinities and NaN are left out: half precision has them too.

    largest: max|x|. channels: max|x| for each entry along an axis, by axis.
    """

    largest: float
    shape: tuple[int, ...]
    channels: dict[int, Array] = field(default_factory=dict)


def measure(loaded: Loaded, values: Sequence[Value], feed: Mapping[str, Array]) -> dict[str, Range]:
    """The ranges of float32 tensors of the graph, by name, over one run.

    Raises:
        CannotRun: no evaluator runs the model.
    """
    known = {output.name for output in loaded.proto.graph.output}
    found: dict[str, Range] = {}
    for batch in _batches(values, feed):
        model = loaded.copy()
        model.proto.graph.ClearField("value_info")  # a wrong shape there must not stop the run
        for name in batch:
            if name not in known:
                model.proto.graph.output.add(name=name).type.tensor_type.elem_type = TensorProto.FLOAT
        outputs, _ = evaluate(model, feed)
        for name in batch:
            found[name] = _range(np.asarray(outputs[name]))
    return found


def carried(seen: Range, factor: Array) -> Range:
    """The range of a tensor that is carried at `factor` times its size; `factor` is of its rank."""
    vary = [axis for axis, size in enumerate(factor.shape) if size > 1]
    result = Range(seen.largest * float(factor.max()), seen.shape)
    for axis, sizes in seen.channels.items():
        along = factor.reshape(-1) if vary == [axis] else factor.max()
        result.channels[axis] = sizes * along
        if vary in ([], [axis]):
            result.largest = float(result.channels[axis].max(initial=0))
    return result


def _batches(values: Sequence[Value], feed: Mapping[str, Array]) -> Iterator[list[str]]:
    """Names of tensors that fit into memory together."""
    batch: list[str] = []
    size, most = 0, max((array.shape[0] for array in feed.values() if array.ndim), default=1)
    for value in values:
        static = [dim for dim in value.shape or () if isinstance(dim, int)]
        whole = value.shape is not None and len(value.shape) - len(static) <= 1
        wanted = 4 * math.prod(static) * most if whole else UNKNOWN
        if batch and size + wanted > AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(value.name)
        size += wanted
    if batch:
        yield batch


def _range(array: Array) -> Range:
    size = np.abs(array)
    if not np.isfinite(size).all():
        size = np.where(np.isfinite(size), size, 0)
    result = Range(float(size.max(initial=0)), array.shape)
    for axis in {1, array.ndim - 1} if array.ndim > 1 else ():
        others = tuple(a for a in range(array.ndim) if a != axis)
        result.channels[axis] = size.max(others, initial=0).astype(np.float64)
    return result
