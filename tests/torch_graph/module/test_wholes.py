"""Modules that are one per-channel map as a whole, in `fold_module`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.report.fold import Report
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize
from tests.torch_graph.random_modules import FrozenNorm

ROUNDING = 1e-5  # of the output's largest value, in float32


def fold(module: nn.Module, **options: Any) -> tuple[nn.Module, Report]:
    """The folded module, which computes the same as before in float64."""
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(randomize(module), x, **options)
    with torch.no_grad():
        wanted = copy.deepcopy(module).double()(x.double())
        assert (folded(x.clone()) - wanted).abs().max() <= ROUNDING * wanted.abs().max()
    return folded, report


class ByPermuting(nn.Module):
    """Channels last and back, around a batch norm that is a function."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = FrozenNorm(channels, axis=-1)
        for name, value in self.norm.named_buffers():
            self.register_buffer(name, value.clone())
        del self.norm

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2).float()
        y = (y - self.running_mean) / (self.running_var + 0.1).sqrt() * self.weight + self.bias
        return y.transpose(1, 2).unflatten(2, x.shape[2:])


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(-1, 1, 1)


class Pair(nn.Module):
    """One network on two images."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x) - self.net(x.flip(3))
        return y


class Masked(FrozenNorm):
    """One that may be given a mask."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


class AsKeras(Masked):
    """As layers of Keras 3: they hold numbers in a dictionary, and add a keyword to each call themselves."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, as_keras=True)
        self.held = nn.ParameterDict({"weight": self.weight, "bias": self.bias})
        for parameter in self.held.values():
            parameter.requires_grad_(False)

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x, mask=None)


WHOLES = {
    "frozen": FrozenNorm,
    "written in place": lambda channels: FrozenNorm(channels, as_keras=True),
    "as Keras calls it": AsKeras,
    "channels last": ByPermuting,
    "layer scale": LayerScale,
    "instance norm": lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("name", WHOLES)
def test_one_map_becomes_the_identity(name: str) -> None:
    folded, report = fold(nn.Sequential(conv(6, 4), WHOLES[name](4), nn.ReLU(inplace=True), conv(4, 3)))
    assert [type(part) for part in folded] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d]
    assert [(entry.name, entry.outcome, entry.into) for entry in report.entries] == [("1", "folded", ("0",))]


def test_the_ledger_has_one_line_for_each_and_names_its_class() -> None:
    folded, report = fold(nn.Sequential(conv(6, 4), FrozenNorm(4), nn.Tanh(), FrozenNorm(4), nn.Tanh()))
    assert [(entry.name, entry.op, entry.outcome) for entry in report.entries] == [
        ("1", "FrozenNorm", "folded"),
        ("3", "FrozenNorm", "kept"),
    ]
    assert "tanh is not linear" in report.kept[0].reason
    assert type(folded[3]) is FrozenNorm
    _, report = fold(nn.Sequential(conv(6, 4), ByPermuting(4)), skip=["1"])
    assert not report.folded


def test_all_of_it_goes_or_nothing() -> None:
    """The scale alone could go into the convolution behind, which is padded."""
    folded, report = fold(nn.Sequential(nn.Tanh(), FrozenNorm(6), conv(6, 4, padding=1)))
    assert type(folded[1]) is FrozenNorm
    assert [entry.outcome for entry in report.entries] == ["kept"]
    assert "zero padding" in report.kept[0].reason


def test_what_it_takes_in_it_still_takes_in_if_it_stays() -> None:
    module = randomize(nn.Sequential(nn.Tanh(), bn(6), LayerScale(6), nn.Tanh()))
    with torch.no_grad():  # a scale alone
        module[1].bias.zero_()
        module[1].running_mean.zero_()
    x = torch.randn(IMAGE)
    folded, _ = bnfold.fold_module(module, x)
    assert torch.allclose(folded(x), module(x), atol=1e-5)
    assert [type(part) for part in folded] == [nn.Tanh, nn.Identity, LayerScale, nn.Tanh]


def test_a_zero_scale_goes_forward_with_its_shift() -> None:
    norm = FrozenNorm(6)
    norm.weight[2] = 0
    folded, report = fold(nn.Sequential(nn.Tanh(), norm, conv(6, 4)))
    assert report.folded
    assert type(folded[1]) is nn.Identity


def test_called_twice_it_goes_in_both_calls() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.tanh(m.n(m.c(x))) + torch.tanh(m.n(m.c(x.sin())))

    folded, report = fold(Fn(run, c=conv(6, 4), n=FrozenNorm(4)))
    assert type(folded.n) is nn.Identity
    assert [entry.name for entry in report.folded] == ["n", "n@1"]
    folded, report = fold(Fn(lambda m, x: m.n(m.c(x)) + m.n(x.tanh()), c=conv(6, 6, 1), n=FrozenNorm(6)))
    assert type(folded.n) is FrozenNorm
    assert not report.folded


def test_given_a_keyword_it_stays() -> None:
    """nn.Identity takes none."""
    folded, report = fold(Fn(lambda m, x: m.n(m.c(x), mask=None), c=conv(6, 4), n=Masked(4)))
    assert type(folded.n) is Masked
    assert not report.folded


class Hooked(FrozenNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_forward_hook(lambda *_: None)


class WithDropout(FrozenNorm):
    """One that has another module, for training."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.drop(y) if self.training else y


@pytest.mark.parametrize("kind", [Hooked, WithDropout])
def test_what_does_more_than_that_stays(kind: Any) -> None:
    folded, report = fold(nn.Sequential(conv(6, 4), kind(4)))
    assert type(folded[1]) is kind
    assert not report.folded


class WithAct(FrozenNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.1), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


def test_what_it_calls_with_its_result_is_left() -> None:
    module = Pair(conv(6, 4), WithAct(4), conv(4, 3))
    module.held = [module.net[1]]
    folded, report = fold(module)
    assert not report.kept
    assert [(name, type(part)) for name, part in folded.net[1].named_children()] == [
        ("drop", nn.Dropout),
        ("act", nn.SiLU),
    ]
    assert type(folded.held[0]) is nn.Sequential


def test_what_others_read_of_it_stays() -> None:
    module = Fn(lambda m, x: m.s(m.c(x)) + m.s.gamma.sum(), c=conv(6, 4), s=LayerScale(4))
    folded, report = fold(module)
    assert type(folded.s) is LayerScale
    assert not report.folded


def test_what_others_write_keeps_the_copy_that_it_makes() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        return m.n(y).relu_() + y

    folded, report = fold(Fn(run, c=conv(6, 4), n=FrozenNorm(4), o=conv(4, 4)))
    assert type(folded.n) is FrozenNorm
    assert not report.folded
    folded, _ = fold(Fn(lambda m, x: m.n(m.c(x)).relu_(), c=conv(6, 4), n=FrozenNorm(4)))
    assert type(folded.n) is nn.Identity


def test_whoever_holds_it_outside_of_the_network_has_the_identity_too() -> None:
    module = Fn(lambda m, x: m.held[0](m.c(x)), c=conv(6, 4), n=FrozenNorm(4))
    module.held = [module.n]
    folded, report = fold(module)
    assert report.folded
    assert type(folded.held[0]) is nn.Identity
