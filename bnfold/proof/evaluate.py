"""A region of each model on the same random numbers, in float64.

Two analytic functions that agree at one random point are equal with probability one. For those that are
analytic in pieces every piece must be met: inputs have both signs and several sizes, a third of them lie
around the numbers that stand in the region, and they are scaled up and down until each piece was met
(pieces.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from bnfold.certificate import Cut
from bnfold.proof import steps
from bnfold.proof.claims import EVALUATED, Agrees, Entry, Held, Image, TooLong, Undecided, Wrong
from bnfold.proof.layers import CONVOLUTIONS, PRODUCTS
from bnfold.proof.operator import Array, Operator, is_float, precision_of, wide
from bnfold.proof.pieces import Met, along, bounds_of, is_shut
from bnfold.proof.scope import Node, Scope, same_bits

__all__ = ["Premises", "Side", "compare"]

Premises: TypeAlias = "Mapping[str, tuple[Array, Array]]"

# Of the rounding of new constants, and how much more than its root mean square may be off.
DRAWS, TIMES = 16, 16.0
LOOKS = 2  # since the signs that are drawn for two or three numbers cancel each time, once in 65,000 times
UNSURE = 4.0  # the same of the original's constants, where nobody knows what was rounded: it is no proof
# Of their inputs only the first one is data: others tell sizes, and no rounding.
SIZED = frozenset({"Resize", "Upsample"})
# Relative, where nothing is rounded.
EXACT = 1e-10
# A fact about an input that is missing is off by its whole size; what is nearly right is a wrong number.
NEAR = 1e-3
MOST_WORK = 4e9  # multiplications of all runs of a region: some seconds
# What the rounding of new constants may explain, relative: beyond it, it could explain anything.
MOST = {"float16": 0.1, "bfloat16": 0.3}
# The inputs' size, whether some lie around the region's numbers, and whether all of a channel have one sign
# (a maximum of many is hardly ever negative else). Each is tried with its negative too. The first two come
# always, and without those numbers: beside one of 1e4, what a small bias does cannot be told from rounding.
# The later ones, until all pieces were met.
PLAIN, SIGNED, NEAR_POINTS = (False, False), (False, True), (True, False)
TRIES = [(1.0, *PLAIN), (1 / 64, *PLAIN), (1.0, *SIGNED)]
TRIES += [(size, *NEAR_POINTS) for size in (1.0, 64.0, 4096.0)]
TRIES += [(1.0, *PLAIN), (1.0, *SIGNED), (1.0, *NEAR_POINTS), (8.0, *SIGNED)] * 3


class Side:
    """A region of one model, with what it reads and gives.

    loose: an operator that could be computed in float32 only, or "". met: of its pieces, by node. strict:
    whether at every place along every axis. steps: what operators that jump have read in the last run.
    """

    def __init__(self, scope: Scope, nodes: Sequence[Node], out: str) -> None:
        self.scope, self.nodes, self.out = scope, nodes, out
        self.loose = ""
        self.met = {node: Met(node) for node in nodes}
        self.steps: list[steps.Step] = []
        self.finite: Array | None = None
        self.used = {out, *(name for node in nodes for name in node.inputs)}
        self.work = self.spent = 0.0  # multiplications of one run, and of all
        self.strict = True

    def constants(self) -> dict[str, Array]:
        """The floating constants that the region's nodes read, and its output if that is one."""
        found: dict[str, Array] = {}
        read = (
            name for node in self.nodes for name in node.inputs[: 1 if node.op in SIZED else None] if name
        )
        for name in (*read, self.out):
            value = self.scope.constant(name)
            if value is not None and is_float(value):
                found[name] = value
        return found

    def run(
        self,
        feed: Mapping[str, Array],
        moved: Mapping[str, Array] | None = None,
        operators: Mapping[Node, Operator] | None = None,
    ) -> Array:
        """The output, from the leaves. moved: other values for constants; operators: others for nodes.

        Raises:
            Undecided: it cannot be computed.
        """
        made, work, jumps = dict(feed), 0.0, list[steps.Step]()
        looked: list[tuple[Node, list[Array | None], list[Array]]] = []

        def value(name: str) -> Array | None:
            if name in made:
                return made[name]
            if moved is not None and name in moved:
                return moved[name]
            stored = self.scope.constant(name) if name else None
            if name and stored is None:
                raise Undecided(f"{name} is not known here")
            return None if stored is None else wide(stored)

        for node in self.nodes:
            given = [value(name) for name in node.inputs]
            operator = node.operator if operators is None else operators.get(node, node.operator)
            outputs, loose = operator.run_wide(given)
            if loose and not self.loose:
                self.loose = f"{'the custom operator ' if node.operator.custom else ''}{node.op}"
            if moved is None:
                looked.append((node, given, outputs))
                used = [y for n, y in zip(node.outputs, outputs, strict=False) if n in self.used]
                jump = steps.step(node, given, used)
                jumps += [] if jump is None else [jump]
                work += _multiplications(node, given, outputs)
            for name, output in zip(node.outputs, outputs, strict=False):
                if name:
                    made.setdefault(name, output)
        self._met(looked)
        result = value(self.out)
        assert result is not None
        self.work = max(self.work, work)
        self.steps = self.steps if moved is not None else jumps
        return result

    def _met(self, looked: Sequence[tuple[Node, Sequence[Array | None], Sequence[Array]]]) -> None:
        """The pieces that a run has met, from the last node to the first: before one that lets nearly nothing
        through, none shows.
        """
        shows = True
        for node, given, outputs in reversed(looked):
            fixed = [not name or self.scope.constant(name) is not None for name in node.inputs]
            self.met[node].look(fixed, given, outputs, shows)
            shows = shows and not is_shut(node, given, outputs)

    def missed(self) -> tuple[Node, str] | None:
        """A piece that no run has met, in words."""
        if self.nodes and self.strict and self.finite is not None and not self.finite.all():
            return self.nodes[-1], "at some place nothing finite comes out"
        found = ((node, met.missed(self.strict)) for node, met in self.met.items())
        return next((one for one in found if one[1]), None)

    def gave(self, output: Array) -> None:
        """Where one that counts is finite: infinite numbers are equal whatever made them."""
        found = along(np.isfinite(output), np.any)
        self.finite = found if self.finite is None else self.finite | found

    def pieces(self, leaves: Sequence[str]) -> bool:
        """Whether there is a bound behind another node: on it the inputs have no direct hold."""
        return any(
            bounds_of(node, [self.scope.constant(name) if name else None for name in node.inputs])
            and node.inputs[0] not in leaves
            for node in self.nodes
        )


