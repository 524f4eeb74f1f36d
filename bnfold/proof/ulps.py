"""How far stored numbers are off the exact ones, in units in the last place.

Exact ones are computed in float64. One that is stored in its own type is at most half a unit off; two are
told apart by one unit, so that the limit is one rounding and a little of what float64 rounds itself.
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.proof.claims import Entry, Wrong
from bnfold.proof.operator import Array, steps_of

__all__ = ["SUM", "Worst"]

# A float64 sum of several terms, relative to the sum of their absolute values.
SUM = 1e-15
# The bits of a float64 that hold its power of two.
EXPONENT = np.int64(0x7FF << 52)


class Worst:
    """The largest error of numbers that are looked at part by part, in units in the last place of their type.

    where: of which array; limit: one rounding of an exact number, and a little of float64's own.
    """

    def __init__(self, where: str, dtype: str, limit: float = 1.0) -> None:
        self.where, self.limit = where, limit
        self.digits, self.smallest = steps_of(dtype)
        self.ulps, self.entry = 0.0, Entry(where, (), 0.0, 0.0)
        self.count = self.beyond = 0

    def look(
        self, got: Array, expected: Array, slack: Array | float = 0.0, begin: tuple[int, ...] = ()
    ) -> Worst:
        """More numbers. slack: what they may be off beside. begin: where the first of them stands."""
        got, expected = np.broadcast_arrays(got, expected)
        with np.errstate(all="ignore"):
            error = got - expected
            np.abs(error, out=error)
            if np.any(slack):
                error = np.maximum(error - slack, 0.0)
            # without its sign and its other bits a number is the power of two below it
            power = (expected.view(np.int64) & EXPONENT).view(np.float64)
            error /= np.maximum(power, 2.0**-self.smallest, out=power)
        unit, worst = 2.0**self.digits, float(error.max(initial=0.0))
        if not math.isfinite(worst):
            error[(got == expected) | (np.isnan(got) & np.isnan(expected))] = 0.0
            error[np.isnan(error)] = np.inf
            worst = float(error.max(initial=0.0))
        self.count, worst = self.count + error.size, worst * unit
        if worst > self.limit:
            self.beyond += int((error > self.limit / unit).sum())
        if worst > self.ulps:
            at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
            place = tuple(np.add(at, (*begin, *[0] * (len(at) - len(begin)))).tolist())
            self.ulps, self.entry = worst, Entry(self.where, place, float(got[at]), float(expected[at]))
        return self

    def judged(self) -> float:
        """The largest error.

        Raises:
            Wrong: it is more than the limit, or not finite.
        """
        if self.ulps > self.limit:
            off = f"{self.ulps:.3g} units in the last place off; {self.beyond} of {self.count} are"
            raise Wrong(off, self.entry, True, self.ulps)
        return self.ulps
