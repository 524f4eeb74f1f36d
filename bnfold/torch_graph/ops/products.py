"""Rows for matrix products: by a parameter, which is a linear layer without a module, or of two tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from bnfold.fold import role_builders as builders
from bnfold.fold.einsums import einsum
from bnfold.fold.graph import Refused, Role
from bnfold.fold.roles import Map
from bnfold.torch_graph.call import Call, op_of, shape_of

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
        return builders.of_tensors(shapes, call.out, _rows_sum_to_one(call[left]))
    if len(weight.shape) < 2:
        raise Refused("its weight is a vector")
    shape = call.tensor(call.names[1 - slot])
    plain = slot == 1 and len(weight.shape) == len(shape) == 2  # it becomes addmm
    return builders.by_weight(weight, slot, shape, len(call.out), costs=0 if plain else 1)


def _addmm(call: Call) -> Role:
    """`beta * bias + alpha * x @ weight`."""
    weight, bias = call.weight("mat2"), call.constant("self")
    if call["beta"] == 0 or bias is None or bias.shape != weight.shape[1:]:
        raise Refused("its bias is not one constant for each output")
    slot, x = call.slot("mat2"), call.slot("mat1")
    role = builders.by_matrix(weight, slot, x, 1, 1, 0, ((0, 0),))
    role.alpha, role.beta = float(call["alpha"]), float(call["beta"])
    return builders.with_bias(role, call.slot("self"), bias)


def _einsum(call: Call) -> Role:
    shapes = [node.meta["val"] for node in call["tensors"]]
    known = [shape_of(value) or () for value in shapes]
    return einsum(str(call["equation"]), known, call.out)


def _attention(call: Call) -> Role:
    """Each row of the output is a mean of rows of the value, with weights that sum to one."""
    shape, out = call.tensor("value"), call.out
    if call["dropout_p"]:
        raise Refused("drops entries (training mode)")
    if len(shape) != len(out):
        raise Refused("its value is of another rank than its output")
    place = len(out) - 2
    other = (
        axis for axis, size in enumerate(shape) if axis != place and not builders.is_kept(size, out[axis])
    )
    masked = "may mask a whole row, which is zero then" if call["attn_mask"] is not None else ""
    return Map("any", masked, tuple(sorted((*other, place))), x=call.slot("value"))


def _rows_sum_to_one(source: fx.Node) -> bool:
    """It is a softmax along the last axis, handed on as it is."""
    while isinstance(source, fx.Node) and source.op == "call_function":
        op = op_of(source)
        if op in ("softmax", "_softmax"):
            return source.args[1] in (-1, source.meta["val"].dim() - 1)
        if op not in _SAME or (op == "dropout" and source.args[2]):
            return False
        source = source.args[0]  # type: ignore[assignment]
    return False


PRODUCTS: dict[str, Callable[[Call], Role]] = {
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "addmm": _addmm,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
