"""All that the solver sees of a model: tensors, nodes, and the role each node plays.

Input slots are numbered 0, 1, ...; output slots are -1, -2, ... . Arrays that belong to a tensor have its
rank, and each axis is 1 or the tensor's full static size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = (
    "int | str | None"  # a static size, a named symbol, or unknown (equal to nothing, not even to itself)
)
Moments: TypeAlias = "Array | tuple[Array, Array]"  # two rows
Key: TypeAlias = "int | str"  # where a node keeps a value: an input slot, or an attribute's name


class Refused(Exception):
    """What is asked for cannot be, or it cannot be known whether it can; the text says why.

    cure: what would let it be, or "".
    """

    def __init__(self, reason: str, cure: str = "") -> None:
        super().__init__(reason)
        self.cure = cure


@dataclass(eq=False, slots=True)
class Constant:
    """A value that a node input sees: `load()` gives it in the orientation in which the node uses it.

    `store` identifies what lies in the file; several constants may look at one store. `locked` says why it
    must not be rewritten ("" if it may be). `quantized`: None for a plain constant; for integers behind a
    scale, the axes along which the scale may vary (only a change along one of them can be absorbed). `rigid`:
    what replaces it must have its shape. `view` is the reader's own handle.
    """

    store: str
    load: Callable[[], Array]
    shape: tuple[int, ...]
    dtype: str
    locked: str = ""
    quantized: tuple[int, ...] | None = None
    view: Any = None
    rigid: bool = False

    @property
    def value(self) -> Array:
        return self.load()


@dataclass(eq=False, slots=True)
class Tensor:
    """A value that flows along the graph's edges."""

    name: str
    shape: tuple[Dim, ...] | None = None
    dtype: str = "float32"
    producer: Node | None = None
    slot: int = -1  # the output slot of the producer
    readers: list[tuple[Node, int]] = field(default_factory=list)
    fixed: str = ""  # why it must stay as it is: "graph input", "graph output", ...
    constant: Constant | None = (
        None  # one use of a constant as a data operand; its only reader may rewrite it
    )
    moments: Moments | None = None  # mean and variance per channel, if a batch norm knows them
    cure: str = ""  # what would let it change, where it is fixed

    @property
    def rank(self) -> int:
        return len(self.shape or ())


@dataclass(eq=False, slots=True)
class Node:
    """An operator. `name` and `op` are for people; only `role` matters to the solver."""

    name: str
    op: str
    role: Role
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    source: Any = None  # the reader's own handle

    def at(self, slot: int) -> Tensor:
        tensor = self.inputs[slot] if slot >= 0 else self.outputs[-1 - slot]
        assert tensor is not None
        return tensor


class Role:
    """Base of the classes in `roles.py`. An operator without a better one is `Closed`."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Graph:
    """Nodes in topological order (bodies of If and Loop after the values they capture)."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    end: Callable[[], None] | None = None  # what the reader wants done by `clear`

    def clear(self) -> None:
        """Undo the links, when nobody looks any more: then all goes at once, without a search for cycles."""
        for node in self.nodes:
            node.inputs.clear()
            node.outputs.clear()
        if self.end is not None:
            self.end()
