"""What the correction of a quantized model did: errors of each layer's mean, and of the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bnfold.report.data import Data
from bnfold.report.table import counted, first, table

if TYPE_CHECKING:
    from bnfold.report.summary import Summary

__all__ = ["CorrectReport", "CorrectedLayer", "LeftLayer", "OutputNoise"]

SHOWN = 5  # reasons in the text; the JSON has them all


class CorrectedLayer(NamedTuple):
    """A layer whose bias was renewed.

    bits: that the codes of its weight need; 0: it is not quantized. mean_before, mean_after: the error of its
    output's mean, the root mean square over the channels, relative to that of the float layer's values; in
    the model as it was given, and in the corrected one. If the note says so, both are of the sum that the
    layer ends. deviation_before, deviation_after: the same of the
    standard deviation. bias: the type of the stored bias. added: whether there was none. scaled: whether the
    scales of its weight were changed as well.
    """

    node: str
    op: str
    bits: int
    mean_before: float
    mean_after: float
    deviation_before: float
    deviation_after: float
    bias: str
    added: bool
    scaled: bool
    note: str = ""


class LeftLayer(NamedTuple):
    """A layer that stays as it was, and why."""

    node: str
    op: str
    reason: str


class OutputNoise(NamedTuple):
    """An output of the quantized models: signal over noise in dB, against the float model; None: no noise."""

    name: str
    before: float | None
    after: float | None

    def __str__(self) -> str:
        return f"{self.name} {_decibels(self.before)} -> {_decibels(self.after)}"


@dataclass
class CorrectReport(Data):
    """One model.

    layers: what was corrected, in order. left: what was not, and why. outputs: measured on `compared`
    samples, which the correction did not see if `held_back` says so; empty without verification. samples:
    that it was measured with. weights: of layers whose integers were found to be the same, bit for bit.
    evaluator: what ran the models. summary: the model before and after (None: not asked for).
    """

    layers: list[CorrectedLayer] = field(default_factory=list)
    left: list[LeftLayer] = field(default_factory=list)
    outputs: list[OutputNoise] = field(default_factory=list)
    samples: int = 0
    compared: int = 0
    held_back: bool = False
    weights: int = 0
    evaluator: str = ""
    summary: Summary | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.summary is not None:
            yield from (*self.summary.lines(), "")
        scaled = any(layer.scaled for layer in self.layers)
        head = ("layer", "op", "bits", "mean error", *(("deviation",) if scaled else ()), "bias")
        yield from table([head, *(_row(layer, scaled) for layer in self.layers)], right=(2,))
        added = sum(layer.added for layer in self.layers)
        yield (
            f"{counted(len(self.layers), 'layer')} corrected on {counted(self.samples, 'sample')} "
            f"({added} had no bias), {len(self.left)} left; "
            f"the integers of {counted(self.weights, 'weight')} are the same, bit for bit"
        )
        reasons: dict[str, list[str]] = {}
        for left in self.left:
            reasons.setdefault(left.reason, []).append(left.node)
        for reason, nodes in list(reasons.items())[:SHOWN]:
            yield f"left: {first(nodes, 3)}: {reason}"
        if len(reasons) > SHOWN:
            yield f"left: {counted(len(reasons) - SHOWN, 'other reason')}"
        which = "held back" if self.held_back else "that it was corrected on"
        for output in self.outputs:
            yield f"{output} of signal over noise, on {counted(self.compared, 'sample')} {which}"


def _row(layer: CorrectedLayer, scaled: bool) -> tuple[str, ...]:
    deviation = (f"{layer.deviation_before:.2g} -> {layer.deviation_after:.2g}" if layer.scaled else "",)
    bias = f"{layer.bias}{', added' if layer.added else ''}{f' ({layer.note})' if layer.note else ''}"
    mean = f"{layer.mean_before:.2g} -> {layer.mean_after:.2g}"
    return layer.node, layer.op, str(layer.bits or ""), mean, *(deviation if scaled else ()), bias


def _decibels(value: float | None) -> str:
    return "no noise" if value is None else f"{value:.1f} dB"
