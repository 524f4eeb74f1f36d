"""The result of tools/host_time as docs/performance.md shows it."""

from __future__ import annotations

from typing import Any

from tools._common import markdown

__all__ = ["BNFOLD", "OPERATORS", "PASSES", "TORCH", "lines", "text"]

PASSES = ("forward", "forward and backward", "evaluation")
TORCH, BNFOLD, OPERATORS = "torch's nn.BatchNorm2d on the CPU", "bnfold.nn", "operators of torch.compile"


def text(result: dict[str, Any]) -> str:
    """What the numbers are."""
    versions = result["versions"]
    return (
        "**The host's part alone** (`tools/host_time`): microseconds of processor time that a call takes, "
        "without a GPU. Launches go to a driver that runs nothing, on tensors of the CPU; so what "
        "torch's allocator and streams take on a GPU is left out. torch's own is its module on a tiny tensor "
        "of the CPU, its arithmetic included, in the same run; in brackets: times torch's. Each module takes "
        "three lines of the launch table; operators are called as what torch.compile makes calls them. "
        f"Medians of {result['rounds']} rounds of {result['calls']} calls in turn, on one core of an "
        f"{result['machine']['cpu']}, with torch {versions['torch']} and cuda-core {versions['cuda-core']}."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """The table."""
    rows = []
    for name, times in result["us"].items():
        what = name.split(", ")[1]
        own = result["us"][f"{TORCH}, {what}"]
        rows.append((name, *(cell(times.get(which), own[which]) for which in PASSES)))
    return markdown(("", *PASSES), rows)


def cell(us: float | None, own: float) -> str:
    if us is None:
        return ""
    return f"{us:.0f}" if us == own else f"{us:.0f} ({us / own:.1f})"
