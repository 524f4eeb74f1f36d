"""What the rows of the table of operators ask of a node. A fact that is not known refuses, with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.errors import ModelError
from bnfold.fold.graph import Array, Constant, Dim, Refused
from bnfold.onnx_graph.model.site import Site

__all__ = [
    "EPSILON",
    "LARGEST",
    "Refused",
    "axes_of",
    "axis_of",
    "broken",
    "broadcast",
    "fits",
    "integers",
    "number",
    "out_shape_of",
    "rank_of",
    "shape_of",
    "text",
    "wide",
]

EPSILON = float(np.float32(1e-5))  # where a norm does not state it: attributes are float32
LARGEST = 1 << 20  # elements of a constant that is not a weight, and still gets a new value


def broken(site: Site, what: str) -> ModelError:
    """The error for a node that cannot run."""
    name = f"node {site.name!r}" if site.name else "a node without a name"
    return ModelError(f"{name} ({site.op}): {what}; the model is damaged: export it again")


def shape_of(site: Site, slot: int) -> tuple[Dim, ...]:
    """The shape of a data input. A constant there becomes a tensor, and takes a change by being rewritten."""
    site.operand(slot)
    shape = site.shape(slot)
    if shape is None:
        raise Refused("the rank of its input is not known")
    return tuple(shape)


def out_shape_of(site: Site, index: int = 0) -> tuple[Dim, ...]:
    """The shape of an output."""
    shape = site.out_shape(index)
    if shape is None:
        raise Refused("the rank of its output is not known")
    return tuple(shape)


def rank_of(site: Site, slot: int) -> int:
    """The rank of a data input."""
    return len(shape_of(site, slot))


def axis_of(value: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= value < rank:
        raise Refused(f"its axis {value} is outside a tensor of rank {rank}")
    return value % rank


def integers(site: Site, name: str, slot: int | None = None) -> tuple[int, ...] | None:
    """A list of integers that is an input (in newer opsets) or an attribute; None if it is left out."""
    if slot is not None and site.has(slot):
        value = site.value(slot)
        if value is None:
            raise Refused(f"its {name} are not constant")
        return tuple(map(int, value.reshape(-1)))
    entries = site.attr(name, None)
    if entries is None:
        return None
    return tuple(map(int, entries)) if isinstance(entries, (list, tuple)) else (int(entries),)


def axes_of(site: Site, rank: int, slot: int | None = None) -> tuple[int, ...] | None:
    """The `axes` of a node, from the front and in order; None if they are left out."""
    axes = integers(site, "axes", slot)
    return None if axes is None else tuple(sorted({axis_of(axis, rank) for axis in axes}))


def number(site: Site, name: str, slot: int | None, default: float) -> float:
    """A number that is an input (in newer opsets) or an attribute."""
    if slot is not None and site.has(slot):
        value = site.value(slot)
        if value is None:
            raise Refused(f"its {name} is not constant")
        return float(value.reshape(-1)[0]) if value.size else default
    return float(site.attr(name, default))


def text(site: Site, name: str, default: str) -> str:
    """An attribute that is a word."""
    value: Any = site.attr(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def fits(small: tuple[Dim, ...], large: tuple[Dim, ...]) -> bool:
    """Whether an operand of shape `small` surely broadcasts against `large` without making it larger."""
    extra = len(large) - len(small)
    return extra >= 0 and all(
        a == 1 or (isinstance(a, int) and a == b) for a, b in zip(small, large[extra:], strict=True)
    )


def wide(array: Array, rank: int) -> Array:
    """In float64, with axes of size 1 in front up to this rank."""
    array = np.asarray(array, np.float64)
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def broadcast(site: Site, constant: Constant, slot: int, shape: tuple[Dim, ...]) -> Array:
    """The constant at `slot` against a tensor of this shape: float64, of its rank."""
    if not fits(constant.shape, shape):
        raise Refused(f"its constant of shape {list(constant.shape)} makes the tensor larger")
    value = site.value(slot)
    if value is None:
        raise Refused("its constant can be overridden by the caller")
    if value.size > LARGEST:
        raise Refused(f"its constant has more than {LARGEST} elements")
    return wide(value, len(shape))
