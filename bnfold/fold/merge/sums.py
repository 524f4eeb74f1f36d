"""Sums of linear maps of one tensor become one linear map; see plan.py for the cases.

A sum is taken apart into a tree: sums and per-channel maps inside, linear nodes and plain tensors as leaves.
Leaves that read the same tensor and go together are one block, and each block becomes one node. Parts of the
tree without such leaves stay as they are, and are added to the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bnfold.fold.affine import varying
from bnfold.fold.edits import Edit, Operand, Resum
from bnfold.fold.graph import Array, Dim, Graph, Node, Refused, Tensor
from bnfold.fold.merge.kernels import Form, add_forms, bias_of, diagonal, form_of, kernel_of, moved_to
from bnfold.fold.merge.view import Found, View, edits_of, positions
from bnfold.fold.moves import Identity
from bnfold.fold.roles import Affine, Linear, Move, Sum

__all__ = ["find_sums"]

_PARTS = (Sum, Affine, Move)
DEEP = 60  # nodes on a path through one sum


@dataclass(eq=False)
class Branch:
    """A tensor in a sum, and where it is read. node: what makes it, if that is taken in (None: it stays)."""

    tensor: Tensor
    read: Operand
    node: Node | None = None
    parts: list[Branch] = field(default_factory=list)
    source: Tensor | None = None  # of a leaf: what its linear node reads, or the tensor itself

    def leaves(self) -> Iterator[Branch]:
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()

    def inside(self) -> Iterator[Branch]:
        """The branches that are no leaves."""
        if self.parts:
            yield self
        for part in self.parts:
            yield from part.inside()


@dataclass(eq=False)
class Block:
    """Leaves that become one node."""

    host: Branch
    form: Form
    leaves: list[Branch]

    @property
    def node(self) -> Node:
        assert self.host.node is not None
        return self.host.node


def find_sums(graph: Graph, view: View) -> list[Found]:
    """All sums in which branches become one, from the outermost to the innermost."""
    found, seen = [], set()
    for node in reversed(graph.nodes):
        if not isinstance(node.role, _PARTS) or node in view.gone:  # most nodes of most models
            continue
        if not _passes(node) or node in seen or node in view.used:
            continue
        axis = _channel_axis(node, view)
        if axis is None:
            continue
        tree = _tree(node, axis, view)
        if tree is None:
            continue
        blocks = _blocks(tree, view)
        if not any(len(block.leaves) > 1 for block in blocks):
            seen.update(_nodes(tree))  # there is nothing in the smaller sums within either
            continue
        try:
            found.append(_merge(tree, blocks, axis, view))
        except Refused as reason:
            view.apart[tuple(block.node.name for block in blocks if len(block.leaves) > 1)] = str(reason)
    return found


def _nodes(tree: Branch) -> list[Node]:
    return [branch.node for branch in tree.inside() if branch.node is not None]


def _channel_axis(root: Node, view: View) -> int | None:
    """The output axis of the first linear node within a sum; None if there is none."""
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        for tensor in node.inputs:
            if tensor is None or depth > DEEP:
                continue
            maker = view.maker(tensor, view.scope(root))
            if maker is None:
                continue
            if isinstance(maker.role, Linear):
                if view.form(maker) is not None:
                    return maker.role.out_axis
            elif _passes(maker):
                stack.append((maker, depth + 1))
    return None


def _passes(node: Node) -> bool:
    """It may be a part of a sum."""
    role = node.role
    if any(tensor.readers or tensor.fixed for tensor in node.outputs[1:]):
        return False
    return isinstance(role, _PARTS) and (not isinstance(role, Move) or isinstance(role.move, Identity))


def _tree(root: Node, axis: int, view: View) -> Branch | None:
    """The sum that a node ends, taken apart; None if it cannot be."""
    y = root.outputs[0]
    tree = Branch(y, (root, -1), root)
    tree.parts = _parts(root, y, axis, view, 0)
    return tree if tree.parts else None


def _parts(node: Node, y: Tensor, axis: int, view: View, depth: int) -> list[Branch]:
    """What a node adds up; [] if it is not taken in."""
    role = node.role
    slots: list[int]
    if node in view.gone or isinstance(role, Affine):
        assert isinstance(role, Affine)
        kept = role.stay or node.name in view.skip or not set(varying(role.scale)) <= {axis}
        if node not in view.gone and (kept or not set(varying(role.shift)) <= {axis}):
            return []
        slots = [role.x]
    elif isinstance(role, Sum):
        slots = list(range(len(role.coefficients)))
    else:
        assert isinstance(role, Move)
        slots = [role.x]
    parts = []
    for slot in slots:
        tensor = node.inputs[slot] if slot < len(node.inputs) else None
        if tensor is None or tensor.shape is None or y.shape is None or tensor.rank != y.rank:
            return []
        if tensor.dtype != y.dtype:
            return []
        if axis >= y.rank or tensor.shape[axis] != y.shape[axis] or not isinstance(y.shape[axis], int):
            return []
        parts.append(_branch(tensor, (node, slot), axis, view, depth))
    return parts


def _branch(tensor: Tensor, read: Operand, axis: int, view: View, depth: int) -> Branch:
    maker = view.maker(tensor, view.scope(read[0]))
    if maker is not None and maker not in view.used and depth < DEEP:
        if isinstance(maker.role, Linear):
            if view.form(maker) is not None and maker.role.out_axis == axis:
                return Branch(tensor, read, maker, source=view.source(maker.at(maker.role.x)))
        elif _passes(maker):
            parts = _parts(maker, tensor, axis, view, depth + 1)
            if parts:
                return Branch(tensor, read, maker, parts)
    return Branch(tensor, read, source=view.source(tensor))


def _blocks(tree: Branch, view: View) -> list[Block]:
    """The leaves, put together as far as that costs no multiplication."""
    leaves = list(tree.leaves())
    linear = [(view.form(leaf.node), leaf) for leaf in leaves if leaf.node is not None]
    several = len({leaf.source for leaf in leaves}) < len(leaves)
    blocks: list[Block] = []
    rows = [(form, leaf) for form, leaf in linear if form is not None]
    for form, leaf in sorted(rows, key=lambda row: -row[0].cost) if several else rows:
        if not _joins(blocks, leaf, form, form.cost, view):
            blocks.append(Block(leaf, form, [leaf]))
    for leaf in leaves if several and blocks else ():
        if leaf.node is None:  # the tensor itself, or each of its channels scaled
            _joins(blocks, leaf, diagonal(blocks[0].form.outputs, len(blocks[0].form.axes)), 0, view)
    return blocks


def _joins(blocks: list[Block], leaf: Branch, form: Form, cost: int, view: View) -> bool:
    """Take a leaf into the first block where one node for all does, with no more multiplications."""
    why: dict[str, str] = {}
    for block in blocks:
        if block.host.source is not leaf.source:
            continue
        try:
            block.form = _joined(block, leaf, form, cost, view)
        except Refused as reason:
            why[block.node.name] = str(reason)
            continue
        block.leaves.append(leaf)
        return True
    for name, text in why.items():
        view.apart[name, leaf.node.name if leaf.node is not None else leaf.tensor.name] = text
    return False


def _joined(block: Block, leaf: Branch, form: Form, cost: int, view: View) -> Form:
    """The form of a block with one more leaf.

    Raises:
        Refused: there is none, or it would cost more.
    """
    host, x = block.node, block.host.source
    role = host.role
    assert isinstance(role, Linear)
    assert x is not None
    if leaf.node is None and role.in_axis != role.out_axis:
        raise Refused("do not keep the channels on one axis")
    if leaf.node is not None and not _alike(host, leaf.node):
        raise Refused("read or give their channels along different axes, or in different types")
    sizes: tuple[Dim, ...] = (x.shape or ())[x.rank - len(block.form.axes) :]
    whole = add_forms(block.form, form, sizes).with_valid_pads(sizes, view.symmetric)
    if whole.cost > block.form.cost + cost:
        more = f"{whole.cost:,} for each output place, and {block.form.cost + cost:,} apart"
        raise Refused(f"would have more multiplications as one node: {more}")
    return whole


def _alike(a: Node, b: Node) -> bool:
    one, two = a.role, b.role
    assert isinstance(one, Linear)
    assert isinstance(two, Linear)
    return (
        (one.in_axis, one.out_axis, one.free) == (two.in_axis, two.out_axis, two.free)
        and one.windows is not None
        and two.windows is not None
        and len(one.windows.strides) == len(two.windows.strides)
        and one.weight.dtype == two.weight.dtype
    )


def _merge(tree: Branch, blocks: list[Block], axis: int, view: View) -> Found:
    """The merge of a tree whose blocks are known.

    Raises:
        Refused: it would not pay, or what is left over cannot be added as it is.
    """
    merged = {leaf for block in blocks if len(block.leaves) > 1 for leaf in block.leaves}
    kept: list[Branch] = []
    taken: list[Node] = []
    alone: list[Branch] = []

    def walk(branch: Branch, plain: bool) -> None:
        leaves = list(branch.leaves())
        if branch in merged:
            return
        if not merged.intersection(leaves):
            own = branch
            while own.parts and own.node in view.gone:  # it will have been taken in
                own = own.parts[0]
            if plain:
                kept.append(branch)
            elif own.node is not None and not own.parts:
                alone.append(own)  # its own weights take what stands between it and the sum
            else:
                raise Refused("what is added to them is scaled on the way")
            return
        assert branch.node is not None
        taken.append(branch.node)
        role = branch.node.role
        for i, part in enumerate(branch.parts):
            even = role.coefficients[i] == 1 if isinstance(role, Sum) else isinstance(role, Move)
            walk(part, plain and (even or branch.node in view.gone))

    walk(tree, True)
    used = [block for block in blocks if len(block.leaves) > 1 or block.host in alone]
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
            kernel, bias = _numbers(branch, block, scale)
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


def _numbers(leaf: Branch, block: Block, scale: Array) -> tuple[Array, Array]:
    """What a leaf adds to its block: its kernel and its bias, times a number for each output channel."""
    goal = block.form
    factors = np.broadcast_to(scale, (goal.outputs,))
    if leaf.node is None:
        form = diagonal(goal.outputs, len(goal.axes))
        return moved_to(form, factors.reshape(form.shape), goal), np.zeros(goal.outputs)
    role = leaf.node.role
    assert isinstance(role, Linear)
    kernel, own = kernel_of(role), form_of(role)
    assert own is not None
    kernel = kernel * factors.reshape(kernel.shape[:2] + (1,) * (kernel.ndim - 2))
    return moved_to(own, kernel, goal), factors * bias_of(role, goal.outputs)
