"""The layers of a quantized model: linear nodes with a stored weight, and how that is quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bnfold.fold.graph import Array
from bnfold.onnx_graph.model.constants import constant_of
from bnfold.onnx_graph.model.new_nodes import only_reader
from bnfold.onnx_graph.site import Model, Scope, Site, Value
from bnfold.report.correct import LeftLayer

__all__ = ["Layer", "Sum", "Weight", "constant_operand", "depths_of", "layers_of", "numbers_of", "weight_of"]

IN_BODY = "is in a body or a function: only layers of the main graph are corrected"
NOT_STORED = "its weight is not stored in the model"
INTEGERS = (
    "computes with integers: only float operators between DequantizeLinear and QuantizeLinear are corrected"
)
IN_INTEGERS = frozenset(
    ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "com.microsoft.QGemm")
)


class Form(NamedTuple):
    """Where an operator's outputs lie. rows: the axis of the weight; channels: the one of the output."""

    rows: Callable[[Site], int]
    channels: int


FORMS = {
    "Conv": Form(lambda site: 0, 1),
    "ConvTranspose": Form(lambda site: 1, 1),  # of a group
    "Gemm": Form(lambda site: 0 if site.attr("transB", 0) else 1, 1),
    "MatMul": Form(lambda site: 1, -1),
}


class Weight(NamedTuple):
    """A layer's weight. dequantize: the node that gives it, or None. turned: a Transpose between, or None.

    bits: that its codes need, 0 if there are none.
    """

    dequantize: Site | None
    turned: Site | None
    bits: int

    @property
    def scale(self) -> Array | None:
        """The scales that the codes have; None if there are none, or they are computed."""
        return None if self.dequantize is None else self.dequantize.value(1)


class Sum(NamedTuple):
    """Where a sum is measured, in both models, and how many layers are in a row before it."""

    tensor: str
    target: str
    depth: int


@dataclass(eq=False)
class Layer:
    """A layer of the quantized model.

    depth: how many layers are in a row before it, at most; layers of one depth do not depend on each other.
    add: the node that adds the bias, for a MatMul. tensor: where its output is measured; target: where that
    of the float model is. sum: whose mean it corrects, if there is one (sums.py).
    """

    site: Site
    weight: Weight
    depth: int
    add: Site | None = None
    tensor: str = ""
    target: str = ""
    sum: Sum | None = None

    @property
    def channels(self) -> int:
        """The axis of the output along which a bias lies."""
        return FORMS[self.site.op].channels

    @property
    def count(self) -> int:
        """How many channels the output has; 0 if that is not known."""
        shape, site = self.site.shape(1) or (), self.site
        matrix = site.op in ("Gemm", "MatMul")
        size = shape[self.rows] if (len(shape) == 2 if matrix else len(shape) > 2) else None
        groups = site.attr("group", 1) if site.op == "ConvTranspose" else 1
        return size * groups if isinstance(size, int) else 0

    @property
    def rows(self) -> int:
        """The axis of the weight, as the layer reads it, along which its outputs lie."""
        return FORMS[self.site.op].rows(self.site)

    @property
    def rows_of_codes(self) -> int:
        """The same axis of the stored codes."""
        turned = self.weight.turned
        return self.rows if turned is None else int(_order(turned)[self.rows])

    @property
    def last(self) -> Value:
        """The output, with the bias."""
        value = (self.add or self.site).outputs[0]
        assert value is not None
        return value


def layers_of(model: Model) -> tuple[list[Layer], list[LeftLayer]]:
    """The layers of the main graph, in its order; and those that cannot be corrected."""
    found, left = list(_layers(model.scopes[0])), []
    layers = []
    for layer in found:
        site = layer.site
        if layer.weight.dequantize is None and constant_of(_weight(site)) is None:
            if site.op != "MatMul":  # one of two activations is no layer
                left.append(LeftLayer(site.name, site.op, NOT_STORED))
        else:
            layers.append(layer)
    left += [LeftLayer(s.name, s.op, INTEGERS) for s in model.scopes[0].sites if s.op in IN_INTEGERS]
    for scope in model.scopes[1:]:
        left += [LeftLayer(s.name, s.op, IN_BODY) for s in scope.sites if s.op in FORMS and s.op != "MatMul"]
    return layers, left


