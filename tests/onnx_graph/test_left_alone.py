"""What must not fold stays, with the right reason; a model that is left alone comes back byte for byte."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

import bnfold
from tests.onnx_graph import look
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Left
from tests.onnx_graph.cases.left_alone import LEFT
from tests.onnx_graph.cases.reasons import REASONS


def test_the_table_holds_each_case_once() -> None:
    assert [name for name, count in Counter(case.name for case in LEFT).items() if count > 1] == []


def test_every_reason_is_in_the_table() -> None:
    used = {word for case in LEFT for word in case.reason}
    assert set(REASONS.values()) <= used


@pytest.mark.parametrize("case", LEFT, ids=lambda case: case.name)
def test_a_case_is_worth_its_name(case: Left) -> None:
    model = case.build()
    assert {*case.kept, *case.folds} <= set(look.affine_nodes(model))
    assert case.blocked_by
    if not case.runs:
        return
    for output in look.run(model, look.feeds(model, 0, case.gain), case.evaluator):
        output = output.astype(np.float64)
        assert np.isfinite(output).all()
        assert output.std() > 1e-3


@pytest.mark.parametrize("case", LEFT, ids=lambda case: case.name)
def test_it_stays(case: Left) -> None:
    model = case.build()
    before = model.SerializeToString()
    folded, report = bnfold.fold_onnx(model, verify=False, merge_branches=False)
    assert model.SerializeToString() == before, "the input was changed"

    entries = {entry.name: entry for entry in report.entries}
    there = {node.name: node.op_type for node in look.nodes(folded)}
    op_types = {node.name: node.op_type for node in look.nodes(model)}
    for name in case.kept:
        assert there.get(name) == op_types[name], f"{name} is gone\n{report}"
        assert name in entries, f"the ledger does not know {name}\n{report}"
        entry = entries[name]
        assert entry.outcome == "kept"
        assert entry.op == op_types[name]
        for word in case.reason:
            assert word in entry.reason, str(report)
        for blocker in case.blocked_by:
            assert blocker in entry.blocked_by.split(", "), f"blocked by {entry.blocked_by}\n{report}"
        assert case.cure in (entry.cure or "none"), str(report)
    for name in case.folds:
        assert name not in there, f"{name} is still there\n{report}"
        assert entries[name].outcome == "folded"
    if not case.folds:
        assert folded.SerializeToString() == before, f"the model was changed\n{report}"
    assert look.repeated_names(folded) == []
    onnx.checker.check_model(folded)

    if case.runs:
        stored = {tensor.name for tensor in model.graph.initializer}
        overridable = any(value.name in stored for value in model.graph.input)
        for seed in (0, 1):
            feed = look.feeds(model, seed, case.gain, override=overridable and seed == 1)
            expected = look.run(model, feed, case.evaluator)
            assert look.difference(expected, look.run(folded, feed, case.evaluator)) < case.tolerance


def test_one_number_for_a_whole_tensor_has_a_line_only_if_it_goes() -> None:
    """The x + 3 of a hard swish, kept, is nobody's business; folded, it is."""
    g = Build()
    y = g.op("Add", g.conv(g.input("x", (2, 6, 9, 11)), 7), g.const(3.0), name="add")
    g.output(g.op("Sigmoid", y))
    _, report = bnfold.fold_onnx(g.model(), verify=False)
    assert [(e.name, e.outcome) for e in report.entries] == [("add", "folded")]
    g = Build()
    y = g.op("Add", g.op("Tanh", g.conv(g.input("x", (2, 6, 9, 11)), 7)), g.const(3.0), name="add")
    g.output(g.op("Sigmoid", y))
    assert bnfold.fold_onnx(g.model(), verify=False)[1].entries == []
