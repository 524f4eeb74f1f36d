"""How far apart are two values of one output, and is that more than rounding?

An error is judged against the largest absolute value of its output, not element by element: an element near
zero is a difference of large numbers, and its own size says nothing about the rounding behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bnfold.options import Check
from bnfold.report.verification import OutputError

Array = np.ndarray[Any, Any]


class Tolerance(NamedTuple):
    """max|difference| may be atol + rtol * max|output|. `why` is for people.

    given: by the user, who means it: nothing excuses what is beyond.
    """

    rtol: float
    atol: float
    why: str
    given: bool = False


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
# An output of nothing but zeros is measured against this: what cancels there was larger inside, and rounds.
ZEROS = 0.1
SATURATED = 1e-6  # so near 0 or 1, a value behind a sigmoid tells nothing of what is in front of it
SEEDS = 3  # inputs that tell rounding from a fault
NUDGES = 8  # times that their last bits are changed, before a fault is told
# An error up to so many times the original's own is rounding; one so many times as large never is, whatever
# other inputs would show.
OWN_ERROR, NO_ROUNDING = 2.0, 100.0


def tolerance_of(kind: str, check: Check) -> Tolerance:
    """What is asked for; else what is usual for a kind of model, a key of TOLERANCES."""
    usual = TOLERANCES[kind]
    if check.rtol is None and check.atol is None:
        return usual
    rtol = usual.rtol if check.rtol is None else check.rtol
    return Tolerance(rtol, usual.atol if check.atol is None else check.atol, usual.why, given=True)


class Truth(NamedTuple):
    """What tells an error from rounding, for one output. None where it is not known."""

    exact: Any  # the original's output, with far less rounding
    rounded: Any  # the original's output, with the rounding that it has in use


class Strays(NamedTuple):
    """How far either model is from the exact result, as a share of its largest value, or of entries."""

    own: float
    ours: float


def compare(
    name: str, original: Any, folded: Any, tolerance: Tolerance, dtype: str = ""
) -> list[OutputError]:
    """Judge one output. `dtype`: what to call its floating type, where that is not numpy's name.

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
    return [_compare_entries(name, x, y) if _counted(x) else _compare_floats(name, kind, x, y, tolerance)]


def strays(folded: Any, truth: Truth) -> Strays | None:
    """How far the models stray on one input; None where that cannot be told."""
    exact, rounded, y = (np.asarray(each) for each in (truth.exact, truth.rounded, folded))
    if not exact.shape == rounded.shape == y.shape:
        return None
    if _counted(y):
        return Strays(float(np.mean(rounded != exact)), float(np.mean(y != exact)))
    exact, rounded, y = _as_wide(exact), _as_wide(rounded), _as_wide(y)
    both = np.isfinite(exact) & np.isfinite(rounded)
    if not both.any():
        return None
    unit = float(np.abs(exact[both]).max()) or 1.0
    own, ours = (float(np.abs(each[both] - exact[both]).max()) / unit for each in (rounded, y))
    return Strays(own, ours if math.isfinite(ours) else math.inf)


def excuse_by(
    errors: Iterable[OutputError],
    tolerance: Tolerance,
    draws: Iterable[Mapping[str, tuple[Any, Truth]]],
    nudges: Iterable[Mapping[str, Truth]] = (),
) -> None:
    """Judge errors beyond the usual tolerance by what other inputs show.

    Args:
        errors: all of a comparison.
        tolerance: if it is the user's, nothing is excused.
        draws: for one input after the other, the first of them that of the comparison, what the folded model
            gives and the truth, by output. No more are drawn than can change the verdict.
        nudges: before anything is refused, what the original gives on these inputs, one after the other, with
            their last bits changed. A net that tips over where it is rounded a little differently shows it
            so, also where the original was lucky on the inputs themselves.
    """
    wrong = {error.name: error for error in errors if not error.ok}
    if tolerance.given or not wrong:
        return
    found: dict[str, list[Strays]] = {}
    for _, draw in zip(range(SEEDS), draws, strict=False):
        for name in wrong.keys() & draw.keys():
            if (one := strays(*draw[name])) is not None:
                found.setdefault(name, []).append(one)
        if any(seen[-1].ours > NO_ROUNDING * seen[-1].own for seen in found.values()):
            break
    found = {name: seen for name, seen in found.items() if math.isfinite(wrong[name].max_abs)}
    left = [name for name, seen in found.items() if not _is_rounding(seen)]
    for _, truths in zip(range(NUDGES if left else 0), nudges, strict=False):
        for name in left:
            if name in truths and (one := strays(truths[name].rounded, truths[name])) is not None:
                found[name].append(one._replace(ours=math.nan))
        left = [name for name in left if not _is_rounding(found[name])]
        if not left:
            break
    for name, seen in found.items():
        excuse(wrong[name], seen)


def excuse(error: OutputError, found: Sequence[Strays]) -> None:
    """Judge an error beyond the usual tolerance by how far the models stray, on one input or several.

    It counts as rounding if the folded model strays no more than OWN_ERROR times as far as the original. The
    largest rounding among many is a random number, so of several inputs it is the median for the folded model
    and the largest for the original. Where only the original ran, `ours` is NaN.
    """
    if math.isinf(error.max_abs):
        return
    own, ours = _own_and_ours(found)
    error.ok = error.rounding = _is_rounding(found)
    said = f"off the exact result by {ours:.2g}, the original by {own:.2g}"
    error.note = f"{error.note}; {said}" if error.note else said


def _own_and_ours(found: Sequence[Strays]) -> tuple[float, float]:
    return max(each.own for each in found), median(each.ours for each in found if not math.isnan(each.ours))


def _is_rounding(found: Sequence[Strays]) -> bool:
    own, ours = _own_and_ours(found)
    return ours <= OWN_ERROR * own


def _compare_floats(name: str, kind: str, x: Array, y: Array, tolerance: Tolerance) -> OutputError:
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
    unit = largest if largest or tolerance.given else ZEROS
    result = OutputError(name, kind, error, share, largest, error <= tolerance.atol + tolerance.rtol * unit)
    if not finite.any():
        result.note = "no finite value"
    elif x.dtype.kind == "f" and x.size > 1 and (np.abs(x - np.clip(np.rint(x), 0, 1)) < SATURATED).all():
        result.note = "0 or 1 everywhere, which tells little"
    return result


def _compare_entries(name: str, x: Array, y: Array) -> OutputError:
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
    return result


def _counted(x: Array) -> bool:
    """Whether entries are equal or not, and nothing in between."""
    return x.dtype.kind in "biuOUS" or "int" in x.dtype.name


def _as_wide(x: Array) -> Array:
    return x if x.dtype.kind == "c" else x.astype(np.float64)


def _wrong(name: str, dtype: str, note: str) -> OutputError:
    return OutputError(name, dtype, math.inf, math.inf, 0.0, False, note)
