"""How far apart are two values of one output, and is that more than rounding?

An error is judged against the largest absolute value of its output, not element by element: an element near
zero is a difference of large numbers, and its own size says nothing about the rounding behind it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bnfold.options import Check
from bnfold.report.verification import OutputError

Array = np.ndarray[Any, Any]


class Tolerance(NamedTuple):
    """max|difference| may be atol + rtol * max|output|. `why` is for people."""

    rtol: float
    atol: float
    why: str


# By the floating type that the model computes in; "... as float32" is for the float32 copy of such a model,
# "quantized" for one that rounds activations to integers. A unit is the type's rounding step at 1.
TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(1e-12, 1e-15, "4,500 units (2.2e-16); the fold itself computes in float64 too"),
    "float32": Tolerance(1e-5, 1e-9, "80 units (1.2e-7): a hundred layers stay below; a wrong fold does not"),
    "float16": Tolerance(2e-2, 1e-6, "20 units (9.8e-4): weights and every activation are rounded anew"),
    "bfloat16": Tolerance(1e-1, 1e-6, "13 units (7.8e-3): weights and every activation are rounded anew"),
    "float16 as float32": Tolerance(5e-3, 1e-6, "5 units (9.8e-4): only stored weights are rounded anew"),
    "bfloat16 as float32": Tolerance(4e-2, 1e-6, "5 units (7.8e-3): only stored weights are rounded anew"),
    "quantized": Tolerance(
        2e-2, 1e-6, "2.5 steps of 1/127: an activation between two steps may tip either way"
    ),
    "integer": Tolerance(
        1e-3, 0.0, "share of entries that may differ: a maximum may tip where two are equal"
    ),
}
# An error up to so many times the original's own is rounding.
OWN_ERROR = 2.0


def tolerance_of(kind: str, check: Check) -> Tolerance:
    """What is asked for; else what is usual for a kind of model, a key of TOLERANCES."""
    usual = TOLERANCES[kind]
    rtol = usual.rtol if check.rtol is None else check.rtol
    return Tolerance(rtol, usual.atol if check.atol is None else check.atol, usual.why)


class Truth(NamedTuple):
    """What tells an error from rounding, for one output. None where it is not known."""

    exact: Any  # the original's output, with far less rounding
    rounded: Any  # the original's output, with the rounding that it has in use


def compare(
    name: str, original: Any, folded: Any, tolerance: Tolerance, dtype: str = "", truth: Truth | None = None
) -> list[OutputError]:
    """Judge one output. `dtype`: what to call its floating type, where that is not numpy's name.

    Beyond the tolerance, an error counts as rounding if the folded output is at most OWN_ERROR times as far
    from `truth.exact` as the original's, `truth.rounded`, is.

    Sequences and maps give one error for each of their items.
    """
    if isinstance(original, (list, tuple, dict)):
        keys = list(original) if isinstance(original, dict) else list(range(len(original)))
        if type(folded) is not type(original) or len(folded) != len(original):
            return [_wrong(name, "sequence", "the number of items changed")]
        errors = []
        for key in keys:
            errors += compare(f"{name}[{key}]", original[key], folded[key], tolerance, dtype)
        return errors
    if original is None or folded is None:
        same = original is None and folded is None
        empty = OutputError(name, "optional", 0.0, 0.0, 0.0, True, "empty")
        return [empty if same else _wrong(name, "optional", "one is empty")]
    x, y = np.asarray(original), np.asarray(folded)
    kind = dtype or str(x.dtype)
    if x.shape != y.shape or x.dtype != y.dtype:
        return [_wrong(name, kind, f"{x.dtype}{list(x.shape)} became {y.dtype}{list(y.shape)}")]
    if x.dtype.kind in "biuOUS" or "int" in x.dtype.name:
        return [_compare_entries(name, x, y, truth)]
    return [_compare_floats(name, kind, x, y, tolerance, truth)]


def _compare_floats(
    name: str, kind: str, x: Array, y: Array, tolerance: Tolerance, truth: Truth | None
) -> OutputError:
    x, y = _as_wide(x), _as_wide(y)
    if not x.size:
        return OutputError(name, kind, 0.0, 0.0, 0.0, True, "empty")
    finite = np.isfinite(x)
    largest = float(np.abs(x[finite]).max(initial=0.0))
    odd = ~((x == y) | (np.isnan(x) & np.isnan(y)) | (finite & np.isfinite(y)))
    if odd.any():
        note = f"NaN or infinity on one side only, at {int(odd.sum())} of {x.size} places"
        return OutputError(name, kind, math.inf, math.inf, largest, False, note)
    error = float(np.abs(y[finite] - x[finite]).max(initial=0.0))
    share = error / largest if largest else (math.inf if error else 0.0)
    result = OutputError(
        name, kind, error, share, largest, error <= tolerance.atol + tolerance.rtol * largest
    )
    if not finite.any():
        result.note = "no finite value"
    elif not result.ok and truth is not None and np.shape(truth.exact) == np.shape(truth.rounded) == x.shape:
        exact, rounded = _as_wide(np.asarray(truth.exact)), _as_wide(np.asarray(truth.rounded))
        both = finite & np.isfinite(exact) & np.isfinite(rounded)
        own = float(np.abs(rounded[both] - exact[both]).max(initial=0.0))
        ours = float(np.abs(y[both] - exact[both]).max(initial=0.0))
        result.ok = bool(both.any()) and ours <= OWN_ERROR * own
        unit = largest or 1.0
        result.note = f"{'ill-conditioned: ' if result.ok else ''}off the exact result by {ours / unit:.2g}, "
        result.note += f"the original by {own / unit:.2g}"
    return result


def _compare_entries(name: str, x: Array, y: Array, truth: Truth | None) -> OutputError:
    """Integers, booleans, strings: how many entries differ."""
    if not x.size:
        return OutputError(name, str(x.dtype), 0.0, 0.0, 0.0, True, "empty")
    differ = x != y
    share = float(np.mean(differ))
    numbers = x.dtype.kind not in "OUS"
    difference = np.abs(x.astype(np.float64) - y.astype(np.float64)) if numbers else differ.astype(np.float64)
    largest = float(np.abs(x.astype(np.float64)).max()) if numbers else 0.0
    result = OutputError(
        name, str(x.dtype), float(difference.max()), share, largest, share <= TOLERANCES["integer"].rtol
    )
    if share:
        result.note = f"{int(differ.sum())} of {x.size} entries differ"
    if not result.ok and truth is not None and np.shape(truth.exact) == np.shape(truth.rounded) == x.shape:
        own, ours = float(np.mean(truth.rounded != truth.exact)), float(np.mean(y != truth.exact))
        result.ok = ours <= OWN_ERROR * own
        result.note += f"; off the exact result at a share of {ours:.2g}, the original at {own:.2g}"
    return result


def _as_wide(x: Array) -> Array:
    return x if x.dtype.kind == "c" else x.astype(np.float64)


def _wrong(name: str, dtype: str, note: str) -> OutputError:
    return OutputError(name, dtype, math.inf, math.inf, 0.0, False, note)
