"""Merged calls hold in training mode, in eval mode and in mixed modes; what cannot is refused."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import bnfold.nn
from bnfold.errors import UsageError

SHAPE = (4, 3, 6, 6)


class Norms(nn.Module):
    """What the networks here have in common: two batch norms and a linear layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def features(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return F.relu(self.second(y) + x).mean((2, 3))


class Functional(Norms):
    """Dropout as a function that is told the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(x), 0.4, self.training))


class ByAnother(Norms):
    """The mode is another module's, and comes as a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(x), p=self.drop.p, training=self.drop.training))


class Nested(nn.Module):
    """Blocks that each have a mode of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Functional(), Functional()])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(block(x) for block in self.blocks)


class DropPath(nn.Module):
    """Branches on its mode, on data, and keeps a count: only as it is can it be right."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if not self.training or x.sum() == 0:
            return x
        return x * (torch.rand(len(x), 1) < 0.6)


class Leaf(Norms):
    """Calls a module without a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.path(self.features(x)))


class SameBranches(Norms):
    """Asks for its mode where the answer makes no difference."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if self.training and self.head.in_features == 7:
            y = y * 2
        return self.head(F.dropout(y, 0.4, self.training))


NETS: list[type[nn.Module]] = [Functional, ByAnother, Nested, Leaf, SameBranches]


def run(module: nn.Module, seed: int, x: Tensor) -> list[Tensor]:
    torch.manual_seed(seed)
    y = module(x)
    return list(y) if isinstance(y, tuple) else [y]


def same(module: nn.Module, other: nn.Module, x: Tensor) -> bool:
    pairs = zip(run(module, 1, x), run(other, 1, x), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_on_in_training_mode_and_off_in_eval_mode(net: type[nn.Module], training: bool) -> None:
    module, x = net().train(training), torch.randn(SHAPE)
    plain = copy.deepcopy(module)
    converted = bnfold.nn.convert(module, fuse_activations=True)
    assert any(part.activation for part in converted.modules() if isinstance(part, bnfold.nn.BatchNorm2d))
    for mode in (training, not training, training):
        assert same(converted.train(mode), plain.train(mode), x)
        first, second = (run(copy.deepcopy(converted), seed, x)[0] for seed in (1, 2))
        assert torch.equal(first, second) is not mode


def test_each_module_has_its_own_mode() -> None:
    module, x = Nested().train(), torch.randn(SHAPE)
    module.blocks[0].eval()
    module.blocks[1].second.eval()
    plain = copy.deepcopy(module)
    modes = [part.training for part in module.modules()]
    converted = bnfold.nn.convert(module, fuse_activations=True)
    assert [part.training for part in converted.modules()] == modes
    assert same(converted, plain, x)
    for each in (converted, plain):
        each.blocks[0].train()
        each.blocks[1].eval()
    assert same(converted, plain, x)


def test_what_is_called_as_it_is_keeps_its_own_count() -> None:
    module = Leaf()
    bnfold.nn.convert(module, fuse_activations=True)
    assert module.path.calls == 0
    module(torch.randn(SHAPE))
    assert module.path.calls == 1


class Auxiliary(Norms):
    def forward(self, x: Tensor) -> Any:
        y = self.features(x)
        return (self.head(y), y) if self.training else self.head(y)


class Chosen(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(x), 0.4 if self.training else 0.0))


class Identical(Norms):
    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head(y * 2 if self.training is True else y)


class More(Norms):
    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head(y) if self.training else self.head(y).softmax(1)


class Counting(Norms):
    def forward(self, x: Tensor) -> Tensor:
        self.steps = getattr(self, "steps", 0) + 1
        return self.head(self.features(x))


class Remembering(Norms):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.features(x)
        return self.head(self.seen)


class Drawing(Norms):
    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head(y if random.random() < 2 else -y)


class DrawingTensors(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x) * torch.rand(1))


