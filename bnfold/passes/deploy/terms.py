"""Per-channel numbers that are known now or at run time, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bnfold.fold.graph import Array
from bnfold.onnx_graph.model.new_nodes import emit
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.site import Site, Value, numpy_dtype

__all__ = ["Computed", "Known", "Read", "Term", "add", "fits", "known", "materialize", "multiply"]

LOST = 2.0**-6  # of the largest number of an array: subnormal ones have but a few bits


@dataclass(frozen=True)
class Known:
    """Numbers in float64, of the shape (1, C, 1, ...)."""

    array: Array


@dataclass(frozen=True)
class Read:
    """A value of the graph, reshaped where `shape` says so, of the shape (1 or N, C, 1, ...)."""

    value: Value
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Computed:
    """An operator of terms, all of the shape (1 or N, C, 1, ...) afterwards."""

    op: str
    operands: tuple[Term, ...]


Term: TypeAlias = "Known | Read | Computed"


def known(array: Array, rank: int) -> Known:
    """One number for each channel, or for all of them."""
    return Known(array.astype(np.float64).reshape((1, -1) + (1,) * (rank - 2)))


def multiply(a: Term, b: Term) -> Term:
    if isinstance(a, Known) and isinstance(b, Known):
        return Known(a.array * b.array)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Known) and (one.array == 1).all():
            return other
        if isinstance(one, Known) and (one.array == 0).all():
            return one
    return Computed("Mul", (a, b))


def add(a: Term, b: Term) -> Term:
    if isinstance(a, Known) and isinstance(b, Known):
        return Known(a.array + b.array)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Known) and (one.array == 0).all():
            return other
    return Computed("Add", (a, b))


def fits(term: Term, dtype: str) -> bool:
    """Whether a term can be computed in that type: values have it, and numbers that are known survive it.

    They do if all are finite, none that is not zero becomes zero, and not all of them are subnormal.
    """
    if isinstance(term, Computed):
        return all(fits(operand, dtype) for operand in term.operands)
    if isinstance(term, Read):
        return term.value.dtype == dtype
    with np.errstate(over="ignore", invalid="ignore"):
        stored = term.array.astype(numpy_dtype(dtype)).astype(np.float64)
        lost = np.abs(stored - term.array)
    if not np.isfinite(stored).all() or ((stored == 0) & (term.array != 0)).any():
        return False
    return bool(lost.max(initial=0) <= LOST * np.abs(term.array).max(initial=0))


def materialize(surgery: Surgery, term: Term, channels: int, dtype: str, stem: str, after: Site) -> Value:
    """The value that a term is: a stored constant with all its channels, or what new nodes give."""
    if isinstance(term, Known):
        shape = (1, channels, *term.array.shape[2:])
        return _constant(surgery, np.broadcast_to(term.array, shape), dtype, stem, after)
    if isinstance(term, Read):
        if term.shape is None:
            return term.value
        target = surgery.constant(f"{stem}_shape", np.array(term.shape, np.int64), after)
        return emit(surgery, "Reshape", [term.value, target], stem, after)
    operands = [
        _constant(surgery, operand.array, dtype, f"{stem}_operand", after)
        if isinstance(operand, Known)
        else materialize(surgery, operand, channels, dtype, stem, after)
        for operand in term.operands
    ]
    return emit(surgery, term.op, operands, stem, after)


def _constant(surgery: Surgery, array: Array, dtype: str, stem: str, after: Site) -> Value:
    return surgery.constant(stem, np.ascontiguousarray(array.astype(numpy_dtype(dtype))), after)
