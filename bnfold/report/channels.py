"""What left with the dead channels, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bnfold.report.data import Data
from bnfold.report.table import counted, first

__all__ = ["CutLayer", "Dropped", "KeptChannels", "MovedConstant"]


class MovedConstant(NamedTuple):
    """A constant that a layer read on an input channel, and now has in its bias."""

    channel: int
    value: float


class CutLayer(NamedTuple):
    """A node that lost channels, counted from 0 as they were before.

    outputs, inputs: which; empty for what merely passes channels on. parameters: stored numbers fewer.
    multiplications: fewer for one entry of the batch; None if sizes are not known. moved: constants that went
    into its bias.
    """

    name: str
    op: str
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    parameters: int
    multiplications: int | None
    moved: tuple[MovedConstant, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return self._asdict() | {"moved": [moved._asdict() for moved in self.moved]}


class KeptChannels(NamedTuple):
    """Channels that a node makes constant, and that stay all the same."""

    name: str
    op: str
    channels: tuple[int, ...]
    reason: str
    blocked_by: str


@dataclass
class Dropped(Data):
    """The whole of it. parameters: stored floating point numbers that the model has fewer."""

    layers: list[CutLayer] = field(default_factory=list)
    kept: list[KeptChannels] = field(default_factory=list)
    parameters: int = 0

    @property
    def channels(self) -> int:
        """Output channels that layers lost, all together."""
        return sum(len(layer.outputs) for layer in self.layers)

    @property
    def multiplications(self) -> int | None:
        counts = [layer.multiplications for layer in self.layers]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as docs/report.md describes it."""
        counts = ("channels", "parameters", "multiplications")
        return {name: getattr(self, name) for name in counts} | super().to_dict()

    def rows(self) -> Iterator[tuple[str, ...]]:
        """A table, its head first."""
        yield "layer", "operator", "outputs", "inputs", "parameters", "multiplications", "moved into its bias"
        for layer in self.layers:
            counts = (len(layer.outputs), len(layer.inputs), layer.parameters, layer.multiplications)
            moved = [f"{value:.3g}" for _, value in layer.moved]
            yield layer.name, layer.op, *map(_less, counts), first(moved, 4)

    def summary(self) -> Iterator[str]:
        """Lines below the table."""
        many = "unknown" if self.multiplications is None else f"{self.multiplications:,}"
        channels = counted(self.channels, "channel")
        yield f"{channels} dropped: {self.parameters:,} parameters, {many} multiplications"
        for kept in self.kept:
            where = f"{kept.blocked_by}: " if kept.blocked_by else ""
            yield f"constant but kept: {kept.name} ({first(kept.channels, 8)}): {where}{kept.reason}"


def _less(count: int | None) -> str:
    return "?" if count is None else f"{-count:,}" if count else ""
