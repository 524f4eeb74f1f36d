"""What quantizing both plans of a fold showed: branches merged, and all of them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bnfold.report.table import counted

__all__ = ["MOST", "Guard"]

MOST = 0.5  # dB that the merged plan may be below the one with branches apart


class Guard(NamedTuple):
    """Both plans quantized and corrected, on several sets of calibration data.

    taken: "merged" or "apart". merged_db, apart_db: signal over noise in dB against the float model, for
    each set; empty where both plans are one. samples: in each set. compared: others, on which it was
    measured. evaluator: what ran the models.
    """

    taken: str
    merged_db: Sequence[float] = ()
    apart_db: Sequence[float] = ()
    samples: int = 0
    compared: int = 0
    evaluator: str = ""

    def __str__(self) -> str:
        if not self.merged_db:
            return "guard: no branches are merged, so that there was nothing to compare"
        means = [f"{_mean(db):.1f} dB" for db in (self.merged_db, self.apart_db)]
        spans = [f"({min(db):.1f} to {max(db):.1f})" for db in (self.merged_db, self.apart_db)]
        sets = f"{counted(len(self.merged_db), 'set')} of {counted(self.samples, 'sample')}"
        return (
            f"guard: merged {means[0]} {spans[0]}, apart {means[1]} {spans[1]} of signal over noise, "
            f"quantized and corrected by {sets}, on {self.compared} others: {self.taken}"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def choose(merged_db: Sequence[float], apart_db: Sequence[float]) -> str:
    """Which plan is taken: the merged one unless its mean is more than MOST below."""
    return "merged" if _mean(merged_db) >= _mean(apart_db) - MOST else "apart"
