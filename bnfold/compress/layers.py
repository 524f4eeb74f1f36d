"""Layers whose channels can be taken out one by one: where a channel lies, its removal, its mask."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.fold.graph import Refused

__all__ = ["Removal", "Side", "mask", "prune", "sides"]

_Norms = nn.modules.batchnorm._NormBase  # batch and instance norms


@dataclass(frozen=True)
class Side:
    """One side of a layer.

    axes: along which axis of which tensor its channels lie. sizes: the attributes that hold their number.
    blocks: they lie in so many blocks of equal size, and stay so: each loses as many. divided: axis 1 of the
    weight holds one block only, another one for each block of axis 0 (a convolution in groups).
    """

    axes: dict[str, int]
    sizes: tuple[str, ...]
    blocks: int = 1
    divided: bool = False


@dataclass(frozen=True)
class Removal:
    """Channels to take from one side of a layer: "out", "in", or "both", where the two are one."""

    layer: str
    side: str
    gone: frozenset[int]


def sides(layer: nn.Module) -> dict[str, Side]:
    """The sides of a layer.

    Raises:
        Refused: it is no layer from which a channel can be taken.
    """
    of = next((of for kind, of in _KINDS.items() if isinstance(layer, kind)), None)
    if of is None:
        raise Refused(f"{type(layer).__name__} does not treat each channel by itself")
    found = of(layer)
    names = {name for side in found.values() for name in side.axes}
    if any(name not in layer._parameters and name not in layer._buffers for name in names):
        raise Refused("its weight is computed from other parameters")
    return found


def _of_conv(layer: Any) -> dict[str, Side]:
    blocks = layer.groups
    if 1 < blocks == layer.in_channels == layer.out_channels:
        return {"both": Side({"weight": 0, "bias": 0}, ("in_channels", "out_channels", "groups"))}
    if 1 < blocks in (layer.in_channels, layer.out_channels):
        raise Refused(
            f"each of its {blocks} groups has one channel on one side, and another number on the other"
        )
    last = int(layer.transposed)  # a transposed one has its inputs first
    split = blocks > 1
    out = Side({"weight": last, "bias": 0}, ("out_channels",), blocks, split and last == 1)
    return {"out": out, "in": Side({"weight": 1 - last}, ("in_channels",), blocks, split and last == 0)}


def _of_linear(layer: Any) -> dict[str, Side]:
    out = Side({"weight": 0, "bias": 0}, ("out_features",))
    return {"out": out, "in": Side({"weight": 1}, ("in_features",))}


def _of_norm(layer: Any) -> dict[str, Side]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {"both": Side(dict.fromkeys(names, 0), ("num_features",))}


def _of_prelu(layer: Any) -> dict[str, Side]:
    return {"both": Side({"weight": 0}, ("num_parameters",)) if layer.num_parameters > 1 else Side({}, ())}


_KINDS: dict[Any, Callable[[Any], dict[str, Side]]] = {
    nn.modules.conv._ConvNd: _of_conv,
    nn.Linear: _of_linear,
    _Norms: _of_norm,
    nn.PReLU: _of_prelu,
}


@torch.no_grad()
def prune(module: nn.Module, removals: Collection[Removal]) -> None:
    """Take channels out of a module's layers. What is left keeps its values; gradients are dropped."""
    for each in removals:
        layer: Any = module.get_submodule(each.layer)
        side = sides(layer)[each.side]
        for name, axis in side.axes.items():
            value = getattr(layer, name)
            if value is None:
                continue
            if side.divided and name == "weight":
                new = _cut_blocks(value.detach(), each.gone, side.blocks)
            else:
                keep = [at for at in range(value.shape[axis]) if at not in each.gone]
                new = value.detach().index_select(axis, torch.tensor(keep, device=value.device))
            if isinstance(value, nn.Parameter):
                new = nn.Parameter(new, requires_grad=value.requires_grad)
            setattr(layer, name, new)
        for size in side.sizes:
            setattr(layer, size, getattr(layer, size) - len(each.gone))


@torch.no_grad()
def mask(module: nn.Module, removals: Collection[Removal]) -> None:
    """Set the weights that make the channels, and those that read them, to 0; sizes stay.

    The module then computes what it does without them, whatever is between the layers, as long as `removals`
    are all that belong together. Where they are not, the two differ.
    """
    for each in removals:
        layer = module.get_submodule(each.layer)
        side = sides(layer)[each.side]
        for name, axis in side.axes.items():
            value = getattr(layer, name)
            if not isinstance(value, Tensor) or name not in layer._parameters:
                continue
            if side.divided and name == "weight":
                size = value.shape[1]
                blocks = value.chunk(side.blocks)
                for at in each.gone:
                    blocks[at // size][:, at % size] = 0
            else:
                value.index_fill_(axis, torch.tensor(sorted(each.gone), device=value.device), 0)


def _cut_blocks(weight: Tensor, gone: Collection[int], count: int) -> Tensor:
    """Take channels out of axis 1 of a weight, where each of `count` blocks of axis 0 has its own."""
    size = weight.shape[1]
    parts = []
    for at, block in enumerate(weight.chunk(count)):
        keep = [i for i in range(size) if at * size + i not in gone]
        parts.append(block.index_select(1, torch.tensor(keep, device=weight.device)))
    return torch.cat(parts)
