"""Channels, parameters and multiplications of a module, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from bnfold.verify.modules import outputs

__all__ = ["Count", "counts", "parameters"]


class Count(NamedTuple):
    """One layer. channels: that it gives (0 if that makes no sense). parameters: its own numbers.
    multiplications: of convolutions and linear layers only, by their weights, in one run on the example
    inputs (the whole batch), padding counted as if it were data.
    """

    kind: str
    channels: int
    parameters: int
    multiplications: int


def counts(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Count]:
    """Of all layers that hold parameters, in the module's order; a shared one counts where it is first."""
    work: dict[nn.Module, int] = {}

    def look(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        work[layer] = work.get(layer, 0) + _multiplications(layer, inputs[0], output)

    with ExitStack() as hooks:
        for part in module.modules():
            if isinstance(part, (nn.modules.conv._ConvNd, nn.Linear)):
                hooks.callback(part.register_forward_hook(look).remove)
        outputs(module, args, dict(kwargs))
    seen: set[int] = set()
    found = {}
    for name, part in module.named_modules():
        own = [value for value in part._parameters.values() if value is not None and id(value) not in seen]
        seen |= {id(value) for value in own}
        if own or part in work:
            numbers = sum(value.numel() for value in own)
            found[name] = Count(type(part).__name__, _channels(part), numbers, work.get(part, 0))
    return found


def parameters(module: nn.Module) -> int:
    """All numbers that a module's parameters hold, shared ones once."""
    return sum(value.numel() for value in module.parameters())


def _channels(layer: nn.Module) -> int:
    sizes = (getattr(layer, size, None) for size in ("out_channels", "out_features", "num_features"))
    return next((size for size in sizes if isinstance(size, int)), 0)


def _multiplications(layer: Any, x: Tensor, y: Tensor) -> int:
    """Each output of a layer is a sum of products; of a transposed convolution, each input is spread."""
    if isinstance(layer, nn.Linear):
        ends, rows = y, layer.out_features
    else:
        ends, rows = (x, layer.in_channels) if layer.transposed else (y, layer.out_channels)
    return int(ends.numel() * (layer.weight.numel() // rows))
