"""What rounding to integers adds to a linear map, predicted from its weights alone.

Inputs are taken to be white: entries that know nothing of each other, of power 1 in every channel. Both
forms of a sum read the same input, so what that is not true of cancels in their comparison.

 1. A weight is off by step**2 / 12; by its own square below half a step, where it becomes zero; and the
    largest of each scale, which is a code itself, not at all. The step is the largest weight of the scale
    over 127 (8 bits) or 7 (4 bits).
 2. A tensor that the runtime rounds is off by TENSOR times its mean power: it has one scale for all channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bnfold.fold.graph import Array
from bnfold.options import BRANCHES_FROM, QUANTIZERS
from bnfold.report.fold import ALLOWED, Noise

__all__ = ["TENSOR", "Judge", "Rounding", "power_of"]

TENSOR = 10**-3.8  # uint8 tensors behind batch norms, as measured


class Rounding(NamedTuple):
    """What a quantizer rounds.

    bits: of a weight. rows: each output channel of a weight has a scale, else there is one for all. sums: the
    runtime rounds what each node gives, each branch and each sum (onnxruntime's QDQ); else only what linear
    nodes read.
    """

    bits: int = 8
    rows: bool = True
    sums: bool = True

    def of_weights(self, kernel: Array, powers: Array | None = None) -> Array:
        """The noise that rounding a kernel adds to each of its outputs.

        kernel: of shape (groups, outputs of a group, inputs of a group, *taps). powers: of the inputs, 1 if
        None.
        """
        square = kernel.reshape(*kernel.shape[:3], -1) ** 2
        top = square.max((2, 3) if self.rows else None, keepdims=True, initial=0.0)
        step = top / (2 ** (self.bits - 1) - 1) ** 2  # squared
        noise = np.where(square < step / 4, square, step / 12)
        noise[square == top] = 0.0
        if powers is not None:
            noise *= powers.reshape(square.shape[0], 1, -1, 1)
        flat: Array = noise.sum((2, 3)).reshape(-1)
        return flat

    def of_tensor(self, power: Array) -> float:
        """The noise that rounding a tensor adds to each of its channels; `power`: of each."""
        return TENSOR * float(power.mean()) if self.sums else 0.0


def power_of(kernel: Array) -> Array:
    """The power of each output of a kernel."""
    flat: Array = (kernel.reshape(*kernel.shape[:2], -1) ** 2).sum(2).reshape(-1)
    return flat


@dataclass
class Judge:
    """Who says what may be merged.

    target: a name of QUANTIZERS. decides: merges that add too much noise are left, else they are only told.
    rounding: what the target rounds. branches: whether they may become one, as far as the caller knows.
    first: the noise of each sum before anything in it was merged, by the
    name of its tensor: several small merges must not add up to a large loss.
    """

    target: str
    decides: bool
    branches: bool = True
    rounding: Rounding = field(init=False)
    first: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rounding = Rounding(*QUANTIZERS[self.target])

    @property
    def merges_branches(self) -> bool:
        """Whether branches may become one at all."""
        return self.branches and (self.rounding.bits >= BRANCHES_FROM or not self.decides)

    def refuses(self, noise: Noise | None) -> bool:
        """Whether a merge adds too much, or nobody knows what it adds."""
        return self.decides and (noise is None or noise.added_db > ALLOWED)

    def reason(self, noise: Noise | None) -> str:
        """Why nodes stay several."""
        why = f"for {self.target}" if self.merges_branches else "below 8 bits"
        if not self.branches:
            why = f"for {self.target}, which was measured"
        added = f": as one node, rounding would add {noise.added_db:.1f} dB of noise" if noise else ""
        return f"stay apart {why}{added}"

    def noise(self, tensor: str, apart: float, merged: float) -> Noise | None:
        """Of a sum, or of two in a row, that a tensor holds; each relative to its power.

        None: a number is infinite, or none.
        """
        if not math.isfinite(apart + merged):
            return None
        return Noise(self.target, decibels(self.first.setdefault(tensor, apart)), decibels(merged))


def decibels(ratio: float) -> float:
    """At least -200, for what is exact."""
    return round(10 * math.log10(max(ratio, 1e-20)), 2)
