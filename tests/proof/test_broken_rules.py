"""Every rule of the fold, broken on purpose, one at a time: what comes out is wrong, and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.fold.absorb.absorb import ABSORB
from bnfold.fold.carry.table import SCALE, SHIFT
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

# Rules that cannot be broken so that another function comes out, and why.
NOT_BROKEN = {
    "Map: power, centred, uniform": "only operators of torch have them, and what is proved is an ONNX model",
    "Normalize: one scale for a group": "only in GroupNormalization of opset 18 to 20, which onnx withdrew",
    "quantized: the axis of the scale": "it is looked at again when scales are written, and ends the fold",
    "zero scales: plain, encode, decode": "what one divides is not finite, and is not stored",
    "zero scales: frozen, _fresh": "no model of the tables, nor of 120 random ones, folds otherwise without",
    "constants that are locked": "other numbers do not fit there, or go into a copy",
    "_cost, the order of tries and of ways": "another choice is right as well",
    "_secant": "it finds a way, and `_check` looks whether it is one",
    "check_range, check_precision": "they are about float32, and what is proved is arithmetic",
    "Locks, limits": "what they end would come to nothing, or is left out",
}


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


def test_there_is_a_broken_rule_of_each_role() -> None:
    told = {case.rule.split()[0].rstrip(",:") for case in TABLE}
    roles = {role.__name__ for role in (*SCALE, *SHIFT, *ABSORB)}
    assert len(roles) > 15
    assert roles <= told


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
    assert found.refusal.node == case.named, str(found)
    if not case.fine:
        assert prove(load(original), load(wrong)).status != "proved"
