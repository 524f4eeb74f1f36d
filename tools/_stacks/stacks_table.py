"""The table of docs/integrations.md: what is left of batch norms inside other stacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools._common import markdown

HEADINGS = ("stack", "network", "way", "batch norms", "per channel", "error", "dB", "seconds", "ms", "ratio")


def text(result: dict[str, Any]) -> str:
    """What the numbers are."""
    return (
        "timm's networks with random weights; half of the scales are negative, unless it says otherwise. "
        "*Batch norms* and other *per channel* nodes are counted in the stack's own artefact, without bnfold "
        "and with it; *for int8* is with `quantize_for`. *Error* is the largest, against the network in "
        "float64, *dB* the signal over all errors. *Seconds* are the processor's, of everything between the "
        "network (its ONNX file, where there is one) and the first output; *ms* are the processor's too, the "
        "median of calls in turn on one thread. *Ratio*: the time of a call over that of the same round "
        "without bnfold, the median of all rounds, and how far it may be off (95 %); where a runtime loads a "
        "file, fifteen sessions of each take turns. *Freezing* is held against *without*, *bnfold, freezing* "
        "against freezing alone. Compare rows of one network, no others."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """The lines of the table."""
    return markdown(HEADINGS, rows(result), sides="lll")


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    """Its rows."""
    for stack, networks in result.items():
        for network, found in networks.items():
            for way, row in found["ways"].items():
                yield [
                    f"{stack} {found['version']}",
                    network,
                    way,
                    str(row["batch_norms"]),
                    str(row["per_channel"]),
                    f"{row['error']:.1e}",
                    f"{row['decibels']:.1f}",
                    f"{row['seconds']:.0f}",
                    f"{row['milliseconds']:.1f}",
                    ratio(row.get("ratio")),
                ]


def ratio(found: dict[str, float] | None) -> str:
    """The median, and how far it may be off."""
    if found is None:
        return ""
    median, low, high = (found[name] for name in ("median", "low", "high"))
    return f"{median:.3f} ± {max(high - median, median - low):.3f}"
