"""The operators with weights (Conv, Gemm, MatMul, LSTM, ...), and products of two tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold import role_builders as builders
from bnfold.fold.einsums import einsum, einsum_by_matrix
from bnfold.fold.graph import Constant, Dim, Refused, Role
from bnfold.fold.roles import Linear, Recurrent, Sampled
from bnfold.onnx_graph.ops.facts import (
    axis_of,
    broadcast_shapes,
    broken,
    out_shape_of,
    rank_of,
    shape_by,
    shape_of,
    text,
)
from bnfold.onnx_graph.ops.operator import Half, Inputs, Operator, Shape
from bnfold.onnx_graph.ops.windows import counts, windows
from bnfold.onnx_graph.site import Site

__all__ = ["LINEAR"]

PRODUCTS = 1 << 28  # of one multiplication of constants
_OPEN = "its bias is not constant"


def _weight(site: Site, slot: int) -> Constant:
    weight = site.constant(slot)
    if weight is None:
        raise Refused(f"its weight is not constant: it {site.why_not_constant(slot)}", site.cure(slot))
    return weight


def _with_bias(role: Linear, site: Site, slot: int) -> Linear:
    """The role, with the bias at this slot: a constant, left out, or computed at run time."""
    if not site.has(slot):
        return role
    bias = site.constant(slot)
    why = "" if bias is not None else f"{_OPEN}: it {site.why_not_constant(slot)}"
    return builders.with_bias(role, slot, bias, why, site.cure(slot) if why else "")


def _channels(site: Site, shape: tuple[Dim, ...], weight: Constant, wanted: int) -> None:
    if isinstance(shape[1], int) and shape[1] != wanted:
        what = f"its weight of shape {list(weight.shape)} needs {wanted} input channels"
        raise broken(site, f"{what}, and its input has {shape[1]}")


def _layout(site: Site, bias_slot: int = 2) -> tuple[Constant, int, tuple[Dim, ...]]:
    """The weight, the number of groups and the shape of the input."""
    weight, shape, groups = _weight(site, 1), shape_of(site, 0), int(site.attr("group", 1))
    if len(weight.shape) != len(shape) or len(shape) < 3:
        raise broken(site, f"its weight has shape {list(weight.shape)}, and its input rank {len(shape)}")
    transposed = site.op == "ConvTranspose"
    if groups < 1 or weight.shape[0] % groups:
        raise broken(site, f"its weight of shape {list(weight.shape)} cannot be split into {groups} groups")
    _channels(site, shape, weight, weight.shape[0] if transposed else weight.shape[1] * groups)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    bias = site.constant(bias_slot)
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


def _deform_conv(site: Site) -> Role:
    weight, _, _ = _layout(site, 3)
    bias = site.constant(3) if site.has(3) else None
    closed = f"{_OPEN}: it {site.why_not_constant(3)}" if site.has(3) and bias is None else ""
    return Sampled(weight, 1, bias, 3, closed)


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
    role.bias_slot, role.bias_unread = 2, beta == 0 and site.has(2)
    if not role.bias_unread:
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


def _multiplied(site: Site, inputs: Inputs) -> Any:
    """Of constants: matrices and vectors, as spectral norm has them."""
    a, b = inputs
    if a.dtype != b.dtype or a.dtype.kind != "f" or not 1 <= min(a.ndim, b.ndim) <= max(a.ndim, b.ndim) <= 2:
        raise ValueError("not matrices of one floating point type")
    if a.size * (b.size // b.shape[0] if b.size else 0) > PRODUCTS:
        raise ValueError("too many products")
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)


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
    equation, y = text(site, "equation", ""), out_shape_of(site)
    slot = 1 if site.constant(1) is not None else 0
    weight = site.constant(slot)
    if weight is not None and len(site.node.input) == 2:
        role = einsum_by_matrix(equation, weight, slot, shape_of(site, 1 - slot), len(y))
        if role is not None:
            return role
    shapes = [shape_of(site, slot) for slot in range(len(site.node.input))]
    return einsum(equation, shapes, y)


def _recurrent(site: Site) -> Role:
    weight = _weight(site, 1)
    if rank_of(site, 0) != 3 or len(weight.shape) != 3:
        raise broken(site, "its input and its weight must have three axes")
    bias = site.constant(3)
    if bias is None and site.has(3):
        raise Refused(_OPEN)
    # X is (steps, batch, inputs), or (batch, steps, inputs): the last axis in both
    return Recurrent(weight, 1, bias, 3)


# Shapes.


def _conv_shape(site: Site) -> Shape | None:
    x, weight = site.shape(0), site.shape(1)
    if x is None or weight is None or len(weight) < 3 or len(x) != len(weight):
        return None
    spatial = counts(site, x[2:], weight[2:])
    return None if spatial is None else (x[0], weight[0], *spatial)


def _ranks(site: Site) -> None:
    """Ranks and channels of a convolution's input and output, where nothing else tells them."""
    _types(site)
    weight = site.shape(1)
    if weight is None or len(weight) < 3 or not site.outputs:
        return
    transposed, groups = site.op == "ConvTranspose", site.attr("group", 1)
    left, right = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
    if isinstance(left, int) and isinstance(right, int):
        left, right = (left, right * groups) if transposed else (left * groups, right)
    rest = (None,) * (len(weight) - 2)
    x, y = site.values[0], site.outputs[0]
    if x is not None and x.shape is None and x.init is None:
        x.shape, x.dtype = (None, left, *rest), x.dtype or site.dtype(1)
    if y is not None and y.shape is None:
        y.shape = (shape_by(_conv_shape, site) if site.op == "Conv" else None) or (None, right, *rest)
        y.dtype = y.dtype or site.dtype(1)


