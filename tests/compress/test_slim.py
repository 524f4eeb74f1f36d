"""`slim` from end to end: numbers, steps, what it changes and what not, and every error."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
import bnfold.nn
from bnfold.compress import prunable, slim
from bnfold.errors import UsageError
from tests.compress.nets import Made, clear, example, ready, residual_net, unit

HALF = {
    "norm": [0, 3, 4, 6],
    "one.norm1": [1, 2, 4, 7, 9, 10],
    "two.norm1": [0, 1, 2, 3, 12, 13, 14, 15],
}
GROUPS = {
    "stem": ("norm", ("norm", "one.norm3", "two.norm3")),
    "one.expand": ("one.norm1", ("one.norm1", "one.norm2")),
    "two.expand": ("two.norm1", ("two.norm1", "two.norm2")),
}


def half_dead() -> nn.Module:
    """Half of the channels of each group have gamma = beta = 0 in all batch norms."""
    net = residual_net()
    clear(net, {norm: HALF[channels] for channels, norms in GROUPS.values() for norm in norms})
    return net


@torch.no_grad()
def test_channels_that_were_dead_leave_without_a_trace() -> None:
    net = half_dead()
    slimmed, report = slim(net, example(), fold=False)
    assert (report.reached, report.threshold) == (0.5, 0)
    assert {group.name: list(group.removed) for group in report.groups if group.removed} == {
        name: HALF[channels] for name, (channels, _) in GROUPS.items()
    }
    other = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(slimmed(other), net(other), rtol=0, atol=1e-12)
    assert net(other).std() > 0.1
    small = slimmed.state_dict()
    kept = {name: [i for i in range(16) if i not in some] for name, some in HALF.items()}
    stem, inside = kept["norm"][:4], kept["one.norm1"][:6]
    assert torch.equal(small["one.depthwise.weight"], net.one.depthwise.weight[inside])
    assert torch.equal(small["one.project.weight"], net.one.project.weight[stem][:, inside])
    assert torch.equal(small["two.norm3.running_var"], net.two.norm3.running_var[stem])
    assert torch.equal(small["head.weight"], net.head.weight[:, stem])


@torch.no_grad()
def test_folded_it_computes_the_same_without_batch_norms() -> None:
    net = half_dead()
    slimmed, report = slim(net, example())
    assert report.folded is not None
    assert (len(report.folded.folded), len(report.folded.kept)) == (7, 0)
    assert not [part for part in slimmed.modules() if isinstance(part, nn.BatchNorm2d)]
    other = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(slimmed(other), net(other), rtol=0, atol=1e-12)


def test_the_report_counts_what_is_there() -> None:
    net = residual_net()
    slimmed, report = slim(net, example(batch=3), ratio=0.4, fold=False)
    parameters = tuple(sum(value.numel() for value in each.parameters()) for each in (net, slimmed))
    assert report.total("parameters") == parameters
    assert parameters[1] < 0.7 * parameters[0]
    assert [step.parameters for step in report.steps] == list(parameters)
    total = [0, 0]
    for layer in report.layers:
        for at, each in enumerate((net, slimmed)):
            part = each.get_submodule(layer.name)
            assert layer.parameters[at] == sum(value.numel() for value in part.parameters())
            weight = part.weight
            if isinstance(part, nn.Conv2d):  # every net here keeps its 8 x 8 pixels
                assert layer.channels[at] == weight.shape[0]
                assert layer.multiplications[at] == 3 * 64 * weight.numel()
            elif isinstance(part, nn.Linear):
                assert layer.multiplications[at] == 3 * weight.numel()
            else:
                assert (layer.channels[at], layer.multiplications[at]) == (weight.numel(), 0)
            total[at] += layer.channels[at] if weight.ndim > 1 else 0
    assert report.total("channels") == tuple(total)
    removed = sum(len(group.removed) for group in report.groups for name in group.layers if "norm" in name)
    assert report.reached == removed / sum(
        layer.channels[0] for layer in report.layers if "norm" in layer.name
    )
    assert abs(report.reached - 0.4) < 0.02
    assert report.verification is not None
    assert report.verification.status == "passed"


def test_multiplications_of_strides_groups_and_transposed_convolutions() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 4 x 4 pixels: 16 * 8 * 27
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 16 * 8 * 9
        nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False),  # each of 16 * 8 inputs: 6 * 4
        nn.Conv2d(6, 2, 1),
    )
    _, report = slim(ready(net), example(batch=1), fold=False)
    work = {layer.name: layer.multiplications for layer in report.layers}
    assert work["0"] == (16 * 8 * 27, 16 * 4 * 27)
    assert work["2"] == (16 * 8 * 9, 16 * 4 * 9)
    assert work["3"] == (16 * 8 * 24, 16 * 4 * 24)
    assert work["4"] == (64 * 12, 64 * 12)


def test_channels_are_left_in_multiples() -> None:
    net = ready(Made(lambda s, x: s.c(s.b(s.a(x))), a=unit(3, 24), b=unit(24, 40), c=unit(40, 4)))
    slimmed, report = slim(net, example(), round_to=8, fold=False)
    assert all(layer.channels[1] % 8 == 0 for layer in report.layers if layer.name[0] in "ab")
    assert slimmed.c[0].in_channels % 8 == 0
    assert 0.3 < report.reached < 0.7


def test_the_given_module_stays_as_it_is() -> None:
    net = residual_net().train()
    net.one.norm2.eval()
    net.two.requires_grad_(False)
    before, modes = copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]
    slimmed, _ = slim(net, example(), loader=[example()], fold=False)
    assert [part.training for part in net.modules()] == modes
    assert [part.training for part in slimmed.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    frozen = {name: value.requires_grad for name, value in net.named_parameters()}
    assert {name: value.requires_grad for name, value in slimmed.named_parameters()} == frozen


@torch.no_grad()
def test_in_place_is_the_same_in_place() -> None:
    net = residual_net()
    twin, inner = copy.deepcopy(net), net.one.project
    for options in ({"fold": False}, {"loader": [example()]}):
        slimmed, _ = slim(net, example(), inplace=True, ratio=0.3, **options)
        expected, _ = slim(twin, example(), ratio=0.3, **options)
        twin = expected
        assert slimmed is net
        assert net.one.project is inner
        assert torch.equal(net(example()), expected(example()))
    assert inner.in_channels == inner.weight.shape[1] < 12


class Loader:
    """Counts how often it is read; the batches differ from the examples."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.read += 1
        return iter([3 * example(batch=4) + 1, example(batch=6) - 1])


