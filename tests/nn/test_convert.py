"""`convert`: torch's batch norms become this package's, in place; with merged calls if asked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import bnfold.nn
from bnfold.errors import UsageError

SHAPE = (4, 3, 9, 9)


class Block(nn.Module):
    """A residual block, written as torchvision's: one ReLU for all calls, and an addition in place."""

    def __init__(self, down: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) if down else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(True), Block(False), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))


def step(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients by name."""
    y = module(x)
    module.zero_grad()
    y.square().sum().backward()
    return [y, *(p.grad for _, p in sorted(module.named_parameters()))]


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_the_same_numbers_and_names(fuse: bool, training: bool) -> None:
    module, x = net().train(training), torch.randn(SHAPE)
    before, keys = copy.deepcopy(module), set(module.state_dict())
    after = bnfold.nn.convert(module, fuse_activations=fuse)
    assert set(after.state_dict()) == keys
    assert after.training is training
    for a, b in zip(step(after, x), step(before, x), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for key, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], value)


def test_all_kinds_in_place_and_subclasses_left() -> None:
    class Own(nn.BatchNorm2d):
        pass

    kinds: list[Any] = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, Own]
    module = nn.ModuleList([kind(4) for kind in kinds])
    weights = [part.weight for part in module]
    assert bnfold.nn.convert(module) is module
    names = [f"{type(part).__module__.split('.')[0]}.{type(part).__name__}" for part in module]
    assert names == [
        *(f"bnfold.{kind}" for kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")),
        "tests.Own",
    ]
    assert all(part.weight is weight for part, weight in zip(module, weights, strict=True))


def test_calls_are_merged_where_the_graph_shows_it() -> None:
    module = bnfold.nn.convert(net(), fuse_activations=True)
    calls = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    assert not any("relu" in str(node.target) or "add" in str(node.target) for node in calls)
    norms = [node for node in calls if isinstance(module.get_submodule(node.target), nn.BatchNorm2d)]
    assert [len(node.args) for node in norms] == [1, 1, 2, 1, 2, 1]
    assert [module.get_submodule(node.target).activation for node in norms] == [
        "relu", None, "relu", "relu", "relu", None,
    ]  # fmt: skip


class Shared(nn.Module):
    """A batch norm that is called twice, one that is read twice, a sum with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x)) + torch.relu(self.a(-x))
        z = self.b(y)
        return torch.relu(z) + z + torch.relu(self.c(x) + 1.0)


def test_where_it_does_not_show_it_nothing_is_merged() -> None:
    module, x = Shared(), torch.randn(SHAPE)
    before = copy.deepcopy(module)
    after = bnfold.nn.convert(module, fuse_activations=True)
    assert [module.a.activation, module.b.activation, module.c.activation] == [None] * 3
    assert torch.equal(after(x), before(x))


def added_into_another(norm: nn.Module, x: Tensor) -> Tensor:
    y = x.clone()
    return torch.relu(y.add_(norm(x))) + y


