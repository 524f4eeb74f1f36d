"""A builder of tiny ONNX models with batch norms, for all tests of folding.

    g = Build(seed=3)
    x = g.input("x", (2, 6, 9, 11))
    g.output(g.bn(g.conv(x, 10, k=3, group=2)))
    model = g.model()

Every value comes from the seed: weights of variance 1/fan-in, so that all tensors stay near 1; running
statistics away from 0 and 1; batch norm scales `gamma / std` of both signs, 0.3 to 3 in size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from tests.onnx_graph.build_base import Array, Base, Maker, Shape

__all__ = ["Array", "Build", "Signs"]

Signs: TypeAlias = Literal["mixed", "positive", "negative", "zero", "zero or positive"]


class Build(Base):
    """Layers; `Base` has the rest and the arguments. Methods take and return names of tensors."""

    def weight(
        self, shape: Sequence[int], fan: int, name: str = "weight", how: str | Maker | None = None
    ) -> str:
        return self.const(self.normal(shape) / math.sqrt(fan), name, how)

    def normal(self, shape: Sequence[int], size: float = 1.0) -> Array:
        return self.rng.standard_normal(tuple(shape)) * size

    def conv(
        self,
        x: str,
        outputs: int,
        k: int = 1,
        *,
        group: int = 1,
        bias: bool = True,
        pads: int = 0,
        name: str | None = None,
        w: str | None = None,
        **attrs: Any,
    ) -> str:
        """A convolution with kernels k, k x k, ... ; `w` uses a weight that is there."""
        name = name or self.fresh("conv")
        inputs, dims = self.channels(x), len(self.shape(x)) - 2
        w = w or self.weight(
            (outputs, inputs // group, *(k,) * dims), inputs // group * k**dims, f"{name}_weight"
        )
        b = [self.const(self.normal((outputs,), 0.5), f"{name}_bias")] if bias else []
        if pads:
            attrs["pads"] = [pads] * (2 * dims)
        if group != 1:
            attrs["group"] = group
        return self.op("Conv", x, w, *b, name=name, **attrs)

    def deconv(
        self,
        x: str,
        outputs: int,
        k: int = 1,
        *,
        group: int = 1,
        bias: bool = True,
        name: str | None = None,
        **attrs: Any,
    ) -> str:
        """A transposed convolution."""
        name = name or self.fresh("deconv")
        inputs, dims = self.channels(x), len(self.shape(x)) - 2
        w = self.weight((inputs, outputs // group, *(k,) * dims), inputs // group * k**dims, f"{name}_weight")
        b = [self.const(self.normal((outputs,), 0.5), f"{name}_bias")] if bias else []
        return self.op("ConvTranspose", x, w, *b, name=name, group=group, **attrs)

    def gemm(self, x: str, outputs: int, c: Shape | None = (), name: str | None = None, **attrs: Any) -> str:
        """x @ W + C. c: the shape of C, () for one number, None to leave it out."""
        name = name or self.fresh("gemm")
        inner = self.channels(x, 0 if attrs.get("transA") else 1)
        shape = (outputs, inner) if attrs.get("transB") else (inner, outputs)
        extra = [] if c is None else [self.const(self.normal([int(d or 0) for d in c], 0.5), f"{name}_bias")]
        return self.op("Gemm", x, self.weight(shape, inner, f"{name}_weight"), *extra, name=name, **attrs)

    def matmul(
        self, x: str, outputs: int, *, bias: bool = False, left: bool = False, name: str | None = None
    ) -> str:
        """x @ W (or W @ x), with an Add of a bias behind it."""
        name = name or self.fresh("matmul")
        inner = self.channels(x, -2 if left else -1)
        w = self.weight((outputs, inner) if left else (inner, outputs), inner, f"{name}_weight")
        y = self.op("MatMul", *((w, x) if left else (x, w)), name=name)
        if not bias:
            return y
        return self.op(
            "Add", y, self.const(self.normal((outputs, 1) if left else (outputs,), 0.5), f"{name}_bias")
        )

    def scales(self, count: int, signs: Signs | None = None) -> Array:
        """Scales 0.3 to 3 in size, of the signs asked for."""
        size = np.exp(self.rng.uniform(math.log(0.3), math.log(3), count))
        where = np.arange(count) % 3 == self.rng.integers(min(count, 3))  # a third of them, at least one
        which = signs or self.signs
        if which == "mixed":
            return np.where(where, -size, size)
        if which in ("zero", "zero or positive"):
            rest = np.where(np.roll(where, 1), -size, size) if which == "zero" else size
            return np.where(where, 0.0, rest)
        return -size if which == "negative" else size

    def norm_parameters(
        self,
        count: int,
        signs: Signs | None = None,
        *,
        shift: bool = True,
        name: str = "bn",
        eps: float = 1e-5,
        scale: Any = None,
        how: str | Maker | None = None,
    ) -> list[str]:
        """scale (gamma), bias (beta), mean, var. shift=False: y = a*x exactly. scale: the numbers a."""
        var = self.rng.uniform(0.3, 3.0, count)
        a = self.scales(count, signs) if scale is None else np.broadcast_to(scale, (count,))
        gamma = a * np.sqrt(var + eps)
        beta, mean = (self.normal((count,), 0.5) * shift for _ in range(2))
        parts = {"scale": gamma, "bias": beta, "mean": mean, "var": var}
        return [self.const(value, f"{name}_{part}", how) for part, value in parts.items()]

    def bn(
        self,
        x: str,
        signs: Signs | None = None,
        *,
        shift: bool = True,
        name: str | None = None,
        parameters: Sequence[str] | None = None,
        scale: Any = None,
        how: str | Maker | None = None,
        **attrs: Any,
    ) -> str:
        """A frozen batch norm over axis 1; `parameters` uses those that are there."""
        name = name or self.fresh("bn")
        eps = attrs.setdefault("epsilon", 1e-3)
        count = self.channels(x)
        if parameters is None:
            parameters = self.norm_parameters(
                count, signs, shift=shift, name=name, eps=eps, scale=scale, how=how
            )
        return self.op("BatchNormalization", x, *parameters, name=name, **attrs)

    def mul(self, x: str, signs: Signs | None = None, *, axis: int = 1, name: str | None = None) -> str:
        """A scale per channel, of shape (C, 1, ...)."""
        return self.per_channel("Mul", x, self.scales(self.channels(x, axis), signs), axis=axis, name=name)

    def add(self, x: str, *, axis: int = 1, name: str | None = None) -> str:
        """A shift per channel, of shape (C, 1, ...)."""
        return self.per_channel("Add", x, self.normal((self.channels(x, axis),), 0.7), axis=axis, name=name)

    def per_channel(
        self,
        kind: str,
        x: str,
        values: Array,
        *,
        axis: int = 1,
        full: bool = False,
        left: bool = False,
        name: str | None = None,
    ) -> str:
        """`kind` of x and a constant along `axis`. full: of x's rank; left: the constant comes first."""
        behind = len(self.shape(x)) - 1 - axis % len(self.shape(x))
        shape = ((1,) * (axis if full else 0)) + (-1,) + (1,) * behind
        name = name or self.fresh(kind.lower())
        c = self.const(values.reshape(shape), f"{name}_constant")
        return self.op(kind, *((c, x) if left else (x, c)), name=name)
