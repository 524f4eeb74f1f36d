"""A tiny builder of solver graphs, without any file format: enough to test the method by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold.graph import Constant, Graph, Node, Role, Tensor
from bnfold.fold.moves import Identity
from bnfold.fold.roles import Affine, Closed, Concat, Linear, Map, Move, Sum


class Net:
    """Tensors are (1, C, 5, 5); every method adds one node and returns its output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph()

    def tensor(self, channels: int, fixed: str = "") -> Tensor:
        tensor = Tensor(f"t{len(self.graph.tensors)}", (1, channels, 5, 5), fixed=fixed)
        self.graph.tensors.append(tensor)
        return tensor

    def node(self, op: str, role: Role, inputs: list[Tensor], channels: int, name: str = "") -> Tensor:
        output = self.tensor(channels)
        node = Node(name or f"{op}{len(self.graph.nodes)}", op, role, list(inputs), [output])
        output.producer = node
        for slot, tensor in enumerate(inputs):
            tensor.readers.append((node, slot))
        self.graph.nodes.append(node)
        return output

    def constant(self, value: Any) -> Constant:
        value = np.asarray(value, np.float32)
        return Constant(f"w{self.rng.integers(1 << 40)}", lambda: value, value.shape, "float32")

    def conv(self, x: Tensor, channels: int = 4, padded: str = "", name: str = "") -> Tensor:
        inner = x.shape[1]  # type: ignore[index]
        weight = self.constant(self.rng.standard_normal((channels, inner, 1, 1)))
        role = Linear(
            weight, 1, 0, 1, 1, (1, channels, inner, 1, 1), 0, 1, 2, bias=self.constant(np.zeros(channels)),
            bias_slot=2, padded=padded,
        )  # fmt: skip
        return self.node("Conv", role, [x], channels, name)

    def norm(self, x: Tensor, name: str = "", scale: Any = None, shift: Any = None) -> Tensor:
        channels: int = x.shape[1]  # type: ignore[index,assignment]
        gamma = np.asarray(self.rng.uniform(0.5, 2, channels) if scale is None else scale, np.float64)
        beta = np.asarray(self.rng.standard_normal(channels) if shift is None else shift, np.float64)
        values = {"gamma": gamma, "beta": beta, "mean": np.zeros(channels), "var": np.ones(channels)}
        constants = {key: (i + 1, self.constant(value)) for i, (key, value) in enumerate(values.items())}
        shape = (1, channels, 1, 1)
        role = Affine(gamma.reshape(shape), beta.reshape(shape), "norm", constants=constants)
        return self.node("BatchNormalization", role, [x], channels, name)

    def relu(self, x: Tensor, name: str = "") -> Tensor:
        return self.node("Relu", Map("positive", "Relu does not pass a shift"), [x], x.shape[1], name)  # type: ignore

    def add(self, *xs: Tensor, name: str = "") -> Tensor:
        return self.node("Add", Sum((1.0,) * len(xs)), list(xs), xs[0].shape[1], name)  # type: ignore

    def concat(self, *xs: Tensor, name: str = "") -> Tensor:
        sizes: tuple[int, ...] = tuple(x.shape[1] for x in xs)  # type: ignore
        return self.node("Concat", Concat(1, sizes), list(xs), sum(sizes), name)

    def close(self, x: Tensor, name: str = "") -> Tensor:
        return self.node("Sigmoid", Closed("Sigmoid is not linear"), [x], x.shape[1], name)  # type: ignore

    def average(self, x: Tensor, name: str = "") -> Tensor:
        return self.node("AveragePool", Map("any", "", flat=(2, 3)), [x], x.shape[1], name)  # type: ignore

    def move(self, x: Tensor, name: str = "") -> Tensor:
        return self.node("Identity", Move(Identity()), [x], x.shape[1], name)  # type: ignore
