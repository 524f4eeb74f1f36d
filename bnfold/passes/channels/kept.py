"""Channels that are constant and stay all the same: which node makes them so, what keeps them, and why."""

from __future__ import annotations

import numpy as np

from bnfold.fold.graph import Graph, Node, Role
from bnfold.fold.roles import Linear, Map, Product, Same, Sum
from bnfold.passes.channels.choose import PADDED, Choice
from bnfold.passes.channels.classes import Reason
from bnfold.report.channels import KeptChannels

__all__ = ["kept_constants"]

_JOINED = "joins it with what is not constant"
_WORDS: dict[type[Role], str] = {Map: "sees padding beside it", Product: _JOINED, Same: _JOINED, Sum: _JOINED}


def kept_constants(graph: Graph, choice: Choice) -> list[KeptChannels]:
    """One entry for each node and reason; a channel is told where it first is constant."""
    told: set[int] = set()
    lost = _where_lost(graph, choice)
    found: list[KeptChannels] = []
    for node in graph.nodes:
        by_reason: dict[Reason, list[int]] = {}
        for place, root in _constant_at(choice, node):
            reason = choice.reasons.get(root)
            if root in told or reason is None:
                continue
            told.add(root)
            if root in choice.live:
                reason = lost.get(root, reason)
            by_reason.setdefault(reason, []).append(place)
        found += [KeptChannels(node.name, node.op, tuple(p), r.text, r.where) for r, p in by_reason.items()]
    return found


def _constant_at(choice: Choice, node: Node) -> list[tuple[int, int]]:
    """The places and sets of the channels that are constant in the first output, and stay."""
    y = node.outputs[0] if node.outputs else None
    sets = None if y is None else choice.sets.get(y)
    if y is None or sets is None:
        return []
    places = np.flatnonzero(~np.isnan(choice.constants(y)) & ~choice.leaving[sets])
    return [(int(place), int(sets[place])) for place in places]


def _where_lost(graph: Graph, choice: Choice) -> dict[int, Reason]:
    """For each set the first node that reads it constant and gives something else on it."""
    lost: dict[int, Reason] = {}
    for node in graph.nodes:
        y = node.outputs[0] if node.outputs else None
        sets = None if y is None else choice.sets.get(y)
        if y is None or sets is None:
            continue
        live = np.isnan(choice.constants(y))
        for x in node.inputs:
            if x is None or x not in choice.sets or x.constant is not None:
                continue
            known = ~np.isnan(choice.constants(x))
            if isinstance(node.role, Linear) and node.role.groups > 1:  # a group is one set
                roots = set(choice.sets[x][known].tolist()).intersection(sets[live].tolist())
            else:
                alike = len(known) == len(live)  # else a part, or one of several
                roots = set(sets[known & live].tolist()) if alike else set()
            for root in roots:
                lost.setdefault(root, Reason(_words(node), node.name))
    return lost


def _words(node: Node) -> str:
    role = node.role
    if isinstance(role, Linear):
        if role.split[role.w_in] > 1:
            return "works in groups, and others of its group are not constant"
        return PADDED if role.padded else "does not keep it constant"
    return _WORDS.get(type(role), "does not keep it constant")
