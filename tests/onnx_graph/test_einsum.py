"""Einsum with a stored weight is a linear layer: it takes scales and shifts on both sides, as MatMul does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bnfold
from tests.onnx_graph import look
from tests.onnx_graph.build import Build

SIZES = {"b": 2, "c": 6, "o": 4, "t": 5, "u": 3}
# equation, slot of the weight
BACK = [
    *(("btc,oc->bot", 1), ("bct,co->bot", 1), ("oc,bct->bot", 0), ("bctu,oc->bout", 1), ("btcu,oc->bout", 1)),
    *(("bc,oc->bo", 1), ("...c,oc->...o", 1), ("co,...c->...o", 0), ("cb,oc->bo", 1)),
]
FORWARD = [
    *(("bct,oc->bto", 1), ("bct,oc->bot", 1), ("oc,bctu->ubot", 0), ("bc,co->bo", 1), ("bc,...c->...b", 0)),
]


def shapes(equation: str, slot: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the data and of the weight; an ellipsis is the batch."""
    terms = equation.replace("...", "b" if equation != "bc,...c->...b" else "t").split("->")[0].split(",")
    sizes = [tuple(SIZES[label] for label in term) for term in terms]
    return sizes[1 - slot], sizes[slot]


def product(g: Build, x: str, equation: str, slot: int) -> str:
    w = g.weight(shapes(equation, slot)[1], 6)
    return g.op("Einsum", *((x, w) if slot == 1 else (w, x)), equation=equation, name="einsum")


def check(g: Build, y: str) -> None:
    g.output(y)
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert not report.kept, str(report)
    ops = [node.op_type for node in folded.graph.node]
    assert "BatchNormalization" not in ops
    assert len(ops) == len(model.graph.node)  # an Add stands in for the bias
    for seed in range(3):
        feed = look.feeds(model, seed)
        expected, found = (look.run(proto, feed, "reference") for proto in (model, folded))
        assert look.difference(expected, found) < 1e-12
    assert bnfold.fold_onnx(folded, verify=False)[0] == folded


@pytest.mark.parametrize(("equation", "slot"), BACK)
def test_what_it_gives(equation: str, slot: int) -> None:
    g = Build(dtype="float64", seed=1)
    y = product(g, g.input("x", shapes(equation, slot)[0]), equation, slot)
    check(g, g.op("Sigmoid", g.bn(y)))


@pytest.mark.parametrize(("equation", "slot"), FORWARD)
def test_what_it_reads(equation: str, slot: int) -> None:
    g = Build(dtype="float64", seed=2)
    x = g.bn(g.op("Tanh", g.input("x", shapes(equation, slot)[0])))
    check(g, g.op("Tanh", product(g, x, equation, slot)))


# equation, shape of the data, of the weight, the axis of the product that is normalized (None: 1)
SEVERAL = [
    ("bct,oct->bo", (2, 6, 5), (4, 6, 5)),  # sums over two axes
    ("bct,bco->bot", (2, 6, 5), (2, 6, 4)),  # a matrix for each
    ("bct,oc->bo", (2, 6, 5), (4, 6)),  # sums the other axis away
    ("bct,oc->bot", (2, 1, 5), (4, 6)),  # one entry for all
    ("bct,chd->bhtd", (2, 6, 5), (6, 4, 3)),  # gives two axes
    ("bct,dhc->bhdt", (2, 6, 5), (3, 4, 6)),
    ("b...c,chd->bh...d", (2, 5, 7, 6), (6, 4, 3)),
    ("bgct,gco->bgot", (2, 4, 6, 5), (4, 6, 3)),  # groups
    ("bct,cod->dotb", (2, 6, 5), (6, 4, 3)),  # in another order
    ("tbhd,hdo->bot", (5, 2, 3, 7), (3, 7, 4)),  # takes two axes
]


@pytest.mark.parametrize(("equation", "x", "w"), SEVERAL)
@pytest.mark.parametrize("slot", [0, 1])
def test_what_a_weight_of_several_axes_gives(
    equation: str, x: tuple[int, ...], w: tuple[int, ...], slot: int
) -> None:
    g = Build(dtype="float64", seed=3)
    y = stored(g, g.input("x", x), w, equation, slot)
    check(g, g.op("Tanh", g.op("BatchNormalization", y, *g.norm_parameters(4), name="bn")))


