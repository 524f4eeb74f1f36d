"""The writer of exported programs: shapes, names and layouts of the parameters that it makes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize

ROUNDING = 1e-5  # of the output's largest value, in float32


def fold(module: nn.Module, **options: Any) -> Any:
    """The folded program and its report, held against the module in float64."""
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_program(torch.export.export(module, (x,)), **options)
    with torch.no_grad():
        wanted = copy.deepcopy(module).double()(x.double())
        assert (folded.module()(x) - wanted).abs().max() < ROUNDING * wanted.abs().max()
    return folded, report


NUMBERS = {
    "a number": (lambda m, x: m.n(m.c(x) * m.p), ()),
    "a list of one": (lambda m, x: m.n(m.c(x) - m.p).tanh(), (1,)),
    "along the width": (lambda m, x: m.n(m.c(x) - m.p), (7,)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_constant_may_grow(name: str) -> None:
    run, shape = NUMBERS[name]
    module = Fn(run, c=conv(6, 4), n=bn(4), p=nn.Parameter(torch.rand(shape) + 0.5))
    _, report = fold(randomize(module))
    assert "n" in [entry.name for entry in report.folded]


def test_a_constant_does_not_grow_beyond_all_bounds() -> None:
    """It would be one number for each channel and each column."""
    channels, columns = 64, 1 << 17
    p = nn.Parameter(torch.randn(columns))
    module = Fn(
        lambda m, x: m.n(m.c(x) - m.p).tanh(), c=nn.Conv1d(1, channels, 1), n=nn.BatchNorm1d(channels), p=p
    )
    program = torch.export.export(randomize(module), (torch.randn(1, 1, columns),))
    folded, report = bnfold.fold_program(program, verify=False)
    assert "cannot take a change of shape" in report.kept[-1].reason
    assert folded is program


def test_layouts_stay() -> None:
    module = Fn(lambda m, x: m.n(m.c(x)) + m.o(m.c(x)), c=conv(6, 4, groups=2), n=bn(4), o=bn(4))
    folded, _ = fold(randomize(module).to(memory_format=torch.channels_last), merge_branches=False)
    weights = [value for value in folded.state_dict.values() if value.dim() == 4]
    assert len(weights) == 2
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_names_that_are_no_identifiers_and_names_that_become_the_same() -> None:
    """As torch.compile writes them, where biases are added."""
    module = nn.Sequential()
    block = nn.Sequential(conv(6, 6, 1, bias=False), bn(6), nn.Tanh())
    module.add_module("L['self']", block)
    module.add_module("a", conv(6, 6, 1, bias=False))
    module.add_module("n", bn(6))
    module.add_module("t", nn.Tanh())
    module.add_module("L__self___0", conv(6, 4, 1, bias=False))
    module.add_module("o", bn(4))
    folded, report = fold(randomize(module))
    assert len(report.folded) == 3
    assert {"L['self'].0.bias", "L__self___0.bias"} <= set(folded.state_dict)
    again = torch.export.export(folded.module(), (torch.randn(IMAGE),))
    assert len(again.graph_signature.parameters) == 6