def _layers(scope: Scope) -> Iterator[Layer]:
    depths = depths_of(scope)
    for site in scope.sites:
        if _is_layer(site):
            add = _bias_add(site) if site.op == "MatMul" else None
            [depth] = {depths[value] - 1 for value in site.outputs if value is not None}
            layer = Layer(site, weight_of(site), depth, add)
            layer.tensor = layer.last.name
            yield layer


def depths_of(scope: Scope) -> dict[Value, int]:
    """How many layers are in a row before each value, at most, the one that makes it included."""
    depths: dict[Value, int] = {}
    deepest = 0
    for site in scope.sites:
        depth = max((depths.get(value, 0) for value in site.values if value is not None), default=0)
        if site.bodies:
            depth = deepest  # they may read anything that was there before
        depth += _is_layer(site)
        deepest = max(deepest, depth)
        depths.update((value, depth) for value in site.outputs if value is not None)
    return depths


def _is_layer(site: Site) -> bool:
    return site.op in FORMS and site.has(1) and bool(site.outputs) and site.outputs[0] is not None


def _weight(site: Site) -> Value:
    value = site.values[1]
    assert value is not None
    return value


def weight_of(site: Site) -> Weight:
    """How a layer's weight is quantized."""
    source, turned = _weight(site).site, None
    if source is not None and source.op == "Transpose" and source.values[0] is not None:
        turned, source = source, source.values[0].site
    if source is None or source.op != "DequantizeLinear" or not _has_numbers(source):
        return Weight(None, None, 0)
    return Weight(source, turned, _bits(source))


def _order(turned: Site) -> list[int]:
    """Which axis goes where."""
    return list(turned.attr("perm") or reversed(range(turned.rank(0) or 0)))


def _has_numbers(dequantize: Site) -> bool:
    """Whether what it reads is stored: codes, or floats that are quantized on the way."""
    if dequantize.constant(0) is not None:
        return True
    value = dequantize.values[0]
    inner = None if value is None else value.site
    return inner is not None and inner.op == "QuantizeLinear" and inner.constant(0) is not None


def numbers_of(site: Site) -> Array | None:
    """A layer's weight in numbers: dequantized, or as stored where the model quantizes it; None: unknown."""
    found = site.value(1)
    weight = weight_of(site)
    if found is not None or weight.dequantize is None:
        return found
    value = weight.dequantize.values[0]
    stored = None if value is None or value.site is None else value.site.value(0)
    return stored if stored is None or weight.turned is None else stored.transpose(_order(weight.turned))


def _bits(dequantize: Site) -> int:
    """How many bits the codes of a weight need, zero points taken off."""
    codes, zero = dequantize.value(0), dequantize.value(2) if dequantize.has(2) else None
    name = dequantize.dtype(0)
    if codes is None or not codes.size or "int" not in name:
        return int("".join(filter(str.isdigit, name.split("_")[0])) or 0)
    wide = np.int64 if codes.dtype.itemsize > 2 else np.int32
    low, high = (int(end(codes).astype(wide)) for end in (np.min, np.max))
    zeros = np.zeros(1, wide) if zero is None else zero.astype(wide)
    largest = max(high - int(zeros.min()), int(zeros.max()) - low, 1)
    return min(math.ceil(math.log2(largest)) + 1, int("".join(filter(str.isdigit, name))))


def _bias_add(site: Site) -> Site | None:
    """The Add behind a MatMul that adds a stored bias and alone reads it, or None."""
    add = only_reader(site.outputs[0])
    if add is None or add.op != "Add":
        return None
    slot = constant_operand(add)
    value = None if slot is None else add.values[slot]
    if slot is None or value is None or value.shape is None or any(n != 1 for n in value.shape[:-1]):
        return None
    source = value.site
    wide = source is None or source.op != "DequantizeLinear" or source.dtype(0) == "int32"
    return add if wide else None


def constant_operand(add: Site) -> int | None:
    """Which input of an Add is stored."""
    return next((slot for slot in (0, 1) if add.constant(slot) is not None), None)
