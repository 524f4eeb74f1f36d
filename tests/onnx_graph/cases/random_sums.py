"""Random sums of branches, and linear nodes in a row: all that may stand around what is merged."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.onnx_graph.build import Build


class Sums:
    """One random model. Any tensor may get another reader, or be an output."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.g = Build(int(self.rng.choice([9, 13, 18, 20])), seed=seed, signs="mixed")
        rng = self.rng
        self.matrices = rng.random() < 0.2
        self.rank = int(rng.integers(2, 4)) if self.matrices else int(rng.choice([3, 4, 4, 4, 5]))
        channels = int(rng.choice([4, 6, 8]))
        sizes: list[Any] = [int(n) for n in rng.integers(6, 9, self.rank - 2)]
        if self.matrices:
            shape = [int(n) for n in rng.integers(2, 4, self.rank - 1)] + [channels]
        else:
            named = [f"d{i}" if rng.random() < 0.15 else n for i, n in enumerate(sizes)]
            shape = ["n" if rng.random() < 0.2 else 2, channels, *named]
        self.axis = self.rank - 1 if self.matrices else 1
        self.x = self.g.input("x", shape)
        self.seen = [self.x]
        self.weights: dict[tuple[int, ...], str] = {}

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def layer(self, x: str, outputs: int, stride: int = 1, kept: bool = True) -> str:
        """A linear node. kept: the sizes of the tensor stay as they are, but for strides."""
        if self.matrices:
            return self.matrix(x, outputs)
        g, rng, dims = self.g, self.rng, self.rank - 2
        inputs = g.channels(x)
        kernel = [self.pick(1, 1, 3, 3, 5) for _ in range(dims)]
        if rng.random() < 0.7:
            kernel = [kernel[0]] * dims
        dilations = [self.pick(1, 1, 1, 2)] * dims
        if not kept:
            taps = self.pick(1, 2, 3)
            kernel = [min(taps, n) if isinstance(n, int) else taps for n in g.shape(x)[2:]]
            dilations = [1] * dims
        groups = [n for n in (1, 1, 2, 3, inputs, inputs) if inputs % n == outputs % n == 0]
        group = self.pick(*groups)
        reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        heads = [r // 2 for r in reach]
        if rng.random() < 0.1:
            heads = [int(rng.integers(0, r + 1)) for r in reach]
        pads = [*heads, *(r - h for r, h in zip(reach, heads, strict=True))]
        attributes: dict[str, Any] = {"pads": pads} if kept or rng.random() < 0.3 else {}
        if kept and dilations[0] == 1 and rng.random() < 0.15:  # onnxruntime does not take both
            attributes = {"auto_pad": self.pick("SAME_UPPER", "SAME_LOWER")}
        if stride > 1:
            attributes["strides"] = [stride] * dims
        if dilations[0] > 1:
            attributes["dilations"] = dilations
        shape = (outputs, inputs // group, *kernel)
        if shape not in self.weights or rng.random() < 0.9:
            self.weights[shape] = g.weight(shape, int(np.prod(shape[1:])))
        bias = [g.const(g.normal((outputs,), 0.5), "bias")] if rng.random() < 0.6 else []
        return g.op("Conv", x, self.weights[shape], *bias, group=group, **attributes)

    def matrix(self, x: str, outputs: int) -> str:
        g, rng = self.g, self.rng
        inputs = g.channels(x, self.axis)
        if self.rank > 2 or rng.random() < 0.5:
            return g.op("MatMul", x, g.weight((inputs, outputs), inputs))
        flip = int(rng.integers(2))
        weight = g.weight((outputs, inputs) if flip else (inputs, outputs), inputs)
        shape = self.pick((outputs,), (1, outputs), (1,), ())
        bias = [g.const(g.normal(shape, 0.5), "bias")] if rng.random() < 0.6 or g.opset < 11 else []
        alpha = {"alpha": 0.5, "beta": self.pick(2.0, 0.0)} if rng.random() < 0.3 else {}
        return g.op("Gemm", x, weight, *bias, transB=flip, **alpha)

    def scaled(self, y: str) -> str:
        """A map of each channel by itself."""
        g, rng = self.g, self.rng
        channels = g.channels(y, self.axis)
        wide = (channels, *[1] * (self.rank - 1 - self.axis))
        kind = int(rng.integers(8))
        if kind == 0 and not self.matrices:
            return g.bn(y)
        if kind == 1:
            return g.op("Mul", y, g.const(g.normal(wide), "gamma"))
        if kind == 2:
            return g.op("Add", g.const(g.normal((1, *wide)), "shift"), y)
        if kind == 3:
            return g.op("Neg", y)
        if kind == 4:
            return g.op("Identity", y)
        if kind == 5:
            return g.op("Div", y, g.const(self.pick(2.0, -4.0), "whole"))
        if kind == 6 and isinstance(g.shape(y)[-1], int):  # along the last axis
            return g.op("Mul", y, g.const(g.normal(g.shape(y)[-1:]), "along"))
        return y

    def branch(self, x: str, other: str, channels: int, stride: int) -> str:
        rng, y = self.rng, self.pick(x, x, x, x, other)
        kind = rng.random()
        if stride == 1 and kind < 0.25 and self.g.channels(y, self.axis) == channels:
            return self.scaled(y) if rng.random() < 0.6 else y
        if kind < 0.35:
            y = self.layer(y, int(self.pick(2, channels, 2 * channels)))
        y = self.layer(y, channels, stride)
        return self.scaled(self.scaled(y)) if rng.random() < 0.5 else y

    def join(self, parts: list[str]) -> str:
        """A tree of sums over the parts."""
        g = self.g
        if len(parts) > 2 and self.rng.random() < 0.3:
            return g.op(self.pick("Sum", "Sum", "Mean"), *parts)
        while len(parts) > 1:
            i = int(self.rng.integers(len(parts) - 1))
            y = g.op(self.pick("Add", "Add", "Add", "Sub"), parts[i], parts[i + 1])
            self.seen.append(y)
            parts[i : i + 2] = [self.scaled(y) if self.rng.random() < 0.3 else y]
        return parts[0]

    def grow(self) -> Build:
        g, rng, y = self.g, self.rng, self.x
        for _ in range(int(rng.integers(1, 4))):
            channels = g.channels(y, self.axis)
            if rng.random() < 0.25:  # in a row
                for _ in range(int(rng.integers(2, 4))):
                    y = self.layer(y, int(self.pick(2, channels, 3 * channels)), kept=rng.random() < 0.8)
                    self.seen.append(y)
            else:
                outputs = channels if rng.random() < 0.8 else int(self.pick(4, 6, 8))
                stride = 2 if not self.matrices and rng.random() < 0.2 else 1
                x, other = y, g.op("Tanh", y)
                parts = [self.branch(x, other, outputs, stride) for _ in range(int(rng.integers(2, 6)))]
                self.seen += parts
                y = self.join(parts)
            self.seen.append(y)
            y = g.op("Relu", y) if rng.random() < 0.5 else y
        if rng.random() < 0.15:
            g.output(g.op("Sigmoid", str(rng.choice(self.seen))))
        if rng.random() < 0.1 and len(self.seen) > 2:
            g.output(str(rng.choice(self.seen[1:-1])))
        if y not in g.outputs and y != self.x:
            g.output(y)
        return g


def random_sums(seed: int) -> Build:
    return Sums(seed).grow()
