"""Operators of ATen that a proof may compute on random numbers, and what they are called in ONNX.

Only what stands in one of these tables is computed. What is analytic in what it reads is equal everywhere if
it is equal at a random point; what is analytic in pieces has ONNX's name, by which proof/pieces.py knows its
bounds. Layers, batch norms and maps of each channel have ONNX's names and attributes as well, by which the
rules about weights know them. All else is equal to itself only: rounding to integers, sorting, what reads
integers of data, and operators of other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

__all__ = ["BOOLEAN", "CREATE", "Reading", "Stated", "is_random", "reading_of", "writes"]


class Reading(NamedTuple):
    """What a call is for a proof.

    reads: the arguments that are its inputs, in ONNX's order, numbers included; None: all tensors and sizes,
    as they come. attributes: as ONNX has them.
    """

    op: str
    reads: Sequence[str] | None = None
    attributes: Mapping[str, Any] = {}


class Stated:
    """A call of an operator, with its arguments by name."""

    def __init__(self, node: fx.Node) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        self.node, schema = node, node.target._schema
        names = [argument.name for argument in schema.arguments]
        self.given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        defaults = {argument.name: argument.default_value for argument in schema.arguments}
        self.arguments = defaults | self.given
        self.library, _, self.name = schema.name.partition("::")
        self.overload = schema.overload_name

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self.arguments

    def shape(self, name: str) -> Sequence[Any]:
        """Of a tensor argument; () if it is none."""
        value = self[name].meta.get("val") if isinstance(self[name], fx.Node) else None
        return value.shape if isinstance(value, torch.Tensor) else ()

    def integers(self, name: str, count: int) -> list[int] | None:
        """A list of integers that is stated; one stands for all axes."""
        value = self[name]
        found = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(found) not in (1, count) or not all(type(each) is int for each in found):
            return None
        return found * (count if len(found) == 1 else 1)


Rule = Callable[[Stated], "Reading | None"]


def _convolution(call: Stated) -> Reading | None:
    kernel = list(call.shape("weight")[2:])
    n = len(kernel)
    strides, dilations = call.integers("stride", n), call.integers("dilation", n)
    if len(call.shape("input")) != n + 2 or n < 1 or strides is None or dilations is None:
        return None
    made: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": call["groups"]}
    if isinstance(call["padding"], str):  # "same" or "valid"
        same = call["padding"] == "same"
        total = [(k - 1) * d if same else 0 for k, d in zip(kernel, dilations, strict=True)]
        made["pads"] = [each // 2 for each in total] + [each - each // 2 for each in total]
    else:
        pads = call.integers("padding", n)
        if pads is None:
            return None
        made["pads"] = pads * 2
    turned = call.arguments.get("transposed", "output_padding" in call)
    if turned:
        made["output_padding"] = call.integers("output_padding", n)
        if made["output_padding"] is None:
            return None
    return Reading("ConvTranspose" if turned else "Conv", ("input", "weight", "bias"), made)


def _linear(call: Stated) -> Reading | None:
    """A Gemm, but for the rank of what it reads, on which no rule depends."""
    return Reading("Gemm", ("input", "weight", "bias"), {"transB": 1})


def _addmm(call: Stated) -> Reading | None:
    return Reading("Gemm", ("mat1", "mat2", "self"), {name: float(call[name]) for name in ("alpha", "beta")})


def _product(call: Stated) -> Reading | None:
    return Reading("MatMul", ("self", "mat2" if "mat2" in call else "other"))


def _batch_norm(call: Stated) -> Reading | None:
    """By stored statistics."""
    if call["training"]:
        return None
    names = ("input", "weight", "bias", "running_mean", "running_var")
    if any(call[name] is None for name in names):
        return Reading("aten.batch_norm")
    return Reading("BatchNormalization", names, {"epsilon": float(call["eps"])})


def _arithmetic(op: str) -> Rule:
    def rule(call: Stated) -> Reading | None:
        if call["rounding_mode"] is not None:
            return None
        if "alpha" in call and call["alpha"] != 1:
            return Reading(f"aten.{call.name}")
        return Reading(op, ("self", "other"))

    return rule


def _renamed(op: str, **attributes: str | float) -> Rule:
    """attributes: ONNX's names, and those of arguments, or numbers."""

    def rule(call: Stated) -> Reading | None:
        found = {name: call[value] if isinstance(value, str) else value for name, value in attributes.items()}
        if any(isinstance(value, fx.Node) for value in found.values()):
            return None
        return Reading(op, None, {k: float(v) for k, v in found.items() if v is not None})

    return rule


