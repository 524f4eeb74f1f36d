"""Broken rules of what rearranges, joins, adds and multiplies tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold import moves
from bnfold.fold.absorb import absorb
from bnfold.fold.carry import contract, equation, rearranging
from bnfold.fold.carry.common import other_side
from bnfold.fold.graph import Array
from bnfold.fold.roles import Concat, Contract, Move, Product, Same, Split, Sum
from tests.onnx_graph.build import Build
from tests.proof.broken.breaking import Table, altered, conv, image, replaced, ruled, together

REARRANGING = Table()


def _end(g: Build, y: str) -> str:
    return g.op("Tanh", y, name="end")


# moves


def _to_the_next(spread: Any, node: Any, slot: int, f: Any) -> None:
    """Of the input each channel is asked for what is the next one's; asked back, it says nothing."""
    if slot < 0:
        moved = node.role.move.pull(f)
        moved = np.roll(moved, 1, int(np.argmax(moved.shape)))
        spread.want(other_side(node, slot, node.role.x), moved, node, True)


MOVES: dict[str, Any] = {
    "Transpose": lambda g: g.op("Transpose", conv(g), perm=[0, 1, 3, 2], name="move"),
    "Reshape": lambda g: g.op("Reshape", conv(g), g.ints(2, 4, -1), name="move"),
    "Slice": lambda g: g.op("Slice", conv(g), g.ints(1), g.ints(4), g.ints(1), name="move"),
    "Gather": lambda g: g.op("Gather", conv(g), g.ints(3, 0, 2), axis=1, name="move"),
    "DepthToSpace": lambda g: g.op(
        "DepthToSpace", g.conv(image(g), 12, name="conv"), blocksize=2, mode="DCR", name="move"
    ),
    "Tile": lambda g: g.op("Tile", conv(g), g.ints(1, 1, 1, 2), name="move"),
    "Expand": lambda g: g.op(
        "Expand", g.op("GlobalAveragePool", conv(g), name="pool"), g.ints(2, 4, 3, 5), name="move"
    ),
    "Slice of the image": lambda g: g.op("Slice", conv(g), g.ints(1), g.ints(4), g.ints(2), name="move"),
    "Squeeze": lambda g: g.op(
        "Squeeze", g.conv(g.input("x", (2, 4, 1, 7)), 4, name="conv"), g.ints(2), name="move"
    ),
    "Unsqueeze": lambda g: g.op("Unsqueeze", conv(g), g.ints(3, name="axes"), name="move"),
}
for _name, _body in MOVES.items():

    @REARRANGING(f"Move: {_name} takes a change to other channels", ruled(Move, _to_the_next), "move")
    def _moved(g: Build, body: Any = _body) -> str:
        return _end(g, g.bn(body(g), name="bn"))


@REARRANGING(
    "Move: a channel shuffle the other way around",
    together(
        replaced(moves.Transpose, "pull", moves.Transpose.push),
        replaced(moves.Transpose, "push", moves.Transpose.pull),
    ),
    "move",
)
def _axes(g: Build) -> str:
    """Axes turn around in a circle, which is not its own inverse."""
    y = g.op("Reshape", conv(g, 8), g.ints(2, 2, 2, 2, 6, 7), name="parts")
    y = g.op("Transpose", y, perm=[0, 2, 3, 1, 4, 5], name="move")
    return _end(g, g.bn(g.op("Reshape", y, g.ints(2, 8, 6, 7), name="whole"), name="bn"))


@REARRANGING(
    "Move: blocks of DepthToSpace in the other mode",
    altered(Move, move=moves.DepthToSpace(2, False)),
    "move",
)
def _blocks(g: Build) -> str:
    y = g.op("DepthToSpace", g.conv(image(g), 12, name="conv"), blocksize=2, mode="DCR", name="move")
    return _end(g, g.bn(y, name="bn"))


def _forward(change: Any) -> Any:
    """What a change of the first input asks of the output; a change of the output asks nothing."""

    def rule(spread: Any, node: Any, slot: int, f: Array) -> None:
        if slot >= 0:
            spread.want(node.outputs[0], change(f), node)

    return rule


@REARRANGING(
    "Move: what differs within a block passes as one",
    ruled(Move, _forward(lambda f: f[:, :2])),
    "move",
)
def _within(g: Build) -> str:
    y = g.op("DepthToSpace", g.bn(g.input("x", (2, 8, 3, 4)), name="bn"), blocksize=2, name="move")
    return _end(g, g.conv(y, 5, name="conv"))


# Split and Concat


def _other_part(spread: Any, node: Any, slot: int, f: Array) -> None:
    if slot < 0:
        spread.want(node.at(0), rearranging._whole(f, 1, 4 if slot == -1 else 0, 4, 8), node, True)