def _multiplications(node: Node, given: Sequence[Array | None], outputs: Sequence[Array]) -> float:
    """Those of a layer with weights; of others one for each number that comes out."""
    size = float(sum(np.size(output) for output in outputs if not isinstance(output, list)))
    if node.op in CONVOLUTIONS and given[1] is not None:
        source = given[0] if node.op == "ConvTranspose" else None
        places = size if source is None else float(source.size)
        return float(places * given[1].size / max(given[1].shape[0], 1))
    return float(size * (given[0].shape[-1] if node.op in PRODUCTS and given[0] is not None else 1))


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
    points = _break_points(a, b)
    behind = a.pieces(leaves) or b.pieces([image(leaf).name for leaf in leaves])
    # Between facts about inputs not every place has both sides; some place has.
    a.strict = b.strict = not any(leaf in (premises or {}) for leaf in leaves)
    several = len(a.nodes) > 1 or len(b.nodes) > 1
    always = 6 if behind else 4 if points.size else 3 if several else 2
    jumps = ""
    for turn, (scale, near, signed) in enumerate(TRIES, 1):
        seed = int(rng.integers(1 << 32))
        for sign in (scale, -scale) if turn != 2 else (scale,):
            drawn = np.random.default_rng(seed)
            some = points if near else points[:0]
            feed_a, feed_b = _feeds(leaves, image, values, premises or {}, some, sign, signed, drawn)
            if turn > 1:
                _bounded((a.work + b.work) * (2 * always + DRAWS))
            _judge(a, b, feed_a, feed_b, y, rng, rounds, unsure)
            jumps = jumps or steps.unlike(a.steps, b.steps)
        missed = a.missed() or b.missed()
        if turn >= always and missed is None:
            if jumps:
                raise Undecided(jumps)
            return Held(EVALUATED)
    assert missed is not None
    node, what = missed
    raise Undecided(f"{node.name} ({node.op}): {what}, in all that was tried")


