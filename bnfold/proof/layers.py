"""Layers with weights, compared by their weights: no sizes, no inputs, every number of the file.

A layer y = W x + b becomes, where x' carries x = u*x' + v and y' = p*y + q,

    y' = (p W u) x' + p (b + W v) + q.

Both sides are linear in x', and two linear maps of the same windows are one map exactly where their weights
are
equal: that makes the comparison complete, not only sound. It is done in float64, and what is stored may
differ from the exact number by one rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bnfold.proof.claims import Entry, Image, Wrong
from bnfold.proof.graph import Node, Scope
from bnfold.proof.maps import Channels, along_channels, per_channel
from bnfold.proof.operator import Array, is_float, wide

__all__ = ["Ends", "Layer", "bias_of", "compare", "ends_of", "layer_of", "precision_of", "ulps"]

CONVOLUTIONS, PRODUCTS = frozenset({"Conv", "ConvTranspose"}), frozenset({"Gemm", "MatMul"})
# A float64 sum of several terms, relative to the sum of their absolute values.
SUM = 1e-15
# Of each floating type: the distance of two numbers from 1 on, and the smallest normal number.
# float64's are four times its own, since that is what the comparison itself is computed in.
_STEPS = {"float64": (50, 1022), "float32": (23, 126), "float16": (10, 14), "bfloat16": (7, 126)}


@dataclass
class Layer:
    """One linear layer.

    weight: float64 of shape (groups, outputs, inputs, taps), of one group each. bias: one number an output,
    or None. x_axis, y_axis: where the channels are, from the end. padded: zeros are beside x. rest: all else
    that must agree. roundings: what each stored weight and bias may be off, in units in the last place.
    terms: the sum of the absolute values of what makes a bias up, which float64 rounds.
    """

    x: str
    weight: Array
    bias: Array | None
    x_axis: int
    y_axis: int
    padded: bool
    rest: tuple[Any, ...]
    dtype: str
    node: Node
    roundings: float
    terms: Array = field(init=False)

    def __post_init__(self) -> None:
        self.terms = np.abs(bias_of(self))


def layer_of(scope: Scope, nodes: Sequence[Node], out: str, scaled: bool = False) -> Layer | None:
    """A region of one layer, or of one and the Add of its bias; None for any other.

    scaled: the layer may be followed by batch norms and constants along its channels; its numbers are then
    exact ones, and not those of a file.
    """
    if not nodes or nodes[-1].outputs[0] != out:
        return None
    first = nodes[0]
    values = [scope.constant(name) if name else None for name in first.inputs]
    if any(name and value is None for name, value in zip(first.inputs[2:], values[2:], strict=True)):
        return None  # a bias that is computed
    if first.op in CONVOLUTIONS:
        layer = _convolution(first, values)
    else:
        layer = _product(first, values) if first.op in PRODUCTS else None
    if layer is None or any(v is not None and not is_float(v) for v in values):
        return None
    weight = first.inputs[1] if layer.x == first.inputs[0] else first.inputs[0]
    layer.roundings = 1.0 if scope.is_stored(weight) else 2.0  # a computed one is rounded once more
    before = first.outputs[0]
    for node in nodes[1:]:
        if list(node.reads()).count(before) != 1 or not (scaled or (len(nodes) == 2 and node.op == "Add")):
            return None
        groups, outputs = layer.weight.shape[:2]
        rank = 1 - layer.y_axis if first.op in CONVOLUTIONS else -layer.y_axis  # at least
        axis = None if first.op == "MatMul" else 1 - rank
        found = along_channels(scope, node, before, Channels(layer.y_axis, groups * outputs, rank, axis))
        if found is None:
            return None
        scale, shift = found
        if node.op != "Add":
            layer.weight = layer.weight * np.broadcast_to(scale, groups * outputs).reshape(
                groups, outputs, 1, 1
            )
        layer.bias = bias_of(layer) * scale + shift
        layer.terms = layer.terms * np.abs(scale) + np.abs(shift)
        before = node.outputs[0]
    return layer


def _convolution(node: Node, values: Sequence[Array | None]) -> Layer | None:
    weight = values[1]
    if values[0] is not None or weight is None or weight.ndim < 3:
        return None
    groups, kernel = int(node.attribute("group", 1)), weight.shape[2:]
    if groups < 1 or weight.shape[0] % groups:
        return None
    w = wide(weight).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    n = len(kernel)
    strides = tuple(node.attribute("strides", [1] * n))
    pads = tuple(node.attribute("pads", [0] * 2 * n))
    auto = node.attribute("auto_pad", b"NOTSET") or b"NOTSET"
    rest = (
        node.op, kernel, groups, strides, pads, auto, tuple(node.attribute("dilations", [1] * n)),
        tuple(node.attribute("output_padding", [0] * n)), tuple(node.attribute("output_shape", [])),
    )  # fmt: skip
    padded = any(pads) or auto not in (b"NOTSET", b"VALID")
    if node.op == "ConvTranspose":
        w = w.swapaxes(1, 2)
        # its windows overlap by turns, so that a shift of x reaches the outputs in a pattern
        padded = (
            padded or any(s != 1 for s in strides) or math.prod(kernel) > 1 or any(rest[7]) or bool(rest[8])
        )
    bias = None if len(values) < 3 or values[2] is None else wide(values[2]).reshape(-1)
    if bias is not None and bias.size != w.shape[0] * w.shape[1]:
        return None
    axis = -1 - n
    return Layer(node.inputs[0], w, bias, axis, axis, padded, rest, weight.dtype.name, node, 1.0)


def _product(node: Node, values: Sequence[Array | None]) -> Layer | None:
    if (values[0] is None) == (values[1] is None):
        return None
    left = values[0] is not None  # the matrix stands at the left: channels are rows
    matrix = values[0] if left else values[1]
    assert matrix is not None
    if matrix.ndim != 2:
        return None
    w, bias = wide(matrix), None
    if node.op == "Gemm":
        if left or node.attribute("transA", 0):
            return None
        w = (w if node.attribute("transB", 0) else w.T) * node.attribute("alpha", 1.0)
        if len(values) > 2 and values[2] is not None and node.attribute("beta", 1.0):
            bias = wide(values[2]) * node.attribute("beta", 1.0)
            if bias.ndim > 1 and bias.shape[0] != 1:
                return None
            bias = bias.reshape(-1)
            if bias.size not in (1, w.shape[0]):
                return None
    elif not left:
        w = w.T
    axis = -2 if left else -1
    x = node.inputs[1] if left else node.inputs[0]
    rest = ("product", axis)
    return Layer(x, w[None, :, :, None], bias, axis, axis, False, rest, matrix.dtype.name, node, 1.0)


class Ends(NamedTuple):
    """What a layer stands between, a number for each channel: x = u*x' + v, and y' = py*y + qy."""

    u: Array
    v: Array
    py: Array
    qy: Array


def ends_of(layer: Layer, x: Image, y: Image) -> Ends | None:
    """Of the original's layer, by the images of what it reads and gives; None if they are not such."""
    groups, outputs, inputs, _ = layer.weight.shape
    px, qx = (per_channel(value, layer.x_axis, groups * inputs) for value in (x.p, x.q))
    py, qy = (per_channel(value, layer.y_axis, groups * outputs) for value in (y.p, y.q))
    if px is None or qx is None or py is None or qy is None or y.decoded:
        return None
    if x.decoded:
        return Ends(px, qx, py, qy) if x.cut is None else None
    # what has lost its value cannot be decoded; that nobody needs it, evaluation can tell
    return Ends(1 / px, -qx / px, py, qy) if px.all() else None


