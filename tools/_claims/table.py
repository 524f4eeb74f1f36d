"""The summary of tools/claims as a table: for the terminal, and for docs/tables.py. Needs only Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

VARIANTS = ("without", "with")


def columns(summary: dict[str, Any]) -> list[str]:
    return [f"{layers} layers, {variant}" for layers in summary for variant in VARIANTS]


def rows(summary: dict[str, Any], protocol: dict[str, Any]) -> dict[str, list[str]]:
    """By what they tell: one cell for each of `columns`."""
    good, fit, target = protocol["good"], protocol["fit"], protocol["target"]
    shown: dict[str, Callable[[dict[str, Any], Any], str]] = {
        "ended in NaN or infinity": lambda one, _: of(one["nan"], one["runs"]),
        "finite, but learned nothing": lambda one, _: of(one["stuck"], one["runs"]),
        f"reached a training loss of {target:g}": lambda one, _: of(one["reached"], one["runs"]),
        "fastest setting (rate, scale)": lambda one, _: setting(one["fastest"]),
        "steps to that loss, fastest setting": lambda one, _: count(one["fastest"]["steps"]),
        f"settings with {100 * good:.0f} % test accuracy": lambda one, _: of(
            one["good_settings"], one["settings"]
        ),
        "best setting (rate, scale)": lambda one, _: setting(one["best"]),
        "test accuracy, best setting": lambda one, _: percent(one["best"]["test"]),
        "test accuracy, all scales at that rate": lambda one, _: percent(one["over_scales"]),
        "best setting of scale 1 (rate)": lambda one, _: f"{one['usual']['learning_rate']:g}",
        "test accuracy, best setting of scale 1": lambda one, _: percent(one["usual"]["test"]),
        "gap, best setting": lambda one, _: percent(one["best"]["gap"]),
        f"gap, where both fit to {100 * fit:.0f} %": lambda _, gap: percent(gap),
    }
    found = [(both[kind], both["paired"][kind]) for both in summary.values() for kind in VARIANTS]
    return {name: [cell(*one) for one in found] for name, cell in shown.items()}


def of(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def setting(one: dict[str, Any]) -> str:
    return f"{one['learning_rate']:g}, {one['scale']:g}"


def count(spread: dict[str, Any]) -> str:
    """Median (least to largest) of whole numbers; "never" is what did not happen."""
    median, least, largest = (
        "never" if spread[key] is None else f"{spread[key]:.0f}" for key in ("median", "least", "largest")
    )
    return median if median == least == largest else f"{median} ({least} to {largest})"


def percent(spread: dict[str, Any] | None) -> str:
    """Median (least to largest) of shares, in percent."""
    if spread is None:
        return "none"
    return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * spread[key] for key in ("median", "least", "largest")))
