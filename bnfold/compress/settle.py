"""Channels that can go: chosen, and checked against the network in which they say nothing.

A group that turns out to be impossible is taken out, with the reason, and the choice is made anew.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnfold.compress.choose import Choice, Importance, choose, importance_of
from bnfold.compress.groups import Group, Groups
from bnfold.compress.layers import Cut, cut, silence
from bnfold.errors import UsageError, first_line
from bnfold.report.verification import Verification
from bnfold.verify.blame import first_bad
from bnfold.verify.modules import outputs, verify_modules

__all__ = ["Settled", "Wish", "cuts_of", "settle"]

_SHOWN = 12  # reasons in one message


@dataclass(frozen=True)
class Wish:
    """What is asked for: see `slim`."""

    ratio: float
    importance: str | Importance
    floor: float
    round_to: int
    verify: bool


@dataclass(frozen=True)
class Settled:
    """The channels that go, and what the check of them found."""

    choice: Choice
    cuts: list[Cut]
    verification: Verification | None


def settle(
    module: nn.Module, groups: Groups, args: tuple[Any, ...], kwargs: Mapping[str, Any], wish: Wish
) -> Settled:
    """Choose until all that is chosen can go. `module` is in eval mode, and not changed.

    Raises:
        UsageError: nothing can go, or nothing needs to.
    """
    values = {g.name: importance_of(module, g, wish.importance) for g in groups.all if not g.why}
    while True:
        able = [group for group in groups.all if not group.why]
        if not able:
            raise UsageError(_nothing(module, groups))
        choice = choose(able, values, wish.ratio, wish.floor, wish.round_to)
        if not choice.gone:
            raise UsageError(
                f"ratio={wish.ratio:g} with floor={wish.floor:g} and round_to={wish.round_to} removes no "
                f"channel: {sum(g.channels for g in able)} in {len(able)} groups could go"
            )
        chosen = [group for group in able if group.name in choice.gone]
        if _mark(groups, chosen, choice):
            continue
        check = _Check(module, chosen, choice, args, dict(kwargs), wish.verify)
        if check(len(chosen)):
            return Settled(choice, cuts_of(chosen, choice.gone), check.found)
        bad = first_bad(len(chosen), check)
        check(bad)  # for its reason
        chosen[bad - 1].why = check.reason


def cuts_of(groups: Collection[Group], gone: Mapping[str, Collection[int]]) -> list[Cut]:
    """What leaves each side of each layer: numbers of its channels as they are before any cut."""
    found: dict[tuple[str, str], frozenset[int]] = {}
    for group in groups:
        for member in group.members:
            each = member.cut(gone[group.name])
            key = each.layer, each.side
            found[key] = found.get(key, frozenset()) | each.gone
    return [Cut(*key, some) for key, some in found.items() if some]


def _mark(groups: Groups, chosen: Collection[Group], choice: Choice) -> bool:
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


class _Check:
    """Whether the network without the channels of the first groups is the one in which they say nothing."""

    def __init__(
        self,
        module: nn.Module,
        chosen: list[Group],
        choice: Choice,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        compare: bool,
    ) -> None:
        self.module, self.chosen, self.choice = module, chosen, choice
        self.args, self.kwargs, self.compare = args, kwargs, compare
        self.found: Verification | None = None
        self.reason = ""

    def __call__(self, count: int) -> bool:
        cuts = cuts_of(self.chosen[:count], self.choice.gone)
        small = copy.deepcopy(self.module)
        cut(small, cuts)
        try:
            outputs(small, self.args, self.kwargs)
        except Exception as error:  # of any kind: the module's code may hold a number of channels
            self.reason = f"the network does not run without some of them: {first_line(error)}"
            return False
        if not self.compare:
            return True
        silent = copy.deepcopy(self.module)
        silence(silent, cuts)
        self.found = verify_modules(silent, small, self.args, self.kwargs, None, None)
        self.reason = "removing some of them changes what the others compute"
        return self.found.status != "failed"


def _nothing(module: nn.Module, groups: Groups) -> str:
    unseen = [f"  {name}: torch-pruning does not see it" for name in groups.unseen]
    lines = [f"nothing to prune in {type(module).__name__}: all channels have to stay"]
    every = [f"  {group.name} ({group.channels} channels): {group.why}" for group in groups.all] + unseen
    lines += every[:_SHOWN]
    if len(every) > _SHOWN:
        lines.append(f"  and {len(every) - _SHOWN} more")
    return "\n".join(lines)
