"""Which branches of a sum become one, where rounding matters: the most that adds no more noise than allowed.

All branches as one are tried first. While that adds too much, the branch leaves without which there is least:
as a rule the identity, one large number in a row of small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bnfold.fold.graph import Refused
from bnfold.fold.merge.branches import Block, Branch, block_of, nodes_of, split
from bnfold.fold.merge.sum_noise import SumNoise
from bnfold.fold.merge.view import Found, View

__all__ = ["choose"]


def choose(
    tree: Branch, blocks: list[Block], view: View, merge: Callable[[list[Block]], Found]
) -> Found | None:
    """The merge of a sum; None, and a line for what stays apart, where rounding allows none.

    Args:
        tree: the sum.
        blocks: its leaves, put together as far as that costs no multiplication.
        view: what may be merged, and the judge.
        merge: makes the merge of blocks.

    Raises:
        Refused: there is no merge, whatever rounding adds.
    """
    judge = view.judge
    if judge is None:
        return merge(blocks)
    if not judge.decides:
        found = merge(blocks)
        found.noise = SumNoise(tree, blocks, view, judge).noise(blocks)
        return found
    split(tree, blocks, view)  # refuses what is no matter of rounding
    of = SumNoise(tree, blocks, view, judge)
    if not judge.merges_branches:
        view.used.update(nodes_of(tree))
        noise = of.noise(blocks)
        names = [leaf.name for block in blocks if len(block.leaves) > 1 for leaf in block.leaves]
        view.keep(tuple(names), judge.reason(noise), noise)
        return None
    chosen, left, noise = blocks, [], of.noise(blocks)
    while _joined(chosen) and judge.refuses(noise):
        options = list(_without_one(chosen, view))
        if not options:
            return None
        chosen, leaf = min(options, key=lambda fewer: of.ratio(fewer[0]))
        left.append(leaf)
        noise = of.noise(chosen)
    for leaf in left:
        _tell(leaf, chosen, of, view)
    if not _joined(chosen):
        return None
    found = merge(chosen)
    found.noise = noise
    return found


def _joined(blocks: list[Block]) -> bool:
    return any(len(block.leaves) > 1 for block in blocks)


def _without_one(blocks: list[Block], view: View) -> Iterator[tuple[list[Block], Branch]]:
    """The blocks with one leaf fewer in one of them, which stands by itself then; and that leaf."""
    for block in blocks:
        others = [other for other in blocks if other is not block]
        for leaf in block.leaves[1:]:
            try:
                rest = block_of([one for one in block.leaves if one is not leaf], view)
            except Refused:  # what is left needs it: a kernel that holds both others, say
                continue
            yield [*others, rest, *([block_of([leaf], view)] if leaf.node is not None else ())], leaf


def _tell(leaf: Branch, blocks: list[Block], of: SumNoise, view: View) -> None:
    """Note why a leaf does not join the largest block of what reads the same tensor."""
    near = [block for block in blocks if block.host.source is leaf.source and leaf not in block.leaves]
    block = max(near, key=lambda block: (len(block.leaves), block.form.cost))
    others = [other for other in blocks if other is not block and leaf not in other.leaves]
    try:
        noise = of.noise([*others, block_of([*block.leaves, leaf], view)])
    except Refused:
        noise = None
    view.keep((block.node.name, leaf.name), of.judge.reason(noise), noise)
