"""Proofs without a certificate: what is gone is found by what reads it; what takes too long is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.side_by_side import Feeds
from bnfold.proof import decide, evaluate
from bnfold.proof.decide import prove
from bnfold.proof.trial import alike
from tests.onnx_graph.build import Build
from tests.proof.test_decide import X, graph, net, node, proof


def test_a_sum_that_is_gone_is_found_by_the_operator_that_reads_it() -> None:
    """Its weights decide then, and the operator is what it was."""
    g = Build(seed=5, signs="positive")
    x = g.input("x", X)
    ways = [g.bn(g.conv(x, 3, 3, pads=1, bias=False)), g.bn(g.conv(x, 3, bias=False)), g.bn(x)]
    g.output(g.op("Tanh", g.op("Add", g.op("Add", ways[0], ways[1]), ways[2])))
    model = g.model()
    after, _ = bnfold.fold_onnx(model, verify=False)
    found = prove(load(model), load(after))
    assert (found.status, found.ways) == ("proved", {"sums": 1, "identical": 1}), str(found)


def merged(by: float = 0.0) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Two products that cancel, and the one that a tool makes of them in float32. by: what is wrong."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(3, 4)).astype(np.float32)
    second = (0.01 * rng.normal(size=(3, 4)) - first).astype(np.float32)
    scale = np.float32(1 / 3)
    one = first * scale + second * scale
    one[1, 2] += np.float32(by)
    nodes = [
        node("ReduceMean", "x", "m", axes=[1]),
        node("MatMul", "m a", "p"),
        node("MatMul", "m b", "q"),
        node("Add", "p q", "s"),
        node("Mul", "s scale", "y"),
    ]
    other = [node("ReduceMean", "x", "k", axes=[1]), node("MatMul", "k w", "y")]
    x = [2, 5, 6, 3]
    stored: dict[str, Any] = {"a": first, "b": second, "scale": scale}
    return graph(nodes, stored, x), graph(other, {"w": one}, x)


def test_what_rounding_on_the_way_could_be_is_not_called_wrong() -> None:
    """As where a tool folds into two layers first, and merges these then. It is no proof either."""
    found = proof(*merged())
    assert found.status == "undecided", str(found)
    assert "on the way" in str(found)
    assert proof(*merged(1e-6)).status == "refuted"


def test_what_takes_too_long_is_not_computed_again_as_a_part_of_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    compare = evaluate.compare

    def counted(*arguments: Any) -> Any:
        asked.append(arguments[0].out)
        return compare(*arguments)

    monkeypatch.setattr(evaluate, "compare", counted)
    monkeypatch.setattr(evaluate, "MOST_WORK", 0.0)
    original = net()
    other = onnx.ModelProto()
    other.CopyFrom(original)
    for one in other.graph.node:
        if one.op_type == "MaxPool":  # the same, in another way
            del one.attribute[:]
            one.CopyFrom(node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))
    found = proof(original, other)
    assert found.status == "undecided"
    assert asked == ["p"]
    assert "too long" in str(found)


def test_a_proof_ends_where_all_of_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = {"z": np.zeros((), np.float32)}
    original = graph([node("Neg", "x", "p"), node("Neg", "p", "y")], {}, [2, 5, 6, 3])
    other = graph([node("Sub", "z x", "p"), node("Sub", "z p", "y")], zero, [2, 5, 6, 3])
    assert proof(original, other).ways["evaluated"] == 2
    monkeypatch.setattr(decide, "MOST_WORK", 0.0)
    found = proof(original, other)
    assert (found.status, found.ways["evaluated"]) == ("undecided", 1)
    assert "the proof would take too long" in str(found)


@pytest.mark.parametrize(("beta", "status"), [(0.0, "undecided"), (0.5, "refuted")])
def test_another_weight_of_what_is_always_zero_is_not_called_wrong(beta: float, status: str) -> None:
    """A batch norm of zero scale stands before it, which claims by name do not see. A run does."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    stored: dict[str, Any] = {"g": zeros, "b": zeros + np.float32(beta), "m": ones, "v": ones}
    far = [node("Sin", f"s{i}", f"s{i + 1}") for i in range(4)]
    nodes = [node("BatchNormalization", "x g b m v", "s0"), *far, node("Conv", "s4 w", "y")]
    one, other = (graph(nodes, {**stored, "w": w}, X) for w in (weight, 2 * weight))
    found = proof(one, other)
    assert found.status == status, str(found)
    assert proof(one, one).status == "proved"


def test_an_infinite_output_hides_no_other_difference() -> None:
    """What is far off shows in a run of both, whatever else is infinite there."""
    nodes = [
        node("Div", "x zero", "far"),
        node("Mul", "x w", "near"),
        node("Concat", "far near", "y", axis=1),
    ]
    zero = np.zeros(1, np.float32)
    models = [graph(nodes, {"zero": zero, "w": np.float32([w])}, X) for w in (1, 2)]
    feeds = Feeds(load(models[0]), None, None, 0)
    assert alike(load(models[0]), load(models[0]), feeds, "y", 1e-9)
    assert not alike(load(models[0]), load(models[1]), feeds, "", np.inf)
