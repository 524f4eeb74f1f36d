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


def test_a_constant_may_grow() -> None:
    """One number for each column becomes one for each channel and each column."""
    module = Fn(lambda m, x: m.n(m.c(x) - m.p), c=conv(6, 4), n=bn(4), p=nn.Parameter(torch.rand(7)))
    folded, report = fold(randomize(module))
    assert [entry.name for entry in report.folded] == ["n"]
    assert folded.state_dict["p"].shape == (1, 4, 1, 7)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_learned_number_becomes_one_for_each_channel(shape: tuple[int, ...]) -> None:
    number = nn.Parameter(torch.rand(shape) - 0.5)
    module = randomize(Fn(lambda m, x: m.n(m.c(x).maximum(m.s)).tanh(), c=conv(6, 4), n=bn(4), s=number))
    nn.init.uniform_(module.n.weight, 0.5, 2)
    folded, report = fold(module)
    assert [entry.name for entry in report.folded] == ["n"]
    assert folded.state_dict["s"].numel() == 4
    scaled = Fn(lambda m, x: m.n(m.c(x) * m.s), c=conv(6, 4), n=bn(4), s=number)
    assert not fold(randomize(scaled))[1].kept


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


def test_slopes_that_two_calls_need_in_two_ways() -> None:
    """Against the tensor they are one for each channel; the operator takes a list."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(m.n(m.act(m.c(x)))) + torch.tanh(m.act(m.c(x.sin())))

    module = randomize(Fn(run, c=conv(6, 4), n=bn(4), act=nn.PReLU(4)))
    with torch.no_grad():  # a scale alone, of both signs
        module.n.bias.zero_()
        module.n.running_mean.zero_()
        module.n.weight.copy_(torch.tensor([0.5, -1.5, 2.0, -0.7]))
    _, report = fold(module)
    assert not report.kept


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


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("L['self'].conv", "conv"),
        ("L['self']._modules['conv']", "conv"),
        ("G['net'].layer1[0]._modules['conv']", "layer1.0.conv"),
        ("L['self']", ""),
    ],
)
def test_a_path_that_is_an_expression_is_no_name(path: str, name: str) -> None:
    """What torch.compile captures names modules so; a new bias, and the report, have the user's own names."""
    module = randomize(Fn(lambda m, x: m.n(m.c(x)), c=conv(6, 4, bias=False), n=bn(4)))
    program = torch.export.export(module, (torch.randn(IMAGE),))
    for node in program.graph.nodes:
        if node.op == "call_function":
            norm = "batch_norm" in str(node.target)
            own = path.replace("conv", "bn") if norm else path
            node.meta["nn_module_stack"] = {"1": (own, type(module))}
    folded, report = bnfold.fold_program(program)
    assert report.entries[0].name == (name.replace("conv", "bn") or "n")
    assert report.verification.ok
    assert "c.bias" in folded.state_dict
    apart = "L__self___conv"  # a weight that torch.compile has made an attribute, of a name of its own
    for spec in program.graph_signature.input_specs:
        if spec.target == "c.weight":
            program.state_dict[apart] = program.state_dict.pop(spec.target)
            spec.target = apart
    folded, report = bnfold.fold_program(program)
    assert set(folded.state_dict) == {apart, f"{name}.bias" if name else "conv2d_bias"}
    assert report.verification.ok