def _clamp(call: Stated) -> Reading | None:
    bounds = {name: call[name] for name in ("min", "max") if call[name] is not None}
    if any(isinstance(bound, fx.Node) for bound in bounds.values()):
        return Reading("Clip", ("self", "min", "max"))
    return Reading("Clip", None, {name: float(bound) for name, bound in bounds.items()})


def _elu(call: Stated) -> Reading | None:
    plain = call["input_scale"] in (None, 1)
    return Reading("Elu") if plain else None


def _softmax(call: Stated) -> Reading | None:
    op = "LogSoftmax" if "log" in call.name else "Softmax"
    return Reading(op, None, {"axis": call["dim"]})


def _reduced(op: str) -> Rule:
    """All axes where none is stated."""

    def rule(call: Stated) -> Reading | None:
        dim = call["dim"]
        axes = list(dim) if isinstance(dim, (list, tuple)) else [dim]
        return Reading(op, None, {"axes": axes or None})

    return rule


def _cat(call: Stated) -> Reading | None:
    axis = call["dim"]
    return Reading("Concat", None, {"axis": axis}) if type(axis) is int else None


def _where(call: Stated) -> Reading | None:
    if call.overload == "default":
        return None  # where is it true: integers
    return Reading("Where", ("condition", "self", "other"))


def _masked_fill(call: Stated) -> Reading | None:
    return Reading("Where", ("mask", "self", "value"))


def _pool(op: str) -> Rule:
    def rule(call: Stated) -> Reading | None:
        n = int(call.name.split("pool")[1][0])
        kernel = call.integers("kernel_size", n)
        strides = call.integers("stride", n) if call["stride"] else kernel
        pads = call.integers("padding", n)
        dilations = call.integers("dilation", n) if "dilation" in call else [1] * n
        parts = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
        shape = call.shape("self")
        if None in parts.values() or pads is None or len(shape) != n + 2 or call["divisor_override"]:
            return Reading(f"aten.{call.name}")
        flags = {"ceil_mode": call["ceil_mode"], "count_include_pad": call["count_include_pad"]}
        return Reading(op, None, {**parts, "pads": pads * 2, **flags})

    return rule


def _dropout(call: Stated) -> Reading | None:
    return Reading("Identity") if call["train"] is False else None


def _cast(call: Stated) -> Reading | None:
    return Reading("Cast")


def _plain_view(call: Stated) -> Reading | None:
    """Not the bits as another type."""
    return Reading(f"aten.{call.name}") if call.overload != "dtype" else None


def _vector_norm(call: Stated) -> Reading | None:
    return Reading(f"aten.{call.name}") if call["ord" if "ord" in call else "p"] in (None, 2) else None


# Analytic in what they read, or a choice among it that every order of random numbers meets.
_ANALYTIC = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d addcmul baddbmm broadcast_to channel_shuffle
    chunk col2im constant_pad_nd cos cumsum einsum expand expand_as flatten flip gather group_norm im2col
    index index_select instance_norm layer_norm lerp mean movedim narrow native_channel_shuffle
    native_group_norm native_layer_norm pad permute pixel_shuffle pixel_unshuffle reflection_pad1d
    reflection_pad2d reflection_pad3d repeat replication_pad1d replication_pad2d replication_pad3d reshape
    rms_norm roll rsqrt rsub select sin slice split split_with_sizes square squeeze stack std sum swapaxes t
    tile transpose unbind unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var
