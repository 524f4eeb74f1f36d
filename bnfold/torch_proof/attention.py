"""Attention in one call, as three: scores, a Softmax of them, and a product with the values.

What it gives says little of its scores where one of them is all of a row: in three calls, the Softmax is
seen.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bnfold.torch_proof.operators import Stated

__all__ = ["in_parts", "product", "scores", "shape_of_scores", "weights"]


def in_parts(call: Stated) -> bool:
    """Whether a call is attention without drop-out, with as many heads everywhere."""
    known = call.library == "aten" and call.name == "scaled_dot_product_attention"
    stated = isinstance(call["scale"], (float, int, type(None))) and type(call["is_causal"]) is bool
    return known and stated and call["dropout_p"] == 0 and not call["enable_gqa"]


def scores(
    query: Tensor, key: Tensor, causal: bool, scale: float | None, mask: Tensor | None = None
) -> Tensor:
    """Minus infinity where a mask says so."""
    made = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if causal:
        made = made.masked_fill(torch.ones_like(made, dtype=torch.bool).triu(1), -math.inf)
    if mask is None:
        return made
    return made.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else made + mask


def shape_of_scores(query: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """From those of what they are made of."""
    return (*np.broadcast_shapes(query[:-2], key[:-2]), query[-2], key[-2])


def weights(made: Tensor) -> Tensor:
    """Each row adds up to 1."""
    return made.softmax(-1)


def product(made: Tensor, value: Tensor) -> Tensor:
    """What comes out."""
    return made @ value
