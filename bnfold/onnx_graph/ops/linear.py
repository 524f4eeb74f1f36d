"""Rows for the operators with weights (Conv, Gemm, MatMul, LSTM, ...), and for products of two tensors."""

from __future__ import annotations

from collections.abc import Callable

from bnfold.fold import role_builders as builders
from bnfold.fold.graph import Constant, Dim, Role
from bnfold.fold.roles import Contract, Linear, Recurrent
from bnfold.onnx_graph.model.site import Site
from bnfold.onnx_graph.ops.facts import (
    Refused,
    axis_of,
    broken,
    out_shape_of,
    rank_of,
    shape_of,
    text,
)
from bnfold.onnx_graph.ops.windows import windows

__all__ = ["LINEAR"]

_OPEN = "its bias is not constant"


def _weight(site: Site, slot: int) -> Constant:
    weight = site.constant(slot)
    if weight is None:
        raise Refused(f"its weight is not constant: it {site.why_not_constant(slot)}")
    return weight


def _with_bias(role: Linear, site: Site, slot: int) -> Linear:
    """The role, told of the bias at this slot: a constant, left out, or computed at run time."""
    if not site.has(slot):
        return role
    bias = site.constant(slot)
    why = "" if bias is not None else f"{_OPEN}: it {site.why_not_constant(slot)}"
    return builders.with_bias(role, slot, bias, why)


def _channels(site: Site, shape: tuple[Dim, ...], weight: Constant, wanted: int) -> None:
    if isinstance(shape[1], int) and shape[1] != wanted:
        what = f"its weight of shape {list(weight.shape)} needs {wanted} input channels"
        raise broken(site, f"{what}, and its input has {shape[1]}")


def _layout(site: Site) -> tuple[Constant, int, tuple[Dim, ...]]:
    """The weight, the number of groups and the shape of the input."""
    weight, shape, groups = _weight(site, 1), shape_of(site, 0), int(site.attr("group", 1))
    if len(weight.shape) != len(shape) or len(shape) < 3:
        raise broken(site, f"its weight has shape {list(weight.shape)}, and its input rank {len(shape)}")
    transposed = site.op == "ConvTranspose"
    if groups < 1 or weight.shape[0] % groups:
        raise broken(site, f"its weight of shape {list(weight.shape)} cannot be split into {groups} groups")
    _channels(site, shape, weight, weight.shape[0] if transposed else weight.shape[1] * groups)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    bias = site.constant(2)
    if bias is not None and bias.shape != (outputs,):
        raise broken(site, f"its bias has shape {list(bias.shape)}, and its weight {outputs} output channels")
    return weight, groups, shape


def _conv(site: Site) -> Role:
    weight, groups, shape = _layout(site)
    grid = windows(site, weight.shape[2:], shape[2:])
    return _with_bias(builders.convolution(weight, groups, not grid.padded, grid.stated), site, 2)


def _conv_transpose(site: Site) -> Role:
    weight, groups, shape = _layout(site)
    beyond = any(any(site.attr(name, None) or ()) for name in ("output_padding", "output_shape"))
    grid = windows(site, weight.shape[2:], shape[2:])
    even = not beyond and not grid.padded and all(w.taps == 1 and w.stride == 1 for w in grid.windows)
    return _with_bias(builders.convolution(weight, groups, even, transposed=True), site, 2)


