"""What quantizing two plans showed: branches merged or all of them apart, ranges equalized or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bnfold.report.table import counted

__all__ = ["MOST", "Guard", "Trial", "better", "choose"]

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
        both = {"merged": self.merged_db, "apart": self.apart_db}
        return f"guard: {_told(both, self.samples, self.compared)}: {self.taken}"


class Trial(NamedTuple):
    """A model quantized and corrected with its weight ranges equalized, and as it was.

    taken: "equalized" or "as it was". The other fields are those of `Guard`.
    """

    taken: str
    equalized_db: Sequence[float]
    before_db: Sequence[float]
    samples: int
    compared: int
    evaluator: str

    def __str__(self) -> str:
        both = {"equalized": self.equalized_db, "as it was": self.before_db}
        return f"int8: {_told(both, self.samples, self.compared)}: {self.taken}"


def _told(plans: Mapping[str, Sequence[float]], samples: int, compared: int) -> str:
    each = [f"{name} {_mean(db):.1f} dB ({min(db):.1f} to {max(db):.1f})" for name, db in plans.items()]
    sets = f"{counted(len(next(iter(plans.values()))), 'set')} of {counted(samples, 'sample')}"
    return f"{', '.join(each)} of signal over noise, quantized and corrected by {sets}, on {compared} others"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def choose(merged_db: Sequence[float], apart_db: Sequence[float]) -> str:
    """Which plan is taken: the merged one unless its mean is more than MOST below."""
    return "merged" if _mean(merged_db) >= _mean(apart_db) - MOST else "apart"


def better(equalized_db: Sequence[float], before_db: Sequence[float]) -> str:
    """Which weight ranges are taken: the equalized ones if their mean is above."""
    return "equalized" if _mean(equalized_db) > _mean(before_db) else "as it was"
