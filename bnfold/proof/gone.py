"""A layer between tensors of which channels are gone, as the layer of the channels that are left.

With K the inputs that are kept, and G those that are gone and were constant, c,

    W x + b = W_K x_K + (b + W_G c)

 1. What goes into the bias is the same at every place only where no zeros are beside x, or W_G c is 0.
 2. Of an input that is gone and of which nothing is said, nobody reads anything: its weights are 0.
 3. An output that is gone has to be what it is said to have been: weights of K that are 0, and that bias.
 4. In a depthwise layer whole groups are gone, each with its input and its outputs.

What is none of these is left to evaluation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.certificate import Cut
from bnfold.proof.evaluate import TIMES
from bnfold.proof.layers import Ends, Layer, bias_of
from bnfold.proof.operator import Array, precision_of

__all__ = ["left_of"]


def left_of(layer: Layer, ends: Ends, rank: int, x: Cut | None, y: Cut | None) -> tuple[Layer, Ends] | None:
    """The layer between the channels that are left, and these ends; None if it is left to evaluation.

    rank: of what it reads and gives. x, y: what is gone of these.
    """
    groups, outputs, inputs, _ = layer.weight.shape
    read = _places(x, layer.x_axis, groups * inputs, rank)
    made = _places(y, layer.y_axis, groups * outputs, rank)
    if read is None or made is None or (groups > 1 and inputs > 1):
        return None
    kept, known, said = read
    weight, of_input = layer.exact(), (groups, 1, inputs, 1)
    left = np.zeros(groups * inputs, bool)
    left[kept] = True
    if (weight * (~left & ~known).reshape(of_input)).any():
        return None
    moved = weight * np.where(known, ends.u * said + ends.v, 0.0).reshape(of_input)
    if layer.padded and moved.any():
        return None
    bias = bias_of(layer) + moved.sum((2, 3)).reshape(-1)
    terms = layer.terms + np.abs(moved).sum((2, 3)).reshape(-1)

    rows, known, said = made
    live = (weight * left.reshape(of_input)).any((2, 3)).reshape(-1)
    constant = ends.py * bias + ends.qy
    far = np.abs(constant - said) > TIMES * precision_of("float32") * np.abs(constant)
    if (known & (live | far)).any():
        return None
    stored, scale, rest = layer.weight, layer.scale, layer.rest
    if groups > 1:
        if not np.array_equal(rows, (kept[:, None] * outputs + np.arange(outputs)).reshape(-1)):
            return None
        stored, scale, rest = stored[kept], scale[kept], (*rest[:2], kept.size, *rest[3:])
    else:
        stored, scale = stored[:, rows][:, :, kept], scale[:, rows]
    smaller = replace(layer, weight=stored, bias=bias[rows], rest=rest)
    smaller.scale, smaller.terms = scale, terms[rows]
    return smaller, Ends(ends.u[kept], ends.v[kept], ends.py[rows], ends.qy[rows])


def _places(cut: Cut | None, axis: int, size: int, rank: int) -> tuple[Array, Array, Array] | None:
    """Which channels are kept, in the order of the folded model; of each channel whether it is gone and was
    constant, and which constant, or 0.
    """
    if cut is None:
        return np.arange(size), np.zeros(size, bool), np.zeros(size)
    if cut.constants.size != size or cut.axis - (rank if cut.axis >= 0 else 0) != axis:
        return None
    known = ~np.isnan(cut.constants)
    known[cut.kept] = False
    if np.unique(cut.kept).size != cut.kept.size:
        return None
    return cut.kept, known, np.where(known, cut.constants, 0.0)
