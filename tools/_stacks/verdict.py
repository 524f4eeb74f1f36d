"""What is wrong with what one stack has made of one network: nothing, if docs/integrations.md is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

EXACT = 1e-5  # the largest error of a way that is not rounded
LOSS = 12.0  # dB that merged branches may cost where what follows rounds to int8; a wrong fold costs all
SLOWER = 1.03  # times as long as without bnfold


def complaints(ways: dict[str, Any]) -> Iterator[str]:
    """More is left than without bnfold, the outputs do not agree, or a call is slower for certain."""
    without = ways["without"]
    for way, row in ways.items():
        if "bnfold" not in way:
            continue
        before, after = (each["batch_norms"] + each["per_channel"] for each in (without, row))
        if after > before or (way == "bnfold" and after == before):
            yield f"{way}: {after} are left, without it {before}"
        if without["error"] < EXACT <= row["error"]:
            yield f"{way}: the error is {row['error']:.1e}, without it {without['error']:.1e}"
        if without["decibels"] - row["decibels"] > LOSS and row["error"] >= EXACT:
            yield f"{way}: {row['decibels']:.1f} dB, without it {without['decibels']:.1f}"
        ratio = row.get("ratio")
        if ratio is not None and ratio["low"] > SLOWER:
            yield f"{way}: takes {ratio['low']:.3f} to {ratio['high']:.3f} times as long"