def _types(site: Site) -> None:
    """All that a linear operator reads and gives has one type."""
    x, weight, y = site.values[0], site.values[1], site.outputs[0] if site.outputs else None
    known = [value for value in (weight, x, y) if value is not None and value.dtype]
    for value in (x, weight, y):
        if value is not None and known and not value.dtype:
            value.dtype = known[0].dtype


def _gemm_ranks(site: Site) -> None:
    """Gemm reads and gives matrices; a stored one tells the features of the other."""
    _types(site)
    for slot, flip in ((0, "transA"), (1, "transB")):
        value, other = site.values[slot], site.shape(1 - slot)
        if value is None or value.shape is not None or value.init is not None:
            continue
        inner = 1 - slot if not site.attr(flip, 0) else slot
        behind = site.attr("transB" if slot == 0 else "transA", 0)
        size = None if other is None or len(other) != 2 else other[slot if not behind else 1 - slot]
        value.shape = (size, None) if inner == 0 else (None, size)
    y = site.outputs[0] if site.outputs else None
    if y is not None and y.shape is None:
        y.shape = shape_by(_gemm_shape, site) or (None, None)


def _gemm_shape(site: Site) -> Shape | None:
    a, b = site.shape(0), site.shape(1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    return a[1 if site.attr("transA", 0) else 0], b[0 if site.attr("transB", 0) else 1]


def _matmul_shape(site: Site) -> Shape | None:
    a, b = site.shape(0), site.shape(1)
    if a is None or b is None or len(b) < 2 or len(a) < 2:
        return None
    return (*broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


LINEAR: dict[str, Operator] = {
    "Conv": Operator(role=_conv, shape=_conv_shape, ranks=_ranks, half=Half.WEIGHTS),
    "ConvTranspose": Operator(role=_conv_transpose, ranks=_ranks, half=Half.WEIGHTS),
    "DFT": Operator(changed=20),
    "DeformConv": Operator(role=_deform_conv, ranks=_ranks),
    "Einsum": Operator(role=_einsum),
    "GRU": Operator(role=_recurrent),
    "Gemm": Operator(role=_gemm, shape=_gemm_shape, ranks=_gemm_ranks, half=Half.WEIGHTS),
    "LSTM": Operator(role=_recurrent),
    "MatMul": Operator(
        role=_matmul, shape=_matmul_shape, ranks=_types, evaluate=_multiplied, half=Half.WEIGHTS
    ),
    "RNN": Operator(role=_recurrent),
}
