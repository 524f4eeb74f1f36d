"""What is done with batch norms in DistributedDataParallel, and on the joined batch without it.

A case is run by each rank on its part of a batch, with `bnfold.nn.SyncBatchNorm` in the real
DistributedDataParallel (gloo), and once on the joined batch with torch's batch norms and nothing around. It
gives tensors: those of "joined" are the ranks' parts of one tensor, those of "same" are the same everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import bnfold.nn

Found = dict[str, list[Tensor]]


class Relu(nn.Sequential):
    """`relu(norm(x) + x)` in torch's modules, as `activation="relu"` with a residual."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[0](x)
        return (y + x).relu()


class Shortcut(nn.Sequential):
    """The same in one call."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[0](x, x)
        return y


class Checkpointed(nn.Sequential):
    """Computes all anew in backward."""

    def forward(self, x: Tensor) -> Any:
        return checkpoint(super().forward, x, use_reentrant=False)


@dataclass
class Place:
    """Where a case runs: on a rank of `ranks` that belong to `group`, or (ranks=1, no group) in one process.

    Gradients of losses are multiplied by `ranks`, over which DistributedDataParallel takes the mean.
    """

    ranks: int = 1
    group: Any = None

    def norm(self, channels: int, **options: Any) -> nn.Module:
        if self.group is None:
            return nn.BatchNorm2d(channels, **options)
        return bnfold.nn.SyncBatchNorm(channels, process_group=self.group, **options)

    def shortcut(self, channels: int, **options: Any) -> nn.Module:
        if self.group is None:
            return Relu(nn.BatchNorm2d(channels, **options))
        return Shortcut(self.norm(channels, activation="relu", **options))

    def wrap(self, module: nn.Module, **options: Any) -> nn.Module:
        if self.group is None:
            return module
        return DistributedDataParallel(module, process_group=self.group, **options)

    def backward(self, *outputs: Tensor) -> None:
        (sum(map(loss_of, outputs)) * self.ranks).backward()  # type: ignore[union-attr]

    def net(self, **options: Any) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3), self.shortcut(4, **options), nn.Conv2d(4, 2, 3)),
            self.norm(2, **(options | {"momentum": None})),
        )


def loss_of(y: Tensor) -> Tensor:
    """In which channels differ."""
    weights = torch.arange(1.0, 1.0 + y.shape[1])[:, None, None]
    return (y.double().sin() * weights).sum()


def images(count: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, 8, 8) * 2 + 1


def result(place: Place, module: nn.Module, x: Tensor, *outputs: Tensor) -> Found:
    """All that a step leaves behind."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    of_x = [] if x.grad is None else [x.grad / place.ranks]
    same = [*module.buffers(), *grads, *(p.detach() for p in module.parameters())]
    return {"joined": [*(y.detach() for y in outputs), *of_x], "same": [each.clone() for each in same]}


def steps(place: Place, x: Tensor, **options: Any) -> Found:
    x.requires_grad_()
    module = place.net(**options)
    parallel = place.wrap(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        x.grad = None
        y = parallel(x)
        place.backward(y)
        optimizer.step()
    return result(place, module, x, y)


def accumulated(place: Place, x: Tensor) -> Found:
    module = place.net()
    parallel = place.wrap(module)
    if place.group is None:
        place.backward(parallel(x))
    else:
        with parallel.no_sync():
            place.backward(parallel(x))
    place.backward(parallel(x * 2))
    return result(place, module, x)


def two_forwards(place: Place, x: Tensor, modes: tuple[bool, bool]) -> Found:
    """And then one backward."""
    module = place.net()
    module(x)
    parallel = place.wrap(module)
    y = parallel.train(modes[0])(x)
    z = parallel.train(modes[1])(x * 2)
    place.backward(y, z)
    return result(place, module, x, y, z)


def checkpointed(place: Place, x: Tensor) -> Found:
    module = Checkpointed(place.net())
    parallel = place.wrap(module, static_graph=True)
    for _ in range(2):
        y = parallel(x)
        place.backward(y)
    return result(place, module, x, y)


def one_layer(place: Place, x: Tensor, kind: torch.dtype = torch.float32, **options: Any) -> Found:
    module = place.norm(3, **options).to(kind)
    x = x.detach() * 0.02  # in bfloat16, 1 + (variance - 1) would be 0
    x = x.to(kind, memory_format=torch.channels_last).requires_grad_()
    y = module(x)
    if kind != torch.bfloat16:
        place.backward(y)
    assert y.is_contiguous(memory_format=torch.channels_last)
    return {"joined": [y.detach()], "same": list(module.buffers())}


def one_value_each(place: Place, x: Tensor) -> Found:
    """Rows, of which a rank may have one: an error for a batch norm by itself."""
    module = place.norm(3)
    y = module(x[:, :, :1, :1] if place.group is None else x[:, :, 0, 0])
    return {"joined": [y.detach().flatten(1)], "same": list(module.buffers())}


def nothing_to_learn(place: Place, x: Tensor) -> Found:
    """Only the input has a gradient."""
    x.requires_grad_()
    module = place.net().requires_grad_(False)
    place.backward(module(x))
    return result(place, module, x)


CASES: dict[str, Callable[[Place, Tensor], Found]] = {
    "steps": steps,
    "steps without statistics": functools.partial(steps, track_running_stats=False),
    "accumulated": accumulated,
    "two forwards in training": functools.partial(two_forwards, modes=(True, True)),
    "two forwards in evaluation": functools.partial(two_forwards, modes=(False, False)),
    "training, then evaluation": functools.partial(two_forwards, modes=(True, False)),
    "checkpointed, static graph": checkpointed,
    "channels last, no scales": functools.partial(one_layer, affine=False),
    "bfloat16, momentum 1": functools.partial(one_layer, kind=torch.bfloat16, momentum=1.0),
    "bfloat16, average": functools.partial(one_layer, kind=torch.bfloat16, momentum=None),
    "float64": functools.partial(one_layer, kind=torch.float64),
    "one value each": one_value_each,
    "nothing to learn": nothing_to_learn,
}
