"""Tensors of which channels are gone, as arrays: what is known of these, and what was kept in its place."""

from __future__ import annotations

import numpy as np

from bnfold.certificate import Cut
from bnfold.proof.claims import Image, Undecided, Wrong
from bnfold.proof.operator import Array

__all__ = ["gone_channels", "put", "with_constants"]


def with_constants(x: Array, image: Image, cut: Cut) -> Array:
    """Numbers for a tensor of the original, with what its gone channels are known to be."""
    gone, constants = gone_channels(cut, x.shape)
    known = np.where(np.isnan(constants), image.p * x + image.q, constants)
    return np.where(gone, (known - image.q) / image.p, x)


def gone_channels(cut: Cut, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Which channels are gone, and what they were, as arrays that broadcast against a tensor."""
    if not -len(shape) <= cut.axis < len(shape) or shape[cut.axis] != cut.constants.size:
        raise Undecided(f"the claim about its channels does not fit its shape {shape}")
    at = [1] * len(shape)
    at[cut.axis] = -1
    gone = np.ones(cut.constants.size, bool)
    gone[cut.kept] = False
    return gone.reshape(at), cut.constants.reshape(at)


def put(kept: Array, others: Array, cut: Cut, shape: tuple[int, ...]) -> Array:
    """A tensor of all its channels, from those that were kept and something for the others."""
    whole = np.array(np.broadcast_to(others, shape))
    if kept.shape != whole.take(cut.kept, cut.axis).shape:
        raise Wrong(f"its shape is {kept.shape}")
    np.moveaxis(whole, cut.axis, 0)[cut.kept] = np.moveaxis(kept, cut.axis, 0)
    return whole
