"""What equalization did to a model: ranges before and after, what moved where, what stays and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bnfold.report.data import Data, Span
from bnfold.report.fold import Report
from bnfold.report.guard import Trial
from bnfold.report.table import counted, first, table
from bnfold.report.verification import Verification

if TYPE_CHECKING:
    from bnfold.report.summary import Summary

__all__ = ["EqualizeReport", "KeptTensor", "LayerRanges", "RescaledRegion"]

SHOWN = 5  # reasons in the text; the JSON has them all
DECIBELS = 6.02  # of a bit
CHANCE = 3.0  # dB between two models that differ by a draw of their scales, of 2 to 3 dB each (tools/order)


class LayerRanges(NamedTuple):
    """One layer's weight: of its output channels, of its input channels; the bits that int8 loses at it."""

    node: str
    op: str
    outputs_before: Span
    outputs_after: Span
    inputs_before: Span
    inputs_after: Span
    bits_before: float
    bits_after: float


class RescaledRegion(NamedTuple):
    """A region that is carried at another size.

    tensor: one that stands for the region, whose channels `channels` are carried at `factors` times their
    size, powers of two. tensors: all that follow it. made_by, read_by: the layers whose weights took that.
    """

    tensor: str
    channels: list[int]
    factors: list[float]
    tensors: list[str]
    made_by: list[str]
    read_by: list[str]


class KeptTensor(NamedTuple):
    """A tensor at a layer that stays as it is: blocked_by names the node or tensor that stopped it, or ""."""

    tensor: str
    blocked_by: str
    reason: str
    cure: str = ""


@dataclass
class EqualizeReport(Data):
    """One model.

    layers: all with weights that count. regions: what is carried at another size. kept: what is not, and why.
    split: the Clips that got bounds for each channel. bits_before, bits_after: the mean over the layers of
    the bits that an int8 scale for a whole tensor loses. fold: the ledger of the fold before (None: not
    asked for). verification: of the equalized against the folded model (None: not run). trial: both of them
    in int8 (None: no calibration data, or nothing to carry). summary: the model before the fold and in the
    end (None: not asked for).
    """

    layers: list[LayerRanges] = field(default_factory=list)
    regions: list[RescaledRegion] = field(default_factory=list)
    kept: list[KeptTensor] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    bits_before: float = 0.0
    bits_after: float = 0.0
    fold: Report | None = None
    verification: Verification | None = None
    trial: Trial | None = None
    notes: list[str] = field(default_factory=list)
    summary: Summary | None = None

    def left(self) -> None:
        """The ranges stay as they were: so they are told."""
        self.layers = [_as_before(layer) for layer in self.layers]
        self.regions, self.split, self.verification = [], [], None
        self.bits_after = self.bits_before

    def warn(self) -> None:
        """Note that fewer bits lost may not be less noise, where chance has a larger part in that."""
        saved = (self.bits_before - self.bits_after) * DECIBELS
        if saved < CHANCE:
            self.notes.append(
                f"the bits saved are {saved:.1f} dB less noise of rounded weights, in the mean; by chance "
                f"alone int8 of a small network may be {CHANCE:.0f} dB better or worse "
                "(--calibration-data-path, calibration=: both are quantized, and the better one is kept)"
            )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.summary is not None:
            yield from (*self.summary.lines(), "")
        if self.fold is not None:
            yield f"{len(self.fold.folded)} folded, {len(self.fold.kept)} kept"
        changed = [layer for layer in self.layers if layer.bits_before != layer.bits_after]
        if changed:
            head = ("layer", "op", "outputs", "inputs", "bits lost")
            yield from table([head, *map(_row, changed)])
        channels = sum(len(region.channels) for region in self.regions)
        yield (
            f"{counted(len(self.regions), 'region')} rescaled ({counted(channels, 'channel')}), "
            f"{counted(len(self.split), 'Clip')} split; bits lost by a layer, in the mean: "
            f"{self.bits_before:.2f} -> {self.bits_after:.2f}"
        )
        reasons: dict[tuple[str, str], list[str]] = {}
        for kept in self.kept:
            reasons.setdefault((kept.reason, kept.cure), []).append(kept.tensor)
        for (reason, cure), tensors in list(reasons.items())[:SHOWN]:
            yield f"kept: {first(tensors, 3)}: {reason}{f' ({cure})' if cure else ''}"
        if len(reasons) > SHOWN:
            yield f"kept: {counted(len(reasons) - SHOWN, 'other reason')}"
        yield from (f"note: {note}" for note in self.notes)
        if self.verification is not None:
            yield str(self.verification)
        if self.trial is not None:
            yield str(self.trial)


def _as_before(layer: LayerRanges) -> LayerRanges:
    outputs, inputs, bits = layer.outputs_before, layer.inputs_before, layer.bits_before
    return layer._replace(outputs_after=outputs, inputs_after=inputs, bits_after=bits)


def _row(layer: LayerRanges) -> tuple[str, ...]:
    outputs = f"{_ratio(layer.outputs_before)} -> {_ratio(layer.outputs_after)}"
    inputs = f"{_ratio(layer.inputs_before)} -> {_ratio(layer.inputs_after)}"
    return layer.node, layer.op, outputs, inputs, f"{layer.bits_before:.2f} -> {layer.bits_after:.2f}"


def _ratio(span: Span) -> str:
    """How many times as large as the smallest channel the largest is."""
    return f"{span.high / span.low:.3g}" if span.low else "-"
