"""How far numbers are off, in units in the last place of their type."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.proof.claims import Wrong
from bnfold.proof.ulps import Worst


@pytest.mark.parametrize("value", [1.0, -1.5, 1 / 3, 3e38, -1e-30, 0.0, 1e-45, 2.0**-126, -(2.0**-127)])
def test_the_next_number_is_one_unit_off(value: float) -> None:
    stored = np.float32([value])
    other = np.nextafter(stored, np.float32(np.copysign(np.inf, value)))
    assert Worst("w", "float32").look(other.astype(float), stored.astype(float)).judged() == 1.0


def test_the_worst_of_all_parts_is_told_with_its_place() -> None:
    worst = Worst("w", "float32")
    exact = np.arange(1.0, 7.0).reshape(2, 3)
    worst.look(exact, exact)
    worst.look(exact + np.array([[0, 0, 0], [0, 3 * 2.0**-21, 0]]), exact, begin=(2,))
    worst.look(exact * (1 + 2.0**-22), exact, begin=(4,))
    with pytest.raises(Wrong) as error:
        worst.judged()
    assert error.value.entry is not None
    assert error.value.entry.at == (3, 1)
    assert (error.value.ulps, error.value.final) == (3.0, True)
    assert "7 of 18" in str(error.value)


@pytest.mark.parametrize(
    ("got", "exact", "ulps"),
    [(np.inf, np.inf, 0.0), (np.nan, np.nan, 0.0), (1.0, np.inf, np.inf), (np.nan, 1.0, np.inf)],
)
def test_what_is_not_finite_is_itself_only(got: float, exact: float, ulps: float) -> None:
    assert Worst("w", "float32").look(np.array([got, 1.0]), np.array([exact, 1.0])).ulps == ulps


def test_a_slack_is_taken_off() -> None:
    exact = np.ones(2)
    assert Worst("w", "float32").look(exact + 2.0**-20, exact, 7 * 2.0**-23).judged() == 1.0