def _bounded(work: float) -> None:
    if work > MOST_WORK:
        raise TooLong("it would take too long to compute it often enough")


def _feeds(
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
            x = _between(*premises[leaf], like.shape, rng)
        else:
            x = scale * _drawn(like.shape, points, signed, rng)
        if at.cut is not None:
            x = _with_constants(x, at, at.cut)
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


def _between(low: Array, high: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random numbers in a range, of which an end may be infinite."""
    anything = np.clip(_drawn(shape, np.zeros(0), False, rng), low, high)
    width = np.where(np.isfinite(high) & np.isfinite(low), high, 0) - np.where(np.isfinite(low), low, 0)
    inside = np.where(np.isfinite(low), low, 0) + np.maximum(width, 0) * rng.random(shape)
    return np.where(np.isfinite(low) & np.isfinite(high), inside, anything)


def _with_constants(x: Array, image: Image, cut: Cut) -> Array:
    """Numbers for a tensor of the original, with what its gone channels are known to be."""
    gone, constants = _gone(cut, x.shape)
    known = np.where(np.isnan(constants), image.p * x + image.q, constants)
    return np.where(gone, (known - image.q) / image.p, x)


def _gone(cut: Cut, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Which channels are gone, and what they were, as arrays that broadcast against a tensor."""
    if not -len(shape) <= cut.axis < len(shape) or shape[cut.axis] != cut.constants.size:
        raise Undecided(f"the claim about its channels does not fit its shape {shape}")
    at = [1] * len(shape)
    at[cut.axis] = -1
    gone = np.ones(cut.constants.size, bool)
    gone[cut.kept] = False
    return gone.reshape(at), cut.constants.reshape(at)


def _put(kept: Array, others: Array, cut: Cut, shape: tuple[int, ...]) -> Array:
    """A tensor of all its channels, from those that were kept and something for the others."""
    whole = np.array(np.broadcast_to(others, shape))
    if kept.shape != whole.take(cut.kept, cut.axis).shape:
        raise Wrong(f"its shape is {kept.shape}")
    np.moveaxis(whole, cut.axis, 0)[cut.kept] = np.moveaxis(kept, cut.axis, 0)
    return whole


def _judge(
    a: Side,
    b: Side,
    feed_a: Mapping[str, Array],
    feed_b: Mapping[str, Array],
    y: Image,
    rng: np.random.Generator,
    rounds: int,
    unsure: bool,
) -> None:
    """Whether the regions agree on one feed. Raises Wrong, Undecided."""
    ya, yb = a.run(feed_a), b.run(feed_b)
    if not is_float(ya) or not is_float(yb):
        if ya.shape != yb.shape or ya.dtype.kind != yb.dtype.kind or not np.array_equal(ya, yb):
            raise Wrong("integers or truth values differ")
        return
    with np.errstate(all="ignore"):
        want, got = (ya, y.p * yb + y.q) if y.decoded else (y.p * ya + y.q, yb)
        if y.cut is not None:  # what is gone has to be what it is said to have been
            _, constants = _gone(y.cut, want.shape)
            got = _put(got, np.where(np.isnan(constants), want, constants), y.cut, want.shape)
    if want.shape != got.shape:
        raise Wrong(f"its shape is {got.shape}, and {want.shape} is expected")
    if 2 * np.isfinite(want).sum() < want.size:
        raise Undecided("most of what comes out is not finite")
    a.gave(want)
    largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
    with np.errstate(all="ignore"):
        error = np.abs(want - got)
        error[(want == got) | (np.isnan(want) & np.isnan(got))] = 0.0
        error[np.isnan(error)] = np.inf
        allowed = EXACT * (np.abs(want) + np.abs(y.q)) + 1e-13 * largest
        if y.cut is not None:  # a constant is what rounded numbers have made it
            allowed = allowed + _gone(y.cut, want.shape)[0] * TIMES * precision_of("float32") * np.abs(want)
    if (error > allowed).any():
        new, old = _new_constants(a, b), a.constants() if rounds > 1 else {}
        here, there = (Image(""), y) if y.decoded else (y, Image(""))
        most = max([NEAR, *(MOST.get(v.dtype.name, NEAR) for v in (new | old).values())]) * largest
        if error.max() <= most:  # else no rounding explains it
            _bounded(b.work * DRAWS)
            moved, exact = np.zeros(1), allowed
            for _ in range(LOOKS):
                found = _rounding(b, feed_b, new, _new_attributes(a, b), yb, there, rng)
                if y.cut is not None:
                    found = _put(np.broadcast_to(found, yb.shape), np.zeros(1), y.cut, want.shape)
                moved = np.maximum(moved, found)
                allowed = exact + TIMES * moved
                if not (error > allowed).any():
                    break
            if old and (error > allowed).any():
                _bounded((a.work + b.work) * DRAWS)
                allowed = allowed + TIMES * (rounds - 1) * _rounding(a, feed_a, old, [], ya, here, rng)
        if (error > allowed).any() or allowed.max() > most:
            if unsure and error.max() <= most and not (a.loose or b.loose):
                _bounded((a.work + b.work) * DRAWS)
                looser = allowed + UNSURE * _rounding(a, feed_a, a.constants(), [], ya, here, rng)
                if not (error > looser).any():
                    raise Undecided("rounding on the way to its constants could explain the difference")
            _refuse(a, b, want, got, error, np.minimum(allowed, most), largest)
    if loose := a.loose or b.loose:
        raise Agrees(f"it agrees, but {loose} could be computed in float32 only")


def _refuse(a: Side, b: Side, want: Array, got: Array, error: Array, allowed: Array, largest: float) -> None:
    """Raises what follows from an error that is larger than what is allowed."""
    excess = np.nan_to_num(error - allowed, nan=np.inf)
    if not (excess > 0).any():
        raise Undecided("the rounding of its constants could explain any difference")
    at = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
    entry = Entry("the output", at, float(got[at]), float(want[at]))
    near = float(error.max()) < NEAR * largest
    if near and (loose := a.loose or b.loose):
        raise Agrees(f"{loose} could be computed in float32 only, and it does not agree exactly")
    raise Wrong("it does not agree", entry, final=near)


def _rounding(
    side: Side,
    feed: Mapping[str, Array],
    new: Mapping[str, Array],
    stated: Sequence[Node],
    output: Array,
    y: Image,
    rng: np.random.Generator,
) -> Array:
    """How far one more rounding of these constants, and of these nodes' attributes, moves y.p times the
    output, in the root mean square: for each channel of a map, else for each entry.
    """
    total = np.zeros(output.shape)
    signs = np.array([-1.0, 1.0])
    exact = {name: (wide(v), 1 + precision_of(v.dtype.name) * signs) for name, v in new.items()}
    for _ in range(DRAWS if new or stated else 0):
        moved = {k: v * factors[rng.integers(0, 2, v.shape, np.int8)] for k, (v, factors) in exact.items()}
        others = {node: node.operator.moved(rng) for node in stated}
        with np.errstate(all="ignore"):
            total = total + np.square(y.p * (side.run(feed, moved, others) - output)) / DRAWS
    found: Array = np.sqrt(np.nan_to_num(total, nan=0.0, posinf=0.0))
    if found.ndim > 2:
        found = np.asarray(found.max(tuple(range(2, found.ndim)), keepdims=True))
    return found


def _new_constants(a: Side, b: Side) -> dict[str, Array]:
    """The constants that region `b` reads and `a` does not, by their bits: what was rounded."""
    old = list(a.constants().values())
    return {k: v for k, v in b.constants().items() if not any(same_bits(v, other) for other in old)}


def _new_attributes(a: Side, b: Side) -> list[Node]:
    """The nodes of `b` that state a number which `a` does not."""
    old = {number for node in a.nodes for number in node.numbers().items()}
    return [node for node in b.nodes if any(number not in old for number in node.numbers().items())]


def _break_points(a: Side, b: Side) -> Array:
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
    x = rng.standard_normal(shape) * rng.choice([0.1, 1.0, 1.0, 8.0], shape)
    if points.size:
        near = rng.choice(points, shape) * rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.6, shape)
        x = np.where(rng.random(shape) < 0.34, near, x)
    if signed:
        channels = (*shape[:2], *(1 for _ in shape[2:]))
        x = np.abs(x) * rng.choice([-1.0, 1.0], channels)
    return np.asarray(x)
