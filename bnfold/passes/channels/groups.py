"""Which channels can only leave together, and which must stay.

A tensor has at most one axis of channels, from the layer that makes it on. A channel is a place on that axis
and belongs to a set (`Classes`). What rearranges data rearranges the numbers of the sets; what joins tensors
unites them. A linear layer ends sets and begins new ones: whether it can do without an input channel depends
on its weights and on what is proven of the channel, and is decided later (`choose.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from bnfold.fold.graph import Array, Constant, Node, Tensor
from bnfold.passes.channels.classes import Classes, Reason
from bnfold.passes.channels.stored import why_not

__all__ = ["Channels", "Groups", "Rule"]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor: their axis, and the set of each."""

    axis: int
    sets: Array


class Groups:
    """What was found: the channels of each tensor that has some, and the linear layers that read them."""

    def __init__(self) -> None:
        self.classes = Classes()
        self.channels: dict[Tensor, Channels] = {}
        self.readers: list[Node] = []  # linear, with all inputs in one group

    def of(self, tensor: Tensor | None) -> Channels | None:
        return None if tensor is None else self.channels.get(tensor)

    def keep(self, tensor: Tensor | None, node: Node, text: str) -> None:
        """No channel of the tensor may leave."""
        found = self.of(tensor)
        if found is not None:
            self.classes.lock(found.sets.tolist(), Reason(text, node.name))

    def give(self, node: Node, slot: int, axis: int, sets: Array) -> None:
        """Output `slot` has these channels."""
        y = node.outputs[slot]
        size = y.shape[axis] if y.shape is not None and axis < len(y.shape) else None
        if size != len(sets):
            self.classes.lock(sets.tolist(), Reason("the sizes behind it are not known", node.name))
            return
        self.channels[y] = Channels(axis, sets)
        if y.fixed:
            self.classes.lock(sets.tolist(), Reason(f"is a {y.fixed}", y.name))

    def needs(self, node: Node, sets: Array, constants: list[Constant | None]) -> None:
        """The channels can leave only if these stored values can be cut."""
        for constant in constants:
            reason = "" if constant is None else why_not(constant)
            if reason:
                self.classes.lock(sets.tolist(), Reason(reason, node.name))

    def keep_all(self, node: Node, text: str) -> None:
        """No channel of what the node reads may leave."""
        for tensor in node.inputs:
            self.keep(tensor, node, text)


Rule: TypeAlias = "Callable[[Groups, Node], None]"  # notes what a node does with the channels around it
