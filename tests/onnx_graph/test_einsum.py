"""Einsum with a stored matrix is a linear layer: it takes scales and shifts on both sides, as MatMul does."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("equation", "x", "w"),
    [
        ("bct,oct->bo", (2, 6, 5), (4, 6, 5)),  # sums over two axes
        ("bct,bco->bot", (2, 6, 5), (2, 6, 4)),  # a matrix for each
        ("bct,oc->bo", (2, 6, 5), (4, 6)),  # sums the other axis away
        ("bct,oc->bot", (2, 1, 5), (4, 6)),  # one entry for all
    ],
)
def test_what_is_no_product_with_one_matrix_takes_no_shift(
    equation: str, x: tuple[int, ...], w: tuple[int, ...]
) -> None:
    g = Build(seed=3)
    y = g.op("Einsum", g.op("Tanh", g.input("x", x)), g.weight(w, 6), equation=equation)
    g.output(g.op("Tanh", g.op("BatchNormalization", y, *g.norm_parameters(4), name="bn")))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert [entry.outcome for entry in report.entries] == ["kept"]
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
