"""The picture of tools/claims: what comes of each learning rate and scale, how fast, and with what gap."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from tools._claims.summary import FIT, by_setting, steps

mpl.use("Agg")

from matplotlib import pyplot as plt  # not before the line above

WITHOUT, WITH = "#b3541e", "#1f6f8b"
VARIANTS = ((False, "without batch norm", WITHOUT), (True, "with batch norm", WITH))
NOTHING = "#d9d9d9"


def draw(known: dict[str, Any], path: Path) -> None:
    """A row of two accuracy maps for each depth, a row of steps, a row of gaps."""
    protocol = known["protocol"]
    depths = protocol["layers"]
    plt.rcParams.update({"font.size": 9.5, "axes.titlesize": 10})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(4, 2, figsize=(9.6, 13.6), layout="constrained")
    for row, layers in enumerate(depths):
        for column, (kind, name, _) in enumerate(VARIANTS):
            runs = [r for r in known["runs"] if r["layers"] == layers and r["batch_norm"] is kind]
            accuracy_map(axes[row, column], runs, protocol)
            axes[row, column].set_title(f"{layers} layers, {name}: test accuracy in %")
    for column, layers in enumerate(depths):
        runs = [r for r in known["runs"] if r["layers"] == layers]
        speed(axes[2, column], runs, protocol)
        title = f"{layers} layers, scale 1: steps to a training loss of {protocol['target']}"
        axes[2, column].set_title(title, pad=24)
        gaps(axes[3, column], runs, protocol)
        title = f"{layers} layers, runs that fit to {100 * FIT:.0f} %: training less test accuracy"
        axes[3, column].set_title(title, pad=24)
    for some in axes[2:]:
        top = max(axis.get_ylim()[1] for axis in some)  # one scale for the row
        for axis in some:
            axis.set_ylim(0, top)
    plain = {"Software": None}  # the same numbers make the same file
    figure.savefig(path, dpi=110, metadata=plain)
    plt.close(figure)


def accuracy_map(axis: Any, runs: list[dict[str, Any]], protocol: dict[str, Any]) -> None:
    """Medians over the seeds, and how many of the runs were lost to NaN."""
    settings = by_setting(runs)
    rates, scales = protocol["learning_rates"], protocol["scales"]
    shares = np.full((len(scales), len(rates)), np.nan)
    for (rate, scale), some in settings.items():
        lost = sum(run["ending"] == "nan" for run in some)
        at = scales.index(scale), rates.index(rate)
        share = 100 * statistics.median(run["test"] for run in some)
        if 2 * lost <= len(some):
            shares[at] = share
        says = f"{share:.1f}" if 2 * lost <= len(some) else "NaN"
        says += f"\n{lost} NaN" if lost > 0 and says != "NaN" else ""
        says += f"\n{lost} of {len(some)}" if says == "NaN" and lost < len(some) else ""
        dark = np.isfinite(shares[at]) and share < 60
        axis.text(at[1], at[0], says, ha="center", va="center", color="white" if dark else "black")
    colours = mpl.colormaps["viridis"].copy()
    colours.set_bad(NOTHING)
    axis.imshow(shares, cmap=colours, vmin=0, vmax=100, aspect="auto", origin="lower")
    axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axis.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axis.set_xlabel("learning rate")
    axis.set_ylabel("scale of the initial weights")


def speed(axis: Any, runs: list[dict[str, Any]], protocol: dict[str, Any]) -> None:
    """One dot for each run at the usual scale, if it got there; the line is the median of all seeds."""
    for kind, name, colour in VARIANTS:
        usual = [run for run in runs if run["batch_norm"] is kind and run["scale"] == 1]
        dots(axis, [run for run in usual if run["steps"]], kind, [r["steps"] for r in usual if r["steps"]])
        medians = [statistics.median(map(steps, some)) for some in by_setting(usual).values()]
        line = [value if math.isfinite(value) else math.nan for value in medians]
        axis.plot(protocol["learning_rates"], line, color=colour, label=name)
    rates_below(axis, protocol)
    axis.set_ylabel("steps")


def gaps(axis: Any, runs: list[dict[str, Any]], protocol: dict[str, Any]) -> None:
    """One dot for each run that learned its images, at all scales; the line is the median of these."""
    for kind, name, colour in VARIANTS:
        some = [run for run in runs if run["batch_norm"] is kind and run["train"] >= FIT]
        dots(axis, some, kind, [gap(run) for run in some])
        line = []
        for rate in protocol["learning_rates"]:
            here = [gap(run) for run in some if run["learning_rate"] == rate]
            line.append(statistics.median(here) if here else math.nan)
        axis.plot(protocol["learning_rates"], line, color=colour, label=name)
    rates_below(axis, protocol)
    axis.set_ylabel("percentage points")


def gap(run: dict[str, Any]) -> float:
    return 100 * float(run["train"] - run["test"])


def dots(axis: Any, runs: list[dict[str, Any]], kind: bool, heights: list[float]) -> None:
    """Beside their learning rate: to the left without batch norm, to the right with it."""
    x = [run["learning_rate"] * 1.1 ** (2 * kind - 1) * 1.02 ** (run["seed"] - 2) for run in runs]
    colour = VARIANTS[kind][2]
    axis.plot(x, heights, "o", color=colour, alpha=0.6, markersize=4, markeredgewidth=0)


def rates_below(axis: Any, protocol: dict[str, Any]) -> None:
    rates = protocol["learning_rates"]
    axis.set_xscale("log")
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.minorticks_off()
    axis.set_xlim(rates[0] / 1.6, rates[-1] * 1.6)
    axis.set_xlabel("learning rate")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderpad=0.2)
