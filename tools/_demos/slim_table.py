"""The result of tools/slim_demo as docs/compression.md shows it."""

from __future__ import annotations

import statistics
from typing import Any

from tools._common import markdown

__all__ = ["lines", "text"]


def text(result: dict[str, Any]) -> str:
    """What the numbers are."""
    runs, images = result["runs"], result["protocol"]["images"]

    def less(what: str) -> str:
        shares = [before / after for before, after in (run["totals"][what] for run in runs)]
        return f"{min(shares):.1f} to {max(shares):.1f} times fewer {what}"

    return (
        f"**Half of the channels**, {len(runs)} seeds ({runs[0]['seed']} to {runs[-1]['seed']}), "
        f"{images['train']} {images['name']} to train with and {images['test']} others to test with: test "
        "accuracy in percent, median (least to largest). By |gamma|'s mean that is "
        f"{less('parameters')} and {less('multiplications')}."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """Accuracies over the seeds, at each step."""
    runs = result["runs"]
    rates = [f"{rate:g}" for rate in result["protocol"]["fine_rates"]]
    keys = ["trained", "pruned", "recalibrated", *(f"tuned, {rate}" for rate in rates)]
    heads = ["trained", "pruned", "recalibrated", *(f"fine-tuned at {rate}" for rate in rates)]

    def cell(way: str, key: str) -> str:
        known = [100 * run["ways"][way]["steps"][key] for run in runs if key in run["ways"][way]["steps"]]
        return f"{statistics.median(known):.1f} ({min(known):.1f} to {max(known):.1f})" if known else "-"

    rows = ((way, *(cell(way, key) for key in keys)) for way in runs[0]["ways"])
    return markdown(("channels by", *heads), rows)
