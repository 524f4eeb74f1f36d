"""Two linear nodes in a row become one where that has fewer multiplications; see plan.py for the cases."""

from __future__ import annotations

from functools import partial

import numpy as np

from bnfold.fold.absorb.store import as_float
from bnfold.fold.edits import Edit, Resum
from bnfold.fold.graph import Dim, Graph, Node, Refused
from bnfold.fold.merge.kernels import Form, bias_of, chain_forms, chain_kernels, kernel_of
from bnfold.fold.merge.view import Found, View, edits_of, positions
from bnfold.fold.roles import Affine, Linear, Move

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
            found.append(_row(one, two, forms[0], forms[1], view))
        except Refused as reason:
            view.apart[one.name, two.name] = str(reason)
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
    view.used.update((one, two))
    return Found(two, (one,), (two,), before, after, partial(_write, one, two, first, second, form))


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
