"""Layers that are compared as one kernel: what the rounding of their numbers allows, and no more."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.decide import prove
from tests.proof.test_decide import X, graph, node


def two_convs(w1: np.ndarray, w2: np.ndarray, *biases: np.ndarray) -> onnx.ModelProto:
    """1x1 Convs in a row, with these biases or none. Shapes: (channels out, channels in)."""
    names = ["b1", "b2"][: len(biases)] or ["", ""]
    stored = dict(zip(names, (b.astype(np.float32) for b in biases), strict=False))
    weights = {"w1": w1, "w2": w2}
    stored |= {name: w[:, :, None, None].astype(np.float32) for name, w in weights.items()}
    nodes = [node("Conv", f"x w1 {names[0]}", "h"), node("Conv", f"h w2 {names[1]}", "y")]
    return graph(nodes, stored, X)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("off", "status"), [(0.0, "proved"), (1e-5, "refuted")])
def test_a_shift_that_the_next_layer_takes_back_cancels_up_to_rounding(
    seed: int, off: float, status: str
) -> None:
    rng = np.random.default_rng(seed)
    w1, w2 = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    scale, shift = rng.uniform(0.5, 2, 4), rng.normal(size=4).astype(np.float32)
    again = w2 / scale
    back = -again @ shift
    back[seed] += off
    folded = two_convs(w1 * scale[:, None], again, shift, back)
    assert prove(load(two_convs(w1, w2)), load(folded)).status == status


@pytest.mark.parametrize(("off", "status"), [(0.0, "proved"), (1e-5, "refuted")])
def test_two_channels_that_cancel_do_so_up_to_rounding(off: float, status: str) -> None:
    rng = np.random.default_rng(3)
    w1, w2 = np.repeat(rng.normal(size=(1, 3)), 2, 0), np.repeat(rng.normal(size=(5, 1)), 2, 1)
    w2[:, 1] *= -0.999
    one = graph([node("Conv", "x w", "y")], {"w": (w2 @ w1)[:, :, None, None].astype(np.float32)}, X)
    w1, w2 = w1 / 3, w2 * 3
    w2[2, 1] *= 1 + off
    assert prove(load(one), load(two_convs(w1, w2))).status == status


def test_heads_whose_dropout_is_left_are_proved_by_their_kernel() -> None:
    """One head is read through the Identity that its dropout was, the other is not."""
    rng = np.random.default_rng(0)
    stored = {name: rng.normal(size=(6, 5)).astype(np.float32) for name in ("w1", "w2")}
    stored |= {
        name: rng.uniform(0.5, 2, 6).astype(np.float32)
        for name in ["s1", "b1", "m1", "v1", "s2", "b2", "m2", "v2"]
    }
    heads = [
        [
            node("BatchNormalization", f"x s{i} b{i} m{i} v{i}", f"n{i}"),
            node("Identity", f"n{i}", f"d{i}"),
            node("Gemm", f"d{i} w{i}", f"y{i}"),
        ]
        for i in (1, 2)
    ]
    model = graph([*heads[0], *heads[1], node("Add", "y1 y2", "y")], stored, [3, 6])
    folded, report = bnfold.fold_onnx(model, verify=False, certificate=True)
    assert [one.op_type for one in folded.graph.node] == ["Identity", "Gemm"]
    found = prove(load(model), load(folded), report.certificate)
    assert (found.status, found.ways["sums"], found.ways["evaluated"]) == ("proved", 1, 0)
