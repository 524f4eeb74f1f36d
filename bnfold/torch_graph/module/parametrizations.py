"""Weights that a module computes from other parameters: found, and replaced by what they are now.

1. `torch.nn.utils.parametrize` and all that is built on it (`parametrizations.weight_norm`, `spectral_norm`).
2. The older `torch.nn.utils.weight_norm` and `spectral_norm`, and `torch.nn.utils.prune`, which compute the
   weight before each call.

One in training mode stays: spectral norm takes another step with each call, and there is no "now".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["parametrized", "remove"]

_HOOKS: dict[type, Callable[[nn.Module, str], nn.Module]] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
}


def parametrized(module: nn.Module) -> list[str]:
    """The names of such weights that can be replaced."""
    return [name for name, _ in _found(module)]


def remove(module: nn.Module, names: Iterable[str]) -> None:
    """Make these weights plain parameters with the values that they have now."""
    wanted = set(names)
    with torch.no_grad():
        for name, act in list(_found(module)):
            if name in wanted:
                act()


def _found(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    for path, part in module.named_modules():
        if part.training:
            continue
        start = f"{path}." if path else ""
        if parametrize.is_parametrized(part):
            for name in part.parametrizations:
                yield f"{start}{name}", partial(_remove_parametrization, part, str(name))
        for hook in part._forward_pre_hooks.values():
            if type(hook) in _HOOKS:
                yield f"{start}{hook.name}", partial(_HOOKS[type(hook)], part, hook.name)
            if isinstance(hook, prune.BasePruningMethod):
                yield f"{start}{hook._tensor_name}", partial(prune.remove, part, hook._tensor_name)


def _remove_parametrization(part: nn.Module, name: str) -> None:
    """torch takes the name out of the module's class, which a copy shares with its original: not so here."""
    kind = type(part)
    content = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    part.__class__ = type(kind.__name__, kind.__bases__, content)
    parametrize.remove_parametrizations(part, name, leave_parametrized=True)
