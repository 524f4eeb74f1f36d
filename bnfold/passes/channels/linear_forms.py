"""Channels as linear forms of earlier channels: what several layers and sums do together.

Bounds that go through one layer after the other forget that the same channel enters by several ways. A 1x1
conv of a sum of 1x1 convs, the trunk of a net with linear bottlenecks, is one linear map of the bounded
channels before it, at the same pixel; its bounds are much narrower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bnfold.fold.affine import at_axis
from bnfold.fold.graph import Array, Node, Tensor
from bnfold.fold.moves import Identity
from bnfold.fold.roles import Affine, Linear, Move, Sum
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.ops.windows import windows
from bnfold.passes.channels.matrices import bias_of, is_matrix, sums

__all__ = ["Forms"]

LARGEST = 1 << 22  # entries of one form


class LinearForm(NamedTuple):
    """`sum(matrix @ source) + shift` along one axis; on the other axes, each entry of the same entry."""

    axis: int
    parts: Mapping[Tensor, Array]
    shift: Array

    @property
    def size(self) -> int:
        return sum(matrix.size for matrix in self.parts.values())


class Forms:
    """The forms of the tensors seen so far."""

    def __init__(self, facts: Mapping[Tensor, Bounds]) -> None:
        self.facts = facts
        self.known: dict[Tensor, LinearForm] = {}

    def tighten(self, node: Node, bounds: Bounds) -> Bounds:
        """The bounds of a node's first output, narrower where it has a form."""
        found = self._of(node)
        y = node.outputs[0]
        if found is None or found.size > LARGEST or y.shape is None or None in y.shape:
            return bounds
        self.known[y] = found
        if isinstance(node.role, Move):
            return bounds
        low, high = (at_axis(end, found.axis, y.rank) for end in self._bounds(found))
        return Bounds(np.maximum(bounds.lo, low), np.minimum(bounds.hi, high))

    def _bounds(self, form: LinearForm) -> tuple[Array, Array]:
        lo, hi = form.shift, form.shift
        for source, matrix in form.parts.items():
            below, above = self.facts[source].along(form.axis, matrix.shape[1])
            up, down = np.maximum(matrix, 0), np.minimum(matrix, 0)
            lo = lo + _times(up, below, -np.inf) + _times(down, above, -np.inf)
            hi = hi + _times(up, above, np.inf) + _times(down, below, np.inf)
        return lo, hi

    def _of(self, node: Node) -> LinearForm | None:
        role = node.role
        if isinstance(role, Linear):
            return self._linear(node, role)
        if isinstance(role, Sum):
            return self._sum(node, role)
        x = node.inputs[0]
        if isinstance(role, Move) and isinstance(role.move, Identity) and x is not None:
            return self.known.get(x)
        return self._affine(node, role) if isinstance(role, Affine) else None

    def _linear(self, node: Node, role: Linear) -> LinearForm | None:
        x = node.inputs[role.x]
        bias = bias_of(role, node.outputs[0].rank)
        if x is None or bias is None or role.groups > 1 or not _is_pointwise(node, role):
            return None
        inner = self._form(x, role.in_axis, role.split[role.w_in])
        if inner is None or bias.lo.size not in (1, role.split[role.w_out]):
            return None
        weight = sums(role)[0]
        if len(weight) * sum(matrix.shape[1] for matrix in inner.parts.values()) > LARGEST:
            return None
        parts = {source: weight @ matrix for source, matrix in inner.parts.items()}
        return LinearForm(role.out_axis, parts, weight @ inner.shift + bias.lo.reshape(-1))

    def _form(self, x: Tensor, axis: int, size: int) -> LinearForm | None:
        """The form of a tensor; without one, the tensor itself."""
        found = self.known.get(x)
        if found is not None:
            return found if found.axis == axis else None
        bounds = self.facts.get(x)
        if bounds is None or size * size > LARGEST or not _bounded(bounds):
            return None
        return LinearForm(axis, {x: np.eye(size)}, np.zeros(size))

    def _sum(self, node: Node, role: Sum) -> LinearForm | None:
        y = node.outputs[0]
        axes = {self.known[x].axis for x in node.inputs if x is not None and x in self.known}
        if len(axes) != 1 or any(x is None or x.shape != y.shape for x in node.inputs):
            return None
        axis = axes.pop()
        size = (y.shape or ())[axis]
        assert isinstance(size, int)
        parts: dict[Tensor, Array] = {}
        shift = np.zeros(size)
        for x, coefficient in zip(node.inputs, role.coefficients, strict=True):
            form = None if x is None or x.constant is not None else self._form(x, axis, size)
            if form is None:
                return None
            shift = shift + coefficient * form.shift
            for source, matrix in form.parts.items():
                parts[source] = parts.get(source, 0) + coefficient * matrix
        return LinearForm(axis, parts, shift)

    def _affine(self, node: Node, role: Affine) -> LinearForm | None:
        x = node.inputs[role.x]
        form = None if x is None else self.known.get(x)
        if form is None:
            return None
        size = len(form.shift)
        if any(a.size not in (1, size) or a.shape[form.axis] != a.size for a in (role.scale, role.shift)):
            return None
        scale = np.broadcast_to(role.scale.reshape(-1), (size,))
        parts = {source: scale[:, None] * matrix for source, matrix in form.parts.items()}
        return LinearForm(form.axis, parts, scale * form.shift + role.shift.reshape(-1))


def _bounded(bounds: Bounds) -> bool:
    """Some channel is, on both sides."""
    return bool((np.isfinite(bounds.lo) & np.isfinite(bounds.hi)).any())


def _is_pointwise(node: Node, role: Linear) -> bool:
    """Each pixel of the output sees the same pixel of the input."""
    if not is_matrix(role) or role.padded or role.in_axis != role.out_axis:
        return False
    if role.w_group is None:
        return all(a == b for a, b in role.free)
    x = node.inputs[role.x]
    if node.op != "Conv" or x is None or x.shape is None or any(n != 1 for n in role.split[3:]):
        return False
    grid = windows(node.source, role.split[3:], x.shape[2:])
    return all(window.stride == 1 for window in grid.windows)


def _times(matrix: Array, ends: Array, side: float) -> Array:
    """matrix @ ends, which is `side` where an end that is not finite counts."""
    finite = np.isfinite(ends)
    return np.where((matrix[:, ~finite] != 0).any(1), side, matrix @ np.where(finite, ends, 0.0))
