"""What slimming did: layer by layer, group by group, and step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bnfold.report.data import Data
from bnfold.report.fold import Report
from bnfold.report.table import table
from bnfold.report.verification import Verification

__all__ = ["GroupChange", "LayerChange", "SlimReport", "Step"]


class LayerChange(NamedTuple):
    """One layer that holds parameters. Each pair: before, and after (before the fold). multiplications: of
    convolutions and linear layers, in one run on the example inputs.
    """

    name: str
    kind: str
    channels: tuple[int, int]
    parameters: tuple[int, int]
    multiplications: tuple[int, int]


class GroupChange(NamedTuple):
    """Channels that can only go together. name: of the first layer that makes them. layers: all that do, with
    their batch norms. channels: before, after. removed: which ones. why: what kept them all, or "".
    """

    name: str
    layers: tuple[str, ...]
    channels: tuple[int, int]
    removed: tuple[int, ...]
    why: str


class Step(NamedTuple):
    """The network after a step. value: what `evaluate` gave (None: it was not asked)."""

    name: str
    parameters: int
    batch_norms: int
    value: float | None


@dataclass
class SlimReport(Data):
    """What happened. ratio: of the batch norm channels that can go, the share asked for; reached: what went.
    threshold: the largest importance of a channel that went. verification: the slimmed network against the
    given one with the removed channels' weights set to 0. folded: the ledger of the fold.
    """

    ratio: float
    reached: float
    threshold: float
    layers: list[LayerChange]
    groups: list[GroupChange]
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verification: Verification | None = None
    folded: Report | None = None

    def total(self, what: str) -> tuple[int, int]:
        """Before and after, over all layers: of "channels" (convolutions and linear layers: those that
        multiply), "parameters" or "multiplications".
        """
        counted = [layer for layer in self.layers if what != "channels" or layer.multiplications[0]]
        pairs: list[tuple[int, int]] = [getattr(layer, what) for layer in counted]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with all that `SlimReport` holds, and `totals`."""
        return super().to_dict() | {"totals": {what: list(self.total(what)) for what in _COLUMNS}}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "kind", *_COLUMNS)]
        changed = [layer for layer in self.layers if any(a != b for a, b in layer[2:])]
        rows += [(layer.name, layer.kind, *map(_arrow, layer[2:])) for layer in changed]
        rows.append((f"all {len(self.layers)} layers", "", *(_arrow(self.total(what)) for what in _COLUMNS)))
        lines = list(table(rows, right=(2, 3, 4)))
        lines.append(
            f"{self.reached:.1%} of the batch norm channels that can go are gone ({self.ratio:.1%} asked); "
            f"the most important of them has {self.threshold:.3g}"
        )
        kept = [group for group in self.groups if group.why]
        lines += [f"kept: {group.name} ({group.channels[0]} channels): {group.why}" for group in kept]
        if self.steps:
            head = ("step", "value", "parameters", "batch norms")
            steps = [(s.name, _shown(s.value), f"{s.parameters}", f"{s.batch_norms}") for s in self.steps]
            lines += ["", *table([head, *steps], right=(1, 2, 3))]
        lines += [f"note: {note}" for note in self.notes]
        if self.verification is not None:
            lines.append(f"the right channels went: {self.verification.status}")
        return "\n".join(lines)


_COLUMNS = ("channels", "parameters", "multiplications")


def _arrow(pair: Sequence[int]) -> str:
    before, after = pair
    return f"{before}" if before == after else f"{before} -> {after}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
