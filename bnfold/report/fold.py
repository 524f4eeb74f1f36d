"""For each batch norm: folded into what, or kept, blocked by which node, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bnfold.certificate import Certificate
from bnfold.report.channels import Dropped
from bnfold.report.data import Data
from bnfold.report.drawing import Drawn, Route
from bnfold.report.guard import Guard
from bnfold.report.ledger import AT_ONCE, Entry, ledger
from bnfold.report.precision import PrecisionReport
from bnfold.report.table import counted, first, table
from bnfold.report.verification import Verification

if TYPE_CHECKING:
    from bnfold.report.summary import Summary

__all__ = ["Apart", "Entry", "Merge", "Noise", "Report", "Rewrite"]

ALLOWED = 0.5  # dB of noise that a merge may add where a model will be quantized


class Rewrite(NamedTuple):
    """A node that does what several did. name: of the new node. op: its operator. replaces: their names."""

    name: str
    op: str
    replaces: tuple[str, ...]


class Noise(NamedTuple):
    """What rounding to integers adds to what linear nodes give together, as predicted from the weights.

    target: which rounding, as in `quantize_for`. apart_db, merged_db: the noise of the nodes as they were,
    and of what a merge makes, in dB relative to the power of what they give: -30 is a thousandth.
    """

    target: str
    apart_db: float
    merged_db: float

    @property
    def added_db(self) -> float:
        """By how much a merge raises it."""
        return self.merged_db - self.apart_db


class Merge(NamedTuple):
    """Linear nodes that became one.

    name: the one that is left. op: its operator. replaces: the nodes that it took in, and that are gone.
    multiplications_before, multiplications_after: of one run; a size that is not static counts as 1.
    noise: what int8 with one scale a weight adds, or the target that was asked for; None: not known.
    """

    name: str
    op: str
    replaces: tuple[str, ...]
    multiplications_before: int
    multiplications_after: int
    noise: Noise | None = None


class Apart(NamedTuple):
    """Linear nodes that read one tensor, or each other, and stay several.

    reason: why. noise: if it was weighed what rounding adds: with a merge, and without one.
    """

    names: tuple[str, ...]
    reason: str
    noise: Noise | None = None


@dataclass
class Report(Data):
    """What happened to a model.

    merged: linear nodes that became one; apart: those that did not, and why. dropped: the dead channels
    (None: not looked for). rewritten: the kept batch norms that became other nodes for the target.
    quantize_for: the rounding that merging minded. guard: what was measured of it, with calibration data.
    summary: the model before and after (None: not asked for).
    verification: of the check, None if it was not run. precision: of a conversion to half precision.
    No part of the JSON are: certificate, what became of each tensor, if that was asked for; graphs, the model
    before and after for a picture (None: of a kind that is not drawn); routes, by the name of each batch
    norm that the fold removed, the ways of its scale and its shift.
    """

    entries: list[Entry] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)
    apart: list[Apart] = field(default_factory=list)
    rewritten: list[Rewrite] = field(default_factory=list)
    dropped: Dropped | None = None
    quantize_for: str | None = None
    guard: Guard | None = None
    notes: list[str] = field(default_factory=list)
    verification: Verification | None = None
    precision: PrecisionReport | None = None
    certificate: Certificate | None = None
    summary: Summary | None = None
    graphs: tuple[Drawn, Drawn] | None = field(default=None, repr=False, compare=False)
    routes: dict[str, Route] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folded(self) -> list[Entry]:
        """The entries of batch norms, and of other per-channel maps, that are gone."""
        return [e for e in self.entries if e.outcome == "folded"]

    @property
    def kept(self) -> list[Entry]:
        """The entries of those that stay, each with the reason."""
        return [e for e in self.entries if e.outcome == "kept"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the fields by their names, and how many entries are "folded" and "kept"."""
        data = super().to_dict()
        for name in ("certificate", "graphs", "routes"):
            del data[name]
        return {"entries": data["entries"], "folded": len(self.folded), "kept": len(self.kept)} | data

    def to_html(self, title: str = "") -> str:
        """A page of its own, as `bnfold fold --html` writes it. title: of what, such as a file's name."""
        from bnfold.report.html import page

        return page(self, title)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from bnfold.report.html import frame

        return frame(self)

    def _merges(self) -> Iterable[tuple[str, ...]]:
        """The rows of a table."""
        title = (f"noise for {self.quantize_for}, dB",) if self.quantize_for is not None else ()
        yield ("node", "operator", "multiplications", *title, "took in")
        for merge in self.merged:
            change = f"{merge.multiplications_before:,} -> {merge.multiplications_after:,}"
            noise = f"{merge.noise.apart_db:.1f} -> {merge.noise.merged_db:.1f}" if merge.noise else ""
            cells = (noise,) if self.quantize_for is not None else ()
            yield (merge.name, merge.op, change, *cells, first(merge.replaces, 4))

    def __str__(self) -> str:
        return self.text("all")

    def text(self, show: str | None = None) -> str:
        """The report in words: the summary if there is one, the ledger, and what else was done.

        show: "all" entries; the "kept" ones only, by reason; or a "summary", which is counts. None: all, but
        those that were kept where there are many.
        """
        show = show or ("all" if len(self.entries) <= AT_ONCE else "kept")
        lines = [] if self.summary is None else [*self.summary.lines(), ""]
        lines += ledger(self.entries, show)
        lines += self._others(show == "all")
        lines += [f"note: {note}" for note in (*self.notes, *_dead(self.entries), *_loud(self.merged))]
        if self.verification is not None:
            lines.append(str(self.verification))
        if self.precision is not None:
            lines.append(str(self.precision))
        return "\n".join(lines)

    def _others(self, tables: bool) -> Iterable[str]:
        """What was done beside the folds, with a table each if that is asked for."""
        if self.merged:
            if tables:
                yield from ("", *table(self._merges()))
            all_ = sum(len(merge.replaces) + 1 for merge in self.merged)
            does = "linear nodes do" if len(self.merged) > 1 else "linear node does"
            yield f"{len(self.merged)} {does} the work of {all_}"
        if self.quantize_for is not None:
            yield from (f"apart: {', '.join(a.names)}: {a.reason}" for a in self.apart if a.noise is not None)
        if self.guard is not None:
            yield str(self.guard)
        if self.rewritten:
            if tables:
                rows = [(r.name, r.op, ", ".join(r.replaces)) for r in self.rewritten]
                yield from ("", *table([("node", "operator", "replaces"), *rows]))
            yield f"{len(self.rewritten)} rewritten for the target"
        if self.dropped is not None:
            if tables:
                yield from ("", *(table(self.dropped.rows()) if self.dropped.layers else ()))
            yield from self.dropped.summary()


def _loud(merged: list[Merge]) -> Iterable[str]:
    """Which merges rounding would not bear, as far as a line tells it."""
    found = [(merge.noise.added_db, merge.name) for merge in merged if merge.noise is not None]
    loud = [pair for pair in found if pair[0] > ALLOWED]
    if loud:
        most, name = max(loud)
        yield (
            f"int8 with one scale a weight: {len(loud)} of these merges would add more than {ALLOWED} dB of "
            f"noise (up to {most:.1f} dB: {name}); before a quantizer, fold with --for (quantize_for=)"
        )


def _dead(entries: list[Entry]) -> Iterable[str]:
    """Which channels are dead, as far as a line tells it."""
    found = [entry for entry in entries if entry.dead_channels]
    if found:
        count = sum(len(entry.dead_channels) for entry in found)
        shown = [f"{entry.name} ({first(entry.dead_channels, 8)})" for entry in found]
        yield f"{counted(count, 'dead channel')}, whose output never changes: {first(shown, 4)}"