@torch.no_grad()
def test_statistics_are_those_of_the_loader() -> None:
    loader = Loader()
    slimmed, report = slim(residual_net(), example(), loader=loader, fold=False)
    assert loader.read == 1
    seen = torch.cat([slimmed.stem(x) for x in Loader()]).transpose(0, 1).flatten(1)
    assert torch.allclose(slimmed.norm.running_mean, seen.mean(1), rtol=1e-12, atol=1e-12)
    assert torch.allclose(slimmed.norm.running_var, seen.var(1), rtol=1e-12)
    assert not [note for note in report.notes if "recalibrated" in note]
    _, other = slim(residual_net(), example(), fold=False)
    assert "not recalibrated: no loader was given" in other.notes


def test_each_step_is_evaluated_in_order() -> None:
    seen: list[tuple[int, bool, bool]] = []

    def evaluate(module: nn.Module) -> float:
        norms = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
        seen.append((module.stem.out_channels, module.training, torch.is_grad_enabled()))
        return 100 * len(seen) + norms

    def finetune(module: nn.Module) -> None:
        assert module.training
        assert module.one.norm1.training
        assert torch.is_grad_enabled()
        module(example()).sum().backward()
        assert module.stem.weight.grad is not None
        with torch.no_grad():
            module.head.bias.fill_(7)

    loader = Loader()
    slimmed, report = slim(
        residual_net(), example(), loader=loader, finetune=finetune, evaluate=evaluate, importance="max"
    )
    assert [(step.name, step.value, step.batch_norms) for step in report.steps] == [
        ("trained", 107, 7),
        ("pruned", 207, 7),
        ("recalibrated", 307, 7),
        ("fine-tuned", 407, 7),
        ("recalibrated again", 507, 7),
        ("folded", 600, 0),
    ]
    assert loader.read == 2
    assert slimmed.head.bias.tolist() == [7] * 5
    left = slimmed.stem.out_channels
    assert seen == [(8, False, False)] + [(left, False, False)] * 5
    assert left < 8


