"""Ranges that the values of graph inputs keep to, by agreement: for proofs, and for the inputs of checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from bnfold.errors import UsageError
from bnfold.onnx_graph.run.inputs import Array, Input

__all__ = ["Range", "inside", "outside", "ranges_of"]

Range: TypeAlias = "tuple[Array, Array]"  # lowest and highest values: float64, of the input's rank


def ranges_of(inputs: Sequence[Input], given: Mapping[str, tuple[Any, Any]]) -> dict[str, Range]:
    """The ranges by name, checked against the inputs that they are about.

    Args:
        inputs: those of the model.
        given: for an input the lowest and the highest value: numbers, or arrays that broadcast against it.

    Raises:
        UsageError: no such input, or none of floating point numbers; its rank is not known; no such range.
    """
    known = {entry.name: entry for entry in inputs}
    return {name: _range(known, name, *ends) for name, ends in given.items()}


def _range(known: Mapping[str, Input], name: str, low: Any, high: Any) -> Range:
    found = known.get(name)
    if found is None:
        raise UsageError(f"a range was given for {name!r}, but the model's inputs are {sorted(known)}")
    if found.dims is None or not (found.dtype.kind == "f" or found.dtype.name == "bfloat16"):
        raise UsageError(f"the input {name!r} is {found}; a range needs floating point numbers of known rank")
    ends = [np.asarray(end, np.float64) for end in (low, high)]
    if not (ends[0] <= ends[1]).all():  # NaN fails as well
        raise UsageError(f"the range of the input {name!r} is empty: from {low} to {high}")
    rank = len(found.dims)
    for end in ends:
        sizes = found.dims[rank - end.ndim :] if end.ndim <= rank else None
        if sizes is None or any(n not in (1, size) for n, size in zip(end.shape, sizes, strict=True)):
            raise UsageError(f"the range of the input {name!r} has shape {end.shape}; it takes {found}")
    low, high = (end.reshape((1,) * (rank - end.ndim) + end.shape) for end in ends)
    return low, high


def inside(feed: Mapping[str, Array], ranges: Mapping[str, Range]) -> dict[str, Array]:
    """Generated values, brought into their ranges; ends are reached."""
    result = dict(feed)
    for name, (low, high) in ranges.items():
        value = feed[name].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            spread = low + (high - low) * np.clip(value / 4 + 0.5, 0, 1)  # of two standard deviations
        value = np.where(np.isfinite(low) & np.isfinite(high), spread, np.clip(value, low, high))
        result[name] = value.astype(feed[name].dtype)
    return result


def outside(feed: Mapping[str, Array], ranges: Mapping[str, Range]) -> str:
    """What is wrong with values that were given; "" if they keep to their ranges."""
    for name, (low, high) in ranges.items():
        value = feed[name].astype(np.float64)
        near = 1e-6 * max(1.0, float(np.abs(value).max(initial=0)))  # a number rounded to its type
        if not ((value >= low - near) & (value <= high + near)).all():
            found = f"{value.min():.6g} to {value.max():.6g}"
            return f"the values that were given for the input {name!r} leave its range: {found}"
    return ""
