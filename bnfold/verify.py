"""Are two models the same? Both run on the same inputs; each output's error is measured and judged.

An error is judged against the largest absolute value of its output, not element by element: an element near zero is a
difference of large numbers, and its own size says nothing about the rounding behind it. Where that verdict is bad, the
unfolded model's own rounding is measured with a wider copy: a net that amplifies rounding does so with any weights, and a
folded model that strays from the exact result no more than twice as far as the original did is as good as the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bnfold.errors import UsageError

if TYPE_CHECKING:
    import onnx

    from bnfold.onnx_graph.files import Loaded
    from bnfold.onnx_graph.inputs import Given, Input
    from bnfold.onnx_graph.run import Outputs

Array = np.ndarray[Any, Any]


class Tolerance(NamedTuple):
    """max|difference| may be atol + rtol * max|output|. `why` is for people."""

    rtol: float
    atol: float
    why: str


# By the floating type that the model computes in; a second key part for the float32 copy of a half-precision model.
TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(1e-12, 1e-15, "4,500 units of rounding (2.2e-16); a fold computes in the same type"),
    "float32": Tolerance(
        1e-5, 1e-9, "80 units of rounding (1.2e-7): networks of a hundred layers stay below, a wrong fold moves far more"
    ),
    "float16": Tolerance(2e-2, 1e-6, "20 units of rounding (9.8e-4): weights and every activation are rounded anew"),
    "bfloat16": Tolerance(1e-1, 1e-6, "13 units of rounding (7.8e-3): weights and every activation are rounded anew"),
    "float16 as float32": Tolerance(5e-3, 1e-6, "5 units of rounding (9.8e-4): only the stored weights are rounded anew"),
    "bfloat16 as float32": Tolerance(4e-2, 1e-6, "5 units of rounding (7.8e-3): only the stored weights are rounded anew"),
    "integer": Tolerance(1e-3, 0.0, "share of the entries that may differ: a maximum or a comparison can tip on a tie"),
}
# An error up to so many times the original's own is rounding.
OWN_ERROR = 2.0
# Seconds that may be spent on the reference evaluator to tell a fault from rounding, by rough estimate.
PATIENCE = 60.0


@dataclass
class OutputError:
    """One output's error. For integers and booleans `max_rel` is the share of entries that differ."""

    name: str
    dtype: str
    max_abs: float
    max_rel: float  # max|difference| / max|original|
    largest: float  # max|original|
    ok: bool
    note: str = ""