@pytest.mark.parametrize(
    ("equation", "x", "w"),
    [
        *[row for row in SEVERAL if row[1][1] == 6],
        ("bcd,cdo->bo", (2, 6, 5), (6, 5, 4)),  # takes two axes
        ("bcd,cdhe->hbe", (2, 6, 5), (6, 5, 3, 4)),  # and gives two
        ("bcgt,gco->bgot", (2, 6, 4, 5), (4, 6, 3)),  # groups
        ("ncb,oc->no", (2, 6, 5), (4, 6)),  # sums the other axis away
        ("bct,c->bt", (2, 6, 5), (6,)),  # gives none
    ],
)
@pytest.mark.parametrize("slot", [0, 1])
def test_what_a_weight_of_several_axes_reads(
    equation: str, x: tuple[int, ...], w: tuple[int, ...], slot: int
) -> None:
    g = Build(dtype="float64", seed=4)
    y = stored(g, g.bn(g.op("Tanh", g.input("x", x))), w, equation, slot)
    check(g, g.op("Tanh", y))


def stored(g: Build, x: str, w: tuple[int, ...], equation: str, slot: int) -> str:
    """A product whose weight is at a slot."""
    left, right = equation.split("->")[0].split(",")
    if slot == 0:
        equation = equation.replace(f"{left},{right}", f"{right},{left}")
    weight = g.weight(w, 6)
    return g.op("Einsum", *((x, weight) if slot == 1 else (weight, x)), equation=equation, name="einsum")


def test_a_bias_behind_a_weight_of_several_axes_takes_the_shift() -> None:
    """As EinsumDense has it: no node comes in the place of the batch norm."""
    g = Build(dtype="float64", seed=5)
    y = stored(g, g.bn(g.op("Tanh", g.input("x", ("batch", 6, 5)))), (6, 2, 3), "bct,chd->bthd", 1)
    g.output(g.op("Tanh", g.op("Add", y, g.const(g.normal((2, 3)), "b"), name="add")))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert [entry.name for entry in report.kept] == ["add"]
    assert [node.op_type for node in folded.graph.node] == ["Tanh", "Einsum", "Add", "Tanh"]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 6, 5))}
    expected, found = (look.run(proto, feed, "reference") for proto in (model, folded))
    assert look.difference(expected, found) < 1e-12


def test_two_norms_around_a_weight_of_several_axes() -> None:
    """Both go, into the weight and one addition."""
    g = Build(dtype="float64", seed=6)
    y = stored(g, g.bn(g.op("Tanh", g.input("x", (2, 6, 5)))), (6, 4, 3), "bct,chd->bhtd", 1)
    y = g.op("BatchNormalization", y, *g.norm_parameters(4), name="bn2")
    g.output(g.op("Tanh", y))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert not report.kept
    assert [node.op_type for node in folded.graph.node] == ["Tanh", "Einsum", "Add", "Tanh"]
    feed = look.feeds(model, 0)
    expected, found = (look.run(proto, feed, "reference") for proto in (model, folded))
    assert look.difference(expected, found) < 1e-12


@pytest.mark.parametrize(
    ("equation", "x", "w", "why"),
    [
        ("btc,chd->bthd", (2, 6, 5), (5, 4, 3), "along the axes of its weight, not along [1]"),
        ("bcn,hd->bchd", (2, 6, 5), (4, 3), "along the axes of its weight, not along [1]"),
        ("bcn,hc->bh", (2, 6, "n"), (4, 6), "a size that is not known"),
    ],
)
def test_shifts_that_no_one_addition_takes(equation: str, x: Any, w: tuple[int, ...], why: str) -> None:
    g = Build(seed=7)
    g.output(g.op("Tanh", stored(g, g.add(g.op("Tanh", g.input("x", x)), axis=1), w, equation, 1)))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert why in report.kept[0].reason
    assert folded == model


def test_a_shift_passes_it_and_a_product_behind() -> None:
    """Nobody needs a bias but the last one."""
    g = Build(dtype="float64", seed=4)
    x = g.bn(g.op("Tanh", g.input("x", (2, 6, 5))))
    y = g.op("Einsum", x, g.weight((4, 6), 6), equation="bct,oc->bto")
    y = g.op("Add", g.op("MatMul", y, g.weight((4, 3), 4)), g.const(g.normal((3,)), "b"), name="add")
    g.output(y)
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert [entry.name for entry in report.kept] == ["add"]
    assert [node.op_type for node in folded.graph.node] == ["Tanh", "Einsum", "MatMul", "Add"]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 6, 5))}
    expected, found = (look.run(proto, feed, "reference") for proto in (model, folded))
    assert look.difference(expected, found) < 1e-12


def test_channels_that_are_dead_leave_it() -> None:
    g = Build(seed=5)
    y = g.op("Einsum", g.input("x", (2, 5, 6)), g.weight((8, 6), 6), equation="btc,oc->bot")
    x = g.op("Relu", g.bn(y, "zero"))
    g.output(g.op("Einsum", x, g.weight((3, 8), 8), equation="bct,oc->bto"))
    model = g.model()
    _, report = bnfold.fold_onnx(model, drop_dead_channels=True)
    assert report.verification is not None
    assert report.verification.ok
    assert report.dropped is not None
    assert report.dropped.channels > 0
