"""The sum that several layers end in, and the layer that takes back the error of its mean.

What skips layers has no bias: the identity of a residual block, or its batch norm. Its mean is off all the
same, since a Relu makes noise around zero into more than zero. With each layer's own mean right, the sum's
would be wrong by that, block after block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnfold.fold.graph import Dim
from bnfold.onnx_graph.model.new_nodes import only_reader
from bnfold.onnx_graph.site import Scope, Value
from bnfold.passes.correct.layers import Layer, Sum, constant_operand, depths_of

__all__ = ["find_sums"]

ROUNDS = ("QuantizeLinear", "DequantizeLinear")


def find_sums(layers: Sequence[Layer], floats: Scope) -> None:
    """Note the sum of each layer that is the last of those in it; layers: matched, in the model's order."""
    depths = depths_of(layers[0].site.scope) if layers else {}
    last: dict[Value, tuple[Layer, str]] = {}
    for layer in sorted(layers, key=lambda layer: layer.depth):  # stable
        here = list(_sums(layer.last, layer.channels))
        there = list(_sums(floats.values.get(layer.target), layer.channels))
        if here and len(here) == len(there):
            last[here[-1]] = layer, there[-1].name
    for value, (layer, target) in last.items():
        layer.sum = Sum(value.name, target, depths[value])


def _sums(value: Value | None, axis: int) -> Iterator[Value]:
    """The sums, from the inside out, that a value goes into and nothing else. axis: of its channels."""
    while value is not None:
        reader = only_reader(value)
        if reader is None or not (reader.op == "Add" or reader.op in ROUNDS):
            return
        if reader.op == "Add":
            shapes = reader.shape(0), reader.shape(1)
            if constant_operand(reader) is not None or not _alike(*shapes, axis):
                return
        value = reader.outputs[0]
        if value is not None and reader.op == "Add":
            yield value


def _alike(a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None, axis: int) -> bool:
    """Whether both certainly have the same channels; along other axes one may be spread."""
    if a is None or b is None or len(a) != len(b) or len(a) <= axis:
        return False
    return isinstance(a[axis], int) and a[axis] == b[axis]
