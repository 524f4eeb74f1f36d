"""One rule for each role: what a change of one of its tensors asks of the others, or why it cannot be.

SCALE holds the rules for factors of p, SHIFT those for increments of q, both in the encode form `t' = p*t +
q` (in the decode form `t = u*t' + v` where zeros leave no other; the rules that differ refuse it). A rule is
called with the slot that changed and the array, and calls `spread.want` for each tensor that must follow.
"""

from __future__ import annotations

from bnfold.fold.carry import layers as weights
from bnfold.fold.carry import maps
from bnfold.fold.carry import rearranging as moves
from bnfold.fold.carry.spread import Rule
from bnfold.fold.roles import (
    Affine,
    Clamp,
    Closed,
    Concat,
    Contract,
    Gate,
    Leaky,
    Linear,
    Map,
    Move,
    Normalize,
    Pad,
    Product,
    Recurrent,
    Same,
    SoftmaxInput,
    Split,
    Sum,
)

__all__ = ["SCALE", "SHIFT"]

SCALE: dict[type, Rule] = {
    Closed: weights.closed,
    Affine: weights.affine_scale,
    Linear: weights.linear_scale,
    Recurrent: weights.recurrent,
    Map: maps.map_scale,
    Leaky: maps.leaky_scale,
    Clamp: maps.clamp_scale,
    Gate: weights.gate,
    Move: moves.move,
    Pad: maps.pad_scale,
    Split: moves.split,
    Concat: moves.concat,
    Sum: moves.sum_scale,
    Product: moves.product_scale,
    Same: moves.same,
    Contract: moves.contract_scale,
    Normalize: weights.normalize_scale,
    SoftmaxInput: weights.closed,
}

SHIFT: dict[type, Rule] = {
    Closed: weights.closed,
    Affine: weights.affine_shift,
    Linear: weights.linear_shift,
    Recurrent: weights.recurrent,
    Map: maps.map_shift,
    Leaky: maps.leaky_shift,
    Clamp: maps.clamp_shift,
    Gate: weights.gate,
    Move: moves.move,
    Pad: maps.pad_shift,
    Split: moves.split,
    Concat: moves.concat,
    Sum: moves.sum_shift,
    Product: moves.product_shift,
    Same: moves.same,
    Contract: moves.contract_shift,
    Normalize: weights.normalize_shift,
    SoftmaxInput: weights.softmax_shift,
}
