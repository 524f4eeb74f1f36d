"""Tensors as arrays and back, of every floating point type (numpy has no bfloat16 of its own)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bnfold.fold.graph import Array

__all__ = ["FLOATS", "dtype_name", "to_array", "to_tensor"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    """As the solver spells it: "float32", "bfloat16", ..."""
    return str(dtype).removeprefix("torch.")


def to_array(tensor: torch.Tensor) -> Array:
    """The numbers, on the CPU; shares memory where it can."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in FLOATS:
        tensor = tensor.float()  # eight bits and fewer, which numpy does not know
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def to_tensor(array: Any, like: torch.Tensor) -> torch.Tensor:
    """A tensor of `like`'s type and device with its own memory; laid out like it if it has its shape."""
    array = np.asarray(array, order="C")
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)  # exact
    made = torch.tensor(array)
    if made.shape == like.shape:  # channels last, say
        return torch.empty_like(like, requires_grad=False).copy_(made)
    return made.to(device=like.device, dtype=like.dtype)
