"""The sum that several layers end in, and the layer that takes back the error of its mean.

What skips layers has no bias: the identity of a residual block, or its batch norm. Its mean is off all the
same, since a Relu makes noise around zero into more than zero. With each layer's own mean right, the sum's
would be wrong by that, block after block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnfold.onnx_graph.model.new_nodes import only_reader
from bnfold.onnx_graph.site import Scope, Value
from bnfold.passes.correct.layers import Layer, constant_operand

__all__ = ["find_sums"]

ROUNDS = ("QuantizeLinear", "DequantizeLinear")


def find_sums(layers: Sequence[Layer], floats: Scope) -> None:
    """Note the sum of each layer that is the last of those in it; layers: matched, in the model's order."""
    last: dict[Value, tuple[Layer, str]] = {}
    for layer in sorted(layers, key=lambda layer: layer.depth):  # stable
        here, there = list(_sums(layer.last)), list(_sums(floats.values.get(layer.target)))
        if here and len(here) == len(there):
            last[here[-1]] = layer, there[-1].name
    for value, (layer, target) in last.items():
        layer.sum = value.name, target


def _sums(value: Value | None) -> Iterator[Value]:
    """The sums, from the inside out, that a value goes into and nothing else."""
    while value is not None:
        reader = only_reader(value)
        if reader is None or not (reader.op == "Add" or reader.op in ROUNDS):
            return
        if reader.op == "Add":
            one, other = (reader.values[slot] for slot in (0, 1))
            alike = one is not None and other is not None and one.shape == other.shape
            if constant_operand(reader) is not None or not alike:
                return
        value = reader.outputs[0]
        if value is not None and reader.op == "Add":
            yield value
