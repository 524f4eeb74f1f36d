"""Linear maps as kernels: their forms, without numbers, and their numbers, in one layout for all operators.

Numbers have the shape (groups, outputs of a group, inputs of a group, *taps). A matrix product has one group
and no taps; the identity map, and any map that scales each channel by itself, has a group for each channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnfold.fold.absorb.store import as_float
from bnfold.fold.graph import Array, Dim, Refused
from bnfold.fold.roles import Linear
from bnfold.fold.windows import POINT, Axis, added, axes_of, in_a_row, with_valid_pads

__all__ = [
    *("Form", "add_forms", "bias_of", "chain_forms", "chain_kernels", "diagonal", "form_of", "kernel_of"),
    *("moved_to", "per_output", "stored_kernel"),
]


class Form(NamedTuple):
    """A linear map without its numbers."""

    groups: int
    outputs: int  # of all groups
    inputs: int
    axes: tuple[Axis, ...] = ()

    @property
    def cost(self) -> int:
        """Multiplications for one output position, all channels; the number of weights as well."""
        return self.outputs * self.inputs // self.groups * math.prod(axis.taps for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        groups = self.groups
        return groups, self.outputs // groups, self.inputs // groups, *(axis.taps for axis in self.axes)

    def with_valid_pads(self, sizes: Sequence[Dim], symmetric: bool) -> Form:
        """See `windows.with_valid_pads`; `sizes`: of the spatial axes that it reads."""
        pairs = zip(self.axes, sizes, strict=True)
        axes = tuple(with_valid_pads(axis, _known(size), symmetric) for axis, size in pairs)
        return self._replace(axes=axes)


def form_of(role: Linear) -> Form | None:
    """The form of a linear node; None if it is not a plain convolution or a product with one matrix."""
    if role.windows is None or len(role.rest) != len(role.windows.strides):
        return None
    axes = axes_of(role.windows, role.rest)
    return Form(role.groups, role.outputs, role.inputs, axes) if role.outputs and role.inputs else None


def diagonal(channels: int, axes: int) -> Form:
    """A map of each channel by itself: the identity, a scale."""
    return Form(channels, channels, channels, (POINT,) * axes)


def add_forms(a: Form, b: Form, sizes: Sequence[Dim]) -> Form:
    """The form of the sum of two maps of one tensor with these sizes of spatial axes.

    Raises:
        Refused: there is no such map.
    """
    if (a.outputs, a.inputs) != (b.outputs, b.inputs):
        raise Refused("have different numbers of channels")
    rows = zip(a.axes, b.axes, sizes, strict=True)
    axes = tuple(added(one, other, _known(size)) for one, other, size in rows)
    return Form(math.gcd(a.groups, b.groups), a.outputs, a.inputs, axes)


def chain_forms(one: Form, two: Form) -> Form:
    """The form of `two` after `one`.

    Raises:
        Refused: there is no such map.
    """
    if one.outputs != two.inputs:
        raise Refused("have different numbers of channels between them")
    axes = tuple(in_a_row(a, b) for a, b in zip(one.axes, two.axes, strict=True))
    return Form(math.gcd(one.groups, two.groups), two.outputs, one.inputs, axes)


def kernel_of(role: Linear) -> Array:
    """The numbers of a linear node, in float64."""
    values = role.matrices(as_float(role.weight))
    return values if role.alpha == 1 else values * role.alpha


def stored_kernel(role: Linear, kernel: Array) -> Array:
    """Numbers in the layout in which a linear node uses them: the reverse of `kernel_of`."""
    if role.w_group is None:
        matrix: Array = kernel[0] / role.alpha
        return matrix if role.w_out < role.w_in else matrix.T
    groups, outputs, inputs, *taps = kernel.shape  # convolutions have no alpha, and the axes in this order
    weight: Array = kernel.reshape(groups * outputs, inputs, *taps)
    return weight


def bias_of(role: Linear, outputs: int) -> Array:
    """The bias of a linear node, one number for each output channel, in float64."""
    bias = 0.0 if role.bias is None else as_float(role.bias).reshape(-1) * role.beta
    return np.zeros(outputs) + bias


def per_output(role: Linear, outputs: int) -> bool:
    """The bias is one number for each output channel, or one for all."""
    shape = () if role.bias is None else role.bias.shape
    wide = [axis for axis, size in enumerate(shape) if size != 1]
    if not wide:
        return True
    return len(wide) == 1 and shape[wide[0]] == outputs and (len(shape) == 1 or wide[0] == role.out_axis)


def moved_to(form: Form, kernel: Array, goal: Form) -> Array:
    """The same map, its numbers arranged for a form that has its groups and taps among its own."""
    kernel = _regrouped(kernel, goal.groups)
    if kernel.shape == goal.shape:
        return kernel
    result = np.zeros(goal.shape)
    taps = [_taps_in(axis, wide) for axis, wide in zip(form.axes, goal.axes, strict=True)]
    result[(slice(None),) * 3 + tuple(taps)] = kernel
    return result


def chain_kernels(one: tuple[Form, Array], two: tuple[Form, Array], goal: Form) -> Array:
    """The numbers of the second map after the first, in the form that `chain_forms` gives."""
    (first, a), (second, b) = one, two
    a, b = _regrouped(a, goal.groups), _regrouped(b, goal.groups)
    flat = a.reshape(*a.shape[:3], -1)
    result = np.zeros(goal.shape)
    for tap in np.ndindex(*b.shape[3:]):
        part = np.einsum("goc,gcik->goik", b[(slice(None),) * 3 + tap], flat, optimize=True)
        taps = []
        for index, near, far, wide in zip(tap, first.axes, second.axes, goal.axes, strict=True):
            taps.append(_taps_in(near, wide, near.stride * (far.first + index * far.step)))
        result[(slice(None),) * 3 + tuple(taps)] += part.reshape(*part.shape[:3], *a.shape[3:])
    return result


def _taps_in(axis: Axis, wide: Axis, moved: int = 0) -> slice:
    """Which of the taps of a wider axis these are, if all are shifted by `moved`."""
    begin, step = (axis.first + moved - wide.first) // wide.step, max(axis.step // wide.step, 1)
    return slice(begin, begin + (axis.taps - 1) * step + 1, step)


def _regrouped(kernel: Array, groups: int) -> Array:
    """The same map with fewer groups, that divide those it has: blocks of zeros come between."""
    many, outputs, inputs, *taps = kernel.shape
    if many == groups:
        return kernel
    each = many // groups
    result = np.zeros((groups, each, outputs, each, inputs, *taps))
    blocks = kernel.reshape(groups, each, outputs, inputs, *taps)
    for i in range(each):
        result[:, i, :, i] = blocks[:, i]
    return result.reshape(groups, each * outputs, each * inputs, *taps)


def _known(size: Dim) -> int | None:
    return size if isinstance(size, int) else None
