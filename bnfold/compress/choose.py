"""How much a channel matters, and which ones go: one threshold for all groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnfold.compress.groups import Group, Member
from bnfold.compress.layers import sides
from bnfold.errors import UsageError

__all__ = ["IMPORTANCES", "Selection", "Importance", "choose", "importance_of"]

Importance = Callable[[str, list[Tensor]], Any]
IMPORTANCES = ("mean", "max", "weighted")


def importance_of(module: nn.Module, group: Group, measure: str | Importance) -> Tensor:
    """How much each channel of a group matters: float64, [channels], on the CPU.

    Args:
        module: the network.
        group: one with batch norms.
        measure: one of IMPORTANCES, as `slim` explains them, or a function of the group's name and its
            |gamma| (a tensor [channels] for each batch norm) that gives a number for each channel.

    Raises:
        UsageError: the function gives something else.
    """
    gammas = [_spread(group, norm, _gamma(module, norm)) for norm in group.ruling]
    if callable(measure):
        found = torch.as_tensor(measure(group.name, gammas)).detach().double().cpu()
        if found.shape != (group.channels,) or not bool(found.isfinite().all()):
            raise UsageError(
                f"importance gave {list(found.shape)} values for {group.name}, "
                f"not [{group.channels}] finite ones"
            )
        return found
    every = torch.stack(gammas)
    found = every.max(0).values if measure == "max" else every.mean(0)
    if measure == "weighted":
        found = found * _reading(module, group)
    return found.nan_to_num(nan=math.inf)  # what is broken is not ours to remove


def _gamma(module: nn.Module, norm: Member) -> Tensor:
    scale = module.get_submodule(norm.layer).weight
    assert isinstance(scale, Tensor)
    return scale.detach().double().abs().cpu()


def _spread(group: Group, member: Member, values: Tensor) -> Tensor:
    """The mean over what of a layer belongs to each channel of the group."""
    at, of = torch.tensor(member.at), torch.tensor(member.of)
    total = torch.zeros(group.channels, dtype=torch.float64).index_add(0, of, values[at])
    return total / torch.bincount(of, minlength=group.channels).clamp(min=1)


def _reading(module: nn.Module, group: Group) -> Tensor:
    """The Euclidean norm of all weights that read a channel."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member in group.members:
        if member.side == "in":
            layer = module.get_submodule(member.layer)
            axis = sides(layer)["in"].axes["weight"]
            assert isinstance(layer.weight, Tensor)
            squares = layer.weight.detach().double().cpu().square().transpose(0, axis).flatten(1).sum(1)
            total.index_add_(0, torch.tensor(member.of), squares[torch.tensor(member.at)])
    return total.sqrt()


@dataclass(frozen=True)
class Selection:
    """gone: by the name of a group, its channels that go. threshold: the largest importance of one that went.
    reached: the share of the batch norms' channels that go. most: the share that could have gone.
    """

    gone: dict[str, frozenset[int]]
    threshold: float
    reached: float
    most: float


def choose(
    groups: Collection[Group], values: Mapping[str, Tensor], ratio: float, floor: float, round_to: int
) -> Selection:
    """Which channels go: the least important of all groups, until their batch norms lose `ratio` of theirs.

    Args:
        groups: those whose channels can go.
        values: the importance of each group's channels, by its name.
        ratio: the share of all batch norm channels of these groups; a channel of a group counts as often as
            batch norms have it.
        floor: the share of each group's channels that stays in any case, the most important ones; at least
            one channel.
        round_to: each group keeps a multiple of that, the nearest, or all of its channels.

    Of a group in blocks, the least important of each block are one unit, then the second of each, and so on.
    """
    units = {g.name: _units(values[g.name], g.blocks) for g in groups}
    weights = {g.name: g.blocks * sum(len(norm.at) for norm in g.norms) / g.channels for g in groups}
    total = sum(weights[name] * len(some) for name, some in units.items())
    steps = {g.name: math.lcm(g.blocks, round_to) // g.blocks for g in groups}
    least = {}
    for g in groups:
        kept = max(1, math.ceil(floor * len(units[g.name])))
        least[g.name] = min(len(units[g.name]), steps[g.name] * math.ceil(kept / steps[g.name]))
    able = [
        (unit.importance, place, name)
        for place, (name, some) in enumerate(units.items())
        for unit in some[: len(some) - least[name]]
    ]
    most = sum(weights[name] for _, _, name in able)
    counts, removed = dict.fromkeys(units, 0), 0.0
    for _, _, name in sorted(able):
        if removed + weights[name] / 2 > ratio * total:
            break
        counts[name] += 1
        removed += weights[name]
    for name, step in steps.items():
        counts[name] = len(units[name]) - _rounded(len(units[name]), counts[name], least[name], step)
    went = {name: some[: counts[name]] for name, some in units.items() if counts[name]}
    gone = {name: frozenset(at for unit in some for at in unit.channels) for name, some in went.items()}
    threshold = max((unit.importance for some in went.values() for unit in some), default=0.0)
    reached = sum(weights[name] * len(some) for name, some in went.items())
    return Selection(gone, threshold, reached / total if total else 0.0, most / total if total else 0.0)


class _Unit(NamedTuple):
    """What goes at once: a channel, or one of each block. importance: the mean of theirs."""

    importance: float
    channels: tuple[int, ...]


def _units(values: Tensor, blocks: int) -> list[_Unit]:
    """From the least important on."""
    parts = values.chunk(blocks)
    orders = [torch.argsort(part, stable=True) + at * len(part) for at, part in enumerate(parts)]
    rows = torch.stack(orders, 1)
    means = values[rows].mean(1).tolist()
    return [_Unit(mean, tuple(row)) for mean, row in zip(means, rows.tolist(), strict=True)]


def _rounded(count: int, gone: int, least: int, step: int) -> int:
    """How many of `count` stay: the multiple of `step` nearest to what is left, or all."""
    kept = count - gone
    nearest = step * math.floor(kept / step + 0.5)
    if count - kept < abs(nearest - kept):
        return count
    return min(count, max(least, nearest))
