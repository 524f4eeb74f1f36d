"""Gradients of the modules on their kernels: second ones, by differences, many at once, what they save."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bnfold.nn import functional
from bnfold.nn.arguments import Arguments, Running
from tests.kernels.host import unavailable
from tests.kernels.machine import HostMachine
from tests.nn.test_on_kernels import SHAPES, near, pair

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_second_gradients(machine: HostMachine, training: bool, activation: str | None) -> None:
    torch.manual_seed(0)
    ours, theirs = pair("2d", activation)
    ours.train(training)
    theirs.train(training)

    def penalty(module: Callable[..., Tensor], parameters: Any) -> list[Tensor]:
        torch.manual_seed(1)
        x = torch.randn(SHAPES["2d"], requires_grad=True)
        r = torch.randn(SHAPES["2d"], requires_grad=True)
        loss = module(x, r).square().mean()
        first = torch.autograd.grad(loss, (x, r, *parameters), create_graph=True)
        loss = loss + sum(each.square().sum() for each in first)
        return list(torch.autograd.grad(loss, (x, r, *parameters)))

    def plain(x: Tensor, r: Tensor) -> Tensor:
        y = theirs(x) + r
        return y.relu() if activation else y

    mine, wanted = penalty(ours, list(ours.parameters())), penalty(plain, list(theirs.parameters()))
    for a, b in zip(mine, wanted, strict=True):
        near(a, b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("summed", [True, False])
def test_gradients_by_differences(training: bool, relu: bool, summed: bool) -> None:
    """In float64, where each step is its kernel's twin."""
    torch.manual_seed(3)
    shape = (3, 2, 2, 3)
    x, r = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.rand(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def run(x: Tensor, weight: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
        running = (mean.clone(), var.clone(), torch.tensor(0))
        given = Arguments(x, residual[0] if residual else None, weight, bias, 1e-5, relu)
        return functional.batch_norm(given, Running(*running), training)

    inputs = (x, weight, bias, r) if summed else (x, weight, bias)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_checkpointing_gives_the_same(machine: HostMachine) -> None:
    torch.manual_seed(0)
    ours, _ = pair("2d", "relu")
    other = copy.deepcopy(ours)
    x = torch.randn(SHAPES["2d"], requires_grad=True)
    r = torch.randn(SHAPES["2d"])
    direct = torch.autograd.grad(ours(x, r).square().sum(), (x, *ours.parameters()))
    again = checkpoint(other, x, r, use_reentrant=False)
    for a, b in zip(direct, torch.autograd.grad(again.square().sum(), (x, *other.parameters())), strict=True):
        assert torch.equal(a, b)


def test_less_is_saved_for_backward_than_by_torch(machine: HostMachine) -> None:
    ours, theirs = pair("2d", "relu")
    x = torch.randn(16, 8, 24, 24).to(torch.bfloat16)
    r = torch.randn(16, 8, 24, 24).to(torch.bfloat16)

    def saved(run: Callable[[Tensor, Tensor], Tensor]) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.setdefault(t.data_ptr(), t.numel() * t.element_size()), lambda t: t
        ):
            run(x.clone().requires_grad_(), r.clone().requires_grad_())
        return sum(sizes.values())

    size = x.numel() * 2
    assert saved(lambda x, r: (theirs(x) + r).relu()) > 2 * size
    assert saved(ours) < size + size // 16 + 1024


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_many_gradients_at_once(machine: HostMachine, training: bool, activation: str | None) -> None:
    torch.manual_seed(0)
    ours, _ = pair("2d", activation)
    ours.train(training)
    x = torch.randn(SHAPES["2d"], requires_grad=True)
    r = torch.randn(SHAPES["2d"], requires_grad=True)
    y = ours(x, r)
    inputs, directions = (x, r, *ours.parameters()), torch.randn(3, *SHAPES["2d"])
    at_once = torch.autograd.grad(y, inputs, directions, retain_graph=True, is_grads_batched=True)
    for n, direction in enumerate(directions):
        for some, one in zip(
            at_once, torch.autograd.grad(y, inputs, direction, retain_graph=True), strict=True
        ):
            near(some[n], one)


@pytest.mark.parametrize("training", [True, False])
def test_hooks_that_save_in_another_order(machine: HostMachine, training: bool) -> None:
    torch.manual_seed(0)
    ours, _ = pair("2d", "relu")
    ours.train(training)
    x = torch.randn(SHAPES["2d"]).contiguous(memory_format=torch.channels_last).requires_grad_()
    r = torch.randn(SHAPES["2d"])

    def second(y: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return first, *torch.autograd.grad(first.square().sum(), (x, ours.weight))

    wanted = second(ours(x, r))
    # As save_on_cpu(pin_memory=True) does.
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: torch.empty(t.shape, dtype=t.dtype).copy_(t), lambda t: t
    ):
        found = second(ours(x, r))
    for a, b in zip(found, wanted, strict=True):
        near(a, b)
