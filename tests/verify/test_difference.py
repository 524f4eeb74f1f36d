"""How an error is judged, without any model."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold.options import Check
from bnfold.verify.difference import compare, tolerance_of
from tests.passes.channels.planted import planted

ZEROS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(("error", "ok"), [(0.0, True), (1e-7, True), (1e-5, False), (np.nan, False)])
def test_where_all_cancels_a_difference_is_rounding_if_it_is_small(error: float, ok: bool) -> None:
    (found,) = compare("y", ZEROS, ZEROS + np.float32(error), tolerance_of("float32", Check()))
    assert found.ok is ok
    assert found.largest == 0


def test_a_tolerance_that_was_given_is_kept_there_too() -> None:
    (found,) = compare("y", ZEROS, ZEROS + np.float32(1e-7), tolerance_of("float32", Check(rtol=1e-5)))
    assert not found.ok


def test_one_entry_that_is_not_zero_makes_it_the_measure() -> None:
    small = ZEROS.copy()
    small[0, 0] = 1e-3
    (found,) = compare("y", small, small + np.float32(1e-7), tolerance_of("float32", Check()))
    assert not found.ok


def test_a_model_with_an_output_that_cancels_is_folded() -> None:
    _, report = bnfold.fold_onnx(planted(8000620), shared="skip", check="run")
    assert report.verification.status == "passed"
    assert any(output.largest == 0 < output.max_abs for output in report.verification.outputs)
