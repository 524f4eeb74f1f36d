"""Elementwise functions of one tensor: what each makes of an interval. To add a function is to add a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnfold.fold.graph import Array
from bnfold.onnx_graph.model.site import Site
from bnfold.passes.channels.interval import Bounds

__all__ = ["FUNCTIONS", "Function", "image"]


@dataclass(frozen=True)
class Function:
    """It grows (`lowest` is -inf), or falls up to `lowest` and grows from there on; None: nothing is said."""

    of: Callable[[Array, Site], Array]
    lowest: float | None = -math.inf


def image(function: Function, site: Site, x: Bounds) -> Bounds:
    """The bounds of f(x)."""
    with np.errstate(all="ignore"):
        ends = function.of(x.lo, site), function.of(x.hi, site)
        lo, hi = np.minimum(*ends), np.maximum(*ends)
        if function.lowest is None:
            one = x.constant
            lo, hi = np.where(one, lo, -np.inf), np.where(one, hi, np.inf)
        elif function.lowest > -math.inf:
            least = function.of(np.full((1,) * x.lo.ndim, function.lowest), site)
            lo = np.where((x.lo <= function.lowest) & (x.hi >= function.lowest), least, lo)
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


FUNCTIONS: dict[str, Function] = {
    "Abs": Function(lambda x, site: np.abs(x), 0.0),
    "Elu": Function(_elu, None),
    "Erf": Function(_erf),
    "Exp": Function(lambda x, site: np.exp(x)),
    "Gelu": Function(_gelu, None),
    "HardSwish": Function(_hard_swish, -1.5),
    "Mish": Function(_mish, None),
    "Relu": Function(lambda x, site: np.maximum(x, 0.0)),
    "Selu": Function(_selu, None),
    "Sigmoid": Function(_sigmoid),
    "Softplus": Function(lambda x, site: np.logaddexp(0, x)),
    "Softsign": Function(_softsign),
    "Swish": Function(_swish, None),
    "Tanh": Function(lambda x, site: np.tanh(x)),
}
