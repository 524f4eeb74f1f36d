"""Random small networks whose batch norms are in each other's way: sums, concats, padding, outputs."""

from __future__ import annotations

import numpy as np

from bnfold.fold.graph import Graph, Tensor
from bnfold.fold.roles import Map
from tests.fold.nets import Net

MOST, CHANNELS = 8, 3  # batch norms, and the channels of most tensors
KINDS = {"norm": 0.42, "relu": 0.18, "conv": 0.12, "add": 0.18, "pool": 0.05, "concat": 0.05}  # how often
PADDED = "its windows see zero padding"


def random_net(seed: int, negative: float) -> Graph:
    """At most 8 batch norms; `negative`: the share of their scales that is."""
    net = Net(seed)
    rng = net.rng
    live = [net.conv(net.tensor(CHANNELS, "graph input"), CHANNELS)]
    left = int(rng.integers(2, MOST + 1))
    while left and len(net.graph.nodes) <= 40:
        x = live[rng.integers(len(live))] if rng.random() < 0.7 else live[-1]
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        width, other = _width(x), live[rng.integers(len(live))]
        if kind == "norm":
            live.append(_norm(net, x, negative, f"bn{left}"))
            left -= 1
        elif kind == "relu":
            live.append(net.relu(x))
        elif kind == "conv":
            padded = PADDED if rng.random() < 0.5 else ""
            live.append(net.conv(x, int(rng.choice([CHANNELS, CHANNELS, 2])), padded))
        elif kind == "pool":
            live.append(net.node("MaxPool", Map("positive", flat=(2, 3)), [x], width))
        elif kind == "add":
            mates = [t for t in live if _width(t) == width and t is not x]
            if mates:
                live.append(net.add(x, mates[rng.integers(len(mates))]))
        elif width + _width(other) <= 2 * CHANNELS:
            live.append(net.concat(x, other))
    for end in [t for t in net.graph.tensors if not t.readers]:
        (net.conv(end, 2) if rng.random() < 0.8 else end).fixed = "graph output"
    return net.graph


def _norm(net: Net, x: Tensor, negative: float, name: str) -> Tensor:
    sign = np.where(net.rng.random(_width(x)) < negative, -1.0, 1.0)
    return net.norm(x, name, scale=net.rng.uniform(0.5, 1.5, sign.size) * sign)


def _width(tensor: Tensor) -> int:
    return tensor.shape[1]  # type: ignore[index,return-value]
