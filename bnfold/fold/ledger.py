"""For each batch norm: folded into what, or kept, blocked by which node, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch norm, or one other affine node that was looked at.

    outcome: "folded" (the node is gone) or "kept". into: names of the nodes whose weights absorbed it.
    reason: why it was kept, or how it was folded. blocked_by: the node or tensor that stopped it. cure: what
    would let it go, or "".
    """

    name: str
    op: str
    outcome: str
    into: tuple[str, ...] = ()
    reason: str = ""
    blocked_by: str = ""
    cure: str = ""


@dataclass
class Report:
    """What happened to a model. `verification` is filled in by the check (None: not run)."""

    entries: list[Entry] = field(default_factory=list)
    verification: Any = None
    notes: list[str] = field(default_factory=list)

    @property
    def folded(self) -> list[Entry]:
        return [e for e in self.entries if e.outcome == "folded"]

    @property
    def kept(self) -> list[Entry]:
        return [e for e in self.entries if e.outcome == "kept"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"entries": [...], "folded": n, "kept": n, "notes": [...], "verification": {...} or
        None}.
        """
        check = self.verification.to_dict() if self.verification is not None else None
        return {
            "entries": [asdict(e) for e in self.entries],
            "folded": len(self.folded),
            "kept": len(self.kept),
            "notes": list(self.notes),
            "verification": check,
        }

    def to_json(self, indent: int | None = 1) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        rows = [("name", "op", "outcome", "into / why")]
        rows += [(e.name, e.op, e.outcome, _story(e)) for e in self.entries]
        lines = list(_table(rows))
        lines.append(f"{len(self.folded)} folded, {len(self.kept)} kept")
        lines += [f"note: {note}" for note in self.notes]
        if self.verification is not None:
            lines.append(str(self.verification))
        return "\n".join(lines)


def _story(entry: Entry) -> str:
    if entry.outcome == "folded":
        return ", ".join(entry.into[:3]) + (f" and {len(entry.into) - 3} more" if len(entry.into) > 3 else "")
    where = f"{entry.blocked_by}: " if entry.blocked_by else ""
    return where + entry.reason + (f" ({entry.cure})" if entry.cure else "")


def _table(rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    rows = list(rows)
    widths = [min(48, max(len(row[i]) for row in rows)) for i in range(len(rows[0]) - 1)]
    for i, row in enumerate(rows):
        cells = [
            cell if len(cell) <= w else cell[: w - 1] + "…" for cell, w in zip(row, widths, strict=False)
        ]
        yield "  ".join([cell.ljust(w) for cell, w in zip(cells, widths, strict=True)] + [row[-1]]).rstrip()
        if i == 0:
            yield "  ".join("-" * w for w in [*widths, 12])
