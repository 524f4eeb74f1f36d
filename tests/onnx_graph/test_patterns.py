"""Each pattern folds: nothing is left, nothing is added, and the numbers are the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from tests.onnx_graph import look
from tests.onnx_graph.cases.case import Pattern
from tests.onnx_graph.cases.patterns import PATTERNS
from tests.onnx_graph.cases.patterns_quantized import QUANT

SEEDS = (0, 1)


def _norms(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in look.nodes(model))


def test_the_table_holds_each_case_once() -> None:
    assert [name for name, count in Counter(case.name for case in PATTERNS).items() if count > 1] == []


@pytest.mark.parametrize("case", PATTERNS, ids=lambda case: case.name)
def test_a_case_is_worth_its_name(case: Pattern) -> None:
    model = case.build()
    assert len(look.affine_nodes(model)) + _norms(model) > case.left + case.norms
    for seed in SEEDS:
        for output in look.run(model, look.feeds(model, seed, case.gain), case.evaluator):
            output = output.astype(np.float64)
            assert np.isfinite(output).all()
            assert output.std() > 1e-3


@pytest.mark.parametrize("case", PATTERNS, ids=lambda case: case.name)
def test_it_folds(case: Pattern) -> None:
    model = case.build()
    before = model.SerializeToString()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert model.SerializeToString() == before, "the input was changed"

    assert all(entry.into for entry in report.folded), str(report)
    onnx.checker.check_model(folded, full_check=True)
    assert look.repeated_names(folded) == []
    left = look.affine_nodes(folded)
    assert len(left) == case.left, f"{left} left\n{report}"
    assert _norms(folded) == case.norms, str(report)
    assert look.linear_nodes(folded) <= look.linear_nodes(model)
    assert len(look.nodes(folded)) <= len(look.nodes(model))
    assert _without_numbers(folded) <= _without_numbers(model)

    for seed in SEEDS:
        feed = look.feeds(model, seed, case.gain)
        error = look.difference(look.run(model, feed, case.evaluator), look.run(folded, feed, case.evaluator))
        assert error < case.tolerance, f"seed {seed}: {error:.2g}\n{report}"


def _without_numbers(model: onnx.ModelProto) -> set[str]:
    """The stored constants that hold a NaN."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name for name, array in arrays.items() if array.dtype.kind == "f" and np.isnan(array).any()}


def _integers(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    eight_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    stored = [t for t in model.graph.initializer if t.data_type in eight_bits and len(t.dims) > 1]
    return {tensor.name: onnx.numpy_helper.to_array(tensor).astype(int) for tensor in stored}


def _same_or_negated(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], axis: int) -> bool:
    """Channel by channel w, or -w or ~w: then the sum is the same everywhere."""
    channels = zip(np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0), strict=True)
    return all(np.array_equal(a, b) or len(np.unique(a + b)) == 1 for a, b in channels)


@pytest.mark.parametrize("case", QUANT, ids=lambda case: case.name)
def test_quantized_weights_keep_their_integers(case: Pattern) -> None:
    model = case.build()
    folded, _ = bnfold.fold_onnx(model, verify=False)
    for name, before in _integers(model).items():
        found = _integers(folded)
        assert len(found) == 1
        after = next(iter(found.values()))
        assert any(_same_or_negated(before, after, axis) for axis in (0, 1)), name
        if "positive" in case.name:
            assert np.array_equal(before, after)


@pytest.mark.parametrize("case", PATTERNS, ids=lambda case: case.name)
def test_folding_again_changes_nothing(case: Pattern) -> None:
    folded, _ = bnfold.fold_onnx(case.build(), verify=False)
    again, _ = bnfold.fold_onnx(folded, verify=False)
    assert again.SerializeToString() == folded.SerializeToString()
