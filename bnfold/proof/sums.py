"""Several layers of one tensor as one: summed branches, two layers in a row, per-channel maps between.

A region in which every node is linear in what it reads is one linear map of its leaf, and one kernel: for
each offset of a tap from the place of the output, a matrix for each group. Two such regions are one function
exactly where these kernels, what they add, and the reach of their windows are equal. Every term is counted
with its absolute value as well: what merging has rounded on the way is at most half a unit in the last place
of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from bnfold.certificate import Image
from bnfold.proof.maps import Channels, along_channels, decoded, per_channel
from bnfold.proof.operator import Array, is_float, precision_of, wide
from bnfold.proof.scope import Node, Scope
from bnfold.proof.ulps import SUM, Worst

__all__ = ["Kernel", "compare", "kernel_of"]

Taps: TypeAlias = (
    "dict[tuple[int, ...], tuple[Array, Array]]"  # by offset: weights, and sums of absolute values
)
MARGIN = 1.01  # what rounding one rounded number again adds


@dataclass
class Kernel:
    """A linear map of one tensor.

    taps: matrices of shape (groups, outputs, inputs), of one group each. bias, size: what is added, and the
    sum of its terms' absolute values. stride: of the windows; () where they are single places of no image.
    reach: how many places less there are, for each axis; None as long as it is a map of each place by itself.
    steps: how many stored numbers are multiplied into one term.
    """

    taps: Taps
    bias: Array
    size: Array
    stride: tuple[int, ...] | None = None
    reach: tuple[int, ...] | None = None
    steps: int = 0
    dtype: str = "float32"

    @property
    def groups(self) -> int:
        return len(next(iter(self.taps.values()))[0])


def kernel_of(
    scope: Scope,
    nodes: Sequence[Node],
    out: str,
    leaf: str,
    shape: Sequence[int],
    image: Image | None = None,
) -> Kernel | None:
    """The region as one kernel; None where it is not linear, or not known to be.

    shape: of the leaf. image: where it is given, the kernel is one of the leaf's counterpart.
    """
    matrix = any(node.op in ("Gemm", "MatMul") for node in nodes)
    if not matrix and len(shape) < 3:
        return None
    channels, rank = shape[-1 if matrix else 1], len(shape)
    axis = -1 if matrix else 1 - rank
    ends = decoded(Image(leaf) if image is None else image, axis, channels)
    if ends is None:
        return None
    eye, shift = ends[0].reshape(-1, 1, 1), ends[1]
    middle: tuple[int, ...] = () if matrix else (0,) * (rank - 2)
    made: dict[str, Kernel] = {leaf: Kernel({middle: (eye, np.abs(eye))}, shift, np.abs(shift))}
    for node in nodes:
        values = [None if not name else scope.constant(name) for name in node.inputs]
        given = [made.get(name) for name in node.inputs]
        if any(
            name and value is None and kernel is None
            for name, value, kernel in zip(node.inputs, values, given, strict=True)
        ):
            return None
        read = [name for name in node.inputs if name in made]
        found: Kernel | None = None
        if node.op in _LAYERS:
            exact = [None if value is None else wide(value) for value in values]
            found = _LAYERS[node.op](node, given, exact, rank, matrix)
        elif node.op in ("Add", "Sub", "Sum") and len(read) == len(node.inputs):
            found = _added(node, given)
        elif len(read) == 1:
            x = made[read[0]]
            moves = along_channels(scope, node, read[0], Channels(axis, x.bias.size, rank, 1 - rank))
            if moves is not None:
                found = replace(x) if node.op == "Identity" else _scaled(x, *moves)
        if found is None or len([o for o in node.outputs if o]) != 1:
            return None
        for value in values:
            if value is not None and is_float(value):
                found.dtype = value.dtype.name
        made[node.outputs[0]] = found
    kernel = made.get(out)
    return None if kernel is None or kernel.stride is None else kernel


_Given: TypeAlias = "Sequence[Kernel | None]"
_Values: TypeAlias = "Sequence[Array | None]"


def _conv(node: Node, given: _Given, values: _Values, rank: int, matrix: bool) -> Kernel | None:
    x, weight = given[0], values[1]
    if matrix or x is None or weight is None or weight.ndim != rank:
        return None
    if node.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b"") or (
        len(given) > 2 and given[2] is not None
    ):
        return None
    n, groups = rank - 2, int(node.attribute("group", 1))
    dilations, strides = node.attribute("dilations", [1] * n), tuple(node.attribute("strides", [1] * n))
    pads, kernel = node.attribute("pads", [0] * 2 * n), weight.shape[2:]
    if groups < 1 or weight.shape[0] % groups or weight.shape[1] * groups != x.bias.size:
        return None
    taps: Taps = {}
    for at in np.ndindex(*kernel):
        place = (slice(None), slice(None), *at)
        part = weight[place].reshape(groups, weight.shape[0] // groups, -1)
        taps[tuple(i * d - p for i, d, p in zip(at, dilations, pads[:n], strict=True))] = part, np.abs(part)
    reach = tuple(pads[i] + pads[n + i] - (kernel[i] - 1) * dilations[i] for i in range(n))
    bias = values[2] if len(values) > 2 else None
    bias = np.zeros(weight.shape[0]) if bias is None else bias.reshape(-1)
    layer = Kernel(taps, bias, np.abs(bias), strides, reach, 1)
    return _behind(x, layer, any(pads))


def _product(node: Node, given: _Given, values: _Values, rank: int, matrix: bool) -> Kernel | None:
    x, weight = given[0], values[1]
    if x is None or weight is None or weight.ndim != 2 or (node.op == "Gemm" and node.attribute("transA", 0)):
        return None
    bias: Array | None = None
    if node.op == "Gemm":
        weight = (weight if node.attribute("transB", 0) else weight.T) * node.attribute("alpha", 1.0)
        if len(given) > 2 and given[2] is not None:
            return None
        bias = values[2] if len(values) > 2 and node.attribute("beta", 1.0) else None
        bias = None if bias is None else bias * node.attribute("beta", 1.0)
    else:
        weight = weight.T
    outputs, inputs = weight.shape
    if inputs != x.bias.size or (bias is not None and bias.size not in (1, outputs)):
        return None
    if bias is not None and bias.ndim > 1 and bias.shape[-1] != bias.size:
        return None
    bias = np.zeros(outputs) if bias is None else np.broadcast_to(bias.reshape(-1), (outputs,))
    weight = weight[None]
    return _behind(x, Kernel({(): (weight, np.abs(weight))}, bias, np.abs(bias), (), (), 1), False)


def _behind(x: Kernel, layer: Kernel, padded: bool) -> Kernel | None:
    """`layer` of what `x` gives. Zeros beside what x gives would be something else beside the leaf."""
    assert layer.stride is not None
    if padded and x.stride is not None and (x.bias.any() or x.reach != (0,) * len(layer.stride)):
        return None
    if padded and (x.bias.any() or len(x.taps) > 1 or (x.stride and any(s != 1 for s in x.stride))):
        return None  # a map of each place by itself that keeps zeros at zero may stand inside of the padding
    stride = x.stride if x.stride is not None else (1,) * len(layer.stride)
    reach = x.reach if x.reach is not None else (0,) * len(layer.stride)
    if any(s != 1 for s in stride) and any(r % s for r, s in zip(reach, stride, strict=True)):
        return None  # how many windows there are depends on the size, in another way than a sum's
    taps: Taps = {}
    for at, (w, size) in layer.taps.items():
        for before, (w0, size0) in x.taps.items():
            place = tuple(b + s * a for a, b, s in zip(at, before, stride, strict=True))
            product, sizes = _times(w, w0), _times(size, size0)
            old = taps.get(place)
            taps[place] = (product, sizes) if old is None else (old[0] + product, old[1] + sizes)
    bias, amount = layer.bias.copy(), layer.size.copy()
    if x.bias.any() or x.size.any():
        for w, size in layer.taps.values():
            column, columns = (v.reshape(layer.groups, -1, 1) for v in (x.bias, x.size))
            bias, amount = bias + (w @ column).reshape(-1), amount + (size @ columns).reshape(-1)
    new = tuple(a * b for a, b in zip(stride, layer.stride, strict=True))
    far = tuple(r + s * t for r, s, t in zip(reach, stride, layer.reach or (), strict=True))
    return Kernel(taps, bias, amount, new, far, x.steps + layer.steps)


def _times(w: Array, w0: Array) -> Array:
    """The product of two matrices that are given by their blocks along the diagonal."""
    if w0.shape[1:] == (1, 1):  # a number for each channel
        return np.asarray(w * w0.reshape(len(w), 1, -1))
    groups = math.gcd(len(w), len(w0))
    return np.asarray(_coarse(w, groups) @ _coarse(w0, groups))


def _coarse(w: Array, groups: int) -> Array:
    """The same matrices in fewer groups: blocks along the diagonal."""
    g, outputs, inputs = w.shape
    if g == groups:
        return w
    k = g // groups
    wide_ = np.zeros((groups, k * outputs, k * inputs))
    for j in range(k):
        rows, columns = slice(j * outputs, (j + 1) * outputs), slice(j * inputs, (j + 1) * inputs)
        wide_[:, rows, columns] = w.reshape(groups, k, outputs, inputs)[:, j]
    return wide_


def _scaled(x: Kernel, a: Array, b: Array) -> Kernel:
    a, b = (np.broadcast_to(v, x.bias.shape) for v in (a, b))
    column = a.reshape(x.groups, -1, 1)
    taps = {at: (w * column, size * np.abs(column)) for at, (w, size) in x.taps.items()}
    return replace(x, taps=taps, bias=x.bias * a + b, size=x.size * np.abs(a) + np.abs(b), steps=x.steps + 1)


def _added(node: Node, given: _Given) -> Kernel | None:
    """Several kernels, added up or one less the other."""
    total, *others = (kernel for kernel in given if kernel is not None)
    for other in others:
        summed = _sum(total, _scaled(other, -np.ones(1), np.zeros(1)) if node.op == "Sub" else other)
        if summed is None:
            return None
        total = summed
    return total


def _sum(x: Kernel, y: Kernel) -> Kernel | None:
    """Of two maps with windows at the same places."""
    if x.bias.size != y.bias.size:
        return None
    stride = x.stride if x.stride is not None else y.stride
    reach = x.reach if x.reach is not None else y.reach
    for one in (x, y):
        if one.stride is None and stride is not None and (any(s != 1 for s in stride) or any(reach or ())):
            return None
        if one.stride is not None and (one.stride != stride or one.reach != reach):
            return None
    groups = math.gcd(x.groups, y.groups)
    taps: Taps = {}
    for one in (x, y):
        for at, pair in one.taps.items():
            w, size = (_coarse(part, groups) for part in pair)
            old = taps.get(at)
            taps[at] = (w, size) if old is None else (old[0] + w, old[1] + size)
    return Kernel(taps, x.bias + y.bias, x.size + y.size, stride, reach, max(x.steps, y.steps), x.dtype)


_LAYERS: dict[str, Callable[[Node, _Given, _Values, int, bool], Kernel | None]] = {
    "Conv": _conv,
    "Gemm": _product,
    "MatMul": _product,
}


def compare(a: Kernel, b: Kernel, y: Image, rank: int, where: str, rounds: int = 1) -> float | None:
    """Whether kernel `b` gives the image of what kernel `a` gives.

    a: of the counterpart of what it reads. rank: of what is read. rounds: how often numbers may have been
    rounded.

    Returns and raises as `layers.compare`.
    """
    if a.stride != b.stride or a.reach != b.reach or a.bias.size != b.bias.size or y.decoded:
        return None
    axis = 1 - rank if a.stride else -1
    inputs = [k.groups * next(iter(k.taps.values()))[0].shape[2] for k in (a, b)]
    py, qy = (per_channel(value, axis, a.bias.size) for value in (y.p, y.q))
    if inputs[0] != inputs[1] or py is None or qy is None:
        return None
    groups = math.gcd(a.groups, b.groups)
    # Each of A's numbers in a term was rounded once, when its batch norm was folded before the sum.
    half = MARGIN * precision_of(b.dtype) * max(a.steps, 1) * rounds
    # B's were too, when they were stored. The limit is for one number; several may cancel to less than it.
    again, steps = MARGIN * precision_of(b.dtype), max(b.steps, 1)
    worst = 0.0
    shape = groups, a.bias.size // groups, inputs[0] // groups
    nothing = np.zeros(shape), np.zeros(shape)
    for at in {*a.taps, *b.taps}:
        (wa, za), (wb, zb) = (
            tuple(_coarse(part, groups) for part in k.taps[at]) if at in k.taps else nothing for k in (a, b)
        )
        f = py.reshape(groups, -1, 1)
        slack = (half + SUM) * za * np.abs(f) + again * (steps * zb - np.abs(wb))
        worst = max(
            worst,
            Worst(f"merged weight of {where}, tap {list(at)},", b.dtype).look(wb, wa * f, slack).judged(),
        )
    slack = half * np.abs(py) * a.size + SUM * (np.abs(py) * a.size + np.abs(qy))
    slack += again * (steps * b.size - np.abs(b.bias))
    return max(
        worst, Worst(f"merged bias of {where}", b.dtype).look(b.bias, py * a.bias + qy, slack).judged()
    )
