"""One rule for each role: what a change of one of its tensors asks of the others, or why it cannot be.

SCALE holds the rules for factors of p, SHIFT those for increments of q, both in the encode form `t' = p*t +
q` (in the decode form `t = u*t' + v` where zeros leave no other; the rules that differ refuse it). A rule is
called with the slot that changed and the array, and calls `spread.want` for each tensor that must follow.
"""

from __future__ import annotations

from bnfold.fold import roles
from bnfold.fold.carry import contract, layers, maps, rearranging
from bnfold.fold.carry.spread import Rule

__all__ = ["SCALE", "SHIFT"]

_RULES: dict[type, tuple[Rule, Rule]] = {
    roles.Closed: (layers.closed, layers.closed),
    roles.Affine: (layers.affine_scale, layers.affine_shift),
    roles.Linear: (layers.linear_scale, layers.linear_shift),
    roles.Sampled: (layers.sampled, layers.sampled),
    roles.Recurrent: (layers.recurrent, layers.recurrent),
    roles.Map: (maps.map_scale, maps.map_shift),
    roles.Leaky: (maps.leaky_scale, maps.leaky_shift),
    roles.Clamp: (maps.clamp_scale, maps.clamp_shift),
    roles.Gate: (layers.gate, layers.gate),
    roles.Move: (rearranging.move, rearranging.move),
    roles.Pad: (maps.pad_scale, maps.pad_shift),
    roles.Split: (rearranging.split, rearranging.split),
    roles.Concat: (rearranging.concat, rearranging.concat),
    roles.Sum: (rearranging.sum_scale, rearranging.sum_shift),
    roles.Product: (rearranging.product_scale, rearranging.product_shift),
    roles.Same: (rearranging.same, rearranging.same),
    roles.Contract: (contract.contract_scale, contract.contract_shift),
    roles.Normalize: (layers.normalize_scale, layers.normalize_shift),
    roles.SoftmaxInput: (layers.closed, layers.softmax_shift),
}
SCALE: dict[type, Rule] = {role: scale for role, (scale, _) in _RULES.items()}
SHIFT: dict[type, Rule] = {role: shift for role, (_, shift) in _RULES.items()}