def changed_before_the_addition(norm: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    y = norm(x)
    return torch.relu(y + x.mul_(2))


def changed_by_a_function(norm: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    y = norm(x)
    return torch.relu(y + nn.functional.relu(x, inplace=True))


def changed_by_another_function(norm: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    y = norm(x)
    torch.relu_(x)
    return torch.relu(y + x)


def to_itself(norm: nn.Module, x: Tensor) -> Tensor:
    y = norm(x)
    return torch.relu(y + y)


def larger(norm: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(norm(x.mean((2, 3), keepdim=True)) + x)


def a_number(norm: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(norm(x) + x.size(0))


def by_name(norm: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.relu(input=norm(x))


Call = Callable[[nn.Module, Tensor], Tensor]
MERGED: list[Call] = [larger, a_number, by_name]
STAY: list[Call] = [
    added_into_another,
    changed_before_the_addition,
    changed_by_a_function,
    changed_by_another_function,
    to_itself,
]


@pytest.mark.parametrize("call", MERGED + STAY)
def test_merged_calls_give_the_same(call: Call) -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return call(self.norm, x)

    module, x = Called(), torch.randn(SHAPE)
    wanted = copy.deepcopy(module)(x)
    assert torch.equal(bnfold.nn.convert(module, fuse_activations=True)(x), wanted)
    assert module.norm.activation == ("relu" if call in MERGED else None)


class Doubling(nn.Module):
    """Writes into what it is given, which its type does not tell."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class Between(nn.Module):
    """Something is called between a batch norm and the addition."""

    def __init__(self, made_here: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1) if made_here else nn.Identity()
        self.norm, self.doubling = nn.BatchNorm2d(3), Doubling()

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.norm(self.conv(x))
        return torch.relu(y + self.doubling(x))


@pytest.mark.parametrize("made_here", [True, False])
def test_a_module_that_may_write_keeps_the_order(made_here: bool) -> None:
    module, x = Between(made_here), torch.randn(SHAPE)
    wanted = copy.deepcopy(module)(x)
    assert torch.equal(bnfold.nn.convert(module, fuse_activations=True)(x), wanted)
    assert (module.norm.activation == "relu") is made_here  # only what a convolution gave is nobody else's


@pytest.mark.parametrize("hooked", [True, False])
def test_an_identity_between_is_passed(hooked: bool) -> None:
    module = nn.Sequential(Block(True), nn.BatchNorm2d(3), nn.Identity(), nn.ReLU(), nn.Identity())
    if hooked:
        module[2].register_forward_hook(lambda *_: None)
    x = torch.randn(SHAPE)
    wanted = copy.deepcopy(module)(x)
    after = bnfold.nn.convert(module, fuse_activations=True)
    assert torch.equal(after(x), wanted)
    assert module[1].activation == (None if hooked else "relu")
    assert [str(node.target) for node in after.graph.nodes][-2:] == ["4", "output"]


class Passed(nn.Module):
    """The residual block of networks that drop paths: where none is dropped, an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.path = nn.BatchNorm2d(3), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(self.path(self.norm(x)) + x))


def test_identities_around_an_addition_are_passed() -> None:
    module, x = Passed(), torch.randn(SHAPE)
    wanted = copy.deepcopy(module)(x)
    after = bnfold.nn.convert(module, fuse_activations=True)
    assert torch.equal(after(x), wanted)
    assert [str(node.target) for node in after.graph.nodes] == ["x", "norm", "output"]


def test_a_batch_norm_that_a_watched_module_also_calls_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), self.norm)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.relu(self.norm(x)))

    module, x = Twice(), torch.randn(SHAPE)
    module.inner.register_forward_hook(lambda *_: None)
    wanted = copy.deepcopy(module)(x)
    assert torch.equal(bnfold.nn.convert(module, fuse_activations=True)(x), wanted)
    assert module.norm.activation is None


def test_a_residual_by_name_is_one_already() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = bnfold.nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(x, residual=x) + x.abs())

    module, x = Added(), torch.randn(SHAPE)
    wanted = copy.deepcopy(module)(x)
    assert torch.equal(bnfold.nn.convert(module, fuse_activations=True)(x), wanted)


def test_hooks_see_what_they_saw() -> None:
    for watched in (0, 1):
        module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
        hook = Mock(return_value=None)
        module[watched].register_forward_hook(hook)
        x = torch.randn(SHAPE)
        module(x)
        bnfold.nn.convert(module, fuse_activations=True)(x)
        first, second = (call.args[2] for call in hook.call_args_list)
        assert torch.equal(first, second)


def test_to_fx_a_leaf_as_torchs() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), bnfold.nn.BatchNorm2d(3, activation="relu"))
    graph = torch.fx.symbolic_trace(module)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    x = torch.randn(SHAPE)
    assert torch.equal(graph(x), module(x))


def test_what_cannot_be_traced_is_told() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match=r"torch.fx cannot trace Branching: .*\nConvert it without"):
        bnfold.nn.convert(Branching(), fuse_activations=True)
    with pytest.raises(UsageError, match=r"takes a torch.nn.Module, not int"):
        bnfold.nn.convert(3)  # type: ignore[arg-type]
