"""Activations as the kernels read them: dense, in torch's order of dimensions or channels last."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Array", "aligned", "array_of", "dense", "is_ordered", "order_of", "ordered"]


class Array(NamedTuple):
    """How a dense tensor is read."""

    outer: int
    channels: int
    inner: int


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The tensor itself if it is dense, in the order of `like` where that is given; else a copy that is.

    Channels last stays channels last, also through slices of a batch that are not dense.
    """
    return ordered(x, order_of(x if like is None else like))


def is_ordered(x: Tensor, order: torch.memory_format) -> bool:
    """Whether a tensor is dense in an order of dimensions, and its values are those in memory."""
    return x.is_contiguous(memory_format=order) and not x.is_neg()


def ordered(x: Tensor, order: torch.memory_format) -> Tensor:
    """The tensor itself if it is dense in an order of dimensions; else a copy that is."""
    if not torch.compiler.is_compiling() and is_ordered(x, order):
        return x
    return x.resolve_neg().contiguous(memory_format=order)


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def order_of(x: Tensor) -> torch.memory_format:
    """The order of dimensions in which `dense` leaves a tensor."""
    if x.is_contiguous():
        return torch.contiguous_format
    last = _LAST.get(x.dim())
    if last is None:
        return torch.contiguous_format
    return last if x.is_contiguous(memory_format=last) or _channels_last(x) else torch.contiguous_format


def _channels_last(x: Tensor) -> bool:
    """Whether torch's operators take the strides of a tensor that is not dense for channels last."""
    least = 0
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        stride = x.stride(axis)
        if stride < least or stride == 0 or (axis == 0 and least == x.stride(1)):
            return False
        least = stride * x.shape[axis]
    return True


def array_of(x: Tensor) -> Array:
    """How a dense tensor is read."""
    channels = x.shape[1]
    rest = x.numel() // max(1, channels)
    planes = x.is_contiguous() and x.numel() != channels * x.shape[0]
    return Array(x.shape[0], channels, rest // x.shape[0]) if planes else Array(rest, channels, 1)


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy of it that starts at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()
