"""What a proof found: how many claims hold and by what, or which one does not."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bnfold.proof.claims import WAYS, Entry
from bnfold.report.table import counted

__all__ = ["Proof", "Refusal"]

WORDS = {
    "identical": "identical",
    "weights": "by weights",
    "sums": "by sums",
    "channels": "by channels",
    "bodies": "by bodies",
    "evaluated": "evaluated",
}


@dataclass(frozen=True)
class Refusal:
    """A claim that was not proved. wrong: it is known to be false, not only unknown. of_inputs: as a function
    of the model's inputs, so that no fact can be missing.
    """

    node: str
    tensor: str
    reason: str
    wrong: bool
    entry: Entry | None = None
    of_inputs: bool = False

    def __str__(self) -> str:
        where = f"{self.node}: {self.tensor}" if self.tensor else self.node
        return f"{where}: {self.reason}{f' ({self.entry})' if self.entry else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        entry = None
        if self.entry is not None:
            value, expected = (
                x if math.isfinite(x) else None for x in (self.entry.value, self.entry.expected)
            )
            entry = {"what": self.entry.what, "at": list(self.entry.at), "value": value, "expected": expected}
        return {
            "node": self.node,
            "tensor": self.tensor,
            "reason": self.reason,
            "wrong": self.wrong,
            "entry": entry,
        }


@dataclass
class Proof:
    """What was proved, by what (how many claims), and what was not.

    ways: claims that hold, by one of claims.WAYS. refusal: what ended the proof, or None. begins: where the
    models begin to differ, of what the refusal depends on. agreed: claims that hold as far as float32 tells;
    if nothing else is wrong, the first of them is the refusal. dropped: claims that did not hold and were not
    needed. ulps: the largest error of a stored number, in units in the last place, where weights decided.
    sizes: of the inputs, where shapes were needed. premises: what the proof takes from the certificate about
    inputs, in words. ran: whether the other model was run in the end.
    """

    ways: Counter[str] = field(default_factory=Counter)
    refusal: Refusal | None = None
    begins: Refusal | None = None
    agreed: list[Refusal] = field(default_factory=list)
    dropped: list[Refusal] = field(default_factory=list)
    ulps: float = 0.0
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    premises: list[str] = field(default_factory=list)
    ran: bool = False

    @property
    def status(self) -> str:
        """One of "proved", "refuted" and "undecided"."""
        if self.refusal is None:
            return "proved"
        return "refuted" if self.refusal.wrong else "undecided"

    def __str__(self) -> str:
        """In one line."""
        if self.refusal is None:
            parts = [f"{self.ways[way]} {WORDS[way]}" for way in WAYS if self.ways[way]]
            stored = self.ways["weights"] + self.ways["sums"]
            worst = f"; stored numbers at most {self.ulps:.3f} ulp off" if stored else ""
            provided = f"; provided that {', '.join(self.premises)}" if self.premises else ""
            how = f" ({', '.join(parts)})" if parts else ""
            return f"proved: {counted(sum(self.ways.values()), 'tensor')}{how}{worst}{provided}"
        text = f"{self.status}: {self.refusal}"
        if self.begins is not None and self.begins != self.refusal:
            text += f"; the models begin to differ at {self.begins}"
        if self.refusal in self.agreed:
            text += f"; {counted(len(self.agreed), 'tensor')} like this, and {sum(self.ways.values())} proved"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "status": self.status,
            "claims": {way: self.ways[way] for way in WAYS},
            "ulps": self.ulps,
            "refusal": None if self.refusal is None else self.refusal.to_dict(),
            "begins": None if self.begins is None else self.begins.to_dict(),
            "agreed": [refusal.to_dict() for refusal in self.agreed],
            "dropped": [refusal.to_dict() for refusal in self.dropped],
            "premises": self.premises,
            "ran": self.ran,
            "sizes": {name: list(shape) for name, shape in self.sizes.items()},
        }
