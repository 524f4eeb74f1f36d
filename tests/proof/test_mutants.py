"""Folds that were changed at one place: refused, and at that place. tools/mutants does it for networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.decide import prove
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.random_sums import random_sums
from tests.proof.test_decide import net
from tools._zoo.mutants import Bench, Tally
from tools._zoo.mutations import CLAIMS, MODELS, Subject


def attention() -> onnx.ModelProto:
    """A padded Conv, tokens, Softmax(QK) V, LayerNormalization."""
    g = Build(seed=1)
    x = g.bn(g.conv(g.input("x", (2, 3, 5, 6)), 4, k=3, pads=1, strides=[2, 2]))
    x = g.op("Transpose", g.op("Reshape", g.op("Relu", x), g.ints(2, 4, -1)), perm=[0, 2, 1])
    q, k, v = (g.matmul(x, 4, bias=True) for _ in range(3))
    weights = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    y = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1])
    y = g.op("Transpose", g.bn(y), perm=[0, 2, 1])
    g.output(g.op("LayerNormalization", y, g.const(g.scales(4), "scale"), g.const(g.normal((4,)), "bias")))
    return g.model()


def windows() -> onnx.ModelProto:
    """Pools with and without padding, a Concat, a Clip, two convolutions of one tensor that are merged."""
    g = Build(seed=2)
    x = g.input("x", (2, 4, 9, 8))
    y = g.op("Add", g.bn(g.conv(x, 4, k=3, pads=1, bias=False)), g.bn(g.conv(x, 4, bias=False)))
    y = g.op("Clip", y, g.const(-1.0, "low"), g.const(1.0, "high"))
    parts = [
        g.op("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], count_include_pad=0),
        g.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=0),
    ]
    y = g.conv(g.bn(g.op("Concat", *parts, axis=1)), 6, group=2)
    g.output(g.op("Softmax", g.op("HardSigmoid", y, alpha=0.3, beta=0.4), axis=1))
    return g.model()


def parts() -> onnx.ModelProto:
    """A list of tensors, of which no claim is made."""
    g = Build(seed=3)
    x = g.op("Relu", g.bn(g.conv(g.input("x", (2, 4, 5, 5)), 6, k=3), "positive"))
    both = g.op("SplitToSequence", x, g.ints(2, 4, name="sizes"), axis=1)
    left, right = (g.op("SequenceAt", both, g.const(np.array(i), f"at{i}")) for i in (0, 1))
    g.output(g.op("Sigmoid", left), g.op("Tanh", right))
    return g.model()


GRAPHS: list[Callable[[], onnx.ModelProto]] = [net, attention, windows, lambda: random_sums(3).model()]


@pytest.mark.parametrize("graph", range(len(GRAPHS)))
def test_mutants_are_refused_where_they_were_changed(graph: int) -> None:
    bench, tally = Bench(GRAPHS[graph](), graph), Tally()
    assert bench.again.right.status == "proved"
    count = sum(tally.mutant(bench, kind, bare=False) for kind in [*MODELS] * 2)
    assert count >= 20
    for kind in CLAIMS:
        tally.claim(bench, kind)
    found = {outcome: texts for outcome, texts in tally.lists.items() if texts}
    assert set(found) <= {"unnamed"}, found
    assert len(found.get("unnamed", ())) <= count * 0.05, found


@pytest.mark.parametrize("graph", [attention, parts])
def test_what_is_not_decided_again_would_be_decided_likewise(graph: Callable[[], onnx.ModelProto]) -> None:
    bench = Bench(graph(), 0)
    found = []
    for kind in [*MODELS, *["edge"] * 6]:
        mutant = onnx.ModelProto()
        mutant.CopyFrom(bench.folded)
        if MODELS[kind](Subject(mutant.graph, bench.rng, bench.shapes)) is not None:
            whole = prove(load(bench.original), load(mutant), bench.certificate)
            part = bench.again.proof(mutant)
            assert (part.status, part.ways) == (whole.status, whole.ways), kind
            found.append(part.status)
    assert len(found) > 15
