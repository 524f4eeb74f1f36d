"""What the rules of the operators ask of a node. A fact that is not known refuses, with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnfold.errors import ModelError
from bnfold.fold.affine import align
from bnfold.fold.graph import Array, Constant, Refused
from bnfold.fold.moves import Identity
from bnfold.fold.roles import Move
from bnfold.onnx_graph.ops.operator import Shape
from bnfold.onnx_graph.site import HIGHEST_RANK, STATE, Site

EPSILON = float(np.float32(1e-5))  # where a norm does not state it: attributes are float32
COMPUTED = 1 << 28  # bytes of a computed constant
# what a rule for shapes may stumble over in a damaged node
DAMAGE = (IndexError, TypeError, ValueError, ArithmeticError, Refused)
LARGEST = 1 << 20  # elements of a constant that is not a weight, and still gets a new value
UNCHANGED = Move(Identity())  # the role of what changes nothing


def broken(site: Site, what: str) -> ModelError:
    """The error for a node that cannot run."""
    name = f"node {site.name!r}" if site.name else "a node without a name"
    return ModelError(f"{name} ({site.op}): {what}; the model is damaged: export it again")


def shape_of(site: Site, slot: int) -> Shape:
    """The shape of a data input. A constant there becomes a tensor, and takes a change by being rewritten."""
    site.operand(slot)
    shape = site.shape(slot)
    if shape is None:
        raise Refused("the rank of its input is not known", STATE)
    return tuple(shape)


def out_shape_of(site: Site, index: int = 0) -> Shape:
    """The shape of an output."""
    shape = site.out_shape(index)
    if shape is None:
        raise Refused("the rank of its output is not known", STATE)
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


def known_integers(site: Site, name: str, slot: int) -> tuple[int, ...] | None:
    """A list of integers, or None if it is left out or computed at run time."""
    if site.has(slot) and site.value(slot) is None:
        return None
    return integers(site, name, slot)


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


def fits(small: Shape, large: Shape) -> bool:
    """Whether an operand of shape `small` surely broadcasts against `large` without making it larger."""
    extra = len(large) - len(small)
    return extra >= 0 and all(
        a == 1 or (isinstance(a, int) and a == b) for a, b in zip(small, large[extra:], strict=True)
    )


def broadcast(site: Site, constant: Constant, slot: int, shape: Shape) -> Array:
    """The constant at `slot` against a tensor of this shape: float64, of its rank."""
    if not fits(constant.shape, shape):
        raise Refused(f"its constant of shape {list(constant.shape)} makes the tensor larger")
    value = site.value(slot)
    if value is None:
        raise Refused("its constant can be overridden by the caller", site.cure(slot))
    if value.size > LARGEST:
        raise Refused(f"its constant has more than {LARGEST} elements")
    return align(np.asarray(value, np.float64), len(shape))


def shape_by(rule: Callable[[Site], Shape | None], site: Site) -> Shape | None:
    """What a rule of `Operator.shape` says; None for a damaged node."""
    try:
        shape = rule(site)
    except DAMAGE:
        return None
    return None if shape is not None and len(shape) > HIGHEST_RANK else shape


def same_shape(site: Site) -> Shape | None:
    """The shape of the first input: a rule of `Operator.shape`."""
    value = site.values[0]
    assert value is not None
    return value.shape


def broadcast_shapes(a: Shape, b: Shape) -> Shape:
    """The shape of two tensors broadcast against each other, as far as it is known."""
    if len(a) < len(b):
        a, b = b, a
    result = list(a)
    for i, size in enumerate(b, len(a) - len(b)):
        other = a[i]
        if other == 1 or (isinstance(size, int) and size > 1):
            result[i] = size
        elif size not in (1, other) and not (isinstance(other, int) and other > 1):
            result[i] = None
    return tuple(result)


def check_size(shape: Sequence[int], itemsize: int) -> None:
    """Refuse to compute a constant that is too large: a few bytes of a model can ask for any size."""
    if min(shape, default=0) < 0 or math.prod(shape) * max(itemsize, 1) > COMPUTED:
        raise ValueError(f"a constant of shape {list(shape)} is too large")


def ints(array: Any) -> list[int]:
    """All entries."""
    return [int(entry) for entry in np.asarray(array).reshape(-1)]
