"""What a comparison of two models found: one error an output, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from bnfold.report.data import Data
from bnfold.report.table import table

__all__ = ["OutputError", "Told", "Verification"]


class Told(Protocol):
    """Something that is told in a line, or as plain data."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass
class OutputError(Data):
    """One output's error. For integers and booleans `max_rel` is the share of entries that differ.

    ok: within the tolerance, or shown to be rounding, which `rounding` tells apart.
    """

    name: str
    dtype: str
    max_abs: float
    max_rel: float  # max|difference| / max|original|
    largest: float  # max|original|
    ok: bool
    note: str = ""
    rounding: bool = False

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return "rounding" if self.rounding else "ok" if self.ok else "WRONG"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; an error that is no finite number (NaN met a number, say) is None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }


@dataclass
class Verification(Data):
    """What the comparison found.

    status: "passed", "failed", or "not run" (nothing is known; `reason` says why). evaluator: what ran both
    models. rtol, atol: the tolerance that was given, or that of the model's type. notes: what else a reader
    should know. proof: what a proof found, if one was asked for.
    """

    outputs: list[OutputError]
    evaluator: str
    status: str
    reason: str
    rtol: float
    atol: float
    notes: list[str] = field(default_factory=list)
    proof: Told | None = None

    @property
    def ok(self) -> bool:
        """Whether both models ran and agree."""
        return self.status == "passed"

    def __str__(self) -> str:
        rows = [["output", "type", "max abs error", "relative", "largest", "", ""]]
        for o in self.outputs:
            errors = [f"{number:.3g}" for number in (o.max_abs, o.max_rel, o.largest)]
            rows.append([o.name, o.dtype, *errors, o.word, o.note])
        lines = [*table(rows, right=(2, 3, 4), ruled=False)] if self.outputs else []
        by = f" with {self.evaluator}" if self.evaluator else ""
        within = f" (tolerance {self.rtol:g} of the largest value)" if self.outputs else ""
        rounded = ", ".join(dict.fromkeys(o.name for o in self.outputs if o.rounding))
        status = f"{self.status}, {rounded} but for rounding" if rounded and self.ok else self.status
        if self.proof is not None:
            lines.append(f"verification by proof: {self.proof}")
        if self.proof is None or self.outputs or self.reason:
            lines.append(f"verification{by}: {status}{': ' + self.reason if self.reason else ''}{within}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
