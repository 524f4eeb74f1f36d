"""Times of ways side by side: calls in turn, until the ratios are known or the time is spent."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

INSTANCES = 15  # of what a runtime makes: where memory lies is worth 4 %, too much for the median of five
LEAST, SECONDS, NARROW = 15, 10.0, 0.01  # rounds; after them, till the time is over or ratios are as close
Run = Callable[[Any], Any]


class Interval(NamedTuple):
    """A median, and where it lies with 95 % by the order of what was measured."""

    median: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    ordered, n = sorted(values), len(values)
    outside = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
    return Interval(statistics.median(ordered), ordered[outside], ordered[n - 1 - outside])


def interleaved(
    runs: Mapping[str, Sequence[Run]],
    against: Mapping[str, str],
    x: Any,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, dict[str, Any]]:
    """For each way the median of its milliseconds, and its ratio to the way that it is held against.

    runs: the instances of each way, which take turns. A round calls one of each way, in an order that is
    drawn; a ratio is the median over the rounds.
    """
    times: dict[str, list[float]] = {way: [] for way in runs}
    draw, begin = random.Random(0), clock()
    for turn in itertools.count():
        if turn >= LEAST and turn % INSTANCES == 0:
            wide = max((high - low for _, low, high in ratios(times, against).values()), default=0)
            if wide / 2 <= NARROW or clock() - begin > SECONDS:
                break
        for way in draw.sample(list(runs), len(runs)):
            run = runs[way][turn % len(runs[way])]
            start = clock()
            run(x)
            times[way].append(clock() - start)
    found: dict[str, dict[str, Any]] = {
        way: {"milliseconds": statistics.median(taken) * 1e3, "rounds": len(taken)}
        for way, taken in times.items()
    }
    for way, ratio in ratios(times, against).items():
        found[way]["ratio"] = ratio._asdict()
    return found


def ratios(times: Mapping[str, Sequence[float]], against: Mapping[str, str]) -> dict[str, Interval]:
    """Of each way that is held against another, round by round."""
    return {
        way: interval([one / other for one, other in zip(taken, times[against[way]], strict=True)])
        for way, taken in times.items()
        if way in against
    }