"""
ANALYTIC = frozenset(_ANALYTIC.split())
# Of sizes and numbers.
CREATE = frozenset(["arange", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros"])
# Of whose first input only type and shape count.
LIKE = frozenset(["full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"])
BOOLEAN = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}

_POOLS = {f"{kind}_pool{n}d": op for kind, op in (("avg", "AveragePool"), ("max", "MaxPool")) for n in "123"}
_POOLS |= {f"max_pool{n}d_with_indices": "MaxPool" for n in "23"}
_CONVOLUTIONS = [f"conv{kind}{n}d" for kind in ("", "_transpose") for n in "123"]

_RULES: dict[str, Rule] = {
    **dict.fromkeys((*_CONVOLUTIONS, "convolution"), _convolution),
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("mm", "bmm", "matmul", "linalg_matmul"), _product),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    "add": _arithmetic("Add"),
    **dict.fromkeys(("sub", "subtract"), _arithmetic("Sub")),
    **dict.fromkeys(("mul", "multiply"), _arithmetic("Mul")),
    **dict.fromkeys(("div", "divide", "true_divide"), _arithmetic("Div")),
    **dict.fromkeys(("maximum",), _arithmetic("Max")),
    **dict.fromkeys(("minimum",), _arithmetic("Min")),
    **{name: _arithmetic(op) for name, op in BOOLEAN.items()},
    **{name: _pool(op) for name, op in _POOLS.items()},
    **dict.fromkeys(("abs", "absolute"), _renamed("Abs")),
    **dict.fromkeys(("neg", "negative"), _renamed("Neg")),
    "exp": _renamed("Exp"),
    "log": _renamed("Log"),
    "sqrt": _renamed("Sqrt"),
    "reciprocal": _renamed("Reciprocal"),
    "pow": _renamed("Pow"),
    "relu": _renamed("Relu"),
    "relu6": _renamed("Clip", min=0.0, max=6.0),
    "hardtanh": _renamed("Clip", min="min_val", max="max_val"),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "leaky_relu": _renamed("LeakyRelu", alpha="negative_slope"),
    "prelu": _renamed("PRelu"),
    "_prelu_kernel": _renamed("PRelu"),
    "elu": _elu,
    "celu": lambda call: Reading("Celu") if call["alpha"] == 1 else None,
    "selu": _renamed("Selu"),
    "gelu": _renamed("Gelu"),
    "silu": _renamed("Swish"),
    "mish": _renamed("Mish"),
    "hardswish": _renamed("HardSwish"),
    "hardsigmoid": _renamed("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardshrink": _renamed("Shrink", lambd="lambd"),
    "softshrink": _renamed("Shrink", lambd="lambd"),
    "threshold": _renamed("ThresholdedRelu", alpha="threshold"),
    "sigmoid": _renamed("Sigmoid"),
    "tanh": _renamed("Tanh"),
    "erf": _renamed("Erf"),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
    "amax": _reduced("ReduceMax"),
    "amin": _reduced("ReduceMin"),
    "logsumexp": _reduced("ReduceLogSumExp"),
    "atan": _renamed("Atan"),
    "softplus": lambda call: Reading("Softplus") if call["beta"] == 1 else None,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "lift_fresh_copy"), _renamed("Identity")),
    **dict.fromkeys(("_to_copy", "to", "type_as"), _cast),
    **dict.fromkeys(("view", "_unsafe_view"), _plain_view),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _vector_norm),
    **dict.fromkeys(("sym_size", "sym_numel", "sym_stride"), _renamed("Shape")),
}
# What draws random numbers only if it is told to, and by which argument.
_DRAWS_IF = dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "native_dropout"), "train")
_DRAWS_IF |= dict.fromkeys(("gru", "lstm", "rnn_relu", "rnn_tanh"), "train")
_DRAWS_IF |= {"scaled_dot_product_attention": "dropout_p"}


def reading_of(call: Stated) -> tuple[Reading, bool]:
    """What a call is, and whether it may be computed on random numbers."""
    reading = None
    if call.library == "aten":
        rule = _RULES.get(call.name)
        if rule is not None:
            reading = _all_read(rule, call)
        elif call.name in ANALYTIC or call.name in CREATE or call.name in LIKE:
            reading = Reading(f"aten.{call.name}")
    return (Reading(f"{call.library}.{call.name}"), False) if reading is None else (reading, True)


def _all_read(rule: Rule, call: Stated) -> Reading | None:
    """What a rule makes of a call; None where a size stands in the place of a number."""
    try:
        reading = rule(call)
    except TypeError:
        return None
    if reading is not None and reading.reads is not None:
        read = {call[name] for name in reading.reads if isinstance(call[name], fx.Node)}
        if read != set(call.node.all_input_nodes):
            return None
    return reading


def writes(call: Stated) -> bool:
    """Whether a call of a batch norm updates its statistics, which its schema does not tell."""
    trains = call["training"] is True or call["use_input_stats"] is True
    return trains and any(call[f"running_{what}"] is not None for what in ("mean", "var"))


def is_random(call: Stated, tags: Sequence[Any]) -> bool:
    """Whether two runs differ. What memory holds that nobody has written to is random, too."""
    if call.name in _DRAWS_IF:
        return call[_DRAWS_IF[call.name]] not in (False, 0, 0.0)
    return torch.Tag.nondeterministic_seeded in tags or "empty" in call.name