def _gemm(site: Site) -> Role:
    flips = bool(site.attr("transA", 0)), bool(site.attr("transB", 0))
    slot = 1 if site.constant(1) is not None else 0
    x = 1 - slot
    weight = _weight(site, slot)
    if rank_of(site, x) != 2 or len(weight.shape) != 2 or len(out_shape_of(site)) != 2:
        raise broken(site, "its operands are not matrices")
    # the axis of each operand over which the product sums, before any transposition
    inner = (0 if flips[0] else 1, 1 if flips[1] else 0)
    size = shape_of(site, x)[inner[x]]
    if isinstance(size, int) and size != weight.shape[inner[slot]]:
        raise broken(
            site, f"its weight of shape {list(weight.shape)} does not match an input of {size} features"
        )
    beta = float(site.attr("beta", 1.0))
    free = ((1 - inner[x], x),)
    role = builders.by_matrix(weight, slot, x, inner[x], 1 - x, inner[slot], free)
    role.alpha, role.beta = float(site.attr("alpha", 1.0)), beta if site.has(2) and beta != 0 else 1.0
    role.bias_slot = 2
    if beta != 0:  # else C is not even looked at
        role = _with_bias(role, site, 2)
    if role.bias is not None and x == 1 and len(role.bias.shape) < 2:
        # it runs along the rows of y, and the outputs along its columns
        role.bias, role.bias_open, role.bias_blocks_scale = None, "its bias runs along the other axis", True
    return role


def _matmul(site: Site) -> Role:
    slot = 1 if site.constant(1) is not None else 0
    weight = site.constant(slot)
    if weight is None:
        return _product(site)
    x = 1 - slot
    shape, rank = shape_of(site, x), len(out_shape_of(site))
    outer = len(weight.shape)
    if outer < 2:
        raise Refused("its weight is a vector")
    if len(shape) == 0:
        raise Refused("its input is a single number")
    size, wanted = shape[builders.summed_axis(shape, x)], weight.shape[-2 if slot == 1 else -1]
    if isinstance(size, int) and size != wanted:
        raise broken(
            site, f"its weight of shape {list(weight.shape)} does not match an input of shape {list(shape)}"
        )
    plain = slot == 1 and outer == 2 and len(shape) == 2  # it becomes a Gemm
    return builders.by_weight(weight, slot, shape, rank, costs=0 if plain else 1)


def _product(site: Site) -> Role:
    """MatMul of two tensors."""
    shapes = shape_of(site, 0), shape_of(site, 1)
    y = out_shape_of(site)
    if min(len(shape) for shape in shapes) < 2:
        raise Refused("multiplies by a vector")
    return builders.of_tensors(shapes, y, _rows_sum_to_one(site, len(shapes[0])))


def _rows_sum_to_one(site: Site, rank: int) -> bool:
    producer = site.producer(0)
    if producer is None or producer.op != "Softmax":
        return False
    axis = producer.attr("axis", -1 if producer.opset >= 13 else 1)
    return bool(axis_of(int(axis), rank) == rank - 1)


def _einsum(site: Site) -> Role:
    equation = text(site, "equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    simple = (
        arrow
        and "." not in equation
        and len(terms) == 2
        and all(len(set(t)) == len(t) for t in (*terms, right))
    )
    if not simple:
        raise Refused(f"its equation {equation!r} is not a plain product of two tensors")
    y = out_shape_of(site)
    shapes = shape_of(site, 0), shape_of(site, 1)
    if [len(term) for term in terms] != [len(shape) for shape in shapes] or len(right) != len(y):
        raise Refused(f"its equation {equation!r} does not match its operands")
    axes = []
    for term, shape in zip(terms, shapes, strict=True):
        goals: list[int | None] = []
        for label, size in zip(term, shape, strict=True):
            goal = right.find(label)
            goals.append(goal if goal >= 0 and builders.is_kept(size, y[goal]) else None)
        kept = [goal for goal in goals if goal is not None]
        if kept != sorted(kept):
            raise Refused(f"its equation {equation!r} transposes an operand")
        axes.append(tuple(goals))
    return Contract((axes[0], axes[1]))


def _recurrent(site: Site) -> Role:
    weight = _weight(site, 1)
    if rank_of(site, 0) != 3 or len(weight.shape) != 3:
        raise broken(site, "its input and its weight must have three axes")
    bias = site.constant(3) if site.has(3) else None
    if bias is None and site.has(3):
        raise Refused(_OPEN)
    return Recurrent(
        weight, 1, bias, 3
    )  # X is (steps, batch, inputs), or (batch, steps, inputs): the last axis in both


LINEAR: dict[str, Callable[[Site], Role]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "RNN": _recurrent,
}
