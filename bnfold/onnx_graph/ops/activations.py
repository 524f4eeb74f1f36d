"""Elementwise functions of one tensor: activations, and what else takes one number to one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from bnfold.fold.graph import Array, Node, Refused, Role
from bnfold.fold.roles import Clamp, Gate, Leaky, Map, Sum
from bnfold.onnx_graph.ops.facts import broadcast, number, rank_of, same_shape, shape_of
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.ops.operator import Half, Inputs, Operator
from bnfold.onnx_graph.site import Site

__all__ = ["ACTIVATIONS", "Function"]

# the largest number of each type: a bound there bounds nothing
_TOP = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.797e308}

# Roles.


def _map(sign: str, site: Site) -> Role:
    """What keeps zero where it is: Relu, Abs."""
    rank_of(site, 0)
    return _carries(site.op, sign)


@cache
def _carries(op: str, sign: str) -> Map:
    return Map(sign, f"{op} does not pass a shift")


def _negative(site: Site) -> Role:
    rank_of(site, 0)
    return Sum((-1.0,))


def _leaky_relu(site: Site) -> Role:
    slope = number(site, "alpha", None, 0.01)
    return Leaky(np.full((1,) * rank_of(site, 0), slope))


def _prelu(site: Site) -> Role:
    shape, constant = shape_of(site, 0), site.constant(1)
    if constant is None:
        return _carries(site.op, "positive")
    if site.opset < 7 and math.prod(constant.shape) != 1:
        raise Refused("broadcasts its slope in the way of opset 6")
    slope = broadcast(site, constant, 1, shape)
    if not np.isfinite(slope).all():
        raise Refused("its slope is not finite")
    return Leaky(slope, constant, 1)


def _clip(site: Site) -> Role:
    rank_of(site, 0)
    by_input = site.opset >= 11
    low = number(site, "min", 1 if by_input else None, -math.inf)
    high = number(site, "max", 2 if by_input else None, math.inf)
    top = _TOP[site.dtype(0)]
    low, high = (-math.inf if low <= -top else low), (math.inf if high >= top else high)
    if not low <= high:
        raise Refused("its bounds are crossed, or not numbers")
    return Clamp(low, high, (1, 2) if by_input else ("min", "max"))


def _hard_sigmoid(site: Site) -> Role:
    rank_of(site, 0)
    return Gate(number(site, "alpha", None, 0.2), number(site, "beta", None, 0.5))


def _celu(site: Site) -> Role:
    rank_of(site, 0)
    return Gate(number(site, "alpha", None, 1.0), None)


# Bounds.


@dataclass(frozen=True)
class Function:
    """It grows (`lowest` is -inf), or falls up to `lowest` and grows from there on; None: nothing is said."""

    of: Callable[[Array, Site], Array]
    lowest: float | None = -math.inf

    def __call__(self, node: Node, inputs: list[Bounds]) -> Bounds:
        """The rule for a node: the column `bounds`."""
        return self.image(node.source, inputs[0])

    def image(self, site: Site, x: Bounds) -> Bounds:
        """The bounds of f(x)."""
        with np.errstate(all="ignore"):
            ends = self.of(x.lo, site), self.of(x.hi, site)
            lo, hi = np.minimum(*ends), np.maximum(*ends)
            if self.lowest is None:
                one = x.constant
                lo, hi = np.where(one, lo, -np.inf), np.where(one, hi, np.inf)
            elif self.lowest > -math.inf:
                least = self.of(np.full((1,) * x.lo.ndim, self.lowest), site)
                lo = np.where((x.lo <= self.lowest) & (x.hi >= self.lowest), least, lo)
        return Bounds(np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi))


def _sigmoid(x: Array, site: Site) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _damped(x: Array, gate: Array) -> Array:
    """x times its gate; far below zero nothing is left."""
    return np.asarray(np.where(x == -np.inf, 0.0, np.where(x == np.inf, np.inf, x * gate)))


def _swish(x: Array, site: Site) -> Array:
    return _damped(x, _sigmoid(x * float(site.attr("alpha", 1.0)), site))


def _mish(x: Array, site: Site) -> Array:
    return _damped(x, np.tanh(np.logaddexp(0, x)))


def _hard_swish(x: Array, site: Site) -> Array:
    return _damped(x, np.clip(x / 6 + 0.5, 0, 1))


def _elu(x: Array, site: Site) -> Array:
    alpha = float(site.attr("alpha", 1.0))
    return np.asarray(np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _selu(x: Array, site: Site) -> Array:
    alpha, gamma = site.attr("alpha", 1.6732632423543772), site.attr("gamma", 1.0507009873554805)
    return np.asarray(float(gamma) * np.where(x > 0, x, float(alpha) * np.expm1(np.minimum(x, 0))))


def _softsign(x: Array, site: Site) -> Array:
    return np.asarray(np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))))


def _erf(x: Array, site: Site) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _gelu(x: Array, site: Site) -> Array:
    if site.attr("approximate", "none") == "tanh":
        return _damped(x, 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return _damped(x, 0.5 * (1 + _erf(x / math.sqrt(2), site)))


# Constants.


def _computed(function: Callable[[Array], Array]) -> Callable[[Site, Inputs], Any]:
    return lambda site, inputs: function(inputs[0]).astype(inputs[0].dtype, copy=False)


def _first_type(site: Site) -> str:
    return site.dtype(0)


_like = partial(Operator, shape=same_shape)
_numpy = partial(_like, result_type=_first_type)

ACTIVATIONS: dict[str, Operator] = {
    "Abs": _numpy(
        role=partial(_map, "absolute"),
        evaluate=_computed(np.abs),
        bounds=Function(lambda x, site: np.abs(x), 0.0),
        half=Half.EXACT,
    ),
    "Ceil": Operator(half=Half.COUNTS),
    "Celu": _like(role=_celu),
    "Clip": _like(role=_clip, half=Half.PASSES),
    "Elu": _like(bounds=Function(_elu, None)),
    "Erf": _like(bounds=Function(_erf)),
    "Exp": _numpy(evaluate=_computed(np.exp), bounds=Function(lambda x, site: np.exp(x))),
    "Floor": Operator(half=Half.COUNTS),
    "Gelu": _like(bounds=Function(_gelu, None)),
    "HardSigmoid": _like(role=_hard_sigmoid),
    "HardSwish": _like(bounds=Function(_hard_swish, -1.5)),
    "LeakyRelu": _like(role=_leaky_relu),
    "Log": _numpy(evaluate=_computed(np.log), half=Half.SINGULAR),
    "Mish": _like(bounds=Function(_mish, None)),
    "Neg": _numpy(role=_negative, evaluate=_computed(np.negative), half=Half.EXACT | Half.COUNTS),
    "PRelu": _like(role=_prelu),
    "Reciprocal": _numpy(
        closed="divides by its input", evaluate=_computed(lambda x: np.asarray(1 / x)), half=Half.SINGULAR
    ),
    "Relu": _like(
        role=partial(_map, "positive"), bounds=Function(lambda x, site: np.maximum(x, 0.0)), half=Half.MOVES
    ),
    "Round": Operator(half=Half.COUNTS),
    "Selu": _like(bounds=Function(_selu, None)),
    "Sigmoid": _like(bounds=Function(_sigmoid)),
    "Sign": _numpy(evaluate=_computed(np.sign)),
    "Softplus": _like(bounds=Function(lambda x, site: np.logaddexp(0, x))),
    "Softsign": _like(bounds=Function(_softsign)),
    "Sqrt": _numpy(evaluate=_computed(np.sqrt), half=Half.SINGULAR | Half.COUNTS),
    "Swish": _like(bounds=Function(_swish, None)),
    "Tanh": _like(bounds=Function(lambda x, site: np.tanh(x))),
    "ThresholdedRelu": _like(),
}
