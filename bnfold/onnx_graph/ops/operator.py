"""The record of an operator: all that is known of it, in one place.

The files of the families (linear, elementwise, ...) hold the functions and the records of their operators;
`table.OPERATORS` joins them. To add an operator is to add a record to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, TypeAlias

from bnfold.fold.graph import Dim, Node, Role
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.site import Site

__all__ = ["BoundsRule", "Evaluate", "Half", "Inputs", "Operator", "Shape"]

Shape: TypeAlias = "tuple[Dim, ...]"
Inputs: TypeAlias = Sequence[Any]  # one array for each input; None where it is left out or unseen
# from the bounds of the inputs to those of the first output, or of all
BoundsRule: TypeAlias = "Callable[[Node, list[Bounds]], Bounds | list[Bounds]]"


Evaluate: TypeAlias = Callable[[Site, Inputs], Any]


class Half(Flag):
    """What an operator does that matters in half precision."""

    PASSES = auto()  # changes no number: between nodes that stay float32 it stays as well
    EXACT = auto()  # gives half numbers of half numbers, without rounding: it picks, moves or compares them
    SUMS = auto()  # adds up numbers inside
    SQUARES = auto()  # adds up squares inside
    SINGULAR = auto()  # divides or takes roots: a small number in its input may keep it from zero
    COUNTS = auto()  # arithmetic of sizes and indices, where it ends in a Cast to integers
    WEIGHTS = auto()  # its small weights are judged with what they are added to (fold/rescale/headroom.py)
    MOVES = PASSES | EXACT


NOTHING = Half(0)


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of one operator. What is left out is not known, or does not apply.

    role: what it is to the solver. It refuses by `facts.Refused`, in words that follow the node's name.
    closed: why it has no role, where "is not linear" would not be the reason.
    data: the input slot whose type decides whether it works on floating point data.
    shape: that of its first output, whose type is that of its first input; None where it is not certain.
    keeps: what is sure of that shape where not all of it is: it fills in sizes that nobody states.
    ranks: fills in what its weights tell of the shapes around it, where onnx's own inference tells nothing.
    evaluate: its value where all inputs are constant, by the specification, in numpy.
    several: that is a list, one for each output.
    result_type: the type of that value, where its shape is that of the first input, whatever the numbers are:
        then it is computed only when it is needed.
    unseen: inputs of which only the shape or the type is used. They need not be constant, and do not change.
    bounds: what it makes of intervals, where its role does not say it.
    half: what it does that matters in half precision.
    float32: why it stays float32 there, if it does.
    changed: the opset from which on the same node means something else, if its schema does not show it.
    moved: an attribute of integers that became the second input, and the opset from which on.
    """

    role: Callable[[Site], Role] | None = None
    closed: str = ""
    data: int = 0
    shape: Callable[[Site], Shape | None] | None = None
    keeps: Callable[[Site], Shape | None] | None = None
    ranks: Callable[[Site], None] | None = None
    evaluate: Evaluate | None = None
    several: bool = False
    result_type: Callable[[Site], str] | None = None
    unseen: tuple[int, ...] = ()
    bounds: BoundsRule | None = None
    half: Half = NOTHING
    float32: str | Callable[[Site], str] = ""
    changed: int = 0
    moved: tuple[str, int] | None = None
