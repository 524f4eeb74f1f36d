"""Branches that are summed, and linear nodes in a row, become one node: exact, and never slower.

A linear node is a convolution or a product with one matrix, of which weight and bias are known. In

    y = sum of branches,    branch = per-channel maps of (linear node of x | x itself)

all branches that read the same x are one linear map of x, and become one node (RepVGG, MobileOne, FastViT's
RepMixer, RepViT, diverse branch blocks: k x k, 1 x 1 and a batch norm of x). The sum may be any tree of Add,
Sub, Sum, Mean and Neg, with Mul, Add, Div and batch norms per channel between (layer scale).

 1. Strides and the number of outputs are equal. Kernels are laid over each other by where their taps look:
    pads may differ, a 1 x 1 without pads is the middle of a 3 x 3 with pads of 1. Dilated ones share a grid.
 2. Groups may differ: the merged node has their greatest common divisor, with zeros between blocks.
 3. x itself, or a map of each of its channels, is the kernel of one tap with a group for each channel. It
    joins a node with as many outputs as inputs that looks at the place itself; it never makes a node alone.
 4. Per-channel maps on the way to the sum scale kernels and biases; shifts are added to the bias.
 5. A tensor between has one reader and is no output of the graph. Weights and biases are known, may be
    changed, and are not quantized. All nodes stand in one graph or body, and no map is one to be skipped.
 6. What reads another tensor stays, and is added to the merged node. It must not be scaled on the way to the
    sum, unless it is a linear node that nobody else reads: then that takes the scale in.
 7. It pays: no more multiplications than before, and fewer nodes. So two k x k are one (half of them), a
    1 x 1 beside a k x k costs nothing more, but a depthwise k x k and a full 1 x 1, or a 1 x 3 and a 3 x 1,
    stay two.

Two linear nodes in a row, where nothing else reads what is between:

 8. One of them has one tap along each axis, or the second one has no padding there: outside the tensor the
    second one sees zeros, and the first one might have given something else.
 9. So a bias of the first one passes only where no padding follows; it is multiplied by the sum of all taps.
10. It pays: fewer multiplications and no more weights than both. A bottleneck between, and a depthwise k x k
    beside a 1 x 1, stay two.

Both: 11. Numbers are computed in float64 and stored in the weight's own type; a number that leaves its range
keeps the nodes apart. 12. Equal for finite values: where a full kernel has zeros, an infinite input of one
channel gives NaN in others.

Where the model will be quantized (`Judge`, noise.py):

13. A merge may add half a dB of noise, as predicted from the weights. Of the branches of a sum as many become
    one as that allows: choose.py. Below 8 bits branches stay apart.
14. A batch norm that is a branch beside linear nodes is merged or stays; it is not folded around the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bnfold.fold.absorb.store import OutOfRange
from bnfold.fold.carry.spread import ODD_SHAPES
from bnfold.fold.claims import Claim, Claims, of_merge
from bnfold.fold.edits import Edit
from bnfold.fold.graph import Graph, Node, Tensor
from bnfold.fold.merge.branches import nodes_of, sums_of
from bnfold.fold.merge.noise import Judge
from bnfold.fold.merge.rows import find_rows
from bnfold.fold.merge.sums import find_sums
from bnfold.fold.merge.view import UNSOUND, Found, View
from bnfold.fold.roles import Affine
from bnfold.report.fold import Apart, Entry, Merge, Report

__all__ = ["MergePlan", "maps_beside", "merge", "merge_all", "mergeable"]

ROUNDS = 8  # at most: each finds what the one before has made possible


@dataclass
class MergePlan:
    """What to write, and what to report.

    apart: what is not merged, and why, by names of nodes. maps: names of affine nodes that vanish, and of
    those that take them in. becomes: of tensors, for `claims`.
    """

    edits: list[Edit] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)
    apart: dict[tuple[str, ...], Apart] = field(default_factory=dict)
    maps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    becomes: dict[Tensor, Claim | None] = field(default_factory=dict)

    def claims(self) -> Claims:
        """What becomes of each tensor."""
        return self.becomes


def mergeable(graph: Graph, view: View, report: Report) -> bool:
    """Whether there is anything to merge, by the forms alone, in a graph that a fold is about to change.

    If not, the report says why.
    """
    found = bool(_find(graph, view))
    if not found:
        report.apart = list(view.apart.values())
    return found


def merge_all(
    report: Report,
    read: Callable[[], Graph],
    apply: Callable[[Graph, MergePlan], None],
    view: Callable[[], View],
    judge: Judge | None = None,
    limit: int | None = None,
) -> Graph:
    """Merge until there is nothing left to merge.

    Args:
        report: gets a line for each merge. A kept map that is gone counts as folded.
        read: gives the graph as it is now.
        apply: writes a plan for that graph.
        view: what may be merged, as new.
        judge: who weighs what rounding adds; None: it does not matter.
        limit: stop after so many merges.

    Returns:
        The graph as it is then.
    """
    graph = read()
    for _ in range(ROUNDS):
        left = None if limit is None else limit - len(report.merged)
        if left == 0:
            break
        what = view()
        what.judge = judge
        plan = merge(graph, what, left)
        report.apart = list(plan.apart.values())
        if not plan.merged:
            break
        apply(graph, plan)
        report.merged += plan.merged
        report.entries = [_after(entry, plan) for entry in report.entries]
        graph = read()
    return graph


def merge(graph: Graph, view: View, limit: int | None = None) -> MergePlan:
    """Plan the merges that pay in a graph, and that do not need each other; at most `limit`."""
    plan = MergePlan()
    with np.errstate(all="ignore"):  # a judge counts with squares, which may leave float64's range
        all_found = _find(graph, view)
    for found in all_found:
        if len(plan.merged) == limit:
            break
        hosts, gone = (tuple(node.name for node in nodes) for nodes in (found.hosts, found.gone))
        try:
            with np.errstate(over="ignore"):  # `in_type` reports what leaves its range
                edits = found.write()
        except OutOfRange as error:
            view.keep(hosts + gone, error.reason)
            continue
        except UNSOUND:
            view.keep(hosts + gone, ODD_SHAPES)
            continue
        plan.edits += edits
        plan.becomes |= of_merge(found.root, found.hosts)
        plan.merged.append(Merge(hosts[0], found.hosts[0].op, gone, found.before, found.after, found.noise))
        plan.maps |= {node.name: hosts for node in found.gone if isinstance(node.role, Affine)}
    plan.apart = view.apart
    return plan


def maps_beside(graph: Graph, view: View) -> set[str]:
    """Names of affine nodes that are branches of a sum, beside linear nodes that read what they read."""
    found: set[str] = set()
    seen: set[Node] = set()
    for tree, _ in sums_of(graph, view, seen):
        seen.update(nodes_of(tree))
        sources = {leaf.source for leaf in tree.leaves() if leaf.node is not None}
        for branch in tree.inside():
            beside = all(leaf.node is None and leaf.source in sources for leaf in branch.leaves())
            if beside and branch.node is not None and isinstance(branch.node.role, Affine):
                found.add(branch.node.name)
    return found


def _find(graph: Graph, view: View) -> list[Found]:
    """In graph order."""
    found = [*find_sums(graph, view), *find_rows(graph, view)]
    order = {node: i for i, node in enumerate(graph.nodes)} if found else {}
    for one in found:
        one.gone = tuple(sorted(one.gone, key=order.__getitem__))
    return sorted(found, key=lambda one: order[one.root])


def _after(entry: Entry, plan: MergePlan) -> Entry:
    into = plan.maps.get(entry.name) if entry.outcome == "kept" else None
    if into is None:
        return entry
    reason = "merged with the branches beside it"
    return entry._replace(outcome="folded", into=into, reason=reason, blocked_by="", cure="")
