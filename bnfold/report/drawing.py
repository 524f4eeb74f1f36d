"""What a picture of a fold is made of: outlines of the model before and after, and the way of each fold."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Drawn", "Outline", "OutlineNode", "Route", "Way"]


class OutlineNode(NamedTuple):
    """An operator without its numbers. name: as reports give it. inputs, outputs: names of tensors."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Outline(NamedTuple):
    """A model as a picture needs it: nodes in the order of the file, and what comes in and goes out.

    inputs: those of bodies and functions, too. A tensor that neither is one nor is made by a node is stored.
    """

    inputs: tuple[str, ...]
    nodes: tuple[OutlineNode, ...]
    outputs: tuple[str, ...]

    def outline(self) -> Outline:
        """Itself, as `Drawn` wants it."""
        return self


class Drawn(Protocol):
    """What an outline can be made of, when somebody wants to see it."""

    def outline(self) -> Outline: ...


class Way(NamedTuple):
    """Where a scale, or a shift, went. side: "back" or "forward". tensors: those that carry it, by name.

    into: the nodes that took it in, by name; none, where there was nothing to take in.
    """

    side: str
    tensors: tuple[str, ...]
    into: tuple[str, ...]


class Route(NamedTuple):
    """The two ways of one folded batch norm."""

    scale: Way
    shift: Way
