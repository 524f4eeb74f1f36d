"""onnx's own tests of its operators, about 1,900 models with expected outputs: with every option, what comes
back gives what was expected.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold.errors import BnfoldError

pytestmark = pytest.mark.xdist_group("onnx's own tests")  # which take seconds to collect

OPTIONS: dict[str, dict[str, Any]] = {
    "by default": {},
    "for TensorRT": {"target": "tensorrt"},
    "batch statistics lowered": {"lower_batch_statistics": True},
    "dead channels dropped": {"drop_dead_channels": True},
    "branches apart": {"merge_branches": False},
}
Feed = dict[str, Any]
Run = Callable[[onnx.ModelProto, Feed], Any]


@cache
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they compute infinities on purpose
        from onnx.backend.test.case.node import collect_testcases

        found: list[Any] = collect_testcases(None)
    return found


def by_onnxruntime(model: onnx.ModelProto, feed: Feed) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def by_reference(model: onnx.ModelProto, feed: Feed) -> Any:
    return ReferenceEvaluator(model).run(None, feed)


def is_near(a: Any, b: Any, case: Any) -> bool:
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(is_near(x, y, case) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if b.dtype.kind in "OSUb":
        return bool((a == b).all())
    exact = np.complex128 if b.dtype.kind == "c" else np.float64
    return np.allclose(a.astype(exact), b.astype(exact), case.rtol, case.atol, equal_nan=True)


def gives(model: onnx.ModelProto, case: Any, run: Run) -> bool:
    """The model runs, and gives what is expected."""
    try:
        return all(
            is_near(
                run(model, dict(zip([i.name for i in model.graph.input], inputs, strict=False))),
                list(outputs),
                case,
            )
            for inputs, outputs in case.data_sets
        )
    except Exception:
        return False


@pytest.mark.parametrize("options", OPTIONS)
def test_what_comes_back_gives_what_was_expected(options: str) -> None:
    ends: Counter[str] = Counter()
    wrong = []
    for case in cases():
        before = case.model.SerializeToString()
        try:
            folded, _ = bnfold.fold_onnx(case.model, verify=False, **OPTIONS[options])
        except BnfoldError:
            ends["refused"] += 1
            continue
        if folded.SerializeToString() == before:
            ends["unchanged"] += 1
            continue
        for run in (by_onnxruntime, by_reference):
            if gives(folded, case, run):
                ends["right"] += 1
                break
            if gives(case.model, case, run):
                wrong.append(case.name)
                break
        else:
            ends["the original does not run either"] += 1
    assert not wrong
    assert ends.total() == len(cases()) > 1000
    assert ends["right"] >= 40, ends
    assert ends["refused"] == 0, ends
    assert ends["the original does not run either"] <= ends.total() // 50, ends
