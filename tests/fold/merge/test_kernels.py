"""Sums and rows of kernels, against convolutions written out: an output is a sum over its taps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.fold.graph import Array, Refused
from bnfold.fold.merge.kernels import Form, add_forms, chain_forms, chain_kernels, diagonal, moved_to
from bnfold.fold.windows import Axis, Windows, axes_of, count, stated, with_valid_pads


def convolved(x: Array, form: Form, kernel: Array) -> Array:
    """x: (channels, *sizes). Nothing but the definition."""
    sizes = x.shape[1:]
    counts = [count(axis, size) for axis, size in zip(form.axes, sizes, strict=True)]
    y = np.zeros((form.outputs, *counts))
    groups, outputs, inputs, *taps = kernel.shape
    for place in itertools.product(*map(range, counts)):
        for tap in itertools.product(*map(range, taps)):
            at = [i * a.stride + a.first + j * a.step for i, j, a in zip(place, tap, form.axes, strict=True)]
            if all(0 <= i < size for i, size in zip(at, sizes, strict=True)):
                seen = x[(slice(None), *at)].reshape(groups, inputs)
                part = np.einsum("goi,gi->go", kernel[(slice(None),) * 3 + tap], seen)
                y[(slice(None), *place)] += part.reshape(groups * outputs)
    return y


@st.composite
def axes(draw: st.DrawFn, stride: int | None = None, same: bool = False) -> Axis:
    """An axis of pads that are at most what the kernel reaches over. same: as many outputs as inputs."""
    taps, step = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    reach = (taps - 1) * step
    head = draw(st.integers(0, reach))
    tail = reach - head if same else draw(st.integers(0, reach))
    chosen = draw(st.integers(1, 3)) if stride is None else stride
    (axis,) = axes_of(Windows((chosen,), (step,), (head,), (tail,)), (taps,))
    return axis


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_sum(data: st.DataObject) -> None:
    stride, size = data.draw(st.integers(1, 3)), data.draw(st.integers(10, 14))
    pair = [data.draw(axes(stride)) for _ in range(2)]
    groups = [data.draw(st.sampled_from([1, 2, 3, 6])) for _ in range(2)]
    a, b = (Form(g, 6, 6, (axis,)) for g, axis in zip(groups, pair, strict=True))
    known = data.draw(st.booleans())
    rng = np.random.default_rng(0)
    x, (u, v) = rng.normal(size=(6, size)), (rng.normal(size=form.shape) for form in (a, b))
    outputs = convolved(x, a, u), convolved(x, b, v)
    try:
        form = add_forms(a, b, [size if known else None])
    except Refused:
        assert pair[0].end != pair[1].end
        assert not known or outputs[0].shape != outputs[1].shape
        return
    assert form.groups == np.gcd(*groups)
    (axis,) = form.axes
    assert axis.taps <= max(p.last for p in pair) - min(p.first for p in pair) + 1
    found = convolved(x, form, moved_to(a, u, form) + moved_to(b, v, form))
    assert np.allclose(found, outputs[0] + outputs[1], rtol=0, atol=1e-12)
    (again,) = axes_of(stated(form.axes), (axis.taps,))
    assert again == axis


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_row(data: st.DataObject) -> None:
    size = data.draw(st.integers(20, 24))
    pair = [data.draw(axes()) for _ in range(2)]
    groups = [data.draw(st.sampled_from([1, 2, 4])) for _ in range(2)]
    one, two = Form(groups[0], 8, 4, (pair[0],)), Form(groups[1], 4, 8, (pair[1],))
    rng = np.random.default_rng(0)
    x, (u, v) = rng.normal(size=(4, size)), (rng.normal(size=form.shape) for form in (one, two))
    between = convolved(x, one, u)
    if pair[1].last - pair[1].first >= between.shape[1] + pair[1].head + pair[1].tail:
        return  # too small for the second one
    try:
        form = chain_forms(one, two)
    except Refused:
        assert pair[1].padded
        assert pair[0].taps > 1 or pair[0].padded
        return
    found = convolved(x, form, chain_kernels((one, u), (two, v), form))
    assert np.allclose(found, convolved(between, two, v), rtol=0, atol=1e-12)


def test_the_identity() -> None:
    form = Form(2, 4, 4, (Axis(1, -1, 1, 3, 0), Axis(1, -2, 2, 3, 0)))
    kernel = moved_to(diagonal(4, 2), np.ones((4, 1, 1, 1, 1)), form)
    x = np.random.default_rng(0).normal(size=(4, 5, 6))
    assert np.array_equal(convolved(x, form, kernel), x)
    assert kernel.sum() == 4
    assert form.cost == 4 * 2 * 9


@pytest.mark.parametrize(
    ("axis", "size", "symmetric", "pads"),
    [
        (Axis(1, -1, 1, 3, 0), None, True, (1, 1)),
        (Axis(1, 0, 1, 2, 0), None, False, (0, 1)),
        (Axis(1, 0, 1, 2, 0), None, True, None),  # one more behind
        (Axis(2, 0, 1, 2, 0), 8, True, (0, 0)),  # what is behind is never seen
        (Axis(2, 0, 1, 2, 0), 9, True, None),
        (Axis(2, 0, 1, 2, 0), None, True, None),  # it depends
        (Axis(1, 1, 1, 1, -1), None, False, None),  # a pad of -1
    ],
)
def test_pads(axis: Axis, size: int | None, symmetric: bool, pads: tuple[int, int] | None) -> None:
    try:
        found = with_valid_pads(axis, size, symmetric)
    except Refused:
        assert pads is None
        return
    assert (found.head, found.tail) == pads
    assert (found.first, found.taps) == (axis.first, axis.taps)
    assert size is None or count(found, size) == count(axis, size)
