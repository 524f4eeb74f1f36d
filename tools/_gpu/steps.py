"""The steps of tools/gpu_check in their order, and how long each should take: a table.

The seconds are predicted, for an H200 with 16 cores, from counts of cases and tests; none was measured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.kernels.launch import Device
from tools._gpu import kernels
from tools._gpu.compile import instances

FIRST = ("--type", "bfloat16", "--layout", "channels_last", "--batch", "128", "--no-compile")  # of the bench
CASE = 0.8  # seconds of one case of the bench
BEGUN = 8.0  # of a process that loads torch and opens the device
COMPILED = 0.1  # of a kernel: about a second of one core, in 16 processes
TESTS = 192  # of the values, each of which takes about half a second; 70 others
ASSUMED = Device((9, 0), multiprocessors=132, shared_memory=227 * 1024, clusters=8, cooperative=True)


@dataclass(frozen=True)
class Step:
    """One step.

    part: what of --parts it belongs to. most: seconds that it never gets more than. filling: it takes what
    time is left.
    """

    name: str
    part: str
    what: str
    predicted: float
    most: float = 3600.0
    filling: bool = False


def cases(arguments: Sequence[str]) -> int:
    """How many there are in a run of the bench."""
    return len(kernels.chosen(kernels.parsed(list(arguments))))


def steps(parts: Sequence[str], others: Sequence[str] = ()) -> list[Step]:
    """Those of some parts, the most important first.

    others: options of the bench; where there are any, it measures what they say and nothing first.
    """
    first, every = cases(FIRST), cases(others)
    compiled = len(instances(ASSUMED))
    table = [
        Step(
            "preflight",
            "preflight",
            "each way to launch once, two streams; ends the run if nothing launches",
            predicted=BEGUN + 10,
            most=40,
        ),
        Step("kernels", "kernels", f"compiles {compiled} kernels", BEGUN + COMPILED * compiled, most=120),
        Step(
            "first", "bench", f"{first} cases: bfloat16, channels last, batch 128", BEGUN + 15 + CASE * first
        ),
        Step("counters", "counters", "ncu on forward, backward, eval of 256x56x56", BEGUN + 20, most=90),
        Step("tests", "tests", "pytest -m gpu tests/gpu, in 4 processes", BEGUN + TESTS * 0.5 + 20),
        Step("bench", "bench", f"as many of all {every} cases as there is time for", 0, filling=True),
    ]
    wanted = [step for step in table if step.part in parts]
    return [step for step in wanted if not (others and step.name == "first")]


def limit(step: Step, later: Sequence[Step], left: float) -> float:
    """Seconds that a step gets of those that are left: what those behind it are not predicted to need.

    It always gets half again of what was predicted for itself, for predictions may be wrong.
    """
    spare = left - sum(each.predicted for each in later)
    return min(step.most, left, max(spare, 1.5 * step.predicted))


def listed(chosen: Sequence[Step], seconds: float) -> str:
    """The steps in words, with predicted seconds and limits, for so many seconds in all."""
    lines, left = [f"{'step':<10} {'predicted':>9} {'limit':>6}   what"], seconds
    for number, step in enumerate(chosen):
        most = limit(step, chosen[number + 1 :], left)
        predicted = max(0.0, left) if step.filling else min(step.predicted, most)
        lines.append(f"{step.name:<10} {predicted:>7.0f} s {most:>4.0f} s   {step.what}")
        left -= predicted
    lines.append(
        f"{'all':<10} {seconds - left:>7.0f} s of {seconds:.0f}; predicted for an H200, never measured"
    )
    return "\n".join(lines)
