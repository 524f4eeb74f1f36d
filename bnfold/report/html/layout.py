"""Where the nodes of a graph stand: in layers from top to bottom, with few crossings and straight chains.

The way of Sugiyama, Tagawa and Toda (1981) in four steps: layers by the longest path, points on the edges
that pass layers, the order in each layer by the mean place of neighbours, and places that are as near to the
mean of neighbours as the distance between nodes allows (least squares, exactly, by pooling). All of it is
deterministic, and takes about linear time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["COLUMN", "ROW", "Edge", "Placed", "layout"]

COLUMN, ROW = 180.0, 62.0  # how far apart nodes beside each other are, and layers
NARROW = 14.0  # how far apart edges are that pass a layer
SWEEPS = 8  # of ordering, and of placing
MOST_POINTS = 4  # on edges, for each node; the longest edges have none beyond that
Edge = tuple[int, int]  # places of two nodes


class Placed(NamedTuple):
    """x, y: the middle of each node. bends: for each edge, the points between its ends."""

    x: list[float]
    y: list[float]
    bends: list[list[tuple[float, float]]]


def layout(count: int, edges: Sequence[Edge]) -> Placed:
    """Places for nodes 0 to count - 1.

    Args:
        count: how many nodes there are, in topological order; edges that go back are not minded.
        edges: from node to node.
    """
    layer = _layers(count, edges)
    chains = _chains(count, edges, layer)
    above, below, rows = _rows(count, edges, layer, chains)
    _order(rows, above, below)
    x = _places(count, rows, above, below)
    left = min(x, default=0.0)
    x = [each - left for each in x]
    y = [layer[v] * ROW for v in range(len(layer))]
    return Placed(x[:count], y[:count], [[(x[v], y[v]) for v in chain] for chain in chains])


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """The longest path to each node; what reads nothing stands right above its first reader."""
    layer, reads, first = [0] * count, [False] * count, [-1] * count
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        if a < b:
            layer[b], reads[b] = max(layer[b], layer[a] + 1), True
    for a, b in edges:
        if not reads[a] and a < b:
            first[a] = layer[b] - 1 if first[a] < 0 else min(first[a], layer[b] - 1)
    return [max(first[v], layer[v]) for v in range(count)]


def _chains(count: int, edges: Sequence[Edge], layer: list[int]) -> list[list[int]]:
    """The points on each edge that passes layers, as further nodes, which are added to `layer`."""
    chains: list[list[int]] = [[] for _ in edges]
    room = MOST_POINTS * count
    for i in sorted(range(len(edges)), key=lambda i: layer[edges[i][1]] - layer[edges[i][0]]):
        a, b = edges[i]
        length = layer[b] - layer[a] - 1
        if length > room:
            break
        for step in range(length):
            chains[i].append(len(layer))
            layer.append(layer[a] + 1 + step)
        room -= max(length, 0)
    return chains


def _rows(
    count: int, edges: Sequence[Edge], layer: list[int], chains: list[list[int]]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """For each node its neighbours in the layers above and below, and each layer in the order of the file."""
    above: list[list[int]] = [[] for _ in layer]
    below: list[list[int]] = [[] for _ in layer]
    for (a, b), chain in zip(edges, chains, strict=True):
        path = [a, *chain, b]
        for u, v in pairwise(path):
            if layer[v] == layer[u] + 1:
                below[u].append(v)
                above[v].append(u)
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for v in range(len(layer)):
        rows[layer[v]].append(v)
    return above, below, rows


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort each layer by the mean place of neighbours, downwards and upwards in turn."""
    place = [0.0] * len(above)
    for row in rows:
        _note(row, place)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        for row in rows if down else reversed(rows):
            if len(row) > 1:
                row.sort(key=lambda v: _mean(near[v], place, place[v]))
                _note(row, place)


def _note(row: list[int], place: list[float]) -> None:
    for i, v in enumerate(row):
        place[v] = (i + 0.5) / len(row)


def _mean(near: list[int], values: list[float], default: float) -> float:
    return sum(values[u] for u in near) / len(near) if near else default


def _places(count: int, rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> list[float]:
    """x of each node: near its neighbours, in order, and never nearer to the next one than it may be."""
    both = [up + down for up, down in zip(above, below, strict=True)]
    x = [0.0] * len(above)
    for row in rows:
        at = _distances(row, count)
        for v, offset in zip(row, at, strict=True):
            x[v] = offset - at[-1] / 2
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        near = both if sweep >= SWEEPS // 2 else above if down else below
        for row in rows if down else reversed(rows):
            wanted = [_mean(near[v], x, x[v]) for v in row]
            weights = [1.0 if v < count else 4.0 for v in row]  # edges shall be straight
            for v, found in zip(row, apart(wanted, weights, _distances(row, count)), strict=True):
                x[v] = found
    return x


def _distances(row: list[int], count: int) -> list[float]:
    """How far right each must stand at least, if the first one stands at 0."""
    at = [0.0]
    for u, v in pairwise(row):
        at.append(at[-1] + (COLUMN if u < count else NARROW) / 2 + (COLUMN if v < count else NARROW) / 2)
    return at


def apart(wanted: list[float], weights: list[float], at: list[float]) -> list[float]:
    """The places nearest to those that are wanted, in weighted least squares, that keep their distances.

    What is left of each place without its offset must not fall: neighbours that would are pooled in their
    mean.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for want, weight, offset in zip(wanted, weights, at, strict=True):
        mean, total, size = want - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, heavy, many = pools.pop()
            mean = (mean * total + other * heavy) / (total + heavy)
            total, size = total + heavy, size + many
        pools.append((mean, total, size))
    found: list[float] = []
    for mean, _, size in pools:
        found += [mean + at[len(found) + i] for i in range(size)]
    return found
