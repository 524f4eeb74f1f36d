"""Every rule of the fold, broken on purpose, one at a time: what comes out is wrong, and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import CannotRun, Reference
from bnfold.onnx_graph.run.side_by_side import Feeds
from bnfold.onnx_graph.run.widened import float64_copy
from bnfold.proof.decide import prove
from tests.proof.broken.breaking import Broken
from tests.proof.broken.layers import LAYERS
from tests.proof.broken.maps import MAPS
from tests.proof.broken.rearranging import REARRANGING
from tests.proof.broken.solving import SOLVING

TABLE: list[Broken] = [*LAYERS, *MAPS, *REARRANGING, *SOLVING]


def outputs(model: onnx.ModelProto, original: onnx.ModelProto, gain: float) -> list[Any]:
    """In float64, of random inputs."""
    feed = next(iter(Feeds(load(original), None, None, 0)))
    wide = {k: gain * v.astype(float) if v.dtype.kind == "f" else v for k, v in feed.items()}
    return list(Reference(float64_copy(load(model))).run(wide).values())


def apart(model: onnx.ModelProto, original: onnx.ModelProto, gain: float = 1.0) -> float:
    """max |a - b| / max |a| over all outputs; infinite where the model does not run."""
    want = outputs(original, original, gain)
    try:
        got = outputs(model, original, gain)
    except CannotRun:
        return float("inf")
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return float("inf")
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.rule)
def test_a_fold_by_a_broken_rule_is_refuted_at_its_node(
    case: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = case.model()
    right, _ = bnfold.fold_onnx(original, verify=False, **case.options)
    error = apart(right, original, case.gain)
    assert error < 1e-5
    case.breaks(monkeypatch)
    wrong, report = bnfold.fold_onnx(original, verify=False, certificate=True, **case.options)
    monkeypatch.undo()
    assert apart(wrong, original, case.gain) > max(case.least, 2 * error)
    found = prove(load(original), load(wrong), report.certificate)
    assert found.status == "refuted", str(found)
    assert found.refusal is not None
    told = {each.node for each in (found.refusal, found.begins) if each is not None}
    assert told & set(case.named), str(found)
    if not case.fine:
        assert prove(load(original), load(wrong)).status != "proved"
