"""What is inferred of sizes that no file states: folds hold in float64 whatever the sizes are, 1 included."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.read import analysed
from tests.onnx_graph import look
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Pattern
from tests.onnx_graph.cases.patterns_sizes import SIZES

SHAPES = ((1, 3, 1, 1), (2, 3, 6, 7), (3, 3, 5, 1), (6, 3, 2, 3))


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_they_fold_at_every_size(case: Pattern) -> None:
    model = case.build.func(*case.build.args, dtype="float64")  # type: ignore[attr-defined]
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert not report.kept or case.left
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        feed = {"x": rng.standard_normal(shape)}
        expected, found = (look.run(proto, feed, "reference") for proto in (model, folded))
        assert look.difference(expected, found) < 1e-12


def test_a_size_has_one_name_wherever_it_comes_up() -> None:
    g = Build()
    x = g.input("x", (None, 3, None, 8))
    y = g.conv(x, 4, k=3)
    rows = g.op("Gather", g.op("Shape", y), g.const(np.array(0)), axis=0)
    flat = g.op("Reshape", y, g.op("Concat", g.op("Unsqueeze", rows, g.ints(0)), g.ints(-1), axis=0))
    cut = g.op("Slice", y, g.ints(0), g.op("Slice", g.op("Shape", y), g.ints(2), g.ints(3)), g.ints(3))
    g.output(flat, g.op("Relu", g.op("Add", cut, g.const(g.normal((4, 1, 1))))))
    model = analysed(load(g.model()))
    values = model.scopes[0].values
    batch = "size 0 of x"
    assert values[x].shape == (batch, 3, "size 2 of x", 8)
    assert values[flat].shape is not None
    assert values[flat].shape[0] == values[y].shape[0] == batch  # type: ignore[index]
    assert values[cut].shape[:3] == values[y].shape[:3]  # type: ignore[index]
    assert values[cut].shape[3] not in values[y].shape  # type: ignore[index,operator]
    sums = values[g.outputs[1]].shape
    assert sums is not None
    assert sums[:2] == (batch, 4)
