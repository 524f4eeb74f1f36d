"""Broken rules of the search itself, of what it stores, of merged branches and dropped channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold import affine, one_fold, solve
from bnfold.fold.absorb import absorb, store
from bnfold.fold.carry import equation
from bnfold.fold.carry import spread as spreading
from bnfold.fold.graph import Array
from bnfold.fold.merge import branches, kernels, rows, sums
from bnfold.onnx_graph.ops import batch_norms
from bnfold.passes.channels import choose
from tests.onnx_graph.build import Build
from tests.proof.broken.breaking import Break, Table, conv, image, replaced, together

SOLVING = Table()
APART = {"merge_branches": False}


def _end(g: Build, y: str) -> str:
    return g.op("Tanh", y, name="end")


# the search


@SOLVING(
    "two different changes of one tensor meet",
    replaced(spreading, "same", lambda *_: True),
    "gather",
    options=APART,
)
def _meet(g: Build) -> str:
    y = conv(g)
    other = g.op("Gather", y, g.ints(1, 2, 3, 0), axis=1, name="gather")
    return _end(g, g.mul(g.op("Add", y, other, name="sum"), name="bn"))


def _allow(self: Any, tensor: Any, value: Array) -> None:
    """Whatever is asked of it."""


@SOLVING("an output of the graph changes", replaced(spreading.Spread, "_allow", _allow), "the model")
def _output(g: Build) -> tuple[str, str]:
    y = conv(g)
    return y, _end(g, g.bn(y, name="bn"))


@SOLVING("an input of the graph changes", replaced(spreading.Spread, "_allow", _allow), "end")
def _input(g: Build) -> str:
    return _end(g, g.bn(image(g), name="bn"))


def _without_shifts(state: Any, factors: Any) -> None:
    """The p of what is carried grows, and its q stays."""
    kept = dict(state.q)
    _multiply(state, factors)
    state.q.update(kept)


_multiply = one_fold._multiply


@SOLVING(
    "a second scale does not reach the shift of the first",
    replaced(one_fold, "_multiply", _without_shifts),
    "first",
)
def _two(g: Build) -> str:
    return _end(g, g.bn(g.bn(conv(g), name="first"), name="second"))


def _paired(change: str) -> Break:
    """What one layer takes of the batch norm behind it, without asking anybody else."""
    right = one_fold.pair

    def wrong(run: Any, node: Any, *more: Any) -> bool:
        done = right(run, node, *more)
        if done:
            x, (p, q) = node.at(node.role.x), (run.state.p, run.state.q)
            if change == "p":
                p[x] = 1 / p[x]
            else:
                q[x] = -q[x]
        return done

    return replaced(solve, "pair", wrong)


@SOLVING("pair: p and its inverse", _paired("p"), "bn")
def _pair_scale(g: Build) -> str:
    return _end(g, g.bn(conv(g), name="bn"))


@SOLVING("pair: the sign of q", _paired("q"), "bn")
def _pair_shift(g: Build) -> str:
    return _end(g, g.bn(conv(g), name="bn"))


def _shift_of_the_other_sign(state: Any, node: Any, *more: Any) -> Any:
    found = _shift(state, node, *more)
    found.values = {tensor: -value for tensor, value in found.values.items()}
    return found


_shift = one_fold._shift


@SOLVING(
    "a shift forward with the sign of one backward",
    replaced(one_fold, "_shift", _shift_of_the_other_sign),
    "conv",
)
def _sign(g: Build) -> str:
    return _end(g, g.conv(g.bn(image(g), name="bn"), 5, k=3, name="conv"))


# equations


def _nobody_looks(spread: Any, node: Any, missing: Array) -> bool:
    """Once all operands have taken something, the equation is said to hold."""
    return _holds(spread, node, missing) or all(node.at(s) in spread.values for s in equation._weights(node))


_holds = equation._holds


def _unsolved(spread: Any, node: Any, missing: Array) -> bool:
    return True


@SOLVING(
    "Sum: what its output takes is asked of no operand",
    replaced(equation, "_holds", _unsolved),
    "sum",
    options=APART,
)
def _equation(g: Build) -> str:
    x = image(g)
    y = g.op("Add", g.conv(x, 4, name="one"), g.conv(x, 4, name="two"), name="sum")
    return _end(g, g.add(y, name="bn"))


@SOLVING(
    "Product: the square of a tensor takes a scale once",
    together(
        replaced(equation, "_holds", _nobody_looks), replaced(equation, "_root", lambda s, n, value, w: value)
    ),
    "square",
)
def _square(g: Build) -> str:
    y = conv(g)
    return _end(g, g.mul(g.op("Mul", y, y, name="square"), "positive", name="mul"))


@SOLVING(
    "Sum: a tensor that comes back by another way",
    replaced(equation, "_holds", _nobody_looks),
    "sum",
)
def _comes_back(g: Build) -> str:
    y = conv(g)
    pool = g.op("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="pool")
    return _end(g, g.bn(g.op("Add", y, pool, name="sum"), name="bn"))


# numbers


def _numbers(scale: float = 1.0, shift: float = 1.0, mean: float = 1.0) -> Break:
    right = batch_norms.from_batch_norm

    def wrong(gamma: Any, beta: Any, m: Any, var: Any, eps: Any) -> Any:
        a, b = right(gamma, beta, np.asarray(m) * mean, var, eps)
        return a * scale, b * shift

    return replaced(batch_norms, "from_batch_norm", wrong)


def _norm(g: Build) -> str:
    return _end(g, g.bn(conv(g, k=3, pads=1), name="bn"))


SOLVING("a batch norm: its mean is added", _numbers(mean=-1.0), "bn")(_norm)
SOLVING("a batch norm: a scale off by 3e-7", _numbers(scale=1 + 3e-7), "bn", least=1e-7, fine=True)(_norm)
SOLVING("a batch norm: a shift off by 1e-6", _numbers(shift=1 + 1e-6), "bn", least=1e-7)(_norm)


def _form(form: str, other: str) -> Break:
    return lambda patch: patch.setitem(affine.MAPS, form, affine.MAPS[other])


@SOLVING("arithmetic: c - x is taken for x - c", _form("c-x", "x-c"), "sub")
def _subtracted(g: Build) -> str:
    return _end(g, g.per_channel("Sub", conv(g), g.normal((4,)), left=True, name="sub"))


@SOLVING("arithmetic: x / c is taken for x * c", _form("x/c", "x*c"), "div")
def _divided(g: Build) -> str:
    return _end(g, g.per_channel("Div", conv(g), g.scales(4), name="div"))


def _six_ulps(node: Any, value: Any, old: Any, dtype: Any = None, axis: Any = None) -> Array:
    made = _in_type(node, value, old, dtype, axis)
    return made + np.float32(6) * np.spacing(np.abs(made))


_in_type = store.in_type


@SOLVING(
    "what is stored is six units in the last place off",
    replaced(store, "in_type", _six_ulps),
    "conv",
    least=1e-7,
    fine=True,
)
def _stored(g: Build) -> str:
    return _end(g, g.bn(conv(g, bias=True, k=3), name="bn"))


@SOLVING(
    "a stored operand keeps one number for all channels",
    replaced(absorb, "compact", lambda array, *_, **__: array.take([0], 1) if array.ndim == 4 else array),
    "max",
)
def _operand(g: Build) -> str:
    y = g.op("Max", conv(g), g.const(g.normal((1, 4, 1, 1)), "floor"), name="max")
    return _end(g, g.bn(y, "positive", name="bn"))


# merged branches


def _branches(g: Build) -> str:
    x = image(g)
    big, small = g.conv(x, 4, k=3, pads=1, name="big"), g.conv(x, 4, name="small")
    y = g.op("Add", g.bn(big, name="n1"), g.bn(small, name="n2"), name="sum")
    return _end(g, g.op("Add", y, g.bn(x, name="n3"), name="all"))


def _numbers_of(change: Any) -> Break:
    right = branches.numbers
    return replaced(sums, "numbers", lambda leaf, goal, scale: change(leaf, *right(leaf, goal, scale)))


def _beside(form: Any, kernel: Array, goal: Any) -> Array:
    return np.roll(_moved_to(form, kernel, goal), int(kernel.shape[-1] == 1), -1)


_moved_to = kernels.moved_to

SOLVING(
    "merged branches: a tap goes to the place beside its own", replaced(branches, "moved_to", _beside), "all"
)(_branches)
SOLVING("merged branches: the biases are left out", _numbers_of(lambda leaf, k, b: (k, b * 0)), "all")(
    _branches
)
SOLVING(
    "merged branches: the identity is left out",
    _numbers_of(lambda leaf, k, b: (k * (leaf.node is not None), b)),
    "all",
)(_branches)
SOLVING(
    "merged branches: one weight off by 1e-5",
    _numbers_of(lambda leaf, k, b: (k * (1 + 1e-5), b)),
    "all",
    least=1e-6,
)(_branches)


def _row(g: Build) -> str:
    y = g.conv(image(g), 6, k=3, name="one")
    return _end(g, g.conv(y, 4, k=1, name="two"))


SOLVING(
    "layers in a row: the bias of the first is left out",
    replaced(rows, "bias_of", lambda role, n: kernels.bias_of(role, n) * (n != 6)),
    "two",
)(_row)
SOLVING(
    "layers in a row: taps in another order",
    replaced(rows, "chain_kernels", lambda *given: np.flip(kernels.chain_kernels(*given), -1)),
    "two",
)(_row)


# dropped channels


@SOLVING(
    "dropped channels: what they were is left out",
    replaced(choose.Choice, "constants", lambda self, tensor: _constants(self, tensor) * 0),
    "bn",
    options={"drop_dead_channels": True},
)
def _dropped(g: Build) -> str:
    y = g.bn(g.conv(image(g), 6, name="first"), "zero or positive", name="bn")
    return _end(g, g.conv(g.op("Sigmoid", y, name="relu"), 3, name="second"))


_constants = choose.Choice.constants
