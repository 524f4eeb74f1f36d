"""`gamma_penalty`: its value, its gradient, and which batch norms count."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnfold.nn
from bnfold.compress import gamma_penalty, prunable
from bnfold.errors import UsageError
from tests.compress import nets


def small() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), bnfold.nn.BatchNorm2d(3, activation="relu"))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -0.25, 0.0]))
        net[2].weight.copy_(torch.tensor([-2.0, 1.0, 0.125]))
    return net


def test_it_is_the_sum_of_the_absolute_gammas_and_its_gradient_their_sign() -> None:
    net = small()
    total = gamma_penalty(net)
    assert total.shape == ()
    assert total.item() == 0.75 + 3.125
    (3 * total).backward()
    assert net[1].weight.grad.tolist() == [3, -3, 0]  # 0 where gamma is 0: it stays there
    assert net[2].weight.grad.tolist() == [-3, 3, 3]
    assert net[1].bias.grad is None


def test_frozen_ones_and_those_without_a_scale_do_not_count() -> None:
    net = nn.Sequential(*small(), nn.BatchNorm2d(3, affine=False))
    net[1].weight.requires_grad_(False)
    assert gamma_penalty(net).item() == 3.125
    net[2].weight.requires_grad_(False)
    total = gamma_penalty(net)
    assert total.item() == 0
    assert not total.requires_grad


def test_only_those_named_count_under_any_wrapper() -> None:
    net = small()
    assert gamma_penalty(net, only=("1",)).item() == 0.75
    assert gamma_penalty(net, only=("1", "1")).item() == 0.75
    assert gamma_penalty(net, only=()).item() == 0
    for wrapped in (nn.DataParallel(net), torch.compile(net, backend="eager")):
        assert gamma_penalty(wrapped, only=("1",)).item() == 0.75
    assert gamma_penalty(torch.compile(nn.DataParallel(net), backend="eager"), only=("1",)).item() == 0.75
    inner = nn.Sequential(torch.compile(nn.Sequential(*small()), backend="eager"))
    assert gamma_penalty(inner, only=("0.1",)).item() == 0.75


def test_it_can_be_compiled_whole() -> None:
    net = small()
    compiled = torch.compile(lambda: gamma_penalty(net, only=("2",)), backend="eager", fullgraph=True)
    total = compiled()
    total.backward()
    assert total.item() == 3.125
    assert net[2].weight.grad.tolist() == [-1, 1, 1]


def test_half_precision_is_summed_in_float32() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4096)).to(torch.bfloat16)
    total = gamma_penalty(net)
    assert total.dtype == torch.float32
    assert total.item() == 4096  # in bfloat16 a sum of ones ends at 256
    assert gamma_penalty(net.double()).dtype == torch.float64


def test_a_step_along_it_makes_scales_smaller_and_leaves_those_that_cannot_go() -> None:
    net = nets.residual_net()
    only = prunable(net, nets.example())
    assert only == ("norm", "one.norm2", "one.norm3", "two.norm2", "two.norm3")
    gammas = {name: net.get_submodule(name).weight for name in (*only, "one.norm1")}
    before = {name: value.detach().clone() for name, value in gammas.items()}
    gamma_penalty(net, only=only).backward()
    torch.optim.SGD(net.parameters(), 0.01).step()
    for name in only:
        assert torch.allclose(gammas[name].abs(), (before[name].abs() - 0.01).abs(), rtol=0, atol=1e-12)
    assert torch.equal(gammas["one.norm1"], before["one.norm1"])


def test_errors() -> None:
    with pytest.raises(UsageError, match=r"^Linear has no batch norm with a scale to penalize$"):
        gamma_penalty(nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"^only '0': no batch norm .* valid choices are 1, 2$"):
        gamma_penalty(small(), only=("1", "0"))
    with pytest.raises(UsageError, match=r"^0 is lazy and holds no scale yet: run the module once$"):
        gamma_penalty(nn.Sequential(nn.LazyBatchNorm2d()))
