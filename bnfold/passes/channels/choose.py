"""Which channels leave: those of sets that nothing locks, if each layer that reads them can do without them.

A linear layer can do without an input channel that none of its outputs has a weight for, and without one that
is proven to be constant: the constant moves into the bias, unless the layer sees zero padding beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bnfold.fold.graph import Array, Node, Tensor
from bnfold.fold.roles import Linear
from bnfold.onnx_graph.ops.facts import broken
from bnfold.passes.channels.bounds import Facts
from bnfold.passes.channels.groups import Groups, Reason, why_not_cut
from bnfold.passes.channels.matrices import read_by

__all__ = ["PADDED", "Choice", "choose"]

_LIVE = "is not constant where this reads it"
PADDED = "sees zero padding beside a constant that is not zero"


class Choice:
    """The sets that leave, and what is known of the constants in them.

    sets: by tensor, the set of each channel. leaving: by set. reasons: why sets stay.
    """

    def __init__(self, groups: Groups, facts: Facts) -> None:
        self.groups, self.facts = groups, facts
        self.sets = {tensor: groups.sets.roots(c.sets) for tensor, c in groups.channels.items()}
        self.leaving: Array = np.zeros(len(groups.sets.parent), bool)
        self.reasons: dict[int, Reason] = dict(groups.sets.reasons)
        self.live: set[int] = set()  # those that stay since a layer reads them where they are not constant

    def gone(self, tensor: Tensor | None) -> Array | None:
        """Which channels of a tensor leave; None if none does."""
        sets = None if tensor is None else self.sets.get(tensor)
        if sets is None:
            return None
        gone: Array = self.leaving[sets]
        return gone if gone.any() else None

    def keep(self, tensor: Tensor | None) -> Array | None:
        """The indices of the channels that stay; None if all do."""
        gone = self.gone(tensor)
        return None if gone is None else np.flatnonzero(~gone)

    def constants(self, tensor: Tensor) -> Array:
        """The value of each channel that is proven to be constant; NaN for others."""
        found = self.groups.channels[tensor]
        bounds = self.facts[tensor].along(found.axis, len(found.sets))
        return np.where(bounds.constant, bounds.lo, np.nan)


def choose(groups: Groups, facts: Facts, locked: dict[int, Reason]) -> Choice:
    """The largest choice that leaves each tensor a channel. locked: sets that must stay for other reasons.

    Raises:
        ModelError: a layer cannot run, since its weight does not fit what it reads.
    """
    choice = Choice(groups, facts)
    choice.reasons.update(locked)
    lone: set[int] = set()  # sets that stay as the last of a tensor
    tried: set[int] = set()
    while True:
        reasons = _fill(choice)
        if _keep_one_of_each(choice, lone):
            continue
        spare = {root for root in lone - tried if _has_company(choice, root)}
        if not spare:  # else something else stays there by now
            for root, reason in reasons.items():
                if choice.reasons.setdefault(root, reason) is reason and reason.text == _LIVE:
                    choice.live.add(root)
            return choice
        tried |= spare
        lone -= spare
        for root in spare:
            del choice.reasons[root]


def _keep_one_of_each(choice: Choice, lone: set[int]) -> bool:
    """Let a channel stay in each tensor that would lose all; False if there is none."""
    found = False
    for tensor, sets in choice.sets.items():
        if len(sets) and choice.leaving[sets].all():
            root = int(sets[0])
            choice.reasons[root] = Reason("one channel of it has to stay", tensor.name)
            choice.leaving[root] = False
            lone.add(root)
            found = True
    return found


def _has_company(choice: Choice, root: int) -> bool:
    """In every tensor something else stays beside this set."""
    return all(
        (~choice.leaving[sets] & (sets != root)).any()
        for sets in choice.sets.values()
        if (sets == root).any()
    )


def _fill(choice: Choice) -> dict[int, Reason]:
    """Let go of all sets that nobody needs; fewer outputs need fewer inputs, so this repeats."""
    count = len(choice.leaving)
    choice.leaving = np.zeros(count, bool)
    own = np.zeros(count, bool)
    own[choice.groups.sets.roots(np.arange(count))] = True
    own[list(choice.reasons)] = False
    read: dict[Node, tuple[int, Array]] = {}
    while True:
        reasons: dict[int, Reason] = {}
        for node in choice.groups.readers:
            try:
                blocked = list(_blocked(choice, node, read))
            except (IndexError, ValueError):
                raise broken(node.source, "its weight does not fit the shapes around it") from None
            for root, reason in blocked:
                reasons.setdefault(root, reason)
        leaving = own.copy()
        leaving[list(reasons)] = False
        if (leaving == choice.leaving).all():
            return reasons
        choice.leaving = leaving


def _blocked(choice: Choice, node: Node, read: dict[Node, tuple[int, Array]]) -> Iterable[tuple[int, Reason]]:
    role = node.role
    assert isinstance(role, Linear)
    x = node.inputs[role.x]
    assert x is not None
    gone = choice.gone(node.outputs[0])
    count = 0 if gone is None else int(gone.sum())
    if node not in read or read[node][0] != count:
        read[node] = count, read_by(role, None if gone is None else ~gone)
    values = choice.constants(x)
    sets, needed, full = choice.sets[x], read[node][1], _no_room(role)
    for channel in np.flatnonzero(needed & ~(values == 0)).tolist():
        if np.isnan(values[channel]):
            yield int(sets[channel]), Reason(_LIVE, node.name)
        elif full:
            yield int(sets[channel]), Reason(full, node.name)


def _no_room(role: Linear) -> str:
    """Why no constant but zero can move into the bias; "" if it can."""
    if role.padded:
        return PADDED
    return role.bias_open or ("" if role.bias is None else why_not_cut(role.bias))
