"""What became of a model's numbers in half precision: what stayed float32, what was rescaled, the errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bnfold.report.data import Data, Span
from bnfold.report.table import counted, first, table
from bnfold.report.verification import OutputError


class KeptNode(NamedTuple):
    """A node that computes in float32 still, and why."""

    node: str
    op: str
    reason: str


class Rescaled(NamedTuple):
    """A tensor whose channels are carried at another size: `factors` are powers of two.

    values: the largest absolute value of a channel, as measured; weights: of the weights that make a channel.
    Both before and after; None where there are none, or nothing was measured.
    """

    tensor: str
    channels: list[int]
    factors: list[float]
    values_before: Span | None = None
    values_after: Span | None = None
    weights_before: Span | None = None
    weights_after: Span | None = None


@dataclass
class PrecisionReport(Data):
    """The conversion of one model.

    precision: "float16" or "bfloat16". half: how many nodes compute in it. kept: those that could and do not,
    or cannot. casts: how many Casts were added. stuck: tensors out of range that could not be rescaled, and
    why; the nodes around them are among `kept`. status: of the comparison with the float32 model, "passed",
    "failed" or "not run". outputs: its errors. convert_first: the errors of the model that is converted
    without being folded first; empty if that was not measured. No part of the JSON are factors: of each
    channel of every rescaled tensor.
    """

    precision: str
    half: int = 0
    kept: list[KeptNode] = field(default_factory=list)
    casts: int = 0
    rescaled: list[Rescaled] = field(default_factory=list)
    stuck: list[tuple[str, str]] = field(default_factory=list)
    status: str = "not run"
    reason: str = ""
    evaluator: str = ""
    rtol: float = 0.0
    atol: float = 0.0
    outputs: list[OutputError] = field(default_factory=list)
    convert_first: list[OutputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    factors: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        stuck = [{"tensor": tensor, "reason": reason} for tensor, reason in self.stuck]
        found = super().to_dict() | {"stuck": stuck}
        del found["factors"]
        return found

    def __str__(self) -> str:
        nodes = f"{counted(self.half, 'node')} converted, {len(self.kept)} left in float32"
        lines = [f"{self.precision}: {nodes}, {counted(self.casts, 'Cast')} added"]
        reasons: dict[str, list[str]] = {}
        for kept in self.kept:
            reasons.setdefault(kept.reason, []).append(kept.node)
        for reason, names in list(reasons.items())[:SHOWN]:
            lines.append(f"  float32: {first(names, 3)}: {reason}")
        if len(reasons) > SHOWN:
            lines.append(f"  float32: {len(reasons) - SHOWN} other reasons")
        lines += [_moved(entry) for entry in self.rescaled[:SHOWN]]
        if len(self.rescaled) > SHOWN:
            lines.append(f"  rescaled: {len(self.rescaled) - SHOWN} more tensors")
        lines += [f"  out of range: {tensor}: {reason}" for tensor, reason in self.stuck[:SHOWN]]
        lines += list(self._errors())
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _errors(self) -> Sequence[str]:
        if not self.outputs:
            return [f"{self.precision}: not compared with float32{': ' + self.reason if self.reason else ''}"]
        unfolded = {error.name: error for error in self.convert_first}
        rows = [("output", f"{self.precision} error", "convert first", "")]
        for error in self.outputs:
            other = unfolded.get(error.name)
            before = "" if other is None else _number(other.max_rel)
            verdict = "ok" if error.ok else f"WRONG {error.note}"
            rows.append((error.name, _number(error.max_rel), before, verdict))
        lines = table(rows, right=(1, 2), ruled=False)
        said = (
            f"against float32 with {self.evaluator}, each tensor rounded to {self.precision}: {self.status}"
        )
        return [*lines, f"{said}{': ' + self.reason if self.reason else ''} (tolerance {self.rtol:g})"]


SHOWN = 5  # lines of each kind in the text; the JSON has them all


def _number(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "not finite"


def _moved(entry: Rescaled) -> str:
    powers = Counter(entry.factors)
    low, high = min(powers), max(powers)
    by = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    parts = []
    for what, before, after in (
        ("values", entry.values_before, entry.values_after),
        ("weights", entry.weights_before, entry.weights_after),
    ):
        if before is not None and after is not None:
            parts.append(f"{what} {_span(before)} -> {_span(after)}")
    told = f": {'; '.join(parts)}" if parts else ""
    return f"  rescaled: {entry.tensor}, {counted(len(entry.channels), 'channel')} by {by}{told}"


def _span(span: Span) -> str:
    return f"{span.low:.2g}..{span.high:.2g}"
