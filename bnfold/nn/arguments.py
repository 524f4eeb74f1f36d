"""What travels from the modules to the kernels and back: a batch norm's arguments, and what backward needs.

They are tuples of tensors and numbers, since autograd and torch's operators take arguments flat: `*given`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Arguments", "Running", "Saved"]


class Arguments(NamedTuple):
    """Of `act((x - mean) / sqrt(var + eps) * weight + bias + residual)`.

    x: (N, C, ...). residual: as x. weight, bias: (C,). relu: whether negative values become zero.
    """

    x: Tensor
    residual: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    relu: bool = False

    @property
    def masked(self) -> bool:
        """Whether only a mask tells backward which values passed the ReLU."""
        return self.relu and self.residual is not None


class Running(NamedTuple):
    """Statistics that are kept over batches.

    mean, var: (C,). In training they are updated in place, or None; otherwise the batch norm uses them.
    batches: (), int64: batches seen; in training counted up in place, or None. momentum: weight of the batch
    in mean and var; negative: 1 / batches, counted already.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    batches: Tensor | None = None
    momentum: float = 0.1


class Saved(NamedTuple):
    """What backward needs of forward: x, the mask if one was noted, parameters, and the statistics used."""

    x: Tensor
    mask: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    invstd: Tensor
    relu: bool
