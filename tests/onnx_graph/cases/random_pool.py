"""The ground of the random graphs: their tensors, constants and nodes so far."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Pool:
    """Tensors are (2, C, H, W), (2, L, C) or (2, C); `pool` holds their names and shapes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.pool: list[tuple[str, tuple[int, ...]]] = []
        self.inputs: list[tuple[str, tuple[int, ...]]] = []
        self.used: set[str] = set()
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def const(self, array: object, dtype: type = np.float32) -> str:
        name = self.name("w")
        array = np.asarray(array, dtype)
        if self.rng.random() < 0.15:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        name = self.name(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{name}", **attributes))
        self.used |= set(inputs)
        self.pool.append((name, shape))
        return name

    def pick(self, rank: int | None = None) -> tuple[str, tuple[int, ...]] | None:
        fits = [t for t in self.pool if rank is None or len(t[1]) == rank]
        if not fits:
            return None
        # late tensors more often, so that graphs are deep
        weights = np.arange(1, len(fits) + 1.0) ** 2
        return fits[int(self.rng.choice(len(fits), p=weights / weights.sum()))]

    def scales(self, channels: int) -> np.ndarray:
        gamma = self.rng.uniform(0.4, 1.6, channels)
        kind = self.rng.random()
        if kind < 0.35:
            gamma *= self.rng.choice([-1, 1], channels)
        elif kind < 0.44:
            gamma[self.rng.integers(channels)] = 0
        elif kind < 0.54:
            gamma[:] = 1.25
        return gamma
