"""What a plan asks the writer of a model to do. Arrays are in the type of the value that they replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bnfold.fold.graph import Array, Constant, Key, Node
from bnfold.fold.windows import Windows

Operand: TypeAlias = "tuple[Node, int]"  # what a node reads at a slot, or gives (slots -1, -2, ...)


@dataclass(eq=False, slots=True)
class SetValue:
    """Give the node's input slot or attribute `key` a new value; `old` is what it had before."""

    node: Node
    key: Key
    value: Array
    old: Constant | None = None


@dataclass(eq=False, slots=True)
class Rescale:
    """Multiply a quantized constant by `factor` (of its rank; negative entries negate the integers)."""

    node: Node
    key: Key
    factor: Array
    old: Constant


@dataclass(eq=False, slots=True)
class AddBias:
    """Give a node without bias one: an input, another operator that has one, or an Add behind it."""

    node: Node
    value: Array


@dataclass(eq=False, slots=True)
class Bypass:
    """Remove an affine node: its readers read its input."""

    node: Node


@dataclass(eq=False, slots=True)
class Retype:
    """Replace the operator by the one named in its role (`Map.flip`)."""

    node: Node
    op: str


@dataclass(eq=False, slots=True)
class SetWindows:
    """Give a convolution other windows and groups; its weight is set as well, and fits them."""

    node: Node
    windows: Windows
    taps: tuple[int, ...]
    groups: int


@dataclass(eq=False, slots=True)
class Resum:
    """Let the readers of the node's output read the sum of these instead. What is left unread is removed."""

    node: Node
    operands: tuple[Operand, ...]


Edit: TypeAlias = "SetValue | Rescale | AddBias | Bypass | Retype | SetWindows | Resum"
