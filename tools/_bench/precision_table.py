"""The result of tools/precision as docs/precision.md shows it."""

from __future__ import annotations

from typing import Any

from tools._common import markdown

__all__ = ["lines", "text"]


def text(result: dict[str, Any]) -> str:
    """What the numbers are."""
    return (
        "Trained networks on scikit-image's photographs, and small artificial ones whose batch norms have "
        "seen next to no variance (`tools/precision`). Ranges were measured on one picture each. "
        "*Error*: the largest over all pictures, relative to the largest output; in brackets the mean of the "
        "pictures' largest. *Same*: the share of answers (classes, letters, pixels of text) that are as "
        "in float32."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """Half precision, folded first and converted first."""
    rows = []
    for name, network in result["networks"].items():
        for kind in ("fp16", "bf16"):
            cells = []
            for way in ("fold_first", "convert_first"):
                found = network[kind][way]
                fine = found["worst"] is not None
                cells.append(f"{found['worst']:.2g} ({found['mean']:.2g})" if fine else "not finite")
                cells.append("" if found["same"] is None else f"{found['same']:.4g}")
            rows.append((name, kind, *cells))
    headings = ("network", "type", "folded first: error", "same", "converted first: error", "same")
    return markdown(headings, rows, "ll")
