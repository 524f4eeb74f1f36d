"""A third front end, for models that are lists of layers: folded, merged, checked, blamed as the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.api.pipeline import FrontEnd, Pass, fold
from bnfold.errors import UsageError, VerifyError
from bnfold.fold.edits import Bypass, Edit, Resum, SetValue
from bnfold.fold.graph import Array, Constant, Graph, Node, Tensor
from bnfold.fold.merge.view import View
from bnfold.fold.role_builders import batch_norm, by_matrix, with_bias
from bnfold.fold.roles import Map
from bnfold.options import Fold
from bnfold.report.verification import OutputError, Verification


@dataclass
class Layer:
    """One layer of (batch, channels): "dense" (weight, bias), "norm" with its four vectors, or "relu"."""

    name: str
    op: str
    values: list[Array] = field(default_factory=list)


Toy = list[Layer]  # one after the other

# The front end: what a third kind of model has to bring.


def read(toy: Toy, shared: str) -> Graph:
    graph, x = Graph(), Tensor("x", (None, len(toy[0].values[0])), fixed="graph input")
    for layer in toy:
        found = [
            Constant(f"{layer.name}.{i}", lambda value=value: value, value.shape, "float32")  # type: ignore[misc]
            for i, value in enumerate(layer.values)
        ]
        wide = (None, layer.values[0].shape[-1]) if layer.values else x.shape
        y = Tensor(f"{layer.name} out", wide)
        if layer.op == "dense":
            role: Any = with_bias(by_matrix(found[0], 1, 0, 1, 1, 0, ((0, 0),)), 2, found[1])
        elif layer.op == "norm":
            names = ("gamma", "beta", "mean", "var")
            kept = {
                name: (i + 1, constant) for i, (name, constant) in enumerate(zip(names, found, strict=True))
            }
            role = batch_norm(kept, layer.values, 1e-5, 2)
        else:
            role = Map("positive", "relu does not pass a shift")
        node = Node(layer.name, layer.op, role, [x], [y], source=layer)
        x.readers.append((node, 0))
        y.producer = node
        graph.nodes.append(node)
        graph.tensors += [x] if x.producer is None else []
        graph.tensors.append(y)
        x = y
    x.fixed = "graph output"
    return graph


def write(toy: Toy, graph: Graph, edits: Sequence[Edit]) -> Toy:
    new = {id(layer): replace(layer, values=list(layer.values)) for layer in toy}
    for edit in edits:
        if isinstance(edit, SetValue):
            new[id(edit.node.source)].values[int(edit.key) - 1] = edit.value  # slot 0 is the data
        else:
            assert isinstance(edit, (Bypass, Resum)), edit  # every layer has a bias
            del new[id(edit.node.source)]
    return list(new.values())


def run(toy: Toy, x: Array) -> Array:
    for layer in toy:
        if layer.op == "dense":
            x = x @ layer.values[0] + layer.values[1]
        elif layer.op == "norm":
            gamma, beta, mean, var = layer.values
            x = (x - mean) / np.sqrt(var + 1e-5) * gamma + beta
        else:
            x = np.maximum(x, 0)
    return x


def check(before: Toy, after: Toy) -> Verification:
    x = np.random.default_rng(0).standard_normal((64, len(before[0].values[0])))
    exact = run(before, x)
    error = float(np.abs(run(after, x) - exact).max() / np.abs(exact).max())
    found = OutputError("y", "float64", error, error, float(np.abs(exact).max()), error < 1e-5)
    return Verification([found], "numpy", "passed" if found.ok else "failed", "", 1e-5, 0.0)


TOY: FrontEnd[Toy] = FrontEnd(read, write, check, View)


def net(rng: np.random.Generator) -> Toy:
    """dense -> norm -> relu -> norm -> dense -> dense: both norms fold, and two layers become one."""

    def dense(name: str, inputs: int, outputs: int) -> Layer:
        return Layer(name, "dense", [rng.standard_normal((inputs, outputs)), rng.standard_normal(outputs)])

    def norm(name: str) -> Layer:
        return Layer(name, "norm", [*rng.standard_normal((3, 6)), rng.uniform(0.5, 1.5, 6)])

    relu = Layer("relu", "relu")
    return [dense("a", 4, 6), norm("bn1"), relu, norm("bn2"), dense("b", 6, 5), dense("c", 5, 3)]


@pytest.fixture
def toy() -> Toy:
    return net(np.random.default_rng(1))


def test_a_third_front_end_folds_and_merges(toy: Toy) -> None:
    done = fold(TOY, toy, Fold(), "toy", verify=True)
    assert [layer.name for layer in done.model] == ["a", "relu", "b"]
    assert [(entry.name, entry.outcome) for entry in done.report.entries] == [
        ("bn1", "folded"),
        ("bn2", "folded"),
    ]
    assert [(merge.name, merge.replaces) for merge in done.report.merged] == [("b", ("c",))]
    assert done.report.verification is not None
    assert done.report.verification.ok
    assert [layer.name for layer in toy] == ["a", "bn1", "relu", "bn2", "b", "c"]


def test_options_reach_it(toy: Toy) -> None:
    done = fold(TOY, toy, Fold(skip=["bn2"], merge_branches=False), "toy", verify=True)
    assert [layer.name for layer in done.model] == ["a", "relu", "bn2", "b", "c"]
    with pytest.raises(UsageError, match=r"skip 'bn3': no such batch norm. Note: valid choices are bn1, bn2"):
        fold(TOY, toy, Fold(skip=["bn3"]), "toy", verify=True)


def test_without_batch_norms_it_is_unchanged(toy: Toy) -> None:
    done = fold(TOY, toy[:1], Fold(), "toy", verify=True)
    assert done.model == toy[:1]
    assert done.report.notes == ["nothing to fold: the toy is unchanged"]


@pytest.mark.parametrize(
    ("broken", "blamed"),
    [
        ("bn2", "the first fold that broke it is bn2"),
        ("merge", "no fold broke it, but the merging of branches into b did"),
        ("pass", "no fold broke it, but doubling did"),
    ],
)
def test_what_is_to_blame_is_named(toy: Toy, broken: str, blamed: str) -> None:
    def wrong(toy: Toy, graph: Graph, edits: Sequence[Edit]) -> Toy:
        new = write(toy, graph, edits)
        gone = {edit.node.name for edit in edits if isinstance(edit, Bypass)}
        if broken in gone or (broken == "merge" and any(isinstance(edit, Resum) for edit in edits)):
            new[0].values[1] = new[0].values[1] + 1
        return new

    def doubling(toy: Toy, report: Any) -> Toy:
        double = 2.0 if broken == "pass" else 1.0
        return [*toy[:-1], replace(toy[-1], values=[value * double for value in toy[-1].values])]

    passes = [Pass("nothing at all", lambda toy, report: toy), Pass("doubling", doubling)]
    with pytest.raises(VerifyError, match=rf"{blamed}\n"):
        fold(replace(TOY, write=wrong), toy, Fold(), "toy", verify=True, passes=passes)


def test_a_toy_front_end_is_short() -> None:
    """What a third kind of model costs: the four functions, and what they stand on."""
    text = Path(__file__).read_text(encoding="utf-8")
    begin, end = text.index("# The front end"), text.index("\ndef net(")
    assert len(text[begin:end].splitlines()) < 80
