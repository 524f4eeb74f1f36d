"""Smaller sizes for regions that work place by place, or in windows that are the same in both models.

Such a region is one function at every place. Along an axis on which nothing of it varies, a few places say as
much as thousands, if what differs between the first, the last and the middle ones is still there:

1. Each operator is one of three tables: those that work element by element, those that put together or take
   apart along stated axes, which stay as they are, and those with windows.
2. Constants, and the p and q of claims, have one entry along the axis.
3. Where there are windows, both sides have the same ones (operator and attributes), of at most 8 places.
4. A size d above 15 becomes 8 + d mod 8, so that strides up to 8 leave what they left. Where every operator
   works place by place, no place is another one, and a size above 4 becomes 4.

What is proved so is proved; what is not is looked at again at true sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bnfold.proof.claims import Image
from bnfold.proof.operator import Array, is_float
from bnfold.proof.scope import Node, Scope

__all__ = ["smaller"]

POINTWISE = frozenset(
    {
        *("Abs", "Add", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Div", "Elu", "Erf", "Exp"),
        *("Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish"),
        *("Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus"),
        *("Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu"),
    }
)
# Those that work so along all axes but some, and where these are stated (with the default).
ALONG = {"Concat": 1, "Split": 0}
PARTS = frozenset({*ALONG, "Slice"})
# Those whose spatial axes are from 2 on, and whose channels are axis 1.
WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "MaxPool"})
CHANNELS = WINDOWS | {"BatchNormalization", "GlobalAveragePool", "GlobalMaxPool"}
LARGEST_WINDOW, FROM = 8, 15
PLACES = 4  # where there are no windows


def smaller(
    sides: Iterable[tuple[Scope, Sequence[Node]]],
    leaves: Sequence[str],
    images: Sequence[Image],
    values: Callable[[str], Array],
) -> Callable[[str], Array] | None:
    """Values of smaller sizes for the leaves; None where true sizes are needed, or are small.

    sides: scope and nodes of both regions. images: of the leaves and the output. values: as in
    `evaluate.compare`.
    """
    both = list(sides)
    nodes = [node for _, region in both for node in region]
    known = all(node.op in POINTWISE or node.op in CHANNELS or node.op in PARTS for node in nodes)
    if not known or not all(is_float(values(leaf)) for leaf in leaves):
        return None
    rank = max((values(leaf).ndim for leaf in leaves), default=0)
    fixed = {rank}  # axes, from the end; the first one is the batch
    if any(node.op in CHANNELS for node in nodes):
        if not all(values(leaf).ndim == rank for leaf in leaves) or not _same_windows(both):
            return None
        fixed.add(rank - 1)
    for scope, region in both:
        for node in region:
            axes = _axes(scope, node)
            if axes is None or (axes and not all(values(leaf).ndim == rank for leaf in leaves)):
                return None
            fixed |= {rank - axis if axis >= 0 else -axis for axis in axes}
    for array in _arrays(both, images):
        fixed |= {array.ndim - i for i, size in enumerate(array.shape) if size > 1}

    for image in images:
        if image.cut is not None:
            fixed.add(rank - image.cut.axis if image.cut.axis >= 0 else -image.cut.axis)

    by_place = all(node.op in POINTWISE | PARTS | {"BatchNormalization"} for node in nodes)

    def smaller_size(size: int) -> int:
        if by_place:
            return min(size, PLACES)
        return size if size <= FROM else LARGEST_WINDOW + size % 8

    def shrunk(leaf: str) -> Array:
        like = values(leaf)
        shape = [size if like.ndim - i in fixed else smaller_size(size) for i, size in enumerate(like.shape)]
        return np.broadcast_to(np.zeros((), like.dtype), shape)

    return None if all(shrunk(leaf).shape == values(leaf).shape for leaf in leaves) else shrunk


def _axes(scope: Scope, node: Node) -> list[int] | None:
    """Those along which an operator puts together, or takes apart; None if they are not known."""
    if node.op not in PARTS:
        return []
    values = [scope.constant(name) for name in node.inputs[1:] if name]
    if node.op != "Concat" and any(value is None for value in values):
        return None
    if node.op in ALONG:
        return [int(node.attribute("axis", ALONG[node.op]))]
    axes = values[2] if len(values) > 2 else None
    return None if axes is None else [int(axis) for axis in axes]


def _arrays(both: Sequence[tuple[Scope, Sequence[Node]]], images: Sequence[Image]) -> Iterable[Array]:
    """All that may vary along an axis: constants beside weights and batch norms' vectors, p and q."""
    for scope, nodes in both:
        for node in nodes:
            if node.op not in CHANNELS:
                for name in node.inputs:
                    value = scope.constant(name) if name else None
                    if value is not None:
                        yield value
    for image in images:
        yield np.asarray(image.p)
        yield np.asarray(image.q)


def _same_windows(both: Sequence[tuple[Scope, Sequence[Node]]]) -> bool:
    """Whether both sides have the same windows, and none is large."""
    found: list[Counter[Any]] = []
    for scope, nodes in both:
        windows: Counter[Any] = Counter()
        for node in nodes:
            if node.op in WINDOWS:
                kernel = node.attribute("kernel_shape") or _kernel(scope, node)
                if not kernel:
                    return False
                n = len(kernel)
                dilations = node.attribute("dilations") or [1] * n
                reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
                pads = node.attribute("pads") or [0] * 2 * n
                strides = node.attribute("strides") or [1] * n
                if max(reach) > LARGEST_WINDOW or max(pads) >= LARGEST_WINDOW or max(strides) > 8:
                    return False
                rest = [node.attribute(name) for name in ("auto_pad", "ceil_mode", "count_include_pad")]
                rest += [node.attribute(name) for name in ("output_padding", "output_shape")]
                stated = [list(each) for each in (kernel, dilations, pads, strides)]
                windows[node.op, repr(stated + rest)] += 1
        found.append(windows)
    return found[0] == found[1]


def _kernel(scope: Scope, node: Node) -> list[int]:
    weight = scope.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return [] if weight is None else list(weight.shape[2:])
