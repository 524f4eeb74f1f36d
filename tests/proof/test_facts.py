"""What holds of a tensor because of what stands before it: a proof goes back for it, and knows how far."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.decide import prove
from tests.proof.test_decide import X, graph, node


def pooled(first: str, last: str, pools: int) -> onnx.ModelProto:
    """An operator, pools that keep signs, another operator."""
    names = ["a", *(f"p{i}" for i in range(pools))]
    keep = [node("MaxPool", x, y, kernel_shape=[1, 1]) for x, y in itertools.pairwise(names)]
    return graph([node(first, "x", "a"), *keep, node(last, names[-1], "y")], {}, X)


@pytest.mark.parametrize(
    ("first", "pools", "status"),
    [
        ("Abs", 1, "undecided"),  # the side below zero is never met
        ("Abs", 4, "undecided"),  # further back than it looks
        ("Sin", 1, "refuted"),
        ("Sin", 4, "refuted"),  # by a run
    ],
)
def test_a_relu_behind_what_is_positive_does_nothing(first: str, pools: int, status: str) -> None:
    found = prove(load(pooled(first, "Relu", pools)), load(pooled(first, "Identity", pools)))
    assert found.status == status


@pytest.mark.parametrize(("sign", "status"), [("Sub", "proved"), ("Add", "refuted")])
def test_any_weight_will_do_for_what_is_zero(sign: str, status: str) -> None:
    rng = np.random.default_rng(0)
    w, v = (rng.normal(size=(3, 3, 1, 1)).astype(np.float32) for _ in range(2))

    def model(v: np.ndarray) -> onnx.ModelProto:
        nodes = [node("Conv", "x w", "h"), node(sign, "h h", "z"), node("Conv", "z v", "y")]
        return graph(nodes, {"w": w, "v": v}, X)

    assert prove(load(model(v)), load(model(2 * v))).status == status
