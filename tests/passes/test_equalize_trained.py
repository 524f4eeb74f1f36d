"""MobileNetV2 with trained weights, equalized: the same bits, and weights that one int8 scale rounds less."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from tests.torch_graph.trained import exported

pytestmark = pytest.mark.xdist_group("exports of trained networks")


def weights(model: onnx.ModelProto) -> list[np.ndarray]:
    """Of the convs, in their order."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [stored[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]


def rounded(weight: np.ndarray) -> float:
    """What one int8 scale costs a channel, relative to its size: the mean over channels that have one."""
    step = np.abs(weight).max() / 127
    axes = tuple(range(1, weight.ndim))
    errors = np.sqrt(((np.round(weight / step) * step - weight) ** 2).sum(axes))
    sizes = np.sqrt((weight.astype(np.float64) ** 2).sum(axes))
    alive = sizes > 1e-6 * sizes.max()
    return float((errors[alive] / sizes[alive]).mean())


@pytest.mark.parametrize("name", ["mobilenetv2, ImageNet", "mobilenetv2, embedder"])
def test_no_bit_changes_and_rounding_costs_less(name: str) -> None:
    model, feed = exported(name)
    folded, _ = bnfold.fold_onnx(model)
    balanced, report = bnfold.equalize_onnx(folded, split_relu6=True)
    assert report.verification.ok
    assert report.split
    assert report.bits_after < report.bits_before
    assert len(balanced.graph.node) <= len(folded.graph.node) + len(report.split)
    onnx.checker.check_model(balanced, full_check=True)
    (exact,), (found,) = (evaluate(load(m), feed)[0].values() for m in (folded, balanced))
    np.testing.assert_array_equal(found, exact)
    before, after = (np.mean([rounded(w) for w in weights(m)]) for m in (folded, balanced))
    assert after < 0.85 * before
    # the Relu6 layers do not let go of each other
    _, whole = bnfold.equalize_onnx(folded)
    assert not whole.split
    assert {entry.cure[:13] for entry in whole.kept} == {"", "--split-relu6"}
