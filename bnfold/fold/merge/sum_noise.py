"""What rounding adds to a sum of branches, as it is, and with some of its branches as one; see noise.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bnfold.fold.graph import Array, Refused
from bnfold.fold.merge.branches import Block, Branch, numbers, scales_of, split, steps_of
from bnfold.fold.merge.kernels import kernel_of
from bnfold.fold.merge.noise import TENSOR, Judge, power_of
from bnfold.fold.merge.view import View
from bnfold.fold.roles import Linear, Move
from bnfold.report.fold import Noise

__all__ = ["SumNoise"]


class Rounded(NamedTuple):
    """A tensor: the power of each channel, and the noise in it."""

    power: Array
    noise: Array


class SumNoise:
    """The noise of one sum, in each form that is asked for; kernels are computed once.

    blocks: all leaves that may be one are. judge: says what is rounded.
    """

    def __init__(self, tree: Branch, blocks: list[Block], view: View, judge: Judge) -> None:
        self.tree, self.view, self.judge = tree, view, judge
        self.scales, self.channels = scales_of(tree), blocks[0].form.outputs
        self._leaves: dict[Branch, Rounded] = {}
        self._nodes: dict[frozenset[Branch], Rounded] = {}
        joined = [leaf for block in blocks for leaf in block.leaves]
        others = [leaf for leaf in tree.leaves() if leaf not in joined]
        size = sum(float(self._node(block).power.sum()) for block in blocks)
        size += sum(float((self._branch(leaf).power * self.scales[leaf] ** 2).sum()) for leaf in others)
        self.size = max(size, 1e-30)
        self.apart = float(self._branch(tree).noise.sum()) / self.size + TENSOR

    def noise(self, blocks: list[Block]) -> Noise | None:
        """With these blocks as nodes; None if there is no such form."""
        ratio = self.ratio(blocks)
        return None if ratio == math.inf else self.judge.noise(self.tree.tensor.name, self.apart, ratio)

    def ratio(self, blocks: list[Block]) -> float:
        """The noise with these blocks as nodes, relative to the sum's power; infinite: no such form."""
        try:
            used, kept, _ = split(self.tree, blocks, self.view)
        except Refused:
            return math.inf
        if not used:
            return self.apart
        made = [self._given(self._node(block), True) for block in used]
        made += [self._given(self._branch(branch), not _plain(branch)) for branch in kept]
        if len(made) == 1:
            return float(self._node(used[0]).noise.sum()) / self.size + TENSOR
        total = sum(float(one.noise.sum()) for one in made)
        for count in range(2, len(made)):  # the sums between; the last one is there in every form
            total += self._rounding(np.sum([one.power for one in made[:count]], 0)) * len(made[0].power)
        return total / self.size + TENSOR

    def _rounding(self, power: Array) -> float:
        return self.judge.rounding.of_tensor(power)

    def _given(self, made: Rounded, rounds: bool) -> Rounded:
        """A tensor as those behind it read it."""
        return Rounded(made.power, made.noise + self._rounding(made.power)) if rounds else made

    def _node(self, block: Block) -> Rounded:
        """What one node for a block gives, as far as the weights go; at the size that it has in the sum."""
        key = frozenset(block.leaves)
        if key not in self._nodes:
            parts = (numbers(leaf, block.form, self.scales[leaf])[0] for leaf in block.leaves)
            self._nodes[key] = self._of(sum(parts, np.zeros(block.form.shape)))
        return self._nodes[key]

    def _of(self, kernel: Array) -> Rounded:
        return Rounded(power_of(kernel), self.judge.rounding.of_weights(kernel))

    def _branch(self, branch: Branch) -> Rounded:
        """What a branch gives as it is now, its own rounding left out."""
        if not branch.parts:
            return self._leaf(branch)
        power, noise = np.zeros(1), np.zeros(1)
        for part, step in zip(branch.parts, steps_of(branch), strict=True):
            given = self._given(self._branch(part), not _plain(part))
            power, noise = power + step**2 * given.power, noise + step**2 * given.noise
        return Rounded(power, noise)

    def _leaf(self, leaf: Branch) -> Rounded:
        if leaf not in self._leaves:
            role = None if leaf.node is None else leaf.node.role
            if isinstance(role, Linear):
                self._leaves[leaf] = self._of(kernel_of(role))
            else:
                self._leaves[leaf] = Rounded(np.ones(self.channels), np.zeros(self.channels))
        return self._leaves[leaf]


def _plain(branch: Branch) -> bool:
    """It is rounded in every form, or is no tensor of its own."""
    return branch.node is None or isinstance(branch.node.role, Move)
