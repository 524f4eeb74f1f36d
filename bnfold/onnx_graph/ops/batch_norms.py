"""Frozen batch norms, read many at a time: those that leave no question, which is nearly all of them.

Deep nets have hundreds, each with four short arrays, and a dozen calls of numpy for each would be most of the
time that reading takes. Norms of the same size are stacked and computed together; the record of the
operator (`norms`) reads the others, and those whose values are damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from bnfold.fold.affine import dead, from_batch_norm, unsound
from bnfold.fold.graph import Constant, Moments
from bnfold.fold.roles import Affine
from bnfold.onnx_graph.file.wire import CUT_FROM, TOKEN_SIZE
from bnfold.onnx_graph.ops.facts import EPSILON
from bnfold.onnx_graph.site import FLOATS, Site

__all__ = ["Norm", "read_together"]

# the role, the moments of the input, those of the output
Norm = tuple[Affine, Moments, Moments]

_SLOTS = {"gamma": 1, "beta": 2, "mean": 3, "var": 4}
_FLOAT32 = np.dtype("<f4")


class _Parameters(Mapping[str, tuple[int, Constant]]):
    """The stored parameters, looked up when somebody asks: nobody asks for those of a norm that vanishes."""

    __slots__ = ("site",)

    def __init__(self, site: Site) -> None:
        self.site = site

    def __getitem__(self, name: str) -> tuple[int, Constant]:
        slot = _SLOTS[name]
        constant = self.site.constant(slot)
        assert constant is not None
        return slot, constant

    def __iter__(self) -> Iterator[str]:
        return iter(_SLOTS)

    def __len__(self) -> int:
        return len(_SLOTS)


def read_together(sites: Iterable[Site]) -> dict[Site, Norm]:
    """The batch norms among these nodes that are plain: see `_plain`."""
    groups: dict[tuple[int, int], list[tuple[Site, float, list[bytes]]]] = {}
    for site in sites:
        if site.op == "BatchNormalization":
            found = _plain(site)
            if found is not None:
                rank, eps, raws = found
                groups.setdefault((len(raws[0]), rank), []).append((site, eps, raws))
    norms: dict[Site, Norm] = {}
    for (size, rank), group in groups.items():
        _stack(group, size // 4, rank, norms)
    return norms


def _plain(site: Site) -> tuple[int, float, list[bytes]] | None:
    """Rank, epsilon and parameters of a norm that is certainly frozen, with short float32 initializers."""
    values = site.values
    if site.opset < 9 or len(values) != 5 or len(site.outputs) != 1 or values[0] is None:
        return None
    shape, output = values[0].shape, site.outputs[0]
    if shape is None or len(shape) < 2 or output is None or output.shape is None:
        return None
    if values[0].dtype not in FLOATS or site.attr("training_mode", 0) or site.refers:
        return None
    first = None if values[1] is None else values[1].shape
    channels = first[0] if first is not None and len(first) == 1 else None
    if not isinstance(channels, int) or (isinstance(shape[1], int) and shape[1] != channels):
        return None
    size = 4 * channels
    # a token of the loader stands for a long array, and is no array itself
    if not 0 < size < CUT_FROM or size == TOKEN_SIZE:
        return None
    raws: list[bytes] = []
    for value in values[1:]:
        if value is None or value.overridable or value.dtype != "float32" or value.shape != first:
            return None
        raw = b"" if value.init is None else value.init.raw_data
        if len(raw) != size:
            return None
        raws.append(raw)
    return len(shape), float(site.attr("epsilon", EPSILON)), raws


def _stack(
    group: list[tuple[Site, float, list[bytes]]], channels: int, rank: int, norms: dict[Site, Norm]
) -> None:
    blob = b"".join([raw for _, _, raws in group for raw in raws])
    stored = np.frombuffer(blob, _FLOAT32).reshape(len(group), 4, channels)
    gamma, beta, mean, var = (stored[:, i].astype(np.float64) for i in range(4))
    eps = np.array([eps for _, eps, _ in group])[:, None]
    scale, shift = from_batch_norm(gamma, beta, mean, var, eps)
    sound: Any = (~unsound(var) & np.isfinite(shift)).all(1)
    plain: Any = scale.all(1) & (scale[:, 0] != 1.0) & shift.any(1)
    wide = (len(group), 1, channels, *(1,) * (rank - 2))
    rows = zip(
        *(group, scale.reshape(wide), shift.reshape(wide), stored[:, 2:], np.stack((beta, gamma * gamma), 1)),
        *(sound.tolist(), plain.tolist()),
        strict=True,
    )
    for (site, epsilon, _), a, b, before, after, fine, simple in rows:
        if fine:
            role = Affine(a, b, "norm", constants=_Parameters(site), eps=epsilon, plain=simple)
            norms[site] = role, before, after
    silent: Any = dead(scale, var)
    for i in np.flatnonzero(sound & silent.any(1)):
        norms[group[i][0]][0].dead = tuple(np.flatnonzero(silent[i]).tolist())
