"""Count, mean and sum of squared deviations of each channel, merged without cancellation.

Two sets of values have the mean `(n*a + m*b) / (n + m)` and the squared deviations
`A + B + (a - b)^2 * n*m / (n + m)` (Chan, Golub and LeVeque, 1983). Sums of squares are never formed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Moments", "gathered", "moments"]

AT_ONCE = 2**20  # values that are copied to float64 at one time: 8 MiB, which caches hold


@dataclass(frozen=True)
class Moments:
    """Of a set of values. count: shape (). mean, m2 (the squared deviations): shape (C,). All float64."""

    count: Tensor
    mean: Tensor
    m2: Tensor

    def merged(self, other: Moments) -> Moments:
        """Those of both sets."""
        count = self.count + other.count
        part = other.count / count.clamp(min=1)
        gap = other.mean - self.mean
        return Moments(count, self.mean + gap * part, self.m2 + other.m2 + gap * gap * self.count * part)

    def variance(self) -> Tensor:
        """As running statistics hold it: divided by the count less one (by 1 for a single value)."""
        return self.m2 / (self.count - 1).clamp(min=1)


def moments(x: Tensor) -> Moments:
    """Those of a tensor (N, C, ...), in two passes over float64 copies of few examples at a time."""
    examples: tuple[Tensor, ...] = torch.split(x.detach(), max(1, AT_ONCE * len(x) // max(1, x.numel())))
    return functools.reduce(Moments.merged, map(_moments, examples))


def _moments(x: Tensor) -> Moments:
    wide = x.transpose(0, 1).reshape(x.shape[1], -1).double()
    count = torch.tensor(float(wide.shape[1]), dtype=torch.float64, device=x.device)
    if not wide.shape[1]:
        none = wide.new_zeros(wide.shape[0])
        return Moments(count, none, none)
    mean = wide.mean(1)
    return Moments(count, mean, (wide - mean[:, None]).square().sum(1))


def gathered(here: Moments, group: Any = None, note: float = 0) -> tuple[Moments, Tensor]:
    """Those of all ranks' sets together, merged in the order of the ranks, and the note of each rank.

    One all-gather. The notes: shape (ranks,), float64.
    """
    row = torch.cat([torch.full_like(here.count[None], note), here.count[None], here.mean, here.m2])
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    channels = here.mean.shape[0]
    every = (Moments(row[1], row[2 : 2 + channels], row[2 + channels :]) for row in rows)
    return functools.reduce(Moments.merged, every), torch.stack([row[0] for row in rows])
