"""`SyncBatchNorm.convert_sync_batchnorm`: what a module has stays; what cannot stay is named."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrize

import bnfold.nn
from bnfold.errors import UsageError
from bnfold.nn import SyncBatchNorm


class Head(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


class Activated(nn.BatchNorm2d):
    """A batch norm with more behind it, as several libraries have one."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(super().forward(input))


class OtherEps(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)


class Mixin:
    def scaled(self) -> float:
        return 2.0


class Mixed(nn.BatchNorm2d, Mixin):
    pass


class Own(SyncBatchNorm):
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(input, residual) * 2


def test_every_kind_of_batch_norm_becomes_one() -> None:
    kinds: list[Any] = [getattr(place, f"BatchNorm{n}d") for place in (nn, bnfold.nn) for n in (1, 2, 3)]
    module = nn.Sequential(
        *(kind(3) for kind in (*kinds, nn.SyncBatchNorm, SyncBatchNorm, OtherEps)), nn.ReLU()
    )
    group: Any = object()
    after = SyncBatchNorm.convert_sync_batchnorm(module, group)
    assert after is module
    assert [type(part) for part in module[:-1]] == [SyncBatchNorm] * 9
    assert [part.process_group for part in module[:-1]] == [group] * 9
    assert module[8].eps == 1e-3
    assert type(SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(3))) is SyncBatchNorm


def test_everything_else_stays() -> None:
    shared = bnfold.nn.BatchNorm2d(4, activation="relu")
    module = nn.Sequential(
        Head(shared), nn.Sequential(Head(shared), Head(nn.BatchNorm2d(4, momentum=None)))
    ).eval()
    norm = module[1][1].norm
    norm.train()
    norm.register_buffer("more", torch.ones(2))
    norm.role, norm.qconfig = "head", "int8"
    calls: list[str] = []
    norm.register_forward_hook(lambda *_: calls.append("forward"))
    norm.register_forward_pre_hook(lambda *_: calls.append("before"))
    norm.register_full_backward_hook(lambda *_: calls.append("backward"))
    norm.weight.register_hook(lambda _: calls.append("weight"))
    keys, parameters = list(module.state_dict()), list(module.parameters())
    x = torch.randn(2, 3, 4, 4)
    wanted = copy.deepcopy(module)[0](x)
    SyncBatchNorm.convert_sync_batchnorm(module)
    assert module[0].norm is module[1][0].norm
    assert (type(shared), shared.activation, shared.training) == (SyncBatchNorm, "relu", False)
    assert (norm.role, norm.qconfig, norm.training, norm.momentum) == ("head", "int8", True, None)
    assert list(module.state_dict()) == keys
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert torch.equal(module[0](x), wanted)
    module[1][1](x).square().sum().backward()
    assert sorted(calls) == ["backward", "before", "forward", "weight"]
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module[0]))):
        assert isinstance(next(m for m in again.modules() if hasattr(m, "running_var")), SyncBatchNorm)


def scaled(norm: nn.Module) -> nn.Module:
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    return norm


@pytest.mark.parametrize(
    ("norm", "told"),
    [
        (Activated(4), "1.norm is a Activated: a batch norm with forward of its own"),
        (Mixed(4), "1.norm is a Mixed: a batch norm with scaled of its own"),
        (nn.LazyBatchNorm2d(), "1.norm is a LazyBatchNorm2d"),
        (scaled(nn.BatchNorm2d(4)), "1.norm is a ParametrizedBatchNorm2d: .* weight of its own"),
    ],
    ids=["forward", "mixin", "lazy", "parametrized"],
)
def test_what_would_lose_something_is_named_and_nothing_changes(norm: nn.Module, told: str) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), Head(norm))
    with pytest.raises(UsageError, match=told):
        SyncBatchNorm.convert_sync_batchnorm(module)
    assert type(module[0]) is nn.BatchNorm2d
    with pytest.raises(UsageError, match="the module is a"):
        SyncBatchNorm.convert_sync_batchnorm(norm)


def test_subclasses_of_it_stay_and_convert_to_themselves() -> None:
    module = nn.Sequential(Own(3), nn.BatchNorm2d(3))
    group: Any = object()
    SyncBatchNorm.convert_sync_batchnorm(module, group)
    assert [type(part) for part in module] == [Own, SyncBatchNorm]
    assert module[0].process_group is group
    Own.convert_sync_batchnorm(module)
    assert [type(part) for part in module] == [Own, Own]


def test_it_is_a_batch_norm_to_all_who_look_for_one() -> None:
    norm = SyncBatchNorm(3)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert "process_group" not in norm.state_dict()
    for x, told in (
        (torch.ones(3), "expected at least 2D input"),
        (torch.ones(2, 0, 3), "should be non-zero"),
    ):
        for kind in (SyncBatchNorm(0), nn.SyncBatchNorm(0)):
            with pytest.raises(ValueError, match=told):
                kind(x)
