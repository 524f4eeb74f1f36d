"""Sums of linear maps of one tensor become one linear map; see plan.py for the cases.

Each block of a sum's branches (branches.py) becomes one node. Parts of the tree without such leaves stay as
they are, and are added to the blocks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bnfold.fold.carry.spread import ODD_SHAPES
from bnfold.fold.edits import Edit, Operand, Resum
from bnfold.fold.graph import Array, Graph, Node, Refused
from bnfold.fold.merge.branches import Block, Branch, blocks_of, nodes_of, numbers, split, sums_of
from bnfold.fold.merge.choose import choose
from bnfold.fold.merge.view import UNSOUND, Found, View, edits_of, positions
from bnfold.fold.roles import Affine, Linear, Sum

__all__ = ["find_sums"]


def find_sums(graph: Graph, view: View) -> list[Found]:
    """All sums in which branches become one, from the outermost to the innermost."""
    found: list[Found] = []
    seen: set[Node] = set()
    for tree, axis in sums_of(graph, view, seen):
        blocks = blocks_of(tree, view)
        if not any(len(block.leaves) > 1 for block in blocks):
            seen.update(nodes_of(tree))  # there is nothing in the smaller sums within either
            continue
        hosts = tuple(block.node.name for block in blocks if len(block.leaves) > 1)
        try:
            merge = choose(tree, blocks, view, partial(_merge, tree, axis, view))
        except Refused as reason:
            view.keep(hosts, reason)
            continue
        except UNSOUND:
            view.keep(hosts, ODD_SHAPES)
            continue
        if merge is not None:
            found.append(merge)
    return found


def _merge(tree: Branch, axis: int, view: View, blocks: list[Block]) -> Found:
    """The merge of a tree whose blocks are known.

    Raises:
        Refused: it would not pay, or what is left over cannot be added as it is.
    """
    used, kept, taken = split(tree, blocks, view)
    assert tree.node is not None
    hosts = tuple(block.node for block in used)
    linear = [leaf.node for block in used for leaf in block.leaves if leaf.node is not None]
    addends = len(used) + len(kept)
    gone = tuple(node for node in (*taken, *linear) if node not in hosts and node not in view.gone)
    extra = _added_for_biases(used, [node for node in taken if node not in view.gone])
    if addends - 1 + extra >= len(gone):
        raise Refused("would not be fewer nodes")
    view.used.update(taken, linear)
    y = tree.tensor
    before = sum(_cost(node, axis, view) for node in (*taken, *linear))
    after = sum(block.form.cost * positions(block.node.outputs[0], axis) for block in used)
    write = partial(_write, tree, used, tuple(branch.read for branch in kept), set(taken))
    assert y.producer is not None
    return Found(y.producer, hosts, gone, before, after, write)


def _added_for_biases(blocks: list[Block], taken: list[Node]) -> int:
    """How many nodes biases may add, of products that have none of their own."""
    constant = any(isinstance(node.role, Affine) and node.role.kind != "scale" for node in taken)
    extra = 0
    for block in blocks:
        roles = [leaf.node.role for leaf in block.leaves if leaf.node is not None]
        biased = (constant and block is blocks[0]) or any(getattr(role, "bias", None) for role in roles)
        extra += getattr(block.node.role, "costs", 0) if biased else 0
    return extra


def _cost(node: Node, axis: int, view: View) -> int:
    """Multiplications of a node that is there now."""
    if isinstance(node.role, Linear):
        form = view.form(node)
        return (0 if form is None else form.cost) * positions(node.outputs[0], axis)
    scales = isinstance(node.role, Affine) and node.role.kind != "shift" and node not in view.gone
    size = (node.outputs[0].shape or ())[axis] if scales else 0
    return positions(node.outputs[0], axis) * (size if isinstance(size, int) else 1)


def _write(tree: Branch, blocks: list[Block], kept: tuple[Operand, ...], taken: set[Node]) -> list[Edit]:
    """The edits, with all numbers computed in float64."""
    of_leaf = {leaf: block for block in blocks for leaf in block.leaves}
    kernels: dict[Block, Array] = {block: np.zeros(block.form.shape) for block in blocks}
    biases: dict[Block, Array] = {block: np.zeros(block.form.outputs) for block in blocks}
    constant: Any = 0.0

    def walk(branch: Branch, scale: Any) -> None:
        nonlocal constant
        block = of_leaf.get(branch)
        if block is not None:
            kernel, bias = numbers(branch, block.form, scale)
            kernels[block] += kernel
            biases[block] += bias
            return
        node = branch.node
        if node is None or node not in taken:
            return
        role = node.role
        if isinstance(role, Affine):
            constant = constant + scale * role.shift.reshape(-1)
            walk(branch.parts[0], scale * role.scale.reshape(-1))
            return
        for i, part in enumerate(branch.parts):
            walk(part, scale * role.coefficients[i] if isinstance(role, Sum) else scale)

    walk(tree, np.ones(1))
    biases[blocks[0]] += constant
    assert tree.node is not None
    # first of all: a bias may become a node behind the host, which then gives what the readers read
    edits: list[Edit] = [Resum(tree.node, (*((block.node, -1) for block in blocks), *kept))]
    for block in blocks:
        edits += edits_of(block.node, block.form, kernels[block], biases[block])
    return edits