@dataclass
class Verification:
    """What the comparison found.

    status: "passed", "failed", or "not run" (nothing is known; `reason` says why). evaluator: what ran both models.
    rtol, atol: the tolerance of the model's type. notes: what else a reader should know.
    """

    outputs: list[OutputError]
    evaluator: str
    status: str
    reason: str
    rtol: float
    atol: float
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether both models ran and agree."""
        return self.status == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an error that is no finite number (NaN met a number, say) is None."""
        data = asdict(self)
        for output in data["outputs"]:
            for key in ("max_abs", "max_rel", "largest"):
                if not math.isfinite(output[key]):
                    output[key] = None
        return data

    def __str__(self) -> str:
        rows = [("output", "type", "max abs error", "relative", "largest", "")]
        rows += [
            (o.name, o.dtype, f"{o.max_abs:.3g}", f"{o.max_rel:.3g}", f"{o.largest:.3g}", "ok" if o.ok else "WRONG")
            for o in self.outputs
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        if self.outputs:
            for row, note in zip(rows, ["", *(o.note for o in self.outputs)], strict=True):
                cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
                lines.append(("  ".join(cells) + (f"  {note}" if note else "")).rstrip())
        by = f" with {self.evaluator}" if self.evaluator else ""
        within = f" (tolerance {self.rtol:g} of the largest value)" if self.outputs else ""
        lines.append(f"verification{by}: {self.status}{': ' + self.reason if self.reason else ''}{within}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def verify(
    original: str | Path | onnx.ModelProto | Loaded,
    folded: str | Path | onnx.ModelProto | Loaded,
    *,
    inputs: Given | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
) -> Verification:
    """Run both models on the same inputs and compare what they give.

    Args:
        inputs: arrays by input name, or a file or folder of them (see `inputs.load_inputs`); None: generated from `seed`.
        shapes: sizes by input name for what is generated, needed where the model's own guessable sizes do not run.
        rtol, atol: max|difference| may be atol + rtol * max|output|; None: from TOLERANCES, by type. For a half-precision
            model they hold for the comparison in its own type and for that of the float32 copies.

    Raises:
        UsageError: the models' inputs or outputs differ in name, type or shape; the inputs given do not fit; or no
            evaluator is there that can run them and onnxruntime is not installed.
        ModelError: a model cannot be read.
    """
    from bnfold.onnx_graph import files, precision

    if inputs is not None and shapes:
        raise UsageError("give inputs or shapes of inputs to generate, not both")
    a, b = (m if isinstance(m, files.Loaded) else files.load(m) for m in (original, folded))
    _same_signature(a, b)
    kind = precision.working_type(a)
    check = _Check(a, b, kind, rtol, atol)
    try:
        feeds = _feeds(a, inputs, shapes, seed)
        return check.run(feeds)
    except _NotRun as reason:
        return Verification([], "", "not run", str(reason), check.tolerance().rtol, check.tolerance().atol)


def first_bad(count: int, check: Callable[[int], bool]) -> int:
    """The length of the shortest failing prefix, by bisection: its last fold, number `first_bad(...) - 1`, is to blame.

    `check(k)` tells whether the model with only the first k of the `count` folds passes. check(0), the original against
    itself, is taken to pass and check(count) to fail; neither is called. It takes about log2(count) checks.
    """
    if count < 1:
        raise ValueError("without folds none can be bad")
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        if check(middle):
            good = middle
        else:
            bad = middle
    return bad


def compare(
    name: str, original: Any, folded: Any, tolerance: Tolerance, dtype: str | None = None, exact: Any = None
) -> list[OutputError]:
    """Judge one output. `exact`: the same output of a wider copy of the original, to measure its own rounding by.

    Sequences and maps give one error for each of their items.
    """
    if isinstance(original, (list, tuple, dict)):
        keys = list(original) if isinstance(original, dict) else list(range(len(original)))
        if type(folded) is not type(original) or len(folded) != len(original):
            return [_wrong(name, "sequence", "the number of items changed")]
        wide = exact if type(exact) is type(original) and len(exact) == len(original) else None
        errors = []
        for key in keys:
            of_exact = wide[key] if wide is not None else None
            errors += compare(f"{name}[{key}]", original[key], folded[key], tolerance, dtype, of_exact)
        return errors
    if original is None or folded is None:
        same = original is None and folded is None
        return [OutputError(name, "optional", 0.0, 0.0, 0.0, True, "empty")] if same else [_wrong(name, "optional", "empty")]
    x, y = np.asarray(original), np.asarray(folded)
    kind = dtype or str(x.dtype)
    if x.shape != y.shape or x.dtype != y.dtype:
        return [_wrong(name, kind, f"{x.dtype}{list(x.shape)} became {y.dtype}{list(y.shape)}")]
    if x.dtype.kind in "biuOUS" or "int" in x.dtype.name:
        return [_compare_entries(name, x, y, exact)]
    return [_compare_floats(name, kind, x, y, tolerance, exact)]


def _compare_floats(name: str, kind: str, x: Array, y: Array, tolerance: Tolerance, exact: Any) -> OutputError:
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
    result = OutputError(name, kind, error, share, largest, error <= tolerance.atol + tolerance.rtol * largest)
    if not finite.any():
        result.note = "no finite value"
    elif not result.ok and exact is not None and np.shape(exact) == x.shape:
        truth = _as_wide(np.asarray(exact))
        both = finite & np.isfinite(truth)
        own = float(np.abs(x[both] - truth[both]).max(initial=0.0))
        ours = float(np.abs(y[both] - truth[both]).max(initial=0.0))
        scale = largest or 1.0
        result.ok = bool(both.any()) and ours <= OWN_ERROR * own
        result.note = f"{'ill-conditioned: ' if result.ok else ''}from the exact result {ours / scale:.2g}, "
        result.note += f"the original {own / scale:.2g}"
    return result


def _compare_entries(name: str, x: Array, y: Array, exact: Any) -> OutputError:
    """Integers, booleans, strings: how many entries differ."""
    if not x.size:
        return OutputError(name, str(x.dtype), 0.0, 0.0, 0.0, True, "empty")
    differ = x != y
    share = float(np.mean(differ))
    numbers = x.dtype.kind not in "OUS"
    difference = np.abs(x.astype(np.float64) - y.astype(np.float64)) if numbers else differ.astype(np.float64)
    largest = float(np.abs(x.astype(np.float64)).max()) if numbers else 0.0
    result = OutputError(name, str(x.dtype), float(difference.max()), share, largest, share <= TOLERANCES["integer"].rtol)
    if share:
        result.note = f"{int(differ.sum())} of {x.size} entries differ"
    if not result.ok and exact is not None and np.shape(exact) == x.shape:
        truth = np.asarray(exact)
        own, ours = float(np.mean(x != truth)), float(np.mean(y != truth))
        result.ok = ours <= OWN_ERROR * own
        result.note += f"; from the exact result {ours:.2g}, the original's {own:.2g}"
    return result


def _as_wide(x: Array) -> Array:
    return x if x.dtype.kind == "c" else x.astype(np.float64)


def _wrong(name: str, dtype: str, note: str) -> OutputError:
    return OutputError(name, dtype, math.inf, math.inf, 0.0, False, note)


class _NotRun(Exception):
    """Nothing can be known; the message is the reason."""


class _Broken(Exception):
    """The folded model does not run where the original does."""


@dataclass
class _Ran:
    """Both models' outputs from one evaluator."""

    original: Outputs
    folded: Outputs
    feed: Mapping[str, Array]
    evaluator: str


class _Check:
    """One comparison: run in the own type, and half-precision models as float32 copies too."""

    def __init__(self, a: Loaded, b: Loaded, kind: str, rtol: float | None, atol: float | None) -> None:
        self.a, self.b, self.kind, self.rtol, self.atol = a, b, kind, rtol, atol
        self.half = kind in ("float16", "bfloat16")
        self.notes: list[str] = []

    def tolerance(self, key: str = "") -> Tolerance:
        default = TOLERANCES[key or self.kind]
        return Tolerance(
            default.rtol if self.rtol is None else self.rtol,
            default.atol if self.atol is None else self.atol,
            default.why,
        )

    def run(self, feeds: Callable[[bool], Sequence[Mapping[str, Array]]]) -> Verification:
        own, reasons = None, ""
        try:
            for positive in (False, True):
                own = _run_pair(self.a, self.b, feeds(positive), patience=PATIENCE if self.half else None)
                if _tells_something(own.original):
                    break
            else:
                raise _NotRun("every output is empty, NaN or infinite on generated inputs; give real ones")
        except _NotRun as reason:
            if not self.half:
                raise
            reasons = str(reason)
        except _Broken as error:
            return self._verdict([], "", str(error))
        if not self.half:
            assert own is not None
            return self._judge_own(own)
        return self._judge_half(own, feeds, reasons)
