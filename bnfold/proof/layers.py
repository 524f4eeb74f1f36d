"""Layers with weights, compared by their weights: no sizes, no inputs, every number of the file.

A layer y = W x + b becomes, where x' carries x = u*x' + v and y' = p*y + q,

    y' = (p W u) x' + p (b + W v) + q.

Both sides are linear in x', and two linear maps of the same windows are one map exactly where their weights
are equal: that makes the comparison complete, not only sound. It is done in float64, and what is stored may
differ from the exact number by one rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bnfold.proof.claims import Image
from bnfold.proof.maps import Channels, along_channels, per_channel, size_of
from bnfold.proof.operator import Array, is_float, precision_of, wide
from bnfold.proof.scope import Node, Scope
from bnfold.proof.ulps import SUM, Worst

__all__ = ["Ends", "Layer", "bias_of", "compare", "ends_of", "layer_of"]

Part: TypeAlias = "tuple[slice, slice]"  # of groups, and of outputs in each

CONVOLUTIONS, PRODUCTS = frozenset({"Conv", "ConvTranspose"}), frozenset({"Gemm", "MatMul"})
# Numbers of a weight that are compared at a time.
PART = 1 << 16


@dataclass
class Layer:
    """One linear layer.

    weight: of shape (groups, outputs, inputs, taps), of one group each, in the type of the file. scale: what
    it is multiplied by, of shape (groups, outputs). bias: one number an output, or None. x_axis, y_axis:
    where the channels are, from the end. padded: zeros are beside x. rest: all else that must agree.
    roundings: what each stored weight and bias may be off, in units in the last place. terms: the sum of the
    absolute values of what makes a bias up, which float64 rounds.
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
    scale: Array = field(init=False)
    terms: Array = field(init=False)

    def __post_init__(self) -> None:
        self.scale = np.ones(self.weight.shape[:2])
        self.terms = np.abs(bias_of(self))

    def exact(self, part: Part | None = None) -> Array:
        """The weight in float64, or a part of it."""
        part = (slice(None), slice(None)) if part is None else part
        weight: Array = wide(self.weight[part])
        scale = self.scale[part][..., None, None]
        return weight if (scale == 1).all() else weight * scale


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
            layer.scale = layer.scale * np.broadcast_to(scale, groups * outputs).reshape(groups, outputs)
        layer.bias = bias_of(layer) * scale + shift
        layer.terms = layer.terms * np.abs(scale) + size_of(scope, node, shift)
        before = node.outputs[0]
    return layer


def _convolution(node: Node, values: Sequence[Array | None]) -> Layer | None:
    """All that tells which windows it has is in `rest`, and has to be equal: an entry of the weight then
    multiplies the same number of x on both sides.
    """
    weight = values[1]
    if values[0] is not None or weight is None or weight.ndim < 3:
        return None
    groups, kernel = int(node.attribute("group", 1)), weight.shape[2:]
    if groups < 1 or weight.shape[0] % groups:
        return None
    w = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
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
    """A matrix along the last axis of x, or where it stands at the left, along the last but one. Along the
    others are places, each of which is multiplied in the same way.
    """
    if (values[0] is None) == (values[1] is None):
        return None
    left = values[0] is not None  # the matrix stands at the left: channels are rows
    matrix = values[0] if left else values[1]
    assert matrix is not None
    if matrix.ndim != 2:
        return None
    w, bias, alpha = matrix, None, 1.0
    if node.op == "Gemm":
        if left or node.attribute("transA", 0):
            return None
        w, alpha = (w if node.attribute("transB", 0) else w.T), node.attribute("alpha", 1.0)
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
    layer = Layer(x, w[None, :, :, None], bias, axis, axis, False, rest, matrix.dtype.name, node, 1.0)
    layer.scale *= alpha
    return layer


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
    py, qy, shape = ends.py, ends.qy, (groups, outputs)
    u, v = (part.reshape(groups, 1, inputs, 1) for part in (ends.u, ends.v))
    moved, size = np.zeros(shape), np.zeros(shape)
    for part in _parts(a.weight) if v.any() else ():
        terms = a.exact(part) * v[part[0]]
        if a.padded and terms.any():
            return None  # the zeros beside x would have to be shifted too: evaluation at true sizes says no
        moved[part], size[part] = terms.sum((2, 3)), np.abs(terms).sum((2, 3))
    roundings = max(a.roundings, b.roundings)
    # what was rounded on the way to a number of `a` stands in front of a factor: up to a unit behind it
    weight = Worst(f"weight of {where}", b.dtype, b.roundings * rounds[0] + a.roundings - 1)
    scale = a.scale * py.reshape(shape)
    plain = bool((u == 1).all())
    if not (plain and (scale == b.scale).all() and np.array_equal(a.weight, b.weight)):
        factor = scale[..., None, None]
        for part in _parts(a.weight):
            want = a.weight[part].astype(np.float64)
            want *= factor[part]
            if not plain:
                want *= u[part[0]]
            weight.look(b.exact(part), want, begin=tuple(some.start for some in part))
    before, after = (bias_of(layer) for layer in (a, b))
    terms = np.abs(py) * (a.terms + size.reshape(-1)) + np.abs(qy)
    slack = (SUM + (rounds[1] - 1) * precision_of(b.dtype)) * terms
    bias = Worst(f"bias of {where}", b.dtype, roundings * rounds[1])
    bias.look(after, py * (before + moved.reshape(-1)) + qy, slack)
    return max(weight.judged(), bias.judged())


def _parts(weight: Array) -> Iterator[Part]:
    """Groups, or outputs of one group, of about `PART` numbers: what is computed of them stays small."""
    groups, outputs = weight.shape[:2]
    along = int(groups == 1)
    step = max(PART * weight.shape[along] // max(weight.size, 1), 1)
    for begin in range(0, weight.shape[along], step):
        some = slice(begin, begin + step)
        yield (slice(0, groups), some) if along else (some, slice(0, outputs))


def bias_of(layer: Layer) -> Array:
    """One number for each output."""
    size = layer.weight.shape[0] * layer.weight.shape[1]
    return np.zeros(size) if layer.bias is None else np.broadcast_to(layer.bias, (size,))
