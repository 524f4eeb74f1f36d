"""What is claimed of a tensor, and what becomes of a claim: it holds, and by what; it is wrong, and where; or
nothing is known, and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bnfold.certificate import Image
from bnfold.proof.operator import Agrees, TooLarge, TooLong, Undecided

__all__ = [
    "BODIES",
    "CHANNELS",
    "EVALUATED",
    "IDENTICAL",
    "SUMS",
    "WAYS",
    "WEIGHTS",
    "Agrees",
    "Entry",
    "Held",
    "Image",
    "TooLarge",
    "TooLong",
    "Undecided",
    "Wrong",
]

# In the order in which they are tried.
IDENTICAL, WEIGHTS, SUMS, CHANNELS = "identical", "weights", "sums", "channels"
BODIES, EVALUATED = "bodies", "evaluated"
WAYS = (IDENTICAL, WEIGHTS, SUMS, CHANNELS, BODIES, EVALUATED)


@dataclass(frozen=True)
class Entry:
    """One number that is wrong. what: of which array; at: its place there."""

    what: str
    at: tuple[int, ...]
    value: float
    expected: float

    def __str__(self) -> str:
        return f"{self.what} at {list(self.at)} is {self.value:.9g}, and {self.expected:.9g} is expected"


@dataclass(frozen=True)
class Held:
    """A claim that was proved. way: one of WAYS. ulps: the largest error of a stored number, where weights
    decided.
    """

    way: str
    ulps: float = 0.0


class Wrong(Exception):
    """A claim does not hold.

    final: no larger region may be asked instead. What was compared depends on no fact about its inputs, or is
    so nearly right that no missing fact explains it. ulps: how far a stored number is off, in units in the
    last place, where those were compared. of_inputs: what was compared reads the model's inputs alone, of
    which there are no facts.
    """

    of_inputs = False

    def __init__(
        self, reason: str, entry: Entry | None = None, final: bool = False, ulps: float = math.inf
    ) -> None:
        super().__init__(reason)
        self.entry, self.final, self.ulps = entry, final, ulps
