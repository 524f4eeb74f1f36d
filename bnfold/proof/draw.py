"""The numbers that regions are computed on.

Two analytic functions that agree at one random point are equal with probability one. For those that are
analytic in pieces every piece must be met: so inputs have both signs and several sizes, and a third of them
lie around the numbers that stand in the region.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from bnfold.proof.claims import Image, Undecided
from bnfold.proof.dropped import with_constants
from bnfold.proof.layers import CONVOLUTIONS, PRODUCTS
from bnfold.proof.operator import Array, is_float, wide
from bnfold.proof.side import Side

__all__ = ["TRIES", "Premises", "between", "break_points", "feeds"]

Premises: TypeAlias = "Mapping[str, tuple[Array, Array]]"

# The inputs' size, whether some lie around the region's numbers, and whether all of a channel have one sign
# (a maximum of many is hardly ever negative else). Each is tried with its negative too. The first two come
# always, and without those numbers: beside one of 1e4, what a small bias does cannot be told from rounding.
# The later ones, until all pieces were met.
SIZES = np.array([0.1, 1.0, 1.0, 8.0])  # of single numbers
PLAIN, SIGNED, NEAR_POINTS = (False, False), (False, True), (True, False)
TRIES = [(1.0, *PLAIN), (1 / 64, *PLAIN), (1.0, *SIGNED)]
TRIES += [(size, *NEAR_POINTS) for size in (1.0, 64.0, 4096.0)]
TRIES += [(1.0, *PLAIN), (1.0, *SIGNED), (1.0, *NEAR_POINTS), (8.0, *SIGNED)] * 3


def feeds(
    leaves: Sequence[str],
    image: Callable[[str], Image],
    values: Callable[[str], Array],
    premises: Premises,
    points: Array,
    scale: float,
    signed: bool,
    rng: np.random.Generator,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Random numbers for the leaves, and what they are in the folded model."""
    feed_a: dict[str, Array] = {}
    feed_b: dict[str, Array] = {}
    for leaf in leaves:
        like, at = values(leaf), image(leaf)
        if not is_float(like):
            feed_a[leaf] = feed_b[at.name] = like
            continue
        if leaf in premises:
            x = between(*premises[leaf], like.shape, rng)
        else:
            x = scale * _drawn(like.shape, points, signed, rng)
        if at.cut is not None:
            x = with_constants(x, at, at.cut)
        other = np.asarray(x if at.decoded else at.p * x + at.q)
        if at.name in feed_b:  # two tensors with one counterpart: the later one follows from it
            other = feed_b[at.name]
            if at.cut is not None or (not at.decoded and not np.all(at.p)):
                raise Undecided(f"{leaf} shares its counterpart, and has lost its value there")
            x = np.asarray(at.p * other + at.q if at.decoded else (other - at.q) / at.p)
        elif at.decoded:
            x = np.asarray(at.p * other + at.q)
        elif at.cut is not None:
            other = other.take(at.cut.kept, at.cut.axis)
        if x.shape != like.shape or (other.shape != like.shape and at.cut is None):
            raise Undecided(f"the claim about {leaf} does not fit its shape {like.shape}")
        feed_a[leaf], feed_b[at.name] = x, other
    return feed_a, feed_b


def between(low: Array, high: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random numbers in a range, of which an end may be infinite."""
    anything = np.clip(_drawn(shape, np.zeros(0), False, rng), low, high)
    width = np.where(np.isfinite(high) & np.isfinite(low), high, 0) - np.where(np.isfinite(low), low, 0)
    inside = np.where(np.isfinite(low), low, 0) + np.maximum(width, 0) * rng.random(shape)
    return np.where(np.isfinite(low) & np.isfinite(high), inside, anything)


def break_points(a: Side, b: Side) -> Array:
    """Numbers above 3 that stand in the region, but for weights: what is near zero is met anyway."""
    found: list[float] = []
    for side in (a, b):
        for node in side.nodes:
            if node.op in CONVOLUTIONS or node.op in PRODUCTS:
                continue
            found += node.numbers().values()
            for name in node.inputs:
                value = side.scope.constant(name) if name else None
                if value is not None and is_float(value) and value.size:
                    found += [float(v) for v in wide(value).reshape(-1)[:: max(1, value.size // 16)]]
    points: Array = np.array(found)
    return np.asarray(points[np.isfinite(points) & (np.abs(points) > 3) & (np.abs(points) < 1e30)])


def _drawn(shape: tuple[int, ...], points: Array, signed: bool, rng: np.random.Generator) -> Array:
    x = rng.standard_normal(shape) * SIZES[rng.integers(0, SIZES.size, shape, np.int8)]
    if points.size:
        near = rng.choice(points, shape) * rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.6, shape)
        x = np.where(rng.random(shape) < 0.34, near, x)
    if signed:
        channels = (*shape[:2], *(1 for _ in shape[2:]))
        x = np.abs(x) * rng.choice([-1.0, 1.0], channels)
    return np.asarray(x)
