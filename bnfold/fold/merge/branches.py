"""What a sum is made of: a tree of sums and per-channel maps, with linear nodes and plain tensors as leaves.

Leaves that read the same tensor and go together are one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bnfold.fold.affine import varying
from bnfold.fold.edits import Operand
from bnfold.fold.graph import Array, Dim, Graph, Node, Refused, Tensor
from bnfold.fold.merge.kernels import Form, add_forms, bias_of, diagonal, form_of, kernel_of, moved_to
from bnfold.fold.merge.view import View
from bnfold.fold.moves import Identity
from bnfold.fold.roles import Affine, Linear, Move, Sum

__all__ = [
    *("Block", "Branch", "Split"),
    *("block_of", "blocks_of", "numbers", "nodes_of", "scales_of", "split", "sums_of"),
]

PARTS = (Sum, Affine, Move)
DEEP = 60  # nodes on a path through one sum


@dataclass(eq=False)
class Branch:
    """A tensor in a sum, and where it is read. node: what makes it, if that is taken in (None: it stays)."""

    tensor: Tensor
    read: Operand
    node: Node | None = None
    parts: list[Branch] = field(default_factory=list)
    source: Tensor | None = None  # of a leaf: what its linear node reads, or the tensor itself

    @property
    def name(self) -> str:
        """Of its node, or of the tensor."""
        return self.tensor.name if self.node is None else self.node.name

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


def sums_of(graph: Graph, view: View, seen: set[Node]) -> Iterator[tuple[Branch, int]]:
    """All sums, from the outermost to the innermost, and the axis of their channels.

    seen: nodes that no sum needs to be looked for at; it may grow on the way.
    """
    for node in reversed(graph.nodes):
        if not isinstance(node.role, PARTS) or node in view.gone:  # most nodes of most models
            continue
        if not passes(node) or node in seen or node in view.used:
            continue
        axis = channel_axis(node, view)
        tree = None if axis is None else tree_of(node, axis, view)
        if axis is not None and tree is not None:
            yield tree, axis


def nodes_of(tree: Branch) -> list[Node]:
    """Those of a sum that are no leaves."""
    return [branch.node for branch in tree.inside() if branch.node is not None]


def scales_of(tree: Branch) -> dict[Branch, Array]:
    """What each branch is multiplied by on its way to the sum: a number, or one for each channel."""
    found = {tree: np.ones(1)}
    for branch in tree.inside():
        for part, scale in zip(branch.parts, steps_of(branch), strict=True):
            found[part] = found[branch] * scale
    return found


def steps_of(branch: Branch) -> list[Array]:
    """What a node multiplies each of its operands by."""
    assert branch.node is not None
    role = branch.node.role
    if isinstance(role, Sum):
        return [np.full(1, coefficient) for coefficient in role.coefficients]
    return [role.scale.reshape(-1) if isinstance(role, Affine) else np.ones(1)]


def channel_axis(root: Node, view: View) -> int | None:
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
            elif passes(maker):
                stack.append((maker, depth + 1))
    return None


def passes(node: Node) -> bool:
    """It may be a part of a sum."""
    role = node.role
    if any(tensor.readers or tensor.fixed for tensor in node.outputs[1:]):
        return False
    return isinstance(role, PARTS) and (not isinstance(role, Move) or isinstance(role.move, Identity))


def tree_of(root: Node, axis: int, view: View) -> Branch | None:
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
        elif passes(maker):
            parts = _parts(maker, tensor, axis, view, depth + 1)
            if parts:
                return Branch(tensor, read, maker, parts)
    return Branch(tensor, read, source=view.source(tensor))


def blocks_of(tree: Branch, view: View) -> list[Block]:
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


def block_of(leaves: list[Branch], view: View) -> Block:
    """Leaves as one block, the first of which is its host.

    Raises:
        Refused: there is none.
    """
    host = leaves[0]
    assert host.node is not None
    form = view.form(host.node)
    assert form is not None
    block = Block(host, form, [host])
    for leaf in leaves[1:]:
        own = diagonal(form.outputs, len(form.axes)) if leaf.node is None else view.form(leaf.node)
        assert own is not None
        block.form = _joined(block, leaf, own, 0 if leaf.node is None else own.cost, view)
        block.leaves.append(leaf)
    return block


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
        view.keep((name, leaf.name), text)
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


class Split(NamedTuple):
    """What becomes of a sum. used: blocks whose nodes stay, merged or by themselves. kept: branches that are
    added to them as they are. taken: nodes of the tree that vanish.
    """

    used: list[Block]
    kept: list[Branch]
    taken: list[Node]


def split(tree: Branch, blocks: list[Block], view: View) -> Split:
    """What becomes of a sum whose blocks are known.

    Raises:
        Refused: what is left over cannot be added as it is.
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
    return Split(used, kept, taken)


def numbers(leaf: Branch, goal: Form, scale: Array) -> tuple[Array, Array]:
    """What a leaf adds to its block: its kernel and its bias, times a number for each output channel."""
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
