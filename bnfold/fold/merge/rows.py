"""Two linear nodes in a row become one where that has fewer multiplications; see plan.py for the cases."""

from __future__ import annotations

from functools import partial

import numpy as np

from bnfold.fold.absorb.store import as_float
from bnfold.fold.carry.spread import ODD_SHAPES
from bnfold.fold.edits import Edit, Resum
from bnfold.fold.graph import Dim, Graph, Node, Refused
from bnfold.fold.merge.kernels import Form, bias_of, chain_forms, chain_kernels, kernel_of
from bnfold.fold.merge.noise import TENSOR, Judge, power_of
from bnfold.fold.merge.view import UNSOUND, Found, View, edits_of, positions
from bnfold.fold.roles import Affine, Linear, Move
from bnfold.report.fold import Noise

__all__ = ["find_rows"]


def find_rows(graph: Graph, view: View) -> list[Found]:
    """All pairs of linear nodes that become one, the last ones first."""
    found = []
    for two in reversed(graph.nodes):
        if not isinstance(two.role, Linear) or two in view.used:
            continue
        x = two.inputs[two.role.x]
        if x is None or x.producer is None or not isinstance(x.producer.role, (Linear, Affine, Move)):
            continue  # as most do
        between = view.source(x, alone=True)
        one = None if between is None else view.maker(between, view.scope(two))
        if one is None or one in view.used or not isinstance(one.role, Linear):
            continue
        forms = view.form(one), view.form(two)
        if forms[0] is None or forms[1] is None:
            continue
        try:
            row = _row(one, two, forms[0], forms[1], view)
        except Refused as reason:
            view.keep((one.name, two.name), reason)
            continue
        except UNSOUND:
            view.keep((one.name, two.name), ODD_SHAPES)
            continue
        if view.judge is not None and view.judge.refuses(row.noise):
            view.keep((one.name, two.name), view.judge.reason(row.noise), row.noise)
        else:
            view.used.update((one, two))
            found.append(row)
    return found


def _row(one: Node, two: Node, first: Form, second: Form, view: View) -> Found:
    """The merge of two nodes.

    Raises:
        Refused: there is no such map, or it would not pay.
    """
    a, b = one.role, two.role
    assert isinstance(a, Linear)
    assert isinstance(b, Linear)
    if len({a.in_axis, a.out_axis, b.in_axis, b.out_axis}) > 1 or a.weight.dtype != b.weight.dtype:
        raise Refused("have their channels along different axes, or different types")
    if len(first.axes) != len(second.axes):
        raise Refused("are of different kinds")
    x, between, y = one.at(a.x), one.outputs[0], two.outputs[0]
    sizes: tuple[Dim, ...] = (x.shape or ())[x.rank - len(first.axes) :]
    form = chain_forms(first, second).with_valid_pads(sizes, view.symmetric)
    padded = any(axis.padded for axis in second.axes)
    if padded and a.bias is not None and as_float(a.bias).any():
        raise Refused("have zero padding between them, and the first one has a bias, which is not there")
    if a.costs and not b.costs and b.bias is not None:
        raise Refused("would not be fewer nodes")
    for i, axis in enumerate(second.axes, x.rank - len(sizes)):
        known = [isinstance(tensor.shape[i], int) for tensor in (between, y) if tensor.shape is not None]
        if known != [True, True] and (any(known) or axis.end > 0):
            raise Refused("may have more multiplications as one node: a size is not known")
    inner, outer = positions(between, a.out_axis), positions(y, b.out_axis)
    before, after = first.cost * inner + second.cost * outer, form.cost * outer
    if after >= before or form.cost > first.cost + second.cost:
        raise Refused(
            f"would have more multiplications or weights as one node: {after:,} and {form.cost:,}, and apart "
            f"{before:,} and {first.cost + second.cost:,}"
        )
    noise = None if view.judge is None else _noise(one, two, first, second, form, view.judge)
    return Found(two, (one,), (two,), before, after, partial(_write, one, two, first, second, form), noise)


def _noise(one: Node, two: Node, first: Form, second: Form, form: Form, judge: Judge) -> Noise | None:
    """What rounding adds; see noise.py."""
    a, b = one.role, two.role
    assert isinstance(a, Linear)
    assert isinstance(b, Linear)
    inner, outer = kernel_of(a), kernel_of(b)
    whole = chain_kernels((first, inner), (second, outer), form)
    size = max(float(power_of(whole).sum()), 1e-30)
    rounding, power = judge.rounding, power_of(inner)
    between = rounding.of_weights(inner) + TENSOR * power.mean()  # a linear node reads it: it is rounded
    answer = (outer**2).reshape(*outer.shape[:3], -1).sum(3)
    passed = np.einsum("goi,gi->", answer, between.reshape(answer.shape[0], -1))
    apart = float(passed + rounding.of_weights(outer, power).sum())
    merged = float(rounding.of_weights(whole).sum())
    return judge.noise(two.outputs[0].name, apart / size + TENSOR, merged / size + TENSOR)


def _write(one: Node, two: Node, first: Form, second: Form, form: Form) -> list[Edit]:
    """The edits, with all numbers computed in float64."""
    a, b = one.role, two.role
    assert isinstance(a, Linear)
    assert isinstance(b, Linear)
    kernel = kernel_of(b)
    whole = chain_kernels((first, kernel_of(a)), (second, kernel), form)
    inner = bias_of(a, first.outputs)
    answer = kernel.reshape(*kernel.shape[:3], -1).sum(3)  # to a constant field
    groups, _, inputs = answer.shape
    passed = np.einsum("goi,gi->go", answer, inner.reshape(groups, inputs)).reshape(-1)
    bias = bias_of(b, second.outputs) + passed
    return [Resum(two, ((one, -1),)), *edits_of(one, form, whole, bias)]
