"""What rounding explains, as it is found by drawing signs."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.certificate import Image
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.claims import Wrong
from bnfold.proof.evaluate import Judge, compare
from bnfold.proof.graph import Model
from bnfold.proof.side import Side
from tests.proof.test_decide import graph, node

X = [1, 1, 1, 1]


class Signs:
    """In place of a generator: of the first draws, signs by turns; then all of one sign."""

    def __init__(self, unlucky: int) -> None:
        self.unlucky, self.drawn = unlucky, 0

    def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: Any) -> Any:
        self.drawn += 1
        return np.full(shape, self.drawn % 2 if self.drawn <= self.unlucky else 0, dtype)


def scaled(scale: float, shift: float) -> onnx.ModelProto:
    stored = {"s": np.float32([[[scale]]]), "t": np.float32([[[shift]]])}
    return graph([node("Mul", "x s", "m"), node("Add", "m t", "y")], stored, X)


@pytest.mark.parametrize(("unlucky", "wrong"), [(0, False), (32, False), (64, True)])
def test_signs_that_cancel_each_time_are_drawn_again(unlucky: int, wrong: bool) -> None:
    """A scale and a shift of one size: what rounding does to one of them, it takes back with the other."""
    sides = []
    for scale, shift in ((1.0, 1.0), (1 + 2.0**-23, 1 + 2.0**-23)):
        main = Model(load(scaled(scale, shift))).main
        sides.append(Side(main, main.nodes, "y"))
    feed = {"x": np.ones(X)}

    def judge() -> None:
        Judge(*sides, Image("y"), Signs(unlucky)).look(feed, feed)  # type: ignore[arg-type]

    if wrong:
        with pytest.raises(Wrong):
            judge()
    else:
        judge()


@pytest.mark.parametrize(("off", "wrong"), [(2.0**-23, False), (2.0**-12, True)])
@pytest.mark.parametrize("scale", [2.0, 0.0], ids=["for one x", "for every x"])
def test_what_should_be_zero_is_judged_by_what_else_comes_out(scale: float, off: float, wrong: bool) -> None:
    """scale * x + 3 - 3, where one 3 was rounded."""
    ops = [node("Mul", "x s", "m"), node("Add", "m t", "n"), node("Sub", "n u", "y")]
    sides = []
    for last in (3.0, 3.0 + off):
        stored = {"s": scale, "t": 3.0, "u": last}
        main = Model(load(graph(ops, {k: np.float32([[[v]]]) for k, v in stored.items()}, X))).main
        sides.append(Side(main, main.nodes, "y"))
    judge = Judge(*sides, Image("y"), np.random.default_rng(0))
    judge.largest = 10 * scale  # of another feed
    feed = {"x": np.zeros(X)}
    judge.look(feed, feed)
    with pytest.raises(Wrong) if wrong else contextlib.nullcontext():
        judge.rest()


class Counted(Side):
    runs = 0

    def run(self, *arguments: Any) -> Any:
        self.runs += 1
        return super().run(*arguments)


@pytest.mark.parametrize(("op", "runs"), [("Transpose", 1), ("Neg", 3)])
def test_what_only_moves_numbers_is_decided_by_one_point(op: str, runs: int) -> None:
    main = Model(load(graph([node(op, "x", "y")], {}, X))).main
    x, y = Image("x", 2.0), Image("y", 2.0)

    def compared(image: Image) -> Counted:
        a = Counted(main, main.nodes, "y")
        compare(
            a,
            Side(main, main.nodes, "y"),
            ["x"],
            lambda _: x,
            image,
            lambda _: np.zeros(X),
            np.random.default_rng(0),
        )
        return a

    assert compared(y).runs == runs
    with pytest.raises(Wrong):
        compared(Image("y", 2 + 1e-8))
