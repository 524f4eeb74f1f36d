"""What many runs of tools/claims say together. Plain data in, plain data out; docs/tables.py shows it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

Run = dict[str, Any]  # of tools._claims.run.run

GOOD = 0.95  # a test accuracy that tells a setting that works from one that does not
FIT = 0.99  # a training accuracy from which on two networks have learned their images equally well


def summary(runs: list[Run]) -> dict[str, Any]:
    """For each number of layers: without and with batch norm, and both where both learned their images."""
    result = {}
    for layers in sorted({run["layers"] for run in runs}):
        some = [run for run in runs if run["layers"] == layers]
        without, with_ = ([run for run in some if run["batch_norm"] is kind] for kind in (False, True))
        variants = {"without": of_variant(without), "with": of_variant(with_)}
        result[str(layers)] = {**variants, "paired": paired(some)}
    return result


def of_variant(runs: list[Run]) -> dict[str, Any]:
    """Of one network over all settings and seeds."""
    settings = by_setting(runs)
    learned = [run for run in runs if run["ending"] == "learned"]
    fastest = min(settings, key=lambda key: middle(map(steps, settings[key])))
    best = most_accurate(settings)
    at_best = settings[best]
    scales = [run for run in runs if run["learning_rate"] == best[0]]
    usual = most_accurate({key: some for key, some in settings.items() if key[1] == 1})
    return {
        "runs": len(runs),
        "nan": sum(run["ending"] == "nan" for run in runs),
        "stuck": sum(run["ending"] == "stuck" for run in runs),
        "reached": sum(run["steps"] is not None for run in runs),
        "settings": len(settings),
        "good_settings": sum(middle(run["test"] for run in some) >= GOOD for some in settings.values()),
        "fastest": {**named(fastest), "steps": spread(steps(run) for run in settings[fastest])},
        "best": {
            **named(best),
            "test": spread(run["test"] for run in at_best),
            "gap": spread(run["train"] - run["test"] for run in at_best),
        },
        "over_scales": spread(run["test"] for run in scales),  # at the best setting's learning rate
        "usual": {
            **named(usual),
            "test": spread(run["test"] for run in settings[usual]),
        },  # the best at scale 1
        "recalibration": spread(run["recalibrated"] - run["test"] for run in learned),
    }


def paired(runs: list[Run]) -> dict[str, Any]:
    """The gap between training and test accuracy, where both networks fit their images at equal settings."""
    pairs: dict[tuple[Any, ...], dict[bool, Run]] = {}
    for run in runs:
        key = (run["learning_rate"], run["scale"], run["seed"])
        pairs.setdefault(key, {})[run["batch_norm"]] = run
    both = [pair for pair in pairs.values() if all(run["train"] >= FIT for run in pair.values())]
    gaps = [[pair[kind]["train"] - pair[kind]["test"] for kind in (False, True)] for pair in both]
    return {
        "pairs": len(gaps),
        "without": spread(gap for gap, _ in gaps),
        "with": spread(gap for _, gap in gaps),
        "smaller_with": sum(round(b - a, 6) < 0 for a, b in gaps),
        "larger_with": sum(round(b - a, 6) > 0 for a, b in gaps),
    }


def by_setting(runs: list[Run]) -> dict[tuple[float, float], list[Run]]:
    """The runs of each learning rate and scale: one for each seed."""
    found: dict[tuple[float, float], list[Run]] = {}
    for run in runs:
        found.setdefault((run["learning_rate"], run["scale"]), []).append(run)
    return found


def most_accurate(settings: dict[tuple[float, float], list[Run]]) -> tuple[float, float]:
    return max(settings, key=lambda key: middle(run["test"] for run in settings[key]))


def named(setting: tuple[float, float]) -> dict[str, float]:
    return {"learning_rate": setting[0], "scale": setting[1]}


def steps(run: Run) -> float:
    return math.inf if run["steps"] is None else float(run["steps"])


def middle(values: Iterable[float]) -> float:
    return statistics.median(values)


def spread(values: Iterable[float]) -> dict[str, float | None] | None:
    """Least, median, largest; None for what is infinite, and for no values at all."""
    known = sorted(values)
    if not known:
        return None
    told: dict[str, Callable[[], float]] = {
        "least": lambda: known[0],
        "median": lambda: middle(known),
        "largest": lambda: known[-1],
    }
    return {name: round(tell(), 5) if math.isfinite(tell()) else None for name, tell in told.items()}
