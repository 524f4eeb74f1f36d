"""For each batch norm: folded into what, or kept, blocked by which node, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One batch norm, or one other affine node that was looked at.

    outcome: "folded" (the node is gone) or "kept". into: names of the nodes whose weights absorbed it.
    reason: why it was kept, or how it was folded. blocked_by: the node or tensor that stopped it. cure: what
    would let it go, or "". dead_channels: those whose output never changes (scale 0, or running variance 0).
    """

    name: str
    op: str
    outcome: str
    into: tuple[str, ...] = ()
    reason: str = ""
    blocked_by: str = ""
    cure: str = ""
    dead_channels: tuple[int, ...] = ()


class Rewrite(NamedTuple):
    """A node that does what several did. name: of the new node. op: its operator. replaces: their names."""

    name: str
    op: str
    replaces: tuple[str, ...]


@dataclass
class Report:
    """What happened to a model. `verification` is filled in by the check (None: not run).

    rewritten: the kept batch norms that became other nodes for the target.
    precision: what a conversion to half precision did.
    """

    entries: list[Entry] = field(default_factory=list)
    rewritten: list[Rewrite] = field(default_factory=list)
    verification: Any = None
    notes: list[str] = field(default_factory=list)
    precision: Any = None

    @property
    def folded(self) -> list[Entry]:
        return [e for e in self.entries if e.outcome == "folded"]

    @property
    def kept(self) -> list[Entry]:
        return [e for e in self.entries if e.outcome == "kept"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"entries": [...], "folded": n, "kept": n, "rewritten": [...], "notes": [...],
        "verification": {...} or None, "precision": {...} or None}.
        """
        check = self.verification.to_dict() if self.verification is not None else None
        return {
            "entries": [e._asdict() for e in self.entries],
            "folded": len(self.folded),
            "kept": len(self.kept),
            "rewritten": [rewrite._asdict() for rewrite in self.rewritten],
            "notes": list(self.notes),
            "verification": check,
            "precision": self.precision.to_dict() if self.precision is not None else None,
        }

    def to_json(self, indent: int | None = 1) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        rows = [("name", "op", "outcome", "into / why")]
        rows += [(e.name, e.op, e.outcome, _story(e)) for e in self.entries]
        lines = list(_table(rows))
        lines.append(f"{len(self.folded)} folded, {len(self.kept)} kept")
        if self.rewritten:
            head = ("node", "operator", "replaces")
            new = [(r.name, r.op, ", ".join(r.replaces)) for r in self.rewritten]
            lines += ["", *_table([head, *new]), f"{len(self.rewritten)} rewritten for the target"]
        lines += [f"note: {note}" for note in (*self.notes, *_dead(self.entries))]
        if self.verification is not None:
            lines.append(str(self.verification))
        if self.precision is not None:
            lines.append(str(self.precision))
        return "\n".join(lines)


def _dead(entries: list[Entry]) -> Iterable[str]:
    """Which channels are dead, as far as a line tells it."""
    found = [entry for entry in entries if entry.dead_channels]
    if found:
        count = sum(len(entry.dead_channels) for entry in found)
        shown = [f"{entry.name} ({_first(entry.dead_channels, 8)})" for entry in found]
        yield f"{count} dead channel{'s' * (count > 1)}, whose output never changes: {_first(shown, 4)}"


def _first(items: Sequence[Any], count: int) -> str:
    rest = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + rest


def _story(entry: Entry) -> str:
    if entry.outcome == "folded":
        return _first(entry.into, 3)
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
