"""What reads one tensor, decided by the numbers that are stored for it: as a layer with weights, as a map of
each channel, or as a sum of layers. Nothing is computed on random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bnfold.proof import gone, layers, sums
from bnfold.proof.claims import CHANNELS, SUMS, WEIGHTS, Held, Image
from bnfold.proof.maps import Channels, map_of, stayed, vanished
from bnfold.proof.operator import precision_of
from bnfold.proof.scope import Node, Scope

__all__ = ["Part", "Rounds", "decided"]


class Part(NamedTuple):
    """A region of one model that reads one tensor, and the tensor that it makes."""

    scope: Scope
    nodes: Sequence[Node]
    reads: str
    makes: str


class Rounds(NamedTuple):
    """How often numbers may have been rounded: factors, summands, any of both, and those of what vanished."""

    scaled: int
    moved: int
    most: int
    vanished: int


def decided(
    a: Part, b: Part, x: Image, y: Image, shape: Callable[[], Sequence[int]], rounds: Rounds, where: str
) -> Held | None:
    """Whether part `b` makes the image `y` of what part `a` makes, of the image `x` of what that reads.

    shape: of what `a` reads, if it is asked for. where: the node's name.

    Returns:
        None if stored numbers do not decide it.

    Raises:
        Wrong: a number is another one.
    """
    if b.nodes:
        worst = _by_weights(a, b, x, y, shape, rounds, where)
        if worst is not None:
            return Held(WEIGHTS, worst)
    elif x.name != y.name:
        return None
    if x.cut is not None or y.cut is not None:
        return None
    sizes = shape()
    if len(sizes) > 1 and _by_channels(a, b, x, y, sizes, rounds, where):
        return Held(CHANNELS)
    ours = sums.kernel_of(a.scope, a.nodes, a.makes, a.reads, sizes, x)
    theirs = sums.kernel_of(b.scope, b.nodes, b.makes, b.reads, sizes)
    if ours is None or theirs is None:
        return None
    worst = sums.compare(ours, theirs, y, len(sizes), where, rounds.most)
    return None if worst is None else Held(SUMS, worst)


def _by_weights(
    a: Part, b: Part, x: Image, y: Image, shape: Callable[[], Sequence[int]], rounds: Rounds, where: str
) -> float | None:
    ours = layers.layer_of(a.scope, a.nodes, a.makes, scaled=True)
    theirs = layers.layer_of(b.scope, b.nodes, b.makes)
    if ours is None or theirs is None or ours.x != a.reads or theirs.x != b.reads:
        return None
    ends = layers.ends_of(ours, x, y)
    if ends is not None and (x.cut is not None or y.cut is not None):
        left = gone.left_of(ours, ends, len(shape()), x.cut, y.cut)
        if left is None:
            return None
        ours, ends = left
    return None if ends is None else layers.compare(ours, theirs, ends, where, rounds[:2])


def _by_channels(
    a: Part, b: Part, x: Image, y: Image, shape: Sequence[int], rounds: Rounds, where: str
) -> bool:
    axis = 1 - len(shape)
    at = Channels(axis, shape[1], len(shape), axis)
    ours = map_of(a.scope, a.nodes, a.reads, a.makes, at)
    theirs = map_of(b.scope, b.nodes, b.reads, b.makes, at)
    if ours is None or theirs is None:
        return False
    if b.nodes:
        return stayed(ours, theirs, x, y, at, rounds.most)
    return vanished(ours, x, y, at, where, (rounds.vanished - 1) * 2 * precision_of("float32"))
