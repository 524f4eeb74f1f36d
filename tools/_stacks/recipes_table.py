"""The table of docs/integrations.md: what the recipes of examples/recipes/ gain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools._common import markdown

HEADINGS = ("recipe", "network", "batch norms", "left", "per channel", "left", "merged", "seconds")


def text(result: dict[str, Any]) -> str:
    """What the numbers are."""
    return (
        "`tools/stacks --recipes`: what the file or the program has, as the library's users export it, and "
        "what is *left* behind the one line more: batch norms, and other *per channel* arithmetic. *Merged*: "
        "layers that were branches of a sum, or stood in a row. Weights are random, scales above zero. "
        "*Seconds* are the processor's, for the whole recipe. bnfold's check has passed wherever it folded."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """The lines of the table."""
    return markdown(HEADINGS, rows(result), sides="ll")


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    """Its rows."""
    for name, recipe in result.items():
        for network, found in recipe["networks"].items():
            before, after = found["before"], found["after"]
            yield [
                f"{name}.py, {recipe['package']} {recipe['version']}",
                network,
                *(str(part[which]) for which in ("batch_norms", "per_channel") for part in (before, after)),
                str(found["merged"]),
                f"{recipe['seconds']:.0f}",
            ]
