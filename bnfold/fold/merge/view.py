"""What merging sees of a graph: which nodes may be taken in, what they are as kernels, what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from bnfold.fold.absorb.store import in_type, store
from bnfold.fold.edits import AddBias, Edit, SetValue, SetWindows
from bnfold.fold.graph import Array, Constant, Dim, Node, Tensor
from bnfold.fold.merge.kernels import Form, form_of, per_output, stored_kernel
from bnfold.fold.merge.noise import Judge
from bnfold.fold.moves import Identity
from bnfold.fold.roles import Affine, Linear, Move
from bnfold.fold.windows import stated
from bnfold.report.fold import Apart, Noise

__all__ = ["UNSOUND", "Found", "View", "edits_of", "positions"]

UNSOUND = (IndexError, ValueError, MemoryError)  # a file may declare shapes that no run would give


@dataclass(eq=False)
class Found:
    """One merge that pays, before its numbers are known.

    root: the node whose output the merged ones give. hosts: those that stay. gone: those that vanish.
    before, after: multiplications of one run (a size that is not static counts as 1). write: the edits, or
    `OutOfRange`. noise: what rounding adds, if there is a judge.
    """

    root: Node
    hosts: tuple[Node, ...]
    gone: tuple[Node, ...]
    before: int
    after: int
    write: Callable[[], list[Edit]]
    noise: Noise | None = None


@dataclass
class View:
    """A graph to look for merges in.

    gone: affine nodes that will not be there any more. skip: names of affine nodes to leave alone. scope: the
    graph or body that a node is in: nodes of a body are not merged with those around it.
    symmetric: the framework has one number for the pads on both sides. judge: who weighs what rounding adds;
    None: it does not matter, or weights are about to change.
    """

    gone: Collection[Node] = ()
    skip: Collection[str] = ()
    scope: Callable[[Node], object] = lambda node: None
    symmetric: bool = False
    used: set[Node] = field(default_factory=set)  # by merges that were found
    forms: dict[Node, Form | None] = field(default_factory=dict)
    apart: dict[tuple[str, ...], Apart] = field(default_factory=dict)  # by names of nodes
    judge: Judge | None = None

    def keep(self, names: tuple[str, ...], reason: object, noise: Noise | None = None) -> None:
        """Note that these nodes stay several, and why."""
        self.apart[names] = Apart(names, str(reason), noise)

    def source(self, tensor: Tensor, alone: bool = False) -> Tensor | None:
        """The tensor that this one is the same as: behind Identity nodes and affine nodes that will be gone.

        alone: None if one on the way is read by others too.
        """
        while True:
            node = tensor.producer
            x = None if node is None else self._same(node, tensor)
            if x is None:
                return tensor
            if alone and (len(tensor.readers) != 1 or tensor.fixed):
                return None
            tensor = x

    def _same(self, node: Node, y: Tensor) -> Tensor | None:
        """The input of a node that gives it on as it is."""
        role = node.role
        if isinstance(role, Move):
            x = node.inputs[role.x] if isinstance(role.move, Identity) else None
            return x if x is not None and (x.dtype, x.shape) == (y.dtype, y.shape) else None
        return node.at(role.x) if node in self.gone and isinstance(role, Affine) else None

    def maker(self, tensor: Tensor, scope: object) -> Node | None:
        """The node that makes a tensor for one reader, and so may vanish with it."""
        node = tensor.producer
        if node is None or len(tensor.readers) != 1 or tensor.fixed or self.scope(node) != scope:
            return None
        return node

    def form(self, node: Node) -> Form | None:
        """What a linear node is, if its numbers are known and may be others."""
        if node not in self.forms:
            self.forms[node] = _form(node)
        return self.forms[node]


def _form(node: Node) -> Form | None:
    role = node.role
    if not isinstance(role, Linear) or role.bias_open or len(node.outputs) != 1:
        return None
    x, y = node.inputs[role.x], node.outputs[0]
    form = form_of(role)
    if form is None or x is None or x.constant is not None or x.shape is None or y.shape is None:
        return None
    if any(_may_not_change(constant) for constant in (role.weight, role.bias) if constant is not None):
        return None
    whole = (
        x.dtype == y.dtype
        and len(x.shape) == len(y.shape) > len(form.axes)
        and per_output(role, form.outputs)
    )
    return form if whole and y.shape[role.out_axis] == form.outputs else None


def _may_not_change(constant: Constant) -> bool:
    return bool(constant.locked) or constant.quantized is not None


def positions(tensor: Tensor, axis: int) -> int:
    """How many positions a tensor has beside its channel axis, as far as sizes are known."""
    sizes: list[Dim] = [size for i, size in enumerate(tensor.shape or ()) if i != axis]
    return math.prod(size for size in sizes if isinstance(size, int))


def edits_of(node: Node, form: Form, kernel: Array, bias: Array) -> list[Edit]:
    """What makes a linear node another one, of this form, with these numbers in its own type.

    Raises:
        OutOfRange: a number does not fit the type.
    """
    role = node.role
    assert isinstance(role, Linear)
    edits: list[Edit] = [
        SetValue(node, role.weight_slot, in_type(node, stored_kernel(role, kernel), role.weight), role.weight)
    ]
    if form.axes:
        taps = tuple(axis.taps for axis in form.axes)
        edits.append(SetWindows(node, stated(form.axes), taps, form.groups))
    y = node.outputs[0]
    upright = role.w_group is None and role.out_axis < y.rank - 1  # a bias along rows: (M, 1)
    shape = (-1,) + (1,) * (y.rank - 1 - role.out_axis) if upright else (-1,)
    if role.bias is not None:
        assert role.bias_slot is not None
        wide = shape if upright or len(role.bias.shape) < 2 else (1, -1)
        edits.append(store(node, role.bias_slot, (bias / role.beta).reshape(wide), role.bias))
    elif bias.any() or role.bias_unread:
        edits.append(AddBias(node, in_type(node, bias.reshape(shape), None, role.weight.value.dtype)))
    return edits
