"""The result of tools/order as docs/compression.md shows it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from tools._common import markdown

__all__ = ["DRAWS", "after", "lines", "text"]

DRAWS = 40  # of the scales that weights are rounded by


def text(result: dict[str, Any]) -> str:
    """What the numbers are."""
    runs, protocol = result["runs"], result["protocol"]
    images = protocol["images"]
    return (
        "**One network through all steps** (`tools/order`): inverted residuals, trained with a penalty on "
        f"|gamma| on {images['train']} {images['name']} and tested on {images['test']} others, with "
        f"{len(runs)} seeds ({runs[0]['seed']} to {runs[-1]['seed']}); nothing is fine-tuned. Each row is an "
        "ONNX file after that step: the median, with the least and the largest where they differ. *dB*: "
        "signal over noise of the outputs if the file were quantized then, against itself in float32."
    )


def after(result: dict[str, Any]) -> str:
    """What the steps themselves tell."""
    steps = [{step["name"]: step for step in run["steps"]} for run in result["runs"]]
    dropped = sum(step["dropped"]["channels"] for step in steps)
    lost = ", ".join(" -> ".join(f"{bits:.2f}" for bits in step["equalized"]["bits_lost"]) for step in steps)
    chance = ", ".join(" -> ".join(map(_drawn, step["equalized"]["by_chance"])) for step in steps)
    trials = ", ".join(_tried(step["equalized"]["trial"]) for step in steps)
    return (
        f"Dead channels that were dropped: {dropped or 'none'}. Equalization by seed: bits that one scale "
        f"for a whole weight loses, as it counts them: {lost}. Weights alone rounded by one scale, drawn up "
        f"to 10 % larger, {DRAWS} times, before -> equalized, in dB: {chance}. Quantized with one scale and "
        f"corrected by four sets, before -> equalized: {trials}. The last two rows have a scale for each "
        "output channel."
    )


def _drawn(found: dict[str, float]) -> str:
    return f"{found['db']:.1f} ({found['from']:.1f} to {found['to']:.1f})"


def _tried(trial: dict[str, Any] | None) -> str:
    if trial is None:
        return "nothing to do"
    before, after = (statistics.mean(trial[f"{plan}_db"]) for plan in ("before", "equalized"))
    return f"{before:.1f} -> {after:.1f} ({'taken' if trial['taken'] == 'equalized' else 'left'})"


def lines(result: dict[str, Any]) -> list[str]:
    """A row for each step."""
    runs = result["runs"]
    return markdown(
        ("after", "answers right, %", "batch norms", "stored numbers", "kB", "int8 then, one scale, dB",
         "corrected", "each channel's, dB", "corrected"),
        _rows([run["steps"] for run in runs]),
    )  # fmt: skip


def _rows(runs: list[list[dict[str, Any]]]) -> Iterator[tuple[str, ...]]:
    for same in zip(*runs, strict=True):
        noise = (
            _spread([step[kind].get(how, {}).get("db") for step in same], 1)
            for kind in ("per_tensor", "per_channel")
            for how in ("quantized", "corrected")
        )
        right = _spread([100 * step["accuracy"] for step in same], 1)
        norms, stored = (_spread([step[what] for step in same], 0) for what in ("batch_norms", "parameters"))
        yield (
            same[0]["name"],
            right,
            norms,
            stored,
            _spread([step["bytes"] / 1e3 for step in same], 0),
            *noise,
        )
    last = [steps[-1]["per_channel"] for steps in runs]
    for how in ("quantized", "corrected"):
        right = _spread([100 * found[how]["accuracy"] for found in last], 1)
        size = _spread([found[how]["bytes"] / 1e3 for found in last], 0)
        yield (f"{how} as int8", right, "0", "", size, "", "", "", "")


def _spread(values: list[float | None], digits: int) -> str:
    """Median, least and largest."""
    known = [f"{value:,.{digits}f}" for value in sorted(value for value in values if value is not None)]
    if not known:
        return "-"
    middle = f"{statistics.median(value for value in values if value is not None):,.{digits}f}"
    return middle if len(set(known)) == 1 else f"{middle} ({known[0]} to {known[-1]})"
