"""The modules on their kernels, at the edges: where torch's own raise, take no notice, or go another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold.nn
from tests.kernels.host import unavailable
from tests.kernels.machine import HostMachine

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
SHAPE = (4, 8, 5, 6)


def pair(training: bool = True, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's, after a batch."""
    torch.manual_seed(0)
    ours, theirs = bnfold.nn.BatchNorm2d(8, **options), nn.BatchNorm2d(8, **options)
    x = torch.randn(SHAPE) * 3 + 1
    for module in (ours, theirs):
        module(x)
    return ours.train(training), theirs.train(training)


def near(a: Tensor | None, b: Tensor | None) -> None:
    torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gone", ["running_mean", "running_var"])
def test_one_running_statistic_is_refused_as_by_torch(
    machine: HostMachine, gone: str, training: bool
) -> None:
    raised = []
    for module in pair(training):
        setattr(module, gone, None)
        machine.launches.clear()
        with pytest.raises((ValueError, RuntimeError)) as error:
            module(torch.randn(SHAPE))
        raised.append((error.type, str(error.value)))
        assert not machine.launches
    assert raised[0] == raised[1]


MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no parameters": {"affine": False},
    "no statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", MODULES)
def test_many_gradients_at_once_of_a_plain_batch_norm(
    machine: HostMachine, options: str, training: bool
) -> None:
    ours, theirs = pair(training, **MODULES[options])
    x, directions = torch.randn(SHAPE, requires_grad=True), torch.randn(3, *SHAPE)
    found = []
    for module in (ours, theirs):
        inputs = (x, *module.parameters())
        found.append(torch.autograd.grad(module(x), inputs, directions, is_grads_batched=True))
    for some, others in zip(*found, strict=True):
        near(some, others)
    few = x.detach()[:1, :, :1, :2]
    jacobians = [
        torch.autograd.functional.jacobian(lambda x, m=m: m(x).sum((0, 2, 3)), few, vectorize=True)
        for m in (ours, theirs)
    ]
    near(jacobians[0], jacobians[1])


def test_many_gradients_at_once_of_a_bias_alone(machine: HostMachine) -> None:
    x, directions = torch.randn(SHAPE), torch.randn(3, *SHAPE)
    found = []
    for module in pair():
        module.weight.requires_grad_(False)
        found.append(torch.autograd.grad(module(x), module.bias, directions, is_grads_batched=True)[0])
    near(found[0], found[1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_frozen_statistics_give_no_gradient_may_be_infinite(
    machine: HostMachine, channels_last: bool
) -> None:
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(SHAPE)
    x[0, :, 0, 0], x[1, :, 1, 1], x[2, :, 2, 2] = torch.inf, -torch.inf, torch.nan
    gradients = []
    for module in pair(training=False):
        z = x.contiguous(memory_format=order).requires_grad_()
        module(z)[3:].square().sum().backward()
        gradients.append(z.grad)
    assert not gradients[0][:3].any()
    near(gradients[0], gradients[1])


STRIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "from 1x1": lambda x, last: x[:, :, :1, :1].expand(SHAPE),
    "from 1x1, channels last": lambda x, last: last[:, :, :1, :1].expand(SHAPE),
    "from a pooled vector": lambda x, last: x.mean((2, 3), keepdim=True).expand(SHAPE),
    "over the batch": lambda x, last: last[:1].expand(SHAPE),
    "over rows": lambda x, last: last[:, :, :1].expand(SHAPE),
    "over channels": lambda x, last: x[:, :1].expand(SHAPE),
    "every second example": lambda x, last: torch.cat([last, last]).contiguous(
        memory_format=torch.channels_last
    )[::2],
    "every second channel": lambda x, last: last.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda x, last: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", STRIDES)
def test_strides_of_the_result_are_torchs(machine: HostMachine, way: str, training: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(SHAPE)
    x = STRIDES[way](x, x.contiguous(memory_format=torch.channels_last))
    ours, theirs = (module(x) for module in pair(training))
    near(ours, theirs)
    assert ours.stride() == theirs.stride()
    volumes = [torch.randn(2, 8, 1, 1, 1).expand(2, 8, 3, 2, 2) for _ in range(2)]
    assert bnfold.nn.BatchNorm3d(8)(volumes[0]).stride() == nn.BatchNorm3d(8)(volumes[1]).stride()


@pytest.mark.parametrize("residual", [False, True])
def test_training_between_an_evaluation_and_its_backward(machine: HostMachine, residual: bool) -> None:
    """The gradient is that of the statistics which evaluation had."""
    torch.manual_seed(0)
    ours, theirs = bnfold.nn.BatchNorm2d(8, activation="relu").eval(), nn.BatchNorm2d(8).eval()
    x, r = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE, requires_grad=True)
    inputs = (x, r) if residual else (x,)
    z = (theirs(x) + r if residual else theirs(x)).relu()
    wanted = torch.autograd.grad(z.square().sum(), (*inputs, *theirs.parameters()))
    y = ours(*inputs)
    ours.train()
    ours(torch.randn(SHAPE) * 9 + 5)
    for mine, other in zip(
        torch.autograd.grad(y.square().sum(), (*inputs, *ours.parameters())), wanted, strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
