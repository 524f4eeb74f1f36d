"""The results of tools/int8 trained as docs/int8.md shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tools._common import markdown

__all__ = ["four_bits", "hurts", "losses", "merging", "steps"]

KINDS = {"per_tensor": "one", "per_channel": "each channel's"}
PLANS = ("apart", "free", "full")
WORSE = 0.3  # dB
WAYS = {
    "plain": "as quantized, MinMax",
    "corrected": "corrected",
    "one pass": "all layers corrected from one pass",
    "entropy": "Entropy in place of MinMax",
    "percentile 99.999": "Percentile, 99.999 %",
    "percentile 99.999, corrected": "the same, corrected",
    "percentile 99.9": "Percentile, 99.9 %",
    "percentile 99.9, corrected": "the same, corrected",
    "recalibrated, float32": "the images' statistics in the batch norms, not quantized",
    "recalibrated": "the same, quantized",
}
TARGETS = {"per_tensor": "--for int8-per-tensor", "per_channel": "--for int8"}


def steps(result: dict[str, Any]) -> str:
    """What folding and correcting give: signal over noise of each network, in dB."""
    rows = []
    for name, seeds in result["networks"].items():
        for kind, scales in KINDS.items():
            row = [_mean(seeds, "as exported", kind, "plain")]
            row += [_mean(seeds, "apart", kind, step) for step in ("plain", "corrected")]
            row += [_mean(seeds, "equalized, Clips split", kind, step) for step in ("plain", "corrected")]
            rows.append((name, scales, *row))
    headings = ("network", "scales of a weight", "batch norms left in", "folded", "and corrected")
    return "\n".join(markdown((*headings, "folded, split and equalized", "and corrected"), rows, "ll"))


def merging(result: dict[str, Any]) -> str:
    """Nets of three branches by what is merged: before and after the correction, and against apart."""
    rows = []
    for name, seeds in result["networks"].items():
        if any("linear" in entry["variants"].get("full", {}) for entry in seeds.values()):  # not the same
            for kind, scales in KINDS.items():
                made = seeds[min(seeds)]["variants"]
                plans = [plan for plan in (*PLANS, TARGETS[kind]) if plan in made]
                rows += [(name, scales, p, _linear(seeds, p), *_compared(seeds, p, kind)) for p in plans]
    headings = ("network", "scales", "merged", "linear nodes", "quantized", "corrected")
    return "\n".join(markdown((*headings, "against apart, by seed"), rows, "lll"))


def four_bits(result: dict[str, Any]) -> str:
    """Weights of 4 bits, a scale for each channel."""
    rows = []
    for name, seeds in result["networks"].items():
        for plan in ("apart", "full"):
            found = [_row(entry["variants"], plan).get("int4") for entry in seeds.values()]
            made = [one for one in found if one is not None]
            if made:
                cells = (_spread([one[key] for one in made]) for key in ("plain", "means", "corrected"))
                rows.append((name, plan, *cells))
    headings = ("network", "merged", "quantized", "means corrected", "means and deviations")
    return "\n".join(markdown(headings, rows, "ll"))


def losses(result: dict[str, Any]) -> str:
    """How often the correction made a model worse."""
    single, means = list[float](), list[float]()
    for seeds in result["networks"].values():
        for row in (row for entry in seeds.values() for row in entry["variants"].values()):
            for found in (row[kind] for kind in KINDS if row.get(kind, {}).get("corrected")):
                gains = np.subtract(found["corrected"], found["plain"])
                single += list(gains)
                means.append(float(gains.mean()))
    worse, much = (sum(gain < limit for gain in single) for limit in (0, -WORSE))
    return (
        f"With each network, seed, kind of scales and plan the correction changed {min(means):+.1f} to "
        f"{max(means):+.1f} dB, in the mean over the sets of images. Of the {len(single)} single cases "
        f"{worse} lost, {much} of them more than {WORSE} dB; the worst changed by {min(single):+.2f} dB."
    )


def hurts(result: dict[str, Any]) -> str:
    """Other ways than those of `steps`, by network: the mean over the sets, in dB."""
    networks = result["networks"]
    rows = (
        (words, *(f"{np.mean(entry['ways'][way]):.1f}" for entry in networks.values()))
        for way, words in WAYS.items()
    )
    return "\n".join(markdown(("", *networks), rows))


def _row(variants: dict[str, Any], name: str) -> dict[str, Any]:
    """What was measured of a variant; it may be the same model as another."""
    row: dict[str, Any] = variants.get(name, {})
    return _row(variants, row["same_as"]) if "same_as" in row else row


def _values(seeds: dict[str, Any], variant: str, kind: str, step: str) -> Iterator[float]:
    """The mean over the sets, of each seed."""
    for entry in seeds.values():
        found = _row(entry["variants"], variant).get(kind, {}).get(step)
        if found:
            yield float(np.mean(found))


def _mean(seeds: dict[str, Any], variant: str, kind: str, step: str) -> str:
    return _spread(list(_values(seeds, variant, kind, step)))


def _spread(values: list[float]) -> str:
    """The mean, and the least and the largest if there are several."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def _linear(seeds: dict[str, Any], plan: str) -> str:
    counts = sorted({_row(entry["variants"], plan)["linear"] for entry in seeds.values()})
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))


def _compared(seeds: dict[str, Any], plan: str, kind: str) -> Iterator[str]:
    yield _mean(seeds, plan, kind, "plain")
    here = list(_values(seeds, plan, kind, "corrected"))
    yield _spread(here)
    apart = _values(seeds, "apart", kind, "corrected")
    yield ", ".join(f"{a - b:+.1f}" for a, b in zip(here, apart, strict=True)) if plan != "apart" else ""
