"""The operators that normalize: frozen batch norm, which may vanish, and those with statistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bnfold.fold.graph import Array, Constant, Node, Refused, Role
from bnfold.fold.role_builders import batch_norm
from bnfold.fold.roles import Normalize, SoftmaxInput
from bnfold.onnx_graph.ops.facts import EPSILON, axis_of, broken, rank_of, same_shape, shape_of
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.ops.operator import Half, Inputs, Operator
from bnfold.onnx_graph.site import Site

__all__ = ["NORMS"]

_PARAMETERS = ("gamma", "beta", "mean", "var")
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul"})
_MOVES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_WORDS = ("", "scale", "bias", "running mean", "running variance")


def _batch_norm(site: Site) -> Role:
    """Frozen: `y = gamma * (x - mean) / sqrt(var + eps) + beta`, channels on axis 1."""
    _check_frozen(site)
    constants: dict[str, tuple[int, Constant]] = {}
    values: list[Array] = []
    for slot, name in enumerate(_PARAMETERS, 1):
        constant, value = site.constant(slot), site.value(slot)
        if constant is None or value is None:
            what = f"the {_WORDS[slot]} {site.why_not_constant(slot)}"
            own = " (batch statistics)" if site.producer_op(slot) == "ReduceMean" else ""
            raise Refused(f"its parameters are not constant: {what}{own}", site.cure(slot))
        constants[name] = (slot, constant)
        values.append(value)
    shape = shape_of(site, 0)
    sizes = {value.shape for value in values}
    count = values[0].size
    if site.opset < 9 and not site.attr("spatial", 1) and any(len(size) != 1 for size in sizes):
        raise Refused("has parameters for each position (spatial=0)")
    if len(sizes) != 1 or values[0].ndim != 1:
        raise broken(site, f"its parameters have the shapes {[list(value.shape) for value in values]}")
    channels = shape[1] if len(shape) > 1 else 1
    if isinstance(channels, int) and channels != count:
        raise broken(site, f"it has parameters for {count} channels, and its input has {channels}")
    eps = float(site.attr("epsilon", EPSILON))
    return batch_norm(constants, values, eps, len(shape), partial(broken, site))


def _type(site: Site) -> None:
    """Before opset 15 scale and data have one type."""
    for value in (site.values[0], site.outputs[0]):
        if value is not None and not value.dtype and site.opset < 15:
            value.dtype = site.dtype(1)


def _check_frozen(site: Site) -> None:
    if site.attr("training_mode", 0):
        raise Refused("uses batch statistics (training_mode=1)")
    outputs = site.node.output
    if site.opset < 7:
        if not site.attr("is_test", 0):
            raise Refused("uses batch statistics (is_test=0)")
    elif site.opset < 14 and any(outputs[1:]):
        raise Refused("uses batch statistics (its outputs are those of training)")
    if any(site.used(index) for index in range(1, len(outputs))):
        raise Refused("gives its statistics to other nodes")


def _own(site: Site, scale: int, bias: int | None) -> tuple[Constant | None, Constant | None]:
    """The operator's own scale and bias; a bias that is computed at run time blocks the scale as well."""
    if bias is None or not site.has(bias):
        return site.constant(scale), None
    constant = site.constant(bias)
    return (site.constant(scale), constant) if constant is not None else (None, None)


def _by_channel(site: Site, first: int) -> Role:
    """Instance and group norm: over the axes from `first` on, with scale and bias along axis 1."""
    over = tuple(range(first, rank_of(site, 0)))
    scale, bias = _own(site, 1, 2)
    groups = int(site.attr("num_groups", 0)) if site.op == "GroupNormalization" and site.opset < 21 else 0
    return Normalize(scale, 1, bias, 2, (1,), over, True, float(site.attr("epsilon", EPSILON)), groups)


def _layer_norm(site: Site) -> Role:
    if site.used(1) or site.used(2):
        raise Refused("its mean or deviation is used")
    return _last_axes(site, 2, True)


def _last_axes(site: Site, bias_slot: int | None, removes_mean: bool) -> Role:
    """Over all axes from `axis` on; the scale must run along all of them to take a change of the output."""
    shape = shape_of(site, 0)
    over = tuple(range(axis_of(int(site.attr("axis", -1)), len(shape)), len(shape)))
    scale, bias = _own(site, 1, bias_slot)
    sizes = tuple(shape[axis] for axis in over)
    if any(constant is not None and constant.shape != sizes for constant in (scale, bias)):
        scale = bias = None
    eps = float(site.attr("epsilon", EPSILON))
    return Normalize(scale, 1, bias, bias_slot, over, over, removes_mean, eps)


def _softmax(site: Site) -> Role:
    rank = rank_of(site, 0)
    axis = axis_of(int(site.attr("axis", -1 if site.opset >= 13 else 1)), rank)
    if site.opset < 13 and axis != rank - 1:
        raise Refused(f"is taken over several axes at once (opset {site.opset})")
    return SoftmaxInput(axis)


def _fractions(node: Node, inputs: list[Bounds]) -> Bounds:
    """Of a Softmax."""
    shape = (1,) * node.outputs[0].rank
    return Bounds(np.zeros(shape), np.ones(shape))


_like = partial(Operator, shape=same_shape)


def _standardized(site: Site, inputs: Inputs) -> Any:
    """Of a stored weight, by its own statistics or by computed ones, as in networks without other norms."""
    x, gamma, beta, mean, var = (np.asarray(array, np.float64) for array in inputs[:5])
    own = bool(site.attr("training_mode", 0)) and site.opset >= 14
    if x.ndim < 2 or (not own and (site.opset < 9 or len(site.outputs) > 1)) or not _makes_weights(site):
        raise ValueError("not what makes a weight")
    axes, channels = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    if own:
        mean, var = x.mean(axes), x.var(axes)
    scale = gamma / np.sqrt(var + site.attr("epsilon", EPSILON))
    y = (x - mean.reshape(channels)) * scale.reshape(channels) + beta.reshape(channels)
    return y.astype(inputs[0].dtype)


def _makes_weights(site: Site) -> bool:
    """Whether layers read what it gives as their weights; other stored tensors take a batch norm in."""
    value = site.outputs[0]
    uses = [] if value is None or value.is_output else value.uses
    return bool(uses) and all(
        (reader.op in _WEIGHTED and slot == 1)
        or (reader.op in _MOVES and slot == 0 and _makes_weights(reader))
        for reader, slot in uses
    )


_squares = partial(Operator, half=Half.SQUARES)

NORMS: dict[str, Operator] = {
    "BatchNormalization": _like(role=_batch_norm, ranks=_type, evaluate=_standardized, half=Half.WEIGHTS),
    "GroupNormalization": _like(role=partial(_by_channel, first=1), half=Half.SQUARES, changed=21),
    "Hardmax": Operator(changed=13),
    "InstanceNormalization": _like(role=partial(_by_channel, first=2), half=Half.SQUARES),
    "LRN": _like(closed="divides by its neighbouring channels", half=Half.SQUARES),
    "LayerNormalization": _like(role=_layer_norm, half=Half.SQUARES),
    "LogSoftmax": _like(role=_softmax, changed=13),
    "LpNormalization": _squares(),
    "MeanVarianceNormalization": _squares(
        float32="MeanVarianceNormalization is defined with float32 constants"
    ),
    "RMSNormalization": _squares(role=partial(_last_axes, bias_slot=None, removes_mean=False)),
    "Softmax": _like(role=_softmax, bounds=_fractions, changed=13),
}