def compare(a: Layer, b: Layer, ends: Ends, where: str, rounds: tuple[int, int] = (1, 1)) -> float | None:
    """Whether layer `b` is layer `a` between these ends.

    rounds: how often weight and bias of `b` may have been rounded.

    Returns:
        The largest error in units in the last place; None if weights do not decide it.

    Raises:
        Wrong: an entry of the weight or the bias is another. It is final: no fact about x would mend it.
    """
    if a.rest != b.rest or a.weight.shape != b.weight.shape:
        return None
    groups, outputs, inputs, _ = a.weight.shape
    py, qy = ends.py, ends.qy
    u, v = (part.reshape(groups, 1, inputs, 1) for part in (ends.u, ends.v))
    if a.padded and v.any() and (a.weight * (v != 0)).any():
        return None  # the zeros beside x would have to be shifted too: evaluation at true sizes says no
    worst = 0.0
    roundings = max(a.roundings, b.roundings)
    if not (np.array_equal(a.weight, b.weight) and (u == 1).all() and (py == 1).all()):
        expected = a.weight * (u * py.reshape(groups, outputs, 1, 1))
        worst = ulps(b.weight, expected, 0.0, f"weight of {where}", b.dtype, roundings * rounds[0])
    moved = size = np.zeros(groups * outputs)
    if v.any():
        terms = a.weight * v
        moved, size = terms.sum((2, 3)).reshape(-1), np.abs(terms).sum((2, 3)).reshape(-1)
    before, after = (bias_of(layer) for layer in (a, b))
    slack = (SUM + (rounds[1] - 1) * precision_of(b.dtype)) * (np.abs(py) * (a.terms + size) + np.abs(qy))
    expected = py * (before + moved) + qy
    return max(worst, ulps(after, expected, slack, f"bias of {where}", b.dtype, roundings * rounds[1]))


def bias_of(layer: Layer) -> Array:
    """One number for each output."""
    size = layer.weight.shape[0] * layer.weight.shape[1]
    return np.zeros(size) if layer.bias is None else np.broadcast_to(layer.bias, (size,))


def precision_of(dtype: str) -> float:
    """Half a unit in the last place of numbers from 1 on: the largest relative error of storing a number."""
    return float(2.0 ** -(_STEPS.get(dtype, _STEPS["float32"])[0] + 1))


def ulps(
    got: Array, expected: Array, slack: Array | float, where: str, dtype: str, limit: float = 1.0
) -> float:
    """The largest |got - expected| in units in the last place of the type, beyond `slack`.

    Raises:
        Wrong: more than `limit`, which is one rounding of an exact number and a little of float64's own; or
        not
            finite.
    """
    digits, smallest = _STEPS.get(dtype, _STEPS["float32"])
    got, expected = np.broadcast_arrays(got, expected)
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(np.maximum(np.abs(expected), 2.0**-smallest))
        unit = np.ldexp(1.0, exponent - 1 - digits)
        error = np.maximum(np.abs(got - expected) - slack, 0.0) / unit
        error = np.where((got == expected) | (np.isnan(got) & np.isnan(expected)), 0.0, error)
    error = np.where(np.isnan(error), np.inf, error)
    worst = float(error.max(initial=0.0))
    if worst > limit:
        at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
        entry = Entry(where, at, float(got[at]), float(expected[at]))
        count = int((error > limit).sum())
        raise Wrong(
            f"{worst:.3g} units in the last place off; {count} of {error.size} are", entry, True, worst
        )
    return worst
