"""A region of each model on the same random numbers, in float64.

Two analytic functions that agree at one random point are equal with probability one. Of functions that are
analytic in pieces every piece has to be met (draw.py, pieces.py), and those that jump have to read the same
(steps.py). What the stored numbers' rounding may do is found by moving them (rounding.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bnfold.proof import steps
from bnfold.proof.claims import EVALUATED, Agrees, Entry, Held, Image, TooLong, Undecided, Wrong
from bnfold.proof.draw import TRIES, Premises, break_points, feeds
from bnfold.proof.dropped import gone_channels, put
from bnfold.proof.operator import Array, is_float, precision_of
from bnfold.proof.rounding import DRAWS, new_attributes, new_constants, rounding
from bnfold.proof.scope import MOVES
from bnfold.proof.side import Side

__all__ = ["Judge", "compare"]

# How much more than the root mean square of what rounding does a number may be off.
TIMES = 16.0
LOOKS = 2  # since the signs that are drawn for two or three numbers cancel each time, once in 65,000 times
UNSURE = 4.0  # the same of the original's constants, where nobody knows what was rounded: it is no proof
# Relative, where nothing is rounded.
EXACT = 1e-10
# A fact about an input that is missing is off by its whole size; what is nearly right is a wrong number.
NEAR = 1e-3
MOST_WORK = 4e9  # multiplications of all runs of a region: some seconds
# What the rounding of new constants may explain, relative: beyond it, it could explain anything.
MOST = {"float16": 0.1, "bfloat16": 0.3}


def compare(
    a: Side,
    b: Side,
    leaves: Sequence[str],
    image: Callable[[str], Image],
    y: Image,
    values: Callable[[str], Array],
    rng: np.random.Generator,
    rounds: int = 1,
    premises: Premises | None = None,
    unsure: bool = False,
) -> Held:
    """Whether region `b`, fed with the images of the leaves, gives the image of what region `a` gives.

    Args:
        a: of the original.
        b: of the folded model.
        leaves: what `a` reads.
        image: of a leaf.
        y: of the output.
        values: something of the type and shape of a leaf; integers and booleans are taken as they are.
        rng: for the numbers.
        rounds: how often constants may have been rounded: beyond once, those of the original as well.
        premises: what leaves keep to, as the lowest and the highest number.
        unsure: nobody knows which numbers were rounded on the way. What that could be is not called wrong.

    Raises:
        Wrong: it does not. Undecided: it cannot be told.
    """
    points = break_points(a, b)
    behind = a.pieces(leaves) or b.pieces([image(leaf).name for leaf in leaves])
    # Between facts about inputs not every place has both sides; some place has.
    a.strict = b.strict = not any(leaf in (premises or {}) for leaf in leaves)
    several = len(a.nodes) > 1 or len(b.nodes) > 1
    # What only moves numbers is decided by one point, as all affine functions are.
    moves = all(node.op in MOVES for node in (*a.nodes, *b.nodes))
    always = 1 if moves else 6 if behind else 4 if points.size else 3 if several else 2
    jumps, judge = "", Judge(a, b, y, rng, rounds, unsure)
    for turn, (scale, near, signed) in enumerate(TRIES, 1):
        seed = int(rng.integers(1 << 32))
        for sign in (scale, -scale) if turn != 2 and not moves else (scale,):
            drawn = np.random.default_rng(seed)
            some = points if near else points[:0]
            feed_a, feed_b = feeds(leaves, image, values, premises or {}, some, sign, signed, drawn)
            if turn > 1:
                _bounded((a.work + b.work) * (2 * always + DRAWS))
            judge.look(feed_a, feed_b)
            jumps = jumps or steps.unlike(a.steps, b.steps)
        missed = a.missed() or b.missed()
        if turn >= always and missed is None:
            judge.rest()
            if jumps:
                raise Undecided(jumps)
            return Held(EVALUATED)
    assert missed is not None
    node, what = missed
    raise Undecided(f"{node.name} ({node.op}): {what}, in all that was tried")


def _bounded(work: float) -> None:
    if work > MOST_WORK:
        raise TooLong("it would take too long to compute it often enough")


class Point(NamedTuple):
    """Both regions on one feed. gave: the output of each; want, got: what the folded model should have given,
    and has; error: of each number; largest: the largest finite number that is wanted.
    """

    feeds: tuple[Mapping[str, Array], Mapping[str, Array]]
    gave: tuple[Array, Array]
    want: Array
    got: Array
    error: Array
    largest: float


class Judge:
    """Whether two regions agree, one feed after the other. The arguments are those of `compare`."""

    def __init__(
        self, a: Side, b: Side, y: Image, rng: np.random.Generator, rounds: int = 1, unsure: bool = False
    ) -> None:
        self.a, self.b, self.y, self.rng, self.rounds, self.unsure = a, b, y, rng, rounds, unsure
        self.largest = 0.0  # of all feeds
        self.zeros: list[tuple[Point, Array]] = []  # feeds that should have given nothing but zeros

    def rest(self) -> None:
        """What should be zero, and is not, is judged by what else comes out. Raises Wrong, Undecided."""
        for point, allowed in self.zeros:
            self._explain(point._replace(largest=self.largest), allowed)

    def look(self, feed_a: Mapping[str, Array], feed_b: Mapping[str, Array]) -> None:
        """One feed. Raises Wrong, Undecided."""
        ya, yb = self.a.run(feed_a), self.b.run(feed_b)
        if not is_float(ya) or not is_float(yb):
            if ya.shape != yb.shape or ya.dtype.kind != yb.dtype.kind or not np.array_equal(ya, yb):
                raise Wrong("integers or truth values differ")
            return
        with np.errstate(all="ignore"):
            want, got = self._beside(ya, yb)
            if 2 * np.isfinite(want).sum() < want.size:
                raise Undecided("most of what comes out is not finite")
            self.a.gave(want)
            error = np.abs(want - got)
            error[(want == got) | (np.isnan(want) & np.isnan(got))] = 0.0
            error[np.isnan(error)] = np.inf
            largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
            allowed = EXACT * (np.abs(want) + np.abs(self.y.q)) + 1e-13 * largest
            if self.y.cut is not None:  # a constant is what rounded numbers have made it
                is_gone, _ = gone_channels(self.y.cut, want.shape)
                allowed = allowed + is_gone * TIMES * precision_of("float32") * np.abs(want)
        self.largest = max(self.largest, largest)
        if (error > allowed).any():
            point = Point((feed_a, feed_b), (ya, yb), want, got, error, largest)
            if largest > 0:
                self._explain(point, allowed)
            else:
                self.zeros.append((point, allowed))
        if loose := self.a.loose or self.b.loose:
            raise Agrees(f"it agrees, but {loose} could be computed in float32 only")

    def _beside(self, ya: Array, yb: Array) -> tuple[Array, Array]:
        """What the claim makes of both outputs: what is expected, and what is there."""
        y = self.y
        want, got = (ya, y.p * yb + y.q) if y.decoded else (y.p * ya + y.q, yb)
        if y.cut is not None:  # what is gone has to be what it is said to have been
            _, constants = gone_channels(y.cut, want.shape)
            got = put(got, np.where(np.isnan(constants), want, constants), y.cut, want.shape)
        if want.shape != got.shape:
            raise Wrong(f"its shape is {got.shape}, and {want.shape} is expected")
        return want, got

    def _explain(self, at: Point, allowed: Array) -> None:
        """Whether rounding explains an error: of the constants that only `b` has, and where numbers were
        rounded on the way, of those of `a` too. Raises Wrong, Undecided.
        """
        a, b, y, error = self.a, self.b, self.y, at.error
        (feed_a, feed_b), (ya, yb) = at.feeds, at.gave
        new, old = new_constants(a, b), a.constants() if self.rounds > 1 else {}
        here, there = (Image(""), y) if y.decoded else (y, Image(""))
        most = max([NEAR, *(MOST.get(v.dtype.name, NEAR) for v in (new | old).values())]) * at.largest
        if at.largest == 0:  # on every feed: there is nothing but what rounding does to measure by
            most = np.inf
        if error.max() <= most:  # else no rounding explains it
            _bounded(b.work * DRAWS)
            moved, exact = np.zeros(1), allowed
            for _ in range(LOOKS):
                found = rounding(b, feed_b, new, new_attributes(a, b), yb, there, self.rng)
                if y.cut is not None:
                    found = put(np.broadcast_to(found, yb.shape), np.zeros(1), y.cut, at.want.shape)
                moved = np.maximum(moved, found)
                allowed = exact + TIMES * moved
                if not (error > allowed).any():
                    break
            if old and (error > allowed).any():
                _bounded((a.work + b.work) * DRAWS)
                more = rounding(a, feed_a, old, [], ya, here, self.rng)
                allowed = allowed + TIMES * (self.rounds - 1) * more
        if not (error > allowed).any() and allowed.max() <= most:
            return
        if self.unsure and error.max() <= most and not (a.loose or b.loose):
            _bounded((a.work + b.work) * DRAWS)
            looser = allowed + UNSURE * rounding(a, feed_a, a.constants(), [], ya, here, self.rng)
            if not (error > looser).any():
                raise Undecided("rounding on the way to its constants could explain the difference")
        self._refuse(at, np.minimum(allowed, most))

    def _refuse(self, point: Point, allowed: Array) -> None:
        """Raises what follows from an error that is larger than what is allowed."""
        excess = np.nan_to_num(point.error - allowed, nan=np.inf)
        if not (excess > 0).any():
            raise Undecided("the rounding of its constants could explain any difference")
        at = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
        entry = Entry("the output", at, float(point.got[at]), float(point.want[at]))
        near = float(point.error.max()) < NEAR * point.largest
        if near and (loose := self.a.loose or self.b.loose):
            raise Agrees(f"{loose} could be computed in float32 only, and it does not agree exactly")
        raise Wrong("it does not agree", entry, final=near)
