"""What a comparison of two models found: one error an output, and the verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["OutputError", "Verification"]


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

    status: "passed", "failed", or "not run" (nothing is known; `reason` says why). evaluator: what ran both
    models. rtol, atol: the tolerance of the model's type. notes: what else a reader should know.
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
        for o in self.outputs:
            numbers = [f"{number:.3g}" for number in (o.max_abs, o.max_rel, o.largest)]
            rows.append((o.name, o.dtype, numbers[0], numbers[1], numbers[2], "ok" if o.ok else "WRONG"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        if self.outputs:
            for row, note in zip(rows, ["", *(o.note for o in self.outputs)], strict=True):
                padded = enumerate(zip(row, widths, strict=True))
                cells = [c.rjust(w) if 1 < i < 5 else c.ljust(w) for i, (c, w) in padded]
                lines.append("  ".join([*cells, note]).rstrip())
        by = f" with {self.evaluator}" if self.evaluator else ""
        within = f" (tolerance {self.rtol:g} of the largest value)" if self.outputs else ""
        lines.append(f"verification{by}: {self.status}{': ' + self.reason if self.reason else ''}{within}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
