"""Channels that can go: chosen, and checked against the network in which they are masked.

A group that turns out to be impossible is taken out, with the reason, and the choice is made anew.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnfold.compress.choose import IMPORTANCES, Importance, Selection, choose, importance_of
from bnfold.compress.groups import Group, PruningGroups
from bnfold.compress.layers import Removal, mask, prune
from bnfold.errors import UsageError, first_line
from bnfold.report.verification import Verification
from bnfold.verify.blame import first_bad
from bnfold.verify.modules import outputs, verify_modules

__all__ = ["PrunePlan", "PruneOptions", "removals_of", "plan_pruning"]

_SHOWN = 12  # reasons in one message


@dataclass(frozen=True)
class PruneOptions:
    """What is asked for: see `slim`.

    Raises:
        UsageError: a number or a name that makes no sense.
    """

    ratio: float
    importance: str | Importance
    floor: float
    round_to: int
    verify: bool

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"ratio={self.ratio!r}: the share of channels to remove is between 0 and 1")
        if not 0 <= self.floor < 1:
            raise UsageError(
                f"floor={self.floor!r}: the share of channels that stays is at least 0 and below 1"
            )
        if not isinstance(self.round_to, int) or self.round_to < 1:
            raise UsageError(f"round_to={self.round_to!r}: a whole number from 1 on")
        if not callable(self.importance) and self.importance not in IMPORTANCES:
            raise UsageError(
                f"importance={self.importance!r} is unknown. Note: valid choices are "
                f"{', '.join(IMPORTANCES)}, or a function"
            )


@dataclass(frozen=True)
class PrunePlan:
    """The channels that go, and what the check of them found."""

    choice: Selection
    removals: list[Removal]
    verification: Verification | None


def plan_pruning(
    module: nn.Module,
    groups: PruningGroups,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    asked: PruneOptions,
) -> PrunePlan:
    """Choose until all that is chosen can go. `module` is in eval mode, and not changed.

    Raises:
        UsageError: nothing can go, or nothing needs to.
    """
    values = {g.name: importance_of(module, g, asked.importance) for g in groups.all if not g.why}
    while True:
        able = [group for group in groups.all if not group.why]
        if not able:
            raise UsageError(_nothing(module, groups))
        choice = choose(able, values, asked.ratio, asked.floor, asked.round_to)
        if not choice.gone:
            raise UsageError(
                f"ratio={asked.ratio:g} with floor={asked.floor:g} and round_to={asked.round_to} removes no "
                f"channel: {sum(g.channels for g in able)} in {len(able)} groups could go"
            )
        chosen = [group for group in able if group.name in choice.gone]
        if _mark(groups, chosen, choice):
            continue
        check = _Check(module, chosen, choice, args, kwargs, asked.verify)
        if check(len(chosen)):
            return PrunePlan(choice, removals_of(chosen, choice.gone), check.found)
        bad = first_bad(len(chosen), check)
        check(bad)  # for its reason
        chosen[bad - 1].why = check.reason


def removals_of(groups: Collection[Group], gone: Mapping[str, Collection[int]]) -> list[Removal]:
    """What leaves each side of each layer: numbers of its channels as they are before any cut."""
    found: dict[tuple[str, str], frozenset[int]] = {}
    for group in groups:
        for member in group.members:
            each = member.removal(gone[group.name])
            key = each.layer, each.side
            found[key] = found.get(key, frozenset()) | each.gone
    return [Removal(*key, some) for key, some in found.items() if some]


def _mark(groups: PruningGroups, chosen: Collection[Group], choice: Selection) -> bool:
    """Take groups out of which no channels, or none of just these, can go; whether there were any."""
    holders: dict[tuple[str, str, int], str] = {}
    marked = False
    for group in chosen:
        others = {holders.setdefault((m.layer, m.side, at), group.name) for m in group.members for at in m.at}
        others -= {group.name}
        if others:
            group.why = f"some of its channels are also those of {', '.join(sorted(others))}"
        elif not groups.together(group, choice.gone[group.name]):
            group.why = "some of its channels can only go together with others of it"
        marked = marked or bool(group.why)
    return marked


@dataclass
class _Check:
    """Whether the network without the channels of the first groups computes what the masked one does."""

    module: nn.Module
    chosen: list[Group]
    choice: Selection
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    compare: bool
    found: Verification | None = None
    reason: str = ""

    def __call__(self, count: int) -> bool:
        removals = removals_of(self.chosen[:count], self.choice.gone)
        small = copy.deepcopy(self.module)
        prune(small, removals)
        try:
            outputs(small, self.args, self.kwargs)
        except Exception as error:  # of any kind: the module's code may hold a number of channels
            self.reason = f"the network does not run without some of them: {first_line(error)}"
            return False
        if not self.compare:
            return True
        masked = copy.deepcopy(self.module)
        mask(masked, removals)
        self.found = verify_modules(masked, small, self.args, self.kwargs)
        self.reason = "removing some of them changes what the others compute"
        return self.found.status != "failed"


def _nothing(module: nn.Module, groups: PruningGroups) -> str:
    unseen = [f"  {name}: torch-pruning does not see it" for name in groups.unseen]
    lines = [f"nothing to prune in {type(module).__name__}: all channels have to stay"]
    every = [f"  {group.name} ({group.channels} channels): {group.why}" for group in groups.all] + unseen
    lines += every[:_SHOWN]
    if len(every) > _SHOWN:
        lines.append(f"  and {len(every) - _SHOWN} more")
    return "\n".join(lines)