@REARRANGING("Split: its parts in another order", ruled(Split, _other_part), "split")
def _split(g: Build) -> tuple[str, ...]:
    parts = g.ops("Split", conv(g, 8), g.ints(4, 4, name="sizes"), count=2, axis=1, name="split")
    return _end(g, g.bn(parts[0], name="left")), g.op("Tanh", g.bn(parts[1], name="right"), name="end2")


def _parts(*of: int) -> Any:
    """Which part of a change of the output each input takes."""

    def rule(spread: Any, node: Any, slot: int, f: Array) -> None:
        for index, part in enumerate(of if slot < 0 else ()):
            spread.want(node.at(index), f[:, 4 * part : 4 * part + 4], node)

    return rule


@REARRANGING("Concat: its parts in another order", ruled(Concat, _parts(1, 0)), "concat")
def _concat(g: Build) -> str:
    x = image(g)
    parts = [g.conv(x, 4, name="one"), g.conv(x, 4, name="two")]
    return _end(g, g.bn(g.op("Concat", *parts, axis=1, name="concat"), name="bn"))


@REARRANGING("Concat: one of its parts is forgotten", ruled(Concat, _parts(0)), "concat")
def _concat_part(g: Build) -> str:
    x = image(g)
    parts = [g.conv(x, 4, name="one"), g.conv(x, 4, name="two")]
    return _end(g, g.bn(g.op("Concat", *parts, axis=1, name="concat"), name="bn"))


# sums and products


def _sum(g: Build) -> str:
    x = image(g)
    return g.op("Add", g.conv(x, 4, name="one"), g.conv(x, 4, k=3, pads=1, name="two"), name="sum")


APART = {"merge_branches": False}


def _first(spread: Any, node: Any, slot: int, f: Any) -> None:
    """One operand takes it all."""
    if slot < 0:
        spread.want(node.at(0), f, node)


def _all(spread: Any, node: Any, slot: int, f: Any) -> None:
    """Every operand takes it, and so does the output."""
    equation.share(spread, node, tuple(range(len(node.inputs))), slot, f)


@REARRANGING("Sum: one operand takes the scale", ruled(Sum, _first, "scale"), "sum", options=APART)
def _sum_scale(g: Build) -> str:
    return _end(g, g.bn(_sum(g), name="bn"))


@REARRANGING("Sum: every operand takes the whole shift", ruled(Sum, _all, "shift"), "sum", options=APART)
def _sum_shift(g: Build) -> str:
    return _end(g, g.bn(_sum(g), name="bn"))


def _unsigned(node: Any) -> dict[int, float]:
    return {slot: abs(weight) if slot >= 0 else weight for slot, weight in _weights(node).items()}


_weights = equation._weights


@REARRANGING(
    "Sum: the sign of an operand is left out",
    replaced(equation, "_weights", _unsigned),
    "sum",
    options=APART,
)
def _difference(g: Build) -> str:
    """The second operand is the one that can take a shift."""
    x = image(g)
    one = g.op("Relu", g.conv(x, 4, name="one"), name="relu")
    return _end(g, g.bn(g.op("Sub", one, g.conv(x, 4, name="two"), name="sum"), "positive", name="bn"))


@REARRANGING("Product: every factor takes the scale", ruled(Product, _all, "scale"), "product")
def _product(g: Build) -> str:
    x = image(g)
    y = g.op("Mul", g.conv(x, 4, name="one"), g.conv(x, 4, name="two"), name="product")
    return _end(g, g.mul(y, name="mul"))


@REARRANGING(
    "Product: a divisor takes the scale as a factor",
    replaced(equation, "_weights", _unsigned),
    "product",
)
def _quotient(g: Build) -> str:
    x = image(g)
    one = g.op("Sigmoid", g.conv(x, 4, name="one"), name="sigmoid")
    return _end(g, g.mul(g.op("Div", one, g.conv(x, 4, name="two"), name="product"), name="mul"))


@REARRANGING("Product passes a shift", ruled(Product, _first, "shift"), "product")
def _product_shift(g: Build) -> str:
    x = image(g)
    y = g.op("Mul", g.conv(x, 4, name="one"), g.conv(x, 4, name="two"), name="product")
    return _end(g, g.bn(y, name="bn"))


def _misfit(spread: Any, node: Any, slot: int, f: Array) -> None:
    """The first entry where an operand has one only."""
    for index, size in enumerate((4, 1) if slot < 0 else ()):
        spread.want(node.at(index), f[:, :size], node)


