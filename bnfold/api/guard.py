"""Which of two plans bears the quantizer better: both quantized, corrected, and compared.

The plans are branches merged or apart, and weight ranges equalized or not. Errors of rounding add up with
signs that no weight tells, and differ by several dB with the calibration data alone. So each plan is
quantized by onnxruntime and corrected on several sets of samples, and the means are compared on samples that
none of the sets has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bnfold.api.correct import EVERY, correct_units
from bnfold.api.pipeline import Progress
from bnfold.certificate import digest
from bnfold.errors import UsageError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run.evaluators import opened
from bnfold.onnx_graph.run.inputs import Given, wanted
from bnfold.onnx_graph.run.quantizer import prepare, quantize
from bnfold.onnx_graph.run.samples import Samples
from bnfold.options import QUANTIZERS
from bnfold.report.guard import Guard, Trial, better, choose

__all__ = ["guard", "tried"]

SETS = 4  # of samples to calibrate with
LEAST = 5  # units in all: one to compare on, and four to draw the sets from
ENOUGH = 8  # units in a set that is no part of another
SEED = 0
Outputs = Sequence[Mapping[str, Any]]


def guard(
    original: Loaded,
    folded: Callable[[bool], Loaded],
    target: str,
    given: Given,
    advance: Progress | None = None,
) -> Guard:
    """Which plan to take, and what was measured.

    Args:
        original: the model before the fold.
        folded: makes the model, folded with branches merged as the target allows (True), or all apart.
        target: of QUANTIZERS, with weights of 8 bits.
        given: samples for its inputs, along their first axis.
        advance: told how far it is.

    Raises:
        UsageError: the samples do not fit or are too few, or onnxruntime cannot quantize the model.
        BnfoldError: nothing runs the models.
    """
    merged, apart = folded(True), folded(False)
    if digest(merged.inlined()) == digest(apart.inlined()):
        return Guard("merged")
    found = _measured(original, (merged, apart), target, given, advance)
    return Guard(choose(*found[:2]), *found)


def tried(
    before: Loaded, equalized: Loaded, target: str, given: Given, advance: Progress | None = None
) -> Trial:
    """Whether equalized weight ranges are better; arguments and errors as for `guard`."""
    found = _measured(before, (equalized, before), target, given, advance)
    return Trial(better(*found[:2]), *found)


def _measured(
    original: Loaded, plans: tuple[Loaded, Loaded], target: str, given: Given, advance: Progress | None
) -> tuple[list[float], list[float], int, int, str]:
    """What a report has behind `taken`: decibels of both plans, for each set; samples; what ran them."""
    samples = Samples(wanted(original), given)
    sets, held = divided(samples.count)
    exact = _outputs(original, samples, held)
    found: tuple[list[float], list[float]] = [], []
    for number, plan in enumerate(plans):
        source = prepare(plan)
        for at, units in enumerate(sets):
            if advance is not None:
                advance(number * SETS + at, 2 * SETS, "quantizing both plans")
            rounded = quantize(source, samples, units, QUANTIZERS[target][1])
            corrected = correct_units(rounded, source, samples, units)
            found[number].append(_decibels(exact, _outputs(corrected, samples, held)))
    each = samples.each
    return *found, len(sets[0]) * each, len(held) * each, opened(original).name


def divided(count: int) -> tuple[list[list[int]], list[int]]:
    """SETS of units to calibrate with, and others to compare on.

    The sets have none in common if there are enough for that; else each is drawn from all.

    Raises:
        UsageError: there are too few.
    """
    if count < LEAST:
        raise UsageError(
            f"the calibration data is enough for {count} runs, and the guard needs {LEAST}: give more, or "
            "leave it out"
        )
    held = list(range(EVERY - 1, count, EVERY))
    rng = np.random.default_rng(SEED)
    pool = rng.permutation([unit for unit in range(count) if unit % EVERY != EVERY - 1])
    if len(pool) >= SETS * ENOUGH:
        size = len(pool) // SETS
        parts = [pool[at * size : (at + 1) * size] for at in range(SETS)]
    else:
        size = max(len(pool) // 2, min(ENOUGH, len(pool) - 1))
        parts = [rng.permutation(pool)[:size] for _ in range(SETS)]
    return [sorted(map(int, part)) for part in parts], held


def _outputs(loaded: Loaded, samples: Samples, units: Sequence[int]) -> Outputs:
    evaluator = opened(loaded)
    return [evaluator.run(feed) for _, feed in samples.feeds(units)]


def _decibels(exact: Outputs, found: Outputs) -> float:
    """Signal over noise: the noise of each floating output relative to its signal, the mean over outputs."""
    ratios = []
    for name, first in exact[0].items():
        if np.asarray(first).dtype.kind == "f":
            here = np.concatenate([np.asarray(one[name], np.float64).reshape(-1) for one in exact])
            there = np.concatenate([np.asarray(one[name], np.float64).reshape(-1) for one in found])
            with np.errstate(all="ignore"):
                signal, noise = float((here**2).sum()), float(((there - here) ** 2).sum())
            if signal > 0:
                ratios.append(noise / signal)
    ratio = float(np.mean(ratios)) if ratios else math.nan
    if not math.isfinite(ratio):
        raise UsageError(
            "the outputs are no numbers, or all zero, on the calibration data: give other samples"
        )
    return -10 * math.log10(max(ratio, 1e-20))
