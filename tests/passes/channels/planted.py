"""Random models with dead channels: planted into the graphs of random_graphs.py, and nets made for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.random_graphs import random_model

__all__ = ["Grower", "planted"]


def planted(seed: int, steps: int = 20) -> onnx.ModelProto:
    """A random graph in which filters, columns and scales are zero, and biases far below zero."""
    model = random_model(seed, steps)
    rng = np.random.default_rng(seed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            stored[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        if node.op_type in ("InstanceNormalization", "LayerNormalization"):
            # planted zeros make channels constant: a small epsilon would show 300 times their rounding
            node.attribute.append(helper.make_attribute("epsilon", 0.1))
        names = [name for name in node.input if name in stored]
        if not names or rng.random() < 0.3:
            continue
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            weight = numpy_helper.to_array(stored[names[0]]).copy()
            if weight.ndim < 2:  # a bias: the weight is quantized
                continue
            for axis in range(2):
                for index in range(weight.shape[axis]):
                    if rng.random() < 0.25:
                        weight[(slice(None),) * axis + (index,)] = 0
            put(stored[names[0]], weight)
            if len(names) > 1:
                bias = numpy_helper.to_array(stored[names[1]]).copy()
                put(stored[names[1]], np.where(rng.random(bias.shape) < 0.3, rng.choice([-90.0, 0.0]), bias))
        if node.op_type == "BatchNormalization":
            gamma = numpy_helper.to_array(stored[names[0]]).copy()
            put(stored[names[0]], np.where(rng.random(gamma.shape) < 0.4, 0.0, gamma))
    return model


def put(tensor: onnx.TensorProto, value: object) -> None:
    array = np.asarray(value, numpy_helper.to_array(tensor).dtype)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


class Grower:
    """One random net of one output, whose layers have dead channels of all kinds."""

    def __init__(self, seed: int, dtype: str = "float32", opset: int = 18) -> None:
        self.rng = np.random.default_rng(seed)
        self.g = Build(opset, seed=seed, dtype=dtype)

    def some(self, count: int, share: float = 0.35) -> np.ndarray:
        return self.rng.random(count) < share

    def conv(self, x: str, outputs: int, k: int = 1, group: int = 1, pads: int = 0, bias: bool = True) -> str:
        """A conv with filters and columns of zeros, and biases that no input lifts above zero."""
        g, inputs = self.g, self.g.channels(x)
        weight = g.normal((outputs, inputs // group, k, k)) / np.sqrt(inputs // group * k * k)
        weight[self.some(outputs)] = 0
        if group == 1:
            weight[:, self.some(inputs, 0.15)] = 0
        shift = np.where(self.some(outputs, 0.15), -60.0, g.normal((outputs,), 0.5))
        more = [g.const(shift, "bias")] if bias else []
        how = {"pads": [pads] * 4} if pads else {}
        how |= {"group": group} if group != 1 else {}
        return g.op("Conv", x, g.const(weight, "weight"), *more, **how)

    def norm(self, x: str) -> str:
        g = self.g
        gamma, beta, mean, var = g.norm_parameters(g.channels(x), "zero")
        return g.op("BatchNormalization", x, gamma, beta, mean, var)

    def act(self, x: str) -> str:
        g = self.g
        kind = self.rng.integers(9)
        if kind < 3:
            return g.op("Relu", x)
        if kind < 5:
            return g.op("Clip", x, g.const(0.0), g.const(6.0))
        if kind == 5:
            return g.op("HardSigmoid", x)
        if kind == 6:
            return g.op("Mul", x, g.op("Sigmoid", x))
        if kind == 7:
            return g.op("PRelu", x, g.const(self.rng.uniform(0.1, 0.5, (g.channels(x), 1, 1)), "slope"))
        return g.op(str(self.rng.choice(["Tanh", "LeakyRelu", "Elu", "HardSwish", "Softplus"])), x)

    def layer(self, x: str, outputs: int | None = None) -> str:
        k = int(self.rng.choice([1, 3]))
        outputs = outputs or int(self.rng.integers(3, 9))
        y = self.conv(x, outputs, k, pads=k // 2, bias=bool(self.rng.random() < 0.8))
        y = self.norm(y) if self.rng.random() < 0.5 else y
        return self.act(y) if self.rng.random() < 0.8 else y

    def depthwise(self, x: str) -> str:
        channels = self.g.channels(x)
        return self.act(self.conv(x, channels * int(self.rng.choice([1, 1, 2])), 3, channels, 1))

    def grouped(self, x: str) -> str:
        channels = self.g.channels(x)
        return self.act(self.conv(x, 6, 1, 2)) if channels % 2 == 0 else x

    def residual(self, x: str) -> str:
        y = x
        for _ in range(int(self.rng.integers(1, 3))):
            y = self.layer(y, self.g.channels(x))
        return self.g.op(str(self.rng.choice(["Add", "Sum", "Sub"])), x, y)

    def squeeze(self, x: str) -> str:
        """Squeeze and excitation."""
        y = self.act(self.conv(self.g.op("GlobalAveragePool", x), 4))
        gate = self.g.op(str(self.rng.choice(["Sigmoid", "HardSigmoid"])), self.conv(y, self.g.channels(x)))
        return self.g.op("Mul", *self.rng.permutation([x, gate]).tolist())

    def branches(self, x: str) -> str:
        g = self.g
        parts = [self.layer(x) for _ in range(int(self.rng.integers(1, 3)))]
        parts += [x] if self.rng.random() < 0.5 else []
        if self.rng.random() < 0.2:
            parts.append(g.const(g.normal((2, 2, *(int(s or 0) for s in g.shape(x)[2:]))), "constant"))
        return g.op("Concat", *parts, axis=1)

    def parts(self, x: str) -> str:
        g, channels = self.g, self.g.channels(x)
        if channels == 1:
            return x
        kind, cut = self.rng.integers(4), int(self.rng.integers(1, channels))
        if kind == 0 and channels > 3:
            sizes = g.const(np.array([cut, channels - cut]), "sizes", dtype="int64")
            a, b = g.ops("Split", x, sizes, count=2, axis=1)
            return g.op("Concat", b, self.layer(a), axis=1)
        if kind == 1:
            bounds = [g.const(np.array([v]), "bound", dtype="int64") for v in (0, cut, 1)]
            return g.op("Slice", x, *bounds)
        if kind == 2:
            return g.op("Gather", x, g.const(self.rng.permutation(channels), "order", dtype="int64"), axis=1)
        return g.op("Concat", x, g.op("Neg", x), axis=1)

    def window(self, x: str) -> str:
        g, size = self.g, int(self.g.shape(x)[2] or 0)
        kind = self.rng.integers(5)
        if kind == 0 and size > 2:
            return g.op("MaxPool", x, kernel_shape=[2, 2])
        if kind == 1 and size > 2:
            return g.op(
                "AveragePool",
                x,
                kernel_shape=[3, 3],
                pads=[1] * 4,
                count_include_pad=int(self.rng.integers(2)),
            )
        if kind == 2:
            pads = g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads", dtype="int64")
            return g.op("Pad", x, pads)
        if kind == 3 and size < 8:
            sizes = g.const(np.array([*g.shape(x)[:2], 2 * size, 2 * size]), "sizes", dtype="int64")
            return g.op("Resize", x, "", "", sizes)
        return g.per_channel(
            str(self.rng.choice(["Mul", "Add"])),
            x,
            g.normal((g.channels(x),)) * self.some(g.channels(x), 0.6),
        )

    def deconv(self, x: str) -> str:
        g, inputs = self.g, self.g.channels(x)
        weight = g.normal((inputs, 4, 2, 2)) / np.sqrt(inputs)
        weight[:, self.some(4)] = 0
        weight[self.some(inputs, 0.2)] = 0
        return g.op("ConvTranspose", x, g.const(weight, "weight"), g.const(g.normal((4,)), "bias"))

    def head(self, x: str) -> str:
        g = self.g
        kind = self.rng.integers(4)
        if kind == 0:
            y = g.op("Flatten", x)
        elif kind == 1:
            y = g.op("Flatten", g.op("GlobalAveragePool", x))
        elif kind == 2:
            n, c, h, w = (int(s or 0) for s in g.shape(x))
            y = g.op("Reshape", x, g.const(np.array([n, c, h * w]), "shape", dtype="int64"))
            return g.matmul(g.op("Relu", g.matmul(g.op("Transpose", y, perm=[0, 2, 1]), 5, bias=True)), 3)
        else:
            return self.conv(x, 3)
        weight = g.normal((g.channels(y), 6)) / np.sqrt(g.channels(y))
        weight[:, self.some(6)] = 0
        y = g.op(
            "Relu",
            g.op("Gemm", y, g.const(weight, "weight"), g.const(g.normal((6,)), "bias"), alpha=0.8, beta=1.3),
        )
        return g.gemm(y, 3, (3,), transB=1)

    def grow(self) -> Build:
        g = self.g
        size = int(self.rng.choice([4, 5, 6]))
        y = self.layer(g.input("x", (2, 3, size, size)))
        steps: list[Callable[[str], str]] = [
            *[self.layer] * 3, *[self.depthwise] * 2, *[self.residual] * 3, *[self.squeeze] * 2,
            self.branches, self.branches, self.parts, self.window, self.window, self.grouped, self.deconv,
        ]  # fmt: skip
        for _ in range(int(self.rng.integers(2, 8))):
            y = steps[int(self.rng.integers(len(steps)))](y)
        g.output(self.head(y))
        return g