class DrawingArrays(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x) * float(np.random.normal()))  # noqa: NPY002


class Keeping(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.kept["weight"] = self.head.weight
        return self.head(self.features(x))


class Listing(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.features(x))
        return self.head(self.seen[-1])


class Replacing(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps = torch.ones(())
        return self.head(self.features(x))


class WithoutGradients(Norms):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.features(x)
        return self.head(y)


class GradientsByMode(Norms):
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(bool(self.training)):
            y = self.features(x)
        return self.head(y)


class InFloat32(Norms):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = self.features(x.float())
        return self.head(y)


REFUSED: dict[type[nn.Module], str] = {
    Auxiliary: "its calls differ between training mode and eval mode: what it returns",
    Chosen: "its calls differ .*: the arguments of dropout",
    Identical: "its calls differ .*: mul in training mode, head in eval mode",
    More: "its calls differ .*: what it returns in training mode, softmax in eval mode",
    Counting: "its code sets steps, which a graph would not",
    Remembering: "its code sets seen, which a graph would not",
    Keeping: "its code sets kept, which a graph would not",
    Listing: "its code sets seen, which a graph would not",
    Replacing: "its code sets steps, which a graph would not",
    WithoutGradients: "its code turns gradients off or on",
    GradientsByMode: "its code turns gradients off or on",
    InFloat32: "its code turns autocast on or off",
    Drawing: "its code draws random numbers",
    DrawingTensors: "its code draws random numbers",
    DrawingArrays: "its code draws random numbers",
}


@pytest.mark.parametrize("net", REFUSED)
def test_what_a_graph_cannot_hold_is_refused_and_left_alone(net: type[nn.Module]) -> None:
    module = net().train()
    module.second.eval()
    before = [(type(part), part.training, dict(vars(part)), dict(part._buffers)) for part in module.modules()]
    states = random.getstate(), torch.get_rng_state()
    with pytest.raises(UsageError, match=f"^torch.fx cannot trace \\w+: {REFUSED[net]}.*\nConvert it"):
        bnfold.nn.convert(module, fuse_activations=True)
    for part, (kind, mode, own, buffers) in zip(module.modules(), before, strict=True):
        assert (type(part), part.training) == (kind, mode)
        assert all(vars(part)[key] is value for key, value in own.items()) and len(vars(part)) == len(own)
        assert not vars(part).get("kept") and not vars(part).get("seen")
        assert all(part._buffers[key] is value for key, value in buffers.items())
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])


class Optional(Norms):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, double: bool = True, scale: float = 2.0
    ) -> Tensor:
        y = self.features(x) * scale
        y = y if mask is None else y * mask
        return self.head(y * 2 if double else y)


def test_arguments_that_the_code_asks_for_are_what_they_are_by_default() -> None:
    module, x = Optional(), torch.randn(SHAPE)
    plain = copy.deepcopy(module)
    converted = bnfold.nn.convert(module, fuse_activations=True)
    for given in ({}, {"mask": None, "double": True}, {"scale": 3.0}):
        assert torch.equal(converted(x, **given), plain(x, **given))
    for other in ({"mask": torch.ones(3)}, {"double": False}, {"double": torch.ones(3)}):
        with pytest.raises(UsageError, match=r"^(mask was None|double was True) when the calls were merged"):
            converted(x, **other)


class Buffered(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x * (2 * self.scale).view(3, 1, 1)) + torch.full((3,), 0.5))


def test_buffers_are_read_when_the_graph_runs() -> None:
    module, x = Buffered(), torch.randn(SHAPE)
    plain = copy.deepcopy(module)
    converted = bnfold.nn.convert(module, fuse_activations=True)
    for each in (converted, plain):
        each.scale.mul_(3)
        each.double()
    assert torch.equal(converted(x.double()), plain(x.double()))
    assert vars(bnfold.nn.revert(converted)).keys() == vars(plain).keys()
