"""What a batch norm of torch can be relied on for: properties, each run on torch.nn and on bnfold.nn.

A property is a function of a library. What it gives (tensors, numbers, strings, errors, and containers of
them) must be the same for both. torch's own tests of batch norm are the model for what is in the list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import bnfold.nn

Property = Callable[["Library"], Any]
PROPERTIES: dict[str, Property] = {}
SHAPES = {1: (6, 8, 7), 2: (4, 8, 5, 6), 3: (2, 8, 3, 4, 2)}


@dataclass(frozen=True)
class Library:
    """Where batch norms are taken from."""

    place: Any
    others: Any  # the one that it is compared with

    @property
    def other(self) -> Library:
        return Library(self.others, self.place)

    def norm(self, channels: int = 8, dims: int = 2, **options: Any) -> Any:
        """A batch norm with parameters that are not all the same."""
        module = getattr(self.place, f"BatchNorm{dims}d")(channels, **options)
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        return module

    def net(self, **options: Any) -> Any:
        """A small network with two batch norms, which gives (N, 3)."""
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), self.norm(**options), nn.ReLU(), nn.Conv2d(8, 4, 3)),
            *(self.norm(4, **options), nn.Flatten(), nn.Linear(64, 3)),
        )


def _synchronized(kind: Any) -> Any:
    """Which is one class for all numbers of dimensions."""
    return SimpleNamespace(BatchNorm1d=kind, BatchNorm2d=kind, BatchNorm3d=kind)


OURS = Library(bnfold.nn, nn)
SYNCHRONIZED = Library(_synchronized(bnfold.nn.SyncBatchNorm), _synchronized(nn.SyncBatchNorm))


def holds(run: Property) -> Property:
    """Put a property on the list."""
    PROPERTIES[run.__name__.replace("_", " ")] = run
    return run


def values(dims: int = 2) -> Tensor:
    return torch.randn(SHAPES[dims]) * 3 + 1


def told(run: Callable[[], Any]) -> tuple[str, str]:
    """The error that something raises."""
    try:
        run()
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", ""


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the whole state."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a sum whose terms differ."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad((y * weights).sum(), inputs)
