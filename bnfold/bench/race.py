"""Several models timed side by side: what disturbs one disturbs them all.

A round runs every model once, in an order that is drawn anew; whatever the machine does meanwhile (its clock
falls, another program works) is met by all of them. So the ratio of two models is taken within each round,
and the median of these ratios is steadier than the ratio of the medians.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bnfold.progress import Advance
from bnfold.report.table import table

__all__ = ["Racer", "Standing", "Standings", "race"]

WARM_RUNS, WARM_SECONDS = 3, 0.5  # of each model, before anything is measured: at least so many, and so long
FEWEST = 5  # rounds, however long they take
PERCENTILES = (50, 90, 99)


class Racer(Protocol):
    """A model made ready. name: its file; provider: what really runs it; notes: what a reader should know."""

    name: str
    provider: str
    notes: list[str]

    def run(self) -> None:
        """One inference; it is finished when this returns."""


@dataclass(frozen=True)
class Standing:
    """The times of one model, in seconds, one a round; `first`: those of the model to compare with."""

    name: str
    provider: str
    times: Sequence[float]
    first: Sequence[float]

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.times, percent))

    @property
    def throughput(self) -> float:
        """Runs a second, one after the other."""
        return len(self.times) / sum(self.times)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Time over that of the first model, round by round: median, lower and upper quartile."""
        ratios = np.divide(self.times, self.first)
        middle, low, high = (float(np.percentile(ratios, percent)) for percent in (50, 25, 75))
        return middle, low, high

    def to_dict(self) -> dict[str, Any]:
        middle, low, high = self.ratio
        return {
            "name": self.name,
            "provider": self.provider,
            "min": min(self.times),
            **{f"p{percent}": self.percentile(percent) for percent in PERCENTILES},
            "throughput": self.throughput,
            "ratio": middle,
            "ratio_quartiles": [low, high],
        }


@dataclass(frozen=True)
class Standings:
    """What was measured. machine: on what; shapes: of the inputs, by name."""

    models: tuple[Standing, ...]
    shapes: dict[str, tuple[int, ...]]
    machine: str
    notes: tuple[str, ...]

    @property
    def rounds(self) -> int:
        return len(self.models[0].times)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; docs/engines.md says what each key means. Times are in seconds."""
        return {
            "models": [model.to_dict() for model in self.models],
            "rounds": self.rounds,
            "inputs": {name: list(shape) for name, shape in self.shapes.items()},
            "machine": self.machine,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        head = ("model", "by", "min", *(f"p{p}" for p in PERCENTILES), "runs/s", "time / first (quartiles)")
        lines = list(table([head, *map(_row, self.models)]))
        sizes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        lines.append(f"{self.rounds} rounds, inputs {sizes or 'none'}; {self.machine}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _row(standing: Standing) -> tuple[str, ...]:
    times = (min(standing.times), *map(standing.percentile, PERCENTILES))
    middle, low, high = standing.ratio
    ratio = "1" if standing.times is standing.first else f"{middle:.3f} ({low:.3f} to {high:.3f})"
    return (standing.name, standing.provider, *map(_time, times), f"{standing.throughput:.4g}", ratio)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def race(
    racers: Sequence[Racer],
    *,
    seconds: float = 10.0,
    rounds: int | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Advance | None = None,
) -> list[list[float]]:
    """The times of each racer, in seconds, one a round.

    Args:
        racers: at least one.
        seconds: to measure, all models together; warming up is not counted. At least `FEWEST` rounds are run.
        rounds: how many to run instead, whatever it takes.
        seed: of the orders.
        clock: gives the time in seconds.
        progress: called with percents of the work.
    """
    for racer in racers:
        begin, runs = clock(), 0
        while runs < WARM_RUNS or clock() - begin < WARM_SECONDS:
            racer.run()
            runs += 1

    draw = random.Random(seed)
    times: list[list[float]] = [[] for _ in racers]
    collecting = gc.isenabled()
    gc.disable()  # a search for garbage would be charged to whoever runs
    try:
        start = clock()
        while True:
            done = len(times[0])
            share = done / rounds if rounds else min((clock() - start) / seconds, done / FEWEST)
            if share >= 1:
                return times
            if progress is not None:
                progress(int(100 * share), 100)
            for i in draw.sample(range(len(racers)), len(racers)):
                begin = clock()
                racers[i].run()
                times[i].append(clock() - begin)
    finally:
        if collecting:
            gc.enable()
