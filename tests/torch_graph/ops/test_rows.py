"""The rows of ATen operators, one network each: what folds, what stays, why; and the numbers in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tanh
from torch.nn.functional import grid_sample, interpolate, pixel_unshuffle, scaled_dot_product_attention

import bnfold
from bnfold.report.fold import Report
from tests.torch_graph.modules import Fn, bn, conv, randomize

ROUNDING = 1e-5  # of the output's largest value, in float32
TOKENS, IMAGE = (2, 5, 6), (2, 6, 5, 5)

Layers = Callable[[], dict[str, Any]]


class OnTokens(nn.BatchNorm1d):
    """Over the last axis of (batch, tokens, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Many(nn.Module):
    """Several networks on one input: one export for all."""

    def __init__(self, nets: dict[str, nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [net(x) for net in self.nets.values()]


def fold(cases: dict[str, tuple[Any, Layers]], shape: tuple[int, ...]) -> Report:
    """The report for these functions of layers; each of them computes the same as before."""
    torch.manual_seed(len(shape))
    nets = {name: Fn(run, **layers()) for name, (run, layers) in cases.items()}
    module, x = randomize(Many(nets), negative=False), torch.randn(shape)
    folded, report = bnfold.fold_program(torch.export.export(module, (x,)), merge_branches=False)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        for name, wanted, found in zip(nets, exact, folded.module()(x), strict=True):
            assert (found - wanted).abs().max() < ROUNDING * wanted.abs().max(), name
    return report


def recurrent(kind: Any, **options: Any) -> Layers:
    return lambda: {"n": OnTokens(6), "r": kind(6, 4, batch_first=True, **options)}


def tokens() -> dict[str, Any]:
    return {"n": OnTokens(4), "l": nn.Linear(6, 4, bias=False), "b": nn.Parameter(torch.randn(4))}


def images() -> dict[str, Any]:
    return {"n": bn(4), "c": conv(6, 4)}


def frozen(kind: Any) -> Layers:
    return lambda: {"n": kind(6), "d": conv(12, 3, 1), "e": conv(24, 3, 1), "l": nn.Linear(6, 4)}


def instance() -> dict[str, Any]:
    return {"n": nn.InstanceNorm2d(4, affine=True, track_running_stats=True), "c": conv(6, 4)}


def corner(x: Tensor) -> Tensor:
    """A mask for what a 3x3 convolution gives."""
    return x[:, :1, 2:, 2:] > 0


def rows(m: Any, x: Tensor) -> Tensor:
    """Rows of a linear layer, added up by index."""
    y = m.l(x)
    return torch.zeros_like(y).scatter_add(1, (x[..., :4] > 0).long(), y)


FOLDS: dict[str, tuple[Any, tuple[int, ...], Layers]] = {
    "LSTM": (lambda m, x: m.r(m.n(x))[0], TOKENS, recurrent(nn.LSTM, num_layers=2)),
    "LSTM both ways": (
        lambda m, x: m.r(m.n(x))[0],
        TOKENS,
        recurrent(nn.LSTM, bidirectional=True, proj_size=2),
    ),
    "GRU both ways": (lambda m, x: m.r(m.n(x))[0], TOKENS, recurrent(nn.GRU, bidirectional=True)),
    "RNN": (lambda m, x: m.r(m.n(x))[0], TOKENS, recurrent(nn.RNN, nonlinearity="relu")),
    "embedding": (
        lambda m, x: tanh(m.n(m.e((x > 0).sum(-1)))),
        TOKENS,
        lambda: {"n": OnTokens(4), "e": nn.Embedding(7, 4)},
    ),
    "attention": (
        lambda m, x: tanh(m.n(scaled_dot_product_attention(x, x, m.l(x) + m.b, is_causal=True))),
        TOKENS,
        tokens,
    ),
    "attention to stored rows": (
        lambda m, x: tanh(m.n(scaled_dot_product_attention(x, x, m.v))),
        TOKENS,
        lambda: {"n": OnTokens(4), "v": nn.Parameter(torch.randn(2, 5, 4))},
    ),
    "attention among stored rows": (
        lambda m, x: x[..., :4] + tanh(m.n(scaled_dot_product_attention(m.q, m.q, m.q))),
        TOKENS,
        lambda: {"n": OnTokens(4), "q": nn.Parameter(torch.randn(2, 5, 4))},
    ),
    "einsum": (
        lambda m, x: tanh(torch.einsum("bkl,blc->bkc", x[..., :5], m.l(x)) * m.n.weight),
        TOKENS,
        tokens,
    ),
    "einsum with a stored weight of two output axes": (
        lambda m, x: tanh(m.n(torch.einsum("bchw,hcdw->bdh", tanh(x), m.w))),
        IMAGE,
        lambda: {"n": nn.BatchNorm1d(4), "w": nn.Parameter(torch.randn(5, 6, 4, 5) / 5)},
    ),
    "einsum reads what is shifted": (
        lambda m, x: tanh(torch.einsum("bct,cod->bdto", m.n(tanh(x)), m.w)),
        TOKENS,
        lambda: {"n": nn.BatchNorm1d(5), "w": nn.Parameter(torch.randn(5, 3, 4) / 5)},
    ),
    "stack of images": (
        lambda m, x: tanh(m.n(torch.stack([m.c(x), m.c(x.flip(2))], 4).mean(4))),
        IMAGE,
        images,
    ),
    "stack of channels": (lambda m, x: tanh(m.n(torch.stack(m.c(x).unbind(1)[::-1], 1))), IMAGE, images),
    "roll": (lambda m, x: tanh(m.n(m.c(x).roll((1, 2), (1, 3)))), IMAGE, images),
    "sampled from a stored image": (
        lambda m, x: tanh(m.n(grid_sample(m.v, tanh(x[:, :2].movedim(1, 3)), padding_mode="border"))),
        IMAGE,
        lambda: {"n": bn(4), "v": nn.Parameter(torch.randn(2, 4, 8, 8))},
    ),
    "flip": (lambda m, x: tanh(m.n(m.c(x).flip((1, 2)))), IMAGE, images),
    "variance": (lambda m, x: tanh(m.l(m.n(x).var((2, 3)))), IMAGE, frozen(bn)),
    "deviation": (lambda m, x: tanh(m.l(m.n(x).std((2, 3), correction=0))), IMAGE, frozen(bn)),
    "norm": (
        lambda m, x: tanh(m.l((x * m.n.weight[:, None, None]).norm(dim=(2, 3)).square())),
        IMAGE,
        frozen(bn),
    ),
    "filled with zeros": (
        lambda m, x: tanh(m.c(x).masked_fill(corner(x), 0.0) * m.n.weight[:, None, None]),
        IMAGE,
        images,
    ),
    "filled with infinity": (
        lambda m, x: tanh(m.n(m.c(x).masked_fill(corner(x), -math.inf))),
        IMAGE,
        images,
    ),
    "filled with a number": (
        lambda m, x: tanh(torch.where(corner(x), m.c(x), 0.5) * 3 + 1),
        IMAGE,
        images,
    ),
    "one of two": (lambda m, x: tanh(m.n(torch.where(corner(x), m.c(x), m.c(-x)))), IMAGE, images),
    "instance norm": (lambda m, x: tanh(m.n(m.c(x))), IMAGE, instance),
    "layer norm over three axes": (
        lambda m, x: tanh(m.g(x) * m.w),
        IMAGE,
        lambda: {"w": nn.Parameter(torch.rand(6, 5, 5)), "g": nn.LayerNorm((6, 5, 5))},
    ),
    "rms norm": (
        lambda m, x: tanh(m.g(x) * m.n.weight),
        TOKENS,
        lambda: {"n": OnTokens(6), "g": nn.RMSNorm(6)},
    ),
    "other names": (
        lambda m, x: tanh(torch.multiply(torch.subtract(m.c(x), m.n.bias[:, None, None]), 2)),
        IMAGE,
        images,
    ),
    "from a number": (lambda m, x: tanh(m.n(1 - m.c(x))), IMAGE, images),
    "pixel unshuffle": (lambda m, x: m.e(pixel_unshuffle(m.n(x)[..., :4, :4], 2)), IMAGE, frozen(bn)),
    "repeat": (lambda m, x: m.d(m.n(x).repeat(1, 2, 1, 1)), IMAGE, frozen(bn)),
    "by index": (lambda m, x: tanh(m.n(m.c(x)[:, [3, 1, 0, 2]])), IMAGE, images),
    "larger of two": (lambda m, x: tanh(m.n(torch.maximum(m.c(x), m.c(-x)))), IMAGE, images),
    "bicubic": (
        lambda m, x: tanh(m.n(interpolate(m.c(x), scale_factor=2, mode="bicubic"))),
        IMAGE,
        images,
    ),
}

STAYS: dict[str, tuple[Any, tuple[int, ...], Layers, str]] = {
    "LSTM without biases": (
        lambda m, x: m.r(m.n(x))[0],
        TOKENS,
        recurrent(nn.LSTM, bias=False),
        "has no bias",
    ),
    "a row may be masked": (
        lambda m, x: tanh(m.n(scaled_dot_product_attention(x, x, m.l(x), x[..., :5] > 0))),
        TOKENS,
        tokens,
        "may mask a whole row",
    ),
    "einsum that transposes": (
        lambda m, x: tanh(m.n(torch.einsum("blc,bkc->bkl", m.l(x), x[:, :4, :4]).transpose(1, 2))),
        TOKENS,
        tokens,
        "does not pass a shift",
    ),
    "roll across the axes": (lambda m, x: tanh(m.n(m.c(x).roll(1))), IMAGE, images, "across its axes"),
    "variance shifted": (
        lambda m, x: tanh(m.n(m.c(x).var((2, 3), keepdim=True))),
        IMAGE,
        images,
        "cannot be shifted",
    ),
    "filled with a number": (
        lambda m, x: tanh(m.n(m.c(x).masked_fill(corner(x), 0.5))),
        IMAGE,
        images,
        "varies along axis 1",
    ),
    "stored and filled": (
        lambda m, x: tanh(m.n(m.v.masked_fill(x > 0, 0.5))),
        IMAGE,
        lambda: {"n": bn(6), "v": nn.Parameter(torch.randn(IMAGE))},
        "varies along axis 1",
    ),
    "scattered, then shifted": (lambda m, x: tanh(m.n(rows(m, x))), TOKENS, tokens, "not known"),
    "scattered onto something": (
        lambda m, x: tanh(m.n(m.l(x).scatter_add(1, (x[..., :4] > 0).long(), m.l(x)))),
        TOKENS,
        tokens,
        "not zero",
    ),
}


@pytest.mark.parametrize("shape", [TOKENS, IMAGE], ids=["tokens", "images"])
def test_what_folds(shape: tuple[int, ...]) -> None:
    cases = {name: (run, layers) for name, (run, own, layers) in FOLDS.items() if own == shape}
    report = fold(cases, shape)
    assert len(report.folded) >= len(cases)
    assert not report.kept, report


@pytest.mark.parametrize("shape", [TOKENS, IMAGE], ids=["tokens", "images"])
def test_what_stays(shape: tuple[int, ...]) -> None:
    cases = {name: (run, layers) for name, (run, own, layers, _) in STAYS.items() if own == shape}
    reasons = {entry.name: entry.reason for entry in fold(cases, shape).kept}
    for name in cases:
        assert STAYS[name][3] in reasons[f"nets.{name}.n"], name


def test_what_is_scattered_onto_zeros_takes_a_scale_and_the_bias_behind_it_the_shift() -> None:
    report = fold({"rows": (lambda m, x: tanh(m.n(rows(m, x) + m.b)), tokens)}, TOKENS)
    assert [entry.outcome for entry in report.entries] == ["kept", "folded"]
    assert report.folded[0].into[0] == "nets.rows.l"
