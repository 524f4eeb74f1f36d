"""Rows for the operators with parameters: convolutions, linear layers, norms, arithmetic with constants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import fx

from bnfold.fold import moves
from bnfold.fold import role_builders as builders
from bnfold.fold.affine import MAPS, align
from bnfold.fold.graph import Constant, Refused, Role
from bnfold.fold.roles import Affine, Closed, Linear, Move, Normalize, Recurrent
from bnfold.fold.windows import Windows
from bnfold.torch_graph.call import Call

__all__ = ["LAYERS"]

_BATCH_STATISTICS = "uses batch statistics"
_PARAMETERS = (  # and what stands for one that is left out
    *(("gamma", "weight", 1.0), ("beta", "bias", 0.0)),
    *(("mean", "running_mean", 0.0), ("var", "running_var", 1.0)),
)
LARGEST = 1 << 20  # elements of a constant operand that may get a new value


def _with_bias(call: Call, role: Linear) -> Linear:
    bias = call.constant("bias")
    why = "its bias is computed at run time" if bias is None and call["bias"] is not None else ""
    return builders.with_bias(role, call.slot("bias"), bias, why)


def _conv(call: Call, transposed: bool = False) -> Role:
    weight, shape = call.weight(), call.x
    kernel = weight.shape[2:]
    if len(shape) != len(weight.shape):
        raise Refused("its input has no batch axis")
    count, groups = len(kernel), int(call["groups"])
    padding = call["padding"]
    if isinstance(padding, str):
        padded = padding == "same" and any(taps > 1 for taps in kernel)
    else:
        padded = any(call.integers("padding", count))
    if not transposed:
        return _with_bias(call, builders.convolution(weight, groups, not padded, _windows(call, kernel)))
    stride, extra = call.integers("stride", count), call.integers("output_padding", count)
    even = not padded and set(kernel) == {1} and set(stride) == {1} and not any(extra)
    return _with_bias(call, builders.convolution(weight, groups, even, transposed=True))


def _windows(call: Call, kernel: tuple[int, ...]) -> Windows:
    """Pads are equal on both sides, but for an odd sum of them with "same": torch pads behind first."""
    count, padding = len(kernel), call["padding"]
    strides, dilations = call.integers("stride", count), call.integers("dilation", count)
    if isinstance(padding, str):
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
        heads = tuple(pad // 2 for pad in whole)
        return Windows(strides, dilations, heads, tuple(p - h for p, h in zip(whole, heads, strict=True)))
    pads = call.integers("padding", count)
    return Windows(strides, dilations, pads, pads)


def _linear(call: Call) -> Role:
    last = len(call.x) - 1
    free = tuple((axis, axis) for axis in range(last))
    return _with_bias(call, builders.by_matrix(call.weight(), call.slot("weight"), 0, last, last, 1, free))


def _batch_norm(call: Call) -> Role:
    """Frozen: `y = weight * (x - mean) / sqrt(var + eps) + bias`, channels on axis 1."""
    if call["training"]:
        return Closed(_BATCH_STATISTICS, listed=True)
    several = isinstance(call.node.meta["val"], (tuple, list))
    if several and any(user.args[1] != 0 for user in call.node.users):
        raise Refused("gives its statistics to other nodes")
    mean = call.constant("running_mean")
    if mean is None:
        raise Refused("its running statistics are not constant")
    constants = {}
    for key, name, default in _PARAMETERS:
        constant = call.constant(name)
        if constant is None and call[name] is not None:
            raise Refused(f"its {name} is not constant")
        constants[key] = call.slot(name), constant or _default(default, mean.shape[0], mean.dtype)
    values = [constant.load() for _, constant in constants.values()]
    return builders.batch_norm(constants, values, float(call["eps"]), len(call.x))


def _instance_norm(call: Call) -> Role:
    """With running statistics it is a frozen batch norm."""
    if not call["use_input_stats"]:
        return _batch_norm(call)
    return _normalize(call, (1,), tuple(range(2, len(call.x))))


def _default(value: float, count: int, dtype: str) -> Constant:
    """A parameter that is left out (`affine=False`): all ones, or all zeros."""
    full = np.full(count, value, np.float64 if dtype == "float64" else np.float32)
    return Constant("", lambda: full, full.shape, full.dtype.name)


def _arithmetic(call: Call) -> Role:
    """Two tensors, or an affine map if one side is a constant that fits the other."""
    if call["alpha"] not in (None, 1) or call["rounding_mode"] is not None:
        raise Refused("is scaled or rounded on the way")
    sides = [call.constant("self"), call.constant("other")]
    tensors = [name for name in ("self", "other") if isinstance(call[name], fx.Node)]
    if len(tensors) == 1:  # a number
        full = np.array(call["other"], np.float64)
        sides[1] = Constant("", lambda: full, (), "float64")
    slot = 1 if sides[1] is not None else 0
    constant = sides[slot]
    kind, forms, between = builders.ARITHMETIC[call.op]
    if constant is None:
        return between
    form = forms[slot]
    if not form:
        raise Refused("divides by its input")
    shape = call.tensor(("self", "other")[1 - slot])
    if shape != call.out or np.prod(constant.shape, dtype=float) > LARGEST:
        raise Refused(f"its constant of shape {list(constant.shape)} makes the tensor larger")
    c = align(constant.load().astype(np.float64), len(shape))
    if not c.size or not np.isfinite(c).all() or (form == "x/c" and not c.all()):
        raise Refused("its constant is empty, zero or not finite")
    scale, shift = MAPS[form](c)
    if (scale == 1).all() and (shift == 0).all():  # a sum that begins with 0
        return Move(moves.Identity(), x=1 - slot)
    return Affine(scale, shift, kind, x=1 - slot, constants={"value": (slot, constant)}, form=form)


def _layer_norm(call: Call) -> Role:
    rank = len(call.x)
    last = tuple(range(rank - len(call["normalized_shape"]), rank))
    return _normalize(call, last, last)


def _rms_norm(call: Call) -> Role:
    rank = len(call.x)
    last = tuple(range(rank - len(call["normalized_shape"]), rank))
    eps = call["eps"]
    if eps is None:
        eps = torch.finfo(call.node.meta["val"].dtype).eps
    return Normalize(call.constant("weight"), call.slot("weight"), None, None, last, last, False, float(eps))


def _recurrent(call: Call) -> Role:
    """The first layer reads the input: of each direction one matrix, and the first of its two biases."""
    params, layers = call["params"], int(call["num_layers"]) * (2 if call["bidirectional"] else 1)
    step, biases = len(params) // layers, bool(call["has_biases"])
    parts = []
    for first in (0, step) if call["bidirectional"] else (0,):
        weight, bias = call.known(params[first]), call.known(params[first + 2]) if biases else None
        if weight is None or (biases and bias is None):
            raise Refused("its weight is computed at run time")
        parts.append(
            (weight, call.item("params", first), bias, call.item("params", first + 2) if biases else None)
        )
    return Recurrent(*parts[0], axis=len(call.x) - 1, others=tuple(parts[1:]))


def _from_number(call: Call) -> Role:
    """`rsub`: a number minus a tensor."""
    number = call.fill("other")
    if number is None or call["alpha"] not in (None, 1):
        raise Refused("is scaled on the way")
    full = np.array(number, np.float64)
    scale, shift = MAPS["c-x"](align(full, len(call.x)))
    constant = Constant("", lambda: full, (), "float64")
    return Affine(scale, shift, "shift", constants={"value": (call.slot("other"), constant)}, form="c-x")


def _group_norm(call: Call) -> Role:
    return _normalize(call, (1,), tuple(range(1, len(call.x))))


def _normalize(call: Call, axes: tuple[int, ...], over: tuple[int, ...]) -> Role:
    slots = call.slot("weight"), call.slot("bias")
    scale, bias = call.constant("weight"), call.constant("bias")
    return Normalize(scale, slots[0], bias, slots[1], axes, over, True, float(call["eps"]))


LAYERS: dict[str, Callable[[Call], Role]] = {
    **{f"conv{n}d": _conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": partial(_conv, transposed=True) for n in (1, 2, 3)},
    "convolution": lambda call: _conv(call, bool(call["transposed"])),
    "linear": _linear,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(
        ("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "native_batch_norm"),
        lambda call: Closed(_BATCH_STATISTICS, listed=True),
    ),
    **dict.fromkeys(builders.ARITHMETIC, _arithmetic),
    "instance_norm": _instance_norm,
    "rms_norm": _rms_norm,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "rsub": _from_number,
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
}
