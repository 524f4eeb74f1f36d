"""MobileNetV2 with trained weights in half precision: folded first, and converted first."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from bnfold.passes.half.rounded import rounded_copy
from tests.torch_graph.trained import exported

pytestmark = pytest.mark.xdist_group("exports of trained networks")
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_embedder_is_accurate_only_if_folded_first(precision: str) -> None:
    """Its scales gamma/std reach 1.9e3."""
    model, feed = exported("mobilenetv2, embedder")
    half, report = bnfold.fold_onnx(model, precision=precision, inputs=feed)
    onnx.checker.check_model(half, full_check=True)
    (ours,), (theirs,) = report.precision.outputs, report.precision.convert_first
    assert len(report.folded) == 52
    assert (report.precision.kept, report.precision.casts) == ([], 2)
    assert ours.ok
    assert math.isfinite(ours.max_rel)
    assert not theirs.ok
    assert theirs.max_rel > 2 * ours.max_rel
    sizes = [sum(len(t.raw_data) for t in m.graph.initializer) for m in (half, model)]
    assert sizes[0] < 0.52 * sizes[1]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_cat_is_a_cat_in_half_precision(precision: str) -> None:
    model, feed = exported("mobilenetv2, ImageNet")
    half, report = bnfold.fold_onnx(model, precision=precision, inputs=feed)
    assert report.precision.status == "passed"
    models = [load(model), rounded_copy(load(half))]
    models += [load(half)] if precision == "fp16" else []  # onnxruntime has no convolution in bfloat16
    scores = [next(iter(evaluate(each, feed)[0].values()))[0] for each in models]
    for score in scores:
        assert int(score.argmax()) == 285  # an Egyptian cat
        assert float(score.max()) == pytest.approx(18.5, abs={"fp16": 0.1, "bf16": 0.7}[precision])


def test_the_stored_result_is_complete_and_says_so() -> None:
    known = json.loads((ROOT / "bench" / "results" / "precision.json").read_text())
    assert set(known["versions"]) >= {"bnfold", "python", "numpy", "onnxruntime", "torch", "scikit-image"}
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", known["date"])
    networks = known["networks"]
    assert len(networks) == 8
    for name, network in networks.items():
        assert network["kept"] == 0, name
        for precision in ("fp16", "bf16"):
            ours, theirs = (network[precision][way] for way in ("fold_first", "convert_first"))
            assert ours["finite"] == network["pictures"]
            assert 0 < ours["mean"] <= ours["worst"]
            assert theirs["mean"] is None or ours["mean"] < theirs["mean"]
    fp16 = {name: network["fp16"] for name, network in networks.items()}
    detector = fp16["PP-OCRv4, text detector"]
    assert detector["fold_first"]["same"] > 0.999
    assert detector["convert_first"]["same"] < 0.95
    small = fp16["8 x conv + batch norm, variance 1e-08, epsilon 1e-08"]
    assert small["convert_first"]["finite"] == 0
    assert np.isclose(small["fold_first"]["worst"], 1e-3, atol=1e-3)
