"""What is called more than once: `fold_module` folds it where all calls need the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tanh
from torch.nn.functional import scaled_dot_product_attention

import bnfold
from bnfold.report.fold import Report
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize

ROUNDING = 1e-5  # of the output's largest value, in float32


def fold(module: nn.Module, *shapes: tuple[int, ...], **options: Any) -> tuple[nn.Module, Report]:
    """The folded module, which computes the same as before in float64."""
    args = tuple(map(torch.randn, shapes or (IMAGE,)))
    folded, report = bnfold.fold_module(randomize(module), args, **options)
    with torch.no_grad():
        wanted = copy.deepcopy(module).double()(*(x.double() for x in args))
        found = folded(*(x.clone() for x in args))
    for old, new in zip(*(y if isinstance(y, tuple) else (y,) for y in (wanted, found)), strict=True):
        assert (new - old).abs().max() < ROUNDING * old.abs().max()
    return folded, report


class Pair(nn.Module):
    """One network on two inputs."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*parts)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(a), self.net(b)


class NormAct(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(super().forward(x))
        return y


def test_one_network_on_two_inputs() -> None:
    parts = conv(6, 4, bias=False), bn(4), nn.ReLU(inplace=True), conv(4, 4), NormAct(4), nn.Flatten()
    folded, report = fold(Pair(*parts), IMAGE, (1, 6, 8, 7))
    assert [entry.name for entry in report.folded] == ["net.1", "net.4", "net.1@1", "net.4@1"]
    kinds = [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d, nn.Sequential, nn.Flatten]
    assert [type(part) for part in folded.net] == kinds
    assert list(folded.net[4].state_dict()) == []


def test_steps_in_time() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        h = x
        for _ in range(3):
            h = tanh(m.n(m.c(h) + m.d(x)))
        return h

    folded, report = fold(Fn(run, c=conv(6, 6, padding=1), d=conv(6, 6, 1, bias=False), n=bn(6)))
    assert len(report.folded) == 3
    assert type(folded.n) is nn.Identity


def test_scales_of_zero_go_forward_in_all_calls() -> None:
    module = randomize(Pair(nn.Tanh(), bn(6), conv(6, 4)))
    with torch.no_grad():
        module.net[1].weight[1] = 0
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, (x, x.sin()))
    assert not report.kept
    assert torch.allclose(folded(x, x)[0], module(x, x)[0], atol=1e-5)


def test_what_calls_do_not_agree_on_stays() -> None:
    """A batch norm of its own for each call; the other layer folds all the same."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = tanh(m.a(m.c(x))) + tanh(m.b(m.c(x.sin())))
        return m.e(m.d(y))

    folded, report = fold(Fn(run, c=conv(6, 4), a=bn(4), b=bn(4), d=conv(4, 4), e=bn(4)))
    assert [(entry.name, entry.outcome) for entry in report.entries] == [
        ("a", "kept"),
        ("b", "kept"),
        ("e", "folded"),
    ]
    assert "is used by several calls that need different ones" in report.kept[0].reason
    assert type(folded.a) is nn.BatchNorm2d


def test_a_bias_is_added_for_all_calls_or_for_none() -> None:
    """A shift alone, behind one of two calls."""

    def run(m: Any, x: Tensor) -> Tensor:
        return tanh(m.n(m.c(x))) + tanh(m.c(x.sin()))

    module = Fn(run, c=conv(6, 4, bias=False), n=nn.BatchNorm2d(4, affine=False, eps=0.0)).eval()
    module.n.running_mean.normal_()
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert "several calls that need different ones" in report.kept[0].reason
    assert folded.c.bias is None


def test_one_call_of_a_function_and_one_of_the_module() -> None:
    """A bias that the module gets is not one that the function reads."""

    def run(m: Any, x: Tensor) -> Tensor:
        return tanh(m.n(m.c(x))) + tanh(m.n(nn.functional.conv2d(x.sin(), m.c.weight)))

    folded, report = fold(Fn(run, c=conv(6, 4, bias=False), n=bn(4)))
    assert folded.c.bias is None
    assert not report.folded


def test_a_parameter_read_in_a_way_that_is_not_followed_stays() -> None:
    folded, report = fold(Fn(lambda m, x: m.n(m.c(x)) * m.c.weight.sum(), c=conv(6, 4), n=bn(4)))
    assert "not by all in the same way" in report.kept[0].reason
    assert type(folded.n) is nn.BatchNorm2d


def test_a_parameter_that_one_call_reads_twice() -> None:
    """Where both need the same it is rewritten; attention would need another value, and the same queries."""
    stored = nn.Parameter(torch.randn(1, 4, 5, 5))
    chosen = Fn(lambda m, x: tanh(m.n(torch.where(x > 0, m.s, m.s))), n=bn(4), s=stored)
    assert not fold(chosen, (2, 4, 5, 5))[1].kept
    attended = Fn(lambda m, x: x + tanh(m.n(scaled_dot_product_attention(m.s, m.s, m.s))), n=bn(4), s=stored)
    _, report = fold(attended, (2, 4, 5, 5))
    assert "(s) is used by several calls, and not by all in the same way" in report.kept[0].reason


def test_a_batch_norm_whose_weight_is_its_bias() -> None:
    module = Fn(lambda m, x: m.n(m.c(x)), c=conv(6, 4), n=bn(4))
    module.n.bias = module.n.weight
    folded, report = fold(module)
    assert "two of its parameters are one" in report.kept[0].reason
    assert folded.n.bias is folded.n.weight
    between = Fn(lambda m, x: tanh(m.n(m.k(tanh(x)))), k=bn(6), n=bn(6))
    between.n.bias = between.n.weight
    fold(between)


NUMBERS = {
    (): lambda m, x: m.c(x) * m.s,
    (1,): lambda m, x: m.s - m.c(x),
    (1, 1, 1): lambda m, x: m.c(x) / m.s,
}


@pytest.mark.parametrize("shape", NUMBERS)
def test_a_learned_number_keeps_its_shape(shape: tuple[int, ...]) -> None:
    number = nn.Parameter(torch.rand(shape) + 0.5)
    module = Fn(lambda m, x: m.n(NUMBERS[shape](m, x)), c=conv(6, 4), n=bn(4), s=number)
    folded, report = fold(module)
    assert folded.s.shape == shape
    assert report.folded or "cannot take a change of shape [1, 4, 1, 1]" in report.kept[-1].reason


def test_one_for_each_column_does_not_become_one_for_each_place() -> None:
    module = Fn(lambda m, x: m.n(m.c(x) - m.p), c=conv(6, 4), n=bn(4), p=nn.Parameter(torch.randn(7)))
    folded, report = fold(module)
    assert folded.p.shape == (7,)
    assert "its constant of shape [7] cannot take a change of shape [1, 4, 1, 1]" in report.kept[-1].reason


def test_an_lstm_whose_weight_is_tied_is_given_its_own() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.n(x.flatten(2)).transpose(1, 2)
        return m.r(y)[0] + m.o(x.flatten(2).transpose(1, 2))[0]

    module = Fn(
        run, n=nn.BatchNorm1d(6), r=nn.LSTM(6, 4, batch_first=True), o=nn.LSTM(6, 4, batch_first=True)
    )
    module.o.weight_ih_l0 = module.r.weight_ih_l0
    _, report = fold(module)
    assert report.folded
    assert any("is no longer tied to" in note for note in report.notes)
