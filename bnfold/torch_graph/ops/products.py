"""Rows for matrix products: by a parameter, which is a linear layer without a module, or of two tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from bnfold.fold import role_builders as products
from bnfold.fold.graph import Role
from bnfold.fold.roles import Linear
from bnfold.fold.windows import PRODUCT
from bnfold.torch_graph.call import Call, Refused

__all__ = ["PRODUCTS"]

# what leaves the rows of a matrix as they are
_SAME = ("clone", "contiguous", "detach", "dropout", "_to_copy")


def _matmul(call: Call) -> Role:
    left, right = call.names[:2]
    slot = 1 if call.constant(right) is not None else 0
    weight = call.constant(call.names[slot])
    if weight is None:
        shapes = call.tensor(left), call.tensor(right)
        if min(map(len, shapes)) < 2:
            raise Refused("multiplies by a vector")
        return products.of_tensors(shapes, call.out, _rows_sum_to_one(call[left]))
    if len(weight.shape) < 2:
        raise Refused("its weight is a vector")
    shape = call.tensor(call.names[1 - slot])
    plain = slot == 1 and len(weight.shape) == len(shape) == 2  # it becomes addmm
    return products.by_weight(weight, slot, shape, len(call.out), costs=0 if plain else 1)


def _addmm(call: Call) -> Role:
    """`beta * bias + alpha * x @ weight`."""
    weight, bias = call.constant("mat2"), call.constant("self")
    if weight is None:
        raise Refused("its weight is computed at run time")
    if call["beta"] == 0 or bias is None or bias.shape != weight.shape[1:]:
        raise Refused("its bias is not one constant for each output")
    return Linear(
        weight=weight,
        weight_slot=call.slot("mat2"),
        x=call.slot("mat1"),
        in_axis=1,
        out_axis=1,
        split=weight.shape,
        w_group=None,
        w_out=1,
        w_in=0,
        free=((0, 0),),
        alpha=float(call["alpha"]),
        beta=float(call["beta"]),
        bias=bias,
        bias_slot=call.slot("self"),
        windows=PRODUCT,
    )


def _rows_sum_to_one(source: fx.Node) -> bool:
    """It is a softmax along the last axis, handed on as it is."""
    while isinstance(source, fx.Node) and source.op == "call_function":
        op = str(source.target).split(".")[-2:-1]
        if op in (["softmax"], ["_softmax"]):
            return source.args[1] in (-1, source.meta["val"].dim() - 1)
        if op not in [[same] for same in _SAME] or (op == ["dropout"] and source.args[2]):
            return False
        source = source.args[0]  # type: ignore[assignment]
    return False


PRODUCTS: dict[str, Callable[[Call], Role]] = {
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "addmm": _addmm,
}