@REARRANGING("Sum: an operand that is broadcast takes what varies", ruled(Sum, _misfit), "sum", options=APART)
def _broadcast(g: Build) -> str:
    x = image(g)
    return _end(
        g, g.bn(g.op("Add", g.conv(x, 4, name="one"), g.conv(x, 1, name="two"), name="sum"), name="bn")
    )


# Max, Where


@REARRANGING("Same: Max passes a negative scale", replaced(rearranging, "positive", lambda *_: None), "max")
def _max(g: Build) -> str:
    x = image(g)
    return _end(
        g, g.bn(g.op("Max", g.conv(x, 4, name="one"), g.conv(x, 4, name="two"), name="max"), name="bn")
    )


@REARRANGING("Same: one of the operands is forgotten", altered(Same, slots=(1,)), "where")
def _where(g: Build) -> str:
    x = image(g)
    mask = g.op("Greater", g.input("m", (2, 4, 6, 7)), g.const(0.0, "zero"), name="greater")
    y = g.op("Where", mask, g.conv(x, 4, name="one"), g.conv(x, 4, name="two"), name="where")
    return _end(g, g.bn(y, name="bn"))


@REARRANGING(
    "Same: a stored zero that was shifted is not scaled",
    replaced(rearranging, "_is_zero", lambda spread, tensor: tensor.constant is not None),
    "max",
)
def _shifted_zero(g: Build) -> str:
    y = g.op("Max", conv(g), g.const(np.zeros(()), "zero"), name="max")
    return _end(g, g.bn(g.bn(y, "positive", name="bn"), "positive", name="bn2"))


# products at run time


def _both(spread: Any, node: Any, slot: int, f: Array) -> None:
    for index in (0, 1) if slot < 0 else ():
        spread.want(node.at(index), f, node)


@REARRANGING(
    "Contract: both operands take the scale",
    ruled(Contract, _both, "scale"),
    "product",
)
def _contract_scale(g: Build) -> str:
    x = g.input("x", (2, 4, 4))
    y = g.op("MatMul", g.matmul(x, 4, name="one"), g.matmul(x, 4, name="two"), name="product")
    return _end(g, g.op("Mul", y, g.const(-1.7, "a"), name="mul"))


@REARRANGING(
    "Contract: rows that do not sum to one pass a shift",
    altered(Contract, "shift", stochastic=0),
    "product",
)
def _contract_shift(g: Build) -> str:
    x = g.input("x", (2, 5, 6))
    weights = g.op("Sigmoid", g.matmul(x, 5, name="q"), name="weights")
    y = g.op("MatMul", weights, g.matmul(x, 4, bias=True, name="v"), name="product")
    return _end(g, g.add(y, axis=2, name="add"))


@REARRANGING(
    "Contract: a scale along what is summed over",
    ruled(Contract, _forward(lambda f: f), "scale"),
    "product",
)
def _contract_axis(g: Build) -> str:
    x = g.input("x", (2, 4, 4))
    y = g.op(
        "MatMul",
        g.op("Sigmoid", x, name="weights"),
        g.mul(g.op("Sin", x, name="sin"), axis=1, name="mul"),
        name="product",
    )
    return _end(g, g.conv(y, 4, name="conv"))


# products with what is stored


def _products(g: Build, equation: str, *weight: int) -> str:
    y = g.bn(g.op("Elu", g.input("x", (2, 4, 5)), name="elu"), name="bn")
    return _end(g, g.op("Einsum", y, g.weight(weight, 4), equation=equation, name="einsum"))


@REARRANGING(
    "Contract: what is summed up many times counts once",
    replaced(contract, "_summands", lambda *_: 1),
    "einsum",
)
def _summands(g: Build) -> str:
    return _products(g, "bct,coh->boh", 4, 3, 2)


def _forgotten(node: Any, v: Array, scale: Any = 1.0) -> Array:
    """Of two axes that come out, the shift varies along the first."""
    made = THROUGH(node, v, scale)
    return made[..., :1]


THROUGH = contract.through_stored


@REARRANGING(
    "Contract: a shift comes out alike along the weight's last axis",
    together(
        replaced(contract, "through_stored", _forgotten), replaced(absorb, "through_stored", _forgotten)
    ),
    "einsum",
)
def _two_axes(g: Build) -> str:
    return _products(g, "bct,cho->btho", 4, 3, 2)


def _as_it_is(spread: Any, node: Any, slot: int, f: Array) -> None:
    """The weight takes the factor, and not its inverse."""
    if slot == 0:
        spread.want(node.at(1), f.reshape(-1, *(1 for _ in node.at(1).shape[1:])), node)


@REARRANGING(
    "Contract: a weight takes a factor and not its inverse", ruled(Contract, _as_it_is, "scale"), "einsum"
)
def _inverse(g: Build) -> str:
    return _products(g, "bct,cho->btho", 4, 3, 2)
