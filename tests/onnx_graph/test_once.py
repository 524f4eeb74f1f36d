"""A fold once is a fold done: what comes out is folded once more, and nothing happens.

A merged node may stand where a map can go into it, and zeros that were taken in hinder nobody: what these
make possible belongs to the same run. BNFOLD_GRAPHS=5000 folds more graphs.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.options import Check
from bnfold.verify.models import verify
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.random_graphs import random_model
from tests.onnx_graph.cases.random_sums import random_sums
from tests.onnx_graph.look import difference, feeds, run

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "300"))
NEAR = 1e-5
KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "graphs": random_model,
    "sums": lambda seed: random_sums(seed).model(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_time_nothing_is_left_to_do(kind: str) -> None:
    changed = 0
    for seed in range(GRAPHS):
        model = KINDS[kind](seed)
        once, report = bnfold.fold_onnx(model, verify=False)
        twice, _ = bnfold.fold_onnx(once, verify=False)
        assert twice.SerializeToString() == once.SerializeToString(), seed
        names = [entry.name for entry in report.entries]
        assert len(names) == len(set(names)), seed
        if not (report.folded or report.merged):
            continue
        changed += 1
        feed = feeds(model, seed)
        try:
            expected = run(model, feed)
        except Exception:  # a size that has no number got too small for a kernel
            continue
        if not difference(expected, run(once, feed)) <= NEAR:  # rounding, or wrong? float64 tells
            check = verify(model, once, Check(rtol=5 * NEAR, inputs=feed))
            assert check.status == "passed", f"seed {seed}: {check}"
    assert changed > GRAPHS // 2


def test_what_can_fold_only_behind_a_merge_folds() -> None:
    """Half of the Tanh may be carried by the sum if the other operand is: not x, but the merged node."""
    g = Build(17, seed=3)
    x = g.input("x", (1, 4, 6, 6))
    y = g.op("Add", x, g.conv(x, 4, 3, pads=1))
    z = g.op("Add", y, g.op("Div", g.op("Tanh", x), g.const(2.0)))
    g.output(g.op("Mul", z, g.const(g.normal((6,)), "along")))
    model = g.model()
    folded, report = bnfold.fold_onnx(model)
    assert sorted(node.op_type for node in folded.graph.node) == ["Add", "Conv", "Mul", "Tanh"]
    assert len(report.merged) == 1
    apart, _ = bnfold.fold_onnx(model, merge_branches=False)
    assert len(apart.graph.node) == len(model.graph.node)


def test_zeros_that_were_taken_in_make_room_for_others() -> None:
    g = Build(17, seed=3)
    x = g.op("Sigmoid", g.input("x", (1, 4, 6, 6)))
    first = g.bn(x, scale=[0.0, 1.5, -2.0, 0.5], name="first")
    g.output(g.conv(g.bn(first, "mixed", name="second"), 3))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert [node.op_type for node in folded.graph.node] == ["Sigmoid", "Conv"]
    assert sorted(entry.name for entry in report.folded) == ["first", "second"]
    feed = feeds(model, 2)
    assert difference(run(model, feed), run(folded, feed)) <= 1e-6
    assert not np.isnan(run(folded, feed)[0]).any()


def test_a_bias_that_became_an_addition_takes_more_in() -> None:
    """The first batch norm's shift needs an Add behind the product, which then takes the last one's."""
    g = Build(17, seed=3)
    y = g.matmul(g.bn(g.input("x", (2, 5, 4)), "positive"), 4, left=True, name="product")
    y = g.op("Div", y, g.const(g.scales(4), "along"))
    g.output(g.bn(g.op("Mul", y, g.const(g.scales(4), "too")), name="last"))
    once, report = bnfold.fold_onnx(g.model(), verify=False)
    twice, _ = bnfold.fold_onnx(once, verify=False)
    assert twice.SerializeToString() == once.SerializeToString()
    (entry,) = [entry for entry in report.entries if entry.name == "last"]
    assert "product_bias_add" in entry.into


def test_a_map_that_has_taken_others_in_goes_where_it_could_not() -> None:
    _, report = bnfold.fold_onnx(random_model(3042501), verify=False, merge_branches=False)
    assert not report.kept
    (entry,) = [entry for entry in report.entries if entry.name == "BatchNormalization_batchnormalization34"]
    assert entry.outcome == "folded"


def test_a_shift_that_goes_elsewhere_costs_a_merge_nothing() -> None:
    """x + s + W x: s goes on into a later sum, so the product that takes x in needs no bias for it."""
    g = Build(17, seed=3)
    x = g.input("x", (2, 2, 6))
    moved = g.op("Add", x, g.const(g.normal((6,)), "shift"))
    y = g.op("Add", moved, g.op("MatMul", x, g.const(g.normal((6, 6)))))
    z = g.op("MatMul", g.op("Tanh", x), g.const(g.normal((6, 6))))
    biased = g.op("Add", z, g.const(g.normal((6,)), "bias"))
    g.output(g.op("Relu", g.op("Sub", y, g.op("Neg", biased))))
    _, report = bnfold.fold_onnx(g.model(), verify=False)
    assert [merge.op for merge in report.merged] == ["MatMul"]


def test_what_can_merge_only_behind_dropped_channels_merges() -> None:
    """The slice takes all that is left of the first convolution, and stands no longer between the two."""
    g = Build(17, seed=3)
    x = g.input("x", (2, 4, 5, 5))
    wide = g.conv(x, 6, 1)
    some = g.op("Slice", wide, g.ints(0), g.ints(4), g.ints(1))
    g.output(g.conv(some, 4, 1))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, drop_dead_channels=True)
    assert report.dropped is not None
    assert report.dropped.layers
    assert len(report.merged) == 1
    assert [node.op_type for node in folded.graph.node].count("Conv") == 1


def test_a_map_that_took_columns_in_is_no_part_of_a_sum_any_more() -> None:
    """One 1 x 1 would have joined the 3 within it, beside what is scaled; now it joins the other 1 x 1."""
    g = Build(17, seed=3)
    x = g.input("x", (2, 6, 8))

    def times(value: str, *shape: int) -> str:
        return g.op("Mul", value, g.const(g.normal(shape)))

    columns = times(g.conv(x, 6, 3, pads=1, group=2), 8)
    others = times(g.op("Tanh", x), 6, 1)
    y = g.op("Add", times(g.op("Add", columns, others), 6, 1), g.conv(x, 6, 1, group=6))
    g.output(g.op("Add", y, g.conv(x, 6, 1)))
    _, report = bnfold.fold_onnx(g.model(), verify=False)
    assert len(report.folded) == 1
    assert len(report.merged) == 1