def test_with_fused_activations_and_more_than_one_input() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = unit(3, 8), unit(3, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
            result: Tensor = self.c(torch.relu(self.a[1](self.a[0](x)) + self.b(y))) * factor
            return result

    net = ready(bnfold.nn.convert(Two(), fuse_activations=True))
    x, y = example(), example() * 2
    slimmed, report = slim(net, (x, y), {"factor": 3.0}, fold=False)
    assert slimmed.a.get_submodule("0").out_channels == slimmed.b.get_submodule("0").out_channels == 4
    assert slimmed(x, y).shape == (2, 2, 8, 8)
    assert report.verification is not None
    assert report.verification.status == "passed"


def test_a_group_that_cannot_go_leaves_its_share_to_the_others() -> None:
    """`fixed` counts its channels in code; the check finds that, and takes nothing from it."""
    net = ready(
        Made(
            lambda s, x: s.c(s.b(s.a(x)) * torch.arange(1, 9).reshape(8, 1, 1)),
            a=unit(3, 10),
            b=unit(10, 8),
            c=unit(8, 4),
        )
    )
    _, report = slim(net, example(), fold=False)
    found = {group.name: (group.channels, group.why) for group in report.groups}
    assert found["a.0"] == ((10, 5), "")
    assert found["b.0"][0] == (8, 8)
    assert found["b.0"][1].startswith("the network does not run without some of them: The size of tensor a")
    assert f"kept: b.0 (8 channels): {found['b.0'][1]}" in str(report)


def test_without_the_check_mixed_channels_are_not_noticed() -> None:
    net = ready(Made(lambda s, x: s.b(s.a(x).softmax(1)), a=unit(3, 8), b=unit(8, 4)))
    with pytest.raises(UsageError, match="removing some of them changes what the others compute"):
        slim(net, example(), fold=False)
    slimmed, report = slim(net, example(), verify=False, fold=False)
    assert slimmed.a[0].out_channels == 4
    assert report.verification is None


def test_the_report_as_text_and_json() -> None:
    _, report = slim(
        residual_net(), example(), ratio=0.9, floor=0.5, evaluate=lambda module: 0.5, loader=[example()]
    )
    data = json.loads(report.to_json())
    assert data["totals"]["parameters"] == list(report.total("parameters"))
    assert data["steps"][0] == {"name": "trained", "parameters": 1121, "batch_norms": 7, "value": 0.5}
    assert data["folded"]["folded"] == 7
    assert data["verification"]["status"] == "passed"
    lines = str(report).splitlines()
    assert [line.split() for line in lines if line.startswith("one.depthwise ")] == [
        ["one.depthwise", "Conv2d", "12", "->", "6", "108", "->", "54", "13824", "->", "6912"]
    ]
    assert "50.0% of the batch norm channels that can go are gone (90.0% asked)" in str(report)
    assert "note: no more than 50.0% could go: floor=0.5 and round_to=1 keep the rest" in lines
    assert "kept: head (5 channels): an output of the network has these channels" in lines
    assert [line.split() for line in lines if line.startswith("trained")] == [
        ["trained", "0.5000", "1121", "7"]
    ]
    assert lines[-1] == "the right channels went: passed"


def test_the_names_are_public() -> None:
    assert bnfold.compress.slim is slim
    assert bnfold.compress.prunable is prunable


# errors


class Rough(nn.Module):
    """Cannot be followed: its output is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a = unit(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).detach()


def wrapped() -> nn.Module:
    return nn.DataParallel(residual_net())


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4))


def uncopied() -> nn.Module:
    net = residual_net()
    net.leaf = torch.ones(2, requires_grad=True) * 2
    return net


ERRORS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "ratio 0": (
        residual_net,
        {"ratio": 0.0},
        r"^ratio=0\.0: the share of channels to remove is between 0 and 1$",
    ),
    "ratio 1": (residual_net, {"ratio": 1}, r"^ratio=1: the share"),
    "ratio nan": (residual_net, {"ratio": float("nan")}, r"^ratio=nan: the share"),
    "ratio too small": (
        residual_net,
        {"ratio": 0.001},
        r"^ratio=0.001 with floor=0.1 and round_to=1 removes no channel: 36 in 3 groups could go$",
    ),
    "round_to too large": (residual_net, {"round_to": 64}, r"round_to=64 removes no channel"),
    "floor": (residual_net, {"floor": 1.0}, r"^floor=1\.0: the share of channels that stays is at least 0"),
    "round_to": (residual_net, {"round_to": 0}, r"^round_to=0: a whole number from 1 on$"),
    "importance": (
        residual_net,
        {"importance": "min"},
        r"^importance='min' is unknown. Note: valid choices are mean, max, weighted, or a function$",
    ),
    "ignored": (
        residual_net,
        {"ignored": ("hed",)},
        r"^ignored 'hed': no such layer. Note: .* stem, norm, one, ",
    ),
    "ignored as text": (
        residual_net,
        {"ignored": "head"},
        r"^ignored takes a collection of names: \('head',\)$",
    ),
    "no module": (lambda: 3, {}, r"^slim takes a torch.nn.Module, not int$"),
    "no batch norm": (
        lambda: nn.Conv2d(3, 4, 3).double(),
        {},
        r"^Conv2d has no batch norm with a scale to prune by$",
    ),
    "no scale": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False)).double(),
        {},
        r"^Sequential has no batch norm with a scale to prune by$",
    ),
    "wrapped": (wrapped, {}, r"^DataParallel wraps a module: slim its .module, and wrap the result$"),
    "compiled": (
        lambda: torch.compile(residual_net(), backend="eager"),
        {},
        r"^OptimizedModule wraps a module: slim its ._orig_mod",
    ),
    "lazy": (lazy, {}, r"^the module has lazy parameters that hold nothing yet: run it once first$"),
    "meta": (lambda: residual_net().to("meta"), {}, r"^the module has parameters on the meta device"),
    "not to copy": (uncopied, {}, r"^Made cannot be copied: Only Tensors created explicitly"),
    "not to follow": (
        lambda: ready(Rough()),
        {},
        r"^torch-pruning cannot follow Rough: no output has a gradient, which is what torch-pruning fol",
    ),
    "nothing but the output": (
        lambda: ready(unit(3, 4)),
        {},
        r"^nothing to prune in Sequential: .*\n  0 \(4 channels\): an output of the network has these chan",
    ),
    "all ignored": (
        residual_net,
        {"ignored": ("stem", "one", "two")},
        r"(?s)^nothing to prune in Made.*one.expand \(12 channels\): it is ignored",
    ),
    "a loader that is read once": (
        residual_net,
        {"loader": iter([example()]), "finetune": lambda module: None},
        r"^with finetune, loader is read twice",
    ),
    "an empty loader": (residual_net, {"loader": []}, r"^no batch norm saw any data"),
    "no number": (residual_net, {"evaluate": lambda module: "good"}, r"^evaluate gave str, not a number$"),
    "two numbers": (
        residual_net,
        {"evaluate": lambda module: torch.ones(2)},
        r"^evaluate gave Tensor, not a number$",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name: str) -> None:
    make, options, says = ERRORS[name]
    with pytest.raises(UsageError, match=says):
        slim(make(), example(), **options)


def test_examples_that_do_not_run() -> None:
    with pytest.raises(
        UsageError, match=r"^Made does not run on the example inputs: Given groups=1, weight of"
    ):
        slim(residual_net(), example(channels=4))
    with pytest.raises(UsageError, match=r"^Made does not run on the example inputs: .*takes 2 positional"):
        prunable(residual_net(), (example(), example()))


def test_under_inference_mode() -> None:
    net = residual_net()
    with torch.inference_mode():
        slimmed, report = slim(net, example())
    assert report.reached == 0.5
    assert not any(value.is_inference() for value in slimmed.parameters())


def test_a_choice_that_fails_in_place_changes_nothing() -> None:
    net = ready(Made(lambda s, x: s.b(s.a(x).softmax(1)), a=unit(3, 8), b=unit(8, 4)))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UsageError, match="nothing to prune"):
        slim(net, example(), inplace=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_without_torch_pruning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UsageError, match=r"slimming needs torch-pruning.*pip install '.*\[compress\]'"):
        slim(residual_net(), example())
