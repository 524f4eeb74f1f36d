"""Random ONNX graphs from all roles, small enough to run in milliseconds.

A graph grows from one or two inputs: each step takes random tensors of the pool and adds an operator that
fits. Batch norms are frequent, so are tensors with several readers. Weights are scaled so that values stay
near one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.onnx_graph.cases.random_pool import Pool

OPSET = 19


class Grower(Pool):
    """A graph that grows by one operator at a time."""

    def conv(self) -> None:
        if (t := self.pick(4)) is None:
            return
        x, (n, c, h, w) = t
        k = int(self.rng.choice([1, 3]))
        pad = int(self.rng.integers(0, k // 2 + 1))
        groups = c if self.rng.random() < 0.25 else (2 if c % 2 == 0 and self.rng.random() < 0.25 else 1)
        out = c if groups == c else int(self.rng.choice([2, 4, 6]))
        if min(h, w) + 2 * pad < k:
            return
        weight = self.rng.standard_normal((out, c // groups, k, k)) / np.sqrt(c // groups * k * k)
        inputs = [x, self.quantized(weight) if self.rng.random() < 0.1 else self.const(weight)]
        if self.rng.random() < 0.5:
            inputs.append(self.const(self.rng.standard_normal(out) * 0.3))
        shape = (n, out, h + 2 * pad - k + 1, w + 2 * pad - k + 1)
        self.op("Conv", inputs, shape, pads=[pad] * 4, group=groups, kernel_shape=[k, k])

    def quantized(self, weight: np.ndarray) -> str:
        """Integers with one scale, or one for each output or input channel."""
        axis = int(self.rng.integers(-1, 2))
        scale = np.full(weight.shape[axis] if axis >= 0 else (), np.abs(weight).max() / 127)
        name = self.name("dequantized")
        inputs = [self.const(np.round(weight / scale.max()), np.int8), self.const(scale)]
        stated = {"axis": axis} if axis >= 0 else {}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=name, **stated))
        return name

    def einsum(self) -> None:
        if (t := self.pick(3)) is None:
            return
        x, (n, length, c) = t
        equation, shape = (
            ("blc,oc->blo", (n, length, 4)),
            ("blc,chd->bhld", (n, 2, length, 3)),  # a weight of two output axes
            ("blc,lco->bol", (n, 4, length)),  # a matrix for each
        )[int(self.rng.integers(3))]
        sizes = {"l": length, "c": c, "o": 4, "h": 2, "d": 3}
        weight = [sizes[label] for label in equation.split("->")[0].split(",")[1]]
        array = self.rng.standard_normal(weight) / np.sqrt(c)
        self.op("Einsum", [x, self.const(array)], shape, equation=equation)

    def picks(self) -> None:
        """Entries taken, placed or summed up along one axis."""
        if (t := self.pick(4)) is None:
            return
        x, shape = t
        axis = int(self.rng.integers(1, 4))
        if self.rng.random() < 0.5:
            self.op("CumSum", [x, self.const(axis, np.int64)], shape)
            return
        places = self.const(self.rng.integers(0, shape[axis], shape), np.int64)
        if self.rng.random() < 0.5:
            self.op("GatherElements", [x, places], shape, axis=axis)
            return
        zeros = self.const(np.zeros(shape))
        self.op("ScatterElements", [zeros, places, x], shape, axis=axis, reduction="add")

    def conv_transpose(self) -> None:
        if (t := self.pick(4)) is None or t[1][2] > 8:
            return
        x, (n, c, h, w) = t
        k, s = (1, 1) if self.rng.random() < 0.4 else (2, 2)
        groups = 2 if c % 2 == 0 and self.rng.random() < 0.4 else 1
        weight = self.rng.standard_normal((c, 4 // groups, k, k)) / np.sqrt(c)
        self.op("ConvTranspose", [x, self.const(weight)], (n, 4, h * s, w * s), strides=[s, s], group=groups)

    def batch_norm(self) -> None:
        if (t := self.pick()) is None:
            return
        x, shape = t
        c = shape[1]
        parts = [self.scales(c), *(self.rng.standard_normal((2, c)) * 0.5), self.rng.uniform(0.5, 2, c)]
        if self.rng.random() < 0.2:
            parts[1], parts[2] = np.zeros(c), np.zeros(c)
        self.op("BatchNormalization", [x, *(self.const(p) for p in parts)], shape)

    def scale_or_shift(self) -> None:
        if (t := self.pick()) is None:
            return
        x, shape = t
        op = str(self.rng.choice(["Mul", "Div", "Add", "Sub"]))
        size, kind = [1] * len(shape), self.rng.random()
        if kind < 0.8:  # most along the channels, some along other axes
            axis = (
                int(self.rng.integers(len(shape))) if kind < 0.2 else len(shape) - 1 if len(shape) == 3 else 1
            )
            size[axis] = shape[axis]
        value = self.rng.uniform(0.5, 1.5, size) * (
            self.rng.choice([-1, 1], size) if self.rng.random() < 0.4 else 1
        )
        kind = self.rng.random()
        if kind < 0.15:  # stored in full
            value = np.broadcast_to(1.0 if kind < 0.05 else value, shape)
        elif kind < 0.55:
            while value.ndim and value.shape[0] == 1:
                value = value[0]
        operands = [x, self.const(value)]
        if op != "Div" and self.rng.random() < 0.4:
            operands.reverse()
        self.op(op, operands, shape)

    def unary(self) -> None:
        if (t := self.pick()) is None:
            return
        op, attributes = self.choose(
            ("Relu", {}), ("Relu", {}), ("Relu", {}),
            ("LeakyRelu", {"alpha": 0.2}), ("Identity", {}), ("Sigmoid", {}),
            ("Abs", {}), ("Neg", {}),
            ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("Celu", {"alpha": 0.7}), ("Tanh", {}),
            ("Softmax", {"axis": 1}),
        )  # fmt: skip
        self.op(op, [t[0]], t[1], **attributes)

    def choose(self, *options: tuple) -> tuple:
        return options[int(self.rng.integers(len(options)))]

    def prelu(self) -> None:
        if (t := self.pick(4)) is None:
            return
        slope = self.rng.uniform(0.1, 0.5, (t[1][1], 1, 1))
        self.op("PRelu", [t[0], self.const(slope)], t[1])

    def clip(self) -> None:
        if (t := self.pick()) is None:
            return
        low, high = self.choose((0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 0.5))
        inputs = [
            t[0],
            self.const(low) if low is not None else "",
            self.const(high) if high is not None else "",
        ]
        self.op("Clip", inputs if inputs[2] else inputs[:2], t[1])

    def pool_window(self) -> None:
        if (t := self.pick(4)) is None or min(t[1][2:]) < 3:
            return
        x, (n, c, h, w) = t
        op, pad, extra = self.choose(
            ("MaxPool", 0, {}), ("MaxPool", 1, {}), ("AveragePool", 0, {}), ("AveragePool", 1, {}),
            ("AveragePool", 1, {"count_include_pad": 1}),
        )  # fmt: skip
        shape = (n, c, h + 2 * pad - 2, w + 2 * pad - 2)
        self.op(op, [x], shape, kernel_shape=[3, 3], pads=[pad] * 4, **extra)

    def reduce(self) -> None:
        if (t := self.pick(4)) is None:
            return
        x, (n, c, _, _) = t
        op = str(
            self.rng.choice(
                ["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"]
            )
        )
        if op.startswith("Global"):
            self.op(op, [x], (n, c, 1, 1))
            return
        keep = int(self.rng.integers(2))
        axes = self.const([2, 3], np.int64)
        self.op(op, [x, axes], (n, c, 1, 1) if keep else (n, c), keepdims=keep)

    def add(self) -> None:
        self.pair(str(self.rng.choice(["Add", "Add", "Add", "Sub", "Sum", "Mean", "Max", "Min", "Mul"])))

    def pair(self, op: str) -> None:
        if (t := self.pick()) is None:
            return
        x, shape = t
        fits = [name for name, s in self.pool if s == shape]
        other = x if self.rng.random() < 0.1 else fits[int(self.rng.integers(len(fits)))]
        if op in ("Add", "Mul") and len(shape) == 4 and self.rng.random() < 0.3:
            thin = [name for name, s in self.pool if len(s) == 4 and s[1] == shape[1] and s[2:] == (1, 1)]
            other = thin[0] if thin else other
        if op in ("Max", "Min") and self.rng.random() < 0.4:
            other = self.number()
        self.op(op, [x, other], shape)

    def number(self) -> str:
        """A constant of one element, which grows where what it meets changes by channel."""
        number = self.rng.choice([0.0, self.rng.standard_normal()])
        return self.const(np.full((1,) * int(self.rng.integers(2)), number))

    def concat(self) -> None:
        if (t := self.pick()) is None:
            return
        x, shape = t
        axis = len(shape) - 1 if len(shape) == 3 else 1
        fits = [u for u in self.pool if len(u[1]) == len(shape)]
        fits = [
            u
            for u in fits
            if all(a == b for i, (a, b) in enumerate(zip(u[1], shape, strict=True)) if i != axis)
        ]
        parts = [fits[int(i)] for i in self.rng.integers(len(fits), size=int(self.rng.integers(1, 3)))]
        total = list(shape)
        total[axis] += sum(p[1][axis] for p in parts)
        names = [x, *(p[0] for p in parts)]
        if self.rng.random() < 0.1:
            piece = list(shape)
            piece[axis] = 2
            total[axis] += 2
            names.append(self.const(self.rng.standard_normal(piece)))
        if total[axis] <= 24:
            self.op("Concat", names, tuple(total), axis=axis)

    def split(self) -> None:
        if (t := self.pick(4)) is None or t[1][1] < 2:
            return
        x, (n, c, h, w) = t
        first = int(self.rng.integers(1, c))
        kind = self.rng.random()
        if kind < 0.5:
            names = [self.name("part"), self.name("part")]
            node = helper.make_node(
                "Split",
                [x, self.const([first, c - first], np.int64)],
                names,
                axis=1,
                name=f"Split_{names[0]}",
            )
            self.nodes.append(node)
            self.used.add(x)
            self.pool += [(names[0], (n, first, h, w)), (names[1], (n, c - first, h, w))]
            if kind < 0.2:  # side by side again, perhaps the other way round
                self.op("Concat", [*names][:: 1 if kind < 0.1 else -1], t[1], axis=1)
        elif kind < 0.75:
            ints = [self.const(v, np.int64) for v in ([0], [first], [1])]
            self.op("Slice", [x, *ints], (n, first, h, w))
        else:
            order = self.rng.permutation(c)
            self.op("Gather", [x, self.const(order, np.int64)], t[1], axis=1)

    def shuffle(self) -> None:
        """Pixels to channels and back, channel shuffle, tokens."""
        if (t := self.pick(4)) is None:
            return
        x, (n, c, h, w) = t
        kind = int(self.rng.integers(6))
        if kind == 0 and h % 2 == 0 and w % 2 == 0:
            self.op("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2)
        elif kind == 1 and c % 4 == 0:
            mode = str(self.rng.choice(["DCR", "CRD"]))
            self.op("DepthToSpace", [x], (n, c // 4, h * 2, w * 2), blocksize=2, mode=mode)
        elif kind == 2 and c % 2 == 0:
            y = self.op("Reshape", [x, self.const([n, 2, c // 2, h, w], np.int64)], (n, 2, c // 2, h, w))
            z = self.op("Transpose", [y], (n, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
            self.pool = [p for p in self.pool if len(p[1]) != 5]
            self.op("Reshape", [z, self.const([n, c, h, w], np.int64)], (n, c, h, w))
        elif kind == 3:
            y = self.op("Reshape", [x, self.const([n, c, -1], np.int64)], (n, c, h * w))
            self.op("Transpose", [y], (n, h * w, c), perm=[0, 2, 1])
        elif kind == 4:
            self.op("Flatten", [x], (n, c * h * w))
        elif h == w == 1:
            self.op("Squeeze", [x, self.const([2, 3], np.int64)], (n, c))

    def pad(self) -> None:
        if (t := self.pick(4)) is None or min(t[1][2:]) < 2:
            return
        x, (n, c, h, w) = t
        mode = str(self.rng.choice(["constant", "constant", "reflect", "edge"]))
        inputs = [x, self.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64)]
        if mode == "constant" and self.rng.random() < 0.5:
            inputs.append(self.const(0.5))
        self.op("Pad", inputs, (n, c, h + 2, w + 2), mode=mode)

    def resize(self) -> None:
        if (t := self.pick(4)) is None or t[1][2] > 8:
            return
        x, (n, c, h, w) = t
        mode = str(self.rng.choice(["nearest", "linear"]))
        self.op("Resize", [x, "", self.const([1, 1, 2, 2])], (n, c, h * 2, w * 2), mode=mode)

    def matmul(self) -> None:
        rank = int(self.rng.choice([2, 3, 4]))
        if (t := self.pick(rank)) is None:
            return
        x, shape = t
        left = rank > 2 and self.rng.random() < 0.3
        inner = shape[-2 if left else -1]
        weight = self.const(self.rng.standard_normal((4, inner) if left else (inner, 4)) / np.sqrt(inner))
        goal = (*shape[:-2], 4, shape[-1]) if left else (*shape[:-1], 4)
        y = self.op("MatMul", [weight, x] if left else [x, weight], goal)
        for _ in range(int(self.rng.integers(3))):  # scales that pass it, or go into it
            size = [1] * rank
            axis = int(self.rng.integers(1, rank))
            size[axis] = goal[axis]
            factors = self.const(self.rng.uniform(0.5, 2, size))
            y = self.op(str(self.rng.choice(["Mul", "Div"])), [y, factors], goal)

    def gemm(self) -> None:
        if (t := self.pick(2)) is None:
            return
        x, (n, c) = t
        trans = int(self.rng.integers(2))
        weight = self.rng.standard_normal((4, c) if trans else (c, 4)) / np.sqrt(c)
        bias = self.choose([], [self.const(self.rng.standard_normal(4))], [self.const(0.5)])
        beta = 0.0 if self.rng.random() < 0.2 else 1.3
        self.op("Gemm", [x, self.const(weight), *bias], (n, 4), transB=trans, alpha=0.8, beta=beta)

    def attention(self) -> None:
        if (t := self.pick(3)) is None:
            return
        x, (n, length, c) = t
        y = self.op("Transpose", [x], (n, c, length), perm=[0, 2, 1])
        z = self.op("MatMul", [x, y], (n, length, length))
        self.op("MatMul", [self.op("Softmax", [z], (n, length, length), axis=-1), x], (n, length, c))

    def norm(self) -> None:
        if (t := self.pick(4)) is None or t[1][2] * t[1][3] < 4:
            return
        c = t[1][1]
        parts = [self.const(self.rng.uniform(0.5, 1.5, c)), self.const(self.rng.standard_normal(c))]
        self.op("InstanceNormalization", [t[0], *parts], t[1])

    def layer_norm(self) -> None:
        if (t := self.pick(3)) is None or t[1][2] < 4:
            return
        c = t[1][2]
        parts = [self.const(self.rng.uniform(0.5, 1.5, c)), self.const(self.rng.standard_normal(c))]
        self.op("LayerNormalization", [t[0], *parts], t[1], axis=-1)

    def recurrent(self) -> None:
        if (t := self.pick(3)) is None:
            return
        n, length, c = t[1]
        weight = self.rng.standard_normal((1, 9, c)) / np.sqrt(c)
        again = self.rng.standard_normal((1, 9, 3)) / 2
        bias = [self.const(self.rng.standard_normal((1, 18)))] if self.rng.random() < 0.5 else []
        y = self.op(
            "GRU", [t[0], self.const(weight), self.const(again), *bias], (n, 1, length, 3), hidden_size=3
        )
        self.op("Squeeze", [y, self.const([1], np.int64)], (n, length, 3))

    def where(self) -> None:
        if (t := self.pick(4)) is None:
            return
        x, shape = t
        fits = [name for name, s in self.pool if s == shape]
        mask = self.const(self.rng.random(shape[2:]) < 0.5, np.bool_)
        other = self.number() if self.rng.random() < 0.4 else fits[int(self.rng.integers(len(fits)))]
        self.op("Where", [mask, x, other], shape)

    def rivals(self) -> None:
        """A batch norm over a Concat, and one over each of its operands: only the two small ones can both go.
        """
        if (t := self.pick(4)) is None:
            return
        x, (n, c, h, w) = t
        y, z = (
            self.op("Conv", [x, self.const(self.rng.standard_normal((2, c, 1, 1)) / c)], (n, 2, h, w))
            for _ in range(2)
        )
        whole = self.op("Concat", [y, z], (n, 4, h, w), axis=1)
        for name, channels in ((whole, 4), (y, 2), (z, 2)):
            parts = [self.scales(channels), *(self.rng.standard_normal((2, channels))), np.ones(channels)]
            norm = self.op("BatchNormalization", [name, *(self.const(p) for p in parts)], (n, channels, h, w))
            self.op("Sigmoid", [norm], (n, channels, h, w))

    def detour(self) -> None:
        """A sum whose first operand looks free to take a shift and is not."""
        if (t := self.pick(4)) is None:
            return
        x, (n, c, h, w) = t
        weights = [self.const(self.rng.standard_normal((3, c, 1, 1)) / c) for _ in range(2)]
        a = self.op("Relu", [self.op("Conv", [x, weights[0]], (n, 3, h, w))], (n, 3, h, w))
        b = self.op("Identity", [self.op("Conv", [x, weights[1]], (n, 3, h, w))], (n, 3, h, w))
        s = self.op("Add", [self.op("Identity", [a], (n, 3, h, w)), b], (n, 3, h, w))
        parts = [self.rng.uniform(0.5, 2, 3), *(self.rng.standard_normal((2, 3))), np.ones(3)]
        self.op("BatchNormalization", [s, *(self.const(p) for p in parts)], (n, 3, h, w))

    def grow(self, steps: int) -> onnx.ModelProto:
        side = int(self.rng.choice([4, 5, 6]))
        for _ in range(int(self.rng.integers(1, 3))):
            shape = (2, int(self.rng.choice([2, 3, 4])), side, side)
            self.inputs.append((self.name("x"), shape))
        if self.rng.random() < 0.3:
            self.inputs.append((self.name("tokens"), (2, 5, 4)))
        self.pool += self.inputs
        operators: list[Callable[[], None]] = [
            *[self.conv] * 6, *[self.batch_norm] * 8, *[self.unary] * 4, *[self.add] * 4,
            self.concat, self.concat,
            self.split, self.scale_or_shift, self.scale_or_shift, self.prelu, self.clip,
            self.pool_window, self.reduce,
            self.shuffle, self.shuffle, self.pad, self.resize, self.matmul, self.gemm,
            self.attention, self.norm,
            self.layer_norm, self.recurrent, self.where, self.conv_transpose, self.rivals, self.detour,
            self.add, self.einsum, self.picks, self.conv, self.add,
        ]  # fmt: skip
        while self.count < 3 or len(self.nodes) < steps:
            operators[int(self.rng.integers(len(operators)))]()
        loose = [
            (name, shape)
            for name, shape in self.pool
            if name not in self.used and (name, shape) not in self.inputs
        ]
        if not loose:
            loose = [(self.op("Relu", [self.pool[-1][0]], self.pool[-1][1]), self.pool[-1][1])]
        infos = [
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in group]
            for group in (self.inputs, loose)
        ]
        graph = helper.make_graph(self.nodes, "random", infos[0], infos[1], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def random_model(seed: int, steps: int = 16) -> onnx.ModelProto:
    """A valid model that is the same for the same seed."""
    return Grower(seed).grow(steps)
